//! What a rendering may take.

use crate::sys::process::Bounds;

/// What a rendering may take. (A usual one takes half a millisecond, its process included.)
pub const BOUNDS: Bounds = Bounds { data_bytes: 256 << 20, stack_bytes: 64 << 20 };

/// CPU time for compiling and rendering.
pub const CPU_SECONDS: u64 = 2;

/// Longest source: a hundred times that of published ones.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Longest text that comes of it: more than fits into the context of any model.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;

/// The bounds, as a sentence has them.
pub fn sentence() -> String {
    let [data, stack, source, text] =
        [BOUNDS.data_bytes, BOUNDS.stack_bytes, SOURCE_BYTES_MAX as u64, TEXT_BYTES_MAX].map(|bytes| bytes >> 20);
    format!(
        "{CPU_SECONDS} s of CPU time, {data} MiB of memory, {stack} MiB of stack, {source} MiB of source, {text} MiB of text"
    )
}
