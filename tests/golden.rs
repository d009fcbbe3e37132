//! Logits against an independent engine, on every tier: `tests/golden/README.md` says what is compared and where the
//! figures come from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};

use brim::kernels;
use brim::load::header::ModelFiles;
use brim::model::Architecture;
use common::engine::with_engine;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

fn words(json: &serde_json::Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

/// KL(softmax(exact) || softmax(got)) in nats.
fn kl(exact: &[f32], got: &[f32]) -> f64 {
    let log_softmax = |x: &[f32]| {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = x.iter().map(|v| f64::from(v - top).exp()).sum();
        x.iter().map(|v| f64::from(v - top) - total.ln()).collect::<Vec<_>>()
    };
    let (p, q) = (log_softmax(exact), log_softmax(got));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn every_architecture_has_a_golden() {
    let files: Vec<PathBuf> = std::fs::read_dir(dir()).unwrap().map(|e| e.unwrap().path()).collect();
    let models = files.iter().filter(|path| path.to_string_lossy().ends_with("-f32.gguf"));
    let of = |path: &PathBuf| {
        let files = ModelFiles::open(path.to_str().unwrap()).unwrap();
        files.metadata().str("general.architecture").unwrap().unwrap().to_owned()
    };
    let proven: Vec<String> = models.map(of).collect();
    let lacking: Vec<&str> = Architecture::all()
        .map(|architecture| architecture.name)
        .filter(|name| !proven.iter().any(|proven| proven == name))
        .collect();
    assert!(lacking.is_empty(), "no golden in F32 of {lacking:?}");
}

#[test]
fn logits_are_as_true_as_the_peer_on_every_tier() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir()).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "json"));
    names.sort();
    assert!(names.len() >= 180, "golden models are missing");
    for path in names {
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let file = dir().join(golden["model"].as_str().unwrap());
        let exact: Vec<f32> = std::fs::read(dir().join(golden["logits"].as_str().unwrap()))
            .unwrap()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let (tokens, positions) = (words(&golden["tokens"]), words(&golden["positions"]));
        let n_vocab = golden["n_vocab"].as_u64().unwrap() as usize;
        let bound = 1.2 * golden["own_mean_kl"]["f16"]["kept"].as_f64().unwrap() + 2e-5;
        for kernels in kernels::available() {
            // All in one pass, in several, and one by one: prefill and decode must agree with the truth alike.
            for n_batch in [96, 37, 3, 1] {
                let mut sum = 0.0;
                with_engine(&file, kernels, n_batch, |engine| {
                    engine
                        .feed_all(&tokens, |i, logits| {
                            if let Some(row) = positions.iter().position(|&p| p as usize == i) {
                                sum += kl(&exact[row * n_vocab..][..n_vocab], logits);
                            }
                        })
                        .unwrap();
                });
                let mean = sum / positions.len() as f64;
                println!("{:?} {kernels:?} batch {n_batch}: mean KL {mean:.2e}, bound {bound:.2e}", path.file_stem());
                assert!(mean <= bound, "{path:?} {kernels:?} batch {n_batch}: {mean:e} > {bound:e}");
            }
            if let Some(greedy) = golden["greedy"].as_object() {
                let (prompt, want) = (words(&greedy["prompt"]), words(&greedy["tokens"]));
                let got = with_engine(&file, kernels, 16, |engine| {
                    let mut next = prompt.clone();
                    let mut got = Vec::new();
                    while got.len() < want.len() {
                        let logits = engine.feed(&next).unwrap();
                        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                        got.push(best as u32);
                        next = vec![best as u32];
                    }
                    got
                });
                assert_eq!(got, want, "{path:?} {kernels:?}: greedy tokens");
            }
        }
    }
}
