//! The items of the change log.
//!
//! An entry is immutable. Its offset is its key in the log and is not repeated in it.

use serde::Serialize;

use super::catalog::{ForeignEdit, Policy};
use super::{
    Catalog, Dot, FieldId, Key, Lsn, MappingId, Offset, Position, RecordId, Side, Str, StreamId, Value, Vector,
};
use crate::clock::Micros;

/// One item of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When the log took it, by the machine's clock made non-decreasing along the log, in microseconds since the Unix epoch.
    pub recorded_at: Micros,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// What a side's users did to a record.
    Change(Change),
    /// A write of ours, seen again in the side's own stream.
    Echo(Echo),
    /// A write that is about to be made. It is durable before the write is sent.
    Ticket(Ticket),
    /// How a write ended.
    Outcome(Outcome),
    /// How a conflict ended, or that it waits for a person.
    Decision(Decision),
    /// A record's identity became known outside a change.
    Bind(Bind),
    /// Something about the link as a whole.
    Notice(Notice),
}

/// Where a change or echo comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// The side.
    pub side: Side,
    /// Its place in the side's stream.
    pub position: Position,
    /// The side's transaction.
    pub transaction: Transaction,
    /// When the side committed it, by the side's clock, in microseconds since the Unix epoch.
    pub committed_at: Micros,
    /// Who did it.
    pub who: Who,
}

/// A place in a side's transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Transaction {
    /// The side's own name for it: a PostgreSQL transaction id, a Salesforce transaction key.
    pub id: Str,
    /// The place in the transaction as the side numbers it.
    pub index: u32,
    /// Whether it is known to be the transaction's last. Salesforce does not tell.
    pub last: bool,
}

/// Who made a change, as far as the side tells. Unknown parts are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Who {
    /// The person or user id: Salesforce's commit user, or the actor that an application named.
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub user: Str,
    /// The database role.
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub role: Str,
    /// The application: `application_name`, or Salesforce's change origin.
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub application: Str,
}

/// How a change came to be in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOrigin {
    /// From the side's stream, made by its users.
    Captured,
    /// From the side's stream, made by its own automation on top of a write of ours.
    Automation,
    /// Read from the side's rows when the sides were joined.
    Backfill,
    /// Read from the side's rows because the stream could not tell (a gap, an overflow, a lost stream).
    Repair,
    /// Read from the side's rows after the side itself had gone back to an earlier moment (a restored backup, a standby that
    /// was behind): what it held then, and nobody's edit.
    Rewound,
}

/// What was done to the record as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// It was created.
    Insert,
    /// Fields were changed.
    Update,
    /// It was deleted.
    Delete,
    /// It was restored.
    Undelete,
}

/// One field of a change: the side's value before, as the log knows it, and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Which field.
    pub field: FieldId,
    /// What the side held.
    pub before: Value,
    /// What the side holds now.
    pub after: Value,
}

/// What a side's users did to a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// How it came to be known.
    pub origin: ChangeOrigin,
    /// Where it comes from.
    pub source: Source,
    /// What was done to the record as a whole.
    pub operation: Operation,
    /// The primary key, if this entry binds it to the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// The Salesforce id, if this entry binds it to the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salesforce_id: Option<Str>,
    /// The change's own name.
    pub dot: Dot,
    /// What its author had seen, this change included.
    pub vector: Vector,
    /// The fields whose value at the side changed, by ascending id.
    pub fields: Vec<FieldChange>,
}

/// A write of ours, seen again in the side's own stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Echo {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// Where it comes from.
    pub source: Source,
    /// The write.
    pub ticket: Offset,
    /// The primary key, if this entry binds it to the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// The Salesforce id, if this entry binds it to the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salesforce_id: Option<Str>,
}

/// What a write does to the record at its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteKind {
    /// Makes it exist, with all its values.
    Create,
    /// Sets the values that differ.
    Update,
    /// Deletes it.
    Delete,
}

/// One value that a ticket carries, and the change it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TicketValue {
    /// Which field.
    pub field: FieldId,
    /// The value to write.
    pub value: Value,
    /// The change that the value comes from.
    pub dot: Dot,
}

/// A write that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ticket {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// The side that is written to.
    pub side: Side,
    /// What the write does.
    pub write: WriteKind,
    /// The values, by ascending field id.
    pub values: Vec<TicketValue>,
    /// The change that the record's existence comes from, for a create or delete.
    pub existence: Dot,
    /// The external id by which Salesforce is to match the record, for a create there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<Str>,
    /// Everything that the write includes.
    pub vector: Vector,
    /// How far replay to the side had read the log: everything before it needs no look again after a restart.
    pub cursor: Offset,
}

/// How a write ended, as far as the response tells; the stream's word is an [`Echo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// The side that was written to.
    pub side: Side,
    /// The write.
    pub ticket: Offset,
    /// How it ended.
    #[serde(flatten)]
    pub result: WriteResult,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum WriteResult {
    /// The side acknowledged it; its echo is still to come.
    Done,
    /// The side acknowledged it, and its stream has passed that time without an echo: every value was there already, or the
    /// stream could not tell and the record was read, which the next entry tells where that brought news.
    Silent,
    /// The side held something else than the log believes, so nothing was written; the edit it holds decides again.
    Skipped,
    /// It never took effect, and it will be planned anew.
    Abandoned {
        /// Why.
        reason: Str,
    },
    /// The side refuses it for a reason that retrying does not mend: a dead letter.
    Refused {
        /// The side's error code (an SQLSTATE, a Salesforce status code).
        code: Str,
        /// The side's message.
        message: Str,
    },
    /// A person had the dead letter tried again.
    Retried {
        /// Who.
        by: Str,
    },
    /// A person discarded the dead letter: the side keeps what it holds until the record's value changes again.
    GivenUp {
        /// Who.
        by: Str,
    },
}

/// What a conflict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A field.
    Field(FieldId),
    /// Whether the record exists.
    Existence,
}

/// What kind of conflict it is, by PostgreSQL's names where they fit (documentation, "Conflicts" of logical replication).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictKind {
    /// Both sides created the record.
    InsertExists,
    /// Both sides changed the field.
    UpdateOriginDiffers,
    /// One side changed what the other had deleted.
    UpdateDeleted,
    /// One side deleted what the other had changed.
    DeleteOriginDiffers,
    /// Both sides changed the record's existence.
    DeleteMissing,
    /// The field belongs to the other side.
    ForeignEdit,
    /// The two sides differed when they were joined.
    InitialMerge,
}

impl ConflictKind {
    /// The name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateDeleted => "update_deleted",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::DeleteMissing => "delete_missing",
            Self::ForeignEdit => "foreign_edit",
            Self::InitialMerge => "initial_merge",
        }
    }
}

/// Who or what decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Ruling {
    /// The field's policy.
    Policy {
        /// Which.
        policy: Policy,
    },
    /// The mapping's rule for deletes against unseen edits.
    DeletePolicy {
        /// Which.
        policy: super::catalog::DeletePolicy,
    },
    /// Both edits are of one side, so its later one stands.
    LaterOfSameSide,
    /// The rule for joining two populated sides.
    InitialMerge,
    /// The owner of the field, or of the mapping.
    Owner {
        /// What is done about the foreign edit.
        foreign_edit: ForeignEdit,
    },
    /// Nobody yet: the subject is parked until a person decides.
    Parked,
    /// Both came to the same value, so there is nothing left to decide.
    Agreed,
    /// A person.
    Person {
        /// Who.
        name: Str,
    },
}

/// How a conflict ended, or that it waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// What it is about.
    pub subject: Subject,
    /// What kind of conflict it is.
    pub conflict: ConflictKind,
    /// The entry that met the conflict; for a later ruling on a parked one, the decision that parked it.
    pub about: Offset,
    /// Who or what decided.
    pub ruling: Ruling,
    /// The value that stands (while parked: the one that stood before).
    pub winner: Value,
    /// The changes that carry it.
    pub winner_dots: Vec<Dot>,
    /// The value that does not (while parked: the challenger).
    pub loser: Value,
    /// The changes that carried it.
    pub loser_dots: Vec<Dot>,
}

/// A record's identity became known outside a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bind {
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// The primary key, if it became known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// The Salesforce id, if it became known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salesforce_id: Option<Str>,
}

/// Something about the link as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// From here on these mappings and rules are in force.
    Configured {
        /// All of them.
        catalog: Box<Catalog>,
    },
    /// A side's stream is read for the first time.
    StreamOpened {
        /// The number that positions carry.
        stream: StreamId,
        /// The side.
        side: Side,
        /// What makes it that stream: database system and slot, or org and topic.
        identity: Str,
    },
    /// A side's stream has been read up to here, without changes of ours to show for it.
    StreamAt {
        /// The side.
        side: Side,
        /// The place.
        position: Position,
    },
    /// Replay to a side has read the log up to here, without writes to show for it.
    ReplayAt {
        /// The side.
        side: Side,
        /// The first offset not yet read.
        cursor: Offset,
    },
    /// How far copying what was there before has come.
    Backfill {
        /// The side that is copied from.
        side: Side,
        /// The mapping.
        mapping: MappingId,
        /// Rows and records read so far.
        rows: u64,
        /// Everything up to this key or id is done.
        after: Str,
        /// Whether it is complete.
        finished: bool,
    },
    /// How far Salesforce's clock is ahead of PostgreSQL's, as measured.
    ClockOffset {
        /// Microseconds; negative when behind.
        salesforce_ahead_us: i64,
    },
    /// A mapping's rows at a side are compared with the log from here on; until that is done, nothing is written there.
    Reconcile {
        /// The side.
        side: Side,
        /// The mapping.
        mapping: MappingId,
        /// Why.
        cause: Str,
        /// The stream that was lost, where that is why.
        lost: Option<StreamId>,
        /// Where the side has gone back: of what its stream has told after this place, nobody knows whether the side has it.
        rewound_to: Option<Lsn>,
    },
    /// The stream could not tell everything; what it names is read again.
    Gap {
        /// The side.
        side: Side,
        /// Why, in the side's words.
        reason: Str,
        /// What is read again: record ids, or an object's name.
        scope: Str,
    },
}
