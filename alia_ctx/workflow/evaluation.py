"""Held-out losses by position, losses of the log computed again, and the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.config.run import RANDOM, RunConfig, position_edges
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.evaluation.heldout import HeldOutRow, held_out_rows
from alia_ctx.evaluation.positions import PositionBands, paired_difference
from alia_ctx.evaluation.report import Report, write_report
from alia_ctx.files import write_json
from alia_ctx.progress import meter
from alia_ctx.train.metrics import read_lines
from alia_ctx.train.run_directory import (
    checkpoints_directory,
    finished_checkpoint,
    stage_directory,
)
from alia_ctx.workflow.data import HELD_OUT, open_plan, open_store


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One curve of the report: a stage's last checkpoint, shown `context` tokens at a time."""

    name: str
    stage: str
    context: int


def standard_evaluations(run: RunConfig) -> list[Evaluation]:
    """Every stage at its own context, and the first one given the longest input."""
    longest = longest_context(run)
    first = next(iter(run.stages))
    every = [
        Evaluation(name, name, stage.context) for name, stage in run.stages.items()
    ]
    if run.stages[first].context < longest:
        every.insert(
            1, Evaluation(f"{first}, given {longest:,} tokens", first, longest)
        )
    return every


def longest_context(run: RunConfig) -> int:
    return max(stage.context for stage in run.stages.values())


def measure_bands(
    engine: Any,
    rows: Sequence[HeldOutRow],
    edges: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> PositionBands:
    """Losses of `rows` by position; collective, the same on every rank."""
    bands = PositionBands(edges)
    ranks = engine.data_parallel_size
    for first in range(0, len(rows), ranks):
        part = rows[first : first + ranks]
        mine = part[engine.data_parallel_rank : engine.data_parallel_rank + 1]
        # A rank without a row takes part all the same: gathering the weights may be collective.
        for losses in engine.row_losses([held_out.row for held_out in mine]):
            if mine:
                bands.add(losses.row, losses.as_row(), mine[0].position_offsets)
        progress(first + len(part))
    total = PositionBands(edges)
    for gathered in engine.gather_objects(bands.to_json()):
        total.merge(PositionBands.from_json(gathered))
    return total


def evaluate(
    run: RunConfig, evaluations: Sequence[Evaluation]
) -> dict[str, PositionBands]:
    """Measure losses by position on the held-out text;

    collective, results on every rank and in OUTPUT/evaluation.
    """
    from alia_ctx.mcore.runtime import Distributed

    store = open_store(run, HELD_OUT)
    paths = {e.name: finished_checkpoint(run, e.stage) for e in evaluations}
    with Distributed(run.engine):
        return {
            e.name: _evaluate_one(run, e, paths[e.name], store) for e in evaluations
        }


def _evaluate_one(
    run: RunConfig, evaluation: Evaluation, path: Path, store: TokenStore
) -> PositionBands:
    from alia_ctx.mcore.engine import MegatronEngine

    stage = run.stage(evaluation.stage)
    manifest = checkpoint.read_manifest(path)
    engine = MegatronEngine(
        manifest.model,
        manifest.rope,
        evaluation.context,
        stage.layout,
        run.engine,
        None,
    )
    checkpoint.open_checkpoint(path, engine)
    engine.load(path / checkpoint.STATE, with_optimizer=False)
    rows = held_out_rows(
        store,
        context=evaluation.context,
        length=longest_context(run),
        documents=run.evaluation.documents,
    )
    with meter(
        f"evaluate {evaluation.name}", len(rows), "row", shown=engine.rank == 0
    ) as bar:
        total = measure_bands(engine, rows, position_edges(run), bar.update)
    if engine.rank == 0:
        result_path(run, evaluation).parent.mkdir(parents=True, exist_ok=True)
        write_json(
            result_path(run, evaluation), {"checkpoint": str(path), **total.to_json()}
        )
    return total


@dataclasses.dataclass(frozen=True)
class RecomputedLoss:
    """The loss of one update of the log, computed again from the plan and the
    checkpoint before it.
    """

    update: int
    loss: float
    logged: float | None

    def __str__(self) -> str:
        if self.logged is None:
            return (
                f"update {self.update}: loss {self.loss:.9f}; the log has none "
                "(skipped, or not there)"
            )
        difference = abs(self.loss - self.logged) / abs(self.logged)
        return (
            f"update {self.update}: loss {self.loss:.9f}, in the log "
            f"{self.logged:.9f}, relative {difference:.1e}"
        )


def recompute(run: RunConfig, name: str, update: int) -> RecomputedLoss:
    """Compute the training loss of `update` again: forward only, on any layout. Collective.

    CheckpointError where no checkpoint holds the state before it, naming the updates
    that can be recomputed.
    """
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed

    stage = run.stage(name)
    plan = open_plan(run, name)
    path = _state_before(run, name, update)
    with Distributed(run.engine):
        engine = MegatronEngine(
            run.model,
            stage.rope,
            stage.context,
            stage.layout,
            run.engine,
            None,
            seed=run.seed,
        )
        if path is not None:
            checkpoint.open_checkpoint(path, engine)
            engine.load(path / checkpoint.STATE, with_optimizer=False)
        first = (update - 1) * stage.rows_per_update
        rows = range(first, first + stage.rows_per_update)[
            engine.data_parallel_rank :: engine.data_parallel_size
        ]
        losses = engine.row_losses([plan.row(i) for i in rows])
        loss, _ = engine.reduce_losses(losses if rows else ())
    log = {
        line["update"]: line["loss"]
        for line in read_lines(stage_directory(run, name) / "metrics.jsonl")
    }
    return RecomputedLoss(update, loss, log.get(update))


def _state_before(run: RunConfig, name: str, update: int) -> Path | None:
    """The checkpoint that update `update` started from; None where that was random weights."""
    stage = run.stage(name)
    found = {
        int(p.name.rsplit("-", 1)[1]): p
        for p in checkpoint.list_checkpoints(checkpoints_directory(run, name))
    }
    if update == 1 and stage.init_from == RANDOM:
        return None
    if update == 1:
        known = stage.init_from in run.stages
        return (
            finished_checkpoint(run, stage.init_from)
            if known
            else Path(stage.init_from)
        )
    if update - 1 in found and update <= stage.updates:
        return found[update - 1]
    possible = [1, *(u + 1 for u in sorted(found) if u < stage.updates)]
    raise CheckpointError(
        f"no checkpoint of stage {name} holds the state before update {update}; "
        f"updates {', '.join(map(str, possible))} can be recomputed "
        "(checkpoint.keep_every keeps more)"
    )


def result_path(run: RunConfig, evaluation: Evaluation) -> Path:
    return run.directory("evaluation", f"{evaluation.stage}-{evaluation.context}.json")


def report(run: RunConfig) -> Report:
    """Tables, plot and verdicts of the standard evaluations, in OUTPUT/report."""
    results = {}
    for evaluation in standard_evaluations(run):
        path = result_path(run, evaluation)
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; run `alia-ctx evaluate CONFIG` first"
            )
        results[evaluation.name] = PositionBands.from_json(
            json.loads(path.read_text(encoding="utf-8"))
        )
    base, final = next(iter(run.stages)), list(run.stages)[-1]
    given_more = [name for name in results if name.startswith(f"{base}, ")]
    return write_report(
        results,
        run.directory("report"),
        base=base,
        final=final,
        baselines=given_more or [base],
        title=f"{run.name}: loss by position in the document",
        notes=[*_report_notes(run), *_cut_input_notes(run, results, base, final)],
    )


def _cut_input_notes(
    run: RunConfig, results: dict[str, PositionBands], base: str, final: str
) -> list[str]:
    """The harder comparison, for information:

    the base shown every far token too, but within blocks of its context.
    """
    edges = position_edges(run)
    notes = []
    for start, stop in itertools.pairwise(edges[1:]):
        paired = paired_difference(results[base], results[final], start, stop)
        notes.append(
            f"For comparison, at positions {start:,}-{stop - 1:,}: {final} with all of "
            "the document before it against "
            f"{base} with at most {edges[1]:,} tokens of it: {paired.difference:+.4f} nats a token "
            f"(standard error {paired.standard_error:.4f})"
        )
    return notes


def _report_notes(run: RunConfig) -> list[str]:
    notes = [
        "Held-out documents; a model sees its own context, or what its name says, in "
        "blocks from the start."
    ]
    for name in run.stages:
        ledger = checkpoint.read_manifest(finished_checkpoint(run, name)).ledger[-1]
        notes.append(
            f"{name}: context {ledger.context:,}, RoPE {ledger.rope.type}, "
            f"{ledger.updates} updates, "
            f"{ledger.tokens:,} tokens, learning rate {ledger.learning_rate:g}"
        )
    return notes


def held_out_evaluation(
    run: RunConfig,
    name: str,
    engine: Any,
    beat: Callable[[], None] = lambda: None,
) -> Callable[[], dict[str, Any]]:
    """Held-out loss of the model in training, at its own length and at those of the
    stages before it. `beat` is called after each row.
    """
    contexts = previous_contexts(run, name)
    store = open_store(run, HELD_OUT)
    rows = {
        n: held_out_rows(
            store,
            context=n,
            length=max(contexts),
            documents=run.evaluation.documents,
            row_length=run.stage(name).context,
        )
        for n in contexts
    }

    def measure() -> dict[str, Any]:
        results = {}
        for n, held_out in rows.items():
            bands = measure_bands(
                engine, held_out, position_edges(run), lambda done: beat()
            )
            results[str(n)] = {
                f"{b.start}-{b.stop - 1}": b.loss for b in bands.bands() if b.tokens
            }
        return results

    return measure


def previous_contexts(run: RunConfig, name: str) -> list[int]:
    """The stage's context and those of the stages that it comes from, the shortest first."""
    found = {run.stage(name).context}
    while (name := run.stage(name).init_from) in run.stages:
        found.add(run.stage(name).context)
    return sorted(found)
