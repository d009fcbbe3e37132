//! What sequences leave in memory, layer by layer: pages of keys and values, or a state of fixed size.
//!
//! A *page* is [`PAGE_TOKENS`] positions of one sequence in all layers of one *pool*. The first pool is that of layers
//! that see everything; layers with a sliding window have a pool for each length of it. A *state* is what the recurrent
//! layers of a model keep of one sequence, or of a prefix of it: the copy that a pass leaves when it comes to the end of
//! a page is a *checkpoint*, from which a sequence can go on. Which sequence has which page and state is not known here:
//! a [`SequenceSlice`] brings its tables along.

use std::ops::Range;

use super::config::{AttentionConfig, Config, LatentConfig, LayerConfig, MixerConfig};
use super::error::{Fault, ModelError, range};
pub use super::sequence::{NONE, PAGE_TOKENS};
use super::sequence::{SequenceSlice, Sizes};
use crate::bytes;
pub use crate::kernels::Window;
use crate::kernels::{Kernels, KvType};
use crate::memory::{Growing, NotPopulated};
use crate::quant::{GROUP, PANEL_ROWS};

/// Most pools: one of layers that see everything, and as many lengths of windows as any known model has, twice over.
pub const POOLS_MAX: usize = 5;

/// The pool of layers that see everything, and of what is known of every page of a sequence.
pub const FULL: usize = 0;

/// States start on a cache line.
const STATE_ALIGN: usize = 64;

/// Fewest checkpoints for each sequence, and for one more, where nobody says how many: a sequence goes on after its system
/// prompt, its last prompt or its last answer, and one is left for what other sequences have in common.
const CHECKPOINTS_LEAST: usize = 4;

/// How a layer keeps keys and values: a page is `[n_kv_heads]{K, V}`. Latent attention has one row a position for all
/// heads, which is key and value: a page is `[64][key_dim]`, without values of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value row; 0 if values are part of the keys.
    pub value_dim: usize,
    /// How they are kept.
    pub kv_type: KvType,
}

impl KvLayout {
    fn of(attention: &AttentionConfig, kv_type: KvType) -> KvLayout {
        let AttentionConfig { n_kv_heads, key_dim, value_dim, .. } = *attention;
        KvLayout { n_kv_heads, key_dim, value_dim, kv_type }
    }

    fn of_latent(latent: &LatentConfig, kv_type: KvType) -> KvLayout {
        KvLayout { n_kv_heads: 1, key_dim: latent.row_dim(), value_dim: 0, kv_type }
    }

    /// Bytes of the keys of one head of a page.
    pub fn key_bytes(&self) -> usize {
        PAGE_TOKENS * self.kv_type.row_bytes(self.key_dim)
    }

    /// Bytes of keys and values of one head of a page.
    pub fn head_bytes(&self) -> usize {
        self.key_bytes() + PAGE_TOKENS * self.kv_type.row_bytes(self.value_dim)
    }

    /// Bytes of a page of one layer.
    pub fn page_bytes(&self) -> usize {
        self.n_kv_heads * self.head_bytes()
    }

    /// Writes a key to position `at` of a page, whose keys of one head are `bytes`.
    pub(super) fn store_key(&self, kernels: &Kernels, key: &[f32], bytes: &mut [u8], at: usize) {
        let panel_bytes = self.kv_type.panel_bytes(self.key_dim);
        let panel = &mut bytes[at / PANEL_ROWS * panel_bytes..][..panel_bytes];
        kernels.store_key(self.kv_type, key, panel, at % PANEL_ROWS);
    }

    /// Writes a row of latent attention to position `at` of a page.
    pub(super) fn store_row(&self, kernels: &Kernels, row: &[f32], page: &mut [u8], at: usize) {
        let row_bytes = self.kv_type.row_bytes(self.key_dim);
        kernels.store_value(self.kv_type, row, &mut page[at * row_bytes..][..row_bytes]);
    }

    /// Writes a value row to position `at` of a page, whose value rows of one head are `bytes`.
    pub(super) fn store_value(&self, kernels: &Kernels, value: &[f32], bytes: &mut [u8], at: usize) {
        let row_bytes = self.kv_type.row_bytes(self.value_dim);
        kernels.store_value(self.kv_type, value, &mut bytes[at * row_bytes..][..row_bytes]);
    }
}

/// What one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCache {
    /// Keys and values, in the pages of a pool.
    pub paged: Option<Paged>,
    /// The earlier layer whose pages it reads in place of its own.
    pub shared_with: Option<usize>,
    /// A state for each sequence and checkpoint.
    pub state: Option<State>,
}

/// The pages of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paged {
    /// Index of the pool.
    pub pool: usize,
    /// How a page is laid out.
    pub layout: KvLayout,
}

/// Where in a state a layer has its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// First byte within a state.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

/// The pages of some layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Which positions tokens of these layers see; `None` for all.
    pub window: Option<Window>,
    /// Pages.
    pub n_pages: usize,
}

/// What all layers keep, for any number of sequences: pure arithmetic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Layer by layer.
    pub layers: Vec<LayerCache>,
    /// The pools; the first is [`FULL`].
    pub pools: heapless::Vec<PoolSpec, POOLS_MAX>,
    /// Bytes of a state, of all layers; 0 where no layer has one.
    pub state_bytes: usize,
    /// States of running sequences; that of a sequence has its slot's number.
    pub n_live_states: usize,
    /// Further states, of prefixes.
    pub n_checkpoints: usize,
}

impl CachePlan {
    /// What a model of these numbers keeps.
    pub fn new(config: &Config, sizes: &Sizes) -> CachePlan {
        let mut pools: heapless::Vec<PoolSpec, POOLS_MAX> = heapless::Vec::new();
        let full = PoolSpec { window: None, n_pages: sizes.kv_tokens.div_ceil(PAGE_TOKENS) };
        pools.push(full).expect("there is room for one");
        let mut state_bytes = 0;
        let mut state = |values: usize| {
            let (offset, bytes) = (state_bytes, values * size_of::<f32>());
            state_bytes = (offset + bytes).next_multiple_of(STATE_ALIGN);
            State { offset, bytes }
        };
        let layers = config.layers.iter().map(|layer| LayerCache {
            paged: match &layer.mixer {
                MixerConfig::Latent(latent) => {
                    Some(Paged { pool: FULL, layout: KvLayout::of_latent(latent, sizes.kv_type) })
                }
                _ => layer.attention().filter(|attention| attention.kv_of.is_none()).map(|attention| Paged {
                    pool: pool_of(&mut pools, attention.window, sizes),
                    layout: KvLayout::of(attention, sizes.kv_type),
                }),
            },
            shared_with: layer.attention().and_then(|attention| attention.kv_of),
            state: Some(layer.mixer.state_len(config.n_embd)).filter(|&len| len > 0).map(&mut state),
        });
        let layers = layers.collect();
        let mut plan = CachePlan { layers, pools, state_bytes, n_live_states: sizes.sequences, n_checkpoints: 0 };
        plan.n_checkpoints = plan.checkpoints(sizes.checkpoints);
        plan
    }

    /// As many checkpoints as are asked for; else one for every page where a state takes no more than a page does, and where
    /// it takes more [`CHECKPOINTS_LEAST`] for each sequence and as many again: memory that is better spent on context. More
    /// than pages would never be used.
    fn checkpoints(&self, asked: Option<usize>) -> usize {
        if self.state_bytes == 0 {
            return 0;
        }
        let n_pages = self.pools[FULL].n_pages;
        let by_itself = || match self.state_bytes <= self.page_bytes(FULL) {
            true => n_pages,
            false => CHECKPOINTS_LEAST * (self.n_live_states + 1),
        };
        n_pages.min(asked.unwrap_or_else(by_itself))
    }

    /// Whether there are so many checkpoints that every page can have one.
    pub fn has_checkpoint_for_every_page(&self) -> bool {
        self.n_checkpoints == self.pools[FULL].n_pages
    }

    /// The layers of a pool.
    fn layers_of(&self, of: usize) -> impl Iterator<Item = &KvLayout> {
        self.layers
            .iter()
            .filter_map(|layer| layer.paged.as_ref())
            .filter(move |paged| paged.pool == of)
            .map(|paged| &paged.layout)
    }

    /// Bytes of a page of a pool, of all its layers.
    pub fn page_bytes(&self, pool: usize) -> usize {
        self.layers_of(pool).map(KvLayout::page_bytes).sum()
    }

    /// States there are.
    pub fn n_states(&self) -> usize {
        if self.state_bytes == 0 { 0 } else { self.n_live_states + self.n_checkpoints }
    }

    /// Whether sequences have a state.
    pub fn has_states(&self) -> bool {
        self.state_bytes > 0
    }

    /// Bytes of all pages; `None` if the product overflows.
    pub fn pages_bytes(&self) -> Option<u64> {
        (0..self.pools.len()).try_fold(0u64, |sum, pool| {
            let n_pages = self.pools[pool].n_pages as u64;
            sum.checked_add(n_pages.checked_mul(self.page_bytes(pool) as u64)?)
        })
    }

    /// Bytes of all states; `None` if the product overflows.
    pub fn states_bytes(&self) -> Option<u64> {
        (self.n_states() as u64).checked_mul(self.state_bytes as u64)
    }

    /// The numbers that make one cache's pages and states unreadable for another.
    pub fn fingerprint(&self) -> impl Iterator<Item = u32> {
        let paged = |Paged { pool, layout }: Paged| {
            let KvLayout { n_kv_heads, key_dim, value_dim, kv_type } = layout;
            let row_bytes = kv_type.row_bytes(GROUP);
            [1 + pool, n_kv_heads, key_dim, value_dim, row_bytes].map(|n| n as u32)
        };
        let state = |State { offset, bytes }: State| [NONE, offset as u32, bytes as u32, 0, 0];
        let shared = |layer: usize| [NONE, layer as u32, 0, 0, 1];
        let kept = move |layer: &LayerCache| layer.paged.map(paged).or(layer.shared_with.map(shared));
        let layers = self.layers.iter().flat_map(move |layer| match (kept(layer), layer.state.map(state)) {
            (None, None) => [Some([0; 5]), None],
            parts => [parts.0, parts.1],
        });
        let layers = layers.flatten().flatten();
        let windows = self.pools.iter().map(|pool| match pool.window {
            None => NONE,
            Some(Window::Sliding(len)) => len as u32,
            Some(Window::Chunk(len)) => 1 << 31 | len as u32,
            Some(Window::Around(_)) => unreachable!("no pool is of layers that see what comes"),
        });
        [PAGE_TOKENS as u32, self.layers.len() as u32, self.pools.len() as u32].into_iter().chain(windows).chain(layers)
    }
}

/// The pool of layers with this window, made if there is none yet.
fn pool_of(pools: &mut heapless::Vec<PoolSpec, POOLS_MAX>, window: Option<Window>, sizes: &Sizes) -> usize {
    // A text that is read both ways stays as a whole until it has been read.
    let Some(seen) = window.filter(|window| !matches!(window, Window::Around(_))) else { return FULL };
    if let Some(pool) = pools.iter().position(|pool| pool.window == window) {
        return pool;
    }
    // What every sequence needs, and once more, so that prefixes stay while all are busy.
    let sequences = if sizes.sequences > 1 { sizes.sequences + 1 } else { 1 };
    let pool = PoolSpec { window, n_pages: sequences * window_pages(seen.span(), sizes) };
    pools.push(pool).expect("check_windows has counted the lengths of windows");
    pools.len() - 1
}

/// Pages of layers with a window that one sequence has at most: those of the window of a pass's first token and of the
/// pass, wherever in a page they begin.
fn window_pages(window_len: usize, sizes: &Sizes) -> usize {
    let positions = (window_len - 1).saturating_add(sizes.n_batch);
    let straddled = positions.saturating_add(PAGE_TOKENS - 2) / PAGE_TOKENS + 1;
    straddled.min(sizes.ctx.div_ceil(PAGE_TOKENS))
}

/// Whether there are pools enough for the windows of all layers.
///
/// # Errors
/// More lengths of windows than [`POOLS_MAX`] allows.
pub(super) fn check_windows(config: &Config) -> Result<(), ModelError> {
    let mut windows: Vec<Window> = Vec::new();
    let windows_of_layers = config.attentions().filter_map(|attention| attention.window);
    for window in windows_of_layers.filter(|window| !matches!(window, Window::Around(_))) {
        if !windows.contains(&window) {
            windows.push(window);
        }
    }
    match windows.len() {
        n if n < POOLS_MAX => Ok(()),
        n => range("the number of lengths of windows", n, format!("at most {}", POOLS_MAX - 1)),
    }
}

/// Whether the cache type suits the model.
///
/// # Errors
/// q8_0 needs heads of whole groups of 32.
pub fn check_kv_type(config: &Config, kv_type: KvType) -> Result<(), ModelError> {
    let dims = config.layers.iter().filter_map(LayerConfig::attention).flat_map(|a| [a.key_dim, a.value_dim]);
    match dims
        .chain(config.latents().map(LatentConfig::row_dim))
        .find(|dim| !dim.is_multiple_of(GROUP))
        .filter(|_| kv_type == KvType::Q8_0)
    {
        Some(dim) => Err(Fault::HeadOfQ8 { dim }.into()),
        None => Ok(()),
    }
}

/// The pages of one layer.
pub(super) struct LayerPages<B> {
    /// `[n_pages][n_kv_heads]{K, V}`.
    pub bytes: B,
    pub layout: KvLayout,
    pub pool: usize,
}

/// The cache: the pages of layer after layer, `[n_pages][n_kv_heads]{K, V}`, and the states.
pub struct Cache<'a> {
    pages: Growing<'a>,
    states: Growing<'a>,
    plan: CachePlan,
    /// Where each layer's pages start.
    starts: Vec<usize>,
}

impl<'a> Cache<'a> {
    /// Lays the cache out in the first [`CachePlan::pages_bytes`] of `pages` and [`CachePlan::states_bytes`] of `states`.
    pub fn new(pages: Growing<'a>, states: Growing<'a>, plan: CachePlan) -> Cache<'a> {
        let mut end = 0;
        let starts = plan.layers.iter().map(|layer| {
            let start = end;
            if let Some(Paged { pool, layout }) = layer.paged {
                end += plan.pools[pool].n_pages * layout.page_bytes();
            }
            start
        });
        let starts = starts.collect();
        Cache { pages, states, plan, starts }
    }

    /// What it was laid out for.
    pub fn plan(&self) -> &CachePlan {
        &self.plan
    }

    /// Makes sure that the memory of the pages and states that `slice` writes is there, before a pass does so.
    ///
    /// # Errors
    /// The memory cannot be had after all (see [`Growing`]).
    pub fn populate(&mut self, slice: &SequenceSlice<'_>) -> Result<(), NotPopulated> {
        for layer in 0..self.plan.layers.len() {
            let Some(Paged { pool, layout }) = self.plan.layers[layer].paged else { continue };
            for &page in &slice.pages[pool][slice.page_range()] {
                let first = self.starts[layer] + page as usize * layout.page_bytes();
                self.pages.bring(first..first + layout.page_bytes())?;
            }
        }
        if self.plan.has_states() {
            let checkpoints = slice.checkpoints.iter().skip(slice.position / PAGE_TOKENS).take(slice.ended_pages());
            for &state in checkpoints.chain([&slice.state]).filter(|state| **state != NONE) {
                let range = self.state_range(state);
                self.states.bring(range)?;
            }
        }
        Ok(())
    }

    pub(super) fn pages(&self, layer: usize) -> LayerPages<&[u8]> {
        let (range, layout, pool) = self.range(layer);
        LayerPages { bytes: &self.pages[range], layout, pool }
    }

    pub(super) fn pages_mut(&mut self, layer: usize) -> LayerPages<&mut [u8]> {
        let (range, layout, pool) = self.range(layer);
        LayerPages { bytes: &mut self.pages[range], layout, pool }
    }

    fn range(&self, layer: usize) -> (Range<usize>, KvLayout, usize) {
        let layer = self.plan.layers[layer].shared_with.unwrap_or(layer);
        let Some(Paged { pool, layout }) = self.plan.layers[layer].paged else {
            unreachable!("a layer with attention keeps keys and values, or another does for it");
        };
        let start = self.starts[layer];
        (start..start + self.plan.pools[pool].n_pages * layout.page_bytes(), layout, pool)
    }

    fn state_range(&self, state: u32) -> Range<usize> {
        let start = state as usize * self.plan.state_bytes;
        start..start + self.plan.state_bytes
    }

    fn layer_state_range(&self, layer: usize, state: u32) -> Range<usize> {
        let Some(State { offset, bytes }) = self.plan.layers[layer].state else {
            unreachable!("a recurrent layer has a state");
        };
        let start = self.state_range(state).start + offset;
        start..start + bytes
    }

    /// What a recurrent layer has in a state.
    pub(super) fn layer_state(&self, layer: usize, state: u32) -> &[f32] {
        bytes::cast(&self.states[self.layer_state_range(layer, state)])
    }

    /// The same, for writing.
    pub(super) fn layer_state_mut(&mut self, layer: usize, state: u32) -> &mut [f32] {
        let range = self.layer_state_range(layer, state);
        bytes::cast_mut(&mut self.states[range])
    }

    /// What a recurrent layer has in all states, and the values from one to the next: the state with number `i` begins at
    /// `i` times as many.
    pub(super) fn layer_states_mut(&mut self, layer: usize) -> (&mut [f32], usize) {
        let start = self.layer_state_range(layer, 0).start;
        let stride = self.plan.state_bytes / size_of::<f32>();
        (bytes::cast_mut(&mut self.states[start..]), stride)
    }

    /// Copies row `from` of one state of a recurrent layer to row `to` of another, or of the same, in rows of `len` values.
    pub(super) fn copy_state_row(&mut self, layer: usize, from: (u32, usize), to: (u32, usize), len: usize) {
        let start = |(state, row)| self.layer_state_range(layer, state).start + row * len * size_of::<f32>();
        let (from, to) = (start(from), start(to));
        self.states.copy_within(from..from + len * size_of::<f32>(), to);
    }

    /// A whole state, whose memory is there.
    pub fn state(&self, state: u32) -> &[u8] {
        &self.states[self.state_range(state)]
    }

    /// A whole state, for writing.
    ///
    /// # Errors
    /// The memory cannot be had (see [`Growing`]).
    pub fn state_mut(&mut self, state: u32) -> Result<&mut [u8], NotPopulated> {
        let range = self.state_range(state);
        self.states.bring(range.clone())?;
        Ok(&mut self.states[range])
    }

    /// A page of a pool, layer by layer.
    pub fn page(&self, pool: usize, page: u32) -> impl Iterator<Item = &[u8]> {
        self.starts.iter().zip(&self.plan.layers).filter_map(move |(start, layer)| match layer.paged {
            Some(Paged { pool: of, layout }) if of == pool => {
                let first = start + page as usize * layout.page_bytes();
                Some(&self.pages[first..first + layout.page_bytes()])
            }
            _ => None,
        })
    }

    /// The same for writing, its memory there, handed to `each`.
    ///
    /// # Errors
    /// The first of `each`, or the memory cannot be had (see [`Growing`]).
    pub fn each_part_mut<E: From<NotPopulated>>(
        &mut self,
        pool: usize,
        page: u32,
        mut each: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (start, layer) in self.starts.iter().zip(&self.plan.layers) {
            let Some(Paged { pool: of, layout }) = layer.paged else { continue };
            if of == pool {
                let first = start + page as usize * layout.page_bytes();
                self.pages.bring(first..first + layout.page_bytes())?;
                each(&mut self.pages[first..first + layout.page_bytes()])?;
            }
        }
        Ok(())
    }
}
