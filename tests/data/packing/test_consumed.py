"""Tokens and documents by source of the first rows of a plan, against the tokens that the
rows give out, each of which is a number of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import PackPlan, PackSpec, build_plan, consumed
from alia_ctx.data.tokens import TokenStore, write_weights
from tests.data.packing.plans import make_store

FIRST = {"a": 0, "b": 10_000, "unused": 20_000}
LENGTHS = {"a": [5, 9, 30, 2, 17] * 8, "b": [4, 40, 7] * 5, "unused": [50]}


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, TokenStore]:
    stores = {
        name: make_store(tmp_path / name, LENGTHS[name], first)
        for name, first in FIRST.items()
    }
    write_weights(stores["b"], [np.ones(n, np.uint8) for n in LENGTHS["b"]])
    return {name: TokenStore(tmp_path / name) for name in stores}


def counted(plan: PackPlan, rows: int) -> dict[str, tuple[int, int]]:
    """By the tokens themselves: (tokens, first tokens of documents) of each source."""
    begins = {
        name: set(np.cumsum([FIRST[name], *LENGTHS[name]])[:-1].tolist())
        for name in FIRST
    }
    found: dict[str, tuple[int, int]] = {}
    for index in range(rows):
        row = plan.row(index)
        for token in row.tokens(0, row.real_tokens).tolist():
            name = max((n for n in FIRST if FIRST[n] <= token), key=FIRST.__getitem__)
            tokens, documents = found.get(name, (0, 0))
            found[name] = tokens + 1, documents + (token in begins[name])
    return found


@pytest.mark.parametrize("policy", ["concat", "best_fit"])
@pytest.mark.parametrize("at_once", [1 << 22, 3])
def test_counts_of_the_first_rows(
    tmp_path: Path,
    stores: dict[str, TokenStore],
    policy: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of some epochs, documents cut and repeated; whether rows become more or fewer."""
    monkeypatch.setattr(consumed, "_PIECES", at_once)
    of = {name: stores[name] for name in ("a", "b")}
    spec = PackSpec(policy, "split")  # type: ignore[arg-type]
    build_plan(of, spec, 32, 80, tmp_path / "plan", rows_per_update=8)
    plan = PackPlan.open(tmp_path / "plan", of)
    for rows in (0, 1, 40, 80, 8, 79):
        found = {name: counts for name, *counts, _ in plan.consumed(rows)}
        assert found == {n: list(c) for n, c in counted(plan, rows).items()}
    assert [(name, is_chat) for name, _, _, is_chat in plan.consumed(80)] == [
        ("a", False),
        ("b", True),
    ]
    assert dict.fromkeys(n for n, *_ in plan.consumed(80)) == {"a": None, "b": None}
