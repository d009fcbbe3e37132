//! A request for an embedding gets the model's own hidden states, pooled, beside requests for tokens.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/engine.rs"]
mod engine;

use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};

use brim::engine::{
    EngineError, EngineHandle, Event, Finish, Generate, OutputKind, Pooling, Request, RequestError, Scheduler,
    SubmitError, Ticket, Timings,
};
use brim::kernels::{self, Kernels};
use brim::load::header::ModelFiles;
use brim::sampling::SamplingParams;
use cli::Dir;
use engine::{for_scheduler, with_engine};

/// Tokens of a page of the cache.
const PAGE: usize = 64;

/// Largest error of a hidden state, whose values are around 1 after the norm: see `NOISE` in `scheduler.rs`, whose logprobs are
/// sums over them.
const NOISE: f32 = 5e-3;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR")))
}

fn best() -> &'static Kernels {
    kernels::select(None, None).unwrap()
}

fn tokens(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (seed * 31 + i * 7919 + i * i % 13) % 251).collect()
}

fn embedding(prompt: &[u32], pooling: Pooling) -> Request {
    Request { prompt: prompt.to_vec(), output: OutputKind::Embedding(pooling) }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let generate = Generate { max_tokens, sampling, ignore_eos: true, ..Generate::default() };
    Request { prompt: prompt.to_vec(), output: OutputKind::Tokens(generate) }
}

/// What came of a request.
#[derive(Debug, Default)]
struct Answer {
    reused: usize,
    tokens: Vec<u32>,
    end: Option<(Finish, Timings)>,
    embedding: Option<Box<[f32]>>,
}

impl Answer {
    fn vector(&self) -> &[f32] {
        assert!(matches!(self.end, Some((Finish::Embedded, _))), "{:?}", self.end);
        self.embedding.as_deref().unwrap()
    }
}

/// Answers requests all at once.
fn answer(scheduler: &mut Scheduler<'_>, handle: &EngineHandle, requests: &[Request]) -> Vec<Answer> {
    let mut open: Vec<(Ticket, Answer)> =
        requests.iter().map(|request| (handle.submit(Box::new(request.clone())).unwrap(), Answer::default())).collect();
    while open.iter().any(|(_, answer)| answer.end.is_none()) {
        assert!(scheduler.round(), "a round in which nothing happens");
        for (ticket, answer) in &mut open {
            while let Poll::Ready(Some(event)) = ticket.poll_event(&mut Context::from_waker(Waker::noop())) {
                match event {
                    Event::Started { reused_tokens } => answer.reused = reused_tokens as usize,
                    Event::Scored => panic!("nobody has asked for logprobs"),
                    Event::Step(step) => answer.tokens.push(step.token),
                    Event::Finished(finish, timings) => {
                        answer.end = Some((finish, timings));
                        answer.embedding = ticket.take_embedding();
                    }
                }
            }
        }
    }
    assert_eq!(handle.stats().kv_pages_used, 0);
    open.into_iter().map(|(_, answer)| answer).collect()
}

fn alone(path: &Path, requests: &[Request]) -> Vec<Answer> {
    for_scheduler(path, best(), 1, 512, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 16, Vec::new());
        answer(&mut scheduler, &handle, requests)
    })
}

/// The largest difference of two vectors.
fn off(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The rows of the output matrix, which have to be f32.
fn output_rows(path: &Path) -> Vec<Vec<f32>> {
    let files = ModelFiles::open(path).unwrap();
    let tables = files.tables();
    let table = tables.find("output.weight").or_else(|| tables.find("token_embd.weight")).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let bytes = &bytes[table.offset as usize..][..table.bytes as usize];
    let values = bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect::<Vec<_>>();
    assert_eq!(values.len() as u64, table.dims[0] * table.dims[1], "an f32 matrix");
    values.chunks_exact(table.dims[0] as usize).map(<[f32]>::to_vec).collect()
}

#[test]
fn the_last_hidden_state_times_the_output_matrix_is_what_the_engine_has_for_logits() {
    for name in ["llama-f32", "qwen3-f32", "qwen3moe-f32", "gemma3-f32", "gpt-oss-f32"] {
        let path = golden(name);
        let rows = output_rows(&path);
        for n in [1, 2, 7, 64, 65, 300] {
            let prompt = tokens(n as u32, n);
            let answers = alone(&path, &[embedding(&prompt, Pooling::Last)]);
            let vector = answers[0].vector();
            let logits = with_engine(&path, best(), 128, |engine| engine.feed(&prompt).unwrap().to_vec());
            let largest = logits.iter().map(|x| x.abs()).fold(0.0, f32::max);
            let products = rows.iter().map(|row| row.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>());
            let worst = products.zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= NOISE * largest.max(1.0), "{name}, {n} tokens: {worst} of {largest}");
            assert!(vector.iter().any(|x| x.abs() > 0.1), "{name}: a vector of next to nothing");
        }
    }
}

#[test]
fn the_mean_is_that_of_the_last_hidden_states_of_all_beginnings() {
    for name in ["llama-f32", "gemma3-f32"] {
        let path = golden(name);
        // In one chunk, and in several with a beginning that is in the cache already.
        for n in [5, 200] {
            let prompt = tokens(3, n);
            let ends: Vec<usize> = (1..=n).collect();
            let mut expected = vec![0.0; 0];
            for_scheduler(&path, best(), 4, 4 * 512, |core| {
                let (mut scheduler, handle) = Scheduler::new(core, 16, Vec::new());
                for ends in ends.chunks(8) {
                    let requests: Vec<Request> =
                        ends.iter().map(|&end| embedding(&prompt[..end], Pooling::Last)).collect();
                    for answer in answer(&mut scheduler, &handle, &requests) {
                        expected.resize(answer.vector().len(), 0.0);
                        expected.iter_mut().zip(answer.vector()).for_each(|(sum, x)| *sum += x / n as f32);
                    }
                }
                let found = answer(&mut scheduler, &handle, &[embedding(&prompt, Pooling::Mean)]);
                assert_eq!(found[0].reused, 0, "the mean needs the states of all tokens");
                let off = off(found[0].vector(), &expected);
                assert!(off <= NOISE, "{name}, {n} tokens: {off}");
            });
        }
    }
}

#[test]
fn embeddings_and_answers_share_passes_and_prefixes_and_get_what_they_get_alone() {
    for name in ["qwen3-f32", "gemma3-f32"] {
        let path = golden(name);
        let common = tokens(1, 200);
        let prompt = |seed: u32| [&common[..], &tokens(seed, 30)].concat();
        let requests = [
            greedy(&tokens(7, 20), 60),
            embedding(&prompt(2), Pooling::Last),
            greedy(&prompt(3), 40),
            embedding(&prompt(4), Pooling::Mean),
            embedding(&tokens(8, 1), Pooling::Last),
            embedding(&prompt(5), Pooling::Last),
            greedy(&tokens(9, 130), 50),
            embedding(&tokens(8, 1), Pooling::Mean),
        ];
        let expected: Vec<Answer> =
            requests.iter().flat_map(|request| alone(&path, std::slice::from_ref(request))).collect();
        for_scheduler(&path, best(), 4, 4 * 512, |core| {
            let (mut scheduler, handle) = Scheduler::new(core, 16, Vec::new());
            for _ in 0..2 {
                let before = handle.stats();
                let answers = answer(&mut scheduler, &handle, &requests);
                for ((answer, expected), request) in answers.iter().zip(&expected).zip(&requests) {
                    assert_eq!(answer.tokens, expected.tokens, "{name}");
                    let (_, timings) = answer.end.unwrap();
                    assert_eq!(timings.prompt_tokens as usize, request.prompt.len());
                    if matches!(request.output, OutputKind::Embedding(_)) {
                        let off = off(answer.vector(), expected.vector());
                        assert!(off <= NOISE, "{name}: {off}");
                        assert_eq!(timings.generated_tokens, 0);
                    } else {
                        assert!(answer.embedding.is_none());
                    }
                }
                let after = handle.stats();
                assert_eq!(after.finished - before.finished, 8);
            }
            // What an embedding has computed serves an answer, and the other way round.
            let again = answer(&mut scheduler, &handle, &[greedy(&prompt(2), 5), embedding(&prompt(3), Pooling::Last)]);
            assert_eq!([again[0].reused, again[1].reused], [3 * PAGE; 2], "{name}");
            assert_eq!(again[0].tokens, alone(&path, &[greedy(&prompt(2), 5)])[0].tokens, "{name}");
        });
    }
}

#[test]
fn a_prompt_fills_the_context_and_one_token_more_is_refused() {
    for_scheduler(&golden("llama-f32"), best(), 1, 512, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        for pooling in [Pooling::Last, Pooling::Mean] {
            let whole = answer(&mut scheduler, &handle, &[embedding(&tokens(1, 512), pooling)]);
            assert!(whole[0].vector().iter().all(|x| x.is_finite()));
            let refused = handle.submit(Box::new(embedding(&tokens(1, 513), pooling)));
            let Err(SubmitError::Invalid(_, error)) = refused else { panic!("{refused:?}") };
            assert_eq!(error, RequestError::TextLength { found: 513, limit: 512 });
        }
        // One that nobody waits for any more.
        drop(handle.submit(Box::new(embedding(&tokens(2, 300), Pooling::Mean))).unwrap());
        assert!(!scheduler.round());
        let mut gone = Some(handle.submit(Box::new(embedding(&tokens(3, 300), Pooling::Mean))).unwrap());
        assert!(scheduler.round());
        drop(gone.take());
        assert!(!scheduler.round());
        assert_eq!((handle.stats().cancelled, handle.stats().kv_pages_used), (2, 0));
    });
}

#[test]
fn a_hidden_state_that_is_not_a_number_fails_its_request_alone() {
    // A token whose embedding has a scale that is not a number.
    let dir = Dir::new("pooled-nan");
    let original = golden("llama-q4_k");
    let mut file = std::fs::read(&original).unwrap();
    let files = ModelFiles::open(&original).unwrap();
    let table = files.tables().find("token_embd.weight").unwrap();
    let (poison, row_bytes) = (123, (table.bytes / table.dims[1]) as usize);
    file[table.offset as usize + poison * row_bytes..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let path = dir.file("nan.gguf", file);
    for_scheduler(Path::new(&path), best(), 4, 4 * 512, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let clean: Vec<u32> = tokens(1, 150).into_iter().map(|t| if t == 123 { 1 } else { t }).collect();
        let mut poisoned = clean.clone();
        poisoned[140] = 123;
        for pooling in [Pooling::Last, Pooling::Mean] {
            let answers = answer(&mut scheduler, &handle, &[embedding(&poisoned, pooling), embedding(&clean, pooling)]);
            let failed = Finish::Failed(EngineError::HiddenState { index: 0 });
            assert!(answers[0].end.unwrap().0 == failed && answers[0].embedding.is_none(), "{:?}", answers[0]);
            assert!(answers[1].vector().iter().all(|x| x.is_finite()));
        }
    });
}
