//! Tokens of SOQL.

use super::malformed;
use crate::sandbox::refusal::Refusal;
use crate::sandbox::time;

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A word, possibly with dots: a keyword, a field, a path.
    Word(String),
    /// A string literal, with its escapes undone; `like` keeps `\_` and `\%` as they are.
    Text(String),
    /// A number as it is written.
    Number(String),
    /// Days since 1970-01-01.
    Date(i64),
    /// Milliseconds since 1970-01-01.
    DateTime(i64),
    /// Anything else: an operator or punctuation.
    Symbol(&'static str),
}

const SYMBOLS: [&str; 11] = ["!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", ",", ":"];

/// Splits a query into tokens.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Refusal> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, tail) = if first == '\'' {
            string(rest)?
        } else if first.is_ascii_digit() || matches!(first, '+' | '-' | '.') {
            literal(rest)?
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            (Token::Word(word.to_owned()), tail)
        } else {
            let symbol = SYMBOLS.iter().find(|s| rest.starts_with(**s));
            let symbol = symbol.ok_or_else(|| malformed(format!("unexpected character: '{first}'")))?;
            (Token::Symbol(if *symbol == "<>" { "!=" } else { symbol }), &rest[symbol.len()..])
        };
        tokens.push(token);
        rest = tail.trim_start();
    }
    Ok(tokens)
}

fn string(text: &str) -> Result<(Token, &str), Refusal> {
    let mut value = String::new();
    let mut chars = text.chars();
    chars.next();
    loop {
        match chars.next() {
            None => return Err(malformed("unexpected end of the query inside a string literal")),
            Some('\'') => return Ok((Token::Text(value), chars.as_str())),
            Some('\\') => match chars.next() {
                Some('n' | 'N') => value.push('\n'),
                Some('r' | 'R') => value.push('\r'),
                Some('t' | 'T') => value.push('\t'),
                Some('b' | 'B') => value.push('\u{8}'),
                Some('f' | 'F') => value.push('\u{c}'),
                Some(c @ ('"' | '\'' | '\\')) => value.push(c),
                Some(c @ ('_' | '%')) => {
                    value.push('\\');
                    value.push(c);
                }
                Some('u') => {
                    let hex: String = chars.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                    value
                        .push(code.ok_or_else(|| malformed(format!("invalid escape '\\u{hex}' in a string literal")))?);
                }
                other => {
                    let shown = other.map(String::from).unwrap_or_default();
                    return Err(malformed(format!("invalid escape '\\{shown}' in a string literal")));
                }
            },
            Some(c) => value.push(c),
        }
    }
}

fn literal(text: &str) -> Result<(Token, &str), Refusal> {
    let end =
        text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | ':' | '.'))).unwrap_or(text.len());
    let (word, tail) = text.split_at(end);
    let token = if let Some(days) = time::parse_date(word) {
        Token::Date(days)
    } else if word.contains('T')
        && let Some(ms) = time::parse_datetime(word)
    {
        Token::DateTime(ms)
    } else if word.parse::<f64>().is_ok() {
        Token::Number(word.to_owned())
    } else {
        return Err(malformed(format!("unexpected token: '{word}'")));
    };
    Ok((token, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_told_apart() {
        assert_eq!(
            tokens("a.B__c<>-1.5 2026-01-02 2026-01-02T03:04:05.000+01:00 '\\u0041\\'\\_' (:,").unwrap(),
            [
                Token::Word("a.B__c".into()),
                Token::Symbol("!="),
                Token::Number("-1.5".into()),
                Token::Date(20455),
                Token::DateTime(1_767_319_445_000),
                Token::Text("A'\\_".into()),
                Token::Symbol("("),
                Token::Symbol(":"),
                Token::Symbol(","),
            ]
        );
        for bad in ["'open", "'\\x'", "12ab", "§"] {
            assert_eq!(tokens(bad).unwrap_err().code, "MALFORMED_QUERY", "{bad}");
        }
    }
}
