//! GBNF, llama.cpp's grammars, as Lark. (Format: llama.cpp `grammars/README.md`.)

use std::fmt::Write as _;

/// Whether a grammar is GBNF: its rules are defined by `::=`.
pub fn is_gbnf(text: &str) -> bool {
    text.contains("::=")
}

/// The same grammar in Lark.
///
/// # Errors
/// The line of what is no GBNF.
pub fn to_lark(text: &str) -> Result<String, String> {
    let mut reader = Reader { rest: text, line: 1, out: String::with_capacity(text.len() * 2), after_rule: false };
    reader.grammar()?;
    Ok(reader.out)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    out: String,
    /// A rule has begun, so that what looks like a name may be the next one.
    after_rule: bool,
}

/// The name of a rule in Lark: lower case, no dashes; `root` is where it starts.
fn name(gbnf: &str) -> String {
    match gbnf {
        "root" => "start".to_owned(),
        // A prefix keeps clear of Lark's own words, and of `start`.
        other => {
            let mut out = String::from("r_");
            for c in other.chars() {
                match c {
                    'a'..='z' | '0'..='9' => out.push(c),
                    'A'..='Z' => {
                        out.push_str("_u");
                        out.push(c.to_ascii_lowercase());
                    }
                    _ => out.push('_'),
                }
            }
            out
        }
    }
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("GBNF, line {}: {what}", self.line))
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.line += usize::from(c == '\n');
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn blanks(&mut self) {
        while let Some(c) = self.peek() {
            match c {
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.bump();
                    }
                }
                c if c.is_whitespace() => drop(self.bump()),
                _ => return,
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn grammar(&mut self) -> Result<(), String> {
        loop {
            self.blanks();
            let Some(c) = self.peek() else { break };
            match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.bump();
                    self.out.push_str(" /(?s:.)/");
                }
                '(' | ')' | '|' => {
                    self.bump();
                    let _ = write!(self.out, " {c}");
                }
                '*' | '+' | '?' => {
                    self.bump();
                    self.out.push(c);
                }
                '{' => self.counts()?,
                c if c.is_ascii_alphanumeric() || c == '_' => self.rule_or_name()?,
                c => return self.fail(&format!("{c:?} has no meaning here")),
            }
        }
        if !self.after_rule {
            return self.fail("the grammar has no rule");
        }
        self.out.push('\n');
        Ok(())
    }

    fn rule_or_name(&mut self) -> Result<(), String> {
        let word = self.word();
        self.blanks();
        if let Some(rest) = self.rest.strip_prefix("::=") {
            self.rest = rest;
            if self.after_rule {
                self.out.push('\n');
            }
            self.after_rule = true;
            self.out.push_str(&name(word));
            self.out.push(':');
            return Ok(());
        }
        if !self.after_rule {
            return self.fail(&format!("{word} stands before the first rule"));
        }
        let _ = write!(self.out, " {}", name(word));
        Ok(())
    }

    /// `{3}`, `{3,}` or `{3,5}`.
    fn counts(&mut self) -> Result<(), String> {
        let Some((inside, rest)) = self.rest[1..].split_once('}') else { return self.fail("a { without its }") };
        let inside: String = inside.split_whitespace().collect();
        if !inside.chars().all(|c| c.is_ascii_digit() || c == ',') || inside.is_empty() {
            return self.fail("needed {n}, {n,} or {n,m}");
        }
        let _ = write!(self.out, "{{{inside}}}");
        self.rest = rest;
        Ok(())
    }

    /// One character of a literal or a class, escapes resolved.
    fn character(&mut self) -> Result<char, String> {
        let Some(c) = self.bump() else { return self.fail("the grammar ends inside quotes or brackets") };
        if c != '\\' {
            return Ok(c);
        }
        let digits = match self.bump() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) => return Ok(c),
            None => return self.fail("the grammar ends with a backslash"),
        };
        let hex = self.rest.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        let Some(c) = hex else { return self.fail("this escape is not a character") };
        self.rest = &self.rest[digits..];
        Ok(c)
    }

    fn literal(&mut self) -> Result<(), String> {
        self.bump();
        let mut text = String::new();
        while self.peek() != Some('"') {
            text.push(self.character()?);
        }
        self.bump();
        // Lark's strings have JSON's escapes.
        let _ = write!(self.out, " {}", serde_json::Value::String(text));
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        self.bump();
        let mut class = String::from("[");
        if self.peek() == Some('^') {
            self.bump();
            class.push('^');
        }
        let mut first = true;
        while first || self.peek() != Some(']') {
            first = false;
            if self.peek() == Some(']') {
                return self.fail("an empty [ ]");
            }
            if self.peek() == Some('-') {
                self.bump();
                // A dash between two characters is a range, else itself.
                let is_range = !class.ends_with(['[', '^']) && self.peek() != Some(']');
                class.push_str(if is_range { "-" } else { "\\-" });
                continue;
            }
            let c = self.character()?;
            let _ = write!(class, "\\u{{{:x}}}", u32::from(c));
        }
        self.bump();
        let _ = write!(self.out, " /{class}]/");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_classes_and_counts() {
        let gbnf = "# a list\nroot ::= item-a (\", \" item-a){0,3} end? # done\nitem-a ::= [a-z\\]\\x41^-]+ |\n  \"\\\"q\\n\" .\nend ::= [^\\n]*\n";
        let lark = to_lark(gbnf).unwrap();
        assert_eq!(
            lark,
            "start: r_item_a ( \", \" r_item_a ){0,3} r_end?\n\
             r_item_a: /[\\u{61}-\\u{7a}\\u{5d}\\u{41}\\u{5e}\\-]/+ | \"\\\"q\\n\" /(?s:.)/\n\
             r_end: /[^\\u{a}]/*\n"
        );
        assert!(is_gbnf(gbnf) && !is_gbnf("start: \"a\""));
    }

    #[test]
    fn what_is_no_gbnf_is_refused_with_its_line() {
        for (text, want) in [
            ("root ::= \"a", "line 1: the grammar ends"),
            ("root ::= [", "line 1"),
            ("\nroot ::= a{x}", "line 2: needed {n}"),
            ("a b", "before the first rule"),
            ("# ::=", "no rule"),
            ("root ::= %", "no meaning"),
            ("root ::= \"\\xZZ\"", "escape"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.contains(want), "{want:?} not in {error:?}");
        }
    }
}
