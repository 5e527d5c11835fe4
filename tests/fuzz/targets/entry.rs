//! Any bytes are an entry or an error; an entry that was read is written so that it reads the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::change::codec::{self, Writer};

fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = codec::decode(data) {
        let mut writer = Writer::default();
        codec::encode(&entry, &mut writer);
        assert_eq!(codec::decode(&writer.buffer).as_ref(), Ok(&entry));
    }
});
