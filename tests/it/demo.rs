//! `tidelock demo`, to its end and cut off at any moment: it leaves no folder and no process behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::link::hangup;

/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(10);

/// The demo's process, with a folder of its own for all temporary files.
struct Demo {
    folder: TempDir,
    process: Child,
    lines: Receiver<String>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("demo-").tempdir().unwrap();
        // PostgreSQL runs as another user where we are root, and must be able to pass.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.arg("demo").args(arguments).env("TMPDIR", folder.path()).env_remove("TIDELOCK_LOG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.path().join("err")).unwrap());
        let mut process = command.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            // Whoever no longer listens closes the pipe, as `head` does.
            stdout.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok())
        });
        Self { folder, process, lines }
    }

    /// Reads what it prints up to a line that has `text` in it.
    fn read_until(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return,
                Ok(_) => {}
                Err(error) => panic!("it never printed {text:?} ({error}): {}", self.complaint()),
            }
        }
    }

    fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}: {:?} {}", self.left(), self.complaint());
            std::thread::sleep(PAUSE);
        }
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn end(&mut self) -> ExitStatus {
        let mut ended = None;
        self.wait_until("it ends", |demo| {
            ended = demo.process.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    fn complaint(&self) -> String {
        fs::read_to_string(self.folder.path().join("err")).unwrap()
    }

    /// What there is of it: files, and processes that were started with a path of its folder.
    fn left(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut left: Vec<String> =
            fs::read_dir(self.folder.path()).unwrap().map(name).filter(|name| name != "err").collect();
        left.extend(processes_of(self.folder.path()));
        left
    }

    /// Whether a server is being made or runs.
    fn has_server(&self) -> bool {
        self.left().iter().any(|process| process.contains("initdb") || process.contains("postgres -D"))
    }

    fn assert_gone(&self, when: &str) {
        assert_eq!(self.left(), Vec::<String>::new(), "{when}: {}", self.complaint());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The command lines that name a folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let output = Command::new("ps").args(["-A", "-o", "args="]).output();
    let lines: Vec<String> = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        // A machine without `ps` has /proc.
        _ => fs::read_dir("/proc")
            .unwrap()
            .filter_map(|process| fs::read(process.ok()?.path().join("cmdline")).ok())
            .map(|arguments| String::from_utf8_lossy(&arguments).replace('\0', " "))
            .collect(),
    };
    let folder = folder.display().to_string();
    lines.into_iter().filter(|line| line.contains(&folder)).collect()
}

#[test]
fn it_ends_equal_and_verified() {
    let mut demo = Demo::start(&["--seconds", "3", "--accounts", "20", "--output", "json"]);
    let status = demo.end();
    assert_eq!(status.code(), Some(0), "{}", demo.complaint());
    let lines: Vec<String> = demo.lines.iter().collect();
    let [said] = lines.as_slice() else { panic!("one document, not {lines:?}") };
    let said: Json = serde_json::from_str(said).unwrap();
    assert_eq!((&said["differences"], &said["verify"]["problems"]), (&json!([]), &json!([])), "{said}");
    assert_eq!(said["verify"]["state_compared"], true);
    for figure in [&said["records"], &said["values"], &said["edits"]["postgres"], &said["edits"]["salesforce"]] {
        assert!(figure.as_u64() > Some(0), "{said}");
    }
    assert!(said["records"].as_u64() >= Some(20 * 6 - 20), "nearly all records are there: {said}");
    demo.assert_gone("at its end");
}

#[test]
fn an_interrupt_at_any_moment_cleans_up() {
    let moments: [(&str, fn(&mut Demo)); 5] = [
        ("as soon as there is anything", |demo| demo.wait_until("it begins", |demo| !demo.left().is_empty())),
        ("while the database is made", |demo| {
            demo.wait_until("a server is made", |demo| demo.has_server());
        }),
        ("while the mirror is made", |demo| demo.read_until("==> tidelock init")),
        ("while rows are copied", |demo| demo.read_until("==> tidelock run")),
        ("while edits are made", |demo| demo.read_until("   2  ")),
    ];
    for ((moment, reach), signal) in moments.into_iter().zip(["-INT", "-TERM", hangup(), "-INT", "-INT"]) {
        let mut demo = Demo::start(&["--seconds", "600", "--accounts", "200"]);
        reach(&mut demo);
        demo.signal(signal);
        let status = demo.end();
        assert_eq!(status.code(), Some(0), "{moment}: {status} {}", demo.complaint());
        assert!(!demo.complaint().contains("panicked"), "{moment}: {}", demo.complaint());
        demo.assert_gone(moment);
        let lines: Vec<String> = demo.lines.iter().collect();
        assert!(lines.iter().any(|line| line.starts_with("stopped;")), "{moment}: {lines:?}");
    }
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    let mut demo = Demo::start(&["--seconds", "600", "--accounts", "20"]);
    demo.read_until("seconds of edits");
    // The first is held back, so that the second finds it at work for certain.
    demo.signal("-STOP");
    demo.signal("-INT");
    demo.signal("-TERM");
    demo.signal("-CONT");
    let status = demo.end();
    assert!(matches!(status.code(), Some(0 | 130)), "{status} {}", demo.complaint());
    demo.wait_until("everything is gone", |demo| demo.left().is_empty());
}

#[test]
fn a_reader_that_goes_away_ends_it_in_order() {
    let mut demo = Demo::start(&["--seconds", "600", "--accounts", "20"]);
    demo.read_until("==> tidelock init");
    // `tidelock demo | head`
    demo.lines = channel().1;
    let status = demo.end();
    assert_eq!(status.code(), Some(0), "{status} {}", demo.complaint());
    let complaint = demo.complaint();
    assert!(!complaint.contains("panicked") && !complaint.contains("tidelock: "), "{complaint}");
    demo.assert_gone("after its reader went away");
}

#[test]
fn nothing_outlives_a_kill() {
    for moment in ["initdb", "postgres"] {
        let mut demo = Demo::start(&["--seconds", "600", "--accounts", "20"]);
        if moment == "initdb" {
            demo.wait_until("a server is made", |demo| demo.has_server());
        } else {
            demo.read_until("seconds of edits");
        }
        demo.signal("-KILL");
        assert_eq!(demo.end().code(), None);
        demo.wait_until("everything is gone", |demo| demo.left().is_empty());
    }
}
