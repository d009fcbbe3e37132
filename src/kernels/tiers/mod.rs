//! The tiers compiled, which of them this CPU has, and the choice.

mod entry;
mod instantiate;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fmt;

use super::table::Kernels;
use super::tier::Tier;
use crate::error::{Error, Exit};
use entry::TierEntry;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

/// No tiers but the scalar one.
#[cfg(not(target_arch = "x86_64"))]
mod arch {
    pub const TIERS: [&super::entry::TierEntry; 0] = [];
    pub const LACKING: &str = "a CPU of another architecture";
}

/// A tier this CPU does not have, or one that does not exist.
#[derive(Debug, PartialEq, Eq)]
pub enum TierError {
    /// No tier of that name.
    Unknown(String),
    /// The CPU lacks the tier.
    Missing {
        /// What was asked for.
        asked: Tier,
        /// The best there is.
        best: Tier,
    },
}

impl fmt::Display for TierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TierError::Unknown(name) => {
                let built: Vec<&str> = Tier::built().map(Tier::name).collect();
                write!(f, "no kernel tier `{name}`: use {}", built.join(", "))
            }
            TierError::Missing { asked, best } => write!(
                f,
                "this CPU lacks the kernel tier {}: it needs {}; the best here is {}: leave --isa out, or use --isa {}",
                asked.name(),
                asked.features(),
                best.name(),
                best.name()
            ),
        }
    }
}

impl std::error::Error for TierError {}

impl From<TierError> for Error {
    fn from(e: TierError) -> Self {
        let exit = match e {
            TierError::Unknown(_) => Exit::Usage,
            TierError::Missing { .. } => Exit::Cpu,
        };
        Error::new(exit, e)
    }
}

impl Tier {
    /// The tiers this build has kernels of, weakest first.
    pub fn built() -> impl Iterator<Item = Tier> {
        entries().map(|entry| entry.tier)
    }

    /// The CPU features it takes.
    pub fn features(self) -> &'static str {
        self.entry().map_or(arch::LACKING, |entry| entry.features)
    }

    /// The kernels of this tier, if this CPU can run them.
    pub fn kernels(self) -> Option<&'static Kernels> {
        self.entry().filter(|entry| (entry.probe)()).map(|entry| entry.kernels)
    }

    fn entry(self) -> Option<&'static TierEntry> {
        entries().find(|entry| entry.tier == self)
    }
}

impl std::str::FromStr for Tier {
    type Err = TierError;

    fn from_str(name: &str) -> Result<Self, TierError> {
        Tier::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| TierError::Unknown(name.to_owned()))
    }
}

/// What this build has, weakest first.
fn entries() -> impl Iterator<Item = &'static TierEntry> {
    std::iter::once(&instantiate::scalar::ENTRY).chain(arch::TIERS.iter().copied())
}

/// The kernels of every tier this CPU has, weakest first.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    entries().filter(|entry| (entry.probe)()).map(|entry| entry.kernels)
}

/// Chooses the tier: the one asked for, or the best under `ceiling`.
///
/// # Errors
/// The tier asked for is not had by this CPU.
pub fn select(asked: Option<Tier>, ceiling: Option<Tier>) -> Result<&'static Kernels, TierError> {
    let worth_it = || entries().filter(|entry| (entry.probe)() && (entry.gains)());
    let best = worth_it().last().unwrap_or(&instantiate::scalar::ENTRY);
    match asked {
        Some(asked) => asked.kernels().ok_or(TierError::Missing { asked, best: best.tier }),
        None => Ok(worth_it().filter(|entry| ceiling.is_none_or(|c| entry.tier <= c)).last().unwrap_or(best).kernels),
    }
}
