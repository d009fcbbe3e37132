//! The tensors of feed-forward parts, dense or of experts.

use super::LayerTensors;
use crate::model::config::{Experts, FfnConfig};
use crate::model::error::ModelError;
use crate::model::weights::{ApartNorms, DenseFfn, FeedForward, Form, Linear, MoeFfn, Norm, SharedExpert, Weight};

impl LayerTensors<'_, '_> {
    /// The feed-forward part that the layer's numbers tell of.
    pub(in crate::model) fn feed_forward(&mut self) -> Result<FeedForward, ModelError> {
        match self.layer.ffn {
            FfnConfig::None => Ok(FeedForward::None),
            FfnConfig::Dense { n_ff } => Ok(FeedForward::Dense(Box::new(self.dense("", n_ff)?))),
            FfnConfig::ExpertsIfRouted(experts) if !self.has("ffn_gate_inp.weight") => {
                Ok(FeedForward::Dense(Box::new(self.dense("", experts.n_ff)?)))
            }
            FfnConfig::Experts(experts) | FfnConfig::ExpertsIfRouted(experts) => {
                Ok(FeedForward::Experts(Box::new(self.experts(&experts)?)))
            }
        }
    }

    /// A dense layer whose gate and up maps are one tensor, `ffn_up`, the gate first.
    pub(in crate::model) fn feed_forward_with_gate_in_up(&mut self) -> Result<FeedForward, ModelError> {
        let FfnConfig::Dense { n_ff } = self.layer.ffn else { return self.feed_forward() };
        Ok(FeedForward::Dense(Box::new(self.dense_with_gate_in_up("", n_ff)?)))
    }

    fn dense_with_gate_in_up(&mut self, suffix: &str, n_ff: usize) -> Result<DenseFfn, ModelError> {
        let e = self.config.n_embd;
        let [gate, up] = self.finder.linear_parts(&self.name(&format!("ffn_up{suffix}")), [n_ff; 2], e)?;
        Ok(DenseFfn { gate: Some(gate), up, down: self.linear(&format!("ffn_down{suffix}"), e, n_ff)? })
    }

    fn dense(&mut self, suffix: &str, n_ff: usize) -> Result<DenseFfn, ModelError> {
        let e = self.config.n_embd;
        Ok(DenseFfn {
            gate: match self.config.gated_ffn {
                true => Some(self.linear(&format!("ffn_gate{suffix}"), n_ff, e)?),
                false => None,
            },
            up: self.linear(&format!("ffn_up{suffix}"), n_ff, e)?,
            down: self.linear(&format!("ffn_down{suffix}"), e, n_ff)?,
        })
    }

    fn experts(&mut self, experts: &Experts) -> Result<MoeFfn, ModelError> {
        let (stream, f) = (self.config.n_embd, experts.n_ff);
        let apart = match experts.apart {
            true => Some(self.apart_norms()?),
            false => None,
        };
        // Beside its norm a router has no factor.
        let router = match apart {
            Some(_) => Linear { weight: self.router(experts.count)?, bias: None },
            None => self.linear("ffn_gate_inp", experts.count, stream)?,
        };
        let e = experts.width(stream);
        let latent = match experts.latent {
            Some(e) => Some([self.linear("ffn_latent_down", e, stream)?, self.linear("ffn_latent_up", stream, e)?]),
            None => None,
        };
        let (gate, up) = match self.config.gated_ffn {
            true if self.has("ffn_gate_up_exps.weight") => {
                let [gate, up] = self.finder.expert_parts(&self.name("ffn_gate_up_exps"), experts, [f; 2], e)?;
                (Some(gate), up)
            }
            true => {
                let gate = self.expert_linear("ffn_gate_exps", experts, f, e)?;
                (Some(gate), self.expert_linear("ffn_up_exps", experts, f, e)?)
            }
            false => (None, self.expert_linear("ffn_up_exps", experts, f, e)?),
        };
        let down = self.expert_linear("ffn_down_exps", experts, e, f)?;
        let bias = if self.has("exp_probs_b") { "exp_probs_b" } else { "exp_probs_b.bias" };
        let selection_bias = self.finder.optional_vector(&self.name(bias), experts.count)?;
        // Apart from the chosen ones, the expert of every token has the names of a dense layer.
        let suffix = if experts.apart { "" } else { self.shared_suffix };
        let shared = match experts.n_ff_shared {
            0 => None,
            width => Some(SharedExpert {
                norm: None,
                ffn: match self.has(&format!("ffn_gate{suffix}.weight")) || !self.config.gated_ffn {
                    true => self.dense(suffix, width)?,
                    false => self.dense_with_gate_in_up(suffix, width)?,
                },
                gate: self.finder.optional_vector(&self.name("ffn_gate_inp_shexp.weight"), stream)?,
            }),
        };
        Ok(MoeFfn { experts: *experts, router, selection_bias, gate, up, down, latent, shared, apart })
    }

    fn expert_linear(&mut self, stem: &str, experts: &Experts, rows: usize, cols: usize) -> Result<Linear, ModelError> {
        let [linear] = self.finder.expert_parts(&self.name(stem), experts, [rows], cols)?;
        self.checked(stem, linear)
    }

    fn router(&mut self, n_experts: usize) -> Result<Weight, ModelError> {
        let name = self.name("ffn_gate_inp.weight");
        self.finder.take(&name, Form::Panels, n_experts, self.config.n_embd)
    }

    fn apart_norms(&mut self) -> Result<ApartNorms, ModelError> {
        let scale = self.name("ffn_gate_inp.scale");
        let router_scale = self.finder.vector(&scale, self.config.n_embd)?;
        Ok(ApartNorms {
            router: Norm { weight: Some(router_scale), ..self.plain_norm() },
            experts: self.norm("pre_ffw_norm_2")?,
            experts_post: self.norm_of("post_ffw_norm_2", self.config.n_embd)?,
            dense_post: self.norm_of("post_ffw_norm_1", self.config.n_embd)?,
        })
    }

    /// The shared expert of every token and its gate must be there.
    pub(in crate::model) fn require_gated_shared_expert(&self, ffn: &FeedForward) -> Result<(), ModelError> {
        match ffn {
            FeedForward::Experts(moe) if moe.shared.is_none_or(|shared| shared.gate.is_none()) => {
                Err(ModelError::missing_tensor(&self.name("ffn_gate_inp_shexp.weight")))
            }
            _ => Ok(()),
        }
    }

    /// The bias that experts are chosen by must be there.
    pub(in crate::model) fn require_selection_bias(&self, ffn: &FeedForward) -> Result<(), ModelError> {
        match ffn {
            FeedForward::Experts(moe) if moe.selection_bias.is_none() => {
                Err(ModelError::missing_tensor(&self.name("exp_probs_b.bias")))
            }
            _ => Ok(()),
        }
    }
}
