//! Scans with bounded iterators.

use rocksdb::{ColumnFamily, DB, DBRawIterator, ReadOptions};

use super::failure::Doing;
use super::{RocksLog, record_key};
use crate::change::{Offset, RecordId};
use crate::error::{Error, Kind};
use crate::log::frame::{Follow, FrameError, HEADER_BYTES};
use crate::log::{Page, ReadLimit};

/// What can go wrong in a scan.
pub(super) enum ScanError {
    /// RocksDB could not read on.
    Rocks(rocksdb::Error),
    /// RocksDB could not read the entry at this offset.
    Unreadable(Offset, rocksdb::Error),
    /// The entry at this offset is bad.
    Frame(Offset, FrameError),
    /// A value of an index is bad.
    Other(Error),
}

impl ScanError {
    pub(super) fn into_error(self, log: &RocksLog) -> Error {
        match self {
            Self::Rocks(error) => log.failed(Doing::Reading, error),
            Self::Unreadable(offset, error) => {
                log.failed(Doing::Reading, error).within(format_args!("the change log is bad at offset {offset}"))
            }
            Self::Frame(offset, error) => error.at(offset),
            Self::Other(error) => error,
        }
    }
}

/// Every key from here on that does not start with `prefix` comes after this; `None`: there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// Keys under `prefix` and after `after` with their values.
pub(super) fn prefix<V>(
    db: &DB,
    family: &ColumnFamily,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
    value: impl Fn(&[u8]) -> Result<V, Error>,
) -> Result<Vec<(Vec<u8>, V)>, ScanError> {
    let mut options = ReadOptions::default();
    if let Some(end) = after_prefix(prefix) {
        options.set_iterate_upper_bound(end);
    }
    let mut iterator = db.raw_iterator_cf_opt(family, options);
    let after = after.filter(|after| *after >= prefix);
    iterator.seek(after.unwrap_or(prefix));
    let mut items = Vec::new();
    while items.len() < limit {
        let Some((key, found)) = iterator.item() else {
            iterator.status().map_err(ScanError::Rocks)?;
            break;
        };
        if after != Some(key) {
            items.push((key.to_vec(), value(found).map_err(ScanError::Other)?));
        }
        iterator.next();
    }
    Ok(items)
}

/// Offsets of the entries about `record`, from `from` on.
pub(super) fn record(
    db: &DB,
    family: &ColumnFamily,
    record: RecordId,
    from: Offset,
    limit: usize,
) -> Result<Vec<Offset>, ScanError> {
    let mut options = ReadOptions::default();
    if let Some(end) = after_prefix(&record.0.to_be_bytes()) {
        options.set_iterate_upper_bound(end);
    }
    let mut iterator = db.raw_iterator_cf_opt(family, options);
    iterator.seek(record_key(record, from));
    let mut offsets = Vec::new();
    while offsets.len() < limit {
        let Some(key) = iterator.key() else {
            iterator.status().map_err(ScanError::Rocks)?;
            break;
        };
        offsets.extend(key.last_chunk::<8>().map(|bytes| Offset(u64::from_be_bytes(*bytes))));
        iterator.next();
    }
    Ok(offsets)
}

/// The record index after `after`.
pub(super) fn records(
    db: &DB,
    family: &ColumnFamily,
    after: Option<(RecordId, Offset)>,
    limit: usize,
) -> Result<Vec<(RecordId, Offset)>, ScanError> {
    let after = after.map(|(record, offset)| record_key(record, offset));
    let keys = prefix(db, family, &[], after.as_ref().map(<[u8; 16]>::as_slice), limit, |_| Ok(()))?;
    let split = |key: &[u8]| {
        let key = u128::from_be_bytes(key.try_into().ok()?);
        Some((RecordId((key >> 64) as u64), Offset(key as u64)))
    };
    let bad =
        || ScanError::Other(Error::new(Kind::Corrupt, "the record index holds a key that is no record and offset"));
    keys.iter().map(|(key, ())| split(key).ok_or_else(bad)).collect()
}

/// The last offset that there is an entry at.
pub(super) fn last_offset(db: &DB, family: &ColumnFamily) -> Result<Option<Offset>, rocksdb::Error> {
    let mut iterator = db.raw_iterator_cf(family);
    iterator.seek_for_prev(u64::MAX.to_be_bytes());
    iterator.status()?;
    Ok(iterator.key().and_then(|key| key.try_into().ok()).map(|bytes| Offset(u64::from_be_bytes(bytes))))
}

/// Entries from `from` on, before `tail`. The first bad one ends the page, and is the error if it is the first.
pub(super) fn page(
    db: &DB,
    family: &ColumnFamily,
    from: Offset,
    tail: Offset,
    limit: ReadLimit,
) -> Result<Page, ScanError> {
    let mut page = Page::new(from);
    if from >= tail {
        return Ok(page);
    }
    let end = tail.0.min(from.0.saturating_add(limit.entries.max(1) as u64));
    let mut iterator = entries(db, family, end, limit);
    let mut follow = start(&mut iterator, from);
    if follow.is_none() && iterator.status().is_err() {
        // The entry before is unreadable, which says nothing about this one.
        iterator = entries(db, family, end, limit);
        iterator.seek(from.0.to_be_bytes());
        follow = Some(Follow::after(Some(&[])));
    }
    let mut follow = follow.unwrap_or_else(|| Follow::after(Some(&[])));
    while page.next().0 < end {
        let offset = page.next();
        let bad = match iterator.item() {
            Some((key, frame)) if key == offset.0.to_be_bytes() => {
                if !limit.takes(page.len(), page.bytes(), frame.len().saturating_sub(HEADER_BYTES)) {
                    break;
                }
                match follow.next(frame) {
                    Ok(body) => {
                        page.push(body, follow.chain());
                        None
                    }
                    Err(error) => Some(ScanError::Frame(offset, error)),
                }
            }
            Some(_) => Some(ScanError::Frame(offset, FrameError::Missing)),
            None => Some(match iterator.status() {
                Ok(()) => ScanError::Frame(offset, FrameError::Missing),
                Err(error) => ScanError::Unreadable(offset, error),
            }),
        };
        match bad {
            None => iterator.next(),
            Some(error) if page.is_empty() => return Err(error),
            Some(_) => break,
        }
    }
    Ok(page)
}

fn entries<'a>(db: &'a DB, family: &ColumnFamily, end: u64, limit: ReadLimit) -> DBRawIterator<'a> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end.to_be_bytes());
    // A long scan would only push out of the cache what single lookups need.
    options.fill_cache(limit.entries <= 1);
    db.raw_iterator_cf_opt(family, options)
}

/// Puts the iterator at `from`, knowing the entry before it; `None` if the iterator broke down over that one.
fn start(iterator: &mut DBRawIterator<'_>, from: Offset) -> Option<Follow> {
    let Some(before) = from.0.checked_sub(1) else {
        iterator.seek_to_first();
        return Some(Follow::after(None));
    };
    iterator.seek(before.to_be_bytes());
    let (key, frame) = iterator.item()?;
    if key != before.to_be_bytes() {
        return Some(Follow::after(Some(&[])));
    }
    let follow = Follow::after(Some(frame));
    iterator.next();
    Some(follow)
}
