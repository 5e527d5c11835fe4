#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock;
use crate::flow::RowOperation;
use crate::ledger::core::Core;
use crate::ledger::testing::{catalog, row};
use crate::log::MemoryLog;
use crate::log::reader::ReaderPool;

/// However many there are, and whatever has become of the mapping of some.
#[tokio::test]
async fn all_records_known_in_part_are_found_again() {
    let log = MemoryLog::new();
    let mut core = Core::open(Arc::new(log.reopen()), clock::system()).unwrap();
    core.configure(&catalog(&["Phone"])).unwrap();
    core.open_stream(Side::Postgres, "p").unwrap();
    core.open_stream(Side::Salesforce, "s").unwrap();
    for n in 1..=10_050 {
        core.intake(&row(Side::Salesforce, n, n, RowOperation::Update, &[(1, "111")])).unwrap();
    }
    core.commit().unwrap();
    let pool = ReaderPool::start(Arc::new(log)).unwrap();
    let known = Arc::clone(&core.meta().catalog);
    let (mut found, mut after) = (0, Some(Vec::new()));
    while let Some(from) = after {
        let (some, next) = known_partial(&pool.reader(), Arc::clone(&known), from).await.unwrap();
        assert!(some.len() <= PARTIAL_PAGE);
        found += some.len();
        after = next;
    }
    assert_eq!(found, 10_050);
    assert!(known_partial(&pool.reader(), Arc::default(), Vec::new()).await.unwrap().0.is_empty());
}
