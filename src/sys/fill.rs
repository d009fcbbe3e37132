//! Huge pages that come with their contents: the kernel clears a page before it is written for the first time, unless it gets
//! what belongs there in the same call (`UFFDIO_COPY` of `userfaultfd`). Nobody waits for faults: every page of the range is
//! filled or populated before anything touches it.
//!
//! Constants and structures are those of `linux/userfaultfd.h`.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::OsError;

const API: u8 = 0xaa;
/// A touch of a page that is not there would be a SIGBUS, not a wait for ever.
const FEATURE_SIGBUS: u64 = 1 << 7;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const MODE_MISSING: u64 = 1;

/// Reads and writes a structure of this size.
const fn request(number: u8, bytes: usize) -> libc::Ioctl {
    let request = 3 << 30 | (bytes as u32) << 16 | (API as u32) << 8 | number as u32;
    request as libc::Ioctl
}

#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// The pages of a range that can be filled.
#[derive(Debug)]
pub struct Fill {
    fd: OwnedFd,
    start: usize,
    len: usize,
    /// A page of them.
    zeros: Vec<u8>,
}

impl Fill {
    /// For the pages of `page_bytes` below `bytes`; `None` where this kernel, or what confines this process, does not have it.
    /// Nothing changes before [`Fill::begin`].
    pub fn of(bytes: &mut [u8], page_bytes: usize) -> Option<Fill> {
        // Since Linux 5.11 anybody may have one that the kernel's own faults do not come to.
        const USER_MODE_ONLY: u32 = 1;
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
        // SAFETY: the descriptor stays in here, where it is used for ranges that the caller owns.
        let fd = unsafe { userfaultfd(flags) }.ok()?;
        let mut wanted =
            Handshake { api: u64::from(API), features: FEATURE_SIGBUS | FEATURE_MISSING_HUGETLBFS, ioctls: 0 };
        ioctl(&fd, request(0x3f, size_of::<Handshake>()), &mut wanted).ok()?;
        let address = bytes.as_mut_ptr().addr();
        let start = address / page_bytes * page_bytes;
        let len = (address + bytes.len()).next_multiple_of(page_bytes) - start;
        Some(Fill { fd, start, len, zeros: vec![0; page_bytes] })
    }

    /// From here on, until this is dropped, each page has to be filled or populated before it is touched; whether the kernel
    /// does that for this range.
    pub fn begin(&self) -> bool {
        let mut range = Register { start: self.start as u64, len: self.len as u64, mode: MODE_MISSING, ioctls: 0 };
        ioctl(&self.fd, request(0, size_of::<Register>()), &mut range).is_ok()
    }

    /// Brings the page that `places` lie in, in their order, with the contents of `page`, which has zeros where no place is.
    /// Where the page is there already the places are written.
    ///
    /// # Errors
    /// ENOMEM where there is no page.
    ///
    /// # Panics
    /// If the places lie in no one page of the range, or something else than zeros between them.
    pub fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<(), OsError> {
        let page_bytes = self.zeros.len();
        let Some(first) = places.first() else { return Ok(()) };
        let start = first.as_ptr().addr() / page_bytes * page_bytes;
        let mut next = 0;
        for place in &*places {
            let at = place.as_ptr().addr() - start;
            assert!(page[next..at].iter().all(|&byte| byte == 0), "a gap is not empty");
            next = at + place.len();
        }
        assert!(page.len() == page_bytes && page[next..].iter().all(|&byte| byte == 0), "places leave their page");
        if self.copy(start, page)? {
            return Ok(());
        }
        for place in places {
            let at = place.as_ptr().addr() - start;
            place.copy_from_slice(&page[at..][..place.len()]);
        }
        Ok(())
    }

    /// Brings the pages below `bytes` that are not there yet. Contents stay as they are.
    ///
    /// # Errors
    /// ENOMEM where there is no page.
    pub fn populate(&self, bytes: &mut [u8]) -> Result<(), OsError> {
        let (page_bytes, address) = (self.zeros.len(), bytes.as_mut_ptr().addr());
        for start in (address / page_bytes * page_bytes..address + bytes.len()).step_by(page_bytes) {
            self.copy(start, &self.zeros)?;
        }
        Ok(())
    }

    /// Whether the page at `start` was not there and is now, with these contents.
    fn copy(&self, start: usize, page: &[u8]) -> Result<bool, OsError> {
        assert!(start >= self.start && start + page.len() <= self.start + self.len, "a page outside of the range");
        loop {
            let (dst, src, len) = (start as u64, page.as_ptr().addr() as u64, page.len() as u64);
            let mut copy = Copy { dst, src, len, mode: 0, copied: 0 };
            match ioctl(&self.fd, request(3, size_of::<Copy>()), &mut copy) {
                Ok(()) => return Ok(true),
                Err(libc::EEXIST) => return Ok(false),
                Err(libc::EAGAIN | libc::EINTR) => {}
                Err(errno) => return Err(OsError { call: "ioctl(UFFDIO_COPY)", errno }),
            }
        }
    }
}

/// One request to a userfaultfd, or its errno.
fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> Result<(), i32> {
    // SAFETY: the request names the size of its structure, which `argument` is. It maps memory of zeros or of given contents at
    // addresses that had none; nothing that was there changes.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::Mapping;
    use crate::sys::page_size::BASE_PAGE_BYTES as PAGE;

    /// Pages that were never touched; small ones are filled as huge ones are.
    fn untouched(pages: usize) -> Mapping {
        let mapping = Mapping::ordinary(pages * PAGE).unwrap();
        mapping.advise_small();
        mapping
    }

    #[test]
    fn pages_come_with_their_contents_once() {
        let mut mapping = untouched(3);
        let bytes = mapping.bytes_mut();
        let Some(fill) = Fill::of(&mut bytes[..2 * PAGE + 5], PAGE).filter(Fill::begin) else {
            return eprintln!("SKIPPED: no userfaultfd");
        };
        let mut page: Vec<u8> = (0..PAGE).map(|i| (i % 251) as u8).collect();
        let (first, rest) = bytes.split_at_mut(PAGE);
        let (second, third) = rest.split_at_mut(PAGE);
        let (a, b) = first.split_at_mut(1000);
        fill.fill(&mut [a, b], &page).unwrap();
        assert!(*first == page);
        // One that is there is written, where the places are.
        fill.populate(&mut second[5..6]).unwrap();
        second[7] = 9;
        page[..100].fill(0);
        page[200..].fill(0);
        fill.fill(&mut [&mut second[100..200]], &page).unwrap();
        assert!(second[7] == 9 && second[100..200] == page[100..200] && second[200..].iter().all(|&byte| byte == 0));
        fill.populate(&mut third[..5]).unwrap();
        assert!(third.iter().all(|&byte| byte == 0));
        third[PAGE - 1] = 1;
        fill.populate(&mut third[3..]).unwrap();
        assert_eq!(third[PAGE - 1], 1);
    }

    #[test]
    fn contents_outside_of_their_places_are_refused() {
        let mut mapping = untouched(2);
        let bytes = mapping.bytes_mut();
        let Some(fill) = Fill::of(bytes, PAGE).filter(Fill::begin) else {
            return eprintln!("SKIPPED: no userfaultfd");
        };
        let (first, second) = bytes.split_at_mut(PAGE);
        let mut page = vec![0; PAGE];
        page[50] = 1;
        let is_refused = |place: &mut [u8]| {
            let filled = std::panic::AssertUnwindSafe(|| fill.fill(&mut [place], &page));
            std::panic::catch_unwind(filled).is_err()
        };
        assert!(is_refused(&mut first[10..50]) && is_refused(&mut second[60..70]));
        drop(fill);
        assert!(mapping.bytes().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn pages_outside_of_the_range_are_refused() {
        let mut mapping = untouched(2);
        let bytes = mapping.bytes_mut();
        let Some(fill) = Fill::of(&mut bytes[..PAGE], PAGE).filter(Fill::begin) else {
            return eprintln!("SKIPPED: no userfaultfd");
        };
        let outside = std::panic::AssertUnwindSafe(|| fill.populate(&mut bytes[PAGE..]));
        assert!(std::panic::catch_unwind(outside).is_err());
    }
}
