//! What a file is when it is not GGUF: told from its first bytes, so that the refusal can say what to do.

use std::fmt;

/// A file that is not GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// No bytes at all.
    Empty,
    /// Zeros from the start.
    Zeros,
    /// A Git LFS pointer in place of the file it stands for.
    LfsPointer,
    /// A web page, usually an error page saved by a download.
    Html,
    /// Other text.
    Text,
    /// A zip archive: how PyTorch saves checkpoints today.
    Zip,
    /// A bare pickle: how PyTorch saved checkpoints before.
    Pickle,
    /// Safetensors.
    Safetensors,
    /// One of the formats before GGUF (GGML, GGMF, GGJT, GGLA).
    OldGgml([u8; 4]),
    /// gzip, xz, zstd or bzip2.
    Compressed(&'static str),
    /// Nothing known; its first four bytes.
    Other([u8; 4]),
}

impl Foreign {
    /// Tells from the front part of a file what it is; GGUF itself is not considered.
    pub(super) fn identify(front: &[u8]) -> Foreign {
        let mut first = [0; 4];
        for (to, from) in first.iter_mut().zip(front) {
            *to = *from;
        }
        let starts = |magic: &[u8]| front.starts_with(magic);
        match first {
            _ if front.is_empty() => Foreign::Empty,
            _ if front.iter().take(4096).all(|&b| b == 0) => Foreign::Zeros,
            [b'P', b'K', 3 | 5 | 7, 4 | 6 | 8] => Foreign::Zip,
            [0x80, 2..=5, ..] => Foreign::Pickle,
            // The magic was a little-endian u32, so its letters appear in reverse.
            [b'l', b'm', b'g', b'g']
            | [b'f', b'm', b'g', b'g']
            | [b't', b'j', b'g', b'g']
            | [b'a', b'l', b'g', b'g'] => Foreign::OldGgml([first[3], first[2], first[1], first[0]]),
            [0x1f, 0x8b, ..] => Foreign::Compressed("gzip"),
            [0x28, 0xb5, 0x2f, 0xfd] => Foreign::Compressed("zstd"),
            [0xfd, b'7', b'z', b'X'] => Foreign::Compressed("xz"),
            [b'B', b'Z', b'h', _] => Foreign::Compressed("bzip2"),
            _ if starts(b"version https://git-lfs") => Foreign::LfsPointer,
            _ if is_safetensors(front) => Foreign::Safetensors,
            _ if is_html(front) => Foreign::Html,
            _ if is_text(front) => Foreign::Text,
            other => Foreign::Other(other),
        }
    }
}

/// Safetensors starts with the length of a JSON object as u64, then the object.
fn is_safetensors(front: &[u8]) -> bool {
    match front.split_first_chunk::<8>() {
        Some((length, rest)) => u64::from_le_bytes(*length) < 1 << 32 && rest.starts_with(b"{"),
        None => false,
    }
}

fn is_html(front: &[u8]) -> bool {
    let start = front.trim_ascii_start();
    let has = |tag: &[u8]| start.get(..tag.len()).is_some_and(|s| s.eq_ignore_ascii_case(tag));
    has(b"<!doctype html") || has(b"<html") || has(b"<head")
}

fn is_text(front: &[u8]) -> bool {
    let sample = &front[..front.len().min(512)];
    sample.iter().all(|&b| b >= 0x20 && b != 0x7f || matches!(b, b'\n' | b'\r' | b'\t'))
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foreign::Empty => f.write_str("the file is empty: download it again"),
            Foreign::Zeros => {
                f.write_str("the file starts with zeros where \"GGUF\" should be: the download or copy never finished")
            }
            Foreign::LfsPointer => f.write_str(
                "the file is a Git LFS pointer, not the model itself: fetch it with `git lfs pull` or download it directly",
            ),
            Foreign::Html => {
                f.write_str("the file is a web page, not a GGUF model: the download link gave an error or login page")
            }
            Foreign::Text => f.write_str("the file is text, not a GGUF model: give the path of a .gguf file"),
            Foreign::Zip => {
                f.write_str("the file is a zip archive or PyTorch checkpoint, not GGUF: unpack it or convert the model to GGUF")
            }
            Foreign::Pickle => {
                f.write_str("the file is a Python pickle (old PyTorch checkpoint), not GGUF: convert the model to GGUF")
            }
            Foreign::Safetensors => f.write_str("the file is in safetensors format, not GGUF: convert the model to GGUF"),
            Foreign::OldGgml(name) => write!(
                f,
                "the file is in the old {} format that GGUF replaced in 2023: convert the original model to GGUF",
                name.escape_ascii()
            ),
            Foreign::Compressed(with) => {
                write!(f, "the file is compressed with {with}, not a GGUF model: decompress it first")
            }
            Foreign::Other(first) => write!(
                f,
                "this is not a GGUF file: it starts with bytes {:02x} {:02x} {:02x} {:02x} where \"GGUF\" (47 47 55 46) should be",
                first[0], first[1], first[2], first[3]
            ),
        }
    }
}
