"""Shards of a source -> tokens, in worker processes; each piece is whole or not there.

A shard that holds one big stream (a compressed file, say) is encoded in blocks: one
process reads it once, and every worker encodes. Blocks depend on the file alone, so that
a run that was killed finds those that are done, whoever made them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alia_ctx.data.documents import (
    Document,
    DocumentCounts,
    Item,
    Slice,
    SourceSpec,
    read_blocks,
    read_items,
)
from alia_ctx.data.documents.inputs import in_utf8
from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.workers import leave_with_parent
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, read_object, write_json

_BATCH_CHARACTERS = (
    1 << 20
)  # one encode call: enough to amortise it, little enough to bound memory

Shard = tuple[Slice, ...]
Note = dict[str, Any]


@dataclass(frozen=True)
class TokenizeProgress:
    """State after one more shard, or block of one:

    input bytes, shards, documents and tokens so far, and bytes and shards in all.
    """

    bytes_done: int
    bytes_total: int
    shards_done: int
    shards_total: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Job:
    """All that a worker process needs."""

    spec: SourceSpec
    encoder: TextEncoder
    work: Path


@dataclass(frozen=True)
class _Finished:
    """A shard, or a block of one: its note, the bytes of the input, shards completed."""

    note: Note
    size: int
    shards: int


def encode_all(
    job: Job,
    shards: list[Shard],
    workers: int,
    progress: Callable[[TokenizeProgress], None] | None,
) -> int:
    """Encode the shards that are not there yet; returns how many were."""
    sizes = [sum(part.size for part in shard) for shard in shards]
    state = TokenizeProgress(0, sum(sizes), 0, len(shards), 0, 0)
    done = [number for number in range(len(shards)) if _is_there(job.work, number)]
    missing = [number for number in range(len(shards)) if number not in set(done)]

    def finished() -> Iterator[_Finished]:
        for number in done:
            yield _Finished(shard_totals(job.work, number), sizes[number], 1)
        useful = workers
        if not any(shards[number][0].block_bytes for number in missing):
            useful = min(workers, len(missing))
        if useful <= 1:
            for number in missing:
                yield from _encode_here(job, number, shards[number])
        else:
            yield from _encode_in_pool(job, shards, missing, useful)

    for each in finished():
        state = TokenizeProgress(
            state.bytes_done + each.size,
            state.bytes_total,
            state.shards_done + each.shards,
            state.shards_total,
            state.documents + each.note["counts"]["documents"],
            state.tokens + each.note["tokens"],
        )
        if progress is not None:
            progress(state)
    return len(done)


def _encode_here(job: Job, number: int, shard: Shard) -> Iterator[_Finished]:
    if shard[0].block_bytes is None:
        yield _Finished(_encode_shard(job, number, shard), _size(shard), 1)
        return
    rest, blocks = shard[0].size, 0
    for block, (items, size) in enumerate(read_blocks(shard[0], job.spec)):
        note = _finished_block(job.work, number, block)
        note = note or _encode_piece(job, piece_name(number, block), items)
        rest, blocks = rest - size, block + 1
        yield _Finished(note, size, 0)
    yield _complete(job.work, number, blocks, rest)


def _encode_in_pool(
    job: Job, shards: list[Shard], missing: list[int], workers: int
) -> Iterator[_Finished]:
    """Whole shards go to the workers first; streams that this process reads fill up."""
    streams = _streams(shards, missing, workers)
    pending: set[Future[_Finished]] = set()
    # spawn, not fork: the tokenizer's Rust threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        try:
            for number in missing:
                if number not in streams:
                    pending.add(pool.submit(_work_on_shard, number, shards[number]))
            for number in streams:
                yield from _encode_stream(job, number, shards[number][0], pool, workers)
            while pending:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        except BrokenProcessPool as error:
            raise DataError(
                f"{job.work}: a worker process died (out of memory?); finished shards are kept, "
                "so run again with fewer workers or a smaller max_document_bytes"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _streams(shards: list[Shard], missing: list[int], workers: int) -> list[int]:
    """The shards that this process reads for all workers.

    A worker that reads its own stream needs nobody to feed it, which is best while there
    are streams enough for all; one that is more than a worker's fair share, and those
    left over after whole rounds, would leave others idle.
    """
    fair = sum(_size(shards[number]) for number in missing) / workers
    blocked = [number for number in missing if shards[number][0].block_bytes]
    big = [number for number in blocked if _size(shards[number]) > fair]
    others = [number for number in blocked if _size(shards[number]) <= fair]
    return [*big, *others[len(others) // workers * workers :]]


def _encode_stream(
    job: Job, number: int, part: Slice, pool: ProcessPoolExecutor, workers: int
) -> Iterator[_Finished]:
    pending: set[Future[_Finished]] = set()
    rest, blocks = part.size, 0
    for block, (items, size) in enumerate(read_blocks(part, job.spec)):
        rest, blocks = rest - size, block + 1
        note = _finished_block(job.work, number, block)
        if note is not None:
            yield _Finished(note, size, 0)
            continue
        pending.add(pool.submit(_work_on_block, piece_name(number, block), items, size))
        # Two blocks a worker: one in work, one to go on with; the rest would be memory.
        while len(pending) >= 2 * workers:
            ready, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    while pending:
        ready, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ready)
    yield _complete(job.work, number, blocks, rest)


def _complete(work: Path, number: int, blocks: int, rest: int) -> _Finished:
    """Note that all blocks of a shard are there; `rest`: its bytes not yet counted."""
    write_json(piece_path(work, number, "json"), {"blocks": blocks})
    return _Finished({"tokens": 0, "counts": {"documents": 0}}, rest, 1)


def _finished_block(work: Path, number: int, block: int) -> Note | None:
    path = piece_path(work, piece_name(number, block), "json")
    return read_note(path) if path.is_file() else None


_worker: Job | None = None  # per process, set once by _start_worker


def _start_worker(job: Job) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker, one core
    leave_with_parent()
    _worker = job


def _job() -> Job:
    if _worker is None:
        raise RuntimeError("worker process was not initialised")
    return _worker


def _work_on_shard(number: int, shard: Shard) -> _Finished:
    for _ in _encode_here(_job(), number, shard):
        pass
    return _Finished(shard_totals(_job().work, number), _size(shard), 1)


def _work_on_block(piece: str, items: list[Item], size: int) -> _Finished:
    return _Finished(_encode_piece(_job(), piece, items), size, 0)


def _size(shard: Shard) -> int:
    return sum(part.size for part in shard)


def piece_name(number: int, block: int) -> str:
    return f"{number:06d}-{block:06d}"


def piece_path(work: Path, piece: int | str, kind: str) -> Path:
    """A file of a shard (by its number) or of a block of one (by its name)."""
    name = f"{piece:06d}" if isinstance(piece, int) else piece
    return work / f"shard-{name}.{kind}"


def read_note(path: Path) -> Note:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete {path.parent} to tokenize the "
            "source anew"
        ) from error


def _is_there(work: Path, number: int) -> bool:
    """Whether a shard is noted, and each of its blocks: one may have been deleted."""
    if not piece_path(work, number, "json").is_file():
        return False
    pieces = pieces_of(work, number)
    return all(piece_path(work, piece, "json").is_file() for piece in pieces)


def pieces_of(work: Path, number: int) -> list[int | str]:
    """The pieces that a finished shard consists of, in order."""
    blocks = read_note(piece_path(work, number, "json")).get("blocks")
    if blocks is None:
        return [number]
    return [piece_name(number, block) for block in range(blocks)]


def shard_totals(work: Path, number: int) -> Note:
    """Tokens and documents of a finished shard, in the form of a piece's note."""
    pieces = pieces_of(work, number)
    notes = [read_note(piece_path(work, piece, "json")) for piece in pieces]
    documents = sum(note["counts"]["documents"] for note in notes)
    tokens = sum(note["tokens"] for note in notes)
    return {"tokens": tokens, "counts": {"documents": documents}}


def _encode_shard(job: Job, number: int, shard: Sequence[Slice]) -> Note:
    items = (item for part in shard for item in read_items(part, job.spec))
    return _encode_piece(job, number, items)


def _encode_piece(job: Job, piece: int | str, items: Iterable[Item]) -> Note:
    """Write tokens, lengths, ids of one piece, and last the note that says that it is whole."""
    counts = DocumentCounts()
    lengths: list[int] = []
    ids: list[str] = []
    files: list[str] = []
    ranges: list[tuple[int, int]] = []
    digest = xxhash.xxh3_128()
    with atomic_file(piece_path(job.work, piece, "bin")) as stream:
        for batch in _batches(_documents(items, counts)):
            encoded = job.encoder.encode([document.text for document in batch])
            for document, (tokens, spelled, refused) in zip(
                batch, encoded, strict=True
            ):
                counts.add_spelled(spelled)
                if refused or not tokens.size:
                    reason = "special_token" if refused else "empty"
                    detail = ", ".join(spelled) if refused else "no token"
                    counts.leave_out(reason, f"{document.id} ({detail})")
                    continue
                counts.documents += 1
                data = tokens.tobytes()
                stream.write(data)
                digest.update(data)
                lengths.append(tokens.size)
                ranges.append((int(tokens.min()), int(tokens.max())))
                ids.append(document.id)
                files.append(document.file)
    with atomic_file(piece_path(job.work, piece, "npy")) as stream:
        np.save(stream, np.array(lengths, np.int32))
    # as JSON: importing a Parquet library would cost each worker more than all its files
    with atomic_file(piece_path(job.work, piece, "ids")) as stream:
        stream.write(json.dumps({"id": ids, "file": [*map(in_utf8, files)]}).encode())
    note = {
        "tokens": sum(lengths),
        "smallest": min((low for low, _ in ranges), default=0),
        "largest": max((high for _, high in ranges), default=-1),
        "counts": asdict(counts),
        "checksum": digest.hexdigest(),
    }
    write_json(piece_path(job.work, piece, "json"), note)
    return note


def _documents(items: Iterable[Item], counts: DocumentCounts) -> Iterator[Document]:
    for item in items:
        if isinstance(item, Document):
            yield item
        else:
            counts.leave_out(item.reason, item.where)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and size + len(document.text) > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch
