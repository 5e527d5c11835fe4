//! In which order and in which groups a batch is carried out. Pure.
//!
//! A group is one statement: one mapping, one kind, one set of columns. Creates and updates keep the order in which the
//! batch first names their mappings (parents before children), a mapping's creates before its updates; deletes come last,
//! in the reverse order (children before parents).

use std::collections::BTreeMap;

use super::table::{Locator, Table};
use crate::change::{FieldId, MappingId, WriteKind};
use crate::flow::Write;

/// How a write of the batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Not tried yet, or to be tried again.
    Open,
    /// Done in this transaction.
    Applied,
    /// What the log believes about the row does not hold; nothing was written.
    Skipped,
    /// Somebody holds its row locked, or another one that it depends on; nothing was written.
    Locked,
    /// The server does not accept it; nothing was written.
    Refused(super::fault::Refusal),
}

/// The tables of the mappings that have been looked at.
pub(super) type Tables = BTreeMap<MappingId, Table>;

/// Writes that one statement carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) mapping: MappingId,
    pub(super) kind: WriteKind,
    /// Creates: whether the primary key is given.
    pub(super) with_key: bool,
    /// The fields that are written, by ascending id; none for a delete.
    pub(super) fields: Vec<FieldId>,
    /// Places in the batch.
    pub(super) members: Vec<usize>,
}

/// Writes whose rows one statement looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) mapping: MappingId,
    pub(super) locator: Locator,
    /// The fields that any of them compares, by ascending id.
    pub(super) fields: Vec<FieldId>,
    /// Places in the batch.
    pub(super) members: Vec<usize>,
}

/// The field by whose value a write without a key finds its row, and the value's place.
pub(super) fn locator(write: &Write, table: &Table) -> Option<Locator> {
    if write.key.is_some() {
        return Some(Locator::Key);
    }
    match (table.id, table.external) {
        (Some(id), _) if write.salesforce_id.is_some() => Some(Locator::Field(id)),
        (_, Some(external)) if write.external_id.is_some() => Some(Locator::Field(external)),
        _ => None,
    }
}

/// The searches for all updates and deletes, in the batch's order. The second list holds the places of writes that name
/// no row.
pub(super) fn searches(batch: &[Write], tables: &Tables) -> (Vec<Search>, Vec<usize>) {
    let mut found: Vec<Search> = Vec::new();
    let mut nameless = Vec::new();
    for (place, write) in batch.iter().enumerate() {
        let Some(table) = tables.get(&write.mapping) else { continue };
        if write.kind == WriteKind::Create {
            continue;
        }
        let Some(locator) = locator(write, table) else {
            nameless.push(place);
            continue;
        };
        let place_of = found.iter().position(|s| s.mapping == write.mapping && s.locator == locator);
        let search = match place_of.and_then(|n| found.get_mut(n)) {
            Some(search) => search,
            None => found.push_mut(Search { mapping: write.mapping, locator, fields: Vec::new(), members: Vec::new() }),
        };
        search.fields.extend(write.values.iter().map(|value| value.field).filter(|f| table.fields.contains_key(f)));
        search.members.push(place);
    }
    for search in &mut found {
        search.fields.sort_unstable();
        search.fields.dedup();
    }
    (found, nameless)
}

/// The groups of all open writes, in the order of their execution.
pub(super) fn groups(batch: &[Write], fates: &[Fate], tables: &Tables) -> Vec<Group> {
    let open = |kinds: &'static [WriteKind]| {
        batch.iter().zip(fates).enumerate().filter_map(move |(place, (write, fate))| {
            (*fate == Fate::Open && kinds.contains(&write.kind)).then_some((place, write))
        })
    };
    let mut order: Vec<MappingId> = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    for (place, write) in open(&[WriteKind::Create, WriteKind::Update]) {
        if !order.contains(&write.mapping) {
            order.push(write.mapping);
        }
        add(&mut groups, place, write, tables);
    }
    let rank = |group: &Group| {
        let mapping = order.iter().position(|mapping| *mapping == group.mapping);
        (mapping, group.kind != WriteKind::Create)
    };
    groups.sort_by_key(rank);
    let mut deletes: Vec<Group> = Vec::new();
    for (place, write) in open(&[WriteKind::Delete]).collect::<Vec<_>>().into_iter().rev() {
        add(&mut deletes, place, write, tables);
    }
    groups.append(&mut deletes);
    groups
}

fn add(groups: &mut Vec<Group>, place: usize, write: &Write, tables: &Tables) {
    let Some(table) = tables.get(&write.mapping) else { return };
    let fields: Vec<FieldId> = match write.kind {
        WriteKind::Delete => Vec::new(),
        WriteKind::Create | WriteKind::Update => write
            .values
            .iter()
            .map(|value| value.field)
            .filter(|id| {
                table.fields.get(id).is_some_and(|field| !field.column.generated && !table.given_by_key(*id, write))
            })
            .collect(),
    };
    let with_key = write.kind == WriteKind::Create && write.key.is_some();
    let same = |group: &&mut Group| {
        group.mapping == write.mapping
            && group.kind == write.kind
            && group.with_key == with_key
            && group.fields == fields
    };
    match groups.iter_mut().find(same) {
        Some(group) => group.members.push(place),
        None => {
            groups.push(Group { mapping: write.mapping, kind: write.kind, with_key, fields, members: vec![place] });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{
        DeletePolicy, FieldDef, FieldKind, ForeignEdit, InitialMerge, Key, MappingDef, Offset, Policy, RecordId, Str,
        Value,
    };
    use crate::flow::WriteValue;
    use crate::postgres::introspect::{ColumnDetail, TableDetail};

    const NAMES: [&str; 3] = ["id", "sfid", "name"];

    fn table(mapping: MappingId) -> Table {
        let fields = NAMES.iter().enumerate().map(|(n, name)| FieldDef {
            id: FieldId(n as u16),
            name: (*name).into(),
            column: (*name).into(),
            kind: if *name == "sfid" { FieldKind::Id } else { FieldKind::Picklist },
            policy: Policy::SalesforceWins,
            owner: None,
            foreign_edit: ForeignEdit::Revert,
            createable: true,
            updateable: true,
        });
        let columns = NAMES.iter().map(|name| ColumnDetail {
            name: (*name).into(),
            type_oid: 1043,
            type_name: "character varying".into(),
            cast: "character varying".into(),
            category: 'S',
            length: None,
            nullable: true,
            generated: false,
            defaulted: false,
            domain: false,
            labels: Vec::new(),
        });
        let detail = TableDetail {
            oid: 1,
            relkind: 'r',
            schema: "s".into(),
            table: "t\"able".into(),
            owner: "o".into(),
            replica_identity: 'd',
            logged: true,
            row_security: false,
            has_rules: false,
            followed: Vec::new(),
            columns: columns.collect(),
            unique: Vec::new(),
            triggers: Vec::new(),
            indexed: Vec::new(),
        };
        let mapping = MappingDef {
            id: mapping,
            name: "m".into(),
            sobject: "M".into(),
            schema: "s".into(),
            table: "t\"able".into(),
            key_columns: vec!["id".into()],
            fields: fields.collect(),
            next_field: FieldId(9),
            owner: None,
            external_id: None,
            delete: DeletePolicy::UpdateWins,
            truncate: crate::change::TruncatePolicy::default(),
            initial_merge: InitialMerge::Salesforce,
            rank: 0,
        };
        Table::new(&mapping, &detail).unwrap()
    }

    fn tables() -> Tables {
        [0, 1].into_iter().map(|n| (MappingId(n), table(MappingId(n)))).collect()
    }

    fn write(mapping: u16, kind: WriteKind, key: Option<&str>, fields: &[u16]) -> Write {
        Write {
            ticket: Offset(0),
            mapping: MappingId(mapping),
            record: RecordId(0),
            kind,
            key: key.map(|key| Key(Str::from(key))),
            salesforce_id: None,
            external_id: None,
            values: fields
                .iter()
                .map(|field| WriteValue { field: FieldId(*field), expected: Value::Null, value: Value::Null })
                .collect(),
        }
    }

    #[test]
    fn parents_come_first_and_go_last() {
        use WriteKind::{Create, Delete, Update};
        let batch = [
            write(0, Delete, Some("1"), &[1, 2]),
            write(0, Update, Some("2"), &[2]),
            write(0, Create, None, &[1, 2]),
            write(0, Create, Some("3"), &[0, 1, 2]),
            write(1, Update, Some("4"), &[2]),
            write(0, Update, Some("5"), &[1, 2]),
            write(0, Update, Some("6"), &[2]),
            write(1, Delete, Some("7"), &[1, 2]),
        ];
        let fates = vec![Fate::Open; batch.len()];
        let found: Vec<(u16, WriteKind, Vec<usize>)> =
            groups(&batch, &fates, &tables()).into_iter().map(|g| (g.mapping.0, g.kind, g.members)).collect();
        assert_eq!(
            found,
            vec![
                (0, Create, vec![2]),
                (0, Create, vec![3]),
                (0, Update, vec![1, 6]),
                (0, Update, vec![5]),
                (1, Update, vec![4]),
                (1, Delete, vec![7]),
                (0, Delete, vec![0]),
            ]
        );
        let (searches, nameless) = searches(&batch, &tables());
        let looked: Vec<(u16, usize, usize)> =
            searches.iter().map(|s| (s.mapping.0, s.fields.len(), s.members.len())).collect();
        assert_eq!((looked, nameless), (vec![(0, 2, 4), (1, 2, 2)], vec![]));
    }

    #[test]
    fn a_key_that_is_given_is_not_given_twice() {
        let batch = [write(0, WriteKind::Create, Some("3"), &[0, 1, 2])];
        let tables = tables();
        let group = groups(&batch, &[Fate::Open], &tables).remove(0);
        assert_eq!((group.with_key, &group.fields), (true, &vec![FieldId(1), FieldId(2)]));
        let sql = tables[&MappingId(0)].insert(true, &group.fields, true);
        assert_eq!(
            sql,
            "INSERT INTO \"s\".\"t\"\"able\" (\"id\", \"sfid\", \"name\") OVERRIDING SYSTEM VALUE \
             SELECT w.k0::character varying, w.v0::character varying, w.v1::character varying \
             FROM unnest($1::pg_catalog.int4[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[]) \
             AS w (n, k0, v0, v1) ON CONFLICT DO NOTHING"
        );
    }
}
