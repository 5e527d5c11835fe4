//! Reads the whole log once and says whether it is what was written.

use serde::Serialize;

use super::frame::hex;
use super::{Chain, ChangeLog, ReadLimit, page};
use crate::change::{Entry, Offset};
use crate::clock::Micros;
use crate::error::{Kind, Result};

/// At most this many places are listed; the rest is only counted.
const BAD_LISTED_MAX: usize = 100;

const PAGE: ReadLimit = ReadLimit { entries: 4_096, bytes: 4 << 20 };

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first offset that was looked at.
    pub head: Offset,
    /// The offset after the last.
    pub tail: Offset,
    /// Entries that are as they were written.
    pub entries: u64,
    /// Their bytes, encoded.
    pub bytes: u64,
    /// When the first good entry was recorded.
    pub first_recorded_at: Option<Micros>,
    /// When the last good entry was recorded.
    pub last_recorded_at: Option<Micros>,
    /// The chain value of the last entry, in hexadecimal: it stands for the whole log.
    pub chain: String,
    /// How many entries are bad or missing.
    pub bad_entries: u64,
    /// The places that are bad, in order, the first of them first; at most 100 are listed.
    pub bad: Vec<Bad>,
}

/// A place in the log that is bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// The first bad offset.
    pub offset: Offset,
    /// The offset after the last bad one.
    pub end: Offset,
    /// What is wrong.
    pub reason: String,
}

impl Report {
    /// Whether nothing is bad.
    pub fn is_good(&self) -> bool {
        self.bad_entries == 0
    }

    fn add(&mut self, offset: Offset, end: Offset, reason: String) {
        self.bad_entries += end.0 - offset.0;
        if self.bad.len() < BAD_LISTED_MAX {
            self.bad.push(Bad { offset, end, reason });
        }
    }
}

/// Walks all entries up to the tail as it is now. Checks that none is missing, each one's checksum and chain value, that it
/// decodes, and that `recorded_at` does not decrease; goes on past what is bad.
///
/// `visit` is given each entry in order until the first bad one: after that nothing can be concluded from what is left. Its
/// error ends the scan and is returned, like an error of reading that says nothing about the entries.
pub fn scan(log: &dyn ChangeLog, mut visit: impl FnMut(Offset, &Entry) -> Result<()>) -> Result<Report> {
    let (head, tail, end_chain) = end(log);
    let mut report = Report { head, tail, chain: hex(&end_chain), ..Report::default() };
    let mut next = head;
    while next < tail {
        let page = match log.read(next, PAGE) {
            Ok(page) => page,
            Err(error) if is_bad(error.kind()) => {
                let end = first_readable(log, next, tail)?;
                report.add(next, end, error.explain());
                next = end;
                continue;
            }
            Err(error) => return Err(error),
        };
        for (offset, body) in page.iter().take_while(|(offset, _)| *offset < tail) {
            check(offset, body, &mut report, &mut visit)?;
        }
        if page.next() == tail && page.chain().is_some_and(|chain| *chain != end_chain) {
            let last = Offset(tail.0 - 1);
            report.add(last, tail, "the last entry is not the one that was written last".into());
        }
        if page.is_empty() {
            report.add(next, tail, "the log ends before its recorded end".into());
            break;
        }
        next = page.next();
    }
    Ok(report)
}

/// Head, tail and the chain value at the tail, while others may be appending.
fn end(log: &dyn ChangeLog) -> (Offset, Offset, Chain) {
    loop {
        let (tail, chain) = (log.tail(), log.chain());
        if log.tail() == tail {
            return (log.head(), tail, chain);
        }
    }
}

fn check(
    offset: Offset,
    body: &[u8],
    report: &mut Report,
    visit: &mut impl FnMut(Offset, &Entry) -> Result<()>,
) -> Result<()> {
    let entry = match page::decode(offset, body) {
        Ok(entry) => entry,
        Err(error) => {
            report.add(offset, offset.next(), error.explain());
            return Ok(());
        }
    };
    if report.last_recorded_at.is_some_and(|before| before > entry.recorded_at) {
        report.add(offset, offset.next(), "it was recorded before the entry before it".into());
        return Ok(());
    }
    report.entries += 1;
    report.bytes += body.len() as u64;
    report.first_recorded_at.get_or_insert(entry.recorded_at);
    report.last_recorded_at = Some(entry.recorded_at);
    if report.is_good() { visit(offset, &entry) } else { Ok(()) }
}

/// Whether an error of reading is about the entries, not about the way to them.
fn is_bad(kind: Kind) -> bool {
    matches!(kind, Kind::Corrupt | Kind::Configuration)
}

/// The first offset after `bad` that can be read, or `tail`. Looks ahead in growing steps, since one bad file can hold
/// hundreds of thousands of entries, and then back.
fn first_readable(log: &dyn ChangeLog, bad: Offset, tail: Offset) -> Result<Offset> {
    let good = |offset: u64| match log.read(Offset(offset), ReadLimit::ONE) {
        Ok(_) => Ok(true),
        Err(error) if is_bad(error.kind()) => Ok(false),
        Err(error) => Err(error),
    };
    let (mut low, mut step) = (bad.0, 1);
    let mut high = loop {
        let probe = low.saturating_add(step).min(tail.0);
        if probe == tail.0 || good(probe)? {
            break probe;
        }
        low = probe;
        step *= 2;
    };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if good(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Offset(high))
}
