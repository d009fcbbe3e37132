//! What a vocabulary is made of, before it is built: slices of the file's header.

use super::error::TokenizerError;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Strings};

/// The vocabulary as the file states it; every count and id in it is a claim.
#[derive(Clone, Copy, Debug, Default)]
pub struct VocabSource<'a> {
    /// `tokenizer.ggml.model`: `llama` (SPM) or `gpt2` (byte-level BPE).
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
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
}

/// The vocabulary of a model file.
///
/// # Errors
/// If the file has no vocabulary, or a key of it has the wrong type.
pub fn source_from<'a>(metadata: &Metadata<'a>) -> Result<VocabSource<'a>> {
    let missing = |key| Error::from(TokenizerError::Missing(key));
    // Converters write -1 where there is no such token.
    let id = |key: &str| metadata.u32(key).map(|id| id.filter(|&id| id != u32::MAX));
    Ok(VocabSource {
        model: metadata.str("tokenizer.ggml.model")?.ok_or(missing("tokenizer.ggml.model"))?,
        pre: metadata.str("tokenizer.ggml.pre")?,
        name: metadata.str("general.name").unwrap_or(None),
        tokens: metadata.strings("tokenizer.ggml.tokens")?.ok_or(missing("tokenizer.ggml.tokens"))?,
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
        fim_pad: id("tokenizer.ggml.fim_pad_token_id")?,
        fim_rep: id("tokenizer.ggml.fim_rep_token_id")?,
        fim_sep: id("tokenizer.ggml.fim_sep_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
    })
}
