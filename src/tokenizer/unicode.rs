//! Character classes of the pre-tokenizers' regular expressions: `\p{L}`, `\p{N}`, `\p{M}`, `\p{P}`, `\p{S}`, `\s`.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// `\p{L}`.
pub const LETTER: u8 = 1;
/// `\p{N}`.
pub const NUMBER: u8 = 2;
/// `\p{M}`.
pub const MARK: u8 = 4;
/// `\p{P}`.
pub const PUNCTUATION: u8 = 8;
/// `\p{S}`.
pub const SYMBOL: u8 = 16;
/// `\s`: the Unicode property White_Space.
pub const SPACE: u8 = 32;
/// Everything else that is a character: controls, format characters, private use, unassigned.
pub const OTHER: u8 = 64;

const ASCII: [u8; 128] = {
    let mut table = [OTHER; 128];
    let mut i = 0;
    while i < 128 {
        let c = i as u8;
        table[i] = match c {
            b'\t'..=b'\r' | b' ' => SPACE,
            b'0'..=b'9' => NUMBER,
            b'A'..=b'Z' | b'a'..=b'z' => LETTER,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => SYMBOL,
            b'!'..=b'/' | b':'..=b'@' | b'['..=b'_' | b'{' | b'}' => PUNCTUATION,
            _ => OTHER,
        };
        i += 1;
    }
    table
};

/// The class of a character: exactly one of the constants above.
pub fn class(c: char) -> u8 {
    if let Some(&class) = ASCII.get(c as usize) {
        return class;
    }
    if c.is_whitespace() {
        return SPACE;
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Letter => LETTER,
        GeneralCategoryGroup::Number => NUMBER,
        GeneralCategoryGroup::Mark => MARK,
        GeneralCategoryGroup::Punctuation => PUNCTUATION,
        GeneralCategoryGroup::Symbol => SYMBOL,
        _ => OTHER,
    }
}

/// The characters that open a word in deepseek-llm's first pattern: cased letters of Latin, Greek, Cyrillic, Armenian,
/// Georgian, Cherokee, Glagolitic, Coptic, Deseret, Osage, Old Hungarian, Warang Citi and Adlam, as its
/// `tokenizer.json` lists them. Sorted, both ends inclusive.
const DEEPSEEK_LETTERS: [(u32, u32); 87] = [
    (0x0041, 0x005a),
    (0x0061, 0x007a),
    (0x00b5, 0x00b5),
    (0x00c0, 0x00d6),
    (0x00d8, 0x00f6),
    (0x00f8, 0x01ba),
    (0x01bc, 0x01bf),
    (0x01c4, 0x0293),
    (0x0295, 0x02af),
    (0x0370, 0x0373),
    (0x0376, 0x0376),
    (0x0377, 0x0377),
    (0x037b, 0x037d),
    (0x037f, 0x037f),
    (0x0386, 0x0386),
    (0x0388, 0x038a),
    (0x038c, 0x038c),
    (0x038e, 0x03a1),
    (0x03a3, 0x03f5),
    (0x03f7, 0x0481),
    (0x048a, 0x052f),
    (0x0531, 0x0556),
    (0x10a0, 0x10c5),
    (0x13a0, 0x13f5),
    (0x13f8, 0x13fd),
    (0x1c90, 0x1cba),
    (0x1cbd, 0x1cbf),
    (0x1d00, 0x1d2b),
    (0x1d6b, 0x1d77),
    (0x1d79, 0x1d9a),
    (0x1e00, 0x1f15),
    (0x1f18, 0x1f1d),
    (0x1f20, 0x1f45),
    (0x1f48, 0x1f4d),
    (0x1f50, 0x1f57),
    (0x1f59, 0x1f59),
    (0x1f5b, 0x1f5b),
    (0x1f5d, 0x1f5d),
    (0x1f5f, 0x1f7d),
    (0x1f80, 0x1fb4),
    (0x1fb6, 0x1fbc),
    (0x1fbe, 0x1fbe),
    (0x1fc2, 0x1fc4),
    (0x1fc6, 0x1fcc),
    (0x1fd0, 0x1fd3),
    (0x1fd6, 0x1fdb),
    (0x1fe0, 0x1fec),
    (0x1ff2, 0x1ff4),
    (0x1ff6, 0x1ffc),
    (0x2102, 0x2102),
    (0x2107, 0x2107),
    (0x210a, 0x2113),
    (0x2115, 0x2115),
    (0x2119, 0x211d),
    (0x2124, 0x2124),
    (0x2126, 0x2126),
    (0x2128, 0x2128),
    (0x212a, 0x212d),
    (0x212f, 0x2134),
    (0x2139, 0x2139),
    (0x213c, 0x213f),
    (0x2145, 0x2149),
    (0x214e, 0x214e),
    (0x2183, 0x2183),
    (0x2184, 0x2184),
    (0x2c00, 0x2c7b),
    (0x2c7e, 0x2ce4),
    (0x2ceb, 0x2cee),
    (0x2cf2, 0x2cf2),
    (0x2cf3, 0x2cf3),
    (0xa640, 0xa66d),
    (0xa680, 0xa69b),
    (0xa722, 0xa76f),
    (0xa771, 0xa787),
    (0xa78b, 0xa78e),
    (0xab70, 0xabbf),
    (0xfb00, 0xfb06),
    (0xfb13, 0xfb17),
    (0xff21, 0xff3a),
    (0xff41, 0xff5a),
    (0x10400, 0x1044f),
    (0x104b0, 0x104d3),
    (0x104d8, 0x104fb),
    (0x10c80, 0x10cb2),
    (0x10cc0, 0x10cf2),
    (0x118a0, 0x118df),
    (0x1e900, 0x1e943),
];

/// True for the letters of deepseek-llm's first pattern.
pub fn deepseek_letter(c: char) -> bool {
    let c = c as u32;
    let after = DEEPSEEK_LETTERS.partition_point(|&(first, _)| first <= c);
    after > 0 && c <= DEEPSEEK_LETTERS[after - 1].1
}

/// True for the characters of deepseek-llm's second pattern: ASCII and full-width punctuation, curly quotes, and the
/// ideographic comma and full stop.
pub fn deepseek_punctuation(c: char) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff5e}' | '\u{2018}'..='\u{201f}'
        | '\u{3000}'..='\u{3002}')
        && !c.is_whitespace()
}

/// True for the characters of the deepseek family's pattern of scripts without spaces.
pub fn deepseek_unspaced(c: char) -> bool {
    matches!(c, '\u{0800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}') && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_ascii_agree_with_the_tables() {
        for c in (0u8..128).map(char::from) {
            let want = match c.general_category_group() {
                _ if c.is_whitespace() => SPACE,
                GeneralCategoryGroup::Letter => LETTER,
                GeneralCategoryGroup::Number => NUMBER,
                GeneralCategoryGroup::Punctuation => PUNCTUATION,
                GeneralCategoryGroup::Symbol => SYMBOL,
                _ => OTHER,
            };
            assert_eq!(class(c), want, "{c:?}");
        }
    }

    #[test]
    fn letter_ranges_are_sorted() {
        assert!(DEEPSEEK_LETTERS.windows(2).all(|w| w[0].0 <= w[0].1 && w[0].1 < w[1].0));
        assert!(deepseek_letter('A') && deepseek_letter('ß') && deepseek_letter('\u{1e943}'));
        assert!(!deepseek_letter('一') && !deepseek_letter('ª') && !deepseek_letter('@'));
    }
}
