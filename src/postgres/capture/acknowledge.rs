//! How far the stream is received, durable and acknowledged: three types, so that they cannot be mixed up.
//!
//! Invariant: acknowledged <= durable <= received, and none ever goes back. It is checked before each acknowledgement; a
//! violation stops capture, because an acknowledgement cannot be taken back.
//!
//! What is acknowledged is never past the position that the change log holds ([`super::super::slot::acknowledgeable`]), so
//! that after a restart a slot that stands further on proves that somebody else moved it. A transaction's position is its
//! commit's `commit_lsn`, so the last transaction is sent again after a restart and dropped as duplicate, until a progress
//! event has made its end durable too.

use crate::change::Lsn;
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::postgres::wire::StatusUpdate;

/// How far the stream was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Received(pub(super) Lsn);

/// How far the change log holds the stream on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Durable(pub(super) Lsn);

/// How far the server was told to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Acknowledged(pub(super) Lsn);

#[derive(Debug)]
pub(super) struct Acknowledgement {
    received: Received,
    durable: Durable,
    acknowledged: Acknowledged,
}

impl Acknowledgement {
    /// At the start of a stream of which everything before `start` is durable.
    pub(super) fn starting_at(start: Lsn) -> Self {
        Self { received: Received(start), durable: Durable(start), acknowledged: Acknowledged(Lsn(0)) }
    }

    pub(super) fn received(&self) -> Received {
        self.received
    }

    pub(super) fn durable(&self) -> Durable {
        self.durable
    }

    pub(super) fn acknowledged(&self) -> Acknowledged {
        self.acknowledged
    }

    pub(super) fn receive(&mut self, lsn: Lsn) {
        self.received = self.received.max(Received(lsn));
    }

    /// Notes that the log holds everything before `lsn`. Going back is possible after a reconnect, where the server sends
    /// again what the log has; it changes nothing.
    pub(super) fn make_durable(&mut self, lsn: Lsn) -> Result<()> {
        if lsn > self.received.0 {
            let message = format!("the stream is durable up to {lsn} but received only up to {}", self.received.0);
            return Err(Error::new(Kind::Internal, message));
        }
        self.durable = self.durable.max(Durable(lsn));
        Ok(())
    }

    /// The status to send now.
    pub(super) fn acknowledge(&mut self, client_time: Micros) -> Result<StatusUpdate> {
        let next = Acknowledged(self.durable.0);
        if next < self.acknowledged || self.durable.0 > self.received.0 {
            let message = format!(
                "acknowledging {} is not right: received {}, durable {}, acknowledged {}",
                next.0, self.received.0, self.durable.0, self.acknowledged.0
            );
            return Err(Error::new(Kind::Internal, message));
        }
        self.acknowledged = next;
        Ok(StatusUpdate { written: self.received.0, flushed: next.0, applied: next.0, client_time, reply: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_durable_is_acknowledged() {
        let mut a = Acknowledgement::starting_at(Lsn(100));
        a.receive(Lsn(300));
        let status = a.acknowledge(7).unwrap();
        assert_eq!((status.written, status.flushed, status.applied), (Lsn(300), Lsn(100), Lsn(100)));
        a.make_durable(Lsn(200)).unwrap();
        a.make_durable(Lsn(150)).unwrap();
        assert_eq!(a.acknowledge(8).unwrap().flushed, Lsn(200));
        assert_eq!(a.make_durable(Lsn(301)).unwrap_err().kind(), Kind::Internal);
        a.receive(Lsn(5));
        assert_eq!(a.received(), Received(Lsn(300)));
    }
}
