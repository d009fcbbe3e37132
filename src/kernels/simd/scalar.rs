//! The scalar tier: 8 lanes as plain arrays, any CPU.

use super::{Dot, NoByteTables, Simd};

/// Needs nothing of the CPU.
#[derive(Clone, Copy)]
pub struct Scalar;

const N: usize = 8;

#[inline(always)]
fn zip<T: Copy, U: Copy, R>(a: [T; N], b: [U; N], f: impl Fn(T, U) -> R) -> [R; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn first<T: Copy>(x: &[T]) -> [T; N] {
    std::array::from_fn(|i| x[..N][i])
}

/// The products of the lower and of the upper 16 bits.
#[inline(always)]
fn half_products(a: i32, b: i32) -> [u32; 2] {
    let (a, b) = (a.cast_unsigned(), b.cast_unsigned());
    [(a & 0xffff) * (b & 0xffff), (a >> 16) * (b >> 16)]
}

impl Simd for Scalar {
    const REGISTERS: usize = 16;
    const LANES: usize = N;
    const FAST: bool = false;
    const DOT: Dot = Dot::SignedSigned;
    type F = [f32; N];
    type I = [i32; N];
    type Tables = NoByteTables<Self::I>;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; N]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn load(self, x: &[f32]) -> Self::F {
        first(x)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn store(self, x: Self::F, out: &mut [f32]) {
        out[..N].copy_from_slice(&x);
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn load_f16(self, x: &[u8]) -> Self::F {
        let x = &x[..2 * N];
        std::array::from_fn(|i| half::f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32_const())
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn splat_f16(self, x: &[u8]) -> Self::F {
        [half::f16::from_le_bytes([x[0], x[1]]).to_f32_const(); N]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn store_f16(self, x: Self::F, out: &mut [u8]) {
        for (out, x) in out[..2 * N].chunks_exact_mut(2).zip(x) {
            out.copy_from_slice(&half::f16::from_f32_const(x).to_le_bytes());
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u8]) -> (Self::F, Self::F) {
        let words = self.load_bytes(x);
        (words.map(|w| f32::from_bits((w as u32) << 16)), words.map(|w| f32::from_bits(w as u32 & 0xffff_0000)))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn sqrt(self, a: Self::F) -> Self::F {
        a.map(f32::sqrt)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn sum(self, a: Self::F) -> f32 {
        a.iter().sum()
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn largest(self, a: Self::F) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn any_above(self, a: Self::F, b: Self::F) -> bool {
        zip(a, b, |a, b| a > b).contains(&true)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; N]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn splat_pair(self, x: i64) -> Self::I {
        std::array::from_fn(|i| (x >> (i % 2 * 32)) as i32)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn load_bytes(self, x: &[u8]) -> Self::I {
        let x = &x[..4 * N];
        std::array::from_fn(|i| i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn store_bytes(self, x: Self::I, out: &mut [u8]) {
        for (out, x) in out[..4 * N].chunks_exact_mut(4).zip(x) {
            out.copy_from_slice(&x.to_le_bytes());
        }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn words_of_rows(self, x: &[u8], stride: usize) -> [Self::I; 4] {
        std::array::from_fn(|word| {
            std::array::from_fn(|row| match x[row * stride + word * 4..] {
                [a, b, c, d, ..] => i32::from_le_bytes([a, b, c, d]),
                _ => panic!("a word of row {row}"),
            })
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn load_i8(self, x: &[u8]) -> Self::I {
        first(x).map(|x| i32::from(x.cast_signed()))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn store_i8(self, x: Self::I, out: &mut [u8]) {
        out[..N].copy_from_slice(&x.map(|x| x as u8));
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn mul_low_u16(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| {
            let [low, high] = half_products(a, b);
            (low & 0xffff | high << 16).cast_signed()
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn mul_high_u16(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| {
            let [low, high] = half_products(a, b);
            (low >> 16 | high & 0xffff_0000).cast_signed()
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn add_pairs(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let from = if i < N / 2 { &a } else { &b };
            from[2 * i % N].wrapping_add(from[2 * i % N + 1])
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn abs_i8(self, a: Self::I) -> Self::I {
        a.map(|a| i32::from_le_bytes(a.to_le_bytes().map(|byte| byte.cast_signed().unsigned_abs())))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn pack_i8(self, x: [Self::I; 4]) -> Self::I {
        std::array::from_fn(|i| {
            let four = &x[4 * i / N][4 * i % N..][..4];
            i32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8])
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn sum_i(self, a: Self::I) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn largest_i(self, a: Self::I) -> i32 {
        a.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| (a.cast_unsigned() >> BITS).cast_signed())
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self, a: Self::I) -> Self::I {
        a.map(|a| a << BITS)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn shr_by(self, a: Self::I, bits: u32) -> Self::I {
        a.map(|a| (a.cast_unsigned() >> bits).cast_signed())
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn shl_by(self, a: Self::I, bits: u32) -> Self::I {
        a.map(|a| a << bits)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn rotate_right(self, a: Self::I, bits: u32) -> Self::I {
        a.map(|a| a.rotate_right(bits))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn look_up(self, table: [u8; 16], indices: Self::I) -> Self::I {
        indices.map(|i| i32::from_le_bytes(i.to_le_bytes().map(|i| table[usize::from(i & 15)])))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn gather<const T: usize>(self, table: &[u32; T], indices: Self::I) -> Self::I {
        const { assert!(T.is_power_of_two()) };
        indices.map(|i| table[i as usize & (T - 1)].cast_signed())
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn load_u16(self, x: &[u8]) -> Self::I {
        let x = &x[..2 * N];
        std::array::from_fn(|i| i32::from(u16::from_le_bytes([x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        a.map(|a| a as f32)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn to_i(self, a: Self::F) -> Self::I {
        // Adding and taking away 1.5 * 2^23 rounds to nearest even for |a| < 2^22, without a libm call.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|a| ((a + MAGIC) - MAGIC) as i32)
    }
    #[inline(always)]
    fn as_f(self, a: Self::I) -> Self::F {
        a.map(|a| f32::from_bits(a as u32))
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn as_i(self, a: Self::F) -> Self::I {
        a.map(|a| a.to_bits().cast_signed())
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn store_u16(self, x: Self::I, out: &mut [u8]) {
        for (out, x) in out[..2 * N].chunks_exact_mut(2).zip(x) {
            out.copy_from_slice(&x.to_le_bytes()[..2]);
        }
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn dot(self, sum: Self::I, weights: Self::I, acts: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let products = weights[i].to_le_bytes().into_iter().zip(acts[i].to_le_bytes());
            sum[i].wrapping_add(products.map(|(w, a)| i32::from(w.cast_signed()) * i32::from(a.cast_signed())).sum())
        })
    }
    #[inline(always)]
    fn dot_wide(self, sum: Self::I, weights: Self::I, acts: Self::I) -> Self::I {
        self.dot(sum, weights, acts)
    }
    #[inline(always)]
    fn dot_lanes(self, sum: Self::I) -> Self::I {
        sum
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn dot_pairs(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let product = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16);
        std::array::from_fn(|i| sum[i].wrapping_add(product(a[i], b[i])).wrapping_add(product(a[i] >> 16, b[i] >> 16)))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn add_16(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a.wrapping_add(b) & 0xffff | (a >> 16).wrapping_add(b >> 16) << 16)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn zip(self, a: Self::I, b: Self::I) -> [Self::I; 2] {
        let lane = |i: usize| if i.is_multiple_of(2) { a[i / 2] } else { b[i / 2] };
        [std::array::from_fn(lane), std::array::from_fn(|i| lane(i + N))]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn alternate<const PER_GROUP: usize>(self, x: [Self::I; 2]) -> [Self::I; 2] {
        let lane = |i: usize| i / (2 * PER_GROUP) * 2 * PER_GROUP + i % 2 * PER_GROUP + i % (2 * PER_GROUP) / 2;
        // Groups of eight lie in two vectors.
        let x = x.as_flattened();
        [std::array::from_fn(|i| x[lane(i)]), std::array::from_fn(|i| x[lane(i + N)])]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn zipped_pairs(self, sums: [Self::I; 2]) -> Self::I {
        let sums = sums.as_flattened();
        std::array::from_fn(|i| sums[2 * i] & 0xffff | sums[2 * i + 1] << 16)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn scales_u8(self, a: Self::I) -> [Self::I; 4] {
        std::array::from_fn(|j| a.map(|a| i32::from(a.to_le_bytes()[j])))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    fn scales_i8(self, a: Self::I) -> [Self::I; 4] {
        std::array::from_fn(|j| a.map(|a| i32::from(a.to_le_bytes()[j].cast_signed()) & 0xffff))
    }
    #[inline(always)]
    fn prefetch<const NEAR: bool>(self, _address: *const u8) {}
}
