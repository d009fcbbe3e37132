//! Cosines and sines of the positions of a pass.

use super::carver::Carver;
use crate::kernels::Kernels;
use crate::model::config::Pairing;
use crate::model::rope::Rope;
use crate::model::sequence::{SequenceSlice, Sizes};

/// Cosines and sines for the tokens of a pass.
pub(super) struct Rotation<'a> {
    magnitude: f64,
    /// `[rope_dim / 2]`.
    pub frequencies: &'a mut [f64],
    /// `[n_batch, rope_dim / 2]`, as `sin`.
    pub cos: &'a mut [f32],
    pub sin: &'a mut [f32],
}

impl<'a> Rotation<'a> {
    /// Takes its tables and fills that of frequencies; `factors` are divisors of them.
    pub(super) fn cut(carver: &mut Carver<'a>, rope: &Rope, sizes: &Sizes, factors: Option<&[f32]>) -> Rotation<'a> {
        let half = rope.dim / 2;
        let frequencies = carver.take(half);
        rope.frequencies(factors, frequencies);
        let (cos, sin) = (carver.take(sizes.n_batch * half), carver.take(sizes.n_batch * half));
        Rotation { magnitude: f64::from(rope.magnitude), frequencies, cos, sin }
    }

    /// Turns the first values of a head by its token's position.
    pub(super) fn turn(&self, (kernels, pairing): (&Kernels, Pairing), head: &mut [f32], token: usize) {
        let half = self.frequencies.len();
        let (cos, sin) = (&self.cos[token * half..][..half], &self.sin[token * half..][..half]);
        match pairing {
            Pairing::Neighbours => kernels.rope_pairs(&mut head[..2 * half], cos, sin),
            Pairing::Halves => kernels.rope_halves(&mut head[..2 * half], cos, sin),
        }
    }

    /// Of the positions of one sequence's tokens.
    pub(super) fn locate(&mut self, slice: &SequenceSlice<'_>) {
        let half = self.frequencies.len();
        let rows = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for (t, (cos, sin)) in rows.skip(slice.first).take(slice.n).enumerate() {
            let position = (slice.position + t) as f64;
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(self.frequencies.iter()) {
                let (s, c) = (position * frequency).sin_cos();
                (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
            }
        }
    }
}
