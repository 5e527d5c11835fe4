//! Where things are in the state store: one byte of kind, then big-endian numbers and texts, so that scans are in order.

use smallvec::SmallVec;

use crate::change::{Key, MappingId, Offset, RecordId, Side};

/// A key of the state; most are short enough to need no allocation.
pub type StateKey = SmallVec<[u8; 40]>;

/// Record state by record.
pub const RECORD: u8 = b'r';
/// Record by mapping and primary key.
pub const BY_KEY: u8 = b'k';
/// Record by mapping and Salesforce id.
pub const BY_SALESFORCE_ID: u8 = b's';
/// Record by mapping and external id.
pub const BY_EXTERNAL_ID: u8 = b'e';
/// Conflict by the offset of its decision.
pub const CONFLICT: u8 = b'c';
/// Conflict that waits for a person, by the offset of its decision: a few, where conflicts gather for ever.
pub const OPEN_CONFLICT: u8 = b'o';
/// Dead letter by the offset of its ticket.
pub const DEAD_LETTER: u8 = b'd';
/// Open ticket by side and offset.
pub const TICKET: u8 = b't';
/// Records of which only part is known.
pub const PARTIAL: u8 = b'u';
/// The rest: [`super::meta`].
pub const META: u8 = b'm';

/// The key of a record's state.
pub fn record(record: RecordId) -> StateKey {
    numbered(RECORD, record.0)
}

/// A key of a kind and a number.
pub fn numbered(kind: u8, number: u64) -> StateKey {
    let mut key = StateKey::new();
    key.push(kind);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The number of a [`numbered`] key.
pub fn number(key: &[u8]) -> u64 {
    key.last_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
}

fn identity(kind: u8, mapping: MappingId, text: &str) -> StateKey {
    let mut key = StateKey::with_capacity(3 + text.len());
    key.push(kind);
    key.extend_from_slice(&mapping.0.to_be_bytes());
    key.extend_from_slice(text.as_bytes());
    key
}

/// The key that finds a record by its primary key.
pub fn by_key(mapping: MappingId, key: &Key) -> StateKey {
    identity(BY_KEY, mapping, &key.0)
}

/// The key that finds a record by its Salesforce id.
pub fn by_salesforce_id(mapping: MappingId, id: &str) -> StateKey {
    identity(BY_SALESFORCE_ID, mapping, id)
}

/// The key that finds a record by its external id. Salesforce compares external ids without case.
pub fn by_external_id(mapping: MappingId, id: &str) -> StateKey {
    identity(BY_EXTERNAL_ID, mapping, &id.to_lowercase())
}

/// The key of an open ticket.
pub fn ticket(side: Side, ticket: Offset) -> StateKey {
    let mut key = StateKey::new();
    key.push(TICKET);
    key.push(side as u8);
    key.extend_from_slice(&ticket.0.to_be_bytes());
    key
}

/// The prefix of a side's transaction in the transaction index.
pub fn transaction(side: Side, id: &str) -> StateKey {
    let mut key = StateKey::with_capacity(id.len() + 14);
    key.push(side as u8);
    key.extend_from_slice(id.as_bytes());
    key.push(0);
    key
}

/// The key of one item of a transaction: what makes a delivery the same as an earlier one. `row` names the row: a Salesforce
/// id, or a record's number.
pub fn transaction_item(side: Side, id: &str, index: u32, row: &[u8]) -> StateKey {
    let mut key = transaction(side, id);
    key.extend_from_slice(&index.to_be_bytes());
    key.extend_from_slice(row);
    key
}
