//! Masks over the demo model's vocabulary: what they allow is what the grammar says, and nothing explodes.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::output::{Delta, Expect, Family, Output};
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

/// Writes at random what the grammar allows, until it ends.
fn babble(tokenizer: &Tokenizer<'_>, vocabulary: &Arc<Vocabulary>, grammar: Grammar, seed: u64) -> String {
    let mut matcher = open(vocabulary, grammar).unwrap();
    let mut bytes = Vec::new();
    let mut random = seed;
    let mut token = None;
    for step in 0..2000 {
        let mask = next(&mut matcher, tokenizer, token, vec![0; tokenizer.n_tokens().div_ceil(32) as usize]).unwrap();
        let allowed: Vec<u32> =
            (0..tokenizer.n_tokens()).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
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

/// Takes the first tokens that may come, some of the many, some hundred times or until the end.
fn walk(tokenizer: &Tokenizer<'_>, mut matcher: Matcher) -> Result<(), String> {
    let mut mask = next(&mut matcher, tokenizer, None, vec![0; tokenizer.n_tokens().div_ceil(32) as usize])?;
    for step in 0..300 {
        let mut allowed = (0..tokenizer.n_tokens())
            .filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1 && !tokenizer.is_end_of_generation(*id));
        let Some(token) = allowed.clone().nth(step % 7).or_else(|| allowed.next()) else { return Ok(()) };
        mask = next(&mut matcher, tokenizer, Some(token), mask)?;
    }
    Ok(())
}

#[test]
fn whatever_is_drawn_follows_schema_and_grammar() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::new(tokenizer).unwrap();
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
    let vocabulary = Vocabulary::new(tokenizer).unwrap();
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
            matcher.take(tokenizer, token).unwrap();
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

#[test]
fn grammars_that_explode_are_refused_in_time() {
    let tokenizer = vocabulary();
    let vocabulary = Vocabulary::new(tokenizer).unwrap();
    let nested = |n: usize| (0..n).fold(json!({"type": "string"}), |inner, _| json!({"anyOf": [inner.clone(), inner]}));
    let bombs = [
        Grammar::Text(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))),
        Grammar::Text("start: /((((a{1,1000}){1,1000}){1,1000}){1,1000})/".to_owned()),
        Grammar::Text("start: /(.*a){12}.{200}(x|y|.)*/ /[^b]*b.{500}/".to_owned()),
        Grammar::Text(format!("start: {}", (0..30_000).map(|i| format!("\"a{i}\"")).collect::<Vec<_>>().join(" | "))),
        Grammar::Text("start: start start | \"\"".to_owned()),
        Grammar::Text("start: a\na: a".to_owned()),
        Grammar::Text("start: x{100000}\nx: y{100000}\ny: \"a\"".to_owned()),
        Grammar::Text("root ::= root".to_owned()),
        Grammar::Text("start: %json {\"type\": 5}".to_owned()),
        Grammar::Text("\u{0}\u{1}".to_owned()),
        Grammar::Text(String::new()),
        Grammar::Schema(nested(14)),
        Grammar::Schema(json!({"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}})),
        Grammar::Schema(json!({"type": "string", "minLength": 100_000_000})),
        Grammar::Schema(json!({"type": "string", "pattern": "^(([a-z]+)+)+[0-9]{1,5000}$"})),
        Grammar::Schema(json!({"$ref": "#"})),
        Grammar::Schema(json!({"$ref": "https://example.com/schema"})),
        Grammar::Schema(
            json!({"allOf": (0..60).map(|i| json!({"anyOf": [{"multipleOf": i + 7}, {"minimum": i}]})).collect::<Vec<_>>()}),
        ),
        Grammar::Schema(json!({"type": "nonsense"})),
        Grammar::Schema(json!({"enum": []})),
    ];
    for bomb in bombs {
        let name: String = format!("{bomb:?}").chars().take(80).collect();
        let begun = Instant::now();
        let result = check(&bomb).and_then(|()| open(&vocabulary, bomb)).and_then(|matcher| walk(tokenizer, matcher));
        let elapsed = begun.elapsed();
        // Tests are built with every check on; a release is several times faster.
        assert!(elapsed < Duration::from_secs(5), "{name}: {elapsed:?}");
        println!("{elapsed:?} {}: {name}", result.map_or_else(|e| e, |_| "taken".to_owned()));
    }
}
