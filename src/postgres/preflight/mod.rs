//! Whether a database is fit for a link: everything that can be known before the first change, each trouble with what to do.
//!
//! Checks only read. What a person must mend is an error; what will hurt some rows or cost something is a warning.

mod column;
mod server;
mod table;
mod triggers;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::connect::{Session, database_error};
use super::endpoint::Endpoint;
use super::introspect::{TableDetail, table_details};
use crate::change::{Catalog, MappingDef};
use crate::config::Capture;
use crate::error::{Error, Kind, Result};
use crate::mapping::{Finding, Severity};

/// The longest that a query of a check may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// Before what the checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before `init`: what init makes may be missing, and the privileges to make it are needed.
    Install,
    /// Before `run`: what init makes must be there.
    Run,
}

/// What is checked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Where the database is, and as whom.
    pub endpoint: &'a Endpoint,
    /// What is mapped.
    pub catalog: &'a Catalog,
    /// The publication that capture reads.
    pub publication: &'a str,
    /// The replication slot of capture.
    pub slot: &'a str,
    /// How changes are captured.
    pub capture: Capture,
    /// Whether row filters of the publication are on purpose.
    pub row_filters: bool,
    /// Before what.
    pub stage: Stage,
}

impl Request<'_> {
    fn by_triggers(&self) -> bool {
        self.capture == Capture::Trigger
    }
}

/// All findings about a database, in the order of the checks. An `Err` means that the checks could not be made.
pub async fn preflight(request: Request<'_>) -> Result<Vec<Finding>> {
    let session = Session::open(request.endpoint).await?;
    let mut report = Report::new(request, &session);
    report.server().await?;
    if request.by_triggers() {
        report.trigger_log().await?;
    } else {
        report.replication().await;
        report.slot().await?;
    }
    let details = report.details().await?;
    for mapping in &request.catalog.mappings {
        let detail = details.get(&(mapping.schema.as_str(), mapping.table.as_str()));
        match detail {
            Some(detail) => {
                let before = report.findings.len();
                report.table(mapping, detail).await?;
                if report.findings.len() == before {
                    let fields = mapping.fields.len();
                    let message = format!("the table has its key and all {fields} mapped columns");
                    report.ok(format!("table {}.{}", mapping.schema, mapping.table), message, "");
                }
            }
            None => report.missing_table(mapping).await?,
        }
    }
    report.objects().await?;
    let findings = report.findings;
    session.close().await?;
    Ok(findings)
}

/// The checks under way.
struct Report<'a> {
    request: Request<'a>,
    session: &'a Session,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    fn new(request: Request<'a>, session: &'a Session) -> Self {
        Self { request, session, findings: Vec::new() }
    }

    fn error(&mut self, subject: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.add(Severity::Error, subject, message, advice);
    }

    fn warning(&mut self, subject: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.add(Severity::Warning, subject, message, advice);
    }

    /// Nothing to mend; the advice says what to keep in mind.
    fn ok(&mut self, subject: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.add(Severity::Ok, subject, message, advice);
    }

    fn add(
        &mut self,
        severity: Severity,
        subject: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.findings.push(Finding {
            severity,
            subject: subject.into(),
            message: message.into(),
            advice: advice.into(),
        });
    }

    /// One row of texts, as the server prints them; null and missing columns are empty.
    async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)], doing: &str) -> Result<Option<Vec<String>>> {
        Ok(self.rows(sql, parameters, doing).await?.into_iter().next())
    }

    /// Rows of text columns; null is empty.
    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)], doing: &str) -> Result<Vec<Vec<String>>> {
        let asked = tokio::time::timeout(QUERY_TIMEOUT, self.session.query(sql, parameters)).await;
        let rows = match asked {
            Ok(answer) => answer.map_err(|error| database_error(doing, error))?,
            Err(_) => {
                return Err(Error::new(Kind::Unavailable, format!("PostgreSQL did not answer in time while {doing}")));
            }
        };
        rows.iter()
            .map(|row| {
                (0..row.len())
                    .map(|n| row.try_get::<_, Option<String>>(n).map(Option::unwrap_or_default))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| database_error(doing, error))
            })
            .collect()
    }

    async fn details(&self) -> Result<BTreeMap<(&'a str, &'a str), TableDetail>> {
        let mut wanted: BTreeMap<&str, Vec<&MappingDef>> = BTreeMap::new();
        for mapping in &self.request.catalog.mappings {
            wanted.entry(&mapping.schema).or_default().push(mapping);
        }
        let mut found = BTreeMap::new();
        for (schema, mappings) in wanted {
            let names: Vec<String> = mappings.iter().map(|mapping| mapping.table.clone()).collect();
            for detail in table_details(self.session, schema, &names).await? {
                if let Some(mapping) = mappings.iter().find(|mapping| mapping.table == detail.table) {
                    found.insert((schema, mapping.table.as_str()), detail);
                }
            }
        }
        Ok(found)
    }
}

/// Whether a text that the server printed says true.
fn yes(text: Option<&String>) -> bool {
    text.is_some_and(|text| text == "true")
}
