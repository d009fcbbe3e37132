//! The client packages of OpenAI and Anthropic, as their users have them, run a session against the server.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{golden, run};
use serve::Server;

/// A Python with the packages, in a virtual environment under `target/`. Where it cannot be had the test is skipped,
/// visibly; with `REQUIRE_CLIENTS=1` it fails instead.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let needs = root.join("tests/clients/requirements.txt");
    let lock = std::fs::File::create(std::env::temp_dir().join("brim-test-clients.lock")).unwrap();
    lock.lock().unwrap();
    let environment = root.join("target/clients");
    let python = environment.join("bin/python");
    let stamp = environment.join("requirements.txt");
    if std::fs::read(&stamp).ok() == std::fs::read(&needs).ok() {
        return Some(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(e) => Err(e.to_string()),
    };
    let made = run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        .and_then(|()| run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&needs)))
        .and_then(|()| std::fs::copy(&needs, &stamp).map(drop).map_err(|e| e.to_string()));
    match made {
        Ok(()) => Some(python),
        Err(why) => {
            let required = std::env::var("REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_CLIENTS=1, but the packages cannot be installed: {why}");
            eprintln!("SKIPPED: tests/clients/requirements.txt cannot be installed by pip: {why}");
            None
        }
    }
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
fn anthropic_package() {
    session("anthropic_session.py");
}
