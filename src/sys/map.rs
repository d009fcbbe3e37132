//! Memory mappings that own their range: anonymous, or of memory with a descriptor.
//!
//! # Safety
//! A [`Mapping`] is the only owner of its address range: it is created by `mmap`, its bytes are reached
//! through borrows of it only, and it is unmapped on drop. Kernel memory is zeroed, so it is initialised.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use super::OsError;
use super::memfd::Sealed;
use super::page_size::{BASE_PAGE_BYTES, HugeSize};
use super::support::Support;

/// NUMA nodes that Linux can have, on any architecture (CONFIG_NODES_SHIFT is at most 10).
const NODES_MAX: usize = 1024;

/// The first Linux with `mseal`.
const MSEAL_SINCE: (u32, u32) = (6, 10);

/// What asks for huge pages of `size`.
const fn huge_flags(size: HugeSize) -> MapFlags {
    match size {
        HugeSize::M2 => MapFlags::HUGETLB.union(MapFlags::HUGE_2MB),
        HugeSize::G1 => MapFlags::HUGETLB.union(MapFlags::HUGE_1GB),
    }
}

/// A mapping, readable and writable until parts of it are sealed, or readable only; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    kept: bool,
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
    /// If `len` is not a multiple of the page size.
    pub fn huge(len: usize, size: HugeSize) -> Result<Mapping, OsError> {
        assert!(len.is_multiple_of(size.bytes()), "{len} bytes are not whole huge pages");
        let mapping = Mapping::map(len, MapFlags::PRIVATE | MapFlags::POPULATE | huge_flags(size))?;
        mapping.verify_present()?;
        Ok(mapping)
    }

    /// Memory of `len` bytes in huge pages that are promised but not yet there: `mmap` sets all of them aside or says
    /// ENOMEM, [`populate`] then brings them one stretch at a time. Needs [`can_populate`].
    ///
    /// # Errors
    /// ENOMEM where the pool is short, EINVAL where the kernel lacks the size.
    ///
    /// # Panics
    /// If `len` is not a multiple of the page size.
    pub fn huge_reserved(len: usize, size: HugeSize) -> Result<Mapping, OsError> {
        assert!(len.is_multiple_of(size.bytes()), "{len} bytes are not whole huge pages");
        Mapping::map(len, MapFlags::PRIVATE | huge_flags(size))
    }

    /// Memory with a descriptor, for writing: every page that it does not have yet is set aside, or ENOMEM.
    ///
    /// # Errors
    /// The errno of `mmap`; EPERM where the memory is sealed.
    pub fn shared(fd: impl AsFd, len: usize) -> Result<Mapping, OsError> {
        Mapping::map_fd(fd, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
    }

    /// Sealed memory, for reading, its pages present in this process's page tables.
    ///
    /// It is sealed, so its bytes stay as they are while they are borrowed.
    ///
    /// # Errors
    /// The errno of `mmap` or `madvise`.
    pub fn shared_read_only(memory: &Sealed, len: usize) -> Result<Mapping, OsError> {
        let mapping = Mapping::map_fd(memory, len, ProtFlags::READ, MapFlags::SHARED)?;
        match advise_populate(mapping.start.as_ptr(), len, Advice::LinuxPopulateRead) {
            // Before Linux 5.14 pages are mapped when touched; they exist, so no touch can fail.
            Err(e) if e.errno != libc::EINVAL && !e.is_unavailable() => Err(e),
            _ => Ok(mapping),
        }
    }

    /// Memory of `len` bytes from a multiple of 1 GiB on, in which each of `segments` has huge pages of its size, promised as
    /// by [`Mapping::huge_reserved`], and the rest is out of bounds.
    ///
    /// # Errors
    /// As [`Mapping::huge_reserved`]; nothing stays mapped then.
    ///
    /// # Panics
    /// If a segment does not consist of whole pages of its size, or leaves the mapping.
    pub fn huge_packed(len: usize, segments: &[(Range<usize>, HugeSize)]) -> Result<Mapping, OsError> {
        let align = HugeSize::G1.bytes();
        let room = len.checked_add(align).ok_or(OsError { call: "mmap", errno: libc::ENOMEM })?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), flags) };
        let start = NonNull::new(start.map_err(|e| OsError::new("mmap", e))?.cast::<u8>());
        let whole = Mapping { start: start.expect("mmap without MAP_FIXED never maps page 0"), len: room, kept: false };
        let skip = whole.start.as_ptr().align_offset(align);
        for (range, size) in segments {
            assert!(range.end <= len, "{range:?} leaves {len} bytes");
            assert!(range.start.is_multiple_of(size.bytes()) && range.len().is_multiple_of(size.bytes()));
            let (at, bytes) = whole.part(skip + range.start..skip + range.end);
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | huge_flags(*size);
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the range lies in `whole`, which is new and which nothing refers to yet.
            unsafe { mm::mmap_anonymous(at.as_ptr().cast(), bytes, prot, flags) }
                .map_err(|e| OsError::new("mmap", e))?;
        }
        let (start, _) = whole.part(skip..skip + len);
        let (first, before) = whole.part(0..skip);
        let (last, after) = whole.part(skip + len..room);
        std::mem::forget(whole);
        for (at, bytes) in [(first, before), (last, after)].into_iter().filter(|(_, bytes)| *bytes > 0) {
            // SAFETY: nothing was mapped into these ends, and no Mapping owns them.
            let unmapped = unsafe { mm::munmap(at.as_ptr().cast(), bytes) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
        Ok(Mapping { start, len, kept: false })
    }

    /// As [`Mapping::shared`], every page present on return: what kernels before 5.14 have instead of [`populate`].
    ///
    /// # Errors
    /// As [`Mapping::shared`], and ENOMEM from `mincore` where a page could not be had.
    pub fn shared_present(fd: impl AsFd, len: usize) -> Result<Mapping, OsError> {
        let mapping =
            Mapping::map_fd(fd, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE)?;
        mapping.verify_mincore()?;
        Ok(mapping)
    }

    fn map_fd(fd: impl AsFd, len: usize, prot: ProtFlags, flags: MapFlags) -> Result<Mapping, OsError> {
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mm::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
        let start = NonNull::new(start.map_err(|e| OsError::new("mmap", e))?.cast());
        Ok(Mapping { start: start.expect("mmap without MAP_FIXED never maps page 0"), len, kept: false })
    }

    /// All bytes, for reading.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable and initialised, and the borrow of it keeps it mapped. Anonymous memory changes
        // through borrows only; shared memory is either sealed, or written through `bytes_mut` alone before it is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All bytes of a writable mapping.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the exclusive borrow is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    fn map(len: usize, flags: MapFlags) -> Result<Mapping, OsError> {
        if len == 0 {
            return Ok(Mapping { start: NonNull::<Page>::dangling().cast(), len: 0, kept: false });
        }
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let start = NonNull::new(start.map_err(|e| OsError::new("mmap", e))?.cast());
        Ok(Mapping { start: start.expect("mmap without MAP_FIXED never maps page 0"), len, kept: false })
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
    /// The errno of `mprotect`, which refuses a start or length that is not a page boundary.
    pub unsafe fn protect_pages(start: NonNull<u8>, len: usize) -> Result<(), OsError> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the pages.
        unsafe { mm::mprotect(start.as_ptr().cast(), len, MprotectFlags::READ) }
            .map_err(|e| OsError::new("mprotect", e))
    }

    /// Seals the pages from `start` on with `mseal`: until the process ends nobody can unmap them or change what may be
    /// done with them. They stay as they are where the kernel does not have that (before 6.10) or a sandbox forbids it.
    ///
    /// # Safety
    /// As [`Mapping::protect_pages`]. The mapping they belong to is never unmapped: its owner must be told
    /// ([`Mapping::keep`]).
    ///
    /// # Errors
    /// The errno of `mseal`.
    pub unsafe fn seal_pages(start: NonNull<u8>, len: usize) -> Result<Support, OsError> {
        match mseal(start, len) {
            Err(e) if !e.is_unavailable() => Err(e),
            tried => Ok(Support::of(tried, libc::ENOSYS, MSEAL_SINCE)),
        }
    }

    /// Spreads pages that are not there yet over NUMA `nodes` in turn, so that every CPU's reads use all memory buses.
    ///
    /// # Errors
    /// The errno of `mbind`: EINVAL for a node that is not there, ENOSYS for a kernel without NUMA.
    pub fn interleave(&self, nodes: &[u32]) -> Result<(), OsError> {
        const WORD: usize = libc::c_ulong::BITS as usize;
        let mut mask: [libc::c_ulong; NODES_MAX / WORD] = [0; NODES_MAX / WORD];
        for &node in nodes {
            let word = mask.get_mut(node as usize / WORD).ok_or(OsError { call: "mbind", errno: libc::EINVAL })?;
            *word |= 1 << (node as usize % WORD);
        }
        if self.is_empty() {
            return Ok(());
        }
        let (start, len, mode) = (self.start.as_ptr(), self.len, libc::MPOL_INTERLEAVE);
        // SAFETY: the range is this mapping; the call changes no contents and reads as many bits of `mask` as it has.
        let status = unsafe { libc::syscall(libc::SYS_mbind, start, len, mode, mask.as_ptr(), NODES_MAX + 1, 0u32) };
        match status {
            0 => Ok(()),
            _ => Err(OsError { call: "mbind", errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }),
        }
    }

    /// Leaves the mapping in place when this is dropped: it is sealed, and lives as long as the process.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Takes what lies from byte `at` on away from this mapping: each owns its part from here on.
    ///
    /// # Panics
    /// If `at` leaves the mapping, or is not the boundary of a page. (Of huge pages it must be the boundary of one of
    /// those, or what is before it is never unmapped.)
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Mapping {
        assert!(at.is_multiple_of(BASE_PAGE_BYTES), "{at} is not the boundary of a page");
        let (start, len) = self.part(at..self.len);
        self.len = at;
        Mapping { start, len, kept: self.kept }
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
        match populate_range(self.start.as_ptr(), self.len) {
            Err(e) if e.errno == libc::EINVAL || e.is_unavailable() => self.verify_mincore(),
            other => other,
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

/// Whether pages can be sealed with `mseal` (Linux 6.10).
pub fn sealing() -> Support {
    // No page is sealed: the length is 0.
    Support::of(mseal(NonNull::<Page>::dangling().cast(), 0), libc::ENOSYS, MSEAL_SINCE)
}

fn mseal(start: NonNull<u8>, len: usize) -> Result<(), OsError> {
    // SAFETY: the call changes no memory and no pointer: at worst later calls for these pages fail.
    let status = unsafe { libc::syscall(libc::SYS_mseal, start.as_ptr(), len, 0usize) };
    match status {
        0 => Ok(()),
        _ => Err(OsError { call: "mseal", errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }),
    }
}

/// Whether pages can be populated (MADV_POPULATE_WRITE, Linux 5.14).
pub fn populating() -> Support {
    Support::of(populate_range(NonNull::<Page>::dangling().as_ptr().cast(), 0), libc::EINVAL, (5, 14))
}

/// Whether [`populating`] is [`Support::Yes`].
pub fn can_populate() -> bool {
    populating() == Support::Yes
}

/// Brings every page below `bytes`, of `page_bytes` each, ready to be written. What would be a SIGBUS when it is touched
/// (a cgroup limit, a NUMA policy, a poisoned page) is an error here. Contents stay as they are.
///
/// # Errors
/// EFAULT, ENOMEM or EHWPOISON where a page cannot be had; EINVAL before Linux 5.14.
pub fn populate(bytes: &mut [u8], page_bytes: usize) -> Result<(), OsError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let start = bytes.as_mut_ptr();
    // The pages at both ends may be shared with neighbours, which populating leaves as they are.
    let before = start.addr() % page_bytes;
    populate_range(start.wrapping_sub(before), (before + bytes.len()).next_multiple_of(page_bytes))
}

fn populate_range(start: *mut u8, len: usize) -> Result<(), OsError> {
    advise_populate(start, len, Advice::LinuxPopulateWrite)
}

/// `start` is a page boundary, `advice` one of the two ways of populating.
fn advise_populate(start: *mut u8, len: usize, advice: Advice) -> Result<(), OsError> {
    loop {
        // SAFETY: populating changes no contents and unmaps nothing: at worst there is more memory in use, or an errno.
        let status = unsafe { mm::madvise(start.cast(), len, advice) };
        match status {
            Ok(()) => return Ok(()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(OsError::new("madvise(MADV_POPULATE)", errno)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 && !self.kept {
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
    fn a_stretch_is_populated_and_nothing_else() {
        if !can_populate() {
            return eprintln!("SKIPPED: this kernel has no MADV_POPULATE_WRITE");
        }
        let mapping = Mapping::ordinary(1 << 20).unwrap();
        mapping.advise_small();
        let (start, _) = mapping.part(0..1 << 20);
        // SAFETY: the stretch lies in the mapping, and nothing else refers to it.
        let stretch = unsafe { std::slice::from_raw_parts_mut(start.as_ptr().wrapping_add(10_000), 5000) };
        populate(stretch, BASE_PAGE_BYTES).unwrap();
        let mut present = [0u8; 256];
        // SAFETY: the range is the mapping, with a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(start.as_ptr().cast(), 1 << 20, present.as_mut_ptr()) }, 0);
        assert_eq!(
            present
                .map(|byte| byte & 1)
                .iter()
                .enumerate()
                .filter(|(_, p)| **p == 1)
                .map(|(i, _)| i)
                .collect::<Vec<_>>(),
            [2, 3]
        );
        assert!(stretch.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn pages_are_spread_over_nodes_that_exist() {
        let mapping = Mapping::ordinary(1 << 20).unwrap();
        match mapping.interleave(&[0]) {
            Err(e) if e.errno == libc::ENOSYS => return eprintln!("SKIPPED: this kernel knows no NUMA"),
            other => other.unwrap(),
        }
        assert_eq!(mapping.interleave(&[NODES_MAX as u32]).unwrap_err().errno, libc::EINVAL);
        assert_eq!(mapping.interleave(&[NODES_MAX as u32 - 1]).unwrap_err().errno, libc::EINVAL);
        let numa_maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let line = format!("{:x} interleave:0", mapping.start().addr());
        assert!(numa_maps.lines().any(|found| found.starts_with(&line)), "{line:?} is not in\n{numa_maps}");
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
