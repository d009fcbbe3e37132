//! Reading large files: through the page cache or around it, what is in it, and whether a file is still the same.
//!
//! # Safety
//! `cachestat` is in neither rustix nor libc, and `mincore` not in rustix. Both only write to buffers of known size.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use serde::{Deserialize, Serialize};

use super::OsError;
use super::page_size::BASE_PAGE_BYTES;

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// Device, major and minor.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub bytes: u64,
    /// Last change of its contents, in nanoseconds since 1970 (until 2262).
    pub modified_ns: i64,
}

impl FileId {
    /// Of an open file.
    ///
    /// # Errors
    /// The errno of `statx`.
    pub fn of(file: &File) -> Result<FileId, OsError> {
        let found = fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        found.map(|s| FileId::from_statx(&s)).map_err(|e| OsError::new("statx", e))
    }

    /// Of whatever has this name now.
    ///
    /// # Errors
    /// The errno of `statx`.
    pub fn at(path: &Path) -> Result<FileId, OsError> {
        let found = fs::statx(fs::CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
        found.map(|s| FileId::from_statx(&s)).map_err(|e| OsError::new("statx", e))
    }

    fn from_statx(found: &fs::Statx) -> FileId {
        let time = found.stx_mtime;
        FileId {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            bytes: found.stx_size,
            modified_ns: time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec)),
        }
    }

    /// Whether both name the same inode.
    pub fn same_file(&self, other: &FileId) -> bool {
        self.device == other.device && self.inode == other.inode
    }
}

/// A file opened around the page cache.
#[derive(Debug)]
pub struct Direct {
    /// The file, with O_DIRECT.
    pub file: File,
    /// What offsets, lengths and addresses must be multiples of.
    pub align_bytes: usize,
}

/// Where the file system does not say what direct reads must be aligned to: no disk of today asks for more.
const ALIGN_BYTES_DEFAULT: usize = BASE_PAGE_BYTES;

impl Direct {
    /// Opens `file` once more, with O_DIRECT.
    ///
    /// # Errors
    /// EINVAL where the file system has no direct reads, or only with alignments beyond a page; ESTALE where `path`
    /// had to be used (no `/proc`) and names another file by now.
    pub fn open(file: &File, path: &Path) -> Result<Direct, OsError> {
        let refuse = |errno| Err(OsError { call: "open(O_DIRECT)", errno });
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        // By its descriptor: whatever has the name by now, this is the file whose header was read.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = match fs::open(&again, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => fs::open(path, flags, Mode::empty()),
            other => other,
        };
        let direct = File::from(direct.map_err(|e| OsError::new("open(O_DIRECT)", e))?);
        if !FileId::of(&direct)?.same_file(&FileId::of(file)?) {
            return refuse(libc::ESTALE);
        }
        let found = fs::statx(&direct, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let said = found.ok().filter(|s| s.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        let align_bytes = match said.map(|s| s.stx_dio_mem_align.max(s.stx_dio_offset_align) as usize) {
            None => ALIGN_BYTES_DEFAULT,
            Some(align) if align.is_power_of_two() && align <= BASE_PAGE_BYTES => align,
            Some(_) => return refuse(libc::EINVAL),
        };
        // A file system may take less, but disks work in pages; virtual ones are half as fast where a read begins within one.
        Ok(Direct { file: direct, align_bytes: align_bytes.max(BASE_PAGE_BYTES) })
    }
}

/// `struct cachestat_range` of the kernel.
#[repr(C)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

/// `struct cachestat` of the kernel, in pages.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Since Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many of the pages that `bytes` from `offset` on touch are in the page cache; `None` where the kernel does not say.
pub fn cached_pages(file: &File, offset: u64, bytes: u64) -> Option<u64> {
    cachestat(file, offset, bytes).or_else(|| mincore_pages(file, offset, bytes))
}

fn cachestat(file: &File, offset: u64, bytes: u64) -> Option<u64> {
    if bytes == 0 {
        // Zero would mean the rest of the file.
        return Some(0);
    }
    let range = CacheRange { offset, bytes };
    let mut stat = CacheStat::default();
    let (range, out, flags) = (&raw const range, &raw mut stat, 0u32);
    // SAFETY: both structs are laid out as the kernel's and live until the call returns.
    let status = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range, out, flags) };
    (status == 0).then_some(stat.cached)
}

/// What kernels before 6.5 know. They answer "all" about files of others, so only the owner's are asked about.
fn mincore_pages(file: &File, offset: u64, bytes: u64) -> Option<u64> {
    let owner = fs::fstat(file).ok()?.st_uid;
    let me = rustix::process::geteuid();
    if owner != me.as_raw() && !me.is_root() {
        return None;
    }
    let first = offset / BASE_PAGE_BYTES as u64 * BASE_PAGE_BYTES as u64;
    let end = offset.checked_add(bytes)?.min(FileId::of(file).ok()?.bytes);
    let len = usize::try_from(end.saturating_sub(first)).ok().filter(|&len| len > 0)?;
    // SAFETY: no address is asked for; the pages are never touched, so a file that shrinks cannot hurt.
    let start =
        unsafe { mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), first) }.ok()?;
    let mut present = [0u8; 4096];
    let step_bytes = present.len() * BASE_PAGE_BYTES;
    let mut cached = Some(0u64);
    for from in (0..len).step_by(step_bytes) {
        let part = step_bytes.min(len - from);
        // SAFETY: `from` lies inside the mapping.
        let at = unsafe { start.byte_add(from) };
        // SAFETY: the range lies in the mapping and starts at a page; `present` has a byte for each page of it.
        let status = unsafe { libc::mincore(at, part, present.as_mut_ptr()) };
        let pages = part.div_ceil(BASE_PAGE_BYTES);
        cached = cached
            .filter(|_| status == 0)
            .map(|sum| sum + present[..pages].iter().filter(|&&byte| byte & 1 != 0).count() as u64);
    }
    // SAFETY: the mapping is this function's own.
    let unmapped = unsafe { mm::munmap(start, len) };
    debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    cached
}

/// Gives the page cache of a stretch back, whole pages of it; advice, so it cannot fail.
pub fn drop_cached(file: &File, offset: u64, bytes: u64) {
    if let Some(bytes) = std::num::NonZeroU64::new(bytes) {
        let _ = fs::fadvise(file, offset, Some(bytes), fs::Advice::DontNeed);
    }
}

/// Says that a file is read here and there, so that the kernel reads nothing ahead by itself; advice.
pub fn expect_random(file: &File) {
    let _ = fs::fadvise(file, 0, None, fs::Advice::Random);
}

/// Asks for a stretch to be brought into the page cache without waiting for it; advice.
pub fn read_ahead(file: &File, offset: u64, bytes: u64) {
    if let Some(bytes) = std::num::NonZeroU64::new(bytes) {
        let _ = fs::fadvise(file, offset, Some(bytes), fs::Advice::WillNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(name: &str, bytes: usize) -> (std::path::PathBuf, File) {
        let path = std::env::temp_dir().join(format!("brim-read-{name}-{}", std::process::id()));
        File::create(&path).unwrap().write_all(&vec![7; bytes]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        (path, file)
    }

    #[test]
    fn both_ways_of_asking_count_the_same_pages() {
        let (path, file) = file_of("cached", 10 * 4096 + 1);
        let ask = |offset, bytes| match cachestat(&file, offset, bytes) {
            None => eprintln!("SKIPPED: this kernel has no cachestat"),
            Some(pages) => assert_eq!(Some(pages), mincore_pages(&file, offset, bytes)),
        };
        [(0, 40_961), (4096, 4096), (4095, 2), (8192, 32_769)].iter().for_each(|&(offset, bytes)| ask(offset, bytes));
        assert_eq!(cached_pages(&file, 0, 40_961), Some(11), "what was just written is cached");
        drop_cached(&file, 0, 11 * 4096);
        [(0, 40_961), (4096, 4096)].iter().for_each(|&(offset, bytes)| ask(offset, bytes));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_is_told_from_its_successor() {
        let (path, file) = file_of("id", 100);
        let before = FileId::of(&file).unwrap();
        assert_eq!(FileId::at(&path).unwrap(), before);
        let (other, _) = file_of("id-other", 100);
        std::fs::rename(other, &path).unwrap();
        assert!(!FileId::at(&path).unwrap().same_file(&before));
        assert_eq!(FileId::of(&file).unwrap(), before, "the open file is still what it was");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn direct_reads_have_an_alignment_or_a_reason() {
        let (path, file) = file_of("direct", 8192);
        match Direct::open(&file, &path) {
            Ok(direct) => assert!(direct.align_bytes.is_power_of_two() && direct.align_bytes <= 4096),
            Err(e) => assert_eq!(e.errno, libc::EINVAL, "{e}"),
        }
        let proc = File::open("/proc/version").unwrap();
        assert_eq!(Direct::open(&proc, Path::new("/proc/version")).unwrap_err().errno, libc::EINVAL);
        std::fs::remove_file(path).unwrap();
    }
}
