//! The PostgreSQL target and installation against a real server.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tidelock::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, Key, MappingDef, MappingId, Offset,
    Policy, RecordId, Side, Str, Value, WriteKind,
};
use tidelock::config::Numbers;
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::error::Kind;
use tidelock::flow::{Mended, Target, Write, WriteValue, Written};
use tidelock::postgres::install::{Installation, apply, plan, plan_removal};
use tidelock::postgres::target::{PostgresTarget, TargetOptions};

const ACCOUNT: MappingId = MappingId(0);
const CONTACT: MappingId = MappingId(1);

const SFID: FieldId = FieldId(0);
const NAME: FieldId = FieldId(1);
const AMOUNT: FieldId = FieldId(2);
const ACTIVE: FieldId = FieldId(3);
const EXTERNAL: FieldId = FieldId(4);
const PICKS: FieldId = FieldId(5);

const TABLES: &str = "
    CREATE SCHEMA salesforce;
    CREATE DOMAIN salesforce.label AS varchar(20);
    CREATE TABLE salesforce.account (
        id serial PRIMARY KEY, sfid varchar(18) UNIQUE, name salesforce.label, amount numeric(10,2), active boolean,
        ext__c varchar(40) UNIQUE, picks text[], _hc_lastop varchar(32), _hc_err text,
        CONSTRAINT amount_small CHECK (amount < 1000));
    CREATE TABLE salesforce.contact (
        id serial PRIMARY KEY, sfid varchar(18), name text, amount double precision, active boolean, ext__c text,
        picks varchar(200), account_id int);
    CREATE PUBLICATION tidelock_all FOR ALL TABLES;";

fn field(id: FieldId, name: &str, column: &str, kind: FieldKind) -> FieldDef {
    FieldDef {
        id,
        name: name.into(),
        column: column.into(),
        kind,
        policy: Policy::SalesforceWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

fn mapping(id: MappingId, name: &str) -> MappingDef {
    MappingDef {
        id,
        name: name.into(),
        sobject: name.into(),
        schema: "salesforce".into(),
        table: name.into(),
        key_columns: vec!["id".into()],
        fields: vec![
            field(SFID, "Id", "sfid", FieldKind::Id),
            field(NAME, "Name", "name", FieldKind::Text { length: 80 }),
            field(AMOUNT, "Amount__c", "amount", FieldKind::Number { scale: 2 }),
            field(ACTIVE, "Active__c", "active", FieldKind::Boolean),
            field(EXTERNAL, "Ext__c", "ext__c", FieldKind::Text { length: 40 }),
            field(PICKS, "Picks__c", "picks", FieldKind::MultiPicklist),
        ],
        next_field: FieldId(6),
        owner: None,
        external_id: Some(EXTERNAL),
        delete: DeletePolicy::UpdateWins,
        truncate: tidelock::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank: id.0,
    }
}

fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog {
        mappings: vec![mapping(ACCOUNT, "account"), mapping(CONTACT, "contact")],
        next_mapping: MappingId(2),
        ..Catalog::default()
    })
}

fn options() -> TargetOptions {
    let mut options = TargetOptions::new("main", "log-1");
    options.statement_timeout = Duration::from_secs(20);
    options.lock_timeout = Duration::from_millis(300);
    options.takeover_after = Duration::from_millis(500);
    options.takeover_timeout = Duration::from_secs(10);
    options
}

async fn database() -> PostgresServer {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server.execute(TABLES).await.unwrap();
    install(&server).await;
    server
}

async fn install(server: &PostgresServer) {
    let mut session = server.session().await.unwrap();
    let mut installation = Installation::new(&catalog(), "tidelock_main", &[], Numbers::Numeric);
    // The tables are as the test has made them, indexes and all.
    installation.tables.iter_mut().for_each(|table| table.statements.clear());
    let steps = plan(&session, &installation).await.unwrap();
    apply(&mut session, &steps).await.unwrap();
    assert_eq!(plan(&session, &installation).await.unwrap(), vec![], "a second plan finds nothing to do");
}

async fn target(server: &PostgresServer) -> PostgresTarget {
    let mut target = PostgresTarget::new(server.endpoint(), catalog(), options());
    target.resume().await.unwrap();
    target
}

fn sfid(n: u64) -> String {
    // Fifteen characters without capitals have the suffix AAA.
    format!("001000000{n:06}AAA")
}

fn set(field: FieldId, expected: Value, value: Value) -> WriteValue {
    WriteValue { field, expected, value }
}

fn create(ticket: u64, mapping: MappingId, n: u64, values: &[(FieldId, Value)]) -> Write {
    let mut all = vec![set(SFID, Value::Null, Value::text(sfid(n)))];
    all.extend(values.iter().map(|(field, value)| set(*field, Value::Null, value.clone())));
    Write {
        ticket: Offset(ticket),
        mapping,
        record: RecordId(ticket),
        kind: WriteKind::Create,
        key: None,
        salesforce_id: Some(Str::from(sfid(n))),
        external_id: None,
        values: all,
    }
}

fn update(ticket: u64, mapping: MappingId, key: u64, values: Vec<WriteValue>) -> Write {
    Write {
        ticket: Offset(ticket),
        mapping,
        record: RecordId(ticket),
        kind: WriteKind::Update,
        key: Some(Key(Str::from(key.to_string()))),
        salesforce_id: None,
        external_id: None,
        values,
    }
}

fn delete(ticket: u64, mapping: MappingId, key: u64, values: Vec<WriteValue>) -> Write {
    Write { kind: WriteKind::Delete, ..update(ticket, mapping, key, values) }
}

fn text(text: &str) -> Value {
    Value::text(text)
}

/// Reads the messages and changes that a slot of its own has seen, as `test_decoding` prints them.
struct Stream;

impl Stream {
    async fn start(server: &PostgresServer) -> Self {
        server.execute("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')").await.unwrap();
        Self
    }

    async fn read(&self, server: &PostgresServer) -> Vec<String> {
        let rows = server.query("SELECT data FROM pg_logical_slot_get_changes('watch', NULL, NULL)").await.unwrap();
        rows.into_iter().flatten().flatten().collect()
    }

    /// The last closing message: the lists of applied, skipped and refused tickets.
    async fn closed(&self, server: &PostgresServer) -> serde_json::Value {
        let lines = self.read(server).await;
        let close = lines.iter().rev().find(|line| line.contains("\"close\"")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&close[close.find("content:").unwrap() + 8..]).unwrap();
        json["close"].clone()
    }
}

async fn one(server: &PostgresServer, sql: &str) -> String {
    server.value(sql).await.unwrap().unwrap_or_else(|| "null".into())
}

/// The tickets that a closing message names as refused.
fn refused_tickets(closed: &serde_json::Value) -> Vec<u64> {
    closed["refused"].as_array().into_iter().flatten().filter_map(|refusal| refusal[0].as_u64()).collect()
}

#[tokio::test]
async fn batches_of_all_kinds_apply_and_the_stream_tells() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = PostgresTarget::new(server.endpoint(), catalog(), options());
    assert_eq!(target.resume().await.unwrap().committed, None);
    let answers = target
        .write(&[
            create(10, ACCOUNT, 1, &[(NAME, text("One")), (AMOUNT, Value::Int(5)), (PICKS, text("a;b,c"))]),
            create(11, ACCOUNT, 2, &[(NAME, text("Two")), (AMOUNT, Value::Null), (PICKS, Value::Null)]),
            create(12, CONTACT, 3, &[(NAME, text("Ann")), (ACTIVE, Value::Bool(true))]),
        ])
        .await
        .unwrap();
    assert_eq!(answers, vec![Written::InStream; 3]);
    assert_eq!(
        one(&server, "SELECT string_agg(concat_ws('|', id, sfid, name, amount, picks, _hc_lastop), ' ' ORDER BY id) FROM salesforce.account").await,
        format!("1|{}|One|5.00|{{a,\"b,c\"}}|SYNCED 2|{}|Two|SYNCED", sfid(1), sfid(2))
    );
    let lines = stream.read(&server).await;
    let messages: Vec<&String> = lines.iter().filter(|line| line.starts_with("message:")).collect();
    assert_eq!(messages.len(), 2, "no actor message for our own transaction: {lines:?}");
    assert!(messages[0].ends_with(r#"content:{"open":{"link":"main","tickets":[10,12]}}"#), "{}", messages[0]);
    assert!(messages[1].contains(r#""applied":[10,11,12]"#), "{}", messages[1]);

    let answers = target
        .write(&[
            update(
                20,
                ACCOUNT,
                1,
                vec![set(NAME, text("One"), text("Uno")), set(ACTIVE, Value::Bool(false), Value::Bool(true))],
            ),
            update(21, ACCOUNT, 2, vec![set(NAME, text("Other"), text("Dos"))]),
            update(22, ACCOUNT, 9, vec![set(NAME, text("None"), text("x"))]),
            delete(
                23,
                CONTACT,
                1,
                vec![set(NAME, text("Ann"), Value::Null), set(ACTIVE, Value::Bool(true), Value::Null)],
            ),
        ])
        .await
        .unwrap();
    assert_eq!(answers, vec![Written::InStream; 4]);
    let closed = stream.closed(&server).await;
    assert_eq!(closed["applied"], serde_json::json!([20, 23]));
    assert_eq!(closed["skipped"], serde_json::json!([21, 22]));
    assert_eq!(one(&server, "SELECT string_agg(name, ',' ORDER BY id) FROM salesforce.account").await, "Uno,Two");
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.contact").await, "0");
    assert_eq!(target.resume().await.unwrap().committed, Some(Offset(23)));

    // Another change log starts with a cursor of its own.
    let mut other = options();
    other.log = "log-2".into();
    drop(target);
    let mut target = PostgresTarget::new(server.endpoint(), catalog(), other);
    assert_eq!(target.resume().await.unwrap().committed, None);
}

#[tokio::test]
async fn values_compare_canonically_and_rows_are_found_by_every_name() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    server
        .execute(
            "INSERT INTO salesforce.account (sfid, name, amount, active, ext__c, picks) VALUES
               ('001000000000001AAA', '  padded ', 5.10, NULL, 'e1', '{a,b}'),
               ('001000000000002AAA', '', 5, true, 'e2', '{}');
             INSERT INTO salesforce.contact (sfid, name, amount, active) VALUES
               ('001000000000003AAA', E'tab\\t', 0.1, false), ('001000000000004AAA', 'twin', 1, false),
               ('001000000000004AAA', 'twin', 1, false)",
        )
        .await
        .unwrap();
    let expected = |name: Value, amount: &str, active| {
        vec![
            set(NAME, name, text("new")),
            set(AMOUNT, Value::number(amount).unwrap(), Value::Int(1)),
            set(ACTIVE, Value::Bool(active), Value::Bool(true)),
        ]
    };
    let mut by_sfid = update(32, CONTACT, 0, expected(text("tab"), "0.1", false));
    by_sfid.key = None;
    by_sfid.salesforce_id = Some(Str::from(sfid(3)));
    let mut by_external = update(33, ACCOUNT, 0, vec![set(PICKS, Value::Null, text("x;y"))]);
    by_external.key = None;
    by_external.external_id = Some("e2".into());
    let mut twins = update(34, CONTACT, 0, vec![set(NAME, text("twin"), text("x"))]);
    twins.key = None;
    twins.salesforce_id = Some(Str::from(sfid(4)));
    let mut nameless = twins.clone();
    nameless.ticket = Offset(35);
    nameless.salesforce_id = None;
    let mut first = expected(text("padded"), "5.1", false);
    first.push(set(PICKS, text("a;b"), text("c")));
    let answers = target.write(&[update(31, ACCOUNT, 1, first), by_sfid, by_external, twins, nameless]).await.unwrap();
    assert_eq!(answers[..3], vec![Written::InStream; 3]);
    assert!(matches!(&answers[3], Written::Refused { code, .. } if code == "21000"), "{:?}", answers[3]);
    assert!(matches!(&answers[4], Written::Refused { code, .. } if code == "02000"), "{:?}", answers[4]);
    let closed = stream.closed(&server).await;
    assert_eq!(closed["applied"], serde_json::json!([31, 32, 33]));
    assert_eq!(refused_tickets(&closed), [34, 35]);
    assert_eq!(
        one(&server, "SELECT string_agg(picks::text, ' ' ORDER BY id) FROM salesforce.account").await,
        "{c} {x,y}"
    );
}

/// Only a multi-select picklist is a list of items to an array; a text field holds the array's own text.
#[tokio::test]
async fn an_array_behind_a_text_field_is_written_as_it_reads() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    server.execute("ALTER TABLE salesforce.contact ALTER name TYPE int[] USING NULL").await.unwrap();
    let numbers = text("{{1,NULL},{NULL,4}}");
    target.write(&[create(1, CONTACT, 1, &[(NAME, numbers.clone())])]).await.unwrap();
    let answers = target.write(&[update(2, CONTACT, 1, vec![set(NAME, numbers, text("[0:1]={7,8}"))])]).await.unwrap();
    assert_eq!(answers, vec![Written::InStream]);
    assert_eq!(stream.closed(&server).await["applied"], serde_json::json!([2]));
    assert_eq!(one(&server, "SELECT name FROM salesforce.contact").await, "[0:1]={7,8}");
}

#[tokio::test]
async fn refused_rows_cost_themselves_alone() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    server
        .execute(
            "CREATE FUNCTION salesforce.moody() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.name = 'angry' THEN RAISE EXCEPTION 'no angry names'; END IF;
               IF NEW.name = 'silent' THEN RETURN NULL; END IF;
               RETURN NEW; END $$;
             CREATE TRIGGER moody BEFORE INSERT OR UPDATE ON salesforce.account
               FOR EACH ROW EXECUTE FUNCTION salesforce.moody();
             INSERT INTO salesforce.account (sfid, ext__c) VALUES ('001000000000900AAA', 'taken')",
        )
        .await
        .unwrap();
    let mut batch: Vec<Write> =
        (1..=40).map(|n| create(100 + n, ACCOUNT, n, &[(NAME, text("fine")), (AMOUNT, Value::Int(1))])).collect();
    let name = |n: usize, value: &str, batch: &mut Vec<Write>| batch[n].values[1].value = text(value);
    name(3, "much longer than twenty characters", &mut batch);
    name(7, "angry", &mut batch);
    name(11, "silent", &mut batch);
    name(12, "a\0b", &mut batch);
    batch[19].values[2].value = Value::Int(5000);
    batch[20].values[2].value = text("NaN?");
    // Its own row is there already, by its Salesforce id: skipped.
    batch[30].values[0].value = text("001000000000900AAA");
    // Another record's value in a unique index: refused.
    batch[31].values.push(set(EXTERNAL, Value::Null, text("taken")));
    let answers = target.write(&batch).await.unwrap();
    let answered: Vec<(usize, String)> = answers
        .iter()
        .enumerate()
        .filter_map(|(n, answer)| match answer {
            Written::Refused { code, .. } => Some((n, code.to_string())),
            _ => None,
        })
        .collect();
    let expected =
        [(3, "22001"), (7, "P0001"), (11, "02000"), (12, "22021"), (19, "23514"), (20, "22P02"), (31, "23505")];
    let expected: Vec<(usize, String)> = expected.iter().map(|(n, code)| (*n, (*code).to_owned())).collect();
    assert_eq!(answered, expected, "{answers:?}");
    let closed = stream.closed(&server).await;
    assert_eq!(closed["skipped"], serde_json::json!([131]));
    assert_eq!(refused_tickets(&closed), [104, 108, 112, 113, 120, 121, 132]);
    assert_eq!(closed["applied"].as_array().unwrap().len(), 32);
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.account").await, "33");

    // Updates and deletes narrow in the same way.
    server
        .execute(
            "ALTER TABLE salesforce.contact ADD FOREIGN KEY (account_id) REFERENCES salesforce.account (id);
             INSERT INTO salesforce.contact (name, account_id) SELECT 'child', max(id) FROM salesforce.account",
        )
        .await
        .unwrap();
    let keys =
        server.query("SELECT id FROM salesforce.account WHERE name = 'fine' ORDER BY id DESC LIMIT 3").await.unwrap();
    let keys: Vec<u64> = keys.into_iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
    let answers = target
        .write(&[
            update(200, ACCOUNT, keys[1], vec![set(AMOUNT, Value::Int(1), Value::Int(2))]),
            update(201, ACCOUNT, keys[2], vec![set(AMOUNT, Value::Int(1), Value::Int(2000))]),
            delete(202, ACCOUNT, keys[0], vec![set(NAME, text("fine"), Value::Null)]),
        ])
        .await
        .unwrap();
    assert_eq!(answers[0], Written::InStream);
    assert!(
        matches!(&answers[1], Written::Refused { code, message } if code == "23514" && message.contains("amount_small"))
    );
    assert!(matches!(&answers[2], Written::Refused { code, .. } if code == "23503"));
    // With its child in the same batch, and named after it, the parent can go.
    let answers = target
        .write(&[
            delete(203, CONTACT, 1, vec![set(NAME, text("child"), Value::Null)]),
            delete(204, ACCOUNT, keys[0], vec![set(NAME, text("fine"), Value::Null)]),
        ])
        .await
        .unwrap();
    assert_eq!(answers, vec![Written::InStream; 2]);
    assert_eq!(stream.closed(&server).await["applied"], serde_json::json!([203, 204]));
}

#[tokio::test]
async fn rows_that_another_write_of_the_batch_frees_go_through() {
    let server = database().await;
    let mut target = target(&server).await;
    server
        .execute(
            "INSERT INTO salesforce.account (sfid, ext__c) VALUES ('001000000000001AAA', 'a'), ('001000000000002AAA', 'b');
             ALTER TABLE salesforce.contact ADD UNIQUE (ext__c) DEFERRABLE INITIALLY DEFERRED;
             INSERT INTO salesforce.contact (ext__c) VALUES ('x')",
        )
        .await
        .unwrap();
    // The create needs what the update frees.
    let mut wants = create(2, ACCOUNT, 3, &[(EXTERNAL, text("a"))]);
    wants.values[0].value = text(&sfid(3));
    let answers = target
        .write(&[
            update(1, ACCOUNT, 2, vec![set(EXTERNAL, text("b"), text("c")), set(NAME, Value::Null, text("n"))]),
            update(3, ACCOUNT, 1, vec![set(EXTERNAL, text("a"), text("b"))]),
        ])
        .await
        .unwrap();
    assert_eq!(answers, vec![Written::InStream; 2]);
    let answers = target.write(&[Write { ticket: Offset(4), ..wants }]).await.unwrap();
    assert_eq!(answers, vec![Written::InStream]);
    assert_eq!(one(&server, "SELECT string_agg(ext__c, ',' ORDER BY id) FROM salesforce.account").await, "b,c,a");
    // A deferred constraint fails at the end of the transaction, and still costs its row alone.
    let answers = target
        .write(&[
            create(5, CONTACT, 8, &[(EXTERNAL, text("y"))]),
            update(6, CONTACT, 1, vec![set(NAME, Value::Null, text("kept"))]),
            create(7, CONTACT, 9, &[(NAME, text("z")), (EXTERNAL, text("y"))]),
        ])
        .await
        .unwrap();
    assert_eq!(answers[..2], vec![Written::InStream; 2]);
    assert!(matches!(&answers[2], Written::Refused { code, .. } if code == "23505"), "{answers:?}");
    assert_eq!(one(&server, "SELECT string_agg(ext__c, ',' ORDER BY id) FROM salesforce.contact").await, "x,y");
    assert_eq!(one(&server, "SELECT name FROM salesforce.contact WHERE id = 1").await, "kept");
}

#[tokio::test]
async fn rows_exchange_their_unique_values() {
    let server = database().await;
    server
        .execute(
            "INSERT INTO salesforce.account (sfid, ext__c) VALUES \
             ('001000000000001AAA', 'a'), ('001000000000002AAA', 'b'), ('001000000000003AAA', 'c'), (NULL, 'taken')",
        )
        .await
        .unwrap();
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    let named = |ticket, key, from, to| update(ticket, ACCOUNT, key, vec![set(EXTERNAL, text(from), text(to))]);
    // Two of one shape and one of another, in a ring; another update goes along.
    let mut third = named(3, 3, "c", "a");
    third.values.insert(0, set(NAME, Value::Null, text("third")));
    let answers =
        target.write(&[named(1, 1, "a", "b"), named(2, 2, "b", "c"), third, create(4, ACCOUNT, 9, &[])]).await.unwrap();
    assert_eq!(answers, vec![Written::InStream; 4]);
    let names = "SELECT string_agg(ext__c, ',' ORDER BY id) FROM salesforce.account";
    assert_eq!(one(&server, names).await, "b,c,a,taken");
    assert_eq!(stream.closed(&server).await["applied"], serde_json::json!([1, 2, 3, 4]));
    // Where one of them wants what another row keeps, they are refused, and the rest goes on.
    let answers = target
        .write(&[
            named(5, 1, "b", "c"),
            named(6, 2, "c", "taken"),
            update(7, ACCOUNT, 3, vec![set(NAME, text("third"), text("3rd"))]),
        ])
        .await
        .unwrap();
    assert!(matches!(&answers[0], Written::Refused { code, .. } if code == "23505"), "{answers:?}");
    assert!(matches!(&answers[1], Written::Refused { code, .. } if code == "23505"), "{answers:?}");
    assert_eq!(answers[2], Written::InStream);
    assert_eq!(one(&server, names).await, "b,c,a,taken");
    // Where another table follows the values, taking them away would empty it.
    server
        .execute(
            "CREATE TABLE salesforce.follower (name text REFERENCES salesforce.account (ext__c) ON UPDATE CASCADE); \
             INSERT INTO salesforce.follower VALUES ('a')",
        )
        .await
        .unwrap();
    target.resume().await.unwrap();
    let answers = target.write(&[named(20, 1, "b", "a"), named(21, 3, "a", "b")]).await.unwrap();
    assert!(matches!(&answers[..], [Written::Refused { .. }, Written::Refused { .. }]), "{answers:?}");
    assert_eq!(one(&server, "SELECT string_agg(name, ',') FROM salesforce.follower").await, "a");
    server.execute("DROP TABLE salesforce.follower").await.unwrap();
    // Where the values cannot be taken away, nothing of the rest is.
    server
        .execute(
            "DELETE FROM salesforce.account WHERE ext__c IS NULL; \
             ALTER TABLE salesforce.account ALTER COLUMN ext__c SET NOT NULL",
        )
        .await
        .unwrap();
    target.resume().await.unwrap();
    for (ticket, from, to) in [(28, Value::Null, text("x")), (31, text("x"), text("y"))] {
        let rest = update(ticket + 2, ACCOUNT, 2, vec![set(NAME, from, to.clone())]);
        let answers = target.write(&[named(ticket, 1, "b", "a"), named(ticket + 1, 3, "a", "b"), rest]).await.unwrap();
        assert!(matches!(&answers[..2], [Written::Refused { .. }, Written::Refused { .. }]), "{answers:?}");
        let name = one(&server, "SELECT name FROM salesforce.account WHERE id = 2").await;
        assert_eq!((&answers[2], text(&name)), (&Written::InStream, to));
    }
}

#[tokio::test]
async fn a_lost_answer_leaves_nothing_to_guess() {
    let server = database().await;
    let mut target = target(&server).await;
    // The session is killed by a trigger of the database at a chosen moment: in the transaction, before its commit.
    server
        .execute(
            "CREATE FUNCTION salesforce.die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.name = 'die' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$;
             CREATE TRIGGER die BEFORE INSERT ON salesforce.contact FOR EACH ROW EXECUTE FUNCTION salesforce.die();",
        )
        .await
        .unwrap();
    target.write(&[create(1, CONTACT, 1, &[(NAME, text("one"))])]).await.unwrap();
    let error = target.write(&[create(2, CONTACT, 2, &[(NAME, text("die"))])]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let error = target.write(&[create(2, CONTACT, 2, &[(NAME, text("two"))])]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "it must be resumed first");
    assert_eq!(target.resume().await.unwrap().committed, Some(Offset(1)));
    // Cancelled while the commit may be under way: either it took effect with its cursor, or not at all.
    for (ticket, micros) in (2..12).zip([0, 200, 400, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000]) {
        let batch = [create(ticket, CONTACT, ticket, &[(NAME, text("two"))])];
        let write = target.write(&batch);
        let answered = tokio::time::timeout(Duration::from_micros(micros), write).await;
        let cursor = target.resume().await.unwrap().committed;
        let there =
            one(&server, &format!("SELECT count(*) FROM salesforce.contact WHERE sfid = '{}'", sfid(ticket))).await;
        assert_eq!(there, if cursor == Some(Offset(ticket)) { "1" } else { "0" }, "{micros} us, {answered:?}");
        if cursor != Some(Offset(ticket)) {
            target.write(&batch).await.unwrap();
        }
        assert_eq!(target.resume().await.unwrap().committed, Some(Offset(ticket)));
    }
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.contact").await, "11");
    // A ticket that the cursor covers is never written twice.
    let error = target.write(&[create(5, CONTACT, 5, &[])]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
}

fn is_put_off(answer: &Written) -> bool {
    matches!(answer, Written::Retry { code, mended: Mended::ByTime, .. } if code == "55P03")
}

#[tokio::test]
async fn a_row_that_a_user_holds_is_put_off_and_the_others_go_on() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    let rows = "INSERT INTO salesforce.account (sfid, name) VALUES ('001000000000001AAA', 'a'), ('001000000000002AAA', 'b'); \
                INSERT INTO salesforce.contact (sfid, name) VALUES ('003000000000001AAA', 'x'), ('003000000000001AAA', 'y')";
    server.execute(rows).await.unwrap();
    let user = server.session().await.unwrap();
    let hold = "BEGIN; UPDATE salesforce.account SET name = 'user' WHERE id = 1; \
                SELECT FROM salesforce.contact WHERE id = 1 FOR UPDATE";
    user.batch_execute(hold).await.unwrap();
    let by_id = |write: Write, id: &str| Write { key: None, salesforce_id: Some(id.into()), ..write };
    let batch = [
        update(1, ACCOUNT, 1, vec![set(NAME, text("a"), text("ours"))]),
        update(2, ACCOUNT, 2, vec![set(NAME, text("b"), text("ours"))]),
        update(3, ACCOUNT, 3, vec![set(NAME, text("c"), text("of no row"))]),
        by_id(update(4, ACCOUNT, 0, vec![set(ACTIVE, Value::Null, Value::Bool(true))]), "001000000000001AAA"),
        delete(5, ACCOUNT, 1, vec![set(NAME, text("a"), Value::Null)]),
        // One of two rows is locked: it is no less ambiguous.
        by_id(update(6, CONTACT, 0, vec![set(NAME, text("y"), text("ours"))]), "003000000000001AAA"),
    ];
    let answers = tokio::time::timeout(Duration::from_secs(20), target.write(&batch)).await.unwrap().unwrap();
    assert!([0, 3, 4].iter().all(|n| is_put_off(&answers[*n])), "{answers:?}");
    assert_eq!((&answers[1], &answers[2]), (&Written::InStream, &Written::InStream));
    assert!(matches!(&answers[5], Written::Refused { code, .. } if code == "21000"), "{answers:?}");
    let closed = stream.closed(&server).await;
    assert_eq!((&closed["applied"], &closed["skipped"]), (&serde_json::json!([2]), &serde_json::json!([3])));
    assert_eq!(one(&server, "SELECT name FROM salesforce.account WHERE id = 2").await, "ours");
    // The user's edit came in between: skipped, and the user's value stands.
    user.batch_execute("COMMIT").await.unwrap();
    let again = [update(7, ACCOUNT, 1, vec![set(NAME, text("a"), text("ours"))])];
    assert_eq!(target.write(&again).await.unwrap(), vec![Written::InStream]);
    assert_eq!(one(&server, "SELECT name FROM salesforce.account WHERE id = 1").await, "user");
}

/// Locks that are not of the row itself: of a row with the same unique value that is not committed, of a parent, of the table.
#[tokio::test]
async fn what_waits_for_another_lock_of_a_user_is_put_off_and_the_others_go_on() {
    let server = database().await;
    let stream = Stream::start(&server).await;
    let mut target = target(&server).await;
    let rows = "CREATE TABLE salesforce.kind (name text PRIMARY KEY); \
                INSERT INTO salesforce.kind VALUES ('free'), ('held'), ('late'); \
                ALTER TABLE salesforce.contact ADD FOREIGN KEY (name) REFERENCES salesforce.kind DEFERRABLE INITIALLY DEFERRED; \
                INSERT INTO salesforce.contact (name) SELECT 'free' FROM generate_series(1, 40)";
    server.execute(rows).await.unwrap();
    let user = server.session().await.unwrap();
    let hold = "BEGIN; INSERT INTO salesforce.account (ext__c) VALUES ('e7'); \
                SELECT FROM salesforce.kind WHERE name = 'held' FOR UPDATE";
    user.batch_execute(hold).await.unwrap();
    let renamed = |ticket, n, name: &str| update(ticket, CONTACT, n, vec![set(NAME, text("free"), text(name))]);
    let batch = |ticket: u64| -> Vec<Write> {
        let created = (1..=40).map(|n| create(ticket + n, ACCOUNT, n, &[(EXTERNAL, text(&format!("e{n}")))]));
        let names = |n| if n == 9 || n == 23 { "held" } else { "late" };
        created.chain((1..=40).map(|n| renamed(ticket + 40 + n, n, names(n)))).collect()
    };
    let held = |n: usize| [6, 48, 62].contains(&n);
    let answers = tokio::time::timeout(Duration::from_mins(1), target.write(&batch(0))).await.unwrap().unwrap();
    for (n, answer) in answers.iter().enumerate() {
        assert!(if held(n) { is_put_off(answer) } else { *answer == Written::InStream }, "{n}: {answer:?}");
    }
    let closed = stream.closed(&server).await;
    assert_eq!(closed["applied"].as_array().unwrap().len(), 77, "{closed}");
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.account").await, "39");
    user.batch_execute("ROLLBACK").await.unwrap();
    let again: Vec<Write> = batch(100).into_iter().enumerate().filter(|(n, _)| held(*n)).map(|(_, w)| w).collect();
    assert_eq!(target.write(&again).await.unwrap(), vec![Written::InStream; 3]);
    assert_eq!(stream.closed(&server).await["applied"], serde_json::json!([107, 149, 163]));

    // With the table itself locked, not every row is waited for alone; nothing is prepared for it yet in a new session.
    target.resume().await.unwrap();
    user.batch_execute("BEGIN; LOCK TABLE salesforce.contact IN SHARE MODE").await.unwrap();
    let table = (1..=40).map(|n| update(200 + n, CONTACT, n, vec![set(AMOUNT, Value::Null, Value::Int(1))]));
    let table: Vec<Write> = table.chain([create(300, ACCOUNT, 300, &[])]).collect();
    for round in [0, 1000] {
        let table: Vec<Write> =
            table.iter().map(|w| Write { ticket: Offset(w.ticket.0 + round), ..w.clone() }).collect();
        let answers = tokio::time::timeout(Duration::from_mins(1), target.write(&table)).await.unwrap().unwrap();
        assert!(answers[..40].iter().all(is_put_off) && answers[40] == Written::InStream, "{answers:?}");
    }
    user.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn names_that_no_row_of_the_table_can_have_cost_their_writes_alone() {
    let server = database().await;
    let mut target = target(&server).await;
    let numbered = "ALTER TABLE salesforce.contact ALTER COLUMN ext__c TYPE int USING ext__c::int; \
                    INSERT INTO salesforce.contact (name, ext__c) VALUES ('a', 7)";
    server.execute(numbered).await.unwrap();
    let born = |ticket, external: &str| Write {
        external_id: Some(external.into()),
        ..create(ticket, CONTACT, ticket, &[(NAME, text("born")), (EXTERNAL, text(external))])
    };
    let named = |ticket, external: &str| Write {
        key: None,
        external_id: Some(external.into()),
        ..update(ticket, CONTACT, 0, vec![set(NAME, text("a"), text("ours"))])
    };
    let batch = [born(1, "5"), born(2, "five"), born(3, "6"), named(4, "seven"), named(5, "7")];
    let answers = target.write(&batch).await.unwrap();
    let refused = |n: usize| matches!(&answers[n], Written::Refused { code, .. } if code == "22P02");
    assert!(refused(1) && refused(3), "{answers:?}");
    assert!([0, 2, 4].iter().all(|n| answers[*n] == Written::InStream), "{answers:?}");
    let there = "SELECT string_agg(name || ext__c, ',' ORDER BY ext__c) FROM salesforce.contact";
    assert_eq!(one(&server, there).await, "born5,born6,ours7");
}

#[tokio::test]
async fn one_session_writes_for_a_link() {
    let server = database().await;
    let mut first = target(&server).await;
    first.write(&[create(1, CONTACT, 1, &[])]).await.unwrap();
    // An older session of ours is ended, and cannot write any more.
    let mut second = target(&server).await;
    assert_eq!(first.write(&[create(2, CONTACT, 2, &[])]).await.unwrap_err().kind(), Kind::Unavailable);
    second.write(&[create(3, CONTACT, 3, &[])]).await.unwrap();
    // Its own last session is ended at once.
    assert_eq!(second.resume().await.unwrap().committed, Some(Offset(3)));
    // Somebody else's lock is not broken.
    drop(second);
    let other = server.session().await.unwrap();
    other.batch_execute("SELECT pg_advisory_lock(1953064037, hashtext('main'))").await.unwrap();
    let mut brief = options();
    brief.takeover_timeout = Duration::from_secs(1);
    let mut third = PostgresTarget::new(server.endpoint(), catalog(), brief);
    let error = third.resume().await.unwrap_err();
    assert!(error.to_string().contains("tidelock-demo"), "{error}");
    other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    assert_eq!(third.resume().await.unwrap().committed, Some(Offset(3)));
    // Somebody moved the cursor: only one may write.
    server.execute("UPDATE tidelock.replay SET ticket = 9").await.unwrap();
    assert_eq!(third.write(&[create(4, CONTACT, 4, &[])]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(third.resume().await.unwrap().committed, Some(Offset(9)));
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again() {
    let server = database().await;
    let mut target = target(&server).await;
    for (ticket, code) in [(1, "40001"), (2, "40P01"), (3, "57014")] {
        // A sequence keeps its value when the transaction is rolled back: the first two attempts fail.
        server
            .execute(&format!(
                "DROP SEQUENCE IF EXISTS salesforce.tries; CREATE SEQUENCE salesforce.tries; \
                 CREATE OR REPLACE FUNCTION salesforce.busy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   IF nextval('salesforce.tries') < 3 THEN RAISE EXCEPTION 'busy' USING ERRCODE = '{code}'; END IF; \
                   RETURN NEW; END $$; \
                 CREATE OR REPLACE TRIGGER busy BEFORE INSERT ON salesforce.contact \
                   FOR EACH ROW EXECUTE FUNCTION salesforce.busy()"
            ))
            .await
            .unwrap();
        let answers = target.write(&[create(ticket, CONTACT, ticket, &[])]).await;
        assert_eq!(answers.unwrap(), vec![Written::InStream], "{code}");
        assert_eq!(one(&server, "SELECT last_value FROM salesforce.tries").await, "3", "{code}");
    }
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.contact").await, "3");
}

#[tokio::test]
async fn other_subscribers_can_leave_our_writes_out() {
    let server = database().await;
    server
        .execute(
            "SELECT pg_create_logical_replication_slot('all', 'test_decoding'), \
             pg_create_logical_replication_slot('local', 'test_decoding')",
        )
        .await
        .unwrap();
    let mut target = target(&server).await;
    for ticket in 1..=3 {
        target.write(&[create(ticket, CONTACT, ticket, &[])]).await.unwrap();
    }
    server.execute("INSERT INTO salesforce.contact (name) VALUES ('by a user')").await.unwrap();
    let inserts = async |slot: &str, only_local: bool| {
        let read = format!(
            "SELECT count(*) FROM pg_logical_slot_get_changes('{slot}', NULL, NULL, 'only-local', '{only_local}') \
             WHERE data LIKE 'table salesforce.contact: INSERT%'"
        );
        one(&server, &read).await
    };
    assert_eq!((inserts("all", false).await.as_str(), inserts("local", true).await.as_str()), ("4", "1"));
    assert_eq!(one(&server, "SELECT remote_lsn FROM pg_replication_origin_status").await, "0/3");
    // A session that takes over has the origin too; a role that may not have one writes without.
    target.resume().await.unwrap();
    target.write(&[create(4, CONTACT, 4, &[])]).await.unwrap();
    assert_eq!(inserts("local", true).await, "0");
    drop(target);
    server
        .execute(
            "CREATE ROLE plain LOGIN; GRANT USAGE ON SCHEMA salesforce, tidelock TO plain; \
             GRANT ALL ON ALL TABLES IN SCHEMA salesforce, tidelock TO plain; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA salesforce TO plain",
        )
        .await
        .unwrap();
    let mut endpoint = server.endpoint();
    endpoint.user = "plain".into();
    let mut plain = PostgresTarget::new(endpoint, catalog(), TargetOptions { link: "other".into(), ..options() });
    plain.resume().await.unwrap();
    plain.write(&[create(5, CONTACT, 5, &[])]).await.unwrap();
    assert_eq!(inserts("local", true).await, "1");
}

#[tokio::test]
async fn a_table_with_rules_is_written() {
    let server = database().await;
    let mut target = target(&server).await;
    server
        .execute(
            "CREATE TABLE salesforce.told (name text); \
             CREATE RULE tell AS ON INSERT TO salesforce.account DO ALSO INSERT INTO salesforce.told VALUES (NEW.name)",
        )
        .await
        .unwrap();
    let batch = [
        create(1, ACCOUNT, 1, &[(NAME, text("a"))]),
        create(2, ACCOUNT, 2, &[(NAME, text("longer than twenty letters"))]),
    ];
    let answers = target.write(&batch).await.unwrap();
    assert_eq!(answers[0], Written::InStream);
    assert!(matches!(&answers[1], Written::Refused { code, .. } if code == "22001"), "{answers:?}");
    assert_eq!(one(&server, "SELECT string_agg(name, ',') FROM salesforce.told").await, "a");
}

#[tokio::test]
async fn tables_may_change_and_a_row_that_is_written_is_in_step() {
    let server = database().await;
    let mut target = target(&server).await;
    target.write(&[create(1, ACCOUNT, 1, &[(NAME, text("a")), (AMOUNT, Value::Int(1))])]).await.unwrap();
    let retype = "ALTER TABLE salesforce.account DROP CONSTRAINT amount_small, ALTER COLUMN amount TYPE text";
    server.execute(retype).await.unwrap();
    let change = |ticket, from, to| update(ticket, ACCOUNT, 1, vec![set(AMOUNT, Value::Int(from), Value::Int(to))]);
    let altered = target.write(&[change(2, 1, 2)]).await;
    assert!(altered.is_ok(), "{altered:?}");
    assert_eq!(one(&server, "SELECT amount FROM salesforce.account").await, "2");
    // What a program that came over from Heroku Connect has left there.
    server.execute("UPDATE salesforce.account SET _hc_lastop = 'FAILED', _hc_err = 'x'").await.unwrap();
    target.write(&[change(3, 2, 3)]).await.unwrap();
    assert_eq!(one(&server, "SELECT concat(_hc_lastop, _hc_err) FROM salesforce.account").await, "SYNCED");
    server.execute("ALTER TABLE salesforce.account DROP COLUMN amount").await.unwrap();
    let error = target.write(&[change(4, 3, 4)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Configuration);
    assert!(error.to_string().contains("amount"), "{error}");
}

#[tokio::test]
async fn installation_guards_tells_and_goes_away() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    let mut catalog = (*catalog()).clone();
    for field in &mut catalog.mappings[0].fields {
        if field.id == AMOUNT || field.id == ACTIVE {
            field.owner = Some(Side::Salesforce);
            field.foreign_edit = ForeignEdit::Refuse;
        }
    }
    let installation = |catalog: &Catalog| Installation::new(catalog, "tidelock_main", &[], Numbers::Numeric);
    // One table is there already, without some columns and with an index of its own.
    server
        .execute(
            "CREATE SCHEMA salesforce; CREATE TABLE salesforce.contact (id serial PRIMARY KEY, sfid varchar(18), name text);
             CREATE UNIQUE INDEX mine ON salesforce.contact (sfid)",
        )
        .await
        .unwrap();
    let mut session = server.session().await.unwrap();
    let steps = plan(&session, &installation(&catalog)).await.unwrap();
    let count = |text: &str| steps.iter().filter(|step| step.sql.contains(text)).count();
    assert_eq!(
        (count("CREATE TABLE IF NOT EXISTS \"salesforce\""), count("ADD COLUMN"), count("CREATE UNIQUE INDEX")),
        (1, 1, 3)
    );
    assert!(steps.iter().any(|step| step.sql.starts_with("CREATE PUBLICATION")));
    apply(&mut session, &steps).await.unwrap();
    assert_eq!(plan(&session, &installation(&catalog)).await.unwrap(), vec![]);
    assert_eq!(one(&server, "SELECT public.get_xmlbinary()").await, "base64");
    server.execute("SELECT pg_create_logical_replication_slot('watch', 'test_decoding')").await.unwrap();

    // Who did it is told once for each actor in a transaction.
    server
        .execute(
            "BEGIN; INSERT INTO salesforce.account (name) VALUES ('a'); UPDATE salesforce.account SET name = 'b';
             SET LOCAL tidelock.actor = 'ann'; UPDATE salesforce.account SET name = 'c'; COMMIT",
        )
        .await
        .unwrap();
    let lines = Stream.read(&server).await;
    let told: Vec<&String> = lines.iter().filter(|line| line.contains("tidelock.actor")).collect();
    assert_eq!(told.len(), 2, "{lines:?}");
    assert!(told[0].contains(r#""role": "postgres""#) && told[0].contains(r#""application": "tidelock-demo""#));
    assert!(told[1].contains(r#""user": "ann""#));

    // What Salesforce owns is refused to users, and written by us.
    for refused in [
        "UPDATE salesforce.account SET amount = 1",
        "UPDATE salesforce.account SET active = true",
        "INSERT INTO salesforce.account (amount) VALUES (1)",
        "TRUNCATE salesforce.account",
    ] {
        let error = server.execute(refused).await.unwrap_err();
        assert!(error.to_string().contains("salesforce.account"), "{error}");
    }
    server.execute("UPDATE salesforce.account SET active = false, name = 'd'").await.unwrap();
    server.execute("INSERT INTO salesforce.account (name, active) VALUES ('e', false)").await.unwrap();
    let mut target = PostgresTarget::new(server.endpoint(), Arc::new(catalog.clone()), options());
    target.resume().await.unwrap();
    target.write(&[update(1, ACCOUNT, 1, vec![set(AMOUNT, Value::Null, Value::Int(3))])]).await.unwrap();
    assert_eq!(one(&server, "SELECT amount FROM salesforce.account WHERE id = 1").await, "3");

    // A role that may edit the table need not know the schema tidelock.
    server
        .execute(
            "CREATE ROLE plain; GRANT USAGE ON SCHEMA salesforce TO plain; GRANT ALL ON salesforce.account TO plain;
             SET ROLE plain; UPDATE salesforce.account SET name = 'f'",
        )
        .await
        .unwrap();
    let lines = Stream.read(&server).await;
    assert!(lines.iter().any(|line| line.contains(r#""role": "plain""#)), "{lines:?}");

    // The publication follows the mappings.
    let mut fewer = catalog.clone();
    fewer.mappings.pop();
    let steps = plan(&session, &installation(&fewer)).await.unwrap();
    assert!(matches!(&steps[..], [step] if step.sql.contains("DROP TABLE \"salesforce\".\"contact\"")), "{steps:?}");
    apply(&mut session, &steps).await.unwrap();
    let steps = plan(&session, &installation(&catalog)).await.unwrap();
    assert!(matches!(&steps[..], [step] if step.sql.contains("ADD TABLE \"salesforce\".\"contact\"")), "{steps:?}");
    apply(&mut session, &steps).await.unwrap();

    // A change of ownership changes the plan, and only that.
    catalog.mappings[0].fields[2].owner = None;
    let changed = installation(&catalog);
    let steps = plan(&session, &changed).await.unwrap();
    assert_eq!(steps.len(), 2, "{steps:?}");
    catalog.mappings[0].fields[3].owner = None;
    let changed = installation(&catalog);
    let steps = plan(&session, &changed).await.unwrap();
    assert!(steps.iter().all(|step| step.sql.starts_with("DROP TRIGGER")), "{steps:?}");
    apply(&mut session, &steps).await.unwrap();
    server.execute("UPDATE salesforce.account SET amount = 4").await.unwrap();

    drop(target);
    // While another link uses the database, what both share stays.
    server.execute("INSERT INTO tidelock.replay VALUES ('other', 'log', 1)").await.unwrap();
    let steps = plan_removal(&session, "main", &changed).await.unwrap();
    assert!(!steps.iter().any(|step| step.sql.contains("DROP SCHEMA")), "{steps:?}");
    apply(&mut session, &steps).await.unwrap();
    let steps = plan_removal(&session, "other", &changed).await.unwrap();
    apply(&mut session, &steps).await.unwrap();
    assert_eq!(plan_removal(&session, "main", &changed).await.unwrap(), vec![]);
    assert_eq!(one(&server, "SELECT count(*) FROM salesforce.account").await, "2");
    server.execute("TRUNCATE salesforce.account").await.unwrap();
}
