//! Templates that mean harm: each ends with an error that names the bound, in time and memory that are bounded.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::bounds::{BRANCHES_MAX, LEVELS_MAX, SOURCE_BYTES_MAX, TAG_TOKENS_MAX};
use super::*;
use crate::sys::{alloc, cpu};

fn prompt() -> Prompt {
    Prompt {
        messages: vec![Message::text(Role::User, "x")],
        tools: std::sync::Arc::default(),
        add_generation_prompt: true,
        bos: String::new(),
        eos: String::new(),
        now: Time::from_unix(0),
        variables: Vec::new(),
    }
}

/// What comes of a template, the CPU time it took, and the most bytes that it held.
fn render(source: &str) -> (Result<String, ChatError>, Duration, isize) {
    let template = match ChatTemplate::compile(source, None) {
        Ok(template) => template,
        Err(e) => return (Err(e), Duration::ZERO, 0),
    };
    let (done, result) = channel();
    template.run(move |renderer| {
        let (begun, before) = (cpu::thread_time(), alloc::live_bytes());
        alloc::peak_bytes();
        let text = renderer.render(&prompt());
        let peak = alloc::peak_bytes();
        done.send((text, cpu::thread_time() - begun, peak - before)).unwrap();
    });
    result.recv().unwrap()
}

/// A source with `part` so many times in it.
fn times(begin: &str, part: &str, n: usize, end: &str) -> String {
    format!("{begin}{}{end}", part.repeat(n))
}

const BIG: &str = "{% set s = 'abcdefgh' * 1000000 %}";

/// Many items, and one large one.
const LISTS: &str = "{% set l = range(100000) | list %}{% set s = 'abcdefgh' * 1000000 %}";

/// `a` nested so often, without a loop.
fn nested(kind: &str, n: usize, end: &str) -> String {
    times("{% set a = 1 %}", kind, n, end)
}

/// `ns.a` nested by a loop.
fn looped(value: &str, end: &str) -> String {
    format!(
        "{{% set ns = namespace(a=[1], b=[1]) %}}{{% for i in range(100000) %}}{{% set ns.a = {value} %}}{{% endfor %}}{end}"
    )
}

fn cases() -> Vec<(&'static str, String)> {
    let mut all = vec![
        // At start: what the parser recurses over.
        ("source", times("", "x", SOURCE_BYTES_MAX + 1, "")),
        ("tag", times("{{ 1", " + a", 50_000, " }}")),
        ("tag", times("{{ 1", " and a", 40_000, " }}")),
        ("tag", times("{{ 1", " ~ a", 50_000, " }}")),
        ("tag", times("{{ ", "not ", 50_000, "a }}")),
        ("tag", times("{{ ", "-", 100_000, "a }}")),
        ("tag", times("{{ a", ".b", 100_000, " }}")),
        ("tag", times("{{ a", "[0]", 60_000, " }}")),
        ("tag", times("{{ a", "()", 60_000, " }}")),
        ("tag", times("{{ a", "|e", 60_000, " }}")),
        ("tag", times("{{ a", " is b", 50_000, " }}")),
        ("tag", times("{{ a", " if a else a", 20_000, " }}")),
        ("tag", times("{% set ", "(", 100_000, "a")),
        ("tag", times("{% for ", "(", 100_000, "a")),
        ("recursion", times("{{ ", "(", 3_000, "a }}")),
        ("recursion", times("", "{% if a %}", 20_000, "")),
        ("elif", times("{% if a %}", "{% elif a %}", 20_000, "{% endif %}")),
        ("elif", times("{% if a %}", "{%- elif a -%}\n", 10_000, "{% endif %}")),
    ];
    for end in [
        "{{ ns.a }}",
        "{{ ns.a == ns.b }}",
        "{{ ns.a | tojson }}",
        "{{ ns.a ~ '' }}",
        "{{ ns.a | string }}",
        "{{ [ns.a, ns.a] | sort }}",
        "{{ ns.a in [ns.a, ns.b] }}",
        "",
    ] {
        for value in
            ["[ns.a]", "{'a': ns.a}", "(ns.a, 1)", "[[ns.a]] | list", "[ns.a] | chain([1])", "[ns]", "dict(a=ns)"]
        {
            all.push(("levels", looped(value, end)));
        }
    }
    for end in ["{{ a }}", "{{ a == b }}", "{{ a | tojson }}", "{{ a ~ '' }}", "{{ a | string }}", "{{ a < b }}"] {
        for kind in ["{% set a = [a, a] %}", "{% set a = (a, a) %}", "{% set a = {'x': a, 'y': a} %}"] {
            all.push(("MiB", nested(kind, 60, end)));
        }
    }
    for (bound, source) in [
        ("levels", nested("{% set a = [a] %}", LEVELS_MAX + 1, "{{ a }}")),
        ("levels", nested("{% set a = namespace(a=a) %}", 1000, "{{ a }}")),
        ("levels", looped("namespace(a=ns)", "{{ ns }}")),
        // What multiplies.
        ("MiB", "{{ 'a' * 100000000 }}".to_owned()),
        ("MiB", format!("{BIG}{{{{ s * 1000 }}}}")),
        ("MiB", format!("{BIG}{{{{ [s] * 1000 }}}}")),
        ("MiB", format!("{BIG}{{{{ s.replace('a', s) }}}}")),
        ("MiB", format!("{BIG}{{{{ s | replace('a', s) }}}}")),
        ("MiB", format!("{BIG}{{{{ s.replace('', s) }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | join(s) }}}}")),
        ("MiB", format!("{LISTS}{{{{ s.join(l) }}}}")),
        ("MiB", format!("{LISTS}{{{{ [s, s, s] | join }}}}")),
        ("MiB", format!("{BIG}{{{{ ('{{0}}' * 100000).format(s) }}}}")),
        ("MiB", "{{ '{:1000000000}'.format(1) }}".to_owned()),
        ("MiB", "{{ '{:.1000000000f}'.format(1.5) }}".to_owned()),
        ("MiB", "{{ '%1000000000d' | format(1) }}".to_owned()),
        ("MiB", "{{ '%*d' | format(1000000000, 1) }}".to_owned()),
        ("MiB", format!("{BIG}{{{{ ('%(x)s' * 100000) | format(x=s) }}}}")),
        ("MiB", "{{ ('a\\n' * 100000) | indent(1000000) }}".to_owned()),
        ("MiB", "{{ ('a\\n' * 100000) | indent(width=1000000) }}".to_owned()),
        ("MiB", "{{ [] | slice(2000000) }}".to_owned()),
        ("MiB", "{{ [1] | batch(10000000, 1) }}".to_owned()),
        ("MiB", "{{ dict(*('a' * 10000000)) }}".to_owned()),
        ("MiB", "{{ dict(*[1], *('a' * 10000000)) }}".to_owned()),
        ("MiB", "{{ ('a' * 10000000) | sort | length }}".to_owned()),
        ("MiB", "{{ (' ' * 16000000).split(' ') | length }}".to_owned()),
        ("MiB", "{{ (' ' * 16000000) | split(' ') | length }}".to_owned()),
        ("MiB", "{{ ('\\n' * 16000000) | lines | length }}".to_owned()),
        ("MiB", "{{ ('\\n' * 16000000).splitlines() | length }}".to_owned()),
        ("MiB", "{{ ('a ' * 8000000).split() | length }}".to_owned()),
        ("MiB", "{{ ('a ' * 8000000).split(none, 7000000) | length }}".to_owned()),
        ("MiB", "{{ ('a' * 10000000) | list | length }}".to_owned()),
        ("MiB", format!("{LISTS}{{{{ l | map('string') | map('replace', '', 'a' * 10000) | list | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | map('default', s) | map('upper') | list | length }}}}")),
        ("MiB", "{{ ['\\u0001' * 4000000, 1] | tojson }}".to_owned()),
        ("MiB", format!("{LISTS}{{{{ [l, l, l] | tojson(indent='aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') }}}}")),
        ("bytes", "{{ strftime_now('%c' * 1000000) }}".to_owned()),
        // What compares or searches.
        ("MiB", format!("{LISTS}{{{{ ([s] + (l | map('string') | list)) | min }}}}")),
        ("MiB", format!("{LISTS}{{{{ ([s] + (l | map('string') | list)) | sort | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ ([s] + (l | map('string') | list)) | unique | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | map(attribute=s) | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | selectattr(s) | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | map('attr', s) | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | groupby(s) | length }}}}")),
        ("MiB", format!("{LISTS}{{{{ l | map('string') | map('list') | sum(start=[]) | length }}}}")),
        // Memory that is held.
        (
            "holds",
            format!("{BIG}{{% set ns = namespace() %}}{}", numbered("{% set v# = s ~ # %}", 60)),
        ),
        ("MiB", format!("{BIG}{{% set ns = namespace() %}}{}", numbered("{% set ns.v# = s ~ # %}", 60))),
        ("MiB", format!("{BIG}{{% set ns = namespace() %}}{}{{{{ ns }}}}", numbered("{% set ns.v# = s %}", 60))),
        ("holds", format!("{BIG}{{% for i in range(100000) %}}{{{{ s }}}}{{% endfor %}}")),
        ("holds", format!("{BIG}{{% set t %}}{{% for i in range(100000) %}}{{{{ s }}}}{{% endfor %}}{{% endset %}}")),
        ("holds", format!("{{% for i in range(100000) %}}{}{{% endfor %}}", "x".repeat(100_000))),
        // Time.
        ("", format!("{BIG}{{% for i in range(100000) %}}{{% if 'x' in s %}}{{% endif %}}{{% endfor %}}")),
        ("", format!("{BIG}{}", "{% if 'x' in s %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{}", "{% if s[7000000] == 'x' %}{% endif %}".repeat(6_000))),
        ("", format!("{BIG}{}", "{% if s == s ~ '' %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{{% set t = s ~ '' %}}{}", "{% if s == t %}{% endif %}".repeat(9_000))),
        ("", format!("{BIG}{{% set t = s ~ '' %}}{}", "{% if s is eq(t) %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{{% set m = {{s: 1}} %}}{}", "{% if m[s] %}{% endif %}".repeat(9_000))),
        ("", format!("{BIG}{}", "{% if s.upper() %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{}", "{% if s | title %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{}", "{% if s.title() %}{% endif %}".repeat(8_000))),
        ("", format!("{LISTS}{}", "{% if l == l | list %}{% endif %}".repeat(7_000))),
        ("", format!("{LISTS}{}", "{% if l | sort %}{% endif %}".repeat(8_000))),
        ("", format!("{LISTS}{}", "{% if [l, 1] == [l | list, 1] %}{% endif %}".repeat(6_000))),
        ("", format!("{BIG}{}", "{% if s.strip(s) %}{% endif %}".repeat(8_000))),
        ("", format!("{BIG}{}", "{% if s | trim(s) %}{% endif %}".repeat(8_000))),
        ("", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned()),
        ("", "{% macro f(n) %}{% for i in range(99999) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}".to_owned()),
        ("recursion", "{% macro f(n) %}{{ f([n]) }}{% endmacro %}{{ f(1) }}".to_owned()),
        ("levels", "{% for i in [1] recursive %}{{ loop([[i]]) }}{% endfor %}".to_owned()),
        ("recursion", "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}".to_owned()),
        (
            "",
            "{% macro f(n, caller) %}{{ caller(n) }}{% endmacro %}{% macro g(n) %}{% call(m) f(n) %}{{ g(m) }}{% endcall %}\
             {% endmacro %}{{ g(1) }}"
                .to_owned(),
        ),
    ] {
        all.push((bound, source));
    }
    all
}

/// `part` so many times, with the number in the place of `#`.
fn numbered(part: &str, n: usize) -> String {
    (0..n).map(|i| part.replace('#', &i.to_string())).collect()
}

/// Most bytes that a template holds at any time: what it may hold, and what one operation makes on top of that.
const PEAK_MAX: isize = 256 << 20;

#[test]
fn harm_ends_with_the_bound_it_meets() {
    let mut bad = Vec::new();
    for (bound, source) in cases() {
        let begun = Instant::now();
        let (result, time, peak) = render(&source);
        let shown: String = source
            .chars()
            .take(60)
            .chain("...".chars())
            .chain(source.chars().rev().take(90).collect::<Vec<_>>().into_iter().rev())
            .collect();
        if std::env::var_os("SHOW").is_some() {
            let tail: String = source.chars().rev().take(50).collect::<Vec<_>>().into_iter().rev().collect();
            println!(
                "{:6.2} {:5.2} {:3}M {:?} | {tail}",
                begun.elapsed().as_secs_f64(),
                time.as_secs_f64(),
                peak >> 20,
                result.as_ref().map(|t| t.len()).map_err(|e| e
                    .to_string()
                    .chars()
                    .skip(34)
                    .take(34)
                    .collect::<String>())
            );
        }
        match result {
            Ok(text) => bad.push(format!("rendered {} bytes: {shown}", text.len())),
            Err(e) if !e.to_string().contains(bound) => bad.push(format!("{bound:?} not in {e}: {shown}")),
            Err(_) if time > Duration::from_secs(2) || peak > PEAK_MAX => {
                bad.push(format!("{time:?}, {peak} bytes: {shown}"))
            }
            Err(_) => {}
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Compiles, and renders what compiles, on a thread with half the stack of a template's.
fn on_half_the_stack(source: String) -> Result<String, String> {
    let half = std::thread::Builder::new()
        .stack_size(std::env::var("STACK").map_or(bounds::STACK_BYTES / 2, |s| s.parse().unwrap()));
    let render = move || Renderer::new(&source, None)?.render(&prompt());
    half.spawn(render).unwrap().join().unwrap().map_err(|e| e.to_string())
}

/// What is let in at most, in all the ways in which the parser, the code generator, or what walks values recurse.
#[test]
fn the_most_that_is_let_in_fits_the_stack() {
    let chain =
        |begin: &str, part: &str, tokens: usize, end: &str| times(begin, part, (TAG_TOKENS_MAX - 2) / tokens, end);
    for source in [
        chain("{{ 1", " + 1", 2, " }}"),
        chain("{{ a", " ~ a", 2, " }}"),
        chain("{{ 1", " and 1", 2, " }}"),
        chain("{{ 1", " or 1", 2, " }}"),
        chain("{{ ", "not ", 1, "a }}"),
        chain("{{ ", "-", 1, "1 }}"),
        chain("{{ a", ".b", 2, " }}"),
        chain("{{ a", "['b']", 3, " }}"),
        chain("{{ a", "[:1]", 4, " }}"),
        chain("{{ a", "|e", 2, " }}"),
        chain("{{ a", " is none", 2, " }}"),
        chain("{{ a", " if a else a", 4, " }}"),
        chain("{% set ", "(", 1, "a"),
        chain("{% for ", "(", 1, "a"),
        times(
            "{{ ",
            "(",
            70,
            &format!("{}{} }}}}", "not ".repeat(TAG_TOKENS_MAX - 145), "a".to_owned() + &")".repeat(70)),
        ),
        times("{{ ", "[", 70, &format!("1{} }}}}", "]".repeat(70))),
        times("{% if a %}", "{% elif a %}", BRANCHES_MAX, "{% endif %}"),
        format!(
            "{}{}{{{{ {}a }}}}{}",
            "{% if not a %}".repeat(140),
            times("{% if a %}", "{% elif a %}", BRANCHES_MAX, "{% endif %}"),
            "not ".repeat(TAG_TOKENS_MAX - 2),
            "{% endif %}".repeat(140)
        ),
    ] {
        let shown: String = source.chars().take(60).collect();
        match on_half_the_stack(source) {
            Ok(_) => {}
            Err(e) => {
                assert!(e.contains("syntax error") || e.contains("undefined") || e.contains("invalid"), "{shown}: {e}")
            }
        }
    }
    let macros = "{% macro f(n, a) %}{% if n %}{{ f(n - 1, a) }}{% else %}{{ a }}{{ a == b }}{{ a ~ '' }}{{ a | tojson }}\
                  {% endif %}{% endmacro %}";
    for kind in ["{% set a = [a] %}", "{% set a = {'x': a} %}", "{% set a = (a, 1) %}"] {
        let deep = nested(kind, LEVELS_MAX, "");
        let source = format!("{deep}{}{macros}{{{{ f(80, a) }}}}", deep.replace('a', "b"));
        let text = on_half_the_stack(source.clone()).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(text.contains("True"), "{kind}: {text}");
        let e = on_half_the_stack(source.replace("f(80, a)", "f(80, [a])")).unwrap_err();
        assert!(e.contains("levels"), "{kind}: {e}");
    }
}
