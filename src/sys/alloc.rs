//! The system allocator with counters: of calls, so that "no allocation after Ready" is a number and not a wish, and of
//! each thread's bytes, so that what runs on one can be held to a bound.
//!
//! # Safety
//! Every call is passed to the system allocator unchanged.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    // A constant that needs no dropping: reading it allocates nothing and cannot fail.
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    #[cfg(test)]
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// The system allocator, counted.
#[derive(Debug)]
pub struct Counting;

/// Allocations of the process so far, by all threads; zero unless [`Counting`] is the global allocator.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Bytes that this thread has allocated less those that it has freed, whoever had allocated them; zero unless
/// [`Counting`] is the global allocator.
pub fn live_bytes() -> isize {
    LIVE_BYTES.get()
}

/// A layout has at most `isize::MAX` bytes.
fn count_bytes(bytes: isize) {
    let live = LIVE_BYTES.get().wrapping_add(bytes);
    LIVE_BYTES.set(live);
    #[cfg(test)]
    PEAK_BYTES.set(PEAK_BYTES.get().max(live));
}

/// The most that [`live_bytes`] of this thread has been since this was last asked for.
#[cfg(test)]
pub fn peak_bytes() -> isize {
    PEAK_BYTES.replace(live_bytes())
}

// SAFETY: all requirements are passed on to the system allocator, which fulfils them.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        count_bytes(layout.size().cast_signed());
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        count_bytes(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(data, layout) }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        count_bytes(bytes.cast_signed() - layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(data, layout, bytes) }
    }
}
