//! Imports point down only: reads `src/` and fails when a room names one above it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

/// Each room, and the rooms it may import. `boot` knows everybody but the commands; `cli` knows everybody.
const ROOMS: [(&str, &[&str]); 17] = [
    ("error", &[]),
    ("units", &[]),
    ("bytes", &[]),
    ("sys", &["error"]),
    ("quant", &["bytes", "error"]),
    ("gguf", &["quant", "bytes", "units", "error"]),
    ("kernels", &["quant", "bytes", "error"]),
    ("workers", &["kernels", "sys", "error"]),
    ("board", &["kernels", "error"]),
    ("memory", &["sys", "bytes", "units", "error"]),
    ("tokenizer", &["gguf", "bytes", "units", "error"]),
    ("sampling", &["error"]),
    ("chat", &["error"]),
    ("load", &["kernels", "gguf", "quant", "sys", "bytes", "units", "error"]),
    ("model", &["load", "kernels", "gguf", "quant", "memory", "bytes", "units", "error"]),
    ("engine", &["model", "load", "kernels", "memory", "sampling", "sys", "bytes", "error"]),
    ("serve", &["engine", "chat", "tokenizer", "sampling", "board", "load", "sys", "error"]),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Rooms that a line of code names as `crate::room`, alone or in a brace list.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + 7..];
        let word =
            |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            Some(list) => rooms.extend(list.split(',').map(word)),
            None => rooms.push(word(rest)),
        }
    }
    rooms
}

fn offences(room: &str, allowed: &[&str], text: &str) -> Vec<String> {
    let all: Vec<&str> = ROOMS.iter().map(|(r, _)| *r).chain(["boot", "cli"]).collect();
    let foreign = |name: &String| all.contains(&name.as_str()) && name != room && !allowed.contains(&name.as_str());
    text.lines().flat_map(named).filter(foreign).collect()
}

#[test]
fn rooms_import_only_rooms_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (room, allowed) in ROOMS {
        let mut files = Vec::new();
        match src.join(room).is_dir() {
            true => sources(&src.join(room), &mut files),
            false => files.push(src.join(format!("{room}.rs"))),
        }
        for file in files {
            let found = offences(room, allowed, &std::fs::read_to_string(&file).unwrap());
            assert!(found.is_empty(), "{} imports {found:?}; {room} may import {allowed:?}", file.display());
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} files were found");
}

#[test]
fn an_upward_import_is_found() {
    assert_eq!(offences("quant", &[], "use crate::engine::Pool;"), ["engine"]);
    assert_eq!(offences("quant", &[], "use crate::{model, units};"), ["model", "units"]);
    assert!(offences("quant", &[], "// crate::engine\nuse crate::quant::types;").is_empty());
}
