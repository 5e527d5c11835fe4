//! Understanding events, built with the reference implementation of Avro.

use apache_avro::Schema;

use super::*;
use crate::change::{DeletePolicy, ForeignEdit, InitialMerge, Offset, Policy};

/// The mapping of the tests: an object with every shape of field.
pub(crate) fn mapping() -> MappingDef {
    let kinds = [
        ("Id", FieldKind::Id),
        ("Name", FieldKind::Text { length: 255 }),
        ("BillingCity", FieldKind::Text { length: 40 }),
        ("Active__c", FieldKind::Boolean),
        ("IsDeleted", FieldKind::Boolean),
        ("SystemModstamp", FieldKind::DateTime),
        ("Notes__c", FieldKind::Text { length: 32_000 }),
        ("Loc__Latitude__s", FieldKind::Number { scale: 4 }),
        ("Parent.Key__c", FieldKind::Relationship { relationship: "Parent".into(), external_id: "Key__c".into() }),
    ];
    let fields = kinds.into_iter().enumerate().map(|(n, (name, kind))| FieldDef {
        id: FieldId(n as u16),
        name: name.into(),
        column: name.to_lowercase(),
        kind,
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    });
    MappingDef {
        id: MappingId(0),
        name: "account".into(),
        sobject: "Account".into(),
        schema: "salesforce".into(),
        table: "account".into(),
        key_columns: vec!["id".into()],
        fields: fields.collect(),
        next_field: FieldId(9),
        owner: None,
        external_id: None,
        delete: DeletePolicy::default(),
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::default(),
        rank: 0,
    }
}

/// A catalog of that mapping alone.
pub(crate) fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog { mappings: vec![mapping()], next_mapping: MappingId(1), ..Catalog::default() })
}

/// The schema of its events.
pub(crate) const SCHEMA: &str = r#"{"type":"record","name":"AccountChangeEvent","namespace":"com.sforce.eventbus","fields":[
 {"name":"ChangeEventHeader","type":{"type":"record","name":"ChangeEventHeader","fields":[
  {"name":"entityName","type":"string"},{"name":"recordIds","type":{"type":"array","items":"string"}},
  {"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":["CREATE","UPDATE","DELETE","UNDELETE","GAP_CREATE","GAP_UPDATE","GAP_DELETE","GAP_UNDELETE","GAP_OVERFLOW","SNAPSHOT"]}},
  {"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},{"name":"sequenceNumber","type":"int"},
  {"name":"commitTimestamp","type":"long"},{"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
  {"name":"nulledFields","type":{"type":"array","items":"string"}},{"name":"diffFields","type":{"type":"array","items":"string"}},
  {"name":"changedFields","type":{"type":"array","items":"string"}}]}},
 {"name":"Name","type":["null","string",{"type":"record","name":"Switchable_PersonName","fields":[
  {"name":"FirstName","type":["null","string"],"default":null},{"name":"LastName","type":["null","string"],"default":null}]}],"default":null},
 {"name":"BillingAddress","type":["null",{"type":"record","name":"Address","fields":[
  {"name":"Street","type":["null","string"],"default":null},{"name":"City","type":["null","string"],"default":null}]}],"default":null},
 {"name":"Active__c","type":["null","boolean"],"default":null},
 {"name":"Notes__c","type":["null","string"],"default":null},
 {"name":"Loc__c","type":["null",{"type":"record","name":"Location","fields":[
  {"name":"Latitude","type":["null","double"],"default":null},{"name":"Longitude","type":["null","double"],"default":null}]}],"default":null},
 {"name":"Unmapped__c","type":["null","string"],"default":null}]}"#;

/// An event to be.
pub(crate) struct Draft {
    pub(crate) entity: &'static str,
    pub(crate) change: &'static str,
    pub(crate) ids: Vec<&'static str>,
    pub(crate) origin: &'static str,
    pub(crate) user: &'static str,
    pub(crate) commit_ms: i64,
    pub(crate) nulled: Vec<&'static str>,
    pub(crate) diff: Vec<&'static str>,
    pub(crate) changed: Vec<&'static str>,
    pub(crate) name: Avro,
    pub(crate) city: Option<&'static str>,
    pub(crate) active: Option<bool>,
    pub(crate) notes: Option<String>,
    pub(crate) latitude: Option<f64>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            entity: "Account",
            change: "UPDATE",
            ids: vec!["001000000000001AAA"],
            origin: "",
            user: "005000000000009AAA",
            commit_ms: 1_795_233_600_000,
            nulled: vec![],
            diff: vec![],
            changed: vec![],
            name: null(),
            city: None,
            active: None,
            notes: None,
            latitude: None,
        }
    }
}

pub(crate) fn null() -> Avro {
    Avro::Union(0, Box::new(Avro::Null))
}

fn some(value: Avro) -> Avro {
    Avro::Union(1, Box::new(value))
}

pub(crate) fn text(value: &str) -> Avro {
    some(Avro::String(value.to_owned()))
}

impl Draft {
    /// The event's bytes.
    pub(crate) fn encode(self) -> Vec<u8> {
        let list = |items: &[&str]| Avro::Array(items.iter().map(|t| Avro::String((*t).to_owned())).collect());
        let plain = |t: &str| Avro::String(t.to_owned());
        let symbols = [
            "CREATE",
            "UPDATE",
            "DELETE",
            "UNDELETE",
            "GAP_CREATE",
            "GAP_UPDATE",
            "GAP_DELETE",
            "GAP_UNDELETE",
            "GAP_OVERFLOW",
            "SNAPSHOT",
        ];
        let symbol = symbols.iter().position(|s| *s == self.change).unwrap() as u32;
        let header = Avro::Record(vec![
            ("entityName".into(), plain(self.entity)),
            ("recordIds".into(), list(&self.ids)),
            ("changeType".into(), Avro::Enum(symbol, self.change.into())),
            ("changeOrigin".into(), plain(self.origin)),
            ("transactionKey".into(), plain("key")),
            ("sequenceNumber".into(), Avro::Int(2)),
            ("commitTimestamp".into(), Avro::Long(self.commit_ms)),
            ("commitNumber".into(), Avro::Long(1)),
            ("commitUser".into(), plain(self.user)),
            ("nulledFields".into(), list(&self.nulled)),
            ("diffFields".into(), list(&self.diff)),
            ("changedFields".into(), list(&self.changed)),
        ]);
        let pair = |names: [&str; 2], values: [Avro; 2]| {
            if values.iter().all(|v| *v == null()) {
                null()
            } else {
                let [a, b] = values;
                some(Avro::Record(vec![(names[0].into(), a), (names[1].into(), b)]))
            }
        };
        let value = Avro::Record(vec![
            ("ChangeEventHeader".into(), header),
            ("Name".into(), self.name),
            ("BillingAddress".into(), pair(["Street", "City"], [null(), self.city.map_or_else(null, text)])),
            ("Active__c".into(), self.active.map_or_else(null, |b| some(Avro::Boolean(b)))),
            ("Notes__c".into(), self.notes.map_or_else(null, |t| text(&t))),
            (
                "Loc__c".into(),
                pair(["Latitude", "Longitude"], [self.latitude.map_or_else(null, |n| some(Avro::Double(n))), null()]),
            ),
            ("Unmapped__c".into(), null()),
        ]);
        apache_avro::to_avro_datum(&Schema::parse_str(SCHEMA).unwrap(), value).unwrap()
    }
}

fn hearing() -> Hearing {
    Hearing::new(catalog(), Us { client_name: "tidelock".into(), user_id: "005000000000001AAA".into() })
}

fn hear(draft: Draft) -> Heard {
    let schema = EventSchema::parse(SCHEMA).unwrap();
    hearing().hear("schema", &schema, &draft.encode()).unwrap()
}

/// The values told, as `Name=value`, and the names of what was not.
fn told(heard: &Heard) -> (RowOperation, Vec<String>, Vec<String>) {
    let Says::Rows { operation, told } = &heard.says else { panic!("{heard:?}") };
    let mapping = mapping();
    let name = |field: FieldId| mapping.field(field).unwrap().name.clone();
    let id = heard.ids().next().unwrap();
    let fields = told[0].for_record(&mapping, &id);
    assert!(fields.is_sorted_by_key(|(field, _)| *field));
    (
        *operation,
        fields.iter().map(|(field, value)| format!("{}={value}", name(*field))).collect(),
        told[0].untold.iter().map(|untold| name(untold.field)).collect(),
    )
}

#[test]
fn a_create_tells_everything_that_the_schema_knows() {
    let (operation, fields, untold) = told(&hear(Draft {
        change: "CREATE",
        name: text("Acme"),
        city: Some("Oslo"),
        latitude: Some(59.9),
        ..Draft::default()
    }));
    assert_eq!(operation, RowOperation::Insert);
    assert_eq!(
        fields,
        [
            "Id=001000000000001AAA",
            "Name=Acme",
            "BillingCity=Oslo",
            "Active__c=false",
            "IsDeleted=false",
            "SystemModstamp=2026-11-21T04:00:00Z",
            "Notes__c=null",
            "Loc__Latitude__s=59.9"
        ]
    );
    assert!(untold.is_empty());
    assert_eq!(
        told(&hear(Draft { change: "UNDELETE", name: text("x"), ..Draft::default() })).0,
        RowOperation::Undelete
    );
}

#[test]
fn an_update_tells_what_changed_and_what_was_set_to_null() {
    let draft = Draft { changed: vec!["0x08", "2-0x02"], active: Some(true), city: Some("Bergen"), ..Draft::default() };
    let (operation, fields, _) = told(&hear(draft));
    assert_eq!(operation, RowOperation::Update);
    assert_eq!(fields, ["BillingCity=Bergen", "Active__c=true", "SystemModstamp=2026-11-21T04:00:00Z"]);
    // Set to null: the member of an address that is null as a whole, a name, a location.
    let draft = Draft { changed: vec!["0x02", "2-0x02"], nulled: vec!["0x02", "2-0x02", "5-0x01"], ..Draft::default() };
    let (_, fields, _) = told(&hear(draft));
    assert_eq!(fields[..2], ["BillingCity=null", "SystemModstamp=2026-11-21T04:00:00Z"]);
    assert_eq!(fields[2], "Loc__Latitude__s=null");
    // A compound's own bit stands for all its members.
    let (_, fields, _) = told(&hear(Draft { changed: vec!["0x04"], ..Draft::default() }));
    assert_eq!(fields[0], "BillingCity=null");
}

#[test]
fn what_an_event_cannot_tell_is_listed() {
    let hash = "ab".repeat(32);
    let diff = format!("--- \n+++ {hash}\n@@ -1 +1 @@\n-a\n+b");
    let heard = hear(Draft { changed: vec!["0x10"], diff: vec!["0x10"], notes: Some(diff), ..Draft::default() });
    let (_, fields, untold) = told(&heard);
    assert_eq!((fields.len(), untold), (1, vec!["Notes__c".to_owned()]));
    let Says::Rows { told: rows, .. } = &heard.says else { panic!() };
    assert_eq!(rows[0].untold[0].sha256.as_deref(), Some(hash.as_str()));
    // The name of a person is composed of members.
    let person = Avro::Record(vec![("FirstName".into(), null()), ("LastName".into(), text("Curie"))]);
    let person = Avro::Union(2, Box::new(person));
    let (_, _, untold) = told(&hear(Draft { changed: vec!["1-0x02"], name: person, ..Draft::default() }));
    assert_eq!(untold, ["Name"]);
}

#[test]
fn a_business_accounts_name_is_its_text() {
    let (_, fields, untold) = told(&hear(Draft { changed: vec!["0x02"], name: text("Acme"), ..Draft::default() }));
    assert_eq!((fields[0].as_str(), untold.len()), ("Name=Acme", 0));
}

#[test]
fn a_delete_tells_nothing_but_itself() {
    let (operation, fields, _) =
        told(&hear(Draft { change: "DELETE", ids: vec!["001000000000001"], ..Draft::default() }));
    assert_eq!((operation, fields.len()), (RowOperation::Delete, 0));
}

#[test]
fn gaps_name_what_to_read() {
    for change in ["GAP_CREATE", "GAP_UPDATE", "GAP_DELETE", "GAP_UNDELETE", "SNAPSHOT"] {
        assert!(matches!(hear(Draft { change, ..Draft::default() }).says, Says::Reread(m) if m == [MappingId(0)]));
    }
    let overflow = Draft { change: "GAP_OVERFLOW", ids: vec![OVERFLOW_ID], ..Draft::default() };
    assert!(matches!(hear(overflow).says, Says::Sweep(_)));
    for change in ["UPDATE", "GAP_UPDATE"] {
        assert!(matches!(hear(Draft { change, ids: vec!["001*"], ..Draft::default() }).says, Says::Sweep(_)));
        assert!(matches!(hear(Draft { change, ids: vec![], ..Draft::default() }).says, Says::Sweep(_)));
    }
    assert!(matches!(hear(Draft { entity: "Contact", ..Draft::default() }).says, Says::Nothing));
    assert!(matches!(
        hear(Draft { entity: "Contact", change: "GAP_OVERFLOW", ..Draft::default() }).says,
        Says::Nothing
    ));
}

#[test]
fn bad_bitmaps_stop_the_stream() {
    let schema = EventSchema::parse(SCHEMA).unwrap();
    let bytes = Draft { changed: vec!["bits"], ..Draft::default() }.encode();
    assert_eq!(hearing().hear("schema", &schema, &bytes).unwrap_err().kind(), Kind::Protocol);
    assert_eq!(hearing().hear("schema", &schema, &bytes[..20]).unwrap_err().kind(), Kind::Protocol);
}

#[test]
fn our_own_changes_are_known_by_client_or_user() {
    let us = hearing().us;
    for (origin, user, own) in [
        ("com/salesforce/api/rest/66.0;client=tidelock", "x", Own::Marked),
        ("com/salesforce/api/rest/66.0;client=tidelock/17", "x", Own::Marked),
        ("com/salesforce/api/rest/66.0;client=tidelock/17-240", "x", Own::Tickets(Offset(17), Offset(240))),
        ("com/salesforce/api/rest/66.0;client=tidelock/17-x", "x", Own::Marked),
        ("com/salesforce/api/rest/66.0;client=other/17-240", "005000000000001AAA", Own::No),
        ("com/salesforce/api/rest/66.0;client=tidelock-other", "005000000000001AAA", Own::No),
        ("com/salesforce/api/soap/66.0;client=SfdcInternalAPI/", "005000000000001AAA", Own::No),
        ("com/salesforce/api/rest/66.0", "005000000000001AAA", Own::Marked),
        ("", "005000000000001", Own::Marked),
        ("", "005000000000002AAA", Own::No),
        ("", "", Own::No),
    ] {
        assert_eq!(us.own(origin, user), own, "{origin} {user}");
    }
}

#[test]
fn who_and_where_are_told() {
    let heard = hear(Draft { origin: "com/salesforce/api/soap/66.0;client=SfdcInternalAPI/", ..Draft::default() });
    assert_eq!(heard.committed_at(), 1_795_233_600_000_000);
    assert_eq!(heard.who().user, "005000000000009AAA");
    assert!(heard.who().application.ends_with("SfdcInternalAPI/"));
    assert_eq!(heard.transaction(), Transaction { id: "key".into(), index: 2, last: false });
}
