//! What clients and proxies of all kinds expect of a server: signs of life, paths, words, numbers, addresses.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/serve.rs"]
mod serve;
#[path = "common/vocabulary.rs"]
mod vocabulary;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use cli::{Dir, brim, golden, run};
use serde_json::{Value, json};
use serve::{Answer, Server};

const CHAT: &str = "/v1/chat/completions";

fn chat(more: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "What is HVO?"}], "temperature": 0, "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A server whose model takes its time: to score a prompt is to multiply each token with 150,000 others.
fn slow(dir: &Dir, limits: &str) -> Server {
    let model = dir.file("vocabulary.gguf", vocabulary::model());
    let board = dir.file("board.toml", format!("[tile]\ntokens = 32\n[serve.limits]\n{limits}\n"));
    Server::start(&["-m", &model, "--board", &board, "-t", "1", "--ctx", "4096", "--slots", "1"])
}

fn long_prompt(n: usize) -> Value {
    json!({"prompt": (0..n).map(|i| i * 31 % 256).collect::<Vec<_>>(), "echo": true, "logprobs": 0, "max_tokens": 1})
}

/// How many tokens of a prompt keep the server busy for some five seconds; `None` where the context is too short for that.
fn patient_length(server: &Server) -> Option<usize> {
    const FIRST: usize = 300;
    let begun = Instant::now();
    assert_eq!(server.post("/v1/completions", &long_prompt(FIRST)).status, 200);
    let n = (FIRST as f64 * 5.0 / begun.elapsed().as_secs_f64()) as usize;
    // As many as the context takes are to last three seconds.
    (n < 6500).then(|| n.clamp(FIRST, 3900))
}

#[test]
fn while_a_prompt_is_read_there_are_signs_of_life_and_no_deadline() {
    let dir = Dir::new("signs");
    let server = slow(&dir, "first_token_s = 1");
    let Some(n) = patient_length(&server) else { return eprintln!("SKIPPED: this machine reads too fast") };
    let mut body = long_prompt(n);
    let begun = Instant::now();
    assert_eq!(server.post("/v1/completions", &body).status, 200, "longer than the limit, and never without progress");
    let alone = begun.elapsed();
    assert!(alone > Duration::from_secs(1), "the prompt takes {alone:?}, which shows nothing");
    body["stream"] = true.into();
    body["sse_ping_interval"] = 1.into();
    let answer = server.post("/v1/completions", &body);
    assert!(answer.head.contains("x-accel-buffering: no"), "{}", answer.head);
    let text = answer.text();
    assert!(text.matches(": ping\n\n").count() >= 2, "{alone:?}");
    assert!(text.ends_with("data: [DONE]\n\n"));
    body["return_progress"] = true.into();
    let events = server.post("/v1/completions", &body).events();
    let told: Vec<&Value> = events.iter().map(|event| &event["prompt_progress"]).filter(|p| p.is_object()).collect();
    assert!(told.len() > 5 && told.iter().all(|progress| progress["total"] == n), "{told:?}");
    assert!(told.is_sorted_by_key(|progress| progress["processed"].as_u64()));
    assert!(told.last().unwrap()["processed"].as_u64().unwrap() as usize + 100 >= n);
    // Whoever waits for the slot all that time is told so.
    let stream = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "stream": true});
    std::thread::scope(|scope| {
        scope.spawn(|| server.post("/v1/completions", &body));
        std::thread::sleep(Duration::from_millis(300));
        let events = scope.spawn(|| server.post("/v1/messages", &stream).text());
        let refused = server.post("/v1/completions", &json!({"prompt": [1, 2], "max_tokens": 1}));
        assert_eq!(refused.status, 503, "{refused:?}");
        let error = &refused.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("waited for a free slot for 1 s (serve.limits.first_token_s)"), "{message}");
        assert_eq!(error["code"], "first_token_timeout");
        let events = events.join().unwrap();
        assert!(events.contains("event: error"), "{events}");
    });
}

#[test]
fn anthropics_stream_has_pings() {
    let dir = Dir::new("pings");
    let server = slow(&dir, "first_token_s = 60");
    std::thread::scope(|scope| {
        let Some(n) = patient_length(&server) else { return eprintln!("SKIPPED: this machine reads too fast") };
        let server = &server;
        scope.spawn(move || server.post("/v1/completions", &long_prompt(n)));
        std::thread::sleep(Duration::from_millis(300));
        let ask = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "stream": true,
            "sse_ping_interval": 1});
        let events = server.post("/v1/messages", &ask).text();
        assert!(events.contains("event: ping\ndata: {\"type\":\"ping\"}\n\n"), "{events}");
    });
}

#[test]
fn an_overflow_is_told_in_the_words_of_each_interface() {
    let server = Server::start(&["--ctx", "64"]);
    let long = "word ".repeat(300);
    let messages = json!([{"role": "user", "content": long}]);
    for (path, body) in [
        (CHAT, json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": long})),
        ("/v1/completions", json!({"prompt": long, "max_tokens": 0})),
        ("/v1/responses", json!({"input": long})),
    ] {
        let answer = server.post(path, &body);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["code"]), (400, &json!("context_length_exceeded")), "{path}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("maximum context length is 64 tokens"), "{message}");
    }
    let answer = server.post("/v1/messages", &json!({"messages": messages, "max_tokens": 5}));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    let rest = message.strip_prefix("prompt is too long: ").unwrap_or_else(|| panic!("{message}"));
    let (found, most) = rest.strip_suffix(" maximum").and_then(|rest| rest.split_once(" tokens > ")).unwrap();
    assert!(found.parse::<usize>().unwrap() > 300 && most == "63", "{message}");
}

#[test]
fn paths_work_without_their_version_and_names_are_decoded() {
    let server = Server::start(&["--name", "org/a b"]);
    for path in ["/v1", ""] {
        assert_eq!(server.post(&format!("{path}/chat/completions"), &chat(json!({}))).status, 200);
        assert_eq!(server.post(&format!("{path}/completions"), &json!({"prompt": "x", "max_tokens": 1})).status, 200);
        assert_eq!(
            server.post(&format!("{path}/responses"), &json!({"input": "x", "max_output_tokens": 1})).status,
            200
        );
        let message = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
        assert_eq!(server.post(&format!("{path}/messages"), &message).status, 200);
        assert_eq!(server.post(&format!("{path}/messages/count_tokens"), &message).status, 200);
        assert_eq!(server.post(&format!("{path}/embeddings"), &json!({"input": "x"})).status, 501);
        let models = server.get(&format!("{path}/models")).json();
        let ctx = models["data"][0]["context_length"].as_u64().unwrap();
        assert_eq!(models["data"][0]["meta"]["n_ctx"], ctx);
        for (name, status) in [("org/a%20b", 200), ("org%2Fa%20b", 200), ("org%2fa%2", 404), ("other", 404)] {
            assert_eq!(server.get(&format!("{path}/models/{name}")).status, status, "{path} {name}");
        }
    }
    let props = server.get("/props").json();
    let models = server.get("/v1/models").json();
    assert_eq!(props["default_generation_settings"]["n_ctx"], models["data"][0]["context_length"]);
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(4), &json!("org/a b")));
    assert!(props["chat_template"].as_str().unwrap().contains("messages"));
    let slots = server.get("/slots").json();
    let slots = slots.as_array().unwrap();
    assert!(slots.len() == 4 && slots.iter().all(|slot| slot["is_processing"] == false), "{slots:?}");
}

#[test]
fn answers_tell_where_the_time_went() {
    let server = Server::start(&[]);
    for (path, body) in [
        (CHAT, chat(json!({}))),
        ("/v1/completions", json!({"prompt": "Huge pages", "max_tokens": 8, "temperature": 0})),
    ] {
        let check = |timings: &Value, usage: &Value| {
            assert_eq!(timings["predicted_n"], usage["completion_tokens"], "{timings}");
            let n = |name: &str| timings[name].as_u64().unwrap();
            assert_eq!(n("prompt_n") + n("cache_n"), usage["prompt_tokens"].as_u64().unwrap());
            assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], timings["cache_n"]);
            assert!(timings["predicted_per_second"].as_f64().unwrap() > 0.0);
        };
        let whole = server.post(path, &body).json();
        check(&whole["timings"], &whole["usage"]);
        let mut body = body;
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let events = server.post(path, &body).events();
        let last = events.last().unwrap();
        check(&last["timings"], &last["usage"]);
        body["stream_options"] = Value::Null;
        let events = server.post(path, &body).events();
        let last = events.last().unwrap();
        assert!(
            last["timings"]["predicted_n"].as_u64() > Some(0) && last["choices"][0]["finish_reason"].is_string(),
            "{last}"
        );
    }
}

#[test]
fn llama_cpps_name_for_the_length_counts() {
    let server = Server::start(&["--ctx", "128"]);
    let n_tokens = |path: &str, more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "prompt": "x", "temperature": 0,
            "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{more}: {answer:?}");
        answer.json()["usage"]["completion_tokens"].as_u64().unwrap()
    };
    for path in [CHAT, "/v1/completions"] {
        assert_eq!(n_tokens(path, json!({"n_predict": 3})), 3, "{path}");
        assert_eq!(n_tokens(path, json!({"n_predict": 3, "max_tokens": 5})), 3, "{path}");
        assert!(n_tokens(path, json!({"n_predict": -1})) > 16, "{path}: as many as fit");
    }
    assert_eq!(server.post(CHAT, &chat(json!({"n_predict": 0}))).status, 400);
    assert_eq!(server.post(CHAT, &chat(json!({"n_predict": "3"}))).status, 400);
}

#[test]
fn bodies_in_encodings_that_are_not_there_are_refused_by_name() {
    let server = Server::start(&[]);
    let body = chat(json!({})).to_string();
    for encoding in ["gzip", "zstd", "br"] {
        let answer = server.send("POST", CHAT, &[("content-encoding", encoding)], body.as_bytes());
        assert_eq!(answer.status, 415);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(encoding));
    }
    assert_eq!(server.send("POST", CHAT, &[("content-encoding", "identity")], body.as_bytes()).status, 200);
}

#[test]
fn localhost_is_reached_by_both_protocols_and_beside_others() {
    let dir = Dir::new("addresses");
    let path = dir.at("socket");
    let listen = format!("localhost:0,unix:{path}");
    let server = Server::spawn(brim(&["serve", "--listen", &listen])).ready();
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let Ok(mut stream) = TcpStream::connect(&address) else {
            assert!(address.starts_with('['), "{address}");
            eprintln!("SKIPPED: this system has no IPv6");
            continue;
        };
        stream.write_all(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(Answer::parse(&answer).status, 200, "{address}");
    }
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Answer::parse(&answer).status, 200);
    let taken = format!("127.0.0.1:0,127.0.0.1:{port}");
    run(&["serve", "--listen", &taken]).fails(7, &[&format!("127.0.0.1:{port}")]);
}

/// Says all it has to say and closes its side, as `nc -N` does.
fn half_closing(server: &Server, body: &str) -> Vec<u8> {
    let mut stream = server.connect();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn a_client_that_closes_its_side_is_answered_and_one_that_goes_away_is_not() {
    let server = Server::start(&[]);
    let want = server.post(CHAT, &chat(json!({}))).json()["choices"][0]["message"]["content"].clone();
    let answer = Answer::parse(&half_closing(&server, &chat(json!({})).to_string()));
    assert_eq!((answer.status, &answer.json()["choices"][0]["message"]["content"]), (200, &want));
    let answer = Answer::parse(&half_closing(&server, &chat(json!({"stream": true})).to_string()));
    assert!(answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    let text: String = answer.events().iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, want.as_str().unwrap());
    // A body that ends too soon is no request.
    let mut stream = server.connect();
    stream
        .write_all(format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{{").as_bytes())
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let begun = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(begun.elapsed() < Duration::from_secs(5), "{}", String::from_utf8_lossy(&answer));
    drop(server);
    // Whoever is gone altogether is told from who only listens, with or without a stream.
    let server = Server::start(&["-m", &golden("qwen3-mixed"), "--ctx", "4096", "--chat-template", "chatml"]);
    for stream in [true, false] {
        let body = chat(json!({"stream": stream, "ignore_eos": true, "max_tokens": 4000})).to_string();
        let mut gone = server.connect();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        gone.write_all((head + &body).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(gone);
        let begun = Instant::now();
        let busy = || server.get("/metrics").text().contains("\nbrim_slots_busy 0\n");
        while !busy() {
            assert!(begun.elapsed() < Duration::from_secs(4), "stream: {stream}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
