//! Products of activations with matrices, and what is added to them.

use std::sync::Mutex;

use super::activations::ActivationBuffer;
use super::buffers::WorkerScratch;
use crate::kernels::{ActivationFormat, Activations, Kernels, Matrix, OutTile, Partition, Team, Tile};
use crate::model::weights::Linear;

/// What products are made with.
#[derive(Clone, Copy)]
pub(super) struct Tools<'p> {
    pub kernels: &'p Kernels,
    pub team: &'p dyn Team,
    pub region: &'p [u8],
    pub tile: Tile,
}

/// Multiplies what a block holds by a scale and adds a bias, `[cols of the whole]`.
pub(super) fn scale_and_shift(block: &mut OutTile<'_, f32>, scale: f32, bias: Option<&[f32]>) {
    let col0 = block.col0;
    for row in 0..block.rows {
        let values = block.row(row);
        if scale != 1.0 {
            values.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(bias) = bias.and_then(|bias| bias.get(col0..)) {
            values.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    }
}

/// Linear maps of `n` activation records by some matrices, or by one whose result is added, under one barrier. The
/// activations are quantised once for each format the matrices need.
pub(super) fn multiply<const N: usize>(
    tools: Tools<'_>,
    workers: &[Mutex<WorkerScratch<'_>>],
    records: (&mut ActivationBuffer<'_>, usize),
    products: [(&Linear, &mut [f32]); N],
    accumulate: bool,
) {
    const { assert!(N <= PRODUCTS_MAX) };
    multiply_some(tools, workers, records, products.into_iter().collect(), accumulate);
}

/// Most products that share their activations: queries, keys, values, and what results are gated by.
const PRODUCTS_MAX: usize = 4;

pub(super) type Products<'o, T> = heapless::Vec<(&'o Linear, T), PRODUCTS_MAX>;

/// [`multiply`] for any number of products: one copy of it in the binary.
pub(super) fn multiply_some<'o>(
    Tools { kernels, team, region, tile }: Tools<'_>,
    workers: &[Mutex<WorkerScratch<'_>>],
    (records, n): (&mut ActivationBuffer<'_>, usize),
    products: Products<'o, &'o mut [f32]>,
    accumulate: bool,
) {
    assert!(products.len() == 1 || !accumulate);
    let layout = records.layout();
    let cols = layout.cols();
    let added_factor = if accumulate { products[0].0.weight.factor_of(region, 0) } else { 1.0 };
    if added_factor != 1.0 {
        // The sum must not be scaled, so what is multiplied is.
        assert!(records.has_f32());
        for record in records.writable(layout, ActivationFormat::F32).chunks_exact_mut(layout.bytes()).take(n) {
            layout.values_mut(record).iter_mut().for_each(|x| *x *= added_factor);
        }
    }
    let format_of = |linear: &Linear| kernels.activation_format(linear.weight.ty, n);
    let share = |(linear, out): (&'o Linear, _)| (linear, kernels.share(out, n, linear.weight.rows, team.size()));
    let jobs: Products<'o, Partition<'o, f32>> = products.into_iter().map(share).collect();
    for format in records.format().and_others() {
        if !jobs.iter().any(|(linear, _)| format_of(linear) == format) {
            continue;
        }
        records.ensure((kernels, team), n, format);
        let acts = Activations { records: &*records.bytes, layout, n_tokens: n };
        team.run_dynamic(&|worker| {
            let Ok(mut scratch) = workers[worker].lock() else { return };
            // Of every product what is one's own comes first: only who is done with all of it takes from others.
            for parts in [1, team.size()] {
                for (linear, partition) in jobs.iter().filter(|(linear, _)| format_of(linear) == format) {
                    let w = &linear.weight;
                    assert_eq!(w.cols, cols, "the records are as wide as the matrix");
                    let matrix = Matrix { panels: w.of(region), panel_bytes: w.ty.panel_bytes(cols), cols };
                    let factor = if accumulate { 1.0 } else { w.factor_of(region, 0) };
                    while let Some(mut block) = partition.next_among(worker, parts) {
                        kernels.matmul(w.ty, &matrix, &acts, &mut block, accumulate, (tile, &mut *scratch.kernels));
                        scale_and_shift(&mut block, factor, linear.bias_of(region, 0));
                    }
                }
            }
        });
    }
}
