//! The sandbox's own interface under `/sandbox`: faults, commits in the name of a person, and what tests compare.
//!
//! It needs no session: whoever reaches the sandbox owns it.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /sandbox` | says what the sandbox is: org id, objects, users |
//! | `GET`, `PUT`, `PATCH /sandbox/faults` | shows, replaces or changes the [`Faults`](super::Faults) |
//! | `POST /sandbox/drop-streams` | ends every subscription |
//! | `POST /sandbox/expire-tokens` | ends every session |
//! | `POST /sandbox/purge-events` | drops all events, so that every replay id becomes corrupted |
//! | `POST /sandbox/gap` | tells `{"object", "change": "UPDATE", "ids": […]}` as a gap event |
//! | `POST /sandbox/overflow` | tells `{"object"}` as an overflow event |
//! | `POST /sandbox/wildcard` | tells `{"object", "change"}` as a gap event for `001*` and the like |
//! | `POST /sandbox/undelete` | takes `{"ids": […], "user"}` out of the recycle bin |
//! | `POST /sandbox/commit` | `{"user", "operations": [{"op", "object", "id", "fields", "key"}], "all_or_none", "origin"}`; the results of updates and deletes tell the values `before` |
//! | `POST /sandbox/fields` | `{"object", "field": {…}}` adds or changes a field as the org file would; a custom field may get another type |
//! | `DELETE /sandbox/fields` | `{"object", "field": "X__c"}` removes a custom field with its values |
//! | `POST /sandbox/reset-usage` | sets the counted API requests to zero |
//! | `GET /sandbox/dump/X` | all records of an object, by id; `?deleted=true` adds the recycle bin |
//! | `GET /sandbox/stats` | counts |

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use smol_str::SmolStr;

use super::avro::ChangeType;
use super::config::FieldSpec;
use super::faults::Faults;
use super::org::{Org, VERSION};
use super::refusal::Refusal;
use super::rest::Response;
use super::schema::{ID, Kind};
use super::state::State;
use super::table::{get, put};
use super::value::{Value, write_json, write_string};
use super::write::{Actor, Op, transact};
use super::{normalise, orgfile, tell};

/// The person in whose name things are done when no one is named.
const NOBODY_NAMED: &str = "Ann Admin";

fn wrong(error: impl std::fmt::Display) -> Refusal {
    Refusal::new("INVALID_REQUEST", error.to_string())
}

fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(if body.is_empty() { b"{}" } else { body }).map_err(wrong)
}

/// Answers a request to `/sandbox/<path>`.
pub(crate) fn handle(org: &Org, method: &str, path: &[&str], query: &[(String, String)], body: &[u8]) -> Response {
    answer(org, method, path, query, body).unwrap_or_else(Response::from)
}

fn answer(
    org: &Org,
    method: &str,
    path: &[&str],
    query: &[(String, String)],
    body: &[u8],
) -> Result<Response, Refusal> {
    let done = || Response::ok("{\"done\":true}");
    match (method, path) {
        ("GET", []) => Ok(org.with(|state| about(org, state))),
        ("GET", ["stats"]) => Ok(org.with(|state| stats(org, state))),
        ("GET", ["faults"]) => org.with(|state| faults_of(state)),
        ("PUT", ["faults"]) => {
            let faults: Faults = read(body)?;
            org.with(|state| {
                state.faults = faults;
                faults_of(state)
            })
        }
        ("PATCH", ["faults"]) => org.with(|state| {
            let mut all = serde_json::to_value(&state.faults).map_err(wrong)?;
            let given: Map<String, Json> = read(body)?;
            if let Json::Object(all) = &mut all {
                all.extend(given);
            }
            state.faults = serde_json::from_value(all).map_err(wrong)?;
            faults_of(state)
        }),
        ("POST", ["drop-streams"]) => {
            org.drop_streams();
            Ok(done())
        }
        ("POST", ["expire-tokens"]) => {
            org.with(|state| state.sessions.clear());
            Ok(done())
        }
        ("POST", ["purge-events"]) => {
            org.with(|state| state.log.purge());
            Ok(done())
        }
        ("POST", ["reset-usage"]) => {
            org.with(|state| state.requests = 0);
            Ok(done())
        }
        ("POST", [what @ ("gap" | "overflow" | "wildcard")]) => {
            let gap: Gap = read(body)?;
            org.with(|state| tell_gap(state, what, &gap, org.now_ms())).map(|()| done())
        }
        ("POST", ["undelete"]) => {
            let undelete: Undelete = read(body)?;
            let operations =
                undelete.ids.into_iter().map(|id| Operation { id: Some(id), ..Operation::new("undelete") });
            commit(
                org,
                Commit { user: undelete.user, operations: operations.collect(), all_or_none: true, origin: None },
            )
        }
        ("POST", ["commit"]) => commit(org, read(body)?),
        ("POST", ["fields"]) => {
            let alter: Alter = read(body)?;
            org.with(|state| add_field(org, state, &alter)).map(|()| done())
        }
        ("DELETE", ["fields"]) => {
            let remove: Remove = read(body)?;
            org.with(|state| remove_field(org, state, &remove)).map(|()| done())
        }
        ("GET", ["dump", name]) => {
            let deleted = query.iter().any(|(key, value)| key == "deleted" && value == "true");
            org.with(|state| dump(state, name, deleted))
        }
        _ => Err(Refusal::not_found("the sandbox has no such resource; its documentation lists them")),
    }
}

fn about(org: &Org, state: &State) -> Response {
    let objects: Vec<&str> = state.schema.objects.iter().map(|o| o.name.as_str()).collect();
    let clients: Vec<Json> =
        org.clients.iter().map(|c| json!({"client_id": c.client_id, "username": c.username})).collect();
    let people: Vec<Json> = org.people.iter().map(|p| json!({"name": p.name, "username": p.username})).collect();
    let body = json!({"org_id": org.id.as_str(), "objects": objects, "clients": clients, "people": people});
    Response::ok(body.to_string())
}

fn stats(org: &Org, state: &State) -> Response {
    let objects: Map<String, Json> = state
        .schema
        .objects
        .iter()
        .zip(&state.tables)
        .map(|(object, table)| {
            let counts = json!({"records": table.alive(), "deleted": table.len() - table.alive()});
            (object.name.to_string(), counts)
        })
        .collect();
    let (kept, told) = state.log.counts();
    let body = json!({
        "objects": objects,
        "events": {"kept": kept, "told": told, "latest": state.log.tip()},
        "requests": {"used": state.requests, "daily": org.daily_requests},
        "sessions": state.sessions.len(),
        "open_queries": state.cursors.len(),
    });
    Response::ok(body.to_string())
}

fn faults_of(state: &State) -> Result<Response, Refusal> {
    serde_json::to_string(&state.faults).map(Response::ok).map_err(wrong)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gap {
    object: String,
    #[serde(default = "update")]
    change: String,
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    user: Option<String>,
}

fn update() -> String {
    "UPDATE".to_owned()
}

fn tell_gap(state: &mut State, what: &str, gap: &Gap, now_ms: i64) -> Result<(), Refusal> {
    let object = state.object(&gap.object)?;
    let prefix = state.schema.objects[object].key_prefix.clone();
    let unknown = || wrong(format!("{} is not CREATE, UPDATE, DELETE or UNDELETE", gap.change));
    let kind = match what {
        "overflow" => ChangeType::GapOverflow,
        _ => ChangeType::named(&gap.change).map(ChangeType::as_gap).ok_or_else(unknown)?,
    };
    let ids: Vec<SmolStr> = match what {
        "wildcard" => vec![format!("{prefix}*").into()],
        _ => gap.ids.iter().map(|id| super::id::normalise(id).unwrap_or_else(|| id.as_str().into())).collect(),
    };
    if what == "gap" && ids.is_empty() {
        return Err(wrong("a gap needs ids"));
    }
    let user = state.user_or_new(gap.user.as_deref().unwrap_or(NOBODY_NAMED), now_ms).map_err(wrong)?;
    tell::tell_gap(state, &Actor { user, origin: String::new() }, now_ms, object, kind, ids);
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Undelete {
    ids: Vec<String>,
    #[serde(default)]
    user: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Commit {
    #[serde(default)]
    user: Option<String>,
    operations: Vec<Operation>,
    #[serde(default = "yes")]
    all_or_none: bool,
    #[serde(default)]
    origin: Option<String>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: String,
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    id: Option<String>,
    /// For an upsert: the external id field; its value is among the fields.
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    fields: Map<String, Json>,
}

impl Operation {
    fn new(op: &str) -> Self {
        Self { op: op.to_owned(), object: None, id: None, key: None, fields: Map::new() }
    }
}

/// Commits operations as one transaction of a person at the user interface.
fn commit(org: &Org, commit: Commit) -> Result<Response, Refusal> {
    let now_ms = org.now_ms();
    org.with(|state| {
        let user = state.user_or_new(commit.user.as_deref().unwrap_or(NOBODY_NAMED), now_ms).map_err(wrong)?;
        let origin =
            commit.origin.unwrap_or_else(|| format!("com/salesforce/api/soap/{VERSION};client=SfdcInternalAPI/"));
        let ops: Vec<Op<'_>> =
            commit.operations.iter().map(|operation| op(state, operation)).collect::<Result<_, _>>()?;
        let before: Vec<Json> = ops.iter().map(|op| seen_before(state, op)).collect();
        let outcomes = transact(state, &Actor { user, origin }, now_ms, &ops, commit.all_or_none);
        let all = outcomes.iter().all(Result::is_ok);
        let results: Vec<Json> = outcomes
            .into_iter()
            .zip(before)
            .map(|(outcome, before)| match outcome {
                Ok(done) => {
                    json!({"id": done.id.as_str(), "success": true, "created": done.created, "before": before})
                }
                Err(r) => json!({"success": false, "code": r.code, "message": r.message, "fields": r.fields}),
            })
            .collect();
        Ok(Response::new(if all { 200 } else { 400 }, json!({"success": all, "results": results}).to_string()))
    })
}

/// What a person at the user interface sees of a record in the moment of changing it: the fields that an update sets, or the
/// whole of a record that is deleted. Null for everything else.
fn seen_before(state: &State, op: &Op<'_>) -> Json {
    let (object, id, fields) = match op {
        Op::Update { object, id, fields } => (Some(*object), *id, Some(*fields)),
        Op::Delete { object, id } => (*object, *id, None),
        _ => return Json::Null,
    };
    let Some(id) = super::id::normalise(id) else { return Json::Null };
    let Some(object) = object.or_else(|| state.schema.object_of_id(&id)) else { return Json::Null };
    let Some(row) = state.find(object, &id).and_then(|position| state.tables[object].row(position)) else {
        return Json::Null;
    };
    let shown = |name: &str| fields.is_none_or(|fields| fields.keys().any(|f| f.eq_ignore_ascii_case(name)));
    let all = state.schema.objects[object].fields.iter().enumerate();
    let told = all.filter(|(_, f)| !f.removed && !matches!(f.kind, Kind::Address | Kind::Location) && shown(&f.name));
    let told = told.map(|(position, field)| {
        let mut text = String::new();
        write_json(get(row, position), &mut text);
        (field.name.to_string(), serde_json::from_str(&text).unwrap_or_default())
    });
    Json::Object(told.collect())
}

fn op<'a>(state: &State, operation: &'a Operation) -> Result<Op<'a>, Refusal> {
    let object = operation.object.as_deref().map(|name| state.object(name)).transpose()?;
    let needs = |what: &str| wrong(format!("the operation {} needs {what}", operation.op));
    let id = operation.id.as_deref().ok_or_else(|| needs("an id"));
    let fields = &operation.fields;
    Ok(match operation.op.as_str() {
        "create" => Op::Create { object: object.ok_or_else(|| needs("an object"))?, fields },
        "update" => {
            let id = id?;
            let by_id = super::id::normalise(id).and_then(|id| state.schema.object_of_id(&id));
            Op::Update { object: object.or(by_id).ok_or_else(|| needs("an object"))?, id, fields }
        }
        "upsert" => {
            let object = object.ok_or_else(|| needs("an object"))?;
            let name = operation.key.as_deref().ok_or_else(|| needs("a key: the external id field"))?;
            let field =
                state.schema.objects[object].field(name).ok_or_else(|| Refusal::no_field(name, "the object"))?;
            let key = fields.get(name).ok_or_else(|| needs("the external id among its fields"))?;
            Op::Upsert { object, field, key, fields, update_only: false }
        }
        "delete" => Op::Delete { object, id: id? },
        "undelete" => Op::Undelete { id: id? },
        other => return Err(wrong(format!("{other} is not create, update, upsert, delete or undelete"))),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alter {
    object: String,
    field: FieldSpec,
}

/// Adds or changes a field while the org is in use.
fn add_field(org: &Org, state: &mut State, alter: &Alter) -> Result<(), Refusal> {
    let object = state.object(&alter.object)?;
    let mut schema = state.schema.clone();
    orgfile::alter(&mut schema, object, &alter.field).map_err(|e| wrong(e.explain()))?;
    take_schema(org, state, object, schema)?;
    let retyped = alter.field.kind.as_ref().and_then(|_| state.schema.objects[object].field(&alter.field.name));
    if let Some(field) = retyped {
        convert(state, object, field);
    }
    Ok(())
}

/// Makes the values of a field fit its type. As in Salesforce nobody is told, and what does not fit is gone.
fn convert(state: &mut State, object: usize, field: usize) {
    let definition = state.schema.objects[object].fields[field].clone();
    let table = &mut state.tables[object];
    for position in 0..table.len() {
        let Some(mut row) = table.row(position).cloned() else { continue };
        let fits = get(&row, field).and_then(|value| {
            let given = normalise::normalise(&definition, &value.json());
            given.or_else(|_| normalise::normalise(&definition, &Json::String(value.plain()))).unwrap_or_default()
        });
        // A checkbox has no null.
        let unset = (definition.kind == Kind::Boolean).then_some(Value::Bool(false));
        put(&mut row, field, fits.or(unset));
        table.replace(position, row);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    object: String,
    field: String,
}

/// Removes a custom field while the org is in use.
fn remove_field(org: &Org, state: &mut State, remove: &Remove) -> Result<(), Refusal> {
    let object = state.object(&remove.object)?;
    let mut schema = state.schema.clone();
    let known = schema.objects[object].field(&remove.field);
    let field = known.filter(|field| schema.objects[object].fields[*field].custom);
    let field = field.ok_or_else(|| wrong(format!("{} has no custom field {}", remove.object, remove.field)))?;
    orgfile::remove(&mut schema, object, field);
    take_schema(org, state, object, schema)
}

/// Puts a schema in force in which one object has other fields.
fn take_schema(org: &Org, state: &mut State, object: usize, schema: super::schema::Schema) -> Result<(), Refusal> {
    let rules = super::rules::Rules::new(&org.file, &schema, &state.tables).map_err(|e| wrong(e.explain()))?;
    (state.schema, state.rules) = (schema, rules);
    state.tables[object].prepare(&state.schema.objects[object]);
    state.plan_events();
    Ok(())
}

/// All records of an object with all fields that have values of their own.
fn dump(state: &State, name: &str, deleted: bool) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let definition = &state.schema.objects[object];
    let table = &state.tables[object];
    let mut rows: Vec<_> =
        (0..table.len()).filter(|p| deleted || !table.is_deleted(*p)).filter_map(|p| table.row(p)).collect();
    rows.sort_by_key(|row| get(row, ID).and_then(Value::text));
    let mut out = format!("{{\"object\":\"{}\",\"count\":{},\"records\":[", definition.name, rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        out.push_str(if index > 0 { ",{" } else { "{" });
        let fields = definition.fields.iter().enumerate();
        let fields = fields.filter(|(_, f)| !f.removed && !matches!(f.kind, Kind::Address | Kind::Location));
        for (position, (field, described)) in fields.enumerate() {
            if position > 0 {
                out.push(',');
            }
            write_string(&described.name, &mut out);
            out.push(':');
            write_json(get(row, field), &mut out);
        }
        out.push('}');
    }
    out.push_str("]}");
    Ok(Response::ok(out))
}
