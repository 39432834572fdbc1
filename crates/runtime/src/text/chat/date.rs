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

/// Conversions that stand for several, in the C locale.
const COMPOSED: [(char, &str); 9] = [
    ('D', "%m/%d/%y"),
    ('x', "%m/%d/%y"),
    ('F', "%Y-%m-%d"),
    ('T', "%H:%M:%S"),
    ('X', "%H:%M:%S"),
    ('R', "%H:%M"),
    ('r', "%I:%M:%S %p"),
    ('c', "%a %b %e %H:%M:%S %Y"),
    ('h', "%b"),
];

/// `format` with the time `seconds` after 1970 began, in UTC.
///
/// # Errors
/// A conversion that no known template uses.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let moment = Moment::new(seconds);
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
        text += &moment.converted(conversion.unwrap_or(' '), bare)?;
    }
    Ok(text)
}

/// A second of the calendar.
struct Moment {
    seconds: u64,
    year: u64,
    month: u64,
    day: u64,
    /// From 0.
    day_of_year: u64,
    /// Of the day.
    second: u64,
}

impl Moment {
    fn new(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let (year, month, day) = civil(days);
        let first = |back: &u64| civil(days - back) == (year, 1, 1);
        let day_of_year = (0..=days.min(365)).find(first).unwrap_or_default();
        Self { seconds, year, month, day, day_of_year, second: seconds % 86_400 }
    }

    fn converted(&self, conversion: char, bare: bool) -> Result<String, String> {
        if let Some((_, format)) = COMPOSED.iter().find(|(known, _)| *known == conversion) {
            return strftime(format, self.seconds);
        }
        if let Some((number, digits)) = self.number(conversion) {
            let digits = if bare { 1 } else { digits };
            return Ok(format!("{number:0digits$}"));
        }
        self.word(conversion)
            .ok_or_else(|| format!("strftime_now: `%{conversion}` is not known"))
    }

    /// What a conversion says in digits, and how many there are at least.
    const fn number(&self, conversion: char) -> Option<(u64, usize)> {
        // Days since Sunday.
        let weekday = (self.seconds / 86_400 + 4) % 7;
        let hour = self.second / 3600;
        Some(match conversion {
            'Y' => (self.year, 4),
            'C' => (self.year / 100, 2),
            'y' => (self.year % 100, 2),
            'm' => (self.month, 2),
            'd' => (self.day, 2),
            'j' => (self.day_of_year + 1, 3),
            'H' => (hour, 2),
            'I' => ((hour + 11) % 12 + 1, 2),
            'M' => (self.second / 60 % 60, 2),
            'S' => (self.second % 60, 2),
            'U' => ((self.day_of_year + 7 - weekday) / 7, 2),
            'W' => ((self.day_of_year + 7 - (weekday + 6) % 7) / 7, 2),
            'w' => (weekday, 1),
            'u' => ((weekday + 6) % 7 + 1, 1),
            's' => (self.seconds, 1),
            _ => return None,
        })
    }

    fn word(&self, conversion: char) -> Option<String> {
        let month = MONTHS[self.month as usize - 1];
        let weekday = WEEKDAYS[(self.seconds / 86_400 % 7) as usize];
        let half = if self.second < 43_200 { "AM" } else { "PM" };
        Some(match conversion {
            'B' => month.to_owned(),
            'b' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'e' => format!("{:2}", self.day),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            // Of a time that is in no zone.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
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
