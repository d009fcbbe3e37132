//! The loop nests of matrix products: one for decode (few tokens, weights streamed once) and one for prefill
//! (many tokens, weights unpacked once per tile). `out[t, r] (+)= sum_k w[r, k] * x[t, k]`.
//!
//! **Decode** walks a panel front to back, unpacking in registers; it is bound by memory.
//!
//! **Prefill** unpacks `MP` panels x `k_cols` columns into a tile that stays in L1/L2 (int8 quants in dot-product
//! order and f32 scales, or f32 values) and runs one register kernel of `16 * MP` rows x `N` tokens over all
//! tokens. Unpacking is divided by the number of tokens, so every weight type runs at about the same speed.
//! Register budget at 512 bits: 2 x 6 int accumulators + 2 x 6 f32 accumulators + 2 weights + broadcasts = 28 of 32.

use super::acts::{ActLayout, IntRow};
use super::formats::{FloatFormat, IntFormat, offset};
use super::grid::Block;
use super::simd::Simd;
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// A weight matrix in panels (see [`crate::quant`]).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The panels, back to back.
    pub panels: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// Columns: the length of a row.
    pub cols: usize,
}

/// Prepared activations: records of `layout`, one per token.
#[derive(Clone, Copy, Debug)]
pub struct Acts<'a> {
    /// The records, back to back.
    pub records: &'a [u8],
    /// Their layout.
    pub layout: ActLayout,
    /// How many tokens.
    pub n_tokens: usize,
}

impl<'a> Acts<'a> {
    #[inline(always)]
    fn record(&self, token: usize) -> &'a [u8] {
        &self.records[token * self.layout.bytes()..][..self.layout.bytes()]
    }
}

/// Reads `slice[i]` in an inner loop whose extents the caller has asserted.
macro_rules! at {
    ($slice:expr, $i:expr) => {{
        debug_assert!($i < $slice.len());
        // SAFETY: every loop that uses this asserts, before it starts, that its largest index lies inside.
        unsafe { *$slice.get_unchecked($i) }
    }};
}

/// Four signed activation bytes as one lane's worth.
#[inline(always)]
fn quad(quants: &[u8], unit: usize) -> i32 {
    let q = quants.as_chunks::<4>().0;
    i32::from_le_bytes(at!(q, unit))
}

/// `sum << log2(offset)`: the starting value that takes the offset out of a dot product. `sum` is negated already.
#[inline(always)]
fn start<S: Simd, F: IntFormat>(s: S, negated_sum: i32) -> S::I {
    match offset::<S, F>() {
        0 => s.splat_i(0),
        8 => s.shl::<3>(s.splat_i(negated_sum)),
        32 => s.shl::<5>(s.splat_i(negated_sum)),
        128 => s.shl::<7>(s.splat_i(negated_sum)),
        _ => unreachable!(),
    }
}

#[inline(always)]
fn dot<S: Simd, F: IntFormat>(s: S, acc: S::I, w: S::I, a: S::I) -> S::I {
    if F::WIDE { s.dot_wide(acc, w, a) } else { s.dot(acc, w, a) }
}

/// Which negated sum starts group `group` (of `F::GROUP` columns).
#[inline(always)]
fn group_sum<F: IntFormat>(row: &IntRow<'_>, group: usize) -> i32 {
    if F::GROUP == 16 { at!(row.sums16, group) } else { at!(row.sums32, group) }
}

#[inline(always)]
fn write<S: Simd>(s: S, value: S::F, out: &mut [f32], accumulate: bool) {
    let value = if accumulate { s.add(s.load(out), value) } else { value };
    s.store(value, out);
}

/// Decode: the panels of `out`'s columns times `N` tokens starting at `token0`, integer weights.
#[inline(always)]
pub(super) fn gemv_int<S: Simd, F: IntFormat, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    token0: usize,
    out: &mut Block<'_, f32>,
    accumulate: bool,
) {
    let rows: [IntRow<'_>; N] = std::array::from_fn(|n| acts.layout.ints(acts.record(token0 + n)));
    let n_blocks = w.cols / F::COLS;
    for row in &rows {
        assert!(row.quants.len() >= w.cols && row.sums32.len() >= w.cols / GROUP && row.sums16.len() >= w.cols / 16);
        assert!(row.fsums32.len() >= w.cols / GROUP && row.scales.len() >= w.cols / GROUP);
    }
    let (first, count) = (out.col0 / PANEL_ROWS, out.cols.div_ceil(PANEL_ROWS));
    for p in 0..count {
        let panel = &w.panels[(first + p) * w.panel_bytes..][..n_blocks * F::BYTES];
        for half in 0..PANEL_ROWS / S::LANES {
            let mut sums = [s.splat(0.0); N];
            for (b, block) in panel.chunks_exact(F::BYTES).enumerate() {
                let mut part = [s.splat(0.0); N];
                // Sub-blocks in pairs: the low and high nibbles of one load.
                for group in 0..F::COLS / F::GROUP {
                    let scale = F::scale(s, block, group, half);
                    let at_group = b * (F::COLS / F::GROUP) + group;
                    let mut acc: [S::I; N] =
                        std::array::from_fn(|n| start::<S, F>(s, group_sum::<F>(&rows[n], at_group)));
                    for u in 0..F::GROUP / 4 {
                        let unit = group * (F::GROUP / 4) + u;
                        let quants = F::quants(s, block, unit, half);
                        for n in 0..N {
                            let a = s.splat_i(quad(rows[n].quants, b * (F::COLS / 4) + unit));
                            acc[n] = dot::<S, F>(s, acc[n], quants, a);
                        }
                    }
                    for n in 0..N {
                        part[n] = s.fma(s.to_f(acc[n]), scale, part[n]);
                    }
                    if F::MIN {
                        let min = F::min(s, block, group, half);
                        for n in 0..N {
                            part[n] = s.fma(min, s.splat(at!(rows[n].fsums32, at_group)), part[n]);
                        }
                    }
                }
                for n in 0..N {
                    sums[n] = s.fma(part[n], s.splat(at!(rows[n].scales, b)), sums[n]);
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                write(s, sum, &mut out.row(token0 + n)[p * PANEL_ROWS + half * S::LANES..], accumulate);
            }
        }
    }
}

/// Decode with float weights.
#[inline(always)]
pub(super) fn gemv_float<S: Simd, F: FloatFormat, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    token0: usize,
    out: &mut Block<'_, f32>,
    accumulate: bool,
) {
    let rows: [&[f32]; N] = std::array::from_fn(|n| acts.layout.values(acts.record(token0 + n)));
    for row in &rows {
        assert!(row.len() == w.cols);
    }
    let (first, count) = (out.col0 / PANEL_ROWS, out.cols.div_ceil(PANEL_ROWS));
    let whole = w.cols / (4 * F::STEP) * (4 * F::STEP);
    for p in 0..count {
        let panel = &w.panels[(first + p) * w.panel_bytes..][..w.panel_bytes];
        for half in 0..PANEL_ROWS / S::LANES {
            // Four chains a token hide the latency of the fused multiply-add.
            let mut sums = [[s.splat(0.0); 4]; N];
            let (body, tail) = panel.split_at(whole / F::STEP * F::BYTES);
            for (g, steps) in body.chunks_exact(4 * F::BYTES).enumerate() {
                for i in 0..4 {
                    let values = F::load(s, &steps[i * F::BYTES..], half);
                    for (j, &value) in values.iter().enumerate().take(F::STEP) {
                        for n in 0..N {
                            let a = s.splat(at!(rows[n], (g * 4 + i) * F::STEP + j));
                            sums[n][i] = s.fma(value, a, sums[n][i]);
                        }
                    }
                }
            }
            for (i, step) in tail.chunks_exact(F::BYTES).enumerate() {
                let values = F::load(s, step, half);
                for (j, &value) in values.iter().enumerate().take(F::STEP) {
                    for n in 0..N {
                        if let Some(&a) = rows[n].get(whole + i * F::STEP + j) {
                            sums[n][0] = s.fma(value, s.splat(a), sums[n][0]);
                        }
                    }
                }
            }
            for (n, [a, b, c, d]) in sums.into_iter().enumerate() {
                let sum = s.add(s.add(a, b), s.add(c, d));
                write(s, sum, &mut out.row(token0 + n)[p * PANEL_ROWS + half * S::LANES..], accumulate);
            }
        }
    }
}

/// Bytes of tile scratch a worker needs for `k_cols` columns and `MP` panels of any type.
pub const fn tile_bytes(k_cols: usize, panels: usize) -> usize {
    // Quants, then scales per 16 columns and minima per 32, or (fewer columns of) f32 values.
    panels * PANEL_ROWS * (k_cols + k_cols / 16 * 4 + k_cols / 32 * 4)
}

/// Unpacked int8 weights: `[k / 4][MP * 16 rows][4]`, scales `[k / GROUP][MP * 16]`, minima `[k / 32][MP * 16]`.
struct IntTile<'t> {
    quants: &'t mut [u8],
    scales: &'t mut [f32],
    mins: &'t mut [f32],
}

impl<'t> IntTile<'t> {
    fn carve(tile: &'t mut [u8], k_cols: usize, panels: usize) -> Self {
        let rows = panels * PANEL_ROWS;
        let (quants, rest) = tile.split_at_mut(rows * k_cols);
        let (scales, rest) = rest.split_at_mut(rows * k_cols / 16 * 4);
        let mins = &mut rest[..rows * k_cols / 32 * 4];
        IntTile { quants, scales: bytes::cast_mut(scales), mins: bytes::cast_mut(mins) }
    }

    /// Unpacks columns `k0 .. k0 + k_len` of one panel into place `p` of `panels`.
    #[inline(always)]
    fn fill<S: Simd, F: IntFormat>(&mut self, s: S, panel: &[u8], k0: usize, k_len: usize, p: usize, panels: usize) {
        let rows = panels * PANEL_ROWS;
        let blocks = &panel[k0 / F::COLS * F::BYTES..][..k_len / F::COLS * F::BYTES];
        for (b, block) in blocks.chunks_exact(F::BYTES).enumerate() {
            for half in 0..PANEL_ROWS / S::LANES {
                let lane = p * PANEL_ROWS + half * S::LANES;
                for unit in 0..F::COLS / 4 {
                    let quants = F::quants(s, block, unit, half);
                    s.store_bytes(quants, &mut self.quants[((b * (F::COLS / 4) + unit) * rows + lane) * 4..]);
                }
                for group in 0..F::COLS / F::GROUP {
                    let scale = F::scale(s, block, group, half);
                    s.store(scale, &mut self.scales[(b * (F::COLS / F::GROUP) + group) * rows + lane..]);
                }
                for sub in 0..if F::MIN { F::COLS / GROUP } else { 0 } {
                    let min = F::min(s, block, sub, half);
                    s.store(min, &mut self.mins[(b * (F::COLS / GROUP) + sub) * rows + lane..]);
                }
            }
        }
    }

    /// `N` tokens over the tile; results are added to `out` in units of one activation scale.
    #[inline(always)]
    fn multiply<S: Simd, F: IntFormat, const MP: usize, const N: usize>(
        &self,
        s: S,
        rows: &[IntRow<'_>; N],
        (k0, k_len): (usize, usize),
        token0: usize,
        out: &mut Block<'_, f32>,
    ) {
        let halves = PANEL_ROWS / S::LANES;
        let width = MP * PANEL_ROWS;
        for row in rows {
            assert!(row.quants.len() >= k0 + k_len && row.sums16.len() >= (k0 + k_len) / 16);
            assert!(row.sums32.len() >= (k0 + k_len) / GROUP && row.fsums32.len() >= (k0 + k_len) / GROUP);
            assert!(row.scales.len() >= (k0 + k_len).div_ceil(if F::ACT256 { SUPER } else { GROUP }));
        }
        let span = if F::ACT256 { SUPER } else { k_len };
        for c in 0..k_len.div_ceil(span) {
            let mut sums = [[[s.splat(0.0); N]; 2]; MP];
            let groups = span / F::GROUP;
            let quants = &self.quants[c * span * width..][..span * width];
            let scales = &self.scales[c * groups * width..][..groups * width];
            for (g, (units, scales)) in
                quants.chunks_exact(F::GROUP * width).zip(scales.chunks_exact(width)).enumerate()
            {
                let group = (k0 + c * span) / F::GROUP + g;
                let first: [S::I; N] = std::array::from_fn(|n| start::<S, F>(s, group_sum::<F>(&rows[n], group)));
                let mut acc = [[first; 2]; MP];
                for (u, unit) in units.chunks_exact(4 * width).enumerate() {
                    let a: [S::I; N] =
                        std::array::from_fn(|n| s.splat_i(quad(rows[n].quants, group * (F::GROUP / 4) + u)));
                    for p in 0..MP {
                        for h in 0..halves {
                            let w = s.load_bytes(&unit[(p * PANEL_ROWS + h * S::LANES) * 4..]);
                            for n in 0..N {
                                acc[p][h][n] = dot::<S, F>(s, acc[p][h][n], w, a[n]);
                            }
                        }
                    }
                }
                for p in 0..MP {
                    for h in 0..halves {
                        let lane = p * PANEL_ROWS + h * S::LANES;
                        let scale = s.load(&scales[lane..]);
                        for n in 0..N {
                            let scale = match F::ACT256 {
                                true => scale,
                                false => s.mul(scale, s.splat(at!(rows[n].scales, group))),
                            };
                            sums[p][h][n] = s.fma(s.to_f(acc[p][h][n]), scale, sums[p][h][n]);
                        }
                        if F::MIN {
                            let min = s.load(&self.mins[(c * groups + g) * width + lane..]);
                            for n in 0..N {
                                sums[p][h][n] = s.fma(min, s.splat(at!(rows[n].fsums32, group)), sums[p][h][n]);
                            }
                        }
                    }
                }
            }
            for n in 0..N {
                let scale = match F::ACT256 {
                    true => s.splat(at!(rows[n].scales, k0 / SUPER + c)),
                    false => s.splat(1.0),
                };
                let row = out.row(token0 + n);
                for p in 0..MP {
                    for h in 0..halves {
                        let out = &mut row[p * PANEL_ROWS + h * S::LANES..];
                        s.store(s.fma(sums[p][h][n], scale, s.load(out)), out);
                    }
                }
            }
        }
    }
}

/// Prefill with integer weights: `out` is a column stripe of at most `MP` panels and all tokens, already holding
/// zeros, or the values to add to.
#[inline(always)]
pub(super) fn gemm_int<S: Simd, F: IntFormat, const MP: usize, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    out: &mut Block<'_, f32>,
    tile: &mut [u8],
    k_cols: usize,
) {
    assert!(out.cols == MP * PANEL_ROWS && k_cols.is_multiple_of(SUPER));
    let first = out.col0 / PANEL_ROWS;
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        let mut tile = IntTile::carve(tile, k_cols, MP);
        for p in 0..MP {
            tile.fill::<S, F>(s, &w.panels[(first + p) * w.panel_bytes..][..w.panel_bytes], k0, k_len, p, MP);
        }
        let mut token = 0;
        while token + N <= acts.n_tokens {
            let rows: [IntRow<'_>; N] = std::array::from_fn(|n| acts.layout.ints(acts.record(token + n)));
            tile.multiply::<S, F, MP, N>(s, &rows, (k0, k_len), token, out);
            token += N;
        }
        while token + 2 <= acts.n_tokens {
            let rows: [IntRow<'_>; 2] = std::array::from_fn(|n| acts.layout.ints(acts.record(token + n)));
            tile.multiply::<S, F, MP, 2>(s, &rows, (k0, k_len), token, out);
            token += 2;
        }
        if token < acts.n_tokens {
            let rows = [acts.layout.ints(acts.record(token))];
            tile.multiply::<S, F, MP, 1>(s, &rows, (k0, k_len), token, out);
        }
    }
}

/// `out[n][v] += sum_k a[n][k] * w[k][v]` in f32 registers: `V` vectors of weights by `N` rows of activations.
///
/// `w` has `stride` values from `k` to `k + 1`; the result is added to what `load` gives and passed to `store`.
#[inline(always)]
pub(super) fn fma_block<S: Simd, const V: usize, const N: usize>(
    s: S,
    w: &[f32],
    stride: usize,
    acts: &[&[f32]; N],
    k_len: usize,
    mut sums: [[S::F; V]; N],
) -> [[S::F; V]; N] {
    assert!(k_len == 0 || w.len() >= (k_len - 1) * stride + V * S::LANES);
    for row in acts {
        assert!(row.len() >= k_len);
    }
    for k in 0..k_len {
        let w: [S::F; V] = std::array::from_fn(|v| {
            // SAFETY: k < k_len, so k * stride + V * LANES lies inside `w`, as asserted above.
            s.load(unsafe { w.get_unchecked(k * stride + v * S::LANES..k * stride + (v + 1) * S::LANES) })
        });
        for n in 0..N {
            let a = s.splat(at!(acts[n], k));
            for v in 0..V {
                sums[n][v] = s.fma(w[v], a, sums[n][v]);
            }
        }
    }
    sums
}

/// Prefill with float weights; as [`gemm_int`], over a tile of f32 values `[k][MP * 16]`.
#[inline(always)]
pub(super) fn gemm_float<S: Simd, F: FloatFormat, const MP: usize, const N: usize>(
    s: S,
    w: &Matrix<'_>,
    acts: &Acts<'_>,
    out: &mut Block<'_, f32>,
    tile: &mut [u8],
    k_cols: usize,
) {
    let (width, halves) = (MP * PANEL_ROWS, PANEL_ROWS / S::LANES);
    assert!(out.cols == width && k_cols.is_multiple_of(4 * F::STEP));
    // The tile's bytes hold a quarter as many f32 columns as int8 ones.
    let k_cols = k_cols / 4;
    let tile: &mut [f32] = bytes::cast_mut(&mut tile[..k_cols * width * 4]);
    let first = out.col0 / PANEL_ROWS;
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        for p in 0..MP {
            let panel = &w.panels[(first + p) * w.panel_bytes..][..w.panel_bytes];
            let steps = &panel[k0 / F::STEP * F::BYTES..];
            for (i, step) in steps.chunks_exact(F::BYTES).take(k_len.div_ceil(F::STEP)).enumerate() {
                for half in 0..halves {
                    let values = F::load(s, step, half);
                    for (j, &value) in values.iter().enumerate().take(F::STEP.min(k_len - i * F::STEP)) {
                        let at = (i * F::STEP + j) * width + p * PANEL_ROWS + half * S::LANES;
                        s.store(value, &mut tile[at..]);
                    }
                }
            }
        }
        let mut token = 0;
        while token + N <= acts.n_tokens {
            float_tokens::<S, MP, N>(s, tile, acts, (k0, k_len), token, out);
            token += N;
        }
        for token in token..acts.n_tokens {
            float_tokens::<S, MP, 1>(s, tile, acts, (k0, k_len), token, out);
        }
    }
}

#[inline(always)]
fn float_tokens<S: Simd, const MP: usize, const N: usize>(
    s: S,
    tile: &[f32],
    acts: &Acts<'_>,
    (k0, k_len): (usize, usize),
    token: usize,
    out: &mut Block<'_, f32>,
) {
    let width = MP * PANEL_ROWS;
    let rows: [&[f32]; N] = std::array::from_fn(|n| &acts.layout.values(acts.record(token + n))[k0..k0 + k_len]);
    // Two vectors at a time: 2 x N accumulators fit the registers of every tier.
    for lane in (0..width).step_by(2 * S::LANES) {
        if lane + 2 * S::LANES <= width {
            let sums: [[S::F; 2]; N] = std::array::from_fn(|n| {
                let row = out.row(token + n);
                [s.load(&row[lane..]), s.load(&row[lane + S::LANES..])]
            });
            let sums = fma_block::<S, 2, N>(s, &tile[lane..], width, &rows, k_len, sums);
            for (n, [a, b]) in sums.into_iter().enumerate() {
                let row = out.row(token + n);
                s.store(a, &mut row[lane..]);
                s.store(b, &mut row[lane + S::LANES..]);
            }
        } else {
            let sums: [[S::F; 1]; N] = std::array::from_fn(|n| [s.load(&out.row(token + n)[lane..])]);
            let sums = fma_block::<S, 1, N>(s, &tile[lane..], width, &rows, k_len, sums);
            for (n, [a]) in sums.into_iter().enumerate() {
                s.store(a, &mut out.row(token + n)[lane..]);
            }
        }
    }
}
