//! Decoding, against the reference implementation and an event of a real org.

use apache_avro::types::Value as V;
use proptest::prelude::*;

use super::*;

/// A schema with everything that change events have: three-branch unions, and types that are named once and then referred to.
const SCHEMA: &str = r#"{"type":"record","name":"ThingChangeEvent","namespace":"com.sforce.eventbus","fields":[
 {"name":"ChangeEventHeader","type":{"type":"record","name":"ChangeEventHeader","fields":[
  {"name":"entityName","type":"string"},{"name":"recordIds","type":{"type":"array","items":"string"}},
  {"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":["CREATE","UPDATE","DELETE"]}},
  {"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},{"name":"sequenceNumber","type":"int"},
  {"name":"commitTimestamp","type":"long"},{"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
  {"name":"nulledFields","type":{"type":"array","items":"string"}},{"name":"diffFields","type":{"type":"array","items":"string"}},
  {"name":"changedFields","type":{"type":"array","items":"string"}}]}},
 {"name":"Name","type":["null","string",{"name":"Switchable_PersonName","type":"record","fields":[
  {"name":"FirstName","type":["null","string"],"default":null},{"name":"LastName","type":["null","string"],"default":null}]}],"default":null},
 {"name":"BillingAddress","type":["null",{"type":"record","name":"Address","fields":[
  {"name":"City","type":["null","string"],"default":null},{"name":"Latitude","type":["null","double"],"default":null}]}],"default":null},
 {"name":"ShippingAddress","type":["null","Address"],"default":null},
 {"name":"Active","type":["null","boolean"],"default":null},{"name":"Count","type":["null","int"],"default":null},
 {"name":"CreatedDate","type":["null","long"],"default":null}]}"#;

fn some(n: u32, value: V) -> V {
    V::Union(n, Box::new(value))
}

fn none() -> V {
    some(0, V::Null)
}

fn event(name: V, billing: V, shipping: V, active: V, ids: &[&str]) -> V {
    let list = |items: &[&str]| V::Array(items.iter().map(|t| V::String((*t).to_owned())).collect());
    let text = |t: &str| V::String(t.to_owned());
    let header = V::Record(vec![
        ("entityName".into(), text("Thing")),
        ("recordIds".into(), list(ids)),
        ("changeType".into(), V::Enum(1, "UPDATE".into())),
        ("changeOrigin".into(), text("com/salesforce/api/rest/66.0;client=x")),
        ("transactionKey".into(), text("key")),
        ("sequenceNumber".into(), V::Int(3)),
        ("commitTimestamp".into(), V::Long(1_700_000_000_000)),
        ("commitNumber".into(), V::Long(-5)),
        ("commitUser".into(), text("005000000000001AAA")),
        ("nulledFields".into(), list(&["0x02"])),
        ("diffFields".into(), list(&[])),
        ("changedFields".into(), list(&["0x02", "2-0x01"])),
    ]);
    V::Record(vec![
        ("ChangeEventHeader".into(), header),
        ("Name".into(), name),
        ("BillingAddress".into(), billing),
        ("ShippingAddress".into(), shipping),
        ("Active".into(), active),
        ("Count".into(), some(1, V::Int(-7))),
        ("CreatedDate".into(), none()),
    ])
}

fn encode(value: V) -> Vec<u8> {
    apache_avro::to_avro_datum(&Schema::parse_str(SCHEMA).unwrap(), value).unwrap()
}

fn address(city: Option<String>, latitude: Option<f64>) -> V {
    some(
        1,
        V::Record(vec![
            ("City".into(), city.map_or_else(none, |c| some(1, V::String(c)))),
            ("Latitude".into(), latitude.map_or_else(none, |l| some(1, V::Double(l)))),
        ]),
    )
}

#[test]
fn headers_unions_and_references_are_read() {
    let schema = EventSchema::parse(SCHEMA).unwrap();
    assert_eq!(schema.name(), "ThingChangeEvent");
    let person = V::Record(vec![("FirstName".into(), none()), ("LastName".into(), some(1, V::String("Curie".into())))]);
    let bytes =
        encode(event(some(2, person.clone()), none(), address(Some("Paris".into()), Some(48.85)), none(), &["a", "b"]));
    let (header, values) = schema.open(&bytes).unwrap().body(|n| n == 1 || n == 3).unwrap();
    assert_eq!((header.entity_name.as_str(), header.change_type.as_str()), ("Thing", "UPDATE"));
    assert_eq!(header.record_ids, ["a", "b"]);
    assert_eq!((header.sequence_number, header.commit_timestamp, header.commit_number), (3, 1_700_000_000_000, -5));
    assert_eq!(header.changed_fields, ["0x02", "2-0x01"]);
    assert_eq!(values[1], Some(some(2, person)));
    assert_eq!(values[3], Some(address(Some("Paris".into()), Some(48.85))));
    assert!(values[0].is_none() && values[2].is_none() && values[4].is_none() && values.len() == 7);
    assert_eq!(schema.fields()[2].node.members().unwrap()[1].name, "Latitude");
    assert_eq!(schema.fields()[1].node.members().unwrap().len(), 2);
    assert!(schema.fields()[4].node.members().is_none());
}

#[test]
fn a_schema_that_is_no_change_event_is_refused() {
    for bad in [
        "",
        r#""string""#,
        r#"{"type":"record","name":"X__e","fields":[{"name":"CreatedDate","type":"long"}]}"#,
        r#"{"type":"record","name":"X","fields":[{"name":"ChangeEventHeader","type":"long"}]}"#,
        r#"{"type":"record","name":"X","fields":[{"name":"ChangeEventHeader","type":{"type":"record","name":"H","fields":[]}},{"name":"me","type":["null","X"]}]}"#,
    ] {
        assert!(EventSchema::parse(bad).is_err(), "{bad}");
    }
    let short = r#"{"type":"record","name":"X","fields":[{"name":"ChangeEventHeader","type":{"type":"record","name":"H","fields":[]}}]}"#;
    assert_eq!(
        EventSchema::parse(short).unwrap().open(&[]).unwrap_err(),
        AvroError::Header("field that every change event has")
    );
}

#[test]
fn members_have_rest_names() {
    for (compound, member, name) in [
        ("BillingAddress", "City", "BillingCity"),
        ("PersonMailingAddress", "StateCode", "PersonMailingStateCode"),
        ("Address", "City", "City"),
        ("Name", "FirstName", "FirstName"),
        ("Loc__c", "Latitude", "Loc__Latitude__s"),
        ("Addr__c", "City", "Addr__City__s"),
    ] {
        assert_eq!(member_name(compound, member), name);
    }
}

proptest! {
    #[test]
    fn the_walk_agrees_with_the_reference(
        name in proptest::option::of(".{0,40}"),
        city in proptest::option::of(".{0,40}"),
        latitude in proptest::option::of(-180.0f64..180.0),
        active in proptest::option::of(any::<bool>()),
        both in any::<bool>(),
    ) {
        let shipping = if both { address(city.clone(), latitude) } else { none() };
        let name = name.map_or_else(none, |n| some(1, V::String(n)));
        let active = active.map_or_else(none, |a| some(1, V::Boolean(a)));
        let value = event(name, address(city, latitude), shipping, active, &["x"]);
        let bytes = encode(value.clone());
        let schema = EventSchema::parse(SCHEMA).unwrap();
        let (_, values) = schema.open(&bytes).unwrap().body(|_| true).unwrap();
        let V::Record(fields) = value else { panic!("not a record") };
        for (n, (_, value)) in fields.into_iter().enumerate().skip(1) {
            prop_assert_eq!(values[n].as_ref(), Some(&value));
        }
        // Stepping over everything ends at the same place.
        schema.open(&bytes).unwrap().body(|_| false).unwrap();
        // Every cut is an error.
        for end in 0..bytes.len() {
            let cut = schema.open(&bytes[..end]).and_then(|opened| opened.body(|n| n % 2 == 0));
            prop_assert!(cut.is_err());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let schema = EventSchema::parse(SCHEMA).unwrap();
        if let Ok(opened) = schema.open(&bytes) {
            drop(opened.body(|_| true));
        }
    }
}
