"""The simulated update against the formula, against another simulation of 1F1B, and against
what a trace must be.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from alia_ctx.planner.timeline import Timeline, simulate
from alia_ctx.planner.timing import row_time, update_time
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.train.balance import pipeline_time
from tests.planner.test_planner import ALIA

# Nothing takes time between pipeline ranks, so that sums are the formula's.
NODES = ClusterSpec(ranks_per_node=4)
NEAR = replace(NODES, node_gb_per_s=1e9, network_gb_per_s=1e9)


def workload(layout: Layout, world: int, rows: int, **changes: object) -> Workload:
    tokens = rows * 32_768
    work = Workload(ALIA, 32_768, layout, world, tokens, tokens)
    return replace(work, **changes)  # type: ignore[arg-type]


def equal_shares(work: Workload) -> list[list[tuple[int, float]]]:
    dp = work.data_parallel
    rows = [(row, work.causal_pairs) for row in range(work.rows_per_update)]
    return [rows[rank::dp] for rank in range(dp)]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("overlap", [True, False])
def test_without_a_pipeline_it_is_the_formula(recompute: str, overlap: bool) -> None:
    work = workload(Layout(4, 2, 1), 32, 16, recompute=recompute, overlap=overlap)
    simulated = simulate(work, NODES, equal_shares(work))
    assert simulated.seconds == pytest.approx(update_time(work, NODES).total)


def test_with_a_pipeline_it_is_the_formula_but_for_the_head() -> None:
    work = workload(Layout(4, 2, 4), 32, 16)
    headless = replace(work, model=replace(ALIA, vocab_size=1))
    simulated = simulate(headless, NEAR, equal_shares(headless))
    assert simulated.seconds == pytest.approx(
        update_time(headless, NEAR).total, rel=1e-4
    )
    # The formula takes the last rank, which has the head, for all.
    with_head = simulate(work, NEAR, equal_shares(work)).seconds
    assert with_head < update_time(work, NEAR).total
    assert with_head > simulated.seconds


@pytest.mark.parametrize("pp", [2, 3, 8])
def test_unequal_rows_take_what_another_simulation_says(pp: int) -> None:
    """`train.balance` has one for rows whose backward is twice their forward."""
    generator = np.random.default_rng(pp)
    lengths = generator.integers(1, 100, 11) * 1e6
    # Matrices alone weigh nothing here, so that work is in proportion to pairs.
    model = replace(ALIA, vocab_size=1, intermediate_size=1, hidden_size=1)
    model = replace(model, num_hidden_layers=48)
    work = replace(workload(Layout(1, 1, pp), pp, 11), model=model)
    shares = [[(row, float(pairs)) for row, pairs in enumerate(lengths)]]
    simulated = simulate(work, NEAR, shares).seconds

    def whole(pairs: float) -> float:
        ways = ("forward", "backward")
        return pp * sum(row_time(work, NEAR, 0, way, pairs).total for way in ways)

    # 2.5 forwards a backward here, 2 there: between the two bounds of that.
    other = pipeline_time([whole(pairs) for pairs in lengths], pp)
    assert simulated == pytest.approx(other, rel=0.08)
    assert simulated >= max(sum(map(whole, lengths)) / pp, whole(max(lengths)))


def test_a_longer_row_of_one_rank_holds_the_reduction_up() -> None:
    work = workload(Layout(4, 8, 1), 64, 2)
    even = simulate(work, NODES, [[(0, 1e8)], [(1, 1e8)]])
    uneven = simulate(work, NODES, [[(0, 5e8)], [(1, 1e8)]])
    ends = [
        max(e.end for e in uneven.events if e.lane[0] == dp and e.lane[2] == "messages")
        for dp in (0, 1)
    ]
    assert ends[1] > 0.99 * ends[0] and uneven.seconds > even.seconds


# --- lanes and traces -----------------------------------------------------------------


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    work = workload(Layout(4, 2, 4), 64, 13)
    shares = [[(row, 1e8 * (row + 1)) for row in range(13)][dp::2] for dp in range(2)]
    return simulate(work, NODES, shares)


def test_no_lane_does_two_things_at_once(timeline: Timeline) -> None:
    lanes = defaultdict(list)
    for event in timeline.events:
        lanes[event.lane].append(event)
    assert len(lanes) == 2 * 4 * 2
    for events in lanes.values():
        for before, after in itertools.pairwise(events):
            assert after.start >= before.end - 1e-9


def test_each_row_passes_each_rank_once_each_way(timeline: Timeline) -> None:
    work = workload(Layout(4, 2, 4), 64, 13)
    for row in range(13):
        for rank in range(4):
            for way in ("forward", "backward"):
                parts = [
                    e
                    for e in timeline.events
                    if (e.row, e.lane[1], e.direction) == (row, rank, way)
                ]
                expected = row_time(work, NODES, rank, way, 1e8 * (row + 1))
                total = sum(event.seconds for event in parts)
                assert total == pytest.approx(expected.total)


def test_no_rank_begins_before_its_input_is_there(timeline: Timeline) -> None:
    first, last = {}, {}
    for event in timeline.events:
        key = (event.row, event.lane[1], event.direction)
        first[key] = min(first.get(key, 1e9), event.start)
        last[key] = max(last.get(key, 0.0), event.end)
    for row in range(13):
        for rank in range(3):
            assert first[row, rank + 1, "forward"] > last[row, rank, "forward"]
            assert first[row, rank, "backward"] > last[row, rank + 1, "backward"]
        assert first[row, 3, "backward"] >= last[row, 3, "forward"]


def test_busy_and_idle_add_up(timeline: Timeline) -> None:
    for lane in {event.lane for event in timeline.events}:
        sums = timeline.busy(lane)
        assert sum(sums.values()) == pytest.approx(timeline.seconds)
        assert sums["idle"] >= -1e-9


def test_the_trace_has_the_form_that_viewers_read(timeline: Timeline) -> None:
    """Trace Event Format: complete events have ts and dur in microseconds, metadata events
    name processes and threads.
    """
    trace = json.loads(json.dumps(timeline.to_trace()))
    events = trace["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    names = [event for event in events if event["ph"] == "M"]
    assert len(slices) + len(names) == len(events)
    for event in slices:
        assert {"name", "cat", "ts", "dur", "pid", "tid"} <= event.keys()
        assert event["ts"] >= 0 and event["dur"] > 0
    total = sum(event["dur"] for event in slices) / 1e6
    assert total == pytest.approx(sum(event.seconds for event in timeline.events))
    threads = {(e["pid"], e["tid"]) for e in slices}
    named = {(e["pid"], e["tid"]) for e in names if e["name"] == "thread_name"}
    assert threads == named
    assert {e["pid"] for e in names if e["name"] == "process_name"} == {0, 1}


def test_only_the_busiest_ranks_are_drawn() -> None:
    work = workload(Layout(4, 4, 1), 64, 4)
    shares = [[(row, 1e8 * (row + 1))] for row in range(4)]
    drawn = simulate(work, NODES, shares, drawn=2)
    assert {event.lane[0] for event in drawn.events} == {2, 3}
    assert drawn.seconds == pytest.approx(simulate(work, NODES, shares).seconds)
