"""How often stages read their text: of stores exactly, of text not tokenised yet about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

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
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import AliaError
from alia_ctx.workflow.continued import earlier_stages
from alia_ctx.workflow.stores import has_store, open_store

# Muennighoff et al. 2023, arXiv 2305.16264: up to here repeated text is worth nearly as
# much as new text, beyond it less and less.
REPEATS = 4
_SLICES = 24  # that are looked into, evenly spread
_SLICE_BYTES = 4 << 20  # on disk, of JSON lines and Parquet; other files are whole
_TEXT = 1 << 16  # characters of a slice that are tokenised


def epochs_of(run: RunConfig, name: str) -> dict[str, float]:
    """How often a stage of text, with those before it whose data it continues, will have
    read each of its sources by its end; nothing where one is not tokenised, or where its
    updates are of conversations, whose mixture says it.

    Documents that `pack` leaves out for their text are counted in. A store that cannot be
    read is as none: `check` says why.
    """
    with suppress(AliaError):
        return _epochs(run, name)
    return {}


def _epochs(run: RunConfig, name: str) -> dict[str, float]:
    read: dict[str, float] = {}
    for each in (*earlier_stages(run, name), name):
        stage, pack = run.stage(each), run.stage(each).pack
        drawn = pack.drawn_from(list(run.data.sources))
        if stage.update_instances or not all(has_store(run, s) for s in drawn):
            return {}
        sizes = {source: _usable(run, each, source) for source in drawn}
        total = sum(sizes.values())
        for source, size in sizes.items():
            share = pack.weights.get(source, 0.0) if pack.weights else size / total
            if size and share:
                tokens = stage.rows * stage.context * share
                read[source] = read.get(source, 0.0) + tokens / size
    drawn = run.stage(name).pack.drawn_from(list(run.data.sources))
    return {source: times for source, times in read.items() if source in drawn}


def _usable(run: RunConfig, name: str, source: str) -> int:
    lengths = open_store(run, source).lengths
    fits = lengths >= 2
    if run.stage(name).pack.long_docs == "drop":
        fits &= lengths <= run.stage(name).context
    return int(lengths[fits].sum(dtype=np.int64))


def epochs_in_words(run: RunConfig, name: str) -> str:
    """`32k: by its end its text was read: code 3.1 times`; nothing where it is not known."""
    return _in_words(name, epochs_of(run, name))


def _in_words(name: str, read: Mapping[str, float]) -> str:
    told = ", ".join(f"{source} {times:.3g} times" for source, times in read.items())
    return f"{name}: by its end its text was read: {told}" if told else ""


def epoch_notes(run: RunConfig, names: Sequence[str] = ()) -> list[str]:
    """Stages (default: all) that read a source more often than brings much."""
    reads = {name: epochs_of(run, name) for name in names or run.stages}
    return [
        f"{_in_words(name, read)}; beyond {REPEATS} times text brings less and less: "
        f"take more text, or lower stages.{name}.tokens"
        for name, read in reads.items()
        if max(read.values(), default=0.0) > REPEATS
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
