//! Where stdout or stderr cannot be written, nothing ends, nothing stalls, and nothing passes for a result.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use cli::{Dir, Ran, brim, golden, run};
use serve::Server;

/// A disk without room.
fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe whose reader is gone.
fn closed_pipe() -> PipeWriter {
    std::io::pipe().unwrap().1
}

/// A pipe whose reader does not read, filled to the brim.
fn stalled_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let line = format!("{}\n", "x".repeat(4095));
    while writer.write_all(line.as_bytes()).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

/// `words` run by brim with every file that it writes limited to 0 bytes.
fn brim_below_file_size_0(words: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_brim")]).args(words);
    command
}

fn serve_words() -> [&'static str; 3] {
    ["serve", "--listen", "127.0.0.1:0"]
}

fn lost_lines(server: &Server) -> u64 {
    let text = server.get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix("brim_log_lines_lost_total ")).unwrap();
    value.parse().unwrap()
}

/// Answers, counts what it could not say, and ends as it was told to.
fn outlives_its_log(server: Server) {
    (0..3).for_each(|_| server.is_well());
    assert!(lost_lines(&server) >= 3);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_server_outlives_a_log_on_a_full_disk() {
    outlives_its_log(Server::spawn_saying(brim(&serve_words()), full_disk()).ready());
}

#[test]
fn a_server_outlives_the_reader_of_its_log() {
    outlives_its_log(Server::spawn_saying(brim(&serve_words()), closed_pipe()).ready());
}

#[test]
fn a_server_outlives_a_log_beyond_its_file_size_limit() {
    let dir = Dir::new("output-limit");
    let log = File::create(dir.at("log")).unwrap();
    outlives_its_log(Server::spawn_saying(brim_below_file_size_0(&serve_words()), log).ready());
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up_and_its_reader_learns_what_it_missed() {
    let (reader, writer) = stalled_pipe();
    let server = Server::spawn_saying(brim(&serve_words()), writer).ready();
    let begun = Instant::now();
    (0..5).for_each(|_| server.is_well());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let lost = lost_lines(&server);
    assert!(lost >= 5, "{lost}");
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    // All that was in the pipe when it was full; a line of log is 4096 bytes at most.
    std::thread::scope(|scope| {
        let missing =
            scope.spawn(|| lines.find_map(|line| Some(line.split_once("could not be written: ")?.1.to_owned())));
        while !missing.is_finished() {
            server.is_well();
        }
        let missing: u64 = missing.join().unwrap().unwrap().parse().unwrap();
        assert!(missing >= lost, "{missing} lines, but {lost} had been lost before");
    });
    assert_eq!(server.stop(), Some(0));
    assert!(lines.any(|line| line.contains("/v1/chat/completions 200")), "the line that could be written is not there");
}

#[test]
fn a_server_begins_where_nobody_reads_what_it_says() {
    let dir = Dir::new("output-socket");
    let socket = dir.at("brim.sock");
    let (_reader, writer) = stalled_pipe();
    let mut command = brim(&["serve", "--listen", &format!("unix:{socket}")]);
    let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    let begun = Instant::now();
    let health = || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let is_ready = loop {
        let is_ready = health().is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
        if is_ready || begun.elapsed() > Duration::from_secs(60) {
            break is_ready;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_ready);
}

#[test]
fn a_result_that_cannot_be_written_is_exit_1() {
    let dir = Dir::new("output-results");
    let text = dir.file("text", "How do I reserve huge pages?");
    let (model, demo) = (golden("llama-f32"), golden("qwen3-f32"));
    let commands: [&[&str]; 16] = [
        &["--version"],
        &["--help"],
        &["run", "--help"],
        &["run", "-p", "How do I reserve huge pages?", "-n", "4"],
        &["run", "-m", &model, "--raw", "-p", "A text", "-n", "4"],
        &["doctor"],
        &["doctor", "--json"],
        &["plan"],
        &["plan", "--json"],
        &["inspect", &demo],
        &["inspect", "--json", &demo],
        &["tokenize", "--ends"],
        &["eval", "-m", &model, "-f", &text],
        &["bench", "model", "-m", &model, "-p", "4", "-n", "2", "-r", "1"],
        &["bench", "model", "-m", &model, "-p", "4", "-n", "2", "-r", "1", "--json"],
        &["selftest"],
    ];
    for words in commands {
        let output = brim(words).stdout(full_disk()).stderr(Stdio::piped()).output().unwrap();
        Ran::from(output).fails(1, &["stdout: No space left on device", "incomplete"]);
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    for words in [&["run", "-p", "How do I reserve huge pages?"][..], &["doctor"], &["inspect", &golden("qwen3-f32")]] {
        let output = brim(words).stdout(closed_pipe()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
    }
}

#[test]
fn exit_codes_do_not_need_anybody_who_listens() {
    let model = golden("llama-f32");
    let cases: [(&[&str], i32); 4] = [
        (&["run", "-v", "-p", "How do I reserve huge pages?", "-n", "4"], 0),
        (&["run", "--frobnicate"], 2),
        (&["run", "-m", "/nonexistent", "-p", "a"], 4),
        // 192 GiB of KV cache.
        (&["serve", "-m", &model, "--ctx", "16777216", "--slots", "64", "--listen", "127.0.0.1:0"], 5),
    ];
    for (words, code) in cases {
        for stderr in [Stdio::from(full_disk()), Stdio::from(closed_pipe())] {
            let output = brim(words).stderr(stderr).output().unwrap();
            assert_eq!((output.status.code(), output.status.signal()), (Some(code), None), "{words:?}");
        }
    }
    // Nor a stderr that is there, nor a stdin.
    let script = "exec \"$@\" <&- 2>&-";
    let words = ["run", "-v", "-p", "How do I reserve huge pages?", "-n", "4"];
    let output =
        Command::new("sh").args(["-c", script, "sh", env!("CARGO_BIN_EXE_brim")]).args(words).output().unwrap();
    assert_eq!(Ran::from(output).good(), run(&words).good());
}
