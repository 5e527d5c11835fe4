//! `tidelock run`.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::config::Config;
use crate::error::Result;

use super::{Verdict, progress};

pub(super) async fn run(config: Config, cancel: CancellationToken) -> Result<Verdict> {
    let link = app::Link::open(config).await?;
    let (started, running) = watch::channel(None);
    tokio::select! {
        ended = link.run(cancel, |handle| drop(started.send_replace(Some(handle)))) => ended.map(|()| Verdict::Good),
        never = progress::show(running) => match never {},
    }
}
