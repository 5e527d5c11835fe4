//! Frames: a tag, a length, a body; and the messages inside `CopyData`.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::change::Lsn;
use crate::clock::Micros;
use crate::postgres::pgoutput::POSTGRES_EPOCH;

/// A server builds a message in one string buffer, which cannot hold more.
pub(super) const FRAME_MAX: usize = 1 << 30;
/// Nothing outside the replication stream is anywhere near this long.
pub(super) const CONTROL_FRAME_MAX: usize = 1 << 24;
/// The least room that a read is given.
const READ_MIN: usize = 256 * 1024;

/// Bytes that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame whose length cannot be.
    #[error("a frame with tag {tag:#04x} has the impossible length {length}")]
    Length {
        /// The frame's tag.
        tag: u8,
        /// Its length field.
        length: u32,
    },
    /// A frame that does not belong here.
    #[error("unexpected message {tag:#04x} while {doing}")]
    Unexpected {
        /// The frame's tag.
        tag: u8,
        /// What was going on.
        doing: &'static str,
    },
    /// A frame whose body is not what its tag promises.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// A frame's tag and body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) tag: u8,
    pub(super) body: &'a [u8],
}

/// Bytes read and not yet consumed.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: BytesMut,
    /// The length of the frame that was handed out last; it is consumed by the next call.
    handed_out: usize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::with_capacity(READ_MIN), handed_out: 0 }
    }

    /// The next whole frame, if it has arrived. The one handed out before is consumed.
    pub(super) fn next(&mut self, limit: usize) -> Result<Option<Frame<'_>>, WireError> {
        self.bytes.advance(std::mem::take(&mut self.handed_out));
        let Some((tag, total)) = self.header(limit)? else { return Ok(None) };
        if self.bytes.len() < total {
            return Ok(None);
        }
        self.handed_out = total;
        let body = self.bytes.get(5..total).unwrap_or_default();
        Ok(Some(Frame { tag, body }))
    }

    /// The next frame's tag and whole length.
    fn header(&self, limit: usize) -> Result<Option<(u8, usize)>, WireError> {
        let Some(([tag, length @ ..], _)) = self.bytes.split_first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        let total = length as usize + 1;
        if length < 4 || total > limit {
            return Err(WireError::Length { tag: *tag, length });
        }
        Ok(Some((*tag, total)))
    }

    /// Whether nothing is left but what was handed out.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.handed_out
    }

    /// Reads what is there, at least one byte; 0 at the stream's end. Cancelling it loses nothing.
    pub(super) async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> std::io::Result<usize> {
        self.bytes.advance(std::mem::take(&mut self.handed_out));
        // Room grows with what has arrived, whatever a frame's header announces.
        self.bytes.reserve(READ_MIN.max(self.bytes.len()));
        stream.read_buf(&mut self.bytes).await
    }
}

/// A message inside `CopyData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFrame<'a> {
    /// A piece of the plugin's output.
    Data {
        /// The change's own place.
        start: Lsn,
        /// How far the server has sent.
        wal_end: Lsn,
        /// What the plugin wrote: one message.
        message: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has read its log and sent what there is for us.
        wal_end: Lsn,
        /// The server's clock, in microseconds since the Unix epoch.
        server_time: Micros,
        /// Whether the server wants to be answered at once.
        reply_requested: bool,
    },
    /// A notice, as [`super::ServerError::parse`] reads it. It may come at any time.
    Notice(&'a [u8]),
    /// A changed parameter, which may come at any time and says nothing about the stream.
    Aside,
}

impl<'a> CopyFrame<'a> {
    /// Decodes the body of `CopyData`.
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        const BAD: WireError = WireError::Malformed("replication message");
        let (tag, rest) = body.split_first().ok_or(BAD)?;
        let (first, rest) = rest.split_first_chunk::<8>().ok_or(BAD)?;
        let first = Lsn(u64::from_be_bytes(*first));
        let (second, rest) = rest.split_first_chunk::<8>().ok_or(BAD)?;
        let second = u64::from_be_bytes(*second);
        match tag {
            b'w' => {
                let (_server_time, message) = rest.split_first_chunk::<8>().ok_or(BAD)?;
                Ok(Self::Data { start: first, wal_end: Lsn(second), message })
            }
            b'k' => match rest {
                [reply @ (0 | 1)] => Ok(Self::Keepalive {
                    wal_end: first,
                    server_time: (second as i64).saturating_add(POSTGRES_EPOCH),
                    reply_requested: *reply == 1,
                }),
                _ => Err(BAD),
            },
            _ => Err(BAD),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn frames_come_whole_whatever_the_pieces() {
        let mut wire = Vec::new();
        for n in 0..50u8 {
            wire.push(b'd');
            wire.extend((4 + u32::from(n)).to_be_bytes());
            wire.extend(vec![n; n as usize]);
        }
        for piece in [1, 3, 7, 4096] {
            let mut buffer = ReadBuffer::new();
            let mut seen = 0u8;
            for mut chunk in wire.chunks(piece) {
                while !chunk.is_empty() {
                    buffer.fill(&mut chunk).await.unwrap();
                }
                while let Some(frame) = buffer.next(FRAME_MAX).unwrap() {
                    assert_eq!((frame.tag, frame.body), (b'd', vec![seen; seen as usize].as_slice()));
                    seen += 1;
                }
            }
            assert_eq!(seen, 50);
            assert!(buffer.is_empty());
        }
    }

    #[tokio::test]
    async fn a_huge_announcement_reserves_nothing() {
        let mut buffer = ReadBuffer::new();
        let mut bytes: &[u8] = &[b'd', 0x3f, 0xff, 0xff, 0xff, 1, 2, 3];
        buffer.fill(&mut bytes).await.unwrap();
        assert!(buffer.next(FRAME_MAX).unwrap().is_none());
        assert!(buffer.bytes.capacity() < 4 * READ_MIN);
        assert!(buffer.next(CONTROL_FRAME_MAX).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut buffer = ReadBuffer::new();
            runtime.block_on(buffer.fill(&mut bytes.as_slice())).unwrap();
            while let Ok(Some(frame)) = buffer.next(FRAME_MAX) {
                if let Ok(CopyFrame::Data { message, .. }) = CopyFrame::decode(frame.body) {
                    prop_assert!(message.len() < 100);
                }
            }
        }
    }
}
