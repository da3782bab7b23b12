"""How a command ends that cannot do what it was asked: in a line for a person, and with
`--json` as a document.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from alia_ctx.cli.output import print_json, printed_at_the_end
from alia_ctx.errors import AliaError
from alia_ctx.optional_packages import reason
from alia_ctx.progress import is_main

# What a file system answers: a fault of the place, none of the program.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.ENXIO),
    *(errno.ENOENT, errno.ENOTEMPTY, errno.EXDEV, errno.EMLINK, errno.ETXTBSY),
    *(errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENODEV),
    *(errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
}


def refusal(error: OSError) -> str | None:
    """What a file system's refusal means to a person; None where it is none of its."""
    if error.errno not in _REFUSALS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror}; make room, mend the permissions or bring back what is "
        "missing, then run it again"
    )


def say_stopped() -> None:
    """What a person hears who presses Ctrl-C."""
    print("stopped; what is finished stays, start again to go on", file=sys.stderr)


class Command(TyperCommand):
    """A command whose errors, with `--json`, are a document on standard output, in place of
    the one that it would have printed. On one of several ranks the first writes it, and
    each ends as it does without.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            with printed_at_the_end():
                return super().invoke(ctx)
        except KeyboardInterrupt:  # of which typer makes an exit without a word
            if is_main():
                say_stopped()
            raise
        except SystemExit as error:
            # rich's answer to a reader that has read enough (`| head`), with its status
            # (`Console.on_broken_pipe`).
            if isinstance(error.__context__, BrokenPipeError):
                raise typer.Exit(1) from error
            # None of ours, which ends by typer.Exit. Passed on it would end a command that
            # has done nothing with the status of one that has, and without a word.
            words = f"a package asked this program to end ({reason(error)})"
            raise RuntimeError(words) from error
        except (AliaError, OSError) as error:
            document = _document(error) if ctx.params.get("as_json") else None
            if document is None:
                raise
            config = ctx.params.get("config")
            about = {} if config is None else {"config": str(config)}
            if is_main():
                print_json({**about, "ok": False, **document})
            if "RANK" in os.environ:
                raise
            raise typer.Exit(getattr(error, "exit_code", 2)) from error


def _document(error: AliaError | OSError) -> dict[str, Any] | None:
    if isinstance(error, AliaError):
        return error.to_json()
    message = refusal(error)
    if message is None:
        return None
    return {"error": type(error).__name__, "message": message, "problems": []}
