#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use secrecy::ExposeSecret;

use super::*;

const MINIMAL: &str = r#"
[link]
name = "main"
[postgres]
url = "postgresql://tide@db:5433/app?sslmode=verify-full"
[salesforce]
login_url = "https://example.my.salesforce.com/"
client_id = "id"
client_secret_env = "SECRET"
[[mapping]]
sobject = "Contact"
fields = ["LastName"]
external_id = "External_ID__c"
"#;

/// What is said about MINIMAL with one text replaced.
fn said(from: &str, to: &str) -> String {
    assert!(MINIMAL.contains(from), "{from}");
    Config::parse(&MINIMAL.replacen(from, to, 1), "tidelock.toml").map_or_else(|e| e.to_string(), |_| String::new())
}

#[test]
fn the_example_parses_and_says_the_defaults() {
    let example = Config::parse(example(), "example").unwrap();
    assert_eq!(example.postgres.slot, "tidelock_main");
    assert_eq!(example.mappings.len(), 2);
    // Uncommented, the defaults that it names are the defaults.
    let shown = Config::parse(&uncommented(), "example").unwrap();
    assert_eq!(format!("{:?}", shown.link), format!("{:?}", example.link));
    assert_eq!(format!("{:?}", shown.replay), format!("{:?}", example.replay));
    assert_eq!(shown.salesforce.requests_in_flight, example.salesforce.requests_in_flight);
    assert_eq!(shown.postgres.copy_connections, example.postgres.copy_connections);
    assert_eq!(shown.postgres.heartbeat_seconds, example.postgres.heartbeat_seconds);
    assert_eq!(shown.postgres.schema, example.postgres.schema);
}

/// The example with its defaults uncommented and its alternatives left out.
fn uncommented() -> String {
    let alternatives = [
        "host",
        "port",
        "dbname",
        "user",
        "password_file",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "client_secret_file",
        "username",
        "private_key_file",
        "audience",
        "ca_certificate",
        "delete = \"delete_wins\"",
        "policy = \"review\"",
        "initial_merge = \"postgres\"",
        "exclude",
    ];
    let mut text = String::new();
    for line in example().lines() {
        let plain = line.strip_prefix("# ").unwrap_or(line);
        let is_key = plain.split(' ').nth(1) == Some("=") || plain.starts_with('[');
        let is_alternative = line.starts_with('#') && alternatives.iter().any(|a| plain.starts_with(a));
        writeln!(text, "{}", if is_key && !is_alternative { plain } else { line }).unwrap();
    }
    text
}

#[test]
fn every_key_has_a_line_in_the_example() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let defs = schema["$defs"].as_object().unwrap();
    for (section, def) in [
        ("link", "Link"),
        ("postgres", "Postgres"),
        ("salesforce", "Salesforce"),
        ("http", "Http"),
        ("replay", "Replay"),
        ("mapping", "MappingConfig"),
    ] {
        for key in defs[def]["properties"].as_object().unwrap().keys() {
            assert!(!document::hint(section, key).contains('…'), "{section}.{key}");
        }
    }
}

#[test]
fn the_schema_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/tidelock.schema.json");
    if std::env::var_os("TIDELOCK_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, schema()).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap_or_default();
    assert!(file == schema(), "schemas/tidelock.schema.json is stale: run this test with TIDELOCK_WRITE_SCHEMA=1");
}

#[test]
fn a_url_is_taken_apart() {
    let config = Config::parse(MINIMAL, "t").unwrap();
    let p = &config.postgres;
    assert_eq!((p.host.as_str(), p.port, p.dbname.as_str(), p.user.as_str()), ("db", 5433, "app", "tide"));
    assert_eq!(p.sslmode, SslMode::VerifyFull);
    assert_eq!((p.slot.as_str(), p.publication.as_str()), ("tidelock_main", "tidelock_main"));
    assert_eq!(config.salesforce.login_url, "https://example.my.salesforce.com");
    assert_eq!(config.http.address, Some("127.0.0.1:8370".parse().unwrap()));
    assert_eq!((config.mappings[0].name.as_str(), config.mappings[0].table.as_str()), ("contact", "contact"));
    let allow = MINIMAL.replace("sslmode=verify-full", "sslmode=allow");
    assert_eq!(Config::parse(&allow, "t").unwrap().postgres.sslmode, SslMode::Allow);
    let socket = MINIMAL.replace("tide@db:5433/app?sslmode=verify-full", "tide@%2Fvar%2Frun/app");
    let config = Config::parse(&socket, "t").unwrap();
    assert_eq!(config.postgres.host, "/var/run");
    assert!(config.postgres.is_socket());
    let query = MINIMAL.replace("tide@db:5433/app?sslmode=verify-full", "/app?host=/tmp&user=me&port=1");
    let p = Config::parse(&query, "t").unwrap().postgres;
    assert_eq!((p.host.as_str(), p.port, p.user.as_str()), ("/tmp", 1, "me"));
}

#[test]
fn each_fault_names_its_line_and_what_to_write() {
    let url = "url = \"postgresql://tide@db:5433/app?sslmode=verify-full\"";
    for (from, to, expected) in [
        ("name = \"main\"", "nam = \"main\"", "tidelock.toml:3: unknown key `nam` in [link]; write: name = \"main\""),
        ("name = \"main\"", "", "tidelock.toml:2: `name` is missing in [link]; write: name = \"main\""),
        (
            "name = \"main\"",
            "name = 5",
            "tidelock.toml:3: `name` is a whole number, but must be text in quotes; write: name = \"main\"",
        ),
        ("name = \"main\"", "name = \"Main\"", "tidelock.toml:3: the link's name holds something other than"),
        ("[link]", "[lnik]", "tidelock.toml:2: unknown section `lnik`; write: [link]"),
        ("[[mapping]]", "[mapping]", "write: [[mapping]]"),
        (
            "name = \"main\"",
            "name = \"main\"\npolicy = \"last_wins\"",
            "tidelock.toml:4: `policy` cannot be `last_wins`",
        ),
        (
            "name = \"main\"",
            "name = \"main\"\ntolerance_ms = -1",
            "`tolerance_ms` is out of range, but must be a whole number that is not negative; write: tolerance_ms = 2000",
        ),
        (
            "name = \"main\"",
            "name = \"main\"\ntolerance_ms = 999999999",
            "`tolerance_ms` is 999999999, but must lie between 0 and 600000",
        ),
        ("tide@", "tide:hunter2@", "write: password_env = \"TIDELOCK_PG_PASSWORD\""),
        (url, "host = \"db\"", "tidelock.toml:4: `dbname` is missing in [postgres]; write: dbname = \"app\""),
        (url, &format!("{url}\nport = 1"), "tidelock.toml:6: `port` is given beside `url`"),
        (
            url,
            &format!("{url}\npassword = \"hunter2\""),
            "a secret does not belong in this file: `password`; write: password_env",
        ),
        (url, &format!("{url}\nsslcert = \"c\""), "`sslcert` needs `sslkey` too"),
        (url, &format!("{url}\nslot = \"My-Slot\""), "the slot's name holds"),
        ("?sslmode=verify-full", "?sslmode=maybe", "the url's `sslmode` is not what it can be"),
        ("?sslmode=verify-full", "?sslmode=verify-ca", "trusts no authority without `sslrootcert`"),
        ("?sslmode=verify-full", "?speed=1", "the unknown parameter `speed`"),
        ("https://example.my.salesforce.com/", "http://example.com", "must begin with https://"),
        (
            "https://example.my.salesforce.com/",
            "https://login.salesforce.com",
            "does not offer the client credentials flow",
        ),
        ("client_secret_env = \"SECRET\"", "", "`client_secret_env` is missing in [salesforce]"),
        ("client_secret_env = \"SECRET\"", "auth = \"jwt\"", "`private_key_file` is missing"),
        ("client_id = \"id\"", "client_id = \"id\"\nrequests_in_flight = 0", "must lie between 1 and 25"),
        ("client_id = \"id\"", "client_id = \"id\"\nusername = \"u\"", "`username` is for auth = \"jwt\""),
        ("[\"LastName\"]", "[]", "tidelock.toml:12: `fields` names no field"),
        ("[\"LastName\"]", "[\"LastName\", \"lastname\"]", "listed twice"),
        ("[\"LastName\"]", "[\"LastName\", { name = \"Phone\", column = \"lastname\" }]", "already that of `LastName`"),
        (
            "[\"LastName\"]",
            "[{ name = \"Phone\", colum = \"p\" }]",
            "unknown key `colum` in [[mapping]]; write: { name = \"Phone\", column = \"phone\" }",
        ),
        (
            "external_id = \"External_ID__c\"",
            "",
            "tidelock.toml:10: the mapping has no `external_id`, by which Salesforce tells the records of rows",
        ),
        ("external_id = \"External_ID__c\"", "", "or access = \"read_only\""),
        ("[\"LastName\"]", "[{ column = \"p\" }]", "`name` is missing"),
        ("[\"LastName\"]", "[{ name = \"Phone\", foreign_edit = \"ignore\" }]", "has `foreign_edit` but no `owner`"),
        ("[\"LastName\"]", "[5]", "write: fields = ["),
        ("[\"LastName\"]", "[\"*\", \"*\"]", "`*` is not a field's API name"),
        ("[\"LastName\"]", "[{ name = \"*\", column = \"all\" }]", "`*` is not a field's API name"),
        ("[\"LastName\"]", "[\"LastName\"]\nexclude = [\"Email\"]", "and `fields` has no \"*\""),
        ("[\"LastName\"]", "[\"Last Name\"]", "is not a field's API name"),
        (
            "fields = [\"LastName\"]",
            "fields = [\"LastName\"]\n[[mapping]]\nsobject = \"contact\"\nfields = [\"Email\"]",
            "is already that of mapping 1",
        ),
        ("sobject = \"Contact\"", "sobject = \"Contact", "not TOML"),
        ("[[mapping]]", "[http]\nlisten = \"nowhere\"\n[[mapping]]", "write: listen = \"127.0.0.1:8370\""),
    ] {
        let said = said(from, to);
        assert!(said.contains(expected), "{to}\nsaid: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn all_faults_come_out_at_once_and_each_once() {
    let text = r#"
[link]
name = 1
log = 2
polcy = "review"
delete = "never"
[postgres]
hots = "x"
[salesforce]
login_url = "ftp://x"
client_idd = "x"
[[mapping]]
sobject = "Contact"
fields = ["LastName", { name = "A", b = 1 }, { name = "B", policy = "x" }, 7, { name = "C", owner = "me" }]
acces = "read_only"
"#;
    let errors = Config::parse(text, "t").unwrap_err();
    let said = errors.to_string();
    for expected in [
        "t:3: `name` is a whole number",
        "t:4: `log`",
        "t:5: unknown key `polcy`",
        "t:6: `delete` cannot be `never`",
        "t:8: unknown key `hots`",
        "t:7: `url` is missing",
        "t:10: `login_url` must begin",
        "t:11: unknown key `client_idd`",
        "t:14: unknown key `b`",
        "t:14: `policy` cannot be `x`",
        "t:14: `fields` is a whole number",
        "t:14: `owner` cannot be `me`",
        "t:15: unknown key `acces`",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert_eq!(said.matches("`name`").count(), 1, "{said}");
    let mut lines: Vec<usize> = errors.errors.iter().map(|e| e.line).collect();
    let sorted = {
        let mut l = lines.clone();
        l.sort_unstable();
        l
    };
    assert_eq!(lines, sorted);
    lines.dedup();
    assert!(lines.len() > 8);
}

#[test]
fn secrets_are_looked_up_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pw"), "hunter2\n").unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    let env = |name: &str| (name == "SECRET").then(|| "s3cret".to_owned());
    let around = Surroundings { env: &env, folder: folder.path() };
    let text = MINIMAL.replace("[salesforce]", "password_file = \"pw\"\n[salesforce]");
    let config = Config::read(&text, "t", Some(&around)).unwrap();
    assert_eq!(config.postgres.password.as_ref().unwrap().expose_secret(), "hunter2");
    assert_eq!(config.salesforce.client_secret.as_ref().unwrap().expose_secret(), "s3cret");
    assert_eq!(config.link.log, folder.path().join("tidelock-log"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("s3cret"), "{shown}");
    let text = MINIMAL
        .replace("[salesforce]", "password_file = \"nowhere\"\n[salesforce]\nca_certificate = \"nothing\"")
        .replace("SECRET", "UNSET");
    let said = Config::read(&text, "t", Some(&around)).unwrap_err().to_string();
    assert!(said.contains("t:6: the file ") && said.contains("cannot be read"), "{said}");
    assert!(said.contains("the environment variable UNSET is not set"), "{said}");
    assert!(said.contains("t:8: "), "{said}");
    let text = MINIMAL.replace("[salesforce]", "password_file = \"empty\"\n[salesforce]");
    assert!(Config::read(&text, "t", Some(&around)).unwrap_err().to_string().contains("is empty"));
}

#[test]
fn a_password_may_come_from_the_file_that_pgpassfile_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwords");
    std::fs::write(&path, "*:*:*:tide:fits\n").unwrap();
    let named = path.display().to_string();
    let env = |name: &str| match name {
        "SECRET" => Some("s3cret".to_owned()),
        "PGPASSFILE" => Some(named.clone()),
        _ => None,
    };
    let around = Surroundings { env: &env, folder: folder.path() };
    let config = Config::read(MINIMAL, "t", Some(&around)).unwrap();
    assert_eq!(config.postgres.password.unwrap().expose_secret(), "fits");
    std::fs::remove_file(&path).unwrap();
    let errors = Config::read(MINIMAL, "t", Some(&around)).unwrap_err();
    assert!(errors.to_string().contains("PGPASSFILE"), "{errors}");
}

#[test]
fn a_file_is_loaded_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidelock.toml");
    assert!(Config::load(&path).unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(folder.path().join("key"), "secret").unwrap();
    std::fs::write(&path, MINIMAL.replace("client_secret_env = \"SECRET\"", "client_secret_file = \"key\"")).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.salesforce.client_secret.unwrap().expose_secret(), "secret");
}

#[test]
fn default_columns_are_heroku_connects() {
    for (field, column) in [
        ("Id", "sfid"),
        ("FirstName", "firstname"),
        ("Pymt__Amount__c", "pymt__amount__c"),
        ("Account.External_ID__c", "account__external_id__c"),
        ("Participant__r.ExternalId__c", "participant__r__externalid__c"),
    ] {
        assert_eq!(default_column(field), column);
    }
    assert_eq!(default_column(&"X".repeat(80)).len(), 63);
}
