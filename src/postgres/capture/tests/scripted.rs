//! The stream over an in-memory connection, with a server that follows a script, right or wrong.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::assemble::Assembler;
use super::super::spool::Spool;
use super::super::stream::{Start, Stream};
use super::super::watermark::Windows;
use super::*;
use crate::error::{Error, Kind};
use crate::postgres::wire::{Replication, ReplicationError};
use crate::postgres::{Endpoint, Host};

/// The server's end.
struct Script {
    stream: DuplexStream,
}

/// One of our statuses: written, flushed.
type Status = (u64, u64);

impl Script {
    async fn send(&mut self, tag: u8, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_u8(tag);
        frame.put_u32(body.len() as u32 + 4);
        frame.put_slice(body);
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let tag = self.stream.read_u8().await.unwrap();
        (tag, self.body().await)
    }

    async fn body(&mut self) -> Vec<u8> {
        let length = self.stream.read_u32().await.unwrap() as usize - 4;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        body
    }

    /// Takes the startup packet and lets the client in.
    async fn let_in(&mut self) {
        let startup = String::from_utf8_lossy(&self.body().await).into_owned();
        for said in ["replication\0database", "client_encoding\0UTF8", "TimeZone\0UTC", "user\0u\0", "database\0d\0"] {
            assert!(startup.contains(said), "{startup:?}");
        }
        self.send(b'R', &0u32.to_be_bytes()).await;
        self.send(b'S', b"server_version\x0015.0\0").await;
        self.send(b'K', &[0; 8]).await;
        self.send(b'Z', b"I").await;
    }

    async fn data(&mut self, start: u64, message: &[u8]) {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(start);
        body.put_u64(start);
        body.put_i64(0);
        body.put_slice(message);
        self.send(b'd', &body).await;
    }

    async fn keepalive(&mut self, wal_end: u64, reply: bool) {
        let mut body = BytesMut::new();
        body.put_u8(b'k');
        body.put_u64(wal_end);
        body.put_i64(0);
        body.put_u8(u8::from(reply));
        self.send(b'd', &body).await;
    }

    /// A transaction that inserts a row into `t` for each id.
    async fn transaction(&mut self, commit_lsn: u64, ids: std::ops::Range<u32>) {
        let mut begin = BytesMut::new();
        begin.put_u8(b'B');
        begin.put_u64(commit_lsn);
        begin.put_i64(1_000_000);
        begin.put_u32(700);
        self.data(commit_lsn - 8, &begin).await;
        let mut relation = BytesMut::new();
        relation.put_slice(b"R\0\0\0\x10public\0t\0d\0\x03");
        for (key, name) in [(1u8, "id"), (0, "name"), (0, "sfid")] {
            relation.put_u8(key);
            relation.put_slice(name.as_bytes());
            relation.put_slice(&[0, 0, 0, 0, 25, 255, 255, 255, 255]);
        }
        self.data(commit_lsn - 8, &relation).await;
        for id in ids {
            let id = id.to_string();
            let mut insert = BytesMut::new();
            insert.put_slice(b"I\0\0\0\x10N\0\x03t");
            insert.put_u32(id.len() as u32);
            insert.put_slice(id.as_bytes());
            insert.put_slice(b"t\0\0\0\x03abcn");
            self.data(commit_lsn - 4, &insert).await;
        }
        let mut commit = BytesMut::new();
        commit.put_slice(b"C\0");
        commit.put_u64(commit_lsn);
        commit.put_u64(commit_lsn + 8);
        commit.put_i64(1_000_000);
        self.data(commit_lsn, &commit).await;
    }

    async fn status(&mut self) -> Option<Status> {
        loop {
            let (tag, body) = self.frame().await;
            if tag == b'd' && body[0] == b'r' {
                let lsn = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
                assert_eq!(lsn(9), lsn(17), "flushed and applied are one to us");
                return Some((lsn(1), lsn(9)));
            }
            if tag == b'c' {
                return None;
            }
        }
    }

    async fn status_with(&mut self, what: &str, mut ready: impl FnMut(Status) -> bool) -> Status {
        let waiting = async {
            loop {
                let status = self.status().await.unwrap();
                if ready(status) {
                    return status;
                }
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }
}

fn endpoint() -> Endpoint {
    let mut endpoint = Endpoint::new(Host::Unix("/nowhere".into()), "d", "u");
    endpoint.password = Some(SecretString::from("pencil"));
    endpoint
}

fn start(durable: u64, status_every: Duration) -> Start {
    Start {
        address: "a script".into(),
        slot: "s".into(),
        publication: "p".into(),
        durable: Lsn(durable),
        is_new: false,
        status_every,
        silence_max: Duration::from_mins(2),
        status: Arc::default(),
        clock: crate::clock::system(),
        spool: None,
    }
}

/// A running stream and the server's end of it.
async fn streaming(log: &MemoryLog, start: Start) -> (Script, JoinSet<Result<()>>, CancellationToken) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut script = Script { stream: theirs };
    let endpoint = endpoint();
    let (connection, ()) = tokio::join!(Replication::start(ours, &endpoint), script.let_in());
    let mut connection = connection.unwrap();
    let begin = async {
        let (tag, body) = script.frame().await;
        assert_eq!((tag, body.as_slice()), (b'Q', b"START\0".as_slice()));
        script.send(b'W', &[0, 0, 0]).await;
    };
    let (started, ()) = tokio::join!(connection.start_replication("START"), begin);
    started.unwrap();
    let assembler = Assembler::new(STREAM, "main", table_catalog(), Windows::default()).unwrap();
    let cancel = CancellationToken::new();
    let mut task = JoinSet::new();
    let (log, token) = (log.clone(), cancel.clone());
    task.spawn(async move { Stream::new(connection, assembler, &log, start).run(&token).await });
    (script, task, cancel)
}

async fn ended(task: &mut JoinSet<Result<()>>) -> Result<()> {
    tokio::time::timeout(DEADLINE, task.join_next()).await.unwrap().unwrap().unwrap()
}

const EVERY: Duration = Duration::from_millis(20);

#[tokio::test]
async fn statuses_go_on_while_the_log_is_stuck_and_claim_nothing() {
    let log = MemoryLog::new();
    log.set_gate(false);
    let (mut script, mut task, cancel) = streaming(&log, start(100, EVERY)).await;
    assert_eq!(script.status().await, Some((100, 100)));
    // More than may be under way: the reader stops, the statuses do not.
    for n in 0..20u32 {
        script.transaction(1_000 + u64::from(n) * 100, n * 1_000..(n + 1) * 1_000).await;
    }
    for _ in 0..5 {
        let (_, flushed) = script.status().await.unwrap();
        assert_eq!(flushed, 100);
    }
    script.keepalive(9_000, true).await;
    assert!(log.batches() <= 9, "{} batches under way", log.batches());
    log.set_gate(true);
    script.status_with("everything acknowledged", |(_, flushed)| flushed == 9_000).await;
    assert_eq!(log.rows().len(), 20_000);
    let events = log.events();
    for (n, chunk) in events[..20_000].chunks(1_000).enumerate() {
        assert!(chunk[..999].iter().all(|e| !e.transaction.last) && chunk[999].transaction.last, "transaction {n}");
    }
    cancel.cancel();
    assert_eq!(script.status_with("a last status", |_| true).await.1, 9_000);
    while script.status().await.is_some() {}
    script.send(b'c', b"").await;
    script.send(b'C', b"COPY 0\0").await;
    script.send(b'Z', b"I").await;
    assert_eq!(script.frame().await.0, b'X', "the session is ended in order");
    ended(&mut task).await.unwrap();
}

#[tokio::test]
async fn statuses_go_on_while_the_inbox_is_full() {
    let log = MemoryLog::new();
    log.set_room(false);
    let (mut script, mut task, cancel) = streaming(&log, start(100, EVERY)).await;
    script.transaction(1_000, 0..3).await;
    script.status_with("the row", |(written, _)| written == 1_008).await;
    for _ in 0..5 {
        assert_eq!(script.status().await.unwrap().1, 100);
    }
    // What was taken is finished even when asked to stop meanwhile.
    cancel.cancel();
    assert_eq!(script.status().await.unwrap().1, 100);
    log.set_room(true);
    script.status_with("the acknowledgement", |(_, flushed)| flushed == 1_000).await;
    while script.status().await.is_some() {}
    script.send(b'Z', b"I").await;
    ended(&mut task).await.unwrap();
    assert_eq!(log.rows().len(), 3);
}

/// A large transaction that was kept until its commit, and none of it of a mapped table.
#[tokio::test]
async fn statuses_go_on_while_a_transaction_yields_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(&folder.path().join("spool")).await.unwrap();
    let log = MemoryLog::new();
    let often = Start { spool: Some(spool), ..start(100, Duration::from_millis(1)) };
    let (mut script, _task, _cancel) = streaming(&log, often).await;
    // So far behind what is durable that its end is told to the log as soon as it is taken in, before any status.
    let (commit_lsn, end_lsn) = (1u64 << 30, (1u64 << 30) + 8);
    script.data(200, b"S\0\0\0\x07\x01").await;
    script.data(200, b"R\0\0\0\x07\0\0\0\x11public\0other\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff").await;
    for _ in 0..400_000 {
        script.data(200, b"I\0\0\0\x07\0\0\0\x11N\0\x01t\0\0\0\x011").await;
    }
    script.data(200, b"E").await;
    let mut commit = BytesMut::new();
    commit.put_slice(b"c\0\0\0\x07\0");
    commit.put_u64(commit_lsn);
    commit.put_u64(end_lsn);
    commit.put_i64(0);
    script.data(commit_lsn, &commit).await;
    let mut meanwhile = 0;
    let count = |(written, flushed)| {
        meanwhile += u32::from(written == commit_lsn);
        flushed == end_lsn
    };
    script.status_with("the end of it", count).await;
    assert!(meanwhile > 0, "a server that hears nothing of us ends the stream");
}

#[tokio::test]
async fn a_commit_is_acknowledged_up_to_its_place_and_progress_later() {
    let log = MemoryLog::new();
    let (mut script, _task, _cancel) = streaming(&log, start(100, EVERY)).await;
    script.transaction(1_000, 0..3).await;
    let (written, flushed) = script.status_with("the commit", |(_, flushed)| flushed > 100).await;
    assert_eq!((written, flushed), (1_008, 1_000), "not the end: its position in the log is the commit's own");
    // A keepalive that asks for nothing is no reason for an entry of the log.
    script.keepalive(2_000, false).await;
    script.status_with("the keepalive", |(written, _)| written == 2_000).await;
    assert_eq!(log.batches(), 1);
    script.keepalive(2_000, true).await;
    script.status_with("progress", |(_, flushed)| flushed == 2_000).await;
    let Some(Position::Postgres { commit_lsn, index, .. }) = log.durable() else { panic!() };
    assert_eq!(slot::acknowledgeable(commit_lsn, index), Lsn(2_000));
}

#[tokio::test]
async fn a_keepalive_within_a_transaction_acknowledges_nothing() {
    let log = MemoryLog::new();
    let (mut script, _task, _cancel) = streaming(&log, start(100, EVERY)).await;
    let mut begin = BytesMut::new();
    begin.put_u8(b'B');
    begin.put_u64(3_000);
    begin.put_i64(0);
    begin.put_u32(1);
    script.data(2_000, &begin).await;
    script.keepalive(3_008, true).await;
    let (_, flushed) = script.status_with("an answer", |(written, _)| written == 3_008).await;
    assert_eq!(flushed, 100);
    for _ in 0..3 {
        assert_eq!(script.status().await.unwrap().1, 100);
    }
    assert_eq!(log.batches(), 0);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_asked_and_then_left() {
    let log = MemoryLog::new();
    let silent = Start { silence_max: Duration::from_secs(3), ..start(100, EVERY) };
    let (mut script, mut task, _cancel) = streaming(&log, silent).await;
    let mut asked = 0;
    while asked < 3 {
        let (tag, body) = script.frame().await;
        if tag == b'd' && body[0] == b'r' && body[33] == 1 {
            // One that answers is there, however little it has to say.
            script.keepalive(100, false).await;
            asked += 1;
        }
    }
    assert_eq!(task.len(), 1);
    assert!(task.try_join_next().is_none(), "it answered each time");
    let error = ended(&mut task).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("has said nothing"), "{error}");
}

async fn refusal(script_of: impl AsyncFnOnce(&mut Script)) -> Error {
    let log = MemoryLog::new();
    let (mut script, mut task, _cancel) = streaming(&log, start(100, EVERY)).await;
    script_of(&mut script).await;
    drop(script);
    ended(&mut task).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_stops_capture() {
    let insert = b"I\0\0\0\x10N\0\x01t\0\0\0\x011";
    for (what, error) in [
        ("unknown tag", refusal(async |s| s.data(200, b"?").await).await),
        ("row outside a transaction", refusal(async |s| s.data(200, insert).await).await),
        ("unknown replication message", refusal(async |s| s.send(b'd', b"zz").await).await),
        ("unknown frame", refusal(async |s| s.send(b'?', b"").await).await),
        ("impossible length", refusal(async |s| s.stream.write_all(b"d\0\0\0\x01").await.unwrap()).await),
        (
            "commit that does not fit",
            refusal(async |s| s.data(200, &[b"C\0".as_slice(), &[0; 24]].concat()).await).await,
        ),
        (
            "unknown relation",
            refusal(async |s| {
                s.data(200, &[b"B".as_slice(), &[0; 20]].concat()).await;
                s.data(200, insert).await;
            })
            .await,
        ),
    ] {
        assert_eq!(error.kind(), Kind::Protocol, "{what}: {}", error.explain());
    }
    let shutdown = b"SFATAL\0VFATAL\0C57P01\0Mterminating\0\0";
    let error = refusal(async |s| s.send(b'E', shutdown).await).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(refusal(async |_| {}).await.kind(), Kind::Unavailable, "a connection that closes");
}

#[tokio::test]
async fn logging_in_takes_no_nonsense() {
    async fn login(frames: Vec<(u8, Vec<u8>)>) -> ReplicationError {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut script = Script { stream: theirs };
        let talk = async {
            script.body().await;
            for (tag, body) in frames {
                script.send(tag, &body).await;
            }
            let mut rest = Vec::new();
            script.stream.shutdown().await.unwrap();
            script.stream.read_to_end(&mut rest).await.unwrap();
        };
        let endpoint = endpoint();
        let starting = async { Replication::start(ours, &endpoint).await.map(drop) };
        let (started, ()) = tokio::join!(starting, talk);
        started.unwrap_err()
    }
    let request = |kind: u32, rest: &[u8]| (b'R', [kind.to_be_bytes().as_slice(), rest].concat());
    assert!(matches!(login(vec![request(7, b"")]).await, ReplicationError::Unsupported(_)));
    assert!(matches!(login(vec![request(99, b"")]).await, ReplicationError::Unsupported(_)));
    assert!(matches!(login(vec![request(10, b"OTHER\0\0")]).await, ReplicationError::Unsupported(_)));
    assert!(matches!(login(vec![request(5, b"abc")]).await, ReplicationError::Protocol(_)));
    assert!(matches!(login(vec![(b'R', vec![0])]).await, ReplicationError::Protocol(_)));
    assert!(matches!(login(vec![(b'Z', vec![b'I'])]).await, ReplicationError::Protocol(_)));
    assert!(matches!(login(vec![]).await, ReplicationError::Broken(_)));
    let challenge = b"r=not our nonce,s=c2FsdA==,i=4096";
    let impostor = login(vec![request(10, b"SCRAM-SHA-256\0\0"), request(11, challenge)]).await;
    assert!(matches!(impostor, ReplicationError::NotTrusted(_)), "{impostor}");
    let skipping = login(vec![request(10, b"SCRAM-SHA-256\0\0"), request(0, b"")]).await;
    assert!(matches!(skipping, ReplicationError::Protocol(_)), "a server must prove itself: {skipping}");
}

proptest::proptest! {
    /// Whatever messages come in whatever order, they are events or an error, and a batch never holds more than it should.
    #[test]
    fn any_messages_in_any_order_never_panic(
        picks in proptest::collection::vec((0usize..8, 0usize..60, proptest::prelude::any::<u8>(), 0u8..4), 0..80)
    ) {
        let samples: [&[u8]; 8] = [
            b"B\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x01\0\0\0\x07",
            b"R\0\0\0\x10public\0t\0d\0\x03\x01id\0\0\0\0\x17\0\0\0\0\0name\0\0\0\0\x19\0\0\0\0\0sfid\0\0\0\0\x19\0\0\0\0",
            b"I\0\0\0\x10N\0\x03t\0\0\0\x011nn",
            b"U\0\0\0\x10K\0\x03t\0\0\0\x011nnN\0\x03t\0\0\0\x012uu",
            b"D\0\0\0\x10K\0\x03t\0\0\0\x012nn",
            b"M\x01\0\0\0\0\0\0\0\x01tidelock\0\0\0\0\x18{\"open\":{\"link\":\"main\"}}",
            b"T\0\0\0\x01\0\0\0\0\x10",
            b"C\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x18\0\0\0\0\0\0\0\x01",
        ];
        let mut catalog = Catalog::clone(&table_catalog());
        catalog.mappings[0].truncate = crate::change::TruncatePolicy::Propagate;
        let mut assembler = Assembler::new(STREAM, "main", Arc::new(catalog), Windows::default()).unwrap();
        for sample in samples {
            assembler.apply(sample).unwrap();
        }
        for (pick, at, byte, mutate) in picks {
            let mut message = samples[pick].to_vec();
            if mutate == 0 {
                let length = message.len();
                message[at % length] = byte;
            }
            // A failed message ends a real stream; going on here only finds more.
            let applied = assembler.apply(&message);
            proptest::prop_assert!(applied.is_ok() || applied.unwrap_err().kind() != Kind::Internal);
            if assembler.is_full() || assembler.is_ready() {
                assembler.take();
            }
        }
    }
}

/// How fast rows of ten columns are decoded and made canonical, without a network. Prints nanoseconds per change.
#[test]
#[ignore = "a measurement, not a check"]
fn rate_of_decoding() {
    let columns = [
        ("sfid", "003000000000001AAA", FieldKind::Id, 1043),
        ("firstname", "Ada", FieldKind::Text { length: 40 }, 25),
        ("lastname", "Lovelace", FieldKind::Text { length: 80 }, 25),
        ("email", "ada.lovelace.1815@example.com", FieldKind::Text { length: 80 }, 25),
        ("phone", "+44 20 7946 0123", FieldKind::Text { length: 40 }, 25),
        ("accountid", "001000000000042AAA", FieldKind::Reference { to: vec!["Account".into()] }, 1043),
        ("amount", "1234.50", FieldKind::Number { scale: 2 }, 1700),
        ("systemmodstamp", "2026-11-21 04:24:27.123456+00", FieldKind::DateTime, 1184),
        (
            "description",
            "A description of some length, as people write them into such a field.",
            FieldKind::Text { length: 4000 },
            25,
        ),
    ];
    let fields = columns.iter().enumerate().map(|(n, (name, _, kind, _))| field(n as u16 + 1, name, kind.clone()));
    let catalog = catalog(vec![mapping(1, "contact", &["id"], fields.collect())]);
    let mut assembler = Assembler::new(STREAM, "main", catalog, Windows::default()).unwrap();
    let mut relation = BytesMut::new();
    relation.put_slice(b"R\0\0\0\x10public\0contact\0d");
    relation.put_u16(10);
    relation.put_slice(b"\x01id\0\0\0\0\x14\xff\xff\xff\xff");
    let mut insert = BytesMut::new();
    insert.put_slice(b"I\0\0\0\x10N\0\x0at\0\0\0\x07");
    insert.put_slice(b"1234567");
    for (name, value, _, oid) in &columns {
        relation.put_u8(0);
        relation.put_slice(name.as_bytes());
        relation.put_u8(0);
        relation.put_u32(*oid);
        relation.put_i32(-1);
        insert.put_u8(b't');
        insert.put_u32(value.len() as u32);
        insert.put_slice(value.as_bytes());
    }
    let (transactions, rows) = (5_000u64, 100u64);
    let started = std::time::Instant::now();
    let mut events = 0;
    for n in 1..=transactions {
        let mut begin = BytesMut::new();
        begin.put_u8(b'B');
        begin.put_u64(n * 1_000);
        begin.put_i64(0);
        begin.put_u32(n as u32);
        assembler.apply(&begin).unwrap();
        if n == 1 {
            assembler.apply(&relation).unwrap();
        }
        for _ in 0..rows {
            assembler.apply(&insert).unwrap();
            if assembler.is_full() {
                events += assembler.take().unwrap().batch.events.len();
            }
        }
        let mut commit = BytesMut::new();
        commit.put_slice(b"C\0");
        commit.put_u64(n * 1_000);
        commit.put_u64(n * 1_000 + 8);
        commit.put_i64(0);
        assembler.apply(&commit).unwrap();
    }
    let each = started.elapsed().as_nanos() / u128::from(transactions * rows);
    println!("{events} events, {each} ns a change, {} changes/s", 1_000_000_000 / each.max(1));
}
