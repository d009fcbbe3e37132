//! The gated short convolution of LFM2, whose state is the last inputs of a sequence.
//!
//! With `[b, c, x] = in_proj(h)` and `z = b * x`, channel `i` of token `t` becomes
//! `c[t][i] * sum_k conv[i][k] * z[t - (taps - 1) + k][i]`. A state is `[taps - 1][n_embd]`, the oldest token first.

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::{each_row, padded, share};
use crate::kernels::{ActivationFormat, ActivationLayout};
use crate::model::cache::{Cache, NONE, PAGE_TOKENS};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::ShortConvWeights;

impl ForwardPass<'_, '_> {
    /// Gates and input of the convolution of the normed stream.
    pub fn project_conv(&mut self, conv: &ShortConvWeights) {
        let (n, tools) = (self.tokens.len(), self.tools());
        let Buffers { acts, conv: out, workers, .. } = &mut *self.buffers;
        multiply(tools, workers, (acts, n), [(&conv.in_proj, &mut **out)], false);
    }

    /// The convolution of layer `layer` into the activation records; leaves the state of every sequence, and a copy at the
    /// ends of pages that are to have one.
    pub fn short_conv(&mut self, layer: usize, conv: &ShortConvWeights) {
        let (n, e, team, kernels) = (self.tokens.len(), self.config.n_embd, self.team, self.kernels);
        let (stride, taps) = (padded(3 * e), conv.conv.cols);
        let weights = conv.conv.values(self.region);
        let slices = self.slices;
        let Buffers { acts, conv: mixed, .. } = &mut *self.buffers;
        let rows = each_row(team, mixed, (n, 3 * e, stride));
        share(team, n, &|worker| {
            while let Some(mut block) = rows.next_for(worker) {
                let (b, rest) = block.row(0).split_at_mut(e);
                b.iter_mut().zip(&rest[e..]).for_each(|(b, x)| *b *= x);
            }
        });
        let inputs = Inputs { mixed, stride, e };
        let layout = ActivationLayout::new(e);
        let format = kernels.activation_format(conv.out_proj.weight.ty, n);
        let cache = &*self.cache;
        let records = each_row(team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = records.next_for(worker) {
                let token = block.row0;
                let slice = &slices[slices.partition_point(|slice| slice.first <= token) - 1];
                let out = layout.values_mut(block.row(0));
                out.fill(0.0);
                let before = state_before(cache, layer, slice);
                for tap in 0..taps {
                    let Some(z) = inputs.at(slice, before, token + tap, taps - 1) else { continue };
                    for ((out, z), weights) in out.iter_mut().zip(z).zip(weights.chunks_exact(taps)) {
                        *out += weights[tap] * z;
                    }
                }
                out.iter_mut().zip(inputs.gate(token)).for_each(|(out, c)| *out *= c);
                if format != ActivationFormat::F32 {
                    kernels.quantise(layout, format, block.row(0));
                }
            }
        });
        for slice in slices {
            inputs.leave_states(self.cache, layer, slice, taps - 1);
        }
    }
}

/// The state a sequence is in before a slice of it; `None` at its beginning.
fn state_before<'c>(cache: &'c Cache<'_>, layer: usize, slice: &SequenceSlice<'_>) -> Option<&'c [f32]> {
    (slice.state_before != NONE).then(|| cache.layer_state(layer, slice.state_before))
}

/// Rows `[z, c, x]` of all tokens.
struct Inputs<'b> {
    mixed: &'b [f32],
    stride: usize,
    e: usize,
}

impl<'b> Inputs<'b> {
    /// `z` of the token `kept` before `token`, which may lie before the slice; `None` before the sequence.
    fn at<'s>(
        &self,
        slice: &SequenceSlice<'_>,
        before: Option<&'s [f32]>,
        token: usize,
        kept: usize,
    ) -> Option<&'s [f32]>
    where
        'b: 's,
    {
        match token.checked_sub(slice.first + kept) {
            Some(t) => Some(&self.mixed[(slice.first + t) * self.stride..][..self.e]),
            None => before.map(|state| &state[(token - slice.first) * self.e..][..self.e]),
        }
    }

    fn gate(&self, token: usize) -> &[f32] {
        &self.mixed[token * self.stride + self.e..][..self.e]
    }

    /// Writes the state behind the slice, and behind every page that it comes to the end of.
    fn leave_states(&self, cache: &mut Cache<'_>, layer: usize, slice: &SequenceSlice<'_>, kept: usize) {
        let end = slice.position + slice.n;
        let pages = slice.position / PAGE_TOKENS..end / PAGE_TOKENS;
        let checkpoints =
            pages.map(|page| (slice.checkpoints.get(page).copied().unwrap_or(NONE), (page + 1) * PAGE_TOKENS));
        for (state, position) in checkpoints.filter(|(state, _)| *state != NONE) {
            self.leave_state(cache, layer, slice, (state, position - slice.position), kept);
        }
        self.leave_state(cache, layer, slice, (slice.state, slice.n), kept);
    }

    /// The state behind the first `n` tokens of the slice. The sequence's own may be that before it: rows then only move
    /// towards the beginning, so that none is overwritten before it is read.
    fn leave_state(
        &self,
        cache: &mut Cache<'_>,
        layer: usize,
        slice: &SequenceSlice<'_>,
        (state, n): (u32, usize),
        kept: usize,
    ) {
        let e = self.e;
        for row in 0..kept {
            // Counted from the first row of the state before.
            let from = row + n;
            match from.checked_sub(kept) {
                Some(t) => {
                    let z = &self.mixed[(slice.first + t) * self.stride..][..e];
                    cache.layer_state_mut(layer, state)[row * e..][..e].copy_from_slice(z);
                }
                None if slice.state_before == NONE => cache.layer_state_mut(layer, state)[row * e..][..e].fill(0.0),
                None => cache.copy_state_row(layer, (slice.state_before, from), (state, row), e),
            }
        }
    }
}
