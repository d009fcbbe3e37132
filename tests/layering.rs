//! Imports point down only, from room to room, and in no circle from file to file: reads `src/` and fails on anything else.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/imports.rs"]
mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use imports::{Arrow, arrows};

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
    ("chat", &["sys", "error"]),
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

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The files of `src/`, each with its text.
fn sources() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    files_below(&src, &mut files);
    let name = |file: &Path| file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
    files.iter().map(|file| (name(file), std::fs::read_to_string(file).unwrap())).collect()
}

/// The room of a file.
fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Arrows from a room to one that it may not import.
fn upward(arrows: &[Arrow]) -> Vec<String> {
    let may_import = |from: &str, to: &str| {
        let allowed = ROOMS.iter().find(|(room, _)| *room == from).map_or(&[][..], |(_, allowed)| allowed);
        from == to || allowed == ["*"] || allowed.contains(&to)
    };
    let is_upward = |arrow: &&Arrow| {
        let is_room = ROOMS.iter().any(|(room, _)| arrow.path.first().is_some_and(|first| first == room));
        is_room && !may_import(room_of(&arrow.from), &arrow.path[0])
    };
    let text = |arrow: &Arrow| format!("{} -> {}", arrow.from, arrow.path.join("::"));
    arrows.iter().filter(is_upward).map(text).collect()
}

/// What each file imports. Tests do not count, nor does what a module only hands on from inside it.
fn graph(arrows: &[Arrow]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in arrows.iter().filter(|arrow| !arrow.in_tests && !arrow.is_facade) {
        imports.entry(&arrow.from).or_default().extend(arrow.to.as_deref());
    }
    imports
}

/// Whether `from` imports `to`, directly or through others.
fn leads<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str, to: &str) -> bool {
    let (mut found, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(file) = left.pop() {
        left.extend(imports.get(file).into_iter().flatten().filter(|next| found.insert(**next)));
    }
    found.contains(to)
}

/// The imports that lie in a circle of files.
fn circles(arrows: &[Arrow]) -> Vec<String> {
    let imports = graph(arrows);
    let pairs = imports.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (*from, *to)));
    let text = |(from, to)| format!("{from} -> {to}");
    pairs.filter(|(from, to)| leads(&imports, to, from)).map(text).collect()
}

#[test]
fn rooms_import_only_rooms_below() {
    let found = upward(&arrows(&sources()));
    assert!(found.is_empty(), "a room imports one that ROOMS does not allow it:\n{}", found.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    assert!(sources.len() > 200, "only {} files were found", sources.len());
    let found = circles(&arrows(&sources));
    assert!(found.is_empty(), "files import each other in a circle:\n{}", found.join("\n"));
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

/// Sources of a made-up crate: path and text.
fn made_up(files: &[(&str, &str)]) -> Vec<Arrow> {
    let root = [("lib.rs", "")];
    let files: Vec<_> = root.iter().chain(files).map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
    arrows(&files)
}

#[test]
fn an_upward_import_is_found_however_it_is_written() {
    let found = |file: &str, text: &str| upward(&made_up(&[(file, text)]));
    for (file, text, path) in [
        ("quant/types.rs", "use crate::engine::Pool;", "engine::Pool"),
        ("quant/types.rs", "use crate::{\n    error,\n    model::{\n        Config,\n    },\n};", "model::Config"),
        ("quant/types.rs", "use super::super::serve::{self};", "serve"),
        ("quant/mod.rs", "use super::{\n    cli as commands,\n};", "cli"),
        ("quant/types.rs", "fn f() -> u8 { 0..super::super::boot::MAX }", "boot::MAX"),
        ("quant/types.rs", "#[derive(A)] struct S<'a>(&'a crate::settings::Settings);", "settings::Settings"),
        ("quant/types.rs", "mod tests { use super::super::super::load::{Io}; }", "load::Io"),
        ("quant/types.rs", "#[cfg(test)] mod tests { use crate::gguf::parse; }", "gguf::parse"),
        ("boot/plan.rs", "use crate::cli::plan;", "cli::plan"),
        ("settings/mod.rs", "macro_rules! m { () => { $crate::boot::start() } }", "boot::start"),
    ] {
        assert_eq!(found(file, text), [format!("{file} -> {path}")], "{text}");
    }
    for text in [
        "// crate::engine\n/* crate::model /* nested */ crate::load */ use crate::quant::Type;",
        "const A: &str = \"crate::engine\"; const B: &str = r#\"\"crate::engine\"#; const C: char = '\"';",
        "use super::engine::Pool; use std::boot::X; fn f<'a>(x: &'a str) { x.cli::<u8>() } use crate::error::Error;",
    ] {
        assert!(found("quant/types.rs", text).is_empty(), "{text}");
    }
}

#[test]
fn a_circle_is_found_through_re_exports_and_modules() {
    let facade = ("a/mod.rs", "mod x;\nmod y;\npub use x::{X, old as new};\npub use y::Y;");
    let used = ("a/mod.rs", "mod x;\nmod y;\npub use x::X;\npub struct Top(X);");
    let inline = ("a/y.rs", "pub struct Y; fn f() { crate::a::new() }");
    let both = ["a/x.rs -> a/y.rs", "a/y.rs -> a/x.rs"];
    for (files, want) in [
        ([facade, ("a/x.rs", "use super::Y; pub struct X; pub fn old() {}"), inline], both),
        ([facade, ("a/x.rs", "use super::{\n    y,\n}; fn f() { y::Y } pub fn old() {}"), inline], both),
        ([facade, ("a/x.rs", "fn f(y: super::y::Y) {} pub fn old() {}"), inline], both),
        ([facade, ("a/x.rs", "use super::*; fn f() -> Y {} pub fn old() {}"), inline], both),
        ([used, ("a/x.rs", "use super::Top; pub struct X;"), inline], ["a/mod.rs -> a/x.rs", "a/x.rs -> a/mod.rs"]),
    ] {
        assert_eq!(circles(&made_up(&files)), want, "{files:?}");
    }
    // A circle of three files in three rooms.
    let three = [("a.rs", "use crate::b::B; pub struct A;"), ("b.rs", "use crate::c; pub struct B(c::C);")];
    let closed = made_up(&[three[0], three[1], ("c.rs", "pub struct C(super::a::A);")]);
    assert_eq!(circles(&closed), ["a.rs -> b.rs", "b.rs -> c.rs", "c.rs -> a.rs"]);
}

#[test]
fn what_is_only_handed_on_or_tested_is_no_circle() {
    let facade = ("a/mod.rs", "mod x;\npub use x::X;\npub const N: u8 = 0;\n#[cfg(test)]\nmod tests;");
    let x = ("a/x.rs", "use super::N; pub struct X([u8; N]);\n#[cfg(test)]\nmod tests { use crate::b::B; }");
    let b = ("b.rs", "use crate::a::X; pub struct B(X); #[cfg(test)] use crate::c::C;");
    let c = ("c.rs", "use crate::b::B; pub struct C;");
    let tests = ("a/tests.rs", "use super::*; use crate::b::B;");
    assert_eq!(circles(&made_up(&[facade, x, b, c, tests])), [""; 0]);
}
