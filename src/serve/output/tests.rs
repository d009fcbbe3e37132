//! Every family, whole and cut at every byte: the pieces must add up to the same.

use std::sync::Arc;

use serde_json::json;

use super::*;

fn tools() -> Arc<Vec<Value>> {
    Arc::new(vec![json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}})])
}

fn expect(family: Family, with_tools: bool) -> Expect {
    let tools = if with_tools { tools() } else { Arc::default() };
    Expect { family, tools, thinks: true, thinking: false, one_call: false }
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
    output.finish(false, &mut deltas);
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
        output.finish(false, &mut end);
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
    output.finish(false, &mut deltas);
    let arguments = Delta::Arguments("{\"city\": [1, ".to_owned());
    assert_eq!(deltas, [Delta::Call("weather".to_owned()), arguments, Delta::Content("so".to_owned())]);
}

#[test]
fn families_with_names_before_json() {
    let call = ("weather", json!({"city": "K{\u{f6}}ln", "days": 2}));
    let json = "{\"city\": \"K{\u{f6}}ln\", \"days\": 2}";
    let kimi = |n: usize| {
        format!("<|tool_call_begin|>functions.weather:{n}<|tool_call_argument_begin|>{json}<|tool_call_end|>")
    };
    check(
        &expect(Family::Kimi, true),
        &format!("I look.<|tool_calls_section_begin|>{}{}<|tool_calls_section_end|>", kimi(0), kimi(1)),
        "",
        "I look.",
        &[call.clone(), call.clone()],
    );
    let first = format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{json}\n```<｜tool▁call▁end｜>");
    check(
        &expect(Family::DeepSeek, true),
        &format!("<think>Hm.</think>So:<｜tool▁calls▁begin｜>{first}\n{first}<｜tool▁calls▁end｜>"),
        "Hm.",
        "So:",
        &[call.clone(), call.clone()],
    );
    check(
        &expect(Family::DeepSeek31, true),
        &format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{json}<｜tool▁call▁end｜><｜tool▁call▁begin｜>\
             now<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "",
        "",
        &[call.clone(), ("now", json!({}))],
    );
    check(
        &expect(Family::Ministral, true),
        &format!("[THINK]a[/THINK]b[TOOL_CALLS]weather[ARGS]{json}[TOOL_CALLS]weather[CALL_ID]x9[ARGS]{json}"),
        "a",
        "b",
        &[call.clone(), call.clone()],
    );
    let list = format!("[TOOL_CALLS] [{{\"name\": \"weather\", \"arguments\": {json}, \"id\": \"123456789\"}}]");
    check(&expect(Family::Mistral, true), &list, "", "", std::slice::from_ref(&call));
    let other = "[TOOL_CALLS] [1]";
    check(&expect(Family::Mistral, true), other, "", other, &[]);
    let action = format!(
        "<|START_THINKING|>Plan.<|END_THINKING|><|START_ACTION|>[\n    {{\"tool_call_id\": \"0\", \"tool_name\": \
         \"weather\", \"parameters\": {json}}}\n]<|END_ACTION|>"
    );
    check(&expect(Family::Cohere, true), &action, "Plan.", "", std::slice::from_ref(&call));
    let nemotron = format!("<TOOLCALL>[{{\"name\": \"weather\", \"arguments\": {json}}}]</TOOLCALL>");
    check(&expect(Family::Nemotron, true), &nemotron, "", "", std::slice::from_ref(&call));
    let dsml = "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" \
                string=\"true\">K{\u{f6}}ln</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">2\
                </｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>";
    check(&expect(Family::Dsml, true), &format!("So.\n\n{dsml}"), "", "So.", &[call]);
}

#[test]
fn calls_in_python() {
    let with = expect(Family::Lfm2, true);
    let two = "<|tool_call_start|>[weather(city='K\u{f6}ln \\'x\\'', days=2), f.g(a=[1, None, {\"b\": True}], c=-1.5e3,)]\
               <|tool_call_end|>Done.";
    let want = [
        ("weather", json!({"city": "K\u{f6}ln 'x'", "days": 2})),
        ("f.g", json!({"a": [1, null, {"b": true}], "c": -1500.0})),
    ];
    check(&with, two, "", "Done.", &want);
    let json_list = "<|tool_call_start|>[{\"name\": \"weather\", \"arguments\": {}}]<|tool_call_end|>";
    check(&with, json_list, "", "", &[("weather", json!({}))]);
    let other = "<|tool_call_start|>[weather(city=Bonn)]<|tool_call_end|>";
    check(&with, other, "", other, &[]);
}

#[test]
fn texts_between_tags_come_in_pieces() {
    let mut output = Output::new(expect(Family::QwenXml, true));
    let mut deltas = Vec::new();
    output.push("<tool_call>\n<function=weather>\n<parameter=city>\nA \"long\" ", &mut deltas);
    let arguments = Delta::Arguments("{\"city\": ".to_owned());
    assert_eq!(
        deltas,
        [Delta::Call("weather".to_owned()), arguments, Delta::Arguments("\"A \\\"long\\\" ".to_owned()),]
    );
    output.push("value\n</parameter>\n</function>", &mut deltas);
    assert_eq!(joined(&deltas).2, [("weather".to_owned(), json!({"city": "A \"long\" value"}))]);
}

/// Cut at every byte by the limit: what there is of a call is there, and no mark is text.
#[test]
fn a_call_that_is_cut_off_leaks_no_mark() {
    let json = "{\"city\": \"Bonn\", \"days\": 2}";
    for (family, call) in [
        (Family::Hermes, format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {json}}}\n</tool_call>")),
        (Family::Hermes, format!("<tool_call>\n{{\"arguments\": {json}, \"name\": \"weather\"}}\n</tool_call>")),
        (
            Family::QwenXml,
            "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n<parameter=days>\n2\n\
             </parameter>\n</function>\n</tool_call>"
                .to_owned(),
        ),
        (
            Family::Glm,
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n<arg_key>days</arg_key>\n\
             <arg_value>2</arg_value>\n</tool_call>"
                .to_owned(),
        ),
        (
            Family::MiniMax,
            "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Bonn</parameter>\n\
             <parameter name=\"days\">2</parameter>\n</invoke>\n</minimax:tool_call>"
                .to_owned(),
        ),
        (Family::Gemma4, "<|tool_call>call:weather{city:<|\"|>Bonn<|\"|>,days:2}<tool_call|>".to_owned()),
        (Family::Lfm2, "<|tool_call_start|>[weather(city='Bonn', days=2)]<|tool_call_end|>".to_owned()),
        (Family::Ministral, format!("[TOOL_CALLS]weather[ARGS]{json}")),
        (
            Family::Kimi,
            format!(
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{json}\
                 <|tool_call_end|><|tool_calls_section_end|>"
            ),
        ),
        (
            Family::Cohere,
            format!("<|START_ACTION|>[{{\"tool_name\": \"weather\", \"parameters\": {json}}}]<|END_ACTION|>"),
        ),
    ] {
        for cut in (0..call.len()).filter(|cut| call.is_char_boundary(*cut)) {
            let mut output = Output::new(expect(family, true));
            let mut deltas = Vec::new();
            output.push(&format!("Well.{}", &call[..cut]), &mut deltas);
            output.finish(true, &mut deltas);
            let (mut content, mut arguments) = (String::new(), String::new());
            for delta in deltas {
                match delta {
                    Delta::Content(text) => content += &text,
                    Delta::Call(name) => assert_eq!(name, "weather", "{family:?}"),
                    Delta::Arguments(piece) => arguments += &piece,
                    Delta::Reasoning(text) => panic!("{text}"),
                }
            }
            // One letter is not enough to tell a mark by.
            let is_clean = content == "Well." || (cut == 1 && content == format!("Well.{}", &call[..1]));
            assert!(is_clean, "{family:?}, {:?}: {content:?}", &call[..cut]);
            let whole: Value = serde_json::from_str(json).unwrap();
            let is_part = json.starts_with(&arguments)
                || serde_json::from_str::<Value>(&arguments).is_ok_and(|value| value == whole);
            assert!(is_part, "{family:?}, {:?}: {arguments:?}", &call[..cut]);
        }
    }
}

#[test]
fn one_call_is_one() {
    let call = "<tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>";
    let mut output = Output::new(Expect { one_call: true, ..expect(Family::Hermes, true) });
    let mut deltas = Vec::new();
    output.push(&call[..call.len() - 1], &mut deltas);
    assert!(!output.is_done());
    output.push(&format!(">\n{call} and so on"), &mut deltas);
    assert!(output.is_done());
    output.finish(false, &mut deltas);
    let whole = vec![("weather".to_owned(), json!({}))];
    assert_eq!(joined(&deltas), (String::new(), String::new(), whole));
    // Two between the same marks.
    let function = "<function=weather>\n</function>\n";
    let mut output = Output::new(Expect { one_call: true, ..expect(Family::QwenXml, true) });
    let mut deltas = Vec::new();
    output.push(&format!("<tool_call>\n{function}{function}</tool_call>"), &mut deltas);
    output.finish(false, &mut deltas);
    assert!(output.is_done() && joined(&deltas).2.len() == 1, "{deltas:?}");
}

#[test]
fn families_are_known_by_their_marks() {
    let family = |source: &'static str| Family::of(|word| source.contains(word));
    for (source, want) in [
        ("<|start|>assistant<|channel|>final", Family::Harmony),
        ("<minimax:tool_call> <think>", Family::MiniMax),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>\n```json", Family::DeepSeek),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜><｜tool▁sep｜>", Family::DeepSeek31),
        ("<｜DSML｜invoke name=", Family::Dsml),
        ("<|im_system|>tool_declare<|im_middle|>", Family::Kimi),
        ("<|tool_call_begin|><|tool_call_argument_begin|>", Family::Kimi),
        ("List of tools: <|tool_list_start|>[", Family::Lfm2),
        ("<|START_THINKING|><|START_ACTION|>[", Family::Cohere),
        ("[TOOL_CALLS]{{ name }}[ARGS]", Family::Ministral),
        ("[TOOL_CALLS][", Family::Mistral),
        ("<tool_call>{{ name }}<arg_key>", Family::Glm),
        ("<tool_call>\n<function=", Family::QwenXml),
        ("<tool_call>\n{\"name\": ", Family::Hermes),
        ("<|start_header_id|> \"parameters\"", Family::Llama3),
        ("<|start_header_id|>", Family::Plain),
    ] {
        assert_eq!(family(source), want, "{source}");
    }
}
