//! Two models in one process, as a draft model or an embedding model stands beside another: each is started as every
//! command starts its own, and neither changes what the other says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/engine.rs"]
mod engine;

use std::path::PathBuf;

use brim::boot::{Foundations, Headers, Running, Workload};
use brim::engine::Engine;
use brim::kernels::{self, Team};
use brim::load::Progress;
use brim::settings::Settings;
use brim::workers::Workers;

const N_TOKENS: usize = 24;

fn settings(name: &str) -> Settings {
    let path = PathBuf::from(format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR")));
    engine::settings(&path, kernels::available().last().unwrap(), 16)
}

fn start<'a>(settings: &Settings, base: &'a mut Foundations<'_>) -> Running<'a> {
    let planned = Headers::read(settings).unwrap().plan(&Workload::default()).unwrap();
    planned.map().unwrap().start(base, &Progress::default()).unwrap()
}

/// A sequence that is continued greedily.
struct Greedy<'a> {
    engine: Engine<'a>,
    workers: &'a Workers,
    tokens: Vec<u32>,
    fed: usize,
}

impl<'a> Greedy<'a> {
    fn new(running: Running<'a>) -> Greedy<'a> {
        let mut tokens = Vec::new();
        running.tokenizer.encode("the a of", false, &mut tokens);
        assert!(!tokens.is_empty());
        Greedy { engine: Engine::new(running.core), workers: running.workers, tokens, fed: 0 }
    }

    fn step(&mut self) {
        let logits = self.engine.feed(&self.tokens[self.fed..]).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        self.fed = self.tokens.len();
        self.tokens.push(best as u32);
    }
}

/// What a model says that is alone.
fn alone(name: &str) -> Vec<u32> {
    let settings = settings(name);
    let mut base = Foundations::default();
    let mut greedy = Greedy::new(start(&settings, &mut base));
    (0..N_TOKENS).for_each(|_| greedy.step());
    greedy.tokens
}

#[test]
fn two_models_take_turns_in_one_process_and_say_what_each_says_alone() {
    let names = ["qwen3-mixed", "llama-q4_k"];
    let want = names.map(alone);
    assert_ne!(want[0], want[1], "two models that say different things");
    let [first, second] = names.map(settings);
    let (mut base, mut other_base) = (Foundations::default(), Foundations::default());
    // Each with workers of its own.
    let mut one = Greedy::new(start(&first, &mut base));
    let mut two = Greedy::new(start(&second, &mut other_base));
    for _ in 0..N_TOKENS {
        one.step();
        two.step();
    }
    assert_eq!([&one.tokens, &two.tokens], want.each_ref());
    // The second goes away and comes back on the workers of the first, which goes on.
    drop(two);
    let mut shared_base = Foundations::sharing(one.workers);
    let mut two = Greedy::new(start(&second, &mut shared_base));
    assert_eq!(std::ptr::from_ref(two.workers), std::ptr::from_ref(one.workers));
    assert!(two.workers.size() >= 1);
    one.fed = one.engine.rewind(0);
    one.tokens.truncate(want[0].len() - N_TOKENS);
    for _ in 0..N_TOKENS {
        two.step();
        one.step();
    }
    assert_eq!([&one.tokens, &two.tokens], want.each_ref());
}
