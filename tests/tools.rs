//! Tools and constraints over HTTP, as the clients of OpenAI, llama.cpp and vLLM ask for them. What the model writes is
//! set by a grammar.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::time::{Duration, Instant};

use cli::Dir;
use serde_json::{Value, json};
use serve::{Answer, Server};

const CHAT: &str = "/v1/chat/completions";

/// Calls as JSON between marks; thoughts are known.
const HERMES: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}\
    {% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}<|assistant|>";

/// Calls with a tag around each argument.
const TAGGED: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}\
    {# <tool_call><function=NAME><parameter=KEY> #}\
    {% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>";

/// No tools, and a system message.
const PLAIN: &str = "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}\
    {{ raise_exception('unknown role ' ~ m.role) }}{% endif %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>";

fn server(template: &str) -> (Server, Dir) {
    let name: String = template.chars().filter(char::is_ascii_alphanumeric).rev().take(8).collect();
    let dir = Dir::new(&format!("tools-{name}-{:?}", std::thread::current().id()).replace(['(', ')'], ""));
    let file = dir.file("chat.jinja", template);
    (Server::start(&["--chat-template", &file, "--ctx", "2048", "--slots", "2"]), dir)
}

/// A grammar that allows exactly this text.
fn writes(text: &str) -> Value {
    json!(format!("root ::= {}", Value::from(text)))
}

fn tool(name: &str, parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}})
}

fn ask(server: &Server, more: Value) -> Answer {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 200});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post(CHAT, &body)
}

/// The message, of an answer that is good, and why it ended.
#[track_caller]
fn message(answer: &Answer) -> (Value, String) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let choice = answer.json()["choices"][0].clone();
    (choice["message"].clone(), choice["finish_reason"].as_str().unwrap().to_owned())
}

/// Names and arguments of the calls of a message.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let one = |call: &Value| {
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    message["tool_calls"].as_array().into_iter().flatten().map(one).collect()
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[test]
fn references_of_a_tool_lead_within_its_own_schema() {
    let (server, _dir) = server(HERMES);
    let mut with_definition = object(json!({"spot": {"$ref": "#/$defs/Spot"}}), &["spot"]);
    with_definition["$defs"] =
        json!({"Spot": object(json!({"row": {"type": "integer", "maximum": 9, "minimum": 0}}), &["row"])});
    let answer = ask(&server, json!({"tools": [tool("put", with_definition)], "tool_choice": "required"}));
    let (said, reason) = message(&answer);
    let found = calls(&said);
    let [(name, arguments)] = found.as_slice() else { panic!("{answer:?}") };
    assert!(name == "put" && arguments["spot"]["row"].is_i64(), "{arguments}");
    assert_eq!((reason.as_str(), &said["content"]), ("tool_calls", &Value::Null));
    // The root itself: not what stands around it in the grammar.
    let ring = object(
        json!({"n": {"type": "integer", "maximum": 3, "minimum": 0}, "more": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}),
        &["n", "more"],
    );
    // A model that may always go deeper is ended by the limit; what there is of the call is there.
    let answer = ask(&server, json!({"tools": [tool("nest", ring)], "tool_choice": "required", "max_tokens": 100}));
    let (said, _) = message(&answer);
    let text = said["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert!(text.starts_with("{\"n\": "), "{text}");
    let next = text.split("\"more\": ").nth(1).unwrap_or("null");
    assert!(
        "null".starts_with(next.trim_end_matches('}')) || next.starts_with("{\"n\": ") || "{\"n\": ".starts_with(next),
        "{text}"
    );
    // What leads nowhere is refused by name.
    let wrong = object(json!({"x": {"$ref": "#/$defs/Nothing"}}), &["x"]);
    let answer = ask(&server, json!({"tools": [tool("t", wrong)], "tool_choice": "required"}));
    assert_eq!(answer.status, 400);
    let error = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("\"t\"") && error.contains("#/$defs/Nothing"), "{error}");
}

#[test]
fn a_stop_text_ends_what_is_said_and_nothing_else() {
    let (server, _dir) = server(HERMES);
    let text = "<think>\nFirst HALT, then on.\n</think>\n\nFour. HALT Five.";
    let (said, reason) = message(&ask(&server, json!({"grammar": writes(text), "stop": ["HALT"]})));
    assert_eq!((&said["reasoning_content"], &said["content"]), (&json!("First HALT, then on."), &json!("Four. ")));
    assert_eq!(reason, "stop");
    let call = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"HALT\"}}</tool_call>";
    let request = json!({"grammar": writes(call), "stop": "HALT", "tools": [tool("a", json!({"type": "object"}))]});
    assert_eq!(calls(&message(&ask(&server, request)).0), [("a".to_owned(), json!({"x": "HALT"}))]);
    // Tokens that are cut off have no logprobs, and those of thoughts have.
    let answer = ask(&server, json!({"grammar": writes("abc HALT def"), "stop": "HALT", "logprobs": true}));
    let all: String = answer.json()["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["token"].as_str().unwrap().to_owned())
        .collect();
    assert!(all.starts_with("abc") && !all.contains("def"), "{answer:?}");
}

#[test]
fn at_most_one_call_where_the_client_wants_one() {
    let (server, _dir) = server(HERMES);
    let one = |x: i32| format!("<tool_call>{{\"name\": \"a\", \"arguments\": {{\"x\": {x}}}}}</tool_call>");
    let request = json!({"grammar": writes(&(one(1) + &one(2))), "tools": [tool("a", json!({"type": "object"}))]});
    let both = [("a".to_owned(), json!({"x": 1})), ("a".to_owned(), json!({"x": 2}))];
    assert_eq!(calls(&message(&ask(&server, request.clone())).0), both);
    let mut single = request;
    single["parallel_tool_calls"] = false.into();
    let (said, reason) = message(&ask(&server, single.clone()));
    assert_eq!((calls(&said), reason.as_str()), (both[..1].to_vec(), "tool_calls"));
    single["stream"] = true.into();
    let events = ask(&server, single).events();
    let deltas: Vec<&Value> = events.iter().flat_map(|event| event["choices"].as_array().unwrap()).collect();
    let names = deltas.iter().filter(|delta| delta["delta"]["tool_calls"][0]["id"].is_string()).count();
    assert_eq!((names, &deltas.last().unwrap()["finish_reason"]), (1, &json!("tool_calls")));
}

#[test]
fn values_between_tags_are_what_the_schema_says() {
    let (server, _dir) = server(TAGGED);
    let parameters = json!({"type": "object",
        "properties": {
            "zip": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "mode": {"enum": ["1", "2"]},
            "code": {"$ref": "#/$defs/Code"},
            "count": {"type": "integer"},
        },
        "$defs": {"Code": {"type": "string"}}});
    let text = "<tool_call><function=f>\n<parameter=zip>\n10\n</parameter>\n<parameter=mode>\n1\n</parameter>\n\
                <parameter=code>\ntrue\n</parameter>\n<parameter=count>\n3\n</parameter>\n</function></tool_call>";
    let request = json!({"grammar": writes(text), "tools": [tool("f", parameters)], "max_tokens": 400});
    let want = json!({"zip": "10", "mode": "1", "code": "true", "count": 3});
    assert_eq!(calls(&message(&ask(&server, request)).0), [("f".to_owned(), want)]);
}

#[test]
fn a_call_that_is_cut_off_leaves_no_mark_in_the_text() {
    let tools =
        json!([tool("write", object(json!({"text": {"type": "string"}, "n": {"type": "integer"}}), &["text"]))]);
    for (template, call) in [
        (
            HERMES,
            "Well.\n<tool_call>\n{\"name\": \"write\", \"arguments\": {\"text\": \"one two\", \"n\": 12}}\n</tool_call>",
        ),
        (
            TAGGED,
            "Well.\n<tool_call>\n<function=write>\n<parameter=text>\none two\n</parameter>\n<parameter=n>\n12\n</parameter>\n\
             </function>\n</tool_call>",
        ),
    ] {
        let (server, _dir) = server(template);
        let mut n_cut = 0;
        for max_tokens in (1..60).step_by(3) {
            let request = json!({"grammar": writes(call), "tools": tools, "max_tokens": max_tokens});
            let (said, reason) = message(&ask(&server, request));
            let content = said["content"].as_str().unwrap_or_default();
            assert!("Well.".starts_with(content) || content == "Well.\n<", "{max_tokens}: {content:?}");
            if reason == "length" && said["tool_calls"].is_array() {
                n_cut += 1;
                let arguments = said["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
                let whole = "{\"text\": \"one two\", \"n\": 12}";
                assert!(whole.starts_with(arguments), "{max_tokens}: {arguments}");
            }
        }
        assert!(n_cut > 0, "no call was cut off");
    }
}

#[test]
fn a_form_of_the_answer_and_tools_at_once_allow_either() {
    let (server, _dir) = server(HERMES);
    let form = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": object(json!({"v": {"enum": ["yes"]}}), &["v"])}});
    let look = tool("look", object(json!({"at": {"enum": ["sky"]}}), &["at"]));
    let either = json!({"tools": [look], "response_format": form});
    let (said, reason) = message(&ask(&server, either.clone()));
    let content = said["content"].as_str();
    match calls(&said).as_slice() {
        [] => assert_eq!((content, reason.as_str()), (Some("{\"v\": \"yes\"}"), "stop")),
        found => assert!(found.iter().all(|call| *call == ("look".to_owned(), json!({"at": "sky"}))), "{found:?}"),
    }
    // A bias for the mark's first letter, or for the bracket, shows that both can be had.
    let mut seen = [false; 2];
    for text in ["<", "{"] {
        let tokens = server.post("/tokenize", &json!({"content": text})).json();
        let Some(id) = tokens["tokens"].as_array().and_then(|all| all.last()).and_then(Value::as_u64) else { continue };
        let mut request = either.clone();
        request["logit_bias"] = json!({id.to_string(): 50});
        request["parallel_tool_calls"] = false.into();
        let (said, _) = message(&ask(&server, request));
        seen[usize::from(calls(&said).is_empty())] = true;
    }
    assert!(seen == [true; 2] || seen == [false; 2], "{seen:?}");
    // A forced call is a call, whatever a text would have to look like.
    let mut forced = either;
    forced["tool_choice"] = "required".into();
    assert_eq!(calls(&message(&ask(&server, forced)).0), [("look".to_owned(), json!({"at": "sky"}))]);
}

#[test]
fn constraints_are_honoured_under_all_their_names() {
    let (server, _dir) = server(HERMES);
    let schema = object(json!({"v": {"enum": ["only"]}}), &["v"]);
    let json_text = "{\"v\": \"only\"}";
    for (request, want) in [
        (json!({"response_format": {"type": "json_object", "schema": schema}}), json_text),
        (json!({"response_format": {"type": "json_schema", "schema": schema}}), json_text),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}), json_text),
        (json!({"json_schema": schema}), json_text),
        (json!({"grammar": "root ::= \"g\""}), "g"),
        (json!({"guided_json": schema}), json_text),
        (json!({"guided_json": schema.to_string()}), json_text),
        (json!({"guided_regex": "ab{2}/"}), "abb/"),
        (json!({"guided_choice": ["lone \"choice\""]}), "lone \"choice\""),
        (json!({"guided_grammar": "root ::= \"h\""}), "h"),
        (json!({"structured_outputs": {"json": schema}}), json_text),
        (json!({"structured_outputs": {"regex": "x{3}"}}), "xxx"),
        (json!({"structured_outputs": {"choice": ["one"]}}), "one"),
        (json!({"structured_outputs": {"grammar": "root ::= \"i\""}}), "i"),
    ] {
        let (said, _) = message(&ask(&server, request.clone()));
        assert_eq!(said["content"], want, "{request}");
        let mut body = request.clone();
        body["prompt"] = "Hello".into();
        body["max_tokens"] = 60.into();
        let answer = server.post("/v1/completions", &body);
        assert_eq!((answer.status, &answer.json()["choices"][0]["text"]), (200, &json!(want)), "{request}: {answer:?}");
    }
    for (request, param, word) in [
        (json!({"grammar": "root ::= \"g\"", "response_format": {"type": "json_object"}}), "grammar", "give one"),
        (json!({"structured_outputs": {"regex": "x", "choice": ["x"]}}), "structured_outputs", "give one"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag", "not supported"),
        (json!({"guided_choice": []}), "guided_choice", "0 texts"),
        (json!({"guided_choice": ["a", 1]}), "guided_choice[1]", "a string"),
        (json!({"json_schema": 5}), "json_schema", "JSON schema"),
        (json!({"guided_json": "{"}), "guided_json", "not JSON"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "missing"),
    ] {
        let answer = ask(&server, request.clone());
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{request}: {error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{request}: {error}");
    }
}

#[test]
fn anthropics_form_of_an_answer_has_two_names() {
    let (server, _dir) = server(HERMES);
    let form = json!({"type": "json_schema", "schema": object(json!({"v": {"enum": ["only"]}}), &["v"])});
    let ask = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/messages", &body)
    };
    for more in [json!({"output_format": form}), json!({"output_config": {"format": form}})] {
        let answer = ask(more);
        assert_eq!(
            (answer.status, &answer.json()["content"][0]["text"]),
            (200, &json!("{\"v\": \"only\"}")),
            "{answer:?}"
        );
    }
    for (more, word) in [
        (json!({"output_format": form, "output_config": {"format": form}}), "give one"),
        (json!({"output_format": {"type": "text"}}), "output_format.type"),
        (json!({"output_format": "json"}), "output_format: expected an object"),
    ] {
        let answer = ask(more);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && message.contains(word), "{word}: {answer:?}");
    }
}

#[test]
fn formats_that_nobody_knows_are_remarks() {
    let (server, _dir) = server(HERMES);
    let schema = object(json!({"v": {"type": "string", "format": "colour", "maxLength": 3}}), &["v"]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (said, _) = message(&ask(&server, json!({"response_format": format})));
    let value: Value = serde_json::from_str(said["content"].as_str().unwrap()).unwrap();
    assert!(value["v"].is_string(), "{said}");
}

#[test]
fn templates_without_tools_are_told_of_them_in_text() {
    let (server, _dir) = server(PLAIN);
    let tools = json!([tool("look", object(json!({"at": {"enum": ["sky"]}}), &["at"]))]);
    let (said, reason) = message(&ask(&server, json!({"tools": tools, "tool_choice": "required"})));
    assert_eq!((calls(&said), reason.as_str()), (vec![("look".to_owned(), json!({"at": "sky"}))], "tool_calls"));
    let text = "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";
    let (said, _) = message(&ask(&server, json!({"tools": tools, "grammar": writes(text)})));
    assert_eq!((calls(&said).len(), &said["content"]), (1, &json!("I look.")));
    // The history goes back in, and a chat that has one needs no tools any more.
    let history = json!([
        {"role": "user", "content": "Look!"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "look", "arguments": "{\"at\": \"sky\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
    ]);
    for with in [json!({"messages": history, "tools": tools}), json!({"messages": history})] {
        assert_eq!(ask(&server, with).status, 200);
    }
}

#[test]
fn long_chats_are_rendered_beside_the_event_loop() {
    // As some published templates do: for each message a look at all.
    let template = "{% for m in messages %}{% set ns = namespace(last=0) %}\
        {% for o in messages %}{% if o.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
        {{ m.content }}{% endfor %}";
    let (server, _dir) = server(template);
    let messages: Vec<Value> = (0..1200).map(|i| json!({"role": "user", "content": format!("{i}")})).collect();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&server, json!({"messages": messages, "max_tokens": 1})));
        let mut longest = Duration::ZERO;
        while !asked.is_finished() {
            let begun = Instant::now();
            assert_eq!(server.get("/health").status, 200);
            longest = longest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        let answer = asked.join().unwrap();
        let error = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        // It is rendered: what does not fit is refused for its tokens.
        assert!(answer.status == 200 || error.contains("context"), "{answer:?}");
        assert!(longest < Duration::from_secs(2), "another client waited {longest:?}");
    });
}
