//! Loader with faults: interrupted, short and failing reads at every place, files that shrink or are replaced on the way,
//! checksums. The reader with faults stands where the system's stands; the files are real.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use brim::bytes::words_as_bytes;
use brim::error::{Error, Exit};
use brim::kernels::available;
use brim::load::Io;
use brim::load::header::ModelFiles;
use brim::load::reader::{Pread, Traffic, Way};
use brim::load::weights::{Job, Loader, Sha256Bytes};
use brim::model::Model;
use brim::sys::read::{cached_pages, drop_cached};
use cli::{Dir, golden};

/// What becomes of the read with number `at`, and of those of `Way::Direct` in general.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// EINTR, once.
    Interrupted,
    /// At most so many bytes, once.
    Short(usize),
    /// EIO, once.
    Broken,
    /// EINVAL for every read around the page cache.
    NoDirect,
}

struct Faulty<'a> {
    files: &'a ModelFiles,
    fault: Fault,
    at: usize,
    reads: AtomicUsize,
    /// Happens before the read with number `at`.
    before: Option<&'a (dyn Fn() + Sync)>,
    /// File and offset of the read that failed.
    failed: Mutex<Option<u64>>,
}

impl<'a> Faulty<'a> {
    fn new(files: &'a ModelFiles, fault: Fault, at: usize) -> Faulty<'a> {
        Faulty { files, fault, at, reads: AtomicUsize::new(0), before: None, failed: Mutex::new(None) }
    }
}

impl Pread for Faulty<'_> {
    fn pread(&self, file: u16, way: Way, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        let number = self.reads.fetch_add(1, Ordering::SeqCst);
        if way == Way::Direct {
            assert!(offset.is_multiple_of(512) && to.len().is_multiple_of(512), "{offset} {}", to.len());
            assert!(to.as_ptr().addr().is_multiple_of(512));
            if matches!(self.fault, Fault::NoDirect) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
        }
        if number == self.at {
            if let Some(before) = self.before {
                before();
            }
            match self.fault {
                Fault::Interrupted => return Err(io::Error::from_raw_os_error(libc::EINTR)),
                Fault::Broken => {
                    *self.failed.lock().unwrap() = Some(offset);
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                Fault::Short(most) => {
                    let n = to.len().min(most);
                    return self.files.pread(file, offset, &mut to[..n]);
                }
                Fault::None | Fault::NoDirect => {}
            }
        }
        self.files.pread(file, offset, to)
    }
}

/// A weights region that is compared as a whole and printed as nothing but its size.
#[derive(PartialEq)]
struct Region(Vec<u8>);

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Loads the model and returns the weights region, with what came which way.
fn load(io: Io, source: Option<(&dyn Pread, u64)>, files: &ModelFiles) -> Result<(Region, Traffic), Error> {
    load_checked(io, source, files, &[])
}

fn load_checked(
    io: Io,
    source: Option<(&dyn Pread, u64)>,
    files: &ModelFiles,
    sha256: &[Option<Sha256Bytes>],
) -> Result<(Region, Traffic), Error> {
    let model = Model::from_tables(&files.metadata(), files.tensors()).unwrap();
    let readers = 4;
    let each = model.buffer_bytes(readers);
    let mut words = vec![0f64; (each * readers).div_ceil(8)];
    let mut region = vec![0f64; model.weights.bytes.div_ceil(8)];
    let (done, jobs_done) = (AtomicU64::new(0), AtomicUsize::new(0));
    let job = || -> Job<'_> {
        Box::new(|| {
            jobs_done.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    };
    let buffers = words_as_bytes(&mut words)[..each * readers].chunks_exact_mut(each);
    let mut loader = Loader::new(available().last().unwrap(), buffers)
        .io(io)
        .meanwhile((0..7).map(|_| job()).collect())
        .sha256(sha256)
        .done(&done);
    if let Some((source, align_bytes)) = source {
        loader = loader.source(source, align_bytes);
    }
    let bytes = &mut words_as_bytes(&mut region)[..model.weights.bytes];
    let traffic = model.load(files, bytes, loader)?;
    let total: u64 = model.weights.placements.iter().map(|p| files.tensors()[p.tensor].bytes).sum();
    assert_eq!(done.into_inner(), total, "all bytes are counted");
    assert_eq!(jobs_done.into_inner(), 7, "every job is done once");
    assert!(words.iter().all(|&word| word.to_bits() == 0), "buffers are cleared");
    Ok((Region(bytes.to_vec()), traffic))
}

const MODELS: [&str; 2] = ["qwen3-mixed", "qwen3moe-q4_k"];

#[test]
fn every_way_of_reading_gives_the_same_weights() {
    for name in MODELS {
        let path = golden(name);
        let path = Path::new(&path);
        let files = ModelFiles::open(path).unwrap();
        let (want, _) = load(Io::Buffered, None, &files).unwrap();
        assert!(want.0.iter().any(|&byte| byte != 0));
        let (auto, _) = load(Io::Auto, None, &files).unwrap();
        assert!(auto == want, "{name}");
        match load(Io::Direct, None, &files) {
            Ok((direct, traffic)) => {
                assert!(direct == want, "{name}");
                assert!(traffic.direct_bytes > 0 && traffic.cached_bytes == 0, "{traffic:?}");
            }
            Err(e) => assert!(e.to_string().contains("use --io auto or buffered"), "{e}"),
        }
        for align in [0, 512, 4096] {
            let plain = Faulty::new(&files, Fault::None, 0);
            let (found, _) = load(Io::Direct, Some((&plain, align)), &files).unwrap();
            assert!(found == want, "{name}, aligned to {align}");
        }
    }
}

#[test]
fn a_file_system_that_refuses_direct_reads_late_is_read_through_the_cache() {
    let path = golden(MODELS[0]);
    let path = Path::new(&path);
    let files = ModelFiles::open(path).unwrap();
    let (want, _) = load(Io::Buffered, None, &files).unwrap();
    let refusing = Faulty::new(&files, Fault::NoDirect, usize::MAX);
    // The golden file may be cached or not: `direct` asks for direct reads whatever is there.
    let error = load(Io::Direct, Some((&refusing, 512)), &files).unwrap_err();
    assert_eq!(error.exit(), Exit::Model);
    assert!(error.to_string().contains("use --io auto or buffered"), "{error}");
    let (found, traffic) = load(Io::Auto, Some((&refusing, 512)), &files).unwrap();
    assert!(found == want && traffic.direct_bytes == 0, "{traffic:?}");
}

#[test]
fn interrupted_and_short_reads_at_every_place_go_on() {
    let path = golden(MODELS[0]);
    let path = Path::new(&path);
    let files = ModelFiles::open(path).unwrap();
    let (want, _) = load(Io::Buffered, None, &files).unwrap();
    let plain = Faulty::new(&files, Fault::None, usize::MAX);
    load(Io::Direct, Some((&plain, 512)), &files).unwrap();
    let reads = plain.reads.load(Ordering::SeqCst);
    assert!(reads >= 4, "{reads} reads");
    for (io, align) in [(Io::Buffered, 0), (Io::Direct, 512)] {
        for at in 0..reads {
            for fault in [Fault::Interrupted, Fault::Short(1), Fault::Short(511), Fault::Short(512), Fault::Short(5000)]
            {
                let faulty = Faulty::new(&files, fault, at);
                let (found, _) = load(io, Some((&faulty, align)), &files).unwrap();
                assert!(found == want, "{fault:?} at read {at}");
                assert!(faulty.reads.load(Ordering::SeqCst) > at, "the fault was met");
            }
        }
    }
}

#[test]
fn a_failing_read_at_every_place_is_exit_4_with_offset_and_cause() {
    let path = golden(MODELS[0]);
    let path = Path::new(&path);
    let files = ModelFiles::open(path).unwrap();
    for (io, align) in [(Io::Buffered, 0), (Io::Direct, 512)] {
        let mut met = 0;
        for at in 0..1000 {
            let faulty = Faulty::new(&files, Fault::Broken, at);
            let result = load(io, Some((&faulty, align)), &files);
            let Some(offset) = *faulty.failed.lock().unwrap() else {
                result.unwrap();
                break;
            };
            let error = result.unwrap_err();
            assert_eq!(error.exit(), Exit::Model);
            let text = error.to_string();
            assert!(text.starts_with(path.to_str().unwrap()), "{text}");
            let cause = format!("reading at offset {offset} failed: {}", io::Error::from_raw_os_error(libc::EIO));
            assert!(text.contains(&cause), "{cause:?} not in {text}");
            met += 1;
        }
        assert!(met >= 4, "{met} reads failed");
    }
}

#[test]
fn a_file_that_shrinks_is_replaced_or_changes_is_exit_4() {
    let dir = Dir::new("load-change");
    let bytes = fs::read(golden(MODELS[0])).unwrap();
    type Change<'a> = (&'a str, &'a (dyn Fn(&Path) + Sync), &'a [&'a str]);
    let other = bytes.clone();
    let changes: [Change<'_>; 4] = [
        (
            "shrinks",
            &|path| fs::File::options().write(true).open(path).unwrap().set_len(5000).unwrap(),
            &["changed while it was being loaded", "now 5000", "noticed by", "cut off"],
        ),
        (
            "replaced",
            &|path| {
                let new = path.with_extension("new");
                fs::write(&new, &other).unwrap();
                fs::rename(new, path).unwrap();
            },
            &["was replaced while it was being loaded", "start again"],
        ),
        ("removed", &|path| fs::remove_file(path).unwrap(), &["went away while it was being loaded"]),
        (
            "written to",
            &|path| {
                use std::os::unix::fs::FileExt;
                std::thread::sleep(std::time::Duration::from_millis(20));
                let file = fs::File::options().write(true).open(path).unwrap();
                file.write_all_at(b"x", 9000).unwrap();
            },
            &["changed while it was being loaded"],
        ),
    ];
    for (name, change, parts) in changes {
        let path = dir.file("model.gguf", &bytes);
        let path = Path::new(&path);
        let files = ModelFiles::open(path).unwrap();
        let before = || change(path);
        let mut faulty = Faulty::new(&files, Fault::None, 1);
        faulty.before = Some(&before);
        let error = load(Io::Buffered, Some((&faulty, 0)), &files).unwrap_err();
        assert_eq!(error.exit(), Exit::Model, "{name}");
        for part in parts {
            assert!(error.to_string().contains(part), "{name}: {part:?} not in {error}");
        }
        let _ = fs::remove_file(path);
    }
}

#[test]
fn a_checksum_is_checked_on_the_way() {
    // sha256sum of the file, by coreutils.
    let path = golden(MODELS[0]);
    let said = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let mut right = [0u8; 32];
    for (byte, hex) in right.iter_mut().zip(said.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
    }
    let path = Path::new(&path);
    let files = ModelFiles::open(path).unwrap();
    let (want, _) = load(Io::Buffered, None, &files).unwrap();
    for (io, align) in [(Io::Buffered, 0), (Io::Direct, 512)] {
        let plain = Faulty::new(&files, Fault::None, usize::MAX);
        let (found, _) = load_checked(io, Some((&plain, align)), &files, &[Some(right)]).unwrap();
        assert!(found == want);
        let mut wrong = right;
        wrong[31] ^= 1;
        let error = load_checked(io, Some((&plain, align)), &files, &[Some(wrong)]).unwrap_err();
        assert_eq!(error.exit(), Exit::Model);
        for part in ["SHA-256 is ", &said[..64], "model.sha256", "download it again"] {
            assert!(error.to_string().contains(part), "{part:?} not in {error}");
        }
        // A read that fails while others wait for their turn must not leave them waiting.
        let reads = plain.reads.load(Ordering::SeqCst) / 2;
        assert!(reads >= 4, "{reads} reads");
        for at in 0..reads {
            let faulty = Faulty::new(&files, Fault::Broken, at);
            load_checked(io, Some((&faulty, align)), &files, &[Some(right)]).unwrap_err();
        }
    }
}

#[test]
fn a_cold_load_leaves_nothing_in_the_page_cache_and_what_was_there_stays() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cold.gguf");
    fs::copy(golden(MODELS[0]), &path).unwrap();
    let file = fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    let bytes = file.metadata().unwrap().len();
    let cached = || cached_pages(&file, 0, bytes).unwrap();
    for io in [Io::Auto, Io::Buffered] {
        drop_cached(&file, 0, bytes.next_multiple_of(4096));
        if cached() > 0 {
            return eprintln!("SKIPPED: this file system keeps what is cached");
        }
        load(io, None, &ModelFiles::open(&path).unwrap()).unwrap();
        assert_eq!(cached(), 0, "{io}: pages that the load brought");
        // A file that somebody else has read.
        let pages = bytes.div_ceil(4096);
        io::copy(&mut &file, &mut io::sink()).unwrap();
        (&file).rewind().unwrap();
        assert_eq!(cached(), pages);
        load(io, None, &ModelFiles::open(&path).unwrap()).unwrap();
        assert_eq!(cached(), pages, "{io}: pages that were there");
    }
    fs::remove_file(&path).unwrap();
}
