//! The table that is captured and written: contacts, of which every column but the primary key is mapped.

use tidelock::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, MappingDef, MappingId, Policy,
    Side, TruncatePolicy,
};

pub(crate) const SCHEMA: &str = "public";
pub(crate) const TABLE: &str = "contact";

/// One mapping, which may be a side's own.
pub(crate) fn catalog(owner: Option<Side>) -> Catalog {
    let text = |length| FieldKind::Text { length };
    let fields = [
        ("Id", "sfid", FieldKind::Id),
        ("FirstName", "firstname", text(40)),
        ("LastName", "lastname", text(80)),
        ("Email", "email", text(80)),
        ("Phone", "phone", text(40)),
        ("AccountId", "accountid", FieldKind::Reference { to: vec!["Account".into()] }),
        ("Amount", "amount", FieldKind::Number { scale: 2 }),
        ("SystemModstamp", "systemmodstamp", FieldKind::DateTime),
        ("Description", "description", text(32_000)),
    ];
    let field = |(n, (name, column, kind)): (usize, (&str, &str, FieldKind))| FieldDef {
        id: FieldId(n as u16),
        name: name.into(),
        column: column.into(),
        kind,
        policy: Policy::LastWriteWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    };
    let next_field = FieldId(fields.len() as u16);
    let mapping = MappingDef {
        id: MappingId(0),
        name: TABLE.into(),
        sobject: "Contact".into(),
        schema: SCHEMA.into(),
        table: TABLE.into(),
        key_columns: vec!["id".into()],
        fields: fields.into_iter().enumerate().map(field).collect(),
        next_field,
        owner,
        external_id: None,
        delete: DeletePolicy::default(),
        truncate: TruncatePolicy::default(),
        initial_merge: InitialMerge::default(),
        rank: 0,
    };
    Catalog { mappings: vec![mapping], next_mapping: MappingId(1), ..Catalog::default() }
}
