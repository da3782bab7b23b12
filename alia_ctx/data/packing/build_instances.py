"""Build a pack plan whose updates are conversations, or add epochs to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.blend import Corpus
from alia_ctx.data.packing.contamination import find_contamination, refuse_same_store
from alia_ctx.data.packing.duplicates import duplicates_of
from alia_ctx.data.packing.instances import (
    draw_held_out,
    epoch_order,
    gather_instances,
    pack_epochs,
    row_lengths,
    rows_of_updates,
)
from alia_ctx.data.packing.left_out import all_left_out, held_out_statement
from alia_ctx.data.packing.place import require_trained_rows, what_is_there
from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.plan_files import PackedRows, begins_with, write_plan
from alia_ctx.data.packing.predicted import predicted_of_rows
from alia_ctx.data.packing.rows import Progress, joined_rows
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.packing.statistics import plan_statistics
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import ConfigError, DataError


def build_instance_plan(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    update_instances: int,
    epochs: int,
    out_dir: str | Path,
    *,
    seed: int = 0,
    padding_id: int = 0,
    conversations: TokenStore | None = None,
    held_out: TokenStore | None = None,
    kept_out: Mapping[str, np.ndarray] | None = None,
    overwrite: bool = False,
    trained: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PackPlan:
    """Plan `epochs` epochs of all documents in updates of `update_instances`, packed
    best-fit inside each update in rows of at most `row_length` tokens, and open the
    plan.

    conversations: those held out, as `write_held_out` wrote them; needed where the spec
        holds some out.
    held_out: other evaluation text. A source that is the same is refused, and what of
        the sources is in it is left out where the spec says `drop_contaminated`.
    kept_out: numbers of documents of each source that are left out too.

    A finished plan of the same identity is opened as it is. One that differs in having
    fewer epochs is extended: its updates stay, to the last bit, and are those of a plan
    of all epochs made at once. Raises ConfigError for a spec that breaks rules,
    DataError for conversations that would be cut and for another plan in `out_dir`
    without `overwrite`.
    """
    report = progress or (lambda _what, _fraction: None)
    _check(stores, spec, update_instances, epochs)
    directory = Path(out_dir)
    report("fingerprints", 0.0)
    held_out_numbers: dict[str, np.ndarray] = {}
    if spec.held_out_instances:
        if conversations is None:
            raise DataError(
                "held_out_instances needs the store of the conversations held out"
            )
        held_out_numbers = draw_held_out(stores, spec, seed)
    if held_out is not None:
        refuse_same_store(stores, held_out)
    text = held_out if spec.drop_contaminated else None
    if spec.drop_contaminated and text is None and conversations is None:
        raise DataError(
            "drop_contaminated needs held-out text to compare with; name some under "
            "evaluation.held_out and tokenize it, or set pack.held_out_instances"
        )
    identity = instance_plan_identity(
        stores, spec, row_length, update_instances, epochs, seed, padding_id
    )
    identity["held_out"] = held_out_statement(conversations, text, kept_out=kept_out)
    place = what_is_there(directory, stores, identity, overwrite, trained)
    before = 0 if place.plan is None else int(place.plan.identity["epochs"])
    if place.plan is not None and before == epochs:
        return place.plan
    contaminated = None
    if conversations is not None:
        contaminated = duplicates_of(stores, conversations, report)
    if text is not None:
        overlap = find_contamination(stores, text, report)
        theirs = {name: overlap.documents(name) for name in stores}
        contaminated = all_left_out(stores, contaminated, theirs)
    contaminated = all_left_out(stores, contaminated, kept_out)
    report("documents", 0.02)
    corpus = gather_instances(
        stores, spec, row_length, seed, held_out_numbers, contaminated
    )
    packed, offsets = rows_of_updates(
        pack_epochs(
            corpus,
            spec,
            row_length,
            update_instances,
            range(before, epochs),
            seed,
            report,
        ),
        row_length,
    )
    predicted = predicted_of_rows(tuple(stores.values()), corpus, packed)
    packed = replace(packed, row_predicted=predicted)
    if place.plan is not None:
        old = place.plan
        offsets = np.concatenate((old.update_offsets, offsets[1:] + len(old)))
        packed = joined_rows(old.packed, packed)
    arrays = {**vars(packed), "update_offsets": offsets}
    if place.plan is None:
        require_trained_rows(directory, arrays, identity, trained)
    report("writing", 0.9)
    stats = _statistics(
        corpus, spec, packed, offsets, row_length, update_instances, seed
    )
    write_plan(
        directory,
        {**identity, "parts": []},
        arrays,
        stats,
        [shorter for shorter in place.shorter if begins_with(arrays, shorter)],
    )
    report("done", 1.0)
    # Written a moment ago, with checksums of what was read back.
    return PackPlan.open(directory, stores, verify=False)


def instance_plan_identity(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    update_instances: int,
    epochs: int,
    seed: int,
    padding_id: int = 0,
) -> dict[str, Any]:
    """What a plan of `build_instance_plan` states that it was made from, but for the
    documents that it leaves out.
    """
    return {
        "stores": [[name, store.fingerprint] for name, store in stores.items()],
        "spec": spec.statement(),
        "seed": seed,
        "row_length": row_length,
        "rows": None,
        "update_instances": update_instances,
        "epochs": epochs,
        "padding_id": padding_id,
        "seen": [],
    }


def _check(
    stores: Mapping[str, TokenStore], spec: PackSpec, update_instances: int, epochs: int
) -> None:
    if not stores:
        raise DataError("no token stores to pack; tokenize a source first")
    problems = spec.problems("packing", list(stores)) + spec.instance_problems(
        "packing"
    )
    if problems:
        raise ConfigError("the packing is not valid", problems)
    for name, value in (("update_instances", update_instances), ("epochs", epochs)):
        if value < 1:
            raise DataError(f"{name}={value} must be above 0; 1 is the least")


def _statistics(
    corpus: Corpus,
    spec: PackSpec,
    packed: PackedRows,
    offsets: np.ndarray,
    row_length: int,
    update_instances: int,
    seed: int,
) -> dict[str, Any]:
    tokens = np.add.reduceat(
        packed.piece_lengths, packed.row_offsets[:-1], dtype=np.int64
    )
    places = int(row_lengths(tokens, offsets, row_length).sum())
    stats = plan_statistics(corpus, packed, [], row_length, 0, None, places=places)
    epoch = epoch_order(corpus, spec, 0, seed)
    owner = corpus.source_of(epoch)
    usable = corpus.source_of(corpus.usable)
    rest = epoch.size % update_instances
    stats["conversations"] = {
        "epoch": int(epoch.size),
        "updates": int(offsets.size - 1),
        "last_update": int(rest or update_instances),
        "sources": {
            name: {
                "epoch": int(np.count_nonzero(owner == number)),
                "used": int(np.count_nonzero(usable == number)),
                "held_out": corpus.dropped[name]["held_out_documents"],
                "surplus": corpus.dropped[name]["surplus_documents"],
            }
            for number, name in enumerate(corpus.names)
        },
    }
    return stats
