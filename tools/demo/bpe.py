"""A byte-level BPE vocabulary (the GPT-2 byte alphabet, the Qwen2 pre-tokenizer), learnt from scratch on the corpus."""
import re
from collections import Counter, defaultdict

# Qwen2's pattern with the Unicode classes spelt for Python's `re`: a letter is [^\W\d_], and digits stand alone.
SPLIT = re.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet():
    """GPT-2's printable stand-in for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for b in range(256):
        if b in plain:
            table[b] = chr(b)
        else:
            table[b] = chr(256 + extra)
            extra += 1
    return table


ALPHABET = byte_alphabet()


def letters(s):
    return "".join(ALPHABET[b] for b in s.encode())


class Bpe:
    """Tokens 0..255 are the bytes, then one per merge in order, then the specials."""

    def __init__(self, merges):
        self.merges = merges
        self.tokens = [ALPHABET[b] for b in range(256)] + [a + b for a, b in merges] + SPECIALS
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        assert len(self.ids) == len(self.tokens)
        self.ranks = {m: i for i, m in enumerate(merges)}
        self.cache = {}
        self.bytes_of = {c: b for b, c in ALPHABET.items()}

    def word(self, w):
        if w not in self.cache:
            parts = list(letters(w))
            while len(parts) > 1:
                rank, i = min((self.ranks.get((parts[i], parts[i + 1]), 1 << 30), i) for i in range(len(parts) - 1))
                if rank == 1 << 30:
                    break
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
            self.cache[w] = [self.ids[p] for p in parts]
        return self.cache[w]

    def encode(self, text):
        return [t for w in SPLIT.findall(text) for t in self.word(w)]

    def decode(self, ids):
        n_plain = len(self.tokens) - len(SPECIALS)
        return bytes(self.bytes_of[c] for i in ids if i < n_plain for c in self.tokens[i]).decode(errors="replace")


def learn(texts, n_merges):
    """The usual greedy merges over counted words; ties go to the lexicographically smaller pair."""
    words = Counter(w for t in texts for w in SPLIT.findall(t))
    split = {w: list(letters(w)) for w in sorted(words)}
    pairs, where = Counter(), defaultdict(set)
    for w, parts in split.items():
        for p in zip(parts, parts[1:]):
            pairs[p] += words[w]
            where[p].add(w)
    merges, made = [], set(ALPHABET.values())
    while len(merges) < n_merges:
        best = min(pairs, key=lambda p: (-pairs[p], p))
        assert pairs[best] > 1, "the corpus is too small for so many merges"
        for w in sorted(where[best]):
            old, new, i = split[w], [], 0
            while i < len(old):
                if i + 1 < len(old) and (old[i], old[i + 1]) == best:
                    new.append(old[i] + old[i + 1])
                    i += 2
                else:
                    new.append(old[i])
                    i += 1
            for p in zip(old, old[1:]):
                pairs[p] -= words[w]
            for p in zip(new, new[1:]):
                pairs[p] += words[w]
                where[p].add(w)
            split[w] = new
        del pairs[best], where[best]
        # Two different merges may spell one token; the vocabulary holds it once, so the later merge is left out.
        if best[0] + best[1] not in made:
            made.add(best[0] + best[1])
            merges.append(best)
    return Bpe(merges)
