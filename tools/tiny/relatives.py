"""Relatives of Llama and Qwen that differ by geometry: gates of attention, layers of two kinds with other heads, windows and
rotations, chunks, values shorter than keys, weights on the inputs of experts."""
from gguf import GGMLQuantizationType as T

from tiny.builder import Model, quantised


def of(number, layer):
    """What is given once, or for each layer."""
    return number[layer] if isinstance(number, (list, tuple)) else number


def laguna(f, embd, layers, heads, kv, dim, ff, expert_ff, n, used, shared_ff, per_value=False, tied=False, dense=1,
           window=28, rope_dim=8):
    keys = dict(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=128)
    if window:
        keys |= dict(attention__sliding_window=window, rope__freq_base_swa=1e4, rope__dimension_count_swa=dim)
    f.header(embd, layers, heads, kv, dim, ff, rope_dim=rope_dim, base=5e5, leading_dense_block_count=dense, expert_count=n,
             expert_used_count=used, expert_feed_forward_length=expert_ff, expert_shared_feed_forward_length=shared_ff,
             expert_weights_norm=True, expert_weights_scale=1.5, expert_gating_func=2, **keys)
    f.ends(embd, tied=tied)
    for i in range(layers):
        b, h = f"blk.{i}.", of(heads, i)
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, h, kv, dim, normed=True, gain=1.5)
        f.matrix(b + "attn_gate", h * dim if per_value else h, embd, 1.5)
        f.norm(b + "ffn_norm", embd)
        if i < dense:
            f.ffn(b, embd, ff)
        else:
            f.moe(b, embd, expert_ff, n, selection_bias=True)
            f.ffn(b, embd, shared_ff, "_shexp")


def llama4(f, embd, layers, heads, kv, dim, ff, expert_ff, n, used=1, step=2):
    f.header(embd, layers, heads, kv, dim, ff, base=5e5, expert_count=n, expert_used_count=used,
             expert_feed_forward_length=expert_ff, interleave_moe_layer_step=step, context_length=16384)
    f.ends(embd, tied=False)
    for i in range(layers):
        b = f"blk.{i}."
        normed = (i + 1) % 4 != 0 and n != 128
        f.norm(b + "attn_norm", embd)
        # Normed heads have scores of deviation 1 by themselves; queries of the others are as peaked as elsewhere.
        f.attention(b, embd, heads, kv, dim, normed=False)
        f.norm(b + "ffn_norm", embd)
        if (i + 1) % step == 0:
            f.moe(b, embd, expert_ff, n)
            f.ffn(b, embd, expert_ff, "_shexp")
        else:
            f.ffn(b, embd, ff)


def mimo2(f, embd, heads, kv, dim, value_dim, ff, expert_ff, n, used, windows, rope_dim, fused=False, value_scale=0.7):
    layers = len(kv)
    f.header(embd, layers, heads, kv, dim, ff, rope_dim=rope_dim, base=5e6, attention__value_length=value_dim,
             attention__sliding_window=25, attention__sliding_window_pattern=windows, rope__freq_base_swa=2e4,
             expert_count=n, expert_used_count=used, expert_feed_forward_length=expert_ff, expert_gating_func=2,
             attention__value_scale=value_scale)
    f.ends(embd, tied=False)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        if fused:
            f.matrix(b + "attn_qkv", heads * dim + kv[i] * (dim + value_dim), embd, 1.5)
            f.matrix(b + "attn_output", embd, heads * value_dim)
        else:
            f.attention(b, embd, heads, kv[i], dim, value_dim)
        if windows[i]:
            f.vector(b + "attn_sinks.weight", heads, 1.5, mean=1.0)
        f.norm(b + "ffn_norm", embd)
        if i:
            f.moe(b, embd, expert_ff, n, selection_bias=True)
        else:
            f.ffn(b, embd, ff)


def exaone4(f, embd, layers, heads, kv, dim, ff, window=None, added=1.0):
    """`added`: how much layers add; with many of them, little."""
    f.header(embd, layers, heads, kv, dim, ff, attention__sliding_window=window)
    f.ends(embd, tied=True)
    for i in range(layers):
        b = f"blk.{i}."
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.norm(b + "post_attention_norm", embd, added)
        f.ffn(b, embd, ff)
        f.norm(b + "post_ffw_norm", embd, added)


def exaone_moe(f, embd, layers, heads, kv, dim, ff, expert_ff, n, used, shared):
    f.header(embd, layers, heads, kv, dim, ff, attention__sliding_window=27, leading_dense_block_count=1, expert_count=n,
             expert_used_count=used, expert_feed_forward_length=expert_ff, expert_shared_count=shared,
             expert_shared_feed_forward_length=shared * expert_ff, expert_gating_func=2, expert_weights_norm=True,
             expert_weights_scale=2.5)
    f.ends(embd, tied=False)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.norm(b + "ffn_norm", embd)
        if i:
            f.moe(b, embd, expert_ff, n, selection_bias=True)
            f.ffn(b, embd, shared * expert_ff, "_shexp")
        else:
            f.ffn(b, embd, ff)


def mellum(f, embd, layers, heads, kv, dim, expert_ff, n, used):
    f.header(embd, layers, heads, kv, dim, expert_ff * used, attention__sliding_window=30, expert_count=n,
             expert_used_count=used, expert_feed_forward_length=expert_ff, rope__scaling__type="yarn",
             rope__scaling__factor=4.0, rope__scaling__original_context_length=128)
    f.ends(embd, tied=False)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.norm(b + "ffn_norm", embd)
        f.moe(b, embd, expert_ff, n)


def spark(f, embd, heads, kv, dim, ff, windows, rope_dim):
    layers = len(heads)
    f.header(embd, layers, heads, kv, dim, ff, rope_dim=rope_dim, base=1e6, attention__sliding_window=29,
             attention__sliding_window_pattern=windows, rope__freq_base_swa=1e4, rope__dimension_count_swa=dim)
    f.ends(embd, tied=True)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads[i], kv[i], dim, gain=2.0)
        f.matrix(b + "attn_gate", heads[i], embd, 1.5)
        f.norm(b + "ffn_norm", embd)
        f.ffn(b, embd, ff)


def muse_glimmer(f, embd, layers, heads, kv, dim, ff, windows, rope_dim=None):
    f.header(embd, layers, heads, kv, dim, ff, rope_dim=rope_dim, base=5e5, attention__sliding_window=29,
             attention__sliding_window_pattern=windows, final_logit_softcapping=20.0, logit_scale=0.6, rope__freq_base_swa=2e4)
    f.ends(embd, tied=False, logit_std=6.0)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.matrix(b + "attn_gate", heads * dim, embd, 1.5)
        # What is normed is so small that an epsilon as large as that of the other norms would show.
        f.norm(b + "post_attention_norm", embd)
        f.norm(b + "ffn_norm", embd)
        f.ffn(b, embd, ff, gain=0.005)
        f.norm(b + "post_ffw_norm", embd)


def step35(f, embd, heads, kv, dim, ff, expert_ff, shared_ff, n, used, windows, rope_dim, limits, shared_limits, factors=True):
    layers = len(heads)
    f.header(embd, layers, heads, kv, dim, ff, rope_dim=rope_dim, base=5e5, attention__sliding_window=27,
             attention__sliding_window_pattern=windows, rope__freq_base_swa=2e4, leading_dense_block_count=1, expert_count=n,
             expert_used_count=used, expert_feed_forward_length=expert_ff, expert_shared_feed_forward_length=shared_ff,
             expert_weights_norm=True, expert_weights_scale=1.5, expert_gating_func=2, swiglu_clamp_exp=limits,
             swiglu_clamp_shexp=shared_limits)
    f.ends(embd, tied=False)
    if factors:
        f.tensor("rope_freqs.weight", [1.0 + i for i in range(rope_dim // 4)] + [1.0] * (rope_dim // 2 - rope_dim // 4))
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads[i], kv[i], dim, normed=True, gain=2.0)
        f.matrix(b + "attn_gate", heads[i], embd, 1.5)
        f.norm(b + "ffn_norm", embd)
        if i:
            f.moe(b, embd, expert_ff, n, selection_bias=True)
            f.ffn(b, embd, shared_ff, "_shexp")
        else:
            f.ffn(b, embd, ff)


def maple(f, embd, layers, heads, kv, dim, expert_ff, n, used, windows, rope_dim, limits):
    f.header(embd, layers, heads, kv, dim, expert_ff, rope_dim=rope_dim, base=1e6, attention__sliding_window=30,
             attention__sliding_window_pattern=windows, rope__freq_base_swa=2e4, expert_count=n, expert_used_count=used,
             expert_feed_forward_length=expert_ff, swiglu_clamp_exp=limits)
    f.ends(embd, tied=False)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.norm(b + "ffn_norm", embd)
        f.moe(b, embd, expert_ff, n)


def cohere(f, embd, layers, heads, kv, dim, ff, moe=None, rms=False, **keys):
    if moe:
        n, used, expert_ff, shared = moe
        keys |= dict(expert_count=n, expert_used_count=used, expert_feed_forward_length=expert_ff, expert_weights_norm=True,
                     expert_gating_func=2, leading_dense_block_count=1)
        if shared:
            keys |= dict(expert_shared_count=shared, expert_shared_feed_forward_length=shared * expert_ff)
    eps = {} if rms else {"eps": None, "attention__layer_norm_epsilon": 1e-5}
    f.header(embd, layers, heads, kv, dim, ff, base=2e5, logit_scale=0.25, **eps, **keys)
    f.ends(embd, tied=True, logit_std=14.0)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim)
        if moe and i:
            f.moe(b, embd, expert_ff, n)
            if shared:
                f.ffn(b, embd, shared * expert_ff, "_shexp")
        else:
            f.ffn(b, embd, ff)


def afmoe(f, embd, layers, heads, kv, dim, ff, expert_ff, n, used, shared, windows):
    f.header(embd, layers, heads, kv, dim, ff, attention__sliding_window=28, attention__sliding_window_pattern=windows,
             rope__freq_base_swa=2e4, leading_dense_block_count=1, expert_count=n, expert_used_count=used,
             expert_feed_forward_length=expert_ff, expert_shared_count=shared, expert_weights_norm=True,
             expert_weights_scale=1.5)
    f.ends(embd, tied=False, scale=embd ** 0.5)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.norm(b + "post_attention_norm", embd)
        f.attention(b, embd, heads, kv, dim, normed=True)
        f.matrix(b + "attn_gate", heads * dim, embd, 1.5)
        f.norm(b + "ffn_norm", embd)
        f.norm(b + "post_ffw_norm", embd)
        if i:
            f.moe(b, embd, expert_ff, n, selection_bias=True)
            f.ffn(b, embd, shared * expert_ff, "_shexp")
        else:
            f.ffn(b, embd, ff)


def granite_swa(f, embd, layers, heads, kv, dim, ff, windows, rotated, moe=None, biased=False):
    keys = {}
    if moe:
        n, used, shared_ff = moe
        keys = dict(expert_count=n, expert_used_count=used, expert_shared_feed_forward_length=shared_ff)
    f.header(embd, layers, heads, kv, dim, ff, attention__sliding_window=27, attention__sliding_window_pattern=windows,
             attention__rope_pattern=rotated, logit_scale=4.0, residual_scale=0.6, embedding_scale=6.0, attention__scale=0.2,
             **keys)
    f.ends(embd, tied=True, scale=6.0, logit_std=14.0)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(b + "attn_norm", embd)
        f.attention(b, embd, heads, kv, dim, biases="output" if biased else "")
        f.vector(b + "attn_sinks.weight", heads, 1.5, mean=1.0)
        f.norm(b + "ffn_norm", embd)
        if moe:
            f.moe(b, embd, ff, n)
            f.matrix(b + "ffn_up_shexp", 2 * shared_ff, embd, 1.5)
            f.matrix(b + "ffn_down_shexp", embd, shared_ff)
        else:
            f.ffn(b, embd, ff, biases="gate up down" if biased else "")


LAGUNA = Model("laguna", laguna, dict(embd=32, layers=4, heads=[4, 6, 6, 6], kv=2, dim=12, ff=40, expert_ff=16, n=5, used=2,
                                      shared_ff=12))
LLAMA4 = Model("llama4", llama4, dict(embd=32, layers=4, heads=4, kv=2, dim=12, ff=40, expert_ff=16, n=5))
MIMO2 = Model("mimo2", mimo2, dict(embd=32, heads=4, kv=[1, 2, 2, 1], dim=18, value_dim=12, ff=40, expert_ff=16, n=5, used=2,
                                   windows=[False, True, True, False], rope_dim=6))
MUSE = Model("muse-glimmer", muse_glimmer, dict(embd=36, layers=4, heads=4, kv=2, dim=12, ff=56,
                                                windows=[True, True, False, True]))
WIDE = dict(embd=256, dim=64)

MODELS = {
    "muse-glimmer-f32": MUSE,
    **{f"muse-glimmer-{kind}": quantised(MUSE, kind, embd=256, dim=64, ff=256) for kind in ("q8_0", "q4_k_m", "iq4_xs")},
    "laguna-f32": LAGUNA,
    "laguna-values-f32": Model("laguna", laguna, {**LAGUNA.sizes, "heads": 4, "per_value": True, "tied": True, "window": 0,
                                                  "layers": 2}),
    "laguna-q8_0": quantised(LAGUNA, "q8_0", **WIDE, ff=256, expert_ff=256, shared_ff=256, rope_dim=32),
    "laguna-q4_k_m": quantised(LAGUNA, "q4_k_m", **WIDE, ff=256, expert_ff=256, shared_ff=256, rope_dim=32,
                               heads=[4, 8, 8, 8]),
    "laguna-iq4_xs": quantised(LAGUNA, "iq4_xs", **WIDE, ff=256, expert_ff=256, shared_ff=256, rope_dim=32,
                               heads=[4, 8, 8, 8]),
    "llama4-f32": LLAMA4,
    **{f"llama4-{kind}": quantised(LLAMA4, kind, **WIDE, ff=256, expert_ff=256) for kind in ("q8_0", "q4_k_m", "iq4_xs")},
    "mimo2-f32": MIMO2,
    "mimo2-fused-f32": Model("mimo2", mimo2, {**MIMO2.sizes, "kv": [2, 1], "windows": [False, True], "fused": True,
                                              "value_scale": 1.0}),
    **{f"mimo2-{kind}": quantised(MIMO2, kind, embd=256, dim=96, value_dim=64, ff=256, expert_ff=256, rope_dim=32)
       for kind in ("q8_0", "q4_k_m", "iq4_xs")},
    "exaone4-f32": Model("exaone4", exaone4, dict(embd=36, layers=3, heads=3, kv=1, dim=12, ff=40)),
    "exaone4-window-f32": Model("exaone4", exaone4, dict(embd=16, layers=64, heads=2, kv=1, dim=8, ff=8, window=26, added=0.03),
                                golden=False),
    "exaone-moe-f32": Model("exaone-moe", exaone_moe, dict(embd=32, layers=4, heads=4, kv=2, dim=12, ff=40, expert_ff=16,
                                                           n=5, used=2, shared=2)),
    "mellum-f32": Model("mellum", mellum, dict(embd=32, layers=4, heads=4, kv=2, dim=12, expert_ff=16, n=5, used=2)),
    "spark2_5-f32": Model("spark2_5", spark, dict(embd=32, heads=[4, 6, 3], kv=[2, 2, 1], dim=12, ff=40,
                                                  windows=[True, True, False], rope_dim=6)),
    "step35-f32": Model("step35", step35, dict(embd=32, heads=[4, 6, 6, 4], kv=[2, 3, 3, 2], dim=12, ff=40, expert_ff=16,
                                               shared_ff=12, n=5, used=2, windows=[False, True, True, False], rope_dim=12,
                                               limits=[0.0, 0.0, 1.0, 0.7], shared_limits=[0.0, 0.5, 0.0, 0.9])),
    "maple-f32": Model("maple", maple, dict(embd=32, layers=3, heads=4, kv=2, dim=12, expert_ff=16, n=5, used=2,
                                            windows=[True, True, False], rope_dim=6, limits=[1.5, 0.0, 0.8])),
    "command-r-f32": Model("command-r", cohere, dict(embd=36, layers=3, heads=3, kv=1, dim=12, ff=56)),
    "cohere2-f32": Model("cohere2", cohere, dict(embd=36, layers=4, heads=3, kv=1, dim=12, ff=56,
                                                 attention__sliding_window=26)),
    "cohere2moe-f32": Model("cohere2moe", cohere, dict(embd=32, layers=5, heads=4, kv=2, dim=10, ff=40,
                                                       attention__sliding_window=26, moe=(5, 2, 16, 1))),
    "cohere2moe-rms-f32": Model("cohere2moe", cohere, dict(embd=32, layers=2, heads=4, kv=2, dim=10, ff=40, rms=True,
                                                           attention__sliding_window=26, moe=(5, 2, 16, 0))),
    "afmoe-f32": Model("afmoe", afmoe, dict(embd=32, layers=4, heads=4, kv=2, dim=12, ff=40, expert_ff=16, n=5, used=2,
                                            shared=1, windows=[True, False, True, False])),
    "granite-swa-f32": Model("granite_swa", granite_swa, dict(embd=36, layers=3, heads=3, kv=1, dim=12, ff=56, biased=True,
                                                              windows=[True, False, True], rotated=[True, True, False])),
    "granite-swa-moe-f32": Model("granite_swa", granite_swa, dict(embd=32, layers=2, heads=4, kv=2, dim=12, ff=20,
                                                                  windows=[True, False], rotated=[False, True],
                                                                  moe=(5, 2, 24))),
}
