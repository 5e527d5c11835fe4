//! Backfill beside a busy stream.

use std::collections::BTreeMap;

use super::*;
use crate::change::{Key, Notice};
use crate::error::Kind;
use crate::flow::RowOperation;
use crate::postgres::backfill::{Backfill, BackfillProgress, KnownKeys};

/// What a log's reader would believe the table holds: events in their order.
pub(super) fn fold(log: &MemoryLog) -> BTreeMap<String, Option<Value>> {
    let mut table = BTreeMap::new();
    for row in log.rows() {
        let key = row.key.clone().unwrap().to_string();
        if let Some(old) = &row.old_key {
            table.remove(&old.to_string());
        }
        if row.operation == RowOperation::Delete {
            table.remove(&key);
        } else {
            table.insert(key, told(&row, 1));
        }
    }
    table
}

pub(super) fn notices(log: &MemoryLog) -> Vec<(u64, String, bool)> {
    let notices = log.events().into_iter().filter_map(|e| match e.item {
        Item::Notice(Notice::Backfill { rows, after, finished, .. }) => Some((rows, after.to_string(), finished)),
        _ => None,
    });
    notices.collect()
}

pub(super) async fn table(server: &PostgresServer) -> BTreeMap<String, Option<Value>> {
    let rows = server.query("SELECT id, name FROM t").await.unwrap();
    let text = FieldKind::Text { length: 255 };
    let value =
        |name: &Option<String>| name.as_ref().map_or(Value::Null, |n| crate::mapping::from_postgres(&text, 25, n));
    rows.iter().map(|row| (row[0].clone().unwrap(), Some(value(&row[1])))).collect()
}

#[tokio::test]
async fn rows_are_copied_once_while_they_change() {
    let catalog = table_catalog();
    let server = server_with(TABLE, ServerSettings::default(), &catalog).await;
    server.execute("INSERT INTO t SELECT n, 'old ' || n FROM generate_series(1, 3000) n").await.unwrap();
    // A slot made after the rows: the stream does not tell them.
    let session = server.session().await.unwrap();
    slot::drop_stream(&session, SLOT, "nobody").await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let cancel = CancellationToken::new();
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle);
    let mut seen = 0;
    let copying = backfill.run(BackfillProgress::default(), &cancel, |_| seen += 1);
    let editing = async {
        // Edits by several sessions at once, all over the table.
        let edit = |seed: i64| {
            let session = server.session();
            async move {
                let session = session.await.unwrap();
                for n in 0..150 {
                    let id = (n * 7919 + seed * 31) % 3000 + 1;
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
        tokio::join!(edit(1), edit(2), edit(3));
    };
    let (copied, ()) = tokio::join!(copying, editing);
    let copied = copied.unwrap();
    assert!(copied.finished);
    assert_eq!(seen, notices(&log).len());
    let expected = table(&server).await;
    server.execute("INSERT INTO t VALUES (99999, 'end')").await.unwrap();
    log.wait_for("the end", |log| log.rows().iter().any(|r| r.key.clone().unwrap().to_string() == "99999")).await;
    capture.stop().await.unwrap();
    let mut folded = fold(&log);
    folded.remove("99999");
    assert!(folded == expected, "the log tells the table as it is");
    let last = notices(&log).pop().unwrap();
    assert_eq!((last.0, last.2), (copied.rows, true));
    assert!(copied.total.is_some_and(|total| total >= copied.rows), "{copied:?}");
}

#[tokio::test]
async fn a_backfill_resumes_after_its_last_durable_chunk_and_outlives_capture() {
    let catalog = table_catalog();
    let server = server_with(TABLE, ServerSettings::default(), &catalog).await;
    server.execute("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 950) n").await.unwrap();
    let session = server.session().await.unwrap();
    slot::drop_stream(&session, SLOT, "nobody").await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle.clone());
    let cancel = CancellationToken::new();
    let first = backfill
        .run(BackfillProgress::default(), &cancel, |progress| {
            if progress.rows >= 300 {
                cancel.cancel();
            }
        })
        .await
        .unwrap();
    assert!(!first.finished && first.rows >= 300 && first.after.parse::<u64>().unwrap() == first.rows);
    capture.stop().await.unwrap();
    // More may have been on its way when it was cancelled.
    let (rows, after, _) = notices(&log).pop().unwrap();
    let first = BackfillProgress { rows, after: after.into(), ..first };
    // The second run begins without a capture and waits for one.
    let cancel = CancellationToken::new();
    let resumed = backfill.run(first, &cancel, |_| {});
    let restarted = async {
        eventually(
            &server,
            "a waiting backfill",
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pg_logical_emit_message%' AND pid <> pg_backend_pid()",
        )
        .await;
        Running::start_with(config(&server, &catalog, log.durable()), &log, handle)
    };
    let (resumed, capture) = tokio::join!(resumed, restarted);
    let resumed = resumed.unwrap();
    assert_eq!((resumed.rows, resumed.finished, resumed.after.as_str()), (950, true, "950"));
    capture.stop().await.unwrap();
    let copied: Vec<String> = log.rows().iter().map(|r| r.key.clone().unwrap().to_string()).collect();
    assert_eq!(copied.len(), 950, "each row once");
    assert_eq!(notices(&log).pop(), Some((950, "950".into(), true)));
    let last = log.events().pop().unwrap();
    assert!(last.transaction.last, "the notice ends its transaction");
}

#[tokio::test]
async fn keys_of_every_kind_are_walked_in_order() {
    let fields = vec![field(1, "note", FieldKind::Text { length: 255 })];
    let catalog = catalog(vec![mapping(1, "k", &["tenant", "code"], fields)]);
    let create = "CREATE DOMAIN tenant AS uuid; CREATE TABLE k (code varchar(9), tenant tenant, note text, \
                  PRIMARY KEY (tenant, code)); \
                  INSERT INTO k SELECT E'q''\\\\' || n % 20, ('00000000-0000-0000-0000-00000000000' || n / 20)::uuid, n \
                  FROM generate_series(0, 99) n";
    let server = server_with(create, ServerSettings::default(), &catalog).await;
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let capture = Running::start_with(config(&server, &catalog, None), &log, handle.clone());
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 7, handle);
    let done = backfill.run(BackfillProgress::default(), &CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!((done.rows, done.finished), (100, true));
    let mut notes: Vec<u32> = log.rows().iter().map(|r| told(r, 1).unwrap().to_string().parse().unwrap()).collect();
    notes.sort_unstable();
    assert_eq!(notes, (0..100).collect::<Vec<_>>());
    capture.stop().await.unwrap();
}

/// A column that is mapped lately may be missing from what the stream holds of earlier times, but not after the first message of
/// a backfill, which has found it in the table.
#[tokio::test]
async fn a_new_column_may_be_missing_until_a_backfill_has_begun_to_read_it() {
    let catalog = table_catalog();
    let server = server_with(TABLE, ServerSettings::default(), &catalog).await;
    let version = server.value("SHOW server_version_num").await.unwrap().unwrap();
    if version.parse::<u32>().unwrap() < 150_000 {
        return;
    }
    server.execute("ALTER PUBLICATION \"tidelock test\" SET TABLE t (id, sfid)").await.unwrap();
    let log = MemoryLog::new();
    let handle = CaptureHandle::new();
    let unread =
        |first| CaptureConfig { unread: vec![(MappingId(1), FieldId(first))], ..config(&server, &catalog, None) };
    server.execute("INSERT INTO t VALUES (1, 'Ada', 'a')").await.unwrap();
    let refused = Running::start(unread(2), &log).ended().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Configuration, "it has been read before");
    no_reader(&server).await;
    let mut capture = Running::start_with(unread(1), &log, handle.clone());
    log.wait_for("the row", |log| log.rows().len() == 1).await;
    assert_eq!((told(&log.rows()[0], 1), told(&log.rows()[0], 2).is_some()), (None, true));
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle);
    backfill.run(BackfillProgress::default(), &CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!(log.rows().last().and_then(|row| told(row, 1)), Some(Value::text("Ada")));
    server.execute("INSERT INTO t VALUES (2, 'Bea', 'b')").await.unwrap();
    let refused = capture.ended().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Configuration);
    assert!(refused.to_string().contains("`name`"), "{refused}");
    assert_eq!(log.rows().len(), 2);
}

/// A row filter and a column list that are on purpose: the server turns what crosses the filter into inserts and deletes, and
/// copying reads no other rows.
#[tokio::test]
async fn what_a_publication_leaves_out_on_purpose_stays_out() {
    let catalog = table_catalog();
    let server = server_with(TABLE, ServerSettings::default(), &catalog).await;
    if version(&server).await < 150_000 {
        return;
    }
    server
        .execute(
            "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT n, 'old', NULL, n FROM generate_series(1, 20) n; \
             ALTER PUBLICATION \"tidelock test\" SET TABLE t WHERE (other <= 10)",
        )
        .await
        .unwrap();
    let session = server.session().await.unwrap();
    slot::drop_stream(&session, SLOT, "nobody").await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    let log = MemoryLog::new();
    let refused = Running::start(config(&server, &catalog, None), &log).ended().await.unwrap_err();
    assert!(refused.to_string().contains("row_filters = true"), "{refused}");
    no_reader(&server).await;
    let handle = CaptureHandle::new();
    let filtered = CaptureConfig { row_filters: true, ..config(&server, &catalog, None) };
    let capture = Running::start_with(filtered, &log, handle.clone());
    let known = KnownKeys { keys: vec![Key::from_parts(["3"]), Key::from_parts(["13"])], last: None };
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 7, handle)
        .looking_for(Arc::new(move |_| {
            let known = known.clone();
            Box::pin(async { Ok(known) })
        }))
        .published_by(PUBLICATION);
    let sweep = BackfillProgress { after: BackfillProgress::sweep(), ..BackfillProgress::default() };
    let done = backfill.run(sweep, &CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!((done.rows, done.finished), (10, true));
    for statement in [
        "UPDATE t SET other = 11, name = 'out' WHERE id = 1",
        "UPDATE t SET other = 5, name = 'in' WHERE id = 20",
        "UPDATE t SET name = 'unseen' WHERE id = 19",
        "UPDATE t SET name = 'seen' WHERE id = 2",
    ] {
        server.execute(statement).await.unwrap();
    }
    let said = |log: &MemoryLog| {
        let rows = log.rows().into_iter().filter(|r| r.operation != RowOperation::Backfill);
        rows.map(|r| format!("{:?} {}", r.operation, r.key.unwrap())).collect::<Vec<_>>()
    };
    log.wait_for("the last", |log| said(log).last().is_some_and(|last| last == "Update 2")).await;
    assert_eq!(said(&log), ["Missing 13", "Delete 1", "Insert 20", "Update 2"]);
    capture.stop().await.unwrap();

    // A list with everything that is mapped is as good as none.
    server
        .execute(
            "ALTER TABLE t REPLICA IDENTITY DEFAULT; ALTER PUBLICATION \"tidelock test\" SET TABLE t (id, name, sfid)",
        )
        .await
        .unwrap();
    let capture = Running::start(config(&server, &catalog, log.durable()), &log);
    server.execute("UPDATE t SET name = 'listed', other = 9 WHERE id = 2").await.unwrap();
    log.wait_for("the update", |log| told(log.rows().last().unwrap(), 1) == Some(Value::text("listed"))).await;
    capture.stop().await.unwrap();
}
