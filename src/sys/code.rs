//! The pages of the program itself.
//!
//! # Safety
//! Only pages between two symbols of the linker are touched, all of which are mapped from the program's file and cannot be
//! written.
#![allow(unsafe_code)]

use rustix::mm::{self, Advice};

/// The largest page that a supported kernel has; the smallest is a part of it.
const PAGE_BYTES_MAX: usize = 64 << 10;

unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back the pages of code and constants that were needed until now, of which most are never needed again once a model
/// is there. What is comes back from the file's cache, 64 KiB at a time.
pub fn forget() {
    let start = (&raw const __executable_start).addr().next_multiple_of(PAGE_BYTES_MAX);
    let end = (&raw const etext).addr() / PAGE_BYTES_MAX * PAGE_BYTES_MAX;
    if start < end {
        // SAFETY: what lies there is the program's file, mapped for reading and executing, never for writing: a page that is
        // dropped is read again at the next access, by whichever thread, and has the same bytes.
        let _ = unsafe { mm::madvise(start as *mut _, end - start, Advice::LinuxDontNeed) };
    }
}
