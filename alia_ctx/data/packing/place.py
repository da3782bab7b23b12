"""What lies in a plan's directory before a plan is written there: the one asked for, one
that it continues, another one, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.plan_files import (
    Statement,
    begins_with,
    differences,
    foreign_files,
    is_plan,
    read_statement,
    recover,
    stores_as_named,
)
from alia_ctx.data.packing.remedy import command_for
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError


@dataclass(frozen=True)
class Place:
    """What is in a plan's directory before the plan is built.

    plan: the plan asked for, or one that has its first rows; parts: rows at which the
        plan asked for ended before it was extended; shorter: plans (as
        Statement.as_shorter) with whose rows the new one may begin.
    """

    plan: PackPlan | None
    parts: list[int]
    shorter: list[dict[str, Any]]


def what_is_there(
    directory: Path,
    stores: Mapping[str, TokenStore],
    identity: dict[str, Any],
    overwrite: bool,
    trained: Mapping[str, Any] | None = None,
) -> Place:
    """What the plan of `identity` may be made from.

    trained: the plan (Statement.as_trained) that a stage has trained on already.
        One that does not begin with its rows is another plan, whatever it was made from.
    """
    place = _found(directory, stores, identity, overwrite)
    if trained is None:
        return place
    if place.plan is not None:
        if _begins_as(place.plan.statement, trained):
            return place
        if not overwrite:
            raise _not_trained(directory)
    then = trained["identity"]
    identity["stores"] = stores_as_named(stores, then["stores"])
    ends = [*then.get("parts", ()), then["rows"]]
    rows = identity["rows"]
    parts = [end for end in ends if rows is not None and end is not None and end < rows]
    known = {
        shorter["fingerprint"]: {
            name: shorter[name] for name in ("fingerprint", "identity", "entries")
        }
        for shorter in (trained, *trained["shorter"], *place.shorter)
    }
    return Place(None, parts, list(known.values()))


def is_extended(
    directory: Path,
    stores: Mapping[str, TokenStore],
    identity: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
) -> bool:
    """Whether building the plan of `identity` would add rows to the one that is there,
    which otherwise is that plan. DataError, in the words of a build without overwriting,
    where it would be refused. Nothing is changed, and no array is read.

    identity: may lack what is not known yet, which is not compared.
    """
    _refuse_foreign(directory)
    statement, expected = read_statement(directory), dict(identity)
    if "stores" in expected:
        expected["stores"] = stores_as_named(stores, statement.identity["stores"])
    _, differing = _first_rows(statement, expected)
    if differing:
        raise _another(directory, differing)
    if trained is not None and not _begins_as(statement, trained):
        raise _not_trained(directory)
    budget = "epochs" if "epochs" in expected else "rows"
    return bool(statement.identity[budget] != expected[budget])


def _begins_as(there: Statement, trained: Mapping[str, Any]) -> bool:
    """Whether a plan states that it is, or was extended from, the one trained on."""
    shorter = (plan["fingerprint"] for plan in there.shorter)
    return trained["fingerprint"] in {there.fingerprint, *shorter}


def _not_trained(directory: Path) -> DataError:
    return DataError(
        f"{directory}: another plan is there than the one that the stage has "
        "trained on; allow overwriting to make that one again"
    )


def _another(directory: Path, differing: Sequence[str]) -> DataError:
    return DataError(
        f"{directory}: another plan is there:\n  "
        + "\n  ".join(differing)
        + "\nchoose another folder or allow overwriting "
        f"(`{command_for(directory)} --overwrite`)"
    )


def _refuse_foreign(directory: Path) -> None:
    foreign = foreign_files(directory)
    if foreign:
        raise DataError(
            f"{directory}: holds what is no plan ({', '.join(foreign[:5])}) and is not "
            "overwritten; choose another folder"
        )


def require_trained_rows(
    directory: Path,
    arrays: Mapping[str, np.ndarray],
    identity: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
) -> None:
    """DataError, before anything is replaced, unless `arrays` begin with the rows of the
    plan that the stage has trained on.
    """
    if trained is None or begins_with(arrays, trained):
        return
    differing = differences(trained["identity"], identity) or [
        "nothing that it states: another release of this program may have made it"
    ]
    raise DataError(
        f"{directory}: the stage has trained on a plan with whose rows this one would "
        "not begin. What differs:\n  " + "\n  ".join(differing) + "\nrestore that, or "
        "move the stage's own directory away to train it anew on this plan"
    )


def _found(
    directory: Path,
    stores: Mapping[str, TokenStore],
    identity: dict[str, Any],
    overwrite: bool,
) -> Place:
    nothing = Place(None, [], [])
    recover(directory)
    _refuse_foreign(directory)
    if not is_plan(directory):
        if directory.exists() and any(directory.iterdir()) and not overwrite:
            raise DataError(
                f"{directory}: is not empty and holds no whole plan; choose another "
                "folder or allow overwriting"
            )
        return nothing
    try:
        statement = read_statement(directory)
    except DataError:
        if not overwrite:
            raise
        return nothing
    identity["stores"] = stores_as_named(stores, statement.identity["stores"])
    shorter = [statement.as_shorter(), *statement.shorter]
    parts, differing = _first_rows(statement, identity)
    if differing:
        if not overwrite:
            raise _another(directory, differing)
        return Place(None, [], shorter)
    try:
        rows_per_update = identity.get("rows_per_update")
        plan = PackPlan.open(directory, stores, rows_per_update=rows_per_update)
    except DataError:
        if not overwrite:
            raise
        return Place(None, parts, shorter)
    return Place(plan, parts, shorter)


def _first_rows(
    statement: Statement, identity: dict[str, Any]
) -> tuple[list[int], list[str]]:
    """Parts of the plan of `identity` where the one that `statement` is of has its first
    rows, or all of them; and what differs where it does not.
    """
    expected = dict(identity)
    if statement.format == 1:
        expected.pop("rows_per_update", None)
    differing = differences(statement.identity, expected)
    if "epochs" in expected:
        epochs = statement.identity.get("epochs")
        grows = epochs is not None and expected["epochs"] > epochs
        return [], [] if len(differing) == 1 and grows else differing
    parts, rows = list(statement.identity["parts"]), statement.identity["rows"]
    if len(differing) != 1 or rows == expected["rows"]:
        return parts, differing
    whole_updates = rows is not None and rows % identity["rows_per_update"] == 0
    if expected["rows"] is not None and whole_updates and expected["rows"] > rows:
        return [*parts, rows], []
    return parts, differing
