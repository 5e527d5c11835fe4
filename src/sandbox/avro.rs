//! Change event records: their Avro schemas and the encoding of a datum by hand.
//!
//! An object's record has the event header as field 0; every other field is a union of null and its type. Parts of
//! compound fields are members of a record of their own. The schema's id follows from its text, so that it changes when
//! the object's fields do.

use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value as Json, json};

use super::schema::{Field, Kind, Object, Part};
use super::value::Value;

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ChangeType {
    Create,
    Update,
    Delete,
    Undelete,
    GapCreate,
    GapUpdate,
    GapDelete,
    GapUndelete,
    GapOverflow,
}

const SYMBOLS: [&str; 10] = [
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

impl ChangeType {
    fn index(self) -> i64 {
        self as i64
    }

    /// The type called `name`, such as `GAP_UPDATE`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Create,
            Self::Update,
            Self::Delete,
            Self::Undelete,
            Self::GapCreate,
            Self::GapUpdate,
            Self::GapDelete,
            Self::GapUndelete,
            Self::GapOverflow,
        ];
        all.into_iter().zip(SYMBOLS).find(|(_, symbol)| *symbol == name).map(|(kind, _)| kind)
    }

    /// The gap event that stands for an event that cannot be told.
    pub(crate) fn as_gap(self) -> Self {
        match self {
            Self::Create => Self::GapCreate,
            Self::Update => Self::GapUpdate,
            Self::Delete => Self::GapDelete,
            Self::Undelete => Self::GapUndelete,
            other => other,
        }
    }
}

/// The header of a change event.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub(crate) entity: &'a str,
    pub(crate) record_ids: &'a [&'a str],
    pub(crate) change_type: ChangeType,
    pub(crate) change_origin: &'a str,
    pub(crate) transaction_key: &'a str,
    pub(crate) sequence_number: i64,
    pub(crate) commit_timestamp_ms: i64,
    pub(crate) commit_number: i64,
    pub(crate) commit_user: &'a str,
    pub(crate) nulled: &'a [String],
    pub(crate) diff: &'a [String],
    pub(crate) changed: &'a [String],
}

/// How a value is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Primitive {
    Text,
    Boolean,
    Int,
    Long,
    Double,
}

/// One field of the record after the header.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// A field with a value.
    Scalar(usize),
    /// A compound field.
    Compound(Vec<Part>),
}

/// An object's change event record.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) schema_id: Arc<str>,
    pub(crate) schema_json: Arc<str>,
    /// The record's fields; the one at `i` has index `i + 1`.
    pub(crate) slots: Vec<Slot>,
}

impl Plan {
    /// The record of `object`'s change events.
    pub(crate) fn of(object: &Object) -> Self {
        let mut named = Vec::new();
        let mut fields = vec![header_schema()];
        let mut slots = Vec::new();
        for (index, field) in object.fields.iter().enumerate() {
            let standalone = field.compound.is_none();
            if !field.in_events || !standalone {
                continue;
            }
            fields.push(json!({
                "name": field.name.as_str(), "type": field_schema(object, field, &mut named), "doc": doc(object, field),
                "default": null,
            }));
            slots.push(if field.kind.is_compound() {
                Slot::Compound(field.parts.clone())
            } else {
                Slot::Scalar(index)
            });
        }
        let schema = json!({
            "type": "record", "name": object.event_name(), "namespace": "com.sforce.eventbus", "fields": fields,
        });
        let text = schema.to_string();
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let id = URL_SAFE_NO_PAD.encode(hash.as_ref().get(..16).unwrap_or_default());
        Self { schema_id: id.into(), schema_json: text.into(), slots }
    }
}

fn header_schema() -> Json {
    let field = |name: &str, schema: Json| json!({"name": name, "type": schema});
    let strings = || json!({"type": "array", "items": "string"});
    json!({
        "name": "ChangeEventHeader",
        "type": {"type": "record", "name": "ChangeEventHeader", "fields": [
            field("entityName", json!("string")),
            field("recordIds", strings()),
            field("changeType", json!({"type": "enum", "name": "ChangeType", "symbols": SYMBOLS})),
            field("changeOrigin", json!("string")),
            field("transactionKey", json!("string")),
            field("sequenceNumber", json!("int")),
            field("commitTimestamp", json!("long")),
            field("commitNumber", json!("long")),
            field("commitUser", json!("string")),
            field("nulledFields", strings()),
            field("diffFields", strings()),
            field("changedFields", strings()),
        ]},
        "doc": "Data:ComplexValueType",
    })
}

/// An account's name is a text for a business and a record for a person.
fn is_switchable(object: &Object, field: &Field) -> bool {
    object.name == "Account" && field.name == "Name"
}

fn field_schema(object: &Object, field: &Field, named: &mut Vec<&'static str>) -> Json {
    if is_switchable(object, field) {
        let members = [("Salutation", false), ("FirstName", false), ("LastName", false)];
        return json!(["null", "string", compound("Switchable_PersonName", members, named)]);
    }
    let members = || field.parts.iter().map(|part| (part.member, part.double));
    match field.kind {
        Kind::Address => json!(["null", compound("Address", members(), named)]),
        Kind::Location => json!(["null", compound("Location", members(), named)]),
        Kind::PersonName => json!(["null", compound("PersonName", members(), named)]),
        _ => json!(["null", primitive_name(primitive(field))]),
    }
}

/// A compound's record: defined where it first occurs, and named after that.
fn compound(
    name: &'static str,
    members: impl IntoIterator<Item = (&'static str, bool)>,
    named: &mut Vec<&'static str>,
) -> Json {
    if named.contains(&name) {
        return json!(name);
    }
    named.push(name);
    let fields: Vec<Json> = members
        .into_iter()
        .map(|(member, double)| {
            json!({"name": member, "type": ["null", if double { "double" } else { "string" }], "default": null})
        })
        .collect();
    json!({"type": "record", "name": name, "fields": fields})
}

fn primitive(field: &Field) -> Primitive {
    match field.kind {
        Kind::Boolean => Primitive::Boolean,
        Kind::Int => Primitive::Int,
        Kind::Double | Kind::Currency | Kind::Percent => Primitive::Double,
        Kind::Date | Kind::DateTime | Kind::Time => Primitive::Long,
        _ => Primitive::Text,
    }
}

fn primitive_name(primitive: Primitive) -> &'static str {
    match primitive {
        Primitive::Text => "string",
        Primitive::Boolean => "boolean",
        Primitive::Int => "int",
        Primitive::Long => "long",
        Primitive::Double => "double",
    }
}

fn doc(object: &Object, field: &Field) -> String {
    let kind = match field.kind {
        _ if is_switchable(object, field) => "Data:Switchable_PersonName",
        _ if field.name == "CreatedDate" => "CreatedDate:DateTime",
        Kind::Id | Kind::Reference => "ForeignKey:EntityId",
        Kind::TextArea if field.html => "Data:HtmlStringPlusClob",
        Kind::TextArea if field.length > 255 => "Data:StringPlusClob",
        Kind::Text | Kind::TextArea => "Data:Text",
        Kind::Picklist if field.restricted => "Data:StaticEnum",
        Kind::Picklist => "Data:DynamicEnum",
        Kind::MultiPicklist => "Data:MultiEnum",
        Kind::Boolean => "Data:Boolean",
        Kind::Int => "Data:Integer",
        Kind::Double => "Data:Double",
        Kind::Currency => "Data:Currency",
        Kind::Percent => "Data:Percent",
        Kind::Date => "Data:DateOnly",
        Kind::DateTime => "Data:DateTime",
        Kind::Time => "Data:TimeOnly",
        Kind::Email => "Data:Email",
        Kind::Phone => "Data:Phone",
        Kind::Url => "Data:Url",
        Kind::Address => "Data:Address",
        Kind::Location => "Data:Location",
        Kind::PersonName => "Data:PersonName",
    };
    match &field.definition_id {
        Some(id) => format!("{kind}:{id}"),
        None => kind.to_owned(),
    }
}

/// Encodes the header.
pub(crate) fn encode_header(header: &Header<'_>, out: &mut Vec<u8>) {
    text(header.entity, out);
    strings(header.record_ids.iter().copied(), out);
    long(header.change_type.index(), out);
    text(header.change_origin, out);
    text(header.transaction_key, out);
    long(header.sequence_number, out);
    long(header.commit_timestamp_ms, out);
    long(header.commit_number, out);
    text(header.commit_user, out);
    for list in [header.nulled, header.diff, header.changed] {
        strings(list.iter().map(String::as_str), out);
    }
}

/// Encodes the fields after the header; `value` gives what the event carries of each field.
pub(crate) fn encode_body<'a>(plan: &Plan, value: impl Fn(usize) -> Option<&'a Value>, out: &mut Vec<u8>) {
    for slot in &plan.slots {
        match slot {
            Slot::Scalar(field) => optional(value(*field), out),
            Slot::Compound(parts) => {
                let member = |part: &Part| part.field.and_then(&value);
                if parts.iter().all(|part| member(part).is_none()) {
                    long(0, out);
                } else {
                    long(1, out);
                    for part in parts {
                        optional(member(part), out);
                    }
                }
            }
        }
    }
}

/// Encodes a body in which every field is null.
pub(crate) fn encode_empty_body(plan: &Plan, out: &mut Vec<u8>) {
    plan.slots.iter().for_each(|_| long(0, out));
}

/// A union of null and the value's type, which is its second branch.
fn optional(value: Option<&Value>, out: &mut Vec<u8>) {
    let Some(value) = value else { return long(0, out) };
    long(1, out);
    match value {
        Value::Text(t) => text(t, out),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::Double(n) => out.extend_from_slice(&n.to_le_bytes()),
        Value::Int(n) | Value::DateTime(n) | Value::Time(n) => long(*n, out),
        Value::Date(days) => long(days * super::time::DAY_MS, out),
    }
}

fn strings<'a>(items: impl ExactSizeIterator<Item = &'a str>, out: &mut Vec<u8>) {
    if items.len() > 0 {
        long(items.len() as i64, out);
        items.for_each(|item| text(item, out));
    }
    long(0, out);
}

fn text(value: &str, out: &mut Vec<u8>) {
    long(value.len() as i64, out);
    out.extend_from_slice(value.as_bytes());
}

/// A zig-zag variable-length integer.
fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest as u8) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use apache_avro::types::Value as Avro;

    use super::super::{orgfile, standard};
    use super::*;
    use crate::sandbox::config::OrgFile;

    fn parse(plan: &Plan) -> apache_avro::Schema {
        apache_avro::Schema::parse_str(&plan.schema_json).unwrap()
    }

    fn get<'a>(record: &'a Avro, name: &str) -> &'a Avro {
        let Avro::Record(fields) = record else { panic!("not a record: {record:?}") };
        &fields.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn inner(union: &Avro) -> &Avro {
        match union {
            Avro::Union(_, value) => value,
            other => other,
        }
    }

    #[test]
    fn standard_fields_have_the_indexes_of_a_real_org() {
        let objects = standard::objects();
        let index = |object: &str, field: &str| {
            let object = objects.iter().find(|o| o.name == object).unwrap();
            let schema: Json = serde_json::from_str(&Plan::of(object).schema_json).unwrap();
            schema["fields"].as_array().unwrap().iter().position(|f| f["name"] == field).unwrap()
        };
        assert_eq!(index("Account", "ChangeEventHeader"), 0);
        assert_eq!(index("Account", "BillingAddress"), 4);
        assert_eq!(index("Account", "Industry"), 11);
        assert_eq!(index("Account", "Description"), 16);
        assert_eq!(index("Account", "LastModifiedDate"), 22);
        assert_eq!(index("Contact", "AccountId"), 1);
        assert_eq!(index("Contact", "Name"), 2);
        assert_eq!(index("Contact", "Email"), 12);
        assert_eq!(index("Contact", "LastModifiedById"), 26);
    }

    #[test]
    fn an_independent_decoder_reads_what_is_encoded() {
        let objects = standard::objects();
        let account = objects.iter().find(|o| o.name == "Account").unwrap();
        let plan = Plan::of(account);
        let at = |name: &str| account.field(name).unwrap();
        let mut values: Vec<Option<Value>> = vec![None; account.fields.len()];
        values[at("Name")] = Some(Value::Text("Grüße & Co".into()));
        values[at("BillingCity")] = Some(Value::Text("Köln".into()));
        values[at("ShippingLatitude")] = Some(Value::Double(50.94));
        values[at("AnnualRevenue")] = Some(Value::Double(1e7));
        values[at("NumberOfEmployees")] = Some(Value::Int(-3));
        values[at("CreatedDate")] = Some(Value::DateTime(1_700_000_000_000));
        let changed = ["0x400800".to_owned(), "4-0x02".to_owned()];
        let header = Header {
            entity: "Account",
            record_ids: &["001000000000001AAA", "001000000000002AAA"],
            change_type: ChangeType::Update,
            change_origin: "com/salesforce/api/rest/66.0;client=x",
            transaction_key: "0001-key",
            sequence_number: 1,
            commit_timestamp_ms: 1_700_000_000_000,
            commit_number: 12_345_678_901,
            commit_user: "005000000000001AAA",
            nulled: &[],
            diff: &[],
            changed: &changed,
        };
        let mut out = Vec::new();
        encode_header(&header, &mut out);
        encode_body(&plan, |field| values[field].as_ref(), &mut out);
        let mut bytes = out.as_slice();
        let datum = apache_avro::from_avro_datum(&parse(&plan), &mut bytes, None).unwrap();
        assert!(bytes.is_empty(), "the decoder left bytes over");
        let head = get(&datum, "ChangeEventHeader");
        assert_eq!(get(head, "changeType"), &Avro::Enum(1, "UPDATE".into()));
        assert_eq!(get(head, "commitNumber"), &Avro::Long(12_345_678_901));
        assert!(matches!(get(head, "recordIds"), Avro::Array(ids) if ids.len() == 2));
        assert_eq!(inner(get(&datum, "Name")), &Avro::String("Grüße & Co".into()));
        assert_eq!(inner(get(inner(get(&datum, "BillingAddress")), "City")), &Avro::String("Köln".into()));
        assert_eq!(inner(get(inner(get(&datum, "ShippingAddress")), "Latitude")), &Avro::Double(50.94));
        assert_eq!(inner(get(&datum, "NumberOfEmployees")), &Avro::Int(-3));
        assert_eq!(inner(get(&datum, "CreatedDate")), &Avro::Long(1_700_000_000_000));
        assert_eq!(inner(get(&datum, "Industry")), &Avro::Null);
    }

    #[test]
    fn a_schema_id_has_22_characters_and_follows_the_fields() {
        let file = OrgFile::from_toml("[[objects]]\nname='Account'\nfields=[{name='X__c',type='date'}]").unwrap();
        let (with, without) = (orgfile::schema(&file).unwrap(), orgfile::schema(&OrgFile::default()).unwrap());
        let (with, without) = (Plan::of(&with.objects[0]), Plan::of(&without.objects[0]));
        assert_eq!(with.schema_id.len(), 22);
        assert_ne!(with.schema_id, without.schema_id);
        assert!(with.schema_json.contains("Data:DateOnly:00N"));
        orgfile::schema(&file).unwrap().objects.iter().for_each(|object| {
            parse(&Plan::of(object));
        });
    }
}
