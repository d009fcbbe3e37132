//! A GGUF array of strings, left in the file's bytes.

/// `count` strings, each a little-endian u64 length followed by that many bytes. The parser has walked the
/// bytes once, so every length is known to stay inside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strings<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Strings<'a> {
    /// Takes the strings from the front of `bytes`; `None` if the bytes end before `count` strings do.
    pub fn take(count: usize, bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        for _ in 0..count {
            (_, rest) = split_string(rest)?;
        }
        Some(Strings { count, bytes: &bytes[..bytes.len() - rest.len()] })
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes the array occupies in the file, length prefixes included.
    pub fn encoded_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The strings in order, as raw bytes (GGUF says UTF-8, files do not always).
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (string, tail) = split_string(rest)?;
            rest = tail;
            Some(string)
        })
    }
}

fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_exactly_its_strings() {
        let mut bytes = Vec::new();
        for s in ["a", "", "xyz"] {
            bytes.extend((s.len() as u64).to_le_bytes());
            bytes.extend(s.as_bytes());
        }
        bytes.extend([9, 9]);
        let strings = Strings::take(3, &bytes).unwrap();
        assert_eq!(strings.iter().collect::<Vec<_>>(), [b"a".as_slice(), b"", b"xyz"]);
        assert_eq!(strings.encoded_bytes(), bytes.len() - 2);
        assert!(Strings::take(4, &bytes).is_none());
    }

    #[test]
    fn a_length_beyond_the_end_is_no_string() {
        assert!(Strings::take(1, &u64::MAX.to_le_bytes()).is_none());
    }
}
