//! The longest context that fits: `plan --fit` and `--ctx auto` find the same one, it fits, and the next one does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use cli::{Dir, golden, run};
use pool::Pool;
use serde_json::Value;

/// Contexts are multiples of this.
const STEP: u64 = 16;

fn plan(words: &[&str]) -> Value {
    let ran = run(&[&["plan", "--json"][..], words].concat());
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

fn number(plan: &Value, key: &str) -> u64 {
    plan[key].as_u64().unwrap_or_else(|| panic!("no {key} in {plan}"))
}

fn pages_at(model: &str, ctx: u64) -> u64 {
    number(&plan(&["-m", model, "--hugepages", "--ctx", &ctx.to_string()]), "total_pages")
}

/// A test model that claims to have been trained for so long a context that its cache takes many pages.
fn model(dir: &Dir) -> String {
    let mut bytes = std::fs::read(golden("qwen3-mixed")).unwrap();
    let key = b"qwen3.context_length";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    assert_eq!(bytes[at..][..4], 4u32.to_le_bytes(), "a UINT32");
    bytes[at + 4..][..4].copy_from_slice(&65_536u32.to_le_bytes());
    dir.file("model.gguf", bytes)
}

/// The context that a model was trained for: without a limit that is the longest there is.
fn ctx_train(model: &str) -> u64 {
    number(&plan(&["-m", model, "--fit"]), "ctx")
}

#[test]
fn the_longest_context_fits_and_the_next_one_does_not() {
    let dir = Dir::new("fit-longest");
    let model = model(&dir);
    let (shortest, train) = (pages_at(&model, STEP), ctx_train(&model));
    let longest = pages_at(&model, train);
    assert!(longest > shortest, "{shortest} to {longest} pages: nothing to choose from");
    // One page for the context beyond the shortest one: less than all.
    for extra in [0, 1, longest - shortest] {
        let need = shortest + extra;
        let Some(_pool) = Pool::with_exactly(need) else { return };
        let words = ["-m", &model, "--hugepages"];
        let fit = plan(&[&words[..], &["--fit"]].concat());
        let ctx = number(&fit, "ctx");
        assert_eq!(fit["fits"], true, "{fit}");
        assert!(number(&fit, "total_pages") <= need, "{fit}");
        let at = |ctx: u64| {
            let ctx = ctx.to_string();
            run(&[&["plan", "--ctx", &ctx][..], &words].concat())
        };
        at(ctx).good();
        match extra == longest - shortest {
            true => assert_eq!(ctx, train, "all fits"),
            false => at(ctx + STEP).fails(5, &["short by", "sysctl -w vm.nr_hugepages="]),
        }
        // A run finds the same, and takes what was planned.
        let generate = ["run", "--raw", "-p", "a b", "-n", "2", "--temp", "0", "-v", "--ctx", "auto"];
        let ran = run(&[&generate[..], &words].concat());
        let taken = format!("{} pages of 2 MiB", number(&fit, "total_pages"));
        assert!(ran.stderr.contains(&taken), "{taken:?} is not in {ran:?}");
        ran.good();
        // With a smaller cache type allowed it is at least as long, and that one fits too.
        let smaller = plan(&[&words[..], &["--fit", "--kv-type", "auto"]].concat());
        assert!(smaller["fits"] == true && number(&smaller, "ctx") >= ctx, "{smaller}");
        match number(&smaller, "ctx") > ctx {
            true => assert_eq!(smaller["kv_type"], "q8_0"),
            false => assert_eq!(smaller["kv_type"], "f16"),
        }
    }
}

#[test]
fn where_nothing_fits_it_says_what_is_missing() {
    let model = golden("qwen3-mixed");
    let shortest = pages_at(&model, STEP);
    let Some(_pool) = Pool::with_exactly(shortest - 1) else { return };
    let words = ["-m", &model, "--hugepages"];
    run(&[&["plan", "--fit"][..], &words].concat()).fails(5, &["short by 1 pages", &format!("need {shortest}")]);
    run(&[&["run", "-p", "a", "--ctx", "auto"][..], &words].concat()).fails(5, &["short by 1 pages"]);
}

#[test]
fn a_board_s_budget_counts() {
    // Ordinary memory: all but a little of what is available must stay free.
    let model = golden("qwen3-mixed");
    let dir = Dir::new("fit");
    let available = number(&plan(&["-m", &model]), "memory_available_bytes") >> 20;
    let board = |keep: u64| dir.file(&format!("{keep}.toml"), format!("[memory]\nkeep_free_mib = {keep}\n"));
    let all = plan(&["-m", &model, "--fit"]);
    let words = ["-m", &model, "--fit", "--board", &board(available + 1024)];
    let none = run(&[&["plan"][..], &words].concat());
    none.fails(5, &["not enough memory", "memory.keep_free_mib"]);
    let some = plan(&["-m", &model, "--fit", "--board", &board(available / 2)]);
    assert_eq!(some["ctx"], all["ctx"], "half of the box is enough for a test model");
    // In huge pages nothing of it is needed, yet it must stay free.
    let need = pages_at(&model, STEP);
    if let Some(_pool) = Pool::with_room(need) {
        let words = ["-m", &model, "--hugepages", "--ctx", &STEP.to_string(), "--board", &board(available + 1024)];
        let parts = ["beside the huge-page pool", "must stay free (memory.keep_free_mib), available ", "HVO"];
        run(&[&["plan"][..], &words].concat()).fails(5, &parts);
        run(&[&["run", "-p", "a"][..], &words].concat()).fails(5, &parts);
    }
    run(&["plan", "-m", &model, "--fit", "--ctx", "64"]).fails(2, &["--fit"]);
    run(&["run", "-m", &model, "-p", "a", "--kv-type", "auto"]).fails(2, &["--ctx auto"]);
}
