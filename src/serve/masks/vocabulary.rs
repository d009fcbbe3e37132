//! The vocabulary as grammars walk it, and the walk.
//!
//! llguidance's own trie of 150,000 tokens takes 5 MiB, of which it holds three. Here tokens are a list sorted by their
//! bytes, each with what it does not share with the one before, which is the same walk and a third of the memory of one
//! trie. llguidance's trie is left with control tokens, which grammars call by their names.

use std::sync::Arc;

use llguidance::earley::{BiasComputer, ParserRecognizer};
use llguidance::toktrie::{Recognizer, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::Tokenizer;

/// The tokens of a model for constrained output.
pub struct Vocabulary {
    /// Control tokens.
    named: TokTrie,
    /// Tokens of text, sorted by their bytes.
    ids: Vec<u32>,
    /// Of each, how many bytes it shares with the one before.
    shared: Vec<u16>,
    /// Of each, where its other bytes end in `suffixes`; they begin where those of the one before end.
    ends: Vec<u32>,
    suffixes: Vec<u8>,
    /// Tokens that end generation.
    pub end_tokens: Vec<u32>,
}

/// A token that grammars call by its name, and that has no text.
const NAMED: u32 = 1;
/// A token that ends generation.
const END: u32 = 2;

/// What [`Vocabulary::read`] needs of a tokenizer: the end token that is preferred, and of each token its bytes or its name.
pub fn describe(tokenizer: &Tokenizer<'_>) -> Vec<u8> {
    let preferred = tokenizer.eot().or(tokenizer.eos()).unwrap_or(u32::MAX);
    let (mut out, mut bytes) = (preferred.to_ne_bytes().to_vec(), Vec::new());
    for id in 0..tokenizer.n_tokens() {
        let is_end = tokenizer.is_end_of_generation(id);
        let is_named = is_end || tokenizer.is_control(id);
        bytes.clear();
        match is_named {
            true => bytes.extend_from_slice(tokenizer.text(id)),
            false => tokenizer.token_bytes(id, false, &mut bytes),
        }
        let flags = if is_named { NAMED } else { 0 } | if is_end { END } else { 0 };
        out.extend((flags | (bytes.len() as u32) << 2).to_ne_bytes());
        out.extend_from_slice(&bytes);
    }
    out
}

/// The next token of a description: its flags and its bytes.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (head, more) = rest.split_first_chunk()?;
    let head = u32::from_ne_bytes(*head);
    let (bytes, more) = more.split_at_checked((head >> 2) as usize)?;
    *rest = more;
    Some((head & (NAMED | END), bytes))
}

impl Vocabulary {
    /// Sorts the tokens that [`describe`] wrote down.
    ///
    /// # Errors
    /// A vocabulary in which nothing ends generation.
    pub fn read(described: &[u8]) -> Result<Arc<Vocabulary>, String> {
        let (preferred, mut rest) =
            described.split_first_chunk().ok_or("the description of the vocabulary is empty")?;
        let preferred = u32::from_ne_bytes(*preferred);
        let (mut bytes, mut starts) = (Vec::with_capacity(rest.len()), Vec::new());
        let (mut names, mut end_tokens) = (Vec::new(), Vec::new());
        for id in 0.. {
            let Some((flags, text)) = next(&mut rest) else { break };
            starts.push(bytes.len());
            let mut name = Vec::new();
            if flags & NAMED != 0 {
                name.push(TokTrie::SPECIAL_TOKEN_MARKER);
                name.extend_from_slice(text);
            } else {
                bytes.extend_from_slice(text);
            }
            names.push(name);
            if flags & END != 0 {
                end_tokens.push(id);
            }
        }
        let n = names.len() as u32;
        end_tokens.sort_by_key(|&id| id != preferred);
        let Some(&end) = end_tokens.first() else {
            return Err("this model has no token that ends generation, so output cannot be constrained".to_owned());
        };
        starts.push(bytes.len());
        let named = TokTrie::from(&TokRxInfo::new(n, end), &names);
        drop(names);
        let text = |id: u32| &bytes[starts[id as usize]..starts[id as usize + 1]];
        // The marker is no byte of any text, and means a control token to llguidance.
        let is_text = |id: &u32| !text(*id).is_empty() && text(*id)[0] != TokTrie::SPECIAL_TOKEN_MARKER;
        let mut ids: Vec<u32> = (0..n).filter(is_text).collect();
        ids.sort_unstable_by(|&a, &b| text(a).cmp(text(b)));
        let (mut shared, mut ends) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        let (mut suffixes, mut before) = (Vec::new(), &[][..]);
        for &id in &ids {
            let text = text(id);
            let same = text.iter().zip(before).take_while(|(a, b)| a == b).count().min(usize::from(u16::MAX - 1));
            shared.push(same as u16);
            suffixes.extend_from_slice(&text[same..]);
            ends.push(suffixes.len() as u32);
            before = text;
        }
        suffixes.shrink_to_fit();
        Ok(Arc::new(Vocabulary { named, ids, shared, ends, suffixes, end_tokens }))
    }

    /// Whether a token is called by its name, and has no text.
    pub fn is_named(&self, id: u32) -> bool {
        !self.named.token(id).is_empty()
    }

    /// Calls `each` with the tokens whose bytes `recognizer` takes, one after the other.
    fn walk(&self, recognizer: &mut impl Recognizer, mut each: impl FnMut(u32)) {
        // Bytes the recognizer holds; of these, and one more that it refused, nothing that comes can begin.
        let (mut held, mut refused_after) = (0, usize::MAX);
        let mut from = 0;
        for (i, &shared) in self.shared.iter().enumerate() {
            let (shared, suffix) = (usize::from(shared), from..self.ends[i] as usize);
            from = suffix.end;
            if shared > refused_after {
                continue;
            }
            recognizer.pop_bytes(held - shared);
            held = shared;
            let taken =
                self.suffixes[suffix.clone()].iter().take_while(|&&byte| recognizer.try_push_byte(byte)).count();
            held += taken;
            refused_after = if taken == suffix.len() { usize::MAX } else { held };
            if refused_after == usize::MAX {
                each(self.ids[i]);
            }
        }
        recognizer.pop_bytes(held);
    }
}

impl BiasComputer for Vocabulary {
    fn compute_bias(&self, recognizer: &mut ParserRecognizer<'_>, start: &[u8]) -> SimpleVob {
        // Bytes that are certain are not written ahead of the tokens.
        assert!(start.is_empty());
        let mut allowed = self.named.alloc_token_set();
        recognizer.trie_started("mask");
        self.walk(recognizer, |id| allowed.allow_token(id));
        recognizer.trie_finished();
        allowed
    }

    fn trie(&self) -> &TokTrie {
        &self.named
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.named
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.named.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes texts that some word begins with.
    struct Beginnings<'a> {
        words: &'a [&'a [u8]],
        held: Vec<u8>,
        pushes: usize,
    }

    impl Recognizer for Beginnings<'_> {
        fn pop_bytes(&mut self, n: usize) {
            self.held.truncate(self.held.len() - n);
        }
        fn collapse(&mut self) {}
        fn trie_finished(&mut self) {}
        fn try_push_byte(&mut self, byte: u8) -> bool {
            self.pushes += 1;
            self.held.push(byte);
            let takes = self.words.iter().any(|word| word.starts_with(&self.held));
            if !takes {
                self.held.pop();
            }
            takes
        }
    }

    #[test]
    fn the_walk_takes_what_one_by_one_would() {
        let tokenizer = super::super::tests::vocabulary();
        let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
        let mut bytes = Vec::new();
        for words in [
            &[][..],
            &[b"the".as_slice()],
            &[b" huge pages", b" hugeness", b"a"],
            &["gr\u{fc}n".as_bytes(), b"\n\n", b"0123456789"],
        ] {
            let mut recognizer = Beginnings { words, held: Vec::new(), pushes: 0 };
            let mut found = Vec::new();
            vocabulary.walk(&mut recognizer, |id| found.push(id));
            assert!(recognizer.held.is_empty() && recognizer.pushes < 1000, "{}", recognizer.pushes);
            found.sort_unstable();
            let takes = |&id: &u32| {
                bytes.clear();
                tokenizer.token_bytes(id, false, &mut bytes);
                let is_begun = words.iter().any(|word| word.starts_with(&bytes));
                !bytes.is_empty() && !vocabulary.is_named(id) && is_begun
            };
            assert_eq!(found, (0..tokenizer.n_tokens()).filter(takes).collect::<Vec<_>>(), "{words:?}");
        }
    }
}
