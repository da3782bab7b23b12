"""Loss weights from the store's file to targets and counts, against counting one by one."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import (
    IGNORE,
    PackedRow,
    PackPlan,
    PackSpec,
    build_plan,
    predicted,
)
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.data.tokens import TokenStore, write_store, write_weights
from alia_ctx.errors import DataError
from tests.data.packing.plans import LENGTHS, make_store


def weighted_store(
    prefix: Path, lengths: list[int], first: int, seed: int
) -> TokenStore:
    """Token t of the store is number first + t, and its weight is `weight_of` it."""
    ends = np.cumsum([first, *lengths])
    documents = [np.arange(a, b) for a, b in pairwise(ends)]
    weights = [weight_of(tokens, seed) for tokens in documents]
    return write_store(prefix, documents, 1 << 20, weights)


def weight_of(tokens: np.ndarray, seed: int) -> np.ndarray:
    return (tokens * 2654435761 + seed) // 7 % 3 != 0


def check_targets(plan: PackPlan, weights: dict[int, int]) -> None:
    """Targets and counts of every row, position by position; `weights` by token."""
    total = 0
    for index in range(len(plan)):
        row = plan.row(index)
        tokens = row.tokens()
        last = set((row.doc_offsets[1:] - 1).tolist())
        expected = [
            int(tokens[at + 1])
            if at < row.real_tokens
            and at not in last
            and weights.get(int(tokens[at + 1]), 1)
            else IGNORE
            for at in range(row.length)
        ]
        assert row.targets().tolist() == expected
        assert row.predicted == sum(target != IGNORE for target in expected)
        total += row.predicted
        for start, stop in ((0, 1), (1, row.length - 2), (row.length - 1, row.length)):
            assert row.targets(start, stop).tolist() == expected[start:stop]
    assert plan.stats["predicted"] == total
    by_update = map(plan.predicted_of_update, range(plan.updates))
    assert sum(by_update) == total


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    row=st.integers(4, 40),
    policy=st.sampled_from(list(POLICIES)),
    seed=st.integers(0, 99),
    block=st.integers(1, 50),
)
def test_weight_0_predicts_nothing_and_counts_are_exact(
    lengths: list[int], row: int, policy: str, seed: int, block: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted, "_BLOCK_TOKENS", block)
        weighted = weighted_store(Path(name) / "a", [*lengths, 7], 100, seed)
        plain = make_store(Path(name) / "b", [3, 40, 8, 2, 1] * 3, 50_000)
        plan = build_plan(
            {"a": weighted, "b": plain},
            PackSpec(policy, "split"),
            row,
            None,
            Path(name) / "p",
            rows_per_update=3,
        )
        tokens = np.asarray(weighted.tokens, np.int64)
        weights = dict(
            zip(tokens.tolist(), weight_of(tokens, seed).tolist(), strict=True)
        )
        check_targets(plan, weights)


def test_weights_of_1_are_no_weights(tmp_path: Path) -> None:
    plain = make_store(tmp_path / "a", LENGTHS)
    ones = write_store(
        tmp_path / "b",
        [plain.document(n) for n in range(plain.n_documents)],
        1 << 20,
        [np.ones(n, bool) for n in LENGTHS],
    )
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert plain.weights is None and plain.fingerprint != ones.fingerprint
    spec = PackSpec("concat", "split")
    plans = [
        build_plan({"a": store}, spec, 32, 40, tmp_path / name)
        for name, store in (("p", plain), ("q", ones))
    ]
    for index in range(40):
        rows = [plan.row(index) for plan in plans]
        tokens, targets = zip(*(row.tokens_and_targets() for row in rows), strict=True)
        assert np.array_equal(*tokens) and np.array_equal(*targets)
        assert rows[0].predicted == rows[1].predicted == (targets[0] != IGNORE).sum()


def test_a_row_in_memory_takes_weights() -> None:
    documents = [np.arange(10, 15), np.arange(20, 23)]
    weights = [np.array([1, 0, 1, 0, 1]), np.array([0, 0, 0])]
    row = PackedRow.from_documents(documents, 10, weights=weights)
    assert row.targets().tolist() == [IGNORE, 12, IGNORE, 14, *[IGNORE] * 6]
    assert row.predicted == 2
    with pytest.raises(ValueError, match="exactly one weight"):
        PackedRow.from_documents(documents, 10, weights=weights[:1])


def test_megatron_reads_a_store_with_weights(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    store = weighted_store(tmp_path / "a", [5, 9, 2], 0, 1)
    theirs = indexed.IndexedDataset(str(tmp_path / "a"))
    assert len(theirs) == 3
    for number in range(3):
        assert np.array_equal(theirs[number], store.document(number))


def test_weights_of_other_tokens_are_refused(tmp_path: Path) -> None:
    store = weighted_store(tmp_path / "a", LENGTHS, 0, 1)
    path = store.weights_path
    whole = path.read_bytes()
    for bad, told in (
        (whole[:-1], "weights for"),
        (whole + b"\0", "weights for"),
        (whole[:10], "bad header"),
        (b"x" + whole[1:], "bad header"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=told):
            _ = TokenStore(tmp_path / "a").weights
    path.write_bytes(whole)
    (tmp_path / "a.bin").write_bytes(bytes(len((tmp_path / "a.bin").read_bytes())))
    with pytest.raises(DataError, match="made for other tokens"):
        _ = TokenStore(tmp_path / "a").fingerprint
    make_store(tmp_path / "a", LENGTHS)  # rewritten without weights: none are left
    assert TokenStore(tmp_path / "a").weights is None
    (tmp_path / "a.json").write_text('{"weights_checksum": "0"}')
    with pytest.raises(DataError, match="everything would be trained on"):
        _ = TokenStore(tmp_path / "a").weights


def test_only_0_and_1_are_weights(tmp_path: Path) -> None:
    store = weighted_store(tmp_path / "a", LENGTHS, 0, 1)
    whole = store.weights_path.read_bytes()
    with pytest.raises(DataError, match="must be 0 or 1, not 2"):
        write_weights(store, [np.array([0, 1, 2])])
    with pytest.raises(DataError, match=r"3 loss weights for \d+ tokens"):
        write_weights(store, [np.array([0, 1]), np.array([1])])
    assert store.weights_path.read_bytes() == whole
    store.weights_path.write_bytes(whole[:-1] + b"\5")
    with pytest.raises(DataError, match=r"token \d+ has loss weight 5"):
        build_plan(
            {"a": TokenStore(tmp_path / "a")},
            PackSpec("concat", "split"),
            32,
            40,
            tmp_path / "p",
        )


def test_a_changed_weight_is_another_store(tmp_path: Path) -> None:
    store = weighted_store(tmp_path / "a", LENGTHS, 0, 1)
    before = store.fingerprint
    raw = bytearray(store.weights_path.read_bytes())
    raw[-1] ^= 1
    store.weights_path.write_bytes(raw)
    assert TokenStore(tmp_path / "a").fingerprint != before
