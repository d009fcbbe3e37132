//! The commands end to end, on the built binary.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/pool.rs"]
mod pool;

use std::process::Stdio;

use brim::kernels;
use cli::{Dir, brim, golden, run, run_with};
use pool::Pool;
use serde_json::Value;

const QUESTION: &str = "How do I reserve huge pages?";

/// The recorded answer of the demo model to [`QUESTION`].
fn recorded() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/expected.json");
    let known: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let one = known.as_array().unwrap().iter().find(|one| one["prompt"] == QUESTION).unwrap();
    one["answer"].as_str().unwrap().to_owned()
}

#[test]
fn the_demo_model_answers_as_recorded_on_every_tier() {
    let want = format!("{}\n", recorded());
    assert_eq!(run(&["run", "-p", QUESTION]).good(), want);
    assert_eq!(run_with(&["run"], QUESTION.as_bytes()).good(), want, "the prompt from a pipe");
    for kernels in kernels::available() {
        let tier = kernels.tier().name();
        assert_eq!(run(&["run", "-p", QUESTION, "--isa", tier]).good(), want, "{tier}");
        assert_eq!(run(&["run", "-p", QUESTION, "--isa", tier, "-t", "1"]).good(), want, "{tier}, one thread");
    }
}

#[test]
fn an_option_that_does_not_suit_a_good_file_does_not_call_it_damaged() {
    let ran = run(&["plan", "-m", &golden("llama-f32"), "--kv-type", "q8_0"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("use --kv-type f16") && !ran.stderr.contains("damaged"), "{ran:?}");
}

#[test]
fn same_seed_same_text() {
    let text =
        |temp: &str, seed: &str| run(&["run", "-p", QUESTION, "-n", "40", "--temp", temp, "--seed", seed]).good();
    assert_eq!(text("0.9", "7"), text("0.9", "7"));
    // Hot enough that the demo model is no longer sure of every token.
    let texts = ["1", "2", "3", "4"].map(|seed| text("4", seed));
    assert_eq!(texts[0], text("4", "1"));
    assert!(texts.iter().any(|other| *other != texts[0]), "four seeds, one text: {texts:?}");
}

#[test]
fn names_of_architectures_stand_apart_from_what_is_said_of_them() {
    let list = run(&["models"]).good();
    let document = run(&["models", "--json"]).json();
    for one in document["architectures"].as_array().unwrap() {
        let line = format!("\n  {}  ", one["name"].as_str().unwrap());
        assert!(list.contains(&line), "{line:?}");
    }
}

#[test]
fn a_file_may_say_how_its_tokens_are_drawn() {
    let dir = Dir::new("sampling");
    let f32s = |key: &'static str, x: f32| (key, 6u32, x.to_le_bytes().to_vec());
    let of = |name: &str, keys: &[(&str, u32, Vec<u8>)]| {
        dir.file(name, gguf::with_keys(&std::fs::read(golden("llama-f32")).unwrap(), keys))
    };
    let text = |model: &str, more: &[&str]| {
        run(&[&["run", "-m", model, "--raw", "-p", "A text", "-n", "24", "--seed", "5"], more].concat())
    };
    let plain = of("plain.gguf", &[]);
    let greedy = text(&plain, &["--temp", "0"]).good();
    let cold = of("cold.gguf", &[f32s("general.sampling.temp", 0.0)]);
    assert_eq!(text(&cold, &[]).good(), greedy);
    let usual = text(&plain, &[]).good();
    assert_ne!(usual, greedy);
    assert_eq!(text(&cold, &["--temp", "0.8"]).good(), usual, "an option beats the file");
    let top = of("top.gguf", &[("general.sampling.top_k", 5, 1i32.to_le_bytes().to_vec())]);
    assert_eq!(text(&top, &[]).good(), greedy);
    // What cannot be had is said.
    let odd = of("odd.gguf", &[f32s("general.sampling.top_p", 7.0), f32s("general.sampling.xtc_probability", 0.5)]);
    let ran = text(&odd, &[]);
    for part in ["`general.sampling.top_p` is out of its range", "`general.sampling.xtc_probability` asks for what"] {
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
    assert_eq!(ran.good(), usual);
}

#[test]
fn a_context_beyond_what_a_model_was_trained_for_is_remarked() {
    let said = |model: &str, ctx: &str| {
        let ran = run(&["plan", "-m", &golden(model), "--ctx", ctx]);
        ran.stderr.matches("tokens of context that the model was trained for").count()
    };
    // Trained for 512; for 128, and stretched to four times as many.
    assert_eq!([said("llama-f32", "512"), said("llama-f32", "513")], [0, 1]);
    assert_eq!([said("qwen2-yarn-f32", "512"), said("qwen2-yarn-f32", "513")], [0, 1]);
}

#[test]
fn the_list_of_architectures_is_that_of_the_pages() {
    let table = run(&["models", "--markdown"]).good();
    for page in ["README.md", "tests/golden/README.md"] {
        let text = std::fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(text.contains(&table), "{page} lacks what `brim models --markdown` writes:\n{table}");
    }
    let list = run(&["models", "--json"]).json();
    let list = list["architectures"].as_array().unwrap();
    assert!(list.iter().filter(|one| one["runs"] == true).count() >= 75, "fewer than 75 run");
    assert!(list.iter().all(|one| one["runs"] == true || one["lacks"] != ""));
    assert!(run(&["models"]).good().contains("architectures run"));
    run(&["models", "--json", "--markdown"]).fails(2, &["one of them"]);
}

#[test]
fn n_predict_and_a_full_context_end_the_answer() {
    let ran = run(&["run", "-p", QUESTION, "-n", "3"]);
    assert!(ran.stderr.contains("answer 3 tokens"), "{ran:?}");
    assert!(recorded().starts_with(ran.good().trim_end()));
    let ran = run(&["run", "-p", QUESTION, "--ctx", "32"]);
    assert!(ran.stderr.contains("the context of 32 tokens is full; a larger --ctx"), "{ran:?}");
    assert!(recorded().starts_with(ran.good().trim_end()));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let prompt = "pages ".repeat(200);
    run(&["run", "-p", &prompt, "--ctx", "64"]).fails(2, &["tokens needed, 64 positions planned", "--ctx"]);
}

#[test]
fn eval_gives_perplexity_and_the_logits_it_comes_from() {
    let dir = Dir::new("eval");
    let text = "The plan is the first thing that brim prints. Every byte has a region.";
    let (file, logits) = (dir.file("text.txt", text), dir.at("logits.f32"));
    for name in ["qwen3-f32", "llama-q4_k"] {
        let model = golden(name);
        let report = run(&["eval", "-m", &model, "-f", &file, "--logits", &logits, "--json"]).json();
        let (n_tokens, n_vocab) = (report["tokens"].as_u64().unwrap() as usize, report["n_vocab"].as_u64().unwrap());
        let perplexity = report["perplexity"].as_f64().unwrap();
        assert!(perplexity.is_finite() && perplexity > 1.0, "{report}");
        let bytes = std::fs::read(&logits).unwrap();
        assert_eq!(bytes.len() as u64, n_tokens as u64 * n_vocab * 4);

        let ids = run_with(&["tokenize", "-m", &model], text.as_bytes()).good();
        let ids: Vec<usize> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        // With BOS in front, which `tokenize` leaves out, every id is predicted; else all but the first.
        let predicted = &ids[ids.len() + 1 - n_tokens..];
        let floats: Vec<f64> =
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        let mut nats = 0.0;
        for (row, &id) in floats.chunks_exact(n_vocab as usize).zip(predicted) {
            nats += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[id];
        }
        let want = (nats / (n_tokens - 1) as f64).exp();
        assert!((perplexity / want - 1.0).abs() < 1e-6, "{name}: {perplexity}, from the logits {want}");
        let said = run(&["eval", "-m", &model, "-f", &file]).good();
        assert_eq!(said, format!("{n_tokens} tokens, perplexity {perplexity:.4}\n"));
    }
    let short = dir.file("short.txt", "");
    run(&["eval", "-m", &golden("qwen3-f32"), "-f", &short]).fails(2, &[&short, "needs at least 2"]);
}

#[test]
fn logits_are_the_same_for_any_number_of_threads() {
    let dir = Dir::new("threads");
    // 800 tokens in batches of 16: from 513 positions on, attention is cut into ranges of keys.
    let (text, board) = (dir.file("text.txt", "pages ".repeat(800)), dir.file("board.toml", "[tile]\ntokens = 16\n"));
    let logits = |threads: &str| {
        let file = dir.at("logits.f32");
        let words =
            ["eval", "-f", &text, "--logits", &file, "--ctx", "1024", "--board", &board, "-t", threads, "--json"];
        assert!(run(&words).json()["tokens"].as_u64().unwrap() > 600);
        std::fs::read(file).unwrap()
    };
    assert!(logits("1") == logits("2"));
}

#[test]
fn tokenize_and_back_gives_the_same_text() {
    for text in [
        "How do I reserve huge pages?",
        "  two spaces, a tab\t, line ends\r\n\n and a trailing space ",
        "Größe ändern: süße Äpfel; déjà vu, señor; Привет, мир; Γειά σου; שלום; مرحبا; हिन्दी",
        "大きなページを予約する。 페이지를 예약합니다 预留大页 ไทย",
        "emoji 🦀👩‍🚀🇺🇳 e\u{301} \u{feff} \u{200b} \u{0} <|im_start|>",
        "",
    ] {
        let ids = run_with(&["tokenize"], text.as_bytes()).good();
        assert_eq!(ids.lines().count(), 1, "{ids:?}");
        assert_eq!(run_with(&["tokenize", "--decode"], ids.as_bytes()).good(), text, "{ids}");
    }
}

#[test]
fn many_texts_at_once_and_the_tokens_that_end_generation() {
    let vocabulary = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizer/bpe.gguf");
    let one = |text: &str, pre: &str| {
        run_with(&["tokenize", "-m", vocabulary, "--pre", pre], text.as_bytes()).good().trim_end().to_owned()
    };
    let texts = ["It's 12345\n", "", "pages\0"];
    let lines =
        run_with(&["tokenize", "-m", vocabulary, "--null", "--pre", "qwen2"], texts.join("\0").as_bytes()).good();
    assert_eq!(lines.lines().collect::<Vec<_>>(), [one("It's 12345\n", "qwen2"), String::new(), one("pages", "qwen2")]);
    assert_ne!(one("12345678", "qwen2"), one("12345678", "bloom"));
    let ends = run(&["tokenize", "-m", vocabulary, "--ends"]).good();
    assert_eq!(
        run_with(&["tokenize", "-m", vocabulary, "--decode"], ends.as_bytes()).good(),
        "<|endoftext|><|im_end|>"
    );
}

#[test]
fn a_chat_template_of_choice_shapes_the_prompt() {
    let dir = Dir::new("template");
    let chatml = dir.file("chatml.jinja", include_str!("../src/chat/templates/chatml.jinja"));
    let answer = |template: &str| run(&["run", "-p", QUESTION, "-n", "8", "--chat-template", template]).good();
    assert_eq!(answer(&chatml), answer("chatml"));
    let fixed = dir.file("fixed.jinja", "{{ '<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n' }}");
    assert_eq!(answer(&fixed), run(&["run", "-p", "bye", "-n", "8", "--chat-template", "chatml"]).good());
}

#[test]
fn nobody_listening_is_no_reason_to_crash() {
    let dir = Dir::new("pipes");
    let (model, text) = (golden("qwen3-f32"), dir.file("text.txt", "A text of a few words."));
    let commands: [&[&str]; 11] = [
        &["--help"],
        &["run", "-p", QUESTION],
        &["run", "-p", QUESTION, "--ctx", "32"],
        &["plan", "-m", &model],
        &["plan", "-m", &model, "--json"],
        &["inspect", &model],
        &["inspect", &model, "--json"],
        &["selftest"],
        &["eval", "-m", &model, "-f", &text],
        &["tokenize"],
        &["doctor"],
    ];
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for words in commands {
        let ran: cli::Ran = brim(words).stdout(closed()).stderr(Stdio::piped()).output().unwrap().into();
        assert!(!ran.stderr.contains("panicked"), "{words:?}: {ran:?}");
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
        let status = brim(words).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{words:?}, stderr closed too");
    }
    let status = brim(&["plan", "-m", "/nonexistent.gguf"]).stderr(closed()).status().unwrap();
    assert_eq!(status.code(), Some(4), "the exit code is told all the same");
}

/// MiB in ordinary pages, from the summary of a run that took `pages` huge pages.
fn resident_mib(stderr: &str, pages: u64) -> f64 {
    let summary = stderr.lines().last().unwrap();
    assert!(summary.contains(&format!("; {pages} pages of 2 MiB, resident ")), "{summary}");
    let (number, unit) = summary.rsplit("resident ").next().unwrap().split_once(' ').unwrap();
    match unit {
        "KiB" => number.parse::<f64>().unwrap() / 1024.0,
        "MiB" => number.parse().unwrap(),
        _ => panic!("{summary}"),
    }
}

#[test]
fn in_huge_pages_hardly_anything_else_is_resident() {
    let planned = |options: &[&str]| {
        let report = run(&[&["plan", "--json"], options].concat()).json();
        report["with_hugepages"]["total_pages"].as_u64().unwrap()
    };
    let model = golden("llama-f32");
    let (demo_pages, model_pages) = (planned(&[]), planned(&["-m", &model]));
    let Some(pool) = Pool::with_room(demo_pages.max(model_pages)) else { return };
    let before = pool.state();

    let ran = run(&["run", "--hugepages", "-m", &model, "--raw", "-p", "A text", "-n", "8"]);
    let mib = resident_mib(&ran.stderr, model_pages);
    // What ships is held to 4 MiB by `.ci/run`; a build with every check on has twice the code, the server's with it.
    let bound = if cfg!(debug_assertions) { 10.0 } else { 4.0 };
    assert!(mib <= bound, "{ran:?}");
    ran.good();
    assert_eq!(pool.state(), before, "all pages are given back");

    let ran = run(&["run", "--hugepages", "-p", QUESTION]);
    let mib = resident_mib(&ran.stderr, demo_pages);
    // The demo model is part of the binary, whose pages are resident once they have been read.
    let demo_mib = brim::boot::DEMO.len() as f64 / f64::from(1 << 20);
    assert!(mib <= bound + demo_mib, "{ran:?}");
    assert_eq!(ran.good(), format!("{}\n", recorded()));
    assert_eq!(pool.state(), before, "all pages are given back");
}

#[test]
fn bench_model_reports_speeds_beside_their_ceilings() {
    let words = ["bench", "model", "-m", &golden("qwen3-mixed"), "-p", "8", "-n", "4", "-r", "1"];
    let report = run(&[&words[..], &["--json"]].concat()).json();
    for part in ["prefill", "decode"] {
        for key in ["tokens", "tokens_per_second", "min", "max", "share_of_ceiling", "kernels"] {
            assert!(report[part].get(key).is_some(), "{part}.{key} is missing in {report}");
        }
        assert!(report[part]["tokens_per_second"].as_f64().unwrap() > 0.0, "{report}");
    }
    for key in ["int8_gmacs", "read_gbs"] {
        assert!(report["ceilings"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    assert_eq!((&report["prefill"]["tokens"], &report["decode"]["tokens"]), (&8.into(), &4.into()));
    let text = run(&words).good();
    assert!(text.contains("pp8 @ d0: ") && text.contains("tg4 @ d0: "), "{text}");
}

#[test]
fn bench_model_shows_how_cost_grows_with_the_prompt() {
    let words = ["bench", "model", "-m", &golden("qwen3-mixed"), "-p", "8,16,32", "-n", "2", "-d", "5", "-r", "2"];
    let report = run(&[&words[..], &["--json"]].concat()).json();
    let prefills = report["prefills"].as_array().unwrap();
    let tokens: Vec<u64> = prefills.iter().map(|p| p["tokens"].as_u64().unwrap()).collect();
    assert_eq!((tokens, &report["prefill"]), (vec![8, 16, 32], &prefills[0]));
    for part in prefills.iter().chain([&report["decode"]]) {
        let number = |key: &str| part[key].as_f64().unwrap();
        let share = number("attention_share_of_time");
        assert!(share > 0.0 && share < 1.0, "{part}");
        assert!(number("tokens_per_second_without_attention") > number("tokens_per_second"), "{part}");
        assert!(number("min") <= number("tokens_per_second") && number("tokens_per_second") <= number("max"), "{part}");
    }
    // The two tokens come after 5 + 8 and see 14 and 15 positions.
    let decode = &report["decode"];
    assert_eq!(decode["mean_context"], 14.5);
    assert!(decode["kv_bytes_per_token"].as_f64().unwrap() > 0.0, "{decode}");
    assert_eq!(report["kernel_page_bytes"], 4096);
    let text = run(&words).good();
    for part in ["pp8 @ d5: ", "pp32 @ d5: ", "tg2 @ d5: ", "of attention", "of KV (14 positions)", "4 KiB pages"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let report = run(&["bench", "model", "-p", "8", "-n", "0", "-r", "1", "--json"]).json();
    assert!(report["decode"].is_null() && report["prefill"]["tokens"] == 8, "{report}");
}

#[test]
fn bench_kernels_measures_the_types_and_counts_asked_for() {
    for kernels in kernels::available().filter(|kernels| kernels.tier().name() != "scalar") {
        let tier = kernels.tier().name();
        let words = ["bench", "kernels", "--type", "Q4_K,bf16", "-p", "1,9", "-r", "1", "--isa", tier, "--json"];
        let report = run(&words).json();
        let rows = report["kernels"].as_array().unwrap();
        // Three shapes, each with 1 token in the caches and out of memory, and with 9 in the caches.
        assert_eq!(rows.len(), 2 * 3 * 3, "{report}");
        for row in rows {
            assert!(row["gmacs"].as_f64().unwrap() > 0.0 && row["share_of_peak"].as_f64().unwrap() > 0.0, "{row}");
            assert!(row["kernel"].as_str().unwrap().ends_with(tier), "{row}");
            assert_eq!(row["from"] == "memory", !row["share_of_read"].is_null(), "{row}");
        }
        assert_eq!(report["peaks"]["bf16_gmacs"].is_null(), tier != "avx512bf16", "{report}");
    }
}

#[test]
fn bench_memory_reads_by_threads_and_pages() {
    let report = run(&["bench", "memory", "-t", "1", "-r", "1", "--json"]).json();
    let rows = report["read"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["page_bytes"] == 4096 && row["transparent"] == false), "{report}");
    for row in rows {
        let best = row["read_gbs"].as_f64().unwrap();
        assert!(row["ways"].as_object().unwrap().values().all(|way| way["median"].as_f64().unwrap() <= best), "{row}");
    }
}
