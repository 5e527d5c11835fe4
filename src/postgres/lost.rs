//! How a stream is lost, and how that is found out before anything is read from it.
//!
//! Whatever the reason, what was done meanwhile is in no stream any more, so the rows themselves have to be looked at. Only
//! where the server has gone back there is more to know: of what the log has read after that place, nobody knows whether the
//! server still has it.

use postgres_protocol::escape::escape_literal;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::connect::database_error;
use super::endpoint::Endpoint;
use super::slot::{self, acknowledgeable};
use crate::change::{Lsn, Offset, Position};
use crate::error::{Error, Kind, Result};

/// How a stream was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is no such slot.
    #[error("the replication slot `{slot}` is gone, and with it the changes since the change log last read it")]
    Gone {
        /// Its name.
        slot: String,
    },
    /// The server gave the slot up.
    #[error(
        "the replication slot `{slot}` was invalidated: the server removed log that Tidelock had not read yet \
         (max_slot_wal_keep_size, or an idle timeout)"
    )]
    Invalidated {
        /// Its name.
        slot: String,
    },
    /// The slot stands further on than the log has read.
    #[error(
        "the replication slot `{slot}` stands at {confirmed}, but the change log has its stream only up to {durable}, so that \
         the changes in between will never come: something else read or advanced the slot, it was dropped and made again, or \
         the change log is an older copy"
    )]
    Moved {
        /// Its name.
        slot: String,
        /// Where it stands.
        confirmed: Lsn,
        /// How far the log has read it.
        durable: Lsn,
    },
    /// The server no longer has all that the log has read.
    #[error(
        "the server has gone back: {why}; it was restored from a backup, or a standby that was behind was promoted"
    )]
    WentBack {
        /// What shows it.
        why: String,
        /// Up to here the server has what the log has read, as far as the slot tells. What came after it may be missing there.
        to: Lsn,
        /// The last of our writes that the server has, where that tells it better: nobody makes that anew, as may be done with
        /// a slot.
        replayed: Option<Offset>,
    },
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        let text = format!("{lost}. Every row of the mapped tables is compared with the change log now");
        Self::new(Kind::StreamLost, text).caused_by(lost)
    }
}

impl Lost {
    /// The loss that an error tells of, if it does.
    pub fn of(error: &Error) -> Option<&Self> {
        std::error::Error::source(error).and_then(|source| source.downcast_ref())
    }

    /// The same, where nothing else tells how far the server went back: not further than to this write of ours, which it has.
    fn at_least(self, written: Option<Offset>) -> Self {
        match self {
            Self::WentBack { why, to, replayed: None } if to == Lsn::default() => {
                Self::WentBack { why, to, replayed: written }
            }
            known => known,
        }
    }

    /// Whether the slot that is there, if there is one, is of no use: it stands where nothing of what it tells would be new.
    pub fn needs_new_slot(&self) -> bool {
        !matches!(self, Self::Moved { .. })
    }
}

/// What the log has of a stream.
#[derive(Debug, Clone)]
pub struct Known {
    /// The stream's identity.
    pub identity: String,
    /// The last place that it has.
    pub place: Option<Position>,
    /// The highest ticket that the stream has told to be committed.
    pub applied: Offset,
    /// The link and the log, as the cursor's table names them.
    pub names: (String, String),
    /// Whether the log has it that the stream was lost, and nothing has taken its place yet.
    pub doubted: bool,
}

impl Known {
    /// The loss that the log has on record and that was not made up for yet: whatever slot is there by now, it tells nothing of
    /// what came before.
    pub fn noted(&self, slot: &str) -> Option<Lost> {
        self.doubted.then(|| Lost::Gone { slot: slot.to_owned() })
    }
}

/// Looks whether a server still goes on with a stream where the log has read it. `identity` is what the server says it is now:
/// the same stream, on whatever timeline.
pub async fn look(
    client: &Client,
    endpoint: &Endpoint,
    name: &str,
    identity: &str,
    known: &Known,
) -> Result<Option<Lost>> {
    let found = slot::read_slot(client, name).await?;
    let replayed = replayed(client, &known.names).await?;
    if let Some(lost) = on_other_timeline(endpoint, name, identity, known).await? {
        return Ok(Some(lost.at_least(replayed)));
    }
    let durable = match &known.place {
        Some(Position::Postgres { commit_lsn, index, .. }) => Some(acknowledgeable(*commit_lsn, *index)),
        _ => None,
    };
    // A slot that was there when the server was saved never stood further on than the log.
    let saved_at = || found.as_ref().and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
    let end = slot::current_lsn(client).await?;
    let why = match (durable, replayed) {
        (Some(durable), _) if durable > end => {
            Some(format!("its log ends at {end}, and the change log has read it up to {durable}"))
        }
        (_, Some(replayed)) if replayed < known.applied => Some(format!(
            "tidelock.replay says that the last write was {replayed}, and the server has already told of {}",
            known.applied
        )),
        _ => None,
    };
    if let Some(why) = why {
        return Ok(Some(Lost::WentBack { why, to: saved_at().min(end), replayed }));
    }
    let Some(found) = found else { return Ok(Some(Lost::Gone { slot: name.to_owned() })) };
    match slot::check_continuity(&found, durable) {
        Ok(()) => Ok(None),
        Err(error) => Lost::of(&error).cloned().map(Some).ok_or(error),
    }
}

async fn on_other_timeline(endpoint: &Endpoint, name: &str, identity: &str, known: &Known) -> Result<Option<Lost>> {
    let timelines = slot::timeline_of(&known.identity).zip(slot::timeline_of(identity));
    let (Some((before, current)), Some(place)) = (timelines.filter(|(a, b)| a != b), &known.place) else {
        return Ok(None);
    };
    let checked = async {
        let history = if current > 1 { slot::timeline_history(endpoint, current).await? } else { String::new() };
        slot::check_timeline(name, before, current, &history, place)
    };
    match checked.await {
        Ok(()) => Ok(None),
        Err(error) => Lost::of(&error).cloned().map(Some).ok_or(error),
    }
}

/// The ticket that the cursor's table holds. A table or row that somebody took away tells nothing.
async fn replayed(client: &Client, (link, log): &(String, String)) -> Result<Option<Offset>> {
    let sql = format!(
        "SELECT ticket FROM tidelock.replay WHERE link = {} AND log = {}",
        escape_literal(link),
        escape_literal(log)
    );
    match client.simple_query(&sql).await {
        Ok(messages) => Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok().map(Offset),
            _ => None,
        })),
        // No such table or schema, or none that may be read.
        Err(error) if error.code().is_some_and(|c| matches!(c.code(), "42P01" | "3F000" | "42501")) => Ok(None),
        Err(error) => Err(database_error("reading tidelock.replay", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a timeline was left is a place that is known; a history that is gone, or of another branch, leaves none.
    #[test]
    fn a_write_that_the_server_has_says_how_far_it_went_back_where_nothing_else_does() {
        let went_back = |to, replayed| Lost::WentBack { why: "why".into(), to: Lsn(to), replayed };
        assert_eq!(went_back(0, None).at_least(Some(Offset(7))), went_back(0, Some(Offset(7))));
        assert_eq!(went_back(0, None).at_least(None), went_back(0, None));
        assert_eq!(went_back(500, None).at_least(Some(Offset(7))), went_back(500, None));
        assert_eq!(went_back(0, Some(Offset(9))).at_least(Some(Offset(7))), went_back(0, Some(Offset(9))));
    }
}
