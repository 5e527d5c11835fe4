//! Any text is the schema of a change event or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::salesforce::avro::EventSchema;

fuzz_target!(|text: &str| {
    if let Ok(schema) = EventSchema::parse(text) {
        assert!(!schema.fields().is_empty());
    }
});
