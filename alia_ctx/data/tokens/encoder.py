"""Texts -> token ids in numpy, one core at a time, as the exported tokenizer gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alia_ctx.data.tokens.special_tokens import (
    SpecialTokens,
    SpelledTokens,
    without_special,
)
from alia_ctx.data.tokens.store import token_dtype
from alia_ctx.data.tokens.tokenizer import HubTokenizer


class EncodedText(NamedTuple):
    """Token ids of one document [tokens], BOS and EOS included where asked; the special
    tokens that its text spells, by token; and whether it is refused because of them.
    """

    tokens: np.ndarray
    spelled: Mapping[str, int]
    refused: bool


class TextEncoder:
    """Texts -> the ids of `AutoTokenizer(DIRECTORY)` without the special tokens that it
    would add, then BOS and EOS as asked.

    Special tokens that a text spells are text (`split`), control ids (`keep`), or a
    reason to refuse the document (`refuse`). The Rust library does the work where it
    gives the same ids, otherwise transformers itself, slower. May be pickled: a worker
    process needs no transformers then.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        append_eos: bool,
        prepend_bos: bool,
        special_tokens: SpecialTokens = "split",
        model_type: str | None = None,
    ) -> None:
        """`model_type`: of the model beside which the tokenizer will lie.

        DataError where the directory is no tokenizer, or names no EOS or BOS although
        one is asked for.
        """
        tokenizer = HubTokenizer(directory, model_type)
        self.directory = Path(directory)
        self.special_tokens = special_tokens
        self.special = dict(tokenizer.special)
        self.vocabulary = max(tokenizer.vocabulary.values(), default=-1) + 1
        self.fingerprint = tokenizer.fingerprint()
        self.former_fingerprint = tokenizer.former_fingerprint()
        self.dtype = token_dtype(self.vocabulary)
        self._unknown = tokenizer.unknown_id
        self._lacking = tokenizer.lacking_id
        self._normalised = tokenizer.normalised_special
        self._single_words = tokenizer.single_words
        self._splits = special_tokens != "keep" or tokenizer.splits_special
        before = [tokenizer.special_id("bos_token")] if prepend_bos else []
        after = [tokenizer.special_id("eos_token")] if append_eos else []
        self._before, self._after = self._ids(before), self._ids(after)
        self._rust = rust_equivalent(tokenizer)
        self._slow = None if self._rust is not None else tokenizer

    def __getstate__(self) -> dict[str, Any]:
        made_anew = ("_backend", "_stripped", "_spelled", "_is_special")
        return {k: v for k, v in self.__dict__.items() if k not in made_anew}

    @property
    def special_ids(self) -> dict[str, list[int]]:
        """Token ids put before and after each document."""
        return {"before": self._before.tolist(), "after": self._after.tolist()}

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode each text; one without any token stays without BOS and EOS."""
        keep = self.special_tokens == "keep"
        spelled = [self._spelled.count(text) for text in texts]
        batch = [self._ids(ids) for ids in self._encode(texts, spelled)]
        if keep:
            spelled = [*map(self._kept, batch, spelled)]
            return [
                EncodedText(self._framed(ids, found), found, False)
                for ids, found in zip(batch, spelled, strict=True)
            ]
        return [
            self._without_control(text, ids, found)
            for text, ids, found in zip(texts, batch, spelled, strict=True)
        ]

    def _encode(
        self, texts: Sequence[str], spelled: Sequence[Mapping[str, int]]
    ) -> list[list[int]]:
        if self._slow is None:
            self._backend.encode_special_tokens = self._splits
            return [
                encoding.ids
                for encoding in self._backend.encode_batch_fast(
                    texts, add_special_tokens=False
                )
            ]
        # Tokenizers written in Python split every added token, special or not, once
        # they are told to (transformers/tokenization_python.py, tokenize): only texts
        # that spell a special token go that way.
        return [
            self._slow.ids([text], split_special=bool(found) and self._splits)[0]
            for text, found in zip(texts, spelled, strict=True)
        ]

    def _kept(self, ids: np.ndarray, spelled: Counter[str]) -> Counter[str]:
        """The special tokens that became ids. The ids say so: a normalizer or a model of
        words makes `</s>` of `</S>` too. Only the id of what the vocabulary lacks is
        spelled where the text has it; and where the directory itself says that special
        tokens are split, what the text spells is counted as for `split`.
        """
        names = {number: token for token, number in self.special.items()}
        control = ids[self._is_special[ids]].tolist()
        kept = Counter(names[number] for number in control if number != self._lacking)
        if (lacking := names.get(self._lacking, "")) in spelled:
            kept[lacking] = spelled[lacking]
        return kept | spelled if self._splits else kept

    def _without_control(
        self, text: str, ids: np.ndarray, spelled: Counter[str]
    ) -> EncodedText:
        """Make sure that no control id came from text, or refuse it."""
        control = self._control_ids(ids, spelled)
        if control.size:
            names = {number: token for token, number in self.special.items()}
            spelled = spelled or Counter(names[number] for number in control.tolist())
            if self._stripped is None or self.special_tokens == "refuse":
                return EncodedText(self._ids([]), spelled, True)
            ids = self._ids(self._stripped.encode(text, add_special_tokens=False).ids)
            marked = ids[self._is_special[ids]]
            if (marked != self._unknown).any():  # what the vocabulary lacks is EOS
                return EncodedText(self._ids([]), spelled, True)
        refused = self.special_tokens == "refuse" and bool(spelled)
        return EncodedText(self._framed(ids, spelled), spelled, refused)

    def _control_ids(self, ids: np.ndarray, spelled: Mapping[str, int]) -> np.ndarray:
        control = ids[self._is_special[ids]]
        unknown_is_text = not any(
            self.special[token] == self._unknown for token in spelled
        )
        kept: np.ndarray = control[control != self._unknown]
        return kept if unknown_is_text else control

    def _framed(self, ids: np.ndarray, spelled: Mapping[str, int]) -> np.ndarray:
        """BOS and EOS around `ids`, unless the text spells them there already; an id that
        it does not spell is that of what the vocabulary lacks.
        """
        if not ids.size:
            return ids
        before, after = self._before, self._after
        numbers = {self.special[token] for token in spelled}
        if before.size and ids[0] == before[0] and before[0] in numbers:
            before = before[:0]
        if after.size and ids[-1] == after[0] and after[0] in numbers:
            after = after[:0]
        return np.concatenate((before, ids, after))

    def _ids(self, ids: Sequence[int]) -> np.ndarray:
        return np.array(ids, self.dtype)

    @cached_property
    def _spelled(self) -> SpelledTokens:
        normalizer = None if self._rust is None else self._backend.normalizer
        return SpelledTokens(
            self.special, self._normalised, normalizer, self._single_words
        )

    @cached_property
    def _is_special(self) -> np.ndarray:
        marks = np.zeros(self.vocabulary, bool)
        marks[list(self.special.values())] = True
        return marks

    @cached_property
    def _backend(self) -> Any:
        return rust_tokenizer(self._rust or "", self.special)

    @cached_property
    def _stripped(self) -> Any | None:
        return (
            None if self._rust is None else stripped_tokenizer(self._rust, self.special)
        )


def rust_equivalent(tokenizer: HubTokenizer) -> str | None:
    """The JSON of a `tokenizers` tokenizer that gives the same ids; None without one."""
    backend = getattr(tokenizer.auto, "backend_tokenizer", None)
    if backend is None:
        return None
    try:
        text = str(backend.to_str())
        copy = rust_tokenizer(text, tokenizer.special)
    except Exception:  # a part written in Python cannot be serialised
        return None
    if copy.get_vocab(with_added_tokens=True) != tokenizer.auto.get_vocab():
        return None
    probes, control = tokenizer.probes(), {*tokenizer.special.values()}
    for split in (False, True):
        copy.encode_special_tokens = split
        ours = copy.encode_batch_fast(probes, add_special_tokens=False)
        theirs = tokenizer.ids(probes, split_special=split)
        for encoding, ids in zip(ours, theirs, strict=True):
            # A control id that transformers leaves in split text is not to be copied.
            if encoding.ids != ids and not (split and control & {*ids}):
                return None
    return text


def rust_tokenizer(text: str, special: Mapping[str, int]) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(text)
    # Tokens that only a configuration calls special lose that on the way through JSON.
    for token in backend.get_added_tokens_decoder().values():
        if token.content in special and not token.special:
            backend.add_special_tokens([token])
    backend.no_truncation()
    backend.no_padding()
    return backend


def stripped_tokenizer(text: str, special: Mapping[str, int]) -> Any | None:
    """The tokenizer of a JSON without the special tokens, None where none can be made."""
    from tokenizers import Tokenizer

    try:
        stripped = Tokenizer.from_str(without_special(text, special))
    except Exception:  # the Rust library raises bare Exception
        return None
    stripped.no_truncation()
    stripped.no_padding()
    usual = rust_tokenizer(text, special).get_vocab(with_added_tokens=True)
    other = stripped.get_vocab(with_added_tokens=True)
    same = all(
        other.get(token) == number
        for token, number in usual.items()
        if token not in special
    )
    return stripped if same else None
