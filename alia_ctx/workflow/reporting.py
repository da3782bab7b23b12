"""The reports of a run: its evaluations compared with what was trained, as text, and a
page of everything that its files say.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.evaluation.positions import PositionBands, paired_difference
from alia_ctx.evaluation.report import Report, write_report
from alia_ctx.evaluation.standard_errors import known_error
from alia_ctx.evaluation.verdicts import Measured, Verdict
from alia_ctx.files import atomic_file, require_replaceable
from alia_ctx.identity import IdentityError
from alia_ctx.report import RunFacts, comparison_page, run_page
from alia_ctx.report.html import MARK
from alia_ctx.report.page import stale_results as stale_of
from alia_ctx.report.verdicts import verdicts
from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.workflow.chain import finished_checkpoint, run_directory
from alia_ctx.workflow.evaluation_results import Evaluated, Role
from alia_ctx.workflow.evaluation_tasks import standard_task
from alia_ctx.workflow.exporting import exports_there
from alia_ctx.workflow.importing import import_command
from alia_ctx.workflow.recorded_config import config_of
from alia_ctx.workflow.run_facts import run_facts


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
    if Role.BASE not in by_role:
        base = next(iter(run.stages.values())).init_from
        again = (
            "" if run.hf_base is None else f", or `{import_command(run, Path(base))}`"
        )
        raise CheckpointError(
            f"{base}: the base is not there any more, and nothing can be compared with "
            f"it; restore it{again}"
        )
    return write_report(
        results,
        run_directory(run).report,
        # All of them, and the same as on the page, whatever else has a row in the table.
        verdicts(run_facts(run, Path(run.output), "CONFIG")),
        title=f"{run.name}: loss by position in the document",
        made_from=made_from,
        notes=[
            *_ledger_notes(run),
            *_given_longer_notes(
                results,
                by_role.get(Role.BASE_GIVEN_LONGER),
                evaluations[-1].name,
                task.native(),
                evaluations[-1].model.context,
            ),
        ],
    )


def text_report(run: RunConfig) -> str:
    """The report as text, for a terminal; a line on why there is none yet where stages or
    evaluations are not there. IdentityError where one is there and of something else.
    """
    try:
        made = report(run)
    except CheckpointError as error:
        return f"no verdicts as text yet: {error}"
    except IdentityError as error:
        if not all(line.startswith("there is no ") for line in error.differences):
            raise
        return f"no verdicts as text yet: {error}"
    text = made.markdown.read_text(encoding="utf-8")
    return f"{text}\nreport: {made.markdown}\nplot:   {made.plot}"


def lines_of(evaluated: Evaluated) -> list[Measured]:
    """The results as lines of the tables."""
    lines: dict[int, Measured] = {}
    order = dict.fromkeys(id(r.evaluation) for r in evaluated.results)
    for key in order:
        results = [r for r in evaluated.results if id(r.evaluation) == key]
        evaluation = results[0].evaluation
        contents = {r.evaluator: r.content for r in results if r.content is not None}
        texts = [r.made_from.get("settings", {}).get("held_out") for r in results]
        lines[key] = Measured(
            evaluation.name,
            evaluation.model.name,
            evaluation.context,
            contents,
            next(filter(None, texts), None),
        )
    return list(lines.values())


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


def _given_longer_notes(
    results: dict[str, PositionBands],
    given: str | None,
    final: str,
    native: int,
    reach: int,
) -> list[str]:
    """The last stage beside the base that was given more text than it can use, for
    information: whatever can use it is better, so that no verdict is made of it.
    """
    notes = []
    for start, stop in itertools.pairwise(results[final].edges):
        if given is None or start < native or stop > reach:
            continue
        paired = paired_difference(results[given], results[final], start, stop)
        if not paired.documents:
            continue
        error = known_error(paired.standard_error)
        known = "not known" if error is None else f"{error:.4f}"
        notes.append(
            f"For comparison, at positions {start:,}-{stop - 1:,}: {final} against {given}: "
            f"{paired.difference:+.4f} nats a token (standard error {known}); beyond its "
            "own context a base loses, so that this says little of the stage"
        )
    return notes


# --- the page ---------------------------------------------------------------------------


def write_page(
    targets: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
    refresh: int | None = None,
) -> Path:
    """The page of a run, or of two side by side, as one HTML file; returns its path.

    targets: for each run its configuration, or its output directory. By default the page
    is OUTPUT/report/index.html of the first run. `refresh`: see `run_page`.
    ConfigError where `output` is a file that is no page of ours.
    """
    if output is not None:
        require_replaceable(output, "--output", "a page", (".html", ".htm"), MARK)
    runs = [_facts(target, overrides) for target in targets]
    if len(runs) == 1:
        page, name = run_page(runs[0], refresh=refresh), "index.html"
    else:
        page = comparison_page(*runs, refresh=refresh)
        name = "comparison.html"
    path = output or RunDirectory(Path(runs[0].output)).report / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(page.encode())
    except OSError as error:
        raise DataError(
            f"{path}: the page cannot be written ({error.strerror or error}); "
            "--output names another place"
        ) from error
    return path


def _facts(target: Path, overrides: Sequence[str]) -> RunFacts:
    if target.is_dir():
        return run_facts(config_of(target), target, "CONFIG", shlex.quote(str(target)))
    run = load_run(target, overrides)
    command = shlex.join([str(target), *overrides])
    return run_facts(run, Path(run.output), command)


def page_verdicts(target: Path, overrides: Sequence[str] = ()) -> list[Verdict]:
    """What the page of a run says in words."""
    return verdicts(_facts(target, overrides))


def stale_results(targets: Sequence[Path], overrides: Sequence[str] = ()) -> list[str]:
    """Results and exports of these runs that their page names and does not show, as
    sentences.
    """
    lines: list[str] = []
    for target in targets:
        facts = _facts(target, overrides)
        there = {stage.name: stage.checkpoint for stage in facts.stages}
        lines += [*stale_of(facts), *exports_there(Path(facts.output), there).stale]
    return lines


def keep_page(
    targets: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
    seconds: int = 10,
    written: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the page again each `seconds`, until every stage of every run is finished;
    the last one no longer refreshes itself. `written` hears of the first.
    """
    path = None
    while not all(_is_finished(target, overrides) for target in targets):
        before, path = (
            path,
            write_page(targets, overrides, output=output, refresh=seconds),
        )
        if before is None:
            written(path)
        time.sleep(seconds)
    return write_page(targets, overrides, output=output)


def _is_finished(target: Path, overrides: Sequence[str]) -> bool:
    return all(stage.finished for stage in _facts(target, overrides).stages)
