"""Rows -> encoded conversations, in blocks that worker processes share."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.counts import ChatCounts, LeftOutRow
from alia_ctx.data.chat.encoding import ChatEncoder
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.rows import Row, read_rows
from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.tokens.said import CALLS, SAYS
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.workers import leave_with_parent
from alia_ctx.errors import DataError

_ROWS = 256


@dataclass(frozen=True)
class EncoderSettings:
    """All that a worker process needs to make the same encoder; see `ChatEncoder`."""

    directory: str
    spec: ChatSpec
    max_tokens: int | None = None
    special_tokens: SpecialTokens = "split"
    model_type: str | None = None

    def encoder(self) -> ChatEncoder:
        return ChatEncoder(
            self.directory,
            self.spec,
            max_tokens=self.max_tokens,
            special_tokens=self.special_tokens,
            model_type=self.model_type,
        )


@dataclass
class EncodedBlock:
    """Documents of some rows: ids [tokens] one after another, uint8 weights [tokens] and
    what each is (`tokens.said`), uint8 [tokens]; lengths, names and files of each; what
    was left out.
    """

    ids: np.ndarray
    weights: np.ndarray
    said: np.ndarray
    lengths: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    left_out: list[LeftOutRow] = field(default_factory=list)
    counts: ChatCounts = field(default_factory=ChatCounts)


@dataclass(frozen=True)
class _Work:
    file: str
    rows: list[Row]
    id_key: str | None


def encoded_blocks(
    files: Iterable[str],
    settings: EncoderSettings,
    encoder: ChatEncoder,
    *,
    workers: int,
    max_bytes: int,
    id_key: str | None,
) -> Iterator[EncodedBlock]:
    """The rows of all files in order, encoded; what comes does not depend on `workers`."""
    work = (
        _Work(file, rows, id_key)
        for file in files
        for rows in _batches(read_rows(file, max_bytes, id_key))
    )
    first = list(islice(work, 2))
    if workers <= 1 or len(first) < 2:  # a pool takes seconds to start
        for part in (*first, *work):
            yield _encode(part, encoder)
        return
    # spawn, not fork: the tokenizer's Rust threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (settings,)) as pool:
        pending: deque[Future[EncodedBlock]] = deque()
        try:
            for part in (*first, *work):
                pending.append(pool.submit(_encode_here, part))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died (out of memory?); run again with fewer workers "
                "(data.workers)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _ROWS)):
        yield batch


_encoder: ChatEncoder | None = None


def _start(settings: EncoderSettings) -> None:
    global _encoder
    leave_with_parent()
    _encoder = settings.encoder()


def _encode_here(work: _Work) -> EncodedBlock:
    if _encoder is None:
        raise RuntimeError("worker process was not initialised")
    return _encode(work, _encoder)


def _encode(work: _Work, encoder: ChatEncoder) -> EncodedBlock:
    nothing = np.empty(0, np.uint8)
    block = EncodedBlock(np.empty(0, encoder.dtype), nothing, nothing)
    ids, weights, said = [block.ids], [block.weights], [block.said]
    for row in work.rows:
        try:
            record = row.record()
            encoded = encoder.encode(read_record(record, encoder.spec.format))
        except RowError as bad:
            block.left_out.append(LeftOutRow(row.where, bad.reason, bad.detail))
            block.counts.left_out[bad.reason] += 1
            if encoder.spec.strict:
                break
            continue
        ids.append(encoded.ids)
        weights.append(encoded.trained.astype(np.uint8))
        said.append((encoded.said * SAYS + encoded.called * CALLS).astype(np.uint8))
        block.lengths.append(encoded.ids.size)
        name = record.get(work.id_key) if work.id_key else None
        block.names.append(row.where if name is None else str(name))
        block.files.append(str(Path(work.file)))
        block.counts.conversations += 1
        block.counts.count(encoded.trained, encoded.cut_turns)
        block.counts.spelled.update(encoded.spelled)
        block.counts.unshown_reasoning += encoded.unshown_reasoning
    block.ids, block.weights = np.concatenate(ids), np.concatenate(weights)
    block.said = np.concatenate(said)
    return block
