//! The state as it was at an earlier place of the log.

use crate::change::{Offset, codec};
use crate::error::{Error, Kind, Result};
use crate::log::{Append, ChangeLog, ReadLimit, record_of};

use super::fold::Fold;

/// Bytes of entries that are appended at once.
const CHUNK_BYTES: usize = 4 << 20;

/// Copies the entries before `until` into `copy`, an empty log, with the state that they add up to.
pub fn copy_until(log: &dyn ChangeLog, copy: &dyn ChangeLog, until: Offset) -> Result<()> {
    if log.head() > Offset(0) {
        let text = format!(
            "the change log begins at offset {}, so its state before offset {until} cannot be computed; leave out --to",
            log.head()
        );
        return Err(Error::new(Kind::Configuration, text));
    }
    let mut fold = Fold::open(copy)?;
    let (mut append, mut from, mut tail) = (Append::new(), Offset(0), copy.tail());
    while from < until {
        let page = log.read(from, ReadLimit::entries((until.0 - from.0).min(2_000) as usize))?;
        if page.is_empty() {
            return Err(Error::new(Kind::Corrupt, format!("the change log has no entry {from}")));
        }
        for (offset, body) in page.iter() {
            let entry = codec::decode(body).map_err(|error| {
                Error::new(Kind::Corrupt, format!("the entry at offset {offset} of the change log cannot be decoded"))
                    .caused_by(error)
            })?;
            // The decisions that follow are entries of the log themselves.
            fold.fold(copy, offset, &entry)?;
            append.push_encoded(body, record_of(&entry), None);
            if append.bytes() >= CHUNK_BYTES {
                tail = store(copy, &mut fold, &mut append, tail)?;
            }
        }
        from = page.next();
    }
    store(copy, &mut fold, &mut append, tail).map(drop)
}

fn store(copy: &dyn ChangeLog, fold: &mut Fold, append: &mut Append, tail: Offset) -> Result<Offset> {
    if append.is_empty() {
        return Ok(tail);
    }
    fold.write_to(append);
    let tail = copy.append(tail, append)?;
    append.clear();
    Ok(tail)
}
