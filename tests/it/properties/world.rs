//! The link between two simulated sides: the real state machine over a log in memory, and everything that can go wrong
//! around it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tidelock::causality::apply::Choice;
use tidelock::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, Lsn, MappingDef, MappingId, Notice,
    Offset, Policy, Position, RecordId, Side, Str, StreamId, Transaction, Value, Who, WriteResult,
};
use tidelock::clock::{Clock, Micros};
use tidelock::flow::{Batch, Event, Item, Own, Row, RowOperation, Write, Written};
use tidelock::ledger::{Answer, Core, DeadLetterAction};
use tidelock::log::{MemoryLog, StateRead};

use super::rng::Rng;
use super::sides::{EXTERNAL, FREE, Postgres, SECOND, Said, Salesforce, Told, canonical, key, typed};

/// A clock that stands still until it is moved.
pub(crate) struct Hand(pub(crate) AtomicI64);

impl Clock for Hand {
    fn now(&self) -> Micros {
        self.0.load(Ordering::Relaxed)
    }
}

/// What kind of history this is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    /// Every edit waits until all is quiet.
    pub(crate) calm: bool,
    /// Rows are there before capture begins.
    pub(crate) seeded: bool,
    /// Some events are not told, and what they are about is read again.
    pub(crate) gaps: bool,
    /// Sides refuse some values for a while.
    pub(crate) refusals: bool,
    /// Fields with an owner.
    pub(crate) owners: bool,
    /// The sides' automation changes what we write.
    pub(crate) automation: bool,
    /// What we write to a Salesforce record is copied to others.
    pub(crate) cascades: bool,
    /// Salesforce's marks name no tickets. So nobody can tell a write that landed twice from one that automation changed to
    /// the very values of the write before it.
    pub(crate) anonymous: bool,
    /// Crashes, lost answers, deliveries that come twice.
    pub(crate) faults: bool,
    /// Nothing is written to Salesforce, and what PostgreSQL's users do is undone.
    pub(crate) read_only: bool,
    /// The mapping has no external id, which only a read-only one may lack.
    pub(crate) nameless: bool,
    /// PostgreSQL's stream is lost at times.
    pub(crate) losses: bool,
    /// At times that is because the server went back.
    pub(crate) rewinds: bool,
}

/// An answer on its way to the log.
type Told2 = Answer;

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) shape: Shape,
    pub(crate) clock: Arc<Hand>,
    pub(crate) log: MemoryLog,
    pub(crate) core: Core,
    pub(crate) catalog: Catalog,
    pub(crate) postgres: Postgres,
    pub(crate) salesforce: Salesforce,
    /// The next event of each stream to be delivered.
    pub(crate) read: [usize; 2],
    /// The events of each stream that are durable in the log.
    durable: [usize; 2],
    planned: [Vec<Write>; 2],
    flying_postgres: VecDeque<Vec<Write>>,
    /// The last transaction's fate is not known to us.
    uncertain: bool,
    flying_salesforce: VecDeque<(Write, bool)>,
    answers: VecDeque<Told2>,
    /// Acknowledged writes to Salesforce: the ticket, its record, and the length of the stream at that moment.
    unechoed: BTreeMap<Offset, (RecordId, usize)>,
    /// Rows read from Salesforce that are not taken in yet.
    images: VecDeque<(RowOperation, Str, Vec<Value>, Micros)>,
    /// Whether anything was read beside the streams: what they tell later may be part of that.
    pub(crate) imaged: bool,
    /// Whether the copy of Salesforce has begun.
    copying: bool,
    /// PostgreSQL as it was at an earlier moment, and a place that its stream had been read to by then.
    backup: Option<(Postgres, u64)>,
    /// Whether PostgreSQL's rows are still to be compared.
    comparing: bool,
    losses: usize,
    /// The first event of PostgreSQL's stream since it was lost: what came before is told by nobody again.
    begins: usize,
    pub(crate) edits: usize,
    fresh: u64,
    redelivered: u64,
    streams: [StreamId; 2],
    trace: bool,
    /// Tickets already checked by the oracle.
    pub(crate) plans: Vec<(Side, Write)>,
    pub(crate) committed: bool,
}

fn field(id: u16, name: &str, kind: FieldKind, policy: Policy) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: name.to_lowercase(),
        kind,
        policy,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

pub(crate) fn mapping(policies: &[Policy; 5]) -> MappingDef {
    let text = || FieldKind::Text { length: 80 };
    let mut id = field(0, "Id", FieldKind::Id, Policy::SalesforceWins);
    (id.owner, id.createable, id.updateable) = (Some(Side::Salesforce), false, false);
    MappingDef {
        id: MappingId(0),
        name: "contact".into(),
        sobject: "Contact".into(),
        schema: "salesforce".into(),
        table: "contact".into(),
        key_columns: vec!["id".into()],
        fields: vec![
            id,
            field(1, "External_ID__c", text(), policies[0]),
            field(2, "Phone", text(), policies[1]),
            field(3, "City__c", text(), policies[2]),
            field(4, "Amount__c", FieldKind::Number { scale: 2 }, policies[3]),
            field(5, "Due__c", FieldKind::DateTime, policies[4]),
        ],
        next_field: FieldId(6),
        owner: None,
        external_id: Some(FieldId(EXTERNAL as u16)),
        delete: DeletePolicy::UpdateWins,
        truncate: tidelock::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: 0,
    }
}

const POLICIES: [Policy; 4] = [Policy::SalesforceWins, Policy::PostgresWins, Policy::LastWriteWins, Policy::Review];

pub(crate) fn catalog(rng: &mut Rng, shape: Shape) -> Catalog {
    let one = *rng.pick(&POLICIES);
    let mixed = rng.percent(50);
    let policies = std::array::from_fn(|_| if mixed { *rng.pick(&POLICIES) } else { one });
    let mut mapping = mapping(&policies);
    mapping.delete = *rng.pick(&[DeletePolicy::DeleteWins, DeletePolicy::UpdateWins]);
    mapping.initial_merge = *rng.pick(&[InitialMerge::Salesforce, InitialMerge::Postgres, InitialMerge::Review]);
    if shape.owners {
        for n in 0..=rng.below(2) {
            let field = &mut mapping.fields[FREE + n];
            field.owner = Some(*rng.pick(&Side::BOTH));
            field.foreign_edit = *rng.pick(&[ForeignEdit::Revert, ForeignEdit::Ignore, ForeignEdit::Refuse]);
        }
    }
    if shape.read_only {
        mapping.owner = Some(Side::Salesforce);
        for field in &mut mapping.fields {
            field.owner = Some(Side::Salesforce);
            field.foreign_edit = *rng.pick(&[ForeignEdit::Revert, ForeignEdit::Ignore, ForeignEdit::Refuse]);
        }
    }
    if shape.nameless {
        mapping.external_id = None;
    }
    Catalog {
        mappings: vec![mapping],
        next_mapping: MappingId(1),
        system_of_record: *rng.pick(&Side::BOTH),
        tolerance_ms: *rng.pick(&[0, 2_000]),
        external_id_prefix: Str::new("0abc"),
    }
}

impl World {
    pub(crate) fn new(seed: u64, shape: Shape, edits: usize) -> Self {
        let mut rng = Rng::new(seed);
        let catalog = catalog(&mut rng, shape);
        Self::with(rng, shape, edits, catalog)
    }

    pub(crate) fn with(rng: Rng, shape: Shape, edits: usize, catalog: Catalog) -> Self {
        let clock = Arc::new(Hand(AtomicI64::new(1_700_000_000 * SECOND)));
        let log = MemoryLog::new();
        let mut core = Core::open(Arc::new(log.reopen()), Arc::clone(&clock) as _).unwrap();
        core.configure(&catalog).unwrap();
        let streams = Side::BOTH.map(|side| core.open_stream(side, "one").unwrap().stream);
        core.commit().unwrap();
        let def = &catalog.mappings[0];
        let (mut postgres, mut salesforce) = (Postgres::new(def), Salesforce::new(def));
        for common in [&mut postgres.common, &mut salesforce.common] {
            common.strict = shape.refusals;
            common.automations = if shape.automation { 4 } else { 0 };
        }
        salesforce.common.cascades = if shape.cascades { 4 } else { 0 };
        salesforce.common.gaps = if shape.gaps { 3 } else { 0 };
        let mut world = Self {
            rng,
            shape,
            clock,
            log,
            core,
            postgres,
            salesforce,
            catalog,
            read: [0; 2],
            durable: [0; 2],
            planned: [Vec::new(), Vec::new()],
            flying_postgres: VecDeque::new(),
            uncertain: false,
            flying_salesforce: VecDeque::new(),
            answers: VecDeque::new(),
            unechoed: BTreeMap::new(),
            images: VecDeque::new(),
            imaged: false,
            copying: false,
            backup: None,
            comparing: false,
            begins: 0,
            losses: if shape.losses { 3 } else { 0 },
            edits,
            fresh: 0,
            redelivered: 0,
            streams,
            trace: std::env::var("TIDELOCK_TRACE").is_ok(),
            plans: Vec::new(),
            committed: false,
        };
        if shape.seeded {
            world.seed_rows();
        } else {
            for side in Side::BOTH {
                world.copied(side);
            }
        }
        world
    }

    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    pub(crate) fn now(&self) -> Micros {
        self.clock.now()
    }

    fn copied(&mut self, side: Side) {
        let notice = Notice::Backfill { side, mapping: MappingId(0), rows: 0, after: Str::default(), finished: true };
        self.core.notice(notice).unwrap();
    }

    fn values(&mut self, external: Value) -> Vec<Value> {
        let mut values = vec![Value::Null, external];
        for n in FREE..self.catalog.mappings[0].fields.len() {
            self.fresh += 1;
            values.push(typed(&self.catalog.mappings[0].fields[n].kind.clone(), &mut self.rng, self.fresh));
        }
        values
    }

    /// Rows that are there before capture begins, some of them on both sides.
    fn seed_rows(&mut self) {
        let at = self.now() - 3_600 * SECOND;
        for n in 0..=self.rng.below(3) {
            let external = Value::text(format!("x{n}"));
            let (in_postgres, in_salesforce) = match self.rng.below(4) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            if in_postgres {
                let values = self.values(external.clone());
                self.postgres.seed(values, at);
            }
            if in_salesforce {
                let values = self.values(external);
                self.salesforce.seed(values, at);
            }
        }
    }

    // -- users -------------------------------------------------------------------------------------------------------------

    fn external(&mut self) -> Value {
        if self.shape.losses {
            // A row that is made with the name of one that was lost is in its way, and a person has to say which it is.
            self.fresh += 1;
            return if self.rng.percent(50) { Value::text(format!("u{}", self.fresh)) } else { Value::Null };
        }
        if self.rng.percent(50) { Value::text(format!("x{}", self.rng.below(4))) } else { Value::Null }
    }

    fn changes(&mut self) -> Vec<(usize, Value)> {
        let fields = self.catalog.mappings[0].fields.len();
        let mut changes: BTreeMap<usize, Value> = BTreeMap::new();
        for _ in 0..=self.rng.below(3) {
            let field = FREE + self.rng.below(fields - FREE);
            self.fresh += 1;
            let kind = self.catalog.mappings[0].fields[field].kind.clone();
            changes.insert(field, typed(&kind, &mut self.rng, self.fresh));
        }
        changes.into_iter().collect()
    }

    pub(crate) fn edit(&mut self) {
        self.edits -= 1;
        let at = self.now();
        let dice = self.rng.below(100);
        if self.rng.percent(50) {
            let alive: Vec<u64> = self.postgres.rows.keys().copied().collect();
            if alive.is_empty() || (dice < 15 && alive.len() < 4) {
                let external = self.external();
                let values = self.values(external);
                self.trace(|| format!("P insert {values:?}"));
                self.postgres.user_insert(values, at);
            } else if dice < 27 {
                let n = *self.rng.pick(&alive);
                self.trace(|| format!("P delete {n}"));
                self.postgres.user_delete(n, at);
            } else {
                let n = *self.rng.pick(&alive);
                let changes = self.changes();
                // A key that changes while nobody tells of it names another row.
                let rekey = self.rng.percent(5) && !self.shape.losses;
                self.trace(|| format!("P update {n} {changes:?} rekey {rekey}"));
                self.postgres.user_update(n, &changes, rekey, at, &mut self.rng);
            }
        } else {
            let (alive, dead): (Vec<Str>, Vec<Str>) = {
                let split = |want: bool| {
                    self.salesforce.rows.iter().filter(|(_, r)| r.alive == want).map(|(id, _)| id.clone()).collect()
                };
                (split(true), split(false))
            };
            if !dead.is_empty() && dice < 10 {
                let id = self.rng.pick(&dead).clone();
                self.trace(|| format!("S undelete {id}"));
                self.salesforce.user_undelete(&id, at, &mut self.rng);
            } else if alive.is_empty() || (dice < 22 && alive.len() < 4) {
                let external = self.external();
                let values = self.values(external);
                self.trace(|| format!("S insert {values:?}"));
                self.salesforce.user_insert(values, at, &mut self.rng);
            } else if dice < 34 {
                let id = self.rng.pick(&alive).clone();
                if self.salesforce.undeleted.contains(&id) {
                    // Deleted, made anew, restored and deleted again before any of it was seen: the one made anew has been
                    // taken for another record by then, and a person has to say which it is.
                    return;
                }
                self.trace(|| format!("S delete {id}"));
                self.salesforce.user_delete(&id, at, &mut self.rng);
            } else {
                let id = self.rng.pick(&alive).clone();
                let changes = self.changes();
                self.trace(|| format!("S update {id} {changes:?}"));
                self.salesforce.user_update(&id, &changes, at, &mut self.rng);
            }
        }
    }

    // -- capture -----------------------------------------------------------------------------------------------------------

    pub(crate) fn stream(&self, side: Side) -> &[Told] {
        match side {
            Side::Postgres => &self.postgres.common.stream,
            Side::Salesforce => &self.salesforce.common.stream,
        }
    }

    /// The place of an event in the log's words; a delivery under another replay id has its own.
    pub(crate) fn position(&self, side: Side, told: &Told, again: u64) -> Position {
        let stream = self.streams[side.index()];
        match side {
            Side::Postgres => Position::Postgres { stream, commit_lsn: Lsn(told.number), index: told.index },
            Side::Salesforce => {
                let replay_id = Str::from(format!("{:x}.{again:x}", told.number));
                Position::Salesforce { stream, replay_id, index: 0 }
            }
        }
    }

    /// The event's number, from its place.
    pub(crate) fn number(position: &Position) -> (u64, u32) {
        match position {
            Position::Postgres { commit_lsn, index, .. } => (commit_lsn.0, *index),
            Position::Salesforce { replay_id, .. } => {
                (u64::from_str_radix(replay_id.split('.').next().unwrap(), 16).unwrap_or(0), 1)
            }
        }
    }

    fn event(&self, side: Side, told: &Told, again: u64) -> Event {
        let item = match &told.said {
            Said::Row { operation, marked, fields, key, old_key, id, call, .. } => Item::Row(Row {
                mapping: MappingId(0),
                operation: *operation,
                key: key.clone(),
                old_key: old_key.clone(),
                salesforce_id: id.clone(),
                fields: fields.clone(),
                own: match call.filter(|_| side == Side::Postgres || !self.shape.anonymous) {
                    Some((first, last)) => Own::Tickets(first, last),
                    None if *marked => Own::Marked,
                    None => Own::No,
                },
            }),
            Said::Applied { applied, skipped } => {
                Item::Applied { applied: applied.clone(), skipped: skipped.clone(), refused: Vec::new() }
            }
            Said::Gap { id } => Item::Notice(Notice::Gap { side, reason: Str::new("GAP_UPDATE"), scope: id.clone() }),
            Said::Copied => {
                let (mapping, after) = (MappingId(0), Str::default());
                Item::Notice(Notice::Backfill { side, mapping, rows: 0, after, finished: true })
            }
        };
        Event {
            position: self.position(side, told, again),
            transaction: Transaction {
                id: Str::from(format!("t{}", told.number)),
                index: told.index,
                last: side == Side::Postgres && matches!(told.said, Said::Applied { .. }),
            },
            committed_at: told.at,
            who: Who::default(),
            item,
        }
    }

    /// A row as Salesforce holds it now, by its id. What is read beside the stream is read when the second of its stamp is over, as
    /// the reader does it: another edit within that second would not show.
    fn read_again(&self, operation: RowOperation, id: &Str) -> (RowOperation, Str, Vec<Value>, Micros) {
        let row = &self.salesforce.rows[id];
        let stamp = row.at.div_euclid(SECOND) * SECOND;
        if operation == RowOperation::Reread {
            self.clock.0.fetch_max(stamp + SECOND, Ordering::Relaxed);
        }
        let operation = if row.alive { operation } else { RowOperation::Missing };
        (operation, id.clone(), row.values.clone(), stamp)
    }

    fn image_event(&mut self, image: (RowOperation, Str, Vec<Value>, Micros)) -> Event {
        self.imaged = true;
        let (operation, id, values, stamp) = image;
        let fields = if operation == RowOperation::Missing {
            Vec::new()
        } else {
            values.into_iter().enumerate().map(|(n, v)| (FieldId(n as u16), v)).collect()
        };
        Event {
            position: Position::Salesforce { stream: self.streams[1], replay_id: Str::new("rest"), index: 0 },
            transaction: Transaction::default(),
            committed_at: stamp,
            who: Who::default(),
            item: Item::Row(Row {
                mapping: MappingId(0),
                operation,
                key: None,
                old_key: None,
                salesforce_id: Some(id),
                fields,
                own: Own::No,
            }),
        }
    }

    pub(crate) fn read(&mut self, side: Side, most: usize) {
        let from = self.read[side.index()];
        let to = (from + most).min(self.stream(side).len());
        let mut events = Vec::new();
        for n in from..to {
            let told = self.stream(side)[n].clone();
            events.push(self.event(side, &told, 0));
            if let Said::Gap { id } = &told.said {
                // What the stream cannot tell is read from the record as it is by now.
                let image = self.read_again(RowOperation::Image, id);
                events.push(self.image_event(image));
            }
        }
        self.trace(|| format!("read {side} {from}..{to}: {:?}", &self.stream(side)[from..to]));
        self.core.intake(&Batch { side, events }).unwrap();
        self.read[side.index()] = to;
        self.committed = false;
        for (_, id) in self.core.take_partial() {
            let image = self.read_again(RowOperation::Reread, &id);
            self.images.push_back(image);
        }
    }

    /// Events that were delivered before are delivered again.
    fn deliver_again(&mut self, side: Side) {
        let read = self.read[side.index()];
        if read == 0 || (side == Side::Postgres && read == self.begins) {
            return;
        }
        if side == Side::Postgres {
            let n = self.begins + self.rng.below(read - self.begins);
            self.trace(|| format!("resend postgres from {n}"));
            self.read[0] = n;
            return;
        }
        let n = self.rng.below(read);
        // An event that an image had told before left no trace to know it by, so only the last one may come again.
        let n = if self.shape.seeded || self.shape.gaps { read - 1 } else { n };
        self.redelivered += 1;
        let told = self.stream(side)[n].clone();
        if matches!(told.said, Said::Gap { .. }) {
            return;
        }
        self.trace(|| format!("again: {told:?}"));
        let event = self.event(side, &told, self.redelivered);
        self.core.intake(&Batch { side, events: vec![event] }).unwrap();
        self.committed = false;
        self.core.take_partial();
    }

    /// Everything delivered so far comes once more.
    pub(crate) fn deliver_all_again(&mut self, side: Side) {
        let read = self.read[side.index()];
        let mut events = Vec::new();
        for n in 0..read {
            let told = self.stream(side)[n].clone();
            events.push(self.event(side, &told, 1));
        }
        self.core.intake(&Batch { side, events }).unwrap();
        self.committed = false;
    }

    fn take_image(&mut self) {
        if let Some(image) = self.images.pop_front() {
            self.trace(|| format!("image {image:?}"));
            let event = self.image_event(image);
            self.core.intake(&Batch { side: Side::Salesforce, events: vec![event] }).unwrap();
            self.core.take_partial();
            self.committed = false;
            if self.images.is_empty() {
                self.copied(Side::Salesforce);
            }
        }
    }

    /// Both sides are copied: PostgreSQL at a place of its stream, Salesforce by reading that may be late.
    pub(crate) fn backfill(&mut self, side: Side) {
        if side == Side::Postgres {
            let at = self.now();
            self.trace(|| "copy postgres".into());
            self.postgres.copy(at);
        } else {
            let ids: Vec<Str> =
                self.salesforce.rows.iter().filter(|(_, r)| r.alive).map(|(id, _)| id.clone()).collect();
            self.trace(|| format!("copy salesforce {ids:?}"));
            self.copying = true;
            for id in ids {
                let image = self.read_again(RowOperation::Backfill, &id);
                self.images.push_back(image);
            }
        }
    }

    // -- the log -----------------------------------------------------------------------------------------------------------

    pub(crate) fn commit(&mut self) {
        self.core.commit().unwrap();
        self.durable = self.read;
        let [postgres, salesforce] = std::mem::take(&mut self.planned);
        if !postgres.is_empty() {
            self.flying_postgres.push_back(postgres);
        }
        self.flying_salesforce.extend(salesforce.into_iter().map(|w| (w, false)));
        self.committed = true;
    }

    /// The process dies and starts again. What was not committed is gone; requests on the wire may still land.
    pub(crate) fn crash(&mut self) {
        self.trace(|| "crash".into());
        self.log = self.log.reopen();
        self.core = Core::open(Arc::new(self.log.reopen()), Arc::clone(&self.clock) as _).unwrap();
        self.read = self.durable;
        // The source sends from what was acknowledged, which may be earlier than what is durable.
        self.read[0] -= self.rng.below((self.read[0] - self.begins).min(3) + 1);
        self.planned = Default::default();
        self.answers.retain(|answer| answer.side == Side::Postgres);
        // A backfill that was under way is done again.
        if self.shape.seeded {
            self.backfill(Side::Postgres);
        }
        let copied = self.core.meta().backfill(Side::Salesforce, MappingId(0)).is_some_and(|b| b.finished);
        if !self.images.is_empty() || (self.copying && !copied) {
            self.images.clear();
            self.backfill(Side::Salesforce);
        }
        self.unechoed.clear();
        self.adopt();
    }

    /// PostgreSQL's server is copied as it is.
    fn back_up(&mut self) {
        let read = self.durable[0].checked_sub(1).map_or(0, |n| self.postgres.common.stream[n].number);
        let to = if self.rng.percent(50) { read } else { self.postgres.common.number };
        self.trace(|| format!("backup at {to}"));
        self.backup = Some((self.postgres.clone(), to));
    }

    /// PostgreSQL's stream is lost with all that it has not told; perhaps since the server went back to the backup.
    fn lose(&mut self) {
        self.losses -= 1;
        if self.rng.percent(50) {
            self.crash();
        } else {
            self.commit();
        }
        let side = Side::Postgres;
        let mut rewound_to = None;
        if let Some((backup, to)) = self.backup.take().filter(|_| self.rng.percent(70)) {
            self.trace(|| format!("postgres goes back to {to}"));
            self.postgres.go_back(&backup);
            rewound_to = Some(to);
        }
        self.trace(|| "the stream of postgres is lost".into());
        self.postgres.common.stream.truncate(self.durable[0]);
        (self.read[0], self.begins) = (self.durable[0], self.durable[0]);
        self.flying_postgres.clear();
        self.planned[0].clear();
        self.uncertain = true;
        let (mapping, after) = (MappingId(0), Str::default());
        let earlier = self.core.meta().reconciling(side, mapping).and_then(|r| r.rewound_to);
        let rewound_to = earlier.into_iter().chain(rewound_to.map(Lsn)).min();
        let (cause, lost) = (Str::new("lost"), Some(self.streams[0]));
        self.core.notice(Notice::Backfill { side, mapping, rows: 0, after, finished: false }).unwrap();
        self.core.notice(Notice::Reconcile { side, mapping, cause, lost, rewound_to }).unwrap();
        self.streams[0] = self.core.replace_stream(side, "one").unwrap().stream;
        self.core.abandon_open(side, "lost").unwrap();
        self.commit();
        self.comparing = true;
    }

    /// PostgreSQL's rows are read, at a place of its new stream.
    fn compare(&mut self) {
        self.comparing = false;
        let mut known = Vec::new();
        for record in self.records() {
            let state = self.core.record(record).unwrap().filter(|s| s.exists_at(Side::Postgres));
            known.extend(state.and_then(|s| s.key.as_ref()?.0.parse::<u64>().ok()));
        }
        self.trace(|| format!("compare postgres; known are {known:?}"));
        let at = self.now();
        self.postgres.compare(&known, at);
    }

    fn adopt(&mut self) {
        let mut on_the_wire: VecDeque<(Write, bool)> = VecDeque::new();
        for (write, _) in std::mem::take(&mut self.flying_salesforce) {
            if self.rng.percent(40) {
                on_the_wire.push_back((write, true));
            }
        }
        for (write, acknowledged) in self.core.open_writes(Side::Salesforce).unwrap() {
            if acknowledged {
                self.unechoed.insert(write.ticket, (write.record, self.salesforce.common.stream.len()));
            } else {
                on_the_wire.push_back((write, false));
            }
        }
        self.flying_salesforce = on_the_wire;
        self.flying_postgres.clear();
        self.uncertain = true;
        let partial = self.partial();
        self.images.extend(partial);
    }

    /// Records of which only part is known are read again after a restart.
    fn partial(&mut self) -> Vec<(RowOperation, Str, Vec<Value>, Micros)> {
        let mut images = Vec::new();
        for record in self.records() {
            let state = self.core.record(record).unwrap().cloned();
            if let Some(id) = state.filter(|s| s.partial).and_then(|s| s.salesforce_id) {
                images.push(self.read_again(RowOperation::Reread, &id));
            }
        }
        images
    }

    /// Asks PostgreSQL what took effect, and gives the rest back.
    fn resume(&mut self) {
        self.commit_for_replay();
        self.uncertain = false;
        self.flying_postgres.clear();
        let committed = self.postgres.cursor;
        let open = self.core.open_writes(Side::Postgres).unwrap();
        let lost: Vec<Answer> = open
            .into_iter()
            .filter(|(write, _)| committed.is_none_or(|c| write.ticket > c))
            .map(|(write, _)| answer(&write, Side::Postgres, WriteResult::Abandoned { reason: Str::new("lost") }))
            .collect();
        self.trace(|| format!("resume: given back {:?}", lost.iter().map(|a| a.ticket).collect::<Vec<_>>()));
        self.core.answers(&lost).unwrap();
        self.committed = false;
    }

    /// What replay does needs the log as it is stored.
    fn commit_for_replay(&mut self) {
        if !self.committed {
            self.commit();
        }
    }

    pub(crate) fn records(&self) -> Vec<RecordId> {
        (0..self.core.meta().next_record.0).map(RecordId).collect()
    }

    pub(crate) fn plan(&mut self, side: Side, records: &[RecordId]) -> usize {
        if side == Side::Postgres && (self.uncertain || !self.planned[0].is_empty()) {
            return 0;
        }
        let cursor = self.core.tail();
        let writes = self.core.plan(side, records, cursor).unwrap();
        for write in &writes {
            self.trace(|| format!("plan {side} {write:?}"));
            self.plans.push((side, write.clone()));
        }
        self.committed = false;
        let count = writes.len();
        self.planned[side.index()].extend(writes);
        count
    }

    fn land_postgres(&mut self, trouble: bool) {
        let Some(writes) = self.flying_postgres.pop_front() else { return };
        let at = self.now();
        if trouble && self.rng.percent(50) {
            self.trace(|| "postgres transaction rolled back".into());
            self.uncertain = true;
            return;
        }
        let answers = self.postgres.write(&writes, at, &mut self.rng);
        self.trace(|| format!("postgres transaction: {:?}", self.postgres.common.stream.last()));
        if trouble {
            self.trace(|| "answer lost".into());
            self.uncertain = true;
        }
        // The stream tells what was applied and skipped, but not what was refused: that answer is not lost here.
        let told = writes.iter().zip(&answers).filter_map(|(w, a)| Answer::of(w, Side::Postgres, a));
        self.answers.extend(told);
    }

    pub(crate) fn land_salesforce(&mut self, trouble: bool) {
        let Some((write, nobody_listens)) = self.flying_salesforce.pop_front() else { return };
        let at = self.now();
        let written = self.salesforce.write(&write, at, &mut self.rng);
        self.trace(|| format!("salesforce takes {}: {written:?}", write.ticket));
        if nobody_listens {
            return;
        }
        if trouble {
            self.trace(|| "answer lost".into());
            self.flying_salesforce.push_front((write, false));
            return;
        }
        if matches!(written, Written::Done { .. }) {
            self.unechoed.insert(write.ticket, (write.record, self.salesforce.common.stream.len()));
        }
        self.answers.extend(Answer::of(&write, Side::Salesforce, &written));
    }

    fn give_answer(&mut self) {
        if let Some(answer) = self.answers.pop_front() {
            self.trace(|| format!("answer {answer:?}"));
            let refused_by_postgres = answer.side == Side::Postgres;
            self.core.answers(&[answer]).unwrap();
            self.committed = false;
            if refused_by_postgres {
                self.commit();
            }
        }
    }

    /// Closes what was acknowledged and whose stream has been read past that moment.
    fn close_silent(&mut self) -> bool {
        let read = self.read[1];
        let waiting: BTreeSet<Offset> = self.answers.iter().map(|a| a.ticket).collect();
        let silent: Vec<Answer> = self
            .unechoed
            .iter()
            .filter(|(ticket, (_, at))| read >= *at && !waiting.contains(ticket))
            .map(|(ticket, (record, _))| Answer {
                ticket: *ticket,
                record: *record,
                side: Side::Salesforce,
                result: WriteResult::Silent,
                salesforce_id: None,
            })
            .collect();
        for answer in &silent {
            self.unechoed.remove(&answer.ticket);
        }
        self.trace(|| format!("silent {:?}", silent.iter().map(|a| a.ticket).collect::<Vec<_>>()));
        self.core.answers(&silent).unwrap();
        self.committed = false;
        for (_, id) in self.core.take_partial() {
            let image = self.read_again(RowOperation::Reread, &id);
            self.images.push_back(image);
        }
        !silent.is_empty()
    }

    // -- people ------------------------------------------------------------------------------------------------------------

    /// Conflicts that wait for a person.
    pub(crate) fn parked(&mut self) -> Vec<(Offset, FieldId)> {
        let mut parked = Vec::new();
        for record in self.records() {
            if let Some(state) = self.core.record(record).unwrap() {
                parked.extend(state.fields.iter().filter_map(|(f, r)| r.parked.as_ref().map(|p| (p.decision, *f))));
            }
        }
        parked
    }

    pub(crate) fn resolve(&mut self, conflict: Offset, field: FieldId) {
        self.commit_for_replay();
        self.fresh += 1;
        let kind = self.catalog.mappings[0].fields[usize::from(field.0)].kind.clone();
        let choice = match self.rng.below(3) {
            0 => Choice::Side(Side::Postgres),
            1 => Choice::Side(Side::Salesforce),
            _ => {
                let own = typed(&kind, &mut self.rng, self.fresh);
                Choice::Value(canonical(&kind, &own))
            }
        };
        self.trace(|| format!("a person resolves {conflict}: {choice:?}"));
        self.core.resolve(conflict, &choice, "ann").unwrap();
        self.committed = false;
    }

    pub(crate) fn dead_letters(&mut self) -> Vec<Offset> {
        self.commit_for_replay();
        let found = self.log.scan_state(b"d", None, 1_000).unwrap();
        found.iter().map(|(k, _)| Offset(u64::from_be_bytes(k[1..9].try_into().unwrap()))).collect()
    }

    pub(crate) fn dead_letter(&mut self, ticket: Offset, action: DeadLetterAction) {
        self.trace(|| format!("dead letter {ticket}: {action:?}"));
        self.core.dead_letter(ticket, action, "ann").unwrap();
        self.committed = false;
    }

    // -- time --------------------------------------------------------------------------------------------------------------

    fn some_records(&mut self) -> Vec<RecordId> {
        let all = self.records();
        all.into_iter().filter(|_| self.rng.percent(60)).collect()
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        let on = [1_000, 300_000, 900_000, 4_000_000][self.rng.below(4)];
        self.clock.0.fetch_add(on, Ordering::Relaxed);
        let faults = self.shape.faults;
        match self.rng.below(100) {
            0..10 if self.edits > 0 && !self.shape.calm => self.edit(),
            10..40 => {
                let side = *self.rng.pick(&Side::BOTH);
                let most = 1 + self.rng.below(3);
                self.read(side, most);
            }
            40..55 => {
                let side = *self.rng.pick(&Side::BOTH);
                let records = self.some_records();
                self.plan(side, &records);
            }
            55..65 => self.commit(),
            65..75 => {
                let trouble = faults && self.rng.percent(15);
                if self.uncertain { self.resume() } else { self.land_postgres(trouble) }
            }
            75..85 => {
                let trouble = faults && self.rng.percent(20);
                self.land_salesforce(trouble);
            }
            85..90 => self.give_answer(),
            90..93 => drop(self.close_silent()),
            93 if faults => self.crash(),
            94 if faults => {
                let side = *self.rng.pick(&Side::BOTH);
                self.deliver_again(side);
            }
            95 if self.losses > 0 => match self.backup {
                None if self.shape.rewinds && self.rng.percent(70) => self.back_up(),
                _ => self.lose(),
            },
            96 if self.comparing => self.compare(),
            95..97 => self.take_image(),
            97 => {
                let parked = self.parked();
                if !parked.is_empty() {
                    let (conflict, field) = *self.rng.pick(&parked);
                    self.resolve(conflict, field);
                }
            }
            98 if self.shape.refusals => {
                let dead = self.dead_letters();
                if !dead.is_empty() {
                    let ticket = *self.rng.pick(&dead);
                    self.dead_letter(ticket, DeadLetterAction::Retry);
                }
            }
            _ => {}
        }
    }

    /// Everything runs until nothing is left to do. Returns whether it came to rest.
    pub(crate) fn quiet(&mut self) -> bool {
        for _ in 0..200 {
            self.clock.0.fetch_add(3 * SECOND, Ordering::Relaxed);
            let mut moved = self.comparing;
            if self.comparing {
                self.compare();
            }
            for side in Side::BOTH {
                moved |= self.read[side.index()] < self.stream(side).len();
                self.read(side, usize::MAX / 2);
            }
            while !self.images.is_empty() {
                moved = true;
                self.take_image();
            }
            moved |= self.uncertain;
            if self.uncertain {
                self.resume();
            }
            while !self.answers.is_empty() {
                moved = true;
                self.give_answer();
            }
            moved |= self.close_silent();
            let records = self.records();
            for side in Side::BOTH {
                moved |= self.plan(side, &records) > 0;
            }
            self.commit();
            moved |= !self.flying_postgres.is_empty() || !self.flying_salesforce.is_empty();
            while !self.flying_postgres.is_empty() {
                self.land_postgres(false);
            }
            while !self.flying_salesforce.is_empty() {
                self.land_salesforce(false);
            }
            if !moved {
                return true;
            }
        }
        false
    }

    /// A person sees to everything that waits, until all is at rest.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..60 {
            if !self.quiet() {
                return Err("never quiet".into());
            }
            let parked = self.parked();
            if let Some((conflict, field)) = parked.first() {
                self.resolve(*conflict, *field);
                continue;
            }
            self.postgres.common.strict = false;
            self.salesforce.common.strict = false;
            let dead = self.dead_letters();
            match dead.first() {
                Some(ticket) => self.dead_letter(*ticket, DeadLetterAction::Retry),
                None => return Ok(()),
            }
        }
        Err("a person never comes to an end".into())
    }

    pub(crate) fn postgres_key(n: u64) -> tidelock::change::Key {
        key(n)
    }
}

fn answer(write: &Write, side: Side, result: WriteResult) -> Answer {
    Answer { ticket: write.ticket, record: write.record, side, result, salesforce_id: None }
}
