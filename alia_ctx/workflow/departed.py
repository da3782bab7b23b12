"""Jobs of a run that have left the queue, and what they have left undone."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from alia_ctx.config.load import load_plan
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.config.texts import written
from alia_ctx.errors import AliaError
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.evaluation_tasks import what_is_missing
from alia_ctx.workflow.plan_work import plan_work
from alia_ctx.workflow.queued import Record, submitted_config
from alia_ctx.workflow.stores import not_tokenised

_AGAIN = "then `alia-ctx launch CONFIG --submit` again"


@dataclass(frozen=True)
class Departed:
    """The last job of its kind, which is in the queue no more. `see`: where it says why;
    `config`: the copy of the configuration that it read; `submitted`: when, in seconds
    since 1970; None where that is not known.
    """

    number: str
    step: str
    stage: str
    stages: tuple[str, ...]
    see: str
    config: Path | None = None
    submitted: float | None = None

    def __str__(self) -> str:
        return f"job {self.number} has left the queue"


def departed_jobs(
    folder: Path, recorded: Sequence[Record], queued: Container[str]
) -> list[Departed]:
    """Of the jobs that were submitted from `folder`, the last of each step and stage that
    has left the queue where no other of them is in it.
    """
    last: dict[tuple[str, str], Record] = {}
    waiting = set()
    for job in recorded:
        step = str(job.get("step", "train"))
        kind = step, str(job.get("stage")) if step == "train" else ""
        last[kind] = job
        if job["number"] in queued:
            waiting.add(kind)
    return [
        Departed(
            job["number"],
            kind[0],
            str(job.get("stage")),
            tuple(job.get("stages", ())),
            _where(folder, job),
            submitted_config(folder, job),
            _seconds(job.get("submitted")),
        )
        for kind, job in last.items()
        if kind not in waiting
    ]


def _seconds(time: object) -> float | None:
    with suppress(ValueError):
        return datetime.fromisoformat(str(time)).timestamp()
    return None


def _where(folder: Path, job: Record) -> str:
    log = folder / "logs" / f"{job['name']}-{job['number']}.out"
    if log.is_file():
        return f"see {log}, {_AGAIN}"
    return (
        "it has written nothing: it was cancelled, or one that it waited for has "
        f"failed; see to that, {_AGAIN}"
    )


def left_undone(
    run: RunConfig, gone: Sequence[Departed], finished: Container[str]
) -> list[str]:
    """What jobs of data and evaluation should have made and have not, a line each.

    run: as it is configured now, with the `output` that it has here; a job is judged by
    the copy that it read, if that is there still. finished: the stages that are.
    """
    lines = []
    for job in gone:
        own = _as_submitted(run, job)
        if job.step == "data":
            stages = [name for name in job.stages if name not in finished]
            lines += [f"{job} and {what}: {job.see}" for what in _unmade(own, stages)]
        if job.step == "evaluate" and (what := _unmeasured(own, job)):
            lines.append(f"{job} and {what}: {job.see}")
    return lines


def _as_submitted(run: RunConfig, job: Departed) -> RunConfig:
    if job.config is not None:
        with suppress(AliaError):
            return load_plan(job.config, [f"output={written(run.output)}"])[0]
    return run


def _unmade(run: RunConfig, stages: Sequence[str]) -> list[str]:
    """What is not there of the data of `stages`, and of the held-out text as long as
    something is to be made with it.
    """
    places, made = run_directory(run), []
    absent = [n for n in stages if not (places.plan(n) / "plan.json").is_file()]
    if absent:
        made.append(f"there is no plan of stage {', '.join(absent)}")
    there = [n for n in stages if n not in absent and n in run.stages]
    if short := [name for name in there if _lacks_rows(run, name)]:
        made.append(f"the plan of stage {', '.join(short)} lacks rows")
    every = list(run.data.sources)
    text = [source for n in there for source in run.stage(n).pack.drawn_from(every)]
    if stages or not (places.report / "report.md").is_file():
        text.append(HELD_OUT)
    # Text without a plan is told of by the plan.
    if not absent and (lacking := not_tokenised(run, dict.fromkeys(text))):
        made.append(f"there are no tokens of {', '.join(lacking)}")
    return made


def _lacks_rows(run: RunConfig, name: str) -> bool:
    with suppress(AliaError, OSError):  # said where the stage is launched or packed
        return plan_work(run, name) == "rows"
    return False


def _unmeasured(run: RunConfig, job: Departed) -> str | None:
    """What is not there of an evaluation and its report."""
    report = run_directory(run).report / "report.md"
    if not report.is_file():
        return "there is no report"
    is_measured = None
    with suppress(AliaError, OSError):  # stages that are not finished are told of
        is_measured = not what_is_missing(run)
    # Where the text was removed since, nobody can tell what was made of it.
    if is_measured is False and not not_tokenised(run, [HELD_OUT]):
        return "the evaluation is not finished"
    if job.submitted is not None and report.stat().st_mtime < job.submitted:
        anew = "; all is measured, `alia-ctx report CONFIG` writes it" * bool(
            is_measured
        )
        return f"the report is older than it{anew}"
    return None


def is_submitted_from(folder: Path, recorded: Sequence[Record]) -> bool:
    """Whether the recorded jobs are of this folder, and not of one that it is a copy of."""
    for job in recorded:
        file = Path(str(job.get("file", "")))
        if file.parent.is_dir() and file.parent.samefile(folder):
            return True
    return not any("file" in job for job in recorded)
