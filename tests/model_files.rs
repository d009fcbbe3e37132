//! A model's files on disk: split sets, large headers, and files that are not models at all.

#[path = "common/gguf.rs"]
mod writer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use brim::error::Exit;
use brim::load::header::ModelFiles;
use brim::model::Model;
use writer::Gguf;

/// A directory of its own for one test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brim-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the directory for temporary files is writable");
        Dir(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("the test's directory is writable");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn part(no: u32, name: &str) -> Vec<u8> {
    let split = Gguf::new().u32("split.no", no).u32("split.count", 2).u32("split.tensors.count", 2);
    split.tensor(name, &[8], 0, &[no as u8 + 1; 32]).build()
}

#[test]
fn a_split_set_is_opened_by_its_first_file() {
    let dir = Dir::new("split");
    let first = dir.write("m-00001-of-00002.gguf", &part(0, "a"));
    let error = ModelFiles::open(&first).unwrap_err();
    assert_eq!(error.exit(), Exit::Model);
    assert!(error.to_string().contains("file 2 of 2 of the split set"), "{error}");
    let second = dir.write("m-00002-of-00002.gguf", &part(1, "b"));
    let model = ModelFiles::open(&first).unwrap();
    let b = model.tables().find("b").unwrap();
    let mut data = [0; 32];
    model.read_at(b.file, b.offset, &mut data).unwrap();
    assert_eq!((b.file, data, model.len()), (1, [2; 32], 2));
    assert!(ModelFiles::open(second).unwrap_err().to_string().contains("give the first one"));
    let renamed = dir.write("model.gguf", &part(0, "a"));
    assert!(ModelFiles::open(renamed).unwrap_err().to_string().contains("original names"));
}

#[test]
fn a_header_of_many_megabytes_is_read_whole() {
    let dir = Dir::new("header");
    let words = vec!["abcdefgh"; 400_000];
    let file = Gguf::new().strings("tokens", &words).tensor("t", &[8], 0, &[7; 32]);
    let model = ModelFiles::open(dir.write("m.gguf", &file.build())).unwrap();
    assert_eq!(model.metadata().required_strings("tokens").unwrap().len(), words.len());
    let mut beyond = [0; 64];
    let error = model.read_at(0, model.file_bytes(0) - 8, &mut beyond).unwrap_err();
    assert!(error.to_string().contains("wanted 64 bytes") && error.to_string().contains("got 8"), "{error}");
}

#[test]
fn a_header_beyond_the_limit_and_a_large_file_of_zeros_are_refused() {
    let dir = Dir::new("large");
    let claim = Gguf::new().array("k", 0, 100 << 20, &[]).header();
    let path = dir.write("claim.gguf", &claim);
    File::options().write(true).open(&path).unwrap().set_len(200 << 20).unwrap();
    assert!(ModelFiles::open(path).unwrap_err().to_string().contains("the limit is 67108864"));
    let zeros = dir.write("zeros.gguf", &[]);
    File::options().write(true).open(&zeros).unwrap().set_len(300 << 20).unwrap();
    assert!(ModelFiles::open(zeros).unwrap_err().to_string().contains("starts with zeros"));
}

#[test]
fn a_layer_without_nextn_tensors_is_not_left_out() {
    let golden = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
        fs::read(path).expect("the golden is there")
    };
    let read = |bytes: Vec<u8>| {
        let files = ModelFiles::embedded("file", Box::leak(bytes.into_boxed_slice())).unwrap();
        Model::from_tables(&files.metadata(), files.tensors()).map(|model| model.config.n_layers())
    };
    let predicting = golden("glm4-nextn-f32.gguf");
    assert_eq!(read(predicting.clone()).unwrap(), 2);
    let ordinary = writer::with_keys(&golden("glm4-f32.gguf"), &[("glm4.nextn_predict_layers", 4, vec![1, 0, 0, 0])]);
    let error = read(ordinary).unwrap_err().to_string();
    assert!(error.contains("nextn_predict_layers is 1") && error.contains("no `nextn` tensor"), "{error}");
}

#[test]
fn special_tokens_that_are_not_there_are_none() {
    let file = Gguf::new()
        .str("tokenizer.ggml.model", "gpt2")
        .strings("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 3)
        .u32("tokenizer.ggml.padding_token_id", u32::MAX)
        .raw(b"tokenizer.ggml.eom_token_id", 5, &(-1i32).to_le_bytes())
        .tensor("t", &[8], 0, &[7; 32]);
    let files = ModelFiles::embedded("file", Box::leak(file.build().into_boxed_slice())).unwrap();
    let source = brim::tokenizer::source_from(&files.metadata(), None).unwrap();
    assert_eq!((source.bos, source.eos, source.pad, source.eom), (Some(2), None, None, None));
    let said = brim::tokenizer::stray_ids(&files.metadata());
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("eos_token_id") && said[0].contains("is 3") && said[0].contains("3 tokens"), "{said:?}");
}
