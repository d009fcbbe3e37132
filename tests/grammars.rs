//! Schemas and grammars that were written to take the server down: each is one refused request, and no other request is
//! held up.
#![cfg(feature = "serve")]
#![allow(clippy::print_stdout, reason = "what a test took")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/serve.rs"]
mod serve;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use serve::{Answer, Server, children};

const CHAT: &str = "/v1/chat/completions";

/// Longest that an answer may take. A grammar has a second of CPU time; where many tests run at once, it waits for that.
const PATIENCE: Duration = Duration::from_secs(5);

fn ask(server: &Server, more: Value) -> Answer {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post(CHAT, &body)
}

fn schema(schema: Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
}

fn grammar(text: impl Into<String>) -> Value {
    json!({"grammar": text.into()})
}

/// A request that must be answered by 200, or by 400 with a reason; says how long it took.
#[track_caller]
fn survives(server: &Server, name: &str, request: Value) -> (u16, String) {
    let begun = Instant::now();
    let answer = ask(server, request);
    let elapsed = begun.elapsed();
    assert!(elapsed < PATIENCE, "{name}: {elapsed:?}");
    if answer.status == 200 {
        return (200, String::new());
    }
    let error = answer.json()["error"].clone();
    assert_eq!((answer.status, error["code"].as_str()), (400, Some("invalid_grammar")), "{name}: {answer:?}");
    let message = error["message"].as_str().unwrap().to_owned();
    println!("{name}: {elapsed:?} {message}");
    (400, message)
}

/// Asks for JSON by a small schema for as long as `work` runs; whether that was answered, and the longest it took.
fn meanwhile(server: &Server, work: impl FnOnce() + Send) -> (usize, Duration) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work();
            is_done.store(true, Relaxed);
        });
        let (mut answered, mut longest) = (0, Duration::ZERO);
        while !is_done.load(Relaxed) {
            let begun = Instant::now();
            let answer = ask(
                server,
                schema(json!({"type": "object", "properties": {"n": {"enum": [1, 2]}},
                "required": ["n"], "additionalProperties": false})),
            );
            assert_eq!(answer.status, 200, "{answer:?}");
            longest = longest.max(begun.elapsed());
            answered += 1;
        }
        (answered, longest)
    })
}

/// Short names: a chain of 10,000 fits into the longest grammar.
fn name(n: usize) -> String {
    let digit = |n: usize| char::from(b"abcdefghijklmnopqrstuvwxyz"[n % 26]);
    [n / 676, n / 26, n].map(digit).iter().collect()
}

/// `n` definitions, each of which has the next in it.
fn chain(n: usize, link: impl Fn(Value) -> Value, end: Value) -> Value {
    let next = |i: usize| json!({"$ref": format!("#/d/{}", name(i))});
    let mut definitions: Map<String, Value> = (0..n).map(|i| (name(i), link(next(i + 1)))).collect();
    definitions.insert(name(n), end);
    json!({"$ref": format!("#/d/{}", name(0)), "d": definitions})
}

/// Wraps what comes next of a chain.
type Link = fn(Value) -> Value;

const LINKS: [(&str, Link); 13] = [
    ("$ref", |next| next),
    ("$ref with siblings", |next| json!({"$ref": next["$ref"], "type": ["object", "string"]})),
    ("anyOf", |next| json!({"anyOf": [next, {"type": "null"}]})),
    ("oneOf", |next| json!({"oneOf": [next]})),
    ("allOf", |next| json!({"allOf": [next, {"minLength": 1}]})),
    ("anyOf beside a type", |next| json!({"type": ["array", "string"], "anyOf": [next]})),
    ("items", |next| json!({"type": "array", "items": next})),
    ("prefixItems", |next| json!({"type": "array", "prefixItems": [next], "minItems": 1})),
    ("properties", |next| json!({"type": "object", "properties": {"a": next}})),
    ("required properties", |next| json!({"type": "object", "properties": {"a": next}, "required": ["a"]})),
    ("additionalProperties", |next| json!({"type": "object", "additionalProperties": next})),
    ("patternProperties", |next| json!({"type": "object", "patternProperties": {"^a": next}})),
    ("properties without a type", |next| json!({"properties": {"a": next}, "items": {}})),
];

#[test]
fn chains_of_any_length_are_an_answer_or_a_refusal() {
    let server = Server::start(&[]);
    let rules = |n: usize, link: &str| -> String {
        let rule = |i: usize| format!("r{}: {}\n", name(i), link.replace('_', &format!("r{}", name(i + 1))));
        format!("start: r{}\n{}r{}: \"x\"\n", name(0), (0..n).map(rule).collect::<String>(), name(n))
    };
    let longest = AtomicBool::new(false);
    let (answered, held_up) = meanwhile(&server, || {
        for n in [30, 1000, 10_000] {
            for (kind, link) in LINKS {
                let (status, _) =
                    survives(&server, &format!("{n} x {kind}"), schema(chain(n, link, json!({"type": "string"}))));
                // What short chains mean is understood.
                assert!(n > 30 || status == 200, "{kind}");
                // And the last may refer to the first.
                let ring = chain(n, link, json!({"$ref": "#/d/aaa"}));
                survives(&server, &format!("{n} x {kind}, in a ring"), schema(ring));
            }
            for link in ["_", "\"a\" _", "_ | \"a\"", "(_)", "[_]", "_*", "_{1,3}", "(\"a\" (_ | \"b\"))+"] {
                let lark = rules(n, link);
                let (status, _) = survives(&server, &format!("{n} rules {link}"), grammar(lark.clone()));
                assert!(n > 30 || status == 200, "{link}");
                survives(
                    &server,
                    &format!("{n} terminals {link}"),
                    grammar(lark.to_uppercase().replace("START", "start")),
                );
                let gbnf = lark.replace(':', " ::=").replace("start", "root");
                survives(&server, &format!("{n} rules {link} in GBNF"), grammar(gbnf));
            }
        }
        longest.store(true, Relaxed);
    });
    assert!(longest.into_inner(), "not all were asked");
    assert!(answered > 10 && held_up < PATIENCE, "{answered} requests were answered meanwhile, one after {held_up:?}");
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}

/// What recurses, allocates or runs without end in the library, or meets an assertion.
fn bombs() -> Vec<(&'static str, Value)> {
    let twice = |inner: Value, _| json!({"anyOf": [inner.clone(), inner]});
    let copies = |n: usize| {
        let copy = |i: usize| json!({"$ref": format!("#/d/{i}"), "type": "object"});
        let two = |i: usize| json!({"type": "object", "properties": {"x": copy(i + 1), "y": copy(i + 1)}});
        let mut all: Map<String, Value> = (0..n).map(|i| (i.to_string(), two(i))).collect();
        all.insert(n.to_string(), json!({"type": "object"}));
        json!({"$ref": "#/d/0", "d": all})
    };
    let required =
        |inner: Value, _| json!({"type": "object", "required": ["a", "b", "c", "d"], "additionalProperties": inner});
    let deep = (0..14).fold(json!({"type": "string"}), required);
    let patterns: Map<String, Value> = (0..600).map(|i| (format!("^a{i}[a-z]*$"), json!({"type": "string"}))).collect();
    let numbered = |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join("|");
    vec![
        ("an error that is cut inside a character", schema(json!({"type": "string", "minLength": "é".repeat(100)}))),
        ("copies of copies", schema(copies(24))),
        ("options to be told apart", schema(json!({"oneOf": [deep.clone(), deep]}))),
        ("patterns to be told apart", schema(json!({"type": "object", "patternProperties": patterns}))),
        ("patterns of one text", schema(json!({"type": "string", "allOf": vec![json!({"pattern": "a"}); 9000]}))),
        (
            "more symbols than have numbers",
            grammar(format!("start: {}", numbered(22_000, &|i| format!("(\"{i}\"\"b\")")))),
        ),
        ("25,000 alternatives", grammar(format!("start: {}", numbered(25_000, &|i| format!("\"a{i}\""))))),
        ("a count of 30,000", grammar("start: /[a-z]{30000}/")),
        ("counts of counts", grammar("start: /((((a{1,1000}){1,1000}){1,1000}){1,1000})/")),
        ("counts of rules", grammar("start: x{100000}\nx: y{100000}\ny: \"a\"")),
        ("brackets that strings close", grammar(format!("start: {}\"x\"", "a{\"}}}}}}}}\",".repeat(15_000)))),
        ("brackets", grammar(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000)))),
        ("a look far back", grammar("start: /(.*a){12}.{200}(x|y|.)*/ /[^b]*b.{500}/")),
        ("a rule of itself twice", grammar("start: start start | \"\"")),
        ("rules of themselves", grammar("start: a\na: a")),
        ("a GBNF rule of itself", grammar("root ::= root")),
        ("a wrong schema inside", grammar("start: %json {\"type\": 5}")),
        ("no text", grammar("\u{0}\u{1}")),
        ("nothing", grammar("")),
        ("options of options", schema((0..13).fold(json!({"type": "string"}), twice))),
        ("a million items", schema(json!({"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}}))),
        ("a long text", schema(json!({"type": "string", "minLength": 100_000_000}))),
        ("a pattern of patterns", schema(json!({"type": "string", "pattern": "^(([a-z]+)+)+[0-9]{1,5000}$"}))),
        ("itself", schema(json!({"$ref": "#"}))),
        ("elsewhere", schema(json!({"$ref": "https://example.com/schema"}))),
        (
            "60 choices of two",
            schema(json!({"allOf": (0..60).map(|i|
            json!({"anyOf": [{"multipleOf": i + 7}, {"minimum": i}]})).collect::<Vec<_>>()})),
        ),
        ("a type that does not exist", schema(json!({"type": "nonsense"}))),
        ("no choice", schema(json!({"enum": []}))),
        (
            "a tool",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": copies(24)}}],
            "tool_choice": "required"}),
        ),
    ]
}

#[test]
fn whatever_a_grammar_takes_too_much_of_is_its_own_loss() {
    let server = Server::start(&[]);
    let before = server.memory_kib("VmHWM:");
    let (answered, held_up) = meanwhile(&server, || {
        for (name, bomb) in bombs() {
            let begun = Instant::now();
            let answer = ask(&server, bomb);
            println!("{name}: {} after {:?}", answer.status, begun.elapsed());
            let error = answer.json()["error"].clone();
            let is_right = answer.status == 200 || (answer.status == 400 && error["message"].is_string());
            assert!(is_right && begun.elapsed() < PATIENCE, "{name} after {:?}: {answer:?}", begun.elapsed());
        }
    });
    assert!(answered > 10 && held_up < PATIENCE, "{answered} requests were answered meanwhile, one after {held_up:?}");
    let after = server.memory_kib("VmHWM:");
    // The first brings the index of the vocabulary; then bodies of up to 360 KB, their documents, and copies on their way.
    assert!(after < before + (32 << 10), "the server itself went from {before} to {after} KiB");
    server.is_well();
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn endless_grammars_hold_up_nobody_and_are_refused_by_what_they_may_take() {
    let server = Server::start(&[]);
    let endless = || bombs().into_iter().find(|(name, _)| *name == "options to be told apart").unwrap().1;
    let (answered, held_up) = meanwhile(&server, || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let answer = ask(&server, endless());
                    let error = answer.json()["error"].clone();
                    assert_eq!((answer.status, error["param"].as_str()), (400, Some("response_format")), "{answer:?}");
                    let message = error["message"].as_str().unwrap();
                    assert!(message.contains("1 s of CPU time") && message.contains("use fewer"), "{message}");
                });
            }
        });
    });
    // Four processes that compute and one that answers share the cores.
    assert!(answered > 2 && held_up < PATIENCE, "{answered} requests were answered meanwhile, one after {held_up:?}");
}

#[track_caller]
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn processes_end_with_their_requests_and_with_the_server() {
    let mut server = Server::start(&[]);
    let [zygote] = children(server.child.id())[..] else { panic!("one process is there from the start") };
    let small = || schema(json!({"type": "object"}));
    assert_eq!(ask(&server, small()).status, 200);
    soon("the process of a request ends with it", || children(zygote).is_empty());
    // One that is killed, as it is where memory runs out, is the loss of its request.
    std::thread::scope(|scope| {
        let mut request = grammar("start: /[a-z ]+/");
        request["max_tokens"] = 100_000.into();
        request["ignore_eos"] = true.into();
        let asked = scope.spawn(|| ask(&server, request));
        soon("a process is there for a request", || !children(zygote).is_empty());
        std::thread::sleep(Duration::from_millis(50));
        for pid in children(zygote) {
            std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
        }
        let answer = asked.join().unwrap();
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (400, Some("invalid_grammar")),
            "{answer:?}"
        );
    });
    assert_eq!(ask(&server, small()).status, 200);
    server.is_well();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    soon("the first process ends with the server", || !std::path::Path::new(&format!("/proc/{zygote}")).exists());
}
