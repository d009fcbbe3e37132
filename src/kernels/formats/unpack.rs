//! What types that are unpacked have in common: signed bytes, scales, minima.
//!
//! Functions that are always inlined and arrays, not closures: see [`crate::kernels::matmul`].

use crate::kernels::simd::{Dot, Simd};
use crate::quant::{SUPER, UNIT, WeightType};

/// A weight type as groups of signed bytes with a float scale, 32 columns at a time.
pub trait UnpackedFormat {
    /// The weight type.
    const TYPE: WeightType;
    /// Columns of a panel block.
    const COLS: usize = Self::TYPE.block_len();
    /// Bytes of a block's body.
    const BODY: usize = Self::TYPE.panel_parts().0;
    /// Bytes of a block's tail.
    const TAIL: usize = Self::TYPE.panel_parts().1;
    /// Columns under one scale: 16 or 32.
    const GROUP: usize = 32;
    /// Every value of a group has something added to it.
    const MINS: bool = false;
    /// The quant that stands for 0, a power of two up to 64, or 0; 128 for [`values`].
    const ZERO_POINT: u8 = 128;
    /// The largest magnitude of what quants stand for.
    const QUANT_ABS_MAX: u8;

    /// The quants of the columns `32 g ..` of a block, [`UnpackedFormat::ZERO_POINT`] more than what they stand for; [`values`],
    /// [`offset`] more.
    fn quants<S: Simd>(s: S, body: &[u8], g: usize, half: usize) -> [S::I; 8];
    /// Quants are looked up in a grid. Where that means gathers, which take most of the time, nothing is gained by multiplying
    /// them as they come.
    const GRID: bool = false;
    /// The block has one float scale, which [`UnpackedFormat::factors`] are multiplied with.
    const INT_SCALES: bool = false;
    /// So it has, and the products of a group's quants and activations add up to no more than fits i16.
    const INT_SUMS: bool = Self::INT_SCALES && Self::GROUP * Self::QUANT_ABS_MAX as usize * 127 <= i16::MAX as usize;
    /// The scales of these columns: one, or two of 16.
    #[inline(always)]
    fn scales<S: Simd>(s: S, (body, tail): (&[u8], &[u8]), g: usize, half: usize) -> [S::F; 2] {
        let d = Self::d(s, tail, half);
        let factors = Self::factors(s, body, g, half);
        match Self::INT_SCALES {
            false => [d; 2],
            true => [s.mul(d, s.to_f(factors[0])), s.mul(d, s.to_f(factors[1]))],
        }
    }
    /// The integer scales of these columns.
    #[inline(always)]
    fn factors<S: Simd>(s: S, _body: &[u8], _g: usize, _half: usize) -> [S::I; 2] {
        [s.splat_i(1); 2]
    }
    /// The block's float scale.
    #[inline(always)]
    fn d<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, tail, 0, half)
    }
    /// The f32 bits of what is added to the values of these columns; in blocks of 256 two i16, for 16 columns each, to be
    /// multiplied by [`UnpackedFormat::dmin`] and taken off.
    #[inline(always)]
    fn mins<S: Simd>(s: S, (_body, tail): (&[u8], &[u8]), _g: usize, half: usize) -> S::I {
        s.as_i(f16s(s, tail, 1, half))
    }
    /// The factor of a block's minima.
    #[inline(always)]
    fn dmin<S: Simd>(s: S, tail: &[u8], half: usize) -> S::F {
        f16s(s, tail, 1, half)
    }
}

/// The vector of a unit.
#[inline(always)]
pub(super) fn word<S: Simd>(s: S, body: &[u8], unit: usize, half: usize) -> S::I {
    s.load_bytes(&body[unit * UNIT + half * S::LANES * 4..])
}

/// Field `i` of a tail of f16.
#[inline(always)]
pub(super) fn f16s<S: Simd>(s: S, tail: &[u8], i: usize, half: usize) -> S::F {
    s.load_f16(&tail[32 * i + half * S::LANES * 2..])
}

#[inline(always)]
pub(super) fn every<S: Simd>(s: S, byte: u8) -> S::I {
    s.splat_i(i32::from_ne_bytes([byte; 4]))
}

/// Bits `shift ..` of every byte.
#[inline(always)]
pub(super) fn bits<S: Simd>(s: S, a: S::I, shift: usize, mask: u8) -> S::I {
    s.and(s.shr_by(a, shift as u32), every(s, mask))
}

/// Byte `i` of every lane.
#[inline(always)]
pub(super) fn byte<S: Simd>(s: S, a: S::I, i: usize) -> S::I {
    s.and(s.shr_by(a, 8 * i as u32), s.splat_i(0xff))
}

/// Bits `shift ..` of every lane.
#[inline(always)]
pub(super) fn field<S: Simd>(s: S, a: S::I, shift: usize, mask: i32) -> S::I {
    s.and(s.shr_by(a, shift as u32), s.splat_i(mask))
}

/// Bit `plane` of every byte, as bit `to`.
#[inline(always)]
pub(super) fn plane<S: Simd>(s: S, planes: S::I, plane: usize, to: usize) -> S::I {
    let moved = if plane < to { s.shl_by(planes, (to - plane) as u32) } else { s.shr_by(planes, (plane - to) as u32) };
    s.and(moved, every(s, 1 << to))
}

/// The same where the plane is not known when this is compiled.
#[inline(always)]
pub(super) fn any_plane<S: Simd>(s: S, planes: S::I, plane: usize, to: usize) -> S::I {
    s.and(s.rotate_right(planes, (plane as u32).wrapping_sub(to as u32) % 32), every(s, 1 << to))
}

/// What quants in a tile are more than what they stand for. Where products add up in i16, as little as
/// [`crate::kernels::activations`] has starting values for, so that their sums fit; bytes of eight bits are signed then.
pub const fn offset<S: Simd, F: UnpackedFormat>() -> u8 {
    match F::QUANT_ABS_MAX {
        _ if S::DOT.is_unsigned() => 128,
        _ if S::DOT.is_in_lanes() => 0,
        _ if F::ZERO_POINT == 0 => 0,
        ..=16 if F::COLS < SUPER => 16,
        ..=32 if F::COLS == SUPER => 32,
        ..=64 if F::COLS == SUPER => 64,
        _ => 0,
    }
}

/// A table's values by their indices, [`offset`] more.
#[inline(always)]
pub(super) fn values<S: Simd, F: UnpackedFormat>(s: S, table: [i8; 16], indices: S::I) -> S::I {
    s.look_up(table.map(|value| value.cast_unsigned().wrapping_add(offset::<S, F>())), indices)
}

/// Quants, [`offset`] more than what they stand for.
#[inline(always)]
pub fn in_tile<S: Simd, F: UnpackedFormat>(s: S, quants: S::I) -> S::I {
    if S::DOT == Dot::SignedSigned && F::ZERO_POINT > 0 && F::ZERO_POINT < 128 {
        // No byte carries into the next: 128 more than what they stand for, and as many less.
        return s.xor(s.add_i(quants, every(s, 128 - F::ZERO_POINT)), every(s, 128));
    }
    match offset::<S, F>().wrapping_sub(F::ZERO_POINT) {
        more if F::ZERO_POINT < 128 && more > 0 => s.add_i(quants, every(s, more)),
        _ => quants,
    }
}

/// `values` of eight vectors.
#[inline(always)]
pub(super) fn all_values<S: Simd, F: UnpackedFormat>(s: S, table: [i8; 16], indices: [S::I; 8]) -> [S::I; 8] {
    let mut out = indices;
    for out in &mut out {
        *out = values::<S, F>(s, table, *out);
    }
    out
}

/// Nibbles of 32 columns in four units from `first` on: columns 0..16 low, 16..32 high.
#[inline(always)]
pub(super) fn nibbles32<S: Simd>(s: S, body: &[u8], first: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for u in 0..4 {
        let both = word(s, body, first + u, half);
        out[u] = bits(s, both, 0, 15);
        out[4 + u] = bits(s, both, 4, 15);
    }
    out
}

/// Nibbles of group `g` of 32 columns: two groups share the eight units from `first + 8 (g / 2)` on.
#[inline(always)]
pub(super) fn nibbles64<S: Simd>(s: S, body: &[u8], first: usize, g: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for (l, out) in out.iter_mut().enumerate() {
        *out = bits(s, word(s, body, first + 8 * (g / 2) + l, half), 4 * (g % 2), 15);
    }
    out
}

/// Bit pairs of group `g`: four groups share the eight units from `first + 8 (g / 4)` on.
#[inline(always)]
pub(super) fn pairs128<S: Simd>(s: S, body: &[u8], first: usize, g: usize, half: usize) -> [S::I; 8] {
    let mut out = [s.splat_i(0); 8];
    for (l, out) in out.iter_mut().enumerate() {
        *out = bits(s, word(s, body, first + 8 * (g / 4) + l, half), 2 * (g % 4), 3);
    }
    out
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $ty:ident, { $($item:tt)* }) => {
        $(#[$doc])*
        pub struct $name;
        impl UnpackedFormat for $name {
            const TYPE: WeightType = WeightType::of(TensorType::$ty).expect("a weight type");
            $($item)*
        }
    };
}
pub(super) use format;
