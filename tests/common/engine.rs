//! An engine over a model file in ordinary memory.
#![allow(dead_code)]

use std::path::Path;

use brim::engine::{Core, DRAFT_MAX, Engine, pass_sizes, scheduler_bytes};
use brim::kernels::{Kernels, KvType, Team, Tile};
use brim::load::Io;
use brim::load::header::ModelFiles;
use brim::load::weights::Loading;
use brim::model::{CachePlan, Embedding, Model, Sizes, step};
use brim::workers::Workers;

/// Loads a model and hands its engine to `work`.
pub fn with_engine<R>(
    path: &Path,
    kernels: &'static Kernels,
    n_batch: usize,
    work: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    with_embedding(path, kernels, n_batch, Embedding::InMemory, work)
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

/// The same, with room for as many drafted tokens as a pass can have, and with the embedding table where `embedding` says.
pub fn for_drafts<R>(
    path: &Path,
    kernels: &'static Kernels,
    embedding: Embedding,
    (slots, kv_tokens): (usize, usize),
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    own(path, kernels, (128, embedding, Some((slots, kv_tokens, DRAFT_MAX))), work)
}

fn own<R>(
    path: &Path,
    kernels: &'static Kernels,
    (n_batch, embedding, serving): (usize, Embedding, Option<(usize, usize, usize)>),
    work: impl FnOnce(Core<'_>) -> R,
) -> R {
    let files = ModelFiles::open(path).unwrap();
    let model = Model::with_embedding(&files.metadata(), files.tensors(), embedding).unwrap();
    let pool = Workers::start(&brim::sys::cpu::allowed().unwrap()).unwrap();
    let (slots, kv_tokens, _) = serving.unwrap_or((1, 512, 0));
    let (n_batch, n_logits) = match serving {
        Some((slots, _, drafts)) => pass_sizes(n_batch, slots, drafts),
        None => (n_batch, 8.min(n_batch)),
    };
    let sizes = Sizes {
        n_batch,
        n_logits,
        ctx: 512,
        sequences: slots,
        kv_tokens,
        kv_type: KvType::F16,
        workers: pool.size(),
        tile: Tile { k_cols: 256, ..Tile::default() },
    };
    let n_vocab = model.weights.n_vocab();
    let scratch_bytes = step::scratch_bytes(&model.config, n_vocab, &sizes).unwrap()
        + serving.map_or(0, |_| scheduler_bytes(&model.config, n_vocab, &sizes));
    let scratch_bytes = scratch_bytes as usize;
    let readers = 3;
    let buffers = model.buffer_bytes(readers) * readers;
    let words = |bytes: usize| vec![0f64; bytes.div_ceil(8)];
    let mut weights = words(model.weights.bytes);
    let mut kv = words(CachePlan::new(&model.config, &sizes).bytes().unwrap() as usize);
    let mut scratch = words(scratch_bytes.max(buffers));
    let bytes = brim::bytes::words_as_bytes;
    let loading = Loading {
        kernels,
        io: Io::Auto,
        cpus: &[],
        buffers: bytes(&mut scratch)[..buffers].chunks_exact_mut(buffers / readers).collect(),
        populate_buffer: &|_| Ok(()),
        populate: &|_| Ok(()),
        filling: None,
        meanwhile: Vec::new(),
        sha256: &[],
        done: &Default::default(),
        source: None,
    };
    model.load(&files, bytes(&mut weights), loading).unwrap();
    let regions = (&*bytes(&mut weights), bytes(&mut kv), bytes(&mut scratch));
    let rows = model.embedding_rows(&files).unwrap();
    work(Core::new(&model, kernels, &pool, sizes, regions, rows))
}
