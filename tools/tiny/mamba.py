"""State spaces: both Mambas, alone and in hybrids."""
from tiny.builder import Model, quantised


def ssm_keys(f, heads, dim, groups, state, taps=4):
    """The keys of a state space of `heads` heads of `dim` channels."""
    f.keys(ssm__conv_kernel=taps, ssm__inner_size=heads * dim, ssm__state_size=state, ssm__time_step_rank=heads,
           ssm__group_count=groups)


def mamba2(f, b, embd, heads, dim, groups, state, taps=4, norm=True, bias=True, gain=1.0):
    """The state space of the layer `b`. Heads forget at different paces, from a few tokens to hundreds."""
    inner, width = heads * dim, heads * dim + 2 * groups * state
    f.matrix(f"{b}ssm_in", inner + width + heads, embd, 1.5)
    f.vector(f"{b}ssm_conv1d.weight", (width, taps), 0.6)
    if bias:
        f.vector(f"{b}ssm_conv1d.bias", width, 0.3)
    f.vector(f"{b}ssm_dt.bias", heads, 0.7, -2.0)
    f.tensor(f"{b}ssm_a", [[-(0.1 * 2.0 ** (head % 6))] for head in range(heads)])
    f.vector(f"{b}ssm_d", (heads, 1), 0.3, 0.7)
    if norm:
        f.tensor(f"{b}ssm_norm.weight", 1 + 0.2 * f.rng.standard_normal((groups, inner // groups)))
    f.matrix(f"{b}ssm_out", embd, inner, gain)


def write_mamba2(f, embd, layers, heads, dim, groups, state, taps=4):
    f.header(embd, layers, 0, 0, None, 0)
    ssm_keys(f, heads, dim, groups, state, taps)
    f.ends(embd)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        mamba2(f, b, embd, heads, dim, groups, state, taps)


def write_nemotron_h(f, embd, pattern, heads, kv, head_dim, ff, ssm, experts=0, used=0, shared=0, latent=0, ahead=0, tied=True):
    """`pattern`: of every layer `M` for a state space, `*` for attention, `-` for a feed-forward part. `ff`: its width, or that of
    an expert. `ahead`: further layers, which predict tokens ahead."""
    extra = {}
    if experts:
        extra = dict(expert_count=experts, expert_used_count=used, expert_feed_forward_length=ff, expert_shared_count=1,
                     expert_shared_feed_forward_length=shared, expert_weights_norm=True, expert_weights_scale=2.5,
                     expert_group_count=1, expert_group_used_count=1, moe_latent_size=latent or None,
                     nextn_predict_layers=ahead or None)
    f.header(embd, len(pattern) + ahead, heads, [kv if kind == "*" else 0 for kind in pattern] + [kv] * ahead, head_dim,
             [ff if kind == "-" else 0 for kind in pattern] + [ff] * ahead, attention__layer_norm_epsilon=1e-5, **extra)
    ssm_keys(f, *ssm)
    f.ends(embd, tied)

    def ffn(b):
        if not experts:
            return f.ffn(b, embd, ff, gated=False)
        if latent:
            f.matrix(f"{b}ffn_latent_down", latent, embd, 1.2)
            f.matrix(f"{b}ffn_latent_up", embd, latent, 0.8)
        f.moe(b, embd, ff, experts, gated=False, selection_bias=True, width=latent or embd)
        f.ffn(b, embd, shared, "_shexp", gated=False, gain=0.6)

    for i, kind in enumerate(pattern):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        if kind == "M":
            mamba2(f, b, embd, *ssm)
        elif kind == "*":
            f.attention(b, embd, heads, kv, head_dim)
        else:
            ffn(b)
    for i in range(len(pattern), len(pattern) + ahead):
        b = f"blk.{i}."
        for name in ("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm", "attn_norm", "post_attention_norm"):
            f.norm(f"{b}{name}", embd)
        f.matrix(f"{b}nextn.eh_proj", embd, 2 * embd)
        f.attention(b, embd, heads, kv, head_dim)
        ffn(b)


def write_granite_hybrid(f, embd, layers, heads, kv, head_dim, ff, ssm, experts=0, used=0, shared=0, tied=True, rope=True, biases=""):
    """`kv`: one number for each layer, 0 where it has a state space."""
    extra = dict(expert_count=experts, expert_used_count=used) if experts else {}
    extra |= dict(expert_shared_feed_forward_length=shared) if shared else {}
    f.header(embd, layers, heads, kv, head_dim, ff, base=1e4, embedding_scale=6.0, residual_scale=0.4, logit_scale=3.0,
             attention__scale=1.5 / head_dim, **extra)
    if not rope:
        f.key("rope.scaling.finetuned", False)
    ssm_keys(f, *ssm)
    f.ends(embd, tied, scale=6.0, logit_std=3.0 * 3.5)
    for i, kv in enumerate(kv):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        if kv:
            f.attention(b, embd, heads, kv, head_dim, biases=biases, gain=2.0)
        else:
            mamba2(f, b, embd, *ssm, gain=2.0)
        f.norm(f"{b}ffn_norm", embd)
        if experts:
            f.moe(b, embd, ff, experts)
        else:
            f.ffn(b, embd, ff, biases=biases)
        if shared:
            f.ffn(b, embd, shared, "_shexp")


def write_falcon_h1(f, embd, layers, heads, kv, head_dim, ff, ssm, norm=False, tied=True):
    f.header(embd, layers, heads, kv, head_dim, ff, base=1e6)
    ssm_keys(f, *ssm)
    f.ends(embd, tied)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        f.attention(b, embd, heads, kv, head_dim)
        mamba2(f, b, embd, *ssm, norm=norm)
        # The name lacks its end in files.
        f.tensor(f"{b}ffn_norm", 1 + 0.2 * f.rng.standard_normal(embd))
        f.ffn(b, embd, ff)


def mamba(f, b, embd, inner, state, rank, taps=4, norms=False, gain=1.0):
    """The state space of the first Mamba of the layer `b`."""
    f.matrix(f"{b}ssm_in", 2 * inner, embd, 1.5)
    f.vector(f"{b}ssm_conv1d.weight", (inner, taps), 0.6)
    f.vector(f"{b}ssm_conv1d.bias", inner, 0.3)
    f.matrix(f"{b}ssm_x", rank + 2 * state, inner, 2.0)
    if norms:
        for name, n in ("dt", rank), ("b", state), ("c", state):
            f.norm(f"{b}ssm_{name}_norm", n)
    f.matrix(f"{b}ssm_dt", inner, rank, 0.5)
    f.vector(f"{b}ssm_dt.bias", inner, 0.7, -2.0)
    f.tensor(f"{b}ssm_a", -(0.1 * 2.0 ** (6 * f.rng.random((inner, state)))))
    f.vector(f"{b}ssm_d", inner, 0.3, 0.7)
    f.matrix(f"{b}ssm_out", embd, inner, gain)


def mamba_keys(f, inner, state, rank, taps=4):
    f.keys(ssm__conv_kernel=taps, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)


def write_mamba(f, embd, layers, ssm, rms=False, tied=True):
    f.header(embd, layers, 0, 0, None, 0)
    mamba_keys(f, *ssm)
    if rms:
        f.key("ssm.dt_b_c_rms", True)
    f.ends(embd, tied)
    for i in range(layers):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        mamba(f, b, embd, *ssm)


def write_jamba(f, embd, heads, kv, head_dim, ff, ssm, experts, used, routed):
    """`routed`: layers with experts."""
    f.header(embd, len(kv), heads, kv, head_dim, ff, expert_count=experts, expert_used_count=used)
    mamba_keys(f, *ssm)
    f.ends(embd)
    for i, kv in enumerate(kv):
        b = f"blk.{i}."
        f.norm(f"{b}attn_norm", embd)
        if kv:
            f.attention(b, embd, heads, kv, head_dim)
        else:
            mamba(f, b, embd, *ssm, norms=True)
        f.norm(f"{b}ffn_norm", embd)
        if i in routed:
            f.moe(b, embd, ff, experts)
        else:
            f.ffn(b, embd, ff)


MODELS = {
    "mamba-f32": Model("mamba", write_mamba, dict(embd=40, layers=3, ssm=(80, 16, 5))),
    "mamba-rms-f32": Model("mamba", write_mamba, dict(embd=32, layers=2, ssm=(64, 8, 3, 3), rms=True, tied=False)),
    "jamba-f32": Model("jamba", write_jamba, dict(
        embd=32, heads=4, kv=[0, 0, 2, 0], head_dim=8, ff=24, ssm=(64, 16, 5), experts=4, used=2, routed=(1, 3))),
    "mamba2-f32": Model("mamba2", write_mamba2, dict(embd=40, layers=3, heads=6, dim=16, groups=2, state=32)),
    "nemotron_h-f32": Model("nemotron_h", write_nemotron_h, dict(
        embd=40, pattern="M-M*-", heads=4, kv=2, head_dim=12, ff=60, ssm=(4, 16, 2, 16), tied=False)),
    # The last layer mixes nothing; one more, which predicts ahead, is left in the file.
    "nemotron_h_moe-f32": Model("nemotron_h_moe", write_nemotron_h, dict(
        embd=36, pattern="M-M*M-", heads=4, kv=2, head_dim=10, ff=20, ssm=(4, 16, 2, 16), experts=5, used=2, shared=28, ahead=1)),
    # Experts work on a narrower copy of the stream.
    "nemotron_h_moe-latent-f32": Model("nemotron_h_moe", write_nemotron_h, dict(
        embd=44, pattern="M-*-M", heads=3, kv=1, head_dim=14, ff=28, ssm=(3, 16, 3, 16, 3), experts=5, used=2, shared=36, latent=20,
        tied=False)),
    # Most layers have a state space; heads are not rotated.
    "granitehybrid-f32": Model("granitehybrid", write_granite_hybrid, dict(
        embd=32, layers=4, heads=4, kv=[0, 2, 0, 0], head_dim=10, ff=20, ssm=(4, 16, 1, 16), experts=5, used=2, shared=28, rope=False)),
    "granitehybrid-dense-f32": Model("granitehybrid", write_granite_hybrid, dict(
        embd=40, layers=3, heads=5, kv=[0, 0, 1], head_dim=8, ff=52, ssm=(5, 16, 1, 16), tied=False), golden=False),
    "falcon-h1-f32": Model("falcon-h1", write_falcon_h1, dict(
        embd=40, layers=2, heads=4, kv=2, head_dim=10, ff=52, ssm=(4, 16, 2, 32))),
    "falcon-h1-normed-f32": Model("falcon-h1", write_falcon_h1, dict(
        embd=36, layers=2, heads=3, kv=1, head_dim=12, ff=44, ssm=(3, 32, 1, 16), norm=True, tied=False), golden=False),
}

# In the types that files come in, at widths that hold whole blocks.
for kind in ("q8_0", "q4_k_m", "iq4_xs"):
    MODELS[f"nemotron_h_moe-wide-{kind}"] = quantised(
        MODELS["nemotron_h_moe-f32"], kind, embd=256, heads=8, kv=2, head_dim=32, ff=256, ssm=(8, 32, 2, 32), shared=512)
    MODELS[f"nemotron_h_moe-latent-wide-{kind}"] = quantised(
        MODELS["nemotron_h_moe-latent-f32"], kind, embd=512, heads=8, kv=2, head_dim=32, ff=256, ssm=(8, 32, 2, 32), shared=512,
        latent=256)
    MODELS[f"granitehybrid-wide-{kind}"] = quantised(
        MODELS["granitehybrid-f32"], kind, embd=256, heads=8, kv=[0, 2, 0, 0], head_dim=32, ff=256, ssm=(8, 64, 1, 32), shared=256)
