#!/usr/bin/env python3
"""Make tests/golden: models with known answers, and quantised blocks with known values.

  goldens.py [--seed N] [--dir tests/golden] [models] [quant]

Answers come from llama.cpp, values from the numpy code of the package `gguf`; neither shares code with brim. The format
is described in tests/golden/README.md.
"""
import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

import dequant
import llamacpp
import tiny_models

TOKENS = 96
STEP = 2  # logits of every second token are kept, the last token included
GREEDY_PROMPT, GREEDY = 16, 32
GREEDY_LEAD = 0.02  # below this a rounding difference could change a greedy token
BLOCKS = 256
# For each type: values in a block, and the byte offsets of its float16 scales.
QUANT = {T.F16: [0], T.BF16: [], T.Q8_0: [0], T.Q4_0: [0], T.Q4_K: [0, 2], T.Q6_K: [208]}
# Zeros of both signs, smallest and largest denormals, smallest normal, one, largest finite.
ODD_HALVES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF], "<u2")
ODD_BFLOATS = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x8080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F], "<u2")


def packages():
    names = ("llama-cpp-python", "gguf", "numpy")
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def prompt_tokens(rng, n_vocab):
    """The first token, then random ones of which some repeat earlier ones, so that attention has something to find."""
    ids = [n_vocab - 2]
    while len(ids) < TOKENS:
        ids.append(int(rng.choice(ids)) if rng.random() < 0.3 else int(rng.integers(0, n_vocab - 2)))
    return ids


def greedy_case(rng, path, n_vocab):
    """A prompt whose greedy continuation is the same with either cache type and is never a close call."""
    for _ in range(200):
        prompt = [int(i) for i in rng.integers(0, n_vocab - 2, GREEDY_PROMPT)]
        tokens, lead = llamacpp.greedy(path, prompt, GREEDY, llamacpp.KV_F32)
        other, lead16 = llamacpp.greedy(path, prompt, GREEDY, llamacpp.KV_F16)
        lead = min(lead, lead16)
        if tokens == other and lead >= GREEDY_LEAD and len(set(tokens)) > GREEDY // 4:
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
    tokens = prompt_tokens(rng, n_vocab)

    def run(file, kv):
        return np.concatenate(list(llamacpp.logits(file, tokens, kv)))

    exact = run(exact_path, llamacpp.KV_F32)
    kept = list(range(STEP - 1, TOKENS, STEP))
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
        "greedy": greedy_case(rng, path, n_vocab) if tiny_models.SPECS[name].default == T.F32 else None,
        "made_with": packages(),
        "seed": seed,
    }
    exact[kept].astype("<f4").tofile(out / f"{name}.f32")
    (out / f"{name}.json").write_text(json.dumps(golden) + "\n")
    p = np.exp(llamacpp.log_softmax(exact))
    return (f"{name:12} logit std {exact.std():5.2f}  top probability {p.max(axis=1).mean():.2f}  "
            f"own KL f16 cache {own['f16']['kept']:.2e} (all {own['f16']['all']:.2e})  f32 cache {own['f32']['kept']:.2e}")


def odd_blocks(rng, kind, scales):
    """BLOCKS random blocks. The first hold extreme scales, later ones scales of every finite size and sign."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    if kind in (T.F16, T.BF16):
        odd, exponent = (ODD_HALVES, 0x7C00) if kind == T.F16 else (ODD_BFLOATS, 0x7F80)
        bits = rng.integers(0, 1 << 16, BLOCKS, np.uint16)
        bits[bits & exponent == exponent] ^= 0x4000  # infinity or NaN -> finite
        bits[:len(odd)] = odd
        return bits.astype("<u2").view(np.uint8).reshape(BLOCKS, size)
    blocks = rng.integers(0, 256, (BLOCKS, size), np.uint8)
    for k, off in enumerate(scales):
        bits = rng.integers(0, 1 << 16, BLOCKS, np.uint16)
        bits[bits & 0x7C00 == 0x7C00] ^= 0x4000
        # Each odd scale meets each other one only if the second list is shifted.
        bits[:24] = np.roll(np.tile(ODD_HALVES, 2), 5 * k)
        blocks[:, off:off + 2] = bits.astype("<u2").view(np.uint8).reshape(BLOCKS, 2)
    if kind == T.Q8_0:
        blocks[24:26, 2:] = np.array([0x80, 0x7F], np.uint8)[:, None]  # all -128, all 127
    if kind == T.Q6_K:
        blocks[24:27, 192:208] = np.array([0x80, 0x7F, 0x00], np.uint8)[:, None]
    if kind == T.Q4_K:
        blocks[24:26, 4:16] = np.array([0x00, 0xFF], np.uint8)[:, None]  # all sub-scales 0, all 63
    return blocks


def quant_goldens(out, seed):
    for kind, scales in QUANT.items():
        rng = np.random.Generator(np.random.PCG64([seed, int(kind)]))
        blocks = odd_blocks(rng, kind, scales)
        values = np.ascontiguousarray(dequantize(blocks, kind), "<f4")
        assert np.isfinite(values).all() and values.size == BLOCKS * gguf.GGML_QUANT_SIZES[kind][0], kind
        blocks.tofile(out / f"{kind.name}.blocks")
        values.tofile(out / f"{kind.name}.f32")
        print(f"{kind.name:5} {blocks.nbytes:7} bytes of blocks, {values.size:6} values")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", nargs="*", metavar="models|quant", help="default: both")
    args.add_argument("--seed", type=int, default=1)
    here = pathlib.Path(__file__).resolve().parent
    args.add_argument("--dir", type=pathlib.Path, default=here.parent / "tests" / "golden")
    args.add_argument("--only", nargs="+", choices=list(tiny_models.SPECS), metavar="NAME")
    a = args.parse_args()
    what = a.what or ["models", "quant"]
    if set(what) - {"models", "quant"}:
        args.error("expected `models` or `quant`")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if "quant" in what:
        (a.dir / "quant").mkdir(parents=True, exist_ok=True)
        quant_goldens(a.dir / "quant", a.seed)
    if "models" in what:
        (a.dir / "models").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            for name in a.only or tiny_models.SPECS:
                print(model_golden(name, a.dir / "models", a.seed, pathlib.Path(scratch)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
