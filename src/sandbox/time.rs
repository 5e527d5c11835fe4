//! Dates, datetimes and times as Salesforce reads and writes them.
//!
//! A date is a count of days since 1970-01-01, a datetime a count of milliseconds, a time the milliseconds of a day; all
//! in UTC.

/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar.
pub(crate) fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    // Years are counted from March, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a count of days since 1970-01-01.
pub(crate) fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// How many days `month` of `year` has.
pub(crate) fn days_in_month(year: i64, month: u32) -> u32 {
    let next = if month == 12 { days_from_civil(year + 1, 1, 1) } else { days_from_civil(year, month + 1, 1) };
    (next - days_from_civil(year, month, 1)) as u32
}

/// `yyyy-MM-dd`.
pub(crate) fn format_date(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `HH:mm:ss.SSSZ`.
pub(crate) fn format_time(ms: i64) -> String {
    format!("{}Z", clock_text(ms))
}

/// `yyyy-MM-ddTHH:mm:ss.SSS+0000`.
pub(crate) fn format_datetime(ms: i64) -> String {
    format!("{}T{}+0000", format_date(ms.div_euclid(DAY_MS)), clock_text(ms.rem_euclid(DAY_MS)))
}

/// `EEE, dd MMM yyyy HH:mm:ss GMT`, as HTTP headers have it.
pub(crate) fn format_http(ms: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = ms.div_euclid(DAY_MS);
    let (year, month, day) = civil_from_days(days);
    let clock = clock_text(ms.rem_euclid(DAY_MS));
    let name = DAYS[days.rem_euclid(7) as usize];
    let month = MONTHS[(month as usize - 1) % 12];
    format!("{name}, {day:02} {month} {year:04} {} GMT", clock.get(..8).unwrap_or_default())
}

fn clock_text(ms: i64) -> String {
    let seconds = ms / 1000;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, ms % 1000)
}

/// Reads `yyyy-MM-dd`.
pub(crate) fn parse_date(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    if parts.next().is_some() || !(1..=12).contains(&month) || day == 0 || day > days_in_month(i64::from(year), month) {
        return None;
    }
    Some(days_from_civil(i64::from(year), month, day))
}

/// Reads an ISO datetime with `Z`, `+hh:mm` or `+hhmm`, a fraction being optional; a date alone is its midnight.
pub(crate) fn parse_datetime(text: &str) -> Option<i64> {
    let Some((date, clock)) = text.split_once(['T', ' ']) else {
        return parse_date(text).map(|days| days * DAY_MS);
    };
    let days = parse_date(date)?;
    let (clock, offset_minutes) = split_offset(clock)?;
    Some(days * DAY_MS + parse_clock(clock)? - offset_minutes * 60_000)
}

/// Reads `HH:mm[:ss[.SSS]]` with an optional `Z` into the milliseconds of the day.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    parse_clock(text.strip_suffix(['Z', 'z']).unwrap_or(text))
}

/// Reads an HTTP date.
pub(crate) fn parse_http(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_millisecond)
}

fn split_offset(clock: &str) -> Option<(&str, i64)> {
    if let Some(clock) = clock.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let at = clock.rfind(['+', '-'])?;
    let (time, offset) = (clock.get(..at)?, clock.get(at + 1..)?);
    let sign = if clock.as_bytes().get(at) == Some(&b'-') { -1 } else { 1 };
    let (hours, minutes) = match offset.split_once(':') {
        Some(pair) => pair,
        None if offset.len() == 4 && offset.is_ascii() => offset.split_at(2),
        None => return None,
    };
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then(|| (time, sign * i64::from(hours * 60 + minutes)))
}

fn parse_clock(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':');
    let (hours, minutes) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let seconds = parts.next().map_or(Some(0), |s| digits(s, 2))?;
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let mut ms = 0;
    for place in 0..3 {
        let digit =
            fraction.as_bytes().get(place).map_or(Some(0), |b| b.is_ascii_digit().then(|| i64::from(b - b'0')))?;
        ms = ms * 10 + digit;
    }
    fraction.bytes().all(|b| b.is_ascii_digit()).then(|| i64::from(hours * 3600 + minutes * 60 + seconds) * 1000 + ms)
}

fn digits(text: &str, width: usize) -> Option<u32> {
    (text.len() == width && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_round() {
        for days in (-200_000..800_000).step_by(997) {
            assert_eq!(parse_date(&format_date(days)), Some(days));
        }
        assert_eq!(parse_date("1970-01-01"), Some(0));
        assert_eq!(parse_date("2000-02-29"), Some(11016));
        assert_eq!(parse_date("2023-02-29"), None);
        assert_eq!(parse_date("2023-2-01"), None);
    }

    #[test]
    fn datetimes_are_read_in_every_offset_form() {
        let ms = parse_datetime("2013-05-07T22:07:19.000+0000").unwrap();
        assert_eq!(format_datetime(ms), "2013-05-07T22:07:19.000+0000");
        assert_eq!(parse_datetime("2013-05-07T22:07:19Z"), Some(ms));
        assert_eq!(parse_datetime("2013-05-08T00:07:19+02:00"), Some(ms));
        assert_eq!(parse_datetime("2013-05-07T22:07:19.5Z"), Some(ms + 500));
        assert_eq!(parse_datetime("2013-05-07"), Some(ms.div_euclid(DAY_MS) * DAY_MS));
        assert_eq!(parse_datetime("2013-05-07T22:07"), None);
        assert_eq!(parse_datetime("yesterday"), None);
    }

    #[test]
    fn times_and_http_dates() {
        assert_eq!(parse_time("10:15:00.000Z").map(format_time).as_deref(), Some("10:15:00.000Z"));
        let ms = parse_datetime("2026-11-21T08:49:37Z").unwrap();
        assert_eq!(format_http(ms), "Sat, 21 Nov 2026 08:49:37 GMT");
        assert_eq!(parse_http(&format_http(ms)), Some(ms));
    }
}
