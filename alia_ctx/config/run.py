"""A run as frozen dataclasses: what `load_run` makes of YAML, and nothing changes after."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alia_ctx.config.evaluation import EvaluationConfig
from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.packing import PackSpec
from alia_ctx.data.tokens import SpecialTokens
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import AskedLayers, Fp8, Precision, Recompute
from alia_ctx.spec.launch import LaunchSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

RANDOM = "random"
HELD_OUT = "held_out"  # the source of evaluation.held_out, beside those of data.sources
Sink = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class EngineConfig:
    """How a step is computed, never what is computed: no setting here changes the loss
    beyond rounding, which `fp8` makes coarser in the products of the layers.

    `loss_chunk_tokens` bounds the logits that exist at a time; None takes the device's
    default (`alia_ctx.spec.execution`). `mlp_chunk_tokens` bounds what exists of the MLP at
    a time where layers are recomputed in full; None takes a row at once. `tp_overlap_chunks`
    are the parts in which linear layers take their tokens under tensor parallelism, so that
    what one part sends is hidden by the product of another. `context_split`
    says which tokens of a row a context-parallel rank holds: `balanced` cuts a row finer
    than the zigzag where its documents would leave the zigzag uneven (one to 8 times as
    many kernel calls a layer). `fp8_bf16_layers` first and as many last layers keep bf16
    under `fp8`.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "bf16"
    attention: Literal[
        "auto", "flash4", "flash3", "flash2", "torch_varlen", "reference"
    ] = "auto"
    layers: AskedLayers = "local"
    fp8: Fp8 = "off"
    fp8_bf16_layers: int = 1
    loss_chunk_tokens: int | None = None
    mlp_chunk_tokens: int | None = None
    tp_overlap_chunks: int = 1
    context_split: Literal["balanced", "zigzag"] = "balanced"
    overlap_communication: bool = True
    deterministic: bool = False
    offload_activations: bool = False
    timeout_minutes: float = 20.0
    hang_minutes: float = 30.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a constant learning rate (each stage gives its own).

    Norm weights and biases do not decay.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_grad: float = 1.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, counted in updates, and what to keep.

    The end of a stage is always saved and kept.
    """

    every_updates: int = 100
    keep_last: int = 2
    keep_every: int = 0
    background: bool = True

    @property
    def kept_for_good(self) -> int:
        """Each of how many updates is kept for good, as only those are that are saved; 0
        keeps none.
        """
        return math.lcm(self.every_updates, self.keep_every)


@dataclass(frozen=True)
class MetricsConfig:
    """Where the numbers of each update go beside `metrics.jsonl`, which is always written."""

    sinks: list[Sink] = field(default_factory=lambda: ["tensorboard"])


@dataclass(frozen=True)
class DataConfig:
    """Sources of text by name, what delimits documents, and what special tokens become
    that a text spells: pieces (split), ids (keep), or the document is left out (refuse).
    `stage_to` is a place on each host's own disk that tokens are copied to first.
    """

    sources: dict[str, SourceSpec]
    append_eos: bool = True
    prepend_bos: bool = False
    special_tokens: SpecialTokens = "split"
    workers: int = 0
    stage_to: str | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves from update to update; `alia_ctx.train.schedule` has
    the values.

    warmup: updates in which the rate rises from 0, a whole number from 1 on; or their
        share of the stage, below 1, rounded up.
    min_learning_rate: where a decay ends.
    """

    type: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0
    min_learning_rate: float = 0.0

    def warmup_updates(self, updates: int) -> int:
        """Updates of warm-up of a stage that is `updates` long."""
        share = self.warmup < 1
        return math.ceil(updates * self.warmup) if share else int(self.warmup)


@dataclass(frozen=True)
class PublishedConfig:
    """What a publication says of a stage: conversations, how many an update, updates.

    `plan` compares it with the stage; nothing else looks at it.
    """

    instances: int | None = None
    update_instances: int | None = None
    updates: int | None = None


@dataclass(frozen=True)
class StageConfig:
    """One stage: its context, RoPE, data, layout and budget.

    `init_from` is the name of another stage, `random`, or the path of a checkpoint.
    `rope` is never inherited. An update is `update_tokens` tokens in whole rows, until
    there are `tokens`; or `update_instances` documents (conversations), packed among
    themselves, for `epochs` passes. `loss_weighting: conversation` gives each document
    of an update the same weight, whatever it predicts. `layout: auto` takes the
    planner's first, with its recomputation where the stage gives none; a begun stage
    keeps to the one that it has been trained on.
    """

    init_from: str
    context: int
    rope: RopeSpec
    tokens: int | None = field(default=None, kw_only=True)
    update_tokens: int | None = field(default=None, kw_only=True)
    learning_rate: float
    pack: PackSpec
    epochs: int | None = None
    update_instances: int | None = None
    loss_weighting: Literal["token", "conversation"] = "token"
    schedule: ScheduleConfig = ScheduleConfig()
    published: PublishedConfig | None = None
    layout: Layout = field(default_factory=Layout)
    nodes: int | None = None
    optimizer_state: Literal["reset", "keep"] = "reset"
    recompute: Recompute = "none"

    @property
    def rows_per_update(self) -> int:
        """Rows of an update: as many whole rows as `update_tokens` pays for, and at least
        one. ConfigError where updates are of conversations: their plan knows.
        """
        return max(1, self._budget("update_tokens") // self.context)

    @property
    def updates(self) -> int:
        """Updates that reach `tokens`:

        the last one is full too, so the stage may exceed it by less than an update.
        ConfigError where updates are of conversations: their plan knows.
        """
        per_update = self.rows_per_update * self.context
        return math.ceil(self._budget("tokens") / per_update)

    @property
    def rows(self) -> int:
        return self.updates * self.rows_per_update

    def _budget(self, name: Literal["tokens", "update_tokens"]) -> int:
        value = getattr(self, name)
        if value is None:
            rule = "a stage of conversations has as many updates and rows as its plan"
            problem = Problem(name, None, rule, "pack the stage first")
            raise ConfigError("", [problem])
        return int(value)


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `root` is the storage that the paths below it live on; see `deferred`.

    `hf_base` is the Hugging Face directory of the base: what the model's sizes are before
    the checkpoint is there that the first stage starts from, and what `run` makes it of.
    `notes` are what a reader of its report has to know, as of its data; nothing depends
    on them. `stages` are in the order in which they are trained, wherever a file lists
    them: each after the one that it starts from (`chain_order`).
    """

    name: str
    output: str
    tokenizer: str
    model: ModelSpec
    data: DataConfig
    stages: dict[str, StageConfig]
    root: str | None = None
    hf_base: str | None = None
    seed: int = 1234
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Files that include others list stages in any order, and what was written as JSON
        # has them by name; all that takes the first or the last stage reads them here.
        object.__setattr__(self, "stages", chain_order(self.stages))

    def stage(self, name: str) -> StageConfig:
        """The stage called `name`; ConfigError lists the known ones."""
        if name not in self.stages:
            raise ConfigError("", [unknown_stage("--stage", name, self.stages)])
        return self.stages[name]

    def world_size(self, stage: StageConfig) -> int:
        """Ranks that `stage` is planned for."""
        return (stage.nodes or self.cluster.nodes) * self.cluster.ranks_per_node

    def deferred(self, path: str | Path) -> bool:
        """Whether `path` is below a `root` that is not mounted on this machine, so that
        it cannot be looked for.
        """
        return is_deferred(self.root, path)

    def root_note(self) -> str | None:
        """That `root` is not mounted on this machine, where one is set."""
        if self.root is None or not self.deferred(self.root):
            return None
        return f"root {self.root} is not on this machine; files below it were not looked for"

    def directory(self, *parts: str) -> Path:
        return Path(self.output, *parts)

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain containers, as it is stored with every checkpoint."""
        return dataclasses.asdict(self)


def chain_order(stages: Mapping[str, StageConfig]) -> dict[str, StageConfig]:
    """`stages`, each after the one that its `init_from` names; otherwise as they are, so
    that stages of several chains, or branches of one, keep the order in which they stand.

    A circle, which the rules refuse, is left as it stands.
    """
    ordered: dict[str, StageConfig] = {}
    for name in stages:
        chain: list[str] = []
        while name in stages and name not in ordered and name not in chain:
            chain.append(name)
            name = stages[name].init_from
        ordered |= {earlier: stages[earlier] for earlier in reversed(chain)}
    return ordered


def is_deferred(root: str | None, path: str | Path) -> bool:
    """Whether `path` is below a `root` that is not mounted on this machine."""
    if root is None or Path(root).exists():
        return False
    return Path(path).absolute().is_relative_to(Path(root).absolute())


def position_edges(run: RunConfig) -> tuple[int, ...]:
    """Limits of the position bands that losses are reported in: the contexts of the stages."""
    return (0, *sorted({stage.context for stage in run.stages.values()}))


def unknown_stage(key: str, name: str, stages: Iterable[str]) -> Problem:
    """That `name`, given at `key`, is none of the stages."""
    return Problem(
        key,
        name,
        "there is no such stage",
        f"the configuration has {', '.join(stages) or 'none'}",
    )
