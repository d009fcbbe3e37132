//! Ctrl-C as a counter, the end of a daemon as a descriptor, and a signal that is an error instead.
//!
//! # Safety
//! `sigaction`, `pthread_sigmask` and `signalfd` are not in rustix. The handler does one atomic addition, which is
//! async-signal-safe.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::OsError;

static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_signal: libc::c_int) {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
}

/// How many SIGINTs have come since [`install`]; whoever acts on them may set it back to 0.
pub fn interrupts() -> &'static AtomicU32 {
    &INTERRUPTS
}

/// Makes SIGINT count instead of kill. Blocking calls are not restarted: they return EINTR.
///
/// # Errors
/// The errno of `sigaction`.
pub fn install() -> Result<(), OsError> {
    set(libc::SIGINT, count as *const () as libc::sighandler_t)
}

/// Gives SIGINT back its default: the next one ends the process.
///
/// # Errors
/// The errno of `sigaction`.
pub fn uninstall() -> Result<(), OsError> {
    set(libc::SIGINT, libc::SIG_DFL)
}

/// Makes a write beyond RLIMIT_FSIZE an error (EFBIG) instead of the end of the process.
///
/// # Errors
/// The errno of `sigaction`.
pub fn ignore_file_size() -> Result<(), OsError> {
    set(libc::SIGXFSZ, libc::SIG_IGN)
}

fn set(signal: libc::c_int, handler: libc::sighandler_t) -> Result<(), OsError> {
    // SAFETY: sigaction is a C struct for which all zeroes means: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` is valid for reads, the old action is not asked for, and the handler, where there is one,
    // is `count`, which is async-signal-safe and lives as long as the program.
    let status = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(OsError { call: "sigaction", errno: last_errno() }) }
}

/// Blocks SIGTERM and SIGINT in the calling thread and those it starts; the descriptor can be read once one has come.
///
/// # Errors
/// The errno of `pthread_sigmask` or `signalfd`.
pub fn terminations() -> Result<OwnedFd, OsError> {
    descriptor(&[libc::SIGTERM, libc::SIGINT])
}

/// What a daemon is told by signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// SIGTERM or SIGINT: end.
    Stop,
    /// SIGHUP: read again what can be read again.
    Reload,
}

/// As [`terminations`], with SIGHUP; read by [`order`].
///
/// # Errors
/// As [`terminations`].
pub fn order_descriptor() -> Result<OwnedFd, OsError> {
    descriptor(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
}

/// Waits for the next order.
///
/// # Errors
/// The errno of `read`.
pub fn order(fd: impl AsFd) -> Result<Order, OsError> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    loop {
        match rustix::io::read(&fd, &mut info) {
            // The first member is the number of the signal.
            Ok(_) => match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                libc::SIGHUP => return Ok(Order::Reload),
                _ => return Ok(Order::Stop),
            },
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(OsError::new("read", e)),
        }
    }
}

fn descriptor(signals: &[libc::c_int]) -> Result<OwnedFd, OsError> {
    // SAFETY: a sigset_t is plain data; sigemptyset below gives it its value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writes.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is initialised, the signal exists.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    // SAFETY: `set` is valid for reads, the old mask is not asked for.
    let status = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if status != 0 {
        return Err(OsError { call: "pthread_sigmask", errno: status });
    }
    // SAFETY: `set` is valid for reads; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(OsError { call: "signalfd", errno: last_errno() });
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_counted() {
        install().unwrap();
        // SAFETY: raise only delivers the signal, for which the counting handler is installed.
        unsafe { libc::raise(libc::SIGINT) };
        assert_eq!(interrupts().swap(0, Ordering::Relaxed), 1);
        uninstall().unwrap();
    }
}
