//! How the panels of each weight type turn into vectors.

mod codebook;
pub mod dedicated;
pub mod unpack;
mod unpacked;

pub use codebook::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
pub use dedicated::{Bf16, F16, F32, Q4_0, Q4K, Q6K, Q8_0};
pub use unpacked::{Iq4Nl, Iq4Xs, Mxfp4, Nvfp4, Q1_0, Q2_0, Q2K, Q3K, Q4_1, Q5_0, Q5_1, Q5K, Tq1_0, Tq2_0};
