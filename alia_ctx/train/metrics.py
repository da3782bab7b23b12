"""What is written about each update:

JSON lines always, TensorBoard by default, W&B and MLflow by extra.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class JsonLines:
    """One line an update; lines of updates that a resumed run does again are dropped
    when it opens the file.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        self.path = path
        self.kept = [line for line in read_lines(path) if line["update"] <= resume_at]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(
            "".join(json.dumps(line) + "\n" for line in self.kept), encoding="utf-8"
        )
        temporary.replace(path)
        self._stream = path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(_finite(line)) + "\n")
            self._stream.flush()
        except OSError as error:  # names no file of itself
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # every line was flushed, or its loss reported, when it was appended
            self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON lines file; a last line that a killed writer cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return value


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a metrics line with slash-joined names, as the sinks want them."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat


class GroupedLoss:
    """Sums of losses by position band and by source, as one vector that ranks can add up.

    `edges` bound the bands of the position within the document piece; positions past
    the last edge fall into the last band.
    """

    def __init__(self, edges: Sequence[int], sources: Sequence[str]) -> None:
        self.edges, self.sources = tuple(edges), tuple(sources)
        self._bands = [
            f"{a}-{b - 1}" for a, b in zip(self.edges, self.edges[1:], strict=False)
        ]
        self.values = np.zeros((len(self._bands) + len(self.sources), 2))

    def add(
        self, doc_offsets: np.ndarray, sources: np.ndarray, losses: np.ndarray
    ) -> None:
        """`losses` fp32 [T] of one row, NaN where nothing is predicted here."""
        kept = np.flatnonzero(np.isfinite(losses))
        piece = np.searchsorted(doc_offsets, kept, side="right") - 1
        band = np.searchsorted(self.edges, kept - doc_offsets[piece], side="right") - 1
        self._count(np.minimum(band, len(self._bands) - 1), losses[kept], 0)
        self._count(sources[piece], losses[kept], len(self._bands))

    def _count(self, group: np.ndarray, losses: np.ndarray, first: int) -> None:
        size = len(self.values) - first
        self.values[first:, 0] += np.bincount(group, weights=losses, minlength=size)
        self.values[first:, 1] += np.bincount(group, minlength=size)

    def means(self, totals: np.ndarray) -> dict[str, dict[str, float]]:
        """Mean losses by name of `totals`, the sum of all ranks' `values`;

        groups without tokens are left out.
        """
        named = [
            *(("position", band) for band in self._bands),
            *(("source", source) for source in self.sources),
        ]
        out: dict[str, dict[str, float]] = {"position": {}, "source": {}}
        for (kind, name), (total, count) in zip(named, totals, strict=True):
            if count:
                out[kind][name] = total / count
        return {f"loss_by_{kind}": values for kind, values in out.items()}


class SpikeDetector:
    """Flags a loss that is far above those before it:

    more than `height` standard deviations of the last `window`.
    """

    def __init__(self, window: int = 64, height: float = 6.0, least: int = 16) -> None:
        self.window, self.height, self.least = window, height, least
        self._losses: list[float] = []

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; remembers it."""
        recent = np.array(self._losses[-self.window :])
        spike = False
        if len(recent) >= self.least and math.isfinite(loss):
            spike = bool(
                loss
                > recent.mean()
                + self.height * max(recent.std(), 1e-3 * abs(recent.mean()))
            )
        if math.isfinite(loss):
            self._losses = [*self._losses[-self.window :], loss]
        return spike
