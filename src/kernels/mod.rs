//! Matrix and vector kernels: written once over [`simd::Simd`], compiled once per CPU tier, chosen once at start.
//!
//! Kernels know no tensor names, files, threads or boards: they get slices, shapes and a [`Tile`].
//!
//! # Safety
//! A tier's functions carry its `#[target_feature]` list and may run only on a CPU that has it. A `&'static Kernels`
//! of a tier can be had from [`Tier::kernels`] alone, which probes the CPU for that very list; the wrappers on
//! [`Kernels`] check shapes and hold the unsafe calls.
#![allow(unsafe_code)]

mod acts;
pub mod attention;
mod ceiling;
mod formats;
mod grid;
mod int16;
mod matmul;
mod portable;
#[cfg(test)]
mod reference;
mod repack;
mod rows;
mod scaled_formats;
mod simd;
mod tables;
mod tier;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "each block is one expression of register intrinsics")]
mod x86_64;

use std::fmt;
use std::ops::Range;

pub use acts::{ActLayout, ActType, Acts, BLOCK};
pub use attention::{
    KEY_TILE, KvHead, KvType, QUERY_ROWS_MAX, Queries, RANGE_KEYS_MIN, RowResult, attend_scratch, key_ranges, merge,
    partials_len,
};
pub use ceiling::ReadWay;
pub use grid::{Block, Grid, Team};
pub use matmul::{Matrix, tile_bytes};
pub use tier::{Tier, TierError, available, select};

use crate::quant::{PANEL_ROWS, SUPER, WeightType};
use acts::Rows;
use matmul::scaled::{Kind, Unpack};

/// How many bytes ahead of their use weights that are read once are asked for; 0: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Into L1.
    pub l1_bytes: usize,
    /// Into L2 alone.
    pub l2_bytes: usize,
}

impl Ahead {
    /// Nothing is asked for.
    pub const NONE: Ahead = Ahead { l1_bytes: 0, l2_bytes: 0 };

    /// What suits this CPU.
    ///
    /// Measured with Q4_K as shares of the best read loop. Zen 4, two workers, whose own prefetcher does best alone on a
    /// panel read strictly front to back: nothing 92 to 96 %, L1 at 6 KiB 85 to 91 %, L2 at 8 KiB 87 to 91 %. The others
    /// were measured when a panel's tails still lay behind all its bodies. Zen 5, one worker, where asking for L2 keeps
    /// L1 waiting: nothing 55 %, L2 at 32 KiB 67 %, L1 80 % at 4 KiB, 84 % at 6 KiB, 82 % at 8 KiB. Granite Rapids, two
    /// workers, whose few buffers of L1 alone cannot cover the memory's latency: nothing 70 %, L1 at 1 to 4 KiB 84 %,
    /// with L2 at 4 KiB 89 %, at 16 KiB 95 %, at 32 KiB 97 %.
    pub fn probed() -> Ahead {
        #[cfg(target_arch = "x86_64")]
        match x86_64::maker_and_family() {
            (maker, 0x1a..) if maker == *b"AuthenticAMD" => return Ahead { l1_bytes: 6144, l2_bytes: 0 },
            (maker, _) if maker == *b"AuthenticAMD" => return Ahead::NONE,
            _ => (),
        }
        Ahead { l1_bytes: 1024, l2_bytes: 32768 }
    }

    /// What suits it where products keep it from running ahead by itself: with several tokens, or where weights are
    /// unpacked first.
    ///
    /// Measured on Zen 4, weights from memory, GMAC/s. 8 tokens, two workers, Q4_K and Q8_0: nothing 232 and 135 to 190,
    /// L2 at 4 KiB 306 and 194, at 16 KiB 344 and 232 (out of the caches 349 and 330). One token, one worker, IQ4_XS and
    /// Q5_K: nothing 18 and 12, L2 at 4 KiB 21 and 20, at 8 KiB 26 and 25, at 16 KiB 29 and 25, L1 at 2 KiB 21 and 14.
    fn where_busy(self) -> Ahead {
        if self == Ahead::NONE { Ahead { l1_bytes: 0, l2_bytes: 16384 } } else { self }
    }
}

/// Sizes that follow from a CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Columns of weights unpacked at a time; a multiple of 256. `32 rows x k_cols` int8 should fill no more than
    /// the L1 data cache.
    pub k_cols: usize,
    /// Prefetch distances of decode.
    pub ahead: Ahead,
    /// Those of several tokens, and of types that are unpacked first.
    pub ahead_busy: Ahead,
}

impl Default for Tile {
    fn default() -> Self {
        let ahead = Ahead::probed();
        Tile { k_cols: 1024, ahead, ahead_busy: ahead.where_busy() }
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

/// Weight types with kernels of their own, F32 to Q6_K.
const OWN_TYPES: usize = WeightType::Q6K as usize + 1;

/// Most rows a prefill kernel takes at once.
const STRIPE_ROWS_MAX: usize = 2 * PANEL_ROWS;

type StreamFn = unsafe fn(&Matrix<'_>, &Acts<'_>, &mut Block<'_, f32>, bool, Ahead);
type RepackFn = unsafe fn(WeightType, (&[u8], &[u8]), usize, &mut [u8]);
type AttendFn = unsafe fn(&KvHead<'_>, &Queries<'_>, Range<usize>, &mut [f32], &mut dyn FnMut(RowResult<'_>));
type ScaledFn = unsafe fn((&Matrix<'_>, &Unpack), &Acts<'_>, &mut Block<'_, f32>, bool, (&mut [u8], usize, Ahead));
type TiledFn = unsafe fn(&Matrix<'_>, &Acts<'_>, &mut Block<'_, f32>, bool, (&mut [u8], usize));

/// The kernels of one tier.
pub struct Kernels {
    tier: Tier,
    /// The types whose kernels are their own: the first ones.
    stream: [StreamFn; OWN_TYPES],
    tiled: [TiledFn; OWN_TYPES],
    /// The others: how they are unpacked, and what multiplies them, by [`Kind`].
    unpack: [Unpack; WeightType::ALL.len() - OWN_TYPES],
    scaled: [ScaledFn; Kind::ALL.len()],
    repack: RepackFn,
    quantise: unsafe fn(ActLayout, ActType, &mut [u8]),
    quantise_block: unsafe fn(ActType, &[f32], &mut [u8]),
    attend: AttendFn,
    store_key: unsafe fn(KvType, &[f32], &mut [u8], usize),
    store_value: unsafe fn(KvType, &[f32], &mut [u8]),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    add_rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    rms_norm_in_place: unsafe fn(&mut [f32], &[f32], f32),
    silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    gelu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    swiglu_clamped: unsafe fn(&[f32], &[f32], &mut [f32]),
    rope_halves: unsafe fn(&mut [f32], &[f32], &[f32]),
    rope_pairs: unsafe fn(&mut [f32], &[f32], &[f32]),
    dots: unsafe fn(usize) -> u64,
    dot_macs: fn(usize) -> u64,
    pair_dots: unsafe fn(usize) -> u64,
    pair_macs: fn(usize) -> u64,
    fmas: unsafe fn(usize) -> u64,
    fma_macs: fn(usize) -> u64,
    /// Where the CPU has them.
    bf16_dots: Option<unsafe fn(usize) -> u64>,
    bf16_macs: fn(usize) -> u64,
    read: unsafe fn(&[u8], ReadWay) -> u64,
    stripe_rows: usize,
    /// What f16 and bf16 weights are multiplied with when there are many tokens.
    acts_of_16_bits: ActType,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({})", self.tier.name())
    }
}

impl Kernels {
    /// The tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Rows of weights that the prefill kernel takes at once; columns of the result are best handed out in multiples.
    pub fn stripe_rows(&self) -> usize {
        self.stripe_rows
    }

    /// How the result `[n_tokens, row_stride(rows)]` of a product is shared out among `workers`, one stretch of panels each.
    pub fn share<'a>(&self, out: &'a mut [f32], n_tokens: usize, rows: usize, workers: usize) -> Grid<'a, f32> {
        let width = rows.next_multiple_of(PANEL_ROWS);
        let few = n_tokens <= STREAM_TOKENS_MAX;
        let block = match few {
            // Each start of a block costs about a tenth of what a panel of 2048 columns takes (Zen 4).
            true => PANEL_ROWS,
            // Stripes that share what activations are in L2, but few enough that workers finish together.
            false => (width / self.stripe_rows / (workers * 4)).clamp(1, 8) * self.stripe_rows,
        };
        let grid = Grid::new(out, (n_tokens, width, row_stride(rows)), (n_tokens.max(1), block)).in_parts(workers);
        if few { grid.tapered() } else { grid }
    }

    /// The form of activations that `n_tokens` must have to meet weights of this type.
    pub fn act_type(&self, ty: WeightType, n_tokens: usize) -> ActType {
        match ty {
            WeightType::F32 => ActType::F32,
            WeightType::F16 | WeightType::BF16 if n_tokens <= STREAM_TOKENS_MAX => ActType::F32,
            WeightType::F16 | WeightType::BF16 => self.acts_of_16_bits,
            // A scale per block of the weights, as in the engine whose distance from the exact answer is the yardstick.
            _ if ty.block_len() == SUPER => ActType::Q8x256,
            _ => ActType::Q8x32,
        }
    }

    /// The name of the kernel that multiplies `n_tokens` by a matrix of this type.
    pub fn name(&self, ty: WeightType, n_tokens: usize) -> String {
        let act = self.act_type(ty, n_tokens).name();
        let kind = if n_tokens <= STREAM_TOKENS_MAX { "gemv" } else { "gemm" };
        format!("{kind}_{}_{act}_{}", ty.short(), self.tier.name())
    }

    /// `out (+)= acts x w^T` for the columns `out` (columns are rows of `w`; whole panels, all tokens).
    /// `tile` is scratch of [`Tile::scratch_bytes`]; off a cache line everything unpacked lies across two.
    ///
    /// # Panics
    /// If shapes do not belong together.
    pub fn matmul(
        &self,
        ty: WeightType,
        w: &Matrix<'_>,
        acts: &Acts<'_>,
        out: &mut Block<'_, f32>,
        accumulate: bool,
        (tile, scratch): (Tile, &mut [u8]),
    ) {
        assert!(w.cols == acts.layout.cols() && w.cols.is_multiple_of(ty.block_len()));
        assert!(w.panel_bytes == ty.panel_bytes(w.cols));
        assert!(out.rows == acts.n_tokens && out.cols.is_multiple_of(PANEL_ROWS));
        assert!((out.col0 + out.cols) / PANEL_ROWS * w.panel_bytes <= w.panels.len());
        assert!(acts.records.len() >= acts.n_tokens * acts.layout.bytes());
        let own = (ty as usize) < OWN_TYPES;
        if own && acts.n_tokens <= STREAM_TOKENS_MAX {
            let ahead = if acts.n_tokens > 1 { tile.ahead_busy } else { tile.ahead };
            // SAFETY: the table of this tier was obtained through its probe; shapes were checked above.
            return unsafe { self.stream[ty as usize](w, acts, out, accumulate, ahead) };
        }
        assert!(tile.k_cols.is_multiple_of(SUPER));
        assert!(scratch.len() >= tile.scratch_bytes() && scratch.as_ptr().addr().is_multiple_of(4));
        if own {
            // SAFETY: as above.
            return unsafe { self.tiled[ty as usize](w, acts, out, accumulate, (scratch, tile.k_cols)) };
        }
        let unpack = &self.unpack[ty as usize - OWN_TYPES];
        if acts.n_tokens == 1 && unpack.streams() {
            // SAFETY: as above.
            return unsafe { unpack.stream(w, acts, out, accumulate, tile.ahead) };
        }
        let product = self.scaled[unpack.kind as usize];
        // In turns with products, in which nothing is read: what the CPU fetches by itself ends with each.
        let ahead = tile.ahead_busy;
        // SAFETY: as above; `unpack` is of the same table.
        unsafe { product((w, unpack), acts, out, accumulate, (scratch, tile.k_cols, ahead)) }
    }

    /// Sixteen rows of a file, or the last ones of a matrix, into their panel, as [`WeightType::repack_panel`]. What comes
    /// `next` after the rows, if it does not lie in a cache yet, is asked for on the way.
    ///
    /// # Panics
    /// As [`WeightType::repack_panel`].
    pub fn repack(&self, ty: WeightType, (rows, next): (&[u8], &[u8]), cols: usize, panel: &mut [u8]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.repack)(ty, (rows, next), cols, panel) }
    }

    /// Fills the int8 part of a record from its f32 part (see [`ActLayout`]).
    pub fn quantise(&self, layout: ActLayout, kind: ActType, record: &mut [u8]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.quantise)(layout, kind, record) }
    }

    /// Fills the block of up to 256 columns of a record from their values.
    ///
    /// # Panics
    /// If the form does not lie in blocks ([`ActType::in_blocks`]), or the block is too short.
    pub fn quantise_block(&self, kind: ActType, values: &[f32], block: &mut [u8]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.quantise_block)(kind, values, block) }
    }

    /// Attention of some query rows over the keys of one range (see [`key_ranges`]; `queries.first_key() .. queries.keys()`
    /// for all) of one head's cache: every row's result goes to `put`. `scratch` holds [`attend_scratch`]; see [`attention`].
    ///
    /// # Panics
    /// If there are no rows or more than [`QUERY_ROWS_MAX`], or shapes do not belong together.
    pub fn attend(
        &self,
        kv: &KvHead<'_>,
        queries: &Queries<'_>,
        keys: Range<usize>,
        scratch: &mut [f32],
        put: &mut dyn FnMut(RowResult<'_>),
    ) {
        assert!((1..=QUERY_ROWS_MAX).contains(&queries.rows()), "{} query rows", queries.rows());
        assert!(keys.start.is_multiple_of(KEY_TILE) && keys.end <= queries.keys() && queries.window > 0);
        assert!(queries.sinks.is_none_or(|sinks| sinks.len() == queries.group));
        assert!(keys.end.div_ceil(KEY_TILE) <= kv.pages.len(), "{} keys in {} pages", keys.end, kv.pages.len());
        assert!(scratch.len() >= attend_scratch(kv.key_dim.max(kv.value_dim)));
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.attend)(kv, queries, keys, scratch, put) }
    }

    /// Writes one key into place `lane` of a panel of K, [`KvType::panel_bytes`] for 16 positions. Rounded to f16 (to
    /// nearest even), or to multiples of `max / 127` per 32 values.
    pub fn store_key(&self, kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.store_key)(kv_type, key, panel, lane) }
    }

    /// Writes one row of V, [`KvType::row_bytes`]; rounding as [`Kernels::store_key`].
    pub fn store_value(&self, kv_type: KvType, value: &[f32], row: &mut [u8]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.store_value)(kv_type, value, row) }
    }

    /// RMSNorm of one row.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// RMSNorm of one row, added to `out`.
    pub fn add_rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.add_rms_norm)(x, weight, eps, out) }
    }

    /// RMSNorm of one row where it is.
    pub fn rms_norm_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.rms_norm_in_place)(x, weight, eps) }
    }

    /// SwiGLU of one row.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.silu_mul)(gate, up, out) }
    }

    /// GeGLU of one row, with the GELU that is made of tanh.
    pub fn gelu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.gelu_mul)(gate, up, out) }
    }

    /// The clamped SwiGLU of gpt-oss of one row.
    pub fn swiglu_clamped(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.swiglu_clamped)(gate, up, out) }
    }

    /// Int8 dot products and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_int8(&self, rounds: usize) -> (u64, u64) {
        // SAFETY: the table of this tier was obtained through its probe.
        (unsafe { (self.dots)(rounds) }, (self.dot_macs)(rounds))
    }

    /// Dot products of 16-bit integers and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_int16(&self, rounds: usize) -> (u64, u64) {
        // SAFETY: the table of this tier was obtained through its probe.
        (unsafe { (self.pair_dots)(rounds) }, (self.pair_macs)(rounds))
    }

    /// f32 multiply-adds and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_f32(&self, rounds: usize) -> (u64, u64) {
        // SAFETY: the table of this tier was obtained through its probe.
        (unsafe { (self.fmas)(rounds) }, (self.fma_macs)(rounds))
    }

    /// bf16 dot products and nothing else, where the tier has them: a checksum, and how many multiplications it took.
    pub fn peak_bf16(&self, rounds: usize) -> Option<(u64, u64)> {
        // SAFETY: the table of this tier was obtained through its probe.
        self.bf16_dots.map(|dots| (unsafe { dots(rounds) }, (self.bf16_macs)(rounds)))
    }

    /// Reads every byte once, but for a rest below 512; a checksum.
    pub fn read(&self, data: &[u8], way: ReadWay) -> u64 {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.read)(data, way) }
    }

    /// Rotary embedding of one head, pairs `(i, i + n)`.
    pub fn rope_halves(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.rope_halves)(x, cos, sin) }
    }

    /// Rotary embedding of one head, neighbouring pairs `(2i, 2i + 1)`.
    pub fn rope_pairs(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.rope_pairs)(x, cos, sin) }
    }
}

#[cfg(test)]
mod tests;
