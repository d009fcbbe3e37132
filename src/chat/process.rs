//! The process of one rendering: it compiles a template, renders it with what it was sent, answers, and ends.
//!
//! A template is a program that a stranger wrote. There are short ones that nest without end, that take all memory, or that
//! run for hours, and the interpreter counts only its steps. So the kernel bounds memory, stack and CPU time of a process in
//! which nothing else happens.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::bounds::{BOUNDS, CPU_SECONDS, SOURCE_BYTES_MAX, TEXT_BYTES_MAX};
use super::error::Cause;
use super::template::ChatTemplate;
use super::wire::{self, WireReader};
use crate::error::PROCESS_ADVICE;
use crate::sys::zygote::{SharedZygote, Zygote};
use crate::sys::{OsError, process};

/// Longest error that it may put its own words into.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// How long is waited for it, which has less CPU time than that: beyond it the box is at fault.
const WAIT: Duration = Duration::from_secs(20);

/// Tells a zygote to start such a process, which talks by the descriptor.
pub const MESSAGE: &[u8] = b"template";

const DONE: u8 = 0;
const FAILS: u8 = 1;
const UNAVAILABLE: u8 = 2;

/// Splits off a zygote that starts such processes and does nothing else. This comes before any thread is started.
///
/// # Errors
/// As [`Zygote::start`].
pub fn zygote() -> SharedZygote {
    Zygote::start(Duration::from_secs(30), |asked| {
        if let Some((_, stream)) = asked {
            start(&UnixStream::from(stream));
        }
    })
}

/// Splits off the process that talks by `stream`, in a zygote.
pub fn start(stream: &UnixStream) {
    if let Err(e) = process::fork(stream.as_fd(), || run(stream)) {
        // Whoever has hung up does not ask.
        let _ = answer(stream, UNAVAILABLE, &cannot_start(e));
    }
}

/// Why there is no process.
fn cannot_start(e: OsError) -> String {
    format!("a process for it cannot be started: {e}: {PROCESS_ADVICE}")
}

/// The process, from its first step to its last. Beyond its bounds it ends without a word.
fn run(mut stream: &UnixStream) {
    let bounded = process::confine(BOUNDS).and_then(|()| process::allow_cpu_time(CPU_SECONDS));
    let (code, text) = match bounded {
        Err(e) => (UNAVAILABLE, format!("its process cannot be bounded: {e}")),
        Ok(()) => match receive(&mut stream, u64::MAX) {
            Err(_) => return,
            Ok(request) => match render(&request) {
                Ok(text) => (DONE, text),
                Err(mut why) => {
                    why.truncate(why.floor_char_boundary(ERROR_BYTES_MAX));
                    (FAILS, why)
                }
            },
        },
    };
    if text.len() as u64 <= TEXT_BYTES_MAX {
        // Whoever has hung up does not ask.
        let _ = answer(stream, code, &text);
    }
}

fn render(request: &[u8]) -> Result<String, String> {
    let mut request = WireReader(request);
    let template = ChatTemplate::compiled(request.text().unwrap_or_default())?;
    // Without a prompt it was only to be compiled.
    if request.0.is_empty() { Ok(String::new()) } else { template.rendered(request.0) }
}

fn answer(mut stream: &UnixStream, code: u8, text: &str) -> io::Result<()> {
    let mut frame = vec![code];
    wire::text(text, &mut frame);
    stream.write_all(&frame)
}

/// Bytes with their length before them.
fn receive(stream: &mut impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_ne_bytes(len);
    let mut bytes = Vec::new();
    match len <= most && stream.take(len).read_to_end(&mut bytes)? as u64 == len {
        true => Ok(bytes),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Has a template rendered with a prompt, or only compiled where that is empty.
pub(super) fn ask(zygote: &SharedZygote, source: &str, prompt: &[u8]) -> Result<String, Cause> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err(Cause::BeyondBounds);
    }
    let failed = |e: io::Error| Cause::Unavailable(format!("a process for it cannot be reached: {e}"));
    let zygote = zygote.as_ref().map_err(|e| Cause::Unavailable(cannot_start(*e)))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(WAIT)).and_then(|()| ours.set_write_timeout(Some(WAIT))).map_err(failed)?;
    let gone = |e| Cause::Unavailable(format!("the process that starts others has ended ({e}); start brim anew"));
    zygote.send(MESSAGE, theirs.as_fd()).map_err(gone)?;
    drop(theirs);
    match converse(&ours, source, prompt) {
        Ok((DONE, text)) => Ok(text),
        Ok((FAILS, why)) => Err(Cause::Fails(why)),
        Ok((_, why)) => Err(Cause::Unavailable(why)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(Cause::Unavailable("the box is too busy; try again later".to_owned()))
        }
        Err(_) => Err(Cause::BeyondBounds),
    }
}

fn converse(mut stream: &UnixStream, source: &str, prompt: &[u8]) -> io::Result<(u8, String)> {
    let mut request = Vec::with_capacity(16 + source.len() + prompt.len());
    wire::number((8 + source.len() + prompt.len()) as u64, &mut request);
    wire::text(source, &mut request);
    request.extend(prompt);
    // A process that cannot be had says so without reading.
    let sent = stream.write_all(&request);
    let mut code = [0];
    stream.read_exact(&mut code).map_err(|e| sent.err().unwrap_or(e))?;
    let text = receive(&mut stream, TEXT_BYTES_MAX)?;
    let text = String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((code[0], text))
}
