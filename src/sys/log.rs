//! The log on stderr: one line a record, and nothing about it can end or stall the process.
//!
//! Where a line cannot be written (the disk is full, the reader of the pipe is gone or does not read), it is dropped and
//! counted, and the next line that can be written is preceded by one that says how many are missing.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a line waits for a reader that is slow. Once a line was dropped the following do not wait at all.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes that a pipe takes without blocking when it says that it can be written to (PIPE_BUF).
const ATOMIC_BYTES: usize = 4096;

static STDERR: Mutex<Lines> = Mutex::new(Lines::new());

/// Lines dropped since the process began.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines that could not be written to stderr since the process began.
pub fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes `text` and a line break to stderr, or counts it as lost.
pub fn line(text: &str) {
    let mut lines = STDERR.lock().unwrap_or_else(PoisonError::into_inner);
    if !lines.write(std::io::stderr().as_fd(), text) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes `text` and a line break to stdout with the patience of the log; `false` if it is lost.
pub fn to_stdout(text: &str) -> bool {
    Lines::new().write(std::io::stdout().as_fd(), text)
}

/// Makes stderr the log, from `level` on.
pub fn install(level: log::LevelFilter) {
    // It fails only where there is a logger already, which an embedding program is free to have.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

struct Stderr;

impl log::Log for Stderr {
    /// What is above the level of [`log::set_max_level`] does not come here.
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        line(&format!("{:<5} [{}] {}", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}

/// Lines on their way to one descriptor.
struct Lines {
    /// Lines dropped since the last that was written.
    missing: u64,
    /// A part of the last line was written.
    torn: bool,
}

impl Lines {
    const fn new() -> Lines {
        Lines { missing: 0, torn: false }
    }

    /// Writes a line, with one `write` unless it is very long; `false` if it is lost.
    fn write(&mut self, fd: BorrowedFd<'_>, text: &str) -> bool {
        let mut line = String::with_capacity(text.len() + 1);
        if self.torn {
            line.push('\n');
        }
        if self.missing > 0 {
            let _ = writeln!(line, "WARN  [{}] lines that could not be written: {}", module_path!(), self.missing);
        }
        line.push_str(text);
        line.push('\n');
        let patience = if self.missing == 0 { PATIENCE } else { Duration::ZERO };
        match write_within(fd, line.as_bytes(), patience) {
            Ok(()) => *self = Lines::new(),
            Err(written) => {
                self.missing += 1;
                self.torn |= written > 0;
            }
        }
        self.missing == 0
    }
}

/// Writes all of `bytes`, waiting at most `patience` for each part that a slow reader has no room for.
///
/// # Errors
/// How many bytes were written before it failed.
fn write_within(fd: BorrowedFd<'_>, bytes: &[u8], patience: Duration) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        if !wait_writable(fd, patience) {
            return Err(written);
        }
        let part = &bytes[written..bytes.len().min(written + ATOMIC_BYTES)];
        match rustix::io::write(fd, part) {
            Ok(0) => return Err(written),
            Ok(n) => written += n,
            Err(Errno::INTR) => {}
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

/// Whether `fd` can be written to within `patience`, or says at once why not.
fn wait_writable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout)) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            // Where it may not be asked, the write tells.
            _ => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::time::Instant;

    #[test]
    fn a_full_disk_takes_nothing_and_nothing_ends() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut lines = Lines::new();
        assert!(!lines.write(full.as_fd(), "a") && !lines.write(full.as_fd(), "b"));
        assert_eq!(lines.missing, 2);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_end() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert!(!Lines::new().write(writer.as_fd(), "a"));
    }

    #[test]
    fn a_reader_that_does_not_read_costs_one_wait_and_learns_what_it_missed() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut lines = Lines::new();
        let text = "x".repeat(999);
        let begun = Instant::now();
        let n_written = (0..100).filter(|_| lines.write(writer.as_fd(), &text)).count();
        assert!(begun.elapsed() < 10 * PATIENCE, "{:?}", begun.elapsed());
        // A pipe takes 64 KiB, or less where a user has many.
        assert!((3..66).contains(&n_written), "{n_written} lines fit");
        // Longer than what is written at once: its beginning fits once there is room for that.
        let mut said = vec![0; 2 * ATOMIC_BYTES];
        reader.read_exact(&mut said).unwrap();
        let long = "y".repeat(1 << 20);
        assert!(!lines.write(writer.as_fd(), &long));
        let reading = std::thread::spawn(move || reader.read_to_end(&mut said).map(|_| said).unwrap());
        while !lines.write(writer.as_fd(), "z") {
            std::thread::yield_now();
        }
        drop(writer);
        let said = String::from_utf8(reading.join().unwrap()).unwrap();
        let mut last = said.lines().rev();
        assert_eq!(last.next(), Some("z"));
        let (_, missing) = last.next().unwrap().split_once("could not be written: ").unwrap();
        assert!(missing.parse::<usize>().unwrap() > 100 - n_written, "{missing}");
        let torn = last.next().unwrap();
        assert!(torn.contains("yyyy") && torn.len() < long.len(), "{} bytes", torn.len());
        assert_eq!(said.lines().filter(|line| **line == text).count(), n_written);
    }
}
