//! BPE: inside each word the neighbours with the lowest merge rank are joined, leftmost first among equals, until no
//! merge applies. Words start as bytes, written in printable characters (`tokenizer.ggml.model = "gpt2"`), or as the
//! characters they are, with `<0xXX>` tokens for what the vocabulary lacks (`"gemma4"`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::bytelevel;
use super::table::{NONE, Table};

/// Words up to this many bytes are merged by scanning; longer ones with a queue. Same result, the scan is faster for
/// words as people write them, the queue keeps a megabyte without a blank from taking quadratic time.
const SCAN_BYTES: usize = 32;

/// End of a chain of symbols.
const END: u32 = u32::MAX;

/// What a word starts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Its bytes; a word that is a token as a whole may stay one, merges or not.
    Bytes {
        /// It does.
        ignore_merges: bool,
    },
    /// Its characters; a word of newlines that is a token stays one.
    Characters,
}

/// The tokens that single bytes start as; [`NONE`] where the vocabulary lacks one, which drops the byte.
pub fn byte_tokens(table: &Table<'_>) -> [u32; 256] {
    std::array::from_fn(|byte| table.find(bytelevel::char_of(byte as u8).encode_utf8(&mut [0; 4]).as_bytes()))
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Bytes of the word; 0 once merged into its left neighbour.
    bytes: u32,
    prev: u32,
    next: u32,
}

/// A merge waiting in the queue: lowest rank first, then leftmost.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    rank: u32,
    left: u32,
    right: u32,
    id: u32,
    bytes: u32,
}

/// Buffers reused from word to word.
#[derive(Default)]
pub struct Scratch {
    ids: Vec<u32>,
    written: Vec<u8>,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Waiting>>,
}

/// Encodes one word.
pub fn encode_word(
    table: &Table<'_>,
    byte_tokens: &[u32; 256],
    units: Units,
    word: &str,
    scratch: &mut Scratch,
    out: &mut Vec<u32>,
) {
    let whole = match units {
        Units::Bytes { ignore_merges: true } if word.len() <= table.longest() => {
            scratch.written.clear();
            bytelevel::write(word.as_bytes(), &mut scratch.written);
            table.find(&scratch.written)
        }
        Units::Characters if word.starts_with('\n') => table.find(word.as_bytes()),
        _ => NONE,
    };
    if whole != NONE {
        return out.push(whole);
    }
    match units {
        Units::Bytes { .. } if word.len() <= SCAN_BYTES => {
            scan(table, byte_tokens, word.as_bytes(), &mut scratch.ids);
            out.extend(scratch.ids.iter().filter(|&&id| id != NONE));
        }
        Units::Bytes { .. } => {
            let bytes = word.bytes().map(|byte| (byte_tokens[byte as usize], 1));
            queued(table, bytes, scratch, |id, _| out.extend(Some(id).filter(|&id| id != NONE)));
        }
        Units::Characters => {
            let characters = word.char_indices().map(|(at, c)| {
                let bytes = c.len_utf8();
                (table.find(&word.as_bytes()[at..at + bytes]), bytes as u32)
            });
            queued(table, characters, scratch, |id, span| match id {
                NONE => {
                    let bytes = word.as_bytes()[span].iter().map(|&byte| byte_tokens[byte as usize]);
                    out.extend(bytes.filter(|&id| id != NONE));
                }
                id => out.push(id),
            });
        }
    }
}

fn scan(table: &Table<'_>, byte_tokens: &[u32; 256], word: &[u8], ids: &mut Vec<u32>) {
    const NO_MERGE: (u32, u32) = (u32::MAX, NONE);
    let merge = |left, right| table.merge(left, right).map_or(NO_MERGE, |m| (m.rank, m.id));
    ids.clear();
    ids.extend(word.iter().map(|&b| byte_tokens[b as usize]));
    let mut merges = [NO_MERGE; SCAN_BYTES]; // merges[i] joins ids[i] and ids[i + 1]
    for (slot, pair) in merges.iter_mut().zip(ids.windows(2)) {
        *slot = merge(pair[0], pair[1]);
    }
    while ids.len() > 1 {
        let pairs = ids.len() - 1;
        let (mut best, mut rank) = (0, u32::MAX);
        for (i, m) in merges[..pairs].iter().enumerate() {
            if m.0 < rank {
                (best, rank) = (i, m.0);
            }
        }
        if rank == u32::MAX {
            return;
        }
        ids[best] = merges[best].1;
        ids.remove(best + 1);
        merges.copy_within(best + 1..pairs, best);
        if best + 1 < ids.len() {
            merges[best] = merge(ids[best], ids[best + 1]);
        }
        if best > 0 {
            merges[best - 1] = merge(ids[best - 1], ids[best]);
        }
    }
}

/// `units` are the tokens the word starts as, with their bytes; `emit` gets the tokens it ends as and where they lie.
fn queued(
    table: &Table<'_>,
    units: impl Iterator<Item = (u32, u32)>,
    scratch: &mut Scratch,
    mut emit: impl FnMut(u32, Range<usize>),
) {
    let Scratch { symbols, queue, .. } = scratch;
    symbols.clear();
    queue.clear();
    for (at, (id, bytes)) in (0u32..).zip(units) {
        symbols.push(Symbol { id, bytes, prev: at.wrapping_sub(1), next: at + 1 });
    }
    let Some(last) = symbols.last_mut() else { return };
    last.next = END;

    let offer = |queue: &mut BinaryHeap<Reverse<Waiting>>, symbols: &[Symbol], left: u32, right: u32| {
        if left == END || right == END {
            return;
        }
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        if let Some(merge) = table.merge(l.id, r.id) {
            queue.push(Reverse(Waiting { rank: merge.rank, left, right, id: merge.id, bytes: l.bytes + r.bytes }));
        }
    };
    for right in 1..symbols.len() as u32 {
        offer(queue, symbols, right - 1, right);
    }
    while let Some(Reverse(Waiting { left, right, id, bytes, .. })) = queue.pop() {
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        if l.bytes == 0 || r.bytes == 0 || l.bytes + r.bytes != bytes {
            continue; // one of the two has been merged since
        }
        symbols[left as usize] = Symbol { id, bytes, prev: l.prev, next: r.next };
        symbols[right as usize].bytes = 0;
        if r.next != END {
            symbols[r.next as usize].prev = left;
        }
        offer(queue, symbols, l.prev, left);
        offer(queue, symbols, left, r.next);
    }
    let (mut at, mut start) = (0, 0);
    while at != END {
        let symbol = symbols[at as usize];
        let end = start + symbol.bytes as usize;
        emit(symbol.id, start..end);
        (at, start) = (symbol.next, end);
    }
}
