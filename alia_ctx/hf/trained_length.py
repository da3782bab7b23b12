"""How many tokens a published model reads, where its `max_position_embeddings` need not be
the answer: linear scaling keeps no original length, and is published in two ways.

LlamaConfig's documentation (transformers 4.31 to 4.4x, `rope_scaling`) asks that
`max_position_embeddings` stays what it was before scaling, so that a model reads factor
times as many. Others state what the model reads by now, as exports of this project do.
The two lead to factors that differ by the base's own, so what else the directory says of
lengths decides. llama3 and yarn keep the original length: a published one that is not
above it is from before the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.targets import STATEMENT
from alia_ctx.spec.rope import RopeSpec

_OTHER_LENGTHS = ("max_sequence_length", "model_max_length", "max_seq_len")


@dataclass(frozen=True)
class TrainedLength:
    """The tokens that a model reads with its own RoPE; `other` is what they would be in the
    other reading of its config.json, where nothing in the directory decides.
    """

    tokens: int
    other: int | None = None


def trained_length(
    directory: Path | None, rope: RopeSpec, published: int
) -> TrainedLength:
    """Of a model that is published with `rope` and a length; with None for the directory
    no files are asked.
    """
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
        if (directory / STATEMENT).is_file():  # an export states what was trained
            return TrainedLength(published)
        for name in ("config.json", "tokenizer_config.json"):
            said |= _lengths(directory / name)
    if scaled in said:
        return TrainedLength(scaled)
    if published in said:
        return TrainedLength(published)
    return TrainedLength(scaled, published)


def _lengths(path: Path) -> set[Any]:
    try:
        document = load_json(path)
    except CheckpointError:
        return set()  # whoever needs it says so
    values = (document.get(name) for name in _OTHER_LENGTHS)
    return {value for value in values if type(value) in (int, float)}
