"""From a checked configuration to jobs: what each needs, its batch file, its submission."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from alia_ctx import checkpoint
from alia_ctx.cluster import Job, QueueError, Slurm, batch_file, shell_script
from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.config.texts import escaped
from alia_ctx.errors import AliaError, ConfigError, DataError, Problem, Problems
from alia_ctx.files import atomic_file, exclusive, read_object, write_json
from alia_ctx.identity import statement_checksum
from alia_ctx.workflow.chain import check_trained, run_directory, stage_task
from alia_ctx.workflow.checking import check_all
from alia_ctx.workflow.planned import planned_stage

JOBS = "jobs.json"
_START_SECONDS = 1800  # imports on a cold file system, compilation, loading
_MARGIN = 1.25  # over the planner's estimate
_DATA_SECONDS = 4 * 3600.0


@dataclass(frozen=True)
class Launched:
    """What `launch` wrote: (job, its file) in their order, the numbers in the queue of
    those that were submitted, and what a person should know.
    """

    files: list[tuple[Job, Path]]
    numbers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def launch(
    config: Path,
    overrides: Sequence[str] = (),
    *,
    stages: Sequence[str] = (),
    cluster: Path | None = None,
    submit: bool = False,
) -> Launched:
    """Check a run, write the batch files of its stages (default: all that are not
    finished, the data before and the evaluation after them), and submit them.

    `cluster` is a file that is put over the configuration, as configs/clusters/ has them.
    The jobs read a copy of the configuration, as it was checked. Raises what `check`
    raises, before anything is written; ConfigError where a stage is in the queue already,
    or there is no queue; QueueError where the queue refuses a job: those before it are
    taken back then.
    """
    over = [cluster] if cluster is not None else []
    run = load_run(config, overrides, stages=stages, read_text=not stages, over=over)
    check_all(run, config, stages)
    if run.deferred(run.output):
        rule = "is not on this machine, and batch files go there"
        problem = Problem("output", run.output, rule, "launch where it is mounted")
        raise ConfigError("", [problem])
    is_slurm = run.launch.scheduler == "slurm"
    if submit and not is_slurm:
        rule, remedy = "has no queue to submit to", "use slurm, or go without --submit"
        raise ConfigError("", [Problem("launch.scheduler", "none", rule, remedy)])
    if not is_slurm and run.cluster.nodes > 1:
        rule = f"starts ranks on one machine, and the run has {run.cluster.nodes} nodes"
        remedy = "use slurm; configs/clusters/ has examples, and --cluster names one"
        raise ConfigError("", [Problem("launch.scheduler", "none", rule, remedy)])
    folder = Path(run.output).absolute() / "launch"
    names, notes = _unfinished(run, stages)
    if not names and stages:
        return Launched([], notes=notes)
    with exclusive(folder, "alia-ctx launch"):
        if is_slurm and Slurm.is_here():
            _require_not_queued(folder, names)
        copy = _write_config(folder, read_config(config, overrides, over=over))
        jobs = _jobs(run, names, folder, copy, whole=not stages)
        if not jobs:
            return Launched([], notes=notes)
        files = _write_files(run, jobs, folder)
        launched = Launched(files, notes=notes)
        if submit:
            launched.numbers.update(_submit(files, folder))
    return launched


def _unfinished(run: RunConfig, stages: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the stages to train, a note for each that is finished)."""
    names, notes = [], []
    for name in stages or run.stages:
        if check_trained(run, name, reading=True):
            notes.append(f"stage {name} is finished: no job")
        else:
            names.append(name)
    return names, notes


# -- jobs ------------------------------------------------------------------------------


def _jobs(
    run: RunConfig, names: Sequence[str], folder: Path, config: Path, *, whole: bool
) -> list[Job]:
    """The jobs of a run in their order; `whole`: with the evaluation at its end."""
    shared: dict[str, Any] = {
        "run": run.name,
        "config": config,
        "ranks_per_node": run.cluster.ranks_per_node,
        "folder": folder,
    }
    jobs, order = [], list(run.stages)
    plans = run_directory(run).plan
    if any(not (plans(name) / "plan.json").is_file() for name in names):
        path, packed = str(config), order[: 1 + max(map(order.index, names))]
        commands = [("tokenize", path), *(("pack", path, "--stage", n) for n in packed)]
        jobs.append(
            Job(
                *("00-data", run.name, "data", names[0], config, 1),
                run.cluster.ranks_per_node,
                *(_DATA_SECONDS, folder),
                commands=tuple(commands),
            )
        )
    for name in names:
        jobs.append(
            Job(
                name=f"{1 + order.index(name):02d}-{_word(name)}",
                step="train",
                stage=name,
                nodes=run.stage(name).nodes or run.cluster.nodes,
                seconds=_seconds(run, name),
                progress=run_directory(run).checkpoints(name).absolute(),
                **shared,
            )
        )
    if whole and run.evaluation.held_out is not None:
        last = order[-1]
        jobs.append(
            Job(
                name=f"{1 + len(order):02d}-evaluate",
                step="evaluate",
                stage=last,
                nodes=run.stage(last).nodes or run.cluster.nodes,
                seconds=run.launch.limit_seconds,
                commands=(("report", str(config)),),
                **shared,
            )
        )
    return jobs


def _word(name: str) -> str:
    return "_".join(name.split())


def _seconds(run: RunConfig, name: str) -> float:
    """What the rest of a stage is expected to take, with room to start and to save; what
    the queue allows where the planner cannot tell.
    """
    try:
        plan = planned_stage(run, name)
    except AliaError:
        return run.launch.limit_seconds
    room = _START_SECONDS + run.launch.save_seconds
    return _MARGIN * plan.seconds * _left(run, name) + room


def _left(run: RunConfig, name: str) -> float:
    """The share of a stage's updates that are still to be done."""
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is None:
        return 1.0
    with suppress(DataError):
        updates = max(1, stage_task(run, name).updates)
        return max(0.0, 1 - int(newest.name.rpartition("-")[2]) / updates)
    return 1.0


# -- files -----------------------------------------------------------------------------


def _write_config(folder: Path, document: dict[str, Any]) -> Path:
    """A copy of the configuration, called by its content: jobs that wait in the queue for
    days read what was checked, whatever becomes of the file that it came from.
    """
    path = folder / f"run-{statement_checksum(document)[:12]}.yaml"
    text = yaml.safe_dump(_escaped(document), sort_keys=False, allow_unicode=True)
    head = "# Written by `alia-ctx launch`: the configuration as its jobs read it.\n"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write((head + text).encode())
    return path


def _escaped(value: Any) -> Any:
    """A resolved value as it is written: what stands like an interpolation in it is text."""
    if isinstance(value, dict):
        return {key: _escaped(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_escaped(inside) for inside in value]
    return escaped(value) if isinstance(value, str) else value


def _write_files(
    run: RunConfig, jobs: Sequence[Job], folder: Path
) -> list[tuple[Job, Path]]:
    if run.launch.scheduler == "none":
        path = folder / "run.sh"
        with atomic_file(path) as stream:
            stream.write(shell_script(jobs, run.launch, Path.cwd()).encode())
        path.chmod(0o755)
        return [(job, path) for job in jobs]
    files = []
    (folder / "logs").mkdir(exist_ok=True)  # where sbatch writes, it makes no directory
    for job in jobs:
        path = folder / f"{job.name}.sbatch"
        with atomic_file(path) as stream:
            stream.write(batch_file(job, run.launch, Path.cwd()).encode())
        path.chmod(0o755)
        files.append((job, path))
    return files


# -- the queue -------------------------------------------------------------------------


def submitted_jobs(folder: Path) -> list[dict[str, Any]]:
    """What was submitted from the `launch` folder of a run, the oldest first; DataError
    where the record cannot be read.
    """
    path = folder / JOBS
    try:
        jobs = read_object(path)["jobs"]
        return [
            dict(job, number=str(job["number"]), name=str(job["name"])) for job in jobs
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is no record of submitted jobs ({error}); move it away: `squeue` "
            "has the jobs"
        ) from error


def _require_not_queued(folder: Path, names: Sequence[str]) -> None:
    """ConfigError where a job of one of the stages waits or runs: two would have one
    directory.
    """
    recorded = submitted_jobs(folder)
    queued = Slurm().jobs([job["number"] for job in recorded])
    problems = Problems()
    for job in recorded:
        there = queued.get(job["number"])
        active = there is not None and there.state not in _ENDED
        if active and there is not None and (job["stage"] in names):
            problems.add(
                "--stage",
                job["stage"],
                f"is in the queue as job {there.number}, {there.state}",
                f"wait for it, or `scancel {there.number}`",
            )
    if problems:
        raise ConfigError("nothing was submitted", problems)


_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "NODE_FAIL", "PREEMPTED"),
}


def _submit(files: Sequence[tuple[Job, Path]], folder: Path) -> dict[str, str]:
    """Submit each to start after the one before, and record the numbers."""
    slurm, numbers = Slurm(), dict[str, str]()
    recorded = submitted_jobs(folder)
    try:
        for job, path in files:
            after = list(numbers.values())[-1:]
            numbers[job.name] = slurm.submit(path, after)
            # At once: a job that nobody has noted down would be submitted again.
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"number": numbers[job.name], "name": job.name, "stage": job.stage}
            entry |= {"step": job.step, "file": str(path), "submitted": now}
            recorded.append(entry)
            write_json(folder / JOBS, {"jobs": recorded})
    except QueueError as error:
        kept = _take_back(slurm, list(numbers.values()))
        taken = ", ".join(n for n in numbers.values() if n not in kept)
        back = f" Those before it were taken back: {taken}." if taken else ""
        if kept:
            back += f" Still in the queue: {', '.join(kept)}; `scancel` them."
        raise QueueError(
            f"{path} was refused: {error}.{back} Mend it (launch.*), and launch again"
        ) from error
    return numbers


def _take_back(slurm: Slurm, numbers: Sequence[str]) -> list[str]:
    """Cancel jobs, the last first; those that could not be."""
    kept = []
    for number in reversed(numbers):
        try:
            slurm.cancel([number])
        except QueueError:
            kept.append(number)
    return kept
