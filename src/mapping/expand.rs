//! The fields that a mapping's list stands for, by what the org and the tables have now.
//!
//! `"*"` becomes every field that can be mapped. A field that the org had when it was mapped, and has no more, is left out:
//! its column keeps what it holds.

use super::describe::{SobjectDescription, SobjectField, TableDescription};
use super::finding::Finding;
use super::mirror::SYSTEM_COLUMNS;
use crate::change::{Catalog, FieldKind};
use crate::config::{EVERY_FIELD, FieldConfig, MappingConfig, default_column};

/// Fields that hold when the connected user has last looked at a record, and so are no part of it.
const OF_THE_VIEWER: [&str; 2] = ["LastViewedDate", "LastReferencedDate"];

/// Which of the fields that `"*"` stands for are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All: what a database is to have.
    Wanted,
    /// Those that a table has a column for, where there is a table: what can be kept in step.
    Present,
}

/// The mappings with their fields listed one by one; and a finding for each that the org no longer has.
///
/// `previous` is the catalog in force: what it does not know was never there, and is left to be refused.
pub fn expand(
    mappings: &[MappingConfig],
    schema: &str,
    sobjects: &[SobjectDescription],
    tables: &[TableDescription],
    previous: Option<&Catalog>,
    scope: Scope,
) -> (Vec<MappingConfig>, Vec<Finding>) {
    let mut findings = Vec::new();
    let expanded = mappings.iter().map(|config| {
        let mut config = config.clone();
        let Some(sobject) = sobjects.iter().find(|s| s.name.eq_ignore_ascii_case(&config.sobject)) else {
            return config;
        };
        let table = tables.iter().find(|t| t.schema == schema && t.table == config.table);
        findings.extend(leave_out_removed(&mut config, sobject, table, previous));
        if config.has_every_field() {
            config.fields = every_field(&config, sobject, table.filter(|_| scope == Scope::Present));
        }
        config
    });
    (expanded.collect(), findings)
}

fn leave_out_removed(
    config: &mut MappingConfig,
    sobject: &SobjectDescription,
    table: Option<&TableDescription>,
    previous: Option<&Catalog>,
) -> Vec<Finding> {
    let (Some(table), Some(_)) = (table, previous.and_then(|p| p.mapping_named(&config.name))) else {
        return Vec::new();
    };
    let is_external_id = |name: &str| config.external_id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(name));
    let is_removed = |field: &FieldConfig| {
        let gone = if let Some((relationship, _)) = field.name.split_once('.') {
            sobject.relationship(relationship).is_none()
        } else {
            let names_relationship = sobject.relationship(&field.name).is_some();
            field.name != EVERY_FIELD && sobject.field(&field.name).is_none() && !names_relationship
        };
        gone && table.column(&field.column_name()).is_some() && !is_external_id(&field.name)
    };
    let (removed, kept): (Vec<_>, Vec<_>) = config.fields.iter().cloned().partition(is_removed);
    config.fields = kept;
    let told = removed.iter().map(|field| {
        Finding::warning(
            format!("{}.{}", config.name, field.name),
            format!(
                "{} has no field {} any more that the connected user can see; the column {} keeps what it holds, and edits of \
                 it go nowhere",
                sobject.name,
                field.name,
                field.column_name()
            ),
            "give the user access to the field, or take it out of `fields`",
        )
    });
    told.collect()
}

fn every_field(
    config: &MappingConfig,
    sobject: &SobjectDescription,
    table: Option<&TableDescription>,
) -> Vec<FieldConfig> {
    let mut fields: Vec<FieldConfig> = config.fields.iter().filter(|f| f.name != EVERY_FIELD).cloned().collect();
    for field in &sobject.fields {
        let column = default_column(&field.name);
        let is_free = fields.iter().all(|f| f.column_name() != column && !f.name.eq_ignore_ascii_case(&field.name))
            && SYSTEM_COLUMNS.iter().all(|(name, _)| *name != column);
        let is_excluded = config.exclude.iter().any(|name| name.eq_ignore_ascii_case(&field.name));
        let has_column = table.is_none_or(|t| t.column(&column).is_some_and(|c| !c.generated));
        if is_free && !is_excluded && has_column && is_mappable(field, sobject) {
            fields.push(FieldConfig::named(&field.name));
        }
    }
    fields
}

/// Whether a field has a value of its own that is part of the record.
fn is_mappable(field: &SobjectField, sobject: &SobjectDescription) -> bool {
    let is_compound = !field.createable && !field.updateable && sobject.parts_of(&field.name).next().is_some();
    field.kind.as_ref().is_some_and(|kind| *kind != FieldKind::Id)
        && !is_compound
        && !OF_THE_VIEWER.iter().any(|name| name.eq_ignore_ascii_case(&field.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::compile::compile;
    use super::super::fixtures::{field, fixed, org, table};
    use super::*;
    use crate::config::Config;

    fn config(fields: &str) -> Config {
        let text = format!(
            "[link]\nname = \"main\"\n[postgres]\nurl = \"postgresql://u@h/d\"\n[salesforce]\n\
             login_url = \"https://x.my.salesforce.com\"\nclient_id = \"i\"\nclient_secret_env = \"S\"\n\
             [[mapping]]\nsobject = \"Contact\"\nexternal_id = \"External_ID__c\"\n{fields}\n"
        );
        Config::parse(&text, "t").unwrap()
    }

    fn names(mappings: &[MappingConfig]) -> Vec<&str> {
        mappings[0].fields.iter().map(|f| f.name.as_str()).collect()
    }

    fn expanded(
        config: &Config,
        org: &[SobjectDescription],
        tables: &[TableDescription],
        previous: Option<&Catalog>,
        scope: Scope,
    ) -> (Vec<MappingConfig>, Vec<Finding>) {
        expand(&config.mappings, "salesforce", org, tables, previous, scope)
    }

    #[test]
    fn a_star_is_every_field_that_can_be_mapped() {
        let mut org = org();
        org[0].fields.push(fixed("LastViewedDate", "datetime"));
        let config = config("fields = [{ name = \"Phone\", column = \"telephone\" }, \"*\"]\nexclude = [\"email\"]");
        let (wanted, findings) = expanded(&config, &org, &[], None, Scope::Wanted);
        assert!(findings.is_empty());
        assert_eq!(
            names(&wanted),
            [
                "Phone",
                "IsDeleted",
                "CreatedDate",
                "SystemModstamp",
                "FirstName",
                "LastName",
                "Points__c",
                "Tags__c",
                "Full__c",
                "Score__c",
                "AccountId",
                "OwnerId",
                "External_ID__c",
                "Loose__c"
            ]
        );
        assert!(compile(&wanted, &config.defaults(), &org, &[], None).is_ok());
        let there = table("contact", &[("telephone", 1043, "character varying(80)"), ("lastname", 25, "text")]);
        let (present, _) = expanded(&config, &org, std::slice::from_ref(&there), None, Scope::Present);
        assert_eq!(names(&present), ["Phone", "LastName"]);
        let (present, _) = expanded(&config, &org, &[], None, Scope::Present);
        assert_eq!(present, wanted, "the table is still to be made");
    }

    #[test]
    fn what_was_mapped_and_is_gone_is_left_out_and_told() {
        let config = config("fields = [\"LastName\", \"Email\", \"Owner.Name\", \"External_ID__c\"]");
        let mut org = org();
        let columns = ["lastname", "email", "external_id__c", "owner__name"].map(|name| (name, 1043, "text"));
        let there = table("contact", &columns);
        let previous = Catalog {
            mappings: compile(
                &self::config("fields = [\"External_ID__c\"]").mappings,
                &config.defaults(),
                &org,
                &[],
                None,
            )
            .unwrap()
            .mappings,
            ..Catalog::default()
        };
        org[0].fields.retain(|f| !["Email", "OwnerId", "External_ID__c"].contains(&f.name.as_str()));
        let tables = std::slice::from_ref(&there);
        let (left, findings) = expanded(&config, &org, tables, Some(&previous), Scope::Present);
        assert_eq!(names(&left), ["LastName", "External_ID__c"], "an external id is not given up");
        let subjects: Vec<&str> = findings.iter().map(|f| f.subject.as_str()).collect();
        assert_eq!(subjects, ["contact.Email", "contact.Owner.Name"]);
        // Where nothing was ever in force, or there is no column, it is a mistake.
        assert_eq!(names(&expanded(&config, &org, tables, None, Scope::Present).0).len(), 4);
        let bare = table("contact", &[("lastname", 25, "text")]);
        assert_eq!(names(&expanded(&config, &org, &[bare], Some(&previous), Scope::Present).0).len(), 4);
        org[0].fields.push(field("Email", "email"));
        assert!(names(&expanded(&config, &org, tables, Some(&previous), Scope::Present).0).contains(&"Email"));
    }
}
