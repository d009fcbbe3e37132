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
}
