//! The numbers of experts.

use super::Header;
use crate::model::config::{Config, EXPERTS_MAX, ExpertGroups, Experts, Gating, LAYERS_MAX, WIDTH_MAX};
use crate::model::error::{ModelError, range};

/// What a router does where the file does not say.
#[derive(Clone, Copy)]
pub(in crate::model) struct Routing {
    pub gating: Gating,
    /// Whether weights are scaled to the sum 1; `None`: the file says, and does not mean it when it is silent.
    pub normalised: Option<bool>,
    pub width: ExpertWidth,
}

/// The width of an expert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum ExpertWidth {
    /// That of a dense layer.
    Dense,
    /// Its own; without one that of a dense layer.
    OwnOrDense,
    /// Its own; without one its share of a dense layer's.
    OwnOrShare,
}

impl Routing {
    /// Softmax over all experts, scaled to the sum 1 over the chosen ones.
    pub(in crate::model) const SOFTMAX: Routing =
        Routing { gating: Gating::Softmax, normalised: Some(true), width: ExpertWidth::OwnOrDense };
    /// Softmax over all experts as it is.
    pub(in crate::model) const SOFTMAX_AS_IS: Routing = Routing { normalised: Some(false), ..Routing::SOFTMAX };
    /// Sigmoids, scaled if the file says so.
    pub(in crate::model) const SIGMOID: Routing =
        Routing { gating: Gating::Sigmoid, normalised: None, width: ExpertWidth::OwnOrShare };
}

impl Header<'_, '_> {
    /// A decoder with experts in all layers but the leading dense ones.
    pub(in crate::model) fn decoder_with_experts(&self, routing: Routing) -> Result<Config, ModelError> {
        let mut config = self.decoder()?;
        let n_dense = self.count("leading_dense_block_count", LAYERS_MAX)?;
        config.set_experts(n_dense, self.required_experts(routing)?);
        Ok(config)
    }

    /// A decoder with experts in all layers, and beside them one more, as wide as the file says or as a dense layer.
    pub(in crate::model) fn decoder_with_shared_expert(&self, routing: Routing) -> Result<Config, ModelError> {
        let (mut config, mut experts) = (self.decoder()?, self.required_experts(routing)?);
        self.set_shared_width(&mut experts)?;
        config.set_experts(0, experts);
        Ok(config)
    }

    /// Gives `experts` a shared one of a dense layer's width where the file does not tell of one.
    pub(in crate::model) fn set_shared_width(&self, experts: &mut Experts) -> Result<(), ModelError> {
        if experts.n_ff_shared == 0 {
            experts.n_ff_shared = self.number("feed_forward_length", WIDTH_MAX)?;
        }
        Ok(())
    }

    /// The experts, if the file has any.
    pub(in crate::model) fn experts(&self, routing: Routing) -> Result<Option<Experts>, ModelError> {
        if self.count("expert_count", EXPERTS_MAX)? == 0 {
            return Ok(None);
        }
        self.required_experts(routing).map(Some)
    }

    /// The experts of an architecture that must have them.
    pub(in crate::model) fn required_experts(&self, routing: Routing) -> Result<Experts, ModelError> {
        let count = self.number("expert_count", EXPERTS_MAX)?;
        let used = self.number("expert_used_count", count)?;
        let own = match routing.width {
            ExpertWidth::Dense => 0,
            _ => self.count("expert_feed_forward_length", WIDTH_MAX)?,
        };
        let n_ff = match (own, routing.width) {
            (0, ExpertWidth::OwnOrShare) => self.number("feed_forward_length", WIDTH_MAX)? / used,
            (0, _) => self.number("feed_forward_length", WIDTH_MAX)?,
            (own, _) => own,
        };
        self.experts_of(routing, used, n_ff)
    }

    /// The experts of a layer in which `used` of width `n_ff` are chosen for each token.
    pub(in crate::model) fn experts_of(
        &self,
        routing: Routing,
        used: usize,
        n_ff: usize,
    ) -> Result<Experts, ModelError> {
        let count = self.number("expert_count", EXPERTS_MAX)?;
        if used == 0 || used > count {
            return range("expert_used_count", used, format!("1 to {count}"));
        }
        if n_ff == 0 {
            return range("the width of an expert", 0, "at least 1".to_owned());
        }
        let n_shared = self.count("expert_shared_count", 64)?;
        let n_ff_shared = match self.count("expert_shared_feed_forward_length", WIDTH_MAX)? {
            0 => n_shared * n_ff,
            width => width,
        };
        self.accept("expert_gating_func");
        let gating = match self.meta.u32(&self.key("expert_gating_func"))? {
            None | Some(0) => routing.gating,
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(other) => return self.unsupported("expert_gating_func", other.to_string()),
        };
        let own_norm = self.flag("expert_weights_norm")?;
        let normalised = routing.normalised.unwrap_or(own_norm) && gating != Gating::SoftmaxOfChosen;
        let scale = self.positive("expert_weights_scale")?.unwrap_or(1.0);
        let groups = self.expert_groups(count, used)?;
        Ok(Experts {
            count,
            used,
            n_ff,
            n_ff_shared,
            gating,
            normalised,
            scale,
            groups,
            latent: None,
            weighs_input: false,
            activations: [None; 2],
            shared_scale: 1.0,
            apart: false,
        })
    }

    fn expert_groups(&self, n_experts: usize, n_experts_used: usize) -> Result<Option<ExpertGroups>, ModelError> {
        // One group is none.
        let count = self.count("expert_group_count", n_experts)?;
        if count <= 1 {
            self.accept("expert_group_used_count");
            return Ok(None);
        }
        let used = self.number("expert_group_used_count", count)?;
        if !n_experts.is_multiple_of(count) || n_experts / count < 2 {
            let need = format!("a divisor of {n_experts} experts that leaves at least 2 for each group");
            return range("expert_group_count", count, need);
        }
        if n_experts / count * used < n_experts_used {
            let need = format!("groups that hold the {n_experts_used} experts of a token");
            return range("expert_group_used_count", used, need);
        }
        Ok(Some(ExpertGroups { count, used }))
    }
}
