//! Decimal numbers by their digits.

use crate::change::{Str, Value};

/// The canonical number of decimal text, rounded half away from zero to `scale` digits after the point; none if the
/// text is
/// not a finite number.
pub(super) fn parse(text: &str, scale: u8) -> Option<Value> {
    if let Some(n) = small_int(text.as_bytes()) {
        return Some(Value::Int(n));
    }
    if is_canonical_decimal(text.as_bytes(), usize::from(scale)) {
        return Some(Value::Decimal(Str::new(text)));
    }
    match Value::number(text).ok()? {
        Value::Decimal(text) => Some(rounded(text, scale)),
        other => Some(other),
    }
}

/// A whole number that cannot overflow, which most are.
fn small_int(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut n = 0_i64;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        n = n * 10 + i64::from(byte - b'0');
    }
    Some(if negative { -n } else { n })
}

/// Whether this is `-123.45` with nothing to strip or round.
fn is_canonical_decimal(bytes: &[u8], scale: usize) -> bool {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let Some(point) = digits.iter().position(|b| *b == b'.') else { return false };
    let (whole, fraction) = (digits.get(..point).unwrap_or_default(), digits.get(point + 1..).unwrap_or_default());
    let whole_ok = matches!(whole, [b'0'] | [b'1'..=b'9', ..]) && whole.iter().all(u8::is_ascii_digit);
    whole_ok
        && fraction.len() <= scale
        && matches!(fraction, [.., b'1'..=b'9'])
        && fraction.iter().all(u8::is_ascii_digit)
}

/// A canonical decimal ([`Value::Decimal`]'s text), rounded half away from zero to `scale` digits after the point.
pub(super) fn rounded(text: Str, scale: u8) -> Value {
    let scale = usize::from(scale);
    let (whole, fraction) = text.split_once('.').unwrap_or((text.as_str(), ""));
    if fraction.len() <= scale {
        return Value::Decimal(text);
    }
    let kept = fraction.get(..scale).unwrap_or_default();
    let up = fraction.as_bytes().get(scale).is_some_and(|d| *d >= b'5');
    let (sign, whole) = match whole.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", whole),
    };
    // The digits with a zero before them that may take the carry.
    let mut digits: Vec<u8> = Vec::with_capacity(1 + whole.len() + kept.len());
    digits.push(b'0');
    digits.extend_from_slice(whole.as_bytes());
    digits.extend_from_slice(kept.as_bytes());
    if up {
        for digit in digits.iter_mut().rev() {
            if *digit == b'9' {
                *digit = b'0';
            } else {
                *digit += 1;
                break;
            }
        }
    }
    let point = digits.len() - kept.len();
    let mut plain = String::with_capacity(sign.len() + digits.len() + 1);
    plain.push_str(sign);
    for (n, digit) in digits.iter().enumerate() {
        if n == point {
            plain.push('.');
        }
        plain.push(char::from(*digit));
    }
    Value::number(&plain).unwrap_or(Value::Decimal(text))
}

/// The number that a `money` column prints, in whatever `lc_monetary`: `$1,234.50`, `-1.234,50 €`, `($5.00)`.
///
/// The last separator is the decimal point if it differs from another one before it, or if other than three digits
/// follow.
/// One separator alone with three digits after it could be either (¥1,234 or KD 1.234): none, rather than a guess.
pub(super) fn parse_money(text: &str, scale: u8) -> Option<Value> {
    let negative = text.contains('-') || text.contains('(');
    let last = text.rfind(|c: char| c.is_ascii_digit())?;
    let number = text.get(text.find(|c: char| c.is_ascii_digit())?..=last)?;
    let separators: Vec<(usize, char)> = number.char_indices().filter(|(_, c)| !c.is_ascii_digit()).collect();
    let point = match separators.as_slice() {
        [] => None,
        [.., (at, c)] => {
            let after = number.len() - at - c.len_utf8();
            let repeated = separators.iter().filter(|(_, s)| s == c).count() > 1;
            match (repeated, separators.len() > 1, after) {
                (true, ..) => None,
                (false, false, 3) => return None,
                (false, ..) => Some(*at),
            }
        }
    };
    let mut plain = String::with_capacity(number.len() + 1);
    if negative {
        plain.push('-');
    }
    for (at, c) in number.char_indices() {
        if c.is_ascii_digit() {
            plain.push(c);
        } else if Some(at) == point {
            plain.push('.');
        }
    }
    parse(&plain, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_away_from_zero_by_digits() {
        for (text, scale, expected) in [
            ("1.005", 2, "1.01"),
            ("2.675", 2, "2.68"),
            ("-1.005", 2, "-1.01"),
            ("0.5", 0, "1"),
            ("-0.5", 0, "-1"),
            ("-0.4", 0, "0"),
            ("0.49999999999999999999", 0, "0"),
            ("9.995", 2, "10"),
            ("99999999999999999999.5", 0, "100000000000000000000"),
            ("9223372036854775807.5", 0, "9223372036854775808"),
            ("1.10", 4, "1.1"),
            ("1E-3", 2, "0"),
            ("5E-3", 2, "0.01"),
            ("1.0E7", 2, "10000000"),
            ("12345678901234567.89", 2, "12345678901234567.89"),
            ("000.10", 2, "0.1"),
            ("-0", 0, "0"),
        ] {
            assert_eq!(parse(text, scale).unwrap().to_string(), expected, "{text} to {scale}");
        }
        for bad in ["NaN", "Infinity", "-Infinity", "", "abc", "1.2.3", "-"] {
            assert_eq!(parse(bad, 2), None, "{bad}");
        }
    }

    #[test]
    fn reads_money_unless_it_is_ambiguous() {
        for (text, expected) in [
            ("$1,234.50", Some("1234.5")),
            ("-$1,234,567.00", Some("-1234567")),
            ("1.234,50 €", Some("1234.5")),
            ("($5.00)", Some("-5")),
            ("¥12", Some("12")),
            ("¥1,234,567", Some("1234567")),
            ("¥1,234", None),
            ("Fr. 1'234.50", Some("1234.5")),
            ("", None),
        ] {
            assert_eq!(parse_money(text, 2).map(|v| v.to_string()).as_deref(), expected, "{text}");
        }
    }
}
