//! What is mapped to what, under which rules: the part of the configuration that decisions depend on.
//!
//! The catalog in force is itself an entry of the log ([`super::Notice::Configured`]), so that the same log always gives the
//! same decisions, and so that names can be shown without the configuration file. Mapping and field ids are given once
//! and never reused.

use serde::{Deserialize, Serialize};

use super::{FieldId, MappingId, Side, Str};

/// How a conflict between unequal values ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Salesforce's value stands.
    SalesforceWins,
    /// PostgreSQL's value stands.
    PostgresWins,
    /// The later commit stands; within the tolerance, the system of record's.
    LastWriteWins,
    /// Neither is written until a person decides.
    Review,
}

impl Policy {
    /// The name in configuration and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SalesforceWins => "salesforce_wins",
            Self::PostgresWins => "postgres_wins",
            Self::LastWriteWins => "last_write_wins",
            Self::Review => "review",
        }
    }
}

/// What wins when a record is deleted on one side and edited, unseen, on the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeletePolicy {
    /// The delete stands; the unseen edits are its recorded losers.
    DeleteWins,
    /// The edit stands; the record is written again, whole, where it is missing.
    #[default]
    UpdateWins,
}

/// What a TRUNCATE of a mapping's table in PostgreSQL comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TruncatePolicy {
    /// Each record of the table is deleted, as by as many DELETEs.
    Propagate,
    /// The records stay, and their rows are written again.
    Ignore,
    /// The statement is refused; where it goes past the trigger that refuses it, capture stops there until a person has decided.
    /// The default: a statement that is often meant for one database alone would delete every record in the other, and no other
    /// way leaves both sides as they are.
    #[default]
    Stop,
}

impl TruncatePolicy {
    /// Whether it is the default.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
    pub(crate) fn is_stop(&self) -> bool {
        *self == Self::Stop
    }
}

/// What happens to an edit of a field by the side that does not own it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForeignEdit {
    /// The owner's value is written back.
    #[default]
    Revert,
    /// The edit stays where it was made until the owner changes the field, and goes nowhere.
    Ignore,
    /// The database refuses the statement where it can (a trigger on the mirror); what comes through all the same is reverted.
    Refuse,
}

/// Which values stand where both sides hold a record already when they are first joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialMerge {
    /// Salesforce's.
    #[default]
    Salesforce,
    /// PostgreSQL's.
    Postgres,
    /// Each difference waits for a person.
    Review,
}

/// What a field's canonical values look like. Normalisation of both sides' values follows from it alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FieldKind {
    /// The record's own Salesforce id, 18 characters.
    Id,
    /// Another record's Salesforce id, 18 characters.
    Reference {
        /// The sObjects it may point to.
        to: Vec<String>,
    },
    /// A parent named by its external id instead of its Salesforce id (`Account.External_ID__c`). Written to Salesforce only.
    Relationship {
        /// The relationship's name, for example `Account` or `Parent__r`.
        relationship: String,
        /// The parent's external id field.
        external_id: String,
    },
    /// Text: trimmed, empty is null.
    Text {
        /// The most characters Salesforce takes.
        length: u32,
    },
    /// One of a list of values, compared as text.
    Picklist,
    /// Several of a list of values, joined by `;` in the order given.
    MultiPicklist,
    /// True or false; null is false.
    Boolean,
    /// A whole number.
    Integer,
    /// A decimal number.
    Number {
        /// Digits after the point that Salesforce keeps; values are rounded half away from zero.
        scale: u8,
    },
    /// A day.
    Date,
    /// A moment, in whole seconds.
    DateTime,
    /// A time of day, in milliseconds.
    Time,
}

/// One mapped pair: an sObject field and a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDef {
    /// Its id in the log.
    pub id: FieldId,
    /// The sObject field's API name, or `Relationship.ExternalId` for [`FieldKind::Relationship`].
    pub name: String,
    /// The column's name.
    pub column: String,
    /// What its values look like.
    #[serde(flatten)]
    pub kind: FieldKind,
    /// How its conflicts end.
    pub policy: Policy,
    /// The only side whose edits count, if there is one.
    pub owner: Option<Side>,
    /// What happens to the other side's edits, if there is an owner.
    pub foreign_edit: ForeignEdit,
    /// Whether Salesforce takes it when a record is created.
    pub createable: bool,
    /// Whether Salesforce takes it when a record is updated.
    pub updateable: bool,
}

/// One sObject and one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingDef {
    /// Its id in the log.
    pub id: MappingId,
    /// Its name in configuration, the CLI and the log.
    pub name: String,
    /// The sObject's API name.
    pub sobject: String,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The primary key's columns, in key order.
    pub key_columns: Vec<String>,
    /// The mapped fields, by ascending id. A field that is no longer mapped is absent; its id is not given again.
    pub fields: Vec<FieldDef>,
    /// The lowest field id never given.
    pub next_field: FieldId,
    /// The only side whose edits count, if there is one: a read-only mapping's is Salesforce. Nothing is ever written there,
    /// and what the other side creates or deletes is undone. Its fields have the same owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Side>,
    /// The field that names a record in both sides before it has a Salesforce id.
    pub external_id: Option<FieldId>,
    /// What wins between a delete and an unseen edit.
    pub delete: DeletePolicy,
    /// What a TRUNCATE of the table comes to.
    #[serde(default, skip_serializing_if = "TruncatePolicy::is_stop")]
    pub truncate: TruncatePolicy,
    /// Which values stand when two populated sides are first joined.
    pub initial_merge: InitialMerge,
    /// Parents have lower ranks than their children.
    pub rank: u16,
}

impl MappingDef {
    /// The field with this id, if it is still mapped.
    pub fn field(&self, id: FieldId) -> Option<&FieldDef> {
        self.fields.binary_search_by_key(&id, |f| f.id).ok().and_then(|n| self.fields.get(n))
    }

    /// The field of this sObject field name, in any case.
    pub fn field_named(&self, name: &str) -> Option<&FieldDef> {
        self.fields.iter().find(|f| f.name.eq_ignore_ascii_case(name))
    }

    /// The field that holds the record's Salesforce id (the `sfid` column), if it is mapped.
    pub fn id_field(&self) -> Option<&FieldDef> {
        self.fields.iter().find(|f| f.kind == FieldKind::Id)
    }
}

/// Everything that decisions depend on besides the changes themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// The mappings, by ascending id.
    pub mappings: Vec<MappingDef>,
    /// The lowest mapping id never given.
    pub next_mapping: MappingId,
    /// Whose value stands where clocks cannot tell.
    pub system_of_record: Side,
    /// How far apart two commits must be for `last_write_wins` to go by time, in milliseconds.
    pub tolerance_ms: u32,
    /// What tells the external ids that this log makes from those of other logs that write to the same org.
    #[serde(default, skip_serializing_if = "Str::is_empty")]
    pub external_id_prefix: Str,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            mappings: Vec::new(),
            next_mapping: MappingId(0),
            system_of_record: Side::Salesforce,
            tolerance_ms: 2_000,
            external_id_prefix: Str::default(),
        }
    }
}

impl Catalog {
    /// The mapping with this id.
    pub fn mapping(&self, id: MappingId) -> Option<&MappingDef> {
        self.mappings.binary_search_by_key(&id, |m| m.id).ok().and_then(|n| self.mappings.get(n))
    }

    /// The mapping with this name.
    pub fn mapping_named(&self, name: &str) -> Option<&MappingDef> {
        self.mappings.iter().find(|m| m.name == name)
    }

    /// The mappings of `previous` that have got fields since: each with the first of them, as ids ascend.
    pub fn grown_since<'a>(&'a self, previous: &'a Self) -> impl Iterator<Item = (MappingId, FieldId)> + 'a {
        self.mappings.iter().filter_map(|mapping| {
            let known = previous.mapping(mapping.id)?;
            (known.next_field < mapping.next_field).then_some((mapping.id, known.next_field))
        })
    }

    /// A field's API name for people, or its number if it is no longer mapped.
    pub fn field_name(&self, mapping: MappingId, field: FieldId) -> Str {
        let known = self.mapping(mapping).and_then(|m| m.field(field));
        known.map_or_else(|| smol_str::format_smolstr!("field {}", field.0), |f| Str::new(&f.name))
    }
}
