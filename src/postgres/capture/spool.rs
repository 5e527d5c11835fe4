//! Transactions that the server streams while they are in progress, kept in files until they commit.
//!
//! A large transaction comes in segments, between those of others and whole transactions, and may be rolled back yet, in parts
//! or as a whole. So what a segment holds goes to a file of its transaction as it is, and is taken in by the commit, in commit
//! order like everything else. Memory does not grow with the transaction. After a lost connection the server streams everything
//! anew, so that the files of an earlier run are worth nothing.
//!
//! A file is a sequence of messages, each behind its length (4 bytes, big-endian).

use std::collections::{HashMap, HashSet};
use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::change::Lsn;
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::postgres::pgoutput::{Decoder, Message};

/// What is gathered in memory before it is written.
const WRITE_BYTES: usize = 256 * 1024;
/// What is read at a time, at least.
const READ_BYTES: usize = 256 * 1024;
const LENGTH: usize = 4;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Routed {
    /// It is of a whole transaction, or of none.
    Whole,
    /// It was kept, or said something about what is kept.
    Kept,
    /// As before, and [`Spool::flush`] is due.
    Full,
    /// A transaction that is kept has committed.
    Committed(Ended),
}

/// The commit of a transaction that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) xid: u32,
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) committed_at: Micros,
}

/// All transactions in progress.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    decoder: Decoder,
    /// The transaction whose segment is open.
    segment: Option<u32>,
    kept: HashMap<u32, Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    file: Option<File>,
    unwritten: Vec<u8>,
    aborted: HashSet<u32>,
}

impl Spool {
    /// Begins anew: what an earlier run has left is removed.
    pub(super) async fn open(directory: &Path) -> Result<Self> {
        match fs::remove_dir_all(directory).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", directory, error));
            }
            _ => {}
        }
        fs::create_dir(directory).await.map_err(|e| failed("make", directory, e))?;
        Ok(Self { directory: directory.to_owned(), decoder: Decoder::new(), segment: None, kept: HashMap::new() })
    }

    /// Whether a segment is open.
    pub(super) fn in_segment(&self) -> bool {
        self.segment.is_some()
    }

    /// Takes a message, if it is of a transaction in progress.
    pub(super) fn route(&mut self, message: &[u8]) -> Result<Routed> {
        let tag = message.first().copied().unwrap_or_default();
        if !matches!(tag, b'S' | b'E' | b'c' | b'A') {
            return match self.segment {
                Some(xid) => self.keep(xid, message),
                None => Ok(Routed::Whole),
            };
        }
        let decoded = self.decoder.decode(message).map_err(|error| {
            Error::new(Kind::Protocol, format!("the replication stream holds what pgoutput does not allow: {error}"))
                .caused_by(error)
        })?;
        match decoded {
            Message::StreamStart { xid, first_segment } => {
                if first_segment == self.kept.contains_key(&xid) {
                    let message = format!("a segment of transaction {xid} in the replication stream is out of place");
                    return Err(Error::new(Kind::Protocol, message));
                }
                self.kept.entry(xid).or_default();
                self.segment = Some(xid);
            }
            Message::StreamCommit { xid, commit_lsn, end_lsn, committed_at } => {
                return Ok(Routed::Committed(Ended { xid, commit_lsn, end_lsn, committed_at }));
            }
            Message::StreamAbort { xid, subxid, .. } if xid == subxid => {
                if let Some(Kept { file: Some(_), .. }) = self.kept.remove(&xid) {
                    self.remove(xid);
                }
            }
            Message::StreamAbort { xid, subxid, .. } => {
                if let Some(kept) = self.kept.get_mut(&xid) {
                    kept.aborted.insert(subxid);
                }
            }
            _ => self.segment = None,
        }
        Ok(Routed::Kept)
    }

    fn keep(&mut self, xid: u32, message: &[u8]) -> Result<Routed> {
        let length = u32::try_from(message.len())
            .map_err(|_| Error::new(Kind::Protocol, "a message in the replication stream is too long"))?;
        let unwritten = &mut self.kept.entry(xid).or_default().unwritten;
        unwritten.extend_from_slice(&length.to_be_bytes());
        unwritten.extend_from_slice(message);
        Ok(if unwritten.len() >= WRITE_BYTES { Routed::Full } else { Routed::Kept })
    }

    /// Writes what the open segment's transaction has in memory.
    pub(super) async fn flush(&mut self) -> Result<()> {
        let Some(xid) = self.segment else { return Ok(()) };
        let path = self.path(xid);
        let Some(kept) = self.kept.get_mut(&xid) else { return Ok(()) };
        let file = match &mut kept.file {
            Some(file) => file,
            none => {
                let options = File::options().read(true).write(true).create_new(true).open(&path).await;
                none.insert(options.map_err(|e| failed("make", &path, e))?)
            }
        };
        file.write_all(&kept.unwritten).await.map_err(|e| failed("write", &path, e))?;
        kept.unwritten.clear();
        Ok(())
    }

    /// Gives out what is kept of a transaction that has committed.
    pub(super) async fn take(&mut self, xid: u32) -> Result<Replay> {
        let Some(Kept { mut file, unwritten, aborted }) = self.kept.remove(&xid) else {
            let message = format!("transaction {xid} commits in the replication stream, and was never streamed");
            return Err(Error::new(Kind::Protocol, message));
        };
        let path = self.path(xid);
        if let Some(file) = &mut file {
            file.flush().await.map_err(|e| failed("write", &path, e))?;
            file.seek(SeekFrom::Start(0)).await.map_err(|e| failed("read", &path, e))?;
            // The file lives on while it is open, and goes with the process whatever happens.
            self.remove(xid);
        }
        Ok(Replay { file, path, tail: Some(unwritten), buffer: Vec::new(), at: 0, aborted })
    }

    fn path(&self, xid: u32) -> PathBuf {
        self.directory.join(format!("{xid}"))
    }

    fn remove(&self, xid: u32) {
        let path = self.path(xid);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, path = %path.display(), "a spool file could not be removed; the next start does it");
        }
    }
}

/// A committed transaction's messages, read back in order.
#[derive(Debug)]
pub(super) struct Replay {
    file: Option<File>,
    path: PathBuf,
    /// What never went to the file.
    tail: Option<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    aborted: HashSet<u32>,
}

impl Replay {
    /// The next message, and the subtransactions that were rolled back.
    pub(super) async fn next(&mut self) -> Result<Option<(&[u8], &HashSet<u32>)>> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            let length = rest.first_chunk::<LENGTH>().map(|bytes| u32::from_be_bytes(*bytes) as usize + LENGTH);
            if let Some(length) = length.filter(|length| rest.len() >= *length) {
                let from = self.at + LENGTH;
                self.at += length;
                return Ok(self.buffer.get(from..self.at).map(|message| (message, &self.aborted)));
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            if !self.fill(length.unwrap_or_default()).await? {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                let message = format!("{} ends within a message that was written to it", self.path.display());
                return Err(Error::new(Kind::Storage, message));
            }
        }
    }

    /// Reads on, so that there are `wanted` bytes if there is no less left; false at the end.
    async fn fill(&mut self, wanted: usize) -> Result<bool> {
        if let Some(file) = &mut self.file {
            let before = self.buffer.len();
            let missing = READ_BYTES.max(wanted.saturating_sub(before)) as u64;
            let read = file.take(missing).read_to_end(&mut self.buffer).await;
            if read.map_err(|e| failed("read", &self.path, e))? > 0 {
                return Ok(true);
            }
            self.file = None;
        }
        match self.tail.take() {
            Some(tail) if !tail.is_empty() => {
                self.buffer.extend_from_slice(&tail);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let message = format!(
        "cannot {doing} {}, where large transactions are kept until they commit: {error}; see that there is room and that Tidelock \
         may write there",
        path.display()
    );
    Error::new(Kind::Storage, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(xid: u32, first: bool) -> Vec<u8> {
        [b"S".as_slice(), &xid.to_be_bytes(), &[u8::from(first)]].concat()
    }

    fn abort(xid: u32, subxid: u32) -> Vec<u8> {
        [b"A".as_slice(), &xid.to_be_bytes(), &subxid.to_be_bytes()].concat()
    }

    fn commit(xid: u32) -> Vec<u8> {
        [b"c".as_slice(), &xid.to_be_bytes(), &[0], &[0; 24]].concat()
    }

    async fn all(mut replay: Replay) -> (Vec<Vec<u8>>, Vec<u32>) {
        let (mut messages, mut aborted) = (Vec::new(), Vec::new());
        while let Some((message, gone)) = replay.next().await.unwrap() {
            messages.push(message.to_vec());
            aborted = gone.iter().copied().collect();
        }
        aborted.sort_unstable();
        (messages, aborted)
    }

    #[tokio::test]
    async fn segments_of_many_transactions_come_back_whole_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spool");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("7"), "of an earlier run").unwrap();
        let mut spool = Spool::open(&path).await.unwrap();
        let mut expected: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
        for round in 0..40u32 {
            for xid in [7u32, 8, 9] {
                assert_eq!(spool.route(&start(xid, round == 0)).unwrap(), Routed::Kept);
                assert!(spool.in_segment());
                // From nothing to more than is read at a time.
                for n in [0usize, 1, 17, 3_000, if round == 20 { 700_000 } else { 10 }] {
                    let message = [b"I".as_slice(), &vec![round as u8; n * xid as usize / 7]].concat();
                    if spool.route(&message).unwrap() == Routed::Full {
                        spool.flush().await.unwrap();
                    }
                    expected.entry(xid).or_default().push(message);
                }
                assert_eq!(spool.route(b"E").unwrap(), Routed::Kept);
                assert_eq!(spool.route(b"whole").unwrap(), Routed::Whole);
            }
        }
        for subxid in [70, 71] {
            spool.route(&abort(7, subxid)).unwrap();
        }
        spool.route(&abort(8, 8)).unwrap();
        assert!(!path.join("8").exists() && path.join("9").exists());
        let Routed::Committed(done) = spool.route(&commit(7)).unwrap() else { panic!() };
        let (messages, aborted) = all(spool.take(done.xid).await.unwrap()).await;
        assert!(messages == expected[&7]);
        assert_eq!(aborted, [70, 71]);
        assert!(all(spool.take(9).await.unwrap()).await.0 == expected[&9]);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spool");
        let mut spool = Spool::open(&path).await.unwrap();
        assert_eq!(spool.route(&start(1, false)).unwrap_err().kind(), Kind::Protocol, "it never began");
        for bad in [b"E".as_slice(), b"S", b"A\0", b"c", b"SS\0\0\0\x01\x01"] {
            let mut spool = Spool::open(&path).await.unwrap();
            assert_eq!(spool.route(bad).unwrap_err().kind(), Kind::Protocol, "{bad:?}");
        }
        let mut spool = Spool::open(&path).await.unwrap();
        assert_eq!(spool.take(5).await.unwrap_err().kind(), Kind::Protocol);
        spool.route(&start(1, true)).unwrap();
        spool.route(&vec![0; WRITE_BYTES]).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(spool.flush().await.unwrap_err().kind(), Kind::Storage);
    }
}
