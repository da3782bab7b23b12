"""What jobs a run needs, and what each of them asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.cluster import Job
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.errors import AliaError, DataError
from alia_ctx.train.stopping import LEAVING_SECONDS
from alia_ctx.workflow.chain import run_directory, stage_task
from alia_ctx.workflow.continued import earlier_stages
from alia_ctx.workflow.evaluation_tasks import what_is_missing
from alia_ctx.workflow.plan_work import plan_work
from alia_ctx.workflow.planned import planned_stage
from alia_ctx.workflow.queued import Queued, Record
from alia_ctx.workflow.stores import not_tokenised, text_sources

_START_SECONDS = 1800  # imports on a cold file system, compilation, loading
_MARGIN = 1.25  # over the planner's estimate
_DATA_SECONDS = 4 * 3600.0
_SAVE_SECONDS = 120


def run_jobs(
    run: RunConfig,
    names: Sequence[str],
    folder: Path,
    config: Path,
    queued: Queued,
    *,
    whole: bool,
) -> tuple[list[Job], list[str]]:
    """(the jobs of a run in their order, without what the queue has already or is
    finished, a note for each of those). ConfigError where a stage that was asked for, or
    all that there is to do, is in the queue.

    names: of the stages to train. whole: with the evaluation at the end.
    """
    job = partial(
        Job,
        run=run.name,
        config=config,
        ranks_per_node=run.cluster.ranks_per_node,
        folder=folder,
        wait_seconds=_wait_seconds(run),
    )
    evaluates = whole and run.evaluation.held_out is not None
    evaluation = queued.the_same("evaluate")
    in_queue = {entry["stage"]: entry for entry in queued.training(names)}
    if not whole or ({*names} <= {*in_queue} and (evaluation or not evaluates)):
        queued.require_none(names)
    notes = [_is_queued(f"stage {name}", entry) for name, entry in in_queue.items()]
    names = [name for name in names if name not in in_queue]
    measures, of_evaluation = evaluates, list[str]()
    if evaluates and not names and not in_queue and _is_evaluated(run):
        measures = False
        of_evaluation.append("the evaluation is finished: no job")
    elif evaluates and not names and evaluation:
        measures = False
        of_evaluation.append(_is_queued("the evaluation", evaluation))
    text = lacks_held_out(run, names, evaluates=measures)
    jobs = _data_jobs(run, names, job, config, queued, notes, text=text)
    jobs += [_stage_job(run, name, job) for name in names]
    if measures:
        jobs.append(_evaluation_job(run, job, config))
    return jobs, [*notes, *of_evaluation]


def lacks_held_out(
    run: RunConfig, stages: Sequence[str], *, evaluates: bool = False
) -> bool:
    """Whether the training of `stages`, or the evaluation, reads held-out text that is
    still to be tokenised.
    """
    evaluation = run.evaluation
    if HELD_OUT not in not_tokenised(run, [HELD_OUT]):
        return False
    while_training = evaluation.every_updates and evaluation.during_on_text
    return evaluates or bool(stages and while_training)


def _is_queued(what: str, entry: Record) -> str:
    return f"{what} is in the queue as job {entry['number']}: no further job"


def _data_jobs(
    run: RunConfig,
    names: Sequence[str],
    job: Callable[..., Job],
    config: Path,
    queued: Queued,
    notes: list[str],
    *,
    text: bool,
) -> list[Job]:
    """That which makes the plans of stages that have none, or too short a one, and where
    `text` is wanted the store of the held-out text, unless it is in the queue.
    """
    unpacked = [name for name in names if plan_work(run, name) != "nothing"]
    if not unpacked and not text:
        return []
    if entry := queued.the_same("data", unpacked):
        notes.append(_is_queued("the data", entry))
        return []
    path = str(config)
    only = _sources(run, unpacked)
    sources = [word for name in only for word in ("--source", name)]
    commands = (
        ("tokenize", path, *sources),
        *(("pack", path, "--stage", name) for name in unpacked),
    )
    return [
        job(
            name="00-data",
            step="data",
            stage=[*names, *run.stages][0],
            nodes=1,
            seconds=_DATA_SECONDS,
            progress=run_directory(run).tokens.absolute(),
            commands=commands,
        )
    ]


def _sources(run: RunConfig, names: Sequence[str]) -> list[str]:
    """What has to be tokenised to pack `names`, those of stages whose data they continue
    or whose held-out conversations they leave out among it; nothing where that is all.
    """
    every = list(run.data.sources)
    drawn = {
        name: {*stage.pack.drawn_from(every)} for name, stage in run.stages.items()
    }
    read = set().union(
        *(drawn[n] for name in names for n in (name, *earlier_stages(run, name)))
    )
    for other, stage in run.stages.items():
        if stage.pack.held_out_instances and drawn[other] & read:
            read |= drawn[other]
    text = [HELD_OUT] if HELD_OUT in text_sources(run) else []
    return [] if {*every} <= read else [*(n for n in every if n in read), *text]


def _stage_job(run: RunConfig, name: str, job: Callable[..., Job]) -> Job:
    return job(
        name=f"{1 + list(run.stages).index(name):02d}-{_word(name)}",
        step="train",
        stage=name,
        nodes=run.stage(name).nodes or run.cluster.nodes,
        seconds=_seconds(run, name),
        progress=run_directory(run).checkpoints(name).absolute(),
    )


def _evaluation_job(run: RunConfig, job: Callable[..., Job], config: Path) -> Job:
    last = list(run.stages)[-1]
    return job(
        name=f"{1 + len(run.stages):02d}-evaluate",
        step="evaluate",
        stage=last,
        nodes=run.stage(last).nodes or run.cluster.nodes,
        seconds=run.launch.limit_seconds,
        progress=run_directory(run).evaluations.absolute(),
        commands=(("report", str(config)),),
    )


def _wait_seconds(run: RunConfig) -> int:
    """How long after the end of one rank the others may be there: until the slower of
    time-out and watchdog notices, and room to leave.
    """
    minutes = max(run.engine.timeout_minutes, run.engine.hang_minutes)
    return math.ceil(60 * minutes + LEAVING_SECONDS) + _SAVE_SECONDS


def _is_evaluated(run: RunConfig) -> bool:
    """Whether all that the report compares is measured, and the report written."""
    with suppress(AliaError):
        written = (run_directory(run).report / "report.md").is_file()
        return written and not what_is_missing(run)
    return False


def packed_by(job: Job) -> list[str]:
    """The stages whose plans a job makes."""
    return [command[-1] for command in job.commands if command[0] == "pack"]


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
    if plan.untimed:
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
        return max(0.0, 1 - checkpoint.update_of(newest) / updates)
    return 1.0
