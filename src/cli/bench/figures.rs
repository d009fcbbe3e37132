//! What measurements share: threads, figures of several rounds, lines of a report.

use std::fmt;
use std::str::FromStr;
use std::thread::{Scope, ScopedJoinHandle};

use serde_json::{Value, json};

use super::super::args::Bench;
use super::super::common::out;
use crate::error::{Error, Result};

/// Starts a thread of a measurement.
pub fn thread<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().spawn_scoped(scope, work).map_err(Error::thread)
}

/// Prints a line of the table, which `--json` leaves out.
pub fn say(args: &Bench, line: &str) -> Result<()> {
    if args.json { Ok(()) } else { out(line) }
}

/// A comma list as an option takes it.
pub fn list<T: FromStr>(option: &str, text: &str) -> Result<Vec<T>>
where
    T::Err: fmt::Display,
{
    let item =
        |item: &str| item.trim().parse::<T>().map_err(|e| Error::usage(format!("{option} {text}: {item:?}: {e}")));
    text.split(',').map(item).collect()
}

/// Median, least and greatest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// # Panics
    /// If there are no figures.
    pub fn of(figures: &[f64]) -> Spread {
        let mut figures = figures.to_vec();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = match figures.len() % 2 {
            0 => (figures[middle - 1] + figures[middle]) / 2.0,
            _ => figures[middle],
        };
        Spread { median, min: figures[0], max: figures[figures.len() - 1] }
    }

    pub fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        write!(f, "{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(format!("{:.0}", Spread::of(&[7.0, 9.0])), "8 (7-9)");
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(list::<u32>("-p", "128, 512").unwrap(), [128, 512]);
        for bad in ["", "1,", "a", "-1", "1;2"] {
            assert!(list::<u32>("-p", bad).unwrap_err().to_string().contains("-p "), "{bad}");
        }
    }
}
