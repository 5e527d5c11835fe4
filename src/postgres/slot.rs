//! The publication and the replication slot that a link's stream comes from: making, checking and removing them.
//!
//! The publication comes before the slot, because the server looks it up as of the time of each change that it decodes.
//! It publishes inserts, updates, deletes and `TRUNCATE`, and partitioned tables as their root. What a `TRUNCATE` comes to is
//! the mapping's policy; that of a single partition is not in the stream (a trigger on the partition deals with it).
//!
//! A slot remembers only how far somebody has acknowledged. Started at an older place, the server begins at the later one
//! without a word. So after each start the slot is read again and compared with what the change log holds
//! ([`check_continuity`]); a difference is [`Kind::StreamLost`] and says how ([`Lost`]), and is never skipped in silence.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use super::capture::trigger_log;
use super::connect::{classify, database_error};
use super::endpoint::Endpoint;
use super::lost::Lost;
use super::wire::{self, ServerError};
use crate::change::{Lsn, Position, Str, StreamId};
use crate::error::{Error, Kind, Result};

/// How long creating a slot may wait for transactions that were open before it.
const CREATE_TIMEOUT: Duration = Duration::from_mins(2);
/// The server may take a moment to notice that a slot's reader has gone.
const DROP_TRIES: u32 = 50;
const DROP_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The oldest server whose `pgoutput` carries logical messages: 14.
const SERVER_VERSION_MIN: i32 = 140_000;
/// The index of a position that stands for "everything before the LSN after this one".
const EVERYTHING: u32 = u32::MAX;
/// SQLSTATE of a file that the server does not have.
const NO_FILE: &str = "58P01";

/// What a slot is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Its database; none for a physical slot.
    pub database: Option<String>,
    /// The server process that streams from it, if one does.
    pub active_pid: Option<i32>,
    /// How far it is acknowledged.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// From where the server keeps its log for it.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How many bytes may still be written before the slot is in danger; none without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// How far the server's log goes.
    pub current_lsn: Lsn,
}

impl Slot {
    /// How much of its log the server keeps for it.
    pub fn retained_bytes(&self) -> u64 {
        self.restart_lsn.map_or(0, |restart| self.current_lsn.0.saturating_sub(restart.0))
    }

    fn is_invalidated(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// What [`ensure_publication`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicationChange {
    /// Whether the publication is new.
    pub created: bool,
    /// Tables that were added, as `schema.table`.
    pub added: Vec<String>,
    /// Tables that were removed, as `schema.table`.
    pub removed: Vec<String>,
}

type Table = (String, String);

/// Makes the publication exist with exactly these tables (`(schema, table)`). A publication of all tables is left as it is.
pub async fn ensure_publication(client: &Client, publication: &str, tables: &[Table]) -> Result<PublicationChange> {
    let (change, statements) = plan_publication(client, publication, tables).await?;
    for sql in statements {
        run(client, &setting_up(publication), &sql).await?;
    }
    Ok(change)
}

fn setting_up(publication: &str) -> String {
    format!("setting up the publication `{publication}`")
}

/// What [`ensure_publication`] would change, and the statements for it. They wait for whoever holds the tables locked.
pub async fn plan_publication(
    client: &Client,
    publication: &str,
    tables: &[Table],
) -> Result<(PublicationChange, Vec<String>)> {
    let name = escape_identifier(publication);
    let doing = setting_up(publication);
    let mut statements = Vec::new();
    let options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";
    let wanted: BTreeSet<&Table> = tables.iter().collect();
    let existing = client
        .query_opt(
            "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot \
             FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(|e| database_error(&doing, e))?;
    let Some(existing) = existing else {
        let list = table_list(&wanted);
        let of = if list.is_empty() { String::new() } else { format!(" FOR TABLE {list}") };
        statements.push(format!("CREATE PUBLICATION {name}{of} WITH ({options})"));
        let change = PublicationChange { created: true, added: names(&wanted), removed: Vec::new() };
        return Ok((change, statements));
    };
    if !existing.get::<_, bool>(1) {
        statements.push(format!("ALTER PUBLICATION {name} SET ({options})"));
    }
    if existing.get::<_, bool>(0) {
        return Ok((PublicationChange::default(), statements));
    }
    let direct = published(client, &doing, DIRECT_TABLES, publication).await?;
    let effective = published(client, &doing, EFFECTIVE_TABLES, publication).await?;
    // A partitioned table is a member by its own name, whatever the options have its partitions published as.
    let is_there = |t: &&Table| effective.contains(*t) || direct.contains(*t);
    let added: BTreeSet<&Table> = wanted.iter().copied().filter(|t| !is_there(t)).collect();
    let removed: BTreeSet<&Table> = direct.iter().filter(|t| !wanted.contains(t)).collect();
    if !added.is_empty() {
        statements.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", table_list(&added)));
    }
    if !removed.is_empty() {
        statements.push(format!("ALTER PUBLICATION {name} DROP TABLE {}", table_list(&removed)));
    }
    Ok((PublicationChange { created: false, added: names(&added), removed: names(&removed) }, statements))
}

/// Checks that the publication publishes every insert, update and delete of these tables (`(schema, table)`), since what it
/// leaves out would be missed in silence: but for rows that a filter leaves out, where `row_filters` says that they are on purpose.
/// A column that it leaves out is found when the stream describes the table.
pub async fn check_publication(client: &Client, publication: &str, tables: &[Table], row_filters: bool) -> Result<()> {
    let doing = format!("checking the publication `{publication}`");
    let sql = "SELECT pubinsert AND pubupdate AND pubdelete FROM pg_catalog.pg_publication WHERE pubname = $1";
    let row = client.query_opt(sql, &[&publication]).await.map_err(|e| database_error(&doing, e))?;
    let what = match row.map(|row| row.get::<_, bool>(0)) {
        None => "does not exist".to_owned(),
        Some(false) => "does not publish all of insert, update and delete".to_owned(),
        Some(true) => {
            let effective = published(client, &doing, EFFECTIVE_TABLES, publication).await?;
            let missing: BTreeSet<&Table> = tables.iter().filter(|t| !effective.contains(t)).collect();
            if missing.is_empty() {
                let filtered = published(client, &doing, FILTERED_TABLES, publication).await?;
                let filtered: BTreeSet<&Table> = tables.iter().filter(|t| filtered.contains(t)).collect();
                if filtered.is_empty() || row_filters {
                    return Ok(());
                }
                let message = format!(
                    "the publication `{publication}` leaves out rows of {} by a row filter, and their changes would be missed in \
                     silence; take the filter off (ALTER PUBLICATION ... SET TABLE), or write `row_filters = true` in [postgres] if it is on purpose",
                    names(&filtered).join(", ")
                );
                return Err(Error::new(Kind::Configuration, message));
            }
            format!("lacks {}", names(&missing).join(", "))
        }
    };
    let message = format!("the publication `{publication}` {what}; run `tidelock init`");
    Err(Error::new(Kind::Configuration, message))
}

/// The tables that were added one by one.
const DIRECT_TABLES: &str = "SELECT n.nspname, c.relname FROM pg_catalog.pg_publication_rel r \
     JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1";
/// The tables whose changes are published, for whatever reason.
const EFFECTIVE_TABLES: &str =
    "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables WHERE pubname = $1";

/// The tables of which only some rows are published. PostgreSQL 14 knows no row filters, and no such column.
const FILTERED_TABLES: &str = "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables AS t \
     WHERE pubname = $1 AND pg_catalog.to_jsonb(t) ->> 'rowfilter' IS NOT NULL";

async fn published(client: &Client, doing: &str, sql: &str, publication: &str) -> Result<BTreeSet<Table>> {
    let rows = client.query(sql, &[&publication]).await.map_err(|e| database_error(doing, e))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn table_list(tables: &BTreeSet<&Table>) -> String {
    let quoted: Vec<String> =
        tables.iter().map(|(s, t)| format!("{}.{}", escape_identifier(s), escape_identifier(t))).collect();
    quoted.join(", ")
}

fn names(tables: &BTreeSet<&Table>) -> Vec<String> {
    tables.iter().map(|(schema, table)| format!("{schema}.{table}")).collect()
}

async fn run(client: &Client, doing: &str, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.map_err(|error| {
        let denied = error.code().is_some_and(|c| c.code() == "42501");
        let error = database_error(doing, error);
        if denied {
            let advice = "the role must own the tables and have CREATE on the database; or have their owner run";
            return Error::new(Kind::Denied, format!("{error}; {advice}: {sql}")).caused_by(error);
        }
        error
    })
}

/// Checks that the server takes writes, and is one that Tidelock knows.
pub async fn check_primary(client: &Client) -> Result<()> {
    let sql = "SELECT current_setting('server_version_num')::int, pg_is_in_recovery()";
    let row = client.query_one(sql, &[]).await.map_err(|e| database_error("checking the server's settings", e))?;
    if row.get(1) {
        let message = "the server is a standby, or still recovering; Tidelock connects to the primary";
        return Err(Error::new(Kind::Unavailable, message));
    }
    let version: i32 = row.get(0);
    if version < SERVER_VERSION_MIN {
        let message = format!("PostgreSQL {} is too old; Tidelock needs 14 or newer", version / 10_000);
        return Err(Error::new(Kind::Configuration, message));
    }
    Ok(())
}

/// Checks what the server must be like before a slot can be made.
pub async fn check_server(client: &Client) -> Result<()> {
    check_primary(client).await?;
    let row = client.query_one("SELECT current_setting('wal_level')", &[]).await;
    let wal_level: String = row.map_err(|e| database_error("checking the server's settings", e))?.get(0);
    if wal_level != "logical" {
        let message = format!(
            "the server runs with wal_level = {wal_level}, and capture needs `logical`; set wal_level = logical in \
             postgresql.conf (on a managed service its own switch, such as rds.logical_replication) and restart the server"
        );
        return Err(Error::new(Kind::Configuration, message));
    }
    Ok(())
}

/// Makes the slot exist and returns it; one that exists is checked and left as it is.
///
/// Making one waits until every transaction that is open now has ended, at most two minutes.
pub async fn ensure_slot(client: &Client, slot: &str) -> Result<Slot> {
    check_server(client).await?;
    if let Some(existing) = read_slot(client, slot).await? {
        check_kind(client, &existing).await?;
        return if existing.is_invalidated() { Err(invalidated(slot)) } else { Ok(existing) };
    }
    let create = format!(
        "BEGIN; SET LOCAL statement_timeout = {}; SELECT pg_catalog.pg_create_logical_replication_slot({}, 'pgoutput'); COMMIT",
        CREATE_TIMEOUT.as_millis(),
        escape_literal(slot),
    );
    if let Err(error) = client.batch_execute(&create).await {
        let described = slot_creation_error(client, slot, error).await;
        if let Err(rollback) = client.batch_execute("ROLLBACK").await {
            tracing::debug!(error = %rollback, "cannot roll back after a failed slot creation");
        }
        return Err(described);
    }
    read_slot(client, slot).await?.ok_or_else(|| missing(slot))
}

/// Takes away a slot that the server has given up, of which nothing was read yet that could be missed.
pub async fn drop_invalidated(client: &Client, slot: &str) -> Result<()> {
    let Some(existing) = read_slot(client, slot).await?.filter(Slot::is_invalidated) else { return Ok(()) };
    check_kind(client, &existing).await?;
    tracing::warn!(
        slot,
        "the replication slot was invalidated before this change log read anything from it; it is made again"
    );
    drop_slot(client, slot).await
}

/// Makes the slot one that standbys take over: it goes on there when one is promoted.
pub async fn ensure_failover(client: &Client, endpoint: &Endpoint, slot: &str) -> Result<()> {
    let doing = format!("making `{slot}` a failover slot");
    let sql =
        "SELECT pg_catalog.to_jsonb(s) ->> 'failover' FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(sql, &[&slot]).await.map_err(|e| database_error(&doing, e))?;
    match row.and_then(|row| row.get::<_, Option<String>>(0)).as_deref() {
        Some("true") => return Ok(()),
        Some(_) => {}
        None => {
            let message = "`failover_slot` in [postgres] needs PostgreSQL 17 or newer; leave it out";
            return Err(Error::new(Kind::Configuration, message));
        }
    }
    let mut connection = wire::connect(endpoint).await?;
    let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", escape_identifier(slot));
    let altering = connection.simple_query(&command);
    match tokio::time::timeout(endpoint.connect_timeout, altering).await {
        Ok(Ok(_)) => connection.finish().await.map_err(|e| e.at(endpoint).within(&doing)),
        Ok(Err(wire::ReplicationError::Refused(refused))) => {
            let message = format!("{doing}: {refused}");
            Err(Error::new(classify(&refused.code), message).caused_by(refused))
        }
        Ok(Err(other)) => Err(other.at(endpoint).within(&doing)),
        Err(_) => Err(Error::new(Kind::Unavailable, format!("{doing}: {endpoint} does not answer"))),
    }
}

async fn slot_creation_error(client: &Client, slot: &str, error: tokio_postgres::Error) -> Error {
    let doing = format!("creating the replication slot `{slot}`");
    let code = error.code().map(|c| c.code().to_owned()).unwrap_or_default();
    let error = database_error(&doing, error);
    let (kind, advice) = match code.as_str() {
        "42501" => (Kind::Denied, "give the role the attribute REPLICATION: ALTER ROLE ... REPLICATION".to_owned()),
        "53400" => (
            Kind::Configuration,
            "drop a slot that nobody needs, or raise max_replication_slots and restart".to_owned(),
        ),
        "57014" => (Kind::Unavailable, open_transactions(client).await),
        _ => return error,
    };
    Error::new(kind, format!("{error}; {advice}")).caused_by(error)
}

/// Who keeps a slot from being made. The failed transaction is rolled back first, as nothing runs in it.
async fn open_transactions(client: &Client) -> String {
    let sql = "ROLLBACK; SELECT string_agg(pid::text, ', ') FROM pg_catalog.pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()";
    let pids = client.simple_query(sql).await.ok().and_then(|messages| {
        messages.iter().find_map(|m| match m {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    });
    let who = pids.map(|pids| format!(" (process ids {pids})")).unwrap_or_default();
    format!("it waits for transactions that are open{who}; end them and try again")
}

/// How far the server's log goes.
pub async fn current_lsn(client: &Client) -> Result<Lsn> {
    let doing = "reading how far the server's log goes";
    let row = client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await;
    let row = row.map_err(|e| database_error(doing, e))?;
    let text: &str = row.get(0);
    text.parse().map_err(|_| Error::new(Kind::Protocol, format!("{doing}: the server answered `{text}`")))
}

/// Reads the slot, if it exists.
pub async fn read_slot(client: &Client, slot: &str) -> Result<Option<Slot>> {
    // LSNs travel as text: the driver has no type for them that we want.
    let sql = "SELECT slot_name::text, plugin::text, database::text, active_pid, confirmed_flush_lsn::text, \
               restart_lsn::text, wal_status, safe_wal_size, pg_catalog.pg_current_wal_insert_lsn()::text \
               FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
    let doing = format!("reading the replication slot `{slot}`");
    let row = client.query_opt(sql, &[&slot]).await.map_err(|e| database_error(&doing, e))?;
    let Some(row) = row else { return Ok(None) };
    let lsn = |column: usize| row.get::<_, Option<String>>(column).and_then(|text| text.parse().ok());
    Ok(Some(Slot {
        name: row.get(0),
        plugin: row.get(1),
        database: row.get(2),
        active_pid: row.get(3),
        confirmed_flush_lsn: lsn(4),
        restart_lsn: lsn(5),
        wal_status: row.get(6),
        safe_wal_bytes: row.get(7),
        current_lsn: lsn(8).unwrap_or_default(),
    }))
}

/// Checks that the slot is ours to read from.
async fn check_kind(client: &Client, slot: &Slot) -> Result<()> {
    let name = &slot.name;
    let wrong = |what: String| {
        let message = format!("the replication slot `{name}` exists but {what}; name another slot, or drop that one");
        Err(Error::new(Kind::Configuration, message))
    };
    if slot.plugin.as_deref() != Some("pgoutput") {
        return wrong(format!("its plugin is {}", slot.plugin.as_deref().unwrap_or("none (it is physical)")));
    }
    let here: String = client
        .query_one("SELECT pg_catalog.current_database()::text", &[])
        .await
        .map_err(|e| database_error("reading the database's name", e))?
        .get(0);
    if slot.database.as_deref() != Some(here.as_str()) {
        return wrong(format!("belongs to the database `{}`", slot.database.as_deref().unwrap_or_default()));
    }
    Ok(())
}

fn invalidated(slot: &str) -> Error {
    Lost::Invalidated { slot: slot.to_owned() }.into()
}

/// What it means that there is no such slot.
pub(crate) fn missing(slot: &str) -> Error {
    Lost::Gone { slot: slot.to_owned() }.into()
}

/// What an error of `START_REPLICATION` or of the stream itself means.
pub(crate) fn stream_error(slot: &str, publication: &str, code: &str, message: &str) -> Option<Error> {
    let publication_missing = code == "42704" && message.contains("publication");
    Some(match code {
        _ if publication_missing => unpublished(slot, publication, message),
        "42704" => missing(slot),
        "55006" => Error::new(
            Kind::Unavailable,
            format!("{message}: another connection reads from it; if no other Tidelock runs, the server notices soon"),
        ),
        // `... get changes from` it up to version 17, `... access` it since.
        "55000" if message.contains("can no longer") || message.contains("invalidated") => invalidated(slot),
        "55000" if message.contains("cannot read from logical replication slot") => invalidated(slot),
        "55000" if message.contains("wal_level") => Error::new(
            Kind::Configuration,
            format!("{message}; set wal_level = logical in postgresql.conf and restart the server"),
        ),
        NO_FILE => invalidated(slot),
        _ => return None,
    })
}

/// What a warning within the stream means, if it says that changes are left out. Since version 18 a server passes over every
/// change from a time when the publication did not exist, where earlier ones end the stream with an error.
pub(crate) fn stream_warning(slot: &str, publication: &str, warning: &ServerError) -> Option<Error> {
    let is_skipped = warning.code == "55000" && warning.severity == "WARNING" && warning.message.contains(publication);
    is_skipped.then(|| unpublished(slot, publication, &warning.message))
}

fn unpublished(slot: &str, publication: &str, message: &str) -> Error {
    let message = format!(
        "the publication `{publication}` does not exist, or did not exist yet when the slot `{slot}` was made ({message}); run \
         `tidelock init`"
    );
    Error::new(Kind::Configuration, message)
}

/// What comes before the slot's name in an identity.
const SLOT: &str = ", slot ";
/// What comes before the timeline's number in an identity.
const TIMELINE: &str = ", timeline ";

/// What makes the stream this stream and no other: the database system, the database and the slot. With it goes the timeline that
/// its places are on: a standby that is promoted is the same system, and its log goes another way from there on
/// ([`same_stream`], [`check_timeline`]).
pub async fn stream_identity(client: &Client, slot: &str) -> Result<Str> {
    let database = database_identity(client).await?;
    let sql = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())";
    let row = client.query_one(sql, &[]).await.map_err(|e| database_error("reading the server's timeline", e))?;
    let file: &str = row.get(0);
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(|| {
        Error::new(Kind::Protocol, format!("the server's log file has the name `{file}`, which names no timeline"))
    })?;
    Ok(Str::from(format!("{database}{SLOT}{slot}{TIMELINE}{timeline}")))
}

/// The part of a stream's identity that says which database it is of.
pub async fn database_identity(client: &Client) -> Result<Str> {
    let sql = "SELECT system_identifier::text, pg_catalog.current_database()::text FROM pg_catalog.pg_control_system()";
    let row =
        client.query_one(sql, &[]).await.map_err(|e| database_error("reading the database system's identifier", e))?;
    let (system, database): (&str, &str) = (row.get(0), row.get(1));
    Ok(Str::from(format!("system {system}, database {database}")))
}

/// The timeline in an identity; logs of earlier versions know none.
pub fn timeline_of(identity: &str) -> Option<u32> {
    identity.rsplit_once(TIMELINE).and_then(|(_, number)| number.parse().ok())
}

fn without_timeline(identity: &str) -> &str {
    match timeline_of(identity) {
        Some(_) => identity.rsplit_once(TIMELINE).map_or(identity, |(before, _)| before),
        None => identity,
    }
}

/// Whether two identities are of one stream, on whatever timelines.
pub fn same_stream(one: &str, other: &str) -> bool {
    without_timeline(one) == without_timeline(other)
}

/// Checks that what answers, as [`stream_identity`] or [`database_identity`] tells it, is the database of the stream that the
/// log has read. In another one every row that the log knows is missing, which says nothing about what was deleted.
pub fn check_database(known: &str, found: &str) -> Result<()> {
    let database = |identity| {
        if let Some(database) = trigger_log::install::database_of(identity) {
            return database;
        }
        let stream = without_timeline(identity);
        // A slot's name has no comma; a database's may.
        stream.rsplit_once(SLOT).map_or(stream, |(database, _)| database)
    };
    let (known, found) = (database(known), database(found));
    if known == found {
        return Ok(());
    }
    let message = format!(
        "the change log is of another database than the one that answers now: it has read {known}, and [postgres] leads to \
         {found}. Lead [postgres] back to the database that the log has read; or, if this one is to be kept in step from \
         now on, start the link with a new log (`log` in [link]). Nothing was written there, and nothing was deleted"
    );
    Err(Error::new(Kind::StreamLost, message))
}

/// Checks that a server on the timeline `current` has everything that the change log has: our last place, which is on the
/// timeline `known`, must come before the place where the server's `history` leaves that timeline. Above all a standby
/// that was behind when it was promoted has log of its own at places that ours had something else at.
pub fn check_timeline(slot: &str, known: u32, current: u32, history: &str, durable: &Position) -> Result<()> {
    let Position::Postgres { commit_lsn, .. } = durable else {
        return Err(Error::new(Kind::Internal, format!("the position {durable} is not of PostgreSQL")));
    };
    if known == current {
        return Ok(());
    }
    let left_at = history.lines().find_map(|line| {
        let mut parts = line.split_whitespace();
        let is_known = parts.next()?.parse() == Ok(known);
        parts.next()?.parse::<Lsn>().ok().filter(|_| is_known)
    });
    let (why, to) = match left_at {
        Some(left_at) if *commit_lsn < left_at => return Ok(()),
        Some(left_at) => (
            format!("left timeline {known} at {left_at}, and the change log has read that up to {commit_lsn}"),
            // Commit records before that place are there.
            Lsn(left_at.0.saturating_sub(1)),
        ),
        None => (format!("does not come from timeline {known}, which the change log has read"), Lsn::default()),
    };
    let why = format!("the server of the replication slot `{slot}` is now on timeline {current}, which {why}");
    Err(Lost::WentBack { why, to, replayed: None }.into())
}

/// The history of a timeline, as the server keeps it: for each one before it, where it was left.
pub async fn timeline_history(endpoint: &Endpoint, timeline: u32) -> Result<String> {
    let doing = format!("reading the history of timeline {timeline}");
    let mut connection = wire::connect(endpoint).await?;
    let command = format!("TIMELINE_HISTORY {timeline}");
    let asking = connection.simple_query(&command);
    let rows = match tokio::time::timeout(endpoint.connect_timeout, asking).await {
        Ok(answered) => answered.map_err(|error| match error {
            wire::ReplicationError::Refused(refused) if refused.code == NO_FILE => {
                let why = format!(
                    "nothing tells that timeline {timeline} has all that the change log has, since the server does not have \
                     its history any more ({})",
                    refused.message
                );
                Lost::WentBack { why, to: Lsn::default(), replayed: None }.into()
            }
            wire::ReplicationError::Refused(refused) => {
                let message = format!("{doing}: {endpoint} refused: {refused}");
                Error::new(classify(&refused.code), message).caused_by(refused)
            }
            other => other.at(endpoint).within(&doing),
        })?,
        Err(_) => return Err(Error::new(Kind::Unavailable, format!("{doing}: {endpoint} does not answer"))),
    };
    let history = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    history.ok_or_else(|| Error::new(Kind::Protocol, format!("{doing}: {endpoint} answered none")))
}

/// The position that stands for the stream having been read up to `lsn`, exclusive: past every transaction that ends at or
/// before it, and before every one that comes after.
pub fn position_before(stream: StreamId, lsn: Lsn) -> Position {
    Position::Postgres { stream, commit_lsn: Lsn(lsn.0.saturating_sub(1)), index: EVERYTHING }
}

/// How far a durable position lets the slot be acknowledged, and from where the stream is asked for.
///
/// A change's position lies in its transaction, which is sent again whole (and its durable part dropped as duplicates).
pub fn acknowledgeable(commit_lsn: Lsn, index: u32) -> Lsn {
    if index == EVERYTHING { Lsn(commit_lsn.0.saturating_add(1)) } else { commit_lsn }
}

/// Checks that the slot, now active in our hands, continues where the change log ends. `durable` is how far the log lets the
/// slot be acknowledged; none for a stream that is read for the first time.
pub fn check_continuity(slot: &Slot, durable: Option<Lsn>) -> Result<()> {
    if slot.is_invalidated() {
        return Err(invalidated(&slot.name));
    }
    let Some(durable) = durable else { return Ok(()) };
    let name = &slot.name;
    if let Some(confirmed) = slot.confirmed_flush_lsn.filter(|confirmed| *confirmed > durable) {
        return Err(Lost::Moved { slot: name.clone(), confirmed, durable }.into());
    }
    if durable > slot.current_lsn {
        let end = slot.current_lsn;
        let why = format!("its log ends at {end}, and the change log has read it up to {durable}");
        let to = slot.confirmed_flush_lsn.unwrap_or_default().min(end);
        return Err(Lost::WentBack { why, to, replayed: None }.into());
    }
    Ok(())
}

/// Removes the slot and the publication, as far as they exist. A slot that is still in use is waited for a little while.
pub async fn drop_stream(client: &Client, slot: &str, publication: &str) -> Result<()> {
    drop_slot(client, slot).await?;
    let drop = format!("DROP PUBLICATION IF EXISTS {}", escape_identifier(publication));
    client
        .batch_execute(&drop)
        .await
        .map_err(|e| database_error(&format!("dropping the publication `{publication}`"), e))
}

/// Removes the slot, if it exists. One that is still in use is waited for a little while.
pub async fn drop_slot(client: &Client, slot: &str) -> Result<()> {
    let sql = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
               WHERE slot_name = $1";
    let mut tries = DROP_TRIES;
    while let Err(error) = client.execute(sql, &[&slot]).await {
        let in_use = error.code().is_some_and(|code| code.code() == "55006");
        tries -= 1;
        if !in_use || tries == 0 {
            return Err(database_error(&format!("dropping the replication slot `{slot}`"), error));
        }
        tokio::time::sleep(DROP_AGAIN_AFTER).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::server::{PostgresServer, ServerSettings};

    fn slot(confirmed: u64, current: u64) -> Slot {
        Slot {
            name: "s".into(),
            plugin: Some("pgoutput".into()),
            database: Some("d".into()),
            active_pid: None,
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            restart_lsn: Some(Lsn(1)),
            wal_status: Some("reserved".into()),
            safe_wal_bytes: None,
            current_lsn: Lsn(current),
        }
    }

    #[test]
    fn a_slot_past_the_log_or_a_log_past_the_server_is_a_lost_stream() {
        assert!(check_continuity(&slot(100, 200), None).is_ok());
        assert!(check_continuity(&slot(100, 200), Some(Lsn(100))).is_ok());
        assert!(check_continuity(&slot(100, 200), Some(Lsn(150))).is_ok());
        for (slot, durable) in [(slot(101, 200), 100), (slot(100, 200), 201)] {
            assert_eq!(check_continuity(&slot, Some(Lsn(durable))).unwrap_err().kind(), Kind::StreamLost);
        }
        let lost = Slot { wal_status: Some("lost".into()), ..slot(1, 2) };
        assert_eq!(check_continuity(&lost, None).unwrap_err().kind(), Kind::StreamLost);
    }

    #[test]
    fn a_timeline_that_left_ours_before_our_place_is_a_lost_stream() {
        let one = "system 7, database d, slot s, timeline 3";
        assert_eq!((timeline_of(one), timeline_of("system 7, database d, slot s")), (Some(3), None));
        assert!(same_stream(one, "system 7, database d, slot s, timeline 4"));
        assert!(same_stream(one, "system 7, database d, slot s"));
        assert!(!same_stream(one, "system 8, database d, slot s, timeline 3"));
        assert!(!same_stream("system 7, database d, slot s, timeline x", "system 7, database d, slot s"));
        for same in ["system 7, database d", "system 7, database d, slot other, timeline 9", one] {
            assert!(check_database(one, same).is_ok(), "{same}");
        }
        for another in ["system 8, database d, slot s, timeline 3", "system 7, database d, slot e, slot s"] {
            assert_eq!(check_database(one, another).unwrap_err().kind(), Kind::StreamLost, "{another}");
        }

        let at = |lsn| Position::Postgres { stream: StreamId(0), commit_lsn: Lsn(lsn), index: 0 };
        let history = "1\t0/100\tno recovery target specified\n\n2\t0/200\tbefore 2000-01-01\n";
        let checked = |known, current, lsn| check_timeline("s", known, current, history, &at(lsn));
        for (known, current, lsn) in [(1, 1, 0xfff), (1, 3, 0xff), (2, 3, 0x1ff), (3, 3, 0xfff)] {
            assert!(checked(known, current, lsn).is_ok(), "{known} {current} {lsn:x}");
        }
        // Behind, of a branch that this server does not come from, and back on an earlier timeline.
        for (known, current, lsn) in [(1, 3, 0x100), (2, 3, 0x200), (4, 3, 0x50), (3, 1, 0x50)] {
            assert_eq!(checked(known, current, lsn).unwrap_err().kind(), Kind::StreamLost, "{known} {current} {lsn:x}");
        }
        assert!(check_timeline("s", 1, 2, "garbage\n1 x y\n", &at(1)).is_err());
        // Everything before the place of the switch, and nothing after it, is no loss.
        assert!(check_timeline("s", 1, 3, history, &position_before(StreamId(0), Lsn(0x100))).is_ok());
    }

    #[tokio::test]
    async fn a_history_that_is_gone_is_a_lost_stream() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        let gone = timeline_history(&server.endpoint(), 7).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::StreamLost, "{gone}");
        assert!(gone.to_string().contains("00000007.history"), "{gone}");
    }

    #[tokio::test]
    async fn a_slot_becomes_a_failover_slot_where_the_server_has_them() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        let session = server.session().await.unwrap();
        ensure_slot(&session, "s").await.unwrap();
        let made = ensure_failover(&session, &server.endpoint(), "s").await;
        let version: u32 = server.value("SHOW server_version_num").await.unwrap().unwrap().parse().unwrap();
        if version < 170_000 {
            assert_eq!(made.unwrap_err().kind(), Kind::Configuration);
            return;
        }
        made.unwrap();
        let is = server.value("SELECT failover FROM pg_replication_slots").await.unwrap();
        assert_eq!(is.as_deref(), Some("t"));
        ensure_failover(&session, &server.endpoint(), "s").await.unwrap();
    }

    #[test]
    fn a_position_before_an_lsn_leaves_room_for_what_comes_there() {
        let Position::Postgres { commit_lsn, index, .. } = position_before(StreamId(1), Lsn(500)) else { panic!() };
        assert!((commit_lsn, index) < (Lsn(500), 0), "a transaction whose commit lies there is not a duplicate");
        assert_eq!(acknowledgeable(commit_lsn, index), Lsn(500));
        assert_eq!(acknowledgeable(Lsn(500), 3), Lsn(500));
    }
}
