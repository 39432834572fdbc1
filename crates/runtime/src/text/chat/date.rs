//! A date as Python's `strftime` writes it.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// The first of January 1970 was the first of these.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `format` with the time `seconds` after 1970 began, in UTC.
///
/// # Errors
/// A conversion that no known template uses.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let conversion = rest.next();
        // A hyphen leaves out leading zeros.
        let (conversion, bare) =
            if conversion == Some('-') { (rest.next(), true) } else { (conversion, false) };
        let two = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
        text += &match conversion {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('B') => name.to_owned(),
            Some('b') => name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => two(second / 3600),
            Some('M') => two(second / 60 % 60),
            Some('S') => two(second % 60),
            Some('%') => "%".to_owned(),
            other => return Err(format!("strftime_now: `%{}` is not known", other.unwrap_or(' '))),
        };
    }
    Ok(text)
}

/// Year, month and day, from 1, of a day after 1970 began. Years are counted from March, so that a
/// leap day ends one; 400 of them have 146 097 days. Source: H. Hinnant, `civil_from_days`.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + (month <= 2) as u64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| strftime("%a %d %b %Y, %A %-d %B %y %H:%M:%S %%", seconds).unwrap();
        assert_eq!(at(0), "Thu 01 Jan 1970, Thursday 1 January 70 00:00:00 %");
        assert_eq!(at(1_709_208_000), "Thu 29 Feb 2024, Thursday 29 February 24 12:00:00 %");
        assert_eq!(at(4_107_542_399), "Sun 28 Feb 2100, Sunday 28 February 00 23:59:59 %");
        assert_eq!(strftime("%Q", 0).unwrap_err(), "strftime_now: `%Q` is not known");
    }
}
