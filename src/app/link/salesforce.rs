//! The Salesforce side of a link: its stream, its copies, its capture, its target, and what needs looking after.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::partial::Partial;
use crate::app::supervise::supervise;
use crate::change::{Notice, Position, Side, Str};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::ledger::core::OpenedStream;
use crate::log::reader::LogReader;
use crate::replay::Runner;
use crate::salesforce::backfill::{Backfill, Copies, Place, Progress};
use crate::salesforce::capture::{ALL_CHANGES, Capture, CaptureSetup, Start};
use crate::salesforce::capture_status::CaptureStatus;
use crate::salesforce::limits::{Budget, BudgetOptions};
use crate::salesforce::rest::Rest;
use crate::salesforce::target::{SalesforceTarget, TargetOptions};
use crate::status::Totals;
use crate::task::Tasks;

use super::Link;
use super::configure::passes;
use super::known::{known, known_partial};
use super::stream::{done_so_far, known_stream};

/// How often Salesforce's clock is compared, and records of which only part is known are asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far the clocks must have drifted to be put on record again.
const DRIFT: Micros = 500_000;

impl Link {
    pub(super) async fn open_salesforce(&self) -> Result<OpenedStream> {
        let session = self.org.rest.auth().session().await;
        let identity = match session {
            Ok(session) => Str::from(format!("{}/data/ChangeEvents", session.organization_id())),
            // The org cannot be reached: the stream that the log knows is taken up when it can.
            Err(error) if passes(error.kind()) => match known_stream(&self.ledger, Side::Salesforce).await? {
                Some(identity) => identity,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        let opened = self.open_stream(Side::Salesforce, identity).await?;
        self.read_placeless_again().await?;
        Ok(opened)
    }

    /// Rows may have been copied before any place in the stream was durable. The stream is then taken up at its latest event,
    /// and what was changed while the process was down is not in it: objects of which rows are in the log are read once more,
    /// deletions too, after the rows that are still to be copied for the first time.
    async fn read_placeless_again(&self) -> Result<()> {
        self.ledger
            .run(|core| {
                let meta = core.meta();
                if meta.positions[Side::Salesforce.index()].is_some() {
                    return Ok(());
                }
                let catalog = Arc::clone(&meta.catalog);
                let mut begun = meta.backfills.clone();
                // A copy that is only intended has read nothing that could be out of date.
                begun.retain(|b| b.side == Side::Salesforce && (b.rows > 0 || b.finished));
                begun.retain(|b| catalog.mapping(b.mapping).is_some());
                if begun.is_empty() {
                    return Ok(());
                }
                tracing::warn!(
                    "no place in the Salesforce stream is known; what was copied from Salesforce is read again"
                );
                let names = begun.iter().filter_map(|b| catalog.mapping(b.mapping)).map(|m| m.sobject.as_str());
                core.notice(Notice::Gap {
                    side: Side::Salesforce,
                    reason: "rows were copied before a place in the stream was known".into(),
                    scope: Str::from(names.collect::<Vec<_>>().join(",")),
                })?;
                for progress in begun {
                    let place = Place::parse(&progress.after).once_more(progress.finished);
                    core.notice(Notice::Backfill {
                        side: Side::Salesforce,
                        mapping: progress.mapping,
                        rows: if place.again { progress.rows } else { 0 },
                        after: place.to_text(),
                        finished: false,
                    })?;
                }
                Ok(())
            })
            .await
    }

    pub(super) fn salesforce_capture(&self, opened: &OpenedStream) -> CaptureSetup {
        CaptureSetup {
            pubsub: self.org.pubsub.clone(),
            rest: self.org.rest.clone(),
            catalog: Arc::clone(&self.catalog),
            topic: ALL_CHANGES.into(),
            stream: opened.stream,
            last_commit: None,
            copies: Arc::new(Copies::knowing(known(self.pool.reader()))),
            status: Arc::new(CaptureStatus::default()),
        }
    }

    pub(super) fn spawn_salesforce(
        &self,
        tasks: &mut Tasks,
        setup: CaptureSetup,
        totals: &Arc<Totals>,
        cancel: &CancellationToken,
    ) {
        let backfill =
            Backfill::new(self.org.rest.clone(), Arc::clone(&self.catalog), setup.stream, Arc::clone(&setup.copies));
        let backfill = Arc::new(backfill);
        for mapping in self.to_copy(Side::Salesforce) {
            let (backfill, ledger, cancel) = (Arc::clone(&backfill), self.ledger.clone(), cancel.clone());
            let (status, totals) = (Arc::clone(&setup.status), Arc::clone(totals));
            let copying = supervise("copy from salesforce", cancel.clone(), move || {
                let (backfill, ledger, cancel) = (Arc::clone(&backfill), ledger.clone(), cancel.clone());
                let (status, totals, mapping) = (Arc::clone(&status), Arc::clone(&totals), mapping.clone());
                async move {
                    // What changes while rows are read must be in the stream, so the subscription comes first.
                    subscribed(&status, &cancel).await?;
                    let (after, rows) = done_so_far(&ledger, Side::Salesforce, &mapping);
                    let progress = |p: Progress| {
                        totals.set(Side::Salesforce, p.mapping, p.total.filter(|_| !p.finished));
                    };
                    backfill.run(mapping.id, &after.unwrap_or_default(), rows, &ledger, progress, &cancel).await
                }
            });
            tasks.spawn("copy from salesforce", copying);
        }
        {
            let (backfill, ledger, cancel) = (Arc::clone(&backfill), self.ledger.clone(), cancel.clone());
            let (rest, reader) = (self.org.rest.clone(), self.pool.reader());
            tasks.spawn("look after salesforce", async move {
                look_after(&backfill, &rest, &ledger, &reader, &cancel).await
            });
        }
        let (ledger, cancel) = (self.ledger.clone(), cancel.clone());
        let capturing = supervise("capture from salesforce", cancel.clone(), move || {
            let at = ledger.status().borrow().clone();
            let start = match &at.positions[Side::Salesforce.index()] {
                Some(Position::Salesforce { replay_id, .. }) => Start::After(replay_id.clone()),
                _ => Start::Latest,
            };
            let last_commit = Some(at.committed_at[Side::Salesforce.index()]).filter(|at| *at != 0);
            let capture = Capture::new(CaptureSetup { last_commit, ..setup.clone() });
            capture.run(start, Arc::new(ledger.clone()), cancel.clone())
        });
        tasks.spawn("capture from salesforce", capturing);
    }

    pub(super) fn to_salesforce(&self, status: &Arc<CaptureStatus>) -> Runner<SalesforceTarget> {
        let share_percent = u8::try_from(self.config.salesforce.daily_calls_percent).unwrap_or(100);
        let budget = Budget::new(BudgetOptions { share_percent, ..BudgetOptions::default() }, Arc::clone(&self.clock));
        let target = SalesforceTarget::new(
            self.org.rest.clone(),
            Arc::clone(&self.catalog),
            budget,
            TargetOptions { batch_limit: self.config.replay.salesforce_batch as usize, ..TargetOptions::default() },
        );
        let targets = vec![target; self.config.salesforce.requests_in_flight.max(1) as usize];
        let (status, rest) = (Arc::clone(status), self.org.rest.clone());
        let stream_time =
            Arc::new(move || status.stream_time().map_or(0, |at| at - rest.clock_offset().ahead().unwrap_or(0)));
        let linger = Duration::from_millis(self.config.replay.salesforce_linger_ms.into());
        Runner::new(
            targets,
            self.ledger.clone(),
            self.pool.reader(),
            Arc::clone(&self.clock),
            self.settings(linger),
            stream_time,
        )
    }
}

/// Waits until the org's changes are subscribed to.
async fn subscribed(status: &CaptureStatus, cancel: &CancellationToken) -> Result<()> {
    while !status.connected() {
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(Kind::Cancelled, "stopped before the subscription was open")),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    Ok(())
}

/// Keeps the measured clock offset on record, and has records read whole of which only part is known.
async fn look_after(
    backfill: &Backfill,
    rest: &Rest,
    ledger: &Ledger,
    reader: &LogReader,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut told: Micros = ledger.run(|core| Ok(core.meta().salesforce_ahead)).await?;
    let mut partial = Partial::default();
    // Where to go on with looking through the log for such records.
    let mut look_from = Some(Vec::new());
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if let Some(ahead) = rest.clock_offset().ahead().filter(|ahead| (ahead - told).abs() > DRIFT) {
            told = ahead;
            ledger.run(move |core| core.notice(Notice::ClockOffset { salesforce_ahead_us: ahead })).await?;
        }
        let (found, catalog) = ledger.run(|core| Ok((core.take_partial(), Arc::clone(&core.meta().catalog)))).await?;
        partial.add(found);
        if let Some(after) = look_from.take() {
            let (found, next) = known_partial(reader, catalog, after).await?;
            partial.add(found);
            look_from = next;
        }
        for records in partial.due(Instant::now()) {
            let Some((mapping, _)) = records.first().cloned() else { continue };
            match backfill.read_again(&records, ledger, cancel).await {
                Ok(()) if partial.read(mapping) => look_from = Some(Vec::new()),
                Ok(()) => {}
                Err(_) if cancel.is_cancelled() => return Ok(()),
                Err(error) => {
                    let wait_ms = partial.failed(mapping, Instant::now()).as_millis() as u64;
                    tracing::warn!(error = %error.explain(), records = records.len(), wait_ms, "records could not be read again yet");
                }
            }
        }
    }
}
