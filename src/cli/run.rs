//! `tidelock run`.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::config::Config;
use crate::error::Result;

use super::{Verdict, progress};

pub(super) async fn run(config: Config, cancel: CancellationToken) -> Result<Verdict> {
    let Some(link) = app::Link::open_unless(config, &cancel).await? else { return Ok(Verdict::Good) };
    let (started, running) = watch::channel(None);
    tokio::select! {
        ended = link.run(cancel, |handle| drop(started.send_replace(Some(handle)))) => ended.map(|()| Verdict::Good),
        never = progress::show(running) => match never {},
    }
}
