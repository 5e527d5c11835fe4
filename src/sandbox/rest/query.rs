//! `query` and `queryAll` with their pages.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::refusal::Refusal;
use super::super::soql::{Function, Plan, Selected, View};
use super::super::state::{Cursor, State};
use super::super::table::{Row, key};
use super::super::value::{Value, write_json, write_string};
use super::super::{id as ids, schema};
use super::rows::{write_attributes, write_field};
use super::{Request, Response};

/// Records of a page unless the client asks for fewer, and the fewest that it can ask for.
const PAGE: usize = 2000;
const SMALLEST_PAGE: usize = 200;

pub(super) fn query(state: &mut State, request: &Request, with_deleted: bool) -> Result<Response, Refusal> {
    let text = match (request.param("q"), request.param("explain")) {
        (Some(text), _) => text,
        (None, Some(text)) => return explain(state, request, text),
        (None, None) => return Err(Refusal::new("MALFORMED_QUERY", "SOQL statements cannot be empty or null")),
    };
    let view = state.view(request.now_ms);
    let plan = Plan::of(view, text)?;
    let rows = plan.run(view, with_deleted);
    if plan.count_only {
        return Ok(Response::ok(format!("{{\"totalSize\":{},\"done\":true,\"records\":[]}}", rows.len())));
    }
    if plan.is_aggregate() {
        return Ok(Response::ok(aggregate(view, &plan, &rows)));
    }
    let batch = request.batch_size.unwrap_or(PAGE).clamp(SMALLEST_PAGE, PAGE);
    if rows.len() <= batch {
        return Ok(Response::ok(page(view, request, &plan, &rows, rows.len(), None)));
    }
    let locator = ids::short(&ids::make("01g", state.rng.below(1 << 40))).to_owned();
    let next = format!("{}/query/{locator}-{batch}", request.base());
    let body = page(state.view(request.now_ms), request, &plan, &rows[..batch], rows.len(), Some(next));
    state.keep_cursor(Cursor { locator, user: request.user.as_str().into(), plan, rows, batch });
    Ok(Response::ok(body))
}

/// Says that a query is a scan, for clients that ask.
fn explain(state: &State, request: &Request, text: &str) -> Result<Response, Refusal> {
    let plan = Plan::of(state.view(request.now_ms), text)?;
    let table = &state.tables[plan.object];
    let name = &state.schema.objects[plan.object].name;
    Ok(Response::ok(format!(
        "{{\"plans\":[{{\"cardinality\":{0},\"fields\":[],\"leadingOperationType\":\"TableScan\",\"notes\":[],\
         \"relativeCost\":1.0,\"sobjectCardinality\":{0},\"sobjectType\":\"{name}\"}}]}}",
        table.alive()
    )))
}

/// The next page of a query.
pub(super) fn more(state: &mut State, request: &Request, given: &str) -> Result<Response, Refusal> {
    let bad = || Refusal::new("INVALID_QUERY_LOCATOR", "invalid query locator");
    let (locator, offset) = given.rsplit_once('-').ok_or_else(bad)?;
    let offset: usize = offset.parse().map_err(|_| bad())?;
    let found = state.cursors.iter().position(|c| c.locator == locator && c.user == request.user.as_str());
    let cursor = found.and_then(|at| state.cursors.get(at)).ok_or_else(bad)?;
    let rows = cursor.rows.get(offset..).filter(|rows| !rows.is_empty()).ok_or_else(bad)?;
    let taken = rows.get(..cursor.batch).unwrap_or(rows);
    let end = offset + taken.len();
    let next = (end < cursor.rows.len()).then(|| format!("{}/query/{locator}-{end}", request.base()));
    Ok(Response::ok(page(state.view(request.now_ms), request, &cursor.plan, taken, cursor.rows.len(), next)))
}

fn page(view: View<'_>, request: &Request, plan: &Plan, rows: &[usize], total: usize, next: Option<String>) -> String {
    let mut out = String::with_capacity(256 * rows.len() + 64);
    // Writing to a String cannot fail.
    write!(out, "{{\"totalSize\":{total},\"done\":{}", next.is_none()).ok();
    if let Some(next) = next {
        write!(out, ",\"nextRecordsUrl\":\"{next}\"").ok();
    }
    out.push_str(",\"records\":[");
    let table = &view.tables[plan.object];
    for (index, row) in rows.iter().filter_map(|position| table.row(*position)).enumerate() {
        if index > 0 {
            out.push(',');
        }
        record(view, request, plan, row, &mut out);
    }
    out.push_str("]}");
    out
}

fn record(view: View<'_>, request: &Request, plan: &Plan, row: &Row, out: &mut String) {
    write_attributes(&view.schema.objects[plan.object], request, row, out);
    let mut nested: Vec<&str> = Vec::new();
    for selected in &plan.select {
        match selected {
            Selected::Field { names, column } if column.hops.is_empty() => {
                out.push(',');
                write_string(names.last().map_or("", String::as_str), out);
                out.push(':');
                write_field(&view.schema.objects[plan.object], row, column.field, out);
            }
            // A parent is one object in the record, wherever its fields are in the query.
            Selected::Field { names, .. } if nested.contains(&names[0].as_str()) => {}
            Selected::Field { names, .. } => {
                nested.push(&names[0]);
                out.push(',');
                write_string(&names[0], out);
                out.push(':');
                parent(view, request, &plan.select, row, &[&names[0]], out);
            }
            Selected::Children { name, field, plan: inner } => {
                out.push(',');
                write_string(name, out);
                out.push(':');
                let id = super::super::table::get(row, schema::ID).and_then(Value::text).unwrap_or_default();
                let rows = inner.run_children(view, *field, id, false);
                if rows.is_empty() {
                    out.push_str("null");
                } else {
                    out.push_str(&page(view, request, inner, &rows, rows.len(), None));
                }
            }
            Selected::Aggregate { .. } => {}
        }
    }
    out.push('}');
}

/// Appends the parent that `path` leads to from `row`, with the selected fields below it.
fn parent(view: View<'_>, request: &Request, select: &[Selected], row: &Row, path: &[&str], out: &mut String) {
    let depth = path.len();
    let below: Vec<_> = select
        .iter()
        .filter_map(|selected| match selected {
            Selected::Field { names, column }
                if names.len() > depth && path.iter().zip(names).all(|(a, b)| *a == b.as_str()) =>
            {
                Some((names, column))
            }
            _ => None,
        })
        .collect();
    let hop = below.first().and_then(|(_, column)| column.hops.get(depth - 1).copied());
    let found = hop.and_then(|(field, target)| {
        let id = super::super::table::get(row, field)?.text()?;
        let table = &view.tables[target];
        Some((target, table.row(table.find(id)?)?))
    });
    let Some((target, found)) = found else { return out.push_str("null") };
    let definition = &view.schema.objects[target];
    write_attributes(definition, request, found, out);
    let mut nested: Vec<&str> = Vec::new();
    for (names, column) in below {
        let name = names[depth].as_str();
        if names.len() == depth + 1 {
            out.push(',');
            write_string(name, out);
            out.push(':');
            write_field(definition, found, column.field, out);
        } else if !nested.contains(&name) {
            nested.push(name);
            out.push(',');
            write_string(name, out);
            out.push(':');
            let mut deeper = path.to_vec();
            deeper.push(name);
            parent(view, request, select, found, &deeper, out);
        }
    }
    out.push('}');
}

/// Groups and aggregates.
fn aggregate(view: View<'_>, plan: &Plan, rows: &[usize]) -> String {
    let table = &view.tables[plan.object];
    let mut groups: BTreeMap<Vec<String>, Vec<&Row>> = BTreeMap::new();
    if plan.group.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    for row in rows.iter().filter_map(|position| table.row(*position)) {
        let group = plan.group.iter().map(|(_, column)| column.value(view, row).map(|v| key(v).to_string()));
        groups.entry(group.map(Option::unwrap_or_default).collect()).or_default().push(row);
    }
    let chosen: Vec<&Vec<&Row>> = groups.values().skip(plan.offset).take(plan.limit.unwrap_or(PAGE)).collect();
    let mut out = format!("{{\"totalSize\":{},\"done\":true,\"records\":[", chosen.len());
    for (index, members) in chosen.iter().enumerate() {
        out.push_str(if index > 0 { "," } else { "" });
        out.push_str("{\"attributes\":{\"type\":\"AggregateResult\"}");
        for selected in &plan.select {
            match selected {
                Selected::Field { names, column } => {
                    out.push(',');
                    write_string(names.last().map_or("", String::as_str), &mut out);
                    out.push(':');
                    write_json(members.first().and_then(|row| column.value(view, row)), &mut out);
                }
                Selected::Aggregate { key, function, column } => {
                    out.push(',');
                    write_string(key, &mut out);
                    out.push(':');
                    let values: Vec<&Value> = members.iter().filter_map(|row| column.value(view, row)).collect();
                    write_json(reduce(*function, &values).as_ref(), &mut out);
                }
                Selected::Children { .. } => {}
            }
        }
        out.push('}');
    }
    out.push_str("]}");
    out
}

fn reduce(function: Function, values: &[&Value]) -> Option<Value> {
    let numbers = || values.iter().filter_map(|v| v.number());
    match function {
        Function::Count => Some(Value::Int(values.len() as i64)),
        Function::CountDistinct => {
            let distinct: std::collections::BTreeSet<_> = values.iter().map(|v| key(v)).collect();
            Some(Value::Int(distinct.len() as i64))
        }
        Function::Min => values.iter().min_by(|a, b| a.order(b)).map(|v| (*v).clone()),
        Function::Max => values.iter().max_by(|a, b| a.order(b)).map(|v| (*v).clone()),
        Function::Sum | Function::Avg if values.is_empty() => None,
        Function::Sum => Some(Value::Double(numbers().sum())),
        Function::Avg => Some(Value::Double(numbers().sum::<f64>() / values.len() as f64)),
    }
}
