//! A proxy in front of PostgreSQL that knows the protocol's messages, and puts one fault at a boundary between two of them.
//!
//! It counts the messages of each kind of connection and direction, so that a boundary has a name ([`Boundary`]) which means the
//! same in each run of a session.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidelock::postgres::endpoint::{Endpoint, Host, SslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a message is held up.
const DELAY: Duration = Duration::from_millis(300);
/// How long one direction is dead before the connection is found to be.
const HALF_OPEN: Duration = Duration::from_millis(400);
/// How many messages of other connections a held one lets pass, and how long it waits for them.
const OVERTAKEN_BY: u64 = 5;
const OVERTAKEN_WITHIN: Duration = Duration::from_secs(1);
/// What the session that writes says first, by which it is told from others.
const TARGET_SAYS: &[u8] = b"pg_try_advisory_lock";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Capture's replication connection.
    Replication,
    /// The session that writes, from when it takes its lock.
    Target,
    /// Every other ordinary session, and the target's until then.
    Ordinary,
}

/// Which way messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// The place before the `n`-th message (from 0) that connections of a role carry in a direction, since [`Proxy::begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) role: Role,
    pub(crate) direction: Direction,
    pub(crate) n: u64,
}

/// What happens at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both ends see the connection end.
    Cut,
    /// The same in the middle of the message that follows.
    CutWithin,
    /// This direction carries nothing any more, and the other one goes on, until the connection is found to be dead.
    HalfOpen,
    /// This direction carries nothing any more, and nobody tells either end.
    Silent,
    /// The client sees the connection end, the server does not.
    ClientGone,
    /// The message and all behind it come later.
    Delay,
    /// The message and all behind it come after others of other connections that were sent later.
    Overtaken,
}

/// How many messages there were of each role and direction.
pub(crate) type Counts = BTreeMap<(Role, Direction), u64>;

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    fault: Option<(Boundary, Fault)>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    state: Mutex<State>,
    /// Messages carried by all connections.
    carried: watch::Sender<u64>,
}

/// A proxy that listens at a port of its own. It ends when dropped, with all connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// A proxy to the server at this Unix socket.
    pub(crate) async fn to(server: &Endpoint) -> Self {
        let Host::Unix(directory) = &server.host else { panic!("{server} is no Unix socket") };
        let shared = Arc::new(Shared {
            socket: directory.join(format!(".s.PGSQL.{}", server.port)),
            state: Mutex::default(),
            carried: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, port, _accepting: accepting }
    }

    /// Where clients find it, for the same database and role.
    pub(crate) fn endpoint(&self, server: &Endpoint) -> Endpoint {
        let host = Host::Tcp("127.0.0.1".into());
        Endpoint { host, port: self.port, sslmode: SslMode::Disable, ..server.clone() }
    }

    /// Counts from 0 again, with one fault to come, or none.
    pub(crate) fn begin(&self, fault: Option<(Boundary, Fault)>) {
        *self.shared.state.lock().unwrap() = State { counts: Counts::new(), fault };
    }

    /// The messages counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.shared.state.lock().unwrap().counts.clone()
    }

    /// Whether the fault has come to pass.
    pub(crate) fn struck(&self) -> bool {
        self.shared.state.lock().unwrap().fault.is_none()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.unwrap();
                connections.spawn(carry(client, Arc::clone(&shared)));
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => ended.unwrap(),
        }
    }
}

/// One connection, both ways, until either end closes it or a fault does.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = UnixStream::connect(&shared.socket).await else { return };
    client.set_nodelay(true).unwrap();
    let (role, client_gone, cut) =
        (Arc::new(Mutex::new(Role::Ordinary)), CancellationToken::new(), CancellationToken::new());
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pipe = |direction| Pipe {
        direction,
        role: Arc::clone(&role),
        shared: Arc::clone(&shared),
        client_gone: client_gone.clone(),
        cut: cut.clone(),
    };
    let up = pipe(Direction::ToServer).run(from_client, to_server);
    let down = pipe(Direction::ToClient).run(from_server, to_client);
    tokio::select! {
        () = cut.cancelled() => {}
        _ = async { tokio::join!(up, down) } => {}
    }
}

/// One direction of a connection.
struct Pipe {
    direction: Direction,
    role: Arc<Mutex<Role>>,
    shared: Arc<Shared>,
    client_gone: CancellationToken,
    cut: CancellationToken,
}

impl Pipe {
    async fn run(self, mut from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) {
        let mut to = Some(to);
        let mut buffer = Vec::new();
        // What a client says first has no tag before its length.
        let mut tagged = self.direction == Direction::ToClient;
        loop {
            while let Some(length) = frame_length(&buffer, tagged) {
                let message: Vec<u8> = buffer.drain(..length).collect();
                self.learn(&message, tagged);
                tagged = true;
                if !self.pass(&message, &mut from, &mut to).await {
                    return;
                }
            }
            tokio::select! {
                () = self.client_gone.cancelled() => return self.outlive(from, to).await,
                read = from.read_buf(&mut buffer) => if !read.is_ok_and(|bytes| bytes > 0) {
                    // The other end is told at once, and so is the other direction.
                    self.cut.cancel();
                    return;
                }
            }
        }
    }

    /// Notes what the connection is for, as soon as its client says so.
    fn learn(&self, message: &[u8], tagged: bool) {
        if self.direction == Direction::ToClient {
            return;
        }
        let mut role = self.role.lock().unwrap();
        let says = |words: &[u8]| message.windows(words.len()).any(|part| part == words);
        if !tagged && says(b"\0replication\0database\0") {
            *role = Role::Replication;
        } else if tagged && *role == Role::Ordinary && says(TARGET_SAYS) {
            *role = Role::Target;
        }
    }

    /// Carries one message on, or does what is to be done instead. Answers whether the direction lives on.
    async fn pass<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        message: &[u8],
        from: &mut R,
        to: &mut Option<W>,
    ) -> bool {
        match self.fault_here() {
            None => {}
            Some(Fault::Cut) => return self.end(),
            Some(Fault::CutWithin) => {
                self.write(&message[..message.len() / 2], to).await;
                return self.end();
            }
            Some(fault @ (Fault::HalfOpen | Fault::Silent)) => {
                let rest = discard(from);
                if fault == Fault::Silent {
                    rest.await;
                } else {
                    let _found_dead = tokio::time::timeout(HALF_OPEN, rest).await;
                }
                return self.end();
            }
            Some(Fault::ClientGone) => {
                self.client_gone.cancel();
                if self.direction == Direction::ToClient {
                    *to = None;
                    discard(from).await;
                    return self.end();
                }
                std::future::pending::<()>().await;
            }
            Some(Fault::Delay) => tokio::time::sleep(DELAY).await,
            Some(Fault::Overtaken) => {
                let mut carried = self.shared.carried.subscribe();
                let until = *carried.borrow() + OVERTAKEN_BY;
                drop(tokio::time::timeout(OVERTAKEN_WITHIN, carried.wait_for(|now| *now >= until)).await);
            }
        }
        self.write(message, to).await
    }

    /// Counts the message; the fault that is to come before it, if there is one.
    fn fault_here(&self) -> Option<Fault> {
        let role = *self.role.lock().unwrap();
        let mut state = self.shared.state.lock().unwrap();
        let count = state.counts.entry((role, self.direction)).or_default();
        let here = Boundary { role, direction: self.direction, n: *count };
        *count += 1;
        let (_, fault) = state.fault.take_if(|(boundary, _)| *boundary == here)?;
        Some(fault)
    }

    async fn write<W: AsyncWrite + Unpin>(&self, bytes: &[u8], to: &mut Option<W>) -> bool {
        if self.direction == Direction::ToClient && self.client_gone.is_cancelled() {
            return true;
        }
        let Some(to) = to else { return false };
        if to.write_all(bytes).await.is_err() {
            return self.end();
        }
        self.shared.carried.send_modify(|carried| *carried += 1);
        true
    }

    fn end(&self) -> bool {
        self.cut.cancel();
        false
    }

    /// The client is gone and the server does not know: what it says is taken, and what it was told remains all.
    async fn outlive<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(&self, mut from: R, to: Option<W>) {
        match self.direction {
            Direction::ToServer => {
                drop(from);
                std::future::pending::<()>().await;
            }
            Direction::ToClient => {
                drop(to);
                discard(&mut from).await;
                self.cut.cancel();
            }
        }
    }
}

/// Reads until there is nothing more to come.
async fn discard(from: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 4096];
    while from.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

/// How long the first message in the buffer is, if it is there whole.
fn frame_length(buffer: &[u8], tagged: bool) -> Option<usize> {
    let at = usize::from(tagged);
    let length = u32::from_be_bytes(buffer.get(at..at + 4)?.try_into().ok()?) as usize + at;
    (buffer.len() >= length).then_some(length)
}
