"""Where the data of a stage goes on: behind the rows that the stages before it were trained
on, which may be fewer than their plans have, and in a plan of its own that it has begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError, StageLedger
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import (
    Statement,
    first_row_of_update,
    named_rows,
    read_statement,
    rows_as_named,
)
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.train.stage_identity import PLAN
from alia_ctx.workflow.chain import planned_updates, run_directory

Plans = Sequence[Mapping[str, Any]]  # as Statement.plans


def earlier_stages(run: RunConfig, name: str) -> list[str]:
    """The stages whose data stage `name` continues, oldest first: those before it in the
    chain, back to one that begins anew. An epoch of conversations is each of them once,
    whatever came before.
    """
    stages: list[str] = []
    stage = run.stage(name)
    if stage.update_instances is not None:
        return stages
    while stage.pack.data == "continue" and stage.init_from in run.stages:
        stages.insert(0, stage.init_from)
        stage = run.stages[stage.init_from]
    return stages


def plans_before(run: RunConfig, name: str, directory: Path) -> list[list[Any]]:
    """(stage, *`named_rows`) of the plans that the plan in `directory`, of stage `name`,
    should continue: of the rows that the stages before were trained on, or are to be.

    Of a plan that was removed after use, what it was is said by the checkpoints of its
    stage; where these do not, it is taken to be the one that this plan names, if the
    ledger says so too.
    """
    named = names_of(read_statement(directory).identity)
    pairs: list[list[Any]] = []
    for earlier in earlier_stages(run, name):
        place = run_directory(run).plan(earlier)
        plans: Plans = []
        if place.is_dir():
            there = read_statement(place)
            require_trained(run, name, earlier, there)
            plans = there.plans
        elif (of_ledger := own_plan(run, earlier)) is not None:
            plans = [of_ledger, *of_ledger["shorter"]]
        if plans:
            rows = rows_before(run, name, earlier, plans)
            pairs.append([earlier, *named_rows(plans, rows)])
            continue
        trained = _trained(run, name, earlier)
        own = named.get(earlier, ["none"])
        is_named = trained is None or trained.plan == own[0]
        pairs.append(
            [earlier, *(own if is_named or trained is None else [trained.plan])]
        )
    return pairs


def names_of(identity: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By stage, how the plan of this identity names the rows that it continues."""
    return {stage: name for stage, *name in identity.get("seen", ())}


def rows_before(run: RunConfig, name: str, earlier: str, plans: Plans) -> int:
    """How many of the first rows of `plans`, of stage `earlier`, the stage `name` counts as
    trained on: those that its own plan says, once it is begun; else those of the ledger
    of what it starts from, or is to start from.
    """
    begun = own_plan(run, name)
    if begun is not None:
        own = names_of(begun["identity"]).get(earlier)
        rows = None if own is None else rows_as_named(plans, own)
        if rows is not None:
            return rows
    most = int(plans[0]["entries"]["row_pairs"])
    fixed = _stated(run, _from(run, name, earlier), earlier)
    if fixed is not None:  # a begun stage came from it
        return min(fixed.rows, most)
    own_ledger = _stated(run, [earlier], earlier)
    done = 0 if own_ledger is None else own_ledger.rows
    return min(max(done, _rows_to_its_end(run, earlier, plans)), most)


def _rows_to_its_end(run: RunConfig, name: str, plans: Plans) -> int:
    """Rows of the stage's plan to the end that the configuration gives it."""
    stage, entries = run.stage(name), plans[0]["entries"]
    if stage.update_instances is None:
        return stage.rows
    updates, directory = planned_updates(run, name), run_directory(run).plan(name)
    is_cut = updates is not None and updates < entries["update_offsets"] - 1
    if updates is None or not is_cut or not directory.is_dir():
        return int(entries["row_pairs"])
    return first_row_of_update(read_statement(directory), updates)


def own_plan(run: RunConfig, name: str) -> dict[str, Any] | None:
    """What a plan must begin with that a begun stage goes on from: the one that its
    newest checkpoint was trained on, as that states it, or as the plan that is there does.
    """
    directory = run_directory(run)
    for path in reversed(checkpoint.list_checkpoints(directory.checkpoints(name))):
        try:
            manifest = checkpoint.read_manifest(path)
        except DamagedError:
            continue
        fingerprint = manifest.ledger[-1].plan if manifest.ledger else None
        stated = manifest.extra.get(PLAN, {})
        if fingerprint == stated.get("fingerprint"):
            return dict(stated) or None
        with suppress(DataError):  # of a release whose checkpoints do not state it
            return read_statement(directory.plan(name)).as_trained(fingerprint)
        return None
    return None


def rows_to_plan(run: RunConfig, name: str) -> int:
    """Rows of the plan of a stage: those of its updates. A begun stage that was made
    shorter ends within the plan that it has trained on, which stays as it is.
    """
    begun = [int(plan["entries"]["row_pairs"]) for plan in _begun_plans(run, name)]
    return max([run.stage(name).rows, *begun])


def epochs_to_plan(run: RunConfig, name: str) -> int | None:
    """As `rows_to_plan`, of the epochs of a stage of conversations."""
    epochs = run.stage(name).epochs
    if epochs is None:
        return None
    begun = [plan["identity"].get("epochs") or 0 for plan in _begun_plans(run, name)]
    return max([epochs, *begun])


def _begun_plans(run: RunConfig, name: str) -> list[Mapping[str, Any]]:
    """The plan that a stage has trained on, and the one that is there if it is that one
    with rows added; nothing before the stage is begun.
    """
    trained = own_plan(run, name)
    if trained is None:
        return []
    plans: list[Mapping[str, Any]] = [trained]
    with suppress(DataError):
        there = read_statement(run_directory(run).plan(name)).plans
        if any(plan["fingerprint"] == trained["fingerprint"] for plan in there):
            plans.append(there[0])
    return plans


def _from(run: RunConfig, name: str, earlier: str) -> Iterator[str]:
    """Stage `name` and those that it came from, up to the one before `earlier`."""
    while name != earlier and name in run.stages:
        yield name
        name = run.stages[name].init_from


def _ledger(run: RunConfig, name: str) -> tuple[StageLedger, ...]:
    """That of the stage's newest checkpoint which says one, the newest stage last."""
    root = run_directory(run).checkpoints(name)
    for path in reversed(checkpoint.list_checkpoints(root)):
        with suppress(CheckpointError):
            return tuple(checkpoint.read_manifest(path).ledger)
    return ()


def _trained(run: RunConfig, name: str, earlier: str) -> StageLedger | None:
    """What stage `earlier` was trained on, by the ledger of the stage `name` that continues
    it, or else of the stages between, or its own; None where there is none.
    """
    return _stated(run, [*_from(run, name, earlier), earlier], earlier)


def _stated(run: RunConfig, names: Iterable[str], earlier: str) -> StageLedger | None:
    """What the first of some stages whose ledger has `earlier` says of it."""
    for name in names:
        for entry in reversed(_ledger(run, name)):
            if entry.stage == earlier:
                return entry
    return None


def require_trained(run: RunConfig, name: str, earlier: str, plan: Statement) -> None:
    """DataError unless `plan`, of stage `earlier`, is the one that it was trained on, or
    that one with rows added: a plan that grew in steps is made anew in one as another.
    """
    trained = _trained(run, name, earlier)
    if trained is None or trained.plan in {p["fingerprint"] for p in plan.plans}:
        return
    raise DataError(
        f"{plan.directory}: is not the plan that stage {earlier} was trained on (plan "
        f"{trained.plan} there, {plan.fingerprint} now), so that {name} would train again on "
        f"what {earlier} has trained on. Restore that plan; where it is lost and rows "
        "were added to it, move this one away and pack it in the same steps, with "
        f"stages.{earlier}.tokens as they were in turn; or set "
        f"stages.{name}.pack.data=restart"
    )
