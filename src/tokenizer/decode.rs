//! Token ids back to text, as a stream: a character whose bytes are spread over tokens waits until it is whole.

use super::Tokenizer;

/// Most bytes a character can still be waiting for its last one.
const PENDING_BYTES: usize = 3;

/// Turns a stream of tokens into UTF-8. Bytes that are no UTF-8 become U+FFFD, one for each maximal broken sequence.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Control tokens are written out.
    special: bool,
    /// The next text loses its first blank: it is the one that encoding put in front.
    at_start: bool,
    pending: Vec<u8>,
}

impl Decoder {
    /// A decoder for text that continues other text, such as an answer to a prompt.
    pub fn new(special: bool) -> Self {
        Decoder { special, at_start: false, pending: Vec::with_capacity(256) }
    }

    /// A decoder for a whole text: takes back the blank that [`Tokenizer::encode`] put in front.
    pub fn whole(tokenizer: &Tokenizer<'_>, special: bool) -> Self {
        Decoder { at_start: tokenizer.add_space_prefix(), ..Decoder::new(special) }
    }

    /// Appends what `id` completes to `out`. Allocates only if `out` or a token longer than any before needs room.
    pub fn push(&mut self, tokenizer: &Tokenizer<'_>, id: u32, out: &mut String) {
        let before = self.pending.len();
        tokenizer.token_bytes(id, self.special, &mut self.pending);
        if std::mem::take(&mut self.at_start) && self.pending.get(before) == Some(&b' ') {
            self.pending.remove(before);
        }
        let taken = write_valid(&self.pending, out);
        self.pending.drain(..taken);
        debug_assert!(self.pending.len() <= PENDING_BYTES);
    }

    /// Ends the stream: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        self.at_start = false;
    }
}

/// Appends `bytes` but for an incomplete character at their end; returns how many bytes are done with.
fn write_valid(bytes: &[u8], out: &mut String) -> usize {
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        done += chunk.valid().len();
        let broken = chunk.invalid();
        if broken.is_empty() {
            continue;
        }
        let at_end = done + broken.len() == bytes.len();
        if at_end && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none()) {
            break;
        }
        out.push(char::REPLACEMENT_CHARACTER);
        done += broken.len();
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_characters_wait() {
        let mut out = String::new();
        assert_eq!(write_valid(b"a\xe6\xb1", &mut out), 1);
        assert_eq!(write_valid(b"\xe6\xb1\x89b\xff", &mut out), 5);
        assert_eq!(write_valid(b"\xf0\x9f\xff\xf0\x9f", &mut out), 3);
        assert_eq!(out, "a汉b\u{fffd}\u{fffd}\u{fffd}");
    }
}
