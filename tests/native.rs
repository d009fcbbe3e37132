//! llama.cpp's own interface: `/completion`, `/apply-template`, counts of tokens, pieces of tokens, and the fields that editors
//! and other clients of its server send.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::time::{Duration, Instant};

use cli::{Dir, golden};
use serde_json::{Value, json};
use serve::Server;

fn ask(server: &Server, more: Value) -> Value {
    let mut body = json!({"prompt": "Huge pages", "temperature": 0, "n_predict": 5});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = server.post("/completion", &body);
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    if body["stream"] == true { answer.events().into() } else { answer.json() }
}

#[test]
fn a_completion_says_what_it_is_and_its_pieces_add_up() {
    let server = Server::start(&[]);
    let plain =
        server.post("/v1/completions", &json!({"prompt": "Huge pages", "temperature": 0, "max_tokens": 5})).json();
    let whole = ask(&server, json!({"seed": 7}));
    assert_eq!(whole["content"], plain["choices"][0]["text"]);
    assert_eq!(
        (&whole["stop"], &whole["stop_type"], &whole["truncated"]),
        (&json!(true), &json!("limit"), &json!(false))
    );
    assert_eq!((&whole["tokens_predicted"], &whole["tokens"]), (&json!(5), &json!([])));
    assert_eq!(whole["has_new_line"], whole["content"].as_str().unwrap().contains('\n'));
    let settings = &whole["generation_settings"];
    assert_eq!((&settings["n_predict"], &settings["seed"], &settings["mirostat"]), (&json!(5), &json!(7), &json!(0)));
    assert!(whole["prompt"].as_str().unwrap().ends_with("Huge pages"), "{whole}");
    let tokens = ask(&server, json!({"return_tokens": true}))["tokens"].clone();
    let back = server.post("/detokenize", &json!({"tokens": tokens})).json();
    assert_eq!(back["content"].as_str().unwrap().trim(), whole["content"].as_str().unwrap().trim());
    for more in [json!({}), json!({"n_probs": 3, "timings_per_token": true})] {
        let mut body = json!({"stream": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let events = ask(&server, body);
        let (last, pieces) = events.as_array().unwrap().split_last().unwrap();
        let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
        let ids: Vec<Value> = pieces.iter().flat_map(|piece| piece["tokens"].as_array().unwrap().clone()).collect();
        assert_eq!((json!(text), json!(ids)), (whole["content"].clone(), tokens.clone()));
        assert_eq!((&last["stop"], &last["content"], &last["tokens_predicted"]), (&json!(true), &json!(""), &json!(5)));
        let with = |name: &str| pieces.iter().filter(|piece| !piece[name].is_null()).count();
        let n = if more["n_probs"].is_null() { 0 } else { pieces.len() };
        assert_eq!((with("completion_probabilities"), with("timings")), (n, n), "{events}");
    }
    let probs = ask(&server, json!({"n_probs": 3}))["completion_probabilities"].clone();
    assert_eq!(probs.as_array().unwrap().len(), 5);
    let first = &probs[0];
    assert_eq!((&first["id"], first["top_logprobs"].as_array().unwrap().len()), (&tokens[0], 3));
    assert_eq!(
        (&first["top_logprobs"][0]["id"], &first["top_logprobs"][0]["logprob"]),
        (&tokens[0], &first["logprob"])
    );
}

#[test]
fn prompts_have_all_the_forms_there_are() {
    let server = Server::start(&[]);
    let ids = server.post("/tokenize", &json!({"content": "Huge pages", "add_special": true})).json()["tokens"].clone();
    let want = ask(&server, json!({}))["content"].clone();
    let object = json!({"prompt_string": "Huge pages"});
    for prompt in [ids.clone(), object.clone(), json!(["Huge pages"])] {
        assert_eq!(ask(&server, json!({"prompt": prompt}))["content"], want, "{prompt}");
    }
    let all = ask(&server, json!({"prompt": ["Huge pages", ids, object], "n_cmpl": 2}));
    assert_eq!(all.as_array().unwrap().len(), 6);
    assert!(
        all.as_array().unwrap().iter().enumerate().all(|(i, one)| one["index"] == i && one["content"] == want),
        "{all}"
    );
    let two = |prompt: Value| ask(&server, json!({"prompt": prompt}))["tokens_evaluated"].as_u64().unwrap();
    assert_eq!(
        two(json!(["Huge pages", 5, " more"])),
        two(json!("Huge pages")) + 1 + {
            let more = server.post("/tokenize", &json!({"content": " more"})).json();
            more["tokens"].as_array().unwrap().len() as u64
        }
    );
    for (prompt, field) in [
        (json!({"prompt_string": "a", "multimodal_data": ["aa"]}), "prompt.multimodal_data"),
        (json!([1, {}]), "prompt"),
        (json!([{}]), "prompt[0].prompt_string"),
        (json!(5), "prompt"),
    ] {
        let answer = server.post("/completion", &json!({"prompt": prompt}));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)), "{prompt}");
    }
    // The same in the other interface.
    let mixed = json!({"prompt": ["Huge", 5], "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &mixed).json()["choices"].as_array().unwrap().len(), 1);
}

#[test]
fn an_answer_has_the_fields_that_are_wanted() {
    let server = Server::start(&[]);
    let wanted =
        json!(["content", "generation_settings/n_predict", "timings/predicted_n", "nothing", "nothing/x", "content"]);
    let found = ask(&server, json!({"response_fields": wanted}));
    let names: Vec<&String> = found.as_object().unwrap().keys().collect();
    assert_eq!(names, ["content", "generation_settings/n_predict", "timings/predicted_n"], "{found}");
    assert!(found["content"].is_string(), "{found}");
    assert_eq!((&found["generation_settings/n_predict"], &found["timings/predicted_n"]), (&json!(5), &json!(5)));
    let events = ask(&server, json!({"response_fields": ["tokens_predicted"], "stream": true}));
    assert_eq!(*events.as_array().unwrap().last().unwrap(), json!({"tokens_predicted": 5}));
}

#[test]
fn what_the_context_cuts_off_is_said_and_none_or_all_may_be_asked_for() {
    let model = golden("qwen3-f32");
    let server = Server::start(&["-m", &model, "--ctx", "256", "--slots", "1"]);
    let all = ask(&server, json!({"n_predict": -1, "ignore_eos": true}));
    assert_eq!((&all["truncated"], &all["stop_type"]), (&json!(true), &json!("limit")), "{all}");
    assert_eq!(all["tokens_predicted"].as_u64().unwrap() + all["tokens_evaluated"].as_u64().unwrap(), 256);
    // What ends a text is not drawn: nothing has to be made of what would follow.
    let forbidden = all["generation_settings"]["logit_bias"].as_array().unwrap();
    assert!(!forbidden.is_empty() && forbidden.iter().all(|one| one["bias"].is_null()), "{forbidden:?}");
    let none = ask(&server, json!({"n_predict": 0}));
    assert_eq!(
        (&none["content"], &none["tokens_predicted"], &none["truncated"]),
        (&json!(""), &json!(0), &json!(false))
    );
    let text = server.post("/completion", &json!({"prompt": "word ".repeat(400)}));
    assert_eq!((text.status, &text.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[test]
fn biases_come_in_lists_and_by_text() {
    let server = Server::start(&[]);
    let want = ask(&server, json!({"n_probs": 1}))["completion_probabilities"][0].clone();
    let (first, piece) = (want["id"].as_u64().unwrap(), want["token"].as_str().unwrap());
    for bias in [
        json!([[first, false]]),
        json!([[first, -100]]),
        json!([[piece, -100.0]]),
        json!({piece: false}),
        json!({first.to_string(): -100}),
    ] {
        let found = ask(&server, json!({"return_tokens": true, "logit_bias": bias}));
        assert_ne!(found["tokens"][0], first, "{bias}");
    }
}

#[test]
fn pieces_of_tokens_are_texts_or_bytes() {
    let server = Server::start(&[]);
    let content = "pages 媽 🤗";
    let found = server.post("/tokenize", &json!({"content": content, "with_pieces": true})).json();
    let mut bytes = Vec::new();
    for token in found["tokens"].as_array().unwrap() {
        match &token["piece"] {
            Value::String(text) => bytes.extend_from_slice(text.as_bytes()),
            list => bytes.extend(list.as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8)),
        }
        assert!(token["id"].is_u64());
    }
    assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), content);
}

#[test]
fn prompts_of_chats_are_shown_and_counted() {
    let template = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}{% if add_generation_prompt %}[assistant:{% endif %}";
    let dir = Dir::new("shown");
    let file = dir.file("t.jinja", template);
    let server = Server::start(&["--chat-template", &file]);
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is HVO?"}]);
    let shown = server.post("/apply-template", &json!({"messages": messages})).json();
    assert_eq!(shown, json!({"prompt": "[system: Be brief.][user: What is HVO?][assistant:"}));
    let bare = json!({"messages": messages, "add_generation_prompt": false});
    assert_eq!(server.post("/apply-template", &bare).json()["prompt"], "[system: Be brief.][user: What is HVO?]");
    let chat = json!({"messages": messages, "max_tokens": 1, "verbose": true});
    let answer = server.post("/v1/chat/completions", &chat).json();
    assert!(answer["__verbose"]["prompt"].as_str().unwrap().ends_with("[assistant:"), "{answer}");
    let n = &answer["usage"]["prompt_tokens"];
    let input = json!({"input": messages});
    for (path, body) in [
        ("/v1/chat/completions/input_tokens", &chat),
        ("/chat/completions/input_tokens", &chat),
        ("/v1/responses/input_tokens", &input),
        ("/responses/input_tokens", &input),
    ] {
        assert_eq!(server.post(path, body).json()["input_tokens"], *n, "{path}");
    }
    assert_eq!(server.post("/apply-template", &json!({"messages": []})).status, 400);
    let info = server.get("/tokenizer_info").json();
    assert_eq!(info["chat_template"], template, "{info}");
    let text = "What is HVO?";
    let tokens =
        server.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).json()["tokens"].clone();
    assert_eq!(
        server.post("/detokenize", &json!({"tokens": tokens})).json()["prompt"].as_str().unwrap().trim_start(),
        text
    );
    assert_eq!((server.get("/v1/health").status, server.get("/apply-template").status), (200, 405));
}

#[test]
fn every_piece_tells_its_timings_and_the_first_token_is_of_the_prompt() {
    let server = Server::start(&[]);
    let timings = ask(&server, json!({"n_predict": 1}))["timings"].clone();
    assert_eq!((&timings["predicted_n"], &timings["predicted_per_second"]), (&json!(1), &json!(0.0)));
    let timings = ask(&server, json!({}))["timings"].clone();
    let number = |name: &str| timings[name].as_f64().unwrap();
    assert!((number("predicted_per_second") * number("predicted_ms") / 1e3 - 4.0).abs() < 1e-6, "{timings}");
    let user = json!([{"role": "user", "content": "What is HVO?"}]);
    let more = json!({"stream": true, "timings_per_token": true, "return_progress": true, "max_tokens": 6});
    for (path, mut body) in
        [("/v1/chat/completions", json!({"messages": user})), ("/v1/responses", json!({"input": user}))]
    {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let events = server.post(path, &body).events();
        let told: Vec<&Value> =
            events.iter().map(|event| &event["prompt_progress"]).filter(|p| p.is_object()).collect();
        assert_eq!(told[0]["processed"], told[0]["cache"], "{path}");
        assert!(told.last().unwrap()["processed"] == told[0]["total"], "{path}: {told:?}");
        let n = events.iter().filter_map(|event| event["timings"]["predicted_n"].as_u64()).filter(|n| *n > 0).max();
        assert!(events.iter().filter(|event| event["timings"].is_object()).count() > 3 && n <= Some(6), "{path}");
    }
}

/// What a schema makes the model write, of which a line has too little in front.
#[test]
fn a_line_that_is_indented_too_little_ends_an_answer_and_so_does_time() {
    let server = Server::start(&[]);
    let grammar = "root ::= \"a\\n    b\\n\\n      c\\nd\"";
    for stream in [false, true] {
        let found = ask(&server, json!({"grammar": grammar, "n_indent": 4, "n_predict": 40, "stream": stream}));
        let last = if stream { found.as_array().unwrap().last().unwrap() } else { &found };
        assert_eq!((&last["stop_type"], &last["has_new_line"]), (&json!("limit"), &json!(true)), "{found}");
        let pieces = if stream { found.as_array().unwrap().clone() } else { vec![found.clone()] };
        let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
        assert_eq!(text, "a\n    b\n\n      c\n");
    }
    let lines = "root ::= ([a-z]{1,3} \"\\n\")*";
    let begun = Instant::now();
    let found = ask(&server, json!({"grammar": lines, "t_max_predict_ms": 1, "n_predict": 2000, "ignore_eos": true}));
    assert_eq!((&found["stop_type"], &found["has_new_line"]), (&json!("limit"), &json!(true)));
    assert!(found["tokens_predicted"].as_u64().unwrap() < 2000 && begun.elapsed() < Duration::from_secs(30), "{found}");
}

#[test]
fn pages_of_this_machine_may_ask_where_the_board_says_so() {
    let dir = Dir::new("local-pages");
    let board = dir.file("board.toml", "[serve]\ncors_origin = \"localhost\"\n");
    let server = Server::start(&["--board", &board]);
    for (origin, allowed) in [
        ("http://localhost", true),
        ("https://localhost:3000", true),
        ("http://127.0.0.1:5173", true),
        ("http://[::1]:8080", true),
        ("http://localhost.evil.com", false),
        ("http://notlocalhost", false),
        ("http://10.0.0.1", false),
        ("localhost", false),
        ("null", false),
    ] {
        let answer = server.send("GET", "/v1/models", &[("origin", origin)], b"");
        assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{origin}");
        assert_eq!(answer.head.contains(&format!("access-control-allow-origin: {origin}")), allowed, "{}", answer.head);
    }
}
