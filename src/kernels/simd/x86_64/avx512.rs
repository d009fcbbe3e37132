//! 512-bit vectors with VNNI: `vpdpbusd` multiplies unsigned weights by signed activations, four to a lane.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{ops, shuffle_lanes, source, target};
#[cfg(feature = "bench")]
use crate::kernels::simd::Bf16Dot;
use crate::kernels::simd::{ByteTables, Dot, Simd};

/// Proof that the CPU has the tier's features, `avx512bf16` among them if `BF16`.
#[derive(Clone, Copy)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The CPU has every feature of the tier's list.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Avx512(())
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const REGISTERS: usize = 32;
    const LANES: usize = 16;
    const DOT: Dot = Dot::UnsignedSigned;
    const BYTE_TABLES: bool = BF16;
    type F = __m512;
    type I = __m512i;
    type Tables = Self;

    #[inline(always)]
    fn byte_tables(self) -> Option<Self> {
        BF16.then_some(self)
    }

    ops! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        fn sqrt(a: __m512) -> __m512 = _mm512_sqrt_ps(a);
        fn sum(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
        fn largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
        fn splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn splat_pair(x: i64) -> __m512i = _mm512_set1_epi64(x);
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn add_16(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi16(a, b);
        fn sub_i(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        fn mul_low_u16(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi16(a, b);
        fn mul_high_u16(a: __m512i, b: __m512i) -> __m512i = _mm512_mulhi_epu16(a, b);
        fn abs_i8(a: __m512i) -> __m512i = _mm512_abs_epi8(a);
        fn max_i(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        fn largest_i(a: __m512i) -> i32 = _mm512_reduce_max_epi32(a);
        fn sum_i(a: __m512i) -> i32 = _mm512_reduce_add_epi32(a);
        fn to_f(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn to_i(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        fn as_f(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        fn xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        fn as_i(a: __m512) -> __m512i = _mm512_castps_si512(a);
        fn any_above(a: __m512, b: __m512) -> bool = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0;
        fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fnmadd_ps(a, b, c);
        fn dot(sum: __m512i, weights: __m512i, acts: __m512i) -> __m512i = _mm512_dpbusd_epi32(sum, weights, acts);
        fn dot_wide(sum: __m512i, weights: __m512i, acts: __m512i) -> __m512i = pinned(_mm512_dpbusd_epi32(sum, weights, acts));
        // The saturating form: the compiler takes the other apart into a product and a sum, two instructions for one.
        fn dot_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_dpwssds_epi32(sum, a, b);
        fn zip(a: __m512i, b: __m512i) -> [__m512i; 2] = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
        fn zipped_pairs(sums: [__m512i; 2]) -> __m512i = _mm512_packs_epi32(sums[0], sums[1]);
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shr_by(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    fn shl_by(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    fn rotate_right(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_rorv_epi32(a, _mm512_set1_epi32(bits.cast_signed())) }
    }
    #[inline(always)]
    fn look_up(self, table: [u8; 16], indices: __m512i) -> __m512i {
        // SAFETY: the tier is proven by `self`; the load is unaligned and of the array's 16 bytes.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }
    #[inline(always)]
    fn gather<const N: usize>(self, table: &[u32; N], indices: __m512i) -> __m512i {
        const { assert!(N.is_power_of_two() && N <= 1 << 16) };
        let inside = self.and(indices, self.splat_i((N as u32 - 1).cast_signed()));
        // SAFETY: the tier is proven by `self`; masked indices lie inside the table.
        unsafe { _mm512_i32gather_epi32::<4>(inside, table.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_u16(self, x: &[u8]) -> __m512i {
        let p = source::<_, 32>(x);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let p = source::<_, 64>(x);
        // SAFETY: the tier is proven by `self`, the 64 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32]) {
        let p = target::<_, 64>(out);
        // SAFETY: the tier is proven by `self`, the 64 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m512 {
        let p = source::<_, 32>(x);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn splat_f16(self, x: &[u8]) -> __m512 {
        let bits = i16::from_le_bytes([x[0], x[1]]);
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(bits)) }
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, out: &mut [u8]) {
        let p = target::<_, 32>(out);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m512i {
        let p = source::<_, 64>(x);
        // SAFETY: the tier is proven by `self`, the 64 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, x: __m512i, out: &mut [u8]) {
        let p = target::<_, 64>(out);
        // SAFETY: the tier is proven by `self`, the 64 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    fn words_of_rows(self, x: &[u8], stride: usize) -> [__m512i; 4] {
        assert!(stride <= x.len() / 15 && 15 * stride + 16 <= x.len());
        let p = x.as_ptr();
        // SAFETY: all 16 rows of 16 bytes lie inside of `x`, by the assertion.
        let [a, b, c, d] = unsafe {
            let (a, b) = (self.four_rows(p, stride), self.four_rows(p.add(stride), stride));
            [a, b, self.four_rows(p.add(2 * stride), stride), self.four_rows(p.add(3 * stride), stride)]
        };
        let ([ab, ab_upper], [cd, cd_upper]) = (self.zip(a, b), self.zip(c, d));
        // SAFETY: the tier is proven by `self`; register values only.
        let lower = unsafe { [_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)] };
        // SAFETY: as above.
        let upper = unsafe { [_mm512_unpacklo_epi64(ab_upper, cd_upper), _mm512_unpackhi_epi64(ab_upper, cd_upper)] };
        [lower[0], lower[1], upper[0], upper[1]]
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m512i {
        let p = source::<_, 16>(x);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn store_i8(self, x: __m512i, out: &mut [u8]) {
        let p = target::<_, 16>(out);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    fn pack_i8(self, x: [__m512i; 4]) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only. Packing keeps to the four parts of 128 bits, each of
        // which then holds four lanes of each vector.
        unsafe {
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, bytes)
        }
    }
    #[inline(always)]
    fn add_pairs(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b))
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u8]) -> (Self::F, Self::F) {
        let words = self.load_bytes(x);
        let upper = self.and(words, self.splat_i(0xffff_0000_u32.cast_signed()));
        (self.as_f(self.shl::<16>(words)), self.as_f(upper))
    }
    #[inline(always)]
    fn alternate<const PER_GROUP: usize>(self, x: [Self::I; 2]) -> [Self::I; 2] {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe {
            let order = match PER_GROUP {
                8 => _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15),
                4 => _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
                2 => _mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15),
                _ => unreachable!("groups of 8, 4 or 2"),
            };
            [_mm512_permutexvar_epi32(order, x[0]), _mm512_permutexvar_epi32(order, x[1])]
        }
    }
    #[inline(always)]
    fn store_u16(self, x: __m512i, out: &mut [u8]) {
        let p = target::<_, 32>(out);
        // SAFETY: the tier is proven by `self`, the 32 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(x)) }
    }
    #[inline(always)]
    fn dot_lanes(self, sum: __m512i) -> __m512i {
        sum
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
}

impl<const BF16: bool> Avx512<BF16> {
    /// Sixteen bytes each of row 0, 4, 8 and 12, `stride` bytes apart.
    ///
    /// # Safety
    /// The rows' bytes are readable.
    #[inline(always)]
    unsafe fn four_rows(self, p: *const u8, stride: usize) -> __m512i {
        // SAFETY: the tier is proven by `self`; the loads are unaligned and of bytes that the caller vouches for.
        unsafe {
            let rows = _mm512_castsi128_si512(_mm_loadu_si128(p.cast()));
            let rows = _mm512_mask_broadcast_i32x4(rows, 0x00f0, _mm_loadu_si128(p.add(4 * stride).cast()));
            let rows = _mm512_mask_broadcast_i32x4(rows, 0x0f00, _mm_loadu_si128(p.add(8 * stride).cast()));
            _mm512_mask_broadcast_i32x4(rows, 0xf000, _mm_loadu_si128(p.add(12 * stride).cast()))
        }
    }

    /// Bytes of `a` that have a bit in common with those of `tests` in every lane.
    #[inline(always)]
    fn common(self, a: __m512i, tests: u32) -> __mmask64 {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_test_epi8_mask(a, _mm512_set1_epi32(tests.cast_signed())) }
    }

    #[inline(always)]
    fn byte_shuffle(self, a: __m512i, lanes: [i32; 4]) -> __m512i {
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_shuffle_epi8(a, _mm512_set4_epi32(lanes[3], lanes[2], lanes[1], lanes[0])) }
    }

    /// Byte `j` of each lane to its lowest byte, zeros above.
    #[inline(always)]
    fn byte_u8(self, a: __m512i, j: u32) -> __m512i {
        self.byte_shuffle(a, shuffle_lanes(j, 0x8080_8000, 0, false))
    }

    /// Byte `j` to the upper byte of the low half, then down with its sign.
    #[inline(always)]
    fn byte_i8(self, a: __m512i, j: u32) -> __m512i {
        let upper = self.byte_shuffle(a, shuffle_lanes(j, 0x8080_0080, 8, false));
        // SAFETY: the tier is proven by `self`; register values only.
        unsafe { _mm512_srai_epi16::<8>(upper) }
    }
}

/// Had through [`Simd::byte_tables`] alone, of the tier with VBMI.
impl<const BF16: bool> ByteTables for Avx512<BF16> {
    type I = __m512i;

    #[inline(always)]
    fn look_up_bytes<const N: usize>(self, table: &[u8; N], low: __m512i, upper: __m512i, tests: [u32; 2]) -> __m512i {
        const { assert!(N == 256 || N == 512 || N == 1024) };
        // The tables of 128 bytes that the lower seven bits choose from; each further bit halves their number.
        let mut found = [low; 8];
        for (found, table) in found.iter_mut().zip(table.as_chunks::<128>().0) {
            let (first, second) = (self.load_bytes(&table[..64]), self.load_bytes(&table[64..]));
            // SAFETY: the tier with VBMI is proven by `self`; register values only.
            *found = unsafe { _mm512_permutex2var_epi8(first, low, second) };
        }
        // SAFETY: as above.
        let bits = unsafe { [_mm512_movepi8_mask(low), self.common(upper, tests[0]), self.common(upper, tests[1])] };
        let mut n = N / 128;
        for bit in bits {
            n /= 2;
            for i in 0..n {
                // SAFETY: as above.
                found[i] = unsafe { _mm512_mask_blend_epi8(bit, found[2 * i], found[2 * i + 1]) };
            }
        }
        found[0]
    }
    #[inline(always)]
    fn four_times(self, a: __m512i) -> __m512i {
        self.byte_shuffle(a, [0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c])
    }
    #[inline(always)]
    fn windows(self, a: __m512i, b: __m512i, first: usize, shifts: [u8; 4]) -> __m512i {
        let first = first as u8;
        let [c, d, e, f] = [shifts[0] + first, shifts[1] + first, shifts[2] + first, shifts[3] + first];
        let control = i64::from_le_bytes([c, d, e, f, c + 32, d + 32, e + 32, f + 32]);
        // SAFETY: the tier with VBMI is proven by `self`; register values only.
        unsafe {
            let control = _mm512_set1_epi64(control);
            let windows = _mm512_multishift_epi64_epi8(control, a);
            _mm512_mask_multishift_epi64_epi8(windows, 0xcccc_cccc_cccc_cccc, control, b)
        }
    }
    #[inline(always)]
    fn levels(self, table: [u8; 8], indices: __m512i, planes: __m512i, plane: usize) -> __m512i {
        let table = i64::from_le_bytes(table) | 0x8080_8080_8080_8080_u64.cast_signed();
        // SAFETY: the tier with VBMI is proven by `self`; register values only. 256 less 128 and a level is 128 less that.
        unsafe {
            let levels = _mm512_permutexvar_epi8(indices, _mm512_set1_epi64(table));
            let negative = self.common(planes, 0x0101_0101 << plane);
            _mm512_mask_sub_epi8(levels, negative, _mm512_setzero_si512(), levels)
        }
    }
}

#[cfg(feature = "bench")]
impl Bf16Dot for Avx512<true> {
    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: both types are 512 bits that any pattern is valid for.
        let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(a) };
        // SAFETY: as above.
        let b = unsafe { std::mem::transmute::<__m512i, __m512bh>(b) };
        // SAFETY: the tier with BF16 is proven by `self`; register values only.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }
}

/// The same, in a register, and in the order of the calls: left alone, the compiler begins with more factors of more products
/// than there are registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn pinned(mut sum: __m512i) -> __m512i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}
