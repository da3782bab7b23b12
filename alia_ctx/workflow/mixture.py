"""What `plan` says of a stage of conversations before, and after, it is tokenised."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from alia_ctx.config.run import RunConfig
from alia_ctx.planner.mixture import (
    Mixture,
    MixtureSource,
    mixture_table,
    readings_table,
    remarks,
)
from alia_ctx.workflow.stores import has_store, open_store


def mixture_of(run: RunConfig, name: str) -> Mixture:
    """The mixture of a stage whose updates are conversations."""
    stage = run.stage(name)
    published = dataclasses.asdict(stage.published) if stage.published else {}
    drawn = stage.pack.drawn_from(run.data.sources)
    weighted = [source for source in drawn if _has_weights(run, source)]
    return Mixture(
        # Of text none is held out where there are conversations.
        [
            _source(run, name, source)
            if source in weighted or not weighted
            else dataclasses.replace(_source(run, name, source), candidates=0)
            for source in drawn
        ],
        stage.update_instances or 1,
        stage.epochs or 1,
        stage.pack.held_out_instances,
        {key: value for key, value in published.items() if value is not None},
    )


def _has_weights(run: RunConfig, name: str) -> bool:
    """Whether a source is of conversations and not of text."""
    if has_store(run, name):
        return open_store(run, name).weights is not None
    return run.data.sources[name].chat is not None


def _source(run: RunConfig, stage: str, name: str) -> MixtureSource:
    spec, pack = run.data.sources[name], run.stage(stage).pack
    instances, tokens, candidates = spec.instances, None, None
    if has_store(run, name):
        lengths = open_store(run, name).lengths
        fits = lengths >= 2
        candidates = int(np.count_nonzero(fits))
        if pack.long_docs == "drop":
            fits &= lengths <= run.stage(stage).context
        instances = int(np.count_nonzero(fits))
        tokens = int(lengths[fits].sum(dtype=np.int64))
    return MixtureSource(
        name,
        instances,
        spec.instances,
        tokens,
        spec.licence,
        pack.sampling.get(name, 1.0),
        pack.max_instances.get(name),
        candidates,
    )


def sizes_of(run: RunConfig, name: str) -> tuple[int, int, str]:
    """(tokens, tokens of an update) to plan a stage with, and where they are from.

    For a stage of conversations they are those of its stores; before it is tokenised, a
    row an update, which is what the memory of a GPU is decided by.
    """
    stage = run.stage(name)
    if stage.tokens is not None and stage.update_tokens is not None:
        return stage.tokens, stage.update_tokens, ""
    mixture = mixture_of(run, name)
    updates = max(mixture.updates, 1)
    whole = all(source.is_tokenised for source in mixture.sources)
    if not whole or not mixture.epoch:
        text = "not tokenised yet: planned with one full row an update"
        if not mixture.is_known:
            text += ", and without the sources whose size is not known"
        return updates * stage.context, stage.context, text
    total = sum(mixture.tokens_of(source) or 0 for source in mixture.sources)
    an_update = max(1, round(total / mixture.updates_per_epoch))
    text = (
        f"an update has {an_update:,} tokens on average, before what `pack` leaves out"
    )
    in_rows = math.ceil(an_update / stage.context) * stage.context
    return updates * in_rows, in_rows, text


def mixture_tables(run: RunConfig, name: str) -> list[Any]:
    """Tables and lines on a stage of conversations; none for other stages."""
    if run.stage(name).update_instances is None:
        return []
    mixture = mixture_of(run, name)
    *_, text = sizes_of(run, name)
    return [
        mixture_table(mixture, name),
        readings_table(mixture),
        "\n".join([*remarks(mixture), text]),
    ]
