"""`alia-ctx ARGUMENTS` in a process that is forked from the server of `tests.distributed`,
which has imported what most commands need: starting one anew takes seconds of a core.

Tests of how a command starts, of what it imports, and of one that is stopped from outside
start an interpreter (`tests.small_run.command`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.distributed import begin_child, forkserver, kill
from tests.paths import ROOT

_MODULE = ROOT / "alia_ctx" / "cli" / "__main__.py"


def run_command(
    arguments: tuple[str, ...], environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([python, "-m", "alia_ctx.cli", *arguments])` gives, its output
    and its status, and the same TimeoutExpired after so many seconds. Nothing that it has
    started outlives it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        where = str(out), str(err)
        child = forkserver().Process(
            target=_command, args=(arguments, environment, os.getcwd(), where)
        )
        try:
            child.start()
            child.join(timeout)
            status = child.exitcode
        finally:
            kill(child)
        said = [path.read_text() if path.exists() else "" for path in (out, err)]
    words = [sys.executable, "-m", "alia_ctx.cli", *arguments]
    if status is None:
        raise subprocess.TimeoutExpired(words, timeout, *said)
    return subprocess.CompletedProcess(words, status, *said)


def _command(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    directory: str,
    where: tuple[str, str],
) -> None:
    begin_child()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    _redirect(0, os.open(os.devnull, os.O_RDONLY))
    for number, path in enumerate(where, start=1):
        _redirect(number, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    sys.argv = [str(_MODULE), *arguments]
    from alia_ctx.cli import main

    try:
        main()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()  # a child of multiprocessing leaves them out


def _redirect(number: int, to: int) -> None:
    os.dup2(to, number)
    os.close(to)
