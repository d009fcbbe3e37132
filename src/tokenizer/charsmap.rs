//! What becomes of stretches of text before they are encoded, as SentencePiece writes it down.

/// What becomes of stretches of text (`tokenizer.ggml.precompiled_charsmap`): a double array compressed by exclusive or
/// (Kanda, "Space- and Time-Efficient String Dictionaries", 2018), and behind it the texts that its leaves point to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charsmap<'m> {
    /// Little-endian u32: bits 0 to 7 the byte that leads here, bit 8 whether a stretch ends here, bits 10 to 30 the base
    /// of what follows, shifted by 8 where bit 9 is set. Of a leaf bits 0 to 30 are the place of its text.
    nodes: &'m [[u8; 4]],
    /// Texts that end with a zero.
    texts: &'m [u8],
}

impl<'m> Charsmap<'m> {
    /// Of the bytes of a file; nothing of what is no such table.
    pub fn new(bytes: &'m [u8]) -> Charsmap<'m> {
        let parts = bytes.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = u32::from_le_bytes(*len) as usize;
            rest.split_at_checked(len).filter(|(_, texts)| !texts.is_empty())
        });
        parts.map_or(Charsmap::default(), |(nodes, texts)| Charsmap { nodes: nodes.as_chunks().0, texts })
    }

    fn node(&self, index: u32) -> Option<u32> {
        self.nodes.get(index as usize).map(|node| u32::from_le_bytes(*node))
    }

    /// The longest beginning of `text` that becomes something else: its bytes, and what it becomes.
    pub fn longest(&self, text: &[u8]) -> Option<(usize, &'m [u8])> {
        let base = |node: u32| (node >> 10) << ((node & (1 << 9)) >> 6);
        let mut index = base(self.node(0)?);
        let mut found = None;
        for (at, &byte) in text.iter().enumerate().take_while(|(_, byte)| **byte != 0) {
            index ^= u32::from(byte);
            let Some(node) = self.node(index).filter(|node| node & (1 << 31 | 0xff) == u32::from(byte)) else { break };
            index ^= base(node);
            if node >> 8 & 1 == 1 {
                let Some(leaf) = self.node(index) else { break };
                found = Some((at + 1, leaf & !(1 << 31)));
            }
        }
        let (n_bytes, place) = found?;
        let text = self.texts.get(place as usize..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        Some((n_bytes, &text[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` becomes `x`: a root, its child, and the leaf behind it.
    fn small() -> Vec<u8> {
        let base = |n: u32| n << 10;
        let mut nodes = [1 << 31 | 0xff; 256];
        nodes[0] = base(1);
        nodes[1 ^ usize::from(b'a')] = u32::from(b'a') | 1 << 8 | base(2);
        nodes[1 ^ usize::from(b'a') ^ 2] = 1 << 31;
        let mut bytes = 1024u32.to_le_bytes().to_vec();
        bytes.extend(nodes.iter().flat_map(|node| node.to_le_bytes()));
        bytes.extend(b"x\0");
        bytes
    }

    #[test]
    fn what_has_a_place_becomes_something_else() {
        let bytes = small();
        let map = Charsmap::new(&bytes);
        assert_eq!((map.longest(b"ab"), map.longest(b"b")), (Some((1, &b"x"[..])), None));
    }

    #[test]
    fn tables_that_lie_become_nothing() {
        let bytes = small();
        for len in 0..bytes.len() {
            let _ = Charsmap::new(&bytes[..len]).longest(b"ab");
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut spoilt = bytes.clone();
                spoilt[at] = value;
                let _ = Charsmap::new(&spoilt).longest(b"abab");
            }
        }
    }
}
