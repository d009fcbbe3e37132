//! Anonymous memory mappings that own their range.
//!
//! # Safety
//! A [`Mapping`] is the only owner of its address range: it is created by `mmap`, its bytes are reached
//! through borrows of it only, and it is unmapped on drop. Kernel memory is zeroed, so it is initialised.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use super::OsError;

/// Size of an ordinary page on every supported target; also the least alignment of a mapping.
pub const BASE_PAGE_BYTES: usize = 4096;

/// Explicit huge-page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugeSize {
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl HugeSize {
    /// Bytes of one page.
    pub const fn bytes(self) -> usize {
        match self {
            HugeSize::M2 => 2 << 20,
            HugeSize::G1 => 1 << 30,
        }
    }

    const fn flags(self) -> MapFlags {
        match self {
            HugeSize::M2 => MapFlags::HUGETLB.union(MapFlags::HUGE_2MB),
            HugeSize::G1 => MapFlags::HUGETLB.union(MapFlags::HUGE_1GB),
        }
    }
}

/// A private anonymous mapping, readable and writable until parts of it are sealed; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a Mapping owns its range as a Box<[u8]> does; nothing in it is bound to the thread that made it.
unsafe impl Send for Mapping {}
// SAFETY: a shared Mapping gives out shared byte slices only; every other access takes it by `&mut` or is unsafe.
unsafe impl Sync for Mapping {}

/// Gives the empty mapping an aligned address.
#[repr(align(4096))]
struct Page;

impl Mapping {
    /// Zeroed ordinary memory of `len` bytes, faulted in when touched.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub fn ordinary(len: usize) -> Result<Mapping, OsError> {
        Mapping::map(len, MapFlags::PRIVATE)
    }

    /// Zeroed memory of `len` bytes in huge pages, every page present on return: no later access can fault.
    ///
    /// `mmap` reserves all pages at once or says ENOMEM, so of two processes racing for the last pages one
    /// gets them all. MAP_POPULATE however ignores pages that it cannot fault in (a cgroup limit, a NUMA
    /// policy), and such a page would be a SIGBUS later: so presence is verified here.
    ///
    /// # Errors
    /// ENOMEM from `mmap` where the pool is short, EINVAL where the kernel lacks the size, and the errno
    /// of `madvise` or ENOMEM from `mincore` where a reserved page could not be faulted in.
    ///
    /// # Panics
    /// If `len` is no multiple of the page size.
    pub fn huge(len: usize, size: HugeSize) -> Result<Mapping, OsError> {
        assert!(len.is_multiple_of(size.bytes()), "{len} bytes are no whole huge pages");
        let mapping = Mapping::map(len, MapFlags::PRIVATE | MapFlags::POPULATE | size.flags())?;
        mapping.verify_present()?;
        Ok(mapping)
    }

    fn map(len: usize, flags: MapFlags) -> Result<Mapping, OsError> {
        if len == 0 {
            return Ok(Mapping { start: NonNull::<Page>::dangling().cast(), len: 0 });
        }
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let start = NonNull::new(start.map_err(|e| OsError::new("mmap", e))?.cast());
        Ok(Mapping { start: start.expect("mmap without MAP_FIXED never maps page 0"), len })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte of the mapping, aligned to its page size (4096 where empty).
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Asks for transparent huge pages; returns whether the kernel takes the advice.
    pub fn advise_huge(&self) -> bool {
        // SAFETY: the range is exactly this mapping, and the advice does not change its contents.
        self.is_empty() || unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) }.is_ok()
    }

    /// Asks for ordinary pages even where transparent huge pages are the rule; returns whether the kernel takes the advice.
    pub fn advise_small(&self) -> bool {
        // SAFETY: the range is exactly this mapping, and the advice does not change its contents.
        self.is_empty() || unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxNoHugepage) }.is_ok()
    }

    /// Makes the pages from `start` on read-only.
    ///
    /// # Safety
    /// The pages belong to a mapping that outlives every use of them, and nobody writes to them any more.
    ///
    /// # Errors
    /// The errno of `mprotect`, which refuses a start or length that is no page boundary.
    pub unsafe fn protect_pages(start: NonNull<u8>, len: usize) -> Result<(), OsError> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the pages.
        unsafe { mm::mprotect(start.as_ptr().cast(), len, MprotectFlags::READ) }
            .map_err(|e| OsError::new("mprotect", e))
    }

    /// Address and length of `range`.
    ///
    /// # Panics
    /// If `range` leaves the mapping.
    pub fn part(&self, range: Range<usize>) -> (NonNull<u8>, usize) {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} leaves a mapping of {} bytes", self.len);
        // SAFETY: the start was just checked to lie in the mapping or one past its end.
        (unsafe { self.start.add(range.start) }, range.end - range.start)
    }

    /// Faults in every page or says why not; kernels before 5.14 are asked which pages are present instead.
    fn verify_present(&self) -> Result<(), OsError> {
        if self.is_empty() {
            return Ok(());
        }
        loop {
            // SAFETY: the range is exactly this mapping, which is writable; populating does not change its contents.
            let status = unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) };
            match status {
                Ok(()) => return Ok(()),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::INVAL) => return self.verify_mincore(),
                Err(errno) => return Err(OsError::new("madvise(MADV_POPULATE_WRITE)", errno)),
            }
        }
    }

    fn verify_mincore(&self) -> Result<(), OsError> {
        // One byte per 4 KiB page: 16 MiB a call.
        let mut present = [0u8; 4096];
        let step_bytes = present.len() * BASE_PAGE_BYTES;
        for from in (0..self.len).step_by(step_bytes) {
            let (start, len) = self.part(from..self.len.min(from + step_bytes));
            let pages = len.div_ceil(BASE_PAGE_BYTES);
            // SAFETY: the range lies in this mapping and starts at a page; `present` has a byte for each page of it.
            let status = unsafe { libc::mincore(start.as_ptr().cast(), len, present.as_mut_ptr()) };
            if status != 0 {
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
                return Err(OsError { call: "mincore", errno });
            }
            if present[..pages].iter().any(|byte| byte & 1 == 0) {
                return Err(OsError { call: "mincore", errno: libc::ENOMEM });
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is this mapping's own, and its last borrow ended before drop.
            let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of an owned range: {unmapped:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_aligned_and_harmless() {
        let empty = Mapping::ordinary(0).unwrap();
        assert!(empty.is_empty() && empty.advise_huge());
        assert_eq!(empty.start().addr().get() % BASE_PAGE_BYTES, 0);
        Mapping::huge(0, HugeSize::M2).unwrap();
    }

    #[test]
    fn presence_is_seen_by_both_ways() {
        let mapping = Mapping::ordinary(20 << 20).unwrap();
        assert!(mapping.verify_mincore().unwrap_err().is_out_of_memory());
        mapping.verify_present().unwrap();
        mapping.verify_mincore().unwrap();
    }

    #[test]
    #[should_panic(expected = "leaves a mapping")]
    fn parts_are_checked() {
        Mapping::ordinary(4096).unwrap().part(1..4098);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(Mapping::ordinary(usize::MAX & !4095).unwrap_err().is_out_of_memory());
    }
}
