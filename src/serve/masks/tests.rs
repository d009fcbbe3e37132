//! Masks over the demo model's vocabulary: what they allow is what the grammar says, and nothing explodes.

use std::sync::Arc;

use serde_json::json;

use super::super::output::{Delta, Expect, Family, Output};
use super::matcher::Matcher;
use super::vocabulary::{Vocabulary, describe};
use super::*;
use crate::load::header::ModelFiles;
use crate::tokenizer;

pub(super) fn vocabulary() -> &'static Tokenizer<'static> {
    let demo: &'static [u8] = include_bytes!("../../demo/brim-demo.gguf");
    let files = Box::leak(Box::new(ModelFiles::embedded("demo", demo).unwrap()));
    let source = tokenizer::source_from(&files.metadata(), None).unwrap();
    let bytes = tokenizer::region_bytes(&source).unwrap() as usize;
    let region = Box::leak(vec![0u8; bytes].into_boxed_slice());
    Box::leak(Box::new(tokenizer::build(&source, region).unwrap()))
}

fn open(vocabulary: &Arc<Vocabulary>, grammar: Grammar) -> Result<Matcher, String> {
    match grammar {
        Grammar::Schema(schema) => Matcher::open(vocabulary, schema.to_string(), true),
        Grammar::Text(text) => Matcher::open(vocabulary, text, false),
    }
}

/// The tokens that may come after `token`, or first.
fn next(matcher: &mut Matcher, tokenizer: &Tokenizer<'_>, token: Option<u32>) -> Result<Vec<u32>, String> {
    if let Some(token) = token {
        let mut bytes = Vec::new();
        tokenizer.token_bytes(token, false, &mut bytes);
        matcher.take(token, &bytes)?;
    }
    let allowed = matcher.allowed()?;
    Ok((0..tokenizer.n_tokens()).filter(|&id| allowed.is_allowed(id)).collect())
}

/// Writes at random what the grammar allows, until it ends.
fn babble(tokenizer: &Tokenizer<'_>, vocabulary: &Arc<Vocabulary>, grammar: Grammar, seed: u64) -> String {
    let mut matcher = open(vocabulary, grammar).unwrap();
    let mut bytes = Vec::new();
    let mut random = seed;
    let mut token = None;
    for step in 0..2000 {
        let allowed = next(&mut matcher, tokenizer, token).unwrap();
        assert!(!allowed.is_empty(), "nothing may come after {}", String::from_utf8_lossy(&bytes));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // In the long run the end, if it may come; and quotes, which end texts.
        let end = allowed.iter().copied().find(|&id| tokenizer.is_end_of_generation(id));
        let quote = allowed.iter().copied().find(|&id| matches!(tokenizer.text(id), b"\"" | b"}" | b"]"));
        let chosen = match end {
            Some(end) if step > 20 => end,
            _ if step > 60 && quote.is_some() => quote.unwrap(),
            _ => allowed[(random >> 33) as usize % allowed.len()],
        };
        if tokenizer.is_end_of_generation(chosen) {
            return String::from_utf8(bytes).unwrap();
        }
        tokenizer.token_bytes(chosen, false, &mut bytes);
        token = Some(chosen);
    }
    panic!("it never ends: {}", String::from_utf8_lossy(&bytes));
}

#[test]
fn whatever_is_drawn_follows_schema_and_grammar() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["a", "b"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "kind", "n"], "additionalProperties": false});
    for seed in 1..6 {
        let text = babble(tokenizer, &vocabulary, Grammar::Schema(schema.clone()), seed);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        assert!(value["name"].is_string() && ["a", "b"].contains(&value["kind"].as_str().unwrap()), "{text}");
        assert!((0..=99).contains(&value["n"].as_i64().unwrap()), "{text}");

        let gbnf = "root ::= word (\", \" word){2}\nword ::= [a-c]+ \"-é\"?";
        let text = babble(tokenizer, &vocabulary, Grammar::Text(gbnf.to_owned()), seed);
        let words: Vec<&str> = text.split(", ").collect();
        let is_word = |word: &str| {
            let letters = word.strip_suffix("-é").unwrap_or(word);
            !letters.is_empty() && letters.chars().all(|c| ('a'..='c').contains(&c))
        };
        assert!(words.len() == 3 && words.iter().all(|word| is_word(word)), "{text}");

        let lark = "start: NUMBER \"+\" NUMBER\nNUMBER: /[0-9]{1,3}/";
        let text = babble(tokenizer, &vocabulary, Grammar::Text(lark.to_owned()), seed);
        let (a, b) = text.split_once('+').unwrap();
        assert!(a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok(), "{text}");
    }
}

/// What the grammar of a forced call takes, the output's parser gets back.
#[test]
fn forced_calls_can_have_any_value() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let tools = [json!({"type": "function", "function": {"name": "write", "parameters": {
        "type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}}}})];
    let value = "if a < b && c > d:\n  <p>\"x\"</p>";
    for (family, text) in [
        (
            Family::QwenXml,
            format!(
                "<tool_call>\n<function=write>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>"
            ),
        ),
        (
            Family::Glm,
            format!("<tool_call>write\n<arg_key>text</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"),
        ),
        (
            Family::MiniMax,
            format!(
                "<minimax:tool_call>\n<invoke name=\"write\">\n<parameter name=\"text\">{value}</parameter>\n</invoke>\n</minimax:tool_call>"
            ),
        ),
        (Family::Gemma4, format!("<|tool_call>call:write{{text:<|\"|>{value}<|\"|>}}<tool_call|>")),
        (Family::Hermes, {
            let call = json!({"name": "write", "arguments": {"text": value}});
            let call = call.to_string().replace("\":", "\": ").replace(",\"", ", \"");
            format!("<tool_call>\n{call}\n</tool_call>")
        }),
    ] {
        let grammar = super::super::job::call_grammar(family, &tools).unwrap();
        let mut matcher = open(&vocabulary, Grammar::Text(grammar)).unwrap();
        let mut tokens = Vec::new();
        tokenizer.encode(&text, false, &mut tokens);
        for &token in &tokens {
            let allowed = matcher.allowed().unwrap();
            assert!(allowed.is_allowed(token), "{family:?}: {:?} in {text}", tokenizer.text(token));
            let mut bytes = Vec::new();
            tokenizer.token_bytes(token, false, &mut bytes);
            matcher.take(token, &bytes).unwrap();
        }
        let allowed = matcher.allowed().unwrap();
        assert!(vocabulary.end_tokens.iter().all(|&end| allowed.is_allowed(end)), "{family:?} may end");
        let mut output = Output::new(Expect { family, tools: Rc::new(tools.to_vec()), thinks: false, thinking: false });
        let mut deltas = Vec::new();
        output.push(&text, &mut deltas);
        output.finish(&mut deltas);
        let [Delta::Call(name), pieces @ ..] = deltas.as_slice() else { panic!("{deltas:?}") };
        let pieces = pieces.iter().map(|delta| match delta {
            Delta::Arguments(piece) => piece.as_str(),
            other => panic!("{other:?}"),
        });
        let arguments: Value = serde_json::from_str(&pieces.collect::<String>()).unwrap();
        assert_eq!((name.as_str(), arguments), ("write", json!({"text": value})), "{family:?}");
    }
}
