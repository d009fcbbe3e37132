"""What the families' files are written with."""
import dataclasses
import typing
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from tiny.weights import matrix, vocabulary

SCORE_STD = 2.5  # spread of attention scores: a few keys take most of the weight
LOGIT_STD = 3.5  # spread of logits: a few tokens take most of the probability
ROUTER_STD = 1.5  # spread of the experts' scores: the best has a few times the weight of the next
TIED_STD = 0.25  # tied embeddings are small, so that a token does not simply predict itself


@dataclasses.dataclass(frozen=True)
class Model:
    """One model: `write(file, **sizes)` writes it. `types` maps the last part of a tensor's name, as in `attn_v`, to its
    type, if that is not `default`."""
    arch: str
    write: typing.Callable
    sizes: dict = dataclasses.field(default_factory=dict)
    default: T = T.F32
    types: dict = dataclasses.field(default_factory=dict)
    tokens: int = 320  # of a golden
    step: int = 0  # from one kept position of a golden to the next, where the mean of fewer would be too uncertain
    golden: bool = True  # kept in tests/golden
    large: bool = False  # some hundred MB and more; with a longer context
    vocab: int = 0  # tokens, of which all but some hundred are unused


def quantised(model, kind, **sizes):
    """The same in types in the manner of llama.cpp's files of these names, at sizes that hold whole blocks; for truth.py."""
    default, types = {
        "q4_k_m": (T.Q4_K, {"output": T.Q6_K, "token_embd": T.Q6_K, "attn_v": T.Q6_K, "ffn_down": T.Q6_K}),
        "iq4_xs": (T.IQ4_XS, {"output": T.Q6_K, "token_embd": T.Q6_K, "attn_v": T.Q5_K}),
        "q8_0": (T.Q8_0, {}),
    }[kind]
    return dataclasses.replace(
        model, sizes={**model.sizes, **sizes}, default=default, types=types, golden=False)


def write(name, model, path, seed):
    """Writes `model` to `path`."""
    file = File(name, model, path, seed)
    model.write(file, **model.sizes)
    file.close()


class File:
    """A GGUF file on its way. Names of keys lack the architecture, names of tensors lack `.weight`."""

    def __init__(self, name, model, path, seed):
        self.rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        self.model, self.arch = model, model.arch
        self.writer = gguf.GGUFWriter(path, model.arch)
        self.writer.add_name(f"brim test model {name}")
        self.n_vocab = 0

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()

    def key(self, suffix, value):
        """A key of the architecture; its type is that of `value`."""
        key, w = f"{self.arch}.{suffix}", self.writer
        if isinstance(value, (list, tuple)):
            return w.add_array(key, list(value))
        add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string}[type(value)]
        add(key, value)

    def keys(self, **values):
        """Some keys; two underscores stand for a dot."""
        for key, value in values.items():
            self.key(key.replace("__", "."), value)

    def vocabulary(self, pre="llama-bpe", bos=False, n_merges=8):
        """A token for every byte, some merges, two control tokens."""
        w = self.writer
        tokens, kinds, merges = vocabulary(n_merges)
        unused = range(len(tokens), self.model.vocab)
        tokens, kinds = tokens + [f"[unused{i}]" for i in unused], kinds + [gguf.TokenType.UNUSED] * len(unused)
        self.n_vocab = len(tokens)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(tokens)
        w.add_token_types(kinds)
        w.add_token_merges(merges)
        w.add_bos_token_id(len(tokens) - len(unused) - 2)
        w.add_eos_token_id(len(tokens) - len(unused) - 1)
        w.add_add_bos_token(bos)
        w.add_vocab_size(len(tokens))

    def header(self, embd, layers, heads, kv, head_dim, ff, rope_dim=None, base=1e6, eps=1e-5, **keys):
        """The usual keys of a decoder, and the vocabulary. `heads`, `kv` and `ff`: one number, or one for each layer; what
        is None is left out."""
        usual = {
            "block_count": layers, "context_length": 32_768 if self.model.large else 512, "embedding_length": embd, "feed_forward_length": ff,
            "attention.head_count": heads, "attention.head_count_kv": kv,
            "attention.key_length": head_dim, "attention.value_length": head_dim,
            "rope.dimension_count": rope_dim or head_dim, "rope.freq_base": base,
            "attention.layer_norm_rms_epsilon": eps,
        }
        usual |= {key.replace("__", "."): value for key, value in keys.items()}
        for key, value in usual.items():
            if value is not None:
                self.key(key, value)
        self.vocabulary()

    def kind(self, name):
        return self.model.types.get(name.rsplit(".", 1)[-1], self.model.default)

    def matrix(self, name, rows, cols, gain=1.0, bias=0.0, kind=None):
        """A linear map; of inputs of deviation 1 it makes outputs of deviation `gain`."""
        kind = kind or self.kind(name)
        self.writer.add_tensor(f"{name}.weight", matrix(self.rng, kind, rows, cols, gain * cols ** -0.5), raw_dtype=kind)
        if bias:
            self.vector(f"{name}.bias", rows, bias)

    def experts(self, name, n, rows, cols, gain=1.0, kind=None):
        """A linear map for each of `n` experts."""
        kind = kind or self.kind(name.removesuffix("_exps"))
        stack = matrix(self.rng, kind, n * rows, cols, gain * cols ** -0.5)
        self.writer.add_tensor(f"{name}.weight", stack.reshape(n, rows, -1), raw_dtype=kind)

    def vector(self, name, shape, std, mean=0.0):
        """Values in F32; the name is whole."""
        self.writer.add_tensor(name, (mean + std * self.rng.standard_normal(shape)).astype(np.float32))

    def tensor(self, name, values):
        """These values in F32; the name is whole."""
        self.writer.add_tensor(name, np.asarray(values, np.float32))

    def norm(self, name, n, mean=1.0, bias=0.0):
        """Weights of a norm, about `mean`."""
        self.tensor(f"{name}.weight", mean * (1 + 0.2 * self.rng.standard_normal(n)))
        if bias:
            self.vector(f"{name}.bias", n, bias)

    def ends(self, embd, tied=True, scale=1.0, bias=0.0, output_norm="output_norm", logit_std=LOGIT_STD):
        """Embedding, last norm and output. `scale`: what the architecture multiplies rows of the embedding by."""
        std = TIED_STD / scale if tied else 1.0 / scale
        self.matrix("token_embd", self.n_vocab, embd, std * embd ** 0.5)
        mean = logit_std * embd ** -0.5 / std if tied else 1.0
        if output_norm:
            self.norm(output_norm, embd, mean, bias)
        if not tied:
            self.matrix("output", self.n_vocab, embd, logit_std)

    def attention(self, b, embd, heads, kv, head_dim, value_dim=None, biases="", normed=False, gain=1.0):
        """Q, K, V and output of the layer `b`; scores are peaked. `normed`: heads of Q and K have norms."""
        value_dim = value_dim or head_dim
        sharp = SCORE_STD ** 0.5
        for part, rows, gain_of in (("q", heads * head_dim, 1.0 if normed else sharp),
                                    ("k", kv * head_dim, 1.0 if normed else sharp), ("v", kv * value_dim, 1.0)):
            self.matrix(f"{b}attn_{part}", rows, embd, gain_of, 0.5 if part in biases.split() else 0.0)
        if normed:
            self.norm(f"{b}attn_q_norm", head_dim, sharp)
            self.norm(f"{b}attn_k_norm", head_dim, sharp)
        self.matrix(f"{b}attn_output", embd, heads * value_dim, gain, 0.2 if "output" in biases.split() else 0.0)

    def ffn(self, b, embd, ff, suffix="", gated=True, biases="", gain=1.0):
        """A feed-forward part of the layer `b`."""
        has = biases.split()
        if gated:
            self.matrix(f"{b}ffn_gate{suffix}", ff, embd, 1.5, 0.4 if "gate" in has else 0.0)
        self.matrix(f"{b}ffn_up{suffix}", ff, embd, 1.5, 0.4 if "up" in has else 0.0)
        self.matrix(f"{b}ffn_down{suffix}", embd, ff, gain, 0.4 if "down" in has else 0.0)

    def moe(self, b, embd, ff, n, gated=True, fused=False, selection_bias=False, width=None):
        """Router and experts of the layer `b`. `width`: of what experts work on, if that is not the stream."""
        # The router is never quantised by llama.cpp: a small error would choose another expert.
        self.matrix(f"{b}ffn_gate_inp", n, embd, ROUTER_STD, kind=T.F32)
        width = width or embd
        if fused:
            self.experts(f"{b}ffn_gate_up_exps", n, 2 * ff, width, 1.5)
        else:
            if gated:
                self.experts(f"{b}ffn_gate_exps", n, ff, width, 1.5)
            self.experts(f"{b}ffn_up_exps", n, ff, width, 1.5)
        self.experts(f"{b}ffn_down_exps", n, width, ff)
        if selection_bias:
            self.vector(f"{b}exp_probs_b.bias", n, 0.3)
