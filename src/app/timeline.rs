//! Taking up the PostgreSQL stream where the log ends, at the same server or at a standby that was promoted in its place.

use crate::change::{Notice, Position, Side};
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::ledger::core::OpenedStream;
use crate::postgres::Endpoint;
use crate::postgres::slot;

/// Opens the stream `identity` where it is the one that the log has read, on whatever timeline: one that has everything that the
/// log has. `None` where it is another stream, or the first.
///
/// Places on different timelines cannot be compared, so a new timeline gets a number of its own, and the log's last place
/// goes over to it in the same append.
pub(super) async fn take_up(
    ledger: &Ledger,
    endpoint: &Endpoint,
    slot: &str,
    identity: &str,
) -> Result<Option<OpenedStream>> {
    let side = Side::Postgres;
    let (known, place) =
        ledger.run(move |core| Ok((core.known_stream(side), core.meta().positions[side.index()].clone()))).await?;
    let Some(known) = known.filter(|known| slot::same_stream(known, identity)) else { return Ok(None) };
    let timelines = slot::timeline_of(&known).zip(slot::timeline_of(identity));
    if let (Some((known, current)), Some(place)) = (timelines.filter(|(known, current)| known != current), &place) {
        let history = if current > 1 { slot::timeline_history(endpoint, current).await? } else { String::new() };
        slot::check_timeline(slot, known, current, &history, place)?;
        tracing::warn!(known, current, %place, "the server is on a new timeline, which has all that was read of the old one");
    }
    let identity = identity.to_owned();
    ledger
        .run(move |core| {
            let mut opened = core.open_stream(side, &identity)?;
            if opened.replaces.take().is_some()
                && let Some(Position::Postgres { commit_lsn, index, .. }) = place
            {
                let position = Position::Postgres { stream: opened.stream, commit_lsn, index };
                core.notice(Notice::StreamAt { side, position: position.clone() })?;
                opened.position = Some(position);
            }
            Ok(opened)
        })
        .await
        .map(Some)
}

/// Takes the stream up after its connection was lost: whatever answers there now.
pub(super) async fn take_up_again(
    ledger: &Ledger,
    endpoint: &Endpoint,
    slot: &str,
) -> Result<(OpenedStream, Option<u32>)> {
    let session = crate::postgres::Session::open(endpoint).await?;
    slot::check_server(&session).await?;
    let identity = slot::stream_identity(&session, slot).await?;
    session.close().await?;
    if let Some(opened) = take_up(ledger, endpoint, slot, &identity).await? {
        return Ok((opened, slot::timeline_of(&identity)));
    }
    if let Some(known) = ledger.run(|core| Ok(core.known_stream(Side::Postgres))).await? {
        slot::check_database(&known, &identity)?;
    }
    let message = format!(
        "the slot `{slot}` at {endpoint} is not the one that the log has read; when the link is started again, every row is \
         read again"
    );
    Err(Error::new(Kind::StreamLost, message))
}
