//! Entry encoding, version 1: compact, stable, and checked on the way in.
//!
//! Integers are LEB128 varints (signed ones zigzag), texts and bytes are length-prefixed, optional items have one presence
//! byte, enums one tag byte. Notices, which are rare and wide, are JSON. `schemas/entry-v1.md` has the layout, and a golden
//! file guards it: bytes that were once written are read for ever. The reader never panics and never allocates more than its
//! input could fill.

use super::*;

/// The version that is written.
pub const VERSION: u8 = 1;

/// Why bytes are not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The input ends inside an item.
    #[error("the entry ends early")]
    Short,
    /// A tag or length that this version does not know.
    #[error("unknown {what} {value}")]
    Unknown {
        /// What was read.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Text,
    /// The entry is of a format that this program does not know.
    #[error("entry format {0} is not known to this version of tidelock; use the version that wrote it, or a newer one")]
    Version(u8),
    /// Bytes are left over after the entry.
    #[error("{0} bytes are left over after the entry")]
    TooLong(usize),
    /// A notice that cannot be read.
    #[error("notice: {0}")]
    Notice(String),
}

type Result<T, E = CodecError> = std::result::Result<T, E>;

/// Appends items to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    /// What has been written.
    pub buffer: Vec<u8>,
}

impl Writer {
    /// One byte.
    pub fn byte(&mut self, b: u8) {
        self.buffer.push(b);
    }

    /// An unsigned varint.
    pub fn uint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.buffer.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.buffer.push(n as u8);
    }

    /// A signed varint.
    pub fn int(&mut self, n: i64) {
        self.uint(((n << 1) ^ (n >> 63)) as u64);
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.uint(bytes.len() as u64);
        self.buffer.extend_from_slice(bytes);
    }

    /// Length-prefixed text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// An optional item.
    pub fn option<T>(&mut self, item: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.byte(u8::from(item.is_some()));
        if let Some(item) = item {
            write(self, item);
        }
    }

    /// A counted list.
    pub fn list<'a, T>(&mut self, items: &'a [T], mut write: impl FnMut(&mut Self, &'a T)) {
        self.uint(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }

    /// A value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.byte(0),
            Value::Bool(b) => self.byte(1 + u8::from(*b)),
            Value::Int(n) => {
                self.byte(3);
                self.int(*n);
            }
            Value::Decimal(text) => {
                self.byte(4);
                self.text(text);
            }
            Value::Text(text) => {
                self.byte(5);
                self.text(text);
            }
            Value::Bytes(bytes) => {
                self.byte(6);
                self.bytes(bytes);
            }
            Value::Date(days) => {
                self.byte(7);
                self.int(i64::from(*days));
            }
            Value::Time(micros) => {
                self.byte(8);
                self.int(*micros);
            }
            Value::Timestamp(micros) => {
                self.byte(9);
                self.int(*micros);
            }
        }
    }

    /// A dot: its count and side in one varint.
    pub fn dot(&mut self, dot: Dot) {
        self.uint(dot.n << 1 | dot.side as u64);
    }

    /// A vector.
    pub fn vector(&mut self, vector: Vector) {
        self.uint(vector.postgres);
        self.uint(vector.salesforce);
    }

    fn record(&mut self, mapping: MappingId, record: RecordId) {
        self.uint(u64::from(mapping.0));
        self.uint(record.0);
    }

    fn source(&mut self, source: &Source) {
        match &source.position {
            Position::Postgres { stream, commit_lsn, index } => {
                self.byte(0);
                self.uint(u64::from(stream.0));
                self.uint(commit_lsn.0);
                self.uint(u64::from(*index));
            }
            Position::Salesforce { stream, replay_id, index } => {
                self.byte(1);
                self.uint(u64::from(stream.0));
                self.text(replay_id);
                self.uint(u64::from(*index));
            }
        }
        self.text(&source.transaction.id);
        self.uint(u64::from(source.transaction.index) << 1 | u64::from(source.transaction.last));
        self.int(source.committed_at);
        self.text(&source.who.user);
        self.text(&source.who.role);
        self.text(&source.who.application);
    }

    fn identity(&mut self, key: Option<&Key>, salesforce_id: Option<&Str>) {
        self.option(key, |w, k| w.text(&k.0));
        self.option(salesforce_id, |w, s| w.text(s));
    }
}

/// Takes items off the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.rest.split_first().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*first)
    }

    /// An unsigned varint.
    pub fn uint(&mut self) -> Result<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            n |= bits << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(CodecError::Unknown { what: "integer longer than 64 bits", value: n })
    }

    /// An unsigned varint that fits `T`.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        let n = self.uint()?;
        T::try_from(n).map_err(|_| CodecError::Unknown { what: "integer out of range", value: n })
    }

    /// A signed varint.
    pub fn int(&mut self) -> Result<i64> {
        let n = self.uint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.small::<usize>()?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Length-prefixed text.
    pub fn text(&mut self) -> Result<Str> {
        std::str::from_utf8(self.bytes()?).map(Str::new).map_err(|_| CodecError::Text)
    }

    /// An optional item.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// A boolean byte.
    pub fn flag(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            b => Err(CodecError::Unknown { what: "flag", value: u64::from(b) }),
        }
    }

    /// The number of items that follow. Every item takes at least one byte, so a count beyond what is left is an error before
    /// it costs memory.
    pub fn count(&mut self) -> Result<usize> {
        let count = self.small::<usize>()?;
        if count > self.rest.len() { Err(CodecError::Short) } else { Ok(count) }
    }

    /// A counted list.
    pub fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.count()?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// A value.
    pub fn value(&mut self) -> Result<Value> {
        Ok(match self.byte()? {
            0 => Value::Null,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => Value::Int(self.int()?),
            4 => Value::Decimal(self.text()?),
            5 => Value::Text(self.text()?),
            6 => Value::Bytes(self.bytes()?.to_vec()),
            7 => {
                let days = self.int()?;
                Value::Date(i32::try_from(days).map_err(|_| CodecError::Unknown { what: "day", value: days as u64 })?)
            }
            8 => Value::Time(self.int()?),
            9 => Value::Timestamp(self.int()?),
            b => return Err(CodecError::Unknown { what: "value type", value: u64::from(b) }),
        })
    }

    /// A dot.
    pub fn dot(&mut self) -> Result<Dot> {
        let n = self.uint()?;
        Ok(Dot { side: if n & 1 == 0 { Side::Postgres } else { Side::Salesforce }, n: n >> 1 })
    }

    /// A vector.
    pub fn vector(&mut self) -> Result<Vector> {
        Ok(Vector { postgres: self.uint()?, salesforce: self.uint()? })
    }

    fn mapping(&mut self) -> Result<MappingId> {
        Ok(MappingId(self.small()?))
    }

    fn record(&mut self) -> Result<RecordId> {
        Ok(RecordId(self.uint()?))
    }

    fn field(&mut self) -> Result<FieldId> {
        Ok(FieldId(self.small()?))
    }

    fn source(&mut self) -> Result<Source> {
        let (side, position) = match self.byte()? {
            0 => {
                let stream = StreamId(self.small()?);
                (Side::Postgres, Position::Postgres { stream, commit_lsn: Lsn(self.uint()?), index: self.small()? })
            }
            1 => {
                let stream = StreamId(self.small()?);
                (Side::Salesforce, Position::Salesforce { stream, replay_id: self.text()?, index: self.small()? })
            }
            b => return Err(CodecError::Unknown { what: "position", value: u64::from(b) }),
        };
        let id = self.text()?;
        let index = self.uint()?;
        let transaction = Transaction {
            id,
            index: u32::try_from(index >> 1)
                .map_err(|_| CodecError::Unknown { what: "transaction index", value: index })?,
            last: index & 1 == 1,
        };
        let committed_at = self.int()?;
        let who = Who { user: self.text()?, role: self.text()?, application: self.text()? };
        Ok(Source { side, position, transaction, committed_at, who })
    }

    fn key(&mut self) -> Result<Option<Key>> {
        self.option(|r| r.text().map(Key))
    }

    fn salesforce_id(&mut self) -> Result<Option<Str>> {
        self.option(Self::text)
    }

    fn one_of<T: Copy>(&mut self, what: &'static str, all: &[T]) -> Result<T> {
        let b = self.byte()?;
        all.get(usize::from(b)).copied().ok_or(CodecError::Unknown { what, value: u64::from(b) })
    }
}

const ORIGINS: [ChangeOrigin; 5] = [
    ChangeOrigin::Captured,
    ChangeOrigin::Automation,
    ChangeOrigin::Backfill,
    ChangeOrigin::Repair,
    ChangeOrigin::Rewound,
];
const OPERATIONS: [Operation; 4] = [Operation::Insert, Operation::Update, Operation::Delete, Operation::Undelete];
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
const POLICIES: [Policy; 4] = [Policy::SalesforceWins, Policy::PostgresWins, Policy::LastWriteWins, Policy::Review];
const DELETE_POLICIES: [DeletePolicy; 2] = [DeletePolicy::DeleteWins, DeletePolicy::UpdateWins];
const FOREIGN_EDITS: [ForeignEdit; 3] = [ForeignEdit::Revert, ForeignEdit::Ignore, ForeignEdit::Refuse];

fn tag<T: PartialEq>(all: &[T], item: &T) -> u8 {
    all.iter().position(|other| other == item).unwrap_or_default() as u8
}

/// Appends the encoding of `entry` to `w`.
pub fn encode(entry: &Entry, w: &mut Writer) {
    w.byte(VERSION);
    w.int(entry.recorded_at);
    match &entry.body {
        Body::Change(change) => {
            w.byte(0);
            w.record(change.mapping, change.record);
            w.byte(tag(&ORIGINS, &change.origin) << 4 | tag(&OPERATIONS, &change.operation));
            w.source(&change.source);
            w.identity(change.key.as_ref(), change.salesforce_id.as_ref());
            w.dot(change.dot);
            w.vector(change.vector);
            w.list(&change.fields, |w, f| {
                w.uint(u64::from(f.field.0));
                w.value(&f.before);
                w.value(&f.after);
            });
        }
        Body::Echo(echo) => {
            w.byte(1);
            w.record(echo.mapping, echo.record);
            w.source(&echo.source);
            w.uint(echo.ticket.0);
            w.identity(echo.key.as_ref(), echo.salesforce_id.as_ref());
        }
        Body::Ticket(ticket) => {
            w.byte(2);
            w.record(ticket.mapping, ticket.record);
            w.byte((ticket.side as u8) << 4 | tag(&WRITES, &ticket.write));
            w.list(&ticket.values, |w, v| {
                w.uint(u64::from(v.field.0));
                w.value(&v.value);
                w.dot(v.dot);
            });
            w.dot(ticket.existence);
            w.option(ticket.external_id.as_ref(), |w, id| w.text(id));
            w.vector(ticket.vector);
            w.uint(ticket.cursor.0);
        }
        Body::Outcome(outcome) => {
            w.byte(3);
            w.record(outcome.mapping, outcome.record);
            w.byte(outcome.side as u8);
            w.uint(outcome.ticket.0);
            result(&outcome.result, w);
        }
        Body::Decision(decision) => {
            w.byte(4);
            w.record(decision.mapping, decision.record);
            w.option(
                match decision.subject {
                    Subject::Field(field) => Some(field),
                    Subject::Existence => None,
                },
                |w, field| w.uint(u64::from(field.0)),
            );
            w.byte(tag(&CONFLICTS, &decision.conflict));
            w.uint(decision.about.0);
            ruling(&decision.ruling, w);
            w.value(&decision.winner);
            w.list(&decision.winner_dots, |w, dot| w.dot(*dot));
            w.value(&decision.loser);
            w.list(&decision.loser_dots, |w, dot| w.dot(*dot));
        }
        Body::Bind(bind) => {
            w.byte(5);
            w.record(bind.mapping, bind.record);
            w.identity(bind.key.as_ref(), bind.salesforce_id.as_ref());
        }
        Body::Notice(notice) => {
            w.byte(6);
            // A notice holds only texts, numbers and lists of them, which serde_json always writes.
            w.bytes(&serde_json::to_vec(&WireNotice::from(notice)).unwrap_or_default());
        }
    }
}

fn result(result: &WriteResult, w: &mut Writer) {
    match result {
        WriteResult::Done => w.byte(0),
        WriteResult::Silent => w.byte(1),
        WriteResult::Skipped => w.byte(2),
        WriteResult::Abandoned { reason } => {
            w.byte(3);
            w.text(reason);
        }
        WriteResult::Refused { code, message } => {
            w.byte(4);
            w.text(code);
            w.text(message);
        }
        WriteResult::Retried { by } => {
            w.byte(5);
            w.text(by);
        }
        WriteResult::GivenUp { by } => {
            w.byte(6);
            w.text(by);
        }
    }
}

fn ruling(ruling: &Ruling, w: &mut Writer) {
    match ruling {
        Ruling::Policy { policy } => {
            w.byte(0);
            w.byte(tag(&POLICIES, policy));
        }
        Ruling::DeletePolicy { policy } => {
            w.byte(1);
            w.byte(tag(&DELETE_POLICIES, policy));
        }
        Ruling::LaterOfSameSide => w.byte(2),
        Ruling::InitialMerge => w.byte(3),
        Ruling::Owner { foreign_edit } => {
            w.byte(4);
            w.byte(tag(&FOREIGN_EDITS, foreign_edit));
        }
        Ruling::Parked => w.byte(5),
        Ruling::Agreed => w.byte(6),
        Ruling::Person { name } => {
            w.byte(7);
            w.text(name);
        }
    }
}

/// What an entry is, without what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// When it was recorded.
    pub recorded_at: i64,
    /// Its kind.
    pub kind: EntryKind,
    /// The record it is about; a notice is about none.
    pub record: Option<RecordId>,
}

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryKind {
    Change,
    Echo,
    Ticket,
    Outcome,
    Decision,
    Bind,
    Notice,
}

/// The kinds by their numbers.
const KINDS: [EntryKind; 7] = [
    EntryKind::Change,
    EntryKind::Echo,
    EntryKind::Ticket,
    EntryKind::Outcome,
    EntryKind::Decision,
    EntryKind::Bind,
    EntryKind::Notice,
];

/// Reads the beginning of an entry: for who goes through many, and wants to know of most only which record they are about.
pub fn outline(bytes: &[u8]) -> Result<Outline> {
    let r = &mut Reader::new(bytes);
    let version = r.byte()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let recorded_at = r.int()?;
    let kind = r.one_of("entry kind", &KINDS)?;
    let record = if kind == EntryKind::Notice {
        None
    } else {
        r.mapping()?;
        Some(r.record()?)
    };
    Ok(Outline { recorded_at, kind, record })
}

/// Reads one whole entry.
pub fn decode(bytes: &[u8]) -> Result<Entry> {
    let r = &mut Reader::new(bytes);
    let version = r.byte()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let recorded_at = r.int()?;
    let body = match r.byte()? {
        0 => Body::Change(decode_change(r)?),
        1 => Body::Echo(Echo {
            mapping: r.mapping()?,
            record: r.record()?,
            source: r.source()?,
            ticket: Offset(r.uint()?),
            key: r.key()?,
            salesforce_id: r.salesforce_id()?,
        }),
        2 => Body::Ticket(decode_ticket(r)?),
        3 => Body::Outcome(Outcome {
            mapping: r.mapping()?,
            record: r.record()?,
            side: r.one_of("side", &Side::BOTH)?,
            ticket: Offset(r.uint()?),
            result: decode_result(r)?,
        }),
        4 => Body::Decision(Decision {
            mapping: r.mapping()?,
            record: r.record()?,
            subject: r.option(Reader::field)?.map_or(Subject::Existence, Subject::Field),
            conflict: r.one_of("conflict", &CONFLICTS)?,
            about: Offset(r.uint()?),
            ruling: decode_ruling(r)?,
            winner: r.value()?,
            winner_dots: r.list(Reader::dot)?,
            loser: r.value()?,
            loser_dots: r.list(Reader::dot)?,
        }),
        5 => Body::Bind(Bind {
            mapping: r.mapping()?,
            record: r.record()?,
            key: r.key()?,
            salesforce_id: r.salesforce_id()?,
        }),
        6 => Body::Notice(
            serde_json::from_slice::<WireNotice>(r.bytes()?).map_err(|e| CodecError::Notice(e.to_string()))?.into(),
        ),
        b => return Err(CodecError::Unknown { what: "entry kind", value: u64::from(b) }),
    };
    if r.remaining() > 0 {
        return Err(CodecError::TooLong(r.remaining()));
    }
    Ok(Entry { recorded_at, body })
}

fn decode_change(r: &mut Reader<'_>) -> Result<Change> {
    let (mapping, record) = (r.mapping()?, r.record()?);
    let b = r.byte()?;
    let unknown = CodecError::Unknown { what: "operation", value: u64::from(b) };
    let (origin, operation) =
        ORIGINS.get(usize::from(b >> 4)).copied().zip(OPERATIONS.get(usize::from(b & 0xf)).copied()).ok_or(unknown)?;
    Ok(Change {
        mapping,
        record,
        origin,
        operation,
        source: r.source()?,
        key: r.key()?,
        salesforce_id: r.salesforce_id()?,
        dot: r.dot()?,
        vector: r.vector()?,
        fields: r.list(|r| Ok(FieldChange { field: r.field()?, before: r.value()?, after: r.value()? }))?,
    })
}

fn decode_ticket(r: &mut Reader<'_>) -> Result<Ticket> {
    let (mapping, record) = (r.mapping()?, r.record()?);
    let b = r.byte()?;
    let unknown = CodecError::Unknown { what: "write", value: u64::from(b) };
    let (side, write) =
        Side::BOTH.get(usize::from(b >> 4)).copied().zip(WRITES.get(usize::from(b & 0xf)).copied()).ok_or(unknown)?;
    Ok(Ticket {
        mapping,
        record,
        side,
        write,
        values: r.list(|r| Ok(TicketValue { field: r.field()?, value: r.value()?, dot: r.dot()? }))?,
        existence: r.dot()?,
        external_id: r.option(Reader::text)?,
        vector: r.vector()?,
        cursor: Offset(r.uint()?),
    })
}

fn decode_result(r: &mut Reader<'_>) -> Result<WriteResult> {
    Ok(match r.byte()? {
        0 => WriteResult::Done,
        1 => WriteResult::Silent,
        2 => WriteResult::Skipped,
        3 => WriteResult::Abandoned { reason: r.text()? },
        4 => WriteResult::Refused { code: r.text()?, message: r.text()? },
        5 => WriteResult::Retried { by: r.text()? },
        6 => WriteResult::GivenUp { by: r.text()? },
        b => return Err(CodecError::Unknown { what: "result", value: u64::from(b) }),
    })
}

fn decode_ruling(r: &mut Reader<'_>) -> Result<Ruling> {
    Ok(match r.byte()? {
        0 => Ruling::Policy { policy: r.one_of("policy", &POLICIES)? },
        1 => Ruling::DeletePolicy { policy: r.one_of("delete policy", &DELETE_POLICIES)? },
        2 => Ruling::LaterOfSameSide,
        3 => Ruling::InitialMerge,
        4 => Ruling::Owner { foreign_edit: r.one_of("foreign edit", &FOREIGN_EDITS)? },
        5 => Ruling::Parked,
        6 => Ruling::Agreed,
        7 => Ruling::Person { name: r.text()? },
        b => return Err(CodecError::Unknown { what: "ruling", value: u64::from(b) }),
    })
}

/// A notice as JSON. Externally tagged, unlike [`Notice`]'s own form for people's programs, so that the two may differ.
#[derive(serde::Serialize, serde::Deserialize)]
enum WireNotice {
    Configured(Box<Catalog>),
    StreamOpened { stream: StreamId, side: Side, identity: Str },
    StreamAt { side: Side, position: Position },
    ReplayAt { side: Side, cursor: Offset },
    Backfill { side: Side, mapping: MappingId, rows: u64, after: Str, finished: bool },
    ClockOffset { salesforce_ahead_us: i64 },
    Gap { side: Side, reason: Str, scope: Str },
    Reconcile { side: Side, mapping: MappingId, cause: Str, lost: Option<StreamId>, rewound_to: Option<Lsn> },
}

impl From<&Notice> for WireNotice {
    fn from(notice: &Notice) -> Self {
        match notice.clone() {
            Notice::Configured { catalog } => Self::Configured(catalog),
            Notice::StreamOpened { stream, side, identity } => Self::StreamOpened { stream, side, identity },
            Notice::StreamAt { side, position } => Self::StreamAt { side, position },
            Notice::ReplayAt { side, cursor } => Self::ReplayAt { side, cursor },
            Notice::Backfill { side, mapping, rows, after, finished } => {
                Self::Backfill { side, mapping, rows, after, finished }
            }
            Notice::ClockOffset { salesforce_ahead_us } => Self::ClockOffset { salesforce_ahead_us },
            Notice::Gap { side, reason, scope } => Self::Gap { side, reason, scope },
            Notice::Reconcile { side, mapping, cause, lost, rewound_to } => {
                Self::Reconcile { side, mapping, cause, lost, rewound_to }
            }
        }
    }
}

impl From<WireNotice> for Notice {
    fn from(notice: WireNotice) -> Self {
        match notice {
            WireNotice::Configured(catalog) => Self::Configured { catalog },
            WireNotice::StreamOpened { stream, side, identity } => Self::StreamOpened { stream, side, identity },
            WireNotice::StreamAt { side, position } => Self::StreamAt { side, position },
            WireNotice::ReplayAt { side, cursor } => Self::ReplayAt { side, cursor },
            WireNotice::Backfill { side, mapping, rows, after, finished } => {
                Self::Backfill { side, mapping, rows, after, finished }
            }
            WireNotice::ClockOffset { salesforce_ahead_us } => Self::ClockOffset { salesforce_ahead_us },
            WireNotice::Gap { side, reason, scope } => Self::Gap { side, reason, scope },
            WireNotice::Reconcile { side, mapping, cause, lost, rewound_to } => {
                Self::Reconcile { side, mapping, cause, lost, rewound_to }
            }
        }
    }
}
