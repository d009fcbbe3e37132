//! Waiting on a 32-bit word, private to this process.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::futex::{self, Flags, Timespec};

/// Sleeps while `word` holds `expected`. May return early (another value, a signal, no reason at all): the
/// caller looks at the word again.
pub fn wait(word: &AtomicU32, expected: u32) {
    // Every errno here (EAGAIN: the word differs, EINTR: a signal) means the same to the caller: look again.
    let _ = futex::wait(word, Flags::PRIVATE, expected, None);
}

/// As [`wait`], for no longer than `limit`.
pub fn wait_for(word: &AtomicU32, expected: u32, limit: Duration) {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let _ = futex::wait(word, Flags::PRIVATE, expected, Some(&limit));
}

/// Wakes up to `count` threads that wait on `word`; returns how many.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // The kernel reads the count as a signed int: u32::MAX would wake one thread.
    futex::wake(word, Flags::PRIVATE, count.min(i32::MAX as u32)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::{Acquire, Release};

    use super::*;

    #[test]
    fn a_waiter_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(Acquire) == 0 {
                    wait(&word, 0);
                }
            });
            std::thread::sleep(Duration::from_millis(10));
            word.store(1, Release);
            wake(&word, u32::MAX);
        });
        wait(&word, 0);
        wait_for(&word, 1, Duration::from_millis(1));
    }
}
