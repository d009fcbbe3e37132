//! The tensors of attention.

use std::ops::Range;

use super::finder::Matrices;
use super::{LayerTensors, QkNorms};
use crate::model::config::{AttentionConfig, LatentConfig, MixerConfig};
use crate::model::error::ModelError;
use crate::model::weights::{AttentionWeights, Form, LatentKeys, LatentWeights, Layer, Linear, Mixer, Norm};

impl LayerTensors<'_, '_> {
    /// Attention: `attn_q`, `attn_k`, `attn_v`, or all in `attn_qkv`, and `attn_output`.
    pub(in crate::model) fn attention(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        Ok(Mixer::Attention(Box::new(self.attention_weights(qk_norms)?)))
    }

    pub(super) fn attention_weights(&mut self, qk_norms: QkNorms) -> Result<AttentionWeights, ModelError> {
        let Some(&attention) = self.layer.attention() else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, rows) = (self.config.n_embd, [attention.q_width(), attention.k_width(), attention.v_width()]);
        let [q, k, v] = match self.has("attn_qkv.weight") {
            true => self.fused_qkv(rows, e)?,
            false => {
                let mut part = |name: &str, rows| self.finder.linear(&format!("blk.{}.{name}", self.index), rows, e);
                [part("attn_q", rows[0])?, part("attn_k", rows[1])?, part("attn_v", rows[2])?]
            }
        };
        Ok(AttentionWeights {
            q,
            k: Some(k),
            v: Some(v),
            qk_norms: self.qk_norms(&attention, qk_norms)?,
            qk_norms_are_whole: qk_norms == QkNorms::Whole,
            v_norm: None,
            sinks: None,
            gate: attention.gate.map(|_| self.output_gate(&attention)).transpose()?,
            output: self.linear("attn_output", e, attention.output_width())?,
        })
    }

    /// Multi-head latent attention: the maps from latents to keys and values are `attn_k_b`, transposed, and `attn_v_b`, or
    /// together `attn_kv_b`.
    pub(in crate::model) fn latent_attention(&mut self) -> Result<Mixer, ModelError> {
        let MixerConfig::Latent(latent) = self.layer.mixer else {
            unreachable!("an architecture asks for the latent attention of layers that have it");
        };
        let LatentConfig { n_heads, q_rank, kv_rank, plain_dim, value_dim, .. } = latent;
        let e = self.config.n_embd;
        let (q_a, q) = match q_rank {
            0 => (None, self.linear("attn_q", latent.q_width(), e)?),
            rank => {
                let q_a = (self.linear("attn_q_a", rank, e)?, self.norm_of("attn_q_a_norm", rank)?);
                (Some(q_a), self.linear("attn_q_b", latent.q_width(), rank)?)
            }
        };
        let kv_a = self.linear("attn_kv_a_mqa", latent.row_dim(), e)?;
        let kv_norm = self.norm_of("attn_kv_a_norm", kv_rank)?;
        let (keys, values) = match self.has("attn_kv_b.weight") {
            true => {
                let (name, block) = (self.name("attn_kv_b.weight"), (n_heads, plain_dim + value_dim));
                let mut part = |form, rows| self.finder.head_matrices(&name, form, block, rows, kv_rank);
                let keys = part(Form::Vector, 0..plain_dim)?;
                (LatentKeys::Rows(keys), Linear { weight: part(Form::Panels, plain_dim..block.1)?, bias: None })
            }
            false => {
                let heads = Matrices { count: n_heads, used: n_heads };
                let mut part = |name: &str, rows, cols| {
                    let stem = format!("blk.{}.{name}", self.index);
                    let [weight] = self.finder.weight_parts(&stem, heads, [rows], cols)?;
                    Ok::<_, ModelError>(Linear { weight, bias: None })
                };
                let keys = LatentKeys::Absorbed(part("attn_k_b", kv_rank, plain_dim)?);
                (keys, part("attn_v_b", value_dim, kv_rank)?)
            }
        };
        let output = self.linear("attn_output", e, latent.output_width())?;
        Ok(Mixer::Latent(Box::new(LatentWeights { q_a, q, kv_a, kv_norm, keys, values, output })))
    }

    /// One tensor of Q, K and V; a file may have three biases beside it.
    fn fused_qkv(&mut self, rows: [usize; 3], e: usize) -> Result<[Linear; 3], ModelError> {
        let mut parts = self.finder.linear_parts(&self.name("attn_qkv"), rows, e)?;
        for ((part, name), rows) in parts.iter_mut().zip(["attn_q", "attn_k", "attn_v"]).zip(rows) {
            if part.bias.is_none() {
                part.bias = self.finder.optional_vector(&self.name(&format!("{name}.bias")), rows)?;
            }
        }
        Ok(parts)
    }

    fn qk_norms(&mut self, attention: &AttentionConfig, norms: QkNorms) -> Result<[Option<Norm>; 2], ModelError> {
        let [q_len, k_len] = match norms {
            QkNorms::None => return Ok([None; 2]),
            QkNorms::EachHeadIfThere if !self.has("attn_q_norm.weight") => return Ok([None; 2]),
            QkNorms::EachHeadIfThere => {
                let mut norm = |name: &str, n_heads| {
                    let name = format!("blk.{}.{name}.weight", self.index);
                    let weight = Some(self.finder.take(&name, Form::Vector, n_heads, attention.key_dim)?);
                    Ok::<_, ModelError>(Norm { weight, ..self.config.plain_norm(attention.key_dim) })
                };
                return Ok([
                    Some(norm("attn_q_norm", attention.n_heads)?),
                    Some(norm("attn_k_norm", attention.n_kv_heads)?),
                ]);
            }
            QkNorms::PerHeadIfThere if !self.has("attn_q_norm.weight") => return Ok([None; 2]),
            QkNorms::PerHead | QkNorms::PerHeadIfThere => [attention.key_dim; 2],
            QkNorms::Whole => [attention.q_width(), attention.k_width()],
        };
        Ok([Some(self.norm_of("attn_q_norm", q_len)?), Some(self.norm_of("attn_k_norm", k_len)?)])
    }

    /// Attention whose heads are normed, those of values without weights; values may be what keys are before that, and keys and values
    /// those of another layer: what the file has of such a layer's own is left there.
    pub(in crate::model) fn attention_that_may_share(&mut self) -> Result<Mixer, ModelError> {
        let MixerConfig::Attention(attention) = self.layer.mixer else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, dim, index) = (self.config.n_embd, attention.key_dim, self.index);
        let is_own = attention.kv_of.is_none();
        if !is_own {
            ["attn_k", "attn_v"].into_iter().for_each(|part| self.finder.skip(&format!("blk.{index}.{part}")));
        }
        let has_values = is_own && self.has("attn_v.weight");
        let mut part = |name: &str, rows| self.linear(name, rows, e);
        let q = part("attn_q", attention.q_width())?;
        let k = if is_own { Some(part("attn_k", attention.k_width())?) } else { None };
        let v = if has_values { Some(part("attn_v", attention.v_width())?) } else { None };
        let q_norm = Some(self.norm_of("attn_q_norm", dim)?);
        let k_norm = if is_own { Some(self.norm_of("attn_k_norm", dim)?) } else { None };
        Ok(Mixer::Attention(Box::new(AttentionWeights {
            q,
            k,
            v,
            qk_norms: [q_norm, k_norm],
            qk_norms_are_whole: false,
            v_norm: Some(self.config.plain_norm(attention.value_dim)),
            sinks: None,
            gate: None,
            output: self.linear("attn_output", e, attention.output_width())?,
        })))
    }

    /// `attn_gate`, a map to one value for each head, or one for each value of all heads.
    fn output_gate(&mut self, attention: &AttentionConfig) -> Result<Linear, ModelError> {
        let rows = match self.finder.rows_if_there(&self.name("attn_gate.weight")) {
            Some(rows) if rows == attention.n_heads as u64 => attention.n_heads,
            _ => attention.output_width(),
        };
        self.linear("attn_gate", rows, self.config.n_embd)
    }

    /// Attention whose queries and gates are one tensor, `attn_q`: of every head the query, then the gate.
    pub(in crate::model) fn gated_attention(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        let MixerConfig::Attention(attention) = self.layer.mixer else {
            unreachable!("an architecture asks for the attention of layers that have it");
        };
        let (e, dim) = (self.config.n_embd, attention.key_dim);
        let factors = self.finder.factors(&self.name("attn_q"), 1)?;
        let mut of_heads = |rows: Range<usize>| {
            let blocks = (attention.n_heads, 2 * dim);
            let name = format!("blk.{}.attn_q.weight", self.index);
            let weight = self.finder.weight_of_blocks(&name, blocks, &[rows], e, factors)?;
            Ok::<_, ModelError>(Linear { weight, bias: None })
        };
        let (q, gate) = (of_heads(0..dim)?, of_heads(dim..2 * dim)?);
        Ok(Mixer::Attention(Box::new(AttentionWeights {
            q,
            k: Some(self.linear("attn_k", attention.k_width(), e)?),
            v: Some(self.linear("attn_v", attention.v_width(), e)?),
            qk_norms: self.qk_norms(&attention, qk_norms)?,
            qk_norms_are_whole: qk_norms == QkNorms::Whole,
            v_norm: None,
            sinks: None,
            gate: Some(gate),
            output: self.linear("attn_output", e, attention.output_width())?,
        })))
    }

    /// `attn_sinks`, a score for each head.
    pub(in crate::model) fn sinks(&mut self, layer: &mut Layer) -> Result<(), ModelError> {
        if let (Mixer::Attention(attn), Some(config)) = (&mut layer.mixer, self.layer.attention()) {
            attn.sinks = Some(self.vector("attn_sinks", config.n_heads)?);
        }
        Ok(())
    }
}
