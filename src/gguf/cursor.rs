//! Reads the front part of a file; every step is checked against the bytes at hand and against the file's end.

use super::error::GgufError;

/// A string in a header is at most this long: chat templates and licences stay below 1 MiB.
pub const MAX_STRING_BYTES: u64 = 16 << 20;

/// A place in the header.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_bytes: u64,
}

impl<'a> Cursor<'a> {
    /// `bytes` are the front part of a file of `file_bytes`.
    pub(super) fn new(bytes: &'a [u8], file_bytes: u64) -> Self {
        let within = usize::try_from(file_bytes).map_or(bytes.len(), |n| n.min(bytes.len()));
        Cursor { bytes: &bytes[..within], at: 0, file_bytes }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes of the file that follow.
    pub(super) fn left(&self) -> u64 {
        self.file_bytes - self.at as u64
    }

    /// Fails unless `count` items of at least `each` bytes can follow: first the file's claim, then what is at hand.
    pub(super) fn expect(&self, what: &'static str, count: u64, each: u64) -> Result<(), GgufError> {
        let needs = count.saturating_mul(each);
        if needs > self.left() {
            return Err(GgufError::CountTooLarge { what, count, needs, left: self.left() });
        }
        self.at_hand(self.at as u64 + needs)
    }

    fn at_hand(&self, end: u64) -> Result<(), GgufError> {
        if end > self.bytes.len() as u64 { Err(GgufError::NeedMore { at_least: end }) } else { Ok(()) }
    }

    /// Takes the next `bytes` bytes.
    pub(super) fn take(&mut self, what: &'static str, bytes: u64) -> Result<&'a [u8], GgufError> {
        let end = (self.at as u64).saturating_add(bytes);
        if end > self.file_bytes {
            return Err(GgufError::CutOff { what, needs: end, file_bytes: self.file_bytes });
        }
        self.at_hand(end)?;
        let taken = &self.bytes[self.at..end as usize];
        self.at = end as usize;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(what, N as u64)?;
        Ok(*bytes.first_chunk().expect("take gives as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.number(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// Takes a length-prefixed string of at most `limit` bytes.
    pub(super) fn string(&mut self, what: &'static str, limit: u64) -> Result<&'a [u8], GgufError> {
        let at = self.at as u64;
        let bytes = self.u64(what)?;
        if bytes > limit {
            return Err(GgufError::StringTooLong { what, at, bytes, limit });
        }
        self.take(what, bytes)
    }
}
