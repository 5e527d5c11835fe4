//! `tidelock check`: what is there, what is missing, and what to do about it.

use comfy_table::Table;

use crate::app;
use crate::change::Catalog;
use crate::config::{Config, MappingConfig};
use crate::error::Result;
use crate::mapping::{self, Finding, Scope, Severity};
use crate::postgres::preflight::{self as postgres, Request, Stage};
use crate::salesforce::preflight as salesforce;

use super::Verdict;
use super::output::{self, Output};

pub(super) async fn run(config: &Config, output: Output) -> Result<Verdict> {
    let findings = findings(config).await?;
    let bad = findings.iter().any(Finding::is_error);
    if output.is_json() {
        output::json(&findings)?;
    } else {
        print(&findings)?;
    }
    Ok(if bad { Verdict::Problems } else { Verdict::Good })
}

/// Everything that can be found out about both sides without changing anything.
async fn findings(config: &Config) -> Result<Vec<Finding>> {
    let org = app::salesforce(config)?;
    let described = app::describe(config, &org).await?;
    let known = super::init::in_force(config).await?;
    let (mappings, left_out) = app::mappings(config, &described, known.as_ref(), Scope::Present);
    let (catalog, mut findings) =
        mapping::check(&mappings, &config.defaults(), &described.sobjects, &described.tables, None);
    findings.extend(left_out);
    let catalog = match catalog {
        Some(catalog) => catalog,
        None => sound_part(config, &mappings, &described),
    };
    let stage = if described.tables.is_empty() { Stage::Install } else { Stage::Run };
    let endpoint = app::endpoint(config);
    let request = Request {
        endpoint: &endpoint,
        catalog: &catalog,
        publication: &config.postgres.publication,
        slot: &config.postgres.slot,
        capture: config.postgres.capture,
        row_filters: config.postgres.row_filters,
        stage,
    };
    findings.extend(postgres::preflight(request).await?);
    let may_subscribe = |topic: String| {
        let pubsub = org.pubsub.clone();
        async move {
            match pubsub.topic(&topic).await {
                Ok(topic) => Ok(topic.can_subscribe),
                Err(trouble) => Err(trouble.into_error()),
            }
        }
    };
    findings.extend(salesforce::check(&org.rest, &catalog, None, may_subscribe).await);
    Ok(findings)
}

/// The catalog of those mappings that are free of errors, so that a fault in one does not hide what is wrong elsewhere.
fn sound_part(config: &Config, mappings: &[MappingConfig], described: &app::Described) -> Catalog {
    let compile = |mappings: &[MappingConfig]| {
        mapping::check(mappings, &config.defaults(), &described.sobjects, &described.tables, None).0
    };
    let sound: Vec<MappingConfig> =
        mappings.iter().filter(|mapping| compile(std::slice::from_ref(mapping)).is_some()).cloned().collect();
    compile(&sound).unwrap_or_default()
}

fn print(findings: &[Finding]) -> Result<()> {
    let mut table: Table = output::table(&["", "what", "finding", "what to do"]);
    for finding in findings {
        let mark = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "ERROR",
        };
        table.add_row([mark, &finding.subject, &finding.message, &finding.advice]);
    }
    output::line(&table.to_string())?;
    let count = |severity, name: &str| {
        let n = findings.iter().filter(|f| f.severity == severity).count();
        format!("{n} {name}{}", if n == 1 { "" } else { "s" })
    };
    output::line(&format!("{}, {}", count(Severity::Error, "error"), count(Severity::Warning, "warning")))
}
