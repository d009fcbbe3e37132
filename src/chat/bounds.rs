//! What a chat template may take of the box. It comes inside a model file, which may come from anywhere, and it renders
//! what a client sends; neither may end the process, hold it up, or fill its memory.
//!
//! | what could grow | what bounds it | where |
//! |---|---|---|
//! | the stack of the parser and the code generator, which recurse over operators and branches | [`SOURCE_BYTES_MAX`], [`TAG_TOKENS_MAX`], [`BRANCHES_MAX`], counted before they run | `code` |
//! | the stack of macros and recursive loops | minijinja's recursion limit | |
//! | the stack of what walks values: printing, comparing, `tojson`, dropping | [`LEVELS_MAX`], when a value is made | `value` |
//! | a value that holds another many times, so that walking it takes for ever | [`VALUE_BYTES_MAX`], when a value is made | `value` |
//! | the result, or the work, of one filter, method or operator | [`WORK_MAX`], estimated before it runs | `filters`, `methods`, `json` |
//! | memory: variables, output, captured output | [`LIVE_BYTES_MAX`] by the allocator's count, after each operation | [`Meter`] |
//! | time | [`TIME_MAX`] of the thread's CPU time, after each operation and each turn of a loop | [`Meter`] |
//! | all of it together | [`STEPS_MAX`], minijinja's fuel: an instruction, or 64 bytes made | |
//!
//! All of it happens on the template's own thread, whose stack, [`STACK_BYTES`], suffices for the most that is let in.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize};
use std::time::Duration;

use minijinja::{Error, ErrorKind};

use crate::sys::{alloc, cpu};

/// Most bytes of a template's source; published ones have up to 17 thousand.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;

/// Most tokens between `{{` and `}}` or `{%` and `%}`; published templates have up to 56. An operator is a level of the
/// parsed tree, so this is also its greatest depth.
pub const TAG_TOKENS_MAX: usize = 4096;

/// Most `elif` of a template, each of which is a level in the one before; published templates have up to 20.
pub const BRANCHES_MAX: usize = 512;

/// Most levels of lists and mappings in one another. Those of a request have at most 128, the limit of its JSON, and the
/// few around it.
pub const LEVELS_MAX: usize = 200;

/// Most bytes of a value, all that is in it counted as often as it is in it, and of the rendered text.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// Most bytes that one operation may make or look at.
pub const WORK_MAX: usize = 64 << 20;

/// Most bytes that a template may hold besides what it was given.
pub const LIVE_BYTES_MAX: usize = 128 << 20;

/// Most work in all: instructions, or 64 bytes made. Far above what published templates need for a long chat.
pub const STEPS_MAX: u64 = 10_000_000;

/// Most CPU time for one chat.
pub const TIME_MAX: Duration = Duration::from_secs(1);

/// Stack of a template's thread. It takes no memory until it is used.
pub const STACK_BYTES: usize = 16 << 20;

/// Most levels of macros and recursive loops, in minijinja's measure, where a macro costs 4.
pub const RECURSION_MAX: usize = 500;

/// Operations between two looks at the clock.
const TICKS: usize = 16;

/// Bytes looked at that count as one more operation.
const TICK_BYTES: usize = 64 << 10;

/// A bound that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`SOURCE_BYTES_MAX`], with what was found.
    Source(usize),
    /// [`TAG_TOKENS_MAX`], with the line.
    Tag(usize),
    /// [`BRANCHES_MAX`].
    Branches,
    /// [`LEVELS_MAX`].
    Levels,
    /// [`VALUE_BYTES_MAX`].
    Size,
    /// [`WORK_MAX`].
    Work,
    /// [`LIVE_BYTES_MAX`].
    Live,
    /// [`STEPS_MAX`].
    Steps,
    /// [`TIME_MAX`].
    Time,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes >> 20;
        match self {
            Bound::Source(found) => write!(f, "its source has {found} bytes, at most {SOURCE_BYTES_MAX} are taken"),
            Bound::Tag(line) => {
                write!(f, "a tag on line {line} has more than {TAG_TOKENS_MAX} words and signs, the most that is taken")
            }
            Bound::Branches => write!(f, "it has more than {BRANCHES_MAX} elif, the most that is taken"),
            Bound::Levels => {
                write!(f, "values are nested more than {LEVELS_MAX} levels deep, the most that is allowed")
            }
            Bound::Size => write!(f, "a value has more than {} MiB, the most that is allowed", mib(VALUE_BYTES_MAX)),
            Bound::Work => {
                write!(f, "one step would take more than {} MiB, the most that is allowed", mib(WORK_MAX))
            }
            Bound::Live => {
                write!(f, "it holds more than {} MiB at once, the most that is allowed", mib(LIVE_BYTES_MAX))
            }
            Bound::Steps => write!(f, "it takes more than {STEPS_MAX} steps, the most that is allowed"),
            Bound::Time => {
                write!(f, "it computes for more than {} s, the most that is allowed", TIME_MAX.as_secs())
            }
        }
    }
}

impl std::error::Error for Bound {}

impl From<Bound> for Error {
    fn from(bound: Bound) -> Error {
        Error::new(ErrorKind::InvalidOperation, bound.to_string()).with_source(bound)
    }
}

impl Bound {
    /// The bound that an error of minijinja is about, if it is about one.
    pub fn of(error: &Error) -> Option<Bound> {
        let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
        let found = causes.find_map(|cause| cause.downcast_ref::<Bound>().copied());
        found.or((error.kind() == ErrorKind::OutOfFuel).then_some(Bound::Steps))
    }
}

/// What a template takes of time and memory. It is read and written by the template's thread alone; the types are those
/// that minijinja can hold.
#[derive(Debug, Default)]
pub struct Meter {
    /// The thread's CPU time at which it has to end, in nanoseconds.
    time_max_ns: AtomicU64,
    /// The thread's live bytes that are too many.
    live_max: AtomicIsize,
    /// Operations until the next look at the clock.
    ticks: AtomicUsize,
}

impl Meter {
    /// A chat begins; nothing has been taken yet.
    pub fn begin(&self) {
        self.time_max_ns.store(time_ns().saturating_add(TIME_MAX.as_nanos() as u64), Relaxed);
        self.live_max.store(alloc::live_bytes().saturating_add_unsigned(LIVE_BYTES_MAX), Relaxed);
        self.ticks.store(0, Relaxed);
    }

    /// To be called after each operation, with the bytes that it made or looked at.
    ///
    /// # Errors
    /// A bound on time or memory.
    pub fn tick(&self, bytes: usize) -> Result<(), Error> {
        if alloc::live_bytes() > self.live_max.load(Relaxed) {
            return Err(Bound::Live.into());
        }
        let left = self.ticks.load(Relaxed).checked_sub(1 + bytes / TICK_BYTES);
        self.ticks.store(left.unwrap_or(TICKS), Relaxed);
        if left.is_none() && time_ns() > self.time_max_ns.load(Relaxed) {
            return Err(Bound::Time.into());
        }
        Ok(())
    }

    /// To be called before an operation that is going to make, or look at, so many bytes.
    ///
    /// # Errors
    /// [`Bound::Work`], and those of [`Meter::tick`].
    pub fn work(&self, bytes: usize) -> Result<(), Error> {
        if bytes > WORK_MAX { Err(Bound::Work.into()) } else { self.tick(bytes) }
    }
}

fn time_ns() -> u64 {
    cpu::thread_time().as_nanos() as u64
}
