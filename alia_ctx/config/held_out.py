"""Whether the held-out text is there and long enough for what a run will measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alia_ctx.config.draft import Draft
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.documents import (
    DocumentCounts,
    SourceSpec,
    find_inputs,
    read_documents,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError, Problems

# A token is a byte of text at least, but for those that delimit a document.
_DELIMITERS = 2


def held_out_problems(draft: Draft) -> Problems:
    """That the held-out text cannot be read, or has no document as long as the shortest
    context, so that no stage can be measured.
    """
    shortest = min(stage.context for stage in draft.stages.values())
    remedy = "give longer documents"
    return _shorter_than(draft, shortest, "the shortest context", remedy)


def held_out_notes(run: RunConfig) -> Problems:
    """That no held-out document has the longest context: stages of longer ones are then
    shown as much as there is.

    Where the text is tokenised its lengths are exact. Before that a document's bytes
    are the most tokens that it can give; reading stops at the first that may do.
    """
    shared = {f.name for f in dataclasses.fields(Draft)}
    fields = [f.name for f in dataclasses.fields(run) if f.name in shared]
    known = {name: getattr(run, name) for name in fields}
    draft = Draft(stage_names=tuple(run.stages), **known)
    longest = max(stage.context for stage in run.stages.values())
    remedy = "give longer documents, or what is past them is not measured"
    return _shorter_than(draft, longest, "the longest context", remedy)


def _shorter_than(draft: Draft, context: int, what: str, remedy: str) -> Problems:
    problems = Problems()
    spec = draft.evaluation.held_out
    paths = [] if spec is None else [*spec.inputs, *filter(None, [spec.store])]
    if spec is None or any(draft.deferred(path) for path in paths):
        return problems
    if spec.chat is not None:  # answers are measured, not far positions
        return problems
    key = "evaluation.held_out"
    try:
        length, unit = _longest_document(draft, spec, context)
    except DataError as error:
        problems.add(key, paths[0], str(error), "mend the text, or give another")
        return problems
    rule = (
        f"its longest document has {length} {unit}, which is below {what}, "
        f"{context} tokens"
    )
    problems.need(length >= context, key, paths[0], rule, remedy)
    return problems


def _longest_document(draft: Draft, spec: SourceSpec, enough: int) -> tuple[int, str]:
    """Length of the longest document, or of the first that has `enough`, and its unit."""
    store = spec.store or _fresh_store(draft, spec)
    if store is not None:
        return int(TokenStore(store).lengths.max(initial=0)), "tokens"
    longest = 0
    for document in read_documents(spec, DocumentCounts()):
        longest = max(longest, len(document.text.encode()) + _DELIMITERS)
        if longest >= enough:
            break
    return longest, "bytes, and so tokens at most"


def _fresh_store(draft: Draft, spec: SourceSpec) -> str | None:
    """The store that `tokenize` made of the text as it is now."""
    prefix = draft.store(HELD_OUT)
    try:
        made = prefix.with_name(f"{HELD_OUT}.idx").stat().st_mtime
        changed = max(Path(f).stat().st_mtime for f in find_inputs(spec.inputs).files)
    except OSError:
        return None
    return str(prefix) if made > changed else None
