//! No heap allocation after Ready: prefill, 64 decode steps and a refused request, on every tier, with weights of its own
//! and with those of a holder. Its own binary without the test harness, so that worker threads count and nothing else does.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on has failed; it has no harness")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use brim::boot::{Foundations, Headers, Workload};
use brim::engine::{
    DRAFT_MAX, Drafter, Engine, EngineHandle, Event, Generate, OutputKind, Pooling, Request, Scheduler, Ticket,
};
use brim::kernels;
use brim::load::Progress;
use brim::model::Embedding;
use brim::sampling::SamplingParams;
use brim::settings::{HeldWeights, Overrides, Settings};
use brim::sys::alloc;
use common::engine::{for_checkpoints, for_drafts, for_scheduler, for_two_schedulers, with_embedding};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

fn main() {
    let before = alloc::calls();
    std::hint::black_box(vec![0u8; 100]);
    assert!(alloc::calls() > before, "the counter does not count");
    let models_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let models = [
        "qwen3-mixed.gguf",
        "qwen3moe-q4_k.gguf",
        "gpt-oss-f32.gguf",
        "gemma3-f32.gguf",
        "qwen35moe-f32.gguf",
        "gemma4-moe-f32.gguf",
        "gemma4-small-f32.gguf",
        "nemotron_h_moe-f32.gguf",
        "deepseek2-f32.gguf",
        "llama-q4_k.gguf",
    ];
    let models = models.map(|name| models_dir.join(name));
    let cases = models.iter().flat_map(|path| kernels::available().map(move |kernels| (path, kernels)));
    // The last model is untied: its embedding table can stay in the file.
    let mut n_cases = 0;
    for ((path, kernels), embedding) in
        cases.flat_map(|case| [Embedding::InMemory, Embedding::InFile].map(|embedding| (case, embedding)))
    {
        n_cases += 1;
        let name = format!("{kernels:?} {:?} {embedding:?}", path.file_stem());
        with_embedding(path, kernels, 32, embedding, |engine| allocates_nothing(engine, &name));
    }
    for path in &models {
        n_cases += 1;
        resident(path);
    }
    for path in &models {
        for kernels in kernels::available() {
            n_cases += 2;
            for_scheduler(path, kernels, 8, 20 * 64, |core| {
                let (mut scheduler, handle) = Scheduler::new(core, 16, vec![3]);
                serve(&mut scheduler, &handle, &format!("{kernels:?} {:?}", path.file_stem()));
            });
            for_drafts(path, kernels, Embedding::InMemory, (8, 20 * 64), |core| {
                let (scheduler, handle) = Scheduler::new(core, 16, vec![3]);
                let mut scheduler = scheduler.with_drafter(Box::new(Repeat));
                serve(&mut scheduler, &handle, &format!("{kernels:?} {:?} with drafts", path.file_stem()));
            });
        }
    }
    let vectors_dir = models_dir.with_file_name("vectors");
    for name in ["qwen3-reranker-f32.gguf", "bert-q8_0.gguf", "bert-reranker-f32.gguf", "gemma-embedding-f32.gguf"] {
        for kernels in kernels::available() {
            n_cases += 1;
            for_checkpoints(&vectors_dir.join(name), kernels, (Some(8), 160), 0, |core| {
                let (mut scheduler, handle) = Scheduler::new(core, 16, vec![3]);
                embed(&mut scheduler, &handle, &format!("{kernels:?} {name}"));
            });
        }
    }
    // Fewer checkpoints than pages, so that where they are left is chosen, and they take each other's place.
    for n_checkpoints in [0, 1, 5] {
        n_cases += 1;
        let path = models_dir.join("lfm2-f32.gguf");
        for_checkpoints(&path, kernels::select(None, None).unwrap(), (Some(8), 512), n_checkpoints, |core| {
            let (scheduler, handle) = Scheduler::new(core, 16, vec![3]);
            let mut scheduler = scheduler.with_message_starts(&[5, 64, 70]);
            serve(&mut scheduler, &handle, &format!("lfm2-f32 with {n_checkpoints} checkpoints"));
        });
    }
    n_cases += 1;
    two_models(&models[0], &models[9]);
    println!("test result: ok. {} passed; 0 failed", n_cases);
}

/// Two models on one thread: their rounds take turns, and neither allocates.
fn two_models(one: &Path, other: &Path) {
    let kernels = kernels::select(None, None).unwrap();
    for_two_schedulers([one, other], kernels, (2, 20 * 64), |[one, other]| {
        let (first, handle) = Scheduler::new(one, 4, vec![3]);
        let (second, beside) = first.beside(other, 4, vec![3]);
        let mut all = [first, second];
        let request = |i: u32| {
            let generate = Generate { max_tokens: 20, ignore_eos: true, ..Generate::default() };
            let prompt = (0..100 + i * 20).map(|t| t % 200).collect();
            Box::new(Request { prompt, output: OutputKind::Tokens(generate) })
        };
        let submit = |i: u32| [&handle, &beside][i as usize % 2].submit(request(i)).unwrap();
        let mut tickets: Vec<Ticket> = (0..6).map(submit).collect();
        let mut made = 0;
        for _ in 0..80 {
            let before = alloc::calls();
            Scheduler::round_all(&mut all);
            made += alloc::calls() - before;
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            for ticket in &mut tickets {
                while let std::task::Poll::Ready(Some(_)) = ticket.poll_event(&mut cx) {}
            }
        }
        let finished = [&handle, &beside].map(|handle| handle.stats().finished);
        assert_eq!((made, finished), (0, [3, 3]), "allocations of two models, and what each finished");
        println!("no_alloc two models: 0 allocations");
    });
}

/// Proposes what followed the last token when it came before the last time, and else the token itself.
struct Repeat;

impl Drafter for Repeat {
    fn propose(&mut self, history: &[u32], max: usize, out: &mut heapless::Vec<u32, DRAFT_MAX>) {
        let Some((last, before)) = history.split_last() else { return };
        let at = before.iter().rposition(|token| token == last).map_or(before.len(), |at| at + 1);
        out.extend(history[at..].iter().copied().take(max));
    }
}

/// Clients come and go on this thread, and the scheduler's rounds, the only ones that are counted, run between them: eight
/// sequences at once with prompts that begin alike, of which some end, some are cancelled, some wait for masks or for pages, and
/// some come to an embedding.
fn serve(scheduler: &mut Scheduler<'_>, handle: &EngineHandle, name: &str) {
    let mut tickets: Vec<Option<Ticket>> = Vec::new();
    let (mut made, mut rounds, mut tokens) = (0, 0, 0);
    let masks = vec![0xffff_0000u32; handle.limits().n_vocab.div_ceil(32)];
    for i in 0..40u32 {
        let prompt: Vec<u32> = (0..130 + i % 7 * 20).map(|t| if t < 128 { t % 200 } else { (t * i) % 199 }).collect();
        let sampling = SamplingParams {
            temp: if i.is_multiple_of(3) { 0.0 } else { 1.0 },
            presence_penalty: 0.5,
            frequency_penalty: 0.5,
            repeat_penalty: 1.1,
            seed: u64::from(i),
            ..SamplingParams::default()
        };
        let generate = Generate {
            max_tokens: 5 + i as usize % 30,
            sampling,
            logit_bias: vec![(5, 1.0), (6, -100.0)],
            n_top_logprobs: i.is_multiple_of(2).then_some(20),
            score_prompt: i % 4 == 1,
            ignore_eos: i.is_multiple_of(4),
            constraint: i.is_multiple_of(5),
        };
        let output = match i % 8 {
            6 if i % 5 != 0 => OutputKind::Embedding(Pooling::Mean),
            7 if i % 5 != 0 => OutputKind::Embedding(Pooling::Last),
            _ => OutputKind::Tokens(generate),
        };
        let request = Request { prompt, output };
        tickets.extend(handle.submit(Box::new(request)).ok().map(Some));
        for _ in 0..4 {
            let before = alloc::calls();
            scheduler.round();
            made += alloc::calls() - before;
            rounds += 1;
        }
        for (n, place) in tickets.iter_mut().enumerate() {
            let Some(ticket) = place else { continue };
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let mut is_over = n % 6 == 5 && i > n as u32 + 5;
            while let std::task::Poll::Ready(Some(event)) = ticket.poll_event(&mut cx) {
                match event {
                    Event::Started { .. } | Event::Scored | Event::Step(_) => tokens += 1,
                    Event::Finished(..) => is_over = true,
                }
            }
            if n % 5 == 0 && !is_over {
                ticket.set_mask(&masks);
            }
            if is_over {
                *place = None;
            }
        }
    }
    let stats = handle.stats();
    assert_eq!(made, 0, "{made} allocations of the scheduler on {name}");
    assert!(tokens > 100 && stats.finished > 5 && stats.cancelled > 0, "{stats:?}");
    assert!(stats.tokens_reused > 0 || name.ends_with(" 0 checkpoints"), "{stats:?}");
    println!(
        "no_alloc {name}: 0 allocations in {rounds} rounds, {} finished, {} cancelled, {} tokens reused",
        stats.finished, stats.cancelled, stats.tokens_reused
    );
}

/// Texts of a model of vectors, some of whose clients go.
fn embed(scheduler: &mut Scheduler<'_>, handle: &EngineHandle, name: &str) {
    let pooling = handle.limits().vectors.expect("a model of vectors").pooling;
    let (mut made, mut tickets) = (0, Vec::new());
    for i in 0..60u32 {
        let prompt: Vec<u32> = (0..1 + i * 37 % 150).map(|t| (t * i) % 199).collect();
        tickets.extend(handle.submit(Box::new(Request { prompt, output: OutputKind::Embedding(pooling) })));
        for _ in 0..2 {
            let before = alloc::calls();
            scheduler.round();
            made += alloc::calls() - before;
        }
        if i % 7 == 3 {
            tickets.pop();
        }
        tickets.retain_mut(|ticket| {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            while let std::task::Poll::Ready(Some(event)) = ticket.poll_event(&mut cx) {
                if let Event::Finished(..) = event {
                    return false;
                }
            }
            true
        });
    }
    let stats = handle.stats();
    assert_eq!(made, 0, "{made} allocations of the scheduler on {name}");
    assert!(stats.finished > 30, "{stats:?}");
    println!("no_alloc {name}: 0 allocations, {} finished", stats.finished);
}

/// Prefill, decode and a refusal.
fn allocates_nothing(engine: &mut Engine<'_>, name: &str) {
    let prompt: Vec<u32> = (0..100).map(|i| i % 200).collect();
    let too_long = vec![1u32; engine.ctx() + 1];
    let before = alloc::calls();
    engine.feed(&prompt).unwrap();
    let mut token = [7u32];
    for _ in 0..64 {
        let logits = engine.feed(&token).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        token[0] = best.unwrap() as u32;
    }
    assert!(engine.feed(&too_long).is_err());
    let made = alloc::calls() - before;
    assert_eq!(made, 0, "{made} allocations after Ready on {name}");
    println!("no_alloc {name}: 0 allocations in a prefill of 100 tokens and 64 decode steps");
}

/// The same with weights that a holder keeps, started as `run --resident` would start.
fn resident(path: &Path) {
    let socket = std::env::temp_dir().join(format!("brim-no-alloc-{}.sock", std::process::id()));
    let mut holder = Command::new(env!("CARGO_BIN_EXE_brim"));
    holder.args(["hold", "-m"]).arg(path).arg("--socket").arg(&socket).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready: "), "{line:?}");
    let overrides = Overrides {
        model: Some(path.to_str().unwrap().to_owned()),
        ctx: Some("512".to_owned()),
        held: HeldWeights::Allowed(socket.to_str().map(str::to_owned)),
        ..Overrides::default()
    };
    let settings = Settings::resolve(&overrides).unwrap();
    let planned = Headers::read(&settings).unwrap().plan(&Workload::default()).unwrap();
    let name = format!("{:?} {:?} resident", planned.headers.kernels, path.file_stem());
    let mut base = Foundations::default();
    let running = planned.map().unwrap().start(&mut base, &Progress::default()).unwrap();
    allocates_nothing(&mut Engine::new(running.core), &name);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let _ = std::fs::remove_file(socket);
}
