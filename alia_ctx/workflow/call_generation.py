"""Answers of a Hugging Face model to questions with tools, by transformers in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.data.chat import Conversation, Message, RowError
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import CheckpointError, ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling import Answer, Case, FunctionNames, tools_of
from alia_ctx.files import checksum
from alia_ctx.workflow.evaluated_models import of_directory

_END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class CallSettings:
    """What decides an answer beside model and question.

    Args:
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        seed: of sampling; each case has a stream of its own, so that neither batches
            nor an interruption change what is drawn.
        names: whether dots in functions' names are shown as underscores.
    """

    max_new_tokens: int = 1000
    temperature: float = 0.0
    seed: int = 0
    names: FunctionNames = "underscore"


class TransformersModel:
    """A model directory whose chat template shows the tools.

    Args:
        template: of `ChatTemplate`; None is the tokenizer's own, and the shipped
            `chatml-tools` where it has none, as with base models.

    CheckpointError or DataError where there is no model, tokenizer or template.
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
        self._settings, self._batch_size = settings, batch_size
        self._context = model.context
        self._tokenizer = HubTokenizer(directory)
        self._auto: Any = self._tokenizer.auto
        self.template = template or (
            "tokenizer" if self._auto.chat_template else "chatml-tools"
        )
        self._chat = ChatTemplate(self.template, self._tokenizer)
        self.statement = {
            **model.statement,
            "tokenizer": self._tokenizer.fingerprint(),
            "template": self._chat.fingerprint,
            "precision": _precision(),
            "settings": settings,
        }

    def prompt(self, case: Case) -> str:
        """What the model reads, as text."""
        tools = tools_of(case.functions, case.language, self._settings.names)
        messages = tuple(Message(m["role"], m["content"]) for m in case.messages)
        asked = Conversation(messages, json.dumps(tools) if tools else None)
        try:
            return self._chat.render(asked, prompt=True)
        except RowError as error:
            raise DataError(f"{case.id}: {error.detail}") from error

    def answers(self, cases: Sequence[Case]) -> Iterator[list[tuple[str, Answer]]]:
        """Answers by batches, those to the longest questions first: where memory does not
        suffice, it shows at once.
        """
        ids = self._tokenizer.ids([self.prompt(c) for c in cases], split_special=False)
        numbered = sorted(
            zip(cases, ids, strict=True), key=lambda pair: len(pair[1]), reverse=True
        )
        longest = self._context - self._settings.max_new_tokens
        refused = [
            (case.id, Answer("", fault=self._too_long(len(tokens))))
            for case, tokens in numbered
            if len(tokens) > longest
        ]
        if refused:
            yield refused
        left = numbered[len(refused) :]
        if not left:
            return
        writer = _Writer(self.directory, self._auto, self._settings)
        for start in range(0, len(left), self._batch_size):
            batch = left[start : start + self._batch_size]
            answers = writer.write([t for _, t in batch], [c.id for c, _ in batch])
            yield [
                (c.id, answer) for (c, _), answer in zip(batch, answers, strict=True)
            ]

    def _too_long(self, size: int) -> str:
        return (
            f"a question of {size:,} tokens and an answer of "
            f"{self._settings.max_new_tokens:,} do not fit into {self._context:,}"
        )


def _precision() -> str:
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


class _Writer:
    """A loaded model that goes on with token ids until its turn ends."""

    def __init__(self, directory: Path, tokenizer: Any, settings: CallSettings) -> None:
        import torch
        from transformers import GenerationConfig

        from alia_ctx.hf.scoring import CausalModel

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        loaded = CausalModel(directory, dtypes[_precision()])
        self._model, self._device = loaded.model, loaded.device
        self._tokenizer, self._settings = tokenizer, settings
        self._stops = self._stop_ids()
        if not self._stops:
            raise ConfigError(
                "",
                [
                    Problem(
                        "eos_token_id",
                        directory,
                        "neither the model nor its tokenizer says what ends an answer",
                        "name it in generation_config.json",
                    )
                ],
            )
        # In place of the model's own, whose penalties and sampling nobody asked for.
        make: Any = GenerationConfig  # untyped
        self._model.generation_config = make(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=self._stops,
            pad_token_id=self._stops[0],
        )

    def _stop_ids(self) -> list[int]:
        stated = self._model.generation_config.eos_token_id
        ids = stated if isinstance(stated, list) else [stated]
        ids.append(self._tokenizer.eos_token_id)
        if _END_OF_TURN in self._tokenizer.get_vocab():
            ids.append(self._tokenizer.convert_tokens_to_ids(_END_OF_TURN))
        return list(dict.fromkeys(i for i in ids if i is not None))

    def write(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Answer]:
        """Answers to prompts of token ids; `names` seed their sampling."""
        import torch

        width = max(map(len, prompts))
        # Padded on the left: what is written follows the question at once.
        ids = torch.full((len(prompts), width), self._stops[0])
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        processors = []
        if self._settings.temperature > 0:
            processors.append(_GumbelNoise(self._settings, names))
        with torch.inference_mode():
            written = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                logits_processor=processors,
            )
        return [self._answer(row[width:].tolist()) for row in written]

    def _answer(self, tokens: list[int]) -> Answer:
        ends = [index for index, token in enumerate(tokens) if token in self._stops]
        kept = tokens[: ends[0]] if ends else tokens
        # Special tokens stay: some tokenizers have one for `<tool_call>`.
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        return Answer(text, tokens=len(kept), cut=not ends)


class _GumbelNoise:
    """Sampling as a greedy choice: the maximum of logits / temperature plus Gumbel noise is
    a draw from the softmax. Each row has a generator of its own.
    """

    def __init__(self, settings: CallSettings, names: Sequence[str]) -> None:
        import torch

        self._temperature = settings.temperature
        self._generators = [
            torch.Generator().manual_seed(
                int(checksum(f"{settings.seed} {name}".encode())[:15], 16)
            )
            for name in names
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        size = scores.shape[-1]
        uniform = torch.stack(
            [
                torch.rand(size, generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        noise = -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 1e-16)))
        return scores.float() / self._temperature + noise.to(scores.device).float()
