//! The delta rule and the state space of Mamba-2 in `bench kernels`: many tokens over states that stay in a cache, as in
//! prefill, of the delta rule in chunks and one by one; and one token over states that come out of memory and go back to it,
//! as in decode.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::common::out;
use super::ceilings::{PeakRounds, ReadRounds, STREAMED_BYTES};
use super::figures::Spread;
use crate::bytes;
use crate::error::Result;
use crate::kernels::{DELTA_CHUNK, DeltaToken, Kernels, Partition, SsmRates, Team, strip_cols};
use crate::workers::Workers;

/// Values of a head in published models.
const HEAD_DIM: usize = 128;

/// Values of a strip of a head's state.
const STRIP: usize = HEAD_DIM * strip_cols(HEAD_DIM);

/// Tokens that a strip meets in prefill.
const PREFILL_TOKENS: usize = 512;

/// What is measured: all have strips of the same shape.
#[derive(Clone, Copy)]
struct Recurrence {
    name: &'static str,
    /// Multiply-adds of a token for a value of the state; what a chunk does besides does not count.
    macs: usize,
    /// Tokens in a call of the kernel: a chunk, or 1.
    at_once: usize,
    step: fn(&Kernels, &mut [f32], &[f32; HEAD_DIM], &mut [f32]),
}

const RECURRENCES: [Recurrence; 3] = [
    // Both products, and what is added.
    Recurrence {
        name: "delta_chunk",
        macs: 3,
        at_once: DELTA_CHUNK,
        step: |kernels, strip, unit, values| kernels.delta_chunk(strip, &[delta_token(unit); DELTA_CHUNK], values),
    },
    Recurrence {
        name: "delta_step",
        macs: 3,
        at_once: 1,
        step: |kernels, strip, unit, values| kernels.delta_step(strip, &delta_token(unit), values),
    },
    // What is added, and what is read.
    Recurrence {
        name: "ssm_step",
        macs: 2,
        at_once: 1,
        step: |kernels, strip, unit, values| {
            kernels.ssm_step(strip, (unit, unit), values, SsmRates { decay: 0.5, dt: 0.5, d: 0.5 });
        },
    },
];

fn delta_token(unit: &[f32]) -> DeltaToken<'_> {
    DeltaToken { query: unit, key: unit, decay: 0.5, strength: 0.5 }
}

/// Seconds for one token of a square of [`HEAD_DIM`] values, all workers together, by round.
struct Case {
    of: Recurrence,
    n_tokens: usize,
    seconds: Vec<f64>,
}

impl Case {
    fn is_decode(&self) -> bool {
        self.n_tokens == 1
    }

    /// Every strip in `states` meets its tokens.
    fn measure(&mut self, kernels: &Kernels, pool: &Workers, states: &mut [f32]) {
        let n_strips = states.len() / STRIP;
        let unit = [(HEAD_DIM as f32).sqrt().recip(); HEAD_DIM];
        let strips = Partition::new(states, (n_strips, STRIP, STRIP), (1, STRIP)).in_parts(pool.size());
        let begun = Instant::now();
        pool.run_dynamic(&|worker| {
            while let Some(mut strip) = strips.next_for(worker) {
                for _ in 0..self.n_tokens / self.of.at_once {
                    let mut values = [0.5; DELTA_CHUNK * strip_cols(HEAD_DIM)];
                    let values = &mut values[..self.of.at_once * strip_cols(HEAD_DIM)];
                    (self.of.step)(kernels, strip.row(0), &unit, values);
                    std::hint::black_box(values);
                }
            }
        });
        let heads = (n_strips * STRIP / HEAD_DIM) as f64 / HEAD_DIM as f64;
        self.seconds.push(begun.elapsed().as_secs_f64() / heads / self.n_tokens as f64);
    }
}

/// Measures and reports; `room` is overwritten. Decode is left out where `room` is too small to lie beyond the caches.
pub(super) fn measure(
    kernels: &'static Kernels,
    pool: &Workers,
    room: &mut [u8],
    repeat: u32,
    quiet: bool,
) -> Result<Vec<Value>> {
    let decodes = room.len() >= STREAMED_BYTES;
    let lengths = if decodes { &[PREFILL_TOKENS, 1][..] } else { &[PREFILL_TOKENS] };
    let cases_of = |of: Recurrence| {
        let lengths = lengths.iter().filter(move |&&n_tokens| n_tokens >= of.at_once);
        lengths.map(move |&n_tokens| Case { of, n_tokens, seconds: Vec::new() })
    };
    let mut cases: Vec<Case> = RECURRENCES.into_iter().flat_map(cases_of).collect();
    room.fill(0);
    let (mut peaks, mut read) = (PeakRounds::default(), ReadRounds::new(kernels));
    for _ in 0..repeat {
        peaks.measure(kernels, pool);
        if decodes {
            read.measure(pool, pool.size(), room);
        }
        for case in &mut cases {
            let states: &mut [f32] = bytes::cast_mut(room);
            let near = 64 * pool.size() * STRIP;
            let len = if case.is_decode() { states.len() } else { near.min(states.len()) };
            case.measure(kernels, pool, &mut states[..len]);
        }
    }
    let peaks = peaks.spread();
    // Read, and written.
    let gb_of_head = (2 * 4 * HEAD_DIM * HEAD_DIM) as f64 / 1e9;
    let report = |case: &Case| {
        let rates: Vec<f64> = case.seconds.iter().map(|seconds| 1.0 / seconds).collect();
        let rate = Spread::of(&rates);
        let gmacs_of_head = (case.of.macs * HEAD_DIM * HEAD_DIM) as f64 / 1e9;
        let name = format!("{}_f32_{}", case.of.name, kernels.tier().name());
        let (gmacs, gbs) = (gmacs_of_head * rate.median, gb_of_head * rate.median);
        let of_read = case.is_decode().then(|| gbs / read.best().1.median);
        if !quiet {
            let (min, max) = (gmacs_of_head * rate.min, gmacs_of_head * rate.max);
            let mut line = format!(
                "{name:28} {:4} tokens, heads of {HEAD_DIM} {gmacs:7.1} GMAC/s ({min:.1}-{max:.1}) {:5.1} % of the f32 peak",
                case.n_tokens,
                gmacs / peaks.f32.median * 100.0,
            );
            if let Some(share) = of_read {
                line.push_str(&format!(", {gbs:5.1} GB/s of states, both ways, {:5.1} % of reading", share * 100.0));
            }
            out(&line)?;
        }
        Ok(json!({
            "kernel": name, "tokens": case.n_tokens, "head_dim": HEAD_DIM, "gmacs": gmacs,
            "share_of_peak": gmacs / peaks.f32.median, "state_gbs": gbs, "share_of_read": of_read,
        }))
    };
    cases.iter().map(report).collect()
}
