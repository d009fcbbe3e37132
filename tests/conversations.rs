//! What clients say is what the model reads: conversations as Claude Code, Codex and others send them, held against the
//! prompts that the server logs.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use cli::{Dir, brim, golden};
use serde_json::{Value, json};
use serve::{Answer, Server};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// ChatML with tools and thoughts, as Hermes and Qwen have it.
const HERMES: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\
    </tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// ChatML alone, as small models have it: no place for calls, and words that are names of tools elsewhere.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Three roles and no more; everything else is dropped without a word.
const THREE_ROLES: &str = "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] and m.content %}\
    <|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|assistant|>";

/// Channels: one system message at the beginning, one call per message, and no text beside a thought before a call.
const CHANNELS: &str = "{% if messages[0].role in ['developer', 'system'] %}<|start|>developer<|message|>{{ messages[0].content }}<|end|>{% endif %}\
    {% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}\
    {% if m.content and m.thinking %}{{ raise_exception('content and thinking') }}{% endif %}\
    {% if m.thinking or m.content %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking or m.content }}<|end|>{% endif %}\
    <|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>\
    {% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>\
    {% elif m.role == 'tool' %}<|start|>functions.{{ m.name }}<|message|>{{ m.content }}<|end|>\
    {% elif m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|start|>assistant{% endif %}";

/// User and assistant in turn, nobody else.
const ALTERNATING: &str = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]";

/// A call or text, not both.
const EITHER: &str = "{% for m in messages %}{% if m.tool_calls %}[call]{{ m.tool_calls[0].function | tojson }}\
    {% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}[assistant]";

/// What the last message says.
const LAST: &str = "{{ messages[-1].content }}";

struct Logged {
    server: Server,
    dir: Dir,
}

impl Logged {
    /// A server over a tiny model with this template, or one that brim has under this name.
    fn start(name: &str, template: &str) -> Logged {
        let dir = Dir::new(name);
        let is_name = template.chars().all(char::is_alphanumeric);
        let template = if is_name { template.to_owned() } else { dir.file("template.jinja", template) };
        let log = std::fs::File::create(dir.at("log")).unwrap();
        let model = golden("qwen3-f32");
        let words = ["serve", "--listen", "127.0.0.1:0", "-t", "1", "-m", &model, "--ctx", "8192", "--log-prompts"];
        let command = brim(&[&words[..], &["--chat-template", &template]].concat());
        Logged { server: Server::spawn_saying(command, log).ready(), dir }
    }

    fn post(&self, path: &str, mut body: Value) -> Answer {
        let limit = if path == RESPONSES { "max_output_tokens" } else { "max_tokens" };
        let body = body.as_object_mut().unwrap();
        body.entry(limit).or_insert(json!(1));
        body.entry("temperature").or_insert(json!(0));
        self.server.post(path, &body.clone().into())
    }

    /// The prompt of a request that is answered.
    #[track_caller]
    fn prompt(&self, path: &str, body: Value) -> String {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let log = std::fs::read_to_string(self.dir.at("log")).unwrap();
        let last = log.lines().rev().find_map(|line| line.split_once("prompt: ")).unwrap().1;
        unescaped(last.trim_start_matches('"').strip_suffix('"').unwrap())
    }

    /// Checks that the prompt has these pieces, one behind the other.
    #[track_caller]
    fn says(&self, path: &str, body: Value, pieces: &[&str]) {
        let prompt = self.prompt(path, body);
        let mut rest = prompt.as_str();
        for piece in pieces {
            rest =
                rest.split_once(piece).unwrap_or_else(|| panic!("{piece:?} is not where it belongs in {prompt:?}")).1;
        }
    }

    #[track_caller]
    fn refuses(&self, path: &str, body: Value, param: &str, code: &str) -> String {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 400, "{answer:?}");
        let error = &answer.json()["error"];
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some(param), Some(code)), "{error}");
        error["message"].as_str().unwrap().to_owned()
    }
}

/// A text as `Debug` writes it, back to what it is.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '\\' => match rest.next().unwrap() {
                'n' => '\n',
                other => other,
            },
            other => other,
        });
    }
    out
}

fn said(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

fn calls(names: &[&str]) -> Value {
    let call = |name: &&str| json!({"id": name, "type": "function", "function": {"name": name, "arguments": "{\"q\": \"ask\"}"}});
    json!({"role": "assistant", "content": null, "tool_calls": names.iter().map(call).collect::<Vec<_>>()})
}

fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
}

fn chat(messages: &[Value]) -> Value {
    json!({"messages": messages})
}

fn weather_tool() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}])
}

#[test]
fn whoever_speaks_is_in_the_prompt() {
    let hermes = Logged::start("said-hermes", HERMES);
    let developer = [said("developer", "DEV"), said("user", "hi"), said("developer", "LATER")];
    hermes.says(CHAT, chat(&developer), &["system\nDEV", "user\nhi", "system\nLATER", "assistant"]);
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    hermes.says(CHAT, chat(&[json!({"role": "user", "content": parts})]), &["one\ntwo"]);
    let once = json!({"role": "assistant", "content": null, "function_call": {"name": "fly", "arguments": "{}"}});
    hermes.says(CHAT, chat(&[said("user", "hi"), once, said("user", "on")]), &["hi", "fly", "on"]);

    let three = Logged::start("said-three", THREE_ROLES);
    let used = [said("user", "see"), calls(&["look"]), result("look", "ok"), said("user", "look again")];
    let all = ["<|user|>see", "\"look\"", "ask", "<|user|><tool_response>\nok", "look again<|end|>"];
    three.says(CHAT, chat(&used), &all);

    let turns = Logged::start("said-turns", ALTERNATING);
    let twice =
        [said("system", "SYS"), said("user", "one"), said("user", "two"), said("assistant", "a"), said("user", "b")];
    turns.says(CHAT, chat(&twice), &["[user]SYS\n\none\n\ntwo[assistant]a[user]b[assistant]"]);
    turns.says(CHAT, chat(&used), &["[user]see[assistant]", "look", "[user]", "ok", "look again[assistant]"]);

    // Text beside a call, where the template writes one of the two, and where nothing may stand before the call either.
    let mut both = calls(&["look"]);
    both["content"] = "I look.".into();
    let used = [said("user", "see"), both, result("look", "ok"), said("assistant", "seen"), said("user", "on")];
    let either = Logged::start("said-either", EITHER);
    either.says(
        CHAT,
        chat(&used),
        &["[user]see", "[assistant]I look.", "[call]", "look", "ask", "[tool]ok", "seen", "on"],
    );
    turns.says(CHAT, chat(&used), &["[user]see[assistant]I look.", "look", "[user]", "ok", "[assistant]seen[user]on"]);

    // A template of brim's own that has room for one system message.
    let gemma = Logged::start("said-gemma", "gemma");
    let two = [
        said("system", "ONE"),
        said("developer", "TWO"),
        said("user", "hi"),
        said("system", "THREE"),
        said("user", "on"),
    ];
    gemma.says(CHAT, chat(&two), &["ONE", "TWO", "hi", "THREE", "on"]);
}

#[test]
fn what_only_channels_say_is_in_the_prompt() {
    let channels = Logged::start("said-channels", CHANNELS);
    let two = [said("system", "ONE"), said("developer", "TWO"), said("user", "hi"), said("system", "THREE")];
    channels.says(CHAT, chat(&two), &["developer<|message|>ONE\n\nTWO<|end|>", "hi\n\nTHREE<|end|><|start|>assistant"]);
    let both = [said("user", "hi"), calls(&["left", "right"]), result("right", "R"), result("left", "L")];
    let want = ["to=functions.left", "functions.left<|message|>L", "to=functions.right", "functions.right<|message|>R"];
    channels.says(CHAT, chat(&both), &want);
    for name in ["reasoning_content", "reasoning", "thinking"] {
        let mut call = calls(&["look"]);
        call[name] = "THOUGHT".into();
        let used = [said("user", "hi"), call, result("look", "ok")];
        channels.says(CHAT, chat(&used), &["analysis<|message|>THOUGHT<|end|>", "to=functions.look", "ok"]);
    }
    let mut call = calls(&["look"]);
    call["thinking"] = "THOUGHT".into();
    call["content"] = "TEXT".into();
    channels.says(
        CHAT,
        chat(&[said("user", "hi"), call, result("look", "ok")]),
        &["THOUGHT", "TEXT", "functions.look", "ok"],
    );
}

#[test]
fn calls_whose_names_are_words_of_the_template_are_in_the_prompt() {
    let chatml = Logged::start("said-chatml", CHATML);
    for (name, arguments, words) in [
        ("start", json!({"port": 8080}), vec!["port", "8080"]),
        ("end", json!({}), vec![]),
        ("tool", json!({"n": 3}), vec!["\"n\"", "3"]),
        ("assistant", json!({"deep": true}), vec!["deep", "true"]),
        ("f", json!({"a": [{"b": 1.5}]}), vec!["\"a\"", "\"b\"", "1.5"]),
        ("restart", json!({}), vec![]),
    ] {
        let mut call = calls(&[name]);
        call["tool_calls"][0]["function"]["arguments"] = arguments.to_string().into();
        let tool = json!([{"type": "function", "function": {"name": name}}]);
        let messages = [said("user", "go"), call, result(name, "done")];
        let used = json!([{"type": "tool_use", "id": "c", "name": name, "input": arguments}]);
        let answered = json!([{"type": "tool_result", "tool_use_id": "c", "content": "done"}]);
        let blocks =
            json!([said("user", "go"), {"role": "assistant", "content": used}, {"role": "user", "content": answered}]);
        let items = json!([said("user", "go"),
            {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments.to_string()},
            {"type": "function_call_output", "call_id": "c", "output": "done"}]);
        let quoted = format!("{{\"name\":\"{name}\"");
        let mut all = vec!["user\ngo<|im_end|>", "assistant\n", &quoted];
        all.extend(words);
        all.extend(["<|im_end|>", "done"]);
        for (path, body) in [
            (CHAT, chat(&messages)),
            (CHAT, json!({"messages": messages, "tools": tool})),
            (MESSAGES, json!({"messages": blocks})),
            (RESPONSES, json!({"input": items})),
        ] {
            chatml.says(path, body, &all);
        }
    }
    // A place for texts is none for numbers.
    let texts = HERMES.replace(
        "{{ {'name'",
        "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}\
        {% if v is string %}{{ k }}={{ v }}{% endif %}{% endfor %}{# ",
    );
    let texts = texts.replace("| tojson }}</tool_call>", "#}</tool_call>");
    let mut call = calls(&["look"]);
    call["tool_calls"][0]["function"]["arguments"] = "{\"q\": \"ask\", \"port\": 8080}".into();
    let messages = [said("user", "go"), call, result("look", "done")];
    Logged::start("said-texts", &texts).says(CHAT, chat(&messages), &["go", "look", "ask", "port", "8080", "done"]);
}

#[test]
fn what_has_no_place_is_refused_with_the_message() {
    let last = Logged::start("said-last", LAST);
    let message = last.refuses(
        CHAT,
        chat(&[said("user", "first"), said("assistant", "a"), said("user", "b")]),
        "messages[0]",
        "chat_template",
    );
    assert!(message.starts_with("messages[0]:") && message.contains("text of this message"), "{message}");
    // The text is part of another's, and still is not what was said.
    last.refuses(
        CHAT,
        chat(&[said("user", "go"), said("assistant", "a"), said("user", "ago")]),
        "messages[0]",
        "chat_template",
    );
    let items = json!([said("user", "first"), {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "seen"}, said("user", "b")]);
    last.refuses(RESPONSES, json!({"input": items}), "input[0]", "chat_template");
    let answer = last.post(
        MESSAGES,
        json!({"system": "S", "messages": [said("user", "hi"), said("assistant", "a"), said("user", "b")]}),
    );
    let text = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(answer.status == 400 && text.starts_with("system:"), "{text}");
}

#[test]
fn fields_that_would_change_the_answer_are_not_ignored() {
    let hermes = Logged::start("said-fields", HERMES);
    for (path, field) in
        [(CHAT, "mirostat"), ("/v1/completions", "best_of"), (RESPONSES, "min_tokens"), (CHAT, "top_a")]
    {
        let body = json!({"messages": [said("user", "hi")], "prompt": "hi", "input": "hi", field: 2});
        let message = hermes.refuses(path, body, field, "unsupported_parameter");
        assert!(message.contains("does not honour"), "{message}");
    }
    let neutral =
        json!({"messages": [said("user", "hi")], "mirostat": 0, "typical_p": 1, "user": "me", "samplers": ["top_k"]});
    assert_eq!(hermes.post(CHAT, neutral).status, 200);
}

#[test]
fn what_a_model_said_otherwise_than_in_content_is_not_lost() {
    let hermes = Logged::start("said-otherwise", HERMES);
    let audio = json!({"role": "assistant", "content": null, "audio": {"id": "audio_1"}});
    let messages = [said("user", "hi"), audio, said("user", "on")];
    hermes.refuses(CHAT, chat(&messages), "messages[1].audio", "unsupported_content");
    let refusal = json!({"role": "assistant", "content": null, "refusal": "I will not.", "audio": null});
    let messages = [said("user", "hi"), refusal, said("user", "on")];
    hermes.says(CHAT, chat(&messages), &["hi", "assistant\nI will not.<|im_end|>", "on"]);
    // A name is for templates that read it.
    let named = HERMES.replace("{{ m.role }}\n", "{{ m.role }}{{ ' ' ~ m.name if m.name else '' }}\n");
    let messages = [json!({"role": "user", "name": "ann", "content": "hi"})];
    Logged::start("said-names", &named).says(CHAT, chat(&messages), &["user ann\nhi"]);
}

#[test]
fn what_only_another_server_has_is_refused() {
    let hermes = Logged::start("said-stored", HERMES);
    for (field, value, param) in [
        ("prompt", json!({"id": "pmpt_1"}), "prompt"),
        ("conversation", json!("conv_1"), "conversation"),
        ("top_logprobs", json!(2), "top_logprobs"),
        ("include", json!(["reasoning.encrypted_content", "message.output_text.logprobs"]), "include[1]"),
    ] {
        let message = hermes.refuses(RESPONSES, json!({"input": "hi", field: value}), param, "unsupported_parameter");
        assert!(message.starts_with(param) && message.contains("this "), "{message}");
    }
    hermes.says(RESPONSES, json!({"input": "hi", "top_logprobs": 0, "include": [], "max_tool_calls": 3}), &["hi"]);
}

#[test]
fn words_for_how_much_to_think_are_known_ones() {
    let hermes = Logged::start("said-effort", HERMES);
    let ask = |more: Value| {
        let mut body = json!({"messages": [said("user", "hi")], "input": "hi", "options": {"num_predict": 1}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (path, object, name) in [
        (RESPONSES, "reasoning", "effort"),
        (CHAT, "reasoning", "effort"),
        (CHAT, "", "reasoning_effort"),
        (MESSAGES, "output_config", "effort"),
        ("/api/chat", "", "think"),
    ] {
        let body =
            |word: &str| ask(if object.is_empty() { json!({name: word}) } else { json!({object: {name: word}}) });
        for word in ["low", "high", "max"] {
            assert_eq!(hermes.post(path, body(word)).status, 200, "{path} {word}");
        }
        let answer = hermes.post(path, body("mega"));
        let field = if object.is_empty() { name.to_owned() } else { format!("{object}.{name}") };
        assert!(answer.status == 400 && answer.text().contains(&format!("{field} is \\\"mega\\\"")), "{answer:?}");
    }
    let own = ask(json!({"chat_template_kwargs": {"reasoning_effort": "mega"}}));
    assert_eq!(hermes.post(CHAT, own).status, 200, "a template may have words of its own");
}

#[test]
fn claude_code_is_understood() {
    let hermes = Logged::start("said-claude", HERMES);
    let body = json!({
        "system": [{"type": "text", "text": "x-anthropic-billing-header: v=1; cch=abc;"}, {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Today."}, {"type": "text", "text": "List."}]},
            said("system", "Agents there are."),
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "I list.", "signature": ""},
                {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [
                {"type": "text", "text": "a.txt"}, {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "found"}]}]},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "DOCUMENT"}}]},
        ],
        "tools": [{"name": "Bash", "input_schema": {"type": "object", "properties": {}}}, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"},
    });
    let want = [
        "\"Bash\"",
        "system\nBe kind.<|im_end|>",
        "user\nToday.\nList.",
        "system\nAgents there are.",
        "I list.",
        "ls",
        "tool\na.txt\nT\nS\nfound<|im_end|>",
        "user\nDOCUMENT",
        "assistant\n",
    ];
    hermes.says(MESSAGES, body.clone(), &want);
    let answer = hermes.post(MESSAGES, body.clone()).json();
    assert!(answer["warnings"][0].as_str().unwrap().contains("web_search"), "{answer}");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = hermes.post(MESSAGES, streamed).events();
    assert!(events[0]["message"]["warnings"][0].as_str().unwrap().contains("tools[1]"), "{events:?}");
    let counted = hermes
        .server
        .send("POST", "/v1/messages/count_tokens?beta=true", &[("anthropic-beta", "x")], body.to_string().as_bytes())
        .json();
    let usage = &answer["usage"];
    let n_prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted["input_tokens"], n_prompt);
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
    let answer = hermes.post(MESSAGES, image);
    assert!(answer.status == 400 && answer.text().contains("messages[0].content[0].type"), "{answer:?}");
}

#[test]
fn a_bill_of_its_own_does_not_make_a_prompt_new() {
    let hermes = Logged::start("said-bill", HERMES);
    let ask = |bill: &str, question: &str| {
        let bill = json!({"type": "text", "text": format!("x-anthropic-billing-header: cc_version=0; cch={bill};")});
        let system = json!({"type": "text", "text": "You are careful with files. ".repeat(120)});
        let answer =
            hermes.post(MESSAGES, json!({"system": [bill, system], "messages": [said("user", question)]})).json();
        let usage = &answer["usage"];
        (usage["cache_read_input_tokens"].as_u64().unwrap(), usage["input_tokens"].as_u64().unwrap())
    };
    assert_eq!(ask("aaaaa", "hey").0, 0);
    let (cached, new) = ask("bbbbb", "hey");
    assert!(cached * 100 >= (cached + new) * 95, "{cached} of {}", cached + new);
    // Nobody's bill stays; as one text it is a line.
    let prompt = hermes.prompt(
        MESSAGES,
        json!({"system": "x-anthropic-billing-header: 1\nBe kind.", "messages": [said("user", "x")]}),
    );
    assert!(prompt.starts_with("<|im_start|>system\nBe kind.<|im_end|>"), "{prompt}");
    let prompt =
        hermes.prompt(MESSAGES, json!({"system": "Mind x-anthropic-billing-header.", "messages": [said("user", "x")]}));
    assert!(prompt.contains("x-anthropic-billing-header"), "{prompt}");
}

#[test]
fn blocks_stay_in_their_order() {
    let hermes = Logged::start("said-order", HERMES);
    let text = |text: &str| json!({"type": "text", "text": text});
    let used = |id: &str| json!({"type": "tool_use", "id": id, "name": "look", "input": {"q": id}});
    let found = |id: &str, text: &str| json!({"type": "tool_result", "tool_use_id": id, "content": text});
    let messages = json!([said("user", "go"),
        {"role": "assistant", "content": [text("Both."), used("t1"), used("t2")]},
        {"role": "user", "content": [text("BEFORE"), found("t1", "ONE"), text("BETWEEN"), found("t2", "TWO"), text("BEHIND")]}]);
    hermes.says(
        MESSAGES,
        json!({"messages": messages}),
        &[
            "Both.",
            "t1",
            "t2",
            "user\nBEFORE<",
            "tool\nONE<",
            "user\nBETWEEN<",
            "tool\nTWO<",
            "user\nBEHIND<",
            "assistant\n",
        ],
    );
    // The same in a message of the model, whose server ran the tool.
    let search = json!({"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}});
    let result = json!({"type": "web_search_tool_result", "tool_use_id": "s1", "content": [text("FOUND")]});
    let messages = json!([said("user", "go"), {"role": "assistant", "content": [text("I search."), search, result, text("It says.")]},
        said("user", "on")]);
    hermes.says(
        MESSAGES,
        json!({"messages": messages}),
        &["assistant\nI search.", "web_search", "tool\nFOUND<", "assistant\nIt says.<", "user\non<", "assistant\n"],
    );
}

#[test]
fn codex_is_understood() {
    let hermes = Logged::start("said-codex", HERMES);
    let item = |kind: &str, more: Value| {
        let mut item = json!({"type": kind, "id": "i"});
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        item
    };
    let text = |role: &str, kind: &str, text: &str| {
        item("message", json!({"role": role, "content": [{"type": kind, "text": text}]}))
    };
    let body = json!({
        "instructions": "Be a coder.",
        "input": [
            text("developer", "input_text", "Skills."), text("user", "input_text", "Patch it."),
            item("reasoning", json!({"summary": [{"type": "summary_text", "text": "I think."}], "encrypted_content": "secret"})),
            item("custom_tool_call", json!({"call_id": "c1", "name": "apply_patch", "input": "*** Begin"})),
            item("custom_tool_call_output", json!({"call_id": "c1", "output": "patched"})),
            item("local_shell_call", json!({"call_id": "c2", "status": "completed", "action": {"type": "exec", "command": ["ls", "-l"]}})),
            item("local_shell_call_output", json!({"call_id": "c2", "output": [{"type": "input_text", "text": "a.txt"}]})),
            item("function_call", json!({"call_id": "c3", "name": "exec", "arguments": "{\"cmd\": \"cat"})),
            item("function_call_output", json!({"call_id": "c3", "output": "no JSON"})),
            item("web_search_call", json!({"status": "completed", "action": {"type": "search", "query": "weather"}})),
            item("item_reference", json!({})), item("compaction", json!({"encrypted_content": "secret"})),
            text("assistant", "output_text", "Done."), text("user", "input_text", "Go on."),
        ],
        "tools": [
            {"type": "function", "name": "exec", "strict": false, "parameters": {"type": "object", "properties": {}}},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
            {"type": "namespace", "name": "agents", "tools": []}, {"type": "web_search", "external_web_access": false},
        ],
        "tool_choice": "auto", "parallel_tool_calls": true, "reasoning": {"summary": "auto"}, "store": false,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"a": "b"},
    });
    let want = [
        "\"exec\"",
        "system\nBe a coder.",
        "system\nSkills.",
        "user\nPatch it.",
        "I think.",
        "apply_patch",
        "*** Begin",
        "tool\npatched",
        "local_shell",
        "ls",
        "tool\na.txt",
        "cat",
        "tool\nno JSON",
        "weather",
        "Done.",
        "user\nGo on.",
        "assistant\n",
    ];
    hermes.says(RESPONSES, body.clone(), &want);
    let prompt = hermes.prompt(RESPONSES, body.clone());
    assert!(!prompt.contains("secret") && prompt.contains("\"arguments\": \"{\\\"cmd\\\": \\\"cat\""), "{prompt}");
    let answer = hermes.post(RESPONSES, body.clone()).json();
    let warnings: Vec<&str> =
        answer["warnings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for (at, what) in [
        ("tools[1]", "custom"),
        ("tools[2]", "agents"),
        ("tools[3]", "web_search"),
        ("input[10]", "item_reference"),
        ("input[11]", "compaction"),
    ] {
        assert!(warnings.iter().any(|text| text.contains(at) && text.contains(what)), "{at} in {warnings:?}");
    }
    assert_eq!((warnings.len(), answer["tools"].as_array().unwrap().len()), (5, 1), "{answer}");
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = hermes.post(RESPONSES, streamed).events();
    assert_eq!(events.last().unwrap()["response"]["warnings"].as_array().unwrap().len(), 5);
    hermes.refuses(RESPONSES, json!({"input": [{"type": "nonsense"}]}), "input[0].type", "unsupported_content");

    // A template without a place for tools.
    let three = Logged::start("said-codex-three", THREE_ROLES);
    let items = json!([{"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}, said("user", "go on")]);
    three.says(RESPONSES, json!({"input": items}), &["patch", "ok", "go on"]);
}

#[test]
fn calls_that_were_cut_off_do_not_end_a_conversation() {
    let mut cut = calls(&["look"]);
    cut["tool_calls"][0]["function"]["arguments"] = "{\"a\": \"unfin".into();
    let messages = [said("user", "go"), cut, result("look", "no JSON"), said("user", "again")];
    // Written as text, by a filter that wants an object, and by a template that has no place for calls.
    let objects = HERMES
        .replace("{{ {'name'", "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{{ {'name'");
    // A template that adds arguments to text cannot have them as objects.
    let adds = HERMES.replace("{{ {'name'", "{{ '>>>' + c.function.arguments + '<<<' }}{{ {'name'");
    let whole = [said("user", "go"), calls(&["look"]), result("look", "ok")];
    Logged::start("said-adds", &adds).says(CHAT, chat(&whole), &["go", ">>>{\"q\":\"ask\"}<<<", "tool\nok"]);
    for (name, template) in
        [("said-cut", HERMES), ("said-cut-object", objects.as_str()), ("said-cut-three", THREE_ROLES)]
    {
        Logged::start(name, template).says(CHAT, chat(&messages), &["go", "unfin", "no JSON", "again"]);
    }
}

#[test]
fn an_answer_of_another_servers_tool_is_followed_by_a_new_turn() {
    let hermes = Logged::start("said-mcp", HERMES);
    let called = |kind: &str| json!({"type": kind, "id": "m", "name": "look", "arguments": "{}", "output": "seen"});
    for kind in ["mcp_call", "web_search_call"] {
        let stored = json!({"type": "item_reference", "id": "x"});
        for items in [json!([said("user", "go"), called(kind)]), json!([said("user", "go"), called(kind), stored])] {
            let prompt = hermes.prompt(RESPONSES, json!({"input": items}));
            assert!(prompt.contains("seen") && prompt.ends_with("}<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
        }
        let items = json!([said("user", "go"), called(kind), said("assistant", "I saw ")]);
        let prompt = hermes.prompt(RESPONSES, json!({"input": items}));
        assert!(prompt.ends_with("<|im_start|>assistant\nI saw "), "{prompt}");
    }
}

#[test]
fn what_the_limit_cuts_off_is_no_completed_item() {
    let hermes = Logged::start("said-cut-item", HERMES);
    let body = json!({"input": "hi", "max_output_tokens": 3,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": "abcdefghijklmnopqrstuvwxyz"}}}});
    let answer = hermes.post(RESPONSES, body.clone()).json();
    let items = answer["output"].as_array().unwrap();
    assert_eq!(
        (answer["status"].as_str(), items.last().unwrap()["status"].as_str()),
        (Some("incomplete"), Some("incomplete")),
        "{answer}"
    );
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = hermes.post(RESPONSES, streamed).events();
    let done = events.iter().rfind(|event| event["type"] == "response.output_item.done").unwrap();
    assert_eq!(done["item"]["status"], "incomplete", "{done}");
    assert_eq!(events.last().unwrap()["response"]["output"], json!([done["item"]]), "{events:?}");
}

#[test]
fn a_last_message_of_the_model_goes_on() {
    let hermes = Logged::start("said-prefill", HERMES);
    let messages = [said("user", "The capital?"), said("assistant", "The capital is ")];
    let end = |more: Value| {
        let mut body = chat(&messages);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        hermes.prompt(CHAT, body)
    };
    let goes_on = "<|im_start|>assistant\nThe capital is ";
    assert!(end(json!({})).ends_with(goes_on));
    assert!(end(json!({"continue_final_message": true, "add_generation_prompt": false})).ends_with(goes_on));
    let opened = "The capital is <|im_end|>\n<|im_start|>assistant\n";
    assert!(end(json!({"add_generation_prompt": true})).ends_with(opened));
    assert!(end(json!({"continue_final_message": false})).ends_with(opened));
    assert!(end(json!({"continue_final_message": false, "add_generation_prompt": false})).ends_with("is <|im_end|>\n"));
    let prompt = hermes.prompt(MESSAGES, json!({"messages": messages}));
    assert!(prompt.ends_with(goes_on), "{prompt}");
    let prompt = hermes.prompt(RESPONSES, json!({"input": messages}));
    assert!(prompt.ends_with(goes_on), "{prompt}");
    let mut thought = said("assistant", "");
    thought["reasoning_content"] = "Paris, I".into();
    let body = json!({"messages": [said("user", "The capital?"), thought], "max_tokens": 4, "ignore_eos": true});
    assert!(hermes.prompt(CHAT, body.clone()).ends_with("<think>\nParis, I"));
    let answer = hermes.post(CHAT, body).json();
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 4, "the thought goes on: {answer}");
    for (messages, more, param) in [
        (vec![said("user", "x")], json!({"continue_final_message": true}), "continue_final_message"),
        (
            messages.to_vec(),
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ] {
        let mut body = chat(&messages);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        hermes.refuses(CHAT, body, param, "invalid_value");
    }
    // What comes is the answer, also where a channel would have to be named first.
    let channels = Logged::start("said-prefill-channels", CHANNELS);
    let answer = channels.post(CHAT, json!({"messages": messages, "max_tokens": 4, "ignore_eos": true})).json();
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0, "{answer}");
    let prompt = channels.prompt(CHAT, chat(&messages));
    assert!(prompt.ends_with("<|channel|>final<|message|>The capital is "), "{prompt}");
}

#[test]
fn an_empty_last_message_of_the_model_goes_on_too() {
    let hermes = Logged::start("said-empty", HERMES);
    let messages = [said("user", "hi"), said("assistant", "")];
    let once = "user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let no_text = json!({"role": "assistant", "content": [{"type": "text", "text": ""}]});
    for (path, body) in [
        (CHAT, chat(&messages)),
        (CHAT, json!({"messages": messages, "continue_final_message": true})),
        (MESSAGES, json!({"messages": [said("user", "hi"), no_text]})),
        (RESPONSES, json!({"input": messages})),
        ("/api/chat", json!({"messages": messages, "options": {"num_predict": 1}})),
    ] {
        let prompt = hermes.prompt(path, body);
        assert!(prompt.ends_with(once), "{path}: {prompt:?}");
    }
    let prompt = hermes.prompt(CHAT, json!({"messages": messages, "add_generation_prompt": true}));
    assert!(prompt.ends_with("assistant\n<|im_end|>\n<|im_start|>assistant\n"), "as the request has it: {prompt:?}");
}

#[test]
fn a_thought_ends_with_its_budget() {
    // The prompt opens a thought, which a model with random weights never ends.
    let thinks = HERMES.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}");
    let server = Logged::start("said-budget", &thinks);
    let ask = |path: &str, more: Value| {
        let mut body = json!({"messages": [said("user", "hi")], "input": "hi"});
        body[if path == RESPONSES { "max_output_tokens" } else { "max_tokens" }] = 60.into();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(path, body);
        assert_eq!(answer.status, 200, "{more}: {answer:?}");
        answer.json()
    };
    let thought = |answer: &Value| answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    let free = ask(CHAT, json!({"ignore_eos": true}));
    assert_eq!(thought(&free), 60, "{free}");
    let long = free["choices"][0]["message"]["reasoning_content"].as_str().unwrap();
    let n_end =
        server.server.post("/tokenize", &json!({"content": "\n</think>\n\n"})).json()["count"].as_u64().unwrap();
    for (more, budget) in [
        (json!({"thinking_budget_tokens": 7}), 7),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 9}}), 9),
        (json!({"reasoning": {"max_tokens": 5}}), 5),
        (json!({"reasoning_effort": "none"}), 0),
        (json!({"thinking": {"type": "disabled"}}), 0),
    ] {
        let mut more = more;
        more["ignore_eos"] = true.into();
        let answer = ask(CHAT, more.clone());
        let message = &answer["choices"][0]["message"];
        let n = thought(&answer);
        assert!((budget..=budget + n_end).contains(&n), "{n} for {more}: {answer}");
        let short = message["reasoning_content"].as_str().unwrap_or_default();
        assert!(
            long.starts_with(short.trim_end_matches(['\u{fffd}', '\n'])) && short.len() < long.len(),
            "the same thought, shorter: {answer}"
        );
        let content = message["content"].as_str().unwrap();
        assert!(!content.is_empty() && !content.contains("think>"), "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], 60);
    }
    let schema = json!({"type": "json_schema", "json_schema": {"schema": {"const": {"a": 1}}}});
    let answer = ask(CHAT, json!({"thinking_budget_tokens": 3, "response_format": schema}));
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(content).unwrap(), json!({"a": 1}), "{answer}");
    let answer = ask(MESSAGES, json!({"thinking": {"type": "enabled", "budget_tokens": 4}, "ignore_eos": true}));
    let kinds: Vec<_> =
        answer["content"].as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text"], "{answer}");
    let answer = ask(RESPONSES, json!({"reasoning": {"effort": "none"}, "ignore_eos": true}));
    assert!(answer["output"].as_array().unwrap().iter().any(|item| item["type"] == "message"), "{answer}");
    server.refuses(
        CHAT,
        json!({"messages": [said("user", "x")], "thinking_budget_tokens": "many"}),
        "thinking_budget_tokens",
        "invalid_type",
    );
}

#[test]
fn a_forced_call_leaves_the_prompt_as_it_is() {
    let hermes = Logged::start("said-forced", HERMES);
    let mut tools = weather_tool();
    tools.as_array_mut().unwrap().push(json!({"type": "function", "function": {"name": "clock"}}));
    let ask = |choice: Value| json!({"messages": [said("user", "hi")], "tools": tools, "tool_choice": choice, "max_tokens": 200});
    let named = json!({"type": "function", "function": {"name": "clock"}});
    assert_eq!(hermes.prompt(CHAT, ask(named.clone())), hermes.prompt(CHAT, ask("auto".into())));
    let answer = hermes.post(CHAT, ask(named)).json();
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "clock", "{answer}");
}

#[test]
fn tools_that_may_not_be_called_stay_in_the_prompt() {
    let hermes = Logged::start("said-allowed", HERMES);
    let tool = |name: &str| json!({"type": "function", "name": name, "parameters": {"type": "object"}});
    let allowed = |names: &[&str]| {
        let tools: Vec<Value> = names.iter().map(|name| json!({"type": "function", "name": name})).collect();
        json!({"type": "allowed_tools", "mode": "auto", "tools": tools})
    };
    let ask = |choice: Value| {
        json!({"input": "hi", "tools": [tool("look"), tool("clock")], "tool_choice": choice, "max_output_tokens": 30,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": "finished"}}}})
    };
    assert_eq!(hermes.prompt(RESPONSES, ask(allowed(&[]))), hermes.prompt(RESPONSES, ask("auto".into())));
    let answer = hermes.post(RESPONSES, ask(allowed(&[]))).json();
    assert_eq!(answer["output"][0]["content"][0]["text"], "\"finished\"", "{answer}");
    let some = hermes.post(RESPONSES, ask(allowed(&["clock"])));
    assert_eq!((some.status, some.json()["error"]["param"].as_str()), (400, Some("tool_choice.tools")), "{some:?}");
}

#[test]
fn chats_may_name_the_tools_that_may_be_called() {
    let hermes = Logged::start("said-allowed-chat", HERMES);
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let allowed = |mode: &str, names: &[&str]| {
        let tools: Vec<Value> = names.iter().map(|name| tool(name)).collect();
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
    };
    let ask = |choice: Value| {
        json!({"messages": [said("user", "hi")], "tools": [tool("look"), tool("clock")], "tool_choice": choice, "max_tokens": 30,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "finished"}}}})
    };
    assert_eq!(hermes.prompt(CHAT, ask(allowed("auto", &[]))), hermes.prompt(CHAT, ask("auto".into())));
    assert_eq!(hermes.post(CHAT, ask(allowed("auto", &["look", "clock"]))).status, 200);
    let answer = hermes.post(CHAT, ask(allowed("auto", &[]))).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "\"finished\"", "{answer}");
    hermes.refuses(CHAT, ask(allowed("auto", &["clock"])), "tool_choice.tools", "unsupported_value");
    hermes.refuses(
        CHAT,
        ask(allowed("required", &["look", "clock"])),
        "tool_choice.allowed_tools.mode",
        "unsupported_value",
    );
    // A tool that the model is not offered cannot be forced.
    for (path, kind) in [(CHAT, "custom"), (RESPONSES, "web_search_preview"), (RESPONSES, "mcp")] {
        let body = json!({"messages": [said("user", "hi")], "input": "hi", "tool_choice": {"type": kind}});
        let message = hermes.refuses(path, body, "tool_choice.type", "unsupported_value");
        assert!(message.contains(kind) && message.contains("function"), "{message}");
    }
}

#[test]
fn tools_of_a_chat_that_are_no_functions_are_skipped_with_a_word() {
    let hermes = Logged::start("said-hosted", HERMES);
    let mut tools = weather_tool();
    let custom = json!({"type": "custom", "custom": {"name": "apply_patch"}});
    tools.as_array_mut().unwrap().extend([custom, json!({"type": "web_search"})]);
    let body = json!({"messages": [said("user", "hi")], "tools": tools});
    let prompt = hermes.prompt(CHAT, body.clone());
    assert!(
        prompt.contains("weather") && !prompt.contains("apply_patch") && !prompt.contains("web_search"),
        "{prompt}"
    );
    let check = |warnings: &Value| {
        let texts: Vec<&str> = warnings.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let [one, two] = texts[..] else { panic!("{warnings}") };
        assert!(one.contains("tools[1]") && one.contains("apply_patch") && two.contains("tools[2]"), "{warnings}");
    };
    check(&hermes.post(CHAT, body.clone()).json()["warnings"]);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = hermes.post(CHAT, streamed).events();
    check(&events[0]["warnings"]);
    assert!(events[1..].iter().all(|event| event["warnings"].is_null()), "{events:?}");
    // Where all are functions there is nothing to say.
    let answer = hermes.post(CHAT, json!({"messages": [said("user", "hi")], "tools": weather_tool()})).json();
    assert!(answer["warnings"].is_null(), "{answer}");
}

#[test]
fn dates_that_templates_read_are_there() {
    let template = "{{ date_string }}|{{ datetime }}|{{ strftime_now('%d %b %Y') }}|{{ messages[0].content }}";
    let dates = Logged::start("said-dates", template);
    let prompt = dates.prompt(CHAT, chat(&[said("user", "hi")]));
    let parts: Vec<&str> = prompt.split('|').collect();
    let [day, month, year] = *parts[0].split(' ').collect::<Vec<_>>() else { panic!("{prompt}") };
    assert_eq!((parts[1], parts[2]), (format!("{month} {day} {year}").as_str(), parts[0]), "{prompt}");
}
