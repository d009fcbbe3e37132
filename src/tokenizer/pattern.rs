//! The regular expressions of pre-tokenizers, written as their models publish them.
//!
//! Only what those expressions use: literals, classes, `\s \S \d \r \n \t \p{L}` and the other major categories,
//! groups that occur once or not at all, `(?i:...)`, the quantifiers `? * + {n} {n,m}` behind a character or class,
//! `(?!\S)`, `&&[^...]` with characters inside a class, and words with single blanks between them. Alternatives are tried in order, runs are greedy and give back
//! one character at a time, as in Perl. Recursion is as deep as the expression is long, whatever the text.

use super::unicode::{self, SPACE, class};

/// One run, group or condition of a sequence.
#[derive(Debug)]
enum Item {
    /// `min` to `max` characters of a class.
    Run { class: Class, min: u32, max: u32 },
    /// One of the alternatives; the first that fits is kept unless what follows the group then fails.
    Group { alternatives: Vec<Vec<Item>>, optional: bool },
    /// `(?!\S)`: the text ends here, or white space follows.
    BeforeSpace,
    /// [`PHRASE`], which stands at the end of an alternative: nothing has to be given back.
    Phrase,
}

/// Words, each a letter and then letters and marks, with one blank from word to word.
const PHRASE: &str = r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+";

/// Where the phrase at `pos` ends.
fn phrase_end(text: &str, pos: usize) -> Option<usize> {
    let letter = |at: usize| text[at..].chars().next().filter(|&c| class(c) & unicode::LETTER != 0);
    let mut end = pos + letter(pos)?.len_utf8();
    loop {
        let mut rest = text[end..].chars();
        end += match rest.next() {
            Some(c) if class(c) & (unicode::LETTER | unicode::MARK) != 0 => c.len_utf8(),
            Some(' ') if letter(end + 1).is_some() => 1,
            _ => return Some(end),
        };
    }
}

/// A set of characters.
#[derive(Clone, Debug, Default)]
struct Class {
    /// Membership of ASCII.
    ascii: u128,
    /// Unicode categories of members beyond ASCII ([`unicode`]'s bits).
    categories: u8,
    /// Members beyond ASCII, both ends inclusive; sorted.
    ranges: Vec<(char, char)>,
    /// No members whatever the above says, likewise.
    except: Vec<(char, char)>,
    /// Beyond ASCII, everything but the above.
    negated: bool,
}

/// White space beyond ASCII counts as this character: it is in no range, only in `\s` and what `\s` is not.
const WIDE_SPACE: u8 = 0x0b;

impl Class {
    fn has_ascii(&self, byte: u8) -> bool {
        self.ascii >> byte & 1 != 0
    }

    fn has_wide(&self, c: char) -> bool {
        let category = class(c);
        if category == SPACE {
            return self.has_ascii(WIDE_SPACE);
        }
        let within = |ranges: &[(char, char)]| {
            let before = ranges.partition_point(|&(first, _)| first <= c);
            before > 0 && c <= ranges[before - 1].1
        };
        (within(&self.ranges) || self.categories & category != 0) != self.negated && !within(&self.except)
    }

    fn may_be_wide(&self) -> bool {
        self.negated || self.categories != 0 || !self.ranges.is_empty() || self.has_ascii(WIDE_SPACE)
    }

    fn add(&mut self, first: char, last: char) {
        for byte in (first as u32..=last as u32).take_while(|&code| code < 128) {
            self.ascii |= 1 << byte;
        }
        if !last.is_ascii() {
            self.ranges.push((first.max('\u{80}'), last));
        }
    }

    fn add_categories(&mut self, mask: u8) {
        self.categories |= mask & !SPACE;
        for byte in 0..128u8 {
            if class(byte as char) & mask != 0 {
                self.ascii |= 1 << byte;
            }
        }
    }

    fn invert(&mut self) {
        self.ascii = !self.ascii;
        self.negated = !self.negated;
    }

    /// End of the longest run of at most `max` members from `pos`, and its characters.
    fn run(&self, text: &str, mut pos: usize, max: u32) -> (usize, u32) {
        let mut count = 0;
        while count < max {
            match text.as_bytes().get(pos) {
                Some(&byte) if byte < 128 => {
                    if !self.has_ascii(byte) {
                        break;
                    }
                    pos += 1;
                }
                Some(_) => match text[pos..].chars().next() {
                    Some(c) if self.has_wide(c) => pos += c.len_utf8(),
                    _ => break,
                },
                None => break,
            }
            count += 1;
        }
        (pos, count)
    }
}

/// Where `items` match from `pos` ends.
fn end_of(items: &[Item], text: &str, pos: usize) -> Option<usize> {
    let Some((item, rest)) = items.split_first() else { return Some(pos) };
    match item {
        Item::Run { class, min, max } => {
            let (mut end, mut count) = class.run(text, pos, *max);
            while count >= *min {
                if let Some(end) = end_of(rest, text, end) {
                    return Some(end);
                }
                count = count.checked_sub(1)?;
                end = text.floor_char_boundary(end - 1);
            }
            None
        }
        Item::Group { alternatives, optional } => alternatives
            .iter()
            .filter_map(|alternative| end_of(alternative, text, pos))
            .chain(optional.then_some(pos))
            .find_map(|end| end_of(rest, text, end)),
        Item::Phrase => phrase_end(text, pos),
        Item::BeforeSpace => match text[pos..].chars().next() {
            Some(c) if class(c) != SPACE => None,
            _ => end_of(rest, text, pos),
        },
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Pattern {
    alternatives: Vec<Vec<Item>>,
    /// The alternatives that a text starting with this byte can match, as bits; the last entry is for all of non-ASCII.
    starts: [u16; 129],
}

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Panics
    /// If it is outside the subset: expressions are constants of the program, and a test compiles each.
    pub fn compile(expression: &str) -> Self {
        let mut parser = Parser { expression, rest: expression, fold_case: false };
        let alternatives = parser.alternatives();
        assert!(parser.rest.is_empty() && alternatives.len() <= 16, "{expression}: left over {:?}", parser.rest);
        let mut starts = [0; 129];
        for (i, alternative) in alternatives.iter().enumerate() {
            let (mut ascii, mut wide) = (0, false);
            first_of(alternative, &mut ascii, &mut wide);
            for (byte, mask) in starts[..128].iter_mut().enumerate() {
                *mask |= u16::from(ascii >> byte & 1 != 0) << i;
            }
            starts[128] |= u16::from(wide) << i;
        }
        Pattern { alternatives, starts }
    }

    /// Cuts `text` into matches and what lies between them, and hands over all pieces in order.
    pub fn split(&self, text: &str, piece: &mut dyn FnMut(&str)) {
        let (mut gap, mut pos) = (0, 0);
        while let Some(&byte) = text.as_bytes().get(pos) {
            match self.match_at(text, pos, byte) {
                Some(end) if end > pos => {
                    if gap < pos {
                        piece(&text[gap..pos]);
                    }
                    piece(&text[pos..end]);
                    (gap, pos) = (end, end);
                }
                _ => pos = text.ceil_char_boundary(pos + 1),
            }
        }
        if gap < text.len() {
            piece(&text[gap..]);
        }
    }

    fn match_at(&self, text: &str, pos: usize, byte: u8) -> Option<usize> {
        let mut candidates = self.starts[usize::from(byte.min(128))];
        while candidates != 0 {
            let i = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            let end = end_of(&self.alternatives[i], text, pos);
            if end.is_some() {
                return end;
            }
        }
        None
    }
}

/// Adds the characters a sequence can start with; true if it may be empty.
fn first_of(items: &[Item], ascii: &mut u128, wide: &mut bool) -> bool {
    items.iter().all(|item| match item {
        Item::Run { class, min, .. } => {
            *ascii |= class.ascii;
            *wide |= class.may_be_wide();
            *min == 0
        }
        Item::Group { alternatives, optional } => {
            alternatives.iter().fold(*optional, |empty, items| first_of(items, ascii, wide) || empty)
        }
        Item::Phrase => {
            let mut letters = Class::default();
            letters.add_categories(unicode::LETTER);
            *ascii |= letters.ascii;
            *wide = true;
            false
        }
        Item::BeforeSpace => true,
    })
}

struct Parser<'e> {
    expression: &'e str,
    rest: &'e str,
    fold_case: bool,
}

impl Parser<'_> {
    fn eat(&mut self, token: &str) -> bool {
        let after = self.rest.strip_prefix(token);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, token: &str) {
        assert!(self.eat(token), "{}: {token:?} expected before {:?}", self.expression, self.rest);
    }

    fn next(&mut self) -> char {
        let mut chars = self.rest.chars();
        let Some(c) = chars.next() else { panic!("{}: ends too early", self.expression) };
        self.rest = chars.as_str();
        c
    }

    fn number(&mut self) -> u32 {
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        number.parse().unwrap_or_else(|_| panic!("{}: a number expected before {rest:?}", self.expression))
    }

    fn alternatives(&mut self) -> Vec<Vec<Item>> {
        let mut all = vec![Vec::new()];
        while !self.rest.is_empty() && !self.rest.starts_with(')') {
            if self.eat("|") {
                all.push(Vec::new());
            } else {
                let item = self.item();
                all.last_mut().expect("starts with one").push(item);
            }
        }
        all
    }

    fn item(&mut self) -> Item {
        if self.eat("(?!\\S)") {
            return Item::BeforeSpace;
        }
        if self.eat(PHRASE) {
            assert!(self.rest.is_empty() || self.rest.starts_with('|'), "{}: more behind a phrase", self.expression);
            return Item::Phrase;
        }
        let fold = self.eat("(?i:");
        if fold || self.eat("(?:") {
            let outer = std::mem::replace(&mut self.fold_case, fold);
            let alternatives = self.alternatives();
            self.fold_case = outer;
            self.expect(")");
            return Item::Group { alternatives, optional: self.eat("?") };
        }
        let mut class = Class::default();
        match self.next() {
            '[' => class = self.class(),
            '\\' => self.escape(&mut class),
            '(' | ')' | '*' | '+' | '?' | '{' | '^' | '$' | '.' => {
                panic!("{}: not understood before {:?}", self.expression, self.rest)
            }
            c => {
                class.add(c, c);
                if self.fold_case {
                    class.add(c.to_ascii_uppercase(), c.to_ascii_uppercase());
                }
            }
        }
        let (min, max) = self.quantifier();
        Item::Run { class, min, max }
    }

    fn quantifier(&mut self) -> (u32, u32) {
        if self.eat("?") {
            (0, 1)
        } else if self.eat("*") {
            (0, u32::MAX)
        } else if self.eat("+") {
            (1, u32::MAX)
        } else if self.eat("{") {
            let min = self.number();
            let max = if self.eat(",") { self.number() } else { min };
            self.expect("}");
            (min, max)
        } else {
            (1, 1)
        }
    }

    /// A class behind its `[`.
    fn class(&mut self) -> Class {
        let mut class = Class::default();
        let negated = self.eat("^");
        while !self.eat("]") {
            if self.eat("&&[^") {
                let mut without = Class::default();
                while !self.eat("]") {
                    self.range(&mut without);
                }
                assert!(without.categories == 0 && !negated, "{}: only characters can be taken out", self.expression);
                class.ascii &= !without.ascii;
                class.except.append(&mut without.ranges);
            } else {
                self.range(&mut class);
            }
        }
        class.ranges.sort_unstable();
        class.except.sort_unstable();
        if negated {
            class.invert();
        }
        class
    }

    /// One character, range or escape of a class.
    fn range(&mut self, class: &mut Class) {
        if self.rest.starts_with('\\') && !self.rest.starts_with("\\u") {
            self.next();
            return self.escape(class);
        }
        let first = self.character();
        let last = if self.eat("-") { self.character() } else { first };
        class.add(first, last);
    }

    /// One end of a range: a character, or `\u{HEX}` for one that an editor could normalise to another.
    fn character(&mut self) -> char {
        if !self.eat("\\u{") {
            return self.next();
        }
        let (code, rest) = self.rest.split_once('}').unwrap_or_default();
        self.rest = rest;
        let code = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
        code.unwrap_or_else(|| panic!("{}: no character before {rest:?}", self.expression))
    }

    /// What follows a backslash.
    fn escape(&mut self, class: &mut Class) {
        match self.next() {
            's' => class.add_categories(SPACE),
            'S' => {
                let mut space = Class::default();
                space.add_categories(SPACE);
                space.invert();
                *class = space;
            }
            'd' => class.add('0', '9'),
            'r' => class.add('\r', '\r'),
            'n' => class.add('\n', '\n'),
            't' => class.add('\t', '\t'),
            'p' => {
                self.expect("{");
                let mask = match self.next() {
                    'L' => unicode::LETTER,
                    'N' => unicode::NUMBER,
                    'M' => unicode::MARK,
                    'P' => unicode::PUNCTUATION,
                    'S' => unicode::SYMBOL,
                    other => panic!("{}: \\p{{{other}}}", self.expression),
                };
                self.expect("}");
                class.add_categories(mask);
            }
            c if c.is_ascii_punctuation() => class.add(c, c),
            c => panic!("{}: \\{c}", self.expression),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(expression: &str, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        Pattern::compile(expression).split(text, &mut |piece| pieces.push(piece.to_owned()));
        assert_eq!(pieces.concat(), text);
        pieces
    }

    #[test]
    fn runs_give_back_what_the_rest_needs() {
        assert_eq!(split(r"a*ab", "aaab-aab"), ["aaab", "-", "aab"]);
        assert_eq!(split(r"\s+(?!\S)", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(split(r"\p{N}{1,3}", "1234567"), ["123", "456", "7"]);
        assert_eq!(split(r"é{2}x", "ééx éx"), ["ééx", " éx"]);
    }

    #[test]
    fn groups_are_taken_or_left() {
        assert_eq!(split(r"\p{L}+(?i:'s|'re)?", "it's WE'RE"), ["it's", " ", "WE'RE"]);
        assert_eq!(split(r"(?:ab|a)c", "acabc"), ["ac", "abc"]);
        assert_eq!(
            split(r"(?:a|ab)c", "abc"),
            ["abc"],
            "the second alternative when the first leaves nothing to match"
        );
    }

    #[test]
    fn classes() {
        assert_eq!(split(r"[\p{L}&&[^a-z]]+", "ABéc"), ["ABé", "c"]);
        assert_eq!(split(r"[^\s\p{L}]+", "a12\u{2003}b"), ["a", "12", "\u{2003}b"]);
        assert_eq!(split(r"[!\-\]x-z]+", "-y]!a"), ["-y]!", "a"]);
        let (got, want) = (split(r"[\u{3000}-。一-三]+", "一。\u{3000}"), ["一。", "\u{3000}"]);
        assert_eq!(got, want, "white space beyond ASCII is in no range");
        assert_eq!(split(r"\S+", "a b"), ["a", " ", "b"]);
        assert_eq!(split(r"[\p{L}&&[^一-三]]+", "é一bc"), ["é", "一", "bc"]);
    }

    #[test]
    fn phrases_have_single_blanks() {
        let expression = r" ?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\s+";
        assert_eq!(split(expression, "ab c  de 1 f "), ["ab c", "  ", "de", " ", "1", " f", " "]);
        assert_eq!(split(expression, "e\u{301}x ü"), ["e\u{301}x ü"]);
    }

    #[test]
    #[should_panic(expected = "not understood")]
    fn what_is_outside_the_subset_panics() {
        Pattern::compile("a$");
    }
}
