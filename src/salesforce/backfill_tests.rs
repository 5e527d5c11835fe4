#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::change::{FieldId, Offset};
use crate::flow::Receipt;
use crate::salesforce::capture_event::tests::{catalog, mapping};
use crate::salesforce::stub::{Asked, Stub};

#[test]
fn places_are_read_back() {
    for text in
        ["", "001000000000001AAA", "sweep:", "sweep:001000000000001AAA", "001000000000001AAA+sweep", "sweep:+sweep"]
    {
        assert_eq!(Place::parse(text).to_text(), text);
    }
    for (text, finished, expected) in [
        ("001a", false, "001a+sweep"),
        ("", false, "+sweep"),
        ("001a", true, "sweep:"),
        ("sweep:001a", false, "sweep:"),
    ] {
        assert_eq!(Place::parse(text).once_more(finished).to_text(), expected);
    }
    assert_eq!(Place::parse("sweep:x+sweep"), Place { sweep: true, after: "x".into(), again: true });
}

#[tokio::test]
async fn one_copy_of_an_object_runs_at_a_time() {
    let (copies, mapping) = (Arc::new(Copies::default()), mapping());
    let (place, asked) = copies.ask(mapping.id);
    assert_eq!((place, asked.is_some()), (Place::sweep(), true));
    drop(asked);
    let entered = copies.enter(&mapping, Place::parse("001a")).await;
    let (place, asked) = copies.ask(mapping.id);
    assert_eq!((place, asked.is_some()), (Place::parse("001a+sweep"), false));
    assert_eq!(entered.move_to("001b".into()).to_text(), "001b+sweep");
    assert_eq!(entered.go_round().to_text(), "sweep:");
    // Another one waits until this one has ended.
    let mut waiting = std::pin::pin!(copies.enter(&mapping, Place::default()));
    let now = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_ready()));
    assert!(!now.await);
    drop(entered);
    let entered = tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.unwrap();
    assert_eq!(entered.place(), Place::default());
}

/// The names that the log is told, in order.
#[derive(Default)]
struct Names(Mutex<Vec<String>>);

impl Intake for Names {
    async fn offer(&self, batch: Batch) -> Result<impl Future<Output = Result<Receipt>> + Send + 'static> {
        let mut names = self.0.lock().unwrap();
        for event in batch.events {
            if let Item::Row(row) = event.item {
                names.extend(
                    row.fields.iter().filter(|(field, _)| *field == FieldId(1)).map(|(_, name)| name.to_string()),
                );
            }
        }
        Ok(async { Ok(Receipt { tail: Offset(0), duplicates: 0, more: false }) })
    }
}

/// An org with one account that is edited after each time it is read, within the second of its stamp.
async fn edited_while_read() -> (Stub, Backfill) {
    let reads = AtomicUsize::new(0);
    let stub = Stub::start(move |asked: &Asked| {
        let account = || {
            let name = format!("name {}", reads.fetch_add(1, Ordering::Relaxed));
            // Whatever the clocks say, it is not before the second in which it is read.
            serde_json::json!({ "Id": "001000000000001AAA", "Name": name, "SystemModstamp": "2999-01-01T00:00:00.000+0000" })
        };
        let answer = if asked.path.starts_with("composite/sobjects/Account") {
            serde_json::json!([account()])
        } else if asked.path.starts_with("query") {
            serde_json::json!({ "totalSize": 1, "done": true, "records": [account()] })
        } else {
            return (404, String::new());
        };
        (200, answer.to_string())
    })
    .await;
    let backfill = Backfill::new(stub.rest.clone(), catalog(), StreamId(1), Arc::default());
    (stub, backfill)
}

/// Stamps have whole seconds: of a row that was edited in the second in which it was read, nobody could tell that it was edited
/// again. So only what it is when that second has passed is told.
#[tokio::test]
async fn a_row_that_was_edited_just_now_is_told_as_it_is_a_second_later() {
    let cancel = CancellationToken::new();
    let (_stub, backfill) = edited_while_read().await;
    let names = Names::default();
    let entered = backfill.copies.enter(&mapping(), Place::sweep()).await;
    backfill.sweep(entered, &names, &cancel).await.unwrap();
    assert_eq!(*names.0.lock().unwrap(), ["name 2"], "a sweep");
    let (_stub, backfill) = edited_while_read().await;
    let names = Names::default();
    backfill.read_again(&[(MappingId(0), "001000000000001AAA".into())], &names, &cancel).await.unwrap();
    assert_eq!(*names.0.lock().unwrap(), ["name 1"], "records by their ids");
}
