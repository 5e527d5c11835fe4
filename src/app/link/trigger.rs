//! Capture from triggers, where the configuration asks for it, and the way from one capture to the other.
//!
//! The two are different streams. Where one takes the place of the other, what happened in between is unknown, and every row is
//! read again; what the other has left is taken away, or it would tell old changes as new ones when it comes back.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::supervise::{passes, supervise};
use crate::change::{Side, Str};
use crate::config::Capture;
use crate::error::{Error, Kind, Result};
use crate::ledger::core::OpenedStream;
use crate::postgres::capture::CaptureHandle;
use crate::postgres::capture::trigger_log::install::{self, id_of};
use crate::postgres::capture::trigger_log::{TriggerCapture, TriggerCaptureConfig};
use crate::postgres::connect::Session;
use crate::postgres::install::TriggerLog;
use crate::postgres::marks::Marks;
use crate::postgres::slot;
use crate::task::Tasks;

use super::Link;
use super::postgres::not_begun;

impl Link {
    pub(super) fn by_triggers(&self) -> bool {
        self.config.postgres.capture == Capture::Trigger
    }

    /// Where our messages go for capture to find them.
    pub(super) fn marks(&self) -> Marks {
        if self.by_triggers() { Marks::TriggerLog(self.config.postgres.schema.clone()) } else { Marks::Wal }
    }

    /// Whether a stream is one of the capture that is configured.
    pub(super) fn is_captured_from(&self, identity: &str) -> bool {
        id_of(identity).is_some() == self.by_triggers()
    }

    /// Opens the stream of the log of the triggers.
    pub(super) async fn open_trigger_log(&self) -> Result<OpenedStream> {
        match self.prepare_triggers().await {
            Ok(identity) => self.open_stream(Side::Postgres, identity).await,
            Err(error) if passes(&error) => self.open_known_stream(error).await,
            Err(error) => Err(error),
        }
    }

    /// Makes sure that triggers log the changes of every mapped table, and tells what makes the stream this one.
    pub(super) async fn prepare_triggers(&self) -> Result<Str> {
        let settings = &self.config.postgres;
        let (known, durable) = self
            .ledger
            .run(|core| {
                let side = Side::Postgres;
                Ok((core.known_stream(side), core.meta().positions[side.index()].clone()))
            })
            .await?;
        let log = TriggerLog::new(&settings.schema, &self.catalog);
        if known.as_deref().is_some_and(|known| !self.is_captured_from(known)) {
            let session = Session::open(&self.endpoint).await?;
            if let Some(known) = &known {
                slot::check_database(known, &slot::database_identity(&session).await?)?;
            }
            if slot::read_slot(&session, &settings.slot).await?.is_some() {
                tracing::warn!(
                    slot = settings.slot,
                    "triggers capture changes from now on; the replication slot is dropped"
                );
                slot::drop_stream(&session, &settings.slot, &settings.publication).await?;
            }
            session.close().await?;
        }
        install::prepare(&self.endpoint, &log.schema, &log.tables, known.as_deref(), durable.as_ref()).await
    }

    /// Drops the slot of a time before triggers captured changes: it would tell what they have told.
    pub(super) async fn leave_triggers(&self, session: &Session, known: Option<&str>) -> Result<()> {
        let settings = &self.config.postgres;
        if known.is_some_and(|known| id_of(known).is_some()) {
            slot::drop_stream(session, &settings.slot, &settings.publication).await?;
        }
        if install::is_installed(session, &settings.schema).await? {
            tracing::warn!(
                schema = settings.schema,
                "triggers still log changes that nobody reads; run `tidelock init`, which takes them away"
            );
        }
        Ok(())
    }

    pub(super) fn spawn_trigger_capture(
        &self,
        tasks: &mut Tasks,
        handle: &CaptureHandle,
        cancel: &CancellationToken,
        opened: &OpenedStream,
    ) {
        let settings = &self.config.postgres;
        let config = TriggerCaptureConfig {
            endpoint: self.endpoint.clone(),
            schema: settings.schema.clone(),
            id: id_of(&opened.identity).unwrap_or_default().to_owned(),
            link: self.config.link.name.clone(),
            stream: opened.stream,
            catalog: Arc::clone(&self.catalog),
            unread: Vec::new(),
            durable: None,
            heartbeat: Duration::from_secs(settings.heartbeat_seconds.into()),
            archive_days: settings.trigger_archive_days,
        };
        let (ledger, handle, cancel) = (self.ledger.clone(), handle.clone(), cancel.clone());
        let identity = opened.identity.clone();
        let capturing = supervise("capture from postgres", cancel.clone(), move || {
            let (config, handle, identity) = (config.clone(), handle.clone(), identity.clone());
            let (ledger, cancel) = (ledger.clone(), cancel.clone());
            async move {
                let session = Session::open(&config.endpoint).await?;
                slot::check_primary(&session).await?;
                slot::check_database(&identity, &slot::database_identity(&session).await?)?;
                session.close().await?;
                let durable = ledger.run(|core| Ok(core.meta().positions[Side::Postgres.index()].clone())).await?;
                // A place in an earlier stream is none in this one.
                let durable = durable.filter(|durable| durable.stream() == config.stream);
                let config = TriggerCaptureConfig { durable, unread: not_begun(&ledger), ..config };
                TriggerCapture::new(config, handle).run(&ledger, cancel).await
            }
        });
        tasks.spawn("capture from postgres", capturing);
    }

    /// The error of a start without the database, where the log knows no stream that could be taken up later.
    pub(super) fn needs_database(error: Error) -> Error {
        let message = "the database is needed at the first start, and at the first after `capture` was changed";
        Error::new(Kind::Unavailable, format!("{}; {message}", error.explain())).caused_by(error)
    }
}
