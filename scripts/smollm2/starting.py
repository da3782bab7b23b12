"""What a start of the recipe asks of the machine and of what earlier starts left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from alia_ctx.cluster.software import gpu_memory_gib
from alia_ctx.config.load import load_plan
from alia_ctx.errors import DataError
from alia_ctx.files import write_json
from alia_ctx.progress import say
from alia_ctx.workflow.planned import planned_stage, recomputed
from scripts.smollm2.notes import read_note
from scripts.smollm2.sizes import Sizes


def choose_ranks(asked: int | None, devices: int) -> int:
    """The processes: as asked, or as many of the GPUs as can share the rows of both
    stages; a row is cut in 2 * cp parts.
    """
    usable = [n for n in range(1, 17) if 32_768 % (2 * n) == 0]
    if asked is None:
        ranks = max(n for n in usable if n <= max(1, devices))
        if ranks < devices:
            say(f"rows are cut in {ranks} parts; {devices - ranks} GPUs stay idle")
        return ranks
    if asked not in usable:
        fitting = ", ".join(map(str, usable))
        raise DataError(f"--ranks {asked} does not cut rows evenly; {fitting} do")
    return asked


def choose_recompute(
    config: Path, settings: Sequence[str], memory_gib: float | None = None
) -> list[str]:
    """Settings of the least recomputation with which the planner finds room for each
    stage on a GPU of `memory_gib` (default: the smallest of this machine; without one
    nothing is chosen).
    """
    if memory_gib is None:
        memory_gib = gpu_memory_gib()
    if memory_gib is None:
        return []
    run, _ = load_plan(config, settings)
    chosen = []
    for name, stage in run.stages.items():
        for fitting in recomputed(run, name):
            needed = planned_stage(fitting, name).fullest.total
            if needed <= memory_gib:
                break
        else:
            raise DataError(
                f"stage {name} needs {needed:.0f} GiB a GPU with all of it computed "
                f"again, and there are {memory_gib:.0f}; take more GPUs (--ranks)"
            )
        recompute = fitting.stage(name).recompute
        if recompute != stage.recompute:
            setting = f"stages.{name}.recompute={recompute}"
            say(f"stage {name} has room on {memory_gib:.0f} GiB with {setting}")
            chosen.append(setting)
    return chosen


def require_same_sizes(output: Path, asked: Mapping[str, int | None]) -> None:
    """State how much text is written, and refuse another text that is there already."""
    stated = output / "sizes.json"
    if (output / "text").is_dir():
        there = (
            read_note(stated, {}, f"name another --output, or remove {output / 'text'}")
            if stated.is_file()
            else None
        )
        # What earlier releases did not state was that of the whole.
        whole = Sizes().text
        if there is None or {n: there.get(n, whole.get(n)) for n in asked} != asked:
            raise DataError(
                f"{output / 'text'}: was written with sizes {there or 'not stated'}, and "
                f"{asked} are asked (--small or not); name another --output"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(stated, asked)


def set_aside(stage: Path) -> None:
    """Give a stage's directory another name, where there is one; nothing is deleted."""
    if stage.is_dir():
        root = stage.parents[1]
        names = (root / f"{stage.name}.aside-{n}" for n in itertools.count(1))
        free = next(name for name in names if not name.exists())
        say(f"{stage} was begun already; it is {free} from now on")
        stage.rename(free)
