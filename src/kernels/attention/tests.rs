//! Every way through attention against f64: rows streamed and tiled, ranges whole and merged, both cache types.

use super::*;
use crate::kernels::tests::{Random, tiers};
use crate::kernels::{Kernels, Tier, reference};
use crate::quant::{GROUP, PANEL_ROWS};

/// K, V and queries, and the cache they were stored in; what was not stored is NaN.
struct Case {
    d: usize,
    value_dim: usize,
    group: usize,
    n_tokens: usize,
    position: usize,
    window: Window,
    scale: f32,
    cap: Option<f32>,
    slopes: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    kv_type: KvType,
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
    bytes: Vec<u8>,
    pages: Vec<u32>,
}

/// Heads of a page, of which the last is used.
const HEADS: usize = 2;

impl Case {
    fn new(
        kernels: &Kernels,
        kv_type: KvType,
        (d, group, n_tokens, position): (usize, usize, usize, usize),
        size: f32,
    ) -> Case {
        Case::in_window(kernels, kv_type, (d, group, n_tokens, position), size, Window::ALL)
    }

    /// Only what tokens see in a window of `window` positions is kept. Pages lie in reverse order, others between them.
    fn in_window(
        kernels: &Kernels,
        kv_type: KvType,
        (d, group, n_tokens, position): (usize, usize, usize, usize),
        size: f32,
        window: Window,
    ) -> Case {
        let mut random = Random((d + group + position) as u64);
        let n = position + n_tokens;
        let k: Vec<f32> = (0..n * d).map(|_| random.unit() * size).collect();
        let v: Vec<f32> = (0..n * d).map(|_| random.unit() * size).collect();
        let q = (0..n_tokens * (group * d + 3)).map(|_| random.unit() * size).collect();
        Case::of(kernels, kv_type, (d, group, n_tokens, position), window, (k, v, q))
    }

    /// Of certain numbers.
    fn of(
        kernels: &Kernels,
        kv_type: KvType,
        (d, group, n_tokens, position): (usize, usize, usize, usize),
        window: Window,
        (k, v, q): (Vec<f32>, Vec<f32>, Vec<f32>),
    ) -> Case {
        let n = position + n_tokens;
        let n_pages = n.div_ceil(KEY_TILE);
        let first_page = window.first(position) / KEY_TILE;
        let value_dim = v.len() / n;
        let (row_bytes, panel_bytes) = (kv_type.row_bytes(value_dim), kv_type.panel_bytes(d));
        let key_bytes = KEY_TILE * kv_type.row_bytes(d);
        let head_bytes = key_bytes + KEY_TILE * row_bytes;
        let mut bytes = vec![0xff; 2 * n_pages * HEADS * head_bytes];
        let page_of = |page: usize| if page < first_page { u32::MAX } else { 2 * (n_pages - 1 - page) as u32 };
        for (i, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(value_dim)).enumerate().skip(first_page * KEY_TILE) {
            let (page, at) = (page_of(i / KEY_TILE) as usize, i % KEY_TILE);
            let head = &mut bytes[(page * HEADS + HEADS - 1) * head_bytes..][..head_bytes];
            let (keys, values) = head.split_at_mut(key_bytes);
            let panel = &mut keys[at / PANEL_ROWS * panel_bytes..][..panel_bytes];
            kernels.store_key(kv_type, k, panel, at % PANEL_ROWS);
            kernels.store_value(kv_type, v, &mut values[at * row_bytes..][..row_bytes]);
        }
        let pages = (0..n_pages).map(page_of).collect();
        let scale = (d as f32).sqrt().recip();
        let (cap, slopes, sinks) = (None, None, None);
        Case {
            d,
            value_dim,
            group,
            n_tokens,
            position,
            window,
            scale,
            cap,
            slopes,
            sinks,
            kv_type,
            k,
            v,
            q,
            bytes,
            pages,
        }
    }

    /// The same with sinks as large as scores are, some below and some above them.
    fn with_sinks(mut self) -> Case {
        self.sinks = Some((0..self.group).map(|head| head as f32 * 1.5 - 2.0).collect());
        self
    }

    /// The same with scores that fall with distance, a little or at once.
    fn with_slopes(mut self) -> Case {
        self.slopes = Some((0..self.group).map(|head| 0.7 * 0.25f32.powf(head as f32)).collect());
        self
    }

    fn queries(&self) -> Queries<'_> {
        let &Case { group, n_tokens, position, window, scale, cap, .. } = self;
        let (slopes, sinks) = (self.slopes.as_deref(), self.sinks.as_deref());
        let (stride, len) = (self.stride(), position + n_tokens);
        Queries { values: &self.q, stride, group, n_tokens, position, len, window, scale, cap, slopes, sinks }
    }

    fn kv(&self) -> KvHead<'_> {
        let head_bytes = KEY_TILE * (self.kv_type.row_bytes(self.d) + self.kv_type.row_bytes(self.value_dim));
        KvHead {
            kv_type: self.kv_type,
            key_dim: self.d,
            value_dim: self.value_dim,
            bytes: &self.bytes,
            page_bytes: HEADS * head_bytes,
            offset: (HEADS - 1) * head_bytes,
            pages: &self.pages,
        }
    }

    fn stride(&self) -> usize {
        self.group * self.d + 3
    }

    /// `[rows][value_dim values, log_sum]` over ranges of `range_len` keys, merged.
    fn run(&self, kernels: &Kernels, range_len: usize) -> Vec<f32> {
        let &Case { d: key_dim, value_dim: d, group, .. } = self;
        let (kv, mut queries) = (self.kv(), self.queries());
        let mut scratch = vec![f32::NAN; attend_scratch(d.max(key_dim))];
        let n_rows = queries.rows();
        let first = queries.first_key();
        let n_ranges = (queries.keys() - first).div_ceil(range_len);
        let mut parts = vec![f32::NAN; n_ranges * n_rows * (d + 1)];
        for (range, parts) in parts.chunks_exact_mut(n_rows * (d + 1)).enumerate() {
            let start = first + range * range_len;
            let keys = start..queries.keys().min(start.saturating_add(range_len));
            queries.sinks = self.sinks.as_deref().filter(|_| range == 0);
            kernels.attend(&kv, &queries, keys, &mut scratch, &mut |result| {
                let part = &mut parts[(result.token * group + result.head) * (d + 1)..][..d + 1];
                part[..d].copy_from_slice(result.values);
                part[d] = result.log_sum;
            });
        }
        merge(&mut parts, n_rows, d);
        parts.truncate(n_rows * (d + 1));
        parts
    }

    /// What a row should come to.
    fn want(&self, row: usize) -> Vec<f64> {
        let &Case { d, group, position, window, scale, cap, .. } = self;
        let (token, head) = (row / group, row % group);
        let q = &self.q[token * self.stride() + head * d..][..d];
        let end = window.end(position + token, position + self.n_tokens);
        let sink = self.sinks.as_ref().map(|sinks| sinks[head]);
        let slope = self.slopes.as_ref().map_or(0.0, |slopes| slopes[head]);
        reference::attend(q, (&self.k, &self.v), window.first(position + token)..end, (scale, cap, slope), sink)
    }

    fn check(&self, kernels: &Kernels, got: &[f32]) {
        let &Case { d, group, position, kv_type, window, scale, .. } = self;
        for (row, got) in got.chunks_exact(self.value_dim + 1).enumerate() {
            let want = self.want(row);
            // f16 keeps 11 bits: scores move by up to d * 4 * 2^-11 * scale, values by 2 * 2^-11.
            let step = step(kv_type);
            let bound = 4.0 * step * (1.0 + d as f64 * f64::from(scale) / 4.0);
            for (got, want) in got.iter().zip(want) {
                assert!(
                    (f64::from(*got) - want).abs() < bound,
                    "{kernels:?} {kv_type:?} d {d} group {group} position {position} window {window:?} row {row}: {got} {want}"
                );
            }
        }
    }
}

/// What of an element is lost in a cache at most. That of f32 loses nothing, but where there are many rows 16-bit integers
/// of a row's scale stand for it, with 14 bits of the largest element.
fn step(kv_type: KvType) -> f64 {
    match kv_type {
        KvType::F32 => 1.0 / 16384.0,
        KvType::F16 => 1.0 / 2048.0,
        KvType::Q8_0 => 1.0 / 254.0,
    }
}

fn types(d: usize) -> impl Iterator<Item = KvType> {
    KvType::ALL.into_iter().filter(move |t| *t != KvType::Q8_0 || d.is_multiple_of(GROUP))
}

#[test]
fn agrees_with_f64() {
    let mut shapes = vec![
        (8, 2, 3, 0),
        (64, 4, 1, 63),
        (64, 1, 1, 64),
        (128, 2, 8, 5),
        (96, 3, 5, 130),
        (32, 8, 4, 300),
        (80, 1, 1, 0),
        (256, 16, 2, 70),
        (96, 7, 1, 40),
        (128, 5, 1, 127),
        (32, 1, QUERY_ROWS_MAX, 17),
        (16, QUERY_ROWS_MAX, 1, 20),
    ];
    // Rows on both sides of every register block; keys on both sides of tile edges.
    shapes.extend((1..=13).map(|group| (64, group, 1, 66)));
    shapes.extend([63, 64, 65, 127, 128, 129].map(|n| (32, 2, 1, n - 1)));
    shapes.extend([63, 64, 65, 127, 128, 129].map(|n| (32, 3, 20, n - 20)));
    for kernels in tiers() {
        for &shape in &shapes {
            for kv_type in types(shape.0) {
                let case = Case::new(kernels, kv_type, shape, 2.0);
                case.check(kernels, &case.run(kernels, usize::MAX / 2));
            }
        }
    }
}

#[test]
fn scores_that_fall_with_distance_agree_with_f64() {
    for kernels in tiers() {
        for shape in [(64, 4, 1, 200), (32, 1, 70, 63), (16, 6, 5, 130)] {
            let case = Case::new(kernels, KvType::F16, shape, 2.0).with_slopes();
            for range_len in [usize::MAX / 2, KEY_TILE] {
                case.check(kernels, &case.run(kernels, range_len));
            }
        }
    }
}

#[test]
fn keys_and_values_of_different_widths_agree_with_f64() {
    // Of DeepSeek and MiMo, of Gemma 4's kind, and widths that no vector divides.
    for (key_dim, value_dim) in [(192, 128), (64, 128), (128, 64), (576, 512), (40, 72), (96, 32)] {
        for (group, n_tokens, position) in [(2, 1, 100), (1, 1, 0), (16, 1, 70), (3, 5, 130), (6, 8, 60)] {
            for kernels in tiers() {
                for kv_type in types(key_dim | value_dim) {
                    let mut random = Random((key_dim + value_dim + group) as u64);
                    let n = position + n_tokens;
                    let mut values = |n: usize| (0..n).map(|_| random.unit() * 2.0).collect::<Vec<f32>>();
                    let numbers =
                        (values(n * key_dim), values(n * value_dim), values(n_tokens * (group * key_dim + 3)));
                    let case = Case::of(kernels, kv_type, (key_dim, group, n_tokens, position), Window::ALL, numbers);
                    case.check(kernels, &case.run(kernels, usize::MAX / 2));
                    case.check(kernels, &case.run(kernels, 64));
                }
            }
        }
    }
}

#[test]
fn ranges_agree_with_f64() {
    for kernels in tiers() {
        for n in [511, 512, 513, 1024, 1025, 1100] {
            for (d, group, n_tokens) in [(64, 2, 1), (32, 4, 4), (40, 1, 1), (64, 6, 8)] {
                for kv_type in types(d) {
                    let case = Case::new(kernels, kv_type, (d, group, n_tokens, n - n_tokens), 2.0);
                    let (n_ranges, len) = key_ranges(n, group * n_tokens, RANGE_KEYS_MIN);
                    assert_eq!(n_ranges, n.div_ceil(RANGE_KEYS_MIN), "{n} keys");
                    case.check(kernels, &case.run(kernels, len));
                    case.check(kernels, &case.run(kernels, 64));
                }
            }
        }
    }
}

#[test]
fn windows_and_sinks_agree_with_f64() {
    // Streamed and tiled rows; windows within a tile, of whole tiles, across them, larger than what there is.
    let shapes =
        [(64, 2, 1, 700), (32, 8, 1, 130), (32, 2, 40, 260), (48, 3, 7, 333), (128, 1, 150, 191), (40, 1, 3, 90)];
    for kernels in tiers() {
        for shape in shapes {
            for kv_type in types(shape.0) {
                for window in [1, 5, 64, 65, 128, 200, 4096]
                    .map(Window::Sliding)
                    .into_iter()
                    .chain([1, 7, 64, 100, 128, 4096].map(Window::Chunk))
                    .chain([0, 5, 64, 100, 300, usize::MAX].map(Window::Around))
                {
                    let mut case = Case::in_window(kernels, kv_type, shape, 2.0, window);
                    case.check(kernels, &case.run(kernels, usize::MAX / 2));
                    case.check(kernels, &case.run(kernels, 64));
                    case.scale = 0.05;
                    let case = case.with_sinks();
                    case.check(kernels, &case.run(kernels, usize::MAX / 2));
                    case.check(kernels, &case.run(kernels, 128));
                }
            }
        }
    }
}

#[test]
fn capped_scores_agree_with_f64() {
    for kernels in tiers() {
        for shape in [(64, 2, 1, 200), (32, 8, 1, 130), (48, 3, 7, 333), (128, 1, 150, 191)] {
            for kv_type in types(shape.0) {
                // From a cap that bends every score to one that bends hardly any.
                for (cap, window) in [(0.3, usize::MAX), (2.0, 65), (50.0, usize::MAX)] {
                    let mut case = Case::in_window(kernels, kv_type, shape, 2.0, Window::Sliding(window));
                    case.cap = Some(cap);
                    case.check(kernels, &case.run(kernels, usize::MAX / 2));
                    case.check(kernels, &case.run(kernels, 64));
                    let case = case.with_sinks();
                    case.check(kernels, &case.run(kernels, 128));
                }
            }
        }
        // Far beyond the cap either way, and no number at all. Keys and values are such that f16 holds them as they are, for
        // queries this large would make much of a difference.
        let mut random = Random(9);
        let mut exact =
            |n: usize, step: f32| (0..n).map(|_| (random.unit() * 256.0).round() * step).collect::<Vec<f32>>();
        let (k, v, q) = (exact(101 * 64, 1.0 / 128.0), exact(101 * 64, 1.0 / 128.0), exact(9 * 64 + 3, 0.25));
        let mut case = Case::of(kernels, KvType::F16, (64, 9, 1, 100), Window::ALL, (k, v, q));
        case.cap = Some(1.0);
        case.check(kernels, &case.run(kernels, 64));
        case.q[5] = f32::NAN;
        assert!(case.run(kernels, 64)[..65].iter().all(|x| x.is_nan()), "{kernels:?}");
    }
}

#[test]
fn a_sink_alone_takes_everything() {
    for kernels in tiers() {
        let mut case = Case::new(kernels, KvType::F16, (32, 2, 1, 9), 1.0);
        case.sinks = Some(vec![200.0, -200.0]);
        let got = case.run(kernels, 64);
        assert!(got[..32].iter().all(|x| x.abs() < 1e-30), "{kernels:?}: {:?}", &got[..32]);
        let with = got[33..].to_vec();
        case.sinks = None;
        let without = &case.run(kernels, 64)[33..];
        assert!(with.iter().zip(without).all(|(a, b)| (a - b).abs() < 1e-6), "{kernels:?}: a sink of -200 counts");
    }
}

#[test]
fn a_range_that_a_token_does_not_see_has_no_mass() {
    for kernels in tiers() {
        // The first of four tokens ends where the second range begins.
        let case = Case::new(kernels, KvType::F16, (32, 2, 4, 127), 2.0);
        case.check(kernels, &case.run(kernels, 128));
        let mut scratch = vec![f32::NAN; attend_scratch(32)];
        kernels.attend(&case.kv(), &case.queries(), 128..131, &mut scratch, &mut |result| {
            assert_eq!(result.token == 0, result.log_sum == f32::NEG_INFINITY);
            assert_eq!(result.token == 0, result.values.iter().all(|x| *x == 0.0));
        });
    }
}

#[test]
fn ranges_fit_the_scratch_that_is_planned_for_them() {
    assert_eq!(key_ranges(1, 1, RANGE_KEYS_MIN), (1, 512));
    assert_eq!(key_ranges(RANGE_KEYS_MIN, 2, RANGE_KEYS_MIN), (1, 512));
    assert_eq!(key_ranges(RANGE_KEYS_MIN + 1, 2, RANGE_KEYS_MIN), (2, 512));
    assert_eq!(key_ranges(32 * 512, 2, RANGE_KEYS_MIN), (32, 512));
    assert_eq!(key_ranges(32 * 512 + 1, 2, RANGE_KEYS_MIN), (29, 576));
    for n_rows in 1..=PARTIAL_ROWS_MAX + 1 {
        for n_keys in [1, 511, 512, 513, 4096, 8191, 8192, 8193, 100_000, 1 << 20] {
            let (n_ranges, len) = key_ranges(n_keys, n_rows, RANGE_KEYS_MIN);
            assert!(n_ranges == 1 || n_ranges * n_rows <= PARTIAL_ROWS_MAX, "{n_ranges} ranges of {n_rows} rows");
            assert!(len.is_multiple_of(KEY_TILE) && (n_ranges - 1) * len < n_keys && n_keys <= n_ranges * len);
        }
    }
    assert_eq!(partials_len(RANGE_KEYS_MIN, 128, RANGE_KEYS_MIN), 0);
    assert_eq!(partials_len(RANGE_KEYS_MIN + 1, 128, RANGE_KEYS_MIN), 384 * 129);
}

#[test]
fn one_row_more_than_a_call_takes_is_refused() {
    let kernels = Tier::Scalar.kernels().unwrap();
    let case = Case::new(kernels, KvType::F16, (8, QUERY_ROWS_MAX + 1, 1, 3), 1.0);
    assert!(std::panic::catch_unwind(|| case.run(kernels, 64)).is_err());
}

#[test]
fn large_scores_and_nan() {
    for kernels in tiers() {
        for group in [1, 9] {
            // Scores of up to a few thousand: one key takes all.
            let case = Case::new(kernels, KvType::F16, (64, group, 1, 100), 60.0);
            let got = case.run(kernels, 64);
            assert!(got.chunks_exact(65).all(|row| row[64].is_finite() && row[..64].iter().all(|x| x.abs() < 60.1)));
            let mut spoilt = Case::new(kernels, KvType::F16, (64, group, 1, 100), 2.0);
            spoilt.q[5] = f32::NAN;
            let got = spoilt.run(kernels, 64);
            assert!(got[..65].iter().all(|x| x.is_nan()), "{kernels:?}: a NaN query gave {:?}", &got[..4]);
        }
    }
}

/// Numbers that f16 holds, so that the cache adds no error.
fn halves(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect()
}

/// The root of the mean square of what a case's results are off by.
fn rms_error(kernels: &Kernels, case: &Case) -> f64 {
    let got = case.run(kernels, usize::MAX / 2);
    let (mut squares, mut n) = (0.0, 0.0);
    for (row, got) in got.chunks_exact(case.d + 1).enumerate() {
        for (got, want) in got.iter().zip(case.want(row)) {
            squares += (f64::from(*got) - want).powi(2);
            n += 1.0;
        }
    }
    (squares / n).sqrt()
}

#[test]
fn tiles_cost_no_more_than_rounding_to_f16() {
    for kernels in tiers() {
        // Flat and sharp weights; the last with an element in each key and value that is 30 times as large: what shares a
        // scale with it loses more, up to 1.5 times as much.
        for (size, outlier, most) in [(0.5, 1.0, 1.0), (2.0, 1.0, 1.0), (4.0, 1.0, 1.0), (0.5, 30.0, 1.5)] {
            for d in [64, 128] {
                let shape = (d, 2, 24, 500);
                let mut of = Case::new(kernels, KvType::F16, shape, size);
                for x in of.k.iter_mut().chain(&mut of.v).skip(5).step_by(67) {
                    *x *= outlier;
                }
                let (q, k, v) = (of.q.clone(), of.k.clone(), of.v.clone());
                let exact = (halves(&k), halves(&v), q.clone());
                let exact = Case::of(kernels, KvType::F16, shape, Window::ALL, exact);
                let rounded = Case::of(kernels, KvType::F16, shape, Window::ALL, (k, v, q));
                let (tiles, both) = (rms_error(kernels, &exact), rms_error(kernels, &rounded));
                // Together they are the root of the sum of squares.
                let f16 = (both * both - tiles * tiles).max(0.0).sqrt();
                assert!(
                    tiles < most * f16,
                    "{kernels:?} d {d} size {size} outlier {outlier}: {tiles:.2e}, f16 {f16:.2e}"
                );
            }
        }
    }
}

#[test]
fn the_largest_sums_fit() {
    for kernels in tiers() {
        for (d, kv_type) in [(2, KvType::F16), (64, KvType::F16), (128, KvType::Q8_0), (256, KvType::F16)] {
            // Queries and keys of one direction, weights and values all alike.
            for x in [1.0, -60000.0, 0.02] {
                let fill = |n: usize, x: f32| vec![x; n];
                let numbers = (fill(130 * d, x), fill(130 * d, x), fill(40 * (d + 3), -1.0 / x));
                let case = Case::of(kernels, kv_type, (d, 1, 40, 90), Window::ALL, numbers);
                for (token, row) in case.run(kernels, usize::MAX / 2).chunks_exact(d + 1).enumerate() {
                    assert!(row[..d].iter().all(|y| (y / x - 1.0).abs() < 1e-3), "{kernels:?} d {d}: {row:?} of {x}");
                    // Of as many keys as it sees, a score of minus the root of `d` each.
                    let log_sum = row[d] + (d as f32).sqrt() * std::f32::consts::LOG2_E;
                    let want = (91.0 + token as f32).log2();
                    assert!(
                        (log_sum - want).abs() < 0.05,
                        "{kernels:?} d {d} {kv_type:?}: a log_sum of {log_sum}, not {want}"
                    );
                }
            }
            // One element is all there is, in another place of each.
            let mut case = Case::new(kernels, kv_type, (d, 1, 40, 90), 0.0);
            for (i, k) in case.k.chunks_exact_mut(d).enumerate() {
                k[i % d] = 3.0;
            }
            case.q.chunks_exact_mut(d + 3).for_each(|q| q[1] = 2.0);
            let numbers = (case.k.clone(), case.k.clone(), case.q.clone());
            let case = Case::of(kernels, kv_type, (d, 1, 40, 90), Window::ALL, numbers);
            case.check(kernels, &case.run(kernels, usize::MAX / 2));
        }
    }
}

#[test]
fn zeros_divide_nothing() {
    for kernels in tiers() {
        for group in [1, 9] {
            for size in [0.0, 1e-38] {
                let zeros = Case::new(kernels, KvType::F16, (32, group, 2, 100), size);
                zeros.check(kernels, &zeros.run(kernels, usize::MAX / 2));
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_pass() {
    for kernels in tiers() {
        for (kv_type, window) in
            [(KvType::F16, Window::ALL), (KvType::Q8_0, Window::Sliding(70)), (KvType::F16, Window::Chunk(50))]
        {
            let whole = Case::in_window(kernels, kv_type, (64, 3, 60, 140), 2.0, window);
            let got = whole.run(kernels, usize::MAX / 2);
            for (first, n) in [(0, 2), (2, 11), (13, 30), (43, 17)] {
                let mut part = Case::in_window(kernels, kv_type, (64, 3, 60, 140), 2.0, window);
                part.q.drain(..first * part.stride());
                (part.position, part.n_tokens) = (140 + first, n);
                let part = part.run(kernels, usize::MAX / 2);
                assert_eq!(part, got[first * 3 * 65..][..n * 3 * 65], "{kernels:?} {kv_type:?}: {n} tokens");
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_those_that_see_them() {
    for kernels in tiers() {
        for (what, x) in (0..3).flat_map(|what| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|x| (what, x))) {
            let shape = (32, 2, 20, 100);
            let sound = Case::new(kernels, KvType::F16, shape, 1.0);
            let (mut k, mut v, mut q) = (sound.k.clone(), sound.v.clone(), sound.q.clone());
            // Of position 110, which the last 10 tokens see, or of the query of token 10 alone.
            match what {
                0 => k[110 * 32 + 7] = x,
                1 => v[110 * 32 + 7] = x,
                _ => q[10 * sound.stride() + 7] = x,
            }
            let spoilt = Case::of(kernels, KvType::F16, shape, Window::ALL, (k, v, q)).run(kernels, usize::MAX / 2);
            let sound = sound.run(kernels, usize::MAX / 2);
            for (row, (spoilt, sound)) in spoilt.chunks_exact(33).zip(sound.chunks_exact(33)).enumerate() {
                match if what < 2 { row >= 20 } else { row == 20 } {
                    true => {
                        assert!(spoilt[..32].iter().all(|y| y.is_nan()), "{kernels:?} {what} {x} row {row}: {spoilt:?}")
                    }
                    false => assert_eq!(spoilt, sound, "{kernels:?} {what} {x} row {row}"),
                }
            }
        }
    }
}

#[test]
fn f16_is_rounded_to_nearest_even_q8_0_to_steps_of_the_largest_and_f32_not_at_all() {
    for kernels in tiers() {
        for d in [8, 32, 40, 64] {
            let mut random = Random(d as u64);
            let x: Vec<f32> = (0..d).map(|_| random.unit() * 3.0).collect();
            for kv_type in types(d) {
                let mut row = vec![0u8; kv_type.row_bytes(d)];
                let mut panel = vec![0u8; kv_type.panel_bytes(d)];
                kernels.store_value(kv_type, &x, &mut row);
                kernels.store_key(kv_type, &x, &mut panel, 11);
                for i in 0..d {
                    match kv_type {
                        KvType::F16 => {
                            let want = half::f16::from_f32(x[i]).to_le_bytes();
                            assert_eq!(row[2 * i..][..2], want);
                            assert_eq!(panel[32 * i + 22..][..2], want);
                        }
                        KvType::Q8_0 => {
                            let block = &x[i / GROUP * GROUP..][..GROUP];
                            let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
                            let quant = (x[i] * (127.0 / largest)).round_ties_even() as i8 as u8;
                            let scale = half::f16::from_f32(largest / 127.0).to_le_bytes();
                            let (at, panel) = (i / GROUP * 34, &panel[i / GROUP * 16 * 34..][..16 * 34]);
                            assert_eq!((&row[at..at + 2], row[at + 2 + i % GROUP]), (&scale[..], quant));
                            assert_eq!((&panel[22..24], panel[32 + 16 * (i % GROUP) + 11]), (&scale[..], quant));
                        }
                        KvType::F32 => {
                            assert_eq!(row[4 * i..][..4], x[i].to_le_bytes());
                            assert_eq!(panel[64 * i + 44..][..4], x[i].to_le_bytes());
                        }
                    }
                }
            }
        }
    }
}

/// Latent rows and queries, and the cache that the rows were stored in; what was not stored is NaN.
struct Latents {
    dims: (usize, usize),
    group: usize,
    n_tokens: usize,
    position: usize,
    kv_type: KvType,
    rows: Vec<f32>,
    /// What meets latents and what meets the rest, head by head and token by token.
    q: [Vec<f32>; 2],
    bytes: Vec<u8>,
    pages: Vec<u32>,
}

const LATENT_SCALE: f32 = 0.11;

impl Latents {
    fn new(
        kernels: &Kernels,
        kv_type: KvType,
        dims: (usize, usize),
        (group, n_tokens, position): (usize, usize, usize),
    ) -> Latents {
        let (key_dim, value_dim) = dims;
        let mut random = Random((key_dim + group + position) as u64);
        let n = position + n_tokens;
        let mut values = |n: usize| (0..n).map(|_| random.unit() * 2.0).collect::<Vec<f32>>();
        let rows = values(n * key_dim);
        let q = [value_dim, key_dim - value_dim].map(|dim| values(n_tokens * group * (dim + 3)));
        let n_pages = n.div_ceil(KEY_TILE);
        let row_bytes = kv_type.row_bytes(key_dim);
        let mut bytes = vec![0xff; 2 * n_pages * KEY_TILE * row_bytes];
        // In reverse order, others between them.
        let pages: Vec<u32> = (0..n_pages).map(|page| 2 * (n_pages - 1 - page) as u32).collect();
        for (i, row) in rows.chunks_exact(key_dim).enumerate() {
            let at = (pages[i / KEY_TILE] as usize * KEY_TILE + i % KEY_TILE) * row_bytes;
            kernels.store_value(kv_type, row, &mut bytes[at..][..row_bytes]);
        }
        Latents { dims, group, n_tokens, position, kv_type, rows, q, bytes, pages }
    }

    fn queries(&self) -> LatentQueries<'_> {
        let (key_dim, value_dim) = self.dims;
        let [latent, rotated] = &self.q;
        let by_head = [value_dim + 3, self.n_tokens * (value_dim + 3)];
        let by_token = [self.group * (key_dim - value_dim + 3), key_dim - value_dim + 3];
        LatentQueries {
            latent: HeadValues { values: latent, strides: by_head },
            rotated: HeadValues { values: rotated, strides: by_token },
            group: self.group,
            n_tokens: self.n_tokens,
            position: self.position,
            scale: LATENT_SCALE,
        }
    }

    /// `[rows][value_dim values, log_sum]` over ranges of `range_len` positions, merged.
    fn run(&self, kernels: &Kernels, range_len: usize) -> Vec<f32> {
        let ((key_dim, value_dim), queries) = (self.dims, self.queries());
        let page_bytes = KEY_TILE * self.kv_type.row_bytes(key_dim);
        let kv = KvHead {
            kv_type: self.kv_type,
            key_dim,
            value_dim,
            bytes: &self.bytes,
            page_bytes,
            offset: 0,
            pages: &self.pages,
        };
        let mut scratch = vec![f32::NAN; latent_scratch(key_dim, value_dim)];
        let n_rows = queries.rows();
        let n_ranges = queries.keys().div_ceil(range_len);
        let mut parts = vec![f32::NAN; n_ranges * n_rows * (value_dim + 1)];
        for (range, parts) in parts.chunks_exact_mut(n_rows * (value_dim + 1)).enumerate() {
            let keys = range * range_len..queries.keys().min((range + 1) * range_len);
            kernels.attend_latent(&kv, &queries, keys, &mut scratch, &mut |result| {
                let row = result.token * self.group + result.head;
                let part = &mut parts[row * (value_dim + 1)..][..value_dim + 1];
                part[..value_dim].copy_from_slice(result.values);
                part[value_dim] = result.log_sum;
            });
        }
        merge(&mut parts, n_rows, value_dim);
        parts.truncate(n_rows * (value_dim + 1));
        parts
    }

    fn check(&self, kernels: &Kernels, got: &[f32]) {
        let (key_dim, value_dim) = self.dims;
        let values: Vec<f32> = self.rows.chunks_exact(key_dim).flat_map(|row| &row[..value_dim]).copied().collect();
        let queries = self.queries();
        // As for other caches.
        let step = step(self.kv_type);
        let bound = 4.0 * step * (1.0 + key_dim as f64 * f64::from(LATENT_SCALE) / 4.0);
        for (row, got) in got.chunks_exact(value_dim + 1).enumerate() {
            let (token, head) = (row / self.group, row % self.group);
            let mut q = queries.latent.from(token, head).values[..value_dim].to_vec();
            q.extend(&queries.rotated.from(token, head).values[..key_dim - value_dim]);
            let seen = 0..self.position + token + 1;
            let want = reference::attend(&q, (&self.rows, &values), seen, (LATENT_SCALE, None, 0.0), None);
            let far = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() >= bound;
            let shape = (self.kv_type, self.dims, self.group, self.n_tokens, self.position);
            assert!(!got.iter().zip(&want).any(far), "{kernels:?} {shape:?} row {row}");
        }
    }
}

#[test]
fn latent_rows_agree_with_f64() {
    // Rows on both sides of every vector and call; positions on both sides of tile edges; tokens within one and across.
    let shapes = [
        (1, 1, 0),
        (5, 1, 63),
        (7, 3, 62),
        (8, 8, 0),
        (9, 7, 60),
        (10, 6, 190),
        (16, 1, 64),
        (16, 4, 127),
        (17, 1, 100),
        (1, 64, 40),
        (3, 21, 130),
    ];
    for kernels in tiers() {
        for dims in [(32, 16), (96, 64), (288, 256), (576, 512)] {
            for shape in shapes.into_iter().filter(|_| dims.0 < 300).chain([(10, 1, 140), (10, 6, 62)]) {
                for kv_type in types(dims.0) {
                    let case = Latents::new(kernels, kv_type, dims, shape);
                    case.check(kernels, &case.run(kernels, usize::MAX / 2));
                    case.check(kernels, &case.run(kernels, 64));
                }
            }
        }
    }
}

#[test]
fn latent_rows_that_a_token_does_not_see_have_no_mass() {
    for kernels in tiers() {
        // The first of four tokens ends where the second range begins.
        let case = Latents::new(kernels, KvType::F16, (48, 32), (2, 4, 127));
        let got = case.run(kernels, 128);
        case.check(kernels, &got);
        assert!(got.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn absorbed_rows_agree_with_f64() {
    for kernels in tiers() {
        for (n, cols) in [(1, 16), (20, 48), (128, 512), (7, 144)] {
            let mut random = Random((n + cols) as u64);
            let mut values = |n: usize| (0..n).map(|_| random.unit()).collect::<Vec<f32>>();
            let (rows, x) = (values(n * cols), values(n));
            let mut out = vec![f32::NAN; cols];
            kernels.absorb(&rows, &x, &mut out);
            for (col, got) in out.iter().enumerate() {
                let products = x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(rows[i * cols + col]));
                let want: f64 = products.sum();
                assert!(
                    (f64::from(*got) - want).abs() < 1e-5 * (1.0 + n as f64),
                    "{kernels:?} {n} {cols}: {got} {want}"
                );
            }
        }
    }
}
