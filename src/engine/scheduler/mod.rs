//! The scheduler: continuous batching of requests over fixed slots and the pages of the KV cache.
//!
//! A [`step`] is one pass over the weights. It takes one token of every slot that generates, and of one prompt after the
//! other, in turn, a chunk: a large one if nobody generates meanwhile, else one that delays the others by little. Where there
//! is a [`Drafter`], slots that generate take along what it proposes. A request gets a slot when the pages it can come to need
//! are there; until then it and all behind it wait, so that nobody is overtaken.
//!
//! Full pages are published as soon as they are computed and certain. A prompt takes over what others have published, when it
//! is admitted and before each of its chunks, so that prompts with the same beginning share the work even when they come
//! together.
//!
//! Nothing here allocates after [`Scheduler::new`]; the thread sleeps only where there is nothing to do.

mod batch;
mod slot;
mod step;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use super::channel::{Bell, Channel, Submission};
use super::core::Core;
use super::drafter::Drafter;
use super::handle::EngineHandle;
use super::pages::{Adopted, Pages, ROOT, Table};
use super::request::{Event, Finish, QUEUE_MAX, RequestLimits, Timings};
use super::stats::SlotState;
use super::stops::{StopRules, Uncomputed};
use crate::bytes;
use crate::model::cache::{CachePlan, FULL, PAGE_TOKENS};
use crate::model::{Config, Sizes};
use crate::sampling::Candidate;
use batch::Batch;
use slot::{DrawScratch, Leader, Outcome, Slot, Work, pages_max, reusable};

/// Serves requests until it is told to stop.
pub struct Scheduler<'a> {
    pub(super) core: Core<'a>,
    pub(super) pages: Pages<'a>,
    channel: Arc<Channel>,
    /// Tokens that end generation, sorted.
    eog_tokens: Vec<u32>,
    slots: Vec<Slot<'a>>,
    /// One for each worker; each locks its own.
    draw_scratch: Vec<Mutex<DrawScratch<'a>>>,
    /// Has been taken out of the queue, but there are no pages for it yet.
    waiting: Option<Submission>,
    /// The slot whose prompt is next.
    next_prefill: usize,
    batch: Batch,
    /// Most tokens of a chunk.
    chunk: usize,
    drafter: Option<Box<dyn Drafter + 'a>>,
    /// Most drafted tokens of a pass.
    draft_max: usize,
    /// Which of the slots that generate is the first to draft.
    next_draft: usize,
    /// Another model generates meanwhile, in passes that take turns with these.
    is_shared: bool,
    stop_rules: StopRules,
    /// Texts are read in one pass each, and what is known of their beginnings holds for no other.
    reads_whole: bool,
}

/// Tokens of one pass and rows of logits, [`Sizes::n_batch`] and [`Sizes::n_logits`]: beside a whole chunk of a prompt, all
/// `slots` may have a token and its logits, and together as many drafted ones as `drafts`, at most
/// [`DRAFT_MAX`](super::DRAFT_MAX) and none without a [`Drafter`].
pub fn pass_sizes(chunk: usize, slots: usize, drafts: usize) -> (usize, usize) {
    (chunk + slots + drafts, slots + drafts)
}

/// Bytes that a scheduler needs of scratch beyond those of a pass: tokens of slots and pages, held logits, room to draw.
pub fn scheduler_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> u64 {
    part_bytes(config, n_vocab, sizes).iter().map(|bytes| bytes.next_multiple_of(64) as u64).sum()
}

/// Rows of `n` values each, one after the other; of no values as many as are asked for.
fn rows_of<T>(mut data: &mut [T], n: usize) -> impl Iterator<Item = &mut [T]> {
    std::iter::from_fn(move || {
        let (row, rest) = std::mem::take(&mut data).split_at_mut_checked(n)?;
        data = rest;
        Some(row)
    })
}

fn part_bytes(config: &Config, n_vocab: usize, sizes: &Sizes) -> [usize; 6] {
    let pages = CachePlan::new(config, sizes).pools[FULL].n_pages;
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
    /// A scheduler over `core`, which was planned with [`pass_sizes`] and with [`scheduler_bytes`] more of scratch, and the way
    /// to it. At most `queue` requests wait; `eog_tokens` end generation.
    ///
    /// # Panics
    /// If the scratch region is too small.
    pub fn new(core: Core<'a>, queue: usize, eog_tokens: Vec<u32>) -> (Scheduler<'a>, EngineHandle) {
        Scheduler::woken_by(Arc::default(), core, queue, eog_tokens)
    }

    /// One for another model on the same thread, to be run [together](Scheduler::run_all) with this one.
    ///
    /// # Panics
    /// As [`Scheduler::new`].
    #[must_use]
    pub fn beside(&self, core: Core<'a>, queue: usize, eog_tokens: Vec<u32>) -> (Scheduler<'a>, EngineHandle) {
        Scheduler::woken_by(Arc::clone(&self.channel.bell), core, queue, eog_tokens)
    }

    fn woken_by(
        bell: Arc<Bell>,
        mut core: Core<'a>,
        queue: usize,
        mut eog_tokens: Vec<u32>,
    ) -> (Scheduler<'a>, EngineHandle) {
        eog_tokens.sort_unstable();
        let spare = std::mem::take(&mut core.spare);
        let (model, sizes) = (core.model, core.sizes);
        let n_vocab = model.n_drawable();
        assert!(spare.len() as u64 >= scheduler_bytes(&model.config, n_vocab, &sizes), "scratch is too small to serve");
        let mut rest = spare;
        let parts = part_bytes(&model.config, n_vocab, &sizes).map(|bytes| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(64));
            rest = tail;
            &mut part[..bytes]
        });
        let [histories, page_tokens, unmasked, candidates, raw, seen] = parts;
        seen.fill(0);
        let plan = core.cache.plan();
        let pages = Pages::new(plan, bytes::cast_mut(page_tokens));
        let stop_rules = StopRules::new(plan);
        let histories = bytes::cast_mut::<u32>(histories).chunks_exact_mut(sizes.ctx);
        let unmasked = rows_of(bytes::cast_mut::<f32>(unmasked), n_vocab);
        let slots = histories.zip(unmasked).enumerate().map(|(slot, (history, unmasked))| Slot {
            work: None,
            table: Table::new(plan, sizes.ctx, slot),
            history,
            unmasked,
            outcome: Mutex::default(),
        });
        let draw_scratch = rows_of(bytes::cast_mut::<Candidate>(candidates), n_vocab)
            .zip(rows_of(bytes::cast_mut::<f32>(raw), n_vocab))
            .zip(rows_of(bytes::cast_mut::<u32>(seen), n_vocab.div_ceil(32)))
            .take(sizes.workers)
            .map(|((candidates, raw), seen)| Mutex::new(DrawScratch { candidates, raw, seen }));
        let (slots, draw_scratch): (Vec<_>, Vec<_>) = (slots.collect(), draw_scratch.collect());
        assert!(slots.len() <= sizes.n_logits && sizes.n_batch > sizes.n_logits, "{sizes:?}");
        let kv_tokens = core.cache.plan().pools[FULL].n_pages * PAGE_TOKENS;
        let (chunk, reads_whole) = (sizes.n_batch - sizes.n_logits, model.config.both_ways);
        let limits = RequestLimits {
            ctx: sizes.ctx,
            n_embd: model.config.n_embd,
            n_vocab: model.weights.n_vocab(),
            slots: slots.len(),
            // Texts of which there are many in a request wait in places of their own.
            queue: (queue + model.config.vectors.map_or(0, |_| slots.len())).min(QUEUE_MAX),
            kv_tokens,
            pass_tokens: if reads_whole { chunk } else { usize::MAX },
            vectors: model.config.vectors,
        };
        let (channel, handle) = EngineHandle::new(limits, bell);
        let scheduler = Scheduler {
            pages,
            channel,
            eog_tokens,
            draw_scratch,
            waiting: None,
            next_prefill: 0,
            batch: Batch::new(sizes.n_batch),
            // As many tokens as rows of logits are for those who generate.
            chunk,
            reads_whole,
            drafter: None,
            draft_max: sizes.n_logits - slots.len(),
            next_draft: 0,
            is_shared: false,
            stop_rules,
            slots,
            core,
        };
        (scheduler, handle)
    }

    /// Takes along what `drafter` proposes, as much as the core was planned for.
    ///
    /// # Panics
    /// If it was planned for none (see [`pass_sizes`]).
    #[must_use]
    pub fn with_drafter(mut self, drafter: Box<dyn Drafter + 'a>) -> Self {
        assert!(self.draft_max > 0, "the plan has no room for drafts");
        self.drafter = Some(drafter);
        self
    }

    /// Takes these tokens for those that begin a message, before which checkpoints of recurrent layers are left: control
    /// tokens that do not end generation.
    #[must_use]
    pub fn with_message_starts(mut self, tokens: &[u32]) -> Self {
        self.stop_rules.set_message_starts(tokens);
        self
    }

    /// Serves until [`EngineHandle::stop`] has been called and every request is finished.
    pub fn run(&mut self) {
        Scheduler::run_all(std::slice::from_mut(self));
    }

    /// Serves with several models that are [`beside`](Scheduler::beside) each other until all have been told to stop and every
    /// request is finished. Their passes take turns, so that none waits for another's prompt, but for one chunk of it.
    ///
    /// # Panics
    /// If one of them is not beside the first: nothing would wake this thread for it.
    pub fn run_all(all: &mut [Scheduler<'_>]) {
        let Some(first) = all.first() else { return };
        let bell = Arc::clone(&first.channel.bell);
        assert!(all.iter().all(|each| Arc::ptr_eq(&each.channel.bell, &bell)), "one thread listens to one bell");
        loop {
            let rings = bell.rings();
            if Scheduler::round_all(all) {
                continue;
            }
            if all.iter().all(Scheduler::is_done) {
                return;
            }
            bell.sleep(rings);
        }
    }

    /// A [`round`](Scheduler::round) of each; false if none has anything to do.
    pub fn round_all(all: &mut [Scheduler<'_>]) -> bool {
        let mut has_passed = false;
        for index in 0..all.len() {
            let mut others = all.iter().enumerate().filter(|(other, _)| *other != index);
            let is_shared = others.any(|(_, other)| other.is_generating());
            all[index].is_shared = is_shared;
            has_passed |= all[index].round();
        }
        has_passed
    }

    fn is_generating(&self) -> bool {
        self.slots.iter().any(|slot| slot.work.as_ref().is_some_and(Work::is_decoding))
    }

    /// Whether it has been told to stop, and all is finished.
    fn is_done(&self) -> bool {
        let is_idle = self.waiting.is_none() && self.slots.iter().all(|slot| slot.work.is_none());
        is_idle && self.channel.is_stopping()
    }

    /// Looks at what clients want and makes one pass over the weights; false if no slot has anything to do.
    pub fn round(&mut self) -> bool {
        self.channel.counters.beat();
        self.reap_cancelled();
        self.draw_late();
        self.admit();
        let has_passed = self.step();
        self.count_pages();
        has_passed
    }

    fn count_pages(&self) {
        let (counters, [used, kept, all]) = (&self.channel.counters, self.pages.counts());
        counters.kv_pages_used.store(used as u64, Relaxed);
        counters.kv_pages_cached.store(kept as u64, Relaxed);
        counters.kv_pages.store(all as u64, Relaxed);
        let [all, used, taken] = self.pages.checkpoint_counts();
        counters.checkpoints.store(all, Relaxed);
        counters.checkpoints_used.store(used, Relaxed);
        counters.checkpoints_taken.store(taken, Relaxed);
    }

    /// Frees the slots of clients that have gone.
    fn reap_cancelled(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].work.as_ref().is_some_and(|work| self.channel.is_cancelled(work.submission.mailbox)) {
                self.finish(index, Finish::Cancelled);
            }
        }
    }

    /// Gives free slots to requests, in order of arrival.
    fn admit(&mut self) {
        while let Some(index) = self.slots.iter().position(|slot| slot.work.is_none()) {
            let Some(mut submission) = self.waiting.take().or_else(|| self.channel.next_submission()) else { return };
            if self.channel.is_cancelled(submission.mailbox) {
                self.channel.finish(submission, Finish::Cancelled, Timings::default());
                continue;
            }
            let owed: usize = self.slots.iter().map(Slot::pages_owed).sum();
            let Slot { table, history, outcome, work, .. } = &mut self.slots[index];
            let Adopted { serial, shared } =
                self.pages.adopt(table, ROOT, reusable(&submission.request, self.reads_whole));
            let reused = table.len() * PAGE_TOKENS;
            if self.pages.available() + table.len() < owed + pages_max(&submission.request) {
                self.pages.truncate(table, 0);
                self.waiting = Some(submission);
                return;
            }
            let prompt = &submission.request.prompt;
            history[..prompt.len()].copy_from_slice(prompt);
            let outcome = outcome.get_mut().expect("nobody panics while drawing");
            outcome.embedding = self.channel.take_embedding(submission.mailbox);
            outcome.scores = self.channel.take_scores(submission.mailbox);
            outcome.sampler = submission.sampler.take();
            if let Some(sampler) = &mut outcome.sampler {
                prompt.iter().for_each(|&token| sampler.accept(token));
            }
            self.channel.send(submission.mailbox, Event::Started { reused_tokens: reused as u32 });
            self.channel.set_progress(submission.mailbox, reused);
            self.channel.counters.count_reuse(reused, reused > 0 && self.core.cache.plan().has_states());
            let stops = self.stop_rules.of_prompt(Uncomputed { prompt, held: table.len(), shared });
            *work = Some(Work::new(submission, reused, serial, stops));
            self.find_leader(index);
            if let Some(finish) = self.end_prompt(index) {
                self.finish(index, finish);
            }
        }
    }

    /// Where not every page has a checkpoint, of prompts that begin alike and come together the first computes what they have
    /// in common and leaves one at its end, and the others wait for it: each would compute all of it otherwise. Who is
    /// waited for does not wait: nobody waits for more than what he has in common with somebody.
    fn find_leader(&mut self, index: usize) {
        let Some(work) = self.slots[index].work.as_ref().filter(|_| self.stop_rules.are_selective()) else { return };
        let (held, tokens) = (work.fed / PAGE_TOKENS, reusable(&work.submission.request, self.reads_whole));
        let in_common = |slot: usize| {
            let leads = |work: &&Work| slot != index && work.is_prefilling() && work.leader.is_none();
            let leader = self.slots[slot].work.as_ref().filter(leads)?;
            let prompt = &leader.submission.request.prompt;
            let pages = tokens.chunks_exact(PAGE_TOKENS).zip(prompt.chunks_exact(PAGE_TOKENS));
            let pages = pages.take_while(|(mine, other)| mine == other).count();
            (pages > held && pages * PAGE_TOKENS > leader.fed).then_some(Leader { slot, pages })
        };
        let leader = (0..self.slots.len()).filter_map(in_common).max_by_key(|leader| leader.pages);
        let Some(Leader { slot, pages }) = leader else { return };
        let has_stop = self.slots[slot].work.as_mut().is_some_and(|leader| leader.stops.insert(pages));
        if let Some(work) = &mut self.slots[index].work {
            work.leader = leader.filter(|_| has_stop);
        }
    }

    /// Draws for slots whose mask has come late.
    fn draw_late(&mut self) {
        for index in 0..self.slots.len() {
            let Slot { work, unmasked, outcome, .. } = &mut self.slots[index];
            let Some(work) = work.as_mut().filter(|work| work.awaits_mask) else { continue };
            let outcome = outcome.get_mut().expect("nobody panics while drawing");
            outcome.mask = self.channel.take_mask(work.submission.mailbox);
            if outcome.mask.is_none() {
                continue;
            }
            work.awaits_mask = false;
            let logits = std::mem::take(unmasked);
            if let Ok(mut scratch) = self.draw_scratch[0].lock() {
                self.slots[index].draw(std::iter::once(&mut *logits), &self.eog_tokens, &mut scratch);
            }
            self.slots[index].unmasked = logits;
            self.commit_outcome(index);
        }
    }

    /// Frees a slot; what it has published stays until its place is needed.
    fn finish(&mut self, index: usize, finish: Finish) {
        let Slot { work, table, .. } = &mut self.slots[index];
        let Some(work) = work.take() else { return };
        self.pages.truncate(table, 0);
        let followers = self.slots.iter_mut().filter_map(|slot| slot.work.as_mut());
        for follower in followers.filter(|work| work.leader.is_some_and(|leader| leader.slot == index)) {
            follower.leader = None;
        }
        let outcome = &mut self.slots[index].outcome;
        // What the client has allocated, the client frees.
        let outcome = std::mem::take(outcome.get_mut().expect("nobody panics while drawing"));
        let Outcome { mask, embedding, scores, .. } = outcome;
        if let Some(mask) = mask {
            self.channel.return_mask(work.submission.mailbox, mask);
        }
        if let Some(embedding) = embedding {
            self.channel.return_embedding(work.submission.mailbox, embedding);
        }
        if let Some(scores) = scores {
            self.channel.return_scores(work.submission.mailbox, scores);
        }
        let timings = work.timings();
        self.channel.counters.set_slot(index, SlotState::Free, 0);
        self.channel.finish(work.submission, finish, timings);
    }
}
