//! Layers that keep a state of each sequence: going on from checkpoints gives what the whole would have given.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::path::PathBuf;
use std::task::{Context, Poll, Waker};

use brim::engine::{
    Engine, EngineHandle, Event, Finish, Generate, OutputKind, Request, Scheduler, Stats, Step, Ticket, Timings,
};
use brim::kernels::{self, Kernels, KvType, Tile};
use brim::load::header::ModelFiles;
use brim::model::config::MixerConfig;
use brim::model::{CachePlan, Config, Model, Sizes};
use brim::sampling::SamplingParams;
use common::engine::{for_checkpoints, with_engine};
use serde_json::json;

/// Convolutions of three taps, and attention between them.
const MODEL: &str = "lfm2-f32";
/// A delta rule in most layers: with value heads that lie by key head and such that do not, and experts.
const HYBRIDS: [&str; 3] = ["qwen35-f32", "qwen35moe-f32", "qwen3next-f32"];
/// State spaces in some layers, and beside attention.
const STATE_SPACES: [&str; 2] = ["nemotron_h_moe-f32", "falcon-h1-f32"];

/// What is served with few checkpoints.
const MODELS_SERVED: [&str; 3] = [MODEL, HYBRIDS[2], STATE_SPACES[0]];

fn models() -> impl Iterator<Item = &'static str> {
    [MODEL].into_iter().chain(HYBRIDS).chain(STATE_SPACES)
}
const PAGE: usize = 64;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR")))
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7919 + i * i % 13) % 251).collect()
}

fn sizes(sequences: usize, ctx: usize) -> Sizes {
    Sizes {
        n_batch: 16,
        n_logits: 1,
        ctx,
        sequences,
        kv_tokens: sequences * ctx,
        checkpoints: None,
        kv_type: KvType::F16,
        workers: 1,
        tile: Tile::default(),
    }
}

#[test]
fn the_plan_has_a_state_for_every_sequence_and_checkpoints_for_prefixes() {
    let files = ModelFiles::open(golden(MODEL)).unwrap();
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    let n_conv = model.config.layers.iter().filter(|layer| layer.attention().is_none()).count();
    assert!(n_conv > 0 && n_conv < model.config.n_layers());
    let plan = CachePlan::new(&model.config, &sizes(3, 4096));
    // Two rows of the stream for each convolution, on cache lines.
    assert_eq!(plan.state_bytes, n_conv * (2 * model.config.n_embd * 4).next_multiple_of(64));
    assert_eq!((plan.n_live_states, plan.n_checkpoints), (3, 3 * 4096 / PAGE));
    assert_eq!(plan.states_bytes().unwrap(), ((3 + 3 * 4096 / PAGE) * plan.state_bytes) as u64);
    // Of a delta rule three rows of its inputs, and a matrix for every value head.
    for name in HYBRIDS {
        let files = ModelFiles::open(golden(name)).unwrap();
        let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
        let of_layer = |mixer: &MixerConfig| {
            let MixerConfig::DeltaNet(delta) = mixer else { return 0 };
            let (keys, values, dim) = (delta.n_key_heads, delta.n_value_heads, delta.head_dim);
            (3 * (2 * keys + values) * dim + values * dim * dim) * 4
        };
        let bytes = model.config.layers.iter().map(|layer| of_layer(&layer.mixer)).sum::<usize>();
        assert!(bytes > 0 && CachePlan::new(&model.config, &sizes(3, 4096)).state_bytes == bytes, "{name}");
    }
    // Of a state space three rows of its inputs, and a matrix for every head.
    for name in STATE_SPACES {
        let files = ModelFiles::open(golden(name)).unwrap();
        let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
        let of_layer = |mixer: &MixerConfig| {
            let (MixerConfig::Mamba2(mamba) | MixerConfig::AttentionAndMamba2(_, mamba)) = mixer else { return 0 };
            let inner = mamba.n_heads * mamba.head_dim;
            (3 * (inner + 2 * mamba.n_groups * mamba.state_dim) + inner * mamba.state_dim) * 4
        };
        let bytes = model.config.layers.iter().map(|layer| of_layer(&layer.mixer)).sum::<usize>();
        assert!(bytes > 0 && CachePlan::new(&model.config, &sizes(3, 4096)).state_bytes == bytes, "{name}");
    }
    // A model without such layers has none.
    let files = ModelFiles::open(golden("qwen3-f32")).unwrap();
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    let plan = CachePlan::new(&model.config, &sizes(3, 4096));
    assert_eq!((plan.n_states(), plan.states_bytes()), (0, Some(0)));
}

#[test]
fn checkpoints_are_as_many_as_asked_for_at_most_one_for_each_page() {
    let files = ModelFiles::open(golden(MODEL)).unwrap();
    let mut config = Model::from_tables(&files.metadata(), files.tensors()).unwrap().config;
    let n_pages = 3 * 4096 / PAGE;
    let plan = |config: &Config, checkpoints| CachePlan::new(config, &Sizes { checkpoints, ..sizes(3, 4096) });
    for (asked, kept) in [(0, 0), (7, 7), (n_pages, n_pages), (n_pages + 1, n_pages)] {
        let plan = plan(&config, Some(asked));
        assert_eq!((plan.n_checkpoints, plan.has_checkpoint_for_every_page()), (kept, kept == n_pages));
        assert_eq!(plan.states_bytes().unwrap(), ((3 + kept) * plan.state_bytes) as u64);
    }
    // Of states that are large beside the pages there are 4 for each of three sequences and 4 more.
    config.n_embd <<= 20;
    assert_eq!(plan(&config, None).n_checkpoints, 16);
    let short = Sizes { ctx: 512, kv_tokens: 512, ..sizes(3, 4096) };
    assert_eq!(CachePlan::new(&config, &short).n_checkpoints, 8, "never more than pages");
}

#[test]
fn options_say_how_many_checkpoints_there_are() {
    let (model, of_another) = (cli::golden(MODEL), cli::golden("qwen3-f32"));
    let words = ["plan", "--json", "--ctx", "4096", "--slots", "3"];
    let dir = cli::Dir::new("checkpoints");
    let board = dir.file("board.toml", "[serve]\ncheckpoints = 9\n");
    let plan = |more: &[&str], env: Option<&str>| -> cli::Ran {
        let mut command = cli::brim(&[&words[..], more].concat());
        command.envs(env.map(|value| ("BRIM_CHECKPOINTS", value)));
        command.output().unwrap().into()
    };
    let count = |ran: cli::Ran| ran.json()["states"]["checkpoints"].as_u64();
    assert_eq!(count(plan(&["-m", &model, "--checkpoints", "5"], Some("7"))), Some(5));
    assert_eq!(count(plan(&["-m", &model, "--board", &board], Some("7"))), Some(7));
    let of_board = plan(&["-m", &model, "--board", &board], None);
    // The context is longer than the model's, which is all that there is to say.
    assert!(!of_board.stderr.contains("checkpoints"), "{of_board:?}");
    assert_eq!(count(of_board), Some(9));
    assert_eq!(count(plan(&["-m", &model, "--checkpoints", "0"], None)), Some(0));
    let most = plan(&["-m", &model, "--checkpoints", "193"], None);
    assert!(most.stderr.contains("193 checkpoints are asked for, and the KV cache has 192 pages"), "{most:?}");
    assert_eq!(count(most), Some(192));
    // What cannot be obeyed is said, and is no reason to stop.
    let without = plan(&["-m", &of_another, "--checkpoints", "5"], None);
    assert!(without.stderr.contains("checkpoints = 5 changes nothing: this model has no recurrent"), "{without:?}");
    assert_eq!(count(without), None);
    plan(&["-m", &model, "--checkpoints", "-1"], None).fails(2, &["--checkpoints"]);
    plan(&["-m", &model], Some("few")).fails(2, &["BRIM_CHECKPOINTS=few"]);
    // The context that fits is found with them: each is counted, in a region with the states of slots.
    let fit = cli::run(&["plan", "--json", "--fit", "--slots", "3", "-m", &model, "--checkpoints", "5"]).json();
    let each = fit["states"]["bytes_each"].as_u64().unwrap();
    let region = fit["regions"].as_array().unwrap().iter().find(|region| region["name"] == "states").unwrap();
    assert_eq!((fit["states"]["checkpoints"].as_u64(), region["bytes"].as_u64()), (Some(5), Some((3 + 5) * each)));
    let run = |n: &str| cli::run(&["run", "-m", &model, "--raw", "-p", "a b c", "-n", "4", "--checkpoints", n]).good();
    assert_eq!(run("0"), run("4"));
}

#[test]
fn plan_says_what_states_and_checkpoints_take() {
    let (model, of_another) = (golden(MODEL), golden("qwen3-f32"));
    let plan = |model: &PathBuf, more: &[&str]| {
        let model = model.to_str().unwrap();
        let words = ["plan", "-m", model, "--ctx", "4096", "--slots", "3"];
        cli::run(&[&words[..], more].concat())
    };
    let report = plan(&model, &["--json"]).json();
    let files = ModelFiles::open(&model).unwrap();
    let config = Model::from_tables(&files.metadata(), files.tensors()).unwrap().config;
    let cache = CachePlan::new(&config, &sizes(3, 4096));
    let (each, checkpoints) = (cache.state_bytes, 3 * 4096 / PAGE);
    assert_eq!(
        report["states"],
        json!({"bytes_each": each, "slots": 3, "slots_bytes": 3 * each, "checkpoints": checkpoints,
            "checkpoints_bytes": checkpoints * each})
    );
    let region = |name: &str| {
        let regions = report["regions"].as_array().unwrap();
        let region = regions.iter().find(|region| region["name"] == name).unwrap();
        (region["bytes"].as_u64().unwrap(), region["pages"].as_u64().unwrap())
    };
    let bytes = cache.states_bytes().unwrap();
    assert_eq!(region("states"), (bytes, bytes.div_ceil(4096)));
    assert_eq!(region("kv").0, cache.pages_bytes().unwrap());
    // To the page in huge pages too, which this box need not have.
    let huge = plan(&model, &["--hugepages", "--page-size", "2M"]).stdout;
    let row = huge.lines().find(|line| line.starts_with("states ")).unwrap();
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((columns[1], columns[4]), (&*bytes.to_string(), &*bytes.div_ceil(2 << 20).to_string()), "{huge}");
    for part in ["states of slots: 3", "checkpoints: 192"] {
        assert!(huge.contains(part), "{part:?} is missing in\n{huge}");
    }
    let without = plan(&of_another, &["--json"]).json();
    assert!(without.get("states").is_none() && !plan(&of_another, &[]).good().contains("states"));
}

/// Feeds `tokens` in chunks of these lengths, in turn.
fn feed(engine: &mut Engine<'_>, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    let (mut at, mut logits) = (0, Vec::new());
    for n in chunks.iter().cycle() {
        let end = tokens.len().min(at + n);
        logits = engine.feed(&tokens[at..end]).unwrap().to_vec();
        at = end;
        if at == tokens.len() {
            break;
        }
    }
    logits
}

/// Rounding of sums in another order, which tips some keys and values to the next f16.
fn near(got: &[f32], expected: &[f32], what: &str) {
    let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 5e-3, "{what}: off by {off}");
}

#[test]
fn chunks_of_any_length_leave_the_same_state() {
    let tokens = tokens(300);
    for (name, kernels) in models().flat_map(|name| kernels::available().map(move |kernels| (name, kernels))) {
        with_engine(&golden(name), kernels, 128, |engine| {
            let expected = feed(engine, &tokens, &[300]);
            for chunks in [&[1][..], &[2], &[3, 1], &[63, 65], &[64], &[127, 2, 1]] {
                engine.rewind(0);
                near(&feed(engine, &tokens, chunks), &expected, &format!("{name} {kernels:?} {chunks:?}"));
            }
        });
    }
}

#[test]
fn a_sequence_goes_back_to_the_last_end_of_a_page() {
    let kernels = kernels::select(None, None).unwrap();
    let tokens = tokens(300);
    for name in models() {
        goes_back(name, kernels, &tokens);
    }
}

fn goes_back(name: &str, kernels: &'static Kernels, tokens: &[u32]) {
    with_engine(&golden(name), kernels, 128, |engine| {
        let expected = feed(engine, tokens, &[300]);
        for (position, left) in [(300, 300), (299, 256), (256, 256), (255, 192), (130, 128), (64, 64), (63, 0)] {
            assert_eq!(engine.rewind(position), left, "to {position}");
            if left < tokens.len() {
                // Each token by itself, so that every kind of pass goes on from the checkpoint.
                let chunks: &[usize] = if position % 2 == 0 { &[1] } else { &[70] };
                near(&feed(engine, &tokens[left..], chunks), &expected, &format!("from {left}"));
            }
        }
        // What was fed after going back counts, not what was there before.
        assert_eq!(engine.rewind(128), 128);
        let other: Vec<u32> = tokens[128..].iter().map(|token| (token + 1) % 251).collect();
        let off = feed(engine, &other, &[50]);
        engine.rewind(0);
        near(&feed(engine, &[&tokens[..128], &other].concat(), &[300]), &off, "another text");
    });
}

/// Begins a message in the prompts below; their other tokens are less.
const MESSAGE: u32 = 250;

/// `n` tokens of a text.
fn words(text: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (text * 31 + i * 7919 + i * i % 13) % 250).collect()
}

/// A message of `n` tokens.
fn message(text: u32, n: usize) -> Vec<u32> {
    [&[MESSAGE][..], &words(text, n - 1)].concat()
}

/// What came of a request.
struct Answer {
    steps: Vec<Step>,
    timings: Timings,
}

impl Answer {
    /// Tokens of the prompt that were computed.
    fn computed(&self) -> usize {
        (self.timings.prompt_tokens - self.timings.reused_tokens) as usize
    }

    fn tokens(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.token).collect()
    }
}

fn request(prompt: &[u32], max_tokens: usize) -> Box<Request> {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let generate = Generate { max_tokens, sampling, ignore_eos: true, n_top_logprobs: Some(1), ..Generate::default() };
    Box::new(Request { prompt: prompt.to_vec(), output: OutputKind::Tokens(generate) })
}

/// Takes what there is of an answer; true at its end.
fn take(ticket: &mut Ticket, answer: &mut Answer) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(event)) = ticket.poll_event(&mut cx) {
        match event {
            Event::Started { .. } | Event::Scored => {}
            Event::Step(step) => answer.steps.push(step),
            Event::Finished(finish, timings) => {
                assert_eq!(finish, Finish::Length);
                answer.timings = timings;
                return true;
            }
        }
    }
    false
}

/// A scheduler and its client on one thread.
struct Served<'s, 'a> {
    scheduler: &'s mut Scheduler<'a>,
    handle: &'s EngineHandle,
}

impl Served<'_, '_> {
    /// The answers to requests that come together.
    fn ask_all(&mut self, prompts: &[Vec<u32>], n: usize) -> Vec<Answer> {
        let mut tickets: Vec<Ticket> =
            prompts.iter().map(|prompt| self.handle.submit(request(prompt, n)).unwrap()).collect();
        let new = || Answer { steps: Vec::new(), timings: Timings::default() };
        let mut answers: Vec<Answer> = prompts.iter().map(|_| new()).collect();
        let mut is_over = vec![false; prompts.len()];
        while is_over.contains(&false) {
            self.scheduler.round();
            for ((ticket, answer), is_over) in tickets.iter_mut().zip(&mut answers).zip(&mut is_over) {
                *is_over = *is_over || take(ticket, answer);
            }
        }
        answers
    }

    fn ask(&mut self, prompt: &[u32], n: usize) -> Answer {
        self.ask_all(&[prompt.to_vec()], n).pop().unwrap()
    }

    fn stats(&self) -> Stats {
        self.handle.stats()
    }
}

/// Serves with so many checkpoints, after loading a saved cache if there is one; returns what `work` does, and the cache.
fn serve<R>(
    name: &str,
    checkpoints: usize,
    saved: Option<&[u8]>,
    work: impl FnOnce(&mut Served<'_, '_>) -> R,
) -> (R, Vec<u8>) {
    let kernels = kernels::select(None, None).unwrap();
    for_checkpoints(&golden(name), kernels, (Some(2), 4096), checkpoints, |core| {
        let (scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let mut scheduler = scheduler.with_message_starts(&[MESSAGE]);
        if let Some(saved) = saved {
            scheduler.load_cache(saved, &[1; 32]).unwrap();
        }
        let result = work(&mut Served { scheduler: &mut scheduler, handle: &handle });
        let mut out = Vec::new();
        scheduler.save_cache(&mut out, u64::MAX, &[1; 32]).unwrap();
        (result, out)
    })
}

/// Holds an answer against what a sequence alone makes of the same tokens.
fn check_alone(name: &str, prompt: &[u32], answer: &Answer) {
    let kernels = kernels::select(None, None).unwrap();
    for_checkpoints(&golden(name), kernels, (None, 4096), 0, |core| {
        let mut engine = Engine::new(core);
        let mut next = prompt.to_vec();
        for step in &answer.steps {
            let logits = engine.feed(&next).unwrap();
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
            let logprob = logits[step.token as usize] - top - total.ln() as f32;
            assert!((step.logprob - logprob).abs() < 5e-3, "{} for {logprob}", step.logprob);
            next = vec![step.token];
        }
    });
}

#[test]
fn a_system_prompt_is_computed_once_with_three_checkpoints() {
    MODELS_SERVED.iter().for_each(|name| a_system_prompt_is_computed_once_with_three_checkpoints_of(name));
}

fn a_system_prompt_is_computed_once_with_three_checkpoints_of(name: &str) {
    let system = message(1, 2000);
    let chat = |text| [&system[..], &message(text, 150), &[MESSAGE]].concat();
    serve(name, 3, None, |served| {
        let first = served.ask(&chat(2), 70);
        assert_eq!(first.computed(), 2151);
        for text in 3..8 {
            let answer = served.ask(&chat(text), 70);
            // From the last end of a page before the user's message.
            assert_eq!(answer.timings.reused_tokens as usize, 2000 / PAGE * PAGE, "{text}");
            check_alone(name, &chat(text), &answer);
            let stats = served.stats();
            assert_eq!((stats.checkpoints, stats.checkpoints_used), (3, 3));
            assert_eq!(stats.checkpoint_hits, u64::from(text) - 2);
        }
    });
}

#[test]
fn a_retry_computes_a_page_at_most() {
    MODELS_SERVED.iter().for_each(|name| a_retry_computes_a_page_at_most_of(name));
}

fn a_retry_computes_a_page_at_most_of(name: &str) {
    for checkpoints in [2, 3] {
        serve(name, checkpoints, None, |served| {
            for n in [700, 704, 705] {
                let prompt = [message(1, 200), words(n as u32, n - 200)].concat();
                let first = served.ask(&prompt, 20);
                let again = served.ask(&prompt, 20);
                assert!(first.computed() > 400 && again.computed() <= PAGE, "{checkpoints}: {}", again.computed());
                check_alone(name, &prompt, &again);
            }
        });
    }
}

/// Turns of an agent: each request is the last one, its answer and `n` new tokens. Returns the last.
fn turns(name: &str, served: &mut Served<'_, '_>, mut prompt: Vec<u32>, texts: std::ops::Range<u32>) -> Vec<u32> {
    let mut new = prompt.len();
    for text in texts {
        let answer = served.ask(&prompt, 20 + 13 * text as usize);
        assert!(answer.computed() <= new + PAGE, "turn {text}: {} of {}", answer.computed(), prompt.len());
        if text.is_multiple_of(3) {
            check_alone(name, &prompt, &answer);
        }
        prompt.extend(answer.tokens());
        // Some of them end with a page.
        let more = 90 + text as usize;
        new = more
            + if text.is_multiple_of(2) {
                (prompt.len() + more).next_multiple_of(PAGE) - prompt.len() - more
            } else {
                0
            };
        prompt.extend(message(text + 100, new));
    }
    prompt
}

#[test]
fn an_agent_computes_what_is_new_and_a_page_at_most_also_after_a_restart() {
    MODELS_SERVED
        .iter()
        .for_each(|name| an_agent_computes_what_is_new_and_a_page_at_most_also_after_a_restart_of(name));
}

fn an_agent_computes_what_is_new_and_a_page_at_most_also_after_a_restart_of(name: &str) {
    for checkpoints in [2, 3] {
        let first = message(1, 500);
        let (prompt, saved) = serve(name, checkpoints, None, |served| {
            let prompt = turns(name, served, first, 0..10);
            // Somebody else in between, whose prompt leaves at most half of them.
            served.ask(&words(9, 100), 5);
            prompt
        });
        let new = 110;
        let (computed, again) = serve(name, checkpoints, Some(&saved), |served| {
            let first = served.ask(&prompt, 10);
            let again = served.ask(&prompt, 10);
            check_alone(name, &prompt, &again);
            assert_eq!(served.stats().checkpoint_hits, 2);
            turns(name, served, prompt.clone(), 0..2);
            (first.computed(), again.computed())
        })
        .0;
        assert!(computed <= new + PAGE && again <= PAGE, "{checkpoints}: {computed} and {again}");
    }
}

#[test]
fn where_prompts_have_parted_once_the_third_goes_on() {
    MODELS_SERVED.iter().for_each(|name| where_prompts_have_parted_once_the_third_goes_on_of(name));
}

fn where_prompts_have_parted_once_the_third_goes_on_of(name: &str) {
    let common = words(1, 700);
    let prompt = |text| [&common[..], &words(text, 300)].concat();
    serve(name, 3, None, |served| {
        let computed = [2, 3, 4, 5].map(|text| served.ask(&prompt(text), 3).computed());
        let left = 1000 - 700 / PAGE * PAGE;
        assert_eq!(computed, [1000, 1000, left, left]);
    });
}

#[test]
fn of_prompts_that_come_together_one_computes_what_they_have_in_common() {
    MODELS_SERVED.iter().for_each(|name| of_prompts_that_come_together(name));
}

fn of_prompts_that_come_together(name: &str) {
    let common = words(1, 1000);
    let prompt = |text| [&common[..], &words(text, 200)].concat();
    let left = 1200 - 1000 / PAGE * PAGE;
    for checkpoints in [3, 5] {
        serve(name, checkpoints, None, |served| {
            let prompts = [prompt(2), prompt(3)];
            let answers = served.ask_all(&prompts, 10);
            assert_eq!([answers[0].computed(), answers[1].computed()], [1200, left], "{checkpoints}");
            prompts.iter().zip(&answers).for_each(|(prompt, answer)| check_alone(name, prompt, answer));
            // The same text, from its last end of a page; and one after the other once there is no slot for all.
            let answers = served.ask_all(&[words(4, 700), words(4, 700), words(4, 700)], 10);
            let computed: Vec<usize> = answers.iter().map(Answer::computed).collect();
            assert_eq!(computed, [700, 700 - 640, 700 - 640], "{checkpoints}");
        });
    }
    // Who waits goes on when the other has gone.
    serve(name, 3, None, |served| {
        let first = served.handle.submit(request(&prompt(5), 10)).unwrap();
        let mut second = served.handle.submit(request(&prompt(6), 10)).unwrap();
        assert!(served.scheduler.round() && served.scheduler.round());
        drop(first);
        let mut answer = Answer { steps: Vec::new(), timings: Timings::default() };
        while !take(&mut second, &mut answer) {
            assert!(served.scheduler.round());
        }
        assert!(answer.computed() > left);
        check_alone(name, &prompt(6), &answer);
    });
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_that_waits() {
    let kernels = kernels::select(None, None).unwrap();
    let long = words(1, 3000);
    for_checkpoints(&golden(MODEL), kernels, (Some(3), 4096), 4, |core| {
        let (mut scheduler, handle) = Scheduler::new(core, 8, Vec::new());
        let new = || Answer { steps: Vec::new(), timings: Timings::default() };
        let mut first = (handle.submit(request(&long, 4)).unwrap(), new());
        (0..3).for_each(|_| assert!(scheduler.round()));
        // The second waits for what it has in common with the first, of which the third has one page, computed already.
        let mut second = (handle.submit(request(&long, 4)).unwrap(), new());
        assert!(scheduler.round());
        let mut third = (handle.submit(request(&long[..100], 4)).unwrap(), new());
        while !take(&mut third.0, &mut third.1) {
            assert!(scheduler.round());
        }
        assert!(!take(&mut first.0, &mut first.1) && first.1.steps.is_empty());
        let mut are_over = [false; 2];
        while are_over != [true; 2] {
            assert!(scheduler.round());
            for ((ticket, answer), is_over) in [&mut first, &mut second].into_iter().zip(&mut are_over) {
                *is_over = *is_over || take(ticket, answer);
            }
        }
        assert!(second.1.computed() <= PAGE, "{} computed", second.1.computed());
        check_alone(MODEL, &long[..100], &third.1);
    });
}

#[test]
fn without_checkpoints_every_prompt_is_computed_whole() {
    MODELS_SERVED.iter().for_each(|name| without_checkpoints_every_prompt_is_computed_whole_of(name));
}

fn without_checkpoints_every_prompt_is_computed_whole_of(name: &str) {
    let prompt = [message(1, 300), message(2, 100)].concat();
    let (_, saved) = serve(name, 0, None, |served| {
        for _ in 0..3 {
            let answer = served.ask(&prompt, 70);
            assert_eq!(answer.computed(), 400);
            check_alone(name, &prompt, &answer);
        }
        let stats = served.stats();
        assert_eq!((stats.checkpoints, stats.checkpoints_taken, stats.checkpoint_hits), (0, 0, 0));
    });
    // Nothing goes on from any of its pages, so there is nothing to save.
    assert!(saved.len() < 200, "{} bytes", saved.len());
}

#[test]
fn a_saved_cache_has_the_pages_up_to_the_last_checkpoint_as_far_as_it_fits() {
    MODELS_SERVED
        .iter()
        .for_each(|name| a_saved_cache_has_the_pages_up_to_the_last_checkpoint_as_far_as_it_fits_of(name));
}

fn a_saved_cache_has_the_pages_up_to_the_last_checkpoint_as_far_as_it_fits_of(name: &str) {
    let prompt = [message(1, 1000), message(2, 100)].concat();
    // One checkpoint, at the end of the prompt: pages of the answer behind it are of no use.
    let (_, whole) = serve(name, 3, None, |served| served.ask(&prompt, 50));
    for (checkpoints, expected) in [(3, 1088), (1, 1088), (0, 0)] {
        let (reused, _) = serve(name, checkpoints, Some(&whole), |served| served.ask(&prompt, 5).timings.reused_tokens);
        assert_eq!(reused, expected, "{checkpoints}");
    }
    // Where not all of it fits, as much as ends with a checkpoint.
    let kernels = kernels::select(None, None).unwrap();
    for_checkpoints(&golden(name), kernels, (Some(2), 4096), 3, |core| {
        let (mut scheduler, _) = Scheduler::new(core, 8, Vec::new());
        assert_eq!(scheduler.load_cache(&whole[..], &[1; 32]).unwrap(), 17);
        let save = |cap: usize| {
            let mut out = Vec::new();
            (scheduler.save_cache(&mut out, cap as u64, &[1; 32]).unwrap(), out.len())
        };
        assert_eq!(save(whole.len()), (17, whole.len()));
        let (n, bytes) = save(whole.len() - 1);
        assert_eq!(n, 15);
        assert_eq!((save(bytes).0, save(bytes - 1).0), (15, 0));
    });
}

#[test]
fn a_sequence_alone_goes_back_to_the_checkpoints_it_has() {
    MODELS_SERVED.iter().for_each(|name| a_sequence_alone_goes_back_to_the_checkpoints_it_has_of(name));
}

fn a_sequence_alone_goes_back_to_the_checkpoints_it_has_of(name: &str) {
    let kernels = kernels::select(None, None).unwrap();
    let tokens = tokens(1000);
    for (checkpoints, left) in [(0, 0), (1, 960), (4, 960)] {
        for_checkpoints(&golden(name), kernels, (None, 2048), checkpoints, |core| {
            let mut engine = Engine::new(core);
            let expected = feed(&mut engine, &tokens, &[1000]);
            assert_eq!((engine.rewind(1000), engine.rewind(999)), (1000, left));
            near(&feed(&mut engine, &tokens[left..], &[1]), &expected, "token by token");
            // An answer of any length leaves the prompt's checkpoint where there is more than one.
            feed(&mut engine, &tokens[..300], &[1]);
            let left = engine.rewind(999);
            assert_eq!(left, if checkpoints == 4 { 960 } else { 0 }, "{checkpoints}");
            near(&feed(&mut engine, &tokens[left..], &[30]), &expected, "from there");
        });
    }
}
