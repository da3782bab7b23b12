"""The answers of a model, kept as they come, so that work goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.evaluation.function_calling.answers import Answer
from alia_ctx.files import parse_json
from alia_ctx.identity import require_same, statement, statement_checksum

NAME = "answers.jsonl"


class AnswerLedger:
    """`answers.jsonl` of a directory: a first line that says what the answers were made
    with, then a line for each.
    """

    def __init__(self, directory: Path, made_with: Any) -> None:
        """Opens it, or begins it. A last line that was cut off is forgotten.

        IdentityError naming what differs, where its answers were made with something
        else; DataError where it is damaged.
        """
        self.path = directory / NAME
        self.answers: dict[str, Answer] = {}
        self._made_with = statement(made_with)
        if self.path.is_file() and self.path.stat().st_size:
            self._read()
        else:
            directory.mkdir(parents=True, exist_ok=True)
            self._append([{"made_from": self._made_with}])

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Answers by the ids of their cases; on disk when this returns."""
        pairs = list(answers)
        lines = [{"id": name, **answer.to_json()} for name, answer in pairs]
        self._append([{**line, "checksum": statement_checksum(line)} for line in lines])
        self.answers.update(pairs)

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            # ASCII, as a model may write half a surrogate pair.
            stream.writelines(json.dumps(line) + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        remedy = f"move {self.path.parent} away, or name another --output"
        if not lines:
            raise DataError(f"{self.path}: its first line is not whole; {remedy}")
        for number, line in enumerate(lines, 1):
            try:
                value = parse_json(line)
                if number == 1:
                    then = value["made_from"]
                    continue
                checksum = value.pop("checksum")
                if checksum != statement_checksum(value):
                    raise ValueError("its checksum differs")
                self.answers[value.pop("id")] = Answer.from_json(value)
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                DataError,
            ) as error:
                again = "remove that line and its question is asked again, or "
                raise DataError(
                    f"{self.path}, line {number}: is damaged ({error}); "
                    f"{again if number > 1 else ''}{remedy}"
                ) from error
        require_same(then, self._made_with, f"{self.path}", remedy)
        if len(whole) < len(data):  # only now that the file is known to be ours
            os.truncate(self.path, len(whole))
