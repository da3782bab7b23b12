"""Answers of a Hugging Face model to questions with tools, by transformers in batches."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import date
from functools import cached_property
from itertools import batched
from pathlib import Path
from typing import Any

from alia_ctx.data.chat import Conversation, Message, RowError
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import CheckpointError, ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling import Answer, Case, tools_of
from alia_ctx.hf.rope_config import dynamic_note
from alia_ctx.identity import require_same
from alia_ctx.workflow.call_server import served
from alia_ctx.workflow.call_template import template_with_tools
from alia_ctx.workflow.call_writer import CallSettings, Writer, call_precision
from alia_ctx.workflow.evaluated_models import of_directory

_END_OF_TURN = "<|im_end|>"
# Tokens of a batch, those that fill it up to the longest one's length among them, over its
# own: they are what the cache of keys and values takes.
_MOST_FILL = 2
# Where this is refused too, it is not for what another question says.
SHORTEST = Case(
    "a short question",
    "simple_python",
    ({"role": "user", "content": "What time is it?"},),
    (
        {
            "name": "now",
            "description": "The time.",
            "parameters": {"type": "dict", "properties": {}, "required": []},
        },
    ),
    None,
)


class TransformersModel:
    """A model directory whose chat template shows the tools.

    Args:
        template: as in `template_with_tools`.

    CheckpointError or DataError where there is no model, tokenizer or template, ConfigError
    where the template shows no tools.
    """

    def __init__(
        self,
        directory: Path,
        settings: CallSettings,
        template: str | None = None,
        batch_size: int = 8,
    ) -> None:
        model = of_directory(directory)
        if model.is_checkpoint:
            raise CheckpointError(
                f"{directory}: is a checkpoint, which transformers cannot run; `alia-ctx "
                "export-hf` makes a Hugging Face directory of it"
            )
        if model.tokenizer is None:
            raise DataError(f"{directory}: has no tokenizer; copy its files there")
        self.name, self.directory = model.name, directory
        self.context, self._model = model.context, [*model.statement]
        self._rope = model.rope if not model.packs else None  # turned by one base
        self.notes: tuple[str, ...] = ()
        if self._rope is not None:
            made = f"answers are made with the base of {self.context:,} tokens."
            self.notes = (f"{made} {dynamic_note(self._rope, self.context)}",)
        self.may_change = False  # its statement is all that it is
        self._settings, self._batch_size = settings, batch_size
        self._has_table = model.limit is not None  # of positions
        self._tokenizer = HubTokenizer(directory)
        self._auto: Any = self._tokenizer.auto
        self._showing = template_with_tools(template, self._tokenizer)
        self.template, self._chat = self._showing.name, self._showing.template
        self.notes = (*self.notes, *self._showing.notes)
        self._stops = _stop_ids(directory, self._tokenizer, self._showing.stops)
        self.statement = {
            **model.statement,
            "tokenizer": self._tokenizer.fingerprint(),
            "template": self._chat.fingerprint,
            "precision": call_precision(),
            "answers_end": "at the context's end",
            "context": model.context,
            "stop_ids": self._stops,
            **({} if self._rope is None else {"rope_base_of": model.context}),
            **({"day": date.today().isoformat()} if self._chat.dated else {}),
            "settings": settings,
        }

    def prompt(self, case: Case) -> str:
        """What the model reads, as text; RowError where the template refuses it."""
        tools = tools_of(case.functions, case.language, self._settings.names)
        messages = tuple(Message(m["role"], m["content"]) for m in case.messages)
        asked = Conversation(messages, json.dumps(tools) if tools else None)
        return self._chat.render(asked, prompt=True)

    def answers(self, cases: Sequence[Case]) -> Iterator[list[tuple[str, Answer]]]:
        """Answers by batches, those to the longest questions first: where memory does not
        suffice, it shows at once.

        DataError where the template refuses questions, and the shortest with a tool too.
        """
        texts, refused = self._prompts(cases)
        ids = self._tokenizer.ids([text for _, text in texts], split_special=False)
        numbered = sorted(
            zip([case for case, _ in texts], ids, strict=True),
            key=lambda pair: len(pair[1]),
            reverse=True,
        )
        too_long = [
            (case.id, Answer("", fault=self.too_long(len(tokens))))
            for case, tokens in numbered
            if len(tokens) >= self.context
        ]
        if refused or too_long:
            yield [*refused, *too_long]
        for batch in batched(numbered[len(too_long) :], self._batch_size):
            names = [case.id for case, _ in batch]
            answers = self.write([tokens for _, tokens in batch], names)
            yield list(zip(names, answers, strict=True))

    def _prompts(
        self, cases: Sequence[Case]
    ) -> tuple[list[tuple[Case, str]], list[tuple[str, Answer]]]:
        """Texts of questions, and what is kept of those that the template refuses."""
        texts, refused = [], []
        for case in cases:
            try:
                texts.append((case, self.prompt(case)))
            except RowError as error:
                refused.append((case.id, Answer("", fault=error.detail)))
        if refused and self.refusal():
            raise DataError(
                f"{self.directory}, case {refused[0][0]}: {refused[0][1].fault}; the "
                "shortest question with a tool is refused too; name another --template, as "
                "chatml-tools"
            )
        return texts, refused

    def refusal(self) -> str:
        """Why its template refuses the shortest question with a tool, if it does."""
        try:
            self.prompt(SHORTEST)
        except RowError as error:
            return error.detail
        return ""

    def conversation_ids(self, asked: Conversation) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next words begin;
        RowError where the template refuses it, or leaves out results that it has.
        """
        self._showing.require(asked)
        text = self._chat.render(asked, prompt=True)
        return list(self._tokenizer.ids([text], split_special=False)[0])

    def write(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Answer]:
        """Answers to prompts of token ids, each shorter than the context; `names` seed
        their sampling. Those of like lengths together, and fewer where memory does not
        hold all of them.

        DataError where it does not hold one, or not the model itself.
        """
        answers: dict[int, Answer] = {}
        for alike in _alike(prompts, [self._kept_apart(p) for p in prompts]):
            written = self._write_alike(
                [prompts[n] for n in alike], [names[n] for n in alike]
            )
            answers |= zip(alike, written, strict=True)
        return [answers[n] for n in range(len(prompts))]

    def _write_alike(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Answer]:
        import torch

        from alia_ctx.hf.upstream import is_lack_of_memory

        writer = self._writer  # outside: what cannot be loaded is no question's fault
        try:
            return writer.write(prompts, names, [self._room(p) for p in prompts])
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            if len(prompts) == 1:
                raise DataError(
                    f"{self.directory}: memory does not hold a question of "
                    f"{len(prompts[0]):,} tokens and its answer; take a larger GPU, or "
                    "leave the category out; answers that are there are kept"
                ) from error
        half = len(prompts) // 2  # outside: the error holds what was allocated
        torch.cuda.empty_cache()
        return [
            *self._write_alike(prompts[:half], names[:half]),
            *self._write_alike(prompts[half:], names[half:]),
        ]

    @cached_property
    def _writer(self) -> Writer:
        from alia_ctx.hf.upstream import is_lack_of_memory, no_room

        try:
            loaded = Writer(self.directory, self._auto, self._settings, self._stops)
            if self._rope is not None:
                loaded.hold_base(self._rope, self.context)
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            raise no_room(self.directory) from error
        # Weights are loaded when they are needed, others may be asked for hours before.
        then = {name: self.statement[name] for name in self._model}
        now = of_directory(self.directory).statement
        remedy = "it was replaced since the command began; start it again"
        require_same(then, now, str(self.directory), remedy)
        return loaded

    def close(self) -> None:
        """Free the memory of the weights; they are loaded again where they are needed."""
        if self.__dict__.pop("_writer", None) is not None:
            import torch

            gc.collect()  # modules and what is bound to them hold each other
            torch.cuda.empty_cache()

    def _room(self, prompt: Sequence[int]) -> int:
        """Most tokens of an answer."""
        return min(self._settings.max_new_tokens, self.context - len(prompt))

    def _kept_apart(self, prompt: Sequence[int]) -> int:
        """Prompts of which this differs are not written together: a table of positions has
        no place for what a shorter neighbour still writes.
        """
        return self._room(prompt) if self._has_table else 0

    def too_long(self, size: int) -> str:
        """What is said of a prompt that leaves no room for an answer."""
        return (
            f"a question of {size:,} tokens leaves no room for an answer in a context of "
            f"{self.context:,}"
        )

    def serving(self) -> AbstractContextManager[str]:
        """The address at which it answers OpenAI's clients, on loopback."""
        return served(self, self._batch_size)


def _alike(
    prompts: Sequence[Sequence[int]], apart: Sequence[int]
) -> Iterator[list[int]]:
    """Numbers of prompts to be read together, the longest first; never those whose `apart`
    differs.
    """
    group: list[int] = []
    tokens = 0
    for number in sorted(range(len(prompts)), key=lambda n: -len(prompts[n])):
        tokens += (size := len(prompts[number]))
        first = group[0] if group else number
        is_filled = len(prompts[first]) * (len(group) + 1) > _MOST_FILL * tokens
        if is_filled or apart[number] != apart[first]:
            yield group
            group, tokens = [], size
        group.append(number)
    if group:
        yield group


def _stop_ids(
    directory: Path, tokenizer: HubTokenizer, of_template: Sequence[str]
) -> list[int]:
    """What ends an answer: the model's EOS and stop ids, as transformers reads them
    (generation_config.json, and config.json where there is none), the tokenizer's EOS,
    `<|im_end|>`, and the tokens with which the template ends turns. ConfigError where there
    is none of them.
    """
    from alia_ctx.hf.upstream import end_ids

    auto = tokenizer.auto
    ids = [*end_ids(directory), auto.eos_token_id]
    if _END_OF_TURN in auto.get_vocab():
        ids.append(auto.convert_tokens_to_ids(_END_OF_TURN))
    ids += [tokenizer.special[token] for token in of_template]
    stops = list(dict.fromkeys(i for i in ids if i is not None))
    if not stops:
        rule = "neither the model nor its tokenizer says what ends an answer"
        remedy = "name it in generation_config.json"
        raise ConfigError("", [Problem("eos_token_id", directory, rule, remedy)])
    return stops
