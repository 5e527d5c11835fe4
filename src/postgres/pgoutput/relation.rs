//! What a relation looks like, kept beyond the message that told it.

use std::collections::HashMap;
use std::sync::OnceLock;

use tokio_postgres::types::Type;

use super::message::RelationMessage;

/// How the server names a row in updates and deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// By the primary key.
    Default,
    /// Not at all.
    Nothing,
    /// By the whole old row.
    Full,
    /// By a unique index.
    Index,
}

/// A relation's column as the stream tells it. Generated columns are absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether it is of the replica identity.
    pub is_key: bool,
    /// Its name.
    pub name: String,
    /// Its type (a domain's own oid).
    pub type_oid: u32,
    /// Its type modifier, -1 for none.
    pub type_modifier: i32,
}

/// A relation as the stream tells it. Its oid is good for the session only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its oid, by which changes refer to it.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How the server names its rows.
    pub replica_identity: ReplicaIdentity,
    /// Its columns, in the order of tuples.
    pub columns: Vec<RelationColumn>,
}

impl From<&RelationMessage<'_>> for Relation {
    fn from(message: &RelationMessage<'_>) -> Self {
        Self {
            oid: message.oid,
            schema: message.schema.to_owned(),
            name: message.name.to_owned(),
            replica_identity: message.replica_identity,
            columns: message.columns().collect(),
        }
    }
}

/// The highest oid of a built-in type that is looked at.
const BUILTIN_OID_MAX: u32 = 6_500;

/// The oid of a built-in type, by its name in `pg_catalog` (`numeric`, `_text`). For domains, whose base type the stream
/// tells by name.
pub fn builtin_type_oid(name: &str) -> Option<u32> {
    static BY_NAME: OnceLock<HashMap<String, u32>> = OnceLock::new();
    let by_name = BY_NAME.get_or_init(|| {
        (1..BUILTIN_OID_MAX).filter_map(Type::from_oid).map(|t| (t.name().to_owned(), t.oid())).collect()
    });
    by_name.get(name).copied()
}
