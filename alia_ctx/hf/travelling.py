"""Whether what travels beside the weights still says what the export wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.data.tokens.tokenizer_files import (
    backend_files,
    has_vocabulary,
    is_limit,
)
from alia_ctx.hf.assets import GENERATION_CONFIG
from alia_ctx.hf.config import CONFIG
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.limits import lift_tokenizer
from alia_ctx.hf.special_ids import NAMES, read_tokenizer
from alia_ctx.identity import differences

_VALUES = ("model_max_length", "max_length")


def backend_differences(hf_dir: Path, training: Path) -> list[str]:
    """Parts of the tokenizer's file that are not those of training: normalizer,
    pre-tokenizer, post-processor, decoder, model, added tokens with all their flags.
    What cuts and pads, which an export lifts, is not among them.
    """
    lines = []
    for name in backend_files(training):
        if not (hf_dir / name).is_file():
            lines.append(f"{name} is missing")
            continue
        there, here = (_parts(folder / name) for folder in (training, hf_dir))
        lines += [
            f"{name}: {part} is another than in training"
            for part in sorted({*there, *here})
            if there.get(part) != here.get(part)
        ]
    return lines


def _parts(file: Path) -> Mapping[str, Any]:
    parts = lift_tokenizer(load_json(file))
    return {k: v for k, v in parts.items() if k not in ("truncation", "padding")}


def stop_differences(
    hf_dir: Path, vocab_size: int, model_type: str | None = None
) -> Iterator[str]:
    """Special ids of config.json and generation_config.json that are none of the
    tokenizer's: an export writes one answer in all three. `model_type` as for
    `read_tokenizer`.
    """
    ids: Mapping[str, int | None] = {}
    if has_vocabulary(hf_dir):
        ids = read_tokenizer(hf_dir, model_type=model_type).ids
    for file in (CONFIG, GENERATION_CONFIG):
        document = load_json(hf_dir / file) if (hf_dir / file).is_file() else {}
        for name in NAMES:
            told, stated = ids.get(name), document.get(name)
            if told is None or told >= vocab_size or name not in document:
                continue
            if told not in (stated if isinstance(stated, list) else [stated]):
                yield f"{name} is {stated} in {file}, {told} in the tokenizer"


def limit_differences(hf_dir: Path, context: int) -> Iterator[str]:
    """Lengths below `context` tokens that a file limits text to, and cutting to any."""
    for name in (CONFIG, GENERATION_CONFIG, "tokenizer_config.json"):
        document = load_json(hf_dir / name) if (hf_dir / name).is_file() else {}
        for key, value in document.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            upper = is_limit(key) and "min" not in key and number
            if upper and value < context and (key in _VALUES or "max" in key):
                yield f"{key} is {value} in {name}, the context is {context}"
    for name in backend_files(hf_dir):
        if (cut := load_json(hf_dir / name).get("truncation")) is not None:
            lines = differences(None, cut, "truncation")
            yield f"{name} cuts what is tokenised: {'; '.join(lines)}"
