"""Stages continue the data of the stages before, and plans grow: against counting every
token of every document by brute force.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import LengthBucket, PackPlan, PackSpec, build_plan
from alia_ctx.data.packing.history import Spans, history_of, unseen_spans
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import DataError
from tests.data.packing.plans import (
    LENGTHS,
    make_store,
    order_problems,
    pieces_of,
    tokens_of,
    trained,
)

SPEC = PackSpec("best_fit", "split")


# -- the history -----------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6))
def test_history_is_what_counting_each_token_gives(
    data: st.DataObject, lengths: list[int]
) -> None:
    pieces = []
    for _ in range(data.draw(st.integers(0, 12))):
        document = data.draw(st.integers(0, len(lengths) - 1))
        start = data.draw(st.integers(0, lengths[document] - 1))
        stop = data.draw(st.integers(start + 1, lengths[document]))
        whole = data.draw(st.booleans())
        pieces.append(
            (document, 0, lengths[document])
            if whole
            else (document, start, stop - start)
        )
    counts = [np.zeros(length, int) for length in lengths]
    for document, start, length in pieces:
        counts[document][start : start + length] += 1
    columns = np.array(pieces, np.int64).reshape(-1, 3).T
    history = history_of(np.array(lengths), Spans(*columns))
    for number, count in enumerate(counts):
        assert history.tokens[number] == count.sum()
        # runs of tokens that are behind, two or more of them
        behind = count == count.min()
        runs = np.flatnonzero(np.diff(np.concatenate(([0], behind, [0]))))
        runs = [
            (a, b - a)
            for a, b in zip(runs[::2].tolist(), runs[1::2].tolist(), strict=True)
            if b - a > 1
        ]
        partly = count.max() > count.min()
        done = partly and not runs
        assert history.times[number] == count.min() + done
        of_document = history.rest.document == number
        rest = list(
            zip(
                history.rest.start[of_document].tolist(),
                history.rest.length[of_document].tolist(),
                strict=True,
            )
        )
        assert rest == (runs if partly else [])
    documents = np.arange(len(lengths))
    unseen = unseen_spans(history, documents, np.array(lengths))
    least = history.times.min()
    assert set(unseen.document.tolist()) == set(
        np.flatnonzero(history.times == least).tolist()
    )


# -- stages ----------------------------------------------------------------------------


def by_source(
    plan: PackPlan, stores: dict[str, TokenStore]
) -> dict[str, list[Counter]]:
    """Of each source, per document, how often the plan has each token."""
    counts = {
        name: [Counter() for _ in range(store.n_documents)]
        for name, store in stores.items()
    }
    for _, name, number, piece in pieces_of(plan):
        counts[name][number].update(piece)
    return counts


def chain(
    folder: Path, stores: dict[str, TokenStore], stages: list[tuple[PackSpec, int, int]]
) -> list[PackPlan]:
    plans: dict[str, PackPlan] = {}
    for number, (spec, row_length, rows) in enumerate(stages):
        name = f"s{number}"
        plans[name] = build_plan(
            stores, spec, row_length, rows, folder / name, seen=dict(plans)
        )
    return list(plans.values())


lengths_lists = st.lists(st.integers(0, 90), min_size=3, max_size=40)
stage_lists = st.lists(
    st.tuples(
        st.sampled_from(list(POLICIES)),
        st.integers(4, 50),
        st.integers(1, 25),
        st.sampled_from([None, 0.2, 0.5, 0.9]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(first=lengths_lists, second=lengths_lists, stages=stage_lists)
def test_no_document_comes_again_before_every_document_of_its_source_came(
    first: list[int],
    second: list[int],
    stages: list[tuple[str, int, int, float | None]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {
            "a": make_store(folder / "a", [*first, 7]),
            "b": make_store(folder / "b", [*second, 9], 10_000),
        }
        specs = [
            (
                PackSpec(
                    policy,
                    "split",
                    weights={} if share is None else {"a": share, "b": 1 - share},
                ),
                row,
                rows,
            )
            for policy, row, rows, share in stages
        ]
        plans = chain(folder, stores, specs)
        assert order_problems(plans, stores) == []
        check_seen(plans, stores)


def check_seen(plans: list[PackPlan], stores: dict[str, TokenStore]) -> None:
    """What each plan says of those before it."""
    for number, plan in enumerate(plans):
        for name, store in stores.items():
            counts = [by_source(earlier, stores)[name] for earlier in plans[:number]]
            tokens = [
                sum(sum(c[n].values()) for c in counts)
                for n in range(store.n_documents)
            ]
            stats = plan.stats["sources"][name]
            assert stats["seen_tokens"] == sum(tokens)
            assert stats["seen_documents"] == sum(n > 0 for n in tokens)
            own = by_source(plan, stores)[name]
            assert stats["trained_documents"] == sum(bool(c) for c in own)
            assert stats["trained_documents_seen_before"] == sum(
                bool(c) and n > 0 for c, n in zip(own, tokens, strict=True)
            )


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, TokenStore]:
    """2,027 documents, 1.16 million tokens, heavy-tailed."""
    lengths = np.random.default_rng(7).lognormal(0, 1.2, 2027)
    sizes = np.clip(lengths * 1_160_000 / lengths.sum(), 2, 60_000).astype(int)
    documents = [np.full(n, i % 2000) for i, n in enumerate(sizes)]
    return {"text": write_store(tmp_path / "text", documents, 2048)}


def test_three_stages_share_no_text_while_there_is_other(
    tmp_path: Path, corpus: dict[str, TokenStore]
) -> None:
    stages = [(SPEC, 1024, 40), (SPEC, 1024, 40), (SPEC, 4096, 10)]
    plans = chain(tmp_path, corpus, stages)
    whole = [trained(plan) for plan in plans]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        overlap = whole[i] & whole[j]
        assert not overlap, (i, j)
    assert order_problems(plans, corpus) == []
    restarted = build_plan(corpus, SPEC, 1024, 40, tmp_path / "again")
    assert tokens_equal(restarted, plans[0])


def tokens_equal(first: PackPlan, second: PackPlan) -> bool:
    return all(
        np.array_equal(first.row(i).tokens(), second.row(i).tokens())
        and first.row(i).doc_ids.tolist() == second.row(i).doc_ids.tolist()
        for i in range(len(first))
    )


def test_chains_of_other_policies_buckets_and_lengths(
    tmp_path: Path, corpus: dict[str, TokenStore]
) -> None:
    """Length buckets are shares too: the order holds within a bucket, so here the shares
    are the data's own for the first pass.
    """
    stages = [
        (PackSpec("concat", "split"), 512, 30),
        (PackSpec("best_fit", "drop"), 2048, 20),
        (PackSpec("concat", "split"), 1000, 40),
        (
            PackSpec("best_fit", "split", length_buckets=[LengthBucket(1000, 0.5)]),
            4096,
            20,
        ),
        (
            PackSpec(
                "best_fit",
                "split",
                length_buckets=[LengthBucket(1000, 0.5)],
                short_docs="apart",
            ),
            4096,
            20,
        ),
    ]
    plans = chain(tmp_path, corpus, stages)
    assert order_problems(plans, corpus) == []


def test_a_second_pass_begins_where_the_first_ends(tmp_path: Path) -> None:
    """Whatever the cut between stages, two passes have every token twice."""
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    total = sum(LENGTHS)
    rows = -(-total // 16)
    for cut in (3, rows // 2, rows - 1):
        folder = tmp_path / str(cut)
        plans = chain(
            folder, stores, [(PackSpec("concat", "split"), 16, cut), (SPEC, 40, 60)]
        )
        counts = sum((tokens_of(plan) for plan in plans), Counter())
        assert order_problems(plans, stores) == []
        assert max(counts.values()) - min(counts.values()) <= 2
        assert len(counts) == total


def test_epochs_of_all_stages_count_for_their_limit(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    limited = PackSpec("best_fit", "split", max_epochs=2)
    first = build_plan(stores, SPEC, 32, 15, tmp_path / "p")
    build_plan(stores, limited, 32, 20, tmp_path / "q")
    build_plan(stores, limited, 32, 10, tmp_path / "r", seen={"s1": first})
    with pytest.raises(DataError, match=r"all: 2\.\d+ epochs .* 0\.\d+ of them before"):
        build_plan(stores, limited, 32, 20, tmp_path / "s", seen={"s1": first})


def test_data_of_other_stores_is_not_continued(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", LENGTHS)
    first = build_plan({"a": store}, SPEC, 32, 10, tmp_path / "p")
    other = make_store(tmp_path / "b", LENGTHS, 5)
    with pytest.raises(
        DataError, match="stage s1 cannot be continued: its source a has other"
    ):
        build_plan({"a": other}, SPEC, 32, 10, tmp_path / "q", seen={"s1": first})
    with pytest.raises(DataError, match="its source a is no source now"):
        build_plan({"b": other}, SPEC, 32, 10, tmp_path / "q", seen={"s1": first})
    added = build_plan(
        {"b": other, "a": store}, SPEC, 32, 10, tmp_path / "q", seen={"s1": first}
    )
    assert added.stats["sources"]["b"]["seen_tokens"] == 0
    assert added.stats["sources"]["a"]["seen_tokens"] == first.stats["tokens"]


def test_a_plan_names_the_plans_it_continues(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    first = build_plan(stores, SPEC, 32, 10, tmp_path / "p")
    build_plan(stores, SPEC, 32, 10, tmp_path / "q", seen={"s1": first})
    PackPlan.open(tmp_path / "q", stores, seen=[("s1", first.fingerprint)])
    for other, told in (
        ([], "of s1 .* in the plan, of no stage now"),
        ([("s1", "0" * 32)], "of s1 .* in the plan, of s1 .plan 00000000. now"),
    ):
        with pytest.raises(DataError, match=told):
            PackPlan.open(tmp_path / "q", stores, seen=other)
    with pytest.raises(DataError, match="of no stage in the plan, of s1"):
        PackPlan.open(tmp_path / "p", stores, seen=[("s1", first.fingerprint)])
