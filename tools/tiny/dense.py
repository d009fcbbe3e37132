"""Dense decoders that are mostly configuration: relatives of Llama and Qwen, some with LayerNorm, some without a gate."""
from tiny.builder import LOGIT_STD, Model

LAYER_NORM = {"eps": None, "attention__layer_norm_epsilon": 1e-5}


def stack(f, embd, layers, heads, kv, head_dim, ff, *, fused=False, normed=False, biases="", ffn_biases="", gated=True,
          gate_in_up=False, norms="attn_norm ffn_norm", norm_bias=0.0, tied=False, scale=1.0, gain=1.0, logit_std=LOGIT_STD,
          written_ff=None, key_ff=None, extra=None, output_norm="output_norm", **keys):
    """A model of layers that are alike. `fused`: Q, K and V in one matrix, whose bias `biases` calls `qkv`. `gate_in_up`:
    so are gate and up. `extra(f, b, i)` writes what else a layer has."""
    f.header(embd, layers, heads, kv, head_dim, key_ff or ff, **keys)
    f.ends(embd, tied, scale=scale, bias=norm_bias, logit_std=logit_std, output_norm=output_norm)
    for i in range(layers):
        b = f"blk.{i}."
        for name in norms.split():
            f.norm(b + name, embd, bias=norm_bias)
        if fused:
            f.matrix(f"{b}attn_qkv", (heads + 2 * kv) * head_dim, embd, 1.5, 0.4 if "qkv" in biases.split() else 0.0)
            if normed:
                f.norm(f"{b}attn_q_norm", head_dim, 1.6)
                f.norm(f"{b}attn_k_norm", head_dim, 1.6)
            f.matrix(f"{b}attn_output", embd, heads * head_dim, gain, 0.2 if "output" in biases.split() else 0.0)
        else:
            f.attention(b, embd, heads, kv, head_dim, biases=biases, normed=normed, gain=gain)
        if gate_in_up:
            f.matrix(f"{b}ffn_up", 2 * ff, embd, 1.5)
            f.matrix(f"{b}ffn_down", embd, ff, gain)
        else:
            f.ffn(b, embd, ff, gated=gated, biases=ffn_biases, gain=gain)
        if extra:
            extra(f, b, i)


def post_norms(f, b, i):
    """Under names without the usual end."""
    for name in ("post_attention_norm", "post_ffw_norm"):
        f.vector(b + name, 48, 0.2, 0.8)


def factors(f, b, i):
    if i == 0:
        f.tensor("rope_freqs.weight", [1.0, 1.5, 2.5, 8.0])


def dense(arch, **sizes):
    return Model(arch, stack, {"embd": 40, "layers": 2, "heads": 5, "kv": 1, "head_dim": 8, "ff": 52} | sizes)


def of_each_head(f, b, i):
    """Norms of Q and K with weights for every head, whose matrices are as sharp without them."""
    for part, heads in (("q", 4), ("k", 2)):
        f.vector(f"{b}attn_{part}_norm.weight", (heads, 10), 0.5, 1.6)


def scaled(f, b, i):
    """Norms before last matrices, and scales of matrices."""
    f.norm(f"{b}attn_sub_norm", 40)
    f.norm(f"{b}ffn_sub_norm", 52)
    for n, part in enumerate(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")):
        f.tensor(f"{b}{part}.scale", [0.8 + 0.1 * n + 0.05 * i])




def with_xielu(f, b, i):
    """Numbers of the activation, under keys without the architecture."""
    head_norms(f, b, i)
    factors(f, b, i)
    if i == 0:
        for key, values in (("alpha_n", [0.3, -0.8, 1.2]), ("alpha_p", [0.5, -0.4, 0.1]), ("beta", [0.5, 0.45, 0.6]),
                            ("eps", [-1e-6, -1e-6, -2e-6])):
            f.writer.add_array(f"xielu.{key}", values)


def head_norms(f, b, i):
    f.norm(f"{b}attn_q_norm", 8, 1.6)
    f.norm(f"{b}attn_k_norm", 8, 1.6)


MODELS = {
    # As deep as the model that is told by its depth, and narrow.
    "baichuan-f32": dense("baichuan", embd=16, layers=32, heads=2, kv=2, ff=20, gain=0.35),
    # The key tells the width of gate and up together.
    "qwen-f32": dense("qwen", kv=5, fused=True, biases="qkv", key_ff=104),
    "internlm2-f32": dense("internlm2", heads=6, kv=2, embd=48),
    "internlm2-fused-f32": dense("internlm2", fused=True, biases="qkv", base=1e4),
    "xverse-f32": dense("xverse", kv=5, base=5e5),
    "exaone-f32": dense("exaone", tied=True, extra=factors),
    "pangu-embedded-f32": dense("pangu-embedded", kv=1, tied=True, biases="q k v output"),
    "minicpm-f32": dense("minicpm", heads=4, kv=2, head_dim=10, layers=3, tied=True, scale=3.0, biases="output",
                         ffn_biases="gate up down", logit_std=LOGIT_STD * 2.5, embedding_scale=3.0, residual_scale=0.4,
                         logit_scale=2.5),
    "plamo-f32": dense("plamo", norms="attn_norm"),
    "plamo3-f32": dense("plamo3", layers=4, heads=4, kv=2, head_dim=12, fused=True, normed=True, gate_in_up=True, tied=True,
                        embd=48, extra=post_norms, attention__sliding_window=24,
                        attention__sliding_window_pattern=3, rope__freq_base_swa=5e3),
    "arcee-f32": dense("arcee", kv=5, gated=False, extra=factors),
    "chatglm-f32": dense("chatglm", heads=4, kv=2, head_dim=10, fused=True, biases="qkv", gate_in_up=True, rope_dim=4),
    "orion-f32": dense("orion", kv=5, norm_bias=0.3, **LAYER_NORM),
    "nemotron-f32": dense("nemotron", heads=4, kv=2, head_dim=10, rope_dim=4, gated=False, norm_bias=0.3,
                          biases="output", ffn_biases="up down", **LAYER_NORM),
    "jais2-f32": dense("jais2", embd=48, heads=6, kv=2, gated=False, norm_bias=0.3, biases="q k v output",
                       ffn_biases="up down", **LAYER_NORM),
    "nanbeige-f32": dense("nanbeige", heads=5, kv=1, num_loops=3),
    "nanbeige-plain-f32": dense("nanbeige", embd=48, heads=6, kv=2, num_loops=2, skip_loop_final_norm=True, tied=True),
    "olmo-f32": dense("olmo", kv=5, norms="", output_norm=None, attention__clamp_kqv=1.75, **LAYER_NORM),
    "maincoder-f32": dense("maincoder", tied=True, base=1e4, extra=head_norms),
    "stablelm-f32": dense("stablelm", kv=5, rope_dim=4, norm_bias=0.3, biases="q k v", use_parallel_residual=True,
                          **LAYER_NORM),
    "stablelm-parallel-f32": dense("stablelm", heads=4, kv=2, head_dim=10, rope_dim=4, norms="attn_norm", norm_bias=0.3,
                                   extra=of_each_head, **LAYER_NORM),
    "bitnet-f32": dense("bitnet", tied=True, extra=scaled),
    "apertus-f32": dense("apertus", layers=3, gated=False, extra=with_xielu),
}
