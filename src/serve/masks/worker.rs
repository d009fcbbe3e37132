//! The process of one grammar: it compiles it, answers with masks, and ends when the server hangs up or a bound is reached.
//!
//! Both sides talk in frames: a byte that says what it is, the length of the rest as u32, the rest. The server sends the
//! grammar and then, for each mask, the token that was taken and its bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::matcher::Matcher;
use super::vocabulary::Vocabulary;
use crate::sys::process::{self, Bounds};

/// What a grammar may take. (Of real ones: a schema of 200 KB takes 0.1 s and 30 MB.)
const BOUNDS: Bounds = Bounds { data_bytes: 128 << 20, stack_bytes: 32 << 20 };

/// CPU time for compiling it, the first mask included, and again for each mask.
const CPU_SECONDS: u64 = 1;

/// The first mask is asked for.
const FIRST: u8 = b'f';
/// The mask after a token is asked for.
const NEXT: u8 = b'n';

const DONE: u8 = 0;
const REFUSED: u8 = 1;
const UNAVAILABLE: u8 = 2;
const UNTAUGHT: u8 = 3;

/// What begins a frame.
pub const HEAD_BYTES: usize = 5;

/// Longest frame: a grammar, or a mask of more tokens than any vocabulary has.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// What the process says.
#[derive(Debug, PartialEq)]
pub enum MaskAnswer {
    /// It is done: what follows is the mask, if one was asked for.
    Done,
    /// The grammar is at fault.
    Refused(String),
    /// The system is at fault.
    Unavailable(String),
    /// The vocabulary is to be taught first.
    Untaught,
}

impl MaskAnswer {
    /// What a frame means.
    ///
    /// # Errors
    /// A code that does not exist.
    pub fn new(code: u8, payload: &[u8]) -> io::Result<MaskAnswer> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        match code {
            DONE => Ok(MaskAnswer::Done),
            REFUSED => Ok(MaskAnswer::Refused(text())),
            UNAVAILABLE => Ok(MaskAnswer::Unavailable(text())),
            UNTAUGHT => Ok(MaskAnswer::Untaught),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Says it.
    ///
    /// # Errors
    /// Where the server has hung up.
    pub fn send(&self, mut to: &UnixStream) -> io::Result<()> {
        let (code, text) = match self {
            MaskAnswer::Done => (DONE, ""),
            MaskAnswer::Refused(why) => (REFUSED, why.as_str()),
            MaskAnswer::Unavailable(why) => (UNAVAILABLE, why.as_str()),
            MaskAnswer::Untaught => (UNTAUGHT, ""),
        };
        to.write_all(&frame(code, text.as_bytes()))
    }
}

/// Why a process ended without a word.
pub fn beyond_bounds() -> String {
    format!(
        "it takes more than {CPU_SECONDS} s of CPU time, {} MiB of memory or {} MiB of stack; use fewer alternatives and \
         properties, smaller counts, less nesting, and shorter chains of $ref, rules or terminals",
        BOUNDS.data_bytes >> 20,
        BOUNDS.stack_bytes >> 20
    )
}

/// A frame.
pub fn frame(code: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
    frame.push(code);
    // Everything that is sent is shorter than FRAME_BYTES_MAX.
    frame.extend((payload.len() as u32).to_ne_bytes());
    frame.extend(payload);
    frame
}

/// The question for the mask after `token`, whose text is `bytes`, or for the first.
pub fn question(token: Option<u32>, bytes: &[u8]) -> Vec<u8> {
    match token {
        None => frame(FIRST, &[]),
        Some(token) => frame(NEXT, &[&token.to_ne_bytes(), bytes].concat()),
    }
}

/// Code and length of a frame.
///
/// # Errors
/// A length that no frame has.
pub fn head(head: [u8; HEAD_BYTES]) -> io::Result<(u8, usize)> {
    let [code, len @ ..] = head;
    let len = u32::from_ne_bytes(len) as usize;
    if len <= FRAME_BYTES_MAX { Ok((code, len)) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The process, from its first step to its last.
pub fn run(stream: &UnixStream, vocabulary: &Result<Arc<Vocabulary>, String>) {
    // Where the server has hung up, there is nobody to tell.
    let _ = serve(stream, vocabulary);
}

fn serve(stream: &UnixStream, vocabulary: &Result<Arc<Vocabulary>, String>) -> io::Result<()> {
    if let Err(e) = process::confine(BOUNDS).and_then(|()| process::allow_cpu_time(CPU_SECONDS)) {
        return MaskAnswer::Unavailable(format!("the process of the grammar cannot be bounded: {e}")).send(stream);
    }
    let voice = stream.try_clone()?;
    std::panic::set_hook(Box::new(move |panic| {
        let why = panic.payload_as_str().unwrap_or("it panicked");
        let _ = MaskAnswer::Refused(format!("llguidance fails on it: {}", short(why))).send(&voice);
        process::end();
    }));
    let mut payload = Vec::new();
    let kind = receive(stream, &mut payload)?;
    let opened = vocabulary.clone().and_then(|vocabulary| {
        let text = String::from_utf8(std::mem::take(&mut payload)).map_err(|e| e.to_string())?;
        Matcher::open(&vocabulary, text, kind)
    });
    let mut matcher = match opened {
        Ok(matcher) => matcher,
        Err(why) => return MaskAnswer::Refused(short(&why)).send(stream),
    };
    MaskAnswer::Done.send(stream)?;
    let mut answer = Vec::new();
    loop {
        let asked = receive(stream, &mut payload)?;
        // A limit that could be set once can be set again.
        let _ = process::allow_cpu_time(CPU_SECONDS);
        let taken = payload.split_first_chunk().filter(|_| asked == NEXT);
        let taken = taken.map_or(Ok(()), |(id, bytes)| matcher.take(u32::from_ne_bytes(*id), bytes));
        match taken.and_then(|()| matcher.allowed()) {
            Err(why) => return MaskAnswer::Refused(short(&why)).send(stream),
            Ok(allowed) => {
                let words = allowed.as_slice();
                answer.clear();
                answer.push(DONE);
                answer.extend(((words.len() * 4) as u32).to_ne_bytes());
                words.iter().for_each(|word| answer.extend(word.to_ne_bytes()));
            }
        }
        let mut stream = stream;
        stream.write_all(&answer)?;
    }
}

fn receive(mut stream: &UnixStream, payload: &mut Vec<u8>) -> io::Result<u8> {
    let mut bytes = [0; HEAD_BYTES];
    stream.read_exact(&mut bytes)?;
    let (code, len) = head(bytes)?;
    payload.resize(len, 0);
    stream.read_exact(payload)?;
    Ok(code)
}

/// A message without the grammar in it.
fn short(message: &str) -> String {
    message.chars().take(400).collect()
}
