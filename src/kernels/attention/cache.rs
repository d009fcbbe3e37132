//! What K and V look like in memory: types, and the way in and out of them.

use super::queries::KEY_TILE;
use crate::bytes;
use crate::kernels::simd::Simd;
use crate::quant::{GROUP, PANEL_ROWS};

/// Bytes of 32 values and their scale in a q8_0 row.
const Q8_BLOCK: usize = 2 + GROUP;

/// How K and V are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// IEEE half.
    #[default]
    F16,
    /// int8 with an f16 scale per 32 values.
    Q8_0,
    /// As they were computed: twice the memory, for comparisons.
    F32,
}

impl KvType {
    /// All types.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::F32];

    /// Bytes of one position of one head, K or V.
    pub const fn row_bytes(self, dim: usize) -> usize {
        match self {
            KvType::F16 => dim * 2,
            KvType::Q8_0 => dim / GROUP * Q8_BLOCK,
            KvType::F32 => dim * 4,
        }
    }

    /// Bytes of 16 consecutive positions of one head, K or V: the unit in which a cache can be shared out.
    pub const fn panel_bytes(self, key_dim: usize) -> usize {
        PANEL_ROWS * self.row_bytes(key_dim)
    }

    /// The name, as in `--kv-type`.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::F32 => "f32",
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        KvType::ALL.into_iter().find(|t| t.name() == name).ok_or("expected f16, q8_0 or f32")
    }
}

/// One head's cache of one sequence, in pages of [`KEY_TILE`] positions that lie anywhere among a layer's pages.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    /// How it is kept.
    pub kv_type: KvType,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value row.
    pub value_dim: usize,
    /// The layer's pages.
    pub bytes: &'a [u8],
    /// Bytes of a page, of all heads.
    pub page_bytes: usize,
    /// Where in a page this head's K starts; its V follows.
    pub offset: usize,
    /// Which page holds positions `i * KEY_TILE` and on. Those of positions that no query sees are not looked at.
    pub pages: &'a [u32],
}

/// One head's K and V of one page.
#[derive(Clone, Copy)]
pub(super) struct KvTile<'a> {
    pub kv_type: KvType,
    pub key_dim: usize,
    pub value_dim: usize,
    /// In panels of 16 positions.
    keys: &'a [u8],
    /// Row by row.
    values: &'a [u8],
}

impl<'a> KvHead<'a> {
    /// The page of the positions from `first` on, a multiple of [`KEY_TILE`].
    #[inline(always)]
    pub(super) fn tile(&self, first: usize) -> KvTile<'a> {
        let KvHead { kv_type, key_dim, value_dim, .. } = *self;
        let [key_bytes, value_bytes] = [key_dim, value_dim].map(|dim| KEY_TILE * kv_type.row_bytes(dim));
        let start = self.pages[first / KEY_TILE] as usize * self.page_bytes + self.offset;
        let (keys, values) = self.bytes[start..][..key_bytes + value_bytes].split_at(key_bytes);
        KvTile { kv_type, key_dim, value_dim, keys, values }
    }
}

impl<'a> KvTile<'a> {
    /// The panel that holds position `at` of the page.
    #[inline(always)]
    pub(super) fn panel(&self, at: usize) -> &'a [u8] {
        let bytes = self.kv_type.panel_bytes(self.key_dim);
        &self.keys[at / PANEL_ROWS * bytes..][..bytes]
    }

    /// The row of V of position `at` of the page.
    #[inline(always)]
    pub(super) fn row(&self, at: usize) -> &'a [u8] {
        let bytes = self.kv_type.row_bytes(self.value_dim);
        &self.values[at * bytes..][..bytes]
    }

    /// The rows of V of `n` positions of the page.
    #[inline(always)]
    pub(super) fn rows(&self, first: usize, n: usize) -> std::slice::ChunksExact<'a, u8> {
        let bytes = self.kv_type.row_bytes(self.value_dim);
        self.values[first * bytes..][..n * bytes].chunks_exact(bytes)
    }
}

/// Cache lines that will be needed next: memory has the time of the work in between to bring them. (Asked for into L2:
/// the line buffers of L1 are too few for the latency of memory.)
#[derive(Clone, Copy)]
pub(super) struct Prefetch(Option<*const u8>);

impl Prefetch {
    pub(super) const NOTHING: Prefetch = Prefetch(None);

    /// K of a page.
    #[inline(always)]
    pub(super) fn keys(tile: &KvTile<'_>) -> Prefetch {
        Prefetch(Some(tile.keys.as_ptr()))
    }

    /// V of a page.
    #[inline(always)]
    pub(super) fn values(tile: &KvTile<'_>) -> Prefetch {
        Prefetch(Some(tile.values.as_ptr()))
    }

    /// What comes `bytes` later.
    #[inline(always)]
    pub(super) fn skip(self, bytes: usize) -> Prefetch {
        Prefetch(self.0.map(|line| line.wrapping_add(bytes)))
    }

    /// Asks for the lines of the next `bytes`.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(self, s: S, bytes: usize) {
        if let Some(line) = self.0 {
            for at in (0..bytes).step_by(64) {
                s.prefetch::<false>(line.wrapping_add(at));
            }
        }
    }
}

/// Rounds to f16, to nearest even, and hands every value's two bytes to `put`.
#[inline(always)]
fn halves<S: Simd>(s: S, x: &[f32], mut put: impl FnMut(usize, [u8; 2])) {
    let mut rounded = [0u8; 2 * PANEL_ROWS];
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        s.store_f16(s.load(&x[at..]), &mut rounded);
        rounded.as_chunks::<2>().0[..S::LANES].iter().enumerate().for_each(|(i, x)| put(at + i, *x));
    }
    for (i, x) in x.iter().enumerate().skip(whole) {
        put(i, half::f16::from_f32(*x).to_le_bytes());
    }
}

/// Rounds to multiples of `max / 127` per 32 values: the f16 scale's bytes and the quants of each block to `put`.
#[inline(always)]
fn blocks<S: Simd>(s: S, x: &[f32], mut put: impl FnMut(usize, [u8; 2], &[u8; GROUP])) {
    let mut scale_bytes = [0u8; 2 * PANEL_ROWS];
    let mut quants = [0u8; GROUP];
    for (b, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let mut largest = s.splat(0.0);
        for x in x.chunks_exact(S::LANES) {
            largest = s.max(largest, s.abs(s.load(x)));
        }
        let largest = s.largest(largest);
        let inverse = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        for (q, x) in quants.chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES)) {
            s.store_i8(s.to_i(s.mul(s.load(x), inverse)), q);
        }
        s.store_f16(s.splat(largest / 127.0), &mut scale_bytes);
        put(b, [scale_bytes[0], scale_bytes[1]], &quants);
    }
}

/// Writes one key into place `lane` of a panel of K. The f16 rounding is to nearest even; q8_0 rounds to a multiple of
/// `max / 127` per 32 values.
#[inline(always)]
pub fn store_key<S: Simd>(s: S, kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
    assert!(lane < PANEL_ROWS && panel.len() == kv_type.panel_bytes(key.len()));
    match kv_type {
        KvType::F16 => {
            let steps = panel.as_chunks_mut::<2>().0.as_chunks_mut::<PANEL_ROWS>().0;
            halves(s, key, |i, x| steps[i][lane] = x);
        }
        KvType::Q8_0 => {
            let panel = panel.as_chunks_mut::<{ PANEL_ROWS * Q8_BLOCK }>().0;
            blocks(s, key, |b, scale, quants| {
                let (scales, steps) = panel[b].split_at_mut(2 * PANEL_ROWS);
                scales[2 * lane..][..2].copy_from_slice(&scale);
                steps.as_chunks_mut::<PANEL_ROWS>().0.iter_mut().zip(quants).for_each(|(step, q)| step[lane] = *q);
            });
        }
        KvType::F32 => {
            let steps = panel.as_chunks_mut::<4>().0.as_chunks_mut::<PANEL_ROWS>().0;
            steps.iter_mut().zip(key).for_each(|(step, x)| step[lane] = x.to_le_bytes());
        }
    }
}

/// Writes one row of V; rounding as [`store_key`].
#[inline(always)]
pub fn store_value<S: Simd>(s: S, kv_type: KvType, value: &[f32], row: &mut [u8]) {
    assert!(row.len() == kv_type.row_bytes(value.len()));
    match kv_type {
        KvType::F16 => {
            let row = row.as_chunks_mut::<2>().0;
            halves(s, value, |i, x| row[i] = x);
        }
        KvType::Q8_0 => {
            let row = row.as_chunks_mut::<Q8_BLOCK>().0;
            blocks(s, value, |b, scale, quants| {
                row[b][..2].copy_from_slice(&scale);
                row[b][2..].copy_from_slice(quants);
            });
        }
        KvType::F32 => row.copy_from_slice(bytes::bytes_of(value)),
    }
}

/// `V` vectors of a row of V from value `first` on, a multiple of `V * LANES`.
#[inline(always)]
pub(super) fn load_value<S: Simd, const V: usize>(s: S, kv_type: KvType, row: &[u8], first: usize) -> [S::F; V] {
    let mut values = [s.splat(0.0); V];
    match kv_type {
        KvType::F16 => {
            let row = &row[2 * first..][..2 * V * S::LANES];
            for (v, value) in values.iter_mut().enumerate() {
                *value = s.load_f16(&row[2 * v * S::LANES..]);
            }
        }
        KvType::Q8_0 => {
            // Whole blocks where the vectors fill some, so that a block's scale is loaded once.
            let within = if V * S::LANES >= GROUP { 0 } else { first % GROUP };
            let row = &row[first / GROUP * Q8_BLOCK..][..(V * S::LANES).div_ceil(GROUP) * Q8_BLOCK];
            for (v, value) in values.iter_mut().enumerate() {
                let at = within + v * S::LANES;
                let block = &row[at / GROUP * Q8_BLOCK..][..Q8_BLOCK];
                *value = s.mul(s.to_f(s.load_i8(&block[2 + at % GROUP..])), s.splat_f16(block));
            }
        }
        KvType::F32 => {
            let row = &row[4 * first..][..4 * V * S::LANES];
            for (v, value) in values.iter_mut().enumerate() {
                *value = s.as_f(s.load_bytes(&row[4 * v * S::LANES..]));
            }
        }
    }
    values
}

/// `LANES` keys of a page, from `lane` on of the panel of position `first`, to f32, `[key_dim][16]`; returns the sums of
/// their squares.
#[inline(always)]
pub(super) fn key_values<S: Simd>(
    s: S,
    kv: &KvTile<'_>,
    first: usize,
    lane: usize,
    out: &mut [[f32; PANEL_ROWS]],
) -> S::F {
    let panel = kv.panel(first);
    let mut squares = [s.splat(0.0); 4];
    match kv.kv_type {
        KvType::F16 => {
            for (i, (step, out)) in panel.as_chunks::<{ 2 * PANEL_ROWS }>().0.iter().zip(out).enumerate() {
                let x = s.load_f16(&step[2 * lane..]);
                squares[i % 4] = s.fma(x, x, squares[i % 4]);
                s.store(x, &mut out[lane..]);
            }
        }
        KvType::Q8_0 => {
            let blocks = panel.as_chunks::<{ PANEL_ROWS * Q8_BLOCK }>().0;
            for (block, out) in blocks.iter().zip(out.chunks_exact_mut(GROUP)) {
                let scale = s.load_f16(&block[2 * lane..]);
                let steps = block[2 * PANEL_ROWS..].as_chunks::<PANEL_ROWS>().0;
                for (i, (step, out)) in steps.iter().zip(out).enumerate() {
                    let x = s.mul(s.to_f(s.load_i8(&step[lane..])), scale);
                    squares[i % 4] = s.fma(x, x, squares[i % 4]);
                    s.store(x, &mut out[lane..]);
                }
            }
        }
        KvType::F32 => {
            for (i, (step, out)) in panel.as_chunks::<{ 4 * PANEL_ROWS }>().0.iter().zip(out).enumerate() {
                let x = s.as_f(s.load_bytes(&step[4 * lane..]));
                squares[i % 4] = s.fma(x, x, squares[i % 4]);
                s.store(x, &mut out[lane..]);
            }
        }
    }
    s.add(s.add(squares[0], squares[1]), s.add(squares[2], squares[3]))
}
