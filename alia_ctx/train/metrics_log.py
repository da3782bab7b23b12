"""The log of a stage: a line an update in `metrics.jsonl`, and the sinks beside it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.errors import AliaError
from alia_ctx.files import atomic_file, parse_json
from alia_ctx.train.sinks import Writer

_WHO = {"host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}


class LogError(AliaError):
    """A log that is there cannot be read, so nothing is written to it."""


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Takes the line of each update to `metrics.jsonl` and to every sink.

    Args:
        lines: the open file; None on the ranks that write nothing.
        sinks: where the numbers go besides, by slash-joined names.
        about: what the first line that is written says besides, to the file alone.
    """

    def __init__(
        self,
        lines: JsonLines | None,
        sinks: Sequence[Writer] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._lines, self._sinks = lines, tuple(sinks)
        self._about: Mapping[str, Any] = about or {}

    @property
    def past_losses(self) -> list[float]:
        """The losses of the lines that a resumed stage goes on from; NaN where skipped, or
        where somebody has edited what is no number now.
        """
        kept = self._lines.kept if self._lines is not None else []
        return [_loss(line) for line in kept]

    def last_number(self, name: str) -> float:
        """The number under `name` in the newest of those lines that has one; 0.0 where none
        has.
        """
        kept = self._lines.kept if self._lines is not None else []
        values = (line.get(name) for line in reversed(kept))
        found = (v for v in values if isinstance(v, float | int) and math.isfinite(v))
        return float(next(found, 0.0))

    def write(self, line: Mapping[str, Any]) -> None:
        if self._lines is not None:
            self._lines.append({**line, **self._about})
            self._about = {}
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
    """A file with a line an update. What was written to it once is never deleted.

    A stage that goes on after update `resume_at` writes the lines of later updates
    again: those that are there already move to `NAME.superseded`. So do all but the
    last of several lines of one update. A line that is not whole, because its writer
    was killed or its disk lost it, moves to `NAME.broken`, byte for byte, and `notice`
    hears of it. A file that needs none of this is only ever appended to.

    Raises LogError where the file cannot be read: it is left alone then.
    """

    def __init__(
        self,
        path: Path,
        resume_at: int,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _read(path)
        lines = _parse(data)
        whole = [line for line in lines if line.entry is not None]
        broken = [line for line in lines if line.entry is None]
        newest = {n.update: n.number for n in whole if n.update <= resume_at}
        kept = [line for line in whole if newest.get(line.update) == line.number]
        numbers = {line.number for line in kept}
        superseded = [line for line in whole if line.number not in numbers]
        self.kept = [line.entry for line in kept if line.entry is not None]
        if broken or superseded or (data and not data.endswith(b"\n")):
            if _read(path) != data:
                raise LogError(
                    f"{path}: two readings of it differ; nothing was changed. See to "
                    "the file system, and that nothing else writes there; start again"
                )
            _keep_aside(_aside(path, "superseded"), superseded)
            _keep_aside(_aside(path, "broken"), broken)
            with _naming(path), atomic_file(path) as stream:
                stream.writelines(line.data + b"\n" for line in kept)
        for line in broken:
            notice(
                f"{path}: line {line.number} was not whole; what there was of it is in "
                f"{_aside(path, 'broken').name}"
            )
        missing = resume_at - len(self.kept)
        if missing > 0:
            notice(f"{path}: has no line of {missing} of the first {resume_at} updates")
        self._stream = path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        """Write `line`, with the time and by whom: UTC, the host, and the job of SLURM."""
        when = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_WHO}
        with _naming(self.path):
            self._stream.write(json.dumps(_finite({**line, **when})) + "\n")
            self._stream.flush()

    def close(self) -> None:
        # every line was flushed, or its loss reported, when it was appended
        with contextlib.suppress(OSError):
            self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log in their order; of several of one update the last.
    Nothing where there is no log; LogError where it cannot be read.
    """
    newest = {
        line.update: line.entry
        for line in _parse(_read(path))
        if line.entry is not None
    }
    return list(newest.values())


def broken_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the lines of a log that are not whole; LogError as `read_lines`."""
    return [line.number for line in _parse(_read(path)) if line.entry is None]


@dataclass(frozen=True)
class _Line:
    """A line of a log: its number from 1, its bytes, and what it says, None where that
    cannot be told.
    """

    number: int
    data: bytes
    entry: dict[str, Any] | None

    @property
    def update(self) -> int:
        """The update that it is of; 0 for one that is not whole."""
        return self.entry["update"] if self.entry is not None else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LogError(
            f"{path}: cannot be read ({error.strerror or error}); nothing was changed. "
            "See to the file system or the permissions, and start again"
        ) from error


def _parse(data: bytes) -> list[_Line]:
    return [
        _Line(number, text, _entry(text))
        for number, text in enumerate(data.split(b"\n"), 1)
        if text.strip()
    ]


def _entry(text: bytes) -> dict[str, Any] | None:
    try:
        entry = parse_json(text)
    except ValueError:
        return None
    update = entry.get("update") if isinstance(entry, dict) else None
    return entry if type(update) is int and update > 0 else None


def _loss(line: Mapping[str, Any]) -> float:
    loss = line.get("loss") if line.get("predicted_tokens", 1) else None
    if loss is None or type(loss) not in (int, float):
        return math.nan
    return float(loss)


def _aside(path: Path, why: str) -> Path:
    return path.with_name(f"{path.name}.{why}")


def _keep_aside(path: Path, lines: Sequence[_Line]) -> None:
    """Append `lines`, unless a start that was killed right after this did so already."""
    data = b"".join(line.data + b"\n" for line in lines)
    before = _read(path)
    if before.endswith(data):
        return
    with _naming(path), path.open("ab") as stream:
        stream.write(data if not before or before.endswith(b"\n") else b"\n" + data)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name `path` in an error of the block: one of writing names no file of itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


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
