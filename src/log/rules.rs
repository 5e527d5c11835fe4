//! The checks that every implementation makes, so that they all refuse the same things in the same words.

use super::{Append, frame::BODY_BYTES_MAX};
use crate::change::Offset;
use crate::error::{Error, Kind, Result};

/// Whether `append` may be written at `expected_tail` when the log's tail is `tail`.
pub(super) fn fence(tail: Offset, expected_tail: Offset, append: &Append) -> Result<()> {
    if tail != expected_tail {
        let text = format!(
            "the change log ends at offset {tail}, but this writer expected {expected_tail}: another writer has \
             appended to it, so this one must stop"
        );
        return Err(Error::new(Kind::Internal, text));
    }
    if append.entries().next().is_none() && !append.is_empty() {
        return Err(Error::new(Kind::Internal, "a state change without an entry would not be a fold over the log"));
    }
    if let Some(entry) = append.entries().find(|entry| entry.body.len() > BODY_BYTES_MAX) {
        let text = format!("an entry of {} bytes is more than the change log takes", entry.body.len());
        return Err(Error::new(Kind::Internal, text));
    }
    Ok(())
}

/// The error of every append after one that failed.
pub(super) fn poisoned() -> Error {
    let text = "the change log takes no more entries since an earlier write to it failed, and what reached the disk is not \
                known; mend the cause named in the first error and restart tidelock";
    Error::new(Kind::Storage, text)
}

/// Only one rebuild at a time.
pub(super) fn one_rebuild(under_way: bool) -> Result<()> {
    if under_way {
        return Err(Error::new(Kind::Internal, "the state of the change log is being rebuilt already"));
    }
    Ok(())
}

/// A rebuild goes along the log without holes.
pub(super) fn follows(next: Offset, first: Offset) -> Result<()> {
    if next != first {
        let text = format!("the rebuild of the state stands at offset {next} and was given offset {first}");
        return Err(Error::new(Kind::Internal, text));
    }
    Ok(())
}

/// A rebuild is complete when it stands at the tail.
pub(super) fn covers(next: Offset, tail: Offset) -> Result<()> {
    if next != tail {
        let text = format!("the rebuild of the state stands at offset {next}, but the change log ends at {tail}");
        return Err(Error::new(Kind::Internal, text));
    }
    Ok(())
}
