//! Which tokens meet which experts: scores, choice and weights, and rows sorted by expert.
//!
//! A *row* is one token at one of its experts. Rows of an expert lie together and are cut into groups.

use super::activations::ActivationBuffer;
use super::carver::Carver;
use super::rows::padded;
use crate::kernels::{ActivationLayout, STREAM_TOKENS_MAX};
use crate::model::config::{Config, EXPERTS_MAX, ExpertGroups, Experts, Gating, LayerConfig};
use crate::model::sequence::Sizes;

/// Most rows of a group. A worker's copy of their activations stays in L2 (1 MiB at 4096 columns of int8), and unpacking
/// the weights anew for each group costs a few percent of multiplying with them.
pub(super) const GROUP_ROWS_MAX: usize = 128;

/// Rows that register kernels take at once: groups of the same expert differ by no less.
const ROWS_STEP: usize = 8;

/// Least sum that weights are divided by when they are normalised: sigmoids may all be next to nothing.
const WEIGHTS_SUM_MIN: f32 = 6.103_515_6e-5;

const _: () = assert!(GROUP_ROWS_MAX.is_multiple_of(ROWS_STEP) && GROUP_ROWS_MAX > STREAM_TOKENS_MAX);

/// Which tokens met which experts, and what has become of them.
pub(super) struct Routed<'a> {
    /// Scores of the router, `[n_batch, padded(count)]`.
    pub scores: &'a mut [f32],
    /// The experts of each token, best first, `[n_batch, used]`.
    pub chosen: &'a mut [u32],
    /// The row of each choice, `[n_batch, used]`.
    pub row_of: &'a mut [u32],
    /// The token of each row, `[n_batch * used]`.
    pub token_of: &'a mut [u32],
    /// The expert of each group, `[groups_max]`.
    pub expert_of: &'a mut [u32],
    /// The first row of each group, and the end of the last, `[groups_max + 1]`.
    pub cuts: &'a mut [u32],
    pub n_groups: usize,
    /// What experts work on where it is not the stream, `[n_batch, padded(latent)]`.
    pub latent: &'a mut [f32],
    /// Gate and up of each group, `[2 * rows, padded(n_ff)]`, later all results, `[rows, padded(width)]`.
    pub wide: &'a mut [f32],
    /// Activation records of `n_ff` values, one per row.
    pub hidden: ActivationBuffer<'a>,
}

impl<'a> Routed<'a> {
    /// Takes its parts.
    pub(super) fn cut(carver: &mut Carver<'a>, config: &Config, sizes: &Sizes) -> Routed<'a> {
        let layers = || config.layers.iter().filter_map(LayerConfig::experts);
        let most = |number: fn(&Experts) -> usize| layers().map(number).max().unwrap_or(0);
        let (n, count, used) = (sizes.n_batch, most(|e| e.count), most(|e| e.used));
        let (rows, n_ff) = (n * used, most(|e| e.n_ff));
        // An expert's rows make one group more than they fill.
        let groups = rows.min(count + rows / GROUP_ROWS_MAX);
        let wide = if rows == 0 { 0 } else { (2 * padded(n_ff)).max(padded(config.experts_width())) };
        Routed {
            scores: carver.take(n * padded(count)),
            chosen: carver.take(rows),
            row_of: carver.take(rows),
            token_of: carver.take(rows),
            expert_of: carver.take(groups),
            cuts: carver.take(if rows == 0 { 0 } else { groups + 1 }),
            n_groups: 0,
            latent: carver.take(n * padded(most(|e| e.latent.unwrap_or(0)))),
            wide: carver.take(rows * wide),
            hidden: ActivationBuffer::new(carver.take(rows * ActivationLayout::new(n_ff).bytes())),
        }
    }

    /// Bytes that a worker needs for the activations of a group.
    pub(super) fn gathered_bytes(config: &Config, sizes: &Sizes) -> usize {
        match config.layers.iter().any(|layer| layer.experts().is_some()) {
            true => sizes.n_batch.min(GROUP_ROWS_MAX) * ActivationLayout::new(config.experts_width()).bytes(),
            false => 0,
        }
    }

    /// Sorts the choices of `n` tokens by expert, and by token within one: a counting sort.
    pub(super) fn sort(&mut self, n: usize, Experts { count, used, .. }: Experts) {
        let chosen = &self.chosen[..n * used];
        let mut next = [0u32; EXPERTS_MAX];
        for &expert in chosen {
            next[expert as usize] += 1;
        }
        (self.n_groups, self.cuts[0]) = (0, 0);
        for (expert, next) in next[..count].iter_mut().enumerate() {
            let n_rows = std::mem::replace(next, self.cuts[self.n_groups]);
            let groups = n_rows.div_ceil(GROUP_ROWS_MAX as u32);
            let each = n_rows.div_ceil(groups.max(1)).next_multiple_of(ROWS_STEP as u32);
            let end = *next + n_rows;
            while self.cuts[self.n_groups] < end {
                self.expert_of[self.n_groups] = expert as u32;
                self.cuts[self.n_groups + 1] = end.min(self.cuts[self.n_groups] + each);
                self.n_groups += 1;
            }
        }
        for (choice, (&expert, row_of)) in chosen.iter().zip(&mut *self.row_of).enumerate() {
            let row = &mut next[expert as usize];
            *row_of = *row;
            self.token_of[*row as usize] = (choice / used) as u32;
            *row += 1;
        }
    }
}

/// The experts with the highest keys, best first; of equals the one with the lower number.
pub(super) fn choose(keys: &[f32], chosen: &mut [u32]) {
    let mut n = 0;
    for (expert, key) in keys.iter().enumerate() {
        let beaten = chosen[..n].iter().rev().take_while(|&&other| *key > keys[other as usize]).count();
        let at = n - beaten;
        if at < chosen.len() {
            n = (n + 1).min(chosen.len());
            chosen.copy_within(at..n - 1, at + 1);
            chosen[at] = expert as u32;
        }
    }
}

/// What the scores of one token become to choose experts by: softmax keeps their order, so that they do, unless something
/// is added to it or groups are compared.
pub(super) fn selection_keys(scores: &[f32], experts: &Experts, selection_bias: Option<&[f32]>, keys: &mut [f32]) {
    keys.copy_from_slice(scores);
    if selection_bias.is_none() && experts.groups.is_none() {
        return;
    }
    match experts.gating {
        Gating::Sigmoid => keys.iter_mut().for_each(|key| *key = sigmoid(*key)),
        Gating::Softmax => {
            let top = keys.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = keys.iter().map(|key| (key - top).exp()).sum();
            keys.iter_mut().for_each(|key| *key = (*key - top).exp() / total);
        }
        Gating::SoftmaxOfChosen => {}
    }
    for (key, bias) in keys.iter_mut().zip(selection_bias.into_iter().flatten()) {
        *key += bias;
    }
    if let Some(groups) = experts.groups {
        close_groups(groups, keys);
    }
}

/// Leaves the keys of the groups whose two best add up to most; those of the others become minus infinity.
fn close_groups(groups: ExpertGroups, keys: &mut [f32]) {
    let len = keys.len() / groups.count;
    let mut sums = [0f32; EXPERTS_MAX];
    let sums = &mut sums[..groups.count];
    for (sum, keys) in sums.iter_mut().zip(keys.chunks_exact(len)) {
        let best = keys.iter().fold([f32::NEG_INFINITY; 2], |[first, second], &key| match key {
            key if key > first => [key, first],
            key => [first, second.max(key)],
        });
        *sum = best[0] + best[1];
    }
    let mut open = [0u32; EXPERTS_MAX];
    choose(sums, &mut open[..groups.used]);
    for (group, keys) in keys.chunks_exact_mut(len).enumerate() {
        if !open[..groups.used].contains(&(group as u32)) {
            keys.fill(f32::NEG_INFINITY);
        }
    }
}

/// The scores of one token.
#[derive(Clone, Copy)]
pub(super) struct Scores<'s>(pub &'s [f32]);

impl Scores<'_> {
    /// The weight of each expert of `chosen`, handed to `put` in turn.
    pub(super) fn weights(&self, experts: &Experts, chosen: &[u32], mut put: impl FnMut(usize, f32)) {
        let of_chosen = || chosen.iter().map(|&expert| self.0[expert as usize]);
        let all = || self.0[..experts.count].iter().copied();
        // The softmax over all, scaled to the sum 1 over those chosen, is the softmax over those chosen.
        let alone = experts.gating == Gating::SoftmaxOfChosen || experts.normalised;
        let top = match alone {
            true => of_chosen().fold(f32::NEG_INFINITY, f32::max),
            false => all().fold(f32::NEG_INFINITY, f32::max),
        };
        let odds = |score: f32| match experts.gating {
            Gating::Sigmoid => sigmoid(score),
            _ => (score - top).exp(),
        };
        let total = match (experts.gating, alone) {
            (Gating::Sigmoid, true) => of_chosen().map(odds).sum::<f32>().max(WEIGHTS_SUM_MIN),
            (Gating::Sigmoid, false) => 1.0,
            (_, true) => of_chosen().map(odds).sum(),
            (_, false) => all().map(odds).sum(),
        };
        for (i, score) in of_chosen().enumerate() {
            put(i, odds(score) / total * experts.scale);
        }
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
