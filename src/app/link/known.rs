//! What the log takes to be there, page by page.

use std::sync::Arc;

use crate::audit::Lens;
use crate::change::{Body, Catalog, Key, Lsn, MappingId, Offset, Position, RecordId, Side, Str};
use crate::error::Result;
use crate::ledger::core::read_entry;
use crate::ledger::keys;
use crate::log::reader::LogReader;
use crate::postgres::backfill::{KnownKeys, KnownRows};
use crate::salesforce::backfill::Known;

/// Rows that are copied from PostgreSQL at once.
pub(super) const COPY_ROWS: usize = 1_000;
/// Records of which only part is known that are looked up at once.
const PARTIAL_PAGE: usize = 1_000;
/// Entries of a record behind a ticket among which its echo is looked for: it closes the ticket before the next one.
const LOOKED_AT: usize = 1_000;

/// The Salesforce ids of the records that the log takes for alive there.
pub(super) fn known(reader: LogReader) -> Known {
    Known::new(move |mapping, after, limit| {
        let reader = reader.clone();
        Box::pin(async move {
            reader
                .call(move |log| {
                    let lens = Lens::new(log)?;
                    let prefix = keys::by_salesforce_id(mapping, "");
                    let mut last = keys::by_salesforce_id(mapping, &after).to_vec();
                    let mut ids = Vec::new();
                    loop {
                        let found = log.scan_state(&prefix, Some(&last), limit)?;
                        let more = found.len() == limit;
                        for (key, record) in &found {
                            let record = RecordId(keys::number(record));
                            let name = key.get(prefix.len()..).and_then(|id| std::str::from_utf8(id).ok());
                            let state = lens.state(record)?.filter(|s| s.exists_at(Side::Salesforce));
                            let alive = state.is_some_and(|s| s.salesforce_id.as_deref() == name);
                            ids.extend(name.filter(|_| alive).map(Str::new));
                        }
                        match found.into_iter().next_back() {
                            Some((key, _)) if more && ids.len() < limit => last = key,
                            _ => break,
                        }
                    }
                    ids.truncate(limit);
                    Ok(ids)
                })
                .await
        })
    })
}

/// The keys of the rows that the log takes to be there.
pub(super) fn known_rows(reader: LogReader, mapping: MappingId) -> KnownRows {
    Arc::new(move |after| {
        let reader = reader.clone();
        Box::pin(async move {
            reader
                .call(move |log| {
                    let place = |key: &str| keys::by_key(mapping, &Key(Str::new(key)));
                    let (prefix, after) = (place(""), after.as_deref().map(place));
                    let lens = Lens::new(log)?;
                    let mut known = KnownKeys::default();
                    for (key, record) in log.scan_state(&prefix, after.as_deref(), COPY_ROWS)? {
                        let name = String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default());
                        let name = Key(Str::new(name));
                        let state = lens.state(RecordId(keys::number(&record)))?;
                        if state.is_some_and(|s| s.exists_at(Side::Postgres) && s.key.as_ref() == Some(&name)) {
                            known.keys.push(name.clone());
                        }
                        known.last = Some(name.0);
                    }
                    Ok(known)
                })
                .await
        })
    })
}

/// The place where PostgreSQL's stream has told that a write of ours took effect.
pub(super) async fn told_at(reader: &LogReader, ticket: Offset) -> Result<Option<Lsn>> {
    reader
        .call(move |log| {
            if !(log.head()..log.tail()).contains(&ticket) {
                return Ok(None);
            }
            let Body::Ticket(written) = read_entry(log, ticket)?.body else { return Ok(None) };
            for offset in log.record_offsets(written.record, ticket, LOOKED_AT)? {
                if let Body::Echo(echo) = read_entry(log, offset)?.body
                    && let Position::Postgres { commit_lsn, .. } = echo.source.position
                    && echo.ticket == ticket
                {
                    return Ok(Some(commit_lsn));
                }
            }
            Ok(None)
        })
        .await
}

/// Some of the records of which only part is known, after a place in the log's index, and the place to go on from. Those of
/// mappings that have been removed since are nobody's business any more.
pub(super) async fn known_partial(
    reader: &LogReader,
    catalog: Arc<Catalog>,
    after: Vec<u8>,
) -> Result<(Vec<(MappingId, Str)>, Option<Vec<u8>>)> {
    reader
        .call(move |log| {
            let (mut found, mut last) = (Vec::new(), None);
            let lens = Lens::new(log)?;
            let after = Some(after.as_slice()).filter(|after| !after.is_empty());
            for (key, _) in log.scan_state(&[keys::PARTIAL], after, PARTIAL_PAGE)? {
                let state = lens.state(RecordId(keys::number(&key)))?;
                let state = state.filter(|s| catalog.mapping(s.mapping).is_some());
                found.extend(state.and_then(|s| s.salesforce_id.clone().map(|id| (s.mapping, id))));
                last = Some(key);
            }
            Ok((found, last))
        })
        .await
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
