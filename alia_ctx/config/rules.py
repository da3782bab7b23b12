"""What the values of a configuration break, every violation at once with its remedy."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from alia_ctx.config.run import RANDOM, OptimizerConfig, RunConfig, StageConfig
from alia_ctx.errors import Problem
from alia_ctx.spec.model import ModelSpec


def run_problems(run: RunConfig) -> list[Problem]:
    """Every rule that the values of `run` break, in the order of the file."""
    found = run.model.problems("model")
    found += _positive(
        "cluster", run.cluster, "nodes", "ranks_per_node", "memory_gib", "peak_tflops"
    )
    found += _positive("engine", run.engine, "timeout_minutes", "hang_minutes")
    if run.engine.loss_chunk_tokens is not None:
        found += _positive("engine", run.engine, "loss_chunk_tokens")
    found += _positive("checkpoint", run.checkpoint, "every_updates", "keep_last")
    found += _positive("evaluation", run.evaluation, "documents")
    found += _optimizer_problems(run.optimizer)
    found += sink_problems(run.metrics.sinks, "metrics.sinks")
    found += _path_problems(run)
    if not run.stages:
        found.append(
            Problem(
                "stages",
                "{}",
                "there is no stage",
                "add one; configs/tiny.yaml shows three",
            )
        )
    if not run.model.problems("model"):
        for name, stage in run.stages.items():
            found += _stage_problems(run, name, stage)
    return found


def _positive(key: str, part: object, *names: str) -> list[Problem]:
    return [
        Problem(
            f"{key}.{name}",
            getattr(part, name),
            "must be above 0",
            f"the default is {_default(part, name)}",
        )
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
            Problem(
                "optimizer.weight_decay",
                optimizer.weight_decay,
                "must not be negative",
                "0 turns it off",
            )
        )
    return found


def _path_problems(run: RunConfig) -> list[Problem]:
    found = []
    if not run.data.sources:
        found.append(
            Problem(
                "data.sources",
                "{}",
                "there is no data",
                "name at least one source with its inputs",
            )
        )
    sources = {
        f"data.sources.{name}": source for name, source in run.data.sources.items()
    }
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
    return any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")
    )


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
        found.append(
            Problem(
                f"{key}.nodes",
                stage.nodes,
                "must be above 0",
                "leave it out to use cluster.nodes",
            )
        )
    return found


def _layout_problems(
    key: str, stage: StageConfig, model: ModelSpec, world: int
) -> list[Problem]:
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
    remedy = (
        f"did you mean {close[0]}?"
        if close
        else "name a stage, `random`, or a directory that import-hf wrote"
    )
    return [
        Problem(key, origin, "is neither a stage, `random`, nor a checkpoint", remedy)
    ]


def sink_problems(sinks: Iterable[str], key: str) -> list[Problem]:
    """Sinks whose package is not installed."""
    return [
        Problem(
            key,
            sink,
            "its package is not installed",
            f"pip install 'alia-ctx[{sink}]', or leave it out",
        )
        for sink in sinks
        if importlib.util.find_spec(sink)
        is None  # each sink is called like its package
    ]
