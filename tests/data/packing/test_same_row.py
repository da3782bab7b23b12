"""Text that a row has twice is counted, by source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import PackPlan, PackSpec, build_plan, same_row
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.workflow.packed_notes import packed_notes, repeats_notes


def stores_of(folder: Path, small: int) -> dict[str, TokenStore]:
    draw = np.random.default_rng(0)
    sizes = {"big": draw.integers(20, 300, 600), "small": draw.integers(20, 90, small)}
    return {
        name: write_store(folder / name, [draw.integers(4, 200, n) for n in of], 200)
        for name, of in sizes.items()
    }


def counted(plan: PackPlan) -> dict[str, int]:
    """Row by row, in plain Python."""
    found: Counter[str] = Counter()
    packed, first_of_small = plan.packed, 600
    for row in range(len(packed)):
        pieces = range(packed.row_offsets[row], packed.row_offsets[row + 1])
        texts = [(packed.piece_documents[p], packed.piece_starts[p]) for p in pieces]
        for (document, _), times in Counter(texts).items():
            found["big" if document < first_of_small else "small"] += times - 1
    return {name: found[name] for name in ("big", "small") if found[name]}


@pytest.mark.parametrize("policy", ["best_fit", "concat"])
@pytest.mark.parametrize("pieces", [1, 40, 1 << 22])
def test_what_a_row_has_twice_is_counted_and_said(
    tmp_path: Path, policy: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_row, "_PIECES", pieces)
    spec = PackSpec(policy, "split", weights={"big": 0.7, "small": 0.3})
    plan = build_plan(stores_of(tmp_path, 9), spec, 1024, 64, tmp_path / "p")
    expected = counted(plan)
    assert set(expected) == {"small"}
    assert plan.repeated_in_rows() == expected
    [note] = repeats_notes("short", plan)
    assert f"small {expected['small']:,} times in 64 rows" in note
    assert "`stages.short.pack.weights`" in note and note in packed_notes("short", plan)


def test_epochs_of_a_plan_without_weights_have_no_text_twice_in_a_row(
    tmp_path: Path,
) -> None:
    stores = stores_of(tmp_path, 300)
    plan = build_plan(stores, PackSpec("best_fit", "split"), 1024, 400, tmp_path / "p")
    assert max(s["epochs"] for s in plan.stats["sources"].values()) > 2
    assert plan.repeated_in_rows() == counted(plan) == {}
    assert not packed_notes("short", plan)


def test_parts_of_one_document_are_no_repetition(tmp_path: Path) -> None:
    """Its end and its beginning share a row where `concat` goes on with the next epoch."""
    stores = {"a": write_store(tmp_path / "a", [np.arange(4, 154)], 200)}
    plan = build_plan(stores, PackSpec("concat", "split"), 100, 3, tmp_path / "p")
    assert plan.repeated_in_rows() == {}
