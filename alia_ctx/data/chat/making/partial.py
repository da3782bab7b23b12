"""What is made so far with a model's help, beside the output, so that a start goes on.

By grammar alone a conversation takes a thousandth of a second, and is made again; a
model's words are paid for, and every model's endpoint is down at some time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, parse_json
from alia_ctx.identity import differences, statement


@dataclass(frozen=True)
class Attempt:
    """Conversation number `index`: its record as JSON text, or why there is none."""

    index: int
    record: str | None
    refused: str | None = None


class Partial:
    """`OUTPUT.partial`: a line that says what it is made from, then a line an attempt."""

    def __init__(self, output: Path, made_from: Mapping[str, Any]) -> None:
        """Opens what is there and of the same; DataError where it is of something else, or
        damaged.
        """
        self.path = output.with_name(f"{output.name}.partial")
        self.attempts: list[Attempt] = []
        head = json.dumps({"made_from": statement(made_from)}, sort_keys=True)
        whole = f"{head}\n".encode()
        if self.path.is_file():
            lines = self.path.read_bytes().splitlines(keepends=True)
            # Where only a head of ours is there nothing was made, as of a mistyped address.
            if lines and (len(lines) > 1 or not _is_head(lines[0])):
                self._require_same(lines[0], made_from)
                whole += b"".join(self._read(lines[1:]))
        try:
            with atomic_file(self.path) as stream:
                stream.write(whole)
            self._stream = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error

    def _require_same(self, head: bytes, made_from: Mapping[str, Any]) -> None:
        try:
            then = parse_json(head)["made_from"]
        except (ValueError, LookupError, TypeError):
            then = None
        if lines := differences(then, made_from):
            raise DataError(
                f"{self.path}: what was made so far is of something else:\n  "
                + "\n  ".join(lines)
                + "\ngo on as it was begun, or remove the file to begin anew"
            )

    def _read(self, lines: list[bytes]) -> list[bytes]:
        """The lines but for a last one that a killed process left half-written. What was
        refused last is tried again: a model that refused all may have been mended.

        DataError where another is damaged: what stands behind it was paid for.
        """
        if lines and not lines[-1].endswith(b"\n"):
            lines = lines[:-1]
        for number, line in enumerate(lines):
            try:
                attempt = Attempt(**parse_json(line))
            except (ValueError, TypeError):
                attempt = None
            if attempt is None or attempt.index != number:
                raise DataError(
                    f"{self.path}, line {number + 2}: is damaged; mend it, remove it and "
                    "all behind it to make these again, or the file to begin anew"
                )
            self.attempts.append(attempt)
        while self.attempts and self.attempts[-1].record is None:
            self.attempts.pop()
        return lines[: len(self.attempts)]

    def add(self, attempt: Attempt) -> None:
        """Append an attempt; it is in the file when this returns."""
        self._stream.write(f"{json.dumps(vars(attempt))}\n".encode())
        self._stream.flush()

    def remove(self) -> None:
        """What it held is in the output now."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _is_head(line: bytes) -> bool:
    """Whether a file of ours begins so: its first line is written whole or not at all."""
    try:
        return line.endswith(b"\n") and set(parse_json(line)) == {"made_from"}
    except (ValueError, TypeError):
        return False
