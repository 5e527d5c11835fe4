//! CSV as Bulk API 2.0 has it: quoted where needed, one delimiter, one line ending.

/// Why a text is not the CSV that was announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CsvError {
    /// A line ends otherwise than announced.
    LineEnding,
    /// A quoted field does not end, or goes on after its quotes.
    Quote,
}

/// Takes a text apart into its rows.
pub(crate) fn parse(text: &str, delimiter: char, crlf: bool) -> Result<Vec<Vec<String>>, CsvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut field = String::new();
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' if field.is_empty() && !quoted => {
                quoted = true;
                loop {
                    match chars.next() {
                        None => return Err(CsvError::Quote),
                        Some('"') if chars.peek() == Some(&'"') => {
                            chars.next();
                            field.push('"');
                        }
                        Some('"') => break,
                        Some(other) => field.push(other),
                    }
                }
            }
            '\r' if crlf && chars.peek() == Some(&'\n') => {}
            '\n' => {
                row.push(std::mem::take(&mut field));
                quoted = false;
                rows.push(std::mem::take(&mut row));
            }
            '\r' => return Err(CsvError::LineEnding),
            c if c == delimiter => {
                row.push(std::mem::take(&mut field));
                quoted = false;
            }
            _ if quoted => return Err(CsvError::Quote),
            c => field.push(c),
        }
    }
    if !field.is_empty() || !row.is_empty() || quoted {
        row.push(field);
        rows.push(row);
    }
    rows.retain(|row| row.len() > 1 || row.first().is_some_and(|field| !field.is_empty()));
    Ok(rows)
}

/// Appends a row, every field in quotes.
pub(crate) fn write<'a>(fields: impl Iterator<Item = &'a str>, delimiter: char, ending: &str, out: &mut String) {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            out.push(delimiter);
        }
        out.push('"');
        for (part, piece) in field.split('"').enumerate() {
            out.push_str(if part > 0 { "\"\"" } else { "" });
            out.push_str(piece);
        }
        out.push('"');
    }
    out.push_str(ending);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_round() {
        let rows = vec![
            vec!["a".to_owned(), "b,\"c\"\nd".to_owned(), String::new()],
            vec!["é".into(), String::new(), "x".into()],
        ];
        let mut text = String::new();
        for row in &rows {
            write(row.iter().map(String::as_str), ',', "\n", &mut text);
        }
        assert_eq!(parse(&text, ',', false).unwrap(), rows);
        assert_eq!(parse("a;b\r\n1;2", ';', true).unwrap(), [["a", "b"], ["1", "2"]]);
        assert_eq!(parse("a\r\nb", ',', false), Err(CsvError::LineEnding));
        assert_eq!(parse("\"a", ',', false), Err(CsvError::Quote));
        assert_eq!(parse("\"a\" ,b", ',', false), Err(CsvError::Quote));
        assert_eq!(parse("\n\na,b\n", ',', false).unwrap(), [["a", "b"]]);
    }
}
