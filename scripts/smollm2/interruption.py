"""A stage that is killed and goes on by another layout, beside one that is not disturbed.

The stage is begun twice from the same base: once undisturbed, by data parallelism, up to
some updates after where the other is killed; and as the run itself, killed with SIGKILL
and resumed with the rows cut over all ranks (context parallelism). What both logs say of
an update is compared: its loss and its gradient norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from alia_ctx.config.load import read_config
from alia_ctx.errors import DataError
from alia_ctx.progress import say
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import metrics_file
from scripts.smollm2.notes import read_note
from scripts.smollm2.sizes import CONFIG

BEGUN = "interrupt.json"  # where the kill is to be, from when the stage is begun
DONE = "interruption.json"  # what was found
_COMPARED = ("loss", "gradient_norm")
_TIME_OUT = 1800.0  # seconds until an update is in the log


def choose_kill(output: Path, asked: int, ranks: int, settings: Sequence[str]) -> int:
    """The update at which the first stage is to be killed, 0 for none: as `asked` (0: not
    asked), or as an earlier start began it, which is taken up whether asked again or not.

    DataError, before anything is made, where it cannot be done or could not take effect.
    """
    begun, done = output / BEGUN, output / DONE
    if asked:
        _require_possible(asked, ranks, settings)
    if not begun.is_file():
        if asked and done.is_file():
            raise DataError(
                f"{done}: is there already; leave --interrupt out, or name another "
                "--output"
            )
        stage = output / "stages" / _first_stage(settings)[0]
        if asked and stage.is_dir():
            raise DataError(
                f"{stage}: the stage was begun without --interrupt; move it away, or "
                "leave --interrupt out"
            )
        return asked
    was = read_note(begun, {"update": int, "ranks": int}, "name another --output")
    if asked and asked != was["update"]:
        raise DataError(
            f"--interrupt {asked}: the stage is killed at update {was['update']} here; "
            f"name --interrupt {was['update']}, or another --output"
        )
    if done.is_file():
        if asked:
            say(f"--interrupt {asked}: was done by an earlier start, see {done}")
        return 0
    if ranks != was["ranks"]:
        raise DataError(
            f"{begun}: the stage that is killed was begun by {was['ranks']} ranks, and "
            f"now there are {ranks}; name --ranks {was['ranks']}, or another --output"
        )
    if not asked:
        say(f"taking up the kill at update {was['update']} that an earlier start began")
    return int(was["update"])


def _require_possible(asked: int, ranks: int, settings: Sequence[str]) -> None:
    _, updates, every = _first_stage(settings)
    if ranks < 2:
        raise DataError(
            "--interrupt goes on with another layout, which takes --ranks 2 or more"
        )
    if not every <= asked < updates:
        raise DataError(
            f"--interrupt {asked}: the stage saves every {every} updates and has "
            f"{updates}; name one from {every} to {updates - 1}"
        )


def _first_stage(settings: Sequence[str]) -> tuple[str, int, int]:
    """Name and updates of the first stage, and how many are between two saves; from the
    configuration as it is written, as the base that gives the sizes is not there yet.
    """
    raw = read_config(CONFIG, settings)
    stages = raw["stages"]
    name, stage = next(s for s in stages.items() if s[1]["init_from"] not in stages)
    updates = int(stage["tokens"]) // int(stage["update_tokens"])
    return name, updates, int(raw["checkpoint"]["every_updates"])


def kill_at(
    command: Sequence[str],
    stage: Path,
    update: int,
    environment: Mapping[str, str],
    is_saved: Callable[[], bool] = lambda: True,
) -> None:
    """Run a command that trains a stage, and kill all of its processes as soon as `update`
    is in the log and `is_saved` (saves go on in the background). DataError where it ends
    before, or takes too long.
    """
    process = psutil.Popen(command, env=environment)
    began = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - began < _TIME_OUT:
            logged = read_lines(metrics_file(stage))
            if any(line["update"] >= update for line in logged) and is_saved():
                say(f"update {update} is in the log: SIGKILL to all of its processes")
                return
            time.sleep(0.05)
        raise DataError(f"{stage} ended or stood still before update {update}")
    finally:
        # The launcher last: it would stop the others in an orderly way.
        with suppress(psutil.NoSuchProcess):
            processes = [*process.children(recursive=True), process]
            for other in processes:
                with suppress(psutil.NoSuchProcess):
                    other.kill()
            # Whatever follows shall not meet them, or their memory.
            psutil.wait_procs(processes, timeout=60)
        process.wait()


def require_resumed(
    stage: Path, before: Sequence[Mapping[str, Any]], kept: int, cp: int
) -> None:
    """Raise DataError unless the log of a stage has, up to the update `kept`, the lines that
    it had `before` it was killed: then these were not computed again; and unless every
    start past it says that it cut the rows in `cp` parts.
    """
    log = list(read_lines(metrics_file(stage)))
    now = {line["update"]: line["time"] for line in log}
    was = {line["update"]: line["time"] for line in before}
    again = [u for u in range(1, kept + 1) if now.get(u) != was.get(u)]
    if again or not kept:
        raise DataError(
            f"{stage}: was killed with {kept} updates saved, and update "
            f"{again[0] if again else 1} was computed again; it was not resumed"
        )
    # The first line of each start has the layout.
    layouts = {
        line["update"]: (line.get("layout") or {}).get("cp")
        for line in log
        if line["update"] == kept + 1 or (line["update"] > kept and "layout" in line)
    }
    other = [update for update, found in layouts.items() if found != cp]
    if other or not layouts:
        raise DataError(
            f"{stage}: went on after update {kept} by another layout than cp{cp} "
            f"(update {other[0] if other else kept + 1}), so nothing can be compared; "
            "name another --output"
        )


def compare(undisturbed: Path, stage: Path, kept: int) -> dict[str, Any]:
    """What the logs of two stage directories say of the updates that both have; of an
    update that was done again, what was said last.

    `before` and `after`: mean and greatest relative differences up to the update `kept`,
    from whose checkpoint the stage went on, and past it. Up to it both did the same, so
    that `before` is what two runs differ by anyway: on GPUs the gradients of attention
    are summed in no fixed order.
    """
    logs = [
        {line["update"]: line for line in read_lines(metrics_file(at))}
        for at in (undisturbed, stage)
    ]
    updates = sorted(logs[0].keys() & logs[1].keys())
    if not updates or updates[-1] <= kept:
        raise DataError(f"{undisturbed} and {stage} share no update past {kept}")
    rows: list[dict[str, Any]] = [
        {"update": u, **{name: [log[u][name] for log in logs] for name in _COMPARED}}
        for u in updates
    ]
    return {
        "went_on_after": kept,
        "before": _differences([row for row in rows if row["update"] <= kept]),
        "after": _differences([row for row in rows if row["update"] > kept]),
        "rows": rows,
    }


def _differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and greatest relative difference of each number; {} without rows."""
    found = {}
    for name in _COMPARED if rows else ():
        values = [abs(b - a) / abs(a) for a, b in (row[name] for row in rows)]
        found[name] = {"mean": sum(values) / len(values), "greatest": max(values)}
    return found
