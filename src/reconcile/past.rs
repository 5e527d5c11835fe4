//! What a side has held of a record, by the log's entries about it.

use std::collections::BTreeMap;

use crate::change::{
    Body, FieldId, Lsn, Offset, Operation, Position, Side, Source, StreamId, Ticket, Value, WriteKind,
};

/// What a side held of a record at a place of its stream, and since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    then: Holding,
    existed: bool,
    lacked: bool,
    values: BTreeMap<FieldId, Vec<Value>>,
}

/// What a side holds of a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Holding {
    exists: bool,
    fields: BTreeMap<FieldId, Value>,
}

impl Past {
    /// The past of a record at `side` from the place `since` on, by all the entries about it, in order. `None` where the side
    /// has told nothing of it after that place. What streams after `lost` have told is no past: it holds now.
    pub fn of<'e>(
        side: Side,
        since: Lsn,
        lost: Option<StreamId>,
        entries: impl IntoIterator<Item = (Offset, &'e Body)>,
    ) -> Option<Self> {
        let mut now = Holding::default();
        let mut tickets: BTreeMap<Offset, &Ticket> = BTreeMap::new();
        let mut past: Option<Self> = None;
        for (offset, body) in entries {
            let source = match body {
                Body::Ticket(ticket) if ticket.side == side => {
                    tickets.insert(offset, ticket);
                    continue;
                }
                Body::Change(change) => &change.source,
                Body::Echo(echo) => &echo.source,
                _ => continue,
            };
            if source.side != side {
                continue;
            }
            let known = lost.is_some_and(|lost| source.position.stream() > lost);
            if !known && is_after(source, since) && past.is_none() {
                past = Some(Self::from(now.clone()));
            }
            match body {
                Body::Change(change) => now.change(change.operation, change.fields.iter().map(|f| (f.field, &f.after))),
                Body::Echo(echo) => {
                    if let Some(ticket) = tickets.get(&echo.ticket) {
                        now.land(ticket);
                    }
                }
                _ => {}
            }
            match &mut past {
                Some(past) if known => past.settle(&now, body),
                Some(past) => past.note(&now),
                None => {}
            }
        }
        past
    }

    fn from(then: Holding) -> Self {
        let mut past = Self { then: then.clone(), ..Self::default() };
        past.note(&then);
        past
    }

    /// What the side has told since it went back is not in doubt.
    fn settle(&mut self, now: &Holding, body: &Body) {
        self.then.exists = now.exists;
        (self.existed, self.lacked) = (now.exists, !now.exists);
        let told: Vec<FieldId> = match body {
            Body::Change(change) => change.fields.iter().map(|f| f.field).collect(),
            _ => now.fields.keys().copied().collect(),
        };
        for field in told {
            let value = now.fields.get(&field).cloned().unwrap_or(Value::Null);
            self.values.insert(field, vec![value.clone()]);
            self.then.fields.insert(field, value);
        }
    }

    fn note(&mut self, now: &Holding) {
        self.existed |= now.exists;
        self.lacked |= !now.exists;
        for (field, value) in &now.fields {
            let values = self.values.entry(*field).or_default();
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
    }

    /// What the side held in a field at that place.
    pub(super) fn value(&self, field: FieldId) -> &Value {
        self.then.fields.get(&field).unwrap_or(&Value::Null)
    }

    /// Whether the record was there at that place.
    pub(super) fn was_there(&self) -> bool {
        self.then.exists
    }

    /// Whether the record has been there at some time since.
    pub(super) fn existed(&self) -> bool {
        self.existed
    }

    /// Whether the record has not been there at some time since.
    pub(super) fn lacked(&self) -> bool {
        self.lacked
    }

    /// Whether the side held a value at some time since.
    pub(super) fn held(&self, field: FieldId, value: &Value) -> bool {
        self.value(field) == value || self.values.get(&field).is_some_and(|values| values.contains(value))
    }
}

impl Holding {
    fn change<'v>(&mut self, operation: Operation, fields: impl Iterator<Item = (FieldId, &'v Value)>) {
        self.exists = operation != Operation::Delete;
        self.fields.extend(fields.map(|(field, value)| (field, value.clone())));
    }

    fn land(&mut self, ticket: &Ticket) {
        match ticket.write {
            WriteKind::Create if !self.exists => {
                self.exists = true;
                self.fields.clear();
            }
            WriteKind::Create | WriteKind::Update => {}
            WriteKind::Delete => self.exists = false,
        }
        self.fields.extend(ticket.values.iter().map(|v| (v.field, v.value.clone())));
    }
}

fn is_after(source: &Source, since: Lsn) -> bool {
    matches!(source.position, Position::Postgres { commit_lsn, .. } if commit_lsn > since)
}
