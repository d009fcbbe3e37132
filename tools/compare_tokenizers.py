#!/usr/bin/env python3
"""Hold `brim tokenize` against llama.cpp, with every vocabulary file of the llama-cpp-python source package.

  venv/bin/pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
  venv/bin/python tools/compare_tokenizers.py --brim target/release/brim llama_cpp_python-0.3.36 [NAME ...]

Per vocabulary: random Unicode strings (seeded; special tokens of that vocabulary among them), with and without control
tokens parsed; the package's own `.inp`/`.out` pairs; one text of source code, prose and CJK; the tokens that end
generation. Vocabularies of a kind that brim does not have must be refused with exit code 4 and their kind's name.
Exits 0 if all agree, 1 if not, 2 if something could not be run.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import threading
import time

import gguf
import llama_cpp

# Whitespace, digits, marks, scripts with and without case or spaces, symbols, controls, private use, unassigned.
RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0x01, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x2B0, 0x3FF), (0x400, 0x52F),
          (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
          (0x13A0, 0x13FF), (0x1C80, 0x1CBF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x214F), (0x2150, 0x218F),
          (0x2190, 0x27BF), (0x2C00, 0x2DFF), (0x3000, 0x30FF), (0x3100, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
          (0xA640, 0xA7FF), (0xAB70, 0xABBF), (0xAC00, 0xD7FF), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F),
          (0xFE00, 0xFFFD), (0x10400, 0x104FF), (0x10C80, 0x10CFF), (0x118A0, 0x118DF), (0x1D400, 0x1D7FF),
          (0x1E900, 0x1E95F), (0x1F000, 0x1FAFF), (0x20000, 0x2FA1F), (0xE0000, 0xE01EF), (0x100000, 0x10FFFD)]


def random_strings(rng, n, specials):
    words = "the of Pages ISN'T it's we'll I'D 'RE don't HTTPServer camelCase 3.14 0x7fff return; größe naïve".split()
    kinds = [
        lambda: "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 8))),
        lambda: rng.choice(words),
        lambda: " ".join(rng.sample(words, 3)),
        lambda: "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 12))),
        lambda: "".join(rng.choice("٣५²½Ⅷ①𝟙一二三") for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(" \n\t\r") * rng.randint(1, 40),
        lambda: "".join(rng.choice(" \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u202f\u3000") for _ in range(rng.randint(1, 5))),
        lambda: rng.choice("'’ʼ") + rng.choice(["s", "S", "t", "re", "RE", "lL", "ve", "D", "m", "ſ", "x", ""]),
        lambda: "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~。，「」…—“”‘’±€§¿") for _ in range(rng.randint(1, 6))),
        lambda: rng.choice("aé漢") + "".join(rng.choice("\u0300\u0301\u093f\u0e34\ufe0f\u200d") for _ in range(rng.randint(1, 3))),
        lambda: rng.choice(["😀", "👩‍👩‍👧", "🇩🇪", "❤️", "👍🏽", "▁", "Ġ", "Ċ"]),
        lambda: rng.choice(specials),
        lambda: rng.choice([" ", "\n", ""]) + rng.choice(specials)[: rng.randint(1, 9)] + rng.choice([" ", "\n", ""]),
    ]
    glue = ["", "", "", " ", "\n"]
    return ["".join(rng.choice(kinds)() + rng.choice(glue) for _ in range(rng.randint(1, 12))) for _ in range(n)]


def corpus(rng, package, n_bytes):
    """Source code and prose of the package, and words of its largest vocabulary's Chinese, Japanese and Korean tokens."""
    root = package / "vendor" / "llama.cpp"
    code = [p for p in sorted((root / "src").rglob("*.cpp"))] + sorted((package / "llama_cpp").rglob("*.py"))
    prose = sorted(root.rglob("*.md")) + sorted(package.glob("*.md"))
    read = lambda files: "".join(p.read_text(encoding="utf-8", errors="replace") for p in files).replace("\0", "")
    fields = gguf.GGUFReader(root / "models" / "ggml-vocab-gemma-4.gguf").fields
    tokens = [t for t in fields["tokenizer.ggml.tokens"].contents() if any(0x3040 <= ord(c) < 0xD7A4 for c in t)]
    cjk = "".join(rng.choice(tokens).replace("▁", " ") + rng.choice(["", "", "", "，", "。", "。\n", "、"]) for _ in range(n_bytes // 6))
    parts = []
    for text in (read(code), read(prose), cjk):
        data = text.encode()
        if len(data) < n_bytes // 3:
            sys.exit("the package holds less text than expected; unpack it whole")
        start = rng.randrange(len(data) - n_bytes // 3 + 1)
        parts.append(data[start : start + n_bytes // 3].decode(errors="ignore"))
    # In slices, so that every kind meets every other.
    slices = [part[i : i + 2000] for part in parts for i in range(0, len(part), 2000)]
    rng.shuffle(slices)
    return "".join(slices)


class Brim:
    def __init__(self, path, vocab):
        self.path, self.vocab = path, vocab

    def run(self, *options, stdin=b""):
        return subprocess.run([self.path, "tokenize", "-m", self.vocab, *options], input=stdin, capture_output=True)

    def encode(self, texts, special):
        options = ["--null"] + ["--special"] * special
        done = self.run(*options, stdin="".join(t + "\0" for t in texts).encode())
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())
        return [[int(i) for i in line.split()] for line in done.stdout.decode().split("\n")[:-1]]


def first_difference(texts, got, want):
    if len(got) != len(want):
        return f"{len(got)} lines for {len(want)} texts"
    for text, g, w in zip(texts, got, want):
        if g != w:
            at = next((i for i, (a, b) in enumerate(zip(g, w)) if a != b), min(len(g), len(w)))
            return f"{text[:200]!r} from id {at}: brim {g[at : at + 8]}, llama.cpp {w[at : at + 8]}"
    return None


def check(args, vocab, text, report):
    brim = Brim(args.brim, vocab)
    fields = gguf.GGUFReader(vocab).fields
    kind = fields["tokenizer.ggml.model"].contents()
    if kind not in ("llama", "gpt2", "gemma4"):
        done = brim.run()
        refused = done.returncode == 4 and f'"{kind}"' in done.stderr.decode()
        return report(refused, f"{kind}: refused by name" if refused else f"{kind}: not refused: {done}")
    model = llama_cpp.Llama(str(vocab), vocab_only=True, n_ctx=64, verbose=False)
    reference = lambda texts, special: [model.tokenize(t.encode(), add_bos=False, special=special) for t in texts]
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    specials = [t for t, kind in zip(tokens, types) if kind in (2, 3, 4) and t][:400] + ["<|im_end|>", "</s>", "<s>"]
    rng = random.Random(args.seed)
    texts = ["", " ", "x" * 5000, " " * 3000, "\n" * 700] + random_strings(rng, args.strings, specials)
    difference = None
    for special in (False, True):
        difference = difference or first_difference(texts, brim.encode(texts, special), reference(texts, special))
    if (inp := vocab.with_name(vocab.name + ".inp")).exists():
        pairs = inp.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        out = vocab.with_name(vocab.name + ".out").read_text().split("\n")[: len(pairs)]
        difference = difference or first_difference(pairs, brim.encode(pairs, False), [[int(i) for i in o.split()] for o in out])
    began = time.perf_counter()
    empty = brim.encode([""], False)
    loading = time.perf_counter() - began
    began = time.perf_counter()
    got = brim.encode([text], False)
    took = time.perf_counter() - began - loading
    began = time.perf_counter()
    want = reference([text], False)
    theirs = time.perf_counter() - began
    difference = difference or first_difference([text], got, want)
    ends = brim.run("--ends").stdout.decode().split()
    want_ends = [str(i) for i in range(len(tokens)) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)]
    if not difference and ends != want_ends:
        difference = f"end of generation: brim {ends}, llama.cpp {want_ends}"
    figures = f"{2 * len(texts)} strings, {len(text.encode())} bytes = {len(want[0])} tokens in {took * 1e3:.0f} ms (llama.cpp {theirs * 1e3:.0f} ms)"
    report(difference is None and empty == [[]], f"{figures}, {len(ends)} end tokens" if difference is None else difference)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", type=pathlib.Path)
    parser.add_argument("names", nargs="*", help="only these, e.g. qwen2")
    parser.add_argument("--brim", required=True)
    parser.add_argument("--strings", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=20261)
    args = parser.parse_args()
    vocabs = sorted((args.package / "vendor" / "llama.cpp" / "models").glob("ggml-vocab-*.gguf"))
    name = lambda path: path.stem.removeprefix("ggml-vocab-")
    vocabs = [v for v in vocabs if not args.names or name(v) in args.names]
    if not vocabs:
        print(f"no vocabularies in {args.package}", file=sys.stderr)
        sys.exit(2)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    text = corpus(random.Random(args.seed), args.package, args.bytes)
    failed = []

    def everything():
        for vocab in vocabs:
            def report(ok, line):
                print(f"{'ok  ' if ok else 'FAIL'} {name(vocab):16} {line}", flush=True)
                failed.extend([] if ok else [name(vocab)])
            try:
                check(args, vocab, text, report)
            except Exception as error:  # one vocabulary must not hide the others
                report(False, f"{type(error).__name__}: {error}")

    # std::regex recurses once per character of a match.
    threading.stack_size(1 << 30)
    thread = threading.Thread(target=everything)
    thread.start(), thread.join()
    print(json.dumps({"vocabularies": len(vocabs), "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
