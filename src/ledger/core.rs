//! What an event, a plan, an answer or a person's word becomes as entries. No threads, no runtime.
//!
//! * [`intake`]: what a captured event becomes.
//! * [`compare`]: what a row is that is read to be compared with the log.
//! * [`identity`]: which record a row is.
//! * [`writes`]: what a side needs.
//! * [`outcomes`]: what became of the writes.
//! * [`truncate`]: what a TRUNCATE becomes.
//! * [`people`]: what the configuration, the streams and people bring.

mod compare;
mod identity;
mod intake;
mod outcomes;
mod people;
mod truncate;
mod writes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use outcomes::Answer;
pub use people::{DeadLetterAction, OpenedStream};

use crate::causality::RecordState;
use crate::change::codec;
use crate::change::{Body, Entry, FieldId, MappingId, Offset, RecordId, Ruling, Side, Str, WriteResult};
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};
use crate::log::{Append, ChangeLog, ReadLimit};

use super::fold::Fold;
use super::keys::StateKey;
use super::meta::Meta;
use truncate::Truncating;

/// Counts since the start, for metrics and receipts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Changes appended, by side.
    pub changes: [u64; 2],
    /// Echoes appended, by side.
    pub echoes: [u64; 2],
    /// Events dropped as delivered before, by side.
    pub duplicates: [u64; 2],
    /// Tickets appended, by side.
    pub tickets: [u64; 2],
    /// Writes skipped because the side held something else, by side.
    pub skipped: [u64; 2],
    /// Writes refused, by side.
    pub refused: [u64; 2],
    /// Conflicts met (decisions other than a person's or an agreement).
    pub conflicts: u64,
    /// Of these, parked for a person.
    pub parked: u64,
}

/// Entries and state that belong in the log as one append.
#[derive(Debug)]
pub struct Part {
    expected_tail: Offset,
    append: Append,
}

impl Part {
    /// Makes it durable. Returns the new tail.
    pub fn store(&self, log: &dyn ChangeLog) -> Result<Offset> {
        log.append(self.expected_tail, &self.append)
    }

    /// The buffer, emptied.
    pub fn recycle(mut self) -> Append {
        self.append.clear();
        self.append
    }
}

/// The state machine. Every call adds entries to the append under way; [`Core::commit`] makes them durable.
pub struct Core {
    log: Arc<dyn ChangeLog>,
    clock: SharedClock,
    fold: Fold,
    append: Append,
    /// Transaction keys of the append under way, and of the one handed over before it.
    transactions: [HashSet<StateKey>; 2],
    /// The offset that the next entry gets.
    next: Offset,
    /// Counts since the start.
    pub counts: Counts,
    /// Salesforce records of which only part is known, or that a write may have changed unheard, found since last asked.
    partial: Vec<(MappingId, Str)>,
    /// Records that the last plan left out, or fields of them, since it is not known yet what the side's row holds there.
    held_back: Vec<RecordId>,
    /// Records that the last plan left as they are, though what is under way to the side is out of date already.
    behind: Vec<RecordId>,
    /// The offset of the first entry since the start.
    opened_at: Offset,
    /// Records that were read because Salesforce's stream could not tell, with the write that was under way to them: its echo may
    /// be what the stream could not tell.
    unheard: HashMap<RecordId, Offset>,
    /// Such writes, acknowledged and passed by the stream, by the Salesforce records that are being read for them.
    unconfirmed: HashMap<(MappingId, Str), (RecordId, Offset)>,
    /// The TRUNCATE of which not all rows are told yet.
    truncating: Option<Truncating>,
    /// Entries begun since the start: whether somebody has changed anything.
    pushes: u64,
}

impl Core {
    /// Continues a log where it stands.
    pub fn open(log: Arc<dyn ChangeLog>, clock: SharedClock) -> Result<Self> {
        let fold = Fold::open(&*log)?;
        let next = log.tail();
        Ok(Self {
            log,
            clock,
            fold,
            append: Append::new(),
            transactions: Default::default(),
            next,
            counts: Counts::default(),
            partial: Vec::new(),
            held_back: Vec::new(),
            behind: Vec::new(),
            opened_at: next,
            unheard: HashMap::new(),
            unconfirmed: HashMap::new(),
            truncating: None,
            pushes: 0,
        })
    }

    /// The first offset that is not durable.
    pub fn tail(&self) -> Offset {
        self.log.tail()
    }

    /// Everything about the link.
    pub fn meta(&self) -> &Meta {
        &self.fold.meta
    }

    /// The state of a record.
    pub fn record(&mut self, record: RecordId) -> Result<Option<&RecordState>> {
        self.fold.record(&*self.log, record)
    }

    /// How many entries were begun since the start, whether or not they came to be.
    pub fn pushes(&self) -> u64 {
        self.pushes
    }

    /// Bytes of entries that wait for [`Core::commit`].
    pub fn pending_bytes(&self) -> usize {
        self.append.bytes()
    }

    /// Makes everything since the last commit durable, as one batch. Returns the new tail.
    ///
    /// After an error the core must not be used again: what it believes is ahead of what is stored.
    pub fn commit(&mut self) -> Result<Offset> {
        let part = self.hand_over(Append::new());
        let tail = part.store(&*self.log)?;
        self.append = part.recycle();
        Ok(tail)
    }

    /// Gives everything since the last time away, to be stored by somebody else while this goes on; `buffer` is what it goes on
    /// with. Each part must be stored before the next is handed over, and after a failure the core must not be used again.
    pub fn hand_over(&mut self, buffer: Append) -> Part {
        let expected_tail = Offset(self.next.0 - self.append.len() as u64);
        if !self.append.is_empty() {
            self.fold.write_to(&mut self.append);
        }
        self.transactions.swap(0, 1);
        self.transactions[0].clear();
        Part { expected_tail, append: std::mem::replace(&mut self.append, buffer) }
    }

    /// Adds an entry and the decisions that follow from it. Returns the entry's offset.
    fn push(&mut self, body: Body) -> Result<Offset> {
        self.pushes += 1;
        let recorded_at = self.clock.now().max(self.fold.meta.recorded_at);
        let offset = self.next;
        let entry = Entry { recorded_at, body };
        let decisions = self.fold.fold(&*self.log, offset, &entry)?;
        let transaction = self.fold.transaction_key(&entry.body);
        self.append.push(&entry, transaction.as_deref());
        self.transactions[0].extend(transaction);
        self.next = offset.next();
        self.count(&entry.body);
        self.closes(&entry.body);
        for decision in decisions {
            self.push(Body::Decision(decision))?;
        }
        Ok(offset)
    }

    /// A write to Salesforce that is over needs no reading.
    fn closes(&mut self, body: &Body) {
        let (side, record) = match body {
            Body::Echo(echo) => (echo.source.side, echo.record),
            Body::Outcome(outcome) if outcome.result != WriteResult::Done => (outcome.side, outcome.record),
            _ => return,
        };
        if side == Side::Salesforce {
            self.unheard.remove(&record);
        }
    }

    fn count(&mut self, body: &Body) {
        match body {
            Body::Change(change) => self.counts.changes[change.source.side.index()] += 1,
            Body::Echo(echo) => self.counts.echoes[echo.source.side.index()] += 1,
            Body::Ticket(ticket) => self.counts.tickets[ticket.side.index()] += 1,
            Body::Outcome(outcome) => match outcome.result {
                WriteResult::Skipped => self.counts.skipped[outcome.side.index()] += 1,
                WriteResult::Refused { .. } => self.counts.refused[outcome.side.index()] += 1,
                _ => {}
            },
            Body::Decision(decision) => match decision.ruling {
                Ruling::Person { .. } | Ruling::Agreed => {}
                Ruling::Parked => {
                    self.counts.conflicts += 1;
                    self.counts.parked += 1;
                }
                _ => self.counts.conflicts += 1,
            },
            Body::Bind(_) | Body::Notice(_) => {}
        }
    }
}

/// Whether a side has never told what it holds in a field.
fn untold(state: &RecordState, side: Side, field: FieldId) -> bool {
    state.field(field).is_none_or(|register| register.held(side).dot.is_nobody())
}

/// One entry of a log.
pub fn read_entry(log: &dyn ChangeLog, offset: Offset) -> Result<Entry> {
    let page = log.read(offset, ReadLimit::ONE)?;
    let bytes = page.iter().next().map(|(_, bytes)| bytes);
    let bytes = bytes.ok_or_else(|| Error::new(Kind::Corrupt, format!("the log has no entry {offset}")))?;
    codec::decode(bytes).map_err(|e| {
        Error::new(Kind::Corrupt, format!("entry {offset} cannot be read; run `tidelock log verify`")).caused_by(e)
    })
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
