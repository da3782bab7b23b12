"""Hugging Face tokenizer directories -> token ids in numpy, one core at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.tokens.store import token_dtype
from alia_ctx.errors import DataError
from alia_ctx.files import checksum, file_fingerprint

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class TextEncoder:
    """Texts -> token ids without special tokens, then BOS and EOS as asked.

    Reads `tokenizer.json` with the `tokenizers` library where there is one, and
    anything else (SentencePiece, slow tokenizers) through `transformers.AutoTokenizer`.
    """

    def __init__(
        self, directory: str | Path, *, append_eos: bool, prepend_bos: bool
    ) -> None:
        """DataError where the directory is no tokenizer, or names no EOS or BOS
        although one is asked for.
        """
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise DataError(
                f"{self.directory}: no such tokenizer directory; give a local Hugging "
                "Face directory"
            )
        self._fast = _load_fast(self.directory)
        self._slow = None if self._fast is not None else _load_slow(self.directory)
        if self._fast is None and getattr(self._slow, "is_fast", False):
            self._fast = self._slow.backend_tokenizer  # type: ignore[union-attr]
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
        self.vocabulary = self._vocabulary()
        self.dtype = token_dtype(self.vocabulary)
        self._before = self._special("bos_token", prepend_bos)
        self._after = self._special("eos_token", append_eos)

    def _vocabulary(self) -> int:
        if self._fast is not None:
            ids = self._fast.get_vocab(with_added_tokens=True).values()
        else:
            ids = self._slow.get_vocab().values()  # type: ignore[union-attr]
        return max(ids, default=-1) + 1

    def _special(self, name: str, wanted: bool) -> np.ndarray:
        if not wanted:
            return np.empty(0, self.dtype)
        token = _special_token(self.directory, name)
        if token is None and self._slow is not None:
            token = getattr(self._slow, name, None)
        number = self._token_id(token) if token is not None else None
        if number is None:
            raise DataError(
                f"{self.directory}: names no {name} in its vocabulary (found {token!r}); "
                f"set {name} in tokenizer_config.json or do not ask for it"
            )
        return np.array([number], self.dtype)

    def _token_id(self, token: str) -> int | None:
        if self._fast is not None:
            return self._fast.token_to_id(token)
        return self._slow.get_vocab().get(token)  # type: ignore[union-attr]

    @property
    def special_ids(self) -> dict[str, list[int]]:
        """Token ids put before and after each document."""
        return {"before": self._before.tolist(), "after": self._after.tolist()}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text;

        a text without any token gives an empty array, without BOS and EOS.
        """
        if self._fast is not None:
            batch = [
                encoding.ids
                for encoding in self._fast.encode_batch_fast(
                    texts, add_special_tokens=False
                )
            ]
        else:
            batch = self._slow(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        return [self._framed(ids) for ids in batch]

    def _framed(self, ids: list[int]) -> np.ndarray:
        if not ids:
            return np.empty(0, self.dtype)
        return np.concatenate((self._before, np.array(ids, self.dtype), self._after))


def tokenizer_fingerprint(directory: str | Path) -> str:
    """xxh3_128 over the tokenizer's files, in hex;

    other files of the directory (weights, say) do not count.
    """
    paths = [
        Path(directory) / name for name in _FILES if (Path(directory) / name).is_file()
    ]
    return checksum(
        "\n".join(f"{path.name} {file_fingerprint(path)}" for path in paths).encode()
    )


def _load_fast(directory: Path) -> Any | None:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(
            f"{path}: not a tokenizer ({error}); restore the file"
        ) from error


def _load_slow(directory: Path) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"{directory}: holds no tokenizer that transformers can load ({error})"
        ) from error


def _special_token(directory: Path, name: str) -> str | None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = directory / file
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text("utf-8")).get(name)
        except ValueError as error:
            raise DataError(
                f"{path}: broken JSON ({error}); restore the file"
            ) from error
        if isinstance(value, dict):
            value = value.get("content")
        if value:
            return str(value)
    return None
