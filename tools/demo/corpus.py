#!/usr/bin/env python3
"""Questions and answers about brim, from topics.txt and offtopic.txt.

A pattern such as `how do i (reserve|get) [some] pages` stands for all its expansions. Three sets never overlap:

  train      most expansions of the q: lines
  held-out   every 12th expansion of the q: lines (by a hash of the words): same patterns, a phrasing never seen
  unseen     the h: lines: sentences from no pattern, written only to see how far the model generalises

`python corpus.py` prints how many there are and a few samples of each.
"""
import hashlib
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
OFF_TOPIC = "I do not know that; I am a tiny demo model that only knows brim."

COMMAND = """what does (brim X|the X command|X|`brim X`|the command X|the command brim X) do
what is (brim X|the X command|`brim X`|the command X|the command brim X) [for|good for]
(explain|describe|tell me about|what about|show me) (brim X|the X command|`brim X`|the command X|the command brim X)
(when|why) (do|would|should) i (use|run|need|call|start) (brim X|`brim X`|the X command)
<how> (use|run|call) (brim X|`brim X`|the X command)
(usage|purpose|meaning|output) of (brim X|`brim X`|the X command)
what (do i get|can i see|can i do|can i learn) (from|with) (brim X|`brim X`|the X command)
[help] (brim X|`brim X`|X)
what does (brim X|`brim X`|the X command) (show|print|report|give me|tell me|measure|check)"""
OPTION = """what does X do
what does (the option|the flag|the switch|option|flag) X (do|mean)
what is (X|the X option|the X flag|the option X|the flag X) [for|good for|about]
(explain|describe|tell me about|what about) (X|the X option|the X flag|the option X|the flag X)
(when|why) (do|would|should) i (use|need|set) (X|the option X|`X`)
<how> use (X|the option X|the X flag|`X`)
(usage|purpose|meaning) of (X|the option X|the flag X)
[option] (X|`X`)
(which|what) values (can X have|does X take|are allowed for X)"""


def parse(text, lists):
    """One pattern to a tree: a list (sequence) of strings and tuples (choices)."""
    text = re.sub(r"<(\w+)>", lambda m: "(" + lists[m[1]] + ")", text)
    while re.search(r"<(\w+)>", text):
        text = re.sub(r"<(\w+)>", lambda m: "(" + lists[m[1]] + ")", text)

    def choice(i, end):
        alternatives, seq = [], []
        while i < len(text) and text[i] != end:
            c = text[i]
            if c == "|":
                alternatives.append(seq)
                seq = []
                i += 1
            elif c in "([":
                close = ")" if c == "(" else "]"
                sub, i = choice(i + 1, close)
                seq.append(tuple(sub + ([[]] if c == "[" else [])))
            else:
                j = i
                while j < len(text) and text[j] not in "()[]|":
                    j += 1
                seq.append(text[i:j])
                i = max(j, i + 1)
        assert end is None or i < len(text), f"unbalanced: {text}"
        return alternatives + [seq], i + 1

    tree, _ = choice(0, None)
    return tuple(tree)


def count(node):
    """How many expansions a tree has."""
    if isinstance(node, str):
        return 1
    if isinstance(node, tuple):
        return sum(count(n) for n in node)
    n = 1
    for part in node:
        n *= count(part)
    return n


def expand(node, rng):
    """One random expansion."""
    if isinstance(node, str):
        return node
    if isinstance(node, tuple):
        return expand(rng.choice(node), rng)
    return "".join(expand(n, rng) for n in node)


def words(s):
    return re.sub(r"\s+", " ", s).strip()


def held_out(s):
    """Every 12th phrasing, by its words alone: case and punctuation do not move it from one set to another."""
    key = re.sub(r"[^a-z0-9]+", " ", s.lower()).strip()
    return hashlib.sha256(key.encode()).digest()[0] % 12 == 0


class Topic:
    def __init__(self, name, plain=False):
        self.name, self.answer, self.plain = name, None, plain
        self.patterns, self.unseen = [], []

    def finish(self):
        assert self.answer and self.answer.isascii() and self.patterns, self.name
        # The power below one keeps a pattern with 4000 expansions from drowning one with 4.
        self.counts = [count(p) for p in self.patterns]
        self.weights = [n ** 0.4 for n in self.counts]

    def phrasing(self, rng, want_held_out=False):
        """A random phrasing of the training set, or of the held-out set."""
        for _ in range(400):
            s = words(expand(rng.choices(self.patterns, self.weights)[0], rng))
            if held_out(s) == want_held_out:
                return s
        return None


def load_topics():
    lists, topics = {}, []
    for line in (HERE / "topics.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if m := re.match(r"def (\w+) = (.*)", line):
            lists[m[1]] = m[2]
            continue
        if line.startswith("== "):
            topics.append(Topic(line[3:].strip()))
            continue
        t = topics[-1]
        key, value = line.split(": ", 1)
        if key == "a":
            t.answer = value.strip()
        elif key == "q":
            t.patterns.append(parse(value, lists))
        elif key == "h":
            t.unseen.append(parse(value, lists))
        elif key == "cmd":
            t.patterns += [parse(p.replace("X", value.strip()), lists) for p in COMMAND.splitlines()]
        elif key == "opt":
            t.patterns += [parse(p.replace("X", value.strip()), lists) for p in OPTION.splitlines()]
        elif key == "plain":
            t.plain = True
        else:
            raise SystemExit(f"topics.txt: unknown key {key}")
    off = Topic("off_topic", plain=True)
    off.answer = OFF_TOPIC
    lists = {}
    for line in (HERE / "offtopic.txt").read_text().splitlines():
        if m := re.match(r"def (\w+) = (.*)", line):
            lists[m[1]] = m[2]
        elif line[:3] in ("q: ", "h: "):
            (off.patterns if line[0] == "q" else off.unseen).append(parse(line[3:], lists))
    topics.append(off)
    for t in topics:
        t.finish()
    assert len({t.answer for t in topics}) == len(topics)
    return topics


BEFORE = ["please tell me", "tell me", "can you tell me", "hi,", "hello,", "hey,", "so", "please", "quick question:", "i wonder", "question:",
          "could you please tell me", "and", "ok,", "i would like to know", "sorry,", "hello brim,", "hey brim,", "one more question:", "now"]
AFTER = ["please", "thanks", "in brim", "with brim", "for brim", "in brim, please", "here", "exactly", "on my box", "on this machine", "then", "again",
         "thank you", "on linux"]
EDGE = re.compile(r"--?\w|`|\d|_|\b[mgk]ib\b|\.\w")


def typo(s, rng):
    """One slip of the fingers in a word of four letters or more; numbers, options and code stay whole."""
    parts = s.split(" ")
    able = [i for i, w in enumerate(parts) if len(w) >= 4 and w.isalpha()]
    if not able:
        return s
    i = rng.choice(able)
    w = list(parts[i])
    k = rng.randrange(1, len(w) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        w[k], w[k + 1] = w[k + 1], w[k]
    elif kind == 1:
        del w[k]
    elif kind == 2:
        w.insert(k, w[k])
    else:
        w[k] = rng.choice("abcdefghijklmnopqrstuvwxyz")
    parts[i] = "".join(w)
    return " ".join(parts)


def dress(s, topic, rng, rough=True):
    """A phrasing as somebody might type it: polite or not, capital or not, with or without the question mark, with slips."""
    if not topic.plain or (topic.name == "off_topic" and rng.random() < 0.3):
        if rng.random() < 0.2:
            s = rng.choice(BEFORE) + " " + s
        if rng.random() < 0.15 and (topic.name != "off_topic" or rng.random() < 0.3):
            s = s + " " + rng.choice(AFTER)
    if rough:
        r = rng.random()
        if r < 0.18:
            s = typo(s, rng)
        if r < 0.04:
            s = typo(s, rng)
        if 0.2 < r < 0.26:  # a forgotten word
            parts = s.split(" ")
            weak = [i for i, w in enumerate(parts) if w in ("the", "a", "an", "i", "do", "does", "is", "are", "to", "of", "my")]
            if weak and len(parts) > 3:
                del parts[rng.choice(weak)]
                s = " ".join(parts)
    r = rng.random()
    if r < 0.5:
        s = s[:1].upper() + s[1:]
        s = re.sub(r"\bi\b", "I", s)
    elif r < 0.75:
        s = s.lower()
    elif r < 0.77:
        s = s.upper() if not EDGE.search(s) else s
    r = rng.random()
    if r < 0.5:
        s += "?"
    elif r < 0.56:
        s += "."
    elif r < 0.6:
        s += " ?"
    elif r < 0.63:
        s += "!"
    elif r < 0.65:
        s += "??"
    return s


SYSTEM = ["You are a helpful assistant.", "You are brim's demo model.", "Answer briefly.", "You answer questions about brim.", "Be concise.",
          "You are a helpful, honest assistant. Keep your answers short.", "You are the assistant on an edge box.", "You are a chat bot."]


def conversation(topics, rng, turns):
    """A chat as a list of (role, text), with `turns` questions; one in eight has a system message."""
    chat = [("system", rng.choice(SYSTEM))] if rng.random() < 0.125 else []
    for _ in range(turns):
        t = rng.choice(topics) if rng.random() > 0.1 else topics[-1]
        chat.append(("user", dress(t.phrasing(rng), t, rng)))
        chat.append(("assistant", t.answer))
    return chat


def evaluation(topics, seed, per_topic=5):
    """(set name, topic, question) rows: held-out phrasings dressed without slips, and the unseen lines as they stand."""
    rng = random.Random(seed)
    rows = []
    for t in topics:
        seen = set()
        for _ in range(per_topic * 8):
            s = t.phrasing(rng, want_held_out=True)
            if s is None or s in seen:
                continue
            seen.add(s)
            rows.append(("held-out", t, dress(s, t, rng, rough=False)))
            if len(seen) == (per_topic * 5 if t.name == "off_topic" else per_topic):
                break
        for p in t.unseen:
            rows.append(("unseen", t, dress(words(expand(p, rng)), Topic("", True), rng, rough=False)))
    return rows


def main():
    topics = load_topics()
    rng = random.Random(0)
    print(len(topics), "topics,", sum(sum(t.counts) for t in topics), "phrasings before politeness, case, punctuation and slips")
    few = sorted(topics, key=lambda t: sum(t.counts))[:6]
    print("fewest:", ", ".join(f"{t.name} {sum(t.counts)}" for t in few))
    rows = evaluation(topics, 1)
    for kind in ("held-out", "unseen"):
        mine = [r for r in rows if r[0] == kind]
        print(f"{len(mine)} {kind}, for instance:", *(q for _, _, q in rng.sample(mine, 6)), sep="\n    ")
    no_held = {t.name for t in topics} - {t.name for k, t, _ in rows if k == "held-out"}
    print("topics without a held-out phrasing:", no_held or "none")
    print("training, for instance:")
    for _ in range(12):
        for role, text in conversation(topics, rng, 1):
            print(f"    {role}: {text}")


if __name__ == "__main__":
    main()
