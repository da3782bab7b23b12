"""How the stages of a run are started: the queue of a cluster, or one machine."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from typing import Literal

from alia_ctx.errors import Problem, Problems
from alia_ctx.rank_variables import NUMBERS
from alia_ctx.spec.batch_options import options_among

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,4}):([0-5]?\d):([0-5]?\d)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[\w.+@,:=/-]+")
# Of `gres`: gpu:4, gpu:h100:4, among others.
_GPUS = re.compile(r"(?:^|,)gpu(?::[A-Za-z][^:,]*)?:(\d+)(?=[,(]|$)")
# Options of sbatch by which a job is no more the one that `launch` submits, knows again and
# waits for: several in its place, another name, or none.
_UNDOES = {
    "array": "makes several jobs of one, which would train the same stage",
    "job-name": "is by what a job is known again",
    "clusters": "has the job where `launch` and `status` do not ask for it",
    "wait": "has sbatch wait until the job has ended",
    "wrap": "puts another script in the place of the job's",
    "test-only": "submits nothing",
    "help": "submits nothing",
    "usage": "submits nothing",
    "version": "submits nothing",
}
_TIME_REMEDY = "write HH:MM:SS or D-HH:MM:SS, as in 48:00:00"


@dataclass(frozen=True)
class LaunchSpec:
    """What `alia-ctx launch` puts into batch files: `launch` in the configuration. None of
    it changes what is trained.

    Args:
        scheduler: `slurm` submits jobs; `none` writes a shell script for this machine.
        account, partition, qos: whom the hours are charged to, and in which queue.
        time_limit: the longest that the queue lets a job run, HH:MM:SS or D-HH:MM:SS. A
            stage asks for what the planner estimates, and never for more than this.
        save_seconds: how long before its limit a job is told to save and make way.
        gres: generic resources of a node, as `gpu:4`; None on nodes without GPUs.
        cpus_per_rank: cores of a rank.
        exclusive: whether a job has its nodes to itself.
        mail: who is written to when a job ends or fails.
        python: the interpreter on the nodes; None for the one that `launch` runs on, or
            in a container the one that is called so.
        container: an image in which all commands run, also on one machine.
        container_command: what starts a program in the image, which follows it; words
            with spaces in quotes.
        setup: lines of shell before anything else, as `module load ...`.
        environment: variables of the commands; they win over those that a batch file
            sets by itself.
        options: further options of sbatch, as `--reservation=NAME`.
    """

    scheduler: Literal["slurm", "none"] = "none"
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time_limit: str = "24:00:00"
    save_seconds: int = 600
    gres: str | None = None
    cpus_per_rank: int = 1
    exclusive: bool = True
    mail: str | None = None
    python: str | None = None
    container: str | None = None
    container_command: str = "apptainer exec --nv"
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    @property
    def limit_seconds(self) -> float:
        """`time_limit` in seconds."""
        return slurm_seconds(self.time_limit)

    @property
    def gpus(self) -> int | None:
        """GPUs of a node that `gres` asks the queue for; None where nothing says how many."""
        found = _GPUS.search(self.gres or "")
        return int(found[1]) if self.scheduler == "slurm" and found else None

    def program(self, python: str) -> list[str]:
        """The words that start Python on a node: what starts the container, its image and
        an interpreter, `python` where none is set and there is no container.
        """
        if self.container is None:
            return [_from_home(self.python or python)]
        words = map(_from_home, shlex.split(self.container_command))
        return [*words, _from_home(self.container), _from_home(self.python or "python")]

    def variables(self) -> dict[str, str]:
        """`environment`, with paths below `~` as a shell reads them."""
        return {name: _from_home(value) for name, value in self.environment.items()}

    def of_a_queue(self) -> list[str]:
        """The settings that are given and that only a queue understands."""
        names = ("account", "partition", "qos", "gres", "mail", "options")
        return [name for name in names if getattr(self, name)]

    def not_charged(self) -> list[str]:
        """Of account and qos those that nothing tells the queue: no setting, no option of
        `options`, and no variable that sbatch reads.
        """
        names = ("account", "qos")
        given = [name for line in self.options for name in options_among(line, names)]
        return [
            name
            for name in names
            if getattr(self, name) is None
            and name not in given
            and not os.environ.get(f"SBATCH_{name.upper()}")
        ]

    def problems(self, key: str = "launch") -> list[Problem]:
        """Values that no batch file could be made of."""
        problems = Problems()
        if problems.need(
            _TIME.fullmatch(self.time_limit) is not None,
            *(f"{key}.time_limit", self.time_limit, "is not a duration", _TIME_REMEDY),
        ):
            problems.need(
                0 <= self.save_seconds < self.limit_seconds,
                *(f"{key}.save_seconds", self.save_seconds),
                *(f"is no part of {self.time_limit}", "600 is ten minutes"),
            )
        at, rule = f"{key}.cpus_per_rank", "must be at least 1"
        problems.need(
            self.cpus_per_rank >= 1, at, self.cpus_per_rank, rule, "cores over GPUs"
        )
        for name in ("account", "partition", "qos", "gres", "mail"):
            value = getattr(self, name)
            problems.need(
                value is None or _WORD.fullmatch(value) is not None,
                *(f"{key}.{name}", value, "is not one word"),
                "write it as sbatch takes it, or null",
            )
        for option in self.options:
            problems.need(
                option.startswith("--") and "\n" not in option,
                *(f"{key}.options", option, "is no option of sbatch"),
                "write --name=value",
            )
            if undone := _undoes(option):
                problems.add(f"{key}.options", option, undone, "leave it out")
        for name in self.environment:
            problems.need(
                _VARIABLE.fullmatch(name) is not None,
                *(f"{key}.environment", name, "cannot be the name of a variable"),
                "use letters, digits and _",
            )
            problems.need(
                name not in NUMBERS,
                *(f"{key}.environment", name, "is told to each rank by what starts it"),
                "leave it out",
            )
        problems.need(
            bool(_words(self.container_command)),
            *(f"{key}.container_command", self.container_command),
            *("is no command", "give a program and its options, quotes in pairs"),
        )
        return problems


def _undoes(option: str) -> str | None:
    """Why an option of sbatch, or one behind it, undoes what `launch` does."""
    return next((_UNDOES[name] for name in options_among(option, _UNDOES)), None)


def _words(command: str) -> list[str]:
    """The words of a command as a shell reads them; none where a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _from_home(text: str) -> str:
    """A path, or several between colons, with `~` as a shell reads it."""
    return ":".join(map(os.path.expanduser, text.split(":")))


def slurm_seconds(text: str) -> float:
    """Seconds of `HH:MM:SS` or `D-HH:MM:SS`, as SLURM writes a time limit; ValueError for
    anything else.
    """
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"{text}: no duration")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def slurm_time(seconds: float) -> str:
    """A duration as SLURM reads it, rounded up to a minute, which is its grain."""
    minutes = max(1, -int(-seconds // 60))
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (
        f"{days}-{hours:02d}:{minutes:02d}:00"
        if days
        else f"{hours:02d}:{minutes:02d}:00"
    )
