//! SentencePiece's BPE (`tokenizer.ggml.model = "llama"`): neighbours whose joined text is a token are merged, best
//! score first, leftmost first among equals; characters that end up in no token become bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::table::{NONE, Table};

/// A blank inside a token.
pub const BLANK: &str = "▁";

/// End of a chain of symbols.
const END: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// 0 once merged into its left neighbour.
    bytes: u32,
    prev: u32,
    next: u32,
}

struct Pair {
    score: f32,
    left: u32,
    right: u32,
    bytes: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are numbers (checked when built); -0 and 0 are equal scores.
        self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// The tokens that stand for single bytes: `<0xXX>`, else the byte itself, else the unknown token.
pub fn byte_tokens(table: &Table<'_>, unk: Option<u32>) -> [u32; 256] {
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        let mut id = table.find(format!("<0x{byte:02X}>").as_bytes());
        if id == NONE {
            id = table.find(&[byte]);
        }
        if id == NONE { unk.unwrap_or(NONE) } else { id }
    })
}

/// Encodes `text`, blanks already written as [`BLANK`].
pub fn encode(table: &Table<'_>, byte_tokens: &[u32; 256], text: &str, out: &mut Vec<u32>) {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    for (at, (start, c)) in (0u32..).zip(text.char_indices()) {
        let start = u32::try_from(start).expect("encode limits the text to u32");
        symbols.push(Symbol { start, bytes: c.len_utf8() as u32, prev: at.wrapping_sub(1), next: at + 1 });
    }
    let Some(last) = symbols.last_mut() else { return };
    last.next = END;

    let slice = |start: u32, bytes: u32| &text.as_bytes()[start as usize..][..bytes as usize];
    let mut queue = BinaryHeap::new();
    let offer = |queue: &mut BinaryHeap<Pair>, symbols: &[Symbol], left: u32, right: u32| {
        if left == END || right == END {
            return;
        }
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        let bytes = l.bytes + r.bytes;
        let id = table.find(slice(l.start, bytes));
        if id != NONE {
            queue.push(Pair { score: table.score(id), left, right, bytes });
        }
    };
    for right in 1..symbols.len() as u32 {
        offer(&mut queue, &symbols, right - 1, right);
    }
    while let Some(Pair { left, right, bytes, .. }) = queue.pop() {
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        if l.bytes == 0 || r.bytes == 0 || l.bytes + r.bytes != bytes {
            continue; // one of the two has been merged since
        }
        symbols[left as usize].bytes = bytes;
        symbols[left as usize].next = r.next;
        symbols[right as usize].bytes = 0;
        if r.next != END {
            symbols[r.next as usize].prev = left;
        }
        offer(&mut queue, &symbols, l.prev, left);
        offer(&mut queue, &symbols, left, r.next);
    }
    let mut at = 0;
    while at != END {
        let symbol = symbols[at as usize];
        let piece = slice(symbol.start, symbol.bytes);
        match table.find(piece) {
            NONE => out.extend(piece.iter().map(|&b| byte_tokens[b as usize]).filter(|&id| id != NONE)),
            id => out.push(id),
        }
        at = symbol.next;
    }
}
