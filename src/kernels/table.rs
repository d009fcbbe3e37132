//! The kernels of one tier as a table of functions, and the checks that stand before each call.
//!
//! # Safety
//! A tier's functions carry its `#[target_feature]` list and may run only on a CPU that has it. A `&'static Kernels`
//! of a tier can be had from [`Tier::kernels`] alone, which probes the CPU for that very list; the wrappers on
//! [`Kernels`] check shapes and hold the unsafe calls.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;

use super::activations::{ActivationFormat, ActivationLayout, Activations};
use super::attention::{
    KEY_TILE, KvHead, KvType, LATENT_ROWS_MAX, LatentQueries, QUERY_ROWS_MAX, Queries, RowResult, attend_scratch,
    latent_scratch,
};
use super::delta::DeltaToken;
use super::delta_chunk::DELTA_CHUNK;
use super::matmul::Matrix;
use super::matmul::kind::ProductKind;
use super::matmul::unpacked::Unpack;
use super::partition::{OutTile, Partition};
#[cfg(feature = "bench")]
use super::peak::ReadWay;
use super::rowwise::{Activation, RowNorm};
use super::ssm::SsmRates;
use super::tier::Tier;
use super::tiling::{PrefetchDistance, STREAM_TOKENS_MAX, Tile, row_stride};
use crate::quant::{PANEL_ROWS, SUPER, WeightType};

/// Weight types with kernels of their own, F32 to Q6_K: the first of [`WeightType::ALL`].
pub const DEDICATED_TYPES: usize = WeightType::Q6K as usize + 1;

type StreamFn = unsafe fn(&Matrix<'_>, &Activations<'_>, &mut OutTile<'_, f32>, bool, PrefetchDistance);
type TiledFn = unsafe fn(&Matrix<'_>, &Activations<'_>, &mut OutTile<'_, f32>, bool, (&mut [u8], usize));
type ProductFn = unsafe fn(
    (&Matrix<'_>, &Unpack),
    &Activations<'_>,
    &mut OutTile<'_, f32>,
    bool,
    (&mut [u8], usize, PrefetchDistance),
);
type ConvFn = unsafe fn(&mut [f32], (&[f32], &[f32]), &mut [f32]);
type ActivateFn = unsafe fn(Activation, &[f32], Option<&[f32]>, &mut [f32]);
type RepackFn = unsafe fn(WeightType, (&[u8], &[u8]), usize, &mut [u8]);
type DeltaFn = unsafe fn(&mut [f32], &DeltaToken<'_>, &mut [f32]);
type DeltaChunkFn = unsafe fn(&mut [f32], &[DeltaToken<'_>; DELTA_CHUNK], &mut [f32]);
type SsmFn = unsafe fn(&mut [f32], (&[f32], &[f32]), &mut [f32], SsmRates);
type ChannelSsmFn = unsafe fn((&mut [f32], &[f32]), (&[f32], &[f32]), &mut [f32], (&[f32], &[f32]));
type AttendFn = unsafe fn(&KvHead<'_>, &Queries<'_>, Range<usize>, &mut [f32], &mut dyn FnMut(RowResult<'_>));

type AttendLatentFn =
    unsafe fn(&KvHead<'_>, &LatentQueries<'_>, Range<usize>, &mut [f32], &mut dyn FnMut(RowResult<'_>));

/// The kernels that one weight type has for itself.
#[derive(Clone, Copy)]
pub struct Dedicated {
    /// The weight type.
    pub ty: WeightType,
    /// For few tokens.
    pub stream: StreamFn,
    /// For many.
    pub tiled: TiledFn,
}

/// Calls a function of the table.
macro_rules! through_probe {
    ($table:ident.$function:ident($($argument:expr),*)) => {
        // SAFETY: it needs nothing but the CPU features of its tier, and a table is had through their probe alone.
        unsafe { ($table.$function)($($argument),*) }
    };
}

/// What measures the ceilings of a tier.
#[cfg(feature = "bench")]
#[derive(Clone, Copy)]
pub struct Peaks {
    pub(super) dots: unsafe fn(usize) -> u64,
    pub(super) dot_macs: fn(usize) -> u64,
    pub(super) pair_dots: unsafe fn(usize) -> u64,
    pub(super) pair_macs: fn(usize) -> u64,
    pub(super) fmas: unsafe fn(usize) -> u64,
    pub(super) fma_macs: fn(usize) -> u64,
    /// Where the CPU has them.
    pub(super) bf16_dots: Option<unsafe fn(usize) -> u64>,
    pub(super) bf16_macs: fn(usize) -> u64,
    pub(super) read: unsafe fn(&[u8], ReadWay) -> u64,
}

/// The kernels of one tier.
pub struct Kernels {
    pub(super) tier: Tier,
    /// By [`WeightType`]: the first ones.
    pub(super) dedicated: [Dedicated; DEDICATED_TYPES],
    /// The others, likewise: how they are unpacked.
    pub(super) unpack: [Unpack; WeightType::ALL.len() - DEDICATED_TYPES],
    /// What multiplies what was unpacked, by [`ProductKind`].
    pub(super) products: [(ProductKind, ProductFn); ProductKind::ALL.len()],
    pub(super) repack: RepackFn,
    pub(super) quantise: unsafe fn(ActivationLayout, ActivationFormat, &mut [u8]),
    pub(super) quantise_block: unsafe fn(ActivationFormat, &[f32], &mut [u8]),
    pub(super) attend: AttendFn,
    pub(super) attend_latent: AttendLatentFn,
    pub(super) absorb: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(super) store_key: unsafe fn(KvType, &[f32], &mut [u8], usize),
    pub(super) store_value: unsafe fn(KvType, &[f32], &mut [u8]),
    pub(super) norm: unsafe fn(&[f32], &RowNorm<'_>, &mut [f32]),
    pub(super) add_norm: unsafe fn(&[f32], &RowNorm<'_>, &mut [f32]),
    pub(super) norm_in_place: unsafe fn(&mut [f32], &RowNorm<'_>),
    pub(super) activate: ActivateFn,
    pub(super) sigmoid_mul: unsafe fn(&[f32], &mut [f32]),
    pub(super) l2_norm_in_place: unsafe fn(&mut [f32], f32, f32),
    pub(super) conv_silu: ConvFn,
    pub(super) delta_step: DeltaFn,
    /// Where it is a gain.
    pub(super) delta_chunk: Option<DeltaChunkFn>,
    pub(super) ssm_step: SsmFn,
    pub(super) ssm_step_by_channel: ChannelSsmFn,
    pub(super) rope_halves: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(super) rope_pairs: unsafe fn(&mut [f32], &[f32], &[f32]),
    #[cfg(feature = "bench")]
    pub(super) peaks: Peaks,
    pub(super) stripe_rows: usize,
    /// What f16 and bf16 weights are multiplied with when there are many tokens.
    pub(super) activations_of_16_bits: ActivationFormat,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({})", self.tier.name())
    }
}

impl Kernels {
    /// The table, if everything in it stands where it is looked for; else it does not build.
    pub(super) const fn in_order(self) -> Kernels {
        let mut i = 0;
        while i < WeightType::ALL.len() {
            let of = if i < DEDICATED_TYPES { self.dedicated[i].ty } else { self.unpack[i - DEDICATED_TYPES].ty };
            assert!(of as usize == i, "a kernel stands in the place of another weight type");
            i += 1;
        }
        let mut i = 0;
        while i < ProductKind::ALL.len() {
            assert!(self.products[i].0 as usize == i && ProductKind::ALL[i] as usize == i, "a product is out of order");
            i += 1;
        }
        self
    }

    /// The tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Rows of weights that the prefill kernel takes at once; columns of the result are best handed out in multiples.
    pub fn stripe_rows(&self) -> usize {
        self.stripe_rows
    }

    /// How the result `[n_tokens, row_stride(rows)]` of a product is shared out among `workers`, one stretch of panels each.
    pub fn share<'a>(&self, out: &'a mut [f32], n_tokens: usize, rows: usize, workers: usize) -> Partition<'a, f32> {
        let width = rows.next_multiple_of(PANEL_ROWS);
        let few = n_tokens <= STREAM_TOKENS_MAX;
        let block = match few {
            // Each start of a block costs about a tenth of what a panel of 2048 columns takes (Zen 4).
            true => PANEL_ROWS,
            // Stripes that share what activations are in L2, but few enough that workers finish together.
            false => (width / self.stripe_rows / (workers * 4)).clamp(1, 8) * self.stripe_rows,
        };
        let partition =
            Partition::new(out, (n_tokens, width, row_stride(rows)), (n_tokens.max(1), block)).in_parts(workers);
        if few { partition.guided() } else { partition }
    }

    /// The form of activations that `n_tokens` must have to meet weights of this type.
    pub fn activation_format(&self, ty: WeightType, n_tokens: usize) -> ActivationFormat {
        match ty {
            WeightType::F32 => ActivationFormat::F32,
            WeightType::F16 | WeightType::BF16 if n_tokens <= STREAM_TOKENS_MAX => ActivationFormat::F32,
            WeightType::F16 | WeightType::BF16 => self.activations_of_16_bits,
            // A scale per block of the weights, as in the engine whose distance from the exact answer is the yardstick.
            _ if ty.block_len() == SUPER => ActivationFormat::Q8x256,
            _ => ActivationFormat::Q8x32,
        }
    }

    /// The name of the kernel that multiplies `n_tokens` by a matrix of this type.
    pub fn name(&self, ty: WeightType, n_tokens: usize) -> String {
        let act = self.activation_format(ty, n_tokens).name();
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
        acts: &Activations<'_>,
        out: &mut OutTile<'_, f32>,
        accumulate: bool,
        (tile, scratch): (Tile, &mut [u8]),
    ) {
        assert!(w.cols == acts.layout.cols() && w.cols.is_multiple_of(ty.block_len()));
        assert!(w.panel_bytes == ty.panel_bytes(w.cols));
        assert!(out.rows == acts.n_tokens && out.cols.is_multiple_of(PANEL_ROWS));
        assert!((out.col0 + out.cols) / PANEL_ROWS * w.panel_bytes <= w.panels.len());
        assert!(acts.records.len() >= acts.n_tokens * acts.layout.bytes());
        let own = (ty as usize) < DEDICATED_TYPES;
        if own && acts.n_tokens <= STREAM_TOKENS_MAX {
            let ahead = if acts.n_tokens > 1 { tile.ahead_batch } else { tile.ahead };
            // SAFETY: the table of this tier was obtained through its probe; shapes were checked above.
            return unsafe { (self.dedicated[ty as usize].stream)(w, acts, out, accumulate, ahead) };
        }
        assert!(tile.k_cols.is_multiple_of(SUPER));
        assert!(scratch.len() >= tile.scratch_bytes() && scratch.as_ptr().addr().is_multiple_of(4));
        if own {
            // SAFETY: as above.
            return unsafe { (self.dedicated[ty as usize].tiled)(w, acts, out, accumulate, (scratch, tile.k_cols)) };
        }
        let unpack = &self.unpack[ty as usize - DEDICATED_TYPES];
        if acts.n_tokens == 1 && unpack.streams() {
            // SAFETY: as above.
            return unsafe { unpack.stream(w, acts, out, accumulate, tile.ahead) };
        }
        let (_, product) = self.products[unpack.kind as usize];
        // In turns with products, in which nothing is read: what the CPU fetches by itself ends with each.
        let ahead = tile.ahead_batch;
        // SAFETY: as above; `unpack` is of the same table.
        unsafe { product((w, unpack), acts, out, accumulate, (scratch, tile.k_cols, ahead)) }
    }

    /// Sixteen rows of a file, or the last ones of a matrix, into their panel, as [`WeightType::repack_panel`]. What comes
    /// `next` after the rows, if it does not lie in a cache yet, is asked for on the way.
    ///
    /// # Panics
    /// As [`WeightType::repack_panel`].
    pub fn repack(&self, ty: WeightType, (rows, next): (&[u8], &[u8]), cols: usize, panel: &mut [u8]) {
        through_probe!(self.repack(ty, (rows, next), cols, panel))
    }

    /// Fills the int8 part of a record from its f32 part (see [`ActivationLayout`]).
    pub fn quantise(&self, layout: ActivationLayout, kind: ActivationFormat, record: &mut [u8]) {
        through_probe!(self.quantise(layout, kind, record))
    }

    /// Fills the block of up to 256 columns of a record from their values.
    ///
    /// # Panics
    /// If the form does not lie in blocks ([`ActivationFormat::in_blocks`]), or the block is too short.
    pub fn quantise_block(&self, kind: ActivationFormat, values: &[f32], block: &mut [u8]) {
        through_probe!(self.quantise_block(kind, values, block))
    }

    /// Attention of some query rows over the keys of one range (see [`key_ranges`](super::attention::key_ranges); `queries.first_key() .. queries.keys()`
    /// for all) of one head's cache: every row's result goes to `put`. `scratch` holds [`attend_scratch`]; see [`super::attention`].
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
        assert!(keys.start.is_multiple_of(KEY_TILE) && keys.end <= queries.keys() && queries.window.span() > 0);
        assert!(queries.sinks.is_none_or(|sinks| sinks.len() == queries.group));
        assert!(keys.end.div_ceil(KEY_TILE) <= kv.pages.len(), "{} keys in {} pages", keys.end, kv.pages.len());
        assert!(scratch.len() >= attend_scratch(kv.key_dim.max(kv.value_dim)));
        through_probe!(self.attend(kv, queries, keys, scratch, put))
    }

    /// Attention of some query rows over the positions of one range of a cache of latent rows, `[64][key_dim]` a page, the
    /// first `value_dim` of which are values: every row's result goes to `put`. `scratch` holds [`latent_scratch`]; see
    /// [`super::attention`].
    ///
    /// # Panics
    /// If there are no rows or more than [`LATENT_ROWS_MAX`], or shapes do not belong together.
    pub fn attend_latent(
        &self,
        kv: &KvHead<'_>,
        queries: &LatentQueries<'_>,
        keys: Range<usize>,
        scratch: &mut [f32],
        put: &mut dyn FnMut(RowResult<'_>),
    ) {
        assert!((1..=LATENT_ROWS_MAX).contains(&queries.rows()), "{} query rows", queries.rows());
        assert!(kv.key_dim.is_multiple_of(PANEL_ROWS) && kv.value_dim.is_multiple_of(PANEL_ROWS));
        assert!(keys.start.is_multiple_of(KEY_TILE) && keys.end <= queries.keys());
        assert!(keys.end.div_ceil(KEY_TILE) <= kv.pages.len(), "{} keys in {} pages", keys.end, kv.pages.len());
        assert!(scratch.len() >= latent_scratch(kv.key_dim, kv.value_dim));
        through_probe!(self.attend_latent(kv, queries, keys, scratch, put))
    }

    /// `out = sum_i x[i] * rows[i]`: the product of `x` with a matrix whose rows, as long as `out`, are inputs.
    ///
    /// # Panics
    /// If rows are not whole steps of 16 values, or shapes do not belong together.
    pub fn absorb(&self, rows: &[f32], x: &[f32], out: &mut [f32]) {
        assert!(out.len().is_multiple_of(PANEL_ROWS) && rows.len() == x.len() * out.len());
        through_probe!(self.absorb(rows, x, out))
    }

    /// Writes one key into place `lane` of a panel of K, [`KvType::panel_bytes`] for 16 positions. Rounded to f16 (to
    /// nearest even), or to multiples of `max / 127` per 32 values.
    pub fn store_key(&self, kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
        through_probe!(self.store_key(kv_type, key, panel, lane))
    }

    /// Writes one row of V, [`KvType::row_bytes`]; rounding as [`Kernels::store_key`].
    pub fn store_value(&self, kv_type: KvType, value: &[f32], row: &mut [u8]) {
        through_probe!(self.store_value(kv_type, value, row))
    }

    /// `out = norm(x)`.
    pub fn norm(&self, x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
        through_probe!(self.norm(x, norm, out))
    }

    /// `out += norm(x)`.
    pub fn add_norm(&self, x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
        through_probe!(self.add_norm(x, norm, out))
    }

    /// `x = norm(x)`.
    pub fn norm_in_place(&self, x: &mut [f32], norm: &RowNorm<'_>) {
        through_probe!(self.norm_in_place(x, norm))
    }

    /// `out = activation(gate) * up`, or `activation(gate)` without an `up`.
    pub fn activate(&self, activation: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
        through_probe!(self.activate(activation, gate, up, out))
    }

    /// `x *= sigmoid(gate)` of one row.
    pub fn sigmoid_mul(&self, gate: &[f32], x: &mut [f32]) {
        through_probe!(self.sigmoid_mul(gate, x))
    }

    /// One row, scaled to the length `scale`, where it is: `x *= scale / sqrt(sum(x^2) + eps)`.
    pub fn l2_norm_in_place(&self, x: &mut [f32], eps: f32, scale: f32) {
        through_probe!(self.l2_norm_in_place(x, eps, scale))
    }

    /// One token of a causal convolution of some channels with `weights` and biases, of which there may be none, and SiLU of
    /// it (see [`super::recurrent`]).
    ///
    /// # Panics
    /// If shapes do not belong together, or there are not whole steps of channels.
    pub fn conv_silu(&self, history: &mut [f32], weights: (&[f32], &[f32]), x: &mut [f32]) {
        through_probe!(self.conv_silu(history, weights, x))
    }

    /// One token's turn of a strip of a delta rule's state, `[key.len()][v.len()]`: `v` becomes what the query reads (see
    /// [`super::delta`]).
    ///
    /// # Panics
    /// If shapes do not belong together, or there are not whole steps of columns.
    pub fn delta_step(&self, state: &mut [f32], token: &DeltaToken<'_>, v: &mut [f32]) {
        through_probe!(self.delta_step(state, token, v))
    }

    /// The same of tokens that follow each other; `v` is `[DELTA_CHUNK][cols]` (see [`super::delta_chunk`]).
    ///
    /// # Panics
    /// As [`Kernels::delta_step`].
    pub fn delta_chunk(&self, state: &mut [f32], tokens: &[DeltaToken<'_>; DELTA_CHUNK], v: &mut [f32]) {
        if let Some(delta_chunk) = self.delta_chunk {
            // SAFETY: as of every function of the table.
            return unsafe { delta_chunk(state, tokens, v) };
        }
        let cols = v.len() / DELTA_CHUNK;
        for (token, v) in tokens.iter().zip(v.chunks_exact_mut(cols)) {
            self.delta_step(state, token, v);
        }
    }

    /// One token's turn of a strip of a Mamba-2 head's state, `[b.len()][x.len()]`: `x` becomes `y` (see [`super::ssm`]).
    ///
    /// # Panics
    /// If shapes do not belong together, or there are not whole steps of channels.
    pub fn ssm_step(&self, state: &mut [f32], (b, c): (&[f32], &[f32]), x: &mut [f32], rates: SsmRates) {
        through_probe!(self.ssm_step(state, (b, c), x, rates))
    }

    /// The same of the first Mamba, whose channels have steps `dt` and factors `d` of their own, and whose values of the
    /// state have rates `a`.
    ///
    /// # Panics
    /// As [`Kernels::ssm_step`].
    pub fn ssm_step_by_channel(
        &self,
        (state, a): (&mut [f32], &[f32]),
        (b, c): (&[f32], &[f32]),
        x: &mut [f32],
        (dt, d): (&[f32], &[f32]),
    ) {
        through_probe!(self.ssm_step_by_channel((state, a), (b, c), x, (dt, d)))
    }

    /// Rotary embedding of one head, pairs `(i, i + n)`.
    pub fn rope_halves(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        through_probe!(self.rope_halves(x, cos, sin))
    }

    /// Rotary embedding of one head, neighbouring pairs `(2i, 2i + 1)`.
    pub fn rope_pairs(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        through_probe!(self.rope_pairs(x, cos, sin))
    }
}

#[cfg(feature = "bench")]
impl Kernels {
    /// Int8 dot products and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_int8(&self, rounds: usize) -> (u64, u64) {
        let peaks = &self.peaks;
        (through_probe!(peaks.dots(rounds)), (peaks.dot_macs)(rounds))
    }

    /// Dot products of 16-bit integers and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_int16(&self, rounds: usize) -> (u64, u64) {
        let peaks = &self.peaks;
        (through_probe!(peaks.pair_dots(rounds)), (peaks.pair_macs)(rounds))
    }

    /// f32 multiply-adds and nothing else: a checksum, and how many multiplications it took.
    pub fn peak_f32(&self, rounds: usize) -> (u64, u64) {
        let peaks = &self.peaks;
        (through_probe!(peaks.fmas(rounds)), (peaks.fma_macs)(rounds))
    }

    /// bf16 dot products and nothing else, where the tier has them: a checksum, and how many multiplications it took.
    pub fn peak_bf16(&self, rounds: usize) -> Option<(u64, u64)> {
        let peaks = &self.peaks;
        // SAFETY: the table of this tier was obtained through its probe.
        peaks.bf16_dots.map(|dots| (unsafe { dots(rounds) }, (peaks.bf16_macs)(rounds)))
    }

    /// Reads every byte once, but for a rest below 512; a checksum.
    pub fn read(&self, data: &[u8], way: ReadWay) -> u64 {
        let peaks = &self.peaks;
        through_probe!(peaks.read(data, way))
    }
}
