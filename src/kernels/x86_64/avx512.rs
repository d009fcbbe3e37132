//! 512-bit vectors with VNNI: `vpdpbusd` multiplies unsigned weights by signed activations, four to a lane.

use std::arch::x86_64::*;

use super::{ops, source, target};
use crate::kernels::simd::Simd;

/// Proof that the CPU has the tier's features.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has every feature of the tier's list.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Avx512(())
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const BIAS: i32 = 128;
    type F = __m512;
    type I = __m512i;

    ops! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        fn sum(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
        fn largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
        fn splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn sum_i(a: __m512i) -> i32 = _mm512_reduce_add_epi32(a);
        fn to_f(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn to_i(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        fn as_f(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        fn bias(a: __m512i) -> __m512i = _mm512_xor_si512(a, _mm512_set1_epi32(0x8080_8080_u32.cast_signed()));
        fn dot(acc: __m512i, weights: __m512i, acts: __m512i) -> __m512i = _mm512_dpbusd_epi32(acc, weights, acts);
        fn dot_wide(acc: __m512i, weights: __m512i, acts: __m512i) -> __m512i = _mm512_dpbusd_epi32(acc, weights, acts);
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
    fn load_u8(self, x: &[u8]) -> __m512i {
        let p = source::<_, 16>(x);
        // SAFETY: the tier is proven by `self`, the 16 bytes behind the pointer were checked, and the access is unaligned.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
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
    fn load_bf16_pairs(self, x: &[u8]) -> (Self::F, Self::F) {
        let words = self.load_bytes(x);
        let upper = self.and(words, self.splat_i(0xffff_0000_u32.cast_signed()));
        (self.as_f(self.shl::<16>(words)), self.as_f(upper))
    }
}
