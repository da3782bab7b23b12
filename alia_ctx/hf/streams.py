"""Rows of one side's tensors from the other side's files, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alia_ctx.checkpoint.dcp_store import StateReader
from alia_ctx.checkpoint.tensor_files import (
    FLOATS,
    GlobalTensor,
    TensorFiles,
    TensorPlace,
    as_bytes,
    is_finite,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.rules import EMBEDDING, HEAD, RowMap, WeightMap

Progress = Callable[[int, int], None]
_COMPARED_BYTES = 2 << 20


def stored_dtypes(
    weights: WeightMap, state: StateReader, where: str
) -> dict[str, torch.dtype]:
    """Dtype of each Megatron tensor of the model; CheckpointError where one is absent or
    of another shape.

    Vocabulary tables may have more rows than the vocabulary: a tensor-parallel run may
    have padded them.
    """
    stored, dtypes = state.tensors, {}
    problems: list[str] = []
    for name, (shape, layers) in weights.megatron_shapes().items():
        expected = shape if layers is None else (layers, *shape)
        if name not in stored:
            problems.append(f"  {name}: missing, expected {list(expected)}")
            continue
        actual, dtypes[name] = stored[name]
        is_table = layers is None and len(shape) == 2
        padded = is_table and actual[1:] == shape[1:] and actual[0] >= shape[0]
        if actual != expected and not padded:
            problems.append(f"  {name}: {list(actual)}, expected {list(expected)}")
        elif dtypes[name] not in FLOATS:
            problems.append(
                f"  {name}: is {dtypes[name]}, supported are {', '.join(map(str, FLOATS))}"
            )
    if problems:
        raise CheckpointError(
            "\n".join(
                [
                    f"{where}: state/ does not hold the model of its manifest",
                    *problems[:10],
                ]
            )
        )
    return dtypes


class MegatronRows:
    """Fills rows of Megatron tensors from Hugging Face's files.

    `means` has the row that stands for those which a table is to have beyond its file's.
    """

    def __init__(
        self,
        weights: WeightMap,
        places: dict[str, TensorPlace],
        files: TensorFiles,
        means: Mapping[str, Tensor],
        progress: Progress | None,
        total: int,
    ) -> None:
        self._weights, self._places, self._files = weights, places, files
        self._means = means
        self._progress, self._total, self._done = progress, total, 0

    def __call__(
        self, tensor: GlobalTensor, layer: int | None, start: int, out: Tensor
    ) -> None:
        at = 0
        for run in self._weights.sources(tensor.name, layer).between(
            start, start + out.shape[0]
        ):
            block, place = out[at : at + run.count], self._places[run.name]
            at += run.count
            stored = min(run.count, max(0, place.shape[0] - run.start))
            if stored < run.count:
                block[stored:] = self._means[run.name]
                block = block[:stored]
            if place.dtype == out.dtype:
                self._files.read_rows(place, run.start, block)
            else:
                source = torch.empty(block.shape, dtype=place.dtype)
                self._files.read_rows(place, run.start, source)
                block.copy_(source)
            if stored:
                _check_finite(block, f"{place.file}: {run.name}", run.start)
        self._done += out.nbytes
        if self._progress:
            self._progress(self._done, self._total)


class HuggingFaceRows:
    """Rows of Hugging Face tensors from a checkpoint's state, in a dtype of the caller's choice."""

    def __init__(
        self,
        state: StateReader,
        dtypes: dict[str, torch.dtype],
        progress: Progress | None,
        total: int,
    ) -> None:
        self._state, self._dtypes = state, dtypes
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, name: str, row_map: RowMap, start: int, out: Tensor) -> None:
        at = 0
        for run in row_map.between(start, start + out.shape[0]):
            block, dtype = out[at : at + run.count], self._dtypes[run.name]
            stored = (
                block if dtype == out.dtype else torch.empty(block.shape, dtype=dtype)
            )
            self._state.read_rows(run.name, run.layer, run.start, stored)
            if stored is not block:
                block.copy_(stored)
            at += run.count
        _check_finite(out, name, start)
        self._done += out.nbytes
        if self._progress:
            self._progress(self._done, self._total)


def _check_finite(block: Tensor, name: str, start: int) -> None:
    if is_finite(block):
        return
    row = (
        int(
            (~torch.isfinite(block)).reshape(block.shape[0], -1).any(dim=1).nonzero()[0]
        )
        + start
    )
    raise CheckpointError(
        f"{name} has NaN or infinite values in {block.dtype}, first in row {row}; the weights are "
        "damaged or overflow this dtype: use another checkpoint or dtype"
    )


def drop_tied_head(tied: bool, places: dict[str, TensorPlace]) -> None:
    """Forget a stored head that repeats a tied embedding; CheckpointError where it differs."""
    if not tied or HEAD not in places or EMBEDDING not in places:
        return
    head, embedding = places[HEAD], places[EMBEDDING]
    if not _same_bytes(head, embedding):
        raise CheckpointError(
            f"{head.file}: {HEAD} differs from {EMBEDDING}, but config.json has "
            "tie_word_embeddings=true; set it to false if the head was trained on its own"
        )
    del places[HEAD]


def _same_bytes(one: TensorPlace, other: TensorPlace) -> bool:
    """Whether two stored tensors are equal to the bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    step = max(1, _COMPARED_BYTES // max(1, one.row_bytes))
    with TensorFiles() as files:

        def block(place: TensorPlace, start: int) -> bytes:
            count = min(step, place.shape[0] - start)
            rows = torch.empty((count, *place.shape[1:]), dtype=place.dtype)
            files.read_rows(place, start, rows)
            return bytes(as_bytes(rows))

        return all(
            block(one, start) == block(other, start)
            for start in range(0, one.shape[0], step)
        )
