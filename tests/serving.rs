//! The scheduler behind its counter: what clients get.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::PathBuf;

use brim::engine::{EngineHandle, Event, Finish, Request, Scheduler, Step, Ticket, Timings};
use brim::kernels;
use brim::sampling::SamplingParams;
use common::engine::{own_engine, with_engine};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/golden/models/{name}.gguf", env!("CARGO_MANIFEST_DIR")))
}

fn tokens(seed: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| (seed + i * 7919) % 251).collect()
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Box<Request> {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    Box::new(Request { prompt, max_tokens, sampling, ignore_eos: true, ..Request::default() })
}

fn collect(mut ticket: Ticket) -> (Vec<Step>, Finish, Timings) {
    let mut steps = Vec::new();
    assert!(matches!(ticket.wait_event(), Some(Event::Started { .. })));
    loop {
        match ticket.wait_event().unwrap() {
            Event::Step(step) => steps.push(step),
            Event::Finished(finish, timings) => return (steps, finish, timings),
            Event::Started { .. } => panic!("started twice"),
        }
    }
}

/// Runs a scheduler on a thread of its own while `client` talks to it.
fn serve<R: Send>(name: &str, client: impl FnOnce(&EngineHandle) -> R + Send) -> R {
    own_engine(&golden(name), kernels::select(None, None).unwrap(), 32, |engine| {
        let (mut scheduler, handle) = Scheduler::new(engine, 8, Vec::new());
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let _stop = Stop(&handle);
                client(&handle)
            });
            scheduler.run();
            client.join().unwrap()
        })
    })
}

/// Stops the engine when the client ends, also by a failed assertion.
struct Stop<'h>(&'h EngineHandle);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What `Engine` makes of the prompt alone.
fn alone(name: &str, prompt: &[u32], n: usize) -> Vec<u32> {
    with_engine(&golden(name), kernels::select(None, None).unwrap(), 32, |engine| {
        let (mut next, mut got) = (prompt.to_vec(), Vec::new());
        while got.len() < n {
            let logits = engine.feed(&next).unwrap();
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            got.push(best as u32);
            next = vec![best as u32];
        }
        got
    })
}

#[test]
fn a_request_gets_what_the_engine_alone_makes_of_it() {
    let prompt = tokens(3, 100);
    let want = alone("qwen3-f32", &prompt, 20);
    serve("qwen3-f32", |handle| {
        let (steps, finish, timings) = collect(handle.submit(greedy(prompt.clone(), 20)).unwrap());
        assert_eq!(steps.iter().map(|step| step.token).collect::<Vec<_>>(), want);
        assert_eq!((finish, timings.prompt_tokens, timings.generated_tokens), (Finish::Length, 100, 20));
    });
}
