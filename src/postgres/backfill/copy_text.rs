//! The text format of `COPY ... TO STDOUT`: a line per row, columns between tabs, `\N` for null.

use std::borrow::Cow;

use crate::error::{Error, Kind, Result};

/// The columns of a row; none is null.
pub(super) fn columns(line: &[u8]) -> Result<impl Iterator<Item = Option<Cow<'_, str>>>> {
    let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
    let line = line.ok_or_else(|| Error::new(Kind::Protocol, "COPY gave something else than a line of UTF-8"))?;
    Ok(line.split('\t').map(column))
}

fn column(text: &str) -> Option<Cow<'_, str>> {
    if text == "\\N" {
        return None;
    }
    if !text.contains('\\') {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '\\' => match rest.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Vec<Option<String>> {
        columns(line.as_bytes()).unwrap().map(|c| c.map(Cow::into_owned)).collect()
    }

    #[test]
    fn columns_are_as_the_server_wrote_them() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("1\tab\t\\N\t\n"), [some("1"), some("ab"), None, some("")]);
        assert_eq!(read("a\\tb\\nc\\\\N\\r\\b\\f\\v\t\\\\N\n"), [some("a\tb\nc\\N\r\u{8}\u{c}\u{b}"), some("\\N")]);
        assert_eq!(read("\n"), [some("")]);
        for bad in [&b"1\t2"[..], b"", b"\xff\n"] {
            assert!(columns(bad).is_err(), "{bad:?}");
        }
    }
}
