"""Disturb a stage in every way that its documents speak of, and compare with one that
ran through.

    python benchmarks/chaos.py [--rounds 50] [--seed 0] > docs/benchmarks/chaos.md

Each round begins the stage anew, lets a disturbance drawn at random befall it, and goes
on to its end. It holds if the end is bit-identical to the undisturbed stage: tensors of
the last checkpoint, losses, gradient norms, rows and tokens of every line of the log.
Where a layout or precision changed, losses may differ by a stated tolerance, and
nothing else. An attempt may also be refused: by one error without a traceback that
names the matter, while every byte of the stage stays what it was; and then too the
stage must go on to the same end. Anything else fails the program.

The ranks are real ones on gloo, forked from a process that has imported torch already,
and run the command `alia-ctx train`; the first of them that fails ends the others, as
the launcher does. Signals of the first second meet the whole command, launcher and all.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pages

from alia_ctx import checkpoint
from alia_ctx.errors import CheckpointError
from tests.disturbances import (
    DAMAGES,
    NoSpace,
    Slow,
    StopAfter,
    Vanish,
    can_mount,
)
from tests.disturbed_stage import (
    LAYOUTS,
    ROWS,
    TIMEOUT,
    UPDATES,
    BrokenPromiseError,
    Ended,
    Stage,
    processes_left,
)
from tests.small_run import (
    alia,
    command,
    environment,
    write_run,
)

# fp32 sums in another order over a dozen updates: as tests/train/test_trainer.py has it.
LAYOUT_TOLERANCE = 1e-5
# What one rounding to the 8 bits of bf16 amounts to at most: a loss is a mean of 512.
PRECISION_TOLERANCE = 2**-9
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
IN_NAMESPACE = "ALIA_CTX_CHAOS_NAMESPACE"


# -- disturbances: each returns whether an attempt was refused, and the tolerance ------

Outcome = tuple[bool, float]


def kills(stage: Stage) -> Outcome:
    """killed, all ranks or one"""
    for _ in range(stage.draw.randint(1, 3)):
        stage.start(befalls=stage.kill())
    return False, 0.0


def second_trainer(stage: Stage) -> Outcome:
    """a second trainer meanwhile"""
    stage.begin()
    wait, lock = stage.draw.random(), stage.directory.with_name(".short.lock")
    lock.unlink(missing_ok=True)  # of one that was killed
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stage.start, befalls=Slow(0.5))
        while not lock.exists() and not first.done():
            time.sleep(0.02)
        time.sleep(wait)
        second = stage.start()
        alone = first.done()
    stage.must(first.result(), 0)
    stage.must(second, *([0, 2] if alone else [2]))
    if second.status and "is writing to it" not in second.said:
        raise BrokenPromiseError(f"refused without a reason: {second.said}")
    return second.status == 2, 0.0


def vanished_mount(stage: Stage) -> Outcome:
    """files gone on one rank at a start"""
    stage.begin(at_least=1)
    before = stage.contents()
    faults = ["ENOENT", "ESTALE", "EIO", *["mount"] * 3 * _mounts()]
    places = [stage.root, stage.found[-1], stage.found[-1] / "state"]
    vanish = Vanish(
        stage.draw.choice(places), stage.draw.randrange(2), stage.draw.choice(faults)
    )
    ended = stage.start(befalls=vanish)
    stage.must_refuse(ended, before, "rank ", socket.gethostname(), str(stage.root))
    return True, 0.0


def full_disk(stage: Stage) -> Outcome:
    """no space for a save"""
    stage.begin()
    newest = stage.found[-1].name if stage.found else ""
    if _mounts() and stage.draw.random() < 0.6:
        # a checkpoint takes some 160 pages
        ended = stage.start_on_small_disk(stage.draw.randint(0, 170))
    else:
        times = stage.draw.choice([1, 2, 100])
        no_space = NoSpace(stage.root, stage.draw.randrange(2), times)
        ended = stage.start(befalls=no_space)
    stage.must(ended, 0, 2)
    if "No space left on device" not in ended.said and ended.status:
        raise BrokenPromiseError(f"failed for another reason: {ended.said}")
    if newest and stage.found[-1].name < newest:
        raise BrokenPromiseError(f"{newest} was lost to a full disk")
    for path in stage.found:
        checkpoint.verify_files(path, checkpoint.read_manifest(path))
    return ended.status == 2, 0.0


def corrupted_checkpoint(stage: Stage) -> Outcome:
    """the newest checkpoint spoiled"""
    stage.begin(at_least=1)
    spoiled, whole = stage.found[-1], stage.folder / "whole"
    shutil.copytree(spoiled, whole)
    only = len(stage.found) == 1
    stage.events.append(stage.draw.choice(DAMAGES)(spoiled, stage.draw))
    before = stage.contents()
    ended = stage.start()
    if not only:
        stage.must(ended, 0)
        if "is passed over" not in ended.said:
            raise BrokenPromiseError(f"the damage was not seen: {ended.said}")
        return False, 0.0
    stage.must_refuse(ended, before, "is damaged", spoiled.name)
    shutil.rmtree(spoiled)
    whole.rename(spoiled)
    return True, 0.0


def early_signal(stage: Stage) -> Outcome:
    """a signal in the first second"""
    stage.begin()
    before = stage.contents()
    number = stage.draw.choice([signal.SIGTERM, signal.SIGUSR1])
    ranks, wait = stage.draw.randint(1, 2), stage.draw.random()
    stage.starts += 1
    with subprocess.Popen(
        command("train", *stage.arguments(), ranks=ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            time.sleep(wait)
            process.send_signal(number)
            _, said = process.communicate(timeout=TIMEOUT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    stage.events.append(
        f"{number.name} after {wait:.2f} s, {ranks} ranks: {process.returncode}\n{said}"
    )
    # Before its first line the interpreter has no handler: the signal ends it, unsaid.
    stage.must(Ended(process.returncode, said), 75, -number)
    if process.returncode == 75 and f"stopped by {number.name}" not in said:
        raise BrokenPromiseError(f"stopped without a reason: {said}")
    stage.must_have(before)
    return True, 0.0


def layout_changes(stage: Stage) -> Outcome:
    """another layout at each start"""
    for _ in range(stage.draw.randint(1, 3)):
        layout = stage.draw.choice(list(LAYOUTS))
        ended = stage.start_in(layout, befalls=StopAfter(stage.draw.randint(1, 3)))
        stage.must(ended, 75)
    stage.must(stage.start_in(stage.draw.choice(list(LAYOUTS))), 0)
    return False, LAYOUT_TOLERANCE


def precision_changes(stage: Stage) -> Outcome:
    """bf16 and fp32 in turn"""
    first = stage.draw.choice(["bf16", "fp32"])
    second = "fp32" if first == "bf16" else "bf16"
    for precision in (first, second, first)[: stage.draw.randint(2, 3)]:
        stop = StopAfter(stage.draw.randint(1, 3))
        stage.must(stage.start(f"engine.precision={precision}", befalls=stop), 75)
    stage.must(stage.start(f"engine.precision={stage.draw.choice([first, second])}"), 0)
    return False, PRECISION_TOLERANCE


def other_update_tokens(stage: Stage) -> Outcome:
    """another `update_tokens`"""
    stage.begin(at_least=1)
    before = stage.contents()
    tokens = stage.draw.choice([64, 256, 511, 513, 575, 576, 1024, 3000])
    ended = stage.start(f"stages.short.update_tokens={tokens}")
    if tokens // 64 == ROWS:  # it pays for the same rows
        stage.must(ended, 0)
        return False, 0.0
    stage.must_refuse(ended, before, "update_tokens")
    return True, 0.0


DISTURBANCES: tuple[Callable[[Stage], Outcome], ...] = (
    kills,
    second_trainer,
    vanished_mount,
    full_disk,
    corrupted_checkpoint,
    early_signal,
    layout_changes,
    precision_changes,
    other_update_tokens,
)


# -- rounds ----------------------------------------------------------------------------


def _mounts() -> bool:
    return IN_NAMESPACE in os.environ


def disturbance_of(number: int, seed: int) -> Callable[[Stage], Outcome]:
    """What befalls round `number`: each comes once in as many rounds, in random order."""
    turn, place = divmod(number, len(DISTURBANCES))
    order = list(DISTURBANCES)
    random.Random(f"{seed} {turn}").shuffle(order)
    return order[place]


def play(disturb: Callable[[Stage], Outcome], stage: Stage) -> tuple[str, float]:
    """One round; its outcome, and the largest relative difference of a loss."""
    refused, tolerance = disturb(stage)
    if not tolerance:
        stage.must(stage.start(), 0)
    difference = stage.must_end_as_calm(tolerance)
    left = processes_left()
    if left:
        raise BrokenPromiseError(f"processes left behind: {left}")
    return ("refused" if refused else "identical"), difference


@contextmanager
def unmounted_later(stage: Stage) -> Iterator[None]:
    try:
        yield
    finally:
        if os.path.ismount(stage.root):
            subprocess.run(["umount", str(stage.root)], check=True)


def preload_server() -> None:
    """Have the server that ranks are forked from import the command too, once."""
    multiprocessing.set_forkserver_preload(
        [
            "alia_ctx.cli.run_commands",
            "alia_ctx.mcore.engine",
            "alia_ctx.workflow.training",
            "tests.disturbed_stage",
        ]
    )
    forkserver.ensure_running()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first round"
    )
    parser.add_argument(
        "--minutes", type=float, default=600, help="begin no round after that long"
    )
    arguments = parser.parse_args()
    if not _mounts() and can_mount():  # what is mounted in there goes when we go
        os.environ[IN_NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    preload_server()
    began, counts, differences = time.monotonic(), Counter[tuple[str, str]](), {}
    starts = killed = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        base, calm = Path(folder) / "base", Path(folder) / "calm"
        base.mkdir()
        config = write_run(base)
        packed = alia("pack", str(config), "--stage", "short")
        assert packed.returncode == 0, packed.stderr
        undisturbed = Stage(config, calm, random.Random(), calm)
        undisturbed.must(undisturbed.start(befalls=StopAfter(UPDATES + 1)), 0)
        shutil.rmtree(calm)  # that start imported what the next ones find
        undisturbed = Stage(config, calm, random.Random(), calm)
        started = time.monotonic()
        undisturbed.must(undisturbed.start(), 0)
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s", file=sys.stderr, flush=True)
        for number in range(arguments.first, arguments.first + arguments.rounds):
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            disturb = disturbance_of(number, arguments.seed)
            draw = random.Random(f"{arguments.seed} round {number}")
            place = Path(folder) / f"round-{number}"
            stage = Stage(config, place, draw, calm, seconds)
            name = disturb.__doc__ or ""
            started, difference = time.monotonic(), 0.0
            with unmounted_later(stage):
                try:
                    outcome, difference = play(disturb, stage)
                except (BrokenPromiseError, CheckpointError, TimeoutError) as broken:
                    outcome = "failed"
                    report = "\n".join([*stage.events, f"{broken!r}"])
                    print(f"round {number}, {name}:\n{report}", file=sys.stderr)
            shutil.rmtree(place)
            starts, killed = starts + stage.starts, killed + stage.killed
            counts[name, outcome] += 1
            differences[name] = max(differences.get(name, 0.0), difference)
            print(
                f"round {number}: {name}: {outcome}, {stage.starts} starts, "
                f"{time.monotonic() - started:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    minutes = (time.monotonic() - began) / 60
    print_page(
        f"{counts.total()} rounds, {starts} starts of the stage, {killed} of them "
        f"killed in the midst, {minutes:.0f} minutes beside other work: load "
        f"{os.getloadavg()[2]:.0f}, the mean of the last 15 minutes.",
        counts,
        differences,
    )
    return 1 if any(outcome == "failed" for _, outcome in counts) else 0


def print_page(
    amount: str, counts: Counter[tuple[str, str]], differences: dict[str, float]
) -> None:
    print(pages.heading("A stage disturbed", "torch", "megatron-core"))
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print(f"\n{amount}\n")
    outcomes = ("identical", "refused", "failed")
    rows = []
    for name in [d.__doc__ or "" for d in DISTURBANCES]:
        numbers = [counts[name, outcome] for outcome in outcomes]
        rows.append([name, sum(numbers), *numbers, f"{differences.get(name, 0.0):.1e}"])
    sums = [sum(row[column] for row in rows) for column in range(1, 5)]
    columns = ["disturbance", "rounds", "identical", "refused, nothing lost", "failed"]
    print(
        pages.table(
            [*columns, "largest relative difference of a loss"],
            [*rows, ["all", *sums, ""]],
        )
    )
    print(
        f"\nTolerances: {LAYOUT_TOLERANCE:.1e} where the layout changed, "
        f"{PRECISION_TOLERANCE:.1e} where the precision did."
    )
    if not _mounts():
        print(
            "\nNothing could be mounted: vanished files and full disks were simulated."
        )


if __name__ == "__main__":
    sys.exit(main())
