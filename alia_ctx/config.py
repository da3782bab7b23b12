"""The run's configuration: YAML and `key=value` overrides -> frozen dataclasses, checked as a whole.

`load_run` reads, types and checks; nothing changes a configuration afterwards. This is the only module
that imports omegaconf.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from alia_ctx.documents import SourceSpec
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.layout import Layout
from alia_ctx.metrics import Sink, sink_problems
from alia_ctx.model import ModelSpec, RopeSpec
from alia_ctx.packing import PackSpec
from alia_ctx.schema import build

RANDOM = "random"


@dataclass(frozen=True)
class ClusterConfig:
    """Where the run is placed. `memory_gib` and `peak_tflops` (dense bf16) are per GPU and feed the planner."""

    nodes: int = 1
    ranks_per_node: int = 1
    memory_gib: float = 64.0
    peak_tflops: float = 989.0


@dataclass(frozen=True)
class EngineConfig:
    """How a step is computed, never what is computed: no setting here changes the loss beyond rounding.

    `loss_chunk_tokens` bounds the logits that exist at a time; None takes 256 on a host, where that is as fast as any,
    and 2,048 on a GPU, where each chunk reads and writes the gradient of the head. `context_split` says which tokens of
    a row a context-parallel rank holds: `balanced` cuts a row finer than the zigzag where its documents would leave the
    zigzag uneven (one to 8 times as many kernel calls a layer).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"
    attention: Literal["auto", "flash4", "flash3", "flash2", "torch_varlen", "reference"] = "auto"
    loss_chunk_tokens: int | None = None
    context_split: Literal["balanced", "zigzag"] = "balanced"
    overlap_communication: bool = True
    deterministic: bool = False
    offload_activations: bool = False
    timeout_minutes: float = 20.0
    hang_minutes: float = 30.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a constant learning rate (each stage gives its own). Norm weights and biases do not decay."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_grad: float = 1.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, counted in updates, and what to keep. The end of a stage is always saved and kept."""

    every_updates: int = 100
    keep_last: int = 2
    keep_every: int = 0
    background: bool = True


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation: from which text, how many documents, and how often during training (0: never)."""

    held_out: SourceSpec | None = None
    documents: int = 64
    every_updates: int = 0


@dataclass(frozen=True)
class MetricsConfig:
    """Where the numbers of each update go beside `metrics.jsonl`, which is always written."""

    sinks: list[Sink] = field(default_factory=lambda: ["tensorboard"])


@dataclass(frozen=True)
class DataConfig:
    """Sources of text by name, and what delimits documents."""

    sources: dict[str, SourceSpec]
    append_eos: bool = True
    prepend_bos: bool = False
    workers: int = 0


@dataclass(frozen=True)
class StageConfig:
    """One stage: its context, RoPE, data, layout and token budget.

    `init_from` is the name of another stage, `random`, or the path of a checkpoint. `rope` is never inherited.
    """

    init_from: str
    context: int
    rope: RopeSpec
    tokens: int
    update_tokens: int
    learning_rate: float
    pack: PackSpec
    layout: Layout = field(default_factory=Layout)
    nodes: int | None = None
    optimizer_state: Literal["reset", "keep"] = "reset"
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def rows_per_update(self) -> int:
        """Rows of an update: as many whole rows as `update_tokens` pays for, and at least one."""
        return max(1, self.update_tokens // self.context)

    @property
    def updates(self) -> int:
        """Updates that reach `tokens`: the last one is full too, so the stage may exceed it by less than an update."""
        return math.ceil(self.tokens / (self.rows_per_update * self.context))

    @property
    def rows(self) -> int:
        return self.updates * self.rows_per_update


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `root` is the storage that the paths below it live on; see `deferred`."""

    name: str
    output: str
    tokenizer: str
    model: ModelSpec
    data: DataConfig
    stages: dict[str, StageConfig]
    root: str | None = None
    seed: int = 1234
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def stage(self, name: str) -> StageConfig:
        """The stage called `name`; ConfigError lists the known ones."""
        if name not in self.stages:
            raise ConfigError("", [_unknown_stage("--stage", name, self.stages)])
        return self.stages[name]

    def world_size(self, stage: StageConfig) -> int:
        """Ranks that `stage` is planned for."""
        return (stage.nodes or self.cluster.nodes) * self.cluster.ranks_per_node

    def deferred(self, path: str | Path) -> bool:
        """Whether `path` is below a `root` that is not mounted on this machine, so that it cannot be looked for."""
        if self.root is None or Path(self.root).exists():
            return False
        return Path(path).absolute().is_relative_to(Path(self.root).absolute())

    def directory(self, *parts: str) -> Path:
        return Path(self.output, *parts)

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain containers, as it is stored with every checkpoint."""
        return dataclasses.asdict(self)


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply dotted `key=value` overrides, and check everything.

    Raises ConfigError listing *all* violations: unknown keys and wrong types first, and once these are none,
    everything that the values break.
    """
    raw = _read(Path(path), overrides)
    problems: list[Problem] = []
    run = build(RunConfig, raw, "", problems)
    if problems or run is None:
        problems += _partial_problems(raw, problems)
        raise ConfigError(f"{path} has {_count(problems)}", problems)
    problems = list(run_problems(run))
    if problems:
        raise ConfigError(f"{path} has {_count(problems)}", problems)
    return run


def run_problems(run: RunConfig) -> list[Problem]:
    """Every rule that the values of `run` break, in the order of the file."""
    found = run.model.problems("model")
    found += _positive("cluster", run.cluster, "nodes", "ranks_per_node", "memory_gib", "peak_tflops")
    found += _positive("engine", run.engine, "timeout_minutes", "hang_minutes")
    if run.engine.loss_chunk_tokens is not None:
        found += _positive("engine", run.engine, "loss_chunk_tokens")
    found += _positive("checkpoint", run.checkpoint, "every_updates", "keep_last")
    found += _positive("evaluation", run.evaluation, "documents")
    found += _optimizer_problems(run.optimizer)
    found += sink_problems(run.metrics.sinks, "metrics.sinks")
    found += _path_problems(run)
    if not run.stages:
        found.append(Problem("stages", "{}", "there is no stage", "add one; configs/tiny.yaml shows three"))
    if not run.model.problems("model"):
        for name, stage in run.stages.items():
            found += _stage_problems(run, name, stage)
    return found


def _read(path: Path, overrides: Sequence[str]) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; configs/ holds examples")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), _overrides(overrides))
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as configuration: {error}") from error


def _overrides(items: Sequence[str]) -> Any:
    problems = [
        Problem(item, None, "is not of the form key=value", "write for example stages.32k.layout.cp=8")
        for item in items
        if "=" not in item or item.startswith("=")
    ]
    if problems:
        raise ConfigError(f"{_count(problems)} in the overrides", problems)
    return OmegaConf.from_dotlist(list(items))


def _partial_problems(raw: Any, known: list[Problem]) -> list[Problem]:
    """Rules broken by those stages and parts that could be typed, so that one run of `check` shows everything."""
    if not isinstance(raw, Mapping):
        return []
    found: list[Problem] = []
    model = build(ModelSpec, raw.get("model"), "model", [])
    if model is not None:
        found += model.problems("model")
    cluster = build(ClusterConfig, raw.get("cluster", {}), "cluster", []) or ClusterConfig()
    stages = raw.get("stages")
    for name, entry in stages.items() if isinstance(stages, Mapping) else ():
        stage = build(StageConfig, entry, f"stages.{name}", [])
        if stage is not None:
            found += _stage_value_problems(f"stages.{name}", stage)
            if model is not None and not model.problems("model"):
                world = (stage.nodes or cluster.nodes) * cluster.ranks_per_node
                found += _layout_problems(f"stages.{name}", stage, model, world)
    return [problem for problem in found if problem not in known]


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"


def _positive(key: str, part: object, *names: str) -> list[Problem]:
    return [
        Problem(f"{key}.{name}", getattr(part, name), "must be above 0", f"the default is {_default(part, name)}")
        for name in names
        if not getattr(part, name) > 0
    ]


def _default(part: object, name: str) -> object:
    return next(f.default for f in dataclasses.fields(part) if f.name == name)  # type: ignore[arg-type]


def _optimizer_problems(optimizer: OptimizerConfig) -> list[Problem]:
    found = _positive("optimizer", optimizer, "epsilon", "clip_grad")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, name) < 1:
            found.append(
                Problem(
                    f"optimizer.{name}",
                    getattr(optimizer, name),
                    "must be in [0, 1)",
                    f"the default is {_default(optimizer, name)}",
                )
            )
    if not optimizer.weight_decay >= 0:
        found.append(
            Problem("optimizer.weight_decay", optimizer.weight_decay, "must not be negative", "0 turns it off")
        )
    return found


def _path_problems(run: RunConfig) -> list[Problem]:
    found = []
    if not run.data.sources:
        found.append(Problem("data.sources", "{}", "there is no data", "name at least one source with its inputs"))
    sources = {f"data.sources.{name}": source for name, source in run.data.sources.items()}
    if run.evaluation.held_out is not None:
        sources["evaluation.held_out"] = run.evaluation.held_out
    for key, source in sources.items():
        paths = [*source.inputs, *([source.store] if source.store else [])]
        if not paths or not all(run.deferred(path) for path in paths):
            found += source.problems(key)
    if not run.deferred(run.tokenizer) and not _is_tokenizer(Path(run.tokenizer)):
        found.append(
            Problem(
                "tokenizer",
                run.tokenizer,
                "is not a Hugging Face tokenizer directory",
                "give a directory with tokenizer.json or tokenizer.model",
            )
        )
    return found


def _is_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _stage_problems(run: RunConfig, name: str, stage: StageConfig) -> list[Problem]:
    key = f"stages.{name}"
    found = _stage_value_problems(key, stage)
    found += _layout_problems(key, stage, run.model, run.world_size(stage))
    found += _chain_problems(run, name, stage)
    return found + stage.pack.problems(f"{key}.pack", list(run.data.sources))


def _stage_value_problems(key: str, stage: StageConfig) -> list[Problem]:
    found = _positive_stage(key, stage)
    if found:
        return found
    found += stage.rope.problems(f"{key}.rope", stage.context)
    if stage.update_tokens < stage.context:
        found.append(
            Problem(
                f"{key}.update_tokens",
                stage.update_tokens,
                f"is below one row of {stage.context} tokens",
                f"use at least {stage.context}",
            )
        )
    elif stage.tokens < stage.rows_per_update * stage.context:
        found.append(
            Problem(
                f"{key}.tokens",
                stage.tokens,
                f"is below one update of {stage.rows_per_update * stage.context} tokens",
                "raise it, or lower update_tokens",
            )
        )
    return found


def _positive_stage(key: str, stage: StageConfig) -> list[Problem]:
    found = [
        Problem(f"{key}.{name}", getattr(stage, name), "must be above 0", remedy)
        for name, remedy in (
            ("context", "give the row length in tokens"),
            ("tokens", "give the budget in tokens"),
            ("update_tokens", "ALIA uses about 4 million"),
            ("learning_rate", "ALIA uses 9e-7"),
        )
        if not getattr(stage, name) > 0
    ]
    if stage.nodes is not None and stage.nodes < 1:
        found.append(Problem(f"{key}.nodes", stage.nodes, "must be above 0", "leave it out to use cluster.nodes"))
    return found


def _layout_problems(key: str, stage: StageConfig, model: ModelSpec, world: int) -> list[Problem]:
    if world < 1 or stage.context < 1:
        return []
    return stage.layout.problems(f"{key}.layout", model, stage.context, world)


def _chain_problems(run: RunConfig, name: str, stage: StageConfig) -> list[Problem]:
    key, origin = f"stages.{name}.init_from", stage.init_from
    if origin == RANDOM:
        return []
    if origin in run.stages:
        seen = [name]
        while origin in run.stages:
            if origin in seen:
                return [
                    Problem(
                        key,
                        stage.init_from,
                        f"goes in a circle: {' <- '.join([*seen, origin])}",
                        "let the first stage start from a checkpoint or from random",
                    )
                ]
            seen.append(origin)
            origin = run.stages[origin].init_from
        return []
    if run.deferred(origin) or Path(origin, "manifest.json").is_file():
        return []
    close = difflib.get_close_matches(origin, run.stages, n=1)
    remedy = f"did you mean {close[0]}?" if close else "name a stage, `random`, or a directory that import-hf wrote"
    return [Problem(key, origin, "is neither a stage, `random`, nor a checkpoint", remedy)]


def _unknown_stage(key: str, name: str, stages: Mapping[str, StageConfig]) -> Problem:
    return Problem(key, name, "there is no such stage", f"the configuration has {', '.join(stages) or 'none'}")
