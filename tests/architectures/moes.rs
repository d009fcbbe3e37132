//! Architectures with experts, and the language models of those that see images.

use super::{Gguf, attention, config, deep_header, experts, header, refused};
use brim::kernels::Window;
use brim::model::config::{Config, FfnConfig, Gating};

/// A header with 16 experts of 8 values, of which a token meets 4.
fn with_experts(arch: &str) -> Gguf {
    let keys = [("expert_count", 16), ("expert_used_count", 4), ("expert_feed_forward_length", 8)];
    keys.iter().fold(header(arch), |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
}

/// Which of the first four layers have experts.
fn which(config: &Config) -> [bool; 4] {
    [0, 1, 2, 3].map(|layer| matches!(config.layers[layer].ffn, FfnConfig::Experts(_)))
}

#[test]
fn the_shared_expert_is_as_wide_as_the_file_says_or_as_a_dense_layer() {
    let own = experts(&config(with_experts("qwen2moe")).unwrap(), 0);
    assert_eq!((own.n_ff, own.n_ff_shared, own.gating, own.normalised), (8, 48, Gating::Softmax, false));
    let told = with_experts("qwen2moe").u32("qwen2moe.expert_shared_feed_forward_length", 20);
    assert_eq!(experts(&config(told).unwrap(), 0).n_ff_shared, 20);
    let unlike = header("qwen2moe").u32("qwen2moe.expert_count", 16).u32("qwen2moe.expert_used_count", 4);
    assert_eq!(experts(&config(unlike).unwrap(), 0).n_ff, 12, "its share of a dense layer's");
    let hunyuan = experts(&config(with_experts("hunyuan-moe")).unwrap(), 0);
    assert_eq!((hunyuan.n_ff, hunyuan.n_ff_shared, hunyuan.normalised), (48, 48, true));
    // Ling 2 tells the width of each.
    let ling = with_experts("bailingmoe2").u32("bailingmoe2.expert_shared_feed_forward_length", 20);
    let ling = ling.u32("bailingmoe2.expert_shared_count", 2).u32("bailingmoe2.leading_dense_block_count", 1);
    let ling = config(ling.u32("bailingmoe2.rope.dimension_count", 4)).unwrap();
    assert_eq!((which(&ling), experts(&ling, 1).n_ff_shared), ([false, true, true, true], 40));
    refused(
        with_experts("bailingmoe2").u32("bailingmoe2.expert_shared_feed_forward_length", 20),
        &["expert_shared_count"],
    );
    refused(header("qwen2moe"), &["qwen2moe.expert_count"]);
}

#[test]
fn leading_layers_are_dense() {
    let ernie = with_experts("ernie4_5-moe").u32("ernie4_5-moe.leading_dense_block_count", 2);
    assert_eq!(which(&config(ernie).unwrap()), [false, false, true, true]);
    refused(
        with_experts("ernie4_5-moe").u32("ernie4_5-moe.interleave_moe_layer_step", 2),
        &["interleave_moe_layer_step is 2", "1 to 1"],
    );
    // Files of Hunyuan 3 do not say that the first is.
    let hunyuan = config(with_experts("hy_v3")).unwrap();
    assert_eq!((which(&hunyuan), experts(&hunyuan, 1).n_ff_shared), ([false, true, true, true], 8));
    let dots = with_experts("dots1").u32("dots1.expert_shared_count", 2).u32("dots1.leading_dense_block_count", 1);
    let dots = experts(&config(dots).unwrap(), 1);
    assert_eq!((dots.gating, dots.n_ff_shared), (Gating::Sigmoid, 16));
    let first = with_experts("deepseek").u32("deepseek.leading_dense_block_count", 1);
    let first = config(first).unwrap();
    assert_eq!((which(&first)[0], experts(&first, 1).normalised), (false, false));
}

#[test]
fn hunyuan_stretches_the_base_of_its_rotation() {
    let stretched = config(header("hunyuan-dense").f32("hunyuan-dense.rope.scaling.alpha", 50.0)).unwrap();
    let base = 1e4 * 50f32.powf(8.0 / 6.0);
    assert!((stretched.ropes[0].base / base - 1.0).abs() < 1e-6);
    assert!(attention(&stretched, 0).normed_after_rope);
    let plain = config(header("hunyuan-dense").f32("hunyuan-dense.rope.scaling.alpha", 0.0)).unwrap();
    assert_eq!(plain.ropes[0].base, 1e4);
    let narrow = header("hunyuan-dense").u32("hunyuan-dense.attention.key_length", 2);
    refused(narrow.f32("hunyuan-dense.rope.scaling.alpha", 50.0), &["rope.scaling.alpha` = 50"]);
}

#[test]
fn positions_of_images_must_leave_no_pair_of_text_unrotated() {
    let sections = |arch: &str, of: &[i32]| header(arch).i32s(&format!("{arch}.rope.dimension_sections"), of);
    config(sections("qwen3vl", &[2, 1, 1, 0])).unwrap();
    refused(sections("qwen3vl", &[1, 1, 1, 0]), &["rope.dimension_sections", "4 pairs"]);
    config(sections("qwen2vl", &[1, 1, 2, 0])).unwrap();
    refused(sections("qwen2vl", &[1, 1, 1, 1]), &["rope.dimension_sections"]);
}

#[test]
fn smallthinker_sees_everything_in_every_fourth_layer_from_the_first_on() {
    let file = || with_experts("smallthinker").u32("smallthinker.expert_gating_func", 2);
    let windows = config(file().u32("smallthinker.attention.sliding_window", 4096)).unwrap();
    let of = |layer| (attention(&windows, layer).window, attention(&windows, layer).rope.is_some());
    assert_eq!(
        [0, 1, 3, 4].map(of),
        [(None, false), (Some(Window::Sliding(4096)), true), (Some(Window::Sliding(4096)), true), (None, false)]
    );
    let without = config(file()).unwrap();
    assert!((0..12).all(|layer| attention(&without, layer).rope == Some(0)));
}

#[test]
fn dbrx_keeps_queries_keys_and_values_within_bounds() {
    let clamped = config(with_experts("dbrx").f32("dbrx.attention.clamp_kqv", 8.0)).unwrap();
    assert_eq!((attention(&clamped, 3).clamp, experts(&clamped, 0).n_ff), (Some(8.0), 48));
    refused(with_experts("olmoe").f32("olmoe.attention.clamp_kqv", 8.0), &["olmoe.attention.clamp_kqv` = 8"]);
    let deep = deep_header("minimax-m3", 2).u32("minimax-m3.expert_count", 8).u32("minimax-m3.expert_used_count", 2);
    assert_eq!(experts(&config(deep).unwrap(), 1).gating, Gating::Sigmoid);
}
