//! Feed-forward layers made of experts: tokens are sorted by expert, and each expert's matrices meet all their rows at once.
//!
//! A *row* is one token at one of its experts. Rows of an expert lie together and are cut into groups; a block of work is a
//! group times a stripe of its expert's matrix, so it costs what it holds, whichever expert it belongs to. Activations are
//! prepared once per token; a worker copies those of a group beside its scratch when it starts on the group.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::buffers::{Buffers, Carver, WorkerScratch};
use super::product::{Tools, multiply, scale_and_shift};
use super::{Activation, ForwardPass, Sizes, each_row, padded, share};
use crate::kernels::{ActLayout, ActType, Acts, Grid, Matrix, STREAM_TOKENS_MAX};
use crate::model::config::{Config, EXPERTS_MAX, ExpertGroups, Experts, Gating, LayerConfig};
use crate::model::weights::{Linear, MoeFfn, Weight};
use crate::quant::PANEL_ROWS;

/// Most rows of a group. A worker's copy of their activations stays in L2 (1 MiB at 4096 columns of int8), and unpacking
/// the weights anew for each group costs a few percent of multiplying with them.
const GROUP_ROWS_MAX: usize = 128;

/// Rows that register kernels take at once: groups of the same expert differ by no less.
const ROWS_STEP: usize = 8;

/// Least sum that weights are divided by when they are normalised: sigmoids may all be next to nothing.
const WEIGHTS_SUM_MIN: f32 = 6.103_515_6e-5;

const _: () = assert!(GROUP_ROWS_MAX.is_multiple_of(ROWS_STEP) && GROUP_ROWS_MAX > STREAM_TOKENS_MAX);

/// Which tokens met which experts, and what has become of them.
pub(super) struct Routed<'a> {
    /// Scores of the router, `[n_batch, padded(count)]`.
    scores: &'a mut [f32],
    /// The experts of each token, best first, `[n_batch, used]`.
    chosen: &'a mut [u32],
    /// The row of each choice, `[n_batch, used]`.
    row_of: &'a mut [u32],
    /// The token of each row, `[n_batch * used]`.
    token_of: &'a mut [u32],
    /// The expert of each group, `[groups_max]`.
    expert_of: &'a mut [u32],
    /// The first row of each group, and the end of the last, `[groups_max + 1]`.
    cuts: &'a mut [u32],
    n_groups: usize,
    /// Gate and up of each group, `[2 * rows, padded(n_ff)]`, later all results, `[rows, padded(n_embd)]`.
    wide: &'a mut [f32],
    /// Activation records of `n_ff` values, one per row.
    hidden: ActivationBuffer<'a>,
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
        let wide = if rows == 0 { 0 } else { (2 * padded(n_ff)).max(padded(config.n_embd)) };
        Routed {
            scores: carver.take(n * padded(count)),
            chosen: carver.take(rows),
            row_of: carver.take(rows),
            token_of: carver.take(rows),
            expert_of: carver.take(groups),
            cuts: carver.take(if rows == 0 { 0 } else { groups + 1 }),
            n_groups: 0,
            wide: carver.take(rows * wide),
            hidden: ActivationBuffer::new(carver.take(rows * ActLayout::new(n_ff).bytes())),
        }
    }

    /// Bytes that a worker needs for the activations of a group.
    pub(super) fn gathered_bytes(config: &Config, sizes: &Sizes) -> usize {
        match config.layers.iter().any(|layer| layer.experts().is_some()) {
            true => sizes.n_batch.min(GROUP_ROWS_MAX) * ActLayout::new(config.n_embd).bytes(),
            false => 0,
        }
    }

    /// Sorts the choices of `n` tokens by expert, and by token within one: a counting sort.
    fn sort(&mut self, n: usize, Experts { count, used, .. }: Experts) {
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
fn choose(keys: &[f32], chosen: &mut [u32]) {
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
fn selection_keys(scores: &[f32], experts: &Experts, selection_bias: Option<&[f32]>, keys: &mut [f32]) {
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
struct Scores<'s>(&'s [f32]);

impl Scores<'_> {
    /// The weight of each expert of `chosen`, handed to `put` in turn.
    fn weights(&self, experts: &Experts, chosen: &[u32], mut put: impl FnMut(usize, f32)) {
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

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl ForwardPass<'_, '_> {
    /// Scores the experts for every token of the normed stream, chooses the best of them, and sorts the tokens by expert.
    pub fn route(&mut self, moe: &MoeFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let experts = moe.experts;
        let Experts { count, used, .. } = experts;
        let Buffers { acts, routed, workers, .. } = &mut *self.buffers;
        let products = [(&moe.router, &mut *routed.scores)];
        multiply(tools, workers, (acts, n), products, false);
        let scores = &*routed.scores;
        let selection_bias = moe.selection_bias.as_ref().map(|bias| bias.values(self.region));
        let grid = each_row(self.team, routed.chosen, (n, used, used));
        share(self.team, n, &|worker| {
            let mut keys = [0f32; EXPERTS_MAX];
            let keys = &mut keys[..count];
            while let Some(mut block) = grid.next_of(worker) {
                let scores = &scores[block.row0 * padded(count)..][..count];
                selection_keys(scores, &experts, selection_bias, keys);
                choose(keys, block.row(0));
            }
        });
        routed.sort(n, experts);
    }

    /// Gate and up projections of the normed stream, which stays in the activation records, at every token's experts.
    pub fn project_experts(&mut self, moe: &MoeFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, routed, workers, .. } = &mut *self.buffers;
        let groups = Groups {
            expert_of: routed.expert_of,
            cuts: &routed.cuts[..=routed.n_groups],
            token_of: Some(routed.token_of),
        };
        multiply_groups(tools, workers, (acts, n), &groups, [&moe.gate, &moe.up], routed.wide);
    }

    /// `sum_k weight_k * down_k(activation(gate_k, up_k))` over each token's experts, added to the residual stream.
    pub fn add_experts(&mut self, moe: &MoeFfn, activation: Activation) {
        let experts = moe.experts;
        let Experts { count, used, n_ff: f, .. } = experts;
        let (n, e, kernels) = (self.n_rows, self.config.n_embd, self.kernels);
        let layout = ActLayout::new(f);
        let (tools, format) = (self.tools(), kernels.act_type(moe.down.weight.ty, n * used));
        let Buffers { x, routed, workers, .. } = &mut *self.buffers;
        let cuts = &routed.cuts[..=routed.n_groups];
        let wide = &*routed.wide;
        let rows = |bytes, cols, block| Grid::grouped(bytes, (cols, layout.bytes()), (cuts, 1), block);
        routed.hidden.write((kernels, self.team), (layout, format), rows, |(group, row), cols, out| {
            // The rows of gate, then those of up, before them twice as many rows as before the group.
            let at = |rows: u32| &wide[(row + rows as usize) * padded(f)..][..f];
            let (gate, up) = (&at(cuts[group])[cols.clone()], &at(cuts[group + 1])[cols]);
            activation.apply(kernels, gate, up, out);
        });
        let groups = Groups { expert_of: routed.expert_of, cuts, token_of: None };
        multiply_groups(tools, workers, (&mut routed.hidden, n * used), &groups, [&moe.down], routed.wide);
        let (chosen, row_of, scores, results) = (&*routed.chosen, &*routed.row_of, &*routed.scores, &*routed.wide);
        let grid = each_row(self.team, x, (n, e, padded(e)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = grid.next_of(worker) {
                let token = block.row0;
                let (chosen, row_of) = (&chosen[token * used..][..used], &row_of[token * used..][..used]);
                let scores = &scores[token * padded(count)..][..count];
                Scores(scores).weights(&experts, chosen, |i, weight| {
                    let result = &results[row_of[i] as usize * padded(e)..][..e];
                    block.row(0).iter_mut().zip(result).for_each(|(x, y)| *x += weight * y);
                });
            }
        });
    }

    /// The sigmoid of the dot product of each token's normed stream with `gate`: what its shared expert counts.
    pub(super) fn score_shared(&mut self, gate: &Weight) {
        let gate = gate.values(self.region);
        let Buffers { acts, shared_gates, .. } = &mut *self.buffers;
        assert!(acts.has_f32());
        let layout = acts.layout();
        let records = acts.bytes.chunks_exact(layout.bytes());
        for (score, record) in shared_gates.iter_mut().zip(records).take(self.n_rows) {
            // Sums of 16 keep rounding below that of the products around it.
            let dot = |(x, gate): (&[f32], &[f32])| x.iter().zip(gate).map(|(x, gate)| x * gate).sum::<f32>();
            let parts = layout.values(record).chunks(16).zip(gate.chunks(16)).map(dot);
            *score = sigmoid(parts.sum());
        }
    }
}

/// Rows by group.
struct Groups<'g> {
    expert_of: &'g [u32],
    cuts: &'g [u32],
    /// Which record is a row's; `None` if row and record go together.
    token_of: Option<&'g [u32]>,
}

/// Products of the rows of every group with the group's maps in all of `maps`, under one barrier. Of `out`, a group
/// takes as many rows as it has, once for each map in turn.
fn multiply_groups<const N: usize>(
    Tools { kernels, team, region, tile }: Tools<'_>,
    workers: &[Mutex<WorkerScratch<'_>>],
    (records, n_records): (&mut ActivationBuffer<'_>, usize),
    groups: &Groups<'_>,
    maps: [&Linear; N],
    out: &mut [f32],
) {
    let layout = records.layout();
    let (cols, width) = (layout.cols(), maps[0].weight.rows.next_multiple_of(PANEL_ROWS));
    let record_bytes = layout.bytes();
    let sizes = || groups.cuts.windows(2).map(|cut| (cut[1] - cut[0]) as usize);
    let few = sizes().all(|n| n <= STREAM_TOKENS_MAX);
    // As for one matrix.
    let block = match few {
        true => PANEL_ROWS,
        false => {
            (sizes().len() * N * width / kernels.stripe_rows() / (team.size() * 8)).clamp(1, 8) * kernels.stripe_rows()
        }
    };
    for format in records.format().and_others() {
        if !sizes().any(|n| maps.iter().any(|map| kernels.act_type(map.weight.ty, n) == format)) {
            continue;
        }
        records.ensure((kernels, team), n_records, format);
        let records = &*records.bytes;
        // A record's f32 values come first, whatever was made of them follows.
        let needed = if format == ActType::F32 { 0..cols * 4 } else { cols * 4..record_bytes };
        let grid = Grid::grouped(out, (width, padded(width)), (groups.cuts, N), block).in_parts(team.size());
        let grid = if few { grid.tapered() } else { grid };
        team.drain(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let WorkerScratch { kernels: tile_scratch, gathered } = &mut *scratch;
            let mut at_hand = None;
            while let Some(mut block) = grid.next_of(worker) {
                let (group, map) = (block.band / N, maps[block.band % N]);
                let weight = &map.weight;
                if kernels.act_type(weight.ty, block.rows) != format {
                    continue;
                }
                let rows = groups.cuts[group] as usize..groups.cuts[group + 1] as usize;
                let n = rows.len();
                let first = match groups.token_of.map(|tokens| &tokens[rows.clone()]) {
                    None => Some(rows.start),
                    // Tokens rise within a group.
                    Some(tokens) if (tokens[n - 1] - tokens[0]) as usize == n - 1 => Some(tokens[0] as usize),
                    Some(tokens) => {
                        if at_hand.replace(group) != Some(group) {
                            for (out, &token) in gathered.chunks_exact_mut(record_bytes).zip(tokens) {
                                let record = &records[token as usize * record_bytes..][..record_bytes];
                                out[needed.clone()].copy_from_slice(&record[needed.clone()]);
                            }
                        }
                        None
                    }
                };
                let records = match first {
                    Some(first) => &records[first * record_bytes..][..n * record_bytes],
                    None => &gathered[..n * record_bytes],
                };
                let acts = Acts { records, layout, n_tokens: n };
                let expert = groups.expert_of[group] as usize;
                let panels = weight.matrix_of(region, expert);
                let matrix = Matrix { panels, panel_bytes: weight.ty.panel_bytes(cols), cols };
                kernels.matmul(weight.ty, &matrix, &acts, &mut block, false, (tile, &mut **tile_scratch));
                scale_and_shift(&mut block, weight.factor_of(region, expert), map.bias_of(region, expert));
            }
        });
    }
}

#[cfg(test)]
mod tests;
