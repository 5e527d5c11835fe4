//! What trigger capture needs, and what it does not see.

use super::{Report, Stage};
use crate::error::{Kind, Result};
use crate::postgres::capture::trigger_log::install::plan;
use crate::postgres::install::TriggerLog;

impl Report<'_> {
    /// The log of the triggers.
    pub(super) async fn trigger_log(&mut self) -> Result<()> {
        let Some(schema) = self.request.catalog.mappings.first().map(|m| m.schema.clone()) else { return Ok(()) };
        let subject = format!("trigger log of schema {schema}");
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'hstore')::text, \
                   current_setting('max_prepared_transactions')";
        if let Some(row) = self.row(sql, &[], "looking for the extension hstore").await? {
            if row.first().is_some_and(|there| there != "true") {
                self.error(
                    &subject,
                    "the server does not have the extension hstore, in which triggers log rows",
                    "install the server's contrib package (postgresql-contrib)",
                );
            }
            if row.get(1).is_some_and(|prepared| prepared != "0") {
                self.warning(
                    &subject,
                    "the triggers notify Tidelock, and PostgreSQL refuses PREPARE TRANSACTION after that",
                    "keep two-phase transactions off the mirror tables",
                );
            }
        }
        self.ok(
            &subject,
            "changes are captured whatever session_replication_role is, but not while a trigger is disabled",
            "do not disable triggers of mirror tables (pg_restore --disable-triggers does): it is noticed, and every row is then \
             read again",
        );
        if self.request.stage == Stage::Install {
            return Ok(());
        }
        let log = TriggerLog::new(schema, self.request.catalog);
        let missing = match plan(self.session, &log.schema, &log.tables).await {
            Ok(missing) => missing,
            Err(error) if error.kind() == Kind::Configuration => {
                self.error(&subject, error.to_string(), "mend that, then run `tidelock init`");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if missing.is_empty() {
            self.ok(&subject, "every mapped table has its triggers", "");
        } else {
            let reasons: Vec<String> = missing.into_iter().map(|step| step.reason).collect();
            let message = format!("it is not as it has to be; to do: {}", reasons.join("; "));
            self.error(&subject, message, "run `tidelock init`");
        }
        self.log_privileges(&subject, &log.schema).await
    }

    async fn log_privileges(&mut self, subject: &str, schema: &str) -> Result<()> {
        let sql = "SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_catalog.pg_class c \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
                   (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p (privilege) WHERE n.nspname = $1 \
                   AND c.relname IN ('_trigger_log', '_trigger_log_archive', '_tidelock_log', '_tidelock_stream') \
                   AND NOT pg_catalog.has_table_privilege(c.oid, p.privilege)";
        let row = self.row(sql, &[&schema], "reading privileges on the log of the triggers").await?;
        if let Some(lacking) = row.and_then(|row| row.into_iter().next()).filter(|lacking| !lacking.is_empty()) {
            let advice = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {lacking} to the role");
            self.error(subject, format!("the role lacks privileges on {lacking}"), advice);
        }
        Ok(())
    }
}
