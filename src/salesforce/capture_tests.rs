//! Capture, against small servers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tonic::{Code, Status};

use super::*;
use crate::flow::Own;
use crate::protocol::eventbus::{ConsumerEvent, ProducerEvent};
use crate::salesforce::capture_event::tests::{Draft, SCHEMA, catalog, mapping, text};
use crate::salesforce::capture_tell::sha256_hex;
use crate::salesforce::pubsub::PubSubOptions;
use crate::salesforce::pubsub::tests::{Stub, coded};
use crate::salesforce::rest::tests::{Seen, serve};

/// A log that keeps batches in memory; it may hold back that they are durable.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) batches: Mutex<Vec<Batch>>,
    held: AtomicBool,
    released: Arc<Notify>,
}

impl Memory {
    pub(crate) fn events(&self) -> Vec<Event> {
        self.batches.lock().unwrap().iter().flat_map(|batch| batch.events.clone()).collect()
    }

    /// What the events say, one line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.events().iter().map(line).collect()
    }

    /// Waits until there are this many events.
    pub(crate) async fn until(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let lines = self.lines();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < deadline, "only these came: {lines:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Intake for Memory {
    async fn offer(&self, batch: Batch) -> Result<impl Future<Output = Result<Receipt>> + Send + 'static> {
        let wait = self.held.load(Ordering::SeqCst).then(|| self.released.clone());
        self.batches.lock().unwrap().push(batch);
        Ok(async move {
            if let Some(released) = wait {
                released.notified().await;
            }
            Ok(Receipt { tail: crate::change::Offset(0), duplicates: 0, more: false })
        })
    }
}

fn line(event: &Event) -> String {
    let Position::Salesforce { replay_id, index, .. } = &event.position else { panic!("{event:?}") };
    let said = match &event.item {
        Item::Row(row) => {
            let mapping = mapping();
            let fields = row.fields.iter().map(|(f, v)| format!(" {}={v}", mapping.field(*f).unwrap().name));
            let fields: String =
                fields.filter(|f| !f.starts_with(" SystemModstamp") && !f.starts_with(" Id=")).collect();
            format!("{:?} {}{fields}", row.operation, row.salesforce_id.as_ref().unwrap())
        }
        Item::Progress => "Progress".into(),
        Item::Truncate { .. } => "Truncate".into(),
        Item::Applied { .. } => "Applied".into(),
        Item::Notice(Notice::Gap { reason, scope, .. }) => format!("Gap {} {scope}", reason.split(',').next().unwrap()),
        Item::Notice(Notice::Backfill { rows, after, finished, .. }) => format!("Backfill {rows} {after} {finished}"),
        Item::Notice(other) => format!("{other:?}"),
    };
    format!("{replay_id}+{index} {said}")
}

struct Bench {
    stub: Stub,
    memory: Arc<Memory>,
    status: Arc<CaptureStatus>,
    copies: Arc<Copies>,
    calls: Seen,
    rest: Rest,
    endpoint: String,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    last_commit: Option<Micros>,
}

impl Bench {
    /// Servers, of which REST answers by `answer`.
    async fn new(answer: impl Fn(&str, &str) -> (u16, String) + Clone + Send + Sync + 'static) -> Self {
        let (rest, calls, mut serving) = serve(answer).await;
        let (stub, mut tasks) = (Stub::default(), JoinSet::new());
        stub.schemas.lock().unwrap().insert("schema".into(), SCHEMA.into());
        let endpoint = stub.serve(&mut tasks).await;
        tasks.spawn(async move { while serving.join_next().await.is_some() {} });
        let (memory, status, copies, cancel) = Default::default();
        Self { stub, memory, status, copies, calls, rest, endpoint, cancel, tasks, last_commit: None }
    }

    fn capture(&self, start: Start) -> impl Future<Output = Result<()>> + Send + 'static {
        let options = PubSubOptions { endpoint: self.endpoint.clone(), ..PubSubOptions::default() };
        let setup = CaptureSetup {
            pubsub: PubSub::new(options, self.rest.auth().clone()).unwrap(),
            rest: self.rest.clone(),
            catalog: catalog(),
            topic: ALL_CHANGES.into(),
            stream: StreamId(3),
            last_commit: self.last_commit,
            copies: self.copies.clone(),
            status: self.status.clone(),
        };
        Capture::new(setup).run(start, self.memory.clone(), self.cancel.clone())
    }

    fn start(&mut self, start: Start) {
        let run = self.capture(start);
        self.tasks.spawn(async move { run.await.unwrap() });
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        // The capture is the last task to be started and the only one that ends by itself.
        let ended = tokio::time::timeout(Duration::from_secs(10), self.tasks.join_next()).await.unwrap();
        ended.unwrap().unwrap();
        self.tasks.shutdown().await;
    }
}

fn nothing(_: &str, _: &str) -> (u16, String) {
    (404, r#"[{"errorCode":"NOT_FOUND","message":"no"}]"#.into())
}

#[allow(clippy::unnecessary_wraps)]
fn response(events: Vec<(u8, Draft)>) -> std::result::Result<FetchResponse, Status> {
    let events: Vec<ConsumerEvent> = events
        .into_iter()
        .map(|(replay_id, draft)| ConsumerEvent {
            event: Some(ProducerEvent {
                id: format!("event {replay_id}"),
                schema_id: "schema".into(),
                payload: draft.encode(),
                headers: vec![],
            }),
            replay_id: vec![0, replay_id],
        })
        .collect();
    let latest_replay_id = events.last().map_or(vec![0, 200], |e| e.replay_id.clone());
    Ok(FetchResponse { events, latest_replay_id, pending_num_requested: 50, ..FetchResponse::default() })
}

fn renamed(name: &str) -> Draft {
    Draft { changed: vec!["0x02"], name: text(name), ..Draft::default() }
}

const A: &str = "001000000000001AAA";
const B: &str = "001000000000002AAA";

#[tokio::test]
async fn events_become_rows_in_order() {
    let mut bench = Bench::new(nothing).await;
    let script = bench.stub.script();
    bench.start(Start::Earliest);
    let created = Draft {
        change: "CREATE",
        ids: vec![A, B],
        name: text("Acme"),
        origin: "x;client=tidelock-x",
        ..Draft::default()
    };
    let foreign = || Draft { entity: "Contact", ..Draft::default() };
    let gone = Draft { change: "DELETE", commit_ms: 1_795_233_605_000, ..Draft::default() };
    script.send(response(vec![(1, created), (2, foreign()), (3, renamed("Beta")), (4, foreign())])).await.unwrap();
    script.send(response(vec![(5, gone)])).await.unwrap();
    let lines = bench.memory.until(5).await;
    assert_eq!(
        lines,
        [
            format!(
                "0001+0 Insert {A} Name=Acme BillingCity=null Active__c=false IsDeleted=false Notes__c=null Loc__Latitude__s=null"
            ),
            format!(
                "0001+1 Insert {B} Name=Acme BillingCity=null Active__c=false IsDeleted=false Notes__c=null Loc__Latitude__s=null"
            ),
            format!("0003+0 Update {A} Name=Beta"),
            "0004+0 Progress".into(),
            format!("0005+0 Delete {A}"),
        ]
    );
    let events = bench.memory.events();
    let row = |n: usize| match &events[n].item {
        Item::Row(row) => row.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((row(0).own, row(2).own), (Own::Marked, Own::No));
    assert!(row(1).fields.iter().any(|(_, v)| v.as_text() == Some(B)));
    assert_eq!(events[2].committed_at, 1_795_233_600_000_000);
    assert_eq!(
        (events[2].transaction.id.as_str(), events[2].transaction.index, events[2].transaction.last),
        ("key", 2, false)
    );
    assert_eq!(events[2].who.user, "005000000000009AAA");
    let deadline = Instant::now() + Duration::from_secs(5);
    while bench.status.stream_time() != Some(1_795_233_605_000_000) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((bench.status.events(), bench.status.own_events(), bench.status.foreign_events()), (5, 1, 2));
    assert!(bench.status.connected());
    bench.stop().await;
}

#[tokio::test]
async fn a_broken_stream_is_resumed_from_what_is_durable() {
    let mut bench = Bench::new(nothing).await;
    let (first, second, third) = (bench.stub.script(), bench.stub.script(), bench.stub.script());
    bench.start(Start::After("00ff".into()));
    first.send(response(vec![(1, renamed("one"))])).await.unwrap();
    bench.memory.until(1).await;
    first.send(Err(Status::unavailable("RST_STREAM"))).await.unwrap();
    second.send(response(vec![(2, renamed("two"))])).await.unwrap();
    bench.memory.until(2).await;
    // A token that is refused is renewed, and the stream goes on.
    second.send(Err(coded(Code::Unauthenticated, "service.auth.error"))).await.unwrap();
    third.send(response(vec![(3, renamed("three"))])).await.unwrap();
    bench.memory.until(3).await;
    let asked = bench.stub.asked.lock().unwrap().clone();
    let from: Vec<_> =
        asked.iter().filter(|r| !r.replay_id.is_empty()).map(|r| (r.replay_preset, r.replay_id.clone())).collect();
    assert_eq!(from, [(2, vec![0, 255]), (2, vec![0, 1]), (2, vec![0, 2])]);
    assert_eq!(*bench.stub.tokens.lock().unwrap(), ["tok1", "tok1", "tok2"]);
    assert_eq!(bench.status.reconnects(), 2);
    bench.stop().await;
}

#[tokio::test]
async fn an_event_that_is_delivered_again_is_left_out() {
    let mut bench = Bench::new(nothing).await;
    let script = bench.stub.script();
    bench.start(Start::Earliest);
    let again = |replay_id: u8| {
        let mut again = response(vec![(1, renamed("one"))]).unwrap();
        again.events[0].replay_id = vec![0, replay_id];
        again
    };
    let mut twice = again(1);
    twice.events.extend(again(2).events);
    script.send(Ok(twice)).await.unwrap();
    script.send(Ok(again(3))).await.unwrap();
    script.send(response(vec![(4, renamed("one"))])).await.unwrap();
    let lines = bench.memory.until(4).await;
    let expected = [
        format!("0001+0 Update {A} Name=one"),
        "0002+0 Progress".into(),
        "0003+0 Progress".into(),
        format!("0004+0 Update {A} Name=one"),
    ];
    assert_eq!(lines, expected);
    assert_eq!(bench.status.repeated_events(), 2);
    bench.stop().await;
}

#[tokio::test]
async fn keepalives_move_the_place_and_the_time() {
    let mut bench = Bench::new(nothing).await;
    let script = bench.stub.script();
    bench.memory.held.store(true, Ordering::SeqCst);
    bench.start(Start::Latest);
    script.send(response(vec![])).await.unwrap();
    assert_eq!(bench.memory.until(1).await, ["00c8+0 Progress"]);
    // It counts once it is durable.
    assert_eq!((bench.status.stream_time(), bench.status.in_flight()), (None, 1));
    bench.memory.released.notify_one();
    let deadline = Instant::now() + Duration::from_secs(5);
    while bench.status.stream_time().is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let behind = crate::clock::system().now() - bench.status.stream_time().unwrap();
    assert!((0..10_000_000).contains(&behind), "{behind}");
    // The same place again is not worth a write.
    script.send(response(vec![])).await.unwrap();
    script.send(response(vec![(1, renamed("one"))])).await.unwrap();
    assert_eq!(bench.memory.until(2).await[1], format!("0001+0 Update {A} Name=one"));
    bench.memory.released.notify_one();
    bench.stop().await;
}

fn account(id: &str, name: &str, deleted: bool) -> String {
    format!(
        r#"{{"attributes":{{}},"Id":"{id}","IsDeleted":{deleted},"SystemModstamp":"2026-11-21T04:00:09.000+0000","Name":"{name}"}}"#
    )
}

#[tokio::test]
async fn gaps_are_read_in_their_own_batch() {
    let answer = |uri: &str, _: &str| match uri {
        "/services/data/v66.0/composite/sobjects/Account" => (200, format!("[{},null]", account(A, "now", false))),
        _ => nothing(uri, ""),
    };
    let mut bench = Bench::new(answer).await;
    let script = bench.stub.script();
    bench.start(Start::Earliest);
    let gap = Draft { change: "GAP_UPDATE", ids: vec![A, B], ..Draft::default() };
    script.send(response(vec![(1, renamed("before")), (2, gap), (3, renamed("after"))])).await.unwrap();
    assert_eq!(
        bench.memory.until(5).await,
        [
            format!("0001+0 Update {A} Name=before"),
            format!("0002+0 Gap GAP_UPDATE {A},{B}"),
            format!("0002+1 Image {A} Name=now IsDeleted=false"),
            format!("0002+2 Missing {B}"),
            format!("0003+0 Update {A} Name=after"),
        ]
    );
    assert_eq!(bench.memory.batches.lock().unwrap().len(), 1);
    assert_eq!(bench.memory.events()[2].committed_at, 1_795_233_609_000_000);
    assert_eq!((bench.status.gap_events(), bench.status.rereads()), (1, 2));
    bench.stop().await;
}

#[tokio::test]
async fn long_texts_are_read_and_checked() {
    let answer = |uri: &str, _: &str| match uri {
        "/services/data/v66.0/composite/sobjects/Account" => (
            200,
            format!(
                r#"[{{"Id":"{A}","SystemModstamp":"2026-11-21T04:00:09.000+0000","Name":"n","Notes__c":"long text"}}]"#
            ),
        ),
        _ => nothing(uri, ""),
    };
    let mut bench = Bench::new(answer).await;
    let script = bench.stub.script();
    bench.start(Start::Earliest);
    let edited = |hash: String| Draft {
        changed: vec!["0x10"],
        diff: vec!["0x10"],
        notes: Some(format!("--- \n+++ {hash}\n@@ -1 +1 @@\n-x\n+y")),
        origin: "x;client=tidelock-x",
        ..Draft::default()
    };
    script.send(response(vec![(1, edited(sha256_hex(b"long text")))])).await.unwrap();
    script.send(response(vec![(2, edited("0".repeat(64)))])).await.unwrap();
    assert_eq!(
        bench.memory.until(3).await,
        [
            format!("0001+0 Update {A} Notes__c=long text"),
            format!("0002+0 Update {A}"),
            format!("0002+1 Image {A} Name=n Notes__c=long text"),
        ]
    );
    let Item::Row(row) = &bench.memory.events()[0].item else { panic!() };
    assert_eq!(row.own, Own::Marked);
    bench.stop().await;
}

/// Two pages' worth of accounts for queries by key, of which the second is deleted.
fn pages(uri: &str, _: &str) -> (u16, String) {
    if uri.contains("COUNT") {
        return (200, r#"{"totalSize":2,"done":true,"records":[]}"#.into());
    }
    assert!(uri.contains("ORDER+BY+Id"), "{uri}");
    let rows = [account(A, "swept", false), account(B, "gone", true)].join(",");
    (200, format!(r#"{{"totalSize":2,"done":true,"records":[{rows}]}}"#))
}

#[tokio::test]
async fn an_overflow_reads_the_object_again_beside_the_stream() {
    let mut bench = Bench::new(pages).await;
    let script = bench.stub.script();
    bench.start(Start::Earliest);
    let overflow = Draft { change: "GAP_OVERFLOW", ids: vec!["000000000000000AAA"], ..Draft::default() };
    script.send(response(vec![(1, overflow)])).await.unwrap();
    assert_eq!(
        bench.memory.until(5).await,
        [
            "0001+0 Gap GAP_OVERFLOW Account".into(),
            "0001+1 Backfill 0 sweep: false".into(),
            format!("+0 Reread {A} Name=swept IsDeleted=false"),
            format!("+0 Missing {B}"),
            format!("+0 Backfill 2 sweep:{B} true"),
        ]
    );
    assert_eq!(bench.memory.batches.lock().unwrap().len(), 2);
    assert!(bench.calls.lock().unwrap()[0].contains("/queryAll?"));
    assert_eq!(bench.status.sweeps(), 1);
    script.send(response(vec![(2, renamed("after"))])).await.unwrap();
    bench.memory.until(6).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_lost_stream_is_read_again_and_taken_up_at_its_oldest_event() {
    let mut bench = Bench::new(pages).await;
    bench.last_commit = Some(1_795_233_600_000_000);
    let (first, second) = (bench.stub.script(), bench.stub.script());
    first.send(Err(coded(Code::InvalidArgument, "subscription.fetch.replayid.corrupted"))).await.unwrap();
    bench.start(Start::After("0009".into()));
    let old = Draft { commit_ms: 1_795_233_600_000 - 301_000, ..renamed("captured before") };
    let new = Draft { commit_ms: 1_795_233_700_000, ..renamed("new") };
    second.send(response(vec![(10, old), (11, new)])).await.unwrap();
    let lines = bench.memory.until(4).await;
    assert!(lines[0].starts_with("+0 Gap Salesforce Pub/Sub"), "{lines:#?}");
    assert_eq!(
        lines[1..],
        [
            format!("+0 Image {A} Name=swept IsDeleted=false"),
            format!("+0 Missing {B}"),
            format!("000b+0 Update {A} Name=new"),
        ]
    );
    let calls = bench.calls.lock().unwrap().clone();
    assert!(
        calls[0].contains("queryAll") && calls[0].contains("SystemModstamp+%3E%3D+2026-11-21T03%3A55%3A00Z"),
        "{calls:?}"
    );
    let presets: Vec<_> = bench.stub.asked.lock().unwrap().iter().map(|r| r.replay_preset).take(2).collect();
    assert!(presets.contains(&1), "{presets:?}");
    assert_eq!(bench.status.recoveries(), 1);
    bench.stop().await;
}

#[tokio::test]
async fn new_events_only_and_a_break_before_the_first_place_loses_nothing() {
    let mut bench = Bench::new(pages).await;
    let (first, second) = (bench.stub.script(), bench.stub.script());
    bench.start(Start::Latest);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !bench.status.connected() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.send(Err(Status::unavailable("RST_STREAM"))).await.unwrap();
    let now = crate::clock::system().now() / 1_000;
    let old = Draft { commit_ms: now - 3_600_000, ..renamed("old") };
    second.send(response(vec![(1, old), (2, Draft { commit_ms: now, ..renamed("missed") })])).await.unwrap();
    let lines = bench.memory.until(4).await;
    assert!(lines[0].starts_with("+0 Gap the first subscription broke"), "{lines:#?}");
    assert_eq!(lines[3], format!("0002+0 Update {A} Name=missed"));
    let presets: Vec<_> = bench.stub.asked.lock().unwrap().iter().map(|r| r.replay_preset).collect();
    assert!(presets.contains(&1), "{presets:?}");
    bench.stop().await;
}

#[tokio::test]
async fn what_connecting_again_does_not_mend_ends_the_capture() {
    let bench = Bench::new(nothing).await;
    let script = bench.stub.script();
    script.send(Err(coded(Code::PermissionDenied, "topic.meta.permission"))).await.unwrap();
    assert_eq!(bench.capture(Start::Latest).await.unwrap_err().kind(), Kind::Denied);
    let script = bench.stub.script();
    let mut garbage = response(vec![(1, renamed("x"))]).unwrap();
    garbage.events[0].event.as_mut().unwrap().payload.truncate(9);
    script.send(Ok(garbage)).await.unwrap();
    assert_eq!(bench.capture(Start::Earliest).await.unwrap_err().kind(), Kind::Protocol);
    assert_eq!(bench.capture(Start::After("xyz".into())).await.unwrap_err().kind(), Kind::Corrupt);
    assert!(bench.memory.lines().is_empty());
}

#[tokio::test]
async fn a_backfill_goes_on_where_it_stopped() {
    let (rest, calls, _tasks) = serve(pages).await;
    let memory = Memory::default();
    let backfill = Backfill::new(rest, catalog(), StreamId(3), Arc::default());
    let told = Mutex::new(Vec::new());
    let cancel = CancellationToken::new();
    backfill.run(MappingId(0), A, 7, &memory, |p| told.lock().unwrap().push(p), &cancel).await.unwrap();
    let lines = memory.lines();
    assert_eq!(lines[0], format!("+0 Backfill {A} Name=swept IsDeleted=false"));
    assert_eq!(lines[2], format!("+0 Backfill 9 {B} true"));
    assert_eq!(memory.events()[0].committed_at, 1_795_233_609_000_000);
    assert!(calls.lock().unwrap()[1].contains(&format!("Id+%3E+%27{A}%27")));
    let told = told.into_inner().unwrap();
    assert_eq!((told.len(), told[0].rows, told[0].total, told[0].finished), (1, 9, Some(9), true));
}

#[tokio::test]
async fn a_backfill_that_an_overflow_met_is_followed_by_a_sweep() {
    let (rest, _calls, _tasks) = serve(pages).await;
    let memory = Memory::default();
    let backfill = Backfill::new(rest, catalog(), StreamId(3), Arc::default());
    let cancel = CancellationToken::new();
    let place = format!("{A}+sweep");
    backfill.run(MappingId(0), &place, 7, &memory, |_| (), &cancel).await.unwrap();
    let notices: Vec<String> =
        memory.lines().into_iter().filter(|l| l.contains("+0 Backfill") && !l.contains("Name=")).collect();
    assert_eq!(notices[notices.len() - 1], format!("+0 Backfill 11 sweep:{B} true"));
    assert!(notices.contains(&"+0 Backfill 9 sweep: false".to_owned()), "{notices:?}");
    assert!(memory.lines().contains(&format!("+0 Missing {B}")));
}

#[test]
fn replay_ids_are_hex() {
    assert_eq!(to_hex(&[0, 0xab, 0x10]), "00ab10");
    assert_eq!(from_hex("00ab10"), Some(vec![0, 0xab, 0x10]));
    for bad in ["", "0", "0g", "é"] {
        assert_eq!(from_hex(bad), None, "{bad}");
    }
    assert_eq!(object_topic("Account"), "/data/AccountChangeEvent");
    assert_eq!(object_topic("Employee__c"), "/data/Employee__ChangeEvent");
}
