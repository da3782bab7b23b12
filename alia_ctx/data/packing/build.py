"""Build a pack plan, or add rows to one: from stores and a spec to files on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.blend import (
    Corpus,
    Stratum,
    check_repetition,
    gather_corpus,
    stratify,
)
from alia_ctx.data.packing.contamination import (
    find_contamination,
    refuse_same_store,
)
from alia_ctx.data.packing.continued import named_rows
from alia_ctx.data.packing.history import (
    History,
    Spans,
    combined_pieces,
    history_of,
    join_spans,
)
from alia_ctx.data.packing.left_out import all_left_out, held_out_statement
from alia_ctx.data.packing.place import require_trained_rows, what_is_there
from alia_ctx.data.packing.plan import PackPlan, equal_updates
from alia_ctx.data.packing.plan_files import PackedRows, begins_with, write_plan
from alia_ctx.data.packing.predicted import predicted_of_rows
from alia_ctx.data.packing.rows import Progress, joined_rows, pack_rows
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.packing.statistics import plan_statistics
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import ConfigError, DataError

_MAX_ROW = 1 << 24  # the packer sorts by length in 24 bits


def build_plan(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    out_dir: str | Path,
    *,
    rows_per_update: int = 1,
    seed: int = 0,
    padding_id: int = 0,
    seen: Mapping[str, PackPlan] | None = None,
    seen_rows: Mapping[str, int] | None = None,
    unused: Collection[str] = (),
    held_out: TokenStore | None = None,
    kept_out: Mapping[str, np.ndarray] | None = None,
    overwrite: bool = False,
    trained: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PackPlan:
    """Plan `n_rows` rows of `row_length` tokens, or one epoch of everything if `n_rows` is
    None, and open the plan.

    Data repeats, in a new order each epoch, until the rows are there. Documents of fewer
    than 2 tokens predict nothing and are dropped and counted. Update k is
    `rows_per_update` rows from row k * rows_per_update on.

    seen: plans of the stages before, by stage. The plan begins with what they left of
        the epoch under way, documents that they trained on in part included.
    seen_rows: how many of its first rows a stage in `seen` trains on; all, where it is
        not among them.
    unused: sources that plans in `seen` drew from and this one does not.
    held_out: the evaluation text. A source that is the same is refused, and what of the
        sources is in it is left out where the spec says `drop_contaminated`.

    trained: the plan, as Statement.as_trained, that the stage has trained on already.
        What is made begins with its rows, or nothing is replaced.

    A finished plan of the same identity is opened as it is. One that differs in having
    fewer rows (whole updates) is extended: its rows stay, to the last bit, and the data
    continues behind them. So the result depends on the stores' content and order, on the
    arguments, and on the lengths that the plan had before, which it states as `parts`;
    made anew over a damaged plan that can still state them, it is the same again.
    `progress` gets what is done and the fraction.

    Memory: about 150 bytes a document, more with `seen`. Raises ConfigError for a spec
    that breaks rules, DataError for a blend that the data cannot give and for another
    plan in `out_dir` without `overwrite`.
    """
    report = progress or (lambda _what, _fraction: None)
    seen = seen or {}
    ends = {stage: len(plan) for stage, plan in seen.items()} | dict(seen_rows or {})
    _check(stores, spec, row_length, n_rows, rows_per_update, bool(seen))
    directory = Path(out_dir)
    report("fingerprints", 0.0)
    identity = plan_identity(
        stores,
        spec,
        row_length,
        n_rows,
        rows_per_update=rows_per_update,
        seed=seed,
        padding_id=padding_id,
        seen=[
            [stage, *named_rows(plan.statement.plans, ends[stage])]
            for stage, plan in seen.items()
        ],
    )
    if held_out is not None:
        refuse_same_store(stores, held_out)
    if spec.drop_contaminated and held_out is None:
        raise DataError(
            "drop_contaminated needs held-out text to compare with; name some under "
            "evaluation.held_out and tokenize it"
        )
    text = held_out if spec.drop_contaminated else None
    identity["held_out"] = held_out_statement(text, kept_out=kept_out)
    place = what_is_there(directory, stores, identity, overwrite, trained)
    if place.plan is not None and place.plan.identity["rows"] == n_rows:
        return place.plan
    contaminated = None
    if text is not None:
        overlap = find_contamination(stores, text, report)
        contaminated = {name: overlap.documents(name) for name in stores}
    contaminated = all_left_out(stores, contaminated, kept_out)
    report("documents", 0.02)
    corpus = gather_corpus(stores, spec, row_length, contaminated)
    planned = {stage: plan.planned_rows(ends[stage]) for stage, plan in seen.items()}
    earlier = combined_pieces(stores, corpus.base, planned, unused)
    packed, count = None, 0
    if place.plan is not None:
        packed, count = place.plan.packed, place.plan.stats["segments"]
    strata: list[Stratum] = []
    for end in [*(place.parts if packed is None else []), n_rows]:
        strata = stratify(corpus, spec, _history(corpus, earlier, packed))
        more = None if end is None else end - (len(packed) if packed else 0)
        if more is not None:
            check_repetition(strata, more * row_length, spec.max_epochs)
        new, segments_packed = pack_rows(
            corpus, strata, spec, row_length, more, seed, count, report
        )
        predicted = predicted_of_rows(tuple(stores.values()), corpus, new)
        new = replace(new, row_predicted=predicted)
        packed = new if packed is None else joined_rows(packed, new)
        count += segments_packed
    assert packed is not None  # the last end is n_rows
    arrays = {
        **vars(packed),
        "update_offsets": equal_updates(len(packed), rows_per_update),
    }
    if place.plan is None:
        require_trained_rows(directory, arrays, identity, trained)
    report("writing", 0.9)
    write_plan(
        directory,
        {**identity, "parts": place.parts},
        arrays,
        plan_statistics(
            corpus,
            packed,
            strata,
            row_length,
            count,
            _history(corpus, earlier, None),
            places=len(packed) * row_length,
        ),
        [shorter for shorter in place.shorter if begins_with(arrays, shorter)],
    )
    report("done", 1.0)
    # Written a moment ago, with checksums of what was read back.
    return PackPlan.open(directory, stores, verify=False)


def plan_identity(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    *,
    rows_per_update: int,
    seed: int,
    padding_id: int = 0,
    seen: Sequence[Sequence[Any]] = (),
) -> dict[str, Any]:
    """What a plan of `build_plan` states that it was made from, but for the text that it
    was cleared of. `seen`: (stage, *`named_rows`) of the plans that it continues.
    """
    return {
        "stores": [[name, store.fingerprint] for name, store in stores.items()],
        "spec": spec.statement(),
        "seed": seed,
        "row_length": row_length,
        "rows": n_rows,
        "rows_per_update": rows_per_update,
        "padding_id": padding_id,
        "seen": [list(pair) for pair in seen],
    }


def _check(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    rows_per_update: int,
    continues: bool,
) -> None:
    if not stores:
        raise DataError("no token stores to pack; tokenize a source first")
    problems = spec.problems("packing", list(stores))
    if problems:
        raise ConfigError("the packing is not valid", problems)
    if not 2 <= row_length < _MAX_ROW:
        raise DataError(
            f"row_length={row_length} is not between 2 and {_MAX_ROW - 1} tokens"
        )
    if n_rows is not None and n_rows < 1:
        raise DataError(f"n_rows={n_rows}: a plan needs at least one row")
    if rows_per_update < 1:
        raise DataError(f"rows_per_update={rows_per_update}: an update needs a row")
    if n_rows is None and (spec.weights or spec.length_buckets or continues):
        raise DataError(
            "weights, length_buckets and the data of earlier stages need n_rows: 'one "
            "epoch' is not defined for them"
        )


def _history(
    corpus: Corpus, earlier: Spans, packed: PackedRows | None
) -> History | None:
    """What the stages before and the rows so far have trained on; None for nothing."""
    parts = [earlier]
    if packed is not None:
        parts.append(
            Spans(packed.piece_documents, packed.piece_starts, packed.piece_lengths)
        )
    pieces = join_spans(parts)
    return history_of(corpus.lengths, pieces) if pieces.document.size else None
