//! Queries bound to the org's schema, and their evaluation over rows.

use std::cmp::Ordering;
use std::collections::HashSet;

use smol_str::SmolStr;

use super::parser::{Condition, Function, Item, Literal, Operator, Query};
use super::{malformed, parse};
use crate::sandbox::refusal::Refusal;
use crate::sandbox::schema::{ID, Kind, Object, Schema};
use crate::sandbox::table::{Row, Table, get, key};
use crate::sandbox::value::{Value, compare_folded};
use crate::sandbox::{id, time};

/// What a query sees: the schema, the rows, and the time that relative dates count from.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) tables: &'a [Table],
    pub(crate) now_ms: i64,
}

/// A field of the record or of one of its parents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    /// Reference fields to follow, each with the object that it leads to.
    pub(crate) hops: Vec<(usize, usize)>,
    /// The object that the field belongs to.
    pub(crate) object: usize,
    pub(crate) field: usize,
}

impl Column {
    /// The value of this column for `row`.
    pub(crate) fn value<'a>(&self, view: View<'a>, row: &'a Row) -> Option<&'a Value> {
        let mut row = row;
        for (field, object) in &self.hops {
            let id = get(row, *field)?.text()?;
            let table = view.tables.get(*object)?;
            row = table.row(table.find(id)?)?;
        }
        get(row, self.field)
    }
}

/// What one selected item gives.
#[derive(Debug, Clone)]
pub(crate) enum Selected {
    /// A field; the names are those of the path as the object defines them.
    Field { names: Vec<String>, column: Column },
    /// An aggregate and the key that its value gets.
    Aggregate { key: String, function: Function, column: Column },
    /// Child records: the relationship's name, the reference field of the children, and their query.
    Children { name: String, field: usize, plan: Box<Plan> },
}

/// A bound query.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) object: usize,
    pub(crate) select: Vec<Selected>,
    pub(crate) count_only: bool,
    pub(crate) group: Vec<(String, Column)>,
    filter: Option<Bound>,
    order: Vec<(Column, bool, bool)>,
    pub(crate) limit: Option<usize>,
    pub(crate) offset: usize,
}

/// A bound condition.
#[derive(Debug, Clone)]
pub(crate) enum Bound {
    And(Vec<Bound>),
    Or(Vec<Bound>),
    Not(Box<Bound>),
    Compare { column: Column, operator: Operator, operand: Operand },
    Like { column: Column, pattern: Vec<char> },
    In { column: Column, keys: HashSet<SmolStr>, null: bool, exact: bool, negated: bool },
    Includes { column: Column, sets: Vec<Vec<String>>, negated: bool },
}

/// What a value is compared with.
#[derive(Debug, Clone)]
pub(crate) enum Operand {
    Null,
    Value(Value),
    /// From the first to before the second, in the unit of the field.
    Range(i64, i64),
}

fn no_column(name: &str, object: &Object) -> Refusal {
    Refusal::new(
        "INVALID_FIELD",
        format!(
            "No such column '{name}' on entity '{}'. If you are attempting to use a custom field, be sure to append the \
             '__c' after the custom field name. Please reference your WSDL or the describe call for the appropriate names.",
            object.name
        ),
    )
}

/// Looks up `path` from `object`; the names come back as they are defined.
fn column(schema: &Schema, object: usize, path: &str) -> Result<(Vec<String>, Column), Refusal> {
    let mut names = Vec::new();
    let mut hops = Vec::new();
    let mut at = object;
    let mut segments: Vec<&str> = path.split('.').collect();
    if segments.len() > 1 && schema.objects[at].name.eq_ignore_ascii_case(segments[0]) {
        let as_parent = schema.objects[at].relationship(segments[0]).is_some();
        if !as_parent {
            segments.remove(0);
        }
    }
    let last = segments.pop().unwrap_or_default();
    for segment in segments {
        let object = &schema.objects[at];
        let missing = || {
            Refusal::new(
                "INVALID_FIELD",
                format!(
                    "Didn't understand relationship '{segment}' in field path. If you are attempting to use a custom \
                         relationship, be sure to append the '__r' after the custom relationship name."
                ),
            )
        };
        let field = object.relationship(segment).ok_or_else(missing)?;
        let target =
            object.fields[field].reference_to.first().and_then(|name| schema.object(name)).ok_or_else(missing)?;
        names.push(object.fields[field].relationship.clone().unwrap_or_default());
        hops.push((field, target));
        at = target;
    }
    let object = &schema.objects[at];
    let field = object.field(last).ok_or_else(|| no_column(last, object))?;
    names.push(object.fields[field].name.to_string());
    Ok((names, Column { hops, object: at, field }))
}

impl Plan {
    /// Binds a query.
    pub(crate) fn bind(view: View<'_>, query: &Query) -> Result<Self, Refusal> {
        let object = view.schema.object(&query.from).ok_or_else(|| Refusal::no_object(&query.from))?;
        Self::bind_on(view, query, object)
    }

    /// Parses and binds a query.
    pub(crate) fn of(view: View<'_>, text: &str) -> Result<Self, Refusal> {
        Self::bind(view, &parse(text)?)
    }

    fn bind_on(view: View<'_>, query: &Query, object: usize) -> Result<Self, Refusal> {
        let mut plan = Self {
            object,
            select: Vec::new(),
            count_only: false,
            group: Vec::new(),
            filter: None,
            order: Vec::new(),
            limit: query.limit,
            offset: query.offset,
        };
        if query.offset > 2000 {
            return Err(Refusal::new("NUMBER_OUTSIDE_VALID_RANGE", "Maximum SOQL offset allowed is 2000"));
        }
        for item in &query.select {
            plan.select_item(view, item, query)?;
        }
        for path in &query.group {
            let (names, column) = column(view.schema, object, path)?;
            plan.group.push((names.last().cloned().unwrap_or_default(), column));
        }
        plan.check_grouping()?;
        plan.filter = query.filter.as_ref().map(|c| bind_condition(view, object, c)).transpose()?;
        for order in &query.order {
            let (_, column) = column(view.schema, object, &order.path)?;
            plan.order.push((column, order.descending, order.nulls_last));
        }
        Ok(plan)
    }

    fn check_grouping(&self) -> Result<(), Refusal> {
        let aggregates = self.select.iter().any(|s| matches!(s, Selected::Aggregate { .. }));
        let stray = self.select.iter().find_map(|s| match s {
            Selected::Field { names, column } if !self.group.iter().any(|(_, c)| c == column) => Some(names.join(".")),
            _ => None,
        });
        match stray {
            Some(name) if aggregates || !self.group.is_empty() => {
                Err(malformed(format!("Field must be grouped or aggregated: {name}")))
            }
            _ => Ok(()),
        }
    }

    fn select_item(&mut self, view: View<'_>, item: &Item, query: &Query) -> Result<(), Refusal> {
        let schema = view.schema;
        match item {
            Item::CountAll if query.select.len() == 1 => self.count_only = true,
            Item::CountAll => return Err(malformed("COUNT() must be the only thing that is selected")),
            Item::Field(path) => {
                let (names, column) = column(schema, self.object, path)?;
                let selected = Selected::Field { names, column };
                self.select.push(selected);
            }
            Item::Fields { standard, custom } => {
                if *custom && query.limit.is_none_or(|limit| limit > 200) {
                    return Err(malformed("The SOQL FIELDS function must have a LIMIT of at most 200"));
                }
                for (field, definition) in schema.objects[self.object].fields.iter().enumerate() {
                    if !definition.removed && if definition.custom { *custom } else { *standard } {
                        let names = vec![definition.name.to_string()];
                        let column = Column { hops: Vec::new(), object: self.object, field };
                        self.select.push(Selected::Field { names, column });
                    }
                }
            }
            Item::Aggregate { function, path, alias } => {
                let (_, column) = column(schema, self.object, path)?;
                let unnamed = self
                    .select
                    .iter()
                    .filter(|s| matches!(s, Selected::Aggregate { key, .. } if key.starts_with("expr")));
                let key = alias.clone().unwrap_or_else(|| format!("expr{}", unnamed.count()));
                self.select.push(Selected::Aggregate { key, function: *function, column });
            }
            Item::Children(inner) => {
                let child = schema.children(self.object).iter().find(|child| {
                    let field = &schema.objects[child.object].fields[child.field];
                    field
                        .child_relationship
                        .as_deref()
                        .is_some_and(|name| relationship_is(name, field.custom, &inner.from))
                });
                let child = child.ok_or_else(|| {
                    let message =
                        format!("Didn't understand relationship '{}' in FROM part of query call.", inner.from);
                    Refusal::new("INVALID_TYPE", message)
                })?;
                let plan = Box::new(Self::bind_on(view, inner, child.object)?);
                self.select.push(Selected::Children { name: inner.from.clone(), field: child.field, plan });
            }
        }
        Ok(())
    }

    /// The positions of the rows that the query selects, in its order, before LIMIT and OFFSET where it groups.
    pub(crate) fn run(&self, view: View<'_>, with_deleted: bool) -> Vec<usize> {
        let candidates = self.candidates(view, with_deleted);
        self.choose(view, candidates, with_deleted)
    }

    /// The same among the children of a record.
    pub(crate) fn run_children(&self, view: View<'_>, field: usize, parent: &str, with_deleted: bool) -> Vec<usize> {
        let table = &view.tables[self.object];
        let rows = table.children(field, parent).unwrap_or_default();
        self.choose(view, Some(rows), with_deleted)
    }

    fn choose(&self, view: View<'_>, candidates: Option<Vec<usize>>, with_deleted: bool) -> Vec<usize> {
        let table = &view.tables[self.object];
        let matches = |position: &usize| {
            (with_deleted || !table.is_deleted(*position))
                && table.row(*position).is_some_and(|row| self.filter.as_ref().is_none_or(|f| f.holds(view, row)))
        };
        let mut rows: Vec<usize> = match candidates {
            Some(rows) => rows.into_iter().filter(matches).collect(),
            None => (0..table.len()).filter(matches).collect(),
        };
        if !self.order.is_empty() {
            rows.sort_by(|a, b| self.compare(view, *a, *b));
        }
        if self.group.is_empty() && !self.is_aggregate() {
            rows.drain(..self.offset.min(rows.len()));
            rows.truncate(self.limit.unwrap_or(usize::MAX));
        }
        rows
    }

    /// Whether the result is made of aggregates.
    pub(crate) fn is_aggregate(&self) -> bool {
        !self.group.is_empty() || self.select.iter().any(|s| matches!(s, Selected::Aggregate { .. }))
    }

    fn compare(&self, view: View<'_>, a: usize, b: usize) -> Ordering {
        let table = &view.tables[self.object];
        let (Some(a), Some(b)) = (table.row(a), table.row(b)) else { return Ordering::Equal };
        for (column, descending, nulls_last) in &self.order {
            let exact = is_id(view.schema, column);
            let ordering = match (column.value(view, a), column.value(view, b)) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => {
                    if *nulls_last {
                        Ordering::Greater
                    } else {
                        Ordering::Less
                    }
                }
                (Some(_), None) => {
                    if *nulls_last {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    }
                }
                (Some(a), Some(b)) => {
                    let ordering = if exact { a.text().cmp(&b.text()) } else { a.order(b) };
                    if *descending { ordering.reverse() } else { ordering }
                }
            };
            if ordering != Ordering::Equal {
                return ordering;
            }
        }
        Ordering::Equal
    }

    /// Rows that an index gives for a part of the filter that must hold; `None` means all rows.
    fn candidates(&self, view: View<'_>, with_deleted: bool) -> Option<Vec<usize>> {
        let table = &view.tables[self.object];
        let conditions = match self.filter.as_ref()? {
            Bound::And(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        let indexed = |column: &Column, key: &str| {
            if column.field == ID {
                return Some(table.find(key).into_iter().collect::<Vec<_>>());
            }
            // The other indexes leave deleted rows out.
            if with_deleted {
                return None;
            }
            table.lookup(column.field, key).map(<[usize]>::to_vec).or_else(|| table.children(column.field, key))
        };
        let exact = |column: &Column| is_id(view.schema, column);
        conditions.iter().find_map(|condition| match condition {
            Bound::Compare { column, operator: Operator::Equal, operand: Operand::Value(value) }
                if column.hops.is_empty() =>
            {
                indexed(column, &set_key(value, exact(column)))
            }
            Bound::In { column, keys, null: false, negated: false, .. } if column.hops.is_empty() => {
                let found: Option<Vec<Vec<usize>>> = keys.iter().map(|key| indexed(column, key)).collect();
                let mut rows = found?.concat();
                rows.sort_unstable();
                rows.dedup();
                Some(rows)
            }
            _ => None,
        })
    }
}

/// Whether a child relationship is called `given`; custom ones end with `__r`.
fn relationship_is(name: &str, custom: bool, given: &str) -> bool {
    let given = if custom { given.strip_suffix("__r").unwrap_or(given) } else { given };
    name.eq_ignore_ascii_case(given)
}

fn is_id(schema: &Schema, column: &Column) -> bool {
    matches!(schema.objects[column.object].fields[column.field].kind, Kind::Id | Kind::Reference)
}

/// Binds a condition on records of `object`.
pub(crate) fn bind_condition(view: View<'_>, object: usize, condition: &Condition) -> Result<Bound, Refusal> {
    let all =
        |parts: &[Condition]| parts.iter().map(|part| bind_condition(view, object, part)).collect::<Result<_, _>>();
    let schema = view.schema;
    Ok(match condition {
        Condition::And(parts) => Bound::And(all(parts)?),
        Condition::Or(parts) => Bound::Or(all(parts)?),
        Condition::Not(inner) => Bound::Not(Box::new(bind_condition(view, object, inner)?)),
        Condition::Compare { path, operator: Operator::Like, literal } => {
            let column = filter_column(schema, object, path)?;
            let Literal::Text(pattern) = literal else { return Err(malformed("LIKE takes a string")) };
            Bound::Like { column, pattern: pattern.to_lowercase().chars().collect() }
        }
        Condition::Compare { path, operator, literal } => {
            let column = filter_column(schema, object, path)?;
            let operand = operand(view, &column, literal)?;
            Bound::Compare { column, operator: *operator, operand }
        }
        Condition::In { path, literals, negated } => bind_in(view, object, path, literals, *negated)?,
        Condition::InSelect { path, query, negated } => {
            let column = filter_column(schema, object, path)?;
            let plan = Plan::bind(view, query)?;
            let [Selected::Field { column: inner, .. }] = plan.select.as_slice() else {
                return Err(malformed("an inner query selects one field"));
            };
            let table = &view.tables[plan.object];
            let rows = plan.run(view, false);
            let values = rows.iter().filter_map(|r| table.row(*r)).filter_map(|row| inner.value(view, row));
            let exact = is_id(schema, &column);
            let keys = values.map(|v| set_key(v, exact)).collect();
            Bound::In { column, keys, null: false, exact, negated: *negated }
        }
        Condition::Includes { path, values, negated } => {
            let sets = values.iter().map(|v| v.split(';').map(|s| s.trim().to_lowercase()).collect()).collect();
            Bound::Includes { column: filter_column(schema, object, path)?, sets, negated: *negated }
        }
    })
}

fn bind_in(view: View<'_>, object: usize, path: &str, literals: &[Literal], negated: bool) -> Result<Bound, Refusal> {
    let column = filter_column(view.schema, object, path)?;
    let exact = is_id(view.schema, &column);
    let (mut keys, mut null) = (HashSet::new(), false);
    let mut ranges = Vec::new();
    for literal in literals {
        match operand(view, &column, literal)? {
            Operand::Null => null = true,
            Operand::Value(value) => {
                keys.insert(set_key(&value, exact));
            }
            range @ Operand::Range(..) => ranges.push(range),
        }
    }
    let listed = Bound::In { column: column.clone(), keys, null, exact, negated: false };
    let mut parts = vec![listed];
    parts.extend(ranges.into_iter().map(|operand| Bound::Compare {
        column: column.clone(),
        operator: Operator::Equal,
        operand,
    }));
    Ok(match (parts.len(), negated) {
        (1, _) => {
            let Some(Bound::In { column, keys, null, exact, .. }) = parts.pop() else {
                return Ok(Bound::And(Vec::new()));
            };
            Bound::In { column, keys, null, exact, negated }
        }
        (_, false) => Bound::Or(parts),
        (_, true) => Bound::Not(Box::new(Bound::Or(parts))),
    })
}

fn set_key(value: &Value, exact: bool) -> SmolStr {
    match value {
        Value::Text(text) if exact => text.clone(),
        other => key(other),
    }
}

fn filter_column(schema: &Schema, object: usize, path: &str) -> Result<Column, Refusal> {
    let (_, column) = column(schema, object, path)?;
    let field = &schema.objects[column.object].fields[column.field];
    if !field.filterable() {
        let message = format!("field '{}' can not be filtered in a query call", field.name);
        return Err(Refusal::new("INVALID_FIELD", message));
    }
    Ok(column)
}

/// The value that `literal` is for a column, if their types fit.
fn operand(view: View<'_>, column: &Column, literal: &Literal) -> Result<Operand, Refusal> {
    let field = &view.schema.objects[column.object].fields[column.field];
    let wrong = |quoted: bool| {
        let how = if quoted { "should not be enclosed in quotes" } else { "should be enclosed in quotes" };
        let kind = field.kind.name();
        Refusal::new(
            "INVALID_FIELD",
            format!("value of filter criterion for field '{}' must be of type {kind} and {how}", field.name),
        )
    };
    let value = match (field.kind, literal) {
        (_, Literal::Null) => return Ok(Operand::Null),
        (Kind::Boolean, Literal::Bool(value)) => Value::Bool(*value),
        (Kind::Id | Kind::Reference, Literal::Text(text)) => {
            let normal = id::normalise(text)
                .ok_or_else(|| Refusal::new("INVALID_QUERY_FILTER_OPERATOR", format!("invalid ID field: {text}")))?;
            Value::Text(normal)
        }
        (kind, Literal::Text(text)) if kind.is_text() => Value::Text(text.as_str().into()),
        (Kind::Int | Kind::Double | Kind::Currency | Kind::Percent, Literal::Number(text)) => {
            Value::Double(text.parse().map_err(|_| wrong(false))?)
        }
        (Kind::Date, Literal::Date(days)) => Value::Date(*days),
        (Kind::DateTime, Literal::DateTime(ms)) => Value::DateTime(*ms),
        (Kind::Date, Literal::Relative(word, n)) => {
            let (from, to) = relative(word, *n, view.now_ms)?;
            return Ok(Operand::Range(from, to));
        }
        (Kind::DateTime, Literal::Relative(word, n)) => {
            let (from, to) = relative(word, *n, view.now_ms)?;
            return Ok(Operand::Range(from * time::DAY_MS, to * time::DAY_MS));
        }
        (Kind::Time, Literal::Text(text)) => Value::Time(time::parse_time(text).ok_or_else(|| wrong(true))?),
        (_, Literal::Text(_)) => return Err(wrong(true)),
        _ => return Err(wrong(false)),
    };
    Ok(Operand::Value(value))
}

/// The days from the first to before the second that a date word means.
fn relative(word: &str, n: i64, now_ms: i64) -> Result<(i64, i64), Refusal> {
    let today = now_ms.div_euclid(time::DAY_MS);
    let (year, month, _) = time::civil_from_days(today);
    // 1970-01-01 was a Thursday; weeks begin on Sunday.
    let week = today - (today + 4).rem_euclid(7);
    let months = |count: i64| {
        let index = year * 12 + i64::from(month) - 1 + count;
        time::days_from_civil(index.div_euclid(12), index.rem_euclid(12) as u32 + 1, 1)
    };
    let quarter = |count: i64| months(count * 3 - (i64::from(month) - 1) % 3);
    let years = |count: i64| time::days_from_civil(year + count, 1, 1);
    Ok(match word {
        "TODAY" => (today, today + 1),
        "YESTERDAY" => (today - 1, today),
        "TOMORROW" => (today + 1, today + 2),
        "LAST_WEEK" => (week - 7, week),
        "THIS_WEEK" => (week, week + 7),
        "NEXT_WEEK" => (week + 7, week + 14),
        "LAST_MONTH" => (months(-1), months(0)),
        "THIS_MONTH" => (months(0), months(1)),
        "NEXT_MONTH" => (months(1), months(2)),
        "LAST_90_DAYS" => (today - 90, today + 1),
        "NEXT_90_DAYS" => (today + 1, today + 91),
        "LAST_QUARTER" | "LAST_FISCAL_QUARTER" => (quarter(-1), quarter(0)),
        "THIS_QUARTER" | "THIS_FISCAL_QUARTER" => (quarter(0), quarter(1)),
        "NEXT_QUARTER" | "NEXT_FISCAL_QUARTER" => (quarter(1), quarter(2)),
        "LAST_YEAR" | "LAST_FISCAL_YEAR" => (years(-1), years(0)),
        "THIS_YEAR" | "THIS_FISCAL_YEAR" => (years(0), years(1)),
        "NEXT_YEAR" | "NEXT_FISCAL_YEAR" => (years(1), years(2)),
        "LAST_N_DAYS" => (today - n, today + 1),
        "NEXT_N_DAYS" => (today + 1, today + n + 1),
        "N_DAYS_AGO" => (today - n, today - n + 1),
        "LAST_N_WEEKS" => (week - 7 * n, week),
        "NEXT_N_WEEKS" => (week + 7, week + 7 * (n + 1)),
        "LAST_N_MONTHS" => (months(-n), months(0)),
        "NEXT_N_MONTHS" => (months(1), months(n + 1)),
        "LAST_N_YEARS" => (years(-n), years(0)),
        "NEXT_N_YEARS" => (years(1), years(n + 1)),
        other => return Err(malformed(format!("unexpected token: '{other}'"))),
    })
}

impl Bound {
    /// Whether the condition holds for `row`.
    pub(crate) fn holds(&self, view: View<'_>, row: &Row) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.holds(view, row)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(view, row)),
            Self::Not(inner) => !inner.holds(view, row),
            Self::Compare { column, operator, operand } => {
                compare(column.value(view, row), *operator, operand, is_id(view.schema, column))
            }
            Self::Like { column, pattern } => column.value(view, row).and_then(Value::text).is_some_and(|text| {
                let text: Vec<char> = text.to_lowercase().chars().collect();
                like(&text, pattern)
            }),
            Self::In { column, keys, null, exact, negated } => {
                let found = match column.value(view, row) {
                    None => *null,
                    Some(value) => keys.contains(&set_key(value, *exact)),
                };
                found != *negated
            }
            Self::Includes { column, sets, negated } => {
                let has = column.value(view, row).and_then(Value::text).map(str::to_lowercase).unwrap_or_default();
                let has: Vec<&str> = has.split(';').collect();
                sets.iter().any(|set| set.iter().all(|v| has.contains(&v.as_str()))) != *negated
            }
        }
    }
}

fn compare(value: Option<&Value>, operator: Operator, operand: &Operand, exact: bool) -> bool {
    use Operator::{Equal, Greater, GreaterEqual, Less, LessEqual, Like, NotEqual};
    match (value, operand) {
        (None, Operand::Null) => operator == Equal,
        (Some(_), Operand::Null) | (None, _) => operator == NotEqual,
        (Some(value), Operand::Range(from, to)) => {
            let Some(at) = value.number().map(|n| n as i64) else { return false };
            match operator {
                Equal => (*from..*to).contains(&at),
                NotEqual => !(*from..*to).contains(&at),
                Less => at < *from,
                LessEqual => at < *to,
                Greater => at >= *to,
                GreaterEqual => at >= *from,
                Like => false,
            }
        }
        (Some(value), Operand::Value(other)) => {
            let ordering = match (value.text(), other.text()) {
                (Some(a), Some(b)) if exact => a.cmp(b),
                (Some(a), Some(b)) => compare_folded(a, b),
                _ => value.order(other),
            };
            match operator {
                Equal => ordering.is_eq(),
                NotEqual => ordering.is_ne(),
                Less => ordering.is_lt(),
                LessEqual => ordering.is_le(),
                Greater => ordering.is_gt(),
                GreaterEqual => ordering.is_ge(),
                Like => false,
            }
        }
    }
}

/// Whether `text` fits `pattern`, in which `%` is any text, `_` any character, and a backslash makes either plain.
fn like(text: &[char], pattern: &[char]) -> bool {
    let (mut t, mut p) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let (wanted, width) = match pattern.get(p) {
            Some('\\') => (pattern.get(p + 1).copied(), 2),
            other => (other.copied(), 1),
        };
        match wanted {
            Some('%') if width == 1 => {
                retry = Some((t, p + 1));
                p += 1;
            }
            Some(c) if c == text[t] || (c == '_' && width == 1) => {
                t += 1;
                p += width;
            }
            _ => match retry {
                Some((from, after)) => {
                    t = from + 1;
                    p = after;
                    retry = Some((from + 1, after));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_has_wildcards_and_escapes() {
        let fits =
            |text: &str, pattern: &str| like(&text.chars().collect::<Vec<_>>(), &pattern.chars().collect::<Vec<_>>());
        assert!(fits("acme", "a%"));
        assert!(fits("acme", "%m_"));
        assert!(fits("", "%"));
        assert!(fits("aXbXc", "a%X%c"));
        assert!(!fits("acme", "b%"));
        assert!(!fits("acme", "acm"));
        assert!(fits("50%", "50\\%"));
        assert!(!fits("500", "50\\%"));
    }

    #[test]
    fn date_words_are_ranges_of_days() {
        let now = time::parse_datetime("2026-11-21T10:00:00Z").unwrap();
        let range = |word: &str, n| {
            let (from, to) = relative(word, n, now).unwrap();
            format!("{} {}", time::format_date(from), time::format_date(to))
        };
        assert_eq!(range("TODAY", 0), "2026-11-21 2026-11-22");
        assert_eq!(range("LAST_WEEK", 0), "2026-11-08 2026-11-15");
        assert_eq!(range("THIS_MONTH", 0), "2026-11-01 2026-12-01");
        assert_eq!(range("THIS_QUARTER", 0), "2026-10-01 2027-01-01");
        assert_eq!(range("NEXT_YEAR", 0), "2027-01-01 2028-01-01");
        assert_eq!(range("LAST_N_DAYS", 3), "2026-11-18 2026-11-22");
        assert!(relative("SOMEDAY", 0, now).is_err());
        for word in ["DAYS", "WEEKS", "MONTHS", "YEARS"] {
            for word in [format!("LAST_N_{word}"), format!("NEXT_N_{word}")] {
                let (from, to) = relative(&word, 1_000_000, now).unwrap();
                assert!(from < to && [from, to].iter().all(|day| day.checked_mul(time::DAY_MS).is_some()), "{word}");
            }
        }
    }
}
