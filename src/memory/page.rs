//! The pages that memory is made of, and the regions that it is for.

use std::fmt;

use crate::sys::page_size::{BASE_PAGE_BYTES, HugeSize};

/// The page a plan is rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageKind {
    /// Ordinary 4 KiB pages.
    #[default]
    Base4K,
    /// Explicit 2 MiB pages.
    Huge2M,
    /// Explicit 1 GiB pages.
    Huge1G,
}

impl PageKind {
    /// The explicit huge pages there are.
    pub const HUGE: [PageKind; 2] = [PageKind::Huge2M, PageKind::Huge1G];

    /// Bytes of one page.
    pub const fn bytes(self) -> u64 {
        match self.huge() {
            None => BASE_PAGE_BYTES as u64,
            Some(size) => size.bytes() as u64,
        }
    }

    /// The huge-page size, `None` for ordinary pages.
    pub const fn huge(self) -> Option<HugeSize> {
        match self {
            PageKind::Base4K => None,
            PageKind::Huge2M => Some(HugeSize::M2),
            PageKind::Huge1G => Some(HugeSize::G1),
        }
    }

    /// The size as the kernel command line spells it: `4K`, `2M`, `1G`.
    pub const fn name(self) -> &'static str {
        match self {
            PageKind::Base4K => "4K",
            PageKind::Huge2M => "2M",
            PageKind::Huge1G => "1G",
        }
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PageKind::Base4K => "4 KiB",
            PageKind::Huge2M => "2 MiB",
            PageKind::Huge1G => "1 GiB",
        })
    }
}

/// What a region is for. The order is the order in the arena: the weights, which are sealed after loading, come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionName {
    /// Repacked weights; sealed after loading.
    Weights,
    /// Token strings, merges and their tables; nothing writes them after loading.
    Vocab,
    /// The KV cache.
    Kv,
    /// States of recurrent layers: of running sequences, and checkpoints of prefixes.
    States,
    /// Activations, logits and every other buffer of the engine.
    Scratch,
}

impl RegionName {
    /// Every region, in the order of the arena.
    pub const ALL: [RegionName; 5] =
        [RegionName::Weights, RegionName::Vocab, RegionName::Kv, RegionName::States, RegionName::Scratch];

    /// The name in tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            RegionName::Weights => "weights",
            RegionName::Vocab => "vocab",
            RegionName::Kv => "kv",
            RegionName::States => "states",
            RegionName::Scratch => "scratch",
        }
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_discriminant() {
        for (index, name) in RegionName::ALL.into_iter().enumerate() {
            assert_eq!(name as usize, index);
        }
    }
}
