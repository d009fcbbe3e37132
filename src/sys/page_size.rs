//! Sizes of pages.

/// Size of an ordinary page on every supported target; also the least alignment of a mapping.
pub const BASE_PAGE_BYTES: usize = 4096;

/// Explicit huge-page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugeSize {
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl HugeSize {
    /// Bytes of one page.
    pub const fn bytes(self) -> usize {
        match self {
            HugeSize::M2 => 2 << 20,
            HugeSize::G1 => 1 << 30,
        }
    }
}
