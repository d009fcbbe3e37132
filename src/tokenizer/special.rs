//! Special tokens: which texts mean the end, and how special texts are cut out before the rest is encoded.

use std::collections::BTreeMap;

use super::source::VocabSource;
use super::table::{NONE, Table, attr};

/// Texts that end generation in every vocabulary that has them (llama.cpp `llama-vocab.cpp`, special_eog_ids).
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Fill-in-the-middle texts, by role; each becomes a control token, the last three roles also end generation.
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPO: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_SEP: &[&str] = &["<|file_sep|>"];
/// gpt-oss's channel marks: matched always, shown always.
const CHANNELS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Tokens with one of these attributes are cut out of the text.
const SPECIAL: u16 = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;

/// Attributes while they are being settled.
struct Attrs<'t> {
    table: &'t Table<'t>,
    changes: &'t mut BTreeMap<u32, u16>,
}

impl Attrs<'_> {
    fn get(&self, id: u32) -> u16 {
        self.changes.get(&id).copied().unwrap_or(self.table.attrs(id))
    }

    fn set(&mut self, id: u32, value: u16) {
        if id < self.table.n_tokens() {
            self.changes.insert(id, value);
        }
    }

    fn add(&mut self, id: u32, bits: u16) {
        self.set(id, self.get(id) | bits);
    }

    fn find(&self, text: &str) -> Option<u32> {
        Some(self.table.find(text.as_bytes())).filter(|&id| id != NONE)
    }

    fn ends(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|&id| self.get(id) & attr::END != 0)
    }
}

/// Settles attributes that the file leaves to the loader: which tokens are control tokens in spite of their type, and
/// which end generation.
pub fn settle(source: &VocabSource, eos: Option<u32>, table: &Table<'_>, changes: &mut BTreeMap<u32, u16>) {
    let mut attrs = Attrs { table, changes };
    let roles = [
        (FIM_PREFIX, source.fim_pre, false),
        (FIM_SUFFIX, source.fim_suf, false),
        (FIM_MIDDLE, source.fim_mid, false),
        (FIM_PAD, source.fim_pad, true),
        (FIM_REPO, source.fim_rep, true),
        (FIM_SEP, source.fim_sep, true),
    ];
    for (texts, stated, ends) in roles {
        let named = texts.iter().find_map(|text| attrs.find(text));
        if let (None, Some(id)) = (stated, named) {
            attrs.add(id, attr::CONTROL);
        }
        if let (true, Some(id)) = (ends, stated.or(named)) {
            attrs.add(id, attr::END);
        }
    }
    for id in ENDS.iter().filter_map(|text| attrs.find(text)).collect::<Vec<_>>() {
        attrs.add(id, attr::CONTROL | attr::END);
    }
    for id in CHANNELS.iter().filter_map(|text| attrs.find(text)).collect::<Vec<_>>() {
        attrs.set(id, attr::USER_DEFINED | (attrs.get(id) & attr::END));
    }
    for id in [eos, source.eot, source.eom].into_iter().flatten() {
        attrs.add(id, attr::END);
    }
    // Harmony-style vocabularies end a message with `<|end|>` and a turn with another token.
    let has_call = attrs.ends("<|call|>").is_some() || attrs.ends("<|calls|>").is_some();
    let has_turn_end = attrs.ends("<|return|>").is_some() || attrs.ends("<|flush|>").is_some();
    if let (true, Some(id)) = (has_call && has_turn_end, attrs.ends("<|end|>")) {
        attrs.set(id, attr::USER_DEFINED);
    }
    // Where `<|tool_response>` ends the turn, `</s>` is HTML.
    if let (Some(_), Some(id)) = (attrs.ends("<|tool_response>"), attrs.ends("</s>")) {
        attrs.set(id, attr::NORMAL);
    }
    let name = source.name.unwrap_or("").to_ascii_lowercase();
    if name.contains("phi-3") || name.contains("phi3") {
        strip_after_specials(&mut attrs);
    }
}

/// Phi-3 drops white space after its special tokens, except after the three it shares with Llama 2.
fn strip_after_specials(attrs: &mut Attrs<'_>) {
    for id in 0..attrs.table.n_tokens() {
        if attrs.get(id) & SPECIAL != 0 || attrs.table.text(id) == b"</s>" {
            attrs.add(id, attr::RSTRIP);
        }
    }
    for id in ["<unk>", "<s>", "<|endoftext|>"].iter().filter_map(|text| attrs.find(text)).collect::<Vec<_>>() {
        attrs.set(id, attrs.get(id) & !attr::RSTRIP);
    }
}

/// A piece of text between special tokens, or one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment<'t> {
    /// Text to encode.
    Text(&'t str),
    /// A special token.
    Token(u32),
}

/// The special tokens of a vocabulary, ready to be looked for.
#[derive(Debug)]
pub struct Specials {
    /// Longest text first, then by id.
    ids: Vec<u32>,
    /// The distinct lengths of their texts in bytes.
    lengths: Vec<usize>,
    /// First bytes of their texts.
    first: [bool; 256],
}

impl Specials {
    /// Collects the special tokens.
    pub fn new(table: &Table<'_>) -> Self {
        // What is left of all lengths, then the id: one number, for a sort of numbers is less code.
        let mut keys: Vec<u64> = (0..table.n_tokens())
            .filter(|&id| table.attrs(id) & SPECIAL != 0 && std::str::from_utf8(table.text(id)).is_ok())
            .map(|id| u64::from(u32::MAX - table.text(id).len() as u32) << 32 | u64::from(id))
            .collect();
        keys.sort_unstable();
        let ids: Vec<u32> = keys.iter().map(|&key| key as u32).collect();
        let mut lengths: Vec<usize> = ids.iter().map(|&id| table.text(id).len()).collect();
        lengths.dedup();
        lengths.shrink_to_fit();
        let mut first = [false; 256];
        for &id in &ids {
            first[table.text(id)[0] as usize] = true;
        }
        Specials { ids, lengths, first }
    }

    /// Cuts `text` at special tokens; control and unknown tokens count only with `parse_special`.
    ///
    /// Longer texts are cut out first, everywhere, before shorter ones are looked for in what is left.
    pub fn partition<'t>(&self, table: &Table<'_>, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        if text.is_empty() {
            return fragments;
        }
        fragments.push(Fragment::Text(text));
        for id in self.present(table, text, parse_special) {
            let mark = std::str::from_utf8(table.text(id)).expect("checked when collected");
            let rstrip = table.attrs(id) & attr::RSTRIP != 0;
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => cut(text, mark, id, rstrip, &mut next),
                    token => next.push(token),
                }
            }
            fragments = next;
        }
        fragments
    }

    /// The special tokens that occur in `text`, in order of priority: one scan, so that a vocabulary with thousands of
    /// special tokens costs no more than one with two.
    fn present(&self, table: &Table<'_>, text: &str, parse_special: bool) -> Vec<u32> {
        let skipped = if parse_special { 0 } else { attr::CONTROL | attr::UNKNOWN };
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        for (pos, _) in bytes.iter().enumerate().filter(|(_, byte)| self.first[**byte as usize]) {
            for length in &self.lengths {
                let Some(candidate) = bytes.get(pos..pos + length) else { continue };
                let id = table.find(candidate);
                let attrs = table.attrs(id);
                if attrs & SPECIAL != 0 && attrs & skipped == 0 && !found.contains(&id) {
                    found.push(id);
                }
            }
        }
        if found.is_empty() { found } else { self.ids.iter().copied().filter(|id| found.contains(id)).collect() }
    }
}

fn cut<'t>(mut text: &'t str, mark: &str, id: u32, rstrip: bool, out: &mut Vec<Fragment<'t>>) {
    while let Some((before, after)) = text.split_once(mark) {
        if !before.is_empty() {
            out.push(Fragment::Text(before));
        }
        out.push(Fragment::Token(id));
        // isspace() of the C locale.
        text = if rstrip { after.trim_start_matches(['\t', '\n', '\x0b', '\x0c', '\r', ' ']) } else { after };
    }
    if !text.is_empty() {
        out.push(Fragment::Text(text));
    }
}
