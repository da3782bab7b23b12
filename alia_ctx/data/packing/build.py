"""Build a pack plan: draw documents, pack them segment by segment, put the rows in
training order, report.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
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
from alia_ctx.data.packing.plan import (
    ARRAYS,
    FORMAT,
    PLAN_FILE,
    PackPlan,
    differences,
    identity_fingerprint,
    read_note,
)
from alia_ctx.data.packing.policies import Pieces, best_fit, concat
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.files import checksum, file_checksum, write_json

_MAX_ROW = 1 << 24  # the packer sorts by length in 24 bits
Progress = Callable[[str, float], None]


def build_plan(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    out_dir: str | Path,
    *,
    seed: int = 0,
    fill_id: int = 0,
    held_out: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackPlan:
    """Plan `n_rows` rows of `row_length` tokens, or one epoch of everything if `n_rows` is
    None, and open the plan.

    The result depends on the stores' content and order and on the arguments alone. Data
    repeats, in a new order each epoch, until the rows are there. Documents of fewer
    than 2 tokens predict nothing and are dropped and counted. With `held_out` the plan
    is one epoch of the documents held out, by size and unweighted. A finished plan of
    the same identity is opened as it is. `progress` gets what is done and the fraction.

    Memory: about 150 bytes a document. Raises ConfigError for a spec that breaks rules,
    DataError for a blend that the data cannot give and for another plan in `out_dir`
    without `overwrite`.
    """
    report = progress or (lambda _what, _fraction: None)
    _check(stores, spec, row_length, n_rows, held_out)
    directory = Path(out_dir)
    report("fingerprints", 0.0)
    identity = {
        "format": FORMAT,
        "stores": [[name, store.fingerprint] for name, store in stores.items()],
        "spec": asdict(spec),
        "seed": seed,
        "row_length": row_length,
        "rows": n_rows,
        "fill_id": fill_id,
        "held_out": held_out,
    }
    existing = _existing(directory, stores, identity, overwrite)
    if existing is not None:
        return existing
    report("documents", 0.02)
    corpus = gather_corpus(stores, spec, row_length, held_out)
    blend = PackSpec(policy=spec.policy, long_docs=spec.long_docs) if held_out else spec
    strata = stratify(corpus, blend)
    if n_rows is not None:
        check_repetition(strata, n_rows * row_length, spec.max_epochs)
    packed = _pack(corpus, strata, blend, row_length, n_rows, seed, report)
    report("writing", 0.9)
    _write(directory, identity, packed, _stats(corpus, packed, strata, row_length))
    report("done", 1.0)
    return PackPlan.open(directory, stores)


def _check(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    held_out: bool,
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
    if n_rows is None and not held_out and (spec.weights or spec.length_buckets):
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
    if not (directory / PLAN_FILE).is_file():
        if directory.exists() and any(directory.iterdir()) and not overwrite:
            raise DataError(
                f"{directory}: is not empty and holds no plan; choose another folder "
                "or allow overwriting"
            )
        return None
    try:
        found = differences(read_note(directory)["identity"], identity)
        if not found:
            return PackPlan.open(directory, stores)
    except DataError:
        if not overwrite:
            raise
        return None
    if not overwrite:
        raise DataError(
            f"{directory}: another plan is there:\n  " + "\n  ".join(found) + "\n"
            "choose another folder or allow overwriting"
        )
    return None


@dataclass
class _Packed:
    """The arrays of a plan (see plan.ARRAYS) and how many segments made them."""

    row_offsets: np.ndarray
    row_pairs: np.ndarray
    piece_documents: np.ndarray
    piece_starts: np.ndarray
    piece_lengths: np.ndarray
    segments: int


def _pack(
    corpus: Corpus,
    strata: list[Stratum],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    seed: int,
    report: Progress,
) -> _Packed:
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
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    offsets = np.concatenate(([0], np.cumsum(counts)))
    pairs = _pairs(offsets, lengths, row_length)
    return _Packed(offsets, pairs, documents, starts, lengths, len(parts))


def _pack_segment(
    drawn: list[tuple[int, np.ndarray]],
    lengths: np.ndarray,
    spec: PackSpec,
    row_length: int,
    purpose: str,
) -> Pieces:
    policy = {"concat": concat, "best_fit": best_fit}[spec.policy]
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
        if (
            spec.policy == "concat" and len(drawn) > 1
        ):  # strata come one after another: mix them
            documents = documents[shuffled(documents.size, f"{purpose}/{bins}")]
        pieces = policy(documents, lengths[documents], row_length)
        packed.append(pieces._replace(bin=pieces.bin + bins))
        bins += pieces.bins
    if len(packed) == 1:
        return packed[0]
    return Pieces(*(np.concatenate(each) for each in zip(*packed, strict=True)))


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
    fill = row_length - np.add.reduceat(sizes, offsets[:-1])
    sizes *= sizes + 1
    sizes //= 2
    return np.add.reduceat(sizes, offsets[:-1]) + fill * (fill + 1) // 2


def _write(
    directory: Path, identity: dict[str, Any], packed: _Packed, stats: dict[str, Any]
) -> None:
    """Write everything under a temporary name and rename it: the plan is whole or not there."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        sizes, checksums = {}, {}
        for name, dtype in ARRAYS.items():
            array: np.ndarray = getattr(packed, name).astype(dtype, copy=False)
            np.save(partial / f"{name}.npy", array)
            sizes[name] = array.size
            checksums[name] = file_checksum(partial / f"{name}.npy")
        note = {
            "identity": identity,
            "fingerprint": identity_fingerprint(identity, checksums),
            "arrays": sizes,
            "checksums": checksums,
            "stats": stats,
        }
        write_json(partial / PLAN_FILE, note)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _stats(
    corpus: Corpus, packed: _Packed, strata: list[Stratum], row_length: int
) -> dict[str, Any]:
    """Everything that a plan says about itself;

    tokens are counted as often as they are trained on.
    """
    lengths = packed.piece_lengths
    rows = packed.row_pairs.size
    tokens = int(lengths.sum(dtype=np.int64))
    whole = corpus.lengths[packed.piece_documents]
    cut = lengths < whole
    return {
        "rows": rows,
        "row_length": row_length,
        "tokens": tokens,
        "predicted": tokens - lengths.size,
        "fill": tokens / (rows * row_length),
        "pieces": int(lengths.size),
        "cut_pieces": int(cut.sum()),
        "cut_documents": int(np.unique(packed.piece_documents[cut]).size),
        "cut_documents_that_fit": int(
            np.unique(packed.piece_documents[cut & (whole <= row_length)]).size
        ),
        "segments": packed.segments,
        "sources": _source_stats(corpus, packed),
        "strata": {
            each.name: {"share": each.share, "tokens": each.tokens} for each in strata
        },
        "context": context_use(lengths, row_length),
    }


def _source_stats(corpus: Corpus, packed: _Packed) -> dict[str, dict[str, Any]]:
    count = len(corpus.names)
    owner = corpus.source_of(packed.piece_documents)
    trained = np.bincount(owner, weights=packed.piece_lengths, minlength=count)
    usable_owner = corpus.source_of(corpus.usable)
    documents = np.bincount(usable_owner, minlength=count)
    tokens = np.bincount(
        usable_owner, weights=corpus.lengths[corpus.usable], minlength=count
    )
    total = trained.sum()
    return {
        name: {
            "documents": int(documents[number]),
            "tokens": int(tokens[number]),
            "trained_tokens": int(trained[number]),
            "epochs": float(trained[number] / tokens[number])
            if tokens[number]
            else 0.0,
            "share": float(trained[number] / total),
            "dropped": corpus.dropped[name],
        }
        for number, name in enumerate(corpus.names)
    }


def context_use(lengths: np.ndarray, row_length: int) -> list[list[float]]:
    """[n, share of tokens that have more than n tokens of their own document before
    them], n = 0 and 8 an octave.
    """
    pieces = np.bincount(lengths, minlength=row_length + 1)
    longer = np.cumsum(pieces[::-1])[::-1]  # pieces of length >= i
    tokens = float((np.arange(pieces.size) * pieces).sum())
    # a piece of length L has L-1-n tokens with more than n before them: sum of `longer` above n+1
    beyond = np.append(np.cumsum(longer[::-1])[::-1], 0)
    points = sorted(
        {
            0,
            *(int(2 ** (step / 8)) for step in range(8 * int(np.log2(row_length)) + 1)),
            row_length - 1,
        }
    )
    return [[n, float(beyond[min(n + 2, row_length + 1)]) / tokens] for n in points]


def plan_checksum(directory: Path) -> str:
    """One checksum over all bytes of a plan's files, in hex: equal plans are equal bytes."""
    return checksum(
        " ".join(file_checksum(path) for path in sorted(directory.iterdir())).encode()
    )
