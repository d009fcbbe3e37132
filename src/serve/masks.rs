//! Constrained output: which tokens may come next, by a JSON schema or a grammar. llguidance computes it while the engine
//! computes the token before.
//!
//! A schema or a grammar is a program that a stranger wrote. There are short ones that recurse without end, that take all
//! memory, that run for days, or that meet an assertion in the library; its own limits count only a part of what it does.
//! So each is compiled and followed in a process of its own ([`worker`]), whose memory, stack and CPU time the kernel
//! bounds. What goes beyond ends that process and is the refusal of one request. Starting it takes a millisecond: it is
//! split off from a small one ([`zygote`]) that was itself split off at the start and knows the vocabulary.

use std::borrow::Cow;
use std::future::Future;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::net::UnixStream;

use super::background::Background;
use super::error::ApiError;
use crate::sys::zygote::Zygote;
use crate::sys::{OsError, memfd};
use crate::tokenizer::Tokenizer;
pub use calls::Calls;
use worker::MaskAnswer;

mod calls;
mod form;
mod matcher;
mod vocabulary;
mod worker;
pub mod zygote;

/// What output has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON by this schema.
    Schema(Value),
    /// Lark, as llguidance writes it, or GBNF.
    Text(String),
    /// A regular expression.
    Regex(String),
    /// Calls of tools.
    Calls(Box<Calls>),
}

impl Grammar {
    /// One of these texts.
    pub fn choice(texts: &[&str]) -> Grammar {
        let texts: Vec<String> = texts.iter().map(|text| Value::from(*text).to_string()).collect();
        Grammar::Text(format!("start: {}", texts.join(" | ")))
    }

    /// It as the process of a grammar reads it.
    fn written(&self) -> (u8, Cow<'_, str>) {
        match self {
            Grammar::Schema(schema) => (form::SCHEMA, schema.to_string().into()),
            Grammar::Text(text) => (form::TEXT, text.into()),
            Grammar::Regex(text) => (form::REGEX, text.into()),
            // Names and JSON always serialise.
            Grammar::Calls(calls) => (form::CALLS, serde_json::to_string(calls).unwrap_or_default().into()),
        }
    }
}

/// Longest grammar or schema.
const GRAMMAR_BYTES_MAX: usize = 256 << 10;

/// How long a request waits for its grammar, which has less CPU time than that: beyond it the box is at fault.
const COMPILE_WAIT: Duration = Duration::from_secs(10);

/// Where masks are computed.
pub struct Masks {
    tokenizer: &'static Tokenizer<'static>,
    background: Background,
    zygote: Option<Arc<Zygote>>,
    /// Which model's vocabulary the zygote is to use.
    model: u8,
    sessions_max: usize,
    sessions: std::cell::Cell<usize>,
}

/// The masks of one answer.
pub struct Session {
    masks: Rc<Masks>,
    stream: Rc<UnixStream>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.masks.sessions.set(self.masks.sessions.get() - 1);
    }
}

/// A mask on its way.
pub type Pending = Pin<Box<dyn Future<Output = Result<Vec<u32>, String>>>>;

impl Masks {
    /// For at most `sessions_max` answers at once of the model of this number.
    pub fn new(
        (model, tokenizer): (u8, &'static Tokenizer<'static>),
        background: Background,
        zygote: Option<Arc<Zygote>>,
        sessions_max: usize,
    ) -> Rc<Masks> {
        Rc::new(Masks { tokenizer, background, zygote, model, sessions_max, sessions: std::cell::Cell::new(0) })
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// 400 with what is wrong with it or what it may cost; 429 where there are too many at once; 503 where the system has
    /// no process for it.
    pub async fn open(self: &Rc<Masks>, grammar: &Grammar, param: &str) -> Result<Session, ApiError> {
        let (kind, text) = grammar.written();
        let refused = |why: &str| {
            ApiError::field(param, format!("{param}: the grammar cannot be used: {why}")).code("invalid_grammar")
        };
        if text.len() > GRAMMAR_BYTES_MAX {
            return Err(refused(&format!("it has {} bytes, the limit is {GRAMMAR_BYTES_MAX}", text.len())));
        }
        if self.sessions.get() >= self.sessions_max {
            let text = format!("{} requests with constrained output are in flight already", self.sessions_max);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(1));
        }
        let mut is_taught = false;
        loop {
            let session = self.session()?;
            let compiling = tokio::time::timeout(COMPILE_WAIT, session.compile(kind, &text));
            let busy = |_| unavailable("the box is too busy to compile the grammar; try again later");
            match compiling.await.map_err(busy)? {
                Ok(MaskAnswer::Done) => return Ok(session),
                Ok(MaskAnswer::Untaught) if !is_taught => {
                    self.teach().await?;
                    is_taught = true;
                }
                Ok(MaskAnswer::Refused(why)) => return Err(refused(&why)),
                Ok(MaskAnswer::Unavailable(why)) => return Err(unavailable(&why)),
                Ok(MaskAnswer::Untaught) => return Err(unavailable("the vocabulary was not understood")),
                Err(_) => return Err(refused(&worker::beyond_bounds())),
            }
        }
    }

    fn zygote(&self) -> Result<&Zygote, ApiError> {
        let text = "this server could not start the process that JSON schemas and grammars need; its log says why";
        self.zygote.as_deref().ok_or_else(|| unavailable(text))
    }

    /// A process that waits for its grammar.
    fn session(self: &Rc<Masks>) -> Result<Session, ApiError> {
        let failed = |e: io::Error| unavailable(&format!("a process for the grammar cannot be started: {e}"));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let stream = Rc::new(UnixStream::from_std(ours).map_err(failed)?);
        self.zygote()?.send(&[zygote::SESSION, self.model], theirs.as_fd()).map_err(|e| unavailable(&gone(e)))?;
        self.sessions.set(self.sessions.get() + 1);
        // Counted from here on: to be dropped is to be given back.
        Ok(Session { masks: Rc::clone(self), stream })
    }

    /// Tells the zygote the vocabulary of this model, which it forgets after a while.
    async fn teach(&self) -> Result<(), ApiError> {
        let tokenizer = self.tokenizer;
        let write = move || -> io::Result<OwnedFd> {
            let memory = memfd::create("vocabulary", 0, None).map_err(|e| io::Error::from_raw_os_error(e.errno))?;
            let mut file = std::fs::File::from(memory);
            file.write_all(&vocabulary::describe(tokenizer))?;
            file.rewind()?;
            Ok(file.into())
        };
        let written = self.background.run(write).await?;
        let written = written.map_err(|e| unavailable(&format!("no memory for the vocabulary: {e}")))?;
        self.zygote()?.send(&[zygote::VOCABULARY, self.model], written.as_fd()).map_err(|e| unavailable(&gone(e)))
    }
}

fn unavailable(why: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("constrained output: {why}")).retry_after(5)
}

fn gone(e: OsError) -> String {
    format!("the process that starts others has ended ({e}); start the server anew")
}

impl Session {
    /// Sends the grammar and waits for what the process says of it.
    ///
    /// # Errors
    /// Where the process has ended without a word.
    async fn compile(&self, kind: u8, text: &str) -> io::Result<MaskAnswer> {
        // A process that cannot be had says so without reading.
        let sent = write(&self.stream, &worker::frame(kind, text.as_bytes())).await;
        let mut payload = Vec::new();
        match receive(&self.stream, &mut payload).await {
            Err(e) => Err(sent.err().unwrap_or(e)),
            Ok(code) => MaskAnswer::new(code, &payload),
        }
    }

    /// Asks for the mask after `token`, or for the first; `mask` is used for it.
    pub fn next(&self, token: Option<u32>, mask: Vec<u32>) -> Pending {
        let mut bytes = Vec::new();
        if let Some(token) = token {
            self.masks.tokenizer.token_bytes(token, false, &mut bytes);
        }
        let question = worker::question(token, &bytes);
        // Sent at once, so that it is computed while others are looked after.
        let sent = self.stream.try_write(&question).unwrap_or(0);
        let stream = Rc::clone(&self.stream);
        Box::pin(async move {
            let answer = async {
                write(&stream, &question[sent..]).await?;
                let mut payload = Vec::new();
                let code = receive(&stream, &mut payload).await?;
                io::Result::Ok((code, payload))
            };
            let (code, payload) = answer.await.map_err(|_| worker::beyond_bounds())?;
            match MaskAnswer::new(code, &payload).map_err(|e| e.to_string())? {
                MaskAnswer::Done => Ok(filled(mask, &payload)),
                MaskAnswer::Refused(why) | MaskAnswer::Unavailable(why) => Err(why),
                MaskAnswer::Untaught => Err("the process of the grammar knows no vocabulary".to_owned()),
            }
        })
    }
}

/// `mask` with these words, and none where there are fewer.
fn filled(mut mask: Vec<u32>, words: &[u8]) -> Vec<u32> {
    mask.fill(0);
    for (word, bytes) in mask.iter_mut().zip(words.as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    mask
}

async fn write(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn read(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<()> {
    let mut n = 0;
    while n < bytes.len() {
        stream.readable().await?;
        match stream.try_read(&mut bytes[n..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One frame: its code, and what is in it.
async fn receive(stream: &UnixStream, payload: &mut Vec<u8>) -> io::Result<u8> {
    let mut head = [0; worker::HEAD_BYTES];
    read(stream, &mut head).await?;
    let (code, len) = worker::head(head)?;
    payload.resize(len, 0);
    read(stream, payload).await?;
    Ok(code)
}

#[cfg(test)]
mod tests;
