"""What `watch` looks at: the log and the files of a stage that trains, or did, on this
machine or another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alia_ctx.config.load import load_plan
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, ConfigError, Problem
from alia_ctx.report.screen import WatchedStage
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import RunDirectory, metrics_file
from alia_ctx.workflow.recorded_config import config_of
from alia_ctx.workflow.stage_progress import progress

_LOG = "metrics.jsonl"


@dataclass(frozen=True)
class Watched:
    """Where a stage is looked for.

    Args:
        log: its log, which need not be there yet.
        run, name: what it is called, the name None where its lines say it.
        places: the run's directory; None where only the log is at hand.
        updates: of the whole stage, where that is known.
        asked: the same by now, of a stage that has done more.
    """

    log: Path
    run: str
    name: str | None
    places: RunDirectory | None = None
    updates: int | None = None
    asked: Callable[[], int | None] = lambda: None

    def now(self) -> WatchedStage:
        """What its files say now. LogError where the log cannot be read."""
        lines = read_lines(self.log)
        updates, done = self.updates, int(lines[-1]["update"]) if lines else 0
        if updates is not None and done > updates:
            updates = self.asked() or updates
        name = self.name or str(lines[-1].get("stage", "?") if lines else "?")
        waiting = [] if lines else [f"{self.log}: has no line yet; waiting for one"]
        aside = waiting + [
            f"{count} line{'s are' if count != 1 else ' is'} in {file.name}"
            for why in ("superseded", "broken")
            if (file := self.log.with_name(f"{self.log.name}.{why}")).is_file()
            and (count := file.read_bytes().count(b"\n"))
        ]
        if self.places is None:
            return WatchedStage(self.run, name, lines, updates, messages=aside)
        so_far = progress(self.places, name, lines, updates)
        root = self.places.checkpoints(name)
        found = sorted(root.glob("update-*")) if root.is_dir() else []
        whole = [p for p in found if p.name.removeprefix("update-").isdigit()]
        return WatchedStage(
            run=self.run,
            name=name,
            lines=so_far.lines,
            updates=so_far.updates,
            saved=so_far.saved or 0 if root.is_dir() else None,
            checkpoints={path.name: path.stat().st_mtime for path in whole},
            unfinished=[p.name for p in found if p.name.endswith(".incomplete")],
            damaged=[p.name for p in found if ".damaged" in p.name],
            messages=aside,
            results=[
                file.stem
                for file in sorted((self.places.evaluations / name).glob("*.json"))
            ],
        )


def find_watched(
    target: Path, overrides: Sequence[str] = (), stage: str | None = None
) -> Watched:
    """The stage that `target` is, or that was last at work in it: a run's YAML, its output
    directory, the directory of a stage, or a log, copied from wherever.

    ConfigError where there is none, or no stage of that name.
    """
    if overrides and (target.is_dir() or _is_log(target)):
        rule, remedy = "is no override of a YAML", "name the run's YAML to override it"
        raise ConfigError("", [Problem("RUN", overrides[0], rule, remedy)])
    if _is_log(target):
        return _of_log(target, target.parent.name or "log", stage)
    if target.is_dir() and (target / _LOG).is_file():
        if target.absolute().parent.name != "stages":
            return _of_log(target / _LOG, target.name, stage)
        _require_stage(stage, [target.absolute().name])
        return find_watched(target.absolute().parents[1], (), target.absolute().name)
    if target.is_dir():
        return _of_run(
            RunDirectory(target), target.name, lambda: _recorded(target), stage
        )
    run, _ = load_plan(target, overrides)
    return _of_run(
        RunDirectory(Path(run.output)),
        run.name,
        lambda: load_plan(target, overrides)[0],
        stage,
    )


def _recorded(root: Path) -> RunConfig | None:
    with suppress(AliaError):  # before the first checkpoint nobody says it
        return config_of(root)
    return None


def _is_log(target: Path) -> bool:
    return target.is_file() and target.suffix not in (".yaml", ".yml")


def _of_log(log: Path, run: str, stage: str | None) -> Watched:
    """A log alone, which says itself of which stage it is."""
    lines = read_lines(log)
    if not lines and log.stat().st_size:
        rule = "holds no line of a stage's log"
        remedy = "name a run's YAML (.yaml), its output directory, or a metrics.jsonl"
        raise ConfigError("", [Problem("RUN", log, rule, remedy)])
    told = dict.fromkeys(str(line["stage"]) for line in lines if "stage" in line)
    if told:
        _require_stage(stage, list(told))
    return Watched(log, run, None if told else stage)


def _require_stage(stage: str | None, names: Sequence[str]) -> None:
    if stage is not None and stage not in names:
        remedy = f"there are {', '.join(names) or 'none'}"
        raise ConfigError("", [Problem("--stage", stage, "is no stage here", remedy)])


def _of_run(
    places: RunDirectory,
    name: str,
    configured: Callable[[], RunConfig | None],
    stage: str | None,
) -> Watched:
    run = configured()
    logs = [log for log in places.root.glob(f"stages/*/{_LOG}") if log.is_file()]
    known = [log.parent.name for log in sorted(logs, key=_last_at_work)]
    # A stage may be newer than the configuration of the last checkpoint.
    names = list(dict.fromkeys([*(run.stages if run is not None else ()), *known]))
    _require_stage(stage, names)
    chosen = stage or (known[-1] if known else next(iter(names), None))
    if chosen is None:
        rule = "holds no log of a stage"
        remedy = "name a run's YAML, its output directory, or a metrics.jsonl"
        raise ConfigError("", [Problem("RUN", places.root, rule, remedy)])
    watched = Watched(
        metrics_file(places.stage(chosen)),
        name if run is None else run.name,
        chosen,
        places,
        _updates(run, chosen),
    )

    def asked() -> int | None:
        with suppress(AliaError):  # a file that is just being edited
            return _updates(configured(), chosen)
        return None

    return replace(watched, asked=asked)


def _last_at_work(log: Path) -> float:
    """When its last line was written, as that says itself: the file of a copy is as old
    as the copy.
    """
    lines: Sequence[Mapping[str, Any]] = ()
    with suppress(AliaError):  # said where it is that one which is looked at
        lines = read_lines(log)
    stage = WatchedStage("", "", lines)
    if (age := stage.age(now := datetime.now(UTC))) is not None:
        return now.timestamp() - age
    return log.stat().st_mtime


def _updates(run: RunConfig | None, name: str) -> int | None:
    """Updates of a stage; None where only a plan that is not here would say it."""
    if run is None or name not in run.stages:
        return None
    from alia_ctx.workflow.chain import stage_task

    try:
        return stage_task(run, name).updates
    except AliaError:
        return None
