//! The scripts of `tools/init`: each is read by a shell (and by shellcheck and systemd-analyze where they are), and those
//! whose supervisor needs no more than a shell, or is installed, are started for real.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cli::Dir;

const SCRIPTS: [&str; 5] = ["brim.sysv", "brim.openrc", "s6/brim/run", "runit/brim/run", "runit/brim/check"];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/init").join(name)
}

/// Runs a program if this box has it.
fn if_there(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("SKIPPED: {program} is not installed");
            None
        }
    }
}

#[test]
fn shells_can_read_them() {
    for name in SCRIPTS {
        let path = script(name);
        let path = path.to_str().unwrap();
        let read = if_there("sh", &["-n", path]).unwrap();
        assert!(read.status.success(), "{name}: {read:?}");
        if let Some(checked) = if_there("shellcheck", &["--shell=sh", path]) {
            assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stdout));
        }
    }
    let unit = script("brim.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains("Type=notify") && text.contains("WatchdogSec="));
    if let Some(verified) = if_there("systemd-analyze", &["verify", unit.to_str().unwrap()]) {
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        // The program is not where the unit will find it.
        let bad: Vec<&str> =
            said.lines().filter(|l| l.contains("brim.service") && !l.contains("not executable")).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
}

/// A port that nobody has at the moment.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn conf(dir: &Dir, port: u16) -> String {
    dir.file("brim.conf", format!("BRIM_LISTEN=127.0.0.1:{port}\nBRIM_THREADS=1\n"))
}

#[test]
fn the_sysv_script_starts_reloads_and_stops() {
    let dir = Dir::new("init-sysv");
    let port = port();
    let conf = conf(&dir, port);
    let script = |word: &str| {
        let mut command = Command::new("sh");
        command.arg(script("brim.sysv")).arg(word).env("BRIM", env!("CARGO_BIN_EXE_brim")).env("CONF", &conf);
        command.env("PIDFILE", dir.at("pid")).env("LOG", dir.at("log")).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().unwrap().code()
    };
    assert_eq!(script("status"), Some(3));
    assert_eq!(script("start"), Some(0));
    wait("it answers", || is_healthy(port));
    assert_eq!(script("status"), Some(0));
    assert_eq!(script("reload"), Some(0));
    assert_eq!(script("restart"), Some(0));
    wait("it answers again", || is_healthy(port));
    assert_eq!(script("stop"), Some(0));
    assert!(!is_healthy(port));
    assert_eq!(script("status"), Some(3));
    std::fs::write(&conf, "BRIM_LISTEN=nonsense\n").unwrap();
    assert_eq!(script("start"), Some(1), "what cannot start is said");
    assert!(std::fs::read_to_string(dir.at("log")).unwrap().contains("nonsense"));
}

#[test]
fn the_s6_script_reports_on_its_descriptor() {
    let dir = Dir::new("init-s6");
    let port = port();
    let ready = dir.at("ready");
    // What s6-supervise does with notification-fd, by hand.
    let line = format!("exec 3>{ready}; exec sh {}", script("s6/brim/run").display());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env("BRIM", env!("CARGO_BIN_EXE_brim")).env("CONF", conf(&dir, port));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait("readiness is reported", || std::fs::read(&ready).is_ok_and(|said| said == b"\n"));
    assert!(is_healthy(port));
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn runit_supervises_it() {
    if if_there("runsv", &[]).is_none() {
        return;
    }
    let dir = Dir::new("init-runit");
    let port = port();
    let service = dir.path().join("brim");
    std::fs::create_dir(&service).unwrap();
    for name in ["run", "check"] {
        std::fs::copy(script("runit/brim").join(name), service.join(name)).unwrap();
    }
    let mut command = Command::new("runsv");
    command.arg(&service).env("BRIM", env!("CARGO_BIN_EXE_brim")).env("CONF", conf(&dir, port));
    let mut runsv = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait("it answers", || is_healthy(port));
    // To runsv, SIGTERM is: stop the service, then end.
    assert!(Command::new("kill").arg(runsv.id().to_string()).status().unwrap().success());
    assert_eq!(runsv.wait().unwrap().code(), Some(0));
    assert!(!is_healthy(port));
}
