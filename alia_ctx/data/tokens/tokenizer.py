"""A Hugging Face tokenizer directory, read as the exported model's users will read it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from alia_ctx.data.tokens.tokenizer_files import (
    additional_special_tokens,
    is_tiktoken,
    tokenizer_files,
    tokenizer_statement,
)
from alia_ctx.errors import DataError
from alia_ctx.files import checksum, file_fingerprint
from alia_ctx.optional_packages import guard, reason

_PROBES = (
    "the rain in Girona falls mainly on the plain",
    " two  spaces,\ttab,\nline\r\n\n  and indented",
    "1234567890 3.14 2024-05-01 0x1F 50%",
    "L'any passat, què faríeu? Peñíscola; «ñandú» A\u0301rbol ½ ﬁ ①",
    "def f(x):\n    return {'a': [x ** 2, None]}  # l'été",
    "日本語の文 한국어 العربية हिन्दी 👩‍👩‍👧 🏳️‍🌈",
    "CamelCase UPPER don't it's \u00a0nbsp \u200bzero ‘quotes’",
    "<|x|> [UNK] <unk>␣ <0x0A> ▁ Ġ ##a http://a.b/c?d=e&f",
)


def puts_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a tokenizer of transformers puts its BOS before a text, and its EOS behind it,
    by itself.
    """
    ids = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return (
        bos is not None and ids[:1] == [bos],
        eos is not None and ids[-1:] == [eos],
    )


class HubTokenizer:
    """What `AutoTokenizer` makes of a directory, without truncation, padding or the
    special tokens that it would add.

    Nothing else decides the ids: not `tokenizer.json` alone, as added tokens may stand
    in `tokenizer_config.json`, `added_tokens.json` or `special_tokens_map.json`, and as
    `tokenizer_class` and the model's type may replace the file's pre-tokenisation.
    """

    def __init__(self, directory: str | Path, model_type: str | None = None) -> None:
        """`model_type` is that of the model beside which the tokenizer will lie; None:
        what the directory's own `config.json` says.

        DataError where transformers cannot load the directory.
        """
        self.directory = Path(directory)
        self.auto = _load(self.directory, model_type)
        # Whole documents are encoded, and cut by packing: a limit would only be warned of.
        self.auto.model_max_length = 1 << 30

    def ids(self, texts: Sequence[str], *, split_special: bool) -> list[list[int]]:
        """Token ids as transformers' own call gives them."""
        encoded = self.auto(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special,
            verbose=False,
        )
        return list(encoded["input_ids"])

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token and its id, added tokens included."""
        added = {str(token): number for number, token in self._added.items()}
        return {**self.auto.get_vocab(), **added}

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Special tokens and their ids, whichever file names them.

        Those are the added tokens marked as special, BOS, EOS and their like, and what
        the directory lists as additional special tokens, marked or not. A SentencePiece
        model's user-defined symbols are no control tokens, although transformers lists
        them among the additional special tokens.
        """
        marked = [
            str(token)
            for token in self._added.values()
            if getattr(token, "special", False)
        ]
        listed = additional_special_tokens(self.directory)
        # `special_tokens_map` has names of the model's own too, as `image_token`.
        usual = {str(token) for token in self.auto.special_tokens_map.values()}
        named = [
            token
            for token in map(str, self.auto.all_special_tokens)
            # transformers saves user-defined symbols as additional special tokens: blank
            # ones, as Gemma's line breaks, would be in every document.
            if token in usual or (token in listed and token.strip())
        ]
        ids = {
            token: self.vocabulary[token]
            for token in [*marked, *named]
            if token in self.vocabulary
        }
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    @property
    def normalised_special(self) -> list[str]:
        """Special tokens that are looked for in the normalised text."""
        return [
            str(token)
            for token in self._added.values()
            if str(token) in self.special and getattr(token, "normalized", False)
        ]

    @property
    def single_words(self) -> list[str]:
        """Special tokens that are taken only where no letter or digit touches them."""
        return [
            str(token)
            for token in self._added.values()
            if str(token) in self.special and getattr(token, "single_word", False)
        ]

    @property
    def splits_special(self) -> bool:
        """Whether the directory itself says that spelled special tokens are split."""
        return bool(getattr(self.auto, "split_special_tokens", False))

    @property
    def _added(self) -> Mapping[int, Any]:
        return self.auto.added_tokens_decoder  # type: ignore[no-any-return]

    def special_id(self, name: str) -> int:
        """Id of `bos_token` or `eos_token`; DataError where there is none."""
        number = getattr(self.auto, f"{name}_id", None)
        if number is None:
            raise DataError(
                f"{self.directory}: names no {name} "
                f"(found {getattr(self.auto, name, None)!r}); set {name} in "
                "tokenizer_config.json or do not ask for it"
            )
        return int(number)

    @property
    def lacking_id(self) -> int:
        """Id of what the vocabulary lacks, -1 where there is none."""
        unknown = getattr(self.auto, "unk_token_id", None)
        return -1 if unknown is None else int(unknown)

    @property
    def unknown_id(self) -> int | None:
        """Id of what the vocabulary lacks, where it is not BOS or EOS as well: those
        are control ids, whatever text gave them.
        """
        unknown = self.lacking_id
        delimiters = [getattr(self.auto, f"{n}_token_id", None) for n in ("bos", "eos")]
        return None if unknown in (-1, *delimiters) else unknown

    def probes(self) -> list[str]:
        """Short texts in which tokenizers differ, with some added tokens among them."""
        added = [str(token) for token in list(self._added.values())[:64]]
        spelled = [
            text
            for token in added
            for text in (
                token,
                token.swapcase(),
                f"a{token}b",
                f"a {token} b",
                f"{token}{token}\n",
            )
        ]
        return [*_PROBES, *spelled]

    def difference(self, other: HubTokenizer) -> str | None:
        """A text to which two tokenizers give other ids, with both; None where they agree
        on all probes of either and name the same special tokens.
        """
        if self.special != other.special:
            return f"special tokens {dict(self.special)} and {dict(other.special)}"
        probes = [*self.probes(), *other.probes()]
        ours, theirs = (
            tokenizer.ids(probes, split_special=False) for tokenizer in (self, other)
        )
        for text, first, second in zip(probes, ours, theirs, strict=True):
            if first != second:
                return f"{text!r} is {first} and {second}"
        return None

    def fingerprint(self) -> str:
        """xxh3_128 over what decides ids in the tokenizer's files (`tokenizer_statement`)
        and over the ids of the probes, in hex.

        The ids count because other software can read the same files otherwise; chat
        templates, limits of length and other files of the directory do not.
        """
        stated = tokenizer_statement(self.directory)
        ids = self.ids(self.probes(), split_special=False)
        return checksum(json.dumps([stated, ids], sort_keys=True).encode())

    def former_fingerprint(self) -> str:
        """What `fingerprint` was in stores of earlier releases: over the files' bytes."""
        named = map(str, (self.auto.vocab_files_names or {}).values())
        names = {*tokenizer_files(self.directory), *named}
        files = [
            f"{name} {file_fingerprint(self.directory / name)}"
            for name in sorted(names)
            if (self.directory / name).is_file()
        ]
        ids = json.dumps(self.ids(self.probes(), split_special=False))
        return checksum("\n".join([*files, ids]).encode())


def renewed(identity: Any, former: str, now: str) -> Any:
    """The identity of a store with the tokenizer's fingerprint of `now` in place of the
    `former` one, which earlier releases made of the same files.
    """
    if isinstance(identity, Mapping) and identity.get("tokenizer") == former:
        return {**identity, "tokenizer": now}
    return identity


def _load(directory: Path, model_type: str | None) -> Any:
    if not directory.is_dir():
        raise DataError(
            f"{directory}: no such tokenizer directory; give a local Hugging Face "
            "directory"
        )
    guard()
    _check_packages(directory)
    from transformers import AutoConfig, AutoTokenizer

    try:
        options = {"config": AutoConfig.for_model(model_type)} if model_type else {}
        # trust_remote_code=False and not None: None asks at the terminal
        # (transformers/dynamic_module_utils.py, resolve_trust_remote_code).
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # whatever a file's content provokes, Rust panics too
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{directory}: holds no tokenizer that transformers can load ({reason}); "
            "correct or restore its files"
        ) from error


def _check_packages(directory: Path) -> None:
    """transformers only says that some other package is missing, so look first."""
    if (directory / "tokenizer.json").is_file():
        return
    for path in sorted(directory.glob("*.model")):
        package = "tiktoken" if is_tiktoken(path) else "sentencepiece"
        for needed in (package, "google.protobuf"):
            try:
                importlib.import_module(needed)
            except ImportError as error:
                name = needed.removeprefix("google.")
                raise DataError(
                    f"{path}: needs the package {name} to be read ({reason(error)}); "
                    f"`pip install {name}`, or save the tokenizer with a tokenizer.json"
                ) from error
