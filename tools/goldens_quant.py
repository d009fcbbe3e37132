#!/usr/bin/env python3
"""Make tests/golden/quant.json: what 10,000 blocks of every weight type decode to, as digests.

  goldens_quant.py [--out tests/golden/quant.json]

The values come from the numpy code of the package `gguf` and from ggml's own C (the library inside llama-cpp-python); where
both know a type they must agree in every bit. Neither shares code with brim. Blocks, digests and the format of the file
are described in tests/golden/README.md; a test makes the same blocks again.
"""
import argparse
import importlib.metadata
import json
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from ggml import GGML, IDS

BLOCKS, PER_DIGEST, SHOWN = 10_000, 1_000, 28
# Byte offsets of the f16 fields of a block. The odd ones: floats, and the f16 in pieces of IQ1_M.
F16_FIELDS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q1_0": [0], "Q2_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ1_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ4_NL": [0], "IQ4_XS": [0],
    "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [], "F16": [0],
}
BF16_FIELDS = {"BF16": [0], "F32": [2]}  # the upper half of an f32 is a bfloat16
IQ1_M_NIBBLES = [[99, 103, 107, 111]]
# Zeros of both signs, smallest and largest denormals, smallest normal, one, largest finite.
ODD = {
    "f16": [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF],
    "bf16": [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x8080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F],
}
EXPONENT = {"f16": 0x7C00, "bf16": 0x7F80}
FILLS = [0x00, 0xFF, 0x80, 0x7F]
FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def noise(seed, n_bytes):
    """Bytes of SplitMix64, each number lowest byte first."""
    i = np.arange(1, (n_bytes + 7) // 8 + 1, dtype=np.uint64)
    z = np.uint64(seed) + i * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (z ^ z >> np.uint64(31)).astype("<u8").view(np.uint8)[:n_bytes]


def fields(name):
    """The 16-bit floats of a block: their kind, and where the four nibbles of each lie, lowest first."""
    if name == "IQ1_M":
        return "f16", IQ1_M_NIBBLES
    kind, offsets = ("bf16", BF16_FIELDS[name]) if name in BF16_FIELDS else ("f16", F16_FIELDS[name])
    return kind, [[2 * offset + i for i in range(4)] for offset in offsets]


def make_blocks(name, size):
    noise_bytes = noise(IDS[name], BLOCKS * size).reshape(BLOCKS, size)
    nibbles = np.stack([noise_bytes & 15, noise_bytes >> 4], axis=-1).reshape(BLOCKS, 2 * size).astype(np.uint16)
    kind, places = fields(name)
    for i, fill in enumerate(FILLS):
        kept = nibbles[24 + i, sum(places, [])].copy()
        nibbles[24 + i, 0::2], nibbles[24 + i, 1::2] = fill & 15, fill >> 4
        nibbles[24 + i, sum(places, [])] = kept
    for k, place in enumerate(places):
        bits = sum(nibbles[:, p] << np.uint16(4 * n) for n, p in enumerate(place))
        bits[bits & EXPONENT[kind] == EXPONENT[kind]] ^= 0x4000  # infinity or NaN -> finite
        for i in range(24):
            bits[i] = ODD[kind][(i + 7 * k) % 12]
        for n, p in enumerate(place):
            nibbles[:, p] = bits >> np.uint16(4 * n) & np.uint16(15)
    return np.ascontiguousarray(nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8)


def digest(words):
    """FNV-1a with words of 32 bits in place of bytes, of every block; then of those results, with words of 64 bits."""
    hashes = np.full(len(words), FNV_BASIS)
    for column in words.T.astype(np.uint64):
        hashes = (hashes ^ column) * FNV_PRIME
    total = int(FNV_BASIS)
    for value in hashes:
        total = (total ^ int(value)) * int(FNV_PRIME) & (1 << 64) - 1
    return f"{total:016x}"


def golden(name):
    traits = GGML.traits(name)
    blocks = make_blocks(name, traits.block_bytes)
    values, sources = GGML.decode(name, blocks), ["ggml"]
    try:
        numpy_values = np.ascontiguousarray(dequantize(blocks, GGMLQuantizationType[name]), np.float32).reshape(-1)
    except NotImplementedError:
        pass
    else:
        differ = np.flatnonzero(numpy_values.view(np.uint32) != values.view(np.uint32))
        assert differ.size == 0, f"{name}: gguf and ggml differ in {differ.size} values, first {differ[0]}"
        sources.append("gguf")
    assert not np.isnan(values).any(), name
    words = values.view(np.uint32).reshape(BLOCKS, traits.block_len)
    kind, places = fields(name)
    return {
        "name": name,
        "id": IDS[name],
        "block_len": traits.block_len,
        "block_bytes": traits.block_bytes,
        "float": kind,
        "fields": places,
        "sources": sources,
        "digests": [digest(words[i:i + PER_DIGEST]) for i in range(0, BLOCKS, PER_DIGEST)],
        "block": blocks[SHOWN].tobytes().hex(),
        "values": "".join(f"{word:08x}" for word in words[SHOWN]),
    }


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent
    args.add_argument("--out", type=pathlib.Path, default=here.parent / "tests" / "golden" / "quant.json")
    a = args.parse_args()
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("gguf", "numpy", "llama-cpp-python"))
    lines = [json.dumps(golden(name)) for name in IDS]
    head = json.dumps({"made_with": f"{versions}, ggml {GGML.lib.ggml_version().decode()}", "odd": ODD})
    a.out.write_text(head[:-1] + ', "types": [\n' + ",\n".join(lines) + "\n]}\n")
    for line in lines:
        t = json.loads(line)
        print(f"{t['name']:8} {BLOCKS * t['block_len']:8} values, equal in {' and '.join(t['sources'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
