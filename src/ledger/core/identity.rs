//! Which record a row is, and what is done where the sides' names for one cross.

use std::sync::Arc;

use crate::causality::RecordState;
use crate::change::{
    Bind, Body, Change, ChangeOrigin, Dot, FieldId, FieldKind, MappingDef, Operation, RecordId, Side, Source, Str,
    Value,
};
use crate::error::Result;
use crate::flow::{Event, Row, RowOperation};
use crate::ledger::keys;

use super::{Answer, Core};

impl Core {
    /// The record that a row is: by primary key, then Salesforce id, then external id.
    pub(super) fn identify(
        &mut self,
        side: Side,
        row: &Row,
        committed_at: crate::clock::Micros,
        mapping: &MappingDef,
    ) -> Result<Option<RecordId>> {
        // A key that was changed is looked for under both names: its change may have been told before.
        for key in row.old_key.iter().chain(&row.key) {
            if let Some(record) = self.fold.lookup(&*self.log, &keys::by_key(mapping.id, key))? {
                // A key that is used again after a delete names another row.
                let reused = (row.operation == RowOperation::Insert
                    || (row.operation == RowOperation::Reread && side == Side::Postgres))
                    && self.is_free_for_another(side, record, row, mapping)?;
                if !reused {
                    return Ok(Some(record));
                }
            }
        }
        // A record that was deleted before its external id was told may have another name.
        let mut buried = None;
        if let Some(id) = &row.salesforce_id
            && let Some(record) = self.fold.lookup(&*self.log, &keys::by_salesforce_id(mapping.id, id))?
            && self.free(side, record, row)?
        {
            let state = self.fold.record(&*self.log, record)?;
            let told = |s: &RecordState, f| s.field(f).is_some_and(|r| !r.held(Side::Salesforce).dot.is_nobody());
            let nameless = |s: &RecordState| mapping.external_id.is_some_and(|f| !told(s, f));
            // As [`causality::observe`] has it: what was read because the stream could not tell is newer within a second.
            let outdated = |s: &RecordState| match row.operation {
                RowOperation::Backfill | RowOperation::Reread => committed_at <= s.told_at(side),
                RowOperation::Image | RowOperation::Missing => committed_at < s.told_at(side),
                _ => false,
            };
            if !state.is_some_and(|s| s.key.is_none() && !s.exists() && nameless(s) && !outdated(s)) {
                return Ok(Some(record));
            }
            buried = Some(record);
        }
        let Some(field) = mapping.external_id else { return Ok(buried) };
        let told = row.fields.binary_search_by_key(&field, |(f, _)| *f).ok().and_then(|n| row.fields.get(n));
        if let Some((_, value)) = told.filter(|(_, v)| !v.is_null()) {
            let key = keys::by_external_id(mapping.id, &value.to_string());
            if let Some(record) = self.fold.lookup(&*self.log, &key)?
                && self.free(side, record, row)?
            {
                return Ok(Some(record));
            }
        }
        Ok(buried)
    }

    /// Whether a row under the key of a record that is not there may be another one. While we are making the record anew, a row of
    /// ours is so only if it names another.
    fn is_free_for_another(&mut self, side: Side, record: RecordId, row: &Row, mapping: &MappingDef) -> Result<bool> {
        let by_id = match &row.salesforce_id {
            Some(id) => self.fold.lookup(&*self.log, &keys::by_salesforce_id(row.mapping, id))?,
            None => None,
        };
        let named = match by_id {
            None => self.holder(row, mapping)?,
            known => known,
        };
        let names_another = match named.filter(|named| *named != record) {
            // One that lives under another key is not what the row is.
            Some(another) => by_id.is_some() || self.free(side, another, row)?,
            None => false,
        };
        let a_users = row.operation == RowOperation::Insert && !row.own.is_ours();
        let state = self.fold.record(&*self.log, record)?;
        Ok(state
            .is_some_and(|s| !s.exists_at(Side::Postgres) && (names_another || a_users || s.in_flight(side).is_none())))
    }

    /// Whether an image is of a Salesforce record that was deleted since, and made anew under another id.
    pub(super) fn outdated(&mut self, side: Side, event: &Event, row: &Row) -> Result<bool> {
        let (Side::Salesforce, Some(id)) = (side, &row.salesforce_id) else { return Ok(false) };
        let key = keys::by_salesforce_id(row.mapping, id);
        let Some(record) = self.fold.lookup(&*self.log, &key)? else { return Ok(false) };
        let state = self.fold.record(&*self.log, record)?;
        // As [`causality::observe`] has it: what was read because the stream could not tell is newer within a second.
        let older = |told_at| match row.operation {
            RowOperation::Image => event.committed_at < told_at,
            _ => event.committed_at <= told_at,
        };
        Ok(state.is_some_and(|s| s.salesforce_id.as_ref() != Some(id) && older(s.told_at(side))))
    }

    /// A Salesforce record of which only part is known may turn out, by its external id, to be one that PostgreSQL has told of.
    pub(super) fn recognise(&mut self, side: Side, row: &Row, mapping: &MappingDef) -> Result<()> {
        let (Side::Salesforce, Some(id), Some(field)) = (side, &row.salesforce_id, mapping.external_id) else {
            return Ok(());
        };
        let told = row.fields.binary_search_by_key(&field, |(f, _)| *f).ok().and_then(|n| row.fields.get(n));
        let Some((_, value)) = told.filter(|(_, v)| !v.is_null()) else { return Ok(()) };
        let key = keys::by_external_id(mapping.id, &value.to_string());
        match self.fold.lookup(&*self.log, &key)? {
            Some(record) => self.absorb(record, id, false),
            None => Ok(()),
        }
    }

    /// Where `id` has been a record of its own, known in part only, and is now known to be `record`: what the stream told of it
    /// is told again of `record`, and the other one ends.
    ///
    /// With `written`, Salesforce has said so in answer to a write, and a record that was deleted since counts too.
    fn absorb(&mut self, record: RecordId, id: &Str, written: bool) -> Result<()> {
        let side = Side::Salesforce;
        let Some(state) = self.fold.record(&*self.log, record)? else { return Ok(()) };
        let (mapping, counts, mut vector) = (state.mapping, state.counts, state.seen(side));
        let unknown = !state.exists_at(side) && state.existence.held(side).dot.is_nobody();
        let known_fields: Vec<(FieldId, Value)> =
            state.fields.iter().map(|(f, r)| (*f, r.held(side).value.clone())).collect();
        let Some(part) = self.fold.lookup(&*self.log, &keys::by_salesforce_id(mapping, id))? else { return Ok(()) };
        let Some(position) = self.fold.meta.positions[side.index()].clone() else { return Ok(()) };
        let Some(other) = self.fold.record(&*self.log, part)? else { return Ok(()) };
        let lives = other.exists_at(side);
        if part == record || !unknown || other.key.is_some() || !(if lives { other.partial } else { written }) {
            return Ok(());
        }
        let source = Source {
            side,
            position,
            transaction: crate::change::Transaction::default(),
            committed_at: other.told_at(side),
            who: crate::change::Who::default(),
        };
        let mut fields = Vec::new();
        for (field, register) in &other.fields {
            let before = known_fields.iter().find(|(f, _)| f == field).map_or(Value::Null, |(_, v)| v.clone());
            let after = register.held(side).value.clone();
            if !register.held(side).dot.is_nobody() {
                fields.push(crate::change::FieldChange { field: *field, before, after });
            }
        }
        let (other_counts, mut other_vector) = (other.counts, other.seen(side));
        let ends = Dot { side, n: other_counts.get(side) + 1 };
        other_vector.include(ends);
        let begins = Dot { side, n: counts.get(side) + 1 };
        vector.include(begins);
        let change = |record, operation, dot, vector, fields, salesforce_id| Change {
            mapping,
            record,
            origin: ChangeOrigin::Captured,
            source: source.clone(),
            operation,
            key: None,
            salesforce_id,
            dot,
            vector,
            fields,
        };
        let end = change(part, Operation::Delete, ends, other_vector, Vec::new(), None);
        let begin = change(record, Operation::Update, begins, vector, fields, Some(id.clone()));
        let last = Dot { side, n: begins.n + 1 };
        vector.include(last);
        let gone = change(record, Operation::Delete, last, vector, Vec::new(), None);
        if lives {
            self.push(Body::Change(end))?;
        }
        self.push(Body::Change(begin))?;
        if lives {
            self.partial.push((mapping, id.clone()));
        } else {
            self.push(Body::Change(gone))?;
        }
        Ok(())
    }

    /// Whether a row of `side` may be this record: it is not another living row there.
    fn free(&mut self, side: Side, record: RecordId, row: &Row) -> Result<bool> {
        let Some(state) = self.fold.record(&*self.log, record)? else { return Ok(true) };
        Ok(!state.exists_at(side)
            || match side {
                Side::Postgres => state.key.is_none() || state.key == row.key,
                Side::Salesforce => state.salesforce_id.is_none() || state.salesforce_id == row.salesforce_id,
            })
    }

    /// Gives a record the id that an answer tells, unless another living record has it: that one is returned then.
    pub(super) fn bind_answer(&mut self, answer: &Answer) -> Result<Option<RecordId>> {
        let Some(id) = &answer.salesforce_id else { return Ok(None) };
        let Some(state) = self.fold.record(&*self.log, answer.record)? else { return Ok(None) };
        // A record that came back by itself while it was being created keeps its own id; the new one is another record.
        if state.salesforce_id.as_ref() == Some(id)
            || (state.salesforce_id.is_some() && state.exists_at(Side::Salesforce))
        {
            return Ok(None);
        }
        let mapping = state.mapping;
        if !self.is_mapped(mapping) {
            return Ok(None);
        }
        self.absorb(answer.record, id, true)?;
        if let Some(other) = self.fold.lookup(&*self.log, &keys::by_salesforce_id(mapping, id))? {
            let state = self.fold.record(&*self.log, other)?;
            let holds = |s: &RecordState| s.exists_at(Side::Salesforce) && s.salesforce_id.as_ref() == Some(id);
            if other != answer.record && state.is_some_and(holds) {
                return Ok(Some(other));
            }
        }
        self.push(Body::Bind(Bind { mapping, record: answer.record, key: None, salesforce_id: Some(id.clone()) }))?;
        Ok(None)
    }

    /// A record that Salesforce matched without an event to show for it: its id is told by nobody else.
    pub(super) fn tell_id(&mut self, record: RecordId) -> Result<()> {
        let Some(state) = self.fold.record(&*self.log, record)?.cloned() else { return Ok(()) };
        let catalog = Arc::clone(&self.meta().catalog);
        let Some(mapping) = catalog.mapping(state.mapping) else { return Ok(()) };
        let (Some(field), Some(id)) = (mapping.fields.iter().find(|f| f.kind == FieldKind::Id), &state.salesforce_id)
        else {
            return Ok(());
        };
        let after = Value::Text(id.clone());
        if state.held_value(Side::Salesforce, field.id) == &after {
            return Ok(());
        }
        let Some(position) = self.meta().positions[Side::Salesforce.index()].clone() else { return Ok(()) };
        let mut vector = state.seen(Side::Salesforce);
        let dot = Dot { side: Side::Salesforce, n: state.counts.salesforce + 1 };
        vector.include(dot);
        let before = state.held_value(Side::Salesforce, field.id).clone();
        let change = Change {
            mapping: mapping.id,
            record,
            origin: ChangeOrigin::Automation,
            source: Source {
                side: Side::Salesforce,
                position,
                transaction: crate::change::Transaction::default(),
                committed_at: state.last_commit[Side::Salesforce.index()],
                who: crate::change::Who::default(),
            },
            operation: Operation::Update,
            key: None,
            salesforce_id: None,
            dot,
            vector,
            fields: vec![crate::change::FieldChange { field: field.id, before, after }],
        };
        self.push(Body::Change(change)).map(|_| ())
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
