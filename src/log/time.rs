//! From a time to a place in the log: `recorded_at` never decreases along it, so it is its own index.

use super::{ChangeLog, ReadLimit, page::undecodable};
use crate::change::Offset;
use crate::change::codec::{self, Reader};
use crate::clock::Micros;
use crate::error::Result;

/// When an encoded entry was recorded, without decoding the rest of it.
pub fn recorded_at(body: &[u8]) -> Result<Micros, codec::CodecError> {
    let mut reader = Reader::new(body);
    match reader.byte()? {
        codec::VERSION => reader.int(),
        version => Err(codec::CodecError::Version(version)),
    }
}

/// The first entry that was recorded at `time` or later; the tail if there is none. A binary search.
pub fn offset_at_time(log: &dyn ChangeLog, time: Micros) -> Result<Offset> {
    let (mut low, mut high) = (log.head().0, log.tail().0);
    while low < high {
        let middle = Offset(low + (high - low) / 2);
        let page = log.read(middle, ReadLimit::ONE)?;
        let Some((offset, body)) = page.iter().next() else { break };
        if recorded_at(body).map_err(|e| undecodable(offset, &e))? < time {
            low = middle.0 + 1;
        } else {
            high = middle.0;
        }
    }
    Ok(Offset(low))
}
