"""From a checked configuration to jobs: what each needs, its batch file, its submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from alia_ctx.cluster import (
    Job,
    QueueError,
    Slurm,
    batch_file,
    label_of,
    queue_comment,
    queue_name,
    shell_script,
    unwritable,
)
from alia_ctx.config.layer_rules import queue_problem
from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.config.texts import escaped
from alia_ctx.errors import ConfigError, Problem, Problems
from alia_ctx.files import atomic_file, exclusive, write_json
from alia_ctx.identity import statement_checksum
from alia_ctx.workflow.chain import check_trained
from alia_ctx.workflow.checking import check_all
from alia_ctx.workflow.importing import (
    base_to_import,
    how_to_import,
    import_command,
)
from alia_ctx.workflow.jobs import lacks_held_out, packed_by, run_jobs
from alia_ctx.workflow.queued import (
    JOBS,
    Queued,
    made_from,
    own_user,
    require_no_strays,
    submitted_jobs,
)


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
    if not is_slurm:
        _require_one_machine(run, stages)
    folder = Path(run.output).absolute() / "launch"
    if is_slurm:
        _require_writable(folder)
    names, notes = _unfinished(run, stages)
    if (note := run.root_note()) is not None:
        notes.append(note)
    if not names and stages:
        return Launched([], notes=notes)
    with exclusive(folder, "alia-ctx launch"):
        document = read_config(config, overrides, over=over)
        copy = folder / f"run-{statement_checksum(document)[:12]}.yaml"
        here = is_slurm and Slurm.is_here()
        queued = Queued.of(folder, document) if here else Queued(made_from(document))
        if submit and here:
            require_no_strays(folder, submitted_jobs(folder))
        if here:
            needed = [stage for name in names for stage in (*_before(run, name), name)]
            queued.require_same_settings(run, list(dict.fromkeys(needed)), folder)
        jobs, more = run_jobs(run, names, folder, copy, queued, whole=not stages)
        notes += more
        trained = [job.stage for job in jobs if job.step == "train"]
        if trained and (base := base_to_import(run, trained)) is not None:
            if submit:
                rule = f"is not at {base} yet, and no job imports it"
                remedy = f"run `{import_command(run, base)}` first"
                problem = Problem("hf_base", run.hf_base, rule, remedy)
                raise ConfigError("nothing was submitted", [problem])
            notes.append(how_to_import(run, base))
        if submit:
            _require_origins(run, jobs, queued)
        if not jobs:
            return Launched([], notes=notes)
        notes += _notes_on_jobs(run)
        _write_config(copy, document)
        files = _write_files(run, jobs, folder)
        launched = Launched(files, notes=notes)
        if submit:
            launched.numbers.update(_submit(run, files, folder, queued))
    return launched


def _notes_on_jobs(run: RunConfig) -> list[str]:
    """What a person should know of the settings by which jobs are started."""
    notes: list[str] = []
    if (asked := queue_problem(run.engine, run.cluster, run.launch)) is not None:
        notes.append(str(asked))  # more than ranks, as fewer are refused
    is_slurm = run.launch.scheduler == "slurm"
    if is_slurm and (unsaid := run.launch.not_charged()):
        keys = " and ".join(f"launch.{name}" for name in unsaid)
        notes.append(
            f"{keys}: not set, so that the batch files name none; some sites, MareNostrum "
            "among them, refuse such jobs"
        )
    if not is_slurm and (ignored := run.launch.of_a_queue()):
        keys = ", ".join(f"launch.{name}" for name in ignored)
        notes.append(f"{keys}: only a queue has a use for it, and there is none")
    return notes


def _require_writable(folder: Path) -> None:
    """ConfigError where no batch file could name the places of its job."""
    problems = Problems()
    remedy = "give it another name, or a link to it"
    places = {"output": folder.parent, "the directory of `launch`": Path.cwd()}
    for key, place in places.items():
        if rule := unwritable(place):
            problems.add(key, str(place), rule, remedy)
    if problems:
        raise ConfigError("", problems)


def _require_one_machine(run: RunConfig, stages: Sequence[str]) -> None:
    """ConfigError where a stage needs more than the machine that a script runs on."""
    problems = Problems()
    remedy = "use slurm; configs/clusters/ has examples, and --cluster names one"
    own = {name: run.stage(name).nodes for name in stages or run.stages}
    problems.need(
        run.cluster.nodes == 1 or None not in own.values(),
        *("launch.scheduler", "none"),
        f"starts ranks on one machine, and the run has {run.cluster.nodes} nodes",
        remedy,
    )
    for name, nodes in own.items():
        rule = "are more than the one machine that launch.scheduler=none starts on"
        problems.need(nodes in (None, 1), f"stages.{name}.nodes", nodes, rule, remedy)
    if problems:
        raise ConfigError("", problems)


def _unfinished(run: RunConfig, stages: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the stages to train, a note for each that is finished), in the order of their
    chain, as each job waits for the one before.
    """
    names, notes = [], []
    for name in (name for name in run.stages if not stages or name in stages):
        if check_trained(run, name, reading=True):
            notes.append(f"stage {name} is finished: no job")
        else:
            names.append(name)
    return names, notes


def _require_origins(run: RunConfig, jobs: Sequence[Job], queued: Queued) -> None:
    """ConfigError where a stage would start from another that nobody trains."""
    trained = {job.stage for job in jobs if job.step == "train"}
    trained |= {entry["stage"] for entry in queued.training(list(run.stages))}
    problems = Problems()
    for job in jobs:
        origin = run.stage(job.stage).init_from
        if job.step != "train" or origin not in run.stages or origin in trained:
            continue
        problems.need(
            check_trained(run, origin, reading=True),
            *("--stage", job.stage),
            f"starts from {origin}, which is neither finished nor in the queue",
            f"add --stage {origin}",
        )
    if problems:
        raise ConfigError("nothing was submitted", problems)


# -- files -----------------------------------------------------------------------------


def _write_config(path: Path, document: dict[str, Any]) -> None:
    """A copy of the configuration, called by its content: jobs that wait in the queue for
    days read what was checked, whatever becomes of the file that it came from.
    """
    text = yaml.safe_dump(_escaped(document), sort_keys=False, allow_unicode=True)
    head = "# Written by `alia-ctx launch`: the configuration as its jobs read it.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write((head + text).encode())


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


def _submit(
    run: RunConfig, files: Sequence[tuple[Job, Path]], folder: Path, queued: Queued
) -> dict[str, str]:
    """Submit each to start after the one before and what else it needs, and record the
    numbers.
    """
    slurm, numbers, record = Slurm(), dict[str, str](), folder / JOBS
    before = submitted_jobs(folder)
    recorded = [*before]
    try:
        for job, path in files:
            after, behind = _waits_for(run, job, queued)
            after = [*list(numbers.values())[-1:], *after]
            late = {"behind": behind} if behind else {}
            numbers[job.name] = slurm.submit(path, after, **late)
            # At once: a job that nobody has noted down would be submitted again.
            # As fine as the times of files: `status` compares a report with it.
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            entry = {"number": numbers[job.name], "name": job.name, "stage": job.stage}
            entry |= {"step": job.step, "file": str(path), "submitted": now}
            entry["label"] = label_of(queue_name(job), queue_comment(job))
            if (user := own_user()) is not None:
                entry["user"] = user
            doing = {"stages": packed_by(job), "made_from": queued.made_from}
            entry["config"] = str(job.config)
            recorded.append({**entry, **doing})
            write_json(record, {"jobs": recorded})
    except QueueError as error:
        kept = _take_back(slurm, list(numbers.values()))
        if not kept and before:
            write_json(record, {"jobs": before})
        elif not kept:
            record.unlink(missing_ok=True)
        taken = ", ".join(n for n in numbers.values() if n not in kept)
        back = f" Those before it were taken back: {taken}." if taken else ""
        if kept:
            back += f" Still in the queue: {', '.join(kept)}; `scancel` them."
        raise QueueError(
            f"{path} was refused: {error}.{back} Mend it (launch.*), and launch again"
        ) from error
    return numbers


def _waits_for(run: RunConfig, job: Job, queued: Queued) -> tuple[list[str], list[str]]:
    """The jobs in the queue that have to end (well, in any way) before `job` may start."""
    same = [entry["number"] for entry in queued.of_step(job.step)]
    if job.step == "data":
        return [], same
    evaluates = job.step == "evaluate"
    trained = [] if evaluates else [job.stage]
    data = queued.the_same("data", trained) if trained else None
    if data is None and lacks_held_out(run, trained, evaluates=evaluates):
        data = queued.the_same("data")
    stages = list(run.stages) if evaluates else _before(run, job.stage)
    after = [entry["number"] for entry in (data, *queued.training(stages)) if entry]
    return after, same if evaluates else []


def _before(run: RunConfig, name: str) -> list[str]:
    """The stages that a stage comes from, directly or not, the first one first."""
    before: list[str] = []
    while (name := run.stage(name).init_from) in run.stages:
        before.insert(0, name)
    return before


def _take_back(slurm: Slurm, numbers: Sequence[str]) -> list[str]:
    """Cancel jobs, the last first; those that could not be."""
    kept = []
    for number in reversed(numbers):
        try:
            slurm.cancel([number])
        except QueueError:
            kept.append(number)
    return kept
