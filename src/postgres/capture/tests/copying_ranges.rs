//! Backfill of one table by several sessions at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::copying::{fold, notices, table};
use super::*;
use crate::flow::RowOperation;
use crate::postgres::backfill::{Backfill, BackfillProgress, CopySessions};
use crate::postgres::marks::Marks;

/// A server with rows that the stream does not tell.
async fn server_before_the_slot(sql: &str, catalog: &Catalog) -> PostgresServer {
    let server = server_with(sql, ServerSettings::default(), catalog).await;
    let session = server.session().await.unwrap();
    slot::drop_stream(&session, SLOT, "nobody").await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    server
}

fn keys_read(log: &MemoryLog) -> Vec<String> {
    let read = log.rows().into_iter().filter(|row| row.operation == RowOperation::Backfill);
    read.map(|row| row.key.unwrap().to_string()).collect()
}

#[tokio::test]
async fn ranges_of_a_table_are_read_at_once_and_taken_in_order() {
    let catalog = table_catalog();
    let rows = format!("{TABLE}; INSERT INTO t SELECT n, 'x' FROM generate_series(1, 2000) n");
    let server = server_before_the_slot(&rows, &catalog).await;
    let log = MemoryLog::new();
    log.set_gate(false);
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let cancel = CancellationToken::new();
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle)
        .through(CopySessions::new(server.endpoint(), 3));
    let copying = backfill.run(BackfillProgress::default(), &cancel, |_| {});
    let watching = async {
        // Each waits for its chunk to be durable, which nothing is.
        let waiting = "SELECT count(*) = 3 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_catalog.pg_logical_emit_message%high%'";
        eventually(&server, "three sessions that have read a chunk", waiting).await;
        assert!(log.copied().len() <= 3, "no more are read meanwhile");
        log.set_gate(true);
    };
    let (copied, ()) = tokio::join!(copying, watching);
    assert_eq!(copied.unwrap().rows, 2_000);
    capture.stop().await.unwrap();
    let expected: Vec<String> = (1..=2_000).map(|n| n.to_string()).collect();
    assert_eq!(keys_read(&log), expected);
    let told: Vec<u64> = notices(&log).into_iter().map(|(rows, ..)| rows).collect();
    assert_eq!(told, (1..=20).map(|n| n * 100).chain([2_000]).collect::<Vec<_>>());
}

/// Crashes lose what was not durable. What was is not read again, and the log tells the table as it is.
#[tokio::test]
async fn a_copy_goes_on_after_crashes_where_the_log_ends() {
    let catalog = table_catalog();
    let rows = format!("{TABLE}; INSERT INTO t SELECT n, 'old ' || n FROM generate_series(1, 4000) n");
    let server = server_before_the_slot(&rows, &catalog).await;
    let log = MemoryLog::new();
    let stops = AtomicBool::new(false);
    let editing = async {
        let session = server.session().await.unwrap();
        let mut n: u64 = 0;
        while !stops.load(Ordering::Relaxed) {
            n += 1;
            let id = n * 7919 % 4000 + 1;
            let sql = match n % 3 {
                0 => format!("DELETE FROM t WHERE id = {id}"),
                1 => format!("INSERT INTO t VALUES ({id}, 'again') ON CONFLICT (id) DO UPDATE SET name = 'up {n}'"),
                _ => format!("UPDATE t SET name = 'new {n}' WHERE id = {id}"),
            };
            session.batch_execute(&sql).await.unwrap();
        }
    };
    let crashing = async {
        let mut from = BackfillProgress::default();
        for crash in 0..4 {
            let handle = CaptureHandle::new();
            let capture = Running::start_with(config(&server, &catalog, log.durable()), &log, handle.clone());
            let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 50, handle);
            let cancel = CancellationToken::new();
            let before = from.rows;
            let last = crash == 3;
            let copying = backfill.run(from, &cancel, |progress| {
                if !last && progress.rows >= before + 500 {
                    log.set_gate(false);
                }
            });
            if last {
                assert!(copying.await.unwrap().finished);
                stops.store(true, Ordering::Relaxed);
                return capture;
            }
            let lost = log.wait_for("what is not durable", |log| {
                let copied = log.copied();
                copied.iter().any(|(rows, durable)| *durable && *rows > before)
                    && copied.iter().any(|(_, durable)| !durable)
            });
            tokio::select! {
                ended = copying => panic!("nothing is durable any more: {ended:?}"),
                () = lost => {}
            }
            drop(capture);
            log.crash();
            no_reader(&server).await;
            log.set_gate(true);
            let (rows, after, finished) = notices(&log).pop().unwrap();
            from = BackfillProgress { rows, after: after.into(), finished, total: None };
            assert!(from.rows > before && !finished);
        }
        unreachable!()
    };
    let (capture, ()) = tokio::join!(crashing, editing);
    let expected = table(&server).await;
    server.execute("INSERT INTO t VALUES (99999, 'end')").await.unwrap();
    log.wait_for("the end", |log| log.rows().iter().any(|r| r.key.clone().unwrap().to_string() == "99999")).await;
    capture.stop().await.unwrap();
    let mut folded = fold(&log);
    folded.remove("99999");
    assert!(folded == expected, "the log tells the table as it is");
    let read = keys_read(&log);
    assert_eq!(read.iter().collect::<BTreeSet<_>>().len(), read.len(), "nothing is read twice");
    assert!(notices(&log).is_sorted_by(|one, next| one.0 <= next.0), "{:?}", notices(&log));
}

#[tokio::test]
async fn ranges_of_every_kind_of_key_hold_all_rows_once() {
    // The key's columns, their types, and a row's values for n; the last column tells n.
    let tables: [(&str, &[&str], &str, &str); 8] = [
        ("gaps", &["id"], "id bigint PRIMARY KEY", "CASE WHEN n < 5 THEN -n ELSE n * 90000000000 END"),
        (
            "locale",
            &["id"],
            "id text COLLATE \"und-x-icu\" PRIMARY KEY",
            "chr(65 + n % 2 * 32 + n % 26) || E'\\t\\\\N\\n' || n",
        ),
        (
            "bytes",
            &["id"],
            "id text COLLATE \"C\" PRIMARY KEY",
            "CASE n WHEN 1 THEN '' ELSE chr(900 + n % 7) || '''' || n END",
        ),
        ("ids", &["id"], "id uuid PRIMARY KEY", "md5(n::text)::uuid"),
        (
            "times",
            &["id"],
            "id timestamptz PRIMARY KEY",
            "CASE n WHEN 1 THEN '-infinity' ELSE '2000-01-01'::timestamptz + n * n * interval '1 us' END",
        ),
        ("numbers", &["id"], "id numeric PRIMARY KEY", "n * -1.5"),
        ("pairs", &["a", "b"], "a text, b date, PRIMARY KEY (a, b)", "'t' || n % 3, '2000-01-01'::date + n"),
        ("parts", &["a", "b"], "a int, b int, PRIMARY KEY (a, b)", "n % 5, n"),
    ];
    let note = || vec![field(1, "note", FieldKind::Text { length: 255 })];
    let mut mappings: Vec<MappingDef> =
        tables.iter().zip(1..).map(|((name, key, ..), n)| mapping(n, name, key, note())).collect();
    for (name, n) in [("none", 20), ("one", 21), ("exact", 22)] {
        mappings.push(mapping(n, name, &["id"], note()));
    }
    let catalog = catalog(mappings);
    let mut create = Vec::new();
    for (name, key, columns, values) in tables {
        let partitions = match name {
            "parts" => {
                "PARTITION BY LIST (a); CREATE TABLE p0 PARTITION OF parts FOR VALUES IN (0, 1); CREATE TABLE p1 PARTITION OF parts DEFAULT"
            }
            _ => "",
        };
        let key = key.join(", ");
        create.push(format!(
            "CREATE TABLE {name} ({columns}, note text) {partitions}; INSERT INTO {name} ({key}, note) SELECT {values}, n FROM generate_series(1, 100) n"
        ));
    }
    for (name, rows) in [("none", 0), ("one", 1), ("exact", 14)] {
        create.push(format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, note text); INSERT INTO {name} SELECT n, n FROM generate_series(1, {rows}) n"
        ));
    }
    let server = server_before_the_slot(&create.join("; "), &catalog).await;
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let sessions = CopySessions::new(server.endpoint(), 5);
    let cancel = CancellationToken::new();
    for mapping in &catalog.mappings {
        let backfill = Backfill::new(server.endpoint(), mapping.clone(), 7, handle.clone()).through(sessions.clone());
        let done = backfill.run(BackfillProgress::default(), &cancel, |_| {}).await.unwrap();
        assert!(done.finished);
        let rows = log.rows().into_iter().filter(|row| row.mapping == mapping.id);
        let mut notes: Vec<u64> = rows.map(|row| told(&row, 1).unwrap().to_string().parse().unwrap()).collect();
        notes.sort_unstable();
        let count = match mapping.name.as_str() {
            "none" => 0,
            "one" => 1,
            "exact" => 14,
            _ => 100,
        };
        assert_eq!((notes, done.rows), ((1..=count).collect::<Vec<u64>>(), count), "{}", mapping.name);
    }
    capture.stop().await.unwrap();
    let gone =
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_catalog.pg_logical_emit_message%'";
    eventually(&server, "the end of sessions that nobody needs", gone).await;
}

/// Sizes of the chunks that a log holds, in their order.
fn sizes(log: &MemoryLog) -> Vec<u64> {
    let told: Vec<u64> = notices(log).into_iter().map(|(rows, ..)| rows).collect();
    [0].iter().chain(&told).zip(&told).map(|(before, rows)| rows - before).collect()
}

#[tokio::test]
async fn large_rows_come_in_small_chunks() {
    let catalog = table_catalog();
    let rows = format!(
        "{TABLE}; INSERT INTO t SELECT n, repeat('x', 1500000) FROM generate_series(1, 12) n; \
         INSERT INTO t SELECT n, 'x' FROM generate_series(13, 600) n"
    );
    let server = server_before_the_slot(&rows, &catalog).await;
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle);
    let done = backfill.run(BackfillProgress::default(), &CancellationToken::new(), |_| {}).await.unwrap();
    capture.stop().await.unwrap();
    assert_eq!((done.rows, done.finished), (600, true));
    assert_eq!(keys_read(&log), (1..=600).map(|n| n.to_string()).collect::<Vec<_>>());
    let sizes = sizes(&log);
    assert!(sizes[..5].iter().all(|size| *size == 2), "{sizes:?}");
    assert!(sizes.iter().any(|size| *size >= 32), "they grow again: {sizes:?}");
}

/// More rows come into a range after it was planned, and before it is read.
#[tokio::test]
async fn a_range_that_grows_is_read_in_parts() {
    let catalog = table_catalog();
    let rows = format!(
        "{TABLE}; INSERT INTO t SELECT n * 10, 'x' FROM generate_series(1, 100) n; CREATE SCHEMA late; \
         CREATE FUNCTION late.tidelock_log_message(prefix text, content text) RETURNS pg_lsn LANGUAGE sql AS $$ \
         INSERT INTO t SELECT n, 'late' FROM generate_series(1, 100) n ON CONFLICT (id) DO NOTHING; \
         SELECT pg_logical_emit_message(true, prefix, content) $$"
    );
    let server = server_before_the_slot(&rows, &catalog).await;
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 10, handle)
        .marked_by(Marks::TriggerLog("late".into()));
    let done = backfill.run(BackfillProgress::default(), &CancellationToken::new(), |_| {}).await.unwrap();
    capture.stop().await.unwrap();
    assert_eq!((done.rows, done.finished), (190, true));
    assert!(sizes(&log).iter().all(|size| *size <= 20), "{:?}", sizes(&log));
    assert!(fold(&log) == table(&server).await, "the log tells the table as it is");
}
