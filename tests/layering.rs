//! Imports point down only: reads `src/` and fails when a room names one above it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

/// Each room, and the rooms it may import, which stand above it in this list; `*`: all of those.
const ROOMS: [(&str, &[&str]); 20] = [
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
    ("settings", &["board", "load", "memory", "kernels", "sys", "error"]),
    ("model", &["load", "kernels", "gguf", "quant", "memory", "bytes", "units", "error"]),
    ("engine", &["model", "load", "kernels", "memory", "sampling", "sys", "bytes", "error"]),
    ("serve", &["engine", "chat", "tokenizer", "sampling", "board", "load", "sys", "error"]),
    (
        "boot",
        &[
            "settings",
            "engine",
            "model",
            "load",
            "memory",
            "tokenizer",
            "workers",
            "board",
            "kernels",
            "sys",
            "units",
            "error",
        ],
    ),
    ("cli", &["*"]),
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

/// The words after `from` that a path or a brace list, nested or over several lines, begins with.
fn first_words(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(list) = code.strip_prefix('{') else { return vec![word(code)] };
    let (mut words, mut depth, mut is_start) = (Vec::new(), 1, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => is_start = true,
            c if is_start && depth == 1 && !c.is_whitespace() => {
                words.push(word(&list[at..]));
                is_start = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    words
}

/// Rooms that code names as `crate::room` or as `super::..::room`. `depth` is how deep in the tree of modules the file is:
/// 1 is a room.
fn named(text: &str, depth: usize) -> Vec<String> {
    let without_comments = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let mut rooms = Vec::new();
    // In a module inside the file, such as its tests, `super` is the file itself.
    let (mut depth, mut outer, mut inner) = (depth, Vec::new(), Vec::new());
    for line in text.lines() {
        let is_module = line.starts_with("mod ") && line.ends_with('{');
        if is_module || !inner.is_empty() {
            inner.push(without_comments(line))
        } else {
            outer.push(without_comments(line))
        }
    }
    for code in [outer.join("\n"), inner.join("\n")] {
        for (at, _) in code.match_indices("crate::") {
            rooms.extend(first_words(&code[at + "crate::".len()..]));
        }
        let begins = |at: usize| !code[..at].ends_with("super::") && !code[..at].ends_with("self::");
        for (at, _) in code.match_indices("super::").filter(|(at, _)| begins(*at)) {
            let rest = code[at..].trim_start_matches("super::");
            if (code[at..].len() - rest.len()) / "super::".len() == depth {
                rooms.extend(first_words(rest));
            }
        }
        depth += 1;
    }
    rooms
}

fn may_import(allowed: &[&str], name: &str) -> bool {
    allowed == ["*"] || allowed.contains(&name)
}

fn offences(room: &str, allowed: &[&str], (text, depth): (&str, usize)) -> Vec<String> {
    let foreign =
        |name: &String| ROOMS.iter().any(|(other, _)| other == name) && name != room && !may_import(allowed, name);
    named(text, depth).into_iter().filter(foreign).collect()
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
            let text = std::fs::read_to_string(&file).unwrap();
            let inside = file.strip_prefix(&src).unwrap();
            let depth = inside.components().count() - usize::from(inside.ends_with("mod.rs"));
            let found = offences(room, allowed, (&text, depth));
            assert!(found.is_empty(), "{} imports {found:?}; {room} may import {allowed:?}", file.display());
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} files were found");
}

#[test]
fn every_room_is_in_the_list_and_stands_below_those_that_import_it() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rooms: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(rooms.len(), ROOMS.len());
    for (i, (room, allowed)) in ROOMS.iter().enumerate() {
        assert!(rooms.contains(room), "{room} is not a room");
        let is_below = |name: &&str| ROOMS[..i].iter().any(|(below, _)| below == name);
        let is_last = *allowed == ["*"] && i + 1 == ROOMS.len();
        assert!(is_last || allowed.iter().all(is_below), "{room} may import {allowed:?}, which are not all below it");
    }
}

#[test]
fn an_upward_import_is_found() {
    let found = |text: &str, depth| offences("quant", &[], (text, depth));
    assert_eq!(found("use crate::engine::Pool;", 2), ["engine"]);
    assert_eq!(found("use crate::{model, units};", 2), ["model", "units"]);
    assert_eq!(found("use crate::{\n    model::{Arch, boot},\n    cli,\n};", 2), ["model", "cli"]);
    assert_eq!(found("use super::super::serve;\nuse super::model;", 2), ["serve"]);
    assert_eq!(found("use super::{\n    serve,\n};", 1), ["serve"]);
    assert_eq!(found("mod tests {\n    use super::serve;\n    use super::super::super::load;", 2), ["load"]);
    assert!(found("// crate::engine\nuse crate::quant::types;", 2).is_empty());
}
