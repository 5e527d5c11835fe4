//! Any sequence of bytes is a message of the plugin or an error, and every column of a row can be walked.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::postgres::pgoutput::{Decoder, Message};

fuzz_target!(|data: &[u8]| {
    // The decoder knows whether a streamed transaction is open, so messages come in sequence: a length byte before each.
    let mut decoder = Decoder::new();
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first() {
        let (message, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        match decoder.decode(message) {
            Ok(Message::Insert { new, .. }) => assert_eq!(new.columns().count(), new.len()),
            Ok(Message::Update { old, new, .. }) => {
                assert_eq!(new.columns().count(), new.len());
                assert!(old.is_none_or(|old| old.tuple.columns().count() == old.tuple.len()));
            }
            Ok(Message::Delete { old, .. }) => assert_eq!(old.tuple.columns().count(), old.tuple.len()),
            Ok(Message::Relation { relation, .. }) => drop(relation.columns().collect::<Vec<_>>()),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
