//! Models with experts: the numbers and tensors that are taken, and those that are refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/gguf.rs"]
mod writer;

use brim::kernels;
use brim::load::header::ModelFiles;
use brim::model::Model;
use brim::model::config::EXPERTS_MAX;
use cli::Dir;
use common::engine::with_engine;
use writer::Gguf;

const E: u64 = 32;
const F: u64 = 8;
const VOCAB: u64 = 4;

/// What a test may get wrong.
#[derive(Clone, Copy)]
struct Spec {
    count: u32,
    used: u32,
    /// Type id of the experts' gate matrices.
    gate_type: u32,
    /// Dimensions of the same.
    gate_dims: Option<[u64; 3]>,
    /// A tensor to leave out.
    without: &'static str,
    /// A further number.
    extra: Option<(&'static str, f32)>,
}

const GOOD: Spec = Spec { count: 4, used: 2, gate_type: 0, gate_dims: None, without: "", extra: None };

fn model(spec: Spec) -> Result<Model, String> {
    let mut file = Gguf::new().str("general.architecture", "qwen3moe");
    file = file.f32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-5);
    let numbers = [
        ("block_count", 1),
        ("embedding_length", E as u32),
        ("feed_forward_length", 2 * F as u32),
        ("attention.head_count", 2),
        ("expert_count", spec.count),
        ("expert_used_count", spec.used),
    ];
    for (key, value) in numbers {
        file = file.u32(&format!("qwen3moe.{key}"), value);
    }
    if let Some((key, value)) = spec.extra {
        file = file.f32(&format!("qwen3moe.{key}"), value);
    }
    let x = u64::from(spec.count.max(1));
    let gate_dims = spec.gate_dims.unwrap_or([E, F, x]);
    let tensors: [(&str, u32, &[u64]); 14] = [
        ("token_embd.weight", 0, &[E, VOCAB]),
        ("output_norm.weight", 0, &[E]),
        ("blk.0.attn_norm.weight", 0, &[E]),
        ("blk.0.attn_q.weight", 0, &[E, E]),
        ("blk.0.attn_k.weight", 0, &[E, E]),
        ("blk.0.attn_v.weight", 0, &[E, E]),
        ("blk.0.attn_output.weight", 0, &[E, E]),
        ("blk.0.attn_q_norm.weight", 0, &[E / 2]),
        ("blk.0.attn_k_norm.weight", 0, &[E / 2]),
        ("blk.0.ffn_norm.weight", 0, &[E]),
        ("blk.0.ffn_gate_inp.weight", 0, &[E, x]),
        ("blk.0.ffn_gate_exps.weight", spec.gate_type, &gate_dims),
        ("blk.0.ffn_up_exps.weight", 0, &[E, F, x]),
        ("blk.0.ffn_down_exps.weight", 0, &[F, E, x]),
    ];
    for (name, ty, dims) in tensors {
        if name == spec.without {
            continue;
        }
        let bytes = dims.iter().product::<u64>() as usize * 4;
        file = file.tensor(name, dims, ty, &vec![0; bytes]);
    }
    let bytes: &'static [u8] = Box::leak(file.build().into_boxed_slice());
    let files = ModelFiles::embedded("experts", bytes).map_err(|e| e.to_string())?;
    Model::from_tables(&files.metadata(), files.tensors()).map_err(|e| e.to_string())
}

fn refused(spec: Spec, parts: &[&str]) {
    let error = model(spec).unwrap_err();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks one of {parts:?}");
}

#[test]
fn memory_counts_all_experts_and_a_token_those_it_meets() {
    let Model { config, weights, .. } = model(GOOD).unwrap();
    let experts = config.layers[0].experts().unwrap();
    assert_eq!((config.n_ff_dense(), experts.n_ff, experts.count, experts.used), (0, 8, 4, 2));
    let (attention, router, expert, embedding) = (4 * E * E, 4 * E, 3 * E * F, VOCAB * E);
    assert_eq!(weights.macs_per_token, attention + router + 2 * expert);
    // In panels of 16 rows: those of the router, of gate and up and of the embedding are not full.
    let (router, expert, panel) = (16 * E * 4, (16 * E + 16 * E + E * F) * 4, 16 * E * 4);
    assert_eq!(weights.bytes_per_token as u64, attention * 4 + router + 2 * expert + panel + E * 4);
    assert!(weights.bytes as u64 > attention * 4 + router + 4 * expert + embedding);
}

#[test]
fn numbers_that_no_layer_of_experts_has_are_refused() {
    refused(Spec { used: 0, ..GOOD }, &["expert_used_count is 0", "1 to 4"]);
    refused(Spec { count: 0, ..GOOD }, &["expert_count is 0", "1 to 512"]);
    refused(Spec { used: 5, ..GOOD }, &["expert_used_count is 5", "1 to 4"]);
    let scaled = model(Spec { extra: Some(("expert_weights_scale", 2.5)), ..GOOD }).unwrap();
    assert_eq!(scaled.config.layers[0].experts().unwrap().scale, 2.5);
    refused(Spec { extra: Some(("expert_weights_scale", f32::NAN)), ..GOOD }, &["expert_weights_scale` = NaN"]);
    // An expert's width is its share of the dense one.
    refused(Spec { count: 32, used: 17, ..GOOD }, &["the width of an expert is 0"]);
}

#[test]
fn the_table_of_experts_is_filled_and_not_overfilled() {
    let count = EXPERTS_MAX as u32;
    assert_eq!(model(Spec { count, ..GOOD }).unwrap().config.layers[0].experts().unwrap().count, EXPERTS_MAX);
    refused(Spec { count: count + 1, ..GOOD }, &["expert_count is 513", "1 to 512"]);
}

#[test]
fn tensors_that_do_not_hold_the_experts_are_refused() {
    for without in ["blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight"] {
        refused(Spec { without, ..GOOD }, &[without, "is missing"]);
    }
    let wrong = |gate_dims| Spec { gate_dims: Some(gate_dims), ..GOOD };
    refused(
        wrong([E, F, 3]),
        &["ffn_gate_exps", "3 matrices of 8 rows of 32", "the header calls for 4 matrices of 8 rows of 32"],
    );
    // As many rows in all, but not by expert.
    refused(
        wrong([E, 4, F]),
        &["ffn_gate_exps", "8 matrices of 4 rows of 32", "the header calls for 4 matrices of 8 rows"],
    );
    refused(wrong([E, 4 * F, 1]), &["ffn_gate_exps", "has 32 rows of 32", "the header calls for 4 matrices of 8 rows"]);
    // I32 has the size of F32.
    refused(Spec { gate_type: 26, ..GOOD }, &["ffn_gate_exps", "type I32", "not a weight type"]);
}

/// Numbers that do not repeat.
fn values(seed: u32, n: u64) -> Vec<u8> {
    let value = |i: u64| ((seed as u64 * 7919 + i * 104_729) % 2003) as f32 / 2003.0 - 0.5;
    (0..n).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// A model whose experts have gate and up matrices of `f` rows, in tensors of their own or, of each expert one after the other,
/// in one.
fn with_experts_of(f: u64, is_fused: bool) -> Vec<u8> {
    let (x, vocab) = (5u64, 40u64);
    let mut file = Gguf::new().str("general.architecture", "qwen3moe");
    file = file.f32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-5);
    let numbers = [("block_count", 1), ("embedding_length", E), ("feed_forward_length", 2 * f), ("expert_count", x)];
    let more = [("attention.head_count", 2), ("expert_used_count", 2), ("expert_feed_forward_length", f)];
    for (key, value) in numbers.into_iter().chain(more) {
        file = file.u32(&format!("qwen3moe.{key}"), value as u32);
    }
    let tokens: Vec<String> = (0..vocab).map(|i| format!("t{i}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    file = file.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "default");
    file = file.strings("tokenizer.ggml.tokens", &tokens).strings("tokenizer.ggml.merges", &[]);
    let ones: Vec<u8> = (0..E).flat_map(|_| 1f32.to_le_bytes()).collect();
    for norm in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file = file.tensor(&format!("{norm}.weight"), &[E], 0, &ones);
    }
    for norm in ["blk.0.attn_q_norm", "blk.0.attn_k_norm"] {
        file = file.tensor(&format!("{norm}.weight"), &[E / 2], 0, &ones[..ones.len() / 2]);
    }
    file = file.tensor("token_embd.weight", &[E, vocab], 0, &values(1, E * vocab));
    for (seed, name) in (2..).zip(["attn_q", "attn_k", "attn_v", "attn_output"]) {
        file = file.tensor(&format!("blk.0.{name}.weight"), &[E, E], 0, &values(seed, E * E));
    }
    file = file.tensor("blk.0.ffn_gate_inp.weight", &[E, x], 0, &values(6, E * x));
    file = file.tensor("blk.0.ffn_down_exps.weight", &[f, E, x], 0, &values(7, E * f * x));
    let (gate, up) = (values(8, E * f * x), values(9, E * f * x));
    if is_fused {
        let each = (E * f * 4) as usize;
        let both = gate.chunks(each).zip(up.chunks(each)).flat_map(|(gate, up)| [gate, up].concat());
        return file.tensor("blk.0.ffn_gate_up_exps.weight", &[E, 2 * f, x], 0, &both.collect::<Vec<u8>>()).build();
    }
    let file = file.tensor("blk.0.ffn_gate_exps.weight", &[E, f, x], 0, &gate);
    file.tensor("blk.0.ffn_up_exps.weight", &[E, f, x], 0, &up).build()
}

#[test]
fn gate_and_up_in_one_tensor_are_what_they_are_in_two() {
    let dir = Dir::new("fused-experts");
    // Whole panels of rows and others.
    for f in [16, 24, 8] {
        let logits = [false, true].map(|is_fused| {
            let path = dir.file(&format!("{f}-{is_fused}.gguf"), with_experts_of(f, is_fused));
            with_engine(path.as_ref(), kernels::select(None, None).unwrap(), 16, |engine| {
                engine.feed(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap().to_vec()
            })
        });
        assert!(logits[0] == logits[1], "{f} rows");
        assert!(logits[0].iter().any(|x| x.abs() > 0.1), "{logits:?}");
    }
}
