//! Single records: by id, by external id, and what changed or was deleted in a span of time.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::super::refusal::Refusal;
use super::super::schema::{ID, Kind, Object};
use super::super::state::State;
use super::super::table::{Row, get as value_at};
use super::super::value::{Value, write_json, write_string};
use super::super::write::{Done, Op, Outcome, transact};
use super::super::{id as ids, normalise, time};
use super::{Request, Response};

/// Appends a record with `fields`; every field with a value of its own when it is empty.
pub(super) fn write_record(
    state: &State,
    request: &Request,
    object: usize,
    row: &Row,
    fields: &[usize],
    out: &mut String,
) {
    let definition = &state.schema.objects[object];
    write_attributes(definition, request, row, out);
    let all: Vec<usize>;
    let fields = if fields.is_empty() {
        all = (0..definition.fields.len()).filter(|field| !definition.fields[*field].removed).collect();
        &all
    } else {
        fields
    };
    for field in fields {
        out.push(',');
        write_string(&definition.fields[*field].name, out);
        out.push(':');
        write_field(definition, row, *field, out);
    }
    out.push('}');
}

/// Appends `{"attributes":{…}` and leaves the object open.
pub(super) fn write_attributes(definition: &Object, request: &Request, row: &Row, out: &mut String) {
    let id = value_at(row, ID).and_then(Value::text).unwrap_or_default();
    let name = &definition.name;
    // Writing to a String cannot fail.
    write!(
        out,
        "{{\"attributes\":{{\"type\":\"{name}\",\"url\":\"/services/data/v{}.0/sobjects/{name}/{id}\"}}",
        request.version
    )
    .ok();
}

/// Appends a field's value; a compound address or location as an object.
pub(super) fn write_field(definition: &Object, row: &Row, field: usize, out: &mut String) {
    let description = &definition.fields[field];
    if !matches!(description.kind, Kind::Address | Kind::Location) {
        return write_json(value_at(row, field), out);
    }
    let parts = description.parts.iter().filter_map(|part| part.field.map(|f| (part.member, value_at(row, f))));
    let parts: Vec<(&str, Option<&Value>)> = parts.collect();
    if parts.iter().all(|(_, value)| value.is_none()) {
        return out.push_str("null");
    }
    out.push('{');
    for (index, (member, value)) in parts.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let (first, rest) = member.split_at(1);
        write_string(&format!("{}{rest}", first.to_lowercase()), out);
        out.push(':');
        write_json(value, out);
    }
    out.push('}');
}

/// The fields that a comma-separated list names.
pub(super) fn named_fields<'a>(
    definition: &Object,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<usize>, Refusal> {
    names
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| definition.field(name).ok_or_else(|| Refusal::no_field(name, &definition.name)))
        .collect()
}

fn respond(state: &State, request: &Request, object: usize, position: usize) -> Result<Response, Refusal> {
    let definition = &state.schema.objects[object];
    let fields = named_fields(definition, request.param("fields").unwrap_or_default().split(','))?;
    let table = &state.tables[object];
    let row = table.row(position).ok_or_else(|| Refusal::not_found("The requested resource does not exist"))?;
    if table.is_deleted(position) {
        return Err(Refusal::new("ENTITY_IS_DELETED", "entity is deleted").status(404));
    }
    let modified = modified_ms(definition, row);
    if request.if_modified_since_ms.is_some_and(|since| modified <= since) {
        return Ok(Response::new(304, ""));
    }
    let mut out = String::with_capacity(1024);
    write_record(state, request, object, row, &fields, &mut out);
    let mut response = Response::ok(out);
    response.headers.push(("last-modified", time::format_http(modified)));
    Ok(response)
}

fn modified_ms(definition: &Object, row: &Row) -> i64 {
    match value_at(row, definition.system.modified_date) {
        Some(Value::DateTime(ms)) => *ms,
        _ => 0,
    }
}

/// The 18-character id in a path. Anything else would be the name of an external id field.
fn id_in_path(given: &str) -> Result<String, Refusal> {
    ids::normalise(given).map(Into::into).ok_or_else(|| {
        Refusal::not_found(format!("Provided external ID field does not exist or is not accessible: {given}"))
    })
}

pub(super) fn get(state: &mut State, request: &Request, object: &str, given: &str) -> Result<Response, Refusal> {
    let object = state.object(object)?;
    let id = id_in_path(given)?;
    let missing = || Refusal::not_found("The requested resource does not exist");
    let position = state.find(object, &id).ok_or_else(missing)?;
    respond(state, request, object, position)
}

fn one(state: &mut State, request: &Request, op: Op<'_>) -> Outcome {
    let actor = request.actor(false);
    let no_outcome = || Refusal::new("UNKNOWN_EXCEPTION", "a transaction had no outcome").status(500);
    transact(state, &actor, request.now_ms, &[op], true).pop().ok_or_else(no_outcome)?
}

fn success(done: &Done, upsert: bool) -> String {
    let created = if upsert { format!(",\"created\":{}", done.created) } else { String::new() };
    format!("{{\"id\":\"{}\",\"success\":true,\"errors\":[]{created}}}", done.id)
}

pub(super) fn create(state: &mut State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let fields = request.object()?;
    if fields.keys().any(|key| key.eq_ignore_ascii_case("id")) {
        let message = "cannot specify Id in an insert call";
        return Err(Refusal::new("INVALID_FIELD_FOR_INSERT_UPDATE", message).field("Id"));
    }
    let done = one(state, request, Op::Create { object, fields: &fields })?;
    let mut response = Response::new(201, success(&done, false)).written();
    let name = &state.schema.objects[object].name;
    response.headers.push(("location", format!("{}/sobjects/{name}/{}", request.base(), done.id)));
    Ok(response)
}

fn no_id_in(fields: &Map<String, Json>) -> Result<(), Refusal> {
    if fields.keys().any(|key| key.eq_ignore_ascii_case("id")) {
        return Err(Refusal::new("INVALID_FIELD", "The Id field should not be specified in the sobject data."));
    }
    Ok(())
}

pub(super) fn update(state: &mut State, request: &Request, name: &str, given: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let id = id_in_path(given)?;
    let fields = request.object()?;
    no_id_in(&fields)?;
    unmodified(state, request, object, &id)?;
    one(state, request, Op::Update { object, id: &id, fields: &fields })?;
    Ok(Response::new(204, "").written())
}

/// Refuses the request if the record has changed since the time that it names.
fn unmodified(state: &State, request: &Request, object: usize, id: &str) -> Result<(), Refusal> {
    let Some(since) = request.if_unmodified_since_ms else { return Ok(()) };
    let row = state.find(object, id).and_then(|position| state.tables[object].row(position));
    if row.is_some_and(|row| modified_ms(&state.schema.objects[object], row) > since) {
        let message = "The record has been modified since the time in the header If-Unmodified-Since";
        return Err(Refusal::new("ENTITY_FAILED_IFLASTMODIFIED_ON_UPDATE", message).status(412));
    }
    Ok(())
}

pub(super) fn delete(state: &mut State, request: &Request, name: &str, given: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let id = id_in_path(given)?;
    unmodified(state, request, object, &id)?;
    one(state, request, Op::Delete { object: Some(object), id: &id })?;
    Ok(Response::new(204, "").written())
}

/// The field of an external id path.
pub(super) fn key_field(state: &State, object: usize, name: &str) -> Result<usize, Refusal> {
    let definition = &state.schema.objects[object];
    definition.field(name).filter(|f| definition.fields[*f].id_lookup).ok_or_else(|| {
        Refusal::not_found(format!("Provided external ID field does not exist or is not accessible: {name}"))
    })
}

/// The position of the one record with this external id; several are status 300.
fn by_key(state: &State, request: &Request, object: usize, field: &str, given: &str) -> Result<usize, Response> {
    let field = key_field(state, object, field)?;
    let definition = &state.schema.objects[object];
    let value = normalise::normalise(&definition.fields[field], &Json::String(given.to_owned()))?;
    let table = &state.tables[object];
    let key = value.as_ref().map(super::super::table::key).unwrap_or_default();
    let found: Vec<usize> = if field == ID {
        table.find(value.as_ref().and_then(Value::text).unwrap_or_default()).into_iter().collect()
    } else {
        table.lookup(field, &key).unwrap_or_default().to_vec()
    };
    match found.as_slice() {
        [] => Err(Refusal::not_found("The requested resource does not exist").into()),
        [position] => Ok(*position),
        several => {
            let url = |p: &usize| {
                json!(format!("{}/sobjects/{}/{}", request.base(), definition.name, state.id_at(object, *p)))
            };
            Err(Response::new(300, Json::Array(several.iter().map(url).collect()).to_string()))
        }
    }
}

pub(super) fn get_by_key(
    state: &mut State,
    request: &Request,
    name: &str,
    field: &str,
    given: &str,
) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    match by_key(state, request, object, field, given) {
        Ok(position) => respond(state, request, object, position),
        Err(response) => Ok(response),
    }
}

pub(super) fn delete_by_key(
    state: &mut State,
    request: &Request,
    name: &str,
    field: &str,
    given: &str,
) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    match by_key(state, request, object, field, given) {
        Ok(position) => {
            let id = state.id_at(object, position).to_owned();
            delete(state, request, name, &id)
        }
        Err(response) => Ok(response),
    }
}

pub(super) fn upsert(
    state: &mut State,
    request: &Request,
    name: &str,
    field: &str,
    given: &str,
) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let field = key_field(state, object, field)?;
    let fields = request.object()?;
    no_id_in(&fields)?;
    if field == ID {
        return update(state, request, name, given);
    }
    let own = &state.schema.objects[object].fields[field].name;
    if fields.keys().any(|key| key.eq_ignore_ascii_case(own)) {
        let message = format!("The {own} field should not be specified in the sobject data.");
        return Err(Refusal::new("INVALID_FIELD", message));
    }
    if let Err(response) = by_key(state, request, object, &own.clone(), given)
        && response.status == 300
    {
        return Ok(response);
    }
    let update_only = request.param("updateOnly").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let key = Json::String(given.to_owned());
    let done = one(state, request, Op::Upsert { object, field, key: &key, fields: &fields, update_only })?;
    let status = match (done.created, request.version >= 46) {
        (true, _) => 201,
        (false, true) => 200,
        (false, false) => 204,
    };
    Ok(Response::new(status, if status == 204 { String::new() } else { success(&done, true) }).written())
}

/// The span of a replication call, in milliseconds; seconds do not count.
fn span(request: &Request) -> Result<(i64, i64), Refusal> {
    let invalid = |what: &str| Refusal::new("INVALID_REPLICATION_DATE", format!("{what} is not a usable date"));
    let read = |name: &str| {
        let ms = request.param(name).map(|text| text.replace(' ', "+")).and_then(|text| time::parse_datetime(&text));
        ms.map(|ms| ms.div_euclid(60_000) * 60_000).ok_or_else(|| invalid(name))
    };
    let (start, end) = (read("start")?, read("end")?);
    if start >= end {
        return Err(invalid("start is not before end: end"));
    }
    if start < request.now_ms - 30 * time::DAY_MS {
        return Err(invalid("start is more than 30 days ago: start"));
    }
    Ok((start, end))
}

pub(super) fn updated(state: &mut State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let (start, end) = span(request)?;
    let found = stamped(state, object, false, start, end);
    let ids: Vec<&str> = found.iter().map(|(position, _)| state.id_at(object, *position)).collect();
    Ok(Response::ok(
        json!({"ids": ids, "latestDateCovered": time::format_datetime(end.min(request.now_ms))}).to_string(),
    ))
}

pub(super) fn deleted(state: &mut State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let (start, end) = span(request)?;
    let found = stamped(state, object, true, start, end);
    let records: Vec<Json> = found
        .iter()
        .map(|(position, at)| json!({"id": state.id_at(object, *position), "deletedDate": time::format_datetime(*at)}))
        .collect();
    let earliest = request.now_ms - 15 * time::DAY_MS;
    Ok(Response::ok(
        json!({
            "deletedRecords": records,
            "earliestDateAvailable": time::format_datetime(earliest),
            "latestDateCovered": time::format_datetime(end.min(request.now_ms)),
        })
        .to_string(),
    ))
}

/// Records whose stamp is from `start` to before `end`.
fn stamped(state: &State, object: usize, deleted: bool, start: i64, end: i64) -> Vec<(usize, i64)> {
    let table = &state.tables[object];
    let stamp = state.schema.objects[object].system.stamp;
    let at = |position: usize| match table.row(position).and_then(|row| value_at(row, stamp)) {
        Some(Value::DateTime(ms)) => Some((position, *ms)),
        _ => None,
    };
    (0..table.len())
        .filter(|position| table.is_deleted(*position) == deleted)
        .filter_map(at)
        .filter(|(_, ms)| (start..end).contains(ms))
        .collect()
}
