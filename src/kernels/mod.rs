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
mod matmul;
mod portable;
#[cfg(test)]
mod reference;
mod repack;
mod rows;
mod scaled_formats;
mod simd;
mod tier;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "each block is one expression of register intrinsics")]
mod x86_64;

use std::fmt;
use std::ops::Range;

pub use acts::{ActLayout, ActType, Acts};
pub use attention::{
    KEY_TILE, KvHead, KvType, QUERY_ROWS_MAX, Queries, RANGE_KEYS_MIN, RowResult, attend_scratch, key_ranges, merge,
    partials_len,
};
pub use ceiling::ReadWay;
pub use grid::{Block, Grid, Team};
pub use matmul::{Matrix, tile_bytes};
pub use rows::Biased;
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
    attend: AttendFn,
    store_key: unsafe fn(KvType, &[f32], &mut [u8], usize),
    store_value: unsafe fn(KvType, &[f32], &mut [u8]),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    add_rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    rms_norm_in_place: unsafe fn(&mut [f32], &[f32], f32),
    silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    gelu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
    swiglu_clamped: unsafe fn(Biased<'_>, Biased<'_>, &mut [f32]),
    rope_halves: unsafe fn(&mut [f32], &[f32], &[f32]),
    rope_pairs: unsafe fn(&mut [f32], &[f32], &[f32]),
    dots: unsafe fn(usize) -> u64,
    dot_macs: fn(usize) -> u64,
    fmas: unsafe fn(usize) -> u64,
    fma_macs: fn(usize) -> u64,
    /// Where the CPU has them.
    bf16_dots: Option<unsafe fn(usize) -> u64>,
    bf16_macs: fn(usize) -> u64,
    read: unsafe fn(&[u8], ReadWay) -> u64,
    stripe_rows: usize,
    /// What bf16 weights are multiplied with when there are many tokens.
    bf16_acts: ActType,
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

    /// How the result `[n_tokens, row_stride(rows)]` of a product is shared out among `workers`, one stretch of panels each. A block is
    /// some panels: in decode a straight stream, in prefill stripes that share what activations are in L2; but few enough
    /// that workers finish together.
    pub fn share<'a>(&self, out: &'a mut [f32], n_tokens: usize, rows: usize, workers: usize) -> Grid<'a, f32> {
        let width = rows.next_multiple_of(PANEL_ROWS);
        let block = match n_tokens <= STREAM_TOKENS_MAX {
            true => (width / PANEL_ROWS / (workers * 16)).clamp(1, 8) * PANEL_ROWS,
            false => (width / self.stripe_rows / (workers * 4)).clamp(1, 8) * self.stripe_rows,
        };
        Grid::new(out, (n_tokens, width, row_stride(rows)), (n_tokens.max(1), block)).in_parts(workers)
    }

    /// The form of activations that `n_tokens` must have to meet weights of this type.
    pub fn act_type(&self, ty: WeightType, n_tokens: usize) -> ActType {
        match ty {
            WeightType::F32 | WeightType::F16 => ActType::F32,
            WeightType::BF16 if n_tokens <= STREAM_TOKENS_MAX => ActType::F32,
            WeightType::BF16 => self.bf16_acts,
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
        assert!(scratch.len() >= attend_scratch(kv.head_dim));
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

    /// The clamped SwiGLU of gpt-oss of one row: gate and up, each with its bias.
    pub fn swiglu_clamped(&self, gate: Biased<'_>, up: Biased<'_>, out: &mut [f32]) {
        // SAFETY: the table of this tier was obtained through its probe.
        unsafe { (self.swiglu_clamped)(gate, up, out) }
    }

    /// Int8 dot products and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_int8(&self, rounds: usize) -> (u64, u64) {
        // SAFETY: the table of this tier was obtained through its probe.
        (unsafe { (self.dots)(rounds) }, (self.dot_macs)(rounds))
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

/// Aligns the frame of the function that it is inlined into, to where vectors do not cross cache lines. The compiler keeps those
/// in the frame that it has no registers for, and must know before it counts them that the frame can be aligned: it does where
/// there is a variable that needs it. (Zen 4, six registers kept, frame off by 16: 20 % slower.)
#[inline(always)]
fn align_frame() {
    #[repr(align(64))]
    struct Line(#[allow(dead_code, reason = "bytes to be aligned")] [u8; 64]);
    let mut line = Line([0; 64]);
    std::hint::black_box(&mut line);
}

/// How a type is unpacked, compiled for the features of a tier.
macro_rules! unpack {
    ([$($feature:literal),*], $simd:ty, $token:expr, $format:ident) => {{
        $(#[target_feature(enable = $feature)])*
        fn fill(blocks: &[u8], tile: &mut scaled::Tile<'_>, ahead: Ahead) {
            scaled::fill::<_, scaled_formats::$format>($token, blocks, tile, ahead);
        }
        $(#[target_feature(enable = $feature)])*
        fn stream(panel: &[u8], rows: &Rows<'_>, ahead: Ahead, out: &mut [f32; PANEL_ROWS]) {
            align_frame();
            scaled::stream::<_, scaled_formats::$format>($token, panel, rows, ahead, out);
        }
        Unpack::new::<$simd, scaled_formats::$format>(fill, stream)
    }};
}

/// Emits one tier: the probe, the entry points with the very same feature list, and the table. `V` vectors of rows and
/// `N` tokens are the register block of integer prefill, `NS` tokens where scales are integers (their sums take three
/// registers where the others take two), `NF` tokens that of float prefill. The table goes through `$finish`, where it may
/// take kernels of another tier.
macro_rules! tier {
    ($module:ident, $tier:expr, $simd:ty, $token:expr, [$($feature:tt),*], $finish:expr, V = $v:literal, N = $n:literal, NS = $ns:literal, NF = $nf:literal) => {
        mod $module {
            use super::acts::quantise as quantise_row;
            use super::attention::{attend as attend_rows, store_key as store_one_key, store_value as store_one_value};
            use super::formats::*;
            use super::matmul::{float, int, scaled};
            use super::{repack as repack_rows, rows, *};

            /// The CPU features of the tier.
            #[allow(dead_code, reason = "the scalar tier needs none")]
            pub const FEATURES: &str = concat!("", $($feature, " "),*);

            /// Whether this CPU has them all.
            #[allow(dead_code, reason = "the scalar tier needs no probe")]
            pub fn probe() -> bool {
                true $(&& std::arch::is_x86_feature_detected!($feature))*
            }

            const STRIPE_ROWS: usize = $v * <$simd as super::simd::Simd>::LANES;

            macro_rules! stream {
                ($name:ident, $kind:ident, $format:ty) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(w: &Matrix<'_>, acts: &Acts<'_>, out: &mut Block<'_, f32>, accumulate: bool, ahead: Ahead) {
                        align_frame();
                        $kind::stream::<_, $format>($token, w, acts, out, accumulate, ahead);
                    }
                };
            }
            stream!(stream_f32, float, F32);
            stream!(stream_f16, float, F16);
            stream!(stream_bf16, float, Bf16);
            stream!(stream_q8_0, int, Q8_0);
            stream!(stream_q4_0, int, Q4_0);
            stream!(stream_q4k, int, Q4K);
            stream!(stream_q6k, int, Q6K);

            macro_rules! tiled {
                ($name:ident, $few:ident, $kind:ident, $format:ty, $tokens:literal) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(
                        w: &Matrix<'_>,
                        acts: &Acts<'_>,
                        out: &mut Block<'_, f32>,
                        accumulate: bool,
                        tile: (&mut [u8], usize),
                    ) {
                        if !<$simd as super::simd::Simd>::FAST {
                            return $few(w, acts, out, accumulate, Ahead::NONE);
                        }
                        align_frame();
                        let (scratch, k_cols) = tile;
                        let (whole, cols) = (out.cols / STRIPE_ROWS * STRIPE_ROWS, out.cols);
                        let tile = (&mut *scratch, k_cols);
                        $kind::tiled::<_, $format, $v, $tokens>($token, w, acts, (&mut *out, 0..whole), accumulate, tile);
                        if STRIPE_ROWS > PANEL_ROWS && whole < cols {
                            // The one panel that is left of an odd number of them.
                            const V: usize = PANEL_ROWS / <$simd as super::simd::Simd>::LANES;
                            let tile = (scratch, k_cols);
                            $kind::tiled::<_, $format, V, $tokens>($token, w, acts, (out, whole..cols), accumulate, tile);
                        }
                    }
                };
            }
            tiled!(tiled_f32, stream_f32, float, F32, $nf);
            tiled!(tiled_f16, stream_f16, float, F16, $nf);
            tiled!(tiled_bf16, stream_bf16, float, Bf16, $nf);
            tiled!(tiled_q8_0, stream_q8_0, int, Q8_0, $n);
            tiled!(tiled_q4_0, stream_q4_0, int, Q4_0, $n);
            tiled!(tiled_q4k, stream_q4k, int, Q4K, $ns);
            tiled!(tiled_q6k, stream_q6k, int, Q6K, $ns);

            const UNPACK: [Unpack; WeightType::ALL.len() - OWN_TYPES] = [
                unpack!([$($feature),*], $simd, $token, Q4_1),
                unpack!([$($feature),*], $simd, $token, Q5_0),
                unpack!([$($feature),*], $simd, $token, Q5_1),
                unpack!([$($feature),*], $simd, $token, Q2K),
                unpack!([$($feature),*], $simd, $token, Q3K),
                unpack!([$($feature),*], $simd, $token, Q5K),
                unpack!([$($feature),*], $simd, $token, Iq1S),
                unpack!([$($feature),*], $simd, $token, Iq1M),
                unpack!([$($feature),*], $simd, $token, Iq2Xxs),
                unpack!([$($feature),*], $simd, $token, Iq2Xs),
                unpack!([$($feature),*], $simd, $token, Iq2S),
                unpack!([$($feature),*], $simd, $token, Iq3Xxs),
                unpack!([$($feature),*], $simd, $token, Iq3S),
                unpack!([$($feature),*], $simd, $token, Iq4Nl),
                unpack!([$($feature),*], $simd, $token, Iq4Xs),
                unpack!([$($feature),*], $simd, $token, Tq1_0),
                unpack!([$($feature),*], $simd, $token, Tq2_0),
                unpack!([$($feature),*], $simd, $token, Mxfp4),
                unpack!([$($feature),*], $simd, $token, Nvfp4),
                unpack!([$($feature),*], $simd, $token, Q1_0),
                unpack!([$($feature),*], $simd, $token, Q2_0),
            ];

            macro_rules! scaled {
                ($name:ident, $kind:ident) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(
                        w: (&Matrix<'_>, &Unpack),
                        acts: &Acts<'_>,
                        out: &mut Block<'_, f32>,
                        accumulate: bool,
                        (scratch, k_cols, ahead): (&mut [u8], usize, Ahead),
                    ) {
                        const V: usize = PANEL_ROWS / <$simd as super::simd::Simd>::LANES;
                        const KIND: usize = Kind::$kind.on::<$simd>() as usize;
                        const N: usize = Kind::$kind.tokens::<$simd>($n);
                        align_frame();
                        let (cols, few) = (out.cols, acts.n_tokens <= STREAM_TOKENS_MAX);
                        let mut next = 0;
                        if STRIPE_ROWS > PANEL_ROWS && !few {
                            next = cols / STRIPE_ROWS * STRIPE_ROWS;
                            let tile = (&mut *scratch, k_cols, Ahead::NONE);
                            scaled::product::<_, KIND, $v, N>($token, w, acts, (&mut *out, 0..next), accumulate, tile);
                        }
                        // One panel after the other, so that few tokens read them front to back.
                        let (step, ahead) = if few { (PANEL_ROWS, ahead) } else { (cols, Ahead::NONE) };
                        while next < cols {
                            let (tile, part) = ((&mut *scratch, k_cols, ahead), next..cols.min(next + step));
                            next = part.end;
                            scaled::product::<_, KIND, V, N>($token, w, acts, (&mut *out, part), accumulate, tile);
                        }
                    }
                };
            }
            scaled!(groups32, Groups32);
            scaled!(groups32_mins, Groups32Mins);
            scaled!(groups16, Groups16);
            scaled!(super32, Super32);
            scaled!(super32_mins, Super32Mins);
            scaled!(super16, Super16);
            scaled!(super16_mins, Super16Mins);
            scaled!(groups32_bytes, Groups32Bytes);
            scaled!(super32_seven, Super32Seven);
            scaled!(super32_bytes, Super32Bytes);
            scaled!(super16_seven, Super16Seven);

            $(#[target_feature(enable = $feature)])*
            fn repack(ty: WeightType, rows: (&[u8], &[u8]), cols: usize, panel: &mut [u8]) {
                repack_rows::panel($token, ty, rows, cols, panel)
            }

            $(#[target_feature(enable = $feature)])*
            fn quantise(layout: ActLayout, kind: ActType, record: &mut [u8]) {
                quantise_row($token, layout, kind, record)
            }

            $(#[target_feature(enable = $feature)])*
            fn attend(
                kv: &KvHead<'_>,
                queries: &Queries<'_>,
                keys: Range<usize>,
                scratch: &mut [f32],
                put: &mut dyn FnMut(RowResult<'_>),
            ) {
                align_frame();
                attend_rows($token, kv, queries, keys, scratch, put)
            }

            $(#[target_feature(enable = $feature)])*
            fn store_key(kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
                store_one_key($token, kv_type, key, panel, lane)
            }

            $(#[target_feature(enable = $feature)])*
            fn store_value(kv_type: KvType, value: &[f32], row: &mut [u8]) {
                store_one_value($token, kv_type, value, row)
            }

            $(#[target_feature(enable = $feature)])*
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                rows::rms_norm($token, x, weight, eps, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn add_rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                rows::add_rms_norm($token, x, weight, eps, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
                rows::rms_norm_in_place($token, x, weight, eps)
            }

            $(#[target_feature(enable = $feature)])*
            fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
                rows::silu_mul($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
                rows::gelu_mul($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn swiglu_clamped(gate: Biased<'_>, up: Biased<'_>, out: &mut [f32]) {
                rows::swiglu_clamped($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rows::rope_halves($token, x, cos, sin)
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rows::rope_pairs(x, cos, sin)
            }

            $(#[target_feature(enable = $feature)])*
            fn dots(rounds: usize) -> u64 {
                super::ceiling::dots($token, rounds)
            }

            $(#[target_feature(enable = $feature)])*
            fn fmas(rounds: usize) -> u64 {
                super::ceiling::fmas($token, rounds)
            }

            $(#[target_feature(enable = $feature)])*
            fn read(data: &[u8], way: ReadWay) -> u64 {
                super::ceiling::read($token, data, way)
            }

            pub static KERNELS: Kernels = $finish(TABLE);

            pub const TABLE: Kernels = Kernels {
                tier: $tier,
                stream: [stream_f32, stream_f16, stream_bf16, stream_q8_0, stream_q4_0, stream_q4k, stream_q6k],
                tiled: [tiled_f32, tiled_f16, tiled_bf16, tiled_q8_0, tiled_q4_0, tiled_q4k, tiled_q6k],
                unpack: UNPACK,
                scaled: [
                    groups32,
                    groups32_mins,
                    groups16,
                    super32,
                    super32_mins,
                    super16,
                    super16_mins,
                    groups32_bytes,
                    super32_seven,
                    super32_bytes,
                    super16_seven,
                ],
                repack,
                quantise,
                attend,
                store_key,
                store_value,
                rms_norm,
                add_rms_norm,
                rms_norm_in_place,
                silu_mul,
                gelu_mul,
                swiglu_clamped,
                rope_halves,
                rope_pairs,
                dots,
                dot_macs: super::ceiling::dot_macs::<$simd>,
                fmas,
                fma_macs: super::ceiling::fma_macs::<$simd>,
                bf16_dots: None,
                bf16_macs: super::ceiling::bf16_macs::<$simd>,
                read,
                stripe_rows: STRIPE_ROWS,
                bf16_acts: ActType::F32,
            };
        }
    };
}

/// A tier whose kernels are all its own.
const fn finished(table: Kernels) -> Kernels {
    table
}

/// The kernels of avx2 wherever integers are not multiplied: the two differ in nothing else.
#[cfg(target_arch = "x86_64")]
const fn with_floats_of_avx2(table: Kernels) -> Kernels {
    const BASE: Kernels = avx2::TABLE;
    let [f32s, f16s, bf16s, ..] = BASE.stream;
    let [.., q8_0, q4_0, q4k, q6k] = table.stream;
    let stream = [f32s, f16s, bf16s, q8_0, q4_0, q4k, q6k];
    let [f32s, f16s, bf16s, ..] = BASE.tiled;
    let [.., q8_0, q4_0, q4k, q6k] = table.tiled;
    let tiled = [f32s, f16s, bf16s, q8_0, q4_0, q4k, q6k];
    let Kernels { tier, unpack, scaled, quantise, attend, dots, dot_macs, .. } = table;
    Kernels { tier, stream, tiled, unpack, scaled, quantise, attend, dots, dot_macs, ..BASE }
}

tier!(scalar, Tier::Scalar, portable::Portable, portable::Portable, [], finished, V = 1, N = 2, NS = 2, NF = 2);

#[cfg(target_arch = "x86_64")]
tier!(
    avx2,
    Tier::Avx2,
    x86_64::avx2::Avx2<false>,
    // SAFETY: the enclosing function carries the tier's feature list, so it runs only where the probe succeeded.
    unsafe { x86_64::avx2::Avx2::<false>::assume() },
    ["avx2", "fma", "f16c"],
    finished,
    V = 2,
    N = 3,
    NS = 2,
    NF = 6
);

#[cfg(target_arch = "x86_64")]
tier!(
    avx2vnni,
    Tier::Avx2Vnni,
    x86_64::avx2::Avx2<true>,
    // SAFETY: as above.
    unsafe { x86_64::avx2::Avx2::<true>::assume() },
    ["avx2", "fma", "f16c", "avxvnni"],
    with_floats_of_avx2,
    V = 2,
    N = 5,
    NS = 2,
    NF = 6
);

#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    Tier::Avx512,
    x86_64::avx512::Avx512<false>,
    // SAFETY: as above.
    unsafe { x86_64::avx512::Avx512::<false>::assume() },
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"],
    finished,
    V = 2,
    N = 4,
    NS = 4,
    NF = 12
);

/// The avx512 tier with bf16 dot products and look-ups of bytes in large tables.
#[cfg(target_arch = "x86_64")]
mod avx512bf16 {
    use super::matmul::{float, scaled};
    use super::*;

    pub const FEATURES: &str = "avx512f avx512bw avx512dq avx512vl avx512vnni avx512bf16 avx512vbmi avx2 fma f16c ";

    pub fn probe() -> bool {
        let detected =
            (std::arch::is_x86_feature_detected!("avx512bf16"), std::arch::is_x86_feature_detected!("avx512vbmi"));
        avx512::probe() && detected == (true, true)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    fn tiled_bf16(
        w: &Matrix<'_>,
        acts: &Acts<'_>,
        out: &mut Block<'_, f32>,
        accumulate: bool,
        (_, k_cols): (&mut [u8], usize),
    ) {
        // SAFETY: this function carries the tier's feature list, so it runs only where the probe succeeded.
        let s = unsafe { x86_64::avx512::Avx512::<true>::assume() };
        let (whole, cols) = (out.cols / (2 * PANEL_ROWS) * (2 * PANEL_ROWS), out.cols);
        float::tiled_bf16::<_, 2, 12>(s, w, acts, (&mut *out, 0..whole), accumulate, k_cols);
        if whole < cols {
            float::tiled_bf16::<_, 1, 12>(s, w, acts, (out, whole..cols), accumulate, k_cols);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    fn bf16_dots(rounds: usize) -> u64 {
        // SAFETY: as above.
        super::ceiling::bf16_dots(unsafe { x86_64::avx512::Avx512::<true>::assume() }, rounds)
    }

    /// [`unpack`] for this tier.
    macro_rules! grid {
        ($format:ident) => {
            unpack!(
                ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c"],
                x86_64::avx512::Avx512<true>,
                // SAFETY: as above.
                unsafe { x86_64::avx512::Avx512::<true>::assume() },
                $format
            )
        };
    }

    pub static KERNELS: Kernels = {
        let mut table = avx512::TABLE;
        table.unpack[WeightType::Iq2Xxs as usize - OWN_TYPES] = grid!(Iq2Xxs);
        table.unpack[WeightType::Iq2Xs as usize - OWN_TYPES] = grid!(Iq2Xs);
        table.unpack[WeightType::Iq2S as usize - OWN_TYPES] = grid!(Iq2S);
        table.unpack[WeightType::Iq3Xxs as usize - OWN_TYPES] = grid!(Iq3Xxs);
        table.unpack[WeightType::Iq3S as usize - OWN_TYPES] = grid!(Iq3S);
        table.bf16_dots = Some(bf16_dots);
        table.tier = Tier::Avx512Bf16;
        table.tiled[WeightType::BF16 as usize] = tiled_bf16;
        table.bf16_acts = ActType::Bf16;
        table
    };
}

#[cfg(test)]
mod tests;
