//! The connection itself: simple queries first, then the stream.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::frame::{CONTROL_FRAME_MAX, CopyFrame, FRAME_MAX, ReadBuffer, WireError};
use super::server_error::ServerError;
use super::startup::ReplicationError;
use crate::change::Lsn;
use crate::clock::Micros;
use crate::postgres::pgoutput::POSTGRES_EPOCH;

/// What we tell the server about how far we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Received.
    pub written: Lsn,
    /// Durable with us: the server may forget everything before it.
    pub flushed: Lsn,
    /// The same, for the server's statistics.
    pub applied: Lsn,
    /// Our clock, in microseconds since the Unix epoch.
    pub client_time: Micros,
    /// Whether the server is to answer at once.
    pub reply: bool,
}

/// A server that does not take 40 bytes in this time is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server may take to end the stream in order.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection for logical replication.
#[derive(Debug)]
pub struct Replication<S> {
    stream: S,
    input: ReadBuffer,
    output: BytesMut,
    parameters: BTreeMap<String, String>,
}

/// One row of a simple query, as the server prints it.
pub(crate) type TextRow = Vec<Option<String>>;

impl<S: AsyncRead + AsyncWrite + Unpin> Replication<S> {
    pub(super) fn over(stream: S) -> Self {
        Self { stream, input: ReadBuffer::new(), output: BytesMut::new(), parameters: BTreeMap::new() }
    }

    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    pub(super) fn note_parameter(&mut self, name: String, value: String) {
        self.parameters.insert(name, value);
    }

    /// A parameter that the server reported at login, for example `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let write = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        let written = tokio::time::timeout(WRITE_TIMEOUT, write).await;
        self.output.clear();
        written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the server takes no bytes"))?
    }

    /// The next frame outside the stream; notices are passed over, an error ends it.
    pub(super) async fn control_frame(&mut self) -> Result<(u8, BytesMut), ReplicationError> {
        loop {
            let frame = self.input.next(CONTROL_FRAME_MAX)?.map(|f| (f.tag, BytesMut::from(f.body)));
            match frame {
                Some((b'E', body)) => return Err(ServerError::parse(&body)?.into()),
                Some((b'N', _)) => {}
                Some(frame) => return Ok(frame),
                None => self.read_more().await.map(drop)?,
            }
        }
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        match self.input.fill(&mut self.stream).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            n => Ok(n),
        }
    }

    /// Runs one simple query and returns its rows. The caller bounds the time.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<TextRow>, ReplicationError> {
        frontend::query(sql, &mut self.output)?;
        self.flush().await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let (tag, body) = match self.control_frame().await {
                Ok(frame) => frame,
                Err(ReplicationError::Refused(error)) => {
                    refused = Some(error);
                    continue;
                }
                Err(other) => return Err(other),
            };
            match tag {
                b'D' => rows.push(data_row(&body)?),
                b'T' | b'C' | b'I' | b'S' => {}
                b'Z' => return refused.map_or(Ok(rows), |e| Err(e.into())),
                _ => return Err(WireError::Unexpected { tag, doing: "running a query" }.into()),
            }
        }
    }

    /// Sends `START_REPLICATION` and returns when the stream has begun.
    pub async fn start_replication(&mut self, command: &str) -> Result<(), ReplicationError> {
        frontend::query(command, &mut self.output)?;
        self.flush().await?;
        match self.control_frame().await? {
            (b'W', _) => Ok(()),
            (tag, _) => Err(WireError::Unexpected { tag, doing: "starting replication" }.into()),
        }
    }

    /// The next message of the stream, if it has arrived whole. The one before is consumed.
    #[inline]
    pub fn next_copy(&mut self) -> Result<Option<CopyFrame<'_>>, ReplicationError> {
        let Some(frame) = self.input.next(FRAME_MAX)? else { return Ok(None) };
        match frame.tag {
            b'd' => Ok(Some(CopyFrame::decode(frame.body)?)),
            b'E' => Err(ServerError::parse(frame.body)?.into()),
            // A server that shuts down completes the command without ending the copy first.
            b'c' | b'C' => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the stream").into()),
            b'N' => Ok(Some(CopyFrame::Notice(frame.body))),
            b'S' => Ok(Some(CopyFrame::Aside)),
            tag => Err(WireError::Unexpected { tag, doing: "streaming" }.into()),
        }
    }

    /// Reads what is there, at least one byte; returns how many. May be cancelled without loss.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.read_more().await
    }

    /// Tells the server how far we are.
    pub async fn send_status(&mut self, status: StatusUpdate) -> io::Result<()> {
        self.output.put_u8(b'd');
        self.output.put_u32(4 + 34);
        self.output.put_u8(b'r');
        self.output.put_u64(status.written.0);
        self.output.put_u64(status.flushed.0);
        self.output.put_u64(status.applied.0);
        self.output.put_i64(status.client_time.saturating_sub(POSTGRES_EPOCH));
        self.output.put_u8(u8::from(status.reply));
        self.flush().await
    }

    /// Ends the stream and the session in order. What the server still had to say is dropped: it was not acknowledged.
    pub async fn finish(mut self) -> Result<(), ReplicationError> {
        frontend::copy_done(&mut self.output);
        self.flush().await?;
        let ended = async {
            loop {
                while let Some(frame) = self.input.next(FRAME_MAX)? {
                    match frame.tag {
                        b'Z' => return Ok::<_, ReplicationError>(()),
                        b'E' => return Err(ServerError::parse(frame.body)?.into()),
                        _ => {}
                    }
                }
                self.read_more().await?;
            }
        };
        if let Ok(ended) = tokio::time::timeout(FINISH_TIMEOUT, ended).await {
            ended?;
        } else {
            tracing::debug!("the server did not end the stream in time; closing the connection");
        }
        frontend::terminate(&mut self.output);
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }
}

fn data_row(body: &[u8]) -> Result<TextRow, WireError> {
    const BAD: WireError = WireError::Malformed("data row");
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or(BAD)?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or(BAD)?;
        rest = after;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            row.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length).ok_or(BAD)?;
        rest = after;
        row.push(Some(String::from_utf8(value.to_vec()).map_err(|_| BAD)?));
    }
    if rest.is_empty() { Ok(row) } else { Err(BAD) }
}
