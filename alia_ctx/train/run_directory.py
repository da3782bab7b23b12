"""Every place of a run on disk, in one table, and what to do where a stage's is damaged."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.errors import CheckpointError


@dataclass(frozen=True)
class RunDirectory:
    """The places below `root`, the output directory of a run:

    ================================  =============================  ==================
    place                             what                           written by
    ================================  =============================  ==================
    tokens/SOURCE.{bin,idx}           token stores                   tokenize
    plans/STAGE/                      the rows of a stage            pack
    held_out/STAGE.{bin,idx}          conversations kept of a stage  pack
    stages/STAGE/                     sinks, stacks of hung ranks    train
    stages/STAGE/metrics.jsonl        a line an update               train
    stages/STAGE/checkpoints/         update-00000100/ and so on     train
    evaluation/MODEL/NAME-CONTEXT.json what an evaluator found       evaluate
    (NAME-CONTEXT.not-measured)       why there is no such result    evaluate
    beside/NAME.json                  measured by other programs     those
    report/                           tables, plot, verdicts         report
    hf/STAGE/                         a Hugging Face directory       run
    hf/STAGE.made_from.json           what it was made from          run
    ================================  =============================  ==================
    """

    root: Path

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    def store(self, source: str) -> Path:
        """The prefix of a source's token store."""
        return self.tokens / source

    def plan(self, stage: str) -> Path:
        return self.root / "plans" / stage

    def conversations(self, stage: str) -> Path:
        """The prefix of the store of conversations that a stage holds out."""
        return self.root / "held_out" / stage

    def stage(self, stage: str) -> Path:
        return self.root / "stages" / stage

    def metrics(self, stage: str) -> Path:
        return metrics_file(self.stage(stage))

    def checkpoints(self, stage: str) -> Path:
        return checkpoints_directory(self.stage(stage))

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluation"

    @property
    def beside(self) -> Path:
        """Documents of what other programs measured of the run, for its page."""
        return self.root / "beside"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def hf(self, stage: str) -> Path:
        return self.root / "hf" / stage

    def hf_note(self, stage: str) -> Path:
        """What the Hugging Face directory of a stage was made from."""
        return self.root / "hf" / f"{stage}.made_from.json"

    def finished_checkpoint(self, stage: str, updates: int) -> Path:
        """The last checkpoint of a stage of `updates` updates.

        CheckpointError says how far it got where it is not finished.
        """
        newest = checkpoint.latest(self.checkpoints(stage))
        if newest is None:
            raise CheckpointError(
                f"stage {stage} has no checkpoint yet; "
                f"run `alia-ctx train CONFIG --stage {shlex.quote(stage)}`"
            )
        update = checkpoint.read_manifest(newest).update
        if update < updates:
            raise CheckpointError(
                f"stage {stage} has done {update} of {updates} updates; go on with "
                f"`alia-ctx train CONFIG --stage {shlex.quote(stage)}`"
            )
        return newest


def metrics_file(stage_directory: Path) -> Path:
    """The log of the stage that has `stage_directory`."""
    return stage_directory / "metrics.jsonl"


def checkpoints_directory(stage_directory: Path) -> Path:
    """Where the stage that has `stage_directory` keeps its checkpoints."""
    return stage_directory / "checkpoints"


@contextmanager
def mended_by_training(stage: str) -> Iterator[None]:
    """Where the last checkpoint of a stage turns out to be damaged, have the error name
    the one command that mends it, whatever was to be made from it.
    """
    try:
        yield
    except DamagedError as error:
        raise DamagedError(
            f"{error}\nIt is the last checkpoint of stage {stage}: `alia-ctx train CONFIG "
            f"--stage {stage}` goes on from the newest one that is whole, and makes this "
            "one again"
        ) from error
