"""A small stage that things happen to: starts of it, what they said, and whether it is
still what it was or ended as one that nothing happened to. For `benchmarks/chaos.py`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from alia_ctx import checkpoint
from alia_ctx.files import file_checksum
from tests.distributed import run_distributed
from tests.disturbances import Kill, StopAfter, mount_tmpfs
from tests.small_run import metrics, state_checksums

UPDATES, ROWS = 12, 8  # of the stage `short` of tests/small_run.py
TIMEOUT = 100  # seconds, of each start
LAYOUTS = {
    "dp2": ("{}", 2),
    "cp2": ("{cp: 2}", 2),
    "tp2": ("{tp: 2}", 2),
    "pp2": ("{pp: 2}", 2),
    "one rank": ("{}", 1),
}
REFUSAL = re.compile(r"^(?:rank \d+: )?(\w+Error: .+)", re.MULTILINE)


class BrokenPromiseError(Exception):
    """A round neither ended as the undisturbed stage nor was refused with nothing lost."""


@dataclass(frozen=True)
class Ended:
    """How a start ended: its exit status (None where it was killed), and what it said."""

    status: int | None
    said: str


def train(rank: int, arguments: list[str], words: str, befalls: Any) -> None:
    """`alia-ctx train` on this rank; its standard error and exit status go to the files
    `words`. A failure ends the process, with a second for the others to say theirs.
    """
    from alia_ctx.cli import main

    said = os.open(f"{words}-{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    if befalls is not None:
        befalls(rank)
    sys.argv = ["alia-ctx", "train", *arguments]
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    Path(f"{words}-{rank}.status").write_text(str(status))
    if status:
        time.sleep(1)
        os._exit(status)


@dataclass
class Stage:
    """The stage of a round: a packed one in `folder` that nobody has begun.

    `events` says what happened to it, for whoever reads of a failure.
    """

    config: Path
    folder: Path
    draw: random.Random
    calm: Path
    seconds: float = 3.0  # that the undisturbed stage took
    events: list[str] = field(default_factory=list)
    starts: int = 0
    killed: int = 0

    def __post_init__(self) -> None:
        shutil.copytree(self.config.parent / "out", self.output)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def directory(self) -> Path:
        return self.output / "stages/short"

    @property
    def root(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def found(self) -> list[Path]:
        return checkpoint.list_checkpoints(self.root)

    def arguments(self, *overrides: str) -> list[str]:
        given = [f"output={self.output}", "metrics.sinks=[]", *overrides]
        return [str(self.config), "--stage", "short", *given]

    def start(self, *overrides: str, befalls: Any = None, ranks: int = 2) -> Ended:
        """Start the stage on `ranks` ranks and wait for its end."""
        self.starts += 1
        words = self.folder / f"start-{self.starts}"
        given = [f"cluster.ranks_per_node={ranks}", *overrides]
        event = (
            f"start {self.starts}: {ranks} ranks {' '.join(overrides)} {befalls or ''}"
        )
        died = ""
        try:
            run_distributed(
                train,
                ranks,
                self.arguments(*given),
                str(words),
                befalls,
                timeout=TIMEOUT,
            )
        except AssertionError as error:
            died = str(error)
        except TimeoutError as error:
            self.events.append(f"{event}: {error}")
            raise
        said = "".join(
            Path(f"{words}-{rank}.err").read_text()
            for rank in range(ranks)
            if Path(f"{words}-{rank}.err").is_file()
        )
        statuses = [
            int(path.read_text())
            for path in sorted(self.folder.glob(f"{words.name}-*.status"))
        ]
        failed = [status for status in statuses if status]
        status = None if died and not failed else max(failed, default=0)
        if status is None:
            self.killed += 1
            said += f"\n{died}"
        self.events.append(f"{event}: status {status}\n{said}")
        return Ended(status, said)

    def start_on_small_disk(self, pages: int) -> Ended:
        """Start it with its checkpoints on a tmpfs that has room for what is there and
        `pages` of 4096 bytes more; afterwards the disk is large.
        """
        self.events.append(f"a disk with {pages} pages left")
        aside = self.folder / "aside"
        self.root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.root, aside)
        files = [path for path in aside.rglob("*") if path.is_file()]
        used = sum(-(-path.stat().st_size // 4096) for path in files)
        mount_tmpfs(self.root, f"size={max(1, used + pages) * 4096}")
        shutil.copytree(aside, self.root, dirs_exist_ok=True)
        ended = self.start()
        grow = ["mount", "-o", "remount,size=100m", str(self.root)]
        subprocess.run(grow, check=True, capture_output=True)
        return ended

    def start_in(self, layout: str, *overrides: str, befalls: Any = None) -> Ended:
        value, ranks = LAYOUTS[layout]
        return self.start(
            f"stages.short.layout={value}", *overrides, befalls=befalls, ranks=ranks
        )

    def begin(self, at_least: int = 0) -> None:
        """Train some updates, and leave it: stopped with all saved, or killed later on."""
        updates = self.draw.randint(at_least, UPDATES - 2)
        if not updates:
            return
        self.must(self.start(befalls=StopAfter(updates)), 75)
        if self.draw.random() < 0.3:
            self.start(befalls=self.kill())

    def kill(self) -> Kill:
        ranks = self.draw.choice([(0,), (1,), (0, 1)])
        return Kill(self.draw.uniform(0.01, self.seconds), ranks)

    def must(self, ended: Ended, *statuses: int) -> None:
        if ended.status not in statuses:
            raise BrokenPromiseError(f"status {ended.status} instead of {statuses}")
        if "Traceback" in ended.said:
            raise BrokenPromiseError("a traceback")

    def must_refuse(self, ended: Ended, before: dict[str, str], *words: str) -> None:
        """One clear error that names `words`, and nothing lost."""
        self.must(ended, 2)
        errors = set(REFUSAL.findall(ended.said))
        if len(errors) != 1 or any(word not in ended.said for word in words):
            raise BrokenPromiseError(f"no error that names {words}: {ended.said}")
        self.must_have(before)

    def must_have(self, before: dict[str, str]) -> None:
        after = self.contents()
        if after != before:
            changed = sorted(
                k for k in {**before, **after} if before.get(k) != after.get(k)
            )
            raise BrokenPromiseError(f"changed by a refused start: {changed}")

    def contents(self) -> dict[str, str]:
        """Every name below the stage's directory, and the checksum of every file."""
        return {
            str(path.relative_to(self.directory)): file_checksum(path)
            if path.is_file()
            else "directory"
            for path in sorted(self.directory.rglob("*"))
        }

    # -- the end -----------------------------------------------------------------------

    def must_end_as_calm(self, tolerance: float = 0.0) -> float:
        """Compare with the undisturbed stage; the largest relative difference of a loss."""
        last, calm_last = self.found[-1], _last(self.calm)
        manifest, calm_manifest = map(checkpoint.read_manifest, (last, calm_last))
        checkpoint.verify_files(last, manifest)
        if manifest.ledger != calm_manifest.ledger:
            raise BrokenPromiseError(f"ledger {manifest.ledger}")
        lines, calm_lines = metrics(self.folder), metrics(self.calm)
        keys = ["update", "rows", "tokens", "predicted_tokens"]
        keys += [] if tolerance else ["loss", "gradient_norm"]
        for key in keys:
            ours, theirs = ([line[key] for line in log] for log in (lines, calm_lines))
            if ours != theirs:
                raise BrokenPromiseError(
                    f"{key} of the log: {ours} instead of {theirs}"
                )
        if not tolerance and state_checksums(last) != state_checksums(calm_last):
            raise BrokenPromiseError("the tensors of the last checkpoint differ")
        unfinished = [p.name for p in self.root.iterdir() if p not in self.found]
        if unfinished:
            raise BrokenPromiseError(f"left in {self.root}: {unfinished}")
        differences = [
            abs(ours["loss"] / theirs["loss"] - 1)
            for ours, theirs in zip(lines, calm_lines, strict=True)
        ]
        if max(differences) > tolerance:
            raise BrokenPromiseError(f"losses differ by {max(differences):.1e}")
        return max(differences)


def _last(folder: Path) -> Path:
    return checkpoint.list_checkpoints(folder / "out/stages/short/checkpoints")[-1]


def processes_left() -> list[str]:
    """Command lines of what we, or ours, started and did not end; orphans come to us."""
    for _ in range(50):
        left = []
        for process in psutil.Process().children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            servers = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
            if line and not any(server in line for server in servers):
                left.append(line)
            elif line and process.ppid() != os.getpid():
                left.append(line)  # a rank: its command line is the server's
        if not left:
            return []
        time.sleep(0.1)
    return left
