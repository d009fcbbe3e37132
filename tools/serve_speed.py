#!/usr/bin/env python3
"""`brim serve` under load, over HTTP, on this machine.

  serve_speed.py streams --brim target/release/brim -m MODEL.gguf [--clients 1,2,4,8] [--hugepages] [--peer-python PATH]
  serve_speed.py prefix  --brim target/release/brim -m MODEL.gguf [--prompt 2000] [--chat] [--hugepages]
  serve_speed.py agent   --brim target/release/brim -m MODEL.gguf [--turns 10] [--hugepages]

`streams`: so many clients at a time, each of which reads one stream. Given are the tokens per second of all together from
the moment everybody has a first token, the time to the first token, the time between events (median and the worst of a
hundred), what share of a CPU each part of the server took, and its resident memory without huge pages. With
--peer-python, the interpreter of an environment with llama-cpp-python (README.md beside this), llama.cpp's library decodes as
many sequences in one batch, in turn with it; it draws no tokens and speaks no HTTP. It runs both with one KV cache for all
sequences and with one each; the faster one counts. Exit code 0 when eight streams, or as many as the most, bring at least
three times one, and 1.5 times llama.cpp.

`prefix`: the time to the first token of a long prompt, of another with the same beginning, and again after a restart with
a saved cache. Exit code 0 when both are at most a tenth of the first. With --chat the beginning is a system prompt, and
what differs a message of the user; the model's template says how that is written.

`agent`: turns of which each is the last one, its answer and some 200 new tokens; after the last the server is started anew
with its saved cache, and one more follows. Exit code 0 when every turn but the first computes no more of its prompt than
what is new and 64 tokens. Answers are one word over and over, so that their text has the tokens that were drawn.

The client is this script: one thread that reads sockets and looks at what came when all is over. It takes some
milliseconds of CPU per hundred tokens. --hugepages needs a pool that is large enough; this script leaves the pool alone.
Needs Python alone; exit code 2 when something could not be run.
"""
import argparse
import atexit
import json
import os
import random
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time


class Server:
    """`brim serve` on a port of its own."""

    def __init__(self, a, more=(), board=None):
        command = [a.brim, "serve", "-m", a.model, "--listen", "127.0.0.1:0", *more, *a.brim_args.split()]
        command += ["--hugepages"] * a.hugepages + (["-t", str(a.threads)] if a.threads else [])
        command += ["--board", board] if board else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        # It does not outlive this script, however that ends.
        atexit.register(self.process.kill)
        self.address = self.line("listening: http://")
        self.line("ready: ")

    def line(self, begin):
        line = self.process.stdout.readline()
        if not line.startswith(begin):
            raise OSError(f"brim said {line!r}, exit code {self.process.poll()}")
        return line.removeprefix(begin).strip()

    def connect(self):
        host, port = self.address.rsplit(":", 1)
        return socket.create_connection((host, int(port)))

    def request(self, path="/v1/completions", **body):
        """The bytes of a request for a stream of a completion."""
        body = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, **body}
        body = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {self.address}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        return head.encode() + body

    def tokens_of(self, text):
        """The tokens of `text`."""
        body = json.dumps({"content": text}).encode()
        head = f"POST /tokenize HTTP/1.1\r\nhost: {self.address}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        with self.connect() as connection:
            connection.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])["tokens"]

    def repeated(self):
        """A token whose text, said often, is that token as often."""
        for text in [" one", " a", *"xqzjk"]:
            tokens = self.tokens_of(text * 16)
            if len(tokens) == 16 and len(set(tokens)) == 1:
                return tokens[0]
        raise OSError("no text was found that is the same token however often it is said")

    def cpu_seconds(self):
        """{thread: seconds of CPU}; threads of one name are added up."""
        seconds, tick = {}, os.sysconf("SC_CLK_TCK")
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            stat = open(f"/proc/{self.process.pid}/task/{task}/stat").read()
            name, rest = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2:].split()
            seconds[name] = seconds.get(name, 0) + (int(rest[11]) + int(rest[12])) / tick
        return seconds

    def resident_mib(self):
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60):
            raise OSError(f"brim ended with exit code {self.process.returncode}")


class Stream:
    """One answer: what came, and when."""

    def __init__(self, server, request):
        self.socket = server.connect()
        self.began = time.perf_counter()
        self.socket.sendall(request)
        self.pieces = []

    def read(self):
        """Whether there is more to come."""
        piece = self.socket.recv(1 << 16)
        self.pieces.append((time.perf_counter(), piece))
        return bool(piece)

    def finish(self):
        """Moments of events, and tokens."""
        whole = b"".join(piece for _, piece in self.pieces)
        if not whole.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"the server answered {whole[:400]!r}")
        # The first event of a chat says who speaks, with an empty text.
        of_chat = lambda piece: b'"content":"' in piece and b'"content":""' not in piece
        self.events = [at for at, piece in self.pieces if b'"text"' in piece or of_chat(piece)]
        chunks = [json.loads(line[6:]) for line in whole.split(b"\n") if line.startswith(b"data: {")]
        self.usage = next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))
        self.tokens = self.usage["completion_tokens"]
        self.text = "".join(choice.get("text", "") for chunk in chunks for choice in chunk["choices"])
        return self

    def reused(self):
        return self.usage["prompt_tokens_details"]["cached_tokens"]


def read_all(streams):
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.read():
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return [stream.finish() for stream in streams]


def words(seed, n):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(n))


def one_round(server, clients, n, seed):
    """What so many clients got."""
    cpu, began = server.cpu_seconds(), time.perf_counter()
    sampling = {"temperature": 0} if seed is None else {"seed": seed}
    streams = [Stream(server, server.request(prompt=words(i, 12), max_tokens=n, **sampling)) for i in range(clients)]
    streams = read_all(streams)
    wall = time.perf_counter() - began
    cpu = {name: (seconds - cpu.get(name, 0)) / wall for name, seconds in server.cpu_seconds().items()}
    all_there = max(stream.events[0] for stream in streams)
    speed = 0
    for stream in streams:
        # Events can be fewer than tokens: a piece of a character waits for the rest.
        share = sum(at > all_there for at in stream.events) / len(stream.events)
        speed += stream.tokens * share / (stream.events[-1] - all_there)
    gaps = sorted(b - a for stream in streams for a, b in zip(stream.events, stream.events[1:]))
    first = statistics.median(stream.events[0] - stream.began for stream in streams)
    return {"speed": speed, "first": first, "gap": gaps[len(gaps) // 2], "gap99": gaps[len(gaps) * 99 // 100], "cpu": cpu}


class Peer:
    """llama.cpp in a process that measures a round of every count for every line it is sent."""

    def __init__(self, a):
        command = [a.peer_python, os.path.abspath(__file__), "peer", "-m", a.model, "--clients", a.clients, "-n", str(a.tokens)]
        command += ["-t", str(a.threads or len(os.sched_getaffinity(0)))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self):
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"llama.cpp ended with exit code {self.process.wait()}")
        return {int(count): speed for count, speed in json.loads(line).items()}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def streams(a):
    counts = [int(count) for count in a.clients.split(",")]
    rounds, peers = {count: [] for count in counts}, {count: [] for count in counts}
    for r in range(a.rounds):
        if a.peer_python:
            # In turn, and never both in memory while one is measured.
            peer = Peer(a)
            for count, speed in peer.measure().items():
                peers[count].append(speed)
            peer.close()
        server = Server(a, ["--slots", str(max(counts)), "--ctx", str(a.tokens + 256)])
        one_round(server, max(counts), 8, None)
        for count in counts:
            rounds[count].append(one_round(server, count, a.tokens, r if a.sample else None))
            print(f"round {r + 1}, {count} clients: {rounds[count][-1]}", file=sys.stderr)
        resident = server.resident_mib()
        server.stop()
    print("| clients | tokens/s | x one | llama.cpp | x llama.cpp | first token s | between events ms, median / 99 % | CPU of the HTTP thread |")
    print("|---|---|---|---|---|---|---|---|")
    middle = lambda count, key: statistics.median(r[key] for r in rounds[count])
    for count in counts:
        peer = statistics.median(peers[count]) if peers[count] else 0
        cells = [str(count), f"{middle(count, 'speed'):.1f}", f"{middle(count, 'speed') / middle(counts[0], 'speed'):.2f}"]
        cells += [f"{peer:.1f}", f"{middle(count, 'speed') / peer:.2f}"] if peer else ["", ""]
        http = statistics.median(r["cpu"].get("brim-http", 0) for r in rounds[count])
        cells += [f"{middle(count, 'first'):.3f}", f"{middle(count, 'gap') * 1e3:.1f} / {middle(count, 'gap99') * 1e3:.1f}", f"{http:.1%}"]
        print(f"| {' | '.join(cells)} |")
    print(f"resident {resident:.1f} MiB outside of huge pages", "" if a.hugepages else "(and all memory of the model: no --hugepages)")
    last = max(counts)
    holds = last == counts[0] or middle(last, "speed") >= 3 * middle(counts[0], "speed")
    return 0 if holds and (not peers[last] or middle(last, "speed") >= 1.5 * statistics.median(peers[last])) else 1


def prefix(a):
    def first_token(server, question):
        body = {"max_tokens": 2, "temperature": 0}
        if a.chat:
            messages = [{"role": "system", "content": words(1, a.prompt)}, {"role": "user", "content": question}]
            request = server.request("/v1/chat/completions", messages=messages, **body)
        else:
            request = server.request(prompt=words(1, a.prompt) + question, **body)
        stream = read_all([Stream(server, request)])[0]
        # An answer may have no text; its first event comes with its first token all the same.
        first = stream.events[0] if stream.events else stream.pieces[-1][0]
        return first - stream.began, stream

    with tempfile.TemporaryDirectory() as cache:
        board = os.path.join(cache, "board.toml")
        with open(board, "w") as file:
            file.write(f"[serve]\ncache_dir = {json.dumps(cache)}\n")
        more = ["--slots", "1", "--ctx", str(a.prompt * 6 + 512)]
        server = Server(a, more, board)
        lines = [("first", *first_token(server, " one two")), ("with the same beginning", *first_token(server, " three four"))]
        server.stop()
        server = Server(a, more, board)
        lines.append(("with the same beginning, after a restart", *first_token(server, " five six")))
        server.stop()
    for name, seconds, stream in lines:
        print(f"{name}: {stream.usage['prompt_tokens']} tokens, {stream.reused()} of them reused, first token after {seconds:.3f} s = {seconds / lines[0][1]:.1%}")
    return int(max(lines[1][1], lines[2][1]) > 0.1 * lines[0][1])


def agent(a):
    def turn(server, prompt, word):
        body = {"prompt": prompt, "max_tokens": 100, "temperature": 0, "logit_bias": {str(word): 100}}
        return read_all([Stream(server, server.request(**body))])[0]

    with tempfile.TemporaryDirectory() as cache:
        board = os.path.join(cache, "board.toml")
        with open(board, "w") as file:
            file.write(f"[serve]\ncache_dir = {json.dumps(cache)}\n")
        more = ["--slots", "1", "--ctx", "16384"]
        server = Server(a, more, board)
        word = server.repeated()
        prompt, known, holds = words(1, 300), 0, True
        for number in range(a.turns + 1):
            if number == a.turns:
                server.stop()
                server = Server(a, more, board)
            stream = turn(server, prompt, word)
            total, computed = stream.usage["prompt_tokens"], stream.usage["prompt_tokens"] - stream.reused()
            first = stream.events[0] - stream.began
            restarted = ", after a restart" if number == a.turns else ""
            print(f"turn {number + 1}{restarted}: {total} tokens, {total - known} of them new, {computed} computed, first token after {first:.3f} s")
            holds &= number == 0 or computed <= total - known + 64
            # What was drawn last is not in the cache.
            known = total + stream.tokens
            prompt += stream.text + " " + words(100 + number, 70)
        server.stop()
    return int(not holds)


def peer(a):
    import llamacpp
    counts = [int(count) for count in a.clients.split(",")]
    rounds = llamacpp.streams(a.model, counts, a.tokens, a.threads)
    for _ in sys.stdin:
        print(json.dumps(next(rounds)), flush=True)
    return 0


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", choices=["streams", "prefix", "agent", "peer"], metavar="streams|prefix|agent")
    args.add_argument("--brim", help="the binary")
    args.add_argument("-m", "--model", required=True, help="GGUF file")
    args.add_argument("--clients", default="1,2,4,8", help="streams at a time (1,2,4,8)")
    args.add_argument("-n", "--tokens", type=int, default=64, help="tokens of a stream (64)")
    args.add_argument("--prompt", type=int, default=700, help="words of the long prompt, of about three tokens each (700)")
    args.add_argument("--chat", action="store_true", help="the long prompt is a system prompt")
    args.add_argument("--turns", type=int, default=10, help="turns of an agent (10)")
    args.add_argument("-t", "--threads", type=int, help="of both engines (as many as brim takes)")
    args.add_argument("-r", "--rounds", type=int, default=1, help="rounds, of which the median counts (1)")
    args.add_argument("--sample", action="store_true", help="draw tokens with the defaults, not the likeliest")
    args.add_argument("--hugepages", action="store_true", help="brim with explicit huge pages")
    args.add_argument("--peer-python", metavar="PATH", help="interpreter whose llama-cpp-python is measured too")
    args.add_argument("--brim-args", default="", help="further words for `brim serve`, in one string")
    a = args.parse_args()
    if a.what != "peer" and not a.brim:
        args.error("--brim is needed")
    return {"streams": streams, "prefix": prefix, "agent": agent, "peer": peer}[a.what](a)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, ValueError, IndexError, StopIteration) as e:
        print(f"serve_speed.py: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
