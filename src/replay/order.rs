//! The order of writes within a batch.

use crate::change::{Catalog, WriteKind};
use crate::flow::Write;

/// Parents before children for creates and updates, then children before parents for deletes; otherwise as planned.
pub(super) fn sort(writes: &mut [Write], catalog: &Catalog) {
    let rank = |write: &Write| i32::from(catalog.mapping(write.mapping).map_or(0, |m| m.rank));
    writes.sort_by_key(|write| match write.kind {
        WriteKind::Create | WriteKind::Update => (false, rank(write), write.mapping),
        WriteKind::Delete => (true, -rank(write), write.mapping),
    });
}
