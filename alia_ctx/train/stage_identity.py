"""Whether a checkpoint is one of the stage that the configuration describes.

A checkpoint records the configuration it was trained with and what its stage started
from. What decides the content of a stage's checkpoints must be the same now; how an
update is computed (layout, nodes, recompute) may change at any time, how far the stage
goes (tokens) may grow, and the constants of the optimizer may change while the stage is
not finished: they take effect from there on, and the checkpoints say so. What a stage
started from is in its own record: that the stage before has gone on since changes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx import checkpoint
from alia_ctx.checkpoint.content import CONTENT, content_of
from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.config.run import OptimizerConfig, StageConfig
from alia_ctx.data.packing import PackPlan
from alia_ctx.data.tokens import TOKENIZER, known_tokenizer
from alia_ctx.errors import CheckpointError
from alia_ctx.identity import IdentityError, differences, statement, statement_checksum
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.task import StageTask

# Settings of a stage that are not compared as they are: how an update is computed, how
# far the stage goes, and what has an identity of its own (the plan, the origin).
# `update_tokens` counts by the rows that it pays for. Whatever else a stage has, today
# or later, decides what is trained.
_NOT_COMPARED = (
    *("layout", "nodes", "recompute", "tokens"),
    *("pack", "init_from", "update_tokens", "epochs", "published"),
)
STARTED_FROM = "started_from"  # in a manifest's `extra`: `checkpoint_statement` of it
CHANGES = "changes"  # in a manifest's `extra`: what changed while the stage trained
SCHEDULE = "schedule"  # in a manifest's `extra`: the learning rate's, in numbers
PLAN = "plan"  # in a manifest's `extra`: the plan's Statement.as_trained
PLANNED = "planned"  # in a manifest's `extra`: updates of the stage's plan, and epochs


def checkpoint_statement(manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint is, wherever it lies: what it was trained on and how, and the
    values of its tensors, however many ranks have written them; of a release that did not
    state those, its files.
    """
    tensors = _tensor_files(manifest)
    return dict(
        statement(
            {
                "stage": manifest.stage,
                "update": manifest.update,
                "model": manifest.model,
                "rope": manifest.rope,
                "context": manifest.context,
                "ledger": _by_stage(manifest.ledger),
                "weights": content_of(tensors.values()) or statement_checksum(tensors),
            }
        )
    )


def _tensor_files(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    entries = manifest.files.items()
    return {name: entry for name, entry in entries if name.endswith(".distcp")}


def _by_stage(ledger: Sequence[StageLedger]) -> dict[str, StageLedger]:
    names: dict[str, StageLedger] = {}
    for number, entry in enumerate(ledger, 1):
        name = entry.stage if entry.stage not in names else f"{entry.stage} ({number})"
        names[name] = entry
    return names


def require_same_stage(
    task: StageTask, path: Path, manifest: Manifest, *, reading: bool = False
) -> list[str]:
    """IdentityError unless the checkpoint at `path` is one of the stage of `task`: of
    its model and settings, and started from what the stage starts from.

    Returns what changed since and may, a line each. `reading`: it is read (evaluated,
    exported, started from), not trained; the constants of the optimizer that a finished
    stage was trained with are then its own, as another stage may have others.
    """
    finished = manifest.update >= task.updates
    changed = _differences(task, manifest)
    strict = finished and not reading
    allowed = [] if strict else [c for c in changed if c.startswith("optimizer.")]
    refused = [line for line in changed if line not in allowed]
    refused += _shortened(task, manifest) if not refused else []
    refused += _other_origin(task, manifest)
    then, now = known_tokenizer(manifest.extra), task.tokenizer or task.configured()
    if now is not None and then is not None:
        refused += differences(then, now, TOKENIZER)
    if refused:
        state = f"finished ({manifest.update} updates)" if finished else "begun"
        raise IdentityError(
            f"stage {task.name} was {state} with other settings, see {path}",
            refused,
            f"restore them; or, to train the stage anew with those of the "
            f"configuration, move {_and_later(task)} away and run "
            f"`alia-ctx train CONFIG --stage {shlex.quote(task.name)}`",
        )
    return allowed


def _and_later(task: StageTask) -> str:
    """A stage's directory, and those of the stages that were trained from it: they are
    none of a stage that is trained anew.
    """
    later = ", ".join(map(str, task.later()))
    if not later:
        return str(task.directory)
    return f"{task.directory}, and {later}, which came from it,"


def require_same_plan(task: StageTask, plan: PackPlan, manifest: Manifest) -> None:
    """IdentityError unless the stage goes on at the row after those that its ledger has
    counted: on the same plan, or on a longer one that begins with the same updates.
    """
    then = manifest.ledger[-1]
    if plan.is_plan(then.plan) or plan.extends(then.plan):
        return
    raise IdentityError(
        f"stage {task.name} has trained {then.rows} rows of another plan than the one "
        f"in {plan.directory}",
        [f"plan: {then.plan} there, {plan.fingerprint} now"],
        f"`alia-ctx pack CONFIG --stage {shlex.quote(task.name)} --overwrite` makes one "
        "that goes on from it, or says which settings or data forbid that. Or, to train the stage "
        f"anew on this plan, move {_and_later(task)} away and run "
        f"`alia-ctx train CONFIG --stage {shlex.quote(task.name)}`",
    )


def require_same_rows(task: StageTask, plan: PackPlan, manifest: Manifest) -> None:
    """IdentityError unless the next update begins at the row after those that the ledger
    has counted: a plan of version 0.1 does not say itself which rows an update has.
    """
    rows = manifest.ledger[-1].rows
    more = manifest.update < plan.updates
    next_row = plan.rows_of_update(manifest.update).start if more else len(plan)
    if rows != next_row:
        raise IdentityError(
            f"stage {task.name} cannot go on where it stopped",
            [
                f"update {manifest.update + 1}: begins at row {rows} there, {next_row} now"
            ],
            f"restore stages.{task.name}.update_tokens and the plan; or begin the stage "
            f"anew: move {task.directory} away",
        )


def _differences(task: StageTask, manifest: Manifest) -> list[str]:
    """Settings that are not the same, of the stage and of those that it came from."""
    ledger, stage = manifest.ledger[-1], task.stage
    then: dict[str, Any] = {"model": _rounded(manifest.model), "stages": {}}
    now: dict[str, Any] = {"model": _rounded(task.model), "stages": {}}
    # What the ledger itself holds, in words of the configuration.
    then["stages"][ledger.stage] = {
        name: getattr(ledger, name) for name in ("context", "rope", "learning_rate")
    }
    now["stages"][task.name] = {
        name: getattr(stage, name) for name in ("context", "rope", "learning_rate")
    }
    recorded, current = manifest.config, task.config
    # Of the run's own chain: the ledger may begin with stages of the run that its base
    # came from, called like others of this one.
    chain = _chain(recorded.get("stages", {}), manifest.stage)
    for name in dict.fromkeys(entry.stage for entry in manifest.ledger):
        if name in chain and name in current["stages"]:
            for side, config in ((then, recorded), (now, current)):
                settings = side["stages"].setdefault(name, {})
                settings |= _stage_settings(config["stages"][name])
                side["seed"] = config["seed"]
                side["optimizer"] = _with_defaults(OptimizerConfig, config["optimizer"])
    return differences(then, now)


def _chain(stages: Mapping[str, Any], name: str) -> set[str]:
    """A stage and those that it came from, of a run's `stages`."""
    chain: set[str] = set()
    while name in stages and name not in chain:
        chain.add(name)
        name = stages[name].get("init_from")
    return chain


def _stage_settings(stage: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in _with_defaults(StageConfig, stage).items()
        if name not in _NOT_COMPARED
    }
    if stage["update_tokens"] is not None:
        rows = max(1, stage["update_tokens"] // stage["context"])
        settings["update_tokens"] = f"{rows} rows of {stage['context']} tokens"
    return settings


def _with_defaults(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an older release did not have yet had the value that is the default now."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }
    return {**defaults, **settings}


def _rounded(model: ModelSpec) -> dict[str, Any]:
    """Floats of a model as fp32 prints them: files hold 1e-5 as 9.999999747378752e-06."""
    return {
        name: float(str(np.float32(value))) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(model).items()
    }


def model_differences(then: ModelSpec, now: ModelSpec) -> list[str]:
    """How a model differs from the configuration's, a line each."""
    return differences(_rounded(then), _rounded(now), "model")


def _shortened(task: StageTask, manifest: Manifest) -> list[str]:
    if manifest.update <= task.updates:
        return []
    budget = "tokens" if task.stage.update_instances is None else "epochs"
    return [
        f"stages.{task.name}.{budget}: {manifest.update} updates were done there, "
        f"{task.updates} are asked for now"
    ]


def _other_origin(task: StageTask, manifest: Manifest) -> list[str]:
    """What the stage started from, compared with what it would start from now. Where that
    cannot be read any more, the configuration still has to name the same.

    Of a stage that has gone on since, the checkpoint that was started from is compared,
    or where that is not kept what going on leaves as it is, the rows of its plan among it.
    """
    key = f"stages.{task.name}.init_from"
    try:
        return _compared_origins(task, manifest, key)
    except CheckpointError:
        if _names_what_it_started_from(task, manifest):
            return []
        return differences(_named_before(task, manifest), task.stage.init_from, key)


def _compared_origins(task: StageTask, manifest: Manifest, key: str) -> list[str]:
    """CheckpointError where what the stage would start from now cannot be read."""
    recorded = manifest.extra.get(STARTED_FROM)
    if recorded is not None and task.origin_checkpoints is not None:
        there = task.origin_checkpoints / checkpoint.checkpoint_name(recorded["update"])
        newest = checkpoint.latest(task.origin_checkpoints)
        if there.is_dir():
            return _other_than(recorded, checkpoint.read_manifest(there), key)
        if newest is not None and newest.name > there.name:
            manifest_now = checkpoint.read_manifest(newest)
            now, plans = checkpoint_statement(manifest_now), _plans_of(manifest_now)
            return differences(_lasting(recorded, plans), _lasting(now, plans), key)
    origin = task.origin()
    if origin is None or manifest.parent is None:
        before, here = manifest.parent or "random", str(origin or "random")
        return differences(before, here, key)
    then = checkpoint.read_manifest(origin)
    if recorded is not None:
        return _other_than(recorded, then, key)
    # of version 0.1, which recorded the ledgers of what it started from, and its place
    return differences(
        {"ledger": _by_stage(manifest.ledger[:-1])},
        {"ledger": _by_stage(then.ledger)},
        key,
    )


def _other_than(recorded: Mapping[str, Any], now: Manifest, key: str) -> list[str]:
    """How a checkpoint differs from the recorded statement of one, which an earlier
    release may have formed from the checksums of its files.
    """
    lines = differences(recorded, checkpoint_statement(now), key)
    if not lines:
        return []
    files = {
        name: {of: value for of, value in entry.items() if of != CONTENT}
        for name, entry in _tensor_files(now).items()
    }
    by_files = {**checkpoint_statement(now), "weights": statement_checksum(files)}
    return lines if differences(recorded, by_files, key) else []


def _names_what_it_started_from(task: StageTask, manifest: Manifest) -> bool:
    """Whether `init_from` is still the stage, or the place, that the stage started from:
    called as it was, lying where it lay, or lying so to the run's output or root as it did,
    where all of them were moved or copied together.
    """
    if manifest.parent is None:
        return False  # it started from random weights
    then, now = manifest.config, task.config
    before, name = _init_from(then, task.name), task.stage.init_from
    if before == name and _is_stage(then, name) == _is_stage(now, name):
        return True
    here = Path(name)
    if task.origin_checkpoints is not None:
        here = task.origin_checkpoints / Path(manifest.parent).name
    were = [manifest.parent]
    if before is not None and not _is_stage(then, before):
        were.append(before)
    places = _places(here, now)
    return any(_places(Path(place), then) & places for place in were)


def _named_before(task: StageTask, manifest: Manifest) -> str:
    before = _init_from(manifest.config, task.name)
    if manifest.parent is None or before in (None, task.stage.init_from):
        return manifest.parent or "random"
    return str(before)


def _init_from(config: Mapping[str, Any], name: str) -> str | None:
    origin: str | None = config.get("stages", {}).get(name, {}).get("init_from")
    return origin


def _is_stage(config: Mapping[str, Any], name: str) -> bool:
    return name in config.get("stages", {})


def _places(path: Path, config: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Where `path` lies: in the file system, and seen from a run's output and root."""
    real = os.path.realpath(path)
    anchors = [key for key in ("output", "root") if config.get(key)]
    return {("", real)} | {
        (key, os.path.relpath(real, os.path.realpath(config[key]))) for key in anchors
    }


_LASTING = ("stage", "context", "rope", "learning_rate")


def _plans_of(manifest: Manifest) -> list[str]:
    """Fingerprints of the plan that a stage was trained on and of those that it began as;
    none where a release before did not state them.
    """
    plan = manifest.extra.get(PLAN) or {}
    if not manifest.ledger or plan.get("fingerprint") != manifest.ledger[-1].plan:
        return []
    return [plan["fingerprint"], *(p["fingerprint"] for p in plan["shorter"])]


def _lasting(stated: Mapping[str, Any], plans: Sequence[str]) -> dict[str, Any]:
    """What stays of a `checkpoint_statement` when its stage goes on; any of `plans`, to
    which rows were added and none taken away, stands for the first.
    """

    def of_stage(entry: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: entry[key] for key in _LASTING}
        if plans:
            kept["plan"] = plans[0] if entry["plan"] in plans else entry["plan"]
        return kept

    ledger = {
        name: of_stage(entry) if entry["stage"] == stated["stage"] else entry
        for name, entry in stated["ledger"].items()
    }
    kept = {name: stated[name] for name in ("stage", "model", "rope", "context")}
    return {**kept, "ledger": ledger}
