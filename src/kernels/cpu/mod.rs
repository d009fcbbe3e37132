//! Which core this is, where one is known to want something of its own.

mod core;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use self::core::CoreKind;

/// The core this runs on.
pub fn core() -> CoreKind {
    #[cfg(target_arch = "x86_64")]
    return x86_64::core();
    #[cfg(not(target_arch = "x86_64"))]
    return CoreKind::Other;
}
