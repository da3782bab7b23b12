"""What the files of a run say, read for its page; nothing is measured and nothing made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import RANDOM, RunConfig
from alia_ctx.data.packing import read_statement
from alia_ctx.errors import AliaError, DataError
from alia_ctx.identity import IdentityError, differences, statement, unsealed
from alia_ctx.report import Result, RunFacts, StageFacts
from alia_ctx.report.facts import COMMANDS, Planned, Span
from alia_ctx.train.metrics_log import broken_lines, read_lines
from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.train.stage_identity import (
    CHANGES,
    STARTED_FROM,
    checkpoint_statement,
)
from alia_ctx.workflow.beside import read_beside
from alia_ctx.workflow.chain import planned_updates
from alia_ctx.workflow.exporting import exports_there
from alia_ctx.workflow.mixture import mixture_of, sizes_of
from alia_ctx.workflow.planned import planned_stage
from alia_ctx.workflow.reading import read_json
from alia_ctx.workflow.stage_progress import progress

BASE = "base"  # the results of what the first stage started from, where no stage has it
_REMEDY = "run `alia-ctx evaluate CONFIG`, which makes it anew"


def run_facts(
    run: RunConfig, root: Path, command: str, target: str | None = None
) -> RunFacts:
    """The facts of a run whose files are below `root`; `command` stands for CONFIG, and
    `target` (default: that) for what the page was asked of.

    What cannot be read is named in the facts' problems: a page of a run is wanted most
    where something is wrong with it. DataError where there is no such directory.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such directory; nothing of this run was made yet. "
            f"Begin it with `alia-ctx run {command}`"
        )
    places, problems = RunDirectory(root), list[str]()
    stages = [_stage(run, places, name) for name in run.stages]
    base = _base_name(run)
    statements = {s.name: s.checkpoint for s in stages}
    statements |= _statement_of_base(run, places)
    native = _native(run, problems)
    own = _own_contexts(run, base, native)
    measured = _results(root / "evaluation", statements, problems)
    results = [r for r in measured if _is_of_comparison(r, own)]
    if target is None:  # a directory's configuration is that of training
        from alia_ctx.workflow.outdated_results import with_outdated  # as in `_native`

        results = with_outdated(run, native, results, statements, problems)
    results = _alike(results)
    exports = exports_there(root, {s.name: s.checkpoint for s in stages})
    problems += exports.unknown + exports.stale
    return RunFacts(
        run.name,
        str(root),
        command,
        base,
        stages,
        results,
        statement(run.to_dict()),
        exports.files,
        list(run.notes),
        problems,
        target or command,
        native,
        read_beside(root, statements, problems),
    )


def _native(run: RunConfig, problems: list[str]) -> int:
    # Late, as `watch` reads facts and does without torch.
    from alia_ctx.workflow.evaluation_tasks import native_context

    try:
        return native_context(run)
    except AliaError as error:  # a base that cannot be read
        problems.append(" ".join(str(error).split()))
        return 0


def _own_contexts(run: RunConfig, base: str, native: int) -> dict[str, set[int]]:
    """Contexts at which the run's comparison has each of its models; none where the base
    does not say what its own is.
    """
    own = {name: {stage.context} for name, stage in run.stages.items()}
    longer = {s.context for s in run.stages.values() if s.context > native}
    return own | ({base: {native, *longer}} if native else {})


def _is_of_comparison(result: Result, own: Mapping[str, set[int]]) -> bool:
    """Whether a result is of the run's comparison: what was asked for at another context
    (`evaluate --context`, in releases that kept it here) is no verdict on the run.
    """
    contexts = own.get(result.model)
    if contexts is None or result.context in contexts:
        return True
    shown = result.made_from.get("settings", {}).get("length")  # all that the text has
    return bool(result.context == shown and shown < max(contexts))


def _base_name(run: RunConfig) -> str:
    name, first = next(iter(run.stages.items()))
    if first.init_from == RANDOM:
        return name
    return BASE if BASE not in run.stages else "the first stage's origin"


def _stage(run: RunConfig, places: RunDirectory, name: str) -> StageFacts:
    stage, problems = run.stage(name), list[str]()
    manifest = _newest(places, name, problems)
    plan = _attempt(
        lambda: read_statement(places.plan(name)), problems, places.plan(name)
    )
    log = places.metrics(name)
    kept: list[Any] = _attempt(lambda: read_lines(log), problems, log) or []
    broken: list[int] = _attempt(lambda: broken_lines(log), [], log) or []
    if broken:
        lines = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        problems.append(f"{log}: not whole, and not shown: line {lines}")
    extra = manifest.extra if manifest else {}
    root = places.checkpoints(name)
    asked = stage.updates if stage.update_instances is None else None
    asked = asked or planned_updates(run, name) or mixture_of(run, name).updates
    own = [line for line in kept if not manifest or line.get("stage") == name]
    so_far = progress(places, name, own, asked)
    return StageFacts(
        name=name,
        context=stage.context,
        rope=dataclasses.asdict(stage.rope),
        learning_rate=stage.learning_rate,
        updates=so_far.updates or asked,
        tokens=sizes_of(run, name)[0],
        init_from=stage.init_from,
        origin=_origin(manifest),
        ledger=dataclasses.asdict(manifest.ledger[-1]) if manifest else None,
        checkpoint=checkpoint_statement(manifest) if manifest else None,
        lines=so_far.lines,
        again=len(_lines_aside(log, "superseded", problems)),
        broken=len(broken) + len(_lines_aside(log, "broken", problems)),
        damaged=[path.name for path in sorted(root.glob("*.damaged*"))],
        unfinished=[path.name for path in sorted(root.glob("*.incomplete"))],
        changes=changes_in_words(extra),
        plan=plan.stats if plan else None,
        plan_identity=plan.identity if plan else None,
        planned=_planned(run, name),
        problems=problems,
    )


def changes_in_words(extra: Mapping[str, Any]) -> list[str]:
    """What a manifest's `extra` says that changed while a stage trained, a line each."""
    lines = []
    for change in extra.get(CHANGES, ()):
        try:
            after = f"after update {change['after_update']:,}"
            lines += [f"{after}: {setting}" for setting in change["settings"]]
        except (KeyError, TypeError, ValueError):  # shown as it is, where it is no such
            lines.append(str(change))
    return lines


def _newest(places: RunDirectory, name: str, problems: list[str]) -> Manifest | None:
    root = places.checkpoints(name)
    newest = checkpoint.latest(root)
    if newest is None:
        return None
    return _attempt(lambda: checkpoint.read_manifest(newest), problems, newest)


def _attempt[T](read: Any, problems: list[str], place: Path) -> T | None:
    """What `read()` returns; None, with a line in `problems`, where it cannot be read,
    and None without one where there is nothing.
    """
    if not place.exists():
        return None
    try:
        value: T = read()
    except (AliaError, OSError) as error:
        problems.append(" ".join(str(error).split()))
        return None
    return value


def _lines_aside(log: Path, why: str, problems: list[str]) -> list[bytes]:
    place = log.with_name(f"{log.name}.{why}")
    data: bytes | None = _attempt(place.read_bytes, problems, place)
    return [line for line in (data or b"").split(b"\n") if line.strip()]


def _origin(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    from_there = manifest.extra.get(STARTED_FROM)
    if not from_there:
        return manifest.parent or RANDOM
    if not from_there.get("stage"):
        return str(manifest.parent)
    return f"{from_there['stage']}, update {from_there['update']:,}"


def _statement_of_base(run: RunConfig, places: RunDirectory) -> dict[str, Any]:
    """What the first stage says that it started from, under the base's name; before it has
    begun, what is there to start from.
    """
    first, base = next(iter(run.stages)), _base_name(run)
    if base == first:
        return {}
    manifest = _newest(places, first, [])
    if manifest is not None:
        return {base: manifest.extra.get(STARTED_FROM)}
    from alia_ctx.workflow.evaluated_models import base_checkpoint

    there = base_checkpoint(run)
    return {} if there is None else {base: there.statement.get("checkpoint")}


def _planned(run: RunConfig, name: str) -> Planned | None:
    try:
        plan = planned_stage(run, name)
    except AliaError:  # `check` and `plan` say why; the page does without
        return None
    return Planned(
        None if plan.untimed else plan.timing.total,
        plan.fullest.total,
        None if plan.untimed else plan.timing.mfu,
        {"dp": plan.work.data_parallel, **dataclasses.asdict(plan.work.layout)},
        _timeline(run, name),
    )


def _timeline(run: RunConfig, name: str) -> list[Span]:
    """An update of the data-parallel rank with most work, each row's forward and backward
    as one span; empty where it cannot be simulated.
    """
    from alia_ctx.workflow.planning import simulated_update

    spans: list[Span] = []
    rows: list[int] = []
    try:
        events = simulated_update(run, name).events
    except AliaError:
        return []
    for event in events:
        _, rank, what = event.lane
        lane = f"rank {rank}" if what == "compute" else f"rank {rank}, messages"
        kind = event.direction or event.kind
        last = spans[-1] if spans else None
        joins = last is not None and (last.lane, last.kind) == (lane, kind)
        if joins and last is not None and rows[-1] == event.row:
            seconds = event.end - last.start
            spans[-1] = Span(lane, kind, last.start, seconds)
            continue
        spans.append(Span(lane, kind, event.start, event.seconds))
        rows.append(event.row)
    return spans


def _results(
    folder: Path, statements: Mapping[str, Any], problems: list[str]
) -> Iterator[Result]:
    """Every result below `folder`; one that is broken is a line in `problems`."""
    for path in sorted([*folder.glob("*/*.json"), *folder.glob("*.json")]):
        artefact = f"the result {path}"
        try:
            document = read_json(path, artefact, _REMEDY)
            made_from, content = unsealed(document, artefact, _REMEDY)
            yield _result(path, made_from, content, statements)
        except (IdentityError, DataError) as error:
            problems.append(" ".join(str(error).split()))


def _alike(results: list[Result]) -> list[Result]:
    """The results, with what sets some apart from the others of their evaluator: numbers
    by different settings do not belong in one table. The settings that most have are
    taken for the table's, of equally many those of the last file by name.
    """
    made = []
    for result in results:
        beside = [
            _settings(r)
            for r in results
            if r.evaluator == result.evaluator
            and _settings(r)
            and not (r.differs or r.outdated)
        ]
        own = _settings(result)
        usual = max(reversed(beside), key=beside.count, default=own)
        unlike = differences(own, usual, "settings") if own else []
        made.append(dataclasses.replace(result, unlike=unlike))
    return made


def _settings(result: Result) -> dict[str, Any]:
    """By what a result was measured; empty where it does not say (release 0.1). What
    read the model (`through`) may differ from line to line.
    """
    settings = dict(result.made_from.get("settings", {}))
    settings.pop("through", None)
    return settings


def _result(
    path: Path, made_from: Any, content: Any, statements: Mapping[str, Any]
) -> Result:
    """DataError where it is of no form that this release knows."""
    try:
        if "evaluator" in made_from:
            model, of = made_from["model"]["name"], made_from["model"].get("checkpoint")
            evaluator = made_from["evaluator"]
        else:  # of release 0.1: losses by position, one file a stage and context
            of = made_from["checkpoint"]
            model, evaluator = of["stage"], "positions"
        context = int(made_from["context"])
        result = Result(model, evaluator, context, content, made_from)
        _check(result)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not a result as `alia-ctx evaluate` writes it ({error!r}); "
            f"{_REMEDY}"
        ) from error
    now = statements.get(model)
    if of is None:
        differing = []
    elif now is None:
        differing = [f"there is no checkpoint of {model} here, so it may be of another"]
    else:
        differing = differences(of, now)
    return dataclasses.replace(result, differs=differing)


_NEEDS = {
    "blocks": ("block", "bands"),
    "longppl": (
        *("key_tokens", "tokens", "long_ppl", "ppl", "contrast_model"),
        *("long_context", "short_context"),
    ),
    "leak": ("layout", "positions", "moved", "largest_difference"),
}


def _check(result: Result) -> None:
    """KeyError, TypeError or DataError where the page could not show it."""
    if result.evaluator == "positions":
        result.bands.bands()
    elif result.evaluator in ("retrieval", "passkey"):
        result.scores.score()
    elif result.evaluator not in COMMANDS:
        raise ValueError(f"there is no evaluator {result.evaluator}")
    for name in _NEEDS.get(result.evaluator, ()):
        result.content[name]
    for band in result.content.get("bands", ()) if result.evaluator == "blocks" else ():
        for name in ("first", "last", "documents", "gain", "standard_error"):
            if not isinstance(band[name], (int, float)) and band[name] is not None:
                raise TypeError(f"{name} is {band[name]!r}")
