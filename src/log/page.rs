//! What one read gives: consecutive entries in one buffer.

use crate::change::codec;
use crate::change::{Entry, Offset};
use crate::error::{Error, Kind, Result};
use crate::log::Chain;

/// How much one read may give. At least one entry is always given if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// The most entries.
    pub entries: usize,
    /// The most bytes of encoded entries.
    pub bytes: usize,
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self { entries: 1_000, bytes: 1 << 20 }
    }
}

impl ReadLimit {
    /// One entry.
    pub const ONE: Self = Self { entries: 1, bytes: 0 };

    /// At most `entries` entries, in at most 4 MiB.
    pub const fn entries(entries: usize) -> Self {
        Self { entries, bytes: 4 << 20 }
    }

    /// Whether a page with `entries` entries in `bytes` bytes takes one more of `more` bytes.
    pub(crate) const fn takes(self, entries: usize, bytes: usize, more: usize) -> bool {
        entries == 0 || (entries < self.entries && bytes + more <= self.bytes)
    }
}

/// Consecutive entries of the log, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    first: Offset,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    chain: Option<Chain>,
}

impl Page {
    /// A page that begins at `first` and has nothing in it yet.
    pub fn new(first: Offset) -> Self {
        Self { first, bytes: Vec::new(), ends: Vec::new(), chain: None }
    }

    /// Adds the next entry, with the chain value after it.
    pub fn push(&mut self, body: &[u8], chain: Option<&Chain>) {
        self.bytes.extend_from_slice(body);
        self.ends.push(self.bytes.len());
        self.chain = chain.copied();
    }

    /// The chain value of the last entry, if there is one.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of encoded entries.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The offset of the first entry, or where it would be.
    pub fn first(&self) -> Offset {
        self.first
    }

    /// Where to read on.
    pub fn next(&self) -> Offset {
        Offset(self.first.0 + self.ends.len() as u64)
    }

    /// The encoded entries with their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, &[u8])> {
        let mut start = 0;
        self.ends.iter().enumerate().map(move |(n, end)| {
            let start = std::mem::replace(&mut start, *end);
            (Offset(self.first.0 + n as u64), self.bytes.get(start..*end).unwrap_or_default())
        })
    }

    /// The entries with their offsets. One that cannot be decoded is [`Kind::Corrupt`].
    pub fn entries(&self) -> impl Iterator<Item = Result<(Offset, Entry)>> {
        self.iter().map(|(offset, body)| Ok((offset, decode(offset, body)?)))
    }
}

/// Decodes the entry at `offset`.
pub(crate) fn decode(offset: Offset, body: &[u8]) -> Result<Entry> {
    codec::decode(body).map_err(|error| undecodable(offset, &error))
}

/// The error for an entry whose checksum is right but which does not decode.
pub(crate) fn undecodable(offset: Offset, error: &codec::CodecError) -> Error {
    let kind = if matches!(error, codec::CodecError::Version(_)) { Kind::Configuration } else { Kind::Corrupt };
    Error::new(kind, format!("the entry at offset {offset} of the change log cannot be decoded: {error}"))
}
