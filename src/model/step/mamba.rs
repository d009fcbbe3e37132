//! The selective state space of the first Mamba (see [`crate::kernels`]): what is written, read and forgotten is made of the
//! convolved channels, and every channel has a step and rates of its own. A state is as in Mamba-2.

use super::buffers::{Buffers, RecurrentBuffers};
use super::pass::ForwardPass;
use super::product::multiply;
use super::recurrent::{Convolution, each_token, softplus};
use super::rows::{each_row, padded, share};
use crate::kernels::{ActivationLayout, Partition, STRIP_COLS, Zipped, strip_cols};
use crate::model::config::{MambaConfig, MixerConfig, RATED_STATE_DIM_MAX};
use crate::model::weights::{Linear, MambaWeights};

impl ForwardPass<'_, '_> {
    fn mamba_config(&self, layer: usize) -> MambaConfig {
        match self.config.layers[layer].mixer {
            MixerConfig::Mamba(mamba) => mamba,
            _ => unreachable!("this layer has a state space of the first kind"),
        }
    }

    /// The state space over the normed stream; results go to the activation records.
    pub fn mix_mamba(&mut self, layer: usize, mamba: &MambaWeights) {
        self.convolve_mamba(layer, mamba);
        self.select_mamba(layer, mamba);
        self.scan_mamba(layer, mamba);
        self.gate_mamba(&mamba.output, None);
    }

    fn convolve_mamba(&mut self, layer: usize, mamba: &MambaWeights) {
        let MambaConfig { inner, taps, .. } = self.mamba_config(layer);
        let (n, tools, slices) = (self.tokens.len(), self.tools(), self.slices);
        let Buffers { acts, recurrent: RecurrentBuffers { convolved, z, .. }, workers, .. } = &mut *self.buffers;
        let products = [(&mamba.conv_inputs, &mut **convolved), (&mamba.z, &mut **z)];
        multiply(tools, workers, (acts, n), products, false);
        let convolution = Convolution {
            kernels: self.kernels,
            team: self.team,
            slices,
            weights: mamba.conv.values(self.region),
            bias: mamba.conv_bias.as_ref().map_or(&[], |bias| bias.values(self.region)),
            taps,
            block: strip_cols(inner),
        };
        convolution.run((convolved, n, inner), self.cache.layer_states_mut(layer), &|_, _| {}, &|_| {});
    }

    /// What steps are made of, `b` and `c`, from the channels; and the steps, `softplus(dt)`.
    fn select_mamba(&mut self, layer: usize, mamba: &MambaWeights) {
        let MambaConfig { inner, dt_rank, state_dim, .. } = self.mamba_config(layer);
        let (n, kernels, team, tools) = (self.tokens.len(), self.kernels, self.team, self.tools());
        let width = self.mamba_config(layer).selection_width();
        let norms = mamba.norms.as_ref().map(|norms| norms.each_ref().map(|norm| norm.of(self.region)));
        let Buffers { acts, recurrent, workers, .. } = &mut *self.buffers;
        let RecurrentBuffers { convolved, strengths: selection, decays: steps, .. } = recurrent;
        let mut map = |map: &Linear, x: &[f32], stride: usize, out: &mut [f32]| {
            let (cols, format) = (map.weight.cols, kernels.activation_format(map.weight.ty, n));
            let layout = ActivationLayout::new(cols);
            let records = each_row(team, acts.writable(layout, format), (n, layout.bytes(), layout.bytes()));
            share(team, n, &|worker| {
                while let Some(mut block) = records.next_for(worker) {
                    let x = &x[block.row0 * stride..][..cols];
                    layout.values_mut(block.row(0)).copy_from_slice(x);
                    kernels.quantise(layout, format, block.row(0));
                }
            });
            multiply(tools, workers, (&mut *acts, n), [(map, out)], false);
        };
        map(&mamba.selection, convolved, padded(inner), selection);
        if let Some([dt, b, c]) = &norms {
            for row in selection.chunks_exact_mut(padded(width)).take(n) {
                let (of_dt, rest) = row.split_at_mut(dt_rank);
                kernels.norm_in_place(of_dt, dt);
                kernels.norm_in_place(&mut rest[..state_dim], b);
                kernels.norm_in_place(&mut rest[state_dim..2 * state_dim], c);
            }
        }
        map(&mamba.dt, selection, padded(width), steps);
        let steps = each_row(team, steps, (n, inner, padded(inner)));
        share(team, n, &|worker| {
            while let Some(mut block) = steps.next_for(worker) {
                block.row(0).iter_mut().for_each(|step| *step = softplus(*step));
            }
        });
    }

    /// As in Mamba-2, with rates of every channel.
    fn scan_mamba(&mut self, layer: usize, mamba: &MambaWeights) {
        let config = self.mamba_config(layer);
        let MambaConfig { inner, state_dim, dt_rank, .. } = config;
        let (n, slices, kernels, team) = (self.tokens.len(), self.slices, self.kernels, self.team);
        let (width, cols) = (padded(config.selection_width()), strip_cols(inner));
        let [a, d] = [&mamba.a, &mamba.d].map(|weight| weight.values(self.region));
        let RecurrentBuffers { convolved, out, strengths: selection, decays: steps, .. } = &mut self.buffers.recurrent;
        let (convolved, selection, steps) = (&**convolved, &**selection, &**steps);
        let (states, stride) = self.cache.layer_states_mut(layer);
        let n_states = states.len().div_ceil(stride);
        let states = &mut states[config.conv_state_len()..];
        let strips = Zipped::new(
            Partition::new(out, (n, inner, padded(inner)), (n.max(1), cols)).in_parts(team.size()),
            Partition::new(states, (n_states, config.ssm_state_len(), stride), (n_states, state_dim * cols)),
        );
        team.run_dynamic(&|worker| {
            let mut rates = [0.0; RATED_STATE_DIM_MAX * STRIP_COLS];
            let rates = &mut rates[..state_dim * cols];
            while let Some((mut out, mut states)) = strips.next_for(worker) {
                let first = out.col0;
                for (i, a) in a[first * state_dim..][..cols * state_dim].chunks_exact(state_dim).enumerate() {
                    a.iter().enumerate().for_each(|(dim, a)| rates[dim * cols + i] = *a);
                }
                each_token(slices, &mut states, |token, state| {
                    let at = token * padded(inner) + first;
                    let (b, c) = selection[token * width + dt_rank..][..2 * state_dim].split_at(state_dim);
                    let dt = &steps[at..at + cols];
                    let out = out.row(token);
                    out.copy_from_slice(&convolved[at..at + cols]);
                    kernels.ssm_step_by_channel((state, rates), (b, c), out, (dt, &d[first..first + cols]));
                });
            }
        });
    }
}
