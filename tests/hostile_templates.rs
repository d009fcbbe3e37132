//! Chat templates that were written to take brim down: each is one error by name, within seconds, and a server goes on.
#![allow(clippy::print_stdout, reason = "what a test took")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/gguf.rs"]
mod gguf;
#[cfg(feature = "serve")]
#[path = "common/serve.rs"]
mod serve;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use brim::chat::{ChatTemplate, Message, Prompt, Renderer, Role, Time, process};
use cli::{Dir, golden, run};

/// Longest that an answer may take. A rendering has two seconds of CPU time, and may get one more; where many tests run at
/// once, it waits for that.
const PATIENCE: Duration = Duration::from_secs(15);

/// A source with `part` so many times in it.
fn times(begin: &str, part: &str, n: usize, end: &str) -> String {
    format!("{begin}{}{end}", part.repeat(n))
}

/// The same, as long as a source may be.
fn long(begin: &str, part: &str, end: &str) -> String {
    times(begin, part, ((1 << 20) - begin.len() - end.len()) / part.len(), end)
}

const BIG: &str = "{% set s = 'abcdefgh' * 1000000 %}";

/// What a loop nests, deeper than the stack of a process.
const DEEP: &str = "[[[[[[[[ns.a]]]]]]]]";

/// Many items, and one large one.
const LISTS: &str = "{% set l = range(100000) | list %}{% set s = 'abcdefgh' * 1000000 %}";

/// `ns.a` nested by a loop.
fn looped(value: &str, end: &str) -> String {
    format!(
        "{{% set ns = namespace(a=[1], b=[1]) %}}{{% for i in range(100000) %}}{{% set ns.a = {value} %}}{{% endfor %}}{end}"
    )
}

/// What runs for minutes with few steps.
fn endless() -> String {
    format!("{BIG}{{% for i in range(100000) %}}{{% if s.title() %}}{{% endif %}}{{% endfor %}}")
}

/// `part` so many times, with the number in the place of `#`.
fn numbered(part: &str, n: usize) -> String {
    (0..n).map(|i| part.replace('#', &i.to_string())).collect()
}

/// What the parser and the code generator recurse over.
fn chains() -> Vec<String> {
    vec![
        times("", "x", (1 << 20) + 1, ""),
        long("{{ 1", " + a", " }}"),
        long("{{ 1", " and a", " }}"),
        long("{{ 1", " or a", " }}"),
        long("{{ 1", " ~ a", " }}"),
        long("{{ ", "not ", "a }}"),
        long("{{ ", "-", "a }}"),
        long("{{ a", ".b", " }}"),
        long("{{ a", "[0]", " }}"),
        long("{{ a", "()", " }}"),
        long("{{ a", "|e", " }}"),
        long("{{ a", " is b", " }}"),
        long("{{ a", " if a else a", " }}"),
        long("{% set ", "(", "a"),
        long("{% for ", "(", "a"),
        long("{{ ", "(", "a }}"),
        long("", "{% if a %}", ""),
        long("{% if a %}", "{% elif a %}", "{% endif %}"),
        long("{% if a %}", "{%- elif a -%}\n", "{% endif %}"),
    ]
}

/// Values in values, and what is done with them.
fn nested() -> Vec<String> {
    let ends = [
        "{{ ns.a }}",
        "{{ ns.a == ns.b }}",
        "{{ ns.a | tojson }}",
        "{{ [ns.a, ns.a] | sort }}",
        "{{ ns.a in [ns.a, ns.b] }}",
        "",
    ];
    let values = ["[ns.a]", "{'a': ns.a}", "(ns.a, 1)", "[ns.a] | chain([1])", "[ns]", "dict(a=ns)"];
    let mut all: Vec<String> = ends.iter().flat_map(|end| values.map(|value| looped(value, end))).collect();
    for end in ["{{ a }}", "{{ a == b }}", "{{ a | tojson }}", "{{ a ~ '' }}", "{{ a < b }}"] {
        for kind in ["{% set a = [a, a] %}", "{% set a = {'x': a, 'y': a} %}"] {
            all.push(times("{% set a = 1 %}", kind, 60, end));
        }
    }
    all.extend([
        looped("namespace(a=ns)", "{{ ns }}"),
        "{% macro f(n) %}{{ f([n]) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% for i in [1] recursive %}{{ loop([[i]]) }}{% endfor %}".to_owned(),
        "{% macro f(n, caller) %}{{ caller(n) }}{% endmacro %}{% macro g(n) %}{% call(m) f(n) %}{{ g(m) }}{% endcall %}\
         {% endmacro %}{{ g(1) }}"
            .to_owned(),
    ]);
    all
}

/// What makes much of little, or takes long.
fn multipliers() -> Vec<String> {
    let with = |begin: &str, end: &str| format!("{begin}{end}");
    let mut all: Vec<String> = [
        "{{ 'a' * 100000000 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:.1000000000f}'.format(1.5) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ ('a\\n' * 100000) | indent(1000000) }}",
        "{{ [] | slice(20000000) }}",
        "{{ [1] | batch(100000000, 1) }}",
        "{{ ('a' * 100000000) | sort | length }}",
        "{{ (' ' * 90000000).split(' ') | length }}",
        "{{ (' ' * 90000000) | split(' ') | length }}",
        "{{ ('\\n' * 90000000).splitlines() | length }}",
        "{{ ('a ' * 40000000).split() | length }}",
        "{{ ('a' * 100000000) | list | length }}",
        "{{ strftime_now('%c' * 4000000) }}",
        "{{ raise_exception('a' * 10000000) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(99999) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}",
    ]
    .map(str::to_owned)
    .into();
    all.extend(
        [
            "{{ s * 1000 }}",
            "{{ [s] * 1000 }}",
            "{{ s.replace('a', s) }}",
            "{{ s | replace('a', s) }}",
            "{{ s.replace('', s) }}",
            "{{ ('{0}' * 100000).format(s) }}",
            "{% for i in range(100000) %}{{ s }}{% endfor %}",
            "{% set t %}{% for i in range(100000) %}{{ s }}{% endfor %}{% endset %}",
            "{% for i in range(100000) %}{% if 'x' in s %}{% endif %}{% endfor %}",
            "{% for i in range(100000) %}{% if s.title() %}{% endif %}{% endfor %}",
            "{% for i in range(100000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
        ]
        .map(|end| with(BIG, end)),
    );
    all.extend(
        [
            "{{ l | join(s) }}",
            "{{ s.join(l) }}",
            "{{ l | map('string') | map('replace', '', 'a' * 10000) | list | length }}",
            "{{ l | map('default', s) | map('upper') | list | length }}",
            "{{ l | groupby(s) | length }}",
            "{{ l | map('string') | map('list') | sum(start=[]) | length }}",
            "{% for i in l %}{% if l == l | list %}{% endif %}{% endfor %}",
        ]
        .map(|end| with(LISTS, end)),
    );
    all.push(with(BIG, &numbered("{% set v# = s ~ # %}", 600)));
    all.push(with(BIG, &with("{% set ns = namespace() %}", &numbered("{% set ns.v# = s ~ # %}", 600))));
    all
}

/// The end of a source, which tells it from others.
fn tail(source: &str) -> String {
    let end = source.len().saturating_sub(60);
    source.chars().skip(end).collect()
}

fn prompt(messages: &[Message]) -> Prompt<'_> {
    Prompt {
        messages,
        tools: &[],
        add_generation_prompt: true,
        bos: "<s>",
        eos: "</s>",
        now: Time::from_unix(0),
        variables: &[],
    }
}

#[test]
fn whatever_a_template_takes_too_much_of_is_an_error_in_time() {
    let zygote = process::zygote();
    let messages = [Message::text(Role::User, "x")];
    let all = Mutex::new([chains(), nested(), multipliers()].concat());
    let beyond = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(source) = all.lock().unwrap().pop() else { return };
                    let template = Renderer::confined(&source, None, zygote.clone());
                    let begun = Instant::now();
                    let said = template.render(&prompt(&messages).written());
                    let elapsed = begun.elapsed();
                    let shown = said.as_ref().map_or_else(ToString::to_string, |text| format!("{} bytes", text.len()));
                    println!("{elapsed:9.1?} {} | {shown:.160}", tail(&source));
                    assert!(elapsed < PATIENCE, "{elapsed:?}: {}", tail(&source));
                    if let Err(e) = said {
                        assert!(!e.is_unavailable() && e.to_string().len() < 5000, "{e:.200}: {}", tail(&source));
                        *beyond.lock().unwrap() += usize::from(e.to_string().contains("goes beyond its bounds"));
                    }
                }
            });
        }
    });
    let beyond = *beyond.lock().unwrap();
    assert!(beyond > 50, "{beyond} went beyond their bounds");
    let template = Renderer::confined("{{ messages[0].content }}", None, zygote);
    assert_eq!(template.render(&prompt(&messages).written()).unwrap(), "x");
}

#[test]
fn a_process_says_what_the_same_template_says_here() {
    let zygote = process::zygote();
    let messages = [Message::text(Role::User, "h\u{e9}\u{0}"), Message::text(Role::Assistant, "")];
    let variables = [("extra".to_owned(), serde_json::json!({"z": [1, -2.5, null], "a": {"b": u64::MAX}}))];
    let prompt = Prompt { variables: &variables, ..prompt(&messages) };
    for source in [
        "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ extra }}{{ bos_token }}{{ strftime_now('%F %T') }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "a\n{{ 'b'.nonsense() }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ j }}{% endfor %}{% endfor %}",
        "",
    ] {
        for origin in [None, Some("mine.jinja")] {
            let here = ChatTemplate::compile(source, origin).and_then(|template| template.render(&prompt));
            let apart = Renderer::confined(source, origin, zygote.clone());
            let apart = apart.check().and_then(|()| apart.render(&prompt.written()));
            assert_eq!(here.map_err(|e| e.to_string()), apart.map_err(|e| e.to_string()), "{source}");
        }
    }
    // How long it takes, for who reads the output.
    let source = include_str!("../src/chat/templates/llama3.jinja");
    let (here, apart) = (ChatTemplate::compile(source, None).unwrap(), Renderer::confined(source, None, zygote));
    let time = |n: u32, work: &dyn Fn() -> String| {
        let begun = Instant::now();
        (0..n).for_each(|_| drop(work()));
        begun.elapsed() / n
    };
    let long = vec![Message::text(Role::User, "four".repeat(256)); 4096];
    for (n, prompt) in [(100, &prompt), (5, &Prompt { messages: &long, ..prompt })] {
        let here = time(n, &|| here.render(prompt).unwrap());
        let apart = time(n, &|| apart.render(&prompt.written()).unwrap());
        println!("a rendering of {} messages: {here:?} here, {apart:?} in a process", prompt.messages.len());
    }
}

/// A small model that has this chat template.
fn model(template: &str) -> Vec<u8> {
    model_with(&[("tokenizer.chat_template", template)])
}

/// A small model that has these texts in its header.
fn model_with(texts: &[(&str, &str)]) -> Vec<u8> {
    let keys: Vec<_> = texts.iter().map(|(key, value)| (*key, 8, gguf::string(value.as_bytes()))).collect();
    gguf::with_keys(&std::fs::read(golden("llama-f32")).unwrap(), &keys)
}

#[test]
fn run_refuses_by_name_what_it_cannot_render() {
    let dir = Dir::new("hostile");
    let beyond = [
        "goes beyond its bounds (2 s of CPU time, 256 MiB of memory, 64 MiB of stack, 1 MiB of source, 16 MiB of text)",
    ];
    let of_model = ["the model's chat template", beyond[0], "use another with --chat-template, or --raw"];
    // The first at the start, the others when they are rendered.
    for (name, source) in [
        ("chain", long("{{ 1", " ~ a", " }}")),
        ("elif", long("{% if a %}", "{% elif a %}", "{% endif %}")),
        ("nested", looped(DEEP, "{{ ns.a }}")),
        ("dropped", looped(DEEP, "")),
        ("memory", "{{ ('a' * 100000000) | list | length }}".to_owned()),
        ("time", endless()),
        ("text", "{{ 'a' * 100000000 }}".to_owned()),
    ] {
        let begun = Instant::now();
        let path = dir.file("model.gguf", model(&source));
        run(&["run", "-m", &path, "-p", "x", "-n", "1"]).fails(4, &of_model);
        let template = dir.file("mine.jinja", &source);
        let words = ["run", "-m", &golden("llama-f32"), "-p", "x", "-n", "1", "--chat-template", &template];
        run(&words).fails(2, &["the chat template", &template, beyond[0], "; give --chat-template a simpler one"]);
        println!("{name}: {:?}", begun.elapsed());
        assert!(begun.elapsed() < 2 * PATIENCE, "{name}: {:?}", begun.elapsed());
    }
    // And says what the template itself says.
    let path = dir.file("model.gguf", model("{{ raise_exception('no system messages here') }}"));
    run(&["run", "-m", &path, "-p", "x", "-n", "1"])
        .fails(4, &["the model's chat template fails", "no system messages"]);
    let path = dir.file("model.gguf", model("{{ messages[0].content }}"));
    let by_template = run(&["run", "-m", &path, "-p", "A text", "-n", "8", "--temp", "0"]).good();
    assert_eq!(by_template, run(&["run", "-m", &path, "--raw", "-p", "A text", "-n", "8", "--temp", "0"]).good());
}

/// The processes below one.
#[cfg(feature = "serve")]
fn descendants(pid: u32) -> Vec<u32> {
    let children = serve::children(pid);
    children.iter().flat_map(|&child| descendants(child)).chain(children.clone()).collect()
}

#[cfg(feature = "serve")]
#[track_caller]
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(feature = "serve")]
fn is_there(pid: u32) -> bool {
    // What has ended and whose parent has not looked yet has no command line any more.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

#[cfg(feature = "serve")]
#[test]
fn processes_end_with_what_they_were_for() {
    let dir = Dir::new("hostile-end");
    let path = dir.file("model.gguf", model(&endless()));
    let mut command = cli::brim(&["run", "-m", &path, "-p", "x", "-n", "1"]);
    let mut running = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    soon("it renders", || descendants(running.id()).len() == 2);
    let all = descendants(running.id());
    running.kill().unwrap();
    running.wait().unwrap();
    soon("they end with it", || !all.iter().any(|&pid| is_there(pid)));
}

#[cfg(feature = "serve")]
mod server {
    use std::io::Write;

    use serde_json::json;

    use super::serve::{Answer, Server, children};
    use super::*;

    fn say(server: &Server, content: &str) -> Answer {
        let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 2});
        server.post("/v1/chat/completions", &body)
    }

    /// A template that does harm to who asks for it.
    fn on_request(kinds: &[(&str, String)]) -> String {
        let branch = |(name, source): &(&str, String)| format!("{{% elif c == '{name}' %}}{source}");
        let branches: String = kinds.iter().map(branch).collect();
        format!("{{% set c = messages[0].content %}}{{% if c == 'Hello' %}}Hello{branches}{{% endif %}}")
    }

    fn kinds() -> Vec<(&'static str, String)> {
        vec![
            ("nested", looped(DEEP, "{{ ns.a }}")),
            ("compared", looped(DEEP, "{{ ns.a == [ns.a] }}")),
            ("json", looped(DEEP, "{{ ns.a | tojson }}")),
            ("dropped", looped(DEEP, "")),
            ("replaced", format!("{BIG}{{{{ s.replace('a', s) }}}}")),
            ("listed", "{{ ('a' * 100000000) | list | length }}".to_owned()),
            ("split", "{{ (' ' * 90000000).split(' ') | length }}".to_owned()),
            ("held", format!("{BIG}{}", numbered("{% set v# = s ~ # %}", 600))),
            ("text", "{{ 'a' * 100000000 }}".to_owned()),
            ("date", "{{ strftime_now('%c' * 4000000) }}".to_owned()),
            ("in", format!("{BIG}{{% for i in range(100000) %}}{{% if 'x' in s %}}{{% endif %}}{{% endfor %}}")),
            ("title", endless()),
        ]
    }

    #[test]
    fn chats_with_tools_have_the_template_that_files_have_for_them() {
        let dir = Dir::new("two-templates");
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let file = model_with(&[
            ("tokenizer.chat_template", template),
            (
                "tokenizer.chat_template.tool_use",
                "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ messages[0].content }}",
            ),
        ]);
        let path = dir.file("model.gguf", file);
        let server = Server::start(&["-m", &path]);
        let mut body = json!({"messages": [{"role": "user", "content": "abc"}], "max_tokens": 1});
        let tokens = |answer: Answer| answer.json()["usage"]["prompt_tokens"].as_u64().unwrap();
        let without = tokens(server.post("/v1/chat/completions", &body));
        body["tools"] = json!([{"type": "function", "function": {"name": "fetch", "parameters": {"type": "object"}}}]);
        let with = tokens(server.post("/v1/chat/completions", &body));
        assert_eq!(with, without + "fetch ".len() as u64);
        assert_eq!(server.stop(), Some(0));
        // Who asks for a template means all chats. This one has no place for tools, and is told of them.
        let own = dir.file("own.jinja", template);
        let server = Server::start(&["-m", &path, "--chat-template", &own]);
        let told = tokens(server.post("/v1/chat/completions", &body));
        assert!(told > with + 100, "{told} tokens, {with} by the template for tools");
    }

    #[test]
    fn an_empty_template_is_none() {
        let dir = Dir::new("empty-template");
        let server = Server::start(&["-m", &dir.file("model.gguf", model(" "))]);
        let answer = say(&server, "abc");
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("no_chat_template")));
    }

    #[test]
    fn harm_is_refused_and_holds_up_nobody() {
        let dir = Dir::new("hostile-serve");
        let path = dir.file("model.gguf", model(&on_request(&kinds())));
        let server = Server::start(&["-m", &path]);
        let before = server.memory_kib("VmHWM:");
        std::thread::scope(|scope| {
            let harm = scope.spawn(|| {
                for (name, _) in kinds() {
                    let begun = Instant::now();
                    let answer = say(&server, name);
                    println!("{name}: {} after {:?}", answer.status, begun.elapsed());
                    let error = answer.json()["error"].clone();
                    assert_eq!(
                        (answer.status, error["code"].as_str()),
                        (400, Some("chat_template")),
                        "{name}: {answer:?}"
                    );
                    let message = error["message"].as_str().unwrap();
                    let is_named = message.contains("beyond its bounds") || message.contains("ran out of fuel");
                    assert!(is_named, "{name}: {message}");
                    assert!(begun.elapsed() < PATIENCE, "{name}: {:?}", begun.elapsed());
                }
            });
            let (mut answered, mut longest) = (0, Duration::ZERO);
            while !harm.is_finished() {
                let begun = Instant::now();
                assert_eq!(say(&server, "Hello").status, 200);
                assert_eq!(server.post("/v1/completions", &json!({"prompt": "A", "max_tokens": 1})).status, 200);
                longest = longest.max(begun.elapsed());
                answered += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("{answered} were answered meanwhile, the slowest after {longest:?}");
            assert!(answered > 20 && longest < PATIENCE, "{answered} were answered, one after {longest:?}");
        });
        let after = server.memory_kib("VmHWM:");
        assert!(after < before + (8 << 10), "the server itself went from {before} to {after} KiB");
        assert_eq!(server.stop(), Some(0));
    }

    #[test]
    fn clients_that_leave_and_servers_that_end_leave_no_process() {
        let dir = Dir::new("hostile-leave");
        let path = dir.file("model.gguf", model(&on_request(&kinds())));
        let mut server = Server::start(&["-m", &path]);
        let [zygote] = children(server.child.id())[..] else { panic!("one process is there from the start") };
        let ask_and_leave = || {
            let body = json!({"messages": [{"role": "user", "content": "title"}]}).to_string();
            let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\n", server.address);
            let mut stream = server.connect();
            write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        };
        (0..20).for_each(|_| ask_and_leave());
        soon("what they asked for is begun", || !children(zygote).is_empty());
        let begun = Instant::now();
        while !children(zygote).is_empty() {
            assert!(children(zygote).len() <= 2, "there is one for each thread that waits");
            assert!(begun.elapsed() < PATIENCE, "whoever has left is not waited for");
        }
        assert_eq!(say(&server, "Hello").status, 200);
        ask_and_leave();
        soon("one more is begun", || !children(zygote).is_empty());
        let all = descendants(server.child.id());
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        soon("they end with the server", || !all.iter().any(|&pid| is_there(pid)));
    }

    #[test]
    fn what_cannot_be_compiled_is_refused_at_the_start() {
        let dir = Dir::new("hostile-start");
        for source in [long("{{ 1", " and a", " }}"), long("{% if a %}", "{% elif a %}", "{% endif %}")] {
            let path = dir.file("model.gguf", model(&source));
            let words = ["serve", "--listen", "127.0.0.1:0", "-m", &path];
            run(&words).fails(4, &["the model's chat template goes beyond its bounds"]);
        }
        let path = dir.file("model.gguf", model("{% for %}"));
        run(&["serve", "--listen", "127.0.0.1:0", "-m", &path])
            .fails(4, &["the model's chat template fails", "syntax error"]);
    }
}
