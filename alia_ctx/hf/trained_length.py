"""How many tokens a published model was trained on and reads, where its
`max_position_embeddings` need not be the answer.

An export of this project states the tokens of its training. Of others:

- linear scaling keeps no original length, and is published in two ways. LlamaConfig's
  documentation (transformers 4.31 to 4.4x, `rope_scaling`) asks that
  `max_position_embeddings` stays what it was before scaling, so that a model reads factor
  times as many; others state what the model reads by now. The two lead to factors that
  differ by the base's own, so what else the directory says of lengths decides.
- dynamic scaling has its original length in `max_position_embeddings`, and reads factor
  times as many, with which nothing needs to have been trained.
- yarn may be added to a config.json whose length stays the original one (Qwen2.5's
  README does so): it reads factor times as many too, as llama3 does whose published
  length is not above its original one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.stated_training import stated_training
from alia_ctx.hf.targets import STATEMENT
from alia_ctx.spec.rope import RopeSpec

CONFIG = "config.json"
_OTHER_LENGTHS = ("max_sequence_length", "model_max_length", "max_seq_len")


@dataclass(frozen=True)
class TrainedLength:
    """The tokens that a model was trained on with its own RoPE; `other` is what they would
    be in the other reading of its config.json, where nothing in the directory decides.
    """

    tokens: int
    other: int | None = None


def trained_length(
    directory: Path | None, rope: RopeSpec, published: int
) -> TrainedLength:
    """Of a model that is published with `rope` and a length; with None for the directory
    no files are asked.
    """
    exported = None if directory is None else stated_training(directory)
    if exported is not None:
        return TrainedLength(exported.context)
    factor = rope.factor or 1.0
    original = rope.original_max_position_embeddings
    if original is not None and rope.type in ("llama3", "yarn"):
        reach = round(original * factor)
        if published <= original:
            return TrainedLength(reach)
        # Qwen3 is published with room for its answers beyond the original length, and a
        # factor of yarn is written beside it. Llama 3.2 reads what is published.
        ambiguous = rope.type == "yarn" and published < reach
        return TrainedLength(published, reach if ambiguous else None)
    if rope.type != "linear" or factor == 1:
        return TrainedLength(published)
    scaled = round(published * factor)
    said: set[Any] = set()
    if directory is not None:
        if (
            directory / STATEMENT
        ).is_file():  # an export, which publishes what it reads
            return TrainedLength(published)
        for name in (CONFIG, "tokenizer_config.json"):
            said |= _lengths(directory / name)
    if scaled in said:
        return TrainedLength(scaled)
    if published in said:
        return TrainedLength(published)
    return TrainedLength(scaled, published)


def read_length(directory: Path, rope: RopeSpec, published: int) -> int:
    """The tokens that the model in `directory` reads: those of its training, or, where
    nothing states these, what its RoPE stretches its published length to.
    """
    trained = trained_length(directory, rope, published).tokens
    if stated_training(directory) is not None:
        return trained
    original = rope.original_max_position_embeddings
    from_original = rope.type == "dynamic" or (
        rope.type == "yarn" and original is not None and published <= original
    )
    if from_original:
        return max(published, round((original or published) * (rope.factor or 1.0)))
    return trained


def upstream_rope(config: Any) -> RopeSpec | None:
    """The scaling that a configuration of transformers states, of those that change what
    a length means; None where it has none of them.
    """
    stated = getattr(config, "rope_parameters", None) or getattr(
        config, "rope_scaling", None
    )
    if not isinstance(stated, dict):
        return None
    named = stated.get("rope_type", stated.get("type"))
    factor: Any = stated.get("factor")
    if named not in ("linear", "dynamic", "yarn") or type(factor) not in (int, float):
        return None
    original = stated.get("original_max_position_embeddings")
    return RopeSpec(
        named,
        10000.0,  # does not bear on lengths
        factor=float(factor),
        original_max_position_embeddings=original if type(original) is int else None,
    )


def _lengths(path: Path) -> set[Any]:
    try:
        document = load_json(path)
    except CheckpointError:
        return set()  # whoever needs it says so
    values = (document.get(name) for name in _OTHER_LENGTHS)
    return {value for value in values if type(value) in (int, float)}
