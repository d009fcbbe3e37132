//! Feed-forward layers made of experts: tokens are sorted by expert, and each expert's matrices meet all their rows at once.
//!
//! A block of work is a group of an expert's rows times a stripe of its matrix, so it costs what it holds, whichever expert
//! it belongs to. Activations are prepared once per token; a worker copies those of a group beside its scratch when it starts
//! on the group.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::buffers::{Buffers, WorkerScratch};
use super::pass::ForwardPass;
use super::product::{Tools, multiply, scale_and_shift};
use super::routing::{Routed, Scores, choose, selection_keys, sigmoid};
use super::rows::{each_row, padded, share};
use crate::kernels::{
    Activation, ActivationFormat, ActivationLayout, Activations, Matrix, Partition, STREAM_TOKENS_MAX,
};
use crate::model::config::{EXPERTS_MAX, Experts};
use crate::model::weights::{Linear, MoeFfn, Weight};
use crate::quant::PANEL_ROWS;

impl ForwardPass<'_, '_> {
    /// Scores the experts for every token of the normed stream, chooses the best of them, and sorts the tokens by expert; maps
    /// the stream to what experts work on, if it is not that.
    pub fn route(&mut self, moe: &MoeFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let experts = moe.experts;
        let Experts { count, used, .. } = experts;
        let Buffers { acts, routed, workers, .. } = &mut *self.buffers;
        let scores = (&moe.router, &mut *routed.scores);
        match &moe.latent {
            Some([down, _]) => multiply(tools, workers, (acts, n), [scores, (down, &mut *routed.latent)], false),
            None => multiply(tools, workers, (acts, n), [scores], false),
        }
        let scores = &*routed.scores;
        let selection_bias = moe.selection_bias.as_ref().map(|bias| bias.values(self.region));
        let partition = each_row(self.team, routed.chosen, (n, used, used));
        share(self.team, n, &|worker| {
            let mut keys = [0f32; EXPERTS_MAX];
            let keys = &mut keys[..count];
            while let Some(mut block) = partition.next_for(worker) {
                let scores = &scores[block.row0 * padded(count)..][..count];
                selection_keys(scores, &experts, selection_bias, keys);
                choose(keys, block.row(0));
            }
        });
        routed.sort(n, experts);
    }

    /// Puts what experts work on in the place of the normed stream, where it is not that.
    pub fn enter_latent(&mut self, moe: &MoeFfn) {
        let (n, width) = (self.n_rows, moe.up.weight.cols);
        let Buffers { acts, routed, .. } = &mut *self.buffers;
        let (latent, layout) = (&*routed.latent, ActivationLayout::new(width));
        let records = acts.writable(layout, ActivationFormat::F32);
        for (row, record) in records.chunks_exact_mut(layout.bytes()).take(n).enumerate() {
            layout.values_mut(record).copy_from_slice(&latent[row * padded(width)..][..width]);
        }
    }

    /// Gate, if there are any, and up projections of the normed stream, which stays in the activation records, at every
    /// token's experts.
    pub fn project_experts(&mut self, moe: &MoeFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, routed, workers, .. } = &mut *self.buffers;
        let groups = Groups {
            expert_of: routed.expert_of,
            cuts: &routed.cuts[..=routed.n_groups],
            token_of: Some(routed.token_of),
        };
        match &moe.gate {
            Some(gate) => multiply_groups(tools, workers, (acts, n), &groups, [gate, &moe.up], routed.wide),
            None => multiply_groups(tools, workers, (acts, n), &groups, [&moe.up], routed.wide),
        }
    }

    /// Multiplies gate and up projections by what each token's experts weigh, where that is what experts are given: maps
    /// without biases are linear.
    fn weigh_inputs(&mut self, moe: &MoeFfn) {
        let experts = moe.experts;
        let (n, f, count, used) = (2 * self.n_rows * experts.used, experts.n_ff, experts.count, experts.used);
        let Routed { scores, chosen, token_of, expert_of, cuts, n_groups, wide, .. } = &mut self.buffers.routed;
        let (scores, chosen, token_of, expert_of) = (&**scores, &**chosen, &**token_of, &**expert_of);
        let cuts = &cuts[..=*n_groups];
        let partition = each_row(self.team, wide, (n, f, padded(f)));
        share(self.team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                // A group has the rows of gate, then those of up.
                let group = cuts.partition_point(|&cut| 2 * cut as usize <= block.row0) - 1;
                let (first, end) = (cuts[group] as usize, cuts[group + 1] as usize);
                let token = token_of[first + (block.row0 - 2 * first) % (end - first)] as usize;
                let chosen = &chosen[token * used..][..used];
                Scores(&scores[token * padded(count)..][..count]).weights(&experts, chosen, |i, weight| {
                    if chosen[i] == expert_of[group] {
                        block.row(0).iter_mut().for_each(|x| *x *= weight);
                    }
                });
            }
        });
    }

    /// `sum_k weight_k * down_k(activation(gate_k, up_k))` over each token's experts, added to the residual stream; of experts
    /// that are apart it goes to the branch of its own, and where experts do not work on the stream it is left in the
    /// activation records.
    pub fn add_experts(&mut self, moe: &MoeFfn, activation: Activation) {
        self.finish_experts(moe, activation);
        self.add_finished_experts(moe);
    }

    /// `down_k(activation(gate_k, up_k))` of each token's experts, held aside until [`ForwardPass::add_finished_experts`].
    pub fn finish_experts(&mut self, moe: &MoeFfn, activation: Activation) {
        let Experts { used, n_ff: f, .. } = moe.experts;
        if moe.experts.weighs_input {
            self.weigh_inputs(moe);
        }
        let (n, kernels) = (self.n_rows, self.kernels);
        let layout = ActivationLayout::new(f);
        let (tools, format) = (self.tools(), kernels.activation_format(moe.down.weight.ty, n * used));
        let Buffers { routed, workers, .. } = &mut *self.buffers;
        let cuts = &routed.cuts[..=routed.n_groups];
        let (wide, is_gated) = (&*routed.wide, moe.gate.is_some());
        let rows = |bytes, cols, block| Partition::grouped(bytes, (cols, layout.bytes()), (cuts, 1), block);
        routed.hidden.write((kernels, self.team), (layout, format), rows, |(group, row), cols, out| {
            let at = |rows: u32| &wide[(row + rows as usize) * padded(f)..][cols.clone()];
            match is_gated {
                // The rows of gate, then those of up, before them twice as many rows as before the group.
                true => kernels.activate(activation, at(cuts[group]), Some(at(cuts[group + 1])), out),
                false => kernels.activate(activation, at(0), None, out),
            }
        });
        let groups = Groups { expert_of: routed.expert_of, cuts, token_of: None };
        multiply_groups(tools, workers, (&mut routed.hidden, n * used), &groups, [&moe.down], routed.wide);
    }

    /// The weighted sum of what each token's experts have come to, added to the residual stream, or left in the activation
    /// records where experts do not work on the stream.
    pub fn add_finished_experts(&mut self, moe: &MoeFfn) {
        let experts = moe.experts;
        let Experts { count, used, .. } = experts;
        let (n, e, kernels) = (self.n_rows, experts.width(self.config.n_embd), self.kernels);
        let Buffers { x, acts, apart, routed, .. } = &mut *self.buffers;
        let x = match experts.apart {
            true => {
                apart[..n * padded(e)].fill(0.0);
                apart
            }
            false => x,
        };
        let (chosen, row_of, scores, results) = (&*routed.chosen, &*routed.row_of, &*routed.scores, &*routed.wide);
        let add_to = |token: usize, scale: f32, out: &mut [f32]| {
            let (chosen, row_of) = (&chosen[token * used..][..used], &row_of[token * used..][..used]);
            let scores = &scores[token * padded(count)..][..count];
            Scores(scores).weights(&experts, chosen, |i, weight| {
                let weight = if experts.weighs_input { scale } else { weight * scale };
                let result = &results[row_of[i] as usize * padded(e)..][..e];
                out.iter_mut().zip(result).for_each(|(x, y)| *x += weight * y);
            });
        };
        match &moe.latent {
            None => {
                let (stream, scale) = (each_row(self.team, x, (n, e, padded(e))), self.config.residual_scale);
                share(self.team, n, &|worker| {
                    while let Some(mut block) = stream.next_for(worker) {
                        add_to(block.row0, scale, block.row(0));
                    }
                });
            }
            Some([_, up]) => {
                let layout = ActivationLayout::new(e);
                let format = kernels.activation_format(up.weight.ty, n);
                let records = acts.writable(layout, format);
                let records = each_row(self.team, records, (n, layout.bytes(), layout.bytes()));
                share(self.team, n, &|worker| {
                    while let Some(mut block) = records.next_for(worker) {
                        let (token, record) = (block.row0, block.row(0));
                        let sum = layout.values_mut(record);
                        sum.fill(0.0);
                        add_to(token, 1.0, sum);
                        kernels.quantise(layout, format, record);
                    }
                });
            }
        }
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
pub(super) struct Groups<'g> {
    pub expert_of: &'g [u32],
    pub cuts: &'g [u32],
    /// Which record is a row's; `None` if row and record go together.
    pub token_of: Option<&'g [u32]>,
}

/// Products of the rows of every group with the group's maps in all of `maps`, under one barrier. Of `out`, a group
/// takes as many rows as it has, once for each map in turn.
pub(super) fn multiply_groups<const N: usize>(
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
        if !sizes().any(|n| maps.iter().any(|map| kernels.activation_format(map.weight.ty, n) == format)) {
            continue;
        }
        records.ensure((kernels, team), n_records, format);
        let records = &*records.bytes;
        // A record's f32 values come first, whatever was made of them follows.
        let needed = if format == ActivationFormat::F32 { 0..cols * 4 } else { cols * 4..record_bytes };
        let partition = Partition::grouped(out, (width, padded(width)), (groups.cuts, N), block).in_parts(team.size());
        let partition = if few { partition.guided() } else { partition };
        team.run_dynamic(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            let WorkerScratch { kernels: tile_scratch, gathered } = &mut *scratch;
            let mut at_hand = None;
            while let Some(mut block) = partition.next_for(worker) {
                let (group, map) = (block.band / N, maps[block.band % N]);
                let weight = &map.weight;
                if kernels.activation_format(weight.ty, block.rows) != format {
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
                let acts = Activations { records, layout, n_tokens: n };
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
