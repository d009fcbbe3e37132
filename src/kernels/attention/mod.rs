//! Attention over the KV cache with running maximum and sum: no `n x n` buffer, any context length.
//!
//! # Cache layout
//! A layer's cache is pages of [`KEY_TILE`] positions, `[n_kv_heads]{K, V}` each; a sequence has a table of the pages that
//! hold its positions, in order. Of a page, a head has
//! - K in panels of 16 positions, `[4][key_dim][16]`: one vector load holds the same dimension of 16 keys, so scores need
//!   no horizontal adds. q8_0: `[4][key_dim / 32]{16 f16 scales, [32][16] i8}`.
//! - V row by row, `[64][value_dim]`; q8_0: `[64][value_dim / 32]{f16 scale, 32 i8}`.
//!
//! A page is what is taken at a time anyway, so that finding it costs one look into the table for 64 keys; 32 KiB a head at
//! 128 dimensions of f16 are long enough a stretch of memory to be read at full speed.
//!
//! # Algorithm
//! Keys are taken [`KEY_TILE`] at a time. For each query row (the heads of a GQA group times some tokens) the running
//! maximum `m`, the running sum `l` of `exp(score - m)` and the weighted sum of V are rescaled when `m` grows (Milakov
//! and Gimelshein, arXiv:1805.02867; the tiling of FlashAttention, arXiv:2205.14135). There are two ways through a
//! tile, whose results differ by less than what the cache's own rounding costs:
//! - [`streamed`], for the few rows of one token, in decode: K and V go from the cache through registers, every load used
//!   by all rows.
//! - [`tiled`], for many rows: K and V of the tile become 16-bit integers once, and the work is two small matrix products.
//!
//! A long context is cut into ranges of keys ([`key_ranges`]) that different workers take; their results are weighed
//! by their log sums (the logarithm of `l`, with `m`) and added up ([`merge`]), as in Flash-Decoding.
//!
//! [`latent`] is a third way, for heads that share one row a position, which is key and value at once.
//!
//! A sink is a score that has no value: `m` starts with it and `l` with 1. It is counted in one range of keys.

mod block;
mod cache;
mod latent;
mod queries;
mod ranges;
mod rows;
mod softmax;
mod streamed;
#[cfg(test)]
mod tests;
mod tiled;

pub use cache::{KvHead, KvType, store_key, store_value};
pub use latent::{HeadValues, LATENT_KEYS_MIN, LATENT_ROWS_MAX, LatentQueries, absorb, attend_latent, latent_scratch};
pub use queries::{KEY_TILE, QUERY_ROWS_MAX, Queries, RowResult, Window, attend_scratch};
pub use ranges::{PARTIAL_ROWS_MAX, RANGE_KEYS_MIN, key_ranges, merge, partials_len};
pub use rows::attend;
