//! Writes to Salesforce by sObject Collections: up to 200 records of a batch in one call, taken record by record.
//!
//! * A create is an upsert by the mapping's external id, so that sending it again, after an answer that was lost, finds the
//!   record that the first one made. A mapping without an external id field is written by plain inserts, which sending again
//!   repeats: `preflight` warns of it.
//! * A create whose record had a Salesforce id before (it was deleted there, and an edit won over the delete) makes a new
//!   record: ids are never used again, and REST cannot undelete. Its answer names the new id.
//! * Nulls are left out of a create, so that the org's defaults apply. If the record turns out to be there already, they are
//!   written in a second step.
//! * Updates and deletes go by record id. To delete what is deleted is success.
//! * Only what the field's description allows is sent. A field is never dropped from an update to get the rest of a row
//!   through: that would answer "done" for a value that was not written. From a create that turns out to be of a record that
//!   is there, fields that can be set at creation only are dropped, since nothing can set them any more.
//!
//! A call that is refused as a whole, because one row does not fit the org's schema or is no good JSON, is narrowed down to
//! that row: by what the message names, and by halving. A call that is too large is halved as well, and later calls stay
//! smaller for a while.
//!
//! Invariants: one answer per write, in the batch's order; the same record is never twice in one call; no write is sent again
//! within one batch unless Salesforce said that it was not done; rows that were answered before a call failed are remembered
//! by ticket, and are not sent again when the batch is.

mod answer;
mod plan;
mod row;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use serde_json::{Map, Value as Json};

use self::answer::{ItemError, ItemResult, Verdict, culprits, judge, judge_error};
use self::plan::{Call, ROWS_MAX};
use self::row::{Prepared, Row, Verb};
use super::errors::Class;
use super::limits::Budget;
use super::rest::{ApiError, CALL_OPTIONS, Rest, RestError, encode_segment};
use crate::change::{Catalog, Offset, Side};
use crate::error::{Error, Kind, Result};
use crate::flow::{Confirmation, Resumed, Target, Write, Written};

/// How many calls a refused call may cost to narrow down. What is left then is tried again with a later batch.
const PROBES_MAX: usize = 32;

/// How writes are made.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// The most writes in one call, 1 to 200.
    pub batch_limit: usize,
    /// Whether records are saved although a duplicate rule warns of them. Rules that block are not overruled.
    pub save_duplicates: bool,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { batch_limit: ROWS_MAX, save_duplicates: false }
    }
}

/// What the target has done since the start. Shared by all clones.
#[derive(Debug, Default)]
pub struct TargetStatus {
    calls: AtomicU64,
    failed_calls: AtomicU64,
    rows: AtomicU64,
    done: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    narrowed: AtomicU64,
}

impl TargetStatus {
    /// Collection calls made, with those that failed.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Calls without an answer for their rows.
    pub fn failed_calls(&self) -> u64 {
        self.failed_calls.load(Ordering::Relaxed)
    }

    /// Rows sent, each time they were.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Writes answered as done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Writes refused for good.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Writes answered as worth trying again.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Calls made only to find the row that spoils a call.
    pub fn narrowed(&self) -> u64 {
        self.narrowed.load(Ordering::Relaxed)
    }

    fn count(&self, written: &Written) {
        let counter = match written {
            Written::Done { .. } | Written::InStream => &self.done,
            Written::Refused { .. } => &self.refused,
            Written::Retry { .. } => &self.retried,
        };
        add(counter, 1);
    }
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Writes to one org. Each clone has one call in flight at a time; clones share client, budget and counts.
#[derive(Debug)]
pub struct SalesforceTarget {
    rest: Rest,
    catalog: Arc<Catalog>,
    budget: Budget,
    options: TargetOptions,
    status: Arc<TargetStatus>,
    /// Answers of a batch of which another part failed.
    settled: Vec<(Offset, Written)>,
    /// The most rows of a call, smaller for a while after one was too large.
    rows_max: usize,
}

/// A clone for calls of its own; what this instance remembers of a failed batch stays with it.
impl Clone for SalesforceTarget {
    fn clone(&self) -> Self {
        Self {
            rest: self.rest.clone(),
            catalog: self.catalog.clone(),
            budget: self.budget.clone(),
            options: self.options.clone(),
            status: self.status.clone(),
            settled: Vec::new(),
            rows_max: self.options.batch_limit,
        }
    }
}

impl SalesforceTarget {
    /// A target; nothing is sent yet.
    pub fn new(rest: Rest, catalog: Arc<Catalog>, budget: Budget, options: TargetOptions) -> Self {
        let rows_max = options.batch_limit.clamp(1, ROWS_MAX);
        let options = TargetOptions { batch_limit: rows_max, ..options };
        Self { rest, catalog, budget, options, status: Arc::default(), settled: Vec::new(), rows_max }
    }

    /// What has been done so far, by this instance and its clones.
    pub fn status(&self) -> Arc<TargetStatus> {
        self.status.clone()
    }

    /// The API budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl Target for SalesforceTarget {
    fn side(&self) -> Side {
        Side::Salesforce
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation::Answer
    }

    fn batch_limit(&self) -> usize {
        self.options.batch_limit
    }

    /// Makes sure that there is a session. Salesforce does not tell which tickets took effect.
    async fn resume(&mut self) -> Result<Resumed> {
        self.rest.auth().session().await?;
        Ok(Resumed::default())
    }

    async fn write(&mut self, batch: &[Write]) -> Result<Vec<Written>> {
        let mut answers = Answers::new(batch, std::mem::take(&mut self.settled));
        let mut rows = Vec::with_capacity(batch.len());
        for (index, write) in batch.iter().enumerate() {
            if !answers.is_open(index) {
                continue;
            }
            match row::prepare(index, write, &self.catalog) {
                Prepared::Send(row) => rows.push(row),
                Prepared::Answer(written) => answers.give(index, written),
            }
        }
        // What is known is put where a failure, or a caller who stops waiting, leaves it in place.
        self.settled = answers.known();
        for call in plan::plan(rows, self.rows_max) {
            let sent = self.send(call, &mut answers).await;
            self.settled = answers.known();
            sent?;
        }
        let answers = answers.finish()?;
        self.settled.clear();
        for written in &answers {
            self.status.count(written);
        }
        Ok(answers)
    }
}

/// The answers of a batch, as they come.
struct Answers {
    tickets: Vec<Offset>,
    given: Vec<Option<Written>>,
}

impl Answers {
    fn new(batch: &[Write], settled: Vec<(Offset, Written)>) -> Self {
        let tickets: Vec<Offset> = batch.iter().map(|write| write.ticket).collect();
        let mut given = vec![None; batch.len()];
        for (ticket, written) in settled {
            if let Some(place) = tickets.iter().position(|t| *t == ticket).and_then(|index| given.get_mut(index)) {
                *place = Some(written);
            }
        }
        Self { tickets, given }
    }

    fn is_open(&self, index: usize) -> bool {
        self.given.get(index).is_some_and(Option::is_none)
    }

    fn give(&mut self, index: usize, written: Written) {
        if let Some(place) = self.given.get_mut(index) {
            *place = Some(written);
        }
    }

    /// What is answered for good: what is to be tried again is tried again.
    fn known(&self) -> Vec<(Offset, Written)> {
        let answered = self.tickets.iter().zip(&self.given);
        answered
            .filter_map(|(ticket, written)| written.clone().map(|written| (*ticket, written)))
            .filter(|(_, written)| !matches!(written, Written::Retry { .. }))
            .collect()
    }

    fn finish(self) -> Result<Vec<Written>> {
        self.given.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::new(Kind::Internal, "a write to Salesforce was left without an answer; this is a bug in Tidelock")
        })
    }
}

impl SalesforceTarget {
    /// Sends one call, and then what follows from its rows' results. An error leaves the effect of unanswered rows unknown.
    async fn send(&mut self, call: Call, answers: &mut Answers) -> Result<()> {
        let mut calls = vec![call];
        // Each round takes something from a row that is sent again, so that there are three at most.
        while !calls.is_empty() {
            let mut again = Vec::new();
            for call in calls {
                self.send_narrowing(call, answers, &mut again).await?;
            }
            calls = plan::plan(again, self.rows_max);
        }
        Ok(())
    }

    /// Sends rows in as many calls as it takes to tell good rows from bad ones. Rows that need a second step are put to `again`.
    async fn send_narrowing(&mut self, call: Call, answers: &mut Answers, again: &mut Vec<Row>) -> Result<()> {
        let mut work = vec![call];
        let mut probes = 0;
        while let Some(rows) = work.pop() {
            let error = match self.attempt(&rows).await {
                Ok(results) => {
                    self.take(rows, results, answers, again)?;
                    continue;
                }
                Err(RestError::Link(error)) => return Err(self.failed(error)),
                Err(RestError::Api(error)) => error,
            };
            let class = classify_call(&error);
            if let Some(kind) = whole(class) {
                return Err(self.failed(whole_error(kind, error)));
            }
            if class == Class::Shrink {
                self.rows_max = (rows.len() / 2).max(1);
            }
            let error = ItemError::from(error);
            if matches!(class, Class::Locked | Class::Innocent) || rows.len() > 1 && probes >= PROBES_MAX {
                for row in &rows {
                    answers.give(row.index, error.retry());
                }
                continue;
            }
            probes += 1;
            add(&self.status.narrowed, usize::from(rows.len() > 1));
            for part in narrow(rows, &error, answers, again).into_iter().rev() {
                work.push(part);
            }
        }
        Ok(())
    }

    /// Makes one call.
    async fn attempt(&mut self, rows: &[Row]) -> Result<Vec<ItemResult>, RestError> {
        let Some(first) = rows.first() else { return Ok(Vec::new()) };
        self.budget.permit(&self.rest).await?;
        add(&self.status.calls, 1);
        add(&self.status.rows, rows.len());
        // The org repeats the client name in the events that come of this call, so that an event of another record can be
        // told from the echo of a write that is still on its way there.
        let tickets = || rows.iter().map(|row| row.ticket.0);
        let (oldest, newest) = (tickets().min().unwrap_or_default(), tickets().max().unwrap_or_default());
        let options = format!("client={}/{oldest}-{newest}", self.rest.client_name());
        let mut headers: Vec<(&'static str, &str)> = vec![(CALL_OPTIONS, &options)];
        if self.options.save_duplicates && first.verb != Verb::Delete {
            headers.push(("sforce-duplicate-rule-header", "allowSave=true"));
        }
        let answer = if first.verb == Verb::Delete {
            let ids = rows.iter().filter_map(|row| row.id.as_deref()).collect::<Vec<_>>().join(",");
            let query = [("ids", ids.as_str()), ("allOrNone", "false")];
            self.rest.call(Method::DELETE, "composite/sobjects", &query, None, &headers).await?
        } else {
            let (method, path) = match first.verb {
                Verb::Upsert => (
                    Method::PATCH,
                    format!(
                        "composite/sobjects/{}/{}",
                        encode_segment(&first.sobject),
                        encode_segment(&first.external_field)
                    ),
                ),
                Verb::Insert => (Method::POST, "composite/sobjects".to_owned()),
                Verb::Update | Verb::Delete => (Method::PATCH, "composite/sobjects".to_owned()),
            };
            let mut body = Map::new();
            body.insert("allOrNone".into(), Json::Bool(false));
            body.insert("records".into(), rows.iter().map(Row::record).collect());
            self.rest.call(method, &path, &[], Some(&Json::Object(body)), &headers).await?
        };
        let results: Vec<ItemResult> = answer.json()?;
        if results.len() != rows.len() {
            let message = format!("Salesforce answered {} results for {} records", results.len(), rows.len());
            return Err(Error::new(Kind::Protocol, message).into());
        }
        Ok(results)
    }

    /// Takes the results of one call.
    fn take(
        &mut self,
        rows: Vec<Row>,
        results: Vec<ItemResult>,
        answers: &mut Answers,
        again: &mut Vec<Row>,
    ) -> Result<()> {
        if rows.len() >= self.rows_max {
            self.rows_max = (self.rows_max + self.rows_max / 8 + 1).min(self.options.batch_limit);
        }
        let verdicts: Vec<Verdict> = rows.iter().zip(results).map(|(row, result)| judge(row, result)).collect();
        if let Some(Verdict::Limited(Written::Retry { code, message, .. })) = verdicts.first()
            && verdicts.iter().all(|verdict| matches!(verdict, Verdict::Limited(_)))
        {
            let message =
                format!("Salesforce refuses all writes with {code}: {message}; they wait until the org has room");
            return Err(self.failed(Error::new(Kind::Limited, message)));
        }
        for (row, verdict) in rows.into_iter().zip(verdicts) {
            settle(row, verdict, answers, again);
        }
        Ok(())
    }

    fn failed(&self, error: Error) -> Error {
        add(&self.status.failed_calls, 1);
        error
    }
}

/// Acts on one row's verdict.
fn settle(row: Row, verdict: Verdict, answers: &mut Answers, again: &mut Vec<Row>) {
    match verdict {
        Verdict::Answer(written) | Verdict::Limited(written) => answers.give(row.index, written),
        Verdict::UpdateInstead(id) => again.push(row.updating(id)),
        Verdict::ClearLeftOut(id) => again.push(row.clearing(id)),
        Verdict::WithoutCreateOnly => again.push(row.without_create_only()),
        Verdict::NotCleared { written, code } => {
            tracing::warn!(
                sobject = %row.sobject,
                id = row.id.as_deref().unwrap_or_default(),
                fields = ?row.body.keys().collect::<Vec<_>>(),
                %code,
                "a record that was to be created was there already, and Salesforce does not let these fields be cleared"
            );
            answers.give(row.index, written);
        }
    }
}

/// The class of an error of a whole call.
fn classify_call(error: &ApiError) -> Class {
    super::errors::classify(error.status, &error.code, &error.message)
}

/// What kind of trouble a whole call is in, unless it may be about its rows.
const fn whole(class: Class) -> Option<Kind> {
    match class {
        Class::Reauthenticate => Some(Kind::Denied),
        Class::HaltConfiguration | Class::Missing => Some(Kind::Configuration),
        Class::Backoff => Some(Kind::Unavailable),
        Class::WaitForLimit | Class::WaitForConcurrency => Some(Kind::Limited),
        Class::Locked
        | Class::Shrink
        | Class::RestartQuery
        | Class::Gone
        | Class::Dependency
        | Class::Duplicate
        | Class::DuplicateRule
        | Class::Conflict
        | Class::Innocent
        | Class::Schema
        | Class::RowFinal
        | Class::Unknown => None,
    }
}

fn whole_error(kind: Kind, error: ApiError) -> Error {
    let advice = match kind {
        Kind::Denied => "check the connected app and the integration user's API permission",
        Kind::Configuration => {
            "check the API version, the external id field and the user's permissions with `tidelock check`"
        }
        Kind::Limited => "writes wait until the limit allows them",
        _ => "they are sent again",
    };
    Error::new(kind, format!("Salesforce refused a call of writes with {}: {}; {advice}", error.code, error.message))
}

/// Divides rows that were refused together: those that the error names are judged by it, the others are halved; a row alone is
/// judged.
fn narrow(rows: Vec<Row>, error: &ItemError, answers: &mut Answers, again: &mut Vec<Row>) -> Vec<Call> {
    let named = culprits(&rows, error);
    if !named.is_empty() || rows.len() == 1 {
        let mut rest = Vec::new();
        for (n, row) in rows.into_iter().enumerate() {
            if named.is_empty() || named.get(n) == Some(&true) {
                let verdict = judge_error(&row, error);
                settle(row, verdict, answers, again);
            } else {
                rest.push(row);
            }
        }
        return if rest.is_empty() { Vec::new() } else { vec![rest] };
    }
    let mut first = rows;
    let second = first.split_off(first.len().div_ceil(2));
    vec![first, second]
}

#[cfg(test)]
mod tests;
