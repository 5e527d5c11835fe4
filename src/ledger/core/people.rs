//! What the configuration, the streams and people bring.

use std::sync::Arc;

use crate::causality;
use crate::causality::apply::Choice;
use crate::change::{
    Body, Catalog, Decision, MappingId, Notice, Offset, Outcome, Position, RecordId, Side, Str, StreamId, Subject,
    WriteResult,
};
use crate::error::{Error, Kind, Result};
use crate::ledger::keys;

use super::{Core, read_entry};

/// What a person does about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterAction {
    /// Try the write again.
    Retry,
    /// Let the side keep what it holds.
    Discard,
}

/// A side's stream, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedStream {
    /// The number that positions carry.
    pub stream: StreamId,
    /// What makes it this stream and no other.
    pub identity: Str,
    /// The place of its last event in the log.
    pub position: Option<Position>,
    /// The identity of the side's earlier stream, where this one is new in its place: what happened in between is unknown.
    pub replaces: Option<Str>,
}

impl Core {
    /// Puts a catalog in force, if it is not already; what the log's external ids begin with never changes once it is given.
    /// Returns the mappings that have got fields: their rows are to be read again, and until then nothing is written over what a
    /// side holds in those fields.
    pub fn configure(&mut self, catalog: &Catalog) -> Result<Vec<MappingId>> {
        let known = Arc::clone(&self.meta().catalog);
        let mut catalog = catalog.clone();
        if !known.external_id_prefix.is_empty() {
            catalog.external_id_prefix = known.external_id_prefix.clone();
        }
        if *known != catalog {
            self.push(Body::Notice(Notice::Configured { catalog: Box::new(catalog.clone()) }))?;
        }
        Ok(catalog.grown_since(&known).map(|(mapping, _)| mapping).collect())
    }

    /// The identity of the stream of a side that was opened last.
    pub fn known_stream(&self, side: Side) -> Option<Str> {
        self.meta().stream(side).map(|s| s.identity.clone())
    }

    /// Opens a side's stream by its identity: its number, the place of its last event in the log, and the side's earlier
    /// stream if this one is new.
    pub fn open_stream(&mut self, side: Side, identity: &str) -> Result<OpenedStream> {
        let known = self.meta().stream(side).cloned();
        if let Some(stream) = known.as_ref().filter(|s| s.identity == identity) {
            let position = self.meta().positions[side.index()].clone();
            return Ok(OpenedStream { stream: stream.id, identity: stream.identity.clone(), position, replaces: None });
        }
        let stream = StreamId(self.meta().streams.len() as u32);
        let identity = Str::new(identity);
        self.push(Body::Notice(Notice::StreamOpened { stream, side, identity: identity.clone() }))?;
        Ok(OpenedStream { stream, identity, position: None, replaces: known.map(|s| s.identity) })
    }

    /// Opens another stream in the place of a side's lost one, which may have the same identity.
    pub fn replace_stream(&mut self, side: Side, identity: &str) -> Result<OpenedStream> {
        let replaces = self.known_stream(side);
        let stream = StreamId(self.meta().streams.len() as u32);
        let identity = Str::new(identity);
        self.push(Body::Notice(Notice::StreamOpened { stream, side, identity: identity.clone() }))?;
        Ok(OpenedStream { stream, identity, position: None, replaces })
    }

    /// Puts a notice on record.
    pub fn notice(&mut self, notice: Notice) -> Result<()> {
        self.push(Body::Notice(notice)).map(|_| ())
    }

    /// Ends the parked conflict whose decision entry is `conflict` by a person's choice; a value of their own is canonical.
    pub fn resolve(&mut self, conflict: Offset, choice: &Choice, person: &str) -> Result<()> {
        let unknown = || {
            Error::new(
                Kind::Configuration,
                format!("conflict {conflict} is not open; `tidelock conflicts list` shows those that are"),
            )
        };
        let entry = read_entry(&*self.log, conflict).map_err(|_| unknown())?;
        let Body::Decision(parked) = entry.body else { return Err(unknown()) };
        let Subject::Field(field) = parked.subject else { return Err(unknown()) };
        let catalog = Arc::clone(&self.meta().catalog);
        let system_of_record = catalog.system_of_record;
        let mapping = catalog.mapping(parked.mapping).ok_or_else(unknown)?;
        let state = self.fold.record(&*self.log, parked.record)?.ok_or_else(unknown)?;
        if state.field(field).and_then(|r| r.parked.as_ref()).is_none_or(|p| p.decision != conflict) {
            return Err(unknown());
        }
        let decisions: Vec<Decision> =
            causality::resolve(state, mapping, parked.record, field, choice.clone(), person, system_of_record);
        for decision in decisions {
            self.push(Body::Decision(decision))?;
        }
        Ok(())
    }

    /// Does what a person wants about a dead letter.
    pub fn dead_letter(&mut self, ticket: Offset, action: DeadLetterAction, person: &str) -> Result<()> {
        let unknown = || {
            let advice = "`tidelock dead-letters list` shows those there are";
            Error::new(Kind::Configuration, format!("there is no dead letter {ticket}; {advice}"))
        };
        let value = self.fold.get(&*self.log, &keys::numbered(keys::DEAD_LETTER, ticket.0))?.ok_or_else(unknown)?;
        let record = RecordId(value.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b)));
        let side = *Side::BOTH.get(usize::from(value.get(8).copied().unwrap_or_default())).ok_or_else(unknown)?;
        let mapping = self.fold.record(&*self.log, record)?.ok_or_else(unknown)?.mapping;
        if !self.is_mapped(mapping) {
            let text = format!(
                "dead letter {ticket} is of a mapping that has been removed, so nothing is written for it any more"
            );
            return Err(Error::new(Kind::Configuration, text));
        }
        let by = Str::new(person);
        let result = match action {
            DeadLetterAction::Retry => WriteResult::Retried { by },
            DeadLetterAction::Discard => WriteResult::GivenUp { by },
        };
        self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result })).map(|_| ())
    }
}
