//! What mixers with a state have in common: the tokens of sequences in turn, and the causal convolution before a recurrence.

use std::ops::Range;

use super::rows::padded;
use crate::kernels::{Kernels, OutTile, Partition, Team, Zipped};
use crate::model::cache::{NONE, PAGE_TOKENS};
use crate::model::config::{DELTA_DIM_MAX, TAPS_MAX};
use crate::model::sequence::SequenceSlice;

/// Runs `step` with the tokens of every slice and its sequence's part of the state, whose rows are those of `states`: at
/// first what the sequence goes on from, in the end what it has come to, with copies where they are wanted. Tokens come
/// `run` at once where all of them from a multiple of `run` in the sequence are there, else one by one; `run` divides pages.
pub(super) fn each_run(
    slices: &[SequenceSlice<'_>],
    states: &mut OutTile<'_, f32>,
    run: usize,
    mut step: impl FnMut(Range<usize>, &mut [f32]),
) {
    assert!(PAGE_TOKENS.is_multiple_of(run));
    for slice in slices {
        let state = slice.state as usize;
        match slice.state_before {
            NONE => states.row(state).fill(0.0),
            before if before != slice.state => states.copy_row(before as usize, state),
            _ => {}
        }
        let mut done = 0;
        while done < slice.n {
            let start = slice.position + done;
            let n = if start.is_multiple_of(run) && done + run <= slice.n { run } else { 1 };
            step(slice.first + done..slice.first + done + n, states.row(state));
            done += n;
            let end = start + n;
            if end.is_multiple_of(PAGE_TOKENS) {
                match slice.checkpoints.get(end / PAGE_TOKENS - 1) {
                    None | Some(&NONE) => {}
                    Some(&checkpoint) => states.copy_row(state, checkpoint as usize),
                }
            }
        }
    }
}

/// The same with one token after the other.
pub(super) fn each_token(
    slices: &[SequenceSlice<'_>],
    states: &mut OutTile<'_, f32>,
    mut step: impl FnMut(usize, &mut [f32]),
) {
    each_run(slices, states, 1, |tokens, state| step(tokens.start, state));
}

/// A causal convolution over the tokens of every sequence, and SiLU of it. States begin with its last inputs, block by block
/// of channels `[taps - 1][block]`, the oldest token first.
pub(super) struct Convolution<'p> {
    pub kernels: &'p Kernels,
    pub team: &'p dyn Team,
    pub slices: &'p [SequenceSlice<'p>],
    /// `[channels][taps]`
    pub weights: &'p [f32],
    /// `[channels]`, or empty.
    pub bias: &'p [f32],
    pub taps: usize,
    /// Channels that are worked on at once: a divisor of all, at most [`DELTA_DIM_MAX`].
    pub block: usize,
}

impl Convolution<'_> {
    /// Of the rows `(x, n, channels)` where they lie, with what a layer has in all states. `then` goes on with what has
    /// become of a token's block, from a channel on; `beside` is done by every worker under the same barrier.
    pub(super) fn run(
        &self,
        (x, n, channels): (&mut [f32], usize, usize),
        (states, stride): (&mut [f32], usize),
        then: &(dyn Fn(usize, &mut [f32]) + Sync),
        beside: &(dyn Fn(usize) + Sync),
    ) {
        let Convolution { kernels, team, slices, taps, block, .. } = *self;
        let n_states = states.len().div_ceil(stride);
        let blocks = Zipped::new(
            Partition::new(x, (n, channels, padded(channels)), (n.max(1), block)).in_parts(team.size()),
            Partition::new(states, (n_states, (taps - 1) * channels, stride), (n_states, (taps - 1) * block)),
        );
        team.run_dynamic(&|worker| {
            let mut by_tap = [0.0; TAPS_MAX * DELTA_DIM_MAX];
            let by_tap = &mut by_tap[..taps * block];
            while let Some((mut inputs, mut states)) = blocks.next_for(worker) {
                let first = inputs.col0;
                for (i, weights) in self.weights[first * taps..][..block * taps].chunks_exact(taps).enumerate() {
                    weights.iter().enumerate().for_each(|(tap, weight)| by_tap[tap * block + i] = *weight);
                }
                let bias = self.bias.get(first..first + block).unwrap_or_default();
                each_token(slices, &mut states, |token, history| {
                    let row = inputs.row(token);
                    kernels.conv_silu(history, (by_tap, bias), row);
                    then(first, row);
                });
            }
            beside(worker);
        });
    }
}

/// `ln(1 + e^x)`; above 20 that is `x`, to the precision of f32.
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
