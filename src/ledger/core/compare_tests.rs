#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::causality::RecordState;
use crate::change::{Lsn, MappingId, Notice, StreamId, Value};
use crate::clock;
use crate::ledger::testing::{catalog, row};
use crate::ledger::{BackfillProgress, verify};
use crate::log::{ChangeLog, MemoryLog, ReadLimit};

const MAPPING: MappingId = MappingId(0);
const PHONE: u16 = 1;

struct World {
    log: MemoryLog,
    core: Core,
    at: u64,
}

impl World {
    /// A link with both sides' rows read.
    fn new() -> Self {
        let log = MemoryLog::new();
        let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
        core.configure(&catalog(&["Phone"])).unwrap();
        core.open_stream(Side::Postgres, "p").unwrap();
        core.open_stream(Side::Salesforce, "s").unwrap();
        for side in Side::BOTH {
            let after = Str::default();
            core.notice(Notice::Backfill { side, mapping: MAPPING, rows: 0, after, finished: true }).unwrap();
        }
        Self { log, core, at: 0 }
    }

    /// A side tells something of a record at the next place of its stream: 10, 20, ...
    fn tell(&mut self, side: Side, n: u64, operation: RowOperation, phone: &str) {
        self.at += 10;
        let name = format!("x{n}");
        let fields = [(0, name.as_str()), (PHONE, phone)];
        let fields = if matches!(operation, RowOperation::Delete | RowOperation::Missing) { &[][..] } else { &fields };
        self.core.intake(&row(side, self.at, n, operation, fields)).unwrap();
        self.core.commit().unwrap();
    }

    /// What a side needs is written there, and comes back.
    fn write(&mut self, side: Side) {
        let records: Vec<RecordId> = (0..self.core.meta().next_record.0).map(RecordId).collect();
        for write in self.core.plan(side, &records, Offset(0)).unwrap() {
            self.at += 10;
            let item = Item::Applied { applied: vec![write.ticket], skipped: vec![], refused: vec![] };
            self.core.intake(&crate::ledger::testing::batch(side, self.at, item)).unwrap();
        }
        self.core.commit().unwrap();
    }

    /// PostgreSQL's rows are compared from here on.
    fn doubt(&mut self, rewound_to: Option<u64>) {
        let (side, mapping, after) = (Side::Postgres, MAPPING, Str::default());
        self.core.notice(Notice::Backfill { side, mapping, rows: 0, after, finished: false }).unwrap();
        let (lost, rewound_to) = (Some(StreamId(0)), rewound_to.map(Lsn));
        self.core.notice(Notice::Reconcile { side, mapping, cause: "it was lost".into(), lost, rewound_to }).unwrap();
        self.core.commit().unwrap();
    }

    fn compared(&mut self, rows: u64) -> BackfillProgress {
        let (side, mapping, after) = (Side::Postgres, MAPPING, Str::default());
        self.core.notice(Notice::Backfill { side, mapping, rows, after, finished: true }).unwrap();
        self.core.commit().unwrap();
        self.core.meta().backfill(side, mapping).unwrap().clone()
    }

    fn state(&mut self, record: u64) -> RecordState {
        self.core.record(RecordId(record)).unwrap().unwrap().clone()
    }

    fn stands(&mut self, record: u64) -> Value {
        self.state(record).field(crate::change::FieldId(PHONE)).unwrap().current.clone()
    }

    fn entries(&self) -> Vec<Body> {
        let page = self.log.read(Offset(0), ReadLimit::entries(1_000)).unwrap();
        page.entries().map(|entry| entry.unwrap().1.body).collect()
    }

    fn sound(&self) {
        let report = verify::verify(&self.log, &mut |_, _| {}).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        verify::rebuild(&self.log, &mut |_, _| {}).unwrap();
        let report = verify::verify(&self.log, &mut |_, _| {}).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}

/// Written only when it is known what is there, and each difference says why it was found.
#[test]
fn what_was_done_while_the_stream_was_lost_is_taken_in() {
    let mut world = World::new();
    for n in 1..=3 {
        world.tell(Side::Postgres, n, RowOperation::Insert, "1");
    }
    world.tell(Side::Salesforce, 4, RowOperation::Insert, "1");
    world.write(Side::Postgres);
    world.doubt(None);
    assert!(world.core.plan(Side::Postgres, &[RecordId(3)], Offset(0)).unwrap().is_empty());
    world.tell(Side::Postgres, 3, RowOperation::Missing, "");
    world.tell(Side::Postgres, 1, RowOperation::Backfill, "1");
    world.tell(Side::Postgres, 2, RowOperation::Backfill, "edited");
    world.tell(Side::Salesforce, 5, RowOperation::Insert, "1");
    assert!(world.core.plan(Side::Postgres, &[RecordId(4)], Offset(0)).unwrap().is_empty());
    assert_eq!(world.core.take_held_back(), [RecordId(4)]);
    let done = world.compared(2);
    let reconcile = done.reconcile.unwrap();
    assert_eq!((reconcile.differing, reconcile.missing, reconcile.finished), (1, 1, true));
    assert_eq!(world.core.plan(Side::Postgres, &[RecordId(4)], Offset(0)).unwrap().len(), 1);
    world.core.commit().unwrap();
    assert_eq!((world.stands(1), world.state(2).exists()), (Value::text("edited"), false));
    let why =
        |body: &Body| matches!(body, Body::Change(c) if c.source.who.application == "tidelock reconcile: it was lost");
    let repaired = world.entries().into_iter().filter(why);
    let origins: Vec<_> =
        repaired.filter_map(|b| if let Body::Change(c) = b { Some(c.origin) } else { None }).collect();
    assert_eq!(origins, [ChangeOrigin::Repair, ChangeOrigin::Repair]);
    world.sound();
}

/// The side's older values take nothing away; an edit made after it went back is in conflict with what was lost there.
#[test]
fn a_side_that_went_back_is_written_what_it_lost() {
    let mut world = World::new();
    for n in 1..=4 {
        world.tell(Side::Postgres, n, RowOperation::Insert, "1");
    }
    world.write(Side::Salesforce);
    let backup = world.at;
    for n in 1..=2 {
        world.tell(Side::Postgres, n, RowOperation::Update, "2");
    }
    world.tell(Side::Postgres, 5, RowOperation::Insert, "born");
    world.tell(Side::Postgres, 4, RowOperation::Delete, "");
    world.write(Side::Salesforce);
    world.doubt(Some(backup));
    // As it was; edited since; not changed in between and edited since; there again; and another row with the key of one that
    // is not there any more.
    world.tell(Side::Postgres, 1, RowOperation::Backfill, "1");
    world.tell(Side::Postgres, 2, RowOperation::Backfill, "edited");
    world.tell(Side::Postgres, 3, RowOperation::Backfill, "edited");
    world.tell(Side::Postgres, 4, RowOperation::Backfill, "1");
    world.at += 10;
    let other = row(Side::Postgres, world.at, 5, RowOperation::Backfill, &[(0, "other"), (PHONE, "7")]);
    world.core.intake(&other).unwrap();
    world.core.commit().unwrap();
    let reconcile = world.compared(5).reconcile.unwrap();
    assert_eq!(reconcile.differing + reconcile.missing, 6);

    assert_eq!(world.stands(0), Value::text("2"));
    assert_eq!(world.state(0).held_value(Side::Postgres, crate::change::FieldId(PHONE)), &Value::text("1"));
    let decided: Vec<RecordId> =
        world.entries().iter().filter_map(|b| if let Body::Decision(d) = b { Some(d.record) } else { None }).collect();
    assert_eq!(decided, [RecordId(1)], "only here two edits had not seen each other");
    assert_eq!(world.stands(2), Value::text("edited"));
    assert!(!world.state(3).exists() && world.state(3).exists_at(Side::Postgres), "it is deleted again");
    assert!(world.state(4).exists() && !world.state(4).exists_at(Side::Postgres), "it is made again");
    assert_eq!((world.stands(4), world.stands(5)), (Value::text("born"), Value::text("7")));
    let records: Vec<RecordId> = (0..6).map(RecordId).collect();
    let writes = world.core.plan(Side::Postgres, &records, Offset(0)).unwrap();
    let written: Vec<RecordId> = writes.iter().map(|write| write.record).collect();
    assert!([0, 3, 4].iter().all(|n| written.contains(&RecordId(*n))) && !written.contains(&RecordId(2)), "{writes:?}");
    world.core.commit().unwrap();
    world.sound();
}

/// It may be there again under another key before the rows are compared.
#[test]
fn a_row_with_the_external_id_of_one_that_was_lost_is_that_record() {
    let mut world = World::new();
    world.tell(Side::Postgres, 1, RowOperation::Insert, "1");
    world.write(Side::Salesforce);
    world.doubt(Some(0));
    world.at += 10;
    let again = row(Side::Postgres, world.at, 9, RowOperation::Insert, &[(0, "x1"), (PHONE, "2")]);
    world.core.intake(&again).unwrap();
    world.core.commit().unwrap();
    assert_eq!(world.core.meta().next_record, RecordId(1));
    let state = world.state(0);
    assert!(state.exists_at(Side::Postgres) && state.key.is_some_and(|key| key.0 == "9"));
    world.sound();
}

/// What the log knows by an update alone was there before it heard of it, whatever else the row holds.
#[test]
fn a_row_that_was_known_in_part_is_no_other_one() {
    let mut world = World::new();
    world.at += 10;
    world.core.intake(&row(Side::Postgres, world.at, 1, RowOperation::Update, &[(PHONE, "1")])).unwrap();
    assert!(world.state(0).partial);
    world.doubt(Some(0));
    world.tell(Side::Postgres, 1, RowOperation::Backfill, "2");
    let state = world.state(0);
    assert!(state.exists_at(Side::Postgres) && !state.partial && world.core.meta().next_record == RecordId(1));
    world.sound();
}

/// Nobody can tell the rest of such a row once the server does not have it any more: what is known of it is not forgotten.
#[test]
fn a_row_that_was_known_in_part_and_is_gone_is_made_again_as_it_is_known() {
    let mut world = World::new();
    world.at += 10;
    world.core.intake(&row(Side::Postgres, world.at, 1, RowOperation::Update, &[(PHONE, "1")])).unwrap();
    assert!(world.state(0).partial);
    world.doubt(Some(0));
    world.tell(Side::Postgres, 1, RowOperation::Missing, "");
    let state = world.state(0);
    assert!(state.exists() && !state.exists_at(Side::Postgres) && !state.partial, "{state:?}");
    let writes = world.core.plan(Side::Salesforce, &[RecordId(0)], Offset(0)).unwrap();
    assert_eq!(writes.len(), 1);
    world.core.commit().unwrap();
    world.sound();
}
