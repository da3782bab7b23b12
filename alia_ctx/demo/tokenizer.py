"""Training of the demo's tokenizer:

a byte-level BPE with ALIA-40b's special tokens at ALIA-40b's ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, write_json

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
)  # ids 0..5


def train_tokenizer(
    files: Sequence[str | Path],
    out_dir: str | Path,
    vocab_size: int,
    *,
    overwrite: bool = False,
) -> Path:
    """Train a byte-level BPE on the `text` of jsonl `files`; `out_dir` becomes a Hugging
    Face tokenizer directory.

    The special tokens stand at ALIA-40b's ids: <unk> 0, <s> 1, </s> 2, <pad> 3,
    <|im_start|> 4, <|im_end|> 5. Every byte has a token, so <unk> never occurs. The
    same files give the same tokenizer. DataError: a file is missing or is not jsonl
    with a `text`, the vocabulary is too small, or the directory already has a
    tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    out_dir = Path(out_dir)
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise DataError(
            f"vocab_size={vocab_size}: 256 bytes and {len(SPECIAL_TOKENS)} special "
            f"tokens need {least}"
        )
    if (out_dir / "tokenizer.json").exists() and not overwrite:
        raise DataError(
            f"{out_dir} already holds a tokenizer; pass --overwrite or choose another directory"
        )
    texts = list(chain.from_iterable(_jsonl_texts(Path(file)) for file in files))
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise DataError(
            f"the text gives only {tokenizer.get_vocab_size()} tokens, "
            f"vocab_size={vocab_size} were asked "
            "for; give more text or a smaller vocabulary"
        )
    _save_tokenizer(tokenizer, out_dir)
    return out_dir


def _jsonl_texts(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{file}:{number}: not a JSON object with a `text`: {error}"
                    ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _save_tokenizer(tokenizer: Any, out_dir: Path) -> None:
    special = dict(
        zip(
            ("unk_token", "bos_token", "eos_token", "pad_token"),
            SPECIAL_TOKENS,
            strict=False,
        )
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        "additional_special_tokens": list(SPECIAL_TOKENS[4:]),
        **special,
    }
    special_map = {**special, "additional_special_tokens": list(SPECIAL_TOKENS[4:])}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_json(out_dir / "special_tokens_map.json", special_map)
        write_json(out_dir / "tokenizer_config.json", config)
        with atomic_file(out_dir / "tokenizer.json") as stream:
            stream.write(tokenizer.to_str(pretty=True).encode())
    except OSError as error:
        raise DataError(
            f"cannot write the tokenizer in {out_dir}: {error.strerror or error}"
        ) from error
