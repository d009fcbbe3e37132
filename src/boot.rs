//! The start-up story: header, plan, reserve, load, seal, run. The only place that knows every room.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cli::settings::Settings;
use crate::engine::{self, Core, Identity, SLOTS_MAX, pass_sizes, scheduler_bytes};
use crate::error::{Error, Exit, Result};
use crate::kernels::{self, Kernels, KvType, Tile};
use crate::load::header::ModelFiles;
use crate::load::reader::Traffic;
use crate::load::resident::{Holder, Manifest, Resident};
use crate::load::stage;
use crate::load::weights::{Job, Loading, readers};
use crate::memory::{Arena, Filling, Growing, Grown, Host, MemoryError, PageKind, Plan, RegionName, Shared, arena};
use crate::model::weights::Placement;
use crate::model::{CachePlan, Embedding, Form, Model, ModelError, Sizes, Weights, cache, step};
use crate::tokenizer::{self, Tokenizer};
use crate::units::Human;
use crate::workers::Workers;
use crate::{board, load, sys};

/// The demo model: trained for this project by `tools/demo`.
#[cfg(feature = "demo")]
pub static DEMO: &[u8] = include_bytes!("demo/brim-demo.gguf");

/// Context without `--ctx`, if the model was trained for that much: a chat's worth, and small against the weights.
pub const CTX_DEFAULT: usize = 4096;

/// Tokens of a prefill pass without `[tile] tokens`: weights are then read and unpacked once in 256 tokens, a few percent
/// of the time their arithmetic takes; a stretch of 1,024 columns of their activations (384 KiB) stays in L2. 512 were
/// not faster.
const BATCH_DEFAULT: usize = 256;

/// Bytes of scratch (and of the KV cache) that are cleared at a time, between reads.
const POPULATE_BYTES: usize = 8 << 20;

/// A model that is known but not loaded: headers have been read, nothing else.
pub struct Prepared {
    /// The files.
    pub files: ModelFiles,
    /// What they hold.
    pub model: Model,
    /// Sizes that the plan was made for.
    pub sizes: Sizes,
    /// The plan.
    pub plan: Plan,
    /// The kernels it will run on.
    pub kernels: &'static Kernels,
    serving: Option<Serving>,
}

/// The kernels the settings ask for.
///
/// # Errors
/// A tier that this CPU lacks (exit 6).
pub fn select_kernels(settings: &Settings) -> Result<&'static Kernels> {
    Ok(kernels::select(settings.isa, settings.isa_ceiling)?)
}

/// Opens the model file, or the embedded demo model.
///
/// # Errors
/// Exit 4 with what is wrong with the file; exit 2 where there is neither.
pub fn open(model: Option<&str>) -> Result<ModelFiles> {
    match model {
        Some(path) => ModelFiles::open(path),
        #[cfg(feature = "demo")]
        None => ModelFiles::embedded("embedded demo model", DEMO),
        #[cfg(not(feature = "demo"))]
        None => Err(Error::usage("no model: give a file with -m; this build was made without the demo model")),
    }
}

/// The sizes of the board, or what this CPU and its L1d suggest.
pub fn tile(settings: &Settings) -> Tile {
    // 32 rows of k_cols int8 in three quarters of L1d; their scales and the activations take the rest. (Zen 4, Q4_K and
    // Q8_0: 1 to 4 points of the peak above half of it.)
    let from_cache = settings.topology.l1d_bytes as usize * 3 / 4 / 32;
    let k_cols = settings.tile.k_bytes.map_or(from_cache, |k| k as usize);
    let mut tile = Tile::default();
    if k_cols > 0 {
        tile.k_cols = (k_cols / 256 * 256).clamp(256, 1 << 16);
    }
    for ahead in [&mut tile.ahead, &mut tile.ahead_busy] {
        let bytes = |board: Option<u32>, probed: usize| board.map_or(probed, |bytes| bytes as usize);
        ahead.l1_bytes = bytes(settings.tile.ahead_l1_bytes, ahead.l1_bytes);
        ahead.l2_bytes = bytes(settings.tile.ahead_l2_bytes, ahead.l2_bytes);
    }
    tile
}

/// A model whose headers have been read, before anything is planned.
struct Known {
    files: ModelFiles,
    model: Model,
    kernels: &'static Kernels,
    vocab_bytes: u64,
    n_logits: usize,
    serving: Option<Serving>,
}

/// What serving takes beyond one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Sequences that are worked on at once, at most [`SLOTS_MAX`].
    pub slots: usize,
    /// Tokens that the KV cache holds, of all sequences together; `None`: a whole context for every slot. It is never less
    /// than one context.
    pub kv_tokens: Option<usize>,
}

/// Slots when nobody says how many: more make each slower, and each takes a context of KV cache.
pub const SLOTS_DEFAULT: u32 = 4;

impl Serving {
    /// As options have it.
    pub fn new(slots: Option<u32>, kv_tokens: Option<u32>) -> Serving {
        let kv_tokens = kv_tokens.map(|tokens| tokens as usize);
        Serving { slots: slots.unwrap_or(SLOTS_DEFAULT) as usize, kv_tokens }
    }
}

impl Known {
    fn read(settings: &Settings, n_logits: usize) -> Result<Known> {
        let kernels = select_kernels(settings)?;
        let files = open(settings.model.as_deref())?;
        let embedding = match settings.board.memory.embedding {
            board::Embedding::Memory => Embedding::InMemory,
            board::Embedding::Disk => Embedding::InFile,
        };
        let model = Model::with_embedding(&files.metadata(), files.tensors(), embedding);
        let model = model.map_err(|e| Error::from(e).at(files.name()))?;
        if embedding == Embedding::InFile && model.weights.embedding.form != Form::File {
            log::warn!(
                "{}: the embedding table is the output matrix too, so it is in memory (memory.embedding = \"disk\")",
                files.name()
            );
        }
        let source =
            tokenizer::source_from(&files.metadata(), settings.pre.as_deref()).map_err(|e| e.at(files.name()))?;
        let vocab_bytes = tokenizer::region_bytes(&source).map_err(|e| Error::from(e).at(files.name()))?;
        Ok(Known { files, model, kernels, vocab_bytes, n_logits, serving: None })
    }

    /// The plan for a context of at least `ctx` tokens.
    fn plan(&self, settings: &Settings, ctx: usize, kv_type: KvType) -> Result<(Sizes, Plan)> {
        let model = &self.model;
        cache::check_kv_type(&model.config, kv_type).map_err(|e| Error::usage(e.to_string()))?;
        let ctx = ctx.next_multiple_of(CTX_STEP);
        let n_batch = settings.tile.tokens.map_or(BATCH_DEFAULT, |n| n as usize).clamp(1, ctx);
        let slots = self.serving.map_or(1, |serving| serving.slots);
        let (n_batch, n_logits) = match self.serving {
            Some(serving) => pass_sizes(n_batch, serving.slots, 0),
            None => (n_batch, self.n_logits.min(n_batch)),
        };
        let kv_tokens = self.serving.and_then(|serving| serving.kv_tokens);
        let sizes = Sizes {
            n_batch,
            n_logits,
            ctx,
            sequences: slots,
            kv_tokens: kv_tokens.map_or(ctx.saturating_mul(slots), |tokens| tokens.max(ctx)),
            kv_type,
            workers: settings.threads,
            tile: tile(settings),
        };
        let too_large = || Error::new(Exit::Memory, format!("--ctx {ctx}: the KV cache or scratch exceeds 2^64 bytes"));
        let is_resident = settings.resident.is_some();
        let n_vocab = model.weights.n_vocab();
        let mut scratch = step::scratch_bytes(&model.config, n_vocab, &sizes).ok_or_else(too_large)?;
        if self.serving.is_some() {
            scratch = scratch.saturating_add(scheduler_bytes(&model.config, n_vocab, &sizes));
        }
        let mut plan = if settings.packed { Plan::packed() } else { Plan::new(settings.page) };
        plan.add(RegionName::Weights, if is_resident { 0 } else { model.weights.bytes as u64 })?;
        plan.add(RegionName::Vocab, self.vocab_bytes)?;
        let kv = CachePlan::new(&model.config, &sizes).bytes().ok_or_else(too_large)?;
        plan.add(RegionName::Kv, kv)?;
        if !is_resident {
            scratch = scratch.max(Buffers::of(model, sizes.workers).scratch_bytes(kv));
        }
        plan.add(RegionName::Scratch, scratch)?;
        Ok((sizes, plan))
    }

    /// The longest context that fits this box right now, at most what the model was trained for.
    fn fit(&self, settings: &Settings, kv_type: KvType) -> Result<usize> {
        let host = Host::default();
        let most = self.model.config.ctx_train.clamp(1, CTX_MAX).div_ceil(CTX_STEP);
        let fits = |steps: usize| -> Result<bool> {
            let (_, plan) = self.plan(settings, steps * CTX_STEP, kv_type)?;
            let reserve = settings.board.memory.reserve;
            Ok(arena::check_growing(&host, &plan, settings.keep_free_bytes, reserve).is_ok())
        };
        // Between what fits and what does not; the need only grows with the context.
        let (mut good, mut bad) = (0, most + 1);
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            if fits(middle)? { good = middle } else { bad = middle }
        }
        Ok(good * CTX_STEP)
    }
}

/// Contexts are multiples of this: positions of a panel of keys.
const CTX_STEP: usize = 16;

/// The longest context that can be asked for.
const CTX_MAX: usize = 1 << 24;

/// Reads the headers and makes the plan. `n_logits` is how many rows of logits the command wants at once.
///
/// # Errors
/// What is wrong with the file (4), the options (2) or the CPU (6); exit 5 where not even the shortest context fits.
pub fn prepare(settings: &Settings, n_logits: usize) -> Result<Prepared> {
    plan_of(Known::read(settings, n_logits)?, settings)
}

/// As [`prepare`], for a [`Scheduler`](crate::engine::Scheduler) over the engine.
///
/// # Errors
/// As [`prepare`]; exit 2 where there can be no so many slots.
pub fn prepare_serving(settings: &Settings, serving: Serving) -> Result<Prepared> {
    if !(1..=SLOTS_MAX).contains(&serving.slots) {
        return Err(Error::usage(format!("serve.slots {}: needs 1 to {SLOTS_MAX}", serving.slots)));
    }
    let known = Known::read(settings, serving.slots)?;
    plan_of(Known { serving: Some(serving), ..known }, settings)
}

fn plan_of(known: Known, settings: &Settings) -> Result<Prepared> {
    let (mut wanted, mut kv_type) =
        (settings.ctx.map_or(known.model.config.ctx_train.min(CTX_DEFAULT), |ctx| ctx as usize), settings.kv_type);
    if settings.ctx_auto {
        wanted = known.fit(settings, kv_type)?;
        if settings.kv_auto && wanted < known.model.config.ctx_train {
            let smaller = known.fit(settings, KvType::Q8_0)?;
            if smaller > wanted {
                (wanted, kv_type) = (smaller, KvType::Q8_0);
            }
        }
        // Not even the shortest fits: mapping it says what is missing.
        wanted = wanted.max(CTX_STEP);
    } else if settings.kv_auto {
        return Err(Error::usage("--kv-type auto: it goes with --ctx auto; name f16 or q8_0"));
    }
    if wanted == 0 || wanted > CTX_MAX {
        return Err(Error::usage(format!("--ctx {wanted}: needs 1 to {CTX_MAX} tokens")));
    }
    let (sizes, plan) = known.plan(settings, wanted, kv_type)?;
    let Known { files, model, kernels, serving, .. } = known;
    let digests = settings.sha256.len();
    if digests > 0 && settings.model.is_some() && digests != files.len() {
        let text = format!("model.sha256 of the board file has {digests} checksums, the model {} files", files.len());
        return Err(Error::new(Exit::Board, text));
    }
    Ok(Prepared { files, model, sizes, plan, kernels, serving })
}

/// The loader's buffers: the KV cache and then the scratch region before anything else uses them.
#[derive(Clone, Copy)]
struct Buffers {
    /// Bytes of each.
    bytes: usize,
    /// How many there must be.
    fewest: usize,
    /// How many are of use.
    most: usize,
}

impl Buffers {
    fn of(model: &Model, workers: usize) -> Buffers {
        let most = readers(workers, model.weights.bytes);
        Buffers { bytes: model.buffer_bytes(most), fewest: readers(workers, 0), most }
    }

    /// Bytes of scratch that buffers need beside a KV cache of so many bytes.
    fn scratch_bytes(self, kv_bytes: u64) -> u64 {
        let missing = (self.fewest as u64).saturating_sub(kv_bytes / self.bytes as u64);
        missing * self.bytes as u64
    }

    /// As many as there is room for, cut off the two regions.
    fn carve<'a>(self, kv: &mut &'a mut [u8], scratch: &mut &'a mut [u8]) -> Vec<&'a mut [u8]> {
        let mut buffers = Vec::with_capacity(self.most);
        for region in [kv, scratch] {
            while buffers.len() < self.most && region.len() >= self.bytes {
                let (buffer, rest) = std::mem::take(region).split_at_mut(self.bytes);
                buffers.push(buffer);
                *region = rest;
            }
        }
        buffers
    }
}

/// A loaded model, for as long as the command runs.
pub struct Running<'a> {
    /// The model at work: for an [`Engine`](crate::engine::Engine) or a [`Scheduler`](crate::engine::Scheduler).
    pub core: Core<'a>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer<'a>,
    /// The sealed weights region, for measuring what reading it costs.
    pub weights: &'a [u8],
    /// The workers.
    pub pool: &'a Workers,
    /// How the load went.
    pub loaded: LoadReport,
    /// What a saved prefix cache must be of; of [`prepare_serving`] alone.
    pub identity: Option<Identity>,
}

/// How a load went.
#[derive(Clone, Copy, Debug)]
pub struct LoadReport {
    /// Bytes read.
    pub bytes: u64,
    /// Time from the first read to the last repack, pages of every region cleared.
    pub elapsed: Duration,
    /// Which way they came.
    pub traffic: Traffic,
    /// Threads that may read at a time.
    pub readers: usize,
}

/// What a loaded model stands on.
#[derive(Default)]
struct Ground {
    pool: Option<Workers>,
    model: Option<Model>,
    resident: Option<Resident>,
    arena: Option<Arena>,
}

/// Maps the plan, loads the model into it, seals the weights and runs `work`; everything is given back afterwards.
///
/// # Errors
/// Memory that cannot be had (5), before anything is read; a read that fails (4); what `work` returns.
pub fn run<T>(prepared: Prepared, settings: &Settings, work: impl FnOnce(Running<'_>) -> Result<T>) -> Result<T> {
    run_on(&mut Ground::default(), prepared, settings, work)
}

/// As [`run`], for a command that runs until the process ends: the model stays, so that any thread may use it.
///
/// # Errors
/// As [`run`].
pub fn run_for_good<T>(
    prepared: Prepared,
    settings: &Settings,
    work: impl FnOnce(Running<'static>) -> Result<T>,
) -> Result<T> {
    run_on(Box::leak(Box::default()), prepared, settings, work)
}

fn run_on<'a, T>(
    ground: &'a mut Ground,
    prepared: Prepared,
    settings: &Settings,
    work: impl FnOnce(Running<'a>) -> Result<T>,
) -> Result<T> {
    if settings.verbose {
        log::set_max_level(log::LevelFilter::Info);
    }
    let Prepared { files, model, sizes, plan, kernels, serving } = prepared;
    let model: &'a Model = ground.model.insert(model);
    let at_file = |e: Error| e.at(files.name());
    let begun = Instant::now();
    let (arena, plan) = map(&plan, settings)?;
    let arena = ground.arena.insert(arena);
    if settings.for_good {
        arena.keep();
    }
    let pages = arena.pages();
    let mut regions = arena.open();
    let source = tokenizer::source_from(&files.metadata(), settings.pre.as_deref()).map_err(at_file)?;
    let total: u64 = model.weights.placements.iter().map(Placement::file_bytes).sum();
    let is_resident = settings.resident.is_some();
    let (mut kv, mut scratch) = (&mut *regions.kv, &mut *regions.scratch);
    let buffers = match is_resident {
        true => Vec::new(),
        false => Buffers::of(model, sizes.workers).carve(&mut kv, &mut scratch),
    };
    let n_readers = buffers.len();
    let done = &settings.progress.done;
    let mut vocabulary = None;
    let (vocab, built) = (regions.vocab, &mut vocabulary);
    let mut meanwhile: Vec<Job<'_>> = vec![Box::new(|| {
        pages.populate(vocab)?;
        *built = Some(tokenizer::build(&source, vocab).map_err(|e| at_file(e.into()))?);
        Ok(())
    })];
    if let Some(socket) = &settings.resident {
        let (slot, files, page) = (&mut ground.resident, &files, plan.page());
        meanwhile.push(Box::new(move || {
            *slot = Some(Resident::connect(socket, &manifest(files, model, kernels, page))?);
            Ok(())
        }));
    }
    // What every pass writes to must be there as well before Ready.
    for part in scratch.chunks_mut(POPULATE_BYTES) {
        meanwhile.push(Box::new(move || Ok(pages.populate(part)?)));
    }
    // The KV cache comes as the context grows, unless the pages of this process are limited: then before others take them.
    let is_limited = Host::default().cgroup_hugetlb(plan.page()).is_some();
    if is_limited {
        for part in kv.chunks_mut(POPULATE_BYTES) {
            meanwhile.push(Box::new(move || Ok(pages.populate(part)?)));
        }
    }
    let total = if is_resident { 0 } else { total };
    settings.progress.total.store(total, Ordering::Relaxed);
    done.store(0, Ordering::Relaxed);
    let filling = pages.filling(regions.weights.bytes());
    let traffic = with_progress(total, done, || {
        let populate = |place: &mut [u8]| Ok(pages.populate(place)?);
        let loading = Loading {
            kernels,
            io: settings.io,
            cpus: &settings.cores,
            buffers,
            populate_buffer: &populate,
            populate: &populate,
            filling: filling.as_ref().map(|filling| filling as &dyn stage::Filling),
            meanwhile,
            sha256: if settings.model.is_some() { &settings.sha256 } else { &[] },
            done,
            source: None,
        };
        if is_resident {
            return load::weights::do_meanwhile(loading);
        }
        model.load(&files, regions.weights.bytes(), loading)
    })?;
    drop(filling);
    // What was set aside for buffers and not used as such.
    pages.populate(regions.scratch)?;
    if is_limited {
        pages.populate(regions.kv)?;
    }
    let tokenizer = vocabulary.expect("the load has done all its jobs");
    if tokenizer.n_tokens() as usize != model.weights.n_vocab() {
        let (tokens, rows) = (tokenizer.n_tokens() as usize, model.weights.n_vocab());
        return Err(at_file(ModelError::Vocabulary { tokens, rows }.into()));
    }
    let (bytes, elapsed) = (done.load(Ordering::Relaxed), begun.elapsed());
    let loaded = LoadReport { bytes, elapsed, traffic, readers: n_readers };
    let pool: &'a Workers = ground.pool.insert(Workers::start(&settings.cores)?);
    let weights = match &ground.resident {
        Some(resident) => resident.weights(),
        None => regions.weights.seal()?,
    };
    log::info!(
        "{}: {} loaded in {:.2} s ({:.2} GB/s; {} around the page cache, {} into pages that need not be cleared), {} pages of {}, kernels {}, {} workers",
        files.name(),
        Human(loaded.bytes),
        loaded.elapsed.as_secs_f64(),
        loaded.bytes as f64 / 1e9 / loaded.elapsed.as_secs_f64(),
        Human(loaded.traffic.direct_bytes),
        Human(loaded.traffic.filled_bytes),
        plan.total_pages(),
        plan.page(),
        kernels.tier().name(),
        sizes.workers
    );
    let rows = model.embedding_rows(&files)?;
    let identity = serving.map(|_| {
        let ids: Vec<u8> =
            files.ids().flat_map(|id| [id.inode, id.bytes, id.modified_ns as u64]).flat_map(u64::to_le_bytes).collect();
        engine::identity(&[files.header_bytes(), &ids, kernels.tier().name().as_bytes()])
    });
    // The headers have been read into the vocabulary region; the heap copy is not needed any more.
    drop(files);
    let kv = Growing::new(regions.kv, pages);
    let core = Core::new(model, kernels, pool, sizes, (weights, kv, regions.scratch), rows);
    work(Running { core, tokenizer, weights, pool, loaded, identity })
}

impl stage::Filling for Filling {
    fn begin(&self) -> bool {
        Filling::begin(self)
    }
    fn page_bytes(&self) -> usize {
        Filling::page_bytes(self)
    }
    fn fill(&self, places: &mut [&mut [u8]], page: &[u8]) -> Result<()> {
        Ok(Filling::fill(self, places, page)?)
    }
    fn populate(&self, bytes: &mut [u8]) -> Result<()> {
        Ok(Filling::populate(self, bytes)?)
    }
}

/// What must be the same in a holder and those who use its weights.
fn manifest(files: &ModelFiles, model: &Model, kernels: &Kernels, page: PageKind) -> Manifest {
    let Weights { bytes, .. } = model.weights;
    Manifest::new(files, model.weights.layout_sha256(), kernels.tier().name(), bytes as u64, page.bytes())
}

/// The NUMA nodes that pages are spread over; none on a box of one node, or where the board says so.
fn nodes(settings: &Settings) -> Vec<u32> {
    match settings.board.memory.numa {
        board::Numa::Interleave => Host::default().memory_nodes(),
        board::Numa::Local => Vec::new(),
    }
}

/// Maps `plan`, growing the pool or falling back to ordinary pages where the board says so; returns what was mapped.
fn map(plan: &Plan, settings: &Settings) -> Result<(Arena, Plan)> {
    let memory = &settings.board.memory;
    let grown = match plan.page() {
        PageKind::Base4K => Ok(None),
        page if memory.reserve => {
            let host = Host::default();
            Grown::make(&host, page, host.packing(plan).small_pages(plan), memory.hvo).map(Some)
        }
        _ => Ok(None),
    };
    let mapped = grown.and_then(|grown| {
        let arena = Arena::reserve(plan, settings.keep_free_bytes)?;
        arena.interleave(&nodes(settings))?;
        if let Some(grown) = grown {
            log::info!("{} pages of {} added to the pool until brim ends", grown.pages(), plan.page());
            grown.hand_over();
        }
        Ok(arena)
    });
    match mapped {
        Ok(arena) => Ok((arena, plan.clone())),
        Err(
            short @ (MemoryError::PoolShort { .. } | MemoryError::NotReserved { .. } | MemoryError::NoSuchPages { .. }),
        ) if memory.fallback == board::Fallback::SmallPages => {
            log::warn!("ordinary pages instead of {} ones (memory.fallback = \"small-pages\"): {short}", plan.page());
            let plan = plan.with_page(PageKind::Base4K)?;
            Ok((Arena::reserve(&plan, settings.keep_free_bytes)?, plan))
        }
        Err(error) => Err(error.into()),
    }
}

/// Loads the weights of `settings.model` into sealed memory and hands it out at `socket` until SIGTERM or SIGINT;
/// `ready` is called once it is there.
///
/// # Errors
/// As [`prepare`] and [`run`]; exit 7 where the socket cannot be had.
pub fn hold(settings: &Settings, socket: &Path, ready: impl FnOnce(&Manifest, Duration)) -> Result<()> {
    if settings.verbose {
        log::set_max_level(log::LevelFilter::Info);
    }
    let begun = Instant::now();
    let Known { files, model, kernels, .. } = Known::read(settings, 1)?;
    // First of all, for another holder there means that loading would be in vain.
    let holder = Holder::listen(socket)?;
    let manifest = manifest(&files, &model, kernels, settings.page);
    let memory = &settings.board.memory;
    let mut plan = Plan::new(settings.page);
    plan.add(RegionName::Weights, model.weights.bytes as u64)?;
    let grown = match settings.page {
        page if page != PageKind::Base4K && memory.reserve => {
            Some(Grown::make(&Host::default(), page, plan.total_pages(), memory.hvo)?)
        }
        _ => None,
    };
    let mut shared = Shared::reserve(&plan, settings.keep_free_bytes)?;
    shared.interleave(&nodes(settings))?;
    if let Some(grown) = grown {
        grown.hand_over();
    }
    // Its buffers are ordinary memory, so there are as few of them as for a small model.
    let n_readers = readers(settings.threads, 0);
    let buffer_bytes = model.buffer_bytes(n_readers);
    let mut buffers = vec![0u8; n_readers * buffer_bytes];
    let total: u64 = model.weights.placements.iter().map(Placement::file_bytes).sum();
    let done = AtomicU64::new(0);
    let (pages, bytes) = (shared.pages(), model.weights.bytes);
    let filling = pages.filling(&mut shared.bytes_mut()[..bytes]);
    with_progress(total, &done, || {
        let populate = |place: &mut [u8]| Ok(pages.populate(place)?);
        let loading = Loading {
            kernels,
            io: settings.io,
            cpus: &settings.cores,
            buffers: buffers.chunks_exact_mut(buffer_bytes).collect(),
            populate_buffer: &|_| Ok(()),
            populate: &populate,
            filling: filling.as_ref().map(|filling| filling as &dyn stage::Filling),
            meanwhile: Vec::new(),
            sha256: &settings.sha256,
            done: &done,
            source: None,
        };
        model.load(&files, &mut shared.bytes_mut()[..bytes], loading)
    })?;
    drop((filling, buffers, files, model));
    let sealed = shared.seal()?;
    let stop = sys::signal::terminations()?;
    ready(&manifest, begun.elapsed());
    if let Err(e) = sys::socket::notify_supervisor("READY=1") {
        log::warn!("the supervisor could not be told: {e}");
    }
    let served = holder.serve(&manifest, &sealed, &stop);
    let _ = sys::socket::notify_supervisor("STOPPING=1");
    served
}

#[cfg(not(feature = "progress"))]
fn with_progress<T>(_total: u64, _done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    work()
}

/// Shows a bar with GB/s on a terminal while `work` counts bytes in `done`; small loads are not worth one.
#[cfg(feature = "progress")]
fn with_progress<T>(total: u64, done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    if total < 64 * crate::units::MIB || !sys::term::is_terminal(std::io::stderr()) {
        return work();
    }
    let bar = indicatif::ProgressBar::new(total);
    let style = indicatif::ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let finished = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Without a thread to be had, it loads without a bar.
        let _ = std::thread::Builder::new().spawn_scoped(scope, || {
            while !finished.load(Ordering::Relaxed) {
                bar.set_position(done.load(Ordering::Relaxed));
                std::thread::sleep(Duration::from_millis(100));
            }
            bar.finish_and_clear();
        });
        let result = work();
        finished.store(true, Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_in_the_kv_cache_and_then_in_scratch_that_has_room_for_the_fewest() {
        let buffers = Buffers { bytes: 100, fewest: 4, most: 7 };
        for (kv_bytes, scratch_bytes, carved) in [(0, 400, 4), (99, 400, 4), (250, 200, 4), (400, 0, 4), (699, 0, 6)] {
            assert_eq!(buffers.scratch_bytes(kv_bytes), scratch_bytes, "{kv_bytes} bytes of KV cache");
            let (mut kv, mut scratch) = (vec![1; kv_bytes as usize], vec![2; scratch_bytes as usize]);
            let (mut kv, mut scratch) = (&mut kv[..], &mut scratch[..]);
            let carved_here = buffers.carve(&mut kv, &mut scratch);
            assert_eq!(carved_here.len(), carved, "{kv_bytes} bytes of KV cache");
            let from_kv = carved_here.iter().filter(|buffer| buffer[0] == 1).count();
            assert!(carved_here.iter().all(|buffer| buffer.len() == 100));
            let rest = (kv_bytes as usize - from_kv * 100, scratch_bytes as usize - (carved - from_kv) * 100);
            assert_eq!((kv.len(), scratch.len()), rest);
        }
        // No more than are of use.
        let (mut kv, mut scratch) = (vec![0; 1000], vec![0; 1000]);
        let (mut kv, mut scratch) = (&mut kv[..], &mut scratch[..]);
        assert_eq!(buffers.carve(&mut kv, &mut scratch).len(), 7);
        assert_eq!((kv.len(), scratch.len()), (300, 1000));
    }
}
