//! Putting the configuration in force, now or as soon as both sides can be asked.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::catalog;
use crate::app::connect::{Org, endpoint};
use crate::backoff::Backoff;
use crate::change::{Catalog, MappingDef, MappingId, Notice, Side, Str};
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::ledger::Ledger;
use crate::ledger::core::Core;
use crate::postgres::connect::Session;
use crate::postgres::slot;

use super::stream::{Deletes, known_stream, read_again};

/// How much of the log's id goes into the external ids that it makes: enough to tell the logs of one org apart.
const PREFIX_LENGTH: usize = 8;

/// The catalog in force from now on; and, where a side cannot be asked, why the configuration may not be what is in force.
pub(super) async fn configure(
    config: &Config,
    org: &Org,
    ledger: &Ledger,
    log_id: &str,
) -> Result<(Catalog, Option<String>)> {
    let known = ledger.run(|core| Ok(core.meta().catalog.clone())).await?;
    let previous = Some(&*known).filter(|c| !c.mappings.is_empty());
    let described = match catalog::describe(config, org).await {
        // Before anything is put in force, and before what another database lacks is said to be missing.
        Ok(described) => check_database(config, ledger).await.map(|()| described),
        Err(error) => Err(error),
    };
    let mut catalog = match described {
        Ok(described) => catalog::compile_finished(config, &described, previous)?,
        Err(error) if previous.is_some() && passes(error.kind()) => {
            let why = format!(
                "the configuration has not been compared with what both sides have, so a change of its mappings or rules is not \
                 in force; it will be as soon as the sides can be asked: {}",
                error.explain()
            );
            tracing::error!("{why}; the link goes on with the mappings that the log knows");
            return Ok((Catalog::clone(&known), Some(why)));
        }
        Err(error) => return Err(error),
    };
    if catalog.external_id_prefix.is_empty() {
        catalog.external_id_prefix = Str::new(log_id.get(..PREFIX_LENGTH).unwrap_or(log_id));
    }
    let wanted = catalog.clone();
    let to_copy = |m: &&MappingDef| config.mappings.iter().any(|c| c.name == m.name && c.backfill);
    let to_copy: Vec<MappingId> = catalog.mappings.iter().filter(to_copy).map(|m| m.id).collect();
    ledger.run(move |core| put_in_force(core, &wanted, &to_copy)).await?;
    Ok((catalog, None))
}

/// Refuses another database than the one that the log has read.
async fn check_database(config: &Config, ledger: &Ledger) -> Result<()> {
    let Some(known) = known_stream(ledger, Side::Postgres).await? else { return Ok(()) };
    let session = Session::brief(&endpoint(config)).await?;
    let found = slot::database_identity(&session).await?;
    session.close().await?;
    slot::check_database(&known, &found)
}

/// Whether a side that answers so will answer otherwise later.
pub(super) fn passes(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Limited)
}

/// Asks both sides until they answer, and asks for the link to be started again where the configuration turns out to want
/// something else than what is in force. One that does not fit is told of, and tried again after it was mended.
pub(super) async fn watch_configuration(
    config: &Config,
    org: &Org,
    known: &Catalog,
    told: &watch::Sender<Option<String>>,
    outdated: &CancellationToken,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
        let described = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            described = catalog::describe(config, org) => described,
        };
        match described.and_then(|described| catalog::compile_finished(config, &described, Some(known))) {
            Ok(wanted) if wanted == *known => {
                tracing::info!("the configuration has been compared with both sides: it is what is in force");
                told.send_replace(None);
                return Ok(());
            }
            Ok(_) => {
                tracing::info!(
                    "the sides can be asked again: the link starts again to put the changed configuration in force"
                );
                outdated.cancel();
                return Ok(());
            }
            Err(error) if passes(error.kind()) => {}
            Err(error) => {
                let why = format!("the configuration is not in force: {}", error.explain());
                let news = told.send_if_modified(|known| {
                    let news = known.as_ref() != Some(&why);
                    *known = Some(why.clone());
                    news
                });
                if news {
                    tracing::error!("{why}");
                }
            }
        }
    }
}

/// Puts a catalog in force. Rows of mappings that have got fields are read again at both sides, from the beginning; and those
/// of new ones in `to_copy` for the first time.
fn put_in_force(core: &mut Core, catalog: &Catalog, to_copy: &[MappingId]) -> Result<()> {
    for mapping in core.configure(catalog)? {
        for side in Side::BOTH {
            read_again(core, side, mapping, Deletes::Told)?;
        }
    }
    for mapping in to_copy.iter().copied() {
        for side in Side::BOTH {
            if core.meta().backfill(side, mapping).is_none() {
                core.notice(Notice::Backfill { side, mapping, rows: 0, after: Str::default(), finished: false })?;
            }
        }
    }
    Ok(())
}
