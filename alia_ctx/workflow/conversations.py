"""Plans of stages whose updates are conversations, and the conversations they hold out."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import (
    PackPlan,
    build_instance_plan,
    draw_held_out,
    held_out_statement,
    held_out_there,
    kept_out_statement,
    read_statement,
    write_held_out,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.train.stage_identity import PLAN
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.stores import open_stores

# Of a store, its index last: with that it is there.
_SUFFIXES = (".bin", ".weights", ".said", ".idx")


def pack_conversations(
    run: RunConfig,
    name: str,
    stores: Mapping[str, TokenStore],
    directory: Path,
    *,
    epochs: int | None,
    held_out: TokenStore | None,
    overwrite: bool,
    trained: Mapping[str, Any] | None,
    progress: Callable[[str, float], None],
) -> PackPlan:
    """Plan the updates of a stage of conversations, and write those that it holds out.

    epochs: of the plan, which may have more than the stage.
    held_out: other evaluation text of the run.
    trained: the plan that the stage has trained on already, if any.
    """
    stage = run.stage(name)
    if stage.update_instances is None or epochs is None:
        raise DataError(f"stage {name} has no updates of conversations")
    require_kept_out(run, name)
    prefix = run_directory(run).conversations(name)
    with _held_out_aside(run, name, stores, prefix) as kept:
        return build_instance_plan(
            stores,
            stage.pack,
            stage.context,
            stage.update_instances,
            epochs,
            directory,
            seed=run.seed,
            conversations=kept,
            held_out=held_out,
            kept_out=kept_out_of(run, name),
            overwrite=overwrite,
            trained=trained,
            progress=progress,
        )


@contextmanager
def _held_out_aside(
    run: RunConfig, name: str, stores: Mapping[str, TokenStore], prefix: Path
) -> Iterator[TokenStore | None]:
    """The store of the conversations that a stage holds out, or None. It is beside its
    place until the plan is there: a plan that is refused leaves that of a trained stage.
    """
    spec = run.stage(name).pack
    if not spec.held_out_instances:
        yield None
        return
    numbers = draw_held_out(stores, spec, run.seed)
    if (there := held_out_there(prefix, stores, numbers)) is not None:
        yield there
        return
    aside = prefix.parent / f".{prefix.name}.incomplete"
    shutil.rmtree(aside, ignore_errors=True)  # of a killed one: packing has the lock
    try:
        yield write_held_out(aside / prefix.name, stores, numbers)
        for suffix in _SUFFIXES:
            new = aside / f"{prefix.name}{suffix}"
            old = prefix.with_name(new.name)
            if new.is_file():
                new.replace(old)
            else:
                old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_conversation_plan(
    run: RunConfig,
    name: str,
    stores: Mapping[str, TokenStore],
    directory: Path,
    *,
    epochs: int | None,
    held_out: TokenStore | None,
) -> PackPlan:
    """The plan of a stage of conversations, compared with what it was made from."""
    require_kept_out(run, name)
    stage = run.stage(name)
    kept = held_out_conversations(run, name) if stage.pack.held_out_instances else None
    return PackPlan.open(
        directory,
        stores,
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        update_instances=stage.update_instances,
        epochs=epochs,
        seen=[],
        held_out=held_out_statement(
            kept,
            held_out if stage.pack.drop_contaminated else None,
            kept_out=kept_out_of(run, name),
        ),
    )


def kept_out_of(run: RunConfig, name: str) -> dict[str, np.ndarray]:
    """Numbers of the conversations of a stage's sources that other stages of the run hold
    out, and it does not itself; rising. No stage trains on what one of them measures.

    DataError where a source of such a stage is not tokenised: which conversations it
    holds out depends on all of them.
    """
    drawn = run.stage(name).pack.drawn_from(run.data.sources)
    kept_out: dict[str, np.ndarray] = {}
    for other, stage in run.stages.items():
        shared = set(drawn) & set(stage.pack.drawn_from(run.data.sources))
        if other == name or not stage.pack.held_out_instances or not shared:
            continue
        numbers = _held_out_numbers(run, other, f"{name} reads the same sources")
        for source in shared & numbers.keys():
            kept_out[source] = np.union1d(
                kept_out.get(source, np.empty(0, np.int64)), numbers[source]
            )
    if kept_out and run.stage(name).pack.held_out_instances:
        for source, own in _held_out_numbers(run, name, "it is packed").items():
            if source in kept_out:
                kept_out[source] = np.setdiff1d(kept_out[source], own)
    return kept_out


def _held_out_numbers(run: RunConfig, name: str, why: str) -> dict[str, np.ndarray]:
    try:
        return draw_held_out(open_stores(run, name), run.stage(name).pack, run.seed)
    except DataError as error:
        raise DataError(
            f"stage {name} holds conversations out, and {why}: {error}"
        ) from error


def require_kept_out(run: RunConfig, name: str) -> None:
    """DataError where the plan of another stage, there or as its checkpoint states it, has
    what this one holds out: it would be measured on what it was trained on.
    """
    if not run.stage(name).pack.held_out_instances:
        return
    for other in run.stages:
        planned = _planned(run, other) if other != name else None
        if planned is None:
            continue
        where, identity = planned
        wanted = kept_out_statement(kept_out_of(run, other))
        stated = identity.get("held_out") or ""
        if wanted is not None and wanted not in stated.split("+"):
            raise DataError(
                f"{where}: the plan of stage {other} has conversations that stage "
                f"{name} holds out, which would be measured as if never seen; pack "
                f"{other} again (--overwrite; what was trained on it, too), give {name} "
                f"other sources (stages.{name}.pack.sources), or set "
                f"stages.{name}.pack.held_out_instances to 0"
            )


def _planned(run: RunConfig, name: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Where the plan of a stage is stated, and its identity; None where there is none, or
    only a checkpoint of a release that did not state it.
    """
    directory = run_directory(run).plan(name)
    if directory.is_dir():
        return directory, read_statement(directory).identity
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is None:
        return None
    try:
        identity = checkpoint.read_manifest(newest).extra.get(PLAN, {}).get("identity")
    except DamagedError:  # whoever goes on from it says so
        return None
    return None if identity is None else (newest, identity)


def held_out_conversations(run: RunConfig, name: str) -> TokenStore:
    """The conversations that a stage keeps for evaluation, as `pack` wrote them."""
    prefix = run_directory(run).conversations(name)
    if not prefix.with_name(f"{prefix.name}.idx").is_file():
        raise DataError(
            f"{prefix}.idx: the conversations held out of stage {name} are not there; "
            f"run `alia-ctx pack CONFIG --stage {shlex.quote(name)}`, which writes them"
        )
    return TokenStore(prefix)


def sources_of_held_out(
    run: RunConfig, name: str, stores: Mapping[str, TokenStore]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of sources, and the index of the source of each held-out conversation."""
    numbers = draw_held_out(stores, run.stage(name).pack, run.seed)
    sizes = [documents.size for documents in numbers.values()]
    return tuple(numbers), np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
