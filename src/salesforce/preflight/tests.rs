//! Findings, from descriptions made by hand and from a small server.

use super::*;
use crate::change::{DeletePolicy, FieldId, ForeignEdit, InitialMerge, MappingId, Policy};
use crate::mapping::Severity;
use crate::salesforce::stub::{Stub, refusal};

fn def(id: u16, name: &str, kind: FieldKind) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: name.to_lowercase(),
        kind,
        policy: Policy::LastWriteWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

const TEXT: FieldKind = FieldKind::Text { length: 80 };

fn mapping() -> MappingDef {
    let account = FieldKind::Relationship { relationship: "Account".into(), external_id: "Key__c".into() };
    MappingDef {
        id: MappingId(1),
        name: "contact".into(),
        sobject: "Contact".into(),
        schema: "salesforce".into(),
        table: "contact".into(),
        key_columns: vec!["id".into()],
        fields: vec![
            def(1, "Id", FieldKind::Id),
            def(2, "LastName", TEXT),
            def(3, "Key__c", TEXT),
            def(4, "Account.Key__c", account),
        ],
        next_field: FieldId(5),
        owner: None,
        external_id: Some(FieldId(3)),
        delete: DeletePolicy::UpdateWins,
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: 1,
    }
}

fn field(name: &str, kind: FieldKind) -> SobjectField {
    SobjectField {
        name: name.into(),
        kind: Some(kind),
        sf_type: "string".into(),
        createable: true,
        updateable: true,
        nillable: true,
        ..SobjectField::default()
    }
}

fn contact() -> SobjectDescription {
    let reference = SobjectField {
        reference_to: vec!["Account".into()],
        relationship_name: Some("Account".into()),
        nillable: false,
        ..field("AccountId", FieldKind::Reference { to: vec!["Account".into()] })
    };
    SobjectDescription {
        name: "Contact".into(),
        createable: true,
        updateable: true,
        deletable: true,
        queryable: true,
        fields: vec![
            SobjectField { createable: false, updateable: false, ..field("Id", FieldKind::Id) },
            SobjectField { nillable: false, ..field("LastName", FieldKind::Text { length: 255 }) },
            SobjectField { external_id: true, unique: true, ..field("Key__c", TEXT) },
            reference,
            SobjectField { nillable: false, ..field("Active__c", FieldKind::Boolean) },
        ],
        ..SobjectDescription::default()
    }
}

fn account() -> SobjectDescription {
    let key = SobjectField { external_id: true, ..field("Key__c", TEXT) };
    SobjectDescription { name: "Account".into(), fields: vec![key], ..contact() }
}

fn judged(mapping: &MappingDef, contact: &SobjectDescription) -> Vec<Finding> {
    let described = BTreeMap::from([("Account".to_owned(), Arc::new(account()))]);
    check_mapping(mapping, contact, &described)
}

fn one(mapping: &MappingDef, contact: &SobjectDescription) -> (Severity, String) {
    let mut findings = judged(mapping, contact);
    assert_eq!(findings.len(), 1, "{findings:?}");
    let finding = findings.remove(0);
    assert!(finding.severity == Severity::Ok || !finding.advice.is_empty(), "{finding}");
    (finding.severity, finding.to_string())
}

#[test]
fn a_mapping_that_fits_has_one_good_finding() {
    assert_eq!(one(&mapping(), &contact()).0, Severity::Ok);
}

#[test]
fn what_the_object_does_not_allow_is_found() {
    for (change, severity, word) in [
        (
            &(|c: &mut SobjectDescription| c.queryable = false) as &dyn Fn(&mut SobjectDescription),
            Severity::Error,
            "queried",
        ),
        (&|c| c.createable = false, Severity::Warning, "created"),
        (&|c| c.updateable = false, Severity::Warning, "updated"),
        (&|c| c.deletable = false, Severity::Warning, "deleted"),
    ] {
        let mut contact = contact();
        change(&mut contact);
        let (found, text) = one(&mapping(), &contact);
        assert_eq!(found, severity);
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn what_a_field_does_not_allow_is_found() {
    for (change, severity, word) in [
        (
            &(|f: &mut SobjectField| f.name = "Other".into()) as &dyn Fn(&mut SobjectField),
            Severity::Error,
            "no such field",
        ),
        (&|f| f.kind = None, Severity::Error, "no value that a column can hold"),
        (&|f| f.kind = Some(FieldKind::Date), Severity::Error, "made for another"),
        (&|f| f.updateable = false, Severity::Warning, "is updated"),
        (&|f| (f.createable, f.updateable) = (false, false), Severity::Warning, "created or updated"),
    ] {
        let mut contact = contact();
        contact.fields[1].nillable = true;
        change(&mut contact.fields[1]);
        let (found, text) = one(&mapping(), &contact);
        assert_eq!(found, severity);
        assert!(text.contains(word), "{text}");
    }
    let mut owned = mapping();
    owned.fields[1].owner = Some(Side::Salesforce);
    let mut contact = contact();
    contact.fields[1].updateable = false;
    assert_eq!(one(&owned, &contact).0, Severity::Ok);
}

#[test]
fn external_ids_must_be_there_marked_and_unique() {
    let mut contact = contact();
    contact.fields[2].unique = false;
    assert_eq!(one(&mapping(), &contact).0, Severity::Warning);
    contact.fields[2].external_id = false;
    assert_eq!(one(&mapping(), &contact).0, Severity::Error);
    let none = MappingDef { external_id: None, ..mapping() };
    let (severity, text) = one(&none, &contact);
    assert!(severity == Severity::Warning && text.contains("two records"), "{text}");
}

#[test]
fn required_fields_without_a_column_are_named() {
    let mut contact = contact();
    contact.fields.push(SobjectField { nillable: false, ..field("Stage__c", TEXT) });
    contact.fields.push(SobjectField { nillable: false, defaulted_on_create: true, ..field("OwnerId", TEXT) });
    let (severity, text) = one(&mapping(), &contact);
    assert!(severity == Severity::Warning && text.contains("need Stage__c when"), "{text}");
}

#[test]
fn relationships_are_followed_to_the_parents_key() {
    let with = |relationship: &str, external_id: &str| {
        let mut mapping = mapping();
        let kind = FieldKind::Relationship { relationship: relationship.into(), external_id: external_id.into() };
        mapping.fields[3].kind = kind;
        mapping
    };
    let mut contact = contact();
    contact.fields[3].nillable = true;
    assert!(one(&with("Acct__r", "Key__c"), &contact).1.contains("no such relationship"));
    assert!(one(&with("Account", "Nope__c"), &contact).1.contains("not an external id field of Account"));
    contact.fields[3].reference_to.push("Lead".into());
    assert!(one(&with("Account", "Key__c"), &contact).1.contains("several objects"));
}

#[test]
fn headroom_is_judged_by_what_is_used() {
    let at = |remaining| Some(Allocation { max: 100, remaining });
    for (remaining, severity) in
        [(31, Severity::Ok), (30, Severity::Warning), (10, Severity::Warning), (0, Severity::Warning)]
    {
        let headroom = Headroom { api_requests: at(remaining), delivered_events: at(100), ..Headroom::default() };
        assert_eq!(check_headroom(&headroom)[0].severity, severity, "{remaining}");
    }
    assert_eq!(check_headroom(&Headroom::default())[0].severity, Severity::Warning);
}

#[test]
fn events_are_judged_by_setup_first_and_by_the_topic_second() {
    let no = |kind| Err(Error::new(kind, "no"));
    for (selected, subscribable, severity) in [
        (Some(false), Ok(true), Severity::Error),
        (Some(true), Ok(true), Severity::Ok),
        (None, Ok(true), Severity::Ok),
        (None, Ok(false), Severity::Error),
        (Some(true), Ok(false), Severity::Error),
        (None, no(Kind::Unavailable), Severity::Warning),
        (None, no(Kind::Configuration), Severity::Error),
        (Some(true), no(Kind::Denied), Severity::Error),
    ] {
        assert_eq!(judge_events("Account", None, selected, &subscribable).severity, severity);
    }
    assert_eq!(change_topic("Invoice__c"), "/data/Invoice__ChangeEvent");
    assert_eq!(change_topic("Account"), "/data/AccountChangeEvent");
}

#[test]
fn users_and_versions_are_judged() {
    assert_eq!(check_user("u", Some("System Administrator")).severity, Severity::Warning);
    assert_eq!(check_user("u", Some("Integration")).severity, Severity::Ok);
    assert_eq!(check_user("u", None).severity, Severity::Ok);
    let served = [Version { version: "65.0".into() }, Version { version: "66.0".into() }];
    assert_eq!(judge_version("66.0", &served).severity, Severity::Ok);
    assert!(judge_version("99.0", &served).to_string().contains("the newest is 66.0"));
}

#[tokio::test]
async fn the_whole_check_asks_and_judges() {
    let stub = Stub::start(|asked| match asked.path.split('?').next().unwrap() {
        "/services/data" => (200, r#"[{"label":"x","url":"/services/data/v66.0","version":"66.0"}]"#.into()),
        "limits" => (200, r#"{"DailyApiRequests":{"Max":100,"Remaining":99},"DailyDeliveredPlatformEvents":{"Max":10,"Remaining":10}}"#.into()),
        "query" => (200, r#"{"totalSize":1,"done":true,"records":[{"Username":"sync@x.example","Profile":{"Name":"Integration"}}]}"#.into()),
        "sobjects/Contact/describe" => (404, refusal("NOT_FOUND", "The requested resource does not exist")),
        "tooling/query" => (200, r#"{"totalSize":1,"records":[{"EventChannel":"ChangeEvents","SelectedEntity":"ContactChangeEvent"}]}"#.into()),
        other => panic!("{other}"),
    })
    .await;
    let catalog = Catalog { mappings: vec![mapping()], ..Catalog::default() };
    let findings = check(&stub.rest, &catalog, None, |_| async { Ok(true) }).await;
    let bad: Vec<String> = findings.iter().filter(|f| f.severity > Severity::Ok).map(ToString::to_string).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(bad[0].starts_with("Contact: the org has no such object"), "{bad:?}");
    assert_eq!(findings.len(), 7, "{findings:?}");
}
