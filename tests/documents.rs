//! What the documents name is there: files, functions, architectures, tiers. A name that has changed in the code and not in
//! its description is found here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use brim::kernels::Tier;
use brim::model::Architecture;

const DOCUMENTS: [&str; 7] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "src/README.md",
    "tools/README.md",
    "tests/golden/README.md",
];

/// Folders whose files may be named.
const FOLDERS: [&str; 4] = ["src", "tests", "tools", "boards"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

fn all_files() -> Vec<PathBuf> {
    let mut all = Vec::new();
    FOLDERS.iter().for_each(|folder| files(&root().join(folder), &mut all));
    all.extend(["Cargo.toml", "clippy.toml", "rustfmt.toml", "rust-toolchain.toml"].map(|name| root().join(name)));
    all.extend(DOCUMENTS.map(|name| root().join(name)));
    all
}

/// A document without its blocks of code.
fn prose(document: &str) -> String {
    let text = fs::read_to_string(root().join(document)).unwrap();
    text.split("```").step_by(2).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('`').skip(1).step_by(2).map(|quoted| quoted.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A path to a file, without a part that stands for any name.
fn is_file_name(word: &str) -> bool {
    let is_path = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let stands_for_any = ["NAME", "FAMILY", "MODEL", "FILE"].iter().any(|any| word.contains(any));
    is_path && !stands_for_any && [".rs", ".py", ".toml", ".md", ".mjs"].iter().any(|end| word.ends_with(end))
}

/// Documents and the files they name that are not there.
fn missing_files(text: &str, all: &[PathBuf]) -> Vec<String> {
    let named = quoted(text).filter(|word| is_file_name(word));
    named.filter(|name| !all.iter().any(|path| path.ends_with(name.trim_start_matches("./")))).collect()
}

/// The last part of a path of Rust names, as of `Model::load`, `fields::parse`, `tier!` and `answer(..)`.
fn rust_name(word: &str) -> Option<&str> {
    let path = word.split_once('(').map_or(word, |(path, _)| path).trim_end_matches('!');
    let is_name = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    path.split("::").all(is_name).then(|| path.rsplit("::").next().unwrap_or(path))
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next()))
}

fn missing_names(text: &str, sources: &str) -> Vec<String> {
    let words: Vec<String> = quoted(text).collect();
    let names = words.iter().filter_map(|word| rust_name(word));
    names.filter(|name| name.len() > 1 && !has_word(sources, name)).map(str::to_owned).collect()
}

#[test]
fn files_that_are_named_exist() {
    let all = all_files();
    for document in DOCUMENTS {
        let missing = missing_files(&prose(document), &all);
        assert!(missing.is_empty(), "{document} names {missing:?}");
    }
}

#[test]
fn links_lead_somewhere() {
    for document in DOCUMENTS {
        let dir = root().join(document);
        let text = prose(document);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://")) {
            assert!(dir.parent().unwrap().join(link).exists(), "{document} links to {link}");
        }
    }
}

#[test]
fn what_the_walks_and_the_how_tos_name_is_in_the_code() {
    let mut all = Vec::new();
    files(&root().join("src"), &mut all);
    files(&root().join("tests"), &mut all);
    all.retain(|path| path.extension().is_some_and(|end| end == "rs"));
    let mut sources: String = all.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for tool in ["ggml.py", "goldens_quant.py", "tiny_models.py", "truth.py"] {
        sources += &fs::read_to_string(root().join("tools").join(tool)).unwrap();
    }
    let missing = missing_names(&prose("src/README.md"), &sources);
    assert!(missing.is_empty(), "src/README.md names {missing:?}");
}

#[test]
fn readme_has_every_architecture_and_every_tier() {
    let readme = prose("README.md");
    let named: Vec<String> = quoted(&readme).collect();
    let architectures = Architecture::all().map(|architecture| architecture.name);
    for name in architectures.chain(Tier::ALL.map(Tier::name)) {
        assert!(named.iter().any(|quoted| quoted == name), "README.md lacks `{name}`");
    }
}

#[test]
fn a_name_that_is_gone_is_found() {
    let all = [root().join("src/model/mod.rs")];
    let text = "`model/mod.rs` and `model/gone.rs`, `architectures/NAME.rs`, `MODEL.gguf`";
    assert_eq!(missing_files(text, &all), ["model/gone.rs"]);
    let text = "`Model::load` calls `read(..)`, `tier!` and `gone`; `--flag`, `a b`";
    assert_eq!(missing_names(text, "fn load() { read(); ungone(); } macro_rules! tier"), ["gone"]);
}
