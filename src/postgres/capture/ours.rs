//! The part of a transaction that is ours, as our own messages in it say. Messages of another link belong to a user as far as
//! this link goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::{Key, MappingId, Offset, Str};
use crate::flow::{Item, Own};

/// The messages around our own writes.
#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Marker {
    Open {
        link: String,
        /// The first and the last of the tickets that the transaction is about.
        tickets: Option<(u64, u64)>,
    },
    /// From here on, and until the next such message, the updates of these rows are steps on the way to others that follow.
    Aside { link: String, rows: Vec<(u16, Vec<Str>)> },
    Close {
        link: String,
        applied: Vec<u64>,
        skipped: Vec<u64>,
        #[serde(default)]
        refused: Vec<(u64, Str, Str)>,
    },
}

/// Where in a transaction its changes are ours.
#[derive(Debug, Clone, Default)]
pub(super) struct Ours {
    own: Own,
    aside: BTreeMap<MappingId, BTreeSet<Key>>,
}

impl Ours {
    /// What a change at this place is marked as.
    pub(super) fn own(&self) -> Own {
        self.own
    }

    /// Whether an update of this row is a step in between, which nobody is told of.
    pub(super) fn is_aside(&self, mapping: MappingId, key: &Key) -> bool {
        self.aside.get(&mapping).is_some_and(|keys| keys.contains(key))
    }

    /// Takes a message in. The one that closes our part is an item: what was done in it.
    pub(super) fn take(&mut self, link: &str, content: &[u8]) -> Option<Item> {
        match serde_json::from_slice(content) {
            Ok(Marker::Open { link: of, tickets }) if of == link => {
                self.own = tickets.map_or(Own::Marked, |(first, last)| Own::Tickets(Offset(first), Offset(last)));
            }
            Ok(Marker::Aside { link: of, rows }) if of == link && self.own.is_ours() => {
                let keys = |(mapping, keys): (u16, Vec<Str>)| (MappingId(mapping), keys.into_iter().map(Key).collect());
                self.aside = rows.into_iter().map(keys).collect();
            }
            Ok(Marker::Close { link: of, applied, skipped, refused }) if of == link && self.own.is_ours() => {
                *self = Self::default();
                let offsets = |list: Vec<u64>| list.into_iter().map(Offset).collect();
                let refused =
                    refused.into_iter().map(|(ticket, code, message)| (Offset(ticket), code, message)).collect();
                return Some(Item::Applied { applied: offsets(applied), skipped: offsets(skipped), refused });
            }
            Ok(_) => {}
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                tracing::warn!(line, column, "a message with our prefix is not ours; passed over");
            }
        }
        None
    }
}
