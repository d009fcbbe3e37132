#!/usr/bin/env python3
"""Time from the start of the process to the first token of a short prompt: brim beside llama.cpp, cold and warm, in turn.

  compare_load.py --brim target/release/brim -m MODEL.gguf [--hugepages] [-r 3] [-t 2]

brim's time is that of the whole process, until its first byte of output. llama.cpp's counts from before it opens the file;
starting Python is not held against it. Cold means that the file was dropped from the page cache (fadvise) before each start.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT = "Hi there you all"

CHILD = r"""
import json, sys, time
import ctypes, llama_cpp as L
silent = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(silent, ctypes.c_void_p(0))
path, mode, threads, n_ctx, prompt = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5].encode()
start = time.perf_counter()
mp = L.llama_model_default_params()
for key, value in mode.items():
    setattr(mp, key, value)
model = L.llama_model_load_from_file(path.encode(), mp)
assert model
cp = L.llama_context_default_params()
cp.n_ctx, cp.n_threads, cp.n_threads_batch = n_ctx, threads, threads
ctx = L.llama_init_from_model(model, cp)
vocab = L.llama_model_get_vocab(model)
ids = (L.llama_token * 64)()
n = L.llama_tokenize(vocab, prompt, len(prompt), ids, 64, False, False)
assert L.llama_decode(ctx, L.llama_batch_get_one(ids, n)) == 0
logits = L.llama_get_logits_ith(ctx, -1)
best = logits[0]
print(json.dumps({"seconds": time.perf_counter() - start, "tokens": n}))
"""


def evict(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def warm(path):
    with open(path, "rb", buffering=0) as f:
        buffer = bytearray(1 << 22)
        while f.readinto(buffer):
            pass


def llama(a, mode):
    out = subprocess.run([sys.executable, "-c", CHILD, a.model, json.dumps(mode), str(a.threads), str(a.ctx), PROMPT],
                         capture_output=True, text=True)
    if out.returncode:
        print(f"not measured: {mode}: {(out.stderr.strip().splitlines() or [out.returncode])[-1]}", file=sys.stderr)
        return None
    return json.loads(out.stdout)["seconds"]


def brim(a, *more):
    words = [a.brim, "run", "--raw", "-m", a.model, "-p", PROMPT, "-n", "1", "--temp", "0", "--ctx", str(a.ctx),
             "-t", str(a.threads), *more] + (["--hugepages"] if a.hugepages else [])
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)
    seconds = time.perf_counter() - start
    _, err = process.communicate()
    if process.returncode or not first:
        sys.exit(f"brim failed: {err.decode()}")
    return seconds


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--brim", default="target/release/brim")
    ap.add_argument("-m", "--model", required=True)
    ap.add_argument("--hugepages", action="store_true")
    ap.add_argument("-r", type=int, default=3)
    ap.add_argument("-t", "--threads", type=int, default=2)
    ap.add_argument("--ctx", type=int, default=512)
    ap.add_argument("--peers", default="", help="only the modes of llama.cpp whose name has this in it, such as 'no repack'")
    ap.add_argument("--resident", help="also measure --resident at this socket, where a `brim hold` must be alive")
    a = ap.parse_args()
    import llama_cpp
    # How weights are loaded (`load_mode` in llama.h): 0 read, 1 mmap, 2 mlock, 3 direct I/O; extra buffers are repacked weights.
    names = {getattr(llama_cpp, name): name.removeprefix("LLAMA_LOAD_MODE_").lower()
             for name in dir(llama_cpp) if name.startswith("LLAMA_LOAD_MODE_")}
    peers = {f"llama.cpp {name}{'' if repack else ', no repack'}": {"load_mode": mode, "use_extra_bufts": repack}
             for mode, name in names.items() if name in ("none", "mmap", "direct_io", "dio") for repack in (False, True)}
    peers = {name: mode for name, mode in peers.items() if a.peers in name}
    figures = {}
    for state, prepare in (("cold", evict), ("warm", warm)):
        for _ in range(a.r + (state == "warm")):
            for name, mode in peers.items():
                prepare(a.model)
                seconds = llama(a, mode)
                if seconds is not None:
                    figures.setdefault((state, name), []).append(seconds)
            prepare(a.model)
            figures.setdefault((state, "brim"), []).append(brim(a))
            if a.resident and state == "warm":
                figures.setdefault((state, "brim --resident"), []).append(brim(a, "--resident", a.resident))
    for (state, name), seconds in figures.items():
        print(f"{state} {name:32} {statistics.median(seconds):7.3f} s  ({min(seconds):.3f}-{max(seconds):.3f})")
    median = {key: statistics.median(seconds) for key, seconds in figures.items()}
    reference = median.get(("warm", "llama.cpp mmap, no repack"))
    if not any(state == "cold" and name != "brim" for state, name in median):
        sys.exit("llama.cpp could not be measured")
    fastest = min(seconds for (state, name), seconds in median.items() if state == "cold" and name != "brim")
    good = True
    if reference:
        ratio = median["warm", "brim"] / reference
        good &= ratio <= 1.5
        print(f"warm: {ratio:.2f} x llama.cpp with mmap and without repack (at most 1.5)")
    ratio = median["cold", "brim"] / fastest
    good &= ratio <= 0.9
    print(f"cold: {ratio:.2f} x llama.cpp's fastest mode (at most 0.9)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
