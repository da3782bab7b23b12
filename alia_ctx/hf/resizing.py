"""More rows of the embedding and the head than a model was published with: for tokens
that its tokenizer was given since, or to fill a multiple.

A new row is the mean of the others, so that a new token starts as the most ordinary one
and its logit as the mean logit (what `resize_token_embeddings` of transformers draws
around).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from alia_ctx.checkpoint.tensor_files import TensorFiles, TensorPlace
from alia_ctx.errors import CheckpointError, ConfigError, Problem
from alia_ctx.spec.model import ModelSpec

_BLOCK_BYTES = 8 << 20
_MOST_ROWS = 2**31  # ids are int32 in token stores


def resize(model: ModelSpec, rows: int | None, multiple: int | None) -> ModelSpec:
    """`model` with `rows` rows of the embedding (default: its own), rounded up to a
    `multiple`; ConfigError where that is fewer than it has.
    """
    asked = model.vocab_size if rows is None else rows
    step = 1 if multiple is None else multiple
    if step < 1:
        rule, remedy = "must be at least 1", "64 and 128 suit tensor cores"
        problem = Problem("--pad-to-multiple-of", multiple, rule, remedy)
        raise ConfigError("the embedding cannot be resized", [problem])
    if asked < model.vocab_size:
        rule = f"is below the {model.vocab_size} rows that the model has"
        problem = Problem("--resize-embeddings", rows, rule, "rows are only added")
        raise ConfigError("the embedding cannot be resized", [problem])
    total = -(-asked // step) * step
    if total > _MOST_ROWS:
        rule = f"makes {total} rows; token ids end at {_MOST_ROWS - 1}"
        problem = Problem("--resize-embeddings", asked, rule, "give fewer")
        raise ConfigError("the embedding cannot be resized", [problem])
    return replace(model, vocab_size=total)


def mean_rows(
    places: Mapping[str, TensorPlace], files: TensorFiles, names: Iterable[str]
) -> dict[str, Tensor]:
    """The mean over all rows of each named table that exists, fp64 [columns].

    CheckpointError where it is not finite.
    """
    means = {}
    for name in names:
        if name not in places:
            continue
        place = places[name]
        step = max(1, _BLOCK_BYTES // place.row_bytes)
        total = torch.zeros(place.shape[1:], dtype=torch.float64)
        for start in range(0, place.shape[0], step):
            count = min(step, place.shape[0] - start)
            rows = torch.empty((count, *place.shape[1:]), dtype=place.dtype)
            files.read_rows(place, start, rows)
            total += rows.sum(dim=0, dtype=torch.float64)
        means[name] = total / place.shape[0]
        if not torch.isfinite(means[name]).all():
            raise CheckpointError(
                f"{place.file}: {name} has NaN or infinite values; the weights are "
                "damaged, use another copy"
            )
    return means
