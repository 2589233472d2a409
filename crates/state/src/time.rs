//! Points in time as RFC 3339 text with nanoseconds, in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Length of the text: `2016-10-06T00:17:09.669794202Z`.
pub const TEXT_LEN: usize = 30;

/// Length of the text with an offset from UTC: `2016-10-06T02:17:09.669794202+02:00`.
pub const LOCAL_LEN: usize = 35;

/// A point in time as text, for records and logs: `2016-10-06T00:17:09.669794202Z`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schemars",
    derive(schemars::JsonSchema),
    schemars(extend("format" = "date-time"))
)]
#[serde(transparent)]
pub struct Timestamp(String);

impl Timestamp {
    /// Returns the current time of the system's clock.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not a point in time, as in `2016-10-06T00:17:09.669794202Z`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a time in UTC with nanoseconds (RFC 3339): {0:?}")]
pub struct InvalidTimestamp(String);

/// Times before 1970 count as 1970, and years end at 9999.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(String::from_utf8_lossy(&format(time)).into_owned())
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        match parse(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidTimestamp(text.chars().take(64).collect())),
        }
    }
}

/// Fails if the timestamp was read from a damaged file.
impl TryFrom<&Timestamp> for SystemTime {
    type Error = InvalidTimestamp;

    fn try_from(time: &Timestamp) -> Result<Self, InvalidTimestamp> {
        parse(&time.0).ok_or_else(|| InvalidTimestamp(time.0.chars().take(64).collect()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Formats without allocating: the shim stamps log lines with this. Times before 1970 count as
/// 1970, and years end at 9999.
#[must_use]
pub fn format(time: SystemTime) -> [u8; TEXT_LEN] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], seconds / 3600);
    digits(&mut text[14..16], seconds / 60 % 60);
    digits(&mut text[17..19], seconds % 60);
    digits(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

/// As [`format()`], in local time, which is so many seconds ahead of UTC.
#[must_use]
pub fn format_local(time: SystemTime, offset: i32) -> [u8; LOCAL_LEN] {
    let minutes = offset / 60;
    let shift = Duration::from_secs(u64::from(minutes.unsigned_abs()) * 60);
    let local = if minutes < 0 { time.checked_sub(shift) } else { time.checked_add(shift) };
    let mut text = *b"0000-00-00T00:00:00.000000000+00:00";
    text[..TEXT_LEN].copy_from_slice(&format(local.unwrap_or(UNIX_EPOCH)));
    text[TEXT_LEN - 1] = if minutes < 0 { b'-' } else { b'+' };
    let minutes = u64::from(minutes.unsigned_abs());
    digits(&mut text[TEXT_LEN..TEXT_LEN + 2], minutes / 60);
    digits(&mut text[TEXT_LEN + 3..], minutes % 60);
    text
}

/// The inverse of [`format`]: only what that can write is a time.
fn parse(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let nanos = u32::try_from(number(20..29)?).ok()?;
    // From March on, as in `civil`.
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let day = (365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day)
        .checked_sub(DAYS_BEFORE_1970 + 1)?;
    let seconds = ((day * 24 + hour) * 60 + minute) * 60 + second;
    let time = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))?;
    // This refuses what is out of its range, and signs and blanks.
    (format(time) == *text.as_bytes()).then_some(time)
}

const DAYS_BEFORE_1970: u64 = 719_468; // from 0000-03-01

/// The proleptic Gregorian date of a day counted from 1970-01-01. The year is counted from March,
/// so that the leap day comes last and a month's first day is a linear function of its number.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_BEFORE_1970;
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (era * 400 + year, month, day)
}

fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10).to_le_bytes()[0];
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_comes_back_from_its_text(seconds in 0..253_402_300_800_u64, nanos in 0..1_000_000_000_u32) {
            let time = UNIX_EPOCH + Duration::new(seconds, nanos);
            let stamp = Timestamp::from(time);
            prop_assert_eq!(SystemTime::try_from(&stamp).unwrap(), time);
            prop_assert_eq!(stamp.as_str().parse::<Timestamp>().unwrap(), stamp);
        }

        #[test]
        fn what_is_a_time_is_written_in_one_way(text in "[0-9+ ]{4}-[0-9+]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9+]{9}Z") {
            if let Ok(stamp) = text.parse::<Timestamp>() {
                let time = SystemTime::try_from(&stamp).unwrap();
                prop_assert_eq!(Timestamp::from(time), stamp);
            }
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "2026-02-29T00:00:00.000000000Z",
            "2026-13-01T00:00:00.000000000Z",
            "2026-01-01T24:00:00.000000000Z",
            "1969-12-31T23:59:59.999999999Z",
            "0000-01-01T00:00:00.000000000Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01t00:00:00.000000000Z",
            "2026-01-01T00:00:00.000000000Z ",
            "2026-01-0\u{664}T00:00:00.00000000Z",
        ] {
            let error = text.parse::<Timestamp>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
            assert!(SystemTime::try_from(&Timestamp(text.to_owned())).is_err(), "{text}");
        }
    }

    fn text_of(time: SystemTime) -> String {
        String::from_utf8(format(time).to_vec()).unwrap()
    }

    fn text(seconds: u64, nanos: u32) -> String {
        text_of(UNIX_EPOCH + Duration::new(seconds, nanos))
    }

    #[test]
    fn known_moments() {
        // Each checked with `date -u -d @N`.
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_475_713_029, 669_794_202), "2016-10-06T00:17:09.669794202Z");
        assert_eq!(text(1_709_251_199, 999_999_999), "2024-02-29T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn local_time_says_how_far_it_is_ahead_of_utc() {
        let local = |offset| {
            let time = UNIX_EPOCH + Duration::new(951_782_400, 1);
            String::from_utf8(format_local(time, offset).to_vec()).unwrap()
        };
        assert_eq!(local(0), "2000-02-29T00:00:00.000000001+00:00");
        assert_eq!(local(19_800), "2000-02-29T05:30:00.000000001+05:30");
        assert_eq!(local(-12_600), "2000-02-28T20:30:00.000000001-03:30");
    }

    #[test]
    fn a_day_follows_the_day_before_it() {
        let is_leap = |year: u64| {
            let of = |number| year.is_multiple_of(number);
            of(4) && (!of(100) || of(400))
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..160_000 {
            assert_eq!(civil(number), (year, month, day), "day {number}");
            let length = match month {
                2 if is_leap(year) => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert!(year > 2400, "neither 2100 nor 2400 was among them");
    }

    #[test]
    fn what_is_before_1970_counts_as_1970() {
        let before = UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(format(before), format(UNIX_EPOCH));
    }

    #[test]
    fn a_timestamp_is_the_time_as_text_between_quotation_marks() {
        let before = text_of(SystemTime::now());
        let now = Timestamp::now();
        let after = text_of(SystemTime::now());
        assert!((before.as_str()..=after.as_str()).contains(&now.as_str()), "{now}");
        assert_eq!(now.to_string(), now.as_str());
        let json = serde_json::to_string(&now).unwrap();
        assert_eq!(json, format!("\"{now}\""));
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), now);
    }
}
