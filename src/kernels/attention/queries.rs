//! What attention is asked for, how much of it at a time, and what comes of it.

use crate::quant::PANEL_ROWS;

/// Keys taken at a time, and values of V side by side in a tile: K and V tiles of 64 keys x 128 dimensions are 16 KiB
/// each, and one of them at a time is in use.
pub const KEY_TILE: usize = 64;

/// Most query rows of one call: enough to make the conversion of a tile a small part of the work on it (5 % at 192 rows of
/// 128 dimensions, 10 % at 96), few enough that queries, scores and results (168 KiB together) stay in L2. Whole blocks of
/// [`TILED_ROWS`].
pub const QUERY_ROWS_MAX: usize = 192;

/// Rows of a register block over a tile: 6 x 4 vectors of 512 bits, or 6 x 2 of 256.
pub(super) const TILED_ROWS: usize = 6;

/// Most rows that are streamed; with more, converting a tile once is cheaper than converting in registers again.
pub(super) const STREAMED_ROWS_MAX: usize = 8;

const _: () = assert!(QUERY_ROWS_MAX.is_multiple_of(TILED_ROWS) && QUERY_ROWS_MAX >= STREAMED_ROWS_MAX);
const _: () = assert!(KEY_TILE.is_multiple_of(PANEL_ROWS));

/// Which positions of its sequence a token sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// So many, the last its own; `usize::MAX` for all.
    Sliding(usize),
    /// Those of its own chunk of so many, the first of which begins at position 0.
    Chunk(usize),
    /// Those up to so many before it and after it; `usize::MAX` for all of its sequence.
    Around(usize),
}

impl Window {
    /// All before it and its own.
    pub const ALL: Window = Window::Sliding(usize::MAX);

    /// The most positions that a token sees.
    pub const fn span(self) -> usize {
        match self {
            Window::Sliding(len) | Window::Chunk(len) => len,
            Window::Around(reach) => reach.saturating_mul(2).saturating_add(1),
        }
    }

    /// The first position that a token at `position` sees; it never falls from one position to the next.
    pub const fn first(self, position: usize) -> usize {
        match self {
            Window::Sliding(len) => (position + 1).saturating_sub(len),
            Window::Chunk(len) => position / len * len,
            Window::Around(reach) => position.saturating_sub(reach),
        }
    }

    /// The position behind the last that a token at `position` sees of a sequence of `len`; it never falls either.
    pub const fn end(self, position: usize, len: usize) -> usize {
        match self {
            Window::Sliding(_) | Window::Chunk(_) => position + 1,
            Window::Around(reach) => {
                let end = position.saturating_add(reach).saturating_add(1);
                if end < len { end } else { len }
            }
        }
    }
}

/// Query rows of one KV head: `group` heads of each of some consecutive tokens.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// Head `h` of token `t` starts at `t * stride + h * key_dim`.
    pub values: &'a [f32],
    /// Values from token to token.
    pub stride: usize,
    /// Heads per token.
    pub group: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Position of the first token.
    pub position: usize,
    /// Positions of the sequence that are in the cache: what a token can see of what comes after it.
    pub len: usize,
    /// Which positions a token sees.
    pub window: Window,
    /// What dot products are multiplied by, mostly `1 / sqrt(key_dim)`.
    pub scale: f32,
    /// Scores are squeezed into plus and minus this, `cap * tanh(score / cap)`, but for those of sinks.
    pub cap: Option<f32>,
    /// How much each head of the group takes from a score for every position that the key lies back (ALiBi).
    pub slopes: Option<&'a [f32]>,
    /// A score for each head of the group that takes its share of the weight and has no value.
    pub sinks: Option<&'a [f32]>,
}

impl Queries<'_> {
    /// Rows: heads times tokens.
    pub const fn rows(&self) -> usize {
        self.n_tokens * self.group
    }

    /// The key behind the last that the last token sees.
    pub const fn keys(&self) -> usize {
        self.window.end(self.position + self.n_tokens - 1, self.len)
    }

    /// The first key that the first token sees, rounded down to a whole [`KEY_TILE`].
    pub const fn first_key(&self) -> usize {
        self.window.first(self.position) / KEY_TILE * KEY_TILE
    }
}

/// One row's result over a range of keys.
pub struct RowResult<'a> {
    /// Token, counted from the first of the queries.
    pub token: usize,
    /// Head of the group.
    pub head: usize,
    /// The weighted mean of V; zeros if the token sees none of the keys.
    pub values: &'a [f32],
    /// Logarithm (base 2) of the sum of `e^score`; minus infinity if the token sees none of the keys.
    pub log_sum: f32,
}

/// f32 values of scratch that [`attend`](super::attend) needs; `head_dim` is the larger of those of keys and of values.
pub const fn attend_scratch(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(KEY_TILE);
    // Results, scores, running maxima and sums; queries and weights as integers, and their scales; tiles and their scales.
    let floats = padded + KEY_TILE + 1 + PANEL_ROWS;
    let integers = head_dim.next_multiple_of(PANEL_ROWS) / 2 + 1 + KEY_TILE / 2 + 1;
    QUERY_ROWS_MAX * (floats + integers) + KEY_TILE * (head_dim / 2 + padded / 2 + 2) + PANEL_ROWS * padded
}
