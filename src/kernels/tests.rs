//! One corpus of shapes for every kernel of every tier this CPU has.

use super::*;
use crate::bytes::floats_as_bytes;
use crate::error::Error;
use crate::quant::{PANEL_ROWS, WeightType};

/// Set in CI to turn a tier this CPU lacks from a printed skip into a failure, e.g. `REQUIRE_ISA=avx512`.
pub(super) fn tiers() -> Vec<&'static Kernels> {
    let required: Option<Tier> = std::env::var("REQUIRE_ISA").ok().map(|name| name.parse().unwrap());
    for tier in Tier::ALL {
        if tier.kernels().is_none() {
            assert!(required.is_none_or(|r| tier > r), "REQUIRE_ISA: this CPU lacks {}", tier.name());
            eprintln!("skipped: this CPU lacks the tier {}", tier.name());
        }
    }
    available().collect()
}

pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    pub(super) fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// A random weight file of `rows` x `cols` with finite, ordinary values.
fn weights(ty: WeightType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut file = Vec::new();
    let mut values = vec![0f32; ty.block_len()];
    for _ in 0..rows * cols / ty.block_len() {
        let block = loop {
            // Scales lie somewhere in a block: it is drawn until its values are ordinary.
            let block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.next() as u8).collect();
            ty.decode_row(&block, &mut values);
            let largest = values.iter().fold(0f32, |a, x| a.max(x.abs()));
            if values.iter().all(|x| x.is_finite()) && (1e-3..16.0).contains(&largest) {
                break block;
            }
        };
        file.extend(block);
    }
    file
}

fn panels(ty: WeightType, file: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0; ty.matrix_bytes(rows, cols)];
    let stripes = file.chunks(PANEL_ROWS * ty.row_bytes(cols)).zip(out.chunks_exact_mut(ty.panel_bytes(cols)));
    stripes.for_each(|(rows, panel)| ty.repack_panel(rows, cols, panel));
    out
}

#[test]
fn matmul_agrees_with_f64_on_every_tier_and_shape() {
    let tile = Tile { k_cols: 512, ..Tile::default() };
    for kernels in tiers() {
        for ty in WeightType::ALL {
            let unit = ty.block_len();
            let mut shapes =
                vec![(1, unit, 1), (16, unit, 5), (17, 2 * unit, 2), (48, 3 * unit, 13), (33, 5 * unit, 7)];
            shapes.extend([(64, 1024, 3), (40, 1536, 9), (32, 512, 0)]);
            // One token has kernels of its own.
            shapes.extend([(17, 3 * unit, 1), (33, 1536, 1)]);
            if unit == 1 {
                shapes.extend([(16, 3, 4), (31, 171, 6), (172, 65, 1), (20, 515, 11)]);
            }
            for (rows, cols, n_tokens) in shapes {
                let mut random = Random((rows * 31 + cols * 7 + n_tokens) as u64);
                let file = weights(ty, rows, cols, &mut random);
                let packed = panels(ty, &file, rows, cols);
                let mut decoded = vec![0f32; rows * cols];
                let decode = file.chunks_exact(ty.row_bytes(cols)).zip(decoded.chunks_exact_mut(cols));
                decode.for_each(|(row, out)| ty.decode_row(row, out));
                let layout = ActivationLayout::new(cols);
                // NaN everywhere: a read of what was never written shows.
                let mut records = vec![f32::NAN; n_tokens * layout.bytes() / 4];
                let records = crate::bytes::cast_mut::<u8>(floats_as_bytes(&mut records));
                let mut x = Vec::new();
                for record in records.chunks_exact_mut(layout.bytes()) {
                    // Even rows make dense blocks, odd ones do not: they meet in one call.
                    let power = if x.len() / cols % 2 == 0 { 1 } else { 5 };
                    layout.values_mut(record).iter_mut().for_each(|x| *x = random.unit().powi(power));
                    kernels.quantise(layout, kernels.activation_format(ty, n_tokens), record);
                    x.extend(layout.effective(kernels.activation_format(ty, n_tokens), record));
                }
                let want = reference::matmul(&decoded, &x, rows, cols, n_tokens);
                let rounding = match kernels.activation_format(ty, n_tokens) {
                    ActivationFormat::I16 => weights_rounding(&decoded, &x, rows, cols),
                    _ => vec![0.0; want.len()],
                };
                let matrix = Matrix { panels: &packed, panel_bytes: ty.panel_bytes(cols), cols };
                let acts = Activations { records, layout, n_tokens };
                for (accumulate, wide) in [(false, 1), (true, 2), (false, 3)] {
                    let padded = rows.next_multiple_of(PANEL_ROWS);
                    let before = if accumulate { 0.5 } else { f32::NAN };
                    let mut out = vec![before; n_tokens.max(1) * padded];
                    let mut scratch = vec![0f32; tile.scratch_bytes() / 4];
                    let stripe = wide * kernels.stripe_rows();
                    let partition = Partition::new(&mut out, (n_tokens, padded, padded), (n_tokens.max(1), stripe));
                    while let Some(mut block) = partition.next() {
                        kernels.matmul(
                            ty,
                            &matrix,
                            &acts,
                            &mut block,
                            accumulate,
                            (tile, floats_as_bytes(&mut scratch)),
                        );
                    }
                    for (i, (value, size)) in want.iter().enumerate() {
                        let got = f64::from(out[i / rows * padded + i % rows]);
                        let want = value + if accumulate { 0.5 } else { 0.0 };
                        // Each of the at most cols + 8 roundings is relative to a partial sum of at most `size`;
                        // minima are taken out of a sum up to 64 times larger than what remains.
                        let minima =
                            [WeightType::Q4K, WeightType::Q2K, WeightType::Q5K, WeightType::Q4_1, WeightType::Q5_1];
                        let cancelled = if minima.contains(&ty) { 64.0 } else { 1.0 };
                        let bound =
                            (cols as f64 + 8.0) * f64::from(f32::EPSILON) * (size * cancelled + 1.0) + rounding[i];
                        assert!(
                            (got - want).abs() <= bound,
                            "{} {rows}x{cols} x{n_tokens} element {i}: {got} instead of {want}, bound {bound:e}",
                            kernels.name(ty, n_tokens)
                        );
                    }
                }
            }
        }
    }
}

/// What rounding weights to 16-bit integers moves a product by at most: each weight by half a scale, which is the norm of the
/// row's columns under it over [`activations16::ROW_NORM`].
fn weights_rounding(weights: &[f32], x: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    let moved = |row: usize, x: &[f32]| {
        let both = weights[row * cols..][..cols].chunks(activations16::COLS16).zip(x.chunks(activations16::COLS16));
        let block = |(w, x): (&[f32], &[f32])| {
            let norm = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            norm * 0.5 / f64::from(activations16::ROW_NORM) * x.iter().map(|x| f64::from(x.abs())).sum::<f64>()
        };
        both.map(block).sum::<f64>()
    };
    x.chunks_exact(cols).flat_map(|x| (0..rows).map(move |row| moved(row, x))).collect()
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_its_token() {
    let (rows, cols, n_tokens) = (48, 300, 9);
    for kernels in tiers() {
        for (ty, infinity) in [(WeightType::F16, 0x7c00u16), (WeightType::BF16, 0x7f80)] {
            let mut random = Random(11);
            let mut file = weights(ty, rows, cols, &mut random);
            file[(3 * cols + 200) * 2..][..2].copy_from_slice(&infinity.to_le_bytes());
            let packed = panels(ty, &file, rows, cols);
            let layout = ActivationLayout::new(cols);
            let mut records = vec![0f32; n_tokens * layout.bytes() / 4];
            let records = floats_as_bytes(&mut records);
            for (token, record) in records.chunks_exact_mut(layout.bytes()).enumerate() {
                layout.values_mut(record).iter_mut().for_each(|x| *x = random.unit());
                match token {
                    2 => layout.values_mut(record)[131] = f32::NAN,
                    5 => layout.values_mut(record)[7] = f32::INFINITY,
                    _ => (),
                }
                kernels.quantise(layout, kernels.activation_format(ty, n_tokens), record);
            }
            let matrix = Matrix { panels: &packed, panel_bytes: ty.panel_bytes(cols), cols };
            let (acts, mut out) = (Activations { records, layout, n_tokens }, vec![0f32; n_tokens * rows]);
            let tile = Tile { k_cols: 512, ..Tile::default() };
            let mut scratch = vec![0f32; tile.scratch_bytes() / 4];
            let partition = Partition::new(&mut out, (n_tokens, rows, rows), (n_tokens, rows));
            let mut block = partition.next().unwrap();
            kernels.matmul(ty, &matrix, &acts, &mut block, false, (tile, floats_as_bytes(&mut scratch)));
            for (i, x) in out.iter().enumerate() {
                let (token, row) = (i / rows, i % rows);
                let what = format!("{} token {token} row {row}: {x}", kernels.name(ty, n_tokens));
                assert_eq!(x.is_finite(), ![2, 5].contains(&token) && row != 3, "{what}");
            }
        }
    }
}

#[test]
fn int8_products_are_the_same_on_every_tier() {
    let (rows, cols) = (16, 256);
    let mut random = Random(5);
    for ty in [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4K, WeightType::Q6K] {
        // Extreme quants: all bits set, all clear, -128.
        for fill in [0xff, 0x00, 0x80, 0x7f] {
            let mut file = weights(ty, rows, cols, &mut random);
            let body = match ty {
                WeightType::Q6K => 0..192,
                WeightType::Q4K => 16..144,
                _ => 2..ty.block_bytes(),
            };
            file.chunks_exact_mut(ty.block_bytes()).for_each(|b| b[body.clone()].fill(fill));
            let packed = panels(ty, &file, rows, cols);
            let layout = ActivationLayout::new(cols);
            let mut all = Vec::new();
            for kernels in tiers() {
                let mut record = vec![0f32; layout.bytes() / 4];
                let record = floats_as_bytes(&mut record);
                layout
                    .values_mut(record)
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = if i % 3 == 0 { -1.0 } else { 1.0 });
                kernels.quantise(layout, kernels.activation_format(ty, 1), record);
                let matrix = Matrix { panels: &packed, panel_bytes: ty.panel_bytes(cols), cols };
                let acts = Activations { records: record, layout, n_tokens: 1 };
                let mut out = vec![0f32; rows];
                let partition = Partition::new(&mut out, (1, rows, rows), (1, rows));
                let mut block = partition.next().unwrap();
                kernels.matmul(ty, &matrix, &acts, &mut block, false, (Tile::default(), &mut []));
                all.push(out);
            }
            for other in &all {
                for (a, b) in all[0].iter().zip(other) {
                    assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{} {fill:x}: {a} and {b}", ty.name());
                }
            }
        }
    }
}

/// LayerNorm with and without weights and bias, against f64.
fn check_layer_norm(kernels: &Kernels, x: &[f32], weight: &[f32]) {
    let n = x.len();
    let bias: Vec<f32> = weight.iter().map(|w| 0.5 - w).collect();
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
    let squares = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
    for (weight, bias) in [(None, None), (Some(weight), None), (Some(weight), Some(&*bias))] {
        let norm = RowNorm { kind: NormKind::Layer, weight, bias, eps: 1e-3 };
        let (mut out, mut sum, mut placed) = (vec![0.0; n], vec![1.0; n], x.to_vec());
        kernels.norm(x, &norm, &mut out);
        kernels.add_norm(x, &norm, &mut sum);
        kernels.norm_in_place(&mut placed, &norm);
        for i in 0..n {
            let scaled = (f64::from(x[i]) - mean) / (squares + 1e-3).sqrt() * f64::from(weight.map_or(1.0, |w| w[i]));
            let want = scaled + f64::from(bias.map_or(0.0, |b| b[i]));
            // The mean is rounded at the size of what it is the mean of.
            let bound = 1e-5 * want.abs() + 1e-5;
            assert!((f64::from(out[i]) - want).abs() <= bound, "layer norm {n} {i}: {} {want}", out[i]);
            assert!((f64::from(sum[i]) - want - 1.0).abs() <= bound, "added layer norm {n} {i}");
            assert_eq!(placed[i], out[i], "layer norm in place {n} {i}");
        }
    }
}

#[test]
fn rows_agree_with_f64() {
    for kernels in tiers() {
        for n in [1, 7, 16, 33, 256] {
            let mut random = Random(n as u64);
            let x: Vec<f32> = (0..n).map(|_| random.unit() * 20.0).collect();
            let w: Vec<f32> = (0..n).map(|_| random.unit()).collect();
            let mut out = vec![0f32; n];
            let norm = RowNorm::rms(&w, 1e-5);
            kernels.norm(&x, &norm, &mut out);
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() <= 1e-5 * want.abs() + 1e-7, "norm {n} {i}");
            }
            check_layer_norm(kernels, &x, &w);
            let mut sum = w.clone();
            kernels.add_norm(&x, &norm, &mut sum);
            let mut normed = x.clone();
            kernels.norm_in_place(&mut normed, &norm);
            for i in 0..n {
                assert!((sum[i] - w[i] - out[i]).abs() <= 1e-6 * (out[i].abs() + 1.0), "added norm {n} {i}");
                assert!((normed[i] - out[i]).abs() <= 1e-6 * out[i].abs(), "norm in place {n} {i}");
            }
            let up = w.clone();
            let mut gated = vec![0f32; n];
            kernels.activate(Activation::Gelu, &x, Some(&up), &mut gated);
            for i in 0..n {
                let g = f64::from(x[i]);
                let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh();
                let want = 0.5 * g * (1.0 + tanh) * f64::from(up[i]);
                // 1 + tanh cancels in the reference as well: what is left of it is good to 1e-16 of 1.
                assert!(
                    (f64::from(gated[i]) - want).abs() <= 4e-6 * want.abs() + 1e-9,
                    "gelu {n} {i}: {} {want}",
                    gated[i]
                );
            }
            // Some beyond either bound.
            let wide: Vec<f32> = (0..n).map(|_| random.unit() * 9.0).collect();
            kernels.activate(Activation::SwigluClamped, &x, Some(&wide), &mut gated);
            for i in 0..n {
                let (g, u) = (f64::from(x[i]).min(7.0), f64::from(wide[i]).clamp(-7.0, 7.0));
                let want = g / (1.0 + (-1.702 * g).exp()) * (u + 1.0);
                // u + 1 is rounded at sizes of up to 8.
                let bound = 4e-6 * want.abs() + 8.0 * 6e-8 * g.abs() + 1e-9;
                assert!((f64::from(gated[i]) - want).abs() <= bound, "clamped {n} {i}: {} {want}", gated[i]);
            }
            let limited = [Activation::SwigluOfLimited, Activation::LimitedSwiglu].map(|of| of(3.0));
            for (activation, [before, after]) in limited.into_iter().zip([[3.0, f64::INFINITY], [f64::INFINITY, 3.0]]) {
                kernels.activate(activation, &x, Some(&wide), &mut gated);
                for i in 0..n {
                    let (g, u) = (f64::from(x[i]).min(before), f64::from(wide[i]).clamp(-3.0, 3.0));
                    let want = (g / (1.0 + (-g).exp())).min(after) * u;
                    let bound = 4e-6 * want.abs() + 1e-9;
                    assert!((f64::from(gated[i]) - want).abs() <= bound, "{activation:?} {n} {i}: {} {want}", gated[i]);
                }
            }
            kernels.activate(Activation::Silu, &x, Some(&up), &mut out);
            for i in 0..n {
                let g = f64::from(x[i]);
                let want = g / (1.0 + (-g).exp()) * f64::from(up[i]);
                assert!(
                    (f64::from(out[i]) - want).abs() <= 2e-6 * want.abs() + 1e-9,
                    "silu {n} {i}: {} {want}",
                    out[i]
                );
            }
            for (activation, power) in [(Activation::Relu, 1), (Activation::ReluSquared, 2)] {
                kernels.activate(activation, &x, Some(&up), &mut out);
                kernels.activate(activation, &x, None, &mut gated);
                for i in 0..n {
                    let want = x[i].max(0.0).powi(power);
                    assert_eq!((gated[i], out[i]), (want, want * up[i]), "{activation:?} {n} {i}");
                }
            }
            let numbers = Xielu { negative: 1.2, positive: 0.7, slope: 0.5, most: -1e-6 };
            kernels.activate(Activation::Xielu(numbers), &x, Some(&up), &mut gated);
            for i in 0..n {
                let g = f64::from(x[i]);
                let curved = if g > 0.0 { 0.7 * g * g } else { 1.2 * (g.min(-1e-6).exp_m1() - g) };
                let want = (0.5 * g + curved) * f64::from(up[i]);
                let bound = 2e-6 * (want.abs() + f64::from(up[i]).abs());
                assert!((f64::from(gated[i]) - want).abs() <= bound, "xielu {n} {i}: {} {want}", gated[i]);
            }
            let mut product = up.clone();
            kernels.sigmoid_mul(&x, &mut product);
            for i in 0..n {
                let want = f64::from(up[i]) / (1.0 + (-f64::from(x[i])).exp());
                assert!((f64::from(product[i]) - want).abs() <= 2e-6 * want.abs() + 1e-9, "sigmoid {n} {i}");
            }
            let mut scaled = x.clone();
            kernels.l2_norm_in_place(&mut scaled, 1e-3, 0.25);
            for i in 0..n {
                let want = 0.25 * f64::from(x[i]) / (mean * n as f64 + 1e-3).sqrt();
                assert!((f64::from(scaled[i]) - want).abs() <= 1e-5 * want.abs() + 1e-9, "length {n} {i}");
            }
            let half = n / 2;
            let angles: Vec<f32> = (0..half).map(|i| i as f32 * 0.37).collect();
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let mut turned = x.clone();
            kernels.rope_halves(&mut turned, &cos, &sin);
            for i in 0..half {
                let want = x[i] * cos[i] - x[i + half] * sin[i];
                assert!((turned[i] - want).abs() < 1e-4);
                let want = x[i] * sin[i] + x[i + half] * cos[i];
                assert!((turned[i + half] - want).abs() < 1e-4);
            }
            let mut turned = x.clone();
            kernels.rope_pairs(&mut turned[..2 * half], &cos, &sin);
            for i in 0..half {
                let want = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
                assert!((turned[2 * i] - want).abs() < 1e-4);
                let want = x[2 * i] * sin[i] + x[2 * i + 1] * cos[i];
                assert!((turned[2 * i + 1] - want).abs() < 1e-4);
            }
        }
        let mut out = [0f32; 4];
        kernels.activate(Activation::Silu, &[1000.0, -1000.0, 0.0, 88.0], None, &mut out);
        assert_eq!((out[0], out[1].abs() < 1e-30, out[2]), (1000.0, true, 0.0));
        kernels.activate(Activation::Gelu, &[1000.0, -1000.0, 0.0, -11.0], None, &mut out);
        assert_eq!((out[0], out[1].abs() < 1e-30, out[2], out[3].abs() < 1e-30), (1000.0, true, 0.0, true));
    }
}

/// What 40 tokens bring a head: queries and keys, decays and strengths, with those at their ends among them.
struct DeltaTokens {
    keys: usize,
    queries_and_keys: Vec<f32>,
    values: Vec<f32>,
    rates: Vec<[f32; 2]>,
}

impl DeltaTokens {
    fn new(kernels: &Kernels, random: &mut Random, (keys, cols): (usize, usize)) -> Self {
        let n = 40;
        let mut queries_and_keys: Vec<f32> = (0..2 * n * keys).map(|_| random.unit()).collect();
        for (i, x) in queries_and_keys.chunks_exact_mut(keys).enumerate() {
            kernels.l2_norm_in_place(x, 1e-6, if i % 2 == 0 { (keys as f32).sqrt().recip() } else { 1.0 });
        }
        let values = (0..n * cols).map(|_| random.unit()).collect();
        let decays = [1.0, 0.9, 0.0, 0.999, 0.5, 1e-30, 1.0].into_iter().cycle();
        let strengths = [None, None, Some(0.0), None, Some(1.0)].into_iter().cycle();
        let mut strength = |strength: Option<f32>| strength.unwrap_or_else(|| 0.5 + random.unit() / 2.0);
        let rates = decays.zip(strengths).take(n).map(|(decay, given)| [decay, strength(given)]).collect();
        DeltaTokens { keys, queries_and_keys, values, rates }
    }

    fn get(&self, token: usize) -> DeltaToken<'_> {
        let (query, key) = self.queries_and_keys[2 * token * self.keys..][..2 * self.keys].split_at(self.keys);
        let [decay, strength] = self.rates[token];
        DeltaToken { query, key, decay, strength }
    }
}

#[test]
fn the_delta_rule_agrees_with_f64_over_many_tokens() {
    for kernels in tiers() {
        for (keys, cols) in [(16, 16), (32, 48), (128, 64), (48, 128), (16, 96)] {
            let mut random = Random((keys * 7 + cols) as u64);
            let before: Vec<f32> = (0..keys * cols).map(|_| random.unit()).collect();
            let tokens = DeltaTokens::new(kernels, &mut random, (keys, cols));
            let mut exact: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
            let rows = tokens.values.chunks_exact(cols).enumerate();
            let want: Vec<f64> = rows.flat_map(|(i, v)| reference::delta_step(&mut exact, &tokens.get(i), v)).collect();
            // One token at a time, in chunks, and in chunks between which some come alone.
            for (alone, period) in [(1, 1), (0, DELTA_CHUNK), (1, DELTA_CHUNK + 1), (3, DELTA_CHUNK + 3)] {
                let (mut state, mut out, mut at) = (before.clone(), tokens.values.clone(), 0);
                while at * cols < out.len() {
                    let n_left = out.len() / cols - at;
                    if at % period < alone || n_left < DELTA_CHUNK {
                        kernels.delta_step(&mut state, &tokens.get(at), &mut out[at * cols..][..cols]);
                        at += 1;
                    } else {
                        let chunk = std::array::from_fn(|i| tokens.get(at + i));
                        kernels.delta_chunk(&mut state, &chunk, &mut out[at * cols..][..DELTA_CHUNK * cols]);
                        at += DELTA_CHUNK;
                    }
                }
                let how = format!("{kernels:?} {keys} x {cols}, {alone} of {period} alone");
                for (i, (got, want)) in out.iter().zip(&want).enumerate() {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off < 3e-6, "{how}, token {}, {}: {got} {want}", i / cols, i % cols);
                }
                let off =
                    state.iter().zip(&exact).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
                assert!(off < 1e-5, "{how}: the state is off by {off}");
            }
        }
    }
}

#[test]
fn state_spaces_agree_with_f64_over_many_tokens() {
    for kernels in tiers() {
        for (dims, cols) in [(16, 16), (32, 48), (128, 64), (48, 128), (16, 96), (1, 32)] {
            let mut random = Random((dims * 7 + cols) as u64);
            let mut vector = |n: usize, scale: f32| (0..n).map(|_| random.unit() * scale).collect::<Vec<f32>>();
            let mut states = [vector(dims * cols, 1.0), vec![]];
            states[1] = states[0].clone();
            let mut exact = states.clone().map(|state| state.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
            let rates: Vec<f32> = vector(dims * cols, 2.0).iter().map(|a| -a.abs()).collect();
            for (token, dt) in [0.0, 0.1, 3.0, 0.001, 0.7, 50.0].into_iter().cycle().take(40).enumerate() {
                let (b, c, x) = (vector(dims, 0.3), vector(dims, 0.3), vector(cols, 1.0));
                let (d, dts) = (vector(cols, 1.0), vector(cols, dt).iter().map(|dt| dt.abs()).collect::<Vec<f32>>());
                let (a, skip) = (-0.6f32, d[0]);
                let mut ys = [x.clone(), x.clone()];
                let rates_of_head = SsmRates { decay: (dt * a).exp(), dt, d: skip };
                kernels.ssm_step(&mut states[0], (&b, &c), &mut ys[0], rates_of_head);
                kernels.ssm_step_by_channel((&mut states[1], &rates), (&b, &c), &mut ys[1], (&dts, &d));
                let wants = [
                    reference::ssm_step(&mut exact[0], (&b, &c), &x, &|_, _| (f64::from(dt * a).exp(), dt, skip)),
                    reference::ssm_step(&mut exact[1], (&b, &c), &x, &|at, col| {
                        (f64::from(dts[col] * rates[at]).exp(), dts[col], d[col])
                    }),
                ];
                for (kind, (y, want)) in ys.iter().zip(&wants).enumerate() {
                    for (i, (got, want)) in y.iter().zip(want).enumerate() {
                        // Each of so many products is rounded, and so is each sum of them, at the size of what is added up.
                        let size: f64 = (0..dims).map(|k| (exact[kind][k * cols + i] * f64::from(c[k])).abs()).sum();
                        let rounding = (dims + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                        let off = (f64::from(*got) - want).abs();
                        assert!(
                            off < 3e-6 * (1.0 + f64::from(dt)) + rounding,
                            "{kernels:?} {dims} x {cols}, kind {kind}, token {token}, {i}: {got} {want}"
                        );
                    }
                }
            }
            for (state, exact) in states.iter().zip(&exact) {
                let off = state.iter().zip(exact).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
                assert!(off < 1e-4, "{kernels:?} {dims} x {cols}: the state is off by {off}");
            }
        }
    }
}

#[test]
fn a_convolution_knows_the_tokens_before_and_no_later_one() {
    for kernels in tiers() {
        for (taps, n) in [(1, 16), (2, 32), (4, 128), (16, 48)] {
            let mut random = Random((taps * 100 + n) as u64);
            let weights: Vec<f32> = (0..taps * n).map(|_| random.unit()).collect();
            let bias: Vec<f32> = (0..if n == 48 { 0 } else { n }).map(|_| random.unit()).collect();
            let inputs: Vec<f32> = (0..20 * n).map(|_| random.unit() * 3.0).collect();
            let mut history = vec![0f32; (taps - 1) * n];
            for token in 0..20 {
                let mut x = inputs[token * n..][..n].to_vec();
                kernels.conv_silu(&mut history, (&weights, &bias), &mut x);
                for (i, got) in x.iter().enumerate() {
                    let of_tap = |tap: usize| {
                        let input = (token + tap + 1).checked_sub(taps).map_or(0.0, |at| inputs[at * n + i]);
                        f64::from(weights[tap * n + i]) * f64::from(input)
                    };
                    let sum = (0..taps).map(of_tap).sum::<f64>() + bias.get(i).map_or(0.0, |&bias| f64::from(bias));
                    let want = sum / (1.0 + (-sum).exp());
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{kernels:?} {taps} taps, token {token}, {i}");
                }
            }
            assert!(history == inputs[(21 - taps) * n..], "{kernels:?} {taps} taps: the last inputs are kept");
        }
    }
}

#[test]
fn a_missing_or_unknown_tier_is_refused() {
    assert_eq!(
        "sse9".parse::<Tier>().unwrap_err().to_string(),
        "no kernel tier `sse9`: use scalar, avx2, avx2vnni, avx512, avx512bf16"
    );
    let e = TierError::Missing { asked: Tier::Avx512, best: Tier::Avx2 };
    assert!(e.to_string().contains("avx512vnni"));
    assert_eq!(Error::from(e).exit() as u8, 6);
    assert_eq!(select(Some(Tier::Scalar), None).unwrap().tier(), Tier::Scalar);
    assert_eq!(select(None, Some(Tier::Scalar)).unwrap().tier(), Tier::Scalar);
}
