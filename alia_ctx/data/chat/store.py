"""Conversations -> a token store with a weight for each target."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.chat.blocks import EncodedBlock, EncoderSettings, encoded_blocks
from alia_ctx.data.chat.counts import ChatCounts, FirstOfEach, LeftOutRow
from alia_ctx.data.chat.encoding import ChatEncoder
from alia_ctx.data.documents.inputs import SourceSpec, find_inputs
from alia_ctx.data.tokens.remedy import making_anew
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import TokenStore, write_index, write_weights
from alia_ctx.data.tokens.store_files import (
    CHAT_SUFFIXES,
    DOCUMENTS,
    LEFT_OUT,
    SAID,
    store_path,
)
from alia_ctx.data.tokens.tokenizer_files import TOKENIZER, tokenizer_statement
from alia_ctx.data.tokens.vocabulary import recorded_range, vocabulary_problems
from alia_ctx.data.tokens.work_folder import (
    is_of_conversations,
    publish,
    remove_work,
    work_path,
)
from alia_ctx.data.tokens.written import whole_sidecar
from alia_ctx.errors import DataError
from alia_ctx.files import file_checksum, file_fingerprint, write_json
from alia_ctx.identity import differences, statement

_FORMAT = 4


@dataclass(frozen=True)
class ChatReport:
    """What a finished store holds; `unchanged` if it was there and nothing was done.

    `left_out` are the first rows of each reason; all are in `PREFIX.left_out.jsonl`.
    """

    name: str
    prefix: Path
    counts: ChatCounts
    left_out: list[LeftOutRow]
    ignored_files: dict[str, str]
    unchanged: bool
    seconds: float

    def remarks(self) -> list[str]:
        """What a person should read."""
        counts = self.counts
        share = counts.trained_tokens / max(counts.tokens, 1)
        lines = [f"{counts.trained_tokens:,} tokens ({share:.0%}) are trained targets"]
        lines += counts.lines(self.left_out)
        return [
            *lines,
            *(f"not read: {f} ({w})" for f, w in self.ignored_files.items()),
        ]


def write_chat_store(
    spec: SourceSpec,
    name: str,
    tokenizer_dir: str | Path,
    out_dir: str | Path,
    *,
    max_tokens: int | None = None,
    workers: int = 1,
    special_tokens: SpecialTokens = "split",
    model_type: str | None = None,
    vocab_size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ChatReport:
    """Write the conversations of a source (`spec.chat`) as `OUT_DIR/NAME.bin`, `.idx`,
    `.weights` (1 for each target that is trained), `.said` (1 for each token that a user
    or the assistant says), `.documents.parquet` (id and file of
    each), `.left_out.jsonl` (each row that is not used, with its reason) and `.json`.

    A conversation is a document, in the order of the inputs. What is written depends on
    nothing but inputs, tokenizer, template and options; a finished store of the same is
    left as it is. One writer at a time: whoever calls holds the lock. `max_tokens` is
    used where the source gives none; `progress` hears conversations and tokens so far.

    Raises DataError: inputs missing or broken, no conversation that can be used, a row
    that cannot be where `strict` is set, a tokenizer or template that does not fit,
    another store in the way and `overwrite` not set.
    """
    began = time.monotonic()
    settings = chat_settings(
        spec,
        tokenizer_dir,
        max_tokens=max_tokens,
        special_tokens=special_tokens,
        model_type=model_type,
    )
    inputs = find_inputs(spec.inputs)
    encoder = settings.encoder()
    if vocab_size is not None and encoder.vocabulary > vocab_size:
        problems = vocabulary_problems(tokenizer_dir, vocab_size, model_type=model_type)
        raise DataError("\n".join(map(str, problems)))
    identity = chat_identity(spec, inputs.files, encoder)
    prefix = Path(out_dir) / name
    sidecar = _finished(prefix, identity, encoder, overwrite)
    unchanged = sidecar is not None
    if sidecar is not None and encoder.spec.strict and sidecar["left_out"]:
        raise _strict_error(LeftOutRow(**sidecar["left_out"][0]))
    if sidecar is None:
        blocks = encoded_blocks(
            inputs.files,
            settings,
            encoder,
            workers=workers,
            max_bytes=2 * spec.max_document_bytes,
            id_key=spec.id_key,
        )
        sidecar = _write(
            prefix, blocks, encoder, identity, progress, overwrite=overwrite
        )
    return ChatReport(
        name,
        prefix,
        ChatCounts.from_json(sidecar["counts"]),
        [LeftOutRow(**row) for row in sidecar["left_out"]],
        inputs.ignored,
        unchanged,
        time.monotonic() - began,
    )


def chat_settings(
    spec: SourceSpec, tokenizer_dir: str | Path, **options: Any
) -> EncoderSettings:
    """Settings of the encoder of a source of conversations."""
    if spec.chat is None:
        raise DataError("the source holds no conversations; give it `chat: {}`")
    return EncoderSettings(str(tokenizer_dir), spec.chat, **options)


def chat_identity(
    spec: SourceSpec, files: tuple[str, ...], encoder: ChatEncoder
) -> dict[str, Any]:
    """What a store of conversations is made from, in JSON's types."""
    made_from: dict[str, Any] = statement(
        {
            "chat_format": _FORMAT,
            "inputs": {name: file_fingerprint(Path(name)) for name in files},
            "id_key": spec.id_key,
            "max_document_bytes": spec.max_document_bytes,
            **encoder.identity(),
        }
    )
    return made_from


def require_same_chat(
    spec: SourceSpec, prefix: Path, encoder: Callable[[], ChatEncoder]
) -> None:
    """DataError unless the store at `prefix` is what `write_chat_store` would make now."""
    then = TokenStore(prefix).sidecar.get("identity")
    if spec.store or not isinstance(then, dict):
        return
    made = encoder()
    now = chat_identity(spec, find_inputs(spec.inputs).files, made)
    if lines := differences(made.renewed(then), now):
        raise DataError(
            f"{prefix}: this store was made from something else than the configuration "
            "says now:\n  "
            + "\n  ".join(lines)
            + f"\nrestore that, or {making_anew(spec, prefix.name)}"
        )


def require_same_chat_options(
    spec: SourceSpec, prefix: Path, *, max_tokens: int, special_tokens: SpecialTokens
) -> None:
    """DataError where the store at `prefix` says that it was made with other options than
    these: what `require_same_chat` compares, but for what needs inputs and tokenizer,
    which need not be at hand where is trained.
    """
    then = TokenStore(prefix).sidecar.get("identity")
    if spec.store or spec.chat is None or not isinstance(then, dict):
        return
    chat = spec.chat
    now = {
        "id_key": spec.id_key,
        "max_document_bytes": spec.max_document_bytes,
        "form": chat.format,
        "template": chat.template,
        "train_on": chat.train_on,
        "max_length": chat.max_length,
        "max_tokens": max_tokens if chat.max_tokens is None else chat.max_tokens,
        "special_tokens": special_tokens,
    }
    there = {**then, "template": (then.get("template") or {}).get("name")}
    if lines := differences({key: there.get(key) for key in now}, now):
        raise DataError(
            f"{prefix}: this store was made with other options than the configuration "
            "says now:\n  "
            + "\n  ".join(lines)
            + f"\nrestore them, or {making_anew(spec, prefix.name)}"
        )


def _strict_error(row: LeftOutRow) -> DataError:
    return DataError(f"{row}; correct or remove the row, or go without strict")


def _finished(
    prefix: Path, identity: dict[str, Any], encoder: ChatEncoder, overwrite: bool
) -> dict[str, Any] | None:
    """The sidecar of a finished store of this identity, None if there is work to do."""
    if store_path(prefix, ".json").is_file():
        sidecar = whole_sidecar(prefix, overwrite)
        lines = differences(encoder.renewed(sidecar.get("identity")), identity)
        if not lines:
            return sidecar
        if not overwrite:
            raise DataError(
                f"{prefix}: a finished store is there already and differs:\n  "
                + "\n  ".join(lines)
                + "\nchoose another name or allow overwriting (--overwrite)"
            )
        return None
    there = [s for s in CHAT_SUFFIXES[:2] if store_path(prefix, s).exists()]
    ours = is_of_conversations(work_path(prefix))
    if there and not overwrite and not ours:
        raise DataError(
            f"{prefix}{there[0]} exists and is not ours; choose another name or allow "
            "overwriting (--overwrite)"
        )
    return None


def _write(
    prefix: Path,
    blocks: Iterator[EncodedBlock],
    encoder: ChatEncoder,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    *,
    overwrite: bool,
) -> dict[str, Any]:
    """Everything under PREFIX.work first; then each file takes its name."""
    work = work_path(prefix)
    if (work / "identity.json").is_file() and not overwrite:
        raise DataError(
            f"{work}: holds an unfinished run of text; finish it as it was, or start "
            "anew with --overwrite"
        )
    remove_work(prefix)
    work.mkdir(parents=True)
    (work / "chat").touch()
    made = work / prefix.name
    try:
        sidecar = _write_files(made, blocks, encoder, identity, progress)
    except BaseException:
        # Nothing of the old store is touched yet, and of the new one nothing is worth
        # keeping; (work / "chat") goes last so that a killed removal is ours still.
        shutil.rmtree(work, ignore_errors=True)
        raise
    publish(made, prefix, CHAT_SUFFIXES)
    shutil.rmtree(work, ignore_errors=True)
    return sidecar


def _write_files(
    made: Path,
    blocks: Iterator[EncodedBlock],
    encoder: ChatEncoder,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    counts, examples = ChatCounts(), FirstOfEach()
    lengths: list[int] = []
    smallest, largest = encoder.vocabulary, -1
    raw_weights = store_path(made, ".raw")
    with ExitStack() as stack:
        tokens = stack.enter_context(open(store_path(made, ".bin"), "wb"))
        weights = stack.enter_context(open(raw_weights, "wb"))
        said = stack.enter_context(open(store_path(made, SAID), "wb"))
        left_out = stack.enter_context(
            open(store_path(made, LEFT_OUT), "w", encoding="utf-8")
        )
        names = stack.enter_context(_Names(store_path(made, DOCUMENTS)))
        for block in blocks:
            for row in block.left_out:
                if encoder.spec.strict:
                    raise _strict_error(row)
                examples.add(row)
                text = json.dumps(asdict(row), ensure_ascii=False)
                left_out.write(text.encode("utf-8", "replace").decode() + "\n")
            tokens.write(block.ids.tobytes())
            weights.write(block.weights.tobytes())
            said.write(block.said.tobytes())
            lengths += block.lengths
            names.add(block.names, block.files)
            counts.add(block.counts)
            if block.ids.size:
                smallest = min(smallest, int(block.ids.min()))
                largest = max(largest, int(block.ids.max()))
            if progress is not None:
                progress(counts.conversations, counts.tokens)
    if not counts.conversations:
        told = "; ".join(map(str, examples.rows[:3])) or "the inputs hold no row"
        raise DataError(f"{made.name}: no conversation that can be used: {told}")
    with open(store_path(made, ".idx"), "wb") as index:
        write_index(index, np.array(lengths, np.int32), encoder.dtype)
    store = TokenStore(made)
    write_weights(store, _in_blocks(raw_weights))
    raw_weights.unlink()
    for suffix in CHAT_SUFFIXES[:-1]:
        with open(store_path(made, suffix), "rb+") as stream:
            os.fsync(stream.fileno())
    data = store_path(made, ".bin")
    sidecar = {
        "identity": identity,
        "tokens": counts.tokens,
        "vocabulary": encoder.vocabulary,
        TOKENIZER: tokenizer_statement(Path(encoder.tokenizer.directory)),
        "token_range": recorded_range(file_fingerprint(data), smallest, largest),
        "counts": counts.to_json(),
        "left_out": [asdict(row) for row in examples.rows],
        "bin_checksum": file_checksum(data),
        "idx_checksum": file_checksum(store_path(made, ".idx")),
        "weights_checksum": file_checksum(store.weights_path),
        "said_checksum": file_checksum(store_path(made, SAID)),
        "documents_checksum": file_checksum(store_path(made, DOCUMENTS)),
        # What a template that names the day rendered depends on it.
        **({"rendered_on": str(date.today())} if encoder.template.dated else {}),
    }
    write_json(store_path(made, ".json"), sidecar)
    return sidecar


def _in_blocks(path: Path) -> Iterator[np.ndarray]:
    with open(path, "rb") as stream:
        while data := stream.read(16 << 20):
            yield np.frombuffer(data, np.uint8)


class _Names:
    """Ids and files of documents as Parquet, block by block."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([("id", pa.string()), ("file", pa.string())])
        self._writer = pq.ParquetWriter(path, self._schema)

    def add(self, names: list[str], files: list[str]) -> None:
        import pyarrow as pa

        columns = {"id": _characters(names), "file": _characters(files)}
        self._writer.write_table(pa.table(columns, self._schema))

    def __enter__(self) -> _Names:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _characters(texts: list[str]) -> list[str]:
    return [text.encode("utf-8", "replace").decode() for text in texts]
