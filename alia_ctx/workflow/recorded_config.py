"""How a run was configured, by what its own checkpoints say: where there is no file of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import RunConfig, StageConfig
from alia_ctx.config.schema import build_parts
from alia_ctx.errors import AliaError, CheckpointError, ConfigError, Problem, Problems
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.run_directory import RunDirectory


def config_of(root: Path) -> RunConfig:
    """The configuration that a stage below `root` was last started with, of those that
    checkpoints state. Of a stage that it lacks, or that has gone beyond it (by an
    override), the settings are those of its own newest checkpoint.

    ConfigError where there is none, or where it is of a release that this one cannot
    read.
    """
    places, recorded = RunDirectory(root), list[tuple[float, str, Manifest]]()
    # beside the stages lie their locks and marks
    for stage in sorted(s for s in (root / "stages").glob("*") if s.is_dir()):
        newest = checkpoint.latest(places.checkpoints(stage.name))
        if newest is not None:
            with suppress(CheckpointError, OSError):
                manifest = checkpoint.read_manifest(newest)
                started = _started(places, stage.name, manifest, newest)
                recorded.append((started, stage.name, manifest))
    if not recorded:
        rule = "holds no checkpoint that says how the run was configured"
        remedy = "give the run's configuration, or the directory called `output` in it"
        raise ConfigError("", [Problem("RUN", root, rule, remedy)])
    recorded.sort(key=lambda entry: (entry[0], len(entry[2].ledger)))
    run = _built(recorded[-1][2], root)
    stages = dict(run.stages)
    for _, name, manifest in recorded:
        if name in stages and not _is_beyond(stages[name], manifest):
            continue
        with suppress(ConfigError, KeyError):
            stages = _with(stages, name, _built(manifest, root).stages[name])
    return replace(run, stages=stages)


def _started(places: RunDirectory, name: str, manifest: Manifest, path: Path) -> float:
    """When training read the configuration that a checkpoint states, in seconds: the time
    of the first line of that start in the log, or of the last where no line says that it
    is one; without a log, of the checkpoint's files. Those of a copy may be as old as it.
    """
    with suppress(AliaError, KeyError, ValueError, TypeError):
        lines = [n for n in read_lines(places.metrics(name)) if _is_of(n, manifest)]
        starts = [line for line in lines if "layout" in line] or lines
        if starts:
            return datetime.fromisoformat(starts[-1]["time"]).timestamp()
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _is_of(line: dict[str, object], manifest: Manifest) -> bool:
    update = line.get("update")
    return isinstance(update, int) and update <= manifest.update


def _is_beyond(stage: StageConfig, manifest: Manifest) -> bool:
    with suppress(ConfigError):  # of conversations, whose plan knows
        return manifest.update > stage.updates
    return False


def _built(manifest: Manifest, root: Path) -> RunConfig:
    problems = Problems()
    parts = build_parts(RunConfig, {**manifest.config, "output": str(root)}, problems)
    if problems:
        raise ConfigError(f"the configuration in {root} has problems", problems)
    return RunConfig(**parts)


def _with(
    stages: dict[str, StageConfig], name: str, stage: StageConfig
) -> dict[str, StageConfig]:
    """`stages` with one more, behind what it starts from and never first or last: what a
    run is compared with, and what it comes to, are its configuration's.
    """
    if name in stages:
        return {**stages, name: stage}
    names = list(stages)
    before = names.index(stage.init_from) + 1 if stage.init_from in names else 1
    names.insert(max(1, min(before, len(names) - 1)), name)
    return {n: stage if n == name else stages[n] for n in names}
