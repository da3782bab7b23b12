"""Which servers compute another RoPE than the one that config.json describes.

From their sources: vLLM's and SGLang's `get_rope` (layers/rotary_embedding), llama.cpp's
conversion (`TextModel.set_gguf_parameters`, `LlamaModel.generate_extra_tensors`) and
llama-context.cpp.
"""

from __future__ import annotations

import math
from dataclasses import replace

from alia_ctx.hf.rope_config import dynamic_bases
from alia_ctx.spec.rope import RopeSpec, yarn_attention_factor

VLLM, SGLANG, LLAMA_CPP = "vLLM", "SGLang", "llama.cpp"
# The models whose conversion writes llama3's frequencies: those of its `LlamaModel`.
_LLAMA3_IN_GGUF = ("llama", "mistral")
# Below what bf16 holds of cos and sin; some files state their factor to five digits.
_SAME_FACTOR = 1e-4


def other_ropes(architecture: str, rope: RopeSpec, context: int) -> dict[str, str]:
    """Server -> why it computes another RoPE than `rope`, trained at `context` tokens by a
    model of `architecture` (`model_type`). Servers that compute it are not in there.
    """
    reasons: dict[str, list[str]] = {VLLM: [], SGLANG: [], LLAMA_CPP: []}
    if rope.type == "dynamic":
        reasons[LLAMA_CPP].append("a GGUF file has no `dynamic` RoPE")
        trained, served = dynamic_bases(rope, context)
        if served != trained:
            for server in (VLLM, SGLANG):
                reasons[server].append(
                    f"it takes the base of {served:,} tokens for all texts, and that of "
                    f"{trained:,} was trained"
                )
    if rope.type == "llama3" and architecture not in _LLAMA3_IN_GGUF:
        reasons[LLAMA_CPP].append(
            f"of a `{architecture}` model a GGUF file has no `llama3` RoPE, and a plain "
            "one would be computed"
        )
    if rope.truncate is False:
        reasons[LLAMA_CPP].append("a GGUF file has no YaRN without `truncate`")
    if rope.type == "yarn":
        for server, factor in _yarn_factors(rope).items():
            trained_factor = yarn_attention_factor(rope, rope.require("factor"))
            if not math.isclose(factor, trained_factor, rel_tol=_SAME_FACTOR):
                reasons[server].append(
                    f"it multiplies YaRN's cos and sin by {factor:.4g}, and "
                    f"{trained_factor:.4g} was trained"
                )
    return {server: "; ".join(why) for server, why in reasons.items() if why}


def _yarn_factors(rope: RopeSpec) -> dict[str, float]:
    """What each server multiplies YaRN's cos and sin by.

    vLLM (to 0.25) and SGLang read no `attention_factor`, and of `mscale` only later
    SGLang does. llama.cpp reads the former, for a factor upon the usual one.
    """
    plain = replace(rope, attention_factor=None, mscale=None, mscale_all_dim=None)
    usual = yarn_attention_factor(plain, rope.require("factor"))
    upon = 1.0 if rope.attention_factor is None else rope.attention_factor
    return {VLLM: usual, SGLANG: usual, LLAMA_CPP: usual * upon}
