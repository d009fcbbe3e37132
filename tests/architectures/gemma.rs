//! Gemma, Gemma 2 and Gemma 4.

use brim::gguf::TensorInfo;
use brim::kernels::Window;
use brim::kernels::{KvType, Tile};
use brim::model::cache::CachePlan;
use brim::model::{Form, Sizes};

use super::*;

/// A header of Gemma 4 with a window in all but every third of six layers, with `changed` instead of what it usually has.
fn gemma4(changed: &[(&str, u32)]) -> Gguf {
    let usual = [
        ("block_count", 6),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("attention.key_length_swa", 8),
        ("attention.value_length_swa", 8),
        ("attention.sliding_window", 512),
        ("rope.dimension_count", 16),
        ("rope.dimension_count_swa", 6),
    ];
    let kept = usual.into_iter().filter(|(key, _)| !changed.iter().any(|(changed, _)| changed == key));
    let file = kept
        .chain(changed.iter().copied())
        .fold(Gguf::new().str("general.architecture", "gemma4"), |file, (key, value)| {
            file.u32(&format!("gemma4.{key}"), value)
        });
    with_eps(file.f32("gemma4.rope.freq_base", 1e6), "gemma4")
}

fn pattern(file: Gguf, windows: &[u8]) -> Gguf {
    file.array("gemma4.attention.sliding_window_pattern", BOOL, windows.len() as u64, windows)
}

const USUAL: [u8; 6] = [1, 1, 0, 1, 1, 0];

#[test]
fn gemma_scales_embeddings_and_gemma2_caps_scores_in_all_layers() {
    let gemma = config(header("gemma")).unwrap();
    assert_eq!((gemma.embedding_scale, attention(&gemma, 0).score_cap), (32f32.sqrt(), None));
    let gemma2 = config(header("gemma2")).unwrap();
    assert_eq!([0, 1, 2].map(|layer| gemma2.window_of(layer)), [4096, usize::MAX, 4096]);
    assert_eq!((gemma2.logit_cap, attention(&gemma2, 1).score_cap), (Some(30.0), Some(50.0)));
    assert_eq!(gemma2.ropes[0], gemma2.ropes[1]);
    let file = header("gemma2").u32("gemma2.attention.sliding_window", 128);
    let capped = config(file.f32("gemma2.attn_logit_softcapping", 20.0)).unwrap();
    assert_eq!((capped.window_of(0), attention(&capped, 0).score_cap), (128, Some(20.0)));
    // The largest of them divides by the width of the stream.
    let largest = config(deep_header("gemma2", 46).u32("gemma2.attention.key_length", 16)).unwrap();
    assert_eq!(attention(&largest, 0).scale, 8f32.sqrt().recip());
    refused(header("gemma").f32("gemma.attn_logit_softcapping", 50.0), &["attn_logit_softcapping` = 50"]);
}

#[test]
fn gemma4_has_heads_of_two_sizes_and_does_not_scale_scores() {
    let config1 = config(pattern(gemma4(&[]), &USUAL).f32("gemma4.final_logit_softcapping", 30.0)).unwrap();
    let [full, local] = [2, 0].map(|layer| attention(&config1, layer));
    assert_eq!((full.key_dim, full.value_dim, full.window, full.scale), (16, 16, None, 1.0));
    assert_eq!((local.key_dim, local.value_dim, local.window, local.scale), (8, 8, Some(Window::Sliding(512)), 1.0));
    let [full, local] = [full, local].map(|attention| &config1.ropes[attention.rope.unwrap()]);
    assert_eq!((full.dim, full.base, local.dim, local.base), (16, 1e6, 6, 1e4));
    assert_eq!((config1.logit_cap, config1.n_embd_per_layer), (Some(30.0), 0));
    // On unless the file says 0.
    assert_eq!(config(pattern(gemma4(&[]), &USUAL)).unwrap().logit_cap, Some(30.0));
    let uncapped = pattern(gemma4(&[]), &USUAL).f32("gemma4.final_logit_softcapping", 0.0);
    assert_eq!(config(uncapped).unwrap().logit_cap, None);
    refused(gemma4(&[]), &["attention.sliding_window_pattern", "a yes or no for each of 6 layers"]);
    refused(pattern(gemma4(&[]), &USUAL[..5]), &["attention.sliding_window_pattern", "5 elements"]);
    let is_refused = |key: &str, value: u32, parts: &[&str]| refused(pattern(gemma4(&[(key, value)]), &USUAL), parts);
    is_refused("attention.sliding_window", 0, &["attention.sliding_window is 0"]);
    is_refused("attention.key_length_swa", 7, &["attention.key_length_swa is 7", "even"]);
    is_refused("attention.value_length_swa", 6, &["attention.key_length_swa is 8", "attention.value_length_swa (6)"]);
    is_refused("attention.value_length", 8, &["attention.value_length is 8", "16, as keys"]);
    is_refused("rope.dimension_count_swa", 10, &["rope.dimension_count_swa is 10", "up to 8"]);
    is_refused("rope.dimension_count_swa", 5, &["rope.dimension_count_swa is 5", "even"]);
}

#[test]
fn the_last_layers_of_gemma4_may_read_what_earlier_ones_keep() {
    let shared = config(pattern(gemma4(&[("attention.shared_kv_layers", 3)]), &USUAL)).unwrap();
    let kv_of: Vec<Option<usize>> = (0..6).map(|layer| attention(&shared, layer).kv_of).collect();
    assert_eq!(kv_of, [None, None, None, Some(1), Some(1), Some(2)]);
    let sizes = Sizes {
        n_batch: 16,
        n_logits: 1,
        ctx: 128,
        sequences: 1,
        kv_tokens: 128,
        checkpoints: None,
        kv_type: KvType::F16,
        workers: 1,
        tile: Tile::default(),
    };
    let plan = CachePlan::new(&shared, &sizes);
    assert_eq!((plan.layers[4].paged, plan.layers[4].shared_with), (None, Some(1)));
    let own = CachePlan::new(&config(pattern(gemma4(&[]), &USUAL)).unwrap(), &sizes);
    // Of two layers that see everything one is left, of four with a window two.
    assert_eq!((0..2).map(|pool| own.page_bytes(pool) / plan.page_bytes(pool)).collect::<Vec<_>>(), [2, 2]);
    assert_ne!(plan.fingerprint().collect::<Vec<_>>(), own.fingerprint().collect::<Vec<_>>());
    let is_refused = |n: u32, windows: &[u8], parts: &[&str]| {
        refused(pattern(gemma4(&[("attention.shared_kv_layers", n)]), windows), parts);
    };
    // Where they are looked for are layers of the other kind, or none.
    is_refused(2, &USUAL, &["attention.shared_kv_layers` = 2 where layer 4", "2 before"]);
    is_refused(5, &USUAL, &["attention.shared_kv_layers` = 5"]);
    is_refused(6, &USUAL, &["attention.shared_kv_layers is 6", "1 to 5"]);
    refused(header("gemma3").u32("gemma3.attention.shared_kv_layers", 2), &["attention.shared_kv_layers` = 2"]);
}

#[test]
fn experts_of_gemma4_stand_beside_the_dense_part() {
    let experts_of = [("expert_count", 8), ("expert_used_count", 2), ("expert_feed_forward_length", 20)];
    let config1 = config(pattern(gemma4(&experts_of), &USUAL)).unwrap();
    let experts1 = experts(&config1, 5);
    assert_eq!((experts1.n_ff, experts1.n_ff_shared, experts1.apart), (20, 48, true));
    assert_eq!((experts1.gating, experts1.normalised), (Gating::Softmax, true));
}

#[test]
fn tokens_that_are_suppressed_are_known_and_strange_ids_are_nothing() {
    let ids = words(&[3, u32::MAX, 9]);
    let listed = header("llama").array("tokenizer.ggml.suppress_tokens", I32, 3, &ids);
    assert_eq!(config(listed).unwrap().suppressed, [3, 9]);
    refused(
        header("llama").array("tokenizer.ggml.suppress_tokens", BOOL, 1, &[1]),
        &["tokenizer.ggml.suppress_tokens"],
    );
}

/// A golden of this family.
fn model(name: &str) -> (ModelFiles, Model) {
    let path = format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    let files = ModelFiles::open(&path).unwrap();
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    (files, model)
}

#[test]
fn the_table_of_embeddings_for_single_layers_stays_in_the_file() {
    let (files, model) = model("gemma4-small-f32");
    let own = model.weights.per_layer.unwrap();
    assert_eq!((own.table.form, own.table.bytes), (Form::File, 0));
    let table = files.tables().find("per_layer_token_embd.weight").unwrap();
    assert_eq!((own.table.cols, table.rows()), (model.config.n_embd_per_layer * 5, own.table.rows as u64));
    assert!(model.tables(&files).unwrap().per_layer.is_some());
    let placed: u64 = model.weights.placements.iter().map(|placement| placement.file_bytes()).sum();
    assert_eq!(placed + table.bytes, files.tensors().iter().map(|tensor| tensor.bytes).sum::<u64>());
}

#[test]
fn tensors_of_gemma4_that_are_missing_or_strange_are_named() {
    let (files, _) = model("gemma4-moe-f32");
    let place = |change: &dyn Fn(&mut Vec<TensorInfo>)| {
        let mut tensors = files.tensors().to_vec();
        change(&mut tensors);
        Model::from_tables(&files.metadata(), &tensors).unwrap_err().to_string()
    };
    for name in [
        "blk.0.attn_k.weight",
        "blk.0.ffn_gate_inp.scale",
        "blk.1.post_ffw_norm_1.weight",
        "blk.2.ffn_up.weight",
        "rope_freqs.weight",
    ] {
        let error = place(&|tensors| tensors.retain(|tensor| tensor.name() != name));
        assert!(error.contains(name), "{error}");
    }
}
