//! What of a row comes from before its side went back.

use crate::causality::RecordState;
use crate::change::{FieldChange, FieldId, Operation, Side, Value};

use super::past::Past;

/// What was read of a record at its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// Its row, with the value of each mapped field, by ascending id.
    Row(&'a [(FieldId, Value)]),
    /// No row has its key.
    Missing,
    /// A row with its key was made just now.
    Inserted,
    /// Its row was deleted just now.
    Deleted,
}

/// What a side's going back explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewound {
    /// Nothing: whatever differs was edited since.
    Nothing,
    /// The side holds this again, or held it when whoever edited the row since did so.
    To(Operation, Vec<FieldChange>),
    /// The record is not there any more, and the row under its key is another one.
    AnotherRow,
}

/// Compares what was read with what the log believes the side to hold, and with what it held when it went back and until it
/// was lost. `external_id` is the field by which a row of the same key is known to be the same.
pub fn rewind(state: &RecordState, side: Side, told: Told<'_>, past: &Past, external_id: Option<FieldId>) -> Rewound {
    let change = |field: FieldId, after: &Value| {
        let before = state.held_value(side, field).clone();
        (before != *after).then(|| FieldChange { field, before, after: after.clone() })
    };
    match (told, state.exists_at(side)) {
        (Told::Missing, true) if past.lacked() => Rewound::To(Operation::Delete, Vec::new()),
        (Told::Inserted, true) => Rewound::AnotherRow,
        (Told::Missing | Told::Deleted, true) => {
            // Somebody deleted it who had not seen what was lost.
            let fields = state.fields.iter().filter_map(|(field, _)| change(*field, past.value(*field)));
            update(fields.collect())
        }
        (Told::Row(row), true) => {
            let held = |(field, value): &(FieldId, Value)| past.held(*field, value);
            let same = |(field, value): &(FieldId, Value)| {
                Some(*field) == external_id && !value.is_null() && state.held_value(side, *field) == value
            };
            // What is known by its updates alone was there before the log heard of it.
            let was_there = past.was_there() || state.partial;
            if !was_there && !row.iter().all(held) && !row.iter().any(same) {
                return Rewound::AnotherRow;
            }
            update(
                row.iter()
                    .filter_map(|(field, value)| change(*field, base(state, side, past, *field, value)))
                    .collect(),
            )
        }
        (Told::Row(row), false) if past.existed() => {
            let fields = row.iter().filter_map(|(field, value)| {
                change(*field, if past.held(*field, value) { value } else { past.value(*field) })
            });
            Rewound::To(Operation::Insert, fields.collect())
        }
        (_, false) => Rewound::Nothing,
    }
}

/// What the side held in a field before whoever edited it since, if anybody did.
fn base<'a>(state: &'a RecordState, side: Side, past: &'a Past, field: FieldId, told: &'a Value) -> &'a Value {
    if state.held_value(side, field) == told || past.held(field, told) { told } else { past.value(field) }
}

fn update(fields: Vec<FieldChange>) -> Rewound {
    if fields.is_empty() { Rewound::Nothing } else { Rewound::To(Operation::Update, fields) }
}

#[cfg(test)]
#[path = "rewind_tests.rs"]
mod tests;
