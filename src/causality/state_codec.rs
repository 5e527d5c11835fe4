//! Record states as bytes, version 2. What a side holds is most often the current value, which then costs one bit. A register was
//! most often written at once with the one before it, which costs one bit more; when that was is told relative to the record's
//! last event.

use crate::change::codec::{CodecError, Reader, Writer};
use crate::change::{ConflictKind, FieldId, Key, MappingId, Offset, Side, TicketValue, WriteKind};
use crate::clock::Micros;

use super::state::{Dots, Held, InFlight, Parked, RecordState, Refused, Register};

const VERSION: u8 = 2;
const WRITES: [WriteKind; 3] = [WriteKind::Create, WriteKind::Update, WriteKind::Delete];
const CONFLICTS: [ConflictKind; 7] = [
    ConflictKind::InsertExists,
    ConflictKind::UpdateOriginDiffers,
    ConflictKind::UpdateDeleted,
    ConflictKind::DeleteOriginDiffers,
    ConflictKind::DeleteMissing,
    ConflictKind::ForeignEdit,
    ConflictKind::InitialMerge,
];

impl RecordState {
    /// Appends the state's bytes. Equal states have equal bytes.
    pub fn encode(&self, w: &mut Writer) {
        w.byte(VERSION);
        w.uint(u64::from(self.mapping.0));
        w.byte(u8::from(self.partial));
        w.option(self.key.as_ref(), |w, k| w.text(&k.0));
        w.option(self.salesforce_id.as_ref(), |w, s| w.text(s));
        w.vector(self.counts);
        self.skips.iter().for_each(|n| w.byte(*n));
        for at in self.last_commit.iter().chain(&self.image_at) {
            w.int(*at);
        }
        let last = newest(self.last_commit);
        register(&self.existence, None, last, w);
        let mut before = &self.existence;
        w.list(&self.fields, |w, (field, r)| {
            w.uint(u64::from(field.0));
            register(r, Some(before), last, w);
            before = r;
        });
        for ticket in &self.in_flight {
            w.option(ticket.as_ref(), in_flight);
        }
        w.list(&self.closed, in_flight);
        for slot in &self.refused {
            w.option(slot.as_ref(), refused);
        }
    }

    /// Reads a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let r = &mut Reader::new(bytes);
        let version = r.byte()?;
        if version != VERSION {
            return Err(CodecError::Version(version));
        }
        let mut state = Self::new(MappingId(r.small()?));
        state.partial = r.flag()?;
        state.key = r.option(|r| r.text().map(Key))?;
        state.salesforce_id = r.option(Reader::text)?;
        state.counts = r.vector()?;
        state.skips = [r.byte()?, r.byte()?];
        state.last_commit = [r.int()?, r.int()?];
        state.image_at = [r.int()?, r.int()?];
        let last = newest(state.last_commit);
        let existence = read_register(r, None, last)?;
        let count = r.count()?;
        let mut fields: Vec<(FieldId, Register)> = Vec::with_capacity(count.min(FIELDS_AT_ONCE));
        for _ in 0..count {
            let before = fields.last().map_or(&existence, |(_, register)| register);
            let field = FieldId(r.small()?);
            let register = read_register(r, Some(before), last)?;
            fields.push((field, register));
        }
        let state = Self {
            existence,
            fields,
            in_flight: [r.option(read_in_flight)?, r.option(read_in_flight)?],
            closed: r.list(read_in_flight)?,
            refused: [r.option(read_refused)?, r.option(read_refused)?],
            ..state
        };
        if r.remaining() > 0 {
            return Err(CodecError::TooLong(r.remaining()));
        }
        Ok(state)
    }
}

fn dots(dots: &Dots, w: &mut Writer) {
    w.list(dots, |w, dot| w.dot(*dot));
}

fn read_dots(r: &mut Reader<'_>) -> Result<Dots, CodecError> {
    // Nearly always one, which needs no allocation.
    let mut dots = Dots::new();
    for _ in 0..r.count()? {
        dots.push(r.dot()?);
    }
    Ok(dots)
}

const HELD_CURRENT: [u8; 2] = [1, 2];
const PARKED: u8 = 4;
const IGNORED: [u8; 2] = [8, 16];
/// The register was written when the one before it was, and by the same changes.
const WRITTEN_ALIKE: u8 = 32;

/// Fields that memory is taken for before they are read.
const FIELDS_AT_ONCE: usize = 64;

fn newest(last_commit: [Micros; 2]) -> Micros {
    last_commit[0].max(last_commit[1])
}

fn written_alike(a: &Register, b: &Register) -> bool {
    a.written_at == b.written_at && a.dots == b.dots && a.held.iter().zip(&b.held).all(|(a, b)| a.dot == b.dot)
}

fn register(register: &Register, before: Option<&Register>, last: Micros, w: &mut Writer) {
    let alike = before.is_some_and(|before| written_alike(register, before));
    let mut flags = if alike { WRITTEN_ALIKE } else { 0 };
    for side in Side::BOTH {
        if register.held(side).value == register.current {
            flags |= HELD_CURRENT[side.index()];
        }
        if register.ignored == Some(side) {
            flags |= IGNORED[side.index()];
        }
    }
    if register.parked.is_some() {
        flags |= PARKED;
    }
    w.byte(flags);
    w.value(&register.current);
    if !alike {
        dots(&register.dots, w);
        w.int(last.wrapping_sub(register.written_at));
        register.held.iter().for_each(|held| w.dot(held.dot));
    }
    for side in Side::BOTH {
        if flags & HELD_CURRENT[side.index()] == 0 {
            w.value(&register.held(side).value);
        }
    }
    if let Some(parked) = &register.parked {
        w.uint(parked.decision.0);
        w.byte(CONFLICTS.iter().position(|c| *c == parked.conflict).unwrap_or_default() as u8);
        w.byte(parked.side as u8);
        w.value(&parked.value);
        dots(&parked.dots, w);
    }
}

fn read_register(r: &mut Reader<'_>, before: Option<&Register>, last: Micros) -> Result<Register, CodecError> {
    let flags = r.byte()?;
    let current = r.value()?;
    let (dots, written_at, [postgres, salesforce]) = match before.filter(|_| flags & WRITTEN_ALIKE != 0) {
        Some(before) => (before.dots.clone(), before.written_at, Side::BOTH.map(|side| before.held(side).dot)),
        None => (read_dots(r)?, last.wrapping_sub(r.int()?), [r.dot()?, r.dot()?]),
    };
    let mut held = |side: Side, dot| -> Result<Held, CodecError> {
        let value = if flags & HELD_CURRENT[side.index()] == 0 { r.value()? } else { current.clone() };
        Ok(Held { value, dot })
    };
    let held = [held(Side::Postgres, postgres)?, held(Side::Salesforce, salesforce)?];
    let parked = if flags & PARKED == 0 {
        None
    } else {
        Some(Box::new(Parked {
            decision: Offset(r.uint()?),
            conflict: pick("conflict", &CONFLICTS, r.byte()?)?,
            side: pick("side", &Side::BOTH, r.byte()?)?,
            value: r.value()?,
            dots: read_dots(r)?,
        }))
    };
    let ignored = Side::BOTH.into_iter().find(|side| flags & IGNORED[side.index()] != 0);
    Ok(Register { current, dots, written_at, held, parked, ignored })
}

fn pick<T: Copy>(what: &'static str, all: &[T], tag: u8) -> Result<T, CodecError> {
    all.get(usize::from(tag)).copied().ok_or(CodecError::Unknown { what, value: u64::from(tag) })
}

fn in_flight(w: &mut Writer, ticket: &InFlight) {
    w.uint(ticket.ticket.0);
    w.byte(WRITES.iter().position(|k| *k == ticket.write).unwrap_or_default() as u8);
    w.list(&ticket.values, |w, v| {
        w.uint(u64::from(v.field.0));
        w.value(&v.value);
        w.dot(v.dot);
    });
    w.dot(ticket.existence);
    w.uint(ticket.known);
    w.byte(u8::from(ticket.overtaken));
    w.option(ticket.acknowledged_at, Writer::int);
}

fn read_in_flight(r: &mut Reader<'_>) -> Result<InFlight, CodecError> {
    Ok(InFlight {
        ticket: Offset(r.uint()?),
        write: pick("write", &WRITES, r.byte()?)?,
        values: r.list(|r| Ok(TicketValue { field: FieldId(r.small()?), value: r.value()?, dot: r.dot()? }))?,
        existence: r.dot()?,
        known: r.uint()?,
        overtaken: r.flag()?,
        acknowledged_at: r.option(Reader::int)?,
    })
}

fn refused(w: &mut Writer, refused: &Refused) {
    w.uint(refused.ticket.0);
    w.byte(WRITES.iter().position(|k| *k == refused.write).unwrap_or_default() as u8);
    w.list(&refused.fields, |w, (field, dot)| {
        w.uint(u64::from(field.0));
        w.dot(*dot);
    });
    w.dot(refused.existence);
    w.byte(u8::from(refused.discarded));
}

fn read_refused(r: &mut Reader<'_>) -> Result<Refused, CodecError> {
    Ok(Refused {
        ticket: Offset(r.uint()?),
        write: pick("write", &WRITES, r.byte()?)?,
        fields: r.list(|r| Ok((FieldId(r.small()?), r.dot()?)))?,
        existence: r.dot()?,
        discarded: r.flag()?,
    })
}
