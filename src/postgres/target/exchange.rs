//! Rows that exchange values which a unique index guards: each wants what another one of the batch still has.
//!
//! A unique index that is not deferrable is checked row by row, so no order of the updates helps. The values are taken away from all
//! of these rows first, as far as the columns can be null, and then given anew. The stream shows the step in between, so a message
//! says whose it is, and capture leaves it out.

use std::collections::BTreeMap;

use tokio_postgres::error::SqlState;

use super::fault::Fault;
use super::plan::{Fate, groups};
use super::table::Table;
use super::transaction::{Attempt, MESSAGE_PREFIX, parameters};
use crate::change::{FieldId, Key, MappingId, Str, WriteKind};

/// Updates of one shape, and which of their values are taken away first.
struct Exchanged<'a> {
    table: &'a Table,
    /// Fields that are written.
    fields: Vec<FieldId>,
    /// Those of them that a unique index guards.
    guarded: Vec<FieldId>,
    members: Vec<usize>,
}

impl Attempt<'_> {
    /// Carries out the updates that were refused since another row has their value, all together; if that does not help either,
    /// they stay refused.
    pub(super) async fn exchange(&mut self) -> Result<(), Fault> {
        let refused: Vec<(usize, Fate)> =
            self.fates.iter().cloned().enumerate().filter(|(place, fate)| self.is_taken(*place, fate)).collect();
        if refused.len() < 2 {
            return Ok(());
        }
        for (place, _) in &refused {
            self.settle(*place, Fate::Open);
        }
        let exchanged: Vec<Exchanged<'_>> = groups(self.batch, &self.fates, self.tables)
            .into_iter()
            .filter_map(|group| {
                let table = self.tables.get(&group.mapping)?;
                let guarded = group.fields.iter().copied().filter(|field| table.is_vacated(*field)).collect();
                Some(Exchanged { table, fields: group.fields, guarded, members: group.members })
            })
            .filter(|exchanged| !exchanged.guarded.is_empty())
            .collect();
        let mut done = false;
        if !exchanged.is_empty() {
            done = match self.run_exchange(&exchanged).await {
                Ok(done) => done,
                Err(Fault::Row(_) | Fault::Locked(_)) => false,
                Err(fault) => return Err(fault),
            };
            if !done {
                self.backend.undo("giving up on rows that exchange values").await?;
            }
        }
        for (place, fate) in refused {
            let through = done && exchanged.iter().any(|exchanged| exchanged.members.contains(&place));
            self.settle(place, if through { Fate::Applied } else { fate });
        }
        Ok(())
    }

    fn is_taken(&self, place: usize, fate: &Fate) -> bool {
        let update = self.batch.get(place).is_some_and(|write| write.kind == WriteKind::Update);
        update && matches!(fate, Fate::Refused(refusal) if refusal.code == SqlState::UNIQUE_VIOLATION.code())
    }

    async fn run_exchange(&mut self, exchanged: &[Exchanged<'_>]) -> Result<bool, Fault> {
        let prefix = MESSAGE_PREFIX;
        let (aside, back) = (self.aside(exchanged), self.aside(&[]));
        let doing = "exchanging values of rows";
        let tell = self.backend.prepare(&self.options.marks.emit_parameters(), doing).await?;
        let ordinals: Vec<Vec<i32>> =
            exchanged.iter().map(|e| e.members.iter().map(|place| *place as i32).collect()).collect();
        let keys: Vec<_> = exchanged.iter().map(|e| self.key_texts(&e.members, e.table)).collect();
        let values: Vec<_> = exchanged
            .iter()
            .map(|e| {
                let mut texts = self.key_texts(&e.members, e.table);
                texts.extend(self.value_texts(&e.members, &e.fields, e.table));
                texts
            })
            .collect();
        let (mut taken, mut given) = (Vec::new(), Vec::new());
        for e in exchanged {
            taken.push(self.backend.prepare(&e.table.vacate(&e.guarded), doing).await?);
            given.push(self.backend.prepare(&e.table.update(&e.fields, &[]), doing).await?);
        }
        let mut calls = Vec::new();
        let mut expected = Vec::new();
        for (message, statements, texts) in [(&aside, &taken, &keys), (&back, &given, &values)] {
            calls.push((&tell, vec![&prefix as _, message as _], doing));
            expected.push(1);
            for ((statement, texts), ordinals) in statements.iter().zip(texts).zip(&ordinals) {
                calls.push((statement, parameters(ordinals, texts), doing));
                expected.push(ordinals.len() as u64);
            }
        }
        Ok(self.backend.execute_all(&calls).await? == expected)
    }

    /// The message that says of which rows the updates are steps in between, from here on.
    fn aside(&self, exchanged: &[Exchanged<'_>]) -> String {
        let mut rows: BTreeMap<MappingId, Vec<Str>> = BTreeMap::new();
        for place in exchanged.iter().flat_map(|e| &e.members) {
            let key = self.keys.get(*place).and_then(Option::as_ref);
            if let (Some(write), Some(key)) = (self.batch.get(*place), key) {
                let Key(key) = Key::from_parts(key.iter().map(Str::as_str));
                rows.entry(write.mapping).or_default().push(key);
            }
        }
        let rows: Vec<(u16, Vec<Str>)> = rows.into_iter().map(|(mapping, keys)| (mapping.0, keys)).collect();
        serde_json::json!({ "aside": { "link": self.options.link, "rows": rows } }).to_string()
    }
}
