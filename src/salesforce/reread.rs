//! Reading rows as they stand: by id, or page after page in the order of their ids.
//!
//! A page is asked for by key (`Id > last`), never by a locator that may get lost, so that reading goes on where it stopped
//! after any failure. Calls that fail for want of a connection or a limit are made again until they succeed or the caller
//! is cancelled.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use super::id18;
use super::rest::{ApiError, RETRIEVE_IDS_MAX, Record, Rest, RestError, Rows, URI_BYTES_MAX};
use crate::backoff::Backoff;
use crate::change::{FieldId, FieldKind, MappingDef, MappingId, Str, Value};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::mapping::from_json;

/// Rows in a page: the most that one answer holds.
pub const PAGE_ROWS: usize = 2_000;

/// Rows in a page after the server has run out of time over larger ones.
const PAGE_ROWS_MIN: usize = 100;

/// Fields that rows are read with where the object has them, and that not every object has.
#[derive(Debug, Clone, Copy)]
struct Has {
    is_deleted: bool,
    stamp: bool,
}

/// A row as it stands.
#[derive(Debug, Clone)]
pub struct ReadRow {
    /// Its id, 18 characters.
    pub id: Str,
    /// Whether it is in the recycle bin.
    pub deleted: bool,
    /// Its SystemModstamp, in microseconds, where the object has one.
    pub stamp: Option<Micros>,
    /// The row as the server gave it.
    pub record: Record,
}

impl ReadRow {
    fn of(record: Record) -> Option<Self> {
        let id = id18(record.get("Id")?.as_str()?);
        let deleted = record.get("IsDeleted").and_then(Json::as_bool).unwrap_or(false);
        let stamp = match record.get("SystemModstamp").map(|json| from_json(&FieldKind::DateTime, json)) {
            Some(Value::Timestamp(micros)) => Some(micros),
            _ => None,
        };
        Some(Self { id, deleted, stamp, record })
    }

    /// Every mapped value that the row has, by ascending field id.
    pub fn values(&self, mapping: &MappingDef) -> Vec<(FieldId, Value)> {
        let mut values = Vec::with_capacity(mapping.fields.len());
        for field in mapping.fields.iter().filter(|field| !matches!(field.kind, FieldKind::Relationship { .. })) {
            if let Some(json) = self.json(&field.name) {
                values.push((field.id, from_json(&field.kind, json)));
            }
        }
        values
    }

    /// One field as the server gave it.
    pub fn json(&self, name: &str) -> Option<&Json> {
        self.record.get(name).or_else(|| {
            let named = self.record.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
            named.map(|(_, json)| json)
        })
    }
}

/// A part of an object's rows, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Only rows after this id.
    pub after: Str,
    /// Only rows whose SystemModstamp is at or after this moment.
    pub since: Option<Micros>,
}

/// One page of rows.
#[derive(Debug)]
pub struct Page {
    /// The rows.
    pub rows: Vec<ReadRow>,
    /// Whether there are no more after these.
    pub finished: bool,
}

/// Reads rows. Clones share what was learnt about objects.
#[derive(Debug, Clone)]
pub struct RowReader {
    rest: Rest,
    has: Arc<Mutex<HashMap<MappingId, Has>>>,
}

impl RowReader {
    /// A reader that makes its calls with this client.
    pub fn new(rest: Rest) -> Self {
        Self { rest, has: Arc::default() }
    }

    /// The client.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The rows of these ids. An id that is not in the answer has no row: it is deleted, or was never there.
    pub async fn by_ids(
        &self,
        mapping: &MappingDef,
        ids: &[Str],
        cancel: &CancellationToken,
    ) -> Result<BTreeMap<Str, ReadRow>> {
        let mut rows = BTreeMap::new();
        for part in ids.chunks(RETRIEVE_IDS_MAX) {
            let what = format!("reading {} records of {} again", part.len(), mapping.sobject);
            let asked: Vec<&str> = part.iter().map(Str::as_str).collect();
            let read = patiently(&what, cancel, || async {
                loop {
                    let has = self.has(mapping.id);
                    let names = names(mapping, has);
                    match self.rest.retrieve(&mapping.sobject, &asked, &names).await {
                        Err(RestError::Api(api)) if self.do_without(mapping, &api) => {}
                        other => return other,
                    }
                }
            })
            .await?;
            rows.extend(
                read.into_iter().flatten().filter_map(ReadRow::of).filter(|r| !r.deleted).map(|r| (r.id.clone(), r)),
            );
        }
        Ok(rows)
    }

    /// The next page of a range. With [`Rows::All`], rows in the recycle bin are in it.
    pub async fn page(
        &self,
        mapping: &MappingDef,
        rows: Rows,
        range: &Range,
        cancel: &CancellationToken,
    ) -> Result<Page> {
        let what = format!("reading {} after {:?}", mapping.sobject, range.after);
        let size = AtomicUsize::new(PAGE_ROWS);
        patiently(&what, cancel, || async {
            loop {
                let limit = size.load(Ordering::Relaxed);
                match self.page_once(mapping, rows, range, limit).await {
                    Err(RestError::Api(api)) if self.do_without(mapping, &api) => {}
                    Err(RestError::Api(api)) if is_too_much(&api) && limit > PAGE_ROWS_MIN => {
                        size.store((limit / 4).max(PAGE_ROWS_MIN), Ordering::Relaxed);
                    }
                    other => return other,
                }
            }
        })
        .await
    }

    /// The next page of living rows, with little but their ids.
    pub async fn ids(&self, mapping: &MappingDef, range: &Range, cancel: &CancellationToken) -> Result<Page> {
        let what = format!("reading the ids of {} after {:?}", mapping.sobject, range.after);
        patiently(&what, cancel, || async {
            loop {
                let has = self.has(mapping.id);
                let soql = soql(mapping, &key_names(has), has, range, PAGE_ROWS);
                match self.queried(Rows::Live, &soql).await {
                    Err(RestError::Api(api)) if self.do_without(mapping, &api) => {}
                    Err(error) => return Err(error),
                    Ok(records) => {
                        let finished = records.len() < PAGE_ROWS;
                        return Ok(Page { rows: records.into_iter().filter_map(ReadRow::of).collect(), finished });
                    }
                }
            }
        })
        .await
    }

    /// All rows of a query.
    async fn queried(&self, rows: Rows, soql: &str) -> Result<Vec<Record>, RestError> {
        let mut page = self.rest.query(rows, soql).await?;
        let mut records = std::mem::take(&mut page.records);
        while let Some(next) = page.next.take() {
            page = self.rest.query_more(&next).await?;
            records.append(&mut page.records);
        }
        Ok(records)
    }

    /// How many rows there are; `None` where the server does not say, which may be for want of time over a large object.
    pub async fn count(&self, mapping: &MappingDef, cancel: &CancellationToken) -> Option<u64> {
        let soql = format!("SELECT COUNT() FROM {}", mapping.sobject);
        tokio::select! {
            counted = self.rest.query(Rows::Live, &soql) => counted.ok().map(|page| page.total),
            () = cancel.cancelled() => None,
        }
    }

    async fn page_once(
        &self,
        mapping: &MappingDef,
        rows: Rows,
        range: &Range,
        limit: usize,
    ) -> Result<Page, RestError> {
        let has = self.has(mapping.id);
        let all = names(mapping, has);
        let wide = soql(mapping, &all, has, range, limit);
        // A list of fields that is too long for a request line goes into the body of a second call.
        let (soql, narrow) = if wide.len() * 5 / 4 <= URI_BYTES_MAX {
            (wide, false)
        } else {
            (soql(mapping, &key_names(has), has, range, limit), true)
        };
        let mut records = self.queried(rows, &soql).await?;
        let finished = records.len() < limit;
        if narrow {
            records = self.widened(mapping, &all, records).await?;
        }
        let asked = records.len();
        let read: Vec<ReadRow> = records.into_iter().filter_map(ReadRow::of).collect();
        if read.len() != asked {
            let message = format!("Salesforce answered rows of {} without an Id", mapping.sobject);
            return Err(Error::new(Kind::Protocol, message).into());
        }
        Ok(Page { rows: read, finished })
    }

    /// The same rows with all their fields. One that was deleted in between stays as it was: its deletion is an event of its own.
    async fn widened(
        &self,
        mapping: &MappingDef,
        names: &[&str],
        mut records: Vec<Record>,
    ) -> Result<Vec<Record>, RestError> {
        let live: Vec<usize> = (0..records.len())
            .filter(|n| records.get(*n).is_some_and(|r| r.get("IsDeleted").and_then(Json::as_bool) != Some(true)))
            .collect();
        let ids: Vec<String> = live
            .iter()
            .filter_map(|n| records.get(*n).and_then(|r| r.get("Id")).and_then(Json::as_str).map(str::to_owned))
            .collect();
        if ids.is_empty() {
            return Ok(records);
        }
        let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
        let wide = self.rest.retrieve(&mapping.sobject, &asked, names).await?;
        for (n, record) in live.into_iter().zip(wide) {
            if let (Some(slot), Some(record)) = (records.get_mut(n), record) {
                *slot = record;
            }
        }
        Ok(records)
    }

    fn has(&self, mapping: MappingId) -> Has {
        let has = self.has.lock().unwrap_or_else(PoisonError::into_inner);
        has.get(&mapping).copied().unwrap_or(Has { is_deleted: true, stamp: true })
    }

    /// Whether the refusal is about a field of ours that this object turns out not to have; it is left out from now on.
    fn do_without(&self, mapping: &MappingDef, refused: &ApiError) -> bool {
        if refused.code != "INVALID_FIELD" {
            return false;
        }
        let mut has = self.has(mapping.id);
        let about = |name: &str| refused.message.contains(name) && mapping.field_named(name).is_none();
        if has.is_deleted && about("IsDeleted") {
            has.is_deleted = false;
        } else if has.stamp && about("SystemModstamp") {
            has.stamp = false;
        } else {
            return false;
        }
        self.has.lock().unwrap_or_else(PoisonError::into_inner).insert(mapping.id, has);
        true
    }
}

fn key_names(has: Has) -> Vec<&'static str> {
    let mut names = vec!["Id"];
    names.extend(has.is_deleted.then_some("IsDeleted"));
    names.extend(has.stamp.then_some("SystemModstamp"));
    names
}

/// What to select: the key fields, and every mapped field.
fn names(mapping: &MappingDef, has: Has) -> Vec<&str> {
    let mut names: Vec<&str> = key_names(has);
    for field in mapping.fields.iter().filter(|field| !matches!(field.kind, FieldKind::Relationship { .. })) {
        if !names.iter().any(|name| name.eq_ignore_ascii_case(&field.name)) {
            names.push(&field.name);
        }
    }
    names
}

fn soql(mapping: &MappingDef, names: &[&str], has: Has, range: &Range, limit: usize) -> String {
    let mut conditions = Vec::new();
    if !range.after.is_empty() {
        conditions.push(format!("Id > '{}'", range.after));
    }
    if let Some(since) = range.since.filter(|_| has.stamp)
        && let Ok(since) = jiff::Timestamp::from_second(since.div_euclid(1_000_000))
    {
        conditions.push(format!("SystemModstamp >= {since}"));
    }
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("SELECT {} FROM {}{condition} ORDER BY Id LIMIT {limit}", names.join(","), mapping.sobject)
}

/// Whether asking for less may help.
fn is_too_much(refused: &ApiError) -> bool {
    matches!(refused.code.as_str(), "QUERY_TIMEOUT" | "OPERATION_TOO_LARGE" | "REQUEST_RUNNING_TOO_LONG")
}

/// Makes a call again and again, with growing waits, while it fails for want of a connection or a limit.
pub(crate) async fn patiently<T, F, Fut>(what: &str, cancel: &CancellationToken, call: F) -> Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, RestError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_mins(1));
    loop {
        let result = tokio::select! {
            result = call() => result,
            () = cancel.cancelled() => return Err(cancelled(what)),
        };
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => Error::from(error),
        };
        let mut wait = backoff.next_wait();
        match error.kind() {
            Kind::Unavailable => {}
            Kind::Limited => wait = wait.max(Duration::from_secs(30)),
            _ => return Err(error.within(what)),
        }
        tracing::warn!(error = %error.explain(), wait_ms = wait.as_millis() as u64, "{what} failed and is tried again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return Err(cancelled(what)),
        }
    }
}

/// The error of what was given up for a shutdown.
pub(crate) fn cancelled(what: &str) -> Error {
    Error::new(Kind::Cancelled, format!("{what} was cancelled"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::salesforce::capture_event::tests::mapping;

    #[test]
    fn ranges_become_queries() {
        let mapping = mapping();
        let has = Has { is_deleted: true, stamp: true };
        assert_eq!(
            soql(&mapping, &names(&mapping, has), has, &Range::default(), 2_000),
            "SELECT Id,IsDeleted,SystemModstamp,Name,BillingCity,Active__c,Notes__c,Loc__Latitude__s FROM Account ORDER BY Id LIMIT 2000"
        );
        let range = Range { after: "001000000000001AAA".into(), since: Some(1_795_233_600_900_000) };
        assert_eq!(
            soql(&mapping, &key_names(has), has, &range, 100),
            "SELECT Id,IsDeleted,SystemModstamp FROM Account WHERE Id > '001000000000001AAA' \
             AND SystemModstamp >= 2026-11-21T04:00:00Z ORDER BY Id LIMIT 100"
        );
        let has = Has { is_deleted: false, stamp: false };
        assert_eq!(
            soql(&mapping, &key_names(has), has, &range, 100),
            "SELECT Id FROM Account WHERE Id > '001000000000001AAA' ORDER BY Id LIMIT 100"
        );
    }

    #[test]
    fn rows_have_every_mapped_value() {
        let json = r#"{"Id":"001000000000001","IsDeleted":false,"SystemModstamp":"2026-11-21T04:00:00.000+0000",
            "Name":" Acme ","BillingCity":null,"Active__c":true,"Notes__c":"","Loc__Latitude__s":48.50}"#;
        let row = ReadRow::of(serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(
            (row.id.as_str(), row.deleted, row.stamp),
            ("001000000000001AAA", false, Some(1_795_233_600_000_000))
        );
        let mapping = mapping();
        let values: Vec<String> =
            row.values(&mapping).iter().map(|(f, v)| format!("{}={v}", mapping.field(*f).unwrap().name)).collect();
        assert_eq!(
            values,
            [
                "Id=001000000000001AAA",
                "Name=Acme",
                "BillingCity=null",
                "Active__c=true",
                "IsDeleted=false",
                "SystemModstamp=2026-11-21T04:00:00Z",
                "Notes__c=null",
                "Loc__Latitude__s=48.5"
            ]
        );
        assert!(ReadRow::of(Record::new()).is_none());
    }

    #[tokio::test]
    async fn a_cancelled_wait_ends() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let call = || async { Err::<(), _>(RestError::Link(Error::new(Kind::Unavailable, "down"))) };
        assert_eq!(patiently("reading", &cancel, call).await.unwrap_err().kind(), Kind::Cancelled);
        let cancel = CancellationToken::new();
        let call = || async { Err::<(), _>(RestError::Link(Error::new(Kind::Configuration, "no"))) };
        assert_eq!(patiently("reading", &cancel, call).await.unwrap_err().to_string(), "reading: no");
    }
}
