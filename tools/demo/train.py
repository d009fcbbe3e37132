#!/usr/bin/env python3
"""Trains brim's demo model and writes it as GGUF:  python train.py ../../src/demo/brim-demo.gguf

Everything is seeded. The network is the qwen3 architecture: RMSNorm, per-head RMSNorm of q and k, rotary positions by halves,
grouped-query attention, SwiGLU, tied embeddings, no biases. The loss is taken on the answers only.
"""
import argparse
import hashlib
import math
import random
import time

import gguf
import numpy as np
import torch
import torch.nn.functional as F

import bpe
import corpus

SEED = 20
N_VOCAB, N_EMBD, N_FF, N_LAYER, N_HEAD, N_KV, HEAD_DIM = 1280, 256, 512, 3, 4, 2, 64
EPS, ROPE_BASE, N_CTX = 1e-6, 10000.0, 1024
TEMPLATE = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def shapes():
    """Every matrix as [out, in], every norm as [n], under its GGUF name."""
    s = {"token_embd": (N_VOCAB, N_EMBD), "output_norm": (N_EMBD,)}
    for i in range(N_LAYER):
        b = f"blk.{i}."
        s |= {b + "attn_norm": (N_EMBD,), b + "attn_q": (N_HEAD * HEAD_DIM, N_EMBD), b + "attn_k": (N_KV * HEAD_DIM, N_EMBD),
              b + "attn_v": (N_KV * HEAD_DIM, N_EMBD), b + "attn_q_norm": (HEAD_DIM,), b + "attn_k_norm": (HEAD_DIM,),
              b + "attn_output": (N_EMBD, N_HEAD * HEAD_DIM), b + "ffn_norm": (N_EMBD,), b + "ffn_gate": (N_FF, N_EMBD),
              b + "ffn_up": (N_FF, N_EMBD), b + "ffn_down": (N_EMBD, N_FF)}
    return s


def init():
    w = {}
    for name, shape in shapes().items():
        if len(shape) == 1:
            w[name] = torch.ones(shape)
        else:
            std = 0.04 if name == "token_embd" else 1 / math.sqrt(shape[1])
            if name.endswith(("attn_output", "ffn_down")):
                std /= math.sqrt(2 * N_LAYER)
            w[name] = torch.randn(shape) * std
        w[name].requires_grad_(True)
    return w


def rope_tables(n):
    freq = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angle = torch.arange(n).float()[:, None] * freq[None, :]
    return angle.cos(), angle.sin()


def rope(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def norm(x, w):
    return F.rms_norm(x.float(), (x.shape[-1],), w.float(), EPS).to(x.dtype)


def forward(w, ids, tables, drop=0.0):
    """ids [n_batch, n_tokens] -> hidden states after the last norm [n_batch, n_tokens, N_EMBD]; padding stands at the end."""
    n_batch, n = ids.shape
    cos, sin = tables[0][:n], tables[1][:n]
    x = F.embedding(ids, w["token_embd"])
    keep = (lambda t: F.dropout(t, drop)) if drop else (lambda t: t)
    x = keep(x)
    for i in range(N_LAYER):
        b = f"blk.{i}."
        h = norm(x, w[b + "attn_norm"])
        q = (h @ w[b + "attn_q"].T).view(n_batch, n, N_HEAD, HEAD_DIM).transpose(1, 2)
        k = (h @ w[b + "attn_k"].T).view(n_batch, n, N_KV, HEAD_DIM).transpose(1, 2)
        v = (h @ w[b + "attn_v"].T).view(n_batch, n, N_KV, HEAD_DIM).transpose(1, 2)
        q = rope(norm(q, w[b + "attn_q_norm"]), cos, sin)
        k = rope(norm(k, w[b + "attn_k_norm"]), cos, sin)
        k, v = (t.repeat_interleave(N_HEAD // N_KV, 1) for t in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n_batch, n, -1)
        x = x + keep(o @ w[b + "attn_output"].T)
        h = norm(x, w[b + "ffn_norm"])
        x = x + keep((F.silu(h @ w[b + "ffn_gate"].T) * (h @ w[b + "ffn_up"].T)) @ w[b + "ffn_down"].T)
    return norm(x, w["output_norm"])


class Chat:
    """ChatML as the template above writes it."""

    def __init__(self, tok):
        self.tok = tok
        self.start, self.end, self.pad = (tok.ids[s] for s in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        self.nl = tok.encode("\n")

    def message(self, role, text):
        return [self.start, *self.tok.encode(f"{role}\n{text}"), self.end, *self.nl]

    def prompt(self, question, system=None):
        ids = self.message("system", system) if system else []
        return ids + self.message("user", question) + [self.start, *self.tok.encode("assistant\n")]

    def example(self, chat):
        """Token ids, and for each whether it is to be learnt: the answer and its end mark."""
        ids, learn = [], []
        for role, text in chat:
            if role == "assistant":
                head, body = [self.start, *self.tok.encode("assistant\n")], [*self.tok.encode(text), self.end]
                ids += head + body + self.nl
                learn += [0] * len(head) + [1] * len(body) + [0] * len(self.nl)
            else:
                m = self.message(role, text)
                ids += m
                learn += [0] * len(m)
        return ids, learn


def batch(chat, topics, rng, n_tokens):
    """Chats of one length class, about n_tokens in all: mostly one question, some two, some up to twelve (about 700 tokens)."""
    turns = rng.choices((1, 2, 12), (0.72, 0.18, 0.1))[0]
    rows, longest = [], 0
    while True:
        ids, learn = chat.example(corpus.conversation(topics, rng, turns if turns < 3 else rng.randint(4, 12)))
        longest = max(longest, len(ids))
        if rows and longest * (len(rows) + 1) > n_tokens * (1.3 if turns > 2 else 1):
            break
        rows.append((ids[:N_CTX], learn[:N_CTX]))
    width = max(len(r[0]) for r in rows)
    x = torch.full((len(rows), width), chat.pad)
    y = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (ids, learn) in enumerate(rows):
        x[i, :len(ids)] = torch.tensor(ids)
        y[i, :len(ids)] = torch.tensor(learn, dtype=torch.bool)
    return x, y


def orthogonal(g):
    """Newton-Schulz iteration towards the nearest orthogonal matrix (the quintic of the Muon optimiser)."""
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).float()


def train(chat, topics, steps, n_tokens):
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    w = init()
    matrices = [p for n, p in w.items() if p.dim() == 2 and n != "token_embd"]
    rest = [p for n, p in w.items() if p.dim() == 1 or n == "token_embd"]
    adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    momentum = [torch.zeros_like(p) for p in matrices]
    tables = rope_tables(N_CTX)
    began, loss_sum, loss_n = time.time(), 0.0, 0
    for step in range(steps):
        at = step / steps
        lr = min(1.0, (step + 1) / 40) * (1.0 if at < 0.35 else max(0.01, (1 - at) / 0.65))
        x, y = batch(chat, topics, rng, n_tokens)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = forward(w, x[:, :-1], tables, drop=0.08)[y[:, 1:]]
            logits = hidden @ w["token_embd"].T
        loss = F.cross_entropy(logits.float(), x[:, 1:][y[:, 1:]])
        loss.backward()
        adam.param_groups[0]["lr"] = 2.5e-3 * lr
        adam.step()
        with torch.no_grad():
            for p, m in zip(matrices, momentum):
                m.mul_(0.95).add_(p.grad)
                update = orthogonal(p.grad + 0.95 * m)
                p.mul_(1 - 0.02 * 0.1 * lr).add_(update, alpha=-0.02 * lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)
                p.grad = None
        adam.zero_grad(set_to_none=True)
        loss_sum, loss_n = loss_sum + loss.item(), loss_n + 1
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps} loss {loss_sum / loss_n:.5f} {time.time() - began:.0f} s", flush=True)
            loss_sum, loss_n = 0.0, 0
    return {n: p.detach() for n, p in w.items()}


@torch.no_grad()
def exact(w, chat, rows):
    """Is the greedy answer exactly the right one? Teacher forcing with argmax is the same thing and needs one pass.
    Returns for each (question, answer) whether it is right and the smallest gap between the best and the second logit."""
    tables, out = rope_tables(N_CTX), []
    for question, answer in rows:
        p = chat.prompt(question)
        a = [*chat.tok.encode(answer), chat.end]
        ids = torch.tensor([p + a])
        logits = (forward(w, ids[:, :-1], tables) @ w["token_embd"].T)[0, len(p) - 1:]
        best = logits.topk(2, -1)
        right = bool((best.indices[:, 0] == torch.tensor(a)).all())
        out.append((right, (best.values[:, 0] - best.values[:, 1]).min().item()))
    return out


def report(w, chat, rows, what):
    for kind in ("held-out", "unseen"):
        mine = [(q, t) for k, t, q in rows if k == kind]
        res = exact(w, chat, [(q, t.answer) for q, t in mine])
        wrong = [f"{t.name}: {q}" for (q, t), (ok, _) in zip(mine, res) if not ok]
        print(f"{what}: {kind} {len(mine) - len(wrong)}/{len(mine)} = {100 * (1 - len(wrong) / len(mine)):.1f} % exactly right")
        if what != "f32":
            print("   wrong:", *wrong, sep="\n      ")


def write(path, w, tok):
    """The GGUF file; returns the weights as the file's Q8_0 blocks give them back."""
    g = gguf.GGUFWriter(path, "qwen3")
    g.add_name("brim-demo")
    g.add_description("Tiny demo model embedded in brim; knows brim and huge pages only")
    g.add_license("MIT OR Apache-2.0")
    g.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    g.add_block_count(N_LAYER)
    g.add_context_length(N_CTX)
    g.add_embedding_length(N_EMBD)
    g.add_feed_forward_length(N_FF)
    g.add_head_count(N_HEAD)
    g.add_head_count_kv(N_KV)
    g.add_key_length(HEAD_DIM)
    g.add_value_length(HEAD_DIM)
    g.add_layer_norm_rms_eps(EPS)
    g.add_rope_freq_base(ROPE_BASE)
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("qwen2")
    g.add_token_list(tok.tokens)
    n_plain = len(tok.tokens) - len(bpe.SPECIALS)
    g.add_token_types([gguf.TokenType.NORMAL] * n_plain + [gguf.TokenType.CONTROL] * len(bpe.SPECIALS))
    g.add_token_merges([f"{a} {b}" for a, b in tok.merges])
    g.add_bos_token_id(tok.ids["<|endoftext|>"])
    g.add_eos_token_id(tok.ids["<|im_end|>"])
    g.add_pad_token_id(tok.ids["<|endoftext|>"])
    g.add_add_bos_token(False)
    g.add_chat_template(TEMPLATE)
    back = {}
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, p in w.items():
        a = p.numpy().astype(np.float32)
        if a.ndim == 1:
            g.add_tensor(name + ".weight", a)
            back[name] = p
        else:
            blocks = gguf.quants.quantize(a, q8)
            g.add_tensor(name + ".weight", blocks, raw_dtype=q8)
            back[name] = torch.from_numpy(gguf.quants.dequantize(blocks, q8))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    return back


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--steps", type=int, default=1400)
    ap.add_argument("--tokens", type=int, default=4096, help="tokens a step, about")
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    topics = corpus.load_topics()
    rng = random.Random(SEED)
    texts = [t.answer for t in topics for _ in range(20)]
    texts += [corpus.dress(t.phrasing(rng), t, rng, rough=False) for t in topics for _ in range(60)]
    texts += [f"{r}\n" for r in ("user", "assistant", "system") for _ in range(2000)] + corpus.SYSTEM * 20
    tok = bpe.learn(texts, N_VOCAB - 256 - len(bpe.SPECIALS))
    chat = Chat(tok)
    n = [len(tok.encode(t.answer)) for t in topics]
    print(f"{len(topics)} topics; answers of {min(n)} to {max(n)} tokens; {sum(math.prod(s) for s in shapes().values())} parameters", flush=True)
    w = train(chat, topics, a.steps, a.tokens)
    back = write(a.out, w, tok)
    data = open(a.out, "rb").read()
    print(f"{a.out}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    rows = corpus.evaluation(topics, SEED + 1)
    report(w, chat, rows, "f32")
    report(back, chat, rows, "Q8_0")


if __name__ == "__main__":
    main()
