//! Times in `allowed_signers`: `YYYYMMDD[HHMM[SS]][Z]`, also with `UTC` at the end, in either case; in seconds since
//! 1970.
//!
//! Without `Z` OpenSSH means the local time of whoever checks. This room knows no time zones, so such a time is read
//! in the zone that trusts less: a validity begins in the last place on earth, and ends in the first.

use crate::calendar::{date, days_since_1970};

/// Local time is never behind UTC by more.
const WEST_MAX_SECONDS: u64 = 12 * 3600;
/// Local time is never ahead of UTC by more.
const EAST_MAX_SECONDS: u64 = 14 * 3600;

/// The first second of a validity.
pub(super) fn begin(text: &str) -> Option<u64> {
    let (seconds, is_utc) = parse(text)?;
    Some(if is_utc { seconds } else { seconds + WEST_MAX_SECONDS })
}

/// The last second of a validity.
pub(super) fn end(text: &str) -> Option<u64> {
    let (seconds, is_utc) = parse(text)?;
    Some(if is_utc { seconds } else { seconds.saturating_sub(EAST_MAX_SECONDS) })
}

/// The seconds since 1970 of the written time, and whether it says that it is UTC.
fn parse(text: &str) -> Option<(u64, bool)> {
    let is_utc = |end: &str| end.eq_ignore_ascii_case("Z") || end.eq_ignore_ascii_case("UTC");
    let digits_end = text.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(text.len());
    let (digits, end) = text.split_at(digits_end);
    if !end.is_empty() && !is_utc(end) {
        return None;
    }
    if ![8, 12, 14].contains(&digits.len()) {
        return None;
    }
    let field =
        |from: usize, to: usize| digits.get(from..to).map_or(Some(0), |part| part.parse::<i64>().ok());
    let (year, month, day) = (field(0, 4)?, field(4, 6)?, field(6, 8)?);
    let (hour, minute, second) = (field(8, 10)?, field(10, 12)?, field(12, 14)?);
    let days = days_since_1970(year, month, day);
    let is_a_time = date(days) == (year, month, day) && hour < 24 && minute < 60 && second < 60;
    let seconds = u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()?;
    // The first second of 1970 is no time to OpenSSH.
    (is_a_time && seconds > 0).then_some((seconds, !end.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From `date -u -d ... +%s`.
        assert_eq!(begin("19700101000001Z"), Some(1));
        assert_eq!(begin("20000229Z"), Some(951_782_400));
        assert_eq!(end("20261124235959Z"), Some(1_795_564_799));
        assert_eq!(end("202611242359UTC"), Some(1_795_564_740));
        assert_eq!(end("20261124235959z"), end("20261124235959utc"));
        assert_eq!(begin("21000301Z"), Some(4_107_542_400));
    }

    #[test]
    fn a_time_without_a_zone_is_read_so_as_to_trust_less() {
        assert_eq!(begin("20000229"), Some(951_782_400 + 12 * 3600));
        assert_eq!(end("20000229"), Some(951_782_400 - 14 * 3600));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026",
            "20261301",
            "20260001",
            "20260100",
            "19691231Z",
            "20260230",
            "20260101240000Z",
            "2026010é",
            "+2026011",
            "20260101ZZ",
            "19700101Z",
        ] {
            assert_eq!(begin(text), None, "{text}");
        }
    }
}
