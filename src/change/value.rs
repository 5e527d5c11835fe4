//! Canonical values: what both sides' values of a field normalise to, so that equality is equality of bytes.

use std::fmt;

/// Text that is stored inline up to 23 bytes, and shared beyond: a clone copies nothing.
pub type Str = smol_str::SmolStr;

/// A canonical value. Two values are the same for Tidelock exactly when they are equal here.
///
/// Numbers have one form each: an integer that fits is `Int`, every other finite number is `Decimal`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Value {
    /// No value.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number within 64 bits.
    Int(i64),
    /// Any other finite number, as plain decimal text without exponent, leading zeros or trailing fractional zeros.
    Decimal(Str),
    /// Text, and everything that has no better canonical form (uuid, json, interval, arrays) as PostgreSQL prints it.
    Text(Str),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01 00:00:00 UTC.
    Timestamp(i64),
}

/// Why a text is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a finite decimal number")]
pub struct NotANumber;

/// More digits than any of the two sides can hold; a limit against hostile exponents.
const DIGITS_MAX: i64 = 200_000;

impl Value {
    /// The text value.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::Text(Str::new(text.as_ref()))
    }

    /// Whether it is null.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text, if it is a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The canonical number for decimal text, with or without exponent (`5.0`, `-1.50`, `1.0E7`).
    ///
    /// NaN and the infinities are errors: Salesforce has no such numbers.
    pub fn number(text: &str) -> Result<Self, NotANumber> {
        let text = text.trim();
        if let Ok(n) = text.parse::<i64>() {
            return Ok(Self::Int(n));
        }
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((m, e)) => (m, e.parse::<i64>().map_err(|_| NotANumber)?),
            None => (text, 0),
        };
        let (negative, mantissa) = match mantissa.as_bytes().first() {
            Some(b'-') => (true, mantissa.get(1..).unwrap_or_default()),
            Some(b'+') => (false, mantissa.get(1..).unwrap_or_default()),
            _ => (false, mantissa),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.len() + fraction.len() == 0 || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(NotANumber);
        }
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let point = whole.len() as i64 + exponent;
        if point.abs() > DIGITS_MAX {
            return Err(NotANumber);
        }
        Ok(Self::from_digits(negative, &digits, point))
    }

    /// `digits` with the decimal point before index `point`.
    fn from_digits(negative: bool, digits: &[u8], point: i64) -> Self {
        let digit = |n: i64| usize::try_from(n).ok().and_then(|n| digits.get(n)).map_or('0', |d| *d as char);
        let mut text = String::new();
        let whole: String = (0..point.max(0)).map(digit).collect();
        let whole = whole.trim_start_matches('0');
        let fraction: String = (point..digits.len() as i64).map(digit).collect();
        let fraction = fraction.trim_end_matches('0');
        if negative && !(whole.is_empty() && fraction.is_empty()) {
            text.push('-');
        }
        text.push_str(if whole.is_empty() { "0" } else { whole });
        if fraction.is_empty() {
            if let Ok(n) = text.parse::<i64>() {
                return Self::Int(n);
            }
        } else {
            text.push('.');
            text.push_str(fraction);
        }
        Self::Decimal(Str::from(text))
    }

    /// The canonical number for a double, by its shortest decimal form that reads back as the same double.
    pub fn float(number: f64) -> Result<Self, NotANumber> {
        if number.is_finite() { Self::number(&format!("{number:e}")) } else { Err(NotANumber) }
    }
}

/// For people: null is `null`, text is bare, times are ISO 8601 in UTC.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => b.fmt(f),
            Self::Int(n) => n.fmt(f),
            Self::Decimal(text) | Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => {
                f.write_str("\\x")?;
                bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Self::Date(days) => match jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(*days)) {
                Ok(date) => date.fmt(f),
                Err(_) => write!(f, "day {days}"),
            },
            Self::Time(micros) => {
                let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
                write!(f, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
                if micros == 0 { Ok(()) } else { write!(f, ".{micros:06}") }
            }
            Self::Timestamp(micros) => match jiff::Timestamp::from_microsecond(*micros) {
                Ok(at) => at.fmt(f),
                Err(_) => write!(f, "{micros} us"),
            },
        }
    }
}

/// JSON for programs: numbers as numbers, everything without a JSON type as the text that [`fmt::Display`] gives.
impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Int(n) => serializer.serialize_i64(*n),
            Self::Decimal(text) => match text.parse::<serde_json::Number>() {
                Ok(number) => number.serialize(serializer),
                Err(_) => serializer.serialize_str(text),
            },
            Self::Text(text) => serializer.serialize_str(text),
            other => serializer.collect_str(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (text, canonical) in [
            ("5", "5"),
            ("5.0", "5"),
            ("1.0E7", "10000000"),
            ("-0", "0"),
            ("-0.00", "0"),
            ("007.50", "7.5"),
            ("+1.25e1", "12.5"),
            (".5", "0.5"),
            ("5.", "5"),
            ("1e-3", "0.001"),
            ("123e-5", "0.00123"),
            ("9223372036854775808", "9223372036854775808"),
        ] {
            assert_eq!(Value::number(text).unwrap().to_string(), canonical, "{text}");
        }
        assert_eq!(Value::number("5.000").unwrap(), Value::Int(5));
        assert_eq!(Value::float(0.1).unwrap(), Value::number("0.1").unwrap());
        for bad in ["", "NaN", "Infinity", "-", ".", "1e", "0x1", "1e999999999", "1.2.3"] {
            assert!(Value::number(bad).is_err(), "{bad}");
        }
    }
}
