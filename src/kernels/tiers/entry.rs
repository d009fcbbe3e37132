//! A line of the list of tiers.

use crate::kernels::table::Kernels;
use crate::kernels::tier::Tier;

/// A tier that this build has.
pub struct TierEntry {
    /// Which.
    pub tier: Tier,
    /// The CPU features it takes.
    pub features: &'static str,
    /// Whether this CPU has them all.
    pub probe: fn() -> bool,
    /// Whether it is worth more here than the tier below.
    pub gains: fn() -> bool,
    /// What it has.
    pub kernels: &'static Kernels,
}
