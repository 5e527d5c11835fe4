//! Finding entries, records, conflicts and dead letters.

use serde::Serialize;

use crate::causality::RecordState;
use crate::change::codec::{self, Reader};
use crate::change::{Body, Catalog, Entry, FieldKind, Key, Offset, RecordId, Side, Str, Subject, Ticket, Value};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::ledger::fold::Fold;
use crate::ledger::{Meta, core::read_entry, keys};
use crate::log::{ChangeLog, ReadLimit, offset_at_time};

use super::describe::{self, Described, ruling, shown, subject};

/// How a person names a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordRef {
    /// By the log's number.
    Record(RecordId),
    /// By mapping and primary key.
    Key(String, Key),
    /// By Salesforce id, in any mapping.
    SalesforceId(String),
}

/// Which entries are wanted. What is `None` does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// From this offset on.
    pub from: Option<Offset>,
    /// Recorded at this time or later.
    pub since: Option<Micros>,
    /// Recorded before this time.
    pub until: Option<Micros>,
    /// About this mapping.
    pub mapping: Option<String>,
    /// From or to this side.
    pub side: Option<Side>,
    /// Of this kind (`change`, `echo`, …).
    pub kind: Option<String>,
    /// Touching this field.
    pub field: Option<String>,
    /// Whose author contains this text.
    pub who: Option<String>,
}

impl Filter {
    fn matches(&self, said: &Described) -> bool {
        let same = |wanted: &Option<String>, have: &str| wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(have));
        same(&self.kind, said.kind)
            && same(&self.mapping, said.mapping.as_deref().unwrap_or_default())
            && self.side.is_none_or(|side| said.side == Some(side))
            && self.who.as_ref().is_none_or(|who| said.who.to_lowercase().contains(&who.to_lowercase()))
            && self.field.as_ref().is_none_or(|field| said.fields.iter().any(|f| f.field.eq_ignore_ascii_case(field)))
    }
}

/// A conflict, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Its name: the offset of its first decision.
    pub conflict: Offset,
    /// When it was met.
    pub at: String,
    /// The mapping's name.
    pub mapping: Str,
    /// The record.
    pub record: RecordId,
    /// The record's primary key, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The record's Salesforce id, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salesforce_id: Option<Str>,
    /// The field, or the record itself.
    pub field: Str,
    /// What kind of conflict, by PostgreSQL's names where they fit.
    pub conflict_kind: &'static str,
    /// Whether a person must still decide.
    pub open: bool,
    /// The value that stands.
    pub stands: String,
    /// Whose it is.
    pub stands_from: String,
    /// The value that does not, or might.
    pub lost: String,
    /// Whose it is.
    pub lost_from: String,
    /// Who or what decided.
    pub decided_by: String,
}

/// A write that a side refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its name: the offset of its ticket.
    pub dead_letter: Offset,
    /// When the write was planned.
    pub at: String,
    /// The mapping's name.
    pub mapping: Str,
    /// The record.
    pub record: RecordId,
    /// The record's primary key, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The record's Salesforce id, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salesforce_id: Option<Str>,
    /// The side that refused it.
    pub side: Side,
    /// The side's error code.
    pub code: Str,
    /// The side's message.
    pub message: Str,
    /// What was to be written.
    pub write: Described,
}

/// Reads a log with the names of its own catalog.
pub struct Lens<'l> {
    log: &'l dyn ChangeLog,
    meta: Meta,
}

impl<'l> Lens<'l> {
    /// A lens over a log as it stands.
    pub fn new(log: &'l dyn ChangeLog) -> Result<Self> {
        Ok(Self { log, meta: Fold::open(log)?.meta })
    }

    /// The catalog in force at the end of the log.
    pub fn catalog(&self) -> &Catalog {
        &self.meta.catalog
    }

    /// Everything known of the link.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    fn described(&self, offset: Offset, bytes: &[u8]) -> Result<Described> {
        Ok(describe::describe(&self.meta.catalog, offset, &decode(offset, bytes)?))
    }

    /// Calls `each` for every entry that the filter lets through, in order, until it returns false. Returns the offset after
    /// the last entry looked at.
    pub fn entries(&self, filter: &Filter, mut each: impl FnMut(Described) -> bool) -> Result<Offset> {
        let mut from = filter.from.unwrap_or_default().max(self.log.head());
        if let Some(since) = filter.since {
            from = from.max(offset_at_time(self.log, since)?);
        }
        let until = match filter.until {
            Some(until) => offset_at_time(self.log, until)?,
            None => self.log.tail(),
        };
        while from < until {
            let page = self.log.read(from, ReadLimit::default())?;
            if page.is_empty() {
                break;
            }
            for (offset, bytes) in page.iter() {
                if offset >= until {
                    return Ok(until);
                }
                from = offset.next();
                let said = self.described(offset, bytes)?;
                if filter.matches(&said) && !each(said) {
                    return Ok(from);
                }
            }
        }
        Ok(from)
    }

    /// Calls `each` for every entry of the side's transaction with this id (PostgreSQL's transaction number, Salesforce's
    /// transaction key) that the filter lets through, until it returns false.
    pub fn transaction(&self, id: &str, filter: &Filter, mut each: impl FnMut(Described) -> bool) -> Result<()> {
        for side in Side::BOTH {
            for offset in self.indexed(&keys::transaction(side, id))? {
                if !self.follow(side, id, offset, filter, &mut each)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn indexed(&self, prefix: &[u8]) -> Result<Vec<Offset>> {
        let (mut offsets, mut after) = (Vec::new(), None::<Vec<u8>>);
        loop {
            let page = self.log.scan_transactions(prefix, after.as_deref(), 1_000)?;
            offsets.extend(page.iter().map(|(_, offset)| *offset));
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => break,
            }
        }
        offsets.sort_unstable();
        Ok(offsets)
    }

    /// The index leads to each of Salesforce's entries, but only to the first of a transaction of PostgreSQL; the rest follows,
    /// up to the next transaction.
    fn follow(
        &self,
        side: Side,
        id: &str,
        first: Offset,
        filter: &Filter,
        each: &mut impl FnMut(Described) -> bool,
    ) -> Result<bool> {
        let mut from = first;
        loop {
            let limit = if side == Side::Salesforce { ReadLimit::ONE } else { ReadLimit::default() };
            let page = self.log.read(from, limit)?;
            for (offset, bytes) in page.iter() {
                from = offset.next();
                let said = self.described(offset, bytes)?;
                if said.side != Some(side) || said.transaction.is_none() {
                    continue;
                }
                if said.transaction.as_deref() != Some(id) {
                    return Ok(true);
                }
                if filter.matches(&said) && !each(said) {
                    return Ok(false);
                }
            }
            if page.is_empty() || side == Side::Salesforce {
                return Ok(true);
            }
        }
    }

    /// The last `count` entries that the filter lets through.
    pub fn last(&self, filter: &Filter, count: usize) -> Result<Vec<Described>> {
        let mut kept = std::collections::VecDeque::with_capacity(count.min(1_000));
        let narrow = filter.kind.is_none()
            && filter.side.is_none()
            && filter.mapping.is_none()
            && filter.field.is_none()
            && filter.who.is_none();
        let mut filter = filter.clone();
        if narrow && filter.from.is_none() && filter.since.is_none() {
            filter.from = Some(Offset(self.log.tail().0.saturating_sub(count as u64)));
        }
        self.entries(&filter, |said| {
            if kept.len() == count {
                kept.pop_front();
            }
            kept.push_back(said);
            true
        })?;
        Ok(kept.into())
    }

    /// The record that a person names.
    pub fn record(&self, name: &RecordRef) -> Result<RecordId> {
        let found = match name {
            RecordRef::Record(record) => self.log.state(&keys::record(*record))?.map(|_| *record),
            RecordRef::Key(mapping, key) => {
                let mapping = self.meta.catalog.mapping_named(mapping).ok_or_else(|| {
                    let known: Vec<&str> = self.meta.catalog.mappings.iter().map(|m| m.name.as_str()).collect();
                    Error::new(
                        Kind::Configuration,
                        format!("there is no mapping `{mapping}`; there are: {}", known.join(", ")),
                    )
                })?;
                self.lookup(&keys::by_key(mapping.id, key))?
            }
            RecordRef::SalesforceId(id) => {
                let Value::Text(id) = crate::mapping::normalise(&FieldKind::Id, Value::text(id)) else {
                    return Err(Self::unknown());
                };
                let mut found = None;
                for mapping in &self.meta.catalog.mappings {
                    found = found.or(self.lookup(&keys::by_salesforce_id(mapping.id, &id))?);
                }
                found
            }
        };
        found.ok_or_else(Self::unknown)
    }

    fn unknown() -> Error {
        let advice = "name it as `mapping/key`, by its Salesforce id, or by its record number";
        Error::new(Kind::Configuration, format!("the log knows no such record; {advice}"))
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<RecordId>> {
        Ok(self.log.state(key)?.map(|v| RecordId(keys::number(&v))))
    }

    /// A record's state.
    pub fn state(&self, record: RecordId) -> Result<Option<RecordState>> {
        let Some(bytes) = self.log.state(&keys::record(record))? else { return Ok(None) };
        RecordState::decode(&bytes).map(Some).map_err(|e| {
            Error::new(
                Kind::Corrupt,
                format!("the state of record {} cannot be read; run `tidelock log rebuild`", record.0),
            )
            .caused_by(e)
        })
    }

    /// Every entry about a record, oldest first, at most `limit`.
    pub fn history(&self, record: RecordId, limit: usize) -> Result<Vec<Described>> {
        let offsets = self.log.record_offsets(record, Offset(0), limit)?;
        offsets
            .into_iter()
            .map(|offset| Ok(describe::describe(&self.meta.catalog, offset, &read_entry(self.log, offset)?)))
            .collect()
    }

    fn identity(&self, record: RecordId) -> Result<(Option<String>, Option<Str>)> {
        let state = self.state(record)?;
        Ok(state.map_or((None, None), |s| (s.key.map(|k| k.to_string()), s.salesforce_id)))
    }

    fn scan(&self, kind: u8, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.log.scan_state(&[kind], after.as_deref(), 1_000)?;
            for (key, value) in &page {
                each(keys::number(key), value)?;
            }
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Conflicts, oldest first: the open ones only, or all. Those of the initial merge are left out unless asked for.
    pub fn conflicts(&self, all: bool, initial_merge: bool) -> Result<Vec<Conflict>> {
        let mut found = Vec::new();
        self.scan(keys::CONFLICT, |offset, value| {
            let open = value.last() == Some(&1);
            if all || open {
                found.extend(self.conflict(Offset(offset), open)?);
            }
            Ok(())
        })?;
        found.retain(|c| initial_merge || c.conflict_kind != "initial_merge" || c.open);
        Ok(found)
    }

    /// One conflict by its name.
    fn conflict(&self, offset: Offset, open: bool) -> Result<Option<Conflict>> {
        let entry = read_entry(self.log, offset)?;
        let Body::Decision(first) = &entry.body else { return Ok(None) };
        let mut last = first.clone();
        if !open && matches!(first.ruling, crate::change::Ruling::Parked) {
            for later in self.log.record_offsets(first.record, offset.next(), 10_000)? {
                if let Body::Decision(decision) = read_entry(self.log, later)?.body
                    && decision.about == offset
                {
                    last = decision;
                    break;
                }
            }
        }
        // Both values may have been edited since the first decision: what can be chosen is what is there now.
        if open
            && let Subject::Field(field) = first.subject
            && let Some(state) = self.state(first.record)?
            && let Some(register) = state.field(field)
            && let Some(parked) = register.parked.as_ref().filter(|p| p.decision == offset)
        {
            (last.winner, last.winner_dots) = (register.current.clone(), register.dots.to_vec());
            (last.loser, last.loser_dots) = (parked.value.clone(), parked.dots.to_vec());
        }
        let (key, salesforce_id) = self.identity(first.record)?;
        let dots = |dots: &[crate::change::Dot]| dots.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        Ok(Some(Conflict {
            conflict: offset,
            at: Value::Timestamp(entry.recorded_at).to_string(),
            mapping: self.meta.catalog.mapping(first.mapping).map_or_else(Str::default, |m| Str::new(&m.name)),
            record: first.record,
            key,
            salesforce_id,
            field: subject(&self.meta.catalog, first),
            conflict_kind: first.conflict.name(),
            open,
            stands: shown(&last, &last.winner),
            stands_from: dots(&last.winner_dots),
            lost: shown(&last, &last.loser),
            lost_from: dots(&last.loser_dots),
            decided_by: ruling(&last.ruling),
        }))
    }

    /// The writes that are dead letters, each with the refusal's code.
    pub fn refused_writes(&self) -> Result<Vec<(Offset, Ticket, Str)>> {
        let mut found = Vec::new();
        self.scan(keys::DEAD_LETTER, |offset, value| {
            let code = Reader::new(value.get(9..).unwrap_or_default()).text().unwrap_or_default();
            if let Body::Ticket(ticket) = read_entry(self.log, Offset(offset))?.body {
                found.push((Offset(offset), ticket, code));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Dead letters, oldest first.
    pub fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let mut found = Vec::new();
        self.scan(keys::DEAD_LETTER, |offset, value| {
            let ticket = Offset(offset);
            let record = RecordId(value.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b)));
            let side = value.get(8).and_then(|s| Side::BOTH.get(usize::from(*s))).copied().unwrap_or(Side::Postgres);
            let mut reader = Reader::new(value.get(9..).unwrap_or_default());
            let (code, message) = (reader.text().unwrap_or_default(), reader.text().unwrap_or_default());
            let entry = read_entry(self.log, ticket)?;
            let write = describe::describe(&self.meta.catalog, ticket, &entry);
            let (key, salesforce_id) = self.identity(record)?;
            let at = Value::Timestamp(entry.recorded_at).to_string();
            let mapping = write.mapping.clone().unwrap_or_default();
            found.push(DeadLetter {
                dead_letter: ticket,
                at,
                mapping,
                record,
                key,
                salesforce_id,
                side,
                code,
                message,
                write,
            });
            Ok(())
        })?;
        Ok(found)
    }
}

fn decode(offset: Offset, bytes: &[u8]) -> Result<Entry> {
    codec::decode(bytes).map_err(|e| {
        Error::new(Kind::Corrupt, format!("entry {offset} cannot be read; run `tidelock log verify`")).caused_by(e)
    })
}
