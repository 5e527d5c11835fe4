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

/// How an answer ends: ReadyForQuery, but for the transaction's state behind it.
const READY: [u8; 5] = [b'Z', 0, 0, 0, 5];

/// A stream on which nothing may be missing of an answer for longer than `limit`. Silence before a question is none.
pub(super) struct Patience<S> {
    stream: S,
    limit: Duration,
    /// Ends when the answer, or more of it, is overdue; none while none is awaited.
    overdue: Option<Pin<Box<Sleep>>>,
    /// The last bytes that were read.
    last: [u8; READY.len() + 1],
}

impl<S> Patience<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, overdue: None, last: [0; READY.len() + 1] }
    }

    /// Something was heard.
    fn heard(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().skip(bytes.len().saturating_sub(self.last.len())) {
            self.last.rotate_left(1);
            self.last[READY.len()] = *byte;
        }
        let answered = self.last.starts_with(&READY);
        self.overdue = self.overdue.take().filter(|_| !answered).map(|mut overdue| {
            overdue.as_mut().reset(Instant::now() + self.limit);
            overdue
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.heard(buffer.filled().get(before..).unwrap_or_default());
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
        if self.overdue.is_none() {
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
        let mut byte = [0];
        assert!(timeout(3 * LIMIT, ours.read(&mut byte)).await.is_err(), "nothing was asked");
        ours.write_all(b"?").await.unwrap();
        theirs.write_all(b"1Z\0\0\0\x05I").await.unwrap();
        let mut answer = [0; 7];
        ours.read_exact(&mut answer).await.unwrap();
        assert!(timeout(3 * LIMIT, ours.read(&mut byte)).await.is_err(), "it was answered");
        ours.write_all(b"?").await.unwrap();
        theirs.write_all(b"1Z\0\0").await.unwrap();
        ours.read_exact(&mut answer[..4]).await.unwrap();
        let given_up = timeout(Duration::from_secs(30), ours.read(&mut byte)).await.unwrap().unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
