"""What the planner says of others' published speed, and of ours, with the errors.

    python benchmarks/published_throughput.py > docs/benchmarks/published-throughput.md
    python benchmarks/published_throughput.py --fit

The rows and their sources are in tests/published_throughput.py. --fit searches for the two
constants anew, to standard error, in a minute or so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.spec.machines import MACHINES
from benchmarks.pages import heading, table
from tests.published_throughput import (
    H100,
    PUBLISHED,
    TORCHTITAN,
    Group,
    Published,
    fit,
    rows_of,
)

COLUMNS = (
    *("source", "run", "tp cp pp", "recompute", "published"),
    *("planner", "error", "with torchtitan's pair"),
)


def lines(rows: Iterable[Published]) -> Iterable[tuple[object, ...]]:
    for row in rows:
        at = row.layout
        yield (
            *(row.source, row.name, f"{at.tp} {at.cp} {at.pp}", row.recompute),
            *(f"{row.speed:,.0f}", f"{row.predicted():,.0f}", f"{row.error():+.0%}"),
            f"{row.error(TORCHTITAN):+.0%}",
        )


def section(title: str, group: Group) -> str:
    return f"## {title}\n\n{table(COLUMNS, lines(rows_of(group)))}\n"


def page() -> str:
    h200 = MACHINES["h200"]
    return "\n".join(
        [
            heading("Published throughput", "numpy"),
            "Tokens a second and GPU. The planner has two constants of speed: products "
            "with weights run at\n"
            f"{H100.efficiency} of the peak and attention at "
            f"{H100.attention_efficiency}, fitted to the rows under "
            '"Ours" and "NVIDIA"; a second pair,\n'
            f"{TORCHTITAN.efficiency} and {TORCHTITAN.attention_efficiency}, was fitted "
            'to those under "torchtitan". The quoted rows were in neither fit.\n',
            section("Quoted", "quoted"),
            section("Ours", "ours"),
            f"With {h200.efficiency} and {h200.attention_efficiency}, the constants of "
            "`configs/clusters/h200.yaml` and `h100-80.yaml`,\n"
            "fitted to rows of this engine alone ([gpu-several.md](gpu-several.md#the-planner-"
            "against-this)), the errors of these are "
            + ", ".join(f"{row.error(h200):+.1%}" for row in rows_of("ours"))
            + ".\n",
            section("NVIDIA", "NVIDIA"),
            section("torchtitan", "torchtitan"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        groups = {
            "ours and NVIDIA's": [*rows_of("ours"), *rows_of("NVIDIA")],
            "torchtitan's": rows_of("torchtitan"),
            "ours with FlashAttention 4": rows_of("ours")[:-1],
            "all that are not quoted": [r for r in PUBLISHED if r.group != "quoted"],
        }
        for name, rows in groups.items():
            found = fit(rows)
            print(
                f"{name}: {found.efficiency} {found.attention_efficiency}",
                file=sys.stderr,
            )
    print(page(), end="")


if __name__ == "__main__":
    main()
