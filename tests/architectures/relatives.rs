//! Relatives of Llama and Qwen that differ by geometry.

use brim::kernels::{Activation, NormKind, Window};
use brim::model::config::{EmbeddingNorm, Gating, OutputGate, QueryTemperature, Residual};

use super::writer::Gguf;
use super::{attention, config, deep_header, experts, header, refused, without_eps};

/// A yes or no for each of 12 layers: a window in all but those whose number is a multiple of 4.
const PATTERN: [u8; 12] = [0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1];

fn with_experts(file: Gguf, arch: &str) -> Gguf {
    let keys = [("expert_count", 8), ("expert_used_count", 2), ("expert_feed_forward_length", 16)];
    keys.iter().fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
}

fn listed(file: Gguf, arch: &str) -> Gguf {
    file.u32(&format!("{arch}.attention.sliding_window"), 128).array(
        &format!("{arch}.attention.sliding_window_pattern"),
        7,
        12,
        &PATTERN,
    )
}

#[test]
fn muse_glimmer_rotates_windows_alone_and_gates_attention() {
    let file = || header("muse-glimmer").f32("muse-glimmer.logit_scale", 0.25);
    let windows = || file().u32("muse-glimmer.attention.sliding_window", 128);
    let config1 = config(windows().f32("muse-glimmer.rope.freq_base_swa", 2e4)).unwrap();
    let [local, full] = [2, 3].map(|layer| attention(&config1, layer));
    assert_eq!((local.window, full.window, full.rope), (Some(Window::Sliding(128)), None, None));
    assert_eq!((config1.ropes[local.rope.unwrap()].base, full.gate), (2e4, Some(OutputGate::Sigmoid)));
    assert_eq!((config1.embedding_norm, config1.logit_scale), (EmbeddingNorm::Plain, 0.25));
    assert_eq!(config1.logit_cap, Some(30.0), "where the file does not say");
    let uncapped = config(windows().f32("muse-glimmer.final_logit_softcapping", 0.0)).unwrap();
    assert_eq!(uncapped.logit_cap, None);
    refused(file(), &["attention.sliding_window"]);
    refused(header("muse-glimmer").u32("muse-glimmer.attention.sliding_window", 128), &["logit_scale is missing"]);
    refused(windows().str("muse-glimmer.rope.scaling.type", "yarn"), &["rope.scaling.type` = yarn"]);
}

#[test]
fn laguna_has_layers_of_two_kinds() {
    let file = || with_experts(header("laguna"), "laguna").u32("laguna.leading_dense_block_count", 1);
    let two = file().u32("laguna.attention.sliding_window", 128);
    let two = two.u32("laguna.rope.dimension_count", 4).u32("laguna.rope.dimension_count_swa", 8);
    let yarn = two.str("laguna.rope.scaling.type", "yarn").f32("laguna.rope.scaling.factor", 32.0);
    let config1 = config(yarn).unwrap();
    let [full, local] = [0, 1].map(|layer| attention(&config1, layer));
    assert_eq!((full.window, local.window), (None, Some(Window::Sliding(128))));
    assert_eq!((full.gate, local.gate), (Some(OutputGate::Softplus), Some(OutputGate::Softplus)));
    let [full, local] = [full, local].map(|attention| &config1.ropes[attention.rope.unwrap()]);
    assert_eq!((full.dim, full.scale, full.yarn.is_some()), (4, 32.0, true));
    assert_eq!((local.dim, local.scale, local.yarn, local.magnitude), (8, 1.0, None, 1.0));
    let experts1 = experts(&config1, 1);
    assert_eq!((experts1.gating, experts1.n_ff_shared), (Gating::Sigmoid, 16), "one shared expert as wide as another");
    assert!(config1.layers[0].experts().is_none());
    assert!((0..12).all(|layer| attention(&config(file()).unwrap(), layer).window.is_none()), "without windows");
    refused(file().u32("laguna.attention.sliding_window", 9).u32("laguna.rope.dimension_count_swa", 10), &["1 to 8"]);
}

#[test]
fn llama4_sees_chunks_and_lets_queries_grow_where_nothing_is_rotated() {
    let file = || with_experts(header("llama4"), "llama4").u32("llama4.interleave_moe_layer_step", 2);
    let config1 = config(file()).unwrap();
    let [chunked, full] = [2, 3].map(|layer| attention(&config1, layer));
    assert_eq!((chunked.window, chunked.rope, chunked.temperature), (Some(Window::Chunk(8192)), Some(0), None));
    let temperature = QueryTemperature { beta: 0.1, length: 8192, offset: 1 };
    assert_eq!((full.window, full.rope, full.temperature), (None, None, Some(temperature)));
    assert_eq!((chunked.normed_after_rope, full.normed_after_rope), (true, false));
    let experts1 = experts(&config1, 1);
    assert!(experts1.weighs_input && !experts1.normalised && config1.layers[0].experts().is_none());
    assert_eq!((experts1.gating, experts1.n_ff_shared), (Gating::Sigmoid, 16));
    // The largest of them does not norm heads.
    let keys = [("expert_count", 128), ("expert_used_count", 1), ("interleave_moe_layer_step", 2)];
    let largest = keys.iter().fold(header("llama4"), |file, (key, value)| file.u32(&format!("llama4.{key}"), *value));
    assert!(!attention(&config(largest).unwrap(), 2).normed_after_rope);
    refused(file().u32("llama4.attention.sliding_window", 0), &["sliding_window is 0"]);
    refused(file().f32("llama4.rope.freq_base_swa", 1e6), &["rope.freq_base_swa"]);
    refused(header("llama4"), &["expert_count"]);
}

#[test]
fn mimo2_has_short_values_and_one_dense_layer() {
    let file = || with_experts(header("mimo2"), "mimo2").u32("mimo2.attention.value_length", 6);
    let config1 = config(listed(file().f32("mimo2.attention.value_scale", 0.707), "mimo2")).unwrap();
    let [full, local] = [0, 1].map(|layer| attention(&config1, layer));
    assert_eq!((full.key_dim, full.value_dim, full.value_scale, full.window), (8, 6, 0.707, None));
    assert_eq!((local.window, config1.ropes[local.rope.unwrap()].base), (Some(Window::Sliding(128)), 1e4));
    assert_eq!([0, 1].map(|layer| config1.layers[layer].experts().is_some()), [false, true]);
    refused(file().u32("mimo2.attention.sliding_window", 128), &["sliding_window_pattern"]);
    refused(listed(file(), "mimo2").str("mimo2.rope.scaling.type", "yarn"), &["rope.scaling.type` = yarn"]);
    refused(header("llama").f32("llama.attention.value_scale", 0.7), &["value_scale` = 0.7"]);
}

#[test]
fn step35_limits_what_some_experts_come_to() {
    let file = || listed(with_experts(header("step35"), "step35"), "step35").u32("step35.leading_dense_block_count", 1);
    let limits = |first: f32| [[first; 1].as_slice(), &[0.0; 10], &[7.0]].concat();
    let clamped = |first| file().f32s("step35.swiglu_clamp_exp", &limits(first));
    let config1 = config(clamped(0.0)).unwrap();
    assert_eq!(experts(&config1, 11).activations, [Some(Activation::LimitedSwiglu(7.0)), None]);
    assert_eq!(experts(&config1, 10).activations, [None, None]);
    let [full, local] = [0, 1].map(|layer| config1.ropes[attention(&config1, layer).rope.unwrap()].dim);
    assert_eq!((full, local), (4, 8), "half as much is rotated where everything is seen");
    refused(clamped(5.0), &["swiglu_clamp_exp", "layer without experts"]);
    refused(file().u32("step35.moe_every_n_layers", 2), &["moe_every_n_layers"]);
    refused(header("qwen3").f32s("qwen3.swiglu_clamp_exp", &limits(0.0)), &["swiglu_clamp_exp"]);
}

#[test]
fn maple_limits_what_experts_are_made_of() {
    let file = listed(with_experts(header("maple"), "maple"), "maple").f32("maple.swiglu_clamp_exp", 7.0);
    let config1 = config(file).unwrap();
    assert_eq!(experts(&config1, 0).activations[0], Some(Activation::SwigluOfLimited(7.0)));
    assert_eq!([0, 1].map(|layer| attention(&config1, layer).rope), [None, Some(1)]);
}

#[test]
fn exaone_rotates_windows_alone_where_it_has_them() {
    let small = config(header("exaone4").u32("exaone4.attention.sliding_window", 64)).unwrap();
    assert_eq!((attention(&small, 0).window, attention(&small, 3).rope), (None, Some(0)));
    let large = config(deep_header("exaone4", 64)).unwrap();
    let [local, full] = [2, 3].map(|layer| attention(&large, layer));
    assert_eq!((local.window, local.rope), (Some(Window::Sliding(4096)), Some(0)));
    assert_eq!((full.window, full.rope), (None, None));
    let moe = || with_experts(header("exaone-moe"), "exaone-moe");
    let moe1 = config(moe().u32("exaone-moe.attention.sliding_window", 128)).unwrap();
    assert_eq!([2, 3].map(|layer| attention(&moe1, layer).rope), [Some(0), None]);
    refused(moe(), &["attention.sliding_window"]);
}

#[test]
fn commands_have_parallel_residuals_and_halve_with_a_shared_expert() {
    let command = config(header("command-r").f32("command-r.logit_scale", 0.0625)).unwrap();
    assert_eq!((command.norm, command.logit_scale), (NormKind::Layer, 0.0625));
    assert_eq!((command.style.residual, attention(&command, 0).rope), (Residual::Parallel, Some(0)));
    refused(deep_header("command-r", 64), &["block_count", "norms of each head"]);
    let cohere2 = || header("cohere2").u32("cohere2.attention.sliding_window", 128);
    let config2 = config(cohere2().f32("cohere2.logit_scale", 0.25)).unwrap();
    assert_eq!([2, 3].map(|layer| attention(&config2, layer).rope), [Some(0), None]);
    refused(cohere2(), &["logit_scale is missing"]);
    let moe = without_eps("cohere2moe", 12, 2).f32("cohere2moe.attention.layer_norm_epsilon", 1e-5);
    let moe = with_experts(moe, "cohere2moe").f32("cohere2moe.logit_scale", 0.25);
    let moe = moe.u32("cohere2moe.attention.sliding_window", 128).u32("cohere2moe.leading_dense_block_count", 1);
    let moe = moe.u32("cohere2moe.expert_shared_count", 1);
    let config3 = config(moe).unwrap();
    // The first is dense, sees everything and is rotated; the fifth sees everything and is not.
    assert_eq!([0, 1, 4].map(|layer| attention(&config3, layer).rope), [Some(0), Some(0), None]);
    assert_eq!((experts(&config3, 1).scale, experts(&config3, 1).shared_scale), (0.5, 0.5));
    assert_eq!(config3.norm, NormKind::Layer);
}

#[test]
fn spark_and_mellum_have_rotations_of_two_kinds() {
    let spark = listed(header("spark2_5"), "spark2_5").f32("spark2_5.rope.freq_base_swa", 1e4);
    let spark = config(spark.f32("spark2_5.rope.freq_base", 1e6).u32("spark2_5.rope.dimension_count", 4)).unwrap();
    let [full, local] = [0, 1].map(|layer| &spark.ropes[attention(&spark, layer).rope.unwrap()]);
    assert_eq!((full.base, full.dim, local.base, local.dim), (1e6, 4, 1e4, 4));
    let mellum = with_experts(header("mellum"), "mellum").u32("mellum.attention.sliding_window", 128);
    let mellum = config(mellum.str("mellum.rope.scaling.type", "yarn").f32("mellum.rope.scaling.factor", 4.0)).unwrap();
    let [local, full] = [2, 3].map(|layer| &mellum.ropes[attention(&mellum, layer).rope.unwrap()]);
    assert_eq!((local.scale, local.magnitude, full.scale), (1.0, 1.0, 4.0));
}
