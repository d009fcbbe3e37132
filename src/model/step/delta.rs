//! The gated delta rule of a layer (see [`crate::kernels`]), whose state is the last inputs of the convolution and a
//! matrix for every value head.
//!
//! In a state come first, head by head of queries, keys and values, the inputs `[taps - 1][head_dim]`, the oldest token
//! first; then, head by head of values and strip by strip of its columns, what it holds: `[head_dim][cols]`. Neither
//! channels nor columns know of each other, so each is one worker's, for all tokens of all sequences.

use super::buffers::{Buffers, RecurrentBuffers};
use super::pass::ForwardPass;
use super::product::multiply;
use super::recurrent::{Convolution, each_run, softplus};
use super::routing::sigmoid;
use super::rows::{each_row, padded, share};
use crate::kernels::{
    Activation, ActivationLayout, DELTA_CHUNK, DeltaToken, Partition, RowNorm, STRIP_COLS, Zipped, strip_cols,
};
use crate::model::config::{DELTA_DIM_MAX, DeltaNetConfig, MixerConfig};
use crate::model::weights::{DeltaNetWeights, DeltaRates};

impl ForwardPass<'_, '_> {
    fn delta_config(&self, layer: usize) -> DeltaNetConfig {
        match self.config.layers[layer].mixer {
            MixerConfig::DeltaNet(delta) => delta,
            _ => unreachable!("this layer has a delta rule"),
        }
    }

    /// Queries, keys, values, gates and what becomes rates, of the normed stream.
    pub fn project_delta(&mut self, delta: &DeltaNetWeights) {
        let (n, tools) = (self.tokens.len(), self.tools());
        let Buffers { acts, recurrent: RecurrentBuffers { convolved, z, strengths, decays, .. }, workers, .. } =
            &mut *self.buffers;
        let (qkv, z) = ((&delta.qkv, &mut **convolved), (&delta.z, &mut **z));
        match &delta.rates {
            DeltaRates::Together(both) => {
                multiply(tools, workers, (acts, n), [qkv, z, (both, &mut **strengths)], false);
            }
            DeltaRates::Apart { strength, decay } => {
                let products = [qkv, z, (strength, &mut **strengths), (decay, &mut **decays)];
                multiply(tools, workers, (acts, n), products, false);
            }
        }
    }

    /// The convolution over queries, keys and values, each head of queries and keys then scaled to a length of its own; and
    /// the rates, `strength = sigmoid(b)` and `decay = exp(factor * softplus(a + bias))`.
    pub fn convolve_delta(&mut self, layer: usize, delta: &DeltaNetWeights) {
        let config = self.delta_config(layer);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let DeltaNetConfig { n_key_heads, head_dim, taps, .. } = config;
        let eps = self.config.norm_eps;
        let RecurrentBuffers { convolved, strengths, decays, rates, .. } = &mut self.buffers.recurrent;
        let made_of = Rates {
            config,
            are_together: matches!(delta.rates, DeltaRates::Together(_)),
            strengths,
            decays,
            bias: delta.decay_bias.values(self.region),
            factor: delta.decay_factor.values(self.region),
        };
        let rates = each_row(team, rates, (n, 2 * config.n_value_heads, 2 * config.n_value_heads));
        let convolution = Convolution {
            kernels,
            team,
            slices,
            weights: delta.conv.values(self.region),
            bias: &[],
            taps,
            block: head_dim,
        };
        convolution.run(
            (convolved, n, config.conv_width()),
            self.cache.layer_states_mut(layer),
            &|first, row| {
                // Queries are read with a factor of their own.
                let length = match first / head_dim {
                    head if head < n_key_heads => (head_dim as f32).sqrt().recip(),
                    head if head < 2 * n_key_heads => 1.0,
                    _ => return,
                };
                kernels.l2_norm_in_place(row, eps, length);
            },
            &|worker| {
                while let Some(mut row) = rates.next_for(worker) {
                    made_of.write(row.row0, row.row(0));
                }
            },
        );
    }

    /// The delta rule of every value head; leaves the state of every sequence, and a copy at the ends of pages that are to
    /// have one.
    pub fn delta_rule(&mut self, layer: usize) {
        let config = self.delta_config(layer);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let DeltaNetConfig { head_dim, n_value_heads, .. } = config;
        let (width, qkv_stride) = (config.value_width(), padded(config.conv_width()));
        let cols = strip_cols(head_dim);
        let RecurrentBuffers { convolved, out, rates, .. } = &mut self.buffers.recurrent;
        let (qkv, rates) = (&**convolved, &**rates);
        let (states, stride) = self.cache.layer_states_mut(layer);
        let n_states = states.len().div_ceil(stride);
        let states = &mut states[config.conv_state_len()..];
        let strips = Zipped::new(
            Partition::new(out, (n, width, padded(width)), (n.max(1), cols)).in_parts(team.size()),
            Partition::new(states, (n_states, config.delta_state_len(), stride), (n_states, head_dim * cols)),
        );
        team.run_dynamic(&|worker| {
            while let Some((mut out, mut states)) = strips.next_for(worker) {
                let (first, head) = (out.col0, out.col0 / head_dim);
                let key_head = config.key_head(head);
                let inputs = |token: usize| {
                    let (queries, rest) = qkv[token * qkv_stride..].split_at(config.key_width());
                    let (keys, values) = rest.split_at(config.key_width());
                    let rates = &rates[(token * n_value_heads + head) * 2..][..2];
                    let query = &queries[key_head * head_dim..][..head_dim];
                    let key = &keys[key_head * head_dim..][..head_dim];
                    (DeltaToken { query, key, decay: rates[0], strength: rates[1] }, &values[first..][..cols])
                };
                let mut results = [0.0; DELTA_CHUNK * STRIP_COLS];
                each_run(slices, &mut states, DELTA_CHUNK, |tokens, state| {
                    let results = &mut results[..tokens.len() * cols];
                    for (token, values) in tokens.clone().zip(results.chunks_exact_mut(cols)) {
                        values.copy_from_slice(inputs(token).1);
                    }
                    if tokens.len() == DELTA_CHUNK {
                        let chunk = std::array::from_fn(|i| inputs(tokens.start + i).0);
                        kernels.delta_chunk(state, &chunk, results);
                    } else {
                        kernels.delta_step(state, &inputs(tokens.start).0, results);
                    }
                    for (token, results) in tokens.zip(results.chunks_exact(cols)) {
                        out.row(token).copy_from_slice(results);
                    }
                });
            }
        });
    }

    /// `silu(z) * RMSNorm(results)`, head by head, into the activation records.
    pub fn gate_delta(&mut self, layer: usize, delta: &DeltaNetWeights) {
        let config = self.delta_config(layer);
        let (n, kernels, team) = (self.tokens.len(), self.kernels, self.team);
        let (width, head_dim) = (config.value_width(), config.head_dim);
        let norm = RowNorm::rms(delta.norm.values(self.region), self.config.norm_eps);
        let Buffers { acts, recurrent: RecurrentBuffers { z, out, .. }, .. } = &mut *self.buffers;
        let (z, results) = (&**z, &**out);
        let layout = ActivationLayout::new(width);
        let format = kernels.activation_format(delta.output.weight.ty, n);
        let records = each_row(team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            let mut normed = [0.0; DELTA_DIM_MAX];
            let normed = &mut normed[..head_dim];
            while let Some(mut block) = records.next_for(worker) {
                let row = block.row0 * padded(width)..block.row0 * padded(width) + width;
                let heads = z[row.clone()].chunks_exact(head_dim).zip(results[row].chunks_exact(head_dim));
                let record = block.row(0);
                for ((z, result), out) in heads.zip(layout.values_mut(record).chunks_exact_mut(head_dim)) {
                    kernels.norm(result, &norm, normed);
                    kernels.activate(Activation::Silu, z, Some(normed), out);
                }
                kernels.quantise(layout, format, record);
            }
        });
    }
}

/// What strengths and decays are made of.
struct Rates<'p> {
    config: DeltaNetConfig,
    are_together: bool,
    /// `[n, padded(n_value_heads)]`, or both together, twice as wide.
    strengths: &'p [f32],
    decays: &'p [f32],
    bias: &'p [f32],
    factor: &'p [f32],
}

impl Rates<'_> {
    /// Those of a token, `[n_value_heads, 2]`: decay and strength.
    fn write(&self, token: usize, out: &mut [f32]) {
        let n = self.config.n_value_heads;
        for (head, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (strength, decay) = if self.are_together {
                let group = self.config.group();
                let row = &self.strengths[token * padded(2 * n)..];
                let at = head / group * 2 * group + head % group;
                (row[at], row[at + group])
            } else {
                let at = token * padded(n) + head;
                (self.strengths[at], self.decays[at])
            };
            let rate = self.factor[head] * softplus(decay + self.bias[head]);
            *out = [rate.exp(), sigmoid(strength)];
        }
    }
}
