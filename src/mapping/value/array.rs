//! PostgreSQL array literals of one dimension, as lists joined by `;`.

/// The elements of an array literal joined by `;`, nulls left out; none if the text is not a literal of one dimension.
pub(super) fn joined(text: &str) -> Option<String> {
    // A lower bound other than 1 is printed before the elements: `[0:1]={a,b}`.
    let text = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]=")?.1,
        None => text,
    };
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut list = String::with_capacity(inner.len());
    let mut first = true;
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.next() {
                Some('\\') => element.push(chars.next()?),
                Some('"') if quoted => match chars.next() {
                    None | Some(',') => break,
                    Some(_) => return None,
                },
                None if quoted => return None,
                None => break,
                Some(',') if !quoted => break,
                Some('{' | '}' | '"') if !quoted => return None,
                Some(c) => element.push(c),
            }
        }
        if !quoted && element.eq_ignore_ascii_case("NULL") {
            continue;
        }
        if !first {
            list.push(';');
        }
        first = false;
        list.push_str(&element);
    }
    Some(list)
}

/// The array literal of a list joined by `;`. Empty items are left out.
pub(super) fn literal(list: &str) -> String {
    let mut text = String::with_capacity(list.len() + 8);
    text.push('{');
    for item in list.split(';').filter(|item| !item.is_empty()) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push('"');
        for c in item.chars() {
            if c == '"' || c == '\\' {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_server_prints() {
        for (text, expected) in [
            ("{}", Some("")),
            ("{a,b}", Some("a;b")),
            (r#"{"a b","c,d","q\"x","back\\slash"}"#, Some(r#"a b;c,d;q"x;back\slash"#)),
            (r#"{a,NULL,"NULL",""}"#, Some("a;NULL;")),
            ("[0:1]={a,b}", Some("a;b")),
            ("{{a},{b}}", None),
            ("a;b", None),
            (r#"{"a"#, None),
            (r#"{"a}"#, None),
            (r#"{"a"b}"#, None),
        ] {
            assert_eq!(joined(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_literal_reads_back() {
        for list in ["", "a", "a;b c;d,e", r#"q"x;back\slash;{braces};NULL"#] {
            assert_eq!(joined(&literal(list)).as_deref(), Some(list));
        }
    }
}
