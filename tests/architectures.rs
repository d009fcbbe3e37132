//! What the headers of the architectures say, and what is refused of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "architectures/dense.rs"]
mod dense;
#[path = "architectures/gemma.rs"]
mod gemma;
#[path = "architectures/mamba.rs"]
mod mamba;
#[path = "architectures/mla.rs"]
mod mla;
#[path = "architectures/moes.rs"]
mod moes;
#[path = "architectures/relatives.rs"]
mod relatives;
#[path = "architectures/vectors.rs"]
mod vectors;
#[path = "common/gguf.rs"]
mod writer;

use brim::load::header::ModelFiles;
use brim::model::Model;
use brim::model::config::{
    AttentionConfig, Config, DeltaNetConfig, Experts, Gating, HeadOrder, MixerConfig, QueryTemperature,
};
use writer::Gguf;

/// The header of a model of 12 layers with heads of 8 values, to which a test adds.
fn header(arch: &str) -> Gguf {
    deep_header(arch, 12)
}

fn deep_header(arch: &str, n_layers: u32) -> Gguf {
    sized_header(arch, n_layers, 2)
}

fn sized_header(arch: &str, n_layers: u32, n_kv_heads: u32) -> Gguf {
    with_eps(without_eps(arch, n_layers, n_kv_heads), arch)
}

/// The epsilons of both kinds of norm.
fn with_eps(file: Gguf, arch: &str) -> Gguf {
    ["layer_norm_rms_epsilon", "layer_norm_epsilon"]
        .iter()
        .fold(file, |file, key| file.f32(&format!("{arch}.attention.{key}"), 1e-5))
}

fn without_eps(arch: &str, n_layers: u32, n_kv_heads: u32) -> Gguf {
    let numbers = [
        ("block_count", n_layers),
        ("context_length", 8192),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", n_kv_heads),
    ];
    let file = Gguf::new().str("general.architecture", arch);
    numbers.iter().fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
}

fn config(file: Gguf) -> Result<Config, String> {
    let bytes: &'static [u8] = Box::leak(file.tensor("t", &[1], 0, &[0; 4]).build().into_boxed_slice());
    let files = ModelFiles::embedded("header", bytes).map_err(|e| e.to_string())?;
    Model::config_of(&files.metadata()).map_err(|e| e.to_string())
}

/// The attention of a layer that has it.
fn attention(config: &Config, layer: usize) -> AttentionConfig {
    *config.layers[layer].attention().unwrap()
}

/// The experts of a layer that has them.
fn experts(config: &Config, layer: usize) -> Experts {
    *config.layers[layer].experts().unwrap()
}

fn refused(file: Gguf, parts: &[&str]) {
    let error = config(file).unwrap_err();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks one of {parts:?}");
}

#[test]
fn what_does_not_run_is_refused_with_what_is_missing_and_what_is_nearest() {
    refused(header("rwkv7"), &["`rwkv7` (RWKV-7)", "time mixing", "nearest that runs is `mamba2`", "`brim models`"]);
    refused(header("deepseek4"), &["compressed caches", "`deepseek2`"]);
    refused(header("never-seen"), &["`never-seen`", "not known", "`brim models`"]);
}

#[test]
fn gemma3_has_five_windows_to_a_layer_that_sees_everything() {
    let file = || header("gemma3").u32("gemma3.attention.sliding_window", 512).f32("gemma3.rope.freq_base", 1e6);
    let config1 =
        config(file().str("gemma3.rope.scaling.type", "linear").f32("gemma3.rope.scaling.factor", 8.0)).unwrap();
    let windows: Vec<usize> = (0..12).map(|layer| config1.window_of(layer)).collect();
    assert_eq!(windows[..6], [512, 512, 512, 512, 512, usize::MAX]);
    assert_eq!(windows[..6], windows[6..]);
    let [full, local] = [5, 0].map(|layer| &config1.ropes[attention(&config1, layer).rope.unwrap()]);
    assert_eq!((full.base, full.scale, local.base, local.scale), (1e6, 8.0, 1e4, 1.0));
    assert_eq!((config1.embedding_scale, attention(&config1, 0).scale), (32f32.sqrt(), 8f32.sqrt().recip()));
    assert_eq!(config1.logit_cap, None);
    // Windows are not stretched, but what the file multiplies cosines and sines by is for all.
    let factor = |file: Gguf| file.f32("gemma3.rope.scaling.attn_factor", 1.5).f32("gemma3.rope.scaling.factor", 8.0);
    let plain = config(factor(file())).unwrap();
    assert_eq!(
        plain.ropes.iter().map(|rope| (rope.magnitude, rope.scale)).collect::<Vec<_>>(),
        [(1.5, 8.0), (1.5, 1.0)]
    );
    let yarn = config(factor(file()).str("gemma3.rope.scaling.type", "yarn")).unwrap();
    assert!((yarn.ropes[0].magnitude - 1.5 * (1.0 + 0.1 * 8f32.ln())).abs() < 1e-6);
    assert!((yarn.ropes[1].magnitude - 1.5).abs() < 1e-6 && yarn.ropes[1].yarn.is_none());
    // The largest of them divides by the width of the stream.
    let largest = config(deep_header("gemma3", 62).u32("gemma3.attention.key_length", 16)).unwrap();
    assert_eq!(attention(&largest, 0).scale, 8f32.sqrt().recip());
    let capped = config(header("gemma3").f32("gemma3.final_logit_softcapping", 30.0)).unwrap();
    assert_eq!((attention(&capped, 0).window, capped.logit_cap), (None, Some(30.0)));
    refused(file().array("gemma3.attention.sliding_window_pattern", 7, 2, &[1, 0]), &["pattern", "2 elements"]);
}

#[test]
fn numbers_of_windows_are_those_of_all_layers_where_an_architecture_has_no_others() {
    for arch in ["gemma2", "gemma3", "afmoe", "cohere2"] {
        let with = |key: &str, dim: u32| {
            let file = header(arch).u32(&format!("{arch}.attention.sliding_window"), 512);
            let file = file.f32(&format!("{arch}.logit_scale"), 1.0).u32(&format!("{arch}.{key}"), dim);
            let file = file.u32(&format!("{arch}.expert_count"), if arch == "afmoe" { 8 } else { 0 });
            let file = file.u32(&format!("{arch}.expert_used_count"), 2);
            file.u32(&format!("{arch}.leading_dense_block_count"), 1)
        };
        for key in ["rope.dimension_count_swa", "attention.key_length_swa", "attention.value_length_swa"] {
            refused(with(key, 4), &[&format!("`{arch}.{key}` = 4 where "), "other layers", "8"]);
            let same = config(with(key, 8));
            assert!(same.is_ok(), "{same:?}");
        }
    }
    // Nobody has a window here.
    config(header("gemma3").u32("gemma3.rope.dimension_count_swa", 4)).unwrap();
}

#[test]
fn gpt_oss_has_a_window_in_every_second_layer_and_weighs_those_chosen() {
    let with_experts = |file: Gguf| file.u32("gpt-oss.expert_count", 32).u32("gpt-oss.expert_used_count", 4);
    let file = with_experts(header("gpt-oss")).u32("gpt-oss.attention.sliding_window", 128);
    let yarn = file.str("gpt-oss.rope.scaling.type", "yarn").f32("gpt-oss.rope.scaling.factor", 32.0);
    let config1 = config(yarn.u32("gpt-oss.rope.scaling.original_context_length", 4096)).unwrap();
    assert_eq!([0, 1, 2].map(|layer| config1.window_of(layer)), [128, usize::MAX, 128]);
    let experts1 = experts(&config1, 0);
    assert_eq!((experts1.gating, experts1.n_ff, config1.n_ff_dense()), (Gating::SoftmaxOfChosen, 48, 0));
    assert_eq!(config1.ropes[0].ctx_original, 4096);
    assert!((config1.ropes[0].magnitude - (1.0 + 0.1 * 32f32.ln())).abs() < 1e-6);
    assert_eq!(config1.ropes[0], config1.ropes[1]);
    refused(with_experts(header("gpt-oss")).f32("gpt-oss.rope.scaling.alpha", 2.0), &["rope.scaling.alpha` = 2"]);
    refused(with_experts(header("gpt-oss")).str("gpt-oss.rope.scaling.type", "dynamic"), &["scaling.type` = dynamic"]);
}

#[test]
fn a_context_of_0_before_scaling_is_none() {
    let yarn = header("qwen2").str("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 4.0);
    let yarn = config(yarn.u32("qwen2.rope.scaling.original_context_length", 0)).unwrap();
    assert_eq!(yarn.ropes[0].ctx_original, 8192);
}

#[test]
fn glm4moe_leaves_out_the_layers_that_predict_ahead() {
    let with_experts = |file: Gguf| file.u32("glm4moe.expert_count", 16).u32("glm4moe.expert_used_count", 2);
    let file = || with_experts(header("glm4moe")).u32("glm4moe.expert_feed_forward_length", 8);
    let all = file().u32("glm4moe.nextn_predict_layers", 1).u32("glm4moe.leading_dense_block_count", 3);
    let all = all.u32("glm4moe.expert_shared_count", 2).f32("glm4moe.expert_weights_scale", 2.5);
    let config1 = config(all.u32("glm4moe.rope.dimension_count", 4)).unwrap();
    let experts1 = experts(&config1, 3);
    assert_eq!((config1.n_layers(), config1.n_layers_skipped, config1.ropes[0].dim), (11, 1, 4));
    assert_eq!((experts1.n_ff, experts1.n_ff_shared, experts1.scale, config1.n_ff_dense()), (8, 16, 2.5, 48));
    assert_eq!((experts1.gating, experts1.normalised), (Gating::Sigmoid, false));
    assert_eq!([0, 2, 3].map(|layer| config1.layers[layer].experts().is_some()), [false, false, true]);
    refused(file().u32("glm4moe.expert_gating_func", 4), &["expert_gating_func` = 4"]);
    let grouped =
        |count, used| file().u32("glm4moe.expert_group_count", count).u32("glm4moe.expert_group_used_count", used);
    let groups = experts(&config(grouped(4, 2)).unwrap(), 0).groups.unwrap();
    assert_eq!((groups.count, groups.used), (4, 2));
    assert_eq!(experts(&config(grouped(1, 1)).unwrap(), 0).groups, None, "one group is none");
    refused(grouped(5, 2), &["expert_group_count is 5", "divisor of 16"]);
    refused(grouped(16, 2), &["expert_group_count is 16", "at least 2 for each group"]);
    refused(grouped(4, 5), &["expert_group_used_count is 5", "1 to 4"]);
    refused(file().u32("glm4moe.expert_group_count", 4), &["expert_group_used_count"]);
    refused(file().u32("glm4moe.nextn_predict_layers", 12), &["nextn_predict_layers is 12"]);
}

#[test]
fn features_of_one_architecture_are_refused_in_another() {
    refused(header("qwen3").u32("qwen3.expert_count", 8), &["qwen3.expert_count` = 8"]);
    refused(header("llama").u32("llama.attention.sliding_window", 4096), &["sliding_window` = 4096"]);
    refused(header("qwen2").f32("qwen2.attn_logit_softcapping", 50.0), &["attn_logit_softcapping` = 50"]);
    refused(header("qwen3").f32("qwen3.residual_scale", 0.22), &["residual_scale` = 0.22"]);
    // What says nothing may stand.
    config(header("qwen3").u32("qwen3.expert_count", 0).f32("qwen3.logit_scale", 1.0)).unwrap();
    refused(header("phi3").u32("phi3.rope.dimension_count", 6).u32("phi3.expert_count", 16), &["expert_count` = 16"]);
    refused(header("phi3").u32("phi3.rope.dimension_count", 10), &["rope.dimension_count is 10"]);
    // Not meant where it stands.
    let phi3 = config(header("phi3").u32("phi3.attention.sliding_window", 2047)).unwrap();
    assert_eq!(attention(&phi3, 0).window, None);
    let mixtral = header("llama").u32("llama.expert_count", 8).u32("llama.expert_used_count", 2);
    assert_eq!(experts(&config(mixtral).unwrap(), 0).n_ff, 48);
}

#[test]
fn layers_that_predict_ahead_are_left_out_where_an_architecture_has_them() {
    for arch in ["glm4", "exaone4"] {
        let config = config(header(arch).u32(&format!("{arch}.nextn_predict_layers"), 2)).unwrap();
        assert_eq!((config.n_layers(), config.n_layers_skipped), (10, 2), "{arch}");
    }
    refused(header("glm4").u32("glm4.nextn_predict_layers", 12), &["nextn_predict_layers is 12", "1 to 11"]);
    for arch in ["llama", "gpt2", "mamba2", "gemma3", "seed_oss"] {
        let file = header(arch).u32(&format!("{arch}.nextn_predict_layers"), 1);
        refused(file, &[&format!("`{arch}.nextn_predict_layers` = 1 "), "without layers that predict ahead"]);
        if let Err(error) = config(header(arch).u32(&format!("{arch}.nextn_predict_layers"), 0)) {
            assert!(!error.contains("nextn"), "{error}");
        }
    }
}

/// Element types of arrays.
const U32: u32 = 4;
const I32: u32 = 5;
const BOOL: u32 = 7;

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

#[test]
fn numbers_are_read_as_one_for_all_layers_or_one_for_each() {
    let file = |heads: &[u32], kv_heads: &[u32], n_ff: &[u32]| {
        let file = Gguf::new().str("general.architecture", "openelm").u32("openelm.block_count", 3);
        let file = with_eps(file, "openelm");
        let file = file.u32("openelm.embedding_length", 32).u32("openelm.attention.key_length", 8);
        let arrays =
            [("attention.head_count", heads), ("attention.head_count_kv", kv_heads), ("feed_forward_length", n_ff)];
        arrays.into_iter().fold(file, |file, (key, numbers)| {
            file.array(&format!("openelm.{key}"), U32, numbers.len() as u64, &words(numbers))
        })
    };
    let layered = config(file(&[4, 6, 8], &[2, 3, 4], &[16, 32, 48])).unwrap();
    let of = |layer| {
        let attention = attention(&layered, layer);
        (attention.n_heads, attention.n_kv_heads, attention.key_dim, layered.layers[layer].n_ff_dense())
    };
    assert_eq!([0, 1, 2].map(of), [(4, 2, 8, 16), (6, 3, 8, 32), (8, 4, 8, 48)]);
    // Of one value, as some converters write them.
    let same = config(file(&[4], &[2], &[48])).unwrap();
    assert_eq!((attention(&same, 2).n_heads, attention(&same, 2).n_kv_heads, same.n_ff_dense()), (4, 2, 48));
    refused(file(&[4, 6], &[2], &[48]), &["head_count`", "an array of 2 values in a model of 3 layers"]);
    refused(file(&[4, 6, 8], &[2, 4, 4], &[48]), &["attention.head_count is 6", "head_count_kv (4)"]);
    refused(file(&[4, 0, 8], &[2, 2, 2], &[48]), &["attention.head_count is 0"]);
    refused(file(&[4, 6, 8], &[2, 3, 4], &[16, 0, 48]), &["feed_forward_length"]);
}

#[test]
fn a_file_must_say_the_epsilon_of_its_kind_of_norm() {
    let (rms, layer) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
    let with = |arch: &str, keys: &[(&str, f32)]| {
        keys.iter().fold(without_eps(arch, 12, 2), |file, (key, value)| file.f32(&format!("{arch}.{key}"), *value))
    };
    for (arch, key, other) in [
        ("llama", rms, layer),
        ("qwen3", rms, layer),
        ("refact", rms, layer),
        ("gpt2", layer, rms),
        ("olmo", layer, rms),
    ] {
        refused(with(arch, &[]), &[key, "missing"]);
        refused(with(arch, &[(other, 1e-3)]), &[key, "missing"]);
        assert_eq!(config(with(arch, &[(key, 1e-6)])).unwrap().norm_eps, 1e-6, "{arch}");
        assert_eq!(config(with(arch, &[(other, 1e-3), (key, 1e-6)])).unwrap().norm_eps, 1e-6, "{arch}");
    }
}

#[test]
fn an_epsilon_that_is_too_large_is_shown_as_it_is() {
    let file = without_eps("qwen3", 12, 2).f32("qwen3.attention.layer_norm_rms_epsilon", 1.5);
    refused(file, &["layer_norm_rms_epsilon is 1.5", "a number below 1"]);
    // And a bound that is exceeded is named.
    refused(header("qwen3").u32("qwen3.attention.key_length", 2000), &["attention.key_length is 2000", "1 to 1024"]);
}

#[test]
fn lfm2_has_convolutions_where_it_has_no_key_and_value_heads() {
    let file = |taps: u32| {
        let file = with_eps(Gguf::new().str("general.architecture", "lfm2").u32("lfm2.block_count", 3), "lfm2");
        let file = file.u32("lfm2.embedding_length", 32).u32("lfm2.attention.head_count", 4);
        let file = file.array("lfm2.attention.head_count_kv", U32, 3, &words(&[0, 2, 0]));
        file.u32("lfm2.feed_forward_length", 48).u32("lfm2.shortconv.l_cache", taps)
    };
    let config1 = config(file(3)).unwrap();
    let mixers: Vec<MixerConfig> = config1.layers.iter().map(|layer| layer.mixer).collect();
    assert_eq!((mixers[0], mixers[2]), (MixerConfig::ShortConv { taps: 3 }, MixerConfig::ShortConv { taps: 3 }));
    assert_eq!(attention(&config1, 1).n_kv_heads, 2);
    refused(file(17), &["shortconv.l_cache is 17", "1 to 16"]);
    refused(file(0), &["shortconv.l_cache is 0"]);
}

/// A header of a Gated DeltaNet hybrid, with `changed` instead of what it usually has.
fn hybrid(arch: &str, changed: &[(&str, u32)]) -> Gguf {
    let usual = [
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 6 * 16),
        ("ssm.state_size", 16),
        ("ssm.time_step_rank", 6),
        ("ssm.group_count", 2),
        ("rope.dimension_count", 4),
    ];
    let kept = usual.into_iter().filter(|(key, _)| !changed.iter().any(|(changed, _)| changed == key));
    let mut file = header(arch);
    if arch != "qwen35" {
        file = file.u32(&format!("{arch}.expert_count"), 8).u32(&format!("{arch}.expert_used_count"), 2);
        file = file.u32(&format!("{arch}.expert_feed_forward_length"), 12);
    }
    kept.chain(changed.iter().copied()).fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), value))
}

#[test]
fn the_hybrids_have_a_delta_rule_but_in_every_fourth_layer() {
    for (arch, order) in
        [("qwen35", HeadOrder::Repeated), ("qwen35moe", HeadOrder::Repeated), ("qwen3next", HeadOrder::Grouped)]
    {
        let config = config(hybrid(arch, &[("nextn_predict_layers", 1)])).unwrap();
        assert_eq!((config.n_layers(), config.n_layers_skipped), (11, 1), "{arch}");
        let delta = DeltaNetConfig { n_key_heads: 2, n_value_heads: 6, head_dim: 16, order, taps: 4 };
        for (index, layer) in config.layers.iter().enumerate() {
            match (index + 1) % 4 {
                0 => assert!(layer.attention().unwrap().gate.is_some(), "{arch} {index}"),
                _ => assert_eq!(layer.mixer, MixerConfig::DeltaNet(delta), "{arch} {index}"),
            }
        }
        let of_key_heads = |key_head| (0..6).filter(|&head| delta.key_head(head) == key_head).collect::<Vec<_>>();
        match order {
            HeadOrder::Repeated => assert_eq!((of_key_heads(0), of_key_heads(1)), (vec![0, 2, 4], vec![1, 3, 5])),
            HeadOrder::Grouped => assert_eq!((of_key_heads(0), of_key_heads(1)), (vec![0, 1, 2], vec![3, 4, 5])),
        }
        if arch != "qwen35" {
            let experts = experts(&config, 0);
            assert_eq!((experts.n_ff, experts.n_ff_shared, experts.normalised), (12, 48, true), "{arch}");
            assert_eq!(experts.gating, Gating::Softmax);
        }
    }
}

#[test]
fn a_hybrid_may_list_its_recurrent_layers_and_has_sizes_that_fit() {
    let flags: Vec<u8> = (0..12).map(|layer| u8::from(layer != 5)).collect();
    let listed = hybrid("qwen35", &[]).array("qwen35.attention.recurrent_layers", BOOL, 12, &flags);
    let listed = config(listed).unwrap();
    let attending: Vec<usize> = (0..12).filter(|&layer| listed.layers[layer].attention().is_some()).collect();
    assert_eq!(attending, [5]);
    let interval = config(hybrid("qwen35", &[("full_attention_interval", 3)])).unwrap();
    assert!([2, 5, 8, 11].iter().all(|&layer| interval.layers[layer].attention().is_some()));
    let short = hybrid("qwen35", &[]).array("qwen35.attention.recurrent_layers", BOOL, 3, &flags[..3]);
    refused(short, &["attention.recurrent_layers is an array of 3 elements", "a yes or no for each of 12 layers"]);
    refused(hybrid("qwen35", &[("attention.recurrent_layers", 1)]), &["recurrent_layers", "not an array"]);
    let is_refused = |key: &str, value: u32, parts: &[&str]| refused(hybrid("qwen35", &[(key, value)]), parts);
    let sections = |of: [u32; 4]| {
        hybrid("qwen35", &[("rope.dimension_count", 8)]).array("qwen35.rope.dimension_sections", I32, 4, &words(&of))
    };
    config(sections([2, 1, 1, 0])).unwrap();
    refused(sections([1, 1, 1, 0]), &["rope.dimension_sections` = [1, 1, 1, 0] for 4 pairs"]);
    refused(sections([2, 1, 1, 1]), &["dimension_sections"]);
    is_refused("ssm.state_size", 24, &["ssm.state_size is 24", "a multiple of 16"]);
    is_refused("ssm.state_size", 272, &["ssm.state_size is 272", "1 to 256"]);
    is_refused("ssm.time_step_rank", 5, &["ssm.time_step_rank is 5", "a multiple of ssm.group_count, 2"]);
    is_refused("ssm.inner_size", 64, &["ssm.inner_size is 64", "96"]);
    is_refused("ssm.conv_kernel", 17, &["ssm.conv_kernel is 17", "1 to 16"]);
    is_refused("ssm.group_count", 0, &["ssm.group_count is 0"]);
    refused(header("qwen35"), &["qwen35.ssm.group_count"]);
    refused(header("llama").u32("llama.ssm.state_size", 16), &["ssm.state_size` = 16"]);
}

#[test]
fn a_file_of_layers_that_predict_ahead_alone_is_refused_by_name() {
    let file = hybrid("qwen35", &[("nextn_predict_layers", 1)]);
    let file = file.tensor("blk.11.attn_norm.weight", &[32], 0, &[0; 128]).build();
    let files = ModelFiles::embedded("ahead", Box::leak(file.into_boxed_slice())).unwrap();
    let error = Model::from_tables(&files.metadata(), files.tensors()).unwrap_err().to_string();
    assert!(error.contains("holds only the layer that predicts ahead (MTP, `nextn`), not the model"), "{error}");
}

#[test]
fn smollm3_does_not_rotate_every_fourth_layer_and_mistral3_scales_its_queries() {
    let smollm3 = config(header("smollm3")).unwrap();
    let ropes = [0, 2, 3, 4, 7, 11].map(|layer| attention(&smollm3, layer).rope);
    assert_eq!(ropes, [Some(0), Some(0), None, Some(0), None, None]);
    let yarn = header("mistral3").str("mistral3.rope.scaling.type", "yarn").f32("mistral3.rope.scaling.factor", 16.0);
    let yarn = yarn.u32("mistral3.rope.scaling.original_context_length", 16_384);
    let yarn = yarn.f32("mistral3.rope.scaling.yarn_log_multiplier", 1.0);
    let mistral3 = config(yarn.f32("mistral3.attention.temperature_scale", 0.1)).unwrap();
    assert_eq!(attention(&mistral3, 3).temperature, Some(QueryTemperature { beta: 0.1, length: 16_384, offset: 0 }));
    assert_eq!(mistral3.ropes[0].magnitude, 1.0);
    assert_eq!(attention(&config(header("mistral3")).unwrap(), 0).temperature, None);
}

#[test]
fn numbers_may_be_arrays_of_one() {
    let of_one = |file: Gguf, key: &str, n: u32| file.array(&format!("qwen3moe.{key}"), 4, 1, &n.to_le_bytes());
    let plain = Gguf::new().str("general.architecture", "qwen3moe").u32("qwen3moe.block_count", 2);
    let plain = with_eps(plain, "qwen3moe");
    let numbers = [
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 8),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 24),
    ];
    let config = config(numbers.into_iter().fold(plain, |file, (key, n)| of_one(file, key, n))).unwrap();
    for layer in 0..2 {
        let attention = attention(&config, layer);
        assert_eq!((attention.n_heads, attention.n_kv_heads, attention.key_dim), (4, 2, 8));
        assert_eq!((experts(&config, layer).n_ff, experts(&config, layer).count), (24, 4));
    }
}
