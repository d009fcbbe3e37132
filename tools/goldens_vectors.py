#!/usr/bin/env python3
"""Make tests/golden/vectors: models that make vectors or ranks, with llama.cpp's answers.

  goldens_vectors.py [--seed N] [--dir tests/golden/vectors] [--only NAME ...]

Of each model NAME.gguf and NAME.json: texts, their tokens and vectors; of models that rank a query, documents, the tokens of
each pair as llama.cpp's server puts them together (`format_prompt_rerank` in `tools/server/server-common.cpp`), and scores.
"""
import argparse
import ctypes
import hashlib
import importlib.metadata
import json
import pathlib
import sys

import llama_cpp
import numpy as np

import llamacpp
import tiny
from tiny import vectors

# What tokenizers stumble over, besides words.
ODD = ["", " ", "  two   blanks  ", "Émile Zola's naïve café", "don't (stop)!", "A\tB\nC\r\nD", "x\u00a0y\u3000z", "ﬁne ①②  ⅷ ½ cup…", "ＡＢａｂ",
       "中文字 and 日本語のか\u3099", "e\u0301tude \u0301x", "zero\u200bwidth\ufeff", "한국어", "ÅNGSTRÖM ǅ İstanbul", "🙂 grin", "<tag>in<tag>", "</s> [SEP] [CLS]",
       "unmatchable🙂tail", "\u0000nul\u0007bell", "$5+5=10 ^ ` ~ |", "the−minus \u2212 – —", "ΑΒΓ ΣΑΣ", "Ⅷ ㎏ ﷺ", "▁under▁score"]


def sentence(rng, n):
    words = [str(rng.choice(vectors.WORDS)) + (str(rng.choice(vectors.PIECES)) if rng.random() < 0.2 else "") for _ in range(n)]
    return " ".join(word + (str(rng.choice(list(".,;!?"))) if rng.random() < 0.1 else "") for word in words)


def packages():
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("llama-cpp-python", "gguf", "numpy"))


class Embedder:
    """A context that pools as the model says, one text a pass."""

    def __init__(self, model, n_ctx=1024):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = 2
        params.embeddings = True
        params.type_k = params.type_v = llamacpp.KV_F32
        params.flash_attn_type = llamacpp.FLASH_OFF
        self.model = model
        self.raw = llama_cpp.llama_init_from_model(model.raw, params)
        assert self.raw
        self.pooling = llama_cpp.llama_pooling_type(self.raw)
        self.n_embd = llama_cpp.llama_model_n_embd(model.raw)

    def vector(self, tokens):
        memory = llama_cpp.llama_get_memory(self.raw)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = llama_cpp.llama_decode(self.raw, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, status
        n = llama_cpp.llama_model_n_cls_out(self.model.raw) if self.pooling == vectors.RANK else self.n_embd
        return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(self.raw, 0), shape=(n,)).astype(np.float64)


def pair(model, query, document):
    """The tokens of a query and a document."""
    template = llama_cpp.llama_model_chat_template(model.raw, b"rerank")
    if template:
        text = template.decode().replace("{query}", query).replace("{document}", document)
        return model.tokenize(text.encode(), False, True)
    vocab = model.vocab
    eos = llama_cpp.llama_vocab_eos(vocab)
    eos = llama_cpp.llama_vocab_sep(vocab) if eos == -1 else eos
    end = [eos] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
    return (([llama_cpp.llama_vocab_bos(vocab)] if llama_cpp.llama_vocab_get_add_bos(vocab) else [])
            + model.tokenize(query.encode(), False, False) + end
            + ([llama_cpp.llama_vocab_sep(vocab)] if llama_cpp.llama_vocab_get_add_sep(vocab) else [])
            + model.tokenize(document.encode(), False, False) + end)


def golden(name, out, seed):
    """Writes NAME.gguf and NAME.json; returns the line for the summary."""
    path = out / f"{name}.gguf"
    tiny.write(name, vectors.MODELS[name], path, seed)
    rng = np.random.Generator(np.random.PCG64([seed, 3]))
    rounded = lambda vector: [float(f"{x:.7g}") for x in vector]
    with llamacpp.Model(path) as model:
        embedder = Embedder(model)
        ranks = embedder.pooling == vectors.RANK
        texts = ["word", "hot water"]
        for n in (5, 12, 24, 40, 63, 90, 130):
            text = sentence(rng, n)
            if len(model.tokenize(text.encode(), True, True)) <= (vectors.POSITIONS - 30 if "bert" in name else 420):
                texts.append(text)
        known = {"model": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "pooling": embedder.pooling,
                 "odd": [[text, model.tokenize(text.encode(), True, True), model.tokenize(text.encode(), False, False)] for text in ODD]}
        if ranks:
            query = sentence(rng, 6)
            tokens = [pair(model, query, text) for text in texts]
            known["query"] = query
            spread = [embedder.vector(ids) for ids in tokens]
        else:
            tokens = [model.tokenize(text.encode(), True, True) for text in texts]
            spread = [embedder.vector(ids) for ids in tokens]
            spread = [vector / np.linalg.norm(vector) for vector in spread]
        known |= {"texts": texts, "tokens": tokens, "vectors": [rounded(vector) for vector in spread],
                  "made_with": packages(), "seed": seed}
    (out / f"{name}.json").write_text(json.dumps(known) + "\n")
    flat = np.array(spread)
    alike = "" if ranks else f"cosines {np.round((flat @ flat.T)[0, 1:], 2)}"
    return f"{name:26} {path.stat().st_size:7} bytes, {max(map(len, tokens))} tokens; {flat[:, 0].round(3) if ranks else alike}"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seed", type=int, default=1)
    here = pathlib.Path(__file__).resolve().parent
    args.add_argument("--dir", type=pathlib.Path, default=here.parent / "tests" / "golden" / "vectors")
    args.add_argument("--only", nargs="+", choices=list(vectors.MODELS), metavar="NAME")
    a = args.parse_args()
    a.dir.mkdir(parents=True, exist_ok=True)
    for name in a.only or vectors.MODELS:
        print(golden(name, a.dir, a.seed), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
