"""From weights to report in one command: see configs/runs/smollm2-135m.yaml.

Every step is a command of alia-ctx, printed before it runs, and skips what is there
already; so the whole can be stopped and started again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from alia_ctx.config.load import load_run
from alia_ctx.progress import say
from scripts.smollm2.corpus import write_corpus
from scripts.smollm2.retrieval_text import write_retrieval
from scripts.smollm2.weights import fetch_weights

CONFIG = Path(__file__).parents[2] / "configs" / "runs" / "smollm2-135m.yaml"
# What fits a laptop in minutes: the path is the same, the figures mean nothing.
SMALL = (
    "stages.32k.context=256",
    "stages.32k.tokens=2048",
    "stages.32k.update_tokens=512",
    "stages.160k.context=1280",
    "stages.160k.tokens=5120",
    "stages.160k.update_tokens=2560",
    "checkpoint.every_updates=2",
    "evaluation.documents=2",
    "evaluation.measure=[positions,blocks]",
    "engine.precision=fp32",
)


def main(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path(
        "runs/smollm2-135m"
    ),
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
    package_only: Annotated[
        bool, typer.Option("--package", help="Never ask the hub for the weights.")
    ] = False,
) -> None:
    """Extend SmolLM2-135M-Instruct from 8,192 to 163,840 tokens, and prove it."""
    import torch

    ranks = ranks or max(1, torch.cuda.device_count())
    began = time.monotonic()
    origin = fetch_weights(output / "hf", package_only=package_only)
    say(f"weights: {origin}")
    characters = 3_000_000 if small else 110_000_000
    write_corpus(output / "text", characters=characters, manuals=manuals)
    write_retrieval(
        output,
        tokens=100_000 if small else 12_000_000,
        longest=1280 if small else 163_840,
    )
    steps = Steps(output, ranks, SMALL if small else ())
    steps.prepare()
    steps.train()
    steps.prove()
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes")


class Steps:
    """The commands of the run in `output`, by `ranks` processes."""

    def __init__(self, output: Path, ranks: int, overrides: Sequence[str]) -> None:
        cp = [] if ranks > 1 else ["stages.160k.layout.cp=1"]
        self._settings = [
            str(CONFIG),
            f"root={output}",
            f"cluster.ranks_per_node={ranks}",
            *cp,
            *overrides,
        ]
        self._output, self._ranks = output, ranks

    def prepare(self) -> None:
        """Import, check, tokens, and plans of rows."""
        if not (self._output / "base").is_dir():
            self._command("import-hf", self._output / "hf", self._output / "base")
        self._command("check", *self._settings)
        self._command("tokenize", *self._settings)
        for stage in self._stages():
            self._command("pack", *self._settings, "--stage", stage)

    def train(self) -> None:
        """The stages, in their order; a stage that was stopped goes on."""
        for stage in self._stages():
            self._command("train", *self._settings, "--stage", stage, on_ranks=True)

    def prove(self) -> None:
        """Evaluation of base and stages, export, and the same answers by transformers."""
        self._command("evaluate", *self._settings, on_ranks=True)
        last = self._stages()[-1]
        checkpoints = self._output / "stages" / last / "checkpoints"
        checkpoint = sorted(checkpoints.glob("update-*[0-9]"))[-1]
        exported = self._output / f"hf-{last}"
        if not exported.is_dir():
            self._command("export-hf", checkpoint, exported)
        self._command("verify", exported, checkpoint)
        self._command("report", *self._settings)

    def _stages(self) -> list[str]:
        """Their names; the configuration takes its sizes from the imported base."""
        return list(load_run(CONFIG, self._settings[1:]).stages)

    def _command(self, *arguments: object, on_ranks: bool = False) -> None:
        words = ["-m", "alia_ctx.cli", *map(str, arguments)]
        if on_ranks and self._ranks > 1:
            words = [
                *("-m", "alia_ctx.cli.launch", "--standalone"),
                f"--nproc-per-node={self._ranks}",
                *words,
            ]
        say("$ alia-ctx " + escape(shlex.join(map(str, arguments))))
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        began = time.monotonic()
        status = subprocess.run([sys.executable, *words], env=environment).returncode
        self._note(str(arguments[0]), time.monotonic() - began)
        if status:
            raise typer.Exit(status)

    def _note(self, command: str, seconds: float) -> None:
        """Append how long a command took to `times.jsonl`."""
        with open(self._output / "times.jsonl", "a") as out:
            out.write(json.dumps({"command": command, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    typer.run(main)
