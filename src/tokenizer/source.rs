//! What a vocabulary is made of, before it is built: slices of the file's header.

use crate::gguf::Strings;

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
