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
    let (kind, text) = grammar.written();
    Matcher::open(vocabulary, text.into_owned(), kind)
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

/// Every family that has a form for calls.
const FAMILIES: [Family; 16] = [
    Family::Hermes,
    Family::QwenXml,
    Family::Seed,
    Family::Llama3,
    Family::Harmony,
    Family::Glm,
    Family::MiniMax,
    Family::Dsml,
    Family::DeepSeek,
    Family::DeepSeek31,
    Family::Kimi,
    Family::Mistral,
    Family::Ministral,
    Family::Cohere,
    Family::Nemotron,
    Family::Lfm2,
];

fn calls(family: Family, parameters: &Value, many: bool) -> (Vec<Value>, Grammar) {
    let tools = vec![json!({"type": "function", "function": {"name": "write", "parameters": parameters}})];
    (tools.clone(), Grammar::Calls(Box::new(Calls { family, tools, many, or: None })))
}

/// What the output's parser makes of `text`: calls with their arguments.
fn parsed(family: Family, tools: &[Value], text: &str) -> Vec<(String, Value)> {
    let tools = Arc::new(tools.to_vec());
    let mut output = Output::new(Expect { family, tools, thinks: false, thinking: false, one_call: false });
    let mut deltas = Vec::new();
    output.push(text, &mut deltas);
    output.finish(false, &mut deltas);
    let mut calls: Vec<(String, String)> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Call(name) => calls.push((name, String::new())),
            Delta::Arguments(piece) => calls.last_mut().unwrap().1.push_str(&piece),
            other => panic!("{family:?}: {other:?} of {text}"),
        }
    }
    let read = |(name, arguments): (String, String)| {
        let arguments = serde_json::from_str(&arguments).unwrap_or_else(|e| panic!("{family:?}: {e}: {arguments}"));
        (name, arguments)
    };
    calls.into_iter().map(read).collect()
}

/// How far the grammar goes along with `text`, in bytes, and whether the answer may end there.
fn taken(tokenizer: &Tokenizer<'_>, vocabulary: &Arc<Vocabulary>, grammar: Grammar, text: &str) -> (usize, bool) {
    let mut matcher = open(vocabulary, grammar).unwrap();
    let mut tokens = Vec::new();
    tokenizer.encode(text, false, &mut tokens);
    let mut n_bytes = 0;
    for &token in &tokens {
        let mut bytes = Vec::new();
        tokenizer.token_bytes(token, false, &mut bytes);
        if !matcher.allowed().unwrap().is_allowed(token) {
            return (n_bytes, false);
        }
        matcher.take(token, &bytes).unwrap();
        n_bytes += bytes.len();
    }
    let allowed = matcher.allowed().unwrap();
    (n_bytes, vocabulary.end_tokens.iter().all(|&end| allowed.is_allowed(end)))
}

/// What the grammar of a forced call takes, the output's parser gets back.
#[test]
fn forced_calls_can_have_any_value() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let parameters = json!({"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}});
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
        let (tools, grammar) = calls(family, &parameters, false);
        assert_eq!(taken(tokenizer, &vocabulary, grammar, &text), (text.len(), true), "{family:?}: {text}");
        let want = [("write".to_owned(), json!({"text": value}))];
        assert_eq!(parsed(family, &tools, &text), want, "{family:?}");
    }
}

/// Whatever is written in a forced call has the keys and the types of the schema, in every family.
#[test]
fn forced_calls_follow_their_schema_in_every_family() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let parameters = json!({
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "kind": {"enum": ["one", "7"]},
            "place": {"$ref": "#/$defs/Place"},
            "note": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["n", "kind", "place"],
        "additionalProperties": false,
        "$defs": {"Place": {
            "type": "object",
            "properties": {"flag": {"type": "boolean"}, "inner": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]}},
            "required": ["flag", "inner"],
            "additionalProperties": false,
        }},
    });
    for family in FAMILIES.into_iter().chain([Family::Gemma4]) {
        for seed in 1..4 {
            let (tools, grammar) = calls(family, &parameters, false);
            let text = babble(tokenizer, &vocabulary, grammar, seed);
            let calls = parsed(family, &tools, &text);
            let [(name, arguments)] = calls.as_slice() else { panic!("{family:?}: {calls:?} of {text}") };
            assert_eq!(name, "write", "{family:?}");
            let keys: Vec<&String> = arguments.as_object().unwrap().keys().collect();
            assert!(keys.len() >= 3 && keys[..3] == ["n", "kind", "place"], "{family:?}: {text}");
            assert!(keys[3..].iter().all(|key| *key == "note"), "{family:?}: {text}");
            assert!(arguments["n"].is_i64() || arguments["n"].is_number(), "{family:?}: {text}");
            assert!(["one", "7"].contains(&arguments["kind"].as_str().unwrap()), "{family:?}: {text}");
            let mut place = &arguments["place"];
            while !place.is_null() {
                assert!(place["flag"].is_boolean() && place.as_object().unwrap().len() == 2, "{family:?}: {text}");
                place = &place["inner"];
            }
        }
    }
}

#[test]
fn a_forced_call_needs_what_is_required_and_takes_nothing_else() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let open_ended = json!({"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["a"], "additionalProperties": {"type": "integer"}});
    let mut closed = open_ended.clone();
    closed["additionalProperties"] = false.into();
    let begin = "<tool_call>\n<function=write>\n";
    let end = "</function>\n</tool_call>";
    let a = "<parameter=a>\nx\n</parameter>\n";
    for (parameters, inside, is_whole) in [
        (&closed, format!("{a}{end}"), true),
        (&closed, format!("{a}<parameter=n>\n12\n</parameter>\n{end}"), true),
        (&closed, end.to_owned(), false),
        (&closed, format!("{a}<parameter=n>\nx\n</parameter>\n{end}"), false),
        (&closed, format!("{a}<parameter=b>\n1\n</parameter>\n{end}"), false),
        (&open_ended, format!("{a}<parameter=b>\n1\n</parameter>\n{end}"), true),
        (&open_ended, format!("{a}<parameter=b>\nx\n</parameter>\n{end}"), false),
        (&open_ended, format!("{a}<parameter=a>\n1\n</parameter>\n{end}"), false),
    ] {
        let text = format!("{begin}{inside}");
        let (n, may_end) = taken(tokenizer, &vocabulary, calls(Family::QwenXml, parameters, false).1, &text);
        assert_eq!(n == text.len() && may_end, is_whole, "{parameters}: {n} bytes of {text}");
    }
    // Several, and JSON in place of them.
    let text = format!("{begin}{a}{end}");
    let (_, many) = calls(Family::QwenXml, &closed, true);
    let twice = format!("{text}\n{text}");
    assert_eq!(taken(tokenizer, &vocabulary, many, &twice), (twice.len(), true));
    let (tools, one) = calls(Family::QwenXml, &closed, false);
    assert!(taken(tokenizer, &vocabulary, one, &twice).0 < twice.len());
    let or = Some(json!({"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}));
    let either = Grammar::Calls(Box::new(Calls { family: Family::QwenXml, tools, many: true, or }));
    for text in [&text, "{\"v\": 1}"] {
        assert_eq!(taken(tokenizer, &vocabulary, either.clone(), text), (text.len(), true), "{text}");
    }
    assert!(taken(tokenizer, &vocabulary, either, "Hello").0 < 5);
}

#[test]
fn formats_that_are_known_are_known_to_the_library_and_others_are_remarks() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let of = |format: &str| Grammar::Schema(json!({"type": "string", "format": format}));
    for (format, text) in [
        ("date", "\"2026-01-31\""),
        ("time", "\"10:00:00Z\""),
        ("uuid", "\"123e4567-e89b-12d3-a456-426614174000\""),
        ("ipv4", "\"127.0.0.1\""),
        ("color", "\"anything\""),
        ("regex", "\"a*\""),
    ] {
        assert_eq!(taken(tokenizer, &vocabulary, of(format), text), (text.len(), true), "{format}");
    }
    assert!(!taken(tokenizer, &vocabulary, of("date"), "\"anything\"").1);
    for format in crate::serve::schema::FORMATS {
        assert!(open(&vocabulary, of(format)).is_ok(), "{format}");
    }
}

#[test]
fn one_of_some_texts_or_a_regular_expression() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    let choice = || Grammar::choice(&["good", "not \"good\"\n", "a/b"]);
    for text in ["good", "not \"good\"\n", "a/b"] {
        assert_eq!(taken(tokenizer, &vocabulary, choice(), text), (text.len(), true), "{text:?}");
    }
    assert!(!taken(tokenizer, &vocabulary, choice(), "bad").1);
    let regex = || Grammar::Regex(r"\d{3}/[a-c]+".to_owned());
    assert_eq!(taken(tokenizer, &vocabulary, regex(), "123/abc"), (7, true));
    assert!(!taken(tokenizer, &vocabulary, regex(), "12/abc").1);
}

#[test]
fn marks_that_are_control_tokens_are_written_as_such() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::read(&describe(tokenizer)).unwrap();
    // Some control token of this vocabulary stands for the mark.
    let is_mark = |id: &u32| tokenizer.is_control(*id) && !tokenizer.is_end_of_generation(*id);
    let id = (0..tokenizer.n_tokens()).find(is_mark).unwrap();
    for (family, mark, parameters) in [
        (Family::Ministral, "[TOOL_CALLS]", json!({"type": "object", "additionalProperties": false})),
        (Family::Glm, "</arg_value>", object_of_text()),
        (Family::Gemma4, "<|\"|>", object_of_text()),
    ] {
        let tools = vec![json!({"function": {"name": "f", "parameters": parameters}})];
        let calls = Calls { family, tools, many: false, or: None };
        let lark = super::calls::lark(&calls, |text| (text == mark).then_some(id)).unwrap();
        let is_written = lark.contains(&format!("<[{id}]>")) && !lark.contains(&Value::from(mark).to_string());
        assert!(is_written, "{family:?}: {lark}");
        let mut matcher = open(&vocabulary, Grammar::Text(lark)).unwrap();
        if family == Family::Ministral {
            let allowed = next(&mut matcher, tokenizer, None).unwrap();
            assert_eq!(allowed, [id], "{:?}", tokenizer.text(id));
            assert!(!next(&mut matcher, tokenizer, Some(id)).unwrap().is_empty());
        }
    }
}

fn object_of_text() -> Value {
    json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
}
