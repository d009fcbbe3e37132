//! A grammar as llguidance follows it.

use std::sync::Arc;

use llguidance::Logger;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::{BiasComputer, Parser};
use llguidance::toktrie::{SimpleVob, TokEnv};
use serde_json::Value;

use super::calls;
use super::form::{CALLS, REGEX, SCHEMA};
use super::vocabulary::Vocabulary;
use crate::serve::gbnf;
use crate::serve::schema::{one_line, standalone};

/// What a grammar may cost where the library counts it, so that it says what is too much. (llguidance's figures: 50,000
/// units of fuel in a millisecond at first, 14,000 later; 1 to 2 KiB a lexer state. It has 16-bit numbers for symbols.)
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 8_192,
        max_grammar_size: 60_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// A grammar, and what was written so far.
pub struct Matcher {
    parser: Parser,
    vocabulary: Arc<Vocabulary>,
    /// A token that ends generation was taken.
    has_ended: bool,
    /// The mask that compiling came to.
    first: Option<SimpleVob>,
}

impl Matcher {
    /// Compiles a grammar; `kind` says how `text` says it.
    ///
    /// # Errors
    /// What is wrong with it, or what it takes too much of.
    pub fn open(vocabulary: &Arc<Vocabulary>, text: String, kind: u8) -> Result<Matcher, String> {
        let unread = |e: serde_json::Error| e.to_string();
        let grammar = match kind {
            SCHEMA => {
                let schema: Value = serde_json::from_str(&text).map_err(unread)?;
                TopLevelGrammar::from_json_schema(one_line(standalone(&schema, &schema)?))
            }
            CALLS => {
                let control = |mark: &str| vocabulary.trie().get_special_token(mark);
                TopLevelGrammar::from_lark(calls::lark(&serde_json::from_str(&text).map_err(unread)?, control)?)
            }
            REGEX => TopLevelGrammar::from_regex(&text),
            _ if gbnf::is_gbnf(&text) => TopLevelGrammar::from_lark(gbnf::to_lark(&text)?),
            _ => TopLevelGrammar::from_lark(text),
        };
        let env: TokEnv = Arc::clone(vocabulary) as TokEnv;
        let parser = GrammarInit::Serialized(grammar)
            .to_cgrammar(Some(Arc::clone(&env)), &mut Logger::new(0, 0), limits(), Vec::new())
            .and_then(|grammar| Parser::new(env, grammar, limits(), Arc::default()));
        let parser = parser.map_err(|e| e.to_string())?;
        let mut matcher = Matcher { parser, vocabulary: Arc::clone(vocabulary), has_ended: false, first: None };
        // What explodes does so here, where it is still a refusal.
        matcher.first = Some(matcher.allowed()?);
        Ok(matcher)
    }

    /// Which tokens may come next.
    ///
    /// # Errors
    /// Where there are none, or they cost too much.
    pub fn allowed(&mut self) -> Result<SimpleVob, String> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let vocabulary = &*self.vocabulary;
        let mut allowed = match self.has_ended {
            true => vocabulary.trie().alloc_token_set(),
            false => self.parser.compute_bias(vocabulary, &[]),
        };
        if let Some(e) = self.parser.get_error() {
            return Err(e.message());
        }
        if self.has_ended || self.parser.is_accepting() {
            vocabulary.end_tokens.iter().for_each(|&end| allowed.allow_token(end));
        }
        match allowed.is_zero() {
            true => Err("no token of this model may come next".to_owned()),
            false => Ok(allowed),
        }
    }

    /// Goes on by a token, whose text is `bytes`.
    ///
    /// # Errors
    /// Where it may not come.
    pub fn take(&mut self, token: u32, bytes: &[u8]) -> Result<(), String> {
        self.first = None;
        if self.vocabulary.end_tokens.contains(&token) && (self.parser.scan_eos() || self.parser.is_accepting()) {
            self.has_ended = true;
            return Ok(());
        }
        let name = self.vocabulary.is_named(token).then(|| self.vocabulary.trie().decode_as_special(token));
        self.parser.apply_token(name.as_deref().unwrap_or(bytes), token).map_err(|e| e.to_string()).map(|_| ())
    }
}
