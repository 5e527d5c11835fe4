//! What is particular to RocksDB: files, locks, damage on disk, readers beside the owner.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::log::conformance::entries;
use crate::log::verify;

const ALL: ReadLimit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };

impl RocksLog {
    /// Makes writes fail from now on.
    pub(in crate::log) fn break_writes(&self) {
        self.fail_writes.store(true, Ordering::Release);
    }

    /// Changes the stored frame of an entry.
    pub(in crate::log) fn tamper(&self, offset: Offset, change: impl FnOnce(&mut Vec<u8>)) {
        let log = self.family(LOG).unwrap();
        let mut frame = self.db.get_cf(log, offset.0.to_be_bytes()).unwrap().unwrap();
        change(&mut frame);
        self.db.put_cf(log, offset.0.to_be_bytes(), frame).unwrap();
    }
}

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link");
    Place { _directory: directory, path }
}

fn create(path: &Path) -> RocksLog {
    RocksLog::open_or_create(path, RocksOptions::default()).unwrap()
}

fn open(path: &Path) -> Result<RocksLog> {
    RocksLog::open(path, RocksOptions::default())
}

fn expect(error: Option<Error>, kind: Kind, words: &[&str]) {
    let error = error.expect("an error");
    let text = error.explain();
    assert_eq!(error.kind(), kind, "{text}");
    for words in words {
        assert!(text.contains(words), "{words:?} is not in {text:?}");
    }
}

/// The table files of the database, largest first.
fn tables(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(path.join("db"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|e| e == "sst"))
        .collect();
    files.sort_by_key(|file| std::cmp::Reverse(fs::metadata(file).unwrap().len()));
    files
}

#[test]
fn one_process_owns_a_log() {
    let place = place();
    let log = create(&place.path);
    let id = log.id().to_owned();
    assert_eq!(id.len(), 32);
    let words = [place.path.to_str().unwrap(), "another tidelock", &std::process::id().to_string(), "stop"];
    expect(open(&place.path).err(), Kind::Configuration, &words);
    expect(RocksLog::open_or_create(&place.path, RocksOptions::default()).err(), Kind::Configuration, &words);
    log.append(Offset(0), &entries(0, 1)).unwrap();
    drop(log);
    let log = open(&place.path).unwrap();
    assert_eq!((log.tail(), log.id()), (Offset(1), id.as_str()));
}

#[test]
fn a_directory_that_is_no_log_is_told_so() {
    let place = place();
    expect(open(&place.path).err(), Kind::Configuration, &["there is no change log", "does not exist"]);
    let below = place.path.join("below");
    let made = RocksLog::open_or_create(&below, RocksOptions::default());
    expect(made.err(), Kind::Configuration, &["does not exist", "create it"]);

    fs::create_dir(&place.path).unwrap();
    expect(open(&place.path).err(), Kind::Configuration, &["there is no change log"]);
    fs::write(place.path.join("photo.jpg"), "x").unwrap();
    let made = RocksLog::open_or_create(&place.path, RocksOptions::default());
    expect(made.err(), Kind::Configuration, &["not empty", "photo.jpg"]);
    let file = place.path.join("photo.jpg");
    expect(open(&file).err(), Kind::Configuration, &["not a directory"]);
    let made = RocksLog::open_or_create(&file, RocksOptions::default());
    expect(made.err(), Kind::Configuration, &["not a directory"]);
    let read = RocksLog::open_read_only(&file, RocksOptions::default());
    expect(read.err(), Kind::Configuration, &["not a directory"]);
}

#[test]
fn a_log_of_another_format_is_refused() {
    let place = place();
    drop(create(&place.path));
    let marker = place.path.join("tidelock.log");
    let text = fs::read_to_string(&marker).unwrap();
    for (changed, words) in [
        (text.replace("format = 2", "format = 1"), "it has format 1"),
        (text.replace("format = 2", "format = x"), "damaged"),
        (text.replace("tidelock change log", "fortune cookies"), "not a marker"),
        (String::new(), "not a marker"),
    ] {
        fs::write(&marker, changed).unwrap();
        expect(open(&place.path).err(), Kind::Configuration, &[words, place.path.to_str().unwrap()]);
        let made = RocksLog::open_or_create(&place.path, RocksOptions::default());
        expect(made.err(), Kind::Configuration, &[words]);
        let read = RocksLog::open_read_only(&place.path, RocksOptions::default());
        expect(read.err(), Kind::Configuration, &[words]);
    }
    fs::write(&marker, text).unwrap();
    open(&place.path).unwrap();
}

#[test]
fn a_log_that_has_lost_its_files_is_not_taken_for_a_new_one() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 3)).unwrap();
    drop(log);
    let (marker, database) = (place.path.join("tidelock.log"), place.path.join("db"));
    let text = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    expect(open(&place.path).err(), Kind::Configuration, &["has no file tidelock.log"]);
    let made = RocksLog::open_or_create(&place.path, RocksOptions::default());
    expect(made.err(), Kind::Corrupt, &["no marker file"]);
    fs::write(&marker, text).unwrap();
    fs::remove_dir_all(&database).unwrap();
    for opened in [open(&place.path), RocksLog::open_or_create(&place.path, RocksOptions::default())] {
        expect(opened.err(), Kind::Corrupt, &["has lost its files", "backup"]);
    }
}

#[test]
fn creating_a_log_can_be_cut_short_anywhere() {
    let place = place();
    fs::create_dir(&place.path).unwrap();
    drop(create(&place.path));
    fs::remove_file(place.path.join("tidelock.log")).unwrap();
    fs::write(place.path.join("tidelock.log.new"), "half").unwrap();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 3)).unwrap();
}

#[test]
fn the_end_is_checked_when_it_is_opened() {
    type Damage = fn(&RocksLog);
    let damages: [(&str, Damage); 4] = [
        ("offset 9", |log| log.tamper(Offset(9), |frame| frame[40] ^= 1)),
        ("offset 9", |log| log.db.delete_cf(log.family(LOG).unwrap(), 9_u64.to_be_bytes()).unwrap()),
        ("offset 10", |log| log.db.put_cf(log.family(LOG).unwrap(), 10_u64.to_be_bytes(), b"x").unwrap()),
        ("recorded properly", |log| log.db.put_cf(log.family(META).unwrap(), TIP, b"x").unwrap()),
    ];
    for (words, damage) in damages {
        let place = place();
        let log = create(&place.path);
        log.append(Offset(0), &entries(0, 10)).unwrap();
        damage(&log);
        drop(log);
        expect(open(&place.path).err(), Kind::Corrupt, &[words]);
    }
}

#[test]
fn a_missing_entry_is_named() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 10)).unwrap();
    log.db.delete_cf(log.family(LOG).unwrap(), 4_u64.to_be_bytes()).unwrap();
    assert_eq!(log.read(Offset(0), ALL).unwrap().next(), Offset(4));
    expect(log.read(Offset(4), ALL).err(), Kind::Corrupt, &["bad at offset 4", "missing"]);
    assert_eq!(log.read(Offset(5), ALL).unwrap().len(), 5);
    let report = verify::scan(&log, |_, _| Ok(())).unwrap();
    assert_eq!((report.bad_entries, report.bad[0].offset), (1, Offset(4)));
}

#[test]
fn a_byte_that_flips_on_disk_is_found_and_its_offset_named() {
    let place = place();
    let log = create(&place.path);
    for n in 0..40 {
        log.append(Offset(n * 100), &entries(n * 100, 100)).unwrap();
    }
    log.db.flush_cf(log.family(LOG).unwrap()).unwrap();
    drop(log);
    let file = tables(&place.path).remove(0);
    let good = fs::read(&file).unwrap();
    for part in [3, 2] {
        let mut bad = good.clone();
        let at = bad.len() / part;
        bad[at] ^= 0x10;
        fs::write(&file, bad).unwrap();

        // The owner may well open it: the end is whole. Verify finds the place, from within and from outside.
        let log = RocksLog::open_read_only(&place.path, RocksOptions::default()).unwrap();
        let report = verify::scan(&log, |_, _| Ok(())).unwrap();
        assert_eq!(report.bad.len(), 1, "{report:?}");
        assert_eq!(report.entries + report.bad_entries, 4_000);
        assert!(report.bad_entries < 1_000, "only the block is lost: {}", report.bad_entries);
        let bad = &report.bad[0];
        assert!(bad.reason.contains(&format!("bad at offset {}", bad.offset)), "{}", bad.reason);
        let page = log.read(Offset(bad.offset.0 - 2), ALL).unwrap();
        assert_eq!(page.next(), bad.offset, "what is before it can be read");
        expect(log.read(bad.offset, ALL).err(), Kind::Corrupt, &["bad at offset", "tidelock log verify"]);
        assert_eq!(log.read(bad.end, ReadLimit::ONE).unwrap().len(), 1);
    }
    fs::write(&file, good).unwrap();
    assert!(verify::scan(&open(&place.path).unwrap(), |_, _| Ok(())).unwrap().is_good());
}

#[test]
fn a_lost_file_is_corruption() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 1000)).unwrap();
    log.db.flush_cf(log.family(LOG).unwrap()).unwrap();
    drop(log);
    fs::remove_file(tables(&place.path).remove(0)).unwrap();
    expect(open(&place.path).err(), Kind::Corrupt, &["backup"]);
}

#[test]
fn what_a_crash_leaves_is_whole() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 50)).unwrap();
    log.append(Offset(50), &entries(50, 50)).unwrap();
    // The directory as a crash would leave it, and then with each torn end of the write-ahead log.
    let copy = place.path.with_file_name("crashed");
    let whole = fs::read(wal(&place.path)).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    let mut tails = Vec::new();
    for cut in [0, 1, 7, 100, end / 3, end / 2, end - 1] {
        copy_tree(&place.path, &copy);
        fs::write(wal(&copy), &whole[..end - cut]).unwrap();
        let crashed = open(&copy).unwrap();
        tails.push(crashed.tail().0);
        let report = verify::scan(&crashed, |_, _| Ok(())).unwrap();
        assert!(report.is_good(), "{report:?}");
        assert_eq!(crashed.scan_transactions(b"", None, 999).unwrap().len() as u64, crashed.tail().0);
        let newest = crashed.tail().0.checked_sub(1).map(|n| n.to_be_bytes().to_vec());
        let state = crashed.scan_state(b"", None, 99).unwrap();
        assert_eq!(state.into_iter().map(|(_, value)| value).max(), newest, "state and entries are of one piece");
        crashed.append(crashed.tail(), &entries(crashed.tail().0, 3)).unwrap();
        drop(crashed);
        fs::remove_dir_all(&copy).unwrap();
    }
    assert!(tails.is_sorted_by(|a, b| a >= b), "{tails:?}");
    tails.dedup();
    assert_eq!(tails, [100, 50, 0], "an append is there whole or not at all");
}

/// The write-ahead file that is written to.
fn wal(path: &Path) -> PathBuf {
    let files = fs::read_dir(path.join("db")).unwrap().map(|file| file.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == "log")).max().unwrap()
}

#[test]
fn a_byte_that_flips_in_the_write_ahead_file_loses_nothing_in_silence() {
    let place = place();
    let log = create(&place.path);
    for n in 0..8 {
        log.append(Offset(n * 10), &entries(n * 10, 10)).unwrap();
    }
    let crashed = place.path.with_file_name("crashed");
    copy_tree(&place.path, &crashed);
    drop(log);
    let file = wal(&crashed);
    let whole = fs::read(&file).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    for part in 1..8 {
        let mut bad = whole.clone();
        bad[end * part / 8] ^= 0x10;
        fs::write(&file, bad).unwrap();
        let words = [crashed.to_str().unwrap(), file.file_name().unwrap().to_str().unwrap(), "backup", "new log"];
        expect(open(&crashed).err(), Kind::Corrupt, &words);
        let reader = RocksLog::open_read_only(&crashed, RocksOptions::default());
        expect(reader.err(), Kind::Corrupt, &words);
    }
    fs::write(&file, whole).unwrap();
    assert_eq!(open(&crashed).unwrap().tail(), Offset(80), "what refused to open it has changed nothing");
}

#[test]
fn garbage_after_the_last_append_is_a_torn_end() {
    let place = place();
    let log = create(&place.path);
    for n in 0..8 {
        log.append(Offset(n * 10), &entries(n * 10, 10)).unwrap();
    }
    let whole = fs::read(wal(&place.path)).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    // An append that was being written: a part of it, and what the disk had in the place of the rest.
    let torn = &whole[end / 2..end / 2 + 300];
    for garbage in [vec![0; 5_000], vec![0xff; 3], vec![0xff; 300], torn.to_vec(), [&[1; 6][..], torn].concat()] {
        let copy = place.path.with_file_name("crashed");
        copy_tree(&place.path, &copy);
        fs::write(wal(&copy), [&whole[..end], &garbage].concat()).unwrap();
        assert_eq!(RocksLog::open_read_only(&copy, RocksOptions::default()).unwrap().tail(), Offset(80));
        let crashed = open(&copy).unwrap();
        assert_eq!(crashed.tail(), Offset(80), "every append that was acknowledged is there");
        crashed.append(Offset(80), &entries(80, 10)).unwrap();
        drop(crashed);
        assert_eq!(open(&copy).unwrap().tail(), Offset(90));
        fs::remove_dir_all(&copy).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_tree(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

#[test]
fn a_rebuild_survives_a_crash_as_the_old_or_the_new_one() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 20)).unwrap();
    let mut other = Append::new();
    (0..20).for_each(|n| other.push_encoded(&[n], None, Some(b"new")));
    other.put(b"new", b"state");
    let copy = |name: &str| {
        let path = place.path.with_file_name(name);
        copy_tree(&place.path, &path);
        path
    };
    let mut rebuild = log.rebuild().unwrap();
    rebuild.write(Offset(0), &other).unwrap();
    let before = copy("before");
    rebuild.commit().unwrap();
    let after = copy("after");
    let log = open(&before).unwrap();
    assert_eq!(log.scan_state(b"", None, 99).unwrap().len(), 7);
    assert_eq!(log.transaction_offset(b"new").unwrap(), None);
    let rebuild = log.rebuild().unwrap();
    assert!(rebuild.scan_state(b"", None, 99).unwrap().is_empty(), "what the crash left is removed first");
    drop(rebuild);
    let log = open(&after).unwrap();
    assert_eq!(log.scan_state(b"", None, 99).unwrap().len(), 1);
    assert_eq!(log.transaction_offset(b"new").unwrap(), Some(Offset(19)));
}

#[test]
fn a_reader_beside_the_owner_follows_it_and_cannot_write() {
    let place = place();
    let mut log = create(&place.path);
    log.append(Offset(0), &entries(0, 10)).unwrap();
    let mut reader = RocksLog::open_read_only(&place.path, RocksOptions::default()).unwrap();
    assert_eq!((reader.tail(), reader.chain(), reader.id()), (log.tail(), log.chain(), log.id()));
    assert_eq!(reader.read(Offset(0), ALL).unwrap(), log.read(Offset(0), ALL).unwrap());
    assert_eq!(reader.append(Offset(10), &entries(10, 1)).unwrap_err().kind(), Kind::Internal);
    assert_eq!(reader.rebuild().err().unwrap().kind(), Kind::Internal);
    assert_eq!(reader.checkpoint(&place.path.with_file_name("no")).unwrap_err().kind(), Kind::Internal);

    for round in 1..6 {
        let tail = log.tail();
        log.append(tail, &entries(tail.0, 10)).unwrap();
        assert_eq!(reader.tail(), tail, "it stands still until it is told to go on");
        assert!(reader.read(tail, ALL).unwrap().is_empty());
        if round % 2 == 0 {
            for family in [LOG, STATE[0], BY_RECORD[0], BY_TRANSACTION[0]] {
                log.db.flush_cf(log.family(family).unwrap()).unwrap();
                log.db.compact_range_cf(log.family(family).unwrap(), None::<&[u8]>, None::<&[u8]>);
            }
        }
        assert_eq!(reader.refresh().unwrap(), log.tail());
        assert_eq!(reader.read(Offset(0), ALL).unwrap(), log.read(Offset(0), ALL).unwrap());
        assert_eq!(reader.scan_state(b"", None, 99).unwrap(), log.scan_state(b"", None, 99).unwrap());
        assert_eq!(reader.states(&[b"key/01", b"x"]).unwrap(), log.states(&[b"key/01", b"x"]).unwrap());
        assert_eq!(reader.transaction_offset(b"tx/0012").unwrap(), Some(Offset(12)));
        let offsets = reader.record_offsets(RecordId(1), Offset(0), 99).unwrap();
        assert_eq!(offsets, log.record_offsets(RecordId(1), Offset(0), 99).unwrap());
        assert!(verify::scan(&reader, |_, _| Ok(())).unwrap().is_good());
    }
    assert_eq!(log.refresh().unwrap(), Offset(60));
    drop(log);
    assert_eq!(reader.refresh().unwrap(), Offset(60), "it goes on without the owner");
    let alone = RocksLog::open_read_only(&place.path, RocksOptions::default()).unwrap();
    assert_eq!(alone.tail(), Offset(60));
}

#[test]
fn a_reader_sees_one_piece_however_busy_the_owner_is() {
    let place = place();
    let small = RocksOptions { cache_bytes: 16 << 20, write_buffer_bytes: 4 << 20, open_files_max: 64 };
    let log = RocksLog::open_or_create(&place.path, small).unwrap();
    log.append(Offset(0), &entries(0, 5)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let filler = vec![7; 40_000];
            while !done.load(Ordering::Acquire) {
                let tail = log.tail();
                let mut append = entries(tail.0, 5);
                append.put(b"tail", &(tail.0 + 5).to_be_bytes());
                append.put(format!("filler/{}", tail.0 % 40).as_bytes(), &filler);
                log.append(tail, &append).unwrap();
            }
        });
        // Set when this ends, however it ends: the writer must not outlive a failed assertion.
        let _stop = SetOnDrop(&done);
        let deadline = Instant::now() + Duration::from_mins(2);
        let (mut last, mut moved) = (Offset(0), 0);
        while moved < 8 {
            assert!(Instant::now() < deadline, "opened {moved} times only");
            let reader = match RocksLog::open_read_only(&place.path, small) {
                Ok(reader) => reader,
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.explain());
                    continue;
                }
            };
            assert!(reader.tail() >= last);
            moved += usize::from(reader.tail() > last);
            last = reader.tail();
            assert!(verify::scan(&reader, |_, _| Ok(())).unwrap().is_good());
            let key = format!("tx/{:04}", last.0 - 1);
            assert_eq!(reader.transaction_offset(key.as_bytes()).unwrap(), Some(Offset(last.0 - 1)));
            if last > Offset(5) {
                assert_eq!(reader.state(b"tail").unwrap().unwrap(), last.0.to_be_bytes());
            }
        }
        done.store(true, Ordering::Release);
        writer.join().unwrap();
    });
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_checkpoint_is_a_log_of_its_own() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 10)).unwrap();
    let copy = place.path.with_file_name("copy");
    log.checkpoint(&copy).unwrap();
    expect(log.checkpoint(&copy).err(), Kind::Configuration, &["holds a change log already"]);
    expect(log.checkpoint(&place.path).err(), Kind::Configuration, &["holds a change log already"]);
    log.append(Offset(10), &entries(10, 10)).unwrap();
    let other = open(&copy).unwrap();
    assert_eq!((other.tail(), other.id()), (Offset(10), log.id()));
    other.append(Offset(10), &entries(10, 1)).unwrap();
    assert!(verify::scan(&other, |_, _| Ok(())).unwrap().is_good());
    assert_eq!(log.tail(), Offset(20));
}

#[test]
fn sizes_are_told() {
    let place = place();
    let log = create(&place.path);
    log.append(Offset(0), &entries(0, 1000)).unwrap();
    let stats = log.stats().unwrap();
    assert_eq!(stats.entries, 1000);
    assert!(stats.disk_bytes > 100_000 && stats.write_buffer_bytes > 100_000, "{stats:?}");
    assert!(!stats.write_stalled);
}

/// Fills the file system in TIDELOCK_TEST_SMALL_DISK, which must be small and empty, for example a tmpfs of 60 MB.
#[test]
#[ignore = "needs a small file system of its own"]
fn a_full_disk_poisons_the_log_and_loses_nothing() {
    let disk = PathBuf::from(std::env::var_os("TIDELOCK_TEST_SMALL_DISK").expect("TIDELOCK_TEST_SMALL_DISK"));
    let path = disk.join("link");
    let log = create(&path);
    let filler = |seed: u64| -> Vec<u8> { (0..1_000_000_u64).map(|n| (n.wrapping_mul(n ^ seed) >> 7) as u8).collect() };
    let error = loop {
        let tail = log.tail();
        let mut append = entries(tail.0, 10);
        append.put(format!("filler/{}", tail.0).as_bytes(), &filler(tail.0));
        if let Err(error) = log.append(tail, &append) {
            break error;
        }
    };
    expect(Some(error), Kind::Storage, &["disk is full", "free or add space", path.to_str().unwrap()]);
    let (tail, chain) = (log.tail(), log.chain());
    let again = log.append(tail, &entries(tail.0, 1));
    expect(again.err(), Kind::Storage, &["restart tidelock"]);
    assert!(verify::scan(&log, |_, _| Ok(())).unwrap().is_good());
    drop(log);

    // Enough for the write-ahead log to be read back, and not.
    expect(open(&path).err(), Kind::Storage, &["disk is full"]);
    let reader = RocksLog::open_read_only(&path, RocksOptions::default()).unwrap();
    assert_eq!((reader.tail(), reader.chain()), (tail, chain), "it can still be read");
    drop(reader);
    let more = place();
    copy_tree(&path, &more.path);
    let log = open(&more.path).unwrap();
    assert_eq!((log.tail(), log.chain()), (tail, chain), "with space, it goes on where it was");
    log.append(tail, &entries(tail.0, 1)).unwrap();
    fs::remove_dir_all(&path).unwrap();
}
