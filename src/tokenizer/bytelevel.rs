//! GPT-2's reversible map between bytes and printable characters, in which byte-level BPE writes its tokens.
//!
//! Printable Latin-1 stands for itself; the other 68 bytes take U+0100.. in order (GPT-2 `encoder.py`,
//! `bytes_to_unicode`).

/// True for bytes that stand for themselves.
const fn plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0);
    while byte < 256 {
        chars[byte] = if plain(byte as u8) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(0xff + next) {
                Some(c) => c,
                None => panic!("U+0100..U+0143 are characters"),
            }
        };
        byte += 1;
    }
    chars
};

/// The character a byte is written as.
pub fn char_of(byte: u8) -> char {
    CHARS[byte as usize]
}

/// The byte a character stands for.
pub fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xff if plain(code as u8) => Some(code as u8),
        code @ 0x100..=0x143 => {
            let n = code - 0x100;
            // The 68 bytes in order: 0x00..=0x20, 0x7f..=0xa0, 0xad.
            Some(match n {
                0..=0x20 => n as u8,
                0x21..=0x42 => (n + 0x5e) as u8,
                _ => 0xad,
            })
        }
        _ => None,
    }
}

/// Writes bytes in their characters.
pub fn write(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.extend_from_slice(char_of(byte).encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte), "{byte:#x}");
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(byte_of('▁'), None);
        assert_eq!(byte_of('\u{144}'), None);
    }
}
