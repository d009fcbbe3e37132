//! What a supervisor hands to a service it starts: listening sockets (`LISTEN_FDS`, as sd_listen_fds(3) has it), a
//! descriptor to report readiness on, and a watchdog to ping.
//!
//! # Safety
//! Descriptors arrive as numbers. Each is taken into ownership once, by the process that they were given to.
#![allow(unsafe_code)]

use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::OsError;

/// The first descriptor that is passed on: those before it are the standard ones.
const FIRST: RawFd = 3;

/// Most sockets that are taken; a service has one or two.
const SOCKETS_MAX: RawFd = 16;

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether the variable `name` holds this process's id, or is not there: what stands beside it is meant for us.
fn is_for_us(name: &str) -> bool {
    std::env::var_os(name).is_none() || number(name) == Some(std::process::id())
}

/// Takes a descriptor that was inherited under a number; it is closed when the process executes another.
///
/// # Errors
/// EBADF where there is none.
fn take(fd: RawFd) -> Result<OwnedFd, OsError> {
    // SAFETY: fcntl on a number that is not a descriptor fails with EBADF and does nothing else.
    let status = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if status < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(OsError { call: "fcntl", errno });
    }
    // SAFETY: the descriptor exists, and it was passed to this process to be used by whoever asks for it here.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The listening sockets that were passed on; none where nobody passed any. To be called once.
///
/// # Errors
/// EBADF where a descriptor that was announced is not there.
pub fn passed_sockets() -> Result<Vec<OwnedFd>, OsError> {
    if !is_for_us("LISTEN_PID") {
        return Ok(Vec::new());
    }
    let n: RawFd = number("LISTEN_FDS").unwrap_or(0);
    (FIRST..FIRST + n.clamp(0, SOCKETS_MAX)).map(take).collect()
}

/// Says on descriptor `fd` that the service is ready: a line break, then the end, as s6 expects it.
///
/// # Errors
/// EBADF where there is no such descriptor, or the errno of `write`.
pub fn report_ready(fd: RawFd) -> Result<(), OsError> {
    let mut file = std::fs::File::from(take(fd)?);
    file.write_all(b"\n").map_err(|e| OsError { call: "write", errno: e.raw_os_error().unwrap_or(0) })
}

/// Within what time the supervisor wants to hear `WATCHDOG=1`, if it does.
pub fn watchdog() -> Option<Duration> {
    let micros: u64 = number("WATCHDOG_USEC").filter(|_| is_for_us("WATCHDOG_PID"))?;
    (micros > 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::IntoRawFd as _;

    #[test]
    fn readiness_is_a_line_and_the_end() {
        let (mut read, write) = std::io::pipe().unwrap();
        report_ready(OwnedFd::from(write).into_raw_fd()).unwrap();
        let mut said = String::new();
        read.read_to_string(&mut said).unwrap();
        assert_eq!(said, "\n");
        assert_eq!(report_ready(987_654).unwrap_err().errno, libc::EBADF);
    }
}
