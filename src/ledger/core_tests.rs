#![allow(clippy::unwrap_used)]

use super::*;
use crate::causality::apply::Choice;
use crate::change::{Catalog, DeletePolicy, Lsn, Notice, Position, Transaction, TruncatePolicy, Value, Who, WriteKind};
use crate::clock;
use crate::flow::{Batch, Event, Item, Row, RowOperation, Write};
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
    // What Salesforce held is told by an image of a record that has not changed since, which confirms the write too.
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

/// One contact that PostgreSQL has told of with this phone, and that was created in Salesforce as record 1.
fn contact(delete: DeletePolicy, phone: &str) -> (MemoryLog, Core) {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    let mut catalog = catalog(&["Phone", "City"]);
    catalog.mappings[0].delete = delete;
    core.configure(&catalog).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x"), (1, phone)])).unwrap();
    let ticket = plan(&mut core, Side::Salesforce, 0).ticket;
    core.intake(&ours(row(Side::Salesforce, 2, 1, RowOperation::Insert, &[(0, "x"), (1, phone)]), ticket)).unwrap();
    core.commit().unwrap();
    (log, core)
}

/// The write that a record needs.
fn plan(core: &mut Core, side: Side, record: u64) -> Write {
    let cursor = core.tail();
    core.plan(side, &[RecordId(record)], cursor).unwrap().pop().unwrap()
}

/// The event as the echo of a write.
fn ours(mut batch: Batch, ticket: Offset) -> Batch {
    of_row(&mut batch).own = crate::flow::Own::Tickets(ticket, ticket);
    batch
}

fn of_row(batch: &mut Batch) -> &mut Row {
    match &mut batch.events[0].item {
        Item::Row(row) => row,
        other => panic!("{other:?}"),
    }
}

fn current(core: &mut Core, record: u64, field: u16) -> Value {
    core.record(RecordId(record)).unwrap().unwrap().field(FieldId(field)).unwrap().current.clone()
}

/// A write is acknowledged, and the stream passes it without an echo. Returns the records that are to be read.
fn passes_without_an_echo(core: &mut Core, write: &Write) -> Vec<(MappingId, Str)> {
    let answered = |result| Answer { salesforce_id: None, ..answer(Side::Salesforce, write, result) };
    core.answers(&[answered(WriteResult::Done)]).unwrap();
    core.take_partial();
    core.answers(&[answered(WriteResult::Silent)]).unwrap();
    core.take_partial()
}

/// Our delete and a user's undelete may both be in a gap of the stream: silence alone does not tell that the record is gone.
#[test]
fn a_delete_that_was_not_heard_may_have_been_undone() {
    for crash in [false, true] {
        let (log, mut core) = contact(DeletePolicy::UpdateWins, "111");
        let (alive, id) = ([(0, "x"), (1, "111")], testing::salesforce_id(1));
        core.intake(&row(Side::Postgres, 2, 1, RowOperation::Delete, &[])).unwrap();
        let write = plan(&mut core, Side::Salesforce, 0);
        assert_eq!(write.kind, WriteKind::Delete);
        // What the gap was about is read, and is as it was before the delete.
        core.intake(&row(Side::Salesforce, 9, 1, RowOperation::Image, &alive)).unwrap();
        assert_eq!(passes_without_an_echo(&mut core, &write), [(MappingId(0), id.clone())]);
        core.commit().unwrap();
        if crash {
            core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
            let open = core.open_writes(Side::Salesforce).unwrap();
            assert_eq!(
                open.iter().map(|(w, acknowledged)| (w.ticket, *acknowledged)).collect::<Vec<_>>(),
                [(write.ticket, true)]
            );
            assert_eq!(passes_without_an_echo(&mut core, &write), [(MappingId(0), id)]);
        }
        core.intake(&row(Side::Salesforce, 9, 1, RowOperation::Reread, &alive)).unwrap();
        assert!(!core.is_open(Side::Salesforce, write.ticket).unwrap());
        let state = core.record(RecordId(0)).unwrap().unwrap();
        assert!(state.exists() && state.exists_at(Side::Salesforce), "crash {crash}");
        assert_eq!(plan(&mut core, Side::Postgres, 0).kind, WriteKind::Create);
        core.commit().unwrap();
        sound(&log);
    }
}

/// An edit over our write, whose echo was in a gap, sets the value that the log takes for held already.
#[test]
fn an_edit_over_a_write_that_was_not_heard_is_an_edit() {
    let (log, mut core) = contact(DeletePolicy::UpdateWins, "111");
    core.intake(&row(Side::Postgres, 2, 1, RowOperation::Update, &[(1, "222")])).unwrap();
    let write = plan(&mut core, Side::Salesforce, 0);
    let edited = [(1, "111")];
    core.intake(&row(Side::Salesforce, 9, 1, RowOperation::Image, &[(0, "x"), (1, "111")])).unwrap();
    core.intake(&row(Side::Salesforce, 9, 1, RowOperation::Update, &edited)).unwrap();
    assert_eq!(passes_without_an_echo(&mut core, &write).len(), 1);
    core.intake(&row(Side::Salesforce, 9, 1, RowOperation::Reread, &[(0, "x"), (1, "111")])).unwrap();
    assert_eq!(current(&mut core, 0, 1), Value::text("111"));
    assert_eq!(plan(&mut core, Side::Postgres, 0).values[0].value, Value::text("111"));
    core.commit().unwrap();
    let decided = crate::audit::Lens::new(&log).unwrap().conflicts(true, true).unwrap();
    assert!(decided.is_empty(), "its author had seen what was written: {decided:?}");
    sound(&log);
}

/// A write that made no difference closes at once where the stream could tell everything, else when its record was read.
#[test]
fn a_write_without_an_echo_closes_in_time() {
    let (log, mut core) = contact(DeletePolicy::UpdateWins, "111");
    for (at, phone, unheard) in [(2, "222", false), (3, "333", true)] {
        core.intake(&row(Side::Postgres, at, 1, RowOperation::Update, &[(1, phone)])).unwrap();
        let write = plan(&mut core, Side::Salesforce, 0);
        let held = core.record(RecordId(0)).unwrap().unwrap().held_value(Side::Salesforce, FieldId(1)).to_string();
        let read = |operation, phone| row(Side::Salesforce, 2, 1, operation, &[(0, "x"), (1, phone)]);
        if unheard {
            core.intake(&read(RowOperation::Image, &held)).unwrap();
        }
        assert_eq!(passes_without_an_echo(&mut core, &write).len(), usize::from(unheard));
        assert_eq!(core.is_open(Side::Salesforce, write.ticket).unwrap(), unheard);
        // One that was read when the sides were joined may be from before.
        core.intake(&read(RowOperation::Backfill, &held)).unwrap();
        assert_eq!(core.is_open(Side::Salesforce, write.ticket).unwrap(), unheard);
        if unheard {
            core.intake(&read(RowOperation::Reread, phone)).unwrap();
        }
        assert!(!core.is_open(Side::Salesforce, write.ticket).unwrap());
        assert!(core.plan(Side::Salesforce, &[RecordId(0)], Offset(0)).unwrap().is_empty());
    }
    core.commit().unwrap();
    sound(&log);
}

/// A restored record is told whole. What was read of it before it was deleted must not fill in what is empty by now.
#[test]
fn what_a_restored_record_holds_empty_is_told() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x")])).unwrap();
    let mut restored = row(Side::Salesforce, 7, 1, RowOperation::Undelete, &[(0, "x"), (1, "")]);
    of_row(&mut restored).fields[1].1 = Value::Null;
    core.intake(&restored).unwrap();
    core.intake(&row(Side::Salesforce, 2, 1, RowOperation::Backfill, &[(0, "x"), (1, "old")])).unwrap();
    assert_eq!(core.record(RecordId(0)).unwrap().unwrap().held_value(Side::Salesforce, FieldId(1)), &Value::Null);
    core.commit().unwrap();
    sound(&log);
}

/// Deleted and made anew by a repeated request within one second: what is read of the new record is not out of date.
#[test]
fn a_record_that_was_made_anew_in_the_second_of_its_delete_is_taken_in() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(1, "111")])).unwrap();
    let write = plan(&mut core, Side::Salesforce, 0);
    let made = [(0, write.external_id.clone().unwrap()), (1, "111".into())];
    let made: Vec<(u16, &str)> = made.iter().map(|(field, value)| (*field, value.as_str())).collect();
    core.answers(&[answer(Side::Salesforce, &write, WriteResult::Done)]).unwrap();
    core.intake(&ours(row(Side::Salesforce, 31, 1, RowOperation::Insert, &made), write.ticket)).unwrap();
    core.intake(&row(Side::Salesforce, 55, 1, RowOperation::Delete, &[])).unwrap();
    core.intake(&row(Side::Salesforce, 55, 2, RowOperation::Image, &made)).unwrap();
    let state = core.record(RecordId(0)).unwrap().unwrap();
    assert!(state.exists_at(Side::Salesforce));
    assert_eq!(state.salesforce_id, Some(testing::salesforce_id(2)));
    core.commit().unwrap();
    sound(&log);
}

/// A row is written with the Salesforce id of a record that is deleted, made anew under another id, and restored before the row
/// is told: it is the restored record's row then, and the one made anew has none yet.
#[test]
fn a_row_made_with_an_id_that_went_to_another_record_is_that_records() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    let mut catalog = catalog(&["Phone", "City"]);
    catalog.mappings[0].delete = DeletePolicy::UpdateWins;
    // What Salesforce sets there is refused, so its delete has not seen what stands.
    catalog.mappings[0].fields[1].owner = Some(Side::Postgres);
    core.configure(&catalog).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    let told = [(1, "111"), (2, "Bonn")];
    core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &told)).unwrap();
    let first = plan(&mut core, Side::Postgres, 0);
    core.intake(&row(Side::Salesforce, 2, 1, RowOperation::Delete, &[])).unwrap();
    let anew = plan(&mut core, Side::Salesforce, 0);
    let made = [(0, anew.external_id.as_deref().unwrap()), (2, "Bonn")];
    core.intake(&ours(row(Side::Salesforce, 3, 3, RowOperation::Insert, &made), anew.ticket)).unwrap();
    core.intake(&row(Side::Salesforce, 4, 1, RowOperation::Undelete, &told)).unwrap();
    core.intake(&row(Side::Salesforce, 5, 1, RowOperation::Update, &[(2, "Kiel")])).unwrap();
    let second = plan(&mut core, Side::Postgres, 1);
    let mut inserted = ours(row(Side::Postgres, 9, 1, RowOperation::Insert, &[(2, "Bonn")]), first.ticket);
    of_row(&mut inserted).salesforce_id = Some(testing::salesforce_id(1));
    core.intake(&inserted).unwrap();
    let close = |applied, skipped| Item::Applied { applied, skipped, refused: Vec::new() };
    core.intake(&batch(Side::Postgres, 10, close(vec![first.ticket], vec![]))).unwrap();
    core.intake(&batch(Side::Postgres, 11, close(vec![], vec![second.ticket]))).unwrap();
    let key = core.record(RecordId(1)).unwrap().unwrap().key.clone();
    assert_eq!(key, of_row(&mut inserted).key);
    // Kiel was not known to whoever wrote Bonn, and is not replaced by it.
    assert_eq!(current(&mut core, 1, 2), Value::text("Kiel"));
    assert_eq!(plan(&mut core, Side::Postgres, 1).kind, WriteKind::Update);
    assert_eq!(plan(&mut core, Side::Postgres, 0).kind, WriteKind::Create);
    core.commit().unwrap();
    sound(&log);
}

/// The record that is read to find out may have been deleted and made anew meanwhile.
#[test]
fn a_write_to_a_record_that_was_replaced_since_closes_too() {
    let (log, mut core) = contact(DeletePolicy::UpdateWins, "111");
    core.intake(&row(Side::Postgres, 2, 1, RowOperation::Update, &[(1, "222")])).unwrap();
    let write = plan(&mut core, Side::Salesforce, 0);
    core.intake(&row(Side::Salesforce, 2, 1, RowOperation::Image, &[(0, "x"), (1, "111")])).unwrap();
    assert_eq!(passes_without_an_echo(&mut core, &write).len(), 1);
    core.intake(&row(Side::Salesforce, 5, 1, RowOperation::Delete, &[])).unwrap();
    core.intake(&row(Side::Salesforce, 6, 2, RowOperation::Insert, &[(0, "x"), (1, "333")])).unwrap();
    core.intake(&row(Side::Salesforce, 5, 1, RowOperation::Missing, &[])).unwrap();
    assert!(!core.is_open(Side::Salesforce, write.ticket).unwrap());
    let state = core.record(RecordId(0)).unwrap().unwrap();
    assert_eq!(state.held_value(Side::Salesforce, FieldId(1)), &Value::text("333"));
    core.commit().unwrap();
    sound(&log);
}

/// While a row is being created in Salesforce, somebody gives its external id to a record that has another row: they stay two.
#[test]
fn an_external_id_that_was_given_to_another_record_is_a_dead_letter() {
    for told_first in [false, true] {
        let (log, mut core) = contact(DeletePolicy::UpdateWins, "111");
        core.intake(&row(Side::Postgres, 3, 2, RowOperation::Insert, &[(0, "y"), (1, "222")])).unwrap();
        let write = plan(&mut core, Side::Salesforce, 1);
        let given = row(Side::Salesforce, 5, 1, RowOperation::Update, &[(0, "y")]);
        let written = ours(row(Side::Salesforce, 6, 1, RowOperation::Update, &[(1, "222")]), write.ticket);
        let events = [given, written];
        let answered = Answer {
            salesforce_id: Some(testing::salesforce_id(1)),
            ..answer(Side::Salesforce, &write, WriteResult::Done)
        };
        if told_first {
            assert!(events.iter().all(|event| core.intake(event).unwrap() == 0));
        }
        core.answers(std::slice::from_ref(&answered)).unwrap();
        if !told_first {
            assert!(events.iter().all(|event| core.intake(event).unwrap() == 0));
        }
        core.commit().unwrap();
        let ids: Vec<_> = [0, 1].map(|n| core.record(RecordId(n)).unwrap().unwrap().salesforce_id.clone()).into();
        assert_eq!(ids, [Some(testing::salesforce_id(1)), None], "told first: {told_first}");
        // What the write did is the other record's change.
        assert_eq!(current(&mut core, 0, 1), Value::text("222"));
        let dead = crate::audit::Lens::new(&log).unwrap().dead_letters().unwrap();
        assert_eq!(dead.len(), 1);
        assert_eq!((dead[0].code.as_str(), dead[0].record), ("TIDELOCK_DUPLICATE", RecordId(1)));
        assert!(core.plan(Side::Salesforce, &[RecordId(1)], Offset(0)).unwrap().is_empty());
        // As advised.
        core.intake(&row(Side::Postgres, 7, 2, RowOperation::Update, &[(0, "z")])).unwrap();
        assert_eq!(plan(&mut core, Side::Salesforce, 1).external_id.as_deref(), Some("z"));
        core.commit().unwrap();
        sound(&log);
    }
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
