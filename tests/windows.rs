//! Layers with a sliding window: what the plan says they keep, and going back in what they have kept.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::PathBuf;

use brim::kernels::{self, KvType, Tile};
use brim::load::header::ModelFiles;
use brim::model::{CachePlan, Model, Sizes};
use common::engine::with_engine;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR")))
}

fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| i * 7919 % 251).collect()
}

/// A window of 32 positions in layers 0 and 2 of 3; 2 KV heads of 16 values.
const MODEL: &str = "gemma3-f32";

#[test]
fn the_cache_keeps_the_window_and_a_pass_of_layers_that_have_one() {
    let files = ModelFiles::open(golden(MODEL)).unwrap();
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    assert_eq!([0, 1, 2].map(|layer| model.config.window_of(layer)), [32, usize::MAX, 32]);
    let bytes = |sequences, n_batch, ctx, kv_type| {
        let tile = Tile::default();
        let (kv_tokens, checkpoints) = (sequences * ctx, None);
        let sizes = Sizes { n_batch, n_logits: 1, ctx, sequences, kv_tokens, checkpoints, kv_type, workers: 1, tile };
        CachePlan::new(&model.config, &sizes).pages_bytes().unwrap()
    };
    let position = 2 * 2 * 16 * 2;
    // 31 before a token and all of the pass, in pages of 64 wherever it begins.
    assert_eq!(bytes(1, 16, 4096, KvType::F16), (4096 + 2 * 128) * position);
    assert_eq!(bytes(1, 34, 4096, KvType::F16), (4096 + 2 * 128) * position);
    assert_eq!(bytes(1, 35, 4096, KvType::F16), (4096 + 2 * 192) * position);
    // Never more than the context, in whole pages.
    assert_eq!(bytes(1, 36, 80, KvType::F16), 3 * 128 * position);
    // With several sequences, once more than they need.
    assert_eq!(bytes(3, 16, 4096, KvType::F16), (3 * 4096 + 2 * 4 * 128) * position);
}

#[test]
fn rewinding_goes_as_far_as_the_windows_reach_and_else_to_the_start() {
    let kernels = kernels::select(None, None).unwrap();
    let tokens = tokens(300);
    with_engine(&golden(MODEL), kernels, 16, |engine| {
        let fresh = |engine: &mut brim::engine::Engine<'_>, n: usize| {
            assert_eq!(engine.rewind(0), 0);
            for token in &tokens[..n] {
                engine.feed(std::slice::from_ref(token)).unwrap();
            }
            engine.feed(&tokens[n..=n]).unwrap().to_vec()
        };
        let want = fresh(engine, 170);
        fresh(engine, 200);
        // At 200 the window reached back to 169, so that the page of 128 to 191 is left, and token 159 sees from 128 on.
        assert_eq!(engine.rewind(159), 159);
        for token in &tokens[159..170] {
            engine.feed(std::slice::from_ref(token)).unwrap();
        }
        assert_eq!(engine.feed(&tokens[170..171]).unwrap(), want);
        // What was given up counts, not where the sequence has gone back to.
        assert_eq!((engine.position(), engine.rewind(158)), (171, 0));
        assert_eq!(fresh(engine, 170), want);
        // A short context has lost nothing.
        engine.rewind(0);
        engine.feed(&tokens[..64]).unwrap();
        assert_eq!(engine.rewind(1), 1);
    });
}

#[test]
fn a_model_without_windows_goes_back_anywhere() {
    let kernels = kernels::select(None, None).unwrap();
    with_engine(&golden("qwen3-f32"), kernels, 16, |engine| {
        engine.feed(&tokens(300)).unwrap();
        assert_eq!((engine.rewind(400), engine.rewind(299), engine.rewind(5)), (300, 299, 5));
    });
}
