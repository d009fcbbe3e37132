//! Which file of `src/` names what of which other: modules, `use` trees and paths in code, read from the text.
//!
//! A path leads through modules and re-exports to the file that defines the item. Comments and strings are nothing; what a
//! macro makes, and methods called on a value, are not seen.

use std::collections::{HashMap, HashSet};

/// A file's use of something in another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arrow {
    /// The file, below `src/`.
    pub from: String,
    /// The file that defines what is named; `None` where that is a module as a whole.
    pub to: Option<String>,
    /// What is named, from the crate's root on.
    pub path: Vec<String>,
    /// Whether only tests are built with it.
    pub in_tests: bool,
    /// Whether this is a module's re-export of what lies inside it, and the module itself does not use it.
    pub is_facade: bool,
}

/// A path in code, or what a `use` brings.
struct Named {
    segments: Vec<String>,
    in_tests: bool,
    /// For a `use`: the name it has here, and whether it is exported again.
    bound: Option<(String, bool)>,
}

#[derive(Default)]
struct Module {
    path: Vec<String>,
    file: String,
    named: Vec<Named>,
    defines: HashSet<String>,
    /// Words of its code outside of `use`.
    words: HashSet<String>,
}

/// All modules, by path.
#[derive(Default)]
struct Modules {
    all: HashMap<Vec<String>, Module>,
    tests: HashSet<Vec<String>>,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    Module(Vec<String>),
    Item(String),
}

/// The arrows between files, given as path below `src/` and text.
pub fn arrows(sources: &[(String, String)]) -> Vec<Arrow> {
    let mut modules = Modules::default();
    for (file, text) in sources {
        modules.read(file, &tokens(text));
    }
    let mut found: Vec<Arrow> = modules.all.values().flat_map(|module| modules.arrows_of(module)).collect();
    found.sort_by(|a, b| (&a.from, &a.path).cmp(&(&b.from, &b.path)));
    found.dedup();
    found
}

/// The module that a file is: `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.trim_end_matches(".rs");
    let parts: Vec<&str> = inside.strip_suffix("/mod").unwrap_or(inside).split('/').collect();
    if parts == ["lib"] { Vec::new() } else { parts.into_iter().map(str::to_owned).collect() }
}

impl Modules {
    /// Adds the modules of one file.
    fn read(&mut self, file: &str, tokens: &[&str]) {
        let in_tests = under_test(tokens);
        let new = |path: Vec<String>| Module { path, file: file.to_owned(), ..Module::default() };
        // Open modules, each with the depth of its braces.
        let mut open = vec![(new(module_of(file)), 0)];
        let (mut at, mut depth) = (0, 0);
        while at < tokens.len() {
            let (module, base) = open.last_mut().expect("the file itself stays open");
            let before = at.checked_sub(1).map_or("", |i| tokens[i]);
            let next = tokens.get(at + 1).copied().unwrap_or_default();
            match tokens[at] {
                "{" => depth += 1,
                "}" => depth -= 1,
                "mod" if is_word(next) => {
                    let path = [module.path.as_slice(), &[next.to_owned()]].concat();
                    if in_tests[at] {
                        self.tests.insert(path.clone());
                    }
                    if tokens.get(at + 2) == Some(&"{") {
                        open.push((new(path), depth + 1));
                    }
                    at += 1;
                }
                "use" if next != "<" => {
                    let len = tokens[at..].iter().position(|&t| t == ";").unwrap_or(tokens.len() - at);
                    let is_pub = ["pub", ")"].contains(&before);
                    for (segments, name) in use_tree(&tokens[at + 1..at + len], &[]) {
                        let bound = Some((name, is_pub));
                        module.named.push(Named { segments, in_tests: in_tests[at], bound });
                    }
                    at += len;
                }
                "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" if depth == *base => {
                    module.defines.insert(next.to_owned());
                }
                "macro_rules" => {
                    module.defines.extend(tokens.get(at + 2).map(|name| (*name).to_owned()));
                }
                word if is_word(word) && ![".", "::"].contains(&before) => {
                    module.words.insert(word.to_owned());
                    let len = path_len(&tokens[at..]);
                    if len > 1 && (before != "$" || word == "crate") {
                        let segments = tokens[at..at + len].iter().step_by(2).map(|&s| s.to_owned()).collect();
                        module.named.push(Named { segments, in_tests: in_tests[at], bound: None });
                    }
                    at += len - 1;
                }
                _ => {}
            }
            at += 1;
            if open.len() > 1 && tokens[at - 1] == "}" && depth < open[open.len() - 1].1 {
                let (done, _) = open.pop().expect("there are two");
                self.all.insert(done.path.clone(), done);
            }
        }
        self.all.extend(open.into_iter().map(|(module, _)| (module.path.clone(), module)));
    }

    fn arrows_of(&self, module: &Module) -> Vec<Arrow> {
        let is_test = (0..=module.path.len()).any(|len| self.tests.contains(&module.path[..len]));
        let mut arrows = Vec::new();
        for named in &module.named {
            for path in self.spelled_out(module, named) {
                let to = match self.resolve(&path, &mut Vec::new()) {
                    Some(Place::Item(file)) => Some(file),
                    _ => None,
                };
                let is_inside = path.starts_with(&module.path);
                let is_export = matches!(&named.bound, Some((name, true)) if !module.words.contains(name));
                let is_facade = is_inside && is_export;
                let in_tests = is_test || named.in_tests;
                let from = module.file.clone();
                if to.as_ref() != Some(&from) {
                    arrows.push(Arrow { from, to, path, in_tests, is_facade });
                }
            }
        }
        arrows
    }

    /// The path from the crate's root on, or for `*` all paths that the module uses by it; none to other crates.
    fn spelled_out(&self, module: &Module, named: &Named) -> Vec<Vec<String>> {
        let Some(path) = self.absolute(module, &named.segments) else { return Vec::new() };
        match path.split_last() {
            Some((last, parent)) if last == "*" => module
                .words
                .iter()
                .filter(|word| self.all.get(parent).is_some_and(|m| self.item(m, word, &mut Vec::new()).is_some()))
                .map(|word| child(parent, word))
                .collect(),
            _ => vec![path],
        }
    }

    /// A path as written in `module`, from the crate's root on; `None` if it leads to another crate or a local name.
    fn absolute(&self, module: &Module, segments: &[String]) -> Option<Vec<String>> {
        let head = segments.first()?;
        let base = match head.as_str() {
            "crate" => Some(Vec::new()),
            "self" => Some(module.path.clone()),
            "super" => Some(module.path[..module.path.len().checked_sub(1)?].to_vec()),
            name if self.all.contains_key(&child(&module.path, name)) => Some(child(&module.path, name)),
            _ => None,
        };
        if let Some(mut path) = base {
            for segment in &segments[1..] {
                match segment.as_str() {
                    "super" => drop(path.pop()),
                    name => path.push(name.to_owned()),
                }
            }
            return Some(path);
        }
        // A name that a `use` has brought; what it leads to may be written in the same way.
        let is_bound = |named: &&Named| named.bound.as_ref().is_some_and(|(name, _)| name == head);
        let bound = module.named.iter().find(is_bound).filter(|bound| bound.segments[0] != *head)?;
        let start = self.absolute(module, &bound.segments)?;
        Some([start.as_slice(), &segments[1..]].concat())
    }

    /// Where a path from the crate's root on leads.
    fn resolve(&self, path: &[String], seen: &mut Vec<Vec<String>>) -> Option<Place> {
        let mut at = Vec::new();
        for (i, name) in path.iter().enumerate() {
            let module = self.all.get(&at)?;
            let inner = child(&at, name);
            let has_inner = self.all.contains_key(&inner);
            // At the end of a path an item comes before a module of the same name.
            let is_item = i + 1 == path.len() || !has_inner;
            match is_item.then(|| self.item(module, name, seen)).flatten() {
                Some(Place::Item(file)) => return Some(Place::Item(file)),
                Some(Place::Module(path)) if !has_inner => at = path,
                _ if has_inner => at = inner,
                // What a macro makes is where the macro is called.
                _ => return Some(Place::Item(module.file.clone())),
            }
        }
        Some(Place::Module(at))
    }

    /// What a module calls `name`: its own, or what it has from elsewhere.
    fn item(&self, module: &Module, name: &str, seen: &mut Vec<Vec<String>>) -> Option<Place> {
        if module.defines.contains(name) {
            return Some(Place::Item(module.file.clone()));
        }
        let here = child(&module.path, name);
        if seen.contains(&here) {
            return None;
        }
        seen.push(here);
        for named in module.named.iter().filter(|named| named.bound.is_some()) {
            let Some((bound, _)) = &named.bound else { continue };
            let Some(mut path) = self.absolute(module, &named.segments) else { continue };
            if bound == "*" {
                path.pop();
                let origin = self.all.get(&path).filter(|origin| origin.path != module.path);
                if let Some(place) = origin.and_then(|origin| self.item(origin, name, seen)) {
                    return Some(place);
                }
            } else if bound == name {
                return self.resolve(&path, seen);
            }
        }
        None
    }
}

fn child(path: &[String], name: &str) -> Vec<String> {
    [path, &[name.to_owned()]].concat()
}

/// The paths of a `use` tree, each with the name it has from then on.
fn use_tree(tokens: &[&str], prefix: &[String]) -> Vec<(Vec<String>, String)> {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at] {
            "{" => {
                let inner = &tokens[at + 1..tokens.len() - 1];
                return split_at_commas(inner).into_iter().flat_map(|part| use_tree(part, &path)).collect();
            }
            "as" => return vec![(path, tokens[at + 1].to_owned())],
            "self" if !prefix.is_empty() => {}
            "::" => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    let name = path.last().cloned().unwrap_or_default();
    if tokens.is_empty() { Vec::new() } else { vec![(path, name)] }
}

fn split_at_commas<'t, 's>(tokens: &'t [&'s str]) -> Vec<&'t [&'s str]> {
    let mut depth = 0;
    let is_end = |token: &&str| {
        depth += i32::from(*token == "{") - i32::from(*token == "}");
        depth == 0 && *token == ","
    };
    tokens.split(is_end).collect()
}

/// Tokens of the path at the start: `a`, or `a::b::c` without generics.
fn path_len(tokens: &[&str]) -> usize {
    let mut len = 1;
    while tokens.get(len) == Some(&"::") && tokens.get(len + 1).is_some_and(|token| is_word(token)) {
        len += 2;
    }
    len
}

/// For each token whether it belongs to an item below `#[cfg(test)]`.
fn under_test(tokens: &[&str]) -> Vec<bool> {
    let mut under = vec![false; tokens.len()];
    for at in 0..tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "("]) {
            let end = item_end(tokens, at + 1);
            let condition = &tokens[at..end];
            if condition.contains(&"test") && !condition.contains(&"not") {
                // Further attributes lie between.
                let mut start = end;
                while tokens.get(start) == Some(&"#") {
                    start = item_end(tokens, start + 1);
                }
                under[start..item_end(tokens, start)].fill(true);
            }
        }
    }
    under
}

/// Behind the bracket that is opened at `start`, or the item that begins there.
fn item_end(tokens: &[&str], start: usize) -> usize {
    let is_bracket = tokens.get(start) == Some(&"[");
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        let closes = *token == "}" || (is_bracket && *token == "]");
        if depth < 0 || (depth == 0 && (closes || [";", ","].contains(token))) {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The words and signs of Rust code, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped_len(rest);
        let len = match first {
            _ if skipped > 0 => skipped,
            c if c.is_alphanumeric() || c == '_' => word_len(rest),
            _ if rest.starts_with("::") || rest.starts_with("..") => 2,
            _ => first.len_utf8(),
        };
        if skipped == 0 {
            tokens.push(&rest[..len]);
        }
        rest = &rest[len..];
    }
    tokens
}

fn word_len(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// How long what stands first is, if it is no code; else 0.
fn skipped_len(text: &str) -> usize {
    let up_to = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with(char::is_whitespace) {
        return text.len() - text.trim_start().len();
    }
    if text.starts_with("//") {
        return up_to("\n", 2);
    }
    if text.starts_with("/*") {
        let (mut end, mut from) = (up_to("*/", 2), 2);
        while let Some(inner) = text[from..end].find("/*") {
            from += inner + 2;
            end = up_to("*/", end);
        }
        return end;
    }
    for prefix in ["br", "cr", "r", "b", "c", ""] {
        let Some(quoted) = text.strip_prefix(prefix) else { continue };
        let hashes = if prefix.ends_with('r') { quoted.len() - quoted.trim_start_matches('#').len() } else { 0 };
        let start = prefix.len() + hashes + 1;
        match quoted[hashes..].chars().next() {
            Some('"') if prefix.ends_with('r') => return up_to(&format!("\"{}", "#".repeat(hashes)), start),
            Some('"') => return start + quoted_len(&text[start..], '"'),
            Some('\'') if ["b", ""].contains(&prefix) => return start + character_len(&text[start..]),
            _ => {}
        }
    }
    0
}

/// Up to and with the closing `quote`.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Behind the `'` of a character, or of a lifetime, which has no closing one.
fn character_len(text: &str) -> usize {
    let mut chars = text.chars();
    let first = chars.next().unwrap_or_default();
    if first == '\\' || chars.next() == Some('\'') { quoted_len(text, '\'') } else { word_len(text) }
}
