//! A batch all at once, in the hope that every row is as the log believes.
//!
//! One round trip carries a savepoint and a statement for each group; those of updates and deletes compare and set in one. If each
//! touched as many rows as it has writes, the batch is done. If one did not, or failed, or would have to wait for a lock, nothing of
//! it is kept, and the batch is carried out with care, which finds out what became of each row (see [`super::transaction`]).
//!
//! The server compares only where what is equal to it is equal canonically ([`super::table::Field::is_compared`]); it may find more
//! to differ, which the careful way then looks at.

use super::backend::Backend;
use super::fault::Fault;
use super::plan::{Fate, Group, Tables, groups};
use super::table::{Field, Table};
use super::texts::Texts;
use super::transaction::{Attempt, parameters};
use crate::change::{FieldId, Key, Str, WriteKind};
use crate::error::Kind;
use crate::flow::Write;

/// After how many batches in a row that were in vain the next try follows, at most.
const PAUSE_MAX: u32 = 63;

/// Whether a batch is worth trying at once: after one that was in vain the next ones are carried out with care from the start,
/// and the longer the more often that happens.
#[derive(Debug, Default)]
pub(super) struct Hope {
    pause: u32,
    left: u32,
}

impl Hope {
    /// Whether to try with this batch.
    fn is_there(&mut self) -> bool {
        let there = self.left == 0;
        self.left = self.left.saturating_sub(1);
        there
    }

    /// Notes how a try ended.
    fn tried(&mut self, done: bool) {
        self.pause = if done { 0 } else { (self.pause * 2 + 1).min(PAUSE_MAX) };
        self.left = self.pause;
    }
}

/// One statement and what it is to touch.
struct Part<'a> {
    sql: String,
    doing: String,
    table: &'a Table,
    keyed: bool,
    /// Fields that are written.
    fields: Vec<FieldId>,
    /// Fields that are compared.
    compared: Vec<FieldId>,
    members: Vec<usize>,
}

impl Attempt<'_> {
    /// Answers whether the whole batch is done; if not, nothing was changed.
    pub(super) async fn at_once(&mut self, hope: &mut Hope) -> Result<bool, Fault> {
        if !hope.is_there() {
            return Ok(false);
        }
        let Some(parts) = parts(self.batch, &self.fates, self.tables) else { return Ok(false) };
        match run_parts(self.backend, self.batch, &parts).await {
            Ok(true) => {
                self.fates.fill(Fate::Applied);
                hope.tried(true);
                return Ok(true);
            }
            Ok(false) | Err(Fault::Row(_) | Fault::Locked(_)) => {}
            // A column of another type than it was has no such comparison; where it is anything else, the careful way meets it too.
            Err(Fault::Fatal(error)) if error.kind() == Kind::Configuration => {}
            Err(fault) => {
                // It may have been too much for one answer's time; statement by statement it may not be.
                hope.tried(false);
                return Err(fault);
            }
        }
        hope.tried(false);
        self.backend.undo("giving a batch up that was tried at once").await?;
        Ok(false)
    }
}

async fn run_parts(backend: &mut Backend, batch: &[Write], parts: &[Part<'_>]) -> Result<bool, Fault> {
    let columns: Vec<Vec<Texts>> = parts.iter().map(|part| part.columns(batch)).collect();
    let ordinals: Vec<Vec<i32>> =
        parts.iter().map(|part| part.members.iter().map(|place| *place as i32).collect()).collect();
    let mut statements = Vec::with_capacity(parts.len());
    for part in parts {
        statements.push(backend.prepare(&part.sql, &part.doing).await?);
    }
    let mut calls = Vec::with_capacity(parts.len());
    for ((part, statement), (ordinals, columns)) in parts.iter().zip(&statements).zip(ordinals.iter().zip(&columns)) {
        calls.push((statement, parameters(ordinals, columns), part.doing.as_str()));
    }
    let touched = backend.execute_all(&calls).await?;
    Ok(parts.iter().zip(touched).all(|(part, touched)| touched == part.members.len() as u64))
}

/// The statements for the whole batch; `None` where some of it needs care.
fn parts<'a>(batch: &[Write], fates: &[Fate], tables: &'a Tables) -> Option<Vec<Part<'a>>> {
    let mut parts = Vec::new();
    let mut members = 0;
    for group in groups(batch, fates, tables) {
        let table = tables.get(&group.mapping)?;
        members += group.members.len();
        match group.kind {
            WriteKind::Create if table.unguarded().is_empty() => parts.push(Part::create(group, table)),
            WriteKind::Create => return None,
            WriteKind::Update | WriteKind::Delete => changes(batch, group, table, &mut parts)?,
        }
    }
    (members == batch.len()).then_some(parts)
}

/// The statements for a group of updates or deletes: one for each set of fields that are compared.
fn changes<'a>(batch: &[Write], group: Group, table: &'a Table, parts: &mut Vec<Part<'a>>) -> Option<()> {
    let first = parts.len();
    for place in group.members {
        let write = batch.get(place).filter(|write| write.key.is_some())?;
        let compares =
            |part: &&mut Part<'_>| part.compared.iter().copied().eq(write.values.iter().map(|value| value.field));
        if let Some(part) = parts.get_mut(first..).and_then(|parts| parts.iter_mut().find(compares)) {
            part.members.push(place);
            continue;
        }
        let compared: Vec<FieldId> = write.values.iter().map(|value| value.field).collect();
        let is_compared = |id: &FieldId| table.fields.get(id).is_some_and(Field::is_compared);
        if !compared.iter().all(is_compared) || (group.kind == WriteKind::Update && group.fields.is_empty()) {
            return None;
        }
        let (sql, doing) = match group.kind {
            WriteKind::Delete => (table.delete(&compared), "deleting from"),
            _ => (table.update(&group.fields, &compared), "updating"),
        };
        let doing = format!("{doing} {}", table.label);
        let fields = group.fields.clone();
        parts.push(Part { sql, doing, table, keyed: true, fields, compared, members: vec![place] });
    }
    Some(())
}

impl<'a> Part<'a> {
    fn create(group: Group, table: &'a Table) -> Self {
        Self {
            sql: table.insert(group.with_key, &group.fields, false),
            doing: format!("inserting into {}", table.label),
            table,
            keyed: group.with_key,
            fields: group.fields,
            compared: Vec::new(),
            members: group.members,
        }
    }

    /// The parameters: key columns, what is written, what is expected.
    fn columns(&self, batch: &[Write]) -> Vec<Texts> {
        let mut columns = Vec::new();
        let writes = || self.members.iter().filter_map(|place| batch.get(*place));
        if self.keyed {
            let mut keys: Vec<Texts> = (0..self.table.key_width()).map(|_| Texts::default()).collect();
            for write in writes() {
                let parts = write.key.as_ref().map(Key::parts).unwrap_or_default();
                for (n, column) in keys.iter_mut().enumerate() {
                    column.push(parts.get(n).map(Str::as_str));
                }
            }
            columns.append(&mut keys);
        }
        for id in &self.fields {
            columns.push(self.table.column_of(*id, writes(), |value| &value.value));
        }
        for id in &self.compared {
            columns.push(self.table.column_of(*id, writes(), |value| &value.expected));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_comes_back_the_later_the_more_often_it_was_in_vain() {
        let mut hope = Hope::default();
        let mut tries = Vec::new();
        for n in 0..200 {
            if hope.is_there() {
                tries.push(n);
                hope.tried(false);
            }
        }
        assert_eq!(tries, [0, 2, 6, 14, 30, 62, 126, 190]);
        while !hope.is_there() {}
        hope.tried(true);
        assert!(hope.is_there());
    }
}
