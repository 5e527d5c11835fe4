//! A side's stream, as the log knows it: taking it up, and what is to be read again where another takes its place.

use crate::change::{Lsn, MappingDef, MappingId, Notice, Side, Str, StreamId};
use crate::error::Result;
use crate::ledger::Ledger;
use crate::ledger::core::{Core, OpenedStream};
use crate::postgres::backfill::BackfillProgress;
use crate::salesforce::backfill::Place;

use super::Link;

impl Link {
    /// Opens a side's stream. One that takes the place of another leaves a gap, which is read again.
    pub(super) async fn open_stream(&self, side: Side, identity: Str) -> Result<OpenedStream> {
        let opened = self.ledger.run(move |core| take_up(core, side, &identity)).await?;
        if let Some(replaced) = &opened.replaces {
            tracing::error!(%side, %replaced, "the stream is not the one that the log has read; every record is read again");
        }
        Ok(opened)
    }
}

/// The stream of a side that the log has read.
pub(super) async fn known_stream(ledger: &Ledger, side: Side) -> Result<Option<Str>> {
    ledger.run(move |core| Ok(core.known_stream(side))).await
}

/// How far copying a mapping has come: the key or id to go on after, and the rows so far.
pub(super) fn done_so_far(ledger: &Ledger, side: Side, mapping: &MappingDef) -> (Option<Str>, u64) {
    let status = ledger.status();
    let status = status.borrow();
    let known = status.backfills.iter().find(|b| b.side == side && b.mapping == mapping.id);
    known.map_or((None, 0), |b| (Some(b.after.clone()).filter(|a| !a.is_empty()), b.rows))
}

/// Opens a side's stream, and where it takes the place of another, notes in the same append what is lost with that: all rows
/// are to be read again, and nobody will tell what became of a transaction that was not heard of yet.
pub(super) fn take_up(core: &mut Core, side: Side, identity: &str) -> Result<OpenedStream> {
    let opened = core.open_stream(side, identity)?;
    if let Some(replaced) = &opened.replaces {
        let reason = Str::new(format!("stream replaced: {replaced}"));
        core.notice(Notice::Gap { side, reason, scope: "every mapping".into() })?;
        let mappings: Vec<MappingId> = core.meta().catalog.mappings.iter().map(|m| m.id).collect();
        for mapping in mappings {
            read_again(core, side, mapping, Deletes::Lost)?;
        }
        if side == Side::Postgres {
            core.abandon_open(side, "the stream that would have told of it was replaced")?;
        }
    }
    Ok(opened)
}

/// Notes that a side's stream was lost: what its rows hold is in doubt from here on, until they have been compared.
pub(super) fn doubt(core: &mut Core, side: Side, cause: &str, rewound_to: Option<Lsn>) -> Result<()> {
    let lost = core.meta().stream(side).map(|stream| stream.id);
    let reason = Str::new(cause);
    core.notice(Notice::Gap { side, reason: reason.clone(), scope: "every mapping".into() })?;
    let mappings: Vec<MappingId> = core.meta().catalog.mappings.iter().map(|m| m.id).collect();
    mappings.into_iter().try_for_each(|mapping| doubt_rows(core, side, mapping, &reason, lost, rewound_to))
}

/// Notes that a mapping's rows at a side are in doubt: they are compared with the log, and nothing is written to them before.
///
/// Where an earlier comparison is not done, what it was to find out is still to be found out.
pub(super) fn doubt_rows(
    core: &mut Core,
    side: Side,
    mapping: MappingId,
    cause: &Str,
    lost: Option<StreamId>,
    rewound_to: Option<Lsn>,
) -> Result<()> {
    let earlier = core.meta().reconciling(side, mapping).map(|reconcile| (reconcile.lost, reconcile.rewound_to));
    let (earlier_lost, earlier_to) = earlier.unwrap_or_default();
    let rewound_to = earlier_to.into_iter().chain(rewound_to).min();
    read_again(core, side, mapping, Deletes::Lost)?;
    core.notice(Notice::Reconcile { side, mapping, cause: cause.clone(), lost: lost.or(earlier_lost), rewound_to })
}

/// Opens a new stream in the place of the lost one. Nobody will tell what became of a transaction that was not heard of yet.
pub(super) fn replace_lost(core: &mut Core, side: Side, identity: &str) -> Result<OpenedStream> {
    let opened = core.replace_stream(side, identity)?;
    core.abandon_open(side, "the stream that would have told of it was lost")?;
    Ok(opened)
}

/// The org's id in the identity of its stream.
pub(super) fn org_of(identity: &str) -> &str {
    identity.split_once('/').map_or(identity, |(id, _)| id)
}

/// Whether what was deleted meanwhile has been told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletes {
    Told,
    Lost,
}

/// Notes that a mapping's rows at a side are to be read from the beginning, whatever has been read before.
pub(super) fn read_again(core: &mut Core, side: Side, mapping: MappingId, deletes: Deletes) -> Result<()> {
    let unfinished = core.meta().backfill(side, mapping).filter(|b| !b.finished);
    let after = match (side, unfinished) {
        (Side::Postgres, Some(b)) if BackfillProgress::is_sweep(&b.after) => BackfillProgress::sweep(),
        (Side::Postgres, _) if deletes == Deletes::Lost => BackfillProgress::sweep(),
        (Side::Postgres, _) => Str::default(),
        // A first copy goes on as one, and reads everything once more at its end.
        (Side::Salesforce, Some(b)) if b.rows > 0 => Place { again: true, ..Place::parse(&b.after) }.to_text(),
        // What was deleted, and a record that has not changed since it was last read, is told by a sweep alone.
        (Side::Salesforce, _) => Place::sweep().to_text(),
    };
    core.notice(Notice::Backfill { side, mapping, rows: 0, after, finished: false })
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
