//! Feed-forward parts: dense ones, and those of a shared expert.

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::padded;
use crate::kernels::{Activation, ActivationFormat, ActivationLayout, Partition};
use crate::model::weights::{DenseFfn, FeedForward, Linear, MoeFfn, Norm};

impl ForwardPass<'_, '_> {
    /// Everything of a feed-forward part that has a norm before it, added to the residual stream: of a dense layer
    /// `down(activation(gate(h)) * up(h))` with `h` the normed stream; of experts the weighted sum of as much over the chosen
    /// ones, and over the shared one.
    pub fn add_feed_forward(&mut self, norm: &Option<Norm>, ffn: &FeedForward, activation: Activation) {
        let Some(first) = ffn.first() else { return };
        self.norm(norm, first);
        self.add_parts(ffn, activation);
    }

    /// The same, held aside until [`ForwardPass::add_normed_held`].
    pub fn hold_feed_forward(&mut self, norm: &Option<Norm>, ffn: &FeedForward, activation: Activation) {
        let Some(first) = ffn.first() else { return };
        self.norm(norm, first);
        // It is added to nothing, in the place of the stream.
        self.buffers.branch.fill(0.0);
        self.swap_held();
        self.add_parts(ffn, activation);
        self.swap_held();
    }

    fn swap_held(&mut self) {
        let Buffers { x, branch, .. } = &mut *self.buffers;
        std::mem::swap(x, branch);
    }

    fn add_parts(&mut self, ffn: &FeedForward, activation: Activation) {
        match ffn {
            FeedForward::None => {}
            FeedForward::Dense(ffn) => self.add_dense(ffn, activation),
            FeedForward::Experts(moe) => self.add_moe(moe, activation),
        }
    }

    fn add_dense(&mut self, ffn: &DenseFfn, activation: Activation) {
        self.project_gate_up(ffn);
        self.activate(ffn, activation);
        self.add_product(&ffn.down);
    }

    pub(super) fn add_moe(&mut self, moe: &MoeFfn, activation: Activation) {
        let [own, of_shared] = moe.experts.activations.map(|own| own.unwrap_or(activation));
        self.route(moe);
        if let Some([_, up]) = &moe.latent {
            // What experts work on takes the place of the normed stream, which the shared one has met by then.
            self.add_shared(moe, of_shared);
            self.enter_latent(moe);
            self.project_experts(moe);
            self.add_experts(moe, own);
            return self.add_product(up);
        }
        self.project_experts(moe);
        self.add_experts(moe, own);
        self.add_shared(moe, of_shared);
    }

    fn add_shared(&mut self, moe: &MoeFfn, activation: Activation) {
        let Some(shared) = &moe.shared else { return };
        match &shared.gate {
            None if moe.experts.shared_scale == 1.0 => return self.add_dense(&shared.ffn, activation),
            None => self.buffers.shared_gates.fill(moe.experts.shared_scale),
            Some(gate) => self.score_shared(gate),
        }
        self.project_gate_up(&shared.ffn);
        self.activate_shared(&shared.ffn, activation);
        self.add_product(&shared.ffn.down);
    }

    /// Gate, if there is one, and up projections of the normed stream, which stays in the activation records.
    pub fn project_gate_up(&mut self, ffn: &DenseFfn) {
        let (n, tools) = (self.n_rows, self.tools());
        let Buffers { acts, gate, up, workers, .. } = &mut *self.buffers;
        match &ffn.gate {
            Some(map) => multiply(tools, workers, (acts, n), [(map, &mut **gate), (&ffn.up, &mut **up)], false),
            None => multiply(tools, workers, (acts, n), [(&ffn.up, &mut **up)], false),
        }
    }

    /// `activation(gate) * up`, or `activation(up)` without a gate, into the activation records.
    pub fn activate(&mut self, ffn: &DenseFfn, activation: Activation) {
        self.activate_rows(ffn, activation, None, self.format_of(&ffn.down));
    }

    /// The same, normed.
    pub fn activate_and_norm(&mut self, ffn: &DenseFfn, activation: Activation, norm: &Option<Norm>) {
        self.activate_rows(ffn, activation, None, ActivationFormat::F32);
        self.norm_records(norm);
    }

    /// What activations become on the way to `next`. A factor meets values before they become anything else.
    fn format_of(&self, next: &Linear) -> ActivationFormat {
        match next.weight.factors {
            Some(_) => ActivationFormat::F32,
            None => self.kernels.activation_format(next.weight.ty, self.n_rows),
        }
    }

    /// The same, times the token's [`ForwardPass::score_shared`]: the map that follows is linear.
    fn activate_shared(&mut self, ffn: &DenseFfn, activation: Activation) {
        let scores = std::mem::take(&mut self.buffers.shared_gates);
        self.activate_rows(ffn, activation, Some(scores), self.format_of(&ffn.down));
        self.buffers.shared_gates = scores;
    }

    fn activate_rows(
        &mut self,
        ffn: &DenseFfn,
        activation: Activation,
        scores: Option<&[f32]>,
        format: ActivationFormat,
    ) {
        let (n, f, kernels, team) = (self.n_rows, ffn.down.weight.cols, self.kernels, self.team);
        let layout = ActivationLayout::new(f);
        let Buffers { acts, gate, up, .. } = &mut *self.buffers;
        let (gate, up, is_gated) = (&**gate, &**up, ffn.gate.is_some());
        let rows = |bytes, cols, block| Partition::new(bytes, (n, cols, layout.bytes()), (1, block));
        acts.write((kernels, team), (layout, format), rows, |(_, row), cols, out| {
            let [gate, up] = [gate, up].map(|x| &x[row * padded(f)..][cols.clone()]);
            match is_gated {
                true => kernels.activate(activation, gate, Some(up), out),
                false => kernels.activate(activation, up, None, out),
            }
            if let Some(scores) = scores {
                out.iter_mut().for_each(|x| *x *= scores[row]);
            }
        });
    }
}
