//! sObject Collections: up to 200 records of several objects in one request and one transaction.

use std::collections::HashSet;

use serde_json::{Map, Value as Json};

use super::super::id as ids;
use super::super::refusal::Refusal;
use super::super::schema::ID;
use super::super::state::State;
use super::super::write::{Op, Outcome, transact};
use super::rows::{key_field, named_fields, write_record};
use super::{Request, Response};

/// Records of one request.
const MOST: usize = 200;
/// Records of one read.
const MOST_READ: usize = 2000;
/// Changes from one object to another within a request.
const MOST_CHUNKS: usize = 10;

struct Body {
    all_or_none: bool,
    records: Vec<Map<String, Json>>,
}

fn body(request: &Request) -> Result<Body, Refusal> {
    let mut body = request.object()?;
    let all_or_none = body.get("allOrNone").is_some_and(|v| v == &Json::Bool(true) || v == "true");
    let Some(Json::Array(records)) = body.remove("records") else {
        return Err(Refusal::new("JSON_PARSER_ERROR", "the body needs the array `records`"));
    };
    at_most(records.len(), MOST)?;
    let records = records.into_iter().map(|record| match record {
        Json::Object(map) => Ok(map),
        _ => Err(Refusal::new("JSON_PARSER_ERROR", "a record is not an object")),
    });
    Ok(Body { all_or_none, records: records.collect::<Result<_, _>>()? })
}

fn at_most(count: usize, most: usize) -> Result<(), Refusal> {
    if count == 0 {
        return Err(Refusal::new("REQUIRED_FIELD_MISSING", "the request holds no record"));
    }
    if count > most {
        let message = format!("Maximum number of records in one request is {most}, and this one has {count}");
        return Err(Refusal::new("EXCEEDED_ID_LIMIT", message));
    }
    Ok(())
}

/// The object that a record says it is of.
fn type_of(state: &State, record: &Map<String, Json>) -> Result<usize, Refusal> {
    let name = record.get("attributes").and_then(|a| a.get("type")).and_then(Json::as_str).ok_or_else(|| {
        Refusal::new("INVALID_TYPE", "Object type not specified. It goes into the record's attributes as type.")
    })?;
    state.schema.object(name).ok_or_else(|| Refusal::no_object(name))
}

/// Types of all records, in few enough chunks.
fn types(state: &State, records: &[Map<String, Json>]) -> Result<Vec<usize>, Refusal> {
    let types: Vec<usize> = records.iter().map(|record| type_of(state, record)).collect::<Result<_, _>>()?;
    if types.windows(2).filter(|pair| pair[0] != pair[1]).count() >= MOST_CHUNKS {
        let message = format!("records of different objects must come in at most {MOST_CHUNKS} chunks");
        return Err(Refusal::new("INVALID_OPERATION", message));
    }
    Ok(types)
}

fn run(
    state: &mut State,
    request: &Request,
    ops: &[Op<'_>],
    all_or_none: bool,
    upsert: bool,
) -> Result<Response, Refusal> {
    let actor = request.actor(true);
    let outcomes = transact_readable(state, request, &actor, ops, all_or_none)?;
    let wrote = outcomes.iter().any(Result::is_ok);
    let mut out = String::with_capacity(64 * outcomes.len());
    out.push('[');
    for (index, outcome) in outcomes.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        match outcome {
            Ok(done) => {
                out.push_str("{\"id\":\"");
                out.push_str(&done.id);
                out.push_str("\",\"success\":true,\"errors\":[]");
                if upsert {
                    out.push_str(if done.created { ",\"created\":true" } else { ",\"created\":false" });
                }
                out.push('}');
            }
            Err(refusal) => {
                out.push_str("{\"success\":false,\"errors\":[");
                refusal.write("statusCode", &mut out);
                out.push_str("]}");
            }
        }
    }
    out.push(']');
    let response = Response::ok(out);
    Ok(if wrote { response.written() } else { response })
}

/// A value of the wrong JSON type spoils the whole request, since its body cannot be read as records.
fn transact_readable(
    state: &mut State,
    request: &Request,
    actor: &super::Actor,
    ops: &[Op<'_>],
    all_or_none: bool,
) -> Result<Vec<Outcome>, Refusal> {
    for op in ops {
        let (Op::Create { object, fields } | Op::Update { object, fields, .. } | Op::Upsert { object, fields, .. }) =
            op
        else {
            continue;
        };
        let definition = &state.schema.objects[*object];
        for (name, given) in *fields {
            let Some(field) = definition.field(name) else { continue };
            match super::super::normalise::normalise(&definition.fields[field], given) {
                Err(refusal) if refusal.unreadable => return Err(refusal),
                _ => {}
            }
        }
    }
    Ok(transact(state, actor, request.now_ms, ops, all_or_none))
}

pub(super) fn create(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let body = body(request)?;
    let types = types(state, &body.records)?;
    let ops: Vec<Op<'_>> = body
        .records
        .iter()
        .zip(types)
        .map(|(fields, object)| match fields.keys().find(|key| key.eq_ignore_ascii_case("id")) {
            Some(_) => {
                let message = "cannot specify Id in an insert call";
                Op::Refused(Refusal::new("INVALID_FIELD_FOR_INSERT_UPDATE", message).field("Id"))
            }
            None => Op::Create { object, fields },
        })
        .collect();
    run(state, request, &ops, body.all_or_none, false)
}

/// Takes the id out of a record.
fn take_id(record: &mut Map<String, Json>) -> Option<String> {
    let key = record.keys().find(|key| key.eq_ignore_ascii_case("id"))?.clone();
    match record.remove(&key) {
        Some(Json::String(id)) if !id.is_empty() => Some(id),
        _ => None,
    }
}

pub(super) fn update(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let mut body = body(request)?;
    let types = types(state, &body.records)?;
    let given: Vec<Option<String>> = body.records.iter_mut().map(take_id).collect();
    let mut seen = HashSet::new();
    let ops: Vec<Op<'_>> = body
        .records
        .iter()
        .zip(types)
        .zip(&given)
        .map(|((fields, object), id)| match id {
            None => Op::Refused(Refusal::new("MISSING_ARGUMENT", "Id not specified in an update call").field("Id")),
            Some(id) if !seen.insert(ids::normalise(id)) => {
                Op::Refused(Refusal::new("DUPLICATE_VALUE", format!("duplicate id in list: {id}")).field("Id"))
            }
            Some(id) => Op::Update { object, id, fields },
        })
        .collect();
    run(state, request, &ops, body.all_or_none, false)
}

pub(super) fn upsert(state: &mut State, request: &Request, name: &str, field: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let field = key_field(state, object, field)?;
    let mut body = body(request)?;
    for record in &body.records {
        if type_of(state, record)? != object {
            return Err(Refusal::new("INVALID_TYPE", format!("every record must be of the type {name}")));
        }
    }
    let own = state.schema.objects[object].fields[field].name.clone();
    let keys: Vec<Option<Json>> = body
        .records
        .iter_mut()
        .map(|record| {
            let key = record.keys().find(|key| key.eq_ignore_ascii_case(&own))?.clone();
            record.remove(&key).filter(|value| !value.is_null())
        })
        .collect();
    let mut seen = HashSet::new();
    let ops: Vec<Op<'_>> = body
        .records
        .iter()
        .zip(&keys)
        .map(|(fields, key)| match key {
            None if field == ID => Op::Create { object, fields },
            None => Op::Refused(Refusal::new("MISSING_ARGUMENT", format!("{own} not specified")).field(&own)),
            Some(key) => {
                let text = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                if !seen.insert(text.trim().to_lowercase()) {
                    let message = format!("Duplicate external id specified: {text}");
                    return Op::Refused(Refusal::new("DUPLICATE_VALUE", message).field(&own));
                }
                match key {
                    Json::String(id) if field == ID => Op::Update { object, id, fields },
                    key => Op::Upsert { object, field, key, fields, update_only: false },
                }
            }
        })
        .collect();
    run(state, request, &ops, body.all_or_none, true)
}

pub(super) fn delete(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let ids: Vec<&str> =
        request.param("ids").unwrap_or_default().split(',').map(str::trim).filter(|id| !id.is_empty()).collect();
    at_most(ids.len(), MOST)?;
    let all_or_none = request.param("allOrNone").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let ops: Vec<Op<'_>> = ids.into_iter().map(|id| Op::Delete { object: None, id }).collect();
    run(state, request, &ops, all_or_none, false)
}

pub(super) fn retrieve(state: &mut State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let (wanted, names) = if request.method == "GET" {
        let list = |name: &str| -> Vec<String> {
            request.param(name).unwrap_or_default().split(',').map(|s| s.trim().to_owned()).collect()
        };
        (list("ids"), list("fields"))
    } else {
        let body = request.object()?;
        let list = |name: &str| -> Vec<String> {
            let items = body.get(name).and_then(Json::as_array);
            items.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect()
        };
        (list("ids"), list("fields"))
    };
    at_most(wanted.len(), MOST_READ)?;
    let definition = &state.schema.objects[object];
    let mut fields = named_fields(definition, names.iter().map(String::as_str))?;
    if fields.is_empty() {
        return Err(Refusal::new("INVALID_FIELD", "the request names no fields"));
    }
    if !fields.contains(&ID) {
        fields.insert(0, ID);
    }
    let table = &state.tables[object];
    let mut out = String::from("[");
    for (index, id) in wanted.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let found = ids::normalise(id).and_then(|id| table.find(&id)).filter(|position| !table.is_deleted(*position));
        match found.and_then(|position| table.row(position)) {
            Some(row) => write_record(state, request, object, row, &fields, &mut out),
            None => out.push_str("null"),
        }
    }
    out.push(']');
    Ok(Response::ok(out))
}
