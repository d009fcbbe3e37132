//! The start-up story: header, plan, reserve, load, seal, run. The only place that knows every room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cli::settings::Settings;
use crate::engine::Engine;
use crate::engine::pool::Pool;
use crate::error::{Error, Exit, Result};
use crate::kernels::{self, Kernels, KvType, Tier, Tile};
use crate::load::header::ModelFiles;
use crate::memory::{Arena, Plan, RegionName};
use crate::model::weights::Placement;
use crate::model::{Model, ModelError, Sizes, step};
use crate::tokenizer::{self, Tokenizer};
use crate::units::{Human, MIB};
use crate::{board, sys};

/// The demo model: trained for this project by `tools/demo`.
pub static DEMO: &[u8] = include_bytes!("demo/brim-demo.gguf");

/// Context without `--ctx`, if the model was trained for that much: a chat's worth, and small against the weights.
pub const CTX_DEFAULT: usize = 4096;

/// Tokens of a prefill pass without `[tile] tokens`: weights are then read and unpacked once in 256 tokens, a few percent
/// of the time their arithmetic takes; a stretch of 1,024 columns of their activations (384 KiB) stays in L2. 512 were
/// not faster.
const BATCH_DEFAULT: usize = 256;

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
}

/// The kernels the settings ask for.
///
/// # Errors
/// A tier that does not exist (exit 2) or that this CPU lacks (exit 6).
pub fn select_kernels(settings: &Settings) -> Result<&'static Kernels> {
    let tier = |name: &Option<String>| name.as_deref().map(str::parse::<Tier>).transpose();
    Ok(kernels::select(tier(&settings.isa)?, tier(&settings.isa_ceiling)?)?)
}

/// Opens the model file, or the embedded demo model.
///
/// # Errors
/// Exit 4 with what is wrong with the file.
pub fn open(model: Option<&str>) -> Result<ModelFiles> {
    match model {
        Some(path) => ModelFiles::open(path),
        None => ModelFiles::embedded("embedded demo model", DEMO),
    }
}

/// The sizes of the board, or what this CPU and its L1d suggest.
pub fn tile(settings: &Settings) -> Tile {
    // 32 rows of k_cols int8 in half of L1d: their scales and the activations take as much. (Zen 4, Q4_K_M: 67 % of the
    // peak with half, 66 with three quarters, 62 to 66 with the whole.)
    let from_cache = settings.topology.l1d_bytes as usize / 2 / 32;
    let k_cols = settings.tile.k_bytes.map_or(from_cache, |k| k as usize);
    let mut tile = Tile::default();
    if k_cols > 0 {
        tile.k_cols = (k_cols / 256 * 256).clamp(256, 1 << 16);
    }
    let bytes = |board: Option<u32>, probed: usize| board.map_or(probed, |bytes| bytes as usize);
    tile.ahead.l1_bytes = bytes(settings.tile.ahead_l1_bytes, tile.ahead.l1_bytes);
    tile.ahead.l2_bytes = bytes(settings.tile.ahead_l2_bytes, tile.ahead.l2_bytes);
    tile
}

/// Reads the headers and makes the plan. `n_logits` is how many rows of logits the command wants at once.
///
/// # Errors
/// What is wrong with the file (4), the options (2) or the CPU (6).
pub fn prepare(settings: &Settings, n_logits: usize) -> Result<Prepared> {
    let kernels = select_kernels(settings)?;
    let files = open(settings.model.as_deref())?;
    let model = Model::from_tables(&files.metadata(), files.tensors()).map_err(|e| Error::from(e).at(files.name()))?;
    let kv_type = match settings.kv_type {
        board::KvType::F16 => KvType::F16,
        board::KvType::Q8_0 => KvType::Q8_0,
    };
    step::check_kv_type(&model.config, kv_type).map_err(|e| Error::usage(e.to_string()))?;
    let wanted = settings.ctx.map_or(model.config.ctx_train.min(CTX_DEFAULT), |ctx| ctx as usize);
    if wanted == 0 || wanted > 1 << 24 {
        return Err(Error::usage(format!("--ctx {wanted}: needs 1 to 16777216 tokens")));
    }
    let ctx = wanted.next_multiple_of(16);
    let n_batch = settings.tile.tokens.map_or(BATCH_DEFAULT, |n| n as usize).clamp(1, ctx);
    let sizes = Sizes {
        n_batch,
        n_logits: n_logits.min(n_batch),
        ctx,
        kv_type,
        workers: settings.threads,
        tile: tile(settings),
    };
    let n_vocab = model.weights.n_vocab();
    let too_large = || Error::new(Exit::Memory, format!("--ctx {ctx}: the KV cache or scratch exceeds 2^64 bytes"));
    let buffers = sizes.workers * model.buffer_bytes();
    let scratch = step::scratch_bytes(&model.config, n_vocab, &sizes).ok_or_else(too_large)?;
    let source = tokenizer::source_from(&files.metadata(), settings.pre.as_deref()).map_err(|e| e.at(files.name()))?;
    let vocab = tokenizer::region_bytes(&source).map_err(|e| Error::from(e).at(files.name()))?;
    let mut plan = Plan::new(settings.page);
    plan.add(RegionName::Weights, model.weights.bytes as u64)?;
    plan.add(RegionName::Vocab, vocab)?;
    plan.add(RegionName::Kv, step::kv_bytes(&model.config, &sizes).ok_or_else(too_large)?)?;
    // The loader's buffers are the scratch region before anything else uses it.
    plan.add(RegionName::Scratch, scratch.max(buffers as u64))?;
    Ok(Prepared { files, model, sizes, plan, kernels })
}

/// A loaded model, for as long as the command runs.
pub struct Running<'a> {
    /// Tokens in, logits out.
    pub engine: Engine<'a>,
    /// Text to tokens and back.
    pub tokenizer: &'a Tokenizer<'a>,
    /// The sealed weights region, for measuring what reading it costs.
    pub weights: &'a [u8],
    /// The workers.
    pub pool: &'a Pool,
    /// How the load went.
    pub loaded: LoadReport,
}

/// How a load went.
#[derive(Clone, Copy, Debug)]
pub struct LoadReport {
    /// Bytes read.
    pub bytes: u64,
    /// Time from the first read to the last repack.
    pub elapsed: Duration,
}

/// Maps the plan, loads the model into it, seals the weights and runs `work`; everything is given back afterwards.
///
/// # Errors
/// Memory that cannot be had (5), before anything is read; a read that fails (4); what `work` returns.
pub fn run<T>(prepared: Prepared, settings: &Settings, work: impl FnOnce(Running<'_>) -> Result<T>) -> Result<T> {
    if settings.verbose {
        log::set_max_level(log::LevelFilter::Info);
    }
    let Prepared { files, model, sizes, plan, kernels } = prepared;
    let at_file = |e: Error| e.at(files.name());
    let mut arena = Arena::map(&plan, settings.keep_free_bytes)?;
    let pool = Pool::start(&settings.cores)?;
    let begun = Instant::now();
    let mut regions = arena.open();
    let source = tokenizer::source_from(&files.metadata(), settings.pre.as_deref()).map_err(at_file)?;
    let tokenizer = tokenizer::build(&source, regions.vocab).map_err(|e| at_file(e.into()))?;
    if tokenizer.n_tokens() as usize != model.weights.n_vocab() {
        let (tokens, rows) = (tokenizer.n_tokens() as usize, model.weights.n_vocab());
        return Err(at_file(ModelError::Vocabulary { tokens, rows }.into()));
    }
    let total: u64 = model.weights.placements.iter().map(Placement::file_bytes).sum();
    let buffers = sizes.workers * model.buffer_bytes();
    let done = AtomicU64::new(0);
    with_progress(total, &done, || {
        model.load(&files, regions.weights.bytes(), &pool, &mut regions.scratch[..buffers], &done)
    })?;
    let loaded = LoadReport { bytes: done.into_inner(), elapsed: begun.elapsed() };
    let weights = regions.weights.seal()?;
    log::info!(
        "{}: {} loaded in {:.2} s ({:.2} GB/s), {} pages of {}, kernels {}, {} workers",
        files.name(),
        Human(loaded.bytes),
        loaded.elapsed.as_secs_f64(),
        loaded.bytes as f64 / 1e9 / loaded.elapsed.as_secs_f64(),
        plan.total_pages(),
        plan.page(),
        kernels.tier().name(),
        sizes.workers
    );
    // The headers have been read into the vocabulary region; the heap copy is not needed any more.
    drop(files);
    let engine = Engine::new(&model, kernels, &pool, sizes, (weights, regions.kv, regions.scratch));
    work(Running { engine, tokenizer: &tokenizer, weights, pool: &pool, loaded })
}

/// Shows a bar with GB/s on a terminal while `work` counts bytes in `done`; small loads are not worth one.
fn with_progress<T>(total: u64, done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    if total < 64 * MIB || !sys::term::is_terminal(std::io::stderr()) {
        return work();
    }
    let bar = indicatif::ProgressBar::new(total);
    let style = indicatif::ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
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
