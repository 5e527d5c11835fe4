#![allow(clippy::unwrap_used)]

use super::*;
use crate::change::{Lsn, Transaction, TruncatePolicy, Who};
use crate::clock;
use crate::log::memory::MemoryLog;

/// The slot is acknowledged up to the last place of a batch, so the log must know that place, whatever the event says.
#[test]
fn a_batch_of_a_backfill_alone_has_a_place_in_the_stream() {
    let mut core = Core::open(Arc::new(MemoryLog::new()), clock::system()).unwrap();
    let stream = core.open_stream(Side::Postgres, "a slot").unwrap().stream;
    let position = Position::Postgres { stream, commit_lsn: Lsn(500), index: 3 };
    let notice = Notice::Backfill {
        side: Side::Postgres,
        mapping: MappingId(0),
        rows: 0,
        after: Str::default(),
        finished: true,
    };
    let event = Event {
        position: position.clone(),
        transaction: Transaction { id: "9".into(), index: 3, last: true },
        committed_at: 1,
        who: Who::default(),
        item: Item::Notice(notice),
    };
    core.intake(&Batch { side: Side::Postgres, events: vec![event] }).unwrap();
    core.commit().unwrap();
    assert_eq!(core.meta().positions[Side::Postgres.index()], Some(position));
}

use crate::ledger::testing::{self, batch, catalog, row};

/// A core with a contact that PostgreSQL has told of, and one that Salesforce has, each written to the other side.
fn with_tickets() -> (MemoryLog, Core, [Write; 2]) {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    core.intake(&row(Side::Postgres, 1, 2, RowOperation::Insert, &[(0, "y"), (1, "222")])).unwrap();
    core.commit().unwrap();
    let records = [RecordId(0), RecordId(1)];
    let mut planned = |side| core.plan(side, &records, Offset(0)).unwrap().pop().unwrap();
    let writes = [planned(Side::Postgres), planned(Side::Salesforce)];
    core.commit().unwrap();
    (log, core, writes)
}

fn answer(side: Side, write: &Write, result: WriteResult) -> Answer {
    let salesforce_id = (side == Side::Salesforce).then(|| testing::salesforce_id(2));
    Answer { ticket: write.ticket, record: write.record, side, result, salesforce_id }
}

fn refusal() -> WriteResult {
    WriteResult::Refused { code: "NO".into(), message: "no".into() }
}

/// What a removed mapping's writes still hear must not end the ledger: nothing about them can be folded any more.
#[test]
fn what_a_removed_mapping_still_hears_is_passed_over() {
    let (log, mut core, [to_postgres, to_salesforce]) = with_tickets();
    core.configure(&Catalog { next_mapping: MappingId(1), ..Catalog::default() }).unwrap();
    core.commit().unwrap();
    let tail = core.tail();
    for (applied, skipped) in [(vec![to_postgres.ticket], vec![]), (vec![], vec![to_postgres.ticket])] {
        let refused = vec![(to_postgres.ticket, "42501".into(), "no".into())];
        core.intake(&batch(Side::Postgres, 2, Item::Applied { applied, skipped, refused })).unwrap();
    }
    for result in [WriteResult::Done, WriteResult::Silent, refusal()] {
        core.answers(&[answer(Side::Salesforce, &to_salesforce, result)]).unwrap();
    }
    core.abandon_open(Side::Postgres, "gone").unwrap();
    core.commit().unwrap();
    // All that was noted is how far the stream has been read.
    let entries: Vec<_> = log.read(tail, ReadLimit::entries(10)).unwrap().entries().map(Result::unwrap).collect();
    assert!(entries.iter().all(|(_, e)| matches!(e.body, Body::Notice(Notice::StreamAt { .. }))), "{entries:?}");
    sound(&log);
}

#[test]
fn a_dead_letter_of_a_removed_mapping_is_not_tried_again() {
    let (log, mut core, [_, to_salesforce]) = with_tickets();
    core.answers(&[answer(Side::Salesforce, &to_salesforce, refusal())]).unwrap();
    core.configure(&Catalog { next_mapping: MappingId(1), ..Catalog::default() }).unwrap();
    for action in [DeadLetterAction::Retry, DeadLetterAction::Discard] {
        let error = core.dead_letter(to_salesforce.ticket, action, "dana").unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration);
        assert!(error.to_string().contains("removed"), "{error}");
    }
    core.commit().unwrap();
    sound(&log);
}

/// The log is proven, and its state can be made anew from its entries.
fn sound(log: &MemoryLog) {
    let report = crate::ledger::verify::verify(log, &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    crate::ledger::verify::rebuild(log, &mut |_, _| {}).unwrap();
    let report = crate::ledger::verify::verify(log, &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// Fields that are mapped later are not written over what a side holds in them until that has been read; then they are merged
/// like rows of two sides that are joined.
#[test]
fn a_later_field_waits_until_both_sides_have_told_it() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    assert!(core.configure(&catalog(&["Phone"])).unwrap().is_empty());
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    let told = |side, finished| Notice::Backfill { side, mapping: MappingId(0), rows: 1, after: "".into(), finished };
    for side in Side::BOTH {
        core.notice(told(side, true)).unwrap();
    }
    assert_eq!(core.configure(&catalog(&["Phone", "Email"])).unwrap(), [MappingId(0)]);
    for side in Side::BOTH {
        core.notice(told(side, false)).unwrap();
    }
    // An edit of another field brings the new one along, and one of Phone goes out without it.
    core.intake(&row(Side::Postgres, 2, 1, RowOperation::Update, &[(0, "x"), (1, "222"), (2, "p")])).unwrap();
    let writes = core.plan(Side::Salesforce, &[RecordId(0)], Offset(0)).unwrap();
    let fields: Vec<FieldId> = writes.iter().flat_map(|w| &w.values).map(|v| v.field).collect();
    assert_eq!(fields, [FieldId(1)]);
    assert_eq!(core.take_held_back(), [RecordId(0)]);
    core.answers(&[answer(Side::Salesforce, &writes[0], WriteResult::Silent)]).unwrap();
    // What Salesforce held is told by an image of a record that has not changed since.
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Image, &[(0, "x"), (1, "222"), (2, "s")])).unwrap();
    core.notice(told(Side::Salesforce, true)).unwrap();
    let state = core.record(RecordId(0)).unwrap().unwrap();
    assert_eq!(state.field(FieldId(2)).unwrap().current, Value::text("s"));
    assert!(core.plan(Side::Salesforce, &[RecordId(0)], Offset(0)).unwrap().is_empty());
    assert!(core.take_held_back().is_empty());
    core.commit().unwrap();
    let entries = log.read(Offset(0), ReadLimit::entries(100)).unwrap();
    let decided = entries.entries().map(Result::unwrap).find_map(|(_, e)| match e.body {
        Body::Decision(decision) => Some(decision.conflict),
        _ => None,
    });
    assert_eq!(decided, Some(crate::change::ConflictKind::InitialMerge));
    sound(&log);
}

/// What a person can choose between is what is there now, not what was there when the conflict was met.
#[test]
fn an_open_conflict_shows_what_can_be_chosen() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    let mut catalog = catalog(&["Phone"]);
    catalog.mappings[0].fields[1].policy = crate::change::Policy::Review;
    core.configure(&catalog).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "s1")])).unwrap();
    core.intake(&row(Side::Postgres, 2, 1, RowOperation::Insert, &[(0, "x"), (1, "p1")])).unwrap();
    core.intake(&row(Side::Postgres, 3, 1, RowOperation::Update, &[(1, "p2")])).unwrap();
    core.intake(&row(Side::Salesforce, 4, 1, RowOperation::Update, &[(1, "s2")])).unwrap();
    core.commit().unwrap();
    let open = crate::audit::Lens::new(&log).unwrap().conflicts(false, true).unwrap();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!((open[0].stands.as_str(), open[0].lost.as_str()), ("s2", "p2"));
    core.resolve(open[0].conflict, &Choice::Side(Side::Postgres), "dana").unwrap();
    assert_eq!(core.record(open[0].record).unwrap().unwrap().field(FieldId(1)).unwrap().current, Value::text("p2"));
}

/// A row of one side may be a row of the other that has not been read yet: it is not made there until all have been.
#[test]
fn nothing_is_created_where_rows_are_read_for_the_first_time() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    let told = |finished| Notice::Backfill {
        side: Side::Salesforce,
        mapping: MappingId(0),
        rows: 0,
        after: "".into(),
        finished,
    };
    core.notice(told(false)).unwrap();
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    core.intake(&row(Side::Postgres, 2, 2, RowOperation::Insert, &[(0, "y"), (1, "222")])).unwrap();
    let records = [RecordId(0), RecordId(1)];
    assert!(core.plan(Side::Salesforce, &records, Offset(0)).unwrap().is_empty());
    assert_eq!(core.take_held_back(), records);
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Backfill, &[(0, "x"), (1, "999")])).unwrap();
    core.notice(told(true)).unwrap();
    let writes = core.plan(Side::Salesforce, &records, Offset(0)).unwrap();
    assert_eq!(writes.iter().map(|w| (w.record, w.kind)).collect::<Vec<_>>(), [(RecordId(1), WriteKind::Create)]);
    core.commit().unwrap();
    sound(&log);
}

/// A record that is looked for and missing is as of its second's beginning.
#[test]
fn an_undelete_in_the_second_of_a_look_that_missed_the_record_is_later() {
    let mut core = Core::open(Arc::new(MemoryLog::new()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    let mut told = |at, operation, fields: &[(u16, &str)]| {
        core.intake(&row(Side::Salesforce, at, 1, operation, fields)).unwrap();
        core.record(RecordId(0)).unwrap().is_some_and(|state| state.exists_at(Side::Salesforce))
    };
    assert!(told(1, RowOperation::Insert, &[(0, "x"), (1, "111")]));
    assert!(!told(3, RowOperation::Missing, &[]));
    assert!(told(3, RowOperation::Undelete, &[(0, "x"), (1, "111")]));
}

/// The ends of a truncated table's rows, a page at a time; whatever happens in between, the rest follows.
#[test]
fn a_truncated_table_is_told_row_by_row_by_its_policy() {
    const ROWS: u64 = 1_200;
    for policy in [TruncatePolicy::Propagate, TruncatePolicy::Ignore] {
        let log = MemoryLog::new();
        let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
        let mut catalog = catalog(&["Phone"]);
        catalog.mappings[0].truncate = policy;
        core.configure(&catalog).unwrap();
        core.open_stream(Side::Postgres, "p").unwrap();
        core.open_stream(Side::Salesforce, "s").unwrap();
        for n in 1..=ROWS {
            core.intake(&row(Side::Postgres, n, n, RowOperation::Insert, &[(0, &format!("x{n}"))])).unwrap();
        }
        core.intake(&row(Side::Postgres, 2_000, 7, RowOperation::Delete, &[])).unwrap();
        core.commit().unwrap();
        let mut truncate = batch(Side::Postgres, 3_000, Item::Truncate { mapping: MappingId(0) });
        if let Position::Postgres { index, .. } = &mut truncate.events[0].position {
            *index = 1;
        }
        let mut offered = 0;
        let mut offer = |core: &mut Core| {
            offered += 1;
            core.intake(&truncate).unwrap();
            core.commit().unwrap();
            core.is_truncating()
        };
        assert!(offer(&mut core));
        // A crash: the source sends the statement again.
        drop(core);
        let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
        while offer(&mut core) {}
        assert_eq!(core.meta().positions[0], Some(truncate.events[0].position.clone()));
        let before = core.tail();
        assert!(!offer(&mut core), "it is a duplicate by now");
        assert_eq!((core.tail(), core.counts.duplicates[0]), (before, 1));
        let records: Vec<RecordId> = (0..ROWS).map(RecordId).collect();
        let (mut gone, mut stands) = (0, 0);
        for record in &records {
            let state = core.record(*record).unwrap().unwrap();
            gone += u64::from(!state.exists_at(Side::Postgres));
            stands += u64::from(state.exists());
        }
        assert_eq!(gone, ROWS);
        assert_eq!(stands, if policy == TruncatePolicy::Ignore { ROWS - 1 } else { 0 });
        let again = core.plan(Side::Postgres, &records, Offset(0)).unwrap();
        assert!(again.iter().all(|write| write.kind == WriteKind::Create));
        assert_eq!(again.len() as u64, stands);
        core.commit().unwrap();
        sound(&log);
    }
}
