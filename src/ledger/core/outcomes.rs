//! What became of the writes: what a side's transactions and answers tell, and what is found out by reading.

use crate::change::{
    Body, Echo, MappingId, Offset, Outcome, RecordId, Side, Source, Str, Ticket, WriteKind, WriteResult,
};
use crate::error::{Error, Kind, Result};
use crate::flow::{Event, Write, Written};
use crate::ledger::keys;

use super::writes::write_of;
use super::{Core, read_entry};

/// How a write went, for the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The write.
    pub ticket: Offset,
    /// Its record.
    pub record: RecordId,
    /// The side that was written to.
    pub side: Side,
    /// What became of it.
    pub result: WriteResult,
    /// The record's Salesforce id, where the answer told it.
    pub salesforce_id: Option<Str>,
}

impl Answer {
    /// The ledger's form of a target's answer; `None` where the answer comes in the stream or the write is tried again.
    pub fn of(write: &Write, side: Side, written: &Written) -> Option<Self> {
        let (result, salesforce_id) = match written {
            Written::Done { salesforce_id } => (WriteResult::Done, salesforce_id.clone()),
            Written::Refused { code, message } => {
                (WriteResult::Refused { code: code.clone(), message: message.clone() }, None)
            }
            Written::InStream | Written::Retry { .. } => return None,
        };
        Some(Self { ticket: write.ticket, record: write.record, side, result, salesforce_id })
    }
}

/// How often in a row a write is skipped before it is a dead letter. What it met was committed before, so the stream has told
/// it by the time it tells of the skip, and the next write goes by it; a write that is skipped again with nothing told in
/// between meets something that the stream does not tell.
const SKIPS_MAX: u8 = 2;

impl Core {
    /// A transaction of ours says what it did. What its rows have not told already is an echo without effect.
    pub(super) fn applied(&mut self, side: Side, event: &Event, applied: &[Offset], skipped: &[Offset]) -> Result<()> {
        for ticket in applied {
            if let Some((record, mapping)) = self.open_ticket(side, *ticket)? {
                if self.is_created_elsewhere(side, record)? {
                    self.skipped(side, *ticket, record, mapping)?;
                    continue;
                }
                let source = Source {
                    side,
                    position: event.position.clone(),
                    transaction: event.transaction.clone(),
                    committed_at: event.committed_at,
                    who: event.who.clone(),
                };
                let echo = Echo { mapping, record, source, ticket: *ticket, key: None, salesforce_id: None };
                self.push(Body::Echo(echo))?;
            }
        }
        for ticket in skipped {
            if let Some((record, mapping)) = self.open_ticket(side, *ticket)? {
                self.skipped(side, *ticket, record, mapping)?;
            }
        }
        Ok(())
    }

    fn skipped(&mut self, side: Side, ticket: Offset, record: RecordId, mapping: MappingId) -> Result<()> {
        let skips = self.fold.record(&*self.log, record)?.map_or(0, |state| state.skips[side.index()]);
        let result = if skips < SKIPS_MAX { WriteResult::Skipped } else { mismatch(side) };
        self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result })).map(|_| ())
    }

    /// Whether the row that the open write has made was told as another record's, which has the Salesforce id by now that it
    /// was made with: then this record has no row yet.
    fn is_created_elsewhere(&mut self, side: Side, record: RecordId) -> Result<bool> {
        let state = self.fold.record(&*self.log, record)?;
        Ok(state.is_some_and(|s| {
            !s.exists_at(side) && s.in_flight(side).is_some_and(|ticket| ticket.write == WriteKind::Create)
        }))
    }

    /// A transaction of ours had a write refused; the answer to it may have said so already, or have been lost.
    pub(super) fn refused(&mut self, side: Side, ticket: Offset, code: &Str, message: &Str) -> Result<()> {
        if let Some((record, mapping)) = self.open_ticket(side, ticket)? {
            let result = WriteResult::Refused { code: code.clone(), message: message.clone() };
            self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result }))?;
        }
        Ok(())
    }

    /// An open ticket's record and mapping. What becomes of one whose mapping has been removed since concerns nobody.
    fn open_ticket(&mut self, side: Side, ticket: Offset) -> Result<Option<(RecordId, MappingId)>> {
        let Some(record) = self.fold.lookup(&*self.log, &keys::ticket(side, ticket))? else { return Ok(None) };
        let mapping = self.fold.record(&*self.log, record)?.map(|state| state.mapping);
        Ok(mapping.filter(|mapping| self.is_mapped(*mapping)).map(|mapping| (record, mapping)))
    }

    /// Whether a mapping is in force. An entry about another one cannot be folded.
    pub(super) fn is_mapped(&self, mapping: MappingId) -> bool {
        self.meta().catalog.mapping(mapping).is_some()
    }

    /// The tickets of a side that were open when the process last stopped, as writes, oldest first; and whether the side had
    /// acknowledged them.
    pub fn open_writes(&mut self, side: Side) -> Result<Vec<(Write, bool)>> {
        let mut writes = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.log.scan_state(&[keys::TICKET, side as u8], after.as_deref(), 1_000)?;
            let Some((last, _)) = page.last() else { return Ok(writes) };
            after = Some(last.clone());
            for (key, value) in &page {
                let (ticket, record) = (Offset(keys::number(key)), RecordId(keys::number(value)));
                let entry = self.ticket_entry(ticket)?;
                self.fold.load(&*self.log, record)?;
                let Some(state) = self.fold.loaded(record) else { continue };
                let Some(mapping) = self.fold.meta.catalog.mapping(state.mapping) else { continue };
                let Some(flying) = state.in_flight(side).filter(|t| t.ticket == ticket) else { continue };
                writes.push((Write { ticket, ..write_of(state, mapping, &entry) }, flying.acknowledged_at.is_some()));
            }
        }
    }

    /// Gives up every open ticket of a side, where nothing will ever tell what became of them: what is still needed is planned
    /// anew, by what the side turns out to hold.
    pub fn abandon_open(&mut self, side: Side, reason: &str) -> Result<()> {
        let answers: Vec<Answer> = self
            .open_writes(side)?
            .into_iter()
            .map(|(write, _)| Answer {
                ticket: write.ticket,
                record: write.record,
                side,
                result: WriteResult::Abandoned { reason: Str::new(reason) },
                salesforce_id: None,
            })
            .collect();
        self.answers(&answers)
    }

    fn ticket_entry(&self, ticket: Offset) -> Result<Ticket> {
        match read_entry(&*self.log, ticket)?.body {
            Body::Ticket(entry) => Ok(entry),
            _ => {
                Err(Error::new(Kind::Corrupt, format!("entry {ticket} should be a ticket; run `tidelock log verify`")))
            }
        }
    }

    /// Takes a target's answers.
    pub fn answers(&mut self, answers: &[Answer]) -> Result<()> {
        for answer in answers {
            let Some((record, mapping)) = self.open_ticket(answer.side, answer.ticket)? else {
                // The echo came first and has closed the ticket; the answer may still tell the id.
                self.bind_answer(answer)?;
                continue;
            };
            let result = match self.bind_answer(answer)? {
                Some(other) => duplicate(answer, other),
                None => answer.result.clone(),
            };
            let silent = answer.result == WriteResult::Silent && answer.side == Side::Salesforce;
            if silent && self.confirm(mapping, record, answer.ticket)? {
                continue;
            }
            self.push(Body::Outcome(Outcome { mapping, record, side: answer.side, ticket: answer.ticket, result }))?;
            if silent {
                self.tell_id(record)?;
            }
        }
        Ok(())
    }

    /// A write without an echo made no difference, unless the stream could not tell everything: then the record is read, and the
    /// write closes with that (see [`Core::confirmed`]). What was read before this process began left no trace, so it may have
    /// been any record. Answers whether it is read.
    fn confirm(&mut self, mapping: MappingId, record: RecordId, ticket: Offset) -> Result<bool> {
        let unheard = self.unheard.get(&record) == Some(&ticket) || ticket < self.opened_at;
        let state = self.fold.record(&*self.log, record)?.filter(|_| unheard);
        let Some(id) = state.and_then(|state| state.salesforce_id.clone()) else { return Ok(false) };
        self.unconfirmed.insert((mapping, id.clone()), (record, ticket));
        self.partial.push((mapping, id));
        Ok(true)
    }

    /// Whether it is not known yet what became of a write.
    pub fn is_open(&mut self, side: Side, ticket: Offset) -> Result<bool> {
        Ok(self.open_ticket(side, ticket)?.is_some())
    }
}

fn mismatch(side: Side) -> WriteResult {
    WriteResult::Refused {
        code: Str::new("TIDELOCK_MISMATCH"),
        message: smol_str::format_smolstr!(
            "{side} holds something else than its stream has told, or another row has the same external id or Salesforce \
             id; compare the two sides, then retry"
        ),
    }
}

/// Salesforce has matched a record that was to be created with one that is another record here: its external id was given to
/// that one meanwhile.
fn duplicate(answer: &Answer, other: RecordId) -> WriteResult {
    let id = answer.salesforce_id.as_deref().unwrap_or_default();
    WriteResult::Refused {
        code: Str::new("TIDELOCK_DUPLICATE"),
        message: smol_str::format_smolstr!(
            "Salesforce wrote this to {id}, which has got the same external id meanwhile and is record {} of this log; give one \
             of the two another external id, then retry",
            other.0
        ),
    }
}
