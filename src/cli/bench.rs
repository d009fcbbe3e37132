//! `brim bench`: measures this box against its own ceilings. Repetitions are interleaved; medians are reported.

use std::time::Instant;

use serde_json::{Value, json};

use super::args::Bench;
use super::settings::Settings;
use super::{note, out};
use crate::boot;
use crate::engine::pool::Pool;
use crate::error::{Error, Result};
use crate::kernels::{ActLayout, Acts, Grid, Kernels, Matrix, STREAM_TOKENS_MAX, Team, Tile};
use crate::memory::{Arena, PageKind, Plan, RegionName};
use crate::quant::{PANEL_ROWS, WeightType};
use crate::units::{Human, MIB};

/// Executes `brim bench`.
///
/// # Errors
/// Usage, or whatever stands in the way of loading and running.
pub fn execute(args: &Bench) -> Result<()> {
    let settings = Settings::resolve(&args.model_args())?;
    if args.repeat == 0 || args.repeat > 1000 {
        return Err(Error::usage(format!("-r {}: needs 1 to 1000 repetitions", args.repeat)));
    }
    let report = match args.what.as_str() {
        "model" => model(args, settings)?,
        "kernels" => kernels(args, &settings)?,
        "memory" => memory(args, &settings)?,
        other => return Err(Error::usage(format!("bench {other}: measures `model`, `kernels` or `memory`"))),
    };
    if args.json {
        out(&serde_json::to_string_pretty(&report).unwrap_or_default());
    }
    Ok(())
}

/// Median, least and greatest of some figures.
#[derive(Clone, Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// # Panics
    /// If there are no figures.
    fn of(mut figures: Vec<f64>) -> Spread {
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = match figures.len() % 2 {
            0 => (figures[middle - 1] + figures[middle]) / 2.0,
            _ => figures[middle],
        };
        Spread { median, min: figures[0], max: figures[figures.len() - 1] }
    }
}

/// Runs `work` on every worker and returns the seconds until the last was done.
fn timed(team: &dyn Team, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let begun = Instant::now();
    team.run(work);
    begun.elapsed().as_secs_f64()
}

/// GMAC/s of all workers in a loop of nothing but `peak`.
fn peak(team: &dyn Team, peak: &(dyn Fn(usize) -> (u64, u64) + Sync)) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let (_, macs) = peak(1000);
    let seconds = timed(team, &|_| {
        std::hint::black_box(peak(ROUNDS));
    });
    (macs / 1000 * ROUNDS as u64 * team.size() as u64) as f64 / 1e9 / seconds
}

/// GB/s of all workers reading `data` once, each its own stretch.
fn read_bandwidth(kernels: &Kernels, team: &dyn Team, data: &[u8]) -> f64 {
    let each = data.len() / team.size();
    let seconds = timed(team, &|worker| {
        std::hint::black_box(kernels.read(&data[worker * each..][..each]));
    });
    (each * team.size()) as f64 / 1e9 / seconds
}

/// A small generator for token ids; the weights do not care which.
fn random_tokens(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n_vocab as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}

fn model(args: &Bench, mut settings: Settings) -> Result<Value> {
    let (n_prompt, n_gen, depth) = (args.n_prompt as usize, args.n_gen as usize, args.depth as usize);
    if n_prompt + n_gen == 0 {
        return Err(Error::usage("bench model: -p and -n are both 0, so there is nothing to measure"));
    }
    let need = depth + n_prompt + n_gen;
    if settings.ctx.is_none_or(|ctx| (ctx as usize) < need) {
        settings.ctx = Some(u32::try_from(need).map_err(|_| Error::usage(format!("{need} tokens are too many")))?);
    }
    let prepared = boot::prepare(&settings, 1)?;
    let (name, kernels, page) = (prepared.files.name().to_string(), prepared.kernels, prepared.plan.page());
    let weights = prepared.model.weights.clone();
    let n_vocab = weights.n_vocab();
    let (mut int8, mut bandwidth) = (Vec::new(), Vec::new());
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    boot::run(prepared, &settings, |mut running| {
        // The first round warms up and is not counted.
        for round in 0..=args.repeat {
            let (weights, pool) = (running.weights, running.pool);
            let ceiling = (read_bandwidth(kernels, pool, weights), peak(pool, &|rounds| kernels.peak_int8(rounds)));
            let engine = &mut running.engine;
            engine.rewind(0);
            if depth > 0 {
                engine.feed(&random_tokens(depth, n_vocab, 3))?;
            }
            let prompt = random_tokens(n_prompt, n_vocab, u64::from(round));
            let begun = Instant::now();
            if n_prompt > 0 {
                engine.feed(&prompt)?;
            }
            let prefill_seconds = begun.elapsed().as_secs_f64();
            let tokens = random_tokens(n_gen, n_vocab, u64::from(round) + 7);
            let begun = Instant::now();
            for token in &tokens {
                engine.feed(std::slice::from_ref(token))?;
            }
            let decode_seconds = begun.elapsed().as_secs_f64();
            if round > 0 {
                bandwidth.push(ceiling.0);
                int8.push(ceiling.1);
                prefill.push(n_prompt as f64 / prefill_seconds);
                decode.push(n_gen as f64 / decode_seconds);
            }
        }
        Ok(())
    })?;
    let (int8, bandwidth) = (Spread::of(int8), Spread::of(bandwidth));
    let (prefill, decode) = (Spread::of(prefill), Spread::of(decode));
    let macs = weights.macs_per_token as f64;
    let prefill_share = prefill.median * macs / 1e9 / int8.median;
    let decode_share = decode.median * weights.bytes_per_token as f64 / 1e9 / bandwidth.median;
    let mut types: Vec<WeightType> = weights.layers.iter().flat_map(|l| [l.q.ty, l.v.ty, l.ffn_down.ty]).collect();
    types.push(weights.output.ty);
    types.sort_by_key(|t| *t as u8);
    types.dedup();
    let names = |n: usize| types.iter().map(|t| kernels.name(*t, n)).collect::<Vec<_>>();
    if !args.json {
        out(&format!("{name}: kernels {}, {} threads, {} pages", kernels.tier().name(), settings.threads, page));
        out(&format!(
            "ceilings: int8 {:.0} GMAC/s ({:.0}-{:.0}), reading the weights {:.1} GB/s ({:.1}-{:.1})",
            int8.median, int8.min, int8.max, bandwidth.median, bandwidth.min, bandwidth.max
        ));
        if n_prompt > 0 {
            out(&format!(
                "pp{n_prompt} @ d{depth}: {:.2} tokens/s (min {:.2}, max {:.2}), {:.1} % of the int8 peak, {:.2} GMAC per token; {}",
                prefill.median,
                prefill.min,
                prefill.max,
                prefill_share * 100.0,
                macs / 1e9,
                names(512).join(" ")
            ));
        }
        if n_gen > 0 {
            out(&format!(
                "tg{n_gen} @ d{depth}: {:.2} tokens/s (min {:.2}, max {:.2}), {:.1} % of the read bandwidth, {} per token; {}",
                decode.median,
                decode.min,
                decode.max,
                decode_share * 100.0,
                Human(weights.bytes_per_token as u64),
                names(1).join(" ")
            ));
        }
    }
    let figures = |spread: &Spread, n: usize, share: f64, names: Vec<String>| {
        json!({
            "tokens": n, "tokens_per_second": spread.median, "min": spread.min, "max": spread.max,
            "share_of_ceiling": share, "kernels": names,
        })
    };
    Ok(json!({
        "model": name,
        "tier": kernels.tier().name(),
        "threads": settings.threads,
        "page_bytes": page.bytes(),
        "depth": depth,
        "repetitions": args.repeat,
        "ceilings": {"int8_gmacs": int8.median, "read_gbs": bandwidth.median},
        "macs_per_token": weights.macs_per_token,
        "bytes_per_token": weights.bytes_per_token,
        "prefill": figures(&prefill, n_prompt, prefill_share, names(512)),
        "decode": figures(&decode, n_gen, decode_share, names(1)),
    }))
}

fn kernels(args: &Bench, settings: &Settings) -> Result<Value> {
    const ROWS: usize = 2048;
    const COLS: usize = 2048;
    let kernels = boot::select_kernels(settings)?;
    let pool = Pool::start(&settings.cores)?;
    let tile = Tile::default();
    let mut rows = Vec::new();
    let mut int8 = Vec::new();
    let mut f32s = Vec::new();
    for _ in 0..args.repeat {
        int8.push(peak(&pool, &|rounds| kernels.peak_int8(rounds)));
        f32s.push(peak(&pool, &|rounds| kernels.peak_f32(rounds)));
    }
    let (int8, f32s) = (Spread::of(int8), Spread::of(f32s));
    if !args.json {
        out(&format!("tier {}, {} threads", kernels.tier().name(), settings.threads));
        out(&format!("peak int8 {:8.1} GMAC/s, peak f32 {:8.1} GMAC/s", int8.median, f32s.median));
    }
    for ty in WeightType::ALL {
        let file = vec![0x11u8; ROWS * ty.row_bytes(COLS)];
        let mut packed = vec![0u8; ty.matrix_bytes(ROWS, COLS)];
        let panels = packed.chunks_exact_mut(ty.panel_bytes(COLS));
        file.chunks(PANEL_ROWS * ty.row_bytes(COLS))
            .zip(panels)
            .for_each(|(rows, panel)| ty.repack_panel(rows, COLS, panel));
        let matrix = Matrix { panels: &packed, panel_bytes: ty.panel_bytes(COLS), cols: COLS };
        for n_tokens in [1, 4, 256] {
            let layout = ActLayout::new(COLS);
            let mut records = vec![0f32; n_tokens * layout.bytes() / 4];
            records.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 - 8.0);
            let mut bytes = crate::bytes::bytes_of(&records).to_vec();
            bytes
                .chunks_exact_mut(layout.bytes())
                .for_each(|record| kernels.quantise(layout, kernels.act_type(ty, n_tokens), record));
            let acts = Acts { records: &bytes, layout, n_tokens };
            let mut result = vec![0f32; n_tokens * ROWS];
            let stripe = if n_tokens <= STREAM_TOKENS_MAX { 256 } else { kernels.stripe_rows() };
            let passes = (2 * 256 / n_tokens).clamp(2, 100);
            let mut figures = Vec::new();
            for _ in 0..args.repeat {
                let begun = Instant::now();
                for _ in 0..passes {
                    let grid = Grid::new(&mut result, (n_tokens, ROWS, ROWS), (n_tokens, stripe));
                    pool.run(&|_| {
                        let mut scratch = vec![0f32; tile.scratch_bytes() / 4];
                        let scratch = crate::bytes::floats_as_bytes(&mut scratch);
                        while let Some(mut block) = grid.next() {
                            kernels.matmul(ty, &matrix, &acts, &mut block, false, (tile, scratch));
                        }
                    });
                }
                figures.push((passes * n_tokens * ROWS * COLS) as f64 / 1e9 / begun.elapsed().as_secs_f64());
            }
            let figures = Spread::of(figures);
            let ceiling = if ty.block_len() == 1 { f32s.median } else { int8.median };
            let gbs = figures.median / n_tokens as f64 * ty.row_bytes(COLS) as f64 / COLS as f64;
            let name = kernels.name(ty, n_tokens);
            if !args.json {
                out(&format!(
                    "{name:28} {ROWS}x{COLS} x{n_tokens:<4} {:8.1} GMAC/s {:5.1} % of peak {gbs:7.1} GB/s of weights",
                    figures.median,
                    figures.median / ceiling * 100.0
                ));
            }
            rows.push(json!({
                "kernel": name, "type": ty.name(), "rows": ROWS, "cols": COLS, "tokens": n_tokens,
                "gmacs": figures.median, "min": figures.min, "max": figures.max,
                "share_of_peak": figures.median / ceiling, "weights_gbs": gbs,
            }));
        }
    }
    Ok(json!({
        "tier": kernels.tier().name(), "threads": settings.threads,
        "peaks": {"int8_gmacs": int8.median, "f32_gmacs": f32s.median}, "kernels": rows,
    }))
}

fn memory(args: &Bench, settings: &Settings) -> Result<Value> {
    const BYTES: u64 = 512 * MIB;
    let kernels = boot::select_kernels(settings)?;
    let mut rows = Vec::new();
    for page in [PageKind::Base4K, settings.huge_page] {
        let mut plan = Plan::new(page);
        plan.add(RegionName::Scratch, BYTES)?;
        let mut arena = match Arena::map(&plan, settings.keep_free_bytes) {
            Ok(arena) => arena,
            Err(e) if page != PageKind::Base4K && !settings.hugepages => {
                note(&format!("huge pages not measured: {e}"));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let data = arena.split().scratch;
        data.fill(1);
        for threads in 1..=settings.threads {
            let pool = Pool::start(&settings.cores[..threads])?;
            let mut figures: Vec<f64> = (0..=args.repeat).map(|_| read_bandwidth(kernels, &pool, data)).collect();
            let figures = Spread::of(figures.split_off(1));
            if !args.json {
                out(&format!(
                    "read {:>5} pages, {threads:2} threads: {:6.1} GB/s (min {:.1}, max {:.1})",
                    page.name(),
                    figures.median,
                    figures.min,
                    figures.max
                ));
            }
            rows.push(json!({
                "page_bytes": page.bytes(), "threads": threads, "read_gbs": figures.median,
                "min": figures.min, "max": figures.max,
            }));
        }
    }
    Ok(json!({"bytes": BYTES, "tier": kernels.tier().name(), "read": rows}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        let one = Spread::of(vec![7.0]);
        assert_eq!((one.min, one.median, one.max), (7.0, 7.0, 7.0));
    }
}
