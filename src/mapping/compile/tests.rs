#![allow(clippy::unwrap_used)]

use super::super::finding::Severity;
use super::super::fixtures::{external_id, field, org, reference, sobject, table};
use super::*;
use crate::change::{ForeignEdit, Policy, Side};
use crate::config::Config;

/// The mappings of a file with this text after its head.
fn config(mappings: &str) -> Config {
    let head = "[link]\nname = \"main\"\n[postgres]\nurl = \"postgresql://u@h/d\"\n[salesforce]\n\
        login_url = \"https://x.my.salesforce.com\"\nclient_id = \"i\"\nclient_secret_env = \"S\"\n";
    Config::parse(&format!("{head}{mappings}"), "t").unwrap()
}

fn compiled(text: &str, tables: &[TableDescription], previous: Option<&Catalog>) -> Result<Catalog, Vec<Finding>> {
    let config = config(text);
    compile(&config.mappings, &config.defaults(), &org(), tables, previous)
}

const CONTACT: &str = "[[mapping]]\nsobject = \"contact\"\nexternal_id = \"external_id__c\"\n";

fn contact(fields: &str) -> String {
    format!("{CONTACT}fields = [{fields}, \"External_ID__c\"]\n")
}

#[test]
fn fields_get_kinds_columns_and_owners_from_the_describe() {
    let text = contact(
        "\"lastname\", { name = \"Phone\", column = \"tel\", policy = \"review\" }, \"Points__c\", \"Full__c\", \"Score__c\", \
         { name = \"Email\", owner = \"postgres\", foreign_edit = \"ignore\" }, \"AccountId\", \"account.external_id__c\"",
    );
    let catalog = compiled(&text, &[], None).unwrap();
    let mapping = &catalog.mappings[0];
    assert_eq!(
        (mapping.name.as_str(), mapping.sobject.as_str(), mapping.table.as_str()),
        ("contact", "Contact", "contact")
    );
    assert_eq!(mapping.key_columns, ["id"]);
    let id = mapping.id_field().unwrap();
    assert_eq!((id.column.as_str(), id.owner, id.id), ("sfid", Some(Side::Salesforce), FieldId(0)));
    let named = |name: &str| mapping.field_named(name).unwrap();
    assert_eq!((named("LastName").column.as_str(), named("LastName").owner), ("lastname", None));
    assert_eq!(named("LastName").policy, Policy::LastWriteWins);
    assert_eq!((named("Phone").column.as_str(), named("Phone").policy), ("tel", Policy::Review));
    assert_eq!(named("Points__c").kind, FieldKind::Number { scale: 2 });
    for fixed in ["Full__c", "Score__c", "SystemModstamp", "CreatedDate", "IsDeleted"] {
        assert_eq!(
            (named(fixed).owner, named(fixed).foreign_edit),
            (Some(Side::Salesforce), ForeignEdit::Revert),
            "{fixed}"
        );
        assert!(!named(fixed).createable && !named(fixed).updateable, "{fixed}");
    }
    assert_eq!((named("Email").owner, named("Email").foreign_edit), (Some(Side::Postgres), ForeignEdit::Ignore));
    assert_eq!(named("AccountId").kind, FieldKind::Reference { to: vec!["Account".to_owned()] });
    let parent = named("Account.External_ID__c");
    assert_eq!((parent.column.as_str(), parent.owner), ("account__external_id__c", Some(Side::Postgres)));
    assert!(matches!(&parent.kind, FieldKind::Relationship { relationship, external_id }
        if relationship == "Account" && external_id == "External_ID__c"));
    assert_eq!(mapping.external_id, Some(named("External_ID__c").id));
    assert!(mapping.fields.windows(2).all(|w| w[0].id < w[1].id));
    assert_eq!(mapping.next_field.0 as usize, mapping.fields.len());
}

#[test]
fn a_read_only_mapping_is_salesforces() {
    let text = "[[mapping]]\nsobject = \"Contact\"\naccess = \"read_only\"\nfields = [\"LastName\"]\n";
    let catalog = compiled(text, &[], None).unwrap();
    assert_eq!(catalog.mappings[0].owner, Some(Side::Salesforce));
    assert!(catalog.mappings[0].fields.iter().all(|f| f.owner == Some(Side::Salesforce)));
    let before = compiled(&contact("\"LastName\""), &[], None).unwrap();
    assert_eq!(before.mappings[0].owner, None);
    let config = config(text);
    let (_, findings) = check(&config.mappings, &config.defaults(), &org(), &[], Some(&before));
    assert!(findings.iter().any(|f| f.message.contains("was read_write before")), "{findings:?}");
    let (_, findings) = check(&config.mappings, &config.defaults(), &org(), &[], Some(&catalog));
    assert!(!findings.iter().any(|f| f.message.contains("was read_write before")), "{findings:?}");
}

#[test]
fn ids_stay_with_their_names() {
    let first = compiled(&contact("\"LastName\", \"Phone\""), &[], None).unwrap();
    let id = |c: &Catalog, name: &str| c.mapping_named("contact").unwrap().field_named(name).map(|f| f.id);
    let text = format!(
        "[[mapping]]\nsobject = \"Account\"\nexternal_id = \"External_ID__c\"\nfields = [\"Name\", \"External_ID__c\"]\n{}",
        contact("\"Email\", { name = \"Phone\", policy = \"review\" }")
    );
    let second = compiled(&text, &[], Some(&first)).unwrap();
    assert_eq!(second.mapping_named("contact").unwrap().id, MappingId(0));
    assert_eq!(second.mapping_named("account").unwrap().id, MappingId(1));
    assert_eq!(second.next_mapping, MappingId(2));
    assert_eq!(id(&second, "Phone"), id(&first, "Phone"));
    assert_eq!(id(&second, "LastName"), None);
    assert_eq!(id(&second, "Email").unwrap(), first.mappings[0].next_field);
    // What was mapped once and is mapped again is new.
    let third = compiled(&contact("\"LastName\""), &[], Some(&second)).unwrap();
    assert!(id(&third, "LastName").unwrap() > id(&second, "Email").unwrap());
    assert_eq!(third.next_mapping, MappingId(2));
    // The same again is the same.
    assert_eq!(compiled(&text, &[], Some(&second)).unwrap(), second);
    // The same name for another sObject is another mapping.
    let text = "[[mapping]]\nname = \"contact\"\nsobject = \"Account\"\naccess = \"read_only\"\nfields = [\"Name\"]\n";
    let fourth = compiled(text, &[], Some(&second)).unwrap();
    assert_eq!(fourth.mappings[0].id, MappingId(2));
}

#[test]
fn what_is_wrong_is_said_with_advice() {
    let account = "[[mapping]]\nsobject = \"Account\"\nexternal_id = \"External_ID__c\"\n";
    for (text, subject, message, advice) in [
        (contact("\"LastNam\""), "contact.LastNam", "no field LastNam", "did you mean LastName?"),
        (contact("\"Zebra__c\""), "contact.Zebra__c", "no field Zebra__c", "field-level security"),
        (contact("\"Name\""), "contact.Name", "compound", "FirstName, LastName"),
        (contact("\"Account\""), "contact.Account", "is a relationship", "map AccountId"),
        (contact("\"Photo__c\""), "contact.Photo__c", "type base64", "leave the field out"),
        (
            contact("\"Acount.External_ID__c\""),
            "contact.Acount.External_ID__c",
            "no relationship",
            "did you mean Account?",
        ),
        (
            contact("\"Account.Extrnal_ID__c\""),
            "contact.Account.Extrnal_ID__c",
            "no field",
            "did you mean External_ID__c?",
        ),
        (contact("\"Account.Name\""), "contact.Account.Name", "not an external id", "tick External ID"),
        (contact("\"Owner.External_ID__c\""), "contact.Owner.External_ID__c", "several sObjects", "map OwnerId"),
        (contact("{ name = \"Full__c\", owner = \"postgres\" }"), "contact.Full__c", "cannot be written", "leave out"),
        (
            format!("{account}fields = [\"BillingAddress\", \"External_ID__c\"]"),
            "account.BillingAddress",
            "compound",
            "BillingCity",
        ),
        (format!("{account}fields = [\"Name\"]"), "account.external_id", "is not mapped", "add \"External_ID__c\""),
        (
            account.replace("Account", "Acount") + "fields = [\"Name\"]",
            "acount",
            "no sObject Acount",
            "did you mean Account?",
        ),
        (
            contact("\"Email\"").replace("external_id__c", "Loose__c"),
            "contact.external_id",
            "not unique",
            "tick Unique",
        ),
        (
            contact("\"Email\"").replace("external_id__c", "Email"),
            "contact.external_id",
            "not an external id",
            "tick External ID",
        ),
        (
            contact("\"Email\"").replace("external_id__c", "Externl_ID__c"),
            "contact.external_id",
            "no field",
            "did you mean External_ID__c?",
        ),
        (contact("{ name = \"Email\", column = \"sfid\" }"), "contact.Email", "mapped to two fields", "another column"),
        (contact("{ name = \"Email\", column = \"id\" }"), "contact.Email", "the mirror's own", "another column"),
    ] {
        let findings = compiled(&text, &[], None).unwrap_err();
        let errors: Vec<&Finding> = findings.iter().filter(|f| f.is_error()).collect();
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        let error = errors[0];
        assert_eq!(error.subject, subject, "{error}");
        assert!(error.message.contains(message) && error.advice.contains(advice), "{error}");
    }
}

#[test]
fn an_existing_table_is_compared() {
    let columns = [
        ("id", 23, "integer"),
        ("sfid", 1043, "character varying(18)"),
        ("lastname", 1043, "character varying(40)"),
        ("points__c", 23, "integer"),
        ("external_id__c", 1043, "character varying(80)"),
        ("emial", 25, "text"),
    ];
    let mut existing = table("contact", &columns);
    let config = config(&contact("\"LastName\", \"Points__c\", \"Email\""));
    let run = |t: &TableDescription| check(&config.mappings, &config.defaults(), &org(), std::slice::from_ref(t), None);
    let (catalog, findings) = run(&existing);
    let catalog = catalog.unwrap();
    let said: Vec<String> =
        findings.iter().filter(|f| f.severity == Severity::Warning).map(ToString::to_string).collect();
    let said = said.join("\n");
    for expected in [
        "lastname is character varying(40)",
        "points__c is integer",
        "no column email yet",
        "did you mean column = \"emial\"?",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    // The table has no room for the usual fields, and they are not asked for.
    assert!(catalog.mappings[0].field_named("SystemModstamp").is_none());
    let open: Vec<String> =
        unfinished(&catalog, std::slice::from_ref(&existing)).into_iter().map(|f| f.subject).collect();
    assert_eq!(open, ["contact.Email"]);
    assert_eq!(unfinished(&catalog, &[]).len(), 1);
    existing.key_columns.clear();
    existing.replica_identity = 'n';
    existing.columns[2].generated = true;
    let (catalog, findings) = run(&existing);
    assert!(catalog.is_none());
    let errors: Vec<String> = findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].contains("ADD COLUMN id serial PRIMARY KEY") && errors[1].contains("REPLICA IDENTITY DEFAULT"));
    assert!(errors[2].contains("computed by the database"));
}

#[test]
fn risks_are_warned_of() {
    let config = config(&contact("\"Email\""));
    let (catalog, findings) = check(&config.mappings, &config.defaults(), &org(), &[], None);
    assert!(catalog.is_some());
    let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    assert!(said.contains("cannot be created without LastName"), "{said}");
    assert!(said.contains("does not exist yet; run `tidelock init`"), "{said}");
    let ok = findings.iter().find(|f| f.severity == Severity::Ok).unwrap();
    assert_eq!(serde_json::to_value(ok).unwrap()["severity"], "ok");
}

/// The file says so with a line; this is for mappings that come from elsewhere.
#[test]
fn what_may_be_created_in_salesforce_needs_an_external_id() {
    let mut config = config(&contact("\"LastName\""));
    config.mappings[0].external_id = None;
    let findings = compile(&config.mappings, &config.defaults(), &org(), &[], None).unwrap_err();
    let error = findings.iter().find(|f| f.is_error()).unwrap().to_string();
    assert!(error.contains("choose external_id = one of External_ID__c, or write access"), "{error}");
    config.mappings[0].access = crate::config::Access::ReadOnly;
    assert!(compile(&config.mappings, &config.defaults(), &org(), &[], None).is_ok());
}

#[test]
fn parents_rank_before_children() {
    let text = format!(
        "{}[[mapping]]\nsobject = \"Account\"\nexternal_id = \"External_ID__c\"\n\
         fields = [\"Name\", \"ParentId\", \"External_ID__c\"]\n",
        contact("\"LastName\", \"Account.External_ID__c\"")
    );
    let catalog = compiled(&text, &[], None).unwrap();
    let rank = |name: &str| catalog.mapping_named(name).unwrap().rank;
    assert!(rank("account") < rank("contact"));
    // A circle of two, with a child of both.
    let org = [
        sobject("A__c", vec![reference("B__c", "B__r", &["B__c"]), external_id("X__c")]),
        sobject("B__c", vec![reference("A__c", "A__r", &["A__c"]), external_id("X__c")]),
        sobject(
            "C__c",
            vec![reference("A__c", "A__r", &["A__c"]), reference("B__c", "B__r", &["B__c"]), external_id("X__c")],
        ),
    ];
    let mapping = |name: &str, fields: &str| {
        format!("[[mapping]]\nsobject = \"{name}\"\nexternal_id = \"X__c\"\nfields = [\"X__c\", {fields}]\n")
    };
    let text =
        [mapping("C__c", "\"A__c\", \"B__c\""), mapping("A__c", "\"B__c\""), mapping("B__c", "\"A__c\"")].concat();
    let config = config(&text);
    let catalog = compile(&config.mappings, &config.defaults(), &org, &[], None).unwrap();
    let rank = |name: &str| catalog.mapping_named(name).unwrap().rank;
    assert!(rank("c__c") > rank("a__c") && rank("c__c") > rank("b__c"));
}

#[test]
fn a_business_accounts_name_is_a_field_even_where_person_accounts_make_it_compound() {
    let mut org = org();
    org[1]
        .fields
        .push(crate::mapping::SobjectField { compound: Some("Name".to_owned()), ..field("LastName", "string") });
    let config = config("[[mapping]]\nsobject = \"Account\"\naccess = \"read_only\"\nfields = [\"Name\"]\n");
    assert!(compile(&config.mappings, &config.defaults(), &org, &[], None).is_ok());
}

#[test]
fn a_field_whose_values_have_another_form_is_another_field() {
    let config = config(&contact("\"LastName\", \"Points__c\""));
    let known = compile(&config.mappings, &config.defaults(), &org(), &[], None).unwrap();
    let id = |catalog: &Catalog| catalog.mappings[0].field_named("Points__c").unwrap().id;
    for (sf_type, scale, same) in [
        ("double", 2, true),
        ("double", 1, false),
        ("currency", 2, true),
        // What is known has digits that are not told any more, or the other way round.
        ("int", 0, false),
        ("double", 4, false),
        ("string", 0, false),
        ("date", 0, false),
    ] {
        let mut org = org();
        let field = org[0].fields.iter_mut().find(|f| f.name == "Points__c").unwrap();
        field.kind = crate::mapping::field_kind(sf_type, 80, scale, &[]);
        let now = compile(&config.mappings, &config.defaults(), &org, &[], Some(&known)).unwrap();
        assert_eq!(id(&now) == id(&known), same, "{sf_type} with scale {scale}");
        assert_eq!(now.grown_since(&known).count(), usize::from(!same));
    }
    let mut org = org();
    let phone = org[0].fields.iter_mut().find(|f| f.name == "LastName").unwrap();
    phone.kind = Some(FieldKind::Picklist);
    let now = compile(&config.mappings, &config.defaults(), &org, &[], Some(&known)).unwrap();
    assert_eq!(now.grown_since(&known).count(), 0);
}

#[test]
fn digits_that_a_column_rounds_away_are_left_alone() {
    let config = config(&contact("\"LastName\", \"Points__c\""));
    for (type_name, kept) in [("numeric(18,1)", 1), ("integer", 0), ("double precision", 2), ("numeric", 2)] {
        let there =
            table("contact", &[("lastname", 25, "text"), ("points__c", 0, type_name), ("external_id__c", 25, "text")]);
        let catalog = compile(&config.mappings, &config.defaults(), &org(), &[there], None).unwrap();
        assert_eq!(catalog.mappings[0].field_named("Points__c").unwrap().kind, FieldKind::Number { scale: kept });
    }
}
