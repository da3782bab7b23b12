"""The command line: wiring only.

Every command reads a configuration first, and checks it as a whole.
"""

import os
import sys

import alia_ctx
from alia_ctx.rank_variables import NUMBERS, rank_problem


def main() -> None:
    """Entry point of `alia-ctx` and of `python -m alia_ctx.cli`."""
    _require_ranks()
    _first_line(sys.argv[1:])
    if sys.argv[1:2] == ["train"]:
        # Before the imports below, which take seconds.
        from alia_ctx.train.stopping import requeue_on_early_signals

        requeue_on_early_signals()
    from alia_ctx.cli.stopping import Stopped, end_stopped, stop_on_sigterm

    try:
        if sys.argv[1:2] == ["evaluate"]:
            stop_on_sigterm()
        from alia_ctx.cli.run_commands import main as run_main

        run_main()
    except Stopped as stopped:
        end_stopped(stopped)


def _require_ranks() -> None:
    """Exit with 2 where the variables of a launcher are no numbers of ranks, before any
    rank asks what it is. One that is empty is unset from now on.
    """
    for name in NUMBERS:
        if os.environ.get(name) == "":
            del os.environ[name]
    if problem := rank_problem():
        remedy = "unset it, or start several ranks with `python -m alia_ctx.cli.launch` or srun"
        print(f"{problem}: {remedy}", file=sys.stderr)
        sys.exit(2)


def _first_line(arguments: list[str]) -> None:
    """Say at once what was asked for: imports alone take seconds. Not where a person asks
    for help, and of several ranks on the first alone.
    """
    asked_for_help = {"--help", "-h"} & {*arguments}
    named = arguments and not arguments[0].startswith("-")
    if named and not asked_for_help and os.environ.get("RANK", "0") == "0":
        words = " ".join(arguments)
        print(f"alia-ctx {alia_ctx.__version__}: {words}", file=sys.stderr, flush=True)
