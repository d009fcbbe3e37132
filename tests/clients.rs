//! The client packages of OpenAI and Anthropic, as their users have them, run a session against the server; so do Claude
//! Code and Codex.
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
