"""The log of a stage as all its ranks have it: opened and written on the first, and what
goes wrong there is known to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alia_ctx.errors import AliaError
from alia_ctx.train.engine import Engine
from alia_ctx.train.metrics_log import JsonLines, LogError, MetricsLog
from alia_ctx.train.run_directory import metrics_file
from alia_ctx.train.sinks import open_sinks
from alia_ctx.train.task import StageTask


def open_log(
    task: StageTask, engine: Engine, update: int, notice: Callable[[str], None]
) -> MetricsLog:
    """The log of a stage that goes on after `update`: it writes on rank 0 and nowhere
    else. Collective: where it cannot be opened, all ranks raise.
    """
    log, error = MetricsLog(None), None
    if engine.rank == 0:
        try:
            log = _open(task, update, notice)
        except (AliaError, OSError) as failure:
            error = failure
    told = engine.gather_objects(None if error is None else str(error))[0]
    if error is not None:
        raise error
    if told is not None:
        raise LogError(f"rank 0: {told}")
    return log


def _open(task: StageTask, update: int, notice: Callable[[str], None]) -> MetricsLog:
    # The sinks first: one that does not start leaves the log as it was.
    sinks = open_sinks(
        task.sinks, task.directory, task.run, task.name, task.config, notice, update
    )
    lines = JsonLines(metrics_file(task.directory), update, notice)
    return MetricsLog(lines, sinks, task.about)


def written(log: MetricsLog, line: Mapping[str, Any]) -> OSError | None:
    """Write the line of an update; what kept it from being written, if anything."""
    try:
        log.write(line)
    except OSError as error:
        return error
    return None


def remarkable(line: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know of an update, from its line."""
    if not line["applied"]:
        yield (
            f"update {line['update']}: loss {line['loss']}, gradient norm "
            f"{line['gradient_norm']}; skipped"
        )
    if line["spike"]:
        yield (
            f"update {line['update']}: loss {line['loss']:.4f} is a spike; "
            f"rows {line['rows']}"
        )
