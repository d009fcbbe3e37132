//! Ctrl-C as a counter.
//!
//! # Safety
//! `sigaction` is not in rustix. The handler does one atomic addition, which is async-signal-safe.
#![allow(unsafe_code)]

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
    set(count as *const () as libc::sighandler_t)
}

/// Gives SIGINT back its default: the next one ends the process.
///
/// # Errors
/// The errno of `sigaction`.
pub fn uninstall() -> Result<(), OsError> {
    set(libc::SIG_DFL)
}

fn set(handler: libc::sighandler_t) -> Result<(), OsError> {
    // SAFETY: sigaction is a C struct for which all zeroes means: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` is valid for reads, the old action is not asked for, and the handler, where it is not
    // the default, is `count`, which is async-signal-safe and lives as long as the program.
    let status = unsafe { libc::sigaction(libc::SIGINT, &raw const action, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(OsError { call: "sigaction", errno: last_errno() }) }
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
