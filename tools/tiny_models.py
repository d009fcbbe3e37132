#!/usr/bin/env python3
"""Write small random-weight GGUF models: those of tests/golden/models, and larger ones for truth.py.

Each model is wrong about everything but has the structure of a real one: grouped-query attention, both RoPE pairings,
biases, norms of Q and K, frequency factors, sliding windows, sinks, experts, short convolutions, states that follow a delta
rule, layers that differ, tied and untied outputs, every weight type.
Weights are scaled so that attention is peaked and the next-token distribution is far from flat; a small error in a kernel
then shows in the logits.

  tiny_models.py DIR [--seed N] [--all] [--only NAME ...]
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

import ggml
import tiny
from tiny.weights import matrix, vocabulary

SCORE_STD = 2.5  # spread of attention scores: a few keys take most of the weight
LOGIT_STD = 3.5  # spread of logits: a few tokens take most of the probability
ROUTER_STD = 1.5  # spread of the experts' scores: the best has a few times the weight of the next
TIED_STD = 0.25  # tied embeddings are small, so that a token does not simply predict itself
TAPS = 4  # of the convolution before a delta rule
FORGOTTEN = 0.001, 0.7  # of the logarithm of a state with each token, by the slowest and the fastest head


@dataclasses.dataclass(frozen=True)
class Spec:
    """One model. `types` maps a matrix (short name, or short name and layer as in `q.1`) to its type. Of `ff`, `heads` and
    `kv` a tuple gives one number for each layer."""
    arch: str
    embd: int
    ff: object
    heads: object
    kv: object
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
    shared: int = 0  # experts that every token meets
    dense: int = 0  # layers without experts
    dense_ff: int = 0
    nextn: int = 0  # further layers that predict tokens ahead
    scale: float = 0.0  # of the experts' weights
    rope_dim: int = 0  # values of a head that are rotated, if not all
    window: int = 0
    pattern: object = None
    base_swa: float = 0.0
    scaling: dict = dataclasses.field(default_factory=dict)  # keys below `rope.scaling`
    qk_norm: bool = False  # in architectures where some models have it
    fused: bool = False  # Q, K and V in one tensor, and their biases
    # Biases of attention and feed-forward layers: all that llama.cpp takes in this architecture, or just these in each layer.
    biased: object = False
    output_bias: bool = False
    arrays: bool = False  # numbers that may differ between layers as arrays, though they do not
    l_cache: int = 0  # taps of a short convolution
    temperature: float = 0.0  # of attention, beyond the original context
    sections: tuple = ()  # of the rotated values: for positions of several dimensions, which text has not
    state: int = 0  # width of a head of the delta rule, which most layers have in the place of attention
    key_heads: int = 0  # of the delta rule, and the multiple of them that are its values
    value_heads: int = 0
    interval: int = 4  # the last of so many layers has attention
    recurrent: tuple = ()  # or this says of each layer whether it has none
    one_projection: bool = False  # of queries, keys, values and gates of the delta rule, as the first files had it
    fused_experts: bool = False  # gate and up in one tensor
    eps: float = 1e-5
    factors_of_products: bool = False  # what published files in NVFP4 have beside each matrix of a layer
    logit_std: float = LOGIT_STD
    golden: bool = True  # kept in tests/golden
    large: bool = False  # some hundred MB
    tokens: int = 96  # of a golden
    step: int = 0  # from one kept position of a golden to the next, where the mean of fewer would be too uncertain


SPECS = {
    # Sizes that divide by no SIMD width: 48, 172, 259.
    "llama-f32": Spec("llama", 48, 172, 6, 3, 8, 2, T.F32, tied=False, merges=1, tokens=320),
    "llama3-f32": Spec("llama", 64, 96, 4, 1, 16, 1, T.F32, base=500000.0, factors=True),
    "qwen2-f32": Spec("qwen2", 48, 80, 6, 2, 8, 1, T.F32, base=1e6, tokens=320),
    "qwen3-f32": Spec("qwen3", 48, 80, 4, 2, 16, 1, T.F32, base=1e6, tokens=320),
    "llama3-q4_0": Spec("llama", 128, 160, 4, 2, 32, 2, T.Q4_0, tied=False, base=500000.0, factors=True),
    "llama-q4_k": Spec("llama", 256, 256, 4, 1, 64, 1, T.Q4_K, tied=False,
                       types={"output": T.Q6_K, "v": T.Q6_K, "down": T.Q6_K}),
    "qwen2-q8_0": Spec("qwen2", 128, 160, 4, 2, 32, 1, T.Q8_0, base=1e6),
    "qwen2-q6_k": Spec("qwen2", 256, 256, 8, 2, 32, 1, T.Q6_K, base=1e6, types={"embd": T.Q4_K}),
    "qwen3-f16": Spec("qwen3", 80, 144, 4, 2, 32, 1, T.F16, base=1e6),
    "qwen3-bf16": Spec("qwen3", 80, 144, 4, 2, 32, 1, T.BF16, base=1e6),
    # Experts; 40 rows of one are not whole panels of 16.
    "qwen3moe-f32": Spec("qwen3moe", 48, 40, 4, 2, 16, 2, T.F32, tied=False, base=1e6, experts=8, used=3,
                         tokens=320),
    "qwen3moe-bf16": Spec("qwen3moe", 80, 40, 4, 2, 32, 1, T.BF16, tied=False, base=1e6, experts=12, used=2),
    "qwen3moe-q4_k": Spec("qwen3moe", 256, 256, 4, 1, 64, 1, T.Q4_K, base=1e6, experts=4, used=2,
                          types={"embd": T.Q6_K, "v": T.Q6_K, "up": T.Q8_0, "down": T.Q6_K}),
    # Every type in one file, and different types for the same matrix of two layers.
    "qwen3-mixed": Spec("qwen3", 256, 64, 4, 1, 32, 2, T.Q4_0, base=1e6, types={
        "embd": T.Q6_K,
        "q.0": T.Q4_K, "k.0": T.F32, "v.0": T.F16, "o.0": T.BF16, "gate.0": T.Q4_0, "up.0": T.Q6_K, "down.0": T.Q8_0,
        "q.1": T.Q4_K, "k.1": T.Q8_0, "v.1": T.Q4_0, "o.1": T.Q4_0, "gate.1": T.Q4_0, "up.1": T.Q4_K, "down.1": T.F16}),
    # All others.
    "qwen3-all": Spec("qwen3", 256, 256, 4, 1, 16, 5, T.Q4_0, base=1e6, types={
        "embd": T.Q5_K,
        "q.0": T.Q4_1, "k.0": T.Q5_0, "v.0": T.Q5_1, "o.0": T.IQ4_NL, "gate.0": T.Q2_K, "up.0": T.Q3_K, "down.0": T.Q5_K,
        "q.1": T.IQ1_S, "k.1": T.IQ1_M, "v.1": T.IQ4_XS, "o.1": T.MXFP4, "gate.1": T.IQ2_XXS, "up.1": T.IQ2_XS,
        "down.1": T.IQ2_S, "q.2": T.IQ3_XXS, "k.2": T.IQ3_S, "v.2": T.TQ2_0, "o.2": T.NVFP4, "gate.2": T.TQ1_0,
        "up.2": T.TQ2_0, "down.2": T.IQ4_XS, "q.3": T.Q1_0, "k.3": T.Q2_0, "v.3": T.Q5_K, "o.3": T.Q4_1, "gate.3": T.IQ3_S,
        "up.3": T.IQ1_S, "down.3": T.IQ3_XXS, "q.4": T.NVFP4, "k.4": T.MXFP4, "v.4": T.Q6_K, "o.4": T.Q5_1,
        "gate.4": T.IQ4_NL, "up.4": T.Q5_0, "down.4": T.IQ1_M}),
    # Other architectures, over so many tokens that windows are crossed many times and a ring begins anew.
    "mixtral-f32": Spec("llama", 32, 24, 4, 2, 8, 2, T.F32, tied=False, experts=4, used=2, tokens=320),
    "llama-linear-f32": Spec("llama", 32, 48, 4, 2, 8, 1, T.F32, scaling={"type": "linear", "factor": 4.0}, tokens=320),
    "llama-biased-f32": Spec("llama", 32, 48, 4, 2, 8, 2, T.F32, biased=True, tokens=320),
    "qwen2-yarn-f32": Spec("qwen2", 32, 48, 4, 2, 8, 1, T.F32, base=1e6, tokens=320,
                           scaling={"type": "yarn", "factor": 4.0, "original_context_length": 128}),
    "minimax-m2-f32": Spec("minimax-m2", 32, 16, 4, 2, 16, 2, T.F32, tied=False, base=5e6, experts=5, used=3, rope_dim=8,
                           tokens=320),
    "gpt-oss-f32": Spec("gpt-oss", 32, 16, 4, 2, 16, 2, T.F32, tied=False, base=150000.0, experts=5, used=2, window=32,
                        scaling={"type": "yarn", "factor": 8.0, "original_context_length": 64}, tokens=320),
    "glm4moe-f32": Spec("glm4moe", 32, 16, 4, 2, 16, 2, T.F32, tied=False, base=1e6, experts=5, used=2, shared=1, dense=1,
                        dense_ff=24, nextn=1, scale=1.5, rope_dim=8, tokens=320),
    "gemma3-f32": Spec("gemma3", 32, 48, 4, 2, 16, 3, T.F32, base=1e6, window=32, pattern=2,
                       scaling={"type": "linear", "factor": 8.0}, tokens=320),
    "phi3-f32": Spec("phi3", 32, 40, 4, 2, 8, 2, T.F32, tied=False, window=24, tokens=320,
                     scaling={"original_context_length": 128, "attn_factor": 1.19}),
    # Too large to be kept: for truth.py alone.
    "gemma3-six-f32": Spec("gemma3", 64, 96, 4, 1, 32, 8, T.F32, base=1e6, window=100, base_swa=20000.0, golden=False),
    "gemma3-array-f32": Spec("gemma3", 64, 96, 4, 1, 32, 4, T.F32, base=1e6, window=33, golden=False,
                             pattern=[True, False, False, True]),
    "gemma3-full-f32": Spec("gemma3", 64, 96, 4, 1, 32, 2, T.F32, base=1e6, golden=False),
    "glm4moe-large-f32": Spec("glm4moe", 64, 48, 4, 1, 32, 3, T.F32, tied=False, base=1e6, experts=16, used=4, shared=2,
                              dense=2, dense_ff=80, qk_norm=True, rope_dim=16, golden=False),
    "phi3-short-f32": Spec("phi3", 48, 80, 4, 4, 12, 2, T.F32, golden=False,
                           scaling={"original_context_length": 4096, "attn_factor": 1.19}),
    "phi3-plain-f32": Spec("phi3", 48, 80, 4, 4, 12, 2, T.F32, tied=False, golden=False),
}


# What differs between layers, and what else keeps architectures apart that are much like those above.
SPECS |= {
    # Two of five layers have attention, with groups of five and of one. A window, where there is one, is for all of them.
    "lfm2-f32": Spec("lfm2", 40, 60, 5, (0, 0, 1, 0, 5), 8, 5, T.F32, base=1e6, l_cache=3, tokens=320),
    "lfm2-window-f32": Spec("lfm2", 40, 52, 2, (1, 0, 0, 2), 20, 4, T.F32, tied=False, base=1e6, l_cache=4, window=24,
                            biased=True, tokens=320),
    "lfm2-q8_0": Spec("lfm2", 96, 160, 3, (0, 1, 0), 32, 3, T.Q8_0, base=1e6, l_cache=3),
    "lfm2moe-f32": Spec("lfm2moe", 40, 24, 4, (0, 2, 0, 4), 10, 4, T.F32, base=1e6, l_cache=3, experts=5, used=2, dense=1,
                        dense_ff=52, tokens=320),
    "mistral3-f32": Spec("mistral3", 40, 72, 4, 2, 16, 2, T.F32, tied=False, base=1e6, temperature=0.4, tokens=320,
                         scaling={"type": "yarn", "factor": 8.0, "original_context_length": 64, "yarn_beta_fast": 24.0,
                                  "yarn_beta_slow": 2.0, "yarn_log_multiplier": 1.0}),
    # Neither the temperature nor the multiplier; a head is as wide as the stream has for it.
    "mistral3-biased-f32": Spec("mistral3", 36, 44, 3, 1, 12, 2, T.F32, biased=True, tokens=320,
                                scaling={"type": "yarn", "factor": 4.0, "original_context_length": 128,
                                         "attn_factor": 0.9}),
    # The fourth layer does not know positions.
    "smollm3-f32": Spec("smollm3", 36, 52, 3, 1, 12, 5, T.F32, base=5e6, tokens=320),
    "smollm3-biased-f32": Spec("smollm3", 32, 40, 4, 2, 8, 4, T.F32, tied=False, base=5e6, biased=True, tokens=320),
    "seed_oss-f32": Spec("seed_oss", 40, 60, 4, 2, 20, 2, T.F32, tied=False, base=1e7, tokens=320),
    "seed_oss-plain-f32": Spec("seed_oss", 32, 44, 2, 1, 16, 1, T.F32, biased=("",), tokens=320),
    "olmo2-f32": Spec("olmo2", 48, 68, 4, 2, 12, 2, T.F32, tied=False, base=500000.0, tokens=320),
    # OLMo 3: windows, whose rotation is not scaled.
    "olmo2-window-f32": Spec("olmo2", 40, 44, 2, 2, 20, 3, T.F32, tied=False, base=500000.0, biased=True, window=32,
                             pattern=[True, False, True], tokens=320,
                             scaling={"type": "yarn", "factor": 4.0, "original_context_length": 128}),
    # A head of which so few values are rotated that they are no whole vector.
    "glm4-f32": Spec("glm4", 40, 56, 4, 2, 20, 2, T.F32, tied=False, rope_dim=10, biased=True, tokens=320),
    "glm4-nextn-f32": Spec("glm4", 32, 44, 4, 1, 16, 2, T.F32, rope_dim=8, nextn=1, tokens=320),
    "glm4-sections-f32": Spec("glm4", 32, 44, 4, 2, 16, 1, T.F32, tied=False, rope_dim=8, sections=(1, 1, 2, 0), tokens=320),
    "glm4-q4_k": Spec("glm4", 256, 256, 4, 1, 64, 1, T.Q4_K, rope_dim=32, types={"embd": T.Q6_K, "v": T.Q6_K, "down": T.Q6_K}),
    "openelm-f32": Spec("openelm", 44, (40, 60, 52, 84), (2, 3, 4, 6), (1, 3, 2, 2), 12, 4, T.F32, tokens=320),
    # Attention, a matrix in its place, neither, fewer heads, a layer that does nothing, attention in one group.
    "deci-f32": Spec("deci", 36, (52, 40, 60, 32, 0, 44), (3, 3, 0, 2, 0, 3), (3, 0, 0, 1, 0, 1), 12, 6, T.F32, tied=False,
                     base=500000.0, factors=True, tokens=320),
    "deci-biased-f32": Spec("deci", 32, (40, 48), (4, 2), (1, 2), 8, 2, T.F32, biased=True, tokens=320),
    # Biases where published models of these architectures have none, or not all of them.
    "llama-partly-biased-f32": Spec("llama", 32, 48, 4, 2, 8, 3, T.F32, arrays=True, tokens=320,
                                    biased=("k down", "q v output gate", "up")),
    "qwen2-plain-f32": Spec("qwen2", 32, 48, 4, 2, 8, 2, T.F32, tied=False, base=1e6, biased=("", "v"), output_bias=True,
                            tokens=320),
    "qwen3-biased-f32": Spec("qwen3", 32, 48, 4, 2, 16, 1, T.F32, base=1e6, arrays=True, biased=True, tokens=320),
    "qwen3moe-biased-f32": Spec("qwen3moe", 32, 24, 4, 2, 16, 1, T.F32, tied=False, base=1e6, experts=4, used=2, biased=True,
                                tokens=320),
    "phi3-biased-f32": Spec("phi3", 32, 40, 4, 2, 8, 2, T.F32, biased=("qkv", "q k v"), tokens=320),
    "gemma3-biased-f32": Spec("gemma3", 32, 56, 4, 2, 12, 2, T.F32, base=1e6, window=32, pattern=2, biased=True),
    "minimax-m2-biased-f32": Spec("minimax-m2", 32, 16, 4, 2, 16, 1, T.F32, tied=False, base=5e6, experts=5, used=2, rope_dim=8,
                                  biased=True, tokens=320),
    "glm4moe-plain-f32": Spec("glm4moe", 32, 16, 4, 2, 16, 2, T.F32, tied=False, base=1e6, experts=4, used=2, shared=1,
                              rope_dim=8, biased=("", "k"), tokens=320),
    "gpt-oss-plain-f32": Spec("gpt-oss", 32, 16, 4, 2, 16, 1, T.F32, tied=False, base=150000.0, experts=4, used=2, window=32,
                              biased=("output",), tokens=320),
}


# Attention with a gate in some layers, a delta rule in the others. In qwen35 and qwen35moe a head of values has the keys of the
# head that is its number modulo theirs; in qwen3next the heads with the same keys stand side by side.
SPECS |= {
    "qwen35-f32": Spec("qwen35", 32, 48, 4, 2, 16, 4, T.F32, base=1e7, rope_dim=8, state=16, key_heads=2, value_heads=6,
                       tokens=320),
    # As many heads of values as of keys; an epsilon that is felt; the array is right where the interval is not.
    "qwen35-nextn-f32": Spec("qwen35", 40, 56, 2, 1, 32, 3, T.F32, tied=False, base=1e7, rope_dim=16, state=32, key_heads=2,
                             value_heads=2, recurrent=(True, False, True), nextn=1, eps=0.1, tokens=320),
    "qwen35moe-f32": Spec("qwen35moe", 32, 20, 3, 1, 16, 4, T.F32, tied=False, base=1e7, rope_dim=8, experts=6, used=2,
                          shared=1, state=16, key_heads=2, value_heads=4, tokens=320),
    "qwen35moe-fused-f32": Spec("qwen35moe", 32, 12, 2, 2, 32, 2, T.F32, base=1e7, rope_dim=8, experts=5, used=3, shared=2,
                                state=16, key_heads=1, value_heads=3, interval=2, nextn=1, fused_experts=True, tokens=320),
    "qwen3next-f32": Spec("qwen3next", 32, 20, 4, 2, 16, 4, T.F32, tied=False, base=1e7, rope_dim=8, experts=5, used=2,
                          shared=2, state=16, key_heads=2, value_heads=4, tokens=320),
    "qwen3next-one-f32": Spec("qwen3next", 32, 16, 2, 1, 32, 2, T.F32, tied=False, base=1e7, rope_dim=16, experts=4, used=2,
                              shared=1, state=16, key_heads=2, value_heads=6, interval=2, one_projection=True,
                              tokens=320),
}


# One for each type, all of whose matrices have it: as wide as its blocks allow. Many tokens share the probability, so that a
# distance is the mean over many of them and two equally true engines have much the same. Those of the types that a model
# above has are not kept.
TYPES = [T[name] for name in ggml.IDS]
KEPT_ABOVE = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q8_0, T.Q4_K, T.Q6_K]
for _kind in TYPES:
    _width = max(128, gguf.GGML_QUANT_SIZES[_kind][0])
    SPECS[f"type-{_kind.name.lower()}"] = Spec(
        "llama", _width, _width, _width // 32, 1, 32, 1, _kind, logit_std=1.5, golden=_kind not in KEPT_ABOVE)

# gpt-oss as it is published: experts in MXFP4, all else in Q8_0.
SPECS["gpt-oss-mxfp4"] = dataclasses.replace(
    SPECS["gpt-oss-f32"], embd=64, ff=64, default=T.Q8_0, types=dict.fromkeys(("gate", "up", "down"), T.MXFP4), step=4)

# NVFP4 as it is published, with a factor for each matrix and each expert; and a fused Q, K and V, as converters can be told.
SPECS["qwen3moe-nvfp4"] = Spec("qwen3moe", 64, 64, 4, 2, 16, 1, T.NVFP4, tied=False, base=1e6, experts=4, used=2,
                               types={"embd": T.BF16, "output": T.BF16}, factors_of_products=True)
SPECS["llama-fused-nvfp4"] = Spec("llama", 128, 128, 4, 2, 32, 1, T.NVFP4, types={"embd": T.BF16}, fused=True,
                                  factors_of_products=True)


# Architectures that have a file of their own.
SPECS |= tiny.MODELS


def recipe(kind, spec):
    """Types in the manner of llama.cpp's files of these names."""
    if kind == "q4_k_m":
        return T.Q4_K, {"output": T.Q6_K, "embd": T.Q6_K if spec.tied else T.Q4_K, "v": T.Q6_K, "down": T.Q6_K,
                        "qkv.0": T.Q6_K}
    if kind == "iq4_xs":
        return T.IQ4_XS, {"output": T.Q6_K, "embd": T.Q6_K if spec.tied else T.IQ4_XS, "v": T.Q5_K, "down.0": T.Q5_K,
                          "qkv": T.Q5_K}
    if kind == "mxfp4":
        return T.Q8_0, dict.fromkeys(("gate", "up", "gate_up", "down"), T.MXFP4)
    return T[kind.upper()], {}


def quantised(spec, kind):
    """The same at widths that hold whole blocks."""
    default, types = recipe(kind, spec)
    kv = tuple(2 if n else 0 for n in spec.kv) if isinstance(spec.kv, tuple) else 2
    # Of states and experts each makes more of an error in a layer before it: two layers are enough.
    layers, interval = (2, 2) if spec.state and spec.experts else (max(2, spec.layers), spec.interval)
    return dataclasses.replace(
        spec, embd=256, ff=256, heads=4, kv=kv, head_dim=64, layers=layers, interval=interval, default=default, types=types,
        rope_dim=32 if spec.rope_dim else 0, window=spec.window and 64, dense_ff=spec.dense_ff and 512, golden=False,
        state=spec.state and 64, key_heads=spec.state and 2, value_heads=spec.state and 4)


for _name in ["llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "minimax-m2", "gpt-oss", "glm4moe", "gemma3", "phi3",
              "lfm2", "lfm2moe", "mistral3", "smollm3", "seed_oss", "olmo2", "glm4", "qwen35", "qwen35moe", "qwen3next"]:
    for _kind in ("q8_0", "q4_k_m", "iq4_xs"):
        SPECS[f"{_name}-wide-{_kind}"] = quantised(SPECS[f"{_name}-f32"], _kind)
for _name, _spec in {"gpt-oss": "gpt-oss-f32", "qwen35": "qwen35-f32", "qwen35moe": "qwen35moe-fused-f32", "qwen3next": "qwen3next-f32"}.items():
    SPECS[f"{_name}-wide-mxfp4"] = quantised(SPECS[_spec], "mxfp4")


# Layers of the sizes that published models have, a few of them.
SPECS |= {name: dataclasses.replace(spec, golden=False, large=True) for name, spec in {
    "gemma3-1b-shape": Spec("gemma3", 1152, 6912, 4, 1, 256, 7, T.Q8_0, base=1e6, window=512),
    "gpt-oss-20b-shape": Spec("gpt-oss", 2880, 2880, 64, 8, 64, 2, T.Q8_0, tied=False, base=150000.0, experts=8, used=4,
                              window=128, scaling={"type": "yarn", "factor": 32.0, "original_context_length": 4096}),
    "glm-4.5-air-shape": Spec("glm4moe", 4096, 1408, 96, 8, 128, 2, T.Q8_0, tied=False, base=1e6, experts=12, used=8,
                              shared=1, dense=1, dense_ff=10944, rope_dim=64, scale=1.0),
    "minimax-m2-shape": Spec("minimax-m2", 3072, 1536, 48, 8, 128, 2, T.Q8_0, tied=False, base=5e6, experts=12, used=8,
                             rope_dim=64),
    "qwen3.5-4b-shape": Spec("qwen35", 2560, 9216, 16, 4, 256, 4, T.Q8_0, base=1e7, rope_dim=64, state=128, key_heads=16,
                             value_heads=32),
    "qwen3.6-35b-shape": Spec("qwen35moe", 2048, 512, 16, 2, 256, 4, T.Q8_0, tied=False, base=1e7, experts=16, used=8,
                              shared=1, rope_dim=64, state=128, key_heads=16, value_heads=32),
    "qwen3-next-80b-shape": Spec("qwen3next", 2048, 512, 16, 2, 256, 4, T.Q8_0, tied=False, base=1e7, experts=16, used=10,
                                 shared=1, rope_dim=64, state=128, key_heads=16, value_heads=32),
    "phi3-mini-shape": Spec("phi3", 3072, 8192, 32, 32, 96, 2, T.Q8_0, tied=False),
}.items()}


def rope_factors(spec):
    """Divisors of the RoPE frequencies after the Llama-3 rule, with a context so short that 96 tokens feel them."""
    trained, factor, low, high = 64.0, 8.0, 1.0, 4.0
    freq = spec.base ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
    turns = trained * freq / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


# Biases that published models of an architecture have, and those that llama.cpp takes.
BIASES = {"qwen2": "q k v", "seed_oss": "q k v", "glm4moe": "q k v", "gpt-oss": "q k v output"}
BIASES_TAKEN = dict.fromkeys(("llama", "mistral3", "deci"), "q k v output gate up down")


def biases(s, layer):
    """Names of the biases of `layer`."""
    if isinstance(s.biased, tuple):
        return s.biased[layer].split()
    if s.fused:
        return ["qkv"]
    usual = BIASES.get(s.arch, "")
    return (BIASES_TAKEN.get(s.arch, usual or "q k v") if s.biased else usual).split()


def of_layer(number, layer):
    """What is given once, or for each layer."""
    return number[min(layer, len(number) - 1)] if isinstance(number, tuple) else number


def recurrent(s, layer):
    """Whether `layer` has a delta rule in the place of attention."""
    if not s.state or layer >= s.layers:
        return False
    return s.recurrent[layer] if s.recurrent else (layer + 1) % s.interval != 0


def header(w, s):
    """What only some architectures have."""
    if s.state:
        w.add_ssm_conv_kernel(TAPS)
        w.add_ssm_state_size(s.state)
        w.add_ssm_group_count(s.key_heads)
        w.add_ssm_time_step_rank(s.value_heads)
        w.add_ssm_inner_size(s.value_heads * s.state)
        w.add_full_attention_interval(s.interval)
    if s.recurrent:
        w.add_array(f"{s.arch}.attention.recurrent_layers", [recurrent(s, i) for i in range(s.layers + s.nextn)])
    if s.arch.startswith("qwen35"):
        # Interleaved, and all of the pairs: 11, 11 and 10 of 32.
        w.add_rope_dimension_sections([(s.rope_dim // 2 + 2 - i) // 3 for i in range(3)] + [0])
    if s.l_cache:
        w.add_shortconv_l_cache(s.l_cache)
    if s.temperature:
        w.add_float32(f"{s.arch}.attention.temperature_scale", s.temperature)
    if s.sections:
        w.add_rope_dimension_sections(s.sections)
    if s.arch in ("minimax-m2", "glm4moe", "lfm2moe"):
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if s.arch == "glm4moe":
        w.add_expert_shared_count(s.shared)
    if s.arch in ("glm4moe", "lfm2moe"):
        w.add_leading_dense_block_count(s.dense)
    if s.arch == "glm4moe":
        w.add_expert_weights_norm(True)
        w.add_expert_weights_scale(s.scale or 1.0)
    if s.nextn or s.arch == "glm4moe":
        w.add_nextn_predict_layers(s.nextn)
    if s.window:
        w.add_sliding_window(s.window)
    if s.pattern:
        w.add_sliding_window_pattern(s.pattern)
    if s.base_swa:
        w.add_float32(f"{s.arch}.rope.freq_base_swa", s.base_swa)
    for key, value in s.scaling.items():
        add = {str: w.add_string, int: w.add_uint32, float: w.add_float32}[type(value)]
        add(f"{s.arch}.rope.scaling.{key}", value)


def write(name, path, seed):
    """Writes the model `name` of SPECS to `path`."""
    s = SPECS[name]
    if isinstance(s, tiny.Model):
        return tiny.write(name, s, path, seed)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    w = gguf.GGUFWriter(path, s.arch)
    # llama.cpp expects tokens of a model that is named after its vocabulary.
    w.add_name(f"brim test model {name}".replace("phi3", "phi-three"))
    w.add_block_count(s.layers + s.nextn)
    w.add_context_length(512)
    w.add_embedding_length(s.embd)
    per_layer = lambda n: [n] * (s.layers + s.nextn) if s.arrays and isinstance(n, int) else n
    if s.arch != "qwen35moe":
        w.add_feed_forward_length(per_layer(s.dense_ff or (s.ff * max(1, s.used) if s.arch == "qwen3moe" else s.ff)))
    if s.experts:
        w.add_expert_count(s.experts)
        w.add_expert_used_count(s.used)
        if s.arch != "llama":
            w.add_expert_feed_forward_length(s.ff)
        if s.state:
            w.add_expert_shared_feed_forward_length(s.shared * s.ff)
    header(w, s)
    w.add_head_count(per_layer(s.heads))
    w.add_head_count_kv(per_layer(s.kv))
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.rope_dim or s.head_dim)
    w.add_rope_freq_base(s.base)
    w.add_layer_norm_rms_eps(s.eps)
    tokens, kinds, merges = vocabulary(s.merges)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen35" if s.arch.startswith("qwen35") else "qwen2" if s.arch.startswith("qwen") else "llama-bpe")
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
        if full.startswith("blk.") or full == "output" and kind == T.NVFP4:
            put_factors(full, 1)

    def put_factors(full, n):
        if s.factors_of_products:
            w.add_tensor(f"{full}.scale", rng.uniform(0.4, 1.6, n).astype(np.float32))
            w.add_tensor(f"{full}.input_scale", rng.uniform(0.001, 0.01, n).astype(np.float32))

    def put_stack(full, short, layer, rows, cols, std):
        kind = s.types.get(f"{short}.{layer}", s.types.get(short, s.default))
        stack = matrix(rng, kind, s.experts * rows, cols, std)
        w.add_tensor(f"{full}_exps.weight", stack.reshape(s.experts, rows, -1), raw_dtype=kind)
        put_factors(f"{full}_exps", s.experts)

    def vector(full, shape, std, mean=0.0):
        w.add_tensor(full, (mean + std * rng.standard_normal(shape)).astype(np.float32))

    def norm(full, n, mean):
        w.add_tensor(f"{full}.weight", (mean * (1 + 0.2 * rng.standard_normal(n))).astype(np.float32))

    def put_ffn(b, i, suffix, ff):
        put(f"{b}ffn_gate{suffix}", "gate", i, ff, s.embd, 1.5 * unit)
        put(f"{b}ffn_up{suffix}", "up", i, ff, s.embd, 1.5 * unit)
        put(f"{b}ffn_down{suffix}", "down", i, s.embd, ff, ff ** -0.5)

    def put_experts(b, i):
        # The router is never quantised by llama.cpp: a small error would choose another expert.
        router = rng.standard_normal((s.experts, s.embd)) * ROUTER_STD * unit
        w.add_tensor(b + "ffn_gate_inp.weight", router.astype(np.float32))
        # Wide enough that what gpt-oss clamps is clamped.
        wide, narrow = (4.0, 1 / 8) if s.arch == "gpt-oss" else (1.5, 1.0)
        if s.fused_experts:
            put_stack(b + "ffn_gate_up", "gate_up", i, 2 * s.ff, s.embd, wide * unit)
        else:
            put_stack(b + "ffn_gate", "gate", i, s.ff, s.embd, wide * unit)
            put_stack(b + "ffn_up", "up", i, s.ff, s.embd, wide * unit)
        put_stack(b + "ffn_down", "down", i, s.embd, s.ff, narrow * s.ff ** -0.5)
        if s.arch in ("minimax-m2", "glm4moe", "lfm2moe"):
            vector(b + "exp_probs_b.bias", s.experts, 0.3)
        if s.arch == "gpt-oss":
            vector(b + "ffn_gate_inp.bias", s.experts, 0.5)
            vector(b + "ffn_gate_exps.bias", (s.experts, s.ff), 0.5)
            vector(b + "ffn_up_exps.bias", (s.experts, s.ff), 0.5)
            vector(b + "ffn_down_exps.bias", (s.experts, s.embd), 0.2)
        if s.shared:
            put_ffn(b, i, "_shexp", s.shared * s.ff)
        if s.state:
            vector(b + "ffn_gate_inp_shexp.weight", s.embd, 1.5 * unit)

    def put_attention(b, i):
        heads, kv = of_layer(s.heads, i), of_layer(s.kv, i)
        wide, narrow = heads * s.head_dim, kv * s.head_dim
        has = biases(s, i)
        if s.arch in ("phi3", "openelm") or s.fused:
            put(b + "attn_qkv", "v", i, wide + 2 * narrow, s.embd, unit * sharp)
        else:
            # Rows of a head and of its gate in turn.
            put(b + "attn_q", "q", i, 2 * wide if s.state else wide, s.embd, unit if normed else unit * sharp)
            put(b + "attn_k", "k", i, narrow, s.embd, unit if normed else unit * sharp)
            put(b + "attn_v", "v", i, narrow, s.embd, unit)
        for name, n in (("qkv", wide + 2 * narrow), ("q", wide), ("k", narrow), ("v", narrow)):
            if name in has:
                vector(f"{b}attn_{name}.bias", n, 0.5)
        if normed:
            norm(b + "attn_q_norm", s.head_dim if per_head else wide, sharp)
            norm(b + "attn_k_norm", s.head_dim if per_head else narrow, sharp)
        put(b + "attn_output", "o", i, s.embd, wide, (2 if s.state else 1) * wide ** -0.5)
        if "output" in has:
            vector(b + "attn_output.bias", s.embd, 0.2)
        if s.arch == "gpt-oss":
            vector(b + "attn_sinks.weight", heads, 1.5, mean=1.0)

    def put_convolution(b, i):
        put(b + "shortconv.in_proj", "in", i, 3 * s.embd, s.embd, unit)
        # What lies further back counts as much: none of the taps is lost in rounding.
        w.add_tensor(b + "shortconv.conv.weight", (rng.standard_normal((s.embd, s.l_cache))).astype(np.float32))
        put(b + "shortconv.out_proj", "out", i, s.embd, s.embd, unit)

    def put_delta_rule(b, i):
        keys, values = s.key_heads * s.state, s.value_heads * s.state
        if s.one_projection:
            put(b + "ssm_in", "qkv", i, 2 * keys + 2 * values, s.embd, unit)
        else:
            put(b + "attn_qkv", "qkv", i, 2 * keys + values, s.embd, unit)
            put(b + "attn_gate", "z", i, values, s.embd, unit)
        vector(b + "ssm_conv1d.weight", (2 * keys + values, TAPS), 0.6)
        if s.arch == "qwen3next":
            put(b + "ssm_ba", "ba", i, 2 * s.value_heads, s.embd, unit)
        else:
            put(b + "ssm_beta", "beta", i, s.value_heads, s.embd, unit)
            put(b + "ssm_alpha", "alpha", i, s.value_heads, s.embd, unit)
        forgotten = rng.permutation(np.geomspace(*FORGOTTEN, s.value_heads))
        a = rng.uniform(0.3, 4.0, s.value_heads)
        w.add_tensor(b + "ssm_a", (-a).astype(np.float32))
        w.add_tensor(b + "ssm_dt.bias", np.log(np.expm1(forgotten / a)).astype(np.float32))
        # What is read of a state is so small that a large epsilon takes most of it.
        norm(b + "ssm_norm", s.state, (1 + 200 * s.eps) ** 0.5)
        put(b + "ssm_out", "out", i, s.embd, values, values ** -0.5)

    unit = s.embd ** -0.5
    per_head = s.arch.startswith("qwen3") or s.arch in ("gemma3", "lfm2", "lfm2moe", "openelm") or s.qk_norm
    normed = per_head or s.arch in ("minimax-m2", "olmo2")
    sharp = SCORE_STD ** 0.5
    # Gemma's embedding is scaled by sqrt(embd).
    tied = 0.7 * unit if s.arch == "gemma3" else TIED_STD
    put("token_embd", "embd", "", len(tokens), s.embd, tied if s.tied else 1.0)
    norm("token_embd_norm" if s.l_cache else "output_norm", s.embd, s.logit_std * unit / tied if s.tied else 1.0)
    if not s.tied:
        put("output", "output", "", len(tokens), s.embd, s.logit_std * unit)
    if s.output_bias:
        vector("output.bias", len(tokens), 0.5)
    if s.factors:
        w.add_tensor("rope_freqs.weight", rope_factors(s))
    if s.arch == "phi3" and s.scaling:
        half = s.head_dim // 2
        w.add_tensor("rope_factors_long.weight", np.linspace(1.1, 6.0, half).astype(np.float32))
        w.add_tensor("rope_factors_short.weight", np.linspace(1.0, 1.4, half).astype(np.float32))
    for i in range(s.layers + s.nextn):
        b = f"blk.{i}."
        heads, kv, ff = of_layer(s.heads, i), of_layer(s.kv, i), of_layer(s.ff, i)
        if s.arch != "olmo2" and heads:
            norm(b + "attn_norm", s.embd, 1.0)
        if recurrent(s, i):
            put_delta_rule(b, i)
        elif kv:
            put_attention(b, i)
        elif s.l_cache:
            put_convolution(b, i)
        elif heads:
            put(b + "attn_output", "o", i, s.embd, s.embd, unit)
        if s.arch in ("gemma3", "olmo2", "glm4"):
            norm(b + "post_attention_norm", s.embd, 1.0)
            norm(b + "post_ffw_norm", s.embd, 1.0)
        if s.arch != "olmo2" and ff:
            late = s.state or s.arch in ("gpt-oss", "glm4moe", "seed_oss")
            norm(b + ("post_attention_norm" if late else "ffn_norm"), s.embd, 1.0)
        if s.arch in ("phi3", "glm4"):
            put(b + "ffn_up", "up", i, 2 * ff, s.embd, 1.5 * unit)
            put(b + "ffn_down", "down", i, s.embd, ff, ff ** -0.5)
        elif s.experts and i >= s.dense:
            put_experts(b, i)
        elif ff:
            put_ffn(b, i, "", s.dense_ff or ff)
        for name, n in (("gate", ff), ("up", ff), ("down", s.embd)):
            if name in biases(s, i):
                vector(f"{b}ffn_{name}.bias", n, 0.4)
        if i >= s.layers:
            put(b + "nextn.eh_proj", "eh", i, s.embd, 2 * s.embd, unit)
            for name in ("enorm", "hnorm", "shared_head_norm"):
                norm(f"{b}nextn.{name}", s.embd, 1.0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("dir", nargs="?", type=pathlib.Path)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--only", nargs="+", choices=list(SPECS), metavar="NAME")
    args.add_argument("--all", action="store_true", help="those too large for tests/golden as well")
    args.add_argument("--list", action="store_true")
    a = args.parse_args()
    if a.list:
        print(*SPECS, sep="\n")
        return 0
    if a.dir is None:
        args.error("DIR is missing")
    a.dir.mkdir(parents=True, exist_ok=True)
    for name in a.only or [name for name, spec in SPECS.items() if spec.golden or a.all and not spec.large]:
        path = a.dir / f"{name}.gguf"
        write(name, path, a.seed)
        print(f"{path.stat().st_size:8} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
