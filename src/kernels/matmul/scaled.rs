//! Weights whose groups of 16 or 32 columns have a float scale, times int8 activations.
//!
//! A type is nothing but a way to unpack ([`ScaledFormat`]): its panels become a tile of signed bytes and float scales, for
//! few tokens as for many, and one kernel multiplies the tile. Nothing is rounded but what the float arithmetic rounds.
//!
//! Types with blocks of 256 columns meet activations with a scale per 256 ([`multiply_super`]): a group then costs one
//! multiply-add, and its minimum half an integer one. The others have a scale per 32 ([`multiply`]).

use std::ops::Range;

use super::super::Ahead;
use super::super::acts::{Acts, Rows, paired};
use super::super::grid::Block;
use super::super::scaled_formats::ScaledFormat;
use super::super::simd::Simd;
use super::{Matrix, floats, in_blocks, in_order, prefetch, prefetch_block, vectors, write_block};
use crate::bytes;
use crate::quant::{GROUP, PANEL_ROWS, SUPER};

/// Unpacks a stretch of a panel's blocks into the rows of a tile from 16 times the given number on.
pub type FillFn = unsafe fn(&[u8], &mut Tile<'_>, usize, Ahead);

/// What multiplies a tile: by the columns that share a scale of the weights, by those that share one of the activations
/// (`Super`: 256), and by whether there are minima.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Groups32,
    Groups32Mins,
    Groups16,
    Super32,
    Super32Mins,
    Super16,
    Super16Mins,
}

impl Kind {
    /// All of them, in the order of the kernels' table.
    pub const ALL: [Kind; 7] = [
        Kind::Groups32,
        Kind::Groups32Mins,
        Kind::Groups16,
        Kind::Super32,
        Kind::Super32Mins,
        Kind::Super16,
        Kind::Super16Mins,
    ];

    const fn of<F: ScaledFormat>() -> Kind {
        match (F::COLS == SUPER, F::GROUP, F::MINS) {
            (false, GROUP, false) => Kind::Groups32,
            (false, GROUP, true) => Kind::Groups32Mins,
            (false, 16, false) => Kind::Groups16,
            (true, GROUP, false) => Kind::Super32,
            (true, GROUP, true) => Kind::Super32Mins,
            (true, 16, false) => Kind::Super16,
            (true, 16, true) => Kind::Super16Mins,
            _ => panic!("no kernel for such groups"),
        }
    }
}

/// How a type is unpacked, and which kernel takes it from there.
#[derive(Clone, Copy)]
pub struct Unpack {
    /// Into tiles as wide as one panel, and as a stripe.
    fill: [FillFn; 2],
    block_cols: usize,
    block_bytes: usize,
    /// The kernel.
    pub kind: Kind,
}

impl Unpack {
    /// For `fill` being [`fill`] of the format `F`.
    pub const fn new<F: ScaledFormat>(fill: [FillFn; 2]) -> Unpack {
        assert!(F::COLS.is_multiple_of(GROUP));
        Unpack { fill, block_cols: F::COLS, block_bytes: F::BODY + F::TAIL, kind: Kind::of::<F>() }
    }
}

/// Unpacked weights of `width` rows: quants `[k / 4][width][4]`, which are signed, or 128 more than that with
/// [`Simd::VNNI`]; scales `[k / group][width]`; minima `[k / 32][width]`, which are floats that are added to every value,
/// or, where blocks have 256 columns, the integers of both halves of 32 columns as i16 pairs, with their factors
/// `[k / 256][width]`, to be taken off.
pub struct Tile<'t> {
    quants: &'t mut [u8],
    scales: &'t mut [f32],
    mins: &'t mut [u8],
    dmin: &'t mut [f32],
}

impl<'t> Tile<'t> {
    fn carve(tile: &'t mut [u8], k_cols: usize, width: usize) -> Self {
        let (quants, rest) = tile.split_at_mut(width * k_cols);
        let (scales, rest) = rest.split_at_mut(width * k_cols / 16 * 4);
        let (mins, rest) = rest.split_at_mut(width * k_cols / GROUP * 4);
        let dmin = &mut rest[..width * k_cols / SUPER * 4];
        Tile { quants, scales: bytes::cast_mut(scales), mins, dmin: bytes::cast_mut(dmin) }
    }
}

/// Unpacks `blocks` of one panel into the rows of a tile of width `W` from `16 * panel` on.
#[inline(always)]
pub fn fill<S: Simd, F: ScaledFormat, const W: usize>(
    s: S,
    blocks: &[u8],
    tile: &mut Tile<'_>,
    (panel, ahead): (usize, Ahead),
) {
    let lines = (F::BODY + F::TAIL).div_ceil(64).div_ceil(F::COLS / GROUP);
    let row0 = panel % (W / PANEL_ROWS) * PANEL_ROWS;
    for (b, block) in blocks.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        for half in 0..PANEL_ROWS / S::LANES {
            let row = row0 + half * S::LANES;
            for g in 0..F::COLS / GROUP {
                if half == 0 {
                    // A share of the lines with every group, so that they arrive in an even flow.
                    for line in 0..lines {
                        prefetch(s, ahead, block.as_ptr(), g * lines + line);
                    }
                }
                let group = b * (F::COLS / GROUP) + g;
                let units = &mut tile.quants[group * GROUP * W..][..GROUP * W];
                let quants = F::quants(s, body, g, half);
                for u in 0..GROUP / 4 {
                    s.store_bytes(quants[u], &mut units[4 * (u * W + row)..]);
                }
                let parts = GROUP / F::GROUP;
                let scales = F::scales(s, (body, tail), g, half);
                for i in 0..parts {
                    s.store(scales[i], &mut tile.scales[(group * parts + i) * W + row..]);
                }
                if F::MINS {
                    let mins = F::mins(s, (body, tail), g, half);
                    s.store_bytes(mins, &mut tile.mins[4 * (group * W + row)..]);
                }
            }
            if F::MINS && F::COLS == SUPER {
                s.store(F::dmin(s, tail, half), &mut tile.dmin[b * W + row..]);
            }
        }
    }
}

/// The products of a unit's four columns, added to `acc`.
#[inline(always)]
fn dots<S: Simd, const V: usize, const N: usize>(
    s: S,
    acc: &mut [[S::I; N]; V],
    unit: &[u8],
    rows: &Rows<'_>,
    (b, place): (usize, usize),
) {
    let w = vectors::<S, V>(s, unit);
    for n in 0..N {
        let a = s.splat_i(rows.quants(n, b, place));
        for v in 0..V {
            acc[v][n] = s.dot_wide(acc[v][n], w[v], a);
        }
    }
    in_order();
}

/// `N` tokens over the tile's columns `k0 .. k0 + k_len`, in groups of `G`, with a scale of the activations per 32.
#[inline(always)]
fn multiply<S: Simd, const G: usize, const MINS: bool, const V: usize, const N: usize>(
    s: S,
    tile: &Tile<'_>,
    rows: &Rows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let width = V * S::LANES;
    let mut sums = [[s.splat(0.0); N]; V];
    for (group, quants) in tile.quants[..k_len * width].chunks_exact(GROUP * width).enumerate() {
        let (b, g) = ((k0 + group * GROUP) / SUPER, (k0 + group * GROUP) % SUPER / GROUP);
        let mut values = [[s.splat(0.0); N]; V];
        for (part, quants) in quants.chunks_exact(G * width).enumerate() {
            let mut acc = [[s.splat_i(0); N]; V];
            if S::VNNI {
                for n in 0..N {
                    let start = if G == GROUP { rows.start(n, b, g) } else { rows.start16(n, b, 2 * g + part) };
                    for v in 0..V {
                        acc[v][n] = s.splat_i(start);
                    }
                }
            }
            for (u, unit) in quants.chunks_exact(4 * width).enumerate() {
                dots(s, &mut acc, unit, rows, (b, (g * GROUP + part * G) / 4 + u));
            }
            let d = floats::<S, V>(s, &tile.scales[(group * (GROUP / G) + part) * width..]);
            for n in 0..N {
                for v in 0..V {
                    let sum = s.to_f(acc[v][n]);
                    values[v][n] = if part == 0 { s.mul(sum, d[v]) } else { s.fma(sum, d[v], values[v][n]) };
                }
            }
        }
        for n in 0..N {
            let scale = s.splat(rows.scale(n, b, g));
            for v in 0..V {
                sums[v][n] = s.fma(values[v][n], scale, sums[v][n]);
            }
        }
        if MINS {
            let min = floats::<S, V>(s, &bytes::cast(tile.mins)[group * width..]);
            for n in 0..N {
                let mass = s.splat(rows.mass(n, b, g));
                for v in 0..V {
                    sums[v][n] = s.fma(min[v], mass, sums[v][n]);
                }
            }
        }
    }
    sums
}

/// The same with one scale of the activations per 256 columns, whose groups of 32 alternate ([`paired`]).
#[inline(always)]
fn multiply_super<S: Simd, const G: usize, const MINS: bool, const V: usize, const N: usize>(
    s: S,
    tile: &Tile<'_>,
    rows: &Rows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let width = V * S::LANES;
    let mut sums = [[s.splat(0.0); N]; V];
    for (block, quants) in tile.quants[..k_len * width].chunks_exact(SUPER * width).enumerate() {
        let b = k0 / SUPER + block;
        let mut values = [[s.splat(0.0); N]; V];
        for (group, quants) in quants.chunks_exact(G * width).enumerate() {
            let (g, part) = (group * G / GROUP, group * G % GROUP / 16);
            let mut acc = [[s.splat_i(0); N]; V];
            if S::VNNI {
                for n in 0..N {
                    let mut start = s.splat_i(rows.start(n, b, paired(2 * g + part, 2)));
                    if G == GROUP {
                        start = s.add_i(start, s.splat_i(rows.start(n, b, paired(2 * g + 1, 2))));
                    }
                    // They are for an offset of 32.
                    start = s.shl::<2>(start);
                    for v in 0..V {
                        acc[v][n] = start;
                    }
                }
            }
            for (u, unit) in quants.chunks_exact(4 * width).enumerate() {
                dots(s, &mut acc, unit, rows, (b, paired(8 * g + 4 * part + u, 8)));
            }
            let d = floats::<S, V>(s, &tile.scales[(block * (SUPER / G) + group) * width..]);
            for n in 0..N {
                for v in 0..V {
                    values[v][n] = s.fma(s.to_f(acc[v][n]), d[v], values[v][n]);
                }
            }
        }
        if MINS {
            let mut minima = [[s.splat_i(0); N]; V];
            let mins = &tile.mins[block * (SUPER / GROUP) * width * 4..][..SUPER / GROUP * width * 4];
            for (g, mins) in mins.chunks_exact(4 * width).enumerate() {
                let min = vectors::<S, V>(s, mins);
                for n in 0..N {
                    let a = s.splat_i(rows.sums16(n, b, g));
                    for v in 0..V {
                        minima[v][n] = s.dot_pairs(minima[v][n], min[v], a);
                    }
                }
            }
            let dmin = floats::<S, V>(s, &tile.dmin[block * width..]);
            for n in 0..N {
                for v in 0..V {
                    values[v][n] = s.fnma(s.to_f(minima[v][n]), dmin[v], values[v][n]);
                }
            }
        }
        for n in 0..N {
            let scale = s.splat(rows.scale(n, b, 0));
            for v in 0..V {
                sums[v][n] = s.fma(values[v][n], scale, sums[v][n]);
            }
        }
    }
    sums
}

/// Columns `cols` of `out`, whole stripes of `V` vectors, which are whole panels; order as in [`super::int::tiled`].
#[inline(always)]
pub fn product<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    (w, unpack): (&Matrix<'_>, &Unpack),
    acts: &Acts<'_>,
    (out, cols): (&mut Block<'_, f32>, Range<usize>),
    accumulate: bool,
    (tile, k_cols, ahead): (&mut [u8], usize, Ahead),
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
            let fill = unpack.fill[usize::from(width > PANEL_ROWS)];
            for panel in 0..width / PANEL_ROWS {
                let blocks = &w.panel((out.col0 + col) / PANEL_ROWS + panel)[bytes_of(k0)..][..bytes_of(k_len)];
                // SAFETY: `fill` is of the same tier's table as this function: see `Kernels::matmul`.
                unsafe { fill(blocks, &mut tile, panel, ahead) };
            }
            macro_rules! run {
                ($token:expr, $n:tt) => {
                    prefetch_block::<S, V, $n>(s, out, ($token, col));
                    let (rows, cols) = (acts.rows($token, $n), (k0, k_len));
                    let sums = match const { Kind::ALL[KIND] } {
                        Kind::Groups32 => multiply::<S, 32, false, V, $n>(s, &tile, &rows, cols),
                        Kind::Groups32Mins => multiply::<S, 32, true, V, $n>(s, &tile, &rows, cols),
                        Kind::Groups16 => multiply::<S, 16, false, V, $n>(s, &tile, &rows, cols),
                        Kind::Super32 => multiply_super::<S, 32, false, V, $n>(s, &tile, &rows, cols),
                        Kind::Super32Mins => multiply_super::<S, 32, true, V, $n>(s, &tile, &rows, cols),
                        Kind::Super16 => multiply_super::<S, 16, false, V, $n>(s, &tile, &rows, cols),
                        Kind::Super16Mins => multiply_super::<S, 16, true, V, $n>(s, &tile, &rows, cols),
                    };
                    write_block(s, sums, out, ($token, col), accumulate || k0 > 0);
                };
            }
            in_blocks!(acts, [N, 2, 1], run);
        }
    }
}
