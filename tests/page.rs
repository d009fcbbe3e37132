//! The page, as people use it: a session in headless Chromium against the server, and against a stand-in that serves the
//! same page with answers made to try it.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use serve::Server;

/// The browser, and a directory under `target/` with what drives it. Where they cannot be had the test is skipped,
/// visibly; with `REQUIRE_BROWSER=1` it fails instead.
fn browser() -> Option<(String, PathBuf)> {
    let needs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/package.json");
    let lock = std::fs::File::create(std::env::temp_dir().join("brim-test-page.lock")).unwrap();
    lock.lock().unwrap();
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(e) => Err(format!("{command:?}: {e}")),
    };
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let had = run(Command::new(&chromium).arg("--version")).and_then(|()| {
        let stamp = place.join("installed.json");
        if std::fs::read(&stamp).ok() == std::fs::read(&needs).ok() {
            return Ok(());
        }
        let io = |e: std::io::Error| e.to_string();
        std::fs::create_dir_all(&place).map_err(io)?;
        std::fs::copy(&needs, place.join("package.json")).map_err(io)?;
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&place))?;
        std::fs::copy(&needs, &stamp).map(drop).map_err(io)
    });
    match had {
        Ok(()) => Some((chromium, place)),
        Err(why) => {
            let required = std::env::var("REQUIRE_BROWSER").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_BROWSER=1, but there is no browser to drive: {why}");
            eprintln!("SKIPPED: there is no Chromium, or npm does not install tests/page/package.json: {why}");
            None
        }
    }
}

#[test]
fn a_session_in_a_browser() {
    let Some((chromium, place)) = browser() else { return };
    let server = Server::start(&["-t", "1"]);
    let output = Command::new("node")
        .arg(format!("{}/tests/page/session.mjs", env!("CARGO_MANIFEST_DIR")))
        .arg(format!("http://{}", server.address))
        .args(std::env::var_os("PAGE_SHOTS"))
        .env("CHROMIUM", chromium)
        .current_dir(place)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    eprint!("{}", text(&output.stdout));
    assert_eq!(server.stop(), Some(0));
}

/// A browser or none: what keeps the page to itself.
#[test]
fn the_page_is_one_file_with_a_strict_policy() {
    let server = Server::start(&["-t", "1"]);
    let answer = server.get("/");
    assert_eq!((answer.status, answer.body.len() <= 64 << 10), (200, true), "{} bytes", answer.body.len());
    let mut page = String::new();
    flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut page).unwrap();
    for (takes, status) in [("gzip, deflate, br", 200), ("*", 200), ("identity", 406), ("br, gzip;q=0", 406)] {
        assert_eq!(server.send("GET", "/", &[("accept-encoding", takes)], b"").status, status, "{takes}");
    }
    let policy = answer.head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
    for part in
        ["default-src 'none'", "connect-src 'self'", "require-trusted-types-for 'script'", "trusted-types 'none'"]
    {
        assert!(policy.split("; ").any(|found| found == part), "{part} is missing in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    let digests = policy.matches("'sha256-").count();
    assert_eq!((digests, page.matches("<script").count(), page.matches("<style").count()), (2, 1, 1), "{policy}");
    for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
        assert!(!page.contains(sink), "the page has {sink}");
    }
    for attribute in ["src=\"", "href=\""] {
        for (at, _) in page.match_indices(attribute) {
            let value = &page[at + attribute.len()..];
            assert!(
                value.starts_with('#') || value.starts_with("data:"),
                "the page loads {}",
                value.split('"').next().unwrap()
            );
        }
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn its_figures_tell_answers_from_refusals() {
    let server = Server::start(&["-t", "1"]);
    assert_eq!(server.post("/v1/chat/completions", &json!({})).status, 400);
    server.is_well();
    let status = server.get("/status").json();
    let requests = &status["requests"];
    assert_eq!(requests["refused"], json!([{"route": "/v1/chat/completions", "status": 400, "count": 1}]));
    assert_eq!(
        (&requests["finished"], &requests["failed"], &requests["first_token_count"]),
        (&json!(1), &json!(0), &json!(1))
    );
    assert!(requests["first_token_s"].as_f64().unwrap() > 0.0, "{requests}");
    assert_eq!(status["checkpoints"], json!({"all": 0, "used": 0, "taken": 0, "hits": 0}), "the demo has no states");
    assert_eq!(server.stop(), Some(0));
}
