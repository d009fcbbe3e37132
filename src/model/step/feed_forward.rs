//! Feed-forward parts: dense ones, and those of a shared expert.

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::padded;
use crate::kernels::{ActivationFormat, ActivationLayout, Kernels, Partition};
use crate::model::weights::{FeedForward, GatedFfn, MoeFfn, Weight};

/// What a feed-forward layer makes of its gate and up projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up`
    Swiglu,
    /// `gelu(gate) * up`
    Geglu,
    /// The clamped one of gpt-oss.
    SwigluClamped,
}

impl Activation {
    pub(super) fn apply(self, kernels: &Kernels, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Activation::Swiglu => kernels.silu_mul(gate, up, out),
            Activation::Geglu => kernels.gelu_mul(gate, up, out),
            Activation::SwigluClamped => kernels.swiglu_clamped(gate, up, out),
        }
    }
}

impl ForwardPass<'_, '_> {
    /// Everything of a feed-forward part that has a norm before it, added to the residual stream: of a dense layer
    /// `down(activation(gate(h)) * up(h))` with `h` the normed stream; of experts the weighted sum of as much over the chosen
    /// ones, and over the shared one.
    pub fn add_feed_forward(&mut self, norm: &Option<Weight>, ffn: &FeedForward, activation: Activation) {
        let Some(first) = ffn.first() else { return };
        self.norm(norm, first);
        match ffn {
            FeedForward::None => {}
            FeedForward::Dense(ffn) => self.add_gated(ffn, activation),
            FeedForward::Experts(moe) => self.add_moe(moe, activation),
        }
    }

    fn add_gated(&mut self, ffn: &GatedFfn, activation: Activation) {
        self.project_gate_up(ffn);
        self.activate(ffn, activation);
        self.add_product(&ffn.down);
    }

    pub(super) fn add_moe(&mut self, moe: &MoeFfn, activation: Activation) {
        self.route(moe);
        self.project_experts(moe);
        self.add_experts(moe, activation);
        let Some(shared) = &moe.shared else { return };
        match &shared.gate {
            None => self.add_gated(&shared.ffn, activation),
            Some(gate) => {
                self.score_shared(gate);
                self.project_gate_up(&shared.ffn);
                self.activate_shared(&shared.ffn, activation);
                self.add_product(&shared.ffn.down);
            }
        }
    }

    /// Gate and up projections of the normed stream, which stays in the activation records.
    pub fn project_gate_up(&mut self, ffn: &GatedFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, gate, up, workers, .. } = &mut *self.buffers;
        let products = [(&ffn.gate, &mut **gate), (&ffn.up, &mut **up)];
        multiply(tools, workers, (acts, n), products, false);
    }

    /// `activation(gate) * up` into the activation records.
    pub fn activate(&mut self, ffn: &GatedFfn, activation: Activation) {
        let kernels = self.kernels;
        self.activate_rows(ffn, |_, gate, up, out| activation.apply(kernels, gate, up, out));
    }

    /// The same, times the token's [`ForwardPass::score_shared`]: the map that follows is linear.
    fn activate_shared(&mut self, ffn: &GatedFfn, activation: Activation) {
        let kernels = self.kernels;
        let scores = std::mem::take(&mut self.buffers.shared_gates);
        self.activate_rows(ffn, |row, gate, up, out| {
            activation.apply(kernels, gate, up, out);
            out.iter_mut().for_each(|x| *x *= scores[row]);
        });
        self.buffers.shared_gates = scores;
    }

    fn activate_rows(&mut self, ffn: &GatedFfn, apply: impl Fn(usize, &[f32], &[f32], &mut [f32]) + Sync) {
        let down = &ffn.down.weight;
        let (n, f, kernels, team) = (self.n_rows, down.cols, self.kernels, self.team);
        // A factor meets values before they become anything else.
        let format = if down.factors.is_some() { ActivationFormat::F32 } else { kernels.activation_format(down.ty, n) };
        let layout = ActivationLayout::new(f);
        let Buffers { acts, gate, up, .. } = &mut *self.buffers;
        let (gate, up) = (&**gate, &**up);
        let rows = |bytes, cols, block| Partition::new(bytes, (n, cols, layout.bytes()), (1, block));
        acts.write((kernels, team), (layout, format), rows, |(_, row), cols, out| {
            let (gate, up) = (&gate[row * padded(f)..][cols.clone()], &up[row * padded(f)..][cols]);
            apply(row, gate, up, out);
        });
    }
}
