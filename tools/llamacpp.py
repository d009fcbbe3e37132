"""llama.cpp as the independent engine of the other tools: logits, greedy tokens, token ids and speed.

Not a command. Talks to the C interface of llama-cpp-python directly, so that logits are taken chunk by chunk and a large
vocabulary does not need `tokens x vocabulary` floats in Python.
"""
import ctypes
import time

import llama_cpp
import numpy as np

VERSION = f"llama-cpp-python {llama_cpp.__version__}"
KV_F32, KV_F16 = 0, 1  # ggml type ids
FLASH_AUTO, FLASH_OFF = -1, 0
CHUNK = 512

# The library keeps this pointer for as long as the process lives.
_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))


class EngineError(RuntimeError):
    """llama.cpp refused a model, a context or a batch."""


class Model:
    """A model file opened by llama.cpp; `with` closes it."""

    def __init__(self, path, vocab_only=False):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self.raw = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.raw:
            raise EngineError(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.raw)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_model_free(self.raw)

    def tokenize(self, text, add_bos=True, special=False):
        """Token ids of the bytes `text`."""
        room = len(text) + 16
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, room, add_bos, special)
        if n < 0:
            raise EngineError(f"tokenize: room for {room} ids, needed {-n}")
        return list(ids[:n])

    def context(self, n_ctx, threads, kv=KV_F16, flash=FLASH_OFF):
        return Context(self, n_ctx, threads, kv, flash)


class Context:
    """One sequence over a `Model`; `with` closes it."""

    def __init__(self, model, n_ctx, threads, kv, flash):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = CHUNK
        params.n_outputs_max = CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = kv
        params.flash_attn_type = flash
        self.model = model
        self.raw = llama_cpp.llama_init_from_model(model.raw, params)
        if not self.raw:
            raise EngineError(f"llama.cpp gives no context of {n_ctx} tokens")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_free(self.raw)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.raw), True)

    def keep(self):
        """A copy of what the context holds, for `restore`: recurrent models cannot forget just the last tokens."""
        size = llama_cpp.llama_state_seq_get_size(self.raw, 0)
        kept = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self.raw, kept, size, 0) != size:
            raise EngineError("llama.cpp does not give away what its context holds")
        return kept

    def restore(self, kept):
        """Back to what the context held."""
        self.clear()
        if llama_cpp.llama_state_seq_set_data(self.raw, kept, len(kept), 0) != len(kept):
            raise EngineError("llama.cpp does not take back what its context held")

    def decode(self, tokens, start, every=False):
        """Runs `tokens` at positions `start..`; logits of every token, or of the last only."""
        assert 0 < len(tokens) <= CHUNK
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = int(token), start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i + 1 == len(tokens)
        status = llama_cpp.llama_decode(self.raw, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise EngineError(f"llama_decode: status {status}")

    def logits(self, rows):
        """Copy of the logits of the last `decode`, `rows` of them."""
        flat = llama_cpp.llama_get_logits(self.raw)
        return np.ctypeslib.as_array(flat, shape=(rows, self.model.n_vocab)).copy()

    def sync(self):
        llama_cpp.llama_synchronize(self.raw)


def logits(path, tokens, kv, threads=2):
    """Yields `[<= 512, n_vocab]` float32 arrays that together are the logits after every token."""
    with Model(path) as model, model.context(len(tokens) + 8, threads, kv) as ctx:
        for at in range(0, len(tokens), CHUNK):
            piece = tokens[at:at + CHUNK]
            ctx.decode(piece, at, every=True)
            yield ctx.logits(len(piece))


def greedy(path, prompt, n, kv, threads=2):
    """`n` greedy tokens after `prompt`, and the smallest lead of a winner over its runner-up."""
    out, lead = [], float("inf")
    with Model(path) as model, model.context(len(prompt) + n + 8, threads, kv) as ctx:
        feed, at = list(prompt), 0
        for _ in range(n):
            ctx.decode(feed, at)
            at += len(feed)
            row = ctx.logits(1)[0]
            second, first = np.sort(row)[-2:]
            lead = min(lead, float(first - second))
            out.append(int(row.argmax()))
            feed = out[-1:]
    return out, lead


def speeds(path, prompt, steps, threads, depth=0):
    """Yields, whenever asked, tokens per second of a prefill of `prompt` tokens behind `depth` others and of `steps`
    decode steps after it, as (prefill, decode); None for what has no tokens.

    The context has llama.cpp's default settings, flash attention among them. The tokens before are computed once and
    kept. One short round comes first, unmeasured, so that weights are resident and threads exist.
    """
    rng = np.random.default_rng(1)
    with Model(path) as model, model.context(depth + prompt + steps + 64, threads, flash=FLASH_AUTO) as ctx:
        ids = rng.integers(0, model.n_vocab, depth + prompt + steps)

        def feed(first, n):
            for at in range(first, first + n, CHUNK):
                ctx.decode(ids[at:min(at + CHUNK, first + n)], at)
            ctx.sync()

        ctx.decode(ids[:16], 0)
        ctx.decode(ids[:1], 16)
        ctx.clear()
        feed(0, depth)
        kept = ctx.keep() if depth else None
        while True:
            ctx.restore(kept) if depth else ctx.clear()
            began = time.perf_counter()
            feed(depth, prompt)
            filled = time.perf_counter()
            for at in range(depth + prompt, depth + prompt + steps):
                ctx.decode(ids[at:at + 1], at)
            ctx.sync()
            ended = time.perf_counter()
            yield prompt / (filled - began) if prompt else None, steps / (ended - filled) if steps else None


def streams(path, counts, steps, threads):
    """Yields, whenever asked, {count: tokens per second} of so many sequences that decode side by side, a token of each in
    every batch. Settings are llama.cpp's defaults; sequences share one KV cache or have one each, whichever is faster.
    """
    rng = np.random.default_rng(1)

    def batch_of(ctx, ids, position):
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), position, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, i
        status = llama_cpp.llama_decode(ctx, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise EngineError(f"llama_decode: status {status}")

    def speed(model, count, unified):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = (steps + 64) * count, count, unified
        params.n_batch = params.n_ubatch = params.n_outputs_max = CHUNK
        params.n_threads = params.n_threads_batch = threads
        ctx = llama_cpp.llama_init_from_model(model.raw, params)
        if not ctx:
            raise EngineError(f"llama.cpp gives no context of {count} sequences")
        ids = rng.integers(0, model.n_vocab, (steps + 16, count))
        for position in range(16):
            batch_of(ctx, ids[position], position)
        llama_cpp.llama_synchronize(ctx)
        began = time.perf_counter()
        for position in range(16, 16 + steps):
            batch_of(ctx, ids[position], position)
        llama_cpp.llama_synchronize(ctx)
        seconds = time.perf_counter() - began
        llama_cpp.llama_free(ctx)
        return count * steps / seconds

    with Model(path) as model:
        while True:
            yield {count: max(speed(model, count, unified) for unified in (True, False)) for count in counts}


def log_softmax(x):
    """Row-wise, in f64."""
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def kl_rows(exact, other):
    """KL(exact || other) of each row of logits, in nats."""
    p, q = log_softmax(exact), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(axis=1)
