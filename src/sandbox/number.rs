//! Decimal numbers as they are written in JSON: rounded to a field's scale and checked against its precision.

/// Why a number cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberError {
    /// The text is not a number.
    Malformed,
    /// More digits before the decimal point than the field has.
    OutOfRange,
}

/// The number in `text`, rounded half away from zero to `scale` decimals, if it fits `precision` digits in all.
pub(crate) fn scaled(text: &str, precision: u32, scale: u32) -> Result<f64, NumberError> {
    let (negative, mut digits, mut point) = decompose(text)?;
    let keep = point + i64::from(scale);
    if keep < 0 {
        digits.clear();
    } else if (keep as usize) < digits.len() {
        let up = digits[keep as usize] >= 5;
        digits.truncate(keep as usize);
        if up {
            carry(&mut digits, &mut point);
        }
    }
    let leading_zeros = digits.iter().take_while(|&&d| d == 0).count() as i64;
    let integer_digits = (point - leading_zeros).max(0);
    if !digits.iter().all(|&d| d == 0) && integer_digits > i64::from(precision.saturating_sub(scale)) {
        return Err(NumberError::OutOfRange);
    }
    let mut rendered = String::from(if negative { "-0." } else { "0." });
    rendered.extend(digits.iter().map(|&d| char::from(b'0' + d)));
    rendered.push_str("0e");
    rendered.push_str(&point.to_string());
    let value: f64 = rendered.parse().map_err(|_| NumberError::Malformed)?;
    Ok(if value == 0.0 { 0.0 } else { value })
}

/// Sign, digits, and how many of the digits come before the decimal point (possibly fewer than none).
fn decompose(text: &str) -> Result<(bool, Vec<u8>, i64), NumberError> {
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().map_err(|_| NumberError::Malformed)?),
        None => (body, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return Err(NumberError::Malformed);
    }
    if exponent.abs() > 400 || mantissa.len() > 400 {
        return Err(NumberError::OutOfRange);
    }
    let digits = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    Ok((negative, digits, whole.len() as i64 + exponent))
}

/// Adds one in the last place.
fn carry(digits: &mut Vec<u8>, point: &mut i64) {
    for digit in digits.iter_mut().rev() {
        if *digit < 9 {
            *digit += 1;
            return;
        }
        *digit = 0;
    }
    digits.insert(0, 1);
    *point += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_half_away_from_zero() {
        for (text, scale, expected) in [
            ("1.005", 2, 1.01),
            ("-1.005", 2, -1.01),
            ("1.004", 2, 1.0),
            ("9.999", 2, 10.0),
            ("0.5", 0, 1.0),
            ("0.49", 0, 0.0),
            ("0.004", 2, 0.0),
            ("0.0006", 2, 0.0),
            ("1e3", 2, 1000.0),
            ("12.5e-1", 1, 1.3),
            ("5", 2, 5.0),
            ("-0", 2, 0.0),
        ] {
            assert_eq!(scaled(text, 18, scale), Ok(expected), "{text}");
        }
    }

    #[test]
    fn numbers_must_fit() {
        assert_eq!(scaled("100", 4, 2), Err(NumberError::OutOfRange));
        assert_eq!(scaled("99.99", 4, 2), Ok(99.99));
        assert_eq!(scaled("99.995", 4, 2), Err(NumberError::OutOfRange));
        assert_eq!(scaled("1e999", 18, 2), Err(NumberError::OutOfRange));
        for bad in ["", "-", "abc", "1.2.3", "1e", "0x10"] {
            assert_eq!(scaled(bad, 18, 2), Err(NumberError::Malformed), "{bad}");
        }
    }
}
