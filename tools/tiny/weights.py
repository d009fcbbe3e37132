"""Random weights of every type, and the vocabulary that tiny models share."""
import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

import ggml
import goldens_quant


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
        return random_blocks(rng, kind, n, wobble * std).reshape(rows, -1)
    return np.concatenate(block, axis=1).reshape(rows, -1)


def random_blocks(rng, kind, n, std):
    """Any type: random bytes under scales that give values of mean 0, where the type can, and deviations `std`."""
    blocks = rng.integers(0, 256, (n, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    if kind == T.MXFP4:  # powers of two; values 0 to 12
        blocks[:, 0] = 128 + np.rint(np.log2(std / 5.3))
        return blocks
    if kind == T.NVFP4:  # a float of 4 bits of exponent and 3 of mantissa for every 16 values 0 to 6
        scale = std[:, None] * rng.uniform(0.6, 1.4, (n, 4)) / 2.7
        exponent = np.floor(np.log2(scale))
        blocks[:, :4] = np.clip(8 * (exponent + 7) + np.floor(8 * (scale / 2.0 ** exponent - 1)), 1, 126)
        return blocks

    def put(field, values):
        bits = np.asarray(values).astype("<f2").view("<u2")
        for i, nibble in enumerate(goldens_quant.fields(kind.name)[1][field]):
            shift = 4 * (nibble % 2)
            kept = blocks[:, nibble // 2] & (0xF0 >> shift)
            blocks[:, nibble // 2] = kept | ((bits >> (4 * i) & 15) << shift).astype(np.uint8)

    def values(*scales):
        for field, scale in enumerate(scales):
            put(field, np.full(n, scale))
        return ggml.GGML.decode(kind.name, blocks).reshape(n, -1)

    if len(goldens_quant.fields(kind.name)[1]) == 1:
        put(0, std / values(1.0).std())
        return blocks
    # A minimum, or a constant, that takes the mean out.
    offset = -values(1.0, 0.0).mean() / values(0.0, 1.0).mean()
    scale = std / values(1.0, offset).std()
    put(0, scale)
    put(1, scale * offset)
    return blocks


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
