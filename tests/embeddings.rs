//! `/v1/embeddings`, `/v1/rerank` and their relatives over HTTP.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use cli::run;
use serde_json::{Value, json};
use serve::Server;

fn model(name: &str) -> String {
    format!("{}/tests/golden/vectors/{name}.gguf", env!("CARGO_MANIFEST_DIR"))
}

fn golden(name: &str) -> Value {
    let path = model(name).replace(".gguf", ".json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

fn length(a: &[f64]) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The bytes of base64.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{c}"),
    };
    let mut out = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(digit(*c)) << (18 - 6 * i));
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}

#[test]
fn every_form_of_input_has_the_vectors_of_llama_cpp() {
    for name in ["qwen3-embedding-f32", "bert-f32", "nomic-bert-f32", "gemma-embedding-f32"] {
        let golden = golden(name);
        let server = Server::start(&["-m", &model(name)]);
        let texts = &golden["texts"];
        let answer = server.post("/v1/embeddings", &json!({"model": "any", "input": texts}));
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        assert_eq!(answer["object"], "list");
        let data = answer["data"].as_array().unwrap();
        assert_eq!(data.len(), texts.as_array().unwrap().len());
        for (i, item) in data.iter().enumerate() {
            assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(i)));
            let (got, want) = (floats(&item["embedding"]), floats(&golden["vectors"][i]));
            assert!(cosine(&got, &want) > 1.0 - 1e-5, "{name}, text {i}: {}", cosine(&got, &want));
            assert!((length(&got) - 1.0).abs() < 1e-5, "{name}, text {i}");
        }
        let n: usize = golden["tokens"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).sum();
        assert_eq!(answer["usage"], json!({"prompt_tokens": n, "total_tokens": n}));
        let one = server.post("/v1/embeddings", &json!({"input": texts[0]})).json();
        let ids = server.post("/v1/embeddings", &json!({"input": golden["tokens"][0]})).json();
        let lists = server.post("/embeddings", &json!({"input": [golden["tokens"][0], texts[1]]})).json();
        let first = floats(&data[0]["embedding"]);
        for other in [&one["data"][0], &ids["data"][0], &lists["data"][0]] {
            assert!(cosine(&first, &floats(&other["embedding"])) > 1.0 - 1e-6, "{name}");
        }
        assert_eq!(lists["data"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn base64_and_dimensions_are_the_same_vectors() {
    let server = Server::start(&["-m", &model("qwen3-embedding-f32")]);
    let ask = |more: Value| {
        let mut body = json!({"input": "hot water"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post("/v1/embeddings", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"][0]["embedding"].clone()
    };
    let whole = floats(&ask(json!({"encoding_format": "float", "user": "me"})));
    let bytes = decoded(ask(json!({"encoding_format": "base64"})).as_str().unwrap());
    let packed: Vec<f64> =
        bytes.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect();
    assert!(whole.iter().zip(&packed).all(|(a, b)| (a - b).abs() < 1e-7), "{whole:?} {packed:?}");
    let few = floats(&ask(json!({"dimensions": 7})));
    assert_eq!(few.len(), 7);
    assert!((length(&few) - 1.0).abs() < 1e-5 && cosine(&few, &whole[..7]) > 1.0 - 1e-6);
    let raw = server.post("/embedding", &json!({"content": "hot water", "embd_normalize": -1})).json();
    let raw = floats(&raw[0]["embedding"][0]);
    assert!((length(&raw) - 1.0).abs() > 1e-3 && cosine(&raw, &whole) > 1.0 - 1e-6);
}

#[test]
fn what_is_wrong_is_named() {
    let server = Server::start(&["-m", &model("bert-f32"), "--ctx", "64"]);
    let long = "water ".repeat(100);
    let many: Vec<&str> = vec!["x"; 2049];
    let cases = [
        (json!({}), "input", "missing"),
        (json!({"input": ""}), "input", "empty"),
        (json!({"input": []}), "input", "empty"),
        (json!({"input": ["x", ""]}), "input[1]", "empty"),
        (json!({"input": [[]]}), "input[0]", "empty"),
        (json!({"input": 3}), "input", "expected"),
        (json!({"input": ["x", 3]}), "input[1]", "expected"),
        (json!({"input": [1, "x"]}), "input[1]", "token id"),
        (json!({"input": [1, 99999]}), "input[1]", "below"),
        (json!({"input": many}), "input", "2048"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format", "base64"),
        (json!({"input": "x", "dimensions": 0}), "dimensions", "must be"),
        (json!({"input": "x", "dimensions": 37}), "dimensions", "must be"),
        (json!({"input": "x", "embd_normalize": 1}), "embd_normalize", "only 2"),
        (json!({"input": long}), "input", "102 tokens, and this model takes at most 64"),
        (json!({"input": ["x", long]}), "input[1]", "at most 64"),
    ];
    for (body, param, part) in cases {
        let answer = server.post("/v1/embeddings", &body);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
    assert_eq!(
        server.post("/v1/embeddings", &json!({"input": vec!["x"; 2048]})).json()["data"].as_array().unwrap().len(),
        2048
    );
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_model_of_vectors_makes_no_text_and_ranks_nothing() {
    let server = Server::start(&["-m", &model("bert-f32")]);
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/responses", json!({"input": "x"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 1})),
        ("/infill", json!({"input_prefix": "x"})),
        ("/api/chat", json!({"messages": messages})),
        ("/api/generate", json!({"prompt": "x"})),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 501, "{path}: {answer:?}");
        assert!(answer.text().contains("/v1/embeddings"), "{path}: {answer:?}");
    }
    let answer = server.post("/v1/rerank", &json!({"query": "x", "documents": ["y"]}));
    assert!(answer.status == 501 && answer.text().contains("classifier"), "{answer:?}");
    let text = Server::start(&[]);
    for path in ["/v1/embeddings", "/embedding", "/api/embed", "/v1/rerank"] {
        assert_eq!(text.post(path, &json!({"input": "x"})).status, 501, "{path}");
    }
}

#[test]
fn ollama_has_its_forms_and_cuts_what_is_too_long() {
    let server = Server::start(&["-m", &model("bert-f32"), "--ctx", "64", "--name", "box"]);
    let answer = server.post("/api/embed", &json!({"model": "box", "input": ["hot", "water"]})).json();
    assert_eq!((&answer["model"], &answer["prompt_eval_count"]), (&json!("box"), &json!(6)));
    let vectors = answer["embeddings"].as_array().unwrap();
    assert!(vectors.len() == 2 && (length(&floats(&vectors[1])) - 1.0).abs() < 1e-5);
    let old = server.post("/api/embeddings", &json!({"model": "box", "prompt": "hot"})).json();
    assert!(cosine(&floats(&old["embedding"]), &floats(&vectors[0])) > 1.0 - 1e-6);
    assert_eq!(server.post("/api/embed", &json!({"input": []})).json()["embeddings"], json!([]));
    let long = "water ".repeat(100);
    let cut = server.post("/api/embed", &json!({"input": long})).json();
    assert_eq!(cut["prompt_eval_count"], 64);
    let refused = server.post("/api/embed", &json!({"input": long, "truncate": false}));
    assert!(refused.status == 400 && refused.text().contains("at most 64"), "{refused:?}");
    let shown = server.post("/api/show", &json!({"model": "box"})).json();
    assert_eq!(shown["capabilities"], json!(["embedding"]));
}

#[test]
fn documents_are_ranked_in_every_form() {
    for name in ["qwen3-reranker-f32", "bert-reranker-f32", "bert-reranker-words-f32"] {
        let golden = golden(name);
        let server = Server::start(&["-m", &model(name)]);
        let documents = golden["texts"].as_array().unwrap();
        let body = json!({"model": "any", "query": golden["query"], "documents": documents});
        let answer = server.post("/v1/rerank", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), documents.len());
        let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{name}: {scores:?}");
        for (result, score) in results.iter().zip(&scores) {
            let want = golden["vectors"][result["index"].as_u64().unwrap() as usize][0].as_f64().unwrap();
            assert!((score - want).abs() < 2e-3, "{name}: {score} {want}");
        }
        let n: usize = golden["tokens"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).sum();
        assert_eq!(answer["usage"]["total_tokens"], n);
        let objects: Vec<Value> = documents.iter().map(|text| json!({"text": text})).collect();
        let body = json!({"query": golden["query"], "documents": objects, "top_n": 2, "return_documents": true});
        let best = server.post("/reranking", &body).json();
        let best = best["results"].as_array().unwrap();
        assert_eq!(best.len(), 2);
        assert_eq!(best[0]["document"]["text"], documents[best[0]["index"].as_u64().unwrap() as usize]);
        let body = json!({"query": golden["query"], "texts": documents, "return_text": true});
        let tei = server.post("/rerank", &body).json();
        assert_eq!((&tei[0]["index"], &tei[0]["text"]), (&best[0]["index"], &best[0]["document"]["text"]));
        assert!(tei[0]["score"].is_number());
    }
}

#[test]
fn a_wrong_request_for_ranks_is_named_and_vectors_are_elsewhere() {
    let server = Server::start(&["-m", &model("bert-reranker-f32")]);
    for (body, param) in [
        (json!({"documents": ["x"]}), "query"),
        (json!({"query": "x"}), "documents"),
        (json!({"query": "x", "documents": []}), "documents"),
        (json!({"query": "x", "documents": [1]}), "documents[0]"),
        (json!({"query": "x", "documents": [{"t": 1}]}), "documents[0].text"),
        (json!({"query": "x", "documents": ["y"], "top_n": 0}), "top_n"),
        (json!({"query": "x", "documents": ["y"], "rank_fields": ["a"]}), "rank_fields"),
        (json!({"query": "x", "texts": ["water ".repeat(300)]}), "texts[0]"),
    ] {
        let answer = server.post("/v1/rerank", &body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)), "{answer:?}");
    }
    let answer = server.post("/v1/embeddings", &json!({"input": "x"}));
    assert!(answer.status == 501 && answer.text().contains("/v1/rerank"), "{answer:?}");
}

#[test]
fn a_thousand_texts_do_not_hold_up_a_single_one() {
    let server = Server::start(&["-m", &model("qwen3-embedding-q8_0")]);
    let texts: Vec<String> = (0..1000).map(|i| format!("short text number {i}")).collect();
    std::thread::scope(|scope| {
        let many = scope.spawn(|| server.post("/v1/embeddings", &json!({"input": texts})));
        let mut n_beside = 0;
        while !many.is_finished() {
            let one = server.post("/v1/embeddings", &json!({"input": "beside"}));
            assert_eq!(one.status, 200, "{one:?}");
            n_beside += 1;
        }
        let many = many.join().unwrap().json();
        assert_eq!(many["data"].as_array().unwrap().len(), 1000);
        assert!(n_beside > 2, "{n_beside} texts were answered beside a thousand");
    });
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn commands_that_make_text_say_what_the_model_is_for() {
    for name in ["bert-f32", "qwen3-embedding-f32"] {
        let model = model(name);
        run(&["run", "-m", &model, "-p", "x"]).fails(2, &["makes vectors", "brim serve"]);
        run(&["eval", "-m", &model, "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")])
            .fails(2, &["makes vectors"]);
        let plan = run(&["plan", "-m", &model]).good();
        assert!(plan.contains("vectors"), "{plan}");
    }
}
