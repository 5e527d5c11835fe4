//! Looks through a write-ahead file before RocksDB replays it: is it whole, torn at the end, or damaged?
//!
//! A crash leaves at most an append at the end that was being written and never acknowledged. Anything else is damage, and
//! must not be taken for such an end: what comes behind it was acknowledged. RocksDB tells the two apart by the place in the
//! file alone, and takes a record whose length was changed for a torn end. Here it is damage if a good record begins behind
//! the bad one, or if the bad one reaches to the file's end just as it was written.
//!
//! The file is blocks of 32 KiB, each a run of records that do not cross its end: masked CRC32C of type and payload (4 bytes),
//! the payload's length (2), type (1), payload; little-endian. Zeros fill what is left.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// The types of a record with which an append begins: one that is whole, and the first of several.
const BEGINNINGS: [u8; 2] = [1, 2];

/// How a write-ahead file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a whole record; zeros may follow.
    Whole,
    /// With an append that was being written.
    Torn,
    /// It is not as it was written, from this byte on.
    Damaged(u64),
}

/// Looks through the file at `path`, as long as it is now.
pub(super) fn inspect(path: &Path) -> io::Result<Ending> {
    look_through(File::open(path)?)
}

fn look_through(mut file: impl Read) -> io::Result<Ending> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut base = 0;
    let mut bad: Option<u64> = None;
    // Since the bad place: whether there were only zeros, and whether the lengths lead on.
    let (mut zeros, mut leads) = (true, true);
    let mut more = true;
    while more {
        block.clear();
        file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        // A block that is not full is the last, even if its writer adds to it meanwhile.
        more = block.len() == BLOCK_BYTES;
        let (start, rest) = if bad.is_some() {
            (0, 0)
        } else {
            let good = good_bytes(&block);
            if good == block.len() {
                base += block.len() as u64;
                continue;
            }
            (good, good + 1)
        };
        let at = *bad.get_or_insert(base + start as u64);
        let tail = block.get(start..).unwrap_or_default();
        if stretched(tail) || (rest..block.len()).any(|n| begins(&block, n)) {
            return Ok(Ending::Damaged(at));
        }
        zeros &= tail.iter().all(|b| *b == 0);
        leads &= lengths_lead_to_end(tail);
        base += block.len() as u64;
    }
    Ok(match bad {
        Some(at) if leads && !zeros => Ending::Damaged(at),
        Some(_) if !zeros => Ending::Torn,
        _ => Ending::Whole,
    })
}

/// The record at the start of `bytes`: its checksum, type, payload, and what follows.
fn record(bytes: &[u8]) -> Option<(u32, u8, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [a, b, c, d, low, high, kind] = *header;
    let (payload, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
    Some((u32::from_le_bytes([a, b, c, d]), kind, payload, rest))
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// How many bytes of a block are good records, with the zeros that fill its end.
fn good_bytes(block: &[u8]) -> usize {
    let mut bytes = block;
    while let Some((crc, kind, payload, rest)) = record(bytes) {
        if kind == 0 || crc != checksum(kind, payload) {
            break;
        }
        bytes = rest;
    }
    let filled = block.len() == BLOCK_BYTES && bytes.len() < HEADER_BYTES && bytes.iter().all(|b| *b == 0);
    if filled { block.len() } else { block.len() - bytes.len() }
}

/// Whether a good record with which an append begins is at `n`.
fn begins(block: &[u8], n: usize) -> bool {
    let bytes = block.get(n..).unwrap_or_default();
    record(bytes).is_some_and(|(crc, kind, payload, _)| BEGINNINGS.contains(&kind) && crc == checksum(kind, payload))
}

/// Whether `bytes` are one good record, but for its length.
fn stretched(bytes: &[u8]) -> bool {
    let Some(([a, b, c, d, _, _, kind], payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    *kind != 0 && u32::from_le_bytes([*a, *b, *c, *d]) == checksum(*kind, payload)
}

/// Whether records, as long as they say, good or not, fill `bytes`; zeros may follow.
fn lengths_lead_to_end(mut bytes: &[u8]) -> bool {
    while let Some((_, kind, payload, rest)) = record(bytes) {
        if kind == 0 && payload.is_empty() {
            break;
        }
        bytes = rest;
    }
    bytes.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(file: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        file.extend(checksum(kind, payload).to_le_bytes());
        file.extend((payload.len() as u16).to_le_bytes());
        file.push(kind);
        file.extend(payload);
    }

    /// Appends of different lengths; the last of them crosses a block's end.
    fn file() -> (Vec<u8>, Vec<usize>) {
        let (mut file, mut ends) = (Vec::new(), vec![0]);
        for n in 0..6_u8 {
            push(&mut file, 1, &vec![n ^ 0x5a; 20 + usize::from(n) * 7]);
            ends.push(file.len());
        }
        let large = vec![0x77; BLOCK_BYTES - file.len() - HEADER_BYTES - 40];
        push(&mut file, 1, &large);
        ends.push(file.len());
        push(&mut file, 2, &[0x11; 40 - HEADER_BYTES]);
        push(&mut file, 4, &[0x22; 90]);
        ends.push(file.len());
        (file, ends)
    }

    fn looked(bytes: &[u8]) -> Ending {
        look_through(bytes).unwrap()
    }

    #[test]
    fn a_whole_file_is_whole() {
        let (mut file, _) = file();
        assert_eq!(looked(&file), Ending::Whole);
        assert_eq!(looked(&[]), Ending::Whole);
        file.extend(vec![0; 3 * BLOCK_BYTES]);
        assert_eq!(looked(&file), Ending::Whole);
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let (file, ends) = file();
        // All bits of the small appends, of what is around the block's end, and of the large one's header.
        let places = (0..ends[6] + HEADER_BYTES + 20).chain(ends[7] - 20..file.len());
        for at in places {
            for bit in 0..8 {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                let begin = ends.iter().rposition(|end| *end <= at).map(|n| ends[n]).unwrap();
                match looked(&bad) {
                    Ending::Damaged(from) => assert!(begin as u64 <= from && from <= at as u64, "{at} {bit} {from}"),
                    other => panic!("byte {at} bit {bit}: {other:?}"),
                }
            }
        }
    }

    /// A file that is written to while it is read: it seems to end before each of its parts.
    struct Growing<'a>(Vec<&'a [u8]>, bool);

    impl Read for Growing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 || self.0.is_empty() {
                return Ok(0);
            }
            let part = self.0.remove(0);
            buffer[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    #[test]
    fn a_file_that_grows_meanwhile_is_no_damage() {
        let (file, ends) = file();
        for cut in 0..ends[6] {
            let parts = vec![&file[..cut], &file[cut..ends[6]]];
            let ending = look_through(Growing(parts, true)).unwrap();
            assert!(!matches!(ending, Ending::Damaged(_)), "{cut}: {ending:?}");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_no_damage() {
        let (file, ends) = file();
        for length in (0..ends[6] + 40).chain(ends[7] - 20..=file.len()) {
            let ending = looked(&file[..length]);
            assert!(!matches!(ending, Ending::Damaged(_)), "{length}: {ending:?}");
            let whole = ends.contains(&length);
            assert!(!whole || ending == Ending::Whole, "{length}: {ending:?}");
            // Zeros where the file system had the place but not yet the bytes.
            if whole {
                let padded = [&file[..length], &[0; 700]].concat();
                assert_eq!(looked(&padded), Ending::Whole, "{length}");
            }
        }
    }
}
