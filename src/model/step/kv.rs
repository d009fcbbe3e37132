//! The KV cache of all layers, in pages.
//!
//! A page is [`PAGE_TOKENS`] positions of one sequence in all layers of one [`Reach`]. Which sequence has which page is not
//! known here: a [`Span`] brings its tables along.

use super::{Config, Sizes, Span};
use crate::kernels::{KEY_TILE, KvType};
use crate::memory::{Growing, NotPopulated};
use crate::model::error::ModelError;
use crate::quant::GROUP;

/// Positions of a page.
pub const PAGE_TOKENS: usize = KEY_TILE;

/// Which positions a layer's tokens see. The layers of each kind have pages of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All before them.
    All = 0,
    /// Those of a sliding window.
    Window = 1,
}

impl Reach {
    /// Both.
    pub const BOTH: [Reach; 2] = [Reach::All, Reach::Window];

    /// Of a layer.
    pub fn of(config: &Config, layer: usize) -> Reach {
        if config.window_of(layer) == usize::MAX { Reach::All } else { Reach::Window }
    }
}

/// The KV cache: layer after layer, `[n_pages][n_kv_heads]{K, V}`.
pub struct Kv<'a> {
    bytes: Growing<'a>,
    kv_type: KvType,
    page_bytes: usize,
    layers: Vec<Place>,
    n_pages: [usize; 2],
}

/// Where a layer's pages are.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    reach: Reach,
}

/// The pages of one layer.
pub(super) struct Cache<B> {
    /// `[n_pages][n_kv_heads]{K, V}`.
    pub bytes: B,
    pub page_bytes: usize,
    pub kv_type: KvType,
    pub reach: Reach,
}

impl<'a> Kv<'a> {
    /// Lays the cache out in the first [`kv_bytes`] of `bytes`.
    pub fn new(bytes: impl Into<Growing<'a>>, config: &Config, sizes: &Sizes) -> Kv<'a> {
        let page_bytes = page_bytes(config, sizes.kv_type);
        let n_pages = page_counts(config, sizes);
        let mut start = 0;
        let layers = (0..config.n_layers).map(|layer| {
            let place = Place { start, reach: Reach::of(config, layer) };
            start += n_pages[place.reach as usize] * page_bytes;
            place
        });
        Kv { layers: layers.collect(), bytes: bytes.into(), kv_type: sizes.kv_type, page_bytes, n_pages }
    }

    /// Makes sure that the memory of the pages that `span` writes is there, before a pass does so.
    ///
    /// # Errors
    /// The memory cannot be had after all (see [`Growing`]).
    pub fn bring(&mut self, span: &Span<'_>) -> Result<(), NotPopulated> {
        let pages = span.position / PAGE_TOKENS..(span.position + span.n).div_ceil(PAGE_TOKENS);
        for &Place { start, reach } in &self.layers {
            for &page in &span.pages[reach as usize][pages.clone()] {
                let first = start + page as usize * self.page_bytes;
                self.bytes.bring(first..first + self.page_bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn layer(&self, layer: usize) -> Cache<&[u8]> {
        let Place { start, reach } = self.layers[layer];
        let Kv { page_bytes, kv_type, n_pages, .. } = *self;
        Cache { bytes: &self.bytes[start..][..n_pages[reach as usize] * page_bytes], page_bytes, kv_type, reach }
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> Cache<&mut [u8]> {
        let Place { start, reach } = self.layers[layer];
        let Kv { page_bytes, kv_type, n_pages, .. } = *self;
        Cache { bytes: &mut self.bytes[start..][..n_pages[reach as usize] * page_bytes], page_bytes, kv_type, reach }
    }

    /// Bytes of a page of one layer.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// A page, layer by layer.
    pub fn page(&self, reach: Reach, page: u32) -> impl Iterator<Item = &[u8]> {
        let layers = self.layers.iter().filter(move |place| place.reach == reach);
        layers.map(move |place| &self.bytes[place.start + page as usize * self.page_bytes..][..self.page_bytes])
    }

    /// A page, layer by layer, for writing, its memory there; `None` for each layer if there is no such page.
    ///
    /// # Errors
    /// The first of `each`, or the memory cannot be had (see [`Growing`]).
    pub fn each_layer_mut<E: From<NotPopulated>>(
        &mut self,
        reach: Reach,
        page: u32,
        mut each: impl FnMut(Option<&mut [u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_there = (page as usize) < self.n_pages[reach as usize];
        for place in self.layers.iter().filter(|place| place.reach == reach) {
            let start = place.start + page as usize * self.page_bytes;
            if is_there {
                self.bytes.bring(start..start + self.page_bytes)?;
            }
            each(is_there.then(|| &mut self.bytes[start..start + self.page_bytes]))?;
        }
        Ok(())
    }

    /// Pages there are for each [`Reach`].
    pub fn n_pages(&self) -> [usize; 2] {
        self.n_pages
    }
}

/// Pages of layers with a window that one sequence has at most: those of the window of a pass's first token and of the
/// pass, wherever in a page they begin.
pub fn window_pages(config: &Config, sizes: &Sizes) -> usize {
    let Some(window) = &config.window else { return 0 };
    let positions = (window.len - 1).saturating_add(sizes.n_batch);
    let straddled = positions.saturating_add(PAGE_TOKENS - 2) / PAGE_TOKENS + 1;
    straddled.min(sizes.ctx.div_ceil(PAGE_TOKENS))
}

/// Pages of each [`Reach`]: those of all positions; and of windows what every sequence needs, and once more, so that
/// prefixes stay while all are busy.
pub fn page_counts(config: &Config, sizes: &Sizes) -> [usize; 2] {
    let sequences = if sizes.sequences > 1 { sizes.sequences + 1 } else { 1 };
    [sizes.kv_tokens.div_ceil(PAGE_TOKENS), sequences * window_pages(config, sizes)]
}

/// Bytes of one page of one layer.
fn page_bytes(config: &Config, kv_type: KvType) -> usize {
    2 * config.n_kv_heads * PAGE_TOKENS * kv_type.row_bytes(config.head_dim)
}

/// Bytes of the KV cache; `None` if the product overflows.
pub fn kv_bytes(config: &Config, sizes: &Sizes) -> Option<u64> {
    let (page_bytes, n_pages) = (page_bytes(config, sizes.kv_type) as u64, page_counts(config, sizes));
    (0..config.n_layers).try_fold(0u64, |sum, layer| {
        let n_pages = n_pages[Reach::of(config, layer) as usize] as u64;
        sum.checked_add(n_pages.checked_mul(page_bytes)?)
    })
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
