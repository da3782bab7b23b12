"""What travels beside the weights: tokenizer, generation defaults, chat template, licence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.data.tokens.tokenizer_files import (
    CHAT_TEMPLATES,
    backend_files,
    is_tiktoken,
    tokenizer_files,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.config import CONFIG
from alia_ctx.hf.json_files import load_json
from alia_ctx.spec.model import ModelSpec

GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
ORIGIN = "alia_ctx_import.json"
_LEGAL = re.compile(r"(licen[cs]e|notice|copying|use_policy|acceptable_use).*", re.I)


def legal_files(directory: Path) -> list[str]:
    """Names of licences, notices and policies: what must go wherever the weights go."""
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if _LEGAL.fullmatch(p.name))


def tokenizer_assets(directory: Path) -> list[str]:
    """Names of what belongs to the tokenizer in `directory`, chat templates included."""
    return [*tokenizer_files(directory), *CHAT_TEMPLATES]


def asset_files(source: Path, names: Iterable[str]) -> list[Path]:
    """Those files of `source` that exist under `names`, files of folders among them.

    CheckpointError where one is a link to something outside of `source`: what it points
    at was never said to belong to the model.
    """
    files = [file for name in names for file in _files(source / name)]
    for file in files:
        _check_link(file, source)
    return files


def copy_assets(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the `asset_files` of `source` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for file in asset_files(source, names):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def carried(hf_dir: Path) -> list[str]:
    """Names of what an import takes along from `hf_dir`."""
    names = [CONFIG, *tokenizer_assets(hf_dir), GENERATION_CONFIG, CARD]
    return [*names, *legal_files(hf_dir)]


def check_readable(hf_dir: Path) -> None:
    """Raise CheckpointError where a file that an export has to change is no JSON object."""
    names = [GENERATION_CONFIG, "tokenizer_config.json", *backend_files(hf_dir)]
    for name in names:
        if (hf_dir / name).is_file():
            load_json(hf_dir / name)


def _files(path: Path) -> Iterator[Path]:
    """`path`, or all files below it; links count as files, wherever they lead."""
    if path.is_symlink() or path.is_file():
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            yield from _files(inner)


def _check_link(file: Path, source: Path) -> None:
    """Refuse a file that a link takes from elsewhere.

    In the Hugging Face cache every file is a link from `snapshots/REVISION` to `blobs`
    beside it: both belong to the model.
    """
    root = source.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    try:
        target = file.resolve()
    except (
        OSError,
        RuntimeError,
    ):  # a loop of links; which of the two, by Python's version
        raise CheckpointError(f"{file}: is a link to itself; take it away") from None
    if not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{file}: is a link to {target}, outside of {source}; put a copy in its "
            "place if it belongs to the model, or take the link away"
        )
    if not target.is_file():
        raise CheckpointError(
            f"{file}: is a link to {target}, which is no file; take the link away"
        )


def model_name(hf_dir: Path) -> str:
    """The name of the model in `hf_dir`: ORGANISATION/NAME in the Hugging Face cache, else
    that of the directory.
    """
    root = hf_dir.resolve()
    cached = re.fullmatch(r"models--(.+?)--(.+)", root.parent.parent.name)
    if root.parent.name == "snapshots" and cached:
        return f"{cached[1]}/{cached[2]}"
    return root.name


def check_tokenizer(directory: Path, model: ModelSpec) -> None:
    """Raise CheckpointError where a tokenizer file of `directory` has an id that the
    model has no embedding for.
    """
    for file, largest in _largest_ids(directory):
        if largest >= model.vocab_size:
            raise CheckpointError(
                f"{file}: has token id {largest}, which needs {largest + 1} rows of the "
                f"embedding; the model's vocab_size is {model.vocab_size}. Import with "
                f"--resize-embeddings {largest + 1} where the tokenizer was given tokens "
                "since the model was trained; use the model's own tokenizer where not"
            )


def _largest_ids(directory: Path) -> Iterable[tuple[Path, int]]:
    readers = {
        **dict.fromkeys(backend_files(directory), _ids_of_tokenizer),
        "added_tokens.json": _ids_of_vocabulary,
        "vocab.json": _ids_of_vocabulary,
        "tokenizer_config.json": _ids_of_decoder,
    }
    for name, ids in readers.items():
        if (directory / name).is_file():
            try:
                yield (
                    directory / name,
                    max(ids(load_json(directory / name)), default=-1),
                )
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(
                    f"{directory / name}: is not what tokenizers write ({error}); copy "
                    "it again from the model's source"
                ) from error
    file = directory / "tokenizer.model"
    if file.is_file():
        try:
            yield file, _largest_id_of_model(file)
        except ValueError as error:
            # The name says nothing of the format, and beside a tokenizer.json nothing that
            # makes a tokenizer of the directory reads the file.
            if not (directory / "tokenizer.json").is_file():
                raise CheckpointError(
                    f"{file}: is neither a SentencePiece model nor one of tiktoken "
                    f"({error}); copy it again from the model's source"
                ) from error


def _ids_of_tokenizer(document: Mapping[str, Any]) -> list[int]:
    vocabulary = document.get("model", {}).get("vocab", {})
    # Unigram models list [piece, score] in the order of ids, the others map a piece to its id.
    ids = (
        range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    )
    return [
        *map(int, ids),
        *(int(token["id"]) for token in document.get("added_tokens") or ()),
    ]


def _ids_of_vocabulary(document: Mapping[str, Any]) -> list[int]:
    return [int(value) for value in document.values()]


def _ids_of_decoder(document: Mapping[str, Any]) -> list[int]:
    return [int(key) for key in document.get("added_tokens_decoder") or {}]


def _largest_id_of_model(file: Path) -> int:
    """The largest id of a SentencePiece or a tiktoken model; ValueError: it is neither."""
    if is_tiktoken(file):
        lines = file.read_bytes().splitlines()
        return max(int(line.rpartition(b" ")[2]) for line in lines if line.strip())
    return _sentencepiece_size(file.read_bytes()) - 1


def _sentencepiece_size(data: bytes) -> int:
    """Number of pieces in a SentencePiece model: its field 1 repeated (protobuf wire format).

    ValueError where it is none.
    """
    position, pieces = 0, 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position, value, shift = (
                position + 1,
                value | (byte & 127) << shift,
                shift + 7,
            )
            if byte < 128:
                return value

    try:
        while position < len(data):
            tag = varint()
            # The message has only length-delimited fields at its top level.
            if tag & 7 != 2:
                raise ValueError(f"field {tag >> 3} of wire type {tag & 7}")
            pieces += tag >> 3 == 1
            length = varint()  # which moves `position` first
            position += length
    except IndexError:
        position = -1
    if position != len(data):
        raise ValueError("it ends inside a field")
    return pieces
