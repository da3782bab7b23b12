"""Plans grow at their end: rows that were there stay as they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import PackPlan, PackSpec, build_plan
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import DataError
from alia_ctx.files import file_checksum
from tests.data.packing.plans import (
    LENGTHS,
    SPEC,
    VERSION_0_1,
    make_store,
    order_problems,
)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=40),
    row=st.integers(4, 40),
    policy=st.sampled_from(list(POLICIES)),
    steps=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    size=st.integers(1, 3),
    weighted=st.booleans(),
)
def test_rows_stay_when_a_plan_grows(
    lengths: list[int],
    row: int,
    policy: str,
    steps: list[int],
    size: int,
    weighted: bool,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {
            "a": make_store(folder / "a", [*lengths, 5]),
            "b": make_store(folder / "b", LENGTHS, 10_000),
        }
        weights = {"a": 0.4, "b": 0.6} if weighted else {}
        spec = PackSpec(policy, "split", weights=weights)
        ends = np.cumsum(steps) * size
        plans = []
        for end in ends.tolist():
            plan = build_plan(
                stores, spec, row, end, folder / "p", rows_per_update=size, seed=3
            )
            plans.append((plan.fingerprint, rows_of(plan)))
        assert [plan.extends(fingerprint) for fingerprint, _ in plans] == [
            *[True] * (len(plans) - 1),
            False,
        ]
        for _, rows in plans:
            assert plans[-1][1][: len(rows)] == rows
        reopened = PackPlan.open(folder / "p", stores, spec=spec, rows=int(ends[-1]))
        assert reopened.fingerprint == plan.fingerprint
        assert reopened.rows_of_update(plan.updates - 1).stop == ends[-1]
        assert order_problems([plan], stores) == []


def rows_of(plan: PackPlan) -> list[tuple[object, ...]]:
    rows = [plan.row(index) for index in range(len(plan))]
    return [
        (*(part.tolist() for part in row.tokens_and_targets()), row.predicted)
        for row in rows
    ]


def test_a_plan_does_not_extend_what_it_does_not_begin_with(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    short = build_plan(stores, SPEC, 32, 10, tmp_path / "p")
    long = build_plan(stores, SPEC, 32, 20, tmp_path / "p")
    assert long.extends(short.fingerprint) and not long.extends(long.fingerprint)
    anew = build_plan(stores, SPEC, 32, 20, tmp_path / "q")
    assert not anew.extends(short.fingerprint)
    # A statement that claims other rows as its first is not believed: it is computed.
    other = build_plan(stores, SPEC, 32, 10, tmp_path / "r", seed=5)
    shorter = other.statement.as_shorter()
    claim = dataclasses.replace(long.statement, shorter=[shorter])
    long.statement = claim
    assert not long.extends(other.fingerprint)


def test_only_whole_updates_are_added_and_nothing_is_taken_away(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    build_plan(stores, SPEC, 32, 10, tmp_path / "p", rows_per_update=4)
    for rows, size in ((12, 4), (5, 4), (20, 5), (20, 10)):
        with pytest.raises(DataError, match="another plan is there"):
            build_plan(stores, SPEC, 32, rows, tmp_path / "p", rows_per_update=size)
    with pytest.raises(DataError, match="another plan is there"):
        build_plan(stores, SPEC, 32, 20, tmp_path / "p", rows_per_update=4, seed=2)


def test_a_plan_of_version_0_1_grows(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    shutil.copytree(VERSION_0_1 / "plan", tmp_path / "p")
    old = build_plan(stores, SPEC, 32, 12, tmp_path / "p", seed=1, rows_per_update=4)
    rows = rows_of(old)
    new = build_plan(stores, SPEC, 32, 20, tmp_path / "p", seed=1, rows_per_update=4)
    assert new.extends(old.fingerprint) and rows_of(new)[:12] == rows
    with pytest.raises(DataError, match="another plan"):
        build_plan(stores, SPEC, 32, 30, tmp_path / "p", seed=1, rows_per_update=5)


def test_a_stage_after_one_that_grew_is_made_anew(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    first = build_plan(stores, SPEC, 32, 5, tmp_path / "p")
    build_plan(stores, SPEC, 32, 5, tmp_path / "q", seen={"s1": first})
    grown = build_plan(stores, SPEC, 32, 10, tmp_path / "p")
    with pytest.raises(DataError, match="continues the data of s1"):
        build_plan(stores, SPEC, 32, 5, tmp_path / "q", seen={"s1": grown})
    second = build_plan(
        stores, SPEC, 32, 5, tmp_path / "q", seen={"s1": grown}, overwrite=True
    )
    assert order_problems([grown, second], stores) == []


def test_a_copy_without_its_sidecar_is_the_same_content(tmp_path: Path) -> None:
    """A plan made over either is the plan of both, extended too, and made anew."""
    store = write_store(tmp_path / "a", [np.arange(2, 90)] * 40, 300)
    sidecar = {"bin_checksum": file_checksum(store.data_path)}
    store.sidecar_path.write_text(json.dumps(sidecar))
    bare = write_store(tmp_path / "copy/a", [np.arange(2, 90)] * 40, 300)
    other = write_store(tmp_path / "other", [np.arange(3, 91)] * 40, 300)
    stated = TokenStore(tmp_path / "a")
    assert stated.fingerprint != bare.fingerprint
    spec = PackSpec(policy="concat", long_docs="split")
    for first, second in ((stated, bare), (bare, stated)):
        folder = tmp_path / first.fingerprint
        plan = build_plan({"a": first}, spec, 64, 8, folder / "p", rows_per_update=4)
        PackPlan.open(folder / "p", {"a": second}, spec=spec)
        longer = build_plan(
            {"a": second}, spec, 64, 16, folder / "p", rows_per_update=4
        )
        assert longer.extends(plan.fingerprint)
        anew = build_plan({"a": second}, spec, 64, 8, folder / "q", rows_per_update=4)
        assert anew.fingerprint != plan.fingerprint and anew.is_plan(plan.fingerprint)
        with pytest.raises(DataError, match="store a: content"):
            PackPlan.open(folder / "p", {"a": other}, spec=spec)
        with pytest.raises(DataError, match="same tokens as source"):
            build_plan(
                {"a": first},
                spec,
                64,
                8,
                folder / "r",
                rows_per_update=4,
                held_out=second,
            )
        assert not build_plan(
            {"a": other}, spec, 64, 8, folder / "o", rows_per_update=4
        ).is_plan(plan.fingerprint)
