//! One step of the scheduler, in four verbs: plan the batch, pass, verify, commit.
//!
//! A *plan* says which slots take part and with how many tokens. The *pass* computes them, which leaves K and V in the cache
//! and logits where they are wanted. To *verify* is to draw a token from the logits after the last certain one, and one more
//! as long as what was drawn is what had been drafted. To *commit* makes what was drawn certain: it goes to the client and
//! into the history, the pages of drafted tokens that were wrong are given back, and full pages of certain tokens are
//! published. Nothing is ever published that is not certain.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::super::drafter::DRAFT_MAX;
use super::super::error::EngineError;
use super::super::request::{Event, Finish, Generate, OutputKind, SLOTS_MAX};
use super::super::stats::SlotState;
use super::Scheduler;
use super::batch::{Batch, Part, Wanted};
use super::slot::{Leader, Slot, reusable};
use crate::kernels::STREAM_TOKENS_MAX;
use crate::model::cache::PAGE_TOKENS;
use crate::model::weights::{HeadFunction, Linear};
use crate::model::{ForwardPass, OutputRows, SequenceSlice};
use crate::sampling::SamplingError;

/// Which share of a chunk a prompt gets while others generate: a pass of a quarter costs a little more per token, and
/// delays the others by no more than a few tokens' time.
const SHARED_CHUNK: usize = 4;

/// Most rows of logits at once.
const ROWS_MAX: usize = SLOTS_MAX + DRAFT_MAX;

impl Scheduler<'_> {
    /// One pass over the weights and what comes of it; false if no slot has anything to do.
    pub(super) fn step(&mut self) -> bool {
        self.plan_batch();
        if self.batch.parts.is_empty() {
            return false;
        }
        let passed = self.pass();
        self.channel.counters.steps.fetch_add(1, Relaxed);
        self.channel.counters.beat();
        match passed {
            Ok(()) => {
                self.verify();
                self.commit();
            }
            Err(error) => self.fail(error),
        }
        true
    }

    /// Which slots take part in the next pass, and with how many tokens: those that generate, and what is drafted for them;
    /// then prompts in turn.
    fn plan_batch(&mut self) {
        self.batch.clear();
        let mut generating: heapless::Vec<(usize, usize), SLOTS_MAX> = heapless::Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(work) = slot.work.as_ref().filter(|work| work.is_decoding()) else { continue };
            let room = self.channel.room(work.submission.mailbox);
            if room > 0 {
                let _ = generating.push((index, room));
            }
        }
        self.draft(&generating);
        for &(index, _) in &generating {
            self.add_part(index, 1);
        }
        self.plan_prompts();
    }

    /// Drafts what follows in slots that generate and have room for so many events. Together they draft no more than fits
    /// one stream of the weights; where that is not enough for all, they take turns.
    fn draft(&mut self, generating: &[(usize, usize)]) {
        let Some(drafter) = &mut self.drafter else { return };
        let mut budget = STREAM_TOKENS_MAX.saturating_sub(generating.len()).min(self.draft_max);
        let n_vocab = self.core.model.weights.n_vocab();
        let has_states = self.core.cache.plan().has_states();
        let mut draft: heapless::Vec<u32, DRAFT_MAX> = heapless::Vec::new();
        let first = self.next_draft % generating.len().max(1);
        self.next_draft = first + 1;
        let (later, sooner) = generating.split_at(first);
        for (at, &(index, room)) in sooner.iter().chain(later).enumerate() {
            let Slot { work, history, .. } = &mut self.slots[index];
            let Some(work) = work else { continue };
            // Without the mask of the first token nobody knows that of the second; a state cannot go back by a few tokens.
            let may_draft = |generate: &&Generate| !(generate.constraint || work.drafts_failed || has_states);
            let Some(generate) = work.generate().filter(may_draft) else { continue };
            // The token that follows the draft has its place too.
            let most = (generate.max_tokens - work.generated()).min(room) - 1;
            let most = most.min(budget.div_ceil(generating.len() - at));
            if most == 0 {
                continue;
            }
            draft.clear();
            drafter.propose(&history[..work.verified], most, &mut draft);
            draft.truncate(most);
            let n = draft.iter().take_while(|&&token| (token as usize) < n_vocab).count();
            history[work.verified..][..n].copy_from_slice(&draft[..n]);
            work.drafted = n;
            budget -= n;
        }
    }

    /// Prompts, in turn, as much of them as a pass takes.
    fn plan_prompts(&mut self) {
        let mut budget = match self.batch.parts.is_empty() && !self.is_shared {
            true => self.chunk,
            false => (self.chunk / SHARED_CHUNK).next_multiple_of(PAGE_TOKENS).min(self.chunk),
        };
        let (n_slots, first) = (self.slots.len(), self.next_prefill);
        let mut is_first = true;
        let mut scored: heapless::Vec<(usize, usize), SLOTS_MAX> = heapless::Vec::new();
        let mut embeddings: heapless::Vec<(usize, usize), SLOTS_MAX> = heapless::Vec::new();
        for index in (0..n_slots).map(|i| (first + i) % n_slots) {
            if self.waits_for_leader(index) {
                continue;
            }
            let Slot { work, table, .. } = &mut self.slots[index];
            let Some(work) = work.as_mut().filter(|work| work.is_prefilling()) else { continue };
            if budget == 0 {
                break;
            }
            if self.reads_whole && work.prefill_len() > budget {
                // Who does not fit is the first of the next pass.
                self.next_prefill = index;
                break;
            }
            // Others may have computed meanwhile what comes next.
            if work.fed == table.len() * PAGE_TOKENS && work.published == table.len() {
                work.serial =
                    self.pages.adopt(table, work.serial, reusable(&work.submission.request, self.reads_whole)).serial;
                let reused = table.len() * PAGE_TOKENS - work.fed;
                let is_hit = reused > 0 && work.reused == 0 && self.core.cache.plan().has_states();
                self.channel.counters.count_reuse(reused, is_hit);
                (work.fed, work.published) = (work.fed + reused, table.len());
                work.reused += reused;
            }
            let mut n = work.prefill_len().min(budget);
            if n < work.prefill_len() {
                // Chunks end with a page if they can.
                let over = (work.fed + n) % PAGE_TOKENS;
                n -= if over < n { over } else { 0 };
            }
            budget -= n;
            match work.wanted() {
                Wanted::Draws => self.add_part(index, n),
                // There are as many places as slots.
                Wanted::Scores => {
                    let _ = scored.push((index, n));
                }
                Wanted::States => {
                    let _ = embeddings.push((index, n));
                }
            }
            if std::mem::take(&mut is_first) {
                self.next_prefill = (index + 1) % n_slots;
            }
        }
        for (index, n) in scored.into_iter().chain(embeddings) {
            self.add_part(index, n);
        }
    }

    /// Whether another is about to leave the checkpoint that a slot goes on from.
    fn waits_for_leader(&self, index: usize) -> bool {
        let leader = self.slots[index].work.as_ref().and_then(|work| work.leader);
        leader.is_some_and(|Leader { slot, pages }| {
            let leader = self.slots[slot].work.as_ref().filter(|leader| leader.is_prefilling());
            leader.is_some_and(|leader| leader.fed < pages * PAGE_TOKENS)
        })
    }

    /// Takes the next `n` certain tokens of a slot and all that are drafted into the batch, and sees to it that it has pages
    /// for them.
    fn add_part(&mut self, index: usize, n: usize) {
        let Slot { work, table, history, .. } = &mut self.slots[index];
        let Some(work) = work else { return };
        let tokens = &history[work.fed..work.fed + n + work.drafted];
        assert!(
            self.pages.extend(table, work.fed, tokens.len(), &work.stops),
            "admission has seen to it that there are pages"
        );
        self.batch.push(index, tokens, work.rows_of(n), work.wanted());
    }

    /// One pass over the weights: what the batch holds is in the cache, logits are in the buffers, hidden states are pooled.
    fn pass(&mut self) -> Result<(), EngineError> {
        let Scheduler { core, slots, batch, .. } = self;
        let (slots, team) = (&*slots, core.team);
        let (n_vocab, n_logits) = (core.model.weights.n_vocab(), core.sizes.n_logits.min(ROWS_MAX));
        let mut slices: heapless::Vec<SequenceSlice<'_>, SLOTS_MAX> = heapless::Vec::new();
        for &Part { slot, first, n, .. } in &batch.parts {
            let Slot { work, table, .. } = &slots[slot];
            let position = work.as_ref().map_or(0, |work| work.fed);
            // There are as many parts as slots at most.
            let _ = slices.push(table.slice(first, n, position));
        }
        core.pass(&batch.tokens, &slices, OutputRows::Tokens(&batch.rows), |pass, model| {
            let (norm, output) = (&model.weights.output_norm, &model.weights.output);
            let first_state = batch.n_drawn + batch.n_scored;
            let mut owners = batch.parts.iter().filter(|part| part.wanted == Wanted::Scores).flat_map(|part| {
                let fed = slots[part.slot].work.as_ref().map_or(0, |work| work.fed);
                (fed..fed + part.n_rows).map(|position| (part.slot, position))
            });
            for first in (batch.n_drawn..first_state).step_by(n_logits) {
                let n = n_logits.min(first_state - first);
                let group: heapless::Vec<(usize, usize), ROWS_MAX> = owners.by_ref().take(n).collect();
                let rows = pass.logits((norm, output), first..first + n);
                let stride = rows.len() / n;
                let (rows, next) = (&*rows, AtomicUsize::new(0));
                team.run_dynamic(&|_| {
                    loop {
                        let row = next.fetch_add(1, Relaxed);
                        let Some(&(slot, position)) = group.get(row) else { return };
                        slots[slot].score(position, &rows[row * stride..][..n_vocab]);
                    }
                });
            }
            // Last, for they stay where they are until they are drawn from.
            if batch.n_drawn > 0 {
                pass.logits((norm, output), 0..batch.n_drawn);
            }
            if first_state < batch.rows.len() {
                let slot_of = |part: &Part| std::iter::repeat_n(part.slot, part.n_rows);
                let mut owners = batch.parts.iter().flat_map(slot_of).skip(first_state);
                pass.hidden_states(norm, first_state..batch.rows.len(), |state| {
                    if let Some(slot) = owners.next() {
                        slots[slot].pool(state);
                    }
                });
            }
            map_pooled(pass, &model.weights.head, slots, batch);
        })
    }

    /// The pass has failed. Whose token it was cannot go on. Memory that cannot be had is laid to the last, a prompt if there
    /// is one: what the others need may be there. They have lost nothing but the time.
    fn fail(&mut self, error: EngineError) {
        let last = self.batch.parts.len() - 1;
        for i in 0..self.batch.parts.len() {
            let Part { slot: index, n, .. } = self.batch.parts[i];
            let Slot { work, table, history, .. } = &mut self.slots[index];
            let Some(work) = work else { continue };
            let drafted = std::mem::take(&mut work.drafted);
            let (certain, draft) = history[work.fed..work.fed + n].split_at(n - drafted);
            let is_to_blame = match error {
                EngineError::Embedding(error) => {
                    let is_row = |token: &u32| error.row == *token as usize;
                    // A guess is not the sequence's fault; it goes on without.
                    work.drafts_failed |= draft.iter().any(is_row);
                    certain.iter().any(is_row)
                }
                _ => i == last,
            };
            match is_to_blame {
                true => self.finish(index, Finish::Failed(error)),
                false => self.pages.truncate(table, work.fed),
            }
        }
    }

    /// Draws the next tokens of slots, whose logits the pass has left. Those whose mask is not there yet keep their logits.
    fn verify(&mut self) {
        let n_vocab = self.core.model.n_drawable();
        let stride = self.core.buffers.logits_stride(n_vocab);
        let mut logits = &mut self.core.buffers.logits_mut()[..self.batch.n_drawn * stride];
        let mut drawing: heapless::Vec<(usize, Mutex<&mut [f32]>), SLOTS_MAX> = heapless::Vec::new();
        for part in self.batch.parts.iter().filter(|part| part.wanted == Wanted::Draws && part.n_rows > 0) {
            let Slot { work, unmasked, outcome, .. } = &mut self.slots[part.slot];
            let Some(work) = work else { continue };
            let Some(generate) = work.generate() else { continue };
            let (rows, rest) = std::mem::take(&mut logits).split_at_mut(part.n_rows * stride);
            logits = rest;
            if generate.constraint {
                let outcome = outcome.get_mut().expect("nobody panics while drawing");
                outcome.mask = self.channel.take_mask(work.submission.mailbox);
                if outcome.mask.is_none() {
                    unmasked.copy_from_slice(&rows[..n_vocab]);
                    work.awaits_mask = true;
                    continue;
                }
            }
            let _ = drawing.push((part.slot, Mutex::new(rows)));
        }
        let (slots, scratch, eog_tokens) = (&self.slots, &self.draw_scratch, &self.eog_tokens);
        let next = AtomicUsize::new(0);
        let job = |worker: usize| {
            let Ok(mut scratch) = scratch[worker].lock() else { return };
            while let Some((slot, rows)) = drawing.get(next.fetch_add(1, Relaxed)) {
                let Ok(mut rows) = rows.lock() else { return };
                let rows = rows.chunks_exact_mut(stride).map(|row| &mut row[..n_vocab]);
                slots[*slot].draw(rows, eog_tokens, &mut scratch);
            }
        };
        if drawing.len() > 1 { self.core.team.run_dynamic(&job) } else { job(0) }
    }

    /// Makes what the pass has computed, and what was drawn from it, certain.
    fn commit(&mut self) {
        for at in 0..self.batch.parts.len() {
            let Part { slot, n, .. } = self.batch.parts[at];
            self.commit_cached(slot, n);
        }
        for at in 0..self.batch.parts.len() {
            self.commit_outcome(self.batch.parts[at].slot);
        }
    }

    /// `n` more tokens of a slot are in the cache. The pages of those that were drafted and not drawn are given back; full
    /// pages of the others are published.
    fn commit_cached(&mut self, index: usize, n: usize) {
        let Slot { work, table, history, outcome, .. } = &mut self.slots[index];
        let Some(work) = work else { return };
        let outcome = outcome.get_mut().expect("nobody panics while drawing");
        // The last that was drawn has not been through the model.
        let right = outcome.steps.len().saturating_sub(1).min(work.drafted);
        let wrong = std::mem::take(&mut work.drafted) - right;
        let before = work.fed;
        work.fed += n - wrong;
        if wrong > 0 {
            self.pages.truncate(table, work.fed);
        }
        self.pages.advance(table, work.fed);
        while !self.reads_whole && (work.published + 1) * PAGE_TOKENS <= work.fed {
            let tokens = &history[work.published * PAGE_TOKENS..][..PAGE_TOKENS];
            work.serial = self.pages.publish(table, work.published, work.serial, tokens);
            work.published += 1;
        }
        let in_prompt = work.prompt_len().min(work.fed) - work.prompt_len().min(before);
        self.channel.counters.tokens_in.fetch_add(in_prompt as u64, Relaxed);
        let state = match (work.awaits_mask, work.fed < work.prompt_len()) {
            (true, _) => SlotState::Waiting,
            (false, true) => SlotState::Prefill,
            (false, false) => SlotState::Decode,
        };
        self.channel.counters.set_slot(index, state, work.fed);
        if in_prompt > 0 {
            self.tell_progress(index);
        }
    }

    /// Tells the client of a slot how far its prompt is, and the clients of those that wait for it: it is their prompt, too.
    fn tell_progress(&self, index: usize) {
        let Some(leader) = &self.slots[index].work else { return };
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(work) = &slot.work else { continue };
            let tokens = match work.leader {
                _ if at == index => work.fed.min(work.prompt_len()),
                Some(Leader { slot, pages }) if slot == index => leader.fed.min(pages * PAGE_TOKENS),
                _ => continue,
            };
            self.channel.set_progress(work.submission.mailbox, tokens);
        }
    }

    /// Hands over what was wanted of the prompt once all of it is there; the end, if that was all.
    pub(super) fn end_prompt(&mut self, index: usize) -> Option<Finish> {
        let Slot { work, outcome, .. } = &mut self.slots[index];
        let work = work.as_mut()?;
        let outcome = outcome.get_mut().expect("nobody panics while drawing");
        if work.fed + 1 < work.prompt_len() || outcome.failure.is_some() {
            return None;
        }
        if let Some(scores) = outcome.scores.take() {
            self.channel.return_scores(work.submission.mailbox, scores);
            self.channel.send(work.submission.mailbox, Event::Scored);
        }
        if !work.only_reads() {
            return None;
        }
        work.last = Instant::now();
        Some(Finish::Length)
    }

    /// Hands what has come of the pass to the client, tokens to the next pass too.
    pub(super) fn commit_outcome(&mut self, index: usize) {
        let mut finish = self.end_prompt(index);
        let Slot { work, history, outcome, .. } = &mut self.slots[index];
        let Some(work) = work else { return };
        let outcome = outcome.get_mut().expect("nobody panics while drawing");
        if let Some(mask) = outcome.mask.take() {
            self.channel.return_mask(work.submission.mailbox, mask);
        }
        for step in &outcome.steps {
            work.last = Instant::now();
            work.first.get_or_insert(work.last);
            history[work.verified] = step.token;
            work.verified += 1;
            self.channel.counters.tokens_out.fetch_add(1, Relaxed);
            self.channel.send(work.submission.mailbox, Event::Step(*step));
            // Nothing is drawn after either.
            if work.is_end(step.token, &self.eog_tokens) {
                finish = Some(Finish::EndOfGeneration);
            } else if work.generate().is_some_and(|generate| generate.max_tokens == work.generated()) {
                finish = Some(Finish::Length);
            }
        }
        outcome.steps.clear();
        if work.pending() == 0
            && let OutputKind::Embedding(_) = work.submission.request.output
        {
            work.last = Instant::now();
            match outcome.finish_embedding() {
                Ok(embedding) => {
                    self.channel.return_embedding(work.submission.mailbox, embedding);
                    finish = Some(Finish::Embedded);
                }
                Err(error) => outcome.failure = Some(error),
            }
        }
        if let Some(error) = outcome.failure.take() {
            let is_nan = |error: &EngineError| match error {
                EngineError::Sampling(error) => matches!(error, SamplingError::NotANumber { .. }),
                error => matches!(error, EngineError::HiddenState { .. }),
            };
            if is_nan(&error) {
                // Nobody else shall continue after what has led to this.
                self.pages.withdraw_all(&self.slots[index].table);
            }
            finish = Some(Finish::Failed(error));
        }
        if let Some(finish) = finish {
            self.finish(index, finish);
        }
    }
}

/// Finishes the vectors of texts whose last tokens a pass has read: what the head makes of them where the model has one.
fn map_pooled(pass: &mut ForwardPass<'_, '_>, head: &[(Linear, HeadFunction)], slots: &[Slot<'_>], batch: &Batch) {
    let ends = |part: &&Part| {
        let work = slots[part.slot].work.as_ref();
        part.wanted == Wanted::States && work.is_some_and(|work| work.pending() == part.n)
    };
    let ended: heapless::Vec<usize, SLOTS_MAX> = batch.parts.iter().filter(ends).map(|part| part.slot).collect();
    ended.iter().for_each(|&slot| slots[slot].finish_pooling());
    if !head.is_empty() && !ended.is_empty() {
        let mut fill =
            |row: usize, out: &mut [f32]| slots[ended[row]].with_pooled(|pooled| out.copy_from_slice(pooled));
        let mut each = |row: usize, values: &[f32]| {
            slots[ended[row]].with_pooled(|pooled| pooled[..values.len()].copy_from_slice(values));
        };
        pass.map_pooled(head, ended.len(), &mut fill, &mut each);
    }
}
