"""What the values of a configuration break, every violation at once with its remedy."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from alia_ctx.checkpoint.manifest import MANIFEST
from alia_ctx.config.base import model_problems
from alia_ctx.config.budget import budget_problems, schedule_problems, unit_problems
from alia_ctx.config.draft import Draft
from alia_ctx.config.evaluation import METRICS
from alia_ctx.config.layer_rules import (
    gpu_problems,
    kernel_problems,
    layer_problems,
    queue_problem,
)
from alia_ctx.config.places import place_problems
from alia_ctx.config.run import (
    HELD_OUT,
    RANDOM,
    EngineConfig,
    OptimizerConfig,
    StageConfig,
)
from alia_ctx.data.documents import nothing_to_read
from alia_ctx.data.packing import shortest_row
from alia_ctx.data.tokens import has_vocabulary
from alia_ctx.errors import Problem, Problems
from alia_ctx.spec.model import ModelSpec

# No first or last character that hides a file, climbs a directory or gets lost in a shell.
_NAME = re.compile(r"\w([\w.+ -]*[\w+-])?")
_LONGEST_NAME = 100  # file systems allow 255 bytes, and suffixes are added
_MOST_WORKERS = 4096
_YEAR = 365 * 24 * 60.0  # minutes
_SMALLEST_FP32 = 1.1754944e-38  # normal; below it a GPU may take 0


def run_problems(draft: Draft) -> Problems:
    """Every rule that the values of `draft` break, in the order of the file."""
    problems = Problems()
    if draft.model is not None:
        problems += draft.model.problems("model")
    model = draft.model if not problems else None
    problems += model_problems(draft)
    problems += draft.cluster.problems("cluster")
    problems += draft.launch.problems("launch")
    _names(draft, problems)
    _counts(draft, problems)
    _engine(draft.engine, problems)
    problems += kernel_problems(draft.engine)
    problems += gpu_problems(draft.engine, draft.cluster, draft.planning)
    problems += layer_problems(draft.engine, model, draft.asked())
    _optimizer(draft.optimizer, problems)
    if not draft.planning:
        few = (draft.launch.gpus or 0) < draft.cluster.ranks_per_node
        asked = queue_problem(draft.engine, draft.cluster, draft.launch)
        problems += [asked] if asked is not None and few else []
        problems += sink_problems(draft.metrics.sinks, "metrics.sinks")
        _text(draft, problems)
        problems += place_problems(draft)
    problems.need(
        draft.stage_names != (),
        "stages",
        "{}",
        "there is no stage",
        "add one; configs/runs/tiny.yaml shows three",
    )
    for name, stage in draft.asked().items():
        _stage(draft, name, stage, model, problems)
    return problems


def _positive(problems: Problems, key: str, part: object, *names: str) -> None:
    for name in names:
        value, remedy = getattr(part, name), f"the default is {_default(part, name)}"
        problems.need(value > 0, f"{key}.{name}", value, "must be above 0", remedy)


def _default(part: object, name: str) -> object:
    """As a configuration writes it."""
    fields = dataclasses.fields(part)  # type: ignore[arg-type]
    default = next(f.default for f in fields if f.name == name)
    return "null" if default is None else default


def _names(draft: Draft, problems: Problems) -> None:
    """Names become names of files and parts of dotted keys; some mean something else."""
    names = {
        **{f"stages.{name}": name for name in draft.stage_names or ()},
        **{f"data.sources.{name}": name for name in draft.source_names},
    }
    if draft.name is not None:
        problems.need(
            draft.name.isprintable() and bool(draft.name.strip()),
            "name",
            draft.name,
            "has characters that are not printed, or none that are",
            "use one line of text",
        )
    for key, name in names.items():
        problems.need(
            _NAME.fullmatch(name) is not None and len(name.encode()) <= _LONGEST_NAME,
            key,
            name,
            "cannot be a name, as files are called by it",
            "use letters, digits, _ and inside also . - + and spaces, at most "
            f"{_LONGEST_NAME} bytes",
        )
    for key, reserved in {
        f"stages.{RANDOM}": "`init_from: random` means random weights",
        f"data.sources.{HELD_OUT}": "the store of evaluation.held_out is called so",
    }.items():
        problems.need(key not in names, key, names.get(key), reserved, "rename it")


def _counts(draft: Draft, problems: Problems) -> None:
    _positive(problems, "checkpoint", draft.checkpoint, "every_updates", "keep_last")
    problems += draft.evaluation.problems()
    for key, value, remedy in (
        ("seed", draft.seed, "any number from 0 on"),
        ("checkpoint.keep_every", draft.checkpoint.keep_every, "0 keeps none for good"),
    ):
        problems.need(value >= 0, key, value, "must not be negative", remedy)
    if draft.data is not None:
        workers, rule = draft.data.workers, f"must be 0 to {_MOST_WORKERS}"
        in_range = 0 <= workers <= _MOST_WORKERS
        problems.need(in_range, "data.workers", workers, rule, "0 is one a core")


def _engine(engine: EngineConfig, problems: Problems) -> None:
    if engine.loss_chunk_tokens is not None:
        _positive(problems, "engine", engine, "loss_chunk_tokens")
    _positive(problems, "engine", engine, "tp_overlap_chunks")
    if engine.mlp_chunk_tokens is not None:
        _positive(problems, "engine", engine, "mlp_chunk_tokens")
    for name in ("timeout_minutes", "hang_minutes"):
        value, remedy = (
            getattr(engine, name),
            f"the default is {_default(engine, name)}",
        )
        rule = "must be above 0, and a year at most"
        problems.need(0 < value <= _YEAR, f"engine.{name}", value, rule, remedy)


def _optimizer(optimizer: OptimizerConfig, problems: Problems) -> None:
    _positive(problems, "optimizer", optimizer, "clip_grad")
    problems.need(
        optimizer.epsilon >= _SMALLEST_FP32,
        "optimizer.epsilon",
        optimizer.epsilon,
        f"must be at least {_SMALLEST_FP32:g}, the smallest number of fp32",
        f"the default is {_default(optimizer, 'epsilon')}",
    )
    for name in ("beta1", "beta2"):
        value, remedy = (
            getattr(optimizer, name),
            f"the default is {_default(optimizer, name)}",
        )
        problems.need(
            0 <= value < 1, f"optimizer.{name}", value, "must be in [0, 1)", remedy
        )
    problems.need(
        optimizer.weight_decay >= 0,
        "optimizer.weight_decay",
        optimizer.weight_decay,
        "must not be negative",
        "0 turns it off",
    )


def _text(draft: Draft, problems: Problems) -> None:
    asked = draft.asked().values()
    keep_some = bool(asked) and all(s.pack.held_out_instances for s in asked)
    is_there = draft.evaluation.held_out is not None or keep_some
    on_text = draft.evaluation.during_on_text
    problems.need(
        is_there or draft.evaluation.every_updates < 1 or not on_text,
        "evaluation.held_out",
        None,
        f"evaluation.every_updates={draft.evaluation.every_updates} with "
        f"evaluation.during={', '.join(on_text)} needs it",
        "name held-out text, set every_updates to 0, or measure what needs none "
        "(passkey, leak, retrieval with evaluation.retrieval.haystack=noise)",
    )
    best = draft.evaluation.best
    keeps_any = any(s.pack.held_out_instances for s in draft.stages.values())
    problems.need(
        best is None or METRICS[best.metric] is not None or keeps_any,
        "evaluation.best.metric",
        best and best.metric,
        "is of held-out conversations, and no stage holds any out",
        "set pack.held_out_instances of the stage of conversations",
    )
    if draft.data is not None:
        problems.need(
            bool(draft.data.sources),
            "data.sources",
            "{}",
            "there is no data",
            "name at least one source with its inputs",
        )
    for key, name, source in draft.sources():
        paths = [*source.inputs, *([source.store] if source.store else [])]
        deferred = bool(paths) and all(draft.deferred(path) for path in paths)
        is_tokenized = Path(f"{draft.store(name)}.idx").is_file()
        if not deferred and not (draft.only and is_tokenized):
            broken = source.problems(key)
            problems += broken
            if source.inputs and not broken and (reason := nothing_to_read(source)):
                remedy = "give files with text, or leave the source out"
                problems.add(f"{key}.inputs", source.inputs, reason, remedy)
    if draft.tokenizer is not None and not draft.deferred(draft.tokenizer):
        problems.need(
            has_vocabulary(Path(draft.tokenizer)),
            "tokenizer",
            draft.tokenizer,
            "is not a Hugging Face tokenizer directory",
            "give a directory with tokenizer.json, tokenizer.model or another vocabulary",
        )


def _stage(
    draft: Draft,
    name: str,
    stage: StageConfig,
    model: ModelSpec | None,
    problems: Problems,
) -> None:
    key = f"stages.{name}"
    if _stage_is_positive(key, stage, problems):
        head_dim = None if model is None else model.head_dim
        problems += stage.rope.problems(f"{key}.rope", stage.context, head_dim)
        problems.need(
            stage.init_from != RANDOM or model is None or model.initializer_range > 0,
            *("model.initializer_range", 0),
            f"gives stage {name} random weights that are all 0, which learn nothing",
            "set the standard deviation that they are drawn with, as 0.02",
        )
        _stage_budget(key, stage, problems)
        world = (stage.nodes or draft.cluster.nodes) * draft.cluster.ranks_per_node
        if model is not None and world > 0 and not draft.planning:
            layout = f"{key}.layout"
            broken = stage.layout.problems(layout, model, stage.context, world)
            problems += broken
            if stage.update_instances and not broken:
                shortest = shortest_row(stage.context)
                of = f"rows of conversations are multiples of {shortest} tokens: "
                problems += [
                    dataclasses.replace(problem, rule=of + problem.rule)
                    for problem in stage.layout.problems(layout, model, shortest, world)
                ]
    else:  # every violation at once
        problems += unit_problems(key, stage)
    if not draft.planning:
        _chain(draft, name, stage, problems)
    problems += schedule_problems(f"{key}.schedule", stage)
    if draft.data is not None:
        problems += stage.pack.problems(f"{key}.pack", list(draft.data.sources))
        if stage.update_instances:
            names = stage.pack.sources or list(draft.data.sources)
            sources = [s for n, s in draft.data.sources.items() if n in names]
            problems.need(
                not sources or any(s.chat is not None or s.store for s in sources),
                f"{key}.update_instances",
                stage.update_instances,
                f"counts conversations, and none of {', '.join(names)} holds some",
                "give a source `chat: {}`, or count tokens (update_tokens)",
            )


_LARGEST_RATE = 100.0


def _stage_is_positive(key: str, stage: StageConfig, problems: Problems) -> bool:
    before = len(problems)
    for name, remedy in {
        "context": "give the row length in tokens",
        "tokens": "give the budget in tokens",
        "update_tokens": "ALIA uses about 4 million",
        "epochs": "1 is each conversation once",
        "update_instances": "ALIA uses 128",
        "learning_rate": "ALIA uses 9e-7",
        "nodes": "leave it out to use cluster.nodes",
    }.items():
        value = getattr(stage, name)
        if value is not None:
            problems.need(value > 0, f"{key}.{name}", value, "must be above 0", remedy)
    # AdamW moves each weight by about the rate at every update.
    problems.need(
        not stage.learning_rate > _LARGEST_RATE,
        f"{key}.learning_rate",
        stage.learning_rate,
        f"is above {_LARGEST_RATE:g}, which no weights survive",
        "ALIA uses 9e-7",
    )
    return len(problems) == before


def _stage_budget(key: str, stage: StageConfig, problems: Problems) -> None:
    before = len(problems)
    problems += budget_problems(key, stage)
    if len(problems) > before or stage.update_tokens is None or stage.tokens is None:
        return
    one_update = stage.rows_per_update * stage.context
    if problems.need(
        stage.update_tokens >= stage.context,
        f"{key}.update_tokens",
        stage.update_tokens,
        f"is below one row of {stage.context} tokens",
        f"use at least {stage.context}",
    ):
        problems.need(
            stage.tokens >= one_update,
            f"{key}.tokens",
            stage.tokens,
            f"is below one update of {one_update} tokens",
            "raise it, or lower update_tokens",
        )


def _chain(draft: Draft, name: str, stage: StageConfig, problems: Problems) -> None:
    """Where a stage starts from: another stage without a circle, `random`, or a checkpoint."""
    key, origin = f"stages.{name}.init_from", stage.init_from
    names = draft.stage_names or ()
    if origin in names:
        seen = [name]
        while origin in draft.stages:
            if origin in seen:
                rule = f"goes in a circle: {' <- '.join([*seen, origin])}"
                remedy = "let the first stage start from a checkpoint or from random"
                problems.add(key, stage.init_from, rule, remedy)
                return
            seen.append(origin)
            origin = draft.stages[origin].init_from
    elif origin != RANDOM and not draft.deferred(origin):
        is_there = Path(origin, MANIFEST).is_file() or draft.checkpoints(name)
        if is_there or (draft.hf_base is not None and not Path(origin).exists()):
            return  # `run` imports it, and `train` says that it is to be
        if Path(origin, "config.json").is_file():
            rule = "is a Hugging Face directory, not a checkpoint"
            remedy = f"convert it: alia-ctx import-hf {origin} CHECKPOINT"
        else:
            rule = "is neither a stage, `random`, nor a checkpoint"
            close = difflib.get_close_matches(origin, names, n=1)
            remedy = "name a stage, `random`, or a directory that import-hf wrote"
            remedy = f"did you mean {close[0]}?" if close else remedy
        problems.add(key, origin, rule, remedy)


def sink_problems(sinks: Iterable[str], key: str) -> list[Problem]:
    """Sinks whose package is not installed."""
    problems = Problems()
    for sink in sinks:
        problems.need(
            importlib.util.find_spec(sink)
            is not None,  # each is called like its package
            key,
            sink,
            "its package is not installed",
            f"pip install 'alia-ctx[{sink}]', or leave it out",
        )
    return problems
