//! One configured field and what the org says of it, made into a [`FieldDef`].

use super::describe::{SobjectDescription, SobjectField};
use super::finding::Finding;
use crate::change::{FieldDef, FieldId, FieldKind, ForeignEdit, Policy, Side};
use crate::config::{Access, FieldConfig, suggest};

/// Fields that Salesforce alone fills in, whatever the describe call says.
const SYSTEM_FIELDS: [&str; 8] = [
    "Id",
    "IsDeleted",
    "CreatedDate",
    "CreatedById",
    "LastModifiedDate",
    "LastModifiedById",
    "SystemModstamp",
    "LastActivityDate",
];

/// What the fields of one mapping are resolved against.
pub(super) struct Resolver<'a> {
    /// The mapping's name.
    pub(super) mapping: &'a str,
    /// The mapping's sObject.
    pub(super) sobject: &'a SobjectDescription,
    /// All sObjects that are described.
    pub(super) sobjects: &'a [SobjectDescription],
    /// Which way edits go.
    pub(super) access: Access,
    /// How conflicts end where a field says nothing.
    pub(super) policy: Policy,
}

impl Resolver<'_> {
    /// The field, with an id still to be given.
    pub(super) fn field(&self, config: &FieldConfig, findings: &mut Vec<Finding>) -> Option<FieldDef> {
        let subject = format!("{}.{}", self.mapping, config.name);
        let resolved = match config.name.split_once('.') {
            Some((relationship, external_id)) => {
                self.relationship(config, &subject, relationship, external_id, findings)
            }
            None => self.plain(config, &subject, findings),
        };
        resolved.map_err(|finding| findings.push(finding)).ok()
    }

    fn plain(&self, config: &FieldConfig, subject: &str, findings: &mut Vec<Finding>) -> Result<FieldDef, Finding> {
        let Some(field) = self.sobject.field(&config.name) else { return Err(self.unknown(&config.name, subject)) };
        let parts: Vec<&str> = self.sobject.parts_of(&field.name).map(|f| f.name.as_str()).collect();
        let is_compound = !parts.is_empty() && !field.createable && !field.updateable;
        let kind = match &field.kind {
            Some(kind) if !is_compound => kind.clone(),
            _ if !parts.is_empty() => {
                return Err(Finding::error(
                    subject,
                    format!("{} is a compound field and has no value of its own", field.name),
                    format!("map its parts: {}", parts.join(", ")),
                ));
            }
            _ => {
                return Err(Finding::error(
                    subject,
                    format!("fields of type {} cannot be mapped", field.sf_type),
                    "leave the field out",
                ));
            }
        };
        let is_system = kind == FieldKind::Id || SYSTEM_FIELDS.iter().any(|s| s.eq_ignore_ascii_case(&field.name));
        let is_fixed = is_system || field.calculated || field.auto_number || !(field.createable || field.updateable);
        let (createable, updateable) = if is_fixed { (false, false) } else { (field.createable, field.updateable) };
        if config.owner == Some(Side::Postgres) && is_fixed {
            return Err(Finding::error(
                subject,
                format!(
                    "{} cannot be written in Salesforce ({}), so PostgreSQL cannot own it",
                    field.name,
                    why(field, is_system)
                ),
                "leave out owner = \"postgres\"",
            ));
        }
        if is_fixed && config.policy.is_some_and(|p| p != Policy::SalesforceWins) {
            findings.push(Finding::warning(
                subject,
                format!(
                    "{} cannot be written in Salesforce ({}), so its policy has no effect",
                    field.name,
                    why(field, is_system)
                ),
                "leave out `policy`",
            ));
        }
        let owner = if is_fixed || self.access == Access::ReadOnly { Some(Side::Salesforce) } else { config.owner };
        Ok(FieldDef {
            id: FieldId(0),
            name: field.name.clone(),
            column: config.column_name(),
            kind,
            policy: config.policy.unwrap_or(self.policy),
            owner,
            foreign_edit: config.foreign_edit.unwrap_or(ForeignEdit::Revert),
            createable,
            updateable,
        })
    }

    fn relationship(
        &self,
        config: &FieldConfig,
        subject: &str,
        relationship: &str,
        external_id: &str,
        findings: &mut Vec<Finding>,
    ) -> Result<FieldDef, Finding> {
        let Some(reference) = self.sobject.relationship(relationship) else {
            let names = self.sobject.fields.iter().filter_map(|f| f.relationship_name.as_deref());
            return Err(Finding::error(
                subject,
                format!("{} has no relationship {relationship}", self.sobject.name),
                did_you_mean(relationship, names, "see the relationship names of its lookup fields"),
            ));
        };
        let name = reference.relationship_name.clone().unwrap_or_default();
        let [parent] = reference.reference_to.as_slice() else {
            return Err(Finding::error(
                subject,
                format!(
                    "{name} may point to several sObjects ({}), so an external id does not name the parent",
                    reference.reference_to.join(", ")
                ),
                format!("map {} instead", reference.name),
            ));
        };
        if !reference.createable && !reference.updateable {
            return Err(Finding::error(
                subject,
                format!("{} cannot be written in Salesforce", reference.name),
                format!("map {} instead, which is then read only", reference.name),
            ));
        }
        let external_id = match self.sobjects.iter().find(|s| s.name.eq_ignore_ascii_case(parent)) {
            None => {
                findings.push(Finding::warning(
                    subject,
                    format!("{parent} is not described, so {external_id} was not checked"),
                    format!("map {parent} too, or give the user access to it"),
                ));
                external_id.to_owned()
            }
            Some(parent) => match parent.field(external_id) {
                Some(field) if field.external_id || field.id_lookup => field.name.clone(),
                Some(field) => {
                    return Err(Finding::error(
                        subject,
                        format!("{}.{} is not an external id", parent.name, field.name),
                        "tick External ID and Unique at the field in Salesforce, or name another field",
                    ));
                }
                None => {
                    let names = parent.fields.iter().filter(|f| f.external_id).map(|f| f.name.as_str());
                    return Err(Finding::error(
                        subject,
                        format!("{} has no field {external_id}", parent.name),
                        did_you_mean(external_id, names, "name an external id field of the parent"),
                    ));
                }
            },
        };
        Ok(FieldDef {
            id: FieldId(0),
            name: format!("{name}.{external_id}"),
            column: config.column_name(),
            kind: FieldKind::Relationship { relationship: name, external_id },
            policy: config.policy.unwrap_or(Policy::PostgresWins),
            owner: Some(Side::Postgres),
            foreign_edit: config.foreign_edit.unwrap_or(ForeignEdit::Ignore),
            createable: reference.createable,
            updateable: reference.updateable,
        })
    }

    fn unknown(&self, name: &str, subject: &str) -> Finding {
        if let Some(reference) = self.sobject.relationship(name) {
            return Finding::error(
                subject,
                format!("{name} is a relationship, not a field"),
                format!("map {}, or {name} with the parent's external id ({name}.External_ID__c)", reference.name),
            );
        }
        let names = self.sobject.fields.iter().map(|f| f.name.as_str());
        Finding::error(
            subject,
            format!("{} has no field {name} that the connected user can see", self.sobject.name),
            did_you_mean(name, names, "check the name, and the user's field-level security"),
        )
    }
}

fn why(field: &SobjectField, is_system: bool) -> &'static str {
    if field.calculated {
        "it is calculated"
    } else if field.auto_number {
        "it is numbered automatically"
    } else if is_system {
        "it is a system field"
    } else {
        "the connected user may not write it"
    }
}

/// The question, or other advice if nothing is near.
pub(super) fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    match suggest::nearest(name, names) {
        Some(meant) => format!("did you mean {meant}?"),
        None => otherwise.to_owned(),
    }
}
