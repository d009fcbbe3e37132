//! 256-bit vectors with FMA and F16C: int8 products through `vpmaddubsw`, or `vpdpbusd` where AVX-VNNI is present.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{ops, shuffle_lanes, source, target};
use crate::kernels::simd::{Dot, NoByteTables, Simd};

/// Proof that the CPU has the tier's features, `avxvnni` among them if `VNNI`.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The CPU has every feature of the tier's list.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Avx2(())
    }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const REGISTERS: usize = 16;
    const LANES: usize = 8;
    const DOT: Dot = if VNNI { Dot::UnsignedSigned } else { Dot::PairsI16 };
    type F = __m256;
    type I = __m256i;
    type Tables = NoByteTables<__m256i>;

    ops! {
        fn splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        fn add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fn abs(a: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        fn sqrt(a: __m256) -> __m256 = _mm256_sqrt_ps(a);
        fn max_i(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epi32(a, b);
        fn splat_i(x: i32) -> __m256i = _mm256_set1_epi32(x);
        fn splat_pair(x: i64) -> __m256i = _mm256_set1_epi64x(x);
        fn zip(a: __m256i, b: __m256i) -> [__m256i; 2] = [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
        fn and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        fn or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
        fn add_i(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        fn sub_i(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        fn add_16(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
        fn mul_low_u16(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi16(a, b);
        fn mul_high_u16(a: __m256i, b: __m256i) -> __m256i = _mm256_mulhi_epu16(a, b);
        fn abs_i8(a: __m256i) -> __m256i = _mm256_abs_epi8(a);
        fn to_f(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        fn to_i(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
        fn xor(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
        fn as_i(a: __m256) -> __m256i = _mm256_castps_si256(a);
        fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fnmadd_ps(a, b, c);
        fn as_f(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
        fn any_above(a: __m256, b: __m256) -> bool = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0;
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N.cast_signed())) }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N.cast_signed())) }
    }
    #[inline(always)]
    fn shr_by(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    fn shl_by(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    fn look_up(self, table: [u8; 16], indices: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; the load is unaligned and of the array's 16 bytes.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }
    #[inline(always)]
    fn gather<const N: usize>(self, table: &[u32; N], indices: __m256i) -> __m256i {
        const { assert!(N.is_power_of_two() && N <= 1 << 16) };
        let inside = self.and(indices, self.splat_i((N as u32 - 1).cast_signed()));
        // SAFETY: the tier is proven by `self`; masked indices lie inside the table.
        unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), inside) }
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8]) -> __m256i {
        let p = source::<_, 16>(x);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let p = source::<_, 32>(x);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    fn store(self, x: __m256, out: &mut [f32]) {
        let p = target::<_, 32>(out);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m256 {
        let p = source::<_, 16>(x);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn splat_f16(self, x: &[u8]) -> __m256 {
        let bits = i16::from_le_bytes([x[0], x[1]]);
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(bits)) }
    }
    #[inline(always)]
    fn store_f16(self, x: __m256, out: &mut [u8]) {
        let p = target::<_, 16>(out);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m256i {
        let p = source::<_, 32>(x);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, x: __m256i, out: &mut [u8]) {
        let p = target::<_, 32>(out);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }
    #[inline(always)]
    fn words_of_rows(self, x: &[u8], stride: usize) -> [__m256i; 4] {
        assert!(stride <= x.len() / 7 && 7 * stride + 16 <= x.len());
        let p = x.as_ptr();
        // SAFETY: all 8 rows of 16 bytes lie inside of `x`, by the assertion.
        let [a, b, c, d] = unsafe {
            let (a, b) = (self.two_rows(p, stride), self.two_rows(p.add(stride), stride));
            [a, b, self.two_rows(p.add(2 * stride), stride), self.two_rows(p.add(3 * stride), stride)]
        };
        let ([ab, ab_upper], [cd, cd_upper]) = (self.zip(a, b), self.zip(c, d));
        // SAFETY: the tier is proven by `self`; register values only.
        let lower = unsafe { [_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)] };
        // SAFETY: as above.
        let upper = unsafe { [_mm256_unpacklo_epi64(ab_upper, cd_upper), _mm256_unpackhi_epi64(ab_upper, cd_upper)] };
        [lower[0], lower[1], upper[0], upper[1]]
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m256i {
        let p = source::<_, 8>(x);
        // SAFETY: the tier is proven by `self`, the 8 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    fn store_i8(self, x: __m256i, out: &mut [u8]) {
        let mut lanes = [0u8; 32];
        self.store_bytes(x, &mut lanes);
        for (out, lane) in out[..8].iter_mut().zip(lanes.chunks_exact(4)) {
            *out = lane[0];
        }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        let mut lanes = [0f32; 8];
        self.store(a, &mut lanes);
        let halves: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
        (halves[0] + halves[2]) + (halves[1] + halves[3])
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        let mut lanes = [0f32; 8];
        self.store(a, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn sum_i(self, a: __m256i) -> i32 {
        let mut lanes = [0u8; 32];
        self.store_bytes(a, &mut lanes);
        crate::bytes::cast_array(lanes).into_iter().fold(0, |sum: i32, x: i32| sum.wrapping_add(x))
    }
    #[inline(always)]
    fn largest_i(self, a: __m256i) -> i32 {
        let mut lanes = [0u8; 32];
        self.store_bytes(a, &mut lanes);
        crate::bytes::cast_array(lanes).into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn store_u16(self, x: __m256i, out: &mut [u8]) {
        let p = target::<_, 16>(out);
        let lower = self.and(x, self.splat_i(0xffff));
        // Packing keeps to the two parts of 128 bits, of which the first halves count.
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe {
            let packed = _mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(lower, lower));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    fn dot(self, sum: __m256i, weights: __m256i, acts: __m256i) -> __m256i {
        if VNNI {
            // SAFETY: the tier with AVX-VNNI is proven by `self`; register values only.
            return unsafe { _mm256_dpbusd_avx_epi32(sum, weights, acts) };
        }
        // SAFETY: the tier is proven by `self`; register values only. Two products stay below 2 * 127 * 127.
        unsafe { pinned(_mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, acts))) }
    }
    #[inline(always)]
    fn dot_wide(self, sum: __m256i, weights: __m256i, acts: __m256i) -> __m256i {
        if VNNI {
            return self.dot(sum, weights, acts);
        }
        // |w| * (a with the sign of w): |w| <= 128 and |a| <= 127 keep the 16-bit sums at or below 32512.
        // SAFETY: the tier is proven by `self`; register values only.
        let (magnitude, signed) = unsafe { (_mm256_abs_epi8(weights), _mm256_sign_epi8(acts, weights)) };
        // SAFETY: as above.
        self.add_lanes(sum, unsafe { _mm256_maddubs_epi16(magnitude, signed) })
    }
    #[inline(always)]
    fn add_lanes(self, total: __m256i, sum: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { pinned(self.add_i(total, self.dot_lanes(sum))) }
    }
    #[inline(always)]
    fn dot_lanes(self, sum: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        if VNNI { sum } else { unsafe { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) } }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        match VNNI {
            // SAFETY: the tier with AVX-VNNI is proven by `self`; register values only.
            true => unsafe { _mm256_dpwssds_avx_epi32(sum, a, b) },
            // SAFETY: the tier is proven by `self`; register values only.
            false => unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) },
        }
    }
    #[inline(always)]
    fn add_scaled(self, total: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { pinned(self.dot_pairs(total, a, b)) }
    }
    #[inline(always)]
    fn alternate<const PER_GROUP: usize>(self, x: [Self::I; 2]) -> [Self::I; 2] {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe {
            let order = match PER_GROUP {
                8 => {
                    let [low, high] = self.zip(x[0], x[1]);
                    return [_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)];
                }
                4 => _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
                2 => _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7),
                _ => unreachable!("groups of 8, 4 or 2"),
            };
            [_mm256_permutevar8x32_epi32(x[0], order), _mm256_permutevar8x32_epi32(x[1], order)]
        }
    }
    #[inline(always)]
    fn zipped_pairs(self, sums: [__m256i; 2]) -> __m256i {
        match VNNI {
            // SAFETY: the tier is proven by `self`; register values only.
            true => unsafe { _mm256_packs_epi32(sums[0], sums[1]) },
            // The halves may have wrapped around; their sum then comes back.
            // SAFETY: as above.
            false => unsafe { _mm256_hadd_epi16(sums[0], sums[1]) },
        }
    }
    #[inline(always)]
    fn scales_u8(self, a: Self::I) -> [Self::I; 4] {
        [self.byte_u8(a, 0), self.byte_u8(a, 1), self.byte_u8(a, 2), self.byte_u8(a, 3)]
    }
    #[inline(always)]
    fn scales_i8(self, a: Self::I) -> [Self::I; 4] {
        [self.byte_i8(a, 0), self.byte_i8(a, 1), self.byte_i8(a, 2), self.byte_i8(a, 3)]
    }
    #[inline(always)]
    fn prefetch<const NEAR: bool>(self, address: *const u8) {
        match NEAR {
            // SAFETY: the tier is proven by `self`; a prefetch reads nothing and faults on nothing.
            true => unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) },
            // SAFETY: as above.
            false => unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) },
        }
    }
    #[inline(always)]
    fn pack_i8(self, x: [__m256i; 4]) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only. Packing keeps to the two parts of 128 bits, each of
        // which then holds four lanes of each vector.
        unsafe {
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
            _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        }
    }
    #[inline(always)]
    fn add_pairs(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b)) }
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u8]) -> (Self::F, Self::F) {
        let words = self.load_bytes(x);
        let upper = self.and(words, self.splat_i(0xffff_0000_u32.cast_signed()));
        (self.as_f(self.shl::<16>(words)), self.as_f(upper))
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    /// Sixteen bytes each of row 0 and 4, `stride` bytes apart.
    ///
    /// # Safety
    /// The rows' bytes are readable.
    #[inline(always)]
    unsafe fn two_rows(self, p: *const u8, stride: usize) -> __m256i {
        // SAFETY: the tier is proven by `self`; the loads are unaligned and of bytes that the caller vouches for.
        unsafe { _mm256_loadu2_m128i(p.add(4 * stride).cast(), p.cast()) }
    }

    #[inline(always)]
    fn byte_shuffle(self, a: __m256i, lanes: [i32; 4]) -> __m256i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe {
            _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_set_epi32(lanes[3], lanes[2], lanes[1], lanes[0])))
        }
    }

    /// Byte `j` of each lane to its lowest byte, and without VNNI to the third as well: a factor for each i16.
    #[inline(always)]
    fn byte_u8(self, a: __m256i, j: u32) -> __m256i {
        let zeros = if VNNI { 0x8080_8000 } else { 0x8000_8000 };
        self.byte_shuffle(a, shuffle_lanes(j, zeros, 0, !VNNI))
    }

    /// Byte `j` to the upper byte of each half that counts, then down with its sign.
    #[inline(always)]
    fn byte_i8(self, a: __m256i, j: u32) -> __m256i {
        let zeros = if VNNI { 0x8080_0080 } else { 0x0080_0080 };
        let upper = self.byte_shuffle(a, shuffle_lanes(j, zeros, 8, !VNNI));
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm256_srai_epi16::<8>(upper) }
    }
}

/// The same, in a register, and in the order of the calls: left alone, the compiler adds up in another one, with more sums and
/// more factors under way than there are registers.
#[inline]
#[target_feature(enable = "avx2")]
fn pinned(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}
