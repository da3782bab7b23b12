"""The base of a run: the checkpoint that its first stage starts from, imported from `hf_base`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config.run import RANDOM, RunConfig
from alia_ctx.errors import CheckpointError, ConfigError, Problems
from alia_ctx.hf.source_weights import SOURCE_WEIGHTS, other_weight
from alia_ctx.progress import Meter, meter, say
from alia_ctx.workflow.chain import run_directory


def base_to_import(run: RunConfig, names: Sequence[str] = ()) -> Path | None:
    """Where stages (default: all) look for the base that `hf_base` names and that is not
    imported yet; None where nothing is to be imported.
    """
    for name in names or run.stages:
        origin = run.stage(name).init_from
        elsewhere = origin == RANDOM or origin in run.stages or run.deferred(origin)
        if run.hf_base is None or elsewhere or Path(origin).exists():
            continue
        if checkpoint.latest(run_directory(run).checkpoints(name)) is None:
            return Path(origin)
    return None


def import_command(run: RunConfig, path: Path) -> str:
    """What makes the base where stages look for it."""
    return shlex.join(["alia-ctx", "import-hf", str(run.hf_base), str(path)])


def how_to_import(run: RunConfig, path: Path) -> str:
    """The sentence on a base that is not imported yet."""
    return (
        f"the base is not at {path} yet; `{import_command(run, path)}` makes it, and "
        "`alia-ctx run` does so by itself"
    )


def require_base(run: RunConfig, name: str) -> None:
    """CheckpointError where the stage starts from a base that is not imported yet."""
    if (path := base_to_import(run, [name])) is not None:
        raise CheckpointError(f"stage {name}: {how_to_import(run, path)}")


def require_imported_from_base(run: RunConfig) -> None:
    """ConfigError where what stages start from was imported from other weights than those
    of `hf_base`.

    A stage may start from an import of another model beside that of `hf_base`: one of
    them has to be of it. Nothing is compared where an import or `hf_base` is not at hand,
    or an older release made it, which did not state its weights.
    """
    if run.hf_base is None or run.deferred(run.hf_base):
        return
    problems = Problems()
    for origin in dict.fromkeys(stage.init_from for stage in run.stages.values()):
        if origin == RANDOM or origin in run.stages:
            continue
        try:
            manifest = checkpoint.read_manifest(Path(origin))
        except CheckpointError:  # said where it is needed
            return
        if not manifest.is_import:
            continue
        stated = manifest.config.get(SOURCE_WEIGHTS)
        other = None if stated is None else other_weight(stated, Path(run.hf_base))
        if stated is None or other is None:
            return
        problems.add(
            "hf_base",
            run.hf_base,
            f"is not what {origin} was imported from, {stated['directory']}: {other} has "
            "other values",
            "set hf_base to the weights that were imported, or leave it out; to train "
            "from those of hf_base, let init_from name another place, where `alia-ctx "
            "run` or import-hf puts them",
        )
    if problems:
        raise ConfigError("stages start from another model", problems)


def import_base(run: RunConfig) -> None:
    """Import the base where stages look for it, unless it is there."""
    path = base_to_import(run)
    if path is None or run.hf_base is None:
        return
    from alia_ctx.hf.convert import import_hf
    from alia_ctx.hf.hub import whole_directory

    say(f"the base is imported from {escape(run.hf_base)}")
    with meter("import-hf", 1.0, "B") as bar:

        def show(done: int, total: int, bar: Meter = bar) -> None:
            bar.retotal(max(total, 1))
            bar.update(min(done, total))

        import_hf(whole_directory(Path(run.hf_base)), path, progress=show)
