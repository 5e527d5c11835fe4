//! What the org's fields ask of the tables, and doing it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::change::Catalog;
use crate::config::{Config, MappingConfig};
use crate::error::{Error, Result};
use crate::mapping::{self, Change, Difference, Finding, Remedy, Scope, differences};
use crate::postgres::alter::{self, TableSize, table_sizes};
use crate::postgres::connect::Session;

use super::catalog::{self, Described};
use super::connect::{Org, endpoint};

/// The configuration, the org and the database beside each other.
#[derive(Debug, Clone)]
pub struct Evolution {
    /// What both sides say of themselves.
    pub described: Described,
    /// What the database is to have, as far as the mappings are free of errors.
    pub catalog: Catalog,
    /// What is wrong with the mappings, and what is left out of them since the org has it no more.
    pub problems: Vec<Finding>,
    /// In what fields and columns differ.
    pub differences: Vec<Difference>,
    /// How large the tables are, by name.
    pub sizes: BTreeMap<String, TableSize>,
}

impl Evolution {
    /// Whether a mapping is wrong, so that not everything has been compared.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Finding::is_error)
    }

    /// Whether something is to be done.
    pub fn is_to_do(&self) -> bool {
        !self.problems.is_empty() || self.differences.iter().any(Difference::is_to_do)
    }
}

/// Compares what is mapped with what both sides have. `previous` is the catalog in force.
pub async fn compare(config: &Config, org: &Org, previous: Option<&Catalog>) -> Result<Evolution> {
    let described = catalog::describe(config, org).await?;
    let session = Session::brief(&endpoint(config)).await?;
    let names: Vec<String> = config.mappings.iter().map(|m| m.table.clone()).collect();
    let settings = &config.postgres;
    let sizes = table_sizes(&session, &settings.schema, &names, &settings.publication).await?;
    session.close().await?;

    let (mappings, mut problems) = catalog::mappings(config, &described, previous, Scope::Wanted);
    let check = |mappings: &[MappingConfig]| {
        mapping::check(mappings, &config.defaults(), &described.sobjects, &described.tables, previous)
    };
    let (catalog, findings) = check(&mappings);
    problems.extend(findings.into_iter().filter(Finding::is_error));
    let catalog = catalog.unwrap_or_else(|| {
        let is_sound = |mapping: &&MappingConfig| check(std::slice::from_ref(mapping)).0.is_some();
        let sound: Vec<MappingConfig> = mappings.iter().filter(is_sound).cloned().collect();
        check(&sound).0.unwrap_or_default()
    });
    let mut differences =
        differences(&catalog, &described.sobjects, &described.tables, previous, config.postgres.numbers);
    // What is listed and gone has been told already, with what to do about the list.
    let is_told = |d: &Difference| problems.iter().any(|p| p.subject == format!("{}.{}", d.mapping, d.field));
    differences.retain(|difference| difference.change != Change::Removed || !is_told(difference));
    for difference in &mut differences {
        let listed = sizes.get(&difference.table).is_some_and(|size| size.column_list);
        if let (Remedy::Apply { attended, .. }, Change::New, true) = (&mut difference.remedy, difference.change, listed)
        {
            *attended = Some(format!(
                "the publication {} lists the columns of the table: add the new one to the list too, before the link takes it up",
                settings.publication
            ));
        }
    }
    Ok(Evolution { described, catalog, problems, differences, sizes })
}

/// Runs the statements of differences one by one, each in a transaction of its own, and tells of each how it went: one that the
/// database refuses, or that takes longer than the limit, does not keep it from the others.
pub async fn alter<'a>(
    config: &Config,
    differences: impl IntoIterator<Item = &'a Difference>,
    limit: Option<Duration>,
) -> Result<Vec<(&'a Difference, Option<Error>)>> {
    let mut session = match limit {
        Some(limit) => Session::answering_within(&endpoint(config), limit * 2).await?,
        None => Session::open(&endpoint(config)).await?,
    };
    let mut done = Vec::new();
    for difference in differences {
        if let Some((sql, _)) = difference.statement() {
            done.push((difference, alter::alter(&mut session, sql, limit).await.err()));
        }
    }
    session.close().await?;
    Ok(done)
}
