//! Which core this is, where one is known to want something of its own.

#[cfg(target_arch = "x86_64")]
mod x86_64;

/// The cores that kernels tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// AMD's, up to Zen 4.
    Zen,
    /// AMD's from Zen 5 on.
    Zen5,
    /// All others.
    Other,
}

/// The core this runs on.
pub fn core() -> Core {
    #[cfg(target_arch = "x86_64")]
    return x86_64::core();
    #[cfg(not(target_arch = "x86_64"))]
    return Core::Other;
}
