//! The vocabulary: what a change is, and how it is written down.
//!
//! Pure data and pure functions. Nothing here reads a clock, a file or a socket, and nothing here knows PostgreSQL or
//! Salesforce beyond the names of the two sides. Everything else in the crate is built on these words.

pub mod catalog;
pub mod causal;
pub mod codec;
pub mod entry;
#[cfg(test)]
pub(crate) mod golden;
pub mod position;
pub mod side;
pub mod value;

pub use catalog::{
    Catalog, DeletePolicy, FieldDef, FieldKind, ForeignEdit, InitialMerge, MappingDef, Policy, TruncatePolicy,
};
pub use causal::{Dot, Vector};
pub use entry::{
    Bind, Body, Change, ChangeOrigin, ConflictKind, Decision, Echo, Entry, FieldChange, Notice, Operation, Outcome,
    Ruling, Source, Subject, Ticket, TicketValue, Transaction, Who, WriteKind, WriteResult,
};
pub use position::{Lsn, Position, StreamId};
pub use side::Side;
pub use value::{Str, Value};

/// The place of an entry in the log's one total order, from 0, without holes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Offset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One logical row of a mapping, named by the log. Never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct RecordId(pub u64);

/// A mapping, named by the log's catalog. Never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct MappingId(pub u16);

/// A field of a mapping, named by the log's catalog. Never reused within its mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct FieldId(pub u16);

/// A row's primary key as canonical text: the key columns' text in key order, joined by U+001F.
///
/// U+001E and U+001F inside a part are escaped by a preceding U+001E.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Key(pub Str);

const SEPARATOR: char = '\u{1f}';
const ESCAPE: char = '\u{1e}';

impl Key {
    /// The key of the given column texts, in key order.
    pub fn from_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut text = smol_str::SmolStrBuilder::new();
        for (n, part) in parts.into_iter().enumerate() {
            if n > 0 {
                text.push(SEPARATOR);
            }
            if part.contains([SEPARATOR, ESCAPE]) {
                for c in part.chars() {
                    if c == SEPARATOR || c == ESCAPE {
                        text.push(ESCAPE);
                    }
                    text.push(c);
                }
            } else {
                text.push_str(part);
            }
        }
        Self(text.finish())
    }

    /// The column texts, in key order.
    pub fn parts(&self) -> Vec<Str> {
        if !self.0.contains([SEPARATOR, ESCAPE]) {
            return vec![self.0.clone()];
        }
        let mut parts = vec![String::new()];
        let mut escaped = false;
        for c in self.0.chars() {
            if !escaped && c == ESCAPE {
                escaped = true;
                continue;
            }
            if !escaped && c == SEPARATOR {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(c);
            }
            escaped = false;
        }
        parts.into_iter().map(Str::from).collect()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, part) in self.parts().iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            f.write_str(part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_parts_whatever_they_contain() {
        for parts in
            [vec!["1"], vec!["a", "b"], vec!["", ""], vec!["x\u{1f}y", "\u{1e}"], vec!["\u{1e}\u{1f}\u{1e}", "z", ""]]
        {
            assert_eq!(Key::from_parts(parts.iter().copied()).parts(), parts);
        }
    }
}
