"""A Hugging Face model and a checkpoint side by side, by Hugging Face's tensor names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from alia_ctx.checkpoint.dcp_store import StateReader
from alia_ctx.checkpoint.tensor_files import as_bytes
from alia_ctx.hf.rules import WeightMap
from alia_ctx.hf.streams import Progress
from alia_ctx.hf.upstream import FileWeights, LoadedWeights

_BLOCK_BYTES = 2 << 20  # stays in the processor's cache


class Pair:
    """Both sides' weights, each tensor in the one dtype in which the two are comparable.

    That is the narrower one: a conversion that was asked for another dtype has rounded
    there. Where both are as wide (bf16 and fp16) it is the one in which they agree.

    Args:
        huggingface: the weights of the directory.
        state: those of the checkpoint, in `dtypes` by Megatron's names.
        weights: the map between the two.
    """

    def __init__(
        self,
        weights: WeightMap,
        huggingface: LoadedWeights | FileWeights,
        state: StateReader,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.model = weights.model
        self._huggingface, self._state, self._dtypes = huggingface, state, dtypes
        tensors = list(weights.huggingface_tensors())
        self._row_maps = {name: row_map for name, _, row_map in tensors}
        self.shapes = {name: shape for name, shape, _ in tensors}
        self._common: dict[str, torch.dtype] = {}

    def from_huggingface(self, name: str, start: int, count: int) -> Tensor:
        """Rows of the Hugging Face side, in the common dtype."""
        rows = self._huggingface.rows(name, start, count)
        return rows.to(self._common.get(name, rows.dtype))

    def from_checkpoint(self, name: str, start: int, count: int) -> Tensor:
        """The same rows of the checkpoint, in the common dtype."""
        rows = self._stored(name, start, count)
        return rows.to(self._common.get(name, rows.dtype))

    def whole(self, name: str) -> tuple[int, int]:
        """Start and count of all rows of a tensor."""
        return 0, self.shapes[name][0]

    def blocks(self, name: str) -> Iterator[tuple[int, int]]:
        """Start and count of blocks of rows that fit the cache."""
        rows, *rest = self.shapes[name]
        width = self._huggingface.dtype(name).itemsize
        step = max(1, _BLOCK_BYTES // (math.prod(rest) * width))
        for start in range(0, rows, step):
            yield start, min(step, rows - start)

    def differences(self, progress: Progress | None) -> Iterator[str]:
        """The first difference of each tensor that has one; settles the common dtypes."""
        yield from self._huggingface.problems()
        sizes = {
            name: math.prod(shape) * self._huggingface.dtype(name).itemsize
            for name, shape in self.shapes.items()
        }
        done = 0
        for name, nbytes in sizes.items():
            if difference := self._difference(name):
                yield f"{name}{difference}"
            done += nbytes
            if progress:
                progress(done, sum(sizes.values()))

    def notes(self) -> Iterator[str]:
        """What was rounded before it was compared."""
        rounded: dict[tuple[torch.dtype, torch.dtype, str], int] = {}
        for name, common in self._common.items():
            sides = {
                "the directory": self._huggingface.dtype(name),
                "the checkpoint": self._stored_dtype(name),
            }
            for side, dtype in sides.items():
                if dtype != common:
                    key = dtype, common, side
                    rounded[key] = rounded.get(key, 0) + 1
        for (dtype, common, side), count in rounded.items():
            yield (
                f"note: {count} tensors of {side} were rounded for the comparison "
                f"({dtype} -> {common})"
            )

    def _difference(self, name: str) -> str | None:
        there, here = self._huggingface.dtype(name), self._stored_dtype(name)
        if there.itemsize == here.itemsize:
            candidates = [there] if there == here else [there, here]
        else:
            candidates = [min(there, here, key=lambda dtype: dtype.itemsize)]
        for start, count in self.blocks(name):
            one = self._huggingface.rows(name, start, count)
            other = self._stored(name, start, count)
            found = [
                _first_difference(one.to(d), other.to(d), start) for d in candidates
            ]
            self._common[name] = candidates[0]
            candidates = [
                dtype
                for dtype, text in zip(candidates, found, strict=True)
                if text is None
            ]
            if not candidates:
                return found[0]
            self._common[name] = candidates[0]
        return None

    def _stored_dtype(self, name: str) -> torch.dtype:
        return self._dtypes[self._row_maps[name].runs[0].name]

    def _stored(self, name: str, start: int, count: int) -> Tensor:
        shape = (count, *self.shapes[name][1:])
        out, at = torch.empty(shape, dtype=self._stored_dtype(name)), 0
        for run in self._row_maps[name].between(start, start + count):
            rows = out[at : at + run.count]
            self._state.read_rows(run.name, run.layer, run.start, rows)
            at += run.count
        return out


def _first_difference(there: Tensor, here: Tensor, start: int) -> str | None:
    differs = as_bytes(there) != as_bytes(here)
    if not differs.any():
        return None
    by_value = torch.from_numpy(differs).view(-1, here.dtype.itemsize).any(dim=1)
    index = by_value.view(here.shape).nonzero()[0].tolist()
    value, other = there[tuple(index)].item(), here[tuple(index)].item()
    return (
        f"{[index[0] + start, *index[1:]]} is {value!r} in Hugging Face's file, "
        f"{other!r} in the checkpoint"
    )
