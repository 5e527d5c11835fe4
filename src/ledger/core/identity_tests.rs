#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::change::{DeletePolicy, Offset};
use crate::clock;
use crate::flow::{Batch, Item, Own, Write};
use crate::ledger::testing::{batch, catalog, row};
use crate::ledger::verify;
use crate::log::MemoryLog;

const POSTGRES: Side = Side::Postgres;
const SALESFORCE: Side = Side::Salesforce;

/// A link in which an update wins over a delete that has not seen it, and that has been told all this.
fn told(batches: &[Batch]) -> (MemoryLog, Core) {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    let mut catalog = catalog(&["Phone"]);
    catalog.mappings[0].delete = DeletePolicy::UpdateWins;
    core.configure(&catalog).unwrap();
    core.open_stream(POSTGRES, "p").unwrap();
    core.open_stream(SALESFORCE, "s").unwrap();
    for batch in batches {
        core.intake(batch).unwrap();
    }
    (log, core)
}

/// A row that PostgreSQL's stream tells as made by these writes.
fn ours(at: u64, key: u64, external_id: &str, writes: &[Write]) -> Batch {
    let mut echo = row(POSTGRES, at, key, RowOperation::Insert, &[(0, external_id)]);
    if let Item::Row(row) = &mut echo.events[0].item {
        row.own = Own::Tickets(writes[0].ticket, writes[writes.len() - 1].ticket);
    }
    echo
}

fn applied(at: u64, writes: &[Write]) -> Batch {
    let applied = writes.iter().map(|write| write.ticket).collect();
    batch(POSTGRES, at, Item::Applied { applied, skipped: vec![], refused: vec![] })
}

/// These records are the rows with these keys, and there are no others.
fn are(log: &MemoryLog, core: &mut Core, keys: &[&str]) {
    core.commit().unwrap();
    for (record, key) in keys.iter().enumerate() {
        let state = core.record(RecordId(record as u64)).unwrap().unwrap();
        let named = state.key.as_ref().is_some_and(|k| k.0 == *key);
        assert!(named && state.exists_at(POSTGRES) && state.in_flight(POSTGRES).is_none(), "{state:?}");
    }
    assert_eq!(core.meta().next_record, RecordId(keys.len() as u64));
    let report = verify::verify(log, &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// A server that went back gives a key once more: our new row of one record gets the key that another had before it was deleted,
/// and that one is being made anew as well.
#[test]
fn a_row_of_ours_under_the_old_key_of_a_record_that_is_made_anew_is_the_one_that_it_names() {
    let (log, mut core) = told(&[
        row(SALESFORCE, 1, 1, RowOperation::Insert, &[(0, "x1")]),
        row(SALESFORCE, 2, 2, RowOperation::Insert, &[(0, "x2")]),
        row(POSTGRES, 3, 2, RowOperation::Insert, &[(0, "x2")]),
        row(SALESFORCE, 4, 2, RowOperation::Update, &[(1, "unseen")]),
        row(POSTGRES, 5, 2, RowOperation::Delete, &[]),
    ]);
    let writes = core.plan(POSTGRES, &[RecordId(0), RecordId(1)], Offset(0)).unwrap();
    assert_eq!(writes.len(), 2);
    for told in [ours(6, 2, "x1", &writes), ours(7, 3, "x2", &writes), applied(8, &writes)] {
        core.intake(&told).unwrap();
    }
    are(&log, &mut core, &["2", "3"]);
}

/// What we are making is marked as ours, so a user's row is another one, though it got the key that the record had.
#[test]
fn a_users_row_under_the_old_key_of_a_record_that_is_made_anew_is_another_one() {
    let (log, mut core) = told(&[
        row(SALESFORCE, 1, 1, RowOperation::Insert, &[(0, "x1")]),
        row(POSTGRES, 2, 1, RowOperation::Insert, &[(0, "x1")]),
        row(SALESFORCE, 3, 1, RowOperation::Update, &[(1, "unseen")]),
        row(POSTGRES, 4, 1, RowOperation::Delete, &[]),
    ]);
    let writes = core.plan(POSTGRES, &[RecordId(0)], Offset(0)).unwrap();
    assert_eq!(writes.len(), 1);
    let users = row(POSTGRES, 5, 1, RowOperation::Insert, &[(0, "x2")]);
    for told in [users, ours(6, 2, "x1", &writes), applied(7, &writes)] {
        core.intake(&told).unwrap();
    }
    are(&log, &mut core, &["2", "1"]);
}
