//! How many tokens a thought may take: after those its end is forced, token by token, through the mask of the next one.

/// The budget of one answer.
pub struct Budget {
    /// Tokens of thought that are left.
    left: usize,
    /// What ends a thought.
    end: Vec<u32>,
    /// Tokens of the end that have been forced; none where no thought is being ended.
    n_forced: usize,
    mask: Vec<u32>,
}

impl Budget {
    /// So many tokens, then `end`. The vocabulary has `n_vocab` tokens.
    pub fn new(tokens: usize, end: Vec<u32>, n_vocab: usize) -> Budget {
        Budget { left: tokens, end, n_forced: 0, mask: vec![u32::MAX; n_vocab.div_ceil(32)] }
    }

    /// A token of thought has come.
    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// The mask that forces the next token, where it must be a certain one.
    pub fn forces(&mut self, is_in_thought: bool) -> Option<&[u32]> {
        if self.n_forced == self.end.len() {
            self.n_forced = 0;
        }
        if self.n_forced == 0 && !(self.left == 0 && is_in_thought) {
            return None;
        }
        let token = *self.end.get(self.n_forced)?;
        self.n_forced += 1;
        self.mask.fill(0);
        if let Some(word) = self.mask.get_mut(token as usize / 32) {
            *word = 1 << (token % 32);
        }
        Some(&self.mask)
    }

    /// The mask that leaves the next token free.
    pub fn free(&mut self) -> &[u32] {
        self.mask.fill(u32::MAX);
        &self.mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thought_beyond_its_budget_is_ended_whenever_it_comes() {
        let mut budget = Budget::new(1, vec![33, 2], 40);
        assert_eq!(budget.forces(true), None);
        budget.spend();
        assert_eq!(budget.forces(false), None, "outside of a thought nothing is forced");
        for _ in 0..2 {
            assert_eq!(budget.forces(true), Some(&[0, 2][..]));
            assert_eq!(budget.forces(false), Some(&[4, 0][..]), "to the end, though the thought has ended");
            assert_eq!(budget.forces(false), None);
        }
        assert_eq!(budget.free(), [u32::MAX; 2]);
    }
}
