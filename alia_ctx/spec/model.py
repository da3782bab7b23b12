"""Facts about a model and its rotary embedding: sizes, parameters, FLOPs. No tensors here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alia_ctx.errors import Problem, Problems

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
_FP32_ULP = 2.0**-23
# What an architecture computes beside Llama (transformers' modeling modules): which fields of
# ModelSpec are true for it. No other combination has a config.json that says it.
_BESIDE_LLAMA: dict[str, str] = {"qwen2": "attention_bias", "qwen3": "qk_norm"}
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@dataclass(frozen=True)
class ModelSpec:
    """A decoder of the Llama family, in the field names of its Hugging Face `config.json`.

    Covers Llama, Mistral (full attention), Qwen2/2.5 (`attention_bias` on q, k, v) and
    Qwen3 (`qk_norm`); `of_architecture` says what each has.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    architecture: Architecture = "llama"
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def problems(self, key: str = "model") -> list[Problem]:
        """Rules that the sizes break among themselves."""
        problems = Problems()
        for name in _SIZES:
            size = getattr(self, name)
            remedy = "take it from the model's config.json"
            problems.need(size >= 1, f"{key}.{name}", size, "must be positive", remedy)
        for name in ("rms_norm_eps", "initializer_range"):
            value, rule = getattr(self, name), "must be 0 or above, and finite"
            remedy = f"the default is {getattr(type(self), name)}"
            problems.need(0 <= value < math.inf, f"{key}.{name}", value, rule, remedy)
        for name, has in of_architecture(self.architecture).items():
            problems.need(
                getattr(self, name) == has,
                *(f"{key}.{name}", getattr(self, name)),
                f"is not what {self.architecture} computes, and as that it is exported",
                f"set it to {str(has).lower()}, or {key}.architecture to the model's own",
            )
        if problems:
            return problems
        problems.need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"{key}.num_key_value_heads",
            self.num_key_value_heads,
            f"does not divide num_attention_heads={self.num_attention_heads}",
            "grouped-query attention shares each KV head among equally many query heads",
        )
        problems.need(
            self.head_dim % 2 == 0,
            f"{key}.head_dim",
            self.head_dim,
            "must be even",
            "RoPE rotates pairs",
        )
        return problems

    def differences(self, other: ModelSpec) -> dict[str, tuple[object, object]]:
        """Fields that differ: name -> (value here, value of `other`).

        Numbers that are one in fp32 do not differ.
        """
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in self.__dataclass_fields__
            if not same_in_fp32(getattr(self, name), getattr(other, name))
        }

    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        hidden, query, kv = self.hidden_size, self.query_size, self.key_value_size
        attention = hidden * (query + 2 * kv) + query * hidden
        bias = query + 2 * kv if self.attention_bias else 0
        norms = 2 * hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + bias + 3 * hidden * self.intermediate_size + norms

    def embedding_parameters(self) -> int:
        """Parameters of the token embedding (and again of the head, where untied)."""
        return self.vocab_size * self.hidden_size

    def parameters(self) -> int:
        """Parameters in all; ALIA-40b has 40,433,885,184."""
        tables = 1 if self.tie_word_embeddings else 2
        return (
            self.num_hidden_layers * self.layer_parameters()
            + tables * self.embedding_parameters()
            + self.hidden_size
        )

    def linear_flops_per_token(self) -> float:
        """Forward + backward FLOPs of all matrix products with weights, per token (the
        head, not the embedding).
        """
        matrices = self.hidden_size * (
            2 * self.query_size + 2 * self.key_value_size + 3 * self.intermediate_size
        )
        return 6.0 * (self.num_hidden_layers * matrices + self.embedding_parameters())

    def attention_flops(self, document_lengths: Sequence[int]) -> float:
        """Forward + backward FLOPs of causal attention over documents that do not see each other.

        Counts the visible half of each score matrix, diagonal included: two products
        forward (QK^T and PV) and four backward, 2 FLOPs a multiply-add. Recomputation
        is not useful work and is not counted.
        """
        pairs = sum(n * (n + 1) / 2 for n in map(float, document_lengths))
        return 12.0 * self.num_hidden_layers * self.query_size * pairs


def of_architecture(architecture: Architecture) -> dict[str, bool]:
    """The fields of ModelSpec that an architecture decides, with their values in it."""
    has = _BESIDE_LLAMA.get(architecture)
    return {name: name == has for name in _BESIDE_LLAMA.values()}


def same_in_fp32(one: object, other: object) -> bool:
    """Whether two values are equal, numbers as far as fp32 tells them apart.

    An eps of 1e-5 that went through fp32 is 9.999999747378752e-06 in a config.json.
    """
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_FP32_ULP)
    return one == other
