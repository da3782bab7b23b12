"""What is to be trained: a run, as far as one stage sees it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx.config.evaluation import BestConfig
from alia_ctx.config.run import CheckpointConfig, Sink, StageConfig
from alia_ctx.errors import DataError
from alia_ctx.spec.model import ModelSpec


@dataclass(frozen=True)
class StageTask:
    """What is to be trained, and where its trail goes: a run, as far as one stage sees it.

    Args:
        run, name: of the run, as the sinks show it, and of the stage.
        stage, model: their settings.
        directory: the stage's place on disk.
        origin: gives the checkpoint that the stage starts from, None for random
            weights; CheckpointError where it is not there (yet, or any more).
        origin_checkpoints: where the stage that it starts from keeps its checkpoints;
            None where it starts from something else.
        position_edges: limits of the bands of the position in the document that losses
            are reported in.
        peak_flops: floating-point operations a second of one rank, for the MFU.
        saving: when to save, and what to keep.
        evaluate_every: updates between held-out evaluations; 0 for none.
        best: the metric by which the best checkpoint is known and kept.
        sinks: where metrics go beside `metrics.jsonl`.
        config: the resolved configuration, recorded in checkpoints and sinks.
        tokenizer: what the text states of the tokenizer that it was made with, recorded
            in checkpoints; None where nothing is known.
        chat_template: the template of the conversations that the stage is trained on, as
            `ChatTemplate.statement` has it; None where it is trained on none.
        configured: what the configuration's tokenizer is now, file by file, which the
            origin's is compared with; None where it is not at hand.
        about: what the first line of the log after each start says besides.
        later: gives the directories of begun stages that follow from this one.
        planned_updates: updates of a stage of conversations, which its plan says; None
            where the stage's settings do, and before it is packed.
    """

    run: str
    name: str
    stage: StageConfig
    model: ModelSpec
    directory: Path
    origin: Callable[[], Path | None]
    position_edges: tuple[int, ...]
    peak_flops: float
    saving: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate_every: int = 0
    best: BestConfig | None = None
    sinks: Sequence[Sink] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    chat_template: Mapping[str, Any] | None = None
    configured: Callable[[], Mapping[str, str] | None] = lambda: None
    planned_updates: int | None = None
    origin_checkpoints: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    later: Callable[[], Sequence[Path]] = lambda: ()

    @property
    def updates(self) -> int:
        """Updates from the stage's beginning to its end."""
        if self.stage.update_instances is None:
            return self.stage.updates
        if self.planned_updates is None:
            raise DataError(
                f"stage {self.name} has no plan of {self.stage.epochs} epochs; run "
                f"`alia-ctx pack CONFIG --stage {shlex.quote(self.name)}`, which makes it, or adds "
                "epochs to the one that is there"
            )
        return self.planned_updates
