"""A pack plan on disk: which pieces of which documents make each row.

Opens in milliseconds, any row in O(1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.row import PackedRow
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.files import checksum

FORMAT = 1
PLAN_FILE = "plan.json"
# name -> type; `rows` has one entry more than there are rows
ARRAYS = {
    "row_offsets": np.dtype(np.int64),  # [rows + 1] first piece of each row
    "row_pairs": np.dtype(np.int64),  # [rows] query-key pairs of causal attention
    "piece_documents": np.dtype(
        np.int64
    ),  # [pieces] number of the document, all sources counted through
    "piece_starts": np.dtype(
        np.uint32
    ),  # [pieces] first token of the piece in its document
    "piece_lengths": np.dtype(np.int32),  # [pieces] tokens
}


class PackPlan:
    """Rows in training order: update k of R rows is rows [k*R, (k+1)*R), whatever the layout."""

    def __init__(
        self, directory: Path, stores: Mapping[str, TokenStore], note: dict[str, Any]
    ) -> None:
        self.directory = directory
        self.stats: dict[str, Any] = note["stats"]
        self.fingerprint: str = note["fingerprint"]
        self.identity: dict[str, Any] = note["identity"]
        self.row_length: int = self.identity["row_length"]
        self.sources = tuple(stores)
        self._fill_id: int = self.identity["fill_id"]
        self._stores = tuple(stores.values())
        self._tokens = tuple(store.tokens for store in self._stores)
        self._base = np.concatenate(
            ([0], np.cumsum([store.n_documents for store in self._stores]))
        )
        arrays = {name: _load(directory, name, note["arrays"][name]) for name in ARRAYS}
        self._row_offsets = arrays["row_offsets"]
        self._row_pairs = arrays["row_pairs"]
        self._documents = arrays["piece_documents"]
        self._starts = arrays["piece_starts"]
        self._lengths = arrays["piece_lengths"]

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
        fill_id: int | None = None,
        held_out: bool | None = None,
    ) -> PackPlan:
        """Open a plan for `stores`, in the order in which it was built.

        Raises DataError saying exactly what differs if the stores' content, or any of
        the other arguments that is given, is not what the plan was built from; and if a
        file of the plan is missing or cut off.
        """
        path = Path(directory)
        note = read_note(path)
        given = {
            "stores": [[name, store.fingerprint] for name, store in stores.items()],
            "spec": asdict(spec) if spec is not None else None,
            "seed": seed,
            "row_length": row_length,
            "rows": rows,
            "fill_id": fill_id,
            "held_out": held_out,
        }
        found = differences(
            note["identity"],
            {key: value for key, value in given.items() if value is not None},
        )
        if found:
            raise DataError(
                f"{path}: this plan was built from something else:\n  "
                + "\n  ".join(found)
                + "\n"
                "build it again, or restore what it was built from"
            )
        return cls(path, stores, note)

    def __len__(self) -> int:
        return self._row_pairs.size

    def row(self, index: int) -> PackedRow:
        """Row `index`, 0 <= index < len(plan); reads nothing but its pieces."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a plan of {len(self)} rows")
        low, high = int(self._row_offsets[index]), int(self._row_offsets[index + 1])
        documents = np.asarray(self._documents[low:high])
        sources = (np.searchsorted(self._base, documents, "right") - 1).astype(np.int32)
        numbers = documents - self._base[sources]
        starts = self._starts[low:high].astype(np.int64)
        offsets = np.zeros(high - low + 1, np.int64)
        np.cumsum(self._lengths[low:high], out=offsets[1:])
        return PackedRow(
            index, self.row_length, offsets, numbers, sources, starts, self._fill_id, self._tokens,
            self._begins(sources, numbers) + starts,
        )  # fmt: skip

    def _begins(self, sources: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if len(self._stores) == 1:
            return self._stores[0].starts(numbers)
        begins = np.empty_like(numbers)
        for source in np.unique(sources).tolist():
            mine = sources == source
            begins[mine] = self._stores[source].starts(numbers[mine])
        return begins

    def document_lengths(self, index: int) -> np.ndarray:
        """Tokens of each piece of row `index`, int32, fill not counted."""
        return np.asarray(
            self._lengths[self._row_offsets[index] : self._row_offsets[index + 1]]
        )

    def attention_pairs(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Visible query-key pairs of causal attention in each of `rows`, int64: sum of
        n*(n+1)/2 over its documents.

        Fill counts as the one document that it is for the kernel. FLOPs are 12 * layers
        * query_size times this.
        """
        return np.asarray(self._row_pairs[rows])


def _load(directory: Path, name: str, shape: int) -> np.ndarray:
    path = directory / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r" if shape else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: missing or broken ({error}); build the plan again"
        ) from error
    if array.shape != (shape,) or array.dtype != ARRAYS[name]:
        raise DataError(
            f"{path}: holds {array.dtype}{list(array.shape)}, not "
            f"{ARRAYS[name]}[{shape}]; build the plan again"
        )
    return np.asarray(
        array
    )  # a plain array over the map: slicing np.memmap itself is slow


def read_note(directory: Path) -> dict[str, Any]:
    """The `plan.json` of a plan;

    DataError where there is none, it is broken, or of another version.
    """
    path = directory / PLAN_FILE
    if not path.is_file():
        raise DataError(f"{directory}: holds no pack plan; build one")
    try:
        note = json.loads(path.read_text("utf-8"))
        version = note["identity"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: broken plan ({error!r}); build it again") from error
    if version != FORMAT:
        raise DataError(
            f"{path}: plan format {version}, this version reads {FORMAT}; build it again"
        )
    return dict(note)


def identity_fingerprint(identity: dict[str, Any], checksums: dict[str, str]) -> str:
    """xxh3_128, in hex, of what a plan was built from and of its arrays."""
    return checksum(json.dumps([identity, checksums], sort_keys=True).encode())


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> list[str]:
    """One line per leaf of `new` that is not the same in `old`;

    keys that `new` lacks do not matter.
    """
    lines: list[str] = []
    for key, value in new.items():
        before = old.get(key)
        if key == "stores":
            lines += _store_differences(before or [], value)
        elif isinstance(value, dict) and isinstance(before, dict):
            missing = {name: None for name in before if name not in value}
            lines += differences(before, {**value, **missing}, f"{prefix}{key}.")
        elif before != value:
            lines.append(f"{prefix}{key}: {before} in the plan, {value} now")
    return lines


def _store_differences(old: list[list[str]], new: list[list[str]]) -> list[str]:
    if [name for name, _ in old] != [name for name, _ in new]:
        return [
            f"sources: {', '.join(name for name, _ in old)} in the plan, "
            f"{', '.join(name for name, _ in new)} now"
        ]
    return [
        f"store {name}: content {before} in the plan, {after} now"
        for (name, before), (_, after) in zip(old, new, strict=True)
        if before != after
    ]
