//! Logprobs of prompts, behind the scheduler's handle: those that the same tokens get one by one, alone and among others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/engine.rs"]
mod engine;

use std::path::PathBuf;

use brim::engine::{EngineHandle, Event, Finish, Generate, OutputKind, Request, Scheduler, Ticket};
use brim::kernels::{self, Kernels};
use brim::sampling::{SamplingParams, logprobs};
use engine::{for_scheduler, with_engine};

/// As in `scheduler.rs`: what another order of sums may tip.
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

fn request(prompt: Vec<u32>, max_tokens: usize, score_prompt: bool) -> Box<Request> {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let n_top_logprobs = Some(3);
    let generate =
        Generate { max_tokens, sampling, ignore_eos: true, n_top_logprobs, score_prompt, ..Generate::default() };
    Box::new(Request { prompt, output: OutputKind::Tokens(generate) })
}

/// Stops the engine when the client ends, also by a failed assertion.
struct Stop<'h>(&'h EngineHandle);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What came of a request: its scores, the tokens after it, and what it said last of its progress.
type Came = (Vec<Vec<(u32, f32)>>, Vec<u32>, usize);

fn wait(mut ticket: Ticket) -> Came {
    let (mut scores, mut drawn) = (Vec::new(), Vec::new());
    loop {
        match ticket.wait_event().unwrap() {
            Event::Started { .. } => {}
            Event::Scored => {
                assert!(drawn.is_empty(), "the prompt comes before what follows it");
                let found = ticket.take_scores().unwrap();
                scores = found.tokens().map(<[_]>::to_vec).collect();
                assert!(ticket.take_scores().is_none(), "once");
            }
            Event::Step(step) => drawn.push(step.token),
            Event::Finished(finish, timings) => {
                assert_eq!(finish, Finish::Length);
                assert_eq!(timings.generated_tokens as usize, drawn.len());
                return (scores, drawn, ticket.progress());
            }
        }
    }
}

#[test]
fn scores_of_a_prompt_are_those_of_its_tokens_one_by_one() {
    for name in ["llama-f32", "gemma3-f32", "mamba2-f32"] {
        let path = golden(name);
        // Longer than a chunk of 128, one that fills pages, and one that has nothing to score.
        let prompts = [tokens(1, 300), tokens(2, 128), tokens(3, 65), tokens(4, 2), tokens(5, 1)];
        let want: Vec<Vec<(f32, (u32, f32))>> = prompts
            .iter()
            .map(|prompt| {
                with_engine(&path, best(), 64, |engine| {
                    let mut all = Vec::new();
                    engine
                        .feed_all(prompt, |index, row| {
                            if let Some(&next) = prompt.get(index + 1) {
                                let mut top = [(0, 0.0)];
                                all.push((logprobs(row, next, &mut top), top[0]));
                            }
                        })
                        .unwrap();
                    all
                })
            })
            .collect();
        let came: Vec<Came> = for_scheduler(&path, best(), 4, 2048, |core| {
            let (mut scheduler, handle) = Scheduler::new(core, 16, vec![7]);
            std::thread::scope(|scope| {
                let client = scope.spawn(|| {
                    let _stop = Stop(&handle);
                    // Others generate meanwhile, and the last reads without being scored.
                    let other = handle.submit(request(tokens(9, 40), 60, false)).unwrap();
                    let scored = |max_tokens| {
                        let submit = move |prompt: &Vec<u32>| request(prompt.clone(), max_tokens, true);
                        prompts.iter().map(submit).collect::<Vec<_>>()
                    };
                    let tickets: Vec<Ticket> = [scored(0), scored(3)]
                        .into_iter()
                        .flatten()
                        .map(|request| handle.submit(request).unwrap())
                        .collect();
                    let read = handle.submit(request(tokens(9, 40), 0, false)).unwrap();
                    let mut came: Vec<Came> = tickets.into_iter().map(wait).collect();
                    assert_eq!(wait(other).1.len(), 60);
                    came.push(wait(read));
                    came
                });
                scheduler.run();
                client.join().unwrap()
            })
        });
        for (at, (scores, drawn, progress)) in came[..10].iter().enumerate() {
            let (prompt, want) = (&prompts[at % 5], &want[at % 5]);
            assert_eq!((scores.len(), drawn.len()), (prompt.len() - 1, if at < 5 { 0 } else { 3 }), "{name} {at}");
            assert!(*progress + 1 >= prompt.len() && *progress <= prompt.len(), "{name} {at}: {progress}");
            for (i, (found, (logprob, best))) in scores.iter().zip(want).enumerate() {
                assert_eq!((found.len(), found[0].0), (4, prompt[i + 1]), "{name}");
                assert!((found[0].1 - logprob).abs() < NOISE, "{name} {at} {i}: {} {logprob}", found[0].1);
                assert!((found[1].1 - best.1).abs() < NOISE, "{name} {at} {i}: {:?} {best:?}", found[1]);
                assert!(found[1..].is_sorted_by(|a, b| a.1 >= b.1));
            }
        }
        let (scores, drawn, _) = &came[10];
        assert!(scores.is_empty() && drawn.is_empty(), "{name}: it was only read");
    }
}
