//! From a configuration and what both sides have to the catalog that decisions depend on, or to what is wrong.
//!
//! Ids are stable: a mapping that the previous catalog has by the same name for the same sObject keeps its id, and so
//! does a
//! field of it by its name, unless its values have another form now. New ones get the lowest id never given.
//!
//! Every mapping gets the record's Salesforce id (`sfid`), and `SystemModstamp`, `CreatedDate` and `IsDeleted` where
//! the sObject
//! has them and the table is Tidelock's to make or has the columns.

use std::collections::BTreeSet;

use super::columns;
use super::describe::{SobjectDescription, TableDescription};
use super::finding::Finding;
use super::mirror::SYSTEM_COLUMNS;
use super::resolve::{Resolver, did_you_mean};
use crate::change::{Catalog, FieldDef, FieldId, FieldKind, MappingDef, MappingId, Side};
use crate::config::{Access, FieldConfig, LinkDefaults, MappingConfig, default_column};

/// Fields that every mirror has without being asked, if it can.
const USUAL_FIELDS: [&str; 3] = ["SystemModstamp", "CreatedDate", "IsDeleted"];

/// The catalog, or every finding if one of them is an error. Warnings alone are dropped: [`check`] tells them.
///
/// Tables that are missing from `tables` are taken to be made by [`super::mirror::statements`]; [`unfinished`] says
/// whether
/// they have been.
pub fn compile(
    mappings: &[MappingConfig],
    defaults: &LinkDefaults,
    sobjects: &[SobjectDescription],
    tables: &[TableDescription],
    previous: Option<&Catalog>,
) -> Result<Catalog, Vec<Finding>> {
    match check(mappings, defaults, sobjects, tables, previous) {
        (Some(catalog), _) => Ok(catalog),
        (None, findings) => Err(findings),
    }
}

/// The catalog if there is no error, and all findings, good and bad, in the configuration's order.
pub fn check(
    mappings: &[MappingConfig],
    defaults: &LinkDefaults,
    sobjects: &[SobjectDescription],
    tables: &[TableDescription],
    previous: Option<&Catalog>,
) -> (Option<Catalog>, Vec<Finding>) {
    let mut compiler = Compiler { defaults, sobjects, tables, previous, findings: Vec::new() };
    let mut next_mapping = previous.map_or(MappingId(0), |p| p.next_mapping);
    let mut compiled: Vec<MappingDef> = Vec::with_capacity(mappings.len());
    for config in mappings {
        let known = previous
            .and_then(|p| p.mapping_named(&config.name))
            .filter(|m| m.sobject.eq_ignore_ascii_case(&config.sobject));
        let id = known.map_or(next_mapping, |m| m.id);
        if known.is_none() {
            next_mapping.0 = next_mapping.0.saturating_add(1);
        }
        compiled.extend(compiler.mapping(config, id, known));
    }
    if next_mapping.0 == u16::MAX {
        let advice = "start a new link, with a new change log";
        compiler.findings.push(Finding::error("mappings", "the link has used up all mapping numbers", advice));
    }
    if compiler.findings.iter().any(Finding::is_error) {
        return (None, compiler.findings);
    }
    rank(&mut compiled, sobjects);
    compiled.sort_by_key(|m| m.id);
    let catalog = Catalog {
        mappings: compiled,
        next_mapping,
        system_of_record: defaults.system_of_record,
        tolerance_ms: defaults.tolerance_ms,
        external_id_prefix: previous.map(|p| p.external_id_prefix.clone()).unwrap_or_default(),
    };
    (Some(catalog), compiler.findings)
}

/// The tables and columns of a catalog that the database does not have yet, each as an error: before a run there must
/// be none.
pub fn unfinished(catalog: &Catalog, tables: &[TableDescription]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mapping in &catalog.mappings {
        let name = format!("{}.{}", mapping.schema, mapping.table);
        match tables.iter().find(|t| t.schema == mapping.schema && t.table == mapping.table) {
            None => {
                let message = format!("the table {name} does not exist");
                findings.push(Finding::error(&mapping.name, message, "run `tidelock init`, which makes it"));
            }
            Some(table) => {
                for field in mapping.fields.iter().filter(|f| table.column(&f.column).is_none()) {
                    let subject = format!("{}.{}", mapping.name, field.name);
                    let message = format!("the table {name} has no column {}", field.column);
                    findings.push(Finding::error(subject, message, "run `tidelock init`, which adds it"));
                }
            }
        }
    }
    findings
}

struct Compiler<'a> {
    defaults: &'a LinkDefaults,
    sobjects: &'a [SobjectDescription],
    tables: &'a [TableDescription],
    previous: Option<&'a Catalog>,
    findings: Vec<Finding>,
}

impl<'a> Compiler<'a> {
    fn mapping(&mut self, config: &MappingConfig, id: MappingId, known: Option<&MappingDef>) -> Option<MappingDef> {
        let sobject = self.sobject(config)?;
        let table = self.tables.iter().find(|t| t.schema == self.defaults.schema && t.table == config.table);
        let policy = config.policy.unwrap_or(self.defaults.policy);
        let resolver =
            Resolver { mapping: &config.name, sobject, sobjects: self.sobjects, access: config.access, policy };
        let wanted = with_usual_fields(config, sobject, table);
        let mut fields: Vec<FieldDef> =
            wanted.iter().filter_map(|field| resolver.field(field, &mut self.findings)).collect();
        let next_field = self.number(&mut fields, known, table, &config.name);
        let mut mapping = MappingDef {
            id,
            name: config.name.clone(),
            sobject: sobject.name.clone(),
            schema: self.defaults.schema.clone(),
            table: config.table.clone(),
            key_columns: table.map_or_else(|| vec!["id".to_owned()], |t| t.key_columns.clone()),
            fields,
            next_field,
            owner: (config.access == Access::ReadOnly).then_some(Side::Salesforce),
            external_id: None,
            delete: config.delete.unwrap_or(self.defaults.delete),
            truncate: config.truncate,
            initial_merge: config.initial_merge.unwrap_or(self.defaults.initial_merge),
            rank: 0,
        };
        self.external_id(config, sobject, &mut mapping);
        self.table(&mapping, table);
        for field in &mut mapping.fields {
            field.kind = kept_by_column(field, table);
        }
        self.writability(config, sobject, &mapping);
        let faulty = self.findings.iter().any(|f| f.is_error() && is_about(&f.subject, &config.name));
        if !faulty {
            let message = format!(
                "{} with {} fields and {}.{}",
                mapping.sobject,
                mapping.fields.len(),
                mapping.schema,
                mapping.table
            );
            self.findings.push(Finding::ok(&mapping.name, message));
        }
        Some(mapping)
    }

    fn sobject(&mut self, config: &MappingConfig) -> Option<&'a SobjectDescription> {
        let found = self.sobjects.iter().find(|s| s.name.eq_ignore_ascii_case(&config.sobject));
        match found {
            None => {
                let names = self.sobjects.iter().map(|s| s.name.as_str());
                let otherwise = "check the name, and the user's access to the sObject";
                self.findings.push(Finding::error(
                    &config.name,
                    format!("the org has no sObject {} that the connected user can see", config.sobject),
                    did_you_mean(&config.sobject, names, otherwise),
                ));
            }
            Some(sobject) if !sobject.queryable => {
                let advice = "map another sObject, or give the user read access";
                self.findings.push(Finding::error(&config.name, format!("{} cannot be queried", sobject.name), advice));
            }
            Some(_) => {}
        }
        found
    }

    /// Gives each field its id and sorts by it; the lowest id never given.
    fn number(
        &mut self,
        fields: &mut [FieldDef],
        known: Option<&MappingDef>,
        table: Option<&TableDescription>,
        mapping: &str,
    ) -> FieldId {
        let mut next = known.map_or(0, |m| m.next_field.0);
        for field in &mut *fields {
            let same = known.and_then(|m| m.field_named(&field.name));
            let same = same.filter(|same| is_same_form(&same.kind, &kept_by_column(field, table))).map(|same| same.id);
            field.id = same.unwrap_or(FieldId(next));
            next = next.saturating_add(u16::from(same.is_none()));
        }
        if next == u16::MAX {
            let advice = "give the mapping another name, which starts it anew";
            self.findings.push(Finding::error(mapping, "the mapping has used up all field numbers", advice));
        }
        fields.sort_by_key(|f| f.id);
        FieldId(next)
    }

    fn external_id(&mut self, config: &MappingConfig, sobject: &SobjectDescription, mapping: &mut MappingDef) {
        let subject = format!("{}.external_id", config.name);
        let candidates: Vec<&str> =
            sobject.fields.iter().filter(|f| f.external_id && f.unique).map(|f| f.name.as_str()).collect();
        let Some(name) = &config.external_id else {
            if config.access == Access::ReadWrite && sobject.createable {
                let which = if candidates.is_empty() {
                    "add a unique external id field in Salesforce and name it as external_id".to_owned()
                } else {
                    format!("choose external_id = one of {}", candidates.join(", "))
                };
                self.findings.push(Finding::error(
                    subject,
                    "without an external id, a row born in PostgreSQL may be created twice in Salesforce",
                    format!("{which}, or write access = \"read_only\""),
                ));
            }
            return;
        };
        let Some(field) = sobject.field(name) else {
            let otherwise = "name a field that is a unique external id";
            let advice = did_you_mean(name, candidates, otherwise);
            self.findings.push(Finding::error(subject, format!("{} has no field {name}", sobject.name), advice));
            return;
        };
        if !(field.external_id || field.id_lookup) || field.kind == Some(FieldKind::Id) {
            let advice = "tick External ID and Unique at the field in Salesforce, or name another field";
            self.findings.push(Finding::error(subject, format!("{} is not an external id", field.name), advice));
        } else if !field.unique {
            let message = format!("{} is not unique, so it may name several records", field.name);
            let advice = "tick Unique at the field in Salesforce, or name another field";
            self.findings.push(Finding::error(subject, message, advice));
        } else if config.access == Access::ReadWrite && !field.createable {
            let message = format!("{} cannot be set when a record is created", field.name);
            let advice = "give the user edit access to the field, or name another one";
            self.findings.push(Finding::error(subject, message, advice));
        } else if let Some(mapped) = mapping.field_named(name) {
            mapping.external_id = Some(mapped.id);
        } else {
            let message = format!("{} is the external id but is not mapped", field.name);
            self.findings.push(Finding::error(subject, message, format!("add \"{}\" to `fields`", field.name)));
        }
    }

    fn table(&mut self, mapping: &MappingDef, table: Option<&TableDescription>) {
        match table {
            None => {
                self.findings.push(Finding::warning(
                    &mapping.name,
                    format!("the table {}.{} does not exist yet", mapping.schema, mapping.table),
                    "run `tidelock init`, which makes it",
                ));
                for field in mapping.fields.iter().filter(|f| SYSTEM_COLUMNS.iter().any(|(c, _)| *c == f.column)) {
                    self.findings.push(Finding::error(
                        format!("{}.{}", mapping.name, field.name),
                        format!("the column {} is the mirror's own", field.column),
                        "give the field another column",
                    ));
                }
            }
            Some(table) => {
                columns::table_findings(table, &mapping.name, &mut self.findings);
                columns::column_findings(mapping, table, &mut self.findings);
            }
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for field in &mapping.fields {
            if !seen.insert(&field.column) {
                self.findings.push(Finding::error(
                    format!("{}.{}", mapping.name, field.name),
                    format!("the column {} is mapped to two fields", field.column),
                    "give one of them another column",
                ));
            }
        }
    }

    /// Whether a mapping that is meant to be written can be.
    fn writability(&mut self, config: &MappingConfig, sobject: &SobjectDescription, mapping: &MappingDef) {
        let previous = self.previous.and_then(|p| p.mapping(mapping.id));
        if config.access == Access::ReadOnly {
            if previous.is_some_and(|known| known.owner.is_none()) {
                self.findings.push(Finding::warning(
                    &config.name,
                    "the mapping was read_write before, and nothing is written to Salesforce from now on",
                    "edits in PostgreSQL that have not reached Salesforce stay behind: let the link run dry first",
                ));
            }
            return;
        }
        if !sobject.createable && !sobject.updateable {
            self.findings.push(Finding::warning(
                &config.name,
                format!("the connected user may neither create nor update {}", sobject.name),
                "give the user edit access, or write access = \"read_only\"",
            ));
            return;
        }
        let is_set = |name: &str, relationship: Option<&str>| {
            mapping.fields.iter().any(|f| match &f.kind {
                FieldKind::Relationship { relationship: r, .. } => relationship == Some(r.as_str()),
                _ => f.name == name,
            })
        };
        let required: Vec<&str> = sobject
            .fields
            .iter()
            .filter(|f| f.createable && !f.nillable && !f.defaulted_on_create)
            .filter(|f| !is_set(&f.name, f.relationship_name.as_deref()))
            .map(|f| f.name.as_str())
            .collect();
        if sobject.createable && !required.is_empty() {
            self.findings.push(Finding::warning(
                &config.name,
                format!("records cannot be created without {}, which is not mapped", required.join(", ")),
                "add it to `fields`, unless rows are only ever created in Salesforce",
            ));
        }
        if let Some(previous) = previous
            && previous.external_id.is_some()
            && mapping.external_id.is_none()
        {
            self.findings.push(Finding::warning(
                &config.name,
                "the mapping had an external id before and has none now",
                "rows that wait to be created in Salesforce are matched by it: let the link run dry first",
            ));
        }
    }
}

/// A field's values without the digits that its column would round away: what comes back would be taken for an edit of the whole
/// value.
fn kept_by_column(field: &FieldDef, table: Option<&TableDescription>) -> FieldKind {
    let column = table.and_then(|table| table.column(&field.column));
    let kept = column.and_then(|column| columns::scale_kept(&column.type_name));
    match (&field.kind, kept) {
        (FieldKind::Number { scale }, Some(kept)) => {
            FieldKind::Number { scale: u8::try_from(kept).map_or(*scale, |kept| kept.min(*scale)) }
        }
        (kind, _) => kind.clone(),
    }
}

/// Whether the values that are known of a field are what would be read of it now. Otherwise it is another field: both sides are
/// read again.
fn is_same_form(known: &FieldKind, now: &FieldKind) -> bool {
    let is_text =
        |kind: &FieldKind| matches!(kind, FieldKind::Text { .. } | FieldKind::Picklist | FieldKind::MultiPicklist);
    let scale = |kind: &FieldKind| match kind {
        FieldKind::Integer => Some(0),
        FieldKind::Number { scale } => Some(*scale),
        _ => None,
    };
    match (scale(known), scale(now)) {
        (Some(known), Some(now)) => now == known,
        _ if is_text(known) && is_text(now) => true,
        _ => std::mem::discriminant(known) == std::mem::discriminant(now),
    }
}

/// Whether a finding's subject is a mapping or something in it.
fn is_about(subject: &str, mapping: &str) -> bool {
    subject.strip_prefix(mapping).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The configured fields with the record's id before them and the usual ones after them.
fn with_usual_fields(
    config: &MappingConfig,
    sobject: &SobjectDescription,
    table: Option<&TableDescription>,
) -> Vec<FieldConfig> {
    let is_listed = |name: &str| config.fields.iter().any(|f| f.name.eq_ignore_ascii_case(name));
    let mut wanted = Vec::with_capacity(config.fields.len() + 1 + USUAL_FIELDS.len());
    if !is_listed("Id") {
        wanted.push(FieldConfig::named("Id"));
    }
    wanted.extend(config.fields.iter().cloned());
    for name in USUAL_FIELDS {
        let column = default_column(name);
        let has_room = table.is_none_or(|t| t.column(&column).is_some());
        let is_free = wanted.iter().all(|f| f.column_name() != column);
        if has_room && is_free && !is_listed(name) && sobject.field(name).is_some() {
            wanted.push(FieldConfig::named(name));
        }
    }
    wanted
}

/// Gives parents lower ranks than their children, by the mapped references. Of a circle of references, the mapping
/// with the
/// fewest parents still waiting goes first.
fn rank(mappings: &mut [MappingDef], sobjects: &[SobjectDescription]) {
    let parents: Vec<BTreeSet<usize>> = mappings.iter().map(|m| parents_of(m, mappings, sobjects)).collect();
    let mut ranks: Vec<Option<u16>> = vec![None; mappings.len()];
    loop {
        let is_ranked = |n: &usize| ranks.get(*n).copied().flatten().is_some();
        let waiting = parents.iter().enumerate().filter(|(n, _)| !is_ranked(n));
        let Some((n, of)) = waiting.min_by_key(|(n, of)| (of.iter().filter(|p| !is_ranked(p)).count(), *n)) else {
            break;
        };
        let above = of.iter().filter_map(|p| ranks.get(*p).copied().flatten()).max();
        if let Some(slot) = ranks.get_mut(n) {
            *slot = Some(above.map_or(0, |r| r + 1));
        }
    }
    for (mapping, rank) in mappings.iter_mut().zip(ranks) {
        mapping.rank = rank.unwrap_or_default();
    }
}

/// The other mappings that a mapping's fields point to.
fn parents_of(mapping: &MappingDef, all: &[MappingDef], sobjects: &[SobjectDescription]) -> BTreeSet<usize> {
    let sobject = sobjects.iter().find(|s| s.name == mapping.sobject);
    let mut names: Vec<&str> = Vec::new();
    for field in &mapping.fields {
        match &field.kind {
            FieldKind::Reference { to } => names.extend(to.iter().map(String::as_str)),
            FieldKind::Relationship { relationship, .. } => {
                let reference = sobject.and_then(|s| s.relationship(relationship));
                names.extend(reference.iter().flat_map(|r| &r.reference_to).map(String::as_str));
            }
            _ => {}
        }
    }
    all.iter()
        .enumerate()
        .filter(|(_, other)| other.id != mapping.id && names.contains(&other.sobject.as_str()))
        .map(|(n, _)| n)
        .collect()
}

#[cfg(test)]
mod tests;
