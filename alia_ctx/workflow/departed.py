"""Jobs of a run that have left the queue, and what they have left undone."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.workflow.queued import Record

_AGAIN = "then `alia-ctx launch CONFIG --submit` again"


@dataclass(frozen=True)
class Departed:
    """The last job of its kind, which is in the queue no more. `see`: where it says why."""

    number: str
    step: str
    stage: str
    stages: tuple[str, ...]
    see: str

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
        )
        for kind, job in last.items()
        if kind not in waiting
    ]


def _where(folder: Path, job: Record) -> str:
    log = folder / "logs" / f"{job['name']}-{job['number']}.out"
    if log.is_file():
        return f"see {log}, {_AGAIN}"
    return (
        "it has written nothing: it was cancelled, or one that it waited for has "
        f"failed; see to that, {_AGAIN}"
    )


def left_undone(places: RunDirectory, gone: Sequence[Departed]) -> list[str]:
    """What jobs of data and evaluation should have made and have not, a line each."""
    lines = []
    for job in gone:
        unpacked = [
            stage
            for stage in job.stages
            if not (places.plan(stage) / "plan.json").is_file()
        ]
        if job.step == "data" and unpacked:
            names = ", ".join(unpacked)
            lines.append(f"{job} and there is no plan of stage {names}: {job.see}")
        if job.step == "evaluate" and not (places.report / "report.md").is_file():
            lines.append(f"{job} and there is no report: {job.see}")
    return lines


def is_submitted_from(folder: Path, recorded: Sequence[Record]) -> bool:
    """Whether the recorded jobs are of this folder, and not of one that it is a copy of."""
    for job in recorded:
        file = Path(str(job.get("file", "")))
        if file.parent.is_dir() and file.parent.samefile(folder):
            return True
    return not any("file" in job for job in recorded)
