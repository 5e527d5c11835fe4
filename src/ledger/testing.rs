//! A small catalog and small batches for tests of what stands on the ledger.

use crate::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, Key, Lsn, MappingDef, MappingId,
    Policy, Position, Side, Str, StreamId, Transaction, Value, Who,
};
use crate::flow::{Batch, Event, Item, Own, Row, RowOperation};

fn field(id: u16, name: &str) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: name.to_lowercase(),
        kind: FieldKind::Text { length: 80 },
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

/// One mapping, of contacts, with the external id as field 0 and then these fields.
pub(crate) fn catalog(fields: &[&str]) -> Catalog {
    let names = std::iter::once(&"Ext__c").chain(fields);
    let fields: Vec<FieldDef> = names.enumerate().map(|(n, name)| field(n as u16, name)).collect();
    let mapping = MappingDef {
        id: MappingId(0),
        name: "contact".into(),
        sobject: "Contact".into(),
        schema: "salesforce".into(),
        table: "contact".into(),
        key_columns: vec!["id".into()],
        next_field: FieldId(fields.len() as u16),
        fields,
        external_id: Some(FieldId(0)),
        owner: None,
        delete: DeletePolicy::DeleteWins,
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: 0,
    };
    Catalog { mappings: vec![mapping], next_mapping: MappingId(1), ..Catalog::default() }
}

/// The Salesforce id of the n-th record.
pub(crate) fn salesforce_id(n: u64) -> Str {
    smol_str::format_smolstr!("003{n:015}")
}

/// What a side tells of the n-th record, at place `at` of its stream: PostgreSQL's is stream 0, Salesforce's stream 1.
pub(crate) fn row(side: Side, at: u64, n: u64, operation: RowOperation, fields: &[(u16, &str)]) -> Batch {
    let row = Row {
        mapping: MappingId(0),
        operation,
        key: (side == Side::Postgres).then(|| Key::from_parts([n.to_string().as_str()])),
        old_key: None,
        salesforce_id: (side == Side::Salesforce).then(|| salesforce_id(n)),
        fields: fields.iter().map(|(f, v)| (FieldId(*f), Value::text(v))).collect(),
        own: Own::No,
    };
    batch(side, at, Item::Row(row))
}

/// One event at a place of a side's stream.
pub(crate) fn batch(side: Side, at: u64, item: Item) -> Batch {
    let position = match side {
        Side::Postgres => Position::Postgres { stream: StreamId(0), commit_lsn: Lsn(at), index: 0 },
        Side::Salesforce => {
            Position::Salesforce { stream: StreamId(1), replay_id: smol_str::format_smolstr!("{at:x}"), index: 0 }
        }
    };
    let transaction = Transaction { id: smol_str::format_smolstr!("{side}{at}"), index: 0, last: true };
    Batch { side, events: vec![Event { position, transaction, committed_at: at as i64, who: Who::default(), item }] }
}
