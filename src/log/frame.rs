//! How an entry is framed in the log, and how the frame is checked.
//!
//! ```text
//! 1 byte    frame version, 1
//! 4 bytes   CRC32C of everything that follows, little-endian
//! 32 bytes  the chain value of the entry before; zeros for the first
//! the rest  the entry, as encoded by `change::codec`
//! ```
//!
//! The chain value of an entry is SHA-256 of the chain value before it and its own bytes. So the last chain value stands for
//! the whole log: no entry can be changed, removed, added or moved without changing all that come after.

use aws_lc_rs::digest;

use crate::change::Offset;
use crate::error::{Error, Kind};

/// A chain value.
pub type Chain = [u8; 32];

/// The chain value before the first entry.
pub const GENESIS: Chain = [0; 32];

/// The frame version that is written.
pub const VERSION: u8 = 1;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 1 + 4 + 32;

/// The largest entry that is taken: 256 MiB, far beyond what a Salesforce record can hold.
pub const BODY_BYTES_MAX: usize = 256 << 20;

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It has fewer bytes than a frame header.
    #[error("it is cut short ({0} bytes)")]
    Short(usize),
    /// A frame version that this program does not know.
    #[error("its frame version {0} is not known to this version of tidelock")]
    Version(u8),
    /// The bytes are not those that were written.
    #[error("its checksum is {found:08x} where {expected:08x} was written, so its bytes have changed on disk")]
    Checksum {
        /// The checksum in the frame.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The frame is whole, but does not belong after the entry before it.
    #[error("it does not follow from the entry before it: one of the two was altered, moved or removed")]
    Chain,
    /// The offset is not there.
    #[error("it is missing")]
    Missing,
}

impl FrameError {
    /// The error for a person, at `offset`.
    pub fn at(self, offset: Offset) -> Error {
        let kind = if matches!(self, Self::Version(_)) { Kind::Configuration } else { Kind::Corrupt };
        let advice = if kind == Kind::Configuration {
            "use the version of tidelock that wrote it, or a newer one"
        } else {
            "run `tidelock log verify` for the extent of the damage, and restore its directory from a backup"
        };
        Error::new(kind, format!("the change log is bad at offset {offset}: {self}; {advice}"))
    }
}

/// The chain value after `previous` and `body`.
pub fn chain(previous: &Chain, body: &[u8]) -> Chain {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(previous);
    context.update(body);
    let mut chain = GENESIS;
    // A SHA-256 digest has the length of a chain.
    chain.copy_from_slice(context.finish().as_ref());
    chain
}

fn checksum(previous: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(previous), body)
}

/// The header that goes before `body`.
pub fn header(previous: &Chain, body: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = VERSION;
    header[1..5].copy_from_slice(&checksum(previous, body).to_le_bytes());
    header[5..].copy_from_slice(previous);
    header
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 0xf]).filter_map(|n| char::from_digit(u32::from(n), 16)).collect()
}

/// A frame whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The chain value of the entry before.
    pub previous: &'a Chain,
    /// The entry.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes a frame apart and checks its version and checksum.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let short = FrameError::Short(bytes.len());
        let (version, rest) = bytes.split_first().ok_or(short)?;
        if *version != VERSION {
            return Err(FrameError::Version(*version));
        }
        let (expected, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
        let (previous, body) = rest.split_first_chunk::<32>().ok_or(short)?;
        let (expected, found) = (u32::from_le_bytes(*expected), checksum(previous, body));
        if expected != found {
            return Err(FrameError::Checksum { expected, found });
        }
        Ok(Self { previous, body })
    }

    /// The chain value of this entry.
    pub fn chain(&self) -> Chain {
        chain(self.previous, self.body)
    }
}

/// Follows the chain along consecutive frames.
#[derive(Debug, Clone, Copy)]
pub struct Follow {
    last: Option<Chain>,
}

impl Follow {
    /// Starts after `frame`, or at the first entry of a log if there is none before it. If `frame` is bad, the next frame's
    /// word is taken for what came before it.
    pub fn after(frame: Option<&[u8]>) -> Self {
        Self { last: frame.map_or(Some(GENESIS), |bytes| Frame::parse(bytes).ok().map(|frame| frame.chain())) }
    }

    /// Checks the next frame and gives its body. After an error, following goes on from what the next frame says.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], FrameError> {
        let before = self.last.take();
        let frame = Frame::parse(bytes)?;
        self.last = Some(frame.chain());
        if before.is_some_and(|chain| chain != *frame.previous) {
            return Err(FrameError::Chain);
        }
        Ok(frame.body)
    }

    /// The chain value of the last frame, if it was whole.
    pub const fn chain(&self) -> Option<&Chain> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(previous: &Chain, body: &[u8]) -> Vec<u8> {
        [&header(previous, body)[..], body].concat()
    }

    #[test]
    fn frames_chain_and_every_flipped_bit_is_found() {
        let one = frame(&GENESIS, b"one");
        let two = frame(&chain(&GENESIS, b"one"), b"two");
        let mut follow = Follow::after(None);
        assert_eq!(follow.next(&one), Ok(&b"one"[..]));
        assert_eq!(follow.next(&two), Ok(&b"two"[..]));
        assert_eq!(Follow::after(None).next(&two), Err(FrameError::Chain));
        assert_eq!(Follow::after(Some(b"bad")).next(&two), Ok(&b"two"[..]));
        for bit in 0..two.len() * 8 {
            let mut bad = two.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(&bad).is_err(), "bit {bit}");
        }
        for length in 0..two.len() {
            assert!(Frame::parse(&two[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn the_chain_is_plain_sha256_of_the_previous_value_and_the_bytes() {
        // SHA-256 of 32 zero bytes.
        assert_eq!(hex(&chain(&GENESIS, b"")), "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
    }
}
