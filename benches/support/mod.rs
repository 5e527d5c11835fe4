//! What the benchmarks share: figures, the machine, and what processes have used so far.

// Each benchmark is a program of its own and uses what it needs of this.
#![allow(dead_code)]

pub(crate) mod capturing;
pub(crate) mod contact;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidelock::error::{Error, Kind, Result};

/// Clock ticks a second in `/proc/*/stat`; the same on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes that are written before each of the syncs that are timed.
const SYNC_BYTES: usize = 4096;
const SYNCS: usize = 200;

/// A number from the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Whether the program was started by `cargo test`: a benchmark is not a test.
pub(crate) fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// An error of the benchmark's own.
pub(crate) fn failed(what: impl Into<String>) -> Error {
    Error::new(Kind::Internal, what.into())
}

/// An error of the file system or a program.
pub(crate) fn io(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Storage, format!("cannot {what}")).caused_by(error)
}

/// Measured values of one kind.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Adds all of another's.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.extend_by(other.0.iter().copied());
    }

    /// Adds many.
    pub(crate) fn extend_by(&mut self, values: impl Iterator<Item = f64>) {
        self.0.extend(values);
        self.0.sort_by(f64::total_cmp);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that `share` of all do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let n = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(n.saturating_sub(1).min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The least.
    pub(crate) fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The largest.
    pub(crate) fn max(&self) -> f64 {
        self.quantile(1.0)
    }
}

/// Prints the head of a table of min, median and max.
pub(crate) fn print_head(what: &str) {
    println!("{what:<44}{:>12}{:>12}{:>12}", "min", "median", "max");
}

/// Prints one line of it.
pub(crate) fn print_line(what: &str, samples: &Samples, decimals: usize) {
    let [min, median, max] = [samples.min(), samples.median(), samples.max()];
    println!("{what:<44}{min:>12.decimals$}{median:>12.decimals$}{max:>12.decimals$}");
}

/// Prints the head of a table of times.
pub(crate) fn print_times_head() {
    println!("{:<30}{:>8}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "changes", "p50", "p95", "p99", "max");
}

/// Prints one line of it.
pub(crate) fn print_times(what: &str, samples: &Samples, decimals: usize) {
    let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|q| samples.quantile(q));
    let count = samples.len();
    println!("{what:<30}{count:>8}{p50:>10.decimals$}{p95:>10.decimals$}{p99:>10.decimals$}{max:>10.decimals$}");
}

fn first_after(path: &str, prefix: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(prefix))?;
    Some(line.trim_matches([' ', '\t', ':']).to_owned())
}

/// Says what the figures were measured on; `directory` is where the log will be.
pub(crate) fn print_machine(directory: &Path) -> Result<()> {
    let cpu = first_after("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first_after("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("machine: {cpus} x {cpu}, memory {memory}, Linux {}", kernel.trim());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load before: {}", load.split(' ').next().unwrap_or_default());
    let syncs = sync_times(directory)?;
    println!(
        "disk under {}: {SYNC_BYTES} bytes written and fdatasync: median {:.0} us, p99 {:.0} us",
        directory.display(),
        syncs.median(),
        syncs.quantile(0.99)
    );
    Ok(())
}

/// How long a small synced write takes, in microseconds.
fn sync_times(directory: &Path) -> Result<Samples> {
    let path = directory.join(format!("tidelock-bench-sync-{}", std::process::id()));
    let mut file = fs::File::create(&path).map_err(|e| io("create a file", e))?;
    let mut times = Samples::default();
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[7; SYNC_BYTES]).and_then(|()| file.sync_data()).map_err(|e| io("write a file", e))?;
        times.add(started.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(&path).map_err(|e| io("remove a file", e))?;
    Ok(times)
}

/// The fields of `/proc/<process>/stat` from the state on (field 3), which follow the name in brackets.
fn stat(process: &str) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

fn ticks(process: &str, first: usize) -> Option<f64> {
    let stat = stat(process)?;
    let sum: u64 = stat.get(first..first + 2)?.iter().sum();
    Some(sum as f64 / TICKS_PER_SECOND)
}

/// Processor time of a running process with all its threads, in seconds.
pub(crate) fn cpu_seconds(process: u32) -> Option<f64> {
    ticks(&process.to_string(), 11)
}

/// Processor time of this process's children that have ended and were waited for, in seconds.
pub(crate) fn children_cpu_seconds() -> f64 {
    ticks("self", 13).unwrap_or_default()
}

/// The largest resident memory that a running process has had, in MB.
pub(crate) fn peak_memory_mb(process: u32) -> Option<f64> {
    let kb = first_after(&format!("/proc/{process}/status"), "VmHWM:")?;
    kb.split_whitespace().next()?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}

/// Reads a whole directory, so that what was just written comes from memory in every run alike.
pub(crate) fn warm(directory: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in fs::read_dir(directory).map_err(|e| io("list the write-ahead log", e))?.flatten() {
        if entry.path().is_file() {
            let mut file = fs::File::open(entry.path()).map_err(|e| io("read the write-ahead log", e))?;
            while file.read(&mut buffer).map_err(|e| io("read the write-ahead log", e))? > 0 {}
        }
    }
    Ok(())
}

/// Waits until `done`, looking now and then.
pub(crate) async fn until(what: &str, within: Duration, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done().await? {
        if started.elapsed() > within {
            return Err(failed(format!("{what} did not happen within {} s", within.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Looks at a process until it has gone or `ended`; returns what was seen last.
pub(crate) fn sample(ended: Arc<AtomicBool>, process: u32, look: fn(u32) -> Option<f64>) -> JoinHandle<f64> {
    std::thread::spawn(move || {
        let mut last = f64::NAN;
        while let Some(seen) = look(process) {
            last = seen;
            if ended.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        last
    })
}
