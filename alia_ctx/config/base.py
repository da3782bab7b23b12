"""The model of the checkpoints that stages start from: filled in, and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from alia_ctx.config.draft import Draft
from alia_ctx.config.run import RANDOM
from alia_ctx.errors import CheckpointError, Problems
from alia_ctx.spec.model import ModelSpec, same_in_fp32
from alia_ctx.spec.rope import RopeSpec

FROM_CHECKPOINT = "from_checkpoint"


@dataclass(frozen=True)
class Published:
    """The model of a Hugging Face directory, as its config.json states it."""

    model: ModelSpec
    rope: RopeSpec
    context: int


def published(hf_base: str) -> Published:
    """The model of `hf_base`; CheckpointError where there is none that can be computed."""
    from alia_ctx.hf.config import read_config

    return Published(*read_config(Path(hf_base)))


def with_facts_of_checkpoint(raw: Any, draft: Draft) -> Any:
    """The mapping under `model:`, with what it leaves out taken from a checkpoint, or from
    `hf_base` before that is imported.

    `model: from_checkpoint`, or nothing at all, takes everything. Where a number is the
    checkpoint's in fp32, the checkpoint's is used. `raw` is returned as it is where
    there is no checkpoint, or where it is no mapping: the schema says what is wrong.
    """
    given = {} if raw in (None, FROM_CHECKPOINT) else raw
    manifests = [manifest for _, manifest in _manifests(draft, Problems()).values()]
    base = None if manifests else _published(draft, Problems())
    if not (manifests or base) or not isinstance(given, Mapping):
        return raw
    facts = dataclasses.asdict(manifests[0].model if base is None else base.model)
    joined = {**facts, **given}
    for name, fact in facts.items():
        if same_in_fp32(fact, joined[name]):
            joined[name] = fact
    return joined


def model_problems(draft: Draft) -> Problems:
    """Where the model is another than that of a checkpoint that a stage starts from."""
    problems = Problems()
    manifests = _manifests(draft, problems)
    problems += _import_problems(draft)
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
    if draft.hf_base is not None and _manifests(draft, Problems()):
        return None
    unread = Problems()
    if draft.hf_base is not None:
        base = _published(draft, unread)
        return None if base is not None else f"hf_base: {unread[0].rule}"
    origins = [stage.init_from for stage in draft.stages.values()]
    for origin in origins:
        if origin not in (RANDOM, *(draft.stage_names or ())):
            if draft.deferred(origin):
                return f"{origin} is below root, which is not on this machine"
            return f"{origin} holds no checkpoint"
    return "no stage starts from a checkpoint" if raw == FROM_CHECKPOINT else None


def _published(draft: Draft, problems: Problems) -> Published | None:
    """The model of `hf_base`; None where there is none, and a problem where it is given
    and cannot be read.
    """
    if draft.hf_base is None:
        return None
    key, remedy = "hf_base", "name the Hugging Face directory of the base"
    if draft.deferred(draft.hf_base):
        rule = "is below root, which is not on this machine"
        problems.add(key, draft.hf_base, rule, remedy)
        return None
    try:
        return published(draft.hf_base)
    except CheckpointError as error:
        problems.add(key, draft.hf_base, str(error), remedy)
        return None


def _import_problems(draft: Draft) -> Problems:
    """That what stages start from was imported from another model than `hf_base` is now.
    A base that is gone is none: the checkpoint has all of it.
    """
    from alia_ctx.hf.trained_length import trained_length

    problems = Problems()
    base = _published(draft, Problems())
    for name, stage in draft.asked().items():
        if base is None or not (Path(stage.init_from) / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(Path(stage.init_from))
        except CheckpointError:
            continue  # said elsewhere
        if not manifest.is_import:
            continue
        differing = dict(base.model.differences(manifest.model))
        resized = manifest.extra.get("resized_embeddings", {})
        if resized.get("from") == base.model.vocab_size:
            differing.pop("vocab_size", None)
        if base.rope != manifest.rope:
            differing["RoPE"] = base.rope, manifest.rope
        trained = trained_length(Path(draft.hf_base or "."), base.rope, base.context)
        # Of an earlier release it is the one that is published.
        if manifest.context not in (trained.tokens, base.context):
            differing["context"] = trained.tokens, manifest.context
        told = ", ".join(
            f"{k} {now}, not {then}" for k, (now, then) in differing.items()
        )
        problems.need(
            not differing,
            "hf_base",
            draft.hf_base,
            f"is not what {stage.init_from} was imported from, of stage {name}: {told}",
            "import it anew with --overwrite, or leave hf_base out",
        )
    return problems


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
