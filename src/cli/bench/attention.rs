//! The attention kernel in `bench kernels`: many rows of prefill out of the caches, and the rows of one token over a cache
//! that comes out of memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::super::common::out;
use super::ceilings::{PeakRounds, ReadRounds, STREAMED_BYTES};
use super::figures::Spread;
use crate::bytes;
use crate::error::Result;
use crate::kernels::{
    KEY_TILE, Kernels, KvHead, KvType, QUERY_ROWS_MAX, Queries, RANGE_KEYS_MIN, STREAM_TOKENS_MAX, Team, Window,
    attend_scratch,
};
use crate::workers::Workers;

/// Values of a head.
const HEAD_DIM: usize = 128;

/// Keys that the rows of prefill see.
const PREFILL_KEYS: usize = 4096;

/// How long a figure of prefill takes at least.
const SECONDS: f64 = 0.05;

/// Query rows over heads of `keys` keys each.
struct Case {
    kv_type: KvType,
    group: usize,
    n_tokens: usize,
    keys: usize,
    /// Seconds per head, all workers together, by round.
    seconds: Vec<f64>,
}

impl Case {
    fn is_decode(&self) -> bool {
        self.n_tokens == 1
    }

    fn head_bytes(&self) -> usize {
        2 * self.keys * self.kv_type.row_bytes(HEAD_DIM)
    }

    fn gmacs(&self) -> f64 {
        (self.n_tokens * self.group * self.keys * HEAD_DIM * 2) as f64 / 1e9
    }

    /// Once over what fits `room`, which holds any finite values, in heads; for prefill so often that it takes a while.
    fn measure(&mut self, kernels: &Kernels, pool: &Workers, scratch: &[Mutex<&mut [u8]>], room: &[u8]) {
        let q = vec![0.5f32; self.n_tokens * self.group * HEAD_DIM];
        let queries = Queries {
            values: &q,
            stride: self.group * HEAD_DIM,
            group: self.group,
            n_tokens: self.n_tokens,
            position: self.keys - self.n_tokens,
            len: self.keys,
            window: Window::ALL,
            scale: (HEAD_DIM as f32).sqrt().recip(),
            cap: None,
            slopes: None,
            sinks: None,
        };
        // A cache of one head and one sequence, its pages in order.
        let pages: Vec<u32> = (0..self.keys.div_ceil(KEY_TILE) as u32).collect();
        let page_bytes = 2 * KEY_TILE * self.kv_type.row_bytes(HEAD_DIM);
        let (begun, mut heads) = (Instant::now(), 0);
        while heads == 0 || !self.is_decode() && begun.elapsed().as_secs_f64() < SECONDS {
            let next = AtomicUsize::new(0);
            pool.run_dynamic(&|worker| {
                let Ok(mut scratch) = scratch[worker].lock() else { return };
                let head_of = |index| room.chunks_exact(self.head_bytes()).nth(index);
                while let Some(head) = head_of(next.fetch_add(1, Ordering::Relaxed)) {
                    let kv = KvHead {
                        kv_type: self.kv_type,
                        key_dim: HEAD_DIM,
                        value_dim: HEAD_DIM,
                        bytes: head,
                        page_bytes,
                        offset: 0,
                        pages: &pages,
                    };
                    kernels.attend(&kv, &queries, 0..self.keys, bytes::cast_mut(&mut scratch), &mut |row| {
                        std::hint::black_box(row.values);
                    });
                }
            });
            heads += room.len() / self.head_bytes();
        }
        self.seconds.push(begun.elapsed().as_secs_f64() / heads as f64);
    }
}

/// Bytes of scratch for each worker.
pub(super) fn scratch_bytes() -> usize {
    attend_scratch(HEAD_DIM) * 4
}

/// Measures and reports; `room` is overwritten. Decode is left out where `room` is too small to lie beyond the caches.
pub(super) fn measure(
    kernels: &'static Kernels,
    pool: &Workers,
    (room, scratch): (&mut [u8], &[Mutex<&mut [u8]>]),
    repeat: u32,
    quiet: bool,
) -> Result<Vec<Value>> {
    let far = room.len() >= STREAMED_BYTES;
    // Small finite numbers in both types.
    room.fill(0x11);
    let mut cases = Vec::new();
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let case = |group, n_tokens, keys| Case { kv_type, group, n_tokens, keys, seconds: Vec::new() };
        cases.push(case(2, QUERY_ROWS_MAX / 2, PREFILL_KEYS));
        if far {
            cases.extend([2, STREAM_TOKENS_MAX].map(|group| case(group, 1, RANGE_KEYS_MIN)));
        }
    }
    let (mut peaks, mut read) = (PeakRounds::default(), ReadRounds::new(kernels));
    for _ in 0..repeat {
        peaks.measure(kernels, pool);
        if far {
            read.measure(pool, pool.size(), room);
        }
        for case in &mut cases {
            let near = 2 * pool.size() * case.head_bytes();
            let room = if case.is_decode() { &*room } else { &room[..near.min(room.len())] };
            case.measure(kernels, pool, scratch, room);
        }
    }
    let peaks = peaks.spread();
    let report = |case: &Case| {
        let rates: Vec<f64> = case.seconds.iter().map(|seconds| 1.0 / seconds).collect();
        let rate = Spread::of(&rates);
        let name = format!("attend_{}_{}", case.kv_type.name(), kernels.tier().name());
        let (rows, gmacs) = (case.n_tokens * case.group, case.gmacs() * rate.median);
        let gbs = case.head_bytes() as f64 / 1e9 * rate.median;
        // Products of i16 are half as many an instruction as those of bytes.
        let (peak, of) = match case.is_decode() {
            true => (peaks.f32.median, "of the f32 peak"),
            false => (peaks.int8.median / 2.0, "of half the int8 peak"),
        };
        let of_read = case.is_decode().then(|| gbs / read.best().1.median);
        if !quiet {
            let (min, max) = (case.gmacs() * rate.min, case.gmacs() * rate.max);
            let mut line = format!(
                "{name:28} {rows:4} rows x {:4} keys {gmacs:7.1} GMAC/s ({min:.1}-{max:.1}) {:5.1} % {of}",
                case.keys,
                gmacs / peak * 100.0,
            );
            if let Some(share) = of_read {
                line.push_str(&format!(", {gbs:5.1} GB/s of K and V, {:5.1} % of reading", share * 100.0));
            }
            out(&line)?;
        }
        Ok(json!({
            "kernel": name, "query_rows": rows, "keys": case.keys, "head_dim": HEAD_DIM, "gmacs": gmacs,
            "share_of_peak": gmacs / peak, "kv_gbs": gbs, "share_of_read": of_read,
        }))
    };
    cases.iter().map(report).collect()
}
