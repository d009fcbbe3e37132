//! An engine over a model file in ordinary memory.

use std::path::Path;

use brim::engine::Engine;
use brim::engine::pool::Pool;
use brim::kernels::{Kernels, KvType, Team, Tile};
use brim::load::header::ModelFiles;
use brim::model::{Model, Sizes, step};

/// Loads a model and hands its engine to `work`.
pub fn with_engine<R>(
    path: &Path,
    kernels: &'static Kernels,
    n_batch: usize,
    work: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    let files = ModelFiles::open(path).unwrap();
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    let pool = Pool::start(&brim::sys::cpu::allowed().unwrap()).unwrap();
    let sizes = Sizes {
        n_batch,
        n_logits: 8.min(n_batch),
        ctx: 512,
        kv_type: KvType::F16,
        workers: pool.size(),
        tile: Tile { k_cols: 256, ..Tile::default() },
    };
    let scratch_bytes = step::scratch_bytes(&model.config, model.weights.n_vocab(), &sizes).unwrap() as usize;
    let buffers = model.buffer_bytes() * pool.size();
    let words = |bytes: usize| vec![0f64; bytes.div_ceil(8)];
    let mut weights = words(model.weights.bytes);
    let mut kv = words(step::kv_bytes(&model.config, &sizes).unwrap() as usize);
    let mut scratch = words(scratch_bytes.max(buffers));
    let bytes = brim::bytes::words_as_bytes;
    model.load(&files, bytes(&mut weights), &pool, &mut bytes(&mut scratch)[..buffers], &Default::default()).unwrap();
    let regions = (&*bytes(&mut weights), bytes(&mut kv), bytes(&mut scratch));
    work(&mut Engine::new(&model, kernels, &pool, sizes, regions))
}
