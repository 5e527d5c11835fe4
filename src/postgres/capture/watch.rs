//! What goes on beside the stream, on an ordinary session that is opened again when it breaks: heartbeats, and looks at what the
//! stream itself does not tell, the slot's room and what the publication publishes.

use std::collections::VecDeque;
use std::time::Duration;

use super::watermark::CaptureHandle;
use super::{CaptureConfig, HEARTBEAT_PREFIX};
use crate::change::Lsn;
use crate::clock::Micros;
use crate::error::Result;
use crate::postgres::connect::{Session, database_error};
use crate::postgres::publication::{self, Published};
use crate::postgres::slot::{self, Slot};

/// The shortest time between two rounds.
const EVERY_MIN: Duration = Duration::from_millis(100);
/// Places of the server's log that are remembered with their time, to tell how long ago the stream's place was its end.
const PLACES_MAX: usize = 1_024;

pub(super) struct Watch {
    config: CaptureConfig,
    handle: CaptureHandle,
    /// How the tables were published when this began.
    published: Option<Published>,
    places: Places,
    endangered: bool,
}

impl Watch {
    pub(super) fn new(config: CaptureConfig, handle: CaptureHandle) -> Self {
        let published = config.published.clone();
        Self { config, handle, published, places: Places::default(), endangered: false }
    }

    pub(super) async fn run(mut self, session: Session, every: Duration) {
        let mut session = Some(session);
        let mut ticker = tokio::time::interval(every.max(EVERY_MIN));
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticker.tick().await;
            let current = match session.take() {
                Some(session) if !session.is_closed() => Ok(session),
                _ => Session::brief(&self.config.endpoint).await,
            };
            let looked = match current {
                Ok(current) => {
                    let looked = self.round(&current).await;
                    session = Some(current);
                    looked
                }
                Err(error) => Err(error),
            };
            if let Err(error) = looked {
                tracing::warn!(error = %error.explain(), "no heartbeat was written, or the slot not looked at; trying again");
            }
        }
    }

    async fn round(&mut self, session: &Session) -> Result<()> {
        let sql = "SELECT pg_catalog.pg_logical_emit_message(false, $1, '')";
        session.execute(sql, &[&HEARTBEAT_PREFIX]).await.map_err(|e| database_error("writing a heartbeat", e))?;
        if let Some(slot) = slot::read_slot(session, &self.config.slot).await? {
            self.look_at(&slot);
        }
        self.look_at_publication(session).await
    }

    fn look_at(&mut self, slot: &Slot) {
        let status = self.handle.status();
        // The place of this moment is not due before the next look.
        status.set_slot(slot, self.places.behind_since(status.reached()));
        self.places.note(slot.current_lsn, self.config.clock.now());
        match danger(slot) {
            Some(what) if !self.endangered => tracing::warn!(slot = slot.name, "{what}"),
            None if self.endangered => tracing::info!(slot = slot.name, "the slot has room again"),
            _ => {}
        }
        self.endangered = danger(slot).is_some();
    }

    async fn look_at_publication(&mut self, session: &Session) -> Result<()> {
        let CaptureConfig { publication, catalog, .. } = &self.config;
        let tables: Vec<_> = catalog.mappings.iter().map(|m| (m.schema.clone(), m.table.clone())).collect();
        let now = publication::look(session, publication, &tables).await?;
        let Some(before) = &self.published else {
            // What was remembered, if somebody has changed it since this link has looked at its start.
            let remembered = publication::remembered(session, publication).await?;
            self.published = Some(remembered.map_or_else(|| now.clone(), |known| known.of(&tables)));
            return Ok(());
        };
        let changed = now.changed_since(before);
        if !changed.is_empty() {
            tracing::error!(
                publication,
                tables = changed.join(", "),
                "somebody has changed what the publication publishes; what was done meanwhile may be missing from the stream, so \
                 the link starts again to read these tables again"
            );
            self.published = Some(now);
            self.handle.republish();
        }
        Ok(())
    }
}

/// Why the slot may soon be lost, if it may: three quarters of what the server would keep for it are used up.
pub(super) fn danger(slot: &Slot) -> Option<String> {
    let kept = slot.retained_bytes();
    match (slot.safe_wal_bytes, slot.wal_status.as_deref()) {
        (_, Some("lost")) => Some("the replication slot was invalidated, and the stream cannot go on".into()),
        (Some(safe), status) if status == Some("unreserved") || safe < (safe.saturating_add_unsigned(kept)) / 4 => {
            Some(format!(
                "the server keeps {kept} bytes of its log for the replication slot, and invalidates it {safe} bytes from now \
                 (max_slot_wal_keep_size): see why capture is behind, end transactions that have been open for long, or raise the limit"
            ))
        }
        _ => None,
    }
}

/// When the server's log ended where.
#[derive(Debug, Default)]
struct Places(VecDeque<(Lsn, Micros)>);

impl Places {
    fn note(&mut self, end: Lsn, at: Micros) {
        if self.0.back().is_none_or(|(last, _)| *last < end) {
            if self.0.len() == PLACES_MAX {
                // The oldest says most, so a newer one goes.
                self.0.pop_back();
            }
            self.0.push_back((end, at));
        }
    }

    /// Since when the log has been further than this, at least; 0 if it is not known to be.
    fn behind_since(&mut self, reached: Lsn) -> Micros {
        while self.0.front().is_some_and(|(end, _)| *end <= reached) {
            self.0.pop_front();
        }
        self.0.front().map_or(0, |(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_how_long_ago_the_log_ended_there() {
        let mut places = Places::default();
        for (end, at) in [(100, 1), (200, 2), (200, 3), (300, 4)] {
            places.note(Lsn(end), at);
        }
        assert_eq!(places.behind_since(Lsn(99)), 1);
        assert_eq!(places.behind_since(Lsn(100)), 2);
        assert_eq!(places.behind_since(Lsn(299)), 4);
        assert_eq!(places.behind_since(Lsn(300)), 0);
        for n in 0..2 * PLACES_MAX as u64 {
            places.note(Lsn(1_000 + n), n as Micros);
        }
        assert_eq!((places.0.len(), places.behind_since(Lsn(0))), (PLACES_MAX, 0 as Micros));
        assert_eq!(places.behind_since(Lsn(1_000)), 1);
    }

    #[test]
    fn a_slot_with_a_quarter_of_its_room_left_is_in_danger() {
        let slot = |kept: u64, safe: Option<i64>, status: &str| Slot {
            name: "s".into(),
            plugin: None,
            database: None,
            active_pid: None,
            confirmed_flush_lsn: None,
            restart_lsn: Some(Lsn(1_000)),
            wal_status: Some(status.into()),
            safe_wal_bytes: safe,
            current_lsn: Lsn(1_000 + kept),
        };
        assert_eq!(danger(&slot(1 << 40, None, "extended")), None, "there is no limit");
        assert_eq!(danger(&slot(70, Some(30), "extended")), None);
        let said = danger(&slot(80, Some(20), "extended")).unwrap();
        assert!(said.contains("80 bytes") && said.contains("20 bytes from now"), "{said}");
        assert!(danger(&slot(100, Some(-5), "unreserved")).is_some());
        assert!(danger(&slot(100, None, "lost")).unwrap().contains("invalidated"));
    }
}
