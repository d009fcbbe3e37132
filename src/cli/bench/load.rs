//! `bench load`: how fast a model is loaded, cold and warm, beside what this disk and this memory give at most in the same
//! run; time to Ready, time to the first token, and what memory it took on the way.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::args::Bench;
use super::super::common::note;
use super::figures::{Spread, say, thread};
use super::model::random_tokens;
use crate::boot::{Foundations, Headers, Workload};
use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use crate::load::header::ModelFiles;
use crate::load::{Io, Progress};
use crate::memory::{Arena, Host, Plan, RegionName};
use crate::settings::Settings;
use crate::sys::page_size::BASE_PAGE_BYTES;
use crate::sys::read::{Direct, cached_pages, drop_cached};
use crate::sys::{cpu, file};
use crate::units::{Human, MIB};

/// Weights that a holder keeps: nothing is loaded.
const RESIDENT: &str = "resident";

/// Tokens of the prompt before the first token.
const PROMPT: usize = 4;

/// How the disk is asked: bytes of a read, and threads. The best is the ceiling.
const DIRECT_WAYS: [(usize, usize); 3] = [(1 << 20, 4), (1 << 20, 8), (4 << 20, 4)];

/// Bytes that direct reads go to before the first of them are used again: more than any L3 of today, for weights must reach
/// memory. (A virtual disk gave 3.4 GB/s into 4 MiB that stay in the caches of its host, and 2.7 into 32 MiB and more.)
const DIRECT_BYTES: usize = 512 << 20;

/// How long available memory may take to come to rest before a load: freed pages leave per-CPU lists within some seconds, and
/// a virtual machine reports them to its host, batches of 128 MiB that are not available while it does. None of that is
/// what a load takes.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// A way to load, and from what state of the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    warm: bool,
    io: &'static str,
}

/// One load.
struct Sample {
    /// First read to last repack.
    load: Duration,
    /// From nothing to Ready: headers, plan, memory, weights, vocabulary, workers.
    ready: Duration,
    first_token: Duration,
    gbs: f64,
    direct_bytes: u64,
    filled_bytes: u64,
    readers: usize,
    watch: Watch,
}

/// Least available memory and most page cache during a load, against the state before.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    taken_bytes: u64,
    cache_growth_bytes: u64,
    resident_peak_bytes: u64,
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let Some(model) = settings.model.as_deref() else {
        return Err(Error::usage("bench load: the demo model is in the binary, not on a disk; give a file with -m"));
    };
    let files = ModelFiles::open(model)?;
    let total_bytes = files.total_bytes();
    let case = |warm| move |io: Io| (Case { warm, io: io.as_str() }, io);
    let mut cold = [Io::Auto, Io::Direct, Io::Buffered].map(case(false));
    let warm = [Io::Auto, Io::Buffered].map(case(true));
    let mut direct: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let (mut reused, mut copy) = (Vec::new(), Vec::new());
    let mut samples: BTreeMap<Case, Vec<Sample>> = BTreeMap::new();
    // Memory that this machine never used can be slow to touch for the first time: touch it before anything counts.
    warm_up(&files)?;
    copy_speed(&files, settings)?;
    let mut no_direct = None;
    for _ in 0..args.repeat {
        for (case, io) in &cold {
            evict(&files)?;
            settle();
            match one_load(settings, *io) {
                Ok(sample) => samples.entry(*case).or_default().push(sample),
                Err(e) if *io == Io::Direct && e.exit() == Exit::Model => {
                    if no_direct.is_none() {
                        note(&format!("direct reads not measured: {e}"));
                    }
                    no_direct = Some(e);
                }
                Err(e) => return Err(e),
            }
            if *io == Io::Auto && no_direct.is_none() {
                for (index, way) in DIRECT_WAYS.iter().enumerate() {
                    evict(&files)?;
                    match direct_speed(&files, settings, *way, DIRECT_BYTES)? {
                        Some(gbs) => direct.entry(index).or_default().push(gbs),
                        None => break,
                    }
                }
                evict(&files)?;
                let (bytes, threads) = DIRECT_WAYS[0];
                reused.extend(direct_speed(&files, settings, DIRECT_WAYS[0], bytes * threads)?);
            }
        }
        // The first after warm loads is slower than the others: each is first in turn.
        cold.rotate_left(1);
        warm_up(&files)?;
        for (case, io) in &warm {
            if *io == Io::Auto {
                copy.push(copy_speed(&files, settings)?);
            }
            samples.entry(*case).or_default().push(one_load(settings, *io)?);
        }
        if settings.resident.is_some() {
            let sample = watched(settings)?;
            samples.entry(Case { warm: true, io: RESIDENT }).or_default().push(sample);
        }
    }
    report(args, settings, total_bytes, &Ceilings { direct, reused, copy }, &samples)
}

/// What this disk and this memory give at most, in GB/s.
struct Ceilings {
    /// Direct reads into memory, by the index of the way.
    direct: BTreeMap<usize, Vec<f64>>,
    /// Direct reads into a few buffers that stay in a cache: no ceiling for a load, but what tools for disks report.
    reused: Vec<f64>,
    /// Copies from the page cache into new pages.
    copy: Vec<f64>,
}

fn report(
    args: &Bench,
    settings: &Settings,
    total_bytes: u64,
    ceilings: &Ceilings,
    samples: &BTreeMap<Case, Vec<Sample>>,
) -> Result<Value> {
    let best = ceilings.direct.iter().map(|(way, figures)| (DIRECT_WAYS[*way], Spread::of(figures)));
    let best = best.max_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let copy = Spread::of(&ceilings.copy);
    let reused = (!ceilings.reused.is_empty()).then(|| Spread::of(&ceilings.reused));
    let n_readers = samples.values().flatten().map(|sample| sample.readers).max().unwrap_or(0);
    say(
        args,
        &format!(
            "{}, {} pages of {}, {} loader threads",
            settings.model.as_deref().unwrap_or_default(),
            Human(total_bytes),
            settings.page(),
            n_readers
        ),
    )?;
    if let Some((((bytes, threads), speed), reused)) = best.as_ref().zip(reused) {
        let reads = Human(*bytes as u64);
        say(
            args,
            &format!(
                "ceiling cold: {speed:.2} GB/s, direct reads of {reads} by {threads} threads into memory; {reused:.2} GB/s into a few buffers again and again"
            ),
        )?;
    }
    let threads = settings.threads();
    say(
        args,
        &format!("ceiling warm: {copy:.2} GB/s, copied from the page cache into new pages by {threads} threads"),
    )?;
    let mut rows = Vec::new();
    for (case, samples) in samples {
        let spread = |figure: &dyn Fn(&Sample) -> f64| Spread::of(&samples.iter().map(figure).collect::<Vec<_>>());
        let gbs = spread(&|s| s.gbs);
        let (load, ready) = (spread(&|s| s.load.as_secs_f64()), spread(&|s| s.ready.as_secs_f64()));
        let first = spread(&|s| s.first_token.as_secs_f64());
        let most = |figure: &dyn Fn(&Watch) -> u64| samples.iter().map(|s| figure(&s.watch)).max().unwrap_or(0);
        let (taken, cache) = (most(&|w| w.taken_bytes), most(&|w| w.cache_growth_bytes));
        let ceiling = match case.warm {
            _ if case.io == RESIDENT => None,
            true => Some(copy),
            false => best.as_ref().map(|(_, speed)| *speed),
        };
        let share = ceiling.map(|ceiling| gbs.median / ceiling.median);
        let state = if case.warm { "warm" } else { "cold" };
        let of = share.map_or(String::new(), |share| format!(", {:.0} % of the ceiling", share * 100.0));
        say(
            args,
            &format!(
                "{state} {:8} {gbs:.2} GB/s{of}; Ready in {ready:.3} s, first token in {first:.3} s; takes {}, page cache +{}",
                case.io,
                Human(taken),
                Human(cache)
            ),
        )?;
        rows.push(json!({
            "state": state, "io": case.io, "gbs": gbs.json(), "share_of_ceiling": share, "load_seconds": load.json(),
            "ready_seconds": ready.json(), "first_token_seconds": first.json(), "taken_bytes": taken,
            "cache_growth_bytes": cache, "resident_peak_bytes": most(&|w| w.resident_peak_bytes),
            "direct_bytes": samples.iter().map(|s| s.direct_bytes).max(),
            "filled_bytes": samples.iter().map(|s| s.filled_bytes).max(),
        }));
    }
    Ok(json!({
        "model": settings.model, "bytes": total_bytes, "page_bytes": settings.page().bytes(), "threads": threads,
        "readers": n_readers, "repetitions": args.repeat, "prompt_tokens": PROMPT,
        "ceilings": {
            "direct_read_gbs": best.map(|(_, speed)| speed.json()), "direct_read_reused_gbs": reused.map(Spread::json),
            "copy_gbs": copy.json(),
        },
        "loads": rows,
    }))
}

/// Loads the model as `run` would, to the first token.
fn one_load(settings: &Settings, io: Io) -> Result<Sample> {
    watched(&Settings { io, resident: None, ..settings.clone() })
}

fn watched(settings: &Settings) -> Result<Sample> {
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = thread(scope, || watch(&finished))?;
        let sample = load_and_answer(settings);
        finished.store(true, Ordering::Relaxed);
        let watch = watch.join().unwrap_or_default();
        sample.map(|sample| Sample { watch, ..sample })
    })
}

fn load_and_answer(settings: &Settings) -> Result<Sample> {
    let begun = Instant::now();
    let planned = Headers::read(settings)?.of_text("bench")?.plan(&Workload::default())?;
    let n_vocab = planned.headers.model.weights.n_vocab();
    let mut base = Foundations::default();
    let running = planned.map()?.start(&mut base, &Progress::default())?;
    let mut engine = Engine::new(running.core);
    let ready = begun.elapsed();
    let logits = engine.feed(&random_tokens(PROMPT.min(n_vocab), n_vocab, 1))?;
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    std::hint::black_box(best);
    let (load, traffic) = (running.loaded.elapsed, running.loaded.traffic);
    Ok(Sample {
        load,
        ready,
        first_token: begun.elapsed(),
        gbs: running.loaded.bytes as f64 / 1e9 / load.as_secs_f64(),
        direct_bytes: traffic.direct_bytes,
        filled_bytes: traffic.filled_bytes,
        readers: running.loaded.readers,
        watch: Watch::default(),
    })
}

/// Looks at the box until `finished`.
fn watch(finished: &AtomicBool) -> Watch {
    const EVERY: Duration = Duration::from_millis(10);
    let host = Host::default();
    let (available, cached) = (host.memory_available_bytes(), host.page_cache_bytes());
    let mut seen = Watch::default();
    while !finished.load(Ordering::Relaxed) {
        seen.taken_bytes = seen.taken_bytes.max(available.saturating_sub(host.memory_available_bytes()));
        seen.cache_growth_bytes = seen.cache_growth_bytes.max(host.page_cache_bytes().saturating_sub(cached));
        std::thread::sleep(EVERY);
    }
    Watch { resident_peak_bytes: file::resident_peak_bytes().unwrap_or(0), ..seen }
}

/// Waits until available memory has not changed by more than 2 MiB for two seconds, or for [`SETTLE_MAX`].
fn settle() {
    const EVERY: Duration = Duration::from_millis(250);
    const STILL: usize = 8;
    let (host, begun) = (Host::default(), Instant::now());
    let mut seen = Vec::new();
    while begun.elapsed() < SETTLE_MAX {
        seen.push(host.memory_available_bytes());
        let last = &seen[seen.len().saturating_sub(STILL)..];
        let apart = last.iter().max().zip(last.iter().min()).map_or(0, |(most, least)| most - least);
        if last.len() == STILL && apart < 2 * MIB {
            return;
        }
        std::thread::sleep(EVERY);
    }
}

/// The open files of the set.
fn opened(files: &ModelFiles) -> impl Iterator<Item = (u16, &std::fs::File)> {
    // As many files as a set may have: far below u16::MAX.
    (0..files.len()).filter_map(|index| Some((index as u16, files.file(index as u16)?)))
}

/// Drops the files from the page cache: no root needed, for they are clean.
fn evict(files: &ModelFiles) -> Result<()> {
    for (index, file) in opened(files) {
        let bytes = files.file_bytes(index);
        drop_cached(file, 0, bytes.next_multiple_of(BASE_PAGE_BYTES as u64));
        let left = cached_pages(file, 0, bytes).unwrap_or(0);
        // A thousandth may be in use by somebody else.
        if left > bytes / BASE_PAGE_BYTES as u64 / 1000 {
            let path = files.path(index).display();
            let text =
                format!("{left} pages of {path} stay in the page cache: was it written just now? `sync` and retry");
            return Err(Error::new(Exit::Unexpected, text));
        }
    }
    Ok(())
}

/// Reads the files through the page cache, to have them there.
fn warm_up(files: &ModelFiles) -> Result<()> {
    let mut buffer = vec![0u8; MIB as usize];
    for (index, file) in opened(files) {
        for offset in (0..files.file_bytes(index)).step_by(buffer.len()) {
            file.read_at(&mut buffer, offset)
                .map_err(|e| Error::new(Exit::Model, e).at(files.path(index).display()))?;
        }
    }
    Ok(())
}

/// GB/s of reading the files around the page cache into `into_bytes` of memory, over and over, and doing nothing else;
/// `None` where that is not possible.
fn direct_speed(
    files: &ModelFiles,
    settings: &Settings,
    (bytes, threads): (usize, usize),
    into_bytes: usize,
) -> Result<Option<f64>> {
    let mut stretches = Vec::new();
    let mut direct = Vec::new();
    for (index, file) in opened(files) {
        let Ok(opened) = Direct::open(file, files.path(index)) else { return Ok(None) };
        direct.push(opened);
        stretches.extend((0..files.file_bytes(index)).step_by(bytes).map(|offset| (usize::from(index), offset)));
    }
    let next = Mutex::new(stretches.into_iter());
    let failed = AtomicBool::new(false);
    // In pages as the loader's buffers: a disk is faster where its data goes to fewer pieces of memory.
    let mut plan = Plan::new(settings.page());
    // No more than a load of these files takes.
    let each = into_bytes.min(files.total_bytes() as usize) / threads / bytes * bytes;
    let each = each.max(bytes);
    plan.add(RegionName::Scratch, (threads * each) as u64)?;
    let mut arena = Arena::map(&plan, settings.keep_free_bytes())?;
    let buffers = arena.split().scratch;
    buffers.fill(0);
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        for buffer in buffers.chunks_exact_mut(each) {
            let (next, failed, direct) = (&next, &failed, &direct);
            thread(scope, move || {
                let _ = cpu::confine_to(&settings.cores);
                let mut at = 0;
                while let Some((file, offset)) = next.lock().ok().and_then(|mut next| next.next()) {
                    if direct[file].file.read_at(&mut buffer[at..at + bytes], offset).is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    at = (at + bytes) % each;
                }
            })?;
        }
        Ok(())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((!failed.into_inner()).then(|| files.total_bytes() as f64 / 1e9 / seconds))
}

/// GB/s of copying the files from the page cache into pages as the loader gets them: mapped, cleared and filled, with
/// nothing repacked.
fn copy_speed(files: &ModelFiles, settings: &Settings) -> Result<f64> {
    const STEP: usize = 2 << 20;
    let mut plan = Plan::new(settings.page());
    for (index, _) in opened(files) {
        plan.add(RegionName::Scratch, files.file_bytes(index).next_multiple_of(STEP as u64))?;
    }
    let begun = Instant::now();
    let mut arena = Arena::reserve(&plan, settings.keep_free_bytes())?;
    let pages = arena.pages();
    let mut places = arena.split().scratch.chunks_mut(STEP);
    let mut steps = Vec::new();
    for (index, file) in opened(files) {
        let offsets = (0..files.file_bytes(index)).step_by(STEP);
        steps.extend(offsets.zip(places.by_ref()).map(|(offset, place)| (file, offset, place)));
    }
    let next = Mutex::new(steps.into_iter());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..settings.threads() {
            thread(scope, || {
                let _ = cpu::confine_to(&settings.cores);
                while let Some((file, offset, place)) = next.lock().ok().and_then(|mut next| next.next()) {
                    let done = pages
                        .populate(place)
                        .map_err(Error::from)
                        .and_then(|()| file.read_at(place, offset).map(|_| ()).map_err(|e| Error::new(Exit::Model, e)));
                    if let (Err(e), Ok(mut failure)) = (done, failure.lock()) {
                        failure.get_or_insert(e);
                    }
                }
            })?;
        }
        Ok(())
    })?;
    if let Ok(Some(e)) = failure.into_inner() {
        return Err(e);
    }
    Ok(files.total_bytes() as f64 / 1e9 / begun.elapsed().as_secs_f64())
}
