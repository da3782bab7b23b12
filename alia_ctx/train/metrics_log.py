"""The log of a stage: a line an update in `metrics.jsonl`, and the sinks beside it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.train.sinks import Writer


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Takes the line of each update to `metrics.jsonl` and to every sink.

    Args:
        lines: the open file; None on the ranks that write nothing.
        sinks: where the numbers go besides, by slash-joined names.
    """

    def __init__(self, lines: JsonLines | None, sinks: Sequence[Writer] = ()) -> None:
        self._lines, self._sinks = lines, tuple(sinks)

    @property
    def past_losses(self) -> list[float]:
        """The losses of the lines that a resumed stage goes on from; NaN where skipped."""
        kept = self._lines.kept if self._lines is not None else []
        return [math.nan if line["loss"] is None else line["loss"] for line in kept]

    def write(self, line: Mapping[str, Any]) -> None:
        if self._lines is not None:
            self._lines.append(line)
        for sink in self._sinks:
            sink.write(line["update"], flatten(line))

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
        for sink in self._sinks:
            sink.close()


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
