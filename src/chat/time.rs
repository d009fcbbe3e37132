//! Dates for templates that ask for them.

/// A point in time as templates see it: UTC, with C's `strftime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970.
    pub(super) unix: u64,
    year: u64,
    /// 0 to 11.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// Days since 1 January.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    second_of_day: u64,
}

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
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Time {
    /// From seconds since 1970 (Gregorian calendar from days after H. Hinnant's `civil_from_days`).
    pub fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Days since 1 March 0000; eras of 400 years are 146,097 days.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let month = (march_month + 2) % 12;
        let year = era * 400 + year_of_era + u64::from(month < 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        Time {
            unix: seconds,
            year,
            month,
            day: from_march - (153 * march_month + 2) / 5 + 1,
            // 1 March is day 59 of a common year; January and February are the last 306 days on.
            day_of_year: if month < 2 { from_march - 306 } else { from_march + 59 + u64::from(leap) },
            weekday: (days + 4) % 7,
            second_of_day: seconds % 86_400,
        }
    }

    /// Now, by the clock of this box.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Time::from_unix(since.as_secs())
    }

    /// `strftime` in the C locale; `-` before a letter leaves leading zeros out. A letter it does not know stays.
    pub fn format(&self, format: &str) -> String {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (month, weekday) = (MONTHS[self.month as usize], WEEKDAYS[self.weekday as usize]);
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut letter = rest.next();
            let plain = letter == Some('-');
            if plain {
                letter = rest.next();
            }
            let number =
                |value: u64, digits: usize| if plain { value.to_string() } else { format!("{value:0digits$}") };
            let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
            out += &match letter {
                Some('Y') => self.year.to_string(),
                Some('y') => number(self.year % 100, 2),
                Some('m') => number(self.month + 1, 2),
                Some('d') => number(self.day, 2),
                Some('e') => format!("{:2}", self.day),
                Some('j') => number(self.day_of_year + 1, 3),
                Some('H') => number(hour, 2),
                Some('I') => number(twelve, 2),
                Some('M') => number(minute, 2),
                Some('S') => number(second, 2),
                Some('f') => "000000".to_owned(),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                Some('B') => month.to_owned(),
                Some('b' | 'h') => month[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('w') => self.weekday.to_string(),
                Some('u') => (if self.weekday == 0 { 7 } else { self.weekday }).to_string(),
                Some('F') => self.format("%Y-%m-%d"),
                Some('T') => self.format("%H:%M:%S"),
                Some('R') => self.format("%H:%M"),
                Some('D' | 'x') => self.format("%m/%d/%y"),
                Some('X') => self.format("%H:%M:%S"),
                Some('c') => self.format("%a %b %e %H:%M:%S %Y"),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                Some('Z' | 'z') => String::new(),
                Some('%') => "%".to_owned(),
                Some(other) => format!("%{other}"),
                None => "%".to_owned(),
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(Time::from_unix(0).format("%d %b %Y %a %j"), "01 Jan 1970 Thu 001");
        assert_eq!(Time::from_unix(951_825_599).format("%F %T %A %j"), "2000-02-29 11:59:59 Tuesday 060");
        assert_eq!(Time::from_unix(1_795_438_800).format("%B %-d, %Y, %I:%M %p"), "November 23, 2026, 01:00 PM");
        assert_eq!(Time::from_unix(1_798_761_599).format("%e.%-m.%y %j %% %q %"), "31.12.26 365 % %q %");
    }
}
