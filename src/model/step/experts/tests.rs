//! Grouped products against the formula, one token at a time in f64.

use super::super::pass::OutputRows;
use super::super::routing::{GROUP_ROWS_MAX, Routed};
use super::*;
use crate::bytes;
use crate::kernels::{self, Kernels, KvType, NormKind, Team, Tile};
use crate::load::rows::Tables;
use crate::model::cache::{Cache, CachePlan};
use crate::model::config::{
    Config, EmbeddingNorm, ExpertGroups, FfnConfig, Gating, LayerConfig, MixerConfig, Pairing, Residual, Style,
};
use crate::model::sequence::Sizes;
use crate::model::step::scratch_bytes;
use crate::model::weights::{DenseFfn, Form, SharedExpert, Weight};
use crate::quant::WeightType;

const E: usize = 48;
/// No whole panels, so that every expert ends in rows that do not exist.
const F: usize = 40;
const EXPERTS: Experts = Experts {
    count: 9,
    used: 3,
    n_ff: F,
    latent: None,
    n_ff_shared: 0,
    gating: Gating::Softmax,
    normalised: true,
    scale: 1.0,
    groups: None,
    weighs_input: false,
    activations: [None; 2],
    shared_scale: 1.0,
    apart: false,
};
const EVERYBODYS: usize = 2;
const NOBODYS: usize = 5;

/// What routers and experts of the architectures differ in.
#[derive(Clone, Copy, Debug)]
struct Kind {
    experts: Experts,
    router_bias: bool,
    selection_bias: bool,
    /// A shared expert that counts as much as its gate says.
    gated_shared: bool,
    activation: Activation,
}

const PLAIN: Kind = Kind {
    experts: EXPERTS,
    router_bias: false,
    selection_bias: false,
    gated_shared: false,
    activation: Activation::Silu,
};

fn kinds() -> [Kind; 11] {
    let of = |gating, normalised, scale| Experts { gating, normalised, scale, ..EXPERTS };
    let sigmoid =
        |normalised, scale| Kind { experts: of(Gating::Sigmoid, normalised, scale), selection_bias: true, ..PLAIN };
    [
        PLAIN,
        Kind { experts: of(Gating::Softmax, false, 2.5), ..PLAIN },
        Kind { experts: of(Gating::Softmax, true, 1.0), selection_bias: true, router_bias: true, ..PLAIN },
        Kind { gated_shared: true, ..PLAIN },
        // Three experts of one or two of three groups of three.
        Kind { experts: Experts { groups: Some(ExpertGroups { count: 3, used: 1 }), ..EXPERTS }, ..PLAIN },
        Kind {
            experts: Experts { groups: Some(ExpertGroups { count: 3, used: 2 }), ..of(Gating::Sigmoid, true, 2.5) },
            selection_bias: true,
            ..PLAIN
        },
        sigmoid(true, 1.0),
        sigmoid(false, 0.75),
        Kind {
            experts: of(Gating::SoftmaxOfChosen, false, 1.0),
            router_bias: true,
            activation: Activation::SwigluClamped,
            ..PLAIN
        },
        Kind { activation: Activation::ReluSquared, ..PLAIN },
        Kind { experts: Experts { weighs_input: true, ..of(Gating::Sigmoid, true, 1.5) }, ..PLAIN },
    ]
}

struct Threads(usize);

impl Team for Threads {
    fn size(&self) -> usize {
        self.0
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            (1..self.0).for_each(|worker| drop(scope.spawn(move || job(worker))));
            job(0);
        });
    }
}

struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// Matrices of F32 with their values, laid down at the end of `region`.
fn place(region: &mut Vec<u8>, values: &[f32], n_matrices: usize, (rows, cols): (usize, usize)) -> Weight {
    let (ty, offset) = (WeightType::F32, region.len());
    for matrix in values.chunks(rows * cols) {
        for rows in matrix.chunks(PANEL_ROWS * cols) {
            let at = region.len();
            region.resize(at + ty.panel_bytes(cols), 0);
            ty.repack_panel(bytes::bytes_of(rows), cols, &mut region[at..]);
        }
    }
    let bytes = region.len() - offset;
    Weight { ty, form: Form::Panels, rows, cols, n_matrices, n_used: n_matrices, offset, bytes, factors: None }
}

/// Vectors of f32 with their values, laid down at the end of `region`.
fn place_vectors(region: &mut Vec<u8>, values: &[f32], len: usize) -> Weight {
    region.resize(region.len().next_multiple_of(64), 0);
    let (offset, n_bytes) = (region.len(), values.len() * 4);
    region.extend_from_slice(bytes::bytes_of(values));
    let rows = values.len() / len;
    let (n_matrices, n_used) = (1, 1);
    Weight {
        ty: WeightType::F32,
        form: Form::Vector,
        rows,
        cols: len,
        n_matrices,
        n_used,
        offset,
        bytes: n_bytes,
        factors: None,
    }
}

struct Layer {
    region: Vec<f64>,
    router_bias: (Vec<f32>, Weight),
    selection_bias: (Vec<f32>, Weight),
    /// Of gate, up and down.
    biases: [(Vec<f32>, Weight); 3],
    router: (Vec<f32>, Weight),
    gate: (Vec<f32>, Weight),
    up: (Vec<f32>, Weight),
    down: (Vec<f32>, Weight),
    /// Gate, up and down of the shared expert, and the vector that says how much it counts.
    shared: [(Vec<f32>, Weight); 4],
}

impl Layer {
    fn new() -> Layer {
        let random = &mut Random(7);
        let mut region = Vec::new();
        let mut stack = |n: usize, rows: usize, cols: usize, scale: f32| {
            let mut values: Vec<f32> = (0..n * rows * cols).map(|_| random.unit() * scale).collect();
            if n == 1 {
                // The first value of every token is 1: these two stand out for all of them.
                (values[EVERYBODYS * cols], values[NOBODYS * cols]) = (2.0, -2.0);
            }
            let weight = place(&mut region, &values, n, (rows, cols));
            (values, weight)
        };
        let router = stack(1, EXPERTS.count, E, 0.1);
        let gate = stack(EXPERTS.count, F, E, 0.3);
        let up = stack(EXPERTS.count, F, E, 0.3);
        let down = stack(EXPERTS.count, E, F, 0.3);
        let [shared_gate, shared_up, shared_down] = [(F, E), (F, E), (E, F)].map(|(rows, cols)| {
            let (values, weight) = stack(2, rows, cols, 0.3);
            (values[..rows * cols].to_vec(), Weight { n_matrices: 1, n_used: 1, bytes: weight.bytes / 2, ..weight })
        });
        let mut vectors = |len: usize, n: usize, scale: f32| {
            let values: Vec<f32> = (0..n * len).map(|_| random.unit() * scale).collect();
            let weight = place_vectors(&mut region, &values, len);
            (values, weight)
        };
        let router_bias = vectors(EXPERTS.count, 1, 0.1);
        let selection_bias = vectors(EXPERTS.count, 1, 0.1);
        // Large enough that much is clamped.
        let biases = [(F, 6.0), (F, 6.0), (E, 1.0)].map(|(len, scale)| vectors(len, EXPERTS.count, scale));
        let shared = [shared_gate, shared_up, shared_down, vectors(E, 1, 0.3)];
        let mut words = vec![0f64; region.len().div_ceil(8)];
        bytes::words_as_bytes(&mut words)[..region.len()].copy_from_slice(&region);
        Layer { region: words, router, gate, up, down, router_bias, selection_bias, biases, shared }
    }

    fn moe(&self, kind: Kind) -> MoeFfn {
        let has_biases = kind.activation == Activation::SwigluClamped;
        let biased = |weight: Weight, i: usize| Linear { weight, bias: has_biases.then_some(self.biases[i].1) };
        let [gate, up, down, shared_gate] = self.shared.each_ref().map(|(_, weight)| *weight);
        let [gate, up, down] = [gate, up, down].map(|weight| Linear { weight, bias: None });
        MoeFfn {
            experts: kind.experts,
            router: Linear { weight: self.router.1, bias: kind.router_bias.then_some(self.router_bias.1) },
            selection_bias: kind.selection_bias.then_some(self.selection_bias.1),
            gate: (kind.activation != Activation::ReluSquared).then(|| biased(self.gate.1, 0)),
            up: biased(self.up.1, 1),
            down: biased(self.down.1, 2),
            latent: None,
            shared: kind.gated_shared.then_some(SharedExpert {
                norm: None,
                ffn: DenseFfn { gate: Some(gate), up, down },
                gate: Some(shared_gate),
            }),
            apart: None,
        }
    }

    /// The experts of one token, and how much each counts.
    fn chosen(&self, kind: Kind, x: &[f64]) -> Vec<(usize, f64)> {
        let mut scores: Vec<f64> = self.router.0.chunks(E).map(|w| dot(w, x)).collect();
        if kind.router_bias {
            scores.iter_mut().zip(&self.router_bias.0).for_each(|(score, bias)| *score += f64::from(*bias));
        }
        let all: f64 = scores.iter().map(|score| score.exp()).sum();
        let odds: Vec<f64> = match kind.experts.gating {
            Gating::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            _ => scores.iter().map(|score| score.exp() / all).collect(),
        };
        let mut keys = odds.clone();
        if kind.selection_bias {
            keys.iter_mut().zip(&self.selection_bias.0).for_each(|(key, bias)| *key += f64::from(*bias));
        }
        if let Some(groups) = kind.experts.groups {
            let len = EXPERTS.count / groups.count;
            let best_two = |group: usize| {
                let mut keys = keys[group * len..][..len].to_vec();
                keys.sort_by(|a, b| b.total_cmp(a));
                keys[0] + keys[1]
            };
            let mut order: Vec<usize> = (0..groups.count).collect();
            order.sort_by(|&a, &b| best_two(b).total_cmp(&best_two(a)));
            for closed in &order[groups.used..] {
                keys[closed * len..][..len].fill(f64::NEG_INFINITY);
            }
        }
        let mut order: Vec<usize> = (0..EXPERTS.count).collect();
        order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
        let chosen: f64 = order[..EXPERTS.used].iter().map(|&expert| odds[expert]).sum();
        let sums_to_one = kind.experts.normalised || kind.experts.gating == Gating::SoftmaxOfChosen;
        let total = if sums_to_one { chosen } else { 1.0 };
        let counts = |&expert: &usize| (expert, odds[expert] / total * f64::from(kind.experts.scale));
        order[..EXPERTS.used].iter().map(counts).collect()
    }

    /// The layer's output for one token, and bounds on its errors in f32.
    fn reference(&self, kind: Kind, token: &[f32]) -> Vec<(f64, f64)> {
        let x: Vec<f64> = token.iter().map(|x| f64::from(*x)).collect();
        let mut out = vec![(0.0, 0.0); E];
        for (expert, weight) in self.chosen(kind, &x) {
            // Of what it is given, or of what it gives.
            let (given, p) = if kind.experts.weighs_input { (weight, 1.0) } else { (1.0, weight) };
            let x: Vec<f64> = x.iter().map(|x| given * x).collect();
            let rows = |w: &'_ [f32]| w[expert * F * E..][..F * E].to_vec();
            let bias = |i: usize, row: usize| {
                let len = self.biases[i].0.len() / EXPERTS.count;
                f64::from(self.biases[i].0[expert * len + row])
            };
            let (gate, up, down) = (rows(&self.gate.0), rows(&self.up.0), rows(&self.down.0));
            let hidden = |row: usize, g: &[f32], u: &[f32]| {
                let (gx, ux, size) = (dot(g, &x), dot(u, &x), (sum_abs(g, &x), sum_abs(u, &x)));
                match kind.activation {
                    // silu(g) <= |g| and its slope is below 1.1.
                    Activation::Silu => (gx / (1.0 + (-gx).exp()) * ux, 2.1 * size.0 * size.1),
                    // Without a gate.
                    Activation::ReluSquared => (ux.max(0.0).powi(2), 2.1 * size.1 * size.1),
                    Activation::SwigluClamped => {
                        let gx = (gx + bias(0, row)).min(7.0);
                        let ux = (ux + bias(1, row)).clamp(-7.0, 7.0);
                        let size = (size.0 + bias(0, row).abs(), size.1 + bias(1, row).abs() + 1.0);
                        (gx / (1.0 + (-1.702 * gx).exp()) * (ux + 1.0), 2.1 * size.0 * size.1)
                    }
                    _ => unreachable!("these experts have it not"),
                }
            };
            let hidden = gate.chunks(E).zip(up.chunks(E)).enumerate().map(|(row, (g, u))| hidden(row, g, u));
            let (values, sizes): (Vec<f64>, Vec<f64>) = hidden.unzip();
            for (row, ((out, bound), w)) in out.iter_mut().zip(down.chunks(F)).enumerate() {
                let bias = if kind.activation == Activation::SwigluClamped { bias(2, row) } else { 0.0 };
                *out += p * (dot(w, &values) + bias);
                *bound += p * (sum_abs(w, &sizes) + bias.abs());
            }
        }
        if kind.gated_shared {
            let [gate, up, down, counts] = self.shared.each_ref().map(|(values, _)| values);
            let p = 1.0 / (1.0 + (-dot(counts, &x)).exp());
            let hidden = gate.chunks(E).zip(up.chunks(E)).map(|(g, u)| {
                let (gx, ux) = (dot(g, &x), dot(u, &x));
                (gx / (1.0 + (-gx).exp()) * ux, 2.1 * sum_abs(g, &x) * sum_abs(u, &x))
            });
            let (values, sizes): (Vec<f64>, Vec<f64>) = hidden.unzip();
            for ((out, bound), w) in out.iter_mut().zip(down.chunks(F)) {
                *out += p * dot(w, &values);
                *bound += p * sum_abs(w, &sizes);
            }
        }
        // Sums of E, F and E terms, a softmax of scores below 4, one rounding for each expert.
        let terms = (E + F + 4 * E + EXPERTS.used + 8) as f64;
        out.into_iter().map(|(out, size)| (out, terms * f64::from(f32::EPSILON) * size)).collect()
    }
}

fn dot(w: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

fn sum_abs(w: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| (f64::from(*w) * x).abs()).sum()
}

fn tokens(n: usize) -> Vec<f32> {
    let random = &mut Random(n as u64);
    (0..n * E).map(|i| if i % E == 0 { 1.0 } else { random.unit() }).collect()
}

/// Runs the layer over `tokens` as the normed stream and returns what it adds; `look` sees how they were routed.
fn run(
    kernels: &Kernels,
    team: &dyn Team,
    (layer, kind): (&Layer, Kind),
    tokens: &[f32],
    look: impl Fn(&Routed<'_>),
) -> Vec<f32> {
    let n = tokens.len() / E;
    let config = Config {
        layers: vec![LayerConfig {
            mixer: MixerConfig::None,
            ffn: FfnConfig::Experts(Experts { n_ff_shared: if kind.gated_shared { F } else { 0 }, ..kind.experts }),
        }],
        n_layers_skipped: 0,
        n_embd: E,
        ropes: Vec::new(),
        activations: Vec::new(),
        loops: 1,
        norm_after_loops: false,
        style: Style { pairing: Pairing::Neighbours, activation: Activation::Silu, residual: Residual::InTurn },
        norm: NormKind::Rms,
        has_branch: false,
        embedding_norm: EmbeddingNorm::None,
        learned_positions: false,
        gated_ffn: true,
        residual_scale: 1.0,
        logit_scale: 1.0,
        embedding_scale: 1.0,
        logit_cap: None,
        norm_eps: 1e-5,
        n_embd_per_layer: 0,
        vectors: None,
        both_ways: false,
        ends_normed: false,
        token_kinds: false,
        suppressed: Vec::new(),
        ctx_train: 16,
    };
    let tile = Tile { k_cols: 256, ..Tile::default() };
    let sizes = Sizes {
        n_batch: n,
        n_logits: 1,
        ctx: 16,
        sequences: 1,
        kv_tokens: 16,
        checkpoints: None,
        kv_type: KvType::F16,
        workers: team.size(),
        tile,
    };
    let mut words = vec![f64::NAN; scratch_bytes(&config, 16, &sizes).unwrap().div_ceil(8) as usize];
    let (mut buffers, _) = Buffers::carve(bytes::words_as_bytes(&mut words), &config, 16, &sizes, None);
    let layout = ActivationLayout::new(E);
    let records = buffers.acts.writable(layout, ActivationFormat::F32);
    for (record, token) in records.chunks_exact_mut(layout.bytes()).zip(tokens.chunks(E)) {
        layout.values_mut(record).copy_from_slice(token);
    }
    buffers.x.fill(0.0);
    let ids = vec![0; n];
    let mut cache = Cache::new((&mut [][..]).into(), (&mut [][..]).into(), CachePlan::new(&config, &sizes));
    let mut pass = ForwardPass {
        config: &config,
        region: bytes::bytes_of(&layer.region),
        kernels,
        team,
        tile,
        buffers: &mut buffers,
        cache: &mut cache,
        tokens: &ids,
        output_rows: OutputRows::All,
        n_rows: n,
        slices: &[],
        attention_time: None,
        tables: &Tables::default(),
    };
    pass.add_moe(&layer.moe(kind), kind.activation);
    look(&buffers.routed);
    buffers.x[..n * padded(E)].chunks(padded(E)).flat_map(|row| row[..E].to_vec()).collect()
}

#[test]
fn groups_give_what_each_token_would_alone_whoever_works_on_them() {
    let layer = Layer::new();
    for n in [1, 2, 8, 9, 40, 2 * GROUP_ROWS_MAX + 1] {
        let tokens = tokens(n);
        let want: Vec<(f64, f64)> = tokens.chunks(E).flat_map(|token| layer.reference(PLAIN, token)).collect();
        for kernels in kernels::available() {
            let got = run(kernels, &Threads(1), (&layer, PLAIN), &tokens, |routed| {
                let (groups, cuts) = (&routed.expert_of[..routed.n_groups], &routed.cuts[..=routed.n_groups]);
                assert!(!groups.contains(&(NOBODYS as u32)) && cuts.last() == Some(&((n * EXPERTS.used) as u32)));
                let sizes = groups.iter().zip(cuts.windows(2)).filter(|(expert, _)| **expert == EVERYBODYS as u32);
                let sizes: Vec<u32> = sizes.map(|(_, cut)| cut[1] - cut[0]).collect();
                assert_eq!(sizes.iter().sum::<u32>(), n as u32, "everybody's expert");
                assert!(sizes.len() == n.div_ceil(GROUP_ROWS_MAX), "{sizes:?}");
            });
            for (i, (got, (want, bound))) in got.iter().zip(&want).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(off <= *bound, "{kernels:?} {n} tokens, value {i}: {got} {want}, off {off:e} > {bound:e}");
            }
            let again = run(kernels, &Threads(2), (&layer, PLAIN), &tokens, |_| ());
            assert!(got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{kernels:?} {n} tokens");
        }
    }
}

#[test]
fn every_kind_of_routing_and_activation_agrees_with_f64() {
    let layer = Layer::new();
    for kind in kinds() {
        for n in [1, 9, 40] {
            let tokens = tokens(n);
            let want: Vec<(f64, f64)> = tokens.chunks(E).flat_map(|token| layer.reference(kind, token)).collect();
            for kernels in kernels::available() {
                let got = run(kernels, &Threads(2), (&layer, kind), &tokens, |_| ());
                for (i, (got, (want, bound))) in got.iter().zip(&want).enumerate() {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off <= *bound, "{kernels:?} {kind:?} {n} tokens, value {i}: {got} {want}, off {off:e}");
                }
            }
        }
    }
}

#[test]
fn weights_that_are_next_to_nothing_are_not_blown_up() {
    let scores = Scores(&[-200.0, -300.0, -100.0]);
    let experts = Experts { count: 3, gating: Gating::Sigmoid, ..EXPERTS };
    let mut weights = [f32::NAN; 2];
    scores.weights(&experts, &[2, 0], |i, weight| weights[i] = weight);
    assert!(weights.iter().all(|weight| (0.0..1e-30).contains(weight)), "{weights:?}");
}

#[test]
fn the_best_are_chosen_in_order_and_of_equals_the_first() {
    let choice = |scores: &[f32], used: usize| {
        let mut chosen = vec![u32::MAX; used];
        choose(scores, &mut chosen);
        chosen
    };
    assert_eq!(choice(&[1.0, 3.0, 2.0, 3.0, -1.0], 3), [1, 3, 2]);
    assert_eq!(choice(&[1.0, 2.0, 3.0], 3), [2, 1, 0]);
    assert_eq!(choice(&[5.0; 4], 2), [0, 1]);
    assert_eq!(choice(&[0.0], 1), [0]);
    // Whatever is chosen among NaN exists.
    assert!(choice(&[f32::NAN, 1.0, f32::NAN, 2.0], 2).iter().all(|&expert| expert < 4));
}
