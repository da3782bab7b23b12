"""Where a run stands, from its own files: also those of a copy on another machine. Where
the queue can be asked, what it says of the run's jobs.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.cluster import QueuedJob, QueueError, Slurm
from alia_ctx.config.load import load_plan
from alia_ctx.config.run import RunConfig
from alia_ctx.config.texts import written
from alia_ctx.errors import AliaError, ConfigError, DataError, Problem
from alia_ctx.report.screen import WatchedStage
from alia_ctx.report.wall_time import seconds_for
from alia_ctx.train.faults import read_faults
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.workflow.chain import planned_updates
from alia_ctx.workflow.departed import (
    Departed,
    departed_jobs,
    is_submitted_from,
    left_undone,
)
from alia_ctx.workflow.mixture import mixture_of, sizes_of
from alia_ctx.workflow.queued import (
    JOBS,
    in_queue,
    strays,
    submitted_config,
    submitted_jobs,
)
from alia_ctx.workflow.recorded_config import config_of
from alia_ctx.workflow.stage_progress import progress

_RECENT = 20  # updates whose median speed is told
_FAULTS_SHOWN = 5
_GRAVITY = {"slow": 1, "nan": 2, "hung": 3, "lost": 4}


@dataclass(frozen=True)
class StageStatus:
    """A stage as its files have it. `update` is the last that the log knows, `saved` that
    of the last checkpoint; None is what is not known.

    `faults` counts by kind what the stage survived, `words` has the gravest in full.
    """

    stage: str
    state: str
    update: int
    updates: int | None
    tokens: int
    tokens_planned: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    last_line_seconds: float | None
    saved: int | None
    checkpoint: str | None
    faults: dict[str, int]
    words: list[str]
    job: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunStatus:
    """A run: its stages in their order, other jobs of it in the queue, and what could not
    be read.
    """

    run: str
    output: str
    stages: list[StageStatus]
    jobs: list[dict[str, Any]]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_status(
    target: Path, overrides: Sequence[str] = (), *, cluster: Path | None = None
) -> RunStatus:
    """The status of the run that is configured in `target`, or whose output directory it
    is. ConfigError or DataError where it is neither. `cluster`: as in `launch`.
    """
    over = [cluster] if cluster is not None else []
    run, root = _run_of(target, overrides, over)
    problems, folder = list[str](), root / "launch"
    recorded, queued = list[dict[str, Any]](), dict[str, QueuedJob]()
    gone: list[Departed] = []
    try:
        recorded = submitted_jobs(folder)
        if recorded and not Slurm.is_here():
            problems.append("there is no queue on this machine to ask about the jobs")
        elif recorded and not is_submitted_from(folder, recorded):
            problems.append(f"{folder}: is a copy, its jobs are those of another place")
        elif recorded:
            queued = in_queue(recorded)
            gone = departed_jobs(folder, recorded, queued)
            problems += [
                f"job {job.number} ({job.state.lower()}) is of this run, and "
                f"{folder / JOBS} does not have it"
                for job in strays(folder.absolute(), recorded)
            ]
    except (QueueError, DataError) as error:
        problems.append(str(error))
    jobs = [
        {**job, **asdict(queued[job["number"]])}
        for job in recorded
        if job["number"] in queued
    ]
    trains = {job["stage"]: job for job in jobs if job.get("step") == "train"}
    begun = [
        d.name for d in _begun(root) if RunDirectory(root).metrics(d.name).exists()
    ]
    names = dict.fromkeys([*run.stages, *begun, *trains])
    trained = {job.stage: job for job in gone if job.step == "train"}
    stages = [
        _stage(run, root, name, trains.get(name), trained.get(name)) for name in names
    ]
    finished = {stage.stage for stage in stages if stage.state == "finished"}
    here = replace(run, output=str(root.absolute()))
    problems += left_undone(here, gone, finished)
    others = [job for job in jobs if job.get("step") != "train"]
    return RunStatus(run.name, str(root), stages, others, problems)


def _run_of(
    target: Path, overrides: Sequence[str], over: Sequence[Path]
) -> tuple[RunConfig, Path]:
    if not target.is_dir():
        run, _ = load_plan(target, overrides, over=over)
        return run, Path(run.output)
    copies = _copies(target / "launch")
    saved = (checkpoint.latest(d / "checkpoints") for d in _begun(target))
    at = max((_changed(path) for path in saved if path is not None), default=0.0)
    known: list[tuple[float, RunConfig]] = []
    with suppress(ConfigError):
        known.append((at, config_of(target)))
    if copies:
        # Beside a readable checkpoint it is only of use where it can be read.
        with suppress(*[AliaError] * bool(known)):
            moved = [f"output={written(str(target.absolute()))}", *overrides]
            copied, _ = load_plan(copies[-1], moved, over=over)
            known.append((_changed(copies[-1]), copied))
    if not known:
        rule = "holds no checkpoint, and nothing was launched from it"
        remedy = "give the run's configuration, or the directory called `output` in it"
        raise ConfigError("", [Problem("RUN", target, rule, remedy)])
    known.sort(key=lambda each: each[0])
    return _with_all_stages([run for _, run in known]), target


def _copies(folder: Path) -> list[Path]:
    """The configurations that `launch` has written, the one that counts last: what the
    newest job reads, or where none was submitted what was written last.
    """
    copies = sorted(folder.glob("run-*.yaml"), key=_changed)
    with suppress(DataError):  # said where the jobs are looked at
        for job in submitted_jobs(folder)[-1:]:
            copy = submitted_config(folder, job)
            copies += [copy] if copy is not None else []
    return copies


def _with_all_stages(runs: Sequence[RunConfig]) -> RunConfig:
    """The last of some configurations of a run, with the stages that only the others
    have: a stage may be newer than the last checkpoint, or than what was launched.
    """
    newest = runs[-1]
    stages = {name: stage for run in runs for name, stage in run.stages.items()}
    order = newest.stages if {*newest.stages} == {*stages} else stages
    return replace(newest, stages={name: stages[name] for name in order})


def _begun(root: Path) -> list[Path]:
    """The directories of stages that there are, whatever is configured."""
    return sorted(d for d in (root / "stages").glob("*") if d.is_dir())


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _stage(
    run: RunConfig,
    root: Path,
    name: str,
    job: dict[str, Any] | None,
    gone: Departed | None,
) -> StageStatus:
    places, problems = RunDirectory(root), list[str]()
    lines: Sequence[Mapping[str, Any]] = []
    try:
        lines = read_lines(places.metrics(name))
    except AliaError as error:
        problems.append(str(error))
    newest, ledger = checkpoint.latest(places.checkpoints(name)), None
    try:
        if newest is not None:
            ledger = checkpoint.read_manifest(newest).ledger[-1]
    except AliaError as error:
        problems.append(str(error))
    asked, planned = _planned(run, root, name)
    so_far = progress(places, name, lines, asked, is_queued=job is not None)
    lines, updates = so_far.lines, so_far.updates
    if planned is not None and updates != asked:  # updates of tokens are all as long
        planned = None if not updates or not asked else planned // asked * updates
    last = lines[-1] if lines else {}
    saved = ledger.updates if ledger else 0
    update = max(so_far.logged, saved)
    speeds = [float(n["tokens_per_second"]) for n in lines[-_RECENT:] if _speed(n)]
    # A copy may be without checkpoints.
    known = saved if places.checkpoints(name).is_dir() else None
    watched = WatchedStage("", name, lines, updates, known)
    left = None
    if updates is not None:
        begins = saved if watched.unsaved else update
        left = seconds_for(updates - begins, lines)
    finished = updates is not None and ledger is not None and ledger.updates >= updates
    if gone is not None and not finished:
        problems.append(f"{gone} and stage {name} is not finished: {gone.see}")
    if lines and watched.unsaved:
        problems.append(
            f"{places.metrics(name)}: {watched.unsaved}; unless that is being done, "
            f"`alia-ctx train CONFIG --stage {shlex.quote(name)}` does them again"
        )
    faults, words = _faults(places, name, lines)
    status = StageStatus(
        stage=name,
        state="",
        update=update,
        updates=updates,
        tokens=last.get("tokens", ledger.tokens if ledger else 0),
        tokens_planned=planned,
        loss=last.get("loss"),
        tokens_per_second=sorted(speeds)[len(speeds) // 2] if speeds else None,
        seconds_left=0.0 if finished else left,
        last_line_seconds=_age(places.metrics(name), last),
        saved=ledger.updates if ledger else None,
        checkpoint=str(newest) if newest else None,
        faults=faults,
        words=words,
        job=job,
        problems=problems,
    )
    return replace(status, state=_state(status, gone, finished=finished))


def _state(status: StageStatus, gone: Departed | None, *, finished: bool) -> str:
    if finished:
        return "finished"
    if status.job is not None:
        reason = status.job["reason"]
        why = f" ({reason})" if reason not in ("None", "") else ""
        return f"job {status.job['number']} {status.job['state'].lower()}{why}"
    state = "begun" if status.update else "not begun"
    return f"{state}, job {gone.number} is gone" if gone is not None else state


def _speed(line: Mapping[str, Any]) -> bool:
    value = line.get("tokens_per_second")
    return isinstance(value, (int, float)) and value > 0


def _age(path: Path, last: Mapping[str, Any]) -> float | None:
    """Seconds since the last line, as that says itself: a copy is as old as the copy."""
    with suppress(KeyError, ValueError, TypeError):
        written = datetime.fromisoformat(last["time"])
        return max(0.0, (datetime.now(UTC) - written).total_seconds())
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _planned(run: RunConfig, root: Path, name: str) -> tuple[int | None, int | None]:
    """(updates, tokens) of a stage to its end; nothing of one that no configuration has."""
    if name not in run.stages:
        return None, None
    stage = run.stage(name)
    if stage.update_instances is None:
        return stage.updates, stage.rows * stage.context
    moved = replace(run, output=str(root))
    with suppress(AliaError):
        packed, mixture = planned_updates(moved, name), mixture_of(moved, name)
        if not mixture.is_known:
            return packed, None
        return packed or mixture.updates or None, sizes_of(moved, name)[0]
    return None, None


def _faults(
    places: RunDirectory, name: str, lines: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, int], list[str]]:
    folder, log = places.stage(name), places.metrics(name)
    named = read_faults(folder)
    counts = Counter[str](f"{line['kind']} rank" for line in named)
    counts["skipped update"] = sum(line.get("applied") is False for line in lines)
    counts["spike"] = sum(line.get("spike") is True for line in lines)
    counts["update done again"] = _lines(log.with_name(f"{log.name}.superseded"))
    counts["broken line"] = _lines(log.with_name(f"{log.name}.broken"))
    root = places.checkpoints(name)
    counts["damaged checkpoint"] = len(list(root.glob("*.damaged*")))
    counts["unfinished checkpoint"] = len(list(root.glob("*.incomplete")))
    # The gravest, of these the last, told in the order in which they came.
    named.sort(key=lambda line: _GRAVITY.get(line["kind"], 0))
    shown = sorted(named[-_FAULTS_SHOWN:], key=lambda line: str(line["time"]))
    words = [
        f"{line['time']} update {line.get('update')}: {line.get('words')}"
        for line in shown
    ]
    return {kind: n for kind, n in counts.items() if n}, words


def _lines(path: Path) -> int:
    with suppress(OSError):
        return sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return 0
