//! The event log of the org: what was told, in order, for as long as it is kept.
//!
//! One numbering runs through all topics and has gaps. A replay id is valid while the event that it names is kept, or
//! when it is the newest that was given out; everything else is refused as corrupted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

/// An event as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) at_ms: i64,
    pub(crate) object: usize,
    pub(crate) uuid: Arc<str>,
    pub(crate) schema_id: Arc<str>,
    pub(crate) payload: Bytes,
}

/// The events that are kept, and the schemas that they were written with.
#[derive(Debug)]
pub(crate) struct EventLog {
    events: VecDeque<Event>,
    schemas: HashMap<Arc<str>, Arc<str>>,
    /// The newest number given out.
    tip: u64,
    /// The newest number whose event is gone.
    purged: u64,
    /// The oldest number that may still be resumed after though its event is gone.
    floor: u64,
    max_events: usize,
    retention_ms: i64,
    told: u64,
}

/// The number before the first event; not small, so that ids look like those of an org with a past.
const FIRST: u64 = 24_700_000;

impl EventLog {
    pub(crate) fn new(max_events: usize, retention_ms: i64) -> Self {
        Self {
            events: VecDeque::new(),
            schemas: HashMap::new(),
            tip: FIRST,
            purged: FIRST,
            floor: FIRST,
            max_events: max_events.max(1),
            retention_ms,
            told: 0,
        }
    }

    /// Makes a schema known.
    pub(crate) fn add_schema(&mut self, id: Arc<str>, json: Arc<str>) {
        self.schemas.insert(id, json);
    }

    /// The schema with `id`.
    pub(crate) fn schema(&self, id: &str) -> Option<Arc<str>> {
        self.schemas.get(id).cloned()
    }

    /// Appends an event; `step` (at least one) is how far the numbering moves.
    pub(crate) fn append(&mut self, step: u64, event: Event) {
        self.tip += step.max(1);
        self.told += 1;
        self.expire(event.at_ms);
        self.events.push_back(Event { number: self.tip, ..event });
        while self.events.len() > self.max_events {
            self.drop_oldest();
        }
    }

    /// Drops events that are older than the retention.
    pub(crate) fn expire(&mut self, now_ms: i64) {
        while self.events.front().is_some_and(|event| event.at_ms < now_ms - self.retention_ms) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.purged = event.number;
            self.floor = event.number;
        }
    }

    /// Drops everything that was told so far, so that every replay id given out becomes invalid.
    pub(crate) fn purge(&mut self) {
        self.events.clear();
        self.purged = self.tip;
        self.tip += 1;
        self.floor = self.tip;
    }

    /// The newest number given out.
    pub(crate) fn tip(&self) -> u64 {
        self.tip
    }

    /// The number that a subscription from the beginning starts after.
    pub(crate) fn before_first(&self) -> u64 {
        self.floor
    }

    /// Whether a subscription may start after `number`.
    pub(crate) fn can_resume(&self, number: u64) -> bool {
        number == self.tip
            || number == self.floor
            || self.events.binary_search_by_key(&number, |event| event.number).is_ok()
    }

    /// Whether events after `number` have been dropped before they could be read.
    pub(crate) fn has_lost(&self, number: u64) -> bool {
        number < self.purged
    }

    /// The events after `number`, oldest first.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &Event> {
        let start = self.events.partition_point(|event| event.number <= number);
        self.events.range(start..)
    }

    /// How many events are kept, and how many were ever told.
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.events.len(), self.told)
    }
}

/// The ten bytes of a replay id: the number, big-endian, and two zeros.
pub(crate) fn replay_id(number: u64) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes
}

/// The number of a replay id of eight or ten bytes.
pub(crate) fn number_of(replay_id: &[u8]) -> Option<u64> {
    let (head, tail) = replay_id.split_first_chunk::<8>()?;
    matches!(tail, [] | [0, 0]).then(|| u64::from_be_bytes(*head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_ms: i64) -> Event {
        Event {
            number: 0,
            at_ms,
            object: 0,
            uuid: "u".into(),
            schema_id: "s".into(),
            payload: Bytes::from_static(b"x"),
        }
    }

    #[test]
    fn replay_ids_have_ten_bytes_and_eight_are_taken() {
        let id = replay_id(0x0179_0029);
        assert_eq!(id, [0, 0, 0, 0, 1, 0x79, 0, 0x29, 0, 0]);
        assert_eq!(number_of(&id), Some(0x0179_0029));
        assert_eq!(number_of(&id[..8]), Some(0x0179_0029));
        assert_eq!(number_of(&id[..7]), None);
        assert_eq!(number_of(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 1]), None);
    }

    #[test]
    fn ids_are_valid_while_their_event_is_kept() {
        let mut log = EventLog::new(3, 1000);
        let start = log.tip();
        assert!(log.can_resume(start));
        for at in 0..3 {
            log.append(2, event(at));
        }
        assert!(log.can_resume(start), "nothing has been lost yet");
        assert!(!log.can_resume(start + 1), "an id that was never given out");
        assert!(log.can_resume(start + 2));
        log.append(2, event(3));
        assert!(!log.can_resume(start));
        assert!(log.has_lost(start));
        assert_eq!(log.after(log.before_first()).count(), 3);
        log.append(1, event(5000));
        assert_eq!(log.counts(), (1, 5));
        let tip = log.tip();
        log.purge();
        assert!(!log.can_resume(tip));
        assert!(log.can_resume(log.tip()));
    }
}
