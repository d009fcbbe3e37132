//! Calls as LFM2 writes them: a list of calls in Python, `[NAME(KEY=VALUE, ...), ...]`, whose values are literals of
//! Python or JSON.

use serde_json::{Map, Number, Value};

use super::pieces::Call;

/// Deepest nesting, as that of JSON that is read.
const DEPTH_MAX: usize = 128;

/// The calls that are the whole of `text`; `None` if that has another form.
pub fn parse(text: &str) -> Option<Vec<Call>> {
    let mut rest = Rest(text.trim());
    let is_list = rest.strip("[").is_some();
    let mut calls = Vec::new();
    loop {
        if is_list && rest.strip("]").is_some() {
            break;
        }
        calls.push(rest.call()?);
        if rest.strip(",").is_none() {
            if is_list {
                rest.strip("]")?;
            }
            break;
        }
    }
    (rest.0.trim().is_empty() && !calls.is_empty()).then_some(calls)
}

/// The name of the first call in a text that breaks off.
pub fn name_in(text: &str) -> Option<String> {
    let mut rest = Rest(text.trim_start());
    let _ = rest.strip("[");
    let name = rest.name()?;
    rest.strip("(").map(|()| name)
}

struct Rest<'a>(&'a str);

impl Rest<'_> {
    fn strip(&mut self, mark: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(mark)?;
        Some(())
    }

    fn name(&mut self) -> Option<String> {
        self.0 = self.0.trim_start();
        let is_of_names = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let end = self.0.find(|c| !is_of_names(c)).unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        self.0 = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.name()?;
        self.strip("(")?;
        let mut arguments = Map::new();
        while self.strip(")").is_none() {
            let key = self.name()?;
            self.strip("=")?;
            arguments.insert(key, self.value(0)?);
            if self.strip(",").is_none() {
                self.strip(")")?;
                break;
            }
        }
        Some(Call { name, arguments: Value::Object(arguments).to_string() })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.0 = self.0.trim_start();
        match self.0.chars().next()? {
            quote @ ('"' | '\'') => self.text(quote).map(Value::String),
            '[' => self.list("[", "]", depth),
            '(' => self.list("(", ")", depth),
            '{' => self.object(depth),
            _ => self.word(),
        }
    }

    /// A number, or a word of Python or JSON.
    fn word(&mut self) -> Option<Value> {
        let end = self.0.find(|c: char| c.is_whitespace() || ",)]}:".contains(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        match word {
            "True" | "true" => Some(true.into()),
            "False" | "false" => Some(false.into()),
            "None" | "null" => Some(Value::Null),
            number => number.parse::<Number>().ok().map(Value::Number),
        }
    }

    fn text(&mut self, quote: char) -> Option<String> {
        let mut out = String::new();
        let mut chars = self.0.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.0 = &self.0[at + c.len_utf8()..];
                    return Some(out);
                }
                '\\' => match chars.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    c @ ('\\' | '\'' | '"' | '/') => out.push(c),
                    c @ ('u' | 'x') => {
                        let digits = if c == 'u' { 4 } else { 2 };
                        let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&hex, 16).ok()?;
                        out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    c => out.extend(['\\', c]),
                },
                c => out.push(c),
            }
        }
        None
    }

    fn list(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        self.strip(open)?;
        let mut values = Vec::new();
        while self.strip(close).is_none() {
            values.push(self.value(depth + 1)?);
            if self.strip(",").is_none() {
                self.strip(close)?;
                break;
            }
        }
        Some(Value::Array(values))
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.strip("{")?;
        let mut pairs = Map::new();
        while self.strip("}").is_none() {
            let Value::String(key) = self.value(depth + 1)? else { return None };
            self.strip(":")?;
            pairs.insert(key, self.value(depth + 1)?);
            if self.strip(",").is_none() {
                self.strip("}")?;
                break;
            }
        }
        Some(Value::Object(pairs))
    }
}
