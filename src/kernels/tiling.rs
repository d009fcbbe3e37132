//! Sizes that products are cut into: what suits a CPU's caches, and what the kernels' register blocks ask for.

use super::cpu::{self, CoreKind};
use crate::quant::PANEL_ROWS;

/// How many bytes ahead of their use weights that are read once are asked for; 0: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchDistance {
    /// Into L1.
    pub l1_bytes: usize,
    /// Into L2 alone.
    pub l2_bytes: usize,
}

impl PrefetchDistance {
    /// Nothing is asked for.
    pub const NONE: PrefetchDistance = PrefetchDistance { l1_bytes: 0, l2_bytes: 0 };

    /// What suits this CPU.
    ///
    /// Measured with Q4_K as shares of the best read loop. Zen 4, two workers, whose own prefetcher does best alone on a
    /// panel read strictly front to back: nothing 92 to 96 %, L1 at 6 KiB 85 to 91 %, L2 at 8 KiB 87 to 91 %. The others
    /// were measured when a panel's tails still lay behind all its bodies. Zen 5, one worker, where asking for L2 keeps
    /// L1 waiting: nothing 55 %, L2 at 32 KiB 67 %, L1 80 % at 4 KiB, 84 % at 6 KiB, 82 % at 8 KiB. Granite Rapids, two
    /// workers, whose few buffers of L1 alone cannot cover the memory's latency: nothing 70 %, L1 at 1 to 4 KiB 84 %,
    /// with L2 at 4 KiB 89 %, at 16 KiB 95 %, at 32 KiB 97 %.
    pub fn probed() -> PrefetchDistance {
        match cpu::core() {
            CoreKind::Zen5 => PrefetchDistance { l1_bytes: 6144, l2_bytes: 0 },
            CoreKind::Zen => PrefetchDistance::NONE,
            CoreKind::Other => PrefetchDistance { l1_bytes: 1024, l2_bytes: 32768 },
        }
    }

    /// What suits it where products keep it from running ahead by itself: with several tokens, or where weights are
    /// unpacked first.
    ///
    /// Measured on Zen 4, weights from memory, GMAC/s. 8 tokens, two workers, Q4_K and Q8_0: nothing 232 and 135 to 190,
    /// L2 at 4 KiB 306 and 194, at 16 KiB 344 and 232 (out of the caches 349 and 330). One token, one worker, IQ4_XS and
    /// Q5_K: nothing 18 and 12, L2 at 4 KiB 21 and 20, at 8 KiB 26 and 25, at 16 KiB 29 and 25, L1 at 2 KiB 21 and 14.
    fn for_batches(self) -> PrefetchDistance {
        if self == PrefetchDistance::NONE { PrefetchDistance { l1_bytes: 0, l2_bytes: 16384 } } else { self }
    }
}

/// Sizes that follow from a CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Columns of weights unpacked at a time; a multiple of 256. `32 rows x k_cols` int8 should fill no more than
    /// the L1 data cache.
    pub k_cols: usize,
    /// Prefetch distances of decode.
    pub ahead: PrefetchDistance,
    /// Those of several tokens, and of types that are unpacked first.
    pub ahead_batch: PrefetchDistance,
}

impl Default for Tile {
    fn default() -> Self {
        let ahead = PrefetchDistance::probed();
        Tile { k_cols: 1024, ahead, ahead_batch: ahead.for_batches() }
    }
}

impl Tile {
    /// Bytes of scratch each worker needs for it.
    pub const fn scratch_bytes(self) -> usize {
        tile_bytes(self.k_cols, STRIPE_ROWS_MAX)
    }
}

/// Values from one row of a product's result to the next: whole panels, as the kernels write them, and an odd number of
/// them, so that the rows of a stripe do not fall on the same cache sets.
pub const fn row_stride(rows: usize) -> usize {
    (rows.div_ceil(PANEL_ROWS) | 1) * PANEL_ROWS
}

/// Tokens up to which weights are streamed through registers instead of being unpacked into a tile.
pub const STREAM_TOKENS_MAX: usize = 8;

/// Most rows a prefill kernel takes at once.
pub(super) const STRIPE_ROWS_MAX: usize = 2 * PANEL_ROWS;

/// Bytes of tile scratch a worker needs for `k_cols` columns of `rows` rows of any type: quants, scales per 16
/// columns, minima per 64, floats per 32; or two floats per 16; or (fewer columns of) f32 values.
pub const fn tile_bytes(k_cols: usize, rows: usize) -> usize {
    rows * (k_cols + k_cols / 16 * 4 + k_cols / 64 * 4 + 2 * (k_cols / 32 * 4))
}
