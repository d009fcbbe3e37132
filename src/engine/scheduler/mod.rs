//! The scheduler: continuous batching of requests over fixed slots and the pages of the KV cache.
//!
//! A step is one pass over the weights. It takes one token of every slot that generates, and of one prompt after the other,
//! in turn, a chunk: a large one if nobody generates meanwhile, else one that delays the others by little. A request gets
//! a slot when the pages it can come to need are there; until then it and all behind it wait, so that nobody is overtaken.
//!
//! Full pages are published as soon as they are computed. A prompt takes over what others have published, when it is admitted and
//! before each of its chunks, so that prompts with the same beginning share the work even when they come together.
//!
//! Nothing here allocates after [`Scheduler::new`]; the thread sleeps only where there is nothing to do.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::core::Core;
use super::handle::{Job, Shared, SlotState};
use super::pages::{Pages, ROOT, Table};
use super::request::{Event, Finish, Limits, SLOTS_MAX, Step, TOP_LOGPROBS_MAX, Timings};
use super::{Engine, EngineError, EngineHandle};
use crate::bytes;
use crate::kernels::Grid;
use crate::model::step::{PAGE_TOKENS, page_counts};
use crate::model::{Config, Sizes, Span, Wanted};
use crate::sampling::{Candidate, Sampler, SamplingError, SamplingParams, Scratch, Steering, logprobs};

/// Which share of a chunk a prompt gets while others generate: a pass of a quarter costs a little more per token, and
/// delays the others by no more than a few tokens' time.
const SHARED_CHUNK: usize = 4;

/// Serves requests until it is told to stop.
pub struct Scheduler<'a> {
    pub(super) core: Core<'a>,
    pub(super) pages: Pages<'a>,
    shared: Arc<Shared>,
    /// Tokens that end generation, sorted.
    ends: Vec<u32>,
    slots: Vec<Slot<'a>>,
    /// What drawing a token needs, one for each worker; each locks its own.
    worktops: Vec<Mutex<Worktop<'a>>>,
    /// Has been taken out of the queue, but there are no pages for it yet.
    waiting: Option<Job>,
    /// The slot whose prompt is next.
    turn: usize,
    /// Tokens of a pass.
    tokens: Vec<u32>,
    /// Most tokens of a chunk.
    chunk: usize,
}

/// A place for one sequence.
struct Slot<'a> {
    work: Option<Work>,
    table: Table,
    /// The prompt and what was generated, `[ctx]`.
    history: &'a mut [u32],
    /// Logits that wait for their mask, `[n_vocab]`.
    held: &'a mut [f32],
    draw: Mutex<Draw>,
}

/// A request in its slot.
struct Work {
    job: Job,
    /// Tokens of the history, and how many of them are in the cache.
    known: usize,
    fed: usize,
    /// Pages that are published, and the serial of the last.
    published: usize,
    serial: u64,
    /// The logits of the last token wait for their mask.
    is_held: bool,
    reused: usize,
    begun: Instant,
    first: Option<Instant>,
    last: Instant,
}

/// How the next token of a slot is drawn.
struct Draw {
    sampler: Sampler,
    mask: Option<Box<[u32]>>,
    result: Option<Result<Step, SamplingError>>,
}

struct Worktop<'a> {
    candidates: &'a mut [Candidate],
    /// Logits as the model gave them.
    raw: &'a mut [f32],
    seen: &'a mut [u32],
}

impl Work {
    fn prompt_len(&self) -> usize {
        self.job.request.prompt.len()
    }

    /// Tokens that are not in the cache yet.
    fn pending(&self) -> usize {
        self.known - self.fed
    }

    /// Pages of all positions that it can come to need; the last token is never fed.
    fn pages_max(job: &Job) -> usize {
        (job.request.prompt.len() + job.request.max_tokens - 1).div_ceil(PAGE_TOKENS)
    }

    fn timings(&self) -> Timings {
        let first = self.first.unwrap_or(self.last);
        Timings {
            queued: self.begun - self.job.submitted,
            prefill: first - self.begun,
            decode: self.last - first,
            prompt_tokens: self.prompt_len() as u32,
            reused_tokens: self.reused as u32,
            generated_tokens: (self.known - self.prompt_len()) as u32,
        }
    }
}

/// Bytes that a scheduler needs of scratch beyond those of a pass: tokens of slots and pages, held logits, room to draw.
pub fn scheduler_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> u64 {
    part_bytes(config, n_vocab, sizes).iter().map(|bytes| bytes.next_multiple_of(64) as u64).sum()
}

fn part_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> [usize; 6] {
    let [pages, _] = page_counts(config, sizes);
    let (slots, workers) = (sizes.sequences, sizes.workers);
    [
        slots * sizes.ctx * 4,
        pages * PAGE_TOKENS * 4,
        slots * n_vocab * 4,
        workers * n_vocab * size_of::<Candidate>(),
        workers * n_vocab * 4,
        workers * n_vocab.div_ceil(32) * 4,
    ]
}

impl<'a> Scheduler<'a> {
    /// A scheduler over `engine`, whose regions were planned with [`scheduler_bytes`] more of scratch, and the way to it.
    /// At most `queue` requests wait; `ends` are the tokens that end generation.
    ///
    /// # Panics
    /// If the scratch region is too small.
    pub fn new(engine: Engine<'a>, queue: usize, mut ends: Vec<u32>) -> (Scheduler<'a>, EngineHandle) {
        ends.sort_unstable();
        let Engine { core, spare, .. } = engine;
        let (model, sizes) = (core.model, core.sizes);
        let n_vocab = model.weights.n_vocab();
        assert!(spare.len() as u64 >= scheduler_bytes(&model.config, n_vocab, &sizes), "scratch is too small to serve");
        let mut rest = spare;
        let parts = part_bytes(&model.config, n_vocab, &sizes).map(|bytes| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(64));
            rest = tail;
            &mut part[..bytes]
        });
        let [histories, page_tokens, held, candidates, raw, seen] = parts;
        seen.fill(0);
        let window = model.config.window.as_ref().map(|window| window.len);
        let pages = Pages::new(core.kv.n_pages(), window.unwrap_or(usize::MAX), bytes::cast_mut(page_tokens));
        let histories = bytes::cast_mut::<u32>(histories).chunks_exact_mut(sizes.ctx);
        let held = bytes::cast_mut::<f32>(held).chunks_exact_mut(n_vocab);
        let slots = histories.zip(held).map(|(history, held)| Slot {
            work: None,
            table: Table::new(sizes.ctx, window.is_some()),
            history,
            held,
            draw: Mutex::new(Draw {
                sampler: Sampler::new(SamplingParams::default()).expect("the defaults are in range"),
                mask: None,
                result: None,
            }),
        });
        let worktops = bytes::cast_mut::<Candidate>(candidates)
            .chunks_exact_mut(n_vocab)
            .zip(bytes::cast_mut::<f32>(raw).chunks_exact_mut(n_vocab))
            .zip(bytes::cast_mut::<u32>(seen).chunks_exact_mut(n_vocab.div_ceil(32)))
            .map(|((candidates, raw), seen)| Mutex::new(Worktop { candidates, raw, seen }));
        let (slots, worktops): (Vec<_>, Vec<_>) = (slots.collect(), worktops.collect());
        assert!(slots.len() <= sizes.n_logits && sizes.n_batch > slots.len(), "{sizes:?}");
        let kv_tokens = core.kv.n_pages()[0] * PAGE_TOKENS;
        let limits = Limits { ctx: sizes.ctx, n_vocab, slots: slots.len(), queue, kv_tokens };
        let (shared, handle) = Shared::new(limits);
        let scheduler = Scheduler {
            pages,
            shared,
            ends,
            worktops,
            waiting: None,
            turn: 0,
            tokens: Vec::with_capacity(sizes.n_batch),
            // Room for the tokens of those who generate.
            chunk: sizes.n_batch - slots.len(),
            slots,
            core,
        };
        (scheduler, handle)
    }

    /// Serves until [`EngineHandle::stop`] has been called and every request is finished.
    pub fn run(&mut self) {
        loop {
            let rung = self.shared.rung();
            if self.round() {
                continue;
            }
            let is_idle = self.waiting.is_none() && self.slots.iter().all(|slot| slot.work.is_none());
            if is_idle && self.shared.is_stopping() {
                return;
            }
            self.shared.sleep(rung);
        }
    }

    /// Looks at what clients want and makes one pass over the weights; false if no slot has anything to do.
    pub fn round(&mut self) -> bool {
        self.shared.counters.beat();
        self.sweep();
        self.draw_held();
        self.admit();
        let has_passed = self.step();
        self.count_pages();
        has_passed
    }

    fn count_pages(&self) {
        let (counters, [used, kept, all]) = (&self.shared.counters, self.pages.counts());
        counters.kv_pages_used.store(used as u64, Relaxed);
        counters.kv_pages_cached.store(kept as u64, Relaxed);
        counters.kv_pages.store(all as u64, Relaxed);
    }

    /// Frees the slots of clients that have gone.
    fn sweep(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].work.as_ref().is_some_and(|work| self.shared.is_gone(work.job.door)) {
                self.finish(index, Finish::Cancelled);
            }
        }
    }

    /// Gives free slots to requests, in order of arrival.
    fn admit(&mut self) {
        while let Some(index) = self.slots.iter().position(|slot| slot.work.is_none()) {
            let Some(job) = self.waiting.take().or_else(|| self.shared.next_job()) else { return };
            if self.shared.is_gone(job.door) {
                self.shared.finish(job, Finish::Cancelled, Timings::default());
                continue;
            }
            let owed: usize = self.slots.iter().map(Slot::pages_owed).sum();
            let Slot { table, history, draw, work, .. } = &mut self.slots[index];
            let prompt = &job.request.prompt;
            let serial = self.pages.adopt(table, ROOT, reusable(prompt));
            let reused = table.len() * PAGE_TOKENS;
            if self.pages.available() + table.len() < owed + Work::pages_max(&job) {
                self.pages.truncate(table, 0);
                self.waiting = Some(job);
                return;
            }
            history[..prompt.len()].copy_from_slice(prompt);
            let draw = draw.get_mut().expect("nobody panics while drawing");
            draw.sampler = Sampler::new(job.request.sampling).expect("Limits::check has seen the request");
            prompt.iter().for_each(|&token| draw.sampler.accept(token));
            self.shared.send(job.door, Event::Started { reused_tokens: reused as u32 });
            self.shared.counters.tokens_reused.fetch_add(reused as u64, Relaxed);
            let (now, known) = (Instant::now(), prompt.len());
            *work = Some(Work {
                job,
                known,
                fed: reused,
                published: table.len(),
                serial,
                is_held: false,
                reused,
                begun: now,
                first: None,
                last: now,
            });
        }
    }

    /// One pass over the weights; false if no slot has anything to do.
    fn step(&mut self) -> bool {
        let parts = self.parts();
        if parts.is_empty() {
            return false;
        }
        self.tokens.clear();
        let mut spans: heapless::Vec<Span<'_>, SLOTS_MAX> = heapless::Vec::new();
        // Of each row of logits, the slot, and the token in the pass.
        let mut rows: heapless::Vec<usize, SLOTS_MAX> = heapless::Vec::new();
        let mut wanted: heapless::Vec<usize, SLOTS_MAX> = heapless::Vec::new();
        for &(index, n) in &parts {
            let Slot { table, work, .. } = &mut self.slots[index];
            let fed = work.as_ref().map_or(0, |work| work.fed);
            assert!(self.pages.extend(table, fed, n), "admission has seen to it that there are pages");
        }
        for &(index, n) in &parts {
            let slot = &self.slots[index];
            let Some(work) = &slot.work else { continue };
            let first = self.tokens.len();
            self.tokens.extend_from_slice(&slot.history[work.fed..work.fed + n]);
            if work.fed + n == work.known {
                let _ = rows.push(index);
                let _ = wanted.push(first + n - 1);
            }
            // There are as many parts as slots at most.
            let _ = spans.push(Span { first, n, position: work.fed, pages: slot.table.pages() });
        }
        let done = self.core.pass(&self.tokens, &spans, Wanted::Tokens(&wanted), |pass, model| {
            if !rows.is_empty() {
                let output = (&model.weights.output_norm, &model.weights.output);
                pass.logits(output, 0..rows.len());
            }
        });
        drop(spans);
        let counters = &self.shared.counters;
        counters.steps.fetch_add(1, Relaxed);
        counters.beat();
        if let Err(error) = done {
            // Whose token it was cannot go on. Memory that cannot be had is laid to the last, a prompt if there is one: what
            // the others need may be there. They have lost nothing but the time.
            let last = parts.len() - 1;
            for (i, &(index, n)) in parts.iter().enumerate() {
                let Slot { work, history, .. } = &self.slots[index];
                let is_to_blame = |work: &Work| match error {
                    EngineError::Embedding(error) => {
                        history[work.fed..work.fed + n].iter().any(|&token| error.row == token as usize)
                    }
                    _ => i == last,
                };
                if work.as_ref().is_some_and(is_to_blame) {
                    self.finish(index, Finish::Failed(error));
                }
            }
            return true;
        }
        for &(index, n) in &parts {
            self.advance(index, n);
        }
        self.draw(&rows);
        true
    }

    /// Which slots take part in the next pass, and with how many tokens; those that generate come first.
    fn parts(&mut self) -> heapless::Vec<(usize, usize), SLOTS_MAX> {
        let mut parts = heapless::Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let generates = |work: &&Work| work.pending() == 1 && self.shared.has_room(work.job.door);
            if slot.work.as_ref().is_some_and(|work| generates(&work)) {
                let _ = parts.push((index, 1));
            }
        }
        let mut budget = match parts.is_empty() {
            true => self.chunk,
            false => (self.chunk / SHARED_CHUNK).next_multiple_of(PAGE_TOKENS).min(self.chunk),
        };
        let (n_slots, turn) = (self.slots.len(), self.turn);
        let mut is_first = true;
        for index in (0..n_slots).map(|i| (turn + i) % n_slots) {
            let Slot { work, table, .. } = &mut self.slots[index];
            let Some(work) = work.as_mut().filter(|work| work.pending() > 1) else { continue };
            if budget == 0 {
                break;
            }
            // Others may have computed meanwhile what comes next.
            if work.fed == table.len() * PAGE_TOKENS && work.published == table.len() {
                work.serial = self.pages.adopt(table, work.serial, reusable(&work.job.request.prompt));
                let reused = table.len() * PAGE_TOKENS - work.fed;
                (work.fed, work.published, work.reused) = (work.fed + reused, table.len(), work.reused + reused);
                self.shared.counters.tokens_reused.fetch_add(reused as u64, Relaxed);
            }
            let mut n = work.pending().min(budget);
            if n < work.pending() {
                // Chunks end with a page if they can.
                let over = (work.fed + n) % PAGE_TOKENS;
                n -= if over < n { over } else { 0 };
            }
            budget -= n;
            let _ = parts.push((index, n));
            if std::mem::take(&mut is_first) {
                self.turn = (index + 1) % n_slots;
            }
        }
        parts
    }

    /// `n` more tokens of a slot are in the cache; full pages are published.
    fn advance(&mut self, index: usize, n: usize) {
        let Slot { work, table, history, .. } = &mut self.slots[index];
        let Some(work) = work else { return };
        work.fed += n;
        while (work.published + 1) * PAGE_TOKENS <= work.fed {
            let tokens = &history[work.published * PAGE_TOKENS..][..PAGE_TOKENS];
            work.serial = self.pages.publish(table, work.published, work.serial, tokens);
            work.published += 1;
        }
        let in_prompt = work.prompt_len().min(work.fed) - work.prompt_len().min(work.fed - n);
        self.shared.counters.tokens_in.fetch_add(in_prompt as u64, Relaxed);
        let state = if work.fed < work.prompt_len() { SlotState::Prefill } else { SlotState::Decode };
        self.shared.counters.set_slot(index, state, work.fed);
    }

    /// Draws the next token of the slots of `rows`, whose logits the pass has left. Those whose mask is not there yet keep
    /// their logits.
    fn draw(&mut self, rows: &[usize]) {
        let n_vocab = self.core.model.weights.n_vocab();
        let stride = self.core.buffers.logits_stride(n_vocab);
        let logits = &mut self.core.buffers.logits_mut()[..rows.len() * stride];
        for (&index, logits) in rows.iter().zip(logits.chunks_exact(stride)) {
            let Slot { work, held, draw, .. } = &mut self.slots[index];
            let Some(work) = work.as_mut().filter(|work| work.job.request.constraint) else { continue };
            let draw = draw.get_mut().expect("nobody panics while drawing");
            draw.mask = self.shared.take_mask(work.job.door);
            if draw.mask.is_none() {
                held.copy_from_slice(&logits[..n_vocab]);
                work.is_held = true;
                self.shared.counters.set_slot(index, SlotState::Waiting, work.fed);
            }
        }
        let (slots, worktops) = (&self.slots, &self.worktops);
        let grid = Grid::new(logits, (rows.len(), n_vocab, stride), (1, n_vocab));
        let job = |worker: usize| {
            let Ok(mut worktop) = worktops[worker].lock() else { return };
            while let Some(mut block) = grid.next() {
                slots[rows[block.row0]].draw_one(block.row(0), &mut worktop);
            }
        };
        if rows.len() > 1 {
            self.core.team.drain(&job)
        } else {
            job(0)
        }
        for &index in rows {
            self.settle(index);
        }
    }

    /// Draws for slots whose mask has come late.
    fn draw_held(&mut self) {
        for index in 0..self.slots.len() {
            let Slot { work, draw, .. } = &mut self.slots[index];
            let Some(work) = work.as_mut().filter(|work| work.is_held) else { continue };
            let draw = draw.get_mut().expect("nobody panics while drawing");
            draw.mask = self.shared.take_mask(work.job.door);
            if draw.mask.is_none() {
                continue;
            }
            work.is_held = false;
            let held = std::mem::take(&mut self.slots[index].held);
            if let Ok(mut worktop) = self.worktops[0].lock() {
                self.slots[index].draw_one(held, &mut worktop);
            }
            self.slots[index].held = held;
            self.settle(index);
        }
    }

    /// Hands the token that was drawn to the client, and to the next pass.
    fn settle(&mut self, index: usize) {
        let Slot { work, history, draw, .. } = &mut self.slots[index];
        let Some(work) = work else { return };
        let draw = draw.get_mut().expect("nobody panics while drawing");
        let (mask, Some(result)) = (draw.mask.take(), draw.result.take()) else { return };
        if let Some(mask) = mask {
            self.shared.return_mask(work.job.door, mask);
        }
        let step = match result {
            Ok(step) => step,
            Err(error) => {
                if matches!(error, SamplingError::NotANumber { .. }) {
                    // Nobody else shall continue after what has led to this.
                    self.pages.withdraw_all(&self.slots[index].table);
                }
                return self.finish(index, Finish::Failed(EngineError::Sampling(error)));
            }
        };
        work.last = Instant::now();
        work.first.get_or_insert(work.last);
        history[work.known] = step.token;
        work.known += 1;
        draw.sampler.accept(step.token);
        self.shared.counters.tokens_out.fetch_add(1, Relaxed);
        self.shared.send(work.job.door, Event::Step(step));
        if !work.job.request.ignore_eos && self.ends.binary_search(&step.token).is_ok() {
            self.finish(index, Finish::EndOfGeneration);
        } else if work.known - work.prompt_len() == work.job.request.max_tokens {
            self.finish(index, Finish::Length);
        }
    }

    /// Frees a slot; what it has published stays until its place is needed.
    fn finish(&mut self, index: usize, finish: Finish) {
        let Slot { work, table, draw, .. } = &mut self.slots[index];
        let Some(work) = work.take() else { return };
        self.pages.truncate(table, 0);
        let draw = draw.get_mut().expect("nobody panics while drawing");
        if let Some(mask) = draw.mask.take() {
            self.shared.return_mask(work.job.door, mask);
        }
        let timings = work.timings();
        self.shared.counters.set_slot(index, SlotState::Free, 0);
        self.shared.finish(work.job, finish, timings);
    }
}

/// The whole pages of a prompt that may be taken over: its last token must be computed, for its logits.
fn reusable(prompt: &[u32]) -> &[u32] {
    &prompt[..(prompt.len() - 1) / PAGE_TOKENS * PAGE_TOKENS]
}

impl Slot<'_> {
    /// Pages that it can come to need and does not have yet.
    fn pages_owed(&self) -> usize {
        self.work.as_ref().map_or(0, |work| Work::pages_max(&work.job).saturating_sub(self.table.len()))
    }

    /// Draws a token, unless its logits wait for their mask.
    fn draw_one(&self, logits: &mut [f32], Worktop { candidates, raw, seen }: &mut Worktop<'_>) {
        let Some(work) = self.work.as_ref().filter(|work| !work.is_held) else { return };
        let Ok(mut draw) = self.draw.lock() else { return };
        let Draw { sampler, mask, result } = &mut *draw;
        let request = &*work.job.request;
        if request.n_top_logprobs.is_some() {
            raw.copy_from_slice(logits);
        }
        let steering = Steering {
            generated: &self.history[work.prompt_len()..work.known],
            biases: &request.logit_bias,
            allowed: mask.as_deref(),
        };
        let scratch = Scratch { candidates, seen };
        *result = Some(sampler.sample_with(logits, steering, scratch).map(|token| {
            let mut step = Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 };
            if let Some(n) = request.n_top_logprobs {
                let n = usize::from(n).min(raw.len());
                (step.n_top, step.logprob) = (n as u8, logprobs(raw, token, &mut step.top[..n]));
            }
            step
        }));
    }
}
