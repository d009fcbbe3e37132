"""GPTs of before Llama: LayerNorm with biases, GELU without a gate."""
from tiny.builder import Model


def gpt(f, embd=40, layers=2, heads=5, kv=5, head_dim=8, ff=60, tied=True, positions=False, embd_norm=False, ffn_norm=True,
        attn_norm_2=False, fused=True, biases=True, gated=False, layer_norm=True, rope_dim=None, output_bias=False, norm_biases=True,
        keys=()):
    """One of them. `fused`: Q, K and V are one tensor."""
    eps = {"attention__layer_norm_epsilon": 1e-5, "eps": None} if layer_norm else {}
    f.header(embd, layers, heads, kv, head_dim, ff, rope_dim=rope_dim, base=1e4, **eps, **dict(keys))
    bias = 0.3 if biases else 0.0
    norm_bias = 0.3 if layer_norm and norm_biases else 0.0
    f.ends(embd, tied, bias=norm_bias)
    if output_bias:
        f.vector("output.bias", f.n_vocab, 0.5)
    if positions:
        f.matrix("position_embd", 512, embd, (0.3 if tied else 1.0) * embd ** 0.5)
    if embd_norm:
        f.norm("token_embd_norm", embd, 1.0, norm_bias)
    for b in (f"blk.{i}." for i in range(layers)):
        f.norm(f"{b}attn_norm", embd, 1.0, norm_bias)
        if attn_norm_2:
            f.norm(f"{b}attn_norm_2", embd, 1.0, norm_bias)
        if fused:
            f.matrix(f"{b}attn_qkv", (heads + 2 * kv) * head_dim, embd, 1.6, bias)
            f.matrix(f"{b}attn_output", embd, heads * head_dim, 1.0, bias)
        else:
            f.attention(b, embd, heads, kv, head_dim, biases="q k v output" if biases else "")
        if ffn_norm:
            f.norm(f"{b}ffn_norm", embd, 1.0, norm_bias)
        f.ffn(b, embd, ff, gated=gated, biases="gate up down" if biases else "")


MODELS = {
    "gpt2-f32": Model("gpt2", gpt, {"positions": True}),
    "starcoder-f32": Model("starcoder", gpt, {"positions": True, "kv": 1, "tied": False}),
    "starcoder2-f32": Model("starcoder2", gpt, {"fused": False, "heads": 4, "kv": 2, "head_dim": 10}),
    "codeshell-f32": Model("codeshell", gpt, {"fused": False, "heads": 4, "kv": 2, "head_dim": 10, "tied": False}),
    "gptneox-f32": Model("gptneox", gpt, {"tied": False, "rope_dim": 4, "keys": {"use_parallel_residual": True}}),
    "gptneox-in-turn-f32": Model("gptneox", gpt, {"tied": False, "keys": {"use_parallel_residual": False}}),
    "phi2-f32": Model("phi2", gpt, {"tied": False, "fused": False, "ffn_norm": False, "rope_dim": 4, "output_bias": True}),
    "falcon-f32": Model("falcon", gpt, {"kv": 1, "ffn_norm": False, "biases": False}),
    "falcon-two-norms-f32": Model("falcon", gpt, {
        "heads": 4, "kv": 2, "head_dim": 10, "tied": False, "ffn_norm": False, "attn_norm_2": True, "biases": False}),
    "bloom-f32": Model("bloom", gpt, {"heads": 4, "kv": 4, "head_dim": 10, "embd_norm": True, "tied": False}),
    "mpt-f32": Model("mpt", gpt, {"biases": False, "norm_biases": False, "keys": {
        "attention__max_alibi_bias": 8.0, "attention__clamp_kqv": 1.5}}),
    # Heads that are no power of two.
    "jais-f32": Model("jais", gpt, {"tied": False, "gated": True, "heads": 10, "kv": 10, "head_dim": 4, "keys": {
        "attention__max_alibi_bias": 8.0}}),
    "refact-f32": Model("refact", gpt, {
        "heads": 4, "kv": 1, "head_dim": 10, "fused": False, "biases": False, "gated": True, "layer_norm": False}),
}
