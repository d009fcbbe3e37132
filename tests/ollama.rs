//! Ollama's interface, as front ends use it.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use serde_json::{Value, json};
use serve::{Answer, Server};

const QUESTION: &str = "What does the plan say?";

fn lines(answer: &Answer) -> Vec<Value> {
    assert!(answer.head.contains("application/x-ndjson"), "{answer:?}");
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn the_model_is_found_and_described() {
    let server = Server::start(&["--name", "box", "--ctx", "512"]);
    assert!(server.get("/api/version").json()["version"].is_string());
    let tags = server.get("/api/tags").json();
    let model = &tags["models"][0];
    assert_eq!(
        (&model["name"], &model["model"], &model["details"]["format"]),
        (&json!("box"), &json!("box"), &json!("gguf"))
    );
    assert!(model["size"].as_u64().unwrap() > 0 && model["modified_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(server.get("/api/ps").json()["models"][0]["context_length"], 512);
    for name in ["box", "box:latest"] {
        let shown = server.post("/api/show", &json!({"model": name})).json();
        let family = shown["details"]["family"].as_str().unwrap();
        assert_eq!(shown["model_info"][format!("{family}.context_length")], 512);
        assert!(shown["capabilities"].as_array().unwrap().contains(&json!("completion")));
        assert!(shown["template"].as_str().unwrap().contains("messages"));
    }
    let missing = server.post("/api/show", &json!({"model": "other"}));
    assert_eq!(missing.status, 404);
    assert!(missing.json()["error"].as_str().unwrap().contains("not found"), "{missing:?}");
    assert_eq!(server.post("/api/embed", &json!({"model": "box", "input": "x"})).status, 501);
}

#[test]
fn chats_stream_lines_and_say_what_the_others_say() {
    let server = Server::start(&[]);
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let want =
        server.post("/v1/chat/completions", &json!({"messages": messages, "temperature": 0, "max_tokens": 20})).json();
    let text = want["choices"][0]["message"]["content"].as_str().unwrap();
    let body =
        json!({"model": "x", "messages": messages, "options": {"temperature": 0, "num_predict": 20, "num_ctx": 2048}});
    let all = lines(&server.post("/api/chat", &body));
    let said: String = all.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, text);
    assert!(all.len() > 5 && all[..all.len() - 1].iter().all(|line| line["done"] == false));
    let last = all.last().unwrap();
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &want["usage"]["completion_tokens"]));
    assert_eq!(last["prompt_eval_count"], want["usage"]["prompt_tokens"]);
    assert!(last["eval_duration"].as_u64().unwrap() > 0 && last["created_at"].as_str().unwrap().len() == 20);
    let mut body = body;
    body["stream"] = false.into();
    let whole = server.post("/api/chat", &body).json();
    assert_eq!((&whole["message"]["content"], &whole["done"]), (&json!(text), &json!(true)));
    let load = server.post("/api/chat", &json!({"model": "x", "messages": []})).json();
    assert_eq!(load["done_reason"], "load");
    for (more, word) in [
        (json!({"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}), "messages[0].images"),
        (json!({"options": {"temperature": "hot"}}), "options.temperature"),
        (json!({"options": {"mirostat": 1}}), "options.mirostat"),
        (json!({"options": {"typical_p": 0.5}}), "options.typical_p"),
        (json!({"options": {"tfs_z": 0.5}}), "options.tfs_z"),
        (json!({"template": "{{ .Prompt }}"}), "template"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"typical_p": 0.5}), "typical_p"),
        (json!({"format": 5}), "format"),
    ] {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post("/api/chat", &body);
        assert_eq!(answer.status, 400, "{more}");
        assert!(answer.json()["error"].as_str().unwrap().contains(word), "{word}: {answer:?}");
    }
    let mut neutral = body.clone();
    neutral["options"] = json!({"temperature": 0, "num_predict": 20, "typical_p": 1.0, "tfs_z": 1, "mirostat": 0});
    neutral["logprobs"] = false.into();
    neutral["template"] = "".into();
    neutral["top_logprobs"] = 0.into();
    assert_eq!(server.post("/api/chat", &neutral).json()["message"]["content"], text);
    body["format"] = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"],
        "additionalProperties": false});
    let held = server.post("/api/chat", &body).json();
    let value: Value = serde_json::from_str(held["message"]["content"].as_str().unwrap()).unwrap();
    assert!(value["n"].is_i64(), "{held}");
}

#[test]
fn prompts_are_answered_with_and_without_the_template() {
    let server = Server::start(&[]);
    let options = json!({"temperature": 0, "num_predict": 8});
    let body = json!({"model": "x", "prompt": "Huge pages", "raw": true, "options": options});
    let said: String =
        lines(&server.post("/api/generate", &body)).iter().map(|line| line["response"].as_str().unwrap()).collect();
    let want =
        server.post("/v1/completions", &json!({"prompt": "Huge pages", "temperature": 0, "max_tokens": 8})).json();
    assert_eq!(said, want["choices"][0]["text"].as_str().unwrap());
    let body = json!({"model": "x", "prompt": QUESTION, "stream": false, "options": options});
    let said = server.post("/api/generate", &body).json();
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let want =
        server.post("/v1/chat/completions", &json!({"messages": messages, "temperature": 0, "max_tokens": 8})).json();
    assert_eq!(said["response"], want["choices"][0]["message"]["content"]);
    assert_eq!(said["done_reason"], "length");
    assert_eq!(server.post("/api/generate", &json!({"model": "x"})).json()["done_reason"], "load");
    let old = server.post("/api/generate", &json!({"model": "x", "prompt": "x", "context": [1, 2]}));
    assert_eq!(old.status, 400);
    for (more, word) in [
        (json!({"system": "Be brief.", "raw": true}), "system"),
        (json!({"template": "x"}), "template"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"options": {"typical_p": 0.5}}), "options.typical_p"),
    ] {
        let mut body = json!({"model": "x", "prompt": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post("/api/generate", &body);
        assert_eq!(answer.status, 400, "{more}");
        assert!(answer.json()["error"].as_str().unwrap().contains(word), "{word}: {answer:?}");
    }
}
