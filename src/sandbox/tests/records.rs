//! Records through REST: rows, upserts, collections, queries, describe, logins, limits.

use serde_json::{Value as Json, json};

use super::support::{Fixture, start, start_with};
use crate::sandbox::{Client, Config, Person, Seed};

fn item_code(answer: &Json, index: usize) -> &str {
    answer[index]["errors"][0]["statusCode"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_row_is_created_read_changed_and_deleted() {
    let org = start().await;
    let id = org.create("Account", json!({"Name": "  Acme  ", "BillingCity": "Köln", "AnnualRevenue": 10.6})).await;
    assert_eq!(id.len(), 18);
    let row = org.ok("GET", &format!("/sobjects/Account/{id}"), Json::Null).await;
    assert_eq!(row["Name"], "Acme");
    assert_eq!(row["AnnualRevenue"], 11.0);
    assert_eq!(row["BillingAddress"]["city"], "Köln");
    assert_eq!(row["ShippingAddress"], Json::Null);
    assert_eq!(row["attributes"]["type"], "Account");
    assert!(row["CreatedDate"].as_str().unwrap().ends_with(".000+0000"));
    let path = format!("/sobjects/account/{}", &id[..15]);
    org.ok("PATCH", &path, json!({"Name": "Acme 2", "BillingCity": ""})).await;
    let row = org.ok("GET", &format!("{path}?fields=Name,BillingCity"), Json::Null).await;
    assert_eq!((row["Name"].as_str(), &row["BillingCity"]), (Some("Acme 2"), &Json::Null));
    assert_eq!(row.get("Phone"), None);
    org.ok("DELETE", &path, Json::Null).await;
    assert_eq!(org.refused("GET", &path, Json::Null).await, (404, "ENTITY_IS_DELETED".into()));
    assert_eq!(org.refused("DELETE", &path, Json::Null).await, (404, "ENTITY_IS_DELETED".into()));
    org.running.admin("POST", "/undelete", &json!({"ids": [id]})).unwrap();
    org.ok("GET", &path, Json::Null).await;
    org.running.stop().await.unwrap();
}

#[tokio::test]
async fn bad_rows_are_refused_with_their_codes() {
    let org = start().await;
    let parent = org.create("Account", json!({"Name": "Parent", "External_ID__c": "P1"})).await;
    for (fields, code) in [
        (json!({}), "REQUIRED_FIELD_MISSING"),
        (json!({"Name": "x".repeat(256)}), "STRING_TOO_LONG"),
        (json!({"Name": "x", "Nope": 1}), "INVALID_FIELD"),
        (json!({"Name": "x", "CreatedDate": "2020-01-01"}), "INVALID_FIELD_FOR_INSERT_UPDATE"),
        (json!({"Name": "x", "Tier__c": "Bronze"}), "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST"),
        (json!({"Name": "x", "External_ID__c": "p1"}), "DUPLICATE_VALUE"),
        (json!({"Name": "x", "ParentId": "001000000000001AAA"}), "INVALID_CROSS_REFERENCE_KEY"),
        (json!({"Name": "x", "ParentId": "003000000000001"}), "FIELD_INTEGRITY_EXCEPTION"),
        (json!({"Name": "x", "ParentId": "zz"}), "MALFORMED_ID"),
        (json!({"Name": "x", "NumberOfEmployees": "many"}), "JSON_PARSER_ERROR"),
        (json!({"Name": "x", "Parent": {"External_ID__c": "unknown"}}), "INVALID_FIELD"),
        (json!({"Name": "x", "Id": parent}), "INVALID_FIELD_FOR_INSERT_UPDATE"),
    ] {
        assert_eq!(org.refused("POST", "/sobjects/Account", fields.clone()).await, (400, code.into()), "{fields}");
    }
    let (status, answer) = org.rest("POST", "/sobjects/Invoice__c", json!({"Amount__c": -1})).await;
    assert_eq!(status, 400);
    assert_eq!(answer[0]["errorCode"], "FIELD_CUSTOM_VALIDATION_EXCEPTION");
    assert_eq!(answer[0]["fields"], json!(["Amount__c"]));
    assert_eq!(org.refused("GET", "/sobjects/Nope/describe", Json::Null).await, (404, "INVALID_TYPE".into()));
    assert_eq!(org.refused("GET", "/sobjects/Account/001000000000001AAA", Json::Null).await, (404, "NOT_FOUND".into()));
    assert_eq!(org.refused("PATCH", "/sobjects/Account/001000000000001AAA", json!({})).await.0, 404);
    assert_eq!(org.refused("GET", "/nonsense", Json::Null).await, (404, "NOT_FOUND".into()));
    let child = org.create("Account", json!({"Name": "Child", "Parent": {"External_ID__c": "P1"}})).await;
    let row = org.ok("GET", &format!("/sobjects/Account/{child}"), Json::Null).await;
    assert_eq!(row["ParentId"], parent.as_str());
}

#[tokio::test]
async fn rows_are_upserted_by_external_id() {
    let org = start().await;
    let path = "/sobjects/Account/External_ID__c/a%2F1%20b";
    let (status, first) = org.rest("PATCH", path, json!({"Name": "One"})).await;
    assert_eq!((status.as_u16(), &first["created"]), (201, &json!(true)));
    let (status, second) = org.rest("PATCH", path, json!({"Name": "Two"})).await;
    assert_eq!((status.as_u16(), &second["created"]), (200, &json!(false)));
    assert_eq!(first["id"], second["id"]);
    assert_eq!(org.ok("GET", path, Json::Null).await["Name"], "Two");
    let only = "/sobjects/Account/External_ID__c/other?updateOnly=true";
    assert_eq!(org.refused("PATCH", only, json!({"Name": "x"})).await, (404, "NOT_FOUND".into()));
    assert_eq!(org.refused("PATCH", "/sobjects/Account/Phone/1", json!({})).await, (404, "NOT_FOUND".into()));
    assert_eq!(org.refused("PATCH", path, json!({"External_ID__c": "z"})).await, (400, "INVALID_FIELD".into()));
    org.ok("DELETE", path, Json::Null).await;
    assert_eq!(org.refused("GET", path, Json::Null).await, (404, "NOT_FOUND".into()));
    // A key that tells upper from lower case.
    org.ok("PATCH", "/sobjects/Invoice__c/Key__c/k", json!({"Amount__c": 1})).await;
    org.ok("PATCH", "/sobjects/Invoice__c/Key__c/K", json!({"Amount__c": 2})).await;
    assert_eq!(org.query("SELECT COUNT() FROM Invoice__c").await["totalSize"], 2);
}

#[tokio::test]
async fn collections_succeed_and_fail_record_by_record() {
    let org = start().await;
    let record = |name: Json| json!({"attributes": {"type": "Account"}, "Name": name, "External_ID__c": name});
    let body = |records: Json, all: bool| json!({"allOrNone": all, "records": records});
    let records = json!([record(json!("A")), record(Json::Null), record(json!("B"))]);
    let answer = org.ok("POST", "/composite/sobjects", body(records.clone(), false)).await;
    assert_eq!((answer[0]["success"].as_bool(), answer[1]["success"].as_bool()), (Some(true), Some(false)));
    assert_eq!(item_code(&answer, 1), "REQUIRED_FIELD_MISSING");
    let ids: Vec<&str> = [0, 2].iter().map(|i| answer[*i]["id"].as_str().unwrap()).collect();
    let update = |id: &str, name: &str| json!({"attributes": {"type": "Account"}, "id": id, "Name": name});
    let records = json!([update(ids[0], "A2"), update(ids[0], "A3"), update("001000000000001AAA", "x")]);
    let answer = org.ok("PATCH", "/composite/sobjects", body(records, false)).await;
    assert_eq!(answer[0]["success"], true);
    assert_eq!(item_code(&answer, 1), "DUPLICATE_VALUE");
    assert_eq!(item_code(&answer, 2), "INVALID_CROSS_REFERENCE_KEY");
    let records = json!([update(ids[0], "A4"), update("001000000000001AAA", "x")]);
    let answer = org.ok("PATCH", "/composite/sobjects", body(records, true)).await;
    assert_eq!(item_code(&answer, 0), "ALL_OR_NONE_OPERATION_ROLLED_BACK");
    let upserts = json!([record(json!("B")), record(json!("C")), record(json!("c"))]);
    let answer = org.ok("PATCH", "/composite/sobjects/Account/External_ID__c", body(upserts, false)).await;
    assert_eq!((&answer[0]["created"], &answer[1]["created"]), (&json!(false), &json!(true)));
    assert_eq!(item_code(&answer, 2), "DUPLICATE_VALUE");
    let wanted = json!({"ids": [ids[0], "001000000000001AAA", ids[1]], "fields": ["Name"]});
    let answer = org.ok("POST", "/composite/sobjects/Account", wanted).await;
    assert_eq!(
        (answer[0]["Name"].as_str(), &answer[1], answer[2]["Name"].as_str()),
        (Some("A2"), &Json::Null, Some("B"))
    );
    let answer = org.ok("DELETE", &format!("/composite/sobjects?ids={},{}", ids[0], ids[0]), Json::Null).await;
    assert_eq!((&answer[0]["success"], item_code(&answer, 1)), (&json!(true), "ENTITY_IS_DELETED"));
    let many: Vec<Json> = (0..201).map(|i| record(json!(format!("n{i}")))).collect();
    assert_eq!(org.refused("POST", "/composite/sobjects", body(json!(many), false)).await.0, 400);
    let wrong = json!([record(json!("ok")), {"attributes": {"type": "Account"}, "Name": 5}]);
    let refused = org.refused("POST", "/composite/sobjects", body(wrong, false)).await;
    assert_eq!(refused, (400, "JSON_PARSER_ERROR".into()));
}

async fn seeded() -> Fixture {
    start_with(Config {
        seed: Seed { accounts: 450, contacts: 60, opportunities: 30, cases: 20, ..Seed::default() },
        ..Config::default()
    })
    .await
}

#[tokio::test]
async fn queries_are_answered_page_by_page() {
    let org = seeded().await;
    let url = format!("{}/services/data/v66.0/query?q=SELECT+Id,Name+FROM+Account+ORDER+BY+Id", org.running.url());
    let mut names = Vec::new();
    let mut next = Some(url);
    let mut pages = 0;
    while let Some(url) = next {
        let request = org.http.get(url).bearer_auth(&org.token).header("Sforce-Query-Options", "batchSize=200");
        let page: Json = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(page["totalSize"], 450);
        names.extend(page["records"].as_array().unwrap().iter().map(|r| r["Id"].as_str().unwrap().to_owned()));
        next = page["nextRecordsUrl"].as_str().map(|path| format!("{}{path}", org.running.url()));
        assert_eq!(page["done"], next.is_none());
        pages += 1;
    }
    assert_eq!((names.len(), pages), (450, 3));
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(org.refused("GET", "/query/01g000000000000-200", Json::Null).await.1, "INVALID_QUERY_LOCATOR");
}

#[tokio::test]
async fn soql_finds_what_it_should() {
    let org = start().await;
    let a = org.create("Account", json!({"Name": "Älpha", "Industry": "Energy", "NumberOfEmployees": 5})).await;
    let b = org.create("Account", json!({"Name": "Beta", "AnnualRevenue": 100})).await;
    let contact = org.create("Contact", json!({"LastName": "Weber", "FirstName": "Rosa", "AccountId": a})).await;
    org.create("Invoice__c", json!({"Account__c": b, "Amount__c": 7.5})).await;
    let ids = async |condition: &str| -> Vec<String> {
        let answer = org.query(&format!("SELECT Id FROM Account WHERE {condition} ORDER BY Name")).await;
        assert!(answer["records"].is_array(), "{condition}: {answer}");
        answer["records"].as_array().unwrap().iter().map(|r| r["Id"].as_str().unwrap().to_owned()).collect()
    };
    let both = vec![b.clone(), a.clone()];
    let (only_a, only_b) = (vec![a.clone()], vec![b.clone()]);
    assert_eq!(ids("Name = 'äLPHA'").await, only_a);
    assert_eq!(ids("Name LIKE '%a'").await, both);
    assert_eq!(ids("Industry = null").await, only_b);
    assert_eq!(ids("Industry != 'Energy'").await, only_b);
    assert_eq!(ids(&format!("Id IN ('{}', '{}')", &a[..15], b)).await, both);
    assert_eq!(ids(&format!("Id NOT IN ('{a}')")).await, only_b);
    assert_eq!(ids(&format!("Id > '{a}'")).await, only_b);
    assert_eq!(ids("AnnualRevenue >= 100 AND (NOT Name = 'x')").await, only_b);
    assert_eq!(ids("CreatedDate = TODAY AND SystemModstamp > 2020-01-01T00:00:00Z").await.len(), 2);
    assert_eq!(ids("Id IN (SELECT AccountId FROM Contact)").await, only_a);
    assert_eq!(ids("External_ID__c = 'none'").await, [""; 0]);
    let answer = org
        .query("SELECT Name, Account.Name, Account.Owner.Username FROM Contact WHERE Account.Industry = 'Energy'")
        .await;
    let row = &answer["records"][0];
    assert_eq!((row["Name"].as_str(), row["Account"]["Name"].as_str()), (Some("Rosa Weber"), Some("Älpha")));
    assert_eq!(row["Account"]["Owner"]["Username"], "integration@sandbox.example");
    assert_eq!(row["attributes"]["url"], format!("/services/data/v66.0/sobjects/Contact/{contact}"));
    let answer = org
        .query("SELECT Id, (SELECT Amount__c FROM Invoices__r), (SELECT Id FROM Contacts) FROM Account ORDER BY Name")
        .await;
    assert_eq!(answer["records"][0]["Invoices__r"]["records"][0]["Amount__c"], 7.5);
    assert_eq!(answer["records"][0]["Contacts"], Json::Null);
    let answer = org.query("SELECT Industry, COUNT(Id) n, MAX(SystemModstamp) FROM Account GROUP BY Industry").await;
    assert_eq!((&answer["totalSize"], &answer["records"][0]["n"]), (&json!(2), &json!(1)));
    let answer = org.query("SELECT FIELDS(STANDARD) FROM Account LIMIT 1").await;
    assert!(answer["records"][0].get("SystemModstamp").is_some());
    for (soql, code) in [
        ("SELECT Nope FROM Account", "INVALID_FIELD"),
        ("SELECT Id FROM Nope", "INVALID_TYPE"),
        ("SELECT Id FROM Account WHERE Description = 'x'", "INVALID_FIELD"),
        ("SELECT Id FROM Account WHERE IsDeleted = 'x'", "INVALID_FIELD"),
        ("SELECT Id FROM Account WHERE", "MALFORMED_QUERY"),
    ] {
        assert_eq!(org.query(soql).await[0]["errorCode"], code, "{soql}");
    }
}

#[tokio::test]
async fn the_recycle_bin_is_in_query_all_and_deleted() {
    let org = start().await;
    let account = org.create("Account", json!({"Name": "Gone"})).await;
    let contact = org.create("Contact", json!({"LastName": "Gone too", "AccountId": account})).await;
    let case = org.create("Case", json!({"Subject": "s"})).await;
    let held = org.create("Account", json!({"Name": "Held"})).await;
    org.ok("PATCH", &format!("/sobjects/Case/{case}"), json!({"AccountId": held})).await;
    assert_eq!(org.refused("DELETE", &format!("/sobjects/Account/{held}"), Json::Null).await.1, "DELETE_FAILED");
    org.ok("DELETE", &format!("/sobjects/Account/{account}"), Json::Null).await;
    assert_eq!(org.query("SELECT COUNT() FROM Contact").await["totalSize"], 0);
    let all = org.ok("GET", "/queryAll?q=SELECT+Id+FROM+Contact+WHERE+IsDeleted=true", Json::Null).await;
    assert_eq!(all["records"][0]["Id"], contact.as_str());
    let span = "start=2026-01-01T00:00:00%2B00:00&end=2099-01-01T00:00:00Z";
    let (status, _) = org.rest("GET", &format!("/sobjects/Contact/deleted/?{span}"), Json::Null).await;
    assert_eq!(status, 400, "the start is too long ago");
    let now = org.ok("GET", &format!("/sobjects/Account/{held}"), Json::Null).await;
    let day = &now["CreatedDate"].as_str().unwrap()[..10];
    let span = format!("start={day}T00:00:00%2B00:00&end=2099-01-01T00:00:00Z");
    let deleted = org.ok("GET", &format!("/sobjects/Contact/deleted/?{span}"), Json::Null).await;
    assert_eq!(deleted["deletedRecords"][0]["id"], contact.as_str());
    let updated = org.ok("GET", &format!("/sobjects/Account/updated?{span}"), Json::Null).await;
    assert_eq!(updated["ids"], json!([held]));
    org.running.admin("POST", "/undelete", &json!({"ids": [account]})).unwrap();
    assert_eq!(org.query("SELECT COUNT() FROM Contact").await["totalSize"], 1);
}

#[tokio::test]
async fn describe_has_what_clients_look_for() {
    let org = start().await;
    let global = org.ok("GET", "/sobjects/", Json::Null).await;
    assert!(global["sobjects"].as_array().unwrap().iter().any(|o| o["name"] == "Invoice__c"));
    let describe = org.ok("GET", "/sobjects/Account/describe", Json::Null).await;
    let field = |name: &str| describe["fields"].as_array().unwrap().iter().find(|f| f["name"] == name).unwrap().clone();
    assert_eq!(field("BillingCity")["compoundFieldName"], "BillingAddress");
    assert_eq!(
        (&field("External_ID__c")["externalId"], &field("External_ID__c")["unique"]),
        (&json!(true), &json!(true))
    );
    assert_eq!((&field("Id")["type"], &field("Id")["soapType"]), (&json!("id"), &json!("tns:ID")));
    assert_eq!(field("ParentId")["referenceTo"], json!(["Account"]));
    assert_eq!(field("Name")["nillable"], false);
    assert_eq!(field("Tier__c")["restrictedPicklist"], true);
    assert!(field("Name").as_object().unwrap().len() >= 55);
    let children = describe["childRelationships"].as_array().unwrap();
    assert!(children.iter().any(|c| c["relationshipName"] == "Invoices__r" && c["cascadeDelete"] == true));
    let contact = org.ok("GET", "/sobjects/Contact/describe", Json::Null).await;
    let name = contact["fields"].as_array().unwrap().iter().find(|f| f["name"] == "LastName").unwrap();
    assert_eq!(name["compoundFieldName"], "Name");
}

#[tokio::test]
async fn the_org_works_some_values_out_itself() {
    let org = start().await;
    let id = org
        .create("Opportunity", json!({"Name": "o", "StageName": "Closed Won", "CloseDate": "2026-01-31", "Amount": 50}))
        .await;
    let row = org.ok("GET", &format!("/sobjects/Opportunity/{id}"), Json::Null).await;
    assert_eq!(
        (&row["IsWon"], &row["Probability"], &row["ExpectedRevenue"]),
        (&json!(true), &json!(100.0), &json!(50.0))
    );
    let id = org
        .create("Invoice__c", json!({"Amount__c": "3.005", "Place__Latitude__s": 1, "Place__Longitude__s": 2}))
        .await;
    let row = org.ok("GET", &format!("/sobjects/Invoice__c/{id}"), Json::Null).await;
    assert_eq!((row["Name"].as_str(), &row["Amount__c"]), (Some("INV-00001001"), &json!(3.01)));
    assert_eq!(row["Place__c"]["latitude"], 1.0);
    let id = org.create("Account", json!({"Name": "a", "Site": "north"})).await;
    let row = org.ok("GET", &format!("/sobjects/Account/{id}"), Json::Null).await;
    assert_eq!(row["TickerSymbol"], "NORTH");
}

#[tokio::test]
async fn logins_and_limits() {
    let mut org = start_with(Config {
        daily_requests: 3,
        users: vec![Person::named("Ann Admin").with_password("pässword")],
        clients: vec![Client::new("tidelock", "tidelock-secret", "integration@sandbox.example")],
        ..Config::default()
    })
    .await;
    let base = org.running.https_url();
    let token = async |form: &[(&str, &str)]| {
        let answer = org.http.post(format!("{base}/services/oauth2/token")).form(form).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Json>().await.unwrap())
    };
    let password = [
        ("grant_type", "password"),
        ("client_id", "tidelock"),
        ("client_secret", "tidelock-secret"),
        ("username", "ann.admin@sandbox.example"),
        ("password", "pässword"),
    ];
    let (status, answer) = token(&password).await;
    assert_eq!((status, &answer["instance_url"]), (200, &json!(base)), "{answer}");
    let ann = answer["access_token"].as_str().unwrap().to_owned();
    let info = org.http.get(format!("{base}/services/oauth2/userinfo")).bearer_auth(&ann);
    let info: Json = info.send().await.unwrap().json().await.unwrap();
    assert_eq!(info["preferred_username"], "ann.admin@sandbox.example");
    assert_eq!(info["organization_id"], org.running.org_id());
    let wrong = [("grant_type", "client_credentials"), ("client_id", "tidelock"), ("client_secret", "x")];
    let (status, answer) = token(&wrong).await;
    assert_eq!((status, &answer["error"]), (400, &json!("invalid_client")));
    assert_eq!(token(&[("grant_type", "nonsense")]).await.1["error"], "unsupported_grant_type");
    let versions: Json = org.http.get(format!("{base}/services/data")).send().await.unwrap().json().await.unwrap();
    assert_eq!(versions[35], json!({"label": "Spring '26", "url": "/services/data/v66.0", "version": "66.0"}));
    let first = org.send("GET", "/limits/", Json::Null, &[]).await.unwrap();
    assert_eq!(first.headers()["sforce-limit-info"], "api-usage=1/3");
    org.ok("GET", "/", Json::Null).await;
    org.ok("GET", "/limits/recordCount?sObjects=Account", Json::Null).await;
    assert_eq!(org.refused("GET", "/limits", Json::Null).await, (403, "REQUEST_LIMIT_EXCEEDED".into()));
    org.running.admin("POST", "/reset-usage", &Json::Null).unwrap();
    org.running.admin("POST", "/expire-tokens", &Json::Null).unwrap();
    assert_eq!(org.refused("GET", "/limits", Json::Null).await, (401, "INVALID_SESSION_ID".into()));
    org.login().await;
    org.ok("GET", "/limits", Json::Null).await;
    let soap = "<se:Envelope><se:Body><n:login><n:username>ann.admin@sandbox.example</n:username>\
                <n:password>pässword</n:password></n:login></se:Body></se:Envelope>";
    let answer = org.http.post(format!("{base}/services/Soap/u/59.0")).body(soap).send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("<sessionId>00D"));
    let answer =
        org.http.post(format!("{base}/services/Soap/u/59.0")).body(soap.replace("pässword", "x")).send().await.unwrap();
    assert_eq!(answer.status(), 500);
    assert!(answer.text().await.unwrap().contains("<sf:exceptionCode>INVALID_LOGIN"));
}

#[tokio::test]
async fn composite_requests_refer_to_each_other() {
    let org = start().await;
    let part = |method: &str, url: &str, reference: &str, body: Json| json!({"method": method, "url": format!("/services/data/v66.0{url}"), "referenceId": reference, "body": body});
    let requests = json!([
        part("POST", "/sobjects/Account", "a", json!({"Name": "A"})),
        part("POST", "/sobjects/Contact", "c", json!({"LastName": "C", "AccountId": "@{a.id}"})),
        part("GET", "/sobjects/Contact/@{c.id}?fields=AccountId", "g", Json::Null),
    ]);
    let answer = org.ok("POST", "/composite", json!({"allOrNone": true, "compositeRequest": requests})).await;
    let parts = answer["compositeResponse"].as_array().unwrap();
    assert_eq!(parts[2]["body"]["AccountId"], parts[0]["body"]["id"], "{answer}");
    assert!(parts[0]["httpHeaders"]["Location"].is_string());
    let requests = json!([
        part("POST", "/sobjects/Account", "a", json!({"Name": "B"})),
        part("POST", "/sobjects/Contact", "c", json!({"AccountId": "@{a.id}"})),
    ]);
    let answer = org.ok("POST", "/composite", json!({"allOrNone": true, "compositeRequest": requests})).await;
    assert_eq!(answer["compositeResponse"][0]["body"][0]["errorCode"], "PROCESSING_HALTED");
    assert_eq!(org.query("SELECT COUNT() FROM Account").await["totalSize"], 1);
    let tree = json!({"records": [{"attributes": {"type": "Account", "referenceId": "r1"}, "Name": "T",
        "Contacts": {"records": [{"attributes": {"type": "Contact", "referenceId": "r2"}, "LastName": "U"}]}}]});
    let answer = org.ok("POST", "/composite/tree/Account", tree).await;
    assert_eq!((&answer["hasErrors"], answer["results"].as_array().unwrap().len()), (&json!(false), 2));
    let batch = json!({"batchRequests": [{"method": "GET", "url": "v66.0/limits"}, {"method": "GET", "url": "v66.0/sobjects/Nope"}]});
    let answer = org.ok("POST", "/composite/batch", batch).await;
    assert_eq!((&answer["hasErrors"], &answer["results"][0]["statusCode"]), (&json!(true), &json!(200)));
}

#[tokio::test]
async fn a_jwt_is_accepted_when_its_key_fits() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let pem =
        |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
    let key = pem("PRIVATE KEY", private.as_ref());
    let client =
        Client::new("app", "", "integration@sandbox.example").with_public_key(&pem("PUBLIC KEY", public.as_ref()));
    let org = start_with(Config {
        clients: vec![Client::new("tidelock", "tidelock-secret", "integration@sandbox.example"), client],
        ..Config::default()
    })
    .await;
    let login = async |expires: Json, issuer: &str| {
        let claims = json!({"iss": issuer, "sub": "bob.seller@sandbox.example", "aud": "https://login.salesforce.com", "exp": expires});
        let signed =
            encode(&Header::new(Algorithm::RS256), &claims, &EncodingKey::from_rsa_pem(key.as_bytes()).unwrap())
                .unwrap();
        let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &signed)];
        let url = format!("{}/services/oauth2/token", org.running.url());
        org.http.post(url).form(&form).send().await.unwrap().json::<Json>().await.unwrap()
    };
    let now = crate::clock::system().now() / 1_000_000;
    assert!(login(json!(now + 100), "app").await["access_token"].is_string());
    assert!(login(json!((now + 100).to_string()), "app").await["access_token"].is_string());
    assert_eq!(login(json!(now - 1), "app").await["error"], "invalid_grant");
    assert_eq!(login(json!(now + 100), "nobody").await["error"], "invalid_client_id");
    assert_eq!(login(json!(now + 100), "tidelock").await["error"], "invalid_grant");
}

#[tokio::test]
async fn bulk_jobs_take_records_in_and_give_them_out() {
    let org = start().await;
    let put = async |id: &str, csv: &str| {
        let url = format!("{}/services/data/v66.0/jobs/ingest/{id}/batches", org.running.url());
        let request = org.http.put(url).bearer_auth(&org.token).header("content-type", "text/csv");
        assert_eq!(request.body(csv.to_owned()).send().await.unwrap().status(), 201);
    };
    let csv = async |path: String| {
        let response = org.send("GET", &path, Json::Null, &[]).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let locator = response.headers().get("sforce-locator").map(|l| l.to_str().unwrap().to_owned());
        (response.text().await.unwrap(), locator)
    };
    let ingest = async |body: Json, content: &str| {
        let job = org.ok("POST", "/jobs/ingest", body).await;
        let id = job["id"].as_str().unwrap().to_owned();
        assert_eq!(job["contentUrl"], format!("services/data/v66.0/jobs/ingest/{id}/batches"));
        put(&id, content).await;
        let closed = org.ok("PATCH", &format!("/jobs/ingest/{id}"), json!({"state": "UploadComplete"})).await;
        assert_eq!(closed["state"], "UploadComplete");
        (id.clone(), org.ok("GET", &format!("/jobs/ingest/{id}"), Json::Null).await)
    };
    let body = json!({"object": "Account", "operation": "upsert", "externalIdFieldName": "External_ID__c", "contentType": "CSV"});
    let content = "Name,External_ID__c,AnnualRevenue,Phone\nA,k1,912000000,1\n\"B, \"\"b\"\"\",k2,,#N/A\n,k3,5,\n";
    let (id, job) = ingest(body.clone(), content).await;
    assert_eq!((job["state"].as_str(), &job["numberRecordsFailed"]), (Some("JobComplete"), &json!(1)), "{job}");
    let (good, _) = csv(format!("/jobs/ingest/{id}/successfulResults")).await;
    assert!(good.starts_with("\"sf__Id\",\"sf__Created\",\"Name\",\"External_ID__c\""), "{good}");
    assert!(good.contains("\"true\",\"B, \"\"b\"\"\",\"k2\""), "{good}");
    let (bad, _) = csv(format!("/jobs/ingest/{id}/failedResults")).await;
    assert!(bad.contains("\"REQUIRED_FIELD_MISSING:Required fields are missing: [Name]:Name --\""), "{bad}");
    let (_, job) = ingest(json!({"object": "Account", "operation": "insert"}), "Nope\n1\n").await;
    assert_eq!(job["state"], "Failed");
    let (_, job) =
        ingest(json!({"object": "Account", "operation": "insert", "lineEnding": "LF"}), "Name\r\n1\r\n").await;
    assert!(job["errorMessage"].as_str().unwrap().contains("LineEnding is invalid"));
    let query = json!({"operation": "query", "query": "SELECT Name, AnnualRevenue, Owner.Name, CreatedDate FROM Account ORDER BY Name"});
    let job = org.ok("POST", "/jobs/query", query).await;
    let id = job["id"].as_str().unwrap();
    assert_eq!(org.refused("GET", &format!("/jobs/query/{id}/results"), Json::Null).await.1, "INVALIDJOBSTATE");
    assert_eq!(org.ok("GET", &format!("/jobs/query/{id}"), Json::Null).await["state"], "JobComplete");
    let (page, locator) = csv(format!("/jobs/query/{id}/results?maxRecords=1")).await;
    assert!(
        page.starts_with(
            "\"Name\",\"AnnualRevenue\",\"Owner.Name\",\"CreatedDate\"\n\"A\",\"9.12E8\",\"Integration User\",\"20"
        ),
        "{page}"
    );
    assert!(page.ends_with(".000Z\"\n"), "{page}");
    let (page, last) = csv(format!("/jobs/query/{id}/results?maxRecords=1&locator={}", locator.unwrap())).await;
    assert!(page.contains("\"B, \"\"b\"\"\",\"\""), "{page}");
    assert_eq!(last.as_deref(), Some("null"));
    for soql in ["SELECT COUNT() FROM Account", "SELECT BillingAddress FROM Account", "SELECT Nope FROM Account"] {
        assert_eq!(
            org.refused("POST", "/jobs/query", json!({"operation": "query", "query": soql})).await.1,
            "API_ERROR"
        );
    }
    assert_eq!(org.ok("GET", "/jobs/ingest", Json::Null).await["records"].as_array().unwrap().len(), 3);
    org.ok("DELETE", &format!("/jobs/query/{id}"), Json::Null).await;
}
