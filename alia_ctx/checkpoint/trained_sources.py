"""What each stage of a checkpoint's chain was trained on: sources, with their tokens and the
terms that their publishers state.

It stands in the manifest's `extra`, an entry for each one of the ledger, so that a stage
that starts from a checkpoint, of this run or another, carries on what that one says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.checkpoint.manifest import Manifest

SOURCES = "sources"
_PLAN = "plan"  # `train.stage_identity` has the name too: what the rows are made of


@dataclass(frozen=True)
class TrainedSource:
    """What a stage has consumed of one source so far; None: not stated.

    Args:
        tokens: as the ledger counts them, so that those of all sources are its sum.
        documents: how often one was begun: again in each epoch.
        of_conversations: the documents are conversations.
        licence: terms that its publisher states.
        dataset: its id on the Hugging Face Hub.
    """

    name: str
    tokens: int | None = None
    documents: int | None = None
    of_conversations: bool = False
    licence: str | None = None
    dataset: str | None = None

    def with_terms(self, config: Mapping[str, Any]) -> TrainedSource:
        """With licence and dataset as the configuration of its training says."""
        data = config.get("data")
        sources = data.get("sources") if isinstance(data, Mapping) else None
        spec = sources.get(self.name) if isinstance(sources, Mapping) else None
        if not isinstance(spec, Mapping):
            return self
        return dataclasses.replace(
            self, licence=spec.get("licence"), dataset=spec.get("dataset")
        )


# of one stage; None where the checkpoint does not state them
StageSources = tuple[TrainedSource, ...] | None


def trained_sources(manifest: Manifest) -> list[StageSources]:
    """The sources of each stage of the ledger, the oldest first.

    A checkpoint of an earlier release states those of its last stage alone, by the plan
    that it was trained on, without counts.
    """
    stages = len(manifest.ledger)
    recorded = manifest.extra.get(SOURCES)
    if recorded is None:
        return [*[None] * (stages - 1), _of_plan(manifest)] if stages else []
    return [recorded_stage(entry) for entry in recorded]


def recorded_stage(entry: Any) -> StageSources:
    """One stage's sources from what `recorded_sources` has of it; TypeError where it is
    of other fields.
    """
    return None if entry is None else tuple(TrainedSource(**source) for source in entry)


def recorded_sources(stages: Sequence[StageSources]) -> list[Any]:
    """What `trained_sources` reads, for the `extra` of a manifest."""
    return [
        None if sources is None else [dataclasses.asdict(source) for source in sources]
        for sources in stages
    ]


def _of_plan(manifest: Manifest) -> StageSources:
    try:
        stores = manifest.extra[_PLAN]["identity"]["stores"]
        return tuple(
            TrainedSource(str(name)).with_terms(manifest.config) for name, _ in stores
        )
    except (KeyError, TypeError, ValueError):
        return None
