//! Values of every common type, as a real server streams them.

use super::*;
use crate::error::Kind;
use crate::flow::RowOperation;
use crate::mapping;

/// Column, type, expression of a value.
const COLUMNS: [(&str, &str, &str); 46] = [
    ("c_bool", "boolean", "true"),
    ("c_int2", "smallint", "'-32768'"),
    ("c_int4", "integer", "2147483647"),
    ("c_int8", "bigint", "9223372036854775807"),
    ("c_numeric", "numeric", "'-12345678901234567890.12345678900'"),
    ("c_numeric_scale", "numeric(18,2)", "1234.5"),
    ("c_numeric_nan", "numeric", "'NaN'"),
    ("c_numeric_inf", "numeric", "'-Infinity'"),
    ("c_float4", "real", "0.1"),
    ("c_float8", "double precision", "1.0/3"),
    ("c_float8_nan", "double precision", "'NaN'"),
    ("c_float8_inf", "double precision", "'Infinity'"),
    ("c_float8_big", "double precision", "1e300"),
    ("c_money", "money", "1234.56"),
    ("c_char", "char(10)", "'padded'"),
    ("c_varchar", "varchar(40)", "' kept inside '"),
    ("c_text", "text", "E'quote '' backslash \\\\ tab \\t é 漢 😀'"),
    ("c_text_empty", "text", "''"),
    ("c_bytea", "bytea", "'\\x00ff10'"),
    ("c_name", "name", "'some_name'"),
    ("c_date", "date", "'0044-03-15 BC'"),
    ("c_date_now", "date", "'2026-02-28'"),
    ("c_date_inf", "date", "'infinity'"),
    ("c_time", "time", "'23:59:59.999999'"),
    ("c_timetz", "timetz", "'12:34:56+05:30'"),
    ("c_timestamp", "timestamp", "'2026-07-01 12:34:56.789'"),
    ("c_timestamptz", "timestamptz", "'2026-07-01 12:34:56.999999+05:30'"),
    ("c_timestamptz_inf", "timestamptz", "'-infinity'"),
    ("c_interval", "interval", "'1 year 2 mons -3 days 04:05:06.7'"),
    ("c_uuid", "uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("c_json", "json", "'{ \"a\" : 1 }'"),
    ("c_jsonb", "jsonb", "'{ \"b\" : [1, 2], \"a\" : null }'"),
    ("c_xml", "xml", "'<a>1</a>'"),
    ("c_inet", "inet", "'192.168.0.1/24'"),
    ("c_cidr", "cidr", "'10.0.0.0/8'"),
    ("c_macaddr", "macaddr", "'08:00:2b:01:02:03'"),
    ("c_point", "point", "'(1.5,2)'"),
    ("c_bit", "bit(4)", "'1010'"),
    ("c_varbit", "varbit", "'101'"),
    ("c_tsvector", "tsvector", "'a:1 b:2'"),
    ("c_range", "int4range", "'[1,10)'"),
    ("c_ints", "int[]", "'{1,NULL,3}'"),
    ("c_texts", "text[]", "array['plain', 'with space', 'semi;colon', 'quo\"te', '']"),
    ("c_enum", "mood", "'very happy'"),
    ("c_domain", "amount", "'7.50'"),
    ("c_composite", "pair", "row(1, 'two, \"three\"')"),
];

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'very happy'); CREATE DOMAIN cents AS numeric(18,2); \
                     CREATE DOMAIN amount AS cents; CREATE TYPE pair AS (n int, t text)";

/// The kinds that a column's values are taken as: what is sensible, and plain text.
fn kinds(column: &str) -> Vec<FieldKind> {
    let text = FieldKind::Text { length: 4000 };
    let sensible = match column {
        c if c.starts_with("c_bool") => FieldKind::Boolean,
        c if c.starts_with("c_int") && c != "c_interval" => FieldKind::Integer,
        c if c.starts_with("c_numeric") || c.starts_with("c_float") || c == "c_money" || c == "c_domain" => {
            FieldKind::Number { scale: 4 }
        }
        c if c.starts_with("c_date") => FieldKind::Date,
        c if c.starts_with("c_timestamp") => FieldKind::DateTime,
        c if c.starts_with("c_time") => FieldKind::Time,
        "c_texts" => FieldKind::MultiPicklist,
        "c_enum" => FieldKind::Picklist,
        _ => return vec![text],
    };
    vec![sensible, text]
}

#[tokio::test]
async fn a_captured_value_is_the_canonical_one_of_what_the_server_prints() {
    let mut fields = Vec::new();
    for (column, _, _) in COLUMNS {
        for kind in kinds(column) {
            fields.push(field(fields.len() as u16 + 1, column, kind));
        }
    }
    let catalog = catalog(vec![mapping(1, "v", &["id"], fields.clone())]);
    let declared: Vec<String> = COLUMNS.iter().map(|(name, ty, _)| format!("{name} {ty}")).collect();
    let create = format!("{TYPES}; CREATE TABLE v (id int PRIMARY KEY, {})", declared.join(", "));
    // Defaults of the database that would print everything otherwise.
    let unusual = "ALTER DATABASE postgres SET datestyle = 'German'; ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'; \
                   ALTER DATABASE postgres SET extra_float_digits = -3; ALTER DATABASE postgres SET bytea_output = 'escape'; \
                   ALTER DATABASE postgres SET intervalstyle = 'iso_8601'";
    let server = server_with(&format!("{create}; {unusual}"), ServerSettings::default(), &catalog).await;
    let log = MemoryLog::new();
    let capture = Running::start(config(&server, &catalog, None), &log);
    let values: Vec<&str> = COLUMNS.iter().map(|(_, _, value)| *value).collect();
    server.execute(&format!("INSERT INTO v VALUES (1, {})", values.join(", "))).await.unwrap();
    server.execute("INSERT INTO v (id) VALUES (2)").await.unwrap();
    log.wait_for("both rows", |log| log.rows().len() == 2).await;
    capture.stop().await.unwrap();

    let rows = log.rows();
    let session = server.session().await.unwrap();
    for field in &fields {
        let sql = format!("SELECT {0}, {0}::text, pg_typeof({0})::oid FROM v WHERE id = 1", field.column);
        let messages = session.simple_query(&sql).await.unwrap();
        let printed = messages
            .iter()
            .find_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some((row.get(0).unwrap().to_owned(), row.get(2))),
                _ => None,
            })
            .map(|(text, oid)| (text, oid.unwrap().parse::<u32>().unwrap()))
            .unwrap();
        // pg_typeof tells a domain; its base type is numeric.
        let oid = if field.column == "c_domain" { 1700 } else { printed.1 };
        let expected = mapping::from_postgres(&field.kind, oid, &printed.0);
        assert_eq!(told(&rows[0], field.id.0), Some(expected), "{} as {:?}", field.column, field.kind);
        let null = mapping::normalise(&field.kind, Value::Null);
        assert_eq!(told(&rows[1], field.id.0), Some(null), "null {}", field.column);
    }
    let by_column = |column: &str| {
        let field = fields.iter().find(|f| f.column == column).unwrap();
        told(&rows[0], field.id.0).unwrap()
    };
    assert_eq!(by_column("c_int8"), Value::Int(i64::MAX));
    assert_eq!(by_column("c_numeric_scale"), Value::number("1234.5").unwrap());
    assert_eq!(by_column("c_float4"), Value::number("0.1").unwrap());
    assert_eq!(by_column("c_domain"), Value::number("7.5").unwrap());
    assert_eq!(by_column("c_bytea"), Value::text("\\x00ff10"));
    assert_eq!(by_column("c_interval"), Value::text("1 year 2 mons -3 days +04:05:06.7"));
    assert_eq!(by_column("c_timestamptz").to_string(), "2026-07-01T07:04:56Z");
}

/// Each way in which rows may be named, and whether it tells a deleted row's Salesforce id.
const IDENTITIES: [(&str, &str, bool); 7] = [
    ("default", "", false),
    ("full", "ALTER TABLE big REPLICA IDENTITY FULL", true),
    (
        "index",
        "CREATE UNIQUE INDEX big_named ON big (sfid, id); ALTER TABLE big ALTER sfid SET NOT NULL; \
         ALTER TABLE big REPLICA IDENTITY USING INDEX big_named",
        false,
    ),
    ("partitioned", "CREATE TABLE big_0 PARTITION OF big FOR VALUES WITH (MODULUS 1, REMAINDER 0)", false),
    // The server goes by the partition's identity in what it writes, and by the root's in what it says of it.
    (
        "partition full",
        "CREATE TABLE big_0 PARTITION OF big FOR VALUES WITH (MODULUS 1, REMAINDER 0); \
         ALTER TABLE big_0 REPLICA IDENTITY FULL",
        false,
    ),
    (
        "partitioned full",
        "CREATE TABLE big_0 PARTITION OF big FOR VALUES WITH (MODULUS 1, REMAINDER 0); \
         ALTER TABLE big REPLICA IDENTITY FULL",
        false,
    ),
    (
        "partitions of another order",
        "CREATE TABLE big_0 (sfid varchar(18), gone int, large text, id text NOT NULL, small text); \
         ALTER TABLE big_0 DROP gone, ALTER large SET STORAGE EXTERNAL, ALTER id SET STORAGE EXTERNAL; \
         ALTER TABLE big ATTACH PARTITION big_0 FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        false,
    ),
];

/// Under every replica identity: an unchanged large value is absent, never null, and key changes name both keys.
#[tokio::test]
async fn a_large_value_that_did_not_change_is_not_told() {
    let fields = vec![
        field(1, "small", FieldKind::Text { length: 255 }),
        field(2, "large", FieldKind::Text { length: 131_072 }),
        field(3, "sfid", FieldKind::Id),
    ];
    let catalog = catalog(vec![mapping(1, "big", &["id"], fields)]);
    for (identity, make, tells_id) in IDENTITIES {
        let partitioned = if identity.starts_with("partition") { "PARTITION BY HASH (id)" } else { "" };
        let create = format!(
            "CREATE TABLE big (id text PRIMARY KEY, small text, large text, sfid varchar(18)) {partitioned}; \
             ALTER TABLE big ALTER large SET STORAGE EXTERNAL; ALTER TABLE big ALTER id SET STORAGE EXTERNAL; {make}"
        );
        let server = server_with(&create, ServerSettings::default(), &catalog).await;
        let log = MemoryLog::new();
        let capture = Running::start(config(&server, &catalog, None), &log);
        // The key is out of line too: a row names it all the same.
        let insert = "INSERT INTO big VALUES (repeat('k', 2200), 'a', repeat('x', 300000), '003000000000001AAA')";
        for statement in [
            insert,
            "UPDATE big SET small = 'b'",
            "UPDATE big SET id = repeat('l', 2200)",
            "UPDATE big SET large = NULL",
            "UPDATE big SET id = '1'",
            "DELETE FROM big",
        ] {
            server.execute(statement).await.unwrap();
        }
        log.wait_for("six rows", |log| log.rows().len() == 6).await;
        capture.stop().await.unwrap();
        let rows = log.rows();
        let key = |n: usize| rows[n].key.as_ref().unwrap().0.as_str();
        let old_key = |n: usize| rows[n].old_key.as_ref().map(|key| key.0.as_str());
        let (first, second) = ("k".repeat(2200), "l".repeat(2200));
        assert_eq!(told(&rows[0], 2), Some(Value::text("x".repeat(300_000))), "{identity}");
        assert_eq!((told(&rows[1], 1), told(&rows[1], 2)), (Some(Value::text("b")), None), "{identity}");
        assert_eq!((key(1), old_key(1)), (first.as_str(), None), "{identity}");
        assert_eq!((told(&rows[2], 1), told(&rows[2], 2)), (Some(Value::text("b")), None), "{identity}");
        assert_eq!((key(2), old_key(2)), (second.as_str(), Some(first.as_str())), "{identity}");
        assert_eq!(told(&rows[3], 2), Some(Value::Null), "{identity}: set to null");
        assert_eq!((key(3), old_key(3)), (second.as_str(), None), "{identity}");
        assert_eq!((key(4), old_key(4)), ("1", Some(second.as_str())), "{identity}");
        assert_eq!((rows[5].operation, key(5)), (RowOperation::Delete, "1"), "{identity}");
        let id_of_deleted = rows[5].salesforce_id.as_deref();
        assert_eq!(id_of_deleted, tells_id.then_some("003000000000001AAA"), "{identity}");
    }
}

/// `check` says so before; a stream that comes to it all the same does not guess.
#[tokio::test]
async fn rows_without_an_identity_are_refused_by_name() {
    for make in [
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
        "ALTER TABLE t ALTER other SET NOT NULL, ADD UNIQUE (other); ALTER TABLE t REPLICA IDENTITY USING INDEX t_other_key",
    ] {
        let catalog = table_catalog();
        let server = server_with(&format!("{TABLE}; {make}"), ServerSettings::default(), &catalog).await;
        let log = MemoryLog::new();
        let mut capture = Running::start(config(&server, &catalog, None), &log);
        server.execute("INSERT INTO t VALUES (1, 'a', NULL, 1)").await.unwrap();
        let refused = capture.ended().await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration, "{refused}");
        assert!(refused.to_string().contains("`id` of the mapping `t` is not of the replica identity"), "{refused}");
        assert!(log.rows().is_empty());
    }
}

#[tokio::test]
async fn composite_keys_other_identities_and_partitions_are_named() {
    let text = |column: &str| vec![field(1, column, FieldKind::Text { length: 255 })];
    let catalog = catalog(vec![
        mapping(1, "pairs", &["b", "a"], text("note")),
        mapping(2, "by_index", &["code"], text("note")),
        mapping(3, "parts", &["id"], text("note")),
    ]);
    let create = "CREATE TABLE pairs (a int, b text, note text, PRIMARY KEY (a, b)); \
         CREATE TABLE by_index (id serial PRIMARY KEY, code text NOT NULL UNIQUE, note text); \
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key; \
         CREATE TABLE parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id); \
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100); \
         CREATE TABLE parts_2 (note text, id int NOT NULL); \
         ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (200)";
    let server = server_with(create, ServerSettings::default(), &catalog).await;
    let log = MemoryLog::new();
    let capture = Running::start(config(&server, &catalog, None), &log);
    for statement in [
        "INSERT INTO pairs VALUES (1, E'x\\x1fy', 'n')",
        "UPDATE pairs SET a = 2",
        "DELETE FROM pairs",
        "INSERT INTO by_index (code, note) VALUES ('c', 'n')",
        "UPDATE by_index SET code = 'd'",
        "DELETE FROM by_index",
        "INSERT INTO parts VALUES (1, 'n'), (150, 'm')",
        "UPDATE parts SET id = 160 WHERE id = 1",
        "DELETE FROM parts WHERE id = 150",
    ] {
        server.execute(statement).await.unwrap();
    }
    log.wait_for("all", |log| log.rows().len() == 11).await;
    capture.stop().await.unwrap();
    let said: Vec<String> = log
        .rows()
        .iter()
        .map(|r| {
            let key = |key: &Option<crate::change::Key>| key.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{} {:?} {} {}", r.mapping.0, r.operation, key(&r.key), key(&r.old_key))
        })
        .collect();
    let expected = [
        "1 Insert x\u{1f}y,1 ",
        "1 Update x\u{1f}y,2 x\u{1f}y,1",
        "1 Delete x\u{1f}y,2 ",
        "2 Insert c ",
        "2 Update d c",
        "2 Delete d ",
        "3 Insert 1 ",
        "3 Insert 150 ",
        // A row that moves to another partition is a delete and an insert to the server.
        "3 Delete 1 ",
        "3 Insert 160 ",
        "3 Delete 150 ",
    ];
    assert_eq!(said, expected);
}
