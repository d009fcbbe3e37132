#!/usr/bin/env python3
"""Make tests/golden/models: models with known answers.

  goldens.py [--seed N] [--dir tests/golden]

Answers come from llama.cpp, which shares no code with brim. The format is described in tests/golden/README.md.
"""
import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
from gguf import GGMLQuantizationType as T

import dequant
import llamacpp
import tiny_models

# Logits of every so manieth token are kept, the last token included; and how many greedy tokens, by the length of the input.
STEP = {96: 2, 320: 16}
GREEDY_PROMPT, GREEDY = 16, {96: 32, 320: 64}
GREEDY_LEAD = 0.02  # below this a rounding difference could change a greedy token


def packages():
    names = ("llama-cpp-python", "gguf", "numpy")
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def prompt_tokens(rng, n_vocab, n):
    """The first token, then random ones of which some repeat earlier ones, so that attention has something to find."""
    ids = [n_vocab - 2]
    while len(ids) < n:
        ids.append(int(rng.choice(ids)) if rng.random() < 0.3 else int(rng.integers(0, n_vocab - 2)))
    return ids


def greedy_case(rng, path, n_vocab, n):
    """A prompt whose greedy continuation is the same with either cache type and is never a close call."""
    for _ in range(1000):
        prompt = [int(i) for i in rng.integers(0, n_vocab - 2, GREEDY_PROMPT)]
        tokens, lead = llamacpp.greedy(path, prompt, n, llamacpp.KV_F32)
        other, lead16 = llamacpp.greedy(path, prompt, n, llamacpp.KV_F16)
        lead = min(lead, lead16)
        if tokens == other and lead >= GREEDY_LEAD and len(set(tokens)) > n // 4:
            return {"prompt": prompt, "tokens": tokens, "smallest_lead": round(lead, 4)}
    raise SystemExit(f"{path}: no prompt with a clear greedy continuation")


def model_golden(name, out, seed, scratch):
    """Writes NAME.gguf, NAME.f32 and NAME.json; returns the line for the summary."""
    path = out / f"{name}.gguf"
    tiny_models.write(name, path, seed)
    exact_path = scratch / f"{name}.gguf"
    dequant.expand(path, exact_path)
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    with llamacpp.Model(path, vocab_only=True) as model:
        n_vocab = model.n_vocab
    spec = tiny_models.SPECS[name]
    tokens = prompt_tokens(rng, n_vocab, spec.tokens)

    def run(file, kv):
        return np.concatenate(list(llamacpp.logits(file, tokens, kv)))

    exact = run(exact_path, llamacpp.KV_F32)
    step = spec.step or STEP[spec.tokens]
    kept = list(range(step - 1, spec.tokens, step))
    own = {}
    for label, kv in (("f16", llamacpp.KV_F16), ("f32", llamacpp.KV_F32)):
        kl = llamacpp.kl_rows(exact, run(path, kv))
        own[label] = {"kept": float(kl[kept].mean()), "all": float(kl.mean())}
    golden = {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "logits": f"{name}.f32",
        "n_vocab": n_vocab,
        "tokens": tokens,
        "positions": kept,
        "own_mean_kl": own,
        "greedy": greedy_case(rng, path, n_vocab, GREEDY[spec.tokens]) if spec.default == T.F32 else None,
        "made_with": packages(),
        "seed": seed,
    }
    exact[kept].astype("<f4").tofile(out / f"{name}.f32")
    (out / f"{name}.json").write_text(json.dumps(golden) + "\n")
    p = np.exp(llamacpp.log_softmax(exact))
    return (f"{name:16} logit std {exact.std():5.2f}  top probability {p.max(axis=1).mean():.2f}  "
            f"own KL f16 cache {own['f16']['kept']:.2e} (all {own['f16']['all']:.2e})  f32 cache {own['f32']['kept']:.2e}")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seed", type=int, default=1)
    here = pathlib.Path(__file__).resolve().parent
    args.add_argument("--dir", type=pathlib.Path, default=here.parent / "tests" / "golden")
    args.add_argument("--only", nargs="+", choices=list(tiny_models.SPECS), metavar="NAME")
    a = args.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    (a.dir / "models").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in a.only or [name for name, spec in tiny_models.SPECS.items() if spec.golden]:
            print(model_golden(name, a.dir / "models", a.seed, pathlib.Path(scratch)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
