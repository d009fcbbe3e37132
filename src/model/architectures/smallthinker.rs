//! SmallThinker (arXiv:2507.20984): the router reads the stream as it is before attention; experts are gated by a ReLU. Every
//! fourth layer, from the first on, sees everything and does not rotate; the others have windows.

use crate::model::architecture::Architecture;
use crate::model::config::{Config, Gating};
use crate::model::error::ModelError;
use crate::model::header::{Header, Routing};
use crate::model::rope::Rope;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::weights::{FeedForward, Layer};

pub(super) const ARCHITECTURE: Architecture = Architecture { config, ..Architecture::new("smallthinker", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.has_branch = true;
    let routing = Routing { gating: Gating::Sigmoid, ..Routing::SOFTMAX };
    config.set_experts(0, header.required_experts(routing)?);
    if let Some(windows) = header.windows_after_first(4)? {
        let rope = |full: &Rope, base: Option<f32>| Rope { base: base.unwrap_or(full.base), ..full.clone() };
        header.set_windows(&mut config, windows, rope)?;
        for attn in config.layers.iter_mut().step_by(4).filter_map(|layer| layer.attention_mut()) {
            attn.rope = None;
        }
    }
    Ok(config)
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let attn = w.attention();
    pass.norm(&w.attn_norm, &attn.q.weight);
    pass.project_qkv(attn);
    pass.prepare_heads(index, attn, Pairing::Halves);
    pass.attend(index, attn);
    pass.keep_output_rows(index);
    pass.hold_product(&attn.output);

    let FeedForward::Experts(moe) = &w.ffn else { unreachable!("every layer has experts") };
    pass.norm(&None, &moe.router.weight);
    pass.route(moe);
    pass.add_held();
    pass.norm(&w.ffn_norm, &moe.up.weight);
    pass.project_experts(moe);
    pass.add_experts(moe, Activation::Relu);
}
