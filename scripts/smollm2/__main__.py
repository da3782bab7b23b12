"""From weights to report in one command: see configs/runs/smollm2-135m.yaml.

Every step is a command of alia-ctx, printed before it runs, and skips what is there
already; so the whole can be stopped and started again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from alia_ctx.cli.failing import refusal
from alia_ctx.errors import AliaError
from alia_ctx.files import exclusive
from alia_ctx.progress import say
from scripts.smollm2.corpus import require_same_manuals, write_corpus
from scripts.smollm2.interruption import choose_kill
from scripts.smollm2.proof import Proof
from scripts.smollm2.retrieval_text import write_retrieval
from scripts.smollm2.sizes import SMALL, Sizes
from scripts.smollm2.starting import choose_ranks, require_same_sizes
from scripts.smollm2.steps import Steps
from scripts.smollm2.weights import fetch_weights, require_origin


def main(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where everything goes (default: runs/smollm2-135m, with --small "
            "runs/smollm2-135m-small)."
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Processes, one a GPU (default: all GPUs).")
    ] = None,
    manuals: Annotated[
        Path | None,
        typer.Option(help="Manuals written elsewhere, for a machine without apt."),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="A cut version that a laptop runs.")
    ] = False,
    interrupt: Annotated[
        int,
        typer.Option(
            help="Kill the first stage at this update and go on with another layout, "
            "beside a stage that is not disturbed."
        ),
    ] = 0,
    until: Annotated[
        Literal["prepared", "trained", "proven"], typer.Option(help="End after this.")
    ] = "proven",
    package_only: Annotated[
        bool, typer.Option("--package", help="Never ask the hub for the weights.")
    ] = False,
) -> None:
    """Extend SmolLM2-135M-Instruct from 8,192 to 163,840 tokens, and prove it."""
    import torch

    output = output or Path("runs/smollm2-135m" + ("-small" if small else ""))
    ranks = choose_ranks(ranks, torch.cuda.device_count())
    began = time.monotonic()
    with exclusive(output, "make smollm2"):
        sizes = SMALL if small else Sizes()
        steps = Steps(output, ranks, sizes)
        # All that can be refused is, before anything is made.
        kill = choose_kill(output, interrupt, ranks, steps.settings[1:])
        require_origin(output / "hf", package_only=package_only)
        require_same_manuals(output / "text", manuals)
        require_same_sizes(output, sizes.text)
        if kill and until == "prepared":
            say("--until prepared ends before the stage that --interrupt would kill")
        origin = fetch_weights(output / "hf", package_only=package_only)
        say(f"weights: {origin}")
        write_corpus(
            output / "text",
            characters=sizes.characters,
            manuals=manuals,
            manual_characters=sizes.manuals,
        )
        write_retrieval(output, tokens=sizes.retrieval, longest=sizes.longest)
        steps.prepare()
        if until != "prepared":
            if kill:
                steps.train_interrupted(kill)
            steps.train()
        if until == "proven":
            Proof(steps).prove()
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes")


def start() -> None:
    """Entry point: a user's mistake, or a disk's refusal, becomes one message on standard
    error and exit status 2.
    """
    try:
        typer.run(main)
    except AliaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        message = refusal(error)
        if message is None:
            raise
        print(f"{type(error).__name__}: {message}", file=sys.stderr)
        sys.exit(AliaError.exit_code)


if __name__ == "__main__":
    start()
