"""Results of a run that were measured with other settings than its configuration has now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError
from alia_ctx.identity import differences
from alia_ctx.report import Result
from alia_ctx.workflow.measuring import ON_TEXT, Measurement


def with_outdated(
    run: RunConfig,
    native: int,
    results: Sequence[Result],
    statements: Mapping[str, Any],
    problems: list[str],
) -> list[Result]:
    """The results, each with what it was measured by other than `run` says.

    `statements`: of the checkpoints that are there, by model. Where the text or the
    tokenizer is not at hand, what they decide is not compared; a line in `problems` says
    what could not be read.
    """
    from alia_ctx.workflow.evaluation_tasks import run_contexts, run_measurement

    if not native or not results:
        return list(results)
    try:
        on = run_measurement(run, native, run_contexts(run, native))
        settings = {
            name: _settings(run, on, name, statements)
            for name in {result.evaluator for result in results}
        }
    except (AliaError, OSError) as error:
        why = " ".join(str(error).split())
        problems.append(f"results are not compared with the settings: {why}")
        return list(results)
    return [
        dataclasses.replace(result, outdated=_other(result, settings[result.evaluator]))
        for result in results
    ]


def _settings(
    run: RunConfig, on: Measurement, evaluator: str, statements: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides a result of an evaluator now; of text that is gone the precision."""
    last = list(run.stages)[-1]
    keys = {"contrast_model": {"name": last, "checkpoint": statements.get(last)}}
    known = on.text is not None or evaluator not in ON_TEXT
    return {
        **(on.settings(evaluator, keys) if known else {}),
        "precision": run.engine.precision,
    }


def _other(result: Result, now: Mapping[str, Any]) -> list[str]:
    before = result.made_from.get("settings")
    if not before:  # of release 0.1, which does not say
        return []
    compared = set(before) | set(now) if len(now) > 1 else set(now)
    compared.discard("through")  # what reads a model may differ from line to line
    then, current = (
        {name: value for name, value in each.items() if name in compared}
        for each in (before, now)
    )
    return differences(then, current, "settings")
