//! Weights that outlive the process: the holder, its socket, and those who use what it holds. Ordinary pages where the box
//! has no pool, for the protocol is the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use brim::load::header::ModelFiles;
use brim::model::{Embedding, Model};
use cli::{Dir, Ran, brim, golden, run};
use pool::Pool;

/// A process that is killed at the end of the test if it still lives.
struct Process(Child);

impl Process {
    /// Starts a holder and waits until it says that it is ready.
    fn hold(command: &mut Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let process = Process(child);
        assert!(line.starts_with("ready: "), "{line:?}");
        process
    }

    /// Stops it as a supervisor does.
    fn stop(mut self) {
        let status = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }

    fn kill(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "it still runs");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The words of a run of `model` that answers greedily.
fn words<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let run = ["run", "--raw", "-p", "a b c", "-n", "8", "--temp", "0", "--ctx", "64", "-m", model];
    [&run[..], more].concat()
}

#[test]
fn resident_weights_give_the_same_answer_until_the_holder_stops() {
    let dir = Dir::new("hold");
    let model = dir.file("m.gguf", std::fs::read(golden("qwen3-mixed")).unwrap());
    let socket = dir.at("s.sock");
    let want = run(&words(&model, &[])).good();
    let resident = words(&model, &["--resident", &socket]);
    run(&resident).fails(5, &["resident weights at", &socket, "brim hold -m", "first"]);
    let notify = dir.at("notify.sock");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    let holding = Process::hold(brim(&["hold", "-m", &model, "--socket", &socket]).env("NOTIFY_SOCKET", &notify));
    let said = || {
        let mut buffer = [0; 64];
        let n = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    assert_eq!(said(), "READY=1");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660, "owner and group");
    for _ in 0..3 {
        assert_eq!(run(&resident).good(), want);
    }
    // Without a path it is the default socket, here in the user's runtime directory.
    let ran: Ran = brim(&words(&model, &["--resident"])).env("XDG_RUNTIME_DIR", dir.path()).output().unwrap().into();
    ran.fails(5, &["brim.sock"]);
    // A second holder at the same place is refused, and the first goes on.
    run(&["hold", "-m", &model, "--socket", &socket]).fails(7, &[&socket, "another holder is alive there"]);
    assert_eq!(run(&resident).good(), want);
    holding.stop();
    assert_eq!(said(), "STOPPING=1");
    assert!(!Path::new(&socket).exists(), "the socket goes with the holder");
}

#[test]
fn what_does_not_match_is_refused_by_name() {
    let dir = Dir::new("hold-mismatch");
    let bytes = std::fs::read(golden("qwen3-mixed")).unwrap();
    let model = dir.file("m.gguf", &bytes);
    let socket = dir.at("s.sock");
    let _holding = Process::hold(&mut brim(&["hold", "-m", &model, "--socket", &socket, "--isa", "scalar"]));
    let resident = ["--resident", &socket, "--isa", "scalar"];
    run(&words(&model, &resident)).good();
    let other = golden("qwen3-f16");
    run(&words(&other, &resident)).fails(4, &["holds", &model, "not", &other]);
    if brim::kernels::available().count() > 1 {
        run(&words(&model, &resident[..2])).fails(5, &["kernel tier scalar", "give both the same --isa"]);
    }
    std::fs::write(&model, &bytes).unwrap();
    run(&words(&model, &resident)).fails(4, &[&model, "has changed since it was loaded", "restart the holder"]);
    run(&["run", "-p", "a", "--resident", &socket]).fails(2, &["--resident", "-m"]);
    run(&["hold", "--socket", &socket]).fails(2, &["hold", "-m"]);
    run(&["hold", "-m", &model, "--ctx", "64"]).fails(2, &["--ctx"]);
}

#[test]
fn a_holder_that_was_killed_is_replaced_and_what_is_no_socket_is_left_alone() {
    let dir = Dir::new("hold-killed");
    let model = golden("qwen3-mixed");
    let socket = dir.at("s.sock");
    let holding = Process::hold(&mut brim(&["hold", "-m", &model, "--socket", &socket]));
    let want = run(&words(&model, &["--resident", &socket])).good();
    holding.kill();
    assert!(Path::new(&socket).exists(), "a killed holder cannot clean up");
    run(&words(&model, &["--resident", &socket])).fails(5, &["Connection refused", "brim hold"]);
    let holding = Process::hold(&mut brim(&["hold", "-m", &model, "--socket", &socket]));
    assert_eq!(run(&words(&model, &["--resident", &socket])).good(), want);
    holding.stop();
    let file = dir.file("file", "mine");
    run(&["hold", "-m", &model, "--socket", &file]).fails(7, &[&file, "not a socket"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    run(&["hold", "-m", &model, "--socket", "/nonexistent/dir/s"]).fails(7, &["/nonexistent/dir/s"]);
}

#[test]
fn two_processes_share_one_copy_and_neither_end_hurts_the_other() {
    let Some(pool) = Pool::with_room(96) else { return };
    let dir = Dir::new("hold-pool");
    let model = golden("qwen3-mixed");
    let socket = dir.at("s.sock");
    let before = pool.state();
    // Free pages that are promised count: the KV cache comes as the context grows.
    let taken = || before.available() - pool.state().available();
    let holding = Process::hold(&mut brim(&["hold", "--hugepages", "-m", &model, "--socket", &socket]));
    let held = taken();
    assert!(held > 0);
    // A context that takes some seconds to fill.
    let resident = ["--hugepages", "--ctx", "16384", "-m", &model, "--resident", &socket];
    let plan = run(&[&["plan", "--json"], &resident[..]].concat()).json();
    let own = plan["total_pages"].as_u64().unwrap();
    assert!(plan["regions"].as_array().unwrap().iter().all(|region| region["name"] != "weights"), "{plan}");
    let start = |pages: u64| {
        let words = [&["run", "-v", "--raw", "--temp", "0", "-p", "a b c"], &resident[..]].concat();
        let mut child = brim(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It asks the holder while it gets ready; from then on it has the weights.
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("loaded in") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let user = (Process(child), said);
        let begun = Instant::now();
        while taken() != pages {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} pages taken instead of {pages}", taken());
            std::thread::sleep(Duration::from_millis(1));
        }
        user
    };
    let first = start(held + own);
    let second = start(held + 2 * own);
    first.0.kill();
    assert_eq!(taken(), held + own, "kill -9 of a user leaves the holder and the other alone");
    let third = start(held + 2 * own);
    holding.kill();
    assert_eq!(taken(), held + 2 * own, "kill -9 of the holder leaves the users their weights");
    second.0.kill();
    assert_eq!(taken(), held + own);
    third.0.kill();
    assert_eq!(pool.state(), before, "the last one out gives the weights back");
}

#[test]
fn the_layout_tells_one_way_of_laying_weights_down_from_another() {
    let layout = |name: &str, embedding| {
        let files = ModelFiles::open(golden(name)).unwrap();
        let model = Model::with_embedding(&files.metadata(), files.tensors(), embedding).unwrap();
        model.weights.layout_sha256()
    };
    let one = layout("llama-q4_k", Embedding::InMemory);
    assert_eq!(one.len(), 64);
    assert_eq!(one, layout("llama-q4_k", Embedding::InMemory));
    assert_ne!(one, layout("llama-q4_k", Embedding::InFile), "other places");
    assert_ne!(one, layout("llama-f32", Embedding::InMemory), "other types");
}
