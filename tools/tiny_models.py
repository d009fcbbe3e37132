#!/usr/bin/env python3
"""Write the small random-weight GGUF models of tests/golden/models.

Each model is wrong about everything but has the structure of a real one: grouped-query attention, both RoPE pairings,
biases, per-head norms, frequency factors, tied and untied outputs, every weight type. Weights are scaled so that
attention is peaked and the next-token distribution is far from flat; a small error in a kernel then shows in the logits.

  tiny_models.py [--seed N] [--only NAME ...] DIR
  tiny_models.py --list
"""
import argparse
import dataclasses
import pathlib
import sys
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

SCORE_STD = 2.5  # spread of attention scores: a few keys take most of the weight
LOGIT_STD = 3.5  # spread of logits: a few tokens take most of the probability
ROUTER_STD = 1.5  # spread of the experts' scores: the best has a few times the weight of the next
TIED_STD = 0.25  # tied embeddings are small, so that a token does not simply predict itself


@dataclasses.dataclass(frozen=True)
class Spec:
    """One model. `types` maps a matrix (short name, or short name and layer as in `q.1`) to its type."""
    arch: str
    embd: int
    ff: int
    heads: int
    kv: int
    head_dim: int
    layers: int
    default: T
    tied: bool = True
    types: dict = dataclasses.field(default_factory=dict)
    base: float = 10000.0
    factors: bool = False
    merges: int = 8
    experts: int = 0
    used: int = 0


SPECS = {
    # Sizes that divide by no SIMD width: 48, 172, 259.
    "llama-f32": Spec("llama", 48, 172, 6, 3, 8, 2, T.F32, tied=False, merges=1),
    "llama3-f32": Spec("llama", 64, 96, 4, 1, 16, 1, T.F32, base=500000.0, factors=True),
    "qwen2-f32": Spec("qwen2", 48, 80, 6, 2, 8, 1, T.F32, base=1e6),
    "qwen3-f32": Spec("qwen3", 48, 80, 4, 2, 16, 1, T.F32, base=1e6),
    "llama3-q4_0": Spec("llama", 128, 160, 4, 2, 32, 2, T.Q4_0, tied=False, base=500000.0, factors=True),
    "llama-q4_k": Spec("llama", 256, 256, 4, 1, 64, 1, T.Q4_K, tied=False,
                       types={"output": T.Q6_K, "v": T.Q6_K, "down": T.Q6_K}),
    "qwen2-q8_0": Spec("qwen2", 128, 160, 4, 2, 32, 1, T.Q8_0, base=1e6),
    "qwen2-q6_k": Spec("qwen2", 256, 256, 8, 2, 32, 1, T.Q6_K, base=1e6, types={"embd": T.Q4_K}),
    "qwen3-f16": Spec("qwen3", 80, 144, 4, 2, 32, 1, T.F16, base=1e6),
    "qwen3-bf16": Spec("qwen3", 80, 144, 4, 2, 32, 1, T.BF16, base=1e6),
    # Experts; 40 rows of one are no whole panels of 16.
    "qwen3moe-f32": Spec("qwen3moe", 48, 40, 4, 2, 16, 2, T.F32, tied=False, base=1e6, experts=8, used=3),
    "qwen3moe-bf16": Spec("qwen3moe", 80, 40, 4, 2, 32, 1, T.BF16, tied=False, base=1e6, experts=12, used=2),
    "qwen3moe-q4_k": Spec("qwen3moe", 256, 256, 4, 1, 64, 1, T.Q4_K, base=1e6, experts=4, used=2,
                          types={"embd": T.Q6_K, "v": T.Q6_K, "up": T.Q8_0, "down": T.Q6_K}),
    # Every type in one file, and different types for the same matrix of two layers.
    "qwen3-mixed": Spec("qwen3", 256, 64, 4, 1, 32, 2, T.Q4_0, base=1e6, types={
        "embd": T.Q6_K,
        "q.0": T.Q4_K, "k.0": T.F32, "v.0": T.F16, "o.0": T.BF16, "gate.0": T.Q4_0, "up.0": T.Q6_K, "down.0": T.Q8_0,
        "q.1": T.Q4_K, "k.1": T.Q8_0, "v.1": T.Q4_0, "o.1": T.Q4_0, "gate.1": T.Q4_0, "up.1": T.Q4_K, "down.1": T.F16}),
}


def pack_scales(sc, m):
    """The 12 bytes in which K-quants keep eight 6-bit scales and eight 6-bit minimums. `sc`, `m`: `[n, 8]`."""
    out = np.empty((sc.shape[0], 12), np.uint8)
    out[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4) << 6
    out[:, 4:8] = m[:, :4] | (m[:, 4:] >> 4) << 6
    out[:, 8:12] = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    return out


def halves(x):
    """f32 -> the bytes of its float16, one row each."""
    return x.astype("<f2").view(np.uint8).reshape(len(x), 2)


def matrix(rng, kind, rows, cols, std):
    """Random bytes of a `rows x cols` matrix of type `kind` whose values have mean 0 and standard deviation `std`."""
    if kind in (T.F32, T.F16, T.BF16):
        x = (rng.standard_normal((rows, cols)) * std).astype(np.float32)
        if kind == T.F16:
            return x.astype(np.float16)
        if kind == T.BF16:
            return (x.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(rows, -1)
        return x
    per_block, _ = gguf.GGML_QUANT_SIZES[kind]
    assert cols % per_block == 0, (kind, cols)
    n = rows * cols // per_block
    wobble = rng.uniform(0.6, 1.4, n)
    sign = rng.choice([-1.0, 1.0], n)
    if kind == T.Q8_0:
        q = np.clip(np.rint(rng.standard_normal((n, 32)) * 40), -127, 127).astype(np.int8).view(np.uint8)
        block = [halves(wobble * std / 40), q]
    elif kind == T.Q4_0:
        block = [halves(sign * wobble * std / 4.6), rng.integers(0, 256, (n, 16), np.uint8)]
    elif kind == T.Q4_K:
        sc = rng.integers(20, 64, (n, 8), np.uint8)
        m = np.clip(sc + rng.integers(-3, 4, (n, 8)), 0, 63).astype(np.uint8)
        d = wobble * std / (4.6 * 42)
        block = [halves(d), halves(7.5 * d), pack_scales(sc, m), rng.integers(0, 256, (n, 128), np.uint8)]
    elif kind == T.Q6_K:
        sc = (rng.integers(30, 128, (n, 16)) * rng.choice([-1, 1], (n, 16))).astype(np.int8).view(np.uint8)
        block = [rng.integers(0, 256, (n, 192), np.uint8), sc, halves(sign * wobble * std / (18.5 * 79))]
    else:
        raise ValueError(f"no generator for {kind.name}")
    return np.concatenate(block, axis=1).reshape(rows, -1)


def vocabulary(n_merges):
    """A byte-level BPE vocabulary: a letter for each byte, some merges, two control tokens."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    letter = {b: chr(b) for b in plain}
    for i, b in enumerate(b for b in range(256) if b not in letter):
        letter[b] = chr(256 + i)
    space = letter[32]
    pairs = [(space, "p"), ("a", "g"), ("ag", "e"), (space + "p", "age"), ("e", "s"), ("o", "r"), ("m", "e"), ("me", "m")]
    tokens = [letter[b] for b in range(256)] + [a + b for a, b in pairs[:n_merges]]
    control = ["<|bos|>", "<|eos|>"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(control)
    return tokens + control, kinds, [f"{a} {b}" for a, b in pairs[:n_merges]]


def rope_factors(spec):
    """Divisors of the RoPE frequencies after the Llama-3 rule, with a context so short that 96 tokens feel them."""
    trained, factor, low, high = 64.0, 8.0, 1.0, 4.0
    freq = spec.base ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
    turns = trained * freq / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write(name, path, seed):
    """Writes the model `name` of SPECS to `path`."""
    s = SPECS[name]
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    w = gguf.GGUFWriter(path, s.arch)
    w.add_name(f"brim test model {name}")
    w.add_block_count(s.layers)
    w.add_context_length(512)
    w.add_embedding_length(s.embd)
    w.add_feed_forward_length(s.ff * max(1, s.used))
    if s.experts:
        w.add_expert_count(s.experts)
        w.add_expert_used_count(s.used)
        w.add_expert_feed_forward_length(s.ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.base)
    w.add_layer_norm_rms_eps(1e-5)
    tokens, kinds, merges = vocabulary(s.merges)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2" if s.arch.startswith("qwen") else "llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(merges)
    w.add_bos_token_id(len(tokens) - 2)
    w.add_eos_token_id(len(tokens) - 1)
    w.add_add_bos_token(s.arch == "llama")
    w.add_vocab_size(len(tokens))

    def put(full, short, layer, rows, cols, std):
        kind = s.types.get(f"{short}.{layer}", s.types.get(short, s.default))
        w.add_tensor(f"{full}.weight", matrix(rng, kind, rows, cols, std), raw_dtype=kind)

    def put_ffn(full, short, layer, rows, cols, std):
        if not s.experts:
            return put(full, short, layer, rows, cols, std)
        kind = s.types.get(f"{short}.{layer}", s.types.get(short, s.default))
        stack = matrix(rng, kind, s.experts * rows, cols, std)
        w.add_tensor(f"{full}_exps.weight", stack.reshape(s.experts, rows, -1), raw_dtype=kind)

    def norm(full, n, mean):
        w.add_tensor(f"{full}.weight", (mean * (1 + 0.2 * rng.standard_normal(n))).astype(np.float32))

    wide, narrow = s.heads * s.head_dim, s.kv * s.head_dim
    unit = s.embd ** -0.5
    per_head = s.arch.startswith("qwen3")
    sharp = SCORE_STD ** 0.5
    put("token_embd", "embd", "", len(tokens), s.embd, TIED_STD if s.tied else 1.0)
    norm("output_norm", s.embd, LOGIT_STD * unit / TIED_STD if s.tied else 1.0)
    if not s.tied:
        put("output", "output", "", len(tokens), s.embd, LOGIT_STD * unit)
    if s.factors:
        w.add_tensor("rope_freqs.weight", rope_factors(s))
    for i in range(s.layers):
        b = f"blk.{i}."
        norm(b + "attn_norm", s.embd, 1.0)
        put(b + "attn_q", "q", i, wide, s.embd, unit if per_head else unit * sharp)
        put(b + "attn_k", "k", i, narrow, s.embd, unit if per_head else unit * sharp)
        put(b + "attn_v", "v", i, narrow, s.embd, unit)
        if s.arch == "qwen2":
            for letter, n in (("q", wide), ("k", narrow), ("v", narrow)):
                w.add_tensor(f"{b}attn_{letter}.bias", (0.5 * rng.standard_normal(n)).astype(np.float32))
        if per_head:
            norm(b + "attn_q_norm", s.head_dim, sharp)
            norm(b + "attn_k_norm", s.head_dim, sharp)
        put(b + "attn_output", "o", i, s.embd, wide, wide ** -0.5)
        norm(b + "ffn_norm", s.embd, 1.0)
        if s.experts:
            # Never quantised by llama.cpp: a small error would choose another expert.
            router = rng.standard_normal((s.experts, s.embd)) * ROUTER_STD * unit
            w.add_tensor(b + "ffn_gate_inp.weight", router.astype(np.float32))
        put_ffn(b + "ffn_gate", "gate", i, s.ff, s.embd, 1.5 * unit)
        put_ffn(b + "ffn_up", "up", i, s.ff, s.embd, 1.5 * unit)
        put_ffn(b + "ffn_down", "down", i, s.embd, s.ff, s.ff ** -0.5)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("dir", nargs="?", type=pathlib.Path)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--only", nargs="+", choices=list(SPECS), metavar="NAME")
    args.add_argument("--list", action="store_true")
    a = args.parse_args()
    if a.list:
        print(*SPECS, sep="\n")
        return 0
    if a.dir is None:
        args.error("DIR is missing")
    a.dir.mkdir(parents=True, exist_ok=True)
    for name in a.only or SPECS:
        path = a.dir / f"{name}.gguf"
        write(name, path, a.seed)
        print(f"{path.stat().st_size:8} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
