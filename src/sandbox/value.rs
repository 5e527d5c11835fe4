//! A field's value as the store holds it: normalised, typed, and cheap to compare.

use std::cmp::Ordering;
use std::fmt::Write as _;

use smol_str::SmolStr;

use super::time;

/// A value that is not null.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Text of any kind, a picklist value, or an id in its 18-character form.
    Text(SmolStr),
    /// A checkbox.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number, an amount or a percentage.
    Double(f64),
    /// Days since 1970-01-01.
    Date(i64),
    /// Milliseconds since 1970-01-01T00:00:00Z, in whole seconds.
    DateTime(i64),
    /// Milliseconds of the day.
    Time(i64),
}

impl Value {
    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The value as a number, for comparisons across number types.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(n) | Self::Date(n) | Self::DateTime(n) | Self::Time(n) => Some(*n as f64),
            Self::Double(n) => Some(*n),
            Self::Bool(b) => Some(f64::from(u8::from(*b))),
            Self::Text(_) => None,
        }
    }

    /// Appends the value as JSON.
    pub(crate) fn write_json(&self, out: &mut String) {
        match self {
            Self::Text(text) => write_string(text, out),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Int(n) => out.push_str(&n.to_string()),
            Self::Double(_) => out.push_str(&self.plain()),
            Self::Date(_) | Self::DateTime(_) | Self::Time(_) => {
                out.push('"');
                out.push_str(&self.plain());
                out.push('"');
            }
        }
    }

    /// The value as text without quotes.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Double(n) => double(*n),
            Self::Date(days) => time::format_date(*days),
            Self::DateTime(ms) => time::format_datetime(*ms),
            Self::Time(ms) => time::format_time(*ms),
        }
    }

    /// The value as a JSON value.
    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            other => other.plain().into(),
        }
    }

    /// The order of two values of one field: text without regard to case, everything else by size.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => compare_folded(a, b),
            _ => self.number().partial_cmp(&other.number()).unwrap_or(Ordering::Equal),
        }
    }
}

/// A number with its decimal point always, and with an exponent when it is large or small.
fn double(n: f64) -> String {
    if n == 0.0 || (1e-3..1e7).contains(&n.abs()) {
        return format!("{n:?}");
    }
    let text = format!("{n:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let point = if mantissa.contains('.') { "" } else { ".0" };
    format!("{mantissa}{point}E{exponent}")
}

/// Compares text without regard to case.
pub(crate) fn compare_folded(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        let (a, b) = (a.bytes().map(|c| c.to_ascii_lowercase()), b.bytes().map(|c| c.to_ascii_lowercase()));
        return a.cmp(b);
    }
    a.chars().flat_map(char::to_lowercase).cmp(b.chars().flat_map(char::to_lowercase))
}

/// Appends `text` as a JSON string.
pub(crate) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c < ' ') {
        let (clean, tail) = rest.split_at(at);
        out.push_str(clean);
        let mut chars = tail.chars();
        match chars.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            // Writing to a String cannot fail.
            Some(c) => write!(out, "\\u{:04x}", c as u32).unwrap_or_default(),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

/// Appends a value or `null`.
pub(crate) fn write_json(value: Option<&Value>, out: &mut String) {
    match value {
        Some(value) => value.write_json(out),
        None => out.push_str("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_json() {
        let mut out = String::new();
        let text = "a\"b\\c\n\u{1}é日";
        write_string(text, &mut out);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn numbers_keep_their_kind() {
        let mut out = String::new();
        Value::Double(5.0).write_json(&mut out);
        assert_eq!(out, "5.0");
        assert_eq!(Value::Int(5).plain(), "5");
        assert_eq!(Value::Double(912_000_000.0).plain(), "9.12E8");
        assert_eq!(Value::Double(1e7).plain(), "1.0E7");
        assert_eq!(Value::Double(-0.0005).plain(), "-5.0E-4");
        assert_eq!(compare_folded("Ärger", "äRGER"), Ordering::Equal);
    }
}
