//! Which folder may use which: arrows point one way, and this holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each folder may use besides itself and what is everybody's. Whoever adds an arrow adds it here, and finds that it
/// must not close a circle.
const ALLOWED: [(&str, &[&str]); 18] = [
    ("change", &[]),
    ("config", &["change"]),
    ("flow", &["change"]),
    ("causality", &["change", "flow"]),
    ("mapping", &["change", "config"]),
    ("log", &["change"]),
    ("reconcile", &["causality", "change"]),
    ("ledger", &["causality", "change", "flow", "log", "reconcile"]),
    ("audit", &["causality", "change", "flow", "ledger", "log", "mapping"]),
    ("replay", &["change", "flow", "ledger", "log"]),
    ("postgres", &["change", "config", "flow", "mapping"]),
    ("salesforce", &["change", "flow", "mapping", "protocol"]),
    ("sandbox", &["protocol"]),
    ("status", &["audit", "causality", "change", "ledger", "log", "mapping", "postgres", "replay", "salesforce"]),
    ("http", &["change", "ledger", "status"]),
    (
        "app",
        &[
            "audit",
            "change",
            "config",
            "flow",
            "http",
            "ledger",
            "log",
            "mapping",
            "postgres",
            "replay",
            "salesforce",
            "status",
        ],
    ),
    ("demo", &["change", "config", "mapping", "postgres", "sandbox"]),
    (
        "cli",
        &[
            "app",
            "audit",
            "change",
            "config",
            "demo",
            "ledger",
            "log",
            "mapping",
            "postgres",
            "salesforce",
            "sandbox",
            "status",
        ],
    ),
];

/// Everybody's.
const COMMON: [&str; 4] = ["backoff", "clock", "error", "task"];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let test_only = name == "tests"
            || name.ends_with("tests.rs")
            || matches!(name.as_str(), "golden.rs" | "stub.rs" | "conformance");
        if test_only {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The folders that a file's product code names.
fn uses(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap();
    // Unit tests stand at the end of a file and may use what they like.
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(&source).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let may =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("src/{name} is a new folder: say what it may use"));
        let mut all = Vec::new();
        files(&folder, &mut all);
        for file in all {
            for used in uses(&file) {
                let fine = used == name || COMMON.contains(&used.as_str()) || may.contains(&used.as_str());
                seen += 1;
                if !fine && source.join(&used).exists() {
                    wrong.push(format!("{} uses {used}", file.strip_prefix(&source).unwrap().display()));
                }
            }
        }
    }
    assert!(seen > 100, "the source was not read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_circle_is_allowed() {
    let mut left: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.into_iter().map(|(name, uses)| (name, uses.iter().copied().collect())).collect();
    while !left.is_empty() {
        let free: Vec<&str> =
            left.iter().filter(|(_, uses)| uses.iter().all(|u| !left.contains_key(u))).map(|(name, _)| *name).collect();
        assert!(!free.is_empty(), "a circle among {:?}", left.keys());
        for name in free {
            left.remove(name);
        }
    }
}

#[test]
fn only_the_composition_root_names_the_storage() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source, &mut all);
    for file in all {
        let inside = file.strip_prefix(&source).unwrap();
        if inside.starts_with("log") || inside.starts_with("app") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        assert!(!text.contains("log::rocks"), "{} names log::rocks", inside.display());
    }
}

/// Keys that the configuration itself turns into something else, which is what the rest of the program reads.
const TURNED_INTO: [(&str, &str); 7] = [
    ("listen", "address"),
    ("url", "host"),
    ("password_env", "password"),
    ("password_file", "password"),
    ("client_secret_env", "client_secret"),
    ("client_secret_file", "client_secret"),
    ("private_key_file", "private_key"),
];

#[test]
fn every_configuration_key_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(&root.join("src"), &mut all);
    // Only where the configuration is known: a method or a field of the same name elsewhere reads nothing.
    let app = root.join("src/app");
    let read: Vec<String> = all
        .iter()
        .filter(|file| !file.starts_with(root.join("src/config")))
        .map(|file| (file.starts_with(&app), std::fs::read_to_string(file).unwrap()))
        .filter(|(in_app, text)| *in_app || text.contains("crate::config"))
        .map(|(_, text)| text)
        .collect();
    let schema = std::fs::read_to_string(root.join("schemas/tidelock.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let is_read = |key: &str| {
        let field = format!(".{key}");
        read.iter().any(|text| {
            text.match_indices(&field).any(|(at, _)| {
                let next = text[at + field.len()..].chars().next().unwrap_or(' ');
                !(next.is_ascii_alphanumeric() || next == '_' || next == '(')
            })
        })
    };
    let (mut seen, mut unread) = (0, Vec::new());
    for (section, definition) in schema["$defs"].as_object().unwrap() {
        for key in definition["properties"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            seen += 1;
            let turned = TURNED_INTO.iter().find(|(from, _)| from == key).map_or(key.as_str(), |(_, to)| to);
            if !is_read(turned) {
                unread.push(format!("{section}: {key}"));
            }
        }
    }
    assert!(seen > 40, "the schema was not read");
    assert!(unread.is_empty(), "nothing reads these keys: {unread:?}");
}
