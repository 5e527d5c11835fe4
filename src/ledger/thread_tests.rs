#![allow(clippy::unwrap_used)]

use super::*;
use crate::change::Notice;
use crate::clock;
use crate::log::MemoryLog;

fn notice() -> Notice {
    Notice::ClockOffset { salesforce_ahead_us: 1 }
}

/// What a job has added is not made durable half, whatever kind of error it ends with.
#[tokio::test]
async fn a_job_that_fails_half_way_ends_the_thread() {
    let log = MemoryLog::new();
    let (ledger, thread) = start(Arc::new(log.reopen()), clock::system()).unwrap();
    let refuse = || Error::new(Kind::Configuration, "not like this");
    assert!(ledger.run(move |_| Err::<(), _>(refuse())).await.is_err());
    ledger.run(|core| core.notice(notice())).await.unwrap();
    let failed = ledger.run(move |core| core.notice(notice()).and(Err::<(), _>(refuse()))).await;
    assert_eq!(failed.unwrap_err().to_string(), "not like this");
    assert!(ledger.run(|core| core.notice(notice())).await.is_err());
    thread.join().unwrap();
    assert_eq!(log.tail(), Offset(1));
}

/// A handle that somebody keeps must not keep the thread from ending; what was asked for before is done.
#[tokio::test]
async fn the_thread_ends_when_told_to_though_a_handle_is_held() {
    let log = MemoryLog::new();
    let (ledger, thread) = start(Arc::new(log.reopen()), clock::system()).unwrap();
    let held = ledger.clone();
    let asked = ledger.submit(|core| core.notice(notice())).await.unwrap();
    ledger.stop().await;
    asked.await.unwrap();
    thread.join().unwrap();
    assert_eq!(held.run(|core| core.notice(notice())).await.unwrap_err().kind(), Kind::Storage);
    held.stop().await;
    assert_eq!(log.tail(), Offset(1));
}
