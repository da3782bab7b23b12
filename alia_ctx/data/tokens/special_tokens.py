"""Special tokens that documents spell out: found, counted, and kept from becoming ids."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from alia_ctx.files import checksum

SpecialTokens = Literal["split", "keep", "refuse"]


class SpelledTokens:
    """Finds special tokens in texts by what they look like."""

    def __init__(
        self,
        tokens: Iterable[str],
        normalised: Sequence[str] = (),
        normalizer: Any | None = None,
        single_words: Collection[str] = (),
    ) -> None:
        """`normalised`: those of `tokens` that the tokenizer compares with the text as
        its `normalizer` (of the `tokenizers` library) leaves it. `single_words`: those
        that it only takes where no letter or digit touches them.
        """
        self._pattern = _any_of(tokens, single_words)
        self._normalizer = normalizer if normalised else None
        self._normal_forms: dict[str, str] = {}
        if self._normalizer is not None:
            self._normal_forms = {
                self._normalizer.normalize_str(token): token for token in normalised
            }
        alone = {n for n, token in self._normal_forms.items() if token in single_words}
        self._normal_pattern = _any_of(self._normal_forms, alone)

    def count(self, text: str) -> Counter[str]:
        """Occurrences by token; the longest wins where several begin at one place."""
        found = Counter(match[0] for match in self._pattern.finditer(text))
        if self._normalizer is None:
            return found
        normal = self._normalizer.normalize_str(text)
        again = Counter(
            self._normal_forms[match[0]]
            for match in self._normal_pattern.finditer(normal)
        )
        return found | again


def _any_of(tokens: Iterable[str], single_words: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, tokens), key=lambda each: (-len(each), each))
    forms = [
        rf"(?<!\w){re.escape(token)}(?!\w)"
        if token in single_words
        else re.escape(token)
        for token in longest_first
    ]
    return re.compile("|".join(forms) or "(?!)")


def without_special(backend: str, special: Mapping[str, int]) -> str:
    """The JSON of a tokenizer of the `tokenizers` library, changed so that no text can
    give a special token's id: its model and its added tokens call them otherwise.

    `encode_special_tokens` of the library is not enough: it skips the search for special
    tokens, but a Unigram, WordLevel or BPE model that has `</s>` in its vocabulary still
    makes that piece of the text. Merges that would build a special token go.
    """
    document = json.loads(backend)
    names = names_without_special(backend, special)
    model = document["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {
            names.get(key, key): number for key, number in vocabulary.items()
        }
    else:
        model["vocab"] = [[names.get(key, key), score] for key, score in vocabulary]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            pair for pair in model["merges"] if not _builds(pair, names, prefix)
        ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    for token in document.get("added_tokens", []):
        token["content"] = names.get(token["content"], token["content"])
    return json.dumps(document, ensure_ascii=False)


def names_without_special(backend: str, special: Mapping[str, int]) -> dict[str, str]:
    """What `without_special` calls each special token: text that nobody writes."""
    salt = checksum(backend.encode())
    return {token: f"\ufdd0{salt}-{number}\ufdd1" for token, number in special.items()}


def _builds(pair: Any, special: Mapping[str, str], prefix: str) -> bool:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return bool({left, right, left + right.removeprefix(prefix)} & special.keys())
