"""The files of a directory that transformers makes a tokenizer of, and what they decide."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alia_ctx.files import checksum, file_checksum, parse_json

# Under which a store and a checkpoint state the tokenizer of their text.
TOKENIZER = "tokenizer"
# Under which a checkpoint states the configuration's tokenizer, where its text says nothing.
CONFIGURED = "tokenizer_configured"
# Names in `vocab_files_names` of transformers' tokenizer classes (models/*/tokenization_*)
# and in tokenization_utils_base.from_pretrained, which also takes any SentencePiece
# `.model`, Mistral's `tokenizer.model.v3`, and versions such as `tokenizer.4.0.0.json`.
_VOCABULARY = re.compile(
    r"tokenizer(?!_config\b).*\.json|.*\.model|tokenizer\.model\..+|.*\.tiktoken|.*\.spm"
    r"|tekken\.json|.*vocab.*\.(?:json|txt)|dict\.txt|prophetnet\.tokenizer"
)
_BESIDE = re.compile(
    r"merges\.txt|bpe\.codes|byte_maps\.json|emoji\.json|normalizer\.json"
    r"|word_(?:pronunciation|shape)\.json"
    r"|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
)
CHAT_TEMPLATES = (
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
_CONFIG = "tokenizer_config.json"

# max_length, max_new_tokens, n_ctx, seq_length, model_max_length, max_cache_len, ...;
# not max_position_embeddings, which the conversion writes itself.
_LENGTH = re.compile(
    r"(?:.*_)?(?:max|min|seq|sequence|n|num)_(?:.*_)?"
    r"(?:len|length|tokens|ctx|positions)|max_?len|n_ctx|seq_?len|max_time"
)
_DERIVED_FROM_LENGTH = ("exponential_decay_length_penalty", "forced_eos_token_id")
_NO_LENGTHS = ("num_assistant_tokens", "prompt_lookup_num_tokens", "suppress_tokens")
_CUTTING = ("truncation", "truncation_strategy", "stride", "pad_to_multiple_of")
# Of tokenizer_config.json: how a conversation looks and is read, and who wrote the file.
_DECIDE_NO_IDS = (
    *("chat_template", "response_template", "response_schema"),
    *("name_or_path", "_name_or_path"),
)


def additional_special_tokens(directory: Path) -> set[str]:
    """What a directory itself lists as additional (`extra`, as of transformers 5) special
    tokens, in any form that transformers reads; it is known to load.
    """
    listed: list[Any] = []
    for name in (_CONFIG, "special_tokens_map.json"):
        path = directory / name
        content = parse_json(path.read_bytes()) if path.is_file() else {}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = content.get(key) or []
            listed += tokens.values() if isinstance(tokens, Mapping) else tokens
    return {str(t.get("content") if isinstance(t, Mapping) else t) for t in listed}


def is_limit(key: object) -> bool:
    """Whether a key of a JSON file limits a length, by how it is spelled."""
    if not isinstance(key, str):  # to_dict() of transformers has id2label by number
        return False
    if key in _NO_LENGTHS or key.endswith("_token_id"):
        return key in _DERIVED_FROM_LENGTH
    return key in _DERIVED_FROM_LENGTH or _LENGTH.fullmatch(key) is not None


def cuts_or_pads(key: object) -> bool:
    """Whether a key of tokenizer_config.json limits or pads what is tokenised."""
    return is_limit(key) or key in _CUTTING


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files of `directory` that a tokenizer is made of, whichever class
    reads them; chat templates are not among them.
    """
    names = {
        path.name
        for path in (directory.iterdir() if directory.is_dir() else ())
        if _VOCABULARY.fullmatch(path.name) or _BESIDE.fullmatch(path.name)
    }
    versions = _read(directory / _CONFIG).get("fast_tokenizer_files")
    for name in versions if isinstance(versions, list) else ():
        inside = isinstance(name, str) and ".." not in Path(name).parts
        if inside and not Path(name).is_absolute() and (directory / name).is_file():
            names.add(name)
    return sorted(names)


def backend_files(directory: Path) -> list[str]:
    """Those `tokenizer_files` that the `tokenizers` library reads: tokenizer.json and
    its versions for several releases of transformers.
    """
    names = tokenizer_files(directory)
    return [n for n in names if re.fullmatch(r"tokenizer(\..+)?\.json", Path(n).name)]


def has_vocabulary(directory: Path) -> bool:
    """Whether there is a vocabulary that a tokenizer can be made of."""
    return any(
        _VOCABULARY.fullmatch(Path(name).name) and (directory / name).is_file()
        for name in tokenizer_files(directory)
    )


def is_tiktoken(path: Path) -> bool:
    """Whether a file holds lines of `BASE64 RANK`; SentencePiece models are protobuf."""
    with open(path, "rb") as stream:
        return (
            re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+\s*", stream.readline(4096)) is not None
        )


def tokenizer_statement(directory: Path) -> dict[str, str]:
    """File -> checksum of what decides the ids of a text, of every file of a tokenizer.

    JSON is compared by its content, without what limits and pads lengths, which an
    export lifts, and without chat templates; other files by their bytes.
    """
    return {
        name: _content_checksum(directory / name)
        for name in tokenizer_files(directory)
        if (directory / name).is_file()
    }


def known_tokenizer(extra: Mapping[str, Any]) -> Mapping[str, str] | None:
    """What a manifest's `extra` states of the tokenizer of training: the text's, or, where
    that says nothing, the one that the configuration gave; None of neither.
    """
    stated = (extra.get(TOKENIZER), extra.get(CONFIGURED))
    return next((s for s in stated if isinstance(s, Mapping)), None)


def _content_checksum(file: Path) -> str:
    document = _read(file)
    if not document:
        return file_checksum(file)
    if file.name == _CONFIG:
        document = {
            key: value
            for key, value in document.items()
            if not cuts_or_pads(key) and key not in _DECIDE_NO_IDS
        }
    else:
        document = {**document, "truncation": None, "padding": None}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return checksum(text.encode())


def _read(file: Path) -> Mapping[str, Any]:
    """The JSON object of a file; empty where it is missing, or is none."""
    if file.suffix != ".json":
        return {}
    try:
        document = parse_json(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
