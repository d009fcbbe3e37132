//! Constrained output: which tokens may come next, by a JSON schema or a grammar. llguidance computes it, on one thread of
//! its own, while the engine computes the token before; a request waits for its own masks alone.
//!
//! What a grammar may cost is bounded where it is compiled and at every token, in steps and in memory: beyond that the
//! request is refused, or ends with an error.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use llguidance::Logger;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::{BiasComputer, Parser};
use llguidance::toktrie::{SimpleVob, TokEnv};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::error::ApiError;
use super::gbnf;
use crate::tokenizer::Tokenizer;
use vocabulary::Vocabulary;

mod vocabulary;

/// What output has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON by this schema.
    Schema(Value),
    /// Lark, as llguidance writes it, or GBNF.
    Text(String),
}

/// Longest grammar or schema.
const GRAMMAR_BYTES_MAX: usize = 256 << 10;

/// Deepest brackets of a grammar: the parser recurses.
const NESTING_MAX: usize = 64;

/// Stack of the thread: parsers of grammars recurse. It takes no memory until it is used.
const STACK_BYTES: usize = 8 << 20;

/// How long the vocabulary is kept for the next grammar: it takes 4 MiB with 150,000 tokens.
const KEEP: Duration = Duration::from_secs(30);

/// What one grammar may cost. (llguidance's figures: 50,000 units of fuel in a millisecond at first, 14,000 later; 1 to
/// 2 KiB a lexer state.)
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 8_192,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

enum Work {
    Open { grammar: Grammar, reply: oneshot::Sender<Result<u64, String>> },
    Next { id: u64, token: Option<u32>, mask: Vec<u32>, reply: oneshot::Sender<Result<Vec<u32>, String>> },
    Close { id: u64 },
}

/// The thread that computes masks; started when it is first needed.
pub struct Masks {
    tokenizer: &'static Tokenizer<'static>,
    sessions_max: usize,
    sessions: std::cell::Cell<usize>,
    sender: OnceCell<mpsc::Sender<Work>>,
}

/// The masks of one answer.
pub struct Session {
    masks: Rc<Masks>,
    id: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.masks.sessions.set(self.masks.sessions.get() - 1);
        if let Some(sender) = self.masks.sender.get() {
            let _ = sender.send(Work::Close { id: self.id });
        }
    }
}

/// A mask on its way.
pub type Pending = oneshot::Receiver<Result<Vec<u32>, String>>;

impl Masks {
    /// For at most `sessions_max` answers at once.
    pub fn new(tokenizer: &'static Tokenizer<'static>, sessions_max: usize) -> Rc<Masks> {
        let sessions = std::cell::Cell::new(0);
        Rc::new(Masks { tokenizer, sessions_max, sessions, sender: OnceCell::new() })
    }

    fn sender(&self) -> &mpsc::Sender<Work> {
        self.sender.get_or_init(|| {
            let (sender, receiver) = mpsc::channel();
            let tokenizer = self.tokenizer;
            let thread = std::thread::Builder::new().name("brim-masks".to_owned()).stack_size(STACK_BYTES);
            if let Err(e) = thread.spawn(move || work(tokenizer, &receiver)) {
                // Senders then find nobody at the other end, and say so.
                log::error!("the thread for constrained output cannot be started: {e}");
            }
            sender
        })
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// 400 with what is wrong with it or what it would cost; 429 where there are too many at once.
    pub async fn open(self: &Rc<Masks>, grammar: Grammar, param: &str) -> Result<Session, ApiError> {
        check(&grammar).map_err(|why| ApiError::field(param, why).code("invalid_grammar"))?;
        if self.sessions.get() >= self.sessions_max {
            let text = format!("{} requests with constrained output are in flight already", self.sessions_max);
            return Err(ApiError::new(hyper::StatusCode::TOO_MANY_REQUESTS, text).retry_after(1));
        }
        self.sessions.set(self.sessions.get() + 1);
        let (reply, answer) = oneshot::channel();
        // Counted from here on: to be dropped is to be given back.
        let mut session = Session { masks: Rc::clone(self), id: 0 };
        let gone = || ApiError::internal("the thread for constrained output has ended");
        self.sender().send(Work::Open { grammar, reply }).map_err(|_| gone())?;
        session.id = answer.await.map_err(|_| gone())?.map_err(|why| {
            ApiError::field(param, format!("{param}: the grammar cannot be used: {why}")).code("invalid_grammar")
        })?;
        Ok(session)
    }
}

impl Session {
    /// Asks for the mask after `token`, or for the first; `mask` is used for it.
    pub fn next(&self, token: Option<u32>, mask: Vec<u32>) -> Pending {
        let (reply, answer) = oneshot::channel();
        if let Some(sender) = self.masks.sender.get() {
            let _ = sender.send(Work::Next { id: self.id, token, mask, reply });
        }
        answer
    }
}

/// Refuses what is too long or too deep before anything parses it.
fn check(grammar: &Grammar) -> Result<(), String> {
    let text = match grammar {
        Grammar::Schema(schema) => &schema.to_string(),
        Grammar::Text(text) => text,
    };
    if text.len() > GRAMMAR_BYTES_MAX {
        return Err(format!("the grammar has {} bytes, at most {GRAMMAR_BYTES_MAX} are taken", text.len()));
    }
    if let Grammar::Text(text) = grammar {
        let mut depth = 0usize;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > NESTING_MAX {
                return Err(format!("brackets of the grammar are more than {NESTING_MAX} deep"));
            }
        }
    }
    Ok(())
}

/// The thread: compiles, and answers with masks.
fn work(tokenizer: &Tokenizer<'_>, receiver: &mpsc::Receiver<Work>) {
    let mut shared = None;
    let mut matchers: HashMap<u64, Matcher> = HashMap::new();
    let mut last_id = 0;
    loop {
        let work = match receiver.recv_timeout(KEEP) {
            Ok(work) => work,
            Err(RecvTimeoutError::Timeout) => {
                if matchers.is_empty() {
                    shared = None;
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match work {
            Work::Open { grammar, reply } => {
                let vocabulary = shared.get_or_insert_with(|| Vocabulary::new(tokenizer));
                let opened = vocabulary.as_ref().map_err(String::clone).and_then(|all| open(all, grammar));
                let opened = opened.map(|matcher| {
                    last_id += 1;
                    matchers.insert(last_id, matcher);
                    last_id
                });
                if let Err(Ok(id)) = reply.send(opened) {
                    // Who asked has gone.
                    matchers.remove(&id);
                }
            }
            Work::Next { id, token, mask, reply } => {
                let next = match matchers.get_mut(&id) {
                    Some(matcher) => next(matcher, tokenizer, token, mask),
                    None => Err("there is no such grammar".to_owned()),
                };
                let _ = reply.send(next);
            }
            Work::Close { id } => drop(matchers.remove(&id)),
        }
    }
}

/// A grammar, and what was written so far.
struct Matcher {
    parser: Parser,
    vocabulary: Arc<Vocabulary>,
    /// A token that ends generation was taken.
    has_ended: bool,
}

impl Matcher {
    fn new(vocabulary: &Arc<Vocabulary>, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let env: TokEnv = Arc::clone(vocabulary) as TokEnv;
        let parser = GrammarInit::Serialized(grammar)
            .to_cgrammar(Some(Arc::clone(&env)), &mut Logger::new(0, 0), limits(), Vec::new())
            .and_then(|grammar| Parser::new(env, grammar, limits(), Arc::default()));
        let parser = parser.map_err(|e| short(&e.to_string()))?;
        Ok(Matcher { parser, vocabulary: Arc::clone(vocabulary), has_ended: false })
    }

    /// Which tokens may come next.
    fn allowed(&mut self) -> Result<SimpleVob, String> {
        let vocabulary = &*self.vocabulary;
        let mut allowed = match self.has_ended {
            true => vocabulary.trie().alloc_token_set(),
            false => self.parser.compute_bias(vocabulary, &[]),
        };
        if let Some(e) = self.parser.get_error() {
            return Err(short(&e.message()));
        }
        if self.has_ended || self.parser.is_accepting() {
            vocabulary.end_tokens.iter().for_each(|&end| allowed.allow_token(end));
        }
        match allowed.is_zero() {
            true => Err("no token of this model may come next".to_owned()),
            false => Ok(allowed),
        }
    }

    fn take(&mut self, tokenizer: &Tokenizer<'_>, token: u32) -> Result<(), String> {
        if self.vocabulary.end_tokens.contains(&token) && (self.parser.scan_eos() || self.parser.is_accepting()) {
            self.has_ended = true;
            return Ok(());
        }
        let mut bytes = Vec::new();
        match vocabulary::is_named(tokenizer, token) {
            true => bytes = self.vocabulary.trie().decode_as_special(token),
            false => tokenizer.token_bytes(token, false, &mut bytes),
        }
        self.parser.apply_token(&bytes, token).map_err(|e| short(&e.to_string())).map(|_| ())
    }
}

fn open(vocabulary: &Arc<Vocabulary>, grammar: Grammar) -> Result<Matcher, String> {
    let grammar = match grammar {
        Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(one_line(schema)),
        Grammar::Text(text) if gbnf::is_gbnf(&text) => TopLevelGrammar::from_lark(gbnf::to_lark(&text)?),
        Grammar::Text(text) => TopLevelGrammar::from_lark(text),
    };
    let mut matcher = Matcher::new(vocabulary, grammar)?;
    // The first mask is part of the compilation: what explodes does so here, where it is still a 400.
    matcher.allowed()?;
    Ok(matcher)
}

/// A schema whose JSON has one blank after commas and colons and no other: small models write white space without end
/// where they may.
pub fn one_line(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Value::Object(map) = &mut schema {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.entry("x-guidance").or_insert(style);
    }
    schema
}

/// A message without the grammar in it.
fn short(message: &str) -> String {
    message.chars().take(400).collect()
}

fn next(
    matcher: &mut Matcher,
    tokenizer: &Tokenizer<'_>,
    token: Option<u32>,
    mut mask: Vec<u32>,
) -> Result<Vec<u32>, String> {
    if let Some(token) = token {
        matcher.take(tokenizer, token)?;
    }
    let allowed = matcher.allowed()?;
    let words = allowed.as_slice();
    let n = mask.len().min(words.len());
    mask.fill(0);
    mask[..n].copy_from_slice(&words[..n]);
    Ok(mask)
}

#[cfg(test)]
mod tests;
