//! The catalog in force: from the configuration and what both sides say of themselves.

use crate::change::Catalog;
use crate::config::{Config, MappingConfig};
use crate::error::{Error, Kind, Result};
use crate::mapping::{Finding, Scope, SobjectDescription, TableDescription, expand};
use crate::postgres::connect::Session;
use crate::postgres::introspect::describe_tables;
use crate::salesforce::describe::describe as describe_sobject;

use super::connect::{Org, endpoint};

/// What both sides say of what is mapped.
#[derive(Debug, Clone, Default)]
pub struct Described {
    /// The mapped sObjects that exist.
    pub sobjects: Vec<SobjectDescription>,
    /// The mapped tables that exist.
    pub tables: Vec<TableDescription>,
}

/// Asks both sides about everything that is mapped.
pub async fn describe(config: &Config, org: &Org) -> Result<Described> {
    let mut sobjects = Vec::new();
    for mapping in &config.mappings {
        if sobjects.iter().any(|s: &SobjectDescription| s.name.eq_ignore_ascii_case(&mapping.sobject)) {
            continue;
        }
        sobjects.extend(describe_sobject(&org.rest, &mapping.sobject).await?);
    }
    let session = Session::brief(&endpoint(config)).await?;
    let names: Vec<String> = config.mappings.iter().map(|m| m.table.clone()).collect();
    let tables = describe_tables(&session, &config.postgres.schema, &names).await?;
    session.close().await?;
    Ok(Described { sobjects, tables })
}

/// The catalog for a running link: every table and column must be there.
pub(super) fn compile_finished(config: &Config, described: &Described, previous: Option<&Catalog>) -> Result<Catalog> {
    let catalog = compile(config, described, previous, Scope::Present)?;
    let missing = crate::mapping::unfinished(&catalog, &described.tables);
    if missing.is_empty() { Ok(catalog) } else { Err(refusal(&missing)) }
}

/// The catalog for a configuration. `previous` is the one that the log has in force: what it named keeps its ids.
pub fn compile(config: &Config, described: &Described, previous: Option<&Catalog>, scope: Scope) -> Result<Catalog> {
    let (mappings, _) = mappings(config, described, previous, scope);
    crate::mapping::compile(&mappings, &config.defaults(), &described.sobjects, &described.tables, previous)
        .map_err(|findings| refusal(&findings))
}

/// The configuration's mappings with their fields listed one by one; and what is to be told of fields that are left out.
pub fn mappings(
    config: &Config,
    described: &Described,
    previous: Option<&Catalog>,
    scope: Scope,
) -> (Vec<MappingConfig>, Vec<Finding>) {
    let schema = &config.postgres.schema;
    expand(&config.mappings, schema, &described.sobjects, &described.tables, previous, scope)
}

fn refusal(findings: &[Finding]) -> Error {
    let lines: Vec<String> = findings.iter().filter(|f| f.is_error()).map(|f| format!("  {f}")).collect();
    let text =
        format!("the mappings do not fit what is there; `tidelock check` shows everything:\n{}", lines.join("\n"));
    Error::new(Kind::Configuration, text)
}
