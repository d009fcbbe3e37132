//! Snowflake Arctic (2024): Llama whose feed-forward part is as wide as the stream; beside the whole layer stand experts, which
//! read the stream from before attention through a norm of their own.

use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::header::{ExpertWidth, Header, Routing};
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{FeedForward, Layer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, tensors, ..Architecture::new("arctic", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    let mut experts = header.required_experts(Routing { width: ExpertWidth::Dense, ..Routing::SOFTMAX })?;
    experts.n_ff_shared = config.n_embd;
    config.set_experts(0, experts);
    config.has_branch = true;
    Ok(config)
}

fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    find.name_shared_expert_as_dense();
    let mut layer = find.pre_norm_layer_with(QkNorms::None, "ffn_norm_exps")?;
    if let FeedForward::Experts(moe) = &mut layer.ffn
        && let Some(dense) = &mut moe.shared
    {
        dense.norm = find.norm("ffn_norm")?;
    }
    Ok(layer)
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Neighbours);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.hold_product(&attn.output);

    let FeedForward::Experts(moe) = &w.ffn else { unreachable!("every layer has experts") };
    pass.norm(&w.ffn_norm, &moe.router.weight);
    pass.route(moe);
    pass.project_experts(moe);
    pass.finish_experts(moe, Activation::Silu);

    pass.add_held();
    if let Some(dense) = &moe.shared {
        pass.norm(&dense.norm, dense.ffn.first());
        pass.project_gate_up(&dense.ffn);
        pass.activate(&dense.ffn, Activation::Silu);
        pass.add_product(&dense.ffn.down);
    }
    pass.add_finished_experts(moe);
}
