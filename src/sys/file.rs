//! Small text files of `/proc` and `/sys`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

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

/// Why a lock was not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockError {
    /// Another process has it.
    Busy,
    /// A signal came while it was waited for.
    Interrupted,
}

/// Locks a file for this process, against all that ask for the lock too, until what is returned is dropped, or another
/// descriptor of this file in this process. `None` where this process cannot write to it, or where there are no locks.
///
/// # Errors
/// [`LockError::Busy`] unless `wait` is set, then [`LockError::Interrupted`].
pub fn lock(path: impl AsRef<Path>, wait: bool) -> Result<Option<File>, LockError> {
    let Ok(file) = File::options().write(true).open(path) else { return Ok(None) };
    let operation = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
    match fcntl_lock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(LockError::Busy),
        Err(Errno::INTR) => Err(LockError::Interrupted),
        Err(_) => Ok(None),
    }
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

/// What the kernel says about the pages behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAccount {
    /// The page of the mapping (KernelPageSize): 2 MiB or 1 GiB for explicit huge pages.
    pub page_bytes: u64,
    /// Bytes of the mapping.
    pub mapped_bytes: u64,
    /// Of these in transparent huge pages (AnonHugePages).
    pub transparent_bytes: u64,
}

/// The kernel's account of the mapping around `address` in this process, from `/proc/self/smaps`.
pub fn page_account(address: usize) -> Option<PageAccount> {
    page_account_in(&std::fs::read_to_string("/proc/self/smaps").ok()?, address)
}

fn page_account_in(smaps: &str, address: usize) -> Option<PageAccount> {
    // A mapping is a line `from-to ...` in hexadecimal, then its fields up to the next such line.
    let bounds = |line: &str| -> Option<(usize, usize)> {
        let (from, to) = line.split_ascii_whitespace().next()?.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    };
    let mut lines = smaps.lines();
    lines.find(|line| bounds(line).is_some_and(|(from, to)| (from..to).contains(&address)))?;
    let fields: Vec<&str> = lines.take_while(|line| bounds(line).is_none()).collect();
    let field = |key| fields.iter().find_map(|line| kib_field(line, key));
    Some(PageAccount {
        page_bytes: field("KernelPageSize")?,
        mapped_bytes: field("Size")?,
        transparent_bytes: field("AnonHugePages").unwrap_or(0),
    })
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
    fn the_mapping_around_an_address_is_found() {
        let smaps = "1000-3000 rw-p 0 00:00 0 [heap]\nSize: 8 kB\nKernelPageSize: 4 kB\nAnonHugePages: 0 kB\n\
                     3000-9000 r--p 0 00:00 0 /x-y\nSize: 24 kB\nKernelPageSize: 2048 kB\nVmFlags: rd-wr\n";
        let account = |address| page_account_in(smaps, address);
        let page = |page_bytes, mapped_bytes| Some(PageAccount { page_bytes, mapped_bytes, transparent_bytes: 0 });
        assert_eq!((account(0x1000), account(0x2fff)), (page(4096, 8192), page(4096, 8192)));
        assert_eq!((account(0x3000), account(0x9000), account(0)), (page(2 << 20, 24 << 10), None, None));
        let here = [0u8; 64];
        assert_eq!(page_account(here.as_ptr().addr()).unwrap().page_bytes, 4096);
    }

    #[test]
    fn own_memory_is_known() {
        assert!(resident_bytes().unwrap() > 0);
        assert!(resident_peak_bytes().unwrap() >= resident_bytes().unwrap() / 2);
        assert_eq!(text("/nonexistent"), None);
    }
}
