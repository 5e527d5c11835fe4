//! Capture against a real server and against a scripted one.

mod connections;
mod copying;
mod copying_ranges;
mod scripted;
mod streaming;
mod streams;
mod types;
mod values;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Capture, CaptureConfig, CaptureHandle, CaptureSnapshot};
use crate::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, Lsn, MappingDef, MappingId, Notice,
    Offset, Policy, Position, StreamId, Value,
};
use crate::demo::server::{PostgresServer, ServerSettings};
use crate::error::Result;
use crate::flow::{Batch, Event, Intake, Item, Receipt, Row};
use crate::postgres::slot;

pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// A log in memory: drops duplicates as the contract says, and becomes durable when its gate is open.
#[derive(Clone)]
pub(super) struct MemoryLog {
    kept: Arc<Mutex<Kept>>,
    changed: watch::Sender<u64>,
    gate: watch::Sender<bool>,
    room: watch::Sender<bool>,
}

#[derive(Default)]
struct Kept {
    events: Vec<Event>,
    position: Option<(Lsn, u32)>,
    durable: Option<Position>,
    batches: usize,
}

impl MemoryLog {
    pub(super) fn new() -> Self {
        Self {
            kept: Arc::default(),
            changed: watch::Sender::new(0),
            gate: watch::Sender::new(true),
            room: watch::Sender::new(true),
        }
    }

    /// Whether batches become durable.
    pub(super) fn set_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Whether the inbox takes batches.
    pub(super) fn set_room(&self, room: bool) {
        self.room.send_replace(room);
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.kept.lock().unwrap().events.clone()
    }

    /// The rows of all events, in order.
    pub(super) fn rows(&self) -> Vec<Row> {
        let rows = self.events().into_iter().filter_map(|e| match e.item {
            Item::Row(row) => Some(row),
            _ => None,
        });
        rows.collect()
    }

    pub(super) fn durable(&self) -> Option<Position> {
        self.kept.lock().unwrap().durable.clone()
    }

    /// Loses what was not durable.
    pub(super) fn crash(&self) {
        let mut kept = self.kept.lock().unwrap();
        let durable = kept.durable.as_ref().map(place);
        kept.position = durable;
        kept.events.retain(|event| Some(place(&event.position)) <= durable);
    }

    /// The rows that backfills have read so far by each notice, and whether that is durable.
    pub(super) fn copied(&self) -> Vec<(u64, bool)> {
        let kept = self.kept.lock().unwrap();
        let durable = kept.durable.as_ref().map(place);
        let notices = kept.events.iter().filter_map(|event| match &event.item {
            Item::Notice(Notice::Backfill { rows, .. }) => Some((*rows, Some(place(&event.position)) <= durable)),
            _ => None,
        });
        notices.collect()
    }

    pub(super) fn batches(&self) -> usize {
        self.kept.lock().unwrap().batches
    }

    pub(super) async fn wait_for(&self, what: &str, mut ready: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !ready(self) {
                changed.changed().await.unwrap();
            }
        };
        assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "waited in vain for {what}");
    }
}

fn place(position: &Position) -> (Lsn, u32) {
    let Position::Postgres { commit_lsn, index, .. } = position else { panic!("not of PostgreSQL") };
    (*commit_lsn, *index)
}

impl Intake for MemoryLog {
    async fn offer(&self, batch: Batch) -> Result<impl Future<Output = Result<Receipt>> + Send + 'static> {
        self.room.subscribe().wait_for(|room| *room).await.unwrap();
        let (mut duplicates, mut last) = (0, None);
        {
            let mut kept = self.kept.lock().unwrap();
            kept.batches += 1;
            for event in batch.events {
                let at = place(&event.position);
                last = Some(event.position.clone());
                if kept.position.is_some_and(|known| at <= known) {
                    duplicates += 1;
                    continue;
                }
                kept.position = Some(at);
                kept.events.push(event);
            }
        }
        self.changed.send_modify(|n| *n += 1);
        let mut gate = self.gate.subscribe();
        let (kept, changed) = (Arc::clone(&self.kept), self.changed.clone());
        Ok(async move {
            gate.wait_for(|open| *open).await.unwrap();
            if duplicates == 0 {
                kept.lock().unwrap().durable = last;
            }
            changed.send_modify(|n| *n += 1);
            Ok(Receipt { tail: Offset(0), duplicates, more: false })
        })
    }
}

pub(super) fn field(id: u16, column: &str, kind: FieldKind) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: column.to_owned(),
        column: column.to_owned(),
        kind,
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

pub(super) fn mapping(id: u16, table: &str, key: &[&str], fields: Vec<FieldDef>) -> MappingDef {
    MappingDef {
        id: MappingId(id),
        name: table.to_owned(),
        sobject: table.to_owned(),
        schema: "public".into(),
        table: table.to_owned(),
        key_columns: key.iter().map(|k| (*k).to_owned()).collect(),
        next_field: FieldId(fields.len() as u16 + 1),
        owner: None,
        fields,
        external_id: None,
        delete: DeletePolicy::default(),
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::default(),
        rank: 0,
    }
}

pub(super) fn catalog(mappings: Vec<MappingDef>) -> Arc<Catalog> {
    Arc::new(Catalog { next_mapping: MappingId(mappings.len() as u16 + 1), mappings, ..Catalog::default() })
}

/// A plain table `t (id int primary key, name text, sfid text)` and its mapping.
pub(super) const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, name text, sfid varchar(18), other int)";

pub(super) fn table_catalog() -> Arc<Catalog> {
    let text = FieldKind::Text { length: 255 };
    catalog(vec![mapping(1, "t", &["id"], vec![field(1, "name", text), field(2, "sfid", FieldKind::Id)])])
}

pub(super) const SLOT: &str = "tidelock_test";
pub(super) const PUBLICATION: &str = "tidelock test";
pub(super) const STREAM: StreamId = StreamId(7);

/// A server with these tables and a stream of them.
pub(super) async fn server_with(sql: &str, settings: ServerSettings, catalog: &Catalog) -> PostgresServer {
    let server = PostgresServer::start(settings).await.unwrap();
    server.execute(sql).await.unwrap();
    let session = server.session().await.unwrap();
    let tables: Vec<_> = catalog.mappings.iter().map(|m| (m.schema.clone(), m.table.clone())).collect();
    slot::ensure_publication(&session, PUBLICATION, &tables).await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    server
}

pub(super) fn config(server: &PostgresServer, catalog: &Arc<Catalog>, durable: Option<Position>) -> CaptureConfig {
    CaptureConfig {
        endpoint: server.endpoint(),
        slot: SLOT.into(),
        publication: PUBLICATION.into(),
        link: "main".into(),
        stream: STREAM,
        timeline: None,
        catalog: Arc::clone(catalog),
        unread: Vec::new(),
        published: None,
        row_filters: false,
        spool: None,
        durable,
        heartbeat: None,
        clock: crate::clock::system(),
    }
}

/// A capture running in a task of its own.
pub(super) struct Running {
    pub(super) handle: CaptureHandle,
    cancel: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Running {
    pub(super) fn start(config: CaptureConfig, log: &MemoryLog) -> Self {
        Self::start_with(config, log, CaptureHandle::new())
    }

    pub(super) fn start_with(config: CaptureConfig, log: &MemoryLog, handle: CaptureHandle) -> Self {
        let cancel = CancellationToken::new();
        let capture = Capture::new(config, handle.clone());
        let (log, token) = (log.clone(), cancel.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { capture.run(&log, token).await });
        Self { handle, cancel, task }
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> Result<()> {
        tokio::time::timeout(DEADLINE, self.task.join_next()).await.expect("capture does not end").unwrap().unwrap()
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.cancel.cancel();
        self.ended().await
    }
}

pub(super) fn told(row: &Row, id: u16) -> Option<Value> {
    row.fields.iter().find(|(field, _)| *field == FieldId(id)).map(|(_, value)| value.clone())
}

/// `server_version_num`: 150018.
pub(super) async fn version(server: &PostgresServer) -> u32 {
    server.value("SHOW server_version_num").await.unwrap().unwrap().parse().unwrap()
}

/// How far the slot is acknowledged.
pub(super) async fn confirmed(server: &PostgresServer) -> Lsn {
    let session = server.session().await.unwrap();
    slot::read_slot(&session, SLOT).await.unwrap().unwrap().confirmed_flush_lsn.unwrap()
}

/// Waits until the server has noticed that the reader before has gone, which it does in its own time.
pub(in crate::postgres::capture) async fn no_reader(server: &PostgresServer) {
    let free = "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE active) \
                AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')";
    eventually(server, "no reader", free).await;
}

/// Polls a condition on the server.
pub(super) async fn eventually(server: &PostgresServer, what: &str, sql: &str) {
    let waiting = async {
        while server.value(sql).await.unwrap().as_deref() != Some("t") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "waited in vain for {what}");
}
