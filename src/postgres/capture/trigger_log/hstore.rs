//! The text of an hstore, as the server prints it: `"key"=>"value", "other"=>NULL`.

use std::collections::HashMap;

/// Columns and their values.
pub(super) type Columns = HashMap<String, Option<String>>;

/// Reads what `hstore_out` prints; none for anything else.
pub(super) fn parse(text: &str) -> Option<Columns> {
    let mut columns = Columns::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let after = after.strip_prefix("=>")?;
        let (value, after) = match after.strip_prefix("NULL") {
            Some(after) => (None, after),
            None => quoted(after).map(|(value, after)| (Some(value), after))?,
        };
        columns.insert(key, value);
        rest = match after.strip_prefix(", ") {
            Some("") => return None,
            Some(more) => more,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(columns)
}

/// The text between the first two quotes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut found = String::new();
    let mut rest = text;
    loop {
        let at = rest.find(['"', '\\'])?;
        let (plain, special) = rest.split_at_checked(at)?;
        found.push_str(plain);
        if let Some(after) = special.strip_prefix('"') {
            return Some((found, after));
        }
        let mut escaped = special.strip_prefix('\\')?.chars();
        found.push(escaped.next()?);
        rest = escaped.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(pairs: &[(&str, Option<&str>)]) -> Columns {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect()
    }

    #[test]
    fn what_the_server_prints_is_read() {
        assert_eq!(parse(""), Some(columns(&[])));
        assert_eq!(parse(r#""a"=>"1", "b"=>NULL"#), Some(columns(&[("a", Some("1")), ("b", None)])));
        assert_eq!(
            parse(r#""q\"\\k"=>"a, \"b\"=>\\", "é"=>"漢\nx", "n"=>"NULL", "e"=>"""#),
            Some(columns(&[
                ("q\"\\k", Some("a, \"b\"=>\\")),
                ("é", Some("漢nx")),
                ("n", Some("NULL")),
                ("e", Some(""))
            ]))
        );
        assert_eq!(parse("\"a\"=>\"two\nlines\""), Some(columns(&[("a", Some("two\nlines"))])));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "a",
            "\"a\"",
            "\"a\"=>",
            "\"a\"=>1",
            "\"a\"=>\"1",
            "\"a\"=>\"1\",",
            "\"a\"=>\"1\", ",
            "\"a\"=>NULLx",
            "\"a\\",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
