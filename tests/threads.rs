//! A server to which the system gives no further thread.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use cli::{Dir, Ran, brim, golden};
use rustix::process::Pid;
use serde_json::json;
use serve::{Server, children};

/// The limit of processes does not hold for root, so the server runs as somebody else.
fn unprivileged(mut command: Command) -> Command {
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

/// Takes from the process the right to start one more thread. Its own user may do that; root may lack the capability.
fn no_more_threads(pid: u32) {
    let mut command = Command::new("prlimit");
    command.args(["--nproc=1:1", "--pid", &pid.to_string()]);
    let ran = Ran::from(unprivileged(command).output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn what_a_request_needs_is_there_when_it_is_ready() {
    let server = Server::spawn(unprivileged(brim(&["serve", "--listen", "127.0.0.1:0"]))).ready();
    no_more_threads(server.child.id());
    let answer = server.post("/tokenize", &json!({"content": "one long text ".repeat(10_000)}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["count"].as_u64().unwrap() > 10_000);
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_grammar_without_a_process_to_be_had_is_unavailable() {
    let server = Server::spawn(unprivileged(brim(&["serve", "--listen", "127.0.0.1:0"]))).ready();
    let zygote = children(server.child.id());
    assert_eq!(zygote.len(), 1, "the process that starts others");
    no_more_threads(zygote[0]);
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "grammar": "start: \"a\""});
    let answer = server.post("/v1/chat/completions", &body);
    assert!(answer.status == 503 && answer.head.contains("retry-after"), "{answer:?}");
    assert!(answer.text().contains("RLIMIT_NPROC"), "{answer:?}");
    server.is_well();
    // Without the process that starts others there are none.
    let zygote = Pid::from_raw(zygote[0].cast_signed()).unwrap();
    rustix::process::kill_process(zygote, rustix::process::Signal::KILL).unwrap();
    let begun = Instant::now();
    while !server.post("/v1/chat/completions", &body).text().contains("start the server anew") {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}

/// A template that brim does not have itself.
const TEMPLATE: &str = "{{ messages[0].content }}";

#[test]
fn a_chat_without_a_process_to_be_had_is_unavailable() {
    let dir = Dir::new("threads");
    let (model, template) = (golden("llama-f32"), dir.file("mine.jinja", TEMPLATE));
    let words = ["serve", "--listen", "127.0.0.1:0", "-m", &model, "--chat-template", &template];
    let server = Server::spawn(unprivileged(brim(&words))).ready();
    server.is_well();
    no_more_threads(children(server.child.id())[0]);
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4});
    let answer = server.post("/v1/chat/completions", &body);
    assert!(answer.status == 503 && answer.head.contains("retry-after"), "{answer:?}");
    assert!(answer.text().contains("RLIMIT_NPROC") && answer.text().contains("pids.max"), "{answer:?}");
    let without = server.post("/v1/completions", &json!({"prompt": "Hello", "max_tokens": 1}));
    assert_eq!(without.status, 200, "{without:?}");
    assert_eq!(server.stop(), Some(0));
    // Without a server there is nothing to go on with.
    let mut command = unprivileged(Command::new("prlimit"));
    command.args(["--nproc=1", env!("CARGO_BIN_EXE_brim"), "run", "-m", &model, "--chat-template", &template]);
    let ran = Ran::from(command.args(["-p", "Hello", "-n", "1"]).output().unwrap());
    ran.fails(1, &["the chat template cannot be rendered", "RLIMIT_NPROC", "pids.max"]);
}

#[test]
fn without_threads_it_does_not_start() {
    let mut command = unprivileged(Command::new("prlimit"));
    command.args(["--nproc=1", env!("CARGO_BIN_EXE_brim"), "serve", "--listen", "127.0.0.1:0"]);
    let ran = Ran::from(command.output().unwrap());
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert!(ran.code == Some(1) && last.starts_with("brim: a thread cannot be started"), "{ran:?}");
    assert!(last.contains("RLIMIT_NPROC") && last.contains("pids.max"), "{last}");
}
