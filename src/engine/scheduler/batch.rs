//! What one pass computes, and for whom.

use std::ops::Range;

use super::super::request::SLOTS_MAX;

/// What is wanted after tokens of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Logits, to draw from.
    Draws,
    /// The logprob of the token that follows.
    Scores,
    /// Hidden states.
    States,
}

/// Tokens of one slot in a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub slot: usize,
    /// Which token of the pass is the first.
    pub first: usize,
    /// How many there are: what is certain, and then what is drafted.
    pub n: usize,
    /// After how many of them something is wanted.
    pub n_rows: usize,
    pub wanted: Wanted,
}

/// The next pass. Made anew for each without allocating.
pub(super) struct Batch {
    /// In the order of [`Wanted`].
    pub parts: heapless::Vec<Part, SLOTS_MAX>,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Those after which something is wanted, in the same order.
    pub rows: Vec<usize>,
    /// How many of them are to be drawn from, and how many to be scored.
    pub n_drawn: usize,
    pub n_scored: usize,
}

impl Batch {
    /// Of passes of up to `n_batch` tokens.
    pub fn new(n_batch: usize) -> Batch {
        let (tokens, rows) = (Vec::with_capacity(n_batch), Vec::with_capacity(n_batch));
        Batch { parts: heapless::Vec::new(), tokens, rows, n_drawn: 0, n_scored: 0 }
    }

    pub fn clear(&mut self) {
        self.parts.clear();
        self.tokens.clear();
        self.rows.clear();
        (self.n_drawn, self.n_scored) = (0, 0);
    }

    /// Adds the tokens of a slot; something is wanted after those of `rows`.
    pub fn push(&mut self, slot: usize, tokens: &[u32], rows: Range<usize>, wanted: Wanted) {
        let n_rows = rows.len();
        match wanted {
            Wanted::Draws => {
                assert!(self.n_drawn == self.rows.len(), "what is drawn from comes first");
                self.n_drawn += n_rows;
            }
            Wanted::Scores => {
                assert!(self.n_drawn + self.n_scored == self.rows.len(), "what is scored comes before hidden states");
                self.n_scored += n_rows;
            }
            Wanted::States => {}
        }
        let (first, n) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.rows.extend(first + rows.start..first + rows.end);
        // A slot has one part.
        let _ = self.parts.push(Part { slot, first, n, n_rows, wanted });
    }
}
