#!/usr/bin/env python3
"""Is brim as true as llama.cpp? Distance of each to the exact answer of the same quantised weights.

  truth.py --brim target/release/brim --cache DIR MODEL.gguf ...
  truth.py --cache DIR MODEL.gguf ...                 only prepares the exact and llama.cpp's answers

exact  llama.cpp on the F32 expansion of the file, F32 cache
peer   llama.cpp on the file itself, F16 cache
brim   `brim eval -m MODEL -f TEXT --logits OUT --isa TIER`, for each tier

Distance is the mean KL divergence from exact, in nats. brim passes with at most 1.2 x peer + 2e-5. Without --text the
text is prose written by this script; with --seeds N it is N of these, and distances are the means over all tokens. A model
with experts needs some: a rounding error that chooses another expert moves a token far, and a thousand tokens have a
handful of those, so that the distances of two equally true engines differ by a third. Exit code 0: all passed; 1: a tier failed, or its logits
have the wrong size or are not finite; 2: something could not be run.
"""
import argparse
import hashlib
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import dequant
import llamacpp

TIERS = ["scalar", "avx2", "avx2vnni", "avx512", "avx512bf16"]
FACTOR, SLACK = 1.2, 2e-5
ROWS = 256  # rows of logits compared at a time
MISSING_TIER = 6  # brim's exit code for an instruction set this CPU lacks

WHO = ["the keeper", "a young engineer", "the night shift", "our neighbour", "the old pump", "a passing clerk", "the river"]
DID = ["counted", "carried", "forgot", "repaired", "measured", "painted", "questioned", "weighed"]
WHAT = ["the copper kettle", "seven empty crates", "every lamp on the quay", "a letter from the coast", "the broken scale",
        "two barrels of oil", "the map of the harbour", "a row of small stones"]
WHEN = ["before dawn", "while it rained", "on the third of May", "without a word", "at half past nine", "for 12 days",
        "until the bell rang"]
WHY = ["because the tide would not wait", "although nobody had asked", "since the ledger said 48 and not 84",
       "so that the road stayed open", "and the wind turned north", "but the door was locked"]


def prose(seed=1, characters=1200):
    """Deterministic ASCII text; with a vocabulary of bytes and a few merges it is well over 500 tokens."""
    rng = random.Random(seed)
    out = ""
    while len(out) < characters:
        s = f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHEN)}"
        if rng.random() < 0.6:
            s += f", {rng.choice(WHY)}"
        out += s[0].upper() + s[1:] + rng.choice([". ", ". ", "! ", ".\n"])
    return out.encode()


class Answers:
    """llama.cpp's answers to one text for one model, kept as files in the cache directory."""

    def __init__(self, cache, model, text, threads):
        self.model, self.threads = pathlib.Path(model), threads
        digest = hashlib.sha256(text)
        for part in dequant.parts(model):
            stat = part.stat()
            digest.update(f"{part.name} {stat.st_size} {stat.st_mtime_ns} {llamacpp.VERSION}".encode())
        self.stem = cache / f"{self.model.stem}-{digest.hexdigest()[:12]}"
        with llamacpp.Model(model, vocab_only=True) as m:
            self.n_vocab, self.tokens = m.n_vocab, m.tokenize(text)

    def _file(self, name, write):
        """Path of the cached file `name`; a file is only ever seen complete."""
        path = self.stem.with_name(f"{self.stem.name}.{name}")
        if not path.exists():
            part = path.with_name(path.name + ".part")
            write(part)
            part.rename(path)
        return path

    def _run(self, model, kv):
        def write(path):
            with open(path, "wb") as f:
                for rows in llamacpp.logits(model, self.tokens, kv, self.threads):
                    f.write(rows.astype("<f4").tobytes())
        return write

    def exact(self):
        expanded = self._file("expanded.gguf", lambda path: dequant.expand(self.model, path))
        return self._file("exact.f32", self._run(expanded, llamacpp.KV_F32))

    def peer(self):
        return self._file("peer.f32", self._run(self.model, llamacpp.KV_F16))

    def distance(self, path):
        """Sum over tokens of the KL of the logits in `path` from the exact ones. Reads both a few rows at a time."""
        width, n = self.n_vocab, len(self.tokens)
        found = pathlib.Path(path).stat().st_size
        if found != 4 * width * n:
            raise SystemExit(f"{path}: {found / 4 / width:g} rows of {width} logits, llama.cpp has {n} tokens")
        exact = np.memmap(self.exact(), "<f4", "r", shape=(n, width))
        other = np.memmap(path, "<f4", "r", shape=(n, width))
        total = 0.0  # over all tokens
        for at in range(0, n, ROWS):
            rows = np.asarray(other[at:at + ROWS])
            if not np.isfinite(rows).all():
                raise SystemExit(f"{path}: logits that are not finite")
            total += llamacpp.kl_rows(np.asarray(exact[at:at + ROWS]), rows).sum()
        return total


def brim_logits(brim, model, text_file, out, tier, extra):
    """True when brim wrote its logits; false when this CPU lacks the tier."""
    command = [brim, "eval", "-m", str(model), "-f", str(text_file), "--logits", str(out), "--isa", tier, *extra]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode == MISSING_TIER:
        return False
    if run.returncode:
        print(f"{' '.join(command)}\nexit code {run.returncode}\n{run.stderr}", file=sys.stderr)
        sys.exit(2)
    return True


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("models", nargs="+", metavar="MODEL")
    args.add_argument("--brim", help="the binary; without it only llama.cpp is run")
    args.add_argument("--text", type=pathlib.Path)
    args.add_argument("--seeds", type=int, default=1, help="so many texts of this script's")
    args.add_argument("--cache", type=pathlib.Path, help="keep expansions and llama.cpp's answers here")
    args.add_argument("--tiers", nargs="+", default=TIERS)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--brim-args", default="", help="further words for brim, in one string")
    a = args.parse_args()
    texts = [a.text.read_bytes()] if a.text else [prose(seed) for seed in range(1, a.seeds + 1)]
    failed = ran = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        cache = a.cache or scratch / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        text_file, out = scratch / "text", scratch / "brim.f32"
        for model in a.models:
            answers = [Answers(cache, model, text, a.threads) for text in texts]
            n_tokens = sum(len(answer.tokens) for answer in answers)
            peer = sum(answer.distance(answer.peer()) for answer in answers) / n_tokens
            bound = FACTOR * peer + SLACK
            name = pathlib.Path(model).stem
            print(f"{name:28} {n_tokens} tokens  llama.cpp {peer:.3e}  bound {bound:.3e}", flush=True)
            for tier in a.tiers if a.brim else []:
                total = 0.0
                for text, answer in zip(texts, answers):
                    text_file.write_bytes(text)
                    if not brim_logits(a.brim, model, text_file, out, tier, a.brim_args.split()):
                        print(f"{name:28} {tier:7} SKIPPED, not on this CPU")
                        break
                    total += answer.distance(out)
                else:
                    kl = total / n_tokens
                    ran += 1
                    good = kl <= bound
                    failed += not good
                    print(f"{name:28} {tier:7} brim {kl:.3e}  {kl / bound:6.2f} of bound  {'PASS' if good else 'FAIL'}",
                          flush=True)
            if a.cache is None:
                shutil.rmtree(cache)
                cache.mkdir()
    if a.brim:
        print(f"{ran - failed} of {ran} passed")
        if not ran:
            return 2
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, llamacpp.EngineError) as e:
        print(f"truth.py: {e}", file=sys.stderr)
        sys.exit(2)
