//! What is appended at once, in a few flat buffers that are used again and again.

use crate::change::codec::{self, Writer};
use crate::change::{Body, Entry, RecordId};

/// Entries and the state changes that follow from them, to be written as one.
///
/// Filling it costs no allocation per entry, and [`Self::clear`] keeps the buffers. Offsets are given in the order of pushing,
/// from the `expected_tail` of the append on.
#[derive(Debug, Default)]
pub struct Append {
    bodies: Writer,
    transactions: Vec<u8>,
    entries: Vec<EntryEnds>,
    state: Writer,
    changes: Vec<ChangeEnds>,
}

#[derive(Debug, Clone, Copy)]
struct EntryEnds {
    body: usize,
    transaction: Option<usize>,
    record: Option<RecordId>,
}

#[derive(Debug, Clone, Copy)]
struct ChangeEnds {
    key: usize,
    value: Option<usize>,
}

/// One entry of an [`Append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendEntry<'a> {
    /// The entry as encoded by [`codec::encode`].
    pub body: &'a [u8],
    /// The record it is found by.
    pub record: Option<RecordId>,
    /// The key by which the transaction index finds it.
    pub transaction: Option<&'a [u8]>,
}

impl Append {
    /// An append with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry; it is found by its record, and by `transaction` if given.
    pub fn push(&mut self, entry: &Entry, transaction: Option<&[u8]>) {
        codec::encode(entry, &mut self.bodies);
        self.finish(record_of(entry), transaction);
    }

    /// Adds an entry that is encoded already.
    pub fn push_encoded(&mut self, body: &[u8], record: Option<RecordId>, transaction: Option<&[u8]>) {
        self.bodies.buffer.extend_from_slice(body);
        self.finish(record, transaction);
    }

    fn finish(&mut self, record: Option<RecordId>, transaction: Option<&[u8]>) {
        let transaction = transaction.map(|key| {
            self.transactions.extend_from_slice(key);
            self.transactions.len()
        });
        self.entries.push(EntryEnds { body: self.bodies.buffer.len(), transaction, record });
    }

    /// Sets a key of the state.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.put_with(key, |w| w.buffer.extend_from_slice(value));
    }

    /// Sets a key of the state to what `write` appends to the writer. It must only append.
    pub fn put_with(&mut self, key: &[u8], write: impl FnOnce(&mut Writer)) {
        self.state.buffer.extend_from_slice(key);
        let key = self.state.buffer.len();
        write(&mut self.state);
        debug_assert!(self.state.buffer.len() >= key, "a state value must only be appended");
        self.changes.push(ChangeEnds { key, value: Some(self.state.buffer.len()) });
    }

    /// Removes a key of the state.
    pub fn delete(&mut self, key: &[u8]) {
        self.state.buffer.extend_from_slice(key);
        self.changes.push(ChangeEnds { key: self.state.buffer.len(), value: None });
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are neither entries nor state changes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.changes.is_empty()
    }

    /// How many state changes there are.
    pub fn state_len(&self) -> usize {
        self.changes.len()
    }

    /// Bytes of entries and state changes, as a measure of how much one append holds.
    pub fn bytes(&self) -> usize {
        self.bodies.buffer.len() + self.transactions.len() + self.state.buffer.len()
    }

    /// Bytes of the entries alone.
    pub fn body_bytes(&self) -> usize {
        self.bodies.buffer.len()
    }

    /// Forgets everything but the memory it took.
    pub fn clear(&mut self) {
        self.bodies.buffer.clear();
        self.transactions.clear();
        self.entries.clear();
        self.state.buffer.clear();
        self.changes.clear();
    }

    /// The entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = AppendEntry<'_>> {
        let (mut body, mut transaction) = (0, 0);
        self.entries.iter().map(move |ends| AppendEntry {
            body: slice(&self.bodies.buffer, &mut body, ends.body),
            record: ends.record,
            transaction: ends.transaction.map(|end| slice(&self.transactions, &mut transaction, end)),
        })
    }

    /// The state changes, in order: a key and its value, or `None` where it is removed.
    pub fn state(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut at = 0;
        self.changes.iter().map(move |ends| {
            let key = slice(&self.state.buffer, &mut at, ends.key);
            (key, ends.value.map(|end| slice(&self.state.buffer, &mut at, end)))
        })
    }
}

/// The bytes from `at` to `end`, which becomes the new `at`. The ends are our own and ascend.
fn slice<'a>(bytes: &'a [u8], at: &mut usize, end: usize) -> &'a [u8] {
    let start = std::mem::replace(at, end);
    bytes.get(start..end).unwrap_or_default()
}

/// The record that an entry is about; a notice is about none.
pub fn record_of(entry: &Entry) -> Option<RecordId> {
    match &entry.body {
        Body::Change(x) => Some(x.record),
        Body::Echo(x) => Some(x.record),
        Body::Ticket(x) => Some(x.record),
        Body::Outcome(x) => Some(x.record),
        Body::Decision(x) => Some(x.record),
        Body::Bind(x) => Some(x.record),
        Body::Notice(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_clear_forgets_it() {
        let mut append = Append::new();
        for _ in 0..2 {
            assert!(append.is_empty());
            append.push_encoded(b"one", Some(RecordId(1)), Some(b"t"));
            append.push_encoded(b"", None, None);
            append.push_encoded(b"three", None, Some(b""));
            append.put(b"k", b"v");
            append.delete(b"gone");
            append.put_with(b"", |w| w.uint(300));
            let entries: Vec<_> = append.entries().map(|e| (e.body, e.record, e.transaction)).collect();
            assert_eq!(
                entries,
                [(&b"one"[..], Some(RecordId(1)), Some(&b"t"[..])), (b"", None, None), (b"three", None, Some(b""))]
            );
            let state: Vec<_> = append.state().collect();
            assert_eq!(state, [(&b"k"[..], Some(&b"v"[..])), (b"gone", None), (b"", Some(&[0xac, 0x02]))]);
            assert_eq!((append.len(), append.state_len(), append.bytes()), (3, 3, 8 + 1 + 2 + 4 + 2));
            append.clear();
        }
    }
}
