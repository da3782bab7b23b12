"""The model of the checkpoints that stages start from: filled in, and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from alia_ctx.config.draft import Draft
from alia_ctx.config.run import RANDOM
from alia_ctx.errors import CheckpointError, Problems
from alia_ctx.spec.model import same_in_fp32

FROM_CHECKPOINT = "from_checkpoint"


def with_facts_of_checkpoint(raw: Any, draft: Draft) -> Any:
    """The mapping under `model:`, with what it leaves out taken from a checkpoint.

    `model: from_checkpoint`, or nothing at all, takes everything. Where a number is the
    checkpoint's in fp32, the checkpoint's is used. `raw` is returned as it is where
    there is no checkpoint, or where it is no mapping: the schema says what is wrong.
    """
    given = {} if raw in (None, FROM_CHECKPOINT) else raw
    manifests = [manifest for _, manifest in _manifests(draft, Problems()).values()]
    if not manifests or not isinstance(given, Mapping):
        return raw
    facts = dataclasses.asdict(manifests[0].model)
    joined = {**facts, **given}
    for name, fact in facts.items():
        if same_in_fp32(fact, joined[name]):
            joined[name] = fact
    return joined


def model_problems(draft: Draft) -> Problems:
    """Where the model is another than that of a checkpoint that a stage starts from."""
    problems = Problems()
    manifests = _manifests(draft, problems)
    if draft.model is None:
        return problems
    named: set[tuple[str, object]] = set()
    for stage, (path, manifest) in manifests.items():
        if stage not in draft.asked():
            continue
        for name, (ours, theirs) in draft.model.differences(manifest.model).items():
            if (name, theirs) in named:
                continue  # a stage that starts from it has the same
            named.add((name, theirs))
            problems.add(
                f"model.{name}",
                ours,
                f"is {theirs} in {path}, which stage {stage} goes on from",
                f"correct it, or leave it out (`model: {FROM_CHECKPOINT}`)",
            )
    return problems


def missing_base(raw: Any, draft: Draft) -> str | None:
    """Why `model: from_checkpoint`, or no `model:` at all, could not be filled in; None
    where it need not be.
    """
    if raw not in (None, FROM_CHECKPOINT):
        return None
    origins = [stage.init_from for stage in draft.stages.values()]
    for origin in origins:
        if origin not in (RANDOM, *(draft.stage_names or ())):
            if draft.deferred(origin):
                return f"{origin} is below root, which is not on this machine"
            return f"{origin} holds no checkpoint"
    return "no stage starts from a checkpoint" if raw == FROM_CHECKPOINT else None


def _manifests(draft: Draft, problems: Problems) -> dict[str, tuple[Path, Manifest]]:
    """What each stage goes on from: its own newest checkpoint, or what it starts from.

    A stage whose base is not there yet, or no more, is left out. A checkpoint of the run
    that cannot be read is passed over, as the trainer decides what to do about it; a
    base that cannot be is a problem.
    """
    manifests = {}
    for name, stage in draft.stages.items():
        previous = stage.init_from in (draft.stage_names or ())
        own = draft.checkpoints(name)
        before = draft.checkpoints(stage.init_from) if previous else []
        for path in [*reversed(own), *reversed(before)]:
            try:
                manifests[name] = (path, read_manifest(path))
                break
            except CheckpointError:
                continue
        base = Path(stage.init_from)
        if own or previous or stage.init_from == RANDOM:
            continue
        if (base / MANIFEST).is_file():
            try:
                manifests[name] = (base, read_manifest(base))
            except CheckpointError as error:
                key, remedy = f"stages.{name}.init_from", "restore it, or use another"
                problems.add(key, stage.init_from, str(error), remedy)
    return manifests
