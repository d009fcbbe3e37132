//! `/v1/completions` and `/infill`: prompts with marks, logprobs of prompts, offsets, many prompts at once, gaps.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/serve.rs"]
mod serve;

use cli::{Dir, golden, run};
use serde_json::{Value, json};
use serve::Server;

const PATH: &str = "/v1/completions";

fn list<'a>(logprobs: &'a Value, name: &str) -> &'a Vec<Value> {
    logprobs[name].as_array().unwrap_or_else(|| panic!("{name}: {logprobs}"))
}

#[track_caller]
fn ask(server: &Server, body: &Value) -> Value {
    let answer = server.post(PATH, body);
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    answer.json()
}

#[test]
fn an_echo_has_the_logprobs_that_the_prompt_gets_token_by_token() {
    let server = Server::start(&[]);
    // What the model says itself is likely to it.
    let said = ask(&server, &json!({"prompt": "Huge pages", "max_tokens": 12, "temperature": 0}));
    let prompt = format!("Huge pages{}", said["choices"][0]["text"].as_str().unwrap());
    let prompt = prompt.trim_end();
    let body = json!({"prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": 1, "temperature": 0});
    let choice = ask(&server, &body)["choices"][0].clone();
    let logprobs = &choice["logprobs"];
    let values = list(logprobs, "token_logprobs");
    let tops = list(logprobs, "top_logprobs");
    let ids = server.post("/tokenize", &json!({"content": prompt, "add_special": true})).json()["tokens"].clone();
    let ids = ids.as_array().unwrap();
    assert_eq!(values.len(), ids.len() + 1, "those of the prompt and one more: {choice}");
    for name in ["tokens", "top_logprobs", "text_offset"] {
        assert_eq!(list(logprobs, name).len(), values.len(), "{name}");
    }
    assert!(values[0].is_null() && tops[0].is_null(), "nothing comes before the first");
    assert!(choice["text"].as_str().unwrap().starts_with(prompt));
    // What comes after each beginning, asked for by itself.
    let mut compared = 0;
    for n in 1..values.len() {
        let body = json!({"prompt": ids[..n], "logprobs": 20, "max_tokens": 1, "temperature": 0});
        let alone = ask(&server, &body)["choices"][0]["logprobs"]["top_logprobs"][0].clone();
        let token = list(logprobs, "tokens")[n].as_str().unwrap();
        let best =
            |top: &Value| top.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!((best(&alone) - best(&tops[n])).abs() < 0.05, "{n}: {alone} {}", tops[n]);
        if let Some(want) = alone[token].as_f64() {
            assert!((want - values[n].as_f64().unwrap()).abs() < 0.05, "{n}: {want} {}", values[n]);
            compared += 1;
        }
        assert_eq!(tops[n][token], values[n], "the token itself is always among them");
    }
    assert!(compared > 2, "{compared} tokens of the prompt were among the likeliest");
    // Read alone, the prompt has the same; and as tokens.
    for prompt in [json!(prompt), json!(ids), json!([ids])] {
        let body = json!({"prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": 0});
        let whole = ask(&server, &body);
        let read = &whole["choices"][0];
        assert_eq!((&read["finish_reason"], &whole["usage"]["completion_tokens"]), (&json!("length"), &json!(0)));
        let found = list(&read["logprobs"], "token_logprobs");
        assert_eq!(found.len(), ids.len());
        for (found, want) in found.iter().zip(values).skip(1) {
            assert!((found.as_f64().unwrap() - want.as_f64().unwrap()).abs() < 0.05, "{found} {want}");
        }
    }
    let silent = ask(&server, &json!({"prompt": prompt, "max_tokens": 0}));
    assert_eq!((&silent["choices"][0]["text"], &silent["choices"][0]["logprobs"]), (&json!(""), &Value::Null));
    assert_eq!(server.post("/v1/chat/completions", &json!({"messages": [], "max_tokens": 0})).status, 400);
}

#[test]
fn events_of_an_echo_add_up_to_the_whole() {
    let server = Server::start(&[]);
    for logprobs in [Value::Null, json!(1)] {
        let mut body = json!({"prompt": ["Huge pages", "What is HVO"], "echo": true, "logprobs": logprobs,
            "max_tokens": 5, "temperature": 0});
        let whole = ask(&server, &body);
        body["stream"] = true.into();
        let events = server.post(PATH, &body).events();
        for index in 0..2 {
            let of = |event: &Value| event["choices"][0].clone();
            let parts: Vec<Value> = events.iter().map(of).filter(|choice| choice["index"] == index).collect();
            let text: String = parts.iter().map(|part| part["text"].as_str().unwrap()).collect();
            let want = &whole["choices"][index];
            assert_eq!(text, want["text"].as_str().unwrap());
            for name in ["tokens", "text_offset"] {
                let found = parts.iter().filter_map(|part| part["logprobs"][name].as_array()).flatten();
                let found: Vec<&Value> = found.collect();
                let want: Vec<&Value> = want["logprobs"][name].as_array().into_iter().flatten().collect();
                assert_eq!(found, want, "{name}");
            }
        }
    }
}

#[test]
fn offsets_are_in_characters() {
    let server = Server::start(&[]);
    for (prompt, want) in [("ñöñ😀😀", 5), ("plain", 5), ("世界", 2)] {
        let body = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 1, "temperature": 0});
        let choice = ask(&server, &body)["choices"][0].clone();
        let offsets: Vec<u64> =
            list(&choice["logprobs"], "text_offset").iter().map(|offset| offset.as_u64().unwrap()).collect();
        assert_eq!(offsets.last(), Some(&want), "{prompt}: {choice}");
        assert!(offsets.is_sorted() && offsets[0] == 0, "{offsets:?}");
        let tokens: Vec<&str> =
            list(&choice["logprobs"], "tokens").iter().map(|token| token.as_str().unwrap()).collect();
        let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        for (token, &offset) in tokens.iter().zip(&offsets).filter(|(token, _)| token.is_ascii()) {
            let found: String = text[offset as usize..].iter().take(token.len()).collect();
            assert!(found == *token || token.starts_with('<'), "{found:?} {token:?}");
        }
    }
}

#[test]
fn control_tokens_are_read_as_such_unless_the_request_says_otherwise() {
    let model = golden("qwen3-mixed");
    let server = Server::start(&["-m", &model]);
    // Whatever the model's marks are: the first control token of its vocabulary.
    let mark = (0..2000).find_map(|id| {
        let text =
            server.post("/detokenize", &json!({"tokens": [id]})).json()["content"].as_str().unwrap_or("").to_owned();
        let tokens = |special: bool| {
            server.post("/tokenize", &json!({"content": text, "parse_special": special})).json()["count"].clone()
        };
        (text.len() > 3 && text.starts_with('<') && tokens(true) == 1 && tokens(false) != 1).then_some(text)
    });
    let mark = mark.expect("the model has a control token");
    let prompt = format!("{mark}a b{mark}");
    let count = |special: bool| {
        let body = json!({"content": prompt, "parse_special": special, "add_special": true});
        server.post("/tokenize", &body).json()["count"].clone()
    };
    assert_ne!(count(true), count(false));
    let used = |more: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = ask(&server, &body);
        (answer["usage"]["prompt_tokens"].clone(), answer["choices"][0]["text"].as_str().unwrap().to_owned())
    };
    let (marks, plain) = (used(json!({})), used(json!({"parse_special": false})));
    assert_eq!((&marks.0, &plain.0), (&count(true), &count(false)));
    for (words, want) in [(&["--raw"][..], &marks.1), (&["--raw", "--plain"], &plain.1)] {
        let base = ["run", "-m", &model, "-p", &prompt, "-n", "4", "--temp", "0"];
        let text = run(&[&base[..], words].concat()).good();
        assert_eq!(text.trim_end_matches('\n'), want.trim_end_matches('\n'), "{words:?}");
    }
    run(&["run", "-m", &model, "-p", "x", "--plain"]).fails(2, &["--plain", "--raw"]);
}

#[test]
fn a_request_may_have_a_hundred_and_twenty_eight_prompts() {
    let server = Server::start(&["--slots", "2"]);
    let prompts: Vec<String> = (0..128).map(|i| format!("Page {}", i % 5)).collect();
    let body = json!({"prompt": prompts, "max_tokens": 2, "temperature": 0});
    let all = ask(&server, &body);
    let choices = all["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 128);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(i), &choices[i % 5]["text"]));
    }
    let more = json!({"prompt": vec!["a"; 129], "max_tokens": 1});
    assert_eq!(server.post(PATH, &more).json()["error"]["param"], "prompt");
    let more = json!({"prompt": vec!["a"; 65], "n": 2, "max_tokens": 1});
    assert_eq!(server.post(PATH, &more).json()["error"]["param"], "n");
    let twenty = ask(&server, &json!({"prompt": "a", "logprobs": 20, "max_tokens": 1}));
    let top = twenty["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len();
    assert!((18..=21).contains(&top), "{top}");
    for (field, value) in [("logprobs", json!(21)), ("best_of", json!(3))] {
        let answer = server.post(PATH, &json!({"prompt": "a", field: value}));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)));
    }
    server.is_well();
}

#[test]
fn a_model_with_tokens_for_it_fills_gaps() {
    let dir = Dir::new("gaps");
    let id = |id: u32| id.to_le_bytes().to_vec();
    let keys = [
        ("tokenizer.ggml.fim_pre_token_id", 4, id(10)),
        ("tokenizer.ggml.fim_suf_token_id", 4, id(11)),
        ("tokenizer.ggml.fim_mid_token_id", 4, id(12)),
        ("tokenizer.ggml.fim_sep_token_id", 4, id(13)),
    ];
    let model = dir.file("gaps.gguf", gguf::with_keys(&std::fs::read(golden("qwen3-mixed")).unwrap(), &keys));
    let server = Server::start(&["-m", &model]);
    let ids = |text: &str| {
        let tokens = server.post("/tokenize", &json!({"content": text, "parse_special": false})).json();
        tokens["tokens"].as_array().unwrap().clone()
    };
    let prompt = [&[json!(10)][..], &ids("one "), &[json!(11)], &ids(" two"), &[json!(12)]].concat();
    let more = json!({"max_tokens": 6, "temperature": 0, "ignore_eos": true});
    let with = |mut body: Value| {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let want = ask(&server, &with(json!({"prompt": prompt})));
    let found = ask(&server, &with(json!({"prompt": "one ", "suffix": " two"})));
    assert_eq!(found["choices"][0]["text"], want["choices"][0]["text"]);
    assert_eq!(found["usage"]["prompt_tokens"], want["usage"]["prompt_tokens"]);
    let body = with(json!({"input_prefix": "one", "prompt": " ", "input_suffix": " two", "n_predict": 6}));
    let filled = server.post("/infill", &body).json();
    assert_eq!((&filled["stop"], &filled["stop_type"]), (&json!(true), &json!("limit")), "{filled}");
    assert_eq!(filled["tokens_predicted"], 6);
    assert!(filled["timings"]["predicted_n"] == 6 && filled["content"].is_string());
    let mut body = with(json!({"input_prefix": "one ", "input_suffix": " two", "n_predict": 6, "stream": true}));
    let events = server.post("/infill", &body).events();
    let text: String = events.iter().map(|event| event["content"].as_str().unwrap()).collect();
    assert_eq!(text, want["choices"][0]["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["stop"], true);
    body["input_extra"] = json!([{"filename": "other.rs", "text": "three"}]);
    body["stream"] = false.into();
    let more = server.post("/infill", &body).json();
    assert!(more["tokens_evaluated"].as_u64().unwrap() > filled["tokens_evaluated"].as_u64().unwrap());
    let refused = server.post(PATH, &json!({"prompt": "a", "suffix": "b", "echo": true}));
    assert_eq!(refused.json()["error"]["param"], "echo");
    let server = Server::start(&["-m", &golden("qwen3-mixed")]);
    for (path, body) in
        [(PATH, json!({"prompt": "a", "suffix": "b"})), ("/infill", json!({"input_prefix": "a", "input_suffix": "b"}))]
    {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("infill_not_supported")), "{path}");
    }
}
