//! Latent attention: deepseek2 and its relatives.

use brim::kernels::{KvType, Tile};
use brim::model::cache::check_kv_type;
use brim::model::config::{Config, ExpertGroups, Gating, LatentConfig, MixerConfig, Pairing, QueryTemperature};
use brim::model::{CachePlan, Sizes};

use super::writer::Gguf;
use super::{config, header, refused, sized_header};

fn latent(config: &Config) -> LatentConfig {
    match config.layers[1].mixer {
        MixerConfig::Latent(latent) => latent,
        other => panic!("{other:?}"),
    }
}

/// A file whose maps are split.
pub(super) fn split(arch: &str, changed: &[(&str, u32)]) -> Gguf {
    split_of(arch, 12, changed)
}

fn split_of(arch: &str, n_layers: u32, changed: &[(&str, u32)]) -> Gguf {
    let usual = [
        ("attention.key_length", 80),
        ("attention.value_length", 64),
        ("attention.key_length_mla", 40),
        ("attention.value_length_mla", 24),
        ("attention.kv_lora_rank", 64),
        ("rope.dimension_count", 16),
        ("leading_dense_block_count", 1),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 12),
    ];
    with(sized_header(arch, n_layers, 1), arch, &usual, changed)
}

fn with(file: Gguf, arch: &str, usual: &[(&str, u32)], changed: &[(&str, u32)]) -> Gguf {
    let kept = usual.iter().filter(|(key, _)| !changed.iter().any(|(changed, _)| changed == key));
    kept.chain(changed).fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
}

#[test]
fn a_latent_is_one_row_for_all_heads_and_split_files_say_how_long_heads_are() {
    let config = config(split("deepseek2", &[("attention.q_lora_rank", 24)])).unwrap();
    let found = latent(&config);
    let sizes = (found.n_heads, found.q_rank, found.kv_rank, found.plain_dim, found.rope_dim, found.value_dim);
    assert_eq!(sizes, (4, 24, 64, 24, 16, 24));
    assert_eq!((found.row_dim(), found.scale), (80, 40f32.sqrt().recip()));
    assert!(config.layers[0].experts().is_none());
    let experts = config.layers[1].experts().unwrap();
    assert_eq!((experts.gating, experts.normalised, experts.groups), (Gating::Softmax, false, None));
    assert_eq!(config.style.pairing, Pairing::Neighbours);
    // Kimi's 64 heads, GLM-4.7-Flash's 20, V3's 128.
    let blocks = |n_heads| LatentConfig { n_heads, ..found }.head_blocks();
    assert_eq!([4, 16, 20, 40, 64, 128, 17].map(blocks), [1, 1, 2, 4, 4, 8, 17]);
}

#[test]
fn files_whose_maps_are_one_have_heads_of_their_own_length() {
    let unsplit = [
        ("attention.key_length", 40),
        ("attention.value_length", 24),
        ("attention.kv_lora_rank", 64),
        ("rope.dimension_count", 16),
    ];
    for arch in ["minicpm3", "plm"] {
        let config = config(with(sized_header(arch, 12, 4), arch, &unsplit, &[])).unwrap();
        let found = latent(&config);
        assert_eq!((found.kv_rank, found.plain_dim, found.rope_dim, found.value_dim), (64, 24, 16, 24), "{arch}");
        assert_eq!(config.gated_ffn, arch == "minicpm3");
    }
    let scaled = config(with(sized_header("minicpm3", 12, 4), "minicpm3", &unsplit, &[])).unwrap();
    assert_eq!((scaled.embedding_scale, scaled.logit_scale, scaled.style.pairing), (12.0, 8.0, Pairing::Halves));
}

#[test]
fn stretched_contexts_scale_scores_and_leave_cosines() {
    let yarn = |arch: &str| {
        let file = split(arch, &[]).str(&format!("{arch}.rope.scaling.type"), "yarn");
        let file = file.f32(&format!("{arch}.rope.scaling.factor"), 40.0);
        file.u32(&format!("{arch}.rope.scaling.original_context_length"), 4096)
    };
    let recommended = |strength: f32| 1.0 + 0.1 * strength * 40f32.ln();
    let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    // Files have a tenth of the strength.
    let lite = config(yarn("deepseek2").f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.0707)).unwrap();
    assert_eq!(lite.ropes[0].magnitude, 1.0);
    near(latent(&lite).scale, recommended(0.707).powi(2) / 40f32.sqrt());
    let silent = config(yarn("deepseek2")).unwrap();
    near(silent.ropes[0].magnitude, recommended(1.0));
    let mistral4 = yarn("mistral4").f32("mistral4.rope.scaling.yarn_log_multiplier", 0.05);
    let mistral4 = config(mistral4.f32("mistral4.attention.temperature_scale", 0.1)).unwrap();
    near(mistral4.ropes[0].magnitude, recommended(1.0) / recommended(0.5));
    assert_eq!(latent(&mistral4).temperature, Some(QueryTemperature { beta: 0.1, length: 4096, offset: 0 }));
    let linear = split("deepseek2", &[]).f32("deepseek2.rope.scaling.factor", 2.0);
    refused(linear, &["rope.scaling.factor` = 2 without YaRN"]);
}

#[test]
fn experts_are_chosen_from_groups_and_a_model_may_be_dense() {
    let grouped = split("deepseek2", &[("expert_group_count", 4), ("expert_group_used_count", 2)]);
    let grouped = config(grouped.u32("deepseek2.expert_gating_func", 2)).unwrap();
    let experts = grouped.layers[1].experts().unwrap();
    assert_eq!((experts.gating, experts.groups), (Gating::Sigmoid, Some(ExpertGroups { count: 4, used: 2 })));
    let dense = config(split("deepseek2", &[("leading_dense_block_count", 12), ("expert_count", 0)])).unwrap();
    assert!(dense.layers.iter().all(|layer| layer.experts().is_none()));
    // The first files of GLM-4.7-Flash are known by their size.
    let flash = split_of("deepseek2", 47, &[("vocab_size", 154_880)]);
    assert_eq!(config(flash).unwrap().layers[1].experts().unwrap().gating, Gating::Sigmoid);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let is_refused = |key: &str, value: u32, parts: &[&str]| refused(split("deepseek2", &[(key, value)]), parts);
    is_refused("attention.kv_lora_rank", 72, &["attention.kv_lora_rank is 72", "a multiple of 16"]);
    is_refused("attention.kv_lora_rank", 1024, &["attention.kv_lora_rank is 1024", "together at most 1024"]);
    is_refused("attention.key_length_mla", 16, &["attention.key_length_mla is 16", "more than the 16 values"]);
    is_refused("rope.dimension_count", 24, &["rope.dimension_count is 24", "a multiple of 16"]);
    refused(header("deepseek2"), &["deepseek2.attention.kv_lora_rank"]);
    refused(header("llama").u32("llama.attention.kv_lora_rank", 64), &["attention.kv_lora_rank` = 64"]);
}

#[test]
fn the_cache_has_one_row_a_position_and_is_told_apart_from_one_of_heads() {
    let latent = config(split("deepseek2", &[])).unwrap();
    let plan = |config: &Config, kv_type| {
        let (sequences, kv_tokens, tile) = (2, 256, Tile::default());
        let sizes = Sizes {
            n_batch: 16,
            n_logits: 1,
            ctx: 128,
            sequences,
            kv_tokens,
            checkpoints: None,
            kv_type,
            workers: 1,
            tile,
        };
        CachePlan::new(config, &sizes)
    };
    // 64 values of the latent and 16 that are rotated, of 12 layers.
    assert_eq!(plan(&latent, KvType::F16).pages_bytes(), Some(256 * 12 * 80 * 2));
    // Blocks of 32 values: the rows of 80 would not be whole ones.
    let error = check_kv_type(&latent, KvType::Q8_0).unwrap_err().to_string();
    assert!(error.contains("have 80: use --kv-type f16") && !error.contains("damaged"), "{error}");
    let wide = config(split("deepseek2", &[("rope.dimension_count", 32)])).unwrap();
    check_kv_type(&wide, KvType::Q8_0).unwrap();
    assert_eq!(plan(&wide, KvType::Q8_0).pages_bytes(), Some(256 * 12 * 3 * 34));
    // One head of as many values.
    let heads = header("llama").u32("llama.attention.key_length", 80).u32("llama.attention.value_length", 64);
    let heads = config(heads).unwrap();
    let words = |config| plan(config, KvType::F16).fingerprint().collect::<Vec<u32>>();
    assert_ne!(words(&latent), words(&heads));
}
