"""The text that models are measured on: a run's held-out store, or files read now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.documents import (
    DocumentCounts,
    SourceSpec,
    find_inputs,
    read_documents,
)
from alia_ctx.data.documents.inputs import in_utf8
from alia_ctx.data.tokens import TextEncoder, TokenStore, document_table
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
    table = document_table(store) if len(inputs) > 1 else None
    if table is None:
        return StoredText(store)
    files = table["file"].to_pylist()
    found_by = _found_by(store, inputs, set(files))
    if found_by is None:
        return StoredText(store)
    numbers = [inputs.index(found_by[file]) for file in files]
    return StoredText(store, inputs, np.array(numbers))


def _found_by(
    store: TokenStore, inputs: Sequence[str], files: set[str]
) -> Mapping[str, str] | None:
    """The input that found each file: as the store says, whose files may be gone since;
    of one that an earlier release wrote, or whose inputs are written otherwise by now,
    as they find them now. None where they find them no more.
    """
    stated = store.sidecar.get("found_by")
    if isinstance(stated, Mapping) and {stated.get(f) for f in files} <= {*inputs}:
        return stated
    try:
        found = find_inputs(inputs).found_by
    except DataError:
        return None
    now = {in_utf8(file): pattern for file, pattern in found.items()}
    return now if files <= now.keys() else None


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
