#![allow(clippy::unwrap_used)]

use super::super::compile::compile;
use super::super::fixtures::{field, org, table};
use super::*;
use crate::config::Config;

fn config(lines: &str) -> Config {
    let text = format!(
        "[link]\nname = \"main\"\n[postgres]\nurl = \"postgresql://u@h/d\"\n[salesforce]\n\
         login_url = \"https://x.my.salesforce.com\"\nclient_id = \"i\"\nclient_secret_env = \"S\"\n\
         [[mapping]]\nsobject = \"Contact\"\nexternal_id = \"External_ID__c\"\n{lines}\n"
    );
    Config::parse(&text, "t").unwrap()
}

/// What is said of one field with a column of a type; the field may be changed first.
fn of(
    field: &str,
    change: impl FnOnce(&mut SobjectField),
    column: &str,
    alter: impl FnOnce(&mut ColumnDescription),
    numbers: Numbers,
) -> Option<Difference> {
    let config = config(&format!("access = \"read_only\"\nfields = [\"{field}\", \"External_ID__c\"]"));
    let mut org = org();
    change(org[0].fields.iter_mut().find(|f| f.name == field).unwrap());
    let name = field.to_ascii_lowercase();
    let mut there = table(
        "contact",
        &[
            ("id", 23, "integer"),
            ("sfid", 1043, "character varying(18)"),
            (&name, 0, column),
            ("external_id__c", 25, "text"),
        ],
    );
    alter(&mut there.columns[2]);
    let tables = [there];
    let catalog = compile(&config.mappings, &config.defaults(), &org, &tables, None).unwrap();
    let mut found = differences(&catalog, &org, &tables, None, numbers);
    assert!(found.len() < 2, "{found:#?}");
    found.pop()
}

fn kind(sf_type: &'static str, length: u32, digits: u32, scale: u32) -> impl FnOnce(&mut SobjectField) {
    move |field| {
        field.sf_type = sf_type.to_owned();
        (field.length, field.precision, field.scale) = (length, digits, scale);
        field.kind = super::super::field_kind(sf_type, length, scale, &[]);
    }
}

#[test]
fn columns_are_made_wider_and_never_narrower() {
    use Effect::{Metadata, Rewrite};
    let float = Numbers::DoublePrecision;
    for (sf_type, length, digits, scale, column, numbers, expected) in [
        ("string", 80, 0, 0, "character varying(80)", float, None),
        ("string", 40, 0, 0, "character varying(80)", float, None),
        ("string", 120, 0, 0, "character varying(80)", float, Some(("varchar(120)", Metadata))),
        ("textarea", 32_768, 0, 0, "character varying(255)", float, Some(("text", Metadata))),
        ("textarea", 32_768, 0, 0, "text", float, None),
        ("string", 80, 0, 0, "citext", float, None),
        ("reference", 18, 0, 0, "character varying(15)", float, Some(("varchar(18)", Metadata))),
        ("multipicklist", 4099, 0, 0, "character varying(255)", float, Some(("varchar(4099)", Metadata))),
        ("multipicklist", 4099, 0, 0, "text[]", float, None),
        ("double", 0, 18, 4, "double precision", float, None),
        ("double", 0, 18, 4, "numeric", Numbers::Numeric, None),
        ("currency", 0, 18, 2, "numeric(18,2)", Numbers::Numeric, None),
        ("currency", 0, 18, 2, "numeric(16,2)", Numbers::Numeric, Some(("numeric(18,2)", Metadata))),
        ("currency", 0, 18, 4, "numeric(18,2)", Numbers::Numeric, Some(("numeric(20,4)", Rewrite))),
        ("currency", 0, 12, 2, "numeric(18,4)", Numbers::Numeric, None),
        ("double", 0, 18, 2, "integer", float, Some(("double precision", Rewrite))),
        ("double", 0, 18, 2, "integer", Numbers::Numeric, Some(("numeric", Rewrite))),
        ("double", 0, 18, 2, "bigint", float, Some(("numeric", Rewrite))),
        ("int", 0, 9, 0, "smallint", float, Some(("integer", Rewrite))),
        ("int", 0, 9, 0, "integer", float, None),
        ("long", 0, 18, 0, "integer", float, Some(("bigint", Rewrite))),
        ("date", 0, 0, 0, "date", float, None),
        ("datetime", 0, 0, 0, "timestamp(3) without time zone", float, None),
        ("time", 0, 0, 0, "time without time zone", float, None),
        ("boolean", 0, 0, 0, "boolean", float, None),
        ("double", 0, 18, 2, "text", float, None),
        ("string", 80, 0, 0, "my_own_type", float, None),
    ] {
        let found = of("Phone", kind(sf_type, length, digits, scale), column, |_| {}, numbers);
        let wider = found.as_ref().and_then(Difference::statement);
        let expected = expected.map(|(sql_type, effect)| {
            (format!("ALTER TABLE \"salesforce\".\"contact\" ALTER COLUMN \"phone\" TYPE {sql_type}"), effect)
        });
        let expected = expected.as_ref().map(|(sql, effect)| (sql.as_str(), *effect));
        assert_eq!(wider, expected, "{sf_type}({length},{digits},{scale}) in {column}");
        assert_eq!(found.is_some_and(|d| d.is_unattended()), expected.is_some_and(|(_, effect)| effect == Metadata));
    }
}

#[test]
fn another_kind_of_value_is_for_a_person() {
    for (sf_type, column) in [
        ("string", "double precision"),
        ("double", "boolean"),
        ("date", "timestamp without time zone"),
        ("datetime", "date"),
        ("boolean", "integer"),
        ("picklist", "date"),
    ] {
        let found = of("Phone", kind(sf_type, 80, 18, 2), column, |_| {}, Numbers::Numeric).unwrap();
        assert_eq!(found.change, Change::Type, "{sf_type} in {column}");
        assert!(matches!(&found.remedy, Remedy::Person { advice } if advice.contains("USING \"phone\"::text::")));
        assert!(found.is_to_do() && found.statement().is_none());
    }
    let found = of("Phone", kind("string", 90, 0, 0), "character varying(80)", |c| c.domain = true, Numbers::Numeric);
    assert!(matches!(found.unwrap().remedy, Remedy::Person { advice } if advice.contains("domain")));
}

#[test]
fn picklists_need_their_values() {
    let picklist = |values: &'static [&'static str]| {
        move |field: &mut SobjectField| {
            field.sf_type = "picklist".to_owned();
            field.kind = Some(FieldKind::Picklist);
            field.picklist = values.iter().map(|v| (*v).to_owned()).collect();
        }
    };
    let labels = |c: &mut ColumnDescription| c.labels = vec!["Gold".to_owned()];
    let found = of("Phone", picklist(&["Gold", "It's"]), "salesforce.tier", labels, Numbers::Numeric).unwrap();
    let sql = "ALTER TYPE salesforce.tier ADD VALUE IF NOT EXISTS 'It''s'";
    assert_eq!((found.change, found.statement()), (Change::Picklist, Some((sql, Effect::Metadata))));
    let labels = |c: &mut ColumnDescription| c.labels = vec!["Gold".to_owned()];
    assert_eq!(of("Phone", picklist(&["Gold"]), "salesforce.tier", labels, Numbers::Numeric), None);
    let found = of("Phone", picklist(&["Gold", "Platinum"]), "character varying(4)", |_| {}, Numbers::Numeric).unwrap();
    assert!(found.statement().unwrap().0.ends_with("TYPE varchar(8)"));
}

#[test]
fn what_may_be_empty_is_told_and_nothing_to_do() {
    let found = of("Phone", |_| {}, "text", |c| c.nullable = false, Numbers::Numeric).unwrap();
    assert_eq!((found.change, found.is_to_do()), (Change::Required, false));
    assert_eq!(of("Phone", |f| f.nillable = false, "text", |c| c.nullable = false, Numbers::Numeric), None);
}

#[test]
fn new_and_removed_fields_are_told() {
    let fields = "fields = [\"Phone\", \"Active__c\", \"External_ID__c\"]";
    let mut org = org();
    org[0].fields.push(SobjectField { nillable: false, ..field("Active__c", "boolean") });
    let there = table("contact", &[("phone", 25, "text"), ("external_id__c", 25, "text"), ("sfid", 25, "text")]);
    let tables = [there.clone()];
    let judged = |lines: &str| {
        let config = config(lines);
        let catalog = compile(&config.mappings, &config.defaults(), &org, &tables, None).unwrap();
        differences(&catalog, &org, &tables, None, Numbers::Numeric)
    };
    let found = judged(fields);
    let sql = "ALTER TABLE \"salesforce\".\"contact\" ADD COLUMN IF NOT EXISTS \"active__c\" boolean";
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].change, found[0].statement()), (Change::New, Some((sql, Effect::Metadata))));
    assert!(found[0].is_unattended() && found[0].message.contains("none of its values are taken"));
    // Where the rows' own values stand, false everywhere would take the org's values away.
    let found = judged(&format!("initial_merge = \"postgres\"\n{fields}"));
    assert!(found[0].statement().is_some() && !found[0].is_unattended());

    let before = compile(&config(fields).mappings, &config(fields).defaults(), &org, &[], None).unwrap();
    let dropped = differences(&before, &org, &tables, Some(&before), Numbers::Numeric);
    let dropped = dropped.iter().find(|d| d.field == "Active__c").unwrap();
    assert!(
        dropped.statement().is_some() && !dropped.is_unattended(),
        "an empty column in its place would count as edited"
    );
    let mut now = before.clone();
    let mut less = org.clone();
    less[0].fields.retain(|f| f.name != "Phone");
    now.mappings[0].fields.retain(|f| f.name == "External_ID__c");
    let found = differences(&now, &less, &[there], Some(&before), Numbers::Numeric);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].change, found[0].field.as_str(), found[0].is_to_do()), (Change::Removed, "Phone", false));
    assert!(found[0].statement().is_none());
}

#[test]
fn news_name_what_matters_to_a_mapping() {
    let before = org();
    let mut now = org();
    assert!(news(&before, &now).is_empty() && news(&[], &now).is_empty());
    let at = |name: &str| before[0].fields.iter().position(|f| f.name == name).unwrap();
    now[0].fields[at("Email")].length = 200;
    now[0].fields[at("Phone")].nillable = false;
    now[0].fields[at("External_ID__c")].external_id = false;
    now[0].fields[at("Tags__c")].picklist = vec!["A".to_owned()];
    now[0].fields[at("Points__c")].sf_type = "string".to_owned();
    now[0].fields.retain(|f| f.name != "OwnerId");
    now[0].fields.push(field("Tier__c", "picklist"));
    assert_eq!(
        news(&before, &now),
        [
            "Contact.Phone: now required",
            "Contact.Email: length 200 instead of 80",
            "Contact.Points__c: string instead of double",
            "Contact.Tags__c: 1 picklist values more, 0 less",
            "Contact.External_ID__c: no longer an external id",
            "Contact.Tier__c is new (picklist)",
            "Contact.OwnerId is gone, or hidden from the connected user",
        ]
    );
}
