//! Whether a column can hold a field's values. Pure.

use crate::change::{FieldDef, FieldKind};
use crate::mapping::Severity;
use crate::postgres::introspect::ColumnDetail;

/// The characters of a Salesforce id.
const ID_LENGTH: u32 = 18;

type Judgement = (Severity, String, String);

/// What is wrong with a column for a field: severity, what, and what to do.
pub(super) fn judge(field: &FieldDef, column: &ColumnDetail) -> Vec<Judgement> {
    let mut found = Vec::new();
    if column.generated {
        found.push((
            Severity::Error,
            format!(
                "the database computes the column, so that field {} can be neither written nor captured",
                field.name
            ),
            "map another column, which a trigger may fill, or unmap the field".to_owned(),
        ));
        return found;
    }
    found.extend(family(field, column));
    found.extend(size(field, column));
    let emptied = field.kind != FieldKind::Boolean;
    if !column.nullable && !column.defaulted && emptied {
        found.push((
            Severity::Warning,
            format!("the column is NOT NULL: an empty {} in Salesforce is refused here", field.name),
            "drop NOT NULL, or make the field required in Salesforce".to_owned(),
        ));
    }
    found
}

/// How well a type holds values of a kind.
enum Fit {
    Good,
    /// Some values do not survive.
    Poor(&'static str),
    Never,
}

fn family(field: &FieldDef, column: &ColumnDetail) -> Option<Judgement> {
    match fit(&field.kind, column) {
        Fit::Good => None,
        Fit::Poor(why) => Some((
            Severity::Warning,
            format!("the column is {}: {why}", column.type_name),
            format!("change its type to {}", advised(&field.kind)),
        )),
        Fit::Never => Some((
            Severity::Error,
            format!("the column is {}, which does not hold values of field {}", column.type_name, field.name),
            format!("change its type to {}, or map another column", advised(&field.kind)),
        )),
    }
}

fn fit(kind: &FieldKind, column: &ColumnDetail) -> Fit {
    let name = column.cast.as_str();
    let text = column.category == 'S';
    match kind {
        FieldKind::Id | FieldKind::Reference { .. } | FieldKind::Text { .. } | FieldKind::Relationship { .. } => {
            match column.category {
                'S' => Fit::Good,
                'E' => Fit::Poor("a value that is not in the enum is refused"),
                _ if matches!(kind, FieldKind::Text { .. } | FieldKind::Relationship { .. }) && name != "boolean" => {
                    Fit::Poor("a text that is no such value is refused, and others are printed in another form")
                }
                _ => Fit::Never,
            }
        }
        FieldKind::Picklist => match column.category {
            'S' => Fit::Good,
            'E' => Fit::Poor("a value that is not in the enum is refused"),
            _ => Fit::Never,
        },
        FieldKind::MultiPicklist if text || matches!(name, "text[]" | "character varying[]") => Fit::Good,
        FieldKind::Boolean if name == "boolean" => Fit::Good,
        FieldKind::Integer => match name {
            "integer" | "bigint" | "numeric" | "double precision" => Fit::Good,
            "smallint" => Fit::Poor("numbers beyond 32767 are refused"),
            _ => loose(text),
        },
        FieldKind::Number { scale } => match name {
            "numeric" | "double precision" => Fit::Good,
            "bigint" | "integer" if *scale == 0 => Fit::Good,
            "bigint" | "integer" | "smallint" => Fit::Poor("fractions are rounded away, here and then in Salesforce"),
            "real" => Fit::Poor("digits beyond the sixth are lost, here and then in Salesforce"),
            _ => loose(text),
        },
        FieldKind::Date if name == "date" => Fit::Good,
        FieldKind::DateTime if matches!(name, "timestamp without time zone" | "timestamp with time zone") => Fit::Good,
        FieldKind::Time if name == "time without time zone" => Fit::Good,
        FieldKind::Time if name == "time with time zone" => Fit::Poor("the time zone is ignored"),
        FieldKind::MultiPicklist | FieldKind::Boolean | FieldKind::Date | FieldKind::DateTime | FieldKind::Time => {
            loose(text)
        }
    }
}

/// A text column takes anything that is written to it, but users may write anything too.
fn loose(text: bool) -> Fit {
    if text {
        Fit::Poor("what users write here may not be such a value, and Salesforce then refuses it")
    } else {
        Fit::Never
    }
}

const fn advised(kind: &FieldKind) -> &'static str {
    match kind {
        FieldKind::Id | FieldKind::Reference { .. } => "varchar(18)",
        FieldKind::Text { .. } | FieldKind::Picklist | FieldKind::MultiPicklist | FieldKind::Relationship { .. } => {
            "text"
        }
        FieldKind::Boolean => "boolean",
        FieldKind::Integer => "integer",
        FieldKind::Number { .. } => "numeric",
        FieldKind::Date => "date",
        FieldKind::DateTime => "timestamptz",
        FieldKind::Time => "time",
    }
}

fn size(field: &FieldDef, column: &ColumnDetail) -> Option<Judgement> {
    match (&field.kind, column.length, numeric_scale(&column.type_name)) {
        (FieldKind::Id | FieldKind::Reference { .. }, Some(length), _) if length < ID_LENGTH => Some((
            Severity::Error,
            format!("the column holds {length} characters, and Salesforce ids have {ID_LENGTH}"),
            "change its type to varchar(18)".to_owned(),
        )),
        (FieldKind::Text { length: wanted }, Some(length), _) if length < *wanted => Some((
            Severity::Warning,
            format!(
                "the column holds {length} characters, and field {} up to {wanted}: longer ones are refused",
                field.name
            ),
            format!("change its type to varchar({wanted}) or text"),
        )),
        (FieldKind::Number { scale }, _, Some(held)) if held < u32::from(*scale) => Some((
            Severity::Warning,
            format!(
                "the column keeps {held} digits after the point, and field {} {scale}: what is rounded here goes back to \
                 Salesforce",
                field.name
            ),
            format!("change its type to numeric with scale {scale}, or without limits"),
        )),
        _ => None,
    }
}

/// The scale of `numeric(p,s)`.
fn numeric_scale(type_name: &str) -> Option<u32> {
    type_name.strip_prefix("numeric(")?.strip_suffix(')')?.split_once(',')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{FieldId, ForeignEdit, Policy};

    fn field(kind: FieldKind) -> FieldDef {
        FieldDef {
            id: FieldId(0),
            name: "F__c".into(),
            column: "f".into(),
            kind,
            policy: Policy::SalesforceWins,
            owner: None,
            foreign_edit: ForeignEdit::Revert,
            createable: true,
            updateable: true,
        }
    }

    fn column(cast: &str, type_name: &str, category: char, length: Option<u32>) -> ColumnDetail {
        ColumnDetail {
            name: "f".into(),
            type_oid: 0,
            type_name: type_name.into(),
            cast: cast.into(),
            category,
            length,
            nullable: true,
            generated: false,
            defaulted: false,
            domain: false,
            labels: Vec::new(),
        }
    }

    fn worst(kind: FieldKind, column: &ColumnDetail) -> Option<Severity> {
        judge(&field(kind), column).into_iter().map(|(severity, _, _)| severity).max()
    }

    #[test]
    fn types_fit_well_poorly_or_never() {
        let varchar = |n| column("character varying", "character varying(n)", 'S', Some(n));
        let numeric = column("numeric", "numeric(10,2)", 'N', None);
        let (error, warning) = (Some(Severity::Error), Some(Severity::Warning));
        assert_eq!(worst(FieldKind::Text { length: 80 }, &varchar(80)), None);
        assert_eq!(worst(FieldKind::Text { length: 80 }, &varchar(40)), warning);
        assert_eq!(worst(FieldKind::Id, &varchar(18)), None);
        assert_eq!(worst(FieldKind::Id, &varchar(15)), error);
        assert_eq!(worst(FieldKind::Number { scale: 2 }, &numeric), None);
        assert_eq!(worst(FieldKind::Number { scale: 4 }, &numeric), warning);
        assert_eq!(worst(FieldKind::Number { scale: 2 }, &column("money", "money", 'N', None)), error);
        assert_eq!(worst(FieldKind::Boolean, &column("integer", "integer", 'N', None)), error);
        assert_eq!(worst(FieldKind::Boolean, &varchar(5)), warning);
        assert_eq!(worst(FieldKind::Picklist, &column("mood", "mood", 'E', None)), warning);
        assert_eq!(worst(FieldKind::MultiPicklist, &column("text[]", "text[]", 'A', None)), None);
        assert_eq!(worst(FieldKind::DateTime, &column("date", "date", 'D', None)), error);
        let mut computed = numeric.clone();
        computed.generated = true;
        assert_eq!(worst(FieldKind::Number { scale: 2 }, &computed), error);
        let mut required = numeric;
        required.nullable = false;
        assert_eq!(worst(FieldKind::Number { scale: 2 }, &required), warning);
    }
}
