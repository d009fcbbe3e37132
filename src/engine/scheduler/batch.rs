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
    /// After how many of them, the last ones, logits or hidden states are wanted.
    pub n_rows: usize,
}

/// The next pass. Made anew for each without allocating.
pub(super) struct Batch {
    /// Those of slots that generate come first, those of prompts for an embedding last.
    pub parts: heapless::Vec<Part, SLOTS_MAX>,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Those after which logits are wanted, and then those after which hidden states are.
    pub rows: Vec<usize>,
    pub n_logits: usize,
}

impl Batch {
    /// Of passes of up to `n_batch` tokens.
    pub fn new(n_batch: usize) -> Batch {
        let (tokens, rows) = (Vec::with_capacity(n_batch), Vec::with_capacity(n_batch));
        Batch { parts: heapless::Vec::new(), tokens, rows, n_logits: 0 }
    }

    pub fn clear(&mut self) {
        self.parts.clear();
        self.tokens.clear();
        self.rows.clear();
        self.n_logits = 0;
    }

    /// Adds the tokens of a slot; after the last `n_rows` of them, logits or hidden states are wanted.
    pub fn push(&mut self, slot: usize, tokens: &[u32], n_rows: usize, wants_logits: bool) {
        assert!(!wants_logits || self.n_logits == self.rows.len(), "logits come before hidden states");
        self.n_logits += if wants_logits { n_rows } else { 0 };
        let (first, n) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.rows.extend(first + n - n_rows..first + n);
        // A slot has one part.
        let _ = self.parts.push(Part { slot, first, n, n_rows });
    }
}
