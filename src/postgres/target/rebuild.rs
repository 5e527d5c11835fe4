//! A mirror that is made from the change log alone, in a database that no link writes to.
//!
//! * **Never back.** `tidelock.rebuilt` has, for each record, the last entry and the changes that its row holds. An image that goes no
//!   further is skipped, so that any range can be sent again, in any order.
//! * **Once.** The row and what is noted of it are written in one transaction. Whatever cuts that short, the same call again goes on.
//! * **Compare and set.** The transaction that wrote the row last is noted. A row that anybody else has written since is left as it is.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use postgres_protocol::escape::escape_literal;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::fault::{Fault, Refusal};
use super::table::{Column, Field, Table};
use super::{ADVISORY_CLASS, APPLICATION_NAME, describe_in};
use crate::change::{Catalog, FieldId, Key, MappingId, Offset, RecordId};
use crate::error::{Error, Kind, Result};
use crate::flow::Image;
use crate::postgres::connect::{Session, database_error};
use crate::postgres::endpoint::Endpoint;
use crate::postgres::slot;

const CREATE_REBUILT: &str = include_str!("../../../sql/rebuilt.sql");
/// How long the server may leave a statement without an answer.
const ANSWER_WITHIN: Duration = Duration::from_mins(2);
const SETTINGS: &str =
    "SET statement_timeout = '1min'; SET lock_timeout = '5s'; SET default_transaction_read_only = off";
/// How often a transaction is tried that somebody's lock was in the way of, and the pause between two tries.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What is done about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    /// The row holds it, or something later.
    Nothing,
    /// The row holds the same values, which is noted; likewise that there is to be no row.
    Note,
    Create,
    Update,
    Delete,
}

/// What is noted of a record.
struct Held {
    at: Offset,
    /// Whether it has a row.
    row: bool,
    digest: Option<Vec<u8>>,
}

/// How many records came to what.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rebuilt {
    /// Rows made.
    pub created: u64,
    /// Rows changed.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Records of which the mirror held everything.
    pub skipped: u64,
    /// Records whose row somebody else has changed or deleted: they were left as they are.
    pub edited: Vec<RecordId>,
    /// Records whose row the server does not accept, and why.
    pub refused: BTreeMap<RecordId, String>,
}

impl Rebuilt {
    /// Whether the mirror has everything that it was to have.
    pub fn is_complete(&self) -> bool {
        self.edited.is_empty() && self.refused.is_empty()
    }

    fn count(&mut self, todo: Todo) {
        let count = match todo {
            Todo::Nothing | Todo::Note => &mut self.skipped,
            Todo::Create => &mut self.created,
            Todo::Update => &mut self.updated,
            Todo::Delete => &mut self.deleted,
        };
        *count += 1;
    }
}

/// A session that makes such a mirror. One at a time may, for a log.
pub struct Rebuild {
    session: Session,
    log: String,
    tables: BTreeMap<MappingId, Table>,
    statements: HashMap<String, Statement>,
    /// Whether anything can be noted yet: not before the mirror is made.
    is_made: bool,
    done: Rebuilt,
    /// Images whose row was not accepted yet: another one may have to go first.
    waiting: Vec<Image>,
}

impl Rebuild {
    /// Connects. `own` is the stream that the log has read of PostgreSQL: its database is refused.
    pub async fn open(endpoint: &Endpoint, log: &str, own: Option<&str>) -> Result<Self> {
        let endpoint = endpoint.clone().with_application_name(APPLICATION_NAME);
        let session = Session::answering_within(&endpoint, ANSWER_WITHIN).await?;
        let doing = "setting up the session that makes the mirror";
        session.batch_execute(SETTINGS).await.map_err(|e| database_error(doing, e))?;
        let found = slot::database_identity(&session).await?;
        if own.is_some_and(|own| slot::check_database(own, &found).is_ok()) {
            let message = format!(
                "{endpoint} is the link's own database, which the link keeps in step; name another database, or leave out --target"
            );
            return Err(Error::new(Kind::Configuration, message));
        }
        let lock = format!("SELECT pg_catalog.pg_try_advisory_lock({ADVISORY_CLASS}, pg_catalog.hashtext($1))");
        let row = session.query_one(&lock, &[&format!("rebuild {log}")]).await.map_err(|e| database_error(doing, e))?;
        if !row.get::<_, bool>(0) {
            let message =
                format!("another session makes a mirror from this log at {endpoint}; wait until it has ended");
            return Err(Error::new(Kind::Unavailable, message));
        }
        let mut rebuild = Self {
            session,
            log: log.to_owned(),
            tables: BTreeMap::new(),
            statements: HashMap::new(),
            is_made: false,
            done: Rebuilt::default(),
            waiting: Vec::new(),
        };
        rebuild.is_made = rebuild.exists("tidelock.rebuilt").await?;
        Ok(rebuild)
    }

    /// The session, for what the mirror's tables need.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    async fn exists(&self, table: &str) -> Result<bool> {
        let doing = "looking at what the database has";
        let row = self.session.query_one("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[&table]).await;
        Ok(row.map_err(|e| database_error(doing, e))?.get(0))
    }

    /// Refuses tables with rows, where nothing was written from this log yet: they are somebody else's.
    pub async fn check_empty(&self, catalog: &Catalog) -> Result<()> {
        let doing = "looking whether the tables are empty";
        let failed = |e| database_error(doing, e);
        if self.is_made {
            let sql = "SELECT EXISTS (SELECT FROM tidelock.rebuilt WHERE log = $1)";
            if self.session.query_one(sql, &[&self.log]).await.map_err(failed)?.get(0) {
                return Ok(());
            }
        }
        for mapping in &catalog.mappings {
            let name = crate::mapping::mirror::qualified(&mapping.schema, &mapping.table);
            if !self.exists(&name).await? {
                continue;
            }
            let sql = format!("SELECT EXISTS (SELECT FROM {name})");
            if self.session.query_one(&sql, &[]).await.map_err(failed)?.get(0) {
                let message = format!(
                    "table {}.{} has rows that were not written from this log; name a database where the mirror's tables are empty \
                     or missing",
                    mapping.schema, mapping.table
                );
                return Err(Error::new(Kind::Configuration, message));
            }
        }
        Ok(())
    }

    /// Makes the table of what the mirror holds, once the mirror's own tables are there, and looks at those.
    pub async fn make(&mut self, catalog: &Catalog) -> Result<()> {
        let doing = "making the table of what the mirror holds";
        self.session.batch_execute(CREATE_REBUILT).await.map_err(|e| database_error(doing, e))?;
        self.is_made = true;
        self.look_at_tables(catalog).await
    }

    /// Looks at the mirror's tables, which must be there.
    pub async fn look_at_tables(&mut self, catalog: &Catalog) -> Result<()> {
        for mapping in &catalog.mappings {
            self.tables.insert(mapping.id, describe_in(&self.session, mapping).await?);
        }
        Ok(())
    }

    /// Counts what would be written, as if it were done.
    pub async fn count(&mut self, images: &[Image]) -> Result<()> {
        for todo in self.decide(images).await.map_err(|fault| fault.into_error("reading what the mirror holds"))? {
            self.done.count(todo);
        }
        Ok(())
    }

    /// Writes what the mirror lacks of these records.
    pub async fn write(&mut self, images: Vec<Image>) -> Result<()> {
        let doing = "writing rows of the mirror";
        match self.try_patiently(&images).await {
            Ok(()) => Ok(()),
            Err(Fault::Row(_)) => {
                for image in images {
                    self.write_alone(image).await.map_err(|fault| fault.into_error(doing))?;
                }
                Ok(())
            }
            Err(fault) => Err(fault.into_error(doing)),
        }
    }

    /// Writes what had to wait for other rows, gives keys behind the rows' own to come, and answers how it went.
    pub async fn finish(mut self, catalog: &Catalog) -> Result<Rebuilt> {
        let doing = "writing rows of the mirror";
        loop {
            let before = self.waiting.len();
            for image in std::mem::take(&mut self.waiting) {
                self.write_alone(image).await.map_err(|fault| fault.into_error(doing))?;
            }
            if self.waiting.is_empty() || self.waiting.len() == before {
                break;
            }
        }
        if self.done.created > 0 && !self.tables.is_empty() && self.is_made {
            self.move_sequences(catalog).await?;
        }
        self.session.close().await?;
        Ok(self.done)
    }

    /// Lets the tables' own sequences go on behind the keys that were written.
    pub async fn move_sequences(&self, catalog: &Catalog) -> Result<()> {
        let doing = "moving the sequences of the mirror's keys";
        let counts =
            |id| self.tables.get(&id).is_some_and(|table: &Table| table.keys.iter().all(Column::is_whole_number));
        for mapping in catalog.mappings.iter().filter(|m| m.key_columns == ["id"] && counts(m.id)) {
            let table = crate::mapping::mirror::qualified(&mapping.schema, &mapping.table);
            let sql = format!(
                "SELECT pg_catalog.setval(s, m) FROM (SELECT pg_catalog.pg_get_serial_sequence({}, 'id') AS s, \
                 (SELECT max(id) FROM {table}) AS m) AS k WHERE s IS NOT NULL AND m IS NOT NULL",
                escape_literal(&table)
            );
            self.session.batch_execute(&sql).await.map_err(|e| database_error(doing, e))?;
        }
        Ok(())
    }

    /// One image in a transaction of its own. Where the server does not accept it, it waits, or is refused at last.
    async fn write_alone(&mut self, image: Image) -> Result<(), Fault> {
        self.done.refused.remove(&image.record);
        match self.try_patiently(std::slice::from_ref(&image)).await {
            Ok(()) => Ok(()),
            Err(Fault::Row(Refusal { code, message })) => {
                self.done.refused.insert(image.record, format!("{message} ({code})"));
                self.waiting.push(image);
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    async fn try_patiently(&mut self, images: &[Image]) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            tries += 1;
            let fault = match self.transact(images).await {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            };
            if !matches!(fault, Fault::Fatal(_)) {
                self.simple("ROLLBACK").await?;
            }
            match fault {
                Fault::Locked(_) | Fault::Busy(_) if tries < TRIES => tokio::time::sleep(PAUSE * tries).await,
                fault => return Err(fault),
            }
        }
    }

    async fn simple(&self, sql: &str) -> Result<(), Fault> {
        self.session.batch_execute(sql).await.map_err(|e| Fault::of(e, "writing rows of the mirror"))
    }

    async fn transact(&mut self, images: &[Image]) -> Result<(), Fault> {
        self.simple(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL xmlbinary = 'hex'; SET LOCAL tidelock.replay = 'on'",
        )
        .await?;
        let todos = self.decide(images).await?;
        let mut calls = Vec::new();
        for (image, todo) in images.iter().zip(&todos) {
            let Some(table) = self.tables.get(&image.mapping) else { continue };
            if let Some((sql, values)) = statement(table, image, *todo) {
                let digest = digest(table, image);
                calls.push((self.prepared(sql).await?, values, digest, image, *todo));
            }
        }
        let numbers: Vec<[i64; 4]> = calls.iter().map(|(.., image, _)| numbers(image)).collect();
        let mappings: Vec<i32> = calls.iter().map(|(.., image, _)| i32::from(image.mapping.0)).collect();
        let mut pending = Vec::with_capacity(calls.len());
        for (((statement, values, digest, ..), numbers), mapping) in calls.iter().zip(&numbers).zip(&mappings) {
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&self.log, mapping];
            parameters.extend(numbers.iter().map(|n| n as &(dyn ToSql + Sync)));
            parameters.push(digest);
            parameters.extend(values.iter().map(|value| value as &(dyn ToSql + Sync)));
            let session = &self.session;
            pending.push(async move { session.execute(statement, &parameters).await });
        }
        let written = all(pending).await.map_err(|e| Fault::of(e, "writing rows of the mirror"))?;
        let fates: Vec<(RecordId, Todo, u64)> =
            calls.iter().zip(written).map(|((.., image, todo), rows)| (image.record, *todo, rows)).collect();
        self.simple("COMMIT").await?;
        for todo in todos.into_iter().filter(|todo| *todo == Todo::Nothing) {
            self.done.count(todo);
        }
        for (record, todo, rows) in fates {
            match (rows, todo) {
                (0, Todo::Create) => {
                    self.done.refused.insert(record, "a trigger or rule of the table suppressed the row".to_owned());
                }
                (0, _) => self.done.edited.push(record),
                _ => self.done.count(todo),
            }
        }
        Ok(())
    }

    async fn prepared(&mut self, sql: String) -> Result<Statement, Fault> {
        if let Some(statement) = self.statements.get(&sql) {
            return Ok(statement.clone());
        }
        let statement = self.session.prepare(&sql).await.map_err(|e| Fault::of(e, "preparing to write the mirror"))?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    async fn decide(&self, images: &[Image]) -> Result<Vec<Todo>, Fault> {
        let held = self.held(images).await?;
        let decided = images.iter().map(|image| {
            let digest = self.tables.get(&image.mapping).and_then(|table| digest(table, image));
            decide(image, held.get(&image.record), digest.as_deref())
        });
        Ok(decided.collect())
    }

    async fn held(&self, images: &[Image]) -> Result<HashMap<RecordId, Held>, Fault> {
        if !self.is_made {
            return Ok(HashMap::new());
        }
        let doing = "reading what the mirror holds";
        let sql =
            "SELECT record, at, key IS NOT NULL, digest FROM tidelock.rebuilt WHERE log = $1 AND record = ANY ($2)";
        let records: Vec<i64> = images.iter().map(|image| image.record.0 as i64).collect();
        let rows = self.session.query(sql, &[&self.log, &records]).await.map_err(|e| Fault::of(e, doing))?;
        let held = rows.iter().map(|row| {
            let held = Held { at: Offset(row.get::<_, i64>(1) as u64), row: row.get(2), digest: row.get(3) };
            (RecordId(row.get::<_, i64>(0) as u64), held)
        });
        Ok(held.collect())
    }
}

fn decide(image: &Image, held: Option<&Held>, digest: Option<&[u8]>) -> Todo {
    match held {
        Some(held) if held.at >= image.at => Todo::Nothing,
        Some(held) if held.row && image.values.is_none() => Todo::Delete,
        Some(held) if held.row && held.digest.as_deref() == digest => Todo::Note,
        Some(held) if held.row => Todo::Update,
        _ if image.values.is_none() => Todo::Note,
        _ => Todo::Create,
    }
}

/// The record, the last entry and the changes: the third to the sixth parameter.
fn numbers(image: &Image) -> [i64; 4] {
    [image.record.0, image.at.0, image.vector.postgres, image.vector.salesforce].map(|n| n as i64)
}

/// What the row is to hold, in few bytes.
fn digest(table: &Table, image: &Image) -> Option<Vec<u8>> {
    let values = image.values.as_ref()?;
    let mut context = Context::new(&SHA256);
    let mut part = |text: Option<&str>| match text {
        Some(text) => {
            context.update(&(text.len() as u64 + 1).to_be_bytes());
            context.update(text.as_bytes());
        }
        None => context.update(&0_u64.to_be_bytes()),
    };
    for text in image.key.iter().flat_map(Key::parts) {
        part(Some(&text));
    }
    for (field, value) in values {
        if let Some(described) = table.fields.get(field) {
            part(Some(&field.0.to_string()));
            part(described.print(value).as_deref());
        }
    }
    Some(context.finish().as_ref().to_vec())
}

/// A statement, and its parameters from the eighth on.
type Said = (String, Vec<Option<String>>);

/// The statement that carries it out and notes it: `$1` log, `$2` mapping, `$3` record, `$4` entry, `$5` and `$6` changes, `$7`
/// digest.
fn statement(table: &Table, image: &Image, todo: Todo) -> Option<Said> {
    let key = image.key.as_ref().map(Key::parts);
    let mut values: Vec<Option<String>> = Vec::new();
    let mut columns: Vec<&Column> = Vec::new();
    if let (Some(key), Todo::Create | Todo::Update) = (&key, todo) {
        columns.extend(&table.keys);
        values.extend(key.iter().map(|part| Some(part.to_string())));
    }
    let by_key = |id: FieldId| key.is_some() && table.key_fields.contains(&id);
    let written = |field: &Field, id: FieldId| !(field.column.generated || by_key(id));
    for (id, value) in image.values.iter().flatten().filter(|_| matches!(todo, Todo::Create | Todo::Update)) {
        if let Some(field) = table.fields.get(id).filter(|field| written(field, *id)) {
            columns.push(&field.column);
            values.push(field.print(value).map(std::borrow::Cow::into_owned));
        }
    }
    let given: Vec<String> =
        columns.iter().enumerate().map(|(n, column)| column.value(&format!("${}::pg_catalog.text", n + 8))).collect();
    let names: Vec<&str> = columns.iter().map(|column| column.quoted.as_str()).collect();
    let keys = |alias: &str| {
        let texts: Vec<String> = table.keys.iter().map(|column| column.text(alias)).collect();
        format!("ARRAY[{}]", texts.join(", "))
    };
    let found: Vec<String> = table
        .keys
        .iter()
        .enumerate()
        .map(|(n, column)| format!("t.{} = {}", column.quoted, column.value(&format!("r.key[{}]", n + 1))))
        .collect();
    let row = "SELECT b.key, b.written FROM tidelock.rebuilt AS b WHERE b.log = $1 AND b.record = $3 AND b.at < $4";
    let found = format!("{} AND t.xmin = r.written", found.join(" AND "));
    let quoted = &table.quoted;
    let sql = match todo {
        Todo::Nothing => return None,
        Todo::Note => {
            let sql = "INSERT INTO tidelock.rebuilt AS b (log, mapping, record, at, postgres, salesforce, digest) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (log, record) DO UPDATE SET at = excluded.at, \
                       postgres = excluded.postgres, salesforce = excluded.salesforce WHERE b.at < excluded.at";
            sql.to_owned()
        }
        Todo::Create => {
            let insert = if columns.is_empty() {
                format!("INSERT INTO {quoted} AS t DEFAULT VALUES")
            } else {
                format!(
                    "INSERT INTO {quoted} AS t ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
                    names.join(", "),
                    given.join(", ")
                )
            };
            format!(
                "WITH w AS ({insert} RETURNING {} AS key) \
                 INSERT INTO tidelock.rebuilt AS b (log, mapping, record, key, at, postgres, salesforce, digest, written) \
                 SELECT $1::pg_catalog.text, $2::pg_catalog.int4, $3::pg_catalog.int8, w.key, $4::pg_catalog.int8, \
                 $5::pg_catalog.int8, $6::pg_catalog.int8, $7::pg_catalog.bytea, pg_catalog.pg_current_xact_id()::pg_catalog.xid FROM w \
                 ON CONFLICT (log, record) DO UPDATE SET key = excluded.key, at = excluded.at, postgres = excluded.postgres, \
                 salesforce = excluded.salesforce, digest = excluded.digest, written = excluded.written",
                keys("t")
            )
        }
        Todo::Update => {
            let sets: Vec<String> = names.iter().zip(&given).map(|(name, given)| format!("{name} = {given}")).collect();
            format!(
                "WITH r AS ({row}), w AS (UPDATE {quoted} AS t SET {} FROM r WHERE {found} RETURNING {} AS key) {}",
                sets.join(", "),
                keys("t"),
                note("w.key", "pg_catalog.pg_current_xact_id()::pg_catalog.xid")
            )
        }
        Todo::Delete => format!(
            "WITH r AS ({row}), w AS (DELETE FROM {quoted} AS t USING r WHERE {found} RETURNING true) {}",
            note("NULL", "NULL")
        ),
    };
    Some((sql, values))
}

fn note(key: &str, written: &str) -> String {
    format!(
        "UPDATE tidelock.rebuilt AS b SET mapping = $2, key = {key}, at = $4, postgres = $5, salesforce = $6, digest = $7, \
         written = {written} FROM w WHERE b.log = $1 AND b.record = $3"
    )
}

/// Runs all of them at once; the first error there is, in their order.
async fn all<T>(
    calls: Vec<impl Future<Output = Result<T, tokio_postgres::Error>>>,
) -> Result<Vec<T>, tokio_postgres::Error> {
    let mut calls: Vec<Pin<Box<_>>> = calls.into_iter().map(Box::pin).collect();
    let mut answers: Vec<Option<Result<T, tokio_postgres::Error>>> = calls.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (call, answer) in calls.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(done) = call.as_mut().poll(cx)
            {
                *answer = Some(done);
            }
        }
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Vector;

    #[test]
    fn what_the_row_holds_already_is_never_written_again() {
        let image = |at, exists: bool| Image {
            record: RecordId(1),
            mapping: MappingId(0),
            at: Offset(at),
            vector: Vector::default(),
            key: None,
            values: exists.then(Vec::new),
        };
        let held = |at, row| Held { at: Offset(at), row, digest: Some(vec![1]) };
        let decide = |image, held: Option<Held>, digest: &[u8]| decide(&image, held.as_ref(), Some(digest));
        assert_eq!(decide(image(5, true), None, &[1]), Todo::Create);
        assert_eq!(decide(image(5, false), None, &[1]), Todo::Note, "so that nothing earlier makes it again");
        for (at, row, exists) in [(5, true, true), (6, true, true), (6, true, false), (6, false, true)] {
            assert_eq!(decide(image(5, exists), Some(held(at, row)), &[2]), Todo::Nothing);
        }
        assert_eq!(decide(image(7, true), Some(held(6, true)), &[1]), Todo::Note);
        assert_eq!(decide(image(7, true), Some(held(6, true)), &[2]), Todo::Update);
        assert_eq!(decide(image(7, false), Some(held(6, true)), &[2]), Todo::Delete);
        assert_eq!(decide(image(7, true), Some(held(6, false)), &[2]), Todo::Create, "it was undeleted");
    }
}
