"""Stacks of layers that the programs for GPUs train, by the model whose sizes they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alia_ctx.errors import AliaError
from alia_ctx.hf.config import read_config
from alia_ctx.spec.model import ModelSpec


def alia_stack(layers: int, vocabulary: int) -> ModelSpec:
    return ModelSpec(
        num_hidden_layers=layers,
        hidden_size=8192,
        intermediate_size=24_576,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=vocabulary,
    )


def smollm2(layers: int, vocabulary: int) -> ModelSpec:
    """SmolLM2-135M's sizes; all of it has 30 layers and a vocabulary of 49,152."""
    return ModelSpec(
        num_hidden_layers=layers,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )


STACKS = {"alia": alia_stack, "smollm2": smollm2}


def stack_of(name: str) -> Callable[[int, int | None], ModelSpec]:
    """So many layers of a model that has a name here, or whose Hugging Face directory is
    named, with so many words. ValueError where it is neither.
    """
    if made := STACKS.get(name):
        return lambda layers, vocabulary: made(layers, vocabulary or 8192)
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"is neither of {', '.join(STACKS)} nor has it a config.json")
    try:
        found = read_config(Path(name))[0]
    except AliaError as error:
        raise ValueError(str(error)) from error
    return lambda layers, vocabulary: replace(
        found, num_hidden_layers=layers, vocab_size=vocabulary or found.vocab_size
    )


def model_name(text: str) -> str:
    """A type of option: what `stack_of` knows."""
    stack_of(text)
    return text
