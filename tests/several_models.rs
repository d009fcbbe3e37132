//! Several models in one server: one plan that is known before anything is read, one mapping, one engine thread; requests go
//! to the model that they name, and each answers as it does alone.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/engine.rs"]
mod engine;
#[path = "common/pool.rs"]
mod pool;
#[path = "common/serve.rs"]
mod serve;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::task::{Context, Poll, Waker};

use brim::engine::{EngineHandle, Event, Generate, OutputKind, Request, Scheduler, SubmitError, Ticket};
use brim::kernels;
use brim::sampling::SamplingParams;
use cli::{Dir, brim, golden, run};
use engine::for_two_schedulers;
use pool::Pool;
use serde_json::{Value, json};
use serve::{Answer, Server};

/// The demo model, which has a chat template and thus is the one for chats.
fn demo() -> String {
    format!("{}/src/demo/brim-demo.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// A board with a model for chats, and another in its own measure.
fn board(dir: &Dir, more: &str) -> String {
    let (chat, other) = (demo(), golden("qwen3-mixed"));
    let text = format!(
        "[model]\nctx = 512\n[serve]\nslots = 2\n{more}\n\
         [[serve.models]]\npath = \"{chat}\"\nname = \"chat\"\naliases = [\"gpt-4o\", \"org/chat\"]\n\
         [[serve.models]]\npath = \"{other}\"\nctx = 256\nkv_type = \"q8_0\"\nslots = 3\nchat_template = \"chatml\"\n"
    );
    dir.file("board.toml", text)
}

fn start(board: &str) -> Server {
    Server::start(&["--board", board, "-t", "2"])
}

fn complete(server: &Server, model: Option<&str>, prompt: &str) -> Answer {
    let mut body = json!({"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true, "logprobs": 0});
    if let Some(model) = model {
        body["model"] = model.into();
    }
    server.post("/v1/completions", &body)
}

/// The text of an answer and the logprobs of its tokens, for many of them are no text.
fn said(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 12, "{answer}");
    json!([choice["text"], choice["logprobs"]["token_logprobs"]])
}

/// What each of the two models says to each prompt, alone in a server.
fn alone(prompts: &[&str]) -> [Vec<Value>; 2] {
    let demo = demo();
    let other = golden("qwen3-mixed");
    [
        &["-m", &demo, "--ctx", "512", "--slots", "2"][..],
        &["-m", &other, "--ctx", "256", "--kv-type", "q8_0", "--slots", "3"],
    ]
    .map(|words| {
        let server = Server::start(&[words, &["-t", "2"]].concat());
        prompts.iter().map(|prompt| said(&complete(&server, None, prompt))).collect()
    })
}

#[test]
fn the_plan_is_the_sum_of_the_models_and_says_which_region_is_whose() {
    let dir = Dir::new("several-plan");
    let board = board(&dir, "");
    for hugepages in [&[][..], &["--hugepages"]] {
        let plan = |words: &[&str]| {
            let words = [&["plan", "--json", "-t", "2"], hugepages, words].concat();
            // Exit 5 where the pool is too small: the document is the same.
            let ran = run(&words);
            serde_json::from_str::<Value>(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
        };
        let all = plan(&["--board", &board]);
        let one = plan(&["-m", &demo(), "--ctx", "512", "--slots", "2"]);
        let other = plan(&["-m", &golden("qwen3-mixed"), "--ctx", "256", "--kv-type", "q8_0", "--slots", "3"]);
        let sum = one["total_pages"].as_u64().unwrap() + other["total_pages"].as_u64().unwrap();
        assert_eq!(all["total_pages"], sum, "{all:#}");
        assert_eq!(
            (&all["models"][0]["total_pages"], &all["models"][1]["total_pages"]),
            (&one["total_pages"], &other["total_pages"])
        );
        assert_eq!((&all["models"][0]["regions"], &all["models"][1]["regions"]), (&one["regions"], &other["regions"]));
        assert_eq!((&all["models"][0]["name"], &all["models"][1]["name"]), (&json!("chat"), &json!("qwen3-mixed")));
        let rows = |of: &Value, named: Option<&str>| {
            let rows = of["regions"].as_array().unwrap().iter().map(|row| {
                let mut row = row.clone();
                if let Some(name) = named {
                    row["model"] = name.into();
                }
                row
            });
            rows.collect::<Vec<_>>()
        };
        assert_eq!(rows(&all, None), [rows(&one, Some("chat")), rows(&other, Some("qwen3-mixed"))].concat());
        let table = run(&[&["plan", "-t", "2", "--board", &board], hugepages].concat()).stdout;
        for part in ["model     chat: ", "\nchat weights ", "\nqwen3-mixed scratch ", "\ntotal "] {
            assert!(table.contains(part), "{part:?} is missing in {table}");
        }
        // A model that is named is planned alone.
        let named = plan(&["--board", &board, "-m", &golden("llama-q4_k")]);
        assert!(named.get("models").is_none() && named["model"].as_str().unwrap().contains("llama-q4_k"));
    }
}

#[test]
fn one_context_may_be_as_long_as_the_others_leave_room_for() {
    let dir = Dir::new("several-auto");
    let entry = |ctx: &str| {
        format!("[[serve.models]]\npath = \"{}\"\nname = \"n{}\"\n{ctx}\n", golden("llama-q4_k"), ctx.len())
    };
    let board = dir.file("one.toml", entry("ctx = \"auto\"") + &entry("ctx = 128"));
    let plan = run(&["plan", "--json", "--board", &board]).json();
    assert!(plan["models"][0]["ctx"].as_u64() > plan["models"][1]["ctx"].as_u64(), "{plan:#}");
    assert_eq!(plan["models"][1]["ctx"], 128);
    let board = dir.file("two.toml", entry("ctx = \"auto\"") + &entry("ctx   = \"auto\""));
    run(&["plan", "--board", &board]).fails(2, &["ctx = auto takes all the memory that is left, and 2 models"]);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_mapped() {
    let dir = Dir::new("several-refused");
    let good = board(&dir, "");
    let entry = |path: &str, more: &str| format!("[[serve.models]]\npath = \"{path}\"\n{more}\n");
    let wrong = dir.file("wrong.gguf", "GGUF but not really");
    let second_is_wrong = dir.file("second.toml", entry(&demo(), "") + &entry(&wrong, ""));
    let alike =
        dir.file("alike.toml", entry(&demo(), "name = \"a\"") + &entry(&golden("llama-q4_k"), "aliases = [\"a\"]"));
    let files =
        dir.file("files.toml", entry(&demo(), "name = \"a/b\"") + &entry(&golden("llama-q4_k"), "name = \"a_b\""));
    let typo = dir.file("typo.toml", entry(&demo(), "slot = 2"));
    let template =
        dir.file("template.toml", entry(&demo(), "") + &entry(&golden("llama-q4_k"), "chat_template = \"/none\""));
    let held = dir.file("held.toml", format!("[memory]\nresident = \"/s\"\n{}", entry(&demo(), "")));
    for (words, code, parts) in [
        (&["--board", &second_is_wrong][..], 4, &["wrong.gguf"][..]),
        (&["--board", &alike], 3, &["serve.models", "two of them are called a"]),
        (&["--board", &files], 3, &["two of them are called a_b"]),
        (&["--board", &typo], 3, &["line 3", "unknown key `slot`; did you mean `slots`?"]),
        (&["--board", &template], 2, &["llama-q4_k: ", "/none"]),
        (&["--board", &held], 3, &["memory.resident: it is for one model"]),
        (&["--board", &good, "-m", &demo()], 2, &["--model: it is for one model", "names 2"]),
        (&["--board", &good, "--name", "x"], 2, &["--name: it is for one model"]),
        (&["--board", &good, "--chat-template", "chatml"], 2, &["--chat-template: it is for one model"]),
        (&["--board", &good, "--resident", "/s"], 2, &["--resident: it is for one model"]),
    ] {
        let ran = run(&[&["serve", "--listen", "127.0.0.1:0"], words].concat());
        // Nobody was let in: that comes right before the memory.
        assert_eq!(ran.stdout, "", "{words:?}");
        ran.fails(code, parts);
    }
    // What the second takes is more than the box has.
    let more = "ctx = 16777216\nslots = 64";
    let large = dir.file("large.toml", entry(&demo(), "") + &entry(&golden("llama-q4_k"), more));
    let ran = run(&["serve", "--listen", "127.0.0.1:0", "--board", &large]);
    assert!(!ran.stdout.contains("ready"), "{ran:?}");
    ran.fails(5, &["not enough memory: need"]);
    // Other commands have a model of their own.
    for words in [&["run", "-p", "x"][..], &["eval", "-f", "/dev/null"]] {
        let ran = run(&[words, &["--board", &good]].concat());
        ran.fails(2, &["those in serve.models of the board are for `brim serve`"]);
    }
    run(&["run", "-p", "x", "-n", "2", "--board", &good, "-m", &demo()]).good();
}

#[test]
fn huge_pages_are_those_of_the_plan_and_one_less_is_refused() {
    let dir = Dir::new("several-huge");
    let board = board(&dir, "[memory]\nhugepages = true\n");
    let plan = serde_json::from_str::<Value>(&run(&["plan", "--json", "-t", "2", "--board", &board]).stdout).unwrap();
    let need = plan["total_pages"].as_u64().unwrap();
    assert_eq!(plan["page_bytes"], 2 << 20);
    {
        let Some(pool) = Pool::with_exactly(need - 1) else { return };
        let parts = [&format!("need {need}, free {}", need - 1)[..], "short by 1 pages of 2 MiB"];
        run(&["plan", "-t", "2", "--board", &board]).fails(5, &parts);
        let before = pool.state();
        let refused = run(&["serve", "--listen", "127.0.0.1:0", "-t", "2", "--board", &board]);
        assert!(!refused.stdout.contains("ready"), "{refused:?}");
        refused.fails(5, &parts);
        assert_eq!(pool.state(), before);
    }
    let Some(pool) = Pool::with_exactly(need) else { return };
    let before = pool.state();
    let server = start(&board);
    assert_eq!(pool.state().available(), 0, "every page of the plan is taken or set aside, and none beside it");
    for model in ["chat", "qwen3-mixed"] {
        said(&complete(&server, Some(model), "a b c"));
    }
    assert_eq!(pool.state().available(), 0);
    let status = server.get("/status").json();
    assert_eq!((&status["facts"]["total_pages"], &status["facts"]["hugepages"]), (&json!(need), &json!(true)));
    assert_eq!(server.stop(), Some(0));
    assert_eq!(pool.state(), before);
}

#[test]
fn requests_go_to_the_model_they_name_and_are_answered_as_by_it_alone() {
    let dir = Dir::new("several-routes");
    let prompts = ["How do I reserve", "a b c d"];
    let want = alone(&prompts);
    assert!(want[0] != want[1], "models that say different things");
    let server = start(&board(&dir, ""));
    for (i, prompt) in prompts.iter().enumerate() {
        for (model, answer) in [
            (None, &want[0]),
            (Some(""), &want[0]),
            (Some("chat"), &want[0]),
            (Some("gpt-4o"), &want[0]),
            (Some("org/chat:latest"), &want[0]),
            (Some("qwen3-mixed"), &want[1]),
            (Some("qwen3-mixed:latest"), &want[1]),
        ] {
            let answered = complete(&server, model, prompt);
            assert_eq!(said(&answered), answer[i], "{model:?}: {prompt}");
            let name = if std::ptr::eq(answer, &want[0]) { "chat" } else { "qwen3-mixed" };
            assert_eq!(answered.json()["model"], name);
        }
    }
    // Each interface, in its own words.
    let message = json!([{"role": "user", "content": "How do I reserve huge pages?"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": message, "max_tokens": 3})),
        ("/v1/chat/completions", json!({"messages": message, "max_tokens": 3, "stream": true})),
        ("/v1/messages", json!({"messages": message, "max_tokens": 3})),
        ("/v1/messages/count_tokens", json!({"messages": message})),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 16})),
        ("/api/chat", json!({"messages": message, "options": {"num_predict": 3}})),
        ("/api/generate", json!({"prompt": "x", "options": {"num_predict": 3}})),
        ("/api/show", json!({})),
        ("/tokenize", json!({"content": "x"})),
        ("/detokenize", json!({"tokens": [3]})),
    ] {
        for (model, status) in [("chat", 200), ("qwen3-mixed", 200), ("gpt-5", 404)] {
            let mut body = body.clone();
            body["model"] = model.into();
            let answer = server.post(path, &body);
            assert_eq!(answer.status, status, "{path} {model}: {answer:?}");
            if status == 404 {
                let text = answer.text();
                assert!(text.contains("model gpt-5 not found; this server has chat, qwen3-mixed"), "{path}: {text}");
            }
        }
    }
    // What may come next is looked up in the vocabulary of the model, whoever was asked before.
    for model in ["qwen3-mixed", "chat", "qwen3-mixed", "chat"] {
        let schema = json!({"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}});
        let body = json!({"model": model, "messages": message, "response_format": schema, "max_tokens": 40});
        let answer = server.post("/v1/chat/completions", &body).json();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        assert!(["\"a\"", "\"b\""].contains(&content), "{model}: {answer}");
    }
    let refused = server.post("/v1/chat/completions", &json!({"model": "gpt-5", "messages": message})).json();
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["type"]),
        (&json!("model_not_found"), &json!("invalid_request_error"))
    );
    let refused = server.post("/v1/messages", &json!({"model": "gpt-5", "messages": message, "max_tokens": 3})).json();
    assert_eq!(refused["error"]["type"], "not_found_error");
    let tokens = |model: &str| {
        server.post("/tokenize", &json!({"model": model, "content": "How do I"})).json()["tokens"].clone()
    };
    assert_ne!(tokens("chat"), tokens("qwen3-mixed"), "each has its own vocabulary");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn what_is_asked_of_the_server_is_told_of_each_model() {
    let dir = Dir::new("several-told");
    let server = start(&board(&dir, ""));
    let models = server.get("/v1/models").json();
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["chat", "qwen3-mixed"]);
    assert_eq!((&models["first_id"], &models["last_id"]), (&json!("chat"), &json!("qwen3-mixed")));
    for (path, id, ctx) in [("chat", "chat", 512), ("org%2Fchat", "chat", 512), ("qwen3-mixed", "qwen3-mixed", 256)] {
        let model = server.get(&format!("/v1/models/{path}")).json();
        assert_eq!((&model["id"], &model["context_length"]), (&json!(id), &json!(ctx)));
    }
    assert_eq!(server.get("/v1/models/gpt-5").status, 404);
    for (query, alias, slots) in
        [("", "chat", 2), ("?model=gpt-4o", "chat", 2), ("?model=qwen3-mixed", "qwen3-mixed", 3)]
    {
        let props = server.get(&format!("/props{query}")).json();
        assert_eq!((&props["model_alias"], &props["total_slots"]), (&json!(alias), &json!(slots)));
        assert_eq!(server.get(&format!("/slots{query}")).json().as_array().unwrap().len(), slots);
        let status = server.get(&format!("/status{query}")).json();
        assert_eq!((&status["model"], &status["models"]), (&json!(alias), &json!(["chat", "qwen3-mixed"])));
        assert_eq!(status["slots"].as_array().unwrap().len(), slots);
        assert_eq!(status["facts"]["models"].as_array().unwrap().len(), 2);
    }
    for path in ["/props", "/slots"] {
        assert_eq!(server.get(&format!("{path}?model=gpt-5")).status, 404, "{path}");
    }
    let status = server.get("/status").json();
    for path in ["/api/tags", "/api/ps"] {
        let listed = server.get(path).json();
        for (i, name) in ["chat", "qwen3-mixed"].into_iter().enumerate() {
            assert_eq!(listed["models"][i]["name"], name, "{path}");
            assert_eq!(listed["models"][i]["size"], status["facts"]["models"][i]["total_bytes"], "{path}");
        }
    }
    said(&complete(&server, Some("qwen3-mixed"), "a b c"));
    let metrics = server.get("/metrics").text();
    for line in [
        "brim_ready 1",
        "brim_slots{model=\"chat\"} 2",
        "brim_slots{model=\"qwen3-mixed\"} 3",
        "brim_generated_tokens_total{model=\"chat\"} 0",
        "brim_generated_tokens_total{model=\"qwen3-mixed\"} 12",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in {metrics}");
    }
    let types: Vec<&str> = metrics.lines().filter(|line| line.starts_with("# TYPE")).collect();
    assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len(), "one line of each series for all models");
    // A single model goes by every name, and its series have none.
    let single = Server::start(&["-m", &demo(), "-t", "2"]);
    assert_eq!(complete(&single, Some("gpt-5"), "a").status, 200);
    assert!(single.get("/metrics").text().contains("\nbrim_slots 4\n"));
    assert!(single.get("/status").json().get("models").is_none());
}

#[test]
fn both_answer_under_mixed_load_and_memory_stays_as_it_is() {
    let dir = Dir::new("several-load");
    let prompts = ["How do I reserve", "a b c d", "The plan", "x"];
    let want = alone(&prompts);
    let server = start(&board(&dir, ""));
    let round = |n: usize| {
        std::thread::scope(|scope| {
            for (model, want) in ["chat", "qwen3-mixed"].into_iter().zip(&want) {
                let (server, prompts) = (&server, &prompts);
                scope.spawn(move || {
                    for i in 0..n {
                        let at = i % prompts.len();
                        assert_eq!(said(&complete(server, Some(model), prompts[at])), want[at], "{model}");
                    }
                });
            }
        });
    };
    round(40);
    let first = server.memory_kib("RssAnon:");
    round(120);
    let then = server.memory_kib("RssAnon:");
    assert!(then <= first + 1024, "resident {first} KiB, then {then} KiB");
    // Streams of both at once, more of them than slots.
    std::thread::scope(|scope| {
        for i in 0..10 {
            let server = &server;
            scope.spawn(move || {
                let model = ["chat", "qwen3-mixed"][i % 2];
                let body =
                    json!({"model": model, "prompt": "a b", "max_tokens": 40, "stream": true, "ignore_eos": true});
                let events = server.post("/v1/completions", &body).events();
                // What comes in one go is one event.
                assert!(events.iter().all(|event| event["model"] == model), "{events:?}");
                assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length", "{events:?}");
            });
        }
    });
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn the_prompt_cache_of_each_outlives_a_restart() {
    let dir = Dir::new("several-cache");
    let cache = dir.at("cache");
    let board = board(&dir, &format!("cache_dir = \"{cache}\""));
    let ask = |server: &Server, model: &str| {
        let prompt = "Be brief and say no more than is asked. ".repeat(4);
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": true});
        let answer = server.post("/v1/completions", &body).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, answer["choices"][0]["text"].clone())
    };
    let server = start(&board);
    let first = ["chat", "qwen3-mixed"].map(|model| ask(&server, model));
    let again = ["chat", "qwen3-mixed"].map(|model| ask(&server, model));
    assert!(first.iter().all(|(cached, _)| *cached == 0), "{first:?}");
    assert!(again[1].0 >= 64, "{again:?}");
    assert_eq!(server.stop(), Some(0));
    let names = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.collect::<BTreeSet<_>>(), ["chat.kv", "qwen3-mixed.kv"].map(str::to_owned).into());
    let server = start(&board);
    assert_eq!(["chat", "qwen3-mixed"].map(|model| ask(&server, model)), again, "after a restart as before");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn each_may_use_the_weights_of_a_holder_of_its_own() {
    let dir = Dir::new("several-held");
    let (socket, held) = (dir.at("s.sock"), golden("qwen3-mixed"));
    let mut holder = brim(&["hold", "-m", &held, "--socket", &socket]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let text = format!(
        "[model]\nctx = 256\n[[serve.models]]\npath = \"{}\"\nname = \"chat\"\n\
         [[serve.models]]\npath = \"{held}\"\nresident = \"{socket}\"\n",
        demo()
    );
    let board = dir.file("held.toml", text);
    let plan = run(&["plan", "--json", "--board", &board]).json();
    let regions =
        |i: usize| plan["models"][i]["regions"].as_array().unwrap().iter().filter(|r| r["name"] == "weights").count();
    assert_eq!((regions(0), regions(1)), (1, 0), "what is held takes no region");
    let server = start(&board);
    let ours = said(&complete(&server, Some("qwen3-mixed"), "a b c d"));
    let alone = Server::start(&["-m", &held, "--ctx", "256", "-t", "2"]);
    assert_eq!(ours, said(&complete(&alone, None, "a b c d")));
    assert_eq!(complete(&server, Some("chat"), "a").status, 200);
    assert_eq!(server.stop(), Some(0));
    let stopped = Command::new("kill").args(["-TERM", &holder.id().to_string()]).status().unwrap();
    assert!(stopped.success() && holder.wait().unwrap().success());
}

fn generate(prompt: usize, max_tokens: usize) -> Box<Request> {
    let sampling = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let generate = Generate { max_tokens, sampling, ignore_eos: true, ..Generate::default() };
    let prompt = (0..prompt as u32).map(|i| i * 7 % 251).collect();
    Box::new(Request { prompt, output: OutputKind::Tokens(generate) })
}

/// Two schedulers for one thread, and the ways to them.
fn two(work: impl FnOnce([Scheduler<'_>; 2], [EngineHandle; 2])) {
    let [one, other] = ["qwen3-mixed", "llama-q4_k"].map(golden);
    let kernels = kernels::select(None, None).unwrap();
    for_two_schedulers([Path::new(&one), Path::new(&other)], kernels, (2, 1024), |[one, other]| {
        let (first, handle) = Scheduler::new(one, 4, Vec::new());
        let (second, beside) = first.beside(other, 4, Vec::new());
        work([first, second], [handle, beside]);
    });
}

/// The events that have come.
fn events(ticket: &mut Ticket) -> Vec<Event> {
    let mut cx = Context::from_waker(Waker::noop());
    let next = || match ticket.poll_event(&mut cx) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_long_prompt_of_one_does_not_stall_what_the_other_writes() {
    two(|mut all, [handle, beside]| {
        let is_over = |events: &[Event]| matches!(events.last(), Some(Event::Finished(..)));
        let mut rounds_of = |prompt: Box<Request>, writing: &mut Option<Ticket>| {
            let mut reading = handle.submit(prompt).unwrap();
            let (mut rounds, mut written) = (0, Vec::new());
            while !is_over(&events(&mut reading)) {
                assert!(Scheduler::round_all(&mut all));
                rounds += 1;
                written.push(writing.as_mut().map_or(0, |writing| events(writing).len()));
            }
            (rounds, written)
        };
        // 448 tokens: four passes of 128, or seven of 64 where somebody generates meanwhile.
        assert_eq!(rounds_of(generate(448, 1), &mut None).0, 4, "nobody else generates");
        let mut writing = Some(beside.submit(generate(8, 400)).unwrap());
        let mut short = generate(8, 1);
        short.prompt[0] = 249;
        assert_eq!(rounds_of(short, &mut writing).1, [2], "started, and its first token");
        let mut other = generate(448, 1);
        other.prompt[0] = 250;
        let (rounds, written) = rounds_of(other, &mut writing);
        assert_eq!((rounds, written), (7, vec![1; 7]), "a token after each of the smaller chunks");
    });
}

#[test]
fn an_idle_thread_is_woken_for_either_and_ends_when_both_have_been_told_to() {
    two(|mut all, handles| {
        std::thread::scope(|scope| {
            let stop = handles.clone();
            let talking = scope.spawn(move || {
                let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let [handle, beside] = &handles;
                    let answer = |of: &EngineHandle| {
                        let mut ticket = of.submit(generate(4, 3)).unwrap();
                        let events = std::iter::from_fn(|| ticket.wait_event()).count();
                        assert!(events >= 4, "started, three tokens, finished");
                    };
                    [handle, beside, beside, handle].into_iter().for_each(answer);
                    handle.stop();
                    assert!(matches!(handle.submit(generate(4, 3)), Err(SubmitError::Stopping(_))));
                    answer(beside);
                }));
                stop.iter().for_each(EngineHandle::stop);
                said
            });
            Scheduler::run_all(&mut all);
            if let Err(panic) = talking.join().unwrap() {
                std::panic::resume_unwind(panic);
            }
        });
    });
}

/// A board with a model for chats and one of vectors.
fn chat_and_vectors(dir: &Dir) -> String {
    let (chat, vectors) = (demo(), vectors());
    let text = format!(
        "[memory]\nhugepages = true\n[model]\nctx = 512\n\
         [[serve.models]]\npath = \"{chat}\"\nname = \"chat\"\nslots = 2\n\
         [[serve.models]]\npath = \"{vectors}\"\nname = \"vectors\"\nctx = 128\n"
    );
    dir.file("board.toml", text)
}

fn vectors() -> String {
    format!("{}/tests/golden/vectors/bert-f32.gguf", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_model_of_vectors_beside_one_for_chats_has_its_pages_and_a_thousand_texts_hold_up_nobody() {
    let texts = |n: usize| (0..n).map(|i| format!("text {i} of {}", "some words ".repeat(10))).collect::<Vec<_>>();
    let embed = |server: &Server, input: &[String]| {
        let answer = server.post("/v1/embeddings", &json!({"input": input}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["data"].as_array().unwrap().iter().map(|row| row["embedding"].clone()).collect::<Vec<_>>()
    };
    let alone = Server::start(&["-m", &vectors(), "--ctx", "128", "-t", "2"]);
    let want = embed(&alone, &texts(3));
    assert_eq!(alone.stop(), Some(0));
    let dir = Dir::new("several-vectors");
    let board = chat_and_vectors(&dir);
    let plan = serde_json::from_str::<Value>(&run(&["plan", "--json", "-t", "2", "--board", &board]).stdout).unwrap();
    let Some(pool) = Pool::with_exactly(plan["total_pages"].as_u64().unwrap()) else { return };
    let server = start(&board);
    assert_eq!(pool.state().available(), 0, "every page of the plan is taken or set aside, and none beside it");
    // Neither is named: each goes to the one that it suits.
    assert_eq!(embed(&server, &texts(3)), want);
    let chat =
        || server.post("/v1/completions", &json!({"prompt": "The plan", "max_tokens": 4, "temperature": 0})).json();
    let answer = chat();
    assert_eq!(answer["model"], "chat");
    let wrong = server.post("/v1/embeddings", &json!({"model": "chat", "input": "x"}));
    assert_eq!(wrong.status, 501, "{}", wrong.text());

    let round = || {
        std::thread::scope(|scope| {
            let many = scope.spawn(|| embed(&server, &texts(1000)));
            let mut answered = 0;
            while !many.is_finished() {
                assert_eq!(chat()["choices"][0]["text"], answer["choices"][0]["text"]);
                answered += 1;
            }
            let vectors = many.join().unwrap();
            assert_eq!((&vectors[..3], vectors.len()), (&want[..], 1000));
            answered
        })
    };
    assert!(round() >= 3, "chats are answered while a thousand texts are read");
    let first = server.memory_kib("RssAnon:");
    (0..3).for_each(|_| assert!(round() >= 3));
    let then = server.memory_kib("RssAnon:");
    assert!(then <= first + 1024, "resident {first} KiB, then {then} KiB");
    assert_eq!((pool.state().available(), server.stop()), (0, Some(0)));
}
