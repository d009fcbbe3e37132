//! What a vocabulary is made of, before it is built: slices of the file's header.

use super::error::TokenizerError;
use super::pre;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Strings, Value};

/// The vocabulary as the file states it; every count and id in it is a claim.
#[derive(Clone, Copy, Debug, Default)]
pub struct VocabSource<'a> {
    /// `tokenizer.ggml.model`: `llama` (SPM), `gpt2` (byte-level BPE), `gemma4` (BPE over characters), `bert` (WordPiece) or
    /// `t5` (unigram).
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: how byte-level BPE cuts text into words.
    pub pre: Option<&'a str>,
    /// `general.name`; the Phi-3 family strips blanks after its special tokens, and is known by name only.
    pub name: Option<&'a str>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Strings<'a>,
    /// `tokenizer.ggml.scores`, little-endian f32.
    pub scores: Option<&'a [u8]>,
    /// `tokenizer.ggml.token_type`, little-endian i32.
    pub types: Option<&'a [u8]>,
    /// `tokenizer.ggml.merges`.
    pub merges: Option<Strings<'a>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id` (spelt so in the format).
    pub sep: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.fim_pre_token_id`, or `prefix_token_id` of older files.
    pub fim_pre: Option<u32>,
    /// `tokenizer.ggml.fim_suf_token_id`, or `suffix_token_id` of older files.
    pub fim_suf: Option<u32>,
    /// `tokenizer.ggml.fim_mid_token_id`, or `middle_token_id` of older files.
    pub fim_mid: Option<u32>,
    /// `tokenizer.ggml.fim_pad_token_id`.
    pub fim_pad: Option<u32>,
    /// `tokenizer.ggml.fim_rep_token_id`.
    pub fim_rep: Option<u32>,
    /// `tokenizer.ggml.fim_sep_token_id`.
    pub fim_sep: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_sep_token`.
    pub add_sep: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.normalizer.lowercase`.
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`.
    pub strip_accents: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`.
    pub charsmap: Option<&'a [u8]>,
}

/// Keys that name a special token.
const ID_KEYS: [&str; 16] = [
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "seperator_token_id",
    "padding_token_id",
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "prefix_token_id",
    "suffix_token_id",
    "middle_token_id",
];

/// The id that a key states; converters write -1 where there is no such token.
fn stated_id(metadata: &Metadata<'_>, key: &str) -> Result<Option<u64>> {
    let none = |id: i128| id == -1 || id == i128::from(u32::MAX);
    match metadata.get(key).and_then(|value| value.as_integer()) {
        Some(id) if none(id) => Ok(None),
        _ => Ok(metadata.u64(key)?),
    }
}

/// What is said about special tokens that lie outside of the vocabulary, and that are left out for it.
pub fn stray_ids(metadata: &Metadata<'_>) -> Vec<String> {
    let Ok(Some(tokens)) = metadata.strings("tokenizer.ggml.tokens") else { return Vec::new() };
    let stray = |name: &&str| {
        let id = stated_id(metadata, &format!("tokenizer.ggml.{name}")).ok()??;
        let n_tokens = tokens.len();
        let text = || {
            format!("`tokenizer.ggml.{name}` is {id}, and there are {n_tokens} tokens: the file counts as having none")
        };
        (id >= n_tokens as u64).then(text)
    };
    ID_KEYS.iter().filter_map(stray).collect()
}

/// The bytes of the table by which texts are normalised.
fn charsmap<'a>(metadata: &Metadata<'a>) -> Option<&'a [u8]> {
    match metadata.get("tokenizer.ggml.precompiled_charsmap") {
        Some(Value::Array(array)) if array.element_type().fixed_bytes() == Some(1) => Some(array.bytes()),
        _ => None,
    }
}

/// The vocabulary of a model file; ids of special tokens that are not in it are left out; `pre` replaces the file's pre-tokenizer.
///
/// # Errors
/// If the file has no vocabulary, or a key of it has the wrong type; a usage error if `pre` is not known or the
/// vocabulary has no pre-tokenizer.
pub fn source_from<'a>(metadata: &Metadata<'a>, pre: Option<&'a str>) -> Result<VocabSource<'a>> {
    let missing = |key| Error::from(TokenizerError::Missing(key));
    let tokens = metadata.strings("tokenizer.ggml.tokens")?.ok_or(missing("tokenizer.ggml.tokens"))?;
    let id = |key: &str| match stated_id(metadata, key)? {
        Some(id) if id < tokens.len() as u64 => Ok::<_, Error>(Some(id as u32)),
        _ => Ok(None),
    };
    let model = metadata.str("tokenizer.ggml.model")?.ok_or(missing("tokenizer.ggml.model"))?;
    match pre {
        Some(name) if model != "gpt2" => {
            let why = format!("--pre {name}: the vocabulary is {model:?}, which has no pre-tokenizer; leave --pre out");
            return Err(Error::usage(why));
        }
        Some(name) if pre::by_name(name).is_none() => {
            let known = pre::list();
            return Err(Error::usage(format!("--pre {name}: no pre-tokenizer has this name; there are {known}")));
        }
        _ => {}
    }
    Ok(VocabSource {
        model,
        pre: if pre.is_some() { pre } else { metadata.str("tokenizer.ggml.pre")? },
        name: metadata.str("general.name").unwrap_or(None),
        tokens,
        scores: metadata.f32s("tokenizer.ggml.scores")?.map(|scores| scores.bytes()),
        types: metadata.i32s("tokenizer.ggml.token_type")?.map(|types| types.bytes()),
        merges: metadata.strings("tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        eot: id("tokenizer.ggml.eot_token_id")?,
        eom: id("tokenizer.ggml.eom_token_id")?,
        unk: id("tokenizer.ggml.unknown_token_id")?,
        sep: id("tokenizer.ggml.seperator_token_id")?,
        pad: id("tokenizer.ggml.padding_token_id")?,
        fim_pre: id("tokenizer.ggml.fim_pre_token_id")?.or(id("tokenizer.ggml.prefix_token_id")?),
        fim_suf: id("tokenizer.ggml.fim_suf_token_id")?.or(id("tokenizer.ggml.suffix_token_id")?),
        fim_mid: id("tokenizer.ggml.fim_mid_token_id")?.or(id("tokenizer.ggml.middle_token_id")?),
        fim_pad: id("tokenizer.ggml.fim_pad_token_id")?,
        fim_rep: id("tokenizer.ggml.fim_rep_token_id")?,
        fim_sep: id("tokenizer.ggml.fim_sep_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_sep: metadata.bool("tokenizer.ggml.add_sep_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        remove_extra_whitespaces: metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?,
        lowercase: metadata.bool("tokenizer.ggml.normalizer.lowercase")?,
        strip_accents: metadata.bool("tokenizer.ggml.normalizer.strip_accents")?,
        charsmap: charsmap(metadata),
    })
}
