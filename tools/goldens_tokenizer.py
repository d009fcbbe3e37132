#!/usr/bin/env python3
"""Make tests/golden/tokenizer: tiny vocabularies, trained here on the text below, and llama.cpp's ids for random strings.

  venv/bin/python tools/goldens_tokenizer.py        (gguf, numpy and llama-cpp-python as in tools/README.md)

One SPM vocabulary and one byte-level BPE vocabulary, the latter once per pre-tokenizer. Seeded; a second run writes the
same bytes. `strings.json` holds the texts, `NAME.json` their ids without BOS: `plain`, and `special` with control tokens
parsed.
"""
import collections
import json
import pathlib
import random

import gguf
import llama_cpp

SEED = 20261
N_STRINGS = 200
N_MERGES = 420
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
PRES = ["default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "starcoder", "deepseek-llm", "deepseek-coder", "falcon"]

TEXT = """Huge pages keep the weights of a model in memory without a table entry for every four kilobytes. The plan
says how many pages are needed before anything is read, and the pool is checked before the first byte is loaded. If the
pool is short, the program stops with exit code 5 and prints the line that mends it. It doesn't guess, it won't fall back,
and you'll see what's missing: 12288 pages are free, 30720 are needed. We've measured it; they're right; I'd do it again.
HE'S SAID THAT'S ALL. Die Größe der Seiten ist zwei Mebibyte; die Straße führt über Köln nach Zürich. La mémoire est
réservée à l'avance, où que ce soit. Память выделяется заранее, страницы большие. Οι σελίδες είναι μεγάλες. 内存在启动前
就已经计划好了。 メモリは起動前に計画されます。 메모리는 미리 계획됩니다. الذاكرة محجوزة. स्मृति पहले से आरक्षित है।
fn main() { let pages = need / page_bytes; if pages > free { return Err(5); } }   // 1, 22, 333, 4444, 55555
    for i in range(10):
        print(i, "ok!")   # three...    and more ??? !!!
"""


def byte_chars():
    """GPT-2's map from bytes to printable characters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def train(words, n_merges):
    """Merges of the most frequent neighbours, first seen first among equals."""
    words = collections.Counter(map(tuple, words))
    merges = []
    while len(merges) < n_merges:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs.items(), key=lambda item: (item[1], item[0]))[0]
        merges.append(best)
        merged = collections.Counter()
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                if tuple(word[i : i + 2]) == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += n
        words = merged
    return merges


def pieces(text, blank):
    """The text in words, each with the blank before it."""
    words = text.replace("\n", " \n ").split(" ")
    return [(blank if i else "") + w for i, w in enumerate(words)]


def write(name, model, pre, tokens, types, scores=None, merges=None, **ids):
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    w.add_name(name)
    w.add_context_length(64), w.add_embedding_length(32), w.add_block_count(1), w.add_head_count(1)
    w.add_feed_forward_length(32), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(32)
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if scores:
        w.add_token_scores(scores)
    if merges:
        w.add_token_merges(merges)
    for key, value in ids.items():
        getattr(w, f"add_{key}")(value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def bpe(pre):
    chars = byte_chars()
    merges = train([[chars[b] for b in piece.encode()] for piece in pieces(TEXT, " ")], N_MERGES)
    tokens = list(chars.values())
    tokens += [t for t in dict.fromkeys(a + b for a, b in merges) if t not in tokens]
    types = [1] * len(tokens)
    for text, kind in [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("<|", 4)]:
        tokens.append(text), types.append(kind)
    end = tokens.index("<|endoftext|>")
    write(pre, "gpt2", pre, tokens, types, merges=[f"{a} {b}" for a, b in merges], bos_token_id=end, eos_token_id=end)


def spm(name):
    merges = train([list(piece.replace(" ", "▁")) for piece in pieces(TEXT, "▁")], N_MERGES)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for rank, text in enumerate(dict.fromkeys(a + b for a, b in merges)):
        tokens.append(text), types.append(1), scores.append(float(-rank // 3))
    for text in sorted(set(TEXT.replace(" ", "▁")) - {"\n"}):
        if text not in tokens and ord(text) < 0x4E00:  # the rest falls back to bytes
            tokens.append(text), types.append(1), scores.append(-1000.0)
    for text, kind in [("<|user|>", 3), ("<|end|>", 3), ("<tool>", 4), ("▁▁▁", 4)]:
        tokens.append(text), types.append(kind), scores.append(0.0)
    write(name, "llama", "default", tokens, types, scores, bos_token_id=1, eos_token_id=2, unk_token_id=0)


def strings(rng):
    words = TEXT.split()
    blanks = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u202f\u3000"
    ranges = [(0x41, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x904, 0x939),
              (0xE01, 0xE30), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
              (0x10400, 0x1044F), (0x1D400, 0x1D4FF), (0x20000, 0x200FF), (0xFF01, 0xFF5E)]
    kinds = [
        lambda: rng.choice(words),
        lambda: " ".join(rng.sample(words, 3)),
        lambda: "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 5))),
        lambda: "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 8))),
        lambda: "".join(rng.choice("٣५²½Ⅷ①𝟙") for _ in range(rng.randint(1, 3))),
        lambda: rng.choice(" \n\t") * rng.randint(1, 5),
        lambda: "".join(rng.choice(blanks) for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(["'s", "'S", "'re", "'RE", "'lL", "'ve", "'D", "'m", "'t", "’s", "'", "'x"]),
        lambda: "".join(rng.choice("\u0300\u0301\u093f\u0e34\ufe0f\u05b0") for _ in range(rng.randint(1, 2))),
        lambda: rng.choice(["😀", "👩‍👩‍👧", "🇩🇪", "❤️", "👍🏽"]),
        lambda: chr(rng.choice([*range(1, 32), 127, 0x80, 0xAD, 0x200B, 0xFEFF, 0xE000, 0xFFFD])),
        lambda: "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~。，「」…—“”‘’±€§¿") for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(["<|endoftext|>", "<|im_start|>", "<tool>", "<|", "</s>", "<|user|>", " <|end|>\n", "<unk>", "▁", "Ġ"]),
    ]
    texts = ["", " ", "\n", "   ", "▁", "x" * 100, "\r\n" * 20, TEXT]
    while len(texts) < N_STRINGS:
        texts.append("".join(rng.choice(kinds)() + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 9))))
    return texts


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    texts = strings(random.Random(SEED))
    (OUT / "strings.json").write_text(json.dumps(texts, ensure_ascii=True, indent=0) + "\n")
    spm("spm")
    for pre in PRES:
        bpe(pre)
    for name in ["spm", *PRES]:
        m = llama_cpp.Llama(str(OUT / f"{name}.gguf"), n_ctx=64, vocab_only=True, verbose=False)
        ids = {kind: [m.tokenize(t.encode(), add_bos=False, special=kind == "special") for t in texts]
               for kind in ("plain", "special")}
        ids = {"source": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, seed {SEED}", **ids}
        (OUT / f"{name}.json").write_text(json.dumps(ids, separators=(",", ":")) + "\n")
        print(name, sum(map(len, ids["plain"])), "tokens,", (OUT / f"{name}.gguf").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
