//! The selective state space of a layer (Mamba-2, see [`crate::kernels`]), whose state is the last inputs of the convolution
//! and a matrix for every head.
//!
//! In a state come first, block by block of channels, the inputs of the convolution; then, head by head and strip by strip of
//! its channels, `[state_dim][cols]`. Neither blocks nor strips know of each other, so each is one worker's, for all tokens
//! of all sequences.

use super::buffers::{Buffers, RecurrentBuffers};
use super::pass::ForwardPass;
use super::product::multiply;
use super::recurrent::{Convolution, each_token, softplus};
use super::rows::{each_row, padded, share};
use crate::kernels::{Activation, ActivationLayout, Partition, RowNorm, SsmRates, Zipped, strip_cols};
use crate::model::config::{Mamba2Config, MixerConfig};
use crate::model::weights::{Linear, Mamba2Weights};

impl ForwardPass<'_, '_> {
    fn mamba2_config(&self, layer: usize) -> Mamba2Config {
        match self.config.layers[layer].mixer {
            MixerConfig::Mamba2(mamba) | MixerConfig::AttentionAndMamba2(_, mamba) => mamba,
            _ => unreachable!("this layer has a state space"),
        }
    }

    /// The state space over what [`ForwardPass::project_mamba2`] has made; results go to the activation records.
    pub fn mix_mamba2(&mut self, layer: usize, mamba: &Mamba2Weights) {
        self.convolve_mamba2(layer, mamba);
        self.scan_mamba2(layer, mamba);
        let norm = mamba.norm.as_ref().map(|norm| (norm.of(self.region), norm.len));
        self.gate_mamba(&mamba.output, norm);
    }

    /// Gates, what is convolved, and steps, of the normed stream, which stays in the activation records.
    pub fn project_mamba2(&mut self, mamba: &Mamba2Weights) {
        let (n, tools) = (self.tokens.len(), self.tools());
        let Buffers { acts, recurrent: RecurrentBuffers { convolved, z, decays, .. }, workers, .. } =
            &mut *self.buffers;
        let products = [(&mamba.z, &mut **z), (&mamba.conv_inputs, &mut **convolved), (&mamba.dt, &mut **decays)];
        multiply(tools, workers, (acts, n), products, false);
    }

    /// The convolution, and every head's rates: `dt = softplus(dt + bias)` and the decay `exp(dt * a)`.
    fn convolve_mamba2(&mut self, layer: usize, mamba: &Mamba2Weights) {
        let config = self.mamba2_config(layer);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let (heads, width) = (config.n_heads, config.conv_width());
        let [bias, a] = [&mamba.dt_bias, &mamba.a].map(|weight| weight.values(self.region));
        let RecurrentBuffers { convolved, decays, rates, .. } = &mut self.buffers.recurrent;
        let steps = &**decays;
        let rates = each_row(team, rates, (n, 2 * heads, 2 * heads));
        let convolution = Convolution {
            kernels,
            team,
            slices,
            weights: mamba.conv.values(self.region),
            bias: mamba.conv_bias.as_ref().map_or(&[], |bias| bias.values(self.region)),
            taps: config.taps,
            block: strip_cols(width),
        };
        convolution.run((convolved, n, width), self.cache.layer_states_mut(layer), &|_, _| {}, &|worker| {
            while let Some(mut row) = rates.next_for(worker) {
                let steps = &steps[row.row0 * padded(heads)..][..heads];
                for (head, out) in row.row(0).as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let dt = softplus(steps[head] + bias[head]);
                    *out = [(dt * a[head]).exp(), dt];
                }
            }
        });
    }

    /// Every token's turn of every head's state; leaves the state of every sequence, and a copy at the ends of pages that
    /// are to have one.
    fn scan_mamba2(&mut self, layer: usize, mamba: &Mamba2Weights) {
        let config = self.mamba2_config(layer);
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let Mamba2Config { n_heads, head_dim, n_groups, state_dim, .. } = config;
        let (inner, stride_x) = (config.inner(), padded(config.conv_width()));
        let cols = strip_cols(head_dim);
        let d = mamba.d.values(self.region);
        let RecurrentBuffers { convolved, out, rates, .. } = &mut self.buffers.recurrent;
        let (convolved, rates) = (&**convolved, &**rates);
        let (states, stride) = self.cache.layer_states_mut(layer);
        let n_states = states.len().div_ceil(stride);
        let states = &mut states[config.conv_state_len()..];
        let strips = Zipped::new(
            Partition::new(out, (n, inner, padded(inner)), (n.max(1), cols)).in_parts(team.size()),
            Partition::new(states, (n_states, config.ssm_state_len(), stride), (n_states, state_dim * cols)),
        );
        team.run_dynamic(&|worker| {
            while let Some((mut out, mut states)) = strips.next_for(worker) {
                let (first, head) = (out.col0, out.col0 / head_dim);
                let group = head / (n_heads / n_groups);
                each_token(slices, &mut states, |token, state| {
                    let row = &convolved[token * stride_x..];
                    let (b, c) = row[inner..].split_at(n_groups * state_dim);
                    let (b, c) = (&b[group * state_dim..][..state_dim], &c[group * state_dim..][..state_dim]);
                    let out = out.row(token);
                    out.copy_from_slice(&row[first..][..cols]);
                    let rates = &rates[(token * n_heads + head) * 2..][..2];
                    kernels.ssm_step(state, (b, c), out, SsmRates { decay: rates[0], dt: rates[1], d: d[head] });
                });
            }
        });
    }

    /// `RMSNorm(silu(z) * results)`, the norm group by group where there is one, into the activation records.
    pub(super) fn gate_mamba(&mut self, output: &Linear, norm: Option<(RowNorm<'_>, usize)>) {
        let (n, width, kernels) = (self.tokens.len(), output.weight.cols, self.kernels);
        let team = self.team;
        let Buffers { acts, recurrent: RecurrentBuffers { z, out, .. }, .. } = &mut *self.buffers;
        let (z, results) = (&**z, &**out);
        let layout = ActivationLayout::new(width);
        let format = kernels.activation_format(output.weight.ty, n);
        let records = each_row(team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = records.next_for(worker) {
                let row = block.row0 * padded(width)..block.row0 * padded(width) + width;
                let record = block.row(0);
                let out = layout.values_mut(record);
                kernels.activate(Activation::Silu, &z[row.clone()], Some(&results[row]), out);
                if let Some((norm, len)) = &norm {
                    for (group, out) in out.chunks_exact_mut(*len).enumerate() {
                        let weight = norm.weight.map(|weight| &weight[group * len..][..*len]);
                        kernels.norm_in_place(out, &RowNorm { weight, ..*norm });
                    }
                }
                kernels.quantise(layout, format, record);
            }
        });
    }
}
