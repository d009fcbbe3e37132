//! WordPiece (`tokenizer.ggml.model = "bert"`): words between blanks and marks, each the longest tokens from its beginning
//! on, or unknown as a whole. The order of things is that of llama.cpp (`llm_tokenizer_wpm_session` in `llama-vocab.cpp`).

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::decompositions::{LARGE, SMALL};
use super::spm::BLANK;
use super::table::{NONE, Table};
use super::unicode::{MARK, PUNCTUATION, SYMBOL, class};

/// How words are made of a text.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Letters become small.
    pub lowercase: bool,
    /// Letters lose their accents.
    pub strip_accents: bool,
}

/// Syllables of Hangul: the first, how many, and how many begin alike.
const HANGUL: (u32, u32, u32) = (0xac00, 11172, 588);

/// The first character of the canonical decomposition.
fn undecorated(c: char) -> char {
    let code = c as u32;
    if code < 0x80 {
        return c;
    }
    if let Some(index) = code.checked_sub(HANGUL.0).filter(|&index| index < HANGUL.1) {
        return char::from_u32(0x1100 + index / HANGUL.2).unwrap_or(c);
    }
    let first = match u16::try_from(code).map(|code| SMALL.binary_search_by_key(&code, |pair| pair.0)) {
        Ok(Ok(at)) => u32::from(SMALL[at].1),
        _ => LARGE.binary_search_by_key(&code, |pair| pair.0).map_or(code, |at| LARGE[at].1),
    };
    char::from_u32(first).unwrap_or(c)
}

/// Characters that are words by themselves: Chinese ones, in the ranges of BERT's own tokenizer as Hugging Face has them.
fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4e00..=0x9fff
            | 0x3400..=0x4dbf
            | 0x20000..=0x2a6df
            | 0x2a700..=0x2b73f
            | 0x2b740..=0x2b81f
            | 0x2b920..=0x2ceaf
            | 0xf900..=0xfaff
            | 0x2f800..=0x2fa1f
    )
}

/// Characters that are as if they were not there.
fn is_dropped(c: char) -> bool {
    let is_control = matches!(
        c.general_category(),
        GeneralCategory::Control | GeneralCategory::Format | GeneralCategory::PrivateUse | GeneralCategory::Surrogate
    );
    c == char::REPLACEMENT_CHARACTER || is_control
}

impl Words {
    /// Appends the tokens of `text`.
    pub fn encode(self, table: &Table<'_>, unk: Option<u32>, text: &str, out: &mut Vec<u32>) {
        let mut word = String::from(BLANK);
        let end = |word: &mut String, out: &mut Vec<u32>| {
            if word.len() > BLANK.len() {
                encode_word(table, unk, word, out);
                word.truncate(BLANK.len());
            }
        };
        for c in text.chars() {
            let c = if self.strip_accents { undecorated(c) } else { c };
            let class = class(c);
            if c.is_whitespace() {
                end(&mut word, out);
            } else if is_dropped(c) || self.strip_accents && class == MARK {
            } else {
                let small = if self.lowercase { c.to_lowercase().next().unwrap_or(c) } else { c };
                let stands_alone = class == PUNCTUATION || c < '\x7f' && class == SYMBOL || is_ideograph(c);
                if stands_alone {
                    end(&mut word, out);
                }
                word.push(small);
                if stands_alone {
                    end(&mut word, out);
                }
            }
        }
        end(&mut word, out);
    }
}

/// The longest tokens that a word consists of, one after the other; the unknown token where it has a piece that is none.
fn encode_word(table: &Table<'_>, unk: Option<u32>, word: &str, out: &mut Vec<u32>) {
    let (first, mut rest) = (out.len(), word);
    while !rest.is_empty() {
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= table.longest());
        let mut longest = (0, NONE);
        for end in ends {
            match table.find(&rest.as_bytes()[..end]) {
                NONE => {}
                id => longest = (end, id),
            }
        }
        if longest.1 == NONE {
            out.truncate(first);
            out.extend(unk);
            return;
        }
        out.push(longest.1);
        rest = &rest[longest.0..];
    }
}
