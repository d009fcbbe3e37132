//! The scheduler behind its handle: what clients get, alone and among others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/engine.rs"]
mod engine;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brim::engine::{
    CacheError, EVENTS_MAX, EngineError, EngineHandle, Event, Finish, Generate, OutputKind, Request, RequestError,
    Scheduler, SlotState, Step, SubmitError, Ticket, Timings,
};
use brim::kernels::{self, Kernels};
use brim::load::header::ModelFiles;
use brim::sampling::{SamplingError, SamplingParams};
use cli::Dir;
use engine::{for_scheduler, with_engine};

/// Slots of most schedulers here, and tokens of a page.
const SLOTS: usize = 8;
const PAGE: usize = 64;

/// How far logprobs of f32 weights may lie from those of the sequence alone. A pass of up to 8 tokens sums in another order
/// than one of more, by 1e-6; but where that tips the rounding of K or V to f16 they move by 2^-11. Fed in one pass, in passes of
/// 8 or token by token, the same tokens differ by up to 2.4e-3 with these models and no others beside them. Quantised
/// activations move by 1/127 in the same way.
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

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Box<Request> {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let n_top_logprobs = Some(2);
    let generate = Generate { max_tokens, sampling, ignore_eos: true, n_top_logprobs, ..Generate::default() };
    Box::new(Request { prompt, output: OutputKind::Tokens(generate) })
}

/// The same request, generated otherwise.
fn but(mut request: Box<Request>, change: impl FnOnce(&mut Generate)) -> Box<Request> {
    let OutputKind::Tokens(generate) = &mut request.output else { panic!("a request for tokens") };
    change(generate);
    request
}

/// Stops the engine when the client ends, also by a failed assertion.
struct Stop<'h>(&'h EngineHandle);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs a scheduler while `client` talks to it from another thread.
fn serve_on<R: Send>(
    (path, kernels, slots, kv_tokens): (&Path, &'static Kernels, usize, usize),
    client: impl FnOnce(&EngineHandle) -> R + Send,
) -> R {
    for_scheduler(path, kernels, slots, kv_tokens, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, vec![7]);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let _stop = Stop(&handle);
                client(&handle)
            });
            scheduler.run();
            let result = client.join().unwrap();
            let stats = handle.stats();
            assert_eq!((stats.kv_pages_used, stats.queue_len), (0, 0), "{stats:?}");
            assert!(stats.slots.iter().all(|(state, _)| *state == SlotState::Free), "{stats:?}");
            result
        })
    })
}

fn serve<R: Send>(name: &str, client: impl FnOnce(&EngineHandle) -> R + Send) -> R {
    serve_on((&golden(name), best(), SLOTS, SLOTS * 512), client)
}

fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Answer {
    reused: usize,
    steps: Vec<Step>,
    finish: Finish,
    timings: Timings,
}

impl Answer {
    fn tokens(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.token).collect()
    }
}

fn collect(mut ticket: Ticket) -> Answer {
    let Some(Event::Started { reused_tokens }) = ticket.wait_event() else { panic!("it starts with its start") };
    let mut steps = Vec::new();
    loop {
        match ticket.wait_event().unwrap() {
            Event::Step(step) => steps.push(step),
            Event::Finished(finish, timings) => {
                assert_eq!(ticket.wait_event(), None);
                assert_eq!(timings.generated_tokens as usize, steps.len());
                return Answer { reused: reused_tokens as usize, steps, finish, timings };
            }
            Event::Started { .. } | Event::Scored => panic!("started twice, or scored"),
        }
    }
}

/// Holds an answer against what `Engine` makes of the same tokens alone: the logarithms of probabilities differ by no more
/// than `bound`, and where another token was taken, both were as likely within that. Returns the largest difference.
fn check_alone(path: &Path, kernels: &'static Kernels, prompt: &[u32], answer: &Answer, bound: f32) -> f32 {
    with_engine(path, kernels, 128, |engine| {
        let (mut next, mut worst) = (prompt.to_vec(), 0f32);
        for step in &answer.steps {
            let logits = engine.feed(&next).unwrap();
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
            let logprob = |token: u32| logits[token as usize] - top - total.ln() as f32;
            let n_top = usize::from(step.n_top);
            for (token, got) in step.top[..n_top].iter().chain([&(step.token, step.logprob)]) {
                worst = worst.max((got - logprob(*token)).abs());
            }
            assert_eq!(step.token, step.top[0].0, "the likeliest is taken");
            assert!(top - logits[step.token as usize] <= 2.0 * bound, "another token, and not by a hair");
            next = vec![step.token];
        }
        assert!(worst <= bound, "{path:?} {kernels:?}: logprobs differ by {worst}, bound {bound}");
        worst
    })
}

#[test]
fn eight_interleaved_get_what_each_gets_alone_on_every_tier() {
    let models = [
        ("llama-f32", NOISE),
        ("qwen3moe-f32", NOISE),
        ("gemma3-f32", NOISE),
        ("lfm2-f32", NOISE),
        ("qwen35-f32", NOISE),
        ("qwen3next-f32", NOISE),
        ("nemotron_h_moe-f32", NOISE),
        ("gpt-oss-f32", NOISE),
        ("llama-q4_k", 3e-2),
        ("qwen2-q8_0", 3e-2),
    ];
    for (name, bound) in models {
        for kernels in kernels::available() {
            let path = golden(name);
            let lengths = [5, 64, 100, 200, 130, 33, 300, 1];
            let prompts: Vec<Vec<u32>> = (0..).zip(lengths).map(|(i, n)| tokens(i, n)).collect();
            let answers = serve_on((&path, kernels, SLOTS, SLOTS * 512), |handle| {
                let tickets: Vec<Ticket> =
                    prompts.iter().map(|prompt| handle.submit(greedy(prompt.clone(), 24)).unwrap()).collect();
                tickets.into_iter().map(collect).collect::<Vec<_>>()
            });
            let (mut worst, mut same) = (0f32, 0);
            for (prompt, answer) in prompts.iter().zip(&answers) {
                assert_eq!((answer.finish, answer.steps.len()), (Finish::Length, 24));
                let off = check_alone(&path, kernels, prompt, answer, bound);
                (worst, same) = (worst.max(off), same + usize::from(off < 2e-6));
            }
            println!("{name} {kernels:?}: {same} of 8 within rounding of the logprob, largest difference {worst:.1e}");
        }
    }
}

/// Every architecture: models of F32 in `tests/golden` are of all of them.
#[test]
fn four_at_once_get_what_each_gets_alone_whatever_the_architecture() {
    let models = std::fs::read_dir(golden("x").parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let models: Vec<PathBuf> = models.filter(|path| path.to_string_lossy().ends_with("-f32.gguf")).collect();
    assert!(models.len() > 50, "golden models are missing");
    for path in models {
        let prompts: Vec<Vec<u32>> = (0..).zip([5, 130, 64, 200]).map(|(i, n)| tokens(i, n)).collect();
        let answers = serve_on((&path, best(), SLOTS, SLOTS * 512), |handle| {
            let submit = |prompt: &Vec<u32>| handle.submit(greedy(prompt.clone(), 12)).unwrap();
            let tickets: Vec<Ticket> = prompts.iter().map(submit).collect();
            tickets.into_iter().map(collect).collect::<Vec<_>>()
        });
        for (prompt, answer) in prompts.iter().zip(&answers) {
            assert_eq!((answer.finish, answer.steps.len()), (Finish::Length, 12), "{path:?}");
            check_alone(&path, best(), prompt, answer, NOISE);
        }
    }
}

#[test]
fn a_client_that_goes_frees_its_slot_and_nobody_else_notices() {
    let name = "qwen3-f32";
    serve(name, |handle| {
        let others: Vec<Ticket> = (0..7).map(|i| handle.submit(greedy(tokens(i, 100), 200)).unwrap()).collect();
        let mut leaver = handle.submit(greedy(tokens(9, 200), 300)).unwrap();
        (0..9).for_each(|_| assert!(leaver.wait_event().is_some()));
        // A ninth, for which there is no slot yet.
        let late = handle.submit(greedy(tokens(10, 20), 5)).unwrap();
        drop(leaver);
        let answer = collect(late);
        assert_eq!((answer.finish, answer.steps.len(), handle.stats().cancelled), (Finish::Length, 5, 1));
        check_alone(&golden(name), best(), &tokens(10, 20), &answer, NOISE);
        for (i, answer) in (0..).zip(others.into_iter().map(collect)) {
            assert_eq!(answer.finish, Finish::Length);
            check_alone(&golden(name), best(), &tokens(i, 100), &answer, NOISE);
        }
        // In the queue, in its prompt, and at once.
        let tickets: Vec<Ticket> = (0..8).map(|i| handle.submit(greedy(tokens(i, 500), 5)).unwrap()).collect();
        drop(tickets);
        // Where this thread had to wait for its CPU, some have come to their end before.
        let gone = || handle.stats().cancelled + handle.stats().finished;
        until("all have gone", || gone() == 17);
    });
}

#[test]
fn the_slot_of_a_client_that_has_gone_is_free_after_one_round() {
    for_scheduler(&golden("qwen3-f32"), best(), 2, 2 * 512, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let state = |slot: usize| handle.stats().slots[slot].0;
        let gone = handle.submit(greedy(tokens(1, 300), 100)).unwrap();
        let other = handle.submit(greedy(tokens(2, 10), 100)).unwrap();
        assert!(scheduler.round());
        assert_eq!([state(0), state(1)], [SlotState::Prefill, SlotState::Free]);
        assert!(scheduler.round());
        assert_eq!([state(0), state(1)], [SlotState::Prefill, SlotState::Decode]);
        let pages = handle.stats().kv_pages_used;
        drop(gone);
        let late = handle.submit(greedy(tokens(3, 10), 100)).unwrap();
        assert!(scheduler.round());
        // Somebody else has it already.
        assert_eq!([state(0), state(1)], [SlotState::Decode; 2]);
        assert!(handle.stats().kv_pages_used < pages);
        drop((other, late));
        assert!(!scheduler.round());
        assert_eq!((handle.stats().cancelled, handle.stats().kv_pages_used), (3, 0));
    });
}

#[test]
fn long_prompts_delay_a_token_of_the_others_by_a_quarter_of_a_chunk() {
    // A quarter of a pass of 128 tokens, in whole pages.
    let shared_chunk = (128 / 4_usize).next_multiple_of(PAGE);
    for_scheduler(&golden("qwen3-f32"), best(), 5, 5 * 512, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let streams: Vec<_> = (1..4).map(|seed| handle.submit(greedy(tokens(seed, 10), 100)).unwrap()).collect();
        let is_decoding = |slot: usize| handle.stats().slots[slot].0 == SlotState::Decode;
        while !(0..3).all(is_decoding) {
            assert!(scheduler.round());
        }
        let prompts = [7, 8].map(|seed| handle.submit(greedy(tokens(seed, 488), 20)).unwrap());
        let mut rounds = 0;
        while !(is_decoding(3) && is_decoding(4)) {
            let before = handle.stats();
            assert!(scheduler.round());
            let after = handle.stats();
            let read = (after.tokens_in - before.tokens_in) as usize;
            assert!(read <= shared_chunk, "{read} tokens of prompts in one pass");
            assert_eq!(after.steps - before.steps, 1);
            // Each stream has its token of every pass; a prompt that is through adds its first.
            let of_streams = after.tokens_out - before.tokens_out;
            assert!((3..=5).contains(&of_streams), "{of_streams} tokens in a pass beside prompts");
            rounds += 1;
        }
        // Prompts in 64 tokens at a time, and not slower than that.
        assert!((976_usize.div_ceil(shared_chunk)..=976 / shared_chunk + 3).contains(&rounds), "{rounds} passes");
        drop((streams, prompts));
        assert!(!scheduler.round());
    });
}

#[test]
fn a_full_queue_hands_the_request_back() {
    serve_on((&golden("qwen3-f32"), best(), 1, 512), |handle| {
        let running = handle.submit(greedy(tokens(0, 10), 400)).unwrap();
        until("it runs", || handle.stats().queue_len == 0);
        let queued: Vec<Ticket> = (0..8).map(|i| handle.submit(greedy(tokens(i, 10), 2)).unwrap()).collect();
        let refused = handle.submit(greedy(tokens(1, 10), 2));
        assert!(matches!(refused, Err(SubmitError::Busy(request)) if request == greedy(tokens(1, 10), 2)));
        drop(running);
        for ticket in queued {
            assert_eq!(collect(ticket).finish, Finish::Length);
        }
        assert_eq!(collect(handle.submit(greedy(tokens(1, 10), 2)).unwrap()).finish, Finish::Length);
    });
}

#[test]
fn who_finds_no_pages_waits_for_them_and_is_not_overtaken() {
    // Eight pages, which are one context, for four slots.
    serve_on((&golden("qwen3-f32"), best(), 4, 8 * PAGE), |handle| {
        assert_eq!(handle.limits().kv_tokens, 8 * PAGE);
        // All of them, and one token more. The last token is never fed, but counts.
        let whole = greedy(tokens(0, 200), 8 * PAGE - 200);
        let refused = handle.submit(greedy(tokens(0, 200), 8 * PAGE - 199));
        let limit = 8 * PAGE;
        let Err(SubmitError::Invalid(_, error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error, RequestError::Context { prompt: 200, max_tokens: 8 * PAGE - 199, limit });
        let mut first = handle.submit(greedy(tokens(3, PAGE), 2 * PAGE + 1)).unwrap();
        assert!(first.wait_event().is_some());
        let whole = handle.submit(whole).unwrap();
        // This one would find its page at once, but came later.
        let small = handle.submit(greedy(tokens(5, 3), 2)).unwrap();
        let [whole, small] = std::thread::scope(|scope| {
            let answers = [whole, small].map(|ticket| scope.spawn(|| (collect(ticket), Instant::now())));
            while first.wait_event().is_some() {}
            answers.map(|answer| answer.join().unwrap())
        });
        assert_eq!((whole.0.finish, small.0.finish), (Finish::Length, Finish::Length));
        assert!(small.1 >= whole.1 - whole.0.timings.decode, "the small one started before the large one");
        check_alone(&golden("qwen3-f32"), best(), &tokens(0, 200), &whole.0, NOISE);
        // What was kept has given way.
        assert!(handle.stats().kv_pages_cached <= 8);
    });
}

#[test]
fn what_others_have_computed_is_taken_over() {
    for name in ["qwen3-f32", "gemma3-f32", "gpt-oss-f32", "lfm2-f32"] {
        serve(name, |handle| {
            let prompt = |tail: u32| [tokens(1, 300), tokens(tail, 40)].concat();
            let answer = |prompt: Vec<u32>| {
                let answer = collect(handle.submit(greedy(prompt.clone(), 12)).unwrap());
                check_alone(&golden(name), best(), &prompt, &answer, NOISE);
                answer
            };
            assert_eq!(answer(prompt(2)).reused, 0);
            assert_eq!(answer(prompt(3)).reused, 4 * PAGE);
            // The same once more: all whole pages but that of the last token, also where a page ends with it.
            assert_eq!(answer(prompt(3)).reused, 5 * PAGE);
            assert_eq!(answer(tokens(1, 256)).reused, 3 * PAGE);
            assert_eq!(answer(tokens(1, 257)).reused, 4 * PAGE);
            // A conversation: what was generated is there as well.
            let first = answer(tokens(4, 120));
            let next = [tokens(4, 120), first.tokens(), tokens(5, 30)].concat();
            assert_eq!(answer(next).reused, 2 * PAGE);
            // Together: the work on what they share is shared.
            let before = handle.stats();
            let prompt = |tail: u32| [tokens(6, 320), tokens(tail, 40)].concat();
            let tickets: Vec<Ticket> =
                (0..8).map(|tail| handle.submit(greedy(prompt(10 + tail), 12)).unwrap()).collect();
            for (tail, answer) in (0..).zip(tickets.into_iter().map(collect)) {
                check_alone(&golden(name), best(), &prompt(10 + tail), &answer, NOISE);
            }
            let after = handle.stats();
            let (computed, reused) = (after.tokens_in - before.tokens_in, after.tokens_reused - before.tokens_reused);
            assert_eq!(computed + reused, 8 * 360);
            // A chunk of theirs was under way in all of them at most.
            assert!(computed <= 320 + 8 * (40 + 64), "{name}: {computed} computed, {reused} reused");
        });
    }
}

#[test]
fn logits_that_are_not_numbers_fail_their_request_alone() {
    // A token whose embedding has a scale that is not a number; the table is not the output matrix.
    let dir = Dir::new("serving-nan");
    let original = golden("llama-q4_k");
    let mut file = std::fs::read(&original).unwrap();
    let files = ModelFiles::open(&original).unwrap();
    let table = files.tables().find("token_embd.weight").unwrap();
    let (poison, row_bytes) = (123, (table.bytes / table.dims[1]) as usize);
    file[table.offset as usize + poison * row_bytes..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let path = dir.file("nan.gguf", file);
    let path = Path::new(&path);
    serve_on((path, best(), SLOTS, SLOTS * 512), |handle| {
        let clean = |seed| tokens(seed, 150).into_iter().map(|t| if t == 123 { 1 } else { t }).collect::<Vec<_>>();
        let mut poisoned = clean(1);
        poisoned[70] = 123;
        let tickets: Vec<Ticket> = (1..8).map(|seed| handle.submit(greedy(clean(seed), 40)).unwrap()).collect();
        let answer = collect(handle.submit(greedy(poisoned.clone(), 40)).unwrap());
        let nan = |finish| {
            let Finish::Failed(EngineError::Sampling(SamplingError::NotANumber { .. })) = finish else { return false };
            true
        };
        assert!(nan(answer.finish) && answer.steps.is_empty(), "{:?}", answer.finish);
        for (seed, answer) in (1..).zip(tickets.into_iter().map(collect)) {
            assert_eq!(answer.finish, Finish::Length);
            check_alone(path, best(), &clean(seed), &answer, 3e-2);
        }
        // Nobody continues after what it has computed, nor after what lies in the same pages later.
        let again = collect(handle.submit(greedy(poisoned, 40)).unwrap());
        assert!(nan(again.finish));
        assert!(again.reused <= PAGE, "{}", again.reused);
        for seed in 20..60 {
            let answer = collect(handle.submit(greedy(clean(seed), 4)).unwrap());
            assert_eq!(answer.finish, Finish::Length);
        }
        assert_eq!(handle.stats().failed, 2);
    });
}

fn mask(allowed: &[u32], n_vocab: usize) -> Vec<u32> {
    let mut mask = vec![0; n_vocab.div_ceil(32)];
    allowed.iter().for_each(|id| mask[*id as usize / 32] |= 1 << (id % 32));
    mask
}

#[test]
fn a_slot_that_waits_for_its_mask_holds_nobody_up() {
    serve("qwen3-f32", |handle| {
        let n_vocab = handle.limits().n_vocab;
        let mut held = handle.submit(but(greedy(tokens(1, 70), 3), |g| g.constraint = true)).unwrap();
        assert!(held.wait_event().is_some());
        let other = collect(handle.submit(greedy(tokens(2, 30), 50)).unwrap());
        assert_eq!(other.finish, Finish::Length);
        until("it waits", || handle.stats().slots.iter().any(|(state, _)| *state == SlotState::Waiting));
        for allowed in [[5, 6], [200, 201], [33, 34]] {
            held.set_mask(&mask(&allowed, n_vocab));
            let Some(Event::Step(step)) = held.wait_event() else { panic!("a token") };
            assert!(allowed.contains(&step.token), "{step:?}");
        }
        assert!(matches!(held.wait_event(), Some(Event::Finished(Finish::Length, _))));
        // A mask that is there before it is needed, and one that leaves nothing.
        let mut early = handle.submit(but(greedy(tokens(3, 70), 3), |g| g.constraint = true)).unwrap();
        early.set_mask(&mask(&[9], n_vocab));
        assert!(early.wait_event().is_some());
        assert!(matches!(early.wait_event(), Some(Event::Step(Step { token: 9, .. }))));
        early.set_mask(&mask(&[], n_vocab));
        let failed = Finish::Failed(EngineError::Sampling(SamplingError::NoCandidate));
        assert!(matches!(early.wait_event(), Some(Event::Finished(finish, _)) if finish == failed));
        // One that goes while it is waited for.
        let mut gone = handle.submit(but(greedy(tokens(4, 70), 3), |g| g.constraint = true)).unwrap();
        assert!(gone.wait_event().is_some());
        until("it waits", || handle.stats().slots.iter().any(|(state, _)| *state == SlotState::Waiting));
        drop(gone);
        until("it is gone", || handle.stats().cancelled == 1);
    });
}

#[test]
fn a_client_that_does_not_read_pauses_alone() {
    serve("qwen3-f32", |handle| {
        let mut slow = handle.submit(greedy(tokens(1, 70), 100)).unwrap();
        assert!(slow.wait_event().is_some());
        assert_eq!(collect(handle.submit(greedy(tokens(2, 30), 200)).unwrap()).finish, Finish::Length);
        let paused = handle.stats().tokens_out - 200;
        assert!(paused <= EVENTS_MAX as u64, "{paused}");
        let mut n = 0;
        while let Some(Event::Step(_)) = slow.wait_event() {
            n += 1;
        }
        assert_eq!(n, 100);
    });
}

#[test]
fn tokens_that_end_generation_do_and_the_same_seed_draws_the_same() {
    serve("qwen3-f32", |handle| {
        // Token 7 is the end here.
        let bias = vec![(7, 1e4)];
        let ends = |ignore_eos| {
            let request = but(greedy(tokens(1, 30), 5), |g| (g.logit_bias, g.ignore_eos) = (bias.clone(), ignore_eos));
            let answer = collect(handle.submit(request).unwrap());
            (answer.finish, answer.tokens())
        };
        assert_eq!(ends(false), (Finish::EndOfGeneration, vec![7]));
        assert_eq!(ends(true), (Finish::Length, vec![7; 5]));
        let draw = |seed, frequency_penalty| {
            let sampling = SamplingParams { temp: 1.0, seed, frequency_penalty, ..SamplingParams::default() };
            let request = but(greedy(tokens(1, 30), 40), |g| g.sampling = sampling);
            collect(handle.submit(request).unwrap()).tokens()
        };
        assert_eq!(draw(5, 0.0), draw(5, 0.0));
        assert_ne!(draw(5, 0.0), draw(6, 0.0));
        assert_ne!(draw(5, 0.0), draw(5, 2.0));
    });
}

#[test]
fn a_saved_cache_is_there_again_and_a_damaged_one_is_refused_whole() {
    for name in ["qwen3-f32", "gemma3-f32", "lfm2-f32"] {
        let path = golden(name);
        let id = brim::engine::identity(&[name.as_bytes()]);
        // One request is served between `load` and `save`; returns the tokens that it found in the cache, and what was saved.
        let once = |saved: Option<&[u8]>, prompt: &[u32], cap: u64, id: &brim::engine::Identity| {
            for_scheduler(&path, best(), SLOTS, SLOTS * 512, |core| {
                let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
                let loaded = saved.map_or(Ok(0), |saved| scheduler.load_cache(saved, id));
                let ticket = handle.submit(greedy(prompt.to_vec(), 4)).unwrap();
                while scheduler.round() {}
                let answer = collect(ticket);
                check_alone(&path, best(), prompt, &answer, NOISE);
                let mut out = Vec::new();
                let n_saved = scheduler.save_cache(&mut out, cap, id).unwrap();
                (loaded, answer.reused, n_saved, out)
            })
        };
        let prompt = tokens(1, 400);
        let (_, reused, n_saved, bytes) = once(None, &prompt, u64::MAX, &id);
        assert_eq!((reused, n_saved), (0, 6));
        let (loaded, reused, _, bytes) = once(Some(&bytes), &prompt, u64::MAX, &id);
        assert_eq!((loaded.unwrap(), reused), (6, 6 * PAGE));
        let size = bytes.len() as u64;
        // A cap is kept to the byte, and the beginning is what stays.
        let (_, _, n_saved, again) = once(Some(&bytes), &prompt, size, &id);
        assert_eq!((n_saved, again.len() as u64), (6, size));
        let (_, _, n_saved, shorter) = once(Some(&bytes), &prompt, size - 1, &id);
        assert_eq!(n_saved, 5);
        assert!((shorter.len() as u64) < size);
        if name == "qwen3-f32" {
            let (loaded, reused, ..) = once(Some(&shorter), &prompt, u64::MAX, &id);
            assert_eq!((loaded.unwrap(), reused), (5, 5 * PAGE));
        }
        // Another model, torn at any place, a byte that is wrong anywhere, a byte too many.
        let (loaded, reused, ..) = once(Some(&bytes), &prompt, u64::MAX, &[7; 32]);
        assert!(matches!(loaded, Err(CacheError::Identity)) && reused == 0, "{loaded:?}");
        let step = bytes.len() / 23;
        for at in (0..bytes.len()).step_by(step) {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            for damaged in [&bytes[..at], &wrong] {
                let (loaded, reused, ..) = once(Some(damaged), &tokens(1, 100), u64::MAX, &id);
                assert!(loaded.is_err() && reused == 0, "{at}: {loaded:?}");
            }
        }
        assert!(once(Some(&[&bytes[..], &[0]].concat()), &tokens(1, 100), u64::MAX, &id).0.is_err());
    }
}

#[test]
fn of_a_saved_cache_that_does_not_fit_what_was_used_last_stays() {
    let path = golden("qwen3-f32");
    let id = [1; 32];
    let fill = |saved: Option<&[u8]>, kv_tokens: usize, prompts: &[u32]| {
        for_scheduler(&path, best(), 2, kv_tokens, |core| {
            let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
            let loaded = saved.map_or(0, |saved| scheduler.load_cache(saved, &id).unwrap());
            let mut reused = Vec::new();
            for &seed in prompts {
                let ticket = handle.submit(greedy(tokens(seed, 200), 1)).unwrap();
                while scheduler.round() {}
                reused.push(collect(ticket).reused / PAGE);
            }
            let mut out = Vec::new();
            scheduler.save_cache(&mut out, u64::MAX, &id).unwrap();
            ((loaded, reused), out)
        })
    };
    let (found, saved) = fill(None, 16 * PAGE, &[1, 2, 3, 4]);
    assert_eq!(found, (0, vec![0; 4]));
    assert_eq!(fill(Some(&saved), 8 * PAGE, &[4, 3]).0, (8, vec![3, 3]));
}

/// Takes so many bytes, then no more: a disk that fills up.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.min(bytes.len()) {
            0 if !bytes.is_empty() => Err(std::io::ErrorKind::StorageFull.into()),
            n => {
                self.0 -= n;
                Ok(n)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_that_takes_no_more_is_reported_and_the_cache_stays() {
    for_scheduler(&golden("qwen3-f32"), best(), 2, 16 * PAGE, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let reused = |scheduler: &mut Scheduler<'_>| {
            let ticket = handle.submit(greedy(tokens(1, 200), 1)).unwrap();
            while scheduler.round() {}
            collect(ticket).reused
        };
        assert_eq!(reused(&mut scheduler), 0);
        let mut all = Vec::new();
        scheduler.save_cache(&mut all, u64::MAX, &[1; 32]).unwrap();
        for room in [0, 10, 20_000, all.len() - 1] {
            let saved = scheduler.save_cache(Full(room), u64::MAX, &[1; 32]);
            assert!(
                matches!(&saved, Err(CacheError::Io(e)) if e.kind() == std::io::ErrorKind::StorageFull),
                "{saved:?}"
            );
        }
        assert_eq!(scheduler.save_cache(Full(all.len()), u64::MAX, &[1; 32]).unwrap(), 3);
        assert_eq!(reused(&mut scheduler), 3 * PAGE);
    });
}
