//! A table that was emptied by one statement.
//!
//! The statement names no rows, but the log knows them: each is told as deleted, at the place before the event's own, a page
//! for each time that the event is offered. The log's place reaches the event only with the last page, so that whatever stops
//! in between, the rest follows when the event comes again.

use std::sync::Arc;

use super::Core;
use super::intake::Placed;
use crate::causality::observe::Event as Observed;
use crate::causality::{RecordState, Seen};
use crate::change::{
    Body, ChangeOrigin, ConflictKind, Decision, Dot, Key, MappingDef, MappingId, Operation, Position, RecordId, Ruling,
    Side, Str, Subject, TruncatePolicy, Value,
};
use crate::error::{Error, Kind, Result};
use crate::flow::{Event, Own, Row, RowOperation};
use crate::ledger::fold::delivered;
use crate::ledger::keys::{self, StateKey};

/// Rows whose end is told at a time.
const PAGE: usize = 500;
/// Under whose name the decisions of `truncate = "ignore"` are.
const BY: &str = "truncate = \"ignore\"";

/// A statement of which not all rows are told yet.
#[derive(Debug)]
pub(super) struct Truncating {
    position: Position,
    /// The rows up to this key of the index are done.
    after: StateKey,
    rows: u64,
}

impl Core {
    /// Whether the last TRUNCATE has rows left, and is to be offered again.
    pub fn is_truncating(&self) -> bool {
        self.truncating.is_some()
    }

    /// Tells the next page of a TRUNCATE's rows.
    pub(super) fn truncate(&mut self, side: Side, event: &Event, mapping: MappingId) -> Result<()> {
        let begun = self.truncating.take().filter(|begun| begun.position == event.position);
        if self.meta().positions[side.index()].as_ref().is_some_and(|place| delivered(place, &event.position)) {
            self.counts.duplicates[side.index()] += 1;
            return Ok(());
        }
        let catalog = Arc::clone(&self.meta().catalog);
        let Some(mapping) = catalog.mapping(mapping) else {
            return Err(Error::new(
                Kind::Internal,
                format!("a TRUNCATE names mapping {}, which is not there", mapping.0),
            ));
        };
        let (after, mut rows) = begun.map_or((None, 0), |begun| (Some(begun.after), begun.rows));
        let prefix = keys::by_key(mapping.id, &Key::default());
        let page = self.log.scan_state(&prefix, after.as_deref(), PAGE)?;
        let records: Vec<RecordId> = page.iter().map(|(_, record)| RecordId(keys::number(record))).collect();
        self.fold.preload(&*self.log, &records)?;
        let told = Event { position: before(&event.position), ..event.clone() };
        for ((name, _), record) in page.iter().zip(&records) {
            let key = Key(Str::new(String::from_utf8_lossy(name.get(prefix.len()..).unwrap_or_default())));
            rows += u64::from(self.truncated_row(side, &told, mapping, *record, key)?);
        }
        if let Some((last, _)) = page.into_iter().next_back().filter(|_| records.len() == PAGE) {
            let after = StateKey::from_slice(&last);
            self.truncating = Some(Truncating { position: event.position.clone(), after, rows });
            return Ok(());
        }
        let (table, policy) = (format!("{}.{}", mapping.schema, mapping.table), mapping.truncate);
        tracing::warn!(table, rows, ?policy, "a mapped table was truncated; each record's history has it");
        Ok(())
    }

    /// Tells that a row is gone, if the side had it; returns whether.
    fn truncated_row(
        &mut self,
        side: Side,
        event: &Event,
        mapping: &MappingDef,
        record: RecordId,
        key: Key,
    ) -> Result<bool> {
        let Some(state) = self.fold.record(&*self.log, record)? else { return Ok(false) };
        if !state.exists_at(side) || state.key.as_ref() != Some(&key) {
            return Ok(false);
        }
        let stood = (state.existence.current.clone(), state.existence.dots.to_vec());
        let gone = Dot { side, n: state.counts.get(side) + 1 };
        let row = Row {
            mapping: mapping.id,
            operation: RowOperation::Delete,
            key: Some(key),
            old_key: None,
            salesforce_id: None,
            fields: Vec::new(),
            own: Own::No,
        };
        let observed = Observed {
            side,
            operation: row.operation,
            fields: &row.fields,
            own: row.own,
            committed_at: event.committed_at,
            automation: false,
        };
        let Seen::Change(operation, fields) = self.observe(record, mapping, &observed)? else { return Ok(false) };
        debug_assert_eq!(operation, Operation::Delete);
        self.change(&Placed { side, event, row: &row, mapping, record }, operation, fields, ChangeOrigin::Captured)?;
        let stands = self.fold.record(&*self.log, record)?.is_some_and(RecordState::exists);
        if mapping.truncate == TruncatePolicy::Ignore && !stands && stood.0 == Value::Bool(true) {
            let decision = Decision {
                mapping: mapping.id,
                record,
                subject: Subject::Existence,
                conflict: ConflictKind::DeleteOriginDiffers,
                about: self.next,
                ruling: Ruling::Person { name: Str::new_static(BY) },
                winner: stood.0,
                winner_dots: stood.1,
                loser: Value::Bool(false),
                loser_dots: vec![gone],
            };
            self.push(Body::Decision(decision))?;
        }
        Ok(true)
    }
}

/// The place before one that is not the first of its transaction.
fn before(position: &Position) -> Position {
    match position {
        Position::Postgres { stream, commit_lsn, index } => {
            Position::Postgres { stream: *stream, commit_lsn: *commit_lsn, index: index.saturating_sub(1) }
        }
        other @ Position::Salesforce { .. } => other.clone(),
    }
}
