"""What `check` says of a configuration that breaks no rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from alia_ctx.config.held_out import held_out_notes
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import Problem

NO_HELD_OUT = Problem(
    "evaluation.held_out",
    None,
    "there is no held-out text, which `evaluate`, `report` and `run` need",
    "name some; `train` goes without",
)


def stage_in_short(run: RunConfig, name: str) -> dict[str, Any]:
    """What `check` says of a stage: what it trains on in all and in an update, as far as
    its settings say it, and its RoPE.
    """
    from alia_ctx import workflow

    stage = run.stage(name)
    shared = {"context": stage.context, "layout": dataclasses.asdict(stage.layout)}
    shared |= {"epochs": stage.epochs, "update_instances": stage.update_instances}
    rope = {k: v for k, v in dataclasses.asdict(stage.rope).items() if v is not None}
    shared["rope"] = {**rope, "words": workflow.rope_in_words(stage.rope)}
    if stage.update_instances is not None:
        return shared
    tokens = stage.rows_per_update * stage.context
    return {
        **shared,
        "updates": stage.updates,
        "rows": stage.rows_per_update,
        "update_tokens": tokens,
        "tokens": stage.updates * tokens,
    }


def check_notes(run: RunConfig, names: Sequence[str]) -> Iterator[str]:
    """What is no violation, and what a person should know."""
    from alia_ctx import workflow
    from alia_ctx.hf.rope_config import dynamic_note

    for name in names or run.stages:
        if unknown := workflow.unknown_tokenizer(run, name):
            yield unknown
        stage = run.stage(name)
        if note := dynamic_note(stage.rope, stage.context):
            yield f"stages.{name}.rope.type: {note}"
    yield from workflow.rope_notes(run, names)
    yield from workflow.warmup_notes(run, names)
    if (base := workflow.base_to_import(run, names)) is not None:
        yield workflow.how_to_import(run, base)
    if (note := run.root_note()) is not None:
        yield note
    yield from workflow.delimiter_notes(run)
    if run.evaluation.held_out is None:
        yield f"{NO_HELD_OUT.key}: {NO_HELD_OUT.rule}"
    elif not run.deferred(run.output) and (few := workflow.few_held_out(run)):
        yield few
    if not run.deferred(run.output):
        unseen = [workflow.not_seen(run, name) for name in names or run.stages]
        yield from (*filter(None, unseen), *workflow.plan_notes(run, names))
        yield from workflow.constants_notes(run)
        yield from workflow.epoch_notes(run, names)
    yield from workflow.gpu_notes(run, names)
    if not names:  # which may take a while to read
        yield from map(str, held_out_notes(run))
