//! Memory that has a descriptor instead of an owner: it can be sealed against every change and handed to other processes.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{self, MemfdFlags, Mode, OFlags, SealFlags};

use super::OsError;
use super::page_size::HugeSize;

/// Creates memory of `len` bytes, zeroed, in huge pages of `size` if it is given. Nothing is set aside yet: mapping it is
/// what does.
///
/// # Errors
/// EINVAL where the kernel lacks the page size, and what `memfd_create` and `ftruncate` say.
pub fn create(name: &str, len: u64, size: Option<HugeSize>) -> Result<OwnedFd, OsError> {
    let pages = match size {
        None => MemfdFlags::empty(),
        Some(HugeSize::M2) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Some(HugeSize::G1) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let name = CString::new(name).map_err(|_| OsError { call: "memfd_create", errno: libc::EINVAL })?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages;
    let fd = fs::memfd_create(&name, flags).map_err(|e| OsError::new("memfd_create", e))?;
    fs::ftruncate(&fd, len).map_err(|e| OsError::new("ftruncate", e))?;
    Ok(fd)
}

/// What sealed memory cannot be subjected to.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Seals memory: from here on nobody can write, grow or shrink it, this process included.
///
/// # Errors
/// EBUSY while it is mapped writable anywhere.
pub fn seal(fd: impl AsFd) -> Result<(), OsError> {
    fs::fcntl_add_seals(fd, SEALS).map_err(|e| OsError::new("fcntl(F_ADD_SEALS)", e))
}

/// Whether memory is sealed against everything: no write can change it, and no truncation take it away.
pub fn is_sealed(fd: impl AsFd) -> bool {
    fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS))
}

/// Bytes of the memory.
///
/// # Errors
/// The errno of `fstat`.
pub fn len(fd: impl AsFd) -> Result<u64, OsError> {
    fs::fstat(fd).map(|stat| stat.st_size.cast_unsigned()).map_err(|e| OsError::new("fstat", e))
}

/// The same memory, for reading only.
///
/// # Errors
/// The errno of `open`; ENOENT without `/proc`.
pub fn reopen_read_only(fd: impl AsFd) -> Result<OwnedFd, OsError> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| OsError::new("open", e))
}

#[cfg(test)]
mod tests {
    use super::super::map::Mapping;
    use super::*;

    #[test]
    fn sealed_memory_is_shared_and_cannot_be_changed() {
        let fd = create("brim-test", 8192, None).unwrap();
        let mut writable = Mapping::shared(&fd, 8192).unwrap();
        writable.bytes_mut()[4097] = 7;
        assert_eq!(seal(&fd).unwrap_err().errno, libc::EBUSY, "it is still mapped writable");
        drop(writable);
        assert!(!is_sealed(&fd));
        seal(&fd).unwrap();
        let read_only = reopen_read_only(&fd).unwrap();
        assert!(is_sealed(&read_only));
        assert_eq!(len(&read_only).unwrap(), 8192);
        let mapping = Mapping::shared_read_only(&read_only, 8192).unwrap();
        assert_eq!(mapping.bytes()[4096..4098], [0, 7]);
        assert_eq!(Mapping::shared(&fd, 8192).unwrap_err().errno, libc::EPERM);
        assert!(fs::ftruncate(&fd, 0).is_err());
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0).unwrap_err().raw_os_error(), libc::EPERM);
    }
}
