//! An org and a table for tests.

use super::describe::{ColumnDescription, SobjectDescription, SobjectField, TableDescription, field_kind};

/// A writable field.
pub(super) fn field(name: &str, sf_type: &str) -> SobjectField {
    let length = if matches!(sf_type, "string" | "email" | "phone") { 80 } else { 0 };
    SobjectField {
        name: name.to_owned(),
        kind: field_kind(sf_type, length, 2, &[]),
        sf_type: sf_type.to_owned(),
        length,
        precision: 18,
        scale: 2,
        createable: true,
        updateable: true,
        nillable: true,
        ..SobjectField::default()
    }
}

/// A field that Salesforce alone fills in.
pub(super) fn fixed(name: &str, sf_type: &str) -> SobjectField {
    SobjectField { createable: false, updateable: false, ..field(name, sf_type) }
}

/// A lookup.
pub(super) fn reference(name: &str, relationship: &str, to: &[&str]) -> SobjectField {
    let to: Vec<String> = to.iter().map(|t| (*t).to_owned()).collect();
    SobjectField {
        kind: field_kind("reference", 18, 0, &to),
        reference_to: to,
        relationship_name: Some(relationship.to_owned()),
        ..field(name, "reference")
    }
}

/// A unique external id.
pub(super) fn external_id(name: &str) -> SobjectField {
    SobjectField { external_id: true, unique: true, id_lookup: true, ..field(name, "string") }
}

fn part(name: &str, compound: &str) -> SobjectField {
    SobjectField { compound: Some(compound.to_owned()), ..field(name, "string") }
}

/// A writable sObject with the system fields and these.
pub(super) fn sobject(name: &str, fields: Vec<SobjectField>) -> SobjectDescription {
    let mut all = vec![
        fixed("Id", "id"),
        fixed("IsDeleted", "boolean"),
        fixed("CreatedDate", "datetime"),
        fixed("SystemModstamp", "datetime"),
    ];
    all.extend(fields);
    SobjectDescription {
        name: name.to_owned(),
        createable: true,
        updateable: true,
        deletable: true,
        undeletable: true,
        queryable: true,
        fields: all,
        ..SobjectDescription::default()
    }
}

/// Account and Contact, with something of everything.
pub(super) fn org() -> Vec<SobjectDescription> {
    let name = SobjectField { nillable: false, ..field("Name", "string") };
    vec![
        sobject(
            "Contact",
            vec![
                SobjectField { compound: Some("Name".to_owned()), ..fixed("Name", "string") },
                part("FirstName", "Name"),
                SobjectField { nillable: false, ..part("LastName", "Name") },
                field("Phone", "phone"),
                field("Email", "email"),
                field("Points__c", "double"),
                field("Tags__c", "multipicklist"),
                field("Photo__c", "base64"),
                fixed("Full__c", "string"),
                SobjectField { calculated: true, ..field("Score__c", "double") },
                reference("AccountId", "Account", &["Account"]),
                reference("OwnerId", "Owner", &["User", "Group"]),
                external_id("External_ID__c"),
                SobjectField { unique: false, ..external_id("Loose__c") },
            ],
        ),
        sobject(
            "Account",
            vec![
                name,
                reference("ParentId", "Parent", &["Account"]),
                field("AnnualRevenue", "currency"),
                external_id("External_ID__c"),
                SobjectField { kind: None, ..fixed("BillingAddress", "address") },
                part("BillingCity", "BillingAddress"),
            ],
        ),
    ]
}

/// A table in the schema `salesforce` with a primary key `id`.
pub(super) fn table(name: &str, columns: &[(&str, u32, &str)]) -> TableDescription {
    TableDescription {
        schema: "salesforce".to_owned(),
        table: name.to_owned(),
        key_columns: vec!["id".to_owned()],
        columns: columns
            .iter()
            .map(|(name, type_oid, type_name)| ColumnDescription {
                name: (*name).to_owned(),
                type_oid: *type_oid,
                type_name: (*type_name).to_owned(),
                nullable: true,
                generated: false,
                domain: false,
                labels: Vec::new(),
            })
            .collect(),
        replica_identity: 'd',
    }
}
