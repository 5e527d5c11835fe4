//! Where a side's own stream stands.

use std::fmt;
use std::str::FromStr;

use super::Str;

/// A PostgreSQL log sequence number: a byte address in the write-ahead log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self(u64::from_str_radix(high, 16)? << 32 | u64::from(u32::from_str_radix(low, 16)?)))
    }
}

/// A stream's identity, numbered by the log: one slot of one database system, or one topic of one org. A re-created slot or
/// a moved org is another stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct StreamId(pub u32);

/// A place in a side's stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(tag = "side", rename_all = "lowercase")]
pub enum Position {
    /// A change within a transaction: ordered by `(commit_lsn, index)`.
    Postgres {
        /// Which slot.
        stream: StreamId,
        /// The transaction's commit record.
        commit_lsn: Lsn,
        /// The change's place in its transaction, from 0.
        index: u32,
    },
    /// An event: replay ids are opaque and compared for equality only.
    Salesforce {
        /// Which topic.
        stream: StreamId,
        /// The event's replay id, as received.
        replay_id: Str,
        /// The record's place among the event's record ids, from 0.
        index: u32,
    },
}

impl Position {
    /// Which stream it is a place in.
    pub fn stream(&self) -> StreamId {
        match self {
            Self::Postgres { stream, .. } | Self::Salesforce { stream, .. } => *stream,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { commit_lsn, index, .. } => write!(f, "{commit_lsn}+{index}"),
            Self::Salesforce { replay_id, index, .. } => write!(f, "{replay_id}+{index}"),
        }
    }
}
