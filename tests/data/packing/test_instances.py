"""Updates of conversations: each once an epoch, whole, packed inside its update."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import (
    PackPlan,
    PackSpec,
    build_instance_plan,
    build_plan,
    draw_held_out,
    duplicates_of,
    first_row_of_update,
    shortest_row,
    updates_of_epochs,
    weigh_by_piece,
    write_held_out,
)
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import ConfigError, DataError

SPEC = PackSpec("best_fit", "drop")


def conversations(prefix: Path, lengths: list[int], seed: int = 0) -> TokenStore:
    """Random conversations, the second half of each an answer."""
    generator = np.random.default_rng(seed)
    documents = [generator.integers(4, 5000, length) for length in lengths]
    weights = [np.arange(length) >= length // 2 for length in lengths]
    return write_store(prefix, documents, 5000, weights)


def some_lengths(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(2, 200, count).tolist()


def build(folder: Path, stores: Any, epochs: int = 1, **changes: Any) -> PackPlan:
    arguments = {"spec": SPEC, "row_length": 256, "update_instances": 16, **changes}
    spec, row, update = (
        arguments.pop(name) for name in ("spec", "row_length", "update_instances")
    )
    return build_instance_plan(stores, spec, row, update, epochs, folder, **arguments)


def documents_of(plan: PackPlan, update: int) -> list[tuple[str, int]]:
    """(source, number) of each document of an update; each whole."""
    found = []
    for index in plan.rows_of_update(update):
        row = plan.row(index)
        assert not row.piece_starts.any()
        sizes = np.diff(row.doc_offsets)
        for source, number, size in zip(row.sources, row.doc_ids, sizes, strict=True):
            assert size == plan._stores[source].lengths[number]
            found.append((plan.sources[source], int(number)))
    return found


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 90),
    update=st.integers(1, 40),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
    row=st.sampled_from([200, 256, 1024, 8192]),
    min_rows=st.sampled_from([1, 3]),
)
def test_an_epoch_is_each_conversation_once_whole_in_its_update(
    tmp_path_factory: Any,
    count: int,
    update: int,
    epochs: int,
    seed: int,
    row: int,
    min_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    stores = {
        "a": conversations(folder / "a", some_lengths(count)),
        "b": conversations(folder / "b", [7, 9]),
    }
    plan = build(
        folder / "p",
        stores,
        epochs,
        update_instances=update,
        row_length=row,
        seed=seed,
        spec=PackSpec("best_fit", "drop", min_rows=min_rows),
    )
    everything = {("a", n) for n in range(count)} | {("b", 0), ("b", 1)}
    updates = [documents_of(plan, k) for k in range(plan.updates)]
    an_epoch = -(-len(everything) // update)
    assert len(updates) == epochs * an_epoch
    for epoch in range(epochs):
        own = updates[epoch * an_epoch : (epoch + 1) * an_epoch]
        assert Counter(d for u in own for d in u) == Counter(everything)
        assert [len(u) for u in own[:-1]] == [update] * (an_epoch - 1)
    if epochs > 1 and count > 8:
        assert updates[0] != updates[an_epoch], "each epoch has an order of its own"
    for k in range(plan.updates):
        rows = [plan.row(i) for i in plan.rows_of_update(k)]
        assert len({r.length for r in rows}) == 1, "rows of an update are of one length"
        assert rows[0].length % shortest_row(row) == 0 and rows[0].length <= row
        assert rows[0].length - max(r.real_tokens for r in rows) < shortest_row(row)
        pairs = plan.attention_pairs([r.index for r in rows]).tolist()
        assert pairs == [visible_pairs(r) for r in rows]
        places = plan.places(slice(rows[0].index, rows[-1].index + 1))
        assert places.tolist() == [r.length for r in rows]


def visible_pairs(row: Any) -> int:
    sizes = [*np.diff(row.doc_offsets).tolist(), row.length - row.real_tokens]
    return sum(n * (n + 1) // 2 for n in sizes)


def test_more_epochs_keep_every_update_and_are_those_made_at_once(
    tmp_path: Path,
) -> None:
    stores = {"a": conversations(tmp_path / "a", some_lengths(100))}
    first = build(tmp_path / "p", stores, 1)
    before = [documents_of(first, k) for k in range(first.updates)]
    fingerprint = first.fingerprint
    assert build(tmp_path / "p", stores, 1).fingerprint == fingerprint
    longer = build(tmp_path / "p", stores, 3)
    assert [documents_of(longer, k) for k in range(len(before))] == before
    assert longer.extends(fingerprint) and longer.updates == 3 * first.updates
    assert longer.fingerprint == build(tmp_path / "q", stores, 3).fingerprint
    with pytest.raises(DataError, match="epochs: 3 in the plan, 2 now"):
        build(tmp_path / "p", stores, 2)


def test_what_differs_is_another_plan(tmp_path: Path) -> None:
    stores = {"a": conversations(tmp_path / "a", some_lengths(50))}
    build(tmp_path / "p", stores)
    for changes, told in (
        ({"update_instances": 8}, "update_instances: 16 in the plan, 8 now"),
        ({"seed": 3}, "seed: 0 in the plan, 3 now"),
        ({"row_length": 512}, "row_length"),
        ({"spec": PackSpec("best_fit", "drop", sampling={"a": 2})}, "spec.sampling"),
        ({"spec": PackSpec("best_fit", "drop", min_rows=4)}, "spec.min_rows"),
    ):
        with pytest.raises(DataError, match=told):
            build(tmp_path / "p", stores, **changes)
    with pytest.raises(DataError, match="another plan is there"):
        build_plan(stores, SPEC, 256, 4, tmp_path / "p")
    build_plan(stores, SPEC, 256, 4, tmp_path / "q")
    with pytest.raises(DataError, match="update_instances: None in the plan, 16 now"):
        build(tmp_path / "q", stores)
    with pytest.raises(DataError, match="built from something else"):
        PackPlan.open(tmp_path / "p", stores, update_instances=32, epochs=1)


def test_sampling_and_caps_by_source(tmp_path: Path) -> None:
    stores = {
        name: conversations(tmp_path / name, some_lengths(count, seed))
        for name, count, seed in (("a", 40, 1), ("b", 30, 2), ("c", 25, 3))
    }
    spec = PackSpec(
        "best_fit",
        "drop",
        sampling={"a": 0.5, "b": 2},
        max_instances={"b": 10, "c": 12},
    )
    plan = build(tmp_path / "p", stores, 2, spec=spec)
    half = plan.updates // 2
    epochs = [
        Counter(d for k in part for d in documents_of(plan, k))
        for part in (range(half), range(half, 2 * half))
    ]
    for epoch in epochs:
        by_source = Counter()
        for (name, _), times in epoch.items():
            by_source[name] += times
        assert by_source == {"a": 20, "b": 20, "c": 12}
        assert {times for (name, _), times in epoch.items() if name == "b"} == {2}
    of_a = [{n for name, n in epoch if name == "a"} for epoch in epochs]
    assert of_a[0] | of_a[1] == set(range(40)), "two halves are each of them once"
    chosen = [{d for d in epoch if d[0] in "bc"} for epoch in epochs]
    assert chosen[0] == chosen[1], "the same ones are used in each epoch"
    assert plan.stats["conversations"]["sources"]["b"]["surplus"] == 20


def test_conversations_and_text_in_one_update(tmp_path: Path) -> None:
    """Text has no weights: all of it is predicted, and what is longer than a row is cut."""
    talk = conversations(tmp_path / "talk", [40, 60, 80])
    text = write_store(tmp_path / "text", [np.arange(1000) % 99, np.arange(30)], 5000)
    plan = build(
        tmp_path / "p",
        {"talk": talk, "text": text},
        spec=PackSpec("best_fit", "split"),
        update_instances=5,
    )
    assert plan.updates == 1
    rows = [plan.row(i) for i in plan.rows_of_update(0)]
    pieces = sum(int((row.sources == 1).sum()) for row in rows)
    assert pieces == 4 + 1, "1,000 tokens are four pieces of 256"
    answers = sum(n - n // 2 for n in (40, 60, 80))
    assert plan.predicted_of_update(0) == answers + 1030 - pieces
    assert plan.predicted_of_update(0) == sum((r.targets() >= 0).sum() for r in rows)


def test_a_conversation_is_never_cut(tmp_path: Path) -> None:
    stores = {"a": conversations(tmp_path / "a", [300, 20, 30])}
    with pytest.raises(DataError, match="1 conversations are longer than a row of 256"):
        build(tmp_path / "p", stores, spec=PackSpec("best_fit", "split"))
    plan = build(tmp_path / "p", stores)
    assert plan.stats["sources"]["a"]["dropped"]["long_documents"] == 1
    with pytest.raises(ConfigError, match="cuts conversations"):
        build(tmp_path / "q", stores, spec=PackSpec("concat", "drop"))
    for spec, told in (
        (PackSpec("best_fit", "drop", weights={"a": 1.0}), "sampling says"),
        (PackSpec("best_fit", "drop", max_epochs=2), "epochs says"),
        (PackSpec("best_fit", "drop", sampling={"a": -1}), r"sampling\.a"),
        (PackSpec("best_fit", "drop", sampling={"a": float("nan")}), r"sampling\.a"),
        (PackSpec("best_fit", "drop", sampling={"a": 0}), r"sampling\.a"),
        (PackSpec("best_fit", "drop", max_instances={"a": 0}), r"max_instances\.a"),
        (PackSpec("best_fit", "drop", max_instances={"b": 1}), "no such source"),
        (PackSpec("best_fit", "drop", min_rows=0), "min_rows"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(tmp_path / "q", stores, spec=spec)
    with pytest.raises(DataError, match="no conversation"):
        few = PackSpec("best_fit", "drop", sampling={"a": 0.1})
        build(tmp_path / "q", stores, spec=few)
    assert not (tmp_path / "q").exists()


def test_held_out_conversations_and_what_is_like_them_are_never_trained(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(5)
    tools = generator.integers(4, 5000, 150)  # the same for all: no sign of a duplicate
    asked = [generator.integers(4, 5000, 20) for _ in range(60)]
    answers = [generator.integers(4, 5000, 30) for _ in range(60)]
    spec = PackSpec("best_fit", "drop", held_out_instances=10)

    def store(name: str, pairs: list[Any]) -> TokenStore:
        documents = [np.concatenate((tools, ask, answer)) for ask, answer in pairs]
        weights = [np.arange(d.size) >= d.size - 30 for d in documents]
        return write_store(tmp_path / name, documents, 5000, weights)

    plain = store("a", list(zip(asked, answers, strict=True)))
    chosen = draw_held_out({"a": plain}, spec, 7)["a"].tolist()
    assert len(chosen) == 10
    others = [n for n in range(60) if n not in chosen]
    # 0: word for word; 1: asked otherwise, the same answer; 2: the answer but for its end
    again, reworded, nearly = others[:3]
    asked[again], answers[again] = asked[chosen[0]], answers[chosen[0]]
    answers[reworded] = answers[chosen[1]]
    answers[nearly] = np.concatenate((answers[chosen[2]][:25], answers[nearly][25:]))
    stores = {"a": store("a", list(zip(asked, answers, strict=True)))}
    assert draw_held_out(stores, spec, 7)["a"].tolist() == chosen
    assert draw_held_out(stores, spec, 8)["a"].tolist() != chosen
    kept = write_held_out(tmp_path / "kept", stores, draw_held_out(stores, spec, 7))
    assert kept.n_documents == 10 and kept.weights is not None
    alike = sorted([*chosen, again, reworded, nearly])
    assert duplicates_of(stores, kept)["a"].tolist() == alike
    plan = build(tmp_path / "p", stores, spec=spec, seed=7, conversations=kept)
    trained = {n for k in range(plan.updates) for _, n in documents_of(plan, k)}
    assert trained == set(range(60)) - set(alike)
    counts = plan.stats["conversations"]["sources"]["a"]
    assert (counts["held_out"], counts["used"]) == (10, 47)
    assert plan.stats["sources"]["a"]["dropped"]["contaminated_documents"] == 3
    with pytest.raises(DataError, match="leaves none to train on"):
        draw_held_out(stores, PackSpec("best_fit", "drop", held_out_instances=60), 7)


def test_text_beside_conversations_is_not_held_out(tmp_path: Path) -> None:
    stores = {
        "talk": conversations(tmp_path / "talk", [20] * 30),
        "more": conversations(tmp_path / "more", [20] * 60, seed=2),
        "text": write_store(tmp_path / "text", [np.arange(50)] * 40, 5000),
    }
    drawn = draw_held_out(stores, PackSpec("best_fit", "drop", held_out_instances=9), 0)
    assert {name: numbers.size for name, numbers in drawn.items()} == {
        "talk": 3,
        "more": 6,
    }


def test_weights_by_piece_make_the_mean_of_means(tmp_path: Path) -> None:
    stores = {"a": conversations(tmp_path / "a", some_lengths(30))}
    plan = build(tmp_path / "p", stores, update_instances=30)
    rows = weigh_by_piece([plan.row(i) for i in plan.rows_of_update(0)])
    generator = np.random.default_rng(0)
    weighted, means = 0.0, []
    for row in rows:
        losses, targets = generator.random(row.length), row.targets()
        counts = row.loss_weights(0, row.length)
        assert np.array_equal(row.loss_weights(3, 9), counts[3:9])
        weighted += float((losses * counts)[targets >= 0].sum())
        for begin, end in pairwise(row.doc_offsets.tolist()):
            own = targets[begin:end] >= 0
            means += [losses[begin:end][own].mean()] if own.any() else []
    predicted = sum(row.predicted for row in rows)
    # fp32 weights: 24 bits each
    assert weighted / predicted == pytest.approx(np.mean(means), rel=1e-6)


@pytest.mark.parametrize("sampling", [{}, {"a": 0.3}, {"a": 2.5, "b": 0.7}])
def test_updates_of_fewer_epochs_are_known(
    tmp_path: Path, sampling: dict[str, float]
) -> None:
    stores = {
        name: conversations(tmp_path / name, some_lengths(count))
        for name, count in (("a", 40), ("b", 11))
    }
    spec = replace(SPEC, sampling=sampling)
    counts = (1, 2, 3, 5)
    plans = [build(tmp_path / f"plan-{n}", stores, n, spec=spec) for n in counts]
    for plan, epochs in zip(plans, counts, strict=True):
        updates = updates_of_epochs(plans[-1].statement, epochs)
        assert updates == plan.updates
        assert first_row_of_update(plans[-1].statement, updates) == len(plan)
