//! Block layouts of the weight formats: one file per family, with the file's layout, the scalar decode that
//! defines its meaning, and the repacked panel layout that every kernel reads. [`Format::ALL`] is the table of them.
//!
//! # Panels
//! A weight matrix `[rows, cols]` is stored as panels of [`PANEL_ROWS`] rows. Inside a panel the columns run
//! in steps; each step holds the same few columns of all 16 rows side by side, so that one vector load feeds
//! 16 row sums and no horizontal add is ever needed:
//! - block formats: units of 64 bytes = 16 rows x 4 bytes (`vpdpbusd` order); block by
//!   block, the body, then its tail: the float scales, each field of 16 rows side by side. So a panel is read front to
//!   back, which is what memory gives fastest: with all tails behind all bodies decode ran at 71 to 81 % of the read
//!   bandwidth on Zen 4, in this order at 85 to 89 %;
//! - F32 and F16: 16 rows x 1 column;
//! - BF16: 16 rows x 2 columns (`vdpbf16ps` order).
//!
//! A panel takes the bytes its 16 rows take in the file, in whole cache lines. Rows beyond the matrix decode to zero.

mod bits;
mod codebook;
mod float;
mod format;
pub(crate) mod fp4;
pub(crate) mod grids;
mod iq1;
mod iq2;
mod iq3;
pub(crate) mod iq4;
mod k_quants;
mod layout;
mod legacy;
mod low_bit;
mod ternary;
pub mod types;
mod weight_type;

pub use format::Format;
pub use layout::{GROUP, PANEL_ROWS, SUPER, UNIT};
pub use types::TensorType;
pub use weight_type::WeightType;

#[cfg(test)]
mod tests;
