//! Matrix and vector kernels: written once over [`simd::Simd`], compiled once per CPU tier, chosen once at start.
//!
//! Kernels know no tensor names, files, threads or boards: they get slices, shapes and a [`Tile`].
//!
//! From the bottom up: [`simd`] is what a kernel needs of a CPU; [`activations`], [`formats`] and [`tiling`] are what a
//! product is made of; [`matmul`], [`attention`], [`delta`], [`delta_chunk`], [`ssm`], [`recurrent`] and [`rowwise`] are the
//! kernels; [`table`] is what one tier has of them;
//! [`tiers`] compiles a table per tier and chooses one.

mod activations;
mod activations16;
pub mod attention;
mod cpu;
mod delta;
mod delta_chunk;
mod formats;
mod matmul;
mod partition;
#[cfg(feature = "bench")]
mod peak;
mod recurrent;
#[cfg(test)]
mod reference;
mod repack;
mod rowwise;
mod simd;
mod ssm;
mod table;
#[cfg(test)]
mod tests;
mod tier;
mod tiers;
mod tiling;

pub use activations::{ActivationFormat, ActivationLayout, Activations, BLOCK_BYTES};
pub use attention::{
    HeadValues, KEY_TILE, KvHead, KvType, LATENT_KEYS_MIN, LATENT_ROWS_MAX, LatentQueries, QUERY_ROWS_MAX, Queries,
    RANGE_KEYS_MIN, RowResult, Window, attend_scratch, key_ranges, latent_scratch, merge, partials_len,
};
pub use delta::DeltaToken;
pub use delta_chunk::DELTA_CHUNK;
pub use matmul::Matrix;
pub use partition::{OutTile, Partition, Team, Zipped};
#[cfg(feature = "bench")]
pub use peak::ReadWay;
pub use recurrent::{STATE_STEP, STRIP_COLS, strip_cols};
pub use rowwise::{Activation, NormKind, RowNorm, Xielu};
pub use ssm::SsmRates;
pub use table::Kernels;
pub use tier::Tier;
pub use tiers::{TierError, available, select};
pub use tiling::{PrefetchDistance, STREAM_TOKENS_MAX, Tile, row_stride};
