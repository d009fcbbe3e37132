//! Fuzz body of the tokenizers: any text comes back from its ids, whichever way it was cut.

use brim::tokenizer::{Decoder, Tokenizer};

/// What the text of `ids` is.
pub fn decode(tokenizer: &Tokenizer<'_>, ids: &[u32]) -> String {
    let mut text = String::new();
    let mut decoder = Decoder::whole(tokenizer, true);
    for &id in ids {
        decoder.push(tokenizer, id, &mut text);
    }
    decoder.finish(&mut text);
    text
}

/// `Err` with both texts if `text` does not survive encoding and decoding, or an id is none of the vocabulary's.
///
/// SPM writes a blank as U+2581, so a text with that character is not expected back.
pub fn round_trip(tokenizer: &Tokenizer<'_>, text: &str) -> Result<(), String> {
    let mut ids = Vec::new();
    tokenizer.encode(text, false, &mut ids);
    if let Some(id) = ids.iter().find(|&&id| id >= tokenizer.n_tokens()) {
        return Err(format!("{text:?} gave id {id}"));
    }
    if tokenizer.add_space_prefix() && text.contains('▁') {
        return Ok(());
    }
    let back = decode(tokenizer, &ids);
    if back == text { Ok(()) } else { Err(format!("{text:?} came back as {back:?}")) }
}
