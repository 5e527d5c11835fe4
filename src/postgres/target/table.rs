//! A mapped table as the target sees it, and the statements over it. Pure: descriptions in, SQL out.
//!
//! All statements are set-based: their parameters are arrays, one of ordinals and one of text per column, unnested on the
//! server and cast to the columns' types. Casts are to types without length, so that a value that does not fit is an error
//! of the assignment and is never cut in silence.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;

use crate::change::{FieldId, FieldKind, MappingDef, Value, WriteKind};
use crate::error::{Error, Kind, Result};
use crate::flow::{Write, WriteValue};
use crate::mapping::{to_postgres, to_postgres_array};
use crate::postgres::introspect::{ColumnDetail, TableDetail};

use super::texts::Texts;

/// Heroku Connect's bookkeeping columns: a row that we write says that it is in step.
const LAST_OPERATION: &str = "_hc_lastop";
const LAST_ERROR: &str = "_hc_err";

const OID_BOOL: u32 = 16;
const OID_INT8: u32 = 20;
const OID_INT2: u32 = 21;
const OID_INT4: u32 = 23;
const OID_TEXT: u32 = 25;
const OID_FLOAT8: u32 = 701;
const OID_VARCHAR: u32 = 1043;
const OID_DATE: u32 = 1082;
const OID_TIME: u32 = 1083;
const OID_TIMESTAMP: u32 = 1114;
const OID_TIMESTAMPTZ: u32 = 1184;
const OID_NUMERIC: u32 = 1700;

/// A column as statements name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// The name, quoted.
    pub(super) quoted: String,
    /// The type to cast text to.
    cast: String,
    /// The type.
    pub(super) type_oid: u32,
    /// Whether the server computes it.
    pub(super) generated: bool,
}

/// A mapped column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// What its values look like.
    pub(super) kind: FieldKind,
    /// The sObject field's name, for messages.
    pub(super) name: String,
    /// Its column.
    pub(super) column: Column,
}

/// How a write finds its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Locator {
    /// By primary key.
    Key,
    /// By the value of a field that names the record: its Salesforce id or its external id.
    Field(FieldId),
}

/// A mapped table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// `schema.table`, for messages.
    pub(super) label: String,
    pub(super) quoted: String,
    pub(super) keys: Vec<Column>,
    /// Mapped fields whose columns are key columns.
    pub(super) key_fields: BTreeSet<FieldId>,
    /// The mapped fields.
    pub(super) fields: BTreeMap<FieldId, Field>,
    /// The field that holds the Salesforce id.
    pub(super) id: Option<FieldId>,
    /// The external id field.
    pub(super) external: Option<FieldId>,
    /// Naming fields that a unique index guards.
    enforced: BTreeSet<FieldId>,
    /// Fields that a unique index guards and that can be null.
    vacated: BTreeSet<FieldId>,
    /// Whether `ON CONFLICT` can be used: it cannot where a unique index is deferrable, nor beside rules.
    on_conflict: bool,
    /// Whether it has Heroku Connect's bookkeeping columns.
    bookkeeping: bool,
}

impl Table {
    /// The table of a mapping, as the catalogs describe it.
    pub(super) fn new(mapping: &MappingDef, detail: &TableDetail) -> Result<Self> {
        let label = format!("{}.{}", mapping.schema, mapping.table);
        let find = |name: &str| {
            detail.column(name).map(Column::new).ok_or_else(|| {
                Error::new(
                    Kind::Configuration,
                    format!(
                        "table {label} has no column {name:?}, which mapping {:?} needs; add it, or change the mapping",
                        mapping.name
                    ),
                )
            })
        };
        let keys = mapping.key_columns.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            return Err(Error::new(
                Kind::Configuration,
                format!("table {label} has no primary key; add one, since rows are found by it"),
            ));
        }
        let mut fields = BTreeMap::new();
        for def in &mapping.fields {
            let field = Field { kind: def.kind.clone(), name: def.name.clone(), column: find(&def.column)? };
            fields.insert(def.id, field);
        }
        let key_fields =
            mapping.fields.iter().filter(|def| mapping.key_columns.contains(&def.column)).map(|def| def.id).collect();
        let id = mapping.id_field().map(|def| def.id);
        let enforced = mapping
            .fields
            .iter()
            .filter(|def| Some(def.id) == id || Some(def.id) == mapping.external_id)
            .filter(|def| detail.enforces(&def.column))
            .map(|def| def.id)
            .collect();
        let guarded = |column: &str| detail.unique.iter().any(|index| index.columns.iter().any(|name| name == column));
        let nullable = |column: &str| detail.column(column).is_some_and(|column| column.nullable);
        let followed = |column: &str| detail.followed.iter().any(|name| name == column);
        let vacated = |column: &str| guarded(column) && nullable(column) && !followed(column);
        let vacated = mapping.fields.iter().filter(|def| vacated(&def.column));
        Ok(Self {
            vacated: vacated.map(|def| def.id).collect(),
            quoted: format!("{}.{}", escape_identifier(&mapping.schema), escape_identifier(&mapping.table)),
            label,
            keys,
            key_fields,
            fields,
            id,
            external: mapping.external_id,
            enforced,
            on_conflict: !detail.has_rules && detail.unique.iter().all(|index| index.immediate),
            bookkeeping: [LAST_OPERATION, LAST_ERROR].iter().all(|name| detail.column(name).is_some()),
        })
    }

    /// How many columns the primary key has.
    pub(super) fn key_width(&self) -> usize {
        self.keys.len()
    }

    /// Whether the field's column is given by the key of the write: a create that carries its key.
    pub(super) fn given_by_key(&self, field: FieldId, write: &Write) -> bool {
        write.kind == WriteKind::Create && write.key.is_some() && self.key_fields.contains(&field)
    }

    /// The fields that name a record, where no unique index guards one of them: rows that have them must be looked for.
    pub(super) fn unguarded(&self) -> Vec<FieldId> {
        let naming = self.naming();
        if naming.iter().all(|field| self.enforced.contains(field)) { Vec::new() } else { naming }
    }

    /// The fields that name a record: its Salesforce id, its external id.
    pub(super) fn naming(&self) -> Vec<FieldId> {
        [self.id, self.external].into_iter().flatten().collect()
    }

    /// Parameters: ordinals; the locator's texts (one array per key column, or one). Answers, for each row found, which
    /// it then holds locked: the ordinal, the key columns' texts, the fields' texts. Rows that others hold locked are left out.
    pub(super) fn select(&self, locator: Locator, fields: &[FieldId]) -> String {
        let located = self.located(locator);
        let mut outputs = vec!["w.n".to_owned()];
        outputs.extend(self.keys.iter().map(|key| key.text("t")));
        outputs.extend(self.columns(fields).map(|column| column.text("t")));
        format!(
            "SELECT {} FROM {} JOIN {} AS t ON {} FOR UPDATE OF t SKIP LOCKED",
            outputs.join(", "),
            source(located.len(), 0),
            self.quoted,
            matches(&located),
        )
    }

    /// Parameters as for [`Table::select`]. Answers, for each row there is, locked or not, the ordinal.
    pub(super) fn count(&self, locator: Locator) -> String {
        let located = self.located(locator);
        format!("SELECT w.n FROM {} JOIN {} AS t ON {}", source(located.len(), 0), self.quoted, matches(&located))
    }

    /// Whether no more than one row can be found by it.
    pub(super) fn names_one(&self, locator: Locator) -> bool {
        match locator {
            Locator::Key => true,
            Locator::Field(field) => self.enforced.contains(&field),
        }
    }

    /// Parameters: ordinals; one array per key column if `with_key`; one per naming field. Answers the ordinals of those
    /// whose own row exists: one with the key, or the Salesforce id, or with the external id and no other Salesforce id.
    pub(super) fn lookup(&self, with_key: bool) -> String {
        let keys = if with_key { self.keys.len() } else { 0 };
        let mut tests = Vec::new();
        if with_key {
            tests.push(matches(&self.located(Locator::Key)));
        }
        let naming = self.naming();
        let columns: Vec<&Column> = self.columns(&naming).collect();
        for (n, column) in columns.iter().enumerate() {
            let same = format!("t.{} = {}", column.quoted, column.value(&format!("w.v{n}")));
            let test = match columns.first() {
                Some(id) if n > 0 => format!(
                    "{same} AND (w.v0 IS NULL OR coalesce({}, '') IN ('', w.v0, substr(w.v0, 1, 15)))",
                    id.text("t")
                ),
                _ => same,
            };
            tests.push(test);
        }
        let exists = |test: &String| format!("EXISTS (SELECT FROM {} AS t WHERE {test})", self.quoted);
        let tests: Vec<String> = tests.iter().map(exists).collect();
        let test = if tests.is_empty() { "false".to_owned() } else { tests.join(" OR ") };
        format!("SELECT w.n FROM {} WHERE {test}", source(keys, naming.len()))
    }

    /// Parameters: ordinals; one array per key column if `with_key`; one per field.
    /// With `yielding`, rows that meet an existing row in any unique index are left out instead of being an error.
    pub(super) fn insert(&self, with_key: bool, fields: &[FieldId], yielding: bool) -> String {
        let mut names = Vec::new();
        let mut values = Vec::new();
        if with_key {
            for (n, key) in self.keys.iter().enumerate() {
                names.push(key.quoted.clone());
                values.push(key.value(&format!("w.k{n}")));
            }
        }
        for (n, id) in fields.iter().enumerate() {
            if let Some(field) = self.fields.get(id) {
                names.push(field.column.quoted.clone());
                values.push(field.column.value(&format!("w.v{n}")));
            }
        }
        if self.bookkeeping {
            names.extend([escape_identifier(LAST_OPERATION), escape_identifier(LAST_ERROR)]);
            values.extend(["'SYNCED'".to_owned(), "NULL".to_owned()]);
        }
        let keys = if with_key { self.keys.len() } else { 0 };
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}{}",
            self.quoted,
            names.join(", "),
            values.join(", "),
            source(keys, fields.len()),
            if yielding && self.on_conflict { " ON CONFLICT DO NOTHING" } else { "" },
        )
    }

    /// Parameters: ordinals; one array per key column; one per field; one per field that is compared. A row that holds something
    /// else in one of the latter is left as it is.
    pub(super) fn update(&self, fields: &[FieldId], compared: &[FieldId]) -> String {
        let mut sets = Vec::new();
        for (n, id) in fields.iter().enumerate() {
            if let Some(field) = self.fields.get(id) {
                let value = field.column.value(&format!("w.v{n}"));
                sets.push(format!("{} = {value}", field.column.quoted));
            }
        }
        if self.bookkeeping {
            sets.push(format!("{} = 'SYNCED'", escape_identifier(LAST_OPERATION)));
            sets.push(format!("{} = NULL", escape_identifier(LAST_ERROR)));
        }
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {}{}",
            self.quoted,
            sets.join(", "),
            source(self.keys.len(), fields.len() + compared.len()),
            matches(&self.located(Locator::Key)),
            self.holds(compared, fields.len()),
        )
    }

    /// Whether the field's value can be taken away for a while, so that another row can have it.
    pub(super) fn is_vacated(&self, field: FieldId) -> bool {
        self.vacated.contains(&field)
    }

    /// Parameters: ordinals; one array per key column. Takes the values of these fields away.
    pub(super) fn vacate(&self, fields: &[FieldId]) -> String {
        let sets: Vec<String> = self.columns(fields).map(|column| format!("{} = NULL", column.quoted)).collect();
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {}",
            self.quoted,
            sets.join(", "),
            source(self.keys.len(), 0),
            matches(&self.located(Locator::Key)),
        )
    }

    /// Parameters: ordinals; one array per key column; one per field that is compared. A row that holds something else in one of
    /// the latter is left as it is.
    pub(super) fn delete(&self, compared: &[FieldId]) -> String {
        format!(
            "DELETE FROM {} AS t USING {} WHERE {}{}",
            self.quoted,
            source(self.keys.len(), compared.len()),
            matches(&self.located(Locator::Key)),
            self.holds(compared, 0),
        )
    }

    /// The condition that a row of `t` holds the expected values, which are those of the source from `first` on.
    fn holds(&self, compared: &[FieldId], first: usize) -> String {
        let tests = self.columns(compared).enumerate().map(|(n, column)| {
            let (own, expected) = (&column.quoted, column.value(&format!("w.v{}", first + n)));
            // By its bytes, whatever the column's own collation takes for the same.
            let bytes = if column.is_text() { "::pg_catalog.text COLLATE pg_catalog.\"C\"" } else { "" };
            format!(" AND t.{own}{bytes} IS NOT DISTINCT FROM {expected}")
        });
        tests.collect()
    }

    /// The parameter for a field: of each write the text of one of its values, which `choose` takes.
    pub(super) fn column_of<'a>(
        &self,
        id: FieldId,
        writes: impl Iterator<Item = &'a Write>,
        choose: fn(&WriteValue) -> &Value,
    ) -> Texts {
        let mut texts = Texts::default();
        let described = self.fields.get(&id);
        for write in writes {
            let value = write.values.iter().find(|value| value.field == id).map(choose);
            texts.push(described.zip(value).and_then(|(field, value)| field.print(value)).as_deref());
        }
        texts
    }

    fn columns<'a>(&'a self, fields: &'a [FieldId]) -> impl Iterator<Item = &'a Column> {
        fields.iter().filter_map(|id| self.fields.get(id)).map(|field| &field.column)
    }

    fn located(&self, locator: Locator) -> Vec<&Column> {
        match locator {
            Locator::Key => self.keys.iter().collect(),
            Locator::Field(field) => self.fields.get(&field).map(|field| &field.column).into_iter().collect(),
        }
    }
}

impl Field {
    /// The text to write for a value, which the server can cast to the column's type.
    ///
    /// An array is a list of choices to a multi-select picklist. To any other field it is its text.
    pub(super) fn print<'a>(&self, value: &'a Value) -> Option<Cow<'a, str>> {
        if self.kind == FieldKind::MultiPicklist && self.column.cast.ends_with("[]") {
            to_postgres_array(&self.kind, value).map(Cow::Owned)
        } else {
            to_postgres(&self.kind, value)
        }
    }

    /// Whether two values of the column that are equal to the server are equal canonically. So they are not where its equality
    /// is loose (`citext`, `interval`, `jsonb`), or where the field takes the text of another type as it is (`1.0` and `1.00`).
    pub(super) fn is_compared(&self) -> bool {
        let types: &[u32] = match self.kind {
            FieldKind::Text { .. }
            | FieldKind::Picklist
            | FieldKind::MultiPicklist
            | FieldKind::Relationship { .. }
            | FieldKind::Id
            | FieldKind::Reference { .. } => &[OID_TEXT, OID_VARCHAR],
            FieldKind::Boolean => &[OID_BOOL],
            FieldKind::Integer | FieldKind::Number { .. } => &[OID_INT2, OID_INT4, OID_INT8, OID_FLOAT8, OID_NUMERIC],
            FieldKind::Date => &[OID_DATE],
            FieldKind::DateTime => &[OID_TIMESTAMP, OID_TIMESTAMPTZ],
            FieldKind::Time => &[OID_TIME],
        };
        types.contains(&self.column.type_oid)
    }
}

impl Column {
    fn new(detail: &ColumnDetail) -> Self {
        Self {
            quoted: escape_identifier(&detail.name),
            cast: detail.cast.clone(),
            type_oid: detail.type_oid,
            generated: detail.generated,
        }
    }

    pub(super) fn is_whole_number(&self) -> bool {
        matches!(self.type_oid, OID_INT2 | OID_INT4 | OID_INT8)
    }

    fn is_text(&self) -> bool {
        matches!(self.type_oid, OID_TEXT | OID_VARCHAR)
    }

    /// The column of `table` as the text that the type's output function gives, which is what the stream carries. A cast
    /// to text gives another for some types (`t` and `true`, `10.0.0.1` and `10.0.0.1/32`).
    pub(super) fn text(&self, table: &str) -> String {
        let column = format!("{table}.{}", self.quoted);
        if self.is_text() {
            format!("{column}::pg_catalog.text")
        } else {
            format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN pg_catalog.concat({column}) END")
        }
    }

    /// The expression for a value of the column's type from text.
    pub(super) fn value(&self, text: &str) -> String {
        match self.type_oid {
            OID_TEXT => text.to_owned(),
            _ => format!("{text}::{}", self.cast),
        }
    }
}

/// The unnested parameters as a row source `w (n, k0.., v0..)`.
fn source(keys: usize, values: usize) -> String {
    let mut arrays = vec!["$1::pg_catalog.int4[]".to_owned()];
    arrays.extend((0..keys + values).map(|n| format!("${}::pg_catalog.text[]", n + 2)));
    let mut names = vec!["n".to_owned()];
    names.extend((0..keys).map(|n| format!("k{n}")));
    names.extend((0..values).map(|n| format!("v{n}")));
    // The multi-argument form of unnest is syntax, not a function, and takes no schema.
    format!("unnest({}) AS w ({})", arrays.join(", "), names.join(", "))
}

/// The condition that a row of `t` has the located columns' values.
fn matches(located: &[&Column]) -> String {
    let tests: Vec<String> = located
        .iter()
        .enumerate()
        .map(|(n, column)| format!("t.{} = {}", column.quoted, column.value(&format!("w.k{n}"))))
        .collect();
    tests.join(" AND ")
}
