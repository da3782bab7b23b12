"""What is to be measured of models that somebody names: checkpoints, Hugging Face directories."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from alia_ctx.config.evaluation import RetrievalConfig
from alia_ctx.config.run import EngineConfig
from alia_ctx.data.tokens import TextEncoder, tokenizer_statement
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import AliaError, ConfigError, DataError, Problems
from alia_ctx.evaluation.held_out import longest_measurable
from alia_ctx.progress import is_main, say
from alia_ctx.spec.layout import Layout
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.workflow.evaluated_models import (
    EvaluatedModel,
    choose_precision,
    named_apart,
    of_directory,
)
from alia_ctx.workflow.evaluation import EvaluationTask
from alia_ctx.workflow.evaluation_results import Evaluation
from alia_ctx.workflow.evaluation_tasks import (
    base_control,
    contrast_model,
    haystack_of,
    retrieval_settings,
    text_encoding,
)
from alia_ctx.workflow.held_out_text import ReadText
from alia_ctx.workflow.measuring import Measurement
from alia_ctx.workflow.model_checksums import share_checksums

Names = tuple[str, ...]
_NEEDS_TOKENIZER = ("retrieval", "passkey")


@dataclass(frozen=True)
class Asked:
    """What somebody asks of models by name.

    Args:
        texts: files, directories or globs of held-out text.
        text_key: field or column that has the text, of inputs that are records.
        contexts: tokens to show (default: the first model's own).
        tokenizer: for models that have none.
        precision: default: bf16 on GPUs, fp32 on hosts.
        contrast: name of the model that finds LongPPL's key tokens (default: the last).
    """

    evaluators: tuple[str, ...]
    texts: tuple[str, ...] = ()
    text_key: str = "text"
    contexts: tuple[int, ...] = ()
    documents: int = 64
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    tokenizer: Path | None = None
    precision: str | None = None
    contrast: str | None = None
    layout: Layout | None = None


def read_weights_once(paths: Sequence[Path]) -> None:
    """Have the first rank alone read the weights of Hugging Face directories. Collective.

    What is wrong with one is no matter here: each rank finds it by itself (`models_task`).
    """
    ranks = starting_ranks()
    if ranks.rank == 0 and ranks.world_size > 1:
        for path in paths:
            with suppress(AliaError, OSError):
                of_directory(path)
    share_checksums(ranks)


def models_task(paths: Sequence[Path], asked: Asked, directory: Path) -> EvaluationTask:
    """Checkpoints and Hugging Face directories at the same contexts, the base first."""
    models = named_apart([of_directory(path) for path in paths])
    for model in models:
        if model.through != "engine" and is_main():
            say(f"{model.name} runs through {model.through}")
    native = models[0].context
    contexts = asked.contexts or (native,)
    named = {model.name: model for model in models}
    contrast = contrast_model(asked.contrast, named) if asked.contrast else None

    @cache
    def measurement(name: str) -> Measurement:
        return _models_measurement(named[name], asked, contexts, native)

    _refuse(models, contexts, asked)
    for model in models:  # what a tokenizer or the text lacks is said before any work
        measurement(model.name)
    for note in dict.fromkeys(_notes(models, asked, contexts, measurement)):
        if is_main():
            say(f"note: {note}")
    controls = []
    if native < max(contexts):  # below its own length no model is asked for far context
        on = measurement(models[0].name)
        controls = base_control(models[0], on, contexts, asked.evaluators)
    evaluations = controls + [
        Evaluation(f"{model.name} at {context:,}", model, context, asked.evaluators)
        for model in models
        for context in contexts
    ]
    return EvaluationTask(
        tuple(evaluations),
        lambda model: measurement(model.name),
        choose_precision(EngineConfig(), asked.precision),
        directory,
        contrast=contrast,
        layout=asked.layout,
        marked=True,
    )


def _notes(
    models: Sequence[EvaluatedModel],
    asked: Asked,
    contexts: Sequence[int],
    measurement: Callable[[str], Measurement],
) -> Iterator[str]:
    """What is measured otherwise than one may think, in sentences."""
    own = sorted({model.context for model in models})
    if not asked.contexts and len(own) > 1:
        yield (
            f"all models are shown {contexts[0]:,} tokens, the first one's own; "
            f"--context {','.join(map(str, own))} shows each its own too"
        )
    for model in models:
        on = measurement(model.name)
        if on.text is None:
            if "retrieval" in asked.evaluators:
                yield "there is no --text, so that noise hides what retrieval asks for"
            continue
        if isinstance(on.text, ReadText) and on.text.counts.left_out:
            counts = on.text.counts
            yield "\n  ".join(
                [
                    f"{counts.left_out:,} documents of {on.text.where} left out: "
                    f"{counts.reasons()}",
                    *counts.examples,
                ]
            )
        if isinstance(on.text, ReadText) and on.text.copies:
            yield (
                f"{on.text.copies:,} documents are equal to another in the first "
                f"{max(contexts):,} ids of {model.name}; each is counted once"
            )
        if short := int((on.text.lengths < on.length).sum()):
            yield (
                f"{short:,} of {len(on.text.lengths):,} documents are shorter than "
                f"{on.length:,} tokens in the ids of {model.name} and are left out"
            )


def _refuse(
    models: Sequence[EvaluatedModel], contexts: Sequence[int], asked: Asked
) -> None:
    """ConfigError naming every model that has too few positions for a context, or too few
    rows for the ids of its tokenizer.
    """
    problems = Problems()
    for model in models:
        for directory, remedy in _tokenizers_of(model, asked):
            rows = _rows_needed(directory, model)
            problems.need(
                rows <= model.vocab_size,
                f"tokenizer of {model.name}",
                directory,
                f"its ids need {rows:,} rows of the embedding, and {model.path} has "
                f"{model.vocab_size:,} (vocab_size)",
                remedy.replace("{rows}", str(rows)),
            )
        problems.need(
            model.limit is None or max(contexts) <= model.limit,
            "--context",
            max(contexts),
            f"is more than {model.path} can read: its table of positions has "
            f"{model.limit or 0:,}",
            f"ask for at most {model.limit or 0:,}, or leave the model out",
        )
    if problems:
        raise ConfigError("", problems)


def _tokenizers_of(model: EvaluatedModel, asked: Asked) -> Iterator[tuple[Path, str]]:
    """Tokenizers whose ids a model must have rows for, and what to do where it has not:
    the one that it reads by, and of what is imported also its own.
    """
    other = asked.tokenizer if _needs_tokenizer(asked) else None
    if other is not None:
        yield other, "name one that is of this model, or none where it has its own"
    is_imported = model.model is not None and not model.is_checkpoint
    if model.tokenizer is not None and is_imported:
        yield (
            model.tokenizer,
            "put the model's own tokenizer there; or, where tokens were added since it "
            f"was trained, evaluate what `alia-ctx import-hf {shlex.quote(str(model.path))} "
            "CHECKPOINT --resize-embeddings {rows}` makes",
        )
    elif model.tokenizer is not None and other is None:
        yield model.tokenizer, "name the model's own tokenizer with --tokenizer"


def _needs_tokenizer(asked: Asked) -> bool:
    return bool(asked.texts) or any(e in _NEEDS_TOKENIZER for e in asked.evaluators)


def _rows_needed(directory: Path, model: EvaluatedModel) -> int:
    """One more than the largest id of a tokenizer."""
    architecture = model.model.architecture if model.model else None
    return 1 + max(
        HubTokenizer(directory, architecture).vocabulary.values(), default=-1
    )


def _models_measurement(
    model: EvaluatedModel, asked: Asked, contexts: Sequence[int], native: int
) -> Measurement:
    """What one of the models is measured on, in its own tokens."""
    directory = asked.tokenizer or model.tokenizer
    needs = _needs_tokenizer(asked)
    if directory is None and needs:
        raise DataError(
            f"{model.path}: holds no tokenizer, which text and retrieval need; name its "
            "directory with --tokenizer"
        )
    model_type = model.model.architecture if model.model else None
    tokenizer = HubTokenizer(directory, model_type) if directory and needs else None
    bos = _adds_bos(tokenizer)
    text = None
    if tokenizer is not None and asked.texts:
        encoder = TextEncoder(
            tokenizer.directory,
            append_eos=False,
            prepend_bos=bos,
            model_type=model_type,
        )
        text = ReadText(asked.texts, encoder, contexts, asked.documents, asked.text_key)
    encode, prefix = text_encoding(directory or "", model_type)
    return Measurement(
        text=text,
        length=(longest_measurable(text, contexts) or 0) if text else 0,
        documents=asked.documents,
        edges=tuple(sorted({0, native, *contexts})),
        native=native,
        vocab_size=model.vocab_size,
        retrieval=retrieval_settings(asked.retrieval, text is not None),
        encode=encode,
        prefix=prefix() if bos else (),
        haystack=haystack_of(text, lambda: tokenizer.auto if tokenizer else None),
        tokenizer=cache(
            lambda: tokenizer_statement(Path(directory)) if directory else None
        ),
    )


def _adds_bos(tokenizer: HubTokenizer | None) -> bool:
    """Whether a text begins with BOS as this tokenizer's users know it."""
    if tokenizer is None:
        return False
    bos = getattr(tokenizer.auto, "bos_token_id", None)
    ids = tokenizer.auto("a").input_ids
    return bos is not None and bool(ids) and ids[0] == bos
