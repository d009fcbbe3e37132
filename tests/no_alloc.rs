//! No heap allocation after Ready: prefill, 64 decode steps and a refused request, on every tier, with weights of its own
//! and with those of a holder. Its own binary without the test harness, so that worker threads count and nothing else does.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on has failed; it has no harness")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use brim::boot;
use brim::cli::ModelArgs;
use brim::cli::settings::Settings;
use brim::engine::Engine;
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
        let name = format!("{kernels:?} {:?} {embedding:?}", path.file_stem());
        with_embedding(path, kernels, 32, embedding, |engine| allocates_nothing(engine, &name));
    }
    for path in &models {
        n_cases += 1;
        resident(path);
    }
    println!("test result: ok. {} passed; 0 failed", n_cases);
}

/// Prefill, decode and a refusal.
fn allocates_nothing(engine: &mut Engine<'_>, name: &str) {
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
    assert_eq!(made, 0, "{made} allocations after Ready on {name}");
    println!("no_alloc {name}: 0 allocations in a prefill of 100 tokens and 64 decode steps");
}

/// The same with weights that a holder keeps, started as `run --resident` would start.
fn resident(path: &Path) {
    let socket = std::env::temp_dir().join(format!("brim-no-alloc-{}.sock", std::process::id()));
    let mut holder = Command::new(env!("CARGO_BIN_EXE_brim"));
    holder.args(["hold", "-m"]).arg(path).arg("--socket").arg(&socket).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready: "), "{line:?}");
    let args = ModelArgs {
        model: Some(path.to_str().unwrap().to_owned()),
        ctx: Some("512".to_owned()),
        ..ModelArgs::default()
    };
    let mut settings = Settings::resolve(&args).unwrap();
    settings.resident = Some(socket.clone());
    let prepared = boot::prepare(&settings, 1).unwrap();
    let name = format!("{:?} {:?} resident", prepared.kernels, path.file_stem());
    boot::run(prepared, &settings, |mut running| {
        allocates_nothing(&mut running.engine, &name);
        Ok(())
    })
    .unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let _ = std::fs::remove_file(socket);
}
