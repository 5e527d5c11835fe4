//! What is told is what was done: a mirror that is built from events alone equals the org, whatever was committed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::super::events::Event;
use super::super::org::Org;
use super::super::rng::Rng;
use crate::sandbox::{Config, OrgFile};

/// A mirror of one object: records by id, fields by their place in the event record.
type Mirror = BTreeMap<String, BTreeMap<String, Json>>;

/// The bits of a list of bitmap elements, as names: `f` for a field and `f.m` for a member of a compound.
fn names(schema: &Json, elements: &[String]) -> Vec<String> {
    let fields = schema["fields"].as_array().unwrap();
    let mut names = Vec::new();
    for element in elements {
        let (parent, hex) = match element.split_once('-') {
            Some((parent, hex)) => (Some(parent.parse::<usize>().unwrap()), hex),
            None => (None, element.as_str()),
        };
        let hex = hex.strip_prefix("0x").unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        for bit in (0..bytes.len() * 8).filter(|bit| bytes[bytes.len() - 1 - bit / 8] >> (bit % 8) & 1 == 1) {
            names.push(match parent {
                None => fields[bit]["name"].as_str().unwrap().to_owned(),
                Some(parent) => {
                    let name = fields[parent]["name"].as_str().unwrap();
                    format!("{name}.{bit}")
                }
            });
        }
    }
    names
}

fn flatten(datum: &apache_avro::types::Value) -> BTreeMap<String, Json> {
    use apache_avro::types::Value as Avro;
    fn scalar(value: &Avro) -> Json {
        match value {
            Avro::Union(_, inner) => scalar(inner),
            Avro::String(text) | Avro::Enum(_, text) => json!(text),
            Avro::Boolean(b) => json!(b),
            Avro::Int(n) => json!(n),
            Avro::Long(n) => json!(n),
            Avro::Double(n) => json!(n),
            Avro::Array(items) => items.iter().map(scalar).collect(),
            _ => Json::Null,
        }
    }
    let Avro::Record(fields) = datum else { panic!("not a record") };
    let mut flat = BTreeMap::new();
    for (name, value) in fields {
        let inner = if let Avro::Union(_, inner) = value { inner } else { value };
        if let Avro::Record(members) = inner {
            for (index, (member, value)) in members.iter().enumerate() {
                let key =
                    if name == "ChangeEventHeader" { format!("{name}.{member}") } else { format!("{name}.{index}") };
                flat.insert(key, scalar(value));
            }
        } else {
            flat.insert(name.clone(), scalar(value));
        }
    }
    flat.retain(|_, value| !value.is_null());
    flat
}

fn apply(mirror: &mut Mirror, schema: &Json, datum: &apache_avro::types::Value) {
    let mut flat = flatten(datum);
    let strings = |value: Option<Json>| -> Vec<String> { serde_json::from_value(value.unwrap_or(json!([]))).unwrap() };
    let mut header = |name: &str| flat.remove(&format!("ChangeEventHeader.{name}"));
    let ids = strings(header("recordIds"));
    let kind = header("changeType").unwrap();
    let (changed, nulled) = (strings(header("changedFields")), strings(header("nulledFields")));
    for name in [
        "entityName",
        "changeOrigin",
        "transactionKey",
        "sequenceNumber",
        "commitTimestamp",
        "commitNumber",
        "commitUser",
        "diffFields",
    ] {
        header(name);
    }
    for id in ids {
        match kind.as_str().unwrap() {
            "DELETE" => assert!(mirror.remove(&id).is_some(), "an unknown record was deleted"),
            "UPDATE" => {
                let record = mirror.get_mut(&id).expect("an unknown record was updated");
                for name in names(schema, &changed) {
                    if let Some(value) = flat.get(&name) {
                        record.insert(name, value.clone());
                    } else {
                        assert!(names(schema, &nulled).contains(&name), "{name} is neither given nor nulled");
                        record.remove(&name);
                    }
                }
            }
            _ => assert!(mirror.insert(id, flat.clone()).is_none(), "a known record was created"),
        }
    }
}

fn operation(rng: &mut Rng, accounts: &[String], contacts: &[String]) -> Json {
    let pick = |rng: &mut Rng, ids: &[String]| ids.get(rng.below(ids.len() as u64) as usize).cloned();
    let text = |rng: &mut Rng| match rng.below(3) {
        0 => Json::Null,
        n => json!(format!("v{n}")),
    };
    let mut fields = Map::new();
    for name in ["BillingCity", "BillingStreet", "Phone", "Site", "Rating", "Sic"] {
        if rng.chance(0.3) {
            fields.insert(name.to_owned(), text(rng));
        }
    }
    let contact = rng.chance(0.4);
    if contact {
        fields = Map::from_iter([("FirstName".to_owned(), text(rng)), ("MailingCity".to_owned(), text(rng))]);
    }
    let (object, ids) = if contact { ("Contact", contacts) } else { ("Account", accounts) };
    match (rng.below(10), pick(rng, ids)) {
        (0 | 1, Some(id)) => json!({"op": "delete", "id": id}),
        (2, Some(id)) => json!({"op": "undelete", "id": id}),
        (3..=7, Some(id)) => json!({"op": "update", "id": id, "fields": fields}),
        _ => {
            fields.insert(if contact { "LastName" } else { "Name" }.to_owned(), json!("n"));
            if contact && let Some(account) = pick(rng, accounts) {
                fields.insert("AccountId".to_owned(), json!(account));
            }
            json!({"op": "create", "object": object, "fields": fields})
        }
    }
}

/// What the mirror of `object` must be, from the org's own rows.
fn expected(org: &Org, object: &str) -> Mirror {
    org.with(|state| {
        let index = state.schema.object(object).unwrap();
        let (definition, table) = (&state.schema.objects[index], &state.tables[index]);
        let mut mirror = Mirror::new();
        for position in (0..table.len()).filter(|p| !table.is_deleted(*p)) {
            let row = table.row(position).unwrap();
            let get = |field: usize| super::super::table::get(row, field);
            let mut record = BTreeMap::new();
            for (field, described) in definition.fields.iter().enumerate().filter(|(_, f)| f.in_events) {
                for (member, part) in described.parts.iter().enumerate() {
                    if let Some(value) = part.field.and_then(get) {
                        record.insert(format!("{}.{member}", described.name), value.json());
                    }
                }
                let whole = described.compound.is_none() && described.parts.is_empty();
                if let Some(value) = get(field).filter(|_| whole) {
                    use super::super::value::Value;
                    let value = match value {
                        Value::DateTime(ms) => json!(ms),
                        Value::Date(days) => json!(days * 86_400_000),
                        other => other.json(),
                    };
                    record.insert(described.name.to_string(), value);
                }
            }
            mirror.insert(state.id_at(index, position).to_owned(), record);
        }
        mirror
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_mirror_made_of_events_equals_the_org(seed in any::<u64>(), merge in any::<bool>()) {
        let file = OrgFile::from_toml(super::support::ORG).unwrap();
        let org = Org::new(Config { org: file, merge_events: merge, ..Config::default() }).unwrap();
        let mut rng = Rng::new(seed);
        let (mut accounts, mut contacts) = (Vec::new(), Vec::new());
        for _ in 0..40 {
            let operations: Vec<Json> =
                (0..=rng.below(6)).map(|_| operation(&mut rng, &accounts, &contacts)).collect();
            let body = json!({"user": "Ann Admin", "all_or_none": rng.chance(0.3), "operations": operations});
            let answer = super::super::admin::handle(&org, "POST", &["commit"], &[], body.to_string().as_bytes());
            let answer: Json = serde_json::from_str(&answer.body).unwrap();
            for result in answer["results"].as_array().unwrap().iter().filter(|r| r["created"] == true) {
                let id = result["id"].as_str().unwrap().to_owned();
                if id.starts_with("001") { accounts.push(id) } else { contacts.push(id) }
            }
        }
        let told: Vec<(Event, String)> = org.with(|state| {
            let after = state.log.after(state.log.before_first());
            after.map(|e| (e.clone(), state.log.schema(&e.schema_id).unwrap().to_string())).collect()
        });
        for object in ["Account", "Contact"] {
            let index = org.with(|state| state.schema.object(object).unwrap());
            let mut mirror = Mirror::new();
            for (event, schema) in told.iter().filter(|(event, _)| event.object == index) {
                let parsed = apache_avro::Schema::parse_str(schema).unwrap();
                let datum = apache_avro::from_avro_datum(&parsed, &mut &event.payload[..], None).unwrap();
                apply(&mut mirror, &serde_json::from_str(schema).unwrap(), &datum);
            }
            prop_assert_eq!(mirror, expected(&org, object), "{}", object);
        }
    }
}
