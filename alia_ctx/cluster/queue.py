"""SLURM's queue, by its own commands: submit, look, take back.

Plain `sbatch` and `squeue`: a batch file can be read, kept and submitted by hand, and a
job that outlives its submitter needs nothing of it (docs/decisions/ has the reasons).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alia_ctx.errors import AliaError

_FORMAT = "%i|%T|%r|%N|%S|%M|%l"
_PATIENCE = 60  # seconds for one of SLURM's commands; a busy controller takes a while
_GONE = "Invalid job id specified"


class QueueError(AliaError):
    """The queue cannot be asked, or refuses a job."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: `state` and `reason` are SLURM's words, `elapsed` and `limit`
    times as SLURM writes them.
    """

    number: str
    state: str
    reason: str
    nodes: str
    starts: str
    elapsed: str
    limit: str


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
        said = self._ask(["sbatch", "--parsable", *depends, str(script)])
        number = said.strip().split(";")[0]
        if not re.fullmatch(r"\d+", number):
            raise QueueError(f"sbatch said {said.strip()!r}, which is no job's number")
        return number

    def cancel(self, numbers: Iterable[str]) -> None:
        for number in numbers:
            self._ask(["scancel", number])

    def jobs(self, numbers: Sequence[str]) -> dict[str, QueuedJob]:
        """Those of the jobs that are in the queue still, by number.

        QueueError where it cannot be asked: that is no sign that they are gone.
        """
        if not numbers:
            return {}
        query = ["squeue", "--noheader", f"--format={_FORMAT}", "--jobs"]
        try:
            said = self._ask([*query, ",".join(numbers)])
        except QueueError as error:
            if _GONE not in str(error):
                raise
            return {}
        lines = [line.split("|") for line in said.splitlines() if line.count("|") >= 6]
        return {fields[0]: QueuedJob(*fields[:7]) for fields in lines}

    @staticmethod
    def _ask(command: list[str]) -> str:
        if shutil.which(command[0]) is None:
            raise QueueError(
                f"there is no `{command[0]}` on this machine; go to a node from which jobs "
                "are submitted, or set launch.scheduler=none"
            )
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise QueueError(
                f"`{command[0]}` does not answer within {_PATIENCE} s; try again later"
            ) from error
        if done.returncode:
            reason = " ".join((done.stderr or done.stdout).split())
            raise QueueError(f"{' '.join(command[:1])}: {reason}")
        return done.stdout
