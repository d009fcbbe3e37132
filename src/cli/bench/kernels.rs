//! `bench kernels`: the peaks of the arithmetic, and how near each matrix kernel comes.
//!
//! With few tokens a kernel is measured twice: over one matrix that stays in the caches, and over many in turn that come
//! out of memory, which is what decode does.

use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::args::Bench;
use super::super::common::out;
use super::ceilings::{PeakRounds, Peaks, ReadRounds, STREAMED_BYTES};
use super::figures::{Spread, list, say};
use crate::bytes;
use crate::error::{Error, Result};
use crate::kernels::{ActivationLayout, Activations, Kernels, Matrix, STREAM_TOKENS_MAX, Team, Tile, row_stride};
use crate::memory::{Arena, Plan, RegionName};
use crate::quant::{PANEL_ROWS, WeightType};
use crate::settings::Settings;
use crate::workers::Workers;

/// Rows and columns: a square matrix, one up and one down, as in a model of 2 billion weights.
const SHAPES: [(usize, usize); 3] = [(2048, 2048), (6144, 2048), (2048, 6144)];

/// Token counts without `-p`: decode, some sequences at once, prefill.
const TOKENS: &str = "1,2,4,8,64,512";

/// How long one figure takes at least.
const SECONDS: f64 = 0.02;

/// The matrices of one type and shape, back to back.
struct Matrices<'a> {
    ty: WeightType,
    rows: usize,
    cols: usize,
    packed: &'a [u8],
}

impl<'a> Matrices<'a> {
    /// As many copies as there is room for.
    fn fill(ty: WeightType, (rows, cols): (usize, usize), room: &'a mut [u8]) -> Self {
        let bytes = ty.matrix_bytes(rows, cols);
        let copies = room.len() / bytes;
        let (first, others) = room[..copies * bytes].split_at_mut(bytes);
        // The same bytes everywhere: small finite numbers in every format, and kernels do not care which.
        let file = vec![0x11u8; rows * ty.row_bytes(cols)];
        let panels = first.chunks_exact_mut(ty.panel_bytes(cols));
        for (rows, panel) in file.chunks(PANEL_ROWS * ty.row_bytes(cols)).zip(panels) {
            ty.repack_panel(rows, cols, panel);
        }
        others.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(first));
        Matrices { ty, rows, cols, packed: room[..copies * bytes].as_ref() }
    }

    fn bytes(&self) -> usize {
        self.ty.matrix_bytes(self.rows, self.cols)
    }

    fn get(&self, index: usize) -> Matrix<'a> {
        let panels = &self.packed[index * self.bytes()..][..self.bytes()];
        Matrix { panels, panel_bytes: self.ty.panel_bytes(self.cols), cols: self.cols }
    }
}

/// What a kernel is run with.
struct Bed<'a> {
    kernels: &'static Kernels,
    pool: &'a Workers,
    tile: Tile,
    scratch: Vec<Mutex<&'a mut [u8]>>,
}

impl Bed<'_> {
    /// One product as the model makes it: prepared activations times one matrix.
    fn multiply(&self, ty: WeightType, matrix: &Matrix<'_>, acts: &Activations<'_>, rows: usize, result: &mut [f32]) {
        let partition = self.kernels.share(result, acts.n_tokens, rows, self.pool.size());
        self.pool.run_dynamic(&|worker| {
            let Ok(mut scratch) = self.scratch[worker].lock() else { return };
            while let Some(mut block) = partition.next_for(worker) {
                self.kernels.matmul(ty, matrix, acts, &mut block, false, (self.tile, &mut scratch));
            }
        });
    }

    /// GMAC/s over some of the matrices in turn, for at least [`SECONDS`].
    fn gmacs(&self, of: &Matrices<'_>, copies: usize, acts: &Activations<'_>, result: &mut [f32]) -> f64 {
        let (begun, mut passes) = (Instant::now(), 0);
        while passes < copies || begun.elapsed().as_secs_f64() < SECONDS {
            self.multiply(of.ty, &of.get(passes % copies), acts, of.rows, result);
            passes += 1;
        }
        (passes * acts.n_tokens * of.rows * of.cols) as f64 / 1e9 / begun.elapsed().as_secs_f64()
    }
}

/// Makes activation records of `n_tokens`, ready for weights of this type.
fn fill_records(kernels: &Kernels, ty: WeightType, layout: ActivationLayout, n_tokens: usize, records: &mut [u8]) {
    let values: &mut [f32] = bytes::cast_mut(records);
    // Near enough to a normal distribution, as activations are at their most even: the sum of eight uniform numbers.
    let mut noise = super::model::random_tokens(values.len() * 8, 1 << 12, 5).into_iter();
    for x in values {
        *x = noise.by_ref().take(8).map(|n| n as f32 - 2047.5).sum();
    }
    let kind = kernels.activation_format(ty, n_tokens);
    for record in records.chunks_exact_mut(layout.bytes()) {
        kernels.quantise(layout, kind, record);
    }
}

/// Bytes of a case's buffers for any of the shapes, whole cache lines: records, result.
fn case_bytes(n_tokens: usize) -> [usize; 2] {
    let most = |bytes: fn((usize, usize)) -> usize| SHAPES.map(bytes).into_iter().max().unwrap_or(0) * n_tokens;
    [most(|(_, cols)| ActivationLayout::new(cols).bytes()), most(|(rows, _)| row_stride(rows) * 4)]
}

/// Cuts the first `bytes`, whole cache lines, off what is left.
fn cut<'a>(rest: &mut &'a mut [u8], bytes: usize) -> &'a mut [u8] {
    let (part, tail) = std::mem::take(rest).split_at_mut(bytes.next_multiple_of(64));
    *rest = tail;
    &mut part[..bytes]
}

/// One token count over one matrix: figures by round, in the caches and out of memory.
struct Case<'a> {
    n_tokens: usize,
    records: &'a [u8],
    result: &'a mut [f32],
    cached: Vec<f64>,
    streamed: Vec<f64>,
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let tokens: Vec<usize> = list("-p", args.n_prompt.as_deref().unwrap_or(TOKENS))?;
    if let Some(bad) = tokens.iter().find(|&&n| n == 0 || n > 8192) {
        return Err(Error::usage(format!("-p {bad}: bench kernels takes 1 to 8192 tokens at once")));
    }
    let types = types(args.types.as_deref())?;
    let kernels = settings.kernels()?;
    let mut plan = Plan::new(settings.page());
    let largest = SHAPES.map(|(rows, cols)| rows * cols * 4).into_iter().max().unwrap_or(0);
    let streams = tokens.iter().any(|&n| n <= STREAM_TOKENS_MAX);
    plan.add(RegionName::Weights, if streams { STREAMED_BYTES.max(largest) } else { largest } as u64)?;
    let pool = Workers::start(&settings.cores)?;
    let tile = settings.tile();
    let worker_bytes = tile.scratch_bytes().max(super::attention::scratch_bytes()).next_multiple_of(64);
    let buffers: usize = tokens.iter().flat_map(|&n| case_bytes(n)).map(|bytes| bytes.next_multiple_of(64)).sum();
    plan.add(RegionName::Scratch, (pool.size() * worker_bytes + buffers) as u64)?;
    let mut arena = Arena::map(&plan, settings.keep_free_bytes())?;
    let regions = arena.split();
    let (room, mut rest) = (regions.weights, regions.scratch);
    room.fill(1);
    let scratch = (0..pool.size()).map(|_| Mutex::new(cut(&mut rest, worker_bytes))).collect();
    let bed = Bed { kernels, pool: &pool, tile, scratch };
    say(args, &format!("tier {}, {} threads, {} pages", kernels.tier().name(), settings.threads(), settings.page()))?;
    let (mut rows, mut all_peaks) = (Vec::new(), PeakRounds::default());
    for ty in types {
        for shape in SHAPES {
            let of = Matrices::fill(ty, shape, room);
            let (peaks, read, cases) = rounds(&bed, &of, (&tokens, &mut *rest), args.repeat, &mut all_peaks);
            for case in &cases {
                report(args, &bed, &of, (&peaks, read), case, &mut rows)?;
            }
        }
    }
    let attention = super::attention::measure(kernels, &pool, (&mut *room, &bed.scratch), args.repeat, args.json)?;
    let delta = super::delta::measure(kernels, &pool, room, args.repeat, args.json)?;
    let peaks = all_peaks.spread();
    say(args, &format!("peaks: {peaks}"))?;
    Ok(json!({
        "tier": kernels.tier().name(), "threads": settings.threads(), "page_bytes": settings.page().bytes(),
        "repetitions": args.repeat, "peaks": peaks.json(), "kernels": rows, "attention": attention, "delta": delta,
    }))
}

/// All rounds over the matrices of one type and shape.
fn rounds<'a>(
    bed: &Bed<'_>,
    of: &Matrices<'_>,
    (tokens, mut buffers): (&[usize], &'a mut [u8]),
    repeat: u32,
    all_peaks: &mut PeakRounds,
) -> (Peaks, f64, Vec<Case<'a>>) {
    let layout = ActivationLayout::new(of.cols);
    let copies = of.packed.len() / of.bytes();
    let case = |&n_tokens: &usize| {
        let [records, result] = case_bytes(n_tokens).map(|bytes| cut(&mut buffers, bytes));
        let records = &mut records[..n_tokens * layout.bytes()];
        fill_records(bed.kernels, of.ty, layout, n_tokens, records);
        let result = &mut bytes::cast_mut(result)[..n_tokens * row_stride(of.rows)];
        Case { n_tokens, records, result, cached: Vec::new(), streamed: Vec::new() }
    };
    let mut cases: Vec<Case<'a>> = tokens.iter().map(case).collect();
    let (mut peaks, mut read) = (PeakRounds::default(), ReadRounds::new(bed.kernels));
    let streams = cases.iter().any(|case| case.n_tokens <= STREAM_TOKENS_MAX);
    for _ in 0..repeat {
        peaks.measure(bed.kernels, bed.pool);
        if streams {
            read.measure(bed.pool, bed.pool.size(), of.packed);
        }
        for case in &mut cases {
            let acts = Activations { records: case.records, layout, n_tokens: case.n_tokens };
            case.cached.push(bed.gmacs(of, 1, &acts, case.result));
            if case.n_tokens <= STREAM_TOKENS_MAX {
                case.streamed.push(bed.gmacs(of, copies, &acts, case.result));
            }
        }
    }
    all_peaks.extend(&peaks);
    (peaks.spread(), if streams { read.best().1.median } else { 0.0 }, cases)
}

fn report(
    args: &Bench,
    bed: &Bed<'_>,
    of: &Matrices<'_>,
    (peaks, read_gbs): (&Peaks, f64),
    case: &Case<'_>,
    rows: &mut Vec<Value>,
) -> Result<()> {
    let n = case.n_tokens;
    let name = bed.kernels.name(of.ty, n);
    for (from, figures) in [("cache", &case.cached), ("memory", &case.streamed)] {
        if figures.is_empty() {
            continue;
        }
        let gmacs = Spread::of(figures);
        let share = gmacs.median / peaks.of(of.ty);
        let gbs = gmacs.median / n as f64 * of.bytes() as f64 / (of.rows * of.cols) as f64;
        let of_read = (from == "memory").then(|| gbs / read_gbs);
        if !args.json {
            let mut line = format!(
                "{name:28} {:4}x{:<4} x{n:<4} {from:6} {:7.1} GMAC/s ({:.1}-{:.1}) {:5.1} % of peak",
                of.rows,
                of.cols,
                gmacs.median,
                gmacs.min,
                gmacs.max,
                share * 100.0
            );
            if n <= STREAM_TOKENS_MAX {
                line.push_str(&format!(", {gbs:5.1} GB/s of weights"));
            }
            if let Some(share) = of_read {
                line.push_str(&format!(", {:5.1} % of reading", share * 100.0));
            }
            out(&line)?;
        }
        rows.push(json!({
            "kernel": name, "type": of.ty.name(), "rows": of.rows, "cols": of.cols, "tokens": n, "from": from,
            "gmacs": gmacs.median, "min": gmacs.min, "max": gmacs.max, "share_of_peak": share, "weights_gbs": gbs,
            "share_of_read": of_read,
        }));
    }
    Ok(())
}

/// The types of `--type`, or all.
fn types(names: Option<&str>) -> Result<Vec<WeightType>> {
    let Some(names) = names else { return Ok(WeightType::ALL.to_vec()) };
    let known = || WeightType::ALL.map(WeightType::name).join(", ");
    let find = |name: &str| {
        let found = WeightType::ALL.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(name.trim()));
        found.ok_or_else(|| Error::usage(format!("--type {names}: no weight type {name:?}; there are {}", known())))
    };
    names.split(',').map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name() {
        assert_eq!(types(Some("q4_k, F16")).unwrap(), [WeightType::Q4K, WeightType::F16]);
        assert_eq!(types(None).unwrap(), WeightType::ALL);
        assert!(types(Some("Q9")).unwrap_err().to_string().contains("there are F32"));
    }

    #[test]
    fn streamed_matrices_are_beyond_the_caches() {
        for ty in WeightType::ALL {
            for (rows, cols) in SHAPES {
                let bytes = ty.matrix_bytes(rows, cols);
                assert!(STREAMED_BYTES / bytes * bytes >= 400 << 20, "{}", ty.name());
            }
        }
    }
}
