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
