"""How often stages read their text: of plans exactly, of stores by the packer's blend, of
text not tokenised yet about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from alia_ctx.config.run import RunConfig
from alia_ctx.data.documents import (
    DocumentCounts,
    SourceSpec,
    find_inputs,
    plan_shards,
    read_slice,
)
from alia_ctx.data.documents.slices import Slice
from alia_ctx.data.packing import (
    TextByLength,
    is_extended,
    plan_identity,
    read_statement,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import AliaError
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.stores import has_store, open_store

# Muennighoff et al. 2023, arXiv 2305.16264: up to here repeated text is worth nearly as
# much as new text, beyond it less and less.
REPEATS = 4
_ALIKE = 1.05  # parts of a source this near to its mean are not told apart
_SLICES = 24  # that are looked into, evenly spread
_SLICE_BYTES = 4 << 20  # on disk, of JSON lines and Parquet; other files are whole
_TEXT = 1 << 16  # characters of a slice that are tokenised


@dataclass(frozen=True)
class _Read:
    """How often a source is read in the mean, and the part of it that is read most often:
    documents of `low` tokens and more, below `high` (None: any).
    """

    mean: float
    most: float
    low: int
    high: int | None

    def __str__(self) -> str:
        if self.most <= self.mean * _ALIKE:
            return f"{self.mean:.3g} times"
        longest = f" to {self.high - 1:,}" if self.high is not None else " and more"
        part = f"documents of {self.low:,}{longest} tokens {self.most:.3g} times"
        return f"{self.mean:.3g} times ({part})"


def epochs_of(run: RunConfig, name: str) -> dict[str, float]:
    """How often a stage of text, with those before it in its chain, will have read each of
    its sources by its end; nothing where one is not tokenised, or where its updates are of
    conversations, whose mixture says it.

    A stage that is packed is counted as its plan states, another by the packer's blend:
    that has no gaps in rows, and does not know what `pack` leaves out for its text. A store
    that cannot be read is as none: `check` says why.
    """
    return {source: read.mean for source, read in _reads(run, name).items()}


def _reads(run: RunConfig, name: str) -> dict[str, _Read]:
    with suppress(AliaError):
        return _counted(run, name)
    return {}


def _counted(run: RunConfig, name: str) -> dict[str, _Read]:
    drawn = run.stage(name).pack.drawn_from(list(run.data.sources))
    sources = list(run.data.sources)
    chain = [
        each
        for each in _chain(run, name)
        if not set(drawn).isdisjoint(run.stage(each).pack.drawn_from(sources))
    ]
    specs = [(run.stage(n).pack, run.stage(n).context) for n in chain]
    needed = {source for spec, _ in specs for source in spec.drawn_from(sources)}
    if any(run.stage(n).update_instances for n in chain):
        return {}
    if not all(has_store(run, source) for source in needed):
        return {}
    stores = {source: open_store(run, source) for source in sources if source in needed}
    text = TextByLength.of(stores, specs)
    times = np.sum([_times_read(run, each, text, stores) for each in chain], axis=0)
    usable = text.usable(*specs[-1])
    reads = {}
    for number, source in enumerate(text.names):
        there, read = usable[number], times[number]
        if source in drawn and there.any() and read.any():
            mean = float((there * read).sum() / there.sum())
            part = int(np.argmax(np.where(there > 0, read, -1.0)))
            most = float(read[part])
            after = text.lows[part + 1 :].tolist()
            low = int(text.lows[part])
            reads[source] = _Read(mean, most, low, after[0] if after else None)
    return reads


def _chain(run: RunConfig, name: str) -> list[str]:
    """A stage and all that its model was trained in before, oldest first. One whose data
    begins anew reads again what those before it have read.
    """
    names = [name]
    while (before := run.stage(names[0]).init_from) in run.stages:
        names.insert(0, before)
    return names


def _times_read(
    run: RunConfig, name: str, text: TextByLength, stores: Mapping[str, TokenStore]
) -> np.ndarray:
    """How often one stage reads each part: float64 [sources, parts]."""
    stage = run.stage(name)
    times = text.times_read(stage.pack, stage.context, stage.rows * stage.context)
    packed = _packed(run, name, stores)
    usable = text.usable(stage.pack, stage.context)
    for number, source in enumerate(text.names):
        there = usable[number]
        if packed is not None and source in packed and times[number].any():
            mean = (there * times[number]).sum() / there.sum()
            times[number] *= packed[source]["epochs"] / mean
    return times


def _packed(
    run: RunConfig, name: str, stores: Mapping[str, TokenStore]
) -> dict[str, Any] | None:
    """What the plan of a stage states of its sources; None where there is none, or it is
    not the one that `pack` would make.
    """
    stage, directory = run.stage(name), run_directory(run).plan(name)
    drawn = {n: stores[n] for n in stage.pack.drawn_from(list(run.data.sources))}
    identity = plan_identity(
        *(drawn, stage.pack, stage.context, stage.rows),
        rows_per_update=stage.rows_per_update,
        seed=run.seed,
    )
    del identity["seen"]  # decides which documents are read, not how many
    with suppress(AliaError):
        if directory.is_dir() and not is_extended(directory, drawn, identity):
            return dict(read_statement(directory).stats["sources"])
    return None


def epochs_in_words(run: RunConfig, name: str) -> str:
    """`32k: by its end its text was read: code 3.1 times`; nothing where it is not known."""
    return _in_words(name, _reads(run, name))


def _in_words(name: str, read: Mapping[str, _Read]) -> str:
    told = ", ".join(f"{source} {times}" for source, times in read.items())
    return f"{name}: by its end its text was read: {told}" if told else ""


def epoch_notes(run: RunConfig, names: Sequence[str] = ()) -> list[str]:
    """Stages (default: all) that read a part of a source more often than brings much."""
    reads = {name: _reads(run, name) for name in names or run.stages}
    return [
        f"{_in_words(name, read)}; beyond {REPEATS} times text brings less and less: "
        f"take more text, or lower stages.{name}.tokens"
        for name, read in reads.items()
        if any(source.most > REPEATS for source in read.values())
    ]


def estimated_tokens(inputs: Sequence[str], tokenizer: HubTokenizer) -> int | None:
    """About how many tokens text has, by its bytes on disk and what a sample of it comes
    to; None where it cannot be read, which `check` says.
    """
    spec = SourceSpec(inputs=list(inputs))
    try:
        files = find_inputs(spec.inputs).files
        parts = [p for shard in plan_shards(files, spec, _SLICE_BYTES) for p in shard]
        every = sum(part.size for part in parts)
        sample = parts[:: max(1, -(-len(parts) // _SLICES))]
        seen = sum(part.size for part in sample)
        tokens = sum(_tokens(part, spec, tokenizer) for part in sample)
    except (AliaError, OSError):
        return None
    return round(tokens * every / seen) if seen and tokens else None


def _tokens(part: Slice, spec: SourceSpec, tokenizer: HubTokenizer) -> float:
    """Of a slice, as dense as its first documents are."""
    characters, texts, taken = 0, list[str](), 0
    for document in read_slice(part, spec, DocumentCounts()):
        characters += len(document.text)
        if taken < _TEXT:
            texts.append(document.text[: _TEXT - taken])
            taken += len(texts[-1])
    if not taken:
        return 0.0
    ids = tokenizer.ids(texts, split_special=True)
    return characters * sum(map(len, ids)) / taken
