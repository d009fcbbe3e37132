//! Stand-ins for the unwinder in the static binary.
//!
//! A panic aborts there and unwind tables are left out (`tools/static.ld`), so nothing is ever unwound and no backtrace can
//! be made. The standard library asks for both all the same, and would bring libunwind and a reader of debug information
//! along: 0.2 MiB.
//!
//! # Safety
//! The names are those of the Itanium C++ ABI, level I, which no other object of this binary defines: the linker refuses a
//! second definition. Nobody gets a context to call the functions with that take one, since no frame is ever visited.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// No more frames.
const END_OF_STACK: c_int = 5;

/// Visits no frame.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_visit: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

macro_rules! never_called {
    ($($name:ident)+) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )+};
}

never_called! {
    _Unwind_DeleteException _Unwind_FindEnclosingFunction _Unwind_GetCFA _Unwind_GetDataRelBase _Unwind_GetIP
    _Unwind_GetIPInfo _Unwind_GetLanguageSpecificData _Unwind_GetRegionStart _Unwind_GetTextRelBase
    _Unwind_RaiseException _Unwind_Resume _Unwind_SetGR _Unwind_SetIP
}
