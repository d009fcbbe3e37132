//! Decoders in the manner of GPT-2, of before Llama: LayerNorm with biases, biases in linear maps, one matrix for Q, K and V,
//! and GELU without a gate. They differ in how they know positions and in whether attention and feed-forward part stand
//! beside each other.

use super::decoder;
use crate::kernels::NormKind;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, EmbeddingNorm, LayerConfig, Residual};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::Layer;

const GPT: Architecture = Architecture { config: gpt, ..Architecture::new("", decoder::layer) };

/// GPT-2: learned positions.
pub(super) const GPT2: Architecture = Architecture { name: "gpt2", config: with_learned_positions, ..GPT };

/// StarCoder (arXiv:2305.06161): GPT-2 whose query heads share one head of keys and values.
pub(super) const STARCODER: Architecture = Architecture { name: "starcoder", config: with_learned_positions, ..GPT };

/// StarCoder 2 (arXiv:2402.19173): rotary positions.
pub(super) const STARCODER2: Architecture = Architecture { name: "starcoder2", ..GPT };

/// CodeShell (arXiv:2403.15747): rotary positions.
pub(super) const CODESHELL: Architecture = Architecture { name: "codeshell", ..GPT };

/// GPT-NeoX and Pythia (arXiv:2204.06745): attention and feed-forward part beside each other, each with its norm.
pub(super) const GPTNEOX: Architecture = Architecture {
    name: "gptneox",
    config: |header| {
        let mut config = gpt(header)?;
        if header.flag("use_parallel_residual")? {
            config.style.residual = Residual::Parallel;
        }
        Ok(config)
    },
    ..GPT
};

/// Phi-1 and Phi-2: attention and feed-forward part beside each other behind one norm.
pub(super) const PHI2: Architecture = Architecture { name: "phi2", config: parallel, tensors: behind_one_norm, ..GPT };

/// Falcon (arXiv:2311.16867): as Phi-2; in the 40B attention has a norm of its own.
pub(super) const FALCON: Architecture =
    Architecture { name: "falcon", config: parallel, tensors: behind_one_norm, ..GPT };

/// BLOOM (arXiv:2211.05100): ALiBi, and a norm of the embedding.
pub(super) const BLOOM: Architecture = Architecture {
    name: "bloom",
    config: |header| {
        let mut config = gpt(header)?;
        config.set_alibi(ALIBI_BIAS);
        config.embedding_norm = EmbeddingNorm::Weighted;
        Ok(config)
    },
    ..GPT
};

/// MPT: ALiBi, queries, keys and values kept within bounds, or normed over all heads.
pub(super) const MPT: Architecture = Architecture {
    name: "mpt",
    config: |header| {
        let mut config = gpt(header)?;
        let bias = header.positive("attention.max_alibi_bias")?;
        match bias {
            Some(bias) => config.set_alibi(bias),
            None => learn_positions(&mut config),
        }
        let clamp = header.positive("attention.clamp_kqv")?;
        config.layers.iter_mut().filter_map(LayerConfig::attention_mut).for_each(|attention| attention.clamp = clamp);
        Ok(config)
    },
    tensors: |find| {
        let norms = if find.has("attn_q_norm.weight") { QkNorms::Whole } else { QkNorms::None };
        find.pre_norm_layer_with(norms, "ffn_norm")
    },
    ..GPT
};

/// Jais (arXiv:2308.16149): ALiBi, SwiGLU, and scores divided by the size of a head instead of its root.
pub(super) const JAIS: Architecture = Architecture {
    name: "jais",
    config: |header| {
        let mut config = gpt(header)?;
        config.do_not_rotate();
        if let Some(bias) = header.positive("attention.max_alibi_bias")? {
            config.set_alibi(bias);
        }
        (config.gated_ffn, config.style.activation) = (true, Activation::Silu);
        for attention in config.layers.iter_mut().filter_map(LayerConfig::attention_mut) {
            attention.scale = (attention.key_dim as f32).recip();
        }
        Ok(config)
    },
    ..GPT
};

/// Refact: Llama with ALiBi.
pub(super) const REFACT: Architecture = Architecture {
    name: "refact",
    config: |header| {
        let mut config = header.decoder()?;
        config.set_alibi(ALIBI_BIAS);
        Ok(config)
    },
    ..GPT
};

/// Of the models whose files do not say it.
const ALIBI_BIAS: f32 = 8.0;

fn gpt(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    config.norm = NormKind::Layer;
    config.gated_ffn = false;
    (config.style.pairing, config.style.activation) = (Pairing::Halves, Activation::Gelu);
    Ok(config)
}

fn with_learned_positions(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = gpt(header)?;
    learn_positions(&mut config);
    Ok(config)
}

fn learn_positions(config: &mut Config) {
    config.learned_positions = true;
    config.do_not_rotate();
}

fn parallel(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = gpt(header)?;
    config.style.residual = Residual::Parallel;
    Ok(config)
}

fn behind_one_norm(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    let norm = find.norm("attn_norm")?;
    let (attn_norm, ffn_norm) = match find.norm_if_there("attn_norm_2")? {
        Some(own) => (Some(own), norm),
        None => (norm, None),
    };
    Ok(Layer {
        attn_norm,
        mixer: find.attention(QkNorms::None)?,
        ffn_norm,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}
