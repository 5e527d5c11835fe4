//! Random operations against an implementation and against the simplest thing that could be right.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::Home;
use crate::change::golden::seeded;
use crate::change::{Offset, RecordId};
use crate::log::{Append, ChangeLog, ReadLimit, frame};

/// Entries of an append: length of the body, record, transaction key.
type Entries = Vec<(u8, Option<u8>, Option<u8>)>;

/// State changes of an append: a key, and its value where it is not removed.
type Changes = Vec<(u8, Option<u8>)>;

#[derive(Debug, Clone)]
enum Step {
    Append { entries: Entries, state: Changes },
    Restart,
    Read { from: u8, entries: u8, bytes: u16 },
    Rebuild { commit: bool },
}

#[derive(Default)]
struct Model {
    bodies: Vec<Vec<u8>>,
    appends: Vec<(Entries, Changes)>,
    records: Vec<Option<u8>>,
    transactions: BTreeMap<u8, u64>,
    state: BTreeMap<u8, u8>,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..12_u8;
    prop_oneof![
        6 => (vec((any::<u8>(), prop::option::of(key()), prop::option::of(key())), 1..6),
              vec((key(), prop::option::of(any::<u8>())), 0..6))
            .prop_map(|(entries, state)| Step::Append { entries, state }),
        1 => Just(Step::Restart),
        3 => (any::<u8>(), 0..8_u8, 0..600_u16).prop_map(|(from, entries, bytes)| Step::Read { from, entries, bytes }),
        1 => any::<bool>().prop_map(|commit| Step::Rebuild { commit }),
    ]
}

fn build(first: u64, entries: &Entries, state: &[(u8, Option<u8>)]) -> Append {
    let mut append = Append::new();
    for (n, (length, record, transaction)) in entries.iter().enumerate() {
        let body = vec![(first as usize + n) as u8; usize::from(*length)];
        append.push_encoded(
            &body,
            record.map(|r| RecordId(u64::from(r))),
            transaction.as_ref().map(std::slice::from_ref),
        );
    }
    for (key, value) in state {
        match value {
            Some(value) => append.put(&[*key], &[*value]),
            None => append.delete(&[*key]),
        }
    }
    append
}

impl Model {
    fn append(&mut self, entries: &Entries, state: &[(u8, Option<u8>)]) {
        for (length, record, transaction) in entries {
            let n = self.bodies.len();
            self.bodies.push(vec![n as u8; usize::from(*length)]);
            self.records.push(*record);
            if let Some(key) = transaction {
                self.transactions.insert(*key, n as u64);
            }
        }
        for (key, value) in state {
            match value {
                Some(value) => self.state.insert(*key, *value),
                None => self.state.remove(key),
            };
        }
        self.appends.push((entries.clone(), state.to_vec()));
    }

    fn check(&self, log: &impl ChangeLog) {
        assert_eq!(log.tail().0, self.bodies.len() as u64);
        let chain = self.bodies.iter().fold(frame::GENESIS, |chain, body| frame::chain(&chain, body));
        assert_eq!(log.chain(), chain);
        let state: Vec<_> = self.state.iter().map(|(key, value)| (vec![*key], vec![*value])).collect();
        assert_eq!(log.scan_state(b"", None, 99).unwrap(), state);
        let transactions: Vec<_> = self.transactions.iter().map(|(key, n)| (vec![*key], Offset(*n))).collect();
        assert_eq!(log.scan_transactions(b"", None, 99).unwrap(), transactions);
        for record in 0..12 {
            let offsets: Vec<_> =
                (0..).map(Offset).zip(&self.records).filter(|(_, r)| **r == Some(record)).map(|(o, _)| o).collect();
            assert_eq!(log.record_offsets(RecordId(u64::from(record)), Offset(0), 999).unwrap(), offsets);
        }
    }

    fn read(&self, log: &impl ChangeLog, from: usize, limit: ReadLimit) {
        let page = log.read(Offset(from as u64), limit).unwrap();
        let mut expected = Vec::new();
        let mut bytes = 0;
        for body in self.bodies.iter().skip(from) {
            if !limit.takes(expected.len(), bytes, body.len()) {
                break;
            }
            bytes += body.len();
            expected.push(body.as_slice());
        }
        assert_eq!(page.iter().map(|(_, body)| body).collect::<Vec<_>>(), expected);
    }
}

fn run<H: Home + Default>(steps: Vec<Step>) {
    let home = H::default();
    let mut log = home.open();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Append { entries, state } => {
                let tail = log.tail();
                log.append(tail, &build(tail.0, &entries, &state)).unwrap();
                model.append(&entries, &state);
            }
            Step::Restart => {
                drop(log);
                log = home.open();
            }
            Step::Read { from, entries, bytes } => {
                let limit = ReadLimit { entries: usize::from(entries), bytes: usize::from(bytes) };
                model.read(&log, usize::from(from) % (model.bodies.len() + 2), limit);
            }
            Step::Rebuild { commit } => {
                let mut rebuild = log.rebuild().unwrap();
                let mut next = 0;
                for (entries, state) in &model.appends {
                    rebuild.write(Offset(next), &build(next, entries, state)).unwrap();
                    next += entries.len() as u64;
                }
                assert_eq!(crate::log::first_difference(&log, &*rebuild).unwrap(), None);
                if commit {
                    rebuild.commit().unwrap();
                }
            }
        }
        model.check(&log);
    }
}

/// A run that fails prints its seed and the fewest steps that fail.
pub(super) fn compare<H: Home + Default>() {
    TestRunner::new(seeded(24))
        .run(&vec(step(), 1..24), |steps| {
            run::<H>(steps);
            Ok(())
        })
        .unwrap();
}
