#!/usr/bin/env python3
"""brim and llama.cpp, prefill and decode, in one sitting on one machine: a markdown table.

  compare_speed.py --brim target/release/brim -m MODEL.gguf [-m MODEL.gguf ...] [-d 0,8192] [--hugepages]

For every model and every depth (tokens already in the context) both engines run in turn and in changing order, so that a
change of clock or of neighbours meets both. llama.cpp keeps its model loaded and its context filled between its turns. Given are the medians over the rounds,
their ratio, and what brim reaches of the ceilings it measures in the same rounds: of the peak of the arithmetic in
prefill, of the bandwidth of reading weights and KV cache in decode. llama.cpp runs with its defaults, flash attention
among them, and with as many threads.

llama.cpp is taken from PyPI, for the interpreter that runs this script (see README.md beside it; on a CPU with AMX
it must be built as described there):

  python3 -m venv venv && venv/bin/pip install llama-cpp-python==0.3.36 numpy
  venv/bin/python tools/compare_speed.py --brim target/release/brim -m MODEL.gguf

Another build of it, say one without AVX-512 to hold brim's avx2 tier against, lives in another environment:

  venv/bin/python tools/compare_speed.py --brim target/release/brim --isa avx2 --peer-python venv-avx2/bin/python -m ...

--hugepages needs a pool that is large enough (`brim plan --hugepages -m MODEL.gguf` says how large); this script leaves
the pool alone. The table goes to standard output, every round to standard error. Exit code 0 when brim is at least
level everywhere, 1 when it is not, 2 when one could not be run.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

PHASES = ("prefill", "decode")
HEAD = ("| model | threads | depth | prefill brim / llama.cpp | share of peak | decode brim / llama.cpp | share of read bandwidth |\n"
        "|---|---|---|---|---|---|---|")


def output(command):
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        print(f"{' '.join(command)}\nexit code {run.returncode}\n{run.stderr}", file=sys.stderr)
        sys.exit(2)
    return json.loads(run.stdout)


def common(a, model, depth):
    return ["-m", model, "-p", str(a.prompt), "-n", str(a.steps), "-d", str(depth), "-t", str(a.threads)]


def brim(a, model, depth):
    """{phase: (tokens/s, share of the ceiling)} of one round."""
    command = [a.brim, "bench", "model", *common(a, model, depth), "-r", "1", "--json"]
    command += ["--hugepages"] * a.hugepages + (["--isa", a.isa] if a.isa else []) + a.brim_args.split()
    report = output(command)
    return {p: (report[p]["tokens_per_second"], report[p]["share_of_ceiling"]) for p in PHASES if report[p]}


class Peer:
    """llama.cpp in a process that measures one round for every line it is sent."""

    def __init__(self, a, model, depth):
        command = [a.peer_python, os.path.abspath(__file__), "--peer", *common(a, model, depth)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self):
        """As `brim`; llama.cpp has no ceiling of its own."""
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            print(f"llama.cpp ended with exit code {self.process.wait()}", file=sys.stderr)
            sys.exit(2)
        return {p: (speed, None) for p, speed in json.loads(line).items() if speed}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(a, model, depth):
    """One row of the table, and whether brim is behind anywhere."""
    peer = Peer(a, model, depth)
    engines = ([("brim", lambda: brim(a, model, depth))] if a.brim else []) + [("llama.cpp", peer.measure)]
    rounds = {name: [] for name, _ in engines}
    for i in range(a.rounds):
        for name, measure in engines[::-1] if i % 2 else engines:
            rounds[name].append(measure())
            speeds = "".join(f" {phase} {speed:9.2f}" for phase, (speed, _) in rounds[name][-1].items())
            print(f"{os.path.basename(model)} d{depth} round {i + 1} {name:9}{speeds}", file=sys.stderr)
    peer.close()
    cells, behind = [os.path.basename(model).removesuffix(".gguf"), str(a.threads), str(depth)], False
    for phase in PHASES:
        if phase not in rounds["llama.cpp"][0]:
            cells += ["", ""]
            continue
        speed = {name: statistics.median(r[phase][0] for r in rs) for name, rs in rounds.items()}
        if not a.brim:
            cells += [f"- / {speed['llama.cpp']:.1f}", ""]
            continue
        ratio = speed["brim"] / speed["llama.cpp"]
        share = statistics.median(r[phase][1] for r in rounds["brim"])
        behind |= ratio < 1
        cells += [f"{speed['brim']:.1f} / {speed['llama.cpp']:.1f} = {ratio:.2f}", f"{share * 100:.0f} %"]
    return f"| {' | '.join(cells)} |", behind


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--brim", help="the binary; without it only llama.cpp is measured")
    args.add_argument("-m", "--model", required=True, action="append", help="GGUF file; may be given several times")
    args.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt (512)")
    args.add_argument("-n", "--steps", type=int, default=64, help="tokens generated after it (64)")
    args.add_argument("-d", "--depth", default="0", help="tokens in the context before the prompt, or some counts: 0,8192 (0)")
    args.add_argument("-t", "--threads", type=int, default=2, help="of both engines (2)")
    args.add_argument("-r", "--rounds", type=int, default=5, help="rounds, of which the median counts (5)")
    args.add_argument("--hugepages", action="store_true", help="brim with explicit huge pages")
    args.add_argument("--isa", help="brim's kernel tier")
    args.add_argument("--peer-python", default=sys.executable, metavar="PATH",
                      help="interpreter whose llama-cpp-python is measured (this one)")
    args.add_argument("--brim-args", default="", help="further words for `brim bench model`, in one string")
    args.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)  # see Peer
    a = args.parse_args()
    depths = [int(depth) for depth in a.depth.split(",")]
    if min(a.prompt, a.steps, *depths) < 0 or max(a.prompt, a.steps) == 0 or min(a.rounds, a.threads) < 1:
        args.error("nothing to measure")
    if a.peer:
        import llamacpp
        rounds = llamacpp.speeds(a.model[0], a.prompt, a.steps, a.threads, depths[0])
        for _ in sys.stdin:
            print(json.dumps(dict(zip(PHASES, next(rounds)))), flush=True)
        return 0
    behind = False
    print(HEAD, flush=True)
    for model in a.model:
        for depth in depths:
            row, is_behind = compare(a, model, depth)
            behind |= is_behind
            print(row, flush=True)
    return int(behind and bool(a.brim))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, ValueError) as e:
        print(f"compare_speed.py: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
