//! A record as the log has it: what a copy that is made from the log alone holds.

use crate::change::{FieldId, Key, MappingId, Offset, RecordId, Value, Vector};

/// A record as of some place of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The record.
    pub record: RecordId,
    /// Its mapping.
    pub mapping: MappingId,
    /// The last entry about it that is part of this.
    pub at: Offset,
    /// The changes of either side that are part of this.
    pub vector: Vector,
    /// Its primary key in PostgreSQL, where the log knows it.
    pub key: Option<Key>,
    /// The value that stands in each field that was ever set, by ascending field; none where the record is deleted.
    pub values: Option<Vec<(FieldId, Value)>>,
}
