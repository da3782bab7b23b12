"""The report of a run: its evaluations compared, with what was trained."""

from __future__ import annotations

import itertools

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig, position_edges
from alia_ctx.evaluation.positions import PositionBands, paired_difference
from alia_ctx.evaluation.report import Report, write_report
from alia_ctx.workflow.chain import finished_checkpoint, run_directory
from alia_ctx.workflow.evaluation import Role
from alia_ctx.workflow.evaluation_tasks import standard_task


def report(run: RunConfig) -> Report:
    """Tables, plot and verdicts of the standard evaluations, in OUTPUT/report.

    IdentityError where an evaluation is not of the checkpoint, text and settings that
    the report would speak of.
    """
    task = standard_task(run)
    evaluations = [e for e in task.evaluations if "positions" in e.evaluators]
    results, made_from = {}, {}
    for evaluation in evaluations:
        result = task.read(evaluation, "positions")
        results[evaluation.name] = PositionBands.from_json(result.content or {})
        made_from[evaluation.name] = result.made_from
    by_role = {e.role: e.name for e in evaluations if e.role is not Role.STAGE}
    base, final = by_role[Role.BASE], evaluations[-1].name
    return write_report(
        results,
        run_directory(run).report,
        base=base,
        final=final,
        baselines=[by_role.get(Role.BASE_GIVEN_LONGER, base)],
        title=f"{run.name}: loss by position in the document",
        made_from=made_from,
        notes=[*_ledger_notes(run), *_cut_input_notes(run, results, base, final)],
    )


def _ledger_notes(run: RunConfig) -> list[str]:
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


def _cut_input_notes(
    run: RunConfig, results: dict[str, PositionBands], base: str, final: str
) -> list[str]:
    """The harder comparison, for information: the base shown every far token too, but
    within blocks of its context.
    """
    edges = position_edges(run)
    notes = []
    for start, stop in itertools.pairwise(edges[1:]):
        paired = paired_difference(results[base], results[final], start, stop)
        notes.append(
            f"For comparison, at positions {start:,}-{stop - 1:,}: {final} with all of "
            "the document before it against "
            f"{base} with at most {edges[1]:,} tokens of it: {paired.difference:+.4f} "
            f"nats a token (standard error {paired.standard_error:.4f})"
        )
    return notes
