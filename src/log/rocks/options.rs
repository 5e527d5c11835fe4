//! How RocksDB is set up: column families, memory, durability.
//!
//! - **Durability.** Each append is one write batch whose WAL record is synced before the write returns. Recovery refuses a
//!   damaged record: to stop at it, as recovery to a point in time does, would drop every acknowledged append behind it, and
//!   the tip with them. It stops only at an end that is known to be torn, which was never acknowledged. WAL files are not
//!   recycled, so that an old record can never be taken for a new one.
//! - **Memory** is bounded, whatever the stream's length: the block cache, which index and filter blocks live in too, and the
//!   write buffers, which are charged to it. Each family has a write buffer of its own size, so that a family which grows little
//!   is not written out as often as the others. Open files are bounded as well.
//! - **Stalls.** Entries arrive in key order, so they are rewritten once: several files of level 0 make a large one. Only the state
//!   and the indexes are really compacted, and may fall behind by many level 0 files
//!   before writes are slowed down. Level 0 is not compressed, so that writing a buffer out costs little; nor are the state
//!   and the indexes at all, since reading a record's state must not cost a block's decompression.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompactionStyle, DBCompressionType, DBRecoveryMode,
    DataBlockIndexType, InfoLogger, LogLevel, LruCacheOptions, Options, UniversalCompactOptions, WriteBufferManager,
};

/// The entries: big-endian offset to frame.
pub(super) const LOG: &str = "log";
/// The state: key to value, one family for each of two generations.
pub(super) const STATE: [&str; 2] = ["state.0", "state.1"];
/// Big-endian record and offset to nothing, for each generation.
pub(super) const BY_RECORD: [&str; 2] = ["by_record.0", "by_record.1"];
/// Transaction key to big-endian offset, for each generation.
pub(super) const BY_TRANSACTION: [&str; 2] = ["by_transaction.0", "by_transaction.1"];
/// Which generation is in force, and where the log ends.
pub(super) const META: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;

/// How much the log may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for cached blocks and write buffers together.
    pub cache_bytes: usize,
    /// Memory for the write buffers that are being filled, out of `cache_bytes`. Those that are being written out are beside it.
    pub write_buffer_bytes: usize,
    /// The most files that are kept open.
    pub open_files_max: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self { cache_bytes: 20 << 20, write_buffer_bytes: 10 << 20, open_files_max: 512 }
    }
}

/// What one open database shares among its column families.
pub(super) struct Tuning {
    pub(super) options: RocksOptions,
    pub(super) cache: Cache,
    pub(super) buffers: WriteBufferManager,
}

impl Tuning {
    pub(super) fn new(options: RocksOptions) -> Self {
        // A shard of a small cache would be filled by a single filter.
        let mut lru = LruCacheOptions::default();
        lru.set_capacity(options.cache_bytes);
        lru.set_num_shard_bits(0);
        let cache = Cache::new_lru_cache_opts(&lru);
        // It charges them to the cache, and is the last resort: each family has its own limit far below.
        let buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(options.cache_bytes, false, cache.clone());
        Self { options, cache, buffers }
    }

    /// Options of the database as a whole. A reader beside the owner keeps every file open, since the owner may delete it.
    /// `torn` says that the write-ahead log is whole but for its end.
    pub(super) fn database(&self, reader: bool, torn: bool) -> Options {
        let mut options = Options::default();
        options.create_if_missing(!reader);
        options.create_missing_column_families(!reader);
        options.set_wal_recovery_mode(if torn {
            DBRecoveryMode::PointInTime
        } else {
            DBRecoveryMode::TolerateCorruptedTailRecords
        });
        options.set_recycle_log_file_num(0);
        // For readers as well: RocksDB does not bear it when only the owner has it.
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_manager(&self.buffers);
        options.set_max_total_wal_size(3 * self.options.write_buffer_bytes as u64);
        options.set_max_open_files(if reader { -1 } else { self.options.open_files_max });
        options.set_max_background_jobs(2);
        // Threads for each family at each opening would cost more than they save here.
        options.set_max_file_opening_threads(1);
        options.set_bytes_per_sync(1 << 20);
        options.set_compaction_readahead_size(256 << 10);
        options.set_writable_file_max_buffer_size(256 << 10);
        options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, message| {
            let message = message.trim_end();
            match level {
                LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
                LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
                // Its settings, which it prints whatever level is asked for.
                _ => tracing::debug!(target: "rocksdb", "{message}"),
            }
        }));
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_skip_stats_update_on_db_open(true);
        options
    }

    /// Every column family that a log has.
    pub(super) fn families(&self) -> Vec<ColumnFamilyDescriptor> {
        let mut families = vec![
            ColumnFamilyDescriptor::new(META, self.family(0.02, 4 << 10, false)),
            ColumnFamilyDescriptor::new(LOG, self.log()),
        ];
        for generation in 0..2 {
            families.push(ColumnFamilyDescriptor::new(STATE[generation], by_size(self.family(0.5, 4 << 10, true))));
            families
                .push(ColumnFamilyDescriptor::new(BY_RECORD[generation], by_size(self.family(0.08, 8 << 10, false))));
            families.push(ColumnFamilyDescriptor::new(BY_TRANSACTION[generation], self.family(0.05, 4 << 10, true)));
        }
        families
    }

    fn log(&self) -> Options {
        let mut options = self.family(0.4, 32 << 10, false);
        options.set_target_file_size_base(64 << 20);
        options.set_max_bytes_for_level_base(512 << 20);
        options.set_level_zero_file_num_compaction_trigger(16);
        options.set_compression_type(DBCompressionType::Lz4);
        let mut levels = [DBCompressionType::Lz4; 7];
        levels[0] = DBCompressionType::None;
        options.set_compression_per_level(&levels);
        options
    }

    /// A family with this share of the write buffers and this block size; `lookups` where single keys are looked up, found or not.
    fn family(&self, buffer_share: f64, block_bytes: usize, lookups: bool) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_block_size(block_bytes);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(6);
        if lookups {
            table.set_bloom_filter(10.0, false);
            table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        }
        let mut options = Options::default();
        options.set_target_file_size_base(32 << 20);
        if lookups {
            // A filter is built from a hash of every key of its file, all in memory.
            options.set_target_file_size_base(16 << 20);
            // Most keys that are looked up in a write buffer are not in it: new ones, and those long written out.
            options.set_memtable_prefix_bloom_ratio(0.05);
            options.set_memtable_whole_key_filtering(true);
        }
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size((self.options.write_buffer_bytes as f64 * buffer_share) as usize);
        // Each family has a buffer, and most of them hold little.
        options.set_arena_block_size(128 << 10);
        options.set_max_write_buffer_number(3);
        options.set_level_compaction_dynamic_level_bytes(true);
        // Keys are all over the place, so each compaction rewrites much of the level below: the fewer the better.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_level_zero_slowdown_writes_trigger(40);
        options.set_level_zero_stop_writes_trigger(80);
        options.set_compression_type(DBCompressionType::None);
        options
    }
}

/// For what comes in no order, and may be replaced all the time: to merge what is alike in size rewrites it least.
fn by_size(mut options: Options) -> Options {
    let mut universal = UniversalCompactOptions::default();
    universal.set_size_ratio(10);
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_universal_compaction_options(&universal);
    options
}
