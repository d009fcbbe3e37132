//! The scripts of `tools/init`: each is read by a shell (and by shellcheck and systemd-analyze where they are), and each is
//! started for real by its supervisor where that is installed, in huge pages where there are any: as Debian's packages
//! `busybox`, `openrc`, `runit`, `s6` and `systemd` have them. Those that expect their files in certain places run in a
//! mount and PID namespace of their own. With `REQUIRE_SUPERVISORS=1` a supervisor that is missing is a failure.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/pool.rs"]
mod pool;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cli::Dir;
use pool::Pool;

const SCRIPTS: [&str; 5] = ["brim.sysv", "brim.openrc", "s6/brim/run", "runit/brim/run", "runit/brim/check"];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/init").join(name)
}

/// Runs a program if this box has it.
fn if_there(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(_) => {
            let required = std::env::var("REQUIRE_SUPERVISORS").is_ok_and(|value| value == "1");
            let is_supervisor = !["shellcheck", "systemd-analyze"].contains(&program);
            assert!(!(required && is_supervisor), "REQUIRE_SUPERVISORS=1, but there is no {program}");
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
    let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Settings for the scripts; with a pool the server is in huge pages.
fn conf(dir: &Dir, port: u16, pool: Option<&Pool>) -> String {
    let pages = pool.map_or("", |_| "BRIM_HUGEPAGES=1\n");
    dir.file("brim.conf", format!("BRIM_LISTEN=127.0.0.1:{port}\nBRIM_THREADS=1\nBRIM_CTX=512\n{pages}"))
}

/// Huge pages for one server.
fn pool() -> Option<Pool> {
    Pool::with_room(24)
}

/// Huge pages that somebody has.
fn taken(pool: Option<&Pool>) -> Option<u64> {
    pool.map(|pool| pool.state().total - pool.state().available())
}

/// Checks that it is the pool that a server which is up has its memory of.
fn is_in_huge_pages(pool: Option<&Pool>, before: Option<u64>) {
    assert!(pool.is_none() || taken(pool) > before, "{:?} pages are taken, before {before:?}", taken(pool));
}

/// A box of its own around a script: a mount and a PID namespace in which brim and its settings are where they belong.
struct Box {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Box {
    /// `files` are copied to their places first. `None` where the kernel or rights do not allow it.
    fn run(dir: &Dir, conf: &str, files: &[(&str, &str)], script: &str) -> Option<Box> {
        let words = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc"];
        let allowed = if_there("unshare", &[&words[..], &["true"]].concat())?;
        if !allowed.status.success() {
            eprintln!("SKIPPED: no namespaces: {}", String::from_utf8_lossy(&allowed.stderr));
            return None;
        }
        let mut text = format!(
            "set -e\nmount --make-rprivate /\nfor dir in /run /var/log /usr/local/bin; do mount -t tmpfs box $dir; done\n\
             cp -a /etc /run/etc\nmount --bind /run/etc /etc\n\
             touch /usr/local/bin/brim\nmount --bind {} /usr/local/bin/brim\ncp {conf} /etc/brim.conf\n",
            env!("CARGO_BIN_EXE_brim"),
        );
        for (from, to) in files {
            text += &format!("mkdir -p $(dirname {to})\ncp {} {to}\n", self::script(from).display());
        }
        let path = dir.file("box.sh", text + script);
        let mut command = Command::new("unshare");
        command.args(words).args(["sh", &path]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Some(Box { child, lines })
    }

    /// Waits for a line of the script.
    #[track_caller]
    fn says(&mut self, want: &str) {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the script ended without saying {want:?}");
            eprint!("{line}");
            if line.trim_end() == want {
                return;
            }
        }
    }

    /// Lets the script go on after a `read`.
    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    fn ends_well(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        // The kernel ends what is in a PID namespace with its first process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts, reloads, restarts and stops it with a script that says `started`, `restarted`, `stopped` in turn.
fn supervised(name: &str, program: &str, files: &[(&str, &str)], script: &str) {
    if if_there(program, &["--version"]).is_none() {
        return;
    }
    let (dir, port, pool) = (Dir::new(name), port(), pool());
    let before = taken(pool.as_ref());
    let Some(mut inside) = Box::run(&dir, &conf(&dir, port, pool.as_ref()), files, script) else { return };
    inside.says("started");
    wait("it answers", || is_healthy(port));
    is_in_huge_pages(pool.as_ref(), before);
    inside.go_on();
    inside.says("restarted");
    wait("it answers again", || is_healthy(port));
    inside.go_on();
    inside.says("stopped");
    assert!(!is_healthy(port));
    inside.ends_well();
    assert_eq!(taken(pool.as_ref()), before, "all pages are given back");
}

#[test]
fn systemd_waits_until_it_is_ready() {
    // The manager of a user takes the same units, and needs not be PID 1. What it cannot do is to give a service mounts of
    // its own.
    let script = r#"
        mkdir -p /run/systemd/system /run/user /run/units/brim.service.d
        printf '[Service]\nProtectHome=no\nPrivateTmp=no\n' >/run/units/brim.service.d/mounts.conf
        export XDG_RUNTIME_DIR=/run/user SYSTEMD_UNIT_PATH=/run/units:
        for kind in systemd unified; do
            if [ -d /sys/fs/cgroup/$kind ]; then
                mkdir -p /sys/fs/cgroup/$kind/brim-test
                echo $$ >/sys/fs/cgroup/$kind/brim-test/cgroup.procs
            fi
        done
        /lib/systemd/systemd --user --unit=basic.target --log-level=warning >&2 &
        for i in $(seq 100); do systemctl --user is-active --quiet basic.target && break; sleep 0.1; done
        systemctl --user start brim
        test "$(systemctl --user show -P ActiveState brim)" = active
        test "$(systemctl --user show -P WatchdogUSec brim)" = 2min
        echo started; read _
        systemctl --user reload brim
        # Killed, it is started again.
        systemctl --user kill --signal=KILL brim
        for i in $(seq 200); do
            test "$(systemctl --user show -P NRestarts -P ActiveState brim | tr '
' ' ')" = "1 active " && break
            sleep 0.1
        done
        echo restarted; read _
        systemctl --user stop brim
        test "$(systemctl --user show -P Result brim)" = success
        echo stopped"#;
    supervised("init-systemd", "/lib/systemd/systemd", &[("brim.service", "/run/units/brim.service")], script);
    for kind in ["systemd", "unified"] {
        // Empty by now; the kernel refuses otherwise.
        let of_test = Path::new("/sys/fs/cgroup").join(kind).join("brim-test");
        let _ = Command::new("find").arg(of_test).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
    }
}

#[test]
fn openrc_supervises_it() {
    let script = r#"
        # As OpenRC leaves it at boot.
        for dir in starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled tmp; do
            mkdir -p /run/openrc/$dir
        done
        touch /run/openrc/softlevel
        # What the file systems are mounted by is a service of the distribution.
        printf '#!/sbin/openrc-run
start() { :; }
' >/etc/init.d/localmount
        chmod +x /etc/init.d/localmount /etc/init.d/brim
        rc-service brim start >&2
        rc-service brim status >&2
        echo started; read _
        rc-service brim reload >&2
        rc-service brim restart >&2
        echo restarted; read _
        rc-service brim stop >&2
        ! rc-service brim status >&2
        echo stopped"#;
    supervised("init-openrc", "openrc-run", &[("brim.openrc", "/etc/init.d/brim")], script);
}

#[test]
fn busybox_init_starts_it_again() {
    if if_there("busybox", &["true"]).is_none() {
        return;
    }
    let (dir, port, pool) = (Dir::new("init-busybox"), port(), pool());
    let before = taken(pool.as_ref());
    let script =
        "chmod +x /etc/init.d/brim\necho '::respawn:/etc/init.d/brim run' >/etc/inittab\nexec busybox init >&2";
    let conf = conf(&dir, port, pool.as_ref());
    let Some(inside) = Box::run(&dir, &conf, &[("brim.sysv", "/etc/init.d/brim")], script) else { return };
    wait("it answers", || is_healthy(port));
    is_in_huge_pages(pool.as_ref(), before);
    // brim is a child of init, which is the child of unshare.
    let children = |pid: &str| {
        let list = Command::new("pgrep").args(["-P", pid]).output().unwrap().stdout;
        String::from_utf8(list).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let init = &children(&inside.child.id().to_string())[0];
    let brim = children(init);
    assert_eq!(brim.len(), 1, "{brim:?}");
    assert!(Command::new("kill").args(["-KILL", &brim[0]]).status().unwrap().success());
    wait("another is there", || children(init).first().is_some_and(|pid| *pid != brim[0]));
    wait("it answers again", || is_healthy(port));
    drop(inside);
    wait("all pages are given back", || taken(pool.as_ref()) == before);
}

#[test]
fn the_sysv_script_starts_reloads_and_stops() {
    sysv(&["sh"]);
    if if_there("busybox", &["true"]).is_some() {
        sysv(&["busybox", "sh"]);
    }
}

fn sysv(shell: &[&str]) {
    let (dir, port, pool) = (Dir::new("init-sysv"), port(), pool());
    let before = taken(pool.as_ref());
    let conf = conf(&dir, port, pool.as_ref());
    let script = |word: &str| {
        let mut command = Command::new(shell[0]);
        command
            .args(&shell[1..])
            .arg(script("brim.sysv"))
            .arg(word)
            .env("BRIM", env!("CARGO_BIN_EXE_brim"))
            .env("CONF", &conf);
        command.env("PIDFILE", dir.at("pid")).env("LOG", dir.at("log")).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().unwrap().code()
    };
    assert_eq!(script("status"), Some(3));
    assert_eq!(script("start"), Some(0));
    wait("it answers", || is_healthy(port));
    is_in_huge_pages(pool.as_ref(), before);
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
fn s6_hears_when_it_is_ready() {
    if if_there("s6-svscan", &["-h"]).is_none() {
        return;
    }
    let (dir, port, pool) = (Dir::new("init-s6"), port(), pool());
    let before = taken(pool.as_ref());
    let service = dir.path().join("scan/brim");
    std::fs::create_dir_all(&service).unwrap();
    for name in ["run", "notification-fd", "timeout-kill"] {
        std::fs::copy(script("s6/brim").join(name), service.join(name)).unwrap();
    }
    let mut command = Command::new("s6-svscan");
    command.arg(dir.path().join("scan")).env("BRIM", env!("CARGO_BIN_EXE_brim"));
    command.env("CONF", conf(&dir, port, pool.as_ref())).stdin(Stdio::null()).stdout(Stdio::null());
    let mut scan = command.spawn().unwrap();
    let control = |program: &str, words: &[&str]| {
        let status = Command::new(program).args(words).arg(&service).status().unwrap();
        assert!(status.success(), "{program} {words:?}: {status}");
    };
    wait("s6-supervise is there", || Command::new("s6-svok").arg(&service).status().unwrap().success());
    control("s6-svwait", &["-U", "-t", "30000"]);
    assert!(is_healthy(port), "it says that it is ready when it is");
    is_in_huge_pages(pool.as_ref(), before);
    control("s6-svc", &["-h"]);
    control("s6-svc", &["-wR", "-T", "30000", "-r"]);
    assert!(is_healthy(port));
    control("s6-svc", &["-wD", "-T", "30000", "-d"]);
    assert!(!is_healthy(port));
    // To s6-svscan, SIGTERM is: stop everything, then end.
    assert!(Command::new("kill").arg(scan.id().to_string()).status().unwrap().success());
    scan.wait().unwrap();
    assert_eq!(taken(pool.as_ref()), before, "all pages are given back");
}

#[test]
fn runit_supervises_it() {
    if if_there("runsv", &[]).is_none() {
        return;
    }
    let (dir, port, pool) = (Dir::new("init-runit"), port(), pool());
    let before = taken(pool.as_ref());
    let service = dir.path().join("brim");
    std::fs::create_dir(&service).unwrap();
    for name in ["run", "check"] {
        std::fs::copy(script("runit/brim").join(name), service.join(name)).unwrap();
    }
    let mut command = Command::new("runsv");
    let conf = conf(&dir, port, pool.as_ref());
    command.arg(&service).env("BRIM", env!("CARGO_BIN_EXE_brim")).env("CONF", &conf);
    let mut runsv = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait("it answers", || is_healthy(port));
    is_in_huge_pages(pool.as_ref(), before);
    let control = |words: &[&str]| {
        let mut command = Command::new("sv");
        command.args(["-w", "30"]).args(words).arg(&service).env("CONF", &conf);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    if if_there("wget", &["--version"]).is_some() {
        // `check` asks for its health.
        control(&["start"]);
        control(&["restart"]);
        assert!(is_healthy(port));
    }
    control(&["hup"]);
    // To runsv, SIGTERM is: stop the service, then end.
    assert!(Command::new("kill").arg(runsv.id().to_string()).status().unwrap().success());
    assert_eq!(runsv.wait().unwrap().code(), Some(0));
    assert!(!is_healthy(port));
    assert_eq!(taken(pool.as_ref()), before, "all pages are given back");
}
