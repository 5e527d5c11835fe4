//! The records of a range of the log: which they are, what they hold, and what a side lacks of it.

use std::collections::BTreeMap;

use crate::causality;
use crate::change::codec::{self, EntryKind};
use crate::change::{Offset, RecordId, Side, WriteKind};
use crate::error::{Error, Kind, Result};
use crate::flow::Image;
use crate::log::{ChangeLog, ReadLimit};

use super::Lens;

/// The records that entries from `from` to before `to` are about, each with the last of those that may change what it holds or by
/// what it is found.
pub fn touched(log: &dyn ChangeLog, from: Offset, to: Offset) -> Result<BTreeMap<RecordId, Offset>> {
    let mut found = BTreeMap::new();
    let mut next = from;
    while next < to {
        let page = log.read(next, ReadLimit::entries((to.0 - next.0).min(2_000) as usize))?;
        if page.is_empty() {
            break;
        }
        for (offset, body) in page.iter() {
            let outline = codec::outline(body).map_err(|error| {
                Error::new(Kind::Corrupt, format!("entry {offset} cannot be read; run `tidelock log verify`"))
                    .caused_by(error)
            })?;
            let tells =
                matches!(outline.kind, EntryKind::Change | EntryKind::Echo | EntryKind::Decision | EntryKind::Bind);
            if let Some(record) = outline.record.filter(|_| tells) {
                found.insert(record, offset);
            }
        }
        next = page.next();
    }
    Ok(found)
}

/// What these records hold by the state of the log. Those of which only part is known are left out.
pub fn images(log: &dyn ChangeLog, records: &[(RecordId, Offset)]) -> Result<Vec<Image>> {
    let lens = Lens::new(log)?;
    let mut images = Vec::with_capacity(records.len());
    for (record, at) in records {
        let Some(state) = lens.state(*record)?.filter(|state| !state.partial) else { continue };
        let Some(mapping) = lens.catalog().mapping(state.mapping) else { continue };
        let fields = state.fields.iter().filter(|(field, _)| mapping.field(*field).is_some());
        let values = fields.map(|(field, register)| (*field, register.current.clone())).collect();
        images.push(Image {
            record: *record,
            mapping: state.mapping,
            at: *at,
            vector: state.counts,
            key: state.key.clone(),
            values: state.exists().then_some(values),
        });
    }
    Ok(images)
}

/// What a side would be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Needs {
    /// Records to be created.
    pub creates: u64,
    /// Records to be updated.
    pub updates: u64,
    /// Records to be deleted.
    pub deletes: u64,
    /// Records of which the side holds everything, or that wait: for a write under way, or for a person.
    pub skipped: u64,
}

/// What `side` lacks of these records.
pub fn needs(log: &dyn ChangeLog, side: Side, records: impl Iterator<Item = RecordId>) -> Result<Needs> {
    let lens = Lens::new(log)?;
    let mut needs = Needs::default();
    for record in records {
        let Some(state) = lens.state(record)? else { continue };
        let Some(mapping) = lens.catalog().mapping(state.mapping) else { continue };
        let planned = causality::plan(&state, mapping, record, side, Offset(0), "");
        let count = match planned.map(|ticket| ticket.write) {
            Some(WriteKind::Create) => &mut needs.creates,
            Some(WriteKind::Update) => &mut needs.updates,
            Some(WriteKind::Delete) => &mut needs.deletes,
            None => &mut needs.skipped,
        };
        *count += 1;
    }
    Ok(needs)
}
