//! Cores by name.

/// The cores that kernels tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "these are told apart on x86-64 alone"))]
pub enum CoreKind {
    /// AMD's, up to Zen 4.
    Zen,
    /// AMD's from Zen 5 on.
    Zen5,
    /// All others.
    Other,
}
