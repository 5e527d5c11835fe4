//! One attempt at a batch: one transaction.
//!
//! 1. Open: mark the transaction as ours, check that the cursor is where we left it (nobody else writes for this link).
//! 2. Try the whole batch at once (see [`super::at_once`]). If that is in vain:
//! 3. Look at every row that is to be updated or deleted, lock it, and compare it with what the log believes. Nobody's lock is
//!    waited for.
//! 4. Carry out the groups. Each runs under a savepoint; one that fails on its data, or on a user's lock, is halved until the rows
//!    at fault stand alone, and the rest goes through.
//! 5. Close: deferred constraints, the cursor, the closing message with what was applied and what was skipped; commit.

use std::borrow::Cow;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::TargetOptions;
use super::at_once::Hope;
use super::backend::{Backend, ticket};
use super::fault::{Fault, Refusal};
use super::plan::{Fate, Group, Search, Tables, groups, searches};
use super::table::{Field, Locator, Table};
use super::texts::Texts;
use crate::change::{FieldId, Key, Lsn, Offset, Str, Value, WriteKind};
use crate::error::{Error, Kind};
use crate::flow::Write;
use crate::mapping::{from_postgres, normalise};
use crate::postgres::marks::Marks;

/// The prefix of our own logical messages.
pub(super) const MESSAGE_PREFIX: &str = "tidelock";

/// SQLSTATE of a write that names no row, or more than one.
const AMBIGUOUS: &str = "21000";
/// SQLSTATE of a write that a trigger suppressed, or that has nothing to find its row by.
const NO_DATA: &str = "02000";
/// SQLSTATE of a write to a column that the server computes.
const GENERATED: &str = "428C9";

/// So many writes of a group are found out to be in the way of a lock one by one; then those that are with others in a statement
/// that is, are put off with them: it may be the table that is locked.
const LOCKED_MAX: usize = 10;

/// Texts of a row's primary key, in key order.
type KeyText = Vec<Str>;

/// A transaction under way.
pub(super) struct Attempt<'a> {
    pub(super) backend: &'a mut Backend,
    pub(super) options: &'a TargetOptions,
    pub(super) tables: &'a Tables,
    pub(super) batch: &'a [Write],
    /// Whether deferrable constraints are checked by each statement, so that a violation is found at its row.
    immediate: bool,
    pub(super) fates: Vec<Fate>,
    pub(super) keys: Vec<Option<KeyText>>,
}

/// By what rows are looked for.
#[derive(Debug, Clone, Copy)]
enum Sought {
    /// The row that an update or delete is for.
    Located(Locator),
    /// The row that a create would make.
    Own { with_key: bool },
}

/// What a group's statement did with part of its writes.
enum Ran {
    /// As many rows as writes.
    Whole,
    /// Fewer rows than writes, or more: not kept.
    Uneven,
    /// Not acceptable; not kept.
    Refused(Refusal),
    /// In the way of a user's lock; not kept.
    Locked,
}

impl<'a> Attempt<'a> {
    /// An attempt that has not begun.
    pub(super) fn new(
        backend: &'a mut Backend,
        options: &'a TargetOptions,
        tables: &'a Tables,
        batch: &'a [Write],
        immediate: bool,
    ) -> Self {
        Self { backend, options, tables, batch, immediate, fates: vec![Fate::Open; batch.len()], keys: Vec::new() }
    }

    /// Carries the batch out and commits. The answer has one fate per write, none of them open.
    pub(super) async fn run(mut self, hope: &mut Hope) -> Result<Vec<Fate>, Fault> {
        self.open().await?;
        if self.immediate || !self.at_once(hope).await? {
            self.keys = self.batch.iter().map(|write| write.key.as_ref().map(Key::parts)).collect();
            self.compare_all().await?;
            self.skip_existing().await?;
            self.carry_out().await?;
            self.exchange().await?;
            self.put_off_waiting();
        }
        self.close().await?;
        Ok(self.fates)
    }

    async fn open(&mut self) -> Result<(), Fault> {
        let doing = "opening a transaction";
        let tickets = || self.batch.iter().map(|write| write.ticket.0);
        let tickets = tickets().min().zip(tickets().max());
        let message = serde_json::json!({ "open": { "link": self.options.link, "tickets": tickets } }).to_string();
        let mut statements = begin(&self.options.marks, &message);
        if self.immediate {
            statements.push_str("SET CONSTRAINTS ALL IMMEDIATE; ");
        }
        statements.push_str("SELECT ticket FROM tidelock.replay WHERE ");
        statements.push_str(&self.cursor_row());
        statements.push_str(" FOR UPDATE");
        self.backend.begun();
        let cursor = ticket(&self.backend.simple(&statements, doing).await?)?;
        if cursor != self.backend.cursor {
            let message = format!(
                "another Tidelock has written to this database for link {:?} since this one read the cursor; only one \
                 may run",
                self.options.link
            );
            return Err(Fault::Fatal(Error::new(Kind::Unavailable, message)));
        }
        Ok(())
    }

    fn cursor_row(&self) -> String {
        format!("link = {} AND log = {}", escape_literal(&self.options.link), escape_literal(&self.options.log))
    }

    async fn compare_all(&mut self) -> Result<(), Fault> {
        let (searches, nameless) = searches(self.batch, self.tables);
        for place in nameless {
            let refusal = Refusal::new(NO_DATA, "the write names no row: neither primary key nor a mapped id is known");
            self.settle(place, Fate::Refused(refusal));
        }
        for search in searches {
            self.compare(&search).await?;
        }
        Ok(())
    }

    /// Locks the rows of a search and compares them. A row that is missing or differs is skipped, one that somebody else holds
    /// locked is put off.
    async fn compare(&mut self, search: &Search) -> Result<(), Fault> {
        let Some(table) = self.tables.get(&search.mapping) else { return Ok(()) };
        let doing = format!("comparing rows of {}", table.label);
        let sought = Sought::Located(search.locator);
        let rows =
            self.query(&table.select(search.locator, &search.fields), table, &search.members, sought, &doing).await?;
        let mut found = vec![0u32; self.batch.len()];
        let mut equal = vec![false; self.batch.len()];
        for row in &rows {
            let place = cell::<i32>(row, 0, &doing)? as usize;
            let (Some(count), Some(write)) = (found.get_mut(place), self.batch.get(place)) else { continue };
            *count += 1;
            let key = (0..table.key_width())
                .map(|n| cell::<Option<&str>>(row, n + 1, &doing).map(|text| Str::new(text.unwrap_or_default())))
                .collect::<Result<KeyText, Fault>>()?;
            let same = holds_expected(write, &search.fields, table, row, &doing)?;
            if let (Some(known), Some(verdict)) = (self.keys.get_mut(place), equal.get_mut(place)) {
                *known = Some(key);
                *verdict = same;
            }
        }
        // Rows that were not found may be locked, and a row may have a double that is.
        let unsure = |place: &&usize| found.get(**place) == Some(&0) || !table.names_one(search.locator);
        let unsure: Vec<usize> = search.members.iter().filter(unsure).copied().collect();
        let mut there = found.clone();
        if !unsure.is_empty() {
            unsure.iter().filter_map(|place| there.get_mut(*place).map(|count| *count = 0)).for_each(drop);
            for row in &self.query(&table.count(search.locator), table, &unsure, sought, &doing).await? {
                if let Some(count) = there.get_mut(cell::<i32>(row, 0, &doing)? as usize) {
                    *count += 1;
                }
            }
        }
        let open: Vec<usize> = search.members.iter().copied().filter(|place| self.is_open(*place)).collect();
        for place in open {
            let found = found.get(place).copied().unwrap_or_default();
            match (there.get(place).copied().unwrap_or_default().max(found), found, equal.get(place)) {
                (1, 1, Some(true)) => {}
                (count, ..) if count > 1 => {
                    let message = format!("{count} rows of {} have the id that names this record", table.label);
                    self.settle(place, Fate::Refused(Refusal::new(AMBIGUOUS, message)));
                }
                (1, 0, _) => self.settle(place, Fate::Locked),
                _ => self.settle(place, Fate::Skipped),
            }
        }
        Ok(())
    }

    /// Runs a query over these members under a savepoint, and over halves of them where it fails on its data: a row at fault is
    /// refused alone.
    async fn query(
        &mut self,
        sql: &str,
        table: &Table,
        members: &[usize],
        sought: Sought,
        doing: &str,
    ) -> Result<Vec<Row>, Fault> {
        let mut parts: Vec<Vec<usize>> = vec![members.to_vec()];
        let mut rows = Vec::new();
        while let Some(part) = parts.pop() {
            let texts = self.sought(&part, sought, table);
            let ordinals: Vec<i32> = part.iter().map(|place| *place as i32).collect();
            let ran = match self.backend.prepare(sql, doing).await {
                Ok(statement) => self.backend.query_guarded(&statement, &parameters(&ordinals, &texts), doing).await,
                Err(fault) => Err(fault),
            };
            match ran {
                Ok(found) if rows.is_empty() => rows = found,
                Ok(found) => rows.extend(found),
                Err(Fault::Row(refusal)) => {
                    self.backend.undo(doing).await?;
                    match part.as_slice() {
                        [place] => self.settle(*place, Fate::Refused(refusal)),
                        many => halve(many, &mut parts),
                    }
                }
                // Nobody's row is waited for here: it is the table that is locked.
                Err(Fault::Locked(_)) => {
                    self.backend.undo_wait(doing).await?;
                    for place in &part {
                        self.settle(*place, Fate::Locked);
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(rows)
    }

    /// The texts by which rows are looked for: one array for each column.
    fn sought(&self, members: &[usize], sought: Sought, table: &Table) -> Vec<Texts> {
        match sought {
            Sought::Located(Locator::Key) => self.key_texts(members, table),
            Sought::Located(Locator::Field(field)) => vec![self.naming_texts(members, field, table)],
            Sought::Own { with_key } => {
                let mut texts = if with_key { self.key_texts(members, table) } else { Vec::new() };
                texts.extend(table.naming().into_iter().map(|field| self.naming_texts(members, field, table)));
                texts
            }
        }
    }

    /// The texts of a naming field of these writes: the Salesforce id or the external id.
    fn naming_texts(&self, members: &[usize], field: FieldId, table: &Table) -> Texts {
        let mut texts = Texts::default();
        for place in members {
            texts.push(self.naming(*place, field, table).as_deref());
        }
        texts
    }

    fn naming(&self, place: usize, field: FieldId, table: &Table) -> Option<Cow<'_, str>> {
        let write = self.batch.get(place)?;
        let told = if Some(field) == table.id { &write.salesforce_id } else { &write.external_id };
        let value = write.values.iter().find(|value| value.field == field).map(|value| &value.value);
        match (value, write.kind) {
            (Some(value), WriteKind::Create) if !value.is_null() => table.fields.get(&field)?.print(value),
            _ => told.as_deref().map(Cow::Borrowed),
        }
    }

    /// Skips creates whose row is there already, where no unique index would find out.
    async fn skip_existing(&mut self) -> Result<(), Fault> {
        for group in groups(self.batch, &self.fates, self.tables) {
            let Some(table) = self.tables.get(&group.mapping) else { continue };
            if group.kind == WriteKind::Create && !table.unguarded().is_empty() {
                self.look_up(table, &group.members, false).await?;
            }
        }
        Ok(())
    }

    /// Skips those creates among `members` whose own row exists already.
    async fn look_up(&mut self, table: &Table, members: &[usize], with_key: bool) -> Result<(), Fault> {
        let doing = format!("looking for rows of {} that exist already", table.label);
        let rows = self.query(&table.lookup(with_key), table, members, Sought::Own { with_key }, &doing).await?;
        for row in &rows {
            let place = cell::<i32>(row, 0, &doing)? as usize;
            self.settle(place, Fate::Skipped);
        }
        Ok(())
    }

    /// Carries out all groups; then, as long as that helps, once more those writes that another one may have mended.
    async fn carry_out(&mut self) -> Result<(), Fault> {
        let mut mendable = usize::MAX;
        loop {
            for group in groups(self.batch, &self.fates, self.tables) {
                self.carry_out_group(&group).await?;
            }
            let waiting: Vec<usize> = self.waiting().collect();
            if waiting.is_empty() || waiting.len() >= mendable {
                return Ok(());
            }
            mendable = waiting.len();
            if !self.fates.contains(&Fate::Applied) {
                return Ok(());
            }
            for place in waiting {
                self.settle(place, Fate::Open);
            }
        }
    }

    /// What may have mended a refused write may be among those that are put off: it is put off too.
    fn put_off_waiting(&mut self) {
        if self.fates.contains(&Fate::Locked) {
            let waiting: Vec<usize> = self.waiting().collect();
            for place in waiting {
                self.settle(place, Fate::Locked);
            }
        }
    }

    /// Refused writes that another write of the batch may have mended.
    fn waiting(&self) -> impl Iterator<Item = usize> {
        self.fates
            .iter()
            .enumerate()
            .filter(|(_, fate)| matches!(fate, Fate::Refused(refusal) if refusal.may_mend()))
            .map(|(place, _)| place)
    }

    async fn carry_out_group(&mut self, group: &Group) -> Result<(), Fault> {
        let Some(table) = self.tables.get(&group.mapping) else { return Ok(()) };
        if group.kind == WriteKind::Update && group.fields.is_empty() {
            for place in &group.members {
                let refusal = Refusal::new(GENERATED, "the server computes these columns; they cannot be written");
                self.settle(*place, Fate::Refused(refusal));
            }
            return Ok(());
        }
        let mut parts: Vec<Vec<usize>> = vec![group.members.clone()];
        let mut looked_up = false;
        let mut locked = 0;
        while let Some(members) = parts.pop() {
            match self.execute(group, table, &members, true).await? {
                Ran::Whole => members.iter().for_each(|place| self.settle(*place, Fate::Applied)),
                Ran::Uneven if group.kind == WriteKind::Create && !looked_up => {
                    looked_up = true;
                    self.look_up(table, &members, group.with_key).await?;
                    let rest: Vec<usize> = members.into_iter().filter(|place| self.is_open(*place)).collect();
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                }
                Ran::Uneven => match members.as_slice() {
                    [place] => self.settle_uneven(group, table, *place).await?,
                    many => halve(many, &mut parts),
                },
                Ran::Refused(refusal) => match members.as_slice() {
                    [place] => self.settle_refused(group, table, *place, refusal).await?,
                    many => halve(many, &mut parts),
                },
                Ran::Locked if members.len() > 1 && locked < LOCKED_MAX => halve(&members, &mut parts),
                Ran::Locked => {
                    locked += members.len();
                    for place in &members {
                        self.settle(*place, Fate::Locked);
                    }
                }
            }
        }
        Ok(())
    }

    /// One statement under a savepoint, which is kept only if it touched as many rows as there are writes.
    async fn execute(&mut self, group: &Group, table: &Table, members: &[usize], yielding: bool) -> Result<Ran, Fault> {
        let (sql, doing) = match group.kind {
            WriteKind::Create => (table.insert(group.with_key, &group.fields, yielding), "inserting into"),
            WriteKind::Update => (table.update(&group.fields, &[]), "updating"),
            WriteKind::Delete => (table.delete(&[]), "deleting from"),
        };
        let doing = format!("{doing} {}", table.label);
        let keyed = group.kind != WriteKind::Create || group.with_key;
        let mut texts = if keyed { self.key_texts(members, table) } else { Vec::new() };
        texts.extend(self.value_texts(members, &group.fields, table));
        let ordinals: Vec<i32> = members.iter().map(|place| *place as i32).collect();
        let touched = match self.backend.prepare(&sql, &doing).await {
            Ok(statement) => self.backend.execute_guarded(&statement, &parameters(&ordinals, &texts), &doing).await,
            Err(fault) => Err(fault),
        };
        let ran = match touched {
            Ok(touched) if touched == members.len() as u64 => Ran::Whole,
            Ok(_) => Ran::Uneven,
            Err(Fault::Row(refusal)) => Ran::Refused(refusal),
            Err(Fault::Locked(_)) => Ran::Locked,
            Err(fault) => return Err(fault),
        };
        match ran {
            Ran::Whole => {}
            Ran::Locked => self.backend.undo_wait(&doing).await?,
            Ran::Uneven | Ran::Refused(_) => self.backend.undo(&doing).await?,
        }
        Ok(ran)
    }

    /// What these writes write to these fields.
    pub(super) fn value_texts(&self, members: &[usize], fields: &[FieldId], table: &Table) -> Vec<Texts> {
        let writes = || members.iter().filter_map(|place| self.batch.get(*place));
        fields.iter().map(|field| table.column_of(*field, writes(), |value| &value.value)).collect()
    }

    pub(super) fn key_texts(&self, members: &[usize], table: &Table) -> Vec<Texts> {
        let column = |n: usize| {
            let mut texts = Texts::default();
            for place in members {
                let key = self.keys.get(*place).and_then(Option::as_ref);
                texts.push(key.and_then(|parts| parts.get(n)).map(Str::as_str));
            }
            texts
        };
        (0..table.key_width()).map(column).collect()
    }

    /// A single write that touched no row, without an error.
    async fn settle_uneven(&mut self, group: &Group, table: &Table, place: usize) -> Result<(), Fault> {
        let refusal = if group.kind == WriteKind::Create {
            // Asked to yield, it yielded to some row: without that, the server names the index.
            match self.execute(group, table, &[place], false).await? {
                Ran::Whole => {
                    self.settle(place, Fate::Applied);
                    return Ok(());
                }
                Ran::Refused(refusal) => return self.settle_refused(group, table, place, refusal).await,
                Ran::Locked => {
                    self.settle(place, Fate::Locked);
                    return Ok(());
                }
                Ran::Uneven => suppressed(table),
            }
        } else {
            suppressed(table)
        };
        self.settle(place, Fate::Refused(refusal));
        Ok(())
    }

    /// A single write that the server refuses; a create that meets its own row is skipped instead.
    async fn settle_refused(
        &mut self,
        group: &Group,
        table: &Table,
        place: usize,
        refusal: Refusal,
    ) -> Result<(), Fault> {
        if group.kind == WriteKind::Create && refusal.may_mend() {
            self.look_up(table, &[place], group.with_key).await?;
        }
        if self.is_open(place) {
            self.settle(place, Fate::Refused(refusal));
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Fault> {
        let doing = "committing";
        if let Some(write) = self.batch.iter().zip(&self.fates).find(|(_, fate)| **fate == Fate::Open).map(|(w, _)| w) {
            let message = format!("ticket {} was neither applied, skipped nor refused; this is a bug", write.ticket);
            return Err(Fault::Fatal(Error::new(Kind::Internal, message)));
        }
        let highest = self.batch.iter().map(|write| write.ticket).max().max(self.backend.cursor);
        let tickets = |fate: fn(&Fate) -> bool| -> Vec<u64> {
            self.batch.iter().zip(&self.fates).filter(|(_, f)| fate(f)).map(|(write, _)| write.ticket.0).collect()
        };
        let refusals = self.batch.iter().zip(&self.fates).filter_map(|(write, fate)| match fate {
            Fate::Refused(refusal) => Some((write.ticket.0, &refusal.code, &refusal.message)),
            _ => None,
        });
        let refused: Vec<_> = refusals.collect();
        let message = serde_json::json!({ "close": {
            "link": self.options.link,
            "applied": tickets(|fate| *fate == Fate::Applied),
            "skipped": tickets(|fate| *fate == Fate::Skipped),
            "refused": refused,
        } });
        let mut statements = Vec::new();
        if !self.immediate {
            statements.push("SET CONSTRAINTS ALL IMMEDIATE".to_owned());
        }
        if let Some(Offset(ticket)) = highest {
            statements.push(format!("UPDATE tidelock.replay SET ticket = {ticket} WHERE {}", self.cursor_row()));
            if self.backend.has_origin {
                // Without a time of its own the transaction would have that of the session's first.
                let at = Lsn(ticket);
                statements.push(format!(
                    "SELECT pg_catalog.pg_replication_origin_xact_setup('{at}', pg_catalog.clock_timestamp())"
                ));
            }
        }
        statements.push(end(&self.options.marks, &message.to_string()));
        self.backend.simple(&statements.join("; "), doing).await?;
        self.backend.cursor = highest;
        self.backend.in_transaction = false;
        Ok(())
    }

    fn is_open(&self, place: usize) -> bool {
        self.fates.get(place) == Some(&Fate::Open)
    }

    pub(super) fn settle(&mut self, place: usize, fate: Fate) {
        if let Some(slot) = self.fates.get_mut(place) {
            *slot = fate;
        }
    }
}

/// Statements that begin a transaction of ours.
pub(super) fn begin(marks: &Marks, message: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL xmlbinary = 'hex'; \
         SET LOCAL tidelock.replay = 'on'; {}; ",
        marks.emit(MESSAGE_PREFIX, message)
    )
}

/// Statements that end a transaction of ours.
pub(super) fn end(marks: &Marks, message: &str) -> String {
    format!("{}; COMMIT", marks.emit(MESSAGE_PREFIX, message))
}

/// Whether the row holds what the log believes, in every field that the write names.
fn holds_expected(write: &Write, fields: &[FieldId], table: &Table, row: &Row, doing: &str) -> Result<bool, Fault> {
    for value in &write.values {
        let (Some(field), Ok(n)) = (table.fields.get(&value.field), fields.binary_search(&value.field)) else {
            continue;
        };
        let text = cell::<Option<&str>>(row, 1 + table.key_width() + n, doing)?;
        if canonical(field, text) != value.expected {
            return Ok(false);
        }
    }
    Ok(true)
}

fn canonical(field: &Field, text: Option<&str>) -> Value {
    match text {
        Some(text) => from_postgres(&field.kind, field.column.type_oid, text),
        None => normalise(&field.kind, Value::Null),
    }
}

fn suppressed(table: &Table) -> Refusal {
    Refusal::new(NO_DATA, format!("a trigger or rule of {} suppressed the write", table.label))
}

fn halve(members: &[usize], parts: &mut Vec<Vec<usize>>) {
    let (first, second) = members.split_at(members.len() / 2);
    parts.push(second.to_vec());
    parts.push(first.to_vec());
}

/// The parameters of a statement over a batch.
pub(super) fn parameters<'a>(ordinals: &'a Vec<i32>, texts: &'a [Texts]) -> Vec<&'a (dyn ToSql + Sync)> {
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![ordinals];
    parameters.extend(texts.iter().map(|column| column as &(dyn ToSql + Sync)));
    parameters
}

fn cell<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, index: usize, doing: &str) -> Result<T, Fault> {
    row.try_get(index).map_err(|error| Fault::of(error, doing))
}
