"""Build a pack plan: draw documents, pack them segment by segment, put the rows in
training order, report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.blend import (
    Corpus,
    Stratum,
    check_repetition,
    gather_corpus,
    segments,
    shuffled,
    stratify,
)
from alia_ctx.data.packing.plan import PackPlan, equal_updates
from alia_ctx.data.packing.plan_files import (
    differences,
    foreign_files,
    is_plan,
    read_statement,
    write_plan,
)
from alia_ctx.data.packing.policies import POLICIES, Pieces
from alia_ctx.data.packing.predicted import predicted_of_rows
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.packing.statistics import PackedRows, plan_statistics
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import ConfigError, DataError

_MAX_ROW = 1 << 24  # the packer sorts by length in 24 bits
Progress = Callable[[str, float], None]


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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackPlan:
    """Plan `n_rows` rows of `row_length` tokens, or one epoch of everything if `n_rows` is
    None, and open the plan.

    The result depends on the stores' content and order and on the arguments alone. Data
    repeats, in a new order each epoch, until the rows are there. Documents of fewer
    than 2 tokens predict nothing and are dropped and counted. Update k is
    `rows_per_update` rows from row k * rows_per_update on. A finished plan of the same
    identity is opened as it is. `progress` gets what is done and the fraction.

    Memory: about 150 bytes a document. Raises ConfigError for a spec that breaks rules,
    DataError for a blend that the data cannot give and for another plan in `out_dir`
    without `overwrite`.
    """
    report = progress or (lambda _what, _fraction: None)
    _check(stores, spec, row_length, n_rows, rows_per_update)
    directory = Path(out_dir)
    report("fingerprints", 0.0)
    identity = {
        "stores": [[name, store.fingerprint] for name, store in stores.items()],
        "spec": asdict(spec),
        "seed": seed,
        "row_length": row_length,
        "rows": n_rows,
        "rows_per_update": rows_per_update,
        "padding_id": padding_id,
    }
    existing = _existing(directory, stores, identity, overwrite)
    if existing is not None:
        return existing
    report("documents", 0.02)
    corpus = gather_corpus(stores, spec, row_length)
    strata = stratify(corpus, spec)
    if n_rows is not None:
        check_repetition(strata, n_rows * row_length, spec.max_epochs)
    packed = _pack(corpus, strata, spec, row_length, n_rows, seed, report)
    predicted = predicted_of_rows(tuple(stores.values()), corpus, packed)
    packed = replace(packed, row_predicted=predicted)
    arrays = {
        **packed.arrays(),
        "update_offsets": equal_updates(packed.row_pairs.size, rows_per_update),
    }
    report("writing", 0.9)
    write_plan(
        directory, identity, arrays, plan_statistics(corpus, packed, strata, row_length)
    )
    report("done", 1.0)
    return PackPlan.open(directory, stores)


def _check(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    rows_per_update: int,
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
    if n_rows is None and (spec.weights or spec.length_buckets):
        raise DataError(
            "weights and length_buckets need n_rows: 'one epoch' is not defined for a "
            "weighted blend"
        )


def _existing(
    directory: Path,
    stores: Mapping[str, TokenStore],
    identity: dict[str, Any],
    overwrite: bool,
) -> PackPlan | None:
    foreign = foreign_files(directory)
    if foreign:
        raise DataError(
            f"{directory}: holds what is no plan ({', '.join(foreign[:5])}) and is not "
            "overwritten; choose another folder"
        )
    if not is_plan(directory):
        if directory.exists() and any(directory.iterdir()) and not overwrite:
            raise DataError(
                f"{directory}: is not empty and holds no whole plan; choose another "
                "folder or allow overwriting"
            )
        return None
    try:
        statement = read_statement(directory)
        expected = dict(identity)
        if statement.format == 1:
            del expected["rows_per_update"]
        differing = differences(statement.identity, expected)
        if not differing:
            return PackPlan.open(
                directory, stores, rows_per_update=identity["rows_per_update"]
            )
    except DataError:
        if not overwrite:
            raise
        return None
    if not overwrite:
        raise DataError(
            f"{directory}: another plan is there:\n  " + "\n  ".join(differing) + "\n"
            "choose another folder or allow overwriting"
        )
    return None


def _pack(
    corpus: Corpus,
    strata: list[Stratum],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    seed: int,
    report: Progress,
) -> PackedRows:
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    rows = 0
    for number, drawn in enumerate(
        segments(strata, corpus.lengths, row_length, n_rows, seed)
    ):
        if n_rows is not None and rows >= n_rows:
            break
        pieces = _pack_segment(
            drawn, corpus.lengths, spec, row_length, f"concat/{seed}/{number}"
        )
        counts, order = _order_rows(
            pieces, f"rows/{seed}/{number}", None if n_rows is None else n_rows - rows
        )
        rows += counts.size
        parts.append((
            counts,
            pieces.document[order],
            pieces.start[order].astype(np.uint32),
            pieces.length[order],
        ))  # fmt: skip
        report(
            f"{rows} rows packed",
            0.05 + 0.85 * (min(1.0, rows / n_rows) if n_rows else 1.0),
        )
    counts, documents, starts, lengths = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    offsets = np.concatenate(([0], np.cumsum(counts)))
    pairs = _pairs(offsets, lengths, row_length)
    return PackedRows(offsets, pairs, documents, starts, lengths, len(parts))


def _pack_segment(
    drawn: list[tuple[int, np.ndarray]],
    lengths: np.ndarray,
    spec: PackSpec,
    row_length: int,
    purpose: str,
) -> Pieces:
    policy = POLICIES[spec.policy]
    groups = (
        sorted({bucket for bucket, _ in drawn})
        if spec.short_docs == "apart"
        else [None]
    )
    packed: list[Pieces] = []
    bins = 0
    for group in groups:
        documents = np.concatenate(
            [numbers for bucket, numbers in drawn if group is None or bucket == group]
        )
        if policy.keeps_order and len(drawn) > 1:
            # strata come one after another: mix them
            documents = documents[shuffled(documents.size, f"{purpose}/{bins}")]
        pieces = policy.pack(documents, lengths[documents], row_length)
        packed.append(pieces._replace(bin=pieces.bin + bins))
        bins += pieces.bins
    if len(packed) == 1:
        return packed[0]
    return Pieces(*(np.concatenate(arrays) for arrays in zip(*packed, strict=True)))


def _order_rows(
    pieces: Pieces, purpose: str, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the rows of a segment and keep at most `most`; returns pieces per row, and
    the order of the pieces.

    Where rows must go, the emptiest goes first (it is the remainder of the packing),
    the others by chance, so that the lengths that are trained on stay those of the
    data.
    """
    counts = np.bincount(pieces.bin)
    order = shuffled(counts.size, purpose)
    if most is not None and counts.size > most:
        fill = np.add.reduceat(
            pieces.length, np.cumsum(counts) - counts, dtype=np.int64
        )
        order = order[order != np.argmin(fill)][:most]
    firsts = (np.cumsum(counts) - counts)[order]
    kept = counts[order]
    index = np.repeat(firsts - (np.cumsum(kept) - kept), kept)
    index += np.arange(index.size)
    return kept, index


def _pairs(offsets: np.ndarray, lengths: np.ndarray, row_length: int) -> np.ndarray:
    sizes = lengths.astype(np.int64)
    padding = row_length - np.add.reduceat(sizes, offsets[:-1])
    sizes *= sizes + 1
    sizes //= 2
    return np.add.reduceat(sizes, offsets[:-1]) + padding * (padding + 1) // 2
