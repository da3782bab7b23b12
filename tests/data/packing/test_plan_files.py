"""A plan knows what it was made from, and is refused by name where it does not fit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.config.schema import build
from alia_ctx.data.packing import PackPlan, PackSpec, build_plan
from alia_ctx.data.packing.plan_files import ARRAYS
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError, Problems
from tests.data.packing.plans import LENGTHS, SPEC, VERSION_0_1, make_store


def test_equal_input_is_equal_bytes_and_the_seed_matters(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    contents = []
    for name, seed in (("p", 1), ("q", 1), ("r", 2)):
        build_plan(stores, SPEC, 32, 60, tmp_path / name, seed=seed)
        files = sorted((tmp_path / name).iterdir())
        contents.append([(file.name, file.read_bytes()) for file in files])
    assert contents[0] == contents[1] != contents[2]


def test_a_plan_refuses_what_it_was_not_built_from(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    build_plan(stores, SPEC, 32, 60, tmp_path / "p", seed=1)
    PackPlan.open(tmp_path / "p", stores, spec=SPEC, row_length=32, seed=1, rows=60)
    for asked, told in (
        ({"seed": 2}, "seed: 1 in the plan, 2 now"),
        ({"row_length": 64}, "row_length: 32 in the plan, 64 now"),
        ({"rows": 61}, "rows: 60 in the plan, 61 now"),
        (
            {"spec": PackSpec("concat", "split")},
            "spec.policy: best_fit in the plan, concat now",
        ),
        (
            {"spec": PackSpec("best_fit", "split", weights={"a": 1.0})},
            r"spec.weights.a: None in the plan, 1.0 now",
        ),
        ({"rows_per_update": 4}, "rows_per_update: 1 in the plan, 4 now"),
    ):
        with pytest.raises(DataError, match=told):
            PackPlan.open(tmp_path / "p", stores, **asked)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sources: a in the plan, b now"):
        PackPlan.open(tmp_path / "p", {"b": stores["a"]})


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changed_token_or_length_of_a_store_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_plan({"a": make_store(folder / "a", LENGTHS)}, SPEC, 32, 60, folder / "p")
        if data.draw(st.booleans()):
            raw = bytearray((folder / "a.bin").read_bytes())
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
            (folder / "a.bin").write_bytes(raw)
        else:
            changed = list(LENGTHS)
            changed[data.draw(st.integers(0, len(changed) - 1))] += 1
            make_store(folder / "a", changed)
        with pytest.raises(DataError, match=r"store a: content .* in the plan, .* now"):
            PackPlan.open(folder / "p", {"a": TokenStore(folder / "a")})


def test_a_finished_plan_is_opened_and_another_refused(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    plan = build_plan(stores, SPEC, 32, 60, tmp_path / "p")
    made = (tmp_path / "p" / "plan.json").stat().st_mtime_ns
    assert (
        build_plan(stores, SPEC, 32, 60, tmp_path / "p").fingerprint == plan.fingerprint
    )
    assert (tmp_path / "p" / "plan.json").stat().st_mtime_ns == made
    with pytest.raises(
        DataError, match="another plan is there:\n  row_length: 32 in the plan, 64 now"
    ):
        build_plan(stores, SPEC, 64, 60, tmp_path / "p")
    assert (
        build_plan(stores, SPEC, 64, 60, tmp_path / "p", overwrite=True).row_length
        == 64
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"holds what is no plan \(thesis.tex\)"):
            build_plan(stores, SPEC, 32, 60, tmp_path / "other", overwrite=overwrite)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "p" / "plan.json").unlink()
    with pytest.raises(DataError, match="not empty and holds no whole plan"):
        build_plan(stores, SPEC, 32, 60, tmp_path / "p")
    assert len(build_plan(stores, SPEC, 32, 60, tmp_path / "p", overwrite=True)) == 60


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    with pytest.raises(DataError, match="holds no pack plan"):
        PackPlan.open(tmp_path / "p", stores)
    build_plan(stores, SPEC, 32, 60, tmp_path / "p")
    array = tmp_path / "p" / "piece_lengths.npy"
    whole = array.read_bytes()
    for damaged in (whole[:-4], b"", whole[:20]):
        array.write_bytes(damaged)
        with pytest.raises(DataError, match=r"piece_lengths\.npy"):
            PackPlan.open(tmp_path / "p", stores)
    np.save(array, np.zeros(3, np.int32))
    with pytest.raises(DataError, match=r"piece_lengths\.npy"):
        PackPlan.open(tmp_path / "p", stores)
    (tmp_path / "p" / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json"):
        PackPlan.open(tmp_path / "p", stores)


# -- every bit -------------------------------------------------------------------------

PLAN_FILES = ["plan.json", *(f"{name}.npy" for name in ARRAYS)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_a_plan_is_refused_by_name(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {"a": make_store(folder / "a", LENGTHS)}
        build_plan(stores, SPEC, 32, 30, folder / "p", rows_per_update=3)
        file = folder / "p" / data.draw(st.sampled_from(PLAN_FILES))
        raw = bytearray(file.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
        file.write_bytes(raw)
        with pytest.raises(DataError) as refused:
            PackPlan.open(folder / "p", stores)
        assert str(file) in str(refused.value)
        assert "`alia-ctx pack CONFIG --stage p --overwrite`" in str(refused.value)


@pytest.mark.parametrize("name", ["piece_starts.npy", "piece_lengths.npy", "plan.json"])
def test_a_flipped_bit_of_a_plan_of_version_0_1_is_refused(
    tmp_path: Path, name: str
) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    shutil.copytree(VERSION_0_1 / "plan", tmp_path / "p")
    raw = bytearray((tmp_path / "p" / name).read_bytes())
    place = raw.index(b'"seed": 1') + 8 if name == "plan.json" else len(raw) - 3
    raw[place] ^= 2
    (tmp_path / "p" / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"{name}: is not what was written"):
        PackPlan.open(tmp_path / "p", stores)


def test_only_who_says_so_believes_the_arrays(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    build_plan(stores, SPEC, 32, 30, tmp_path / "p")
    file = tmp_path / "p" / "piece_starts.npy"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    PackPlan.open(tmp_path / "p", stores, verify=False)
    with pytest.raises(DataError, match=r"piece_starts\.npy"):
        build_plan(stores, SPEC, 32, 30, tmp_path / "p")


def test_a_damaged_plan_made_anew_is_the_same(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    build_plan(stores, SPEC, 32, 10, tmp_path / "p")
    fingerprint = build_plan(stores, SPEC, 32, 30, tmp_path / "p").fingerprint
    for name in ("piece_starts.npy", "row_pairs.npy"):
        (tmp_path / "p" / name).write_bytes(b"gone")
        again = build_plan(stores, SPEC, 32, 30, tmp_path / "p", overwrite=True)
        assert again.fingerprint == fingerprint
    (tmp_path / "p" / "row_pairs.npy").unlink()
    longer = build_plan(stores, SPEC, 32, 40, tmp_path / "p", overwrite=True)
    assert longer.extends(fingerprint)


def test_a_plan_behind_a_link_is_written_through_it(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    (tmp_path / "big" / "disk").mkdir(parents=True)
    (tmp_path / "p").symlink_to(tmp_path / "big" / "disk")
    for rows in (10, 20):
        assert len(build_plan(stores, SPEC, 32, rows, tmp_path / "p")) == rows
    assert (tmp_path / "p").is_symlink()
    assert len(PackPlan.open(tmp_path / "big" / "disk", stores)) == 20


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        build_plan(stores, SPEC, 32, 10, tmp_path / "file" / "p")


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_plan_that_is_being_replaced_is_never_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
    error: type[BaseException],
) -> None:
    """Interrupted at each rename, by an error or a signal; and killed, which leaves no
    time to clean up.
    """
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    short = build_plan(stores, SPEC, 32, 10, tmp_path / "p").fingerprint
    whole, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == moment + 1:
            raise error("interrupted")
        return whole(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    if moment < 2:
        with pytest.raises((DataError, KeyboardInterrupt)):
            build_plan(stores, SPEC, 32, 20, tmp_path / "p")
    monkeypatch.undo()
    if moment == 2:
        (tmp_path / "p").rename(tmp_path / ".p.replaced")
    assert build_plan(stores, SPEC, 32, 10, tmp_path / "p").fingerprint == short
    assert build_plan(stores, SPEC, 32, 20, tmp_path / "p").extends(short)
    assert sorted(path.name for path in tmp_path.glob("*p*")) == ["p"]


# -- updates ---------------------------------------------------------------------------


def test_each_row_is_in_one_update_in_order(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    for rows, size in ((60, 4), (60, 1), (7, 3), (5, 9)):
        name = tmp_path / f"{rows}-{size}"
        plan = build_plan(stores, SPEC, 32, rows, name, rows_per_update=size)
        updates = [plan.rows_of_update(k) for k in range(plan.updates)]
        assert [row for update in updates for row in update] == list(range(rows))
        assert {len(update) for update in updates[:-1]} <= {size}
        with pytest.raises(IndexError, match="of a plan of"):
            plan.rows_of_update(plan.updates)


# -- version 0.1 -----------------------------------------------------------------------


def test_a_plan_of_version_0_1_opens_as_what_it_was(tmp_path: Path) -> None:
    """The fingerprint is the one in the ledgers of that version's checkpoints."""
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    shutil.copytree(VERSION_0_1 / "plan", tmp_path / "p")
    old = PackPlan.open(
        tmp_path / "p", stores, spec=SPEC, row_length=32, seed=1, rows=12,
        rows_per_update=4, padding_id=0,
    )  # fmt: skip
    assert old.fingerprint == "c147e6b06646bc4da1e1baa66d3a9507"
    assert [old.rows_of_update(k) for k in range(old.updates)] == [
        range(0, 4),
        range(4, 8),
        range(8, 12),
    ]
    new = build_plan(stores, SPEC, 32, 12, tmp_path / "q", seed=1, rows_per_update=4)
    for index in range(12):
        rows = old.row(index), new.row(index)
        assert np.array_equal(rows[0].tokens(), rows[1].tokens())
        assert rows[0].predicted == rows[1].predicted
    with pytest.raises(DataError, match="seed: 1 in the plan, 2 now"):
        PackPlan.open(tmp_path / "p", stores, seed=2)
    unknown = PackPlan.open(tmp_path / "p", stores)
    with pytest.raises(DataError, match="open it with rows_per_update"):
        unknown.rows_of_update(0)


def test_packing_leaves_a_plan_of_version_0_1_as_it_is(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    shutil.copytree(VERSION_0_1 / "plan", tmp_path / "p")
    plan = build_plan(stores, SPEC, 32, 12, tmp_path / "p", seed=1, rows_per_update=4)
    assert plan.fingerprint == "c147e6b06646bc4da1e1baa66d3a9507" and plan.updates == 3


def test_a_plan_that_held_documents_out_is_refused(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    with pytest.raises(DataError, match="name the held-out text under evaluation"):
        PackPlan.open(VERSION_0_1 / "holding_out", stores)


def test_an_old_configuration_is_told_where_holding_out_went() -> None:
    problems = Problems()
    old = {"policy": "concat", "long_docs": "split", "holdout_documents": 4}
    assert build(PackSpec, old, "stages.s1.pack", problems) is None
    assert [problem.key for problem in problems] == ["stages.s1.pack.holdout_documents"]
    assert "name the held-out text under evaluation.held_out" in problems[0].remedy
