//! The tensors of what keeps a state: delta rules, state spaces, short convolutions.

use super::{LayerTensors, QkNorms};
use crate::model::config::{DeltaNetConfig, Mamba2Config, MambaConfig, MixerConfig};
use crate::model::error::ModelError;
use crate::model::weights::{
    DeltaNetWeights, DeltaRates, Form, Linear, Mamba2Weights, MambaWeights, Mixer, Norm, ShortConvWeights,
};

impl LayerTensors<'_, '_> {
    /// The delta rule: `attn_qkv` and `attn_gate`, or both in `ssm_in`; `ssm_beta` and `ssm_alpha`, or both in `ssm_ba`;
    /// `ssm_conv1d`, `ssm_dt`, `ssm_a`, `ssm_norm`, `ssm_out`.
    pub(in crate::model) fn delta_net(&mut self, delta: &DeltaNetConfig) -> Result<Mixer, ModelError> {
        let (e, n_value_heads) = (self.config.n_embd, delta.n_value_heads);
        let [qkv, z] = match self.has("ssm_in.weight") {
            true => self.delta_inputs_by_head(delta)?,
            false => {
                [self.linear("attn_qkv", delta.conv_width(), e)?, self.linear("attn_gate", delta.value_width(), e)?]
            }
        };
        let rates = match self.has("ssm_ba.weight") {
            true => DeltaRates::Together(self.linear("ssm_ba", 2 * n_value_heads, e)?),
            false => DeltaRates::Apart {
                strength: self.linear("ssm_beta", n_value_heads, e)?,
                decay: self.linear("ssm_alpha", n_value_heads, e)?,
            },
        };
        let conv = self.name("ssm_conv1d.weight");
        Ok(Mixer::DeltaNet(Box::new(DeltaNetWeights {
            qkv,
            z,
            rates,
            conv: self.finder.take(&conv, Form::Vector, delta.conv_width(), delta.taps)?,
            decay_bias: self.finder.vector(&self.name("ssm_dt.bias"), n_value_heads)?,
            decay_factor: self.finder.vector(&self.name("ssm_a"), n_value_heads)?,
            norm: self.vector("ssm_norm", delta.head_dim)?,
            output: self.linear("ssm_out", e, delta.value_width())?,
        })))
    }

    /// `ssm_in`: of every key head its query, its key, the values of its value heads, and what those are gated by.
    fn delta_inputs_by_head(&mut self, delta: &DeltaNetConfig) -> Result<[Linear; 2], ModelError> {
        let (name, e, dim) = (self.name("ssm_in.weight"), self.config.n_embd, delta.head_dim);
        let values = delta.group() * dim;
        let blocks = (delta.n_key_heads, 2 * dim + 2 * values);
        let (v, z) = (2 * dim..2 * dim + values, 2 * dim + values..blocks.1);
        let factors = self.finder.factors(&self.name("ssm_in"), 1)?;
        let qkv = self.finder.weight_of_blocks(&name, blocks, &[0..dim, dim..2 * dim, v], e, factors)?;
        let z = self.finder.weight_of_blocks(&name, blocks, &[z], e, factors)?;
        Ok([qkv, z].map(|weight| Linear { weight, bias: None }))
    }

    /// The state space: `ssm_in`, of gates, what is convolved, and steps; `ssm_conv1d`, `ssm_dt`, `ssm_a`, `ssm_d`,
    /// `ssm_norm`, `ssm_out`.
    fn mamba2(&mut self, mamba: &Mamba2Config) -> Result<Mamba2Weights, ModelError> {
        let (e, inner, width) = (self.config.n_embd, mamba.inner(), mamba.conv_width());
        let (groups, heads) = (mamba.n_groups, mamba.n_heads);
        let [z, conv_inputs, dt] = self.finder.linear_parts(&self.name("ssm_in"), [inner, width, heads], e)?;
        let conv = self.name("ssm_conv1d.weight");
        let norm = self.name("ssm_norm.weight");
        let mut of_heads = |name: &str| self.finder.take(&self.name(name), Form::Vector, heads, 1);
        let (a, d) = (of_heads("ssm_a")?, of_heads("ssm_d")?);
        Ok(Mamba2Weights {
            z,
            conv_inputs,
            dt,
            conv: self.finder.take(&conv, Form::Vector, width, mamba.taps)?,
            conv_bias: self.finder.optional_vector(&self.name("ssm_conv1d.bias"), width)?,
            dt_bias: self.finder.vector(&self.name("ssm_dt.bias"), heads)?,
            a,
            d,
            norm: match self.finder.has(&norm) {
                true => {
                    let len = inner / groups;
                    let weight = Some(self.finder.take(&norm, Form::Vector, groups, len)?);
                    Some(Norm { weight, ..self.config.plain_norm(len) })
                }
                false => None,
            },
            output: self.linear("ssm_out", e, inner)?,
        })
    }

    /// The state space of the first kind: `ssm_in`, of channels and gates; `ssm_conv1d`, `ssm_x`, `ssm_dt`, `ssm_a`, `ssm_d`,
    /// `ssm_out`; norms where the file has them.
    fn mamba(&mut self, mamba: &MambaConfig) -> Result<MambaWeights, ModelError> {
        let (e, inner, state_dim) = (self.config.n_embd, mamba.inner, mamba.state_dim);
        let [conv_inputs, z] = self.finder.linear_parts(&self.name("ssm_in"), [inner; 2], e)?;
        let conv = self.name("ssm_conv1d.weight");
        let norms = match self.has("ssm_dt_norm.weight") {
            true => Some([
                self.norm_of("ssm_dt_norm", mamba.dt_rank)?,
                self.norm_of("ssm_b_norm", state_dim)?,
                self.norm_of("ssm_c_norm", state_dim)?,
            ]),
            false => None,
        };
        let plain = || [mamba.dt_rank, state_dim, state_dim].map(|len| self.config.plain_norm(len));
        Ok(MambaWeights {
            conv_inputs,
            z,
            norms: norms.or_else(|| mamba.normed.then(plain)),
            conv: self.finder.take(&conv, Form::Vector, inner, mamba.taps)?,
            conv_bias: self.finder.optional_vector(&self.name("ssm_conv1d.bias"), inner)?,
            selection: self.linear("ssm_x", mamba.selection_width(), inner)?,
            dt: self.linear("ssm_dt", inner, mamba.dt_rank)?,
            a: self.finder.take(&self.name("ssm_a"), Form::Vector, inner, state_dim)?,
            d: self.finder.vector(&self.name("ssm_d"), inner)?,
            output: self.linear("ssm_out", e, inner)?,
        })
    }

    /// Attention, a state space, both or neither, as the layer's numbers tell.
    pub(in crate::model) fn attention_or_mamba(&mut self, qk_norms: QkNorms) -> Result<Mixer, ModelError> {
        match self.layer.mixer {
            MixerConfig::Attention(_) => self.attention(qk_norms),
            MixerConfig::Mamba(mamba) => Ok(Mixer::Mamba(Box::new(self.mamba(&mamba)?))),
            MixerConfig::Mamba2(mamba) => Ok(Mixer::Mamba2(Box::new(self.mamba2(&mamba)?))),
            MixerConfig::AttentionAndMamba2(_, mamba) => {
                let both = (self.attention_weights(qk_norms)?, self.mamba2(&mamba)?);
                Ok(Mixer::AttentionAndMamba2(Box::new(both)))
            }
            _ => Ok(Mixer::None),
        }
    }

    /// The convolution: `shortconv.in_proj`, `.conv`, `.out_proj`.
    pub(in crate::model) fn short_conv(&mut self, taps: usize) -> Result<Mixer, ModelError> {
        let e = self.config.n_embd;
        Ok(Mixer::ShortConv(Box::new(ShortConvWeights {
            in_proj: self.linear("shortconv.in_proj", 3 * e, e)?,
            conv: self.finder.take(&self.name("shortconv.conv.weight"), Form::Vector, e, taps)?,
            out_proj: self.linear("shortconv.out_proj", e, e)?,
        })))
    }
}
