//! Processes that are split off to do one thing, within limits that the kernel keeps.
//!
//! # Safety
//! `fork`, `_exit`, `close_range` and `close` are not in rustix. What may go wrong with descriptors and with code that runs
//! after a fork is kept inside [`fork`]: the new process does its work with what it was given and ends.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, WaitOptions, getrlimit, set_dumpable_behavior, setrlimit, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::time::{ClockId, clock_gettime};

use super::OsError;

/// Splits off a process that does `work` and ends. Of this one's descriptors it has standard error and `keep`; standard input
/// and output go nowhere. SIGTERM, SIGINT and SIGHUP do not reach it: it ends when its work does.
///
/// This process may have one thread only: of others nothing goes on in the new one, and what they hold stays locked.
///
/// # Errors
/// The errno of `fork`: EAGAIN where there are too many processes already.
pub fn fork(keep: BorrowedFd<'_>, work: impl FnOnce()) -> Result<(), OsError> {
    // SAFETY: the new process runs on a copy of this one's memory; by the contract above no other thread was inside
    // anything, so locks and the heap are as this thread left them.
    match unsafe { libc::fork() } {
        -1 => Err(OsError { call: "fork", errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }),
        0 => {
            let alone = AssertUnwindSafe(|| {
                close_all_but(keep.as_raw_fd());
                if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
                    let _ = (dup2_stdin(&null), dup2_stdout(&null));
                }
                let _ = super::signal::order_descriptor();
                work();
            });
            // Neither by returning nor by unwinding does it get into what the first process goes on with.
            let _ = catch_unwind(alone);
            end()
        }
        _ => Ok(()),
    }
}

/// Ends this process here and now: nothing is dropped, flushed or reported.
pub fn end() -> ! {
    // SAFETY: it has no requirements.
    unsafe { libc::_exit(0) }
}

/// Forgets processes that were split off and have ended.
pub fn reap() {
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
}

/// Closes all descriptors but those of standard streams and `keep`.
fn close_all_but(keep: RawFd) {
    let keep = keep.cast_unsigned();
    let ranges = [(3, keep.saturating_sub(1)), (keep + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: it closes descriptors, whose owners are in the copied memory and will not be run again.
        let status = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if status == 0 {
            continue;
        }
        // Kernels before 5.9.
        let most = getrlimit(Resource::Nofile).current.map_or(MANY, |most| most.min(u64::from(MANY)) as u32);
        for fd in first..=last.min(most) {
            // SAFETY: as above; a number that is not open is an error and no more.
            unsafe { libc::close(fd.cast_signed()) };
        }
    }
}

/// Descriptors beyond which none is looked for, where the limit is higher.
const MANY: u32 = 1 << 16;

/// What a process may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Memory that it writes to, but for its stack.
    pub data_bytes: u64,
    /// Its stack.
    pub stack_bytes: u64,
}

/// Bounds this process for good, silences it, and offers it to the kernel as the first to go where memory runs out. Beyond
/// its bounds it is ended, and leaves neither a core file nor a word on standard error.
///
/// # Errors
/// The errno of `setrlimit`: EPERM where a filter of system calls forbids it.
pub fn confine(bounds: Bounds) -> Result<(), OsError> {
    // Only without /proc, or under a policy of its own, is it not the first to go.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = dup2_stderr(&null);
    }
    for (resource, bytes) in [(Resource::Data, bounds.data_bytes), (Resource::Stack, bounds.stack_bytes)] {
        let now = getrlimit(resource);
        let bytes = now.maximum.map_or(bytes, |maximum| maximum.min(bytes));
        let limit = Rlimit { current: Some(bytes), maximum: now.maximum };
        setrlimit(resource, limit).map_err(|e| OsError::new("setrlimit", e))?;
    }
    Ok(())
}

/// Gives this process so much more CPU time; then it is ended. The kernel counts whole seconds: it may get one more.
///
/// # Errors
/// The errno of `setrlimit`.
pub fn allow_cpu_time(seconds: u64) -> Result<(), OsError> {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32);
    // The first moments belong to the start of the process.
    let whole = used.saturating_sub(Duration::from_millis(100)).as_secs_f64().ceil() as u64;
    let limit = Rlimit { current: Some(whole + seconds), maximum: getrlimit(Resource::Cpu).maximum };
    setrlimit(Resource::Cpu, limit).map_err(|e| OsError::new("setrlimit", e))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What a process that does `work` has written when it has ended.
    fn said(work: impl FnOnce(&UnixStream)) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        fork(theirs.as_fd(), || work(&theirs)).unwrap();
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        said
    }

    fn say(mut to: &UnixStream, text: &str) {
        to.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn it_has_what_it_was_given_and_nothing_else() {
        let open = File::open("/dev/null").unwrap();
        let fd = open.as_raw_fd();
        let said = said(|to| {
            let is_open = |fd: &i32| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
            let fds: Vec<i32> = (0..1024).filter(is_open).collect();
            say(to, &format!("{}", fds == [0, 1, 2, to.as_raw_fd()]));
            // Unwinding does not come back either.
            std::panic::resume_unwind(Box::new(()));
        });
        assert_eq!(said, "true");
        assert!(open.metadata().is_ok() && open.as_raw_fd() == fd, "this process keeps what it has");
        reap();
    }

    #[test]
    fn beyond_its_bounds_it_is_ended() {
        // Beside what the other tests of this process have.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let data =
            status.lines().find_map(|line| line.strip_prefix("VmData:")?.strip_suffix("kB")?.trim().parse().ok());
        let bounds = Bounds { data_bytes: (data.unwrap_or(0u64) << 10) + (64 << 20), stack_bytes: 1 << 20 };
        fn deep(n: u64) -> u64 {
            let frame = std::hint::black_box([n; 64]);
            if n == 0 { frame[63] } else { deep(n - 1) + frame[1] }
        }
        let within = said(|to| {
            confine(bounds).unwrap();
            allow_cpu_time(1).unwrap();
            let memory = std::hint::black_box(vec![1u8; 16 << 20]);
            say(to, &format!("{} {}", memory.len(), deep(100)));
        });
        assert_eq!(within, format!("{} 5050", 16 << 20));
        let too_much: [fn(); 2] = [
            || drop(std::hint::black_box(vec![1u8; 256 << 20])),
            || loop {
                std::hint::black_box(0);
            },
        ];
        for work in too_much {
            let said = said(|to| {
                confine(bounds).unwrap();
                allow_cpu_time(1).unwrap();
                say(to, "begun");
                work();
                say(to, " and done");
            });
            assert_eq!(said, "begun");
        }
    }
}
