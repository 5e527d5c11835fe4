//! What the org's fields ask of the tables that are there already, and what doing it comes to.
//!
//! Columns are added and made wider, never narrower: what would take something away, or give a column another kind of value
//! under those who read it, is for a person to do.

use serde::Serialize;

use super::columns::{Room, room};
use super::describe::{ColumnDescription, SobjectDescription, SobjectField, TableDescription};
use super::mirror::{column_type, qualified, quote_ident, quote_literal};
use crate::change::{Catalog, FieldDef, FieldKind, InitialMerge, MappingDef};
use crate::config::Numbers;

/// In what a field and its column differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// There is no column.
    New,
    /// The column holds fewer characters than the field.
    Length,
    /// The column holds fewer digits than the field.
    Precision,
    /// The column is of another kind.
    Type,
    /// The column's enum has fewer values than the picklist.
    Picklist,
    /// The field may be empty, and the column may not.
    Required,
    /// The org has the field no more.
    Removed,
}

/// What a statement does to a table besides what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Only the catalogs are changed.
    Metadata,
    /// Every row is written anew, with its indexes.
    Rewrite,
}

/// What is done about a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Remedy {
    /// `tidelock init --apply` runs this.
    Apply {
        /// The statement.
        sql: String,
        /// What it does to the table.
        effect: Effect,
        /// Why nobody but a person should start it, if there is a reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        attended: Option<String>,
    },
    /// A person has to decide.
    Person {
        /// What to do.
        advice: String,
    },
    /// Nothing needs to be done.
    Nothing {
        /// What may be done.
        advice: String,
    },
}

/// A field and a column that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The mapping's name.
    pub mapping: String,
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The field's API name.
    pub field: String,
    /// The column.
    pub column: String,
    /// In what they differ.
    pub change: Change,
    /// What that means for the values.
    pub message: String,
    /// What is done about it.
    pub remedy: Remedy,
}

impl Difference {
    /// The statement that `tidelock init --apply` runs, and what it does to the table.
    pub fn statement(&self) -> Option<(&str, Effect)> {
        match &self.remedy {
            Remedy::Apply { sql, effect, .. } => Some((sql, *effect)),
            Remedy::Person { .. } | Remedy::Nothing { .. } => None,
        }
    }

    /// Whether a running link may do it by itself: it takes an instant, and no value depends on it but those it makes room for.
    pub fn is_unattended(&self) -> bool {
        matches!(&self.remedy, Remedy::Apply { effect: Effect::Metadata, attended: None, .. })
    }

    /// Whether something is to be done, by whomever.
    pub fn is_to_do(&self) -> bool {
        !matches!(self.remedy, Remedy::Nothing { .. })
    }
}

/// The differences between what is to be mapped and the tables that exist, in the mappings' order.
///
/// `previous` is the catalog in force, whose fields may have been removed since.
pub fn differences(
    catalog: &Catalog,
    sobjects: &[SobjectDescription],
    tables: &[TableDescription],
    previous: Option<&Catalog>,
    numbers: Numbers,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for mapping in &catalog.mappings {
        let Some(table) = tables.iter().find(|t| t.schema == mapping.schema && t.table == mapping.table) else {
            continue;
        };
        let sobject = sobjects.iter().find(|s| s.name == mapping.sobject);
        let known = previous.and_then(|p| p.mapping(mapping.id)).filter(|p| p.name == mapping.name);
        let comparing = Comparing { mapping, known, sobject, sobjects, table, numbers };
        found.extend(mapping.fields.iter().filter_map(|field| comparing.field(field)));
        found.extend(known.into_iter().flat_map(|known| comparing.removed(known)));
    }
    found
}

/// What has changed of sObjects that were described before: fields, and what of a field matters to a mapping.
pub fn news(before: &[SobjectDescription], now: &[SobjectDescription]) -> Vec<String> {
    let mut told = Vec::new();
    for sobject in now {
        let Some(known) = before.iter().find(|s| s.name == sobject.name) else { continue };
        let name = &sobject.name;
        for field in &sobject.fields {
            match known.field(&field.name) {
                None => told.push(format!("{name}.{} is new ({})", field.name, field.sf_type)),
                Some(known) => {
                    let changes = field_news(known, field).join(", ");
                    told.extend((!changes.is_empty()).then(|| format!("{name}.{}: {changes}", field.name)));
                }
            }
        }
        let gone = known.fields.iter().filter(|f| sobject.field(&f.name).is_none());
        told.extend(gone.map(|f| format!("{name}.{} is gone, or hidden from the connected user", f.name)));
    }
    told
}

fn field_news(before: &SobjectField, now: &SobjectField) -> Vec<String> {
    let mut told = Vec::new();
    if before.sf_type != now.sf_type {
        told.push(format!("{} instead of {}", now.sf_type, before.sf_type));
    }
    let sizes = [
        ("length", before.length, now.length),
        ("precision", before.precision, now.precision),
        ("scale", before.scale, now.scale),
    ];
    let changed = sizes.iter().filter(|(_, before, now)| before != now);
    told.extend(changed.map(|(what, before, now)| format!("{what} {now} instead of {before}")));
    let flags = [
        ("required", !before.nillable, !now.nillable),
        ("an external id", before.external_id, now.external_id),
        ("unique", before.unique, now.unique),
        ("set at creation", before.createable, now.createable),
        ("editable", before.updateable, now.updateable),
    ];
    for (what, _, now) in flags.iter().filter(|(_, before, now)| before != now) {
        told.push(format!("{} {what}", if *now { "now" } else { "no longer" }));
    }
    let added = now.picklist.iter().filter(|value| !before.picklist.contains(value)).count();
    let taken = before.picklist.iter().filter(|value| !now.picklist.contains(value)).count();
    if added + taken > 0 {
        told.push(format!("{added} picklist values more, {taken} less"));
    }
    told
}

struct Comparing<'a> {
    mapping: &'a MappingDef,
    /// The same mapping as it is in force.
    known: Option<&'a MappingDef>,
    sobject: Option<&'a SobjectDescription>,
    sobjects: &'a [SobjectDescription],
    table: &'a TableDescription,
    numbers: Numbers,
}

/// What a column should become.
enum Wanted {
    Wider(Change, String, Effect),
    Other,
}

impl Comparing<'_> {
    fn field(&self, field: &FieldDef) -> Option<Difference> {
        let Some(column) = self.table.column(&field.column) else { return Some(self.missing(field)) };
        let described = self.sobject.and_then(|s| s.field(&field.name));
        if !column.labels.is_empty() {
            return self.labels(field, column, described);
        }
        match self.wanted(field, column, described) {
            Some(Wanted::Wider(change, sql_type, effect)) => Some(self.wider(field, column, change, &sql_type, effect)),
            Some(Wanted::Other) => Some(self.retyped(field, column)),
            None => self.required(field, column, described),
        }
    }

    fn difference(&self, field: &FieldDef, change: Change, message: String, remedy: Remedy) -> Difference {
        Difference {
            mapping: self.mapping.name.clone(),
            schema: self.mapping.schema.clone(),
            table: self.mapping.table.clone(),
            field: field.name.clone(),
            column: field.column.clone(),
            change,
            message,
            remedy,
        }
    }

    fn alter(&self, what: &str) -> String {
        format!("ALTER TABLE {} {what}", qualified(&self.mapping.schema, &self.mapping.table))
    }

    fn missing(&self, field: &FieldDef) -> Difference {
        let sql_type = column_type(field, &self.mapping.sobject, self.sobjects, self.numbers);
        let sql = self.alter(&format!("ADD COLUMN IF NOT EXISTS {} {sql_type}", quote_ident(&field.column)));
        let message = format!(
            "{} of {} has no column yet: none of its values are taken until there is one, and then every record is read again",
            field.name, self.mapping.sobject
        );
        let was_there = self.known.and_then(|k| k.field_named(&field.name)).is_some_and(|f| f.column == field.column);
        // A boolean has no null: the new column says false of every record.
        let overrules = field.kind == FieldKind::Boolean
            && field.owner.is_none()
            && self.mapping.initial_merge != InitialMerge::Salesforce;
        let attended = if was_there {
            Some(
                "the column was dropped while it was mapped; fill the new one before the link reads its rows, or leave the field out \
                 for one start of the link: else the empty column counts as edited",
            )
        } else if overrules {
            Some(
                "a new boolean column is false everywhere, and `initial_merge` does not say that Salesforce's values stand; set the \
                 column to what the org has before the link reads it, or change `initial_merge`",
            )
        } else {
            None
        };
        let attended = attended.map(str::to_owned);
        self.difference(field, Change::New, message, Remedy::Apply { sql, effect: Effect::Metadata, attended })
    }

    fn wider(
        &self,
        field: &FieldDef,
        column: &ColumnDescription,
        change: Change,
        sql_type: &str,
        effect: Effect,
    ) -> Difference {
        let consequence = match change {
            Change::Length => "longer values become dead letters, which are tried again when the column is wider",
            _ if self.scale_is_cut(field, column) => {
                "digits beyond those are not taken until the column has them, and then every record is read again"
            }
            _ => "larger values become dead letters, which are tried again when the column is wider",
        };
        let message = format!(
            "the column is {} and {} of {} needs {sql_type}: {consequence}",
            column.type_name, field.name, self.mapping.sobject
        );
        if column.domain {
            let advice =
                "the column's type is a domain of your own: widen what it is made of, or give the column another type";
            return self.difference(field, change, message, Remedy::Person { advice: advice.to_owned() });
        }
        let sql = self.alter(&format!("ALTER COLUMN {} TYPE {sql_type}", quote_ident(&field.column)));
        self.difference(field, change, message, Remedy::Apply { sql, effect, attended: None })
    }

    fn scale_is_cut(&self, field: &FieldDef, column: &ColumnDescription) -> bool {
        let described = self.sobject.and_then(|s| s.field(&field.name));
        let held = match room(&column.type_name) {
            Room::Digits { scale, .. } => scale,
            Room::Whole(_) => 0,
            _ => return false,
        };
        described.is_some_and(|d| d.scale > held)
    }

    fn retyped(&self, field: &FieldDef, column: &ColumnDescription) -> Difference {
        let sql_type = column_type(field, &self.mapping.sobject, self.sobjects, self.numbers);
        let name = quote_ident(&field.column);
        let message = format!(
            "the column is {} and {} of {} is {}: values that the column does not take become dead letters",
            column.type_name,
            field.name,
            self.mapping.sobject,
            self.sobject.and_then(|s| s.field(&field.name)).map_or(sql_type.as_str(), |d| d.sf_type.as_str())
        );
        let sql = self.alter(&format!("ALTER COLUMN {name} TYPE {sql_type} USING {name}::text::{sql_type}"));
        let advice = format!(
            "whoever reads the column gets other values: change them, then run (it writes every row anew, and fails where a value \
             is no {sql_type}): {sql}"
        );
        self.difference(field, Change::Type, message, Remedy::Person { advice })
    }

    fn labels(
        &self,
        field: &FieldDef,
        column: &ColumnDescription,
        described: Option<&SobjectField>,
    ) -> Option<Difference> {
        let missing: Vec<&String> =
            described.iter().flat_map(|d| &d.picklist).filter(|value| !column.labels.contains(value)).collect();
        if missing.is_empty() {
            return None;
        }
        let shown: Vec<&str> = missing.iter().map(|value| value.as_str()).collect();
        let message = format!(
            "the picklist {} of {} has values that the column's enum has not ({}): they become dead letters, which are tried \
             again when it has them",
            field.name,
            self.mapping.sobject,
            shown.join(", ")
        );
        let add = |value: &&String| {
            format!("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}", column.type_name, quote_literal(value))
        };
        let sql = missing.iter().map(add).collect::<Vec<_>>().join("; ");
        let remedy = Remedy::Apply { sql, effect: Effect::Metadata, attended: None };
        Some(self.difference(field, Change::Picklist, message, remedy))
    }

    fn required(
        &self,
        field: &FieldDef,
        column: &ColumnDescription,
        described: Option<&SobjectField>,
    ) -> Option<Difference> {
        let may_be_empty = described.is_some_and(|d| d.nillable) && field.kind != FieldKind::Boolean;
        if column.nullable || !may_be_empty || self.mapping.key_columns.contains(&column.name) {
            return None;
        }
        let message = format!(
            "the column is NOT NULL and {} of {} may be empty: then the write becomes a dead letter",
            field.name, self.mapping.sobject
        );
        let sql = self.alter(&format!("ALTER COLUMN {} DROP NOT NULL", quote_ident(&field.column)));
        let advice = format!("make the field required in Salesforce, or run: {sql}");
        Some(self.difference(field, Change::Required, message, Remedy::Nothing { advice }))
    }

    /// Fields that were mapped and that the org has no more.
    fn removed(&self, known: &MappingDef) -> Vec<Difference> {
        let is_gone = |field: &&FieldDef| match &field.kind {
            FieldKind::Relationship { relationship, .. } => {
                self.sobject.is_some_and(|s| s.relationship(relationship).is_none())
            }
            _ => self.sobject.is_some_and(|s| s.field(&field.name).is_none()),
        };
        let gone = known.fields.iter().filter(is_gone).filter(|f| self.table.column(&f.column).is_some());
        gone.map(|field| {
            let message = format!(
                "{} has no field {} any more that the connected user can see: the column keeps what it holds, and edits of it \
                 go nowhere",
                self.mapping.sobject, field.name
            );
            let sql = self.alter(&format!("DROP COLUMN {}", quote_ident(&field.column)));
            let advice = format!("when nobody needs what the column holds, run: {sql}");
            self.difference(field, Change::Removed, message, Remedy::Nothing { advice })
        })
        .collect()
    }

    /// What the column should become to hold all that the field can, if it does not.
    fn wanted(&self, field: &FieldDef, column: &ColumnDescription, described: Option<&SobjectField>) -> Option<Wanted> {
        let room = room(&column.type_name);
        match (&field.kind, room) {
            (_, Room::Text | Room::Unknown)
            | (FieldKind::MultiPicklist, Room::List)
            | (FieldKind::Boolean, Room::Boolean)
            | (FieldKind::Date, Room::Date)
            | (FieldKind::DateTime, Room::Moment)
            | (FieldKind::Time, Room::Time) => None,
            (kind, Room::Characters(held)) => {
                let needed = characters(kind, described)?;
                let sql_type = if needed > 255 && *kind != FieldKind::MultiPicklist {
                    "text".to_owned()
                } else {
                    format!("varchar({needed})")
                };
                // Of padded text every value is cut anew.
                let padded = column.type_name.starts_with("character(");
                let effect = if padded { Effect::Rewrite } else { Effect::Metadata };
                (held < needed).then_some(Wanted::Wider(Change::Length, sql_type, effect))
            }
            (FieldKind::Integer | FieldKind::Number { .. }, _) => self.wanted_number(room, described),
            _ => Some(Wanted::Other),
        }
    }

    fn wanted_number(&self, room: Room, described: Option<&SobjectField>) -> Option<Wanted> {
        let (digits, scale) = described.map_or((0, 0), |d| (d.precision, d.scale));
        let is_long = described.is_some_and(|d| d.sf_type == "long");
        let wider = |sql_type: String, effect| Some(Wanted::Wider(Change::Precision, sql_type, effect));
        match room {
            Room::Whole(held) if scale > 0 => {
                // A double keeps whole numbers up to 15 digits.
                let exact = self.numbers == Numbers::Numeric || held > 15;
                wider(if exact { "numeric" } else { "double precision" }.to_owned(), Effect::Rewrite)
            }
            Room::Whole(held) if is_long && held < 19 => wider("bigint".to_owned(), Effect::Rewrite),
            Room::Whole(held) if held < digits.min(9) => wider("integer".to_owned(), Effect::Rewrite),
            Room::Whole(_) | Room::Float | Room::Number => None,
            Room::Digits { digits: held, scale: held_scale } => {
                let whole = held.saturating_sub(held_scale).max(digits.saturating_sub(scale));
                let fraction = held_scale.max(scale);
                let effect = if fraction == held_scale { Effect::Metadata } else { Effect::Rewrite };
                let fits = whole + fraction == held && fraction == held_scale;
                if fits { None } else { wider(format!("numeric({},{fraction})", whole + fraction), effect) }
            }
            _ => Some(Wanted::Other),
        }
    }
}

/// The characters that a text field's values need; none for what is no text, and the most of all where there is no limit.
fn characters(kind: &FieldKind, described: Option<&SobjectField>) -> Option<u32> {
    match kind {
        FieldKind::Id | FieldKind::Reference { .. } => Some(18),
        FieldKind::Text { length: length @ 1..=255 } => Some(*length),
        FieldKind::Text { .. } => Some(u32::MAX),
        FieldKind::Picklist => {
            let longest = described.iter().flat_map(|d| &d.picklist).map(|value| value.chars().count()).max();
            Some(u32::try_from(longest.unwrap_or_default()).unwrap_or(u32::MAX))
        }
        FieldKind::MultiPicklist => described.map(|d| d.length),
        _ => None,
    }
}

#[cfg(test)]
#[path = "evolution_tests.rs"]
mod tests;
