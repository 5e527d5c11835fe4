//! What Tidelock puts into a database, and how it is taken away again.
//!
//! `plan` looks at the database and lists only what is missing or out of date, each statement with a reason; `apply` runs
//! a plan in one transaction. So planning after applying gives an empty plan, and a plan can be shown before it is run.
//!
//! * Schema `tidelock`: the cursor table and the trigger functions.
//! * On each mirror table: a trigger that tells the stream who changes it, one that refuses TRUNCATE if it is not to be let through
//!   (each partition has one, too, since the stream does not tell that of a partition alone), and where Salesforce owns fields whose foreign edits are refused, one that refuses those.
//! * `public.get_xmlbinary()`, which functions written for Heroku Connect call.
//! * The publication that capture reads, or the triggers that log changes where there is none (`capture::trigger_log`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::capture::trigger_log::install as trigger_log;
use super::connect::database_error;
use super::introspect::{TableDetail, table_details};
use crate::change::{Catalog, FieldKind, ForeignEdit, Side, TruncatePolicy};
use crate::config::Numbers;
use crate::error::{Error, Kind, Result};
use crate::mapping::{SobjectDescription, mirror};

/// The schema of everything that is ours.
pub const SCHEMA: &str = "tidelock";

const FUNCTIONS: [(&str, &str, &str); 5] = [
    ("tell_actor", "tell the stream who changes a mirror table", include_str!("../../sql/actor.sql")),
    (
        "refuse_foreign_edit",
        "refuse edits of fields that Salesforce owns",
        include_str!("../../sql/refuse_foreign_edit.sql"),
    ),
    ("refuse_truncate", "refuse TRUNCATE of a mirror table", include_str!("../../sql/refuse_truncate.sql")),
    (
        "delete_truncated",
        "delete the rows of a partition that is truncated alone",
        include_str!("../../sql/delete_truncated.sql"),
    ),
    ("mark_truncate", "mark TRUNCATE of a partitioned table", include_str!("../../sql/mark_truncate.sql")),
];
const CREATE_SCHEMA: &str = include_str!("../../sql/schema.sql");
const CREATE_REPLAY: &str = include_str!("../../sql/replay.sql");
const CREATE_XMLBINARY: &str = include_str!("../../sql/get_xmlbinary.sql");

const TRIGGER_ACTOR: &str = "tidelock_actor";
const TRIGGER_TRUNCATE: &str = "tidelock_truncate";
const TRIGGER_TRUNCATED: &str = "tidelock_truncated";
const TRIGGER_OWNED_INSERT: &str = "tidelock_owned_insert";
const TRIGGER_OWNED_UPDATE: &str = "tidelock_owned_update";

/// How long a statement of a plan may wait for a lock: creating a trigger waits for writers, and they then wait for it.
const LOCK_TIMEOUT: &str = "10s";
const STATEMENT_TIMEOUT: Duration = Duration::from_mins(5);
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// One statement of a plan.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// What it is for.
    pub reason: String,
    /// The statement, or several joined by semicolons.
    pub sql: String,
}

impl Step {
    pub(super) fn new(reason: impl Into<String>, sql: impl Into<String>) -> Self {
        Self { reason: reason.into(), sql: sql.into() }
    }
}

/// A mirror table, and what is to be refused on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The statements that make or complete it, each of which can be run again. Only those are planned that do something.
    pub statements: Vec<String>,
    /// The columns that it must have.
    pub columns: Vec<String>,
    /// The columns that Salesforce owns and whose edits here are refused, and whether they are boolean (where false says
    /// the same as nothing).
    pub refused: Vec<(String, bool)>,
    /// What a TRUNCATE of it comes to.
    pub truncate: TruncatePolicy,
}

impl MirrorTable {
    fn label(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    fn quoted(&self) -> String {
        format!("{}.{}", escape_identifier(&self.schema), escape_identifier(&self.table))
    }
}

/// What is to be in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The publication that capture reads.
    pub publication: String,
    /// The mirror tables.
    pub tables: Vec<MirrorTable>,
    /// Where triggers log changes instead of a publication.
    pub triggers: Option<TriggerLog>,
}

/// A log of triggers, and what is logged there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerLog {
    /// The schema of the log, and of the tables.
    pub schema: String,
    /// The tables, each with its key columns.
    pub tables: Vec<(String, Vec<String>)>,
}

impl TriggerLog {
    /// The log of everything that is mapped.
    pub fn new(schema: impl Into<String>, catalog: &Catalog) -> Self {
        let tables = catalog.mappings.iter().map(|m| (m.table.clone(), m.key_columns.clone())).collect();
        Self { schema: schema.into(), tables }
    }
}

impl Installation {
    /// The installation for a catalog. The sObjects give the types of the columns of tables that are still to be made.
    pub fn new(
        catalog: &Catalog,
        publication: impl Into<String>,
        sobjects: &[SobjectDescription],
        numbers: Numbers,
    ) -> Self {
        let tables = catalog
            .mappings
            .iter()
            .map(|mapping| MirrorTable {
                schema: mapping.schema.clone(),
                table: mapping.table.clone(),
                statements: mirror::statements(mapping, sobjects, numbers),
                columns: mapping.fields.iter().map(|field| field.column.clone()).collect(),
                refused: mapping
                    .fields
                    .iter()
                    .filter(|f| f.owner == Some(Side::Salesforce) && f.foreign_edit == ForeignEdit::Refuse)
                    .map(|field| (field.column.clone(), field.kind == FieldKind::Boolean))
                    .collect(),
                truncate: mapping.truncate,
            })
            .collect();
        Self { publication: publication.into(), tables, triggers: None }
    }

    /// The same with changes captured from triggers.
    #[must_use]
    pub fn logged_by_triggers(self, log: TriggerLog) -> Self {
        Self { triggers: Some(log), ..self }
    }

    fn schemas(&self) -> BTreeSet<&str> {
        self.tables.iter().map(|table| table.schema.as_str()).collect()
    }
}

/// What a database lacks of an installation, in the order in which it is to be made.
pub async fn plan(client: &Client, installation: &Installation) -> Result<Vec<Step>> {
    let state = State::read(client, installation).await?;
    let mut steps = Vec::new();
    plan_schemas(installation, &state, &mut steps);
    plan_tables(installation, &state, &mut steps)?;
    plan_functions(&state, &mut steps);
    for table in &installation.tables {
        plan_triggers(table, installation.triggers.is_none(), &state, &mut steps);
    }
    if let Some(log) = &installation.triggers {
        steps.extend(drop_publication(installation, &state));
        steps.extend(trigger_log::plan(client, &log.schema, &log.tables).await?);
        return Ok(steps);
    }
    plan_publication(installation, &state, &mut steps);
    for schema in installation.schemas() {
        steps.extend(trigger_log::plan_removal(client, schema).await?);
    }
    Ok(steps)
}

/// Runs a plan in one transaction: all of it takes effect, or nothing.
pub async fn apply(client: &mut Client, steps: &[Step]) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let doing = "installing into the database";
    let transaction = bounded(QUERY_TIMEOUT, client.transaction(), doing).await?;
    // Our own mark: nothing here is a user's edit.
    let settings = format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL tidelock.replay = 'on'");
    bounded(QUERY_TIMEOUT, transaction.batch_execute(&settings), doing).await?;
    for step in steps {
        bounded(STATEMENT_TIMEOUT, transaction.batch_execute(&step.sql), &step.reason).await?;
    }
    bounded(STATEMENT_TIMEOUT, transaction.commit(), doing).await
}

/// What is to be run to take a link's installation away: triggers, the publication, the cursor, and with the last link
/// of the database the functions and the schema. Mirror tables and their rows stay, and so does `public.get_xmlbinary()`,
/// which other functions may call.
///
/// The replication slot is no part of it, since dropping a slot is no part of a transaction.
pub async fn plan_removal(client: &Client, link: &str, installation: &Installation) -> Result<Vec<Step>> {
    let state = State::read(client, installation).await?;
    let mut steps = Vec::from_iter(drop_publication(installation, &state));
    for schema in installation.schemas() {
        steps.extend(trigger_log::plan_removal(client, schema).await?);
    }
    let last = match &state.replay {
        Some(_) => others(client, link).await? == 0,
        None => true,
    };
    let ours = |schema: &str, table: &str| {
        let is = |t: &MirrorTable| {
            (t.schema == schema && t.table == table)
                || state.partitions(t).iter().any(|p| p.0 == schema && p.1 == table)
        };
        installation.tables.iter().any(is)
    };
    for (schema, table, trigger) in state.triggers.keys().filter(|(schema, table, _)| last || ours(schema, table)) {
        let sql = format!(
            "DROP TRIGGER IF EXISTS {} ON {}.{}",
            escape_identifier(trigger),
            escape_identifier(schema),
            escape_identifier(table)
        );
        steps.push(Step::new(format!("drop trigger {trigger} of {schema}.{table}"), sql));
    }
    if last && state.schemas.contains(SCHEMA) {
        let mut drops: Vec<String> =
            FUNCTIONS.iter().map(|(name, _, _)| format!("DROP FUNCTION IF EXISTS {SCHEMA}.{name}()")).collect();
        drops.push(format!("DROP TABLE IF EXISTS {SCHEMA}.replay"));
        drops.push(format!("DROP SCHEMA {SCHEMA}"));
        let reason = "drop schema tidelock with its functions and its cursor table";
        steps.push(Step::new(reason, drops.join(";\n")));
    } else if !last {
        let sql = format!("DELETE FROM {SCHEMA}.replay WHERE link = {}", escape_literal(link));
        steps.push(Step::new("forget the cursors of the link; other links go on", sql));
    }
    Ok(steps)
}

fn drop_publication(installation: &Installation, state: &State) -> Option<Step> {
    state.publication.as_ref()?;
    let name = &installation.publication;
    let sql = format!("DROP PUBLICATION IF EXISTS {}", escape_identifier(name));
    Some(Step::new(format!("drop publication {name}"), sql))
}

/// How many other links have cursors in the database.
async fn others(client: &Client, link: &str) -> Result<i64> {
    let doing = "looking for other links in the database";
    let sql = "SELECT count(DISTINCT link) FROM tidelock.replay WHERE link <> $1";
    match query(client, sql, &[&link], doing).await?.first() {
        Some(row) => row.try_get(0).map_err(|error| database_error(doing, error)),
        None => Ok(0),
    }
}

/// What there is already.
#[derive(Default)]
struct State {
    schemas: BTreeSet<String>,
    tables: BTreeMap<(String, String), TableDetail>,
    replay: Option<TableDetail>,
    /// Bodies of our functions, by name.
    functions: BTreeMap<String, String>,
    xmlbinary: bool,
    /// Comments of our triggers, by schema, table and trigger.
    triggers: BTreeMap<(String, String, String), String>,
    /// The partitions with rows of each partitioned mirror table, all by schema and table.
    partitions: BTreeMap<(String, String), Vec<(String, String)>>,
    publication: Option<Publication>,
}

struct Publication {
    all_tables: bool,
    /// Whether its options are what capture needs.
    fitting: bool,
    /// The tables whose changes are published, for whatever reason.
    tables: BTreeSet<(String, String)>,
    /// The tables that were added one by one.
    direct: BTreeSet<(String, String)>,
}

impl State {
    async fn read(client: &Client, installation: &Installation) -> Result<Self> {
        let doing = "looking at what the database has";
        let mut state = Self::default();
        for row in query(client, "SELECT nspname::text FROM pg_catalog.pg_namespace", &[], doing).await? {
            state.schemas.insert(row.try_get(0).map_err(|error| database_error(doing, error))?);
        }
        let mut wanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for table in &installation.tables {
            wanted.entry(&table.schema).or_default().push(table.table.clone());
        }
        for (schema, names) in wanted {
            for detail in table_details(client, schema, &names).await? {
                state.tables.insert((detail.schema.clone(), detail.table.clone()), detail);
            }
        }
        state.replay = table_details(client, SCHEMA, &["replay".to_owned()]).await?.into_iter().next();
        state.read_functions(client).await?;
        state.read_triggers(client).await?;
        state.read_partitions(client).await?;
        state.publication = read_publication(client, &installation.publication).await?;
        Ok(state)
    }

    async fn read_functions(&mut self, client: &Client) -> Result<()> {
        let doing = "reading the functions of schema tidelock";
        let sql = "SELECT n.nspname::text, p.proname::text, p.prosrc FROM pg_catalog.pg_proc p \
                   JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                   WHERE n.nspname = $1 OR (n.nspname = 'public' AND p.proname = 'get_xmlbinary' AND p.pronargs = 0)";
        for row in query(client, sql, &[&SCHEMA], doing).await? {
            let text = |n| row.try_get::<_, String>(n).map_err(|error| database_error(doing, error));
            if text(0)? == SCHEMA {
                self.functions.insert(text(1)?, text(2)?);
            } else {
                self.xmlbinary = true;
            }
        }
        Ok(())
    }

    async fn read_triggers(&mut self, client: &Client) -> Result<()> {
        let doing = "reading the triggers of the mirror tables";
        let sql = "SELECT n.nspname::text, c.relname::text, t.tgname::text, \
                   coalesce(pg_catalog.obj_description(t.oid, 'pg_trigger'), '') FROM pg_catalog.pg_trigger t \
                   JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
                   JOIN pg_catalog.pg_namespace o ON o.oid = p.pronamespace \
                   WHERE o.nspname = $1 AND NOT t.tgisinternal AND t.tgenabled = 'O'";
        for row in query(client, sql, &[&SCHEMA], doing).await? {
            let text = |n| row.try_get::<_, String>(n).map_err(|error| database_error(doing, error));
            self.triggers.insert((text(0)?, text(1)?, text(2)?), text(3)?);
        }
        Ok(())
    }

    async fn read_partitions(&mut self, client: &Client) -> Result<()> {
        let doing = "reading the partitions of the mirror tables";
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_partition_tree($1::oid::regclass) p \
                   JOIN pg_catalog.pg_class c ON c.oid = p.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE p.isleaf AND c.relkind = 'r' ORDER BY 1, 2";
        for (name, detail) in self.tables.iter().filter(|(_, detail)| detail.relkind == 'p') {
            let rows = query(client, sql, &[&detail.oid], doing).await?;
            let found = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
            let found = found.collect::<Result<_, tokio_postgres::Error>>().map_err(|e| database_error(doing, e))?;
            self.partitions.insert(name.clone(), found);
        }
        Ok(())
    }

    fn table(&self, table: &MirrorTable) -> Option<&TableDetail> {
        self.tables.get(&(table.schema.clone(), table.table.clone()))
    }

    fn trigger(&self, schema: &str, table: &str, trigger: &str) -> Option<&String> {
        self.triggers.get(&(schema.to_owned(), table.to_owned(), trigger.to_owned()))
    }

    fn partitions(&self, table: &MirrorTable) -> &[(String, String)] {
        self.partitions.get(&(table.schema.clone(), table.table.clone())).map_or(&[], Vec::as_slice)
    }
}

async fn read_publication(client: &Client, name: &str) -> Result<Option<Publication>> {
    let doing = "reading the publication";
    let sql = "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot \
               FROM pg_catalog.pg_publication WHERE pubname = $1";
    let rows = query(client, sql, &[&name], doing).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let flag = |n| row.try_get::<_, bool>(n).map_err(|error| database_error(doing, error));
    let sql =
        "SELECT t.schemaname::text, t.tablename::text FROM pg_catalog.pg_publication_tables t WHERE t.pubname = $1";
    let direct = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication_rel r \
                  JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";
    let publication = Publication {
        all_tables: flag(0)?,
        fitting: flag(1)?,
        tables: names(client, sql, name, doing).await?,
        direct: names(client, direct, name, doing).await?,
    };
    Ok(Some(publication))
}

/// Pairs of schema and table.
async fn names(client: &Client, sql: &str, publication: &str, doing: &str) -> Result<BTreeSet<(String, String)>> {
    let rows = query(client, sql, &[&publication], doing).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|error| database_error(doing, error))
}

fn plan_schemas(installation: &Installation, state: &State, steps: &mut Vec<Step>) {
    if !state.schemas.contains(SCHEMA) {
        steps.push(Step::new("create schema tidelock for what is ours", CREATE_SCHEMA.trim()));
    }
    let wanted: BTreeSet<&str> = installation.tables.iter().map(|table| table.schema.as_str()).collect();
    for schema in wanted.into_iter().filter(|schema| !state.schemas.contains(*schema)) {
        let sql = format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(schema));
        steps.push(Step::new(format!("create schema {schema} for mirror tables"), sql));
    }
}

fn plan_tables(installation: &Installation, state: &State, steps: &mut Vec<Step>) -> Result<()> {
    match &state.replay {
        None => steps.push(Step::new("create the table of cursors", CREATE_REPLAY.trim())),
        Some(replay) if ["link", "log", "ticket"].iter().any(|name| replay.column(name).is_none()) => {
            let message =
                "table tidelock.replay is of another version of Tidelock; drop it if no other version uses it";
            return Err(Error::new(Kind::Configuration, message));
        }
        Some(_) => {}
    }
    for table in &installation.tables {
        plan_table(table, state.table(table), steps)?;
    }
    Ok(())
}

/// Those of a table's statements that do something.
fn plan_table(table: &MirrorTable, detail: Option<&TableDetail>, steps: &mut Vec<Step>) -> Result<()> {
    let label = table.label();
    let creates = table.statements.iter().any(|sql| sql.starts_with("CREATE TABLE"));
    if detail.is_none() && !creates {
        let message = format!("table {label} does not exist; create it, or correct the mapping");
        return Err(Error::new(Kind::Configuration, message));
    }
    for sql in &table.statements {
        let reason = match (detail, sql.split_once(' ').map_or("", |(verb, _)| verb)) {
            (None, "CREATE") if sql.starts_with("CREATE TABLE") => format!("create mirror table {label}"),
            (Some(detail), "ALTER") if table.columns.iter().any(|name| detail.column(name).is_none()) => {
                format!("add the missing columns of {label}")
            }
            (_, "CREATE") if sql.starts_with("CREATE INDEX") || sql.starts_with("CREATE UNIQUE INDEX") => {
                if detail.is_some_and(|detail| indexed(detail, sql)) {
                    continue;
                }
                format!("create an index on {label}")
            }
            _ => continue,
        };
        steps.push(Step::new(reason, sql));
    }
    Ok(())
}

/// Whether a table has an index, of any name, that does what `sql` would create.
fn indexed(detail: &TableDetail, sql: &str) -> bool {
    let column = sql.rsplit_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
    let unquoted = column.trim_matches('"').replace("\"\"", "\"");
    if sql.starts_with("CREATE UNIQUE") { detail.enforces(&unquoted) } else { detail.indexed.contains(&unquoted) }
}

fn plan_functions(state: &State, steps: &mut Vec<Step>) {
    for (name, reason, sql) in FUNCTIONS {
        if state.functions.get(name).map(String::as_str) != body(sql) {
            steps.push(Step::new(format!("create the function to {reason}"), sql.trim()));
        }
    }
    if !state.xmlbinary {
        let reason = "create public.get_xmlbinary(), which functions written for Heroku Connect call";
        steps.push(Step::new(reason, CREATE_XMLBINARY.trim()));
    }
}

/// The text between the dollar quotes.
fn body(sql: &str) -> Option<&str> {
    sql.split("$tidelock$").nth(1)
}

/// `streamed`: whether the server's own log is captured, which does not tell who changes a table.
fn plan_triggers(table: &MirrorTable, streamed: bool, state: &State, steps: &mut Vec<Step>) {
    let quoted = table.quoted();
    let label = table.label();
    let actor = format!(
        "CREATE OR REPLACE TRIGGER {TRIGGER_ACTOR} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {quoted} \
         FOR EACH STATEMENT EXECUTE FUNCTION tidelock.tell_actor()"
    );
    let detail = state.table(table);
    let mut wanted =
        vec![(TRIGGER_ACTOR, format!("tell the stream who changes {label}"), Some(actor).filter(|_| streamed))];
    let partitions = state.partitions(table);
    let [before, after] = guards(table, !partitions.is_empty());
    wanted.push((TRIGGER_TRUNCATE, format!("deal with TRUNCATE of {label}"), before));
    wanted.push((TRIGGER_TRUNCATED, format!("know when TRUNCATE of {label} is over"), after));
    let reason = format!("refuse edits of what Salesforce owns in {label}");
    wanted.push((TRIGGER_OWNED_INSERT, reason.clone(), owned_insert(table, detail)));
    wanted.push((TRIGGER_OWNED_UPDATE, reason, owned_update(table)));
    for (name, reason, sql) in wanted {
        plan_trigger((&table.schema, &table.table), name, &reason, sql, state, steps);
    }
    for (schema, partition) in partitions {
        let sql = Some(partition_guard(table, schema, partition));
        let reason = format!("deal with TRUNCATE of {schema}.{partition}, a partition of {label}");
        plan_trigger((schema, partition), TRIGGER_TRUNCATE, &reason, sql, state, steps);
    }
}

/// Makes a trigger that is missing or of another text, and removes one that is not wanted.
fn plan_trigger(
    (schema, table): (&str, &str),
    name: &str,
    reason: &str,
    sql: Option<String>,
    state: &State,
    steps: &mut Vec<Step>,
) {
    let quoted = format!("{}.{}", escape_identifier(schema), escape_identifier(table));
    let present = state.trigger(schema, table, name);
    match sql {
        Some(sql) => {
            let mark = format!("Tidelock {:08x}", crc32c::crc32c(sql.as_bytes()));
            if present != Some(&mark) {
                let comment = format!("COMMENT ON TRIGGER {name} ON {quoted} IS {}", escape_literal(&mark));
                steps.push(Step::new(reason, format!("{sql};\n{comment}")));
            }
        }
        None if present.is_some() => {
            let sql = format!("DROP TRIGGER IF EXISTS {name} ON {quoted}");
            steps.push(Step::new(format!("no longer {reason}"), sql));
        }
        None => {}
    }
}

/// What happens before and after TRUNCATE of a mirror table. One that is let through is in the stream; what it needs is a mark
/// for the partitions' triggers.
fn guards(table: &MirrorTable, partitioned: bool) -> [Option<String>; 2] {
    let guard = |name: &str, when: &str, function: &str| {
        Some(format!(
            "CREATE OR REPLACE TRIGGER {name} {when} TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION tidelock.{function}",
            table.quoted()
        ))
    };
    let mark = format!("mark_truncate({})", escape_literal(&table.label()));
    match table.truncate {
        TruncatePolicy::Stop => [guard(TRIGGER_TRUNCATE, "BEFORE", "refuse_truncate()"), None],
        _ if partitioned => [guard(TRIGGER_TRUNCATE, "BEFORE", &mark), guard(TRIGGER_TRUNCATED, "AFTER", &mark)],
        _ => [None, None],
    }
}

/// What happens before TRUNCATE of a partition alone, which the stream does not tell: its rows are deleted one by one, or it is
/// refused.
fn partition_guard(table: &MirrorTable, schema: &str, partition: &str) -> String {
    let function = match table.truncate {
        TruncatePolicy::Propagate => "delete_truncated",
        TruncatePolicy::Ignore | TruncatePolicy::Stop => "refuse_truncate",
    };
    format!(
        "CREATE OR REPLACE TRIGGER {TRIGGER_TRUNCATE} BEFORE TRUNCATE ON {}.{} FOR EACH STATEMENT EXECUTE FUNCTION tidelock.{function}({})",
        escape_identifier(schema),
        escape_identifier(partition),
        escape_literal(&table.label())
    )
}

/// A user's session: the condition under which owned columns are guarded.
const NOT_REPLAY: &str = "pg_catalog.current_setting('tidelock.replay', true) IS DISTINCT FROM 'on'";

fn owned_update(table: &MirrorTable) -> Option<String> {
    let tests = table.refused.iter().map(|(column, boolean)| {
        let column = escape_identifier(column);
        if *boolean {
            format!("(OLD.{column} IS TRUE) <> (NEW.{column} IS TRUE)")
        } else {
            // As text: not every type has an equality.
            format!("OLD.{column}::pg_catalog.text IS DISTINCT FROM NEW.{column}::pg_catalog.text")
        }
    });
    owned(table, TRIGGER_OWNED_UPDATE, "UPDATE", tests.collect())
}

/// A column with a default is not guarded on insert: whoever leaves it out would be refused.
fn owned_insert(table: &MirrorTable, detail: Option<&TableDetail>) -> Option<String> {
    let defaulted = |name: &str| detail.and_then(|detail| detail.column(name)).is_some_and(|column| column.defaulted);
    let tests = table.refused.iter().filter(|(column, _)| !defaulted(column)).map(|(column, boolean)| {
        let column = escape_identifier(column);
        if *boolean { format!("NEW.{column} IS TRUE") } else { format!("NEW.{column} IS NOT NULL") }
    });
    owned(table, TRIGGER_OWNED_INSERT, "INSERT", tests.collect())
}

/// The guard runs after the row's other triggers, so that it sees what is really stored, and only for rows that fail it.
fn owned(table: &MirrorTable, name: &str, event: &str, tests: Vec<String>) -> Option<String> {
    if tests.is_empty() {
        return None;
    }
    let columns: Vec<String> = table.refused.iter().map(|(column, _)| escape_literal(column)).collect();
    Some(format!(
        "CREATE OR REPLACE TRIGGER {name} AFTER {event} ON {} FOR EACH ROW WHEN ({NOT_REPLAY} AND ({})) \
         EXECUTE FUNCTION tidelock.refuse_foreign_edit({})",
        table.quoted(),
        tests.join(" OR "),
        columns.join(", "),
    ))
}

/// What capture needs of the publication.
const PUBLICATION_OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";

fn plan_publication(installation: &Installation, state: &State, steps: &mut Vec<Step>) {
    let name = &installation.publication;
    let quoted = escape_identifier(name);
    let wanted: BTreeSet<(String, String)> =
        installation.tables.iter().map(|table| (table.schema.clone(), table.table.clone())).collect();
    let list = |tables: &BTreeSet<(String, String)>| {
        let quoted =
            |(schema, table): &(String, String)| format!("{}.{}", escape_identifier(schema), escape_identifier(table));
        tables.iter().map(quoted).collect::<Vec<_>>().join(", ")
    };
    let Some(publication) = &state.publication else {
        let of = if wanted.is_empty() { String::new() } else { format!(" FOR TABLE {}", list(&wanted)) };
        let sql = format!("CREATE PUBLICATION {quoted}{of} WITH ({PUBLICATION_OPTIONS})");
        steps.push(Step::new(format!("publish the mirror tables to capture (publication {name})"), sql));
        return;
    };
    if !publication.fitting {
        let sql = format!("ALTER PUBLICATION {quoted} SET ({PUBLICATION_OPTIONS})");
        steps.push(Step::new(format!("let publication {name} publish what capture needs"), sql));
    }
    if publication.all_tables {
        return;
    }
    let missing: BTreeSet<_> = wanted.difference(&publication.tables).cloned().collect();
    if !missing.is_empty() {
        let sql = format!("ALTER PUBLICATION {quoted} ADD TABLE {}", list(&missing));
        steps.push(Step::new(format!("add tables to publication {name}"), sql));
    }
    let unmapped: BTreeSet<_> = publication.direct.difference(&wanted).cloned().collect();
    if !unmapped.is_empty() {
        let sql = format!("ALTER PUBLICATION {quoted} DROP TABLE {}", list(&unmapped));
        steps.push(Step::new(format!("take tables that are no longer mapped out of publication {name}"), sql));
    }
}

async fn query(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
    doing: &str,
) -> Result<Vec<tokio_postgres::Row>> {
    bounded(QUERY_TIMEOUT, client.query(sql, parameters), doing).await
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    doing: &str,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| database_error(doing, error)),
        Err(_) => Err(Error::new(
            Kind::Unavailable,
            format!("PostgreSQL did not answer within {} s while {doing}", limit.as_secs()),
        )),
    }
}
