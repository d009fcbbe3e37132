//! What one pass computes, and for whom.

use super::super::request::SLOTS_MAX;

/// Tokens of one slot in a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub slot: usize,
    /// Which token of the pass is the first.
    pub first: usize,
    /// How many there are: what is certain, and then what is drafted.
    pub n: usize,
    /// After how many of them, the last ones, logits are wanted.
    pub n_rows: usize,
}

/// The next pass. Made anew for each without allocating.
pub(super) struct Batch {
    /// Those of slots that generate come first.
    pub parts: heapless::Vec<Part, SLOTS_MAX>,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Those after which logits are wanted.
    pub rows: Vec<usize>,
}

impl Batch {
    /// Of passes of up to `n_batch` tokens and `n_logits` rows of logits.
    pub fn new(n_batch: usize, n_logits: usize) -> Batch {
        let (tokens, rows) = (Vec::with_capacity(n_batch), Vec::with_capacity(n_logits));
        Batch { parts: heapless::Vec::new(), tokens, rows }
    }

    pub fn clear(&mut self) {
        self.parts.clear();
        self.tokens.clear();
        self.rows.clear();
    }

    /// Adds the tokens of a slot, of which the last `n_rows` want logits.
    pub fn push(&mut self, slot: usize, tokens: &[u32], n_rows: usize) {
        let (first, n) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.rows.extend(first + n - n_rows..first + n);
        // A slot has one part.
        let _ = self.parts.push(Part { slot, first, n, n_rows });
    }
}
