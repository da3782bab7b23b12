"""Conversations -> token ids with the targets that are trained, proven one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.probing import probe
from alia_ctx.data.chat.reading_back import require_read_back
from alia_ctx.data.chat.rendered_tokens import RenderedTokens
from alia_ctx.data.chat.showing import unshown_reasoning
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import render_turns, special_pattern
from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import token_dtype
from alia_ctx.data.tokens.tokenizer import HubTokenizer, renewed


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as a document: ids [tokens], and for each whether it is trained as a
    target, whether a user or the assistant says it (words, and values of calls), and
    whether it is of the calls of a trained turn (stop token included), bool [tokens]; its
    text; the turns that were cut off because it was too long; special tokens that its
    contents spell; turns whose reasoning the template leaves out.
    """

    ids: np.ndarray
    trained: np.ndarray
    said: np.ndarray
    called: np.ndarray
    text: str
    cut_turns: int
    spelled: dict[str, int]
    unshown_reasoning: int = 0


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
        self.shown = probe(self.template, self._pattern)
        self._tokens = RenderedTokens(self.tokenizer, self._pattern, special_tokens)

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

    def renewed(self, identity: Any) -> Any:
        """The identity of a store, which may be of an earlier release, as of this one."""
        tokenizer = self.tokenizer
        return renewed(
            identity, tokenizer.former_fingerprint(), tokenizer.fingerprint()
        )

    def encode(self, conversation: Conversation) -> EncodedChat:
        """RowError where the conversation cannot be trained on, and the mask is not what
        the assistant said: nothing is returned that is not proven.
        """
        try:
            encoded = self._encode(conversation)
        except RecursionError as error:
            raise RowError("unparsable_messages", "is nested too deeply") from error
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
                return replace(encoded, cut_turns=cut)
        return None

    def _encode(self, conversation: Conversation) -> EncodedChat:
        self.shown.require(conversation)
        train_on = self.spec.train_on
        rendered = render_turns(conversation, self.template, self._pattern, train_on)
        # Servers look for calls where a request has tools, and nowhere else.
        if self.shown.hermes and conversation.tools is not None:
            for turn in rendered.turns:
                words = rendered.text[turn.start : turn.stop]
                message = conversation.messages[turn.message]
                require_read_back(message, words, turn.message)
        spelled = Counter(rendered.text[a:b] for a, b in rendered.spelled)
        ids, starts, stops = self._tokens.of(rendered, spelled)
        trained, called = np.zeros(ids.size, bool), np.zeros(ids.size, bool)
        for turn in rendered.turns:
            begin, end = turn.header, turn.stop
            first, last = np.searchsorted(starts, (begin, end)).tolist()
            self._require_edges(rendered.text, starts, stops, ids, (begin, end))
            self._require_proof(rendered.text[begin:end], ids, first, last)
            trained[first:last] = True
            if turn.calls is not None:
                called[np.searchsorted(starts, turn.calls) : last] = True
        if not trained[1:].any():
            raise RowError("nothing_trained", "no token of it is a trained target")
        said = np.zeros(ids.size, bool)
        for begin, end in rendered.said:
            first, last = np.searchsorted(starts, (begin, end)).tolist()
            said[first:last] = True
        return EncodedChat(
            ids,
            trained,
            said,
            called,
            rendered.text,
            0,
            dict(spelled),
            unshown_reasoning(conversation, self.template, rendered.text),
        )

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
        if said in (words, self._tokens.normalised(words)):
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
