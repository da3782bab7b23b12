"""The planner's memory and seconds beside all that GPUs measured (`measured_rows.py`).

    python benchmarks/planner_against_gpu.py [--fit]

prints the table of docs/benchmarks/gpu-several.md: both by the constants of the cards' files
in configs/clusters/. `--fit` searches for the two constants anew: least squares of the
logarithm of seconds over a grid of 0.01, on every second row in bf16 with FlashAttention 3
or 4, of both cards together.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measured_rows import FAST, Measured, measured_rows

# The aims, of memory and of time.
GIB, SECONDS = 0.05, 0.15


def to_fit(rows: Iterable[Measured]) -> list[Measured]:
    """The half that constants of time are fitted to; others are quoted. FP8 and slower
    kernels have figures of their own.
    """
    plain = [
        row
        for row in rows
        if row.seconds and row.fp8 == "off" and row.kernel in FAST and not row.later
    ]
    return plain[::2]


def fit(rows: Sequence[Measured]) -> tuple[float, float]:
    """(efficiency, attention_efficiency) that are nearest to the rows' seconds."""

    def misfit(pair: tuple[float, float]) -> float:
        return sum(
            math.log(seconds(row, *pair) / row.seconds) ** 2
            for row in rows
            if row.seconds
        )

    steps = [n / 100 for n in range(48, 73)]
    return min(itertools.product(steps, steps), key=misfit)


def seconds(row: Measured, efficiency: float, attention: float) -> float:
    """The planner's, by another pair of constants."""
    cluster = replace(
        row.machine, efficiency=efficiency, attention_efficiency=attention
    )
    return row.planned_seconds(cluster)


def missed(row: Measured) -> list[str]:
    """The aims that the planner misses on a row, in words."""
    words = []
    if row.gib and abs(row.planned_gib() / row.gib - 1) > GIB:
        words.append("memory missed")
    if row.seconds and abs(row.planned_seconds() / row.seconds - 1) > SECONDS:
        words.append("time missed")
    return words


def table() -> Iterable[str]:
    """Lines of a table in Markdown, a row each."""
    rows = measured_rows()
    fitted = to_fit(rows)
    yield "| card | case | GiB | planned | seconds | planned | |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for row in rows:
        gib = took = there = planned = ""
        if row.gib:
            there, ours = f"{row.gib:.1f}", row.planned_gib()
            gib = f"{ours:.1f} ({ours / row.gib - 1:+.1%})"
        if row.seconds:
            took, ours = f"{row.seconds:.3g}", row.planned_seconds()
            planned = f"{ours:.3g} ({ours / row.seconds - 1:+.1%})"
        card = f"{row.gpus} {row.card}"
        marks = ["fitted"] * (row in fitted) + ["later"] * row.later
        notes = ", ".join([*missed(row), *marks])
        yield (
            f"| {card} | {row.words} | {there} | {gib} | {took} | {planned} | {notes} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        pair = fit(to_fit(measured_rows()))
        print(
            f"fitted to every second row: efficiency {pair[0]}, attention {pair[1]}\n"
        )
    print("\n".join(table()))


if __name__ == "__main__":
    main()
