//! Tidelock's capture of the table of [`super::contact`], into a new log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidelock::change::Side;
use tidelock::clock;
use tidelock::error::Result;
use tidelock::ledger::{self, Ledger};
use tidelock::log::{RocksLog, RocksOptions, SharedLog};
use tidelock::postgres::Endpoint;
use tidelock::postgres::capture::{Capture, CaptureConfig, CaptureHandle};
use tidelock::task::Tasks;
use tokio_util::sync::CancellationToken;

use super::contact::catalog;
use super::failed;

/// The publication that is captured.
pub(crate) const PUBLICATION: &str = "bench";

/// A capture under way.
pub(crate) struct Capturing {
    /// What it writes to.
    pub(crate) ledger: Ledger,
    /// The capture, and what else ends with it.
    pub(crate) tasks: Tasks,
    /// Ends all of them.
    pub(crate) cancel: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Capturing {
    /// Starts to drain a slot into a new log in `directory`.
    pub(crate) async fn start(endpoint: Endpoint, slot: String, directory: &Path) -> Result<Self> {
        let clock = clock::system();
        let log: SharedLog = Arc::new(RocksLog::open_or_create(directory, RocksOptions::default())?);
        let (ledger, thread) = ledger::start(log, Arc::clone(&clock))?;
        let catalog = catalog(None);
        let wanted = catalog.clone();
        let opened = ledger
            .run(move |core| {
                core.configure(&wanted)?;
                core.open_stream(Side::Postgres, "bench")
            })
            .await?;
        let config = CaptureConfig {
            endpoint,
            slot,
            publication: PUBLICATION.into(),
            link: "bench".into(),
            stream: opened.stream,
            catalog: Arc::new(catalog),
            unread: Vec::new(),
            published: None,
            row_filters: false,
            spool: Some(directory.join("spool")),
            durable: None,
            timeline: None,
            heartbeat: None,
            clock,
        };
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let (to, stop) = (ledger.clone(), cancel.clone());
        tasks.spawn("capture", async move { Capture::new(config, CaptureHandle::new()).run(&to, stop).await });
        Ok(Self { ledger, tasks, cancel, thread })
    }

    /// Waits until the tasks have ended or are cancelled, and closes the log. Returns how many changes were captured.
    pub(crate) async fn run(self) -> Result<u64> {
        self.tasks.run(Duration::from_mins(1)).await?;
        let captured = self.ledger.status().borrow().counts.changes[Side::Postgres.index()];
        drop(self.ledger);
        self.thread.join().map_err(|_| failed("the ledger panicked"))?;
        Ok(captured)
    }
}
