"""Rendered conversations -> tokens and the characters that each comes from, in one pass."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.turns import Rendered
from alia_ctx.data.tokens.encoder import (
    rust_equivalent,
    rust_tokenizer,
    stripped_tokenizer,
)
from alia_ctx.data.tokens.special_tokens import SpecialTokens, names_without_special
from alia_ctx.data.tokens.store import token_dtype
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError


class Tokens(NamedTuple):
    """Ids, and the first character and the one after the last of each: [tokens]."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


class RenderedTokens:
    """Tokenises whole texts in which the template's special tokens are ids, and those
    that contents spell what `rule` says.
    """

    def __init__(
        self, tokenizer: HubTokenizer, pattern: re.Pattern[str], rule: SpecialTokens
    ) -> None:
        """`pattern` matches each special token. DataError where the tokenizer does not
        say which characters its tokens come from.
        """
        vocabulary = tokenizer.vocabulary
        self._pattern, self._rule = pattern, rule
        self._special = dict(tokenizer.special)
        self._dtype = token_dtype(max(vocabulary.values(), default=-1) + 1)
        names = {f"<0x{byte:02X}>" for byte in range(256)}
        self._byte_ids = {vocabulary[name] for name in names & vocabulary.keys()}
        backend = rust_equivalent(tokenizer)
        if backend is None:
            raise DataError(
                f"{tokenizer.directory}: conversations need a tokenizer that the "
                "`tokenizers` library reads (tokenizer.json), because others do not say "
                "which characters a token comes from; save it as one"
            )
        # A post-processor adds tokens that nobody asks for here, and ByteLevel's cuts
        # blanks off the offsets.
        text = json.dumps({**json.loads(backend), "post_processor": None})
        self._backend = rust_tokenizer(text, self._special)
        self._names = names_without_special(text, self._special)
        self._renaming = self._checked(stripped_tokenizer(text, self._special))

    def normalised(self, text: str) -> str:
        """What the tokenizer's normaliser makes of a text."""
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def of(self, rendered: Rendered, spelled: Collection[str]) -> Tokens:
        """The tokens of a rendered conversation; `spelled` are the special tokens that its
        contents spell. RowError where they make it of no use.
        """
        if not spelled or self._rule == "keep":
            found = self._backend.encode(rendered.text, add_special_tokens=False)
            return self._arrays(rendered.text, found.ids, found.offsets)
        names = ", ".join(spelled)
        if self._rule == "refuse":
            raise RowError("special_token", f"its contents spell {names}")
        if self._renaming is None:
            raise RowError(
                "special_token",
                f"its contents spell {names}, and this tokenizer cannot be told which "
                "of them are text",
            )
        return self._arrays(
            rendered.text, *self._renamed(rendered.text, rendered.spelled)
        )

    def _arrays(self, text: str, ids: list[int], offsets: Any) -> Tokens:
        places = np.array(offsets, np.int64).reshape(-1, 2)
        if self._byte_ids:
            self._place_bytes(text, ids, places)
        return Tokens(np.array(ids, self._dtype), places[:, 0], places[:, 1])

    def _place_bytes(self, text: str, ids: list[int], places: np.ndarray) -> None:
        """Give each byte token its character, in place: Unigram gives all bytes of a
        stretch that it has no pieces for the place of the whole stretch.
        """
        wide = np.flatnonzero(places[:, 1] - places[:, 0] > 1)
        done = 0
        for number in wide.tolist():
            if number < done or ids[number] not in self._byte_ids:
                continue
            start, stop = places[number].tolist()
            end = number + 1
            while end < len(ids) and places[end].tolist() == [start, stop]:
                end += 1
            owners = [
                place
                for place, letter in enumerate(text[start:stop], start)
                for _ in letter.encode("utf-8", "replace")
            ]
            if len(owners) == end - number:
                places[number:end, 0] = owners
                places[number:end, 1] = np.array(owners) + 1
            done = end

    def _renamed(
        self, text: str, spelled: tuple[tuple[int, int], ...]
    ) -> tuple[list[int], np.ndarray]:
        """Ids, and places [tokens, 2], of a text in which special tokens inside `spelled`
        are text: the others are written as `_renaming` calls them, which knows no more.
        """
        pieces, before, after, end = [], [0], [0], 0
        for match in self._pattern.finditer(text):
            if any(a < match.end() and match.start() < b for a, b in spelled):
                continue
            name = self._names[match[0]]
            pieces += [text[end : match.start()], name]
            end = match.end()
            before += [match.start(), end]
            start = after[-1] + len(pieces[-2])
            after += [start, start + len(name)]
        pieces.append(text[end:])
        found = self._renaming.encode("".join(pieces), add_special_tokens=False)
        places = np.array(found.offsets, np.int64).reshape(-1, 2)
        # Back to the places of `text`: every edge of a name is an edge of its token.
        left, right = np.array(after), np.array(before)
        first = np.searchsorted(left, places[:, 0], "right") - 1
        last = np.searchsorted(left, places[:, 1], "left")
        last -= left[np.minimum(last, left.size - 1)] != places[:, 1]
        starts = right[first] + places[:, 0] - left[first]
        stops = right[last] + places[:, 1] - left[last]
        return found.ids, np.stack((starts, stops), axis=1)

    def _checked(self, renaming: Any) -> Any:
        """The tokenizer, if it gives the same ids where nothing is spelled; else None."""
        self._renaming = renaming
        for token in self._special if renaming is not None else ():
            text = f"{token}user\n Hello,  world{token}\n{token}a\nÀ b {token} c"
            whole = self._backend.encode(text, add_special_tokens=False)
            ids, places = self._renamed(text, ())
            if ids != whole.ids or places.tolist() != [list(p) for p in whole.offsets]:
                return None
        return renaming
