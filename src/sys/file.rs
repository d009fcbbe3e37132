//! Small text files of `/proc` and `/sys`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest text taken from one file; of a longer one (`/proc/cpuinfo` of a large box) only the beginning is read.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// The text of a small kernel file without trailing white space, or `None` where it is absent or unreadable.
pub fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.truncate(text.trim_end().len());
    Some(text)
}

/// The decimal number a small kernel file holds.
pub fn number(path: impl AsRef<Path>) -> Option<u64> {
    text(path)?.parse().ok()
}

/// Looks up `key` in `Key:   value kB` lines as of `/proc/meminfo` and `/proc/self/status`; the answer is in bytes.
pub fn kib_field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(key))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Resident bytes of this process in ordinary pages (VmRSS; huge pages are not counted there).
pub fn resident_bytes() -> Option<u64> {
    kib_field(&text("/proc/self/status")?, "VmRSS")
}

/// Peak of [`resident_bytes`] (VmHWM).
pub fn resident_peak_bytes() -> Option<u64> {
    kib_field(&text("/proc/self/status")?, "VmHWM")
}

/// Bytes of this process in explicit huge pages (HugetlbPages).
pub fn hugetlb_bytes() -> Option<u64> {
    kib_field(&text("/proc/self/status")?, "HugetlbPages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        let text = "HugePages_Total:   3\nMemTotal:  10 kB\nMemTotalX: 20 kB\nBad: x kB";
        assert_eq!(kib_field(text, "MemTotal"), Some(10 << 10));
        assert_eq!(kib_field(text, "Mem"), None);
        assert_eq!(kib_field(text, "Bad"), None);
    }

    #[test]
    fn own_memory_is_known() {
        assert!(resident_bytes().unwrap() > 0);
        assert!(resident_peak_bytes().unwrap() >= resident_bytes().unwrap() / 2);
        assert_eq!(text("/nonexistent"), None);
    }
}
