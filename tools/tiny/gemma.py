"""Google's Gemma, the architectures that `tiny_models.SPECS` does not have."""
from tiny.builder import Model, SCORE_STD, quantised

# The square of it is the spread of scores of normed heads that are not divided by the root of their length.
SHARP = SCORE_STD ** 0.5
# Divisors of frequencies: what is not rotated is divided by so much.
STILL = 1e30


def gemma(f, embd, layers, heads, kv, head_dim, ff):
    f.header(embd, layers, heads, kv, head_dim, ff, base=1e4, eps=1e-6)
    f.ends(embd, scale=embd ** 0.5)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        f.attention(b, embd, heads, kv, head_dim)
        f.norm(f"{b}ffn_norm", embd)
        f.ffn(b, embd, ff)


def gemma2(f, embd, layers, heads, kv, head_dim, ff, window):
    f.header(embd, layers, heads, kv, head_dim, ff, base=1e4, eps=1e-6, attention__sliding_window=window,
             attn_logit_softcapping=3.0, final_logit_softcapping=30.0)
    f.ends(embd, scale=embd ** 0.5)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        # Scores that the cap bends.
        f.attention(b, embd, heads, kv, head_dim)
        f.norm(f"{b}post_attention_norm", embd)
        f.norm(f"{b}ffn_norm", embd)
        f.ffn(b, embd, ff)
        f.norm(f"{b}post_ffw_norm", embd)


def gemma4(f, embd, windows, heads, kv, dims, rotated, window, ff, experts=0, used=0, expert_ff=0, value_layers=(),
           shared=0, per_layer=0, fused=True, out_scales=True):
    """`windows`: of each layer whether it has one; `dims`: values of a head without and with one; `kv`: key and value heads
    likewise; `rotated`: those of a full head, and of one with a window. `value_layers` are the full ones with values of their
    own, `shared` the last layers that have no keys and values, `per_layer` the width of the per-layer embeddings."""
    layers = len(windows)
    kv_of = [kv[w] for w in windows]
    f.header(embd, layers, heads, kv_of, dims[0], ff, base=1e6, eps=1e-6,
             attention__sliding_window=window, attention__sliding_window_pattern=[bool(w) for w in windows],
             attention__key_length_swa=dims[1], attention__value_length_swa=dims[1],
             rope__dimension_count_swa=rotated[1], rope__freq_base_swa=1e4, final_logit_softcapping=30.0,
             attention__shared_kv_layers=shared, embedding_length_per_layer_input=per_layer,
             expert_count=experts or None, expert_used_count=used or None,
             expert_feed_forward_length=expert_ff or None)
    f.ends(embd, scale=embd ** 0.5)
    f.tensor("rope_freqs.weight", [1.0] * (rotated[0] // 2) + [STILL] * ((dims[0] - rotated[0]) // 2))
    if per_layer:
        f.matrix("per_layer_token_embd", f.n_vocab, per_layer * layers, layers ** 0.5)
        f.matrix("per_layer_model_proj", per_layer * layers, embd, 2.0)
        f.norm("per_layer_proj_norm", per_layer)
    for i, w in enumerate(windows):
        b, own = f"blk.{i}.", i < layers - shared
        d, k, n_ff = dims[w], kv[w], ff if isinstance(ff, int) else ff[i]
        f.norm(f"{b}attn_norm", embd)
        f.matrix(f"{b}attn_q", heads * d, embd)
        f.norm(f"{b}attn_q_norm", d, SHARP * d ** -0.25)
        if own:
            f.matrix(f"{b}attn_k", k * d, embd)
            f.norm(f"{b}attn_k_norm", d, SHARP * d ** -0.25)
            if w or i in value_layers:
                f.matrix(f"{b}attn_v", k * d, embd)
        f.matrix(f"{b}attn_output", embd, heads * d)
        f.norm(f"{b}post_attention_norm", embd)
        f.norm(f"{b}ffn_norm", embd)
        f.ffn(b, embd, n_ff)
        f.norm(f"{b}post_ffw_norm", embd)
        if experts:
            f.moe(b, embd, expert_ff, experts, fused=fused)
            f.vector(f"{b}ffn_gate_inp.scale", embd, 0.2 * embd ** 0.5, embd ** 0.5)
            f.vector(f"{b}ffn_down_exps.scale", experts, 0.3, 1.0)
            f.norm(f"{b}pre_ffw_norm_2", embd)
            f.norm(f"{b}post_ffw_norm_1", embd)
            f.norm(f"{b}post_ffw_norm_2", embd)
        if per_layer:
            f.matrix(f"{b}inp_gate", per_layer, embd)
            f.matrix(f"{b}proj", embd, per_layer)
            f.norm(f"{b}post_norm", embd)
        if out_scales:
            f.tensor(f"{b}layer_output_scale.weight", [0.6 + 0.1 * (i % 5)])


# As 26B-A4B.
MOE = dict(embd=36, windows=[1, 0, 0], heads=4, kv=(1, 2), dims=(20, 8), rotated=(8, 8), window=27, ff=44, experts=5,
           used=3, expert_ff=20, value_layers=(2,))
# As 31B.
DENSE = dict(embd=40, windows=[1, 1, 0, 1], heads=4, kv=(1, 2), dims=(16, 10), rotated=(4, 6), window=24, ff=44)
# As E2B: layers that read others' keys and values have wider feed-forward parts.
SMALL = dict(embd=36, windows=[1, 1, 0, 1, 0], heads=4, kv=(1, 1), dims=(16, 8), rotated=(4, 8), window=25,
             ff=[40] * 3 + [56] * 2, value_layers=(2,), shared=2, per_layer=12)
WIDE = dict(embd=256, heads=8, kv=(1, 2), dims=(64, 32), rotated=(16, 32))

MODELS = {
    "gemma-f32": Model("gemma", gemma, dict(embd=40, layers=2, heads=3, kv=1, head_dim=20, ff=76)),
    "gemma2-f32": Model("gemma2", gemma2, dict(embd=40, layers=4, heads=6, kv=3, head_dim=12, ff=60, window=27)),
    "gemma4-moe-f32": Model("gemma4", gemma4, MOE),
    "gemma4-dense-f32": Model("gemma4", gemma4, DENSE),
    "gemma4-small-f32": Model("gemma4", gemma4, SMALL),
}
for kind in ["q8_0", "q4_k_m", "iq4_xs"]:
    MODELS |= {
        f"gemma4-moe-{kind}": quantised(MODELS["gemma4-moe-f32"], kind, ff=512, expert_ff=256, **WIDE),
        f"gemma4-dense-{kind}": quantised(MODELS["gemma4-dense-f32"], kind, ff=512, **WIDE),
        f"gemma4-small-{kind}": quantised(
            MODELS["gemma4-small-f32"], kind, ff=[256] * 3 + [512] * 2, per_layer=256, **WIDE),
    }
