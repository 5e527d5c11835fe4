//! The checks of a database against real servers.

#![allow(clippy::unwrap_used)]

use secrecy::SecretString;
use tidelock::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, MappingDef, MappingId, Policy,
};
use tidelock::config::Capture;
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::mapping::{Finding, Severity};
use tidelock::postgres::preflight::{Request, Stage, preflight};
use tidelock::postgres::{Endpoint, introspect::describe_tables};

fn mapping(id: u16, table: &str) -> MappingDef {
    let field = |id: u16, name: &str, column: &str, kind| FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: column.into(),
        kind,
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    };
    MappingDef {
        id: MappingId(id),
        name: table.into(),
        sobject: table.into(),
        schema: "salesforce".into(),
        table: table.into(),
        key_columns: vec!["id".into()],
        fields: vec![
            field(0, "Id", "sfid", FieldKind::Id),
            field(1, "Name", "name", FieldKind::Text { length: 80 }),
            field(2, "Ext__c", "ext__c", FieldKind::Text { length: 40 }),
        ],
        next_field: FieldId(3),
        owner: None,
        external_id: Some(FieldId(2)),
        delete: DeletePolicy::UpdateWins,
        truncate: tidelock::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: id,
    }
}

fn catalog(tables: &[&str]) -> Catalog {
    let mappings = tables.iter().enumerate().map(|(n, table)| mapping(n as u16, table)).collect();
    Catalog { mappings, next_mapping: MappingId(99), ..Catalog::default() }
}

async fn check(endpoint: &Endpoint, catalog: &Catalog, stage: Stage) -> Vec<Finding> {
    check_capture(endpoint, catalog, stage, Capture::Wal).await
}

async fn check_capture(endpoint: &Endpoint, catalog: &Catalog, stage: Stage, capture: Capture) -> Vec<Finding> {
    let (publication, slot) = ("tidelock_main", "tidelock_main");
    preflight(Request { endpoint, catalog, publication, slot, capture, row_filters: false, stage }).await.unwrap()
}

fn has(findings: &[Finding], severity: Severity, subject: &str, message: &str) -> bool {
    findings.iter().any(|f| f.severity == severity && f.subject == subject && f.message.contains(message))
}

fn errors(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Error).collect()
}

const GOOD: &str = "
    CREATE SCHEMA salesforce;
    CREATE TABLE salesforce.account (id serial PRIMARY KEY, sfid varchar(18) UNIQUE, name varchar(80),
        ext__c varchar(40) UNIQUE)";

#[tokio::test]
async fn a_good_database_has_no_errors_and_a_bad_table_has_its_own() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server.execute(GOOD).await.unwrap();
    let endpoint = server.endpoint();
    let findings = check(&endpoint, &catalog(&["account"]), Stage::Install).await;
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:?}");
    let findings = check(&endpoint, &catalog(&["account"]), Stage::Run).await;
    assert!(has(&findings, Severity::Error, "publication tidelock_main", "does not exist"), "{findings:?}");
    assert!(has(&findings, Severity::Error, "schema tidelock", "does not exist"), "{findings:?}");

    server
        .execute(
            "CREATE TABLE salesforce.keyless (id int, sfid varchar(15), name varchar(20), ext__c text);
             CREATE TABLE salesforce.silent (id int PRIMARY KEY, sfid varchar(18) UNIQUE, name text NOT NULL,
                 ext__c text UNIQUE, extra int NOT NULL);
             ALTER TABLE salesforce.silent REPLICA IDENTITY NOTHING;
             CREATE TABLE salesforce.loud (id int PRIMARY KEY, sfid varchar(18) UNIQUE, name int,
                 ext__c text GENERATED ALWAYS AS ('x') STORED, other int NOT NULL UNIQUE);
             ALTER TABLE salesforce.loud REPLICA IDENTITY FULL;
             CREATE UNLOGGED TABLE salesforce.wrong (key int PRIMARY KEY, id int NOT NULL UNIQUE, sfid varchar(18));
             ALTER TABLE salesforce.wrong REPLICA IDENTITY USING INDEX wrong_id_key;
             CREATE VIEW salesforce.seen AS SELECT * FROM salesforce.account;
             CREATE FUNCTION salesforce.hc() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER hc_account_logtrigger AFTER INSERT ON salesforce.account
                 FOR EACH ROW EXECUTE FUNCTION salesforce.hc()",
        )
        .await
        .unwrap();
    // Version 14 publishes whole tables or nothing of them.
    let version = server.value("SHOW server_version_num").await.unwrap().unwrap();
    let parts = version.parse::<u32>().unwrap() >= 150_000;
    let published = if parts { "salesforce.account (id, sfid) WHERE (id > 0)" } else { "salesforce.account" };
    let publish = format!("CREATE PUBLICATION tidelock_main FOR TABLE {published} WITH (publish = 'insert')");
    server.execute(&publish).await.unwrap();
    server.execute("SELECT pg_create_logical_replication_slot('tidelock_main', 'test_decoding')").await.unwrap();
    let all = ["account", "keyless", "silent", "loud", "wrong", "seen", "absent"];
    let findings = check(&endpoint, &catalog(&all), Stage::Run).await;
    let (error, warning) = (Severity::Error, Severity::Warning);
    for message in ["filters", "name, ext__c"] {
        assert_eq!(has(&findings, error, "table salesforce.account", message), parts, "{message}\n{findings:#?}");
    }
    for (severity, subject, message) in [
        (warning, "table salesforce.account", "hc_account_logtrigger"),
        (error, "publication tidelock_main", "leaves out"),
        (error, "slot tidelock_main", "test_decoding"),
        (error, "table salesforce.keyless", "no primary key"),
        (error, "table salesforce.keyless.sfid", "15 characters"),
        (warning, "table salesforce.keyless.name", "20 characters"),
        (warning, "table salesforce.keyless.ext__c", "no unique index"),
        (error, "table salesforce.keyless", "does not hold the table"),
        (error, "table salesforce.silent", "NOTHING"),
        (warning, "table salesforce.silent.name", "NOT NULL"),
        (warning, "table salesforce.silent.extra", "NOT NULL"),
        (warning, "table salesforce.loud", "FULL"),
        (warning, "table salesforce.loud.name", "integer"),
        (error, "table salesforce.loud.ext__c", "computes"),
        (error, "table salesforce.wrong", "unlogged"),
        (error, "table salesforce.wrong", "primary key is (key), not (id)"),
        (error, "table salesforce.wrong", "does not hold the whole primary key"),
        (error, "table salesforce.wrong.name", "does not exist"),
        (error, "table salesforce.seen", "view"),
        (error, "table salesforce.absent", "does not exist"),
    ] {
        assert!(has(&findings, severity, subject, message), "{subject}: {message}\n{findings:#?}");
    }
    assert!(findings.iter().all(|finding| finding.severity == Severity::Ok || !finding.advice.is_empty()));

    let session = server.session().await.unwrap();
    let names = ["account".to_owned(), "loud".to_owned(), "absent".to_owned()];
    let described = describe_tables(&session, "salesforce", &names).await.unwrap();
    let described: Vec<(&str, char, usize)> =
        described.iter().map(|table| (table.table.as_str(), table.replica_identity, table.columns.len())).collect();
    assert_eq!(described, vec![("account", 'd', 4), ("loud", 'f', 5)]);
}

#[tokio::test]
async fn partitions_that_do_not_tell_their_rows_are_named() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server
        .execute(
            "CREATE SCHEMA salesforce;
             CREATE TABLE salesforce.parts (id int PRIMARY KEY, sfid varchar(18), name text, ext__c text)
                 PARTITION BY RANGE (id);
             CREATE TABLE salesforce.fine PARTITION OF salesforce.parts FOR VALUES FROM (0) TO (10);
             CREATE TABLE salesforce.whole PARTITION OF salesforce.parts FOR VALUES FROM (10) TO (20);
             ALTER TABLE salesforce.whole REPLICA IDENTITY FULL;
             CREATE TABLE salesforce.silent PARTITION OF salesforce.parts FOR VALUES FROM (20) TO (30);
             ALTER TABLE salesforce.silent REPLICA IDENTITY NOTHING;
             CREATE TABLE salesforce.nested PARTITION OF salesforce.parts FOR VALUES FROM (30) TO (40)
                 PARTITION BY RANGE (id);
             CREATE TABLE salesforce.other PARTITION OF salesforce.nested FOR VALUES FROM (30) TO (35);
             ALTER TABLE salesforce.other ALTER name SET NOT NULL, ADD CONSTRAINT other_name UNIQUE (name);
             ALTER TABLE salesforce.other REPLICA IDENTITY USING INDEX other_name;
             CREATE TABLE salesforce.same PARTITION OF salesforce.nested FOR VALUES FROM (35) TO (40);
             ALTER TABLE salesforce.same REPLICA IDENTITY USING INDEX same_pkey;
             CREATE UNLOGGED TABLE salesforce.fleeting PARTITION OF salesforce.parts FOR VALUES FROM (40) TO (50)",
        )
        .await
        .unwrap();
    let findings = check(&server.endpoint(), &catalog(&["parts"]), Stage::Install).await;
    let found: Vec<&str> = errors(&findings).iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].contains("salesforce.fleeting is unlogged"), "{found:#?}");
    assert!(found[1].contains("salesforce.other has a REPLICA IDENTITY without"), "{found:#?}");
    assert!(found[2].contains("salesforce.silent has a REPLICA IDENTITY without"), "{found:#?}");
}

#[tokio::test]
async fn a_plain_role_is_told_what_it_lacks() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server.execute(GOOD).await.unwrap();
    server
        .execute(
            "CREATE ROLE plain LOGIN PASSWORD 'plain'; GRANT USAGE ON SCHEMA salesforce TO plain;
             GRANT SELECT, UPDATE ON salesforce.account TO plain;
             ALTER TABLE salesforce.account ENABLE ROW LEVEL SECURITY",
        )
        .await
        .unwrap();
    let mut endpoint = server.tcp_endpoint();
    endpoint.user = "plain".into();
    endpoint.password = Some(SecretString::from("plain"));
    let findings = check(&endpoint, &catalog(&["account", "absent"]), Stage::Install).await;
    for (severity, subject, message) in [
        (Severity::Error, "role plain", "may not replicate"),
        (Severity::Error, "role plain", "may not create schemas"),
        (Severity::Error, "server", "replication connection"),
        (Severity::Error, "table salesforce.account", "lacks INSERT, DELETE"),
        (Severity::Error, "table salesforce.account", "sequence salesforce.account_id_seq"),
        (Severity::Error, "table salesforce.account", "belongs to role postgres"),
        (Severity::Warning, "table salesforce.account", "row security"),
        (Severity::Error, "table salesforce.absent", "may not create tables"),
    ] {
        assert!(has(&findings, severity, subject, message), "{subject}: {message}\n{findings:#?}");
    }
    server
        .execute(
            "ALTER ROLE plain REPLICATION BYPASSRLS; GRANT CREATE ON DATABASE postgres TO plain;
             ALTER TABLE salesforce.account OWNER TO plain; GRANT CREATE ON SCHEMA salesforce TO plain",
        )
        .await
        .unwrap();
    let findings = check(&endpoint, &catalog(&["account", "absent"]), Stage::Install).await;
    assert_eq!(errors(&findings), Vec::<&Finding>::new());
}

#[tokio::test]
async fn a_server_without_logical_wal_or_room_is_found_out() {
    let settings = ServerSettings::default().with("wal_level", "replica").with("max_replication_slots", "0");
    let server = PostgresServer::start(settings.with("max_wal_senders", "0")).await.unwrap();
    let findings = check(&server.endpoint(), &catalog(&[]), Stage::Install).await;
    for message in ["wal_level is replica", "all 0 replication slots", "all 0 WAL senders", "replication connection"] {
        assert!(has(&findings, Severity::Error, "server", message), "{message}\n{findings:#?}");
    }
}

#[tokio::test]
async fn what_trigger_capture_needs_is_found_out() {
    let settings = ServerSettings::default().with("wal_level", "replica").with("max_replication_slots", "0");
    let server = PostgresServer::start(settings.with("max_wal_senders", "0")).await.unwrap();
    server.execute(GOOD).await.unwrap();
    server
        .execute(
            "CREATE ROLE plain LOGIN PASSWORD 'plain'; GRANT USAGE ON SCHEMA salesforce TO plain; \
             GRANT ALL ON ALL TABLES IN SCHEMA salesforce TO plain; GRANT ALL ON ALL SEQUENCES IN SCHEMA salesforce TO plain",
        )
        .await
        .unwrap();
    let catalog = catalog(&["account"]);
    let found = check_capture(&server.endpoint(), &catalog, Stage::Install, Capture::Trigger).await;
    assert_eq!(errors(&found), Vec::<&Finding>::new(), "neither wal_level nor slots nor senders matter");
    let log = "trigger log of schema salesforce";
    let found = check_capture(&server.endpoint(), &catalog, Stage::Run, Capture::Trigger).await;
    assert!(
        has(&found, Severity::Error, log, "create the trigger 00_tidelock_log of salesforce.account"),
        "{found:#?}"
    );
    let mut session = server.session().await.unwrap();
    let wanted = tidelock::postgres::install::TriggerLog::new("salesforce", &catalog);
    let steps = tidelock::postgres::capture::trigger_log::install::plan(&session, &wanted.schema, &wanted.tables)
        .await
        .unwrap();
    tidelock::postgres::install::apply(&mut session, &steps).await.unwrap();
    let found = check_capture(&server.endpoint(), &catalog, Stage::Run, Capture::Trigger).await;
    assert!(has(&found, Severity::Ok, log, "every mapped table has its triggers"), "{found:#?}");
    assert!(!found.iter().any(|finding| finding.subject.starts_with("publication")), "{found:#?}");
    let mut endpoint = server.tcp_endpoint();
    endpoint.user = "plain".into();
    endpoint.password = Some(SecretString::from("plain"));
    server.execute("GRANT SELECT ON salesforce._tidelock_stream TO plain").await.unwrap();
    let found = check_capture(&endpoint, &catalog, Stage::Run, Capture::Trigger).await;
    assert!(has(&found, Severity::Error, log, "lacks privileges on"), "{found:#?}");
    server
        .execute(
            "CREATE FUNCTION salesforce.hc_account_logger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER hc_account_logtrigger AFTER UPDATE ON salesforce.account FOR EACH ROW \
             EXECUTE FUNCTION salesforce.hc_account_logger()",
        )
        .await
        .unwrap();
    let found = check_capture(&server.endpoint(), &catalog, Stage::Run, Capture::Trigger).await;
    assert!(has(&found, Severity::Error, "table salesforce.account", "a second time"), "{found:#?}");
}
