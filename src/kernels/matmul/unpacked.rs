//! Weights whose groups of 16 or 32 columns have a float scale, times int8 activations.
//!
//! A type is nothing but a way to unpack ([`UnpackedFormat`]). For one token its vectors are multiplied as they come
//! ([`stream`]); for more its panels become a tile of signed bytes and float scales, and one kernel multiplies the tile.
//! Nothing is rounded but what the float arithmetic rounds.
//!
//! Types with blocks of 256 columns meet activations with a scale per 256 ([`multiply_super`]): a group then costs one
//! multiply-add, and its minimum half an integer one. The others have a scale per 32 ([`multiply`]).
#![allow(unsafe_code)]

use std::ops::Range;

use super::kind::ProductKind;
use super::{Matrix, NextStripe, in_blocks, in_order, prefetch, prefetch_block, write_block};
use crate::bytes;
use crate::kernels::activations::{ActivationRows, Activations, paired};
use crate::kernels::formats::unpack::{UnpackedFormat, in_tile};
use crate::kernels::partition::OutTile;
use crate::kernels::simd::Simd;
use crate::kernels::tiling::{PrefetchDistance, STREAM_TOKENS_MAX, tile_bytes};
use crate::quant::{GROUP, PANEL_ROWS, SUPER, WeightType};

/// Unpacks a stretch of a panel's blocks into a tile.
pub type FillFn = unsafe fn(&[u8], &mut UnpackedTile<'_>, PrefetchDistance);

/// One token times the rows of a panel.
pub type StreamFn = unsafe fn(&[u8], &ActivationRows<'_>, PrefetchDistance, &mut [f32; PANEL_ROWS]);

/// How a type is unpacked, and which kernel takes it from there.
#[derive(Clone, Copy)]
pub struct Unpack {
    /// The weight type.
    pub ty: WeightType,
    fill: FillFn,
    block_cols: usize,
    block_bytes: usize,
    /// The kernel.
    pub kind: ProductKind,
    /// That for one token, where it is worth one.
    stream: Option<StreamFn>,
}

impl Unpack {
    /// For [`fill`] and [`stream`] of the format `F`.
    pub const fn new<S: Simd, F: UnpackedFormat>(fill: FillFn, stream: StreamFn) -> Unpack {
        assert!(F::COLS.is_multiple_of(GROUP));
        let stream = if S::FAST && (!F::GRID || S::BYTE_TABLES) { Some(stream) } else { None };
        Unpack {
            ty: F::TYPE,
            fill,
            block_cols: F::COLS,
            block_bytes: F::BODY + F::TAIL,
            kind: ProductKind::of::<S, F>(),
            stream,
        }
    }

    /// Whether there is a kernel for one token.
    pub const fn streams(&self) -> bool {
        self.stream.is_some()
    }

    /// One token times the panels of `out`'s columns.
    ///
    /// # Safety
    /// The CPU has the features of the tier that this is of.
    pub unsafe fn stream(
        &self,
        w: &Matrix<'_>,
        acts: &Activations<'_>,
        out: &mut OutTile<'_, f32>,
        accumulate: bool,
        ahead: PrefetchDistance,
    ) {
        let stream = self.stream.expect("a caller that has asked");
        let (rows, first) = (acts.rows(0, 1), out.col0 / PANEL_ROWS);
        for (p, out) in out.row(0).as_chunks_mut::<PANEL_ROWS>().0.iter_mut().enumerate() {
            let mut sums = [0.0; PANEL_ROWS];
            // SAFETY: as the caller guarantees.
            unsafe { stream(w.panel(first + p), &rows, ahead, &mut sums) };
            if accumulate {
                sums.iter_mut().zip(&*out).for_each(|(sum, out)| *sum += out);
            }
            *out = sums;
        }
    }
}

/// Unpacked weights of a panel: quants `[k / 4][16][4]`, which are [`offset`](crate::kernels::formats::unpack::offset) more than what they stand for; scales
/// `[k / group][16]`; minima `[k / 32][16]`, which are floats that are added to every value, or, where blocks have 256
/// columns, the integers of both halves of 32 columns as i16 pairs, with their factors `d` `[k / 256][16]`, to be taken off.
/// Where portions meet integer scales, these are i16 twice, and `d` is the float scale.
pub struct UnpackedTile<'t> {
    quants: &'t mut [u8],
    scales: &'t mut [f32],
    mins: &'t mut [u8],
    d: &'t mut [f32],
}

impl<'t> UnpackedTile<'t> {
    fn carve(tile: &'t mut [u8], k_cols: usize) -> Self {
        let (quants, rest) = tile.split_at_mut(PANEL_ROWS * k_cols);
        let (scales, rest) = rest.split_at_mut(PANEL_ROWS * k_cols / 16 * 4);
        let (mins, rest) = rest.split_at_mut(PANEL_ROWS * k_cols / GROUP * 4);
        let d = &mut rest[..PANEL_ROWS * k_cols / SUPER * 4];
        UnpackedTile { quants, scales: bytes::cast_mut(scales), mins, d: bytes::cast_mut(d) }
    }
}

/// The tiles of a stripe of two panels, or twice that of one.
type UnpackedTiles<'t> = [&'t UnpackedTile<'t>; 2];

/// Where vector `v` of a stripe lies: its panel, and the first of its rows there.
#[inline(always)]
const fn lane<S: Simd>(v: usize) -> (usize, usize) {
    (v * S::LANES / PANEL_ROWS, v * S::LANES % PANEL_ROWS)
}

/// Cache lines to ask for with every 32 columns, so that they arrive in an even flow.
#[inline(always)]
const fn lines<F: UnpackedFormat>() -> usize {
    (F::BODY + F::TAIL).div_ceil(64).div_ceil(F::COLS / GROUP)
}

/// Unpacks `blocks` of one panel into a tile.
#[inline(always)]
pub fn fill<S: Simd, F: UnpackedFormat>(s: S, blocks: &[u8], tile: &mut UnpackedTile<'_>, ahead: PrefetchDistance) {
    const W: usize = PANEL_ROWS;
    let pairs = const { ProductKind::of::<S, F>().scales_pairs::<S>() };
    for (b, block) in blocks.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        for half in 0..W / S::LANES {
            let row = half * S::LANES;
            for g in 0..F::COLS / GROUP {
                if half == 0 {
                    for line in 0..lines::<F>() {
                        prefetch(s, ahead, block.as_ptr(), g * lines::<F>() + line);
                    }
                }
                let group = b * (F::COLS / GROUP) + g;
                let units = &mut tile.quants[group * GROUP * W..][..GROUP * W];
                let quants = F::quants(s, body, g, half);
                for u in 0..GROUP / 4 {
                    s.store_bytes(in_tile::<S, F>(s, quants[u]), &mut units[4 * (u * W + row)..]);
                }
                let parts = GROUP / F::GROUP;
                let scales = match pairs {
                    false => F::scales(s, (body, tail), g, half),
                    true => {
                        let [a, b] = F::factors(s, body, g, half);
                        [s.as_f(s.or(a, s.shl::<16>(a))), s.as_f(s.or(b, s.shl::<16>(b)))]
                    }
                };
                for i in 0..parts {
                    s.store(scales[i], &mut tile.scales[(group * parts + i) * W + row..]);
                }
                if F::MINS {
                    let mins = F::mins(s, (body, tail), g, half);
                    s.store_bytes(mins, &mut tile.mins[4 * (group * W + row)..]);
                }
            }
            if F::MINS && F::COLS == SUPER {
                s.store(F::dmin(s, tail, half), &mut tile.d[b * W + row..]);
            }
            if pairs {
                s.store(F::d(s, tail, half), &mut tile.d[b * W + row..]);
            }
        }
    }
}

/// One token times a panel.
#[inline(always)]
pub fn stream<S: Simd, F: UnpackedFormat>(
    s: S,
    panel: &[u8],
    rows: &ActivationRows<'_>,
    ahead: PrefetchDistance,
    out: &mut [f32; PANEL_ROWS],
) {
    for half in 0..PANEL_ROWS / S::LANES {
        let sum = panel_sum::<S, F>(s, (panel, ahead), rows, half);
        s.store(sum, &mut out[half * S::LANES..]);
    }
}

/// One vector of rows times one token.
#[inline(always)]
fn panel_sum<S: Simd, F: UnpackedFormat>(
    s: S,
    (panel, ahead): (&[u8], PrefetchDistance),
    rows: &ActivationRows<'_>,
    half: usize,
) -> S::F {
    let (per_super, parts) = (SUPER / GROUP, GROUP / F::GROUP);
    let mut sum = s.splat(0.0);
    for (at, block) in panel.chunks_exact(F::BODY + F::TAIL).enumerate() {
        let (body, tail) = block.split_at(F::BODY);
        let (mut values, mut minima, mut total) = (s.splat(0.0), s.splat_i(0), s.splat_i(0));
        for g in 0..F::COLS / GROUP {
            if half == 0 {
                for line in 0..lines::<F>() {
                    prefetch(s, ahead, block.as_ptr(), g * lines::<F>() + line);
                }
            }
            let group = at * (F::COLS / GROUP) + g;
            let (b, i) = (group / per_super, group % per_super);
            let quants = F::quants(s, body, g, half);
            if F::COLS < SUPER {
                values = s.splat(0.0);
            }
            for part in 0..parts {
                let sum = part_sum::<S, F>(s, &quants, part, rows, (b, i));
                match F::INT_SUMS {
                    true => {
                        let factor = s.and(F::factors(s, body, g, half)[part], s.splat_i(0xffff));
                        total = s.dot_pairs(total, sum, factor);
                    }
                    false => values = s.fma(s.to_f(sum), F::scales(s, (body, tail), g, half)[part], values),
                }
            }
            if F::COLS < SUPER {
                sum = s.fma(values, s.splat(rows.scale(0, b, i)), sum);
            }
            if F::MINS {
                let mins = F::mins(s, (body, tail), g, half);
                match F::COLS {
                    SUPER => minima = s.dot_pairs(minima, mins, s.splat_i(rows.sums16(0, b, i))),
                    _ => sum = s.fma(s.as_f(mins), s.splat(rows.group_sum(0, b, i)), sum),
                }
            }
        }
        if F::COLS == SUPER {
            if F::INT_SUMS {
                values = s.mul(s.to_f(total), F::d(s, tail, half));
            }
            if F::MINS {
                values = s.fnma(s.to_f(minima), F::dmin(s, tail, half), values);
            }
            sum = s.fma(values, s.splat(rows.scale(0, at, 0)), sum);
        }
    }
    sum
}

/// The integer sum of the columns under scale `part` of group `g` of 256-block `b`, whose quants are given.
#[inline(always)]
fn part_sum<S: Simd, F: UnpackedFormat>(
    s: S,
    quants: &[S::I; 8],
    part: usize,
    rows: &ActivationRows<'_>,
    (b, g): (usize, usize),
) -> S::I {
    let units = F::GROUP / 4;
    let mut sum = s.splat_i(start::<S, F>(rows, part, (b, g)));
    let kind = const { ProductKind::of::<S, F>() };
    let mut pairs = s.splat_i(0);
    for u in 0..units {
        let unit = part * units + u;
        let place = if F::COLS == SUPER { paired(8 * g + unit, 8) } else { 8 * g + unit };
        let a = s.splat_i(rows.quants(0, b, place));
        let Some(portion) = kind.i16_chain_len::<S>() else {
            let w = if S::DOT.is_unsigned() { quants[unit] } else { in_tile::<S, F>(s, quants[unit]) };
            sum = s.dot_wide(sum, w, a);
            continue;
        };
        if u % portion == 0 {
            pairs = pairs_start(s, kind, rows, 0, (b, 8 * g + part * units, u / portion));
        }
        pairs = s.dot(pairs, in_tile::<S, F>(s, quants[unit]), a);
        if (u + 1) % portion == 0 {
            sum = s.add_lanes(sum, pairs);
        }
    }
    sum
}

/// What such a sum begins with, to take [`UnpackedFormat::ZERO_POINT`] out of the quants.
#[inline(always)]
fn start<S: Simd, F: UnpackedFormat>(rows: &ActivationRows<'_>, part: usize, (b, g): (usize, usize)) -> i32 {
    if !S::DOT.is_unsigned() || F::ZERO_POINT == 0 {
        return 0;
    }
    let mut start = match (F::COLS == SUPER, F::GROUP == GROUP) {
        (true, _) => rows.start(0, b, paired(2 * g + part, 2)),
        (false, true) => rows.start(0, b, g),
        (false, false) => rows.start16(0, b, 2 * g + part),
    };
    if F::COLS == SUPER && F::GROUP == GROUP {
        start += rows.start(0, b, paired(2 * g + 1, 2));
    }
    // Records have it for a zero of 32, or of 128; no bits are lost.
    let zero = if F::COLS == SUPER { 32 } else { 128 };
    if F::ZERO_POINT < zero { start >> (zero / F::ZERO_POINT).ilog2() } else { start * i32::from(F::ZERO_POINT / zero) }
}

/// Where a record has what belongs to the units of a group, from unit `unit` of a block on, `per` units at a time: the first,
/// and how far apart they are.
#[inline(always)]
const fn places(kind: ProductKind, unit: usize, per: usize) -> (usize, usize) {
    if kind.is_super() { (paired(unit / per, 8 / per), 2) } else { (unit / per, 1) }
}

/// What a sum in i16 halves begins with: it takes the offset out of the products of portion `i` from unit `unit` of 256-block
/// `b` on. Quants with minima have none.
#[inline(always)]
fn pairs_start<S: Simd>(
    s: S,
    kind: ProductKind,
    rows: &ActivationRows<'_>,
    n: usize,
    (b, unit, i): (usize, usize, usize),
) -> S::I {
    let portion = match kind.i16_chain_len::<S>() {
        Some(portion) if !kind.mins() => portion,
        _ => return s.splat_i(0),
    };
    // Records have it for an offset of 8, or 32: of 16 columns, and of 32 or 8.
    let ((first, step), (firsts, _)) = (places(kind, unit, portion), places(kind, unit, 4));
    let at = first + step * i;
    let start = match (kind.is_super(), portion) {
        (false, 8) => rows.start(n, b, at),
        (false, _) => rows.start16(n, b, at),
        (true, 2) => rows.start8(n, b, at),
        (true, 4) => return s.splat_i(rows.start(n, b, at)),
        (true, _) => return s.add_16(s.splat_i(rows.start(n, b, firsts)), s.splat_i(rows.start(n, b, firsts + 2))),
    };
    s.add_16(s.splat_i(start), s.splat_i(start))
}

/// `len` elements of both panels of a stripe from `at` on; of one panel, twice the same. Once for many loads, whose bounds
/// then are constants.
#[inline(always)]
fn both<S: Simd, T, const V: usize>(parts: [&[T]; 2], at: usize, len: usize) -> [&[T]; 2] {
    let last = lane::<S>(V - 1).0;
    [&parts[0][at..][..len], &parts[last][at..][..len]]
}

/// Vectors of bytes, side by side.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(s: S, bytes: [&[u8]; 2], unit: usize) -> [S::I; V] {
    let mut vectors = [s.splat_i(0); V];
    for v in 0..V {
        let (panel, row) = lane::<S>(v);
        vectors[v] = s.load_bytes(&bytes[panel][(unit * PANEL_ROWS + row) * 4..]);
    }
    vectors
}

/// Vectors of f32, side by side.
#[inline(always)]
fn floats<S: Simd, const V: usize>(s: S, values: [&[f32]; 2], at: usize) -> [S::F; V] {
    let mut vectors = [s.splat(0.0); V];
    for v in 0..V {
        let (panel, row) = lane::<S>(v);
        vectors[v] = s.load(&values[panel][at * PANEL_ROWS + row..]);
    }
    vectors
}

/// The integer sums of a group, at unit `unit` of 256-block `b`, whose quants begin at a unit of the tiles' part: in i32 lanes at
/// once, or in i16 halves, a portion at a time.
#[inline(always)]
fn group_sums<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    (quants, first): ([&[u8]; 2], usize),
    rows: &ActivationRows<'_>,
    (b, unit): (usize, usize),
) -> [[S::I; N]; V] {
    let (kind, units) = (const { ProductKind::ALL[KIND] }, const { ProductKind::ALL[KIND].group() / 4 });
    let mut sums = [[s.splat_i(0); N]; V];
    let Some(portion) = kind.i16_chain_len::<S>() else {
        let (place, step) = places(kind, unit, 1);
        for n in 0..N {
            let start = lanes_start(s, kind, rows, n, (b, unit));
            for v in 0..V {
                sums[v][n] = start;
            }
        }
        for u in 0..units {
            dots::<S, false, V, N>(s, &mut sums, (quants, first + u), rows, (b, place + step * u));
        }
        return sums;
    };
    for i in 0..units / portion.min(units) {
        let pairs = portion_sums::<S, KIND, V, N>(s, (quants, first), rows, (b, unit, i));
        for n in 0..N {
            for v in 0..V {
                sums[v][n] = s.add_lanes(sums[v][n], pairs[v][n]);
            }
        }
    }
    sums
}

/// Of the group at unit `unit` of 256-block `b`, whose quants begin at unit `first`, the sums of portion `i` in i16 halves.
#[inline(always)]
fn portion_sums<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    (quants, first): ([&[u8]; 2], usize),
    rows: &ActivationRows<'_>,
    (b, unit, i): (usize, usize, usize),
) -> [[S::I; N]; V] {
    let (kind, units) = (const { ProductKind::ALL[KIND] }, const { ProductKind::ALL[KIND].group() / 4 });
    let portion = kind.i16_chain_len::<S>().expect("a kind that is summed in halves").min(units);
    let (place, step) = places(kind, unit, 1);
    let mut pairs = [[s.splat_i(0); N]; V];
    for n in 0..N {
        let start = pairs_start(s, kind, rows, n, (b, unit, i));
        for v in 0..V {
            pairs[v][n] = start;
        }
    }
    for u in i * portion..(i + 1) * portion {
        dots::<S, true, V, N>(s, &mut pairs, (quants, first + u), rows, (b, place + step * u));
    }
    pairs
}

/// What the sum of a group begins with, as i32 lanes, to take an offset of 128 out; signed bytes have none.
#[inline(always)]
fn lanes_start<S: Simd>(
    s: S,
    kind: ProductKind,
    rows: &ActivationRows<'_>,
    n: usize,
    (b, unit): (usize, usize),
) -> S::I {
    if !S::DOT.is_unsigned() {
        return s.splat_i(0);
    }
    let (place, step) = places(kind, unit, 4);
    if !kind.is_super() {
        return s.splat_i(if kind.group() == GROUP { rows.start(n, b, unit / 8) } else { rows.start16(n, b, place) });
    }
    let mut start = s.splat_i(rows.start(n, b, place));
    if kind.group() == GROUP {
        start = s.add_i(start, s.splat_i(rows.start(n, b, place + step)));
    }
    // They are for an offset of 32.
    s.shl::<2>(start)
}

/// The products of a unit's four columns, added to `acc`: to i16 halves or to i32 lanes.
#[inline(always)]
fn dots<S: Simd, const HALVES: bool, const V: usize, const N: usize>(
    s: S,
    acc: &mut [[S::I; N]; V],
    (quants, unit): ([&[u8]; 2], usize),
    rows: &ActivationRows<'_>,
    (b, place): (usize, usize),
) {
    let w = vectors::<S, V>(s, quants, unit);
    for n in 0..N {
        let a = s.splat_i(rows.quants(n, b, place));
        for v in 0..V {
            acc[v][n] = if HALVES { s.dot(acc[v][n], w[v], a) } else { s.dot_wide(acc[v][n], w[v], a) };
        }
    }
    in_order();
}

/// `N` tokens over the tiles' columns `k0 .. k0 + k_len`, with a scale of the activations per 32.
#[inline(always)]
fn multiply<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    tiles: UnpackedTiles<'_>,
    rows: &ActivationRows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let mut sums = [[s.splat(0.0); N]; V];
    let (kind, width) = (const { ProductKind::ALL[KIND] }, const { ProductKind::ALL[KIND].group() });
    let parts = GROUP / width;
    // Here, for a call in the loop would put all sums into memory.
    let mins: [&[f32]; 2] =
        if kind.mins() { [bytes::cast(tiles[0].mins), bytes::cast(tiles[1].mins)] } else { [&[], &[]] };
    for group in 0..k_len / GROUP {
        let (b, g) = ((k0 + group * GROUP) / SUPER, (k0 + group * GROUP) % SUPER / GROUP);
        let mut values = [[s.splat(0.0); N]; V];
        for part in 0..parts {
            let (at, len) = (group * parts + part, width * PANEL_ROWS);
            let quants = both::<S, _, V>([&*tiles[0].quants, &*tiles[1].quants], at * len, len);
            let acc = group_sums::<S, KIND, V, N>(s, (quants, 0), rows, (b, 8 * g + part * width / 4));
            let d = floats::<S, V>(s, [&*tiles[0].scales, &*tiles[1].scales], at);
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
        if kind.mins() {
            let min = floats::<S, V>(s, mins, group);
            for n in 0..N {
                let mass = s.splat(rows.group_sum(n, b, g));
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
fn multiply_super<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    tiles: UnpackedTiles<'_>,
    rows: &ActivationRows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let mut sums = [[s.splat(0.0); N]; V];
    let (kind, width) = (const { ProductKind::ALL[KIND] }, const { ProductKind::ALL[KIND].group() });
    let groups = SUPER / width;
    for block in 0..k_len / SUPER {
        let b = k0 / SUPER + block;
        let (len, n_scales) = (SUPER * PANEL_ROWS, groups * PANEL_ROWS);
        let quants = both::<S, _, V>([&*tiles[0].quants, &*tiles[1].quants], block * len, len);
        let scales = both::<S, _, V>([&*tiles[0].scales, &*tiles[1].scales], block * n_scales, n_scales);
        let mut values = [[s.splat(0.0); N]; V];
        for group in 0..groups {
            // Two groups of 16 would check bounds as often as they multiply; of 32, registers are worth more.
            let at = block * groups + group;
            let (quants, first) = match width < GROUP {
                true => (quants, group * width / 4),
                false => {
                    let len = width * PANEL_ROWS;
                    (both::<S, _, V>([&*tiles[0].quants, &*tiles[1].quants], at * len, len), 0)
                }
            };
            let acc = group_sums::<S, KIND, V, N>(s, (quants, first), rows, (b, group * width / 4));
            let d = match width < GROUP {
                true => floats::<S, V>(s, scales, group),
                false => floats::<S, V>(s, [&*tiles[0].scales, &*tiles[1].scales], at),
            };
            for n in 0..N {
                for v in 0..V {
                    values[v][n] = s.fma(s.to_f(acc[v][n]), d[v], values[v][n]);
                }
            }
        }
        if kind.mins() {
            let mut minima = [[s.splat_i(0); N]; V];
            let (at, len) = (block * (SUPER / GROUP) * PANEL_ROWS * 4, SUPER / GROUP * PANEL_ROWS * 4);
            let mins = both::<S, _, V>([&*tiles[0].mins, &*tiles[1].mins], at, len);
            for g in 0..SUPER / GROUP {
                let min = vectors::<S, V>(s, mins, g);
                for n in 0..N {
                    let a = s.splat_i(rows.sums16(n, b, g));
                    for v in 0..V {
                        minima[v][n] = s.dot_pairs(minima[v][n], min[v], a);
                    }
                }
            }
            let dmin = floats::<S, V>(s, [&*tiles[0].d, &*tiles[1].d], block);
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

/// The same where each portion, in i16 halves, meets its integer scale: one instruction for that and for making it an i32 lane.
#[inline(always)]
fn multiply_pairs<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    tiles: UnpackedTiles<'_>,
    rows: &ActivationRows<'_>,
    (k0, k_len): (usize, usize),
) -> [[S::F; N]; V] {
    let mut sums = [[s.splat(0.0); N]; V];
    let (kind, width) = (const { ProductKind::ALL[KIND] }, const { ProductKind::ALL[KIND].group() });
    let portion = kind.i16_chain_len::<S>().expect("a kind that is summed in halves");
    for block in 0..k_len / SUPER {
        let b = k0 / SUPER + block;
        let (len, n_scales) = (SUPER * PANEL_ROWS, SUPER / width * PANEL_ROWS);
        let quants = both::<S, _, V>([&*tiles[0].quants, &*tiles[1].quants], block * len, len);
        let scales = both::<S, _, V>([&*tiles[0].scales, &*tiles[1].scales], block * n_scales, n_scales);
        let mut totals = [[s.splat_i(0); N]; V];
        for group in 0..SUPER / width {
            let unit = group * width / 4;
            let scale = floats::<S, V>(s, scales, group);
            for i in 0..width / 4 / portion {
                let pairs = portion_sums::<S, KIND, V, N>(s, (quants, unit), rows, (b, unit, i));
                for n in 0..N {
                    for v in 0..V {
                        totals[v][n] = s.add_scaled(totals[v][n], pairs[v][n], s.as_i(scale[v]));
                    }
                }
            }
        }
        let d = floats::<S, V>(s, [&*tiles[0].d, &*tiles[1].d], block);
        for n in 0..N {
            let scale = s.splat(rows.scale(n, b, 0));
            for v in 0..V {
                sums[v][n] = s.fma(s.mul(s.to_f(totals[v][n]), d[v]), scale, sums[v][n]);
            }
        }
    }
    sums
}

/// Columns `cols` of `out`, whole panels; order as in [`super::int::tiled`]. Many tokens meet stripes of `V` vectors, which
/// are whole panels; few, and those that blocks of `N` leave over, one panel of `P` vectors after the other.
#[inline(always)]
pub fn product<S: Simd, const KIND: usize, const V: usize, const P: usize, const N: usize>(
    s: S,
    (w, unpack): (&Matrix<'_>, &Unpack),
    acts: &Activations<'_>,
    (out, cols): (&mut OutTile<'_, f32>, Range<usize>),
    accumulate: bool,
    (tile, k_cols, ahead): (&mut [u8], usize, PrefetchDistance),
) {
    const { assert!(P * S::LANES == PANEL_ROWS && V.is_multiple_of(P) && V <= 2 * P) };
    assert!(cols.len().is_multiple_of(PANEL_ROWS));
    assert!(k_cols.is_multiple_of(SUPER) && w.cols == acts.layout.cols() && w.cols.is_multiple_of(GROUP));
    let few = acts.n_tokens <= STREAM_TOKENS_MAX;
    let panels_max = if few { 1 } else { V / P };
    let (first, second) = tile.split_at_mut(tile_bytes(k_cols, PANEL_ROWS));
    let mut tiles = [UnpackedTile::carve(first, k_cols), UnpackedTile::carve(second, k_cols)];
    // Stretches of `k_cols` are whole blocks of any type.
    let bytes_of = |k: usize| unpack.block_bytes * (k / unpack.block_cols);
    for k0 in (0..w.cols).step_by(k_cols) {
        let k = (k0, k_cols.min(w.cols - k0));
        let accumulate = accumulate || k0 > 0;
        for col in cols.clone().step_by(panels_max * PANEL_ROWS) {
            let n_panels = panels_max.min((cols.end - col) / PANEL_ROWS);
            let stripe = (&*out, col, panels_max * PANEL_ROWS);
            let next = NextStripe::after(w, stripe, (k0, k_cols, bytes_of(k_cols)), acts.n_tokens);
            for (panel, tile) in tiles.iter_mut().enumerate().take(n_panels) {
                let panel = w.panel((out.col0 + col) / PANEL_ROWS + panel);
                let blocks = &panel[bytes_of(k.0)..][..bytes_of(k.1)];
                // SAFETY: `fill` is of the same tier's table as this function: see `Kernels::matmul`.
                unsafe { (unpack.fill)(blocks, tile, ahead) };
            }
            let mut token = 0;
            while V > P && n_panels == 2 && acts.n_tokens - token >= N {
                next.ask(s, token, N);
                multiply_block::<S, KIND, V, N>(s, [&tiles[0], &tiles[1]], acts, (out, (token, col)), accumulate, k);
                token += N;
            }
            for (panel, tile) in tiles.iter().enumerate().take(n_panels) {
                macro_rules! run {
                    ($token:expr, $n:tt) => {
                        let place = ($token, col + panel * PANEL_ROWS);
                        if panel == 0 && !few {
                            next.ask(s, $token, $n);
                        }
                        multiply_block::<S, KIND, P, $n>(s, [tile; 2], acts, (out, place), accumulate, k);
                    };
                }
                in_blocks!(acts, token, [N, 2, 1], run);
            }
        }
    }
}

/// `V` vectors of rows, whose tiles are given, times `N` tokens; both from `place` of `out` on.
#[inline(always)]
fn multiply_block<S: Simd, const KIND: usize, const V: usize, const N: usize>(
    s: S,
    tiles: UnpackedTiles<'_>,
    acts: &Activations<'_>,
    (out, place): (&mut OutTile<'_, f32>, (usize, usize)),
    accumulate: bool,
    k: (usize, usize),
) {
    prefetch_block::<S, V, N>(s, out, place);
    let (kind, rows) = (const { ProductKind::ALL[KIND] }, acts.rows(place.0, N));
    let sums = match (kind.is_super(), kind.scales_pairs::<S>()) {
        (false, _) => multiply::<S, KIND, V, N>(s, tiles, &rows, k),
        (true, false) => multiply_super::<S, KIND, V, N>(s, tiles, &rows, k),
        (true, true) => multiply_pairs::<S, KIND, V, N>(s, tiles, &rows, k),
    };
    write_block(s, sums, out, place, V * S::LANES, accumulate);
}
