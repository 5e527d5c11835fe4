//! A byte stream whose other end is given up when it leaves us without an answer.
//!
//! TCP notices a peer that is gone. A peer that takes what we send and says nothing, as a hung server or a proxy before a dead one
//! does, it never notices.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream on which nothing may be missing of an answer for longer than `limit`. Silence before a question is none.
pub(super) struct Patience<S> {
    stream: S,
    limit: Duration,
    asked: Messages,
    heard: Messages,
    /// Questions that are not answered: several may be under way.
    open: u32,
    /// Ends when the answer, or more of it, is overdue; none while none is awaited.
    overdue: Option<Pin<Box<Sleep>>>,
}

impl<S> Patience<S> {
    /// Of a stream on which nothing was said yet.
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        // Only the first message of all has no type.
        let (asked, heard) = (Messages::untyped_first(), Messages::default());
        Self { stream, limit, asked, heard, open: 0, overdue: None }
    }

    fn ask(&mut self, bytes: &[u8]) {
        let asked = self.asked.count(bytes, |kind| matches!(kind, STARTUP | b'Q' | b'S'));
        self.open = self.open.saturating_add(asked);
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.open = self.open.saturating_sub(self.heard.count(bytes, |kind| kind == b'Z'));
        self.overdue = self.overdue.take().filter(|_| self.open > 0).map(|mut overdue| {
            overdue.as_mut().reset(Instant::now() + self.limit);
            overdue
        });
    }
}

/// Stands for the type of the first message that a client sends.
const STARTUP: u8 = 0;

/// Finds the messages in a stream of them, each with its type and its length in front.
#[derive(Default)]
struct Messages {
    head: [u8; 5],
    /// How much of the head is known.
    known: usize,
    /// How much of the message is still to come.
    rest: usize,
}

impl Messages {
    fn untyped_first() -> Self {
        Self { head: [STARTUP, 0, 0, 0, 0], known: 1, rest: 0 }
    }

    /// How many messages begin in these bytes that are of such a type.
    fn count(&mut self, mut bytes: &[u8], is: impl Fn(u8) -> bool) -> u32 {
        let mut count = 0;
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            let taken = (self.head.len() - self.known).min(bytes.len());
            let (head, behind) = bytes.split_at(taken);
            self.head[self.known..self.known + taken].copy_from_slice(head);
            self.known += taken;
            bytes = behind;
            if self.known == self.head.len() {
                let [kind, length @ ..] = self.head;
                count += u32::from(is(kind));
                self.known = 0;
                // The length counts itself.
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
            }
        }
        count
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.hear(buffer.filled().get(before..).unwrap_or_default());
            return Poll::Ready(read);
        }
        let Some(overdue) = &mut self.overdue else { return Poll::Pending };
        overdue.as_mut().poll(cx).map(|()| {
            let message = format!("no answer within {} s", self.limit.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.ask(bytes.get(..written).unwrap_or_default());
        }
        if self.overdue.is_none() && self.open > 0 {
            let mut overdue = Box::pin(sleep(self.limit));
            // A reader that waits already must be woken by it.
            if overdue.as_mut().poll(cx).is_pending() {
                self.overdue = Some(overdue);
            }
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn only_an_answer_that_does_not_come_is_too_much() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = Patience::new(ours, LIMIT);
        let (mut byte, mut answer) = ([0], [0; 6]);
        assert!(timeout(3 * LIMIT, ours.read(&mut byte)).await.is_err(), "nothing was asked");
        ours.write_all(b"\0\0\0\x09\0\x03\0\0\0").await.unwrap();
        theirs.write_all(b"Z\0\0\0\x05I").await.unwrap();
        ours.read_exact(&mut answer).await.unwrap();
        assert!(timeout(3 * LIMIT, ours.read(&mut byte)).await.is_err(), "it was answered");
        // Two at once, in parts, of which one is answered.
        ours.write_all(b"C\0\0\0\x06SaS\0\0").await.unwrap();
        ours.write_all(b"\0\x04Q\0\0\0\x06Q\0").await.unwrap();
        theirs.write_all(b"Z\0\0\0\x05I").await.unwrap();
        ours.read_exact(&mut answer).await.unwrap();
        let given_up = timeout(Duration::from_secs(30), ours.read(&mut byte)).await.unwrap().unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
