"""A pack plan: which pieces of which documents make each row, and which rows each update.

Opens in milliseconds, any row in O(1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.consumed import Consumed
from alia_ctx.data.packing.history import PlannedRows, Spans
from alia_ctx.data.packing.instances import row_lengths
from alia_ctx.data.packing.plan_files import (
    PackedRows,
    Statement,
    begins_with,
    differences,
    load_arrays,
    read_statement,
    stores_as_named,
    way_out,
)
from alia_ctx.data.packing.remedy import command_for
from alia_ctx.data.packing.row import PackedRow
from alia_ctx.data.packing.same_row import repeated_in_rows
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError


class PackPlan:
    """Rows in training order; update k is `rows_of_update(k)`, whatever the layout."""

    def __init__(
        self,
        statement: Statement,
        stores: Mapping[str, TokenStore],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Use `open`, which compares before anything is read."""
        self.statement = statement
        self.directory = statement.directory
        self.stats = statement.stats
        self.fingerprint = statement.fingerprint
        self.identity = statement.identity
        self.row_length: int = self.identity["row_length"]
        self.sources = tuple(stores)
        self._padding_id: int = self.identity["padding_id"]
        self._stores = tuple(stores.values())
        self._tokens = tuple(store.tokens for store in self._stores)
        weights = tuple(store.weights for store in self._stores)
        self._weights = weights if any(w is not None for w in weights) else ()
        self._base = np.concatenate(
            ([0], np.cumsum([store.n_documents for store in self._stores]))
        )
        self._update_offsets = arrays.get("update_offsets")
        rows = {f.name: arrays[f.name] for f in fields(PackedRows)}
        self.packed = PackedRows(**rows)
        self._consumed = Consumed(self.packed, self._base)
        self._lengths: np.ndarray | None = None
        if self.of_conversations:
            tokens = np.add.reduceat(
                self.packed.piece_lengths, self.packed.row_offsets[:-1], dtype=np.int64
            )
            self._lengths = row_lengths(tokens, self._offsets, self.row_length)

    def repeated_in_rows(self) -> dict[str, int]:
        """How often a row has the same text again, by source, where it has at all."""
        counts = repeated_in_rows(self.packed, self._base).tolist()
        return {n: c for n, c in zip(self.sources, counts, strict=True) if c}

    @classmethod
    def open(
        cls,
        directory: str | Path,
        stores: Mapping[str, TokenStore],
        *,
        spec: PackSpec | None = None,
        row_length: int | None = None,
        seed: int | None = None,
        rows: int | None = None,
        rows_per_update: int | None = None,
        update_instances: int | None = None,
        epochs: int | None = None,
        padding_id: int | None = None,
        seen: Sequence[Sequence[Any]] | None = None,
        held_out: str | None = None,
        verify: bool = True,
    ) -> PackPlan:
        """Open a plan for `stores`, in the order in which it was built.

        Raises DataError saying exactly what differs if the stores' content, or any of
        the other arguments that is given, is not what the plan was built from; and if
        any bit of the plan's files is not what was written. `seen` is (stage,
        *`named_rows`) of the plans whose data this one continues, `held_out` the
        fingerprint of the text that it was cleared of. Without `verify` the
        bits of the arrays are believed: for tools that look at a plan and train nothing.

        A plan of version 0.1 does not say which rows an update has: it takes
        `rows_per_update` from here, and has no updates without it.
        """
        path = Path(directory)
        statement = read_statement(path)
        identity = {
            "stores": stores_as_named(stores, statement.identity["stores"]),
            "spec": spec.statement() if spec is not None else None,
            "seed": seed,
            "row_length": row_length,
            "rows": rows,
            "rows_per_update": rows_per_update,
            "update_instances": update_instances,
            "epochs": epochs,
            "padding_id": padding_id,
            "seen": None if seen is None else [list(pair) for pair in seen],
            "held_out": held_out,
        }
        if statement.format == 1:
            del identity["rows_per_update"]
        differing = differences(
            statement.identity,
            {key: value for key, value in identity.items() if value is not None},
        )
        if differing:
            then = statement.identity["rows"]
            grown = len(differing) == 1 and None not in (rows, then) and rows > then
            way = f"run `{command_for(path)}`, which adds them"
            raise DataError(
                f"{path}: this plan was built from something else:\n  "
                + "\n  ".join(differing)
                + f"\n{way if grown else way_out(path)}, or restore what it was built "
                "from"
            )
        arrays = load_arrays(statement, verify=verify)
        if statement.format == 1:
            _add_what_format_1_lacks(arrays, rows_per_update)
        return cls(statement, stores, arrays)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def of_conversations(self) -> bool:
        """Whether its updates are of so many documents each, packed by themselves."""
        return "update_instances" in self.identity

    @property
    def updates(self) -> int:
        """Number of updates; DataError for a plan of version 0.1 that was opened
        without `rows_per_update`.
        """
        return self._offsets.size - 1

    def rows_of_update(self, update: int) -> range:
        """The rows of update `update`, 0 <= update < updates."""
        if not 0 <= update < self.updates:
            raise IndexError(f"update {update} of a plan of {self.updates} updates")
        return range(*self._offsets[update : update + 2].tolist())

    @property
    def update_offsets(self) -> np.ndarray:
        """First row of each update and the end, int64 [updates + 1]."""
        return self._offsets

    @property
    def _offsets(self) -> np.ndarray:
        if self._update_offsets is None:
            raise DataError(
                f"{self.directory}: this plan of version 0.1 does not say which rows "
                "an update has; open it with rows_per_update"
            )
        return self._update_offsets

    def row(self, index: int) -> PackedRow:
        """Row `index`, 0 <= index < len(plan); reads nothing but its pieces."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a plan of {len(self)} rows")
        packed = self.packed
        low, high = map(int, packed.row_offsets[index : index + 2])
        documents = np.asarray(packed.piece_documents[low:high])
        sources = (np.searchsorted(self._base, documents, "right") - 1).astype(np.int32)
        numbers = documents - self._base[sources]
        starts = packed.piece_starts[low:high].astype(np.int64)
        offsets = np.zeros(high - low + 1, np.int64)
        np.cumsum(packed.piece_lengths[low:high], out=offsets[1:])
        length = self.row_length if self._lengths is None else int(self._lengths[index])
        return PackedRow(
            index, length, offsets, numbers, sources, starts, self._padding_id,
            self._tokens, self._begins(sources, numbers) + starts, self._weights,
            int(self.predicted(index)),
        )  # fmt: skip

    def _begins(self, sources: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if len(self._stores) == 1:
            return self._stores[0].starts(numbers)
        begins = np.empty_like(numbers)
        for source in np.unique(sources).tolist():
            of_source = sources == source
            begins[of_source] = self._stores[source].starts(numbers[of_source])
        return begins

    def places(self, rows: slice) -> np.ndarray:
        """Tokens that each of `rows` has room for, int64: `row_length`, or less where
        updates are of conversations, whose rows are as long as they need.
        """
        if self._lengths is not None:
            return self._lengths[rows]
        return np.full(len(range(*rows.indices(len(self)))), self.row_length)

    def attention_pairs(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Visible query-key pairs of causal attention in each of `rows`, int64: sum of
        n*(n+1)/2 over its documents.

        Padding counts as the one document that it is for the kernel. FLOPs are 12 *
        layers * query_size times this.
        """
        return np.asarray(self.packed.row_pairs[rows])

    def predicted(self, rows: int | Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Positions with a target in each of `rows`, int64; no token is read."""
        return np.asarray(self.packed.row_predicted[rows])

    def predicted_of_update(self, update: int) -> int:
        """Positions with a target in all rows of an update; no token is read."""
        rows = self.rows_of_update(update)
        return int(self.predicted(slice(rows.start, rows.stop)).sum())

    def consumed(self, rows: int) -> list[tuple[str, int, int, bool]]:
        """Of each source that rows [0, rows) hold anything of: its name, tokens, documents
        that begin there, and whether these are conversations (have loss weights).
        """
        tokens, documents = self._consumed.of_rows(rows)
        return [
            (
                name,
                int(tokens[n]),
                int(documents[n]),
                self._stores[n].weights is not None,
            )
            for n, name in enumerate(self.sources)
            if tokens[n]
        ]

    def extends(self, fingerprint: str) -> bool:
        """Whether the first rows and updates of this plan are, to the last bit, those of
        the plan of this fingerprint, to which rows were added. Reads the arrays.
        """
        arrays = {**vars(self.packed), "update_offsets": self._offsets}
        return any(
            shorter["fingerprint"] == fingerprint and begins_with(arrays, shorter)
            for shorter in self.statement.shorter
        )

    def is_plan(self, fingerprint: str) -> bool:
        """Whether this plan has that fingerprint, were each of its stores called by any of
        the names of its content (`TokenStore.fingerprints`).
        """
        names = [name for name, _ in self.statement.written["stores"]]
        return fingerprint == self.fingerprint or any(
            self.statement.fingerprint_with(
                [[*pair] for pair in zip(names, called, strict=True)]
            )
            == fingerprint
            for called in product(*(store.fingerprints for store in self._stores))
        )

    def document_lengths(self) -> np.ndarray:
        """Tokens of the whole document that each piece is of, integers [pieces]."""
        lengths = np.concatenate([store.lengths for store in self._stores])
        of_pieces: np.ndarray = lengths[self.packed.piece_documents]
        return of_pieces

    def planned_rows(self, rows: int | None = None) -> PlannedRows:
        """What a later stage must know that continues the first `rows` rows, or all."""
        packed = self.packed
        end = packed.row_offsets[len(self) if rows is None else rows]
        pieces = packed.piece_documents, packed.piece_starts, packed.piece_lengths
        spans = Spans(*(column[:end] for column in pieces))
        documents = [store.n_documents for store in self._stores]
        return PlannedRows(self.identity["stores"], documents, spans)


def _add_what_format_1_lacks(
    arrays: dict[str, np.ndarray], rows_per_update: int | None
) -> None:
    offsets, lengths = arrays["row_offsets"], arrays["piece_lengths"]
    tokens = np.add.reduceat(lengths, offsets[:-1], dtype=np.int64)
    arrays["row_predicted"] = tokens - np.diff(offsets)
    if rows_per_update is not None:
        arrays["update_offsets"] = equal_updates(tokens.size, rows_per_update)


def equal_updates(rows: int, rows_per_update: int) -> np.ndarray:
    """First row of each update and the end, int64 [updates + 1], `rows_per_update` rows
    each; the last update may have fewer.
    """
    return np.append(np.arange(0, rows, rows_per_update, dtype=np.int64), rows)
