"""The text that models are measured on: a run's held-out store, or files read now."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.documents import DocumentCounts, SourceSpec, read_documents
from alia_ctx.data.tokens import TextEncoder, TokenStore
from alia_ctx.errors import DataError
from alia_ctx.evaluation.held_out import Documents, StoredText
from alia_ctx.files import checksum
from alia_ctx.workflow.stores import open_store

_BATCH = 16
_HAYSTACK_DOCUMENTS = 64


def stored_text(run: RunConfig) -> StoredText:
    """The held-out store of a run, with the inputs that its documents are from."""
    store = open_store(run, HELD_OUT)
    spec = run.evaluation.held_out
    inputs = [] if spec is None else list(spec.inputs)
    files = _files(store) if len(inputs) > 1 else None
    if files is None:
        return StoredText(store)
    owner = {file: _input_of(file, inputs) for file in set(files)}
    return StoredText(store, inputs, np.array([owner[file] for file in files]))


def _files(store: TokenStore) -> list[str] | None:
    """The file that each document is from; None where nobody wrote it down."""
    path = store.prefix.with_name(store.prefix.name + ".documents.parquet")
    if not path.is_file():
        return None
    import pyarrow.parquet as pq

    files: list[str] = pq.read_table(path, columns=["file"])["file"].to_pylist()
    return files if len(files) == store.n_documents else None


def _input_of(file: str, inputs: Sequence[str]) -> int:
    """Which of a source's inputs (file, directory or glob) names a file."""
    for number, pattern in enumerate(inputs):
        is_below = Path(file).is_relative_to(pattern)
        if is_below or fnmatch.fnmatch(file, pattern):
            return number
    return 0


class ReadText:
    """Documents of files, tokenised now and held in memory: as many as are measured.

    Args:
        inputs: files, directories or globs; each is a source.
        encoder: of the model that reads them.
        lengths: tokens that documents are shown at; shorter ones are left out.
        documents: how many of the longest length are enough, for each source.
        text_key: field or column that has the text, of inputs that are records.

    Of documents that are equal the first alone is kept, and `copies` counts the others;
    `counts` what could not be used of all that was read.
    DataError where there is no document, or none has the shortest length.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        encoder: TextEncoder,
        lengths: Sequence[int],
        documents: int,
        text_key: str = "text",
    ) -> None:
        self.where = ", ".join(inputs)
        self.sources = tuple(inputs) if len(inputs) > 1 else ()
        self._documents: list[NDArray[np.integer]] = []
        self._source_of: list[int] = []
        self._longest = 0
        self._known: set[str] = set()
        self.counts = DocumentCounts()
        self.copies = 0
        self._first: list[NDArray[np.integer]] = []
        for number, name in enumerate(inputs):
            spec = SourceSpec(inputs=[name], text_key=text_key)
            self._read(number, spec, encoder, lengths, documents)
        if not self._documents:
            left_out = (
                f"; left out: {self.counts.reasons()}" if self.counts.left_out else ""
            )
            raise DataError(
                f"{self.where}: no document has {min(lengths):,} tokens (the longest has "
                f"{self._longest:,}{left_out}); give longer documents, or a shorter "
                "--context"
            )
        self.lengths: NDArray[np.integer] = np.array([len(d) for d in self._documents])
        parts = [checksum(np.asarray(d, np.int64).tobytes()) for d in self._documents]
        self.fingerprint = checksum(" ".join(parts).encode())

    def _read(
        self,
        source: int,
        spec: SourceSpec,
        encoder: TextEncoder,
        lengths: Sequence[int],
        documents: int,
    ) -> None:
        """Keep documents of one source until enough have the longest length."""
        longest = shortest = 0
        batch: list[str] = []

        def encode() -> None:
            nonlocal longest, shortest
            for encoded in encoder.encode(batch):
                size = len(encoded.tokens)
                if len(self._first) < _HAYSTACK_DOCUMENTS:
                    self._first.append(encoded.tokens[: max(lengths)])
                is_long = size >= max(lengths)
                if size < min(lengths) or (not is_long and shortest >= documents):
                    continue
                tokens = encoded.tokens[: max(lengths)]
                mark = checksum(np.asarray(tokens, np.int64).tobytes())
                if mark in self._known:
                    self.copies += 1
                    continue
                self._known.add(mark)
                longest, shortest = longest + is_long, shortest + 1
                self._documents.append(tokens)
                self._source_of.append(source)
            batch.clear()

        for document in read_documents(spec, self.counts):
            batch.append(document.text)
            if len(batch) == _BATCH:
                encode()
                if longest >= documents:
                    return
        encode()

    def sources_of(self, documents: Sequence[int]) -> list[int]:
        return [self._source_of[d] for d in documents]

    def document(self, number: int, start: int, stop: int) -> NDArray[np.integer]:
        return self._documents[number][start:stop]

    def beginnings(self, tokens: int) -> Iterator[NDArray[np.integer]]:
        """Of what was read, not of what was kept: that depends on the lengths asked for."""
        for first in self._first:
            yield first[:tokens]


def haystack_texts(text: Documents, tokenizer: Any, tokens: int) -> list[str]:
    """Documents as text, to hide needles in: as many as have `tokens` tokens together."""
    texts: list[str] = []
    total = 0
    for ids in islice(text.beginnings(tokens), _HAYSTACK_DOCUMENTS):
        numbers = ids.tolist()
        texts.append(tokenizer.decode(numbers, skip_special_tokens=True))
        total += len(ids)
        if total >= tokens:
            break
    return [text for text in texts if text.strip()]
