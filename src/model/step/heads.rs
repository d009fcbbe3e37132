//! Q, K and V: projection, norms, rotation, and the way into the cache.

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply_some;
use super::rotation::Rotation;
use super::rows::{each_row, padded, share};
use crate::kernels::{Kernels, Partition, RowNorm};
use crate::model::cache::LayerPages;
use crate::model::config::{HEAD_DIM_MAX, Pairing, QueryTemperature};
use crate::model::sequence::SequenceSlice;
use crate::model::weights::AttentionWeights;
use crate::quant::PANEL_ROWS;

/// What is done to a head between its projection and attention.
struct HeadSteps<'s> {
    kernels: &'s Kernels,
    /// Values are kept within plus and minus this.
    clamp: Option<f32>,
    /// With weights for one head, or for every head its own.
    norm: Option<RowNorm<'s>>,
    normed_after_rope: bool,
    /// `None` in a layer that does not rotate.
    rotation: Option<(&'s Rotation<'s>, Pairing)>,
}

impl HeadSteps<'_> {
    fn rotate(&self, head: &mut [f32], token: usize) {
        if let Some((rotation, pairing)) = self.rotation {
            rotation.turn((self.kernels, pairing), head, token);
        }
    }

    /// Norm and rotation of the head `index` where it lies.
    fn prepare(&self, head: &mut [f32], index: usize, token: usize) {
        clamp(self.clamp, head);
        if self.normed_after_rope {
            self.rotate(head, token);
        }
        if let Some(norm) = &self.norm {
            let n = head.len();
            let [weight, bias] =
                [norm.weight, norm.bias].map(|values| values.map(|values| &values[index * n % values.len()..][..n]));
            self.kernels.norm_in_place(head, &RowNorm { weight, bias, ..*norm });
        }
        if !self.normed_after_rope {
            self.rotate(head, token);
        }
    }
}

/// Keeps values within plus and minus a limit, if there is one.
fn clamp(limit: Option<f32>, x: &mut [f32]) {
    if let Some(limit) = limit {
        x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
    }
}

/// The position of a token of a pass.
pub(super) fn position_of(slices: &[SequenceSlice<'_>], token: usize) -> usize {
    let slice = slices[slices.partition_point(|slice| slice.first <= token) - 1];
    slice.position + token - slice.first
}

impl QueryTemperature {
    pub(super) fn factor(&self, position: usize) -> f32 {
        1.0 + self.beta * (1.0 + ((position + self.offset) / self.length) as f32).ln()
    }
}

impl ForwardPass<'_, '_> {
    /// Finds every token's place: cosines and sines of its position, and its page.
    pub fn locate(&mut self) {
        assert!(self.slices.iter().map(|slice| slice.n).sum::<usize>() == self.tokens.len());
        for rotation in &mut self.buffers.rotations {
            self.slices.iter().for_each(|slice| rotation.locate(slice));
        }
        self.buffers.lists.list_writes(self.slices);
    }

    /// Q, K and V of the normed stream, those that the layer has, and what results are gated by if they are.
    pub fn project_qkv(&mut self, attn: &AttentionWeights) {
        let (n, tools) = (self.tokens.len(), self.tools());
        let Buffers { acts, q, k, v, head_gates, workers, .. } = &mut *self.buffers;
        let parts = [(Some(&attn.q), q), (attn.k.as_ref(), k), (attn.v.as_ref(), v), (attn.gate.as_ref(), head_gates)];
        let there = parts.into_iter().filter_map(|(map, out)| Some((map?, &mut **out)));
        multiply_some(tools, workers, (acts, n), there.collect(), false);
    }

    /// The norms of Q and K over all heads of a token together.
    pub fn norm_qk(&mut self, attn: &AttentionWeights) {
        let norms = attn.qk_norms.map(|norm| norm.expect("the architecture has norms of Q and K"));
        let (n, kernels, team) = (self.tokens.len(), self.kernels, self.team);
        let Buffers { q, k, .. } = &mut *self.buffers;
        let [(q_norm, q), (k_norm, k)] = [(&norms[0], &mut **q), (&norms[1], &mut **k)]
            .map(|(norm, x)| (norm.of(self.region), each_row(team, x, (n, norm.len, padded(norm.len)))));
        share(team, n, &|worker| {
            while let Some(mut block) = q.next_for(worker) {
                kernels.norm_in_place(block.row(0), &q_norm);
            }
            while let Some(mut block) = k.next_for(worker) {
                kernels.norm_in_place(block.row(0), &k_norm);
            }
        });
    }

    /// Makes the heads of layer `layer` ready for attention: norms those of Q and K, unless their norm is over all heads,
    /// rotates them by their token's position, norms those of V if the layer does, and stores K and V in the cache, unless
    /// they are another layer's.
    pub fn prepare_heads(&mut self, layer: usize, attn: &AttentionWeights, pairing: Pairing) {
        let config = *self.attention_config(layer);
        let (n, key_dim, slices, kernels, team) =
            (self.tokens.len(), config.key_dim, self.slices, self.kernels, self.team);
        let Buffers { q, k, v, rotations, lists, .. } = &mut *self.buffers;
        let rotation = config.rope.map(|rope| (&rotations[rope], pairing));
        let steps = |i: usize| {
            let norm = attn.qk_norms[i].as_ref().filter(|_| !attn.qk_norms_are_whole);
            let normed_after_rope = config.normed_after_rope;
            let plain = || normed_after_rope.then(|| self.config.plain_norm(key_dim).of(self.region));
            let norm = norm.map(|norm| norm.of(self.region)).or_else(plain);
            HeadSteps { kernels, clamp: config.clamp, norm, normed_after_rope, rotation }
        };
        let [q_steps, k_steps] = [steps(0), steps(1)];
        let value_norm = attn.v_norm.as_ref().map(|norm| norm.of(self.region));
        let (q_width, group) = (config.q_width(), config.group());
        let queries =
            Partition::new(q, (n, q_width, padded(q_width)), (PANEL_ROWS, group * key_dim)).in_parts(team.size());
        let LayerPages { bytes, layout, pool } = self.cache.pages_mut(layer);
        // One head of one page at a time: tokens of one panel share cache lines.
        let (picks, writes) = (&lists.picks[pool], &lists.writes[pool]);
        let pages = Partition::picked(bytes, layout.page_bytes(), picks, layout.head_bytes()).in_parts(team.size());
        let pages = attn.k.as_ref().map(|_| pages);
        let keys = (&**k, padded(config.k_width()));
        let values = if attn.v.is_some() { (&**v, padded(config.v_width())) } else { keys };
        share(team, n, &|worker| {
            let mut ready = [0f32; HEAD_DIM_MAX];
            while let Some(mut block) = pages.as_ref().and_then(|pages| pages.next_for(worker)) {
                let head = block.col0 / layout.head_bytes();
                let write = writes[block.band];
                let (key_bytes, value_bytes) = block.row(0).split_at_mut(layout.key_bytes());
                for (token, at) in write.tokens(slices) {
                    let key = &mut ready[..key_dim];
                    key.copy_from_slice(&keys.0[token * keys.1 + head * key_dim..][..key_dim]);
                    k_steps.prepare(key, head, token);
                    layout.store_key(kernels, key, key_bytes, at);
                    let value = &values.0[token * values.1 + head * config.value_dim..][..config.value_dim];
                    let ready = &mut ready[..config.value_dim];
                    ready.iter_mut().zip(value).for_each(|(out, x)| *out = x * config.value_scale);
                    clamp(config.clamp, ready);
                    if let Some(norm) = &value_norm {
                        kernels.norm_in_place(ready, norm);
                    }
                    layout.store_value(kernels, ready, value_bytes, at);
                }
            }
            while let Some(mut block) = queries.next_for(worker) {
                for t in 0..block.rows {
                    let token = block.row0 + t;
                    let first = block.col0 / key_dim;
                    for (i, head) in block.row(t).chunks_exact_mut(key_dim).enumerate() {
                        q_steps.prepare(head, first + i, token);
                    }
                    if let Some(temperature) = &config.temperature {
                        let factor = temperature.factor(position_of(slices, token));
                        block.row(t).iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
        });
    }
}
