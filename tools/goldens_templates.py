#!/usr/bin/env python3
"""Chat templates against Python's jinja2, set up as `transformers` sets it up for `apply_chat_template`.

  venv/bin/pip install jinja2==3.1.6
  venv/bin/python tools/goldens_templates.py                     makes tests/golden/templates/rendered.json
  venv/bin/python tools/goldens_templates.py DIR_OF_TEMPLATES    compares brim on every *.jinja there

The first renders the project's own templates (tests/golden/templates/*.jinja and src/chat/templates/*.jinja). The second
writes the same kind of file for templates made by others, e.g. models/templates of the llama-cpp-python source package,
and has `cargo test --test templates` hold brim against it. Exits 0 if all agree, 1 if not.
"""
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOW = datetime.datetime(2026, 3, 5, 7, 8, 9)
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather at a place, now.",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "City & country, e.g. \"Köln, DE\""},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "description": "how many <days>"}}, "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "add", "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {
            "values": {"type": "array", "items": {"type": "number"}, "description": "what to add"}}, "required": ["values"]}}},
]


def call(name, arguments, id):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


USER, ANSWER = {"role": "user", "content": "What's 2 < 3?\n"}, {"role": "assistant", "content": "True, it's \"smaller\"."}
SYSTEM, AGAIN = {"role": "system", "content": "Be brief.\nBe kind. "}, {"role": "user", "content": "And in Köln? 汉字"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [
    call("get_weather", {"city": "Köln, DE", "days": 2}, "callab123"), call("add", {"values": [1, 2.5, -3]}, "callcd456")]}
RESULTS = [{"role": "tool", "name": "get_weather", "tool_call_id": "callab123", "content": "{\"temp\": 21.5}"},
           {"role": "tool", "name": "add", "tool_call_id": "callcd456", "content": "0.5"}]
CHATS = {
    "plain": {"messages": [USER, ANSWER, AGAIN]},
    "system": {"messages": [SYSTEM, USER, ANSWER, AGAIN]},
    "closed": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "reasoning": {"messages": [USER, {**ANSWER, "reasoning_content": "2 is less.\n"}, AGAIN]},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "tool calls": {"messages": [SYSTEM, AGAIN, CALLS, *RESULTS, ANSWER, USER], "tools": TOOLS},
    "one call": {"messages": [AGAIN, {**CALLS, "tool_calls": CALLS["tool_calls"][:1]}, RESULTS[0]], "tools": TOOLS[:1]},
    "thinking calls": {"messages": [AGAIN, {**CALLS, "reasoning_content": "Look it up.", "tool_calls": CALLS["tool_calls"][:1]},
                                    RESULTS[0]], "tools": TOOLS[:1]},
}


# Chats whose text is known to differ, and why.
KNOWN = {
    ("meetkai-functionary-medium-v3.1.jinja", "tools"):
        "it marks a string as safe and adds JSON to it, for which Jinja2 writes the quotes of the JSON as &#34;; brim, like "
        "llama.cpp, has no HTML in a prompt",
}


class Generation(Extension):
    """`{% generation %}` marks what the model wrote; only training looks at the marks."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(env, source, chat):
    """The text, or `{"refused": message}` if the template raises, or None if jinja2 itself fails."""
    # Thoughts have three names, of which each template reads one.
    named = [{**message, **dict.fromkeys(("reasoning", "thinking"), message["reasoning_content"])} if "reasoning_content" in message
             else message for message in chat["messages"]]
    context = {"messages": named, "tools": chat.get("tools"), "documents": None,
               "add_generation_prompt": chat.get("add_generation_prompt", True), "bos_token": "<s>", "eos_token": "</s>",
               "date_string": NOW.strftime("%d %b %Y"), "datetime": NOW.strftime("%b %d %Y")}
    context = json.loads(json.dumps(context))
    try:
        return env.from_string(source).render(**context)
    except jinja2.exceptions.SecurityError as error:
        return {"failed": str(error)}
    except jinja2.exceptions.TemplateError as error:
        return {"refused" if type(error) is jinja2.exceptions.TemplateError else "failed": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def cases(files):
    env = environment()
    for path in files:
        source = path.read_text(encoding="utf-8")
        rendered = {}
        for name, chat in CHATS.items():
            if why := KNOWN.get((path.name, "tools" if "tools" in chat else "")):
                print(f"not compared: {path.name}, {name}: {why}")
            else:
                rendered[name] = render(env, source, chat)
        yield {"name": path.name, "template": source, "rendered": rendered}


def document(files):
    unix = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    return {"source": f"jinja2 {jinja2.__version__}", "now": unix, "chats": CHATS, "cases": list(cases(files))}


def main():
    if len(sys.argv) == 1:
        files = sorted((ROOT / "tests/golden/templates").glob("*.jinja")) + sorted((ROOT / "src/chat/templates").glob("*.jinja"))
        made = document(files)
        for case in made["cases"]:
            del case["template"]
            failed = {chat: r for chat, r in case["rendered"].items() if isinstance(r, dict) and "failed" in r}
            assert not failed, (case["name"], failed)
        (ROOT / "tests/golden/templates/rendered.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")
        return
    files = sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))
    if not files:
        sys.exit(f"no templates in {sys.argv[1]}")
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "rendered.json"
        path.write_text(json.dumps(document(files)))
        env = os.environ | {"BRIM_TEMPLATES": str(path)}
        run = ["cargo", "test", "--test", "templates", "--", "--ignored", "--nocapture", "templates_made_by_others"]
        sys.exit(min(1, subprocess.run(run, cwd=ROOT, env=env).returncode))


if __name__ == "__main__":
    main()
