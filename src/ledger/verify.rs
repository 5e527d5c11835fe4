//! Proves a log, and computes its state anew.
//!
//! [`verify`] reads every entry once and looks for four kinds of damage:
//!
//! 1. **The entries**: checksum, chain, holes, encoding (the log's own reader checks; here the bad offsets are collected),
//!    and that none was recorded before the one before it.
//! 2. **The state**: folding all entries from nothing must give what is stored, byte for byte, and the decisions in the log
//!    must be those that follow from the entries before them.
//! 3. **The indexes**: of a record's entries, and of source transactions, by which a delivery is known to have come before.
//!    What the entries give must be stored, and nothing else.
//! 4. **No silent loss** ([`trail`]): told from the entries alone, without the rules' code, that every change is current, was
//!    replaced by one whose author had seen it, or is the recorded loser of a decision, parked, or a dead letter.
//!
//! Nothing is changed: what is computed goes into a scratch state that is dropped. [`rebuild`] does the same fold and puts
//! its result in the place of the stored state.

pub mod trail;

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::change::codec;
use crate::change::{Body, Decision, Entry, Offset, Outcome, RecordId, Ruling, WriteResult};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::log::{Append, ChangeLog, ReadLimit, Rebuild, first_difference, record_of};

use super::fold::Fold;
use super::keys::{self, StateKey};
use trail::Trail;

/// Problems that a report names one by one; more are only counted.
const PROBLEMS_MAX: usize = 100;
/// How much of an index is compared at once.
const INDEX_PAGE: usize = 1_000;
/// Bytes of entries that are folded before they are written to the scratch state.
const CHUNK_BYTES: usize = 4 << 20;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, if it is about one entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// What.
    pub what: String,
}

/// What a log was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first offset that can be read.
    pub head: Offset,
    /// The first offset that is not written.
    pub tail: Offset,
    /// Sound entries by kind.
    pub entries: BTreeMap<&'static str, u64>,
    /// Conflicts by how they ended: a policy's name, `delete_policy`, `later_of_same_side`, `owner`, `initial_merge`, `parked`.
    pub conflicts: BTreeMap<&'static str, u64>,
    /// Parked conflicts that were ended: by a person, or because both sides came to the same value.
    pub resolved: u64,
    /// Changes of a field or of a record's existence whose fate was followed.
    pub followed: u64,
    /// Fields that wait for a person.
    pub parked: u64,
    /// Writes that a side refused, all in all.
    pub refused: u64,
    /// Whether the state could be compared: not where entries are bad, or the log no longer begins with its first entry.
    pub state_compared: bool,
    /// What is wrong, by ascending offset as far as found in one pass.
    pub problems: Vec<Problem>,
    /// Problems beyond those listed.
    pub more_problems: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, offset: impl Into<Option<Offset>>, what: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { offset: offset.into(), what: what.into() });
        } else {
            self.more_problems += 1;
        }
    }

    fn count(&mut self, body: &Body) {
        let kind = match body {
            Body::Change(_) => "change",
            Body::Echo(_) => "echo",
            Body::Ticket(_) => "ticket",
            Body::Outcome(Outcome { result, .. }) => {
                self.refused += u64::from(matches!(result, WriteResult::Refused { .. }));
                "outcome"
            }
            Body::Decision(decision) => {
                match conflict_name(&decision.ruling) {
                    Some(name) => *self.conflicts.entry(name).or_default() += 1,
                    None => self.resolved += 1,
                }
                "decision"
            }
            Body::Bind(_) => "bind",
            Body::Notice(_) => "notice",
        };
        *self.entries.entry(kind).or_default() += 1;
    }
}

/// The name of a conflict's ruling; none for what only ends a parked one.
fn conflict_name(ruling: &Ruling) -> Option<&'static str> {
    Some(match ruling {
        Ruling::Policy { policy } => policy.name(),
        Ruling::DeletePolicy { .. } => "delete_policy",
        Ruling::LaterOfSameSide => "later_of_same_side",
        Ruling::InitialMerge => "initial_merge",
        Ruling::Owner { .. } => "owner",
        Ruling::Parked => "parked",
        Ruling::Agreed | Ruling::Person { .. } => return None,
    })
}

/// Checks everything about a log that nobody writes to meanwhile. `progress` is told how many entries of how many are done.
///
/// An error is one of reading the storage; what is wrong with the log itself is in the report.
pub fn verify(log: &dyn ChangeLog, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    verify_with(log, log, progress)
}

/// Like [`verify`], with the state computed in `scratch`, a log whose own entries do not matter: for a `log` that can only
/// be read, since a link runs on it.
pub fn verify_with(log: &dyn ChangeLog, scratch: &dyn ChangeLog, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let (head, tail) = (log.head(), log.tail());
    let mut report = Report { head, tail, state_compared: head == Offset(0), ..Report::default() };
    let mut proof =
        Proof { log, folding: None, trail: Trail::default(), expected: VecDeque::new(), recorded_at: Micros::MIN };
    if report.state_compared {
        proof.folding = Some(Folding::new(scratch)?);
    }
    let mut from = head;
    while from < tail {
        match log.read(from, ReadLimit::entries(2_000)) {
            Ok(page) if page.is_empty() => {
                let what = format!("the log ends before its tail {tail}: entries are missing from here on");
                report.problem(from, what);
                proof.give_up(&mut report);
                break;
            }
            Ok(page) => {
                for (offset, body) in page.iter() {
                    match codec::decode(body) {
                        Ok(entry) => proof.entry(offset, &entry, body, &mut report)?,
                        Err(error) => {
                            report.problem(offset, format!("the entry cannot be decoded: {error}"));
                            proof.give_up(&mut report);
                        }
                    }
                }
                from = page.next();
            }
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Configuration) => {
                report.problem(from, error.explain());
                proof.give_up(&mut report);
                from = from.next();
            }
            Err(error) => return Err(error),
        }
        progress(from.0.min(tail.0) - head.0, tail.0 - head.0);
    }
    proof.finish(&mut report)?;
    report.problems.sort_by_key(|p| (p.offset.is_none(), p.offset));
    Ok(report)
}

/// One pass over the entries.
struct Proof<'a> {
    log: &'a dyn ChangeLog,
    /// The state as computed anew; none once an entry is bad.
    folding: Option<Folding<'a>>,
    trail: Trail,
    /// Decisions that must come next.
    expected: VecDeque<Decision>,
    /// When the last entry was recorded.
    recorded_at: Micros,
}

impl Proof<'_> {
    /// Nothing that depends on all earlier entries can be said any more.
    fn give_up(&mut self, report: &mut Report) {
        self.folding = None;
        self.trail = Trail::default();
        self.expected.clear();
        report.state_compared = false;
    }

    fn entry(&mut self, offset: Offset, entry: &Entry, body: &[u8], report: &mut Report) -> Result<()> {
        report.count(&entry.body);
        if entry.recorded_at < self.recorded_at {
            report.problem(offset, "the entry was recorded before the one before it");
        }
        self.recorded_at = entry.recorded_at;
        if self.folding.is_none() {
            return Ok(());
        }
        self.decisions(offset, &entry.body, report);
        self.trail.entry(offset, &entry.body, &mut |offset, what| report.problem(offset, what));
        let Some(folding) = &mut self.folding else { return Ok(()) };
        match folding.entry(offset, entry, body) {
            Ok(decisions) => self.expected.extend(decisions),
            Err(error) => {
                report.problem(offset, format!("the entry cannot be folded: {}", error.explain()));
                self.give_up(report);
                return Ok(());
            }
        }
        if folding.append.bytes() >= CHUNK_BYTES {
            Self::flush(self.log, folding, report)?;
        }
        Ok(())
    }

    /// The decisions in the log are those that follow from the entries before them.
    fn decisions(&mut self, offset: Offset, body: &Body, report: &mut Report) {
        match body {
            Body::Decision(decision) if !matches!(decision.ruling, Ruling::Person { .. }) => {
                match self.expected.pop_front() {
                    Some(expected) if expected == *decision => {}
                    Some(expected) => {
                        let what = format!(
                            "the decision is not the one that the rules give: {}",
                            difference(&expected, decision)
                        );
                        report.problem(offset, what);
                    }
                    None => report.problem(offset, "the decision does not follow from the entries before it"),
                }
            }
            _ => {
                if let Some(missing) = self.expected.front() {
                    let what = format!("a decision about entry {} should be here and is missing", missing.about);
                    report.problem(offset, what);
                    self.expected.clear();
                }
            }
        }
    }

    fn flush(log: &dyn ChangeLog, folding: &mut Folding<'_>, report: &mut Report) -> Result<()> {
        let wanted: Vec<&[u8]> = folding.transactions.iter().map(|(_, key)| &key[..]).collect();
        let found = log.transaction_offsets(&wanted)?;
        for ((offset, _), found) in folding.transactions.iter().zip(found) {
            if found.is_none_or(|found| found < *offset) {
                report.problem(*offset, "the transaction index does not lead here; run `tidelock log rebuild`");
            }
        }
        folding.flush()
    }

    /// The indexes hold what the entries give, and nothing else.
    fn indexes(log: &dyn ChangeLog, scratch: &dyn Rebuild, report: &mut Report) -> Result<()> {
        const ADVICE: &str = "run `tidelock log rebuild`";
        let stored = |after: Option<&(RecordId, Offset)>| -> Result<Vec<((RecordId, Offset), ())>> {
            Ok(log.scan_records(after.copied(), INDEX_PAGE)?.into_iter().map(|key| (key, ())).collect())
        };
        let computed = |after: Option<&(RecordId, Offset)>| -> Result<Vec<((RecordId, Offset), ())>> {
            Ok(scratch.scan_records(after.copied(), INDEX_PAGE)?.into_iter().map(|key| (key, ())).collect())
        };
        if let Some(((record, offset), how)) = index_difference(&stored, &computed)? {
            report.problem(offset, format!("the index of record {} {how} this entry; {ADVICE}", record.0));
        }
        let stored = |after: Option<&Vec<u8>>| log.scan_transactions(&[], after.map(Vec::as_slice), INDEX_PAGE);
        let computed = |after: Option<&Vec<u8>>| scratch.scan_transactions(after.map(Vec::as_slice), INDEX_PAGE);
        if let Some((key, how)) = index_difference(&stored, &computed)? {
            let key = key.escape_ascii();
            report.problem(None, format!("the transaction index {how} the key {key}; {ADVICE}"));
        }
        Ok(())
    }

    fn finish(mut self, report: &mut Report) -> Result<()> {
        let Some(mut folding) = self.folding.take() else { return Ok(()) };
        if let Some(missing) = self.expected.front() {
            report.problem(report.tail, format!("the last decision about entry {} is missing", missing.about));
        }
        self.trail.finish(report.tail, &mut |offset, what| report.problem(offset, what));
        (report.followed, report.parked) = (self.trail.followed(), self.trail.parked());
        Self::flush(self.log, &mut folding, report)?;
        Self::indexes(self.log, &*folding.scratch, report)?;
        if let Some(key) = first_difference(self.log, &*folding.scratch)? {
            let advice = "the entries are what counts; run `tidelock log rebuild`";
            report.problem(
                None,
                format!("the stored state is not what the entries add up to: {} differs; {advice}", describe(&key)),
            );
        }
        Ok(())
    }
}

/// A state that is computed anew, entry by entry.
struct Folding<'a> {
    fold: Fold,
    scratch: Box<dyn Rebuild + 'a>,
    append: Append,
    /// The first offset of `append`.
    first: Offset,
    transactions: Vec<(Offset, StateKey)>,
}

impl<'a> Folding<'a> {
    fn new(log: &'a dyn ChangeLog) -> Result<Self> {
        let scratch = log.rebuild()?;
        let fold = Fold::open(&*scratch)?;
        Ok(Self { fold, scratch, append: Append::new(), first: log.head(), transactions: Vec::new() })
    }

    fn entry(&mut self, offset: Offset, entry: &Entry, body: &[u8]) -> Result<Vec<Decision>> {
        let decisions = self.fold.fold(&*self.scratch, offset, entry)?;
        let key = self.fold.transaction_key(&entry.body);
        self.append.push_encoded(body, record_of(entry), key.as_deref());
        self.transactions.extend(key.map(|key| (offset, key)));
        Ok(decisions)
    }

    fn flush(&mut self) -> Result<()> {
        if self.append.is_empty() {
            return Ok(());
        }
        self.fold.write_to(&mut self.append);
        self.scratch.write(self.first, &self.append)?;
        self.first = Offset(self.first.0 + self.append.len() as u64);
        self.append.clear();
        self.transactions.clear();
        Ok(())
    }
}

/// Computes the state and the indexes anew from the entries, and puts them in the place of the stored ones. Returns how many
/// entries were folded. A bad entry is an error, and everything stays as it was.
pub fn rebuild(log: &dyn ChangeLog, progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
    let (head, tail) = (log.head(), log.tail());
    if head > Offset(0) {
        let text = format!(
            "the change log begins at offset {head}: what was before it is only in the state, which therefore cannot be \
             computed anew; restore the directory from a backup instead"
        );
        return Err(Error::new(Kind::Configuration, text));
    }
    let mut folding = Folding::new(log)?;
    let mut from = head;
    while from < tail {
        let page = log.read(from, ReadLimit::entries(2_000))?;
        if page.is_empty() {
            let text = format!("the change log has no entry {from}, though it should reach to {tail}");
            return Err(Error::new(Kind::Corrupt, text));
        }
        for (offset, body) in page.iter() {
            let entry = codec::decode(body).map_err(|error| {
                Error::new(Kind::Corrupt, format!("the entry at offset {offset} of the change log cannot be decoded"))
                    .caused_by(error)
            })?;
            folding.entry(offset, &entry, body)?;
            if folding.append.bytes() >= CHUNK_BYTES {
                folding.flush()?;
            }
        }
        from = page.next();
        progress(from.0, tail.0);
    }
    folding.flush()?;
    folding.scratch.commit()?;
    Ok(tail.0)
}

/// A page of an index, from behind a key on.
type IndexPage<'a, K, V> = &'a dyn Fn(Option<&K>) -> Result<Vec<(K, V)>>;

/// The first key at which a stored index is not the computed one, and how it differs there.
fn index_difference<K: Ord + Clone, V: PartialEq>(
    stored: IndexPage<'_, K, V>,
    computed: IndexPage<'_, K, V>,
) -> Result<Option<(K, &'static str)>> {
    const EXTRA: &str = "should not have";
    const MISSING: &str = "lacks";
    let mut after: Option<K> = None;
    loop {
        let (a, b) = (stored(after.as_ref())?, computed(after.as_ref())?);
        if let Some((x, y)) = a.iter().zip(&b).find(|(x, y)| x != y) {
            return Ok(Some(match x.0.cmp(&y.0) {
                Ordering::Less => (x.0.clone(), EXTRA),
                Ordering::Equal => (x.0.clone(), "leads to another entry by"),
                Ordering::Greater => (y.0.clone(), MISSING),
            }));
        }
        let common = a.len().min(b.len());
        match (a.get(common), b.get(common)) {
            (Some((key, _)), _) => return Ok(Some((key.clone(), EXTRA))),
            (None, Some((key, _))) => return Ok(Some((key.clone(), MISSING))),
            (None, None) => match a.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(None),
            },
        }
    }
}

/// In which part two decisions differ.
fn difference(expected: &Decision, found: &Decision) -> String {
    if (expected.record, expected.subject, expected.about) != (found.record, found.subject, found.about) {
        return format!("it should be about entry {}", expected.about);
    }
    if expected.ruling != found.ruling || expected.conflict != found.conflict {
        return format!("it should be decided by {:?}", expected.ruling);
    }
    "winner and loser should be others".into()
}

/// A key of the state, for people.
fn describe(key: &[u8]) -> String {
    let number = keys::number(key);
    match key.first() {
        Some(&keys::RECORD) => format!("record {number}"),
        Some(&keys::BY_KEY) => "the index of primary keys".into(),
        Some(&keys::BY_SALESFORCE_ID) => "the index of Salesforce ids".into(),
        Some(&keys::BY_EXTERNAL_ID) => "the index of external ids".into(),
        Some(&keys::OPEN_CONFLICT) => format!("open conflict {number}"),
        Some(&keys::CONFLICT) => format!("conflict {number}"),
        Some(&keys::DEAD_LETTER) => format!("dead letter {number}"),
        Some(&keys::TICKET) => format!("open write {number}"),
        Some(&keys::PARTIAL) => format!("the mark of record {number} as known in part"),
        Some(&keys::META) => "the link's own state".into(),
        _ => "a key of no known kind".into(),
    }
}

#[cfg(test)]
mod tests;
