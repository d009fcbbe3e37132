#!/usr/bin/env python3
"""brim and llama.cpp, prefill and decode, in one sitting on one machine.

  compare_speed.py --brim target/release/brim -m MODEL.gguf [-p 512] [-n 64] [-t 2] [-r 3] [--hugepages]

The two run in turn, each round in a process of its own, so that a change of clock or of neighbours meets both. Printed
are the medians over the rounds and their ratio. Exit code 0 when brim is at least level in both, 1 when it is not,
2 when one could not be run.
"""
import argparse
import json
import statistics
import subprocess
import sys


def output(command):
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        print(f"{' '.join(command)}\nexit code {run.returncode}\n{run.stderr}", file=sys.stderr)
        sys.exit(2)
    return json.loads(run.stdout)


def brim(a):
    command = [a.brim, "bench", "model", "-m", a.model, "-p", str(a.prompt), "-n", str(a.steps), "-t", str(a.threads),
               "-r", "1", "--json"]
    report = output(command + (["--hugepages"] if a.hugepages else []) + a.brim_args.split())
    return [report[phase]["tokens_per_second"] for phase in phases(a)]


def peer(a):
    command = [sys.executable, __file__, "--peer", "-m", a.model, "-p", str(a.prompt), "-n", str(a.steps), "-t",
               str(a.threads)]
    report = output(command)
    return [report[phase] for phase in phases(a)]


def phases(a):
    return [name for name, n in (("prefill", a.prompt), ("decode", a.steps)) if n]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--brim", help="the binary; without it only llama.cpp is measured")
    args.add_argument("-m", "--model", required=True)
    args.add_argument("-p", "--prompt", type=int, default=512)
    args.add_argument("-n", "--steps", type=int, default=64)
    args.add_argument("-t", "--threads", type=int, default=2)
    args.add_argument("-r", "--rounds", type=int, default=3)
    args.add_argument("--hugepages", action="store_true")
    args.add_argument("--brim-args", default="", help="further words for brim, in one string")
    args.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)  # one round of llama.cpp, in this process
    a = args.parse_args()
    if min(a.prompt, a.steps) < 0 or max(a.prompt, a.steps) == 0 or min(a.rounds, a.threads) < 1:
        args.error("nothing to measure")
    if a.peer:
        import llamacpp
        print(json.dumps(dict(zip(("prefill", "decode"), llamacpp.speed(a.model, a.prompt, a.steps, a.threads)))))
        return 0
    engines = ([("brim", brim)] if a.brim else []) + [("llama.cpp", peer)]
    rounds = {name: [] for name, _ in engines}
    for i in range(a.rounds):
        for name, measure in engines[::-1] if i % 2 else engines:
            rounds[name].append(measure(a))
            print(f"round {i + 1} {name:9}", *(f"{p} {x:9.2f}" for p, x in zip(phases(a), rounds[name][-1])), file=sys.stderr)
    behind = False
    for k, phase in enumerate(phases(a)):
        median = {name: statistics.median(r[k] for r in rs) for name, rs in rounds.items()}
        line = f"{phase:8}" + "".join(f"{name} {x:9.2f} tokens/s   " for name, x in median.items())
        if a.brim:
            ratio = median["brim"] / median["llama.cpp"]
            behind |= ratio < 1
            line += f"ratio {ratio:.3f}"
        print(line.rstrip())
    return int(behind)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, ValueError) as e:
        print(f"compare_speed.py: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
