"""Every step of a run on one machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.config.held_out import held_out_notes
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, CheckpointError
from alia_ctx.evaluation.report import Report
from alia_ctx.progress import say
from alia_ctx.train.stopping import REQUEUE, RequeueError, StopRequests
from alia_ctx.train.trainer import DivergedError
from alia_ctx.workflow.chain import check_trained, constants_notes, finished_checkpoint
from alia_ctx.workflow.checking import check_end, check_vocabulary
from alia_ctx.workflow.evaluation_tasks import what_is_missing
from alia_ctx.workflow.exporting import export, needs_export
from alia_ctx.workflow.importing import import_base
from alia_ctx.workflow.plans import pack
from alia_ctx.workflow.readiness import require_ready
from alia_ctx.workflow.reporting import report
from alia_ctx.workflow.stores import tokenize

_KILLED = 128  # and the number of the signal: the status that a shell tells


def run_all(config: Path, overrides: Sequence[str], run: RunConfig) -> Report:
    """Every step on this machine; training and evaluation in processes of their own,
    started with torchrun.

    Steps that are finished are not done again, so a stopped run goes on where it was.
    What was made from another checkpoint than the one that is there is named and made
    anew; a stage that was trained with other settings is refused before anything is
    done.
    """
    ranks = run.cluster.ranks_per_node
    if run.cluster.nodes != 1:
        raise AliaError(
            f"`run` works on one machine, cluster.nodes={run.cluster.nodes}; use "
            "launch/slurm_stage.sbatch"
        )
    for name, stage in run.stages.items():
        if stage.nodes not in (None, 1):
            raise AliaError(
                f"`run` works on one machine, stages.{name}.nodes={stage.nodes}; use "
                "launch/slurm_stage.sbatch"
            )
    for name in run.stages:
        check_trained(run, name, reading=True)
    check_vocabulary(run, config)
    check_end(run, config)
    import_base(run)
    tokenize(run)
    # Held-out text has its lengths in tokens now: too short is said before training.
    load_run(config, overrides, read_text=True)
    for name in run.stages:
        require_ready(run, name)
    for note in (*held_out_notes(run), *constants_notes(run)):
        say(f"note: {escape(str(note))}")

    def train(name: str) -> None:
        torchrun(ranks, ["train", str(config), "--stage", name, *overrides])

    for name in run.stages:
        plan = pack(run, name)
        if not check_trained(run, name, plan, reading=True):
            if (before := run.stage(name).init_from) in run.stages:
                _make_whole(run, before, train)
            train(name)
    missing = what_is_missing(run)
    if missing:
        for name in dict.fromkeys(evaluation.model.name for evaluation, _ in missing):
            if name in run.stages:
                _make_whole(run, name, train)
        reasons = "\n  ".join(reason for _, reason in missing)
        say(f"evaluations are made anew:\n  {reasons}")
        torchrun(ranks, ["evaluate", str(config), *overrides])
    made, last = report(run), list(run.stages)[-1]
    measured = made.markdown.read_text(encoding="utf-8")
    if needs_export(run, last, measured):
        _make_whole(run, last, train)
        export(run, last, measured)
    return made


def _make_whole(run: RunConfig, name: str, train: Callable[[str], None]) -> None:
    """Have the last checkpoint of a finished stage trained again where it is damaged,
    before something is made from it. One that nothing reads any more is left alone.
    """
    try:
        checkpoint.open_checkpoint(finished_checkpoint(run, name))
    except DamagedError as error:
        say(f"{error}\n{name} is trained again from its newest whole checkpoint")
        train(name)


class StepError(CheckpointError):
    """A command that was started in processes of its own failed; `exit_code` is its status."""

    def __init__(self, command: str, status: int) -> None:
        super().__init__(
            f"`{command}` stopped with exit status {status}; {_what_to_do(status)}"
        )
        self.exit_code = status


def _what_to_do(status: int) -> str:
    """About a command that ended with `status`, beside its own messages."""
    if status == DivergedError.exit_code:
        return (
            "the stage diverged, as its messages above say; look at the documents that "
            "they name, or lower its learning rate"
        )
    if status == 1:
        return "its messages are above, and say a fault of the program or of a package"
    with suppress(ValueError):
        if status > _KILLED:
            name = signal.Signals(status - _KILLED).name
            often = (
                ", often for want of memory of the host" if name == "SIGKILL" else ""
            )
            return (
                f"{name} ended it{often}; start again to go on from what is finished and "
                "saved"
            )
    return "its messages are above"


def torchrun(ranks: int, arguments: Sequence[str]) -> None:
    """Run `alia-ctx ARGUMENTS` on `ranks` processes of this machine. StepError, with its
    exit status, where it fails; RequeueError where it asks to be started again, or this
    process was asked to stop.
    """
    command = [
        sys.executable,
        "-m",
        "alia_ctx.cli.launch",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "alia_ctx.cli",
        *arguments,
    ]
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        **os.environ,
    }
    with subprocess.Popen(command, env=environment) as process:
        asked: list[int] = []

        def pass_on(number: int, frame: object) -> None:
            ends = number not in StopRequests.WARNINGS
            again = ends and any(n not in StopRequests.WARNINGS for n in asked)
            # One SIGTERM has the ranks save, a second one ends them at once: after a
            # warning, which was passed on, a person's first is not the second.
            if again or not asked:
                process.send_signal(signal.SIGTERM)
            asked.append(number)

        # Without this the ranks would outlive a stopped parent, and train on.
        signals = [*StopRequests.SIGNALS]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            signals.append(signal.SIGHUP)
        before = {number: signal.signal(number, pass_on) for number in signals}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    # As a shell tells it, and `launch` of the ranks.
    status = code if code >= 0 else _KILLED - code
    name = f"alia-ctx {shlex.join(arguments)}"
    # A mistake is one though it was asked to stop: a save that failed, say.
    if asked and (status in (0, REQUEUE) or status > _KILLED):
        raise RequeueError(
            f"stopped by {signal.Signals(asked[0]).name}, and `{name}` with it (exit "
            f"status {status}); start again to go on"
        )
    if status == REQUEUE:
        raise RequeueError(
            f"`{name}` stopped with exit status {status}, as its messages above say; "
            "start again to go on"
        )
    if status:
        raise StepError(name, status)
