//! A private PostgreSQL server in a directory of its own, for the guided tour and for tests.
//!
//! It is found in the folder that [`PROGRAMS_VARIABLE`] names, on the `PATH`, or where packages put it, runs as an ordinary user even when started by root (PostgreSQL
//! refuses root), listens on a Unix socket and on 127.0.0.1 at a free port with a random password, and is stopped and
//! removed when dropped. A guardian (see there) does the same when the program ends in any other way, so nothing of it
//! outlives us.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::SimpleQueryMessage;

use crate::error::{Error, Kind, Result};
use crate::postgres::{Endpoint, Host, Session, SslMode};

use super::guardian::Guardian;

/// The environment variable with the folder of the server's programs (`initdb`, `postgres`, `pg_ctl`), where it should not be the
/// one that is found.
pub const PROGRAMS_VARIABLE: &str = "TIDELOCK_POSTGRES_BIN";

/// The name of the superuser.
pub const SUPERUSER: &str = "postgres";

/// Ports to try: another program may take one between our choice and the server's start.
const PORTS_TRIED: usize = 5;
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A server certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The certificate chain.
    pub cert_pem: String,
    /// The key.
    pub key_pem: SecretString,
    /// Authorities whose client certificates are accepted, if any.
    pub client_ca_pem: Option<String>,
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Settings for postgresql.conf, later ones win.
    pub parameters: Vec<(String, String)>,
    /// The whole of pg_hba.conf; absent: trust on the Unix socket, SCRAM on 127.0.0.1.
    pub hba: Option<String>,
    /// Turns `ssl` on.
    pub tls: Option<ServerTls>,
    /// Where the server's programs are; absent: as [`PROGRAMS_VARIABLE`] says, or looked for.
    pub bin: Option<PathBuf>,
}

impl Default for ServerSettings {
    /// Logical replication on, and otherwise a small server.
    fn default() -> Self {
        let parameters = [
            ("wal_level", "logical"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "20"),
            ("max_connections", "60"),
            ("shared_buffers", "32MB"),
            ("log_min_messages", "warning"),
        ];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { parameters, hba: None, tls: None, bin: None }
    }
}

impl ServerSettings {
    /// The settings with one more parameter.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The settings with this pg_hba.conf.
    pub fn with_hba(mut self, hba: &str) -> Self {
        self.hba = Some(hba.to_owned());
        self
    }

    /// The settings with TLS.
    pub fn with_tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }
}

/// A running private server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub struct PostgresServer {
    directory: PathBuf,
    bin: PathBuf,
    port: u16,
    password: SecretString,
    runner: Option<Runner>,
    process: Option<Child>,
    guardian: Guardian,
}

/// The unprivileged user that runs the server when we are root.
#[derive(Debug, Clone, Copy)]
struct Runner {
    uid: u32,
    gid: u32,
}

impl PostgresServer {
    /// Creates a database cluster and starts the server; returns when it answers.
    pub async fn start(settings: ServerSettings) -> Result<Self> {
        let mut server = tokio::task::spawn_blocking(move || Self::create(&settings))
            .await
            .map_err(|e| Error::new(Kind::Internal, "setting up PostgreSQL panicked").caused_by(e))??;
        for _ in 1..PORTS_TRIED {
            match server.start_again().await {
                Ok(()) => return Ok(server),
                Err(_) if server.log().contains("could not bind") => server.port = free_port()?,
                Err(error) => return Err(error),
            }
        }
        server.start_again().await?;
        Ok(server)
    }

    /// Makes the directory and the cluster in it.
    fn create(settings: &ServerSettings) -> Result<Self> {
        let named = std::env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
        let bin = settings.bin.clone().map_or_else(|| programs(named), Ok)?;
        let directory = std::env::temp_dir().join(format!("tidelock-pg-{}-{}", std::process::id(), random_text()?));
        let (port, password) = (free_port()?, SecretString::from(random_text()?));
        fs::create_dir(&directory).map_err(|e| cannot("create", &directory, e))?;
        let guardian = Guardian::over(&directory).inspect_err(|_| drop(fs::remove_dir(&directory)))?;
        let mut server = Self { port, password, runner: None, process: None, guardian, directory, bin };
        server.runner = runner(&server.directory)?;
        fs::set_permissions(&server.directory, fs::Permissions::from_mode(0o700))
            .map_err(|e| cannot("protect", &server.directory, e))?;
        server.give_away(&server.directory)?;
        let password_file = server.directory.join("password");
        server.write_file(&password_file, server.password.expose_secret())?;
        let mut initdb = server.command("initdb");
        initdb
            .args(["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C", "--no-sync"])
            .args(["--auth-local", "trust", "--auth-host", "scram-sha-256"])
            .arg("--pgdata")
            .arg(server.data())
            .arg("--pwfile")
            .arg(&password_file);
        // Watched, too: it would make the folder again that the guardian has removed.
        let initdb = Running::start(initdb)?;
        server.guardian.watch(&initdb.process);
        let made = initdb.finish();
        server.guardian.forget();
        made?;
        fs::remove_file(&password_file).map_err(|e| cannot("remove", &password_file, e))?;
        server.configure(settings)?;
        Ok(server)
    }

    fn configure(&self, settings: &ServerSettings) -> Result<()> {
        let mut lines = String::from("\nlisten_addresses = '127.0.0.1'\n");
        let mut line = |name: &str, value: &str| lines.extend([name, " = '", &value.replace('\'', "''"), "'\n"]);
        line("unix_socket_directories", &self.directory.display().to_string());
        if let Some(tls) = &settings.tls {
            let files = [
                ("ssl_cert_file", "server.crt", Some(tls.cert_pem.as_str())),
                ("ssl_key_file", "server.key", Some(tls.key_pem.expose_secret())),
                ("ssl_ca_file", "clients.crt", tls.client_ca_pem.as_deref()),
            ];
            line("ssl", "on");
            for (name, file, pem) in files {
                if let Some(pem) = pem {
                    self.write_file(&self.data().join(file), pem)?;
                    line(name, file);
                }
            }
        }
        for (name, value) in &settings.parameters {
            line(name, value);
        }
        let path = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).map_err(|e| cannot("read", &path, e))?;
        self.write_file(&path, &(before + &lines))?;
        if let Some(hba) = &settings.hba {
            self.write_file(&self.data().join("pg_hba.conf"), hba)?;
        }
        Ok(())
    }

    /// Starts the server after a stop, in the same directory at the same port; returns when it answers.
    pub async fn start_again(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.start_once().await {
                // The processes of a server that was killed end in their own time.
                Err(_) if self.log().contains("is still in use") && started.elapsed() < START_TIMEOUT => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                ended => return ended,
            }
        }
    }

    async fn start_once(&mut self) -> Result<()> {
        let log_path = self.directory.join("log");
        let log = fs::File::create(&log_path).map_err(|e| cannot("create", &log_path, e))?;
        let log_too = log.try_clone().map_err(|e| cannot("open", &log_path, e))?;
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        postgres.stdin(Stdio::null()).stdout(log).stderr(log_too);
        self.end_process();
        let process = postgres.spawn().map_err(|e| cannot("start", &self.bin.join("postgres"), e))?;
        self.guardian.watch(&process);
        self.process = Some(process);
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(process) = &mut self.process
                && let Ok(Some(status)) = process.try_wait()
            {
                let log = self.log();
                return Err(Error::new(Kind::Unavailable, format!("PostgreSQL did not start ({status}): {log}")));
            }
            match Session::open(&self.endpoint()).await {
                Ok(session) => return session.close().await,
                Err(error) if started.elapsed() > START_TIMEOUT => {
                    return Err(error.within("PostgreSQL did not start in time"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A standby that has what this server has now, replication slots too, and follows it no further. This server is stopped
    /// for the copy and started again.
    pub async fn standby(&mut self) -> Result<Self> {
        self.stop_fast().await?;
        let directory = std::env::temp_dir().join(format!("tidelock-pg-{}-{}", std::process::id(), random_text()?));
        let guardian = Guardian::over(&directory)?;
        let mut copying = Command::new("cp");
        copying.arg("-a").arg(&self.directory).arg(&directory);
        let mut standby = Self {
            guardian,
            directory,
            bin: self.bin.clone(),
            port: free_port()?,
            password: self.password.clone(),
            runner: self.runner,
            process: None,
        };
        run_to_end(copying)?;
        standby.write_file(&standby.data().join("standby.signal"), "")?;
        let path = standby.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).map_err(|e| cannot("read", &path, e))?;
        let sockets = format!("unix_socket_directories = '{}'\n", standby.directory.display());
        standby.write_file(&path, &(before + &sockets))?;
        standby.start_again().await?;
        self.start_again().await?;
        Ok(standby)
    }

    /// Stops the server as a crash would: no checkpoint, sessions cut off.
    pub async fn stop_immediate(&mut self) -> Result<()> {
        self.stop("immediate").await
    }

    /// Stops the server in order: sessions are ended, a checkpoint is made.
    pub async fn stop_fast(&mut self) -> Result<()> {
        self.stop("fast").await
    }

    async fn stop(&mut self, mode: &'static str) -> Result<()> {
        let command = self.stop_command(mode);
        let process = self.process.take();
        let stopped = tokio::task::spawn_blocking(move || end(process, command))
            .await
            .map_err(|e| Error::new(Kind::Internal, "stopping PostgreSQL panicked").caused_by(e))?;
        self.guardian.forget();
        stopped
    }

    /// Ends the server's process, if there is one, as a crash would.
    fn end_process(&mut self) {
        if self.process.is_some() {
            let process = self.process.take();
            if let Err(error) = end(process, self.stop_command("immediate")) {
                tracing::debug!(%error, "PostgreSQL was gone already, or had to be killed");
            }
        }
        self.guardian.forget();
    }

    fn stop_command(&self, mode: &str) -> Command {
        let mut command = self.command("pg_ctl");
        command.args(["stop", "--wait", "--timeout", "60", "--silent", "--mode", mode]);
        command.arg("--pgdata").arg(self.data());
        command
    }

    /// The superuser by the Unix socket, without password.
    pub fn endpoint(&self) -> Endpoint {
        let mut endpoint = Endpoint::new(Host::Unix(self.directory.clone()), SUPERUSER, SUPERUSER);
        endpoint.port = self.port;
        endpoint.application_name = "tidelock-demo".into();
        endpoint
    }

    /// The superuser by TCP on 127.0.0.1, with its password.
    pub fn tcp_endpoint(&self) -> Endpoint {
        let mut endpoint = self.endpoint();
        endpoint.host = Host::Tcp(Ipv4Addr::LOCALHOST.to_string());
        endpoint.password = Some(self.password.clone());
        endpoint.sslmode = SslMode::Prefer;
        endpoint
    }

    /// A new session of the superuser.
    pub async fn session(&self) -> Result<Session> {
        Session::open(&self.endpoint()).await
    }

    /// Runs statements as the superuser, in the default database and a session of their own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let session = self.session().await?;
        session.batch_execute(sql).await.map_err(|e| crate::postgres::database_error("running a statement", e))?;
        session.close().await
    }

    /// Runs statements as the superuser and returns the rows as the server prints them.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let session = self.session().await?;
        let messages =
            session.simple_query(sql).await.map_err(|e| crate::postgres::database_error("running a query", e))?;
        session.close().await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The only value of the only row of a query, as the server prints it.
    pub async fn value(&self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql).await?.into_iter().flatten().next().flatten())
    }

    /// What the server has logged since it was last started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The directory that holds everything of the server, its Unix socket included.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's programs are.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// One of the server's programs, to be run as the user that owns the cluster.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(&self.directory).env_remove("PGDATA").env("LC_ALL", "C");
        // Its own process group, so that an interrupt typed at a terminal reaches us alone and we stop it in order.
        command.process_group(0);
        if let Some(runner) = self.runner {
            command.uid(runner.uid).gid(runner.gid);
        }
        command
    }

    fn write_file(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).map_err(|e| cannot("write", path, e))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| cannot("protect", path, e))?;
        self.give_away(path)
    }

    fn give_away(&self, path: &Path) -> Result<()> {
        match self.runner {
            Some(runner) => chown(path, Some(runner.uid), Some(runner.gid)).map_err(|e| cannot("chown", path, e)),
            None => Ok(()),
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.end_process();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "cannot remove the private server's directory");
        }
    }
}

/// Ends a server by `stop`, and by force where that fails, since waiting for a living server would never end.
fn end(process: Option<Child>, stop: Command) -> Result<()> {
    let Some(mut process) = process else { return Ok(()) };
    let stopped = run_to_end(stop);
    if stopped.is_err()
        && let Err(error) = process.kill()
    {
        tracing::debug!(%error, "cannot kill PostgreSQL");
    }
    if let Err(error) = process.wait() {
        tracing::debug!(%error, "cannot wait for PostgreSQL");
    }
    stopped
}

/// A program that runs to its end by itself.
struct Running {
    program: String,
    process: Child,
}

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let process = command.spawn().map_err(|e| cannot("run", Path::new(&program), e))?;
        Ok(Self { program, process })
    }

    fn finish(self) -> Result<()> {
        let program = self.program;
        let output = self.process.wait_with_output().map_err(|e| cannot("run", Path::new(&program), e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::new(Kind::Unavailable, format!("`{program}` failed ({}): {}", output.status, said.trim())))
    }
}

fn run_to_end(command: Command) -> Result<()> {
    Running::start(command)?.finish()
}

fn cannot(verb: &str, path: &Path, error: io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("cannot {verb} {}: {error}", path.display())).caused_by(error)
}

/// A port that is free now. It is below those that systems give to connections, so that it is free as well when the server
/// starts again.
fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 10_000..20_000;
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(7);
    for _ in PORTS {
        let n = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed).into()) % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + n as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new(Kind::Unavailable, "no TCP port is free"))
}

fn random_text() -> Result<String> {
    let mut bytes = [0u8; 12];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new(Kind::Internal, "the random generator failed"))?;
    Ok(bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// The directory of the server's programs: the one that was named, and no other then.
fn programs(named: Option<PathBuf>) -> Result<PathBuf> {
    let Some(named) = named else { return find_programs() };
    if has_programs(&named) {
        return Ok(named);
    }
    let message = format!(
        "{PROGRAMS_VARIABLE} is {}, which does not hold PostgreSQL's server programs (initdb, postgres, pg_ctl); name the \
         folder that does, or leave the variable out",
        named.display()
    );
    Err(Error::new(Kind::Configuration, message))
}

fn has_programs(bin: &Path) -> bool {
    ["initdb", "postgres", "pg_ctl"].iter().all(|program| bin.join(program).is_file())
}

/// The directory of `initdb`, `postgres` and `pg_ctl`: on the `PATH`, else the newest where packages put them.
fn find_programs() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .filter_map(|d| fs::canonicalize(d.join("initdb")).ok())
        .filter_map(|program| program.parent().map(Path::to_path_buf));
    let mut packaged: Vec<(u32, PathBuf)> = ["/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt"]
        .iter()
        .filter_map(|root| fs::read_dir(root).ok())
        .flat_map(|entries| entries.filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>())
        .map(|installed| (version_of(&installed), installed.join("bin")))
        .collect();
    packaged.sort_by(|a, b| b.cmp(a));
    let usual = ["/usr/pgsql/bin", "/usr/local/pgsql/bin"].map(PathBuf::from);
    on_path.chain(packaged.into_iter().map(|(_, bin)| bin)).chain(usual).find(|bin| has_programs(bin)).ok_or_else(
        || {
            let message = "PostgreSQL's server programs (initdb, postgres, pg_ctl) are not on the PATH nor where \
                           packages put them; install PostgreSQL 14 or newer";
            Error::new(Kind::Configuration, message)
        },
    )
}

/// The number in a directory's name: `15`, `postgresql@17`.
fn version_of(directory: &Path) -> u32 {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    name.trim_start_matches("postgresql@").parse().unwrap_or(0)
}

/// Who is to run the server, if we are root: `postgres` if there is such a user, else `nobody`.
fn runner(own_directory: &Path) -> Result<Option<Runner>> {
    let owner = fs::metadata(own_directory).map_err(|e| cannot("look at", own_directory, e))?.uid();
    if owner != 0 {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(|e| cannot("read", Path::new("/etc/passwd"), e))?;
    let find = |user: &str| {
        passwd.lines().find_map(|line| {
            let mut parts = line.split(':');
            let is_user = parts.next() == Some(user);
            let (uid, gid) = (parts.nth(1)?.parse().ok()?, parts.next()?.parse().ok()?);
            (is_user && uid != 0).then_some(Runner { uid, gid })
        })
    };
    if let Some(runner) = find("postgres").or_else(|| find("nobody")) {
        return Ok(Some(runner));
    }
    let message = "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it; run this as \
                   another user";
    Err(Error::new(Kind::Configuration, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_starts_crashes_recovers_and_leaves_nothing() {
        let mut server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        server.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").await.unwrap();
        assert_eq!(server.value("SHOW wal_level").await.unwrap().as_deref(), Some("logical"));
        let by_tcp = Session::open(&server.tcp_endpoint()).await.unwrap();
        assert_eq!(by_tcp.query_one("SELECT n FROM t", &[]).await.unwrap().get::<_, i32>(0), 7);
        server.stop_immediate().await.unwrap();
        assert_eq!(Session::open(&server.endpoint()).await.err().unwrap().kind(), Kind::Unavailable);
        server.start_again().await.unwrap();
        assert_eq!(server.query("SELECT n, NULL FROM t").await.unwrap(), vec![vec![Some("7".into()), None]]);
        let directory = server.directory().to_owned();
        drop(server);
        assert!(!directory.exists());
    }

    #[test]
    fn programs_that_are_named_are_those_or_none() {
        let found = programs(None).unwrap();
        assert_eq!(programs(Some(found.clone())).unwrap(), found);
        let wrong = programs(Some(found.join("nowhere"))).unwrap_err();
        assert_eq!(wrong.kind(), Kind::Configuration);
        assert!(wrong.to_string().contains("TIDELOCK_POSTGRES_BIN"), "{wrong}");
    }

    /// Which `pg_ctl` cannot stop, since its file with the process's number is gone.
    #[tokio::test]
    async fn a_server_that_does_not_stop_is_killed() {
        let mut server = PostgresServer::start(ServerSettings::default()).await.unwrap();
        let number = server.data().join("postmaster.pid");
        fs::remove_file(&number).unwrap();
        assert!(server.stop_immediate().await.is_err());
        assert!(server.process.is_none(), "it is not running any more");
        server.start_again().await.unwrap();
        fs::remove_file(&number).unwrap();
        let directory = server.directory().to_owned();
        tokio::time::timeout(Duration::from_secs(30), tokio::task::spawn_blocking(move || drop(server)))
            .await
            .expect("dropping it does not wait for ever")
            .unwrap();
        assert!(!directory.exists());
    }
}
