//! Guesses at how a sequence continues, so that one pass over the weights can yield more than one token.

use heapless::Vec;

use crate::kernels::STREAM_TOKENS_MAX;

/// Most drafted tokens of a pass, of all its sequences together. With the token before them they are as many as one stream
/// of the weights takes; more would cost what they save.
pub const DRAFT_MAX: usize = STREAM_TOKENS_MAX - 1;

/// Guesses how sequences go on. What it proposes changes nothing but the time: a token is taken over only where the
/// sampler, given the logits at its place, draws the same.
pub trait Drafter {
    /// Appends to `out`, which is empty, up to `max` tokens that may follow `history`: the prompt and what was generated,
    /// the last token of which has not been through the model yet.
    ///
    /// It is called in the token loop of every sequence that generates: it must be fast and must not allocate.
    fn propose(&mut self, history: &[u32], max: usize, out: &mut Vec<u32, DRAFT_MAX>);
}
