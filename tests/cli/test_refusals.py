"""What a file system answers becomes one line and status 2, whatever command met it; a
fault of the program keeps its traceback.
"""

from __future__ import annotations

import errno
import os

import pytest
import typer

from alia_ctx.cli import run_commands
from alia_ctx.cli.failing import Command

REFUSALS = (
    *("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EIO", "ESTALE", "ETIMEDOUT"),
    *("ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EEXIST", "EBUSY", "ENXIO"),
    *("ENOENT", "EMFILE", "ENOLCK", "EFBIG", "EREMOTEIO", "EHOSTDOWN", "ENOTCONN"),
    *("ENODEV", "ENOTEMPTY", "EXDEV", "EMLINK", "ETXTBSY"),
)


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("file", ["/mnt/data/x", None])
def test_a_refusal_is_one_line(
    name: str,
    file: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = getattr(errno, name)

    def app() -> None:
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(run_commands, "app", app)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_commands.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in line and (file or "") in line
    assert line.endswith("run it again")


@pytest.mark.parametrize("error", [OSError("no number"), ValueError("a bug")])
def test_a_fault_of_the_program_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(run_commands, "app", app)
    with pytest.raises(type(error), match=str(error)):
        run_commands.main()


@pytest.mark.parametrize("status", [None, 0, 3, "needs CUDA"])
def test_a_package_that_ends_the_program_is_a_fault(status: object) -> None:
    """Whatever status it asks for: nothing was done, and nothing would be said."""
    app = typer.Typer()

    @app.command(cls=Command)
    def examine() -> None:
        raise SystemExit(status)

    with pytest.raises(RuntimeError, match=r"asked this program to end \(SystemExit"):
        app([], standalone_mode=True)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (3, 3)])
def test_an_end_of_ours_keeps_its_status(status: int, expected: int) -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    def examine() -> None:
        raise typer.Exit(status)

    with pytest.raises(SystemExit) as ended:
        app([])
    assert ended.value.code == expected
