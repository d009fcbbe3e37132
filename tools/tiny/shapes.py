"""Layers as large as published models have them, with their vocabularies, but so few that two engines' copies fit into a
common machine: for compare_speed.py. Sizes are those of the models' config.json; types those that llama.cpp's Q4_K_M comes to,
which takes Q5_0 and Q8_0 where rows are no whole blocks of 256."""
import dataclasses

from gguf import GGMLQuantizationType as T

from tiny import gemma, mamba, mla
from tiny.builder import Model, quantised

# Rows of 704 (experts) and 2112 values (the dense part) are no whole blocks of 256.
GEMMA4 = dict(embd=2816, windows=[1, 1, 1, 1, 1, 0] * 2, heads=16, kv=(2, 8), dims=(512, 256), rotated=(128, 256), window=1024,
              ff=2112, experts=128, used=8, expert_ff=704)
GLM_FLASH = dict(embd=2048, layers=12, heads=20, plain=192, rope=64, value=256, q_rank=768, kv_rank=512, ff=10240,
                 expert_ff=1536, experts=64, used=4, nextn=0, tied=False)
# Rows of 2688 and 1856 values neither.
NEMOTRON3 = dict(embd=2688, pattern="MEMEM*EMEMEM*EMEME".replace("E", "-"), heads=32, kv=2, head_dim=128, ff=1856,
                 ssm=(64, 64, 8, 128), experts=128, used=6, shared=3712, tied=False)


def large(model, vocab):
    return dataclasses.replace(model, golden=False, large=True, vocab=vocab)


_gemma4 = quantised(gemma.MODELS["gemma4-moe-f32"], "q4_k_m", **GEMMA4)
_glm = quantised(mla.MODELS["deepseek2-f32"], "q4_k_m", **GLM_FLASH)
_nemotron = Model("nemotron_h_moe", mamba.write_nemotron_h, NEMOTRON3, T.Q5_0, {"output": T.Q8_0, "attn_v": T.Q8_0})
MODELS = {
    "gemma-4-26b-a4b-shape": large(
        dataclasses.replace(_gemma4, types={**_gemma4.types, "ffn_down": T.Q5_0}), 262_144),
    "glm-4.7-flash-shape": large(_glm, 154_880),
    "nemotron-3-nano-shape": large(_nemotron, 131_072),
}
