//! Checked views of bytes as numbers and of numbers as bytes: the only place where the two are cast.
//!
//! # Safety
//! The casts are sound because [`Pod`] is implemented here only, for types without padding, without
//! invalid bit patterns and without interior mutability, and because length and alignment are checked.
#![allow(unsafe_code)]

/// Plain numbers: every bit pattern is a value, no padding. Sealed: implemented in this file only.
///
/// # Safety
/// Implementors have no padding, no invalid bit patterns and no interior mutability.
pub unsafe trait Pod: Copy + Send + Sync + 'static {}

macro_rules! pod {
    ($($t:ty)*) => { $(
        // SAFETY: a primitive number, or half's transparent wrapper of u16: no padding, all bit patterns valid.
        unsafe impl Pod for $t {}
    )* };
}
pod!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 half::f16 half::bf16);

// SAFETY: an array of padding-free numbers has no padding of its own.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

fn fits<T>(bytes: usize, address: usize) -> bool {
    bytes.is_multiple_of(size_of::<T>()) && address.is_multiple_of(align_of::<T>())
}

/// Views bytes as a slice of `T` (native endianness, which is little-endian on every supported target).
///
/// # Panics
/// If the length is not a multiple of the size of `T` or the address is misaligned.
pub fn cast<T: Pod>(bytes: &[u8]) -> &[T] {
    assert!(fits::<T>(bytes.len(), bytes.as_ptr() as usize), "{} bytes do not hold whole elements", bytes.len());
    // SAFETY: size and alignment were asserted, T accepts any bit pattern, and the borrow is carried over.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// Mutable counterpart of [`cast`].
///
/// # Panics
/// As [`cast`].
pub fn cast_mut<T: Pod>(bytes: &mut [u8]) -> &mut [T] {
    assert!(fits::<T>(bytes.len(), bytes.as_ptr() as usize), "{} bytes do not hold whole elements", bytes.len());
    // SAFETY: size and alignment were asserted, T accepts any bit pattern, and the unique borrow is carried over.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// Views numbers as their bytes.
pub fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: T has no padding, so every byte of the slice is initialised; u8 has alignment 1.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Views f32 values as bytes, for writing; f32 is aligned for any cast back.
pub fn floats_as_bytes(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: f32 has no padding and every byte pattern is a valid f32; the unique borrow is carried over.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Views f64 words as bytes, for writing: memory aligned for every cast back.
pub fn words_as_bytes(words: &mut [f64]) -> &mut [u8] {
    // SAFETY: f64 has no padding and every byte pattern is a valid f64; the unique borrow is carried over.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// The bytes of one vector as 32-bit lanes.
pub fn cast_array(bytes: [u8; 32]) -> [i32; 8] {
    let mut lanes = [0; 8];
    for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *lane = i32::from_le_bytes(*bytes);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut words = [1u32, 2, 0xdead_beef];
        let bytes = bytes_of(&words).to_vec();
        assert_eq!(bytes[8..], [0xef, 0xbe, 0xad, 0xde]);
        assert_eq!(cast::<u32>(bytes_of(&words)), &words);
        let view = bytes_of(&words).len();
        assert_eq!(view, 12);
        cast_mut::<u8>(cast_mut_u8(&mut words))[0] = 7;
        assert_eq!(words[0], 7);
    }

    fn cast_mut_u8(words: &mut [u32]) -> &mut [u8] {
        // SAFETY: u32 has no padding and any byte pattern is a valid u32.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
    }

    #[test]
    #[should_panic(expected = "whole elements")]
    fn odd_length_is_refused() {
        let words = [0u32; 2];
        cast::<u32>(&bytes_of(&words)[..5]);
    }

    #[test]
    #[should_panic(expected = "whole elements")]
    fn misalignment_is_refused() {
        let words = [0u32; 2];
        cast::<u32>(&bytes_of(&words)[1..5]);
    }
}
