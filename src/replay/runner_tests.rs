#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use super::*;
use crate::clock;
use crate::flow::RowOperation;
use crate::ledger;
use crate::ledger::testing::{catalog, row};
use crate::log::MemoryLog;
use crate::log::reader::ReaderPool;

/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which target was sent which tickets.
type Calls = Arc<Mutex<Vec<(usize, Vec<Offset>)>>>;

/// A target that fails its first calls. Clones have numbers of their own.
struct Fake {
    number: usize,
    failures: Arc<Mutex<usize>>,
    calls: Calls,
}

impl Target for Fake {
    fn side(&self) -> Side {
        Side::Salesforce
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation::Answer
    }

    fn batch_limit(&self) -> usize {
        2
    }

    async fn resume(&mut self) -> Result<Resumed> {
        Ok(Resumed::default())
    }

    async fn write(&mut self, batch: &[Write]) -> Result<Vec<Written>> {
        self.calls.lock().unwrap().push((self.number, batch.iter().map(|w| w.ticket).collect()));
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(Error::new(Kind::Unavailable, "cut off"));
        }
        Ok(batch.iter().map(|_| Written::Done { salesforce_id: None }).collect())
    }
}

/// A new value that waits for the echo of the write before it is not in step.
#[tokio::test]
async fn a_newer_value_behind_an_acknowledged_write_is_in_flight() {
    let log: crate::log::SharedLog = Arc::new(MemoryLog::new());
    let pool = ReaderPool::start(Arc::clone(&log)).unwrap();
    let (ledger, thread) = ledger::start(log, clock::system()).unwrap();
    ledger
        .run(|core| {
            core.configure(&catalog(&["Phone"]))?;
            core.open_stream(Side::Postgres, "p")?;
            core.open_stream(Side::Salesforce, "s")?;
            core.intake(&row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "1")]))
        })
        .await
        .unwrap();
    let fake = Fake { number: 0, failures: Arc::default(), calls: Arc::default() };
    let settings = Settings::default();
    let runner = Runner::new(vec![fake], ledger.clone(), pool.reader(), clock::system(), settings, Arc::new(|| 0));
    let status = runner.status();
    let cancel = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(runner.run(cancel.clone()));
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
    };
    until("it is written", &|| status.written() == 1).await;
    until("it is in step", &|| status.in_flight() == 0 && status.waiting_since() == 0).await;
    ledger.run(|core| core.intake(&row(Side::Postgres, 2, 1, RowOperation::Update, &[(1, "2")]))).await.unwrap();
    until("it is behind", &|| status.in_flight() == 1 && status.waiting_since() != 0).await;
    // The echo of the first write lets the second one out.
    let mut echo = row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x"), (1, "1")]);
    if let crate::flow::Item::Row(row) = &mut echo.events[0].item {
        row.own = crate::flow::Own::Marked;
    }
    ledger.run(move |core| core.intake(&echo)).await.unwrap();
    until("both are written", &|| status.written() == 2).await;
    until("it is in step again", &|| status.in_flight() == 0 && status.waiting_since() == 0).await;
    cancel.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
    drop(ledger);
    drop(pool);
    thread.join().unwrap();
}

/// A target remembers what of a batch was answered before it failed, so that batch must come back to it.
#[tokio::test]
async fn a_batch_that_failed_goes_to_the_same_target_again() {
    let log: crate::log::SharedLog = Arc::new(MemoryLog::new());
    let pool = ReaderPool::start(Arc::clone(&log)).unwrap();
    let (ledger, thread) = ledger::start(log, clock::system()).unwrap();
    ledger
        .run(|core| {
            core.configure(&catalog(&["Phone"]))?;
            core.open_stream(Side::Postgres, "p")?;
            core.open_stream(Side::Salesforce, "s")?;
            for n in 1..=4 {
                let name = n.to_string();
                core.intake(&row(Side::Postgres, n, n, RowOperation::Insert, &[(0, &name), (1, "1")]))?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let (failures, calls) = (Arc::new(Mutex::new(3)), Arc::new(Mutex::new(Vec::new())));
    let fake = |number| Fake { number, failures: Arc::clone(&failures), calls: Arc::clone(&calls) };
    let settings = Settings { backoff_least: Duration::from_millis(1), ..Settings::default() };
    let runner =
        Runner::new(vec![fake(0), fake(1)], ledger.clone(), pool.reader(), clock::system(), settings, Arc::new(|| 0));
    let status = runner.status();
    let cancel = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(runner.run(cancel.clone()));
    tokio::time::timeout(PATIENCE, async {
        while status.written() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    cancel.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
    let calls = calls.lock().unwrap().clone();
    for (target, tickets) in &calls {
        assert!(calls.iter().all(|(t, other)| other != tickets || t == target), "{calls:?}");
    }
    assert_eq!(calls.len(), 5, "{calls:?}");
    drop(ledger);
    drop(pool);
    thread.join().unwrap();
}

/// Takes transactions. The first one fails, once it is let go.
struct Transactional {
    let_go: Arc<tokio::sync::Notify>,
    failed: bool,
    written: Arc<Mutex<Vec<RecordId>>>,
}

impl Target for Transactional {
    fn side(&self) -> Side {
        Side::Salesforce
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation::Transaction
    }

    fn batch_limit(&self) -> usize {
        2
    }

    async fn resume(&mut self) -> Result<Resumed> {
        Ok(Resumed::default())
    }

    async fn write(&mut self, batch: &[Write]) -> Result<Vec<Written>> {
        if !self.failed {
            self.failed = true;
            self.let_go.notified().await;
            return Err(Error::new(Kind::Unavailable, "cut off"));
        }
        self.written.lock().unwrap().extend(batch.iter().map(|w| w.record));
        Ok(vec![Written::InStream; batch.len()])
    }
}

/// The next transaction is planned while one runs, and given back with it.
#[tokio::test]
async fn a_transaction_that_fails_gives_back_what_was_planned_behind_it() {
    let log: crate::log::SharedLog = Arc::new(MemoryLog::new());
    let pool = ReaderPool::start(Arc::clone(&log)).unwrap();
    let (ledger, thread) = ledger::start(log, clock::system()).unwrap();
    ledger
        .run(|core| {
            core.configure(&catalog(&["Phone"]))?;
            core.open_stream(Side::Postgres, "p")?;
            core.open_stream(Side::Salesforce, "s")?;
            for n in 1..=4 {
                let name = n.to_string();
                core.intake(&row(Side::Postgres, n, n, RowOperation::Insert, &[(0, &name), (1, "1")]))?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let (let_go, written) = (Arc::new(tokio::sync::Notify::new()), Arc::new(Mutex::new(Vec::new())));
    let target = Transactional { let_go: Arc::clone(&let_go), failed: false, written: Arc::clone(&written) };
    let settings = Settings { backoff_least: Duration::from_millis(1), ..Settings::default() };
    let runner = Runner::new(vec![target], ledger.clone(), pool.reader(), clock::system(), settings, Arc::new(|| 0));
    let status = runner.status();
    let cancel = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(runner.run(cancel.clone()));
    let until = async |holds: &dyn Fn() -> bool| {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    };
    until(&|| status.in_flight() == 4).await;
    assert_eq!(written.lock().unwrap().len(), 0);
    let_go.notify_one();
    until(&|| status.written() == 4).await;
    cancel.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
    let mut records = written.lock().unwrap().clone();
    records.sort_unstable();
    records.dedup();
    assert_eq!(records.len(), 4, "each record is written once");
    assert_eq!(ledger.status().borrow().counts.tickets[Side::Salesforce.index()], 8, "four were given back");
    drop(ledger);
    drop(pool);
    thread.join().unwrap();
}

/// A database that says how far it was written.
struct Database {
    committed: Arc<Mutex<Offset>>,
    written: Arc<Mutex<Vec<RecordId>>>,
}

impl Target for Database {
    fn side(&self) -> Side {
        Side::Postgres
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation::Transaction
    }

    fn batch_limit(&self) -> usize {
        2
    }

    async fn resume(&mut self) -> Result<Resumed> {
        Ok(Resumed { committed: Some(*self.committed.lock().unwrap()), told_by: None })
    }

    async fn write(&mut self, batch: &[Write]) -> Result<Vec<Written>> {
        self.written.lock().unwrap().extend(batch.iter().map(|w| w.record));
        Ok(vec![Written::InStream; batch.len()])
    }
}

/// One that was put back to an earlier moment would not show it any more, once it had another write.
#[tokio::test]
async fn a_database_that_went_back_is_not_written_to() {
    let log: crate::log::SharedLog = Arc::new(MemoryLog::new());
    let pool = ReaderPool::start(Arc::clone(&log)).unwrap();
    let (ledger, thread) = ledger::start(log, clock::system()).unwrap();
    let applied = ledger
        .run(|core| {
            core.configure(&catalog(&["Phone"]))?;
            core.open_stream(Side::Postgres, "p")?;
            core.open_stream(Side::Salesforce, "s")?;
            core.intake(&row(Side::Salesforce, 1, 1, RowOperation::Insert, &[(0, "x1")]))?;
            let told: Vec<Offset> =
                core.plan(Side::Postgres, &[RecordId(0)], Offset(0))?.iter().map(|w| w.ticket).collect();
            let mut echo = row(Side::Postgres, 1, 1, RowOperation::Insert, &[(0, "x1")]);
            if let crate::flow::Item::Row(row) = &mut echo.events[0].item {
                row.own = crate::flow::Own::Marked;
            }
            core.intake(&echo)?;
            core.intake(&row(Side::Salesforce, 2, 2, RowOperation::Insert, &[(0, "x2")]))?;
            Ok(told[0])
        })
        .await
        .unwrap();
    let (committed, written) = (Arc::new(Mutex::new(Offset(applied.0 - 1))), Arc::new(Mutex::new(Vec::new())));
    let target = Database { committed: Arc::clone(&committed), written: Arc::clone(&written) };
    let settings = Settings { backoff_least: Duration::from_millis(1), ..Settings::default() };
    let runner = Runner::new(vec![target], ledger.clone(), pool.reader(), clock::system(), settings, Arc::new(|| 0));
    let status = runner.status();
    let cancel = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(runner.run(cancel.clone()));
    let until = async |holds: &dyn Fn() -> bool| {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    };
    until(&|| status.failures() >= 2).await;
    assert_eq!(*written.lock().unwrap(), []);
    *committed.lock().unwrap() = applied;
    until(&|| status.written() == 1).await;
    assert_eq!(*written.lock().unwrap(), [RecordId(1)]);
    cancel.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
    drop(ledger);
    drop(pool);
    thread.join().unwrap();
}
