//! What every implementation of [`super::ChangeLog`] must do, as one suite that runs against each of them.

mod cases;
mod model;

use super::rocks::RocksLog;
use super::{Append, ChangeLog, MemoryLog, RocksOptions};
use crate::change::{Body, ChangeOrigin, Entry, Offset, RecordId};

/// A place where a log lives and can be opened again, and the ways to make it fail.
pub(super) trait Home {
    /// The implementation.
    type Log: ChangeLog;
    /// Opens the log as its one owner. The one before must have been dropped.
    fn open(&self) -> Self::Log;
    /// Makes this handle's writes fail from now on.
    fn break_writes(log: &Self::Log);
    /// Changes the stored frame of an entry.
    fn tamper(log: &Self::Log, offset: Offset, change: impl FnOnce(&mut Vec<u8>));
}

/// A home in memory.
#[derive(Default)]
struct Memory(MemoryLog);

impl Home for Memory {
    type Log = MemoryLog;

    fn open(&self) -> MemoryLog {
        let log = self.0.reopen();
        log.fail_after(None);
        log
    }

    fn break_writes(log: &MemoryLog) {
        log.fail_after(Some(0));
    }

    fn tamper(log: &MemoryLog, offset: Offset, change: impl FnOnce(&mut Vec<u8>)) {
        log.tamper(offset, change).unwrap();
    }
}

/// A home on disk.
struct Rocks(tempfile::TempDir);

impl Default for Rocks {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Home for Rocks {
    type Log = RocksLog;

    fn open(&self) -> RocksLog {
        RocksLog::open_or_create(&self.0.path().join("log"), RocksOptions::default()).unwrap()
    }

    fn break_writes(log: &RocksLog) {
        log.break_writes();
    }

    fn tamper(log: &RocksLog, offset: Offset, change: impl FnOnce(&mut Vec<u8>)) {
        log.tamper(offset, change);
    }
}

/// An entry that is easy to tell from others.
pub(super) fn entry(n: u64, record: u64) -> Entry {
    use crate::change::{
        Change, Dot, FieldChange, FieldId, Lsn, MappingId, Operation, Position, Side, Source, StreamId, Transaction,
        Value, Vector, Who,
    };
    Entry {
        recorded_at: n as i64 * 10,
        body: Body::Change(Change {
            mapping: MappingId(1),
            record: RecordId(record),
            origin: ChangeOrigin::Captured,
            source: Source {
                side: Side::Postgres,
                position: Position::Postgres { stream: StreamId(0), commit_lsn: Lsn(n), index: 0 },
                transaction: Transaction { id: "7".into(), index: 0, last: true },
                committed_at: n as i64 * 10,
                who: Who { user: "ada".into(), role: "app".into(), application: "test".into() },
            },
            operation: Operation::Update,
            key: None,
            salesforce_id: None,
            dot: Dot { side: Side::Postgres, n },
            vector: Vector { postgres: n, salesforce: 0 },
            fields: vec![FieldChange {
                field: FieldId(0),
                before: Value::Null,
                after: Value::text(format!("value {n}")),
            }],
        }),
    }
}

/// `count` entries from `first` on, each with a key of the transaction index and one of the state.
pub(super) fn entries(first: u64, count: u64) -> Append {
    let mut append = Append::new();
    for n in first..first + count {
        append.push(&entry(n, n % 3), Some(format!("tx/{n:04}").as_bytes()));
        append.put(format!("key/{:02}", n % 7).as_bytes(), &n.to_be_bytes());
    }
    append
}

macro_rules! conformance {
    ($name:ident, $home:ty, [$($case:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $case() {
                    cases::$case(&<$home>::default());
                }
            )*

            #[test]
            fn it_does_what_a_simple_model_does() {
                model::compare::<$home>();
            }
        }
    };
}

macro_rules! conformance_of_all {
    ($cases:tt) => {
        conformance!(memory, Memory, $cases);
        conformance!(rocks, Rocks, $cases);
    };
}

conformance_of_all!([
    an_empty_log_is_empty,
    entries_are_read_in_pages,
    a_deposed_writer_is_fenced_off,
    state_changes_need_an_entry,
    the_last_change_of_a_key_stands,
    states_are_looked_up_in_the_order_of_the_keys,
    state_is_scanned_by_prefix,
    records_and_transactions_are_indexed,
    everything_is_there_after_a_restart,
    a_failed_write_poisons_the_log,
    a_bad_entry_is_named_and_can_be_read_past,
    an_altered_entry_with_a_right_checksum_is_found,
    verify_lists_what_is_bad,
    verify_gives_every_entry_to_the_visitor,
    a_rebuild_replaces_the_state_as_a_whole,
    a_rebuild_that_is_given_up_changes_nothing,
    a_rebuild_must_cover_the_log,
    a_time_leads_to_an_offset,
    readers_see_a_prefix_while_the_writer_appends,
    large_entries_are_taken,
]);
