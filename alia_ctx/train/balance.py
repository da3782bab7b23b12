"""Even out the work of an update: which rows go to which data-parallel rank, and in which order.

The gradient is a sum over all rows of the update, so any split gives the same update;
an even one gives it soonest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_ROUNDS = 1000  # exchanges made per update at most; some ten are usual
# of the lower bound: what is closer to the best possible than this is not worth the search
_ENOUGH = 1.001


def assign_rows(work: Sequence[float], ranks: int, pp: int = 1) -> list[list[int]]:
    """Split rows over data-parallel ranks so that the largest sum of work of a rank is as
    small as we can make it.

    work: of each row of the update (FLOPs, or any unit); ranks: data-parallel size; pp:
    pipeline-parallel size. Returns, for each rank, its rows as indices into `work`, in
    the order in which to run them as microbatches. Ranks may get unequal numbers of
    rows, none only if there are fewer rows than ranks. Deterministic.

    Longest-processing-time-first (Graham 1969) and the largest differencing method
    (Karmarkar and Karp 1982), each improved by moves and exchanges; the better one
    counts.
    """
    order = sorted(range(len(work)), key=lambda row: (-work[row], row))
    candidates = [_longest_first(work, order, ranks), _differencing(work, order, ranks)]
    enough = least_possible(work, ranks) * _ENOUGH
    improved = [_improve(work, groups, enough) for groups in candidates]
    best = min(improved, key=lambda groups: _largest(work, groups))
    return [_in_pipeline_order(work, sorted(group), pp) for group in best]


def least_possible(work: Sequence[float], ranks: int) -> float:
    """A lower bound on the largest sum of work of a rank, for any split of these rows.

    The largest of: the mean; the largest row; for each k, the k+1 smallest of the
    k*ranks+1 largest rows, as some rank gets k+1 of those; and for each k, what must
    happen as either some rank gets more than k rows, which weigh at least as much as
    the k+1 lightest, or no rank does, and the one with the largest row has enough
    others to leave no more.
    """
    if not work:
        return 0.0
    falling = sorted(work, reverse=True)
    rows = len(falling)
    lightest = [0.0, *accumulate(reversed(falling))]  # sum of the n lightest
    bounds = [lightest[-1] / ranks, falling[0]]
    for k in range(1, (rows - 1) // ranks + 1):
        bounds.append(sum(falling[k * ranks - k : k * ranks + 1]))
    for k in range(-(-rows // ranks), rows):
        others = max(0, rows - (ranks - 1) * k - 1)
        bounds.append(min(lightest[k + 1], falling[0] + lightest[others]))
    return max(bounds)


def imbalance(work: Sequence[float], groups: Sequence[Sequence[int]]) -> float:
    """Largest over mean work of the ranks; 1 is even."""
    return _largest(work, groups) * len(groups) / sum(work)


def pipeline_time(work: Sequence[float], pp: int) -> float:
    """Time of one rank's microbatches through a 1F1B pipeline (PipeDream-flush), in
    units of `work`.

    work: of each microbatch, in order, forward and backward over all `pp` ranks; a
    backward is twice a forward. Each rank runs min(microbatches, pp - 1 - its rank)
    forwards ahead, then alternates. Communication takes no time.
    """
    if not work:
        return 0.0
    forward = [row / (3 * pp) for row in work]
    schedules = [_one_f_one_b(len(work), pp_rank, pp) for pp_rank in range(pp)]
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * pp
    cursor = [0] * pp
    waiting = True
    while waiting:
        waiting = False
        for pp_rank, schedule in enumerate(schedules):
            while cursor[pp_rank] < len(schedule):
                step, batch = schedule[cursor[pp_rank]]
                ready = _ready(done, step, batch, pp_rank, pp)
                if ready is None:
                    waiting = True
                    break
                clock[pp_rank] = max(clock[pp_rank], ready) + forward[batch] * (
                    1 if step == "F" else 2
                )
                done[step, batch, pp_rank] = clock[pp_rank]
                cursor[pp_rank] += 1
    return max(clock)


def _one_f_one_b(batches: int, pp_rank: int, pp: int) -> list[tuple[str, int]]:
    ahead = min(batches, pp - 1 - pp_rank)
    schedule = [("F", batch) for batch in range(ahead)]
    for batch in range(batches):
        if batch + ahead < batches:
            schedule.append(("F", batch + ahead))
        schedule.append(("B", batch))
    return schedule


def _ready(
    done: dict[tuple[str, int, int], float],
    step: str,
    batch: int,
    pp_rank: int,
    pp: int,
) -> float | None:
    """When the input of a step has been computed; None where it has not been yet."""
    if step == "F":
        return 0.0 if pp_rank == 0 else done.get(("F", batch, pp_rank - 1))
    return (
        done.get(("F", batch, pp_rank))
        if pp_rank == pp - 1
        else done.get(("B", batch, pp_rank + 1))
    )


def _sum(work: Sequence[float], group: Sequence[int]) -> float:
    return sum(work[row] for row in group)


def _largest(work: Sequence[float], groups: Sequence[Sequence[int]]) -> float:
    return max(_sum(work, group) for group in groups)


def _longest_first(
    work: Sequence[float], order: list[int], ranks: int
) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0.0] * ranks
    for row in order:
        rank = min(range(ranks), key=lambda r: (sums[r], len(groups[r]), r))
        groups[rank].append(row)
        sums[rank] += work[row]
    return groups


def _differencing(
    work: Sequence[float], order: list[int], ranks: int
) -> list[list[int]]:
    """Join the two partial splits of widest spread, heavy groups with light ones, until
    one split is left.
    """
    splits = [
        [(work[row], [row])] + [(0.0, []) for _ in range(ranks - 1)] for row in order
    ]
    if not splits:
        return [[] for _ in range(ranks)]
    while len(splits) > 1:
        splits.sort(key=lambda split: split[0][0] - split[-1][0])
        first, second = splits.pop(), splits.pop()
        joined = [
            (a + b, rows + more)
            for (a, rows), (b, more) in zip(first, reversed(second), strict=True)
        ]
        splits.append(sorted(joined, key=lambda group: -group[0]))
    return [rows for _, rows in splits[0]]


def _improve(
    work: Sequence[float], groups: list[list[int]], enough: float
) -> list[list[int]]:
    """Take the best move or exchange between the heaviest rank and another until none
    helps, or it is `enough`.
    """
    groups = _without_idle(work, [list(group) for group in groups])
    sums = [_sum(work, group) for group in groups]
    for _ in range(_ROUNDS):
        heavy = max(range(len(groups)), key=sums.__getitem__)
        step = _best_step(work, groups, sums, heavy) if sums[heavy] > enough else None
        if step is None:
            break
        out, other, back = step
        _exchange(groups, heavy, other, out, back)
        for rank in (heavy, other):
            sums[rank] = _sum(work, groups[rank])
    return groups


def _without_idle(work: Sequence[float], groups: list[list[int]]) -> list[list[int]]:
    """Give a rank without rows the lightest row of a rank that has several."""
    for group in groups:
        donor = max(groups, key=len)
        if not group and len(donor) > 1:
            row = min(donor, key=work.__getitem__)
            donor.remove(row)
            group.append(row)
    return groups


def _best_step(
    work: Sequence[float], groups: list[list[int]], sums: list[float], heavy: int
) -> tuple[tuple[int, ...], int, tuple[int, ...]] | None:
    """Rows that leave the heaviest rank, the rank that takes them, and the rows that come back."""
    best = None
    least = sums[heavy] * (1 - 1e-9)
    leaving = [(row,) for row in groups[heavy]]
    for other, group in enumerate(groups):
        if other == heavy:
            continue
        coming: list[tuple[int, ...]] = [(row,) for row in group]
        if len(groups[heavy]) > 1:
            coming.append(())
        coming += [(a, b) for i, a in enumerate(group) for b in group[:i]]
        for out in leaving:
            for back in coming:
                change = work[out[0]] - sum(work[row] for row in back)
                larger = max(sums[heavy] - change, sums[other] + change)
                if change > 0 and larger < least:
                    least, best = larger, (out, other, back)
    return best


def _exchange(
    groups: list[list[int]],
    heavy: int,
    other: int,
    out: tuple[int, ...],
    back: tuple[int, ...],
) -> None:
    groups[heavy] = [row for row in groups[heavy] if row not in out] + list(back)
    groups[other] = [row for row in groups[other] if row not in back] + list(out)


def _in_pipeline_order(work: Sequence[float], group: list[int], pp: int) -> list[int]:
    """Order microbatches for the shortest pipeline:

    small ones at the ends, where the ranks of the pipeline wait for each other.
    """
    if pp == 1 or len(group) < 3:
        return group
    rising = sorted(group, key=lambda row: (work[row], row))
    candidates = [group, rising, rising[::-1], rising[::2] + rising[1::2][::-1]]
    return min(
        candidates,
        key=lambda order: pipeline_time([work[row] for row in order], pp),
    )
