//! Backfill: copying the rows that existed before capture began, while everything goes on.
//!
//! Rows are read by key in chunks, each between two watermark messages (see `capture::watermark`), so a chunk's rows
//! take their place in the stream without a long snapshot or a lock. A chunk and the notice of how far the backfill has come
//! are durable together; after a crash it resumes from the last notice's key.
//!
//! Where a stream was lost, so were the deletes in it. Then the rows that the log knows are looked for first, in the same way,
//! and those that are not there any more are told as missing.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::sync::oneshot;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;

use super::capture::CaptureHandle;
use super::capture::watermark::{BACKFILL_PREFIX, Chunk, ChunkOutcome, ChunkRow, Snapshot, Window};
use super::connect::{Session, database_error};
use super::endpoint::Endpoint;
use super::marks::Marks;
use crate::change::{FieldDef, FieldKind, Key, MappingDef, Str, Value};
use crate::error::{Error, Kind, Result};
use crate::mapping;

/// The most rows in a chunk: they leave in one batch.
const CHUNK_ROWS_MAX: usize = 50_000;
/// How long to wait before a chunk is read again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long one statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_mins(10);

/// What a place begins with while known rows are looked for; it is followed by the key that this has come to. No key begins so:
/// U+001E stands before U+001E or U+001F alone.
const SWEEP: &str = "\u{1e}sweep:";

/// Keys that the log has for living rows of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownKeys {
    /// Some of them.
    pub keys: Vec<Key>,
    /// The key to go on after; `None` at the end.
    pub last: Option<Str>,
}

/// Gives the keys that the log knows of after one (none at first), in an order of its own.
pub type KnownRows = Arc<dyn Fn(Option<Str>) -> Pin<Box<dyn Future<Output = Result<KnownKeys>> + Send>> + Send + Sync>;

/// How far a backfill has come. What a run ended or was interrupted with, another resumes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackfillProgress {
    /// Rows read so far.
    pub rows: u64,
    /// Everything up to this key is done; empty before the first row.
    pub after: Str,
    /// Whether it is complete.
    pub finished: bool,
}

impl BackfillProgress {
    /// The place of a backfill that looks for the rows that are known before it reads those that are there.
    pub const fn sweep() -> Str {
        Str::new_static(SWEEP)
    }

    /// Whether a place is one where known rows are looked for.
    pub fn is_sweep(after: &str) -> bool {
        after.starts_with(SWEEP)
    }
}

/// A backfill of one mapping's table.
pub struct Backfill {
    endpoint: Endpoint,
    mapping: MappingDef,
    chunk_rows: usize,
    capture: CaptureHandle,
    known: Option<KnownRows>,
    marks: Marks,
    publication: Option<String>,
}

/// A column of the table.
struct Column {
    /// What it is declared as, for a cast.
    declared: String,
    /// Its type, a domain's base type.
    type_oid: u32,
}

/// What is read, and how.
struct Reading {
    /// `SELECT key columns, mapped columns FROM table`.
    select: String,
    /// The table, as it stands behind `FROM`.
    table: String,
    /// The key columns, quoted, in key order.
    key_columns: Vec<String>,
    key_types: Vec<String>,
    fields: Vec<(FieldDef, u32)>,
    /// The publication's row filter.
    filter: Option<String>,
}

impl Backfill {
    /// A backfill through the capture that the handle belongs to. `chunk_rows` is brought within 2 to 50,000.
    pub fn new(endpoint: Endpoint, mapping: MappingDef, chunk_rows: usize, capture: CaptureHandle) -> Self {
        Self {
            endpoint,
            mapping,
            chunk_rows: chunk_rows.clamp(2, CHUNK_ROWS_MAX),
            capture,
            known: None,
            marks: Marks::default(),
            publication: None,
        }
    }

    /// The same with its watermarks where capture reads.
    #[must_use]
    pub fn marked_by(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    /// The same with the rows that the log knows, for a backfill that begins by looking for them.
    #[must_use]
    pub fn looking_for(self, known: KnownRows) -> Self {
        Self { known: Some(known), ..self }
    }

    /// The same for those rows alone that the publication does not leave out by a row filter: the stream tells of no others.
    #[must_use]
    pub fn published_by(self, publication: &str) -> Self {
        Self { publication: Some(publication.to_owned()), ..self }
    }

    /// Runs to the end or until cancelled; returns how far it came. `on_progress` is called when a chunk is durable.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: run it again from the last progress. A capture that restarts meanwhile is waited for.
    pub async fn run(
        &self,
        from: BackfillProgress,
        cancel: &CancellationToken,
        mut on_progress: impl FnMut(&BackfillProgress) + Send,
    ) -> Result<BackfillProgress> {
        let mut progress = from;
        let session = Session::open(&self.endpoint).await?;
        let settings =
            format!("SET synchronous_commit = local; SET statement_timeout = {}", STATEMENT_TIMEOUT.as_millis());
        session.batch_execute(&settings).await.map_err(|e| self.failed("preparing", e))?;
        let reading = Reading::of(&session, &self.mapping, self.publication.as_deref()).await?;
        while !progress.finished {
            let chunk = self.copy_chunk(&session, &reading, &progress);
            let copied = tokio::select! {
                () = cancel.cancelled() => return Ok(progress),
                copied = chunk => copied?,
            };
            match copied {
                Some(next) => {
                    progress = next;
                    on_progress(&progress);
                }
                None => tokio::time::sleep(AGAIN_AFTER).await,
            }
        }
        session.close().await?;
        Ok(progress)
    }

    /// Copies the chunk after `progress`; none if it must be read again.
    async fn copy_chunk(
        &self,
        session: &Session,
        reading: &Reading,
        progress: &BackfillProgress,
    ) -> Result<Option<BackfillProgress>> {
        let id = window_id()?;
        let (chunk_tx, chunk) = oneshot::channel();
        let (outcome_tx, outcome) = oneshot::channel();
        self.capture.announce(Window { id: id.clone(), mapping: self.mapping.id, chunk, outcome: outcome_tx })?;
        self.emit(session, "low", &id).await?;
        let chunk = match progress.after.strip_prefix(SWEEP) {
            Some(after) => self.look_for_known(session, reading, progress.rows, after).await?,
            None => self.read_chunk(session, reading, progress).await?,
        };
        let next = BackfillProgress { rows: chunk.rows_total, after: chunk.after.clone(), finished: chunk.finished };
        if chunk_tx.send(chunk).is_err() {
            // Capture was restarted since; the next one opens a window of its own.
            return Ok(None);
        }
        self.emit(session, "high", &id).await?;
        match outcome.await {
            Ok(ChunkOutcome::Durable) => Ok(Some(next)),
            Ok(ChunkOutcome::Again) | Err(_) => Ok(None),
        }
    }

    async fn emit(&self, session: &Session, which: &str, id: &str) -> Result<()> {
        let content = format!("{{\"{which}\":\"{id}\"}}");
        let sql = self.marks.emit(BACKFILL_PREFIX, &content);
        session.batch_execute(&sql).await.map_err(|e| self.failed("writing a watermark", e))
    }

    async fn read_chunk(&self, session: &Session, reading: &Reading, from: &BackfillProgress) -> Result<Chunk> {
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.pg_current_snapshot()::text; {}; COMMIT",
            reading.chunk_sql(&from.after, self.chunk_rows)?
        );
        let messages = session.simple_query(&sql).await.map_err(|e| self.failed("reading rows", e))?;
        let mut rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let snapshot = rows.next().and_then(|row| row.get(0)).and_then(Snapshot::parse);
        let snapshot = snapshot.ok_or_else(|| Error::new(Kind::Protocol, "the server told no snapshot"))?;
        let rows = rows.map(|row| reading.row(row)).collect::<Result<Vec<ChunkRow>>>()?;
        let after = rows.last().map_or_else(|| from.after.clone(), |row| row.key.0.clone());
        Ok(Chunk {
            snapshot,
            missing: Vec::new(),
            rows_total: from.rows + rows.len() as u64,
            after,
            finished: rows.len() < self.chunk_rows,
            rows,
        })
    }

    /// Looks for rows that the log knows; at the end of them, the rows that are there come next.
    async fn look_for_known(&self, session: &Session, reading: &Reading, rows: u64, after: &str) -> Result<Chunk> {
        let after = Some(Str::new(after)).filter(|after| !after.is_empty());
        let KnownKeys { keys, last } = match &self.known {
            Some(known) => known(after).await?,
            None => KnownKeys::default(),
        };
        let missing_sql = reading.missing_sql(&keys)?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.pg_current_snapshot()::text; {missing_sql}; COMMIT"
        );
        let messages = session.simple_query(&sql).await.map_err(|e| self.failed("looking for rows", e))?;
        let mut told = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let snapshot = told.next().and_then(Snapshot::parse);
        let snapshot = snapshot.ok_or_else(|| Error::new(Kind::Protocol, "the server told no snapshot"))?;
        let missing = told.filter_map(|n| keys.get(n.parse::<usize>().ok()?).cloned()).collect();
        let after = last.map_or_else(Str::default, |last| smol_str::format_smolstr!("{SWEEP}{last}"));
        Ok(Chunk { rows: Vec::new(), missing, snapshot, rows_total: rows, after, finished: false })
    }

    fn failed(&self, doing: &str, error: tokio_postgres::Error) -> Error {
        let MappingDef { schema, table, name, .. } = &self.mapping;
        database_error(&format!("backfill of {schema}.{table} (mapping `{name}`), {doing}"), error)
    }
}

/// Columns with their declared types and what domains are made of.
const COLUMNS: &str = "WITH RECURSIVE base (attname, declared, typ) AS ( \
       SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid FROM pg_catalog.pg_attribute a \
       JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
       WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped \
     UNION ALL \
       SELECT b.attname, b.declared, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ \
       WHERE t.typtype = 'd') \
     SELECT b.attname::text, b.declared, b.typ FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ \
     WHERE t.typtype <> 'd'";

impl Reading {
    async fn of(session: &Session, mapping: &MappingDef, publication: Option<&str>) -> Result<Self> {
        let MappingDef { schema, table, .. } = mapping;
        let doing = format!("looking at the table {schema}.{table}");
        let rows = session.query(COLUMNS, &[schema, table]).await.map_err(|e| database_error(&doing, e))?;
        let columns: HashMap<String, Column> =
            rows.iter().map(|row| (row.get(0), Column { declared: row.get(1), type_oid: row.get(2) })).collect();
        let find = |name: &String| {
            columns.get(name).ok_or_else(|| {
                let message = format!("the table {schema}.{table} has no column `{name}`, or does not exist");
                Error::new(Kind::Configuration, message)
            })
        };
        let key_types =
            mapping.key_columns.iter().map(|c| Ok(find(c)?.declared.clone())).collect::<Result<Vec<_>>>()?;
        let fields =
            mapping.fields.iter().map(|f| Ok((f.clone(), find(&f.column)?.type_oid))).collect::<Result<Vec<_>>>()?;
        let relkind = "SELECT c.relkind::text FROM pg_catalog.pg_class c \
                       JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
        let row = session.query_one(relkind, &[schema, table]).await.map_err(|e| database_error(&doing, e))?;
        // Children of an inherited table are tables of their own in the stream; partitions are their root.
        let only = if row.get::<_, &str>(0) == "p" { "" } else { "ONLY " };
        let key_columns: Vec<String> = mapping.key_columns.iter().map(|c| escape_identifier(c)).collect();
        let field_columns = mapping.fields.iter().map(|f| escape_identifier(&f.column));
        let list: Vec<String> = key_columns.iter().cloned().chain(field_columns).collect();
        let table = format!("{only}{}.{}", escape_identifier(schema), escape_identifier(table));
        let select = format!("SELECT {} FROM {table}", list.join(", "));
        // Version 14 has no row filters, and no such column.
        let filter = "SELECT pg_catalog.to_jsonb(t) ->> 'rowfilter' FROM pg_catalog.pg_publication_tables t \
                      WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3";
        let (schema, name) = (&mapping.schema, &mapping.table);
        let row =
            session.query_opt(filter, &[&publication, schema, name]).await.map_err(|e| database_error(&doing, e))?;
        let filter = row.and_then(|row| row.get(0));
        Ok(Self { select, table, key_columns, key_types, fields, filter })
    }

    /// The query of the rows after a key.
    fn chunk_sql(&self, after: &Str, limit: usize) -> Result<String> {
        let keys = self.key_columns.join(", ");
        let filter = self.filter.as_deref().unwrap_or("true");
        let behind = if after.is_empty() {
            String::new()
        } else {
            format!(" AND ({keys}) > ({})", self.key_values(&Key(after.clone()))?)
        };
        Ok(format!("{} WHERE ({filter}){behind} ORDER BY {keys} LIMIT {limit}", self.select))
    }

    /// A key's values as SQL.
    fn key_values(&self, key: &Key) -> Result<String> {
        let parts = key.parts();
        if parts.len() != self.key_types.len() {
            let message = "a key that the log knows does not fit the table's key; start the link with a new log";
            return Err(Error::new(Kind::Configuration, message));
        }
        let values = parts.iter().zip(&self.key_types).map(|(part, ty)| format!("{}::{ty}", escape_literal(part)));
        Ok(values.collect::<Vec<String>>().join(", "))
    }

    /// The query of the places of those keys that name no row, by the database's own comparison.
    fn missing_sql(&self, keys: &[Key]) -> Result<String> {
        if keys.is_empty() {
            return Ok("SELECT WHERE false".into());
        }
        let values = keys.iter().enumerate().map(|(n, key)| Ok(format!("({n}, {})", self.key_values(key)?)));
        let values = values.collect::<Result<Vec<String>>>()?.join(", ");
        let names: Vec<String> = (0..self.key_columns.len()).map(|n| format!("k{n}")).collect();
        let equal = self.key_columns.iter().zip(&names).map(|(column, name)| format!("t.{column} = known.{name}"));
        Ok(format!(
            "SELECT known.n FROM (VALUES {values}) AS known (n, {}) WHERE NOT EXISTS (SELECT FROM {} AS t WHERE ({}) AND {})",
            names.join(", "),
            self.table,
            self.filter.as_deref().unwrap_or("true"),
            equal.collect::<Vec<String>>().join(" AND ")
        ))
    }

    fn row(&self, row: &SimpleQueryRow) -> Result<ChunkRow> {
        let width = self.key_columns.len();
        let parts: Option<Vec<&str>> = (0..width).map(|n| row.get(n)).collect();
        let parts = parts.ok_or_else(|| {
            Error::new(Kind::Configuration, "a row has null in its key columns, so that nothing names it")
        })?;
        let mut salesforce_id = None;
        let mut fields = Vec::with_capacity(self.fields.len());
        for (n, (field, type_oid)) in self.fields.iter().enumerate() {
            let value = match row.get(width + n) {
                Some(text) => mapping::from_postgres(&field.kind, *type_oid, text),
                None => mapping::normalise(&field.kind, Value::Null),
            };
            if field.kind == FieldKind::Id {
                salesforce_id = value.as_text().map(Str::new);
            }
            fields.push((field.id, value));
        }
        fields.sort_by_key(|(id, _)| *id);
        Ok(ChunkRow { key: Key::from_parts(parts), salesforce_id, fields })
    }
}

/// An id that no other run, dead or alive, has used.
fn window_id() -> Result<String> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new(Kind::Internal, "the random generator failed"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
