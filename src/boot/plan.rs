//! Chapter 2: the sizes of every region and buffer, from the headers, the settings and what a command does with the model.
//! Nothing is mapped yet, so this is what `brim plan` prints.

use super::buffers::Buffers;
use super::headers::Headers;
use crate::board::Ctx;
use crate::engine::{SLOTS_MAX, pass_sizes, scheduler_bytes};
use crate::error::{Error, Exit, Result};
use crate::kernels::KvType;
use crate::memory::{Host, Plan, RegionName, arena};
use crate::model::cache::PAGE_TOKENS;
use crate::model::{CachePlan, Sizes, cache, step};
use crate::settings::KvChoice;

/// Context without `--ctx`, if the model was trained for that much: a chat's worth, and small against the weights.
pub const CTX_DEFAULT: usize = 4096;

/// Tokens of a prefill pass without `[tile] tokens`: weights are then read and unpacked once in 256 tokens, a few percent
/// of the time their arithmetic takes; a stretch of 1,024 columns of their activations (384 KiB) stays in L2. 512 were
/// not faster.
pub const BATCH_DEFAULT: usize = 256;

/// Slots when nobody says how many: more make each slower, and each takes a context of KV cache.
pub const SLOTS_DEFAULT: u32 = 4;

/// The same of a model of vectors, whose texts are mostly short: many make one pass.
pub const VECTOR_SLOTS_DEFAULT: usize = 32;

/// Contexts are multiples of this: positions of a panel of keys.
const CTX_STEP: usize = 16;

/// The longest context that can be asked for.
const CTX_MAX: usize = 1 << 24;

/// What a command does with a model.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Rows of logits that one sequence wants at once.
    pub n_logits: usize,
    /// Tokens of context where the settings leave them open; `None`: what the model was trained for, at most
    /// [`CTX_DEFAULT`].
    pub ctx_default: Option<usize>,
    /// Tokens of context that there must be, whatever the settings say.
    pub ctx_least: usize,
    /// Checkpoints of recurrent states; `None`: as many as [`CachePlan`] makes by itself.
    pub checkpoints: Option<usize>,
    /// Many sequences at once, for a [`Scheduler`](crate::engine::Scheduler); `None`: one.
    pub serving: Option<Serving>,
}

impl Default for Workload {
    fn default() -> Self {
        Workload { n_logits: 1, ctx_default: None, ctx_least: 0, checkpoints: None, serving: None }
    }
}

/// What serving takes beyond one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Sequences that are worked on at once, at most [`SLOTS_MAX`]; `None`: [`SLOTS_DEFAULT`], or [`VECTOR_SLOTS_DEFAULT`].
    pub slots: Option<usize>,
    /// Tokens that the KV cache holds, of all sequences together; `None`: a whole context for every slot, of a model of
    /// vectors one and a page for every slot. It is never less than one context.
    pub kv_tokens: Option<usize>,
    /// Tokens that may be drafted for a sequence and verified in one pass; 0: none are.
    pub drafts: usize,
}

impl Serving {
    /// As options have it.
    pub fn new(slots: Option<u32>, kv_tokens: Option<u32>) -> Serving {
        let kv_tokens = kv_tokens.map(|tokens| tokens as usize);
        Serving { slots: slots.map(|slots| slots as usize), kv_tokens, drafts: 0 }
    }
}

impl From<Serving> for Workload {
    fn from(serving: Serving) -> Self {
        Workload { serving: Some(serving), ..Workload::default() }
    }
}

/// A model whose sizes are known, before anything is mapped.
pub struct Planned<'s> {
    /// What the files hold.
    pub headers: Headers<'s>,
    /// Sizes that the plan was made for.
    pub sizes: Sizes,
    /// The plan.
    pub plan: Plan,
    /// Whether it is for a scheduler.
    pub(super) is_serving: bool,
}

impl Planned<'_> {
    /// Bytes that loading reads.
    pub fn load_bytes(&self) -> u64 {
        if self.headers.settings.resident.is_some() { 0 } else { self.headers.file_bytes() }
    }
}

/// Plans models that are to live in one process, each for its workload. The context of one may be as long as the others
/// leave room for.
///
/// # Errors
/// As [`Headers::plan`]; usage where more than one is to take all that is left.
pub fn plan_all<'s>(mut models: Vec<(Headers<'s>, Workload)>) -> Result<Vec<Planned<'s>>> {
    let is_greedy = |(headers, _): &(Headers<'_>, Workload)| headers.settings.ctx == Some(Ctx::Auto);
    let greedy: Vec<usize> = (0..models.len()).filter(|&i| is_greedy(&models[i])).collect();
    if greedy.len() > 1 {
        return Err(Error::usage(format!(
            "ctx = auto takes all the memory that is left, and {} models of this board ask for it: name the tokens of \
             context of all of them but one",
            greedy.len()
        )));
    }
    let are_several = models.len() > 1;
    let last = greedy.first().map(|&at| (at, models.remove(at)));
    let plan = |(headers, workload): (Headers<'s>, Workload), others: &[&Plan]| {
        let name = headers.files.name().to_string();
        headers.plan_beside(&workload, others).map_err(|e| if are_several { e.at(name) } else { e })
    };
    let mut planned = models.into_iter().map(|model| plan(model, &[])).collect::<Result<Vec<_>>>()?;
    if let Some((at, model)) = last {
        let others: Vec<&Plan> = planned.iter().map(|each| &each.plan).collect();
        let greedy = plan(model, &others)?;
        planned.insert(at, greedy);
    }
    Ok(planned)
}

impl<'s> Headers<'s> {
    /// Makes the plan for `workload`.
    ///
    /// # Errors
    /// A context, a KV cache or slots that cannot be (2); exit 5 where not even the sizes can be expressed.
    pub fn plan(self, workload: &Workload) -> Result<Planned<'s>> {
        self.plan_beside(workload, &[])
    }

    /// As [`Headers::plan`], where the plans of `others` are to fit as well.
    fn plan_beside(self, workload: &Workload, others: &[&Plan]) -> Result<Planned<'s>> {
        if let Some(Serving { slots: Some(slots), .. }) = workload.serving
            && !(1..=SLOTS_MAX).contains(&slots)
        {
            return Err(Error::usage(format!("serve.slots {slots}: needs 1 to {SLOTS_MAX}")));
        }
        let (ctx, kv_type) = self.context(workload, others)?;
        if ctx == 0 || ctx > CTX_MAX {
            return Err(Error::usage(format!("--ctx {ctx}: needs 1 to {CTX_MAX} tokens")));
        }
        let (sizes, plan) = self.regions(workload, ctx, kv_type)?;
        self.warn_of_checkpoints(&sizes);
        self.warn_of_context(ctx);
        Ok(Planned { sizes, plan, is_serving: workload.serving.is_some(), headers: self })
    }

    /// Says where there are not as many checkpoints as were asked for.
    fn warn_of_checkpoints(&self, sizes: &Sizes) {
        let (cache, name) = (CachePlan::new(&self.model.config, sizes), self.files.name());
        match sizes.checkpoints {
            Some(asked) if !cache.has_states() => log::warn!(
                "{name}: checkpoints = {asked} changes nothing: this model has no recurrent layers, whose states they are \
                 copies of; leave it out"
            ),
            Some(asked) if asked > cache.n_checkpoints => log::warn!(
                "{name}: {asked} checkpoints are asked for, and the KV cache has {n} pages, each of which can have one: \
                 there are {n} checkpoints",
                n = cache.n_checkpoints
            ),
            _ => {}
        }
    }

    /// Says where the context is longer than what the model was trained for, stretched or not.
    fn warn_of_context(&self, ctx: usize) {
        let config = &self.model.config;
        let (trained, known) = (config.ctx_train, config.ctx_known());
        if ctx > known && matches!(self.settings.ctx, Some(Ctx::Tokens(_))) {
            let name = self.files.name();
            log::warn!(
                "{name}: --ctx {ctx} is beyond the {trained} tokens of context that the model was trained for: texts get worse there; give at most {known}"
            );
        }
    }

    /// Tokens of context, and the type of the KV cache.
    fn context(&self, workload: &Workload, others: &[&Plan]) -> Result<(usize, KvType)> {
        let kv_type = match self.settings.kv_type {
            KvChoice::Type(kv_type) => kv_type,
            KvChoice::Auto => KvType::default(),
        };
        let ctx_train = self.model.config.ctx_train;
        let (ctx, kv_type) = match self.settings.ctx {
            Some(Ctx::Tokens(tokens)) => (tokens as usize, kv_type),
            None => (workload.ctx_default.unwrap_or(ctx_train.min(CTX_DEFAULT)), kv_type),
            Some(Ctx::Auto) => {
                let longest = self.longest(workload, kv_type, others)?;
                let may_shrink = self.settings.kv_type == KvChoice::Auto && longest < ctx_train;
                let smaller = if may_shrink { self.longest(workload, KvType::Q8_0, others)? } else { 0 };
                let (ctx, kv_type) = if smaller > longest { (smaller, KvType::Q8_0) } else { (longest, kv_type) };
                // Where not even the shortest fits, mapping it says what is missing.
                (ctx.max(CTX_STEP).min(self.model.config.ctx_max()), kv_type)
            }
        };
        let (ctx, most) = (ctx.max(workload.ctx_least), self.model.config.ctx_max());
        if ctx > most {
            let text =
                format!("{ctx} tokens of context: this model has learned {most} positions and knows none beyond them");
            return Err(Error::usage(format!("{text}; ask for at most {most} with --ctx")));
        }
        Ok((ctx, kv_type))
    }

    /// The longest context that fits this box right now, at most what the model was trained for.
    fn longest(&self, workload: &Workload, kv_type: KvType, others: &[&Plan]) -> Result<usize> {
        let host = Host::default();
        let settings = self.settings;
        let most = self.model.config.ctx_train.clamp(1, CTX_MAX).div_ceil(CTX_STEP);
        let fits = |steps: usize| -> Result<bool> {
            let (_, plan) = self.regions(workload, steps * CTX_STEP, kv_type)?;
            let plan = Plan::join(others.iter().copied().chain([&plan]))?;
            let reserve = settings.board.memory.reserve;
            Ok(arena::check_growing(&host, &plan, settings.keep_free_bytes(), reserve).is_ok())
        };
        // Between what fits and what does not; the need only grows with the context.
        let (mut good, mut bad) = (0, most + 1);
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            if fits(middle)? { good = middle } else { bad = middle }
        }
        Ok(good * CTX_STEP)
    }

    /// The plan for a context of at least `ctx` tokens.
    fn regions(&self, workload: &Workload, ctx: usize, kv_type: KvType) -> Result<(Sizes, Plan)> {
        let (model, settings) = (&self.model, self.settings);
        cache::check_kv_type(&model.config, kv_type).map_err(|e| Error::usage(e.to_string()))?;
        let sizes = self.sizes(workload, ctx.next_multiple_of(CTX_STEP), kv_type);
        let too_large = || {
            let text = format!("--ctx {}: the KV cache or scratch exceeds 2^64 bytes", sizes.ctx);
            Error::new(Exit::Memory, text)
        };
        let n_vocab = model.n_drawable();
        let cache = CachePlan::new(&model.config, &sizes);
        let kv = cache.pages_bytes().ok_or_else(too_large)?;
        let states = cache.states_bytes().ok_or_else(too_large)?;
        let mut scratch = step::scratch_bytes(&model.config, n_vocab, &sizes).ok_or_else(too_large)?;
        if workload.serving.is_some() {
            scratch = scratch.saturating_add(scheduler_bytes(&model.config, n_vocab, &sizes));
        }
        let mut plan = settings.empty_plan();
        // What a holder has is not loaded, so it takes neither a region nor buffers.
        if settings.resident.is_none() {
            plan.add(RegionName::Weights, model.weights.bytes as u64)?;
            scratch = scratch.max(Buffers::of(model, sizes.workers).scratch_bytes(kv));
        }
        plan.add(RegionName::Vocab, self.vocab_bytes)?;
        plan.add(RegionName::Kv, kv)?;
        plan.add(RegionName::States, states)?;
        plan.add(RegionName::Scratch, scratch)?;
        Ok((sizes, plan))
    }

    fn sizes(&self, workload: &Workload, ctx: usize, kv_type: KvType) -> Sizes {
        let settings = self.settings;
        let config = &self.model.config;
        let n_batch = match settings.board.tile.tokens.map_or(BATCH_DEFAULT, |n| n as usize) {
            // A text that is read both ways goes through all layers as a whole.
            n if config.both_ways => n.max(ctx),
            n => n.clamp(1, ctx),
        };
        let one = Sizes {
            n_batch,
            n_logits: workload.n_logits.min(n_batch),
            ctx,
            sequences: 1,
            kv_tokens: ctx,
            checkpoints: workload.checkpoints,
            kv_type,
            workers: settings.threads(),
            tile: settings.tile(),
        };
        match workload.serving {
            None => one,
            Some(Serving { slots, kv_tokens, drafts }) => {
                let of_vectors = config.vectors.is_some();
                let default = if of_vectors { VECTOR_SLOTS_DEFAULT } else { SLOTS_DEFAULT as usize };
                let slots = slots.unwrap_or(default);
                let (n_batch, n_logits) = pass_sizes(n_batch, slots, drafts);
                let of_itself = if of_vectors { ctx + slots * PAGE_TOKENS } else { ctx.saturating_mul(slots) };
                let kv_tokens = kv_tokens.map_or(of_itself, |tokens| tokens.max(ctx));
                Sizes { n_batch, n_logits, sequences: slots, kv_tokens, ..one }
            }
        }
    }
}
