"""Architectures with experts, and the language models of those that see images: relatives of Llama and Qwen whose difference
is how experts are scored, weighed and kept company."""
from tiny.builder import LOGIT_STD, Model, quantised


def decoder(f, embd, layers, heads, kv, dim, ff, expert_ff=0, n=0, used=0, shared=0, shared_key=None, dense=0, dense_key=True,
            tied=False, normed=False, whole=False, biases="", gate=False, selection_bias=False, fused=False, bias_name=None,
            ffn_norm="ffn_norm", own_width=True, qkv=False, scale=1.0, logit_std=LOGIT_STD, **keys):
    """Attention, and experts in all layers but `dense` leading ones. `shared`: the width of what every token meets,
    `shared_key`: what the file says of it; `gate`: whether it has one."""
    if n:
        keys |= dict(expert_count=n, expert_used_count=used)
        if own_width:
            keys["expert_feed_forward_length"] = expert_ff
    if dense_key and dense:
        keys["leading_dense_block_count"] = dense
    if shared_key:
        keys["expert_shared_feed_forward_length"] = shared_key
    f.header(embd, layers, heads, kv, dim, ff, **keys)
    f.ends(embd, tied=tied, scale=scale, logit_std=logit_std)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        if qkv:
            fused_attention(f, b, embd, heads, kv, dim, normed)
        else:
            f.attention(b, embd, heads, kv, dim, biases=biases, normed=normed, gain=1.5)
        if whole:
            f.norm(b + "attn_q_norm", heads * dim, 1.5)
            f.norm(b + "attn_k_norm", kv * dim, 1.5)
        f.norm(b + ffn_norm, embd)
        if i < dense or not n:
            f.ffn(b, embd, ff)
            continue
        f.moe(b, embd, expert_ff, n, selection_bias=selection_bias and not bias_name, fused=fused)
        if bias_name:
            f.vector(b + bias_name, n, 0.3)
        if shared:
            f.ffn(b, embd, shared, "_shexp")
        if gate:
            f.vector(b + "ffn_gate_inp_shexp.weight", embd, embd ** -0.5)


def fused_attention(f, b, embd, heads, kv, dim, normed):
    """The same with Q, K and V in one tensor."""
    f.matrix(b + "attn_qkv", (heads + 2 * kv) * dim, embd, 1.0 if normed else 1.6)
    if normed:
        f.norm(b + "attn_q_norm", dim, 1.6)
        f.norm(b + "attn_k_norm", dim, 1.6)
    f.matrix(b + "attn_output", embd, heads * dim, 1.5)


def arctic(f, embd, layers, heads, kv, dim, ff, n, used, **keys):
    f.header(embd, layers, heads, kv, dim, ff, expert_count=n, expert_used_count=used, **keys)
    f.ends(embd, tied=True)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, gain=1.5)
        f.norm(b + "ffn_norm", embd)
        f.ffn(b, embd, embd)
        f.norm(b + "ffn_norm_exps", embd)
        f.moe(b, embd, ff, n)


def phimoe(f, embd, layers, heads, kv, dim, ff, n, used, **keys):
    f.header(embd, layers, heads, kv, dim, ff, expert_count=n, expert_used_count=used, **keys)
    f.ends(embd, tied=False, bias=0.3)
    f.vector("output.bias", f.n_vocab, 0.5)
    factors = 1 + 3 * f.rng.random(dim // 2)
    f.tensor("rope_factors_short.weight", factors)
    f.tensor("rope_factors_long.weight", 2 * factors)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd, bias=0.3)
        f.attention(b, embd, heads, kv, dim, biases="q k v output", gain=1.5)
        f.norm(b + "ffn_norm", embd, bias=0.3)
        f.moe(b, embd, ff, n)


def granite(f, scale, logit_scale, dim, **sizes):
    """Scores are as peaked as elsewhere: their factor is near the usual one."""
    decoder(f, dim=dim, scale=scale, logit_std=LOGIT_STD * logit_scale, embedding_scale=scale, logit_scale=logit_scale,
            attention__scale=1.3 * dim ** -0.5, **sizes)


def minimax_m3(f, embd, layers, heads, kv, dim, index_dim, dense, **sizes):
    decoder(f, embd, layers, heads, kv, dim, dense=dense, normed=True, selection_bias=True, attention__indexer__head_count=kv,
            attention__indexer__key_length=index_dim, attention__indexer__top_k=16, attention__indexer__block_size=128,
            attention__indexer__local_blocks=1, **sizes)
    for i in range(dense, layers):
        b = f"blk.{i}.indexer."
        f.matrix(b + "q_proj", kv * index_dim, embd)
        f.matrix(b + "k_proj", index_dim, embd)
        f.norm(b + "q_norm", index_dim)
        f.norm(b + "k_norm", index_dim)


SIGMOID = dict(expert_gating_func=2, expert_weights_norm=True)
MODELS = {
    "qwen2moe-f32": Model("qwen2moe", decoder, dict(
        embd=32, layers=2, heads=4, kv=2, dim=8, ff=52, expert_ff=20, n=5, used=3, shared=44, shared_key=44, gate=True,
        biases="q k v")),
    "qwen2vl-f32": Model("qwen2vl", decoder, dict(
        embd=36, layers=2, heads=3, kv=1, dim=12, ff=56, biases="q k v", tied=True, rope__dimension_sections=[1, 3, 2, 0])),
    "qwen3vl-f32": Model("qwen3vl", decoder, dict(
        embd=32, layers=3, heads=4, kv=2, dim=12, ff=56, normed=True, tied=True, rope__dimension_sections=[2, 2, 2, 0],
        n_deepstack_layers=2)),
    "qwen3vlmoe-f32": Model("qwen3vlmoe", decoder, dict(
        embd=32, layers=3, heads=4, kv=2, dim=12, ff=56, expert_ff=20, n=5, used=3, normed=True,
        rope__dimension_sections=[2, 2, 2, 0], n_deepstack_layers=2)),
    "ernie4_5-f32": Model("ernie4_5", decoder, dict(embd=32, layers=2, heads=6, kv=2, dim=10, ff=56, tied=True, base=5e5)),
    "ernie4_5-moe-f32": Model("ernie4_5-moe", decoder, dict(
        embd=32, layers=3, heads=4, kv=2, dim=10, ff=56, expert_ff=20, n=5, used=3, shared=40, shared_key=40, dense=1,
        selection_bias=True, base=5e5, expert_shared_count=2, interleave_moe_layer_step=1)),
    "dots1-f32": Model("dots1", decoder, dict(
        embd=32, layers=3, heads=4, kv=4, dim=10, ff=56, expert_ff=20, n=5, used=2, shared=40, dense=1, normed=True,
        selection_bias=True, expert_shared_count=2, expert_weights_scale=1.5, **SIGMOID)),
    "hunyuan-dense-f32": Model("hunyuan-dense", decoder, dict(
        embd=32, layers=2, heads=4, kv=2, dim=10, ff=56, normed=True, tied=True, base=1e4, rope__scaling__alpha=50.0)),
    "hunyuan-moe-f32": Model("hunyuan-moe", decoder, dict(
        embd=32, layers=2, heads=4, kv=2, dim=10, ff=20, expert_ff=20, n=5, used=3, shared=52, shared_key=52, normed=True,
        tied=True, base=1e5, expert_shared_count=1)),
    "hy_v3-f32": Model("hy_v3", decoder, dict(
        embd=32, layers=3, heads=4, kv=2, dim=10, ff=56, expert_ff=20, n=5, used=3, shared=20, shared_key=20, dense=1,
        dense_key=False, normed=True, bias_name="exp_probs_b", fused=True, expert_weights_scale=1.8, **SIGMOID)),
    "bailingmoe-f32": Model("bailingmoe", decoder, dict(
        embd=32, layers=2, heads=4, kv=2, dim=10, ff=56, expert_ff=20, n=5, used=3, shared=40,
        expert_shared_count=2, expert_weights_norm=True, expert_weights_scale=1.0)),
    "bailingmoe2-f32": Model("bailingmoe2", decoder, dict(
        embd=32, layers=3, heads=4, kv=2, dim=8, ff=56, expert_ff=20, n=6, used=3, shared=44, shared_key=22, dense=1,
        normed=True, qkv=True, selection_bias=True, rope_dim=4, expert_shared_count=2, expert_weights_scale=2.5,
        expert_group_count=3, expert_group_used_count=2, **SIGMOID)),
    "olmoe-f32": Model("olmoe", decoder, dict(
        embd=36, layers=2, heads=3, kv=3, dim=12, ff=20, expert_ff=20, n=5, used=3, whole=True, own_width=False, base=1e4)),
    "deepseek-f32": Model("deepseek", decoder, dict(
        embd=36, layers=3, heads=3, kv=3, dim=12, ff=56, expert_ff=20, n=5, used=3, shared=40, dense=1, base=1e4,
        expert_shared_count=2, expert_weights_scale=1.0, rope__scaling__type="none")),
    "dbrx-f32": Model("dbrx", decoder, dict(
        embd=40, layers=2, heads=4, kv=2, dim=10, ff=20, expert_ff=20, n=5, used=3, qkv=True, own_width=False,
        ffn_norm="attn_output_norm", base=5e5, eps=None, attention__layer_norm_epsilon=1e-5, attention__clamp_kqv=2.0)),
    "smallthinker-f32": Model("smallthinker", decoder, dict(
        embd=32, layers=5, heads=4, kv=2, dim=10, ff=28, expert_ff=28, n=6, used=2, tied=True, base=1.5e6,
        attention__sliding_window=4096, expert_gating_func=2)),
    "granite-f32": Model("granite", granite, dict(
        embd=32, layers=3, heads=4, kv=2, dim=10, ff=56, tied=True, scale=12.0, logit_scale=8.0, residual_scale=0.6)),
    "granite-nope-f32": Model("granite", granite, dict(
        embd=32, layers=2, heads=4, kv=2, dim=10, ff=56, tied=True, scale=12.0, logit_scale=8.0, residual_scale=0.6,
        rope__scaling__finetuned=False)),
    "granitemoe-f32": Model("granitemoe", granite, dict(
        embd=32, layers=3, heads=4, kv=2, dim=10, ff=20, expert_ff=20, n=5, used=3, shared=24, shared_key=24, own_width=False,
        tied=True, scale=12.0, logit_scale=6.0, residual_scale=0.7)),
    "arctic-f32": Model("arctic", arctic, dict(embd=32, layers=3, heads=4, kv=2, dim=8, ff=20, n=5, used=2, base=1e4)),
    "phimoe-f32": Model("phimoe", phimoe, dict(
        embd=32, layers=2, heads=4, kv=2, dim=8, ff=20, n=5, used=2, base=1e4, rope__scaling__type="longrope",
        rope__scaling__attn_factor=1.2, rope__scaling__original_context_length=512, attention__sliding_window=64)),
    "minimax-m3-f32": Model("minimax-m3", minimax_m3, dict(
        embd=32, layers=3, heads=4, kv=2, dim=12, index_dim=8, ff=56, expert_ff=20, n=5, used=2, shared=20, dense=1,
        rope_dim=6, base=5e6, expert_shared_count=1, expert_weights_scale=2.0, **SIGMOID)),
}

WIDE = dict(embd=256, heads=8, kv=2, dim=32, ff=256, expert_ff=256)
SHARED = dict(shared=256, shared_key=256)
for name, kind, sizes in (
        ("qwen2moe", "q4_k_m", WIDE | SHARED), ("qwen2moe", "iq4_xs", WIDE | SHARED), ("qwen2moe", "q8_0", WIDE | SHARED),
        ("qwen3vlmoe", "q4_k_m", WIDE | dict(rope__dimension_sections=[6, 5, 5, 0])),
        ("granitemoe", "q4_k_m", WIDE | SHARED), ("hy_v3", "q4_k_m", WIDE | SHARED), ("hy_v3", "iq4_xs", WIDE | SHARED),
        ("bailingmoe2", "q8_0", WIDE | dict(shared=512, shared_key=256, rope_dim=16)),
        ("minimax-m3", "q4_k_m", WIDE | dict(shared=256, rope_dim=16))):
    MODELS[f"{name}-{kind}"] = quantised(MODELS[f"{name}-f32"], kind, **sizes)
