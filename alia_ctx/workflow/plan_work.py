"""What `pack` would do for a stage, without doing it: for those that decide about jobs before
anything starts.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from alia_ctx import checkpoint
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.packing import (
    draw_held_out,
    held_out_statement,
    held_out_there,
    instance_plan_identity,
    is_extended,
    plan_identity,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import AliaError, DataError
from alia_ctx.workflow.chain import (
    check_trained,
    require_free_to_go_on,
    run_directory,
)
from alia_ctx.workflow.continued import (
    epochs_to_plan,
    own_plan,
    plans_before,
    rows_to_plan,
)
from alia_ctx.workflow.conversations import kept_out_of, require_kept_out
from alia_ctx.workflow.stores import has_store, open_store

# Stands for the name of a plan that more rows are about to give another one.
_EXTENDED = "extended"
Work = Literal["nothing", "rows", "all"]


def plan_work(run: RunConfig, name: str) -> Work:
    """What is to be done for the plan of a stage before it can be trained: nothing, rows
    to be added, or all of it. Raises what `pack` would refuse a plan that is there with.

    What is not known before the text is tokenised is not compared. Reads no tokens.
    """
    require_free_to_go_on(run, name)
    directory, stage = run_directory(run).plan(name), run.stage(name)
    if not directory.is_dir() or not any(directory.iterdir()):
        return "all"
    drawn = stage.pack.drawn_from(list(run.data.sources))
    stores = {
        source: open_store(run, source) for source in drawn if has_store(run, source)
    }
    is_whole = len(stores) == len(drawn)
    identity = _identity(run, name, stores)
    if not is_whole:  # neither they nor what they decide is known
        del identity["stores"]
    try:
        if is_extended(directory, stores, identity, own_plan(run, name)):
            return "rows"
    except DataError as error:
        grown = [stage for stage, plan, *_ in identity["seen"] if plan == _EXTENDED]
        if not grown:
            raise
        commands = (f"`alia-ctx pack CONFIG --stage {shlex.quote(n)}`" for n in grown)
        raise DataError(
            f"{error}; before that {', '.join(commands)}, which adds the rows that this "
            "one has to continue"
        ) from error
    return "nothing" if is_whole else "all"


def _identity(
    run: RunConfig, name: str, stores: dict[str, TokenStore]
) -> dict[str, Any]:
    """What the plan of a stage has to state, as far as it is known."""
    stage = run.stage(name)
    epochs = epochs_to_plan(run, name)
    if stage.update_instances is not None and epochs is not None:
        require_kept_out(run, name)
        identity = instance_plan_identity(
            *(stores, stage.pack, stage.context),
            *(stage.update_instances, epochs, run.seed),
        )
    else:
        identity = plan_identity(
            *(stores, stage.pack, stage.context, rows_to_plan(run, name)),
            rows_per_update=stage.rows_per_update,
            seed=run.seed,
            seen=_seen(run, name),
        )
    with suppress(
        AliaError, LookupError
    ):  # where what it is drawn from is not tokenised
        identity["held_out"] = _left_out(run, name, stores)
    return identity


def _left_out(run: RunConfig, name: str, stores: dict[str, TokenStore]) -> str | None:
    spec, kept = run.stage(name).pack, None
    kept_out = kept_out_of(run, name)
    if spec.held_out_instances:
        numbers = draw_held_out(stores, spec, run.seed)
        kept = held_out_there(run_directory(run).conversations(name), stores, numbers)
        if kept is None:
            raise LookupError  # they are still to be written
    text = open_store(run, HELD_OUT) if spec.drop_contaminated else None
    return held_out_statement(kept, text, kept_out=kept_out)


def _seen(run: RunConfig, name: str) -> list[list[Any]]:
    """What a plan would continue: see `plans_before`."""
    directory = run_directory(run).plan(name)
    pairs = plans_before(run, name, directory)
    if checkpoint.latest(run_directory(run).checkpoints(name)) is not None:
        return pairs
    return [
        [earlier, *([_EXTENDED] if _grows(run, earlier) else rows)]
        for earlier, *rows in pairs
    ]


def _grows(run: RunConfig, name: str) -> bool:
    with suppress(AliaError):  # said where that stage is asked for
        return plan_work(run, name) == "rows"
    return False


def plan_notes(run: RunConfig, names: Sequence[str] = ()) -> list[str]:
    """Which plans of the stages (default: all) get more rows before those are trained."""
    notes = []
    for name in names or run.stages:
        if (
            not check_trained(run, name, reading=True)
            and plan_work(run, name) == "rows"
        ):
            notes.append(
                f"stage {name}: its plan ends before the stage does; `alia-ctx pack CONFIG "
                f"--stage {shlex.quote(name)}` adds what is missing, as `launch` and `run` do"
            )
    return notes


def check_stage(run: RunConfig, name: str) -> bool:
    """Whether a stage is finished; raises what `check_trained` does, and where it is not
    finished what packing and training would refuse its plan with.
    """
    finished = check_trained(run, name, reading=True)
    if not finished:
        plan_work(run, name)
    return finished
