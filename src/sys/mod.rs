//! Every system call brim makes, and nothing else.
//!
//! Each file is one concern and offers a safe interface; what stays unsafe is marked so and says what the
//! caller must keep. `rustix` is used where it has the call, `libc` where it does not (mincore, sigaction).

pub mod alloc;
pub mod cgroup;
pub mod code;
pub mod cpu;
pub mod file;
pub mod fill;
pub mod futex;
pub mod limits;
pub mod log;
pub mod map;
pub mod memfd;
pub mod page_size;
pub mod process;
pub mod read;
pub mod signal;
pub mod socket;
pub mod supervisor;
pub mod support;
pub mod term;
#[cfg(all(target_env = "musl", panic = "abort"))]
mod unwind;
pub mod zygote;

use std::fmt;

use crate::error::{Error, Exit};

/// A system call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OsError {
    /// The call, e.g. `mmap`.
    pub call: &'static str,
    /// Its errno.
    pub errno: i32,
}

impl OsError {
    pub(crate) fn new(call: &'static str, errno: rustix::io::Errno) -> Self {
        OsError { call, errno: errno.raw_os_error() }
    }

    /// Whether the call is not to be had here, whatever is asked of it: the kernel lacks it (ENOSYS), or a sandbox forbids it
    /// (EPERM, EACCES).
    pub fn is_unavailable(self) -> bool {
        matches!(self.errno, libc::ENOSYS | libc::EPERM | libc::EACCES)
    }

    /// Whether the kernel said ENOMEM.
    pub fn is_out_of_memory(self) -> bool {
        self.errno == libc::ENOMEM
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for OsError {}

impl From<OsError> for Error {
    fn from(error: OsError) -> Self {
        Error::new(Exit::Unexpected, error)
    }
}
