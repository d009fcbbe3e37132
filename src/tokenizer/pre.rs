//! Pre-tokenizers of BPE: they cut text into the words inside which merges happen.
//!
//! Each is a list of stages; a stage cuts every piece that the stage before it left, and a piece never sees what
//! follows it. The expressions are those of the models' `tokenizer.json` as llama.cpp reads them for the same
//! `tokenizer.ggml.pre` (`llama-vocab.cpp`): it knows categories as a whole, so `\p{Lu}` is `[\p{L}&&[^a-z]]` to it.

use super::pattern::Pattern;
use super::unicode::{NUMBER, SPACE, class};

/// How a vocabulary wants its text cut, and what follows from its name.
#[derive(Clone, Copy, Debug)]
pub struct Pre {
    /// `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    stages: &'static [Stage],
    /// A word that is a token as a whole is taken as it is, merges or not.
    pub ignore_merges: bool,
    /// BOS is put in front unless the file says otherwise.
    pub add_bos: bool,
}

/// One cut of every piece.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Matches, and what lies between them.
    Cut(&'static str),
    /// White space at the end of the piece: `\s+$`, of which a search would try every blank.
    TrailingSpace,
    /// Numbers in threes, counted from their end; what lies before a number goes with its first digits.
    Thousands,
    /// The same of ASCII digits alone: what llama.cpp makes of `\d{1,3}(?=(?:\d{3})*\b)`.
    AsciiThousands,
}

use Stage::{AsciiThousands, Cut, Thousands, TrailingSpace};

const GPT2: Stage = Cut(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+");
const LLAMA3: Stage = Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN2: Stage = Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN35: Stage = Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: Stage = Cut(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: Stage = Cut(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const DEEPSEEK3: [Stage; 3] = [
    Cut(r"\p{N}{1,3}"),
    Cut(r"[一-龥぀-ゟ゠-ヿ]+"),
    Cut(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    ),
];
const DEEPSEEK_LLM: &[Stage] = &[
    Cut(r"[\r\n]"),
    Cut(
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    ),
    Cut(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
    TrailingSpace,
    Cut(r"[一-龥ࠀ-一가-퟿]+"),
    Cut(r"\p{N}+"),
];
const DEEPSEEK_CODER: &[Stage] =
    &[Cut(r"[\r\n]"), Cut(r"\s?\p{L}+"), Cut(r"\s?\p{P}+"), Cut(r"[一-龥ࠀ-一가-퟿]+"), Cut(r"\p{N}")];
/// A run of blanks of which each cut takes the largest power of two that fits.
const JAIS2: Stage = Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
);
const YOUTU: &[Stage] = &[
    Cut(r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"),
    Cut(
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
/// Kimi K2: Chinese characters apart from other letters.
const KIMI_K2: Stage = Cut(
    r"[一-\u{9fff}㐀-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{2ceb0}-\u{2ebef}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^一-\u{9fff}㐀-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{2ceb0}-\u{2ebef}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const EXAONE_MOE: Stage = Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
);
const AFMOE: &[Stage] =
    &[Thousands, Cut(r"[一-鿿㐀-䶿\u{f900}-\u{faff}぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"), DEEPSEEK3[2]];
const TINY_AYA: &[Stage] = &[
    AsciiThousands,
    Cut(
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
const SENTENCE_MARKS: Stage = Cut(r" ?[^(\s|.,!?…。，、।۔،)]+");
/// Gemma 4 merges across blanks, but not across the ends of lines.
const LINES: Stage = Cut(r"[^\n]+|[\n]+");

const fn pre(names: &'static [&'static str], stages: &'static [Stage]) -> Pre {
    Pre { names, stages, ignore_merges: false, add_bos: false }
}

/// A pre-tokenizer whose vocabulary has tokens that no merge leads to.
const fn whole_words(names: &'static [&'static str], stages: &'static [Stage], add_bos: bool) -> Pre {
    Pre { names, stages, ignore_merges: true, add_bos }
}

const ALL: &[Pre] = &[
    pre(&["default", ""], &[Cut(r"[\p{P}$+<=>\^~|]+"), GPT2, Cut(r"\p{N}+"), Cut(r"[0-9][0-9][0-9]")]),
    pre(
        &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    whole_words(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[LLAMA3],
        true,
    ),
    whole_words(&["glm4", "glm5"], &[LLAMA3], false),
    pre(&["chatglm-bpe", "dbrx", "smaug-bpe"], &[LLAMA3]),
    pre(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
            "f2llmv2",
        ],
        &[QWEN2],
    ),
    pre(&["qwen35"], &[QWEN35]),
    pre(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    whole_words(&["tekken"], &[TEKKEN], true),
    pre(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Cut(r"\p{N}"), GPT2],
    ),
    pre(&["falcon"], &[Cut(r"[\p{P}$+<=>\^~|`]+"), GPT2, Cut(r"[0-9][0-9][0-9]")]),
    pre(&["deepseek-llm"], DEEPSEEK_LLM),
    pre(&["deepseek-coder"], DEEPSEEK_CODER),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &DEEPSEEK3),
    pre(
        &["spark2_5"],
        &[
            DEEPSEEK3[0],
            DEEPSEEK3[1],
            Cut(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            ),
            Cut(r"\p{N}"),
        ],
    ),
    whole_words(&["youtu"], YOUTU, false),
    pre(&["kimi-k2"], &[KIMI_K2]),
    pre(&["exaone-moe"], &[EXAONE_MOE]),
    pre(&["afmoe"], AFMOE),
    pre(&["tiny_aya", "cohere2moe"], TINY_AYA),
    pre(&["jais-2"], &[JAIS2]),
    pre(
        &["seed-coder"],
        &[Cut(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    ),
    pre(&["ufakzeka"], &[Cut(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")]),
    pre(&["laguna"], &[LINES, QWEN2]),
    whole_words(
        &["minicpm5"],
        &[
            Cut(r"\p{N}{1,3}"),
            Cut(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        false,
    ),
    pre(&["poro-chat", "bloom", "gpt3-finnish"], &[SENTENCE_MARKS]),
    pre(&["viking"], &[SENTENCE_MARKS, Cut(r"\p{N}")]),
];

/// What `tokenizer.ggml.model = "gemma4"` cuts by; such files name no pre-tokenizer.
pub const GEMMA4: Pre = Pre { names: &[], stages: &[LINES], ignore_merges: false, add_bos: true };

/// The pre-tokenizer of a `tokenizer.ggml.pre` name; `None` if brim does not know it. No name means `default`.
pub fn by_name(name: &str) -> Option<Pre> {
    ALL.iter().copied().find(|pre| pre.names.contains(&name))
}

/// The names that [`by_name`] knows.
fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().flat_map(|pre| pre.names).copied().filter(|name| !name.is_empty())
}

/// The names that [`by_name`] knows, as a sentence has them.
pub fn list() -> String {
    names().collect::<Vec<_>>().join(", ")
}

/// The stages of a [`Pre`], compiled.
#[derive(Debug)]
pub struct Splitter {
    stages: Vec<Compiled>,
}

#[derive(Debug)]
enum Compiled {
    Cut(Box<Pattern>),
    TrailingSpace,
    Thousands,
    AsciiThousands,
}

impl Splitter {
    /// Compiles the stages.
    pub fn new(pre: Pre) -> Self {
        let compiled = pre.stages.iter().map(|stage| match stage {
            Cut(expression) => Compiled::Cut(Box::new(Pattern::compile(expression))),
            TrailingSpace => Compiled::TrailingSpace,
            Thousands => Compiled::Thousands,
            AsciiThousands => Compiled::AsciiThousands,
        });
        Splitter { stages: compiled.collect() }
    }

    /// Cuts `text` by all stages and hands over the words in order; together they are `text`.
    pub fn split(&self, text: &str, word: &mut dyn FnMut(&str)) {
        split(&self.stages, text, word);
    }
}

fn split(stages: &[Compiled], text: &str, word: &mut dyn FnMut(&str)) {
    let Some((stage, rest)) = stages.split_first() else {
        return word(text);
    };
    let mut piece = |piece: &str| match rest {
        [] => word(piece),
        rest => split(rest, piece, word),
    };
    match stage {
        Compiled::Cut(pattern) => pattern.split(text, &mut piece),
        Compiled::Thousands => thousands(text, |c| class(c) & NUMBER != 0, &mut piece),
        Compiled::AsciiThousands => thousands(text, |c| c.is_ascii_digit(), &mut piece),
        Compiled::TrailingSpace => {
            let body = text.trim_end_matches(|c| class(c) == SPACE);
            for part in [body, &text[body.len()..]] {
                if !part.is_empty() {
                    piece(part);
                }
            }
        }
    }
}

/// Cuts off the first one or two digits of a number with what lies before it, then threes.
fn thousands(text: &str, is_number: fn(char) -> bool, piece: &mut dyn FnMut(&str)) {
    let mut begun = 0;
    let mut chars = text.char_indices().peekable();
    while let Some(&(at, c)) = chars.peek() {
        if !is_number(c) {
            chars.next();
            continue;
        }
        let n = text[at..].chars().take_while(|&c| is_number(c)).count();
        for digit in 0..n {
            if digit > 0 && digit % 3 == n % 3 {
                let at = chars.peek().map_or(text.len(), |&(at, _)| at);
                piece(&text[begun..at]);
                begun = at;
            }
            chars.next();
        }
        let end = chars.peek().map_or(text.len(), |&(at, _)| at);
        piece(&text[begun..end]);
        begun = end;
    }
    if begun < text.len() {
        piece(&text[begun..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Splitter::new(by_name(name).unwrap()).split(text, &mut |w| words.push(w.to_owned()));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn every_expression_compiles_and_every_name_is_there_once() {
        let mut seen = std::collections::BTreeSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name} twice");
            assert!(cut(name, "").is_empty());
            assert!(cut(name, "It's 12345 a\u{301}汉字 !?\r\n\n  x  ").len() > 3, "{name}");
        }
        assert!(by_name("no-such").is_none());
        assert_eq!(by_name("").unwrap().names[0], "default");
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
    fn cased_words() {
        assert_eq!(cut("gpt-4o", "HTTPServer's ÄÖx"), ["HTTPServer's", " ÄÖx"]);
        assert_eq!(cut("tekken", "camelCase it's 12"), ["camel", "Case", " it", "'s", " ", "1", "2"]);
    }

    #[test]
    fn staged_cuts() {
        assert_eq!(cut("starcoder", "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert_eq!(cut("tiny_aya", "x1234  12345a"), ["x", "1", "234", " ", " ", "12", "345", "a"]);
        assert_eq!(cut("default", "x12345, y"), ["x", "123", "45", ",", " y"]);
        assert_eq!(
            cut("deepseek-llm", "Hi  there!\n  汉字 12  "),
            ["Hi", " ", " there", "!", "\n", "  ", "汉字", " ", "12", "  "]
        );
        assert_eq!(cut("deepseek-v3", "1234.com .a かな"), ["123", "4", ".com", " .", "a", " ", "かな"]);
    }
}
