//! SentencePiece's unigram model (`tokenizer.ggml.model = "t5"`): of all ways to cut a text into tokens the one with the
//! greatest sum of scores (Kudo, arXiv:1804.10959), after a normalisation by a table of the file. The order of things is
//! that of llama.cpp (`llm_tokenizer_ugm_session` in `llama-vocab.cpp`).

use super::spm::BLANK;
use super::table::{Table, attr};

/// How a text is made ready.
#[derive(Clone, Copy, Debug)]
pub struct Unigram {
    /// A blank is put in front of a text, or behind it.
    pub add_space_prefix: bool,
    /// Blanks in a row become one, and those at either end none.
    pub merge_spaces: bool,
    /// Blanks end words in place of beginning them.
    pub blank_is_suffix: bool,
    /// Blanks are written as [`BLANK`].
    pub escape_blanks: bool,
    /// The score of what is no token.
    pub unknown_score: f32,
}

/// How much less than the worst token what is no token is worth.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What is known of the texts that end at a byte.
#[derive(Clone, Copy)]
struct Best {
    /// The last token of the best of them, and where it begins.
    token: u32,
    start: usize,
    score: f64,
}

/// The score of what is no token, in a vocabulary.
pub fn unknown_score(table: &Table<'_>) -> f32 {
    let normal = (0..table.n_tokens()).filter(|&id| table.attrs(id) & attr::NORMAL != 0);
    normal.map(|id| table.score(id)).fold(f32::MAX, f32::min) - UNKNOWN_PENALTY
}

impl Unigram {
    /// Appends the tokens of `text`; `unk` stands for what is no token.
    pub fn encode(self, table: &Table<'_>, unk: u32, text: &str, out: &mut Vec<u32>) {
        let text = self.normalised(table, text);
        if text.is_empty() {
            return;
        }
        let mut best = vec![Best { token: unk, start: 0, score: -f64::MAX }; text.len() + 1];
        best[0].score = 0.0;
        for (start, c) in text.char_indices() {
            let so_far = best[start].score;
            let mut offer = |end: usize, token: u32, score: f64| {
                if score > best[end].score {
                    best[end] = Best { token, start, score };
                }
            };
            let rest = &text[start..];
            let mut is_token = false;
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= table.longest());
            for end in ends {
                let id = table.find(&rest.as_bytes()[..end]);
                let attrs = table.attrs(id);
                if attrs & (attr::NORMAL | attr::USER_DEFINED | attr::UNUSED) == 0 {
                    continue;
                }
                is_token |= end == c.len_utf8();
                let score = if attrs & attr::USER_DEFINED != 0 { 0.0 } else { f64::from(table.score(id)) };
                offer(start + end, id, so_far + score);
            }
            if !is_token {
                offer(start + c.len_utf8(), unk, so_far + f64::from(self.unknown_score));
            }
        }
        let first = out.len();
        let (mut end, mut was_unknown) = (text.len(), false);
        loop {
            let Best { token, start, .. } = best[end];
            // Unknown ones in a row are one.
            if !(was_unknown && token == unk) {
                out.push(token);
            }
            was_unknown = token == unk;
            if start == 0 {
                break;
            }
            end = start;
        }
        out[first..].reverse();
    }

    fn normalised(self, table: &Table<'_>, text: &str) -> String {
        let blank = if self.escape_blanks { BLANK } else { " " };
        let mut out = String::with_capacity(text.len() * 2);
        let (mut has_prefix, mut in_word) = (false, false);
        let mut push = |piece: &str| {
            for c in piece.chars() {
                if c == ' ' {
                    in_word = false;
                    if !self.merge_spaces {
                        out.push_str(blank);
                    }
                    continue;
                }
                if !std::mem::replace(&mut in_word, true) {
                    let wants_prefix = self.add_space_prefix && !self.blank_is_suffix && !has_prefix;
                    if wants_prefix || self.merge_spaces {
                        out.push_str(blank);
                        has_prefix = true;
                    }
                }
                out.push(c);
            }
        };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match table.charsmap().longest(rest.as_bytes()) {
                // Neither part of a character that is left nor of one that is put in its place is text.
                Some((n_bytes, replacement)) if rest.is_char_boundary(n_bytes) => {
                    push(&String::from_utf8_lossy(replacement));
                    rest = &rest[n_bytes..];
                }
                _ => {
                    push(c.encode_utf8(&mut [0; 4]));
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        if self.blank_is_suffix && self.add_space_prefix {
            out.push_str(blank);
        }
        out
    }
}
