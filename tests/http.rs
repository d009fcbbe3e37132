//! The server over the demo model: what it answers, what it refuses and how, and how it begins and ends.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cgroup.rs"]
mod cgroup;
#[path = "common/cli.rs"]
mod cli;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/pool.rs"]
mod pool;
#[path = "common/serve.rs"]
mod serve;
#[path = "common/vocabulary.rs"]
mod vocabulary;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use cgroup::Group;
use cli::{Dir, brim, golden, run};
use pool::Pool;
use serde_json::{Value, json};
use serve::{Answer, Server};

const QUESTION: &str = "How do I reserve huge pages?";

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn greedy_answers_equal_those_of_run_alone_and_eight_at_a_time() {
    let server = Server::start(&[]);
    let questions = [QUESTION, "What is HVO?", "What does the plan say?", "How much memory does brim need?"];
    let want: Vec<String> = questions
        .iter()
        .map(|q| run(&["run", "-p", q, "--temp", "0", "-n", "60"]).good().trim_end_matches('\n').to_owned())
        .collect();
    let ask = |q: &str| {
        let body = json!({"messages": [{"role": "user", "content": q}], "temperature": 0, "max_tokens": 60});
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    for (question, want) in questions.iter().zip(&want) {
        assert_eq!(&ask(question), want, "{question}");
    }
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (ask, question, want) = (&ask, questions[i % 4], &want[i % 4]);
            scope.spawn(move || assert_eq!(&ask(question), want, "{question}, interleaved"));
        }
    });
    let raw = run(&["run", "--raw", "-p", "Huge pages", "--temp", "0", "-n", "10"]).good();
    let body = json!({"prompt": "Huge pages", "temperature": 0, "max_tokens": 10});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["choices"][0]["text"].as_str().unwrap(), raw.trim_end_matches('\n'));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn events_add_up_to_the_whole_answer() {
    let server = Server::start(&[]);
    let whole = server.post(CHAT, &chat(json!({"logprobs": true}))).json();
    let want = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let options =
        json!({"stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3});
    let events = server.post(CHAT, &chat(options)).events();
    let pieces: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, want);
    assert!(events.len() > 20, "token by token");
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    let finish: Vec<&str> = events.iter().filter_map(|e| e["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(finish, [whole["choices"][0]["finish_reason"].as_str().unwrap()]);
    let tokens: Vec<Value> =
        events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array()).flatten().cloned().collect();
    let text: String = tokens.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(text, want, "tokens are the text");
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], token["token"], "greedy takes the likeliest");
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    let stop = server.post(CHAT, &chat(json!({"stop": ["MODEL", "zzz"], "logprobs": true}))).json();
    let cut = stop["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(cut, want.split("MODEL").next().unwrap());
    let text = stop["choices"][0]["logprobs"]["content"].as_array().unwrap().iter();
    let text: String = text.map(|t| t["token"].as_str().unwrap()).collect();
    assert!(text.starts_with(cut), "{text:?} covers {cut:?}");
    let n = server.post(CHAT, &chat(json!({"n": 3, "temperature": 1.5, "seed": 5}))).json();
    assert_eq!(n["choices"].as_array().unwrap().len(), 3);
    let again = server.post(CHAT, &chat(json!({"n": 3, "temperature": 1.5, "seed": 5}))).json();
    assert_eq!(n["choices"], again["choices"], "the same seed, the same answers");
    let banned = server.post("/tokenize", &json!({"content": "Run"})).json()["tokens"][0].as_u64().unwrap();
    let answer = server.post(CHAT, &chat(json!({"logit_bias": {banned.to_string(): -100}}))).json();
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with("Run"), "{answer}");
}

#[test]
fn json_and_grammars_hold() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"pages": {"type": "integer", "minimum": 0, "maximum": 999},
        "unit": {"enum": ["MiB", "GiB"]}}, "required": ["pages", "unit"], "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    for temperature in [0.0, 1.0] {
        let mut body = chat(format.clone());
        body["temperature"] = temperature.into();
        let answer = server.post(CHAT, &body).json();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert!(value["pages"].is_u64() && ["MiB", "GiB"].contains(&value["unit"].as_str().unwrap()), "{value}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    for (grammar, want) in
        [("root ::= (\"yes\" | \"no\") \"!\"", ["yes!", "no!"]), ("start: \"a\" | \"b\"", ["a", "b"])]
    {
        let answer = server.post(CHAT, &chat(json!({"grammar": grammar}))).json();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(want.contains(&content), "{content}");
    }
    let bombs = [
        json!({"grammar": "start: start"}),
        json!({"grammar": format!("start: {}\"a\"", "(".repeat(100_000))}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"allOf": (0..60).map(|i|
            json!({"anyOf": [{"multipleOf": i + 7}, {"minimum": i}]})).collect::<Vec<_>>()}}}}),
    ];
    for bomb in bombs {
        let begun = Instant::now();
        let answer = server.post(CHAT, &chat(bomb));
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_grammar")));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    server.is_well();
}

#[test]
fn refusals_name_the_field() {
    let server = Server::start(&[]);
    for (more, param) in [
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0].type"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": -1}), "top_p"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"n": 100}), "n"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"seed": "x"}), "seed"),
        (json!({"model": 5}), "model"),
        (json!({"logit_bias": {"x": true}}), "logit_bias.x"),
        (json!({"logit_bias": {"x": 101}}), "logit_bias.x"),
        (json!({"logit_bias": [[1, 2], [3]]}), "logit_bias[1]"),
        (json!({"logit_bias": [[-1, 2]]}), "logit_bias[0]"),
        (json!({"logit_bias": [["", 2]]}), "logit_bias[0]"),
        (json!({"n_indent": 5000}), "n_indent"),
        (json!({"post_sampling_probs": true}), "post_sampling_probs"),
        (json!({"logit_bias": {"999999": 1}}), "logit_bias.999999"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tool_choice": "maybe"}), "tool_choice"),
        (json!({"messages": [{"role": "user", "content": "word ".repeat(3000)}]}), "messages"),
    ] {
        let answer = server.post(CHAT, &chat(more.clone()));
        assert_eq!(answer.status, 400, "{more}: {answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(
            (error["param"].as_str(), &error["type"]),
            (Some(param), &json!("invalid_request_error")),
            "{error}"
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let too_long = chat(json!({"messages": [{"role": "user", "content": "word ".repeat(3000)}]}));
    let long = "word ".repeat(3000);
    for (path, body, param) in [
        (CHAT, too_long, "messages"),
        ("/v1/completions", json!({"prompt": long}), "prompt"),
        ("/v1/responses", json!({"input": long}), "input"),
    ] {
        let error = &server.post(path, &body).json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)), "{path}");
    }
    let ignored = chat(json!({"user": 5, "unheard_of": {"a": []}, "max_tokens": 3, "seed": null}));
    assert_eq!(server.post(CHAT, &ignored).status, 200, "what is unknown is ignored");
    for (path, body, param) in [
        ("/v1/completions", json!({}), "prompt"),
        ("/v1/completions", json!({"prompt": [1, true]}), "prompt"),
        ("/v1/responses", json!({"input": 5}), "input"),
        ("/v1/responses", json!({"input": "x", "previous_response_id": "y"}), "previous_response_id"),
        ("/tokenize", json!({}), "content"),
        ("/detokenize", json!({"tokens": [99_999_999]}), "tokens[0]"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)), "{path} {body}");
    }
    let anthropic = server.post("/v1/messages", &json!({"messages": []}));
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (400, &json!("error")));
    assert!(anthropic.json()["error"]["message"].as_str().unwrap().contains("max_tokens"));
    assert_eq!(server.post("/v1/embeddings", &json!({"input": "x"})).status, 501);
    // At its head: nobody has to send a body in vain.
    let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000\r\n\r\n", server.address);
    assert_eq!(Answer::parse(&server.raw(head.as_bytes())).status, 501);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "brim-demo");
    assert_eq!(server.get("/v1/models/brim-demo").status, 200);
    assert_eq!(server.get("/v1/models/other").status, 404);
    let wrong = server.get(CHAT);
    assert_eq!((wrong.status, wrong.head.contains("\r\nallow: POST, OPTIONS")), (405, true));
    let wrong = server.post("/health", &json!({}));
    assert_eq!((wrong.status, wrong.head.contains("\r\nallow: GET, HEAD, OPTIONS")), (405, true));
    let tokens = server.post("/tokenize", &json!({"content": "Huge pages, é"})).json()["tokens"].clone();
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens})).json()["content"], "Huge pages, é");
}

#[test]
fn prompts_are_logged_where_the_environment_or_else_the_board_says_so() {
    let dir = Dir::new("log-prompts");
    let board = dir.file("board.toml", "[serve]\nlog_prompts = true\n");
    let body = json!({"messages": [{"role": "user", "content": "a secret word"}], "max_tokens": 1});
    for (value, is_logged) in [(None, true), (Some("0"), false), (Some("1"), true)] {
        let log = dir.file("log", "");
        let mut command = brim(&["serve", "--listen", "127.0.0.1:0", "--board", &board]);
        if let Some(value) = value {
            command.env("BRIM_LOG_PROMPTS", value);
        }
        let server = Server::spawn_saying(command, std::fs::File::create(&log).unwrap()).ready();
        assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
        assert_eq!(server.stop(), Some(0));
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(said.contains("a secret word"), is_logged, "BRIM_LOG_PROMPTS={value:?}: {said}");
    }
}

#[test]
fn hostile_bytes_get_a_right_status_or_a_closed_connection() {
    let board = Dir::new("serve-abuse");
    let limits =
        "[serve]\nlimits = { connections = 64, header_s = 1, body_s = 1, idle_s = 3, write_s = 2, body_kib = 256 }";
    let server = Server::start(&["--board", &board.file("b.toml", limits)]);
    let head = |more: &str| format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    let status = |bytes: &[u8]| Answer::parse(&server.raw(bytes)).status;
    // A length of 1 GB is refused before a byte of it is sent; one that is not stated, once the limit is reached.
    assert_eq!(status(head("content-length: 1000000000\r\n").as_bytes()), 413);
    let chunk = format!("{:x}\r\n{}\r\n", 65536, "x".repeat(65536));
    assert_eq!(status((head("transfer-encoding: chunked\r\n") + &chunk.repeat(8)).as_bytes()), 413);
    for (body, want) in [
        (&b"\xff\xfe"[..], 400),
        (b"{\"messages\":", 400),
        (b"", 400),
        (b"[]", 400),
        (&b"[".repeat(100_000), 400),
        (&[&b"{\"a\":"[..], &b"[".repeat(50_000)].concat(), 400),
        (&[&b"["[..], &b"0,".repeat(100_000), b"0]"].concat(), 400),
    ] {
        assert_eq!(server.send("POST", CHAT, &[], body).status, want);
    }
    for (bytes, want) in [
        ("GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        ("GET /v1/../health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        ("GET /%2e%2e/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        ("DELETE / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/9.9\r\n\r\n", 400),
    ] {
        assert_eq!(status(bytes.as_bytes()), want, "{bytes:?}");
    }
    let two = head("content-length: 2\r\ncontent-length: 3\r\n") + "{}";
    assert!([0, 400].contains(&status(two.as_bytes())));
    let both = head("content-length: 2\r\ntransfer-encoding: chunked\r\n") + "{}";
    assert!([0, 400].contains(&status(both.as_bytes())));
    assert!([0, 400].contains(&status((head("content-length: x\r\n") + "{}").as_bytes())));
    // A header that has no end: cut off by its length, or by its time.
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(100_000));
    assert!([0, 431].contains(&status(endless.as_bytes())));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert!([0, 431].contains(&status(many.as_bytes())));
    let begun = Instant::now();
    assert_eq!(status(b"GET / HTTP/1.1\r\nx: y"), 0, "never finished: closed");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // A body that comes too slowly, or never whole.
    let begun = Instant::now();
    assert_eq!(status((head("content-length: 100\r\n") + "{").as_bytes()), 408);
    assert!(begun.elapsed() < Duration::from_secs(4));
    // Requests one after the other without waiting: answered in order.
    let one = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answers = String::from_utf8(server.raw((one.repeat(20) + last).as_bytes())).unwrap();
    assert_eq!((answers.matches("HTTP/1.1 200").count(), answers.matches("HTTP/1.1 404").count()), (20, 1));
    // A client that reads nothing: it is cut off, and nobody else waits for it.
    let mut deaf = server.connect();
    let ask = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1_000);
    deaf.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let error = (0..2_000).find_map(|_| deaf.write_all(ask.as_bytes()).err()).expect("nothing takes it for ever");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "closed, not left hanging");
    // A thousand idle connections: the oldest make room.
    let idle: Vec<_> = (0..1000).filter_map(|_| std::net::TcpStream::connect(&server.address).ok()).collect();
    assert!(idle.len() > 500, "{}", idle.len());
    server.is_well();
    drop(idle);
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}

/// A page on the internet whose name resolves to this box is of the server's origin, as a browser sees it; without keys
/// its Host is all that tells.
#[test]
fn a_host_is_one_and_known_unless_keys_are_asked_for() {
    let dir = Dir::new("serve-host");
    let named = dir.file("b.toml", "[serve]\nhosts = [\"llm.example\"]");
    let keys = dir.file("keys", "one\n");
    let raw = |server: &Server, line: &str, headers: &str| {
        let answer = server.raw(format!("{line}\r\n{headers}connection: close\r\n\r\n").as_bytes());
        Answer::parse(&answer)
    };
    let health = |server: &Server, headers: &str| raw(server, "GET /health HTTP/1.1", headers).status;
    let hosts = |server: &Server, hosts: &[(&str, u16)]| {
        for (host, want) in hosts {
            assert_eq!(health(server, &format!("host: {host}\r\n")), *want, "{host} at {}", server.address);
        }
    };
    let junk = |server: &Server| {
        for headers in
            ["", "host:\r\n", "host: a\r\nhost: a\r\n", "host: a b\r\n", "host: [::1\r\n", "host: localhost:x\r\n"]
        {
            assert_eq!(health(server, headers), 400, "{headers:?}");
        }
    };

    let server = Server::start(&["--board", &named]);
    let port = server.address.rsplit_once(':').unwrap().1;
    let here = format!("LOCALHOST.:{port}");
    hosts(
        &server,
        &[
            (&here, 200),
            ("127.0.0.1", 200),
            ("127.3.2.1:9", 200),
            ("[::1]:1", 200),
            ("llm.example:443", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("192.0.2.7", 403),
        ],
    );
    junk(&server);
    let rebound = format!("host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\ncontent-length: 0\r\n");
    for line in [format!("POST {CHAT} HTTP/1.1"), "POST /tokenize HTTP/1.0".to_owned(), "OPTIONS / HTTP/1.1".to_owned()]
    {
        let answer = raw(&server, &line, &rebound);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (403, Some("host_not_allowed")), "{line}");
        assert!(answer.text().contains("serve.hosts") && answer.text().contains("evil.example"), "{answer:?}");
    }
    assert_eq!(raw(&server, "GET /health HTTP/1.0", "").status, 200, "no Host in HTTP/1.0");
    assert_eq!(raw(&server, "GET http://evil.example/health HTTP/1.1", "host: localhost\r\n").status, 403);
    assert_eq!(raw(&server, "GET http://localhost/health HTTP/1.1", "host: proxy.example\r\n").status, 200);
    assert_eq!(raw(&server, "GET http://localhost/health HTTP/1.1", "").status, 400);
    assert_eq!(raw(&server, "GET http://me@localhost/health HTTP/1.1", "host: localhost\r\n").status, 400);
    assert_eq!(server.stop(), Some(0));

    let server = Server::spawn(brim(&["serve", "--listen", "0.0.0.0:0"])).ready();
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    hosts(
        &server,
        &[(own.trim(), 200), ("192.0.2.7:80", 200), ("[2001:db8::1]", 200), ("localhost", 200), ("evil.example", 403)],
    );
    junk(&server);
    drop(server);

    let server = Server::start(&["--keys-file", &keys]);
    hosts(&server, &[("evil.example", 200)]);
    junk(&server);
    drop(server);

    let path = dir.at("socket");
    let server = Server::spawn(brim(&["serve", "--listen", &format!("unix:{path}")]));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Answer::parse(&answer).status, 200, "no browser reaches it");
    drop(server);

    let bad = dir.file("bad.toml", "[serve]\nhosts = [\"http://llm.example\"]");
    run(&["serve", "--listen", "127.0.0.1:0", "--board", &bad]).fails(3, &["serve.hosts", "http://llm.example"]);
}

#[test]
fn keys_are_asked_for_and_read_again() {
    let dir = Dir::new("serve-keys");
    let keys = dir.file("keys", "one\n");
    let server = Server::start(&["--keys-file", &keys]);
    let models = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"").status;
    let none = server.get("/v1/models");
    assert_eq!((none.status, none.head.contains("\r\nwww-authenticate: Bearer")), (401, true));
    assert_eq!(models(&[("authorization", "Bearer two")]), 401);
    assert_eq!(models(&[("authorization", "Bearer one")]), 200);
    assert_eq!(models(&[("x-api-key", "one")]), 200);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.send("POST", "/v1/messages", &[], b"{}").json()["error"]["type"], "authentication_error");
    dir.file("keys", "two\n");
    server.signal("HUP");
    let begun = Instant::now();
    while models(&[("x-api-key", "two")]) != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(models(&[("x-api-key", "one")]), 401);
    assert_eq!(
        server.send("GET", "/health", &[("origin", "https://evil.example")], b"").status,
        403,
        "no CORS unless asked"
    );
    let own = format!("http://{}", server.address);
    assert_eq!(server.send("GET", "/health", &[("origin", &own)], b"").status, 200);
    run(&["serve", "--listen", "127.0.0.1:0", "--keys-file", "/nonexistent/keys"]).fails(2, &["/nonexistent/keys"]);
}

#[test]
fn the_plan_for_serving_is_what_the_server_takes() {
    let plan = run(&["plan", "--json", "--slots", "3"]).json();
    let server = Server::start(&["--slots", "3"]);
    let status = server.get("/status").json();
    assert_eq!(status["facts"]["regions"], plan["regions"]);
    assert_eq!(status["slots"].as_array().unwrap().len(), 3);
    let alone = run(&["plan", "--json"]).json();
    assert!(plan["total_pages"].as_u64() > alone["total_pages"].as_u64());
    run(&["plan", "--slots", "65"]).fails(2, &["65", "1 to 64"]);
    run(&["serve", "--listen", "127.0.0.1:0", "--slots", "0"]).fails(2, &["needs 1 to 64"]);
}

#[test]
fn what_cannot_be_listened_on_is_exit_7() {
    let server = Server::start(&[]);
    run(&["serve", "--listen", &server.address]).fails(7, &[&server.address, "in use", "another port"]);
    run(&["serve", "--listen", "1.2.3.4:80"]).fails(7, &["1.2.3.4:80"]);
    run(&["serve", "--listen", "nonsense"]).fails(7, &["nonsense", "ADDRESS:PORT"]);
    run(&["serve", "--listen", "unix:/nonexistent/s"]).fails(7, &["/nonexistent/s"]);
}

#[test]
fn supervisors_are_told_and_obeyed() {
    let dir = Dir::new("serve-life");
    let notify = dir.at("notify");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let said = || {
        let mut buffer = [0; 64];
        let n = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    let socket = dir.at("s");
    let mut command = brim(&["serve", "--listen", &format!("unix:{socket}")]);
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "3000000");
    let server = Server::spawn(command);
    assert_eq!(server.address, format!("unix:{socket}"));
    assert_eq!(said(), "READY=1");
    assert_eq!((said(), said()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()), "idle is alive");
    let connect = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    };
    // A stream that is under way when SIGTERM comes is finished; new requests are refused.
    let body = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 300})).to_string();
    let mut stream = connect();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut first = [0; 200];
    stream.read_exact(&mut first).unwrap();
    server.signal("TERM");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("data: [DONE]"), "finished");
    let mut server = server;
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut last = said();
    while last == "WATCHDOG=1" {
        last = said();
    }
    assert_eq!(last, "STOPPING=1");
    assert!(!std::path::Path::new(&socket).exists(), "the socket goes with the server");
}

#[test]
fn the_prompt_cache_outlives_a_restart() {
    let dir = Dir::new("serve-cache");
    // The server makes the directory.
    let cache = dir.at("state/brim");
    let board = dir.file("b.toml", format!("[serve]\ncache_dir = \"{cache}\"\ncache_mib = 16"));
    let words = ["--board", &board, "-t", "1"];
    let ask = |server: &Server| {
        let messages =
            json!([{"role": "system", "content": "Be brief. ".repeat(60)}, {"role": "user", "content": "x"}]);
        let answer = server.post(CHAT, &json!({"messages": messages, "temperature": 0, "max_tokens": 8})).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, answer["choices"][0]["message"]["content"].clone(), answer["usage"]["prompt_tokens"].as_u64().unwrap())
    };
    let server = Server::start(&words);
    let (first, text, n_prompt) = ask(&server);
    let (again, same, _) = ask(&server);
    assert_eq!((first, &same), (0, &text));
    assert!(again * 10 >= n_prompt * 7, "{again} of {n_prompt}");
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(&words);
    assert_eq!(ask(&server), (again, text, n_prompt), "after a restart as before");
    assert_eq!(server.stop(), Some(0));
    let names: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["brim-demo.kv"], "and nothing beside it");
    std::fs::write(format!("{cache}/brim-demo.kv"), "damaged").unwrap();
    let server = Server::start(&words);
    assert_eq!(ask(&server).0, 0, "a damaged file is not used");
}

#[test]
fn a_prompt_cache_without_a_place_is_told_at_the_start() {
    let dir = Dir::new("serve-no-cache");
    let warned = |cache: &str| {
        let board = dir.file("b.toml", format!("[serve]\ncache_dir = \"{cache}\""));
        let log = std::fs::File::create(dir.at("log")).unwrap();
        let command = brim(&["serve", "--listen", "127.0.0.1:0", "-t", "1", "--board", &board]);
        let server = Server::spawn_saying(command, log).ready();
        let said = std::fs::read_to_string(dir.at("log")).unwrap();
        drop(server);
        said.lines().any(|line| line.contains("brim-demo.kv") && line.contains("will not be saved"))
    };
    // No directory can be made in a file, whoever asks, and no file written where a directory is.
    let file = dir.file("file", "x");
    assert!(warned(&format!("{file}/state")));
    std::fs::create_dir_all(dir.at("taken/brim-demo.kv")).unwrap();
    assert!(warned(&dir.at("taken")));
    assert!(!warned(&dir.at("state/brim")));
    assert_eq!(std::fs::read_dir(dir.at("state/brim")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_client_that_goes_away_frees_its_slot() {
    let server = Server::start(&["-m", &golden("qwen3-mixed"), "--ctx", "4096", "--chat-template", "chatml"]);
    let body = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 4000})).to_string();
    for _ in 0..6 {
        let mut stream = server.connect();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut first = [0; 600];
        stream.read_exact(&mut first).unwrap();
    }
    let begun = Instant::now();
    let value = |name: &str| {
        let text = server.get("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap()
    };
    while value("brim_slots_busy ") > 0 || value("brim_sequences_cancelled_total ") < 6 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", server.get("/metrics").text());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.is_well();
}

#[test]
fn a_long_text_holds_up_nobody() {
    let server = Server::start(&["-t", "1"]);
    let text: String =
        (0..3_000_000u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 16) as u8 % 26)).collect();
    let is_done = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        scope.spawn(|| {
            let answer = server.post("/tokenize", &json!({"content": text}));
            assert!(answer.json()["count"].as_u64().unwrap() > 1_000_000);
            is_done.store(true, Relaxed);
        });
        let mut answered = 0;
        while !is_done.load(Relaxed) {
            assert_eq!(server.get("/health").status, 200);
            answered += 1;
        }
        answered
    });
    // Reading and writing three million bytes takes a few answers' time, tokenising them hundreds.
    assert!(answered > 50, "{answered} requests were answered meanwhile");
}

/// With `SHIPPED_BRIM`, the path of the static binary, that is what is measured.
#[test]
fn two_hundred_mixed_requests_leave_memory_as_it_was() {
    let dir = Dir::new("mixed-requests");
    let model = dir.file("vocabulary.gguf", vocabulary::model());
    let options = ["-m", &model, "-t", "1", "--ctx", "1024"];
    let report = run(&[&["plan", "--json", "--slots", "4"], &options[..]].concat()).json();
    let pool = Pool::with_room(report["with_hugepages"]["total_pages"].as_u64().unwrap());
    let before = pool.as_ref().map(Pool::state);
    let shipped = std::env::var_os("SHIPPED_BRIM");
    let mut command = shipped.as_ref().map_or_else(|| brim::<&str>(&[]), Command::new);
    command.args(["serve", "--listen", "127.0.0.1:0"]).args(options).args(pool.as_ref().map(|_| "--hugepages"));
    let server = Server::spawn(command).ready();
    // Pages of the KV cache are set aside at first and taken as sequences grow.
    let left = pool.as_ref().map(|pool| pool.state().available());
    let one = |i: usize| match i % 8 {
        0 | 1 => {
            assert_eq!(server.post(CHAT, &chat(json!({"max_tokens": 8, "stream": i.is_multiple_of(16)}))).status, 200)
        }
        2 => assert_eq!(server.post("/v1/completions", &json!({"prompt": ["a", "b"], "max_tokens": 4})).status, 200),
        3 => assert_eq!(server.post(CHAT, &chat(json!({"temperature": "x"}))).status, 400),
        4 => assert_eq!(server.send("POST", CHAT, &[], b"{]").status, 400),
        5 => {
            let body = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 500})).to_string();
            let mut stream = server.connect();
            let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
            let mut first = [0; 600];
            stream.read_exact(&mut first).unwrap();
        }
        6 => {
            let format =
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}}});
            assert_eq!(server.post(CHAT, &chat(format)).status, 200);
        }
        _ => {
            let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4});
            assert_eq!(server.post("/v1/messages", &body).status, 200);
        }
    };
    let all = |n: usize| {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                scope.spawn(move || (worker..n).step_by(8).for_each(one));
            }
        });
    };
    // A test's build has twice the code, and pages of code are resident, too.
    let field = if shipped.is_some() { "VmRSS:" } else { "RssAnon:" };
    let (stop, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let (first, then) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                most.fetch_max(server.memory_kib(field), Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        all(80);
        let first = server.memory_kib("RssAnon:");
        all(200);
        stop.store(true, Relaxed);
        (first, server.memory_kib("RssAnon:"))
    });
    assert!(then <= first + 1024, "resident {first} KiB, then {then} KiB");
    server.is_well();
    if let Some(pool) = &pool {
        let most = most.into_inner();
        println!("{field} at most {most} KiB outside huge pages");
        assert!(most <= 16 << 10, "{field} {most} KiB outside huge pages");
        assert_eq!(Some(pool.state().available()), left, "the pool has as many left as when the first request came");
        assert_eq!(server.stop(), Some(0));
        assert_eq!(Some(pool.state()), before);
    }
}

#[test]
fn memory_that_cannot_be_had_fails_a_request_and_not_the_server() {
    let Some(_pool) = Pool::with_room(64) else { return };
    let words = ["serve", "--listen", "127.0.0.1:0", "-t", "1", "--hugepages", "--slots", "1", "--ctx", "64"];
    let plan = run(&["plan", "--hugepages", "--slots", "1", "--ctx", "64", "--json"]).json();
    let need = plan["total_pages"].as_u64().unwrap();
    let Some(group) = Group::new((need - 1) * (2 << 20)) else {
        let required = std::env::var("REQUIRE_HUGEPAGES").is_ok_and(|value| value == "1");
        assert!(!required, "required, but no cgroup v2 with the hugetlb controller");
        return eprintln!("SKIPPED: no cgroup v2 with the hugetlb controller");
    };
    // All but the page of the KV cache are there when it is ready.
    let server = Server::spawn(group.command(&words, true)).ready();
    let ask = || server.post(CHAT, &chat(json!({"max_tokens": 2})));
    for _ in 0..2 {
        let answer = ask();
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 500 && text.contains("could not be faulted in"), "{answer:?}");
        assert_eq!(server.get("/health").status, 200);
    }
    // What it could not have before, it asks for again.
    group.limit(need * (2 << 20));
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}
