"""A source -> its token store: restartable, the same bytes however often it is interrupted."""

from __future__ import annotations

import fcntl
import glob
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alia_ctx.data.documents import (
    DocumentCounts,
    SourceSpec,
    find_inputs,
    plan_shards,
    usual_shard_bytes,
)
from alia_ctx.data.documents.inputs import in_utf8
from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.shards import (
    Job,
    TokenizeProgress,
    encode_all,
    piece_path,
    pieces_of,
    read_note,
)
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import write_index
from alia_ctx.data.tokens.store_files import TEXT_SUFFIXES, store_path
from alia_ctx.data.tokens.tokenizer import renewed
from alia_ctx.data.tokens.tokenizer_files import TOKENIZER, tokenizer_statement
from alia_ctx.data.tokens.vocabulary import recorded_range, vocabulary_problems
from alia_ctx.data.tokens.work_folder import make_work, publish, remove_work, work_path
from alia_ctx.data.tokens.written import whole_sidecar
from alia_ctx.errors import AliaError, DataError
from alia_ctx.files import (
    atomic_file,
    file_checksum,
    file_fingerprint,
    parse_json,
    write_json,
)

_FORMAT = 2


@dataclass(frozen=True)
class TokenizeReport:
    """What a finished store holds; `unchanged` if it was there already and nothing was done."""

    name: str
    prefix: Path
    tokens: int
    counts: DocumentCounts
    ignored_files: dict[str, str]
    bin_checksum: str
    shards: int
    shards_reused: int
    unchanged: bool
    seconds: float

    def remarks(self) -> list[str]:
        """What a person should read: what was left out and why, with first examples,
        and the special tokens that the text spells.
        """
        counts = self.counts
        lines = []
        if counts.left_out:
            lines.append(f"{counts.left_out:,} documents left out: {counts.reasons()}")
            lines += [f"  {example}" for example in counts.examples]
        if counts.special_tokens:
            most = sorted(counts.special_tokens.items(), key=lambda item: -item[1])
            told = ", ".join(f"{token!r} {number:,}" for token, number in most[:10])
            lines.append(f"special tokens spelled in the text: {told}")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.ignored_files.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            lines.append(f"not read ({reason}): {', '.join(names[:5])}{more}")
        return lines


def tokenize_source(
    spec: SourceSpec,
    name: str,
    tokenizer_dir: str | Path,
    out_dir: str | Path,
    *,
    workers: int = 1,
    append_eos: bool = True,
    prepend_bos: bool = False,
    special_tokens: SpecialTokens = "split",
    model_type: str | None = None,
    vocab_size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[TokenizeProgress], None] | None = None,
    shard_bytes: int | None = None,
) -> TokenizeReport:
    """Tokenise a source into `OUT_DIR/NAME.bin`, `.idx`, `.documents.parquet` (id and file
    of each) and `.json`.

    Shards are finished one by one under `OUT_DIR/NAME.work` and joined at the end,
    `.json` last; a run that was stopped, however, goes on where it was, and the files
    depend on nothing but inputs, tokenizer and options (not on `workers`). Needs room
    for the tokens twice. A finished store of the same inputs is left as it is. Each
    worker is one process on one core.

    `special_tokens`: what special tokens that a document spells become: pieces like any
    other text (`split`), their ids (`keep`), or a reason to leave the document out
    (`refuse`). `model_type` is that of the model beside which the tokenizer will lie, as
    `AutoTokenizer` heeds it; `vocab_size` is its number of token ids.

    Raises DataError: inputs missing or broken, a tokenizer that transformers cannot load
    or that has ids beyond `vocab_size`, no usable document, or another store or
    unfinished run in the way and `overwrite` not set.
    """
    began = time.monotonic()
    inputs = find_inputs(spec.inputs)
    encoder = TextEncoder(
        tokenizer_dir,
        append_eos=append_eos,
        prepend_bos=prepend_bos,
        special_tokens=special_tokens,
        model_type=model_type,
    )
    if vocab_size is not None and encoder.vocabulary > vocab_size:
        problems = vocabulary_problems(tokenizer_dir, vocab_size, model_type=model_type)
        raise DataError("\n".join(map(str, problems)))
    shard_bytes = shard_bytes or usual_shard_bytes(inputs.files)
    prefix = Path(out_dir) / name
    identity = source_identity(spec, inputs.files, encoder, shard_bytes)
    finished = _finished(prefix, identity, encoder, overwrite)
    if finished is not None:
        return _report(
            name,
            prefix,
            {**finished, "ignored_files": inputs.ignored},
            shards_reused=0,
            unchanged=True,
            seconds=time.monotonic() - began,
        )
    shards = plan_shards(inputs.files, spec, shard_bytes)
    with _work_folder(prefix, identity, overwrite) as work:
        job = Job(spec, encoder, work)
        reused = encode_all(job, shards, workers, progress)
        sidecar = _join(
            prefix,
            work,
            len(shards),
            encoder,
            {
                "identity": identity,
                "ignored_files": inputs.ignored,
                "found_by": {in_utf8(f): by for f, by in inputs.found_by.items()},
                TOKENIZER: tokenizer_statement(Path(tokenizer_dir)),
            },
        )
    remove_work(prefix)
    return _report(
        name,
        prefix,
        sidecar,
        shards_reused=reused,
        unchanged=False,
        seconds=time.monotonic() - began,
    )


def source_identity(
    spec: SourceSpec, files: Iterable[str], encoder: TextEncoder, shard_bytes: int
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "inputs": {name: file_fingerprint(Path(name)) for name in files},
        "text_key": spec.text_key,
        "id_key": spec.id_key,
        "max_document_bytes": spec.max_document_bytes,
        "tokenizer": encoder.fingerprint,
        "special_ids": encoder.special_ids,
        "special_tokens": encoder.special_tokens,
        "shard_bytes": shard_bytes,
    }


def identity_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict) and key == "inputs":
            changed = sorted(
                name
                for name in {*before, *after}
                if before.get(name) != after.get(name)
            )
            if changed:
                lines.append(
                    f"  inputs: {len(changed)} added, removed or changed, "
                    f"{', '.join(changed[:3])} among them"
                )
        elif before != after:
            lines.append(f"  {key}: {before} there, {after} asked")
    return "\n".join(lines)


def _paths(prefix: Path) -> tuple[Path, Path, Path, Path]:
    """`.bin`, `.idx`, `.documents.parquet` and `.json`, in the order in which they get
    their names.
    """
    bin_, idx, documents, sidecar = (store_path(prefix, s) for s in TEXT_SUFFIXES)
    return bin_, idx, documents, sidecar


def _finished(
    prefix: Path, identity: dict[str, Any], encoder: TextEncoder, overwrite: bool
) -> dict[str, Any] | None:
    """The sidecar of a finished store of this identity, None if there is work to do,
    else DataError.
    """
    data, index, _, sidecar_path = _paths(prefix)
    if sidecar_path.is_file():
        there = data.is_file() and index.is_file()
        sidecar = whole_sidecar(prefix, overwrite) if there else {}
        old = renewed(
            sidecar.get("identity"), encoder.former_fingerprint, encoder.fingerprint
        )
        if old == identity:
            with suppress(AliaError):  # somebody else's of that name stays
                remove_work(prefix)
            return sidecar
        if not overwrite:
            raise DataError(
                f"{prefix}: a finished store is there already and differs:\n"
                f"{identity_differences(old if isinstance(old, dict) else {}, identity)}\n"
                "choose another name or allow overwriting"
            )
    elif (
        (data.exists() or index.exists())
        and not overwrite
        and not work_path(prefix).is_dir()
    ):
        raise DataError(
            f"{prefix}.bin/.idx exist and are not ours; choose another name or allow overwriting"
        )
    return None


@contextmanager
def _work_folder(
    prefix: Path, identity: dict[str, Any], overwrite: bool
) -> Iterator[Path]:
    """The folder of finished shards for this identity, locked against a second run."""
    with open((work := make_work(prefix)) / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{work}: another run is writing this store; wait for it or stop it"
            ) from error
        except OSError:
            # A file system without locks: shards are renamed into place, so a second run
            # does no harm to them.
            pass
        _claim(work, identity, overwrite)
        for final in _paths(prefix):
            for leftover in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
                leftover.unlink()
        yield work


def _claim(work: Path, identity: dict[str, Any], overwrite: bool) -> None:
    path = work / "identity.json"
    if path.is_file():
        old = read_note(path)
        if old == identity:
            return
        if not overwrite:
            raise DataError(
                f"{work}: holds an unfinished run that "
                f"differs:\n{identity_differences(old, identity)}\n"
                "restore that to go on with it, or start anew: `alia-ctx tokenize CONFIG "
                f"--source {work.name.removesuffix('.work')} --overwrite`"
            )
        for file in work.glob("shard-*"):
            file.unlink()
    write_json(path, identity)


def _join(
    prefix: Path, work: Path, shards: int, encoder: TextEncoder, about: dict[str, Any]
) -> dict[str, Any]:
    """Join the shards to the final files, in the work folder first: an old store stays as
    it is, with what it states, until the new one is whole.
    """
    made = work / "joined" / prefix.name
    made.parent.mkdir(exist_ok=True)
    data_path, index_path, ids_path, sidecar_path = _paths(made)
    pieces = [piece for number in range(shards) for piece in pieces_of(work, number)]
    notes = [read_note(piece_path(work, piece, "json")) for piece in pieces]
    counts = DocumentCounts()
    for note in notes:
        counts.add(DocumentCounts(**note["counts"]))
    if not counts.documents:
        raise DataError(
            f"{prefix.name}: no usable document in the inputs; left out: "
            f"{counts.reasons()}; {'; '.join(counts.examples)}"
        )
    lengths = np.concatenate(
        [np.load(piece_path(work, piece, "npy")) for piece in pieces]
    )
    with atomic_file(data_path) as stream:
        bin_checksum = _append_tokens(stream, work, pieces, notes)
    with atomic_file(index_path) as stream:
        write_index(stream, lengths, encoder.dtype)
    with atomic_file(ids_path) as stream:
        _append_ids(stream, work, pieces)
    sidecar = {
        **about,
        "tokens": int(lengths.sum(dtype=np.int64)),
        "vocabulary": encoder.vocabulary,
        "token_range": recorded_range(
            file_fingerprint(data_path),
            min(note["smallest"] for note in notes if note["tokens"]),
            max(note["largest"] for note in notes if note["tokens"]),
        ),
        "counts": asdict(counts),
        "shards": shards,
        "bin_checksum": bin_checksum,
        "idx_checksum": file_checksum(index_path),
        "documents_checksum": file_checksum(ids_path),
    }
    write_json(sidecar_path, sidecar)
    publish(made, prefix, TEXT_SUFFIXES)
    return sidecar


def _append_tokens(
    stream: Any, work: Path, pieces: list[int | str], notes: list[dict[str, Any]]
) -> str:
    whole = xxhash.xxh3_128()
    for piece, note in zip(pieces, notes, strict=True):
        path = piece_path(work, piece, "bin")
        digest = xxhash.xxh3_128()
        with open(path, "rb") as shard:
            while block := shard.read(16 << 20):
                stream.write(block)
                digest.update(block)
                whole.update(block)
        if digest.hexdigest() != note["checksum"]:
            raise DataError(
                f"{path}: is not what was written there; delete "
                f"{path.with_suffix('.json')} and run again"
            )
    return whole.hexdigest()


def _append_ids(stream: Any, work: Path, pieces: list[int | str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("file", pa.string())])
    with pq.ParquetWriter(stream, schema) as writer:
        for piece in pieces:
            columns = parse_json(piece_path(work, piece, "ids").read_bytes())
            writer.write_table(pa.table(columns, schema))


def _report(
    name: str,
    prefix: Path,
    sidecar: dict[str, Any],
    *,
    shards_reused: int,
    unchanged: bool,
    seconds: float,
) -> TokenizeReport:
    return TokenizeReport(
        name=name,
        prefix=prefix,
        tokens=sidecar["tokens"],
        counts=DocumentCounts(**sidecar["counts"]),
        ignored_files=dict(sidecar["ignored_files"]),
        bin_checksum=sidecar["bin_checksum"],
        shards=sidecar["shards"],
        shards_reused=shards_reused,
        unchanged=unchanged,
        seconds=seconds,
    )
