//! Taking up the PostgreSQL stream where the log ends, at the same server or at a standby that was promoted in its place.

use crate::change::{Notice, Position, Side};
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::ledger::core::OpenedStream;
use crate::postgres::Endpoint;
use crate::postgres::lost::{self, Known};
use crate::postgres::slot;

/// What the log has of PostgreSQL's stream; none if it has never read one. `names` are those of the link and the log.
pub(super) async fn known(ledger: &Ledger, names: (String, String)) -> Result<Option<Known>> {
    ledger
        .run(move |core| {
            let (meta, side) = (core.meta(), Side::Postgres);
            Ok(meta.stream(side).map(|stream| Known {
                identity: stream.identity.to_string(),
                place: meta.positions[side.index()].clone(),
                applied: meta.applied,
                names,
                doubted: meta.is_doubted(side),
            }))
        })
        .await
}

/// Opens the stream `identity` where it is the one that the log has read, on whatever timeline: one of which it is known that the
/// server has all that the log has. `None` where it is another stream, or the first.
///
/// Places on different timelines cannot be compared, so a new timeline gets a number of its own, and the log's last place
/// goes over to it in the same append.
pub(super) async fn take_up(ledger: &Ledger, known: Option<&Known>, identity: &str) -> Result<Option<OpenedStream>> {
    let Some(known) = known.filter(|known| slot::same_stream(&known.identity, identity)) else { return Ok(None) };
    let place = known.place.clone();
    let timelines = slot::timeline_of(&known.identity).zip(slot::timeline_of(identity));
    if let (Some((known, current)), Some(place)) = (timelines.filter(|(known, current)| known != current), &place) {
        tracing::warn!(known, current, %place, "the server is on a new timeline, which has all that was read of the old one");
    }
    let identity = identity.to_owned();
    ledger
        .run(move |core| {
            let side = Side::Postgres;
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
    names: (String, String),
) -> Result<(OpenedStream, Option<u32>)> {
    let known = known(ledger, names).await?;
    let session = crate::postgres::Session::brief(endpoint).await?;
    slot::check_server(&session).await?;
    let identity = slot::stream_identity(&session, slot).await?;
    if let Some(known) = &known {
        slot::check_database(&known.identity, &identity)?;
        if slot::same_stream(&known.identity, &identity) {
            let lost = lost::look(&session, endpoint, slot, &identity, known).await?;
            if let Some(lost) = lost.or_else(|| known.noted(slot)) {
                return Err(lost.into());
            }
        }
    }
    session.close().await?;
    if let Some(opened) = take_up(ledger, known.as_ref(), &identity).await? {
        return Ok((opened, slot::timeline_of(&identity)));
    }
    let message = format!(
        "the slot `{slot}` at {endpoint} is not the one that the log has read; when the link is started again, every row is \
         read again"
    );
    Err(Error::new(Kind::StreamLost, message))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{MappingId, Str};
    use crate::clock;
    use crate::demo::server::{PostgresServer, ServerSettings};
    use crate::ledger::testing::catalog;
    use crate::log::MemoryLog;

    /// The slot that is there may have been made after the loss was noted, and then tells nothing of what came before.
    #[tokio::test]
    async fn a_stream_that_is_noted_to_be_lost_is_not_taken_up_again() {
        let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        let (endpoint, session) = (server.endpoint(), server.session().await.unwrap());
        slot::ensure_slot(&session, "s").await.unwrap();
        let identity = slot::stream_identity(&session, "s").await.unwrap();
        let (ledger, thread) = crate::ledger::start(Arc::new(MemoryLog::new()), clock::system()).unwrap();
        let (side, mapping) = (Side::Postgres, MappingId(0));
        let stream = ledger
            .run(move |core| {
                core.configure(&catalog(&["Phone"]))?;
                Ok(core.open_stream(side, &identity)?.stream)
            })
            .await
            .unwrap();
        let names = || ("l".to_owned(), "log".to_owned());
        let (opened, timeline) = take_up_again(&ledger, &endpoint, "s", names()).await.unwrap();
        assert_eq!((opened.stream, timeline), (stream, Some(1)));
        ledger
            .run(move |core| {
                core.notice(Notice::Backfill { side, mapping, rows: 0, after: Str::default(), finished: false })?;
                let (cause, lost) = (Str::new("it went back"), Some(stream));
                core.notice(Notice::Reconcile { side, mapping, cause, lost, rewound_to: None })
            })
            .await
            .unwrap();
        let refused = take_up_again(&ledger, &endpoint, "s", names()).await.unwrap_err();
        assert!(lost::Lost::of(&refused).is_some(), "{refused}");
        drop(ledger);
        thread.join().unwrap();
    }
}
