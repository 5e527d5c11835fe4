//! Every built-in type, with its extremes, as the stream and a backfill tell it, beside what the server itself prints.

use std::collections::BTreeMap;

use postgres_protocol::escape::escape_literal;

use super::*;
use crate::flow::RowOperation;
use crate::mapping;
use crate::postgres::backfill::{Backfill, BackfillProgress};
use crate::postgres::capture::trigger_log::install;
use crate::postgres::capture::trigger_log::tests::Running as TriggerRunning;

/// Types and literals of their values.
const BUILT_IN: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false"]),
    ("\"char\"", &["x", "é", ""]),
    ("name", &["some_name"]),
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    ("numeric", &["0", "-0.00", "1e131071", "-1e-16383", "123.4500", "NaN", "Infinity", "-Infinity"]),
    ("numeric(1000,500)", &["1.5", "-99999999999999999999.00000000000000000001"]),
    ("numeric(5,2)", &["-999.99", "NaN"]),
    ("real", &["0.1", "-0", "1.17549435e-38", "3.4028235e38", "NaN", "-Infinity"]),
    ("double precision", &["0.1", "-0", "5e-324", "1.7976931348623157e308", "0.30000000000000004", "NaN", "Infinity"]),
    ("money", &["-92233720368547758.08", "92233720368547758.07", "0", "-0.5"]),
    ("char(5)", &["ab", "", "abcde"]),
    ("varchar(9)", &[" in side ", ""]),
    ("text", &["", "quote ' back \\ tab\t new\nline é 漢 😀", "NULL", "\\N", "\\x00"]),
    ("bytea", &["", "\\x00ff10", "\\x5c78"]),
    ("date", &["4714-11-24 BC", "0001-12-31 BC", "0001-01-01", "5874897-12-31", "infinity", "-infinity", "2024-02-29"]),
    ("time", &["00:00", "23:59:59.999999", "24:00:00", "12:34:56.1"]),
    ("time(0)", &["12:34:56.7"]),
    ("timetz", &["00:00+15:59", "23:59:59.999999-15:59", "12:34:56+05:30", "24:00:00+00", "01:02:03+01:02:03"]),
    (
        "timestamp",
        &["4714-11-24 00:00 BC", "294276-12-31 23:59:59.999999", "infinity", "-infinity", "1969-12-31 23:59:59.5"],
    ),
    (
        "timestamptz",
        &[
            "4714-11-24 00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "infinity",
            "-infinity",
            "2026-03-29 01:30:00 Europe/Berlin",
            "1890-01-01 00:00 Europe/Amsterdam",
            "0044-03-15 23:59:59.000001-12 BC",
        ],
    ),
    (
        "interval",
        &["1 year -2 mons 3 days -04:05:06.7", "-178000000 years", "00:00", "P1Y2M3DT4H5M6S", "-1 day +25:00"],
    ),
    ("interval day to second(2)", &["3 days 04:05:06.789"]),
    ("uuid", &["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ("json", &["{ \"a\" : 1, \"a\":null }", "null", "\"\\u00e9\""]),
    ("jsonb", &["{ \"b\" : [1e2, 2.50], \"a\" : null }", "null", "\"x\""]),
    ("jsonpath", &["$.a[*] ? (@ > 1)"]),
    ("inet", &["192.168.0.1", "192.168.0.1/24", "::1", "fe80::1/64", "::ffff:1.2.3.4"]),
    ("cidr", &["10.0.0.0/8", "10.1.2.3", "2001:db8::/32"]),
    ("macaddr", &["08-00-2b-01-02-03"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("point", &["(1.5,-2)", "(NaN,Infinity)", "(0.1,1e-300)"]),
    ("line", &["{1,2.5,-3}"]),
    ("lseg", &["[(0,0),(1,1)]"]),
    ("box", &["(1,1),(0,0)"]),
    ("path", &["[(0,0),(1,1)]", "((0,0),(1,1))"]),
    ("polygon", &["((0,0),(1,1),(1,0))"]),
    ("circle", &["<(1,2),3.5>"]),
    ("bit(4)", &["1010"]),
    ("bit varying", &["", "101", "0000"]),
    ("tsvector", &["a:1A b:2,3B 'it''s'", ""]),
    ("tsquery", &["a & !b | 'c d' <-> e:*A"]),
    ("int4range", &["empty", "[1,10]", "(,5)", "(,)"]),
    ("int8range", &["[-9223372036854775808,5)"]),
    ("numrange", &["(1.50,2.500]", "[NaN,NaN]"]),
    ("daterange", &["[2026-01-01,infinity)", "[0044-03-15 BC,2026-01-02]"]),
    ("tsrange", &["[2026-01-01 00:00,)"]),
    ("tstzrange", &["[2026-01-01 00:00+05:30,2026-01-02 00:00-08)"]),
    ("int4multirange", &["{}", "{[1,3),[5,9]}"]),
    ("tstzmultirange", &["{[2026-01-01 00:00+05:30,2026-01-02 00:00-08)}"]),
    ("oid", &["4294967295"]),
    ("xid", &["4294967295"]),
    ("xid8", &["18446744073709551615"]),
    ("cid", &["7"]),
    ("tid", &["(4294967295,65535)"]),
    ("pg_lsn", &["FFFFFFFF/FFFFFFFF"]),
    ("pg_snapshot", &["10:20:10,14"]),
    ("txid_snapshot", &["10:20:10,14"]),
    ("regclass", &["pg_class"]),
    ("regtype", &["character varying"]),
    ("regrole", &["postgres"]),
    ("int2vector", &["1 2 3"]),
    ("oidvector", &["1 2 3"]),
    ("aclitem", &["postgres=r/postgres"]),
    (
        "int[]",
        &["{}", "{1,NULL,3}", "{{1,NULL},{NULL,4}}", "[0:1]={7,8}", "[-1:0][5:6]={{1,2},{3,4}}", "{{{1}},{{2}}}"],
    ),
    ("text[]", &["{\"a b\",\"q\\\"x\",\"back\\\\slash\",\"NULL\",NULL,\"\",\"{}\",\"semi;colon\"}", "{{a},{NULL}}"]),
    ("numeric(9,2)[]", &["{1.5,NaN,NULL}"]),
    ("timestamptz[]", &["{2026-07-01 12:00+05:30,infinity,NULL}"]),
    ("bytea[]", &["{\"\\\\x00ff\",NULL}"]),
    ("boolean[]", &["{t,f,NULL}"]),
    ("jsonb[]", &["{\"{\\\"a\\\": 1}\",NULL}"]),
    ("interval[]", &["{1 year,-00:00:01}"]),
    ("money[]", &["{1234.56}"]),
    ("box[]", &["{(1,1),(0,0);(2,2),(1,1)}"]),
    ("point[]", &["{\"(1,2)\",NULL}"]),
    ("int4range[]", &["{\"[1,3)\",empty}"]),
];

/// Types that a schema makes itself.
const MADE: &str = "CREATE TYPE mood AS ENUM ('sad', 'very happy', 'it''s'); \
     CREATE DOMAIN cents AS numeric(18,2) CHECK (VALUE IS DISTINCT FROM 13); CREATE DOMAIN amount AS cents; \
     CREATE DOMAIN yes AS boolean; CREATE DOMAIN moment AS timestamptz; CREATE DOMAIN feeling AS mood; \
     CREATE DOMAIN price AS money; CREATE DOMAIN codes AS text[]; \
     CREATE TYPE pair AS (n int, t text); CREATE TYPE nest AS (p pair, moods mood[], at timestamptz, ok boolean); \
     CREATE DOMAIN positive AS pair CHECK ((VALUE).n > 0); CREATE TYPE span AS RANGE (subtype = float8); \
     CREATE SCHEMA other; CREATE TYPE other.\"odd Name\" AS ENUM ('x')";
const MADE_VALUES: &[(&str, &[&str])] = &[
    ("mood", &["sad", "very happy", "it's"]),
    ("amount", &["7.50", "-99999999999.99"]),
    ("yes", &["t", "f"]),
    ("moment", &["2026-07-01 12:00+05:30"]),
    ("feeling", &["very happy"]),
    ("price", &["1234567.5"]),
    ("codes", &["{a,NULL,\"b c\"}"]),
    ("pair", &["(1,\"two, \\\"three\\\"\")", "(,)", "(,\"\")"]),
    ("nest", &["(\"(1,\\\"a b\\\")\",\"{sad,\\\"very happy\\\"}\",\"2026-07-01 12:00+05:30\",t)"]),
    ("positive", &["(1,x)"]),
    ("span", &["[0.1,1e300)", "empty"]),
    ("other.\"odd Name\"", &["x"]),
    ("mood[]", &["{sad,\"very happy\",NULL}"]),
    ("pair[]", &["{\"(1,\\\"a b\\\")\",NULL}"]),
    ("amount[]", &["{7.5,NULL}", "{{1},{2}}"]),
];

/// Types that a server has only if it was built or installed with them: what makes them, their values.
const OPTIONAL: &[(&str, &str, &[&str])] = &[
    ("SELECT '<a/>'::xml", "xml", &["<a b=\"1\">é &amp; <c/></a>", "text only", "<?xml version=\"1.0\"?><a/>"]),
    ("CREATE EXTENSION hstore", "hstore", &["a=>1, \"b c\"=>NULL, d=>\"quo\\\"te\"", ""]),
    ("CREATE EXTENSION ltree", "ltree", &["Top.Science.Astronomy", ""]),
    ("SELECT 'a'::ltree", "lquery", &["Top.*{1,2}.!x"]),
    ("SELECT 'a'::ltree", "ltree[]", &["{Top.Science,NULL}"]),
    ("CREATE EXTENSION citext", "citext", &["Mixed CASE", ""]),
    ("SELECT 'a'::citext", "citext[]", &["{A,b,NULL}"]),
    ("CREATE EXTENSION cube", "cube", &["(1,2),(3,4)"]),
    ("CREATE EXTENSION isn", "isbn13", &["978-0-393-04002-9"]),
    ("CREATE EXTENSION seg", "seg", &["1.5 .. 2.50"]),
];

type Types = Vec<(String, Vec<String>)>;

/// A table `v` with a column of each type and a row for each value of the longest list.
struct Table {
    types: Types,
    rows: usize,
}

impl Table {
    async fn create(server: &PostgresServer) -> Self {
        server.execute(MADE).await.unwrap();
        let owned = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        let certain = BUILT_IN.iter().chain(MADE_VALUES);
        let mut types: Types = certain.map(|(ty, values)| ((*ty).to_owned(), owned(values))).collect();
        for (make, ty, values) in OPTIONAL {
            match server.execute(make).await {
                Ok(()) => types.push(((*ty).to_owned(), owned(values))),
                Err(error) => eprintln!("this server has no {ty}: {error}"),
            }
        }
        if version(server).await < 150_000 {
            // Version 14 prints half a character for it, which is no text in any encoding.
            types.iter_mut().filter(|(ty, _)| ty == "\"char\"").for_each(|(_, values)| values.retain(|v| v.is_ascii()));
        }
        let rows = types.iter().map(|(_, values)| values.len()).max().unwrap();
        let columns: Vec<String> = types.iter().enumerate().map(|(n, (ty, _))| format!("c{n} {ty}")).collect();
        server.execute(&format!("CREATE TABLE v (id int PRIMARY KEY, {})", columns.join(", "))).await.unwrap();
        Self { types, rows }
    }

    fn catalog(&self, kind: impl Fn(&str) -> FieldKind) -> Arc<Catalog> {
        let fields = self.types.iter().enumerate();
        let fields = fields.map(|(n, (ty, _))| field(n as u16 + 1, &format!("c{n}"), kind(ty))).collect();
        catalog(vec![mapping(1, "v", &["id"], fields)])
    }

    async fn fill(&self, server: &PostgresServer) {
        let insert = |row: usize| {
            let literal = |(ty, values): &(String, Vec<String>)| match values.get(row) {
                Some(value) => format!("{}::{ty}", escape_literal(value)),
                None => "NULL".to_owned(),
            };
            let values: Vec<String> = self.types.iter().map(literal).collect();
            format!("INSERT INTO v VALUES ({row}, {})", values.join(", "))
        };
        let sql: Vec<String> = (0..self.rows).map(insert).collect();
        server.execute(&sql.join("; ")).await.unwrap();
    }

    /// What an expression over each column prints, by row and column; `{c}` is the column, `{t}` its type.
    async fn print(
        &self,
        server: &PostgresServer,
        expression: impl Fn(&str, &str) -> String,
    ) -> Vec<Vec<Option<String>>> {
        let columns = self.types.iter().enumerate().map(|(n, (ty, _))| expression(&format!("c{n}"), ty));
        // Said here, whatever our sessions set, since they are on trial too.
        let sql = format!(
            "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1; \
             SET bytea_output = 'hex'; SELECT {} FROM v ORDER BY id",
            columns.collect::<Vec<_>>().join(", ")
        );
        server.query(&sql).await.unwrap()
    }

    fn label(&self, row: usize, column: usize) -> String {
        let (ty, values) = &self.types[column];
        format!("{ty} {:?}", values.get(row))
    }
}

/// The rows of one way, by key.
fn rows_of(log: &MemoryLog, operation: RowOperation) -> BTreeMap<usize, Row> {
    let rows = log.rows().into_iter().filter(|row| row.operation == operation);
    rows.map(|row| (row.key.as_ref().unwrap().0.parse().unwrap(), row)).collect()
}

/// The stream of a log of triggers, where the server has what that needs.
async fn logged_by_triggers(server: &PostgresServer) -> Option<crate::change::Str> {
    let hstore = "SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'";
    if server.value(hstore).await.unwrap().as_deref() == Some("0") {
        eprintln!("this server has no hstore: nothing is captured from triggers");
        return None;
    }
    let tables = [("v".to_owned(), vec!["id".to_owned()])];
    Some(install::prepare(&server.endpoint(), "public", &tables, None, None).await.unwrap())
}

/// Streams and then copies the table's rows, and captures them from triggers; all must tell the same.
async fn captured(server: &PostgresServer, table: &Table, catalog: &Arc<Catalog>) -> BTreeMap<usize, Row> {
    let session = server.session().await.unwrap();
    let logged = logged_by_triggers(server).await;
    slot::ensure_publication(&session, PUBLICATION, &[("public".into(), "v".into())]).await.unwrap();
    slot::ensure_slot(&session, SLOT).await.unwrap();
    let (log, handle) = (MemoryLog::new(), CaptureHandle::new());
    let mut capture = Running::start_with(config(server, catalog, None), &log, handle.clone());
    table.fill(server).await;
    tokio::select! {
        ended = capture.ended() => panic!("capture ended: {ended:?}"),
        () = log.wait_for("the rows", |log| log.rows().len() == table.rows) => {}
    }
    let backfill = Backfill::new(server.endpoint(), catalog.mappings[0].clone(), 100, handle);
    let copied = backfill.run(BackfillProgress::default(), &CancellationToken::new(), |_| {}).await.unwrap();
    assert!(copied.finished);
    capture.stop().await.unwrap();
    let (streamed, copied) = (rows_of(&log, RowOperation::Insert), rows_of(&log, RowOperation::Backfill));
    assert_eq!((streamed.len(), copied.len()), (table.rows, table.rows));
    for (row, streamed) in &streamed {
        for (column, (one, other)) in streamed.fields.iter().zip(&copied[row].fields).enumerate() {
            assert_eq!(one, other, "streamed and copied: {}", table.label(*row, column));
        }
    }
    if let Some(identity) = logged {
        let log = MemoryLog::new();
        let capture = TriggerRunning::start(server, catalog, &identity, &log);
        log.wait_for("the logged rows", |log| log.rows().len() == table.rows).await;
        capture.stop().await.unwrap();
        for (row, logged) in &rows_of(&log, RowOperation::Insert) {
            for (column, (one, other)) in streamed[row].fields.iter().zip(&logged.fields).enumerate() {
                assert_eq!(one, other, "streamed and logged: {}", table.label(*row, column));
            }
            assert_eq!(streamed[row].fields.len(), logged.fields.len());
        }
    }
    streamed
}

async fn server_of_unusual_defaults() -> PostgresServer {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server
        .execute(
            "ALTER DATABASE postgres SET datestyle = 'German'; ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'; \
             ALTER DATABASE postgres SET extra_float_digits = -3; ALTER DATABASE postgres SET bytea_output = 'escape'; \
             ALTER DATABASE postgres SET intervalstyle = 'iso_8601'; ALTER DATABASE postgres SET client_min_messages = 'error'",
        )
        .await
        .unwrap();
    server
}

/// What a text field takes of what the server prints: all of it, but for blanks around it and the spelling of booleans.
fn as_text(ty: &str, printed: &str) -> Value {
    match (ty, printed) {
        ("boolean" | "yes", "t") => Value::text("true"),
        ("boolean" | "yes", "f") => Value::text("false"),
        _ => match printed.trim_matches(|c| c <= ' ') {
            "" => Value::Null,
            text => Value::text(text),
        },
    }
}

#[tokio::test]
async fn every_type_travels_as_the_text_that_the_server_prints() {
    let server = server_of_unusual_defaults().await;
    let table = Table::create(&server).await;
    let kind = FieldKind::Text { length: 131_072 };
    let catalog = table.catalog(|_| kind.clone());
    let rows = captured(&server, &table, &catalog).await;
    let printed = table.print(&server, |column, _| column.to_owned()).await;
    // How the target reads a row before it writes it.
    let compared =
        table.print(&server, |c, _| format!("CASE WHEN {c} IS DISTINCT FROM NULL THEN concat({c}) END")).await;
    assert_eq!(printed, compared);
    let mut back = Vec::new();
    for (row, columns) in printed.iter().enumerate() {
        for (column, text) in columns.iter().enumerate() {
            let ty = &table.types[column].0;
            let expected = text.as_deref().map_or(Value::Null, |text| as_text(ty, text));
            let value = told(&rows[&row], column as u16 + 1).unwrap();
            assert_eq!(value, expected, "{}", table.label(row, column));
            if let (Some(text), Some(written)) = (text, mapping::to_postgres(&kind, &value))
                && (written == *text || matches!(ty.as_str(), "boolean" | "yes"))
            {
                back.push(format!(
                    "SELECT {}, concat({}::{ty}) = concat(c{column}) FROM v WHERE id = {row}",
                    escape_literal(&table.label(row, column)),
                    escape_literal(&written)
                ));
            }
        }
    }
    assert!(back.len() > 150, "{}", back.len());
    // Written back as it came, it is the same value.
    for answer in server.query(&back.join("; ")).await.unwrap() {
        assert_eq!(answer[1].as_deref(), Some("t"), "{:?}", answer[0]);
    }
}

/// How a type's values are taken, and the canonical value by the server's own arithmetic; none if it is a text.
fn typed(ty: &str) -> Option<(FieldKind, &'static str)> {
    Some(match ty {
        "smallint" | "integer" | "bigint" => (FieldKind::Integer, "{c}"),
        "numeric" | "numeric(1000,500)" | "numeric(5,2)" | "real" | "double precision" | "amount" => (
            FieldKind::Number { scale: 18 },
            "CASE WHEN {c}::text IN ('NaN', 'Infinity', '-Infinity') THEN {c}::text \
             ELSE trim_scale(round({c}::text::numeric, 18))::text END",
        ),
        "money" | "price" => (FieldKind::Number { scale: 2 }, "trim_scale({c}::numeric)"),
        "boolean" | "yes" => (FieldKind::Boolean, "coalesce({c}, false)::text"),
        "date" => (FieldKind::Date, "CASE WHEN isfinite({c}) THEN ({c} - '1970-01-01'::date)::text ELSE {c}::text END"),
        "timestamp" | "timestamptz" | "moment" => (
            FieldKind::DateTime,
            "CASE WHEN NOT isfinite({c}) OR {c} > '294247-01-01' THEN {c}::text \
             ELSE trunc(floor(extract(epoch FROM {c})) * 1000000)::text END",
        ),
        "time" => (
            FieldKind::Time,
            "CASE WHEN {c}::text LIKE '24:%' THEN {c}::text \
             ELSE trunc(floor(extract(epoch FROM {c}) * 1000) * 1000)::text END",
        ),
        "timetz" => (
            FieldKind::Time,
            "CASE WHEN {c}::text LIKE '24:%' THEN {c}::text \
             ELSE trunc(mod(floor(extract(epoch FROM {c}) * 1000) * 1000 + 172800000000, 86400000000))::text END",
        ),
        _ => return None,
    })
}

#[tokio::test]
async fn typed_fields_hold_what_the_server_calculates() {
    let server = server_of_unusual_defaults().await;
    let mut table = Table::create(&server).await;
    // Only those that have a kind of their own; the other columns stay null.
    for (ty, values) in &mut table.types {
        if typed(ty).is_none() {
            values.clear();
        }
    }
    let kind = |ty: &str| typed(ty).map_or(FieldKind::Text { length: 255 }, |(kind, _)| kind);
    let catalog = table.catalog(kind);
    let rows = captured(&server, &table, &catalog).await;
    let expected =
        table.print(&server, |c, ty| typed(ty).map_or_else(|| c.to_owned(), |(_, sql)| sql.replace("{c}", c))).await;
    let mut back = Vec::new();
    for (row, columns) in expected.iter().enumerate() {
        for (column, text) in columns.iter().enumerate() {
            let label = table.label(row, column);
            let ty = &table.types[column].0;
            let kind = kind(ty);
            let value = told(&rows[&row], column as u16 + 1).unwrap();
            let said = match &value {
                Value::Date(n) => Some(n.to_string()),
                Value::Timestamp(n) | Value::Time(n) => Some(n.to_string()),
                Value::Null => None,
                other => Some(other.to_string()),
            };
            assert_eq!(said, *text, "{label}");
            let is_typed = !matches!(value, Value::Text(_) | Value::Null);
            let equal = match ty.as_str() {
                // To the second and the millisecond, which is all that Salesforce keeps.
                "timestamp" | "timestamptz" | "moment" => "date_trunc('second', {c})",
                "time" => "date_trunc('milliseconds', {c}::interval)::time",
                "timetz" => continue,
                _ => "{c}",
            };
            if let Some(written) = mapping::to_postgres(&kind, &value).filter(|_| is_typed && text.is_some()) {
                let number = matches!(kind, FieldKind::Number { scale: 18 });
                let equal = if number { "round({c}::text::numeric, 18)::{t}" } else { equal };
                let equal = equal.replace("{c}", &format!("c{column}")).replace("{t}", ty);
                let (label, written) = (escape_literal(&label), escape_literal(&written));
                back.push(format!(
                    "SELECT {label}, {written}::{ty} = {equal} OR c{column} IS NULL FROM v WHERE id = {row}"
                ));
            }
        }
    }
    assert!(back.len() > 35, "{}", back.len());
    for answer in server.query(&back.join("; ")).await.unwrap() {
        assert_eq!(answer[1].as_deref(), Some("t"), "{:?}", answer[0]);
    }
}

#[tokio::test]
async fn an_enum_that_changes_in_mid_stream_tells_what_was_there_then() {
    let text = FieldKind::Picklist;
    let fields = vec![field(1, "feeling", text.clone()), field(2, "feelings", FieldKind::MultiPicklist)];
    let catalog = catalog(vec![mapping(1, "v", &["id"], fields)]);
    let create = "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE v (id int PRIMARY KEY, feeling mood, feelings mood[])";
    let server = server_with(create, ServerSettings::default(), &catalog).await;
    let log = MemoryLog::new();
    let capture = Running::start(config(&server, &catalog, None), &log);
    for sql in [
        "INSERT INTO v VALUES (1, 'sad', '{sad}')",
        "ALTER TYPE mood ADD VALUE 'meh' BEFORE 'sad'",
        "INSERT INTO v VALUES (2, 'meh', '{sad,meh}')",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "INSERT INTO v VALUES (3, 'blue', '{blue,NULL,meh}')",
        "ALTER TYPE mood RENAME TO humour",
        "UPDATE v SET feeling = 'meh' WHERE id = 1",
        "ALTER TABLE v ALTER feeling TYPE text",
        "INSERT INTO v VALUES (4, 'anything', NULL)",
    ] {
        server.execute(sql).await.unwrap();
    }
    log.wait_for("five changes", |log| log.rows().len() == 5).await;
    capture.stop().await.unwrap();
    let said: Vec<_> = log.rows().iter().map(|row| (told(row, 1), told(row, 2))).collect();
    let expected = [("sad", "sad"), ("meh", "sad;meh"), ("blue", "blue;meh"), ("meh", "blue")];
    let expected = expected.map(|(one, many)| (Some(Value::text(one)), Some(Value::text(many))));
    assert_eq!(said[..4], expected);
    assert_eq!(said[4], (Some(Value::text("anything")), Some(Value::Null)));
}
