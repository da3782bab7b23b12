"""What lies in a plan's directory before a plan is written there: the one asked for, one
that it continues, another one, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.plan_files import (
    Statement,
    differences,
    foreign_files,
    is_plan,
    read_statement,
    recover,
    stores_as_named,
)
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
) -> Place:
    nothing = Place(None, [], [])
    recover(directory)
    foreign = foreign_files(directory)
    if foreign:
        raise DataError(
            f"{directory}: holds what is no plan ({', '.join(foreign[:5])}) and is not "
            "overwritten; choose another folder"
        )
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
            raise DataError(
                f"{directory}: another plan is there:\n  "
                + "\n  ".join(differing)
                + "\nchoose another folder or allow overwriting"
            )
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
