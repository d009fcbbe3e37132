//! What the headers of the architectures say, and what is refused of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/gguf.rs"]
mod writer;

use brim::load::header::ModelFiles;
use brim::model::config::{Config, Gating};
use writer::Gguf;

/// The header of a model of 12 layers with heads of 8 values, to which a test adds.
fn header(arch: &str) -> Gguf {
    deep_header(arch, 12)
}

fn deep_header(arch: &str, n_layers: u32) -> Gguf {
    let numbers = [
        ("block_count", n_layers),
        ("context_length", 8192),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let file = Gguf::new().str("general.architecture", arch);
    numbers.iter().fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
}

fn config(file: Gguf) -> Result<Config, String> {
    let bytes: &'static [u8] = Box::leak(file.tensor("t", &[1], 0, &[0; 4]).build().into_boxed_slice());
    let files = ModelFiles::embedded("header", bytes).map_err(|e| e.to_string())?;
    Config::from_metadata(&files.metadata()).map_err(|e| e.to_string())
}

fn refused(file: Gguf, parts: &[&str]) {
    let error = config(file).unwrap_err();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks one of {parts:?}");
}

#[test]
fn an_unknown_architecture_is_refused_with_the_list_of_those_there_are() {
    refused(header("rwkv7"), &["`rwkv7`", "llama, qwen2, qwen3, qwen3moe, minimax-m2, gpt-oss, glm4moe, gemma3, phi3"]);
}

#[test]
fn gemma3_has_five_windows_to_a_layer_that_sees_everything() {
    let file = || header("gemma3").u32("gemma3.attention.sliding_window", 512).f32("gemma3.rope.freq_base", 1e6);
    let config1 =
        config(file().str("gemma3.rope.scaling.type", "linear").f32("gemma3.rope.scaling.factor", 8.0)).unwrap();
    let windows: Vec<usize> = (0..12).map(|layer| config1.window_of(layer)).collect();
    assert_eq!(windows[..6], [512, 512, 512, 512, 512, usize::MAX]);
    assert_eq!(windows[..6], windows[6..]);
    let local = &config1.window.as_ref().unwrap().rope;
    assert_eq!((config1.rope.base, config1.rope.scale, local.base, local.scale), (1e6, 8.0, 1e4, 1.0));
    assert_eq!((config1.embedding_scale, config1.attention_scale), (32f32.sqrt(), 8f32.sqrt().recip()));
    assert_eq!(config1.logit_cap, None);
    // The largest of them divides by the width of the stream.
    let largest = config(deep_header("gemma3", 62).u32("gemma3.attention.key_length", 16)).unwrap();
    assert_eq!(largest.attention_scale, 8f32.sqrt().recip());
    let capped = config(header("gemma3").f32("gemma3.final_logit_softcapping", 30.0)).unwrap();
    assert_eq!((capped.window, capped.logit_cap), (None, Some(30.0)));
    refused(file().array("gemma3.attention.sliding_window_pattern", 7, 2, &[1, 0]), &["pattern", "2 elements"]);
}

#[test]
fn gpt_oss_has_a_window_in_every_second_layer_and_weighs_those_chosen() {
    let experts = |file: Gguf| file.u32("gpt-oss.expert_count", 32).u32("gpt-oss.expert_used_count", 4);
    let file = experts(header("gpt-oss")).u32("gpt-oss.attention.sliding_window", 128);
    let yarn = file.str("gpt-oss.rope.scaling.type", "yarn").f32("gpt-oss.rope.scaling.factor", 32.0);
    let config1 = config(yarn.u32("gpt-oss.rope.scaling.original_context_length", 4096)).unwrap();
    assert_eq!([0, 1, 2].map(|layer| config1.window_of(layer)), [128, usize::MAX, 128]);
    let experts1 = config1.experts.unwrap();
    assert_eq!((experts1.gating, experts1.n_ff, config1.n_ff), (Gating::SoftmaxOfChosen, 48, 0));
    assert_eq!(config1.rope.ctx_original, 4096);
    assert!((config1.rope.magnitude - (1.0 + 0.1 * 32f32.ln())).abs() < 1e-6);
    assert_eq!(config1.window.unwrap().rope, config1.rope);
    refused(experts(header("gpt-oss")).f32("gpt-oss.rope.scaling.alpha", 2.0), &["rope.scaling.alpha` = 2"]);
    refused(experts(header("gpt-oss")).str("gpt-oss.rope.scaling.type", "dynamic"), &["scaling.type` = dynamic"]);
}

#[test]
fn glm4moe_leaves_out_the_layers_that_predict_ahead() {
    let experts = |file: Gguf| file.u32("glm4moe.expert_count", 16).u32("glm4moe.expert_used_count", 2);
    let file = || experts(header("glm4moe")).u32("glm4moe.expert_feed_forward_length", 8);
    let all = file().u32("glm4moe.nextn_predict_layers", 1).u32("glm4moe.leading_dense_block_count", 3);
    let all = all.u32("glm4moe.expert_shared_count", 2).f32("glm4moe.expert_weights_scale", 2.5);
    let config1 = config(all.u32("glm4moe.rope.dimension_count", 4)).unwrap();
    let experts1 = config1.experts.unwrap();
    assert_eq!((config1.n_layers, config1.n_layers_skipped, config1.n_ff, config1.rope.dim), (11, 1, 48, 4));
    assert_eq!((experts1.n_ff, experts1.n_ff_shared, experts1.scale, config1.n_ff_dense()), (8, 16, 2.5, 48));
    assert_eq!((experts1.gating, experts1.normalised), (Gating::Sigmoid, false));
    assert_eq!([0, 2, 3].map(|layer| config1.has_experts(layer)), [false, false, true]);
    refused(file().u32("glm4moe.expert_gating_func", 4), &["expert_gating_func` = 4"]);
    refused(file().u32("glm4moe.expert_group_count", 8), &["expert_group_count` = 8"]);
    refused(file().u32("glm4moe.nextn_predict_layers", 12), &["nextn_predict_layers is 12"]);
}

#[test]
fn features_of_one_architecture_are_refused_in_another() {
    refused(header("qwen3").u32("qwen3.expert_count", 8), &["qwen3.expert_count` = 8"]);
    refused(header("llama").u32("llama.attention.sliding_window", 4096), &["sliding_window` = 4096"]);
    refused(header("qwen2").u32("qwen2.nextn_predict_layers", 1), &["nextn_predict_layers` = 1"]);
    refused(header("phi3").u32("phi3.rope.dimension_count", 6).u32("phi3.expert_count", 16), &["expert_count` = 16"]);
    refused(header("phi3").u32("phi3.rope.dimension_count", 10), &["rope.dimension_count is 10"]);
    // Not meant where it stands.
    assert_eq!(config(header("phi3").u32("phi3.attention.sliding_window", 2047)).unwrap().window, None);
    let mixtral = header("llama").u32("llama.expert_count", 8).u32("llama.expert_used_count", 2);
    assert_eq!(config(mixtral).unwrap().experts.unwrap().n_ff, 48);
}
