//! Dates of the Gregorian calendar, which holds for all time here, as days since 1970.

/// The days from 1970-01-01 to the date of this year, month and day. What is no date has the number of some other one.
pub fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Counted in years that begin in March, so that the odd day comes last; 400 of them have 146,097 days.
    let year = year - i64::from(month <= 2);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The year, month and day that are so many days after 1970-01-01.
pub fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_four_hundred_years_has_its_date() {
        let mut expected = (1970, 1, 1);
        for day in 0..=146_097 {
            assert_eq!(date(day), expected);
            let (year, month, of_month) = expected;
            assert_eq!(days_since_1970(year, month, of_month), day);
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i64::from(is_leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, of_month) {
                (12, 31) => (year + 1, 1, 1),
                (month, day) if day == length => (year, month + 1, 1),
                (month, day) => (year, month, day + 1),
            };
        }
        assert_eq!((date(-1), days_since_1970(1969, 12, 31)), ((1969, 12, 31), -1));
    }
}
