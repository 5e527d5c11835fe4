//! A mirror from the change log alone: the log's records into a database that no link writes to.

use crate::audit::{self, Lens};
use crate::change::{Catalog, Offset, Side};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::log::{ReaderPool, SharedLog};
use crate::mapping::SobjectDescription;
use crate::postgres::Endpoint;
use crate::postgres::install::{self, Installation, Step};
use crate::postgres::target::{Rebuild, Rebuilt};
use crate::salesforce::describe::describe as describe_sobject;

/// Records that are written in a transaction.
const AT_ONCE: usize = 500;

/// What is to be done.
pub struct Request {
    /// The log that the state is read from; its tail is where the range ends.
    pub log: SharedLog,
    /// The name of the log, by which the mirror knows what it holds of it.
    pub log_id: String,
    /// Where the range begins.
    pub from: Offset,
    /// The database.
    pub target: Endpoint,
    /// Whether it is only said.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    /// What the database lacked.
    pub steps: Vec<Step>,
    /// Records that entries of the range are about.
    pub records: u64,
    /// Why columns have types that follow from the log alone, where the org could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untyped: Option<String>,
    /// What became of the rows.
    #[serde(flatten)]
    pub rebuilt: Rebuilt,
}

/// Makes the mirror's tables where they are missing, and writes what they lack of the range. `progress` is told how many records of
/// how many are done. Whatever ends it early, the same request again goes on.
pub async fn rebuild(config: &Config, request: Request, progress: impl Fn(u64, u64)) -> Result<Outcome> {
    let Request { log, log_id, from, target, dry_run } = request;
    let pool = ReaderPool::start(log)?;
    let reader = pool.reader();
    let (catalog, own) = reader
        .call(|log| {
            let lens = Lens::new(log)?;
            Ok((lens.catalog().clone(), lens.meta().stream(Side::Postgres).map(|s| s.identity.clone())))
        })
        .await?;
    if catalog.mappings.is_empty() {
        return Err(Error::new(
            Kind::Configuration,
            "the change log has no mappings up to there: there is nothing to write",
        ));
    }
    let mut rebuild = Rebuild::open(&target, &log_id, own.as_deref()).await?;
    rebuild.check_empty(&catalog).await?;
    let (sobjects, untyped) = described(config, &catalog).await;
    let wanted = Installation::new(&catalog, &config.postgres.publication, &sobjects, config.postgres.numbers);
    let steps = install::plan(rebuild.session(), &wanted).await?;
    if !dry_run {
        install::apply(rebuild.session(), &steps).await?;
        rebuild.make(&catalog).await?;
    } else if steps.is_empty() {
        rebuild.look_at_tables(&catalog).await?;
    }
    let records = reader.call(move |log| audit::touched(log, from, log.tail())).await?;
    let records: Vec<_> = records.into_iter().collect();
    let (mut keyless, mut done) = (Vec::new(), 0);
    for chunk in records.chunks(AT_ONCE) {
        let chunk = chunk.to_vec();
        done += chunk.len() as u64;
        let mut images = reader.call(move |log| audit::images(log, &chunk)).await?;
        if dry_run {
            rebuild.count(&images).await?;
        } else {
            // A row whose key PostgreSQL has not told gets one, which must not be another row's.
            keyless.extend(images.extract_if(.., |image| image.key.is_none()).map(|image| (image.record, image.at)));
            rebuild.write(images).await?;
        }
        progress(done - keyless.len() as u64, records.len() as u64);
    }
    if !keyless.is_empty() {
        rebuild.move_sequences(&catalog).await?;
    }
    for chunk in keyless.chunks(AT_ONCE) {
        let chunk = chunk.to_vec();
        let images = reader.call(move |log| audit::images(log, &chunk)).await?;
        rebuild.write(images).await?;
    }
    let rebuilt = rebuild.finish(&catalog).await?;
    Ok(Outcome { steps, records: records.len() as u64, untyped, rebuilt })
}

/// What the org says of the mapped objects, for the types of columns that are made; or why it does not.
async fn described(config: &Config, catalog: &Catalog) -> (Vec<SobjectDescription>, Option<String>) {
    let asking = async {
        let org = super::salesforce(config)?;
        let mut sobjects = Vec::new();
        for mapping in &catalog.mappings {
            sobjects.extend(describe_sobject(&org.rest, &mapping.sobject).await?);
        }
        Ok::<_, Error>(sobjects)
    };
    match asking.await {
        Ok(sobjects) => (sobjects, None),
        Err(error) => (Vec::new(), Some(error.explain())),
    }
}

/// The log itself where `to` is its end; else a copy of it up to there, which `copy` makes room for.
pub fn as_of(log: SharedLog, to: Offset, copy: impl FnOnce() -> Result<SharedLog>) -> Result<SharedLog> {
    if to == log.tail() {
        return Ok(log);
    }
    let copy = copy()?;
    crate::ledger::prefix::copy_until(&*log, &*copy, to)?;
    Ok(copy)
}
