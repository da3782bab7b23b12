"""The jobs of a run that were submitted: which of them wait or run still, and what new ones
have to wait for.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.cluster import QueuedJob, Slurm
from alia_ctx.config.load import load_plan
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, ConfigError, DataError, Problems
from alia_ctx.files import read_object
from alia_ctx.identity import differences, statement_checksum

JOBS = "jobs.json"
_COMMENT = "alia-ctx "  # as `queue_comment` begins
_NOT_OF_THE_WEIGHTS = ("layout", "nodes", "recompute", "published")  # of a stage
Record = dict[str, Any]


def submitted_jobs(folder: Path) -> list[Record]:
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


def in_queue(recorded: Sequence[Record]) -> dict[str, QueuedJob]:
    """The recorded jobs that are in the queue still, by number. Those of others that have
    the same numbers, as in a queue that was set up anew, are none of them. QueueError
    where the queue cannot be asked.
    """
    there = Slurm().jobs([job["number"] for job in recorded])
    return {
        job["number"]: there[job["number"]]
        for job in recorded
        if job["number"] in there and _is_the_same(job, there[job["number"]])
    }


def _is_the_same(recorded: Record, there: QueuedJob) -> bool:
    if there.user and recorded.get("user", there.user) != there.user:
        return False
    if not there.label:
        return True
    if "label" in recorded:
        name, _, comment = recorded["label"].rpartition(f"|{_COMMENT}")
        # Some sites put comments of their own in the place of that of a job.
        foreign = there.label.startswith(f"{name}|") and (
            f"|{_COMMENT}" not in there.label
        )
        return bool(there.label == recorded["label"] or (comment and foreign))
    # Of earlier releases, which called an evaluation like the last stage.
    name = there.label.rpartition("|")[0]
    ends = (recorded["name"], "_".join(str(recorded.get("stage")).split()))
    return name.endswith(tuple(f"-{end}" for end in ends))


def own_user() -> str | None:
    """Who submits, as the queue has it."""
    with suppress(KeyError):  # a user id without a name, as in containers
        return pwd.getpwuid(os.getuid()).pw_name
    return None


def made_from(document: Mapping[str, Any]) -> str:
    """The checksum of a configuration, without what only says how jobs are started."""
    return statement_checksum({k: v for k, v in document.items() if k != "launch"})


def strays(folder: Path, recorded: Sequence[Record]) -> list[QueuedJob]:
    """Own jobs in the queue that say they are of the `launch` folder of a run, and that its
    record does not have: submitted by hand, or by a start that did not live to note it.
    QueueError where the queue cannot be asked.
    """
    known = {job["number"] for job in recorded}
    ours = f"|{_COMMENT}{folder}/"
    return [
        job
        for job in Slurm().jobs_of(own_user())
        if ours in job.label and job.number.partition("_")[0] not in known
    ]


def require_no_strays(folder: Path, recorded: Sequence[Record]) -> None:
    """ConfigError where jobs of the run are in the queue that nobody has noted: what is
    submitted now would do their work a second time.
    """
    problems = Problems()
    for job in strays(folder, recorded):
        place = job.label.rpartition("/")[2]
        problems.add(
            place,
            f"job {job.number}",
            f"is in the queue, {job.state}, and {folder / JOBS} does not have it",
            f"wait for it, or `scancel {job.number}`",
        )
    if problems:
        raise ConfigError("nothing was submitted", problems)


def submitted_config(folder: Path, job: Record) -> Path | None:
    """The copy of the configuration that a job reads, in the folder that it is in now;
    None where that is not recorded, or gone.
    """
    path = folder / Path(str(job.get("config") or "?")).name
    return path if path.is_file() else None


@dataclass(frozen=True)
class Queued:
    """The jobs of a run that wait or run, as they were recorded, with their `state`.

    A record says what job it is: `step`, `stage`, the `stages` that it packs, and
    `made_from`.

    Args:
        made_from: of the configuration that new jobs would have.
        jobs: those that are there.
    """

    made_from: str
    jobs: tuple[Record, ...] = ()

    @classmethod
    def of(cls, folder: Path, document: Mapping[str, Any]) -> Queued:
        """Those that were submitted from the `launch` folder of a run. QueueError where
        the queue cannot be asked.
        """
        recorded = submitted_jobs(folder)
        there = in_queue(recorded)
        return cls(
            made_from(document),
            tuple(
                {**job, "state": there[job["number"]].state}
                for job in recorded
                if job["number"] in there
            ),
        )

    def training(self, stages: Sequence[str]) -> Iterator[Record]:
        """The jobs that train one of `stages`."""
        for job in self.jobs:
            # What was recorded by earlier releases may say no step.
            if job.get("step", "train") == "train" and job.get("stage") in stages:
                yield job

    def of_step(self, step: str) -> list[Record]:
        return [job for job in self.jobs if job.get("step") == step]

    def the_same(self, step: str, stages: Sequence[str] = ()) -> Record | None:
        """A job that does the same as one of `step` would, for all of `stages`."""
        for job in self.of_step(step):
            covers = {*stages} <= {*job.get("stages", ())}
            if covers and job.get("made_from") == self.made_from:
                return job
        return None

    def require_same_settings(
        self, run: RunConfig, stages: Sequence[str], folder: Path
    ) -> None:
        """ConfigError where one of the stages is trained by a job that was submitted with
        other settings: it would train with those, and what follows refuses its end.
        """
        problems = Problems()
        for job in self.training(stages):
            then = None
            copy = submitted_config(folder, job)
            if copy is not None and job.get("made_from") != self.made_from:
                with suppress(AliaError):
                    then, _ = load_plan(copy, [])
            name = job["stage"]
            if then is None or name not in then.stages:
                continue
            changed = differences(_decides(then, name), _decides(run, name))
            if changed:
                number = job["number"]
                more = f"; and {len(changed) - 3} more" * (len(changed) > 3)
                problems.add(
                    f"stages.{name}",
                    name,
                    f"is in the queue as job {number}, {job['state']}, with other "
                    f"settings ({'; '.join(changed[:3])}{more})",
                    f"restore them; or `scancel {number}`, and launch again",
                )
        if problems:
            raise ConfigError("nothing was submitted", problems)

    def require_none(self, stages: Sequence[str]) -> None:
        """ConfigError where one of the stages is trained by a job: two would have one
        directory.
        """
        problems = Problems()
        for job in self.training(stages):
            problems.add(
                "--stage",
                job["stage"],
                f"is in the queue as job {job['number']}, {job['state']}",
                f"wait for it, or `scancel {job['number']}`",
            )
        if problems:
            raise ConfigError("nothing was submitted", problems)


def _decides(run: RunConfig, name: str) -> dict[str, Any]:
    """Of a configuration what decides how a stage, and those that it comes from, train."""
    document, every = run.to_dict(), list(run.data.sources)
    chain = [name]
    while (origin := run.stage(chain[0]).init_from) in run.stages:
        chain.insert(0, origin)
    drawn = {s for n in chain for s in run.stage(n).pack.drawn_from(every)}
    data = {
        k: v for k, v in document["data"].items() if k not in ("workers", "stage_to")
    }
    data["sources"] = {s: data["sources"][s] for s in every if s in drawn}
    shared = ("seed", "tokenizer", "model", "optimizer")
    return {
        **{key: document[key] for key in shared},
        "engine": {"precision": run.engine.precision},
        "data": data,
        "stages": {
            n: {
                key: value
                for key, value in document["stages"][n].items()
                if key not in _NOT_OF_THE_WEIGHTS
            }
            for n in chain
        },
    }
