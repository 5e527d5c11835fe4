//! Days, moments and times of day in the proleptic Gregorian calendar, as PostgreSQL and Salesforce write them.
//!
//! Own arithmetic because PostgreSQL's years reach from 4713 BC to 294276, which general libraries do not. Years
//! before 1
//! are written with a trailing ` BC`, as PostgreSQL does; inside, the year before 1 is 0.

use crate::change::Str;

/// Microseconds in a day.
pub(super) const DAY: i64 = 86_400_000_000;

/// Days since 1970-01-01 of a date, or of the UTC date of a moment.
pub(super) fn parse_date(text: &str) -> Option<i32> {
    let parsed = DateTime::parse(text.as_bytes())?;
    match parsed.offset {
        None => i32::try_from(parsed.days).ok(),
        Some(_) => day_of(parsed.moment()?),
    }
}

/// Microseconds since 1970-01-01 00:00 UTC of a moment; without an offset it is UTC, without a time it is midnight.
pub(super) fn parse_moment(text: &str) -> Option<i64> {
    DateTime::parse(text.as_bytes())?.moment()
}

/// Microseconds since midnight of a time of day; with an offset, of the same moment's time in UTC.
pub(super) fn parse_time_of_day(text: &str) -> Option<i64> {
    let mut rest = text.as_bytes();
    let micros = clock(&mut rest)?;
    let seconds = offset(&mut rest)?.unwrap_or(0);
    rest.is_empty().then(|| (micros - seconds * 1_000_000).rem_euclid(DAY))
}

/// The UTC day that a moment lies in.
pub(super) fn day_of(micros: i64) -> Option<i32> {
    i32::try_from(micros.div_euclid(DAY)).ok()
}

/// `2026-01-02`, or `0044-03-15 BC`.
pub(super) fn date_text(days: i32) -> Str {
    let mut text = String::with_capacity(29);
    let before_christ = push_date(&mut text, i64::from(days));
    if before_christ {
        text.push_str(" BC");
    }
    text.into()
}

/// `10:15:00`, with as many digits after the point as it needs. What is not within a day is shown as what it is, which no
/// database takes for a time.
pub(super) fn time_text(micros: i64) -> Str {
    let mut text = String::with_capacity(29);
    if !(0..DAY).contains(&micros) {
        return smol_str::format_smolstr!("{micros} us");
    }
    push_clock(&mut text, micros);
    push_fraction(&mut text, micros);
    text.into()
}

/// `2026-01-02 03:04:05.123+00`, with as many digits after the point as it needs.
pub(super) fn moment_text(micros: i64) -> Str {
    let mut text = String::with_capacity(29);
    let before_christ = push_date(&mut text, micros.div_euclid(DAY));
    text.push(' ');
    push_clock(&mut text, micros.rem_euclid(DAY));
    push_fraction(&mut text, micros.rem_euclid(DAY));
    text.push_str("+00");
    if before_christ {
        text.push_str(" BC");
    }
    text.into()
}

/// `2013-05-07T22:07:19.000+0000`; none outside the years 1 to 9999.
pub(super) fn moment_json(micros: i64) -> Option<String> {
    let days = micros.div_euclid(DAY);
    is_four_digit_year(days).then(|| {
        let mut text = String::with_capacity(29);
        push_date(&mut text, days);
        text.push('T');
        push_clock(&mut text, micros.rem_euclid(DAY));
        push_millis(&mut text, micros.rem_euclid(DAY));
        text.push_str("+0000");
        text
    })
}

/// `2013-05-07`; none outside the years 1 to 9999.
pub(super) fn date_json(days: i32) -> Option<String> {
    is_four_digit_year(i64::from(days)).then(|| date_text(days).into())
}

/// `10:15:00.000Z`; none for what is not within a day.
pub(super) fn time_json(micros: i64) -> Option<String> {
    (0..DAY).contains(&micros).then(|| {
        let mut text = String::with_capacity(29);
        push_clock(&mut text, micros);
        push_millis(&mut text, micros);
        text.push('Z');
        text
    })
}

/// What a text says, before it is put together.
struct DateTime {
    days: i64,
    micros: i64,
    /// Seconds east of UTC.
    offset: Option<i64>,
}

impl DateTime {
    /// `2026-01-02`, then maybe `T` or a blank and a time, maybe an offset, maybe ` BC`.
    fn parse(text: &[u8]) -> Option<Self> {
        let (mut rest, before_christ) = match text.strip_suffix(b" BC") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let year_len = rest.iter().position(|b| *b == b'-').filter(|n| (4..=7).contains(n))?;
        let year = digits(&mut rest, year_len)?;
        let month = after(&mut rest, b'-').then(|| digits(&mut rest, 2))??;
        let day = after(&mut rest, b'-').then(|| digits(&mut rest, 2))??;
        if year == 0 {
            return None;
        }
        let year = if before_christ { 1 - year } else { year };
        if !(1..=12).contains(&month) || day < 1 || day > month_length(year, month) {
            return None;
        }
        let mut parsed = Self { days: days_from_civil(year, month, day), micros: 0, offset: None };
        if !rest.is_empty() {
            if !after(&mut rest, b'T') && !after(&mut rest, b' ') {
                return None;
            }
            parsed.micros = clock(&mut rest)?;
            parsed.offset = offset(&mut rest)?;
        }
        rest.is_empty().then_some(parsed)
    }

    fn moment(&self) -> Option<i64> {
        let micros = self.days.checked_mul(DAY)?.checked_add(self.micros)?;
        micros.checked_sub(self.offset.unwrap_or(0) * 1_000_000)
    }
}

/// Takes `n` digits.
fn digits(rest: &mut &[u8], n: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(n)?;
    let mut number = 0;
    for byte in head {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i64::from(byte - b'0');
    }
    *rest = tail;
    Some(number)
}

/// Takes `byte` if it is next.
fn after(rest: &mut &[u8], byte: u8) -> bool {
    match rest.split_first() {
        Some((first, tail)) if *first == byte => {
            *rest = tail;
            true
        }
        _ => false,
    }
}

/// Takes `hh:mm`, `hh:mm:ss` or `hh:mm:ss.fraction` before midnight, as microseconds.
fn clock(rest: &mut &[u8]) -> Option<i64> {
    let hours = digits(rest, 2)?;
    let minutes = after(rest, b':').then(|| digits(rest, 2))??;
    let seconds = if after(rest, b':') { digits(rest, 2)? } else { 0 };
    if hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let mut micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if after(rest, b'.') {
        let mut unit = 100_000;
        let mut any = false;
        while let Some((digit, tail)) = rest.split_first().filter(|(b, _)| b.is_ascii_digit()) {
            micros += i64::from(digit - b'0') * unit;
            unit /= 10;
            any = true;
            *rest = tail;
        }
        if !any {
            return None;
        }
    }
    Some(micros)
}

/// Takes `Z`, `±hh`, `±hhmm`, `±hh:mm` or `±hh:mm:ss` if there is one; the outer none is a malformed one.
#[expect(clippy::option_option, reason = "malformed and absent are different, and `?` reads best")]
fn offset(rest: &mut &[u8]) -> Option<Option<i64>> {
    if after(rest, b'Z') {
        return Some(Some(0));
    }
    let sign = if after(rest, b'+') {
        1
    } else if after(rest, b'-') {
        -1
    } else {
        return Some(None);
    };
    let mut seconds = digits(rest, 2)? * 3600;
    for unit in [60, 1] {
        let colon = after(rest, b':');
        if colon || !rest.is_empty() {
            seconds += digits(rest, 2)? * unit;
        } else {
            break;
        }
    }
    Some(Some(sign * seconds))
}

fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01. The year is taken to begin in March, so that the leap day is its last (Hinnant, "chrono-
/// Compatible
/// Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day; the reverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn is_four_digit_year(days: i64) -> bool {
    (1..=9999).contains(&civil_from_days(days).0)
}

/// Appends year, month and day; tells whether the year is before Christ.
fn push_date(text: &mut String, days: i64) -> bool {
    let (year, month, day) = civil_from_days(days);
    let shown = if year <= 0 { 1 - year } else { year };
    push_padded(text, shown, 4);
    text.push('-');
    push_padded(text, month, 2);
    text.push('-');
    push_padded(text, day, 2);
    year <= 0
}

fn push_clock(text: &mut String, micros: i64) {
    let seconds = micros / 1_000_000;
    push_padded(text, seconds / 3600, 2);
    text.push(':');
    push_padded(text, seconds / 60 % 60, 2);
    text.push(':');
    push_padded(text, seconds % 60, 2);
}

/// Appends the microseconds without trailing zeros, or nothing.
fn push_fraction(text: &mut String, micros: i64) {
    let mut fraction = micros % 1_000_000;
    if fraction != 0 {
        let mut width = 6;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        text.push('.');
        push_padded(text, fraction, width);
    }
}

fn push_millis(text: &mut String, micros: i64) {
    text.push('.');
    push_padded(text, micros / 1_000 % 1_000, 3);
}

/// Appends a number that is not negative with at least `width` digits.
fn push_padded(text: &mut String, number: i64, width: u32) {
    let mut unit = 10_i64.pow(width - 1);
    while number / unit > 9 {
        unit *= 10;
    }
    while unit > 0 {
        text.push(char::from(b'0' + (number / unit % 10) as u8));
        unit /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_from_1970_both_ways() {
        assert_eq!(parse_date("1970-01-01"), Some(0));
        assert_eq!(parse_date("2000-02-29"), Some(11_016));
        assert_eq!(parse_date("1900-02-29"), None);
        assert_eq!(parse_date("0001-01-01"), Some(-719_162));
        assert_eq!(parse_date("0001-12-31 BC"), Some(-719_163));
        assert_eq!(date_text(-719_163), "0001-12-31 BC");
        assert_eq!(parse_date("4714-11-24 BC").map(date_text).as_deref(), Some("4714-11-24 BC"));
        assert_eq!(parse_date("5874897-12-31").map(date_text).as_deref(), Some("5874897-12-31"));
        for days in (-1_000_000..3_000_000).step_by(997) {
            assert_eq!(parse_date(&date_text(days)), Some(days));
        }
    }

    #[test]
    fn agrees_with_a_calendar_library() {
        for days in (-700_000..2_900_000).step_by(769) {
            let date = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(days)).unwrap();
            assert_eq!(date_text(days), date.to_string());
        }
    }

    #[test]
    fn moments_are_read_in_every_spelling() {
        let moment = Some(1_767_323_045_123_000);
        for text in [
            "2026-01-02 03:04:05.123+00",
            "2026-01-02 03:04:05.123",
            "2026-01-02T03:04:05.123Z",
            "2026-01-02T03:04:05.123+0000",
            "2026-01-02T05:04:05.123+02:00",
            "2026-01-01 22:04:05.123-05",
            "2026-01-02 08:34:05.123+0530",
            "2026-01-02 03:23:37.123+00:19:32",
        ] {
            assert_eq!(parse_moment(text), moment, "{text}");
        }
        assert_eq!(moment_text(1_767_323_045_123_000), "2026-01-02 03:04:05.123+00");
        assert_eq!(moment_json(1_767_323_045_123_000).as_deref(), Some("2026-01-02T03:04:05.123+0000"));
        assert_eq!(moment_text(-1), "1969-12-31 23:59:59.999999+00");
        assert_eq!(parse_moment("2026-01-02"), Some(1_767_312_000_000_000));
        assert_eq!(parse_date("2026-01-02 23:30:00-05"), parse_date("2026-01-03"));
        assert_eq!(
            parse_moment("0044-03-15 12:00:00+00 BC").map(moment_text).as_deref(),
            Some("0044-03-15 12:00:00+00 BC")
        );
        assert_eq!(parse_moment("294276-12-31 23:59:59+00"), None, "beyond 64 bits of microseconds");
        for bad in [
            "infinity",
            "",
            "2026-13-01",
            "2026-02-30",
            "2026-1-2",
            "2026-01-02x",
            "2026-01-02 25:00:00",
            "2026-01-02 03:04:05+",
            "0000-01-01",
            "2026-01-02 03:04:05.",
            "2026-01-02 03:04:05+00:",
            "26-01-02",
        ] {
            assert_eq!(parse_moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_of_day() {
        assert_eq!(parse_time_of_day("10:15:00.000Z"), Some(36_900_000_000));
        assert_eq!(parse_time_of_day("10:15"), Some(36_900_000_000));
        assert_eq!(parse_time_of_day("10:15:00.5+02"), parse_time_of_day("08:15:00.5"));
        assert_eq!(parse_time_of_day("01:00:00+02"), parse_time_of_day("23:00:00"));
        assert_eq!(parse_time_of_day("24:00:00"), None);
        assert_eq!(time_text(36_900_000_000), "10:15:00");
        assert_eq!(time_text(36_900_120_000), "10:15:00.12");
        assert_eq!(time_json(36_900_000_000).as_deref(), Some("10:15:00.000Z"));
    }
}
