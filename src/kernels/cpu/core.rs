//! Cores by name.

/// The cores that kernels tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreKind {
    /// AMD's, up to Zen 4.
    Zen,
    /// AMD's from Zen 5 on.
    Zen5,
    /// All others.
    Other,
}
