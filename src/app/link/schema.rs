//! The org's fields while a link runs: noticing that they change, saying what that means, and doing what can be done.
//!
//! What a start would put in force is put in force by starting the link's parts again, here and now: the log, the slot and the
//! stream are taken up where they were, so nothing is missed. A field that is new then has all its values read, on both sides.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::catalog::{self, Described};
use crate::app::connect::Org;
use crate::app::schema::{Evolution, alter, compare};
use crate::audit::Lens;
use crate::change::{Catalog, FieldKind, Offset, Side, Str, Ticket};
use crate::config::{Config, SchemaChanges};
use crate::error::Result;
use crate::ledger::{DeadLetterAction, Ledger};
use crate::log::reader::LogReader;
use crate::mapping::{Difference, Finding, SobjectDescription, TableDescription, has_room, news};
use crate::salesforce::capture_status::CaptureStatus;
use crate::status::{Schema, SchemaDifference};

use super::Link;
use super::configure::passes;

/// The least time between two looks: a deployment changes many fields, one after the other.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after a look that failed there is another.
const AGAIN: Duration = Duration::from_secs(30);
/// How long a statement may take that nobody has asked for. What should change the catalogs alone has taken the strongest lock, and
/// may have an index to make anew all the same.
const UNATTENDED_MAX: Duration = Duration::from_secs(5);
/// In whose name refused writes are tried again.
const BY: &str = "tidelock: there is room now";

/// What is known of the org's fields, from one run of a link to the next.
#[derive(Clone)]
pub(super) struct Seen {
    schema: watch::Sender<Option<Schema>>,
    sobjects: Arc<Mutex<Vec<SobjectDescription>>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { schema: watch::Sender::new(None), sobjects: Arc::default() }
    }
}

impl Seen {
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Schema>> {
        self.schema.subscribe()
    }

    /// Says what has changed in the org since the last look, whether or not it is mapped.
    fn tell_news(&self, now: &[SobjectDescription]) {
        let mut known = self.sobjects.lock().unwrap_or_else(PoisonError::into_inner);
        for line in news(&known, now) {
            tracing::info!("the org has changed: {line}");
        }
        now.clone_into(&mut known);
    }

    /// Keeps what was found, and says what of it is new.
    fn tell(&self, found: Schema) {
        let known = self.schema.borrow().clone().unwrap_or_default();
        for difference in found.differences.iter().filter(|d| !known.differences.contains(d)) {
            let failed = difference.failed.as_deref().unwrap_or_default();
            let SchemaDifference { mapping, field, message, .. } = difference;
            if difference.to_do {
                tracing::warn!(mapping, field, failed, "{message}; `tidelock plan` shows what is to be done");
            } else {
                tracing::warn!(mapping, field, "{message}");
            }
        }
        if let Some(problem) = found.problem.as_ref().filter(|problem| known.problem.as_ref() != Some(problem)) {
            tracing::error!("{problem}");
        }
        if found.differences.is_empty() && found.problem.is_none() && known != Schema::default() {
            tracing::info!("the tables fit the org's fields again");
        }
        self.schema.send_replace(Some(found));
    }
}

impl Link {
    pub(super) fn evolving(&self, status: &Arc<CaptureStatus>, outdated: &CancellationToken) -> Evolving {
        Evolving {
            config: self.config.clone(),
            org: self.org.clone(),
            known: Arc::clone(&self.catalog),
            ledger: self.ledger.clone(),
            reader: self.pool.reader(),
            seen: self.seen.clone(),
            status: Arc::clone(status),
            outdated: outdated.clone(),
            columns: None,
        }
    }

    /// Whether what is in force is what a start would put in force now. Where that cannot be told, it is taken for so.
    pub(super) async fn fits(&self) -> bool {
        let described = catalog::describe(&self.config, &self.org).await;
        let wanted = described.and_then(|d| catalog::compile_finished(&self.config, &d, Some(&self.catalog)));
        wanted.map_or(true, |wanted| wanted == *self.catalog)
    }
}

/// Looks after the org's fields while the link runs.
pub(super) struct Evolving {
    config: Config,
    org: Org,
    known: Arc<Catalog>,
    ledger: Ledger,
    reader: LogReader,
    seen: Seen,
    status: Arc<CaptureStatus>,
    /// Cancelled to have the link started again.
    outdated: CancellationToken,
    /// The mapped columns with their types, as the first look found them: as long as these are what they were, so is what the link
    /// has prepared for them.
    columns: Option<BTreeSet<Column>>,
}

/// Mapping, column, type and values of an enum.
type Column = (String, String, String, Vec<String>);

impl Evolving {
    /// Looks at once, on a schedule, and when the org's events have another schema.
    pub(super) async fn run(mut self, cancel: &CancellationToken) -> Result<()> {
        let every = Duration::from_secs(self.config.link.describe_seconds.into());
        loop {
            let looked = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                looked = Box::pin(self.look()) => looked,
            };
            let until_next = if looked.is_ok() { every } else { every.min(AGAIN) };
            match looked {
                Ok(()) => {}
                Err(error) if passes(error.kind()) => {
                    tracing::warn!(error = %error.explain(), "the org's fields could not be looked at; they are looked at again later");
                }
                // What must stop the link stops the part that needs it.
                Err(error) => tracing::error!(error = %error.explain(), "the org's fields could not be looked at"),
            }
            let status = Arc::clone(&self.status);
            let wait = async {
                tokio::time::sleep(PAUSE.min(until_next)).await;
                tokio::select! {
                    () = status.new_schema() => {}
                    () = tokio::time::sleep(until_next.saturating_sub(PAUSE)) => {}
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = wait => {}
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let mut evolution = compare(&self.config, &self.org, Some(&self.known)).await?;
        self.seen.tell_news(&evolution.described.sobjects);
        let mut failed = Vec::new();
        if self.config.link.schema == SchemaChanges::Auto {
            let doing: Vec<Difference> = evolution.differences.iter().filter(|d| d.is_unattended()).cloned().collect();
            if !doing.is_empty() {
                failed = self.alter(&doing).await?;
                evolution = compare(&self.config, &self.org, Some(&self.known)).await?;
            }
        }
        self.seen.tell(schema(&evolution, &failed));
        let columns = columns(&self.known, &evolution.described.tables);
        if self.columns.is_none() {
            self.retry_refused(&evolution.described).await?;
        }
        let same = *self.columns.get_or_insert_with(|| columns.clone()) == columns;
        // Where the mappings do not fit, a start would fail, and what is in force may go on.
        let Ok(wanted) = catalog::compile_finished(&self.config, &evolution.described, Some(&self.known)) else {
            return Ok(());
        };
        if wanted != *self.known {
            tracing::info!("the fields that are kept in step have changed: the link starts again with those there are");
            self.outdated.cancel();
        } else if !same {
            tracing::info!("mapped columns have other types: the link starts again to use them");
            self.outdated.cancel();
        }
        Ok(())
    }

    /// Does what can be done without anybody; tells what could not.
    async fn alter(&self, doing: &[Difference]) -> Result<Vec<(Difference, String)>> {
        let mut failed = Vec::new();
        for (difference, error) in alter(&self.config, doing, Some(UNATTENDED_MAX)).await? {
            let Difference { mapping, field, .. } = difference;
            let sql = difference.statement().map_or("", |(sql, _)| sql);
            match error {
                None => tracing::warn!(mapping, field, sql, "the table was changed to fit the org's field"),
                Some(error) => failed.push((difference.clone(), error.explain())),
            }
        }
        Ok(failed)
    }

    /// Tries writes again that a side refused for want of room, where there is room now. Once after a start, which every change of
    /// the columns leads to.
    async fn retry_refused(&self, described: &Described) -> Result<()> {
        let refused = self.reader.call(|log| Lens::new(log)?.refused_writes()).await?;
        let fits = |(_, ticket, code): &&(Offset, Ticket, Str)| fits(&self.known, described, ticket, code);
        let letters: Vec<Offset> = refused.iter().filter(fits).map(|(offset, ..)| *offset).collect();
        if letters.is_empty() {
            return Ok(());
        }
        tracing::info!(writes = letters.len(), "writes that were refused for want of room are tried again");
        for letter in letters {
            // Somebody else may have decided about it meanwhile.
            let retried = self.ledger.run(move |core| core.dead_letter(letter, DeadLetterAction::Retry, BY)).await;
            if let Err(error) = retried {
                tracing::debug!(error = %error.explain(), "a refused write is not tried again");
            }
        }
        Ok(())
    }
}

/// Whether a write that was refused for want of room, or for a field that is not mapped any more, would not be refused so again.
fn fits(catalog: &Catalog, described: &Described, ticket: &Ticket, code: &str) -> bool {
    let Some(mapping) = catalog.mapping(ticket.mapping) else { return false };
    let table = described.tables.iter().find(|t| t.schema == mapping.schema && t.table == mapping.table);
    let mut values = ticket.values.iter().filter_map(|v| Some((mapping.field(v.field)?, &v.value)));
    match (ticket.side, code) {
        // String data right truncation, numeric value out of range, invalid date and time formats, invalid text representation.
        (Side::Postgres, "22001" | "22003" | "22007" | "22008" | "22P02") => values.all(|(field, value)| {
            let column = table.and_then(|table| table.column(&field.column));
            column.is_some_and(|column| has_room(&column.type_name, &column.labels, value))
        }),
        (Side::Salesforce, "STRING_TOO_LONG") => values.all(|(field, value)| match (&field.kind, value.as_text()) {
            (FieldKind::Text { length }, Some(text)) => text.chars().count() <= *length as usize,
            _ => true,
        }),
        (Side::Salesforce, "INVALID_FIELD" | "INVALID_FIELD_FOR_INSERT_UPDATE") => {
            ticket.values.iter().any(|v| mapping.field(v.field).is_none())
        }
        _ => false,
    }
}

fn columns(catalog: &Catalog, tables: &[TableDescription]) -> BTreeSet<Column> {
    let mut columns = BTreeSet::new();
    for mapping in &catalog.mappings {
        let Some(table) = tables.iter().find(|t| t.schema == mapping.schema && t.table == mapping.table) else {
            continue;
        };
        let mapped = mapping.fields.iter().filter_map(|field| table.column(&field.column));
        columns.extend(mapped.map(|c| (mapping.name.clone(), c.name.clone(), c.type_name.clone(), c.labels.clone())));
    }
    columns
}

fn schema(evolution: &Evolution, failed: &[(Difference, String)]) -> Schema {
    let errors: Vec<String> = evolution.problems.iter().filter(|p| p.is_error()).map(Finding::to_string).collect();
    let problem = (!errors.is_empty()).then(|| {
        let errors = errors.join("; ");
        format!("the mappings do not fit the org any more, and the link goes on with those in force: {errors}")
    });
    let failure = |difference: &Difference| {
        let same =
            failed.iter().find(|(tried, _)| tried.mapping == difference.mapping && tried.field == difference.field);
        same.map(|(_, error)| error.clone())
    };
    let differences = evolution.differences.iter().map(|difference| SchemaDifference {
        mapping: difference.mapping.clone(),
        field: difference.field.clone(),
        column: difference.column.clone(),
        message: difference.message.clone(),
        to_do: difference.is_to_do(),
        failed: failure(difference),
    });
    let left_out = evolution.problems.iter().filter(|p| !p.is_error()).map(|finding| {
        let (mapping, field) = finding.subject.split_once('.').unwrap_or((&finding.subject, ""));
        SchemaDifference {
            mapping: mapping.to_owned(),
            field: field.to_owned(),
            message: finding.message.clone(),
            to_do: true,
            ..SchemaDifference::default()
        }
    });
    Schema { problem, differences: differences.chain(left_out).collect() }
}
