//! LFM2 (arXiv:2511.23404): most layers mix tokens by a short convolution between two gates, `c * conv(b * x)` of
//! `[b, c, x] = in_proj(h)`; the others, which the file gives key and value heads, by attention with normed heads.

use crate::kernels::Window;
use crate::model::architecture::Architecture;
use crate::model::config::{Config, MixerConfig, TAPS_MAX};
use crate::model::error::ModelError;
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::tensors::{LayerTensors, QkNorms};
use crate::model::weights::{Layer, Mixer};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { output_norm: Some("token_embd_norm"), config, tensors, ..Architecture::new("lfm2", layer) };

pub(super) fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder_with_headless_layers()?;
    let taps = header.number("shortconv.l_cache", TAPS_MAX)?;
    let window = header.count("attention.sliding_window", 1 << 30)?;
    for layer in &mut config.layers {
        match &mut layer.mixer {
            MixerConfig::Attention(attention) => {
                attention.window = Some(window).filter(|&len| len > 0).map(Window::Sliding)
            }
            mixer => *mixer = MixerConfig::ShortConv { taps },
        }
    }
    Ok(config)
}

pub(super) fn tensors(find: &mut LayerTensors<'_, '_>) -> Result<Layer, ModelError> {
    Ok(Layer {
        attn_norm: find.norm("attn_norm")?,
        mixer: match find.layer.mixer {
            MixerConfig::ShortConv { taps } => find.short_conv(taps)?,
            _ => find.attention(QkNorms::PerHead)?,
        },
        ffn_norm: find.norm("ffn_norm")?,
        ffn: find.feed_forward()?,
        ..Layer::default()
    })
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    match &w.mixer {
        Mixer::ShortConv(conv) => {
            pass.norm(&w.attn_norm, &conv.in_proj.weight);
            pass.project_conv(conv);
            pass.short_conv(index, conv);
            pass.keep_output_rows(index);
            pass.add_product(&conv.out_proj);
        }
        _ => {
            let attn = w.attention();
            pass.norm(&w.attn_norm, &attn.q.weight);
            pass.project_qkv(attn);
            pass.prepare_heads(index, attn, Pairing::Halves);
            pass.attend(index, attn);
            pass.keep_output_rows(index);
            pass.add_product(&attn.output);
        }
    }

    pass.add_feed_forward(&w.ffn_norm, &w.ffn, Activation::Silu);
}
