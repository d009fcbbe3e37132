//! Headers of dense decoders.

use brim::kernels::{Activation, NormKind};
use brim::model::config::{Pairing, Residual};

use super::{attention, config, deep_header, header, refused, with_eps};
use crate::writer::Gguf;

#[test]
fn baichuan_is_told_by_its_depth() {
    assert_eq!(attention(&config(deep_header("baichuan", 32)).unwrap(), 31).rope, Some(0));
    let large = config(deep_header("baichuan", 40)).unwrap();
    let attention = attention(&large, 39);
    assert_eq!((attention.rope, attention.alibi), (None, Some(8.0)));
    refused(header("baichuan"), &["baichuan.block_count` = 12", "neither 32", "nor 40"]);
}

#[test]
fn the_first_qwen_tells_the_width_of_gate_and_up_together() {
    assert_eq!(config(header("qwen")).unwrap().n_ff_dense(), 24);
    let file = Gguf::new().str("general.architecture", "qwen").u32("qwen.block_count", 1);
    let file = file.u32("qwen.embedding_length", 32).u32("qwen.attention.head_count", 4);
    refused(
        with_eps(file, "qwen").u32("qwen.feed_forward_length", 47),
        &["feed_forward_length is 47", "an even number"],
    );
}

#[test]
fn minicpm_has_scales_also_where_its_file_does_not_say() {
    let old = config(header("minicpm")).unwrap();
    assert_eq!((old.embedding_scale, old.logit_scale), (12.0, 8.0));
    assert!((old.residual_scale - 1.4 / 12f32.sqrt()).abs() < 1e-6);
    let file = header("minicpm").f32("minicpm.embedding_scale", 3.0).f32("minicpm.residual_scale", 0.25);
    let new = config(file.f32("minicpm.logit_scale", 4.0)).unwrap();
    assert_eq!((new.embedding_scale, new.residual_scale, new.logit_scale), (3.0, 0.25, 0.25));
    refused(header("minicpm").u32("minicpm.expert_count", 8), &["minicpm.expert_count` = 8"]);
}

#[test]
fn what_differs_of_the_usual_layer_is_style() {
    let plamo = config(header("plamo")).unwrap();
    assert_eq!((plamo.style.residual, plamo.style.pairing), (Residual::Parallel, Pairing::Halves));
    for (arch, pairing, norm) in
        [("arcee", Pairing::Neighbours, NormKind::Rms), ("nemotron", Pairing::Halves, NormKind::Layer)]
    {
        let config = config(header(arch)).unwrap();
        assert_eq!((config.style.activation, config.gated_ffn), (Activation::ReluSquared, false), "{arch}");
        assert_eq!((config.style.pairing, config.norm), (pairing, norm), "{arch}");
    }
    for arch in ["olmo", "orion", "stablelm"] {
        assert_eq!(config(header(arch)).unwrap().norm, NormKind::Layer, "{arch}");
    }
    let olmo = config(header("olmo").f32("olmo.attention.clamp_kqv", 8.0)).unwrap();
    assert_eq!(attention(&olmo, 11).clamp, Some(8.0));
    assert!(attention(&config(header("maincoder")).unwrap(), 0).normed_after_rope);
}

#[test]
fn plamo3_has_seven_windows_to_a_layer_that_sees_everything() {
    let file = || header("plamo3").u32("plamo3.attention.sliding_window", 256).f32("plamo3.rope.freq_base", 1e6);
    let plamo3 = config(file().f32("plamo3.rope.freq_base_swa", 5e4)).unwrap();
    let windows: Vec<usize> = (0..12).map(|layer| plamo3.window_of(layer)).collect();
    assert_eq!((windows[6], windows[7], windows[8]), (256, usize::MAX, 256));
    assert_eq!([0, 7].map(|layer| plamo3.ropes[attention(&plamo3, layer).rope.unwrap()].base), [5e4, 1e6]);
    let yarn = file().str("plamo3.rope.scaling.type", "yarn").f32("plamo3.rope.scaling.factor", 4.0);
    refused(yarn, &["plamo3.rope.scaling.type` = yarn", "windows"]);
}

#[test]
fn apertus_has_an_activation_for_every_layer() {
    let file = |eps: f32| {
        let numbers: Vec<u8> = (0..12).flat_map(|i| (0.1 * i as f32).to_le_bytes()).collect();
        let file = header("apertus").array("xielu.alpha_n", F32, 12, &numbers).f32("xielu.eps", eps);
        file.f32("xielu.alpha_p", -0.5).f32("xielu.beta", 0.5)
    };
    let config = config(file(-1e-6)).unwrap();
    let Activation::Xielu(last) = config.activations[11] else { panic!("{:?}", config.activations) };
    assert!((last.negative - (0.5 + (1.0 + 1.1f32.exp()).ln())).abs() < 1e-6, "{last:?}");
    assert!((last.positive - (1.0 + (-0.5f32).exp()).ln()).abs() < 1e-6, "{last:?}");
    assert_eq!((last.slope, last.most), (0.5, -1e-6));
    refused(file(-0.5), &["xielu.eps is -0.5", "-0.001 to 0"]);
    refused(header("apertus"), &["xielu.alpha_n", "a number for each of 12 layers"]);
}

/// Element type of arrays.
const F32: u32 = 6;
