//! Bulk API 2.0: jobs that take in or give out many records as CSV.
//!
//! A job is worked on when its upload is closed; a client sees it as uploaded first and as complete when it asks again.

use serde_json::{Map, Value as Json, json};

use super::super::csv::{self, CsvError};
use super::super::id as ids;
use super::super::refusal::Refusal;
use super::super::schema::{Kind, Object};
use super::super::soql::{Plan, Selected};
use super::super::state::State;
use super::super::time;
use super::super::value::Value;
use super::super::write::{Op, Outcome, transact};
use super::rows::key_field;
use super::{Request, Response};

/// Records of one transaction.
const CHUNK: usize = 200;
/// Jobs that are kept.
const MOST_JOBS: usize = 1000;
/// Records of a result page unless the client asks for another number.
const PAGE: usize = 50_000;

/// What a job does with each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Insert,
    Update,
    Upsert(usize),
    Delete,
    Query { with_deleted: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    UploadComplete,
    JobComplete,
    Failed,
    Aborted,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "Open",
            Self::UploadComplete => "UploadComplete",
            Self::JobComplete => "JobComplete",
            Self::Failed => "Failed",
            Self::Aborted => "Aborted",
        }
    }
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    id: String,
    object: usize,
    operation: Operation,
    operation_name: String,
    external_id: Option<String>,
    delimiter: (String, char),
    ending: (String, &'static str),
    created_ms: i64,
    user: String,
    stage: Stage,
    /// Where the job will be once the client asks again.
    next: Option<Stage>,
    error: Option<String>,
    uploaded: Option<String>,
    header: Vec<String>,
    succeeded: Vec<Vec<String>>,
    failed: Vec<Vec<String>>,
    unprocessed: Vec<Vec<String>>,
}

/// Answers a request below `/jobs`.
pub(super) fn handle(state: &mut State, request: &Request, method: &str, path: &[&str]) -> Result<Response, Refusal> {
    match (method, path) {
        ("POST", ["ingest"]) => create(state, request),
        ("POST", ["query"]) => query(state, request),
        ("GET", [kind @ ("ingest" | "query")]) => Ok(list(state, request, kind)),
        ("PUT", ["ingest", id, "batches"]) => upload(state, request, id),
        ("GET", ["ingest" | "query", id]) => {
            let job = find(state, id)?;
            job.stage = job.next.take().unwrap_or(job.stage);
            let at = position(state, id)?;
            Ok(Response::ok(show(state, request, &state.jobs[at], true).to_string()))
        }
        ("PATCH", ["ingest" | "query", id]) => change(state, request, id),
        ("DELETE", ["ingest" | "query", id]) => {
            let job = find(state, id)?;
            if matches!(job.stage, Stage::Open) {
                return Err(Refusal::new("INVALIDJOBSTATE", "a job that is open cannot be deleted"));
            }
            let at = position(state, id)?;
            state.jobs.remove(at);
            Ok(Response::new(204, ""))
        }
        ("GET", ["query", id, "results"]) => results(state, request, id),
        ("GET", ["ingest", id, which]) => ingested(state, id, which),
        _ => Err(Refusal::not_found("The requested resource does not exist")),
    }
}

/// Where the job with this id of 15 or 18 characters is.
fn position(state: &State, id: &str) -> Result<usize, Refusal> {
    let found = state.jobs.iter().position(|job| job.id == id || ids::short(&job.id) == id);
    found.ok_or_else(|| Refusal::not_found("The requested resource does not exist"))
}

fn find<'a>(state: &'a mut State, id: &str) -> Result<&'a mut Job, Refusal> {
    let at = position(state, id)?;
    Ok(&mut state.jobs[at])
}

/// A job as its body describes it.
fn begin(
    state: &mut State,
    request: &Request,
    body: &Map<String, Json>,
    object: usize,
    operation: Operation,
) -> Result<Job, Refusal> {
    let text = |name: &str, default: &str| body.get(name).and_then(Json::as_str).unwrap_or(default).to_owned();
    let delimiter = text("columnDelimiter", "COMMA");
    let character = match delimiter.as_str() {
        "COMMA" => ',',
        "BACKQUOTE" => '`',
        "CARET" => '^',
        "PIPE" => '|',
        "SEMICOLON" => ';',
        "TAB" => '\t',
        other => return Err(Refusal::new("INVALIDJOB", format!("{other} is not a column delimiter"))),
    };
    let ending = text("lineEnding", "LF");
    let characters = match ending.as_str() {
        "LF" => "\n",
        "CRLF" => "\r\n",
        other => return Err(Refusal::new("INVALIDJOB", format!("{other} is not a line ending"))),
    };
    if text("contentType", "CSV") != "CSV" {
        return Err(Refusal::new("INVALIDJOB", "the content type of a job is CSV"));
    }
    Ok(Job {
        id: ids::make("750", state.rng.below(1 << 40)).to_string(),
        object,
        operation,
        operation_name: text("operation", ""),
        external_id: body.get("externalIdFieldName").and_then(Json::as_str).map(str::to_owned),
        delimiter: (delimiter, character),
        ending: (ending, characters),
        created_ms: request.now_ms,
        user: request.user.clone(),
        stage: Stage::Open,
        next: None,
        error: None,
        uploaded: None,
        header: Vec::new(),
        succeeded: Vec::new(),
        failed: Vec::new(),
        unprocessed: Vec::new(),
    })
}

fn keep(state: &mut State, request: &Request, job: Job) -> Response {
    let shown = show(state, request, &job, false).to_string();
    if state.jobs.len() >= MOST_JOBS {
        state.jobs.remove(0);
    }
    state.jobs.push(job);
    Response::ok(shown)
}

fn create(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let body = request.object()?;
    let name = body.get("object").and_then(Json::as_str).unwrap_or_default();
    let object = state
        .schema
        .object(name)
        .ok_or_else(|| Refusal::new("INVALIDENTITY", format!("Entity '{name}' is not supported by the Bulk API.")))?;
    let operation = match body.get("operation").and_then(Json::as_str).unwrap_or_default() {
        "insert" => Operation::Insert,
        "update" => Operation::Update,
        "delete" => Operation::Delete,
        "upsert" => {
            let field = body.get("externalIdFieldName").and_then(Json::as_str).unwrap_or_default();
            Operation::Upsert(key_field(state, object, field).map_err(|r| Refusal::new("INVALIDJOB", r.message))?)
        }
        other => return Err(Refusal::new("INVALIDJOB", format!("the operation {other} is not supported"))),
    };
    let job = begin(state, request, &body, object, operation)?;
    Ok(keep(state, request, job))
}

fn show(state: &State, request: &Request, job: &Job, whole: bool) -> Json {
    let is_query = matches!(job.operation, Operation::Query { .. });
    let created = time::format_datetime(job.created_ms);
    let mut shown = json!({
        "id": job.id,
        "operation": job.operation_name,
        "object": state.schema.objects[job.object].name.as_str(),
        "createdById": job.user,
        "createdDate": created,
        "systemModstamp": created,
        "state": job.stage.name(),
        "concurrencyMode": "Parallel",
        "contentType": "CSV",
        "apiVersion": f64::from(request.version),
        "lineEnding": job.ending.0,
        "columnDelimiter": job.delimiter.0,
    });
    if let Some(field) = &job.external_id {
        shown["externalIdFieldName"] = field.as_str().into();
    }
    if !is_query && job.stage == Stage::Open {
        shown["contentUrl"] = format!("services/data/v{}.0/jobs/ingest/{}/batches", request.version, job.id).into();
    }
    if whole {
        shown["jobType"] = if is_query { "V2Query" } else { "V2Ingest" }.into();
        shown["numberRecordsProcessed"] = (job.succeeded.len() + job.failed.len()).into();
        shown["retries"] = 0.into();
        shown["totalProcessingTime"] = 1.into();
        if is_query {
            shown["isPkChunkingSupported"] = true.into();
        } else {
            shown["numberRecordsFailed"] = job.failed.len().into();
            shown["apiActiveProcessingTime"] = 1.into();
            shown["apexProcessingTime"] = 0.into();
        }
        if let Some(error) = &job.error {
            shown["errorMessage"] = error.as_str().into();
        }
    }
    shown
}

fn list(state: &State, request: &Request, kind: &str) -> Response {
    let of_kind = |job: &&Job| matches!(job.operation, Operation::Query { .. }) == (kind == "query");
    let jobs: Vec<Json> = state.jobs.iter().filter(of_kind).map(|job| show(state, request, job, false)).collect();
    Response::ok(json!({"done": true, "records": jobs, "nextRecordsUrl": null}).to_string())
}

fn upload(state: &mut State, request: &Request, id: &str) -> Result<Response, Refusal> {
    let text = String::from_utf8(request.body.clone())
        .map_err(|_| Refusal::new("CLIENTINPUTERROR", "the content is not UTF-8"))?;
    let job = find(state, id)?;
    if job.stage != Stage::Open || job.uploaded.is_some() {
        let message = "Found multiple contents for job: a job takes one upload while it is open";
        return Err(Refusal::new("INVALIDJOBSTATE", message));
    }
    job.uploaded = Some(text);
    Ok(Response::new(201, ""))
}

fn change(state: &mut State, request: &Request, id: &str) -> Result<Response, Refusal> {
    let body = request.object()?;
    let job = find(state, id)?;
    match (body.get("state").and_then(Json::as_str).unwrap_or_default(), job.stage) {
        ("Aborted", Stage::Open | Stage::UploadComplete) => (job.stage, job.next) = (Stage::Aborted, None),
        ("UploadComplete", Stage::Open) => {
            let at = position(state, id)?;
            let mut job = state.jobs.remove(at);
            job.stage = Stage::UploadComplete;
            job.next = Some(Stage::JobComplete);
            if let Err(message) = process(state, request, &mut job) {
                job.error = Some(message);
                job.next = Some(Stage::Failed);
            }
            let wrote = !job.succeeded.is_empty();
            let response = Response::ok(show(state, request, &job, false).to_string());
            state.jobs.push(job);
            return Ok(if wrote { response.written() } else { response });
        }
        (given, stage) => {
            let message = format!("a job that is {} cannot become {given}", stage.name());
            return Err(Refusal::new("INVALIDJOBSTATE", message));
        }
    }
    let at = position(state, id)?;
    Ok(Response::ok(show(state, request, &state.jobs[at], false).to_string()))
}

/// Works on an uploaded job. An error fails the job as a whole.
fn process(state: &mut State, request: &Request, job: &mut Job) -> Result<(), String> {
    let text = job.uploaded.take().unwrap_or_default();
    let mut rows = csv::parse(&text, job.delimiter.1, job.ending.1 == "\r\n").map_err(|error| match error {
        CsvError::LineEnding => "InvalidBatch : LineEnding is invalid on user data".to_owned(),
        CsvError::Quote => "InvalidBatch : The quotes of a field are not where they belong".to_owned(),
    })?;
    if rows.is_empty() {
        return Ok(());
    }
    job.header = rows.remove(0);
    check_header(state, job)?;
    let width = job.header.len();
    if let Some(row) = rows.iter().find(|row| row.len() != width) {
        job.unprocessed.clone_from(&rows);
        return Err(format!(
            "InvalidBatch : The row has {} columns where the header has {width}: column count",
            row.len()
        ));
    }
    let mut actor = request.actor(false);
    actor.origin = actor.origin.replace("/api/rest/", "/api/bulkapi/");
    for chunk in rows.chunks(CHUNK) {
        let records: Vec<Map<String, Json>> = chunk.iter().map(|row| record(&job.header, row)).collect();
        let ids: Vec<String> = records.iter().map(id_of).collect();
        let bare: Vec<Map<String, Json>> = records.iter().map(without_id).collect();
        let ops: Vec<Op<'_>> =
            records.iter().zip(&bare).zip(&ids).map(|((record, bare), id)| op(state, job, record, bare, id)).collect();
        let outcomes = transact(state, &actor, request.now_ms, &ops, false);
        for ((row, id), outcome) in chunk.iter().zip(&ids).zip(outcomes) {
            note(job, row, id, outcome);
        }
    }
    Ok(())
}

fn check_header(state: &State, job: &Job) -> Result<(), String> {
    let object = &state.schema.objects[job.object];
    let known = |name: &str| match name.rsplit_once('.') {
        None => object.field(name).is_some(),
        Some((relationship, _)) => object.relationship(relationship.rsplit(':').next().unwrap_or_default()).is_some(),
    };
    match job.header.iter().find(|name| !known(name)) {
        Some(name) => Err(format!("InvalidBatch : Field name not found : {name}")),
        None => Ok(()),
    }
}

/// A row as a body would have it: an empty field is not there, `#N/A` is null.
fn record(header: &[String], row: &[String]) -> Map<String, Json> {
    let mut record = Map::new();
    for (name, field) in header.iter().zip(row).filter(|(_, field)| !field.is_empty()) {
        let value = if field == "#N/A" { Json::Null } else { Json::String(field.clone()) };
        match name.split_once('.') {
            None => record.insert(name.clone(), value),
            Some((relationship, key)) => match relationship.split_once(':') {
                None => record.insert(relationship.to_owned(), json!({ key: value })),
                Some((kind, relationship)) => {
                    record.insert(relationship.to_owned(), json!({"attributes": {"type": kind}, key: value}))
                }
            },
        };
    }
    record
}

fn id_of(record: &Map<String, Json>) -> String {
    let id = record.iter().find(|(name, _)| name.eq_ignore_ascii_case("id")).and_then(|(_, value)| value.as_str());
    id.unwrap_or_default().to_owned()
}

fn without_id(record: &Map<String, Json>) -> Map<String, Json> {
    record.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("id")).map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn op<'a>(state: &State, job: &Job, record: &'a Map<String, Json>, bare: &'a Map<String, Json>, id: &'a str) -> Op<'a> {
    let object = job.object;
    let missing =
        |what: &str| Op::Refused(Refusal::new("MISSING_ARGUMENT", format!("{what} not specified")).field(what));
    match job.operation {
        Operation::Insert => Op::Create { object, fields: record },
        Operation::Update | Operation::Delete if id.is_empty() => missing("Id"),
        Operation::Update => Op::Update { object, id, fields: bare },
        Operation::Delete => Op::Delete { object: Some(object), id },
        Operation::Upsert(field) => {
            let own = state.schema.objects[object].fields[field].name.as_str();
            match record.iter().find(|(name, value)| name.eq_ignore_ascii_case(own) && !value.is_null()) {
                None if own == "Id" => Op::Create { object, fields: bare },
                None => missing(own),
                Some(_) if own == "Id" => Op::Update { object, id, fields: bare },
                Some((_, key)) => Op::Upsert { object, field, key, fields: bare, update_only: false },
            }
        }
        Operation::Query { .. } => Op::Refused(Refusal::new("INVALIDJOB", "a query job takes no records in")),
    }
}

/// Files a record's outcome among the results.
fn note(job: &mut Job, row: &[String], id: &str, outcome: Outcome) {
    let (mut line, list) = match outcome {
        Ok(done) => (vec![done.id.to_string(), done.created.to_string()], &mut job.succeeded),
        Err(refusal) => {
            let fields =
                if refusal.fields.is_empty() { String::new() } else { format!("{} ", refusal.fields.join(",")) };
            (vec![id.to_owned(), format!("{}:{}:{fields}--", refusal.code, refusal.message)], &mut job.failed)
        }
    };
    line.extend_from_slice(row);
    list.push(line);
}

fn ingested(state: &mut State, id: &str, which: &str) -> Result<Response, Refusal> {
    let job = find(state, id)?;
    let (leading, rows): (&[&str], &Vec<Vec<String>>) = match which.to_ascii_lowercase().as_str() {
        "successfulresults" => (&["sf__Id", "sf__Created"], &job.succeeded),
        "failedresults" => (&["sf__Id", "sf__Error"], &job.failed),
        "unprocessedrecords" => (&[], &job.unprocessed),
        _ => return Err(Refusal::not_found("The requested resource does not exist")),
    };
    let mut out = String::new();
    let header = leading.iter().copied().chain(job.header.iter().map(String::as_str));
    csv::write(header, job.delimiter.1, job.ending.1, &mut out);
    for row in rows {
        csv::write(row.iter().map(String::as_str), job.delimiter.1, job.ending.1, &mut out);
    }
    Ok(as_csv(out))
}

fn as_csv(body: String) -> Response {
    let mut response = Response::ok(body);
    response.headers.push(("content-type", "text/csv; charset=UTF-8".to_owned()));
    response
}

fn query(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let body = request.object()?;
    let with_deleted = match body.get("operation").and_then(Json::as_str) {
        Some("query") => false,
        Some("queryAll") => true,
        _ => return Err(Refusal::new("API_ERROR", "the operation of a query job is query or queryAll")),
    };
    let text = body.get("query").and_then(Json::as_str).unwrap_or_default();
    let view = state.view(request.now_ms);
    let plan = Plan::of(view, text).map_err(|r| Refusal::new("API_ERROR", format!("{}: {}", r.code, r.message)))?;
    let mut header = Vec::new();
    let mut columns = Vec::new();
    for selected in &plan.select {
        let Selected::Field { names, column } = selected else {
            return Err(Refusal::new("API_ERROR", "aggregates and subqueries are not supported in a query job"));
        };
        let owner: &Object = &view.schema.objects[column.object];
        if matches!(owner.fields[column.field].kind, Kind::Address | Kind::Location) {
            let message = format!("Selecting compound data not supported in Bulk Query: {}", names.join("."));
            return Err(Refusal::new("API_ERROR", message));
        }
        header.push(names.join("."));
        columns.push(column);
    }
    if plan.count_only || plan.is_aggregate() || plan.offset > 0 {
        return Err(Refusal::new("API_ERROR", "COUNT(), GROUP BY and OFFSET are not supported in a query job"));
    }
    let table = &view.tables[plan.object];
    let rows = plan.run(view, with_deleted).into_iter().filter_map(|position| table.row(position));
    let lines = rows.map(|row| columns.iter().map(|c| c.value(view, row).map(text_of).unwrap_or_default()).collect());
    let lines: Vec<Vec<String>> = lines.collect();
    let mut job = begin(state, request, &body, plan.object, Operation::Query { with_deleted })?;
    (job.header, job.succeeded) = (header, lines);
    (job.stage, job.next) = (Stage::UploadComplete, Some(Stage::JobComplete));
    Ok(keep(state, request, job))
}

/// A value as the results of a query job have it.
fn text_of(value: &Value) -> String {
    match value {
        Value::DateTime(_) => value.plain().replace("+0000", "Z"),
        other => other.plain(),
    }
}

fn results(state: &mut State, request: &Request, id: &str) -> Result<Response, Refusal> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    let job = find(state, id)?;
    if job.next.is_some() || job.stage != Stage::JobComplete {
        return Err(Refusal::new("INVALIDJOBSTATE", "the job is not complete"));
    }
    let bad = || Refusal::new("INVALIDLOCATOR", "the locator is not one of this job");
    let offset = match request.param("locator").filter(|locator| !locator.is_empty()) {
        None => 0,
        Some(locator) => {
            let text =
                STANDARD_NO_PAD.decode(locator.trim_end_matches('=')).ok().and_then(|b| String::from_utf8(b).ok());
            text.and_then(|text| text.parse::<usize>().ok()).filter(|n| *n <= job.succeeded.len()).ok_or_else(bad)?
        }
    };
    let most = request.param("maxRecords").and_then(|n| n.parse().ok()).unwrap_or(PAGE).max(1);
    let rows: Vec<&Vec<String>> = job.succeeded.iter().skip(offset).take(most).collect();
    let mut out = String::new();
    csv::write(job.header.iter().map(String::as_str), job.delimiter.1, job.ending.1, &mut out);
    for row in &rows {
        csv::write(row.iter().map(String::as_str), job.delimiter.1, job.ending.1, &mut out);
    }
    let end = offset + rows.len();
    let more = end < job.succeeded.len();
    let mut response = as_csv(out);
    let locator = if more { STANDARD_NO_PAD.encode(end.to_string()) } else { "null".to_owned() };
    response.headers.push(("sforce-locator", locator));
    response.headers.push(("sforce-numberofrecords", rows.len().to_string()));
    Ok(response)
}
