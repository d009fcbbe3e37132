//! Every exit code, provoked on the built binary: the number and a message that says what failed, what was found
//! against what is needed, and what to do.
//!
//! 1 is for what nobody foresaw, so nothing here provokes it. 7, the listen address, is provoked in `http.rs` and `weight_holder.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use std::path::Path;

use brim::kernels::Tier;
use cli::{Dir, brim, golden, run, run_with};
use pool::Pool;

#[test]
fn code_0_version_and_help() {
    assert_eq!(run(&["--version"]).good(), format!("brim {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["-V"]).good(), run(&["--version"]).good());
    let help = run(&["--help"]).good();
    for command in ["run", "plan", "inspect", "models", "doctor", "bench", "eval", "tokenize", "selftest"] {
        assert!(help.contains(command), "{command} is missing in {help}");
        let help = run(&[command, "--help"]).good();
        assert!(help.contains(&format!("brim {command}")), "{help}");
    }
}

#[test]
fn code_0_selftest_passes_on_every_tier_there_is() {
    let report = run(&["selftest", "--json"]).json();
    assert_eq!(report["passed"], true, "{report}");
    let tiers = report["tiers"].as_array().unwrap();
    assert_eq!(tiers.len(), Tier::ALL.len());
    for (tier, said) in Tier::ALL.iter().zip(tiers) {
        assert_eq!(said["tier"], tier.name());
        assert_eq!(said["passed"].as_bool(), tier.kernels().map(|_| true), "{said}");
    }
}

#[test]
fn code_0_inspect_and_plan() {
    let model = golden("qwen3-f32");
    let text = run(&["inspect", &model]).good();
    assert!(text.contains("GGUF v3") && text.contains("qwen3") && text.contains("token_embd.weight"), "{text}");
    let report = run(&["inspect", &model, "--json"]).json();
    assert_eq!(report["summary"]["architecture"], "qwen3");

    let report = run(&["plan", "-m", &model, "--json"]).json();
    for key in [
        "model",
        "page_bytes",
        "regions",
        "total_bytes",
        "total_pages",
        "pool",
        "hvo",
        "memory_available_bytes",
        "fits",
        "short_bytes",
    ] {
        assert!(report.get(key).is_some(), "{key} is missing in {report}");
    }
    assert_eq!((&report["fits"], &report["short_bytes"]), (&true.into(), &0.into()));
    let regions = report["regions"].as_array().unwrap();
    let pages: u64 = regions.iter().map(|region| region["pages"].as_u64().unwrap()).sum();
    assert_eq!(report["total_pages"], pages);
    assert_eq!(report["total_bytes"].as_u64().unwrap(), pages * report["page_bytes"].as_u64().unwrap());
}

#[test]
fn code_2_words_that_make_no_command() {
    run::<&str>(&[]).fails(2, &["which command?", "`brim --help`"]);
    run(&["frobnicate"]).fails(2, &["frobnicate", "`brim --help`"]);
    run(&["--frobnicate"]).fails(2, &["--frobnicate", "`brim --help`"]);
    run(&["run", "--frobnicate"]).fails(2, &["--frobnicate", "`brim run --help`"]);
    run(&["run", "-n", "many"]).fails(2, &["-n", "many", "`brim run --help`"]);
    run(&["bench", "nonsense"]).fails(2, &["bench nonsense", "`model`, `kernels`, `memory` or `load`"]);
    run(&["bench", "load"]).fails(2, &["bench load", "give a file with -m"]);
    run(&["bench", "model", "-p", "8,x"]).fails(2, &["-p 8,x", "\"x\""]);
    run(&["bench", "model", "-p", "8,0"]).fails(2, &["0 in a list of -p is not a prompt", "leave it out"]);
    run(&["bench", "model", "-p", "0", "-n", "0"]).fails(2, &["nothing to measure"]);
    run(&["bench", "kernels", "-p", "0"]).fails(2, &["-p 0", "1 to 8192"]);
    run(&["bench", "kernels", "--type", "Q9"]).fails(2, &["--type Q9", "there are F32, "]);
    run(&["bench", "memory", "--type", "Q4_K"]).fails(2, &["--type is for `bench kernels`"]);
    run(&["run", "-p", "a", "--cores", "99999"]).fails(2, &["CPU 99999", "this process may use only", "leave it out"]);
    run(&["run", "-p", "a", "-t", "99999"]).fails(2, &["99999 threads", "CPUs", "use at most"]);
    run(&["bench"]).fails(2, &["not provided: what", "`brim bench --help`"]);
}

#[test]
fn code_2_options_that_contradict_or_are_out_of_range() {
    let cases: [(&[&str], &[&str]); 25] = [
        (&["run", "-p", "a", "-f", "b"], &["-p and -f", "give one of them"]),
        (&["run", "-p", ""], &["the prompt is empty", "-p, -f or a pipe"]),
        (&["run", "-p", "a", "--system", "b", "--raw"], &["--system", "--raw", "give one of the two"]),
        (
            &["run", "-p", "a", "--chat-template", "chatml", "--raw"],
            &["--chat-template", "--raw", "give one of the two"],
        ),
        (&["run", "-p", "a", "--chat-template", "no-such"], &["--chat-template no-such", "brim has chatml, gemma"]),
        (&["run", "-p", "a", "--pre", "no-such"], &["--pre no-such"]),
        (&["tokenize", "-m", BPE, "--pre", "no-such"], &["--pre no-such", "there are default, gpt-2", "tekken"]),
        (&["tokenize", "-m", SPM, "--pre", "qwen2"], &["--pre qwen2", "\"llama\"", "leave --pre out"]),
        (&["tokenize", "--decode", "--null"], &["--null", "--decode"]),
        (&["run", "-p", "a", "--page-size", "2M"], &["--page-size", "add --hugepages"]),
        (&["run", "-p", "a", "--page-size", "4M", "--hugepages"], &["--page-size 4M", "2M, 1G"]),
        (&["run", "-p", "a", "-t", "0"], &["--threads", "at least 1"]),
        (&["run", "-p", "a", "-t", "100000"], &["--threads", "100000", "may use", "CPUs"]),
        (&["run", "-p", "a", "--cores", "a"], &["--cores: \"a\"", "such as 0-7,16"]),
        (&["run", "-p", "a", "--temp", "-1"], &["--temp -1", "needs"]),
        (&["run", "-p", "a", "--temp", "NaN"], &["--temp NaN", "needs"]),
        (&["run", "-p", "a", "--ctx", "0"], &["--ctx", "0"]),
        (&["run", "-p", "a", "--ctx", "99999999"], &["--ctx 99999999", "1 to 16777216"]),
        (&["run", "-p", "a", "--isa", "neon"], &["neon", "use scalar, avx2, avx2vnni, avx512, avx512bf16"]),
        (&["bench", "model", "-r", "0"], &["-r 0", "1 to 1000"]),
        (&["pln"], &["pln", "did you mean `plan`?"]),
        (&["run", "--modle", "a.gguf"], &["--modle", "did you mean `--model`?", "`brim run --help`"]),
        (&["run", "-p", "a", "--slots", "4"], &["--slots", "an option of `serve`"]),
        (&["plan", "a.gguf"], &["`brim plan -m a.gguf`"]),
        (&["run", "-p", "a", "--ctx", "foo"], &["--ctx foo: expected a number of tokens, or auto"]),
    ];
    for (words, parts) in cases {
        run(words).fails(2, parts);
    }
}

/// Vocabularies without a model.
const BPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizer/bpe.gguf");
const SPM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizer/spm.gguf");

#[test]
fn a_flag_beats_the_environment_in_the_other_form_as_well() {
    for (words, name) in [(["-p", "a"], "BRIM_FILE"), (["-f", "rustfmt.toml"], "BRIM_PROMPT")] {
        let mut command = brim(&[&["run", "-n", "1"], &words[..]].concat());
        let ran: cli::Ran = command.env(name, "/nonexistent").output().unwrap().into();
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
    }
    let ran: cli::Ran =
        brim(&["run"]).env("BRIM_FILE", "/nonexistent").env("BRIM_PROMPT", "a").output().unwrap().into();
    ran.fails(2, &["BRIM_PROMPT and BRIM_FILE"]);
}

#[test]
fn code_2_environment_and_input() {
    let with = |name: &str, value: &str| brim(&["run", "-p", "a"]).env(name, value).output().unwrap().into();
    let ran: cli::Ran = with("BRIM_CTX", "abc");
    ran.fails(2, &["BRIM_CTX=abc"]);
    let ran: cli::Ran = with("BRIM_HUGEPAGES", "perhaps");
    ran.fails(2, &["BRIM_HUGEPAGES=perhaps", "1, 0, true or false"]);
    let ran: cli::Ran = with("BRIM_HUGEPAGE", "1");
    ran.fails(2, &["BRIM_HUGEPAGE in the environment is no option", "did you mean BRIM_HUGEPAGES?"]);
    let ran: cli::Ran = with("BRIM_JSON", "1");
    ran.fails(2, &["BRIM_JSON", "give `--json`"]);
    let ran: cli::Ran = with("BRIM_SERVICE_HOST", "10.0.0.1");
    assert_eq!(ran.code, Some(0), "{ran:?}");

    run_with(&["tokenize"], b"caf\xe9").fails(2, &["0xe9", "offset 3", "iconv"]);
    let dir = Dir::new("template");
    let template = dir.file("mine.jinja", "{% for %}");
    run(&["run", "-p", "a", "--chat-template", &template]).fails(2, &["chat template", &template, "syntax error"]);
    let template = dir.file("mine.jinja", "{{ raise_exception('no system messages here') }}");
    run(&["run", "-p", "a", "--chat-template", &template]).fails(2, &[&template, "no system messages here"]);
    run_with(&["tokenize", "--decode"], b"12 x").fails(2, &["\"x\" is not a token id"]);
    run_with(&["tokenize", "--decode"], b"99999999").fails(2, &["99999999", "vocabulary of"]);
    run_with(&["run"], b"").fails(2, &["the prompt is empty"]);
    run_with(&["run"], b"a\xff").fails(2, &["stdin", "not UTF-8 at byte 1"]);
    run(&["run", "-f", "/nonexistent/prompt.txt"]).fails(2, &["/nonexistent/prompt.txt"]);
    run(&["eval", "-f", "/nonexistent/text.txt"]).fails(2, &["/nonexistent/text.txt"]);
}

#[test]
fn code_3_boards() {
    let dir = Dir::new("boards");
    let board = dir.file("mine.toml", "[cpu]\n\n[memory]\nhugepagse = true\n");
    run(&["plan", "--board", &board]).fails(3, &[&board, "line 4", "`hugepagse`", "did you mean `hugepages`?"]);
    let board = dir.file("syntax.toml", "[memory]\nhugepages = = true\n");
    run(&["plan", "--board", &board]).fails(3, &[&board, "line 2"]);
    let board = dir.file("range.toml", "[cpu]\nthreads = 100000\n");
    run(&["plan", "--board", &board]).fails(3, &[&board, "threads", "100000"]);
    run(&["plan", "--board", "strix-halo-12"]).fails(3, &["strix-halo-12", "did you mean strix-halo-128?"]);
    run(&["plan", "--board", "/nonexistent/board.toml"]).fails(3, &["/nonexistent/board.toml"]);
    let ran: cli::Ran = brim(&["plan"]).env("BRIM_BOARD", "nonesuch").output().unwrap().into();
    ran.fails(3, &["nonesuch", "embedded boards: "]);
}

#[test]
fn code_4_files_that_are_no_model() {
    let dir = Dir::new("models");
    let good = std::fs::read(golden("qwen3-f32")).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut model = good.clone();
        model[at..at + bytes.len()].copy_from_slice(bytes);
        model
    };
    let arch = good.windows(5).position(|bytes| bytes == b"qwen3").unwrap();
    let big_endian: Vec<u8> = [&good[..4], &3u32.to_be_bytes(), &good[8..]].concat();
    let damaged_count = patched(8, &u64::MAX.to_le_bytes());

    let cases: [(String, &[&str]); 10] = [
        (dir.at("missing.gguf"), &["No such file"]),
        (dir.path().to_str().unwrap().to_owned(), &["directory"]),
        (dir.file("empty.gguf", ""), &["empty"]),
        (dir.file("text.gguf", "Once upon a time there was a model.\n".repeat(9)), &["GGUF"]),
        (dir.file("cut.gguf", &good[..good.len() - 1000]), &["cut off", "needs bytes up to", "download it again"]),
        (dir.file("cut-header.gguf", &good[..300]), &["bytes", "276 are left", "download"]),
        (dir.file("v1.gguf", patched(4, &1u32.to_le_bytes())), &["version 1", "2 and 3 are", "convert"]),
        (dir.file("big.gguf", big_endian), &["big-endian", "needs little-endian", "without --bigendian"]),
        (dir.file("count.gguf", damaged_count), &["18446744073709551615", "cannot load it"]),
        (
            dir.file("arch.gguf", patched(arch, b"rwkv7")),
            &["`rwkv7` (RWKV-7) is not supported", "time mixing", "nearest that runs", "`brim models`"],
        ),
    ];
    for (model, parts) in &cases {
        let parts: Vec<&str> = parts.iter().copied().chain([model.as_str()]).collect();
        run(&["plan", "-m", model]).fails(4, &parts);
        run(&["run", "-p", "a", "-m", model]).fails(4, &parts);
        // An architecture this version cannot run can still be looked at.
        match model.ends_with("arch.gguf") {
            true => assert!(run(&["inspect", model]).good().contains("rwkv7")),
            false => run(&["inspect", model]).fails(4, &parts),
        }
    }
}

#[test]
fn code_5_a_pool_that_is_too_short() {
    if !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        return eprintln!("SKIPPED: this kernel has no huge pages of 2 MiB");
    }
    // 24 GiB of KV cache: more than any pool but that of a box which serves large models right now.
    let options = ["--hugepages", "--page-size", "2M", "--ctx", "16777216"];
    if run(&[&["plan"], &options[..]].concat()).code == Some(0) {
        return eprintln!("SKIPPED: the pool of this box has room for 24 GiB");
    }
    let parts = ["short by", "need ", "free ", "`sysctl -w vm.nr_hugepages="];
    run(&[&["run", "-p", "a"], &options[..]].concat()).fails(5, &parts);
    run(&[&["plan"], &options[..]].concat()).fails(5, &parts);
    // The figures agree with each other while nobody else changes the pool.
    let Some(_pool) = Pool::with_room(0) else { return };
    let ran = run(&[&["plan", "--json"], &options[..]].concat());
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    ran.fails(5, &parts);
    assert_eq!(report["fits"], false);
    let need = report["total_pages"].as_u64().unwrap();
    let pool = |field: &str| report["pool"][field].as_u64().unwrap();
    let short = need - (pool("free") - pool("reserved"));
    assert_eq!(report["short_bytes"].as_u64().unwrap(), short * (2 << 20));
    let remedy = report["remedy"].as_str().unwrap();
    assert!(remedy.contains(&format!("need {need}, free {}", pool("free"))), "{remedy}");
}

#[test]
fn code_6_a_tier_that_this_cpu_lacks() {
    let mut provoked = 0;
    for tier in Tier::ALL.iter().filter(|tier| tier.kernels().is_none()) {
        let parts = ["this CPU lacks", tier.name(), "the best here is", "leave --isa out"];
        run(&["run", "-p", "a", "--isa", tier.name()]).fails(6, &parts);
        run(&["plan", "--isa", tier.name()]).fails(6, &parts);
        provoked += 1;
    }
    if provoked == 0 {
        eprintln!("SKIPPED: this CPU has every kernel tier, so none can be missing");
    }
}
