"""An update as events: which pipeline rank does what when, from the rows of each
data-parallel rank, 1F1B, and the bytes over links.

It takes the same times of a row as `timing.update_time`, which adds them for equal rows;
here rows may differ, pipeline ranks wait for each other, and hidden states take time
from one to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.planner.timing import (
    Direction,
    RowTime,
    boundary_seconds,
    data_parallel_seconds,
    once_seconds,
    row_time,
)
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec

# By which a trace of ours is known, of whatever release.
TRACE_MARK = "simulated by alia-ctx plan, not measured"
# Parts of a row's time, in the order in which they are drawn.
_PARTS = (
    ("matrices", "matrices"),
    ("attention", "attention"),
    ("gradients", "gradients added"),
    ("tensor_parallel", "tensor parallel messages"),
    ("context_parallel", "keys and values"),
    ("offload", "offloaded activations"),
)


@dataclass(frozen=True)
class Event:
    """What a lane does from `start` for `seconds`; `row` is the row's number in the update,
    -1 where it is of none.

    lane: (data-parallel rank, pipeline rank, "compute" or "messages").
    """

    lane: tuple[int, int, str]
    kind: str
    start: float
    seconds: float
    row: int = -1
    direction: str = ""

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass(frozen=True)
class Timeline:
    """The events of an update, those of each lane in their order."""

    events: tuple[Event, ...]
    data_parallel_ranks: int

    @property
    def seconds(self) -> float:
        """From the first event to the end of the last."""
        return max(event.end for event in self.events)

    def busy(self, lane: tuple[int, int, str]) -> dict[str, float]:
        """Seconds of a lane by kind of event, and `idle` for the rest of the update."""
        sums: dict[str, float] = {}
        for event in self.events:
            if event.lane == lane:
                sums[event.kind] = sums.get(event.kind, 0.0) + event.seconds
        return {**sums, "idle": self.seconds - sum(sums.values())}

    def to_trace(self) -> dict[str, Any]:
        """In the Trace Event Format, which Perfetto and chrome://tracing show: a process for
        each data-parallel rank, a thread for each lane, times in microseconds.
        """
        lanes = sorted({event.lane for event in self.events})
        threads = {lane: 2 * lane[1] + (lane[2] == "messages") for lane in lanes}
        names = [
            _named("process_name", dp, 0, f"data-parallel rank {dp}")
            for dp in sorted({lane[0] for lane in lanes})
        ]
        names += [
            _named(
                "thread_name", lane[0], thread, f"pipeline rank {lane[1]}, {lane[2]}"
            )
            for lane, thread in threads.items()
        ]
        slices = [
            {
                "name": _title(event),
                "cat": event.kind,
                "ph": "X",
                "ts": event.start * 1e6,
                "dur": event.seconds * 1e6,
                "pid": event.lane[0],
                "tid": threads[event.lane],
                "args": {"row": event.row, "direction": event.direction},
            }
            for event in self.events
        ]
        return {
            "traceEvents": [*names, *slices],
            "displayTimeUnit": "ms",
            "otherData": {
                "seconds": self.seconds,
                "data-parallel ranks": self.data_parallel_ranks,
                "note": TRACE_MARK,
            },
        }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    ids = {"pid": process, "tid": thread}
    return {"name": kind, "ph": "M", **ids, "args": {"name": name}}


def _title(event: Event) -> str:
    return event.kind if event.row < 0 else f"{event.kind}, row {event.row}"


def simulate(
    work: Workload,
    cluster: ClusterSpec,
    shares: Sequence[Sequence[tuple[int, float]]],
    drawn: int | None = None,
) -> Timeline:
    """One update of `work`, whose rows are dealt to data-parallel ranks as in `shares`: for
    each rank (number of the row, query-key pairs of it), in the order in which they run.

    `drawn`: only so many data-parallel ranks, those with most pairs; all take part in
    the reduction, which begins when the last of them is there.
    """
    ranks = [_Pipeline(work, cluster, dp, rows) for dp, rows in enumerate(shares)]
    order = sorted(ranks, key=lambda rank: -sum(pairs for _, pairs in rank.rows))
    numbers = [rank.number for rank in order[:drawn]]
    events = [
        event for rank in ranks if rank.number in numbers for event in rank.events
    ]
    for pp_rank in range(work.layout.pp):
        events += _reduction(ranks, numbers, pp_rank)
    events.sort(key=lambda event: (event.lane, event.start))
    return Timeline(tuple(events), len(shares))


class _Pipeline:
    """The rows of one data-parallel rank through its pipeline ranks.

    `clock` has when each pipeline rank is done with its rows.
    """

    def __init__(
        self,
        work: Workload,
        cluster: ClusterSpec,
        number: int,
        rows: Sequence[tuple[int, float]],
    ) -> None:
        self.work, self.cluster, self.number = work, cluster, number
        self.rows = list(rows)
        self.events: list[Event] = []
        self.clock = [0.0] * work.layout.pp
        self._arrived: dict[tuple[Direction, int, int], float] = {}
        self._run()

    def _run(self) -> None:
        """Let every pipeline rank do its next step as soon as the input is there."""
        pp = self.work.layout.pp
        steps = [list(_one_f_one_b(len(self.rows), rank, pp)) for rank in range(pp)]
        while any(steps):
            for rank in range(pp):
                while (
                    steps[rank] and (ready := self._ready(rank, *steps[rank][0])) >= 0
                ):
                    self._do(rank, *steps[rank].pop(0), ready)

    def _ready(self, rank: int, direction: Direction, row: int) -> float:
        """When the input of a step is there; -1 where it has not been computed yet."""
        first = rank == 0 and direction == "forward"
        return 0.0 if first else self._arrived.get((direction, row, rank), -1.0)

    def _do(self, rank: int, direction: Direction, row: int, ready: float) -> None:
        number, pairs = self.rows[row]
        lane = (self.number, rank, "compute")
        at = max(self.clock[rank], ready)
        times = row_time(self.work, self.cluster, rank, direction, pairs)
        for kind, seconds in _parts(times):
            self.events.append(Event(lane, kind, at, seconds, number, direction))
            at += seconds
        self.clock[rank] = at
        last = rank == self.work.layout.pp - 1
        if direction == "forward" and last:
            self._arrived["backward", row, rank] = at
            return
        there = rank + 1 if direction == "forward" else rank - 1
        if there >= 0:
            seconds = boundary_seconds(self.work, self.cluster)
            self._arrived[direction, row, there] = at + seconds

    def hidden(self, rank: int) -> tuple[float, float]:
        """Seconds of (the last backward, the first forward), which hide messages."""
        if not (self.work.overlap and self.rows):
            return 0.0, 0.0
        (_, first), (_, last) = self.rows[0], self.rows[-1]
        backward = row_time(self.work, self.cluster, rank, "backward", last)
        forward = row_time(self.work, self.cluster, rank, "forward", first)
        return backward.total, forward.total


def _reduction(
    ranks: Sequence[_Pipeline], numbers: Sequence[int], pp_rank: int
) -> Iterator[Event]:
    """The reduction of a pipeline rank's gradients and the gathering of its weights, on the
    lanes of messages of the data-parallel ranks `numbers`, and between them the step.

    All ranks take part from beginning to end. With overlap the reduction runs beside the
    last row's backward, as far as that hides it on each of them; of the gathering, what
    the first row's forward of the next update leaves is drawn.
    """
    reduction, gathering = data_parallel_seconds(ranks[0].work, ranks[0].cluster)
    hidden = [rank.hidden(pp_rank) for rank in ranks]
    start = max(
        rank.clock[pp_rank] - min(reduction, backward)
        for rank, (backward, _) in zip(ranks, hidden, strict=True)
    )
    left = max(0.0, gathering - min(forward for _, forward in hidden))
    step = sum(once_seconds(ranks[0].work, ranks[0].cluster, pp_rank))
    for number in numbers:
        lane = (number, pp_rank, "messages")
        if reduction:
            yield Event(lane, "gradients' reduction", start, reduction)
        yield Event((number, pp_rank, "compute"), "step", start + reduction, step)
        if left:
            yield Event(lane, "weights' gathering", start + reduction + step, left)


def _parts(times: RowTime) -> Iterator[tuple[str, float]]:
    for name, kind in _PARTS:
        if seconds := getattr(times, name):
            yield kind, seconds


def _one_f_one_b(rows: int, rank: int, pp: int) -> Iterator[tuple[Direction, int]]:
    """The steps of a pipeline rank (PipeDream-flush, arXiv 2006.09503): so many forwards
    ahead as there are ranks behind it, then forward and backward in turn.
    """
    ahead = min(rows, pp - 1 - rank)
    yield from (("forward", row) for row in range(ahead))
    for row in range(rows):
        if row + ahead < rows:
            yield "forward", row + ahead
        yield "backward", row
