//! Models that make vectors of texts, or ranks of documents, against llama.cpp: tokens, and what becomes of them, on every
//! tier, alone and among others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/engine.rs"]
mod engine;

use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};

use brim::engine::{
    EngineHandle, Event, Finish, Generate, OutputKind, Request, RequestError, Scheduler, SubmitError, Ticket,
};
use brim::kernels::{self, Kernels};
use brim::load::header::ModelFiles;
use brim::tokenizer::{self, Tokenizer};
use engine::for_checkpoints;

/// How far a vector in F32 may be off llama.cpp's, as 1 - cosine: both are exact to some units of f32 and f16.
const OFF_F32: f64 = 2e-6;

/// The same with quantised weights: llama.cpp rounds activations to 8 bits, and in other blocks than brim.
const OFF: f64 = 1e-3;

/// Positions: as many as the models have learned that learn them.
const CTX: u32 = 208;

#[derive(serde::Deserialize)]
struct Golden {
    odd: Vec<(String, Vec<u32>, Vec<u32>)>,
    query: Option<String>,
    texts: Vec<String>,
    tokens: Vec<Vec<u32>>,
    vectors: Vec<Vec<f64>>,
}

fn dir() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden/vectors"].iter().collect()
}

fn goldens() -> Vec<(String, PathBuf, Golden)> {
    let entries = std::fs::read_dir(dir()).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, path.with_extension("gguf"), serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(all.len() >= 20, "{} goldens", all.len());
    all
}

fn ctx_of(name: &str) -> u32 {
    if name.contains("bert") { CTX } else { 512 }
}

fn with_vocabulary(path: &Path, test: impl FnOnce(&Tokenizer<'_>)) {
    let files = ModelFiles::open(path).unwrap();
    let source = tokenizer::source_from(&files.metadata(), None).unwrap();
    let mut region = vec![0xa5; usize::try_from(tokenizer::region_bytes(&source).unwrap()).unwrap()];
    let tokenizer = tokenizer::build(&source, &mut region).unwrap();
    drop(files);
    test(&tokenizer);
}

/// Vectors of texts, all asked for at once.
fn vectors(scheduler: &mut Scheduler<'_>, handle: &EngineHandle, texts: &[Vec<u32>]) -> Vec<Box<[f32]>> {
    let pooling = handle.limits().vectors.unwrap().pooling;
    let submit = |text: &Vec<u32>| {
        let request = Request { prompt: text.clone(), output: OutputKind::Embedding(pooling) };
        (handle.submit(Box::new(request)).unwrap(), None)
    };
    let mut open: Vec<(Ticket, Option<Box<[f32]>>)> = texts.iter().map(submit).collect();
    while open.iter().any(|(_, vector)| vector.is_none()) {
        assert!(scheduler.round(), "a round in which nothing happens");
        for (ticket, vector) in &mut open {
            while let Poll::Ready(Some(event)) = ticket.poll_event(&mut Context::from_waker(Waker::noop())) {
                match event {
                    Event::Started { .. } => {}
                    Event::Finished(Finish::Embedded, timings) => {
                        assert!(timings.prompt_tokens > 0);
                        *vector = ticket.take_embedding();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert_eq!(handle.stats().kv_pages_used, 0);
    let len = handle.limits().vector_len();
    open.into_iter().map(|(_, vector)| vector.unwrap()[..len].into()).collect()
}

fn run(path: &Path, kernels: &'static Kernels, (slots, ctx): (usize, u32), texts: &[Vec<u32>]) -> Vec<Box<[f32]>> {
    for_checkpoints(path, kernels, (Some(slots), ctx), 0, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 64, Vec::new());
        vectors(&mut scheduler, &handle, texts)
    })
}

fn off_by(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let product = |a: &mut dyn Iterator<Item = (f64, f64)>| a.map(|(a, b)| a * b).sum::<f64>();
    let a: Vec<f64> = a.iter().map(|x| f64::from(*x)).collect();
    let pairs = |a: &[f64], b: &[f64]| a.iter().copied().zip(b.iter().copied()).collect::<Vec<_>>();
    let [ab, aa, bb] = [pairs(&a, b), pairs(&a, &a), pairs(b, b)].map(|pairs| product(&mut pairs.into_iter()));
    1.0 - ab / (aa * bb).sqrt()
}

#[test]
fn vectors_and_scores_are_those_of_llama_cpp_on_every_tier() {
    for (name, path, golden) in goldens() {
        for kernels in kernels::available() {
            let got = run(&path, kernels, (16, ctx_of(&name)), &golden.tokens);
            let mut worst = 0.0f64;
            for (got, want) in got.iter().zip(&golden.vectors) {
                worst = worst.max(match golden.query {
                    None => off_by(got, want),
                    Some(_) => got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max),
                });
            }
            let limit = match (&golden.query, name.ends_with("f32")) {
                (None, true) => OFF_F32,
                (None, false) => OFF,
                (Some(_), true) => 2e-3,
                (Some(_), false) => 1e-1,
            };
            println!("{name} {}: {worst:.1e}", kernels.tier().name());
            assert!(worst <= limit, "{name} {}: off by {worst:e}", kernels.tier().name());
        }
    }
}

#[test]
fn vectors_are_the_same_alone_and_among_others() {
    let kernels = kernels::select(None, None).unwrap();
    for (name, path, golden) in goldens() {
        let among = run(&path, kernels, (16, ctx_of(&name)), &golden.tokens);
        for (text, among) in golden.tokens.iter().zip(among) {
            let alone = run(&path, kernels, (1, ctx_of(&name)), std::slice::from_ref(text));
            let off = off_by(&alone[0], &among.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            assert!(off.abs() < 1e-6, "{name}, {} tokens: {off:e}", text.len());
        }
    }
}

#[test]
fn ranks_order_documents_as_llama_cpp_does() {
    let kernels = kernels::select(None, None).unwrap();
    let mut n_ranking = 0;
    for (name, path, golden) in goldens().into_iter().filter(|(.., golden)| golden.query.is_some()) {
        let order = |scores: Vec<f64>| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order
        };
        let got = run(&path, kernels, (16, ctx_of(&name)), &golden.tokens);
        let got = order(got.iter().map(|scores| f64::from(scores[0])).collect());
        let want: Vec<f64> = golden.vectors.iter().map(|scores| scores[0]).collect();
        // What llama.cpp has far apart is in the same order.
        for (i, &a) in got.iter().enumerate() {
            for &b in &got[i + 1..] {
                assert!(want[a] > want[b] - 0.1, "{name}: {a} before {b} of {want:?}");
            }
        }
        n_ranking += 1;
    }
    assert!(n_ranking >= 5);
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    for (name, path, golden) in goldens() {
        with_vocabulary(&path, |tokenizer| {
            for (text, whole, plain) in &golden.odd {
                let (mut ids, mut bare) = (Vec::new(), Vec::new());
                tokenizer.encode_whole(text, &mut ids);
                tokenizer.encode(text, false, &mut bare);
                assert_eq!((&ids, &bare), (whole, plain), "{name}: {text:?}");
            }
            let has_template = name.starts_with("qwen3");
            for (text, want) in golden.texts.iter().zip(&golden.tokens) {
                let mut ids = Vec::new();
                match &golden.query {
                    Some(_) if has_template => continue,
                    Some(query) => tokenizer.encode_pair(query, text, &mut ids),
                    None => tokenizer.encode_whole(text, &mut ids),
                }
                assert_eq!(&ids, want, "{name}: {text:?}");
            }
        });
    }
}

#[test]
fn any_text_has_tokens_of_the_vocabulary() {
    let pool: Vec<char> =
        "aeéE\u{301}ß中か\u{3099}한ﬁ①½Ａ\u{0}\u{7}\u{ad}\u{200b}\u{fffd}\u{feff}\u{10ffff}🙂\t\n \u{a0}▁#[]<>.,!the"
            .chars()
            .collect();
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for name in ["bert-f32", "bert-unigram-f32"] {
        with_vocabulary(&dir().join(format!("{name}.gguf")), |tokenizer| {
            for _ in 0..3000 {
                let text: String = (0..random() % 40).map(|_| pool[random() % pool.len()]).collect();
                let (mut whole, mut pair) = (Vec::new(), Vec::new());
                tokenizer.encode_whole(&text, &mut whole);
                tokenizer.encode_pair(&text, &text, &mut pair);
                assert!(whole.iter().chain(&pair).all(|&id| id < tokenizer.n_tokens()), "{name}: {text:?}");
                assert!(whole.len() >= 2 && whole[0] == tokenizer.bos().unwrap(), "{name}: {text:?}");
            }
            let mut ids = Vec::new();
            tokenizer.encode_whole(&"unmatchable🙂".repeat(20_000), &mut ids);
            tokenizer.encode_whole(&" the".repeat(20_000), &mut ids);
            assert!(ids.len() > 20_000, "{name}: {}", ids.len());
        });
    }
}

#[test]
fn many_texts_share_a_pass_and_long_ones_have_one_of_their_own() {
    let kernels = kernels::select(None, None).unwrap();
    let path = dir().join("bert-f32.gguf");
    for_checkpoints(&path, kernels, (Some(32), CTX), 0, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 64, Vec::new());
        let short: Vec<Vec<u32>> = (0..32).map(|i| vec![2, 10 + i, 3]).collect();
        let before = handle.stats().steps;
        let vectors_of_short = vectors(&mut scheduler, &handle, &short);
        assert_eq!(handle.stats().steps - before, 1, "32 short texts are one pass");
        assert!(vectors_of_short[0] != vectors_of_short[1]);
        let long: Vec<Vec<u32>> = (0..3).map(|i| (0..CTX).map(|at| 5 + (at * 7 + i) % 200).collect()).collect();
        let before = handle.stats().steps;
        vectors(&mut scheduler, &handle, &long);
        assert_eq!(handle.stats().steps - before, 3, "each needs a pass, and none is cut");
        assert_eq!(handle.stats().tokens_reused, 0, "what was read in both directions holds for no other text");
    });
}

#[test]
fn what_cannot_be_read_is_refused_before_it_is_tried() {
    let kernels = kernels::select(None, None).unwrap();
    let path = dir().join("bert-f32.gguf");
    for_checkpoints(&path, kernels, (Some(2), CTX), 0, |core| {
        let (_scheduler, handle) = Scheduler::new(core, 4, Vec::new());
        let vectors = handle.limits().vectors.unwrap();
        let too_long = vec![5; CTX as usize + 1];
        let request = Request { prompt: too_long, output: OutputKind::Embedding(vectors.pooling) };
        match handle.submit(Box::new(request)) {
            Err(SubmitError::Invalid(_, RequestError::TextLength { found, limit })) => {
                assert_eq!((found, limit), (CTX as usize + 1, CTX as usize));
            }
            other => panic!("{other:?}"),
        }
        let text =
            Request { prompt: vec![5], output: OutputKind::Tokens(Generate { max_tokens: 1, ..Generate::default() }) };
        assert!(matches!(handle.submit(Box::new(text)), Err(SubmitError::Invalid(_, RequestError::NoText))));
    });
}
