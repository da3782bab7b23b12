"""What befell the ranks of a stage, by name: which rank, on which host, with which GPU.

A rank writes of what it noticed to a file of its own, `faults/rank-N.jsonl` beside the
stage's log, and only when there is something to say: a line a fault. `alia-ctx status`
reads them all.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from alia_ctx.files import parse_json

Kind = Literal["slow", "nan", "hung", "lost"]
FOLDER = "faults"


@dataclass(frozen=True)
class RankName:
    """Which process it is, for a person who has to find the machine: `gpu` is its number
    on the host and its name, `cpu` where there is none.
    """

    rank: int
    host: str
    gpu: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.gpu})"

    @classmethod
    def of_this_process(cls, rank: int) -> RankName:
        return cls(rank, socket.gethostname(), _gpu())


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with suppress(RuntimeError, AssertionError):  # a GPU that fell off its bus
        index = torch.cuda.current_device()
        name = torch.cuda.get_device_name(index)
        return f"GPU {number_on_host(index, visible)}, {name}"
    return f"GPU {number_on_host(int(os.environ.get('LOCAL_RANK', '0')), visible)}"


def number_on_host(index: int, visible: str | None) -> str:
    """The number or UUID by which the host knows GPU `index` of a process to which
    CUDA_VISIBLE_DEVICES shows `visible`.
    """
    shown = [word.strip() for word in (visible or "").split(",") if word.strip()]
    return shown[index] if index < len(shown) else str(index)


def fault(kind: Kind, who: RankName, update: int, words: str) -> dict[str, Any]:
    """A line: `who` is the rank that it befell, and `words` say what it was."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"time": now, "kind": kind, **asdict(who), "update": update, "words": words}
    return {**line, "job": os.environ.get("SLURM_JOB_ID")}


def record_fault(directory: Path, by: int, line: Mapping[str, Any]) -> None:
    """Append a line to the file of rank `by`. What cannot be written is let go: it is said
    on standard error as well, and a full disk shall not end what goes on.
    """
    with suppress(OSError):
        path = directory / FOLDER / f"rank-{by}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(line)) + "\n")


def read_faults(directory: Path) -> list[dict[str, Any]]:
    """Every whole line of every rank, the oldest first."""
    lines = [
        line for path in (directory / FOLDER).glob("*.jsonl") for line in _of(path)
    ]
    return sorted(lines, key=lambda line: (str(line["time"]), str(line.get("update"))))


def _of(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for text in path.read_bytes().splitlines():
            with suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict) and {"time", "kind", "rank"} <= set(line):
                    yield line
