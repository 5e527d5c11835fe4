#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::change::{
    Catalog, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, Key, Lsn, MappingDef, MappingId, Notice, Policy,
    Position, Side, Str, StreamId, Transaction, Value, Who,
};
use crate::clock::Clock;
use crate::flow::{Batch, Event, Item, Own, Row, RowOperation};
use crate::ledger::Core;
use crate::log::{MemoryLog, StateRead};

struct Still;

impl Clock for Still {
    fn now(&self) -> Micros {
        1_700_000_000_000_000
    }
}

fn field(id: u16, name: &str, kind: FieldKind) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: name.to_lowercase(),
        kind,
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

fn catalog() -> Catalog {
    let mapping = MappingDef {
        id: MappingId(0),
        name: "contact".into(),
        sobject: "Contact".into(),
        schema: "salesforce".into(),
        table: "contact".into(),
        key_columns: vec!["id".into()],
        fields: vec![
            field(0, "Ext__c", FieldKind::Text { length: 10 }),
            field(1, "Phone", FieldKind::Text { length: 10 }),
        ],
        next_field: FieldId(2),
        owner: None,
        external_id: Some(FieldId(0)),
        delete: crate::change::DeletePolicy::DeleteWins,
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: 0,
    };
    Catalog { mappings: vec![mapping], next_mapping: MappingId(1), ..Catalog::default() }
}

fn event(side: Side, n: u64, operation: RowOperation, fields: &[(u16, &str)]) -> Batch {
    let position = match side {
        Side::Postgres => Position::Postgres { stream: StreamId(0), commit_lsn: Lsn(n), index: 0 },
        Side::Salesforce => {
            Position::Salesforce { stream: StreamId(1), replay_id: Str::from(format!("{n:x}")), index: 0 }
        }
    };
    let row = Row {
        mapping: MappingId(0),
        operation,
        key: (side == Side::Postgres).then(|| Key::from_parts(["1"])),
        old_key: None,
        salesforce_id: (side == Side::Salesforce).then(|| Str::new("003000000000000001")),
        fields: fields.iter().map(|(f, v)| (FieldId(*f), Value::text(v))).collect(),
        own: Own::No,
    };
    let transaction = Transaction { id: Str::from(format!("{side}{n}")), index: 0, last: true };
    let event = Event { position, transaction, committed_at: n as i64, who: Who::default(), item: Item::Row(row) };
    Batch { side, events: vec![event] }
}

/// Both sides create a contact with other phones (a conflict), then PostgreSQL edits it unseen (another), then deletes it
/// unseen.
fn sound() -> MemoryLog {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), Arc::new(Still)).unwrap();
    core.configure(&catalog()).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    core.intake(&event(Side::Postgres, 1, RowOperation::Insert, &[(0, "x"), (1, "111")])).unwrap();
    core.intake(&event(Side::Salesforce, 2, RowOperation::Insert, &[(0, "x"), (1, "333")])).unwrap();
    core.intake(&event(Side::Postgres, 3, RowOperation::Update, &[(0, "x"), (1, "222")])).unwrap();
    core.intake(&event(Side::Postgres, 4, RowOperation::Delete, &[])).unwrap();
    core.commit().unwrap();
    log
}

fn all(log: &MemoryLog) -> Vec<(Entry, Option<Vec<u8>>)> {
    let page = log.read(Offset(0), ReadLimit::entries(100)).unwrap();
    let keys = log.scan_transactions(&[], None, 100).unwrap();
    let key = |offset: Offset| keys.iter().find(|(_, o)| *o == offset).map(|(k, _)| k.clone());
    page.entries().map(Result::unwrap).map(|(offset, entry)| (entry, key(offset))).collect()
}

/// A log with these entries, properly framed and chained, whose state is what they add up to: the careful forger's.
fn forged(entries: &[(Entry, Option<Vec<u8>>)]) -> MemoryLog {
    let log = MemoryLog::new();
    let mut append = Append::new();
    for (entry, key) in entries {
        append.push(entry, key.as_deref());
    }
    log.append(Offset(0), &append).unwrap();
    rebuild(&log, &mut |_, _| {}).unwrap();
    log
}

fn problems(log: &MemoryLog) -> Vec<(Option<u64>, String)> {
    let report = verify(log, &mut |_, _| {}).unwrap();
    report.problems.into_iter().map(|p| (p.offset.map(|o| o.0), p.what)).collect()
}

fn find(log: &MemoryLog, offset: Option<u64>, what: &str) {
    let found = problems(log);
    assert!(found.iter().any(|(o, w)| *o == offset && w.contains(what)), "{offset:?} {what} is not among {found:#?}");
}

/// The offset of the first entry that `is`.
fn first(entries: &[(Entry, Option<Vec<u8>>)], is: impl Fn(&Body) -> bool) -> usize {
    entries.iter().position(|(e, _)| is(&e.body)).unwrap()
}

#[test]
fn a_sound_log_is_counted() {
    let log = sound();
    let mut told = Vec::new();
    let report = verify(&log, &mut |done, of| told.push((done, of))).unwrap();
    assert_eq!(report.problems, []);
    assert!(report.sound() && report.state_compared);
    assert_eq!(report.entries.get("change"), Some(&4));
    assert_eq!(report.conflicts.get("salesforce_wins"), Some(&2));
    assert_eq!(report.conflicts.get("delete_policy"), Some(&1));
    assert_eq!(told.last(), Some(&(report.tail.0, report.tail.0)));
}

#[test]
fn flipped_bits_and_lost_bytes_are_named_and_the_rest_is_still_read() {
    for bad in 0..sound().tail().0 {
        let log = sound();
        log.tamper(Offset(bad), |frame| *frame.last_mut().unwrap() ^= 1).unwrap();
        find(&log, Some(bad), "checksum");
        let report = verify(&log, &mut |_, _| {}).unwrap();
        assert_eq!(report.entries.values().sum::<u64>(), report.tail.0 - 1, "every other entry is read");
        assert!(!report.state_compared);
        let log = sound();
        log.tamper(Offset(bad), |frame| frame.truncate(10)).unwrap();
        find(&log, Some(bad), "cut short");
    }
}

#[test]
fn a_frame_that_was_forged_alone_breaks_the_chain_behind_it() {
    let (log, other) = (sound(), forged(&all(&sound())[..6]));
    let mut entry = all(&log)[4].0.clone();
    entry.recorded_at += 1;
    let mut append = Append::new();
    append.push(&entry, None);
    let body = append.entries().next().unwrap().body.to_vec();
    let previous = crate::log::Chain::from(chain_before(&other, 4));
    log.tamper(Offset(4), |frame| *frame = [&crate::log::frame::header(&previous, &body)[..], &body].concat()).unwrap();
    find(&log, Some(5), "does not follow");
}

fn chain_before(log: &MemoryLog, offset: u64) -> crate::log::Chain {
    let mut chain = crate::log::GENESIS;
    for (at, body) in log.read(Offset(0), ReadLimit::entries(100)).unwrap().iter() {
        if at.0 < offset {
            chain = crate::log::frame::chain(&chain, body);
        }
    }
    chain
}

#[test]
fn an_entry_that_cannot_be_decoded_is_named() {
    let log = sound();
    let mut append = Append::new();
    append.push_encoded(b"\xffnonsense", None, None);
    let tail = log.tail();
    log.append(tail, &append).unwrap();
    find(&log, Some(tail.0), "cannot be decoded");
}

#[test]
fn a_missing_decision_is_found_twice_over() {
    let mut entries = all(&sound());
    let decision = first(&entries, |b| matches!(b, Body::Decision(_)));
    entries.remove(decision);
    let log = forged(&entries);
    find(&log, Some(decision as u64), "is missing");
    // From the entries alone: nothing says what became of the change before it.
    find(&log, Some(decision as u64 - 1), "field 1 was ");
}

#[test]
fn a_decision_that_was_turned_round_is_found() {
    let mut entries = all(&sound());
    let decision = first(&entries, |b| matches!(b, Body::Decision(_)));
    if let Body::Decision(d) = &mut entries[decision].0.body {
        std::mem::swap(&mut d.winner, &mut d.loser);
    }
    find(&forged(&entries), Some(decision as u64), "winner and loser");
}

#[test]
fn a_change_that_is_there_twice_or_was_taken_out_is_found() {
    let entries = all(&sound());
    let change = first(&entries, |b| matches!(b, Body::Change(c) if c.dot.n == 2));
    let mut twice = entries.clone();
    twice.insert(change, entries[change].clone());
    find(&forged(&twice), Some(change as u64 + 1), "is numbered");
    let mut less = entries.clone();
    less.remove(change);
    find(&forged(&less), Some(change as u64 + 1), "is numbered");
}

#[test]
fn a_value_before_that_nobody_held_is_found() {
    let mut entries = all(&sound());
    let change = first(&entries, |b| matches!(b, Body::Change(c) if c.dot.n == 2));
    if let Body::Change(c) = &mut entries[change].0.body {
        c.fields[0].before = Value::text("never");
    }
    find(&forged(&entries), Some(change as u64), "held another value");
}

#[test]
fn a_state_that_is_not_the_fold_is_found_and_rebuilt() {
    let (log, key) = (sound(), keys::record(crate::change::RecordId(0)));
    let notice = Notice::ReplayAt { side: Side::Postgres, cursor: Offset(1) };
    let tamper = |change: &dyn Fn(&mut Append)| {
        let mut append = Append::new();
        append.push(&Entry { recorded_at: 1_700_000_000_000_000, body: Body::Notice(notice.clone()) }, None);
        change(&mut append);
        log.append(log.tail(), &append).unwrap();
    };
    let before = log.state(&key).unwrap().unwrap();
    tamper(&|append| append.put(&key, b"other"));
    find(&log, None, "differs");
    assert_eq!(rebuild(&log, &mut |_, _| {}).unwrap(), log.tail().0);
    assert_eq!(problems(&log), []);
    assert_eq!(log.state(&key).unwrap().unwrap(), before);
    tamper(&|append| append.delete(&key));
    tamper(&|append| append.put(b"zzz", b""));
    find(&log, None, "record 0 differs");
    rebuild(&log, &mut |_, _| {}).unwrap();
    assert_eq!(problems(&log), []);
    // A bad entry stops a rebuild, and everything stays as it was.
    log.tamper(Offset(3), |frame| frame[40] ^= 1).unwrap();
    assert_eq!(rebuild(&log, &mut |_, _| {}).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(log.state(&key).unwrap().unwrap(), before);
}

#[test]
fn an_index_that_leads_nowhere_is_found_and_rebuilt() {
    let entries = all(&sound());
    let log = MemoryLog::new();
    let mut append = Append::new();
    for (entry, _) in &entries {
        append.push(entry, None);
    }
    log.append(Offset(0), &append).unwrap();
    find(&log, Some(first(&entries, |b| matches!(b, Body::Change(_))) as u64), "transaction index");
    rebuild(&log, &mut |_, _| {}).unwrap();
    assert_eq!(problems(&log), []);
    assert_eq!(log.scan_transactions(&[], None, 100).unwrap(), sound().scan_transactions(&[], None, 100).unwrap());
}

#[test]
fn an_entry_that_was_recorded_before_the_one_before_it_is_found() {
    let mut entries = all(&sound());
    entries[4].0.recorded_at -= 1;
    find(&forged(&entries), Some(4), "recorded before");
}

/// The sound log and its state, with other index keys.
fn indexed(change: impl Fn(u64, &mut Option<RecordId>, &mut Option<Vec<u8>>)) -> MemoryLog {
    let (sound, log, mut append) = (sound(), MemoryLog::new(), Append::new());
    for (n, (entry, mut key)) in (0..).zip(all(&sound)) {
        let mut record = record_of(&entry);
        change(n, &mut record, &mut key);
        let mut one = Append::new();
        one.push(&entry, None);
        append.push_encoded(one.entries().next().unwrap().body, record, key.as_deref());
    }
    for (key, value) in sound.scan_state(&[], None, 1_000).unwrap() {
        append.put(&key, &value);
    }
    log.append(Offset(0), &append).unwrap();
    log
}

#[test]
fn index_keys_that_are_missing_or_too_many_are_found() {
    assert_eq!(problems(&indexed(|_, _, _| {})), []);
    let entries = all(&sound());
    let change = first(&entries, |b| matches!(b, Body::Change(_))) as u64;
    let last = entries.len() as u64 - 1;
    for n in [change, last] {
        let log = indexed(|at, record, _| *record = record.filter(|_| at != n));
        find(&log, Some(n), "the index of record 0 lacks this entry");
    }
    for extra in [RecordId(0), RecordId(7)] {
        let log = indexed(|at, record, _| *record = if at == 0 { Some(extra) } else { *record });
        find(&log, Some(0), &format!("the index of record {} should not have this entry", extra.0));
    }
    for extra in [&b"\0"[..], b"zz"] {
        let log = indexed(|at, _, key| *key = if at == 0 { Some(extra.to_vec()) } else { key.clone() });
        find(&log, None, "the transaction index should not have the key");
        rebuild(&log, &mut |_, _| {}).unwrap();
        assert_eq!(problems(&log), []);
    }
    let log = indexed(|at, _, key| *key = key.clone().filter(|_| at != change));
    find(&log, None, "the transaction index lacks the key");
}
