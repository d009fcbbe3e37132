//! The KV cache of all layers.

use super::{Config, Sizes};
use crate::kernels::{KvType, ring_slots};
use crate::model::error::ModelError;
use crate::quant::GROUP;

/// The KV cache: layer after layer, `[n_kv_heads]{K, V}` of as many slots as the layer's tokens see.
pub struct Kv<'a> {
    bytes: &'a mut [u8],
    kv_type: KvType,
    layers: Vec<Place>,
}

/// Where a layer's cache is.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    slots: usize,
}

/// The cache of one layer.
pub(super) struct Cache<B> {
    /// `[n_kv_heads]{K, V}`.
    pub bytes: B,
    /// Positions that K or V of a head have room for.
    pub slots: usize,
    pub kv_type: KvType,
}

impl<'a> Kv<'a> {
    /// Lays the cache out in the first [`kv_bytes`] of `bytes`.
    pub fn new(bytes: &'a mut [u8], config: &Config, sizes: &Sizes) -> Kv<'a> {
        let mut start = 0;
        let layers = (0..config.n_layers).map(|layer| {
            let slots = slots(config, sizes, layer);
            let place = Place { start, slots };
            start += 2 * config.n_kv_heads * slots * sizes.kv_type.row_bytes(config.head_dim);
            place
        });
        Kv { layers: layers.collect(), bytes, kv_type: sizes.kv_type }
    }

    pub(super) fn layer(&self, layer: usize, config: &Config) -> Cache<&[u8]> {
        let Place { start, slots } = self.layers[layer];
        let n_bytes = 2 * config.n_kv_heads * slots * self.kv_type.row_bytes(config.head_dim);
        Cache { bytes: &self.bytes[start..][..n_bytes], slots, kv_type: self.kv_type }
    }

    pub(super) fn layer_mut(&mut self, layer: usize, config: &Config) -> Cache<&mut [u8]> {
        let Place { start, slots } = self.layers[layer];
        let n_bytes = 2 * config.n_kv_heads * slots * self.kv_type.row_bytes(config.head_dim);
        Cache { bytes: &mut self.bytes[start..][..n_bytes], slots, kv_type: self.kv_type }
    }

    /// Whether tokens that continue after the first `position`, of `written` that once were there, find all they see.
    pub fn holds(&self, position: usize, written: usize, config: &Config) -> bool {
        self.layers.iter().enumerate().all(|(layer, place)| {
            let seen_from = (position + 1).saturating_sub(config.window_of(layer));
            position == 0 || seen_from + place.slots >= written
        })
    }
}

/// Positions that a layer keeps.
fn slots(config: &Config, sizes: &Sizes, layer: usize) -> usize {
    ring_slots(sizes.ctx, config.window_of(layer), sizes.n_batch)
}

/// Bytes of the KV cache; `None` if the product overflows.
pub fn kv_bytes(config: &Config, sizes: &Sizes) -> Option<u64> {
    let slot = (2 * config.n_kv_heads * sizes.kv_type.row_bytes(config.head_dim)) as u64;
    (0..config.n_layers)
        .try_fold(0u64, |sum, layer| sum.checked_add((slots(config, sizes, layer) as u64).checked_mul(slot)?))
}

/// Whether the cache type suits the model.
///
/// # Errors
/// q8_0 needs heads of whole groups of 32.
pub fn check_kv_type(config: &Config, kv_type: KvType) -> Result<(), ModelError> {
    match kv_type {
        KvType::Q8_0 if !config.head_dim.is_multiple_of(GROUP) => Err(ModelError::Range {
            what: "the size of a head",
            found: config.head_dim as u64,
            need: "a multiple of 32 for --kv-type q8_0; use --kv-type f16",
        }),
        _ => Ok(()),
    }
}
