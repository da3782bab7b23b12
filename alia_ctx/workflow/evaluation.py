"""Models measured: the base and the stages of a run, checkpoints, Hugging Face directories;
each result is kept with what it was made from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import AliaError, CheckpointError, DataError
from alia_ctx.evaluation.long_ppl import KeyTokens
from alia_ctx.evaluation.retrieval import NoSampleError
from alia_ctx.files import exclusive, write_json
from alia_ctx.identity import (
    differences,
    require_same,
    sealed,
    statement,
    statement_checksum,
    unsealed,
)
from alia_ctx.progress import is_main, meter, say
from alia_ctx.spec.layout import Layout
from alia_ctx.train.engine import Scorer
from alia_ctx.train.rendezvous import World
from alia_ctx.train.roll_call import RollCall
from alia_ctx.workflow.evaluated_models import EvaluatedModel, ModelOpener
from alia_ctx.workflow.evaluation_results import Evaluated, Evaluation, Result, Role
from alia_ctx.workflow.measuring import (
    NOT_TOKENISED,
    ON_TEXT,
    Measurement,
    NotFiniteError,
)
from alia_ctx.workflow.never_measured import keep_reason, kept_reason
from alia_ctx.workflow.reading import read_json

# The folder of results that the run's report does not read.
OTHER_QUESTIONS = "other-questions"
# The control of a base at its own length is of these; the others say nothing there.
CONTROLS = ("positions", "retrieval", "passkey")
# What reads short texts in long rows.
_SHORT_IN_LONG = ("blocks", "longppl", "passkey")
EVALUATORS = (*ON_TEXT, "retrieval", "passkey", "leak")
Question = tuple[str, int, str]


@dataclass(frozen=True)
class EvaluationTask:
    """What is to be measured, and where the results are kept.

    Args:
        measurement: for a model, as its tokenizer makes it.
        directory: results are DIRECTORY/MODEL/EVALUATOR-CONTEXT.json.
        contrast: finds LongPPL's key tokens; None: the last model.
        remedy: how to make a result anew.
        standard: the task by the run's own settings. A result of other ones, or of none
            of its `questions`, has a place of its own, so that it never takes that of a
            result which the run's report reads, nor stands beside it.
        questions: (model, context, evaluator) of all that the report may compare.
        has_base: whether the first model is what the others are compared with.
        marked: of no run: every file's name has a checksum of what it was made from, so
            that no question takes the place of another's answer.
    """

    evaluations: tuple[Evaluation, ...]
    measurement: Callable[[EvaluatedModel], Measurement]
    engine: EngineConfig
    directory: Path
    contrast: EvaluatedModel | None = None
    layout: Layout | None = None
    remedy: str = "run `alia-ctx evaluate` again, which makes it anew"
    standard: EvaluationTask | None = None
    questions: frozenset[Question] = frozenset()
    has_base: bool = True
    marked: bool = False

    def path(self, evaluation: Evaluation, evaluator: str) -> Path:
        """Where a result is kept."""
        folder = evaluation.model.name.replace("/", "_")
        name = f"{evaluator}-{evaluation.context}"
        if self.marked:
            mark = statement_checksum(self.made_from(evaluation, evaluator))[:12]
            return self.directory / folder / f"{name}-{mark}.json"
        if self.standard is not None:
            settings, own = (
                task._settings(evaluation, evaluator) for task in (self, self.standard)
            )
            question = (evaluation.model.name, evaluation.context, evaluator)
            asked = question in self.standard.questions
            if not asked or differences(own, settings):
                mark = statement_checksum(settings)[:12]
                return self.directory / OTHER_QUESTIONS / folder / f"{name}-{mark}.json"
        return self.directory / folder / f"{name}.json"

    def made_from(self, evaluation: Evaluation, evaluator: str) -> dict[str, Any]:
        """What decides a result: the model, the context, the evaluator and its settings."""
        model = evaluation.model
        made_from = {
            "model": {"name": model.name, **model.statement},
            "context": evaluation.context,
            "evaluator": evaluator,
            "settings": self._settings(evaluation, evaluator),
        }
        return dict(statement(made_from))

    def _settings(self, evaluation: Evaluation, evaluator: str) -> dict[str, Any]:
        keys = None
        if evaluator == "longppl":
            contrast = self.contrast_model()
            keys = {"contrast_model": {"name": contrast.name, **contrast.statement}}
        settings = {
            **self.measurement(evaluation.model).settings(evaluator, keys),
            "precision": self.engine.precision,
            "through": evaluation.model.through.partition(",")[0],
        }
        return dict(statement(settings))

    def contrast_model(self) -> EvaluatedModel:
        return self.contrast or self.evaluations[-1].model

    def read(self, evaluation: Evaluation, evaluator: str) -> Result:
        """A result that was made, or why none can be; IdentityError where there is neither,
        or it is of another model, text or setting than would be measured now.
        """
        path = self.path(evaluation, evaluator)
        if known := kept_reason(path, lambda: self.made_from(evaluation, evaluator)):
            return Result(evaluation, evaluator, known[0], None, known[1])
        artefact = f"the evaluation of {evaluation.name}"
        document = read_json(path, artefact, self.remedy)
        before, content = unsealed(document, f"{artefact} in {path}", self.remedy)
        # Where the text is not at hand any more, what it decides is not compared.
        has_text = self.measurement(evaluation.model).text is not None
        if evaluator not in ON_TEXT or has_text:
            now = self.made_from(evaluation, evaluator)
        else:
            model = {"name": evaluation.model.name, **evaluation.model.statement}
            now = {**before, "model": model}
        require_same(before, now, f"{artefact} in {path}", self.remedy)
        return Result(evaluation, evaluator, before, content)

    def native(self) -> int:
        return self.measurement(self.evaluations[0].model).native


def measure_models(task: EvaluationTask) -> Evaluated:
    """Everything that a task asks for; what is there and was made from the same is read.
    Collective: results on every rank, and on disk.

    DataError where nothing at all can be measured.
    """
    from alia_ctx.mcore.runtime import Distributed

    ranks = World()
    with (
        Distributed(task.engine),
        RollCall(ranks.rank, task.directory, work="evaluate"),
        exclusive(
            task.directory,
            "alia-ctx evaluate",
            rank=ranks.rank,
            gather=ranks.gather_objects,
        ),
        # Within the lock: what it removes at the end may be another's after it.
        ModelOpener(task.engine, task.directory, task.layout) as opener,
    ):
        keys: dict[int, KeyTokens] = {}
        results: dict[tuple[int, str], Result] = {}
        missing: dict[int, list[str]] = {}
        for number, evaluation in enumerate(task.evaluations):
            for name in evaluation.evaluators:
                result = _known(task, evaluation, name)
                if result is None:
                    missing.setdefault(number, []).append(name)
                else:
                    results[number, name] = result
        if not any(
            task.evaluations[number].role is not Role.CONTROL for number in missing
        ):
            _refuse_nothing(results.values())
        for number in missing:
            evaluation = task.evaluations[number]
            opener.check(evaluation.model, evaluation.context)
        for number, names in missing.items():
            evaluation = task.evaluations[number]
            try:
                made = _measure_one(task, opener, evaluation, names, keys)
            except CheckpointError as error:
                made = _refused(evaluation, names, error)
            results |= {(number, r.evaluator): r for r in made}
    ordered = tuple(
        results[number, name]
        for number, evaluation in enumerate(task.evaluations)
        for name in evaluation.evaluators
    )
    _refuse_nothing(ordered)
    notes = dict.fromkeys(note for result in ordered for note in _copies(task, result))
    return Evaluated(ordered, task.native(), task.has_base, tuple(notes))


def _copies(task: EvaluationTask, result: Result) -> Iterator[str]:
    """That documents were not counted again, of a result that reads them."""
    on = task.measurement(result.evaluation.model)
    if result.evaluator in ON_TEXT and result.content and on.copies:
        yield (
            f"{on.copies:,} documents are equal to another in their first "
            f"{on.length:,} tokens; each is counted once"
        )


def _refuse_nothing(results: Iterable[Result]) -> None:
    """DataError where nothing came of all that was asked for: a control alone says
    nothing.
    """
    asked = [r for r in results if r.evaluation.role is not Role.CONTROL]
    if any(result.content for result in asked):
        return
    reasons = dict.fromkeys(f"{r.evaluator}: {r.reason}" for r in asked)
    remedy = "name longer text (evaluation.held_out, --text), a shorter context, or --retrieval"
    if any(result.reason == NOT_TOKENISED for result in asked):
        remedy = "run `alia-ctx tokenize CONFIG` first"
    raise DataError("\n  ".join(["nothing can be measured", *reasons]) + f"\n{remedy}")


def _known(task: EvaluationTask, evaluation: Evaluation, name: str) -> Result | None:
    """A result that need not be measured: it is there, or there is nothing to measure.
    Collective.
    """
    measurement = task.measurement(evaluation.model)
    reason = measurement.problem(name, evaluation.context)
    if reason is None and name == "leak" and evaluation.model.model is None:
        reason = "transformers reads each document by itself"
    if reason is None and name == "longppl":
        reason = _other_tokens(task, measurement)
    if reason is None and not evaluation.model.packs:
        reason = _turned_otherwise(name, measurement, evaluation)
    if reason is not None:
        return Result(evaluation, name, {}, None, reason)
    found: Any
    try:
        result = task.read(evaluation, name)
        found = (result.made_from, result.content, result.reason)
    except AliaError:
        found = None
    if name == "leak":  # of the layout that there is now, and quick
        found = None
    # Rank 0 decides for all: a file system may show them different things.
    first = World().gather_objects(found)[0]
    return None if first is None else Result(evaluation, name, *first)


def _turned_otherwise(
    name: str, measurement: Measurement, evaluation: Evaluation
) -> str | None:
    """Why a RoPE that depends on the length read would be another one in our rows; within
    the model's own context it depends on nothing.
    """
    context, length = evaluation.context, measurement.length
    if name in _SHORT_IN_LONG:
        return "its RoPE (dynamic) turns otherwise in longer rows; use --context"
    # A block that begins with BOS brings one token fewer of the document.
    start = 0 if measurement.block_start is None else 1
    rest = (length - start) % (context - start)
    if name == "positions" and rest and context > evaluation.model.context:
        return (
            f"its RoPE (dynamic) would turn the last {rest:,} of the "
            f"{length:,} tokens shown as in rows of {context:,}; ask for this --context "
            "alone"
        )
    return None


def _other_tokens(task: EvaluationTask, measurement: Measurement) -> str | None:
    """Why the contrast model's key tokens are none of a model's."""
    contrast = task.contrast_model()
    theirs, ours = task.measurement(contrast).text, measurement.text
    assert ours is not None
    if theirs is not None and theirs.fingerprint == ours.fingerprint:
        return None
    return f"its tokenizer is not that of {contrast.name}, which finds the key tokens"


def _find_key_tokens(
    task: EvaluationTask, opener: ModelOpener, context: int
) -> KeyTokens:
    """A function of its own, so that its model is gone before the next is loaded."""
    contrast = task.contrast_model()
    with (
        opener.open(contrast, context) as engine,
        _bar(f"key tokens by {contrast.name}") as bar,
    ):
        measurement = task.measurement(contrast)
        return measurement.key_tokens(engine, contrast.name, context, bar)


def _refused(
    evaluation: Evaluation, names: Sequence[str], error: CheckpointError
) -> list[Result]:
    """Of a model that somebody named and that turns out to be unreadable, the reason, so
    that the table of the others is not lost with it. A stage of a run is none of these:
    what mends it is said by its error, which is raised.
    """
    if evaluation.model.stage is not None:
        raise error
    reason = " ".join(str(error).split())
    return [Result(evaluation, n, {}, None, reason, refused=True) for n in names]


def _measure_one(
    task: EvaluationTask,
    opener: ModelOpener,
    evaluation: Evaluation,
    names: Sequence[str],
    keys: dict[int, KeyTokens],
) -> list[Result]:
    model, context = evaluation.model, evaluation.context
    if is_main():
        what = f"{evaluation.name} at {context:,} tokens: {', '.join(names)}"
        say(f"evaluating {escape(what)}")
    measurement = task.measurement(model)
    if "longppl" in names and context not in keys:
        keys[context] = _find_key_tokens(task, opener, context)
    made_from = {name: task.made_from(evaluation, name) for name in names}
    contents: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def keep(found: dict[str, Any]) -> None:
        """At once: what comes after may be stopped, or fail."""
        contents.update(found)
        for name in found if World().rank == 0 else ():
            path = task.path(evaluation, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, sealed(made_from[name], found[name]))

    with (
        opener.open(model, context) as engine,
        _bar(f"evaluate {evaluation.name}") as bar,
    ):
        on_text = [name for name in names if name in ON_TEXT]
        if on_text:
            try:
                key_tokens = keys.get(context)
                keep(
                    measurement.on_text(
                        engine, context, on_text, key_tokens, progress=bar
                    )
                )
            except NotFiniteError as error:
                reasons |= dict.fromkeys(on_text, str(error))
        others: dict[str, Callable[[], Any]] = {
            "retrieval": lambda: measurement.retrieved(
                engine, context, control=model.packs, progress=bar
            ),
            "passkey": lambda: measurement.passkeys(engine, context, progress=bar),
            "leak": lambda: measurement.leaks(engine, context, _layout(engine)),
        }
        for name, find in others.items():
            if name in names:
                try:
                    keep({name: find()})
                except (NoSampleError, NotFiniteError) as error:
                    reasons[name] = str(error)
                    # Tokenizer and length decide it, and stay as they are.
                    if isinstance(error, NoSampleError) and World().rank == 0:
                        path = task.path(evaluation, name)
                        keep_reason(path, made_from[name], str(error))
    return [
        Result(evaluation, n, made_from[n], contents.get(n), reasons.get(n))
        for n in names
    ]


def _layout(engine: Scorer) -> dict[str, int]:
    """The layout of an engine, data parallelism among it."""
    layout = vars(engine)["layout"]
    return {"dp": engine.data_parallel_size, **dataclasses.asdict(layout)}


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    with meter(title, 1.0, "row", shown=World().rank == 0) as bar:

        def show(done: int, total: int) -> None:
            bar.retotal(total)
            bar.update(done)

        yield show
