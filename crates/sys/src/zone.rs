//! The time zone of this machine: `/etc/localtime`, or what `TZ` says (tzset(3)).

use std::sync::Once;

/// How many seconds local time is ahead of UTC at a moment, in seconds since 1970. 0 where that can't be told.
#[must_use]
pub fn offset(seconds: i64) -> i32 {
    unsafe extern "C" {
        fn tzset();
    }
    static READ: Once = Once::new();
    // SAFETY: it reads `TZ` and a file. localtime_r need not do so itself, and no thread of ours changes `TZ`.
    READ.call_once(|| unsafe { tzset() });
    let time: libc::time_t = seconds;
    // SAFETY: tm is plain data for which all zero bytes are a valid value.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live values of their types.
    let found = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    if found.is_null() { 0 } else { i32::try_from(local.tm_gmtoff).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The zone is a process's, so this has one of its own.
    #[test]
    fn the_offset_is_that_of_the_zone_at_that_moment() {
        // 2026-01-01 and 2026-07-01.
        let moments = [1_767_225_600, 1_782_864_000];
        if let Ok(expected) = std::env::var("HOLDFAST_TEST_OFFSETS") {
            assert_eq!(format!("{:?}", moments.map(offset)), expected);
            return;
        }
        // Rules in the variable itself, so that no database is needed (tzset(3)).
        for (zone, expected) in [
            ("UTC0", "[0, 0]"),
            ("CET-1CEST,M3.5.0,M10.5.0/3", "[3600, 7200]"),
            ("NST3:30", "[-12600, -12600]"),
        ] {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "zone::tests::the_offset_is_that_of_the_zone_at_that_moment"])
                .env("TZ", zone)
                .env("HOLDFAST_TEST_OFFSETS", expected)
                .status();
            assert!(status.unwrap().success(), "{zone}");
        }
    }
}
