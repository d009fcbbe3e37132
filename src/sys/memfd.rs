//! Memory that has a descriptor instead of an owner: it can be sealed against every change and handed to other processes.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// Memory that nobody can write, grow or shrink any more, this process included; a descriptor for reading only.
#[derive(Debug)]
pub struct Sealed(OwnedFd);

impl Sealed {
    /// Seals memory against everything.
    ///
    /// # Errors
    /// EBUSY while it is mapped writable anywhere; the errno of `open`, ENOENT without `/proc`.
    pub fn seal(memory: OwnedFd) -> Result<Sealed, OsError> {
        fs::fcntl_add_seals(&memory, SEALS).map_err(|e| OsError::new("fcntl(F_ADD_SEALS)", e))?;
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let read_only = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        read_only.map(Sealed).map_err(|e| OsError::new("open", e))
    }

    /// What a descriptor from elsewhere is, if it is sealed memory: seals stay.
    pub fn of(fd: OwnedFd) -> Option<Sealed> {
        let is_sealed = fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS));
        is_sealed.then_some(Sealed(fd))
    }

    /// Bytes of the memory.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub fn bytes(&self) -> Result<u64, OsError> {
        fs::fstat(&self.0).map(|stat| stat.st_size.cast_unsigned()).map_err(|e| OsError::new("fstat", e))
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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
        let again = || fd.try_clone().unwrap();
        assert_eq!(Sealed::seal(again()).unwrap_err().errno, libc::EBUSY, "it is still mapped writable");
        drop(writable);
        assert!(Sealed::of(again()).is_none());
        let sealed = Sealed::seal(again()).unwrap();
        assert!(Sealed::of(again()).is_some());
        assert_eq!(sealed.bytes().unwrap(), 8192);
        let mapping = Mapping::shared_read_only(&sealed, 8192).unwrap();
        assert_eq!(mapping.bytes()[4096..4098], [0, 7]);
        for fd in [fd.as_fd(), sealed.as_fd()] {
            assert!(Mapping::shared(fd, 8192).is_err());
            assert!(fs::ftruncate(fd, 0).is_err());
            assert!(rustix::io::pwrite(fd, b"x", 0).is_err());
        }
        assert_eq!(Mapping::shared(&fd, 8192).unwrap_err().errno, libc::EPERM);
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0).unwrap_err().raw_os_error(), libc::EPERM);
    }
}
