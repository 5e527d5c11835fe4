//! The change log in RocksDB: embedded, on a local disk, the default.
//!
//! One append is one synced write batch over the families in [`options`]: entries, index keys, state, and the tip (tail and
//! chain). RocksDB makes a batch visible only after its WAL record is synced, so what a reader sees is durable.
//!
//! State and indexes have two generations. A rebuild fills the one that is not in force, makes it durable, and then one
//! synced write of the generation's number puts it in force.
//!
//! Opening looks through the write-ahead files first ([`wal`]): an end that was torn is left out, since it was never
//! acknowledged; damage anywhere else refuses the log. Then it checks that the log ends where the tip says, with the chain value that the tip says: entries that were
//! removed from the end, or changed there, are found at once.

mod directory;
mod failure;
mod options;
mod rebuild;
mod scan;
mod wal;

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::properties::MIN_LOG_NUMBER_TO_KEEP;
use rocksdb::{ColumnFamily, DB, WriteBatch, WriteOptions};

use super::frame::{self, Chain, Frame, FrameError, GENESIS};
use super::{Append, ChangeLog, LogStats, Page, ReadLimit, Rebuild, StateRead, rules};
use crate::change::{Offset, RecordId};
use crate::error::{Error, Kind, Result};
use directory::{Directory, Lock, Marker};
use failure::Doing;
pub use options::RocksOptions;
use options::{BY_RECORD, BY_TRANSACTION, LOG, META, STATE, Tuning};

const TIP: &[u8] = b"tip";
const GENERATION: &[u8] = b"generation";

/// A buffer larger than this is not kept for the next append.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// What a write batch needs for an entry besides its bytes: header, keys, lengths, index keys.
const BATCH_BYTES_PER_ENTRY: usize = 96;

/// A log in RocksDB. Dropping it gives the directory free.
pub struct RocksLog {
    // Fields are dropped in order: the database before the lock.
    db: DB,
    tuning: Tuning,
    directory: Directory,
    id: String,
    tip: RwLock<Tip>,
    /// Held for reading while state or indexes are read, so that a generation is not emptied under a reader.
    generation: RwLock<usize>,
    /// Held by the writer; the buffer is where frames are put together.
    writer: Mutex<Vec<u8>>,
    poisoned: AtomicBool,
    rebuilding: AtomicBool,
    access: Access,
    #[cfg(test)]
    fail_writes: AtomicBool,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tip {
    tail: Offset,
    chain: Chain,
}

/// When a write batch is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// When it is written.
    Now,
    /// When its families are flushed. It is not in the write-ahead log, whose end must never be one that was not synced.
    WhenFlushed,
}

/// What this handle may do.
enum Access {
    /// It is the one that writes.
    Owner { _lock: Lock },
    /// It reads beside the owner, if there is one.
    Reader,
}

/// The families of one generation.
#[derive(Clone, Copy)]
struct Derived<'a> {
    state: &'a ColumnFamily,
    by_record: &'a ColumnFamily,
    by_transaction: &'a ColumnFamily,
}

impl RocksLog {
    /// Opens the log in `directory`, which must exist, as its one owner.
    pub fn open(directory: &Path, options: RocksOptions) -> Result<Self> {
        let directory = Directory::new(directory);
        directory.existing()?;
        Self::open_owned(directory, options)
    }

    /// Whether there is a log in `directory`, whatever state it is in.
    pub fn exists(directory: &Path) -> Result<bool> {
        Ok(Directory::new(directory).marker()?.is_some())
    }

    /// Opens the log in `directory` as its one owner; makes an empty one if there is none. The directory may be missing, its
    /// parent must exist.
    pub fn open_or_create(directory: &Path, options: RocksOptions) -> Result<Self> {
        let directory = Directory::new(directory);
        if directory.marker()?.is_some() {
            directory.existing()?;
        } else {
            directory.prepare()?;
        }
        Self::open_owned(directory, options)
    }

    fn open_owned(directory: Directory, options: RocksOptions) -> Result<Self> {
        let lock = directory.lock()?;
        let tuning = Tuning::new(options);
        let path = directory.database();
        let torn = directory.inspect_write_ahead()?;
        let db = DB::open_cf_descriptors(&tuning.database(false, torn), &path, tuning.families())
            .map_err(|error| failure::rocks(Doing::Opening, directory.path(), error))?;
        let marker = directory.marker()?;
        let new = marker.is_none();
        let marker = marker.unwrap_or(Marker { id: String::new() });
        let mut log = Self::assemble(db, tuning, directory, marker, Access::Owner { _lock: lock })?;
        log.check_end()?;
        if new {
            if log.tail() != Offset(0) {
                let text = format!(
                    "the change log in {} has entries but no marker file; restore the directory from a backup",
                    log.directory.path().display()
                );
                return Err(Error::new(Kind::Corrupt, text));
            }
            log.id = log.directory.mark()?.id;
        }
        Ok(log)
    }

    /// Opens the log in `directory` to read it, whether or not its owner is running. It shows the log as it was at that time;
    /// [`Self::refresh`] goes on to what has been written since.
    pub fn open_read_only(directory: &Path, options: RocksOptions) -> Result<Self> {
        const WITHIN: Duration = Duration::from_secs(10);
        let directory = Directory::new(directory);
        let started = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            let marker = directory.existing()?;
            let tuning = Tuning::new(options);
            // It may end in an append that the owner has begun since it was looked at.
            directory.inspect_write_ahead()?;
            let (before, listed) = (directory.write_ahead()?, directory.listing()?);
            let opened = DB::open_cf_descriptors_read_only(
                &tuning.database(true, true),
                directory.database(),
                tuning.families(),
                false,
            );
            // The owner goes on working: it may remove a table between our learning of it and opening it, which is an error,
            // or a write-ahead file whose entries have moved into a table that we do not know of, which would be a hole.
            let opened = opened.and_then(|db| Ok((db.property_int_value(MIN_LOG_NUMBER_TO_KEEP)?, db)));
            let after = directory.write_ahead()?;
            let why = match opened {
                Ok((oldest, db))
                    if before.is_subset(&after) || oldest.is_some_and(|n| after.contains(&file_name(n))) =>
                {
                    let log = Self::assemble(db, tuning, directory.clone(), marker, Access::Reader)?;
                    match log.check_end() {
                        Ok(()) => return Ok(log),
                        Err(error) if listed == directory.listing()? => return Err(error),
                        Err(error) => Some(error),
                    }
                }
                Ok(_) => None,
                // Files that stay as they are and cannot be opened are damaged.
                Err(error) if listed == directory.listing()? => {
                    return Err(failure::rocks(Doing::Opening, directory.path(), error));
                }
                Err(error) => Some(failure::rocks(Doing::Opening, directory.path(), error)),
            };
            if started.elapsed() > WITHIN {
                let text = format!(
                    "the change log in {} is being written too fast to be opened beside its owner; try again, or ask the \
                     owner by its HTTP API",
                    directory.path().display()
                );
                let error = Error::new(Kind::Unavailable, text);
                return Err(match why {
                    Some(why) => error.caused_by(why),
                    None => error,
                });
            }
            std::thread::sleep(pause);
            // Out of step with whatever the owner does at intervals.
            pause = (pause * 3 / 2).min(Duration::from_millis(50));
        }
    }

    fn assemble(db: DB, tuning: Tuning, directory: Directory, marker: Marker, access: Access) -> Result<Self> {
        let log = Self {
            db,
            tuning,
            directory,
            id: marker.id,
            tip: RwLock::new(Tip { tail: Offset(0), chain: GENESIS }),
            generation: RwLock::new(0),
            writer: Mutex::default(),
            poisoned: AtomicBool::new(false),
            rebuilding: AtomicBool::new(false),
            access,
            #[cfg(test)]
            fail_writes: AtomicBool::new(false),
        };
        log.load_meta()?;
        Ok(log)
    }

    /// Goes on to what the owner has written since this was opened, by opening it again, and gives the new tail. For the
    /// owner itself there is nothing to do.
    pub fn refresh(&mut self) -> Result<Offset> {
        if matches!(self.access, Access::Reader) {
            *self = Self::open_read_only(self.directory.path(), self.tuning.options)?;
        }
        Ok(self.tail())
    }

    /// The id of the log in `directory`, which nobody needs to own; none where there is no log.
    pub fn id_in(directory: &Path) -> Result<Option<String>> {
        Ok(Directory::new(directory).marker()?.map(|marker| marker.id))
    }

    /// The log's own id, given when it was created: two logs with the same id are copies of one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a copy of the log, consistent and complete, in the new directory `to` while it goes on being written. On the same
    /// file system it costs hardly any space: files that do not change any more are linked.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        self.owned()?;
        let target = Directory::new(to);
        target.prepare()?;
        if target.marker()?.is_some() || target.database().exists() {
            let text = format!("{} holds a change log already; name a new directory", to.display());
            return Err(Error::new(Kind::Configuration, text));
        }
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(target.database()))
            .map_err(|e| failure::rocks(Doing::Writing, to, e))?;
        self.directory.mark_copy(&target)
    }

    fn load_meta(&self) -> Result<()> {
        let get =
            |family, key| self.db.get_pinned_cf(self.family(family)?, key).map_err(|e| self.failed(Doing::Reading, e));
        let generation = get(META, GENERATION)?.is_some_and(|value| value.as_ref() == [1]);
        let tip = match get(META, TIP)? {
            None => Tip { tail: Offset(0), chain: GENESIS },
            Some(value) => Tip::decode(&value).ok_or_else(|| {
                let text = format!(
                    "the end of the change log in {} is not recorded properly",
                    self.directory.path().display()
                );
                Error::new(Kind::Corrupt, text)
            })?,
        };
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) = usize::from(generation);
        *self.tip.write().unwrap_or_else(PoisonError::into_inner) = tip;
        Ok(())
    }

    /// Checks that the entries end where the tip says.
    fn check_end(&self) -> Result<()> {
        let tip = self.tip();
        let log = self.family(LOG)?;
        if let Some(extra) = scan::last_offset(&self.db, log).map_err(|e| self.failed(Doing::Reading, e))?
            && extra >= tip.tail
        {
            let text = format!("the change log has an entry at offset {extra} after its recorded end {}", tip.tail);
            return Err(Error::new(Kind::Corrupt, text));
        }
        let Some(last) = tip.tail.0.checked_sub(1).map(Offset) else { return Ok(()) };
        let value = self.db.get_pinned_cf(log, last.0.to_be_bytes()).map_err(|e| self.failed(Doing::Reading, e))?;
        let value = value.ok_or_else(|| FrameError::Missing.at(last))?;
        match Frame::parse(&value) {
            Ok(frame) if frame.chain() == tip.chain => Ok(()),
            Ok(_) => Err(FrameError::Chain.at(last)),
            Err(error) => Err(error.at(last)),
        }
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| Error::new(Kind::Internal, format!("no column family {name}")))
    }

    fn families(&self, generation: usize) -> Result<Derived<'_>> {
        let name = |names: [&'static str; 2]| if generation == 0 { names[0] } else { names[1] };
        Ok(Derived {
            state: self.family(name(STATE))?,
            by_record: self.family(name(BY_RECORD))?,
            by_transaction: self.family(name(BY_TRANSACTION))?,
        })
    }

    /// The families in force; they stay so while the guard lives.
    fn derived(&self) -> Result<(RwLockReadGuard<'_, usize>, Derived<'_>)> {
        let generation = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        let families = self.families(*generation)?;
        Ok((generation, families))
    }

    fn tip(&self) -> Tip {
        *self.tip.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: Doing, error: rocksdb::Error) -> Error {
        failure::rocks(doing, self.directory.path(), error)
    }

    fn owned(&self) -> Result<()> {
        match self.access {
            Access::Owner { .. } => Ok(()),
            Access::Reader => Err(Error::new(Kind::Internal, "this handle only reads the change log")),
        }
    }

    /// Writes a batch. After a failure the log takes nothing more.
    fn write(&self, batch: WriteBatch, durable: Durable) -> Result<()> {
        #[cfg(test)]
        if self.fail_writes.load(Ordering::Acquire) {
            self.poisoned.store(true, Ordering::Release);
            return Err(Error::new(Kind::Storage, "the write failed (simulated)"));
        }
        let mut options = WriteOptions::default();
        options.set_sync(durable == Durable::Now);
        options.disable_wal(durable == Durable::WhenFlushed);
        self.db.write_opt(batch, &options).map_err(|error| {
            self.poisoned.store(true, Ordering::Release);
            self.failed(Doing::Writing, error)
        })
    }

    fn lookup<V>(
        &self,
        family: &ColumnFamily,
        keys: &[&[u8]],
        value: impl Fn(&[u8]) -> Result<V>,
    ) -> Result<Vec<Option<V>>> {
        let take = |got: Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>| {
            got.map_err(|e| self.failed(Doing::Reading, e))?.map(|found| value(&found)).transpose()
        };
        if matches!(self.access, Access::Reader) {
            return keys.iter().map(|key| take(self.db.get_pinned_cf(family, key))).collect();
        }
        self.db.batched_multi_get_cf(family, keys.iter().copied(), false).into_iter().map(take).collect()
    }
}

impl Tip {
    fn encode(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&self.tail.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.chain);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tail, chain) = bytes.split_first_chunk::<8>()?;
        Some(Self { tail: Offset(u64::from_be_bytes(*tail)), chain: chain.try_into().ok()? })
    }
}

/// The name of a write-ahead file.
fn file_name(number: u64) -> OsString {
    format!("{number:06}.log").into()
}

/// The key of the record index.
fn record_key(record: RecordId, offset: Offset) -> [u8; 16] {
    (u128::from(record.0) << 64 | u128::from(offset.0)).to_be_bytes()
}

/// The offset in a value of the transaction index.
fn indexed(value: &[u8]) -> Result<Offset> {
    let bytes = value.try_into().map_err(|_| Error::new(Kind::Corrupt, "the transaction index holds no offset"))?;
    Ok(Offset(u64::from_be_bytes(bytes)))
}

impl Derived<'_> {
    /// Adds the index keys and state changes of `append`, whose first entry is at `first`.
    fn fill(self, batch: &mut WriteBatch, first: Offset, append: &Append) {
        for (n, entry) in (first.0..).zip(append.entries()) {
            if let Some(record) = entry.record {
                batch.put_cf(self.by_record, record_key(record, Offset(n)), b"");
            }
            if let Some(key) = entry.transaction {
                batch.put_cf(self.by_transaction, key, n.to_be_bytes());
            }
        }
        for (key, value) in append.state() {
            match value {
                Some(value) => batch.put_cf(self.state, key, value),
                None => batch.delete_cf(self.state, key),
            }
        }
    }
}

impl StateRead for RocksLog {
    fn state(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let (_guard, derived) = self.derived()?;
        self.db.get_cf(derived.state, key).map_err(|e| self.failed(Doing::Reading, e))
    }

    fn states(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        let (_guard, derived) = self.derived()?;
        self.lookup(derived.state, keys, |value| Ok(value.to_vec()))
    }

    fn scan_state(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (_guard, derived) = self.derived()?;
        scan::prefix(&self.db, derived.state, prefix, after, limit, |value| Ok(value.to_vec()))
            .map_err(|e| e.into_error(self))
    }
}

impl ChangeLog for RocksLog {
    fn head(&self) -> Offset {
        Offset(0)
    }

    fn tail(&self) -> Offset {
        self.tip().tail
    }

    fn chain(&self) -> Chain {
        self.tip().chain
    }

    fn append(&self, expected_tail: Offset, append: &Append) -> Result<Offset> {
        self.owned()?;
        let mut frame = self.writer.lock().map_err(|_| rules::poisoned())?;
        if self.poisoned.load(Ordering::Acquire) {
            return Err(rules::poisoned());
        }
        let tip = self.tip();
        rules::fence(tip.tail, expected_tail, append)?;
        if append.is_empty() {
            return Ok(tip.tail);
        }
        let (_guard, derived) = self.derived()?;
        let bytes = append.bytes() + BATCH_BYTES_PER_ENTRY * (append.len() + append.state_len() + 1);
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        let (log, mut new) = (self.family(LOG)?, tip);
        for entry in append.entries() {
            frame.clear();
            frame.extend_from_slice(&frame::header(&new.chain, entry.body));
            frame.extend_from_slice(entry.body);
            batch.put_cf(log, new.tail.0.to_be_bytes(), &*frame);
            new = Tip { tail: new.tail.next(), chain: frame::chain(&new.chain, entry.body) };
        }
        derived.fill(&mut batch, tip.tail, append);
        batch.put_cf(self.family(META)?, TIP, new.encode());
        frame.clear();
        frame.shrink_to(BUFFER_BYTES_KEPT);
        self.write(batch, Durable::Now)?;
        *self.tip.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(new.tail)
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> Result<Page> {
        let tail = self.tail();
        scan::page(&self.db, self.family(LOG)?, from, tail, limit).map_err(|e| e.into_error(self))
    }

    fn record_offsets(&self, record: RecordId, from: Offset, limit: usize) -> Result<Vec<Offset>> {
        let (_guard, derived) = self.derived()?;
        scan::record(&self.db, derived.by_record, record, from, limit).map_err(|e| e.into_error(self))
    }

    fn transaction_offset(&self, key: &[u8]) -> Result<Option<Offset>> {
        let (_guard, derived) = self.derived()?;
        let value = self.db.get_pinned_cf(derived.by_transaction, key).map_err(|e| self.failed(Doing::Reading, e))?;
        value.map(|value| indexed(&value)).transpose()
    }

    fn transaction_offsets(&self, keys: &[&[u8]]) -> Result<Vec<Option<Offset>>> {
        let (_guard, derived) = self.derived()?;
        self.lookup(derived.by_transaction, keys, indexed)
    }

    fn scan_transactions(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>> {
        let (_guard, derived) = self.derived()?;
        scan::prefix(&self.db, derived.by_transaction, prefix, after, limit, indexed).map_err(|e| e.into_error(self))
    }

    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>> {
        let (_guard, derived) = self.derived()?;
        scan::records(&self.db, derived.by_record, after, limit).map_err(|e| e.into_error(self))
    }

    fn rebuild(&self) -> Result<Box<dyn Rebuild + '_>> {
        self.owned()?;
        Ok(Box::new(rebuild::RocksRebuild::new(self)?))
    }

    fn stats(&self) -> Result<LogStats> {
        let property = |family: &str, name: &rocksdb::properties::PropName| -> Result<u64> {
            let value = self.db.property_int_value_cf(self.family(family)?, name);
            Ok(value.map_err(|e| self.failed(Doing::Reading, e))?.unwrap_or_default())
        };
        let mut pending = 0;
        for family in [LOG].iter().chain(&STATE).chain(&BY_RECORD).chain(&BY_TRANSACTION) {
            pending += property(family, rocksdb::properties::ESTIMATE_PENDING_COMPACTION_BYTES)?;
        }
        Ok(LogStats {
            entries: self.tail().0 - self.head().0,
            disk_bytes: disk_bytes(&self.directory.database()),
            write_buffer_bytes: self.tuning.buffers.get_usage() as u64,
            cache_bytes: self.tuning.cache.get_usage() as u64,
            pending_compaction_bytes: pending,
            write_stalled: property(META, rocksdb::properties::ACTUAL_DELAYED_WRITE_RATE)? > 0
                || property(META, rocksdb::properties::IS_WRITE_STOPPED)? > 0,
        })
    }
}

impl std::fmt::Debug for RocksLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("RocksLog");
        text.field("directory", &self.directory.path()).field("tail", &self.tail()).finish_non_exhaustive()
    }
}

/// The bytes of all files in a directory. A file that vanishes meanwhile counts as nothing.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(path) else { return 0 };
    files.flatten().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests;
