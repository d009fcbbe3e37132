//! Pre-tokenizers of byte-level BPE: they cut text into the words inside which merges happen.
//!
//! Each kind is a list of stages; a stage cuts every piece the stage before it left. Cuts equal those that
//! llama.cpp makes for the same `tokenizer.ggml.pre` (b-series of 2026, `unicode.cpp`), where the patterns differ in
//! corners from the regular expressions they stand for: a lone `\s+` before a word keeps its last blank for that word,
//! and a piece never sees what follows it.

use super::unicode::{
    LETTER, MARK, NUMBER, PUNCTUATION, SPACE, class, deepseek_letter, deepseek_punctuation, deepseek_unspaced,
};

/// How a vocabulary wants its text cut, and what follows from its name.
#[derive(Clone, Copy, Debug)]
pub struct Pre {
    /// Stages in order.
    pub stages: &'static [Stage],
    /// A word that is a token as a whole is taken as it is, merges or not.
    pub ignore_merges: bool,
    /// BOS is put in front unless the file says otherwise.
    pub add_bos: bool,
}

/// One cut of every piece.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// GPT-2: contractions in lower case, words, numbers and symbols with one leading blank.
    Gpt2,
    /// Llama 3 and Qwen: contractions in any case, words with any one leading character, numbers cut into groups,
    /// newlines kept with what precedes them.
    Llama3 {
        /// Longest group of digits.
        digits: usize,
        /// What a word is made of.
        word: u8,
    },
    /// Runs of what `is` accepts, at least `min` and at most `max` long; `lead` takes one white-space character along.
    Run {
        /// Membership.
        is: fn(char) -> bool,
        /// A blank before the run belongs to it.
        lead: bool,
        /// Shortest run in characters.
        min: usize,
        /// Longest run in characters.
        max: usize,
    },
    /// White space at the end of the piece.
    TrailingSpace,
}

const fn run(is: fn(char) -> bool, lead: bool) -> Stage {
    Stage::Run { is, lead, min: 1, max: usize::MAX }
}

const fn single(is: fn(char) -> bool) -> Stage {
    Stage::Run { is, lead: false, min: 1, max: 1 }
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

fn is_number(c: char) -> bool {
    class(c) == NUMBER
}

fn is_letter(c: char) -> bool {
    class(c) == LETTER
}

fn is_punctuation(c: char) -> bool {
    class(c) == PUNCTUATION
}

/// Falcon's set: `\p{P}` and every ASCII symbol.
fn is_falcon_mark(c: char) -> bool {
    class(c) == PUNCTUATION || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|' | '`')
}

/// The default's set: Falcon's without the backtick.
fn is_default_mark(c: char) -> bool {
    is_falcon_mark(c) && c != '`'
}

fn is_ascii_digit(c: char) -> bool {
    c.is_ascii_digit()
}

const THREE_DIGITS: Stage = Stage::Run { is: is_ascii_digit, lead: false, min: 3, max: 3 };
const DEFAULT: &[Stage] = &[run(is_default_mark, false), Stage::Gpt2, run(is_number, false), THREE_DIGITS];
const GPT2: &[Stage] = &[Stage::Gpt2];
const LLAMA3: &[Stage] = &[Stage::Llama3 { digits: 3, word: LETTER }];
const QWEN2: &[Stage] = &[Stage::Llama3 { digits: 1, word: LETTER }];
const QWEN35: &[Stage] = &[Stage::Llama3 { digits: 1, word: LETTER | MARK }];
const STARCODER: &[Stage] = &[single(is_number), Stage::Gpt2];
const FALCON: &[Stage] = &[run(is_falcon_mark, false), Stage::Gpt2, THREE_DIGITS];
const DEEPSEEK_LLM: &[Stage] = &[
    single(is_newline),
    run(deepseek_letter, true),
    run(deepseek_punctuation, true),
    Stage::TrailingSpace,
    run(deepseek_unspaced, false),
    run(is_number, false),
];
const DEEPSEEK_CODER: &[Stage] = &[
    single(is_newline),
    run(is_letter, true),
    run(is_punctuation, true),
    run(deepseek_unspaced, false),
    single(is_number),
];

/// The pre-tokenizer of a `tokenizer.ggml.pre` name; `None` if brim does not know it. No name means `default`.
pub fn by_name(name: &str) -> Option<Pre> {
    let plain = |stages| Some(Pre { stages, ignore_merges: false, add_bos: false });
    match name {
        "" | "default" => plain(DEFAULT),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            Some(Pre { stages: LLAMA3, ignore_merges: true, add_bos: true })
        }
        "glm4" | "glm5" => Some(Pre { stages: LLAMA3, ignore_merges: true, add_bos: false }),
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => plain(LLAMA3),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => {
            plain(QWEN2)
        }
        "qwen35" => plain(QWEN35),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            plain(STARCODER)
        }
        "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" | "mpt" | "olmo" | "jais" | "trillion"
        | "granite-docling" => plain(GPT2),
        "falcon" => plain(FALCON),
        "deepseek-llm" => plain(DEEPSEEK_LLM),
        "deepseek-coder" => plain(DEEPSEEK_CODER),
        _ => None,
    }
}

/// Cuts `text` by all stages and hands over the words in order; together they are `text`.
pub fn split(stages: &[Stage], text: &str, word: &mut dyn FnMut(&str)) {
    let Some((stage, rest)) = stages.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut piece = |piece: &str| match rest {
        [] => word(piece),
        rest => split(rest, piece, word),
    };
    match *stage {
        Stage::Gpt2 => gpt2(text, &mut piece),
        Stage::Llama3 { digits, word } => llama3(text, digits, word, &mut piece),
        Stage::Run { is, lead, min, max } => runs(text, is, lead, min, max, &mut piece),
        Stage::TrailingSpace => {
            let body = text.trim_end_matches(|c| class(c) == SPACE);
            for part in [body, &text[body.len()..]] {
                if !part.is_empty() {
                    piece(part);
                }
            }
        }
    }
}

/// The character at a byte position and its class; class 0 at the end.
fn at(text: &str, pos: usize) -> (char, u8) {
    match text.as_bytes().get(pos) {
        None => ('\0', 0),
        Some(&byte) if byte < 128 => (byte as char, class(byte as char)),
        Some(_) => text[pos..].chars().next().map_or(('\0', 0), |c| (c, class(c))),
    }
}

/// End of the run of characters from `pos` whose class is in `mask`.
fn skip(text: &str, mut pos: usize, mask: u8) -> usize {
    loop {
        let (c, class) = at(text, pos);
        if class & mask == 0 {
            return pos;
        }
        pos += c.len_utf8();
    }
}

/// Bytes of the contraction (`'s`, `'re`, ...) at `pos`, 0 if there is none.
fn contraction(text: &str, pos: usize, any_case: bool) -> usize {
    let Some(&[b'\'', ref tail @ ..]) = text.as_bytes().get(pos..) else { return 0 };
    let fold = |i: usize| tail.get(i).map_or(0, |b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (fold(0), fold(1)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// End of the white-space word at `pos`: the last blank is left to what follows, unless it is the only one.
fn blanks(text: &str, pos: usize) -> usize {
    let end = skip(text, pos, SPACE);
    if end == text.len() {
        return end;
    }
    let last = text[pos..end].chars().next_back().map_or(0, char::len_utf8);
    if end - last > pos { end - last } else { end }
}

fn gpt2(text: &str, piece: &mut dyn FnMut(&str)) {
    let mut pos = 0;
    while pos < text.len() {
        let start = pos;
        let (c, own) = at(text, pos);
        let shortened = contraction(text, pos, false);
        if shortened > 0 {
            pos += shortened;
        } else {
            let body = pos + usize::from(c == ' ');
            let kind = if c == ' ' { at(text, body).1 } else { own };
            pos = match kind {
                LETTER | NUMBER => skip(text, body, kind),
                0 | SPACE => blanks(text, pos),
                _ => skip(text, body, !(SPACE | LETTER | NUMBER)),
            };
        }
        piece(&text[start..pos]);
    }
}

fn llama3(text: &str, digits: usize, word: u8, piece: &mut dyn FnMut(&str)) {
    let mut pos = 0;
    while pos < text.len() {
        let start = pos;
        pos = llama3_end(text, pos, digits, word);
        piece(&text[start..pos]);
    }
}

/// End of the Llama-3 word that starts at `pos`.
fn llama3_end(text: &str, pos: usize, digits: usize, word: u8) -> usize {
    let (c, own) = at(text, pos);
    let shortened = contraction(text, pos, true);
    if shortened > 0 {
        return pos + shortened;
    }
    let next = pos + c.len_utf8();
    if own == NUMBER {
        return text[pos..].chars().take(digits).take_while(|&c| is_number(c)).map(char::len_utf8).sum::<usize>() + pos;
    }
    if !is_newline(c) && (own & word != 0 || at(text, next).1 & word != 0) {
        return skip(text, next, word);
    }
    let body = pos + usize::from(c == ' ');
    let kind = if c == ' ' { at(text, body).1 } else { own };
    let plain = SPACE | NUMBER | LETTER | word;
    if kind & !plain != 0 {
        let end = skip(text, body, !plain);
        return end + text[end..].bytes().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    }
    let white = &text[pos..skip(text, pos, SPACE)];
    match white.rfind(['\r', '\n']) {
        Some(last) => pos + last + 1,
        None => blanks(text, pos).max(next),
    }
}

fn runs(text: &str, is: fn(char) -> bool, lead: bool, min: usize, max: usize, piece: &mut dyn FnMut(&str)) {
    let mut gap = 0; // start of what no run has claimed yet
    let mut pos = 0;
    while pos < text.len() {
        let (c, own) = at(text, pos);
        let body = if lead && own == SPACE { pos + c.len_utf8() } else { pos };
        let (count, bytes) = text[body..]
            .chars()
            .take(max)
            .take_while(|&c| is(c))
            .fold((0, 0), |(count, bytes), c| (count + 1, bytes + c.len_utf8()));
        if count < min {
            pos += c.len_utf8();
            continue;
        }
        if gap < pos {
            piece(&text[gap..pos]);
        }
        piece(&text[pos..body + bytes]);
        pos = body + bytes;
        gap = pos;
    }
    if gap < pos {
        piece(&text[gap..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        split(by_name(name).unwrap().stages, text, &mut |w| words.push(w.to_owned()));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn gpt2_keeps_one_blank_with_the_word() {
        assert_eq!(cut("gpt-2", "I'm  here, 12 !\n\n"), ["I", "'m", " ", " here", ",", " 12", " !", "\n\n"]);
        assert_eq!(cut("gpt-2", "I'M \u{300}x"), ["I", "'", "M", " \u{300}", "x"]);
        assert_eq!(cut("gpt-2", " "), [" "]);
        assert!(cut("gpt-2", "").is_empty());
    }

    #[test]
    fn llama3_groups_digits_and_newlines() {
        assert_eq!(cut("llama-bpe", "I'M 1234 a.\n\n  b"), ["I", "'M", " ", "123", "4", " a", ".\n\n", " ", " b"]);
        assert_eq!(cut("llama-bpe", " \n x"), [" \n", " x"]);
        assert_eq!(cut("qwen2", "a12"), ["a", "1", "2"]);
        assert_eq!(cut("qwen2", "e\u{301}x"), ["e", "\u{301}x"]);
        assert_eq!(cut("qwen35", "e\u{301}x"), ["e\u{301}x"]);
    }

    #[test]
    fn staged_cuts() {
        assert_eq!(cut("starcoder", "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert_eq!(cut("default", "x12345, y"), ["x", "123", "45", ",", " y"]);
        assert_eq!(
            cut("deepseek-llm", "Hi  there!\n  汉字 12  "),
            ["Hi", " ", " there", "!", "\n", "  ", "汉字", " ", "12", "  "]
        );
    }

    #[test]
    fn unknown_names_are_unknown() {
        assert!(by_name("no-such").is_none());
    }
}
