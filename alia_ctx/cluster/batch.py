"""Batch files: a header for the queue, and below it the one script that starts and minds the
ranks of a stage (launch/slurm_stage.sbatch); for one machine a shell script.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
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
        progress: the directory in which it leaves what it has done.
        commands: `alia-ctx` ... lines, in their order, of one process: all of the job
            (`data`), or after its ranks have ended (the others).
        wait_seconds: that its other ranks may need to notice that one has ended.
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
    wait_seconds: int = 1980

    @property
    def logs(self) -> Path:
        """Where each rank but the first has a file."""
        return self.folder / "logs" / self.name


def batch_file(job: Job, launch: LaunchSpec, directory: Path) -> str:
    """The text of a batch file for SLURM; the job works in `directory`."""
    environment = launch.variables()
    header = [f"#SBATCH {option}" for option in _options(job, launch, directory)]
    head = [
        "#!/usr/bin/env bash",
        f"# {job.step} of {job.run}, {job.name}: written by `alia-ctx launch`, which "
        "writes it anew.",
        "",
        *header,
        "",
        _set_up(
            [
                # Where this is submitted from there may be those of another job.
                'unset MASTER_ADDR MASTER_PORT RANK LOCAL_RANK WORLD_SIZE "${!ALIA_@}"',
                *_exports({**_variables(job, launch), **environment}),
                *launch.setup,
            ],
            directory,
        ),
        # Whatever was set up: but for what `launch.environment` says itself.
        *_exports(
            {k: v for k, v in _variables(job, launch).items() if k not in environment}
        ),
        f"mkdir -p {shlex.quote(str(job.logs))}",
        f"set -- {shlex.join([str(job.config), job.stage])}",
    ]
    return "\n".join(head) + "\n\n" + _template_body()


def queue_name(job: Job) -> str:
    """What a job is called in the queue."""
    return f"{_word(job.run)}-{_word(job.stage if job.step == 'train' else job.name)}"


def queue_comment(job: Job) -> str:
    """By which a job in the queue is known as this one of this run."""
    return f"alia-ctx {job.folder / job.name}"


def _options(job: Job, launch: LaunchSpec, directory: Path) -> Iterator[str]:
    one = job.step == "data"
    ranks = 1 if one else job.ranks_per_node
    yield f"--job-name={_quoted(queue_name(job))}"
    yield f"--comment={_quoted(queue_comment(job))}"
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
    if launch.save_seconds:
        yield f"--signal=B:USR1@{launch.save_seconds}"
    yield from ("--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes")
    # SLURM puts its own words for %j and the like, also in the names of directories.
    logs = f"{job.folder}/logs/{job.name}".replace("%", "%%")
    yield f"--output={_quoted(f'{logs}-%j.out')}"
    yield f"--chdir={_quoted(str(directory))}"
    if launch.mail is not None:
        yield "--mail-type=BEGIN,END,FAIL,REQUEUE,TIME_LIMIT_90"
        yield f"--mail-user={launch.mail}"
    yield from launch.options


def unwritable(path: Path) -> str | None:
    """Why no batch file can name a path, if so: options end with their line, and where a
    backslash is in the name of a file SLURM expands nothing (man sbatch).
    """
    if any(ord(character) < 32 for character in str(path)):
        return "holds an end of line or the like, which no option of sbatch can"
    if "\\" in str(path):
        return (
            "holds a backslash, with which SLURM puts no job's number into file names"
        )
    return None


def _quoted(text: str) -> str:
    """A value as sbatch reads it from a batch file: quotes, and backslashes within."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _word(text: str) -> str:
    return "_".join(text.split())


_SET_UP = """\
# What is set up here is what programs are told, and nothing else of it: options, traps and
# functions of this shell end with it, as a fresh one takes its place.
if [[ ${{ALIA_SET_UP:-}} != $$ ]]; then
readonly alia_script=$(readlink -f "$0")
{lines}
{{ \\builtin cd {directory} && export ALIA_SET_UP=$$; }} || \\builtin exit
\\builtin trap - EXIT HUP INT QUIT TERM USR1 USR2 ERR DEBUG
\\builtin exec "$BASH" "$alia_script" "$@"
fi
"""


def _set_up(lines: Sequence[str], directory: Path) -> str:
    """Shell that runs `lines` and then the rest of its file in a shell of its own, which
    keeps the process and so its signals.
    """
    where = shlex.quote(str(directory))
    return _SET_UP.format(lines="\n".join(lines), directory=where)


def _variables(job: Job, launch: LaunchSpec) -> dict[str, str | None]:
    *inside, python = launch.program(sys.executable)
    return {
        "ALIA_PYTHON": python,
        "ALIA_STEP": job.step,
        "ALIA_COMMANDS": "\n".join(map(shlex.join, job.commands)) or None,
        "ALIA_LOGS": str(job.logs),
        "ALIA_PROGRESS": str(job.progress) if job.progress else None,
        "ALIA_WAIT_SECONDS": str(job.wait_seconds) if job.step != "data" else None,
        "ALIA_CONTAINER_COMMAND": shlex.join(inside[:-1]) if inside else None,
        "ALIA_CONTAINER": inside[-1] if inside else None,
    }


def _exports(values: Mapping[str, str | None]) -> list[str]:
    """Shell that has programs told `values`, and nothing of those that are None."""
    return [
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"
        for name, value in values.items()
    ]


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
{setup}
set -uo pipefail
run=({program} -m alia_ctx.cli)
ranks=({program} -m alia_ctx.cli.launch --standalone --nproc-per-node={count})
ranks+=(-m alia_ctx.cli)

# Ranks that lose touch, or hang, end with status 75, with all saved, and one may be killed:
# they are started again, as a queue would do. Whoever asks this script to stop is not answered so.
asked='' told='' child=''
trap 'asked=1 told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT HUP
trap 'asked=1 told=1; [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null' USR1
again() {{
    local status try
    for ((try = 0; try < 5; try++)); do
        [[ -z $asked ]] || exit 75
        "$@" &
        child=$!
        while true; do # `wait` returns early when a trap has run
            told=''
            wait "$child"
            status=$?
            [[ -n $told && $status -gt 128 ]] || break
        done
        [[ -z $asked ]] || break
        [[ $status -eq 75 ]] || ((status > 128 && status <= 192 && status != 130)) || break
    done
    child=''
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
    exports = _exports(launch.variables())
    return _SHELL.format(
        run=jobs[0].run,
        setup=_set_up([*launch.setup, *exports], directory),
        program=shlex.join(launch.program(sys.executable)),
        count=jobs[0].ranks_per_node,
        steps="\n".join(steps),
    )
