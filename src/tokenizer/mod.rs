//! Text to token ids and back: SPM, byte-level BPE, WordPiece and unigram. Slices in, slices out.
//!
//! The vocabulary lives in one region of bytes that the caller provides ([`region_bytes`] says how many), so that it
//! can sit in huge pages; once built, the file's header is no longer needed. Ids equal those of llama.cpp.

mod bpe;
mod bytelevel;
mod charsmap;
mod decode;
mod decompositions;
mod error;
mod pattern;
mod pre;
mod source;
mod special;
mod spm;
mod table;
mod unicode;
mod unigram;
mod wordpiece;

pub use decode::Decoder;
pub use error::{Named, TokenizerError};
pub use source::{VocabSource, source_from, stray_ids};

use bpe::Units;
use pre::Splitter;
use special::{Fragment, Specials};
use table::{NONE, Table, attr};
use unigram::Unigram;
use wordpiece::Words;

/// Longest text encoded in one call: positions are u32, and escaping blanks can triple the length.
pub const TEXT_BYTES_MAX: usize = 1 << 30;

#[derive(Debug)]
enum Kind {
    Spm { add_space_prefix: bool },
    Bpe { splitter: Splitter, units: Units },
    Words(Words),
    Unigram(Unigram),
}

/// A vocabulary ready for use. The tables are in the region it was built over.
#[derive(Debug)]
pub struct Tokenizer<'m> {
    kind: Kind,
    table: Table<'m>,
    specials: Specials,
    byte_tokens: [u32; 256],
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    sep: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_sep: bool,
}

/// Bytes of the region that [`build`] fills, from the header's counts alone.
///
/// # Errors
/// If the kind of vocabulary is unknown, it has no tokens, or more than ids and offsets can express.
pub fn region_bytes(source: &VocabSource) -> Result<u64, TokenizerError> {
    kind_of(source)?;
    table::region_bytes(source)
}

/// How the vocabulary encodes, and whether BOS is put in front of a prompt.
fn kind_of(source: &VocabSource) -> Result<(Kind, bool), TokenizerError> {
    let (kind, add_bos) = match source.model {
        "llama" => {
            (Kind::Spm { add_space_prefix: source.add_space_prefix.unwrap_or(true) }, source.add_bos.unwrap_or(true))
        }
        "gpt2" => {
            let name = source.pre.unwrap_or("");
            let pre = pre::by_name(name).ok_or_else(|| TokenizerError::UnknownPre(Named::new(name)))?;
            let units = Units::Bytes { ignore_merges: pre.ignore_merges };
            (Kind::Bpe { splitter: Splitter::new(pre), units }, source.add_bos.unwrap_or(pre.add_bos))
        }
        // Files that say not to put BOS in front are wrong (llama.cpp overrides them, too).
        "gemma4" => (Kind::Bpe { splitter: Splitter::new(pre::GEMMA4), units: Units::Characters }, true),
        "bert" => {
            let lowercase = source.lowercase.unwrap_or(true);
            let strip_accents = source.strip_accents.unwrap_or(lowercase);
            (Kind::Words(Words { lowercase, strip_accents }), true)
        }
        "t5" => {
            let unigram = Unigram {
                add_space_prefix: source.add_space_prefix.unwrap_or(false),
                merge_spaces: source.remove_extra_whitespaces.unwrap_or(false),
                blank_is_suffix: false,
                escape_blanks: true,
                unknown_score: 0.0,
            };
            (Kind::Unigram(unigram), source.add_bos.unwrap_or(false))
        }
        other => return Err(TokenizerError::UnknownModel(Named::new(other))),
    };
    match (&kind, source.merges) {
        (Kind::Bpe { .. }, None) => Err(TokenizerError::Missing("tokenizer.ggml.merges")),
        _ => Ok((kind, add_bos)),
    }
}

/// Builds the vocabulary into `region`, which holds at least [`region_bytes`] bytes.
///
/// # Errors
/// If the kind of vocabulary is unknown, its parts contradict each other or the region is too small.
pub fn build<'m>(source: &VocabSource, region: &'m mut [u8]) -> Result<Tokenizer<'m>, TokenizerError> {
    let n_tokens = u32::try_from(source.tokens.len()).unwrap_or(u32::MAX);
    let in_range = |what, id: Option<u32>| match id {
        Some(id) if id >= n_tokens => Err(TokenizerError::IdOutOfRange { what, id, n_tokens }),
        id => Ok(id),
    };
    // Some vocabularies have had these at the same place from the start; files may leave them out (llama.cpp's numbers).
    let [bos, eos, unk, sep] = match source.model {
        "llama" => [Some(1), Some(2), Some(0), None],
        "bert" => [Some(101), None, Some(100), Some(102)],
        "t5" => [None, Some(1), Some(2), None],
        _ => [None; 4],
    };
    let by_default = |id: Option<u32>| id.filter(|&id| id < n_tokens);
    let bos = in_range("tokenizer.ggml.bos_token_id", source.bos)?.or(by_default(bos));
    let eos = in_range("tokenizer.ggml.eos_token_id", source.eos)?.or(by_default(eos));
    let unk = in_range("tokenizer.ggml.unknown_token_id", source.unk)?.or(by_default(unk));
    let sep = in_range("tokenizer.ggml.seperator_token_id", source.sep)?.or(by_default(sep));
    let eot = in_range("tokenizer.ggml.eot_token_id", source.eot)?;
    let pad = in_range("tokenizer.ggml.padding_token_id", source.pad)?;
    in_range("tokenizer.ggml.eom_token_id", source.eom)?;

    let (mut kind, add_bos) = kind_of(source)?;
    let table = Table::build(source, region, |table, changes| special::settle(source, eos, table, changes))?;
    if let Kind::Unigram(unigram) = &mut kind {
        unigram.unknown_score = unigram::unknown_score(&table);
    }
    let byte_tokens = match kind {
        Kind::Words(_) | Kind::Unigram(_) => [NONE; 256],
        Kind::Spm { .. } => spm::byte_tokens(&table, unk),
        Kind::Bpe { units: Units::Characters, .. } => spm::byte_tokens(&table, None),
        Kind::Bpe { .. } => bpe::byte_tokens(&table),
    };
    Ok(Tokenizer {
        kind,
        specials: Specials::new(&table),
        table,
        byte_tokens,
        bos,
        eos,
        eot,
        unk,
        pad,
        sep,
        add_bos: add_bos && bos.is_some(),
        add_eos: source.add_eos.unwrap_or(source.model == "t5") && eos.is_some(),
        add_sep: source.add_sep.unwrap_or(source.model == "bert") && sep.is_some(),
    })
}

/// Where the text of a prompt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// A chat template has written it, or whoever knows the model's marks: control tokens in it are meant, BOS may be among
    /// them.
    Chat,
    /// It is text and nothing else.
    Raw,
}

impl<'m> Tokenizer<'m> {
    /// Appends the ids of `text` to `out`; puts neither BOS in front nor EOS behind. Control tokens in the text are
    /// recognised with `parse_special` only; user-defined tokens always.
    ///
    /// # Panics
    /// If `text` is longer than [`TEXT_BYTES_MAX`].
    pub fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) {
        assert!(text.len() <= TEXT_BYTES_MAX, "{} bytes of text in one call", text.len());
        let fragments = self.specials.partition(&self.table, text, parse_special);
        match &self.kind {
            Kind::Spm { add_space_prefix } => self.encode_spm(&fragments, *add_space_prefix, out),
            Kind::Bpe { splitter, units } => self.encode_bpe(&fragments, splitter, *units, out),
            Kind::Words(words) => {
                each_text(&fragments, out, |text, out| words.encode(&self.table, self.unk, text, out))
            }
            Kind::Unigram(unigram) => {
                let unk = self.unk.unwrap_or_default();
                each_text(&fragments, out, |text, out| unigram.encode(&self.table, unk, text, out));
            }
        }
    }

    fn encode_spm(&self, fragments: &[Fragment<'_>], add_space_prefix: bool, out: &mut Vec<u32>) {
        let mut after_special = true;
        let mut escaped = String::new();
        for fragment in fragments {
            match *fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => {
                    escaped.clear();
                    if add_space_prefix && after_special {
                        escaped.push_str(spm::BLANK);
                    }
                    escape(text, &mut escaped);
                    spm::encode(&self.table, &self.byte_tokens, &escaped, out);
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
    }

    fn encode_bpe(&self, fragments: &[Fragment<'_>], splitter: &Splitter, units: Units, out: &mut Vec<u32>) {
        let mut scratch = bpe::Scratch::default();
        let mut escaped = String::new();
        for fragment in fragments {
            match *fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(mut text) => {
                    if units == Units::Characters {
                        escaped.clear();
                        escape(text, &mut escaped);
                        text = &escaped;
                    }
                    splitter.split(text, &mut |word| {
                        bpe::encode_word(&self.table, &self.byte_tokens, units, word, &mut scratch, out);
                    });
                }
            }
        }
    }

    /// Appends the bytes `id` stands for to `out`; control and unknown tokens are nothing unless `special`. Nothing for
    /// an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32, special: bool, out: &mut Vec<u8>) {
        let text = self.table.text(id);
        let attrs = self.table.attrs(id);
        if attrs & (attr::CONTROL | attr::UNKNOWN) != 0 {
            if special {
                out.extend_from_slice(text);
            }
        } else if attrs & attr::USER_DEFINED != 0 {
            out.extend_from_slice(text);
        } else if attrs & attr::BYTE != 0 {
            out.extend(hex_byte(text));
        } else if attrs & attr::NORMAL != 0 {
            match self.kind {
                Kind::Bpe { units: Units::Bytes { .. }, .. } => byte_level(text, out),
                _ => unescape(text, out),
            }
        }
    }

    /// How many tokens the vocabulary has.
    pub fn n_tokens(&self) -> u32 {
        self.table.n_tokens()
    }

    /// The token with exactly this text, as the file writes it.
    pub fn find(&self, text: &str) -> Option<u32> {
        Some(self.table.find(text.as_bytes())).filter(|&id| id != NONE)
    }

    /// Appends the tokens of a whole prompt: BOS where the model's prompts start with one, then the text.
    pub fn encode_prompt(&self, text: &str, form: PromptForm, out: &mut Vec<u32>) {
        let first = out.len();
        let bos = self.bos.filter(|_| self.add_bos);
        out.extend(bos);
        let start = out.len();
        self.encode(text, form == PromptForm::Chat, out);
        // Templates may write it themselves.
        if form == PromptForm::Chat && bos.is_some() && out.get(start) == bos.as_ref() {
            out.remove(first);
        }
    }

    /// Appends the tokens of a whole text: what the vocabulary puts in front of one and behind it, and the text, in which
    /// control tokens are recognised.
    pub fn encode_whole(&self, text: &str, out: &mut Vec<u32>) {
        out.extend(self.bos.filter(|_| self.add_bos));
        self.encode(text, true, out);
        out.extend(self.eos.filter(|_| self.add_eos));
        out.extend(self.sep.filter(|_| matches!(self.kind, Kind::Words(_))));
    }

    /// Appends the tokens of two texts as one input, which a model without a template for it ranks: those that end or part
    /// texts behind the first, those that end them behind the second (llama.cpp's `format_prompt_rerank`).
    pub fn encode_pair(&self, first: &str, second: &str, out: &mut Vec<u32>) {
        let end = self.eos.or(self.sep).filter(|_| self.add_eos);
        out.extend(self.bos.filter(|_| self.add_bos));
        self.encode(first, false, out);
        out.extend(end);
        out.extend(self.sep.filter(|_| self.add_sep));
        self.encode(second, false, out);
        out.extend(end);
    }

    /// What a template knows a token by; empty without one.
    pub fn template_text(&self, id: Option<u32>) -> String {
        id.map(|id| String::from_utf8_lossy(self.text(id)).into_owned()).unwrap_or_default()
    }

    /// The token's text as the file writes it; empty for an id outside the vocabulary.
    pub fn text(&self, id: u32) -> &'m [u8] {
        self.table.text(id)
    }

    /// True for tokens after which generation stops: EOS, EOT, and the ends of turn known by name.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.table.attrs(id) & attr::END != 0
    }

    /// True for tokens that steer the model and are not text.
    pub fn is_control(&self, id: u32) -> bool {
        self.table.attrs(id) & attr::CONTROL != 0
    }

    /// A prompt starts with BOS.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// A prompt ends with EOS.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Encoding puts a blank in front of text (SPM).
    pub fn add_space_prefix(&self) -> bool {
        matches!(self.kind, Kind::Spm { add_space_prefix: true })
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// End of turn, where the file names one.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Parts two texts, or ends one.
    pub fn sep(&self) -> Option<u32> {
        self.sep
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }
}

/// Appends special tokens as they are, and what `encode` makes of the text between them.
fn each_text(fragments: &[Fragment<'_>], out: &mut Vec<u32>, encode: impl Fn(&str, &mut Vec<u32>)) {
    for fragment in fragments {
        match *fragment {
            Fragment::Token(id) => out.push(id),
            Fragment::Text(text) => encode(text, out),
        }
    }
}

/// The byte of a `<0xXX>` token.
fn hex_byte(text: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(text).ok()?.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Appends text with its blanks as SPM writes them.
fn escape(text: &str, out: &mut String) {
    for (i, part) in text.split(' ').enumerate() {
        if i > 0 {
            out.push_str(spm::BLANK);
        }
        out.push_str(part);
    }
}

/// Appends SPM text with its blanks as blanks.
fn unescape(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some((&byte, rest)) = text.split_first() {
        match text.strip_prefix(spm::BLANK.as_bytes()) {
            Some(after) => {
                out.push(b' ');
                text = after;
            }
            None => {
                out.push(byte);
                text = rest;
            }
        }
    }
}

/// Appends byte-level text as its bytes; what stands for no byte is kept as it is.
fn byte_level(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match bytelevel::byte_of(c) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out.extend_from_slice(chunk.invalid());
    }
}
