//! Changing tables that are in use: what a change costs, and doing it without holding others up.
//!
//! A statement that changes a table needs its strongest lock. While it waits for that behind a long transaction, everybody
//! else waits behind it; so it waits for a moment only, and comes again later.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::database_error;
use crate::backoff::Backoff;
use crate::error::{Error, Kind, Result};

const SIZES: &str = include_str!("../../sql/table_sizes.sql");
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that a statement waits for its lock, with others waiting behind it.
const LOCK_TIMEOUT: &str = "2s";
/// How often it tries.
const ATTEMPTS_MAX: u32 = 12;
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How large a table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableSize {
    /// Rows, as the server estimates them; none before the first ANALYZE.
    pub rows: Option<i64>,
    /// Bytes on disk, with indexes.
    pub bytes: i64,
    /// Whether the publication lists the table's columns, so that a new one is not published.
    pub column_list: bool,
}

/// The sizes of those of the named tables that exist, by name.
pub async fn table_sizes(
    client: &Client,
    schema: &str,
    names: &[String],
    publication: &str,
) -> Result<BTreeMap<String, TableSize>> {
    let doing = "looking at the size of the mirror tables";
    let rows = match tokio::time::timeout(QUERY_TIMEOUT, client.query(SIZES, &[&schema, &names, &publication])).await {
        Ok(rows) => rows.map_err(|error| database_error(doing, error))?,
        Err(_) => {
            return Err(Error::new(Kind::Unavailable, format!("PostgreSQL did not answer in time while {doing}")));
        }
    };
    let sizes = rows.iter().map(|row| {
        let size = TableSize { rows: row.try_get(1)?, bytes: row.try_get(2)?, column_list: row.try_get(3)? };
        Ok((row.try_get(0)?, size))
    });
    sizes.collect::<Result<_, tokio_postgres::Error>>().map_err(|error| database_error(doing, error))
}

/// Runs one statement in a transaction of its own, again and again while somebody's lock is in its way. With a limit it is given up
/// if it takes longer than that.
///
/// May be cancelled: then the statement took effect whole, or not at all.
pub async fn alter(client: &mut Client, sql: &str, limit: Option<Duration>) -> Result<()> {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let Err(error) = once(client, sql, limit).await else { return Ok(()) };
        let waits = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        let in_the_way = error.code().is_some_and(|code| waits.contains(code));
        if !in_the_way || attempts == ATTEMPTS_MAX {
            return Err(database_error(&format!("running {sql}"), error));
        }
        let wait = backoff.next_wait();
        tracing::info!(
            sql,
            attempts,
            wait_ms = wait.as_millis() as u64,
            "somebody holds the table locked; it is tried again"
        );
        tokio::time::sleep(wait).await;
    }
}

async fn once(client: &mut Client, sql: &str, limit: Option<Duration>) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    // Our own mark: nothing here is a user's edit. Labels are quoted for standard strings.
    let mut settings = format!(
        "SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL tidelock.replay = 'on'; \
         SET LOCAL standard_conforming_strings = on"
    );
    if let Some(limit) = limit {
        settings.push_str("; SET LOCAL statement_timeout = ");
        settings.push_str(&limit.as_millis().to_string());
    }
    transaction.batch_execute(&settings).await?;
    transaction.batch_execute(sql).await?;
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::demo::server::{PostgresServer, ServerSettings};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lock_in_the_way_is_waited_for_and_others_are_not_held_up() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        server
            .execute("CREATE TABLE t (id int PRIMARY KEY, c varchar(3)); INSERT INTO t VALUES (1, 'abc')")
            .await
            .unwrap();
        let holder = server.session().await.unwrap();
        holder.batch_execute("BEGIN; SELECT * FROM t").await.unwrap();
        let mut session = server.session().await.unwrap();
        let mut altering = tokio::task::JoinSet::new();
        altering.spawn(async move { alter(&mut session, "ALTER TABLE t ALTER COLUMN c TYPE varchar(9)", None).await });
        let tried = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        while server.value(tried).await.unwrap().as_deref() == Some("0") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Behind the waiting statement, until it gives way.
        server.execute("INSERT INTO t VALUES (2, 'abc')").await.unwrap();
        holder.batch_execute("COMMIT").await.unwrap();
        altering.join_next().await.unwrap().unwrap().unwrap();
        server.execute("INSERT INTO t VALUES (3, 'abcdefghi')").await.unwrap();
        let mut session = server.session().await.unwrap();
        let refused = alter(&mut session, "ALTER TABLE t ALTER COLUMN c TYPE int", None).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration);
        alter(&mut session, "ALTER TABLE t ADD COLUMN d int", None).await.unwrap();
        // What nobody has asked for may not hold others up.
        let slow = "ALTER TABLE t ADD COLUMN e text DEFAULT pg_sleep(600)::text";
        let given_up = alter(&mut session, slow, Some(Duration::from_millis(200))).await.unwrap_err();
        assert!(given_up.explain().contains("statement timeout"), "{given_up}");
    }

    #[tokio::test]
    async fn sizes_have_partitions_and_column_lists_in_them() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        server
            .execute(
                "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000); INSERT INTO p SELECT generate_series(0, 499); \
                 CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 300); \
                 CREATE PUBLICATION pub FOR TABLE t; ANALYZE; CREATE TABLE n (id int PRIMARY KEY)",
            )
            .await
            .unwrap();
        let session = server.session().await.unwrap();
        let names = ["n", "p", "t", "missing"].map(str::to_owned);
        let sizes = table_sizes(&session, "public", &names, "pub").await.unwrap();
        assert_eq!((sizes.len(), sizes["n"].rows), (3, None));
        assert_eq!((sizes["p"].rows, sizes["t"].rows), (Some(500), Some(300)));
        assert!(sizes["p"].bytes > 0 && !sizes["t"].column_list);
        let version: u32 = server.value("SHOW server_version_num").await.unwrap().unwrap().parse().unwrap();
        if version >= 150_000 {
            server.execute("ALTER PUBLICATION pub SET TABLE t (id)").await.unwrap();
            assert!(table_sizes(&session, "public", &names, "pub").await.unwrap()["t"].column_list);
        }
    }
}
