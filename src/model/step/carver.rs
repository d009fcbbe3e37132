//! Cuts a region into buffers, or counts what they take.

use crate::bytes::{self, Pod};

/// Buffers start on a cache line.
const ALIGN: usize = 64;

/// Cuts a region into buffers, or only counts what they take: one piece of code says what there is for both.
pub(super) struct Carver<'a> {
    /// What is left; `None` when counting.
    rest: Option<&'a mut [u8]>,
    /// Bytes taken; `None` once they exceed 2^64.
    taken: Option<u64>,
}

impl<'a> Carver<'a> {
    pub(super) fn counting() -> Carver<'static> {
        Carver { rest: None, taken: Some(0) }
    }

    pub(super) fn over(region: &'a mut [u8]) -> Carver<'a> {
        Carver { rest: Some(region), taken: Some(0) }
    }

    /// A buffer of `n` values; empty when counting.
    pub(super) fn take<T: Pod>(&mut self, n: usize) -> &'a mut [T] {
        let bytes =
            (n as u64).checked_mul(size_of::<T>() as u64).and_then(|b| b.checked_next_multiple_of(ALIGN as u64));
        self.taken = self.taken.zip(bytes).and_then(|(taken, bytes)| taken.checked_add(bytes));
        let Some(rest) = &mut self.rest else { return &mut [] };
        let bytes = bytes.expect("what was planned can be counted") as usize;
        let (part, tail) = std::mem::take(rest).split_at_mut(bytes);
        *rest = tail;
        bytes::cast_mut(&mut part[..n * size_of::<T>()])
    }

    /// Bytes taken so far; `None` if they exceed 2^64.
    pub(super) fn taken(&self) -> Option<u64> {
        self.taken
    }

    /// What is left of the region.
    pub(super) fn rest(self) -> &'a mut [u8] {
        self.rest.unwrap_or_default()
    }
}
