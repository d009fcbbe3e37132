//! `bench model --streams`: what several sequences at once get, what a prompt costs them, and what a shared one saves.

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use serde_json::{Value, json};

use super::super::args::Bench;
use super::figures::{Spread, list, say};
use super::model::random_tokens;
use crate::boot::{Foundations, Headers, Serving, Workload};
use crate::engine::{EngineHandle, Event, Finish, Generate, OutputKind, Request, SLOTS_MAX, Scheduler, Ticket};
use crate::error::{Error, Exit, Result};
use crate::load::Progress;
use crate::sampling::SamplingParams;
use crate::settings::Settings;

/// Tokens of the prompt of a stream whose decode is measured.
const SHORT_PROMPT: usize = 16;

/// Tokens that streams have to generate while a prompt of `n` comes in beside them, so that none of them ends before: one for
/// each of its chunks and for each of them that started later.
fn gap_tokens(n: usize, count: usize) -> usize {
    n / 16 + count + 64
}

/// A stream, and the moments of its tokens.
struct Stream {
    ticket: Ticket,
    tokens: Vec<Instant>,
    is_finished: bool,
}

/// A scheduler that this thread turns.
struct Rig<'a> {
    scheduler: Scheduler<'a>,
    handle: EngineHandle,
    n_vocab: usize,
    seed: u64,
}

impl Rig<'_> {
    fn random(&mut self, n: usize) -> Vec<u32> {
        self.seed += 1;
        random_tokens(n, self.n_vocab, self.seed)
    }

    /// A greedy stream.
    fn stream(&self, prompt: Vec<u32>, max_tokens: usize) -> Result<Stream> {
        let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
        let generate = Generate { max_tokens, sampling, ignore_eos: true, ..Generate::default() };
        let request = Request { prompt, output: OutputKind::Tokens(generate) };
        let ticket = self.handle.submit(Box::new(request)).map_err(|e| Error::usage(e.to_string()))?;
        Ok(Stream { ticket, tokens: Vec::new(), is_finished: false })
    }

    /// One pass, and what it has brought.
    fn round(&mut self, streams: &mut [Stream]) -> Result<()> {
        self.scheduler.round();
        for stream in streams {
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(event)) = stream.ticket.poll_event(&mut cx) {
                match event {
                    Event::Step(_) => stream.tokens.push(Instant::now()),
                    Event::Finished(Finish::Failed(error), _) => return Err(Error::new(Exit::Unexpected, error)),
                    Event::Finished(..) => stream.is_finished = true,
                    Event::Started { .. } | Event::Scored => (),
                }
            }
        }
        Ok(())
    }

    /// Tokens per second of `count` streams together, once all of them generate.
    fn decode(&mut self, count: usize, n_gen: usize) -> Result<f64> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let prompt = self.random(SHORT_PROMPT);
            // Those that come first are ahead by a token for each that follows.
            streams.push(self.stream(prompt, n_gen + count + 1)?);
        }
        while streams.iter().any(|stream| stream.tokens.is_empty()) {
            self.round(&mut streams)?;
        }
        let begun = Instant::now();
        for _ in 0..n_gen {
            self.round(&mut streams)?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        drop(streams);
        self.scheduler.round();
        Ok((count * n_gen) as f64 / seconds)
    }

    /// Seconds to the first token of a prompt, and of another that shares all but its last tokens with it.
    fn first_tokens(&mut self, n: usize) -> Result<[f64; 2]> {
        let shared = self.random(n);
        let mut seconds = [0.0; 2];
        for seconds in &mut seconds {
            let own = self.random(SHORT_PROMPT);
            let mut streams = [self.stream([&shared[..], &own].concat(), 1)?];
            let begun = Instant::now();
            while !streams[0].is_finished {
                self.round(&mut streams)?;
            }
            *seconds = begun.elapsed().as_secs_f64();
        }
        Ok(seconds)
    }

    /// The longest time between two tokens of a stream while a prompt comes in beside `count` of them, and without it.
    fn gaps(&mut self, count: usize, n: usize) -> Result<[f64; 2]> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let prompt = self.random(SHORT_PROMPT);
            streams.push(self.stream(prompt, gap_tokens(n, count))?);
        }
        while streams.iter().any(|stream| stream.tokens.is_empty()) {
            self.round(&mut streams)?;
        }
        for _ in 0..8 {
            self.round(&mut streams)?;
        }
        let quiet = streams[0].tokens.len();
        let prompt = self.random(n);
        streams.push(self.stream(prompt, 1)?);
        while !streams[count].is_finished {
            self.round(&mut streams)?;
        }
        let longest =
            |tokens: &[Instant]| tokens.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(0.0, f64::max);
        let tokens = &streams[0].tokens;
        let gaps = [longest(&tokens[quiet - 1..]), longest(&tokens[quiet - 8..quiet])];
        drop(streams);
        self.scheduler.round();
        Ok(gaps)
    }
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let counts: Vec<usize> = list("--streams", args.streams.as_deref().unwrap_or_default())?;
    let slots = counts.iter().copied().max().unwrap_or(0) + 1;
    if counts.contains(&0) || slots > SLOTS_MAX {
        return Err(Error::usage(format!("--streams: needs counts from 1 to {}", SLOTS_MAX - 1)));
    }
    let (n_prompt, n_gen) = (args.n_prompt.as_deref().unwrap_or("2000"), args.n_gen.max(1) as usize);
    let prompts: Vec<usize> = list("-p", n_prompt)?;
    let &[n_prompt] = prompts.as_slice() else { return Err(Error::usage("--streams takes one count of -p")) };
    let ctx = n_prompt.max(n_gen + slots).max(gap_tokens(n_prompt, slots)) + 2 * SHORT_PROMPT;
    let serving = Some(Serving { slots: Some(slots), kv_tokens: None, drafts: 0 });
    let workload = Workload { ctx_default: Some(ctx), ctx_least: ctx, serving, ..Workload::default() };
    let planned = Headers::read(settings)?.of_text("bench")?.plan(&workload)?;
    let name = planned.headers.files.name().to_string();
    let n_vocab = planned.headers.model.weights.n_vocab();
    let mut base = Foundations::default();
    let running = planned.map()?.start(&mut base, &Progress::default())?;
    let (scheduler, handle) = Scheduler::new(running.core, slots, Vec::new());
    let mut rig = Rig { scheduler, handle, n_vocab, seed: 0 };
    let mut speeds = vec![Vec::new(); counts.len()];
    // The first round warms up and is not counted.
    for round in 0..=args.repeat {
        for (&count, speeds) in counts.iter().zip(&mut speeds) {
            let speed = rig.decode(count, n_gen)?;
            if round > 0 {
                speeds.push(speed);
            }
        }
    }
    let prompt = match n_prompt {
        0 => None,
        n => Some((rig.first_tokens(n)?, rig.gaps(slots - 1, n)?)),
    };
    say(args, &format!("{name}: {} threads, {} slots", settings.threads(), slots))?;
    let speeds: Vec<Spread> = speeds.iter().map(|speeds| Spread::of(speeds)).collect();
    for (count, speed) in counts.iter().zip(&speeds) {
        let ratio = speed.median / speeds[0].median;
        say(args, &format!("{count} streams: {speed:.2} tokens/s together, {ratio:.2} x those of {}", counts[0]))?;
    }
    if let Some(([first, second], [busy, quiet])) = prompt {
        say(
            args,
            &format!(
                "a prompt of {n_prompt} tokens: the first token after {first:.3} s; with the same beginning again after \
             {second:.3} s, {:.1} %",
                second / first * 100.0
            ),
        )?;
        say(
            args,
            &format!(
                "such a prompt beside {} streams: at most {busy:.3} s between their tokens, {quiet:.3} s before",
                slots - 1
            ),
        )?;
    }
    let streams: Vec<Value> = counts
        .iter()
        .zip(&speeds)
        .map(|(count, speed)| json!({"streams": count, "tokens_per_second": speed.json()}))
        .collect();
    Ok(json!({
        "model": name, "threads": settings.threads(), "streams": streams, "prompt_tokens": n_prompt,
        "first_token_seconds": prompt.map(|(first, _)| first), "longest_gap_seconds": prompt.map(|(_, gaps)| gaps),
    }))
}
