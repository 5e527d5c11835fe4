//! Whatever PostgreSQL prints has a canonical value of the field's kind, and canonical values stay as they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::change::{FieldKind, Value};
use tidelock::mapping;

/// The types whose text is understood, and one that is not known.
const TYPES: [u32; 16] = [16, 17, 20, 23, 25, 114, 700, 701, 1043, 1082, 1083, 1114, 1184, 1186, 1700, 99_999];

fuzz_target!(|input: (u8, u8, &str)| {
    let (kind, type_oid, text) = input;
    let kind = match kind % 12 {
        0 => FieldKind::Id,
        1 => FieldKind::Reference { to: vec!["Account".into()] },
        2 => FieldKind::Text { length: 80 },
        3 => FieldKind::Picklist,
        4 => FieldKind::MultiPicklist,
        5 => FieldKind::Boolean,
        6 => FieldKind::Integer,
        7 => FieldKind::Number { scale: 2 },
        8 => FieldKind::Date,
        9 => FieldKind::DateTime,
        10 => FieldKind::Time,
        _ => FieldKind::Number { scale: 0 },
    };
    let value = mapping::from_postgres(&kind, TYPES[usize::from(type_oid) % TYPES.len()], text);
    assert_eq!(mapping::normalise(&kind, value.clone()), value, "{kind:?} {text:?}");
    if let Ok(number) = Value::number(text) {
        assert_eq!(Value::number(&number.to_string()), Ok(number), "{text:?}");
    }
});
