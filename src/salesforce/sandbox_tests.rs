//! Capture and backfill against the sandbox: whatever goes wrong on the way, what the log is told adds up to what the org holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::auth::{Auth, AuthOptions, Flow};
use super::backfill::{Backfill, Copies, Known};
use super::capture::{ALL_CHANGES, Capture, CaptureSetup, Start};
use super::capture_status::CaptureStatus;
use super::http_client;
use super::pubsub::{PubSub, PubSubOptions};
use super::rest::{Rest, RestOptions};
use crate::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, MappingDef, MappingId, Notice,
    Offset, Policy, Position, StreamId, Value,
};
use crate::clock::Micros;
use crate::error::Result;
use crate::flow::{Batch, Event, Intake, Item, Own, Receipt, Row, RowOperation};
use crate::mapping::from_json;
use crate::sandbox::{Config, Running, Sandbox};

/// What a log would hold of the org: rows by mapping and id.
#[derive(Default)]
struct Mirror {
    rows: BTreeMap<(MappingId, String), (Micros, BTreeMap<FieldId, Value>)>,
    events: Vec<Event>,
    replay_id: String,
}

impl Mirror {
    fn apply(&mut self, event: Event) {
        if let Position::Salesforce { replay_id, .. } = &event.position
            && !replay_id.is_empty()
        {
            self.replay_id = replay_id.to_string();
        }
        if let Item::Row(row) = &event.item {
            self.row(event.committed_at, row);
        }
        self.events.push(event);
    }

    /// An image stands unless the stream has told something later; events before an image are in it.
    fn row(&mut self, at: Micros, row: &Row) {
        let id = (row.mapping, row.salesforce_id.as_ref().unwrap().to_string());
        let known = self.rows.get(&id).map(|(at, _)| *at);
        if known.is_some_and(|known| at < known) {
            return;
        }
        match row.operation {
            RowOperation::Delete | RowOperation::Missing => drop(self.rows.remove(&id)),
            RowOperation::Insert
            | RowOperation::Undelete
            | RowOperation::Image
            | RowOperation::Reread
            | RowOperation::Backfill => {
                self.rows.insert(id, (at, row.fields.iter().cloned().collect()));
            }
            RowOperation::Update => {
                if let Some((stamp, fields)) = self.rows.get_mut(&id) {
                    *stamp = at;
                    fields.extend(row.fields.iter().cloned());
                }
            }
        }
    }
}

#[derive(Default)]
struct Memory(Mutex<Mirror>);

impl Intake for Memory {
    async fn offer(&self, batch: Batch) -> Result<impl Future<Output = Result<Receipt>> + Send + 'static> {
        let mut mirror = self.0.lock().unwrap();
        batch.events.into_iter().for_each(|event| mirror.apply(event));
        Ok(async { Ok(Receipt { tail: Offset(0), duplicates: 0, more: false }) })
    }
}

fn mapping(id: u16, sobject: &str, fields: &[(&str, FieldKind)]) -> MappingDef {
    let fields: Vec<FieldDef> = fields
        .iter()
        .enumerate()
        .map(|(n, (name, kind))| FieldDef {
            id: FieldId(n as u16),
            name: (*name).to_owned(),
            column: name.to_lowercase(),
            kind: kind.clone(),
            policy: Policy::SalesforceWins,
            owner: None,
            foreign_edit: ForeignEdit::Revert,
            createable: true,
            updateable: true,
        })
        .collect();
    MappingDef {
        id: MappingId(id),
        name: sobject.to_lowercase(),
        sobject: sobject.to_owned(),
        schema: "salesforce".into(),
        table: sobject.to_lowercase(),
        key_columns: vec!["id".into()],
        next_field: FieldId(fields.len() as u16),
        owner: None,
        fields,
        external_id: None,
        delete: DeletePolicy::default(),
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::default(),
        rank: id,
    }
}

fn catalog() -> Arc<Catalog> {
    let text = |length| FieldKind::Text { length };
    let account = [
        ("Id", FieldKind::Id),
        ("Name", text(255)),
        ("BillingCity", text(40)),
        ("BillingStreet", text(255)),
        ("Industry", FieldKind::Picklist),
        ("AnnualRevenue", FieldKind::Number { scale: 0 }),
        ("NumberOfEmployees", FieldKind::Integer),
        ("Description", text(32_000)),
        ("ParentId", FieldKind::Reference { to: vec!["Account".into()] }),
        ("CreatedDate", FieldKind::DateTime),
        ("LastModifiedDate", FieldKind::DateTime),
        ("IsDeleted", FieldKind::Boolean),
    ];
    let contact = [
        ("Id", FieldKind::Id),
        ("Name", text(121)),
        ("FirstName", text(40)),
        ("LastName", text(80)),
        ("MailingCity", text(40)),
        ("Email", text(80)),
        ("Birthdate", FieldKind::Date),
        ("AccountId", FieldKind::Reference { to: vec!["Account".into()] }),
    ];
    let mappings = vec![mapping(0, "Account", &account), mapping(1, "Contact", &contact)];
    Arc::new(Catalog { mappings, next_mapping: MappingId(2), ..Catalog::default() })
}

struct World {
    org: Running,
    memory: Arc<Memory>,
    status: Arc<CaptureStatus>,
    copies: Arc<Copies>,
    catalog: Arc<Catalog>,
    rest: Rest,
    pubsub: PubSub,
    running: Option<(CancellationToken, JoinSet<Result<()>>)>,
    /// Replay ids of an empty org mean nothing to compare with, so each world knows how far its log was.
    last_commit: Option<Micros>,
}

impl World {
    async fn new(config: Config) -> Self {
        let org = Sandbox::start(config, CancellationToken::new()).await.unwrap();
        // Over TLS, with the sandbox's own certificate, as against a real org.
        let certificate = org.certificate_pem.clone().into_bytes();
        let (http, clock) = (http_client(Some(&certificate)).unwrap(), crate::clock::system());
        let url = org.https_url();
        let options = AuthOptions {
            login_url: url.clone(),
            client_id: "tidelock".into(),
            flow: Flow::ClientCredentials { client_secret: "tidelock-secret".into() },
            instance_url: None,
            timeout: Duration::from_secs(10),
        };
        let auth = Auth::new(options, http.clone(), clock.clone()).unwrap();
        let options = RestOptions {
            api_version: "66.0".into(),
            client_name: "tidelock".into(),
            timeout: Duration::from_secs(10),
        };
        let rest = Rest::new(auth.clone(), http, clock, options).unwrap();
        let options = PubSubOptions { endpoint: url, extra_ca_pem: Some(certificate), ..PubSubOptions::default() };
        let pubsub = PubSub::new(options, auth).unwrap();
        let (memory, status): (Arc<Memory>, _) = Default::default();
        let known = memory.clone();
        let known = Known::new(move |mapping, after, limit| {
            let known = known.clone();
            Box::pin(async move {
                let mirror = known.0.lock().unwrap();
                let ids = mirror.rows.keys().filter(|(m, id)| *m == mapping && id.as_str() > after.as_str());
                Ok(ids.take(limit).map(|(_, id)| id.as_str().into()).collect())
            })
        });
        let copies = Arc::new(Copies::knowing(known));
        Self { org, memory, status, copies, catalog: catalog(), rest, pubsub, running: None, last_commit: None }
    }

    async fn start(&mut self, start: Start) {
        self.status = Arc::default();
        let setup = CaptureSetup {
            pubsub: self.pubsub.clone(),
            rest: self.rest.clone(),
            catalog: self.catalog.clone(),
            topic: ALL_CHANGES.into(),
            stream: StreamId(0),
            last_commit: self.last_commit,
            copies: self.copies.clone(),
            status: self.status.clone(),
        };
        let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(Capture::new(setup).run(start, self.memory.clone(), cancel.clone()));
        self.running = Some((cancel, tasks));
        self.until("connected", |world| world.status.connected()).await;
    }

    /// Stops the capture, and says where a restart would begin.
    async fn stop(&mut self) -> Start {
        let (cancel, mut tasks) = self.running.take().unwrap();
        cancel.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        self.last_commit = self.status.last_commit();
        Start::After(self.memory.0.lock().unwrap().replay_id.as_str().into())
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is(self) {
            assert!(Instant::now() < deadline, "{what} did not come; {:?}", self.status);
            if let Some((_, tasks)) = &mut self.running
                && let Some(ended) = tasks.try_join_next()
            {
                panic!("the capture ended: {ended:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn admin(&self, path: &str, body: Json) -> Json {
        self.org.admin("POST", path, &body).unwrap()
    }

    fn faults(&self, faults: Json) {
        self.org.admin("PUT", "/faults", &faults).unwrap();
    }

    /// Commits as a person and returns the ids.
    fn commit(&self, operations: Json) -> Vec<String> {
        let answer = self.admin("/commit", json!({"user": "Bob Seller", "operations": operations}));
        answer["results"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    }

    fn account(&self, name: &str) -> String {
        self.commit(json!([{"op": "create", "object": "Account", "fields": {"Name": name}}])).remove(0)
    }

    /// How the mirror differs from the org; empty when it does not.
    fn differences(&self) -> Vec<String> {
        let mut held = BTreeMap::new();
        for mapping in &self.catalog.mappings {
            let dump = self.org.admin("GET", &format!("/dump/{}", mapping.sobject), &Json::Null).unwrap();
            for record in dump["records"].as_array().unwrap() {
                let fields = mapping.fields.iter().map(|f| (f.id, from_json(&f.kind, &record[&f.name])));
                let fields: BTreeMap<_, _> = fields.collect();
                held.insert((mapping.id, record["Id"].as_str().unwrap().to_owned()), fields);
            }
        }
        let mirror = self.memory.0.lock().unwrap();
        let mut differences = Vec::new();
        for (id, fields) in &held {
            match mirror.rows.get(id) {
                None => differences.push(format!("{id:?} is not mirrored")),
                Some((_, mirrored)) if mirrored != fields => {
                    let wrong = fields.iter().filter(|(f, v)| mirrored.get(f) != Some(v));
                    let wrong = wrong.map(|(f, v)| {
                        format!("{:?} is {v:?}, mirrored {:?}", self.catalog.field_name(id.0, *f), mirrored.get(f))
                    });
                    differences.push(format!("{id:?}: {:?}", wrong.collect::<Vec<_>>()));
                }
                Some(_) => {}
            }
        }
        differences.extend(mirror.rows.keys().filter(|id| !held.contains_key(*id)).map(|id| format!("{id:?} is gone")));
        differences
    }

    async fn until_equal(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let differences = self.differences();
            if differences.is_empty() {
                return;
            }
            if let Some((_, tasks)) = &mut self.running
                && let Some(ended) = tasks.try_join_next()
            {
                panic!("the capture ended: {ended:?}");
            }
            assert!(Instant::now() < deadline, "{differences:#?}\n{:?}", self.status);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn long_text(word: &str) -> String {
    let line = |n| format!("line {n} of a text that is long enough to be told as a difference, {word}");
    (0..60).map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_people_do_is_mirrored() {
    let mut world = World::new(Config::default()).await;
    world.start(Start::Earliest).await;
    let a = world.account("Acme");
    let b = world.commit(json!([
        {"op": "create", "object": "Account", "fields": {"Name": "Beta", "BillingCity": "Oslo", "BillingStreet": "1 Road",
            "Industry": "Energy", "AnnualRevenue": 1_234_567, "NumberOfEmployees": 12, "ParentId": a, "Description": long_text("old")}},
        {"op": "create", "object": "Contact", "fields": {"FirstName": "Marie", "LastName": "Curie", "MailingCity": "Paris",
            "Email": "marie@example.com", "Birthdate": "1867-11-07", "AccountId": a}}
    ]));
    world.until_equal().await;
    world.commit(json!([
        {"op": "update", "id": b[0], "fields": {"BillingCity": null, "Industry": null, "AnnualRevenue": 5}},
        {"op": "update", "id": b[1], "fields": {"FirstName": null, "MailingCity": "Warsaw"}}
    ]));
    world.commit(json!([{"op": "update", "id": b[0], "fields": {"Description": long_text("old").replacen("line 7 ", "line seven ", 1)}}]));
    world.until_equal().await;
    // The same change of several records in one transaction is one event.
    world.commit(json!([
        {"op": "update", "id": a, "fields": {"BillingCity": "Bergen"}},
        {"op": "update", "id": b[0], "fields": {"BillingCity": "Bergen"}}
    ]));
    world.commit(json!([{"op": "delete", "id": b[1]}]));
    world.until_equal().await;
    world.admin("/undelete", json!({"ids": [b[1]]}));
    world.until_equal().await;
    assert_eq!(world.status.gap_events(), 0);
    assert!(world.status.rereads() > 0, "the long text and the composed name must have been read");
    let mirror = world.memory.0.lock().unwrap();
    assert!(mirror.events.iter().all(|e| !matches!(&e.item, Item::Row(row) if row.own == Own::Marked)));
    assert!(!mirror.events.iter().any(|e| matches!(&e.item, Item::Row(row) if row.operation.is_image())));
}

#[tokio::test]
async fn our_own_writes_are_marked() {
    let mut world = World::new(Config::default()).await;
    world.start(Start::Earliest).await;
    world.rest.post("sobjects/Account", &json!({"Name": "ours"})).await.unwrap();
    world.account("theirs");
    world.until_equal().await;
    let mirror = world.memory.0.lock().unwrap();
    let own: Vec<Own> = mirror
        .events
        .iter()
        .filter_map(|e| match &e.item {
            Item::Row(row) => Some(row.own),
            _ => None,
        })
        .collect();
    assert_eq!(own, [Own::Marked, Own::No]);
    assert_eq!(world.status.own_events(), 1);
}

#[tokio::test]
async fn broken_streams_expired_tokens_and_duplicates_lose_nothing() {
    let mut world = World::new(Config::default()).await;
    world.start(Start::Earliest).await;
    world.faults(json!({"drop_stream_every": 7, "duplicate_events": 0.3, "error_503": 0.1}));
    let ids: Vec<String> = (0..12).map(|n| world.account(&format!("account {n}"))).collect();
    for round in 0..6 {
        for id in &ids {
            world.commit(json!([{"op": "update", "id": id, "fields": {"NumberOfEmployees": round, "Name": format!("round {round}")}}]));
        }
        match round % 3 {
            0 => drop(world.admin("/drop-streams", json!({}))),
            1 => drop(world.admin("/expire-tokens", json!({}))),
            _ => world.until_equal().await,
        }
    }
    world.until_equal().await;
    assert!(world.status.reconnects() > 0);
    assert!(world.status.repeated_events() > 0);
    // Stopped and started again: it goes on where it was, and tells nothing twice.
    let start = world.stop().await;
    let before = world.memory.0.lock().unwrap().events.len();
    world.faults(json!({}));
    world.account("while it was stopped");
    world.start(start).await;
    world.until_equal().await;
    let mirror = world.memory.0.lock().unwrap();
    let after = mirror.events[before..].iter().filter(|e| matches!(e.item, Item::Row(_))).count();
    assert_eq!(after, 1);
}

#[tokio::test]
async fn gaps_overflows_and_wildcards_are_read_again() {
    let mut world = World::new(Config::default()).await;
    world.start(Start::Earliest).await;
    let ids: Vec<String> = (0..5).map(|n| world.account(&format!("account {n}"))).collect();
    world.until_equal().await;
    world.faults(json!({"gap_next": 3}));
    world.commit(json!([{"op": "update", "id": ids[0], "fields": {"Name": "in the gap"}}]));
    world.commit(json!([{"op": "create", "object": "Account", "fields": {"Name": "new in the gap"}}]));
    world.commit(json!([{"op": "delete", "id": ids[1]}]));
    world.commit(json!([{"op": "update", "id": ids[0], "fields": {"BillingCity": "after the gap"}}]));
    world.until_equal().await;
    assert_eq!(world.status.gap_events(), 3);
    // The events of these are never told; the overflow stands for them.
    world.admin("/overflow", json!({"object": "Account"}));
    world.until("sweep", |world| world.finished_sweeps() == 1).await;
    world.admin("/wildcard", json!({"object": "Account", "change": "UPDATE"}));
    world.until("second sweep", |world| world.finished_sweeps() == 2).await;
    world.until_equal().await;
    assert_eq!(world.status.sweeps(), 2);
}

impl World {
    /// The log takes a record for alive that the org deleted for good: it is in no recycle bin.
    fn know(&self, mapping: u16, id: &str) {
        self.memory.0.lock().unwrap().rows.insert((MappingId(mapping), id.to_owned()), Default::default());
    }
}

#[tokio::test]
async fn what_is_gone_for_good_is_missed_when_an_object_is_read_again() {
    let seed = crate::sandbox::Config::default().seed;
    let seed = crate::sandbox::Seed { accounts: 2_100, ..seed };
    let mut world = World::new(Config { seed, ..Config::default() }).await;
    world.start(Start::Earliest).await;
    // One before all rows, one among them, one after them, and one of another object.
    let between = world.account("between");
    let between = format!("{}{}", &between[..15], "zzz");
    for (mapping, id) in
        [(0, "001000000000001AAA"), (0, &*between), (0, "001zzzzzzzzzzzzAAA"), (1, "003zzzzzzzzzzzzAAA")]
    {
        world.know(mapping, id);
    }
    world.admin("/overflow", json!({"object": "Account"}));
    world.until("sweep", |world| world.finished_sweeps() == 1).await;
    world.admin("/overflow", json!({"object": "Contact"}));
    world.until_equal().await;
}

impl World {
    fn finished_sweeps(&self) -> usize {
        let mirror = self.memory.0.lock().unwrap();
        let finished = |event: &&Event| matches!(&event.item, Item::Notice(Notice::Backfill { finished: true, after, .. }) if after.starts_with("sweep:"));
        mirror.events.iter().filter(finished).count()
    }
}

/// Events have whole seconds, and the org's clock is known but roughly.
#[tokio::test]
async fn a_record_that_is_missed_is_missing_before_an_undelete_of_the_same_second() {
    let world = World::new(Config::default()).await;
    let id = world.account("deleted and undeleted");
    world.commit(json!([{"op": "delete", "id": id}]));
    let clock = crate::clock::system();
    let backfill = Backfill::new(world.rest.clone(), world.catalog.clone(), StreamId(0), world.copies.clone());
    let asked = clock.now();
    let records = [(MappingId(0), id.as_str().into())];
    backfill.read_again(&records, &*world.memory, &CancellationToken::new()).await.unwrap();
    let undeleted = clock.now().div_euclid(1_000_000) * 1_000_000;
    let told = std::mem::take(&mut world.memory.0.lock().unwrap().events).remove(0);
    assert!(matches!(&told.item, Item::Row(row) if row.operation == RowOperation::Missing));
    assert!(asked < told.committed_at, "what was told before the question would count as later");
    assert!(told.committed_at <= undeleted, "an undelete of this second would be lost");
}

#[tokio::test]
async fn a_purged_replay_id_is_recovered_from() {
    let mut world = World::new(Config::default()).await;
    world.start(Start::Earliest).await;
    let ids: Vec<String> = (0..4).map(|n| world.account(&format!("account {n}"))).collect();
    world.until_equal().await;
    let start = world.stop().await;
    world.commit(json!([{"op": "update", "id": ids[0], "fields": {"Name": "unseen"}}, {"op": "delete", "id": ids[1]}]));
    world.account("created unseen");
    world.admin("/purge-events", json!({}));
    world.know(0, "001zzzzzzzzzzzzAAA");
    world.know(1, "003zzzzzzzzzzzzAAA");
    world.account("after the purge");
    world.start(start).await;
    world.until_equal().await;
    assert_eq!(world.status.recoveries(), 1);
    world.commit(json!([{"op": "update", "id": ids[2], "fields": {"Name": "seen"}}]));
    world.until_equal().await;
    let mirror = world.memory.0.lock().unwrap();
    let gaps = mirror
        .events
        .iter()
        .filter(|e| matches!(&e.item, Item::Notice(Notice::Gap { scope, .. }) if scope == "Account,Contact"));
    assert_eq!(gaps.count(), 1);
}

#[tokio::test]
async fn what_was_there_before_is_copied_while_people_go_on() {
    let seed = crate::sandbox::Config::default().seed;
    let seed = crate::sandbox::Seed { accounts: 4_100, contacts: 50, ..seed };
    let mut world = World::new(Config { seed, ..Config::default() }).await;
    world.start(Start::Latest).await;
    let backfill = Backfill::new(world.rest.clone(), world.catalog.clone(), StreamId(0), world.copies.clone());
    let steps = Mutex::new(Vec::new());
    let cancel = CancellationToken::new();
    let edited = world.account("born while copying");
    for mapping in [MappingId(0), MappingId(1)] {
        backfill.run(mapping, "", 0, &*world.memory, |p| steps.lock().unwrap().push(p), &cancel).await.unwrap();
        world.commit(json!([{"op": "update", "id": edited, "fields": {"NumberOfEmployees": mapping.0}}]));
    }
    world.until_equal().await;
    let steps = steps.into_inner().unwrap();
    assert_eq!(
        steps.iter().map(|p| (p.mapping.0, p.rows, p.finished)).collect::<Vec<_>>(),
        [(0, 2_000, false), (0, 4_000, false), (0, 4_101, true), (1, 50, true)]
    );
    assert_eq!(steps[0].total, Some(4_101));
}
