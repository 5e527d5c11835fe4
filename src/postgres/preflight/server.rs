//! The server, the role, the slot, and what `init` makes.

use serde_json::Value as Json;

use super::{Report, Stage, yes};
use crate::error::{Error, Kind, Result};
use crate::postgres::install::SCHEMA;
use crate::postgres::wire;

/// The oldest server that streams logical messages and knows the functions that are used.
const VERSION_MIN: u32 = 140_000;

const SERVER: &str = "server";

impl Report<'_> {
    /// Version, settings and the role's attributes.
    pub(super) async fn server(&mut self) -> Result<()> {
        let sql = "SELECT current_setting('server_version_num'), current_setting('wal_level'), \
                   current_setting('max_replication_slots'), \
                   (SELECT count(*) FROM pg_catalog.pg_replication_slots)::text, \
                   current_setting('max_wal_senders'), \
                   (SELECT count(*) FROM pg_catalog.pg_stat_replication)::text, \
                   pg_catalog.pg_is_in_recovery()::text, \
                   current_setting('max_slot_wal_keep_size'), \
                   current_setting('idle_replication_slot_timeout', true), \
                   pg_catalog.getdatabaseencoding()::text, \
                   (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)::text, \
                   current_setting('server_version')";
        let Some(row) = self.row(sql, &[&self.request.slot], "reading the server's settings").await? else {
            return Err(Error::new(Kind::Protocol, "PostgreSQL answered no row to a query for its settings"));
        };
        let text = |n: usize| row.get(n).cloned().unwrap_or_default();
        let number = |n: usize| text(n).parse::<u32>().unwrap_or_default();
        if number(0) < VERSION_MIN {
            self.error(SERVER, format!("PostgreSQL {} is too old", text(11)), "upgrade it to version 14 or newer");
        } else {
            self.ok(SERVER, format!("PostgreSQL {}", text(11)), "");
        }
        if yes(row.get(6)) {
            self.error(SERVER, "this server is a standby and takes no writes", "name the primary in the configuration");
        }
        if self.request.by_triggers() {
            if text(1) == "logical" {
                self.ok(
                    SERVER,
                    "wal_level is logical, so that changes could be captured from the server's log",
                    "that costs the database less than triggers; capture = \"wal\" if the role may replicate",
                );
            }
            self.encoding(&text(9));
            return self.role().await;
        }
        if text(1) != "logical" {
            self.error(
                SERVER,
                format!("wal_level is {}, so there is no stream of changes", text(1)),
                "set wal_level = logical and restart the server (Amazon RDS: rds.logical_replication = 1 in the \
                 parameter group; Google Cloud SQL: the flag cloudsql.logical_decoding)",
            );
        }
        let slot_exists = number(10) > 0;
        if number(3) >= number(2) && !slot_exists {
            self.error(
                SERVER,
                format!("all {} replication slots are taken (max_replication_slots)", number(2)),
                "drop slots that nothing reads (pg_replication_slots), or raise max_replication_slots and restart",
            );
        }
        if number(5) >= number(4) {
            self.error(
                SERVER,
                format!("all {} WAL senders are busy (max_wal_senders)", number(4)),
                "raise max_wal_senders and restart the server",
            );
        }
        self.retention(&text(7), &text(8));
        self.encoding(&text(9));
        self.role().await
    }

    fn encoding(&mut self, encoding: &str) {
        if encoding == "SQL_ASCII" {
            self.warning(
                SERVER,
                "the database's encoding is SQL_ASCII, so texts may hold bytes that are no characters",
                "move to a database with encoding UTF8; until then rows with such texts are refused",
            );
        }
    }

    fn retention(&mut self, keep: &str, idle: &str) {
        if keep == "-1" {
            self.ok(
                SERVER,
                "max_slot_wal_keep_size is unlimited: while Tidelock is stopped, the server keeps all WAL for it",
                "watch the disk, or set a limit that a stop of some hours stays within",
            );
        } else {
            self.ok(
                SERVER,
                format!("the slot is lost once more than {keep} of WAL is waiting (max_slot_wal_keep_size)"),
                "make sure that a stop of some hours stays within it; after a lost slot every mapped row is compared with the log",
            );
        }
        if !matches!(idle, "" | "0") {
            self.warning(
                SERVER,
                format!("the slot is lost when Tidelock is stopped for {idle} (idle_replication_slot_timeout)"),
                "set idle_replication_slot_timeout = 0, or do not stop Tidelock for that long",
            );
        }
    }

    async fn role(&mut self) -> Result<()> {
        let sql = "SELECT rolname::text, (rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles m \
                   WHERE m.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') \
                   AND pg_catalog.pg_has_role(m.oid, 'MEMBER')))::text, \
                   pg_catalog.has_database_privilege(current_database(), 'CREATE')::text, current_database()::text \
                   FROM pg_catalog.pg_roles WHERE rolname = current_user";
        let Some(row) = self.row(sql, &[], "reading the role's privileges").await? else { return Ok(()) };
        let name = row.first().cloned().unwrap_or_default();
        let database = row.get(3).cloned().unwrap_or_default();
        let subject = format!("role {name}");
        if !yes(row.get(1)) && !self.request.by_triggers() {
            self.error(
                &subject,
                "the role may not replicate",
                format!("run: ALTER ROLE \"{name}\" REPLICATION (Amazon RDS: GRANT rds_replication TO \"{name}\")"),
            );
        }
        if self.request.stage == Stage::Install && !yes(row.get(2)) {
            self.error(
                &subject,
                format!("the role may not create schemas and publications in database {database}"),
                format!("run: GRANT CREATE ON DATABASE \"{database}\" TO \"{name}\""),
            );
        }
        Ok(())
    }

    /// Whether a replication connection comes up: pg_hba.conf and poolers treat it differently.
    pub(super) async fn replication(&mut self) {
        let answer = match wire::connect(self.request.endpoint).await {
            Ok(connection) => connection.finish().await.map_err(|error| error.at(self.request.endpoint)),
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => self.ok(SERVER, "a replication connection comes up", ""),
            Err(error) => self.error(
                SERVER,
                format!("a replication connection does not come up: {}", error.explain()),
                "connect to the server itself and not through a pooler such as PgBouncer, and check that the role has \
                 REPLICATION and that pg_hba.conf lets it in for this database",
            ),
        }
    }

    /// The slot, if there is one.
    pub(super) async fn slot(&mut self) -> Result<()> {
        let name = self.request.slot;
        let subject = format!("slot {name}");
        // As JSON: newer servers have columns that older ones have not.
        let sql = "SELECT pg_catalog.to_jsonb(s)::text, (s.database = current_database())::text, \
                   pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
                   ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::int8::text, \
                   (SELECT application_name FROM pg_catalog.pg_stat_activity WHERE pid = s.active_pid) \
                   FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1";
        let Some(row) = self.row(sql, &[&name], "looking at the replication slot").await? else {
            if self.request.stage == Stage::Run {
                self.ok(&subject, "the slot does not exist yet", "it is made when capture first starts");
            }
            return Ok(());
        };
        let slot: Json = row.first().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let field = |name: &str| slot.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        let drop = format!("drop it (SELECT pg_drop_replication_slot('{name}')), or configure another slot name");
        if field("slot_type") != "logical" || field("plugin") != "pgoutput" || !yes(row.get(1)) {
            let plugin = field("plugin");
            let what = format!("the slot is {} {plugin} of database {:?}", field("slot_type"), field("database"));
            self.error(&subject, format!("{what}, not logical pgoutput of this database"), drop);
            return Ok(());
        }
        let reason = field("invalidation_reason");
        if field("wal_status") == "lost" || !reason.is_empty() {
            self.warning(
                &subject,
                format!("the slot was invalidated ({}); what it had not delivered is gone", or(&reason, "WAL removed")),
                "start the link: it makes the slot anew and compares every mapped row with its log",
            );
        } else if field("wal_status") == "unreserved" {
            self.warning(
                &subject,
                "the slot is about to be lost: it is further behind than max_slot_wal_keep_size",
                "start capture now, and raise max_slot_wal_keep_size",
            );
        }
        if let Some(pid) = slot.get("active_pid").and_then(Json::as_i64) {
            let who = row.get(3).map_or("", String::as_str);
            self.warning(
                &subject,
                format!("the slot is being read by server process {pid} ({who})"),
                "if that is not this link's running Tidelock, stop it or configure another slot name",
            );
        } else if let Some(behind) = row.get(2).filter(|bytes| !bytes.is_empty()) {
            self.ok(&subject, format!("{behind} bytes of WAL are waiting for it"), "they are read when capture starts");
        }
        Ok(())
    }

    /// The schema `tidelock` and the publication.
    pub(super) async fn objects(&mut self) -> Result<()> {
        let publication = self.request.publication;
        let sql = "SELECT (SELECT p.pubinsert AND p.pubupdate AND p.pubdelete FROM pg_catalog.pg_publication p \
                   WHERE p.pubname = $1)::text, pg_catalog.to_regclass('tidelock.replay')::text, \
                   CASE WHEN pg_catalog.to_regclass('tidelock.replay') IS NOT NULL THEN \
                   (pg_catalog.has_schema_privilege('tidelock', 'USAGE') \
                   AND pg_catalog.has_table_privilege('tidelock.replay', 'SELECT') \
                   AND pg_catalog.has_table_privilege('tidelock.replay', 'INSERT') \
                   AND pg_catalog.has_table_privilege('tidelock.replay', 'UPDATE'))::text END";
        let Some(row) = self.row(sql, &[&publication], "looking for what init makes").await? else { return Ok(()) };
        let text = |n: usize| row.get(n).map_or("", String::as_str);
        let subject = format!("publication {publication}");
        match text(0) {
            "true" => {}
            _ if self.request.by_triggers() => {}
            "" if self.request.stage == Stage::Install => {}
            "" => self.error(&subject, "the publication does not exist", "run `tidelock init`"),
            _ => self.error(
                &subject,
                "the publication leaves out inserts, updates or deletes",
                "run `tidelock init`, or ALTER PUBLICATION ... SET (publish = 'insert, update, delete')",
            ),
        }
        let subject = format!("schema {SCHEMA}");
        if text(1).is_empty() {
            if self.request.stage == Stage::Run {
                self.error(&subject, "the table tidelock.replay does not exist", "run `tidelock init`");
            }
        } else if text(2) != "true" {
            self.error(
                &subject,
                "the role may not use the table tidelock.replay",
                "GRANT USAGE ON SCHEMA tidelock and SELECT, INSERT, UPDATE ON tidelock.replay to the role",
            );
        }
        Ok(())
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}
