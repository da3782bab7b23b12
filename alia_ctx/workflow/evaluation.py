"""Held-out text measured: at the end of stages for the report, and while one is training."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import HELD_OUT, RunConfig, position_edges
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import Evaluator
from alia_ctx.evaluation.held_out import HeldOutRow, held_out_rows
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.files import write_json
from alia_ctx.identity import IdentityError, require_same, sealed, unsealed
from alia_ctx.progress import meter
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.engine import Engine
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.train.run_directory import mended_by_training
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.chain import (
    contexts_up_to,
    finished_checkpoint,
    longest_context,
    run_directory,
)
from alia_ctx.workflow.data import open_store, require_tokenizer_of
from alia_ctx.workflow.reading import read_json


class Role(enum.Enum):
    """What an evaluation is in the report's comparison."""

    BASE = "the first stage at its own context"
    BASE_GIVEN_LONGER = "the first stage, given the longest input"
    STAGE = "a later stage at its own context"
    ASKED_FOR = "outside the comparison"


@dataclass(frozen=True)
class Evaluation:
    """A stage's last checkpoint, shown `context` tokens at a time: a curve of the report."""

    name: str
    stage: str
    context: int
    role: Role = Role.ASKED_FOR

    def path(self, run: RunConfig) -> Path:
        """Where its result is kept."""
        return run_directory(run).evaluation(self.stage, self.context)


def standard_evaluations(run: RunConfig) -> list[Evaluation]:
    """The report's comparison: every stage at its own context, and the first one given
    the longest input too.
    """
    longest = longest_context(run)
    (first, base), *later = run.stages.items()
    evaluations = [Evaluation(first, first, base.context, Role.BASE)]
    if base.context < longest:
        name = f"{first}, given {longest:,} tokens"
        evaluations.append(Evaluation(name, first, longest, Role.BASE_GIVEN_LONGER))
    return evaluations + [
        Evaluation(name, name, stage.context, Role.STAGE) for name, stage in later
    ]


def measure[E: Evaluator](
    engine: Engine,
    rows: Sequence[HeldOutRow],
    make: Callable[[], E],
    progress: Callable[[int], None] = lambda done: None,
) -> E:
    """What `make()`, an empty evaluator, makes of `rows`; collective, the same on every rank."""
    local, total = make(), make()
    ranks = engine.data_parallel_size
    for first in range(0, len(rows), ranks):
        part = rows[first : first + ranks]
        own = part[engine.data_parallel_rank : engine.data_parallel_rank + 1]
        # A rank without a row takes part all the same: gathering the weights may be
        # collective.
        for losses in engine.row_losses([held_out.row for held_out in own]):
            if own:
                local.add(
                    losses.row,
                    losses.as_row(),
                    losses.hits_as_row(),
                    position_offset=own[0].position_offsets,
                )
        progress(first + len(part))
    for gathered in engine.gather_objects(local.to_json()):
        total.merge(type(total).from_json(gathered))
    return total


def evaluate(
    run: RunConfig, evaluations: Sequence[Evaluation]
) -> dict[str, PositionBands]:
    """Measure losses by position on the held-out text, by name of the evaluation.

    Collective: results on every rank, and in OUTPUT/evaluation.
    """
    from alia_ctx.mcore.runtime import Distributed

    with Distributed(run.engine):
        store, paths = on_all_ranks(
            starting_ranks(),
            f"what is evaluated, below {run.output}",
            lambda: _open_what_is_evaluated(run, evaluations),
            lambda opened: [opened[0].fingerprint, *map(str, opened[1].values())],
        )
        return {
            e.name: _evaluate_one(run, e, paths[e.name], store) for e in evaluations
        }


def _open_what_is_evaluated(
    run: RunConfig, evaluations: Sequence[Evaluation]
) -> tuple[TokenStore, dict[str, Path]]:
    store = open_store(run, HELD_OUT)
    paths = {e.name: finished_checkpoint(run, e.stage) for e in evaluations}
    for path in paths.values():
        require_tokenizer_of(checkpoint.read_manifest(path), store)
    return store, paths


def _evaluate_one(
    run: RunConfig, evaluation: Evaluation, path: Path, store: TokenStore
) -> PositionBands:
    from alia_ctx.mcore.engine import MegatronEngine

    with mended_by_training(evaluation.stage):
        manifest = checkpoint.open_checkpoint(path, starting_ranks())
    engine = MegatronEngine(
        manifest.model,
        manifest.rope,
        evaluation.context,
        run.stage(evaluation.stage).layout,
        run.engine,
        None,
    )
    engine.load(path / checkpoint.STATE, with_optimizer=False)
    length = _document_length(run, evaluation, store)
    rows = held_out_rows(
        store,
        context=evaluation.context,
        length=length,
        documents=run.evaluation.documents,
    )
    title = f"evaluate {evaluation.name}"
    with meter(title, len(rows), "row", shown=engine.rank == 0) as bar:
        bands = partial(PositionBands, position_edges(run))
        total = measure(engine, rows, bands, bar.update)
    if engine.rank == 0:
        result = evaluation.path(run)
        result.parent.mkdir(parents=True, exist_ok=True)
        made_from = _made_from(run, evaluation, manifest, store.fingerprint, length)
        write_json(result, sealed(made_from, total.to_json()))
    return total


def _document_length(run: RunConfig, evaluation: Evaluation, store: TokenStore) -> int:
    """Tokens of each document that are shown.

    The report compares on documents of the longest context. What somebody asks for beside
    it needs them no longer than the context that was asked for.
    """
    longest = longest_context(run)
    has_longest = int(store.lengths.max(initial=0)) >= longest
    if evaluation.role is Role.ASKED_FOR and not has_longest:
        return evaluation.context
    return longest


def _made_from(
    run: RunConfig,
    evaluation: Evaluation,
    manifest: Manifest,
    held_out: str,
    length: int,
) -> dict[str, Any]:
    """What decides a result: the checkpoint, the text, and how much is shown of it."""
    return {
        "checkpoint": checkpoint_statement(manifest),
        "held_out": held_out,
        "context": evaluation.context,
        "length": length,
        "documents": run.evaluation.documents,
        "position_edges": position_edges(run),
    }


def read_result(
    run: RunConfig, evaluation: Evaluation
) -> tuple[PositionBands, dict[str, Any]]:
    """(losses by position, what they were made from) of an evaluation that was made.

    IdentityError where there is none, or it is of another checkpoint, text or setting
    than would be measured now. Where the held-out text is not at hand any more, it is
    the one thing that is not compared.
    """
    artefact = f"the evaluation of {evaluation.name}"
    remedy = "run `alia-ctx evaluate CONFIG`, which makes it anew"
    document = read_json(evaluation.path(run), artefact, remedy)
    artefact = f"{artefact} in {evaluation.path(run)}"
    before, content = unsealed(document, artefact, remedy)
    manifest = checkpoint.read_manifest(finished_checkpoint(run, evaluation.stage))
    try:
        held_out = open_store(run, HELD_OUT).fingerprint
    except DataError:
        held_out = before.get("held_out")
    now = _made_from(run, evaluation, manifest, held_out, longest_context(run))
    require_same(before, now, artefact, remedy)
    return PositionBands.from_json(content), before


def what_differs(run: RunConfig, evaluation: Evaluation) -> list[str]:
    """Why the result of an evaluation cannot be used, a line each; none where it can."""
    try:
        read_result(run, evaluation)
    except IdentityError as error:
        return [f"{evaluation.name}: {line}" for line in error.differences]
    return []


def held_out_evaluation(
    run: RunConfig,
    name: str,
    store: TokenStore,
    engine: Engine,
    beat: Callable[[], None] = lambda: None,
) -> Callable[[], dict[str, Any]]:
    """A function that measures the held-out loss of the model in training, at its own
    length and at those of the stages before it: {context: {band: loss}}. Collective.

    `beat` is called after every row.
    """
    contexts = contexts_up_to(run, name)
    rows = {
        context: held_out_rows(
            store,
            context=context,
            length=max(contexts),
            documents=run.evaluation.documents,
            row_length=run.stage(name).context,
        )
        for context in contexts
    }
    empty = partial(PositionBands, position_edges(run))

    def losses(held_out: Sequence[HeldOutRow]) -> dict[str, float]:
        bands = measure(engine, held_out, empty, lambda done: beat()).bands()
        return {f"{b.start}-{b.stop - 1}": b.loss for b in bands if b.tokens}

    return lambda: {str(context): losses(shown) for context, shown in rows.items()}
