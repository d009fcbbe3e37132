//! IQ1, IQ2 and IQ3: four or eight columns at a time are an entry of a grid, and signs lie beside them.

use super::unpack::{UnpackedFormat, bits, byte, every, f16s, field, format, plane, values, word};
use crate::kernels::simd::{ByteTables, Simd};
use crate::quant::{TensorType, WeightType, grids};

/// Grids of eight codes of two bits as a kernel looks them up: the first four in the low halves of the bytes, the others in
/// the high ones.
const fn by_nibbles<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N * 8 {
        let code = (grid[i / 8] >> (2 * (i % 8)) & 3) as u32;
        table[i / 8] |= code << (8 * (i % 4) + 4 * (i % 8 / 4));
        i += 1;
    }
    table
}

/// Grids of four codes of four bits, a byte each.
const fn by_bytes<const N: usize>(grid: &[u16; N]) -> [u32; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N * 4 {
        table[i / 4] |= ((grid[i / 4] >> (4 * (i % 4)) & 15) as u32) << (8 * (i % 4));
        i += 1;
    }
    table
}

/// The halves of grids of eight codes of two bits, or of four codes of four bits, as tables of bytes.
const fn half_entries<const N: usize>(grid: &[u16; N], half: usize) -> [u8; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N {
        table[i] = grid[i].to_le_bytes()[half];
        i += 1;
    }
    table
}

/// A grid as the kernels look it up: by lanes, or the lower and the upper half of an entry by bytes.
struct Lookup<const N: usize> {
    lanes: [u32; N],
    halves: [[u8; N]; 2],
}

const fn of_eight<const N: usize>(grid: &[u16; N]) -> Lookup<N> {
    Lookup { lanes: by_nibbles(grid), halves: [half_entries(grid, 0), half_entries(grid, 1)] }
}

const fn of_four<const N: usize>(grid: &[u16; N]) -> Lookup<N> {
    Lookup { lanes: by_bytes(grid), halves: [half_entries(grid, 0), half_entries(grid, 1)] }
}

static IQ1: [u32; 2048] = by_nibbles(&grids::IQ1);
static IQ2_XXS: Lookup<256> = of_eight(&grids::IQ2_XXS);
static IQ2_XS: Lookup<512> = of_eight(&grids::IQ2_XS);
static IQ2_S: Lookup<1024> = of_eight(&grids::IQ2_S);
static IQ3_XXS: Lookup<256> = of_four(&grids::IQ3_XXS);
static IQ3_S: Lookup<512> = of_four(&grids::IQ3_S);

/// Levels of IQ2 and their negatives, by code and then sign.
const IQ2_LEVELS: [i8; 16] = [8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const IQ3_XXS_LEVELS: [i8; 16] = [4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62];
const IQ3_S_LEVELS: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];
/// Eight times -1, 0, 1, and one more, or one less where the shift is down.
const IQ1_LEVELS: [i8; 16] = [-7, 1, 9, 0, -9, -1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The eighth signs worked out, and the four bits that lay in their places: see [`crate::quant`]'s codebook types.
#[inline(always)]
fn eighths<S: Simd>(s: S, signs: S::I) -> (S::I, S::I) {
    let places = 0xaa00_0000_u32.cast_signed();
    let sevens = s.and(signs, s.splat_i(!places));
    let mut t = s.xor(sevens, s.shl::<16>(sevens));
    t = s.xor(t, s.shl::<8>(t));
    t = s.xor(t, s.shl::<1>(t));
    let x = field(s, signs, 25, 0x55);
    let x = s.and(s.or(x, s.shr::<1>(x)), s.splat_i(0x33));
    let others = s.and(s.or(x, s.shr::<2>(x)), s.splat_i(0x0f));
    (s.or(sevens, s.and(t, s.splat_i(places))), others)
}

/// 32 columns of IQ1 or IQ2: entry `indices[k]` of the grid for eight of them, `signs` on top of the codes.
#[inline(always)]
fn eights<S: Simd, F: UnpackedFormat, const N: usize>(
    s: S,
    (grid, levels): (&[u32; N], [i8; 16]),
    indices: [S::I; 4],
    signs: [S::I; 8],
) -> [S::I; 8] {
    let mut out = signs;
    for k in 0..4 {
        let entry = s.gather(grid, indices[k]);
        out[2 * k] = values::<S, F>(s, levels, s.or(bits(s, entry, 0, 3), signs[2 * k]));
        out[2 * k + 1] = values::<S, F>(s, levels, s.or(bits(s, entry, 4, 3), signs[2 * k + 1]));
    }
    out
}

/// Where in a lane the bits above the eight of four indices lie: from `shift` and then every `step` on, `count` each.
type Upper = (usize, usize, usize);

/// What [`ByteTables::look_up_bytes`] needs of them.
const fn tests((shift, step, count): Upper) -> [u32; 2] {
    let (mut tests, mut k) = ([0; 2], 0);
    while k < 4 * count {
        tests[k % count] |= 1u32 << (8 * (k / count) + shift + step * (k / count) + k % count);
        k += 1;
    }
    tests
}

/// 32 columns of IQ2: eight for each of the indices in `low` and `upper`.
#[inline(always)]
fn iq2<S: Simd, F: UnpackedFormat, const N: usize>(
    s: S,
    grid: &Lookup<N>,
    (low, upper, at): (S::I, S::I, Upper),
    signs: S::I,
) -> [S::I; 8] {
    let Some(t) = s.byte_tables() else {
        let indices = longer(s, low, upper, (at.0, at.1), (1 << at.2) - 1);
        return eights::<S, F, N>(s, (&grid.lanes, IQ2_LEVELS), indices, planes(s, signs, 2));
    };
    let (upper, tests) = (t.four_times(upper), tests(at));
    let first = t.look_up_bytes(&grid.halves[0], low, upper, tests);
    let second = t.look_up_bytes(&grid.halves[1], low, upper, tests);
    let mut out = [low; 8];
    for k in 0..4 {
        for (half, codes) in [first, second].into_iter().enumerate() {
            let codes = t.windows(codes, codes, 8 * k, [0, 2, 4, 6]);
            out[2 * k + half] = t.levels([8, 25, 43, 0, 8, 25, 43, 0], codes, signs, 2 * k + half);
        }
    }
    out
}

/// 32 columns of IQ3: four for each of the indices in two lanes and `upper`.
#[inline(always)]
fn iq3<S: Simd, F: UnpackedFormat, const N: usize>(
    s: S,
    (grid, levels): (&Lookup<N>, [i8; 16]),
    (low, upper, count): ([S::I; 2], S::I, usize),
    signs: S::I,
) -> [S::I; 8] {
    let mut out = [signs; 8];
    for word in 0..2 {
        let at = (4 * word, 1, count);
        if let Some(t) = s.byte_tables() {
            let (upper, tests) = (t.four_times(upper), tests(at));
            let first = t.look_up_bytes(&grid.halves[0], low[word], upper, tests);
            let second = t.look_up_bytes(&grid.halves[1], low[word], upper, tests);
            let mut table = [0; 8];
            for (to, from) in table.iter_mut().zip(levels) {
                *to = from.cast_unsigned();
            }
            for k in 0..4 {
                let codes = t.windows(first, second, 8 * k, [0, 4, 0, 4]);
                out[4 * word + k] = t.levels(table, codes, signs, 4 * word + k);
            }
        } else {
            let (indices, signs) = (longer(s, low[word], upper, (at.0, at.1), (1 << count) - 1), planes(s, signs, 3));
            for k in 0..4 {
                out[4 * word + k] =
                    values::<S, F>(s, levels, s.or(s.gather(&grid.lanes, indices[k]), signs[4 * word + k]));
            }
        }
    }
    out
}

/// The eight planes of a unit, as bit `to` of every byte.
#[inline(always)]
fn planes<S: Simd>(s: S, unit: S::I, to: usize) -> [S::I; 8] {
    let mut out = [unit; 8];
    for (u, out) in out.iter_mut().enumerate() {
        *out = plane(s, unit, u, to);
    }
    out
}

/// The bytes of every lane.
#[inline(always)]
fn four_bytes<S: Simd>(s: S, unit: S::I) -> [S::I; 4] {
    [byte(s, unit, 0), byte(s, unit, 1), byte(s, unit, 2), s.shr::<24>(unit)]
}

/// Indices of four low bytes and the bits above them: those of `upper` that `mask` leaves, from `shift` and then every
/// `step` on.
#[inline(always)]
fn longer<S: Simd>(s: S, low: S::I, upper: S::I, (shift, step): (usize, usize), mask: i32) -> [S::I; 4] {
    let mut out = four_bytes(s, low);
    for (k, out) in out.iter_mut().enumerate() {
        *out = s.or(*out, s.shl::<8>(field(s, upper, shift + step * k, mask)));
    }
    out
}

/// `d * (k + 1/2) * factor`.
#[inline(always)]
fn and_a_half<S: Simd>(s: S, d: S::F, k: S::I, factor: f32) -> S::F {
    s.mul(s.mul(d, s.add(s.to_f(k), s.splat(0.5))), s.splat(factor))
}

/// The four-bit scale of group `sub` of 16, of the units 0 and 1.
#[inline(always)]
fn scale16<S: Simd>(s: S, body: &[u8], sub: usize, half: usize) -> S::I {
    field(s, word(s, body, sub / 4 % 2, half), 8 * (sub % 4) + 4 * (sub / 8), 15)
}

/// `2 k + 1`.
#[inline(always)]
fn odd<S: Simd>(s: S, k: S::I) -> S::I {
    s.or(s.shl::<1>(k), s.splat_i(1))
}

/// Of IQ2: `d * (k + 1/2) / 4` is an eighth of `d` times an odd number; both products are exact.
#[inline(always)]
fn iq2_d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
    s.mul(f16s(s, tail, 0, half), s.splat(0.125))
}

#[inline(always)]
fn iq2_factors16<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
    [odd(s, scale16(s, body, 2 * g, half)), odd(s, scale16(s, body, 2 * g + 1, half))]
}

format!(/** IQ2_XXS. */ Iq2Xxs, IQ2_XXS, {
    const QUANT_ABS_MAX: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, (signs, _)) = (word(s, body, 2 * g, half), eighths(s, word(s, body, 2 * g + 1, half)));
        iq2::<S, Self, _>(s, &IQ2_XXS, (low, low, (0, 0, 0)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        [odd(s, eighths(s, word(s, body, 2 * g + 1, half)).1); 2]
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ2_XS. */ Iq2Xs, IQ2_XS, {
    const QUANT_ABS_MAX: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, (signs, ninths)) = (word(s, body, 2 + 2 * g, half), eighths(s, word(s, body, 3 + 2 * g, half)));
        iq2::<S, Self, _>(s, &IQ2_XS, (low, ninths, (0, 1, 1)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        iq2_factors16(s, body, g, half)
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ2_S. */ Iq2S, IQ2_S, {
    const QUANT_ABS_MAX: u8 = 43;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, signs) = (word(s, body, 4 + 2 * g, half), word(s, body, 5 + 2 * g, half));
        let upper = s.shr_by(word(s, body, 2 + g / 4, half), 8 * (g % 4) as u32);
        iq2::<S, Self, _>(s, &IQ2_S, (low, upper, (0, 2, 2)), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        iq2_factors16(s, body, g, half)
    }
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        iq2_d(s, tail, half)
    }
});

format!(/** IQ3_XXS. */ Iq3Xxs, IQ3_XXS, {
    const QUANT_ABS_MAX: u8 = 62;
    const INT_SCALES: bool = true;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (signs, _) = eighths(s, word(s, body, 3 * g + 2, half));
        let (first, second) = (word(s, body, 3 * g, half), word(s, body, 3 * g + 1, half));
        iq3::<S, Self, _>(s, (&IQ3_XXS, IQ3_XXS_LEVELS), ([first, second], signs, 0), signs)
    }
    #[inline(always)]
    fn factors<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 2] {
        [odd(s, eighths(s, word(s, body, 3 * g + 2, half)).1); 2]
    }
    /// Of `d * (k + 1/2) / 2`.
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        s.mul(f16s(s, tail, 0, half), s.splat(0.25))
    }
});

format!(/** IQ3_S. */ Iq3S, IQ3_S, {
    const QUANT_ABS_MAX: u8 = 15;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (first, second) = (word(s, body, 3 + 3 * g, half), word(s, body, 4 + 3 * g, half));
        let (signs, ninths) = (word(s, body, 5 + 3 * g, half), word(s, body, 1 + g / 4, half));
        let ninths = s.shr_by(ninths, 8 * (g % 4) as u32);
        iq3::<S, Self, _>(s, (&IQ3_S, IQ3_S_LEVELS), ([first, second], ninths, 1), signs)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let scale = field(s, word(s, body, 0, half), 8 * (g % 4) + 4 * (g / 4), 15);
        [and_a_half(s, f16s(s, tail, 0, half), scale, 2.0); 2]
    }
});

/// Whether the lowest bit of a lane is set, as bit 2 of each of its bytes.
#[inline(always)]
fn down<S: Simd>(s: S, bit: S::I) -> S::I {
    s.and(s.sub_i(s.splat_i(0), s.and(bit, s.splat_i(1))), every(s, 4))
}

format!(/** IQ1_S. */ Iq1S, IQ1_S, {
    const QUANT_ABS_MAX: u8 = 9;
    const GRID: bool = true;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, more) = (word(s, body, g, half), s.shr_by(word(s, body, 8 + g / 2, half), 16 * (g % 2) as u32));
        let down = down(s, s.shr::<15>(more));
        eights::<S, Self, _>(s, (&IQ1, IQ1_LEVELS), longer(s, low, more, (0, 3), 7), [down; 8])
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let scale = field(s, word(s, body, 8 + g / 2, half), 16 * (g % 2) + 12, 7);
        [and_a_half(s, f16s(s, tail, 0, half), scale, 0.25); 2]
    }
});

format!(/** IQ1_M. */ Iq1M, IQ1_M, {
    const QUANT_ABS_MAX: u8 = 9;
    const GRID: bool = true;
    const GROUP: usize = 16;
    #[inline(always)]
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8] {
        let (low, more) = (word(s, body, 1 + g, half), s.shr_by(word(s, body, 9 + g / 2, half), 16 * (g % 2) as u32));
        let mut downs = [more; 8];
        for (u, out) in downs.iter_mut().enumerate() {
            *out = down(s, s.shr_by(more, 4 * (u / 2) as u32 + 3));
        }
        eights::<S, Self, _>(s, (&IQ1, IQ1_LEVELS), longer(s, low, more, (0, 4), 7), downs)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let (d, h) = (f16s(s, tail, 0, half), s.load_u16(&tail[32 + half * S::LANES * 2..]));
        let (tops, low) = (s.or(h, s.shl::<12>(h)), word(s, body, 0, half));
        // Group `4 i + j` of 16 columns has its low bits at `8 j + 2 i`, its top one at `8 j + i`.
        let (i, j) = (g / 2, 2 * (g % 2));
        let (low, tops) = (s.shr_by(low, (8 * j + 2 * i) as u32), s.shr_by(tops, (8 * j + i) as u32));
        let first = s.or(field(s, low, 0, 3), s.shl::<2>(field(s, tops, 0, 1)));
        let second = s.or(field(s, low, 8, 3), s.shl::<2>(field(s, tops, 8, 1)));
        [and_a_half(s, d, first, 0.25), and_a_half(s, d, second, 0.25)]
    }
});
