//! Logits against an independent engine, on every tier: `tests/golden/README.md` says what is compared and where the
//! figures come from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};

use brim::engine::Engine;
use brim::kernels::{self, KvType};
use brim::load::header::ModelFiles;
use brim::model::Architecture;
use common::engine::{with_cache, with_engine};

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
    // Of vectors in `vectors.rs`.
    let dirs = [dir(), dir().with_file_name("vectors")];
    let files = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()));
    let files: Vec<PathBuf> = files.collect();
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

/// A golden, read.
struct Golden {
    /// Its file.
    path: PathBuf,
    /// What it says.
    json: serde_json::Value,
    /// The model.
    model: PathBuf,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    n_vocab: usize,
    /// The exact logits at the positions.
    exact: Vec<f32>,
}

impl Golden {
    fn read(path: PathBuf) -> Golden {
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let logits = std::fs::read(dir().join(json["logits"].as_str().unwrap())).unwrap();
        Golden {
            model: dir().join(json["model"].as_str().unwrap()),
            tokens: words(&json["tokens"]),
            positions: words(&json["positions"]),
            n_vocab: json["n_vocab"].as_u64().unwrap() as usize,
            exact: logits.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            path,
            json,
        }
    }

    /// All of them.
    fn all() -> impl Iterator<Item = Golden> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir()).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        assert!(paths.len() >= 180, "golden models are missing");
        paths.into_iter().map(Golden::read)
    }

    /// Mean KL of what an engine says from the exact answer.
    fn mean_kl(&self, engine: &mut Engine<'_>) -> f64 {
        let mut sum = 0.0;
        let each = |at: usize, logits: &[f32]| {
            if let Some(row) = self.positions.iter().position(|&p| p as usize == at) {
                sum += kl(&self.exact[row * self.n_vocab..][..self.n_vocab], logits);
            }
        };
        engine.feed_all(&self.tokens, each).unwrap();
        sum / self.positions.len() as f64
    }
}

#[test]
fn logits_are_as_true_as_the_peer_on_every_tier() {
    for golden in Golden::all() {
        let bound = 1.2 * golden.json["own_mean_kl"]["f16"]["kept"].as_f64().unwrap() + 2e-5;
        for kernels in kernels::available() {
            // All in one pass, in several, and one by one: prefill and decode must agree with the truth alike.
            for n_batch in [96, 37, 3, 1] {
                let mean = with_engine(&golden.model, kernels, n_batch, |engine| golden.mean_kl(engine));
                let name = golden.path.file_stem();
                println!("{name:?} {kernels:?} batch {n_batch}: mean KL {mean:.2e}, bound {bound:.2e}");
                assert!(mean <= bound, "{name:?} {kernels:?} batch {n_batch}: {mean:e} > {bound:e}");
            }
            if let Some(greedy) = golden.json["greedy"].as_object() {
                let (prompt, want) = (words(&greedy["prompt"]), words(&greedy["tokens"]));
                let got = with_engine(&golden.model, kernels, 16, |engine| {
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
                assert_eq!(got, want, "{:?} {kernels:?}: greedy tokens", golden.path);
            }
        }
    }
}

/// Without the rounding of weights and cache what is left is that of the arithmetic, which has one bound for all models.
#[test]
fn the_arithmetic_of_every_architecture_is_exact() {
    let exact = |golden: &Golden| golden.model.to_string_lossy().ends_with("-f32.gguf");
    for golden in Golden::all().filter(exact) {
        for kernels in kernels::available() {
            for n_batch in [96, 1] {
                let cache = (n_batch, KvType::F32);
                let mean = with_cache(&golden.model, kernels, cache, |engine| golden.mean_kl(engine));
                let name = golden.path.file_stem();
                println!("{name:?} {kernels:?} batch {n_batch}, cache f32: mean KL {mean:.2e}");
                assert!(mean <= 3e-5, "{name:?} {kernels:?} batch {n_batch}: {mean:e}");
            }
        }
    }
}
