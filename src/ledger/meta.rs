//! The state that is about the link, not about one record.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::codec::{CodecError, Reader, Writer};
use crate::change::{Catalog, FieldId, Lsn, MappingId, Offset, Position, RecordId, Side, Str, StreamId};
use crate::clock::Micros;

use super::keys::META;

/// How far copying what was there before has come for a side and mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillProgress {
    /// The side that is copied from.
    pub side: Side,
    /// The mapping.
    pub mapping: MappingId,
    /// Rows and records read so far.
    pub rows: u64,
    /// Everything up to this key or id is done.
    pub after: Str,
    /// Whether it is complete.
    pub finished: bool,
    /// The first of the fields that were mapped after the rows had been read, until they have been read again: of these and
    /// later ones it is not known what the side's rows hold. The lowest of all while rows are read for the first time: then
    /// it is not even known which rows there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<FieldId>,
    /// The last comparison of the rows with the log, which this is or was part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconcile>,
}

/// Comparing a side's rows with the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    /// Why.
    pub cause: Str,
    /// The stream that was lost, where that is why.
    pub lost: Option<StreamId>,
    /// Where the side has gone back: of what its stream has told after this place, nobody knows whether the side has it.
    pub rewound_to: Option<Lsn>,
    /// Records whose row differed.
    pub differing: u64,
    /// Records whose row was not there any more.
    pub missing: u64,
    /// The record that was counted last: one that differs may leave more than one entry.
    pub last: Option<RecordId>,
    /// Whether it is complete.
    pub finished: bool,
}

impl BackfillProgress {
    /// The comparison that is under way.
    pub fn reconciling(&self) -> Option<&Reconcile> {
        self.reconcile.as_ref().filter(|reconcile| !reconcile.finished)
    }

    /// Whether some writes to the side wait for this to be complete.
    pub fn holds_back(&self) -> bool {
        self.unread.is_some() || self.reconciling().is_some()
    }
}

/// A stream that was ever read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Its number in positions.
    pub id: StreamId,
    /// Its side.
    pub side: Side,
    /// What makes it that stream.
    pub identity: Str,
}

/// Everything about the link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The mappings and rules in force.
    pub catalog: Arc<Catalog>,
    /// All streams, in the order of their numbers.
    pub streams: Vec<Stream>,
    /// How far copying has come, by side and mapping.
    pub backfills: Vec<BackfillProgress>,
    /// The place of the last event of each side that is in the log.
    pub positions: [Option<Position>; 2],
    /// When that event was committed, by the side's clock.
    pub committed_at: [Micros; 2],
    /// The commit record of PostgreSQL's last transaction that the transaction index leads to.
    pub indexed: Lsn,
    /// The lowest record id never given.
    pub next_record: RecordId,
    /// How far replay to each side has read, as far as the log tells.
    pub cursors: [Offset; 2],
    /// The highest ticket that PostgreSQL's stream has told to be committed.
    pub applied: Offset,
    /// How far Salesforce's clock is ahead.
    pub salesforce_ahead: Micros,
    /// When the last entry was taken.
    pub recorded_at: Micros,
}

/// The keys, in the order of [`Meta::encode`].
pub(super) const KEYS: [[u8; 2]; 4] = [[META, b'c'], [META, b's'], [META, b'b'], [META, b'h']];

impl Meta {
    /// The copying progress of a side and mapping.
    pub fn backfill(&self, side: Side, mapping: MappingId) -> Option<&BackfillProgress> {
        self.backfills.iter().find(|b| b.side == side && b.mapping == mapping)
    }

    /// The first field of a mapping that was mapped after the side's rows had been read, while they are read again.
    pub fn unread(&self, side: Side, mapping: MappingId) -> Option<FieldId> {
        self.backfill(side, mapping).and_then(|b| b.unread)
    }

    /// The comparison of a mapping's rows at a side that is under way.
    pub fn reconciling(&self, side: Side, mapping: MappingId) -> Option<&Reconcile> {
        self.backfill(side, mapping).and_then(BackfillProgress::reconciling)
    }

    /// The stream of a side that was opened last.
    pub fn stream(&self, side: Side) -> Option<&Stream> {
        self.streams.iter().rev().find(|s| s.side == side)
    }

    /// Whether a side's stream has been noted to be lost, and nothing has taken its place yet.
    pub fn is_doubted(&self, side: Side) -> bool {
        let stream = self.stream(side).map(|stream| stream.id);
        let lost = self.backfills.iter().filter(|b| b.side == side).filter_map(|b| b.reconciling()?.lost);
        stream.is_some_and(|stream| lost.into_iter().any(|lost| lost == stream))
    }

    /// The copying progress of a side and mapping, for a change; made when there is none.
    pub(super) fn backfill_mut(&mut self, side: Side, mapping: MappingId) -> &mut BackfillProgress {
        let known = self.backfills.iter().position(|b| b.side == side && b.mapping == mapping);
        let n = known.unwrap_or_else(|| {
            let after = Str::default();
            self.backfills.push(BackfillProgress {
                side,
                mapping,
                rows: 0,
                after,
                finished: false,
                unread: None,
                reconcile: None,
            });
            self.backfills.len() - 1
        });
        // `n` is where it was found or has just been put.
        &mut self.backfills[n]
    }

    /// The part under one of the [`KEYS`]. Equal parts have equal bytes.
    pub(super) fn encode(&self, part: usize) -> Vec<u8> {
        // Catalog, streams and progress hold only what serde_json always writes.
        match part {
            0 => serde_json::to_vec(&*self.catalog).unwrap_or_default(),
            1 => serde_json::to_vec(&self.streams).unwrap_or_default(),
            2 => serde_json::to_vec(&self.backfills).unwrap_or_default(),
            _ => self.encode_hot(),
        }
    }

    fn encode_hot(&self) -> Vec<u8> {
        let mut w = Writer::default();
        for side in Side::BOTH {
            w.option(self.positions[side.index()].as_ref(), |w, position| match position {
                Position::Postgres { stream, commit_lsn, index } => {
                    w.uint(u64::from(stream.0));
                    w.uint(commit_lsn.0);
                    w.uint(u64::from(*index));
                }
                Position::Salesforce { stream, replay_id, index } => {
                    w.uint(u64::from(stream.0));
                    w.text(replay_id);
                    w.uint(u64::from(*index));
                }
            });
            w.int(self.committed_at[side.index()]);
            w.uint(self.cursors[side.index()].0);
        }
        w.uint(self.indexed.0);
        w.uint(self.next_record.0);
        w.int(self.salesforce_ahead);
        w.int(self.recorded_at);
        w.uint(self.applied.0);
        w.buffer
    }

    /// Reads the parts stored under [`KEYS`].
    pub(super) fn decode(parts: &[Option<Vec<u8>>]) -> Result<Self, CodecError> {
        fn json<T: Default + serde::de::DeserializeOwned>(bytes: Option<&Option<Vec<u8>>>) -> Result<T, CodecError> {
            match bytes.and_then(Option::as_ref) {
                Some(bytes) => serde_json::from_slice(bytes).map_err(|e| CodecError::Notice(e.to_string())),
                None => Ok(T::default()),
            }
        }
        let mut meta = Self {
            catalog: Arc::new(json(parts.first())?),
            streams: json(parts.get(1))?,
            backfills: json(parts.get(2))?,
            ..Self::default()
        };
        if let Some(hot) = parts.get(3).and_then(Option::as_ref) {
            let r = &mut Reader::new(hot);
            for side in Side::BOTH {
                meta.positions[side.index()] = r.option(|r| {
                    Ok(match side {
                        Side::Postgres => Position::Postgres {
                            stream: StreamId(r.small()?),
                            commit_lsn: Lsn(r.uint()?),
                            index: r.small()?,
                        },
                        Side::Salesforce => Position::Salesforce {
                            stream: StreamId(r.small()?),
                            replay_id: r.text()?,
                            index: r.small()?,
                        },
                    })
                })?;
                meta.committed_at[side.index()] = r.int()?;
                meta.cursors[side.index()] = Offset(r.uint()?);
            }
            meta.indexed = Lsn(r.uint()?);
            meta.next_record = RecordId(r.uint()?);
            meta.salesforce_ahead = r.int()?;
            meta.recorded_at = r.int()?;
            if r.remaining() > 0 {
                meta.applied = Offset(r.uint()?);
            }
        }
        Ok(meta)
    }
}
