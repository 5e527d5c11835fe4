//! Composite, batch and tree: several requests in one.

use serde_json::{Map, Value as Json, json};

use super::super::refusal::Refusal;
use super::super::state::State;
use super::super::write::{Op, begin, commit, roll_back, transact};
use super::{Request, Response, handle};

const MOST: usize = 25;
const MOST_IN_TREE: usize = 200;

pub(super) fn composite(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let body = request.object()?;
    let all_or_none = body.get("allOrNone") == Some(&Json::Bool(true));
    let parts = list(&body, "compositeRequest", MOST)?;
    if all_or_none {
        begin(state);
    }
    let mut results: Vec<(String, Response)> = Vec::with_capacity(parts.len());
    let mut failed = false;
    for part in parts {
        let reference = part.get("referenceId").and_then(Json::as_str).unwrap_or_default().to_owned();
        let response = match resolve(part, &results) {
            Ok(part) if !(failed && all_or_none) => subrequest(state, request, &part),
            _ => halted("The request could not be processed because one of the requests that it needs has failed"),
        };
        failed |= response.status >= 300;
        results.push((reference, response));
    }
    let mut wrote = results.iter().any(|(_, response)| response.wrote);
    if all_or_none {
        if failed {
            wrote = false;
            roll_back(state);
            for (_, response) in results.iter_mut().filter(|(_, response)| response.status < 300) {
                *response =
                    halted("The transaction was rolled back since another operation in the same transaction failed.");
            }
        } else {
            commit(state, &request.actor(true), request.now_ms);
        }
    }
    let results: Vec<Json> = results
        .into_iter()
        .map(|(reference, response)| {
            let headers: Map<String, Json> =
                response.headers.iter().map(|(name, value)| (header_name(name), value.as_str().into())).collect();
            json!({
                "body": parsed(&response.body), "httpHeaders": headers, "httpStatusCode": response.status,
                "referenceId": reference,
            })
        })
        .collect();
    let response = Response::ok(json!({"compositeResponse": results}).to_string());
    Ok(if wrote { response.written() } else { response })
}

fn header_name(name: &str) -> String {
    if name == "location" { "Location".to_owned() } else { name.to_owned() }
}

fn halted(message: &str) -> Response {
    Refusal::new("PROCESSING_HALTED", message).into()
}

fn parsed(body: &str) -> Json {
    serde_json::from_str(body).unwrap_or(Json::Null)
}

fn list<'a>(body: &'a Map<String, Json>, name: &str, most: usize) -> Result<&'a Vec<Json>, Refusal> {
    let missing = || Refusal::new("JSON_PARSER_ERROR", format!("the body needs the array `{name}`"));
    let items = body.get(name).and_then(Json::as_array).ok_or_else(missing)?;
    if items.len() > most {
        return Err(Refusal::new("LIMIT_EXCEEDED", format!("at most {most} requests can be in one request")));
    }
    Ok(items)
}

/// The same JSON with `@{ref.path}` replaced by what earlier results hold there.
fn resolve(given: &Json, results: &[(String, Response)]) -> Result<Json, ()> {
    Ok(match given {
        Json::String(text) if text.contains("@{") => Json::String(resolve_text(text, results)?),
        Json::Array(items) => Json::Array(items.iter().map(|item| resolve(item, results)).collect::<Result<_, _>>()?),
        Json::Object(map) => Json::Object(
            map.iter().map(|(key, value)| Ok((key.clone(), resolve(value, results)?))).collect::<Result<_, ()>>()?,
        ),
        other => other.clone(),
    })
}

fn resolve_text(text: &str, results: &[(String, Response)]) -> Result<String, ()> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once("@{") {
        let (path, after) = tail.split_once('}').ok_or(())?;
        let (reference, path) = path.split_once('.').ok_or(())?;
        let (_, response) = results.iter().find(|(name, _)| name == reference).ok_or(())?;
        if response.status >= 300 {
            return Err(());
        }
        let pointer = path.replace(['.', '['], "/").replace(']', "");
        let body = parsed(&response.body);
        let value = body.pointer(&format!("/{pointer}")).ok_or(())?;
        out.push_str(before);
        out.push_str(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Answers one part of a composite request.
fn subrequest(state: &mut State, request: &Request, part: &Json) -> Response {
    let text = |name: &str| part.get(name).and_then(Json::as_str).unwrap_or_default();
    let url = text("url");
    let Some((version, path, query)) = super::super::url::data_path(url) else {
        return Refusal::not_found(format!("the URL {url} is not one of this API")).into();
    };
    if path.first().is_some_and(|p| p == "composite") && path.get(1).is_none_or(|p| p != "sobjects") {
        return Refusal::new("INVALID_OPERATION", "composite requests cannot be nested").into();
    }
    let body = part.get("body").or_else(|| part.get("richInput")).filter(|b| !b.is_null());
    let inner = Request {
        method: text("method").to_ascii_uppercase(),
        path,
        query,
        version,
        body: body.map(|b| b.to_string().into_bytes()).unwrap_or_default(),
        if_modified_since_ms: None,
        if_unmodified_since_ms: None,
        batch_size: None,
        client: request.client.clone().filter(|_| request.composite_origin),
        ..request.clone()
    };
    handle(state, &inner)
}

pub(super) fn batch(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let body = request.object()?;
    let halt = body.get("haltOnError") == Some(&Json::Bool(true));
    let parts = list(&body, "batchRequests", MOST)?;
    let (mut failed, mut wrote) = (false, false);
    let mut results = Vec::with_capacity(parts.len());
    for part in parts {
        let response = if failed && halt {
            Refusal::new("BATCH_PROCESSING_HALTED", "a request before this one failed").status(412).into()
        } else {
            subrequest(state, request, part)
        };
        failed |= response.status >= 300;
        wrote |= response.wrote;
        results.push(json!({"statusCode": response.status, "result": parsed(&response.body)}));
    }
    let response = Response::ok(json!({"hasErrors": failed, "results": results}).to_string());
    Ok(if wrote { response.written() } else { response })
}

/// A record of a tree, before its parent's id is known.
struct Node {
    object: usize,
    reference: String,
    fields: Map<String, Json>,
    /// The node that it hangs from and the field that refers to it.
    parent: Option<(usize, String)>,
}

pub(super) fn tree(state: &mut State, request: &Request, name: &str) -> Result<Response, Refusal> {
    let object = state.object(name)?;
    let body = request.object()?;
    let records = list(&body, "records", MOST_IN_TREE)?;
    let mut nodes = Vec::new();
    for record in records {
        collect(state, object, record, None, &mut nodes)?;
    }
    if nodes.len() > MOST_IN_TREE {
        return Err(Refusal::new("LIMIT_EXCEEDED", format!("at most {MOST_IN_TREE} records can be in one request")));
    }
    begin(state);
    let mut ids: Vec<String> = Vec::with_capacity(nodes.len());
    let actor = request.actor(true);
    for node in &nodes {
        let mut fields = node.fields.clone();
        if let Some((parent, field)) = &node.parent {
            fields.insert(field.clone(), ids[*parent].as_str().into());
        }
        match transact(state, &actor, request.now_ms, &[Op::Create { object: node.object, fields: &fields }], true)
            .pop()
        {
            Some(Ok(done)) => ids.push(done.id.into()),
            refused => {
                roll_back(state);
                let mut errors = String::new();
                if let Some(Err(refusal)) = refused {
                    refusal.write("statusCode", &mut errors);
                }
                let results = json!([{"referenceId": node.reference, "errors": [parsed(&errors)]}]);
                return Ok(Response::new(400, json!({"hasErrors": true, "results": results}).to_string()));
            }
        }
    }
    commit(state, &actor, request.now_ms);
    let results: Vec<Json> =
        nodes.iter().zip(&ids).map(|(node, id)| json!({"referenceId": node.reference, "id": id})).collect();
    Ok(Response::new(201, json!({"hasErrors": false, "results": results}).to_string()).written())
}

/// Puts a record and the records nested in it into a list, parents first.
fn collect(
    state: &State,
    object: usize,
    record: &Json,
    parent: Option<(usize, String)>,
    nodes: &mut Vec<Node>,
) -> Result<(), Refusal> {
    let Json::Object(record) = record else {
        return Err(Refusal::new("JSON_PARSER_ERROR", "a record is not an object"));
    };
    let reference = record.get("attributes").and_then(|a| a.get("referenceId")).and_then(Json::as_str);
    let (nested, fields): (Vec<_>, Vec<_>) =
        record.iter().partition(|(_, value)| value.get("records").is_some_and(Json::is_array));
    let own = nodes.len();
    nodes.push(Node {
        object,
        reference: reference.unwrap_or_default().to_owned(),
        fields: fields.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        parent,
    });
    for (name, value) in nested {
        let child = state.schema.children(object).iter().find(|child| {
            let field = &state.schema.objects[child.object].fields[child.field];
            let called = if field.custom { name.strip_suffix("__r").unwrap_or(name) } else { name };
            field.child_relationship.as_deref().is_some_and(|r| r.eq_ignore_ascii_case(called))
        });
        let child = child.ok_or_else(|| Refusal::no_field(name, &state.schema.objects[object].name))?;
        let field = state.schema.objects[child.object].fields[child.field].name.to_string();
        for record in value.get("records").and_then(Json::as_array).into_iter().flatten() {
            collect(state, child.object, record, Some((own, field.clone())), nodes)?;
        }
    }
    Ok(())
}
