#![allow(clippy::unwrap_used)]

use super::super::compile::compile;
use super::super::fixtures::org;
use super::*;
use crate::change::Catalog;
use crate::config::Config;

fn catalog(table: &str) -> Catalog {
    let text = format!(
        "[link]\nname = \"main\"\n[postgres]\nurl = \"postgresql://u@h/d\"\n[salesforce]\n\
         login_url = \"https://x.my.salesforce.com\"\nclient_id = \"i\"\nclient_secret_env = \"S\"\n\
         [[mapping]]\nsobject = \"Contact\"\ntable = \"{table}\"\nexternal_id = \"External_ID__c\"\n\
         fields = [\"LastName\", \"Points__c\", \"Tags__c\", \"AccountId\", \"Account.External_ID__c\", \"External_ID__c\"]\n"
    );
    let config = Config::parse(&text, "t").unwrap();
    compile(&config.mappings, &config.defaults(), &org(), &[], None).unwrap()
}

#[test]
fn tables_are_heroku_connects() {
    let statements = statements(&catalog("contact").mappings[0], &org(), Numbers::DoublePrecision);
    assert_eq!(statements[0], "CREATE SCHEMA IF NOT EXISTS \"salesforce\"");
    let expected = r#"CREATE TABLE IF NOT EXISTS "salesforce"."contact" (
    "lastname" varchar(80),
    "points__c" double precision,
    "tags__c" varchar(4099),
    "accountid" varchar(18),
    "account__external_id__c" varchar(80),
    "external_id__c" varchar(80),
    "systemmodstamp" timestamp without time zone,
    "createddate" timestamp without time zone,
    "isdeleted" boolean,
    "sfid" varchar(18),
    "id" serial PRIMARY KEY,
    "_hc_lastop" varchar(32),
    "_hc_err" text
)"#;
    assert_eq!(statements[1], expected);
    assert!(
        statements[2].starts_with("ALTER TABLE \"salesforce\".\"contact\"\n    ADD COLUMN IF NOT EXISTS \"lastname\"")
    );
    assert_eq!(
        statements[3..],
        [
            "CREATE UNIQUE INDEX IF NOT EXISTS \"hcu_idx_contact_sfid\" ON \"salesforce\".\"contact\" (\"sfid\")",
            "CREATE UNIQUE INDEX IF NOT EXISTS \"hcu_idx_contact_external_id__c\" ON \"salesforce\".\"contact\" (\"external_id__c\")",
            "CREATE INDEX IF NOT EXISTS \"hc_idx_contact_systemmodstamp\" ON \"salesforce\".\"contact\" (\"systemmodstamp\")",
        ]
    );
}

#[test]
fn numbers_can_be_exact() {
    let statements = statements(&catalog("contact").mappings[0], &org(), Numbers::Numeric);
    assert!(statements[1].contains("\"points__c\" numeric(18,2)"), "{}", statements[1]);
}

#[test]
fn a_table_with_another_key_gets_columns_only() {
    let mut mapping = catalog("order").mappings[0].clone();
    mapping.key_columns = vec!["number".to_owned()];
    let statements = statements(&mapping, &org(), Numbers::DoublePrecision);
    assert!(statements.iter().all(|s| !s.starts_with("CREATE TABLE") && !s.contains("_hc_lastop")));
    assert!(statements[1].starts_with("ALTER TABLE \"salesforce\".\"order\""));
}

#[test]
fn long_index_names_are_cut_and_kept_apart() {
    let table = "t".repeat(60);
    let first = index_name("hcu_idx", &table, "sfid", &[]);
    assert_eq!(first.len(), 63);
    let second = index_name("hcu_idx", &table, "external_id__c", &[(first.clone(), String::new(), true)]);
    assert_eq!(second.len(), 63);
    assert_ne!(first, second);
}

#[test]
fn identifiers_and_texts_are_quoted() {
    assert_eq!(quote_ident("we\"ird"), "\"we\"\"ird\"");
    assert_eq!(qualified("s", "user"), "\"s\".\"user\"");
    assert_eq!(quote_literal("it's"), "'it''s'");
}
