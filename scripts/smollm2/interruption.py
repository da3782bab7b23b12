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

from alia_ctx.errors import DataError
from alia_ctx.progress import say
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import metrics_file

_COMPARED = ("loss", "gradient_norm")
_TIME_OUT = 1800.0  # seconds until an update is in the log


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
    stage: Path, before: Sequence[Mapping[str, Any]], kept: int
) -> None:
    """Raise DataError unless the log of a stage has, up to the update `kept`, the lines that
    it had `before` it was killed: then these were not computed again.
    """
    now = {line["update"]: line["time"] for line in read_lines(metrics_file(stage))}
    was = {line["update"]: line["time"] for line in before}
    again = [u for u in range(1, kept + 1) if now.get(u) != was.get(u)]
    if again or not kept:
        raise DataError(
            f"{stage}: was killed with {kept} updates saved, and update "
            f"{again[0] if again else 1} was computed again; it was not resumed"
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
