//! A TRUNCATE among captured events. It is offered alone, when everything before it is durable, and as often as the log wants it for
//! the rows that are gone.

use crate::error::{Error, Kind};
use crate::flow::{Batch, Event, Item};

fn is_truncate(event: &Event) -> bool {
    matches!(event.item, Item::Truncate { .. })
}

/// Whether there is one in the batch.
pub(super) fn truncates(batch: &Batch) -> bool {
    batch.events.iter().any(is_truncate)
}

/// The parts of a batch in order, with each TRUNCATE a part of its own.
pub(super) fn apart(batch: Batch) -> Vec<Batch> {
    let Batch { side, events } = batch;
    let mut parts: Vec<Batch> = Vec::new();
    for event in events {
        let follows = |part: &&mut Batch| !is_truncate(&event) && !part.events.last().is_some_and(is_truncate);
        match parts.last_mut().filter(follows) {
            Some(part) => part.events.push(event),
            None => parts.push(Batch { side, events: vec![event] }),
        }
    }
    parts
}

/// A TRUNCATE that the mapping's policy does not let through.
pub(super) fn refused(table: &str) -> Error {
    let message = format!(
        "the table {table} was truncated, past the trigger that refuses it, and its mapping says `truncate = \"stop\"`: \
         capture stops before the statement, and nothing is lost. Write `truncate = \"propagate\"` in the mapping \
         to delete each record in Salesforce too, or `truncate = \"ignore\"` to keep them and write their rows \
         again, and start the link"
    );
    Error::new(Kind::Configuration, message)
}
