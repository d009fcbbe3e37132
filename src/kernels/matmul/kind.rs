//! Which kernel multiplies unpacked weights: what the types have in common that share one.

use crate::kernels::formats::unpack::UnpackedFormat;
use crate::kernels::simd::Simd;
use crate::quant::{GROUP, SUPER};

/// What multiplies a tile: by the columns that share a scale of the weights, by those that share one of the activations
/// (`Super`: 256), by whether there are minima, and where products add up in i16 by how large quants are: most have no more than six
/// bits, `Seven` or eight (`Bytes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductKind {
    Groups32,
    Groups32Mins,
    Groups16,
    Super32,
    Super32Mins,
    Super16,
    Super16Mins,
    Groups32Bytes,
    Super32Seven,
    Super32Bytes,
    Super16Seven,
}

impl ProductKind {
    /// All of them, in the order of the kernels' table.
    pub const ALL: [ProductKind; 11] = [
        ProductKind::Groups32,
        ProductKind::Groups32Mins,
        ProductKind::Groups16,
        ProductKind::Super32,
        ProductKind::Super32Mins,
        ProductKind::Super16,
        ProductKind::Super16Mins,
        ProductKind::Groups32Bytes,
        ProductKind::Super32Seven,
        ProductKind::Super32Bytes,
        ProductKind::Super16Seven,
    ];

    pub(super) const fn of<S: Simd, F: UnpackedFormat>() -> ProductKind {
        let kind = match (F::COLS == SUPER, F::GROUP, F::MINS, F::QUANT_ABS_MAX) {
            (false, GROUP, false, ..=16) => ProductKind::Groups32,
            (false, GROUP, false, _) => ProductKind::Groups32Bytes,
            (false, GROUP, true, ..=31) => ProductKind::Groups32Mins,
            (false, 16, false, ..=16) => ProductKind::Groups16,
            (true, GROUP, false, ..=16) => ProductKind::Super32,
            (true, GROUP, false, ..=64) => ProductKind::Super32Seven,
            (true, GROUP, false, _) => ProductKind::Super32Bytes,
            (true, GROUP, true, ..=31) => ProductKind::Super32Mins,
            (true, 16, false, ..=32) => ProductKind::Super16,
            (true, 16, false, ..=64) => ProductKind::Super16Seven,
            (true, 16, true, ..=31) => ProductKind::Super16Mins,
            _ => panic!("no kernel for such groups"),
        };
        kind.on::<S>()
    }

    /// The kind that is taken for it on this tier: where products add up in i32 lanes all quants are bytes.
    pub const fn on<S: Simd>(self) -> ProductKind {
        match self {
            kind if !S::DOT.is_in_lanes() => kind,
            ProductKind::Groups32Bytes => ProductKind::Groups32,
            ProductKind::Super32Seven | ProductKind::Super32Bytes => ProductKind::Super32,
            ProductKind::Super16Seven => ProductKind::Super16,
            kind => kind,
        }
    }

    /// The units of four columns whose products fit the i16 halves of a sum that begins with `unpacked::pairs_start`: 8 of quants that
    /// reach 16, 4 of those that reach 32, 2 of those that reach 64. None where products add up in i32 lanes at once.
    pub(super) const fn i16_chain_len<S: Simd>(self) -> Option<usize> {
        match self {
            ProductKind::Groups32Bytes | ProductKind::Super32Bytes => None,
            _ if S::DOT.is_in_lanes() => None,
            ProductKind::Groups32 | ProductKind::Super32 => Some(8),
            ProductKind::Groups32Mins
            | ProductKind::Groups16
            | ProductKind::Super32Mins
            | ProductKind::Super16
            | ProductKind::Super16Mins => Some(4),
            ProductKind::Super32Seven | ProductKind::Super16Seven => Some(2),
        }
    }

    /// Where a group is so many portions that each meets the integer scale by itself, and its block the float one.
    pub(super) const fn scales_pairs<S: Simd>(self) -> bool {
        !S::DOT.is_in_lanes() && matches!(self, ProductKind::Super32Seven | ProductKind::Super16Seven)
    }

    /// How many tokens a kernel takes at once that takes `n` where there is one sum of each: two where a group's portions are
    /// added up first.
    pub const fn tokens<S: Simd>(self, n: usize) -> usize {
        match self.i16_chain_len::<S>() {
            Some(portion) if portion < self.group() / 4 && !self.scales_pairs::<S>() => 2,
            _ => n,
        }
    }

    pub(super) const fn mins(self) -> bool {
        matches!(self, ProductKind::Groups32Mins | ProductKind::Super32Mins | ProductKind::Super16Mins)
    }

    pub(super) const fn group(self) -> usize {
        match self {
            ProductKind::Groups16 | ProductKind::Super16 | ProductKind::Super16Mins | ProductKind::Super16Seven => 16,
            _ => GROUP,
        }
    }

    pub(super) const fn is_super(self) -> bool {
        !matches!(
            self,
            ProductKind::Groups32 | ProductKind::Groups32Mins | ProductKind::Groups32Bytes | ProductKind::Groups16
        )
    }
}
