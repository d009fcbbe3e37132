//! An embedding table that stays on the disk gives the very same logits, and a file that fails there is an error.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/engine.rs"]
mod engine;

use std::fs::File;
use std::path::Path;

use brim::engine::EngineError;
use brim::error::{Error, Exit};
use brim::kernels;
use brim::load::header::ModelFiles;
use brim::model::{Embedding, Form, Model};
use cli::{Dir, golden, run};
use engine::with_embedding;

/// An untied model.
const UNTIED: &str = "llama-q4_k";

fn logits(path: &Path, embedding: Embedding) -> Vec<u32> {
    let kernels = kernels::available().last().unwrap();
    with_embedding(path, kernels, 8, embedding, |engine| {
        let prompt: Vec<u32> = (0..20).map(|i| i * 7 % 200).collect();
        let mut all: Vec<u32> = engine.feed(&prompt).unwrap().iter().map(|x| x.to_bits()).collect();
        all.extend(engine.feed(&[5]).unwrap().iter().map(|x| x.to_bits()));
        all
    })
}

#[test]
fn logits_are_the_same_bit_for_bit_and_the_region_is_smaller() {
    let path = golden(UNTIED);
    let path = Path::new(&path);
    assert!(logits(path, Embedding::InMemory) == logits(path, Embedding::InFile));
    let files = ModelFiles::open(path).unwrap();
    let bytes = |embedding| {
        let model = Model::with_embedding(&files.metadata(), files.tensors(), embedding).unwrap();
        (model.weights.embedding.form, model.weights.bytes)
    };
    let table = files.tables().find("token_embd.weight").unwrap();
    let (rows, file) = (bytes(Embedding::InMemory), bytes(Embedding::InFile));
    assert_eq!((rows.0, file.0), (Form::Rows, Form::File));
    assert_eq!(rows.1 - file.1, (table.bytes as usize).next_multiple_of(64));
}

#[test]
fn a_file_that_lost_its_table_is_an_error_and_the_context_stays() {
    let dir = Dir::new("embedding");
    let path = dir.file("m.gguf", std::fs::read(golden(UNTIED)).unwrap());
    let path = Path::new(&path);
    let kernels = kernels::available().next().unwrap();
    with_embedding(path, kernels, 8, Embedding::InFile, |engine| {
        engine.feed(&[1, 2, 3]).unwrap();
        File::options().write(true).open(path).unwrap().set_len(100).unwrap();
        let error = engine.feed(&[4, 5]).unwrap_err();
        assert!(
            matches!(error, EngineError::Embedding(failure) if failure.row == 4 && failure.errno == 0),
            "{error:?}"
        );
        assert_eq!(engine.position(), 3);
        assert_eq!(Error::from(error).exit(), Exit::Model);
    });
}

#[test]
fn the_board_says_where_it_is() {
    let dir = Dir::new("embedding-board");
    let board = dir.file("b.toml", "[memory]\nembedding = \"disk\"\n");
    let model = golden(UNTIED);
    let words = ["run", "--raw", "-p", "a b c", "-n", "8", "--temp", "0", "--ctx", "64", "-m", &model];
    let on_disk = [&words[..], &["--board", &board]].concat();
    assert_eq!(run(&words).good(), run(&on_disk).good());
    let bytes = |more: &[&str]| {
        let plan = run(&[&["plan", "--json", "-m", &model], more].concat()).json();
        let regions = plan["regions"].as_array().unwrap().clone();
        regions.iter().find(|region| region["name"] == "weights").unwrap()["bytes"].as_u64().unwrap()
    };
    assert!(bytes(&["--board", &board]) < bytes(&[]));
    // A tied table stays in memory, and that is said.
    let tied = golden("qwen3-mixed");
    let ran = run(&["plan", "-m", &tied, "--board", &board]);
    assert!(ran.stderr.contains("is also the output matrix"), "{ran:?}");
}
