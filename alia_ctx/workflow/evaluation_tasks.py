"""What is to be measured of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.config.evaluation import RetrievalConfig
from alia_ctx.config.run import HELD_OUT, RANDOM, RunConfig, position_edges
from alia_ctx.data.tokens import TextEncoder, tokenizer_statement
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.evaluation.held_out import Documents, longest_measurable
from alia_ctx.evaluation.retrieval import RULER, RetrievalSettings
from alia_ctx.identity import IdentityError
from alia_ctx.workflow.chain import recorded_origin, run_directory
from alia_ctx.workflow.evaluated_models import (
    EvaluatedModel,
    base_name,
    model_of,
    of_stage,
)
from alia_ctx.workflow.evaluation import (
    CONTROLS,
    EVALUATORS,
    EvaluationTask,
    Question,
)
from alia_ctx.workflow.evaluation_results import Evaluation, Role
from alia_ctx.workflow.held_out_text import haystack_texts, stored_text
from alia_ctx.workflow.measuring import NO_TEXT, NOT_TOKENISED, ON_TEXT, Measurement
from alia_ctx.workflow.stores import (
    open_store,
    require_same_held_out,
    require_tokenizer_of,
)

Names = tuple[str, ...]
_NEEDS_TOKENIZER = ("retrieval", "passkey")


def retrieval_settings(config: RetrievalConfig, has_text: bool) -> RetrievalSettings:
    """What hides the needles is the text; where there is none, noise, and it says so."""
    return RetrievalSettings(
        tasks=tuple(config.tasks or RULER),
        languages=tuple(config.languages),
        samples=config.samples,
        haystack=config.haystack if has_text else "noise",
        digits=config.digits,
    )


def run_measurement(
    run: RunConfig, native: int, contexts: Sequence[int], *, prefer: int = 0
) -> Measurement:
    """What the models of a run are measured on: documents of the longest of `contexts`
    that there are; `prefer` where that is longer and there are some.
    """
    text = _held_out(run)
    length = 0
    if text is not None:
        length = longest_measurable(text, contexts) or 0
        length = max(length, longest_measurable(text, [prefer] if prefer else []) or 0)
    tokenizer = cache(lambda: HubTokenizer(run.tokenizer, run.model.architecture))
    encode, prefix = text_encoding(run.tokenizer, run.model.architecture)
    return Measurement(
        text=text,
        length=length,
        documents=run.evaluation.documents,
        edges=evaluation_edges(run, native),
        native=native,
        vocab_size=run.model.vocab_size,
        retrieval=retrieval_settings(run.evaluation.retrieval, text is not None),
        encode=encode,
        prefix=prefix() if run.data.prepend_bos else (),
        haystack=haystack_of(text, lambda: tokenizer().auto),
        tokenizer=cache(lambda: tokenizer_statement(Path(run.tokenizer))),
        no_text=NOT_TOKENISED if run.evaluation.held_out else NO_TEXT,
    )


def evaluation_edges(run: RunConfig, native: int) -> tuple[int, ...]:
    """Limits of the position bands: the contexts of the base and of the stages, and what
    the configuration adds.
    """
    return tuple(sorted({*position_edges(run), native, *run.evaluation.position_edges}))


def _held_out(run: RunConfig) -> Documents | None:
    """DataError where the store is there and is not what the configuration says."""
    if run.evaluation.held_out is None:
        return None
    require_same_held_out(run)
    try:
        return stored_text(run)
    except DataError:
        store = run.evaluation.held_out.store or run_directory(run).store("held_out")
        if Path(f"{store}.idx").exists():  # there, and not readable or of other ids
            raise
        return None


def text_encoding(
    directory: str | Path, model_type: str | None
) -> tuple[Callable[[str], Sequence[int]], Callable[[], tuple[int, ...]]]:
    """(text -> ids, the ids that begin a text), made when they are first asked for."""

    @cache
    def encoder() -> TextEncoder:
        return TextEncoder(
            directory, append_eos=False, prepend_bos=False, model_type=model_type
        )

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = encoder().encode([text])[0].tokens.tolist()
        return ids

    def prefix() -> tuple[int, ...]:
        return (HubTokenizer(directory, model_type).special_id("bos_token"),)

    return lru_cache(1 << 16)(encode), prefix


def haystack_of(
    text: Documents | None, tokenizer: Callable[[], Any]
) -> Callable[[int], Sequence[str]]:
    """Length of a sample -> the documents that hide its needles."""

    @cache
    def texts(tokens: int) -> Sequence[str]:
        return [] if text is None else haystack_texts(text, tokenizer(), tokens)

    return texts


def run_contexts(run: RunConfig, native: int) -> list[int]:
    return sorted({native, *(stage.context for stage in run.stages.values())})


def native_context(run: RunConfig, name: str | None = None) -> int:
    """The base's own context: that of what the chain of the stage `name` (None: the first
    stage) starts from, or of its first stage where that is random weights. Where the base
    is not at hand any more, that stage's checkpoints say what it was.
    """
    first = name or next(iter(run.stages))
    while (base := run.stage(first).init_from) in run.stages:
        first = base
    if base != RANDOM:
        if Path(base, checkpoint.MANIFEST).is_file():
            return checkpoint.read_manifest(Path(base)).context
        known = recorded_origin(run, first)
        if known:
            return int(known["context"])
    return run.stage(first).context


@dataclass(frozen=True)
class Line:
    """A line of the report's comparison: a model by name, shown `context` tokens at a
    time, by some evaluators.
    """

    name: str
    model: str
    context: int
    evaluators: tuple[str, ...]
    role: Role


def standard_lines(run: RunConfig, length: int | None = None) -> list[Line]:
    """The report's comparison, the base first: the base at its own context and given
    longer ones, and every stage at its own.

    `length`: tokens that the held-out documents have; of text a model of a longer context
    is shown as many. Where the base is not at hand any more, there is no line of it.
    """
    measure = tuple(run.evaluation.measure)
    elsewhere = tuple(name for name in measure if name in _NEEDS_TOKENIZER)
    native, base = native_context(run), base_name(run)
    contexts = sorted({stage.context for stage in run.stages.values()})
    lines: list[Line] = []

    def add(title: str, model: str, context: int, names: Names, role: Role) -> None:
        """Text may be shorter than the context; what needs none is measured at all of it."""
        shown = min(context, length or context)
        on_text = tuple(name for name in names if name in ON_TEXT)
        others = tuple(name for name in names if name not in ON_TEXT)
        if shown == context:
            lines.append(Line(title, model, context, names, role))
            return
        lines.append(Line(title, model, shown, on_text, role))
        if others:
            name = f"{title} at {context:,}"
            lines.append(Line(name, model, context, others, Role.ASKED_FOR))

    if base is not None:
        add(base, base, native, measure, Role.BASE)
        for context in contexts:
            names = measure if context == contexts[-1] else elsewhere
            if context > native and names:
                title = f"{base}, given {context:,} tokens"
                add(title, base, context, names, Role.BASE_GIVEN_LONGER)
    for name, stage in run.stages.items():
        if name != base:
            add(name, name, stage.context, measure, Role.STAGE)
    return lines


def standard_questions(run: RunConfig, length: int | None) -> frozenset[Question]:
    """(model, context, evaluator) of all that the report's comparison may have, whichever
    evaluators are asked for; `length` as of `standard_lines`.
    """
    everything = replace(run.evaluation, measure=list(EVALUATORS))  # type: ignore[arg-type]
    return frozenset(
        (line.model, line.context, evaluator)
        for line in standard_lines(replace(run, evaluation=everything), length)
        for evaluator in line.evaluators
    )


def standard_task(run: RunConfig) -> EvaluationTask:
    """What the report compares, each model at hand. CheckpointError where a stage is not
    finished, IdentityError where it was trained with other settings.
    """
    native = native_context(run)
    measurement = run_measurement(run, native, run_contexts(run, native))
    model = cache(lambda name: model_of(run, name))
    evaluations = [
        Evaluation(
            line.name, model(line.model), line.context, line.evaluators, line.role
        )
        for line in standard_lines(run, measurement.length)
    ]
    return run_task(run, evaluations, measurement)


def evaluation_task(
    run: RunConfig,
    names: Sequence[str] = (),
    contexts: Sequence[int] = (),
    evaluators: Sequence[str] = (),
    contrast: str | None = None,
    configured: RunConfig | None = None,
) -> EvaluationTask:
    """What is asked of a run: the report's comparison by `evaluators`; or some stages
    (default: all) at some contexts (default: their own), beneath the base at its own and
    at the same.

    `configured` is the run by its own settings, where `run` has others: only results by
    those are kept where the report reads them.
    """
    standard = configured or run
    if evaluators:
        evaluation = replace(run.evaluation, measure=list(evaluators))  # type: ignore[arg-type]
        run = replace(run, evaluation=evaluation)
    task = (
        _stage_task(run, names, contexts) if names or contexts else standard_task(run)
    )
    if contrast is not None:
        models = {e.model.name: e.model for e in task.evaluations}
        task = replace(task, contrast=contrast_model(contrast, models))
    return replace(task, standard=_standard(standard, task))


def _standard(run: RunConfig, task: EvaluationTask) -> EvaluationTask:
    """The task as the report of `run` would have it: its text, settings, precision, and
    the last stage as LongPPL's contrast model.
    """
    native = native_context(run)
    measurement = run_measurement(run, native, run_contexts(run, native))
    try:
        contrast = of_stage(run, list(run.stages)[-1])
    except CheckpointError:  # not trained yet: no report compares with it
        contrast = None
    return replace(
        task,
        measurement=lambda model: measurement,
        engine=run.engine,
        contrast=contrast,
        questions=standard_questions(run, measurement.length),
    )


def contrast_model(name: str, models: Mapping[str, EvaluatedModel]) -> EvaluatedModel:
    if name not in models:
        known = ", ".join(models)
        raise CheckpointError(
            f"--contrast {name}: is none of the models; there are {known}"
        )
    return models[name]


def _stage_task(
    run: RunConfig, names: Sequence[str], contexts: Sequence[int]
) -> EvaluationTask:
    native, base = native_context(run), base_name(run)
    measure = tuple(run.evaluation.measure)
    asked = names or list(run.stages)
    models = [model_of(run, n) for n in dict.fromkeys([*filter(None, [base]), *asked])]
    stages = [model for model in models if model.name in asked]
    shown = sorted(contexts) or sorted({stage.context for stage in stages})
    known = run_contexts(run, native)
    measurement = run_measurement(run, native, known, prefer=max(shown))
    if not measurement.length and measurement.text is not None:
        length = longest_measurable(measurement.text, shown) or 0
        measurement = replace(measurement, length=length)
    controls = (
        [] if base is None else base_control(models[0], measurement, shown, measure)
    )
    evaluations = controls + [
        Evaluation(f"{model.name} at {context:,}", model, context, measure)
        for model in models
        for context in shown
        if contexts or model.name == base or context == model.context
    ]
    # What is asked beyond the contexts of base and stages has bands of its own.
    beyond = [context for context in shown if context > measurement.edges[-1]]
    measurement = replace(measurement, edges=(*measurement.edges, *beyond))
    return run_task(run, evaluations, measurement)


def base_control(
    base: EvaluatedModel,
    measurement: Measurement,
    shown: Sequence[int],
    evaluators: Sequence[str],
) -> list[Evaluation]:
    """The base at its own length, where that is not among the contexts `shown`: what every
    score is held against. Of text that is shorter it is shown as much as there is.
    """
    native = measurement.native
    chosen = [name for name in evaluators if name in CONTROLS]
    lengths = {
        name: min(native, measurement.length or native) if name in ON_TEXT else native
        for name in chosen
    }
    return [
        Evaluation(
            f"{base.name} at {length:,}",
            base,
            length,
            tuple(name for name in chosen if lengths[name] == length),
            Role.CONTROL,
        )
        for length in sorted(set(lengths.values()))
        if length not in shown
    ]


def run_task(
    run: RunConfig, evaluations: Sequence[Evaluation], measurement: Measurement
) -> EvaluationTask:
    """The evaluations of a run's models; IdentityError where its held-out text was made
    with another tokenizer than the text that one of them was trained on.
    """
    if measurement.text is not None:
        store = open_store(run, HELD_OUT)
        for path in dict.fromkeys(evaluation.model.path for evaluation in evaluations):
            require_tokenizer_of(checkpoint.read_manifest(path), store)
    return EvaluationTask(
        tuple(evaluations),
        lambda model: measurement,
        run.engine,
        run_directory(run).evaluations,
        has_base=base_name(run) is not None,
        remedy="run `alia-ctx evaluate CONFIG`, which makes it anew",
    )


def what_is_missing(run: RunConfig) -> list[tuple[Evaluation, str]]:
    """Evaluations of the report's comparison that have to be made, and why, for each
    reason.
    """
    task = standard_task(run)
    reasons = []
    for evaluation in task.evaluations:
        measurement = task.measurement(evaluation.model)
        for name in evaluation.evaluators:
            if measurement.problem(name, evaluation.context):
                continue
            try:
                task.read(evaluation, name)
            except IdentityError as error:
                title = f"{evaluation.name}, {name}"
                reasons += [(evaluation, f"{title}: {d}") for d in error.differences]
    return reasons
