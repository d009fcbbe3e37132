//! Weights whose groups of 16 or 32 columns have a float scale, times int8 activations with a scale per 32.
//!
//! A type is nothing but a way to unpack ([`ScaledFormat`]): its panels become a tile of signed bytes and float scales, for
//! few tokens as for many, and one kernel multiplies the tile. Nothing is rounded but what the float arithmetic rounds.

use std::ops::Range;

use super::super::acts::{Acts, Rows};
use super::super::grid::Block;
use super::super::scaled_formats::ScaledFormat;
use super::super::simd::Simd;
use super::{Matrix, floats, in_blocks, prefetch_block, vectors, write_block};
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// Unpacks a stretch of a panel's blocks into the lanes of a tile from a given one on; the tile's width follows.
pub type FillFn = unsafe fn(&[u8], &mut Tile<'_>, (usize, usize));

/// How a type is unpacked, and which kernel takes it from there.
#[derive(Clone, Copy)]
pub struct Unpack {
    fill: FillFn,
    block_cols: usize,
    block_bytes: usize,
    /// Groups of 16 columns, and minima.
    pub kind: (bool, bool),
}

impl Unpack {
    /// For `fill` being [`fill`] of the format `F`.
    pub const fn new<F: ScaledFormat>(fill: FillFn) -> Unpack {
        assert!(F::COLS.is_multiple_of(GROUP) && (F::GROUP == GROUP || F::GROUP == GROUP / 2));
        Unpack { fill, block_cols: F::COLS, block_bytes: F::BODY + F::TAIL, kind: (F::GROUP < GROUP, F::MINS) }
    }
}

/// Unpacked weights of `width` rows: quants `[k / 4][width][4]`, which are signed, or 128 more than that with
/// [`Simd::VNNI`]; scales, and what is added to every value, `[k / group][width]`.
pub struct Tile<'t> {
    quants: &'t mut [u8],
    scales: &'t mut [f32],
    mins: &'t mut [f32],
}

impl<'t> Tile<'t> {
    fn carve(tile: &'t mut [u8], k_cols: usize, width: usize) -> Self {
        let (quants, rest) = tile.split_at_mut(width * k_cols);
        let (scales, rest) = rest.split_at_mut(width * k_cols / 16 * 4);
        let mins = &mut rest[..width * k_cols / 16 * 4];
        Tile { quants, scales: bytes::cast_mut(scales), mins: bytes::cast_mut(mins) }
    }
}

/// Unpacks `blocks` of one panel into the lanes `lane ..` of a tile.
#[inline(always)]
pub fn fill<S: Simd, F: ScaledFormat>(s: S, blocks: &[u8], tile: &mut Tile<'_>, (lane, width): (usize, usize)) {
    for (b, block) in blocks.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        for half in 0..PANEL_ROWS / S::LANES {
            let lane = lane + half * S::LANES;
            for g in 0..F::COLS / GROUP {
                let col = b * F::COLS + g * GROUP;
                let units = &mut tile.quants[col * width..][..GROUP * width];
                for (unit, quants) in units.chunks_exact_mut(4 * width).zip(F::quants(s, body, g, half)) {
                    s.store_bytes(quants, &mut unit[4 * lane..]);
                }
                let group = col / F::GROUP;
                let scales = F::scales(s, (body, tail), g, half);
                for i in 0..GROUP / F::GROUP {
                    s.store(scales[i], &mut tile.scales[(group + i) * width + lane..]);
                }
                if F::MINS {
                    let mins = F::mins(s, (body, tail), g, half);
                    for i in 0..GROUP / F::GROUP {
                        s.store(mins[i], &mut tile.mins[(group + i) * width + lane..]);
                    }
                }
            }
        }
    }
}

/// `N` tokens over the tile's columns `k0 .. k0 + k_len`, in groups of `G`.
#[inline(always)]
fn multiply<S: Simd, const G: usize, const MINS: bool, const V: usize, const N: usize>(
    s: S,
    tile: &Tile<'_>,
    rows: &Rows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let width = V * S::LANES;
    let mut sums = [[s.splat(0.0); N]; V];
    for (group, quants) in tile.quants[..k_len * width].chunks_exact(G * width).enumerate() {
        let (b, at) = ((k0 + group * G) / SUPER, (k0 + group * G) % SUPER);
        let mut acc = [[s.splat_i(0); N]; V];
        if S::VNNI {
            for n in 0..N {
                let start = if G == GROUP { rows.start(n, b, at / G) } else { rows.start16(n, b, at / G) };
                for v in 0..V {
                    acc[v][n] = s.splat_i(start);
                }
            }
        }
        for (u, unit) in quants.chunks_exact(4 * width).enumerate() {
            let w = vectors::<S, V>(s, unit);
            for n in 0..N {
                let a = s.splat_i(rows.quants(n, b, at / 4 + u));
                for v in 0..V {
                    acc[v][n] = s.dot_wide(acc[v][n], w[v], a);
                }
            }
        }
        let d = floats::<S, V>(s, &tile.scales[group * width..]);
        for n in 0..N {
            let scale = s.splat(rows.scale(n, b, at / GROUP));
            for v in 0..V {
                sums[v][n] = s.fma(s.to_f(acc[v][n]), s.mul(d[v], scale), sums[v][n]);
            }
        }
        if MINS {
            let min = floats::<S, V>(s, &tile.mins[group * width..]);
            for n in 0..N {
                let mass = s.splat(if G == GROUP { rows.mass(n, b, at / G) } else { rows.mass16(n, b, at / G) });
                for v in 0..V {
                    sums[v][n] = s.fma(min[v], mass, sums[v][n]);
                }
            }
        }
    }
    sums
}

/// Columns `cols` of `out`, whole stripes of `V` vectors, which are whole panels; order as in [`super::int::tiled`].
#[inline(always)]
pub fn product<S: Simd, const G: usize, const MINS: bool, const V: usize, const N: usize>(
    s: S,
    (w, unpack): (&Matrix<'_>, &Unpack),
    acts: &Acts<'_>,
    (out, cols): (&mut Block<'_, f32>, Range<usize>),
    accumulate: bool,
    (tile, k_cols): (&mut [u8], usize),
) {
    let width = V * S::LANES;
    assert!(width.is_multiple_of(PANEL_ROWS) && cols.len().is_multiple_of(width));
    assert!(k_cols.is_multiple_of(SUPER) && w.cols == acts.layout.cols() && w.cols.is_multiple_of(GROUP));
    let mut tile = Tile::carve(tile, k_cols, width);
    // Stretches of `k_cols` are whole blocks of any type.
    let bytes_of = |k: usize| unpack.block_bytes * (k / unpack.block_cols);
    for k0 in (0..w.cols).step_by(k_cols) {
        let k_len = k_cols.min(w.cols - k0);
        for col in cols.clone().step_by(width) {
            for lane in (0..width).step_by(PANEL_ROWS) {
                let blocks = &w.panel((out.col0 + col + lane) / PANEL_ROWS)[bytes_of(k0)..][..bytes_of(k_len)];
                // SAFETY: `fill` is of the same tier's table as this function: see `Kernels::matmul`.
                unsafe { (unpack.fill)(blocks, &mut tile, (lane, width)) };
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    let sums = multiply::<S, G, MINS, V, $n>(s, &tile, &acts.rows($token, $n), (k0, k_len));
                    write_block(s, sums, out, ($token, col), accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 2, 1], run);
        }
    }
}
