//! The x86-64 tiers' vector units.
#![allow(unsafe_code)]

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
