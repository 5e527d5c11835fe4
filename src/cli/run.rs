//! `tidelock run`.

use tokio_util::sync::CancellationToken;

use crate::app;
use crate::config::Config;
use crate::error::Result;

use super::Verdict;

pub(super) async fn run(config: Config, cancel: CancellationToken) -> Result<Verdict> {
    let link = app::Link::open(config).await?;
    link.run(cancel).await?;
    Ok(Verdict::Good)
}
