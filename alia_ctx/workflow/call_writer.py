"""A loaded model that writes answers to prompts of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.data.chat.reasoning import opened_reasoning
from alia_ctx.evaluation.function_calling import Answer, FunctionNames
from alia_ctx.spec.execution import Precision
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.call_sampling import GumbelNoise

# Of the mask [prompts, width, width] that prompts of several lengths need if they are read
# together. At 64 prompts that is 2,048 tokens; at 30,000 it would be 58 GB.
_LARGEST_MASK = 2**28
_LAST = 32  # tokens of a prompt, in which one that opens reasoning does so


@dataclass(frozen=True)
class CallSettings:
    """What decides an answer beside model and question.

    Args:
        max_new_tokens: most tokens of an answer; the end of the context is one too.
        temperature: 0 is greedy.
        seed: of sampling; each case has a stream of its own, so that neither batches
            nor an interruption change what is drawn.
        names: whether dots in functions' names are shown as underscores.
    """

    max_new_tokens: int = 1000
    temperature: float = 0.0
    seed: int = 0
    names: FunctionNames = "underscore"


def call_precision() -> Precision:
    """bf16 on a GPU, fp32 without one."""
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


class Writer:
    """A loaded model that goes on with token ids until its turn ends."""

    def __init__(
        self,
        directory: Path,
        tokenizer: Any,
        settings: CallSettings,
        stops: list[int],
    ) -> None:
        from transformers import GenerationConfig

        from alia_ctx.hf.scoring import CausalModel

        self._loaded = CausalModel(directory, call_precision())
        self._model, self._device = self._loaded.model, self._loaded.device
        self._tokenizer, self._settings = tokenizer, settings
        self._stops = stops
        self._keeps_all = True  # till it is seen that the model does not
        # In place of the model's own, whose penalties and sampling nobody asked for.
        make: Any = GenerationConfig  # untyped
        self._model.generation_config = make(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=self._stops,
            pad_token_id=self._stops[0],
        )

    def hold_base(self, rope: RopeSpec, context: int) -> None:
        """As `CausalModel`'s."""
        self._loaded.hold_base(rope, context)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        rooms: Sequence[int],
    ) -> list[Answer]:
        """Answers to prompts of token ids, of at most so many tokens; `names` seed their
        sampling. None depends on its neighbours: all are written as long as the longest,
        and cut; one at a time where the longest decides how the others are read.
        """
        if self._loaded.turns_by_length:
            answers = []
            for prompt, name, room in zip(prompts, names, rooms, strict=True):
                self._loaded.forget_lengths()
                answers += self._together([prompt], [name], [room])
            return answers
        return self._together(prompts, names, rooms)

    def _together(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        rooms: Sequence[int],
    ) -> list[Answer]:
        import torch

        from alia_ctx.hf.upstream import without_reminder_of_length

        width = max(map(len, prompts))
        # Padded on the left: what is written follows the question at once.
        ids = torch.full((len(prompts), width), self._stops[0])
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        processors = []
        if (temperature := self._settings.temperature) > 0:
            processors.append(GumbelNoise(temperature, self._settings.seed, names))
        with torch.inference_mode(), without_reminder_of_length():
            written = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                past_key_values=self._read(prompts, width),
                logits_processor=processors,
                max_new_tokens=max(rooms),
            )
        return [
            self._answer(row[width : width + room].tolist(), prompt)
            for row, room, prompt in zip(written, rooms, prompts, strict=True)
        ]

    def _read(self, prompts: Sequence[Sequence[int]], width: int) -> Any | None:
        """The cache of prompts that are better read apart; None leaves it to `generate`."""
        from alia_ctx.hf.prompt_cache import read_apart

        sizes = [len(prompt) for prompt in prompts]
        is_large = len(prompts) * width**2 > _LARGEST_MASK and min(sizes) < width
        if not (is_large and min(sizes) > 1 and self._keeps_all):
            return None
        cache = read_apart(self._model, prompts)
        self._keeps_all = cache is not None
        return cache

    def _answer(self, tokens: list[int], prompt: Sequence[int]) -> Answer:
        ends = [index for index, token in enumerate(tokens) if token in self._stops]
        kept = tokens[: ends[0]] if ends else tokens
        # Special tokens stay: some tokenizers have one for `<tool_call>`.
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        # Without it an answer that is cut while it reasons would look like words.
        ended = self._tokenizer.decode(prompt[-_LAST:], skip_special_tokens=False)
        text = opened_reasoning(ended) + text
        return Answer(text, tokens=len(kept), cut=not ends)
