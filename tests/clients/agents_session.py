"""Claude Code and Codex, one turn each: a question, a call of the shell, its result, an answer.

Usage: agents_session.py BASE_URL CLAUDE CODEX DIRECTORY; the two are commands in one word each, split at blanks.

Between them and the server stands a proxy that has the model say what it should: it forces the call with the arguments
that the test wants, and then the answer. Nothing else of a request is changed, and the answers are not.
"""

import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

base, claude, codex, directory = sys.argv[1:5]
server = urllib.parse.urlsplit(base).netloc
seen = []


def only(**properties):
    """A schema of just these values."""
    consts = {key: {"const": value} for key, value in properties.items()}
    return {"type": "object", "properties": consts, "required": list(consts), "additionalProperties": False}


def messages(body):
    """Claude Code's."""
    if body.get("tools"):
        shell = next(tool for tool in body["tools"] if tool["name"] == "Bash")
        shell["input_schema"] = only(command="echo called > claude.txt", description="x")
    if "tool_result" in json.dumps(body["messages"]):
        body["output_config"] = {"format": {"type": "json_schema", "schema": {"const": "finished"}}}
    else:
        body["tool_choice"] = {"type": "tool", "name": "Bash"}


def responses(body):
    """Codex's."""
    shell = next(tool for tool in body["tools"] if tool.get("name") == "exec_command")
    shell["parameters"] = only(cmd="echo called > codex.txt")
    if any(item.get("type") == "function_call_output" for item in body["input"]):
        body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": {"const": "finished"}}}
        # The tools stay in the prompt.
        body["tool_choice"] = {"type": "allowed_tools", "mode": "auto", "tools": []}
    else:
        body["tool_choice"] = {"type": "function", "name": "exec_command"}


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def relay(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = urllib.parse.urlsplit(self.path).path
        script = {"/v1/messages": messages, "/v1/responses": responses}.get(path)
        if script:
            changed = json.loads(body)
            script(changed)
            body = json.dumps(changed).encode()
        connection = http.client.HTTPConnection(server, timeout=600)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("content-length", "host", "connection")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        if script:
            seen.append((path, answer.status, data.decode()))
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(key, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_HEAD = relay


def usage(text):
    """Tokens of the prompt, and how many of them were there already."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    for event in reversed(events):
        if event["type"] == "message_delta":
            found = event["usage"]
            return found["input_tokens"] + found["cache_read_input_tokens"], found["cache_read_input_tokens"]
        if event["type"] == "response.completed":
            found = event["response"]["usage"]
            return found["input_tokens"], found["input_tokens_details"]["cached_tokens"]
    raise SystemExit(f"no usage in {text[-2000:]}")


def turn(name, path, words, **more):
    """Runs an agent on a question, and checks what it did."""
    seen.clear()
    home = pathlib.Path(directory, f"home-{name}")
    work = pathlib.Path(directory, name)
    home.mkdir()
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **more}
    ran = subprocess.run(words, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1500)
    asked = [(status, text) for found, status, text in seen if found == path]
    story = f"{ran.stdout}\n{ran.stderr}\n{[(status, text[-600:]) for status, text in asked]}"
    assert ran.returncode == 0 and "finished" in ran.stdout, story
    assert [status for status, _ in asked] == [200, 200], story
    assert work.joinpath(f"{name}.txt").read_text() == "called\n", story
    n_prompt, n_cached = usage(asked[1][1])
    assert n_cached >= 0.9 * n_prompt, f"{name}: {n_cached} of {n_prompt} tokens were there"
    print(f"{name}: a call, its result and an answer; {n_cached} of {n_prompt} tokens of the second prompt were there already")


proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{proxy.server_port}"
turn(
    "claude",
    "/v1/messages",
    [*claude.split(" "), "-p", "Write the file.", "--model", "any", "--allowedTools", "Bash"],
    ANTHROPIC_BASE_URL=url,
    ANTHROPIC_AUTH_TOKEN="none",
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    DISABLE_AUTOUPDATER="1",
)
provider = f'model_providers.brim={{name="brim",base_url="{url}/v1",wire_api="responses",request_max_retries=0,stream_max_retries=0}}'
turn(
    "codex",
    "/v1/responses",
    [*codex.split(" "), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-m", "any",
     "-c", "model_provider=brim", "-c", provider, "Write the file."],
    OPENAI_API_KEY="none",
)
