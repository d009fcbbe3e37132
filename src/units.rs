//! Sizes as an operator reads them.

use std::fmt;

/// One KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// One GiB in bytes.
pub const GIB: u64 = 1 << 30;

/// Displays a byte count with a binary unit and three significant digits, e.g. `4.70 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let text = match self.0 {
            b if b >= GIB => format_args!("{:.2} GiB", bytes / GIB as f64).to_string(),
            b if b >= MIB => format_args!("{:.1} MiB", bytes / MIB as f64).to_string(),
            b if b >= KIB => format_args!("{:.1} KiB", bytes / KIB as f64).to_string(),
            b => format_args!("{b} B").to_string(),
        };
        f.pad(&text)
    }
}

/// Rounds `value` up to a multiple of `unit`; `None` on overflow.
///
/// # Panics
/// If `unit` is zero.
pub const fn round_up(value: u64, unit: u64) -> Option<u64> {
    match value % unit {
        0 => Some(value),
        rest => value.checked_add(unit - rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_picks_the_unit() {
        assert_eq!(Human(0).to_string(), "0 B");
        assert_eq!(Human(1023).to_string(), "1023 B");
        assert_eq!(Human(1536).to_string(), "1.5 KiB");
        assert_eq!(Human(5 * GIB + GIB / 2).to_string(), "5.50 GiB");
    }

    #[test]
    fn round_up_at_the_edges() {
        assert_eq!(round_up(0, 32), Some(0));
        assert_eq!(round_up(1, 32), Some(32));
        assert_eq!(round_up(32, 32), Some(32));
        assert_eq!(round_up(u64::MAX, 2), None);
    }
}
