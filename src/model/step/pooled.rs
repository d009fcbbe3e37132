//! What becomes of the pooled vectors of texts: a classifier's scores, or the same vector in another place.

use super::buffers::Buffers;
use super::pass::ForwardPass;
use super::product::multiply;
use super::rows::padded;
use crate::kernels::{ActivationFormat, ActivationLayout};
use crate::model::weights::{HeadFunction, Linear};

impl ForwardPass<'_, '_> {
    /// The maps of `head`, one after the other, of `n` pooled vectors, which `fill` writes; `each` sees what they come to.
    ///
    /// # Panics
    /// If there are more vectors than sequences that the buffers were sized for.
    pub fn map_pooled(
        &mut self,
        head: &[(Linear, HeadFunction)],
        n: usize,
        fill: &mut dyn FnMut(usize, &mut [f32]),
        each: &mut dyn FnMut(usize, &[f32]),
    ) {
        let tools = self.tools();
        let mut cols = self.config.n_embd;
        let Buffers { acts, pooled, workers, .. } = &mut *self.buffers;
        for (i, (map, function)) in head.iter().enumerate() {
            let (layout, stride) = (ActivationLayout::new(cols), padded(cols));
            let records = acts.writable(layout, ActivationFormat::F32).chunks_exact_mut(layout.bytes());
            for (row, record) in records.take(n).enumerate() {
                match i {
                    0 => fill(row, layout.values_mut(record)),
                    _ => layout.values_mut(record).copy_from_slice(&pooled[row * stride..][..cols]),
                }
            }
            multiply(tools, workers, (acts, n), [(map, &mut **pooled)], false);
            cols = map.weight.rows;
            pooled.chunks_mut(padded(cols)).take(n).for_each(|row| apply(*function, &mut row[..cols]));
        }
        pooled.chunks(padded(cols)).take(n).enumerate().for_each(|(row, values)| each(row, &values[..cols]));
    }
}

fn apply(function: HeadFunction, values: &mut [f32]) {
    match function {
        HeadFunction::None => {}
        HeadFunction::Tanh => values.iter_mut().for_each(|x| *x = x.tanh()),
        HeadFunction::Softmax => {
            let top = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            values.iter_mut().for_each(|x| *x = (*x - top).exp());
            let sum: f32 = values.iter().sum();
            values.iter_mut().for_each(|x| *x /= sum);
        }
    }
}
