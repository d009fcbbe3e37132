//! The board files as shipped: each is embedded, parses, and shows every key there is.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use brim::board::{Board, BoardError, EMBEDDED};
use brim::boot::{Headers, Serving, Workload};
use brim::kernels::Tier;
use brim::serve::config::{CACHE_MIB_DEFAULT, ClientLimits, LISTEN_DEFAULT};
use brim::settings::{Overrides, Settings};
use brim::sys::cpu::Topology;

/// The words that a board may have in place of one that it may not.
fn known(text: &str) -> Vec<String> {
    match Board::parse(text) {
        Err(BoardError::Unknown { known, .. }) => known,
        other => panic!("{text}: {other:?}"),
    }
}

/// Every section with its keys, as the parser has them.
fn keys() -> Vec<(String, Vec<String>)> {
    let sections = known("[no_such_section]\n").into_iter();
    sections.map(|section| (section.clone(), known(&format!("[{section}]\nno_such_key = 1\n")))).collect()
}

#[test]
fn every_file_is_embedded() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/boards");
    let mut files = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let embedded = EMBEDDED.iter().find(|(known, _)| *known == name);
        assert_eq!(
            embedded.unwrap_or_else(|| panic!("{name} is not embedded")).1,
            std::fs::read_to_string(&path).unwrap()
        );
        Board::embedded(name).unwrap();
        files += 1;
    }
    assert_eq!(files, EMBEDDED.len());
}

#[test]
fn every_key_is_shown_and_commented() {
    let keys = keys();
    assert!(keys.len() >= 6 && keys.iter().map(|(_, keys)| keys.len()).sum::<usize>() > 30, "{keys:?}");
    for (name, text) in EMBEDDED {
        assert!(text.starts_with("# "), "{name} says what it is for");
        for (section, keys) in &keys {
            let body = text.split(&format!("[{section}]\n")).nth(1).unwrap_or_else(|| panic!("{name}: [{section}]"));
            let body: Vec<&str> = body.lines().take_while(|line| !line.starts_with('[')).collect();
            for key in keys {
                let shown = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
                assert!(body.iter().any(|line| shown(line)), "{name}: {section}.{key} is not shown");
            }
        }
        let models = text.lines().find(|line| line.starts_with("# models = ")).unwrap();
        for key in known("[[serve.models]]\nno_such_key = 1\n") {
            assert!(models.contains(&format!(" {key} = ")), "{name}: {key} of a model is not shown");
        }
    }
}

/// What the code makes of a board: every value that has a default in the code.
fn made_of(board: &str) -> String {
    let path = std::env::temp_dir().join(format!("brim-boards-{}.toml", std::process::id()));
    std::fs::write(&path, board).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/qwen3-mixed.gguf");
    let [model, path] = [model, path.to_str().unwrap()].map(|text| Some(text.to_owned()));
    let overrides = Overrides { model, board: path, ..Overrides::default() };
    let settings = Settings::resolve_in(&overrides, &|_| None, Topology::probe().unwrap()).unwrap();
    let (memory, serve) = (&settings.board.memory, &settings.board.serve);
    let workload = Workload {
        // Beyond the batch, so that it is seen.
        ctx_least: 4096,
        checkpoints: serve.checkpoints.map(|checkpoints| checkpoints as usize),
        serving: Some(Serving::new(serve.slots, serve.kv_tokens)),
        ..Workload::default()
    };
    let planned = Headers::read(&settings).unwrap().plan(&workload).unwrap();
    let serve = (
        serve.listen.as_deref().unwrap_or(LISTEN_DEFAULT),
        serve.log_prompts,
        serve.cache_mib.unwrap_or(CACHE_MIB_DEFAULT),
        ClientLimits::new(&serve.limits),
    );
    let pages = (settings.hugepages, settings.huge_page, settings.packed);
    let memory =
        (memory.reserve, memory.hvo, memory.fallback, memory.embedding, memory.numa, settings.keep_free_bytes());
    format!("{pages:?} {memory:?} {:?} {serve:?}", planned.sizes)
}

/// Lines `# key = value` of a board with their section, and whether the comment above says what the default is.
fn shown(text: &str) -> Vec<(&str, &str, bool)> {
    let is_key = |line: &str| {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    };
    let (mut lines, mut section, mut says_default, mut was_key) = (Vec::new(), "", false, false);
    for line in text.lines() {
        let bare = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if is_key(bare) {
            if line.starts_with('#') {
                lines.push((section, bare, says_default));
            }
            was_key = true;
        } else {
            says_default = line.contains("Default: ") || (says_default && !was_key);
            was_key = false;
        }
    }
    lines
}

#[test]
fn what_is_shown_as_a_default_is_what_the_code_does_without_it() {
    let without = made_of("");
    let mut checked = 0;
    for (name, text) in EMBEDDED {
        for (section, line, says_default) in shown(text) {
            let board = format!("[{section}]\n{line}\n");
            assert!(Board::parse(&board).is_ok(), "{name}: {board}");
            if !says_default {
                assert_eq!(made_of(&board), without, "{name}: {board} is not the default");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} defaults were found");
    // It sees a wrong one.
    for wrong in [
        "[tile]\ntokens = 64",
        "[serve]\nslots = 5",
        "[serve]\ncheckpoints = 0",
        "[memory]\nnuma = \"local\"",
        "[model]\nkv_type = \"q8_0\"",
    ] {
        assert_ne!(made_of(wrong), without, "{wrong}");
    }
}

#[test]
fn the_tiers_that_boards_list_are_those_there_are() {
    let mut names = Tier::ALL.map(Tier::name).join(", ");
    let last = names.rfind(", ").unwrap();
    names.replace_range(last..last + 1, " or");
    for (name, text) in EMBEDDED {
        assert!(text.contains(&format!("to use: {names}.")), "{name} does not list {names}");
    }
}
