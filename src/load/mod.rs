//! Weights from file to their final pages, repacked on the way.
//!
//! [`header`] opens the files, [`chunks`] cuts what is wanted of them into stretches, [`reader`] brings a stretch into
//! a buffer, [`weights`] does so with several [`threads`] and lays everything down. [`resident`] is about weights that another
//! process has loaded.

pub mod chunks;
mod digest;
pub mod header;
pub mod reader;
pub mod resident;
pub mod rows;
pub mod stage;
mod threads;
pub mod weights;

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a load is, for whoever wants to watch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes read.
    pub done: AtomicU64,
    /// Bytes there are to read; 0 until that is known.
    pub total: AtomicU64,
}

impl Progress {
    /// A load of so many bytes is to come.
    pub fn of(total_bytes: u64) -> Progress {
        Progress { total: AtomicU64::new(total_bytes), ..Progress::default() }
    }

    /// Bytes read of several loads, and bytes there are to read.
    pub fn sum(all: &[Progress]) -> (u64, u64) {
        let sum = |of: fn(&Progress) -> &AtomicU64| all.iter().map(|each| of(each).load(Ordering::Relaxed)).sum();
        (sum(|each| &each.done), sum(|each| &each.total))
    }

    /// A load of so many bytes begins.
    pub fn begin(&self, total_bytes: u64) {
        self.total.store(total_bytes, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }
}

/// How model files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// What is in the page cache is copied from there, the rest read around it where the file system can.
    #[default]
    Auto,
    /// Through the page cache; what was not there before is dropped again.
    Buffered,
    /// Around the page cache, or not at all.
    Direct,
}

impl Io {
    /// The name options use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Io::Auto => "auto",
            Io::Buffered => "buffered",
            Io::Direct => "direct",
        }
    }
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Io {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Io::Auto),
            "buffered" => Ok(Io::Buffered),
            "direct" => Ok(Io::Direct),
            _ => Err("expected auto, buffered or direct"),
        }
    }
}
