//! Any bytes are a record's state or an error; equal states have equal bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::causality::RecordState;
use tidelock::change::codec::Writer;

fuzz_target!(|data: &[u8]| {
    if let Ok(state) = RecordState::decode(data) {
        let mut writer = Writer::default();
        state.encode(&mut writer);
        assert_eq!(RecordState::decode(&writer.buffer).as_ref(), Ok(&state));
    }
});
