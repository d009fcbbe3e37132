//! The vocabulary's memory: one region of bytes that holds token texts, their offsets, scores and attributes, and two
//! open-addressing hash tables, text -> id and (left id, right id) -> merge.
//!
//! Layout, in this order, each part aligned to 16 bytes: offsets `[n_tokens + 1]` u32, scores `[n_tokens]` f32 (SPM
//! and unigram only), attributes `[n_tokens]` u16, text table `[2^a]` u32, merge table `[2^b]` of four u32 (BPE only), text
//! bytes, the table of a normalisation (unigram only).
//! Tables are at most three quarters full, so a probe ends.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::charsmap::Charsmap;
use super::error::TokenizerError;
use super::source::VocabSource;
use crate::bytes;

/// No token: an empty slot, a character without a token.
pub const NONE: u32 = u32::MAX;
/// Bits of an id in a slot of the text table, below eight of the text's hash.
const ID_BITS: u32 = 24;
/// Ids fit a slot, and none of them makes it [`NONE`]; real vocabularies stay below 2^19.
const TOKENS_MAX: u64 = (1 << ID_BITS) - 1;
/// Offsets into the text are u32.
const TEXT_MAX: u64 = u32::MAX as u64;
/// Merges are ranked by u32; real lists stay below 2^20.
const MERGES_MAX: u64 = 1 << 26;
const ALIGN: u64 = 16;

/// Attributes of a token, as llama.cpp's vocabulary has them.
pub mod attr {
    /// Not in use.
    pub const UNKNOWN: u16 = 1;
    /// Never produced by encoding.
    pub const UNUSED: u16 = 2;
    /// Text.
    pub const NORMAL: u16 = 4;
    /// Steers the model; hidden when decoding.
    pub const CONTROL: u16 = 8;
    /// Always matched as a whole.
    pub const USER_DEFINED: u16 = 16;
    /// One byte.
    pub const BYTE: u16 = 32;
    /// Takes white space after it along.
    pub const RSTRIP: u16 = 64;
    /// Ends generation.
    pub const END: u16 = 128;
}

/// A merge of two neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Position in the file's list; the lowest is applied first.
    pub rank: u32,
    /// The token the two become.
    pub id: u32,
}

/// Which parts there are and where: pure arithmetic over the header's counts.
#[derive(Clone, Copy, Debug)]
struct Layout {
    n_tokens: u64,
    with_scores: bool,
    text_slots: u64,
    merge_slots: u64,
    text_bytes: u64,
    charsmap_bytes: u64,
}

fn limited(what: &'static str, have: u64, limit: u64) -> Result<u64, TokenizerError> {
    if have > limit { Err(TokenizerError::TooMany { what, have, limit }) } else { Ok(have) }
}

/// Slots for `entries`: the power of two that is at most three quarters full.
fn slots(entries: u64) -> u64 {
    (entries + entries / 3 + 1).next_power_of_two()
}

impl Layout {
    fn of(source: &VocabSource) -> Result<Self, TokenizerError> {
        let n_tokens = limited("tokens", source.tokens.len() as u64, TOKENS_MAX)?;
        if n_tokens == 0 {
            return Err(TokenizerError::NoTokens);
        }
        let with_scores = matches!(source.model, "llama" | "t5");
        let n_merges = match source.merges {
            Some(merges) if matches!(source.model, "gpt2" | "gemma4") => {
                limited("merges", merges.len() as u64, MERGES_MAX)?
            }
            _ => 0,
        };
        let text_bytes: u64 = source.tokens.iter().enumerate().map(|(id, text)| shown_bytes(id, text)).sum();
        Ok(Layout {
            n_tokens,
            with_scores,
            text_slots: slots(n_tokens),
            merge_slots: if n_merges > 0 { slots(n_merges) } else { 0 },
            text_bytes: limited("bytes of text", text_bytes, TEXT_MAX)?,
            charsmap_bytes: charsmap(source).len() as u64,
        })
    }

    /// Bytes of the parts in order.
    fn parts(&self) -> [u64; 7] {
        let scores = if self.with_scores { self.n_tokens * 4 } else { 0 };
        [
            (self.n_tokens + 1) * 4,
            scores,
            self.n_tokens * 2,
            self.text_slots * 4,
            self.merge_slots * 16,
            self.text_bytes,
            self.charsmap_bytes,
        ]
    }

    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.next_multiple_of(ALIGN)).sum::<u64>() + ALIGN
    }
}

/// Bytes of the memory that [`Table::build`] fills, from the header's counts alone.
///
/// # Errors
/// If the counts exceed what ids and offsets can express, or there are no tokens.
pub fn region_bytes(source: &VocabSource) -> Result<u64, TokenizerError> {
    Ok(Layout::of(source)?.bytes())
}

/// An empty token still needs a text of its own; llama.cpp calls it this.
fn empty_name(id: usize) -> String {
    format!("[EMPTY_{id}]")
}

fn shown_bytes(id: usize, text: &[u8]) -> u64 {
    if text.is_empty() { empty_name(id).len() as u64 } else { text.len() as u64 }
}

/// The filled tables.
#[derive(Clone, Copy, Debug)]
pub struct Table<'m> {
    offsets: &'m [u32],
    scores: &'m [f32],
    attrs: &'m [u16],
    by_text: &'m [u32],
    merges: &'m [[u32; 4]],
    text: &'m [u8],
    longest: usize,
    charsmap: Charsmap<'m>,
    key: u64,
}

/// The table of a normalisation that is in use.
fn charsmap<'a>(source: &VocabSource<'a>) -> &'a [u8] {
    source.charsmap.filter(|_| source.model == "t5").unwrap_or_default()
}

/// Cuts the next part off the region.
fn carve<'m>(rest: &mut &'m mut [u8], bytes: u64) -> &'m mut [u8] {
    let padded = usize::try_from(bytes.next_multiple_of(ALIGN)).expect("checked against the region's length");
    let (part, tail) = std::mem::take(rest).split_at_mut(padded);
    *rest = tail;
    &mut part[..usize::try_from(bytes).expect("shorter than the padded part")]
}

impl<'m> Table<'m> {
    /// Fills `region` with tokens and merges; `adjust` may change attributes once all texts can be looked up.
    ///
    /// # Errors
    /// If the region is too small or the vocabulary contradicts itself.
    pub fn build(
        source: &VocabSource,
        region: &'m mut [u8],
        adjust: impl FnOnce(&Table<'_>, &mut BTreeMap<u32, u16>),
    ) -> Result<Self, TokenizerError> {
        let layout = Layout::of(source)?;
        if (region.len() as u64) < layout.bytes() {
            return Err(TokenizerError::Region { have: region.len() as u64, need: layout.bytes() });
        }
        let skew = region.as_ptr().align_offset(ALIGN as usize);
        let mut rest = &mut region[skew..];
        let parts = layout.parts();
        let offsets = bytes::cast_mut::<u32>(carve(&mut rest, parts[0]));
        let scores = bytes::cast_mut::<f32>(carve(&mut rest, parts[1]));
        let attrs = bytes::cast_mut::<u16>(carve(&mut rest, parts[2]));
        let by_text = bytes::cast_mut::<u32>(carve(&mut rest, parts[3]));
        let merges = bytes::cast_mut::<[u32; 4]>(carve(&mut rest, parts[4]));
        let text = carve(&mut rest, parts[5]);
        let normalisation = carve(&mut rest, parts[6]);
        normalisation.copy_from_slice(charsmap(source));
        let charsmap = Charsmap::new(normalisation);

        let longest = fill_texts(source, offsets, text);
        fill_scores(source, scores)?;
        fill_attrs(source, attrs)?;
        // Nobody who writes a file knows it, so that none has tokens that are chosen to share a slot.
        let key = RandomState::new().build_hasher().finish();
        index_texts(key, offsets, text, by_text)?;
        let view = Table { offsets, scores, attrs, by_text, merges: &[], text, longest, charsmap, key };
        let mut changes = BTreeMap::new();
        adjust(&view, &mut changes);
        fill_merges(source, &view, merges)?;
        for (id, value) in changes {
            attrs[id as usize] = value;
        }
        Ok(Table { offsets, scores, attrs, by_text, merges, text, longest, charsmap, key })
    }

    /// How many tokens there are.
    pub fn n_tokens(&self) -> u32 {
        u32::try_from(self.attrs.len()).expect("limited to TOKENS_MAX")
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The token's text as the file has it; empty for an id outside the vocabulary.
    pub fn text(&self, id: u32) -> &'m [u8] {
        match self.offsets.get(id as usize..) {
            Some(&[start, end, ..]) => &self.text[start as usize..end as usize],
            _ => &[],
        }
    }

    /// The token's attributes; none for an id outside the vocabulary.
    pub fn attrs(&self, id: u32) -> u16 {
        self.attrs.get(id as usize).copied().unwrap_or(0)
    }

    /// What becomes of stretches of text before they are encoded.
    pub fn charsmap(&self) -> &Charsmap<'m> {
        &self.charsmap
    }

    /// The token's score (SPM, unigram).
    pub fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    /// The token with this text, or [`NONE`].
    pub fn find(&self, text: &[u8]) -> u32 {
        if text.len() > self.longest {
            return NONE;
        }
        match self.by_text[find_slot(self.key, (self.offsets, self.text), self.by_text, text).0] {
            NONE => NONE,
            tagged => id_of(tagged),
        }
    }

    /// The merge of two neighbouring tokens.
    pub fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        if self.merges.is_empty() || left == NONE || right == NONE {
            return None;
        }
        let [_, _, rank, id] = self.merges[merge_slot(self.key, self.merges, left, right)];
        (id != NONE).then_some(Merge { rank, id })
    }
}

fn fill_texts(source: &VocabSource, offsets: &mut [u32], text: &mut [u8]) -> usize {
    let (mut end, mut longest) = (0, 0);
    offsets[0] = 0;
    for (id, token) in source.tokens.iter().enumerate() {
        let name;
        let token = if token.is_empty() {
            name = empty_name(id);
            name.as_bytes()
        } else {
            token
        };
        text[end..end + token.len()].copy_from_slice(token);
        end += token.len();
        longest = longest.max(token.len());
        offsets[id + 1] = u32::try_from(end).expect("limited to TEXT_MAX");
    }
    longest
}

/// The elements of a little-endian array, which must go with every token.
fn elements<'a>(
    what: &'static str,
    array: &'a [u8],
    n_tokens: usize,
) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, TokenizerError> {
    let (chunks, _) = array.as_chunks::<4>();
    if chunks.len() < n_tokens {
        return Err(TokenizerError::Short { what, have: chunks.len() as u64, need: n_tokens as u64 });
    }
    Ok(chunks[..n_tokens].iter().copied())
}

fn fill_scores(source: &VocabSource, scores: &mut [f32]) -> Result<(), TokenizerError> {
    if scores.is_empty() {
        return Ok(());
    }
    let array = source.scores.ok_or(TokenizerError::Missing("tokenizer.ggml.scores"))?;
    let raw = elements("tokenizer.ggml.scores", array, scores.len())?;
    for (id, (slot, raw)) in (0..).zip(scores.iter_mut().zip(raw)) {
        *slot = f32::from_le_bytes(raw);
        if slot.is_nan() {
            return Err(TokenizerError::ScoreNotANumber { id });
        }
    }
    Ok(())
}

fn fill_attrs(source: &VocabSource, attrs: &mut [u16]) -> Result<(), TokenizerError> {
    let Some(array) = source.types else {
        attrs.fill(attr::NORMAL);
        return Ok(());
    };
    let n_tokens = attrs.len();
    for (slot, raw) in attrs.iter_mut().zip(elements("tokenizer.ggml.token_type", array, n_tokens)?) {
        *slot = match i32::from_le_bytes(raw) {
            1 => attr::NORMAL,
            2 => attr::UNKNOWN,
            3 => attr::CONTROL,
            4 => attr::USER_DEFINED,
            5 => attr::UNUSED,
            6 => attr::BYTE,
            _ => 0,
        };
    }
    Ok(())
}

fn index_texts(key: u64, offsets: &[u32], text: &[u8], by_text: &mut [u32]) -> Result<(), TokenizerError> {
    by_text.fill(NONE);
    for (id, ends) in (0..).zip(offsets.windows(2)) {
        let (slot, tag) = find_slot(key, (offsets, text), by_text, &text[ends[0] as usize..ends[1] as usize]);
        if by_text[slot] != NONE {
            return Err(TokenizerError::Duplicate { first: id_of(by_text[slot]), second: id });
        }
        by_text[slot] = tag << ID_BITS | id;
    }
    Ok(())
}

/// The id in a slot of the text table that is taken.
fn id_of(tagged: u32) -> u32 {
    tagged & ((1 << ID_BITS) - 1)
}

fn fill_merges(source: &VocabSource, table: &Table<'_>, merges: &mut [[u32; 4]]) -> Result<(), TokenizerError> {
    if merges.is_empty() {
        return Ok(());
    }
    merges.fill([NONE; 4]);
    let (mut joined, mut last) = (Vec::new(), NONE);
    let mut batch = heapless::Vec::<[u32; 4], BATCH>::new();
    for (index, merge) in (0..).zip(source.merges.iter().flat_map(|m| m.iter())) {
        let bad = TokenizerError::BadMerge { index };
        // A token may itself start with a blank, so the separator is looked for from the second byte on.
        let Some(blank) = merge.iter().skip(1).position(|&b| b == b' ') else { return Err(bad) };
        let (left, right) = (&merge[..blank + 1], &merge[blank + 2..]);
        // Merges are listed in the order of the tokens they make, mostly: the next token is the first to be looked at.
        let next = last.wrapping_add(1);
        let (start, end) = table.text(next).split_at_checked(left.len()).unwrap_or_default();
        last = match same(start, left) && same(end, right) {
            true => next,
            false => {
                joined.clear();
                joined.extend_from_slice(left);
                joined.extend_from_slice(right);
                table.find(&joined)
            }
        };
        let found = [table.find(left), table.find(right), index, last];
        if [found[0], found[1], last].contains(&NONE) {
            return Err(bad);
        }
        if batch.push(found).is_err() {
            insert(table.key, merges, &batch);
            batch.clear();
            batch.extend([found]);
        }
    }
    insert(table.key, merges, &batch);
    Ok(())
}

/// Merges that are put into their table together.
const BATCH: usize = 64;

fn insert(key: u64, merges: &mut [[u32; 4]], batch: &[[u32; 4]]) {
    // The table is larger than L2. All slots of a batch are on their way before the first is waited for.
    let seen = batch.iter().fold(0, |seen, merge| seen ^ merges[first_slot(key, merges, merge[0], merge[1])][3]);
    std::hint::black_box(seen);
    for merge in batch {
        let slot = &mut merges[merge_slot(key, merges, merge[0], merge[1])];
        if slot[3] == NONE {
            *slot = *merge; // of equal pairs the first counts
        }
    }
}

/// Multiply-and-fold over 8-byte words with a key.
#[inline(always)]
fn hash(key: u64, text: &[u8]) -> u64 {
    let (words, rest) = text.as_chunks::<8>();
    let mut h = text.len() as u64;
    for word in words {
        h = mix(key, h ^ u64::from_le_bytes(*word));
    }
    mix(key, h ^ last_word(rest))
}

/// Fewer than eight bytes as a word. Without calls for what is mostly a few bytes, as in [`same`]: a vocabulary is half a
/// million look-ups.
#[inline(always)]
fn last_word(rest: &[u8]) -> u64 {
    match (rest.first_chunk(), rest.last_chunk()) {
        // Bytes that are in both are the same.
        (Some(first), Some(last)) => {
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << (8 * (rest.len() - 4))
        }
        _ => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Whether two texts are equal.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    let ((words_a, rest_a), (words_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    a.len() == b.len() && words_a.iter().zip(words_b).all(|(a, b)| a == b) && last_word(rest_a) == last_word(rest_b)
}

#[inline(always)]
fn mix(key: u64, x: u64) -> u64 {
    let wide = u128::from(x ^ key) * 0xd6e8_feb8_6659_fd93_u128;
    (wide ^ (wide >> 64)) as u64
}

/// The slot that holds `text`, or the empty one where it would go, and eight bits of its hash: where a slot has others, its
/// text need not be looked at.
#[inline(always)]
fn find_slot(key: u64, (offsets, texts): (&[u32], &[u8]), by_text: &[u32], text: &[u8]) -> (usize, u32) {
    let (hash, mask) = (hash(key, text), by_text.len() - 1);
    let (mut slot, tag) = (hash as usize & mask, (hash >> 56) as u32);
    loop {
        let found = by_text[slot];
        if found == NONE {
            return (slot, tag);
        }
        let id = id_of(found) as usize;
        if found >> ID_BITS == tag && same(&texts[offsets[id] as usize..offsets[id + 1] as usize], text) {
            return (slot, tag);
        }
        slot = (slot + 1) & mask;
    }
}

/// Where the pair is looked for first.
#[inline(always)]
fn first_slot(key: u64, merges: &[[u32; 4]], left: u32, right: u32) -> usize {
    mix(key, u64::from(left) << 32 | u64::from(right)) as usize & (merges.len() - 1)
}

/// The slot that holds the pair, or the empty one where it would go.
#[inline(always)]
fn merge_slot(key: u64, merges: &[[u32; 4]], left: u32, right: u32) -> usize {
    let mask = merges.len() - 1;
    let mut slot = first_slot(key, merges, left, right);
    loop {
        let [l, r, _, id] = merges[slot];
        if id == NONE || (l == left && r == right) {
            return slot;
        }
        slot = (slot + 1) & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_share_a_slot_under_one_key_do_not_under_another() {
        const SLOTS: u64 = 4096;
        let slot = |key: u64, text: &[u8; 12]| hash(key, text) % SLOTS;
        let text = |n: u64| {
            let mut text = *b"            ";
            text[..8].copy_from_slice(&n.to_le_bytes());
            text
        };
        let chosen: Vec<[u8; 12]> = (0..).map(text).filter(|text| slot(1, text) == 7).take(500).collect();
        for _ in 0..8 {
            let key = RandomState::new().build_hasher().finish();
            let mut counts = vec![0; SLOTS as usize];
            chosen.iter().for_each(|text| counts[slot(key, text) as usize] += 1);
            let most = counts.iter().max().unwrap();
            assert!(*most < 12, "{most} of 500 share a slot of {SLOTS}");
        }
    }
}
