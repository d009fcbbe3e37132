"""Runs the tests of llama.cpp's server (its tools/server/tests) against brim.

Usage: llama_server_tests.py TESTS --brim BRIM --model stories260K=FILE [--model NAME=FILE ...] [--only FILE ...] [WORDS OF PYTEST]

TESTS is tools/server/tests of a checkout of llama.cpp; nothing of it is changed, and nothing is downloaded. Needs pytest, requests and
openai. A model is named as the tests name it, by the end of its repository or file, without quantisation:
  stories260K         ggml-org/test-model-stories260K: a small trained model, which the tests know the words of
  stories260K-infill  the same with tokens for gaps (gguf-new-metadata --special-token-by-id fim_pre 500, fim_suf 501, fim_mid 502 ...)
  bge-small           a BERT encoder for /v1/embeddings; where it is not the one of the tests, values differ
  jina-reranker       a BERT encoder with a classifier for /v1/rerank
What a case needs and brim does not have (a model that is not at hand, or a feature of llama.cpp's alone) leaves it without a subject: it is
skipped, with the reason. What a server of llama.cpp is told by its options, and one of brim by each request, is put into requests:
temperature, seed, n_predict. What a model says that draws at random is compared with llama.cpp's draws by the tests; here it has to be
text ("by structure" in the table), unless a grammar or a schema says what it must be.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Callable, ContextManager, Iterable, Iterator, List, Literal, Optional, Set, Tuple

import pytest
import requests

DEFAULT_HTTP_TIMEOUT, DEFAULT_REQUEST_TIMEOUT = 60, 600
SETTINGS = json.loads(os.environ.get("LLAMA_SERVER_TESTS", "{}"))
HERE = pathlib.Path(__file__).resolve()

# What options of llama.cpp's server have no counterpart, and so leave a case that sets them without a subject.
WITHOUT = {
    "server_tools": "tools that llama.cpp's server runs itself",
    "mcp_servers_config": "MCP servers that llama.cpp's server runs itself",
    "mcp_servers_json": "MCP servers that llama.cpp's server runs itself",
    "ui_mcp_proxy": "a proxy for llama.cpp's web page",
    "lora_files": "LoRA adapters",
    "model_draft": "a draft model",
    "spec_type": "a draft model",
    "slot_save_path": "files of single slots, in llama.cpp's format",
    "sleep_idle_seconds": "sleep: unloading an idle model",
    "models_dir": "llama.cpp's router",
    "models_preset": "llama.cpp's router",
    "models_max": "llama.cpp's router",
    "no_models_autoload": "llama.cpp's router",
    "enable_ctx_shift": "context shift",
    "cache_ram": "lines of llama.cpp's log",
    "gcp_compat": "Vertex AI's routes",
    "media_path": "images",
    "no_ui": "an option to leave the page out",
    "model_tags": "tags of models",
    "pooling": "pooling by an option in place of the model file",
}


def no_subject(why):
    pytest.skip(f"no subject: {why}")


class ServerResponse:
    headers: dict
    status_code: int
    body: Any


class ServerError(Exception):
    def __init__(self, code, body):
        super().__init__(code, body)
        self.code, self.body = code, body


server_instances = set()
# The last request of a server says whether its answer is bound to a form; pytest's report takes what was judged by structure.
last_request = {}
by_structure = []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """A server with the options of llama.cpp's, any of which is None where no test has set it."""

    def __init__(self):
        self.server_host = "127.0.0.1"
        self.server_port = free_port()
        self.model_hf_repo = "ggml-org/models"
        self.model_hf_file = "tinyllamas/stories260K.gguf"
        self.temperature, self.seed = 0.8, 42
        self.is_router = False
        self.process = None

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def model(self):
        wanted = self.model_file or self.model_hf_file or self.model_hf_repo or ""
        wanted = "stories260K" if self.is_router and not wanted else wanted
        # The longest name that it has.
        for name, path in sorted(SETTINGS["models"].items(), key=lambda pair: -len(pair[0])):
            if name.lower() in wanted.lower() and ("infill" in name) == ("infill" in wanted):
                return path
        return no_subject(f"needs the model {wanted}")

    def words(self, folder):
        for name, what in WITHOUT.items():
            if getattr(self, name):
                no_subject(what)
        addresses = [f"[{host}]" if ":" in host else host for host in self.server_host.split(",")]
        words = [SETTINGS["brim"], "serve", "-m", self.model(), "-t", "1"]
        words += ["--listen", ",".join(f"{address}:{self.server_port}" for address in addresses)]
        slots = self.n_slots or 4
        ctx = self.n_ctx or 4096
        # llama.cpp divides its context among the slots, or has all share it.
        if self.kv_unified or not self.n_slots:
            words += ["--kv-tokens", ctx]
        else:
            ctx //= slots
        is_encoder = self.server_embeddings or self.server_reranking
        # An encoder has its own: no more than it has places for.
        words += [] if is_encoder else ["--ctx", ctx]
        words += ["--slots", slots, "--name", self.model_alias or "model"]
        template = self.chat_template_file or self.chat_template
        if template and ("{" in template or " " in template):
            folder.joinpath("template.jinja").write_text(template)
            template = folder / "template.jinja"
        if template or not is_encoder:
            # Where a model has none llama.cpp takes this one.
            words += ["--chat-template", template or "chatml"]
        if self.api_key:
            folder.joinpath("keys").write_text(self.api_key + "\n")
            words += ["--keys-file", folder / "keys"]
        origin = f'cors_origin = "{self.cors_origins or "*"}"' if self.cors_origins or self.api_key else ""
        folder.joinpath("board.toml").write_text(f"[tile]\ntokens = {max(16, self.n_batch or 256)}\n[serve]\n{origin}\n")
        words += ["--board", folder / "board.toml"]
        return [str(word) for word in words]

    def start(self, timeout_seconds=60):
        self.folder = tempfile.TemporaryDirectory()
        words = self.words(pathlib.Path(self.folder.name))
        print("starts:", " ".join(words))
        log = open(self.log_path, "w") if self.log_path else sys.stdout
        self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        server_instances.add(self)
        end = time.time() + timeout_seconds
        while time.time() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server has ended with {self.process.returncode}")
            try:
                if self.make_request("GET", "/health").status_code == 200:
                    return
            except requests.exceptions.ConnectionError:
                pass
            time.sleep(0.01)
        raise TimeoutError("the server does not get ready")

    def stop(self):
        server_instances.discard(self)
        process, self.process = self.process, None
        if process:
            # The tests look at nothing that it does at its end, and a request may still run.
            process.kill()
            process.wait()

    def make_url(self, path, host=None):
        host = host or self.server_host.split(",")[0]
        return f"http://{host}:{self.server_port}{path}"

    def completed(self, path, data):
        """A request with what llama.cpp's server has options for."""
        last = path.split("?")[0].rsplit("/", 1)[-1]
        if isinstance(data, dict) and last == "apply-template" and self.reasoning:
            return {**data, "chat_template_kwargs": {"enable_thinking": self.reasoning != "off"}}
        if not isinstance(data, dict) or last not in ("completion", "completions", "infill", "messages", "responses"):
            return data
        last_request["body"] = data
        options = {"temperature": self.temperature, "seed": self.seed}
        if self.n_predict and self.n_predict > 0 and not any(name in data for name in ("max_tokens", "n_predict", "max_output_tokens")):
            options["messages" in path and "max_tokens" or "n_predict"] = self.n_predict
        if self.debug:
            options["verbose"] = True
        return {**{name: value for name, value in options.items() if value is not None}, **data}

    def send(self, method, path, data=None, headers=None, timeout=None, host=None, stream=False):
        url = self.make_url(path, host)
        body = {} if method in ("GET", "DELETE", "OPTIONS") or data is None else {"json": self.completed(path, data)}
        return requests.request(method, url, headers=headers, timeout=timeout or 600, stream=stream, **body)

    def make_request(self, method, path, data=None, headers=None, timeout=None, host=None):
        answer = self.send(method, path, data, headers, timeout, host)
        result = ServerResponse()
        result.headers, result.status_code, result.body = answer.headers, answer.status_code, None
        if method != "OPTIONS":
            try:
                result.body = answer.json()
            except ValueError:
                result.body = answer.text
        print("answer:", result.status_code, json.dumps(result.body)[:3000])
        return result

    def make_stream_request(self, method, path, data=None, headers=None, host=None):
        answer = self.send(method, path, data, headers, host=host, stream=True)
        if answer.status_code != 200:
            raise ServerError(answer.status_code, answer.json())
        for line in answer.iter_lines():
            text = line.decode()
            if "[DONE]" in text:
                return
            if text.startswith("data: "):
                print("event:", text[:2000])
                yield json.loads(text[6:])

    def make_any_request(self, method, path, data=None, headers=None, timeout=None):
        if not (data or {}).get("stream"):
            answer = self.make_request(method, path, data, headers, timeout)
            assert answer.status_code == 200, f"{answer.status_code}: {answer.body}"
            return answer.body
        texts, calls, finish = collections.defaultdict(str), [], None
        for chunk in self.make_stream_request(method, path, data, headers):
            for choice in chunk["choices"]:
                delta, finish = choice["delta"], choice.get("finish_reason") or finish
                for name in ("content", "reasoning_content"):
                    texts[name] += delta.get(name) or ""
                for part in delta.get("tool_calls") or []:
                    if part["index"] >= len(calls):
                        calls.append({"id": part["id"], "type": "function", "function": {"name": "", "arguments": ""}})
                    for name in ("name", "arguments"):
                        calls[part["index"]]["function"][name] += part["function"].get(name) or ""
        message = {"role": "assistant", "tool_calls": calls or None, **{name: text or None for name, text in texts.items()}}
        return {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}


def preset(**options):
    def make():
        server = ServerProcess()
        for name, value in options.items():
            setattr(server, name, value)
        return server

    return staticmethod(make)


class ServerPreset:
    """The servers that tests begin with, by the names and with the sizes that they rely on."""

    tinyllama2 = preset(model_hf_repo="ggml-org/test-model-stories260K", model_hf_file=None, model_alias="tinyllama-2",
                        n_ctx=512, n_batch=32, n_slots=2, n_predict=64)
    tinyllama_infill = preset(model_hf_repo="ggml-org/test-model-stories260K-infill", model_hf_file=None, model_alias="tinyllama-infill",
                              n_ctx=2048, n_batch=1024, n_slots=1, n_predict=64, temperature=0.0)
    stories15m_moe = preset(model_hf_repo="ggml-org/stories15M_MOE", model_hf_file="stories15M_MOE-F16.gguf", model_alias="stories15m-moe",
                            n_ctx=2048, n_batch=1024, n_slots=1, n_predict=64, temperature=0.0)
    bert_bge_small = preset(model_hf_file="bert-bge-small/ggml-model-f16.gguf", model_alias="bert-bge-small",
                            n_ctx=512, n_batch=128, n_ubatch=128, n_slots=2, server_embeddings=True)
    bert_bge_small_with_fa = preset(model_hf_file="bert-bge-small/ggml-model-f16.gguf", model_alias="bert-bge-small",
                                    n_ctx=1024, n_batch=300, n_ubatch=300, n_slots=2, fa="on", server_embeddings=True)
    jina_reranker_tiny = preset(model_hf_file="jina-reranker-v1-tiny-en/ggml-model-f16.gguf", model_alias="jina-reranker",
                                n_ctx=512, n_batch=512, n_slots=1, server_reranking=True)
    tinygemma3 = preset(model_hf_repo="ggml-org/tinygemma3-GGUF:Q8_0", model_hf_file=None, model_alias="tinygemma3",
                        n_ctx=1024, n_batch=512, n_slots=2, n_predict=4)
    router = preset(model_hf_repo=None, model_hf_file=None, is_router=True, n_ctx=1024, n_batch=16, n_slots=1, n_predict=16)


def parallel_function_calls(functions):
    def result(future):
        try:
            return future.result()
        except Exception as e:  # noqa: BLE001 (the tests look at results alone)
            print("a call failed:", e)
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [result(future) for future in [pool.submit(function, *arguments) for function, arguments in functions]]


def match_regex(pattern, text):
    if re.search(pattern, text, re.IGNORECASE | re.MULTILINE | re.DOTALL):
        return True
    bound = ("grammar", "json_schema", "response_format", "tools")
    if not text or any(name in last_request.get("body", {}) for name in bound):
        return False
    by_structure.append(pattern)
    return True


def download_file(url, output_file_path=None):
    return no_subject(f"needs the file {url.rsplit('/', 1)[-1]}")


def is_slow_test_allowed():
    return False


request_of_session = requests.sessions.Session.request


def local_request(self, method, url, *args, **kwargs):
    """A request, if it stays on this machine; elsewhere there is nothing."""
    if re.match(r"https?://(127\.0\.0\.1|localhost|\[::1\])[:/]", url):
        return request_of_session(self, method, url, *args, **kwargs)
    nothing = requests.Response()
    nothing.status_code, nothing._content = 200, b""
    return nothing


class Report:
    """What pytest tells, test by test."""

    def __init__(self):
        self.rows = []

    @pytest.fixture(autouse=True)
    def stop_servers(self):
        last_request.clear()
        by_structure.clear()
        yield
        for server in list(server_instances):
            server.stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if "router" in item.path.name or "test_stream" in item.path.name:
            no_subject("llama.cpp's router")

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("unit/")[-1]
        if report.skipped:
            self.rows.append((name, "no subject", str(report.longrepr[2]).split("no subject: ")[-1]))
        elif report.failed:
            where = report.longreprtext.strip().splitlines()
            said = [line[1:].strip() for line in where if line.startswith("E ")]
            self.rows.append((name, "failed", (said or where or ["?"])[0]))
        elif report.when == "call":
            self.rows.append((name, "passed", "by structure" if by_structure else ""))


def table(rows):
    files = sorted({name.split("::")[0] for name, _, _ in rows})
    print("\n| file | passed | failed | no subject | by structure |\n|---|---|---|---|---|")
    total = [0] * 4
    for file in files:
        found = [row for row in rows if row[0].split("::")[0] == file]
        counts = [sum(row[1] == kind for row in found) for kind in ("passed", "failed", "no subject")]
        counts.append(sum(row[1:] == ("passed", "by structure") for row in found))
        total = [a + b for a, b in zip(total, counts)]
        print(f"| {file} | {' | '.join(map(str, counts))} |")
    print(f"| all {len(rows)} | {' | '.join(map(str, total))} |")
    reasons = collections.Counter((row[0].split("::")[0], row[2]) for row in rows if row[1] == "no subject")
    print("\nNo subject:")
    for (file, why), count in sorted(reasons.items()):
        print(f"  {count:3} {file}: {why}")
    print("\nFailed:")
    for name, kind, why in rows:
        if kind == "failed":
            print(f"  {name}: {why}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=pathlib.Path)
    parser.add_argument("--brim", type=pathlib.Path, required=True)
    parser.add_argument("--model", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--only", action="append", default=[], help="a file of tests, without test_ and .py")
    parser.add_argument("--json", type=pathlib.Path, help="where the outcome of each case is written")
    args, words = parser.parse_known_args()
    models = {name: str(pathlib.Path(path).resolve()) for name, path in (model.split("=", 1) for model in args.model)}
    os.environ["LLAMA_SERVER_TESTS"] = json.dumps({"brim": str(args.brim.resolve()), "models": models})
    with tempfile.TemporaryDirectory() as place:
        # Laid out as there: the tests name templates by a path from where they run.
        checkout, folder = args.tests.resolve().parents[2], pathlib.Path(place, "tools/server/tests")
        for part in ("unit", "fixtures"):
            shutil.copytree(args.tests / part, folder / part)
        shutil.copy(args.tests / "pytest.ini", folder)
        pathlib.Path(place, "models").symlink_to(checkout / "models")
        folder.joinpath("utils.py").symlink_to(HERE)
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        import utils

        requests.sessions.Session.request = utils.local_request
        report = utils.Report()
        files = [f"unit/test_{name}.py" for name in args.only] or ["unit"]
        status = pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow", *words, *files], plugins=[report])
        if args.json:
            args.json.write_text(json.dumps(report.rows, indent=1))
        utils.table(report.rows)
        os.chdir("/")
    return status


if __name__ == "__main__":
    sys.exit(main())
