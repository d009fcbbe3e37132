//! `brim tokenize`: standard input to token ids on one line, or back.

use std::fmt::Write as _;
use std::io::Read as _;

use super::args::Tokenize;
use super::common::put;
use crate::boot;
use crate::error::{Error, Exit, Result};
use crate::settings::env_or;
use crate::tokenizer::{self, Decoder, TEXT_BYTES_MAX, Tokenizer};

/// Runs the command.
pub fn execute(args: &Tokenize) -> Result<()> {
    let path = args.model.as_deref().unwrap_or("embedded demo model");
    let model = boot::open(args.model.as_deref())?;
    let pre = env_or(args.pre.clone(), "BRIM_PRE")?;
    let source = tokenizer::source_from(&model.metadata(), pre.as_deref()).map_err(|e| e.at(path))?;
    let bytes = tokenizer::region_bytes(&source).map_err(|e| Error::from(e).at(path))?;
    let too_big = || Error::new(Exit::Memory, format!("the vocabulary of {path} needs {bytes} bytes of memory"));
    let mut region = vec![0; usize::try_from(bytes).map_err(|_| too_big())?];
    let tokenizer = tokenizer::build(&source, &mut region).map_err(|e| Error::from(e).at(path))?;
    if args.decode && (args.null || args.special) {
        let why = "--null and --special are about text, which --decode writes; leave one or the other out";
        return Err(Error::usage(why));
    }
    let text = if args.ends { String::new() } else { input()? };
    let result = match (args.decode, args.null) {
        _ if args.ends => line((0..tokenizer.n_tokens()).filter(|&id| tokenizer.is_end_of_generation(id)))?,
        (true, _) => decode(&tokenizer, &text)?,
        (false, false) => encode(&tokenizer, &text, args.special)?,
        (false, true) => {
            text.split_terminator('\0').map(|text| encode(&tokenizer, text, args.special)).collect::<Result<_>>()?
        }
    };
    put(&mut std::io::stdout().lock(), &result).map(|_| ())
}

/// Standard input as text.
fn input() -> Result<String> {
    let mut bytes = Vec::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|e| Error::new(Exit::Usage, e).at("stdin"))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(Error::usage(format!("stdin has more than {TEXT_BYTES_MAX} bytes; split the text")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        let byte = e.as_bytes()[offset];
        Error::usage(format!("stdin is not UTF-8: byte 0x{byte:02x} at offset {offset}; convert it, e.g. with iconv"))
    })
}

/// The ids of `text` on one line.
fn encode(tokenizer: &Tokenizer<'_>, text: &str, special: bool) -> Result<String> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids);
    line(ids.into_iter())
}

/// Ids with blanks between, on one line.
fn line(ids: impl Iterator<Item = u32>) -> Result<String> {
    let mut line = String::with_capacity(ids.size_hint().0 * 6 + 1);
    for (i, id) in ids.enumerate() {
        let gap = if i > 0 { " " } else { "" };
        write!(line, "{gap}{id}").map_err(|e| Error::new(Exit::Unexpected, e))?;
    }
    line.push('\n');
    Ok(line)
}

/// The text of `ids`, separated by white space.
fn decode(tokenizer: &Tokenizer<'_>, ids: &str) -> Result<String> {
    let mut text = String::new();
    let mut decoder = Decoder::whole(tokenizer, true);
    for word in ids.split_whitespace() {
        let id: u32 = word.parse().map_err(|_| Error::usage(format!("{word:?} is not a token id")))?;
        if id >= tokenizer.n_tokens() {
            let n_tokens = tokenizer.n_tokens();
            return Err(Error::usage(format!("token id {id} is not in the vocabulary of {n_tokens} tokens")));
        }
        decoder.push(tokenizer, id, &mut text);
    }
    decoder.finish(&mut text);
    Ok(text)
}
