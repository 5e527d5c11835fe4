//! What the log knows of one record.

use smallvec::SmallVec;

use crate::change::{
    ConflictKind, Dot, FieldId, Key, MappingId, Offset, Side, Str, Ticket, TicketValue, Value, Vector, WriteKind,
};
use crate::clock::Micros;

/// The dots that carry a value: more than one when several changes came to the same value.
pub type Dots = SmallVec<[Dot; 1]>;

/// What a side holds, as its own stream has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The value.
    pub value: Value,
    /// The change it comes from.
    pub dot: Dot,
}

impl Default for Held {
    fn default() -> Self {
        Self { value: Value::Null, dot: Dot::NOBODY }
    }
}

/// A conflict that waits for a person: the value that does not stand but might.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The decision entry that parked it.
    pub decision: Offset,
    /// What kind of conflict it is.
    pub conflict: ConflictKind,
    /// Whose value it is.
    pub side: Side,
    /// The value.
    pub value: Value,
    /// The changes that carry it.
    pub dots: Dots,
}

/// A field of a record, or its existence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// The value that stands.
    pub current: Value,
    /// The changes that carry it.
    pub dots: Dots,
    /// When it was committed, by PostgreSQL's clock.
    pub written_at: Micros,
    /// What each side holds, by [`Side::index`].
    pub held: [Held; 2],
    /// The challenger, while a person must decide. The register is written to neither side.
    pub parked: Option<Box<Parked>>,
    /// The side whose foreign edit is left where it is, until the owner changes the value.
    pub ignored: Option<Side>,
}

impl Register {
    /// A register before any change, at both sides.
    pub fn new(value: Value) -> Self {
        let held = Held { value: value.clone(), dot: Dot::NOBODY };
        Self {
            current: value,
            dots: Dots::from_slice(&[Dot::NOBODY]),
            written_at: 0,
            held: [held.clone(), held],
            parked: None,
            ignored: None,
        }
    }

    /// What a side holds.
    pub fn held(&self, side: Side) -> &Held {
        // The array has a slot per side, so this does not panic.
        &self.held[side.index()]
    }

    /// Whether the side holds the current value, and by its dot: whether an edit there has seen it.
    pub fn seen_by(&self, side: Side) -> bool {
        self.dots.contains(&self.held(side).dot)
    }

    /// A side that holds the current value by luck holds its dots too.
    pub(super) fn settle(&mut self) {
        for held in &self.held {
            if !self.dots.contains(&held.dot) && held.value == self.current {
                self.dots.push(held.dot);
            }
        }
    }
}

/// A ticket as the record state keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The ticket's offset.
    pub ticket: Offset,
    /// What the write does.
    pub write: WriteKind,
    /// The values, by ascending field id.
    pub values: Vec<TicketValue>,
    /// The change that the existence comes from.
    pub existence: Dot,
    /// How many changes of the side were known when it was planned.
    pub known: u64,
    /// The write before it has landed a second time since.
    pub overtaken: bool,
    /// When the side acknowledged it, by the log's clock; `None` while no answer is known.
    pub acknowledged_at: Option<Micros>,
}

impl InFlight {
    pub(super) fn of(offset: Offset, ticket: &Ticket, known: u64) -> Self {
        Self {
            known,
            overtaken: false,
            ticket: offset,
            write: ticket.write,
            values: ticket.values.clone(),
            existence: ticket.existence,
            acknowledged_at: None,
        }
    }

    /// The value that the ticket writes to a field.
    pub fn value(&self, field: FieldId) -> Option<&TicketValue> {
        self.values.binary_search_by_key(&field, |v| v.field).ok().and_then(|n| self.values.get(n))
    }
}

/// A write that a side refused. Its fields are held back from that side while the same changes are current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The ticket's offset: the dead letter's name.
    pub ticket: Offset,
    /// What the write did.
    pub write: WriteKind,
    /// The fields and the changes they carried.
    pub fields: Vec<(FieldId, Dot)>,
    /// The existence it carried.
    pub existence: Dot,
    /// Whether a person discarded it: it is held back all the same, but no longer shown.
    pub discarded: bool,
}

/// Everything the log knows of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordState {
    /// Its mapping.
    pub mapping: MappingId,
    /// Its primary key in PostgreSQL.
    pub key: Option<Key>,
    /// Its id in Salesforce.
    pub salesforce_id: Option<Str>,
    /// How many changes of each side there were.
    pub counts: Vector,
    /// Whether it exists; values are [`Value::Bool`].
    pub existence: Register,
    /// Its fields, by ascending id. A field that nobody ever set is absent.
    pub fields: Vec<(FieldId, Register)>,
    /// The write under way to each side.
    pub in_flight: [Option<InFlight>; 2],
    /// Closed writes to Salesforce that may echo yet, oldest first: the last one, as what landed twice echoes twice, and those
    /// before it that did not land as far as is known: refused at their last sending, given back, or overtaken.
    pub closed: Vec<InFlight>,
    /// The refused write of each side.
    pub refused: [Option<Refused>; 2],
    /// How many writes each side has skipped since it last told something of the record.
    pub skips: [u8; 2],
    /// The commit time of the last event of each side.
    pub last_commit: [Micros; 2],
    /// The stamp of the last image read from each side. Earlier events are part of it.
    pub image_at: [Micros; 2],
    /// Only part of the fields has been told so far; nothing is created elsewhere until an image tells the rest.
    pub partial: bool,
}

impl RecordState {
    /// A record before any change.
    pub fn new(mapping: MappingId) -> Self {
        Self {
            mapping,
            key: None,
            salesforce_id: None,
            counts: Vector::default(),
            existence: Register::new(Value::Bool(false)),
            fields: Vec::new(),
            in_flight: [None, None],
            closed: Vec::new(),
            refused: [None, None],
            skips: [0, 0],
            last_commit: [0, 0],
            image_at: [0, 0],
            partial: false,
        }
    }

    /// The register of a field, if it was ever set.
    pub fn field(&self, field: FieldId) -> Option<&Register> {
        self.fields.binary_search_by_key(&field, |(f, _)| *f).ok().and_then(|n| self.fields.get(n)).map(|(_, r)| r)
    }

    /// The register of a field, made when absent.
    pub(super) fn field_mut(&mut self, field: FieldId) -> &mut Register {
        let n = match self.fields.binary_search_by_key(&field, |(f, _)| *f) {
            Ok(n) => n,
            Err(n) => {
                self.fields.insert(n, (field, Register::new(Value::Null)));
                n
            }
        };
        // `n` is where the search found it or the insertion put it.
        &mut self.fields[n].1
    }

    /// What a side holds in a field: null where nothing was ever told.
    pub fn held_value(&self, side: Side, field: FieldId) -> &Value {
        static NULL: Value = Value::Null;
        self.field(field).map_or(&NULL, |r| &r.held(side).value)
    }

    /// Whether the record exists at a side.
    pub fn exists_at(&self, side: Side) -> bool {
        self.existence.held(side).value == Value::Bool(true)
    }

    /// Whether the record exists, all in all.
    pub fn exists(&self) -> bool {
        self.existence.current == Value::Bool(true)
    }

    /// Everything a side has seen: the join of the dots it holds.
    pub fn seen(&self, side: Side) -> Vector {
        let mut vector = Vector::default();
        vector.include(self.existence.held(side).dot);
        self.fields.iter().for_each(|(_, r)| vector.include(r.held(side).dot));
        vector
    }

    /// The stamp of the newest thing that a side has told of it, by its stream or by an image.
    pub fn told_at(&self, side: Side) -> Micros {
        self.last_commit[side.index()].max(self.image_at[side.index()])
    }

    /// The write under way to a side.
    pub fn in_flight(&self, side: Side) -> Option<&InFlight> {
        self.in_flight[side.index()].as_ref()
    }

    /// The refused write of a side.
    pub fn refused(&self, side: Side) -> Option<&Refused> {
        self.refused[side.index()].as_ref()
    }
}
