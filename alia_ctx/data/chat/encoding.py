"""Conversations -> token ids with the targets that are trained, proven one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import Rendered, render_turns, special_pattern
from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.tokens.encoder import (
    rust_equivalent,
    rust_tokenizer,
    stripped_tokenizer,
)
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import token_dtype
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as a document: ids [tokens], and for each whether it is trained as a
    target, bool [tokens]; its text; the turns that were cut off because it was too long;
    special tokens that its contents spell.
    """

    ids: np.ndarray
    trained: np.ndarray
    text: str
    cut_turns: int
    spelled: dict[str, int]


class ChatEncoder:
    """Renders with a template, tokenises the whole text once, and marks what is trained.

    The ids are those of `AutoTokenizer` for the text that `apply_chat_template` gives;
    neither BOS nor EOS is put around it but what the template writes. Special tokens
    that contents spell are text (`split`), ids as the template's own (`keep`), or a
    reason to refuse the conversation (`refuse`).
    """

    def __init__(
        self,
        directory: str | Path,
        spec: ChatSpec,
        *,
        max_tokens: int | None = None,
        special_tokens: SpecialTokens = "split",
        model_type: str | None = None,
    ) -> None:
        """`model_type`: of the model beside which the tokenizer will lie.

        DataError where the directory is no tokenizer of the `tokenizers` library (others
        do not tell which characters a token comes from), or the template is none.
        """
        self.spec, self.special_tokens = spec, special_tokens
        self.max_tokens = max_tokens if spec.max_tokens is None else spec.max_tokens
        self.tokenizer = HubTokenizer(directory, model_type)
        self.template = ChatTemplate(spec.template, self.tokenizer)
        self.vocabulary = max(self.tokenizer.vocabulary.values(), default=-1) + 1
        self.dtype = token_dtype(self.vocabulary)
        self._special = dict(self.tokenizer.special)
        self._pattern = special_pattern(self._special)
        backend = rust_equivalent(self.tokenizer)
        if backend is None:
            raise DataError(
                f"{directory}: conversations need a tokenizer that the `tokenizers` "
                "library reads (tokenizer.json), because others do not say which "
                "characters a token comes from; save it as one"
            )
        # A post-processor adds tokens that nobody asks for here, and ByteLevel's cuts
        # blanks off the offsets.
        document = {**json.loads(backend), "post_processor": None}
        self._backend = rust_tokenizer(json.dumps(document), self._special)
        self._stripped = stripped_tokenizer(json.dumps(document), self._special)
        self._pieces_agree = self._pieces_give_the_same_ids()

    def identity(self) -> dict[str, Any]:
        """What decides ids and weights, for the statement of a store."""
        return {
            "form": self.spec.format,
            "template": {
                "name": self.template.name,
                "fingerprint": self.template.fingerprint,
            },
            "train_on": self.spec.train_on,
            "max_length": self.spec.max_length,
            "max_tokens": self.max_tokens,
            "tokenizer": self.tokenizer.fingerprint(),
            "special_tokens": self.special_tokens,
        }

    def encode(self, conversation: Conversation) -> EncodedChat:
        """RowError where the conversation cannot be trained on, and the mask is not what
        the assistant said: nothing is returned that is not proven.
        """
        encoded = self._encode(conversation)
        if self.max_tokens is None or encoded.ids.size <= self.max_tokens:
            return encoded
        if self.spec.max_length == "split":
            shorter = self._longest(conversation, self.max_tokens)
            if shorter is not None:
                return shorter
        size, most = encoded.ids.size, self.max_tokens
        raise RowError("too_long", f"{size:,} tokens, {most:,} are allowed")

    def _longest(self, conversation: Conversation, most: int) -> EncodedChat | None:
        """The most turns from the beginning, up to an answer, that fit.

        Fewer turns need not be fewer tokens with every template, so each is tried.
        """
        messages = conversation.messages
        for stop in range(len(messages) - 1, 0, -1):
            if messages[stop - 1].role != "assistant":
                continue
            encoded = self._encode(conversation.until(stop))
            if encoded.ids.size <= most:
                cut = len(messages) - stop
                return EncodedChat(
                    encoded.ids, encoded.trained, encoded.text, cut, encoded.spelled
                )
        return None

    def _encode(self, conversation: Conversation) -> EncodedChat:
        train_on = self.spec.train_on
        rendered = render_turns(conversation, self.template, self._pattern, train_on)
        spelled = Counter(rendered.text[a:b] for a, b in rendered.spelled)
        ids, starts, stops = self._tokens(rendered, spelled)
        trained = np.zeros(ids.size, bool)
        for turn in rendered.turns:
            begin = turn.header if train_on == "assistant_with_header" else turn.start
            first = int(np.searchsorted(starts, begin))
            last = int(np.searchsorted(starts, turn.stop))
            self._require_edges(rendered.text, starts, stops, ids, (begin, turn.stop))
            self._require_proof(rendered.text[begin : turn.stop], ids, first, last)
            trained[first:last] = True
        if not trained[1:].any():
            raise RowError("nothing_trained", "no token of it is a trained target")
        return EncodedChat(ids, trained, rendered.text, 0, dict(spelled))

    def _tokens(
        self, rendered: Rendered, spelled: Counter[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, and the first character and the one after the last, of each token."""
        if not spelled or self.special_tokens == "keep":
            found = self._backend.encode(rendered.text, add_special_tokens=False)
            return self._arrays(found.ids, found.offsets)
        names = ", ".join(spelled)
        if self.special_tokens == "refuse":
            raise RowError("special_token", f"its contents spell {names}")
        if not self._pieces_agree:
            raise RowError(
                "special_token",
                f"its contents spell {names}, and this tokenizer gives other ids to the "
                "parts of a text than to the whole",
            )
        ids, offsets = self._in_pieces(rendered.text, rendered.spelled)
        return self._arrays(ids, offsets)

    def _arrays(
        self, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = np.array(offsets, np.int64).reshape(-1, 2)
        return np.array(ids, self.dtype), places[:, 0], places[:, 1]

    def _in_pieces(
        self, text: str, spelled: tuple[tuple[int, int], ...]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a text in which special tokens inside `spelled` are text."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        marks = [
            (match.start(), match.end())
            for match in self._pattern.finditer(text)
            if not any(a < match.end() and match.start() < b for a, b in spelled)
        ]
        for start, stop in [*marks, (len(text), len(text))]:
            piece = self._as_text(text[position:start])
            ids += piece.ids
            offsets += [(position + a, position + b) for a, b in piece.offsets]
            if stop > start:
                ids.append(self._special[text[start:stop]])
                offsets.append((start, stop))
            position = stop
        return ids, offsets

    def _as_text(self, text: str) -> Any:
        """The encoding of a text in which no special token is one."""
        self._backend.encode_special_tokens = True
        piece = self._backend.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = False
        control = {*self._special.values()} - {self.tokenizer.unknown_id}
        if not control & {*piece.ids}:
            return piece
        # Some models have `</s>` among their pieces.
        if self._stripped is None:
            detail = "this tokenizer makes a control token of text"
            raise RowError("special_token", detail)
        return self._stripped.encode(text, add_special_tokens=False)

    def _pieces_give_the_same_ids(self) -> bool:
        """Whether tokenising between special tokens is tokenising the whole, as it is with
        tokenizers that treat what stands between added tokens apart.
        """
        for token in self._special:
            text = f"{token}user\n Hello,  world{token}\n{token}a\nÀ b {token}"
            whole = self._backend.encode(text, add_special_tokens=False)
            try:
                if self._in_pieces(text, ())[0] != whole.ids:
                    return False
            except RowError:
                return False
        return True

    def _require_edges(
        self,
        text: str,
        starts: np.ndarray,
        stops: np.ndarray,
        ids: np.ndarray,
        span: tuple[int, int],
    ) -> None:
        """No token lies on both sides of an edge; a special token may take the blanks
        after it along (`rstrip`), which is no word of anybody.
        """
        for edge in span:
            across = np.flatnonzero((starts < edge) & (stops > edge))
            for number in across.tolist():
                control = int(ids[number]) in self._special.values()
                if control and not text[edge : stops[number]].strip():
                    continue
                piece = text[starts[number] : stops[number]]
                raise RowError(
                    "token_across_turns",
                    f"the token {piece!r} lies on both sides of an edge of a turn; a "
                    "model that begins its turn there could not have written it",
                )

    def _require_proof(
        self, words: str, ids: np.ndarray, first: int, last: int
    ) -> None:
        """decode(ids of the turn) is the turn's text, or what the tokenizer's own
        normaliser makes of it.
        """
        decode: Callable[[Any], str] = self._decode
        # A decoder may treat the first token apart (a blank is dropped), so one before
        # it comes along.
        before = decode(ids[max(first - 1, 0) : first])
        said = decode(ids[max(first - 1, 0) : last])
        said = said[len(before) :] if said.startswith(before) else said
        if said == words:
            return
        normalizer = self._backend.normalizer
        if normalizer is not None and said == normalizer.normalize_str(words):
            return
        place = next(
            (i for i, (a, b) in enumerate(zip(said, words, strict=False)) if a != b),
            min(len(said), len(words)),
        )
        raise RowError(
            "mask_not_proven",
            f"the trained tokens read {said[place : place + 30]!r} where the turn says "
            f"{words[place : place + 30]!r}",
        )

    def _decode(self, ids: np.ndarray) -> str:
        return str(
            self.tokenizer.auto.decode(
                ids.tolist(),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )
