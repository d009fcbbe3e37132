//! The activations of a pass, in whichever format the next matrix wants them.

use std::ops::Range;

use super::rows::{each_row, share};
use crate::kernels::{ActivationFormat, ActivationLayout, BLOCK_BYTES, Kernels, Partition, Team};
use crate::quant::SUPER;

/// Activations on their way into whatever matrix comes next, one record a token.
pub(super) struct ActivationBuffer<'a> {
    pub(super) bytes: &'a mut [u8],
    layout: ActivationLayout,
    /// What records hold beside f32 values: [`ActivationFormat::F32`] for nothing.
    format: ActivationFormat,
    /// Whether they hold f32 values.
    has_f32: bool,
}

impl<'a> ActivationBuffer<'a> {
    /// Over the bytes of as many records as fit.
    pub(super) fn new(bytes: &'a mut [u8]) -> ActivationBuffer<'a> {
        ActivationBuffer { bytes, layout: ActivationLayout::new(0), format: ActivationFormat::F32, has_f32: true }
    }

    /// How the records are laid out now.
    pub(super) fn layout(&self) -> ActivationLayout {
        self.layout
    }

    /// The format of the records now.
    pub(super) fn format(&self) -> ActivationFormat {
        self.format
    }

    /// Whether the records hold f32 values.
    pub(super) fn has_f32(&self) -> bool {
        self.has_f32
    }

    /// For whoever writes f32 values and `format`.
    pub(super) fn writable(&mut self, layout: ActivationLayout, format: ActivationFormat) -> &mut [u8] {
        (self.layout, self.format, self.has_f32) = (layout, format, true);
        self.bytes
    }

    /// Keeps the records of `tokens`, which rise.
    pub(super) fn keep(&mut self, tokens: &[usize]) {
        let bytes = self.layout.bytes();
        for (row, &token) in tokens.iter().enumerate() {
            self.bytes.copy_within(token * bytes..(token + 1) * bytes, row * bytes);
        }
    }

    /// Brings the first `n` records to `format`, unless whoever wrote their values has done so.
    pub(super) fn ensure(&mut self, (kernels, team): (&Kernels, &dyn Team), n: usize, format: ActivationFormat) {
        if format == self.format || format == ActivationFormat::F32 && self.has_f32 {
            return;
        }
        assert!(self.has_f32, "records that were written for one product alone");
        self.format = format;
        let layout = self.layout;
        let partition = each_row(team, self.bytes, (n, layout.bytes(), layout.bytes()));
        share(team, n, &|worker| {
            while let Some(mut block) = partition.next_for(worker) {
                kernels.quantise(layout, format, block.row(0));
            }
        });
    }

    /// Writes what the next product alone reads: `format`, and values only where that is not made of 256 of them at a time.
    /// `values` writes those of some columns of a row; `cut` makes a partition of bands and rows over the first so many bytes
    /// of every record and blocks of as many.
    pub(super) fn write<'b>(
        &'b mut self,
        (kernels, team): (&Kernels, &dyn Team),
        (layout, format): (ActivationLayout, ActivationFormat),
        cut: impl FnOnce(&'b mut [u8], usize, usize) -> Partition<'b, u8>,
        values: impl Fn((usize, usize), Range<usize>, &mut [f32]) + Sync,
    ) {
        (self.layout, self.format, self.has_f32) = (layout, format, !format.in_blocks());
        if self.has_f32 {
            let partition = cut(self.bytes, layout.bytes(), layout.bytes()).in_parts(team.size());
            return team.run_dynamic(&|worker| {
                while let Some(mut block) = partition.next_for(worker) {
                    for row in 0..block.rows {
                        let (at, record) = ((block.band, block.row0 + row), block.row(row));
                        values(at, 0..layout.cols(), layout.values_mut(record));
                        kernels.quantise(layout, format, record);
                    }
                }
            });
        }
        let blocks = layout.blocks();
        let partition = cut(&mut self.bytes[blocks.start..], blocks.len(), BLOCK_BYTES).in_parts(team.size()).guided();
        team.run_dynamic(&|worker| {
            let mut some = [0.0; SUPER];
            while let Some(mut block) = partition.next_for(worker) {
                for row in 0..block.rows {
                    let (at, first) = ((block.band, block.row0 + row), block.col0 / BLOCK_BYTES * SUPER);
                    for (i, out) in block.row(row).chunks_exact_mut(BLOCK_BYTES).enumerate() {
                        let from = first + i * SUPER;
                        let cols = from..(from + SUPER).min(layout.cols());
                        let some = &mut some[..cols.len()];
                        values(at, cols, some);
                        kernels.quantise_block(format, some, out);
                    }
                }
            }
        });
    }
}
