//! What a side has, in neutral words: sObjects and their fields, tables and their columns.
//!
//! The sides fill these in from their own catalogs (a describe call, `pg_catalog`); checking and compiling a
//! configuration needs nothing else of a side.

use serde::{Deserialize, Serialize};

use crate::change::FieldKind;

/// One sObject, as the org describes it to the connected user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SobjectDescription {
    /// The API name, for example `Contact` or `Invoice__c`.
    pub name: String,
    /// The label that users see.
    pub label: String,
    /// The three characters that its ids begin with, if it has any.
    pub key_prefix: Option<String>,
    /// Whether the user may create records.
    pub createable: bool,
    /// Whether the user may update records.
    pub updateable: bool,
    /// Whether the user may delete records.
    pub deletable: bool,
    /// Whether deleted records can be restored.
    pub undeletable: bool,
    /// Whether it can be queried.
    pub queryable: bool,
    /// The fields that the user can see, in the org's order.
    pub fields: Vec<SobjectField>,
}

impl SobjectDescription {
    /// The field of this API name, in any case.
    pub fn field(&self, name: &str) -> Option<&SobjectField> {
        self.fields.iter().find(|f| f.name.eq_ignore_ascii_case(name))
    }

    /// The reference field of this relationship name (`Account`, `Parent__r`), in any case.
    pub fn relationship(&self, name: &str) -> Option<&SobjectField> {
        self.fields.iter().find(|f| f.relationship_name.as_deref().is_some_and(|r| r.eq_ignore_ascii_case(name)))
    }

    /// The parts of the compound field of this name, in the org's order.
    pub fn parts_of<'a>(&'a self, compound: &'a str) -> impl Iterator<Item = &'a SobjectField> {
        self.fields.iter().filter(move |f| {
            f.compound.as_deref().is_some_and(|c| c.eq_ignore_ascii_case(compound))
                && !f.name.eq_ignore_ascii_case(compound)
        })
    }
}

/// One field of an sObject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SobjectField {
    /// The API name.
    pub name: String,
    /// What its values look like; none if its type cannot be mapped (see [`field_kind`]).
    pub kind: Option<FieldKind>,
    /// The label that users see.
    pub label: String,
    /// The type as Salesforce names it, for example `currency`.
    pub sf_type: String,
    /// The most characters it holds (texts), else 0.
    pub length: u32,
    /// The most digits it holds (numbers), else 0.
    pub precision: u32,
    /// Digits after the point (numbers), else 0.
    pub scale: u32,
    /// Whether the user may set it when a record is created.
    pub createable: bool,
    /// Whether the user may change it afterwards.
    pub updateable: bool,
    /// Whether it may be empty.
    pub nillable: bool,
    /// Whether Salesforce fills it in when a record is created without it.
    pub defaulted_on_create: bool,
    /// Whether it is an external id.
    pub external_id: bool,
    /// Whether no two records may hold the same value.
    pub unique: bool,
    /// Whether it is a formula or roll-up.
    pub calculated: bool,
    /// Whether Salesforce numbers it.
    pub auto_number: bool,
    /// The compound field that it is a part of (`BillingAddress`, `Name`), if any.
    pub compound: Option<String>,
    /// The sObjects that it may point to (references), else empty.
    pub reference_to: Vec<String>,
    /// The relationship's name (references), for example `Account` or `Parent__r`.
    pub relationship_name: Option<String>,
    /// Whether only listed picklist values are taken.
    pub restricted_picklist: bool,
    /// The active picklist values, in the org's order.
    pub picklist: Vec<String>,
    /// Whether a record can be found by it in an upsert.
    pub id_lookup: bool,
}

/// What the canonical values of a Salesforce field type look like, or none if the type cannot be mapped: compound
/// fields
/// (their parts can be), base64 content, and types without a value of their own.
pub fn field_kind(sf_type: &str, length: u32, scale: u32, reference_to: &[String]) -> Option<FieldKind> {
    Some(match sf_type {
        "id" => FieldKind::Id,
        "reference" => FieldKind::Reference { to: reference_to.to_vec() },
        "string" | "textarea" | "email" | "phone" | "url" | "encryptedstring" | "combobox" => {
            FieldKind::Text { length }
        }
        "picklist" => FieldKind::Picklist,
        "multipicklist" => FieldKind::MultiPicklist,
        "boolean" => FieldKind::Boolean,
        "int" | "long" => FieldKind::Integer,
        "double" | "currency" | "percent" => FieldKind::Number { scale: u8::try_from(scale).unwrap_or(u8::MAX) },
        "date" => FieldKind::Date,
        "datetime" => FieldKind::DateTime,
        "time" => FieldKind::Time,
        _ => return None,
    })
}

/// One table, as the database describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDescription {
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The primary key's columns, in key order; empty if there is no primary key.
    pub key_columns: Vec<String>,
    /// The columns, in the table's order.
    pub columns: Vec<ColumnDescription>,
    /// `pg_class.relreplident`: `d`efault, `n`othing, `f`ull or `i`ndex.
    pub replica_identity: char,
}

impl TableDescription {
    /// The column of exactly this name.
    pub fn column(&self, name: &str) -> Option<&ColumnDescription> {
        self.columns.iter().find(|c| c.name == name)
    }
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDescription {
    /// The name.
    pub name: String,
    /// The type's oid; for a domain, the oid of its base type.
    pub type_oid: u32,
    /// The type as `format_type` prints it, for example `character varying(80)`.
    pub type_name: String,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether the database computes it (`GENERATED ALWAYS AS`), so that it cannot be written.
    pub generated: bool,
    /// Whether the type is a domain over the one that is named here.
    #[serde(default)]
    pub domain: bool,
    /// The values of an enum, in its order; empty for any other type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}
