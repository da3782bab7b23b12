"""Plans of stages whose updates are conversations, and the conversations they hold out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import (
    PackPlan,
    build_instance_plan,
    draw_held_out,
    held_out_statement,
    held_out_there,
    write_held_out,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.workflow.chain import run_directory

# Of a store, its index last: with that it is there.
_SUFFIXES = (".bin", ".weights", ".said", ".idx")


def pack_conversations(
    run: RunConfig,
    name: str,
    stores: Mapping[str, TokenStore],
    directory: Path,
    *,
    held_out: TokenStore | None,
    overwrite: bool,
    trained: Mapping[str, Any] | None,
    progress: Callable[[str, float], None],
) -> PackPlan:
    """Plan the updates of a stage of conversations, and write those that it holds out.

    held_out: other evaluation text of the run.
    trained: the plan that the stage has trained on already, if any.
    """
    stage = run.stage(name)
    if stage.update_instances is None or stage.epochs is None:
        raise DataError(f"stage {name} has no updates of conversations")
    prefix = run_directory(run).conversations(name)
    with _held_out_aside(run, name, stores, prefix) as kept:
        return build_instance_plan(
            stores,
            stage.pack,
            stage.context,
            stage.update_instances,
            stage.epochs,
            directory,
            seed=run.seed,
            conversations=kept,
            held_out=held_out,
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
    held_out: TokenStore | None,
) -> PackPlan:
    """The plan of a stage of conversations, compared with what it was made from."""
    stage = run.stage(name)
    kept = held_out_conversations(run, name) if stage.pack.held_out_instances else None
    return PackPlan.open(
        directory,
        stores,
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        update_instances=stage.update_instances,
        epochs=stage.epochs,
        seen=[],
        held_out=held_out_statement(
            kept, held_out if stage.pack.drop_contaminated else None
        ),
    )


def held_out_conversations(run: RunConfig, name: str) -> TokenStore:
    """The conversations that a stage keeps for evaluation, as `pack` wrote them."""
    prefix = run_directory(run).conversations(name)
    if not prefix.with_name(f"{prefix.name}.idx").is_file():
        raise DataError(
            f"{prefix}.idx: the conversations held out of stage {name} are not there; "
            f"run `alia-ctx pack CONFIG --stage {name}`, which writes them"
        )
    return TokenStore(prefix)


def sources_of_held_out(
    run: RunConfig, name: str, stores: Mapping[str, TokenStore]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of sources, and the index of the source of each held-out conversation."""
    numbers = draw_held_out(stores, run.stage(name).pack, run.seed)
    sizes = [documents.size for documents in numbers.values()]
    return tuple(numbers), np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
