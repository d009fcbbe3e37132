"""Multi-head latent attention: deepseek2 and its relatives."""
from gguf import GGMLQuantizationType as T

from tiny.builder import SCORE_STD, Model, quantised

SHARP = SCORE_STD ** 0.5


def latent_keys(file, heads, plain, rope, value, q_rank, kv_rank, split=True):
    """Keys of latent attention; the head is as long as what is kept of a position if its maps are split."""
    if q_rank is not None:
        file.key("attention.q_lora_rank", q_rank)
    file.key("attention.kv_lora_rank", kv_rank)
    if split:
        file.key("attention.key_length_mla", plain + rope)
        file.key("attention.value_length_mla", value)
    lengths = (kv_rank + rope, kv_rank) if split else (plain + rope, value)
    return {"kv": 1 if split else heads, "head_dim": None, "attention__key_length": lengths[0],
            "attention__value_length": lengths[1], "rope_dim": rope}


def latent_attention(file, b, embd, heads, plain, rope, value, q_rank, kv_rank, split=True, stretch=1.0, gain=1.0):
    """Tensors of latent attention; `stretch`: what scores are multiplied by beside their usual scale."""
    sharp = SHARP * stretch ** -0.5
    width = heads * (plain + rope)
    if q_rank:
        file.matrix(f"{b}attn_q_a", q_rank, embd)
        file.norm(f"{b}attn_q_a_norm", q_rank)
        file.matrix(f"{b}attn_q_b", width, q_rank, sharp)
    else:
        file.matrix(f"{b}attn_q", width, embd, sharp)
    file.matrix(f"{b}attn_kv_a_mqa", kv_rank + rope, embd, sharp)
    file.norm(f"{b}attn_kv_a_norm", kv_rank)
    if split:
        # Transposed: what is kept of a position are its rows.
        kind = T.Q8_0 if plain % 256 and file.kind("attn_k_b") not in (T.F32, T.F16, T.BF16) else None
        file.experts(f"{b}attn_k_b", heads, kv_rank, plain, sharp * (plain / kv_rank) ** 0.5, kind=kind)
        file.experts(f"{b}attn_v_b", heads, value, kv_rank)
    else:
        file.matrix(f"{b}attn_kv_b", heads * (plain + value), kv_rank, sharp)
    file.matrix(f"{b}attn_output", embd, heads * value, gain)


def deepseek2(file, embd=32, layers=3, heads=5, plain=20, rope=16, value=12, q_rank=24, kv_rank=32, ff=40, split=True,
              dense=1, expert_ff=12, experts=5, used=3, shared=1, groups=(0, 0), gating=None, normed=False, scale=None,
              selection_bias=False, yarn=None, temperature=None, nextn=0, tied=False):
    """`yarn`: factor, original context, multiplier of the logarithm."""
    sizes = (heads, plain, rope, value, q_rank, kv_rank)
    file.header(embd, layers + nextn, heads, ff=ff, **latent_keys(file, *sizes, split))
    file.keys(leading_dense_block_count=dense, expert_count=experts, expert_used_count=used,
              expert_feed_forward_length=expert_ff, expert_shared_count=shared)
    if nextn:
        file.key("nextn_predict_layers", nextn)
    if groups[0]:
        file.keys(expert_group_count=groups[0], expert_group_used_count=groups[1])
    if gating:
        file.key("expert_gating_func", gating)
    if normed:
        file.key("expert_weights_norm", True)
    if scale:
        file.key("expert_weights_scale", scale)
    stretch = (1.3 if yarn else 1.0) * (1.5 if temperature else 1.0)
    if yarn:
        factor, original, multiplier = yarn
        file.keys(rope__scaling__type="yarn", rope__scaling__factor=factor,
                  rope__scaling__original_context_length=original, rope__scaling__yarn_log_multiplier=multiplier)
    if temperature:
        file.keys(attention__temperature_scale=temperature[0], attention__temperature_length=temperature[1])
    file.ends(embd, tied)
    for i in range(layers + nextn):
        b = f"blk.{i}."
        file.norm(f"{b}attn_norm", embd)
        latent_attention(file, b, embd, *sizes, split, stretch)
        file.norm(f"{b}ffn_norm", embd)
        if i < dense:
            file.ffn(b, embd, ff)
        else:
            file.moe(b, embd, expert_ff, experts, selection_bias=selection_bias)
            if shared:
                file.ffn(b, embd, shared * expert_ff, "_shexp")
    for i in range(layers, layers + nextn):
        b = f"blk.{i}.nextn."
        file.matrix(f"{b}eh_proj", embd, 2 * embd)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            file.norm(f"{b}{name}", embd)


def minicpm3(file, embd=32, layers=3, heads=5, plain=20, rope=16, value=12, q_rank=24, kv_rank=32, ff=56):
    sizes = (heads, plain, rope, value, q_rank, kv_rank)
    file.header(embd, layers, heads, ff=ff, rope__scaling__original_context_length=128,
                **latent_keys(file, *sizes, split=False))
    half = rope // 2
    file.tensor("rope_factors_short.weight", [1 + 0.05 * i for i in range(half)])
    file.tensor("rope_factors_long.weight", [1 + 0.5 * i for i in range(half)])
    file.ends(embd, scale=12.0, logit_std=3.5 * embd / 256)
    gain = layers ** 0.5 / 1.4
    for i in range(layers):
        b = f"blk.{i}."
        file.norm(f"{b}attn_norm", embd)
        latent_attention(file, b, embd, *sizes, split=False, gain=gain)
        file.norm(f"{b}ffn_norm", embd)
        file.ffn(b, embd, ff, gain=gain)


def plm(file, embd=32, layers=3, heads=5, plain=20, rope=16, value=12, kv_rank=32, ff=56):
    sizes = (heads, plain, rope, value, None, kv_rank)
    file.header(embd, layers, heads, ff=ff, **latent_keys(file, *sizes, split=False))
    file.ends(embd)
    for i in range(layers):
        b = f"blk.{i}."
        file.norm(f"{b}attn_norm", embd)
        latent_attention(file, b, embd, *sizes, split=False)
        file.norm(f"{b}ffn_norm", embd)
        file.ffn(b, embd, ff, gated=False)


# As GLM-4.7-Flash: more heads than a vector has lanes, experts chosen by sigmoids plus a bias, a layer that predicts ahead.
GLM_FLASH = {"layers": 2, "heads": 18, "kv_rank": 16, "plain": 12, "value": 8, "q_rank": 16, "gating": 2, "normed": True,
             "scale": 1.8, "selection_bias": True, "nextn": 1, "tied": True}
# As V3: groups, YaRN.
V3 = {"experts": 8, "groups": (4, 2), "gating": 2, "normed": True, "scale": 2.5, "selection_bias": True,
      "yarn": (4.0, 64, 0.1)}
# As V2-Lite: queries of the stream, softmax over all experts, two shared ones, another strength of YaRN.
V2_LITE = {"q_rank": 0, "shared": 2, "gating": 1, "yarn": (4.0, 64, 0.0707), "tied": True}
MISTRAL4 = {"normed": True, "gating": 1, "yarn": (4.0, 64, 0.1), "temperature": (0.3, 48), "dense": 0}

# What is quantised has blocks of 256: sizes of GLM-4.7-Flash, but for layers and experts.
WIDE = {"embd": 512, "heads": 6, "plain": 192, "rope": 64, "value": 256, "kv_rank": 512, "ff": 512, "expert_ff": 256}

_glm = Model("deepseek2", deepseek2, GLM_FLASH)
_unsplit = Model("deepseek2", deepseek2, {**V2_LITE, "split": False})
_minicpm3 = Model("minicpm3", minicpm3)
MODELS = {
    "deepseek2-f32": _glm,
    "deepseek2-groups-f32": Model("deepseek2", deepseek2, V3),
    "deepseek2-lite-f32": Model("deepseek2", deepseek2, V2_LITE),
    "deepseek2-unsplit-f32": _unsplit,
    "mistral4-f32": Model("mistral4", deepseek2, MISTRAL4),
    "minicpm3-f32": _minicpm3,
    "plm-f32": Model("plm", plm),
    **{f"deepseek2-wide-{kind}": quantised(_glm, kind, **WIDE, q_rank=256) for kind in ("q8_0", "q4_k_m", "iq4_xs")},
    **{f"deepseek2-unsplit-wide-{kind}": quantised(_unsplit, kind, **WIDE) for kind in ("q8_0", "q4_k_m", "iq4_xs")},
}
