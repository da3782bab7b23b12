"""The commands of the recipe, each printed before it runs; what is there is skipped."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json, write_json
from alia_ctx.progress import say
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import metrics_file
from alia_ctx.workflow.chain import run_directory
from scripts.smollm2 import interruption
from scripts.smollm2.notes import read_note
from scripts.smollm2.sizes import CONFIG, CONTEXT, Sizes
from scripts.smollm2.starting import choose_recompute, set_aside
from scripts.smollm2.weights import with_context

_AFTERWARDS = 40  # updates past the kill that the undisturbed stage is trained


class Steps:
    """The commands of the run in `output`, by `ranks` processes."""

    def __init__(self, output: Path, ranks: int, sizes: Sizes) -> None:
        self.settings = [
            str(CONFIG),
            f"root={output}",
            f"cluster.ranks_per_node={ranks}",
            *sizes.overrides,
        ]
        self.output, self._ranks, self.sizes = output, ranks, sizes

    def prepare(self) -> None:
        """Import, check, tokens, and plans of rows."""
        if not (self.output / "base").is_dir():
            weights = told = self.output / "hf"
            if self.sizes.native != CONTEXT:
                told = with_context(weights, self.sizes.native)
            self.command(
                *("import-hf", told, self.output / "base"),
                hint=f"if the weights are at fault, remove {weights}: the next start "
                "fetches them again",
            )
        self.settings += self._layouts()
        self.command("check", *self.settings)
        self.command("tokenize", *self.settings)
        for stage in self.stages:
            self.command("pack", *self.settings, "--stage", stage)

    def _layouts(self) -> list[str]:
        """An update's rows over the ranks; where these are more, they cut the rows. What
        the GPUs then have no room for is computed again in the backward.
        """
        run, _ = load_plan(CONFIG, self.settings[1:])
        rows = {
            name: (stage.update_tokens or 0) // stage.context
            for name, stage in run.stages.items()
        }
        cuts = [
            f"stages.{name}.layout.cp={self._ranks // math.gcd(self._ranks, count)}"
            for name, count in rows.items()
        ]
        return cuts + choose_recompute(CONFIG, [*self.settings[1:], *cuts])

    def train(self) -> None:
        """The stages, in their order; a stage that was stopped goes on."""
        for stage in self.stages:
            self.command("train", *self.settings, "--stage", stage, on_ranks=True)

    def train_interrupted(self, update: int) -> None:
        """The first stage up to where another layout has gone on with it for a while, twice:
        undisturbed, and killed at `update`, which `interruption.choose_kill` took.
        """
        stage = self.stages[0]
        at, undisturbed = self._stage(stage), self.output / "undisturbed"
        killed = self.output / "killed.json"
        begun = self.output / interruption.BEGUN
        command = ["train", *self.settings, "--stage", stage]
        if not begun.is_file():
            write_json(begun, {"update": update, "ranks": self._ranks})
        if not undisturbed.is_dir():
            set_aside(at)  # the undisturbed part was stopped; or trained on since
            updates = self._updates(stage)
            self.killed(command, at, min(update + _AFTERWARDS, updates))
            at.rename(undisturbed)
        if not killed.is_file():
            set_aside(at)  # stopped before it was killed
            every = self.run.checkpoint.every_updates
            saved = update // every * every
            self.killed(command, at, update, lambda: self.saved(stage) >= saved)
            before = list(read_lines(metrics_file(at)))
            write_json(killed, {"kept": self.saved(stage), "log": before})
        was = read_note(killed, {"kept": int, "log": list}, "start in another --output")
        cut = f"stages.{stage}.layout.cp={self._ranks}"
        self.command(*command, cut, on_ranks=True)
        interruption.require_resumed(at, was["log"], was["kept"], self._ranks)
        compared = interruption.compare(undisturbed, at, was["kept"])
        write_json(self.output / interruption.DONE, compared)
        for when in ("before", "after"):
            for name, difference in compared[when].items():
                say(
                    f"{name} {when} the kill: relative differences of "
                    f"{difference['mean']:.1e} in the mean, "
                    f"{difference['greatest']:.1e} at most"
                )

    @cached_property
    def run(self) -> RunConfig:
        """The configuration, from when the base is imported, whose sizes it takes."""
        return load_run(CONFIG, self.settings[1:])

    @property
    def longest(self) -> int:
        """The longest context of the stages, in tokens."""
        return max(stage.context for stage in self.run.stages.values())

    @property
    def stages(self) -> list[str]:
        return list(self.run.stages)

    def newest(self, stage: str) -> Path:
        """The newest checkpoint of a stage."""
        root = run_directory(self.run).checkpoints(stage)
        newest = checkpoint.latest(root)
        if newest is None:
            raise DataError(f"{root}: holds no checkpoint; train the stage first")
        return newest

    def saved(self, stage: str) -> int:
        """The update of the newest checkpoint of a stage, 0 where there is none."""
        root = run_directory(self.run).checkpoints(stage)
        return checkpoint.update_of(checkpoint.latest(root))

    def _stage(self, name: str) -> Path:
        return run_directory(self.run).stage(name)

    def _updates(self, stage: str) -> int:
        sizes = self.run.stages[stage]
        return (sizes.tokens or 0) // (sizes.update_tokens or 1)

    def command(
        self, *arguments: object, on_ranks: bool = False, hint: str = ""
    ) -> None:
        """Run a command of alia-ctx. typer.Exit with its status where it fails, after
        `hint`, a line on what may be at fault.
        """
        self._ended(self._started(arguments, on_ranks, None), hint)

    def document(self, *arguments: object) -> dict[str, Any]:
        """What a command prints with `--json`, on all ranks; fails as `command`."""
        ended = self._started([*arguments, "--json"], True, subprocess.PIPE)
        if ended.returncode:  # then it is the error's
            print(ended.stdout, file=sys.stderr, end="")
        self._ended(ended, "")
        try:
            found: dict[str, Any] = parse_json(ended.stdout)
        except ValueError as error:
            raise DataError(
                f"alia-ctx {arguments[0]} --json printed no document ({error}); something "
                "else writes to the standard output of its ranks: see to that"
            ) from error
        return found

    def _started(
        self, arguments: Sequence[object], on_ranks: bool, output: int | None
    ) -> subprocess.CompletedProcess[str]:
        words = list(map(str, arguments))
        say("$ alia-ctx " + escape(shlex.join(words)))
        began = time.monotonic()
        ended = subprocess.run(
            self._python(words, on_ranks),
            env=self._environment(),
            stdout=output,
            encoding="utf-8",
        )
        self.note(words[0], time.monotonic() - began)
        return ended

    def _ended(self, ended: subprocess.CompletedProcess[str], hint: str) -> None:
        if ended.returncode:
            if hint:
                say(escape(hint))
            # A signal's negative number becomes the shell's 128 + signal.
            code = ended.returncode
            raise typer.Exit(code if code > 0 else 128 - code)

    def killed(
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
        # The commands work on what is here: the weights alone may come from the hub.
        here = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **here}

    def note(self, command: str, seconds: float) -> None:
        """Append how long a command took to `times.jsonl`."""
        with open(self.output / "times.jsonl", "a") as out:
            out.write(json.dumps({"command": command, "seconds": seconds}) + "\n")
