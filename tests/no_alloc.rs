//! No heap allocation after Ready: prefill, 64 decode steps and a refused request, on every tier. Its own binary without
//! the test harness, so that worker threads count and nothing else does.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on has failed; it has no harness")]

mod common;

use std::path::Path;

use brim::kernels;
use brim::model::Embedding;
use brim::sys::alloc;
use common::engine::with_embedding;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

fn main() {
    let before = alloc::calls();
    std::hint::black_box(vec![0u8; 100]);
    assert!(alloc::calls() > before, "the counter does not count");
    let models_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let models = ["qwen3-mixed.gguf", "qwen3moe-q4_k.gguf", "gpt-oss-f32.gguf", "gemma3-f32.gguf", "llama-q4_k.gguf"];
    let models = models.map(|name| models_dir.join(name));
    let cases = models.iter().flat_map(|path| kernels::available().map(move |kernels| (path, kernels)));
    // The last model is untied: its embedding table can stay in the file.
    let mut n_cases = 0;
    for ((path, kernels), embedding) in
        cases.flat_map(|case| [Embedding::InMemory, Embedding::InFile].map(|embedding| (case, embedding)))
    {
        n_cases += 1;
        with_embedding(path, kernels, 32, embedding, |engine| {
            let prompt: Vec<u32> = (0..100).map(|i| i % 200).collect();
            let too_long = vec![1u32; engine.ctx() + 1];
            let before = alloc::calls();
            engine.feed(&prompt).unwrap();
            let mut token = [7u32];
            for _ in 0..64 {
                let logits = engine.feed(&token).unwrap();
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                token[0] = best.unwrap() as u32;
            }
            assert!(engine.feed(&too_long).is_err());
            let made = alloc::calls() - before;
            let name = path.file_stem();
            assert_eq!(made, 0, "{made} allocations after Ready on {kernels:?}, {name:?}");
            println!("no_alloc {kernels:?} {name:?}: 0 allocations in a prefill of 100 tokens and 64 decode steps");
        });
    }
    println!("test result: ok. {} passed; 0 failed", n_cases);
}
