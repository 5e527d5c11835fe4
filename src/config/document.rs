//! A configuration file as a tree that knows its lines, and the faults found in it so far.
//!
//! Sections are read with serde, which stops at its first error. So that all faults come out at once, the part that
//! serde
//! stumbled over is recorded, taken out of the tree, and the rest is read again until it reads clean.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::errors::{ConfigError, ConfigErrors};
use super::{EXAMPLE, suggest};

/// The sections that a file may have.
const SECTIONS: [&str; 6] = ["link", "postgres", "salesforce", "http", "replay", "mapping"];

/// Keys that must not hold a secret, and the keys that say where it is.
const SECRET_KEYS: [(&str, &str); 3] =
    [("password", "password_env"), ("client_secret", "client_secret_env"), ("private_key", "private_key_file")];

/// A file being checked.
pub(super) struct Document<'a> {
    file: String,
    text: &'a str,
    root: DeTable<'a>,
    errors: Vec<ConfigError>,
}

impl<'a> Document<'a> {
    /// The tree of `text`, with its syntax errors recorded.
    pub(super) fn new(text: &'a str, file: &str) -> Self {
        let (root, syntax) = DeTable::parse_recoverable(text);
        let mut document =
            Self { file: file.to_owned(), text, root: root.into_inner(), errors: Vec::with_capacity(syntax.len()) };
        for error in syntax {
            let line = document.line_at(error.span().map_or(0, |s| s.start));
            document.fault_at(line, format!("not TOML: {}", error.message()), "a line of the form key = value".into());
        }
        document.check_sections();
        document
    }

    fn check_sections(&mut self) {
        let unknown: Vec<(usize, String)> = self
            .root
            .iter()
            .filter(|(key, _)| !SECTIONS.contains(&key.get_ref().as_ref()))
            .map(|(key, _)| (self.line_at(key.span().start), key.get_ref().to_string()))
            .collect();
        for (line, key) in unknown {
            let write = match suggest::nearest(&key, SECTIONS) {
                Some("mapping") => "[[mapping]]".to_owned(),
                Some(section) => format!("[{section}]"),
                None => format!("one of the sections {}", SECTIONS.map(|s| format!("[{s}]")).join(", ")),
            };
            self.fault_at(line, format!("unknown section `{key}`"), write);
        }
    }

    /// Reads a section; what is not in it, or is wrong, has its default.
    pub(super) fn section<T: DeserializeOwned + Default>(&mut self, section: &str) -> T {
        match self.root.get(section).map(|v| (v.span(), v.get_ref().clone())) {
            None => T::default(),
            Some((span, DeValue::Table(table))) => {
                let (value, table) = self.read(section, &span, table);
                self.replace(section, DeValue::Table(table));
                value
            }
            Some((span, _)) => {
                let line = self.line_at(span.start);
                self.fault_at(line, format!("`{section}` is not a section"), format!("[{section}]"));
                T::default()
            }
        }
    }

    /// Reads a list of sections (`[[mapping]]`).
    pub(super) fn sections<T: DeserializeOwned + Default>(&mut self, section: &str) -> Vec<T> {
        match self.root.get(section).map(|v| (v.span(), v.get_ref().clone())) {
            None => Vec::new(),
            Some((_, DeValue::Array(list))) => {
                let mut values = Vec::with_capacity(list.len());
                let mut pruned = toml::de::DeArray::new();
                for item in list {
                    let span = item.span();
                    if let DeValue::Table(table) = item.into_inner() {
                        let (value, table) = self.read(section, &span, table);
                        values.push(value);
                        pruned.push(Spanned::new(span, DeValue::Table(table)));
                    } else {
                        let line = self.line_at(span.start);
                        self.fault_at(line, format!("an item of `{section}` is not a table"), format!("[[{section}]]"));
                    }
                }
                self.replace(section, DeValue::Array(pruned));
                values
            }
            Some((span, _)) => {
                let line = self.line_at(span.start);
                let what = format!("[{section}] is one section of a list and needs double brackets");
                self.fault_at(line, what, format!("[[{section}]]"));
                Vec::new()
            }
        }
    }

    /// The value of a table and what is left of the table.
    fn read<T: DeserializeOwned + Default>(
        &mut self,
        section: &str,
        span: &Range<usize>,
        mut table: DeTable<'a>,
    ) -> (T, DeTable<'a>) {
        loop {
            let error = match T::deserialize(Deserializer::from(Spanned::new(span.clone(), table.clone()))) {
                Ok(value) => return (value, table),
                Err(error) => error,
            };
            let at = error.span().unwrap_or_else(|| span.clone());
            let key = prune(&mut table, &at);
            let line = self.line_at(at.start);
            let (what, write) = explain(section, key.as_deref(), error.message());
            self.fault_at(line, what, write);
            if key.is_none() {
                return (T::default(), table);
            }
        }
    }

    fn replace(&mut self, section: &str, value: DeValue<'a>) {
        if let Some(old) = self.root.get_mut(section) {
            *old.get_mut() = value;
        }
    }

    /// Whether the file says something at `path` (`postgres.port`, `mapping.0.fields.2.column`) that could be read.
    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).1
    }

    /// The line of what is at `path`, or of the nearest thing above it.
    fn line(&self, path: &str) -> usize {
        self.find(path).0
    }

    /// The line of what is at `path`, or of the nearest thing above it; and whether it is there itself.
    fn find(&self, path: &str) -> (usize, bool) {
        let mut at = 0;
        let mut value: Option<&DeValue<'a>> = None;
        for step in path.split('.') {
            let next = match value {
                None => self.root.get_key_value(step).map(|(k, v)| (k.span().start.min(v.span().start), v)),
                Some(DeValue::Table(table)) => table.get_key_value(step).map(|(k, v)| (k.span().start, v)),
                Some(DeValue::Array(list)) => {
                    step.parse::<usize>().ok().and_then(|n| list.get(n)).map(|v| (v.span().start, v))
                }
                Some(_) => None,
            };
            let Some((start, inner)) = next else { return (self.line_at(at), false) };
            at = start;
            value = Some(inner.get_ref());
        }
        (self.line_at(at), true)
    }

    fn line_at(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        1 + before.split(|b| *b == b'\n').skip(1).count()
    }

    fn fault_at(&mut self, line: usize, what: String, write: String) {
        let error = ConfigError { line, what, write };
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Records that what is at `path`, or is missing there, is wrong.
    pub(super) fn fault(&mut self, path: &str, what: impl Into<String>, write: impl Into<String>) {
        let line = self.line(path);
        self.fault_at(line, what.into(), write.into());
    }

    /// Records that `key` of a section is missing, unless something wrong was already found at it.
    pub(super) fn missing(&mut self, section: &str, key: &str) {
        let path = format!("{section}.{key}");
        let plain = section.split('.').next().unwrap_or(section);
        let (name, line) = (format!("`{key}`"), format!("{key} = "));
        let concerns = |e: &ConfigError| e.what.contains(&name) || e.write.starts_with(&line);
        let known = self.errors.iter().any(|e| concerns(e) && self.is_within(section, e.line));
        if !known {
            self.fault(&path, format!("`{key}` is missing in {}", bracketed(plain)), hint(plain, key));
        }
    }

    /// Whether a line lies in a section, which reaches to the next header.
    fn is_within(&self, section: &str, line: usize) -> bool {
        let start = self.line(section);
        let end = self
            .text
            .lines()
            .enumerate()
            .skip(start)
            .find(|(_, text)| text.trim_start().starts_with('['))
            .map_or(usize::MAX, |(n, _)| n + 1);
        (start..end).contains(&line)
    }

    /// Records `key` if its value is outside of `range`.
    pub(super) fn in_range<N: PartialOrd + std::fmt::Display>(
        &mut self,
        section: &str,
        key: &str,
        value: N,
        range: std::ops::RangeInclusive<N>,
    ) {
        if !range.contains(&value) {
            let what = format!("`{key}` is {value}, but must lie between {} and {}", range.start(), range.end());
            self.fault(&format!("{section}.{key}"), what, hint(section, key));
        }
    }

    /// The faults, if there are any.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        self.errors.sort();
        Err(ConfigErrors { file: self.file, errors: self.errors })
    }
}

/// Takes the innermost key or list item at `span` out of the table; its key, or that of the list that held it.
fn prune(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let hit = |s: Range<usize>| s.start <= span.start && span.end <= s.end;
    if let Some(key) = table.keys().find(|k| hit(k.span())).map(|k| k.get_ref().to_string()) {
        table.remove(key.as_str());
        return Some(key);
    }
    let mut whole = None;
    for (key, value) in table.iter_mut() {
        let here = hit(value.span());
        let inner = match value.get_mut() {
            DeValue::Table(inner) => prune(inner, span),
            DeValue::Array(list) => {
                prune_list(list, span).map(|inner| inner.unwrap_or_else(|| key.get_ref().to_string()))
            }
            _ => None,
        };
        if inner.is_some() {
            return inner;
        }
        if here {
            whole = Some(key.get_ref().to_string());
        }
    }
    if let Some(key) = &whole {
        table.remove(key.as_str());
    }
    whole
}

/// Takes the item at `span`, or what is at `span` within it, out of the list. The inner option is the key within an
/// item.
#[expect(clippy::option_option, reason = "not found, found as a whole and found inside are three things")]
fn prune_list(list: &mut toml::de::DeArray<'_>, span: &Range<usize>) -> Option<Option<String>> {
    let hit = |s: Range<usize>| s.start <= span.start && span.end <= s.end;
    let mut kept = toml::de::DeArray::new();
    let mut found = None;
    for mut item in std::mem::replace(list, toml::de::DeArray::new()) {
        if !hit(item.span()) {
            kept.push(item);
            continue;
        }
        // An error that covers an item as a whole is the item's own: it goes.
        let exact = item.span() == *span;
        let inside = match item.get_mut() {
            DeValue::Table(inner) if !exact => prune(inner, span),
            _ => None,
        };
        if inside.is_some() {
            kept.push(item);
        }
        found = Some(inside);
    }
    *list = kept;
    found
}

/// What serde found wrong at `key`, in our words, and what to write.
fn explain(section: &str, key: Option<&str>, message: &str) -> (String, String) {
    let place = bracketed(section);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (first, rest) = (quoted.first().copied().unwrap_or_default(), quoted.get(1..).unwrap_or_default());
    if message.starts_with("unknown field") {
        if let Some((_, instead)) = SECRET_KEYS.iter().find(|(secret, i)| *secret == first && rest.contains(i)) {
            return (format!("a secret does not belong in this file: `{first}`"), hint(section, instead));
        }
        let write = match suggest::nearest(first, rest.iter().copied()) {
            Some(meant) if rest.contains(&"foreign_edit") && rest.contains(&"column") => field_hint(meant),
            Some(meant) => hint(section, meant),
            None => format!("one of the keys {}", rest.join(", ")),
        };
        return (format!("unknown key `{first}` in {place}"), write);
    }
    if message.starts_with("unknown variant") {
        let key = key.unwrap_or("it");
        let meant = suggest::nearest(first, rest.iter().copied()).or(rest.first().copied()).unwrap_or_default();
        return (
            format!("`{key}` cannot be `{first}`: it is one of {}", rest.join(", ")),
            format!("{key} = \"{meant}\""),
        );
    }
    if message.starts_with("missing field") {
        return (format!("`{first}` is missing in {place}"), field_hint(first));
    }
    let key = key.unwrap_or(section);
    let write = hint(section, key);
    match (message.split_once(": "), message.split_once(", expected ")) {
        (Some((problem, _)), Some((found, expected))) if problem.starts_with("invalid") => {
            let is = if problem == "invalid type" { kind_of(found) } else { "out of range" };
            (format!("`{key}` is {is}, but must be {}", wanted(expected)), write)
        }
        _ => (format!("`{key}` in {place}: {message}"), write),
    }
}

/// What serde says that it found, without the value.
fn kind_of(found: &str) -> &'static str {
    let found = found.strip_prefix("invalid type: ").unwrap_or(found);
    match found.split(' ').next() {
        Some("string") => "text",
        Some("integer") => "a whole number",
        Some("boolean") => "true or false",
        Some("floating") => "a number with a point",
        Some("sequence") => "a list",
        Some("map") => "a table",
        _ => "something else",
    }
}

fn wanted(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative".to_owned(),
        "a string" | "path string" => "text in quotes".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list in brackets".to_owned(),
        other => other.to_owned(),
    }
}

fn bracketed(section: &str) -> String {
    if section == "mapping" { "[[mapping]]".to_owned() } else { format!("[{section}]") }
}

/// The example's line for a key, without its comment.
pub(super) fn hint(section: &str, key: &str) -> String {
    let header = bracketed(section);
    let mut here = false;
    let mut best = None;
    for line in EXAMPLE.lines() {
        let plain = line.trim_start_matches(['#', ' ']);
        if plain.starts_with('[') {
            here = plain.starts_with(&header);
        } else if here && plain.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('=')) {
            best = Some(plain.split("  #").next().unwrap_or(plain).trim_end());
            break;
        }
    }
    match best {
        // A list that goes on over several lines.
        Some(line) if line.ends_with('[') => format!("{line}\"Name\"]"),
        Some(line) => line.to_owned(),
        None => format!("{key} = …"),
    }
}

/// An example of a key of a field's table.
fn field_hint(key: &str) -> String {
    let value = match key {
        "column" => "phone",
        "policy" => "salesforce_wins",
        "owner" => "postgres",
        "foreign_edit" => "revert",
        _ => return "{ name = \"Phone\" }".to_owned(),
    };
    format!("{{ name = \"Phone\", {key} = \"{value}\" }}")
}
