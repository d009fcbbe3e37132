//! Models that make vectors: BERT, Nomic Embed, EmbeddingGemma, Llama Embed, and any other that says how it pools.

use brim::kernels::{NormKind, Window};
use brim::model::{Pooling, Vectors};

use super::*;

fn pooled(arch: &str, kind: u32) -> Gguf {
    header(arch).u32(&format!("{arch}.pooling_type"), kind)
}

#[test]
fn any_decoder_that_says_how_it_pools_makes_vectors() {
    for (kind, pooling) in [(1, Pooling::Mean), (2, Pooling::First), (3, Pooling::Last)] {
        let config = config(pooled("qwen3", kind)).unwrap();
        assert_eq!(config.vectors, Some(Vectors::of_texts(pooling)));
        assert!(!config.both_ways && attention(&config, 0).window.is_none());
        assert_eq!(config.vectors.unwrap().len(config.n_embd), 32);
    }
    for file in [header("qwen3"), pooled("qwen3", 0), pooled("qwen3", u32::MAX)] {
        assert_eq!(config(file).unwrap().vectors, None);
    }
    refused(pooled("qwen3", 7), &["qwen3.pooling_type", "7"]);
}

#[test]
fn ranks_have_a_score_for_each_label_and_qwens_a_softmax() {
    let file = pooled("qwen3", 4).strings("qwen3.classifier.output_labels", &["yes", "no"]);
    let vectors = config(file).unwrap().vectors.unwrap();
    assert_eq!((vectors.pooling, vectors.n_scores, vectors.softmax), (Pooling::Last, 2, true));
    assert_eq!((vectors.len(32), vectors.ranks()), (2, true));
    let vectors = config(pooled("bert", 4)).unwrap().vectors.unwrap();
    assert_eq!((vectors.pooling, vectors.n_scores, vectors.softmax), (Pooling::First, 1, false));
    let mean = config(pooled("bert", 4).u32("bert.classifier.pooling_type", 1)).unwrap().vectors.unwrap();
    assert_eq!(mean.pooling, Pooling::Mean);
}

#[test]
fn bert_sees_both_ways_and_ends_with_a_norm() {
    let bert = config(pooled("bert", 1).bool("bert.attention.causal", false)).unwrap();
    assert!(bert.both_ways && bert.ends_normed && bert.learned_positions && bert.token_kinds && !bert.gated_ffn);
    assert_eq!((bert.norm, bert.ctx_max()), (NormKind::Layer, 8192));
    let attn = attention(&bert, 0);
    assert_eq!((attn.window, attn.rope), (Some(Window::Around(usize::MAX)), None));
    let nomic = config(pooled("nomic-bert", 1)).unwrap();
    assert!(nomic.gated_ffn && !nomic.learned_positions && attention(&nomic, 0).rope.is_some());
    refused(header("bert"), &["pooling_type", "missing"]);
    refused(pooled("bert", 0), &["pooling_type", "mean"]);
    refused(pooled("bert", 1).bool("bert.attention.causal", true), &["bert.attention.causal", "true"]);
}

#[test]
fn half_of_a_window_lies_on_either_side() {
    let file = pooled("gemma-embedding", 1).u32("gemma-embedding.attention.sliding_window", 512);
    let gemma = config(file.u32("gemma-embedding.dense_2_feat_out", 96)).unwrap();
    let windows: Vec<Window> = (0..6).map(|layer| attention(&gemma, layer).window.unwrap()).collect();
    assert_eq!(windows[0], Window::Around(256));
    assert_eq!((windows[4], windows[5]), (Window::Around(256), Window::Around(usize::MAX)));
    assert_eq!((gemma.vectors.unwrap().n_dense, gemma.head_width()), (96, 96));
}

#[test]
fn others_see_both_ways_only_where_they_make_vectors() {
    let file = |kind| pooled("llama", kind).bool("llama.attention.causal", false);
    let both = config(file(1)).unwrap();
    assert!(both.both_ways && attention(&both, 3).window == Some(Window::Around(usize::MAX)));
    refused(file(0), &["llama.attention.causal", "false"]);
    // Recurrences know one way alone, and neither latents nor falling scores are made for both.
    let shown = |file: Gguf, arch: &str| {
        let file = file.u32(&format!("{arch}.pooling_type"), 1);
        refused(file.bool(&format!("{arch}.attention.causal"), false), &["attention.causal` = false"]);
    };
    shown(hybrid("qwen35", &[]), "qwen35");
    shown(mamba::with_mamba("mamba2", &[]), "mamba2");
    shown(mla::split("deepseek2", &[]), "deepseek2");
    shown(header("bloom"), "bloom");
    assert!(config(pooled("llama-embed", 1)).unwrap().both_ways);
}
