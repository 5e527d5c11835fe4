//! Salesforce records of which only part is known, while they wait to be read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::change::{MappingId, Str};

/// Records of a mapping that wait at most; the log knows the others.
const WAITING_MAX: usize = 10_000;
/// The waits after failures, which may be ones that only a person mends.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// The records that wait, by mapping.
#[derive(Debug, Default)]
pub(super) struct Partial {
    waiting: BTreeMap<MappingId, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ids: BTreeSet<Str>,
    /// Whether there are more in the log than wait here.
    more: bool,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Partial {
    pub(super) fn add(&mut self, records: impl IntoIterator<Item = (MappingId, Str)>) {
        for (mapping, id) in records {
            let waiting = self.waiting.entry(mapping).or_insert_with(|| Waiting {
                ids: BTreeSet::new(),
                more: false,
                backoff: Backoff::new(RETRY.0, RETRY.1),
                not_before: None,
            });
            if waiting.ids.len() < WAITING_MAX {
                waiting.ids.insert(id);
            } else {
                waiting.more |= !waiting.ids.contains(&id);
            }
        }
    }

    /// What is to be read now, one mapping at a time, since one may fail for itself.
    pub(super) fn due(&self, now: Instant) -> Vec<Vec<(MappingId, Str)>> {
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.not_before.is_none_or(|at| at <= now));
        due.map(|(mapping, waiting)| waiting.ids.iter().map(|id| (*mapping, id.clone())).collect()).collect()
    }

    /// The records of a mapping have been read. Answers whether more of them are to be looked for in the log.
    pub(super) fn read(&mut self, mapping: MappingId) -> bool {
        self.waiting.remove(&mapping).is_some_and(|waiting| waiting.more)
    }

    /// The records of a mapping could not be read. Answers how long they wait now.
    pub(super) fn failed(&mut self, mapping: MappingId, now: Instant) -> Duration {
        let Some(waiting) = self.waiting.get_mut(&mapping) else { return Duration::ZERO };
        let wait = waiting.backoff.next_wait();
        waiting.not_before = Some(now + wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MappingId = MappingId(0);
    const B: MappingId = MappingId(1);

    fn ids(count: usize) -> impl Iterator<Item = (MappingId, Str)> {
        (0..count).map(|n| (A, smol_str::format_smolstr!("{n:018}")))
    }

    #[test]
    fn a_mapping_that_fails_waits_longer_each_time_and_holds_up_no_other() {
        let mut partial = Partial::default();
        let mut now = Instant::now();
        let mut tries = 0;
        let day = now + Duration::from_hours(24);
        while now < day {
            partial.add([(A, "001".into()), (B, "003".into())]);
            let due = partial.due(now);
            assert_eq!(due.last().unwrap(), &[(B, Str::new("003"))]);
            assert!(!partial.read(B));
            if due.len() == 2 {
                tries += 1;
                partial.failed(A, now);
            }
            now += Duration::from_secs(1);
        }
        assert!((288..700).contains(&tries), "{tries} calls a day");
        assert!(!partial.read(A));
        partial.add([(A, "001".into())]);
        assert_eq!(partial.due(now).len(), 1, "it starts over");
    }

    #[test]
    fn those_that_wait_are_known_once_and_not_without_bound() {
        let mut partial = Partial::default();
        let now = Instant::now();
        for _ in 0..3 {
            partial.add(ids(WAITING_MAX));
        }
        assert_eq!(partial.due(now)[0].len(), WAITING_MAX);
        assert!(!partial.read(A), "none was left out");
        partial.add(ids(WAITING_MAX + 1));
        assert_eq!(partial.due(now)[0].len(), WAITING_MAX);
        assert!(partial.read(A), "the log has one more");
        assert!(partial.due(now).is_empty());
    }
}
