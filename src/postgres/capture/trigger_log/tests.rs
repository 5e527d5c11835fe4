//! Capture from triggers against a real server.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use super::*;
use crate::change::{FieldKind, Str, TruncatePolicy, Value};
use crate::demo::server::{PostgresServer, ServerSettings};
use crate::flow::{Item, Own, Row, RowOperation};
use crate::postgres::backfill::{Backfill, BackfillProgress};
use crate::postgres::capture::tests::{
    DEADLINE, MemoryLog, STREAM, TABLE, catalog, eventually, field, mapping, no_reader, table_catalog, told,
};
use crate::postgres::install::apply;
use crate::postgres::marks::Marks;

const SCHEMA: &str = "public";

/// As Heroku Postgres is: no logical replication.
async fn server() -> PostgresServer {
    let settings = ServerSettings::default().with("wal_level", "replica").with("deadlock_timeout", "100ms");
    PostgresServer::start(settings).await.unwrap()
}

fn tables(catalog: &Catalog) -> Vec<(String, Vec<String>)> {
    catalog.mappings.iter().map(|m| (m.table.clone(), m.key_columns.clone())).collect()
}

/// The stream's identity, as the change log would know it.
async fn prepared(server: &PostgresServer, catalog: &Catalog, known: Option<&str>, log: &MemoryLog) -> Str {
    let durable = log.durable();
    install::prepare(&server.endpoint(), SCHEMA, &tables(catalog), known, durable.as_ref()).await.unwrap()
}

pub(in crate::postgres::capture) struct Running {
    pub(in crate::postgres::capture) handle: CaptureHandle,
    cancel: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Running {
    /// Begins where the log ends.
    pub(in crate::postgres::capture) fn start(
        server: &PostgresServer,
        catalog: &Arc<Catalog>,
        identity: &str,
        log: &MemoryLog,
    ) -> Self {
        let config = TriggerCaptureConfig {
            endpoint: server.endpoint(),
            schema: SCHEMA.into(),
            id: install::id_of(identity).unwrap().to_owned(),
            link: "main".into(),
            stream: STREAM,
            catalog: Arc::clone(catalog),
            unread: Vec::new(),
            durable: log.durable(),
            heartbeat: Duration::from_millis(200),
            archive_days: 7,
        };
        let (handle, cancel) = (CaptureHandle::new(), CancellationToken::new());
        let capture = TriggerCapture::new(config, handle.clone());
        let (log, token) = (log.clone(), cancel.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { capture.run(&log, token).await });
        Self { handle, cancel, task }
    }

    pub(in crate::postgres::capture) async fn ended(&mut self) -> Result<()> {
        tokio::time::timeout(DEADLINE, self.task.join_next()).await.expect("capture does not end").unwrap().unwrap()
    }

    pub(in crate::postgres::capture) async fn stop(mut self) -> Result<()> {
        self.cancel.cancel();
        self.ended().await
    }

    /// Ends it as a crash would.
    async fn crash(mut self) {
        self.task.shutdown().await;
    }
}

/// A server with a log of these tables, and the stream's identity.
async fn started(sql: &str, catalog: &Arc<Catalog>, log: &MemoryLog) -> (PostgresServer, Str) {
    let server = server().await;
    server.execute(sql).await.unwrap();
    let identity = prepared(&server, catalog, None, log).await;
    (server, identity)
}

/// Waits until the trigger log has been read and emptied.
async fn emptied(server: &PostgresServer) {
    eventually(
        server,
        "an empty trigger log",
        "SELECT NOT EXISTS (SELECT FROM _trigger_log WHERE state = 'NEW') AND NOT EXISTS (SELECT FROM _tidelock_log) \
         AND NOT EXISTS (SELECT FROM _tidelock_stream WHERE batch_lsn IS NOT NULL)",
    )
    .await;
}

fn said(row: &Row) -> (RowOperation, String, Option<String>, Option<Value>) {
    let key = |key: &crate::change::Key| key.to_string();
    (row.operation, key(row.key.as_ref().unwrap()), row.old_key.as_ref().map(key), told(row, 1))
}

/// What a log's reader would believe the table holds: events in their order.
fn fold(log: &MemoryLog) -> BTreeMap<String, Option<Value>> {
    let mut table = BTreeMap::new();
    for row in log.rows() {
        let (operation, key, old_key, value) = said(&row);
        if let Some(old) = old_key {
            table.remove(&old);
        }
        if matches!(operation, RowOperation::Delete | RowOperation::Missing) {
            table.remove(&key);
        } else {
            table.insert(key, value);
        }
    }
    table
}

async fn table(server: &PostgresServer) -> BTreeMap<String, Option<Value>> {
    let rows = server.query("SELECT id, name FROM t").await.unwrap();
    let text = FieldKind::Text { length: 255 };
    let value =
        |name: &Option<String>| name.as_ref().map_or(Value::Null, |n| crate::mapping::from_postgres(&text, 25, n));
    rows.iter().map(|row| (row[0].clone().unwrap(), Some(value(&row[1])))).collect()
}

#[tokio::test]
async fn changes_are_told_as_the_servers_own_stream_would() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    // Before capture runs.
    server.execute("INSERT INTO t VALUES (1, 'Ada', '003000000000001AAA', 5)").await.unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    server
        .execute(
            "SET application_name = 'app'; BEGIN; SET LOCAL tidelock.actor = 'maria'; \
             INSERT INTO t VALUES (2, 'quo\"te \\ back', NULL, 1), (3, NULL, NULL, NULL); UPDATE t SET name = 'x' WHERE id = 3; COMMIT",
        )
        .await
        .unwrap();
    for sql in [
        "UPDATE t SET id = 30, name = 'y' WHERE id = 3",
        "UPDATE t SET other = other",
        "BEGIN; INSERT INTO t VALUES (9, 'never'); ROLLBACK",
        "DELETE FROM t WHERE id < 30",
    ] {
        server.execute(sql).await.unwrap();
    }
    log.wait_for("all rows", |log| log.rows().len() == 10).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    let text = |text: &str| Some(Value::text(text));
    let rows: Vec<_> = log.rows().iter().map(said).collect();
    let update = |id: &str, name| (RowOperation::Update, id.to_owned(), None, name);
    assert_eq!(rows[0], (RowOperation::Insert, "1".into(), None, text("Ada")));
    assert_eq!(rows[1], (RowOperation::Insert, "2".into(), None, text("quo\"te \\ back")));
    assert_eq!(rows[2], (RowOperation::Insert, "3".into(), None, Some(Value::Null)));
    assert_eq!(rows[3], update("3", text("x")));
    assert_eq!(rows[4], (RowOperation::Update, "30".into(), Some("3".into()), text("y")));
    let mut unchanged = rows[5..8].to_vec();
    unchanged.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(unchanged, [update("1", text("Ada")), update("2", text("quo\"te \\ back")), update("30", text("y"))]);
    let deleted: Vec<_> = log.rows()[8..].iter().map(|row| (row.operation, row.salesforce_id.clone())).collect();
    assert!(deleted.contains(&(RowOperation::Delete, Some("003000000000001AAA".into()))), "{deleted:?}");
    let events: Vec<_> = log.events().into_iter().filter(|e| matches!(e.item, Item::Row(_))).collect();
    let who = &events[1].who;
    assert_eq!((who.user.as_str(), who.role.as_str(), who.application.as_str()), ("maria", "postgres", "app"));
    let places: Vec<_> = events.iter().map(|e| (e.transaction.index, e.transaction.last)).collect();
    assert_eq!(places[..4], [(0, true), (0, false), (1, false), (2, true)]);
    assert!(events[1..4].windows(2).all(|two| two[0].transaction.id == two[1].transaction.id));
    assert_ne!(events[0].transaction.id, events[1].transaction.id);
    // What Heroku Connect's applications find.
    let archived = server
        .query("SELECT state, action, table_name, record_id, sfid, old IS NULL, processed_tx IS NULL FROM _trigger_log_archive ORDER BY id")
        .await
        .unwrap();
    let line = |n: usize| archived[n].iter().map(|c| c.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(" ");
    assert_eq!(line(0), "SUCCESS INSERT t 1 003000000000001AAA t f");
    assert_eq!(line(4), "SUCCESS UPDATE t 3 - f f");
    assert!(line(5).starts_with("IGNORED UPDATE t "), "{}", line(5));
    assert_eq!(archived.len(), 10);
}

#[tokio::test]
async fn late_commits_are_neither_missed_nor_waited_for_and_rows_keep_their_order() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    server.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two')").await.unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("both rows", |log| log.rows().len() == 2).await;
    let (early, late) = (server.session().await.unwrap(), server.session().await.unwrap());
    // The transaction with the lower id, and with the lower id in the log, ends last, and changes a row after another has.
    early.batch_execute("BEGIN; UPDATE t SET name = 'early' WHERE id = 1").await.unwrap();
    late.batch_execute("UPDATE t SET name = 'late' WHERE id = 2").await.unwrap();
    log.wait_for("the later one", |log| log.rows().len() == 3).await;
    assert_eq!(said(&log.rows()[2]).3, Some(Value::text("late")));
    early.batch_execute("UPDATE t SET name = 'last' WHERE id = 2").await.unwrap();
    // Others come and go, and the log is read past them.
    for n in 10..15 {
        late.batch_execute(&format!("INSERT INTO t VALUES ({n}, 'n')")).await.unwrap();
    }
    log.wait_for("the others", |log| log.rows().len() == 8).await;
    early.batch_execute("COMMIT").await.unwrap();
    log.wait_for("the early one", |log| log.rows().len() == 10).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    assert_eq!(fold(&log), table(&server).await);
    let prepared =
        "BEGIN; INSERT INTO t VALUES (77, 'x'); SAVEPOINT s; INSERT INTO t VALUES (78, 'gone'); ROLLBACK TO s; COMMIT";
    server.execute(prepared).await.unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("what was committed of it", |log| log.rows().len() == 11).await;
    capture.stop().await.unwrap();
    assert_eq!(fold(&log), table(&server).await);
}

/// Whatever several sessions do to the same few rows, in long and short transactions, while capture crashes: in the log it
/// comes once, and ends as the table does.
#[tokio::test(flavor = "multi_thread")]
async fn crossing_transactions_and_crashes_lose_nothing() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    server.execute("CREATE TABLE edits (n bigserial, name text)").await.unwrap();
    let edit = |letter: char, seed: u64| {
        let session = server.session();
        async move {
            let session = session.await.unwrap();
            let mut dice = seed;
            let mut next = |n: u64| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % n
            };
            for n in 0..40 {
                let mut sql = String::from("BEGIN; ");
                for part in 0..=next(3) {
                    let (id, name) = (next(8), format!("{letter}{n}.{part}"));
                    let part = match next(5) {
                        0 => format!("DELETE FROM t WHERE id = {id}; "),
                        1 => format!("UPDATE t SET name = '{name}' WHERE id >= {id}; "),
                        _ => format!(
                            "INSERT INTO t VALUES ({id}, '{name}') ON CONFLICT (id) DO UPDATE SET name = excluded.name; \
                             SELECT pg_sleep({}); ",
                            next(3) as f64 / 500.0
                        ),
                    };
                    sql.push_str(&part);
                }
                sql += if next(6) == 0 { "ROLLBACK" } else { "COMMIT" };
                if let Err(error) = session.batch_execute(&sql).await {
                    assert_eq!(error.code().unwrap().code(), "40P01", "{error:?}");
                    session.batch_execute("ROLLBACK").await.unwrap();
                }
            }
        }
    };
    let editing = async { tokio::join!(edit('a', 1), edit('b', 2), edit('c', 3), edit('d', 4)) };
    let mut done = std::pin::pin!(editing);
    let mut runs = 0;
    loop {
        let capture = Running::start(&server, &catalog, &identity, &log);
        runs += 1;
        let ended = tokio::time::timeout(Duration::from_millis(15 + runs * 3), &mut done).await.is_ok();
        if ended {
            emptied(&server).await;
            capture.stop().await.unwrap();
            break;
        }
        capture.crash().await;
        // The server may take a moment to notice that the reader has gone.
        let gone = "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')";
        eventually(&server, "the reader's end", gone).await;
    }
    assert!(runs > 1, "{runs}");
    assert_eq!(fold(&log), table(&server).await);
    let archived = server.value("SELECT count(*) FROM _trigger_log_archive").await.unwrap().unwrap();
    assert_eq!(log.rows().len().to_string(), archived, "each logged row once");
}

#[tokio::test]
async fn our_own_writes_are_marked_and_their_fate_is_told() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    let marks = Marks::TriggerLog(SCHEMA.into());
    let own = |link: &str, sql: &str| {
        let (open, close) = (
            format!("{{\"open\":{{\"link\":\"{link}\"}}}}"),
            format!(
                "{{\"close\":{{\"link\":\"{link}\",\"applied\":[7],\"skipped\":[8],\"refused\":[[9,\"23505\",\"no\"]]}}}}"
            ),
        );
        let (open, close) = (marks.emit("tidelock", &open), marks.emit("tidelock", &close));
        format!("BEGIN; SET LOCAL tidelock.replay = 'on'; {open}; {sql}; {close}; COMMIT")
    };
    server.execute(&own("main", "INSERT INTO t VALUES (1, 'ours')")).await.unwrap();
    server.execute(&own("another", "INSERT INTO t VALUES (2, 'theirs')")).await.unwrap();
    server.execute("UPDATE t SET name = 'a user''s' WHERE id = 1").await.unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("three rows", |log| log.rows().len() == 3).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    let marked: Vec<Own> = log.rows().iter().map(|row| row.own).collect();
    assert_eq!(marked, [Own::Marked, Own::No, Own::No]);
    let told: Vec<_> = log
        .events()
        .into_iter()
        .filter_map(|e| match e.item {
            Item::Applied { applied, skipped, refused } => Some((applied, skipped, refused.len(), e.transaction.last)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(vec![crate::change::Offset(7)], vec![crate::change::Offset(8)], 1, true)]);
    let shown = server.value("SELECT string_agg(record_id::text, ' ') FROM _trigger_log_archive").await.unwrap();
    assert_eq!(shown.as_deref(), Some("1"), "our own writes are nobody's business");
}

/// What triggers do in turn is logged before the statement's other rows; what is told last must be what is there.
#[tokio::test]
async fn what_triggers_change_in_turn_is_told_last() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    server
        .execute(
            "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF pg_trigger_depth() > 1 THEN RETURN NULL; END IF; \
             IF TG_OP = 'DELETE' THEN INSERT INTO t VALUES (OLD.id, 'again'); RETURN NULL; END IF; \
             UPDATE t SET name = name || '+' WHERE id <> 5; DELETE FROM t WHERE name LIKE 'doomed%'; \
             UPDATE t SET id = 50 WHERE id = 5; RETURN NULL; END $$; \
             CREATE TRIGGER \"!follow\" AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION follow()",
        )
        .await
        .unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    for sql in [
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'doomed'), (4, 'd'), (5, 'e')",
        "UPDATE t SET name = 'new'",
        "DELETE FROM t WHERE id < 3",
        "BEGIN; UPDATE t SET name = 'z' WHERE id = 4; UPDATE t SET name = 'zz' WHERE id = 4; COMMIT",
    ] {
        server.execute(sql).await.unwrap();
        emptied(&server).await;
        assert_eq!(fold(&log), table(&server).await, "{sql}: {:#?}", log.rows().iter().map(said).collect::<Vec<_>>());
    }
    capture.stop().await.unwrap();
}

#[tokio::test]
async fn triggers_fire_whatever_the_session_has_set_and_for_everybody() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    let mut capture = Running::start(&server, &catalog, &identity, &log);
    server
        .execute(
            "SET session_replication_role = replica; INSERT INTO t VALUES (1, 'restored'); RESET session_replication_role; \
             SET xmlbinary = 'hex'; UPDATE t SET name = 'hex'; RESET xmlbinary; \
             CREATE ROLE plain; GRANT ALL ON t TO plain; SET ROLE plain; UPDATE t SET name = 'plain'; RESET ROLE",
        )
        .await
        .unwrap();
    log.wait_for("three rows", |log| log.rows().len() == 3).await;
    assert_eq!(log.events().last().unwrap().who.role, "plain");
    server.execute("TRUNCATE t").await.unwrap();
    let stopped = capture.ended().await.unwrap_err();
    assert!(stopped.kind() == Kind::Configuration && stopped.to_string().contains("public.t"), "{stopped}");
    no_reader(&server).await;

    // A person has decided: the statement comes again.
    let mut propagate = Catalog::clone(&catalog);
    propagate.mappings[0].truncate = TruncatePolicy::Propagate;
    let capture = Running::start(&server, &Arc::new(propagate), &identity, &log);
    server.execute("INSERT INTO t VALUES (2, 'after')").await.unwrap();
    log.wait_for("the row behind it", |log| log.rows().len() == 4).await;
    let truncates = log.events().iter().filter(|e| matches!(e.item, Item::Truncate { .. })).count();
    assert_eq!(truncates, 1);
    capture.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_copied_once_while_they_change() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let server = server().await;
    server.execute(TABLE).await.unwrap();
    server.execute("INSERT INTO t SELECT n, 'old ' || n FROM generate_series(1, 2000) n").await.unwrap();
    let identity = prepared(&server, &catalog, None, &log).await;
    let capture = Running::start(&server, &catalog, &identity, &log);
    let cancel = CancellationToken::new();
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, capture.handle.clone())
        .marked_by(Marks::TriggerLog(SCHEMA.into()));
    let copying = backfill.run(BackfillProgress::default(), &cancel, |_| {});
    let edit = |seed: i64| {
        let session = server.session();
        async move {
            let session = session.await.unwrap();
            for n in 0..150 {
                let id = (n * 7919 + seed * 31) % 2000 + 1;
                let sql = match n % 4 {
                    0 => format!("DELETE FROM t WHERE id = {id}"),
                    1 => format!("INSERT INTO t VALUES ({id}, 'again') ON CONFLICT (id) DO UPDATE SET name = 'up'"),
                    2 => format!("UPDATE t SET id = id + 10000 WHERE id = {id}"),
                    _ => format!("UPDATE t SET name = 'new {n}' WHERE id = {id}"),
                };
                if let Err(error) = session.batch_execute(&sql).await {
                    assert_eq!(error.code().unwrap().code(), "23505", "{sql}");
                }
            }
        }
    };
    let (copied, ..) = tokio::join!(copying, edit(1), edit(2), edit(3));
    assert!(copied.unwrap().finished);
    emptied(&server).await;
    // What a copy adds has places of its own, and no part in those of logged rows.
    capture.stop().await.unwrap();
    server.execute("INSERT INTO t VALUES (99999, 'end')").await.unwrap();
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("the end", |log| log.rows().iter().any(|row| said(row).1 == "99999")).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    assert!(fold(&log) == table(&server).await, "the log tells the table as it is");
}

#[tokio::test]
async fn applications_have_rows_logged_as_they_are() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    server.execute("INSERT INTO t VALUES (1, 'Ada', '003000000000001AAA', 5)").await.unwrap();
    let old = "SELECT hstore(t.*)::text FROM t";
    let old = server.value(old).await.unwrap().unwrap().replace('\'', "''");
    server.execute("UPDATE t SET name = 'Bea'").await.unwrap();
    let logged = server
        .value(&format!("SELECT public.hc_capture_update_from_row('{old}'::hstore, 't', ARRAY['name'])"))
        .await
        .unwrap();
    let shown = format!(
        "SELECT concat_ws(' ', state, action, record_id, sfid, coalesce(old, '-'), \"values\") FROM _trigger_log WHERE id = {}",
        logged.unwrap()
    );
    let shown = server.value(&shown).await.unwrap().unwrap();
    assert_eq!(shown, "NEW UPDATE 1 003000000000001AAA - \"name\"=>\"Bea\"");
    server.execute("SELECT hc_capture_insert_from_row(hstore(t.*), 't', ARRAY['other']) FROM t").await.unwrap();
    for nobody in ["'a=>1'", "'id=>2'"] {
        let sql = format!("SELECT hc_capture_insert_from_row({nobody}, 't')");
        assert_eq!(server.value(&sql).await.unwrap(), None);
    }
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("four rows", |log| log.rows().len() == 4).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    let rows: Vec<_> = log.rows().iter().map(|row| (row.operation, told(row, 1), row.fields.len())).collect();
    let bea = Some(Value::text("Bea"));
    assert_eq!(rows[2..], [(RowOperation::Update, bea.clone(), 1), (RowOperation::Update, bea, 2)]);
    // A copy from the archive would tell old values as new ones.
    let again = "INSERT INTO _trigger_log SELECT * FROM _trigger_log_archive LIMIT 1";
    let refused = server.execute(again).await.unwrap_err();
    assert!(refused.explain().contains("hc_capture_update_from_row"), "{}", refused.explain());
}

#[tokio::test]
async fn triggers_that_were_touched_make_it_another_stream() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    let mut capture = Running::start(&server, &catalog, &identity, &log);
    server.execute("INSERT INTO t VALUES (1, 'x')").await.unwrap();
    log.wait_for("a row", |log| log.rows().len() == 1).await;
    emptied(&server).await;
    // Enabled again before anybody looks.
    server
        .execute(
            "BEGIN; ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (2, 'unseen'); \
             ALTER TABLE t ENABLE ALWAYS TRIGGER \"00_tidelock_log\"; ALTER TABLE t ENABLE ALWAYS TRIGGER \"00_tidelock_log_truncate\"; COMMIT",
        )
        .await
        .unwrap();
    let lost = capture.ended().await.unwrap_err();
    assert_eq!(lost.kind(), Kind::StreamLost, "{lost}");
    let healed = prepared(&server, &catalog, Some(&identity), &log).await;
    assert_ne!(healed, identity);
    assert_eq!(prepared(&server, &catalog, Some(&healed), &MemoryLog::new()).await, healed, "and stays so");
    let log = MemoryLog::new();
    server.execute("DROP TABLE t").await.unwrap();
    server.execute(TABLE).await.unwrap();
    let again = prepared(&server, &catalog, Some(&healed), &log).await;
    assert_ne!(again, healed);
    let capture = Running::start(&server, &catalog, &again, &log);
    server.execute("INSERT INTO t VALUES (3, 'seen')").await.unwrap();
    log.wait_for("a row", |log| log.rows().len() == 1).await;
    capture.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_that_does_not_continue_is_begun_anew() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    let capture = Running::start(&server, &catalog, &identity, &log);
    server.execute("INSERT INTO t VALUES (1, 'x')").await.unwrap();
    emptied(&server).await;
    log.wait_for("a place", |log| log.durable().is_some()).await;
    capture.stop().await.unwrap();
    assert_eq!(prepared(&server, &catalog, Some(&identity), &log).await, identity);
    // The database was restored from a backup: what it lost is no delete.
    let told = "SELECT format('told_lsn = %L, told_index = %s', told_lsn, told_index) FROM _tidelock_stream";
    let told = server.value(told).await.unwrap().unwrap();
    server.execute("UPDATE _tidelock_stream SET told_index = 0, told_lsn = '0/1'").await.unwrap();
    let refused = Running::start(&server, &catalog, &identity, &log).ended().await.unwrap_err();
    assert!(refused.to_string().contains("restored from a backup"), "{refused}");
    no_reader(&server).await;
    let (endpoint, place) = (server.endpoint(), log.durable());
    let refused =
        install::prepare(&endpoint, SCHEMA, &tables(&catalog), Some(&identity), place.as_ref()).await.unwrap_err();
    assert!(refused.to_string().contains("with a new log"), "{refused}");
    server.execute(&format!("UPDATE _tidelock_stream SET {told}")).await.unwrap();
    // The change log is an older copy.
    let older = MemoryLog::new();
    let refused = Running::start(&server, &catalog, &identity, &older).ended().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::StreamLost, "{refused}");
    assert!(refused.to_string().contains("older copy"), "{refused}");
    no_reader(&server).await;
    server.execute("INSERT INTO t VALUES (2, 'told by the copy that follows')").await.unwrap();
    let healed = prepared(&server, &catalog, Some(&identity), &older).await;
    assert_ne!(healed, identity);
    let pending = server.value("SELECT string_agg(state, ' ') FROM _trigger_log").await.unwrap();
    assert_eq!(pending.as_deref(), Some("IGNORED"));
    // Another link's stream, and the server's own, are other streams too; a new change log goes on where the last one ended.
    let wal = identity.split_once(", trigger log").unwrap().0.to_owned() + ", slot s, timeline 1";
    assert_ne!(prepared(&server, &catalog, Some(&wal), &log).await, healed);
    let taken = prepared(&server, &catalog, None, &MemoryLog::new()).await;
    let fresh = MemoryLog::new();
    server.execute("INSERT INTO t VALUES (3, 'new')").await.unwrap();
    let capture = Running::start(&server, &catalog, &taken, &fresh);
    fresh.wait_for("the row", |log| log.rows().len() == 1).await;
    capture.stop().await.unwrap();
    let elsewhere = wal.replace("database postgres", "database another");
    let refused = install::prepare(&server.endpoint(), SCHEMA, &tables(&catalog), Some(&elsewhere), None).await;
    assert_eq!(refused.unwrap_err().kind(), Kind::StreamLost);
}

#[tokio::test]
async fn one_reader_at_a_time() {
    let (catalog, log) = (table_catalog(), MemoryLog::new());
    let (server, identity) = started(TABLE, &catalog, &log).await;
    let capture = Running::start(&server, &catalog, &identity, &log);
    log.wait_for("a place", |log| log.durable().is_some()).await;
    let refused = Running::start(&server, &catalog, &identity, &log).ended().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    // Another link, of other tables and with a log of its own, takes nothing away from this one.
    let (endpoint, others) = (server.endpoint(), vec![("other".to_owned(), vec!["id".to_owned()])]);
    server.execute("CREATE TABLE other (id int PRIMARY KEY)").await.unwrap();
    let refused = install::prepare(&endpoint, SCHEMA, &others, None, None).await.unwrap_err();
    assert!(refused.kind() == Kind::Unavailable && refused.to_string().contains("one link"), "{refused}");
    server.execute("INSERT INTO t VALUES (1, 'x')").await.unwrap();
    log.wait_for("a row", |log| log.rows().len() == 1).await;
    capture.stop().await.unwrap();
}

#[tokio::test]
async fn the_installation_is_planned_once_adopts_heroku_connects_log_and_is_taken_away() {
    let catalog = catalog(vec![
        mapping(1, "t", &["id"], vec![field(1, "name", FieldKind::Text { length: 255 })]),
        mapping(2, "q'q", &["a \"b", "c"], vec![field(1, "c", FieldKind::Text { length: 255 })]),
    ]);
    let server = server().await;
    server.execute(TABLE).await.unwrap();
    server
        .execute(
            "CREATE TABLE \"q'q\" (\"a \"\"b\" int, c text, PRIMARY KEY (\"a \"\"b\", c)); CREATE EXTENSION hstore; \
             CREATE TABLE _trigger_log (id serial PRIMARY KEY, txid bigint, created_at timestamptz DEFAULT now(), \
             updated_at timestamptz DEFAULT now(), processed_at timestamptz, processed_tx bigint, state varchar(8), \
             action varchar(7), table_name varchar(128), record_id int, sfid varchar(18), old text, values text, sf_result int, \
             sf_message text); \
             INSERT INTO _trigger_log (txid, state) VALUES (txid_current(), 'FAILED'), (txid_current(), 'NEW'); \
             CREATE FUNCTION hc_capture_update_from_row(source_row hstore, table_name varchar, columns_to_include text[] DEFAULT '{}') \
             RETURNS int LANGUAGE sql AS 'SELECT 1'; \
             CREATE FUNCTION hc_t_logger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER hc_t_logtrigger AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION hc_t_logger()",
        )
        .await
        .unwrap();
    let mut session = server.session().await.unwrap();
    let tables = tables(&catalog);
    let refused = install::plan(&session, SCHEMA, &tables).await.unwrap_err();
    assert!(refused.to_string().contains("DROP TRIGGER \"hc_t_logtrigger\" ON \"public\".\"t\""), "{refused}");
    server.execute("DROP TRIGGER hc_t_logtrigger ON t").await.unwrap();
    let steps = install::plan(&session, SCHEMA, &tables).await.unwrap();
    apply(&mut session, &steps).await.unwrap();
    assert_eq!(install::plan(&session, SCHEMA, &tables).await.unwrap(), vec![]);
    let states = server.value("SELECT string_agg(state, ' ' ORDER BY id) FROM _trigger_log").await.unwrap();
    assert_eq!(states.as_deref(), Some("FAILED IGNORED"), "what was left is told by the first copy");
    let log = MemoryLog::new();
    let identity = prepared(&server, &catalog, None, &log).await;
    let capture = Running::start(&server, &Arc::new(Catalog::clone(&catalog)), &identity, &log);
    server
        .execute("INSERT INTO \"q'q\" VALUES (1, 'x'); UPDATE \"q'q\" SET c = 'y'; INSERT INTO t VALUES (1, 'z')")
        .await
        .unwrap();
    log.wait_for("three rows", |log| log.rows().len() == 3).await;
    emptied(&server).await;
    capture.stop().await.unwrap();
    assert_eq!(log.rows()[1].old_key.as_ref().unwrap().parts(), ["1", "x"]);
    // A mapping less, and then none: the server's own log is captured.
    let fewer = install::plan(&session, SCHEMA, &tables[..1]).await.unwrap();
    apply(&mut session, &fewer).await.unwrap();
    assert_eq!(install::plan(&session, SCHEMA, &tables[..1]).await.unwrap(), vec![]);
    let triggers =
        "SELECT string_agg(DISTINCT tgrelid::regclass::text, ' ') FROM pg_trigger WHERE tgname LIKE '00_tidelock%'";
    assert_eq!(server.value(triggers).await.unwrap().as_deref(), Some("t"));
    let steps = install::plan_removal(&session, SCHEMA).await.unwrap();
    apply(&mut session, &steps).await.unwrap();
    assert_eq!(install::plan_removal(&session, SCHEMA).await.unwrap(), vec![]);
    assert_eq!(server.value(triggers).await.unwrap(), None);
    assert_eq!(server.value("SELECT count(*) FROM _trigger_log_archive").await.unwrap().as_deref(), Some("3"));
    let steps = install::plan(&session, SCHEMA, &tables).await.unwrap();
    apply(&mut session, &steps).await.unwrap();
}

/// A batch with a window in it, which ends where the batch does: rows have the places that they have without it.
#[test]
fn a_copied_chunk_comes_last_and_moves_no_places() {
    use crate::postgres::capture::watermark::{Chunk, ChunkRow, Reached, Snapshot, Window};
    use crate::postgres::introspect::TableDetail;

    let catalog = table_catalog();
    let detail = TableDetail {
        oid: 1,
        relkind: 'r',
        schema: "public".into(),
        table: "t".into(),
        owner: "o".into(),
        replica_identity: 'd',
        logged: true,
        row_security: false,
        has_rules: false,
        followed: Vec::new(),
        columns: Vec::new(),
        unique: Vec::new(),
        triggers: Vec::new(),
        indexed: Vec::new(),
    };
    let logged = |txid, action, table, values| assemble::Logged {
        txid,
        action,
        table,
        record_id: None,
        old: None,
        values: Some(values),
        actor: None,
        committed_at: 5,
    };
    let insert = |txid, values| logged(txid, "INSERT", "t", values);
    let message = |txid, content| logged(txid, "MESSAGE", "tidelock.backfill", content);
    let told = |handle: &CaptureHandle| {
        let mut assembler = Assembler::new(STREAM, "main", Windows::new(handle.clone(), []));
        let table = LoggedTable::new(&catalog.mappings[0], &detail).unwrap();
        assembler.set_tables([("t".to_owned(), table)].into());
        assembler.begin_batch(Lsn(90));
        for row in [
            insert(1, r#""id"=>"1", "name"=>"a", "sfid"=>NULL"#),
            message(2, r#"{"low":"w"}"#),
            message(3, r#"{"high":"w"}"#),
            insert(4, r#""id"=>"2", "name"=>"b", "sfid"=>NULL"#),
            logged(4, "INSERT", "unmapped", "x"),
            insert(4, r#""id"=>"3", "name"=>"c", "sfid"=>NULL"#),
        ] {
            assembler.push(&row).unwrap();
        }
        assembler.end_batch().unwrap();
        let events = assembler.take().unwrap().batch.events;
        let place = |event: &crate::flow::Event| match (&event.position, &event.item) {
            (Position::Postgres { index, .. }, Item::Row(row)) => Some((row.key.clone().unwrap().to_string(), *index)),
            _ => None,
        };
        (events.iter().filter_map(place).collect::<Vec<_>>(), events.last().unwrap().transaction.clone())
    };
    let row = |key: &str, index| (key.to_owned(), index);
    let (without, last) = told(&CaptureHandle::new());
    assert_eq!(without, [row("1", 1), row("2", 4), row("3", 6)]);
    assert_eq!((last.id.as_str(), last.index, last.last), ("4", 2, true));
    let handle = CaptureHandle::new();
    let (chunk_tx, chunk) = oneshot::channel();
    let (outcome, _waiting) = oneshot::channel();
    let reached = Reached::new(0, "".into());
    handle.announce(Window { id: "w".into(), mapping: MappingId(1), reached, chunk, outcome }).unwrap();
    let read =
        |key: &str| ChunkRow { key: crate::change::Key::from_parts([key]), salesforce_id: None, fields: Vec::new() };
    chunk_tx
        .send(Chunk {
            rows: vec![read("1"), read("2"), read("7")],
            missing: Vec::new(),
            snapshot: Snapshot::parse("9:9:").unwrap(),
            read: 3,
            from: "".into(),
            after: "7".into(),
            finished: true,
        })
        .unwrap();
    let (with, last) = told(&handle);
    assert_eq!(with, [row("1", 1), row("2", 4), row("3", 6), row("1", 7), row("7", 8)]);
    assert_eq!((last.id.as_str(), last.last), ("3", true), "the notice ends it");
}
