"""From weights to report in one command: see configs/runs/smollm2-135m.yaml.

Every step is a command of alia-ctx, printed before it runs, and skips what is there
already; so the whole can be stopped and started again.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, DataError
from alia_ctx.files import write_json
from alia_ctx.progress import say
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import metrics_file
from alia_ctx.workflow.chain import run_directory
from scripts.smollm2 import by_transformers, interruption
from scripts.smollm2.corpus import write_corpus
from scripts.smollm2.retrieval_text import write_retrieval
from scripts.smollm2.starting import (
    choose_ranks,
    choose_recompute,
    require_same_sizes,
    set_aside,
)
from scripts.smollm2.weights import fetch_weights

CONFIG = Path(__file__).parents[2] / "configs" / "runs" / "smollm2-135m.yaml"
_FAR = 131_072  # where retrieval is measured beside the stages' own contexts
_AFTERWARDS = 40  # updates past the kill that the undisturbed stage is trained


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        characters: of code in the corpus.
        retrieval: tokens of documents that teach retrieval.
        longest: tokens of the longest of them.
        short: lengths that the base knows, at which it is compared with the last stage
            on other kinds of text.
        options: of that comparison.
        overrides: of the configuration.
    """

    characters: int = 110_000_000
    retrieval: int = 12_000_000
    longest: int = 163_840
    short: str = "4096,8192"
    options: tuple[str, ...] = ("--samples", "20")
    overrides: tuple[str, ...] = ()


# What fits a laptop in minutes: the path is the same, the figures mean nothing.
SMALL = Sizes(
    characters=3_000_000,
    retrieval=100_000,
    longest=1280,
    short="256",
    options=("--samples", "1", "--documents", "2", "--task", "niah_single_1"),
    overrides=(
        "stages.32k.context=256",
        "stages.32k.tokens=2048",
        "stages.32k.update_tokens=512",
        "stages.160k.context=1280",
        "stages.160k.tokens=5120",
        "stages.160k.update_tokens=2560",
        "checkpoint.every_updates=2",
        "evaluation.documents=2",
        "evaluation.measure=[positions]",
        "evaluation.retrieval.samples=1",
        "engine.precision=fp32",
    ),
)


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
    sizes = SMALL if small else Sizes()
    require_same_sizes(
        output,
        {
            "characters": sizes.characters,
            "retrieval": sizes.retrieval,
            "longest": sizes.longest,
        },
    )
    origin = fetch_weights(output / "hf", package_only=package_only)
    say(f"weights: {origin}")
    write_corpus(output / "text", characters=sizes.characters, manuals=manuals)
    write_retrieval(output, tokens=sizes.retrieval, longest=sizes.longest)
    steps = Steps(output, ranks, sizes)
    steps.prepare()
    if until != "prepared":
        if interrupt:
            steps.train_interrupted(interrupt)
        steps.train()
    if until == "proven":
        steps.prove()
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes")


class Steps:
    """The commands of the run in `output`, by `ranks` processes."""

    def __init__(self, output: Path, ranks: int, sizes: Sizes) -> None:
        self._settings = [
            str(CONFIG),
            f"root={output}",
            f"cluster.ranks_per_node={ranks}",
            *sizes.overrides,
        ]
        self._output, self._ranks, self._sizes = output, ranks, sizes

    def prepare(self) -> None:
        """Import, check, tokens, and plans of rows."""
        if not (self._output / "base").is_dir():
            self._command("import-hf", self._output / "hf", self._output / "base")
        self._settings += self._layouts()
        self._command("check", *self._settings)
        self._command("tokenize", *self._settings)
        for stage in self._stages():
            self._command("pack", *self._settings, "--stage", stage)

    def _layouts(self) -> list[str]:
        """An update's rows over the ranks; where these are more, they cut the rows. What
        the GPUs then have no room for is computed again in the backward.
        """
        run, _ = load_plan(CONFIG, self._settings[1:])
        rows = {
            name: (stage.update_tokens or 0) // stage.context
            for name, stage in run.stages.items()
        }
        cuts = [
            f"stages.{name}.layout.cp={self._ranks // math.gcd(self._ranks, count)}"
            for name, count in rows.items()
        ]
        return cuts + choose_recompute(CONFIG, [*self._settings[1:], *cuts])

    def train(self) -> None:
        """The stages, in their order; a stage that was stopped goes on."""
        for stage in self._stages():
            self._command("train", *self._settings, "--stage", stage, on_ranks=True)

    def train_interrupted(self, update: int) -> None:
        """The first stage up to where another layout has gone on with it for a while, twice:
        undisturbed, and killed at `update`.
        """
        stage = self._stages()[0]
        at, undisturbed = self._stage(stage), self._output / "undisturbed"
        note, killed = (
            self._output / f"{name}.json" for name in ("interruption", "killed")
        )
        if note.is_file():
            return
        updates, every = self._updates(stage), self._run.checkpoint.every_updates
        if self._ranks < 2:
            raise DataError(
                "--interrupt goes on with another layout, which takes --ranks 2 or more"
            )
        if not every <= update < updates:
            raise DataError(
                f"--interrupt {update}: the stage saves every {every} updates and has "
                f"{updates}; name one from {every} to {updates - 1}"
            )
        command = ["train", *self._settings, "--stage", stage]
        begun = self._output / "undisturbed.begun"
        if not undisturbed.is_dir():
            if at.is_dir() and not begun.is_file():
                raise DataError(
                    f"{at}: the stage was begun without --interrupt; move it away, or "
                    "leave --interrupt out"
                )
            set_aside(at)  # the undisturbed part was stopped; or trained on since
            begun.touch()
            self._killed(command, at, min(update + _AFTERWARDS, updates))
            at.rename(undisturbed)
        if not killed.is_file():
            set_aside(at)  # stopped before it was killed
            saved = update // every * every
            self._killed(command, at, update, lambda: self._saved(stage) >= saved)
            before = list(read_lines(metrics_file(at)))
            write_json(killed, {"kept": self._saved(stage), "log": before})
        was = json.loads(killed.read_text())
        cut = f"stages.{stage}.layout.cp={self._ranks}"
        self._command(*command, cut, on_ranks=True)
        interruption.require_resumed(at, was["log"], was["kept"])
        compared = interruption.compare(undisturbed, at, was["kept"])
        write_json(note, compared)
        for when in ("before", "after"):
            for name, difference in compared[when].items():
                say(
                    f"{name} {when} the kill: relative differences of "
                    f"{difference['mean']:.1e} in the mean, "
                    f"{difference['greatest']:.1e} at most"
                )

    def prove(self) -> None:
        """Evaluation of base and stages, export, and the same answers by transformers."""
        last = self._stages()[-1]
        self._command("evaluate", *self._settings, on_ranks=True)
        passkeys = ("--stage", last, "--evaluators", "passkey")
        self._command("evaluate", *self._settings, *passkeys, on_ranks=True)
        newest = self._newest(last)
        self._short_text(newest)
        if self._longest > _FAR:
            far = ("--stage", last, "--context", _FAR, "--evaluators", "retrieval")
            self._command("evaluate", *self._settings, *far, on_ranks=True)
        exported = self._output / f"hf-{last}"
        if not exported.is_dir():
            self._command("export-hf", newest, exported)
        self._command("verify", exported, newest)
        self._answers_of_transformers(exported)
        self._command("report", *self._settings)

    def _short_text(self, last: Path) -> None:
        """Text of kinds that are not trained on, and all retrieval tasks, at lengths that
        the base knows, base and last stage in one table.
        """
        text = self._output / "text" / "held-out-short.jsonl"
        models = (self._output / "base", last)
        self._command(
            "evaluate",
            *models,
            *("--text", text, "--tokenizer", self._output / "hf"),
            *("--context", self._sizes.short, "--evaluators", "positions,retrieval"),
            *("--output", self._output / "evaluation-short", *self._sizes.options),
            on_ranks=True,
        )

    def _answers_of_transformers(self, exported: Path) -> None:
        import torch

        context, devices = self._longest, torch.cuda.device_count()
        began = time.monotonic()
        found = by_transformers.answer_passkeys(
            self._run, exported, context, [context, context // 2], devices
        )
        folder = run_directory(self._run).evaluations / self._stages()[-1]
        measured = folder / f"passkey-{context}.json"
        compared = by_transformers.compare(found, measured)
        write_json(self._output / "passkeys-by-transformers.json", compared)
        self._note("passkeys by transformers", time.monotonic() - began)

    @cached_property
    def _run(self) -> RunConfig:
        """The configuration, from when the base is imported, whose sizes it takes."""
        return load_run(CONFIG, self._settings[1:])

    @property
    def _longest(self) -> int:
        return max(stage.context for stage in self._run.stages.values())

    def _stages(self) -> list[str]:
        return list(self._run.stages)

    def _stage(self, name: str) -> Path:
        return run_directory(self._run).stage(name)

    def _updates(self, stage: str) -> int:
        sizes = self._run.stages[stage]
        return (sizes.tokens or 0) // (sizes.update_tokens or 1)

    def _saved(self, stage: str) -> int:
        """The update of the newest checkpoint of a stage, 0 where there is none."""
        root = run_directory(self._run).checkpoints(stage)
        return checkpoint.update_of(checkpoint.latest(root))

    def _newest(self, stage: str) -> Path:
        """The newest checkpoint of a stage."""
        root = run_directory(self._run).checkpoints(stage)
        newest = checkpoint.latest(root)
        if newest is None:
            raise DataError(f"{root}: holds no checkpoint; train the stage first")
        return newest

    def _command(self, *arguments: object, on_ranks: bool = False) -> None:
        words = list(map(str, arguments))
        say("$ alia-ctx " + escape(shlex.join(words)))
        began = time.monotonic()
        command = self._python(words, on_ranks)
        status = subprocess.run(command, env=self._environment()).returncode
        self._note(words[0], time.monotonic() - began)
        if status:
            raise typer.Exit(status)

    def _killed(
        self,
        words: Sequence[str],
        stage: Path,
        update: int,
        is_saved: Callable[[], bool] = lambda: True,
    ) -> None:
        """A command on all ranks, killed at an update of the stage."""
        say("$ alia-ctx " + escape(shlex.join(words)))
        command = self._python(words, on_ranks=True)
        interruption.kill_at(command, stage, update, self._environment(), is_saved)

    def _python(self, words: Sequence[str], on_ranks: bool) -> list[str]:
        launcher: list[str] = []
        if on_ranks and self._ranks > 1:
            launcher = ["-m", "alia_ctx.cli.launch", "--standalone"]
            launcher.append(f"--nproc-per-node={self._ranks}")
        return [sys.executable, *launcher, "-m", "alia_ctx.cli", *words]

    def _environment(self) -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def _note(self, command: str, seconds: float) -> None:
        """Append how long a command took to `times.jsonl`."""
        with open(self._output / "times.jsonl", "a") as out:
            out.write(json.dumps({"command": command, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except AliaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
