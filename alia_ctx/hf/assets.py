"""What travels beside the weights:

tokenizer, generation defaults, chat template, licence, model card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.config import CONFIG
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.rope_config import rope_parameters
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
_OTHER_FILES = (
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
CARRIED = (CONFIG, *TOKENIZER_FILES, *_OTHER_FILES)


def copy_assets(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those files and folders of `source` that exist to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def check_tokenizer(directory: Path, model: ModelSpec) -> None:
    """Raise CheckpointError where a tokenizer file of `directory` has an id that the
    model has no embedding for.
    """
    for file, largest in _largest_ids(directory):
        if largest >= model.vocab_size:
            raise CheckpointError(
                f"{file}: has token id {largest}, the model's vocab_size is {model.vocab_size}; "
                "this is another model's tokenizer, use the one it was trained with"
            )


def _largest_ids(directory: Path) -> Iterable[tuple[Path, int]]:
    readers = {
        "tokenizer.json": _ids_of_tokenizer,
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
    if (directory / "tokenizer.model").is_file():
        yield (
            directory / "tokenizer.model",
            _sentencepiece_size(directory / "tokenizer.model") - 1,
        )


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


def _sentencepiece_size(file: Path) -> int:
    """Number of pieces in a SentencePiece model: its field 1 repeated (protobuf wire format)."""
    data, position, pieces = file.read_bytes(), 0, 0

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
            if (
                tag & 7 != 2
            ):  # the message has only length-delimited fields at its top level
                raise ValueError(f"field {tag >> 3} of wire type {tag & 7}")
            pieces += tag >> 3 == 1
            position += varint()
    except (IndexError, ValueError) as error:
        raise CheckpointError(
            f"{file}: is no SentencePiece model ({error}); copy it again from the model's source"
        ) from error
    return pieces


def raise_length_limit(directory: Path, context: int) -> None:
    """Raise `model_max_length` of the tokenizer to `context` where it is below:

    it would cut long inputs silently.
    """
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return
    document = load_json(file)
    limit = document.get("model_max_length")
    if isinstance(limit, int | float) and limit < context:
        document["model_max_length"] = context
        file.write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def model_card(manifest: Manifest, dtype: str) -> str:
    """A README stub that says what the weights are and how they came about;

    its author adds the rest.
    """
    model = manifest.model
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {model.architecture} model, {model.parameters():,} parameters, "
        f"{manifest.context:,} tokens of context",
        "",
        "Written by alia-ctx. To be completed by the author: intended use, languages, "
        "training data, licence, risks.",
        "",
        "| | |",
        "|---|---|",
        f"| layers | {model.num_hidden_layers} |",
        f"| hidden size | {model.hidden_size} |",
        f"| attention heads / KV heads | {model.num_attention_heads} / "
        f"{model.num_key_value_heads} |",
        f"| vocabulary | {model.vocab_size:,} |",
        f"| weights | {dtype} |",
        f"| RoPE | {_rope_text(manifest.rope)} |",
        f"| parent checkpoint | {manifest.parent or 'none'} |",
        *(
            [f"| imported from | {manifest.extra['source']} |"]
            if "source" in manifest.extra
            else []
        ),
        "",
        "## Training ledger",
        "",
        *_ledger_lines(manifest.ledger),
    ]
    return "\n".join(lines) + "\n"


def _ledger_lines(ledger: tuple[StageLedger, ...]) -> list[str]:
    if not ledger:
        return ["No training with alia-ctx: the weights are as they were imported."]
    head = (
        "| stage | context | RoPE | learning rate | updates (skipped) | tokens | "
        "predicted tokens |"
    )
    rows = [
        f"| {e.stage} | {e.context:,} | {_rope_text(e.rope)} | {e.learning_rate:g} | {e.updates:,} "
        f"({e.skipped_updates:,}) | {e.tokens:,} | {e.predicted_tokens:,} |"
        for e in ledger
    ]
    return [
        head,
        "|" + "---|" * 7,
        *rows,
        "",
        "Tokens are real ones; fill at the end of a row is not counted.",
    ]


def _rope_text(rope: RopeSpec) -> str:
    parameters = rope_parameters(rope)
    if rope.type == "dynamic":
        parameters["original_max_position_embeddings"] = (
            rope.original_max_position_embeddings
        )
    rest = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
        if name != "rope_type"
    ]
    return ", ".join([rope.type, f"theta {rope.theta:g}", *rest])
