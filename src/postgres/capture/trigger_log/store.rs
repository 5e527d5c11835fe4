//! The statements that read the trigger log and say how far it has been read.
//!
//! A batch is what one snapshot sees and the one before it did not. Both are stored, durably, before anything of the batch is
//! told, so that it is the same rows in the same order whenever it is read again.
//!
//! Why this misses nothing: ids are drawn before a commit, so a lower id may become visible after a higher one, and a bound on
//! ids would pass it over. Snapshots do not ask for ids: every committed transaction is in exactly one batch, the first
//! whose snapshot sees it. Nor does a transaction that stays open for long hold the others up, as a bound on transaction ids would.
//!
//! Why the order is right: a row is locked when its trigger draws an id, and stays locked until the commit. So whoever changes
//! what another transaction changed, or what it had seen of it, draws a higher id than all of that one's; and a snapshot that
//! sees the later one sees the earlier one too. Transactions of a batch come in the order of their highest ids, which keeps to that.

use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::assemble::Logged;
use crate::change::Lsn;
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{Session, database_error};

/// How long a statement may take that only looks, or changes a row.
const QUICK: Duration = Duration::from_secs(30);
/// How long one may take that sorts or moves a batch, at least: a large one is given as long as it takes at this pace.
const THOROUGH: Duration = Duration::from_mins(10);
const BYTES_PER_SECOND: u64 = 1024 * 1024;
/// Rows that are read at a time.
pub(super) const PAGE: usize = 250;
/// Rows of the archive that are removed at a time.
const TRIM_PAGE: usize = 10_000;
/// The advisory lock of whoever reads a schema's log ("tidl").
const ADVISORY_CLASS: i32 = 0x7469_646c;

/// How far the log has been read, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamRow {
    /// Where the last finished batch ends.
    pub(super) done_lsn: Lsn,
    /// What the last finished batch saw.
    pub(super) done_snapshot: String,
    /// The place in the change log's stream that was durable when the last batch was finished.
    pub(super) told: Option<(Lsn, u32)>,
    /// The batch that has been begun.
    pub(super) batch: Option<BatchBounds>,
    /// What the triggers were when they were installed, by table.
    pub(super) tables: serde_json::Map<String, serde_json::Value>,
}

/// A batch that has been begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchBounds {
    /// Where the stream stands when it is done: every transaction whose commit could be seen there is in it, or was told before.
    pub(super) lsn: Lsn,
    /// What it sees.
    pub(super) snapshot: String,
}

/// The log of one schema.
pub(super) struct Store {
    session: Session,
    schema: String,
    quoted: String,
    id: String,
    /// Whether the server keeps the times of commits.
    commit_times: bool,
    /// How long a statement may take over the batch that is read.
    thorough: Duration,
    pub(super) row: StreamRow,
}

/// How long a statement may take over a log of so many bytes.
fn thorough(bytes: u64) -> Duration {
    THOROUGH.max(Duration::from_secs(bytes / BYTES_PER_SECOND))
}

/// Takes a schema's log for this session alone; answers whether nobody else has it.
pub(super) async fn lock(session: &Session, schema: &str) -> Result<bool> {
    let sql = format!("SELECT {}", advisory("pg_try_advisory_lock", schema));
    let messages = bounded(QUICK, session.simple_query(&sql), "taking the trigger log").await?;
    Ok(rows(&messages).next().and_then(|row| row.get(0)) == Some("t"))
}

/// Gives it back.
pub(super) async fn unlock(session: &Session, schema: &str) -> Result<()> {
    let sql = format!("SELECT {}", advisory("pg_advisory_unlock", schema));
    bounded(QUICK, session.batch_execute(&sql), "giving the trigger log back").await
}

fn advisory(function: &str, schema: &str) -> String {
    format!("pg_catalog.{function}({ADVISORY_CLASS}, pg_catalog.hashtext({}))", escape_literal(schema))
}

/// The error of a session that is not the only one.
pub(super) fn is_taken(schema: &str) -> Error {
    let message = format!(
        "another session reads the trigger log of schema {schema}: a Tidelock that still runs, or the connection of one that has \
         just ended. A schema's log has one link"
    );
    Error::new(Kind::Unavailable, message)
}

/// Reads how far a log has been read; none if there is no such stream.
pub(super) async fn read_stream(session: &Session, schema: &str, id: &str) -> Result<Option<StreamRow>> {
    let sql = format!(
        "SELECT done_lsn, done_snapshot, told_lsn, told_index, batch_lsn, batch_snapshot, tables::text \
         FROM {}._tidelock_stream WHERE id = {}",
        escape_identifier(schema),
        escape_literal(id)
    );
    let messages = bounded(QUICK, session.simple_query(&sql), "reading how far the trigger log has been read").await?;
    let Some(row) = rows(&messages).next() else { return Ok(None) };
    let wrong =
        || Error::new(Kind::Protocol, format!("{schema}._tidelock_stream holds what Tidelock did not write there"));
    let lsn = |n| row.get(n).map(|text| text.parse::<Lsn>().map_err(|_| wrong())).transpose();
    let told_index = row.get(3).map(|text| text.parse::<u32>().map_err(|_| wrong())).transpose()?;
    Ok(Some(StreamRow {
        done_lsn: lsn(0)?.ok_or_else(wrong)?,
        done_snapshot: row.get(1).ok_or_else(wrong)?.to_owned(),
        told: lsn(2)?.zip(told_index),
        batch: lsn(4)?.zip(row.get(5)).map(|(lsn, snapshot)| BatchBounds { lsn, snapshot: snapshot.to_owned() }),
        tables: row.get(6).and_then(|text| serde_json::from_str(text).ok()).ok_or_else(wrong)?,
    }))
}

impl Store {
    /// Takes the log up as its one reader.
    pub(super) async fn open(session: Session, schema: &str, id: &str) -> Result<Self> {
        let doing = "preparing to read the trigger log";
        let quoted = escape_identifier(schema);
        // A batch must be durable before it is told, whatever the server's default.
        let sql = format!(
            "SET synchronous_commit = local; SET lock_timeout = '30s'; SET statement_timeout = '10min'; \
             SET default_transaction_read_only = off; \
             SET default_transaction_isolation = 'read committed'; SET idle_in_transaction_session_timeout = 0; \
             LISTEN {}; SELECT pg_catalog.current_setting('track_commit_timestamp')",
            escape_identifier(&super::install::channel(schema)),
        );
        let messages = bounded(QUICK, session.simple_query(&sql), doing).await?;
        let commit_times = rows(&messages).next().and_then(|row| row.get(0)) == Some("on");
        if !lock(&session, schema).await? {
            return Err(is_taken(schema));
        }
        let row = read_stream(&session, schema, id).await?.ok_or_else(|| begun_anew(schema))?;
        let (schema, id) = (schema.to_owned(), id.to_owned());
        Ok(Self { session, schema, quoted, id, commit_times, thorough: THOROUGH, row })
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Begins the next batch, where there is one: where something was committed that the last one did not see, or `anyway`.
    pub(super) async fn begin(&mut self, anyway: bool) -> Result<Option<BatchBounds>> {
        let done = escape_literal(&self.row.done_snapshot);
        let unseen = |table: &str| {
            format!(
                "EXISTS (SELECT FROM {}.{table} AS l WHERE l.txid >= pg_catalog.txid_snapshot_xmin({done}) \
                 AND NOT pg_catalog.txid_visible_in_snapshot(l.txid, {done}))",
                self.quoted
            )
        };
        // The place is read before the snapshot is taken, so that the snapshot sees what had been committed there.
        let sql = format!(
            "SELECT pg_catalog.set_config('tidelock.place', pg_catalog.pg_current_wal_insert_lsn()::text, false); \
             UPDATE {}._tidelock_stream AS s SET batch_snapshot = pg_catalog.pg_current_snapshot()::text, \
             batch_lsn = greatest(s.done_lsn + 1, pg_catalog.current_setting('tidelock.place')::pg_lsn - 1) \
             WHERE s.id = {} AND s.batch_lsn IS NULL AND ({anyway} OR {} OR {}) RETURNING 'begun', batch_lsn, batch_snapshot",
            self.quoted,
            escape_literal(&self.id),
            unseen("_trigger_log"),
            unseen("_tidelock_log"),
        );
        let messages = bounded(QUICK, self.session.simple_query(&sql), "looking into the trigger log").await?;
        let begun = rows(&messages).find(|row| row.get(0) == Some("begun") && row.len() == 3);
        let begun = begun.and_then(|row| Some((row.get(1)?.parse().ok()?, row.get(2)?.to_owned())));
        match begun {
            Some((lsn, snapshot)) => {
                self.row.batch = Some(BatchBounds { lsn, snapshot });
                Ok(self.row.batch.clone())
            }
            None if anyway => Err(begun_anew(&self.schema)),
            None => Ok(None),
        }
    }

    /// Opens the batch's rows for reading.
    pub(super) async fn open_rows(&mut self, batch: &BatchBounds) -> Result<()> {
        let log = escape_literal(&format!("{}._trigger_log", self.quoted));
        let ours = escape_literal(&format!("{}._tidelock_log", self.quoted));
        let size = format!(
            "SELECT pg_catalog.pg_total_relation_size({log}) \
             + coalesce(pg_catalog.pg_total_relation_size(pg_catalog.to_regclass({ours})), 0)"
        );
        let messages = bounded(QUICK, self.session.simple_query(&size), "looking how large the trigger log is").await?;
        let bytes = rows(&messages).next().and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default();
        self.thorough = thorough(bytes);
        let (schema, written) = (&self.quoted, "q.written_at");
        let at = if self.commit_times {
            // A row's transaction id has 64 bits here; the server knows the lower half.
            format!("coalesce(pg_catalog.pg_xact_commit_timestamp((q.txid & 4294967295)::text::xid), {written})")
        } else {
            written.to_owned()
        };
        let of_batch = self.of_batch(batch);
        let sql = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; DECLARE changes NO SCROLL CURSOR FOR \
             SELECT q.txid, q.action, q.table_name, q.record_id, q.old, q.\"values\", q.actor, \
             (extract(epoch FROM {at}) * 1000000)::bigint \
             FROM (SELECT l.*, max(l.id) OVER w AS last_id, max(l.created_at) OVER w AS written_at FROM ( \
             SELECT id, txid, created_at, action::text, table_name::text, record_id, old, \"values\", actor \
             FROM {schema}._trigger_log AS l WHERE {of_batch} UNION ALL \
             SELECT id, txid, created_at, action, table_name, NULL::bigint, old, \"values\", actor \
             FROM {schema}._tidelock_log AS l WHERE {of_batch}) AS l WINDOW w AS (PARTITION BY l.txid)) AS q \
             ORDER BY q.last_id, q.id",
            self.thorough.as_millis(),
        );
        bounded(self.thorough, self.session.batch_execute(&sql), "reading the trigger log").await
    }

    /// The next of the rows, none at the end.
    pub(super) async fn fetch(&self) -> Result<Vec<SimpleQueryMessage>> {
        let sql = format!("FETCH FORWARD {PAGE} FROM changes");
        bounded(self.thorough, self.session.simple_query(&sql), "reading the trigger log").await
    }

    pub(super) async fn close_rows(&self) -> Result<()> {
        bounded(QUICK, self.session.batch_execute("COMMIT"), "reading the trigger log").await
    }

    /// Notes that the batch is durable in the change log, and takes its rows out of the trigger log, in one transaction.
    pub(super) async fn finish(&mut self, batch: &BatchBounds, told: Option<(Lsn, u32)>, archive: bool) -> Result<()> {
        let doing = "taking what is durable out of the trigger log";
        let (schema, of_batch) = (&self.quoted, self.of_batch(batch));
        let remove = format!("DELETE FROM {schema}._trigger_log AS l WHERE {of_batch}");
        let remove = if archive {
            format!(
                "WITH gone AS ({remove} RETURNING l.*) INSERT INTO {schema}._trigger_log_archive \
                 (id, txid, created_at, updated_at, processed_at, processed_tx, state, action, table_name, record_id, sfid, \
                 old, \"values\", sf_result, sf_message, actor) \
                 SELECT id, txid, created_at, pg_catalog.now(), pg_catalog.now(), pg_catalog.txid_current(), \
                 CASE state WHEN 'IGNORE' THEN 'IGNORED' ELSE 'SUCCESS' END, action, table_name, record_id, sfid, \
                 old, \"values\", sf_result, sf_message, actor FROM gone ON CONFLICT (id) DO NOTHING"
            )
        } else {
            remove
        };
        let (told_lsn, told_index) = told.map_or(("NULL".to_owned(), "NULL".to_owned()), |(lsn, index)| {
            (escape_literal(&lsn.to_string()), index.to_string())
        });
        let sql = format!(
            "BEGIN; SET LOCAL statement_timeout = {}; {remove}; DELETE FROM {schema}._tidelock_log AS l WHERE {of_batch}; \
             UPDATE {schema}._tidelock_stream SET done_lsn = batch_lsn, done_snapshot = batch_snapshot, batch_lsn = NULL, \
             batch_snapshot = NULL, told_lsn = {told_lsn}, told_index = {told_index} \
             WHERE id = {} AND batch_lsn = {} RETURNING 'finished'",
            self.thorough.as_millis(),
            escape_literal(&self.id),
            escape_literal(&batch.lsn.to_string()),
        );
        let messages = bounded(self.thorough, self.session.simple_query(&sql), doing).await?;
        if rows(&messages).next().is_none() {
            return Err(begun_anew(&self.schema));
        }
        bounded(QUICK, self.session.batch_execute("COMMIT"), doing).await?;
        self.row = StreamRow {
            done_lsn: batch.lsn,
            done_snapshot: batch.snapshot.clone(),
            told,
            batch: None,
            tables: std::mem::take(&mut self.row.tables),
        };
        Ok(())
    }

    /// Removes part of what has been in the archive for longer than so many days.
    pub(super) async fn trim(&self, days: u32) -> Result<()> {
        let schema = &self.quoted;
        let sql = format!(
            "DELETE FROM {schema}._trigger_log_archive WHERE id IN (SELECT id FROM {schema}._trigger_log_archive \
             WHERE created_at < pg_catalog.now() - pg_catalog.make_interval(days => {days}) LIMIT {TRIM_PAGE})"
        );
        bounded(THOROUGH, self.session.batch_execute(&sql), "removing old rows of the trigger log's archive").await
    }

    fn of_batch(&self, batch: &BatchBounds) -> String {
        let (done, seen) = (escape_literal(&self.row.done_snapshot), escape_literal(&batch.snapshot));
        format!(
            "l.txid >= pg_catalog.txid_snapshot_xmin({done}) AND NOT pg_catalog.txid_visible_in_snapshot(l.txid, {done}) \
             AND pg_catalog.txid_visible_in_snapshot(l.txid, {seen})"
        )
    }
}

/// A logged row, as the cursor tells it.
pub(super) fn logged(row: &SimpleQueryRow) -> Result<Logged<'_>> {
    let wrong = || Error::new(Kind::Protocol, "the trigger log holds a row without transaction, action or table");
    Ok(Logged {
        txid: row.get(0).and_then(|text| text.parse().ok()).ok_or_else(wrong)?,
        action: row.get(1).ok_or_else(wrong)?,
        table: row.get(2).ok_or_else(wrong)?,
        record_id: row.get(3),
        old: row.get(4),
        values: row.get(5),
        actor: row.get(6),
        committed_at: row.get(7).and_then(|text| text.parse().ok()).ok_or_else(wrong)?,
    })
}

pub(super) fn rows(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &SimpleQueryRow> {
    messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn begun_anew(schema: &str) -> Error {
    let message = format!(
        "the trigger log of schema {schema} was begun anew or removed by somebody else; when the link is started again, every row \
         is read again"
    );
    Error::new(Kind::StreamLost, message)
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    doing: &str,
) -> Result<T> {
    if let Ok(answer) = tokio::time::timeout(limit, call).await {
        return answer.map_err(|error| database_error(doing, error));
    }
    let message = format!("{doing}: PostgreSQL did not answer within {} s", limit.as_secs());
    Err(Error::new(Kind::Unavailable, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What waited for long before anybody read it must not end in a limit each time.
    #[test]
    fn a_large_log_is_given_more_time() {
        assert_eq!((thorough(0), thorough(100 << 20)), (THOROUGH, THOROUGH));
        assert_eq!(thorough(50 << 30), Duration::from_secs(50 * 1024));
    }
}
