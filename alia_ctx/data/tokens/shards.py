"""Shards of a source -> tokens, in worker processes; each shard is whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alia_ctx.data.documents import (
    Document,
    DocumentCounts,
    Slice,
    SourceSpec,
    read_slice,
)
from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, write_json

_BATCH_CHARACTERS = (
    1 << 20
)  # one encode call: enough to amortise it, little enough to bound memory


@dataclass(frozen=True)
class TokenizeProgress:
    """State after one more shard:

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


def encode_all(
    job: Job,
    shards: list[tuple[Slice, ...]],
    workers: int,
    progress: Callable[[TokenizeProgress], None] | None,
) -> int:
    """Encode the shards that are not there yet; returns how many were."""
    sizes = [sum(part.size for part in shard) for shard in shards]
    total = TokenizeProgress(0, sum(sizes), 0, len(shards), 0, 0)
    missing = [
        number
        for number in range(len(shards))
        if not shard_path(job.work, number, "json").is_file()
    ]
    done = [number for number in range(len(shards)) if number not in set(missing)]
    for number in done:
        total = _advance(
            total, sizes[number], read_shard_note(job.work, number), progress
        )
    for number, note in _encode_missing(job, shards, missing, workers):
        total = _advance(total, sizes[number], note, progress)
    return len(done)


def _advance(
    total: TokenizeProgress,
    size: int,
    note: dict[str, Any],
    progress: Callable[[TokenizeProgress], None] | None,
) -> TokenizeProgress:
    total = TokenizeProgress(
        total.bytes_done + size,
        total.bytes_total,
        total.shards_done + 1,
        total.shards_total,
        total.documents + note["counts"]["documents"],
        total.tokens + note["tokens"],
    )
    if progress is not None:
        progress(total)
    return total


def _encode_missing(
    job: Job,
    shards: list[tuple[Slice, ...]],
    missing: list[int],
    workers: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    if min(workers, len(missing)) <= 1:
        for number in missing:
            yield number, _encode_shard(job, number, shards[number])
        return
    # spawn, not fork: the tokenizer's Rust threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, _start_worker, (job,)
    ) as pool:
        futures = {
            pool.submit(_work_on, number, shards[number]): number for number in missing
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{job.work}: a worker process died (out of memory?); finished shards are kept, "
                "so run again with fewer workers or a smaller max_document_bytes"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: Job | None = None  # per process, set once by _start_worker


def _start_worker(job: Job) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker, one core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = job


def _end_with_parent() -> None:
    """A pool's workers wait for ever when their parent is killed: leave with it instead."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_on(number: int, shard: tuple[Slice, ...]) -> dict[str, Any]:
    if _worker is None:
        raise RuntimeError("worker process was not initialised")
    return _encode_shard(_worker, number, shard)


def shard_path(work: Path, number: int, kind: str) -> Path:
    return work / f"shard-{number:06d}.{kind}"


def read_shard_note(work: Path, number: int) -> dict[str, Any]:
    return dict(json.loads(shard_path(work, number, "json").read_text("utf-8")))


def _encode_shard(job: Job, number: int, shard: tuple[Slice, ...]) -> dict[str, Any]:
    """Write tokens, lengths, ids of one shard, and last the note that says that it is whole."""
    counts = DocumentCounts()
    lengths: list[int] = []
    ids: list[str] = []
    files: list[str] = []
    ranges: list[tuple[int, int]] = []
    digest = xxhash.xxh3_128()
    with atomic_file(shard_path(job.work, number, "bin")) as stream:
        documents = (
            document
            for part in shard
            for document in read_slice(part, job.spec, counts)
        )
        for batch in _batches(documents):
            encoded = job.encoder.encode([document.text for document in batch])
            for document, (tokens, spelled, refused) in zip(
                batch, encoded, strict=True
            ):
                counts.add_spelled(spelled)
                if refused or not tokens.size:
                    reason = "special_token" if refused else "empty"
                    detail = ", ".join(spelled) if refused else "no token"
                    counts.documents -= 1
                    counts.leave_out(reason, f"{document.id} ({detail})")
                    continue
                data = tokens.tobytes()
                stream.write(data)
                digest.update(data)
                lengths.append(tokens.size)
                ranges.append((int(tokens.min()), int(tokens.max())))
                ids.append(document.id)
                files.append(document.file)
    with atomic_file(shard_path(job.work, number, "npy")) as stream:
        np.save(stream, np.array(lengths, np.int32))
    # as JSON: importing a Parquet library would cost each worker more than all its files
    with atomic_file(shard_path(job.work, number, "ids")) as stream:
        stream.write(json.dumps({"id": ids, "file": files}).encode())
    note = {
        "tokens": sum(lengths),
        "smallest": min((low for low, _ in ranges), default=0),
        "largest": max((high for _, high in ranges), default=-1),
        "counts": asdict(counts),
        "checksum": digest.hexdigest(),
    }
    write_json(shard_path(job.work, number, "json"), note)
    return note


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
