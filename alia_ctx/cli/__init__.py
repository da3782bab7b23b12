"""The command line: wiring only.

Every command reads a configuration first, and checks it as a whole.
"""


def main() -> None:
    """Entry point of `alia-ctx` and of `python -m alia_ctx.cli`."""
    from alia_ctx.cli.run_commands import main as run_main

    run_main()
