//! How fast the change log takes entries and gives them back: `cargo bench --bench log`.
//!
//! Every append is synced and carries index keys; "with state" writes a state of 230 bytes for each entry too, under a key
//! out of `TIDELOCK_BENCH_RECORDS`. Each figure is measured `TIDELOCK_BENCH_ROUNDS` times, the kinds in turn, each round in a
//! fresh log of `TIDELOCK_BENCH_ENTRIES` entries of about 250 bytes. `TIDELOCK_BENCH_DIRECTORY` says on which disk.

mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use tidelock::change::{
    Body, Change, ChangeOrigin, Dot, Entry, FieldChange, FieldId, Lsn, MappingId, Offset, Operation, Position,
    RecordId, Side, Source, StreamId, Transaction, Value, Vector, Who,
};
use tidelock::error::{Error, Kind, Result};
use tidelock::log::{Append, ChangeLog as _, ReadLimit, RocksLog, RocksOptions, StateRead as _, verify};

/// Bytes of a record's state.
const STATE_BYTES: usize = 230;

struct Sizes {
    entries: u64,
    records: u64,
    rounds: usize,
    directory: PathBuf,
}

impl Sizes {
    fn from_env() -> Self {
        Self {
            entries: support::number("TIDELOCK_BENCH_ENTRIES", 200_000).max(1_000),
            records: support::number("TIDELOCK_BENCH_RECORDS", 100_000).max(1),
            rounds: support::number("TIDELOCK_BENCH_ROUNDS", 5).max(1) as usize,
            directory: std::env::var_os("TIDELOCK_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from),
        }
    }
}

/// A directory that is removed when it is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(sizes: &Sizes) -> Result<Self> {
        let path = sizes.directory.join(format!("tidelock-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| failed("create a directory", e))?;
        Ok(Self(path))
    }

    /// A place for a new log.
    fn fresh(&self) -> Result<PathBuf> {
        let path = self.0.join("log");
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|e| failed("remove a log", e))?;
        }
        Ok(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Storage, format!("cannot {what}")).caused_by(error)
}

/// Pseudo-random numbers (splitmix64), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A change of two fields, about 250 bytes encoded.
fn entry(n: u64, record: u64, random: &mut Random) -> Entry {
    let text = |random: &mut Random| {
        Value::text(format!("{:016x}{:016x}{:014x}", random.next(), random.next(), random.next() >> 8))
    };
    let mut fields = Vec::with_capacity(2);
    for field in 0..2 {
        fields.push(FieldChange { field: FieldId(field), before: text(random), after: text(random) });
    }
    Entry {
        recorded_at: 1_767_225_600_000_000 + n as i64,
        body: Body::Change(Change {
            mapping: MappingId(1),
            record: RecordId(record),
            origin: ChangeOrigin::Captured,
            source: Source {
                side: Side::Postgres,
                position: Position::Postgres { stream: StreamId(1), commit_lsn: Lsn(n * 300), index: 0 },
                transaction: Transaction { id: "7301".into(), index: 0, last: true },
                committed_at: 1_767_225_600_000_000 + n as i64,
                who: Who { user: "".into(), role: "app".into(), application: "billing".into() },
            },
            operation: Operation::Update,
            key: None,
            salesforce_id: None,
            dot: Dot { side: Side::Postgres, n: n + 1 },
            vector: Vector { postgres: n + 1, salesforce: 0 },
            fields,
        }),
    }
}

/// The appends of a run, made beforehand so that only the log is measured.
fn appends(sizes: &Sizes, entries: u64, batch: u64, state: bool) -> Vec<Append> {
    let mut random = Random(7);
    let mut appends = Vec::new();
    for first in (0..entries).step_by(batch as usize) {
        let mut append = Append::new();
        for n in first..entries.min(first + batch) {
            let record = random.next() % sizes.records;
            append.push(&entry(n, record, &mut random), None);
            if state {
                let value = [n.to_le_bytes(); STATE_BYTES.div_ceil(8)].concat();
                append.put(&record.to_be_bytes(), value.get(..STATE_BYTES).unwrap_or_default());
            }
        }
        appends.push(append);
    }
    appends
}

/// One kind of run and what it measured, in operations per second, with the longest append in milliseconds.
struct Kinds {
    name: &'static str,
    rates: Vec<f64>,
    worst_ms: f64,
}

fn append(path: &Path, appends: &[Append], kind: &mut Kinds) -> Result<RocksLog> {
    let log = RocksLog::open_or_create(path, RocksOptions::default())?;
    let start = Instant::now();
    let mut tail = Offset(0);
    for append in appends {
        let one = Instant::now();
        tail = log.append(tail, append)?;
        kind.worst_ms = kind.worst_ms.max(one.elapsed().as_secs_f64() * 1e3);
    }
    kind.rates.push(tail.0 as f64 / start.elapsed().as_secs_f64());
    Ok(log)
}

fn read(log: &RocksLog, kind: &mut Kinds) -> Result<()> {
    let start = Instant::now();
    let mut next = Offset(0);
    while next < log.tail() {
        next = log.read(next, ReadLimit::default())?.next();
    }
    kind.rates.push(next.0 as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn decode(log: &RocksLog, kind: &mut Kinds) -> Result<()> {
    let start = Instant::now();
    let report = verify::scan(log, |_, _| Ok(()))?;
    kind.rates.push(report.entries as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// Random state, one key at a time or `at_once` together.
fn get(log: &RocksLog, sizes: &Sizes, at_once: usize, kind: &mut Kinds) -> Result<()> {
    let (mut random, count) = (Random(at_once as u64), sizes.entries as usize);
    let start = Instant::now();
    for _ in (0..count).step_by(at_once) {
        let keys: Vec<[u8; 8]> = (0..at_once).map(|_| (random.next() % sizes.records).to_be_bytes()).collect();
        if let [key] = keys.as_slice() {
            std::hint::black_box(log.state(key)?);
        } else {
            std::hint::black_box(log.states(&keys.iter().map(<[u8; 8]>::as_slice).collect::<Vec<_>>())?);
        }
    }
    kind.rates.push(count as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn history(log: &RocksLog, sizes: &Sizes, kind: &mut Kinds) -> Result<()> {
    let (mut random, count) = (Random(3), sizes.entries / 4);
    let start = Instant::now();
    for _ in 0..count {
        std::hint::black_box(log.record_offsets(RecordId(random.next() % sizes.records), Offset(0), 100)?);
    }
    kind.rates.push(count as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn run(sizes: &Sizes) -> Result<Vec<Kinds>> {
    const NAMES: [&str; 10] = [
        "append, 1 entry",
        "append, 100 entries",
        "append, 1000 entries",
        "append, 1000 entries, with state",
        "read, checked",
        "verify: read and decode",
        "state, one key",
        "state, 100 keys at once",
        "record index, one record",
        "open with its write-ahead log",
    ];
    let place = Temporary::new(sizes)?;
    let mut kinds = NAMES.map(|name| Kinds { name, rates: Vec::new(), worst_ms: 0.0 });
    let [one, hundred, thousand, state, reading, decoding, single, together, index, opening] = &mut kinds;
    let batches = [
        appends(sizes, sizes.entries / 50, 1, false),
        appends(sizes, sizes.entries, 100, false),
        appends(sizes, sizes.entries, 1_000, false),
    ];
    let with_state = appends(sizes, sizes.entries, 1_000, true);
    let bytes: usize = with_state.iter().map(Append::body_bytes).sum();
    support::print_machine(&sizes.directory)?;
    println!("{} entries of {} bytes, {} rounds", sizes.entries, bytes as u64 / sizes.entries, sizes.rounds);
    for _ in 0..sizes.rounds {
        for (batch, kind) in batches.iter().zip([&mut *one, &mut *hundred, &mut *thousand]) {
            drop(append(&place.fresh()?, batch, kind)?);
        }
        let path = place.fresh()?;
        drop(append(&path, &with_state, state)?);
        let start = Instant::now();
        let log = RocksLog::open(&path, RocksOptions::default())?;
        opening.rates.push(1.0 / start.elapsed().as_secs_f64());
        read(&log, reading)?;
        decode(&log, decoding)?;
        get(&log, sizes, 1, single)?;
        get(&log, sizes, 100, together)?;
        history(&log, sizes, index)?;
    }
    Ok(kinds.into())
}

fn main() -> ExitCode {
    if support::is_test() {
        return ExitCode::SUCCESS;
    }
    match run(&Sizes::from_env()) {
        Ok(kinds) => {
            println!("{:<36}{:>12}{:>12}{:>12}{:>12}", "operations/s", "min", "median", "max", "worst ms");
            for mut kind in kinds {
                kind.rates.sort_by(f64::total_cmp);
                let rate = |n: usize| {
                    let rate = kind.rates.get(n).copied().unwrap_or_default();
                    format!("{rate:.*}", usize::from(rate < 100.0))
                };
                let (median, last) = (rate(kind.rates.len() / 2), rate(kind.rates.len().saturating_sub(1)));
                let worst = if kind.worst_ms > 0.0 { format!("{:.1}", kind.worst_ms) } else { String::new() };
                println!("{:<36}{:>12}{median:>12}{last:>12}{worst:>12}", kind.name, rate(0));
            }
            if let Some(mb) = support::peak_memory_mb(std::process::id()) {
                println!("peak memory {mb:.0} MB, the prepared appends included");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", error.explain());
            ExitCode::FAILURE
        }
    }
}
