//! The tokens that models made for it know a gap in a text by.

use crate::tokenizer::Tokenizer;

/// The tokens around what is before and behind a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fim {
    /// Before the text before the gap.
    pub prefix: u32,
    /// Before the text behind it.
    pub suffix: u32,
    /// Before what fills it.
    pub middle: u32,
    /// Before the name of a repository.
    pub repository: Option<u32>,
    /// Before that of a file.
    pub file: Option<u32>,
}

/// What a token is called in model files: its keys, and its texts where none of them is there.
struct Names {
    keys: &'static [&'static str],
    texts: &'static [&'static str],
}

const PREFIX: Names = Names {
    keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
    texts: &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"],
};
const SUFFIX: Names = Names {
    keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
    texts: &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"],
};
const MIDDLE: Names = Names {
    keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
    texts: &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"],
};
const REPOSITORY: Names = Names {
    keys: &["tokenizer.ggml.fim_rep_token_id"],
    texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"],
};
const FILE: Names = Names { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>", "<file_sep>"] };

impl Fim {
    /// The keys of model files that may name one.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        [PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE].into_iter().flat_map(|names| names.keys.iter().copied())
    }

    /// Those of a model whose file has these numbers; `None` where one of the three that are needed is missing.
    pub fn find(number: impl Fn(&str) -> Option<u32>, tokenizer: &Tokenizer<'_>) -> Option<Fim> {
        let find = |names: &Names| {
            let by_key = names.keys.iter().find_map(|key| number(key)).filter(|&id| id < tokenizer.n_tokens());
            by_key.or_else(|| names.texts.iter().find_map(|text| tokenizer.find(text)))
        };
        Some(Fim {
            prefix: find(&PREFIX)?,
            suffix: find(&SUFFIX)?,
            middle: find(&MIDDLE)?,
            repository: find(&REPOSITORY),
            file: find(&FILE),
        })
    }
}
