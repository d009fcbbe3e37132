#!/usr/bin/env python3
"""Make tests/golden/tokenizer: tiny vocabularies, trained here on the text below, and llama.cpp's ids for random strings.

  venv/bin/python tools/goldens_tokenizer.py        (gguf, numpy and llama-cpp-python as in tools/README.md)

One SPM vocabulary, one byte-level BPE vocabulary and one BPE vocabulary over characters. Seeded; a second run writes the
same bytes. `tests/golden/README.md` and `tests/golden/tokenizer/README.md` say what the files hold.
"""
import collections
import json
import pathlib
import random
import tempfile

import gguf
import llama_cpp

SEED = 20261
N_STRINGS = 160
N_MERGES = 420
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
# Every name of `tokenizer.ggml.pre` that brim knows. The first of a line stands for those that cut alike.
PRES = """
default
gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling
llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 glm4 glm5
chatglm-bpe dbrx smaug-bpe
qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe f2llmv2
qwen35
gpt-4o llama4 kanana2 talkie minimax-m2
tekken
starcoder refact command-r smollm codeshell exaone minerva-7b mellum2
falcon
deepseek-llm
deepseek-coder
deepseek-v3 hunyuan-dense joyai-llm hy_v4
spark2_5
youtu
tiny_aya cohere2moe
jais-2
seed-coder
ufakzeka
laguna
minicpm5
bloom poro-chat gpt3-finnish
viking
kimi-k2
exaone-moe
afmoe
"""
# Merged as a whole, so that a cut inside shows: every pre-tokenizer makes some of these and leaves others.
ACROSS = ["\n" * 8, " " * 64, "\t\t\t\t", "\r\n\r\n", " \n", "\n ", ".\n\n", "!\r\n", "/\n/\n", "'s", "'S", "'re", "'RE", "it's", "we'll", "'street", "'Move", "(x",
          ".com", " .com", " 12", "12345678", "a1", "a/b", "HTTPServer", "camelCase", "汉字。", "、か", "한국", "ㄱㄴ", "！a", "“x”", "e\u0301",
          "\u0301x", "२३४", "½½", "$$", "<=", "`x`", "(a,b)", " (", "a b", "ab,", "…\n", "\u2003\u2003", "ßx", "Äx", "xÄ"]
# A whole word that no merge leads to: only vocabularies that look for words before merging have it.
WHOLE = "unmergeable"
# Special tokens (text, type) and ids by key, for what ends generation.
ENDS = [
    ([("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<|fim_pad|>", 3), ("<|repo_name|>", 3), ("<|file_sep|>", 3),
      ("<|fim_prefix|>", 1)], {"eos": "<|endoftext|>"}),
    ([("<|begin_of_text|>", 3), ("<|eot_id|>", 3), ("<|eom_id|>", 3), ("<|end_of_text|>", 3)], {"eos": "<|end_of_text|>"}),
    ([("<|start|>", 3), ("<|end|>", 3), ("<|message|>", 3), ("<|channel|>", 3), ("<|constrain|>", 3), ("<|return|>", 3),
      ("<|call|>", 3), ("<|endoftext|>", 3)], {"eos": "<|return|>"}),
    ([("<|end|>", 3), ("<|flush|>", 3), ("<|calls|>", 4), ("<|endoftext|>", 3)], {"eos": "<|endoftext|>"}),
    ([("<|end|>", 3), ("<|call|>", 3), ("<|endoftext|>", 3)], {"eos": "<|endoftext|>"}),
    ([("</s>", 1), ("<eos>", 3), ("<turn|>", 3), ("<|tool_response>", 4), ("<end_of_turn>", 1)], {"eos": "<eos>"}),
    ([("</s>", 3), ("[EOT]", 3), ("[EOS]", 3), ("[PAD]", 3), ("<PRE>", 1), ("<｜end▁of▁sentence｜>", 3), ("[e~[", 3)], {"eos": "</s>"}),
    ([("<stop>", 1), ("<turn>", 1), ("<more>", 3), ("<|user|>", 3)], {"eos": "<stop>", "eot": "<turn>", "eom": "<more>"}),
    ([("<a>", 3), ("<b>", 3), ("<c>", 3), ("<fim_pad>", 3)], {"eos": "<a>", "fim_pad": "<b>", "fim_rep": "<c>"}),
]

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


def write(path, name, model, pre, tokens, types, scores=None, merges=None, add_space_prefix=None, **ids):
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(name)
    w.add_context_length(64), w.add_embedding_length(32), w.add_block_count(1), w.add_head_count(1)
    w.add_feed_forward_length(32), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(32)
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if scores:
        w.add_token_scores(scores)
    if merges:
        w.add_token_merges(merges)
    if add_space_prefix is not None:
        w.add_add_space_prefix(add_space_prefix)
    for key, value in ids.items():
        w.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def bpe(path, pre):
    chars = byte_chars()
    words = pieces(TEXT, " ") + 60 * ACROSS
    merges = train([[chars[b] for b in piece.encode()] for piece in words], N_MERGES)
    tokens = list(chars.values())
    tokens += [t for t in dict.fromkeys(a + b for a, b in merges) if t not in tokens]
    types = [1] * len(tokens)
    specials = [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("<|", 4)]
    for text, kind in [*specials, (WHOLE, 1), ("Ġ" + WHOLE, 1)]:
        tokens.append(text), types.append(kind)
    end = tokens.index("<|endoftext|>")
    write(path, "bpe", "gpt2", pre, tokens, types, merges=[f"{a} {b}" for a, b in merges], bos=end, eos=end)


def characters(path):
    merges = train([list(line) for line in TEXT.replace(" ", "▁").split("\n")], N_MERGES)
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)] + ["\n", "\n\n", "\n\n\n"]
    types = [3, 3, 3, 3] + [6] * 256 + [1] * 3
    known = sorted(set(TEXT.replace(" ", "▁")) - {"\n"})
    for text in dict.fromkeys([t for t in known if ord(t) < 0x4E00] + [a + b for a, b in merges]):
        tokens.append(text), types.append(1)
    merges = [f"{a} {b}" for a, b in merges if a in tokens and b in tokens]
    for text, kind in [("<|turn>", 3), ("<turn|>", 3), ("<tool>", 4)]:
        tokens.append(text), types.append(kind)
    write(path, "characters", "gemma4", None, tokens, types, [0.0] * len(tokens), merges, bos=2, eos=1, unknown=3)


def spm(path, name="spm", **keys):
    merges = train([list(piece.replace(" ", "▁")) for piece in pieces(TEXT, "▁")], N_MERGES)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for rank, text in enumerate(dict.fromkeys(a + b for a, b in merges)):
        tokens.append(text), types.append(1), scores.append(float(-rank // 3))
    for text in sorted(set(TEXT.replace(" ", "▁")) - {"\n"}):
        if text not in tokens and ord(text) < 0x4E00:  # the rest falls back to bytes
            tokens.append(text), types.append(1), scores.append(-1000.0)
    for text, kind in [("<|user|>", 3), ("<|end|>", 3), ("<|endoftext|>", 3), ("<tool>", 4), ("▁▁▁", 4)]:
        tokens.append(text), types.append(kind), scores.append(0.0)
    write(path, name, "llama", "default", tokens, types, scores, bos=1, eos=2, unknown=0, **keys)


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
        lambda: rng.choice(ACROSS) + rng.choice(["", "a", "1", " ", "."]),
        lambda: rng.choice(["HTTPServer's", "camelCase", "ÄÖü", "'S", "a/\n/", ".com", "(x", WHOLE, " " + WHOLE, "\n" * 3, " " * 70]),
    ]
    texts = ["", " ", "\n", "   ", "▁", "x" * 100, "\r\n" * 20, TEXT]
    while len(texts) < N_STRINGS:
        texts.append("".join(rng.choice(kinds)() + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 9))))
    return texts


def open_vocab(path):
    return llama_cpp.Llama(str(path), n_ctx=64, vocab_only=True, verbose=False)


def ids(path, texts, special):
    model = open_vocab(path)
    return [model.tokenize(t.encode(), add_bos=False, special=special) for t in texts]


def record(name, **content):
    source = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, seed {SEED}"
    (OUT / f"{name}.json").write_text(json.dumps({"source": source, **content}, separators=(",", ":")) + "\n")


def ends(path):
    """For each set of special tokens behind two letters: which of them end generation, and which are control tokens."""
    cases = []
    for tokens, keys in ENDS:
        all_tokens, types = ["a", "b", "ab"] + [t for t, _ in tokens], [1, 1, 1] + [kind for _, kind in tokens]
        stated = {key: all_tokens.index(text) for key, text in keys.items()}
        write(path, "ends", "gpt2", "gpt-2", all_tokens, types, merges=["a b"], **stated)
        model = open_vocab(path)
        vocab = model._model.vocab
        test = lambda f: [i for i in range(len(all_tokens)) if f(vocab, i)]
        cases.append({"tokens": all_tokens, "types": types, "ids": stated, "ends": test(llama_cpp.llama_vocab_is_eog),
                      "control": test(llama_cpp.llama_vocab_is_control)})
    return cases


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    texts = strings(random.Random(SEED))
    (OUT / "strings.json").write_text(json.dumps(texts, ensure_ascii=True, indent=0) + "\n")
    spm(OUT / "spm.gguf"), bpe(OUT / "bpe.gguf", "default"), characters(OUT / "characters.gguf")
    for name in ["spm", "bpe", "characters"]:
        record(name, plain=ids(OUT / f"{name}.gguf", texts, False), special=ids(OUT / f"{name}.gguf", texts, True))
    scratch = pathlib.Path(tempfile.mkdtemp()) / "vocab.gguf"
    spm(scratch, "Phi-3")
    record("spm-phi-3", special=ids(scratch, texts, True))
    spm(scratch, add_space_prefix=False)
    record("spm-no-prefix", plain=ids(scratch, texts, False))
    names, seen = {}, {}
    for line in PRES.split("\n")[1:-1]:
        first, want = line.split()[0], None
        for name in line.split():
            bpe(scratch, name)
            got = ids(scratch, texts, False)
            assert want in (None, got), f"{name} does not cut like {first}"
            want = got
            model = open_vocab(scratch)
            names[name] = {"ids": first, "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(model._model.vocab))}
        record(f"pre-{first}", plain=want)
        print(line, sum(map(len, want)), "tokens", [other for other, ids in seen.items() if ids == want])
        seen[first] = want
    record("names", names=names)
    record("ends", cases=ends(scratch))


if __name__ == "__main__":
    main()
