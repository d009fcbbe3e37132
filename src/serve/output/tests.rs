//! Every family, whole and cut at every byte: the pieces must add up to the same.

use std::rc::Rc;

use serde_json::json;

use super::*;

fn tools() -> Rc<Vec<Value>> {
    Rc::new(vec![json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}})])
}

fn expect(family: Family, with_tools: bool) -> Expect {
    let tools = if with_tools { tools() } else { Rc::default() };
    Expect { family, tools, thinks: true, thinking: false }
}

/// Reasoning, content and calls, pieces put together.
fn joined(deltas: &[Delta]) -> (String, String, Vec<(String, Value)>) {
    let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => reasoning.push_str(text),
            Delta::Content(text) => content.push_str(text),
            Delta::Call(name) => calls.push((name.clone(), String::new())),
            Delta::Arguments(piece) => calls.last_mut().unwrap().1.push_str(piece),
        }
    }
    let parsed = |(name, arguments): (String, String)| (name, serde_json::from_str(&arguments).unwrap());
    (reasoning, content, calls.into_iter().map(parsed).collect())
}

fn take(expect: &Expect, pieces: &[&str]) -> (String, String, Vec<(String, Value)>) {
    let mut output = Output::new(expect.clone());
    let mut deltas = Vec::new();
    pieces.iter().for_each(|piece| output.push(piece, &mut deltas));
    output.finish(&mut deltas);
    joined(&deltas)
}

#[track_caller]
fn check(expect: &Expect, text: &str, reasoning: &str, content: &str, calls: &[(&str, Value)]) {
    let want: Vec<(String, Value)> = calls.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let want = (reasoning.to_owned(), content.to_owned(), want);
    assert_eq!(take(expect, &[text]), want, "{text}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    assert_eq!(take(expect, &letters), want, "letter by letter: {text}");
    for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
        assert_eq!(take(expect, &[&text[..cut], &text[cut..]]), want, "cut at {cut}: {text}");
    }
}

#[test]
fn hermes_and_qwen() {
    let with = expect(Family::Hermes, true);
    let call = ("weather", json!({"city": "Köln", "days": 2}));
    check(
        &with,
        "<think>\nHm, <b>.\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 2}}\n</tool_call>",
        "Hm, <b>.",
        "I look.",
        std::slice::from_ref(&call),
    );
    let twice = "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Köln\",\"days\":2}}</tool_call>\n\
                 <tool_call>{\"name\":\"weather\",\"arguments\":\"{\\\"city\\\":\\\"Köln\\\",\\\"days\\\":2}\"}</tool_call>";
    check(&with, twice, "", "", &[call.clone(), call.clone()]);
    check(&with, "a < b, <tool> c\n ", "", "a < b, <tool> c", &[]);
    check(&with, "<tool_call>no json</tool_call> x", "", "<tool_call>no json</tool_call> x", &[]);
    check(&with, "<tool_call>{\"name\":\"weather\",\"arguments\":{}}", "", "", &[("weather", json!({}))]);
    check(&expect(Family::Hermes, false), "<tool_call>x</tool_call>", "", "<tool_call>x</tool_call>", &[]);
    check(&expect(Family::Hermes, false), "two\n\n", "", "two\n\n", &[]);
    check(&Expect { thinking: true, ..with.clone() }, "so\n</think>\n\nyes", "so", "yes", &[]);
    check(&Expect { thinking: true, ..with }, "never ends \n", "never ends", "", &[]);
}

#[test]
fn gemma4() {
    let with = expect(Family::Gemma4, true);
    let call = ("weather", json!({"city": "Köln, {\"a\": 1}", "days": 2}));
    let text = "<|tool_call>call:weather{city:<|\"|>Köln, {\"a\": 1}<|\"|>,days:2}<tool_call|>";
    let whole = format!("<|channel>thought\nHm: two.\n<channel|>I look.{text}{text}");
    check(&with, &whole, "Hm: two.", "I look.", &[call.clone(), call]);
    let nested = json!({"a": [1.5, true, null, [], "x"], "b": {"c d": {}, "e": -2}});
    check(
        &with,
        "<|tool_call>call:f.g{a:[1.5,true,null,[],<|\"|>x<|\"|>], b:{<|\"|>c d<|\"|>:{},e:-2}}<tool_call|>",
        "",
        "",
        &[("f.g", nested)],
    );
    check(&with, "<|tool_call>call:weather{}<tool_call|>", "", "", &[("weather", json!({}))]);
    // What has no end, or another form, is text.
    for other in ["<|tool_call>call:weather{days:two}<tool_call|>", "<|tool_call>weather{}<tool_call|> x"] {
        check(&with, other, "", other, &[]);
    }
    let deep = format!("<|tool_call>call:f{{a:{}{}}}<tool_call|>", "[".repeat(200), "]".repeat(200));
    assert_eq!(take(&with, &[&deep]).1, deep);
    check(&Expect { thinking: true, ..with }, "so\n<channel|>yes", "so", "yes", &[]);
    check(&expect(Family::Gemma4, false), "<|channel>thought\n<channel|>plain", "", "plain", &[]);
}

#[test]
fn families_with_tags() {
    let call = ("weather", json!({"city": "12", "days": 3}));
    check(
        &expect(Family::QwenXml, true),
        "ok\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "",
        "ok",
        std::slice::from_ref(&call),
    );
    // As the template of Qwen3.5 writes an answer, whose prompt ends with `<think>`.
    let later = ("weather", json!({"city": "Köln\n(Deutz)", "days": 2}));
    check(
        &Expect { thinking: true, ..expect(Family::QwenXml, true) },
        "Two places.\n</think>\n\nBoth:\n\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n(Deutz)\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "Two places.",
        "Both:",
        &[call.clone(), later],
    );
    check(
        &expect(Family::Glm, true),
        "<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "",
        "",
        std::slice::from_ref(&call),
    );
    check(&expect(Family::Glm, true), "<tool_call>weather</tool_call>", "", "", &[("weather", json!({}))]);
    check(
        &expect(Family::MiniMax, true),
        "<think>x</think>Let me.<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">12</parameter>\n<parameter name=\"days\">3</parameter>\n</invoke>\n<invoke name=\"weather\">\n</invoke>\n</minimax:tool_call>",
        "x",
        "Let me.",
        &[call, ("weather", json!({}))],
    );
}

#[test]
fn llama_3() {
    let with = expect(Family::Llama3, true);
    let call = ("weather", json!({"city": "Bonn"}));
    check(&with, "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\"}}", "", "", std::slice::from_ref(&call));
    let two = "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\"}}; {\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\"}}";
    check(&with, two, "", "", &[call.clone(), call]);
    check(&with, "{\"a\": 1}", "", "{\"a\": 1}", &[]);
    check(&with, "<|p is text", "", "<|p is text", &[]);
    check(&with, "Plain text {\"name\": 1}", "", "Plain text {\"name\": 1}", &[]);
}

#[test]
fn harmony() {
    let with = expect(Family::Harmony, true);
    check(
        &with,
        "<|channel|>analysis<|message|>Need <weather>.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\":\"Bonn\"}",
        "Need <weather>.",
        "",
        &[("weather", json!({"city": "Bonn"}))],
    );
    check(
        &with,
        " to=functions.weather<|channel|>commentary json<|message|>{\"city\":\"Bonn\"}",
        "",
        "",
        &[("weather", json!({"city": "Bonn"}))],
    );
    check(
        &with,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>It is | < fine.",
        "a",
        "It is | < fine.",
        &[],
    );
    check(&with, "just text", "", "just text", &[]);
    check(&with, "<|channel|>analysis", "", "", &[]);
}

#[test]
fn arguments_that_are_json_come_in_pieces() {
    let arguments = "{\"city\": \"K{\\\"ö</tool_call>ln\", \"list\": [{}, {\"a\": \"}\"}]}";
    for (family, before, after) in [
        (Family::Hermes, "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": ", "}\n</tool_call>\n"),
        (Family::Llama3, "{\"name\": \"weather\", \"parameters\": ", "}"),
        (Family::Harmony, "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>", "<|end|>"),
    ] {
        let mut output = Output::new(expect(family, true));
        let (mut before_arguments, mut deltas, mut end) = (Vec::new(), Vec::new(), Vec::new());
        output.push(before, &mut before_arguments);
        // All is certain but the bracket that the arguments begin with.
        let pieces: Vec<&str> = arguments.split_inclusive([' ', '}']).collect();
        for piece in &pieces {
            let n = deltas.len();
            output.push(piece, &mut deltas);
            assert!(deltas.len() > n, "{family:?}: nothing came of {piece:?}");
        }
        output.push(after, &mut end);
        output.finish(&mut end);
        assert_eq!(end, []);
        let all = [before_arguments, deltas].concat();
        let (_, _, calls) = joined(&all);
        assert_eq!(calls, [("weather".to_owned(), serde_json::from_str(arguments).unwrap())], "{family:?}");
        assert!(all.iter().filter(|delta| matches!(delta, Delta::Arguments(_))).count() >= pieces.len() - 1);
    }
}

#[test]
fn a_call_that_breaks_off_leaves_what_has_come_of_it() {
    let mut output = Output::new(expect(Family::Hermes, true));
    let mut deltas = Vec::new();
    output.push("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": [1, </tool_call> so", &mut deltas);
    output.finish(&mut deltas);
    let arguments = Delta::Arguments("{\"city\": [1, ".to_owned());
    assert_eq!(deltas, [Delta::Call("weather".to_owned()), arguments, Delta::Content("so".to_owned())]);
}

#[test]
fn families_are_known_by_their_marks() {
    let family = |source: &'static str| Family::of(|word| source.contains(word));
    for (source, want) in [
        ("<|start|>assistant<|channel|>final", Family::Harmony),
        ("<minimax:tool_call> <think>", Family::MiniMax),
        ("<tool_call>{{ name }}<arg_key>", Family::Glm),
        ("<tool_call>\n<function=", Family::QwenXml),
        ("<tool_call>\n{\"name\": ", Family::Hermes),
        ("<|start_header_id|> \"parameters\"", Family::Llama3),
        ("<|start_header_id|>", Family::Plain),
    ] {
        assert_eq!(family(source), want, "{source}");
    }
}
