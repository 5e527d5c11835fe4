#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::change::{Body, ChangeOrigin, Offset, RecordId, WriteResult};
use crate::clock;
use crate::flow::RowOperation;
use crate::ledger::testing::{catalog, row};
use crate::log::{ChangeLog, MemoryLog, ReadLimit};

fn notices(log: &MemoryLog, from: Offset) -> Vec<Notice> {
    let page = log.read(from, ReadLimit::entries(1_000)).unwrap();
    let bodies = page.entries().map(|entry| entry.unwrap().1.body);
    bodies
        .filter_map(|body| match body {
            Body::Notice(notice) => Some(notice),
            _ => None,
        })
        .collect()
}

fn backfill(side: Side, after: &str, finished: bool) -> Notice {
    Notice::Backfill { side, mapping: MappingId(0), rows: 0, after: after.into(), finished }
}

/// That the rows are in doubt is durable before the slot is made anew, and stays so until another stream has taken the place.
#[test]
fn a_lost_stream_that_was_not_replaced_yet_is_known_as_such() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    take_up(&mut core, Side::Postgres, "p").unwrap();
    core.notice(backfill(Side::Postgres, "", true)).unwrap();
    assert!(!core.meta().is_doubted(Side::Postgres));
    doubt(&mut core, Side::Postgres, "it went back", Some(Lsn(7))).unwrap();
    core.commit().unwrap();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    assert!(core.meta().is_doubted(Side::Postgres) && !core.meta().is_doubted(Side::Salesforce));
    let opened = replace_lost(&mut core, Side::Postgres, "p").unwrap();
    assert_eq!((opened.stream.0, opened.position), (1, None));
    assert!(!core.meta().is_doubted(Side::Postgres));
    // Lost once more before the rows were compared: what the first loss left in doubt still is.
    doubt(&mut core, Side::Postgres, "it is gone", None).unwrap();
    core.commit().unwrap();
    let progress = core.meta().backfill(Side::Postgres, MappingId(0)).unwrap();
    let reconcile = progress.reconciling().unwrap();
    assert_eq!((reconcile.rewound_to, reconcile.cause.as_str()), (Some(Lsn(7)), "it is gone"));
    assert!(BackfillProgress::is_sweep(&progress.after) && core.meta().is_doubted(Side::Postgres));
}

/// That a stream is another one and what follows from it are one append: a crash cannot come in between.
#[test]
fn a_stream_that_is_replaced_is_read_again_as_a_whole() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    take_up(&mut core, Side::Postgres, "p").unwrap();
    take_up(&mut core, Side::Salesforce, "s").unwrap();
    for side in Side::BOTH {
        core.notice(backfill(side, "", true)).unwrap();
    }
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    core.commit().unwrap();
    let write = core.plan(Side::Postgres, &[RecordId(0)], Offset(0)).unwrap().pop().unwrap();
    core.commit().unwrap();
    assert_eq!(take_up(&mut core, Side::Postgres, "p").unwrap().replaces, None);
    core.commit().unwrap();
    let tail = core.tail();
    assert_eq!(core.open_writes(Side::Postgres).unwrap().len(), 1);

    let opened = take_up(&mut core, Side::Postgres, "another").unwrap();
    assert_eq!(opened.replaces.as_deref(), Some("p"));
    take_up(&mut core, Side::Salesforce, "another").unwrap();
    core.commit().unwrap();
    let told = notices(&log, tail);
    assert_eq!(told.iter().filter(|n| matches!(n, Notice::Gap { .. })).count(), 2, "{told:?}");
    assert!(told.contains(&backfill(Side::Postgres, &BackfillProgress::sweep(), false)), "{told:?}");
    assert!(told.contains(&backfill(Side::Salesforce, "sweep:", false)), "deletes are told by a sweep alone: {told:?}");
    // The message that would have closed the write was in the stream that is gone.
    assert!(core.open_writes(Side::Postgres).unwrap().is_empty());
    let page = log.read(tail, ReadLimit::entries(100)).unwrap();
    let given_up = page.entries().map(|e| e.unwrap().1.body).any(|body| {
        matches!(body, Body::Outcome(o) if o.ticket == write.ticket && matches!(o.result, WriteResult::Abandoned { .. }))
    });
    assert!(given_up);
    assert_eq!(core.plan(Side::Postgres, &[RecordId(0)], Offset(0)).unwrap().len(), 1, "it is planned anew");
}

/// The stream goes on, but has left something out: what the rows show is an edit like any other, and not what is joined at first.
#[test]
fn rows_that_the_stream_left_out_are_compared() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    take_up(&mut core, Side::Postgres, "p").unwrap();
    take_up(&mut core, Side::Salesforce, "s").unwrap();
    for side in Side::BOTH {
        core.notice(backfill(side, "", true)).unwrap();
    }
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    doubt_rows(&mut core, Side::Postgres, MappingId(0), &"left out".into(), None, None).unwrap();
    core.commit().unwrap();
    assert!(!core.meta().is_doubted(Side::Postgres), "the stream is the same");
    let tail = core.tail();
    core.intake(&row(Side::Postgres, 2, 1, RowOperation::Backfill, &[(0, "x"), (1, "unseen")])).unwrap();
    core.commit().unwrap();
    let page = log.read(tail, ReadLimit::entries(100)).unwrap();
    let changes: Vec<_> = page
        .entries()
        .filter_map(|entry| match entry.unwrap().1.body {
            Body::Change(change) => Some((change.origin, change.source.who.application)),
            _ => None,
        })
        .collect();
    assert_eq!(changes, [(ChangeOrigin::Repair, "tidelock reconcile: left out".into())]);
    // What an earlier loss has left in doubt still is.
    doubt(&mut core, Side::Postgres, "it went back", Some(Lsn(7))).unwrap();
    doubt_rows(&mut core, Side::Postgres, MappingId(0), &"left out".into(), None, None).unwrap();
    core.commit().unwrap();
    let reconcile = core.meta().reconciling(Side::Postgres, MappingId(0)).unwrap();
    assert_eq!((reconcile.lost, reconcile.rewound_to), (Some(StreamId(0)), Some(Lsn(7))));
    assert!(core.meta().is_doubted(Side::Postgres));
}
