"""BFCL's multi-turn categories: its own program, in its own environment, asks a model."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import alia_ctx.evaluation.function_calling as function_calling
from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling import MULTI_TURN, Score, read_multi_turn
from alia_ctx.files import file_checksum, parse_json, read_object, write_json
from alia_ctx.identity import require_same, sealed, statement, unsealed
from alia_ctx.progress import say

FOLDER = "multi-turn"
_PROGRAM = Path(function_calling.__file__).parent / "bfcl_program.py"
_STATED, _LOG = "made_from.json", "bfcl.log"
_LOOK_EVERY_SECONDS = 2.0


def are_kept(directory: Path) -> bool:
    """Whether a model's folder has answers of several turns."""
    return (directory / FOLDER / _STATED).is_file()


class ConversingModel(Protocol):
    """What is asked."""

    name: str
    statement: dict[str, Any]
    may_change: bool

    def refusal(self) -> str: ...

    def serving(self) -> AbstractContextManager[str]: ...


@dataclass(frozen=True)
class BenchmarkProgram:
    """`bfcl-eval` of an environment.

    Args:
        data: the folder of its questions, those of one turn too.
        sizes: category -> how many conversations it has.
        limit: how many of each are asked.
    """

    python: Path
    version: str
    data: Path
    sizes: dict[str, int]
    limit: int | None = None

    @classmethod
    def find(
        cls, environment: Path, categories: Sequence[str], limit: int | None
    ) -> BenchmarkProgram:
        """That of a virtual environment; ConfigError where it cannot be run there."""
        python = environment / "bin" / "python"
        remedy = "`make venv-bfcl` makes one"
        if not python.is_file():
            rule = "is no environment: there is no bin/python"
            raise ConfigError("", [Problem("--bfcl-env", environment, rule, remedy)])
        say(f"loading bfcl-eval of {environment}")
        with tempfile.TemporaryDirectory() as scratch:
            words = ["--check", "--output", scratch, "--categories"]
            done = subprocess.run(
                [*_command(python), *words, ",".join(categories)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=_environment(),
            )
        try:
            found = parse_json(done.stdout.splitlines()[-1])
            version, data, sizes = found["version"], found["data"], found["sizes"]
        except (ValueError, LookupError, TypeError) as error:
            told = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            rule = f"cannot run bfcl-eval ({told})"
            raise ConfigError(
                "", [Problem("--bfcl-env", environment, rule, remedy)]
            ) from error
        return cls(python, version, Path(data), sizes, limit)

    @property
    def conversations(self) -> int:
        """How many are asked."""
        return sum(min(size, self.limit or size) for size in self.sizes.values())

    def scores(
        self,
        model: ConversingModel,
        directory: Path,
        *,
        temperature: float,
        max_tokens: int,
        threads: int,
        progress: Callable[[int], None],
    ) -> dict[str, Score]:
        """Category -> score. Answers are kept in `directory`, and only what is missing is
        asked.

        IdentityError where those there are of another model or version; DataError where
        the program fails, with its last words, or where no conversation is answered, nor
        the shortest question with a tool.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._require_own(directory, model)
        words = ["--model", model.name, "--output", str(directory)]
        words += ["--categories", ",".join(self.sizes), "--threads", str(threads)]
        words += ["--temperature", str(temperature), "--max-tokens", str(max_tokens)]
        words += ["--limit", str(self.limit)] if self.limit else []
        words += ["--refused-again"] if model.may_change else []
        with model.serving() as url, open(directory / _LOG, "ab") as log:
            program = subprocess.Popen(
                [*_command(self.python), "--piped", "--endpoint", url, *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
            try:
                done = 0
                while program.poll() is None:
                    # Not all of them before they are scored, and nothing twice.
                    now = min(_answered(directory), self.conversations - 1)
                    if now > done:
                        progress(done := now)
                    time.sleep(_LOOK_EVERY_SECONDS)
            finally:
                if program.poll() is None:
                    program.terminate()
                    program.wait()
        if program.returncode:
            lines = (directory / _LOG).read_text("utf-8", "replace").split("\n")
            told = next((line.strip() for line in lines[::-1] if line.strip()), "")
            raise DataError(
                f"bfcl-eval ended with {program.returncode}: {told}; all it said is in "
                f"{directory / _LOG}; answers that are there are kept"
            )
        scores = read_multi_turn(directory / "score")
        nothing = all(score.unanswered == score.total for score in scores.values())
        if nothing and (told := model.refusal()):
            raise DataError(
                f"{model.name}: no conversation has an answer, nor has the shortest "
                f"question with a tool ({told}); correct how the server is "
                "started (tools, context), or name another --template"
            )
        progress(self.conversations)
        return scores

    def _require_own(self, directory: Path, model: ConversingModel) -> None:
        made_with = statement(
            {
                "model": model.statement,
                "bfcl-eval": self.version,
                "files": self._checksums(),
            }
        )
        stated = directory / _STATED
        remedy = f"move {directory} away, or name another --output"
        if stated.is_file():
            then, _ = unsealed(read_object(stated), str(stated), remedy)
            require_same(then, made_with, f"{directory}", remedy)
        elif (directory / "result").is_dir():
            raise DataError(f"{directory}: has answers of an unknown model; {remedy}")
        else:
            write_json(stated, sealed(made_with, {}))

    def _checksums(self) -> dict[str, str]:
        """Of the questions and accepted answers of all four categories."""
        files = [
            file
            for category in MULTI_TURN
            for file in self.data.rglob(f"BFCL_v*_{category}.json")
        ]
        files += (self.data / "multi_turn_func_doc").glob("*.json")
        return {
            str(file.relative_to(self.data)): file_checksum(file)
            for file in sorted(files)
        }


def _command(python: Path) -> list[str]:
    # Isolated: neither our PYTHONPATH nor the folder of the program is its own. bfcl-eval
    # opens files without naming UTF-8, which they are in whatever the locale is.
    return [str(python), "-I", "-X", "utf8", str(_PROGRAM)]


def _environment() -> dict[str, str]:
    """A proxy of the machine's would be asked for loopback too."""
    own = ["127.0.0.1", "localhost"]
    names = {
        name: ",".join([*filter(None, [os.environ.get(name)]), *own])
        for name in ("no_proxy", "NO_PROXY")
    }
    return {**os.environ, **names}


def _answered(directory: Path) -> int:
    """Conversations that have an answer."""
    count = 0
    for file in (directory / "result").rglob("BFCL_v*_result.json"):
        with open(file, "rb") as stream:
            count += sum(1 for _ in stream)
    return count
