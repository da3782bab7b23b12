"""The command line: wiring only.

Every command reads a configuration first, and checks it as a whole.
"""

import sys


def main() -> None:
    """Entry point of `alia-ctx` and of `python -m alia_ctx.cli`."""
    if sys.argv[1:2] == ["train"]:
        # Before the imports below, which take seconds.
        from alia_ctx.train.stopping import requeue_on_early_signals

        requeue_on_early_signals()
    from alia_ctx.cli.run_commands import main as run_main

    run_main()
