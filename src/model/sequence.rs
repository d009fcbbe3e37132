//! Sequences as a pass sees them: how many there can be, and which tokens, pages and states are whose.

use std::ops::Range;

use crate::kernels::{KEY_TILE, KvType, Tile};

/// Positions of a page.
pub const PAGE_TOKENS: usize = KEY_TILE;

/// No page, no state.
pub const NONE: u32 = u32::MAX;

/// Sizes that decide how much memory a pass needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Most tokens of one pass.
    pub n_batch: usize,
    /// Most rows of logits asked for at once.
    pub n_logits: usize,
    /// Positions of one sequence.
    pub ctx: usize,
    /// Most sequences of one pass.
    pub sequences: usize,
    /// Positions that the KV cache holds, of all sequences together; rounded up to whole pages.
    pub kv_tokens: usize,
    /// Checkpoints of recurrent states, at most one for each page; `None`: as many as the
    /// plan makes by itself.
    pub checkpoints: Option<usize>,
    /// How K and V are kept.
    pub kv_type: KvType,
    /// Workers of the team.
    pub workers: usize,
    /// Cache tile.
    pub tile: Tile,
}

/// Some consecutive tokens of one sequence, which has the pages for them.
#[derive(Clone, Copy, Debug)]
pub struct SequenceSlice<'p> {
    /// Which token of the pass is the first.
    pub first: usize,
    /// How many there are.
    pub n: usize,
    /// Position of the first.
    pub position: usize,
    /// The sequence's pages in order, of each pool. No two sequences have the same page where one writes.
    pub pages: &'p [Vec<u32>],
    /// The state the sequence is in before the first token; [`NONE`] at its beginning.
    pub state_before: u32,
    /// Where its state is written, alone of all sequences.
    pub state: u32,
    /// By page, where the state at the page's end is written as well; [`NONE`] for nowhere.
    pub checkpoints: &'p [u32],
}

impl SequenceSlice<'_> {
    /// The pages that hold its tokens.
    pub fn page_range(&self) -> Range<usize> {
        self.position / PAGE_TOKENS..(self.position + self.n).div_ceil(PAGE_TOKENS)
    }

    /// How many pages it comes to the end of.
    pub fn ended_pages(&self) -> usize {
        (self.position + self.n) / PAGE_TOKENS - self.position / PAGE_TOKENS
    }
}
