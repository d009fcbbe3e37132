//! An engine over a model file in ordinary memory, started as every command starts one.
#![allow(dead_code)]

use std::path::Path;

use brim::board;
use brim::boot::{Foundations, Headers, Serving, Workload, map_all, plan_all};
use brim::engine::{Core, DRAFT_MAX, Engine};
use brim::kernels::{Kernels, KvType};
use brim::load::Progress;
use brim::model::Embedding;
use brim::settings::{KvChoice, Overrides, Settings};
use brim::sys::cpu::Topology;

/// Loads a model and hands its engine to `work`.
pub fn with_engine<R>(
    path: &Path,
    kernels: &'static Kernels,
    n_batch: usize,
    work: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    with_embedding(path, kernels, n_batch, Embedding::InMemory, work)
}

/// The same, with the KV cache in `kv_type`.
pub fn with_cache<R>(
    path: &Path,
    kernels: &'static Kernels,
    (n_batch, kv_type): (usize, KvType),
    work: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    let mut settings = settings(path, kernels, n_batch);
    settings.kv_type = KvChoice::Type(kv_type);
    start(&settings, &Workload { n_logits: 8, ..Workload::default() }, |core| work(&mut Engine::new(core)))
}

/// The same, with the embedding table of an untied model where `embedding` says.
pub fn with_embedding<R>(
    path: &Path,
    kernels: &'static Kernels,
    n_batch: usize,
    embedding: Embedding,
    work: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    own(path, kernels, (n_batch, embedding, None), |core| work(&mut Engine::new(core)))
}

/// A core for a scheduler of so many slots, over a KV cache of so many tokens, of chunks of 128.
pub fn for_scheduler<R>(
    path: &Path,
    kernels: &'static Kernels,
    slots: usize,
    kv_tokens: usize,
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    own(path, kernels, (128, Embedding::InMemory, Some((slots, kv_tokens, 0))), work)
}

/// The same of two models whose passes share one team.
pub fn for_two_schedulers<R>(
    paths: [&Path; 2],
    kernels: &'static Kernels,
    (slots, kv_tokens): (usize, usize),
    work: impl FnOnce([Core<'_>; 2]) -> R,
) -> R {
    let [one, other] = paths.map(|path| settings(path, kernels, 128));
    let serving = Serving { slots: Some(slots), kv_tokens: Some(kv_tokens), drafts: 0 };
    let plan = |settings| (Headers::read(settings).unwrap(), serving.into());
    let mut mapped = map_all(plan_all(vec![plan(&one), plan(&other)]).unwrap()).unwrap();
    let (other, one) = (mapped.pop().unwrap(), mapped.pop().unwrap());
    let (progress, mut base) = (Progress::default(), Foundations::default());
    let one = one.start(&mut base, &progress).unwrap();
    let mut beside = Foundations::sharing(one.workers);
    let other = other.start(&mut beside, &progress).unwrap();
    work([one.core, other.core])
}

/// As [`for_scheduler`], with room for as many drafted tokens as a pass can have, and with the embedding table where `embedding` says.
pub fn for_drafts<R>(
    path: &Path,
    kernels: &'static Kernels,
    embedding: Embedding,
    (slots, kv_tokens): (usize, usize),
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    own(path, kernels, (128, embedding, Some((slots, kv_tokens, DRAFT_MAX))), work)
}

/// A core for a scheduler of so many slots, or for an engine, with a context of `ctx` tokens for each sequence and so many
/// checkpoints.
pub fn for_checkpoints<R>(
    path: &Path,
    kernels: &'static Kernels,
    (slots, ctx): (Option<usize>, u32),
    checkpoints: usize,
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    let mut settings = settings(path, kernels, 128);
    settings.ctx = Some(board::Ctx::Tokens(ctx));
    let serving = slots.map(|slots| Serving { slots: Some(slots), kv_tokens: None, drafts: 0 });
    start(&settings, &Workload { checkpoints: Some(checkpoints), serving, ..Workload::default() }, work)
}

/// The settings of a test: no environment and no board speak, every CPU has a worker.
pub fn settings(path: &Path, kernels: &'static Kernels, n_batch: usize) -> Settings {
    let topology = Topology::probe().unwrap();
    let overrides = Overrides {
        model: Some(path.to_str().unwrap().to_owned()),
        isa: Some(kernels.tier().name().to_owned()),
        ctx: Some("512".to_owned()),
        threads: u32::try_from(topology.cpus.len()).ok(),
        ..Overrides::default()
    };
    let mut settings = Settings::resolve_in(&overrides, &|_| None, topology).unwrap();
    settings.board.tile.tokens = u32::try_from(n_batch).ok();
    settings.board.tile.k_bytes = Some(256);
    settings
}

fn own<R>(
    path: &Path,
    kernels: &'static Kernels,
    (n_batch, embedding, serving): (usize, Embedding, Option<(usize, usize, usize)>),
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    let mut settings = settings(path, kernels, n_batch);
    let serving =
        serving.map(|(slots, kv_tokens, drafts)| Serving { slots: Some(slots), kv_tokens: Some(kv_tokens), drafts });
    if embedding == Embedding::InFile {
        settings.board.memory.embedding = board::EmbeddingPlace::Disk;
    }
    start(&settings, &Workload { n_logits: 8, serving, ..Workload::default() }, work)
}

fn start<R>(settings: &Settings, workload: &Workload, work: impl FnOnce(Core<'_>) -> R) -> R {
    let planned = Headers::read(settings).unwrap().plan(workload);
    let mut base = Foundations::default();
    let running = planned.unwrap().map().unwrap().start(&mut base, &Progress::default()).unwrap();
    work(running.core)
}
