"""Batch files: a header for the queue, and below it the one script that starts and minds the
ranks of a stage (launch/slurm_stage.sbatch); for one machine a shell script.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import alia_ctx
from alia_ctx.errors import AliaError
from alia_ctx.spec.launch import LaunchSpec, slurm_time

_TEMPLATE = "slurm_stage.sbatch"
_BODY = "set -uo pipefail\n"  # where the template's header ends


@dataclass(frozen=True)
class Job:
    """One job of a run.

    Args:
        name: unique in the run; its files are called so.
        run: the run's name.
        step: `data` prepares text on one process, the others start ranks.
        stage: whose ranks they are.
        config: what the commands read.
        nodes, ranks_per_node: of its ranks.
        seconds: that it is expected to take, room for starting included.
        folder: where its words go.
        progress: the stage's checkpoints, where it trains.
        commands: `alia-ctx` ... lines, in their order, of one process before the ranks
            are started (`data`) or after they have ended (the others).
    """

    name: str
    run: str
    step: Literal["data", "train", "evaluate"]
    stage: str
    config: Path
    nodes: int
    ranks_per_node: int
    seconds: float
    folder: Path
    progress: Path | None = None
    commands: tuple[tuple[str, ...], ...] = ()

    @property
    def logs(self) -> Path:
        """Where each rank but the first has a file."""
        return self.folder / "logs" / self.name


def batch_file(job: Job, launch: LaunchSpec, directory: Path) -> str:
    """The text of a batch file for SLURM; the job works in `directory`."""
    header = [f"#SBATCH {option}" for option in _options(job, launch, directory)]
    head = [
        "#!/usr/bin/env bash",
        f"# {job.step} of {job.run}, {job.name}: written by `alia-ctx launch`, which "
        "writes it anew.",
        "",
        *header,
        "",
        *_variables(job, launch),
        *launch.setup,
        f"mkdir -p {shlex.quote(str(job.logs))}",
    ]
    if job.step == "data":
        return "\n".join([*head, "set -euo pipefail", *_commands(job, launch)]) + "\n"
    body = _template_body()
    if job.commands:
        after = ['[[ $status -eq 0 ]] || exit "$status"']
        after += [f"{line} || exit" for line in _commands(job, launch)]
        body = body.removesuffix('exit "$status"\n') + "\n".join(after) + "\n"
    arguments = shlex.join([str(job.config), job.stage])
    return "\n".join([*head, f"set -- {arguments}", ""]) + "\n" + body


def _options(job: Job, launch: LaunchSpec, directory: Path) -> Iterator[str]:
    one = job.step == "data"
    ranks = 1 if one else job.ranks_per_node
    yield f"--job-name={_word(job.run)}-{_word(job.stage if not one else job.name)}"
    yield f"--nodes={1 if one else job.nodes}"
    yield f"--ntasks-per-node={ranks}"
    # Text is prepared by as many workers as the ranks of a node have cores.
    cores = launch.cpus_per_rank * (job.ranks_per_node if one else 1)
    yield f"--cpus-per-task={cores}"
    for name in ("account", "partition", "qos"):
        if (value := getattr(launch, name)) is not None:
            yield f"--{name}={value}"
    if launch.gres is not None:
        yield f"--gres={launch.gres}"
    if launch.exclusive:
        yield "--exclusive"
    yield f"--time={slurm_time(min(job.seconds, launch.limit_seconds))}"
    if not one and launch.save_seconds:
        yield f"--signal=B:USR1@{launch.save_seconds}"
    yield from ("--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes")
    yield f'--output="{job.folder}/logs/{job.name}-%j.out"'
    yield f'--chdir="{directory}"'
    if launch.mail is not None:
        yield "--mail-type=BEGIN,END,FAIL,REQUEUE,TIME_LIMIT_90"
        yield f"--mail-user={launch.mail}"
    yield from launch.options


def _word(text: str) -> str:
    return "_".join(text.split())


def _variables(job: Job, launch: LaunchSpec) -> list[str]:
    values = {
        "ALIA_PYTHON": _python(launch),
        "ALIA_STEP": job.step if job.step != "data" else None,
        "ALIA_LOGS": str(job.logs),
        "ALIA_PROGRESS": str(job.progress) if job.progress else None,
        "ALIA_CONTAINER": launch.container,
        "ALIA_CONTAINER_COMMAND": launch.container_command
        if launch.container
        else None,
        **launch.environment,
    }
    return [f"export {k}={shlex.quote(v)}" for k, v in values.items() if v is not None]


def _python(launch: LaunchSpec) -> str:
    """That of an image is called so; else the one that runs this."""
    return launch.python or ("python" if launch.container else sys.executable)


def _commands(job: Job, launch: LaunchSpec) -> list[str]:
    inside = []
    if launch.container is not None:
        inside = [*shlex.split(launch.container_command), launch.container]
    program = [*inside, _python(launch), "-m", "alia_ctx.cli"]
    return [shlex.join([*program, *command]) for command in job.commands]


def _template_body() -> str:
    """The template below its own header."""
    text = _template().read_text(encoding="utf-8")
    _, found, body = text.partition(_BODY)
    if not found:
        raise AliaError(
            f"{_template()}: has no line `{_BODY.strip()}`; restore it from the release"
        )
    return found + body


def _template() -> Path:
    """In a checkout beside the package; of a wheel below the environment's prefix."""
    checkout = Path(alia_ctx.__file__).parent.parent / "launch" / _TEMPLATE
    installed = Path(sys.prefix, "share", "alia-ctx", "launch", _TEMPLATE)
    for path in (checkout, installed):
        if path.is_file():
            return path
    raise AliaError(
        f"there is neither {checkout} nor {installed}; install the package again"
    )


# -- one machine -----------------------------------------------------------------------

_SHELL = """#!/usr/bin/env bash
# {run}: written by `alia-ctx launch`, which writes it anew.
# Start it again to go on where it stopped.
set -uo pipefail
cd {directory} || exit
{setup}
run=({python} -m alia_ctx.cli)
ranks=({python} -m alia_ctx.cli.launch --standalone --nproc-per-node={count})
ranks+=(-m alia_ctx.cli)

# Ranks that lose touch, or hang, end with status 75, with all saved: they are started
# again, as a queue would do. Whoever asks this script to stop (TERM, or USR1) is not answered so.
asked=''
trap 'asked=1; kill -TERM "$child" 2>/dev/null' TERM USR1
again() {{
    local status try
    for ((try = 0; try < 5; try++)); do
        "$@" &
        child=$!
        status=0
        wait "$child" || status=$?
        while kill -0 "$child" 2>/dev/null; do status=0; wait "$child" || status=$?; done
        [[ $status -eq 75 && -z $asked ]] || break
    done
    [[ $status -eq 0 ]] || exit "$status"
}}

{steps}
"""


def shell_script(jobs: Sequence[Job], launch: LaunchSpec, directory: Path) -> str:
    """The text of a shell script that does the work of `jobs` on this machine."""
    steps = []
    for job in jobs:
        words = {
            "train": ["train", str(job.config), "--stage", job.stage],
            "evaluate": ["evaluate", str(job.config)],
        }.get(job.step)
        if words:
            steps.append(f'again "${{ranks[@]}}" {shlex.join(words)}')
        steps += [f'again "${{run[@]}}" {shlex.join(c)}' for c in job.commands]
    exports = [f"export {k}={shlex.quote(v)}" for k, v in launch.environment.items()]
    return _SHELL.format(
        run=jobs[0].run,
        directory=shlex.quote(str(directory)),
        setup="\n".join([*launch.setup, *exports]),
        python=shlex.quote(launch.python or sys.executable),
        count=jobs[0].ranks_per_node,
        steps="\n".join(steps),
    )
