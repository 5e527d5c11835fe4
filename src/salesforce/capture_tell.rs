//! Writing what events say into a batch: rows, rows that were read, gaps, each with its place in the stream.

use super::backfill::row_of;
use super::capture_event::{Heard, Told};
use super::reread::ReadRow;
use crate::change::{MappingDef, Notice, Position, Side, Str, StreamId};
use crate::clock::Micros;
use crate::flow::{Event, Item, Own, Row, RowOperation};
use crate::mapping::from_json;

/// Writes what an event says into a batch.
pub(super) struct Telling<'a> {
    pub(super) events: &'a mut Vec<Event>,
    pub(super) heard: &'a Heard,
    pub(super) stream: StreamId,
    /// The last replay id, and the index after its last event.
    pub(super) place: &'a mut (Str, u32),
}

impl Telling<'_> {
    /// Moves to an event's place. One with the replay id of the event before goes on with its index.
    pub(super) fn at(&mut self, replay_id: &[u8]) {
        let here = to_hex(replay_id);
        if self.place.0 != here {
            *self.place = (here, 0);
        }
    }

    pub(super) fn push(&mut self, committed_at: Micros, item: Item) {
        let (replay_id, index) = self.place.clone();
        self.place.1 += 1;
        self.events.push(Event {
            position: Position::Salesforce { stream: self.stream, replay_id, index },
            transaction: self.heard.transaction(),
            committed_at,
            who: self.heard.who(),
            item,
        });
    }

    /// What an event told of a row, completed by what was read.
    pub(super) fn row(
        &mut self,
        mapping: &MappingDef,
        operation: RowOperation,
        id: &Str,
        told: &Told,
        read: Option<&ReadRow>,
    ) {
        let mut fields = told.for_record(mapping, id);
        let mut moved_on = false;
        for untold in &told.untold {
            let Some((field, json)) =
                mapping.field(untold.field).zip(read).and_then(|(f, r)| Some((f, r.json(&f.name)?)))
            else {
                continue;
            };
            let same = match (&untold.sha256, json.as_str()) {
                (Some(expected), Some(text)) => sha256_hex(text.as_bytes()) == *expected,
                (Some(_), None) => false,
                (None, _) => true,
            };
            if same { fields.push((field.id, from_json(&field.kind, json))) } else { moved_on = true }
        }
        fields.sort_by_key(|(field, _)| *field);
        let own = self.heard.own;
        if operation == RowOperation::Update && fields.is_empty() && own == Own::No && !moved_on {
            return;
        }
        let row = Row {
            mapping: mapping.id,
            operation,
            key: None,
            old_key: None,
            salesforce_id: Some(id.clone()),
            fields,
            own,
        };
        self.push(self.heard.committed_at(), Item::Row(row));
        if moved_on {
            // The text is another one by now, or is kept in another form than the event's hash is of.
            self.read(mapping, id, read);
        }
    }

    /// A row as it was read, or that it is not there.
    pub(super) fn read(&mut self, mapping: &MappingDef, id: &Str, read: Option<&ReadRow>) {
        let event_at = self.heard.committed_at();
        if let Some(row) = read {
            self.push(row.stamp.unwrap_or(event_at), Item::Row(row_of(mapping, row, RowOperation::Image)));
            return;
        }
        let row = Row {
            mapping: mapping.id,
            operation: RowOperation::Missing,
            key: None,
            old_key: None,
            salesforce_id: Some(id.clone()),
            fields: Vec::new(),
            own: Own::No,
        };
        self.push(event_at, Item::Row(row));
    }

    pub(super) fn gap(&mut self, scope: &str) {
        let reason = Str::new(&self.heard.header.change_type);
        let notice = Notice::Gap { side: Side::Salesforce, reason, scope: Str::new(scope) };
        self.push(self.heard.committed_at(), Item::Notice(notice));
    }
}

/// Lower-case hex.
pub(super) fn to_hex(bytes: &[u8]) -> Str {
    let mut text = String::with_capacity(bytes.len() * 2);
    for nibble in bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
        text.push(char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }));
    }
    text.into()
}

/// The bytes of hex; `None` where it is none.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    bytes.collect::<Option<Vec<u8>>>().filter(|bytes| !bytes.is_empty())
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    to_hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()).into()
}
