//! Transactions that the server streams while they are in progress, and those that are prepared.

use super::*;
use crate::flow::{Own, RowOperation};

/// A server that streams what is larger than it keeps in memory, which is little here.
async fn streaming_server(catalog: &Catalog) -> PostgresServer {
    let settings =
        ServerSettings::default().with("logical_decoding_work_mem", "64kB").with("max_prepared_transactions", "5");
    server_with(TABLE, settings, catalog).await
}

/// What the log was told, but for how far the stream has come.
fn told(log: &MemoryLog) -> Vec<String> {
    let events = log.events();
    let events = events.iter().filter(|e| !matches!(e.item, Item::Progress));
    events.map(|event| format!("{event:?}")).collect()
}

fn has_key(log: &MemoryLog, key: &str) -> bool {
    log.rows().iter().any(|r| r.key.as_ref().is_some_and(|k| k.to_string() == key))
}

fn rows(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT n, repeat(md5(n::text), 3) FROM generate_series({from}, {to}) n")
}

async fn was_streamed(server: &PostgresServer) {
    let streamed = "SELECT stream_count > 0 FROM pg_stat_replication_slots WHERE slot_name = 'tidelock_test'";
    eventually(server, "a streamed transaction", streamed).await;
}

/// The same changes, streamed and not, must be the same events at the same places.
#[tokio::test]
async fn streamed_transactions_are_told_like_whole_ones() {
    let catalog = table_catalog();
    let server = streaming_server(&catalog).await;
    server.execute("SELECT pg_copy_logical_replication_slot('tidelock_test', 'whole')").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let log = MemoryLog::new();
    let streamed = CaptureConfig { spool: Some(spool.clone()), ..config(&server, &catalog, None) };
    let capture = Running::start(streamed, &log);

    let (one, two) = (server.session().await.unwrap(), server.session().await.unwrap());
    // One is large, with parts that are rolled back, a table that changes in one of them, and our mark in the middle.
    let begin = "BEGIN; SELECT pg_logical_emit_message(true, 'tidelock.actor', 'alice')";
    one.batch_execute(begin).await.unwrap();
    one.batch_execute(&rows(1, 2_000)).await.unwrap();
    two.batch_execute("INSERT INTO t VALUES (100001)").await.unwrap();
    one.batch_execute(&format!(
        "SAVEPOINT a; ALTER TABLE t ADD more int, DROP other; {}; SAVEPOINT b",
        rows(2_001, 4_000)
    ))
    .await
    .unwrap();
    one.batch_execute(&format!("{}; ROLLBACK TO a", rows(4_001, 5_000))).await.unwrap();
    one.batch_execute(&format!("SAVEPOINT c; {}; RELEASE c", rows(5_001, 7_000))).await.unwrap();
    one.batch_execute(
        "SELECT pg_logical_emit_message(true, 'tidelock', '{\"open\":{\"link\":\"main\"}}'); \
         UPDATE t SET name = 'ours' WHERE id <= 1500; \
         SELECT pg_logical_emit_message(true, 'tidelock', '{\"close\":{\"link\":\"main\",\"applied\":[5],\"skipped\":[]}}'); \
         UPDATE t SET id = -id WHERE id BETWEEN 5001 AND 6500",
    )
    .await
    .unwrap();
    // Another is rolled back whole, and a third one is streamed beside it and commits first.
    let three = server.session().await.unwrap();
    three.batch_execute(&format!("BEGIN; {}", rows(10_001, 13_000))).await.unwrap();
    one.batch_execute("COMMIT; INSERT INTO t VALUES (100002)").await.unwrap();
    three.batch_execute("ROLLBACK").await.unwrap();
    two.batch_execute(&format!(
        "BEGIN; {}; ALTER TABLE t ADD extra int; {}; DELETE FROM t WHERE id < 3000; COMMIT",
        rows(20_001, 22_000),
        rows(22_001, 24_000)
    ))
    .await
    .unwrap();
    two.batch_execute("INSERT INTO t VALUES (100003)").await.unwrap();
    log.wait_for("the last row", |log| has_key(log, "100003")).await;
    was_streamed(&server).await;
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "nothing is left of what has ended");
    capture.stop().await.unwrap();

    let whole = MemoryLog::new();
    let capture = Running::start(CaptureConfig { slot: "whole".into(), ..config(&server, &catalog, None) }, &whole);
    whole.wait_for("the last row", |log| has_key(log, "100003")).await;
    capture.stop().await.unwrap();
    let (streamed, expected) = (told(&log), told(&whole));
    assert_eq!(streamed.len(), expected.len());
    for (one, other) in streamed.iter().zip(&expected) {
        assert_eq!(one, other);
    }
    let ours = log.rows().iter().filter(|r| r.own == Own::Marked).count();
    assert_eq!(ours, 1_500);
    assert!(!has_key(&log, "2001") && !has_key(&log, "10001") && has_key(&log, "-5001"));
}

#[tokio::test]
async fn a_streamed_transaction_holds_nobody_up_and_survives_broken_connections() {
    let catalog = table_catalog();
    let server = streaming_server(&catalog).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let log = MemoryLog::new();
    let streamed = |durable| CaptureConfig { spool: Some(spool.clone()), ..config(&server, &catalog, durable) };
    let mut capture = Running::start(streamed(None), &log);
    let large = server.session().await.unwrap();
    large.batch_execute(&format!("BEGIN; {}", rows(1, 6_000))).await.unwrap();
    was_streamed(&server).await;
    // Others are captured and acknowledged meanwhile.
    server.execute("INSERT INTO t VALUES (100001)").await.unwrap();
    let after = server.value("SELECT pg_current_wal_insert_lsn()::text").await.unwrap().unwrap();
    log.wait_for("the row beside it", |log| has_key(log, "100001")).await;
    server.execute("INSERT INTO t VALUES (100002)").await.unwrap();
    let moved = format!("SELECT confirmed_flush_lsn >= '{after}' FROM pg_replication_slots");
    eventually(&server, "the acknowledgement", &moved).await;
    assert!(std::fs::read_dir(&spool).unwrap().count() > 0, "it is kept in a file");

    server.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await.unwrap();
    capture.ended().await.unwrap_err();
    eventually(&server, "the slot", "SELECT NOT active FROM pg_replication_slots").await;
    let capture = Running::start(streamed(log.durable()), &log);
    large.batch_execute(&format!("{}; COMMIT", rows(6_001, 7_000))).await.unwrap();
    log.wait_for("all of it", |log| has_key(log, "7000")).await;
    capture.stop().await.unwrap();
    let keys: Vec<String> = log.rows().iter().map(|r| r.key.clone().unwrap().to_string()).collect();
    let expected: Vec<String> =
        ["100001", "100002"].map(str::to_owned).into_iter().chain((1..=7_000).map(|n| n.to_string())).collect();
    assert!(keys == expected, "each row once, in the order of commits");
}

/// Whether it is streamed or not, a prepared transaction is told once, when it commits, and never if it does not.
#[tokio::test]
async fn prepared_transactions_are_told_when_they_commit() {
    let catalog = table_catalog();
    let server = streaming_server(&catalog).await;
    let folder = tempfile::tempdir().unwrap();
    for spool in [None, Some(folder.path().join("spool"))] {
        let log = MemoryLog::new();
        server.execute("DELETE FROM t").await.unwrap();
        server.execute("SELECT pg_replication_slot_advance('tidelock_test', pg_current_wal_lsn())").await.unwrap();
        let capture = Running::start(CaptureConfig { spool: spool.clone(), ..config(&server, &catalog, None) }, &log);
        for (gid, statement) in [
            ("small", rows(1, 2)),
            ("large", rows(11, 3_000)),
            ("gone", rows(4_001, 4_002)),
            ("large and gone", rows(5_001, 8_000)),
        ] {
            server.execute(&format!("BEGIN; {statement}; PREPARE TRANSACTION '{gid}'")).await.unwrap();
        }
        server.execute("INSERT INTO t VALUES (100001)").await.unwrap();
        log.wait_for("the row behind them", |log| has_key(log, "100001")).await;
        assert_eq!(log.rows().len(), 1, "nothing that is only prepared");
        for end in [
            "ROLLBACK PREPARED 'gone'",
            "COMMIT PREPARED 'large'",
            "ROLLBACK PREPARED 'large and gone'",
            "COMMIT PREPARED 'small'",
        ] {
            server.execute(end).await.unwrap();
        }
        server.execute("INSERT INTO t VALUES (100002)").await.unwrap();
        log.wait_for("the last row", |log| has_key(log, "100002")).await;
        if spool.is_some() {
            was_streamed(&server).await;
        }
        capture.stop().await.unwrap();
        let keys: Vec<u32> = log.rows().iter().map(|r| r.key.clone().unwrap().to_string().parse().unwrap()).collect();
        let expected: Vec<u32> = [100_001].into_iter().chain(11..=3_000).chain([1, 2, 100_002]).collect();
        assert!(keys == expected, "{} rows", keys.len());
        assert!(log.rows().iter().all(|r| r.operation == RowOperation::Insert));
    }
}
