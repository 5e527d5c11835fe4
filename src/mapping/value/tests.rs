#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const TEXT: FieldKind = FieldKind::Text { length: 255 };

fn kinds() -> Vec<FieldKind> {
    vec![
        FieldKind::Id,
        FieldKind::Reference { to: vec!["Account".to_owned()] },
        FieldKind::Relationship { relationship: "Account".to_owned(), external_id: "Ext__c".to_owned() },
        TEXT,
        FieldKind::Picklist,
        FieldKind::MultiPicklist,
        FieldKind::Boolean,
        FieldKind::Integer,
        FieldKind::Number { scale: 0 },
        FieldKind::Number { scale: 2 },
        FieldKind::Number { scale: 18 },
        FieldKind::Date,
        FieldKind::DateTime,
        FieldKind::Time,
    ]
}

fn kind() -> impl Strategy<Value = FieldKind> {
    proptest::sample::select(kinds())
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ".{0,40}",
        2 => "[ \t]{0,2}-?[0-9]{0,25}(\\.[0-9]{0,25})?([eE]-?[0-9]{1,2})?[ ]{0,2}",
        1 => "[a-zA-Z0-9]{15}",
        1 => "[0-9]{4}-[0-1][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,7})?(Z|[+-][01][0-9]:?[0-5][0-9])?)?( BC)?",
        1 => "[0-2][0-9]:[0-5][0-9](:[0-5][0-9](\\.[0-9]{1,7})?)?Z?",
        1 => proptest::sample::select(vec![
            "NaN", "infinity", "-infinity", "Infinity", "t", "f", "true", "No", "0", "1", "", " ", "24:00:00", "{a,b}",
        ]).prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        2 => any::<i64>().prop_map(Value::Int),
        2 => any::<f64>().prop_filter_map("finite", |f| Value::float(f).ok()),
        8 => text().prop_map(Value::text),
        1 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        1 => any::<i32>().prop_map(Value::Date),
        1 => any::<i64>().prop_map(Value::Time),
        1 => any::<i64>().prop_map(Value::Timestamp),
        1 => (-10_000_000_000_i64..10_000_000_000).prop_map(|s| Value::Timestamp(s * 1_000_003)),
    ]
}

/// The type of the column that a Heroku Connect mirror has for a kind.
fn natural_oid(kind: &FieldKind) -> u32 {
    match kind {
        FieldKind::Boolean => 16,
        FieldKind::Integer => 23,
        FieldKind::Number { .. } => 701,
        FieldKind::Date => 1082,
        FieldKind::DateTime => 1114,
        FieldKind::Time => 1083,
        _ => 1043,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn normalising_is_idempotent(kind in kind(), value in value()) {
        let once = normalise(&kind, value);
        prop_assert_eq!(normalise(&kind, once.clone()), once);
    }

    #[test]
    fn readers_give_canonical_values(kind in kind(), text in text(), oid in proptest::sample::select(vec![16_u32, 25, 790, 1009, 1184, 1700])) {
        let read = from_postgres(&kind, oid, &text);
        prop_assert_eq!(normalise(&kind, read.clone()), read);
        let read = from_json(&kind, &serde_json::Value::String(text));
        prop_assert_eq!(normalise(&kind, read.clone()), read);
    }

    #[test]
    fn a_canonical_value_survives_postgres(kind in kind(), value in value()) {
        let canonical = normalise(&kind, value);
        let back = match to_postgres(&kind, &canonical) {
            Some(text) => from_postgres(&kind, natural_oid(&kind), &text),
            None => normalise(&kind, Value::Null),
        };
        prop_assert_eq!(back, canonical);
    }

    #[test]
    fn a_canonical_value_survives_json_or_is_refused(kind in kind(), value in value()) {
        let canonical = normalise(&kind, value);
        match to_json(&kind, &canonical) {
            Ok(json) => {
                let text = serde_json::to_string(&json).unwrap();
                let read: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(from_json(&kind, &read), canonical);
            }
            Err(_) => prop_assert!(matches!(canonical, Value::Text(_) | Value::Date(_) | Value::Timestamp(_))),
        }
    }

    #[test]
    fn rounding_moves_by_at_most_half_a_unit(whole in 0_i64..1_000_000_000, fraction in 0_i64..1_000_000, negative in any::<bool>()) {
        let sign = if negative { "-" } else { "" };
        let text = format!("{sign}{whole}.{fraction:06}");
        let micros = i128::from(whole) * 1_000_000 + i128::from(fraction);
        let cents = (micros + 5_000) / 10_000;
        let expected = Value::number(&format!("{sign}{}.{:02}", cents / 100, cents % 100)).unwrap();
        prop_assert_eq!(from_postgres(&FieldKind::Number { scale: 2 }, 1700, &text), expected);
    }

    #[test]
    fn lists_survive_array_columns(items in proptest::collection::vec("[^;\u{0}-\u{20}]{1,8}", 0..5)) {
        let value = normalise(&FieldKind::MultiPicklist, Value::text(items.join(";")));
        let back = match to_postgres_array(&FieldKind::MultiPicklist, &value) {
            Some(text) => from_postgres(&FieldKind::MultiPicklist, 1009, &text),
            None => Value::Null,
        };
        prop_assert_eq!(back, value);
    }
}

#[test]
fn postgres_texts_of_all_common_types() {
    let number = FieldKind::Number { scale: 4 };
    let cases: Vec<(FieldKind, u32, &str, Value)> = vec![
        (FieldKind::Boolean, 16, "t", Value::Bool(true)),
        (FieldKind::Boolean, 16, "f", Value::Bool(false)),
        (FieldKind::Boolean, 25, "Yes", Value::Bool(true)),
        (FieldKind::Boolean, 23, "0", Value::Bool(false)),
        (FieldKind::Boolean, 25, "maybe", Value::text("maybe")),
        (FieldKind::Integer, 20, "-9223372036854775808", Value::Int(i64::MIN)),
        (FieldKind::Integer, 701, "2.5", Value::Int(3)),
        (number.clone(), 1700, "NaN", Value::text("NaN")),
        (number.clone(), 701, "1e+20", Value::number("100000000000000000000").unwrap()),
        (number.clone(), 701, "-Infinity", Value::text("-Infinity")),
        (number.clone(), 700, "0.1", Value::number("0.1").unwrap()),
        (number.clone(), 1700, "12345678901234567890.12345", Value::number("12345678901234567890.1235").unwrap()),
        (number.clone(), 790, "$1,234.50", Value::number("1234.5").unwrap()),
        (number, 16, "t", Value::Int(1)),
        (TEXT, 1042, "padded    ", Value::text("padded")),
        (TEXT, 25, "   ", Value::Null),
        (TEXT, 16, "t", Value::text("true")),
        (TEXT, 17, "\\xdeadbeef", Value::text("\\xdeadbeef")),
        (TEXT, 2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", Value::text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (TEXT, 3802, "{\"a\": 1}", Value::text("{\"a\": 1}")),
        (TEXT, 1186, "1 day 02:03:04", Value::text("1 day 02:03:04")),
        (TEXT, 1184, "2026-01-02 05:04:05.123+02", Value::text("2026-01-02 03:04:05.123+00")),
        (TEXT, 1184, "infinity", Value::text("infinity")),
        (TEXT, 3904, "[1,5)", Value::text("[1,5)")),
        (TEXT, 1560, "101", Value::text("101")),
        (TEXT, 1009, "{a,b}", Value::text("{a,b}")),
        (FieldKind::MultiPicklist, 1009, "{a,\"b c\"}", Value::text("a;b c")),
        (FieldKind::MultiPicklist, 16_400, "{a,b}", Value::text("a;b")),
        (FieldKind::MultiPicklist, 1009, "{}", Value::Null),
        (FieldKind::MultiPicklist, 25, "a;b", Value::text("a;b")),
        (FieldKind::Date, 1082, "2026-01-02", Value::Date(20_455)),
        (FieldKind::Date, 1082, "infinity", Value::text("infinity")),
        (FieldKind::Date, 1114, "2026-01-02 23:59:59", Value::Date(20_455)),
        (FieldKind::DateTime, 1114, "2026-01-02 03:04:05.999", Value::Timestamp(1_767_323_045_000_000)),
        (FieldKind::DateTime, 1184, "2026-01-02 04:04:05+01", Value::Timestamp(1_767_323_045_000_000)),
        (FieldKind::DateTime, 1114, "1969-12-31 23:59:59.5", Value::Timestamp(-1_000_000)),
        (FieldKind::DateTime, 1114, "-infinity", Value::text("-infinity")),
        (FieldKind::Time, 1083, "10:15:00.1234", Value::Time(36_900_123_000)),
        (FieldKind::Time, 1266, "10:15:00+02", Value::Time(29_700_000_000)),
        (FieldKind::Time, 1083, "24:00:00", Value::text("24:00:00")),
        (FieldKind::Id, 1043, "001D000000IRFma", Value::text("001D000000IRFmaIAH")),
        (FieldKind::Id, 1043, "001D000000IRFmaIAH", Value::text("001D000000IRFmaIAH")),
    ];
    for (kind, oid, text, expected) in cases {
        assert_eq!(from_postgres(&kind, oid, text), expected, "{kind:?} {oid} {text}");
    }
}

#[test]
fn rest_representation() {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let number = FieldKind::Number { scale: 2 };
    for (kind, text, expected) in [
        (number.clone(), "1.0E7", Value::Int(10_000_000)),
        (number.clone(), "5.0", Value::Int(5)),
        (number.clone(), "0.125", Value::number("0.13").unwrap()),
        (number.clone(), "\"12.5\"", Value::number("12.5").unwrap()),
        (FieldKind::Integer, "7", Value::Int(7)),
        (FieldKind::Boolean, "null", Value::Bool(false)),
        (TEXT, "\" a \"", Value::text("a")),
        (TEXT, "\"\"", Value::Null),
        (TEXT, "5", Value::text("5")),
        (FieldKind::Date, "\"2026-01-02\"", Value::Date(20_455)),
        (FieldKind::DateTime, "\"2013-05-07T22:07:19.000+0000\"", Value::Timestamp(1_367_964_439_000_000)),
        (FieldKind::Time, "\"10:15:00.000Z\"", Value::Time(36_900_000_000)),
        (FieldKind::Id, "\"001D000000IRFma\"", Value::text("001D000000IRFmaIAH")),
    ] {
        assert_eq!(from_json(&kind, &json(text)), expected, "{kind:?} {text}");
    }
    assert_eq!(
        to_json(&FieldKind::DateTime, &Value::Timestamp(1_367_964_439_000_000)).unwrap(),
        json("\"2013-05-07T22:07:19.000+0000\"")
    );
    let big = Value::number("12345678901234567890.12").unwrap();
    assert_eq!(to_json(&number, &big).unwrap().to_string(), "12345678901234567890.12");
    assert_eq!(to_json(&FieldKind::Boolean, &Value::Null), Ok(serde_json::Value::Bool(false)));
    assert_eq!(to_json(&number, &Value::text("NaN")), Err(ValueError::NotANumber));
    assert_eq!(to_json(&FieldKind::Date, &Value::text("infinity")), Err(ValueError::NotADate));
    let before_christ = from_postgres(&FieldKind::Date, 1082, "0044-03-15 BC");
    assert_eq!(to_json(&FieldKind::Date, &before_christ), Err(ValueError::NotADate));
}

#[test]
fn change_events() {
    use apache_avro::types::Value as Avro;
    let some = |value| Avro::Union(1, Box::new(value));
    let number = FieldKind::Number { scale: 2 };
    for (kind, value, expected) in [
        (FieldKind::DateTime, some(Avro::Long(1_367_964_439_500)), Value::Timestamp(1_367_964_439_000_000)),
        (FieldKind::Date, some(Avro::Long(1_767_312_000_000)), Value::Date(20_455)),
        (FieldKind::Date, some(Avro::Long(-86_400_000)), Value::Date(-1)),
        (FieldKind::Time, some(Avro::Long(36_900_000)), Value::Time(36_900_000_000)),
        (number.clone(), some(Avro::Double(0.1)), Value::number("0.1").unwrap()),
        (number.clone(), some(Avro::Double(1e7)), Value::Int(10_000_000)),
        (number.clone(), some(Avro::Double(1.005)), Value::number("1.01").unwrap()),
        (number.clone(), some(Avro::Float(0.1)), Value::number("0.1").unwrap()),
        (number, some(Avro::Double(f64::NAN)), Value::text("NaN")),
        (FieldKind::Integer, some(Avro::Int(7)), Value::Int(7)),
        (FieldKind::Boolean, Avro::Union(0, Box::new(Avro::Null)), Value::Bool(false)),
        (TEXT, some(Avro::String("a ".to_owned())), Value::text("a")),
        (FieldKind::Picklist, some(Avro::Enum(2, "Hot".to_owned())), Value::text("Hot")),
        (
            FieldKind::MultiPicklist,
            some(Avro::Array(vec![Avro::String("a".to_owned()), Avro::String("b".to_owned())])),
            Value::text("a;b"),
        ),
    ] {
        assert_eq!(from_avro(&kind, &value), expected, "{kind:?} {value:?}");
    }
}

#[test]
fn blanks_around_a_text_do_not_make_it_another_value() {
    let blank = |text: &str| format!("\u{1}\n {text} ");
    for (kind, text) in [
        (FieldKind::Date, "2026-01-02"),
        (FieldKind::DateTime, "2026-01-02 03:04:05+00"),
        (FieldKind::Time, "10:15:00"),
        (FieldKind::Integer, "12"),
        (FieldKind::Number { scale: 2 }, "12.50"),
        (FieldKind::Boolean, "true"),
    ] {
        let value = from_postgres(&kind, oid::TEXT, text);
        assert!(!matches!(value, Value::Text(_)), "{kind:?}");
        assert_eq!(from_postgres(&kind, oid::TEXT, &blank(text)), value, "{kind:?}");
    }
}
