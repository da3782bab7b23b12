"""Token stores in Megatron's indexed-dataset format: a `.bin` of token ids and an `.idx`
of where documents are.

The `.idx` (megatron/core/datasets/indexed_dataset.py): 9 bytes magic, uint64 version 1,
uint8 dtype code, uint64 number of sequences S, uint64 number of document indices D,
int32[S] sequence lengths in tokens, int64[S] byte offsets in the `.bin`, int64[D] first
sequence of each document with S at the end; int8[S] modes may follow.

Loss weights may lie beside them, in a `.weights` of our own that Megatron does not look
for: 8 bytes magic, uint64 number of tokens T, 16 bytes xxh3_128 over the fingerprints of
`.bin` and `.idx`, uint8[T] weight of each token as a target (0 or 1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from alia_ctx.data.tokens.store_files import read_sidecar, store_path
from alia_ctx.data.tokens.vocabulary import known_range
from alia_ctx.data.tokens.work_folder import is_unfinished, work_path
from alia_ctx.errors import DataError
from alia_ctx.files import (
    atomic_file,
    checksum,
    file_checksum,
    file_fingerprint,
)

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
_WEIGHTS_MAGIC = b"ALIAWGT1"
_WEIGHTS_HEADER = struct.Struct("<8sQ16s")
UINT16_VOCABULARY = 65_500  # Megatron's own limit for two-byte tokens


class TokenStore:
    """The documents of one source as token ids, memory-mapped and read-only.

    Opens in time that does not depend on the number of documents. A document may
    consist of several Megatron sequences, which then must lie one after another.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open `PREFIX.bin` and `PREFIX.idx`; DataError where one is missing, cut off or of
        another format.
        """
        self.prefix = Path(prefix)
        # A source may be called a.bin.
        if not store_path(self.prefix, ".idx").is_file():
            self.prefix = Path(str(prefix).removesuffix(".idx").removesuffix(".bin"))
        self.index_path = store_path(self.prefix, ".idx")
        self.data_path = store_path(self.prefix, ".bin")
        self.sidecar_path = store_path(self.prefix, ".json")
        self.weights_path = store_path(self.prefix, ".weights")
        for path in (self.index_path, self.data_path):
            if not path.is_file():
                raise DataError(
                    f"{path} does not exist; tokenize the source or correct the store's prefix"
                )
        if not self.sidecar_path.is_file() and is_unfinished(self.prefix):
            raise DataError(
                f"{self.prefix}: tokenising it was interrupted ({work_path(self.prefix)} "
                "is beside it, what it was made from is not), so nothing says whose "
                "tokens these are; finish it with `alia-ctx tokenize CONFIG --source "
                f"{self.prefix.name}`, or, where the store was put here by hand, remove "
                "that folder"
            )
        self._read_index()

    def _read_index(self) -> None:
        raw = _map(self.index_path, np.dtype(np.uint8))
        if raw.size < _HEADER.size or bytes(raw[:9]) != _MAGIC:
            raise DataError(
                f"{self.index_path}: no Megatron indexed dataset (bad header); "
                "tokenize the source again"
            )
        _, version, code, sequences, indices = _HEADER.unpack(
            bytes(raw[: _HEADER.size])
        )
        if version != 1 or code not in _DTYPES:
            raise DataError(
                f"{self.index_path}: version {version}, type {code}; only integers of "
                "version 1 are read"
            )
        ends = np.cumsum(
            [_HEADER.size, 4 * sequences, 8 * sequences, 8 * indices]
        ).tolist()
        if raw.size not in (ends[3], ends[3] + sequences) or indices < 1:
            raise DataError(
                f"{self.index_path}: {raw.size} bytes, its header says {ends[3]}; copy "
                "or build it again"
            )
        if raw[ends[3] :].any():
            modes = ", ".join(str(mode) for mode in np.unique(raw[ends[3] :]) if mode)
            raise DataError(
                f"{self.index_path}: holds sequences of modes {modes} beside text (a "
                "multimodal dataset); write its text sequences to a store of their own"
            )
        self.sequence_lengths: np.ndarray = raw[ends[0] : ends[1]].view(np.int32)
        self._pointers: np.ndarray = raw[ends[1] : ends[2]].view(np.int64)
        self._documents: np.ndarray = raw[ends[2] : ends[3]].view(np.int64)
        self.dtype = np.dtype(_DTYPES[code])
        self._map_tokens()

    def _map_tokens(self) -> None:
        size = self.data_path.stat().st_size
        needed = 0
        if self.sequence_lengths.size:
            needed = (
                int(self._pointers[-1])
                + int(self.sequence_lengths[-1]) * self.dtype.itemsize
            )
        if self._documents[0] != 0 or self._documents[-1] != self.sequence_lengths.size:
            raise DataError(
                f"{self.index_path}: documents do not cover all sequences; build the store again"
            )
        if size != needed:
            raise DataError(
                f"{self.data_path}: {size} bytes, its index says {needed}; copy or build it again"
            )
        self.tokens = _map(self.data_path, self.dtype)

    @property
    def n_documents(self) -> int:
        return self._documents.size - 1

    @property
    def n_tokens(self) -> int:
        return self.tokens.size

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int32 or int64 [n_documents];

        the first use checks the whole index.
        """
        counts = np.diff(self._documents)
        if counts.size and counts.min() < 0:
            raise DataError(
                f"{self.index_path}: document boundaries go backwards; build the store again"
            )
        expected = np.zeros(self.sequence_lengths.size + 1, np.int64)
        np.cumsum(self.sequence_lengths, out=expected[1:])
        if self.sequence_lengths.size and self.sequence_lengths.min() < 0:
            raise DataError(
                f"{self.index_path}: a sequence of negative length; build the store again"
            )
        if not np.array_equal(expected[:-1] * self.dtype.itemsize, self._pointers):
            raise DataError(
                f"{self.index_path}: sequences do not lie one after another; rewrite "
                "the store in order"
            )
        if counts.size == self.sequence_lengths.size and (
            not counts.size or counts.max() == 1
        ):
            return self.sequence_lengths
        return np.diff(expected[self._documents])

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Index into `tokens` of the first token of each of `documents`; int64, as many."""
        sequences = self._documents[documents]
        if self._pointers.size == 0:
            return np.zeros_like(sequences)
        inside = np.minimum(sequences, self._pointers.size - 1)
        begins = self._pointers[inside] // self.dtype.itemsize
        return np.where(sequences == inside, begins, self.n_tokens)

    def document(
        self, number: int, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Tokens [start, stop) of document `number`, as a view of the file in the
        store's own integer type.
        """
        if not 0 <= number < self.n_documents:
            raise DataError(
                f"{self.prefix}: document {number} of {self.n_documents} does not exist"
            )
        begin, end = (int(each) for each in self.starts(np.array([number, number + 1])))
        return self.tokens[begin:end][start:stop]

    @cached_property
    def weights(self) -> np.ndarray | None:
        """Loss weight of each token as a target, uint8 [n_tokens], 0 or 1, as a view of
        the file; None where the store has none, which is weight 1 throughout.

        Raises DataError where the file is cut off, was made for other tokens, or is
        gone although the sidecar names it.
        """
        return _read_weights(self)

    @cached_property
    def _range(self) -> tuple[int, int]:
        return known_range(
            self.data_path, self._data_fingerprint, self.tokens, self.sidecar
        )

    def largest_token_id(self) -> int:
        """Largest token id of the store, -1 where it is empty.

        Written down when the store was; one of other origin is read whole, once.
        """
        return self._range[1]

    def check_vocabulary(self, vocab_size: int) -> None:
        """DataError where a token id is negative or has no row among `vocab_size`."""
        smallest, largest = self._range
        if smallest < 0 or largest >= vocab_size:
            number = smallest if smallest < 0 else largest
            raise DataError(
                f"{self.data_path}: holds token id {number}, the model has ids 0 to "
                f"{vocab_size - 1} (model.vocab_size); tokenize with this model's "
                "tokenizer, or correct the store"
            )

    @cached_property
    def sidecar(self) -> dict[str, object]:
        """What `tokenize` wrote beside the store; empty for one made elsewhere."""
        return read_sidecar(self.prefix)

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content, in hex, of the files and the sidecar's checksum of all tokens."""
        return self._fingerprint(str(self.sidecar.get("bin_checksum", "")))

    @cached_property
    def _other_fingerprint(self) -> str:
        stated = "bin_checksum" in self.sidecar
        return self._fingerprint("" if stated else file_checksum(self.data_path))

    def is_called(self, fingerprint: str) -> bool:
        """Whether this content has that fingerprint, with its sidecar beside it or not:
        a copy of `.bin` and `.idx` alone is the same content. Reads all bytes where
        there is no sidecar and the fingerprint is another.
        """
        return fingerprint == self.fingerprint or fingerprint in self.fingerprints

    @property
    def fingerprints(self) -> tuple[str, str]:
        """All that `is_called` answers to."""
        return self.fingerprint, self._other_fingerprint

    def _fingerprint(self, bin_checksum: str) -> str:
        parts = [bin_checksum, self._index_fingerprint, self._data_fingerprint]
        if self.weights is not None:
            parts.append(file_fingerprint(self.weights_path))
        return checksum(" ".join(parts).encode())

    @cached_property
    def _data_fingerprint(self) -> str:
        return file_fingerprint(self.data_path)

    @cached_property
    def _index_fingerprint(self) -> str:
        return file_fingerprint(self.index_path)

    def verify(self) -> None:
        """Compare all bytes with the checksums in the sidecar;

        DataError where they differ or there is no sidecar.
        """
        files = [(self.data_path, "bin_checksum"), (self.index_path, "idx_checksum")]
        if self.weights is not None:
            files.append((self.weights_path, "weights_checksum"))
        for path, key in files:
            recorded = self.sidecar.get(key)
            if recorded is None:
                raise DataError(
                    f"{self.sidecar_path} holds no {key}: this store was not written "
                    "by alia-ctx tokenize"
                )
            if file_checksum(path) != recorded:
                raise DataError(
                    f"{path}: checksum is not the {recorded} recorded when it was "
                    "written; build it again"
                )


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # A plain array over the map: slices of np.memmap itself cost microseconds each,
    # which short documents feel.
    return (
        np.asarray(np.memmap(path, dtype, "r"))
        if path.stat().st_size
        else np.empty(0, dtype)
    )


def _read_weights(store: TokenStore) -> np.ndarray | None:
    if not store.weights_path.is_file():
        if "weights_checksum" in store.sidecar:
            raise DataError(
                f"{store.weights_path} does not exist, but {store.sidecar_path} names "
                "it; without it everything would be trained on: copy it, or "
                "tokenize the source again"
            )
        return None
    raw = _map(store.weights_path, np.dtype(np.uint8))
    head = bytes(raw[: _WEIGHTS_HEADER.size])
    is_ours = _WEIGHTS_MAGIC.startswith(head[:8]) or "weights_checksum" in store.sidecar
    if not is_ours and raw.size != _WEIGHTS_HEADER.size + store.n_tokens:
        return None  # somebody else's; one of ours that is damaged has its size still
    if head[:8] != _WEIGHTS_MAGIC or len(head) < _WEIGHTS_HEADER.size:
        raise DataError(
            f"{store.weights_path}: no file of loss weights (bad header); tokenize "
            "the source again with --overwrite"
        )
    if head != _weights_header(store):
        raise DataError(
            f"{store.weights_path}: made for other tokens than those of "
            f"{store.data_path}; tokenize the source again with --overwrite, or remove "
            "it to train on every token"
        )
    if raw.size != _WEIGHTS_HEADER.size + store.n_tokens:
        raise DataError(
            f"{store.weights_path}: {raw.size - _WEIGHTS_HEADER.size} weights for "
            f"{store.n_tokens} tokens; copy or build it again"
        )
    return raw[_WEIGHTS_HEADER.size :]


def token_dtype(vocabulary: int) -> np.dtype:
    """Smallest integer type that Megatron uses for a vocabulary of this size: uint16 or int32."""
    return np.dtype(np.uint16 if vocabulary < UINT16_VOCABULARY else np.int32)


def write_index(stream: IO[bytes], lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write the `.idx` for documents of `lengths` tokens each (one sequence a document)."""
    counts = np.asarray(lengths, np.int32)
    ends = np.cumsum(counts, dtype=np.int64) * dtype.itemsize
    stream.write(_HEADER.pack(_MAGIC, 1, _CODES[dtype], counts.size, counts.size + 1))
    stream.write(counts.tobytes())
    stream.write((ends - counts.astype(np.int64) * dtype.itemsize).tobytes())
    stream.write(np.arange(counts.size + 1, dtype=np.int64).tobytes())


def write_weights(store: TokenStore, blocks: Iterable[np.ndarray]) -> None:
    """Write `PREFIX.weights` for the store as it is now.

    blocks: 0 or 1 (integers or bools) for each token, in the order of the store's
        tokens, cut anywhere. DataError for other values or another number of them.
    """
    written = 0
    with atomic_file(store.weights_path) as stream:
        stream.write(_weights_header(store))
        for block in map(np.asarray, blocks):
            if ((block != 0) & (block != 1)).any():
                raise DataError(
                    f"{store.weights_path}: loss weights must be 0 or 1, not "
                    f"{block[(block != 0) & (block != 1)][0]}"
                )
            stream.write(block.astype(np.uint8).tobytes())
            written += block.size
        if written != store.n_tokens:
            raise DataError(
                f"{store.weights_path}: {written} loss weights for {store.n_tokens} "
                "tokens; give one for each"
            )
    vars(store).pop("weights", None)
    vars(store).pop("fingerprint", None)


def _weights_header(store: TokenStore) -> bytes:
    content = [store._data_fingerprint, store._index_fingerprint]
    identity = bytes.fromhex(checksum(" ".join(content).encode()))
    return _WEIGHTS_HEADER.pack(_WEIGHTS_MAGIC, store.n_tokens, identity)


def write_store(
    prefix: str | Path,
    documents: Iterable[np.ndarray],
    vocabulary: int,
    weights: Iterable[np.ndarray] | None = None,
) -> TokenStore:
    """Write documents in memory as a store and open it, for tests and experiments.

    `weights`: 0 or 1 for each token of each document.
    """
    dtype = token_dtype(vocabulary)
    kept = [np.asarray(tokens, dtype) for tokens in documents]
    path = Path(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".weights").unlink(missing_ok=True)
    with open(path.with_name(path.name + ".bin"), "wb") as stream:
        for tokens in kept:
            stream.write(tokens.tobytes())
    with open(path.with_name(path.name + ".idx"), "wb") as stream:
        write_index(stream, np.array([tokens.size for tokens in kept], np.int32), dtype)
    store = TokenStore(path)
    if weights is not None:
        write_weights(store, weights)
    return store
