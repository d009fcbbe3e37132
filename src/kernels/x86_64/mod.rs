//! The x86-64 tiers' vector units.

pub mod avx2;
pub mod avx512;

/// Declares methods whose body is one intrinsic expression on the tier's own vectors.
macro_rules! ops {
    ($( fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr; )*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: a value of this tier's type exists only inside its entry points, which run after the CPU was
            // probed for the tier's whole feature list; the operation works on register values alone.
            unsafe { $body }
        }
    )* };
}
pub(super) use ops;

/// A pointer to `BYTES` readable bytes of a slice, checked.
#[inline(always)]
pub(super) fn source<T, const BYTES: usize>(x: &[T]) -> *const T {
    assert!(size_of_val(x) >= BYTES);
    x.as_ptr()
}

/// A pointer to `BYTES` writable bytes of a slice, checked.
#[inline(always)]
pub(super) fn target<T, const BYTES: usize>(x: &mut [T]) -> *mut T {
    assert!(size_of_val(x) >= BYTES);
    x.as_mut_ptr()
}

/// Byte-shuffle controls of the four lanes of 128 bits that move byte `j` of every 32-bit lane `shift` bits up, and
/// with `both` the same 16 bits further; `zeros` marks the bytes to clear.
#[inline(always)]
pub(super) fn shuffle_lanes(j: u32, zeros: u32, shift: u32, both: bool) -> [i32; 4] {
    let times = if both { 0x1_0001 } else { 1 };
    let mut lanes = [0; 4];
    for (lane, first) in lanes.iter_mut().zip([0, 4, 8, 12]) {
        *lane = (zeros | ((j + first) * times) << shift).cast_signed();
    }
    lanes
}

/// The CPU's maker, e.g. `AuthenticAMD`, and its family: base and extended (AMD's Zen 4 is 0x19, Zen 5 0x1a).
pub fn maker_and_family() -> ([u8; 12], u32) {
    let id = std::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (part, word) in name.as_chunks_mut::<4>().0.iter_mut().zip([id.ebx, id.edx, id.ecx]) {
        *part = word.to_le_bytes();
    }
    let version = std::arch::x86_64::__cpuid(1).eax;
    (name, (version >> 8 & 0xf) + (version >> 20 & 0xff))
}

/// Four words of four rows, as four rows of four words. SSE2 is part of x86-64, so this needs no tier.
#[inline(always)]
pub fn transpose_words(rows: [[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: an array of 16 bytes and a vector of 128 bits are the same bytes, and every value of either is valid.
    let [a, b, c, d] = rows.map(|row| unsafe { std::mem::transmute::<[u8; 16], __m128i>(row) });
    // SAFETY: SSE2 is there; register values only.
    let [ab, cd] = [(a, b), (c, d)].map(|(a, b)| unsafe { (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)) });
    let words = [(ab.0, cd.0), (ab.1, cd.1)]
        // SAFETY: as above.
        .map(|(ab, cd)| unsafe { [_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)] });
    let [[w0, w1], [w2, w3]] = words;
    // SAFETY: as in the first line.
    [w0, w1, w2, w3].map(|word| unsafe { std::mem::transmute::<__m128i, [u8; 16]>(word) })
}

/// The lower halves of four words, then the upper ones.
#[inline(always)]
pub fn split_words(words: [u8; 16]) -> [u8; 16] {
    use std::arch::x86_64::*;
    // Places 0, 2, 1, 3.
    const ALTERNATE: i32 = 0b11_01_10_00;
    // SAFETY: as in `transpose_words`.
    let words = unsafe { std::mem::transmute::<[u8; 16], __m128i>(words) };
    // SAFETY: as in `transpose_words`.
    let halves = unsafe {
        _mm_shuffle_epi32::<ALTERNATE>(_mm_shufflehi_epi16::<ALTERNATE>(_mm_shufflelo_epi16::<ALTERNATE>(words)))
    };
    // SAFETY: as in `transpose_words`.
    unsafe { std::mem::transmute::<__m128i, [u8; 16]>(halves) }
}

/// Asks for the cache line at `address`, which need not exist, to come into L1.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    // SAFETY: SSE is part of x86-64, and a prefetch touches nothing.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast()) }
}
