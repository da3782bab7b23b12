"""A configuration as far as it could be typed, which is what the rules are asked of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alia_ctx.checkpoint.directory import list_checkpoints
from alia_ctx.config.evaluation import EvaluationConfig
from alia_ctx.config.run import (
    HELD_OUT,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    MetricsConfig,
    OptimizerConfig,
    StageConfig,
    is_deferred,
)
from alia_ctx.data.documents import SourceSpec
from alia_ctx.errors import ConfigError
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.launch import LaunchSpec
from alia_ctx.spec.model import ModelSpec


@dataclass(frozen=True)
class Draft:
    """A configuration as far as it could be typed: `RunConfig`, with None or the default
    where a part could not.

    `stages` holds those that could; `stage_names` and `source_names` are all that the
    file names. Rules that need a part that is not there are not asked, so that one
    `check` shows all that is wrong. `only` limits them to what some stages need,
    `planning` to what the planner reads.
    """

    stage_names: tuple[str, ...] | None
    source_names: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    planning: bool = False
    name: str | None = None
    output: str | None = None
    tokenizer: str | None = None
    root: str | None = None
    hf_base: str | None = None
    seed: int = 0
    model: ModelSpec | None = None
    data: DataConfig | None = None
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    notes: list[str] = field(default_factory=list)

    def asked(self) -> dict[str, StageConfig]:
        """The stages that rules are asked about."""
        chosen = self.only or self.stages
        return {name: stage for name, stage in self.stages.items() if name in chosen}

    def deferred(self, path: str) -> bool:
        return is_deferred(self.root, path)

    def sources(self) -> list[tuple[str, str, SourceSpec]]:
        """Key, name and specification of every source of text, the held-out one last."""
        training = self.data.sources if self.data is not None else {}
        sources = [(f"data.sources.{n}", n, spec) for n, spec in training.items()]
        if self.evaluation.held_out is not None:
            sources.append(("evaluation.held_out", HELD_OUT, self.evaluation.held_out))
        return sources

    def store(self, source: str) -> Path:
        """Prefix of the store that `tokenize` makes of a source."""
        return Path(self.output or ".", "tokens", source)

    def checkpoints(self, stage: str) -> list[Path]:
        """Checkpoints that a stage of this run has written, the oldest first. With one, it
        needs what it started from no more.
        """
        if self.output is None or self.deferred(self.output):
            return []
        folder = Path(self.output, "stages", stage, "checkpoints")
        try:
            return list_checkpoints(folder)
        except NotADirectoryError:
            return []  # the output lies below a file, which is said
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be read ({error.strerror}); try again, or mend it"
            ) from error
