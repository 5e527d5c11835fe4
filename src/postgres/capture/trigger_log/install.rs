//! What trigger capture puts into a database, and how it finds out that somebody has touched it.
//!
//! Everything is in the schema of the mirror tables: the log and its archive, the functions that fill it and that applications
//! call, and on each mapped table a trigger for its rows and one for TRUNCATE. The triggers fire whatever
//! `session_replication_role` is, and before the table's others, so that what those do is logged after what set them off.
//!
//! The stream has an id, which is part of its identity in the change log. With it is noted what the triggers were when they
//! were installed. Where one is not the same any more (dropped with its table, disabled, enabled again), changes may be missing:
//! the stream gets a new id, and so every row is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use serde_json::{Map, Value as Json};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::store::{self, read_stream};
use crate::change::{Position, Str};
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{Session, database_error};
use crate::postgres::endpoint::Endpoint;
use crate::postgres::install::{Step, apply};
use crate::postgres::slot;

const TABLES: &str = include_str!("../../../../sql/trigger_log/tables.sql");
const FUNCTIONS: [(&str, &str, &str); 6] = [
    ("tlog_notify_trigger", "wake whoever reads the log", include_str!("../../../../sql/trigger_log/notify.sql")),
    ("tidelock_log_change", "log changes of rows", include_str!("../../../../sql/trigger_log/log_change.sql")),
    ("tidelock_log_truncate", "log TRUNCATE", include_str!("../../../../sql/trigger_log/log_truncate.sql")),
    (
        "tidelock_log_message",
        "put messages between the changes",
        include_str!("../../../../sql/trigger_log/log_message.sql"),
    ),
    (
        "hc_capture_insert_from_row",
        "log a row as inserted, as applications call it",
        include_str!("../../../../sql/trigger_log/hc_capture_insert_from_row.sql"),
    ),
    (
        "hc_capture_update_from_row",
        "log a row as updated, as applications call it",
        include_str!("../../../../sql/trigger_log/hc_capture_update_from_row.sql"),
    ),
];
const CREATE_HSTORE: &str = "CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public";

const TRIGGER_CHANGE: &str = "00_tidelock_log";
const TRIGGER_TRUNCATE: &str = "00_tidelock_log_truncate";
const TRIGGER_NOTIFY: &str = "tlog_insert_trigger";

/// What comes before the schema's name in a stream's identity.
const TRIGGER_LOG: &str = ", trigger log ";
/// How long the last reader of a log is given to be gone, and how often that is looked at.
const TAKEN_FOR: Duration = Duration::from_secs(5);
const TAKEN_POLL: Duration = Duration::from_millis(100);
/// The longest name of a channel.
const CHANNEL_MAX: usize = 63;

/// The channel that is notified of new rows, as Heroku Connect names it.
pub(super) fn channel(schema: &str) -> String {
    format!("{schema}.hc_trigger_log")
}

/// What there is already.
struct State {
    hstore: Option<String>,
    lc_monetary: String,
    /// Whether the log's tables are there with all their columns.
    complete: bool,
    /// Bodies and comments of our functions, by name.
    functions: BTreeMap<String, (String, String)>,
    /// Comments of our triggers that are in force, by table and trigger.
    triggers: BTreeMap<(String, String), String>,
    /// Heroku Connect's triggers that are in force, on any table.
    foreign: Vec<(String, String)>,
    stream: Option<(String, Map<String, Json>)>,
    /// What the triggers are now, by table.
    actual: BTreeMap<String, String>,
}

/// What a schema lacks for the changes of these tables to be logged, in the order in which it is to be made.
///
/// `tables`: each with its key columns.
pub async fn plan(client: &Client, schema: &str, tables: &[(String, Vec<String>)]) -> Result<Vec<Step>> {
    if channel(schema).len() > CHANNEL_MAX {
        let message =
            format!("the schema's name {schema:?} is too long for trigger capture, which needs 48 bytes at most");
        return Err(Error::new(Kind::Configuration, message));
    }
    let state = State::read(client, schema).await?;
    let twice: Vec<String> = state
        .foreign
        .iter()
        .filter(|(table, _)| tables.iter().any(|(mapped, _)| mapped == table))
        .map(|(table, trigger)| {
            let schema = escape_identifier(schema);
            format!("DROP TRIGGER {} ON {schema}.{}", escape_identifier(trigger), escape_identifier(table))
        })
        .collect();
    if !twice.is_empty() {
        let message = format!(
            "Heroku Connect's triggers still log the changes of mapped tables, which would then be told twice. Remove Heroku \
             Connect, and run: {}",
            twice.join("; ")
        );
        return Err(Error::new(Kind::Configuration, message));
    }
    let mut steps = Vec::new();
    let templates = Templates::new(schema, &state);
    if state.hstore.is_none() {
        steps.push(Step::new("create the extension hstore, in which rows are logged", CREATE_HSTORE));
    }
    if !state.complete {
        steps.push(Step::new("create the log of the triggers, with its archive", templates.render(TABLES)));
    }
    for (name, reason, sql) in FUNCTIONS {
        steps.extend(templates.function(name, reason, sql, &state));
    }
    steps.extend(templates.triggers(tables, &state));
    let unmapped = state.actual.keys().filter(|table| !tables.iter().any(|(mapped, _)| mapped == *table));
    for table in unmapped {
        steps.push(Step::new(format!("no longer log changes of {schema}.{table}"), templates.drop_triggers(table)));
    }
    templates.plan_stream(tables, &state, &mut steps);
    Ok(steps)
}

/// What is to be run where the server's own log is captured from now on: triggers and functions go, and so does what only Tidelock
/// reads. The log of changes and its archive stay.
pub async fn plan_removal(client: &Client, schema: &str) -> Result<Vec<Step>> {
    let doing = "looking for the log of the triggers";
    let sql = "SELECT pg_catalog.to_regclass($1::text) IS NOT NULL";
    let name = format!("{}._tidelock_stream", escape_identifier(schema));
    let row = client.query_one(sql, &[&name]).await.map_err(|error| database_error(doing, error))?;
    if !row.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let state = State::read(client, schema).await?;
    let templates = Templates::new(schema, &state);
    let quoted = &templates.schema;
    let mut drops: Vec<String> = state.actual.keys().map(|table| templates.drop_triggers(table)).collect();
    drops.push(format!("DROP TRIGGER IF EXISTS {TRIGGER_NOTIFY} ON {quoted}._trigger_log"));
    drops.extend(FUNCTIONS.iter().map(|(name, _, _)| format!("DROP FUNCTION IF EXISTS {quoted}.{name}")));
    drops.push(format!("DROP TABLE {quoted}._tidelock_log, {quoted}._tidelock_stream"));
    let reason = format!("no longer log changes in {schema}._trigger_log, which stays as it is");
    Ok(vec![Step::new(reason, drops.join(";\n"))])
}

/// Makes sure that the changes of these tables are logged, and tells what makes the stream this one: `known` is the identity of
/// the stream that the change log has read last from this side, and `durable` its last place.
///
/// A log that does not continue where the change log ends is begun anew, with another identity. One that another session reads is
/// left as it is: its triggers would be made for other tables.
pub async fn prepare(
    endpoint: &Endpoint,
    schema: &str,
    tables: &[(String, Vec<String>)],
    known: Option<&str>,
    durable: Option<&Position>,
) -> Result<Str> {
    let mut session = Session::open(endpoint).await?;
    slot::check_primary(&session).await?;
    let database = slot::database_identity(&session).await?;
    if let Some(known) = known {
        slot::check_database(known, &database)?;
    }
    take_alone(&session, schema).await?;
    let steps = plan(&session, schema, tables).await?;
    for step in &steps {
        tracing::info!(reason = step.reason, "preparing trigger capture");
    }
    apply(&mut session, &steps).await?;
    let mut id = stream_id(&session, schema).await?;
    let identity = |id: &str| Str::from(format!("{database}{TRIGGER_LOG}{schema} {id}"));
    let begin_anew = match known {
        None => {
            // A new change log has no place in it yet: it begins with what has not been told to another.
            let sql =
                format!("UPDATE {}._tidelock_stream SET told_lsn = NULL, told_index = NULL", escape_identifier(schema));
            run(&session, &sql, "taking up the trigger log").await?;
            false
        }
        Some(known) if known == identity(&id) => {
            let place = durable.and_then(|durable| match durable {
                Position::Postgres { commit_lsn, index, .. } => Some((*commit_lsn, *index)),
                Position::Salesforce { .. } => None,
            });
            let row = read_stream(&session, schema, &id).await?;
            match row.map(|row| (super::check_continuity(schema, &row, place), super::went_back(&row, place))) {
                Some((Ok(()), _)) => false,
                Some((Err(error), true)) => return Err(error),
                Some((Err(error), false)) => {
                    tracing::error!("{error}");
                    true
                }
                None => true,
            }
        }
        Some(_) => true,
    };
    if begin_anew {
        run(&session, &anew(&escape_identifier(schema)), "beginning the trigger log anew").await?;
        id = stream_id(&session, schema).await?;
    }
    store::unlock(&session, schema).await?;
    session.close().await?;
    Ok(identity(&id))
}

/// Takes the schema's log. The server may take a moment to notice that its last reader has gone.
async fn take_alone(session: &Session, schema: &str) -> Result<()> {
    let deadline = Instant::now() + TAKEN_FOR;
    while !store::lock(session, schema).await? {
        if Instant::now() >= deadline {
            return Err(store::is_taken(schema));
        }
        tokio::time::sleep(TAKEN_POLL).await;
    }
    Ok(())
}

/// The id of the stream that an identity is of, where that is a trigger log.
pub fn id_of(identity: &str) -> Option<&str> {
    identity.rsplit_once(TRIGGER_LOG).and_then(|(_, rest)| rest.rsplit_once(' ')).map(|(_, id)| id)
}

/// What an identity says of the database, where it is of a trigger log.
pub(in crate::postgres) fn database_of(identity: &str) -> Option<&str> {
    id_of(identity)?;
    identity.rsplit_once(TRIGGER_LOG).map(|(database, _)| database)
}

/// Whether triggers log changes in this schema, for a server whose own log is captured.
pub async fn is_installed(client: &Client, schema: &str) -> Result<bool> {
    Ok(!plan_removal(client, schema).await?.is_empty())
}

/// Checks that the triggers of these tables are those that were installed.
pub(super) async fn check_triggers(
    client: &Client,
    schema: &str,
    tables: &[String],
    noted: &Map<String, Json>,
) -> Result<()> {
    let actual = actual_triggers(client, schema).await?;
    let touched: Vec<String> = tables
        .iter()
        .filter(|table| actual.get(*table).map(String::as_str) != noted.get(*table).and_then(Json::as_str))
        .map(|table| format!("{schema}.{table}"))
        .collect();
    if touched.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the triggers that log changes of {} are not those that were installed: one was disabled, dropped or made again, or the \
         table was, so that changes may be missing. When the link is started again, they are installed and every row is read \
         again",
        touched.join(", ")
    );
    Err(Error::new(Kind::StreamLost, message))
}

impl State {
    async fn read(client: &Client, schema: &str) -> Result<Self> {
        let doing = "looking at the log of the triggers";
        let failed = |error| database_error(doing, error);
        let sql = "SELECT (SELECT n.nspname::text FROM pg_catalog.pg_extension e \
                   JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'hstore'), \
                   (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'lc_monetary'), \
                   (SELECT count(*) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
                    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND NOT a.attisdropped \
                    AND (c.relname IN ('_trigger_log', '_trigger_log_archive') AND \
                         (a.attname IN ('id', 'record_id') AND a.atttypid = 'bigint'::regtype OR a.attname = 'actor') \
                     OR c.relname = '_tidelock_log' AND a.attname = 'actor' \
                     OR c.relname = '_tidelock_stream' AND a.attname = 'batch_snapshot'))";
        let row = client.query_one(sql, &[&schema]).await.map_err(failed)?;
        // Three columns of each of the first two, and one of each of the others.
        let complete = row.get::<_, i64>(2) == 8;
        let mut state = Self {
            hstore: row.get(0),
            lc_monetary: row.get::<_, Option<String>>(1).unwrap_or_default(),
            complete,
            functions: BTreeMap::new(),
            triggers: BTreeMap::new(),
            foreign: Vec::new(),
            stream: None,
            actual: actual_triggers(client, schema).await?,
        };
        let sql = "SELECT p.proname::text, p.prosrc, coalesce(pg_catalog.obj_description(p.oid, 'pg_proc'), '') \
                   FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                   WHERE n.nspname = $1 AND p.proname = ANY ($2)";
        let names: Vec<&str> = FUNCTIONS.iter().map(|(name, _, _)| *name).collect();
        for row in client.query(sql, &[&schema, &names]).await.map_err(failed)? {
            state.functions.insert(row.get(0), (row.get(1), row.get(2)));
        }
        let sql = "SELECT c.relname::text, t.tgname::text, t.tgenabled = 'A', \
                   coalesce(pg_catalog.obj_description(t.oid, 'pg_trigger'), '') FROM pg_catalog.pg_trigger t \
                   JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND NOT t.tgisinternal AND t.tgenabled <> 'D'";
        for row in client.query(sql, &[&schema]).await.map_err(failed)? {
            let (table, trigger): (String, String) = (row.get(0), row.get(1));
            if trigger.starts_with("hc_") && trigger.ends_with("_logtrigger") {
                state.foreign.push((table, trigger));
            } else if row.get(2) {
                state.triggers.insert((table, trigger), row.get(3));
            }
        }
        if complete {
            let sql = format!("SELECT id, tables::text FROM {}._tidelock_stream", escape_identifier(schema));
            let row = client.query_opt(&sql, &[]).await.map_err(failed)?;
            state.stream = row.map(|row| (row.get(0), serde_json::from_str(row.get(1)).unwrap_or_default()));
        }
        Ok(state)
    }
}

/// What identifies the triggers of each table as those that were made there, and not touched since: their rows in the catalog, and
/// the transactions that last wrote them.
async fn actual_triggers(client: &Client, schema: &str) -> Result<BTreeMap<String, String>> {
    let sql = "SELECT c.relname::text, string_agg(t.oid::text || '/' || t.xmin::text || '/' || t.tgenabled::text, ' ' \
               ORDER BY t.tgname) FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND t.tgname = ANY ($2) AND t.tgparentid = 0 GROUP BY 1";
    let names = [TRIGGER_CHANGE, TRIGGER_TRUNCATE];
    let rows = client.query(sql, &[&schema, &&names[..]]).await;
    let rows = rows.map_err(|error| database_error("looking at the triggers that log changes", error))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// SQL with the names of one schema filled in.
struct Templates {
    schema: String,
    label: String,
    hstore: String,
    lc_monetary: String,
}

impl Templates {
    fn new(schema: &str, state: &State) -> Self {
        Self {
            schema: escape_identifier(schema),
            label: schema.to_owned(),
            hstore: escape_identifier(state.hstore.as_deref().unwrap_or("public")),
            lc_monetary: escape_literal(&state.lc_monetary),
        }
    }

    fn render(&self, template: &str) -> String {
        let within = |text: &str| text.replace('\'', "''");
        template
            .trim()
            .replace("@sequence@", &within(&format!("{}._trigger_log_id_seq", self.schema)))
            .replace("@channel@", &within(&channel(&self.label)))
            .replace("@schema_text@", &within(&self.label))
            .replace("@lc_monetary@", self.lc_monetary.trim())
            .replace("@hstore@", &self.hstore)
            .replace("@schema@", &self.schema)
    }

    /// The step that makes a function, unless it is there.
    fn function(&self, name: &str, reason: &str, template: &str, state: &State) -> Option<Step> {
        let sql = self.render(template);
        let mark = mark(&sql);
        let present = state.functions.get(name);
        if present.is_some_and(|(body, comment)| sql.split("$tidelock$").nth(1) == Some(body) && *comment == mark) {
            return None;
        }
        // Heroku Connect's has another result, which cannot be replaced.
        let replaced = name.starts_with("hc_") && present.is_some();
        let drop = if replaced { format!("DROP FUNCTION {}.{name};\n", self.schema) } else { String::new() };
        let sql = format!("{drop}{sql};\nCOMMENT ON FUNCTION {}.{name} IS {}", self.schema, escape_literal(&mark));
        Some(Step::new(format!("create the function to {reason}"), sql))
    }

    fn triggers(&self, tables: &[(String, Vec<String>)], state: &State) -> Vec<Step> {
        let schema = &self.schema;
        let mut wanted = vec![(
            "_trigger_log".to_owned(),
            TRIGGER_NOTIFY,
            format!(
                "CREATE OR REPLACE TRIGGER {TRIGGER_NOTIFY} AFTER INSERT ON {schema}._trigger_log FOR EACH ROW \
                 EXECUTE FUNCTION {schema}.tlog_notify_trigger()"
            ),
        )];
        for (table, key) in tables {
            let quoted = format!("{schema}.{}", escape_identifier(table));
            let arguments: Vec<String> =
                std::iter::once(table).chain(key).map(|name| escape_literal(name).trim().to_owned()).collect();
            wanted.push((
                table.clone(),
                TRIGGER_CHANGE,
                format!(
                    "CREATE OR REPLACE TRIGGER \"{TRIGGER_CHANGE}\" AFTER INSERT OR UPDATE OR DELETE ON {quoted} \
                     FOR EACH ROW EXECUTE FUNCTION {schema}.tidelock_log_change({})",
                    arguments.join(", ")
                ),
            ));
            wanted.push((
                table.clone(),
                TRIGGER_TRUNCATE,
                format!(
                    "CREATE OR REPLACE TRIGGER \"{TRIGGER_TRUNCATE}\" AFTER TRUNCATE ON {quoted} \
                     FOR EACH STATEMENT EXECUTE FUNCTION {schema}.tidelock_log_truncate({})",
                    escape_literal(table).trim()
                ),
            ));
        }
        let missing = wanted.into_iter().filter_map(|(table, trigger, sql)| {
            let mark = mark(&sql);
            if state.triggers.get(&(table.clone(), trigger.to_owned())) == Some(&mark) {
                return None;
            }
            let quoted = format!("{schema}.{}", escape_identifier(&table));
            let name = escape_identifier(trigger);
            let sql = format!(
                "{sql};\nALTER TABLE {quoted} ENABLE ALWAYS TRIGGER {name};\nCOMMENT ON TRIGGER {name} ON {quoted} IS {}",
                escape_literal(&mark)
            );
            Some(Step::new(format!("create the trigger {trigger} of {}.{table}", self.label), sql))
        });
        missing.collect()
    }

    fn drop_triggers(&self, table: &str) -> String {
        let quoted = format!("{}.{}", self.schema, escape_identifier(table));
        format!(
            "DROP TRIGGER IF EXISTS \"{TRIGGER_CHANGE}\" ON {quoted};\nDROP TRIGGER IF EXISTS \"{TRIGGER_TRUNCATE}\" ON {quoted}"
        )
    }

    /// The stream itself, and what is noted with it of the triggers.
    fn plan_stream(&self, tables: &[(String, Vec<String>)], state: &State, steps: &mut Vec<Step>) {
        let schema = &self.schema;
        let Some((_, noted)) = &state.stream else {
            let sql = format!(
                "INSERT INTO {schema}._tidelock_stream (id, tables, done_lsn, done_snapshot) \
                 VALUES ('', '{{}}', '0/0', ''); {}; {}",
                anew(schema),
                self.note()
            );
            steps.push(Step::new("begin the stream of what is logged", sql));
            return;
        };
        let touched: BTreeSet<&String> = noted
            .iter()
            .filter(|(table, mark)| {
                tables.iter().any(|(mapped, _)| mapped == *table)
                    && state.actual.get(*table).map(String::as_str) != mark.as_str()
            })
            .map(|(table, _)| table)
            .collect();
        if !touched.is_empty() {
            let names: Vec<&str> = touched.into_iter().map(String::as_str).collect();
            let reason = format!(
                "begin the stream anew, so that every row is read again: triggers of {} were touched, and changes may be missing",
                names.join(", ")
            );
            steps.push(Step::new(reason, anew(schema)));
        }
        let known = |table: &String| noted.contains_key(table);
        if !steps.is_empty() || !tables.iter().all(|(table, _)| known(table)) {
            steps.push(Step::new("note which triggers log changes", self.note()));
        }
    }

    /// Notes what the triggers are.
    fn note(&self) -> String {
        format!(
            "UPDATE {}._tidelock_stream SET tables = coalesce((SELECT pg_catalog.jsonb_object_agg(m.relname, m.mark) FROM ( \
             SELECT c.relname::text, string_agg(t.oid::text || '/' || t.xmin::text || '/' || t.tgenabled::text, ' ' \
             ORDER BY t.tgname) AS mark FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND t.tgname IN ({}, {}) \
             AND t.tgparentid = 0 GROUP BY 1) AS m), '{{}}')",
            self.schema,
            escape_literal(&self.label),
            escape_literal(TRIGGER_CHANGE),
            escape_literal(TRIGGER_TRUNCATE),
        )
    }
}

/// Statements that begin a stream anew: nothing that is logged by now is told any more.
fn anew(schema: &str) -> String {
    let told = format!(
        "{schema}._tidelock_stream AS s WHERE pg_catalog.txid_visible_in_snapshot(l.txid, s.done_snapshot::txid_snapshot)"
    );
    format!(
        "UPDATE {schema}._tidelock_stream SET id = pg_catalog.gen_random_uuid()::text, \
         done_lsn = pg_catalog.pg_current_wal_insert_lsn(), done_snapshot = pg_catalog.pg_current_snapshot()::text, \
         told_lsn = NULL, told_index = NULL, batch_lsn = NULL, batch_snapshot = NULL;\n\
         DELETE FROM {schema}._tidelock_log AS l USING {told};\n\
         UPDATE {schema}._trigger_log AS l SET state = 'IGNORED' FROM {told} AND l.state IN ('NEW', 'IGNORE')"
    )
}

/// What a comment says of the statement that made its object.
fn mark(sql: &str) -> String {
    format!("Tidelock {:08x}", crc32c::crc32c(sql.as_bytes()))
}

async fn stream_id(session: &Session, schema: &str) -> Result<String> {
    let doing = "reading the id of the trigger log";
    let sql = format!("SELECT id FROM {}._tidelock_stream", escape_identifier(schema));
    let row = session.query_one(&sql, &[]).await.map_err(|error| database_error(doing, error))?;
    row.try_get(0).map_err(|error| database_error(doing, error))
}

async fn run(session: &Session, sql: &str, doing: &str) -> Result<()> {
    session.batch_execute(sql).await.map_err(|error| database_error(doing, error))
}
