"""SLURM's queue, by its own commands: submit, look, take back.

Plain `sbatch` and `squeue`: a batch file can be read, kept and submitted by hand, and a
job that outlives its submitter needs nothing of it (docs/decisions/ has the reasons).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alia_ctx.errors import AliaError
from alia_ctx.spec.batch_options import header_lines, options_among

# Name and comment last: what stands in them may hold any character.
_FORMAT = "%i|%T|%r|%N|%S|%M|%l|%u|%j|%k"
_FIELDS = 9
_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"),
}
# Of SLURM's variables those that say which cluster is meant. The others change what its
# commands do, show or take from a batch file (man squeue, man sbatch), or are those of a job
# from within which this is called.
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
_OF_SLURM = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_", "SRUN_", "SALLOC_")
# A person's own defaults, which hold where a batch file does not say otherwise.
_DEFAULTS = ("account", "qos", "partition", "reservation", "clusters")
_PATIENCE = 60  # seconds for one of SLURM's commands; a busy controller takes a while
_GONE = "Invalid job id specified"


class QueueError(AliaError):
    """The queue cannot be asked, or refuses a job."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: `state` and `reason` are SLURM's words, `elapsed` and `limit`
    times as SLURM writes them, `label` its name and its comment, as `label_of` has them.
    """

    number: str
    state: str
    reason: str
    nodes: str
    starts: str
    elapsed: str
    limit: str
    user: str = ""
    label: str = ""


def label_of(name: str, comment: str) -> str:
    """By what a job is known again: numbers begin anew where a controller is set up anew."""
    return f"{name}|{comment}"


class Slurm:
    """The queue that this machine's commands lead to."""

    @staticmethod
    def is_here() -> bool:
        """Whether this machine has SLURM's commands."""
        return shutil.which("squeue") is not None

    def submit(
        self, script: Path, after: Sequence[str] = (), *, behind: Sequence[str] = ()
    ) -> str:
        """The number of the job that `script` becomes; it starts once those of `after`
        have ended well, and those of `behind` in any way. QueueError in SLURM's words
        where it is refused.
        """
        waits = [
            f"{kind}:{':'.join(numbers)}"
            for kind, numbers in (("afterok", after), ("afterany", behind))
            if numbers
        ]
        depends = [f"--dependency={','.join(waits)}"] if waits else []
        said = self._ask(["sbatch", "--parsable", *depends, str(script)], script)
        number = said.strip().split(";")[0]
        if not re.fullmatch(r"\d+", number):
            raise QueueError(
                f"sbatch said {said.strip()!r}, which is no job's number; see with "
                "`squeue` whether the job is there all the same"
            )
        return number

    def cancel(self, numbers: Iterable[str]) -> None:
        for number in numbers:
            self._ask(["scancel", number])

    def jobs(self, numbers: Sequence[str]) -> dict[str, QueuedJob]:
        """Those of the jobs that are in the queue still, by number, whoever they are of.

        QueueError where it cannot be asked: that is no sign that they are gone.
        """
        if not numbers:
            return {}
        query = ["squeue", "--all", "--states=all", "--noheader"]
        query += [f"--format={_FORMAT}", "--jobs"]
        try:
            said = self._ask([*query, ",".join(numbers)])
        except QueueError as error:
            if _GONE not in str(error):
                raise
            return {}
        return {job.number: job for job in _listed(said) if job.state not in _ENDED}

    def jobs_of(self, user: str | None) -> list[QueuedJob]:
        """All jobs of a user (None: of whoever may be seen) in the queue; an array, which
        no run submits, has one entry for what waits of it.
        """
        whose = [] if user is None else [f"--user={user}"]
        query = ["squeue", "--all", "--noheader", f"--format={_FORMAT}", *whose]
        return [job for job in _listed(self._ask(query)) if job.state not in _ENDED]

    @staticmethod
    def _ask(command: list[str], script: Path | None = None) -> str:
        if shutil.which(command[0]) is None:
            raise QueueError(
                f"there is no `{command[0]}` on this machine; go to a node from which jobs "
                "are submitted, or set launch.scheduler=none"
            )
        try:
            done = subprocess.run(
                command,
                env=_environment(script),
                capture_output=True,
                # Whatever the locale: names of runs and places come back as they were.
                encoding="utf-8",
                errors="surrogateescape",
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise QueueError(
                f"`{command[0]}` does not answer within {_PATIENCE} s; try again later"
                + (", when `squeue` answers" if script is not None else "")
            ) from error
        if done.returncode:
            reason = " ".join((done.stderr or done.stdout).split())
            raise QueueError(f"{' '.join(command[:1])}: {reason}")
        return done.stdout


def _listed(said: str) -> list[QueuedJob]:
    lines = [line.split("|", _FIELDS - 1) for line in said.splitlines()]
    return [QueuedJob(*fields) for fields in lines if len(fields) == _FIELDS]


def _environment(script: Path | None) -> dict[str, str]:
    """The variables for a command of SLURM: none that changes what it is asked. What a
    person has set for all batch files (whom it is charged to) holds where `script` leaves
    it open.
    """
    kept = set(_OF_THE_CLUSTER)
    if script is not None:
        # sbatch takes a variable before what its script says.
        header = header_lines(script.read_text(encoding="utf-8"))
        said = {name for line in header for name in options_among(line, _DEFAULTS)}
        kept |= {f"SBATCH_{name.upper()}" for name in _DEFAULTS if name not in said}
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(_OF_SLURM)
    }
