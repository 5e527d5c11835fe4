//! The cases of the suite.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Home, entries, entry};
use crate::change::{Offset, RecordId};
use crate::error::Kind;
use crate::log::frame::{self, Frame};
use crate::log::{Append, ChangeLog, GENESIS, ReadLimit, StateRead, first_difference, offset_at_time, verify};

const ALL: ReadLimit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };

pub(super) fn an_empty_log_is_empty(home: &impl Home) {
    let log = home.open();
    assert_eq!((log.head(), log.tail(), log.chain()), (Offset(0), Offset(0), GENESIS));
    assert!(log.read(Offset(0), ALL).unwrap().is_empty());
    assert!(log.read(Offset(7), ALL).unwrap().is_empty());
    assert_eq!(log.state(b"k").unwrap(), None);
    assert!(log.scan_state(b"", None, 10).unwrap().is_empty());
    assert!(log.record_offsets(RecordId(0), Offset(0), 10).unwrap().is_empty());
    assert_eq!(log.transaction_offset(b"t").unwrap(), None);
    assert_eq!(offset_at_time(&log, 0).unwrap(), Offset(0));
    assert_eq!(log.append(Offset(0), &Append::new()).unwrap(), Offset(0));
    assert!(verify::scan(&log, |_, _| Ok(())).unwrap().is_good());
    assert_eq!(log.stats().unwrap().entries, 0);
}

pub(super) fn entries_are_read_in_pages(home: &impl Home) {
    let log = home.open();
    assert_eq!(log.append(Offset(0), &entries(0, 40)).unwrap(), Offset(40));
    assert_eq!(log.append(Offset(40), &entries(40, 60)).unwrap(), Offset(100));
    assert_eq!((log.tail(), log.stats().unwrap().entries), (Offset(100), 100));
    let whole = log.read(Offset(0), ALL).unwrap();
    assert_eq!((whole.len(), whole.first(), whole.next()), (100, Offset(0), Offset(100)));
    assert_eq!(whole.chain(), Some(&log.chain()));
    for item in whole.entries() {
        let (offset, found) = item.unwrap();
        assert_eq!(found, entry(offset.0, offset.0 % 3));
    }
    let bytes: usize = whole.iter().take(3).map(|(_, body)| body.len()).sum();
    for (limit, from, len) in [
        (ReadLimit { entries: 10, bytes: usize::MAX }, 95, 5),
        (ReadLimit { entries: 10, bytes: usize::MAX }, 30, 10),
        (ReadLimit { entries: 1, bytes: usize::MAX }, 99, 1),
        (ReadLimit { entries: 0, bytes: 0 }, 50, 1),
        (ReadLimit { entries: 50, bytes }, 0, 3),
        (ReadLimit { entries: 50, bytes: bytes - 1 }, 0, 2),
        (ReadLimit { entries: 50, bytes: 1 }, 0, 1),
        (ALL, 100, 0),
        (ALL, u64::MAX, 0),
    ] {
        let page = log.read(Offset(from), limit).unwrap();
        assert_eq!(page.len(), len, "{limit:?} from {from}");
        assert_eq!(page.first(), Offset(from));
        assert!(page.iter().eq(whole.iter().skip(from.min(100) as usize).take(len)));
    }
}

pub(super) fn a_deposed_writer_is_fenced_off(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 3)).unwrap();
    let chain = log.chain();
    for wrong in [0, 2, 4, u64::MAX] {
        let error = log.append(Offset(wrong), &entries(3, 1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.to_string().contains("ends at offset 3"), "{error}");
        assert_eq!(log.append(Offset(wrong), &Append::new()).unwrap_err().kind(), Kind::Internal);
    }
    assert_eq!((log.tail(), log.chain()), (Offset(3), chain));
    assert_eq!(log.append(Offset(3), &entries(3, 1)).unwrap(), Offset(4), "being fenced off does not poison");
}

pub(super) fn state_changes_need_an_entry(home: &impl Home) {
    let log = home.open();
    let mut append = Append::new();
    append.put(b"k", b"v");
    assert_eq!(log.append(Offset(0), &append).unwrap_err().kind(), Kind::Internal);
    assert_eq!(log.state(b"k").unwrap(), None);
}

pub(super) fn the_last_change_of_a_key_stands(home: &impl Home) {
    let log = home.open();
    let mut append = entries(0, 1);
    append.put(b"a", b"1");
    append.put(b"b", b"1");
    append.delete(b"a");
    append.put(b"b", b"2");
    append.put(b"", b"empty key");
    append.put(b"empty value", b"");
    log.append(Offset(0), &append).unwrap();
    assert_eq!(log.state(b"a").unwrap(), None);
    assert_eq!(log.state(b"b").unwrap().unwrap(), b"2");
    assert_eq!(log.state(b"").unwrap().unwrap(), b"empty key");
    assert_eq!(log.state(b"empty value").unwrap().unwrap(), b"");
    let mut append = entries(1, 1);
    append.delete(b"b");
    append.delete(b"never there");
    append.put(b"a", b"3");
    log.append(Offset(1), &append).unwrap();
    assert_eq!(log.state(b"b").unwrap(), None);
    assert_eq!(log.state(b"a").unwrap().unwrap(), b"3");
}

pub(super) fn states_are_looked_up_in_the_order_of_the_keys(home: &impl Home) {
    let log = home.open();
    let mut append = entries(0, 1);
    for n in 0..200_u8 {
        append.put(&[9, n], &[n, n]);
    }
    log.append(Offset(0), &append).unwrap();
    let keys: Vec<[u8; 2]> = (0..=255_u8).rev().chain([5, 5]).map(|n| [9, n]).collect();
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 2]>::as_slice).collect();
    let found = log.states(&keys).unwrap();
    for (key, value) in keys.iter().zip(&found) {
        assert_eq!(value.as_deref(), (key[1] < 200).then_some(&[key[1]; 2][..]));
    }
    assert_eq!(found.len(), keys.len());
    assert!(log.states(&[]).unwrap().is_empty());
}

pub(super) fn state_is_scanned_by_prefix(home: &impl Home) {
    let log = home.open();
    let mut append = Append::new();
    append.push(&entry(0, 0), None);
    let keys: [&[u8]; 9] = [b"", b"a", b"b", b"b\0", b"ba", b"bb", b"b\xff", b"c", b"\xff\xff"];
    for key in keys {
        append.put(key, key);
    }
    append.put(b"\xff\xff\x01", b"");
    log.append(Offset(0), &append).unwrap();
    let scan = |prefix: &[u8], after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
        log.scan_state(prefix, after, limit).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(scan(b"", None, 99).len(), 10);
    assert_eq!(scan(b"", Some(b""), 99).len(), 9);
    assert_eq!(scan(b"b", None, 99), [&b"b"[..], b"b\0", b"ba", b"bb", b"b\xff"]);
    assert_eq!(scan(b"b", None, 2), [&b"b"[..], b"b\0"]);
    assert_eq!(scan(b"b", Some(b"b\0"), 2), [b"ba", b"bb"]);
    assert_eq!(scan(b"b", Some(b"b9"), 1), [b"ba"], "`after` need not exist");
    assert_eq!(scan(b"b", Some(b"a"), 1), [b"b"], "`after` before the prefix is no limit");
    assert!(scan(b"b", Some(b"c"), 9).is_empty());
    assert_eq!(scan(b"\xff", None, 9), [&b"\xff\xff"[..], b"\xff\xff\x01"]);
    assert_eq!(scan(b"\xff\xff", Some(b"\xff\xff"), 9), [b"\xff\xff\x01"]);
    assert!(scan(b"zz", None, 9).is_empty());
    assert!(scan(b"", None, 0).is_empty());
    assert_eq!(log.scan_state(b"ba", None, 9).unwrap(), [(b"ba".to_vec(), b"ba".to_vec())]);
}

pub(super) fn records_and_transactions_are_indexed(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 30)).unwrap();
    let mut append = Append::new();
    append.push_encoded(b"x", Some(RecordId(u64::MAX)), Some(b"tx/0003"));
    append.push_encoded(b"y", None, None);
    append.push_encoded(b"z", Some(RecordId(u64::MAX)), Some(b""));
    log.append(Offset(30), &append).unwrap();
    let offsets = |record, from, limit| -> Vec<u64> {
        log.record_offsets(RecordId(record), Offset(from), limit).unwrap().into_iter().map(|o| o.0).collect()
    };
    assert_eq!(offsets(0, 0, 99), [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]);
    assert_eq!(offsets(1, 5, 3), [7, 10, 13]);
    assert_eq!(offsets(2, 26, 9), [26, 29]);
    assert!(offsets(2, 30, 9).is_empty());
    assert_eq!(offsets(u64::MAX, 0, 9), [30, 32]);
    assert!(offsets(3, 0, 9).is_empty());
    assert!(offsets(0, 0, 0).is_empty());
    assert_eq!(log.transaction_offset(b"tx/0004").unwrap(), Some(Offset(4)));
    assert_eq!(log.transaction_offset(b"tx/0003").unwrap(), Some(Offset(30)), "the last one stands");
    assert_eq!(log.transaction_offset(b"tx").unwrap(), None);
    assert_eq!(
        log.transaction_offsets(&[b"tx/0029", b"no", b"", b"tx/0003"]).unwrap(),
        [Some(Offset(29)), None, Some(Offset(32)), Some(Offset(30))]
    );
    assert_eq!(
        log.scan_transactions(b"tx/000", Some(b"tx/0001"), 2).unwrap(),
        [(b"tx/0002".to_vec(), Offset(2)), (b"tx/0003".to_vec(), Offset(30))]
    );
}

pub(super) fn everything_is_there_after_a_restart(home: &impl Home) {
    let (tail, chain) = {
        let log = home.open();
        for n in 0..20 {
            log.append(Offset(n * 5), &entries(n * 5, 5)).unwrap();
        }
        (log.tail(), log.chain())
    };
    let log = home.open();
    assert_eq!((log.tail(), log.chain()), (tail, chain));
    let mut append = entries(100, 1);
    append.delete(b"key/03");
    log.append(tail, &append).unwrap();
    drop(log);
    let log = home.open();
    assert_eq!(log.tail(), Offset(101));
    assert_eq!(log.state(b"key/03").unwrap(), None);
    assert_eq!(log.state(b"key/02").unwrap().unwrap(), 100_u64.to_be_bytes());
    assert_eq!(log.record_offsets(RecordId(1), Offset(90), 9).unwrap().len(), 4);
    assert!(verify::scan(&log, |_, _| Ok(())).unwrap().is_good());
}

pub(super) fn a_failed_write_poisons_the_log<H: Home>(home: &H) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 5)).unwrap();
    let chain = log.chain();
    H::break_writes(&log);
    for _ in 0..3 {
        assert_eq!(log.append(Offset(5), &entries(5, 5)).unwrap_err().kind(), Kind::Storage);
    }
    assert_eq!((log.tail(), log.chain()), (Offset(5), chain));
    assert_eq!(log.read(Offset(0), ALL).unwrap().len(), 5, "it can still be read");
    assert_eq!(log.state(b"key/05").unwrap(), None);
    drop(log);
    let log = home.open();
    assert_eq!(log.append(Offset(5), &entries(5, 5)).unwrap(), Offset(10), "a restart mends it");
}

pub(super) fn a_bad_entry_is_named_and_can_be_read_past<H: Home>(home: &H) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 20)).unwrap();
    let good = log.read(Offset(0), ALL).unwrap();
    let damages: [fn(&mut Vec<u8>); 4] =
        [|f| f[1] ^= 1, |f| f[20] ^= 0x80, |f| *f.last_mut().unwrap() ^= 4, |f| f.truncate(9)];
    for (n, damage) in damages.into_iter().enumerate() {
        let bad = Offset(4 * n as u64);
        let mut saved = Vec::new();
        H::tamper(&log, bad, |frame| {
            saved.clone_from(frame);
            damage(frame);
        });
        if bad.0 > 0 {
            assert_eq!(log.read(Offset(0), ALL).unwrap().next(), bad, "what comes before is given");
        }
        for _ in 0..2 {
            let error = log.read(bad, ALL).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().contains(&format!("bad at offset {bad}:")), "{error}");
        }
        let rest = log.read(bad.next(), ALL).unwrap();
        assert!(rest.iter().eq(good.iter().skip(bad.0 as usize + 1)));
        H::tamper(&log, bad, |frame| *frame = saved);
        assert_eq!(log.read(Offset(0), ALL).unwrap(), good);
    }
    H::tamper(&log, Offset(3), |frame| frame[0] = 99);
    let error = log.read(Offset(3), ALL).unwrap_err();
    assert_eq!(error.kind(), Kind::Configuration);
    assert!(error.to_string().contains("frame version 99"), "{error}");
}

/// Puts another body into the frame at `offset`, with a checksum that fits.
fn alter<H: Home>(log: &H::Log, offset: Offset) {
    H::tamper(log, offset, |bytes| {
        let frame = Frame::parse(bytes).unwrap();
        let body = [frame.body, b"!"].concat();
        *bytes = [&frame::header(frame.previous, &body)[..], &body].concat();
    });
}

pub(super) fn an_altered_entry_with_a_right_checksum_is_found<H: Home>(home: &H) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 10)).unwrap();
    alter::<H>(&log, Offset(4));
    assert_eq!(log.read(Offset(0), ALL).unwrap().next(), Offset(5));
    for from in [5, 6] {
        let read = log.read(Offset(from), ALL);
        assert_eq!(read.is_err(), from == 5, "only the entry after it fails to follow");
    }
    let error = log.read(Offset(5), ReadLimit::ONE).unwrap_err();
    assert!(error.to_string().contains("does not follow"), "{error}");

    let report = verify::scan(&log, |_, _| Ok(())).unwrap();
    // The altered body does not decode, and what follows does not follow from it.
    let places: Vec<_> = report.bad.iter().map(|bad| (bad.offset.0, bad.end.0)).collect();
    assert_eq!((places, report.bad_entries), (vec![(4, 5), (5, 6)], 2));

    alter::<H>(&log, Offset(9));
    let report = verify::scan(&log, |_, _| Ok(())).unwrap();
    assert!(report.bad.last().unwrap().reason.contains("written last"), "the last one is found by the tip");
}

pub(super) fn verify_lists_what_is_bad<H: Home>(home: &H) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 300)).unwrap();
    for n in (10..14).chain([100]).chain(150..300) {
        H::tamper(&log, Offset(n), |frame| frame[7] ^= 1);
    }
    let mut seen = 0;
    let report = verify::scan(&log, |offset, _| {
        assert_eq!(offset, Offset(seen));
        seen += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, 10, "nothing is concluded from what comes after the first bad entry");
    let places: Vec<_> = report.bad.iter().map(|bad| (bad.offset.0, bad.end.0)).collect();
    assert_eq!(places, [(10, 14), (100, 101), (150, 300)]);
    assert_eq!((report.bad_entries, report.entries, report.tail), (155, 145, Offset(300)));
    assert!(report.bad[0].reason.contains("offset 10"), "{}", report.bad[0].reason);
}

pub(super) fn verify_gives_every_entry_to_the_visitor(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 50)).unwrap();
    let mut append = Append::new();
    append.push(&entry(3, 0), None);
    append.push(&entry(60, 0), None);
    log.append(Offset(50), &append).unwrap();
    let mut seen = Vec::new();
    let report = verify::scan(&log, |offset, found| {
        seen.push((offset, found.recorded_at));
        Ok(())
    })
    .unwrap();
    assert_eq!(seen.len(), 50);
    assert!(seen.iter().enumerate().all(|(n, (offset, at))| (offset.0, *at) == (n as u64, n as i64 * 10)));
    assert_eq!(report.bad.len(), 1, "time goes back at offset 50");
    assert_eq!((report.bad[0].offset, report.entries), (Offset(50), 51));
    assert_eq!((report.first_recorded_at, report.last_recorded_at), (Some(0), Some(600)));
    assert_eq!(report.chain.len(), 64);
    let stop = crate::error::Error::new(Kind::Refused, "stop");
    let mut stop = Some(stop);
    let error = verify::scan(&log, |_, _| stop.take().map_or(Ok(()), Err)).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
}

/// A state that is not the one the log was appended with, so that one can tell them apart.
fn other(first: u64, count: u64) -> Append {
    let mut append = Append::new();
    for n in first..first + count {
        append.push(&entry(n, 5), Some(format!("new/{n:04}").as_bytes()));
        append.put(format!("other/{:02}", n % 4).as_bytes(), b"new");
    }
    append
}

pub(super) fn a_rebuild_replaces_the_state_as_a_whole(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 30)).unwrap();
    let chain = log.chain();
    for round in 0..3 {
        let mut rebuild = log.rebuild().unwrap();
        assert_eq!(log.rebuild().err().unwrap().kind(), Kind::Internal, "one at a time");
        assert!(rebuild.scan_state(b"", None, 9).unwrap().is_empty(), "it begins with nothing");
        let fill = if round == 1 { entries } else { other };
        let before = log.scan_state(b"", None, 99).unwrap();
        rebuild.write(Offset(0), &fill(0, 10)).unwrap();
        rebuild.write(Offset(10), &fill(10, 20)).unwrap();
        let key: &[u8] = if round == 1 { b"key/02" } else { b"other/02" };
        assert!(rebuild.state(key).unwrap().is_some(), "it shows what was written");
        assert_eq!(rebuild.states(&[b"no", key]).unwrap(), [None, rebuild.state(key).unwrap()]);
        assert_eq!(log.scan_state(b"", None, 99).unwrap(), before, "readers see the old state");
        let new = rebuild.scan_state(b"", None, 99).unwrap();
        rebuild.commit().unwrap();
        assert_eq!(log.scan_state(b"", None, 99).unwrap(), new);
        let old: &[u8] = if round == 1 { b"new/0003" } else { b"tx/0003" };
        assert_eq!(log.transaction_offset(old).unwrap(), None);
        assert_eq!(log.record_offsets(RecordId(5), Offset(0), 99).unwrap().len(), if round == 1 { 0 } else { 30 });
        assert_eq!(log.record_offsets(RecordId(2), Offset(0), 99).unwrap().len(), if round == 1 { 10 } else { 0 });
    }
    assert_eq!((log.tail(), log.chain()), (Offset(30), chain), "the entries are untouched");
    log.append(Offset(30), &other(30, 1)).unwrap();
    let state = log.scan_state(b"", None, 99).unwrap();
    drop(log);
    let log = home.open();
    assert_eq!(log.scan_state(b"", None, 99).unwrap(), state);
    assert_eq!(log.transaction_offset(b"new/0030").unwrap(), Some(Offset(30)));
}

pub(super) fn a_rebuild_that_is_given_up_changes_nothing(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 30)).unwrap();
    let mut rebuild = log.rebuild().unwrap();
    rebuild.write(Offset(0), &other(0, 30)).unwrap();
    assert_eq!(first_difference(&log, &*rebuild).unwrap().unwrap(), b"key/00");
    drop(rebuild);
    assert_eq!(log.transaction_offset(b"new/0003").unwrap(), None);
    let mut rebuild = log.rebuild().unwrap();
    assert!(rebuild.scan_state(b"", None, 9).unwrap().is_empty(), "nothing is left of the one before");
    for n in 0..30 {
        rebuild.write(Offset(n), &entries(n, 1)).unwrap();
        let equal = first_difference(&log, &*rebuild).unwrap().is_none();
        assert_eq!(equal, n == 29, "the state is the same once every entry is folded");
    }
}

pub(super) fn a_rebuild_must_cover_the_log(home: &impl Home) {
    let log = home.open();
    log.append(Offset(0), &entries(0, 30)).unwrap();
    let before = log.scan_state(b"", None, 99).unwrap();
    let mut rebuild = log.rebuild().unwrap();
    assert_eq!(rebuild.write(Offset(1), &other(1, 1)).unwrap_err().kind(), Kind::Internal, "a hole");
    rebuild.write(Offset(0), &other(0, 29)).unwrap();
    assert_eq!(rebuild.write(Offset(0), &other(0, 1)).unwrap_err().kind(), Kind::Internal, "a step back");
    assert_eq!(rebuild.commit().unwrap_err().kind(), Kind::Internal, "too early");
    let mut rebuild = log.rebuild().unwrap();
    rebuild.write(Offset(0), &other(0, 30)).unwrap();
    log.append(Offset(30), &entries(30, 1)).unwrap();
    assert_eq!(rebuild.commit().unwrap_err().kind(), Kind::Internal, "an append came between");
    let after = log.scan_state(b"", None, 99).unwrap();
    assert_eq!(before.len(), after.len());
    assert_eq!(log.state(b"key/02").unwrap().unwrap(), 30_u64.to_be_bytes());
}

pub(super) fn a_time_leads_to_an_offset(home: &impl Home) {
    let log = home.open();
    let mut append = Append::new();
    for n in [0, 1, 1, 1, 4, 4, 9] {
        append.push(&entry(n, 0), None);
    }
    log.append(Offset(0), &append).unwrap();
    for (time, offset) in
        [(i64::MIN, 0), (0, 0), (1, 1), (10, 1), (11, 4), (40, 4), (41, 6), (90, 6), (91, 7), (i64::MAX, 7)]
    {
        assert_eq!(offset_at_time(&log, time).unwrap(), Offset(offset), "time {time}");
    }
}

pub(super) fn readers_see_a_prefix_while_the_writer_appends(home: &impl Home) {
    let (log, done) = (home.open(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut next, mut pages) = (Offset(0), 0);
                    while !(done.load(Ordering::Acquire) && next == log.tail()) {
                        let tail = log.tail();
                        let page = log.read(next, ReadLimit::entries(64)).unwrap();
                        assert!(!page.is_empty() || next == tail, "what is before the tail can be read");
                        for item in page.entries() {
                            let (offset, found) = item.unwrap();
                            assert_eq!(found, entry(offset.0, offset.0 % 3));
                        }
                        if let Some(last) = page.next().0.checked_sub(1) {
                            let key = format!("tx/{last:04}");
                            assert_eq!(log.transaction_offset(key.as_bytes()).unwrap(), Some(Offset(last)));
                            let state = log.state(format!("key/{:02}", last % 7).as_bytes()).unwrap().unwrap();
                            assert!(u64::from_be_bytes(state.try_into().unwrap()) >= last);
                        }
                        next = page.next();
                        pages += 1;
                    }
                    assert!(pages > 0);
                    next
                })
            })
            .collect();
        let mut tail = log.tail();
        for n in 0..100 {
            tail = log.append(tail, &entries(tail.0, n % 5 + 1)).unwrap();
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), tail);
        }
    });
}

pub(super) fn large_entries_are_taken(home: &impl Home) {
    let log = home.open();
    let large = vec![0xab; 12 << 20];
    let mut append = Append::new();
    append.push_encoded(&large, None, None);
    append.push_encoded(b"small", None, None);
    append.put(b"large", &large);
    log.append(Offset(0), &append).unwrap();
    let page = log.read(Offset(0), ReadLimit { entries: 10, bytes: 100 }).unwrap();
    assert_eq!((page.len(), page.bytes()), (1, large.len()));
    assert_eq!(log.read(Offset(1), ReadLimit::ONE).unwrap().bytes(), 5);
    assert_eq!(log.state(b"large").unwrap().unwrap().len(), large.len());
}
